"""Whether set-up sees what is missing, too old, or does not fit together."""

from pathlib import Path

import check_env
import pytest
from check_env import (
    FAULT,
    INCOMPLETE,
    READY,
    REPOSITORY,
    UNKNOWN_DRIVER,
    architecture_problem,
    cuda_problem,
    driver_of_nvidia_smi,
    gpu_models,
    index_needed,
    main,
    missing_packages,
    nvidia_driver,
    read_requirements,
    torchvision_problem,
    version_numbers,
    wanted_driver,
)
from hypothesis import given
from hypothesis import strategies as st


def test_versions_are_compared_as_numbers():
    assert version_numbers("2.11.0+cu126") == version_numbers("2.11")
    assert version_numbers("2.9") < version_numbers("2.11") < version_numbers("2.11.1") < version_numbers("3.0.0")


@given(st.lists(st.integers(0, 99), min_size=1, max_size=4), st.lists(st.integers(0, 99), min_size=1, max_size=4))
def test_version_order_is_that_of_zero_padded_numbers(left, right):
    def padded(numbers):
        return numbers + [0] * (4 - len(numbers))

    def text(numbers):
        return ".".join(map(str, numbers))

    assert (version_numbers(text(left)) < version_numbers(text(right))) == (padded(left) < padded(right))


def test_requirements_files_include_each_other():
    plain = read_requirements(REPOSITORY / "requirements.txt")
    dev = read_requirements(REPOSITORY / "requirements-dev.txt")
    assert {"torch", "torchvision", "transformers", "timm"} <= set(plain)
    assert plain.items() <= dev.items()
    assert "pytest" in dev


def test_a_requirement_may_have_a_comment_or_no_version(tmp_path):
    path = tmp_path / "requirements.txt"
    path.write_text("# all of it\n\nruamel.yaml  # any\ntorch>=2.11\n")
    assert read_requirements(path) == {"ruamel.yaml": "0", "torch": "2.11"}


@pytest.mark.parametrize("line", ["torch==2.11", "--index-url https://example.org", "torch>=2.11,<3"])
def test_a_requirement_that_is_not_understood_is_named(tmp_path, line):
    path = tmp_path / "requirements.txt"
    path.write_text(line)
    with pytest.raises(ValueError, match="cannot read the requirement") as caught:
        read_requirements(path)
    assert str(path) in str(caught.value)
    assert line in str(caught.value)


def test_every_missing_and_old_package_is_listed():
    found = {"torch": "2.10.1", "timm": "1.0.31"}
    missing = missing_packages({"torch": "2.11", "timm": "1.0.20", "tqdm": "4"}, found.get)
    assert missing == ["torch>=2.11 (2.10.1)", "tqdm>=4 (not installed)"]


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


def test_nvidia_smi_is_asked_where_the_kernel_is_silent(tmp_path, monkeypatch):
    fake_nvidia_smi(tmp_path, monkeypatch, "echo 570.86.10; echo 570.86.10")
    assert nvidia_driver(tmp_path / "none", tmp_path / "none") == "570.86.10"
    fake_nvidia_smi(tmp_path, monkeypatch, "echo No devices were found; exit 6")
    assert nvidia_driver(tmp_path / "none", tmp_path / "none") is None
    assert nvidia_driver(tmp_path / "none", tmp_path) == UNKNOWN_DRIVER  # the device is there


def test_no_nvidia_smi_is_no_driver(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert driver_of_nvidia_smi() is None


@pytest.mark.parametrize(
    ("environ", "driver"),
    [
        ({}, "570.1"),
        ({"CUDA_VISIBLE_DEVICES": "0"}, "570.1"),
        ({"SPRC_ALLOW_CPU": "0"}, "570.1"),
        ({"SPRC_ALLOW_CPU": "1"}, None),
        ({"CUDA_VISIBLE_DEVICES": ""}, None),
    ],
)
def test_the_user_may_ask_for_the_cpu(environ, driver):
    assert wanted_driver(environ, lambda: "570.1") == driver


def test_no_driver_and_usable_cuda_are_no_problem():
    assert cuda_problem(None, False, "2.14", "13.0") is None
    assert cuda_problem("570.1", True, "2.14", "12.8") is None


@pytest.mark.parametrize(
    ("driver", "built_for", "cure"),
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
def test_a_driver_that_torch_cannot_use_stops_with_the_cure(monkeypatch, driver, built_for, cure):
    monkeypatch.setattr(check_env, "compute_capabilities", list)
    problem = cuda_problem(driver, False, "2.14", built_for)
    assert f"NVIDIA driver ({driver})" in problem
    assert (f"built for CUDA {built_for}" if built_for else "a build without CUDA") in problem
    assert cure in problem
    assert ("--index-url" in problem) == ("whl/" in cure)
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
    fake_nvidia_smi(tmp_path, monkeypatch, 'case "$1" in *compute_cap*) echo 7.0 ;; *) echo 580.65.06 ;; esac')
    monkeypatch.setattr(check_env, "wanted_driver", lambda environ: driver_of_nvidia_smi())
    assert main(["--torch-index"]) == READY
    assert capsys.readouterr().out == "https://download.pytorch.org/whl/cu126\n"
    monkeypatch.setattr(check_env, "wanted_driver", lambda environ: None)
    assert main(["--torch-index"]) == READY
    assert capsys.readouterr().out == "\n"


CUDA_13 = ["sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120", "compute_120"]


@pytest.mark.parametrize(
    ("capability", "architectures", "cure"),
    [
        ((7, 0), CUDA_13, "whl/cu126"),
        ((8, 9), CUDA_13, None),  # code for 8.6 runs on it
        ((12, 1), CUDA_13, None),
        ((13, 0), CUDA_13, None),  # compiled when first run, of compute_120
        ((10, 3), ["sm_50", "sm_90a"], "whl/cu130"),
        ((3, 5), CUDA_13, "use another GPU"),
        ((7, 0), [], None),
    ],
)
def test_a_gpu_without_code_in_torch_stops_with_the_cure(capability, architectures, cure):
    problem = architecture_problem(capability, architectures, "580.65.06", "2.15")
    assert (problem is None) == (cure is None)
    assert cure is None or (cure in problem and f"compute capability {capability[0]}.{capability[1]}" in problem)


def test_the_kernel_names_its_gpus(tmp_path):
    for name, model in {"0": "Tesla V100", "1": "NVIDIA A100"}.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "information").write_text(f"Model: \t {model}\nIRQ: 7\n")
    assert gpu_models(tmp_path) == "Model: \t NVIDIA A100, Model: \t Tesla V100"
    assert gpu_models(tmp_path / "none") == ""


def test_a_torchvision_that_does_not_load_is_named(monkeypatch):
    import torchvision

    assert torchvision_problem() is None

    def broken(*arguments):
        raise RuntimeError("operator torchvision::nms does not exist")

    monkeypatch.setattr(torchvision.ops, "nms", broken)
    assert "operator torchvision::nms does not exist" in torchvision_problem()
    assert "install --force-reinstall torch torchvision" in torchvision_problem()


@pytest.fixture
def slow_checks(monkeypatch) -> list:
    """No machine and no torch: every package is there, the driver is 570.1; holds what the slow checks were given."""
    calls = []
    monkeypatch.setattr(check_env, "installed_version", lambda name: "99")
    monkeypatch.setattr(check_env, "wanted_driver", lambda environ: "570.1")
    monkeypatch.setattr(check_env, "loading_problem", calls.append)  # None: no problem
    return calls


def test_slow_checks_are_run_again_only_for_another_driver_or_gpu(tmp_path, monkeypatch, slow_checks):
    flags = ["--passed", str(tmp_path / "passed")]
    assert [main(flags), main(flags), slow_checks] == [READY, READY, ["570.1"]]
    monkeypatch.setattr(check_env, "wanted_driver", lambda environ: "535.1")
    assert [main(flags), slow_checks] == [READY, ["570.1", "535.1"]]
    monkeypatch.setattr(check_env, "gpu_models", lambda: "Model: Tesla V100")
    assert [main(flags), main(flags), slow_checks] == [READY, READY, ["570.1", "535.1", "535.1"]]


def test_a_fault_is_not_remembered_as_passed(tmp_path, monkeypatch, slow_checks, capsys):
    monkeypatch.setattr(check_env, "loading_problem", lambda driver: f"{driver} is bad")
    assert main(["--passed", str(tmp_path / "passed")]) == FAULT
    assert capsys.readouterr().err == "570.1 is bad\n"
    assert not (tmp_path / "passed").exists()


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
