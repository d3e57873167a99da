"""How this process was started: alone, or as one of a group of processes that train together. Imports nothing heavy."""

import json
import os
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass

from sprc.core.errors import InputError

# What `torchrun` and every launcher that follows PyTorch's `env://` rules set for a group.
GROUP = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
LOCAL_RANKS = ("LOCAL_RANK", "SLURM_LOCALID", "OMPI_COMM_WORLD_LOCAL_RANK", "MPI_LOCALRANKID")
# What other launchers set: how many processes they have started together. SLURM_NTASKS is not in this list: a shell in
# an allocation has it too, and it starts nothing.
OTHER_LAUNCHERS = {
    "SLURM_STEP_NUM_TASKS": "srun",
    "OMPI_COMM_WORLD_SIZE": "mpirun",
    "MV2_COMM_WORLD_SIZE": "mpirun",
    "PMI_SIZE": "mpiexec",
    "HOROVOD_SIZE": "horovodrun",
    "JSM_NAMESPACE_SIZE": "jsrun",
}
RANKS = ("RANK", "SLURM_PROCID", "OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_RANK", "PMI_RANK", "HOROVOD_RANK")
USE_TORCHRUN = "start it by torchrun --nproc_per_node=GPUS src/blip_fine_tune_2.py ..."
ON_SLURM = "srun --ntasks-per-node=1 torchrun --nnodes=$SLURM_NNODES --nproc_per_node=GPUS --rdzv_backend=c10d ..."

SECONDS_FOR_RANK_0 = 5


@dataclass(frozen=True)
class Launch:
    """This process is number `rank` of `size`, and number `local_rank` of its machine, if the launcher says so."""

    rank: int
    size: int
    local_rank: int | None
    address: str

    @property
    def on_this_machine(self) -> bool:
        """Whether all processes meet on this machine's loopback."""
        return self.address.rpartition(":")[0] in ("127.0.0.1", "localhost", "::1") or (
            os.environ.get("LOCAL_WORLD_SIZE") == os.environ.get("WORLD_SIZE")
        )

    @property
    def local_size(self) -> int:
        """How many of the processes are known to run on this machine."""
        text = os.environ.get("LOCAL_WORLD_SIZE", "")
        return int(text) if text.isdecimal() else 1


def find_launch(environ: Mapping[str, str] = os.environ) -> Launch | None:
    """The group that a launcher has put this process in; None for a process that is alone.

    Raises InputError if several processes do not know of each other, since each would train alone. Raises it too if
    the variables describe no group.
    """
    if _number("WORLD_SIZE", environ, 1) == 1 and environ.get("RANK", "0") in ("", "0"):
        _refuse_other_launchers(environ)
        return None
    missing = [name for name in GROUP if not environ.get(name)]
    if missing:
        raise InputError(
            f"other variables say that this is one of several processes, but {', '.join(missing)} is not set:"
            f" {USE_TORCHRUN}"
        )
    rank, size, port = (_number(name, environ) for name in ("RANK", "WORLD_SIZE", "MASTER_PORT"))
    if not rank < size:
        raise InputError(f"RANK is {rank}, and WORLD_SIZE {size}: ranks are 0 to {size - 1}; {USE_TORCHRUN}")
    local = next((name for name in LOCAL_RANKS if environ.get(name)), None)
    local_rank = None if local is None else _number(local, environ)
    return Launch(rank, size, local_rank, f"{environ['MASTER_ADDR']}:{port}")


def _number(name: str, environ: Mapping[str, str], default: int | None = None) -> int:
    text = environ.get(name) or str(default)
    if not text.isdecimal() or (name == "WORLD_SIZE" and int(text) == 0):
        raise InputError(
            f"{name} is {text!r}, which is no number for a group of processes: {USE_TORCHRUN}, or unset it"
        )
    return int(text)


def _refuse_other_launchers(environ: Mapping[str, str]) -> None:
    for name, launcher in OTHER_LAUNCHERS.items():
        count = environ.get(name, "1")
        if count.isdecimal() and int(count) > 1 and "TORCHELASTIC_RUN_ID" not in environ:
            how = f"use {ON_SLURM}" if launcher == "srun" else USE_TORCHRUN
            raise InputError(
                f"{launcher} has started {count} of this process ({name}), and each would run alone, on the same GPU:"
                f" {how}; if each is meant to run alone, set {name}=1"
            )


def require_one_process() -> None:
    """For scripts other than a training: raise InputError if a launcher has started several processes."""
    size = os.environ.get("WORLD_SIZE") or "1"
    if size != "1":
        raise InputError(
            f"this script is one process, started by python, and WORLD_SIZE is {size}: torchrun is for"
            " src/blip_fine_tune_2.py alone"
        )
    _refuse_other_launchers(os.environ)


def tell_the_launcher(message: str) -> None:
    """Hand this line to `torchrun`, which repeats it in its own report on a script that fails."""
    path = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if path:
        told = {"message": message, "extraInfo": {"py_callstack": message, "timestamp": str(int(time.time()))}}
        with open(path, "w", encoding="utf-8") as file:
            json.dump({"message": told}, file)


def speaker() -> str:
    """Wait until this process may print an error -> what to print before it: its rank, or "" for rank 0.

    Rank 0 prints an error that all processes have, and the launcher then ends the others. So another rank waits: if
    it is still alive after that, the error is its own.
    """
    if any_rank() == 0:
        return ""
    local_rank_0 = os.environ.get("LOCAL_RANK", "0") == "0"  # of another machine: it speaks first there
    try:
        time.sleep(SECONDS_FOR_RANK_0 if local_rank_0 else 1.5 * SECONDS_FOR_RANK_0)
    except KeyboardInterrupt:
        sys.exit(130)
    return f"rank {any_rank()}: "


def any_rank() -> int:
    """The number of this process, whichever launcher has given it; 0 for one that is alone."""
    sizes = (os.environ.get(name) or "1" for name in ("WORLD_SIZE", *OTHER_LAUNCHERS))
    rank = next((os.environ[name] for name in RANKS if os.environ.get(name)), "0")
    return int(rank) if rank.isdecimal() and any(size != "1" for size in sizes) else 0


def alone_environment() -> dict[str, str]:
    """This process's environment for a child that trains alone, whoever has started this one."""
    of_group = (*GROUP, "LOCAL_RANK", "LOCAL_WORLD_SIZE", "TORCHELASTIC_RUN_ID", "TORCHELASTIC_ERROR_FILE")
    return {name: value for name, value in os.environ.items() if name not in of_group}
