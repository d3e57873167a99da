"""Fixtures that several tests share."""

import os
from pathlib import Path

import pytest
import torch
from hypothesis import settings

REPOSITORY = Path(__file__).resolve().parents[1]
SHARED = REPOSITORY.parent / "shared"

torch.set_num_threads(1)  # the suite runs in several processes
settings.register_profile("project", deadline=None, derandomize=True, max_examples=50)
settings.load_profile("project")


@pytest.fixture(scope="session")
def shared() -> Path:
    """The project's shared data beside the repository; a user's checkout does not have it."""
    if not (SHARED / "cirr").is_dir():
        pytest.skip("the shared data folder is not beside this repository")
    return SHARED


@pytest.fixture(scope="session")
def recorded() -> Path:
    """Numbers recorded from upstream: all of them where they are at hand, else the part that the repository holds."""
    whole = SHARED / "reference"
    return whole if whole.is_dir() else REPOSITORY / "tests" / "reference"


@pytest.fixture(scope="session")
def reference_dir(recorded) -> Path:
    """A folder of upstream's numbers for one model: `$SPRC_REFERENCE_DIR`, or the recorded `vit_g_tiny`."""
    given = os.environ.get("SPRC_REFERENCE_DIR")
    return Path(given).resolve() if given else recorded / "vit_g_tiny"
