"""The way of upstream, which the speed benchmark measures: another way to the same numbers."""

from test_gradients import assert_same_step, gradients_of, make_model, make_samples, weights_of
from upstream_way import go_upstreams_way

from sprc.training.gradients import Gradients


def test_upstreams_way_has_the_same_numbers(small_yaml):
    ours, theirs = make_model(small_yaml), make_model(small_yaml)
    go_upstreams_way(theirs)
    results = [(Gradients(m)(make_samples(), weights_of(None)), gradients_of(m)) for m in (ours, theirs)]
    assert_same_step(*results)
