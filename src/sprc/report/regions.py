"""The regions of photographs, from a box file whose names may be paths, paths without a suffix, or stems."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from lavis.datasets.region_boxes import Region, load_boxes
from sprc.core.errors import InputError


class PhotoRegions:
    """Regions by the name of a photograph, in the frame of the raw image; without a box file there are none.

    Raises InputError as `load_boxes`, and if the file has boxes of none of the photographs.
    """

    def __init__(self, box_file: Path | None, names: Sequence[str]):
        self.boxes = {} if box_file is None else load_boxes(box_file)
        self.stems = Counter(PurePosixPath(name).stem for name in names)
        if box_file is not None and not any(map(self._key, names)):
            raise InputError(f"{box_file} has boxes of none of the photographs: its names are not theirs")

    def of(self, name: str) -> tuple[Region, ...]:
        """The regions of a photograph; none if the file has none of it."""
        key = self._key(name)
        return () if key is None else tuple(self.boxes[key])

    def _key(self, name: str) -> str | None:
        """The name of a photograph in the box file. A stem that two photographs share stands for neither."""
        path = PurePosixPath(name)
        known = [name, str(path.with_suffix(""))] + ([path.stem] if self.stems[path.stem] == 1 else [])
        return next((key for key in known if key in self.boxes), None)
