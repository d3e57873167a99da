"""Names, shapes and types of the full-size model; files written and read; what is said about a wrong file."""

import json
import math
import pickle

import pytest
import torch

from lavis.models import load_model
from lavis.models.blip2_models.blip2_qformer_cir_align_prompt import Blip2QformerCirAlignPrompt
from lavis.models.checkpoint import load_checkpoint, read_weights, save_model, state_to_save
from lavis.models.model_config import load_config
from sprc.core.errors import InputError

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


# --- types and numbers ------------------------------------------------------------------------------------------------


def saved_state(small_yaml, tmp_path, changes: dict):
    """(a model, a file of its weights with these changes)."""
    model, path = build_small(small_yaml), tmp_path / "model.pt"
    torch.save({"epoch": 0, NAME: model.state_dict() | changes}, path)
    return model, path


STRANGE = ["int8", "int64", "uint8", "bool", "float8_e4m3fn", "float8_e5m2", "complex64"]


@pytest.mark.parametrize("dtype", STRANGE)
def test_types_that_no_one_trains_in_are_refused(small_yaml, tmp_path, dtype):
    strange = torch.zeros(32).to(getattr(torch, dtype))
    model, path = saved_state(small_yaml, tmp_path, {"ln_vision.weight": strange, "ln_vision.bias": strange})
    with pytest.raises(InputError, match="2 tensors are of a type that no one trains in") as error:
        load_checkpoint(model, path)
    for part in (str(path), f"ln_vision.weight ({dtype})", "float16, bfloat16, float32, float64"):
        assert part in str(error.value)


@pytest.mark.parametrize("kind", ["sparse", "meta"])
def test_tensors_without_memory_of_numbers_are_refused(small_yaml, tmp_path, kind):
    value = torch.zeros(32).to_sparse() if kind == "sparse" else torch.zeros(32, device="meta")
    model, path = saved_state(small_yaml, tmp_path, {"ln_vision.weight": value})
    with pytest.raises(InputError, match=r"1 tensors are of a type.*ln_vision\.weight \(float32, "):
        load_checkpoint(model, path)


def test_position_ids_stay_whole_numbers(small_yaml, tmp_path):
    """Also of a file whose every tensor was made half; where that has rounded them, they are no position ids."""
    name = "Qformer.bert.embeddings.position_ids"
    for dtype, notes in ((torch.int64, []), (torch.float16, ["1 tensors float16 -> int64"])):
        model, path = saved_state(small_yaml, tmp_path, {name: torch.arange(512)[None].to(dtype)})
        assert load_checkpoint(model, path).notes == notes
        assert model.state_dict()[name].dtype == torch.int64
    for wrong, message in ((torch.bfloat16, "is not 0, 1, 2"), (torch.bool, r"position_ids \(bool\)")):
        model, path = saved_state(small_yaml, tmp_path, {name: torch.arange(512)[None].to(wrong)})
        with pytest.raises(InputError, match=message):
            load_checkpoint(model, path)


def test_what_is_cast_is_noted(small_yaml, tmp_path):
    changes = {"ln_vision.weight": torch.full((32,), 0.5, dtype=torch.float16), "temp": torch.tensor(0.1).double()}
    changes["ln_vision.bias"] = torch.zeros(32, dtype=torch.float16)
    model, path = saved_state(small_yaml, tmp_path, changes)
    report = load_checkpoint(model, path)
    assert report.notes == ["2 tensors float16 -> float32", "1 tensors float64 -> float32"]
    assert "2 tensors float16 -> float32" in str(report)
    assert model.ln_vision.weight.dtype == torch.float32 and model.ln_vision.weight[3] == 0.5


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_weights_that_are_no_numbers_are_told_as_a_bad_file(small_yaml, tmp_path, number):
    value = torch.ones(32)
    value[17] = number
    model, path = saved_state(small_yaml, tmp_path, {"ln_vision.weight": value, "temp": torch.tensor(number)})
    with pytest.raises(
        InputError, match=r"is bad: 2 tensors hold NaN or infinite numbers: .*ln_vision\.weight"
    ) as error:
        load_checkpoint(model, path)
    assert str(path) in str(error.value) and "learning rate" not in str(error.value)


def test_numbers_beyond_half_precision_are_refused(small_yaml, tmp_path):
    name = "visual_encoder.blocks.0.mlp.fc1.weight"
    model, path = build_small(small_yaml), tmp_path / "model.pt"
    torch.save({"epoch": 0, NAME: model.state_dict() | {name: torch.full((64, 32), 1e5)}}, path)
    load_checkpoint(model, path)
    model.use_half_precision_vit()
    with pytest.raises(InputError, match=rf"beyond the model's type: {name} \(float32 -> float16\).*`device` cpu"):
        load_checkpoint(model, path)


def test_tied_weights_are_loaded_apart(small_yaml, tmp_path):
    """A file may store a tensor once for two names, and one number for many places; training changes each by itself."""
    tied = torch.ones(64)
    state = {"ln_vision.weight": tied[:32], "ln_vision.bias": tied[:32], "query_tokens": tied[:1].expand(1, 4, 32)}
    _, path = saved_state(small_yaml, tmp_path, state | {"temp": torch.nn.Parameter(torch.tensor(0.5))})
    model = load_model("blip2_cir_align_prompt", small_yaml, weights=str(path))
    with torch.no_grad():
        model.ln_vision.weight.mul_(3)
        model.query_tokens[0, 0, 0] = 5
    assert model.ln_vision.bias.tolist() == [1.0] * 32
    assert model.query_tokens.sum() == 4 * 32 + 4


def test_a_frozen_vit_stays_frozen_whatever_the_file_says(small_yaml, tmp_path):
    model, path = build_small(small_yaml), tmp_path / "model.pt"
    state = {n: torch.nn.Parameter(t, t.is_floating_point()) for n, t in model.state_dict().items()}
    torch.save({NAME: state}, path)
    loaded = load_model("blip2_cir_align_prompt", small_yaml, weights=str(path))
    assert not any(parameter.requires_grad for parameter in loaded.visual_encoder.parameters())
    assert loaded.query_tokens.requires_grad


def test_long_lists_are_cut(small_yaml, tmp_path):
    model, path = build_small(small_yaml), tmp_path / "model.pt"
    kept = {name: value for name, value in model.state_dict().items() if not name.startswith("Qformer.")}
    count = sum(name.startswith("Qformer.") for name in model.state_dict()) - 1  # position ids may lack
    torch.save({NAME: kept | {f"extra.{i}": torch.zeros(1) for i in range(9)}}, path)
    with pytest.raises(InputError) as error:
        load_checkpoint(model, path)
    assert f"{count} missing: " in str(error.value) and f" and {count - 5} more; 9 unexpected: extra.0, " in str(
        error.value
    )
    assert "extra.4 and 4 more" in str(error.value) and "extra.5" not in str(error.value)
