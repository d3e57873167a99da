"""The tool from the folder of a run to a PNG file."""

import pytest
from PIL import Image
from plot_metrics import main

from sprc.core.errors import InputError


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "train_metrics.csv").write_text("epoch,loss_itc\r\n0,3.5\r\n1,2.5\r\n")
    (folder / "validation_metrics.csv").write_text("epoch,recall_at1\r\n0,3.5\r\n1,12.5\r\n")
    return folder


def test_a_plot_is_written(run, tmp_path, capsys):
    output = tmp_path / "out" / "plot.png"
    assert main([str(run), "--output", str(output)]) == output
    assert Image.open(output).format == "PNG"
    assert capsys.readouterr().out == f"plot {output}\n"
    whole = output.read_bytes()
    main([str(run), "--metrics", "loss_itc", "--output", str(output)])
    assert output.read_bytes() != whole


def test_wrong_input_is_answered(run, tmp_path):
    with pytest.raises(InputError, match=r"ends in \.png"):
        main([str(run), "--output", "plot.pdf"])
    (run / "validation_metrics.csv").unlink()
    with pytest.raises(InputError, match=r"no file \S+validation_metrics\.csv"):
        main([str(run), "--output", str(tmp_path / "plot.png")])
    assert not (tmp_path / "plot.png").exists()
