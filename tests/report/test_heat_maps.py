"""A heat map stands where its cells are in the raw image, for every shape of image and way of padding."""

import numpy as np
import pytest
from PIL import Image

from sprc.data.preprocess import build_preprocess, input_geometry
from sprc.report.heat_maps import HeatMap, draw_heat_map, on_picture

SIZES = [(300, 90), (90, 300), (128, 128), (120, 100), (64, 48)]
GRID = 4


@pytest.fixture(params=["targetpad", "squarepad"])
def preprocess(request):
    return build_preprocess(request.param, 1.25, 56)


def slow_heat(heat: HeatMap, raw_size, size) -> np.ndarray:
    """Pixel by pixel, along the way that the preprocess takes; NaN where the input frame has nothing."""
    geometry = input_geometry(*raw_size, heat.preprocess.target_ratio, heat.preprocess.dim)
    found = np.full(size[::-1], np.nan)
    for y in range(size[1]):
        for x in range(size[0]):
            place = []
            for axis, pixel in enumerate((x, y)):
                raw = (pixel + 0.5) / size[axis] * raw_size[axis]  # pixels of the raw image
                padded = raw_size[axis] + 2 * geometry.padding[axis]
                resized = (raw + geometry.padding[axis]) * geometry.resized[axis] / padded
                place.append((resized - geometry.crop_origin[axis]) / geometry.dim)
            if all(0 <= p <= 1 for p in place):
                found[y, x] = bilinear(heat.values, place[0] * GRID - 0.5, place[1] * GRID - 0.5)
    return found / heat.values.max()


def bilinear(values, x: float, y: float) -> float:
    x, y = (min(max(v, 0), GRID - 1) for v in (x, y))
    left, top = min(int(x), GRID - 2), min(int(y), GRID - 2)
    dx, dy = x - left, y - top
    upper = values[top, left] * (1 - dx) + values[top, left + 1] * dx
    lower = values[top + 1, left] * (1 - dx) + values[top + 1, left + 1] * dx
    return upper * (1 - dy) + lower * dy


@pytest.mark.parametrize("raw_size", SIZES)
def test_it_is_what_a_slow_version_gives(preprocess, raw_size):
    heat = HeatMap(np.random.default_rng(0).random((GRID, GRID)) * 0.1, preprocess)
    size = raw_size[0] // 3, raw_size[1] // 3
    heights, seen = on_picture(heat, raw_size, size)
    slow = slow_heat(heat, raw_size, size)
    np.testing.assert_array_equal(seen, ~np.isnan(slow))
    np.testing.assert_allclose(heights, np.nan_to_num(slow), atol=1e-9)


@pytest.mark.parametrize("raw_size", SIZES)
def test_a_hot_cell_comes_back_to_its_place_in_the_input_frame(preprocess, raw_size):
    """The picture of the heat passes the preprocess itself: it must be hot where the cell is."""
    for row, column in ((1, 1), (2, 1), (1, 2)):
        values = np.zeros((GRID, GRID))
        values[row, column] = 0.3
        heights, _ = on_picture(HeatMap(values, preprocess), raw_size, raw_size)
        assert heights.max() > 0.9
        frame = np.asarray(preprocess.to_frame(Image.fromarray((heights * 255).astype(np.uint8)).convert("RGB")))
        hottest = np.argwhere(frame[..., 0] >= frame[..., 0].max() - 2).mean(axis=0)
        cell = preprocess.dim / GRID
        assert np.abs(hottest - ((row + 0.5) * cell, (column + 0.5) * cell)).max() < cell / 2


def test_cropped_parts_keep_their_pixels():
    """targetpad crops the ends of a wide image."""
    preprocess = build_preprocess("targetpad", 1.25, 56)
    picture = Image.new("RGB", (250, 100), (10, 200, 30))
    drawn = np.asarray(draw_heat_map(picture, HeatMap(np.ones((GRID, GRID)), preprocess), picture.size))
    untouched = (drawn == (10, 200, 30)).all(axis=2)
    assert untouched[:, [0, 20, 229, 249]].all()
    assert not untouched[:, 30:220].any()
    _, seen = on_picture(HeatMap(np.ones((GRID, GRID)), preprocess), picture.size, picture.size)
    np.testing.assert_array_equal(untouched, ~seen)


def test_it_is_scaled_to_its_own_maximum_and_blended():
    from matplotlib import colormaps

    preprocess, picture = build_preprocess("squarepad", dim=56), Image.new("RGB", (40, 40), (100, 100, 100))
    brightest = np.array(colormaps["inferno"](1.0)[:3]) * 255
    for height in (1e-4, 7.0):
        heat = HeatMap(np.full((GRID, GRID), height), preprocess)
        drawn = np.asarray(draw_heat_map(picture, heat, (400, 400), alpha=(0.5, 0.25)))
        np.testing.assert_allclose(drawn[20, 20], 75 + 0.25 * brightest, atol=1)
    nothing = draw_heat_map(picture, HeatMap(np.zeros((GRID, GRID)), preprocess), (400, 400), alpha=(0.5, 0.25))
    np.testing.assert_allclose(np.asarray(nothing)[20, 20], 50, atol=2)  # half of it black
