"""A contact sheet of what a comparison of region losses trains on: pairs, their sentences, groups and boxes."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from region_arms import image_paths
from region_datasets import Source

from lavis.datasets.region_boxes import Region, load_boxes
from sprc.benchmarks.cirr import cirr_files
from sprc.boxes.drawing import save_png
from sprc.core.reading import read_json
from sprc.report.pictures import Picture, Role
from sprc.report.sheets import ResultLine, SheetRow, contact_sheet

ROWS = 12  # of a sheet
AGAIN = "make or download it again"


def draw_sheet(source: Source, seed: int, output: Path) -> None:
    """Write the sheet of a seed's training triplets, as PNG. Raises InputError for data that cannot be read."""
    source.make_dataset(seed)
    root = source.root(seed)
    captions, _ = cirr_files(root, "train")
    entries = read_json(captions, list, AGAIN)
    drawer = Drawer(load_boxes(source.true_boxes(seed)), image_paths(root))
    rows = [drawer.row(entry) for entry in of_other_groups(entries)]
    notes = [f"{len(entries)} triplets; reference (blue) and target (green); boxes as the box file has them"]
    save_png(contact_sheet(rows, f"training triplets of seed {seed}", notes), output)


def of_other_groups(entries: list[dict]) -> list[dict]:
    """`ROWS` entries of a captions file, of as many groups where there are so many."""
    first = {entry["img_set"]["id"]: entry for entry in reversed(entries)}
    chosen = [first[group] for group in sorted(first)]
    return chosen[:: max(1, len(chosen) // ROWS)][:ROWS]


@dataclass(frozen=True)
class Drawer:
    """The boxes and the file of an image by its name."""

    boxes: Mapping[str, list[Region]]
    path_of: Callable[[str], Path]

    def row(self, entry: dict) -> SheetRow:
        """A pair with its sentence, and the other images of its group."""
        reference, target = entry["reference"], entry["target_hard"]
        others = [name for name in entry["img_set"]["members"] if name not in (reference, target)]
        rest = ResultLine(tuple(map(self.picture, others)), "the others of their group")
        shown = self.picture(reference, Role.REFERENCE), self.picture(target, Role.TARGET)
        return SheetRow(shown[0], entry["caption"], (rest,), shown[1], f"reference: {self.labels(reference)}")

    def labels(self, name: str) -> str:
        """The numbered labels of an image's boxes. On the image they would hide what they name."""
        numbered = enumerate(self.boxes.get(name, ()), start=1)
        return ", ".join(f"{number} {region.label or 'box'}" for number, region in numbered)

    def picture(self, name: str, role: Role = Role.OTHER) -> Picture:
        """An image with its numbered boxes."""
        bare = tuple(Region(region.box) for region in self.boxes.get(name, ()))
        return Picture(self.path_of(name), name, role=role, regions=bare)
