"""Whether this Python can run the project. Status 0: yes; 1: packages are missing; 2: a fault that needs the user; 3:
all packages are there, but not the project of this checkout. Imports a package only after all have been found.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import re
import shlex
import subprocess
import sys
from collections import namedtuple
from importlib import metadata
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
READY, INCOMPLETE, FAULT, NOT_INSTALLED = 0, 1, 2, 3
UNKNOWN_DRIVER = "of unknown version"

# PyTorch's builds, newest first; PyPI has the first. Of each: its lowest driver, its CUDA, the compute capabilities of
# the oldest and newest GPU that it has code for, its index. https://github.com/pytorch/pytorch/issues/172352
CudaBuild = namedtuple("CudaBuild", "driver cuda oldest newest index")
CUDA_BUILDS = (CudaBuild(580, 13, (7, 5), (99, 9), "cu130"), CudaBuild(525, 12, (5, 0), (9, 0), "cu126"))


def read_requirements(dev: bool, path: Path = REPOSITORY / "pyproject.toml") -> list[str]:
    """What a run needs, or with `dev` what the tests need too."""
    import tomllib  # Python 3.11

    project = tomllib.loads(path.read_text(encoding="utf-8"))["project"]
    return project["dependencies"] + (project["optional-dependencies"]["dev"] if dev else [])


def missing_packages(needed: list[str]) -> list[str]:
    """What is absent or too old."""
    try:
        from packaging.requirements import Requirement
    except ImportError:
        return ["packaging, which comes with transformers (not installed)"]
    found = [(need, installed_version(need.name)) for need in map(Requirement, needed)]
    return [f"{n} ({v or 'not installed'})" for n, v in found if not n.specifier.contains(v or "0", prereleases=True)]


def installed_version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def project_problem() -> str | None:
    """`sprc` must come from this checkout: by `pip install -e .`, or by PYTHONPATH."""
    spec = importlib.util.find_spec("sprc")
    place = Path(spec.origin).resolve().parents[1] if spec and spec.origin else None
    if place == (REPOSITORY / "src").resolve():
        return None
    return f"{sys.executable} has {f'the project of {place}' if place else 'no sprc'}, not that of {REPOSITORY}"


def index_url(build: CudaBuild) -> str:
    """PyTorch's index, or that of the mirror that `$SPRC_TORCH_INDEX` names."""
    return f"{os.environ.get('SPRC_TORCH_INDEX', 'https://download.pytorch.org/whl').rstrip('/')}/{build.index}"


def reinstall(source: str = "") -> str:
    """The command that installs torch and torchvision again, together, into this Python."""
    return f"{shlex.quote(sys.executable)} -m pip install --force-reinstall torch torchvision{source}"


def nvidia_driver(
    version_file: Path = Path("/proc/driver/nvidia/version"), device: Path = Path("/dev/nvidia0")
) -> str | None:
    """The version of this machine's NVIDIA driver, or `UNKNOWN_DRIVER`.

    None if there is no driver, or if the user asks for the CPU.
    """
    if os.environ.get("SPRC_ALLOW_CPU") == "1" or os.environ.get("CUDA_VISIBLE_DEVICES", "all") in ("", "-1"):
        return None
    if version_file.is_file():
        version = re.search(r"\b\d{3,}\.\d[\d.]*", version_file.read_text())
        return version.group() if version else UNKNOWN_DRIVER
    return next(iter(ask_nvidia_smi("driver_version")), UNKNOWN_DRIVER if device.exists() else None)


def ask_nvidia_smi(what: str) -> list[str]:
    """A line for every GPU; none if nvidia-smi is not on PATH or does not work."""
    query = ["nvidia-smi", f"--query-gpu={what}", "--format=csv,noheader"]
    try:
        return subprocess.run(query, capture_output=True, text=True, timeout=60, check=True).stdout.split()
    except (OSError, subprocess.SubprocessError):
        return []


def compute_capabilities() -> list[tuple[int, int]]:
    """Those of this machine's GPUs, as nvidia-smi says them; none if it does not."""
    found = re.findall(r"(\d+)\.(\d)", " ".join(ask_nvidia_smi("compute_cap")))
    return [(int(major), int(minor)) for major, minor in found]


def builds_for(driver: str, capabilities: list[tuple[int, int]]) -> tuple[list[CudaBuild], list[CudaBuild]]:
    """The builds with code for all GPUs of these capabilities, and those of them that the driver runs; newest first."""
    usable = [build for build in CUDA_BUILDS if all(build.oldest <= gpu <= build.newest for gpu in capabilities)]
    return usable, [b for b in usable if driver != UNKNOWN_DRIVER and int(driver.split(".")[0]) >= b.driver]


def index_needed(driver: str | None, capabilities: list[tuple[int, int]]) -> str:
    """The index of the build to install if PyPI's does not run here; "" if it does, or if none does."""
    fitting = builds_for(driver, capabilities)[1] if driver else []
    return index_url(fitting[0]) if fitting and fitting[0] is not CUDA_BUILDS[0] else ""


def build_fix(driver: str, capabilities: list[tuple[int, int]]) -> str:
    """Which build to install for a driver and GPUs of these capabilities, or that the driver is too old for any."""
    usable, fitting = builds_for(driver, capabilities)
    if not usable:
        return "  No build of a new enough torch has code for it: use another GPU."
    if not fitting and driver != UNKNOWN_DRIVER:
        return f"  Update the driver to {usable[-1].driver} or newer: no build of a new enough torch runs on this one."
    build, what = (fitting[0], "that fits driver and GPU") if fitting else (usable[-1], "for the oldest drivers")
    return f"  Install the build {what}, and run this again:\n  {reinstall(f' --index-url {index_url(build)}')}"


def kernel_problem(driver: str) -> str | None:
    """torch runs on the driver, but may hold no code for the GPU: the first kernel shows it."""
    import torch

    try:
        torch.zeros(1, device="cuda").add_(1)
    except RuntimeError as error:
        if "no kernel image" in str(error):
            major, minor = torch.cuda.get_device_capability()
            return (
                f"torch {torch.__version__} holds no code for this GPU, of compute capability {major}.{minor}"
                f" (it has {', '.join(torch.cuda.get_arch_list())}).\n{build_fix(driver, [(major, minor)])}"
            )
    return None


def cuda_problem(driver: str, torch_version: str, built_for: str | None) -> str:
    """An NVIDIA driver is there, but torch cannot use it: training would run on the CPU without a word."""
    capabilities = compute_capabilities()
    fitting, fix = builds_for(driver, capabilities)[1], build_fix(driver, capabilities)
    if fitting and built_for and int(built_for.split(".")[0]) <= fitting[0].cuda:
        fix = (
            "  That build fits the driver, so the driver does not answer: see what nvidia-smi says. After an update\n"
            "  of the driver, restart; in a container or a cluster's job, ask for a GPU (docker: --gpus all)."
        )
    build = f"built for CUDA {built_for}" if built_for else "a build without CUDA"
    return (
        f"this machine has an NVIDIA driver ({driver}), but torch {torch_version} ({build}) cannot use it.\n"
        f"{fix}\n  Or set SPRC_ALLOW_CPU=1 to run on the CPU."
    )


def loading_problem(driver: str | None) -> str | None:
    """torchvision's compiled operators must load against this torch, and torch must be able to use the driver."""
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
    if driver is None:
        return None
    if torch.cuda.is_available():
        return kernel_problem(driver)
    return cuda_problem(driver, torch.__version__, torch.version.cuda)


def check(dev: bool) -> tuple[int, str]:
    """Status and message."""
    if sys.version_info < (3, 11):  # noqa: UP036 - set-up asks any Python
        return INCOMPLETE, f"Python {sys.version.split()[0]} is too old: 3.11 or newer is needed"
    missing = missing_packages(read_requirements(dev))
    if missing:
        return INCOMPLETE, f"{sys.executable} lacks " + ", ".join(missing)
    if problem := loading_problem(nvidia_driver()):
        return FAULT, problem
    problem = project_problem()
    return (NOT_INSTALLED, problem) if problem else (READY, "ready")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dev", action="store_true", help="also the packages that the tests need (default: no)")
    what = "print the index to install torch from if PyPI's build does not run on this machine's GPU, and end"
    parser.add_argument("--torch-index", action="store_true", help=what)
    flags = parser.parse_args(argv)
    if flags.torch_index:
        driver = nvidia_driver()
        print(index_needed(driver, compute_capabilities() if driver else []))
        return READY
    status, message = check(flags.dev)
    print(message, file=sys.stderr if status else sys.stdout)
    return status


if __name__ == "__main__":
    sys.exit(main())
