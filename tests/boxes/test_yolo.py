"""YOLO by ultralytics, which may be missing or broken."""

import sys

import pytest

from sprc.boxes.yolo import import_ultralytics
from sprc.core.errors import InputError


def test_an_ultralytics_that_does_not_load_is_not_to_be_installed_again(tmp_path, monkeypatch):
    (tmp_path / "ultralytics.py").write_text("raise ImportError('libGL.so.1: cannot open shared object file')")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "ultralytics", raising=False)
    with pytest.raises(InputError, match=r"libGL\.so\.1.* apt install libgl1"):
        import_ultralytics()
