"""Whether set-up sees what is missing, too old, or does not fit together."""

import pytest
from check_env import (
    REPOSITORY,
    cuda_problem,
    main,
    missing_packages,
    read_requirements,
    torchvision_problem,
    version_numbers,
)


def test_versions_are_compared_as_numbers():
    assert version_numbers("2.11.0+cu126") == (2, 11, 0)
    assert version_numbers("2.9") < version_numbers("2.11")


def test_requirements_files_include_each_other():
    plain = read_requirements(REPOSITORY / "requirements.txt")
    dev = read_requirements(REPOSITORY / "requirements-dev.txt")
    assert {"torch", "torchvision", "transformers", "timm"} <= set(plain)
    assert plain.items() <= dev.items()
    assert "pytest" in dev


def test_every_missing_and_old_package_is_listed():
    found = {"torch": "2.10.1", "timm": "1.0.31"}
    missing = missing_packages({"torch": "2.11", "timm": "1.0.20", "tqdm": "4"}, found.get)
    assert missing == ["torch>=2.11 (2.10.1)", "tqdm>=4 (not installed)"]


@pytest.mark.parametrize(
    ("driver", "available", "environ"),
    [
        (None, False, {}),
        ("570.1", True, {}),
        ("570.1", False, {"SPRC_ALLOW_CPU": "1"}),
        ("570.1", False, {"CUDA_VISIBLE_DEVICES": ""}),
    ],
)
def test_no_cuda_is_no_problem_where_it_is_meant(driver, available, environ):
    assert cuda_problem(driver, available, "2.14", "13.0", environ) is None


@pytest.mark.parametrize(("built_for", "part"), [("13.0", "built for CUDA 13.0"), (None, "CPU only")])
def test_a_driver_that_torch_cannot_use_stops_with_the_cure(built_for, part):
    problem = cuda_problem("535.1", False, "2.14", built_for, {})
    assert part in problem
    assert "--index-url" in problem
    assert "SPRC_ALLOW_CPU=1" in problem


def test_a_torchvision_that_does_not_load_is_named(monkeypatch):
    import torchvision

    assert torchvision_problem() is None

    def broken(*arguments):
        raise RuntimeError("operator torchvision::nms does not exist")

    monkeypatch.setattr(torchvision.ops, "nms", broken)
    assert "install --force-reinstall torch torchvision" in torchvision_problem()


def test_this_environment_is_ready(capsys, monkeypatch):
    monkeypatch.setenv("SPRC_ALLOW_CPU", "1")
    assert main([]) == 0
    assert capsys.readouterr().out == "ready\n"
