"""How the tests start a training: its flags, and the script in a process of its own."""

import csv
import os
import signal
import subprocess
import sys
from pathlib import Path

from paths import SOURCE

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
    """The command line of a training, under torchrun where it has several processes."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    return [sys.executable, *(launcher if processes > 1 else []), str(SCRIPT), *flags]


def train(*flags: str, processes: int = 1) -> subprocess.CompletedProcess:
    line = command(*flags, processes=processes)
    return subprocess.run(line, env=ENVIRONMENT, capture_output=True, text=True, timeout=300, check=False)


def at_once(script: str | Path, flags: list[str]) -> list[str]:
    """What two processes of a script, started together, print; both must end well."""
    line = [sys.executable, str(script), *flags]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    answers = []
    for process in [subprocess.Popen(line, env=ENVIRONMENT, **pipes) for _ in range(2)]:
        out, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
        answers.append(out)
    return answers


def hear_interrupts() -> None:
    """What runs in the background of a shell ignores SIGINT, and its children with it: a `preexec_fn` against that."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
