"""Names, shapes and types of the full-size model; files written and read; what is said about a wrong file."""

import json
import pickle

import pytest
import torch

from lavis.common.errors import InputError
from lavis.models import load_model
from lavis.models.blip2_models.blip2_qformer_cir_align_prompt import Blip2QformerCirAlignPrompt
from lavis.models.checkpoint import load_checkpoint, read_weights, save_model, state_to_save
from lavis.models.model_config import load_config

NAME = "Blip2QformerCirAlignPrompt"


def build_small(small_yaml, seed: int = 0) -> Blip2QformerCirAlignPrompt:
    torch.manual_seed(seed)
    return load_model("blip2_cir_align_prompt", small_yaml, is_eval=True)


def recorded_keys(recorded, encoder: str) -> dict[str, dict]:
    models = json.loads((recorded / "state_dict_full.json").read_text())
    if encoder not in models:
        pytest.skip(f"the names recorded for {encoder} are in the shared data folder alone")
    return models[encoder]["keys"]


MODELS = [("pretrain", "eva_clip_g"), ("pretrain_vitL", "clip_L")]


@pytest.mark.parametrize(("column", "half"), [("dtype_fp32", False), ("dtype_fp16", True)])
@pytest.mark.parametrize(("backbone", "encoder"), MODELS)
def test_full_size_state_dict_parity(recorded, backbone, encoder, column, half):
    keys = recorded_keys(recorded, encoder)
    with torch.device("meta"):
        model = Blip2QformerCirAlignPrompt(load_config(backbone))
    if half:  # what `load_model` does on CUDA
        model.use_half_precision_vit()
    found = {n: (list(t.shape), str(t.dtype).removeprefix("torch.")) for n, t in state_to_save(model).items()}
    expected = {n: (k["shape"], k[column]) for n, k in keys.items() if not n.startswith("Qformer.cls.")}
    assert found == expected


@pytest.mark.parametrize(("backbone", "encoder"), MODELS)
def test_full_size_parameter_counts_parity(recorded, backbone, encoder):
    keys = recorded_keys(recorded, encoder)
    with torch.device("meta"):
        model = Blip2QformerCirAlignPrompt(load_config(backbone))
    trainable = {
        n for n, p in model.state_dict(keep_vars=True).items() if p.requires_grad
    }  # the region parameters are frozen
    recorded_names = {n for n, k in keys.items() if k["kind"] == "param_trainable" and not n.startswith("Qformer.cls.")}
    assert trainable == recorded_names - {"itm_head.weight", "itm_head.bias"}


def test_a_saved_model_comes_back(small_yaml, tmp_path):
    model, path = build_small(small_yaml, 1), tmp_path / "saved" / "model.pt"
    save_model(model, 7, path)
    content = torch.load(path, weights_only=True)
    assert set(content) == {"epoch", NAME}
    assert "Qformer.bert.encoder.layer.0.crossattention.self.query.weight" in content[NAME]
    again = load_model("blip2_cir_align_prompt", small_yaml, is_eval=True, weights=str(path))
    images, text = torch.randn(2, 3, 56, 56), ["make it red", "remove the blue circle"]
    samples = {"image": images, "target": images.flip(0), "text_input": text}
    with torch.no_grad():
        for name, loss in model(samples).items():
            assert torch.equal(loss, again(samples)[name])
    assert load_checkpoint(again, path).epoch == 7
    assert all(not tensor.is_meta for tensor in [*again.parameters(), *again.buffers()])
    assert list(path.parent.iterdir()) == [path]


def test_heads_that_nothing_uses_are_ignored(small_yaml, tmp_path):
    model, path = build_small(small_yaml), tmp_path / "model.pt"
    state = model.state_dict() | {"Qformer.cls.predictions.bias": torch.zeros(3)}
    torch.save({"epoch": 0, NAME: state}, path)
    assert load_checkpoint(model, path).epoch == 0


def test_wrong_names_and_shapes_are_listed(small_yaml, tmp_path):
    model, path = build_small(small_yaml), tmp_path / "model.pt"
    state = dict(model.state_dict())
    state["extra.weight"] = state.pop("ln_vision.weight")
    state["query_tokens"] = torch.zeros(1, 5, 32)
    torch.save({"epoch": 0, NAME: state}, path)
    with pytest.raises(InputError) as error:
        load_checkpoint(model, path)
    for part in (str(path), "1 missing: ln_vision.weight", "1 unexpected: extra.weight", "query_tokens: (1, 5, 32)"):
        assert part in str(error.value)


def test_position_ids_that_are_not_arange_are_refused(small_yaml, tmp_path):
    model, path = build_small(small_yaml), tmp_path / "model.pt"
    state = dict(model.state_dict())
    state["Qformer.bert.embeddings.position_ids"] = state["Qformer.bert.embeddings.position_ids"].flip(1)
    torch.save({"epoch": 0, NAME: state}, path)
    with pytest.raises(InputError, match="position_ids"):
        load_checkpoint(model, path)


def test_files_that_are_no_checkpoint_are_named(tmp_path):
    damaged, other, code = (tmp_path / name for name in ("damaged.pt", "other.pt", "code.pt"))
    damaged.write_bytes(b"PK\x03\x04 cut off")
    torch.save({"epoch": 0, "AnotherModel": {}}, other)
    code.write_bytes(pickle.dumps({"epoch": print}))
    for path, part in ((damaged, "cannot be read"), (other, "AnotherModel"), (code, "cannot be read")):
        with pytest.raises(InputError, match=part) as error:
            read_weights(path)
        assert str(path) in str(error.value)
    with pytest.raises(InputError, match="no weights at"):
        read_weights(tmp_path / "none.pt")


def test_an_interrupted_save_leaves_the_old_file(small_yaml, tmp_path, monkeypatch):
    model, path = build_small(small_yaml), tmp_path / "model.pt"
    save_model(model, 1, path)
    before = path.read_bytes()

    def fail(content, file):
        file.write(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(InputError, match="disk full"):
        save_model(model, 2, path)
    assert path.read_bytes() == before
