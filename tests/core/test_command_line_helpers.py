"""How a script ends: one line for bad input, whatever characters stand in it."""

import argparse
import errno
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from paths import TOOLS
from training_flags import command, training_flags

from sprc.core.command_line import non_negative_int, positive_int, run_main
from sprc.core.errors import InputError
from sprc.core.logs import as_flags

ASCII = {"PYTHONIOENCODING": "ascii"}
CHINESE, UNDECODABLE = "数据", os.fsdecode(b"d\xff\xfe")


def ended(error: BaseException, capsys, monkeypatch, *words: str) -> tuple[int, str]:
    """(status, what is on stderr) of a script that raises `error`."""

    def main() -> None:
        raise error

    monkeypatch.setattr(sys, "argv", ["script.py", *words])
    with pytest.raises(SystemExit) as end:
        run_main(main)
    return end.value.code, capsys.readouterr().err


def test_an_error_of_the_system_that_names_a_file_is_one_line(capsys, monkeypatch):
    error = PermissionError(errno.EACCES, "Permission denied", "/data/a.yaml")
    assert ended(error, capsys, monkeypatch) == (2, "error: /data/a.yaml: Permission denied\n")
    error = FileNotFoundError(errno.ENOENT, "No such file", os.fsencode("/data/a"))
    assert ended(error, capsys, monkeypatch) == (2, "error: /data/a: No such file\n")
    status, said = ended(error, capsys, monkeypatch, "--debug")
    assert status == 2 and "Traceback" in said and said.endswith("error: /data/a: No such file\n")


def test_one_that_names_none_keeps_its_trace(capsys, monkeypatch):
    status, said = ended(ConnectionResetError(errno.ECONNRESET, "reset"), capsys, monkeypatch)
    assert status == 1
    assert "Traceback" in said and "reset" in said


@pytest.mark.integration
@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no /dev/full")
@pytest.mark.parametrize(
    "lines",
    ["print('a', flush=True)", "print('a')", "print('a' * 10**5)", "__import__('logging').getLogger('sprc').info('a')"],
)
@pytest.mark.parametrize("unbuffered", [False, True])
def test_output_that_cannot_be_written_is_one_line(lines, unbuffered):
    """Also if Python would have written it only at its end; and nothing is said if stderr is lost as well."""
    script = f"import sys\nfrom sprc.core.command_line import run_main\nrun_main(lambda: {lines})"
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    options = {"env": buffered | {"PYTHONUNBUFFERED": "1"} if unbuffered else buffered, "text": True}
    with open("/dev/full", "w") as full:
        ended = subprocess.run([sys.executable, "-c", script], stdout=full, stderr=subprocess.PIPE, **options)
        assert subprocess.run([sys.executable, "-c", script], stdout=full, stderr=full, **options).returncode == 2
    assert ended.returncode == 2
    assert ended.stderr.startswith("error: what this script prints cannot be written (No space left on device): free")
    assert ended.stderr.count("\n") == 1


@pytest.mark.integration
def test_a_reader_that_has_gone_is_one_line():
    script = "from sprc.core.command_line import run_main\nrun_main(lambda: print('a' * 10**6))"
    reader, writer = os.pipe()
    os.close(reader)
    ended = subprocess.run([sys.executable, "-c", script], stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    assert ended.returncode == 2
    assert "(Broken pipe)" in ended.stderr and ended.stderr.count("\n") == 1


def test_bad_input_is_one_line(capsys, monkeypatch):
    assert ended(InputError("a: fix it"), capsys, monkeypatch) == (2, "error: a: fix it\n")


def test_parameters_are_flags_on_the_command_line(capsys, monkeypatch):
    error = InputError("use `micro_batch` 8 or `feature_cache`")
    assert ended(error, capsys, monkeypatch) == (2, "error: use --micro-batch 8 or --feature-cache\n")
    assert as_flags("`seed`, `loss_region_until`: `./a b`") == "--seed, --loss-region-until: `./a b`"


@pytest.fixture(params=[CHINESE, UNDECODABLE], ids=["chinese", "undecodable"])
def odd_folder(request, tmp_path) -> Path:
    folder = tmp_path / request.param
    try:
        folder.mkdir()
    except OSError as error:
        pytest.skip(f"this file system has no such name: {error}")
    return folder


@pytest.mark.integration
def test_a_training_in_a_folder_that_the_terminal_cannot_print(warm, odd_folder, demo, small_yaml):
    data = Path(shutil.copytree(demo, odd_folder / "demo"))
    yaml = shutil.copy(small_yaml, odd_folder / "m.yaml")
    settings = {"num_workers": 1, "feature_cache": odd_folder / "cache", "save_best": True}
    settings |= {"use_region_loss": True, "box_file": data / "boxes" / "cirr_boxes_train.json"}
    flags = training_flags(data, yaml, odd_folder / "models", **settings)
    first = warm(*command(*flags), **ASCII).finished()
    assert first.returncode == 0, first.stderr
    assert ascii(str(odd_folder))[1:-1] in first.stdout
    if odd_folder.name == UNDECODABLE:
        more = warm(*command(*flags, "--num-epochs", "2", "--resume", "auto"), **ASCII).finished()
        assert more.returncode == 0, more.stderr
        assert len(list((odd_folder / "models").iterdir())) == 1  # it was found again


@pytest.mark.integration
def test_the_check_of_roialign_prints_any_name(warm, odd_folder):
    script = TOOLS.parent / "tests" / "test_roi_align.py"
    answer = warm(script, "--backbone", odd_folder / "none.yaml", **ASCII).finished()
    assert answer.returncode == 2
    assert answer.stderr.startswith("error: unknown backbone") and answer.stderr.count("\n") == 1


def test_a_variable_that_is_no_number_is_named(monkeypatch, capsys):
    """huggingface_hub reads it as soon as it is imported."""
    monkeypatch.setenv("HF_HUB_DOWNLOAD_TIMEOUT", "abc")
    with pytest.raises(SystemExit):
        run_main(lambda: pytest.fail("it began"))
    said = "error: the variable HF_HUB_DOWNLOAD_TIMEOUT is 'abc': set it to a whole number, or unset it\n"
    assert capsys.readouterr().err == said
    for good in ("", "30"):
        monkeypatch.setenv("HF_HUB_DOWNLOAD_TIMEOUT", good)
        run_main(lambda: None)


@pytest.mark.parametrize(
    ("parse", "text", "says"),
    [
        (positive_int, "ten", "must be a whole number, not 'ten'"),
        (positive_int, "1.5", "must be a whole number, not '1.5'"),
        (positive_int, "0", "must be at least 1, not 0"),
        (non_negative_int, "", "must be a whole number, not ''"),
        (non_negative_int, "-1", "must be at least 0, not -1"),
    ],
)
def test_what_is_no_whole_number_is_said_without_the_name_of_a_function(parse, text, says):
    with pytest.raises(argparse.ArgumentTypeError, match=f"^{re.escape(says)}$"):
        parse(text)
