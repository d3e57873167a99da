"""Saliency: what it finds, in what order, how quickly, and what it makes of plain images."""

import time

import numpy as np
import pytest
from box_runs import iou
from PIL import Image

from sprc.boxes.saliency import otsu_threshold, saliency_boxes, spectral_residual
from sprc.demo.scenes import COLOURS


def test_saliency_is_quick_at_cirrs_size():
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (375, 500, 3), dtype=np.uint8))
    image.paste(COLOURS["red"], (100, 100, 220, 260))
    start = time.process_time()
    for _ in range(10):
        found = saliency_boxes(image)
    rate = 10 / (time.process_time() - start)
    print(f"{rate:.0f} images a second of CPU time")
    assert rate > 10
    assert iou(found[0].box, (0.2, 100 / 375, 0.44, 260 / 375)) > 0.8


def test_limits_and_order():
    image = Image.new("RGB", (200, 100), "white")
    for i, side in enumerate((10, 20, 30, 24)):
        image.paste((200, 0, 40 * i), (10 + 48 * i, 30, 10 + 48 * i + side, 30 + side))
    regions = saliency_boxes(image, min_area=0.01)
    areas = [(r.box[2] - r.box[0]) * (r.box[3] - r.box[1]) for r in regions]
    assert len(regions) == 3
    assert areas == sorted(areas, reverse=True)
    assert len(saliency_boxes(image, min_area=0.01, max_boxes=2)) == 2
    assert all(0 < region.score <= 1 for region in regions)


@pytest.mark.parametrize(
    "image", [Image.new("RGB", (50, 40), "grey"), Image.new("L", (1, 1)), Image.new("P", (3, 900))]
)
def test_plain_and_odd_images_have_no_box(image):
    assert saliency_boxes(image) == []


def test_the_residual_stands_out_where_the_image_does():
    channel = np.random.default_rng(0).normal(0, 0.05, (48, 64))
    channel[20:26, 30:36] += 1
    row, column = np.unravel_index(spectral_residual(channel).argmax(), channel.shape)
    assert 17 <= row <= 29
    assert 27 <= column <= 39


def test_otsu_parts_two_classes():
    rng = np.random.default_rng(0)
    values = np.concatenate([rng.normal(0.2, 0.02, 500), rng.normal(0.8, 0.02, 100)])
    assert 0.25 < otsu_threshold(values) < 0.75
    assert otsu_threshold(np.zeros(9)) >= 0
