"""How the tests start a training: its flags, and the script in a process of its own or in several."""

import csv
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

from paths import SOURCE
from patience import PATIENCE

SCRIPT = SOURCE / "blip_fine_tune_2.py"
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}


def training_flags(data: Path, yaml: str, output: Path, **settings) -> list[str]:
    """Flags of a small training on the CPU; `settings` add to them or take their place, True is a switch."""
    given = {"dataset": "CIRR", "data_path": data, "backbone": yaml, "weights": "random", "device": "cpu"}
    given |= {"batch_size": 8, "num_workers": 0, "num_epochs": 1, "output_folder": output} | settings
    flags = []
    for name, value in given.items():
        flags += [f"--{name.replace('_', '-')}"] + ([] if value is True else [str(value)])
    return flags


def rows_of(output: Path, name: str) -> list[list[float]]:
    """The rows of the one run in a folder: those of its `train` or `validation` metrics."""
    (path,) = output.glob(f"*/{name}_metrics.csv")
    with path.open(newline="") as file:
        return [[float(value) for value in row.values()] for row in csv.DictReader(file)]


def with_regions(data: Path) -> dict:
    """Settings of a training with the region loss and the exact boxes of a demo dataset."""
    return {"use_region_loss": True, "box_file": data / "boxes" / "cirr_boxes_train.json"}


def command(*flags: str, processes: int = 1) -> list[str]:
    """What the fixture `warm` runs as a training, under torchrun where it has several processes."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    return [*(launcher if processes > 1 else []), str(SCRIPT), *flags]


def free_port() -> str:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return str(server.getsockname()[1])


def start_pair(warm, *flags: str) -> list:
    """The two processes of a training as a user starts them by hand, by the fixture `warm`: quicker than torchrun."""
    group = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    return [warm(*command(*flags), **group, RANK=rank, LOCAL_RANK=rank) for rank in ("0", "1")]


def at_once(script: str | Path, flags: list[str]) -> list[str]:
    """What two processes of a script, started together, print; both must end well."""
    line = [sys.executable, str(script), *flags]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    answers = []
    for process in [subprocess.Popen(line, env=ENVIRONMENT, **pipes) for _ in range(2)]:
        out, err = process.communicate(timeout=PATIENCE)
        assert process.returncode == 0, err
        answers.append(out)
    return answers


def hear_interrupts() -> None:
    """What runs in the background of a shell ignores SIGINT, and its children with it: a `preexec_fn` against that."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
