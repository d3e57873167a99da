"""What a box file is made from: images that are found one by one, and the file of progress."""

import pytest

from sprc.boxes.box_files import read_progress
from sprc.core.errors import InputError


@pytest.mark.parametrize(
    "line", [b"{", b"[]", b'{"name": "a"}', b'{"name": "a", "regions": [{"x": 1}]}', b'"\xff"', b"7"]
)
def test_a_damaged_progress_file_is_named(tmp_path, line):
    path = tmp_path / "boxes.json.progress"
    good = b'{"name": "b", "regions": [], "method": "saliency", "error": ""}'
    path.write_bytes(b"recipe\n" + good + b"\n" + line + b"\n")
    with pytest.raises(InputError, match=r"boxes\.json\.progress, line 3,? .*remove the file"):
        read_progress(path, "recipe")
    path.write_bytes(b"recipe\n" + good + b"\n" + line)  # cut off: it is made again
    assert list(read_progress(path, "recipe")) == ["b"]
