import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import normalize
from torch.utils._python_dispatch import TorchDispatchMode

from sprc.core.errors import InputError
from sprc.index.scores import gallery_scores

examples = settings(max_examples=80, deadline=None, derandomize=True, database=None)
DEVICES = ["cpu"] + ["cuda"] * torch.cuda.is_available()


def features(queries, images, tokens=4, dim=8, seed=0):
    generator = torch.Generator().manual_seed(seed)
    query = normalize(torch.randn(queries, dim, generator=generator), dim=-1)
    return query, normalize(torch.randn(images, tokens, dim, generator=generator), dim=-1)


def slow_scores(query, target):
    return (query.double()[:, None, None] * target.double()[None]).sum(-1).amax(-1)


# --- gallery_scores -------------------------------------------------------------------------------------------------


@examples
@given(
    sizes=st.tuples(*[st.integers(1, 9)] * 4),
    memory_mib=st.sampled_from([1e-9, 1e-4, 5e-4, 2e-3, 256]),
    seed=st.integers(0, 99),
)
def test_gallery_scores_are_the_slow_ones_for_every_chunk_size(sizes, memory_mib, seed):
    query, target = features(*sizes, seed=seed)
    scores = gallery_scores(query, target, memory_mib)
    assert scores.dtype == torch.float32
    torch.testing.assert_close(scores.double(), slow_scores(query, target), rtol=0, atol=2e-6)


@pytest.mark.parametrize("gallery_device", DEVICES)
@pytest.mark.parametrize("query_device", DEVICES)
@pytest.mark.parametrize("output_device", DEVICES)
def test_gallery_scores_take_features_of_any_device(query_device, gallery_device, output_device):
    query, target = features(5, 7)
    scores = gallery_scores(query.to(query_device), target.to(gallery_device), 2e-3, output_device)
    assert scores.device.type == output_device
    torch.testing.assert_close(scores.cpu().double(), slow_scores(query, target), rtol=0, atol=2e-6)


def test_gallery_scores_come_to_the_cpu_unless_asked_otherwise():
    assert gallery_scores(*features(1, 1)).device.type == "cpu"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_gallery_scores_of_half_precision_features_are_computed_in_float32(dtype):
    query, target = (tensor.to(dtype) for tensor in features(6, 9, dim=64))
    scores = gallery_scores(query, target)
    assert torch.equal(scores, gallery_scores(query.float(), target.float()))
    assert len(scores.unique()) == scores.numel()


def test_gallery_scores_ignore_autocast():
    query, target = features(6, 9, dim=64)
    expected = gallery_scores(query, target)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert (query @ query.T).dtype == torch.bfloat16
        assert torch.equal(gallery_scores(query, target), expected)


def test_gallery_scores_need_no_gradient():
    query, target = features(2, 3)
    assert not gallery_scores(query.requires_grad_(), target).requires_grad


class LargestAllocation(TorchDispatchMode):
    """Records the bytes of the largest tensor that an operation makes, views aside."""

    def __init__(self, but_not_of_shape):
        super().__init__()
        self.result_shape, self.bytes = but_not_of_shape, 0

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        result = function(*arguments, **(keywords or {}))
        if isinstance(result, torch.Tensor) and not function.is_view and result.shape != self.result_shape:
            self.bytes = max(self.bytes, result.numel() * result.element_size())
        return result


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize("memory_mib", [0.02, 0.1, 0.5])
def test_gallery_scores_keep_their_temporaries_under_the_bound(memory_mib, dtype):
    query, target = (tensor.to(dtype) for tensor in features(300, 200, tokens=4, dim=16))
    with LargestAllocation(but_not_of_shape=(300, 200)) as largest:
        gallery_scores(query, target, memory_mib)
    # Half of the bound is for a chunk of the gallery, half for the products, and neither is left unused.
    assert memory_mib * 2**20 / 4 < largest.bytes <= memory_mib * 2**20 / 2


@pytest.mark.parametrize("memory_mib", [0, -1, float("nan")])
def test_memory_bound_that_is_not_positive_is_an_input_error(memory_mib):
    with pytest.raises(InputError, match="above 0 MiB"):
        gallery_scores(*features(1, 1), memory_mib)


def test_nan_features_are_an_error_that_names_the_rows():
    query, target = features(5, 12)
    broken_query, broken_target = query.clone(), target.clone()
    broken_query[3, 1] = torch.nan
    broken_target[1:11, 2, 0] = torch.nan
    with pytest.raises(ValueError, match=r"query features, in 1 of 5 rows: \[3\]"):
        gallery_scores(broken_query, target)
    with pytest.raises(ValueError, match=r"target features, in 10 of 12 rows: \[1, 2, .*, 8\] and 2 more"):
        gallery_scores(query, broken_target)


def test_nan_scores_are_an_error_also_where_the_features_hold_none():
    query, target = features(3, 4)
    query[2, :2] = torch.tensor([torch.inf, -torch.inf])
    target[:] = 1.0
    with pytest.raises(ValueError, match=r"NaN in the scores, in 1 of 3 rows: \[2\]"):
        gallery_scores(query, target)


def test_an_empty_gallery_or_no_query_gives_an_empty_matrix():
    query, target = features(3, 4)
    assert gallery_scores(query, target[:0]).shape == (3, 0)
    assert gallery_scores(query[:0], target).shape == (0, 4)
