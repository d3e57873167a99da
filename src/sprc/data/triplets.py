"""Training triplets: reference, target and sentence by name, and with a box file the regions of both images."""

from dataclasses import dataclass, fields
from pathlib import Path

from torch import Tensor
from torch.utils.data import Dataset, Subset

from lavis.datasets.region_boxes import FRAME_KEY, STORED, read_box_file, regions_of
from sprc.core.errors import InputError
from sprc.data.image_set import ImageSet, Loaded
from sprc.data.images import is_tagged, orientations
from sprc.data.options import MAX_REGIONS, BoxOptions


@dataclass(frozen=True)
class Query:
    """An entry of a captions file: find the target from the reference and the sentence.

    `caption` is one sentence, or several of one annotator. `targets` are names, the one to train with first; empty if
    only a test server knows them. `group` holds the names of CIRR's subset, and `pair_id` is the server's number.
    """

    reference: str
    caption: str | list[str]
    targets: tuple[str, ...] = ()
    group: tuple[str, ...] = ()
    pair_id: int | str | None = None

    @property
    def target(self) -> str:
        return self.targets[0]


class RegionBoxes(Tensor):
    """Boxes (n, 4) of one image, xyxy in [0, 1] of the input frame: a tensor that `collate_fn` never stacks."""


@dataclass(frozen=True)
class Triplet:
    """A training triplet: what `ImageSet.load_image` gives, caption or captions, names; regions with a box file.

    Boxes are (n, 4), xyxy in [0, 1] of the input frame; `dropped` counts those of both images that were too small.
    """

    image: Loaded
    target: Loaded
    caption: str | list[str]
    reference_name: str
    target_name: str
    reference_boxes: Tensor | None = None
    target_boxes: Tensor | None = None
    dropped: int = 0


class ImageRegions:
    """The regions of images in the input frame, from a box file.

    Args:
        box_file: boxes of the raw images, see `lavis.datasets.region_boxes`.
        images: the images, whose `preprocess` has `move_boxes`.
        names: those of them that need boxes.
        max_regions: the most regions of an image; the largest stay.

    Raises:
        InputError: the file is wrong, `preprocess` cannot move boxes, or the file does not say its frame and images
            with boxes carry an EXIF orientation.
    """

    def __init__(self, box_file: str | Path, images: ImageSet, names: list[str], max_regions: int = MAX_REGIONS):
        if not hasattr(images.preprocess, "move_boxes"):
            raise InputError(
                "a box file needs a preprocess that moves boxes: targetpad_transform or squarepad_transform"
            )
        if max_regions < 1:
            raise InputError(f"`max_regions` must be at least 1, not {max_regions}")
        file = read_box_file(box_file)
        self.raw = regions_of(file, names, images.title)
        self.move, self.max_regions = images.preprocess.move_boxes, max_regions
        self._moved: dict[str, tuple[Tensor, int]] = {}
        if file.frame is None:
            self._refuse_tagged(file.path, images)

    def _refuse_tagged(self, box_file: Path, images: ImageSet) -> None:
        """Boxes of a tool that applies an EXIF orientation would lie elsewhere: the file must say its frame then."""
        names = [name for name, regions in self.raw.items() if regions]
        found = orientations(map(images.path_of, names))
        tagged = [name for name, orientation in zip(names, found, strict=True) if is_tagged(orientation)]
        if tagged:
            raise InputError(
                f"{box_file} does not say in which frame its boxes are, and {len(tagged)} images of {images.title} that"
                f" have boxes carry an EXIF orientation, first {', '.join(tagged[:3])}: make it again with"
                f' roi_align_integration/tools/generate_cirr_boxes.py, or add the entry "{FRAME_KEY}": "{STORED}"'
                " to it if its boxes are of the pixels as they are stored"
            )

    def of(self, name: str, size: tuple[int, int]) -> tuple[Tensor, int]:
        """An image's `max_regions` largest boxes (n, 4), xyxy in [0, 1] of the input frame, and how many were dropped.

        `size` is (width, height) of the raw image in pixels. Boxes are moved when they are first asked for.
        """
        if name not in self._moved:
            found = self.move([region.box for region in self.raw.get(name, ())], *size)
            self._moved[name] = found.boxes[: self.max_regions], found.dropped
        boxes, dropped = self._moved[name]
        return boxes.clone().as_subclass(RegionBoxes), dropped


class TrainingTriplets(Dataset):
    """The triplets of a benchmark; an item is a dictionary of the fields of `Triplet`.

    Boxes are arrays there: a worker process hands over every tensor, however small, by a file of its own.
    """

    def __init__(self, images: ImageSet, queries: list[Query], regions: ImageRegions | None = None):
        self.images, self.queries, self.regions = images, queries, regions

    def __len__(self) -> int:
        return len(self.queries)

    def __getitem__(self, index: int) -> dict:
        found = self.triplet(index)
        sample = {field.name: getattr(found, field.name) for field in fields(found)}
        boxes = {name: sample[name] for name in ("reference_boxes", "target_boxes")}
        return sample | {name: None if part is None else part.numpy() for name, part in boxes.items()}

    def triplet(self, index: int) -> Triplet:
        """A triplet, with regions if there is a box file. Raises InputError that names an image that is broken."""
        query = self.queries[index]
        names = query.reference, query.target
        if self.regions is None:
            image, target = map(self.images.load_image, names)
            return Triplet(image, target, query.caption, *names)
        (reference, reference_boxes, few), (target, target_boxes, more) = map(self._with_regions, names)
        return Triplet(reference, target, query.caption, *names, reference_boxes, target_boxes, few + more)

    def _with_regions(self, name: str) -> tuple[Loaded, Tensor, int]:
        """An image, its boxes (n, 4) in the input frame, and how many were dropped; the file is opened once."""
        assert self.regions is not None
        if self.images.features is not None:
            return self.images.load_image(name), *self.regions.of(name, self.images.get_image_size(name))
        image, size = self.images.open_image(name)
        return image, *self.regions.of(name, size)


# The triplets that a training learns from: a benchmark's, or the first of them.
Triplets = TrainingTriplets | Subset[dict]


def open_regions(boxes: BoxOptions | None, images: ImageSet, queries: list[Query]) -> ImageRegions | None:
    """The regions of all images that training triplets name, None without boxes; errors as `ImageRegions`."""
    if boxes is None:
        return None
    names = [name for query in queries for name in (query.reference, query.target)]
    return ImageRegions(boxes.box_file, images, names, boxes.max_regions)
