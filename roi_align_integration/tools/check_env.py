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
from typing import NamedTuple

REPOSITORY = Path(__file__).resolve().parents[2]
PYTHON_NEEDED = (3, 11)
READY, INCOMPLETE, FAULT = 0, 1, 2
UNKNOWN_DRIVER = "of unknown version"


class CudaBuild(NamedTuple):
    """PyTorch's builds for one CUDA: the lowest driver, the compute capabilities with code for them, the index."""

    driver: int
    cuda: int
    lowest: tuple[int, int]
    highest: tuple[int, int]
    index: str

    def has_code_for(self, capabilities: list[tuple[int, int]]) -> bool:
        return all(self.lowest <= capability <= self.highest for capability in capabilities)


# Newest first; PyPI has the first. https://github.com/pytorch/pytorch/issues/172352
CUDA_BUILDS = (
    CudaBuild(580, 13, (7, 5), (99, 9), "cu130"),
    CudaBuild(525, 12, (5, 0), (9, 0), "cu126"),
)


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
    source = f" --index-url {index_url(index)}" if index else ""
    return f"{shlex.quote(sys.executable)} -m pip install --force-reinstall torch torchvision{source}"


def index_url(index: str) -> str:
    """PyTorch's index, or that of the mirror that `$SPRC_TORCH_INDEX` names."""
    return f"{os.environ.get('SPRC_TORCH_INDEX', 'https://download.pytorch.org/whl').rstrip('/')}/{index}"


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
    """The driver as nvidia-smi says it."""
    lines = ask_nvidia_smi("driver_version")
    return lines[0] if lines else None


def compute_capabilities() -> list[tuple[int, int]]:
    """Those of this machine's GPUs, as nvidia-smi says them; none where it does not."""
    found = (re.fullmatch(r"(\d+)\.(\d)", line) for line in ask_nvidia_smi("compute_cap"))
    return [(int(match.group(1)), int(match.group(2))) for match in found if match]


def ask_nvidia_smi(what: str) -> list[str]:
    """A line for every GPU; none where nvidia-smi is not on PATH or does not work."""
    if shutil.which("nvidia-smi") is None:
        return []
    query = ["nvidia-smi", f"--query-gpu={what}", "--format=csv,noheader"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return answer.stdout.split() if answer.returncode == 0 else []


def gpu_models(folder: Path = Path("/proc/driver/nvidia/gpus")) -> str:
    """The kernel's words for this machine's GPUs: another machine may share this environment."""
    files = folder.glob("*/information")
    return ", ".join(sorted({line for file in files for line in file.read_text().splitlines() if "Model" in line}))


def wanted_driver(environ, find_driver=nvidia_driver) -> str | None:
    """The driver that torch should be able to use; None where there is none, or where the user asks for the CPU."""
    if environ.get("SPRC_ALLOW_CPU") == "1" or environ.get("CUDA_VISIBLE_DEVICES", "all") in ("", "-1"):
        return None
    return find_driver()


def index_needed(driver: str | None, capabilities: list[tuple[int, int]]) -> str:
    """The index of the build to install where PyPI's does not run here; "" where it does, or none does."""
    fitting = fitting_builds(driver or "", capabilities)
    return "" if not fitting or fitting[0] is CUDA_BUILDS[0] else index_url(fitting[0].index)


def fitting_builds(driver: str, capabilities: list[tuple[int, int]]) -> list[CudaBuild]:
    """The builds that a driver runs and that have code for GPUs of such capabilities, newest first."""
    return [b for b in CUDA_BUILDS if version_numbers(driver) >= (b.driver,) and b.has_code_for(capabilities)]


def architecture_problem(
    capability: tuple[int, int], architectures: list[str], driver: str, torch_version: str
) -> str | None:
    """torch runs on the driver, but holds no code for the GPU: the first kernel would fail.

    `architectures` are torch's: `sm_86` runs on 8.6 and newer ones of the same major number, `compute_90` on all above.
    """
    found = [re.fullmatch(r"(sm|compute)_(\d+)(\d)[a-z]?", name) for name in architectures]
    made_for = [(m.group(1), (int(m.group(2)), int(m.group(3)))) for m in found if m]
    if not made_for or any(c <= capability and (kind == "compute" or c[0] == capability[0]) for kind, c in made_for):
        return None
    return (
        f"torch {torch_version} holds no code for this GPU, of compute capability {capability[0]}.{capability[1]}"
        f" (it has {', '.join(architectures)}).\n{build_cure(driver, [capability])}"
    )


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
    capabilities = compute_capabilities()
    fitting = fitting_builds(driver, capabilities)
    if fitting and built_for and version_numbers(built_for)[0] <= fitting[0].cuda:
        return (
            "  That build fits the driver, so the driver does not answer: see what nvidia-smi says. After an update\n"
            "  of the driver, restart; in a container or a cluster's job, ask for a GPU (docker: --gpus all)."
        )
    return build_cure(driver, capabilities)


def build_cure(driver: str, capabilities: list[tuple[int, int]]) -> str:
    """Which build to install for a driver and GPUs of these capabilities, or that the driver is too old for any."""
    usable = [build for build in CUDA_BUILDS if build.has_code_for(capabilities)]
    if not usable:
        return "  No build of a new enough torch has code for it: use another GPU."
    if driver == UNKNOWN_DRIVER:
        return f"  Install the build for the oldest drivers, and run this again:\n  {reinstall(usable[-1].index)}"
    fitting = fitting_builds(driver, capabilities)
    if not fitting:
        return f"  Update the driver to {usable[-1].driver} or newer: no build of a new enough torch runs on this one."
    return f"  Install the build that fits driver and GPU, and run this again:\n  {reinstall(fitting[0].index)}"


def fingerprint(driver: str | None, version_of=installed_version) -> str:
    """What the slow checks depend on: where it is unchanged, so is their result."""
    versions = f"torch {version_of('torch')}, torchvision {version_of('torchvision')}"
    return f"{versions}, driver {driver}, {gpu_models()}\n"


def loading_problem(driver: str | None) -> str | None:
    """The slow checks: they import torch and torchvision."""
    problem = torchvision_problem()
    if problem is None and driver is not None:
        import torch

        available = torch.cuda.is_available()
        problem = cuda_problem(driver, available, torch.__version__, torch.version.cuda)
        if available:  # cuda:0 is what a run takes, where no flag says otherwise
            about = torch.cuda.get_device_capability(0), torch.cuda.get_arch_list()
            problem = architecture_problem(*about, driver, torch.__version__)
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
    parser.add_argument(
        "--torch-index",
        action="store_true",
        help="print the index to install torch from where PyPI's build does not run on this machine's GPU, and end",
    )
    flags = parser.parse_args(argv)
    if flags.torch_index:
        driver = wanted_driver(os.environ)
        print(index_needed(driver, compute_capabilities() if driver else []))
        return READY
    status, message = check(flags.dev, flags.passed)
    print(message, file=sys.stderr if status else sys.stdout)
    return status


if __name__ == "__main__":
    sys.exit(main())
