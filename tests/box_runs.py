"""How the tests make a box file, and compare boxes."""

from pathlib import Path

from generate_cirr_boxes import main as generate

from lavis.datasets.region_boxes import Region, load_boxes


def iou(a, b) -> float:
    """Intersection over union of two boxes xyxy."""
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)]
    return width * height / (sum(areas) - width * height)


def run(tmp_path: Path, *flags, name: str = "boxes.json", workers: str = "0") -> dict[str, list[Region]]:
    """The boxes that generate_cirr_boxes.py makes with these flags."""
    output = tmp_path / name
    generate([*flags, "--output", str(output), "--num-workers", workers])
    return load_boxes(output)
