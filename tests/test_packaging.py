"""The wheel holds all that runs: installed into an empty environment, its commands and the model `tiny` work there."""

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest
from patience import PATIENCE

ROOT = Path(__file__).resolve().parents[1]
TINY = """
import torch, lavis.models, sprc.core.places
model, image, _ = lavis.models.load_model_and_preprocess("blip2_cir_align_prompt", "tiny", is_eval=True)
size = model.config.vision.image_size
features = model.extract_target_features(torch.zeros(1, 3, size, size))
print(lavis.__file__, sprc.core.places.__file__, sprc.core.places.REPOSITORY, sep="\\n")
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Built without a network, of a copy: setuptools leaves files beside the source, and takes up those of before."""
    folder = tmp_path_factory.mktemp("build")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    shutil.copytree(ROOT / "src", folder / "src", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    pip = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-index", "--no-build-isolation"]
    subprocess.run([*pip, "--wheel-dir", str(folder), str(folder)], check=True, capture_output=True)
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory) -> Path:
    """An environment of its own with the wheel; what the wheel depends on is that of the tests' environment.

    A .pth file adds that folder after its own, and Python reads no .pth file of a folder so added: so no editable
    install of the project is seen.
    """
    environment = tmp_path_factory.mktemp("environment")
    venv.create(environment, symlinks=True)
    paths = {"base": str(environment), "platbase": str(environment)}
    site = Path(sysconfig.get_path("purelib", "venv", vars=paths))
    pip = [sys.executable, "-m", "pip", "--python", str(environment / "bin" / "python"), "install", "--no-deps"]
    subprocess.run([*pip, "--no-index", str(wheel)], check=True, capture_output=True)
    (site / "of_the_tests.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return environment


def run(installed: Path, folder: Path, *words: str) -> subprocess.CompletedProcess:
    environ = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "SPRC_WEIGHTS")}
    command = [str(installed / "bin" / words[0]), *words[1:]]
    return subprocess.run(command, cwd=folder, env=environ, capture_output=True, text=True, timeout=PATIENCE)


@pytest.mark.integration
@pytest.mark.parametrize("command", ["sprc-train", "sprc-validate", "sprc-submit"])
def test_commands_take_the_flags_of_their_scripts(installed, tmp_path, command):
    answer = run(installed, tmp_path, command, "--help")
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout.startswith(f"usage: {command} ")
    unwrapped = "".join(answer.stdout.split())
    assert "--feature-cache" in unwrapped
    assert str(ROOT) not in unwrapped
    assert command != "sprc-submit" or str(tmp_path / "submission") in unwrapped


@pytest.mark.integration
def test_a_command_ends_as_its_script_does(installed, tmp_path):
    answer = run(installed, tmp_path, "sprc-train", "--dataset", "CIRR", "--backbone", "tiny", "--weights", "random")
    assert answer.returncode == 2
    assert answer.stderr.startswith(f"error: no folder {tmp_path / 'cirr_dataset'}")
    assert len(answer.stderr.splitlines()) == 1


@pytest.mark.integration
def test_the_model_tiny_runs_from_the_wheel(installed, tmp_path):
    answer = run(installed, tmp_path, "python", "-c", TINY)
    assert answer.returncode == 0, answer.stderr
    model, places, repository = answer.stdout.splitlines()[-3:]
    assert all(Path(file).is_relative_to(installed) for file in (model, places))
    assert repository == str(tmp_path)


@pytest.mark.integration
def test_a_training_runs_from_the_wheel(installed, demo, tmp_path):
    flags = (
        "--dataset CIRR --backbone tiny --weights random --num-epochs 1 --batch-size 8 --max-triplets 8 --device cpu"
    )
    answer = run(installed, tmp_path, "sprc-train", *flags.split(), "--num-workers", "0", "--data-path", str(demo))
    assert answer.returncode == 0, answer.stderr
    (metrics,) = (tmp_path / "models").glob("*/validation_metrics.csv")
    assert len(metrics.read_text().splitlines()) == 2
