"""Reading what a user gives: every fault is one line that names the file, the entry and the fix."""

import errno
import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from region_table import read_rows

from sprc.core.errors import InputError, shown
from sprc.core.reading import parse_json, read_csv, read_json, readable

SPLIT = b'{"dev-1": "./dev/1.png", "dev-2": "./dev/2.png", "dev-1": "./dev/3.png"}'


def refused(content: bytes, kind: type, tmp_path: Path) -> str:
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        read_json(path, kind, "fix it")
    message = str(caught.value)
    assert message.startswith(str(path)) and message.endswith(": fix it") and "\n" not in message
    assert len(message) < 400
    message.encode()  # it can be printed
    return message


@pytest.mark.parametrize(
    ("content", "kind", "says"),
    [
        (SPLIT, dict, "the object has the key 'dev-1' twice"),
        (b'[{"a": 1}, {"a": {"b": 1, "b": 1}}]', list, "entry 1, 'a' has the key 'b' twice"),
        (b'[{}, {"caption": "x \\ud83d"}]', list, "entry 1, 'caption' holds half of a character, in 'x \\ud83d'"),
        (b'{"a": [["\\uDE00"]]}', dict, "entry 'a', 0, 0 holds half of a character"),
        (b'{"a \\ud83d": 1}', dict, "the object holds half of a character, in 'a \\ud83d'"),
        (b'{"\\ud83d": "\\ud83d"}', dict, "half of a character"),
        (b'["\\udc80"]', list, "half of a character"),
        (b"[" * 100_000 + b"]" * 100_000, list, "nested too deeply"),
        (b'{"a":' * 100_000, dict, "nested too deeply"),
        (b"[" + b"7" * 5000 + b"]", list, "not valid JSON (Exceeds the limit"),
        (b'["\xff"]', list, "not valid JSON"),
        ('["x"]'.encode("utf-16"), list, "not valid JSON"),
        (b'["\xed\xa0\xbd"]', list, "not valid JSON"),
        (b"", list, "not valid JSON"),
        (b'["\x00"]', list, "not valid JSON"),
        (b"{}", list, "should hold a JSON list, not a dict"),
    ],
)  # fmt: skip
def test_bad_json_is_named(tmp_path, content, kind, says):
    assert says in refused(content, kind, tmp_path)


def test_good_json_is_read(tmp_path):
    path = tmp_path / "a.json"
    for content, expected in [
        (b'\xef\xbb\xbf["a"]', ["a"]),
        (b'["\\ud83d\\ude00", "\\\\ud83d"]', ["\U0001f600", "\\ud83d"]),
        ('["图 é"]'.encode(), ["图 é"]),
        (b"[" * 200 + b"]" * 200, json.loads("[" * 200 + "]" * 200)),
    ]:
        path.write_bytes(content)
        assert read_json(path, list, "fix it") == expected


def test_a_name_of_undecodable_bytes_is_a_path_and_no_text(tmp_path):
    path = tmp_path / "settings.json"
    folder = os.fsdecode(b"/data/\xff")
    path.write_text(json.dumps({"data_path": folder}))
    assert read_json(path, dict, "fix it", paths=True) == {"data_path": folder}
    with pytest.raises(InputError, match="half of a character"):
        read_json(path, dict, "fix it")
    path.write_text(json.dumps({"data_path": "\ud83d"}))
    with pytest.raises(InputError, match="half of a character"):
        read_json(path, dict, "fix it", paths=True)


def test_places_that_cannot_be_read_are_named(tmp_path):
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "file").touch()
    os.mkfifo(tmp_path / "pipe")
    for place, says in [
        ("none", "no file "),
        ("loop", "Too many levels of symbolic links"),
        ("file/a", "Not a directory"),
        ("n" * 300, "File name too long"),
        (".", "is a folder, not a file"),
        ("pipe", "no regular file"),
    ]:
        with pytest.raises(InputError, match=says) as caught:
            read_json(tmp_path / place, dict, "fix it")
        assert str(tmp_path) in str(caught.value) and str(caught.value).endswith("fix it")


@pytest.mark.parametrize("name", ["EACCES", "EIO", "ESTALE"])
def test_a_disk_that_fails_is_named(tmp_path, name):
    number = getattr(errno, name)
    match = rf"x cannot be read \({os.strerror(number)}\): fix it"
    with pytest.raises(InputError, match=match), readable(Path("x"), "fix it"):
        raise OSError(number, os.strerror(number))


@given(content=st.binary(max_size=40) | st.text(max_size=40).map(str.encode))
def test_any_bytes_are_json_or_refused(content):
    try:
        json.dumps(parse_json(content, "x", "fix it"), ensure_ascii=False).encode()
    except InputError as error:
        assert "\n" not in str(error)


def test_shown_values_are_short():
    deep: list = []
    for _ in range(5000):
        deep = [deep]
    for value in (deep, "x" * 10**6, list(range(10**5)), {"a": "b" * 10**5}, None):
        assert len(shown(value)) < 200
    assert (shown("nowhere"), shown(5), shown([1, "b"])) == ("'nowhere'", "5", "[1, 'b']")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"a,b,a\n1,2,3\n", "has the column 'a' twice"),
        (b"a,b\n1,2\n3\n", "line 3 has not the 2 columns"),
        (b"a,b\n1,2,3\n", "line 2 has not the 2 columns"),
        (b"a,b\n1,\xff\n", "no CSV file in UTF-8"),
        (b"a,b\n1,\x00\n", "line 2"),
        (b'a,b\n1,"2', "no CSV file in UTF-8"),
        (b"a,b\n" + b"x" * 200_000 + b",1\n", "no CSV file in UTF-8"),
    ],
)
def test_bad_csv_is_named(tmp_path, content, says):
    path = tmp_path / "a.csv"
    path.write_bytes(content)
    with pytest.raises(InputError, match=says) as caught:
        read_csv(path, "fix it")
    assert str(path) in str(caught.value)
    with pytest.raises(InputError, match=r"a\.csv"):
        read_rows(path)


def test_csv_with_a_mark_is_read(tmp_path):
    (tmp_path / "a.csv").write_bytes(b"\xef\xbb\xbfa,b\r\n1,x y\r\n")
    assert read_csv(tmp_path / "a.csv", "fix it") == [(2, {"a": "1", "b": "x y"})]
    (tmp_path / "empty.csv").touch()
    assert read_csv(tmp_path / "empty.csv", "fix it") == []
