"""Whether this Python can run the project. Status 0: yes; 1: packages are missing; 2: a fault that needs the user.

Runs on any Python 3.8 or newer, and imports no package before it has looked whether all are there.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
PYTHON_NEEDED = (3, 11)
READY, INCOMPLETE, FAULT = 0, 1, 2
# Lowest driver, CUDA it runs (any minor version), PyTorch's index of such builds. Newest first.
CUDA_BUILDS = ((580, 13, "cu130"), (525, 12, "cu126"))
UNKNOWN_DRIVER = "of unknown version"


def version_numbers(version: str) -> tuple[int, ...]:
    """`2.11.0+cu126` -> (2, 11): trailing zeros say nothing."""
    leading = re.match(r"\d+(\.\d+)*", version)
    numbers = [int(part) for part in leading.group().split(".")] if leading else []
    while numbers and numbers[-1] == 0:
        numbers.pop()
    return tuple(numbers)


def read_requirements(path: Path) -> dict[str, str]:
    """Package -> lowest version ("0" for any), of a requirements file and of those it includes with `-r`.

    Raises ValueError where a line is neither `-r file`, `package` nor `package>=version`.
    """
    needed: dict[str, str] = {}
    for raw_line in path.read_text(encoding="utf-8").splitlines():
        line = raw_line.split("#")[0].strip()
        match = re.fullmatch(r"([\w.-]+)(?:>=([\d.]+))?", line)
        if line.startswith("-r "):
            needed.update(read_requirements(path.parent / line[3:].strip()))
        elif match:
            needed[match.group(1)] = match.group(2) or "0"
        elif line:
            raise ValueError(f"{path}: cannot read the requirement {line!r}: write package>=version")
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


def reinstall(index: str = "") -> str:
    """The command that installs torch and torchvision anew, together, into this Python."""
    source = f" --index-url https://download.pytorch.org/whl/{index}" if index else ""
    return f"{shlex.quote(sys.executable)} -m pip install --force-reinstall torch torchvision{source}"


def torchvision_problem() -> str | None:
    """torchvision's compiled operators must load against this torch: it asks for a torch, but not for its build."""
    try:
        import torch
        import torchvision

        torchvision.ops.nms(torch.zeros(1, 4), torch.zeros(1), 0.5)
    except (ImportError, OSError, RuntimeError, AttributeError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        return (
            f"torch and torchvision of {sys.executable} do not fit together ({reason}).\n"
            f"  Install them together: {reinstall()}"
        )
    return None


def nvidia_driver(
    version_file: Path = Path("/proc/driver/nvidia/version"), device: Path = Path("/dev/nvidia0")
) -> str | None:
    """The version of this machine's NVIDIA driver, `UNKNOWN_DRIVER`, or None where there is no driver."""
    if version_file.is_file():
        version = re.search(r"\b\d{3,}\.\d[\d.]*", version_file.read_text())
        return version.group() if version else UNKNOWN_DRIVER
    return driver_of_nvidia_smi() or (UNKNOWN_DRIVER if device.exists() else None)


def driver_of_nvidia_smi() -> str | None:
    """What nvidia-smi says, where it is on PATH and works."""
    if shutil.which("nvidia-smi") is None:
        return None
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    lines = answer.stdout.split()
    return lines[0] if answer.returncode == 0 and lines else None


def wanted_driver(environ, find_driver=nvidia_driver) -> str | None:
    """The driver that torch should be able to use; None where there is none, or where the user asks for the CPU."""
    if environ.get("SPRC_ALLOW_CPU") == "1" or environ.get("CUDA_VISIBLE_DEVICES", "all") in ("", "-1"):
        return None
    return find_driver()


def cuda_problem(driver: str | None, available: bool, torch_version: str, built_for: str | None) -> str | None:
    """An NVIDIA driver is there, but torch cannot use it: training would run on the CPU without a word."""
    if driver is None or available:
        return None
    build = f"built for CUDA {built_for}" if built_for else "a build without CUDA"
    return (
        f"this machine has an NVIDIA driver ({driver}), but torch {torch_version} ({build}) cannot use it.\n"
        f"{cuda_cure(driver, built_for)}\n"
        "  Or set SPRC_ALLOW_CPU=1 to run on the CPU."
    )


def cuda_cure(driver: str, built_for: str | None) -> str:
    """What to do about a `driver` that torch, built for CUDA `built_for` (None: for the CPU only), cannot use."""
    if driver == UNKNOWN_DRIVER:
        _, _, index = CUDA_BUILDS[-1]
        return f"  Install the build for the oldest drivers, and run this again:\n  {reinstall(index)}"
    fitting = [(cuda, index) for lowest, cuda, index in CUDA_BUILDS if version_numbers(driver) >= (lowest,)]
    if not fitting:
        return f"  Update the driver to {CUDA_BUILDS[-1][0]} or newer: no build of a new enough torch runs on this one."
    cuda, index = fitting[0]
    if built_for and version_numbers(built_for)[0] <= cuda:
        return (
            "  That build fits the driver, so the driver does not answer: see what nvidia-smi says. After an update\n"
            "  of the driver, restart; in a container or a cluster's job, ask for a GPU (docker: --gpus all)."
        )
    return f"  Install the build that fits this driver, and run this again:\n  {reinstall(index)}"


def fingerprint(driver: str | None, version_of=installed_version) -> str:
    """What the slow checks depend on: where it is unchanged, so is their result."""
    return f"torch {version_of('torch')}, torchvision {version_of('torchvision')}, driver {driver}\n"


def loading_problem(driver: str | None) -> str | None:
    """The slow checks: they import torch and torchvision."""
    problem = torchvision_problem()
    if problem is None and driver is not None:
        import torch

        problem = cuda_problem(driver, torch.cuda.is_available(), torch.__version__, torch.version.cuda)
    return problem


def check(dev: bool, passed: Path | None) -> tuple[int, str]:
    """Status and message. `passed` remembers the fingerprint that last passed the slow checks, to skip them."""
    if sys.version_info < PYTHON_NEEDED:
        return INCOMPLETE, f"Python {sys.version.split()[0]} is too old: 3.11 or newer is needed"
    needed = read_requirements(REPOSITORY / ("requirements-dev.txt" if dev else "requirements.txt"))
    missing = missing_packages(needed, installed_version)
    if missing:
        return INCOMPLETE, f"{sys.executable} lacks " + ", ".join(missing)
    driver = wanted_driver(os.environ)
    now = fingerprint(driver)
    if passed is not None and passed.is_file() and passed.read_text(encoding="utf-8") == now:
        return READY, "ready"
    problem = loading_problem(driver)
    if problem is not None:
        return FAULT, problem
    if passed is not None:
        passed.write_text(now, encoding="utf-8")
    return READY, "ready"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dev", action="store_true", help="also the packages that the tests need (default: no)")
    parser.add_argument(
        "--passed",
        type=Path,
        metavar="FILE",
        help="remembers that the slow checks passed (default: none)",
    )
    flags = parser.parse_args(argv)
    status, message = check(flags.dev, flags.passed)
    print(message, file=sys.stderr if status else sys.stdout)
    return status


if __name__ == "__main__":
    sys.exit(main())
