"""What the model promises beyond upstream's numbers: batches of one, other sizes, frozen parts, float32 scores."""

import hashlib

import pytest
import torch

from lavis.models import load_model, load_model_and_preprocess
from lavis.models.blip2_models.scores import token_scores
from lavis.models.model_config import load_config
from sprc.core.errors import InputError

TEXTS = ["make the red circle blue", "remove it", "add a large green square at the top left of the image"]
# sha256 of all weights of tiny's ViT, in order of their names.
TINY_VIT = "9bc169d9dcf2d2a0924213f279d12433787c9879c3be08ac993a0e6399077756"


@pytest.fixture
def model(small_yaml):
    torch.manual_seed(0)
    return load_model("blip2_cir_align_prompt", small_yaml, is_eval=True)


@pytest.fixture
def samples():
    generator = torch.Generator().manual_seed(1)
    image, target = torch.randn(2, 3, 3, 56, 56, generator=generator)
    return {"image": image, "target": target, "text_input": TEXTS}


def test_tiny_is_the_same_on_every_machine():
    state = load_model("blip2_cir_align_prompt", "tiny").visual_encoder.state_dict()
    found = hashlib.sha256(b"".join(state[name].numpy().tobytes() for name in sorted(state))).hexdigest()
    assert found == TINY_VIT


def test_a_batch_of_one(model, samples):
    one = {name: value[:1] for name, value in samples.items()}
    losses = model.train()(one)
    assert all(loss.shape == () and torch.isfinite(loss) for loss in losses.values())
    assert losses["loss_itc"] == 0
    features, embeds = model.extract_target_features(one["target"])
    assert features.shape == (1, 4, 16)
    assert embeds.shape == (1, 17, 32)
    assert model.inference(embeds, features, TEXTS[:1]).shape == (1, 1)


def test_a_batch_is_its_rows(model, samples):
    features, embeds = model.extract_target_features(samples["target"])
    queries = model.extract_query_features(embeds, TEXTS)
    for row in range(3):
        one_feature, one_embeds = model.extract_target_features(samples["target"][row : row + 1])
        torch.testing.assert_close(one_feature[0], features[row], atol=1e-5, rtol=0)
        one_query = model.extract_query_features(one_embeds, TEXTS[row : row + 1])
        torch.testing.assert_close(one_query[0], queries[row], atol=1e-5, rtol=0)


def test_scores_are_the_largest_cosine():
    generator = torch.Generator().manual_seed(0)
    queries, tokens = torch.randn(5, 8, generator=generator), torch.randn(7, 3, 8, generator=generator)
    slow = torch.stack([torch.stack([(image @ query).max() for image in tokens]) for query in queries])
    torch.testing.assert_close(token_scores(queries, tokens), slow)


def test_the_vit_is_frozen_and_ln_vision_learns(model, samples):
    model.train()
    assert not any(module.training for module in model.visual_encoder.modules())
    sum(model(samples).values()).backward()
    assert all(parameter.grad is None for parameter in model.visual_encoder.parameters())
    assert model.ln_vision.weight.grad.abs().sum() > 0
    learning = [n for n, p in model.named_parameters() if p.requires_grad]
    assert all(dict(model.named_parameters())[name].grad is not None for name in learning)


def test_eval_means_evaluation(model, samples):
    with torch.no_grad():
        first, second = model.train()(samples), model(samples)
        assert first["loss_itc"] != second["loss_itc"]  # dropout
        first, second = model.eval()(samples), model(samples)
        assert first["loss_itc"] == second["loss_itc"]


def test_scores_and_losses_stay_float32_under_autocast(model, samples):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = model(samples)
        features, embeds = model.extract_target_features(samples["target"])
        queries = model.extract_query_features(embeds, TEXTS)
        scores = model.inference(embeds, features, TEXTS)
    found = {*(loss.dtype for loss in losses.values()), features.dtype, embeds.dtype, queries.dtype, scores.dtype}
    assert found == {torch.float32}
    torch.testing.assert_close(features.norm(dim=-1), torch.ones(3, 4))


def test_text_padding_changes_nothing(model, samples):
    with torch.no_grad():
        longest = model(samples)
        model.text_padding = "max_length"
        padded = model(samples)
    for name in longest:
        torch.testing.assert_close(longest[name], padded[name], atol=1e-5, rtol=0)


def test_extract_features_has_lavis_fields(model, samples):
    image = model.extract_features(samples, "image")
    assert image.image_embeds.shape == (3, 4, 32)
    assert image.image_embeds_proj.shape == (3, 4, 16)
    text = model.extract_features(samples, "text")
    assert text.text_embeds.shape[::2] == (3, 32)
    assert text.text_embeds_proj.shape[::2] == (3, 16)
    assert model.extract_features(samples).multimodal_embeds.shape == (3, 4, 32)
    with pytest.raises(InputError, match="text_input"):
        model.extract_features({"image": samples["image"]})


def test_entry_point_gives_model_and_processors(small_yaml):
    model, images, texts = load_model_and_preprocess("blip2_cir_align_prompt", small_yaml, is_eval=True, device="cpu")
    assert not model.training
    assert texts["eval"]("Make it RED!") == "make it red"
    assert set(images) == {"train", "eval"}


def test_unknown_names_are_answered_with_the_known():
    with pytest.raises(InputError, match="blip2_cir_align_prompt"):
        load_model("blip2_cir_cat", "tiny")
    with pytest.raises(InputError, match="pretrain, pretrain_vitL, tiny"):
        load_model("blip2_cir_align_prompt", "large")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("embed_dim: 64", "embed_dims: 64", "embed_dims"),
        ("patch_size: 14", "patch_size: 15", "multiple"),
        ("width: 96", "width: wide", "vision.width"),
        ("hidden_size: 128", "hidden_size: 130", "attention heads"),
    ],
)
def test_a_wrong_configuration_is_named(tmp_path, old, new, message):
    from lavis.models.model_config import CONFIG_FOLDER

    path = tmp_path / "wrong.yaml"
    path.write_text((CONFIG_FOLDER / "tiny.yaml").read_text().replace(old, new))
    with pytest.raises(InputError, match=message) as error:
        load_config(str(path))
    assert str(path) in str(error.value)


def test_frozen_features_are_told_by_their_type(model, samples):
    frozen = model.frozen_features(samples["image"])
    assert model.frozen_features(frozen) is frozen
    assert torch.equal(model.encode_images(frozen), model.encode_images(samples["image"]))
    with pytest.raises(InputError, match=r"images are \(B, 3, S, S\), not \(3, 17, 32\); give features as Fro"):
        model.encode_images(frozen.tokens)


def test_what_runs_as_one_batch_is_what_runs_alone(model, samples):
    """Passes 2 and 4 of the Q-Former, and both images through the ViT, at dropout 0."""
    ids, mask = model.tokenize(TEXTS)
    fused = model.fuse(model.encode_images(samples["image"]), ids, mask)
    prompts = model.prompt_tokens.expand(3, -1, -1)
    composed, prompted = model.Qformer.encode_composed_and_prompted(fused, prompts, ids, mask)
    torch.testing.assert_close(composed, model.Qformer.encode_composed(fused, ids, mask), atol=1e-6, rtol=0)
    torch.testing.assert_close(prompted, model.Qformer.encode_prompted_text(prompts, ids, mask), atol=1e-6, rtol=0)
    for found, name in zip(model.encode_pair(samples["image"], samples["target"]), ("image", "target"), strict=True):
        torch.testing.assert_close(found, model.encode_images(samples[name]), atol=1e-6, rtol=0)
