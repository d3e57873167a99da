"""What every benchmark gives to the rest of the code, which knows this interface alone."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor

from sprc.core.errors import InputError
from sprc.core.reading import expanded, read_json
from sprc.data.image_set import ImageSet
from sprc.data.options import BoxOptions
from sprc.data.preprocess import Preprocess
from sprc.data.triplets import ImageRegions, Query, TrainingTriplets, open_regions

Metrics = dict[str, float]
FIX = "see cirr_dataset/README.md for the folders and where the files come from"


@dataclass(frozen=True)
class Preset:
    """What a benchmark fixes for a training, as upstream.

    `tag` and `best_file` are parts of the names of a run's folder and of its best checkpoint. `monitor` is the metric
    that picks the best epoch. `schedule` maps the planned epochs to arguments of OneCycleLR, `epochs` and `pct_start`
    among them. The rest are the values of the settings that a user leaves open.
    """

    tag: str
    monitor: str
    best_file: str
    schedule: Callable[[int], dict[str, float]]
    num_epochs: int
    learning_rate: float
    loss_rtc: float
    loss_align: float


@dataclass(frozen=True)
class RetrievalTask:
    """Q queries against the N images of a gallery; `metrics` maps scores (Q, N) to named percentages.

    `ranks_reference` says whether a query's reference takes part in its ranking. With `regions` the images of the
    gallery, and the references among them, are also seen through their boxes.
    """

    gallery: ImageSet
    queries: list[Query]
    sentences: list[str]
    metrics: Callable[[Tensor], Metrics] = field(default=lambda scores: {})
    ranks_reference: bool = True
    regions: ImageRegions | None = None

    def with_boxes(self, boxes: BoxOptions | None) -> "RetrievalTask":
        """The task with the boxes of a file, if there is one.

        Raises InputError as `ImageRegions`, and if an image is not in the file: scores of what is seen whole and of
        what is seen through boxes are not alike.
        """
        if boxes is None:
            return self
        regions = ImageRegions(boxes.box_file, self.gallery, self.gallery.names, boxes.max_regions)
        absent = [name for name in self.gallery.names if name not in regions.raw]
        if absent:
            raise InputError(
                f"{boxes.box_file} lacks {len(absent)} of {len(self.gallery)} images of {self.gallery.title}, first"
                f" {', '.join(absent[:3])}: make boxes of all of them, and write [] for an image without any"
            )
        return replace(self, regions=regions)

    def boxes_of(self, names: Sequence[str]) -> list[Tensor] | None:
        """The boxes (n_i, 4) of images of the gallery, xyxy in [0, 1] of the input frame; None without a box file."""
        if self.regions is None:
            return None
        return [self.regions.of(name, self.gallery.get_image_size(name))[0] for name in names]

    @property
    def reference_names(self) -> list[str]:
        return [query.reference for query in self.queries]


@dataclass(frozen=True)
class Validation:
    """Tasks by name, each ranked by itself, and how their metrics make one row of a table."""

    tasks: dict[str, RetrievalTask]
    summary: Callable[[dict[str, Metrics]], Metrics]

    def with_boxes(self, boxes: BoxOptions | None) -> "Validation":
        """Every task with the boxes of a file, if there is one. Raises InputError as `ImageRegions`."""
        return replace(self, tasks={name: task.with_boxes(boxes) for name, task in self.tasks.items()})

    def __str__(self) -> str:
        return "; ".join(
            f"{name}: {len(task.queries)} queries, {len(task.gallery)} images" for name, task in self.tasks.items()
        )

    @property
    def galleries(self) -> list[ImageSet]:
        return [task.gallery for task in self.tasks.values()]


class Benchmark(ABC):
    """A dataset with its annotations, its way to train, and its way to measure.

    Args:
        data_path: the folder of the dataset; None for the one in this repository.
        gallery: which images are ranked, one of `protocols`; None for the first.

    Raises InputError for a protocol that the benchmark does not have; every method for a file or an entry that is
    missing or wrong, by name.
    """

    name: ClassVar[str]
    preset: ClassVar[Preset]
    protocols: ClassVar[dict[str, str]]  # -> what is ranked, in words
    default_root: ClassVar[Path]

    def __init__(self, data_path: str | Path | None = None, gallery: str | None = None):
        self.root = expanded(self.default_root if data_path is None else data_path)
        self.gallery = gallery or next(iter(self.protocols))
        if self.gallery not in self.protocols:
            raise InputError(f"`gallery` {gallery} is not for {self.name}, which has {' and '.join(self.protocols)}")

    @property
    def protocol(self) -> str:
        """What validation ranks, in words."""
        return self.protocols[self.gallery]

    @abstractmethod
    def annotation_files(self) -> Iterable[Path]:
        """The annotation files that a training reads."""

    @abstractmethod
    def training_images(self, preprocess: Preprocess) -> tuple[ImageSet, list[Query]]:
        """The training images and triplets."""

    @abstractmethod
    def validation(self, preprocess: Preprocess) -> Validation:
        """The queries, galleries and metrics of the validation split."""

    def training_triplets(self, preprocess: Preprocess, boxes: BoxOptions | None = None) -> TrainingTriplets:
        """The training triplets, with regions if there are boxes."""
        images, queries = self.training_images(preprocess)
        return TrainingTriplets(images, queries, open_regions(boxes, images, queries))

    def training_sentences(self, captions: list) -> list[str]:
        """One sentence of what each annotator wrote, in training; random choices draw from torch's CPU generator."""
        return captions

    def test_task(self, preprocess: Preprocess) -> RetrievalTask:
        """The queries of the test server, whose targets are not known."""
        raise InputError(f"{self.name} has no test server that this project writes files for")

    def write_submission(self, task: RetrievalTask, scores: Tensor, place: Path) -> list[Path]:
        """Rank, check and write the files for the test server; `place` is the folder, then the name of the run."""
        raise InputError(f"{self.name} has no test server that this project writes files for")


def read_entries(path: Path, problem_of: Callable[[Any], str | None]) -> list[dict]:
    """The entries of a captions file; `problem_of` says what is wrong with one, or None.

    Raises InputError that names the file and the first entry that is wrong.
    """
    entries = read_json(path, list, FIX)
    if not entries:
        raise InputError(f"{path} holds no caption: download it again")
    for index, entry in enumerate(entries):
        problem = problem_of(entry)
        if problem:
            raise InputError(f"{path}: entry {index} {problem}; correct it, or download the file again")
    return list(entries)
