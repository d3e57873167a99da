"""Faults of the machine, caused for real where they can be: one message with its fix, and nothing lost."""

import json
import multiprocessing
import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
import torch
from training_flags import SCRIPT, command, training_flags, with_regions

import blip_fine_tune_2
import blip_validate
import cirr_test_submission
from lavis.models import Blip2QformerCirAlignPrompt, load_model
from lavis.models.checkpoint import save_model
from lavis.processors import BlipCaptionProcessor
from sprc.core import files
from sprc.core.errors import InputError
from sprc.core.machine_faults import explained, training_memory_fix
from sprc.core.process_group import ALONE
from sprc.core.runtime import Runtime
from sprc.data import preprocess
from sprc.training.config import STATE_FILE, TrainConfig
from sprc.training.gradients import Gradients
from sprc.training.loss_watch import BROKEN_STEP, LossWatch
from sprc.training.optimization import Optimization


@pytest.fixture
def flags(demo, small_yaml, tmp_path) -> list[str]:
    return training_flags(demo, small_yaml, tmp_path / "models", num_epochs=2, learning_rate=1e-3)


def run_folder(tmp_path: Path) -> Path:
    (folder,) = (tmp_path / "models").iterdir()
    return folder


# --- the disk ---------------------------------------------------------------------------------------------------------


def test_a_full_disk_while_saving_a_state(flags, small_disk):
    """Space ends in the middle of the second epoch's state."""
    disk = small_disk("64m")
    blip_fine_tune_2.main([*flags, "--num-epochs", "1", "--output-folder", str(disk / "models")])
    folder = run_folder(disk)
    before = (folder / STATE_FILE).read_bytes()
    filler, free = disk / "filler", shutil.disk_usage(disk).free
    filler.write_bytes(bytes(free - len(before) // 2))
    resume = ["--dataset", "CIRR", "--resume", str(folder), "--num-epochs", "2"]
    with pytest.raises(InputError, match=rf"{STATE_FILE} cannot be written \(No space left"):
        blip_fine_tune_2.main(resume)
    assert (folder / STATE_FILE).read_bytes() == before
    assert not list(disk.rglob("*.partial"))
    filler.unlink()
    blip_fine_tune_2.main(resume)
    assert (folder / "train_metrics.csv").read_text().count("\n") == 3


def test_an_output_folder_that_cannot_be_made(flags):
    with pytest.raises(InputError, match=r"/proc/nowhere/clip_finetuned.* cannot be written"):
        blip_fine_tune_2.main([*flags, "--output-folder", "/proc/nowhere"])


def test_two_runs_do_not_share_a_folder(flags, tmp_path):
    blip_fine_tune_2.main(flags)
    folder = run_folder(tmp_path)
    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    with files.held(folder), pytest.raises(InputError, match="is in use by another process"):
        blip_fine_tune_2.main(["--dataset", "CIRR", "--resume", str(folder), "--num-epochs", "3"])
    assert {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()} == before


# --- processes and memory ---------------------------------------------------------------------------------------------


@pytest.mark.integration
def test_a_loader_process_that_is_killed(flags, monkeypatch):
    original = preprocess.Preprocess.__call__

    def dies(self, image):
        if torch.utils.data.get_worker_info() is not None:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(self, image)

    monkeypatch.setattr(preprocess.Preprocess, "__call__", dies)
    with pytest.raises(InputError, match=r"process that loads images ended: DataLoader worker .* lower `num_workers`"):
        blip_fine_tune_2.main([*flags, "--num-workers", "1"])


# Runs a script in a mount namespace of its own, whose /dev/shm has 64 KiB.
WITH_SMALL_SHM = """
import ctypes, runpy, subprocess, sys
if ctypes.CDLL(None).unshare(0x20000):  # CLONE_NEWNS
    raise OSError("no namespace")
subprocess.run("mount --make-rprivate / && mount -t tmpfs -o size=64k tmpfs /dev/shm", shell=True, check=True)
del sys.argv[0]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.integration
@pytest.mark.parametrize("cached", [False, True])
def test_shared_memory_that_is_too_small(warm, demo, small_yaml, tmp_path, cached):
    """A cache's images are not yet a batch in there."""
    if subprocess.run(["unshare", "-m", "true"], capture_output=True, check=False).returncode:
        pytest.skip("mounting in a namespace of its own is not allowed here")
    cache = {"feature_cache": tmp_path / "cache"} if cached else {}
    words = command(*training_flags(demo, small_yaml, tmp_path, num_workers=1, **cache))
    told = warm("-c", WITH_SMALL_SHM, *words).finished()
    last = told.stderr.splitlines()[-1]
    assert told.returncode == 2, told.stderr
    assert last.startswith("error: /dev/shm, through which the processes that load images hand them over, is too small")
    assert "0 of 0 MiB are free" in last and "--num-workers 0" in last and "Traceback" not in told.stderr


@pytest.mark.parametrize(
    ("message", "said"),
    [
        ("DataLoader worker (pid 7) is killed by signal: Bus error. It is possible that", "/dev/shm, .* is too small"),
        ("unable to write to file </torch_7_1>: No space left on device (28)", "/dev/shm, .* is too small"),
        ("unable to open shared memory object </torch_7_1> in read-write mode", "/dev/shm, .* is too small"),
        ("received 0 items of ancdata", "too many open files: raise ulimit -n"),
        ("DataLoader worker (pid(s) 7) exited unexpectedly", "a process that loads images ended: .*`num_workers`"),
    ],
)
def test_faults_of_loader_processes(message, said):
    with pytest.raises(InputError, match=said), explained("no"):
        raise RuntimeError(message)


def test_a_bug_in_a_loader_process_keeps_its_trace(flags, monkeypatch):
    def breaks(self, image):
        raise RuntimeError("a bug of its own")

    monkeypatch.setattr(preprocess.Preprocess, "__call__", breaks)
    with pytest.raises(RuntimeError, match=r"(?s)Caught RuntimeError in DataLoader worker .*a bug of its own"):
        blip_fine_tune_2.main([*flags, "--num-workers", "1"])


def cut_pixels(path):
    """Leave the header, which is what the check before a run reads."""
    path.write_bytes(path.read_bytes()[:200])


@pytest.mark.parametrize("workers", ["0", "1"])
def test_an_image_that_turns_bad_after_the_check(demo_copy, small_yaml, tmp_path, workers, monkeypatch):
    place = next(iter(json.loads((demo_copy / "cirr/image_splits/split.rc2.train.json").read_text()).values()))
    cut_pixels(demo_copy / place)
    flags = training_flags(demo_copy, small_yaml, tmp_path / "models", num_workers=workers)
    with pytest.raises(InputError) as caught:
        blip_fine_tune_2.main(flags)
    message = str(caught.value)
    assert (
        message.startswith("image 'train-") and place[2:] in message and message.endswith("copy or download it again")
    )
    assert "\n" not in message


@pytest.mark.parametrize("script", ["validate", "submit"])
def test_an_image_that_turns_bad_in_an_evaluation(demo_copy, small_yaml, tmp_path, script):
    save_model(load_model("blip2_cir_align_prompt", small_yaml), 0, tmp_path / "m.pt")
    split = "val" if script == "validate" else "test1"
    place = next(iter(json.loads((demo_copy / f"cirr/image_splits/split.rc2.{split}.json").read_text()).values()))
    cut_pixels(demo_copy / place)
    flags = ["--model-path", str(tmp_path / "m.pt"), "--data-path", str(demo_copy), "--backbone", small_yaml]
    flags += ["--device", "cpu", "--num-workers", "1"]
    with pytest.raises(InputError) as caught:
        if script == "validate":
            blip_validate.main(["--dataset", "CIRR", *flags])
        else:
            cirr_test_submission.main([*flags, "--output-folder", str(tmp_path / "submission")])
    assert str(caught.value).startswith("image '") and str(caught.value).endswith("copy or download it again")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("error", "sizes", "message"),
    [
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
            (128, None),
            "try `feature_cache` or `micro_batch` 64, which",
        ),
        (torch.OutOfMemoryError("CUDA out of memory."), (128, 16), "16 triplets at a time .* `micro_batch` 8, which"),
        (torch.OutOfMemoryError("CUDA out of memory."), (128, 16, True), "try `micro_batch` 8, which"),
        (torch.OutOfMemoryError("CUDA out of memory."), (128, 1), "one triplet at a time .* `feature_cache`"),
        (torch.OutOfMemoryError("CUDA out of memory."), (128, 1, True), "use a smaller `backbone`"),
        (MemoryError(), (8, None), "8 triplets at a time"),
    ],
)
def test_memory_that_ran_out(error, sizes, message):
    with pytest.raises(InputError, match=message), explained(training_memory_fix(*sizes)):
        raise error


@pytest.mark.parametrize(
    ("free", "reserved", "message"),
    [
        (1, 9, "other programs hold 70.0 of 80.0 GiB of cuda:3: .*`device` cuda:N"),
        (1, 45, "8 triplets at a time"),  # most of it is this program's own
    ],
)
def test_a_gpu_that_others_fill_is_not_blamed_on_the_batch(monkeypatch, free, reserved, message):
    monkeypatch.setattr(torch.cuda, "mem_get_info", {3: (free * 2**30, 80 * 2**30)}.__getitem__)
    monkeypatch.setattr(torch.cuda, "memory_reserved", {3: reserved * 2**30}.__getitem__)
    error = torch.OutOfMemoryError("CUDA out of memory. GPU 3 has a total capacity of 80.00 GiB of which 1 GiB is free")
    with pytest.raises(InputError, match=message), explained(training_memory_fix(8)):
        raise error


def test_a_gpu_without_room_for_cuda_itself():
    with pytest.raises(InputError, match=r"other programs fill the GPU: .*CUDA_VISIBLE_DEVICES"), explained("no"):
        raise RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported")


def test_memory_of_the_cpu_that_ran_out_for_real():
    with pytest.raises(InputError, match="too much for the memory"), explained(training_memory_fix(128)):
        torch.empty(2**60)


def test_a_bug_keeps_its_trace():
    for bug in (RuntimeError("shapes cannot be multiplied"), KeyError("x"), ValueError("y")):
        with pytest.raises(type(bug)), explained("more memory"):
            raise bug


# --- numbers ----------------------------------------------------------------------------------------------------------


def test_a_loss_that_is_no_number_names_its_step_and_saves_it(flags, tmp_path, monkeypatch):
    original, calls = Gradients.__call__, []

    def breaks(self, samples, weights):
        losses = original(self, samples, weights)
        calls.append(samples["text_input"])
        return losses | {"loss_rtc": losses["loss_rtc"] * torch.nan} if len(calls) == 8 else losses

    monkeypatch.setattr(Gradients, "__call__", breaks)
    with pytest.raises(
        InputError, match=r"loss_rtc became NaN or infinite in epoch 1, step 2, with 8 triplets"
    ) as caught:
        blip_fine_tune_2.main(flags)
    folder = run_folder(tmp_path)
    record = json.loads((folder / BROKEN_STEP).read_text())
    assert (record["epoch"], record["step"], record["losses"]["loss_rtc"]) == (1, 2, "nan")
    assert len(record["triplets"]) == 8
    assert record["triplets"][0]["reference_name"] in str(caught.value)
    # A replay comes by the same triplets.
    calls.clear()
    monkeypatch.setattr(Gradients, "__call__", lambda *a: calls.append(a[1]["text_input"]) or original(*a))
    blip_fine_tune_2.main(["--dataset", "CIRR", "--resume", str(folder)])
    assert [len(texts) for texts in calls] == [8] * 5
    process = BlipCaptionProcessor()
    assert [process(triplet["caption"]) for triplet in record["triplets"]] == calls[2]


def test_weights_that_are_no_numbers_are_not_saved(flags, tmp_path, monkeypatch):
    original, steps = Optimization.step, []

    def poisons(self):
        original(self)
        steps.append(1)
        if len(steps) == 7:
            with torch.no_grad():
                self.trainable[0].view(-1)[0] = torch.inf

    monkeypatch.setattr(Optimization, "step", poisons)
    with pytest.raises(InputError, match="NaN or infinite in epoch 1"):
        blip_fine_tune_2.main([*flags, "--save-every", "1"])
    state = torch.load(run_folder(tmp_path) / STATE_FILE, weights_only=True)
    assert (state["epoch"], state["step"]) == (1, 1)
    assert all(value.isfinite().all() for value in state["model"].values() if value.is_floating_point())


@pytest.mark.parametrize("breaks_at", [4, 5])  # of 5 steps in an epoch: before its last, and the last
def test_weights_that_are_no_numbers_name_their_step(flags, tmp_path, monkeypatch, breaks_at):
    original, steps = Optimization.step, []

    def poisons(self):
        original(self)
        steps.append(1)
        if len(steps) == breaks_at:
            with torch.no_grad():
                for parameter in self.trainable:
                    parameter.fill_(torch.nan)

    monkeypatch.setattr(Optimization, "step", poisons)
    with pytest.raises(InputError, match=r"(loss_itc.*|weights) became NaN or infinite in epoch 0, step 4, with 8"):
        blip_fine_tune_2.main(flags)
    record = json.loads((run_folder(tmp_path) / BROKEN_STEP).read_text())
    assert (record["epoch"], record["step"], len(record["triplets"])) == (0, 4, 8)
    assert not (run_folder(tmp_path) / STATE_FILE).exists()


def test_pairs_without_numbers_stop_with_the_step(demo, small_yaml, tmp_path, monkeypatch):
    """Between two reports, in which nobody looks at a loss: the matching must not be what breaks."""
    original = Blip2QformerCirAlignPrompt.encode_frozen
    monkeypatch.setattr(
        Blip2QformerCirAlignPrompt, "encode_frozen", lambda self, images: original(self, images) * torch.nan
    )
    settings = with_regions(demo) | {"region_objective": "pairs"}
    with pytest.raises(InputError, match=r"loss_itc, loss_rtc, loss_align, loss_region became NaN .*epoch 0, step 0"):
        blip_fine_tune_2.main(training_flags(demo, small_yaml, tmp_path / "models", **settings))
    assert (run_folder(tmp_path) / BROKEN_STEP).is_file()


def test_fp16_steps_that_overflow_are_skipped_and_counted():
    model = torch.nn.Linear(2, 2)
    config = TrainConfig(dataset="CIRR", learning_rate=1e-3)
    found = Optimization(model, config, 10, Runtime(torch.device("cpu"), torch.float16))
    before = model.weight.clone()
    for scale in (1.0, 1e38, 1.0):
        found.scaler.scale(scale * model(torch.full((1, 2), 1e3)).sum()).backward()
        found.step()
        changed, before = not torch.equal(model.weight, before), model.weight.clone()
        assert changed == (scale == 1.0)
    assert found.skipped_steps == 1


def test_a_temperature_that_fell_to_zero(tmp_path):
    model = torch.nn.Module()
    model.temp = torch.nn.Parameter(torch.tensor(0.0))
    watch = LossWatch(model, tmp_path, ALONE)
    watch.add(4, {"loss_itc": torch.tensor(1.0)}, [])
    with pytest.raises(InputError, match="temperature fell to 0 by epoch 3, step 4"):
        watch.check(3)
    for broken in (torch.nan, torch.inf):
        model.temp.data.fill_(broken)
        with pytest.raises(InputError, match="weights became NaN or infinite in epoch 3, step 4"):
            watch.check(3)
        assert json.loads((tmp_path / BROKEN_STEP).read_text())["losses"] == {"loss_itc": "1.0"}


# --- how it is told ---------------------------------------------------------------------------------------------------


@pytest.mark.integration
def test_one_line_and_a_status_and_a_trace_where_it_is_asked_for(warm, flags):
    wrong = [*flags, "--output-folder", "/proc/nowhere"]
    told, debugged = (warm(SCRIPT, *wrong, *more).finished() for more in ([], ["--debug"]))
    assert told.returncode == debugged.returncode == 2
    assert told.stderr.splitlines()[-1].startswith("error: /proc/nowhere/clip_finetuned")
    assert "Traceback" not in told.stderr
    assert "Traceback" in debugged.stderr


# --- long runs --------------------------------------------------------------------------------------------------------


def memory_of(pid: int) -> int:
    """Resident bytes of a process."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.slow
def test_two_thousand_steps_hold_neither_memory_nor_files(demo, tmp_path, monkeypatch):
    """From the 500th step on: what has grown by then is what a run holds."""
    original, seen = Optimization.step, []

    def step(self):
        original(self)
        if self.scheduler.last_epoch % 100 == 0:
            family = [os.getpid(), *(child.pid for child in multiprocessing.active_children())]
            files_open = len(os.listdir("/proc/self/fd"))
            seen.append((sum(map(memory_of, family)) / 2**20, files_open, len(family)))

    monkeypatch.setattr(Optimization, "step", step)
    settings = {"num_epochs": 400, "validation_frequency": 100, "num_workers": 2, "save_every": 100}
    blip_fine_tune_2.main(training_flags(demo, "tiny", tmp_path, **settings, **with_regions(demo)))
    print("MiB, open files, processes, every 100 steps:", *seen, sep="\n")
    assert len(seen) == 20
    megabytes, open_files, processes = zip(*seen[4:], strict=True)
    assert max(megabytes) < 1.03 * megabytes[0] + 10
    assert max(open_files) <= open_files[0] + 2
    assert set(processes) == {3}
