"""The plan of a run, learning rate and region weight; also of one that continues for more epochs than it began with."""

import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from training_flags import training_flags, with_regions

import blip_fine_tune_2
from sprc.core.runtime import Runtime
from sprc.training.config import STATE_FILE, TrainConfig
from sprc.training.gradients import Gradients
from sprc.training.optimization import Optimization
from sprc.training.run_state import read_state

CPU = Runtime(torch.device("cpu"), torch.float32)


def optimization(config: TrainConfig, steps: int, state: dict | None = None) -> Optimization:
    """An optimization of one number; with a state one that continues."""
    found = Optimization(torch.nn.Linear(1, 1, bias=False), config, steps, CPU)
    if state is not None:
        found.load_state_dict(state)
    return found


def rates(found: Optimization, steps: int) -> list[float]:
    """The learning rate of each of so many steps."""
    used = []
    for _ in range(steps):
        used.append(found.learning_rate)
        found.trainable[0].grad = torch.ones(1, 1)
        found.step()
    return used


def test_more_epochs_on_resume_keep_the_learning_rate_where_it_ended():
    config = TrainConfig(dataset="FashionIQ", num_epochs=3)
    begun = optimization(config, steps=4)
    whole = rates(begun, 12)
    assert max(whole) == pytest.approx(2e-5, rel=0.05)
    longer = replace(config, num_epochs=6, planned_epochs=3)
    assert rates(optimization(longer, 4, begun.state_dict()), 12) == [pytest.approx(2e-11)] * 12
    # A run that is stopped in the middle, continued for more epochs, passes by the same rates as one that was not.
    half = optimization(config, 4)
    first = rates(half, 6)
    assert first + rates(optimization(longer, 4, half.state_dict()), 6) == whole


def test_a_new_plan_for_the_learning_rate_is_asked_for_by_schedule_epochs():
    config = TrainConfig(dataset="FashionIQ", num_epochs=3)
    begun = optimization(config, 4)
    rates(begun, 12)
    planned = replace(config, num_epochs=6, planned_epochs=3, schedule_epochs=6)
    found = rates(optimization(planned, 4, begun.state_dict()), 12)
    expected = rates(optimization(TrainConfig(dataset="FashionIQ", num_epochs=6), 4), 24)[12:]
    assert found == expected
    # A run that had gone on after its plan continues at its place in the new one as well.
    held = optimization(replace(config, num_epochs=5, planned_epochs=3), 4, begun.state_dict())
    rates(held, 6)
    assert rates(optimization(planned, 4, held.state_dict()), 6) == expected[6:]


def test_cirrs_plan_of_80_epochs_holds_for_fewer_that_become_more():
    config = TrainConfig(dataset="CIRR", num_epochs=2)
    whole = rates(optimization(TrainConfig(dataset="CIRR", num_epochs=3), 4), 12)
    begun = optimization(config, 4)
    first = rates(begun, 8)
    assert (
        first + rates(optimization(replace(config, num_epochs=3, planned_epochs=2), 4, begun.state_dict()), 4) == whole
    )


@given(
    steps=st.integers(1, 7),
    epochs=st.integers(1, 6),
    more=st.integers(0, 6),
    planned=st.none() | st.integers(6, 12),
    warmup=st.none() | st.sampled_from([1 / 50, 0.02, 0.1, 0.2, 0.25, 0.5, 1 / 3, 0.99]),
    dataset=st.sampled_from(["CIRR", "FashionIQ"]),
)
def test_any_plan_can_be_trained(steps, epochs, more, planned, warmup, dataset):
    config = TrainConfig(dataset=dataset, num_epochs=epochs, schedule_epochs=planned, warmup=warmup, learning_rate=1e-3)
    begun = optimization(config, steps)
    found = rates(begun, steps * epochs)
    longer = replace(config, num_epochs=epochs + more, planned_epochs=epochs)
    found += rates(optimization(longer, steps, begun.state_dict()), steps * more)
    assert all(0 < rate <= 1e-3 for rate in found)
    if planned is None:  # once it falls it never rises again
        peak = found.index(max(found))
        assert all(after <= before for before, after in pairwise(found[peak:]))


def test_a_rise_of_exactly_one_step():
    """40 triplets in batches of 8, 10 epochs planned: 1/50 of 50 steps. OneCycleLR alone divides by zero."""
    config = TrainConfig(dataset="CIRR", num_epochs=2, schedule_epochs=10, learning_rate=1e-3)
    with pytest.raises(ZeroDivisionError):
        torch.optim.lr_scheduler.OneCycleLR(
            torch.optim.SGD([torch.zeros(1)]), 1e-3, steps_per_epoch=5, **config.schedule()
        )
    found = rates(optimization(config, steps=5), 10)
    assert found[0] == pytest.approx(1e-3)
    assert found == sorted(found, reverse=True)


def test_the_region_weight_never_comes_back(demo, small_yaml, tmp_path, monkeypatch, capsys):
    used, original = [], Gradients.__call__
    monkeypatch.setattr(
        Gradients, "__call__", lambda self, samples, weights: used.append(weights) or original(self, samples, weights)
    )
    settings = {"num_epochs": 2, "learning_rate": 1e-3, "loss_region": 0.4, "loss_region_until": 0.8}
    flags = training_flags(demo, small_yaml, tmp_path, **settings, **with_regions(demo))
    blip_fine_tune_2.main(flags)
    (folder,) = tmp_path.iterdir()
    blip_fine_tune_2.main(["--dataset", "CIRR", "--resume", str(folder), "--num-epochs", "4"])
    weights = [of_step["loss_region"] for of_step in used]
    planned = [0.4 * max(0.0, 1 - step / 10 / 0.8) for step in range(20)]
    assert weights == pytest.approx(planned)
    assert weights[8:] == [0] * 12
    said = capsys.readouterr().out
    assert "note: the region weight keeps to the 2 epochs that this run began with; it ends at 0" in said
    assert "planned its learning rate" not in said  # CIRR's are 80
    assert read_state(folder)["config"]["planned_epochs"] == 2  # for the next continuation


def test_what_is_beyond_the_plan_is_said_before_it_happens(demo, small_yaml, tmp_path, capsys):
    settings = {"num_epochs": 1, "learning_rate": 1e-3, "schedule_epochs": 1}
    blip_fine_tune_2.main(training_flags(demo, small_yaml, tmp_path, **settings))
    (folder,) = tmp_path.iterdir()
    resume = ["--dataset", "CIRR", "--resume", str(folder), "--num-epochs", "3"]
    capsys.readouterr()
    blip_fine_tune_2.main(resume)
    said = capsys.readouterr().out
    assert "planned its learning rate for 1 epochs. After them it stays at 4.0e-09" in said
    assert said.index("--schedule-epochs 3 makes a new plan") < said.index("epoch 1:")
    assert math.isclose(read_state(folder)["optimization"]["optimizer"]["param_groups"][0]["lr"], 4e-9)
    assert (folder / STATE_FILE).is_file()
