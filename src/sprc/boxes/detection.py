"""The boxes of many images: saliency in processes, YOLO in batches."""

from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from itertools import islice
from pathlib import Path

from PIL import Image

from lavis.datasets.region_boxes import Region
from sprc.boxes.saliency import boxes_of_file
from sprc.boxes.yolo import Detector
from sprc.core import interrupts
from sprc.core.errors import ImageError
from sprc.data.images import open_rgb

METHODS = ("yolo", "saliency", "hybrid")


@dataclass(frozen=True)
class BoxSettings:
    """What fixes the boxes of an image.

    `method` is one of `METHODS`. `confidence` is the lowest score of an object of YOLO, `min_area` the smallest area of
    a box as a part of the image's, `max_boxes` the most boxes of an image.
    """

    method: str = "saliency"
    confidence: float = 0.25
    min_area: float = 0.005
    max_boxes: int = 5
    yolo_weights: str = ""

    def recipe(self) -> dict:
        """The settings that the method reads."""
        of_yolo = ("confidence", "yolo_weights") if self.method == "saliency" else ()
        return {name: value for name, value in asdict(self).items() if name not in of_yolo}


@dataclass(frozen=True)
class Found:
    """The boxes of one image and what made them, or the reason why the image could not be read."""

    name: str
    regions: list[Region]
    method: str
    error: str = ""


@dataclass(frozen=True)
class BoxFinder:
    """Finds the boxes of images. `detector` is needed for every method but saliency; `batch_size` is of YOLO."""

    settings: BoxSettings
    detector: Detector | None = None
    num_workers: int = 0
    batch_size: int = 32

    def find(self, images: dict[str, Path]) -> Iterator[Found]:
        """The boxes of every image, name -> file, in order."""
        return self._salient(images) if self.detector is None else self._detected(images)

    def _salient(self, images: dict[str, Path]) -> Iterator[Found]:
        work = partial(boxes_of_file, min_area=self.settings.min_area, max_boxes=self.settings.max_boxes)
        if self.num_workers == 0:
            yield from (_found(name, work(path), "saliency") for name, path in images.items())
            return
        with ProcessPoolExecutor(self.num_workers, initializer=interrupts.leave_interrupts_to_parent) as pool:
            answers = pool.map(work, images.values(), chunksize=16)
            yield from (_found(name, answer, "saliency") for name, answer in zip(images, answers, strict=True))

    def _detected(self, images: dict[str, Path]) -> Iterator[Found]:
        """YOLO's boxes, a batch at a time; threads read the images."""
        with ThreadPoolExecutor(max(1, self.num_workers)) as pool:
            for batch in _batches(images, self.batch_size):
                opened = list(pool.map(_open_image, [path for _, path in batch]))
                answers = self._detect([image for image in opened if isinstance(image, Image.Image)])
                for (name, path), image in zip(batch, opened, strict=True):
                    if isinstance(image, str):
                        yield Found(name, [], "yolo", image)
                    else:
                        yield self._or_salient(name, path, next(answers))

    def _detect(self, images: list[Image.Image]) -> Iterator[list[Region]]:
        limits = self.settings.confidence, self.settings.min_area, self.settings.max_boxes
        assert self.detector is not None
        return iter(self.detector.detect(images, *limits) if images else [])

    def _or_salient(self, name: str, path: Path, regions: list[Region]) -> Found:
        """YOLO's boxes of an image; for `hybrid` those of saliency if there are none."""
        if regions or self.settings.method == "yolo":
            return Found(name, regions, "yolo")
        return _found(name, boxes_of_file(path, self.settings.min_area, self.settings.max_boxes), "saliency")


def _found(name: str, answer: list[Region] | str, method: str) -> Found:
    return Found(name, [], method, answer) if isinstance(answer, str) else Found(name, answer, method)


def _batches(images: dict[str, Path], size: int) -> Iterator[list[tuple[str, Path]]]:
    items = iter(images.items())
    while batch := list(islice(items, size)):
        yield batch


def _open_image(path: Path) -> Image.Image | str:
    try:
        return open_rgb(path)
    except ImageError as error:
        return str(error)
