"""A run that was killed, stopped or struck by a fault ends, resumed, as one that was never stopped: to the last bit."""

import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import replace
from multiprocessing.context import SpawnProcess
from pathlib import Path

import pytest
import torch
from patience import PATIENCE, wait_until
from training_flags import SCRIPT, hear_interrupts
from waiting_worker import wait_for_signals
from warm import WarmProcess

import blip_fine_tune_2
from sprc.core import files
from sprc.core.command_line import run_main
from sprc.core.errors import InputError
from sprc.core.runtime import choose_runtime
from sprc.core.stop_signals import Stopped, StopSignals
from sprc.training.config import STATE_FILE, TrainConfig, save_interval
from sprc.training.resuming import find_run
from sprc.training.run import write_hyperparameters
from sprc.training.run_inputs import file_fingerprint
from sprc.training.run_state import Best, random_state, read_state, set_random_state
from sprc.training.trainer import Trainer

COMPARED = ("train_metrics.csv", "validation_metrics.csv", "saved_models/tuned_clip_last.pt",
            "saved_models/tuned_clip_arithmetic.pt")  # fmt: skip


def flags(demo, small_yaml, output, *more) -> list[str]:
    settings = {"--dataset": "CIRR", "--data-path": demo, "--backbone": small_yaml, "--output-folder": output,
                "--batch-size": 8, "--num-epochs": 2, "--learning-rate": "1e-3", "--num-workers": 0,
                "--device": "cpu", "--save-every": 1}  # fmt: skip
    words = [str(word) for pair in settings.items() for word in pair]
    return [*words, "--save-best", "--save-training", *map(str, more)]


def run_folder(output: Path) -> Path:
    (folder,) = output.iterdir()
    return folder


def assert_same(first: Path, second: Path) -> None:
    for name in COMPARED:
        assert (first / name).read_bytes() == (second / name).read_bytes(), name
    assert not list(second.rglob("*.partial"))


@pytest.fixture(scope="module")
def whole(demo, small_yaml, tmp_path_factory) -> Path:
    """A run that nothing stopped."""
    output = tmp_path_factory.mktemp("whole")
    blip_fine_tune_2.main(flags(demo, small_yaml, output))
    return run_folder(output)


class Fault(OSError):
    """What the test lets a disk do."""


class FailingFile:
    """A file whose `write` counts, and fails at a number."""

    def __init__(self, file, calls: list, number: int):
        self.file, self.calls, self.number = file, calls, number

    def __getattr__(self, name):
        return getattr(self.file, name)

    def __enter__(self):
        return self

    def __exit__(self, *unused):
        self.file.close()

    def write(self, data):
        self.calls.append(1)
        if len(self.calls) == self.number:
            self.file.write(bytes(data)[: len(data) // 2])
            raise Fault(f"write number {self.number}")
        return self.file.write(data)


def fail_at(monkeypatch, name: str, number: int) -> None:
    """Let the `number`-th write, fsync or rename of the project's writer fail."""
    calls: list[int] = []
    if name == "write":
        opened = files.open_new
        monkeypatch.setattr(files, "open_new", lambda partial: FailingFile(opened(partial), calls, number))
        return
    original = getattr(os, name)

    def call(*arguments):
        calls.append(1)
        if len(calls) == number:
            raise Fault(f"{name} number {number}")
        return original(*arguments)

    monkeypatch.setattr(files.os, name, call)


def came_from_a_fault(error: BaseException | None) -> bool:
    return error is not None and (isinstance(error, Fault) or came_from_a_fault(error.__cause__ or error.__context__))


def struck_and_resumed(demo, small_yaml, output, monkeypatch, name: str, number: int) -> bool:
    """Run until the fault, then go on without one; False where the run ended before it came."""
    with monkeypatch.context() as patched:
        fail_at(patched, name, number)
        try:
            blip_fine_tune_2.main(flags(demo, small_yaml, output))
            return False
        except InputError as error:
            assert came_from_a_fault(error)
    folders = list(output.iterdir())
    has_state = bool(folders) and (folders[0] / STATE_FILE).is_file()
    torch.manual_seed(torch.seed())
    if has_state:
        blip_fine_tune_2.main(["--dataset", "cirr", "--resume", str(folders[0])])
    return True


@pytest.mark.parametrize(
    ("name", "number"), [("replace", 4), ("replace", 9), ("fsync", 8), ("fsync", 19), ("write", 5000)]
)
def test_a_fault_loses_nothing(whole, demo, small_yaml, tmp_path, monkeypatch, name, number):
    assert struck_and_resumed(demo, small_yaml, tmp_path, monkeypatch, name, number)
    assert_same(whole, run_folder(tmp_path))


@pytest.mark.slow
@pytest.mark.parametrize(("name", "stride"), [("replace", 1), ("fsync", 1), ("write", 701)])
def test_a_fault_anywhere_loses_nothing(whole, demo, small_yaml, tmp_path, monkeypatch, name, stride):
    number = 0
    while True:
        number += stride
        output = tmp_path / str(number)
        output.mkdir()
        if not struck_and_resumed(demo, small_yaml, output, monkeypatch, name, number):
            break
        if list(output.iterdir()) and (run_folder(output) / STATE_FILE).is_file():
            assert_same(whole, run_folder(output))
    print(f"{name}: a fault at every {stride}. of {number - 1} calls")
    assert number > 20 * stride


def test_a_write_that_breaks_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.txt"
    files.write_atomically(path, "old")
    with pytest.raises(InputError, match="disk full"), files.atomic_writer(path) as file:
        file.write(b"half")
        raise Fault("disk full")
    assert path.read_text() == "old"


def command(demo, small_yaml, output, *more) -> list:
    return [SCRIPT, *flags(demo, small_yaml, output, *more)]


def wait_for_a_state(output: Path, process: WarmProcess, after: int = 0) -> None:
    """Until a state has been written later than `after` (ns), or the process has ended."""

    def is_there() -> bool:
        return any(state.stat().st_mtime_ns > after for state in output.glob(f"*/{STATE_FILE}"))

    wait_until(lambda: process.poll() is not None or is_there(), "no state is written")


def killed_and_resumed(warm, whole, words: list, output, seed: int, most_kills: int) -> int:
    """Kill again and again at random moments, go on each time; returns how often it was killed before it ended."""
    rng, kills = random.Random(seed), 0
    process = warm(*words)
    while kills < most_kills:
        states = list(output.glob(f"*/{STATE_FILE}"))
        wait_for_a_state(output, process, states[0].stat().st_mtime_ns if states else 0)
        time.sleep(rng.uniform(0, 0.15))
        if process.poll() is not None:
            break
        process.send_signal(signal.SIGKILL)
        status = process.finished().returncode
        if status == 0:  # the signal came too late
            break
        assert status == -signal.SIGKILL
        kills += 1
        print(f"kill {kills}")
        process = warm(*words, "--resume", "auto", "--num-workers", kills % 2)
    ended = process.finished()
    assert ended.returncode == 0, ended.stderr
    assert "best epoch" in ended.stdout
    assert_same(whole, run_folder(output))
    return kills


@pytest.mark.integration
def test_killed_at_any_moment(warm, whole, demo, small_yaml, tmp_path):
    words = command(demo, small_yaml, tmp_path)
    assert killed_and_resumed(warm, whole, words, tmp_path, seed=0, most_kills=5) >= 3


@pytest.mark.integration
def test_a_killed_run_with_workers_goes_on_at_once(warm, demo, small_yaml, tmp_path, monkeypatch):
    """Its processes that load images outlive it by seconds, and hold none of its locks."""
    process = warm(*command(demo, small_yaml, tmp_path, "--num-workers", "2", "--num-epochs", "200"))
    wait_for_a_state(tmp_path, process)
    workers = subprocess.run(["ps", "--ppid", str(process.pid), "-o", "pid="], capture_output=True, text=True).stdout
    process.end()
    assert [pid for pid in workers.split() if Path(f"/proc/{pid}").exists()]
    monkeypatch.setattr(Trainer, "fit", lambda self: Best("recall_at1", 0, {"recall_at1": 1.0}))
    blip_fine_tune_2.main(["--dataset", "CIRR", "--resume", str(run_folder(tmp_path))])


@pytest.mark.slow
def test_killed_twenty_times(warm, whole, demo, small_yaml, tmp_path):
    kills = 0
    for seed in range(1, 21):
        output = tmp_path / str(seed)
        output.mkdir()
        words = command(demo, small_yaml, output)
        kills += killed_and_resumed(warm, whole, words, output, seed, most_kills=5)
        if kills >= 20:
            return
    pytest.fail(f"only {kills} kills")


@pytest.mark.integration
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_gives_its_status(warm, demo, small_yaml, tmp_path, number):
    process = warm(*command(demo, small_yaml, tmp_path, "--save-every", "epoch", "--num-epochs", "200"))
    wait_for_a_state(tmp_path, process)
    process.send_signal(number)
    ended = process.finished()
    assert ended.returncode == 128 + number, ended
    assert f"stopped by {number.name}" in ended.stderr
    state = read_state(run_folder(tmp_path))
    assert state["epoch"] > 0 or state["step"] > 0


@pytest.mark.integration
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_the_whole_group_saves_as_well(warm, demo, small_yaml, tmp_path, number):
    """As Ctrl-C in a terminal and a batch system send it: processes that load images hear it too."""
    process = warm(*command(demo, small_yaml, tmp_path, "--num-workers", "2", "--num-epochs", "200"))
    wait_for_a_state(tmp_path, process)
    os.killpg(process.pid, number)
    ended = process.finished()
    assert ended.returncode == 128 + number, ended
    assert f"stopped by {number.name}; saved; continue with --resume {run_folder(tmp_path)}" in ended.stderr


@pytest.fixture
def worker() -> Iterator[SpawnProcess]:
    """It leaves signals to this process, and loads nothing else, so that it is there at once.

    It is spawned: a fork would start this process's threads, and a server's fork has another parent.
    """
    context = multiprocessing.get_context("spawn")
    ready = context.Event()
    process = context.Process(target=wait_for_signals, args=(ready,))
    process.start()
    try:
        assert ready.wait(PATIENCE)
        yield process
    finally:
        process.kill()
        process.join()


def terminate_from_another_process(worker: SpawnProcess) -> None:
    subprocess.run(["kill", "-TERM", str(worker.pid)], check=True)


@pytest.mark.integration
def test_a_worker_ends_with_its_parents_signal_alone(worker):
    terminate_from_another_process(worker)
    worker.join(0.3)
    assert worker.is_alive()
    worker.terminate()
    worker.join(PATIENCE)
    assert worker.exitcode == 0


@pytest.mark.integration
def test_a_worker_ends_although_the_system_has_merged_two_signals(worker):
    """One of another process waits in the worker, and its parent's, of the same number, comes too."""
    os.kill(worker.pid, signal.SIGSTOP)
    os.waitid(os.P_PID, worker.pid, os.WSTOPPED | os.WNOWAIT)  # until then it would hear the first by itself
    terminate_from_another_process(worker)
    worker.terminate()
    os.kill(worker.pid, signal.SIGCONT)
    worker.join(0.5)
    assert worker.is_alive()  # what its parent has sent is lost
    with pytest.raises(SystemExit):
        run_main(stopped)
    assert worker.exitcode == 0


def stopped() -> None:
    raise Stopped(signal.SIGTERM, "stopped")


@pytest.fixture
def heard():
    before = signal.getsignal(signal.SIGINT)
    hear_interrupts()
    yield
    signal.signal(signal.SIGINT, before)


def test_an_ignored_signal_stays_ignored(heard):
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with StopSignals() as signals:
        signal.raise_signal(signal.SIGINT)
        assert signals.number is None


def test_the_first_signal_waits_for_the_step_and_the_second_acts(heard):
    with StopSignals() as signals:
        signal.raise_signal(signal.SIGTERM)
        assert signals.number == signal.SIGTERM
        with pytest.raises(Stopped, match="stopped by SIGTERM; saved") as stop:
            signals.raise_if_asked("saved")
        assert stop.value.status == 143
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    with pytest.raises(Stopped), StopSignals() as signals, signals.at_once():
        signal.raise_signal(signal.SIGINT)
    with StopSignals() as signals:
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(Stopped), signals.at_once():
            raise AssertionError("what a signal has asked to stop does not begin")
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


def test_a_finished_run_goes_on_for_more_epochs(demo, small_yaml, tmp_path):
    blip_fine_tune_2.main(flags(demo, small_yaml, tmp_path / "short"))
    folder = run_folder(tmp_path / "short")
    blip_fine_tune_2.main(["--dataset", "CIRR", "--resume", str(folder), "--num-epochs", "3"])
    blip_fine_tune_2.main(flags(demo, small_yaml, tmp_path / "long", "--num-epochs", "3"))
    assert_same(run_folder(tmp_path / "long"), folder)


def test_changed_flags_are_named(whole, demo, small_yaml, tmp_path):
    base = ["--dataset", "CIRR", "--resume", str(whole)]
    with pytest.raises(InputError, match=r"`batch_size` 16 \(the run: 8\), `seed` 5 \(the run: 0\)"):
        blip_fine_tune_2.main([*base, "--batch-size", "16", "--seed", "5", "--learning-rate", "1e-3"])
    with pytest.raises(InputError, match="`dataset` FashionIQ"):
        blip_fine_tune_2.main(["--dataset", "FashionIQ", "--resume", str(whole)])
    with pytest.raises(InputError, match=STATE_FILE):
        blip_fine_tune_2.main(["--dataset", "CIRR", "--resume", str(tmp_path)])
    with pytest.raises(InputError, match=r"`feature_cache` .*features \(the run: off\)"):
        blip_fine_tune_2.main([*base, "--feature-cache", str(tmp_path / "features")])
    config, resumed = blip_fine_tune_2.parse_config([*base, "--num-epochs", "9", "--num-workers", "3"])
    assert (config.num_epochs, config.num_workers, config.batch_size, resumed) == (9, 3, 8, whole)


def test_auto_takes_the_last_run_with_these_settings_or_starts_anew(demo, small_yaml, tmp_path, capsys):
    first = [*flags(demo, small_yaml, tmp_path), "--resume", "auto"]
    config, resumed = blip_fine_tune_2.parse_config(first)
    assert resumed is None
    other = replace(config, seed=1, batch_size=4)
    for name, age, settings in (("old", 100, config), ("new", 50, config), ("other", 1, other)):
        folder = tmp_path / f"clip_finetuned_on_cirr_blip2_cir_align_prompt_{name}"
        folder.mkdir()
        (folder / STATE_FILE).touch()
        write_hyperparameters(settings, choose_runtime("cpu"), folder)
        os.utime(folder / STATE_FILE, (time.time() - age,) * 2)
    assert find_run(config).name.endswith("_new")
    assert find_run(replace(config, num_epochs=9, num_workers=3)).name.endswith("_new")
    assert find_run(other).name.endswith("_other")
    assert find_run(replace(config, precision="fp32")) is None
    assert "differs in --precision, --batch-size, --seed" in capsys.readouterr().out
    assert capsys.readouterr().out == ""
    boxes = replace(config, use_region_loss=True, box_file=Path("boxes.json"))
    assert find_run(boxes) is None
    said = capsys.readouterr().out
    assert "a new run begins" in said
    assert "differs in --batch-size, --seed, --use-region-loss, --box-file" in said


def test_a_cache_may_lie_elsewhere(demo, small_yaml, tmp_path):
    words = flags(demo, small_yaml, tmp_path / "runs", "--resume", "auto", "--feature-cache")
    blip_fine_tune_2.main([*words, str(tmp_path / "here")])
    folder = run_folder(tmp_path / "runs")
    assert blip_fine_tune_2.parse_config([*words, str(tmp_path / "there")])[1] == folder
    resumed = ["--dataset", "CIRR", "--resume", str(folder), "--num-epochs", "3", "--feature-cache"]
    shutil.rmtree(tmp_path / "here")
    blip_fine_tune_2.main([*resumed, str(tmp_path / "there")])
    assert not (tmp_path / "here").exists()
    with pytest.raises(InputError, match=r"`feature_cache` off \(the run: "):
        blip_fine_tune_2.main([*resumed, "off"])


def test_a_box_file_that_was_made_again_is_not_gone_on_with(demo, small_yaml, tmp_path, capsys):
    boxes = Path(shutil.copy(demo / "boxes" / "cirr_boxes_train.json", tmp_path / "boxes.json"))
    words = flags(demo, small_yaml, tmp_path / "runs", "--use-region-loss", "--box-file", boxes, "--resume", "auto")
    blip_fine_tune_2.main(words)
    folder = run_folder(tmp_path / "runs")
    assert blip_fine_tune_2.parse_config(words)[1] == folder
    file_fingerprint.cache_clear()  # as in another process
    boxes.write_text(boxes.read_text().replace("[[", "[[0.1, 0.1, 0.9, 0.9], [", 1))
    capsys.readouterr()
    assert blip_fine_tune_2.parse_config(words)[1] is None
    assert "differs in the boxes in the file" in capsys.readouterr().out
    with pytest.raises(InputError, match=r"boxes\.json holds other boxes than that run was trained with"):
        blip_fine_tune_2.parse_config(["--dataset", "CIRR", "--resume", str(folder)])


def test_a_run_of_another_version_is_refused(whole, tmp_path):
    copy = shutil.copytree(whole, tmp_path / "copy")
    config = read_state(copy)["config"]
    for state in ({"config": {}}, {"config": config}, {"config": config, "inputs": 3, "optimization": [1]}):
        torch.save(state, copy / STATE_FILE)
        with pytest.raises(InputError, match="copy was made by another version"):
            blip_fine_tune_2.parse_config(["--dataset", "CIRR", "--resume", str(copy)])


def test_another_vit_and_a_damaged_state_are_refused(whole, tmp_path):
    copy = shutil.copytree(whole, tmp_path / "copy")
    state = read_state(copy)
    torch.save(state | {"frozen": "another"}, copy / STATE_FILE)
    with pytest.raises(InputError, match="same `weights`"):
        blip_fine_tune_2.main(["--dataset", "CIRR", "--resume", str(copy), "--num-epochs", "3"])
    (copy / STATE_FILE).write_bytes((copy / STATE_FILE).read_bytes()[:1000])
    with pytest.raises(InputError, match="cannot be read"):
        blip_fine_tune_2.main(["--dataset", "CIRR", "--resume", str(copy)])


def test_every_random_state_comes_back():
    import numpy as np

    state = random_state(torch.device("cpu"))
    first = torch.rand(2), random.random(), np.random.rand()
    torch.save(state, buffer := __import__("io").BytesIO())
    buffer.seek(0)
    set_random_state(torch.load(buffer, weights_only=True), torch.device("cpu"))
    second = torch.rand(2), random.random(), np.random.rand()
    assert torch.equal(first[0], second[0])
    assert first[1:] == second[1:]


def test_save_intervals():
    assert [save_interval(text) for text in ("epoch", "20", "15m", "0.5m")] == [(0, 0), (20, 0), (0, 900), (0, 30)]
    for text in ("0", "-3", "2h", "m", "", "infm", "nanm"):
        with pytest.raises(InputError, match="`save_every`"):
            TrainConfig(dataset="CIRR", save_every=text)
