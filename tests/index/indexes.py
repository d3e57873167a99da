"""Indexes of random tokens, and photographs, for the tests of this folder."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from sprc.data.preprocess import Preprocess
from sprc.index.engine import search
from sprc.index.gallery import Gallery
from sprc.index.gallery_build import TokenMaker
from sprc.index.gallery_files import IndexFolder, Maker
from sprc.index.gallery_rows import RowFiles
from sprc.index.photos import Photo

TOKENS, WIDTH, DIM = 3, 8, 14


def unit_rows(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """Random directions, float32, of length 1 along the last axis."""
    values = rng.standard_normal(shape).astype(np.float32)
    return values / np.linalg.norm(values, axis=-1, keepdims=True)


def write_index(path: Path, tokens: np.ndarray) -> Path:
    """An index of these tokens (N, Q, E) under made-up names."""
    maker, folder = Maker("model", "f" * 64, 1.25, DIM, *tokens.shape[1:]), IndexFolder(path)
    with RowFiles(folder, 0, maker) as files:
        rows = [files.add(f"{i:06}.png", Photo(1, i), (4, 3), row.astype(np.float16)) for i, row in enumerate(tokens)]
    folder.write_gallery(0, np.array(rows))
    folder.write_head(maker, 0, {})
    return path


def mean_colour_tokens(images: torch.Tensor) -> torch.Tensor:
    """(B, 3, S, S) -> tokens (B, Q, E) that depend on the pixels alone."""
    means = images.mean(dim=(2, 3))  # (B, 3)
    values = torch.cat([means, means.square(), means[:, :2]], dim=1)[:, None] * torch.arange(1, TOKENS + 1)[:, None]
    return torch.nn.functional.normalize(values.cos(), dim=-1)


def colour_maker(fingerprint: str = "f" * 64, **options) -> TokenMaker:
    """A maker of tokens that needs no model."""
    maker = Maker("colours", fingerprint, 1.25, DIM, TOKENS, WIDTH)
    return TokenMaker(maker, Preprocess(1.25, DIM), mean_colour_tokens, {}, batch_size=2, **options)


def paint(path: Path, colour: tuple[int, int, int], size: tuple[int, int] = (20, 16)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)


def plain_search(tokens: np.ndarray, query: np.ndarray, k: int) -> list[tuple[int, float, int]]:
    """(place, score, token) of the k best images, written as the rule is told."""
    found = []
    for place, image in enumerate(tokens.astype(np.float16).astype(np.float64)):
        cosines = [float(np.float32(token @ query.astype(np.float64))) for token in image]
        found.append((place, max(cosines), cosines.index(max(cosines))))
    return sorted(found, key=lambda match: (-match[1], match[0]))[:k]


def found_by(gallery: Gallery, engine, queries: np.ndarray, k: int) -> list[list[tuple[int, float, int]]]:
    return [[(m.position, m.score, m.token) for m in row] for row in search(gallery, engine, queries, k)]


def random_gallery(path: Path, seed: int, images: int, copies: bool) -> tuple[Gallery, np.ndarray, np.ndarray, int]:
    """(gallery, its tokens (N, 3, 8), queries (5, 8), a number of results); with `copies` there are ties everywhere."""
    rng = np.random.default_rng(seed)
    tokens = unit_rows(rng, images, TOKENS, WIDTH)
    if copies:
        tokens = tokens[rng.integers(0, max(1, images // 3), images)]
    gallery = Gallery(write_index(path / "i", tokens))
    return gallery, tokens, unit_rows(rng, 5, WIDTH), int(rng.integers(1, images + 1))
