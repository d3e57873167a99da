"""Paints a scene of the demo dataset, and says exactly what box each object fills."""

import random

from PIL import Image, ImageDraw

from sprc.boxes.sizes import box_area
from sprc.demo.scenes import COLOURS, PLACES, RADII, Difficulty, SceneObject

PALE = (130, 250)  # of each colour channel of a piece of clutter; objects are of full colours


def render(
    scene: tuple[SceneObject, ...], rng: random.Random, difficulty: Difficulty
) -> tuple[Image.Image, list[list[float]]]:
    """The scene as an RGB image of random size and aspect ratio, and its boxes: xyxy, raw frame, normalised to [0, 1],
    largest area first.
    """
    width, height = random_size(rng, difficulty.aspect)
    shade = rng.randint(205, 250)
    image = Image.new("RGB", (width, height), (shade, shade, shade))
    if difficulty.noise:
        add_noise(image, rng, difficulty.noise)
    add_clutter(image, rng, difficulty.clutter)
    boxes = [paint(image, item) for item in scene]
    boxes.sort(key=lambda box: -box_area(box))
    return image, [[left / width, top / height, right / width, bottom / height] for left, top, right, bottom in boxes]


def random_size(rng: random.Random, aspect: float) -> tuple[int, int]:
    """(width, height) in pixels: the longer side 160 to 320, up to `aspect` times the shorter."""
    longer = rng.randint(160, 320)
    shorter = round(longer / rng.uniform(1, aspect))
    return (longer, shorter) if rng.random() < 0.6 else (shorter, longer)


def add_noise(image: Image.Image, rng: random.Random, amplitude: int) -> None:
    """Grey noise of 8 x 8 pixel tiles, up to `amplitude` darker."""
    small = (image.width // 8 + 1, image.height // 8 + 1)
    noise = Image.frombytes("L", small, bytes(rng.randrange(amplitude) for _ in range(small[0] * small[1])))
    mask = noise.resize(image.size, Image.Resampling.NEAREST)
    image.paste((0, 0, 0), mask=mask)


def add_clutter(image: Image.Image, rng: random.Random, count: int) -> None:
    """Rectangles of pale colours, a tenth to a half of the image wide and high, partly outside of it."""
    draw = ImageDraw.Draw(image)
    for _ in range(count):
        width, height = (round(side * rng.uniform(0.1, 0.5)) for side in image.size)
        x, y = rng.randint(-width // 2, image.width - width // 2), rng.randint(-height // 2, image.height - height // 2)
        draw.rectangle((x, y, x + width, y + height), fill=tuple(rng.randint(*PALE) for _ in range(3)))


def paint(image: Image.Image, item: SceneObject) -> tuple[int, int, int, int]:
    """Paint an object into its cell -> the box of the painted pixels: xyxy in pixels, right and bottom excluded."""
    cell_width, cell_height = image.width / 3, image.height / 3
    column, row = PLACES.index(item.place) % 3, PLACES.index(item.place) // 3
    radius = RADII[item.size] * min(cell_width, cell_height)
    centre = ((column + 0.5) * cell_width, (row + 0.5) * cell_height)
    corner = (round(centre[0] - radius), round(centre[1] - radius))
    mask = shape_mask(item.shape, round(2 * radius))
    image.paste(COLOURS[item.colour], corner, mask)
    painted = mask.getbbox()
    assert painted is not None  # no shape is empty
    left, top, right, bottom = painted
    return corner[0] + left, corner[1] + top, corner[0] + right, corner[1] + bottom


def shape_mask(shape: str, side: int) -> Image.Image:
    """A 1-bit mask of `side` x `side` pixels."""
    mask = Image.new("1", (side, side))
    draw, last = ImageDraw.Draw(mask), side - 1
    third = side / 3
    if shape == "square":
        draw.rectangle((0, 0, last, last), fill=1)
    elif shape == "triangle":
        draw.polygon([(last / 2, 0), (last, last), (0, last)], fill=1)
    elif shape == "diamond":
        draw.polygon([(last / 2, 0), (last, last / 2), (last / 2, last), (0, last / 2)], fill=1)
    elif shape == "cross":
        draw.rectangle((third, 0, last - third, last), fill=1)
        draw.rectangle((0, third, last, last - third), fill=1)
    else:
        draw.ellipse((0, 0, last, last), fill=1)
        if shape == "ring":
            draw.ellipse((third, third, last - third, last - third), fill=0)
    return mask
