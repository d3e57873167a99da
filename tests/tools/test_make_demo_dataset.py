"""The script that makes the demo dataset: once, by one process at a time."""

import make_demo_dataset as make_demo_dataset_script
import pytest
from make_demo_dataset import main
from training_flags import at_once

from sprc.core.errors import InputError
from sprc.demo.dataset import DemoSettings, make_demo_dataset

TINY = DemoSettings(12, 20, val_images=6, val_triplets=5, test_images=6, test_triplets=4)


@pytest.mark.parametrize("attempt", range(3))
def test_two_that_make_it_at_once(tmp_path, attempt):
    flags = ["--images", "60", "--triplets", "30", "--val-images", "6", "--val-triplets", "6", "--test-images", "6"]
    said = at_once(make_demo_dataset_script.__file__, [*flags, "--test-triplets", "6", "--output", str(tmp_path / "d")])
    assert sum("demo dataset is there" in out for out in said) == 1
    assert sum("demo dataset in" in out for out in said) == 1
    assert not list(tmp_path.rglob("*.partial"))


def test_a_finished_dataset_is_used_again_and_never_mixed(tmp_path, capsys):
    main(["--output", str(tmp_path), "--images", "6", "--triplets", "3", "--val-images", "6", "--val-triplets", "2"])
    main(["--output", str(tmp_path), "--images", "6", "--triplets", "3", "--val-images", "6", "--val-triplets", "2"])
    assert "is there" in capsys.readouterr().out
    with pytest.raises(InputError, match="other settings"):
        make_demo_dataset(tmp_path, TINY)
    (tmp_path / "real" / "cirr").mkdir(parents=True)
    with pytest.raises(InputError, match="no demo dataset"):
        make_demo_dataset(tmp_path / "real", TINY)
