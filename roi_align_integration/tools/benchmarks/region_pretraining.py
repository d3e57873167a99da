"""The image-text stage of the pretrained regime: a Q-Former learns what scenes hold, as BLIP-2's does, before SPRC.

It is contrastive, text to image and back, and matching: whether image and text belong together, with hard negatives.
"""

import hashlib
import random
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from product_dataset import DESCRIPTIONS_FILE, OTHER, SETTINGS_FILE
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

from lavis.models import Blip2QformerCirAlignPrompt, load_model
from lavis.models.blip2_models.frozen_features import FrozenFeatures
from lavis.models.blip2_models.scores import token_scores, unit
from lavis.models.checkpoint import state_to_save
from lavis.processors import BlipCaptionProcessor
from sprc.benchmarks.cirr import read_image_split
from sprc.core.files import atomic_writer, made_and_held, read_bytes, read_json
from sprc.core.runtime import choose_runtime
from sprc.data.image_set import ImageSet
from sprc.retrieval.loading import preprocess_of
from sprc.training.config import TrainConfig
from sprc.training.optimization import Optimization

AT_ONCE = 32  # images in the encoder at a time
STEPS_PER_REPORT = 50
AGAIN = "remove the dataset's folder"
Text = tuple[Tensor, Tensor]  # ids and mask, (B, L) each


@dataclass(frozen=True)
class Pretraining:
    """How long and how fast the stage learns; `warmup` is the part of it in which the rate rises."""

    steps: int
    learning_rate: float
    batch_size: int
    warmup: float


def pretrained_weights(config: TrainConfig, settings: Pretraining) -> Path:
    """The weights that the stage ends with, as LAVIS lays out its own; trained if they are not there.

    `config` is that of a fine-tuning: its dataset, of products, its backbone, device and seed. The file lies beside the
    data, and its name tells what it was trained with. If a second process wants it, it waits.
    """
    folder = config.benchmark.root / "pretrained"
    path = folder / f"{stage_digest(config, settings)}.pth"
    with made_and_held(folder):
        if not path.is_file():
            state = train(config, settings)
            with atomic_writer(path) as file:
                torch.save({"model": state}, file)
    return path


def stage_digest(config: TrainConfig, settings: Pretraining) -> str:
    """16 hexadecimal digits of all that the weights depend on."""
    root, backbone = config.benchmark.root, Path(config.backbone)
    digest = hashlib.sha256(f"{sorted(asdict(settings).items())} {config.seed}".encode())
    for path in (root / SETTINGS_FILE, root / OTHER / DESCRIPTIONS_FILE, backbone):
        digest.update(read_bytes(path, AGAIN))
    return digest.hexdigest()[:16]


def train(config: TrainConfig, settings: Pretraining) -> dict[str, Tensor]:
    """The stage from random weights -> the state dict, vision encoder included, region parameters not."""
    torch.manual_seed(config.seed)
    runtime = choose_runtime(config.device)
    model = load_model(config.blip_model_name, config.backbone, weights="random").to(runtime.device)
    model.itm_head.requires_grad_(True)
    images, descriptions = described_images(config)
    features = frozen_features(model, images)
    plan = replace(
        config, learning_rate=settings.learning_rate, warmup=settings.warmup, num_epochs=1, schedule_epochs=1
    )
    optimization = Optimization(model, plan, settings.steps, runtime)
    rng = random.Random(config.seed)
    batches = endless_batches(len(features), settings.batch_size, rng)
    bar = tqdm(range(settings.steps), desc=f"image-text stage, seed {config.seed}", dynamic_ncols=True)
    for step, batch in zip(bar, batches, strict=False):
        texts = [rng.choice(descriptions[index]) for index in batch]
        with runtime.autocast():
            loss = image_text_loss(model, FrozenFeatures(features[batch].to(runtime.device)), texts)
        optimization.scaler.scale(loss).backward()
        optimization.step()
        if step % STEPS_PER_REPORT == 0:
            bar.set_postfix(loss=f"{loss.item():.3f}")
    return {name: value.cpu() for name, value in state_to_save(model).items()}


def described_images(config: TrainConfig) -> tuple[ImageSet, list[list[str]]]:
    """The other scenes of a dataset of products, and the descriptions of each image."""
    root, process = config.benchmark.root / OTHER, BlipCaptionProcessor()
    images = ImageSet("the other scenes", root, read_image_split(root, "train"), preprocess_of(config))
    described = read_json(root / DESCRIPTIONS_FILE, dict, AGAIN)
    return images, [[process(text) for text in described[name]] for name in images.names]


def frozen_features(model: Blip2QformerCirAlignPrompt, images: ImageSet) -> Tensor:
    """The encoder's output of all images, (N, P + 1, D), float16, on the CPU."""
    batches = tqdm(DataLoader(images, AT_ONCE), desc=f"features of {images.title}", dynamic_ncols=True)
    return torch.cat([model.encode_frozen(batch.image.to(model.device)).half().cpu() for batch in batches])


def endless_batches(count: int, size: int, rng: random.Random) -> Iterator[list[int]]:
    """Batches of numbers below `count`, epoch after epoch in a new order; what an epoch leaves over is left out."""
    size = min(size, count)
    while True:
        order = rng.sample(range(count), count)
        yield from (order[first : first + size] for first in range(0, count - size + 1, size))


def image_text_loss(model: Blip2QformerCirAlignPrompt, images: FrozenFeatures, texts: list[str]) -> Tensor:
    """The sum of the contrastive and the matching loss of B images and a description of each: a 0-d tensor."""
    image_embeds, text = model.encode_images(images), model.tokenize(texts)
    scores = token_scores(text_features(model, text), model.target_tokens(image_embeds)) / model.temp
    own = torch.arange(len(scores), device=scores.device)
    contrastive = (F.cross_entropy(scores, own) + F.cross_entropy(scores.T, own)) / 2
    return contrastive + matching_loss(model, image_embeds, text, scores.detach())


def text_features(model: Blip2QformerCirAlignPrompt, text: Text) -> Tensor:
    """Texts alone -> (B, E), L2-normalised."""
    no_prompts = model.prompt_tokens[:, :0].detach().expand(len(text[0]), -1, -1)
    return unit(model.text_proj(model.Qformer.encode_prompted_text(no_prompts, *text)[:, 0]))  # [CLS] -> (B, E)


def matching_loss(model: Blip2QformerCirAlignPrompt, image_embeds: Tensor, text: Text, scores: Tensor) -> Tensor:
    """Cross-entropy of `itm_head` over B images: the first half with their own texts, the others with texts of other
    images, drawn by their scores (B texts, B images).
    """
    own = torch.arange(len(scores), device=scores.device)
    match = own < len(scores) // 2
    chosen = torch.where(match, own, hard_negatives(scores.T))
    ids, mask = (part[chosen] for part in text)
    logits = model.itm_head(model.fuse(image_embeds, ids, mask)).float().mean(dim=1)  # (B, Q, H) -> (B, 2)
    return F.cross_entropy(logits, match.long())


def hard_negatives(scores: Tensor) -> Tensor:
    """For every row a column that is not its own, drawn by the softmax of the scores: (B, B) -> (B,)."""
    weights = (scores.float().softmax(dim=1) + 1e-6).fill_diagonal_(0)
    return torch.multinomial(weights, 1)[:, 0]
