"""Every bad input of `bad_inputs.py` is answered in one message; `bad_inputs.md` shows them all, and is made here.

To make it again: `UPDATE_BAD_INPUTS=1 python -m pytest tests/scripts/test_bad_inputs.py`.
"""

import json
import os
import sys
from pathlib import Path

import pytest
import torch
from bad_inputs import BOXES, CASES, Case, pickle_with_code
from hypothesis import given, settings
from hypothesis import strategies as st
from paths import REPOSITORY
from training_flags import training_flags

import blip_fine_tune_2
from data_utils import CIRRDataset
from lavis.datasets.region_boxes import load_boxes
from lavis.models.checkpoint import read_weights
from sprc.core.command_line import run_main
from sprc.core.errors import InputError
from sprc.data.preprocess import targetpad_transform

TABLE = REPOSITORY / "tests" / "bad_inputs.md"
HEADER = """# Bad input, and what is said

Made by `tests/scripts/test_bad_inputs.py`, which tries every line with `src/blip_fine_tune_2.py`: the status is 2, and
there is no trace (`--debug` shows it). `...` is the folder of the dataset. What is odd but right is trained with.

| | input | answer |
| --- | --- | --- |
"""


def answer_to(case: Case, data: Path, small_yaml: str, monkeypatch, capsys) -> tuple[int, str]:
    """(status, last line on stderr) of a training with the case's dataset and flags."""
    case.spoil(data)
    given = [flag.format(folder=data) for flag in case.flags]
    flags = training_flags(data, small_yaml, data.parent / "models")
    monkeypatch.setattr(sys, "argv", ["blip_fine_tune_2.py", *flags, *given])
    capsys.readouterr()
    try:
        run_main(blip_fine_tune_2.main)
        status = 0
    except SystemExit as end:
        status = end.code
    errors = capsys.readouterr().err
    assert "Traceback" not in errors
    return status, errors.splitlines()[-1].replace(str(data), "...").replace(str(data.parent), "...") if status else ""


def shown(case: Case, answer: str) -> str:
    """A line of the table."""
    answer = answer.removeprefix("error: ").removeprefix("blip_fine_tune_2.py: error: ") or "accepted"
    short = answer if len(answer) <= 260 else answer[:260] + " ..."
    return f"| {case.kind} | {case.what} | {short.replace('|', '&#124;')} |"


@pytest.mark.parametrize("case", CASES, ids=str)
def test_bad_input_is_answered_in_one_message(case, demo_copy, small_yaml, tmp_path, monkeypatch, capsys):
    status, answer = answer_to(case, demo_copy, small_yaml, monkeypatch, capsys)
    assert (status, answer == "") == ((0, True) if case.says is None else (2, False))
    assert (case.says or "") in answer
    assert not list(tmp_path.glob("*/marked")), "code of a pickle was run"
    if os.environ.get("UPDATE_BAD_INPUTS"):
        before = TABLE.read_text() if case is not CASES[0] else HEADER
        TABLE.write_text(before + shown(case, answer) + "\n")


def test_the_table_has_every_case_once():
    """The words of argparse, torch and Pillow differ between versions; ours are these."""
    lines = TABLE.read_text().splitlines()[HEADER.count("\n") :]
    assert [line.split(" | ")[:2] for line in lines] == [[f"| {case.kind}", case.what] for case in CASES]
    assert all(
        case.says in line or line.endswith(" ... |") for case, line in zip(CASES, lines, strict=True) if case.says
    )
    assert len({str(case) for case in CASES}) == len(CASES) >= 60


def test_the_pickle_of_the_case_does_run_code_where_a_loader_lets_it(tmp_path):
    pickle_with_code(tmp_path)
    with pytest.raises(InputError, match="code in a file is never run"):
        read_weights(tmp_path / "w.pt")
    assert not (tmp_path / "marked").exists()
    torch.load(tmp_path / "w.pt", weights_only=False)
    assert (tmp_path / "marked").exists()


# --- anything at all --------------------------------------------------------------------------------------------------

SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
ANYTHING = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=5), inner, max_size=4)
)
NUMBERS = st.floats(-0.2, 1.2) | st.sampled_from([0, 1, 0.5, float("nan"), float("inf")])
BOX = st.lists(NUMBERS, min_size=3, max_size=5) | st.fixed_dictionaries(
    {"box": st.lists(NUMBERS, min_size=4, max_size=4)}
)


def read_or_refuse(read, *arguments):
    """The result, or None where it was refused by an InputError; any other exception is a bug."""
    try:
        return read(*arguments)
    except InputError as error:
        assert len(str(error)) > 20
        return None


@settings(max_examples=300)
@given(content=ANYTHING | st.dictionaries(st.text(max_size=4), st.lists(BOX | ANYTHING, max_size=3), max_size=3))
def test_any_box_file_is_read_or_refused(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("fuzz") / "boxes.json"
    path.write_text(json.dumps(content))
    for regions in (read_or_refuse(load_boxes, path) or {}).values():
        for x1, y1, x2, y2 in (region.box for region in regions):
            assert 0 <= x1 < x2 <= 1 and 0 <= y1 < y2 <= 1


@settings(max_examples=60)
@given(position=st.integers(0, 10**6), junk=st.binary(min_size=1, max_size=8))
def test_a_box_file_with_bytes_changed_is_read_or_refused(demo, tmp_path_factory, position, junk):
    content = bytearray((demo / BOXES).read_bytes())
    position %= len(content)
    content[position : position + len(junk)] = junk
    path = tmp_path_factory.mktemp("fuzz") / "boxes.json"
    path.write_bytes(content)
    read_or_refuse(load_boxes, path)


@settings(max_examples=150)
@given(changes=st.dictionaries(st.sampled_from(["pairid", "reference", "caption", "img_set", "target_hard"]), ANYTHING),
       removed=st.sets(st.sampled_from(["reference", "caption", "img_set"])), whole=st.none() | ANYTHING)  # fmt: skip
def test_any_annotation_is_read_or_refused(demo, tmp_path_factory, changes, removed, whole):
    folder = tmp_path_factory.mktemp("fuzz")
    (folder / "cirr" / "captions").mkdir(parents=True)
    (folder / "cirr" / "image_splits").symlink_to(demo / "cirr" / "image_splits")
    entries = json.loads((demo / "cirr/captions/cap.rc2.train.json").read_text())[:4]
    entries[2] = {name: value for name, value in (entries[2] | changes).items() if name not in removed}
    content = entries if whole is None else whole
    (folder / "cirr" / "captions" / "cap.rc2.train.json").write_text(json.dumps(content))
    found = read_or_refuse(CIRRDataset, "train", "relative", targetpad_transform(dim=56), None, folder)
    assert found is None or all(isinstance(query.caption, str) for query in found.queries)


@pytest.fixture(scope="module")
def checkpoint(small_yaml, tmp_path_factory) -> Path:
    from lavis.models import load_model
    from lavis.models.checkpoint import save_model

    path = tmp_path_factory.mktemp("weights") / "small.pt"
    save_model(load_model("blip2_cir_align_prompt", small_yaml), 0, path)
    return path


@settings(max_examples=100)
@given(cut=st.floats(0, 1), position=st.floats(0, 1), junk=st.binary(max_size=12))
def test_any_checkpoint_is_read_or_refused(checkpoint, tmp_path_factory, cut, position, junk):
    content = bytearray(checkpoint.read_bytes())
    content = content[: int(cut * len(content))] if cut < 0.7 else content
    place = int(position * len(content))
    content[place : place + len(junk)] = junk
    path = tmp_path_factory.mktemp("fuzz") / "w.pt"
    path.write_bytes(content)
    read_or_refuse(read_weights, path)


@settings(max_examples=100)
@given(content=st.binary(max_size=200))
def test_any_bytes_are_no_checkpoint(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("fuzz") / "w.pt"
    path.write_bytes(content)
    with pytest.raises(InputError):
        read_weights(path)
