"""Whether set-up sees what is missing, too old, or does not fit together."""

import importlib.util
import sys
from pathlib import Path

import check_env
import pytest
import torch
from check_env import (
    FAULT,
    INCOMPLETE,
    NOT_INSTALLED,
    READY,
    REPOSITORY,
    UNKNOWN_DRIVER,
    ask_nvidia_smi,
    cuda_problem,
    index_needed,
    kernel_problem,
    loading_problem,
    main,
    missing_packages,
    nvidia_driver,
    project_problem,
    read_requirements,
)


def test_the_tests_need_what_a_run_needs_and_more():
    plain, dev = read_requirements(dev=False), read_requirements(dev=True)
    names = {line.split(">=")[0] for line in plain}
    assert {"torch", "torchvision", "transformers", "timm", "matplotlib"} <= names
    assert plain == dev[: len(plain)]
    assert {"pytest", "ruff"} <= {line.split(">=")[0] for line in dev}


def test_a_changed_list_is_read_again(tmp_path):
    path = tmp_path / "pyproject.toml"
    path.write_text('[project]\nname = "x"\ndependencies = ["a>=2"]\noptional-dependencies = {dev = ["b"]}\n')
    assert read_requirements(False, path) == ["a>=2"]
    assert read_requirements(True, path) == ["a>=2", "b"]


def test_every_missing_and_old_package_is_listed(monkeypatch):
    found = {"torch": "2.10.1", "timm": "1.0.31", "numpy": "2.0.0rc1"}
    monkeypatch.setattr(check_env, "installed_version", found.get)
    missing = missing_packages(["torch>=2.11", "timm>=1.0.20", "tqdm>=4", "numpy>=1.26"])
    assert missing == ["torch>=2.11 (2.10.1)", "tqdm>=4 (not installed)"]


def test_a_python_without_packaging_is_incomplete(monkeypatch):
    monkeypatch.setitem(sys.modules, "packaging.requirements", None)
    assert missing_packages(["torch>=2.11"]) == ["packaging, which comes with transformers (not installed)"]


def test_the_project_must_be_that_of_this_checkout(tmp_path, monkeypatch):
    assert project_problem() is None
    monkeypatch.setattr(check_env, "REPOSITORY", tmp_path)
    assert project_problem() == f"{sys.executable} has the project of {REPOSITORY / 'src'}, not that of {tmp_path}"
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert project_problem() == f"{sys.executable} has no sprc, not that of {tmp_path}"


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.183.01  Sun May 12 19:39:15 UTC 2024\n", "535.183.01"),
        ("NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release Build\n", "580.65.06"),
        ("something new\n", UNKNOWN_DRIVER),
    ],
)
def test_the_kernel_names_its_driver(tmp_path, text, version):
    (tmp_path / "version").write_text(text)
    assert nvidia_driver(tmp_path / "version", tmp_path / "no device") == version


def fake_nvidia_smi(folder: Path, monkeypatch, script: str) -> None:
    path = folder / "nvidia-smi"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder))


def test_nvidia_smi_is_asked_if_the_kernel_is_silent(tmp_path, monkeypatch):
    fake_nvidia_smi(tmp_path, monkeypatch, "echo 570.86.10; echo 570.86.10")
    assert nvidia_driver(tmp_path / "none", tmp_path / "none") == "570.86.10"
    fake_nvidia_smi(tmp_path, monkeypatch, "echo No devices were found; exit 6")
    assert nvidia_driver(tmp_path / "none", tmp_path / "none") is None
    assert nvidia_driver(tmp_path / "none", tmp_path) == UNKNOWN_DRIVER  # the device is there


def test_no_nvidia_smi_says_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert ask_nvidia_smi("driver_version") == []


@pytest.mark.parametrize(
    ("variable", "value", "driver"),
    [
        ("SPRC_ALLOW_CPU", "0", "570.1"),
        ("SPRC_ALLOW_CPU", "1", None),
        ("CUDA_VISIBLE_DEVICES", "0", "570.1"),
        ("CUDA_VISIBLE_DEVICES", "", None),
    ],
)
def test_the_user_may_ask_for_the_cpu(tmp_path, monkeypatch, variable, value, driver):
    monkeypatch.delenv("SPRC_ALLOW_CPU", raising=False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    (tmp_path / "version").write_text("Kernel Module 570.1")
    assert nvidia_driver(tmp_path / "version") == "570.1"
    monkeypatch.setenv(variable, value)
    assert nvidia_driver(tmp_path / "version") == driver


@pytest.mark.parametrize(
    ("driver", "built_for", "fix"),
    [
        ("535.183.01", "13.0", "whl/cu126"),
        ("525.60.13", None, "whl/cu126"),
        ("580.65.06", None, "whl/cu130"),
        (UNKNOWN_DRIVER, "13.0", "whl/cu126"),
        ("470.1", "13.0", "Update the driver to 525"),
        ("580.65.06", "13.0", "see what nvidia-smi says"),
        ("580.65.06", "12.6", "see what nvidia-smi says"),
    ],
)
def test_a_driver_that_torch_cannot_use_stops_with_the_fix(monkeypatch, driver, built_for, fix):
    monkeypatch.setattr(check_env, "compute_capabilities", list)
    problem = cuda_problem(driver, "2.14", built_for)
    assert f"NVIDIA driver ({driver})" in problem
    assert (f"built for CUDA {built_for}" if built_for else "a build without CUDA") in problem
    assert fix in problem
    assert ("--index-url" in problem) == ("whl/" in fix)
    assert "SPRC_ALLOW_CPU=1" in problem


@pytest.mark.parametrize(
    ("driver", "capabilities", "index"),
    [
        (None, [], ""),
        (UNKNOWN_DRIVER, [], ""),
        ("580.65.06", [(8, 0)], ""),
        ("535.183.01", [(8, 0)], "cu126"),
        ("535.183.01", [], "cu126"),
        ("580.65.06", [(7, 0), (7, 0)], "cu126"),  # V100: CUDA 13 has no code for it
        ("580.65.06", [(7, 0), (12, 0)], ""),  # nothing fits both
        ("470.1", [(8, 0)], ""),  # nothing fits: the check says so
    ],
)
def test_the_build_to_install_fits_driver_and_gpus(monkeypatch, driver, capabilities, index):
    assert index_needed(driver, capabilities) == (index and f"https://download.pytorch.org/whl/{index}")
    monkeypatch.setenv("SPRC_TORCH_INDEX", "https://mirror/whl/")
    assert index_needed(driver, capabilities) == (index and f"https://mirror/whl/{index}")


def test_the_index_is_printed_alone(tmp_path, monkeypatch, capsys):
    fake_nvidia_smi(tmp_path, monkeypatch, 'echo "7.0"')
    monkeypatch.setattr(check_env, "nvidia_driver", lambda: "580.65.06")
    assert main(["--torch-index"]) == READY
    assert capsys.readouterr().out == "https://download.pytorch.org/whl/cu126\n"
    monkeypatch.setattr(check_env, "nvidia_driver", lambda: None)
    assert main(["--torch-index"]) == READY
    assert capsys.readouterr().out == "\n"


@pytest.mark.parametrize(
    ("capability", "error", "fix"),
    [
        ((7, 0), "CUDA error: no kernel image is available for execution on the device", "whl/cu126"),
        ((10, 3), "CUDA error: no kernel image is available for execution on the device", "whl/cu130"),
        ((3, 5), "CUDA error: no kernel image is available for execution on the device", "use another GPU"),
        ((8, 0), "CUDA out of memory", None),  # another process has it: torch has code for it
    ],
)
def test_a_gpu_without_code_in_torch_stops_with_the_fix(monkeypatch, capability, error, fix):
    def no_kernel(*shape, device):
        raise RuntimeError(error)

    monkeypatch.setattr(torch, "zeros", no_kernel)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: ["sm_75", "sm_90"])
    problem = kernel_problem("580.65.06")
    assert (problem is None) == (fix is None)
    number = f"compute capability {capability[0]}.{capability[1]} (it has sm_75, sm_90)"
    assert fix is None or (fix in problem and number in problem)


def test_a_torchvision_that_does_not_load_is_named(monkeypatch):
    import torchvision

    assert loading_problem(None) is None

    def broken(*arguments):
        raise RuntimeError("operator torchvision::nms does not exist")

    monkeypatch.setattr(torchvision.ops, "nms", broken)
    assert "operator torchvision::nms does not exist" in loading_problem(None)
    assert "install --force-reinstall torch torchvision" in loading_problem(None)


@pytest.fixture
def slow_checks(monkeypatch) -> list:
    """No machine and no torch: every package is there, the driver is 570.1; holds what the slow checks were given."""
    calls = []
    monkeypatch.setattr(check_env, "installed_version", lambda name: "99")
    monkeypatch.setattr(check_env, "nvidia_driver", lambda: "570.1")
    monkeypatch.setattr(check_env, "loading_problem", calls.append)  # None: no problem
    return calls


def test_a_fault_comes_before_another_checkout(monkeypatch, slow_checks, capsys):
    monkeypatch.setattr(check_env, "project_problem", lambda: "no sprc")
    assert [main([]), slow_checks] == [NOT_INSTALLED, ["570.1"]]
    monkeypatch.setattr(check_env, "loading_problem", lambda driver: f"{driver} is bad")
    assert main([]) == FAULT
    assert capsys.readouterr().err == "no sprc\n570.1 is bad\n"


def test_a_missing_package_is_said_before_anything_is_imported(monkeypatch, slow_checks, capsys):
    monkeypatch.setattr(check_env, "installed_version", {"torch": "2.11.0"}.get)
    assert main(["--dev"]) == INCOMPLETE
    message = capsys.readouterr().err
    assert "torchvision>=0.26 (not installed)" in message
    assert "pytest" in message
    assert "torch>=" not in message
    assert slow_checks == []


def test_an_old_python_is_incomplete(monkeypatch, slow_checks, capsys):
    monkeypatch.setattr(check_env.sys, "version_info", (3, 10, 4))
    assert main([]) == INCOMPLETE
    assert "too old: 3.11" in capsys.readouterr().err


def test_this_environment_is_ready(capsys, monkeypatch):
    monkeypatch.setenv("SPRC_ALLOW_CPU", "1")
    assert main([]) == READY
    assert capsys.readouterr().out == "ready\n"
