"""Draw docs/overview.png, the picture of README: `python docs/draw_overview.py`."""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.patches import FancyBboxPatch

PICTURE = Path(__file__).with_name("overview.png")
FILL = {"input": "#f2f2f2", "frozen": "#dbe9f6", "trained": "#fde5c8", "region": "#dcefdc", "result": "#ffffff"}
LEGEND = {"frozen": "frozen", "trained": "trained", "region": "regions: in training only"}
# x, y, width, height, kind, title, and the small line under it.
BLOCKS = [
    (0, 52, 20, 10, "input", "sentence", "“make the dog black”"),
    (0, 36, 20, 10, "input", "reference image", ""),
    (0, 20, 20, 10, "input", "gallery image", "in training: the target"),
    (0, 0, 20, 10, "input", "boxes", "of the target image"),
    (29, 20, 20, 26, "frozen", "ViT", "CLS + 16 × 16 patches"),
    (58, 20, 20, 42, "trained", "Q-Former", "32 learned queries"),
    (87, 40, 20, 10, "result", "query", "one vector"),
    (87, 20, 20, 10, "result", "32 target tokens", "of each gallery image"),
    (116, 30, 20, 10, "result", "score", "highest of 32 cosines"),
    (29, 0, 20, 10, "region", "RoIAlign", "one vector per box"),
    (58, 0, 20, 10, "region", "region loss", "region finds its query"),
]
# From, to, label, place of the label.
ARROWS = [
    ((20, 57), (58, 57), "", None),
    ((20, 41), (29, 41), "", None),
    ((20, 25), (29, 25), "", None),
    ((20, 5), (29, 5), "", None),
    ((49, 41), (58, 41), "", None),
    ((49, 25), (58, 25), "", None),
    ((49, 5), (58, 5), "", None),
    ((78, 45), (87, 45), "", None),
    ((78, 25), (87, 25), "", None),
    ((107, 45), (116, 37), "", None),
    ((107, 25), (116, 33), "", None),
    ((39, 20), (39, 10), "patch grid", (40, 15)),
    ((68, 20), (68, 10), "32 fused queries", (69, 15)),
]


def draw_block(axes: Axes, x: float, y: float, width: float, height: float, kind: str, title: str, note: str) -> None:
    shape = FancyBboxPatch((x, y), width, height, boxstyle="round,pad=0,rounding_size=1.2", facecolor=FILL[kind],
                           edgecolor="#444444", linewidth=1.2)  # fmt: skip
    axes.add_patch(shape)
    centre = (x + width / 2, y + height / 2)
    axes.text(
        centre[0], centre[1] + (1.6 if note else 0), title, ha="center", va="center", fontsize=10.5, weight="bold"
    )
    axes.text(centre[0], centre[1] - 2.2, note, ha="center", va="center", fontsize=8.5, color="#333333")


def draw_arrow(axes: Axes, start: tuple, end: tuple, label: str, place: tuple | None) -> None:
    axes.annotate("", end, start, arrowprops={"arrowstyle": "-|>", "color": "#444444", "linewidth": 1.4,
                                              "shrinkA": 0, "shrinkB": 0})  # fmt: skip
    if place:
        axes.text(*place, label, ha="left", va="center", fontsize=8.5, color="#333333")


def draw_legend(axes: Axes) -> None:
    for row, (kind, text) in enumerate(LEGEND.items()):
        y = 9 - 4 * row
        axes.add_patch(FancyBboxPatch((100, y), 3, 1.8, boxstyle="round,pad=0,rounding_size=0.4",
                                      facecolor=FILL[kind], edgecolor="#444444"))  # fmt: skip
        axes.text(105, y + 0.9, text, ha="left", va="center", fontsize=10)


def main() -> None:
    figure, axes = plt.subplots(figsize=(13.8, 6.4))
    axes.set(xlim=(-1, 137), ylim=(-1, 63), aspect="equal")
    axes.axis("off")
    for block in BLOCKS:
        draw_block(axes, *block)
    for arrow in ARROWS:
        draw_arrow(axes, *arrow)
    draw_legend(axes)
    figure.savefig(PICTURE, dpi=110, bbox_inches="tight", facecolor="white")


if __name__ == "__main__":
    main()
