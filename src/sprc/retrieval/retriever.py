"""Searches a folder of photographs: index it once, then ask with a reference image and a sentence that changes it."""

import logging
from collections.abc import Callable, Sequence
from functools import cached_property, partial
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from lavis.models import Blip2QformerCirAlignPrompt
from lavis.processors.rgb import as_rgb
from sprc.core.command_line import absolute
from sprc.core.errors import InputError
from sprc.core.machine_faults import explained
from sprc.core.reading import readable
from sprc.core.runtime import Runtime, choose_runtime
from sprc.data.images import naming_image, open_rgb
from sprc.data.preprocess import Preprocess
from sprc.index.engine import Engine, Match, search
from sprc.index.engines import choose_engine
from sprc.index.exact import ExactEngine
from sprc.index.gallery import Gallery
from sprc.index.gallery_build import Changes, TokenMaker, update_index
from sprc.index.gallery_files import Maker
from sprc.index.ivf import IvfEngine, read_ivf
from sprc.index.ivf_build import build_ivf
from sprc.index.names import IVF_FROM
from sprc.retrieval.backbone_copy import keep_backbone
from sprc.retrieval.checkpoint_run import BACKBONE_FILE, OF_RUN
from sprc.retrieval.loading import load_weights, preprocess_of, scoring_fingerprint
from sprc.retrieval.options import is_yaml
from sprc.retrieval.probes import probe_queries
from sprc.retrieval.results import Result
from sprc.retrieval.retriever_options import RetrieverConfig, config_of_checkpoint, config_of_index
from sprc.retrieval.sentences import readable_sentence

logger = logging.getLogger(__name__)

ImageLike = str | Path | Image.Image


class Retriever:
    """A model, and the index that it searches.

        retriever = Retriever.from_checkpoint("models/<run>/saved_models/tuned_clip_arithmetic.pt")
        retriever.index("photos", "photos_index")
        for result in retriever.search("photos/dog.jpg", "the same dog on a beach", k=5):
            print(result.rank, result.name, result.score)

    `Retriever.from_index("photos_index")` opens an index that is there, with the model that made it.
    """

    def __init__(self, config: RetrieverConfig):
        self.config = config
        self.runtime: Runtime = choose_runtime(config.device, config.precision)
        self.preprocess: Preprocess = preprocess_of(config)
        self.model: Blip2QformerCirAlignPrompt
        self.process_sentence: Callable[[str], str]
        self.model, self.process_sentence = load_weights(config, config.model_path, self.runtime.device)
        self._gallery: Gallery | None = None
        self.engine: Engine  # of the index that is open
        self._photos: Path | None = None

    @classmethod
    def from_checkpoint(cls, path: str | Path, **settings) -> "Retriever":
        """The model of a checkpoint of any format, with backbone and preprocess of its run.

        `settings` are fields of `RetrieverConfig`. Raises InputError for weights that are missing or do not fit.
        """
        return cls(config_of_checkpoint(path, settings))

    @classmethod
    def from_index(cls, path: str | Path, photos: str | Path | None = None, **settings) -> "Retriever":
        """The model that made an index, which is opened. Raises InputError as `open`, and if the weights have moved."""
        index = absolute(path)
        retriever = cls(config_of_index(index, settings))
        retriever.open(index, photos)
        return retriever

    def index(self, folder: str | Path, path: str | Path) -> Changes:
        """Index all photographs below a folder at `path`, or bring that index up to date; and open it.

        Raises InputError as `update_index`.
        """
        place = absolute(path)
        if self.config.ivf == "always" and find_spec("faiss") is None:
            raise InputError('`ivf` always needs faiss: pip install "sprc-regions[index]"')
        with explained(f"{self.config.batch_size} photographs at a time are too much: lower `batch_size`"):
            changes = update_index(absolute(folder), place, self._token_maker())
        gallery = self.open(place)
        if self._wants_lists(gallery):
            build_ivf(gallery, probe_queries(self), ExactEngine(gallery, self.config.memory_mib, self.runtime.device))
            self.engine = self._engine(gallery)
        return changes

    def _wants_lists(self, gallery: Gallery) -> bool:
        """Whether an IVF is to be built; one of the gallery as it is now stays."""
        many = len(gallery) >= IVF_FROM and find_spec("faiss") is not None
        wanted = self.config.ivf == "always" or (self.config.ivf == "auto" and many)
        return wanted and read_ivf(gallery) is None

    def _engine(self, gallery: Gallery) -> Engine:
        config = self.config
        engine = choose_engine(gallery, config.engine, self.runtime.device, config.memory_mib, config.uri)
        if isinstance(engine, IvfEngine):
            logger.info(f"search by lists, not always exact: {read_ivf(gallery)}")
        return engine

    def open(self, path: str | Path, photos: str | Path | None = None) -> Gallery:
        """Open the index at `path`; `photos` is the folder of its photographs, if that has moved.

        Raises InputError for what is no whole index, one of another model, or a folder with none of its photographs;
        the index that was open then stays so.
        """
        gallery = Gallery(absolute(path))
        if not gallery.maker.same_as(self.maker):
            raise InputError(
                f"the index {gallery.path} is of {gallery.maker}, not of {self.maker}: give the weights that made it"
            )
        moved = None if photos is None else _folder_of(gallery, absolute(photos))
        self.engine = self._engine(gallery)
        self._gallery, self._photos = gallery, moved
        return gallery

    @cached_property
    def maker(self) -> Maker:
        """What an index says of this model."""
        path, config = self.config.model_path, self.model.config
        name = "/".join(path.parts[-3:]) if path.parent.name == "saved_models" else path.name
        shape = config.qformer.num_query_token, config.embed_dim
        ratio, dim = self.preprocess.target_ratio, self.preprocess.dim
        return Maker(name, scoring_fingerprint(self.model), ratio, dim, *shape)

    def _token_maker(self) -> TokenMaker:
        config = self.config
        settings = {name: getattr(config, name) for name in OF_RUN}
        if is_yaml(config.backbone):
            settings["backbone"] = BACKBONE_FILE
        return TokenMaker(
            self.maker,
            self.preprocess,
            self._target_tokens,
            settings,
            checkpoint=config.model_path,
            keep=partial(keep_backbone, config.backbone),
            batch_size=config.batch_size,
            num_workers=config.num_workers,
        )

    @torch.no_grad()
    def _target_tokens(self, images: Tensor) -> Tensor:
        """Images (B, 3, S, S) -> target tokens (B, Q, E)."""
        with self.runtime.autocast(self.runtime.scoring):
            return self.model.extract_target_features(images.to(self.runtime.device))[0]

    @property
    def gallery(self) -> Gallery:
        """The index that is open. Raises InputError if none is."""
        if self._gallery is None:
            raise InputError("no index is open: call index or open first")
        return self._gallery

    @property
    def description(self) -> str:
        """What searches where, for a picture or a page."""
        return f"{self.gallery.maker}; {len(self.gallery)} photographs of {self.photos.name}"

    @property
    def photos(self) -> Path:
        """The folder of the photographs."""
        return self._photos or self.gallery.photos

    def search(self, image: ImageLike, text: str, k: int = 10, keep_reference: bool = False) -> list[Result]:
        """The k photographs that fit best what the sentence makes of the reference, best first.

        Args:
            image: the reference: a file, a name in the index, or a PIL image.
            text: what is to be different.
            k: how many; at most the photographs of the index.
            keep_reference: let the reference itself be among them, if it is in the index.

        Raises InputError for an image that is missing or broken, an empty sentence, or too large a k.
        """
        return self.search_batch([image], [text], k, keep_reference)[0]

    def search_batch(
        self, images: Sequence[ImageLike], texts: Sequence[str], k: int = 10, keep_reference: bool = False
    ) -> list[list[Result]]:
        """`search` of several queries at once: references and sentences pair by pair."""
        if len(images) != len(texts):
            raise InputError(f"{len(images)} images and {len(texts)} sentences: give as many of both")
        excluded = [None if keep_reference else self.position_of(image) for image in images]
        more = 1 if any(position is not None for position in excluded) else 0
        if not 1 <= k <= len(self.gallery) - more:
            without = ", without the reference" if more else ""
            raise InputError(f"`top_k` is {k}: the index has {len(self.gallery) - more} photographs{without}")
        if not images:
            return []
        matches = search(self.gallery, self.engine, self.encode_queries(images, texts), k + more)
        return [
            self._results([match for match in row if match.position != position][:k])
            for row, position in zip(matches, excluded, strict=True)
        ]

    def _results(self, matches: list[Match]) -> list[Result]:
        images, photos = self.gallery.images, self.photos
        found = [(match, images[match.position]) for match in matches]
        return [
            Result(rank, image.name, photos / image.name, match.score, match.token, image.size)
            for rank, (match, image) in enumerate(found, start=1)
        ]

    @torch.no_grad()
    def look(self, results: Sequence[Result]) -> list[np.ndarray]:
        """Where the winning token of each result looks: (g, g) on the input frame, rows from top to bottom, float32.

        It is the model's last cross-attention, `token_attention`. Raises InputError for a photograph that has gone.
        """
        maps: list[np.ndarray] = []
        for first in range(0, len(results), self.config.batch_size):
            part = results[first : first + self.config.batch_size]
            gone = next((result for result in part if not result.path.exists()), None)
            if gone is not None:
                raise InputError(f"the photograph {gone.path} has gone: run the command index again")
            attention = self.model.token_attention(self.encode_images([result.path for result in part]))  # (B, Q, g, g)
            maps += [attention[i, result.token].cpu().numpy() for i, result in enumerate(part)]
        return maps

    @torch.no_grad()
    def encode_queries(self, images: Sequence[ImageLike], texts: Sequence[str]) -> np.ndarray:
        """References and sentences -> query features (B, E), float32, L2-normalised. Errors as `search`."""
        sentences = [readable_sentence(text, self.process_sentence, self.model) for text in texts]
        encoded = []
        for first in range(0, len(images), self.config.batch_size):
            part = slice(first, first + self.config.batch_size)
            embeds = self.encode_images(images[part])
            with self.runtime.autocast(self.runtime.scoring):
                encoded.append(self.model.extract_query_features(embeds, sentences[part]).float().cpu())
        return torch.cat(encoded).numpy()

    @torch.no_grad()
    def encode_images(self, images: Sequence[ImageLike]) -> Tensor:
        """Images -> `ln_vision` output (B, P + 1, D), on the device. Raises InputError as `search`."""
        frames = torch.stack([self.preprocess(self.open_image(image)) for image in images])  # (B, 3, S, S)
        with self.runtime.autocast(self.runtime.scoring):
            return self.model.encode_images(frames.to(self.runtime.device))

    def open_image(self, image: ImageLike) -> Image.Image:
        """An image in RGB. Raises InputError if there is no such file, or if it is broken."""
        if isinstance(image, Image.Image):
            return as_rgb(image)
        path = self.path_of(image)
        with naming_image(str(image), path):
            return open_rgb(path)

    def path_of(self, image: str | Path) -> Path:
        """The file of an image: a path that is there, or that of a name in the index."""
        name = str(image)
        is_name = self._gallery is not None and name in self._gallery.position_of
        if is_name and not Path(name).exists():
            return self.photos / name
        path = absolute(image)
        with readable(path):
            if path.exists():
                return path
        raise InputError(f"no image {image}: give a file, or the name of a photograph in the index")

    def position_of(self, image: ImageLike) -> int | None:
        """The place of an image in the gallery, if its file is one of the photographs, or a link to one."""
        if isinstance(image, Image.Image):
            return None
        path, photos = self.path_of(image), self.photos.resolve()
        places = path.parent.resolve() / path.name, path.resolve()  # a photograph may itself be a link
        names = [place.relative_to(photos).as_posix() for place in places if place.is_relative_to(photos)]
        return next((self.gallery.position_of[name] for name in names if name in self.gallery.position_of), None)


def _folder_of(gallery: Gallery, folder: Path) -> Path:
    """The folder to which the photographs have moved. Raises InputError if none of them is there."""
    if not folder.is_dir():
        raise InputError(f"no folder {folder}: give that of the photographs as `photos`")
    if not any((folder / name).exists() for name in gallery.names):
        raise InputError(f"{folder} has none of the photographs of {gallery.path}: give their folder as `photos`")
    return folder
