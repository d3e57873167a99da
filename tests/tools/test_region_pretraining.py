"""The image-text stage: its losses against slow ones, its file, and the pretrained regime from end to end."""

import random
from itertools import islice
from pathlib import Path
from types import SimpleNamespace

import benchmark_regions
import efficientnet_lite
import pytest
import region_datasets
import region_pretraining
import region_runs
import region_table
import torch
import torch.nn.functional as F
from product_dataset import ProductSettings, make_product_dataset, write_model
from product_photos import read_photos
from product_pictures import make_photos
from region_arms import WINNER
from region_pretraining import Pretraining, endless_batches, hard_negatives, matching_loss, pretrained_weights
from region_regimes import PRETRAINED
from region_table import read_rows

from lavis.models import load_model
from lavis.models.blip2_models.frozen_features import FrozenFeatures
from lavis.models.weight_formats import read_weights
from sprc.core.errors import InputError
from sprc.training.config import TrainConfig

TEXTS = ["a red circle", "a blue square", "a green triangle", "two red squares"]
SIZES = {"images": 66, "triplets": 128, "val_images": 12, "val_triplets": 20, "other_images": 18}
STAGE = Pretraining(steps=3, learning_rate=1e-3, batch_size=6, warmup=0.5)


@pytest.fixture(scope="module")
def model(small_yaml):
    torch.manual_seed(0)
    return load_model("blip2_cir_align_prompt", small_yaml, is_eval=True)


@pytest.fixture(scope="module")
def embeds(model):
    images = torch.randn(4, 3, 56, 56, generator=torch.Generator().manual_seed(0))
    return model.encode_images(images).detach()


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return read_photos(make_photos(tmp_path_factory.mktemp("photos")))


@pytest.fixture
def config(photos, tmp_path) -> TrainConfig:
    """That of a fine-tuning on a tiny dataset, with a random encoder."""
    root = tmp_path / "seed-0"
    make_product_dataset(root, photos, ProductSettings(12, 8, 6, 4, 12, seed=0))
    write_model(root / "model" / "model.yaml", list(photos.products), efficientnet_lite.RANDOM)
    backbone = str(root / "model" / "model.yaml")
    return TrainConfig(dataset="CIRR", data_path=root, backbone=backbone, weights="random", device="cpu", num_workers=0)


def test_text_features_are_lavis_own(model):
    found = region_pretraining.text_features(model, model.tokenize(TEXTS))
    expected = model.extract_features({"text_input": TEXTS}, mode="text").text_embeds_proj[:, 0]
    torch.testing.assert_close(found, expected)


def test_hard_negatives_are_others_and_mostly_the_likely_ones():
    scores = torch.tensor([[9.0, 5.0, 0.0], [0.0, 9.0, 5.0], [5.0, 0.0, 9.0]])
    torch.manual_seed(0)
    drawn = torch.stack([hard_negatives(scores) for _ in range(300)])
    assert not (drawn == torch.arange(3)).any()
    assert (drawn == torch.tensor([1, 2, 0])).float().mean() > 0.95
    assert (hard_negatives(torch.eye(3) * 1e4) != torch.arange(3)).all()


def test_the_matching_loss_is_that_of_every_pair_by_itself(model, embeds, monkeypatch):
    monkeypatch.setattr(region_pretraining, "hard_negatives", lambda scores: (torch.arange(4) + int(scores[0, 1])) % 4)
    scores = torch.zeros(4, 4)
    scores[0, 1], scores[1, 0] = 1, 3  # of the transposed, the texts three further on
    losses = []
    for image, text, match in ((0, 0, 1), (1, 1, 1), (2, 1, 0), (3, 2, 0)):
        fused = model.fuse(embeds[image][None], *model.tokenize([TEXTS[text]]))
        losses.append(F.cross_entropy(model.itm_head(fused).mean(dim=1), torch.tensor([match])))
    found = matching_loss(model, embeds, model.tokenize(TEXTS), scores)
    torch.testing.assert_close(found, torch.stack(losses).mean())


def test_the_contrastive_loss_goes_both_ways(model, monkeypatch):
    monkeypatch.setattr(region_pretraining, "matching_loss", lambda *_: torch.zeros(()))
    frozen = FrozenFeatures(torch.randn(4, 17, 32, generator=torch.Generator().manual_seed(1)))
    tokens = model.target_tokens(model.encode_images(frozen))
    texts = region_pretraining.text_features(model, model.tokenize(TEXTS))
    scores = torch.stack([torch.stack([(tokens[i] @ texts[t]).max() for i in range(4)]) for t in range(4)]) / model.temp
    to_image = sum(-scores[n].log_softmax(0)[n] for n in range(4)) / 4
    to_text = sum(-scores[:, n].log_softmax(0)[n] for n in range(4)) / 4
    found = region_pretraining.image_text_loss(model, frozen, TEXTS)
    torch.testing.assert_close(found, (to_image + to_text) / 2)


def test_an_epoch_shows_every_image_once():
    batches = list(islice(endless_batches(11, 3, random.Random(0)), 6))
    for epoch in (batches[:3], batches[3:]):
        assert len({index for batch in epoch for index in batch}) == 9
    assert batches[:3] != batches[3:]
    assert len(next(endless_batches(2, 64, random.Random(0)))) == 2


def test_the_stage_makes_ordinary_weights_once(config, monkeypatch):
    path = pretrained_weights(config, STAGE)
    weights = read_weights(path)
    assert weights.format == "lavis" and weights.holds_vision
    assert not [name for name in weights.state if name.startswith("region_")]
    model = load_model(config.blip_model_name, config.backbone, weights=str(path))
    loaded = model.state_dict()
    assert all(torch.equal(value, loaded[name]) for name, value in weights.state.items())
    torch.manual_seed(config.seed)
    before = load_model(config.blip_model_name, config.backbone, weights="random").state_dict()
    changed = {name.split(".")[0] for name, value in weights.state.items() if not torch.equal(value, before[name])}
    assert changed >= {"Qformer", "query_tokens", "ln_vision", "text_proj", "vision_proj", "itm_head", "temp"}
    assert not changed & {"visual_encoder", "prompt_tokens"}
    monkeypatch.setattr(region_pretraining, "train", None)  # it is there
    assert pretrained_weights(config, STAGE) == path


def test_an_interrupted_stage_is_made_again_the_same(config, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(region_pretraining, "image_text_loss", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            pretrained_weights(config, STAGE)
    path = pretrained_weights(config, STAGE)
    first = read_weights(path).state
    assert [entry.suffix for entry in path.parent.iterdir() if entry.is_file() and entry != path] in ([], [".lock"])
    path.rename(path.with_suffix(".first"))
    again = read_weights(pretrained_weights(config, STAGE)).state
    assert all(torch.equal(value, again[name]) for name, value in first.items())


def test_other_settings_or_scenes_are_another_file(config):
    digest = region_pretraining.stage_digest
    other = Pretraining(**vars(STAGE) | {"steps": 4})
    assert len({digest(config, STAGE), digest(config, other)}) == 2
    before = digest(config, STAGE)
    described = Path(config.data_path) / "other" / "descriptions.json"
    described.write_text(described.read_text().replace("a large", "a small"))
    assert digest(config, STAGE) != before


def flags(folder: Path, photos: Path) -> list[str]:
    given = ["--regime", "pretrained", "--photos", str(photos), "--random-encoder", "--device", "cpu"]
    return [*given, "--folder", str(folder), "--seeds", "5"]


def test_without_the_encoder_nothing_is_begun(tmp_path, monkeypatch):
    monkeypatch.setattr(efficientnet_lite, "MODULE", "no_such_module_anywhere")
    given = [flag for flag in flags(tmp_path / "data", make_photos(tmp_path / "photos")) if flag != "--random-encoder"]
    with pytest.raises(InputError, match="`install_encoder` installs"):
        benchmark_regions.main([*given, "--csv", str(tmp_path / "rows.csv")])
    assert not (tmp_path / "data").exists()


def test_the_sheet_shows_triplets_and_runs_nothing(tmp_path, monkeypatch, capsys):
    from PIL import Image

    monkeypatch.setattr(region_datasets, "PRODUCTS", SIZES)
    sheet = tmp_path / "sheet.png"
    benchmark_regions.main([*flags(tmp_path / "data", make_photos(tmp_path / "photos")), "--sheet", str(sheet)])
    assert capsys.readouterr().out.endswith(f"sheet {sheet}\n")
    with Image.open(sheet) as image:
        assert image.height > 2000  # eleven groups, one below the other
    assert not (tmp_path / "data" / "runs").exists()


@pytest.mark.integration
def test_a_small_benchmark_of_the_pretrained_regime(warm_run, tmp_path, monkeypatch):
    monkeypatch.setattr(region_runs, "subprocess", SimpleNamespace(run=warm_run))
    monkeypatch.setattr(region_datasets, "PRODUCTS", SIZES)
    monkeypatch.setattr(region_datasets, "PRETRAINING", STAGE)
    monkeypatch.setattr(region_table, "STARTED", 0.0)  # nothing is learned here
    given = [*flags(tmp_path / "data", make_photos(tmp_path / "photos")), "--num-epochs", "1", "--workers", "1"]
    benchmark_regions.main([*given, "--arms", "none", WINNER])
    rows = read_rows(tmp_path / "data" / "rows.csv")
    found = {(row.arm, row.seed, row.step, row.learning_rate) for row in rows}
    assert found == {(arm, 5, 2, PRETRAINED.learning_rates[0]) for arm in ("none", WINNER)}
    logs = [path.read_text() for path in (tmp_path / "data" / "runs").glob("*/log.txt")]
    assert len(logs) == 2 and all("weights: LAVIS's pretrained Q-Former" in log for log in logs)
