"""The model of `test_roi_align.py`, built once."""

import pytest
import torch


@pytest.fixture(scope="module")
def model():
    from test_roi_align import build_model

    torch.set_num_threads(1)  # the suite runs in several processes
    return build_model("tiny", "cpu")
