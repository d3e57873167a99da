"""Made-up indexes for benchmark_search.py: tokens that lie in clusters, as those of photographs do."""

from pathlib import Path

import numpy as np

from sprc.index.gallery import Gallery
from sprc.index.gallery_files import IndexFolder, Maker
from sprc.index.gallery_rows import RowFiles
from sprc.index.photos import Photo

IMAGES_OF_A_CLUSTER = 100
AT_ONCE = 1000  # images
IMAGE_SPREAD, TOKEN_SPREAD, QUERY_SPREAD = 0.8, 1.0, 1.02  # of noise, for a centre of length 1
SAVED = 20_000  # images


class TokenSource:
    """Random tokens: around the centre of their image, and this around that of its cluster.

    Noise has a spectrum that falls as 1 / sqrt(number of the direction): with equal noise in all directions the
    neighbours of a query would be chance, which no learned embedding has.
    """

    def __init__(self, images: int, tokens: int, width: int, seed: int = 0):
        self.images, self.tokens, self.width, self.seed = images, tokens, width, seed
        rng = np.random.default_rng(seed)
        spectrum = np.arange(1, width + 1) ** -0.5
        self.spectrum = (spectrum / np.linalg.norm(spectrum)).astype(np.float32)
        self.turn = np.linalg.qr(rng.standard_normal((width, width)))[0].astype(np.float32)
        self.centres = self._noise(rng, max(1, images // IMAGES_OF_A_CLUSTER))  # (C, E)

    def _noise(self, rng: np.random.Generator, *shape: int) -> np.ndarray:
        """(*shape, E), of length about 1."""
        return (rng.standard_normal((*shape, self.width), dtype=np.float32) * self.spectrum) @ self.turn

    def some(self, start: int, stop: int) -> np.ndarray:
        """(n, Q, E) float16: the tokens of some images, which depend on `start` and the seed alone."""
        rng = np.random.default_rng((self.seed, start))
        centres = self.centres[rng.integers(len(self.centres), size=stop - start)]
        images = unit(centres + IMAGE_SPREAD * self._noise(rng, stop - start))[:, None]
        return unit(images + TOKEN_SPREAD * self._noise(rng, stop - start, self.tokens)).astype(np.float16)

    def queries(self, gallery: Gallery, count: int, seed: int) -> np.ndarray:
        """(count, E) float32: a token of a random image and noise, of a cosine of about 0.7 with that token."""
        rng = np.random.default_rng((self.seed, seed, 1))
        images = gallery.tokens_of(rng.integers(len(gallery), size=count))
        chosen = images[np.arange(count), rng.integers(self.tokens, size=count)].astype(np.float32)
        return unit(chosen + QUERY_SPREAD * self._noise(rng, count))


def unit(values: np.ndarray) -> np.ndarray:
    return values / np.linalg.norm(values, axis=-1, keepdims=True)


def write_made_up_index(path: Path, source: TokenSource) -> None:
    """An index of made-up tokens under made-up names; one that is whole already stays."""
    folder = IndexFolder(path)
    if folder.exists():
        return
    maker = Maker("made up", f"{source.seed:064x}", 1.25, 224, source.tokens, source.width)
    with RowFiles(folder, 0, maker) as files:
        for start in range(0, source.images, AT_ONCE):
            tokens = source.some(start, min(start + AT_ONCE, source.images))
            for number, row in enumerate(tokens, start):
                files.add(f"{number:09}.jpg", Photo(1, number), (640, 480), row)
            if start % SAVED == 0:
                files.save()
    folder.write_gallery(0, np.arange(source.images))
    folder.write_head(maker, 0, {})
