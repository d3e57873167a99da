"""Weight files as bytes: flipped bits, files without CRCs, indices of the hub, paths that cannot be read."""

import argparse
import json
import os
import random
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from lavis.models.checkpoint import read_tensors
from lavis.models.weight_files import check_zip, read_content
from lavis.models.weight_formats import read_weights
from sprc.core.errors import InputError

FLIPS = 150


def small_state(small_yaml) -> dict:
    from lavis.models import load_model

    return load_model("blip2_cir_align_prompt", small_yaml).state_dict()


def like_a_run(weights: dict) -> dict:
    """A file laid out as `training_state.pt`, with an optimizer's moments and random states."""
    moments = {i: {"exp_avg": torch.randn(64, 32), "step": torch.tensor(3.0)} for i in range(20)}
    return {
        "config": {"seed": 0},
        "model": weights,
        "optimization": {"state": moments},
        "random": [torch.get_rng_state()],
    }


def equal(first, second) -> bool:
    if isinstance(first, torch.Tensor):
        return isinstance(second, torch.Tensor) and torch.equal(first, second)
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(equal(value, second[key]) for key, value in first.items())
    if isinstance(first, list):
        return len(first) == len(second) and all(map(equal, first, second))
    return first == second


@pytest.mark.parametrize("kind", ["checkpoint", "training_state"])
def test_no_flipped_bit_gives_other_numbers(small_yaml, tmp_path, kind):
    weights = small_state(small_yaml)
    content = {"epoch": 3, "Blip2QformerCirAlignPrompt": weights} if kind == "checkpoint" else like_a_run(weights)
    torch.save(content, tmp_path / "whole.pt")
    whole, choose, refused = (tmp_path / "whole.pt").read_bytes(), random.Random(6), 0
    for flip in range(FLIPS):
        damaged = bytearray(whole)
        damaged[choose.randrange(len(whole))] ^= 1 << choose.randrange(8)
        path = tmp_path / f"{flip}.pt"
        path.write_bytes(damaged)
        try:
            found = read_tensors(path, "download it again", mapped=flip % 2 == 0)
        except InputError as error:
            assert str(path) in str(error) and "download it again" in str(error)
            refused += 1
        else:
            assert equal(content, found)
        path.unlink()
    assert refused > FLIPS * 0.7


def test_the_damaged_member_is_named(tmp_path):
    path = tmp_path / "w.pt"
    torch.save({"Blip2QformerCirAlignPrompt": {"temp": torch.full((1000,), 0.5)}}, path)
    content = bytearray(path.read_bytes())
    place = content.index(torch.full((1000,), 0.5).numpy().tobytes()) + 2000
    content[place] ^= 1
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"w\.pt is damaged: w/data/0 is not what was written.*copy it again"):
        read_weights(path)


def test_a_file_that_was_written_without_crcs_is_read(tmp_path):
    path = tmp_path / "w.pt"
    torch.serialization.set_crc32_options(False)
    try:
        torch.save({"a": torch.arange(1000.0)}, path)
    finally:
        torch.serialization.set_crc32_options(True)
    with zipfile.ZipFile(path) as archive:
        assert {member.CRC for member in archive.infolist()} == {0}
    assert torch.equal(read_tensors(path, "")["a"], torch.arange(1000.0))


def test_a_member_twice_is_refused(tmp_path):
    with pytest.warns(UserWarning, match="Duplicate name"), zipfile.ZipFile(tmp_path / "w.pt", "w") as archive:
        archive.writestr("w/data.pkl", "one")
        archive.writestr("w/data.pkl", "two")
    with pytest.raises(InputError, match="a member twice"):
        check_zip(tmp_path / "w.pt", "copy it again")


def test_a_name_twice_in_a_safetensors_header_is_refused(tmp_path):
    """The reader takes the last: the numbers of one tensor would be those of another."""
    path = tmp_path / "w.safetensors"
    save_file({"a": torch.zeros(4), "b": torch.ones(4)}, path)
    assert set(read_tensors(path, "copy it again")) == {"a", "b"}
    content = path.read_bytes().replace(b'"b":', b'"a":')
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"header of .*w\.safetensors: the object has the key 'a' twice"):
        read_tensors(path, "copy it again")


# --- what stands beside weights ---------------------------------------------------------------------------------------

FOREIGN = {
    "argparse.Namespace": argparse.Namespace(lr=1),
    "pathlib.": Path("runs"),
    "numpy._core.multiarray.scalar": np.float64(0.3),
    "numpy._core.multiarray._reconstruct": np.zeros(3),
    "torch.nn.modules.linear.Linear": torch.nn.Linear(2, 2),
}


@pytest.mark.parametrize("old", [False, True], ids=["zip", "of before zip"])
@pytest.mark.parametrize("name", FOREIGN)
def test_what_is_no_tensor_is_named_and_the_fix_is_no_download(tmp_path, name, old):
    path = tmp_path / "w.pt"
    torch.save({"state_dict": {"temp": torch.zeros(1)}, "args": FOREIGN[name]}, path,
               _use_new_zipfile_serialization=not old)  # fmt: skip
    with pytest.raises(InputError, match="code in a file is never run") as error:
        read_weights(path)
    for part in (str(path), f"it holds {name}", 'torch.save({"state_dict": model.state_dict()}, PATH)'):
        assert part in str(error.value)
    assert "download" not in str(error.value)
    with pytest.raises(InputError, match="start another run"):
        read_tensors(path, "start another run")


# --- the hub's index --------------------------------------------------------------------------------------------------


def write_index(folder: Path, content: str) -> None:
    (folder / "model.safetensors.index.json").write_text(content, encoding="utf-8")


@pytest.mark.parametrize("part", ["../secret.safetensors", "/etc/passwd", "a/b.safetensors", "..", "", r"a\b", None, 3])
def test_an_index_names_files_of_its_own_folder(tmp_path, part):
    save_file({"a": torch.zeros(1)}, tmp_path / "secret.safetensors")
    (tmp_path / "hub").mkdir()
    write_index(tmp_path / "hub", json.dumps({"weight_map": {"a.weight": part}}))
    with pytest.raises(InputError, match=r"weight_map places a\.weight in") as error:
        read_content(tmp_path / "hub")
    assert repr(part) in str(error.value) and "index.json" in str(error.value)


@pytest.mark.parametrize("content", ["[]", "{", '{"weight_map": []}', "{}", '{"weight_map": {}}'])
def test_what_is_no_index_is_named(tmp_path, content):
    write_index(tmp_path, content)
    with pytest.raises(InputError, match=r"index\.json.*download or copy it again"):
        read_content(tmp_path)


def test_a_name_in_two_parts_is_refused(tmp_path):
    for part in ("a", "b"):
        save_file({"same": torch.zeros(1)}, tmp_path / f"{part}.safetensors")
    write_index(tmp_path, json.dumps({"weight_map": {"x": "a.safetensors", "y": "b.safetensors"}}))
    with pytest.raises(InputError, match=r"b\.safetensors holds same, as another part does"):
        read_content(tmp_path)


# --- paths ------------------------------------------------------------------------------------------------------------


def test_a_path_that_cannot_be_read_is_one_line(tmp_path):
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "file").write_text("")
    for path in (tmp_path / ("x" * 300), tmp_path / "loop", tmp_path / "file" / "w.pt"):
        with pytest.raises(InputError) as error:
            read_weights(path)
        assert str(path) in str(error.value) and "give" in str(error.value)


def test_a_file_without_permission_is_one_line(tmp_path):
    if os.getuid() != 0:
        path = tmp_path / "w.pt"
        torch.save({}, path)
        path.chmod(0)
        with pytest.raises(InputError, match=r"Permission denied\): check its permissions"):
            read_weights(path)
        return
    torch.save({}, tmp_path / "w.pt")
    for folder in (tmp_path, *tmp_path.parents[:2]):
        folder.chmod(0o755)
    (tmp_path / "w.pt").chmod(0)
    child = os.fork()
    if not child:  # root may read everything
        os.setuid(65534)
        try:
            read_weights(tmp_path / "w.pt")
        except InputError as error:
            os._exit(0 if "Permission denied" in str(error) else 1)
        except BaseException:
            os._exit(2)
        os._exit(3)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
