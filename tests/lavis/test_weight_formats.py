"""Every format of weights, written at a tiny size from upstream's recorded weights, read, and its outputs compared."""

from dataclasses import asdict, replace

import pytest
import torch
import yaml
from convert_weights import main as convert
from safetensors.torch import save_file
from upstream_reference import build_model, reference_config

from lavis.models import load_model
from lavis.models.checkpoint import WORD_EMBEDDINGS, load_checkpoint, read_weights, save_model
from lavis.models.weight_names import to_hub
from sprc.core.errors import InputError

NAME = "Blip2QformerCirAlignPrompt"
VISION_FILES = {"eva_clip_g": "eva_vit_g.pth", "clip_L": "clip_vit_L.pth"}


def vision_file_name(reference) -> str:
    return VISION_FILES[reference_config(reference).vision.encoder]


@pytest.fixture
def backbone(reference, tmp_path) -> str:
    """A YAML file of the recorded model's sizes, with the names that LAVIS gives its files."""
    config = replace(
        reference_config(reference), weights="blip2_pretrained.pth", vision_weights=vision_file_name(reference)
    )
    path = tmp_path / "backbone.yaml"
    path.write_text(yaml.safe_dump(asdict(config)))
    return str(path)


def copies(state):
    return {name: tensor.clone().contiguous() for name, tensor in state.items()}


def write_sprc(reference, folder):
    torch.save({"epoch": 3, NAME: reference.weights}, folder / "sprc.pt")
    return folder / "sprc.pt"


def write_sprc_of_before_zip(reference, folder):
    torch.save({"epoch": 3, NAME: reference.weights}, folder / "old.pt", _use_new_zipfile_serialization=False)
    return folder / "old.pt"


def write_safetensors(reference, folder):
    save_file(copies(reference.weights), folder / "any name")
    return folder / "any name"


def write_lavis(reference, folder):
    """LAVIS's two files: the Q-Former without prompts, and the published ViT, which has a block and a head too many."""
    vision = {
        name.removeprefix("visual_encoder."): tensor
        for name, tensor in reference.weights.items()
        if name.startswith("visual_encoder.")
    }
    torch.save(published_vision(vision, reference), folder / vision_file_name(reference))
    qformer = {n: t for n, t in reference.weights.items() if not n.startswith(("visual_encoder.", "prompt_tokens"))}
    torch.save({"model": qformer, "epoch": 1}, folder / "blip2_pretrained.pth")
    return folder / "blip2_pretrained.pth"


def published_vision(vision, reference):
    config = reference_config(reference).vision
    blocks = "blocks." if config.encoder == "eva_clip_g" else "transformer.resblocks."
    last = {n: t for n, t in vision.items() if n.startswith(f"{blocks}0.")}
    vision |= {n.replace(f"{blocks}0.", f"{blocks}{config.depth}."): torch.randn_like(t) for n, t in last.items()}
    heads = ("norm.weight", "norm.bias", "head.weight", "head.bias") if blocks == "blocks." else (
        "ln_post.weight", "ln_post.bias", "proj")  # fmt: skip
    return {n: t.half() for n, t in (vision | {name: torch.zeros(config.width) for name in heads}).items()}


def write_lavis_with_vision(reference, folder):
    whole = {name: tensor for name, tensor in reference.weights.items() if name != "prompt_tokens"}
    torch.save({"model": whole}, folder / "whole.pth")
    return folder / "whole.pth"


def write_hub(reference, folder):
    if reference_config(reference).vision.encoder != "eva_clip_g":
        pytest.skip("the hub's BLIP-2 has no CLIP ViT")
    (folder / "hub").mkdir()
    state = to_hub({n: t for n, t in reference.weights.items() if not n.startswith("Qformer.cls.")})
    save_file(copies(state), folder / "hub" / "model.safetensors")
    return folder / "hub"


def write_own(reference, folder):
    """What this project saves."""
    save_model(build_model(reference), 5, folder / "own" / "own.pt")
    return folder / "own" / "own.pt"


WRITERS = {
    "sprc": (write_sprc, set(), 1e-4),
    "sprc of before zip": (write_sprc_of_before_zip, set(), 1e-4),
    "safetensors": (write_safetensors, set(), 1e-4),
    "lavis, ViT in half precision": (write_lavis, {"prompt_tokens"}, 5e-2),
    "lavis with ViT": (write_lavis_with_vision, {"prompt_tokens"}, 1e-4),
    "hub": (write_hub, {"prompt_tokens", "temp"}, 1e-4),
    "own": (write_own, set(), 1e-4),
}


@torch.no_grad()
def output_differences(model, reference) -> dict[str, float]:
    """Largest differences to upstream's recorded ViT output, target tokens, query features and scores."""
    images = reference.inputs["reference"].float()
    found = {"visual_encoder": model.encode_frozen(images)}
    expected = {"visual_encoder": reference.outputs["ref.visual_encoder"][: len(images)]}
    embeds = {name: model.normalize_vision(reference.outputs[f"{name}.visual_encoder"]) for name in ("ref", "target")}
    found["target_feats"] = model.target_tokens(embeds["target"])
    found["fusion_feats"] = model.extract_query_features(embeds["ref"], reference.captions)
    found["inference.sim"] = model.inference(embeds["ref"], found["target_feats"], reference.captions)
    expected |= {name: reference.outputs[name] for name in found if name != "visual_encoder"}
    return {name: (found[name] - expected[name]).abs().max().item() for name in found}


@pytest.mark.parametrize("format_name", WRITERS)
def test_every_format_gives_upstreams_outputs(reference, backbone, format_name, tmp_path, caplog):
    write, fresh, vision_tolerance = WRITERS[format_name]
    path = write(reference, tmp_path)
    torch.manual_seed(0)
    model = load_model("blip2_cir_align_prompt", backbone, is_eval=True, weights=str(path))
    said = caplog.text
    differences = output_differences(model, reference)
    print(f"{format_name}, {reference.folder.name}: " + ", ".join(f"{n} {d:.1e}" for n, d in differences.items()))
    assert differences.pop("visual_encoder") < vision_tolerance
    assert max(differences.values()) < 1e-5, differences
    assert str(path) in said
    for name in ("prompt_tokens", "temp"):
        assert (name in said) == (name in fresh)
    if "prompt_tokens" in fresh:
        assert 0.005 < model.prompt_tokens.std() < 0.04
    else:
        assert torch.equal(model.prompt_tokens, reference.weights["prompt_tokens"])
    assert model.temp.item() == pytest.approx(0.07 if "temp" in fresh else reference.weights["temp"].item())
    assert not any(tensor.is_meta for tensor in [*model.parameters(), *model.buffers()])


def test_what_is_saved_has_upstreams_names_and_layout_parity(reference, tmp_path):
    content = torch.load(write_own(reference, tmp_path), weights_only=True)
    assert set(content) == {"epoch", NAME}
    expected = {n: t for n, t in reference.weights.items() if not n.startswith("Qformer.cls.")}
    assert {n: (t.shape, t.dtype) for n, t in content[NAME].items()} == {
        n: (t.shape, t.dtype) for n, t in expected.items()
    }
    assert all(torch.equal(tensor, expected[name]) for name, tensor in content[NAME].items())


def test_a_vision_encoder_alone_is_no_model(reference, backbone, tmp_path):
    write_lavis(reference, tmp_path)
    with pytest.raises(InputError, match="vision encoder alone"):
        load_checkpoint(build_model(reference), tmp_path / vision_file_name(reference))


def test_a_missing_vision_encoder_is_named(reference, tmp_path, backbone, monkeypatch):
    monkeypatch.setattr("lavis.models.weight_sources.weight_folders", lambda: [tmp_path / "a", tmp_path / "b"])
    path = write_lavis(reference, tmp_path)
    (tmp_path / vision_file_name(reference)).unlink()
    with pytest.raises(InputError, match="holds no vision encoder") as error:
        load_model("blip2_cir_align_prompt", backbone, weights=str(path))
    for part in (str(path), vision_file_name(reference), "storage.googleapis.com", str(tmp_path / "a")):
        assert part in str(error.value)
    with pytest.raises(InputError, match="holds no vision encoder: put eva_vit_g"):
        load_checkpoint(build_model(reference), path)


def test_the_vision_file_is_checked_by_name(reference, tmp_path):
    path = write_lavis(reference, tmp_path)
    vision_path = tmp_path / vision_file_name(reference)
    vision = torch.load(vision_path)
    name = next(n for n in vision if n.endswith("0.attn.qkv.weight") or n.endswith("0.attn.in_proj_weight"))
    torch.save({n: t for n, t in vision.items() if n != name} | {"extra": torch.zeros(1)}, vision_path)
    with pytest.raises(InputError) as error:
        load_checkpoint(build_model(reference), path, vision_path)
    assert f"1 missing: visual_encoder.{name}; 1 unexpected: visual_encoder.extra" in str(error.value)
    assert str(vision_path) in str(error.value)


def test_only_the_next_block_is_ignored(reference, tmp_path):
    """A deeper ViT is of another size: its first blocks are not the model."""
    path = write_lavis(reference, tmp_path)
    vision_path = tmp_path / vision_file_name(reference)
    vision = torch.load(vision_path)
    depth = reference_config(reference).vision.depth
    vision |= {n.replace(f".{depth}.", f".{depth + 1}.") if f"s.{depth}." in n else n: t for n, t in vision.items()}
    torch.save(vision, vision_path)
    with pytest.raises(InputError, match=rf"unexpected.*blocks\.{depth + 1}\."):
        load_checkpoint(build_model(reference), path, vision_path)


def test_a_foreign_region_proj_is_refused_unless_dropped(reference, backbone, tmp_path, caplog):
    foreign = {"region_proj.weight": torch.zeros(7, 3), "region_proj.bias": torch.zeros(7)}
    path = tmp_path / "port.pt"
    torch.save({"epoch": 0, NAME: reference.weights | foreign}, path)
    with pytest.raises(InputError, match="`drop_region_proj` loads everything else") as error:
        load_model("blip2_cir_align_prompt", backbone, weights=str(path))
    assert "region_proj.weight (7, 3)" in str(error.value)
    model = load_model("blip2_cir_align_prompt", backbone, is_eval=True, weights=str(path), drop_region_proj=True)
    assert "region_proj of the file dropped" in caplog.text
    assert max(output_differences(model, reference).values()) < 1e-4


def test_a_region_proj_of_the_models_own_shape_is_loaded(reference, tmp_path):
    model = build_model(reference)
    path = tmp_path / "same.pt"
    fitting = {f"region_proj.{name}": torch.ones_like(p) for name, p in model.region_proj.named_parameters()}
    torch.save({"epoch": 0, NAME: reference.weights | fitting}, path)
    assert load_checkpoint(model, path).fresh == [
        "region_logit_scale",
        "region_token_proj.weight",
        "region_token_proj.bias",
    ]
    assert torch.equal(model.region_proj.weight, fitting["region_proj.weight"])


@pytest.mark.parametrize("with_regions", [True, False])
@pytest.mark.parametrize("format_name", ["sprc", "safetensors"])
def test_a_conversion_keeps_the_region_parameters_that_a_file_has(small_yaml, tmp_path, format_name, with_regions):
    model = load_model("blip2_cir_align_prompt", small_yaml, use_region_loss=with_regions)
    save_model(model, 3, tmp_path / "in.pt")
    convert([str(tmp_path / "in.pt"), str(tmp_path / "out"), "--backbone", small_yaml, "--format", format_name])
    before, after = (read_weights(tmp_path / name).state for name in ("in.pt", "out"))
    assert ("region_proj.weight" in after) == with_regions
    assert before.keys() == after.keys()
    assert all(torch.equal(value, after[name]) for name, value in before.items())


@pytest.mark.parametrize("backbone_of", ["a folder of LAVIS's files", "random"])
def test_a_conversion_takes_whatever_a_training_takes(reference, backbone, tmp_path, backbone_of):
    source = "random"
    if backbone_of != "random":
        (tmp_path / "published").mkdir()
        write_lavis(reference, tmp_path / "published")
        source = str(tmp_path / "published")
    convert([source, str(tmp_path / "out.pt"), "--backbone", backbone])
    assert not any(name.startswith("region_") for name in read_weights(tmp_path / "out.pt").state)


# --- layouts that other programs leave --------------------------------------------------------------------------------


def wrapped(state: dict, key: str | None) -> dict:
    return state if key is None else {key: state, "epoch": 3}


def compiled_inside(name: str) -> str:
    return name.replace("Qformer.bert.", "Qformer._orig_mod.bert.").replace("blocks.", "blocks._orig_mod.")


PREFIXES = {
    "module.": ("module. taken off",),
    "_orig_mod.": ("_orig_mod. taken off",),
    "module._orig_mod.": ("module. taken off", "_orig_mod. taken off"),
    "_orig_mod.module.": ("module. taken off", "_orig_mod. taken off"),
    "": (),
}


@pytest.mark.parametrize("key", ["state_dict", "model_state_dict", "model", "Blip2QformerCir", NAME, None])
@pytest.mark.parametrize("prefix", PREFIXES)
def test_wrappers_and_prefixes_are_read_with_a_note(small_yaml, tmp_path, key, prefix):
    torch.manual_seed(1)
    model, path = load_model("blip2_cir_align_prompt", small_yaml), tmp_path / "w.pt"
    torch.save(wrapped({prefix + name: value for name, value in model.state_dict().items()}, key), path)
    loaded = load_model("blip2_cir_align_prompt", small_yaml, weights=str(path))
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in model.state_dict().items())
    notes = str(loaded.load_report)
    assert (f"under the name {key}" in notes) == (key in ("state_dict", "model_state_dict", "Blip2QformerCir"))
    assert all(part in notes for part in PREFIXES[prefix]) and notes.count("taken off") == len(PREFIXES[prefix])
    assert loaded.load_report.epoch == (-1 if key in ("model", None) else 3)


def test_modules_that_were_compiled_one_by_one_are_read(small_yaml, tmp_path):
    model, path = load_model("blip2_cir_align_prompt", small_yaml), tmp_path / "w.pt"
    state = {compiled_inside(name): value for name, value in model.state_dict().items()}
    inside = sum("_orig_mod" in name for name in state)
    torch.save({NAME: state}, path)
    report = load_checkpoint(model, path)
    assert inside > 20 and report.notes == [f"_orig_mod. taken off {inside} names"]
    torch.save({NAME: state | model.state_dict()}, path)
    with pytest.raises(InputError, match=r"twice, once as "):
        load_checkpoint(model, path)


def test_names_are_checked_after_prefixes_too(small_yaml, tmp_path):
    model, path = load_model("blip2_cir_align_prompt", small_yaml), tmp_path / "w.pt"
    state = {f"module.{name}": value for name, value in model.state_dict().items()}
    state["module.extra"] = state.pop("module.temp")
    torch.save({"state_dict": state}, path)
    with pytest.raises(InputError, match="1 missing: temp; 1 unexpected: extra"):
        load_checkpoint(model, path)


def test_two_models_in_a_file_are_not_chosen_from(small_yaml, tmp_path):
    state = dict(load_model("blip2_cir_align_prompt", small_yaml).state_dict())
    torch.save({"Student": state, "Teacher": state}, tmp_path / "w.pt")
    with pytest.raises(InputError, match=r"\['Student', 'Teacher'\], and no weights that this model can read"):
        read_weights(tmp_path / "w.pt")


EPOCHS = [(None, -1), ("three", -1), (float("nan"), -1), (float("inf"), -1), ([1], -1), (torch.zeros(3), -1), (2.5, -1),
          (True, -1), (7, 7), (7.0, 7), (torch.tensor(7), 7), (torch.tensor(7.0), 7), (10**400, 10**400)]  # fmt: skip


@pytest.mark.parametrize(("epoch", "read"), EPOCHS, ids=str)
def test_an_epoch_that_is_no_number_is_unknown(tmp_path, epoch, read):
    torch.save({"epoch": epoch, NAME: {"Qformer.bert.x": torch.zeros(1)}}, tmp_path / "w.pt")
    weights = read_weights(tmp_path / "w.pt")
    assert weights.epoch == read
    assert [note.startswith("its epoch is ") for note in weights.notes] == ([True] if read == -1 else [])


def test_the_state_of_a_run_is_no_weights(tmp_path):
    state = {"config": {}, "model": {"temp": torch.zeros(1)}, "optimization": {}, "random": [], "epoch": 1}
    torch.save(state, tmp_path / "training_state.pt")
    with pytest.raises(InputError, match=r"state of a run, not weights.*tuned_clip_\*\.pt.*`resume` RUN"):
        read_weights(tmp_path / "training_state.pt")


def test_the_vits_own_file_is_noted_and_checked(reference, backbone, tmp_path, caplog):
    path, vision_path = write_lavis(reference, tmp_path), tmp_path / vision_file_name(reference)
    vision = torch.load(vision_path)
    torch.save({"model": {f"module.{name}": value for name, value in vision.items()}}, vision_path)
    model = load_model("blip2_cir_align_prompt", backbone, weights=str(path))
    said = caplog.text
    count = sum(n.startswith("visual_encoder.") for n in model.state_dict())
    assert f"of the ViT: module. taken off {len(vision)} names; of the ViT: {count} tensors float16 -> float32" in said
    name = next(n for n in vision if n.endswith(".attn.q_bias") or n.endswith("0.attn.in_proj_bias"))
    for wrong, part in ((vision[name].to(torch.int8), "of a type"), (vision[name] * float("nan"), "is bad: 1 tensors")):
        torch.save(vision | {name: wrong}, vision_path)
        with pytest.raises(InputError, match=part) as error:
            load_checkpoint(model, path, vision_path)
        assert str(vision_path) in str(error.value) and f"visual_encoder.{name}" in str(error.value)


def test_berts_own_vocabulary_gets_a_row_for_dec(reference, backbone, tmp_path, caplog):
    shorter = dict(reference.weights)
    shorter[WORD_EMBEDDINGS] = shorter[WORD_EMBEDDINGS][:-1]
    path = tmp_path / "short.pt"
    torch.save({"epoch": 0, NAME: shorter}, path)
    model = load_model("blip2_cir_align_prompt", backbone, is_eval=True, weights=str(path))
    assert "[DEC]" in caplog.text
    assert max(output_differences(model, reference).values()) < 1e-4
    shorter[WORD_EMBEDDINGS] = shorter[WORD_EMBEDDINGS][:-1]
    torch.save({"epoch": 0, NAME: shorter}, path)
    with pytest.raises(InputError, match=r"1 wrongly shaped: .*word_embeddings"):
        load_model("blip2_cir_align_prompt", backbone, weights=str(path))


def test_other_contents_are_named(tmp_path):
    for content, part in (({"a": torch.zeros(1)}, "no weights that this model can read"), ([1], "holds a list")):
        torch.save(content, tmp_path / "x.pt")
        with pytest.raises(InputError, match=part):
            read_weights(tmp_path / "x.pt")
    torch.save({NAME: {"temp": "warm"}}, tmp_path / "x.pt")
    with pytest.raises(InputError, match="'temp' is no tensor"):
        read_weights(tmp_path / "x.pt")
    (tmp_path / "cut.safetensors").write_bytes(b"\x40\0\0\0\0\0\0\0{")
    with pytest.raises(InputError, match="cannot be read as a weight file"):
        read_weights(tmp_path / "cut.safetensors")
