"""transformers' BLIP-2 as a witness: an independent model of a tiny size, converted both ways, features compared."""

import pytest
import torch
from convert_weights import hub_config, main
from transformers import Blip2Config, Blip2ForImageTextRetrieval, Blip2QFormerConfig, Blip2VisionConfig
from transformers.models.clip.modeling_clip import CLIPVisionConfig, CLIPVisionModel

from lavis.models import load_model
from lavis.models.checkpoint import save_model
from lavis.models.eva_vit import build_vision_encoder
from lavis.models.model_config import VisionConfig, load_config
from lavis.models.weight_names import CLIP_NAMES, from_hub, to_hub, to_left, to_right
from sprc.core.errors import InputError

CAPTIONS = ["make the red circle blue", "remove it", "add a large green square at the top left of the image"]


def tiny_hub_model(small_yaml, seed: int = 0) -> Blip2ForImageTextRetrieval:
    """Random weights, every one of them at work; built by transformers alone from the sizes of `small_yaml`."""
    config = load_config(small_yaml)
    vision = Blip2VisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2, image_size=56, patch_size=14
    )
    qformer = Blip2QFormerConfig(
        vocab_size=config.qformer.vocab_size,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        encoder_hidden_size=32,
        use_qformer_text_input=True,
    )
    torch.manual_seed(seed)
    model = Blip2ForImageTextRetrieval(
        Blip2Config(vision_config=vision, qformer_config=qformer, num_query_tokens=4, image_text_hidden_size=16)
    )
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(std=0.3)
            if name.endswith("norm.weight") or "layer_norm" in name.lower():
                parameter.add_(1)
            if name.endswith("qkv.bias"):
                parameter.view(3, -1)[1] = 0  # EVA-CLIP has no bias for keys
    model.vision_model.post_layernorm.eps = 1e-5  # as LAVIS's ln_vision; transformers builds it with the ViT's 1e-6
    return model.eval()


@torch.no_grad()
def feature_differences(hub: Blip2ForImageTextRetrieval, model) -> dict[str, float]:
    images = torch.randn(3, 3, 56, 56, generator=torch.Generator().manual_seed(1))
    ids, mask = model.tokenize(CAPTIONS)
    theirs = hub(pixel_values=images, input_ids=ids, attention_mask=mask)
    samples = {"image": images, "text_input": CAPTIONS}
    found = {
        "vision": (model.encode_images(images), theirs.vision_model_output.last_hidden_state),
        "image": (model.extract_features(samples, "image").image_embeds_proj, theirs.image_embeds),
        "text": (model.extract_features(samples, "text").text_embeds_proj[:, 0], theirs.text_embeds),
    }
    return {name: (ours - other).abs().max().item() for name, (ours, other) in found.items()}


def test_from_the_hub(small_yaml, tmp_path):
    hub = tiny_hub_model(small_yaml)
    hub.save_pretrained(tmp_path)
    model = load_model("blip2_cir_align_prompt", small_yaml, is_eval=True, weights=str(tmp_path))
    differences = feature_differences(hub, model)
    print("from the hub:", differences)
    assert max(differences.values()) < 1e-5, differences


def test_from_the_hub_in_parts(small_yaml, tmp_path):
    hub = tiny_hub_model(small_yaml)
    hub.save_pretrained(tmp_path, max_shard_size="100KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    model = load_model("blip2_cir_align_prompt", small_yaml, is_eval=True, weights=str(tmp_path))
    assert max(feature_differences(hub, model).values()) < 1e-5


def test_to_the_hub(small_yaml, tmp_path):
    """A model of this project, converted by the tool, opens in transformers with the same features."""
    torch.manual_seed(0)
    model = load_model("blip2_cir_align_prompt", small_yaml, is_eval=True)
    state = {name: value + 0.05 * torch.randn(value.shape) for name, value in model.state_dict().items()
             if value.is_floating_point()}  # fmt: skip
    model.load_state_dict(state)
    source = tmp_path / "model.pt"
    torch.save({"epoch": 0, "Blip2QformerCirAlignPrompt": model.state_dict()}, source)
    main([str(source), str(tmp_path / "hub"), "--backbone", small_yaml, "--format", "hub"])
    hub, report = Blip2ForImageTextRetrieval.from_pretrained(tmp_path / "hub", output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    hub.vision_model.post_layernorm.eps = 1e-5
    differences = feature_differences(hub.eval(), model)
    print("to the hub:", differences)
    assert max(differences.values()) < 1e-5, differences


def test_both_ways_lose_only_what_the_hub_has_no_place_for(small_yaml):
    state = load_model("blip2_cir_align_prompt", small_yaml).state_dict()
    again = from_hub(to_hub(state))
    lost = {"temp", "prompt_tokens", "Qformer.bert.embeddings.position_ids"}
    assert {name for name in set(state) - set(again) if not name.startswith("region_")} == lost
    assert all(torch.equal(state[name], tensor) for name, tensor in again.items())
    hub = tiny_hub_model(small_yaml).state_dict()
    back = to_hub(from_hub(hub))
    assert set(hub) == set(back)
    assert all(torch.equal(hub[name], tensor) for name, tensor in back.items())


def test_a_key_bias_is_refused(small_yaml):
    hub = tiny_hub_model(small_yaml).state_dict()
    name = next(n for n in hub if n.endswith("qkv.bias"))
    with pytest.raises(InputError, match="bias for keys"):
        from_hub(hub | {name: torch.ones_like(hub[name])})


@pytest.mark.parametrize("target", ["sprc", "safetensors"])
def test_the_tool_writes_upstreams_names(small_yaml, tmp_path, target):
    tiny_hub_model(small_yaml).save_pretrained(tmp_path / "hub")
    output = tmp_path / "out" / "model.any"
    main([str(tmp_path / "hub"), str(output), "--backbone", small_yaml, "--format", target])
    first = load_model("blip2_cir_align_prompt", small_yaml, weights=str(tmp_path / "hub")).state_dict()
    second = load_model("blip2_cir_align_prompt", small_yaml, weights=str(output)).state_dict()
    assert all(
        torch.equal(first[name], second[name]) for name in first if not name.startswith(("prompt_tokens", "region_"))
    )
    with pytest.raises(InputError, match="exists"):
        main([str(tmp_path / "hub"), str(output), "--backbone", small_yaml, "--format", target])


@pytest.mark.parametrize("target", ["sprc", "safetensors", "hub"])
def test_a_conversion_that_a_full_disk_ends_leaves_nothing(small_yaml, tmp_path, small_disk, target):
    save_model(load_model("blip2_cir_align_prompt", small_yaml), 0, tmp_path / "m.pt")
    folder = small_disk("64k")
    words = [str(tmp_path / "m.pt"), str(folder / "out"), "--backbone", small_yaml, "--format", target]
    with pytest.raises(InputError, match=r"out cannot be written .*free some space"):
        main(words)
    assert not list(folder.iterdir())


def test_clip_has_no_place_on_the_hub():
    with torch.device("meta"):
        from lavis.models import Blip2QformerCirAlignPrompt

        model = Blip2QformerCirAlignPrompt(load_config("pretrain_vitL"))
    with pytest.raises(InputError, match="EVA-CLIP-g"):
        hub_config(model)


def test_full_size_names_are_the_hubs():
    """The published repository has transformers' default sizes, and 30,523 words."""
    with torch.device("meta"):
        from lavis.models import Blip2QformerCirAlignPrompt

        model = Blip2QformerCirAlignPrompt(load_config("pretrain"))
        qformer = Blip2QFormerConfig(vocab_size=30523, use_qformer_text_input=True)
        hub = Blip2ForImageTextRetrieval(Blip2Config(qformer_config=qformer)).state_dict()
    converted = to_hub(model.state_dict())
    assert {n: t.shape for n, t in converted.items()} == {n: t.shape for n, t in hub.items()}


def test_clip_vit_against_transformers():
    """The ViT-L path at a tiny size against another implementation, block by block up to the last but one."""
    theirs = CLIPVisionModel(
        CLIPVisionConfig(hidden_size=32, intermediate_size=128, num_hidden_layers=3, num_attention_heads=4,
                         image_size=56, patch_size=14)
    ).eval()  # fmt: skip
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    vit = build_vision_encoder(VisionConfig("clip_L", 56, 14, 32, 2, 4, 4.0))
    vit.load_state_dict(clip_names(theirs.state_dict()))
    images = torch.randn(2, 3, 56, 56)
    with torch.no_grad():
        expected = theirs(images, output_hidden_states=True).hidden_states[2]
        difference = (vit.forward_features(images) - expected).abs().max().item()
    print("CLIP ViT against transformers:", difference)
    assert difference < 1e-5


def clip_names(state: dict) -> dict:
    """transformers' names of a CLIP ViT -> OpenAI's, for the two blocks that are used."""
    pairs = (
        ("embeddings.class_embedding", "class_embedding"),
        ("embeddings.position_embedding.weight", "positional_embedding"),
        ("embeddings.patch_embedding.", "conv1."),
        ("pre_layrnorm.", "ln_pre."),
        ("encoder.layers.", "transformer.resblocks."),
        (".self_attn.out_proj.", ".attn.out_proj."),
        (".layer_norm1.", ".ln_1."),
        (".layer_norm2.", ".ln_2."),
        (".mlp.fc1.", ".mlp.c_fc."),
        (".mlp.fc2.", ".mlp.c_proj."),
    )
    named = {to_right(name.removeprefix("vision_model."), pairs): value for name, value in state.items()}
    used = {n: v for n, v in named.items() if "resblocks.2." not in n and "post_layernorm" not in n}
    for block in range(2):
        for kind in ("weight", "bias"):
            stem = f"transformer.resblocks.{block}."
            parts = [used.pop(f"{stem}self_attn.{part}_proj.{kind}") for part in "qkv"]
            used[f"{stem}attn.in_proj_{kind}"] = torch.cat(parts)
    return {name: value for name, value in used.items() if "position_ids" not in name}


def test_name_tables_are_inverse():
    for name in ("blocks.3.attn.qkv.weight", "blocks.0.mlp.fc2.bias", "cls_token", "pos_embed", "norm_pre.weight"):
        assert to_left(to_right(name, CLIP_NAMES), CLIP_NAMES) == name
