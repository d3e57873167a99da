"""How a process was started: groups that are joined, processes that would each train alone, and what is refused."""

import json
import os
import signal
import subprocess
import sys
import time
from datetime import timedelta

import pytest
import torch
from patience import PATIENCE
from training_flags import ENVIRONMENT, SCRIPT, command, free_port, hear_interrupts, start_pair, training_flags

from sprc.core import process_group as distributed
from sprc.core.command_line import run_main
from sprc.core.errors import InputError
from sprc.core.launch import Launch, alone_environment, find_launch, require_one_process
from sprc.core.runtime import best_precision, choose_device

ISSUE = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29511"}


def test_a_group_is_found():
    assert find_launch(ISSUE) == Launch(1, 2, 1, "127.0.0.1:29511")
    srun = {**ISSUE, "SLURM_STEP_NUM_TASKS": "2", "SLURM_LOCALID": "0"}
    del srun["LOCAL_RANK"]
    assert find_launch(srun).local_rank == 0
    assert find_launch({name: ISSUE[name] for name in ISSUE if name != "LOCAL_RANK"}).local_rank is None


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"WORLD_SIZE": "1", "RANK": "0"},
        {"WORLD_SIZE": ""},
        {"SLURM_NTASKS": "8", "SLURM_PROCID": "0"},  # a shell in an allocation
        {"SLURM_STEP_NUM_TASKS": "1"},
        {"SLURM_STEP_NUM_TASKS": "2", "TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": "1"},  # torchrun of one, in srun
    ],
)
def test_alone(environ):
    assert find_launch(environ) is None


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        ({"SLURM_STEP_NUM_TASKS": "2"}, r"srun has started 2 .* each would run alone.* torchrun --nnodes"),
        ({"OMPI_COMM_WORLD_SIZE": "4"}, "mpirun has started 4 .*start it by torchrun"),
        ({"PMI_SIZE": "3"}, "mpiexec has started 3"),
        ({"JSM_NAMESPACE_SIZE": "2"}, "jsrun has started 2"),
        ({"WORLD_SIZE": "2", "RANK": "0"}, "MASTER_ADDR, MASTER_PORT is not set: start it by torchrun"),
        ({"RANK": "3"}, "but WORLD_SIZE, MASTER_ADDR, MASTER_PORT is not set"),
        (ISSUE | {"RANK": "2"}, "RANK is 2, and WORLD_SIZE 2: ranks are 0 to 1"),
        (ISSUE | {"RANK": "one"}, "RANK is 'one', which is no number"),
        (ISSUE | {"WORLD_SIZE": "0"}, "WORLD_SIZE is '0'"),
        (ISSUE | {"WORLD_SIZE": "-2"}, "WORLD_SIZE is '-2'"),
        (ISSUE | {"MASTER_PORT": "http"}, "MASTER_PORT is 'http'"),
        (ISSUE | {"LOCAL_RANK": "x"}, "LOCAL_RANK is 'x'"),
    ],
)
def test_what_is_no_group_is_refused(environ, message):
    with pytest.raises(InputError, match=message):
        find_launch(environ)


@pytest.mark.parametrize("environ", [{"WORLD_SIZE": "4"}, {"SLURM_STEP_NUM_TASKS": "2"}, ISSUE | {"RANK": "0"}])
def test_other_scripts_are_one_process(environ, monkeypatch, capsys):
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError):
        require_one_process()
    with pytest.raises(SystemExit):
        run_main(lambda: pytest.fail("it began"))
    assert capsys.readouterr().err.startswith("error: ")


def test_a_gpu_is_that_of_this_process(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    for name, value in ISSUE.items():
        monkeypatch.setenv(name, value)
    assert choose_device("cuda") == torch.device("cuda", 1)
    assert choose_device("cuda:3") == torch.device("cuda", 3)
    monkeypatch.delenv("LOCAL_RANK")
    with pytest.raises(InputError, match="LOCAL_RANK, the number of this process on its machine"):
        choose_device("cuda")


@pytest.mark.parametrize("device", ["meta", "mps", "xla", "hpu", "cpu:3", "cuda:-1", "cuda:", "CUDA", "", "cuda:9"])
def test_other_devices_are_refused(device, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(InputError, match=r"^`device` "):
        choose_device(device)


def test_processes_do_not_share_a_gpu(monkeypatch):
    """Without LOCAL_WORLD_SIZE each process may see a GPU of its own alone, as cuda:0."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    for name, value in (ISSUE | {"LOCAL_WORLD_SIZE": "2"}).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match=r"`device` cuda:0 puts 2 processes on one GPU: use `device` cuda$"):
        choose_device("cuda:0")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1")
    assert choose_device("cuda:0") == torch.device("cuda", 0)


def test_a_gpu_number_beyond_torchs_own(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(InputError, match=r"`device` cuda:300: torch \S+ sees 1 CUDA devices"):
        choose_device("cuda:300")


def test_a_child_that_trains_alone_has_nothing_of_a_group(monkeypatch):
    for name, value in (ISSUE | {"TORCHELASTIC_ERROR_FILE": "x", "KEPT": "y"}).items():
        monkeypatch.setenv(name, value)
    environment = alone_environment()
    assert find_launch(environment) is None
    assert environment["KEPT"] == "y" and "TORCHELASTIC_ERROR_FILE" not in environment


def test_bf16_is_asked_of_the_chosen_gpu(monkeypatch):
    """Two GPUs, of which only the second computes in bf16; the first is torch's current one."""
    current = [0]

    class Chosen:
        def __init__(self, device):
            self.index = torch.device(device).index

        def __enter__(self):
            current.append(self.index)

        def __exit__(self, *_unused):
            current.pop()

    monkeypatch.setattr(torch.cuda, "device", Chosen)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: current[-1] == 1)
    assert best_precision(torch.device("cuda", 0)) == "fp16"
    assert best_precision(torch.device("cuda", 1)) == "bf16"


# --- for real ---------------------------------------------------------------------------------------------------------


@pytest.mark.integration
def test_two_processes_that_a_user_starts_are_one_training(warm, demo, small_yaml, tmp_path):
    settings = {"batch_size": 4, "learning_rate": 1e-3}
    pair = start_pair(warm, *training_flags(demo, small_yaml, tmp_path / "by_hand", **settings))
    answers = [process.finished() for process in pair]
    assert [answer.returncode for answer in answers] == [0, 0], answers
    assert answers[1].stdout == ""  # rank 1 prints nothing
    told = warm(*command(*training_flags(demo, small_yaml, tmp_path / "torchrun", **settings), processes=2)).finished()
    assert told.returncode == 0, told.stderr
    assert told.stderr.count("0/5 [00:00<?, ?it/s]") == 1  # one rank shows its bar; its processes begin without tqdm
    (by_hand,), (torchrun,) = ((tmp_path / name).iterdir() for name in ("by_hand", "torchrun"))
    for name in ("train_metrics.csv", "validation_metrics.csv"):
        assert (by_hand / name).read_bytes() == (torchrun / name).read_bytes()


def test_a_group_that_does_not_meet(monkeypatch, caplog):
    for name, value in (ISSUE | {"RANK": "0", "LOCAL_RANK": "0", "MASTER_PORT": free_port()}).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(distributed, "TIMEOUT", timedelta(seconds=1))
    monkeypatch.setattr(distributed, "SECONDS_OF_PATIENCE", 0.2)
    with pytest.raises(InputError, match=r"all 2 processes at 127\.0\.0\.1:\d+ \(this one is rank 0\) should have met"):
        distributed.join_world(torch.device("cpu"))
    assert "waiting for all 2 processes at 127.0.0.1" in caplog.text


@pytest.mark.integration
def test_an_error_of_every_rank_is_printed_once(warm, tmp_path, small_yaml):
    """torchrun's own report, which it prints for every script that fails, repeats it."""
    told = warm(*command(*training_flags(tmp_path / "nowhere", small_yaml, tmp_path), processes=2)).finished()
    assert told.returncode != 0
    said = [line for line in told.stderr.splitlines() if "no folder" in line]
    assert said[0].startswith("error: no folder") and len(said) == 2
    assert said[1].strip().startswith("traceback : error: no folder")


@pytest.mark.integration
def test_an_error_of_one_rank_is_printed_by_it(tmp_path):
    code = "from sprc.core import launch; launch.SECONDS_FOR_RANK_0 = 0.2\n"
    code += "from sprc.core.command_line import run_main; from sprc.core.errors import InputError\n"
    code += "def main(): raise InputError('my disk')\nrun_main(main, in_group=True)"
    file = tmp_path / "error.json"
    environment = ENVIRONMENT | ISSUE | {"TORCHELASTIC_ERROR_FILE": str(file)}
    line = [sys.executable, "-c", code, str(SCRIPT.parent)]
    told = subprocess.run(line, env=environment, capture_output=True, text=True, check=False)
    assert (told.returncode, told.stderr) == (2, "rank 1: error: my disk\n")
    assert json.loads(file.read_text())["message"]["message"] == "error: my disk"
    assert os.environ.get("RANK") is None


@pytest.mark.integration
def test_ctrl_c_while_another_rank_waits_to_speak_shows_no_trace(tmp_path):
    code = "from sprc.core.command_line import run_main\n"
    code += "from sprc.core.errors import InputError\n"
    code += "def main(): print('began', flush=True); raise InputError('x')\nrun_main(main, in_group=True)"
    line = [sys.executable, "-c", code, str(SCRIPT.parent)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(line, env=ENVIRONMENT | ISSUE, preexec_fn=hear_interrupts, **pipes) as process:
        assert process.stdout.readline() == "began\n"
        time.sleep(0.3)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=PATIENCE)
    assert (process.returncode, errors) == (130, "")
