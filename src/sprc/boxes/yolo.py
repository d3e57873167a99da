"""Boxes of objects by YOLO, through the optional package ultralytics."""

import os
import zipfile
from pathlib import Path

from PIL import Image

from lavis.datasets.region_boxes import Region
from sprc.boxes.sizes import box_area, largest_first
from sprc.core.errors import InputError
from sprc.core.places import REPOSITORY

DEFAULT_WEIGHTS = REPOSITORY / "models" / "yolo" / "yolov8n.pt"
INSTALL = "pip install ultralytics (its licence is AGPL-3.0), or use --method saliency"
REPAIR = (
    "it is there, but does not load. If libGL or glib is missing: apt install libgl1 libglib2.0-0, or without root"
    " pip uninstall opencv-python, then pip install opencv-python-headless; or use --method saliency"
)


def import_ultralytics():
    """The package, told to load no pickled code and to install nothing. Raises InputError if it is not there."""
    os.environ["ULTRALYTICS_SAFE_LOAD"], os.environ["YOLO_AUTOINSTALL"] = "true", "false"
    os.environ.setdefault("YOLO_VERBOSE", "false")
    try:
        import ultralytics
    except ImportError as error:
        absent = isinstance(error, ModuleNotFoundError) and error.name == "ultralytics"
        fix = INSTALL if absent else REPAIR
        raise InputError(f"--method yolo and hybrid need ultralytics ({error}): {fix}") from error
    if not getattr(ultralytics.utils, "SAFE_LOAD", False):
        raise InputError(
            f"ultralytics {ultralytics.__version__} runs the code that a weight file holds: pip install -U ultralytics"
        )
    return ultralytics


class Detector:
    """A YOLO model. Raises InputError if ultralytics or the weight file is missing or refused."""

    def __init__(self, weights: Path, device: str):
        ultralytics = import_ultralytics()
        weights.parent.mkdir(parents=True, exist_ok=True)
        if weights.is_file() and zipfile.is_zipfile(weights):
            from lavis.models.weight_files import check_zip  # heavy: torch, transformers

            check_zip(weights, "remove it, and it is downloaded again")
        try:
            self.model = ultralytics.YOLO(str(weights))  # downloads a published file that is not there
        except Exception as error:  # ultralytics raises whatever its parts do; all of it means this file cannot be used
            reason = (str(error) or "no reason given").splitlines()[0]
            raise InputError(
                f"YOLO weights {weights} cannot be used ({type(error).__name__}: {reason}): put"
                f" yolov8n.pt there (https://github.com/ultralytics/assets/releases), or use --method saliency"
            ) from error
        self.device = None if device == "auto" else device

    def detect(
        self, images: list[Image.Image], confidence: float, min_area: float, max_boxes: int
    ) -> list[list[Region]]:
        """The objects of every image, largest first, with label and score; boxes in [0, 1] of the raw image."""
        results = self.model.predict(images, conf=confidence, device=self.device, batch=len(images), verbose=False)
        return [regions_of(result, min_area, max_boxes) for result in results]


def regions_of(result, min_area: float, max_boxes: int) -> list[Region]:
    """One image's result of ultralytics -> its regions, xyxy in [0, 1] of the image, largest first."""
    found = result.boxes.cpu()
    boxes, labels = found.xyxyn.clamp(0, 1).tolist(), [result.names[int(number)] for number in found.cls]
    regions = [
        Region(tuple(box), label, round(float(score), 4))
        for box, label, score in zip(boxes, labels, found.conf, strict=True)
        if box_area(box) >= max(min_area, 1e-9)
    ]
    return largest_first(regions)[:max_boxes]
