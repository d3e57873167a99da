"""Whether this Python can run the project. Status 0: yes; 1: packages are missing; 2: a fault that needs the user.

Runs on any Python 3.7 or newer, and imports nothing that may be missing before it has looked for it.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
PYTHON_NEEDED = (3, 11)
READY, INCOMPLETE, FAULT = 0, 1, 2


def version_numbers(version: str) -> tuple[int, ...]:
    """`2.11.0+cu126` -> (2, 11, 0)."""
    leading = re.match(r"\d+(\.\d+)*", version)
    return tuple(int(part) for part in leading.group().split(".")) if leading else ()


def read_requirements(path: Path) -> dict[str, str]:
    """Package -> lowest version, of a requirements file and of those it includes with `-r`."""
    needed: dict[str, str] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("-r "):
            needed.update(read_requirements(path.parent / line[3:].strip()))
            continue
        match = re.match(r"([A-Za-z0-9_-]+)>=([0-9.]+)", line)
        if match:
            needed[match.group(1)] = match.group(2)
    return needed


def missing_packages(needed: dict[str, str], installed_version) -> list[str]:
    """What is absent or too old; `installed_version` maps a package to its version, or to None."""
    found = {name: installed_version(name) for name in needed}
    return [
        f"{name}>={lowest} ({found[name] or 'not installed'})"
        for name, lowest in needed.items()
        if found[name] is None or version_numbers(found[name]) < version_numbers(lowest)
    ]


def installed_version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def torchvision_problem() -> str | None:
    """torchvision's compiled operators must load against this torch: it asks for a torch, but not for its build."""
    try:
        import torch
        import torchvision

        torchvision.ops.nms(torch.zeros(1, 4), torch.zeros(1), 0.5)
    except (ImportError, OSError, RuntimeError, AttributeError) as error:
        return (
            f"torch and torchvision of {sys.executable} do not fit together ({str(error).splitlines()[0]}).\n"
            f"  Install them together: {sys.executable} -m pip install --force-reinstall torch torchvision"
        )
    return None


def cuda_problem(driver: str | None, available: bool, torch_version: str, built_for: str | None, environ) -> str | None:
    """An NVIDIA driver is there, but torch cannot use it: training would run on the CPU without a word."""
    hidden = environ.get("CUDA_VISIBLE_DEVICES", "all") in ("", "-1")
    if driver is None or available or hidden or environ.get("SPRC_ALLOW_CPU") == "1":
        return None
    build = f"built for CUDA {built_for}" if built_for else "a build for the CPU only"
    return (
        f"this machine has an NVIDIA driver ({driver}), but torch {torch_version} ({build}) cannot use it.\n"
        "  Install the build that fits the driver (nvidia-smi shows its newest CUDA version), for CUDA 12.6:\n"
        f"  {sys.executable} -m pip install --force-reinstall torch torchvision"
        " --index-url https://download.pytorch.org/whl/cu126\n"
        "  Or set SPRC_ALLOW_CPU=1 to run on the CPU."
    )


def nvidia_driver() -> str | None:
    """The version of the NVIDIA driver, or None where there is none that answers."""
    if shutil.which("nvidia-smi") is None:
        return None
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    lines = answer.stdout.split()
    return lines[0] if answer.returncode == 0 and lines else None


def check(dev: bool) -> tuple[int, str]:
    """Status and message."""
    if sys.version_info < PYTHON_NEEDED:
        return INCOMPLETE, f"Python {sys.version.split()[0]} is too old: 3.11 or newer is needed"
    needed = read_requirements(REPOSITORY / ("requirements-dev.txt" if dev else "requirements.txt"))
    missing = missing_packages(needed, installed_version)
    if missing:
        return INCOMPLETE, "missing: " + ", ".join(missing)
    problem = torchvision_problem()
    if problem is None:
        import torch

        problem = cuda_problem(
            nvidia_driver(), torch.cuda.is_available(), torch.__version__, torch.version.cuda, os.environ
        )
    return (READY, "ready") if problem is None else (FAULT, problem)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dev", action="store_true", help="also the packages that the tests need")
    status, message = check(parser.parse_args(argv).dev)
    print(message, file=sys.stderr if status else sys.stdout)
    return status


if __name__ == "__main__":
    sys.exit(main())
