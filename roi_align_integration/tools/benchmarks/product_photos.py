"""Photographs of products: cut-outs of those on white, and scenes of cut-outs before other photographs."""

import hashlib
import random
from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import product_scenes
from PIL import Image, ImageEnhance, ImageFilter
from product_scenes import LEAST_PRODUCTS, MOST_CAPTIONS, Product, words_of
from scipy import ndimage

from sprc.boxes.sizes import box_area
from sprc.core.errors import InputError
from sprc.core.files import read_bytes
from sprc.data.image_files import folder_images
from sprc.data.images import naming_image, open_small
from sprc.demo.painting import random_size
from sprc.demo.scenes import PLACES, RADII, Group, distinct

PRODUCTS, GROUNDS = "iconic", "store"  # folders of products on white, and of photographs for backgrounds
LEAST_GROUNDS = 2  # one for training, and another for validation
VALIDATION_PART = 0.275  # of the backgrounds
MOST_WORDS = 2  # of a name: longer ones are of cartons that differ in their print alone, too small to read in a frame
MOST_SIDE = 720  # pixels of a photograph: a scene is smaller
WHITE = 244  # of every channel, or more: the ground of a product on white
LEAST_WHITE = 0.05  # part of a picture of a product that is its ground
TURN, LIGHT, SHIFT = 12, (0.75, 1.2), 0.12  # a placed product: degrees, brightness, and parts of its cell
ENLARGED = 1.5  # products are taller than wide, or wider than tall: larger than the shapes of the demo


@dataclass(frozen=True)
class Photos:
    """The source pictures: products by name, and backgrounds in a fixed random order."""

    products: dict[str, Path]
    grounds: tuple[Path, ...]

    def fingerprint(self) -> str:
        """SHA-256 of all names and files."""
        digest = hashlib.sha256()
        for path in (*self.products.values(), *self.grounds):
            digest.update(f"{path.parent.name}/{path.name}\n".encode() + read_bytes(path, "copy or download it again"))
        return digest.hexdigest()

    def parts(self) -> dict[str, tuple[Path, ...]]:
        """`train` and `val` -> their backgrounds, none of which is in both."""
        last = max(1, round(VALIDATION_PART * len(self.grounds)))
        return {"train": self.grounds[:-last], "val": self.grounds[-last:]}


def read_photos(folder: Path) -> Photos:
    """The pictures of `iconic/` and `store/` in a folder.

    Raises InputError if a folder is not there or has too few pictures, or if a name has no word or that of another.
    """
    products, grounds = _by_name(_pictures(folder, PRODUCTS)), _pictures(folder, GROUNDS)
    for part, found, least in ((PRODUCTS, products, LEAST_PRODUCTS), (GROUNDS, grounds, LEAST_GROUNDS)):
        if len(found) < least:
            named = f" with names of at most {MOST_WORDS} words" if part == PRODUCTS else ""
            raise InputError(f"{folder / part} has {len(found)} pictures{named}: put at least {least} there")
    random.Random(0).shuffle(grounds)
    return Photos(products, tuple(grounds))


def _pictures(folder: Path, part: str) -> list[Path]:
    """Raises InputError if there is no such part of the folder."""
    if not (folder / part).is_dir():
        raise InputError(
            f"`photos` {folder} has no folder {part}: it must hold {PRODUCTS}/, pictures of products on white, and"
            f" {GROUNDS}/, photographs for backgrounds"
        )
    return list(folder_images(folder / part).values())


def _by_name(paths: list[Path]) -> dict[str, Path]:
    """Product name -> picture, of names that are short enough (`MOST_WORDS`).

    A name is the words of a file's name: no other character of it comes into a sentence.
    """
    products: dict[str, Path] = {}
    for path in paths:
        name = " ".join(words_of(path.stem))
        if not name or name in products:
            problem = f"and {products[name]} are both the product {name!r}" if name else "has no word in its name"
            raise InputError(f"{path} {problem}: rename it, such as Golden-Delicious.jpg")
        products[name] = path
    return {name: path for name, path in products.items() if len(name.split()) <= MOST_WORDS}


def cut_out(path: Path) -> Image.Image:
    """A product on white -> RGBA, its ground transparent, cropped to the product.

    Raises InputError if the file cannot be read, has no white ground, or nothing on it.
    """
    with naming_image(path.stem, path):
        image = open_small(path, MOST_SIDE)
    ground = outer_white(image)
    mask = Image.fromarray((~ground).astype(np.uint8) * 255).filter(ImageFilter.MinFilter(3))
    box = mask.getbbox()
    if box is None or ground.mean() < LEAST_WHITE:
        problem = "nothing stands on its white ground" if box is None else "its ground is not white"
        raise InputError(f"{path}: {problem}: give a picture of one product on plain white, or remove it")
    image.putalpha(mask)
    return image.crop(box)


def outer_white(image: Image.Image) -> np.ndarray:
    """Where an RGB image is white, connected with its border: (height, width) bool. White inside a product is not."""
    white = np.asarray(image).min(axis=2) >= WHITE
    areas, _ = ndimage.label(np.pad(white, 1, constant_values=True))
    return areas[1:-1, 1:-1] == areas[0, 0]


def background(path: Path, size: tuple[int, int], rng: random.Random) -> Image.Image:
    """A random part of a photograph, at least half of its shorter side, at `size` = (width, height), mirrored or not.

    Raises InputError if the file cannot be read.
    """
    with naming_image(path.stem, path):
        photo = open_small(path, MOST_SIDE)
    scale = min(photo.width / size[0], photo.height / size[1]) * rng.uniform(0.5, 1)
    width, height = size[0] * scale, size[1] * scale
    left, top = rng.uniform(0, photo.width - width), rng.uniform(0, photo.height - height)
    part = photo.resize(size, Image.Resampling.BILINEAR, (left, top, left + width, top + height))
    return part.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if rng.random() < 0.5 else part


def place_product(image: Image.Image, product: Product, picture: Image.Image, rng: random.Random) -> tuple[int, ...]:
    """Paste a cut-out into its cell, turned and lit a little at random -> the box of its pixels, xyxy, right and bottom
    excluded.
    """
    cell = image.width / 3, image.height / 3
    numbers = PLACES.index(product.place) % 3, PLACES.index(product.place) // 3
    small = varied(picture, round(2 * RADII[product.size] * ENLARGED * min(cell)), rng)
    corner = []
    for number, length, extent, whole in zip(numbers, cell, small.size, image.size, strict=True):
        middle = (number + 0.5 + rng.uniform(-SHIFT, SHIFT)) * length
        corner.append(min(max(0, round(middle - extent / 2)), whole - extent))
    image.paste(small, tuple(corner), small)
    seen = small.getchannel("A").point(lambda alpha: 255 * (alpha > 127)).getbbox()
    left, top, right, bottom = seen or (0, 0, *small.size)
    return corner[0] + left, corner[1] + top, corner[0] + right, corner[1] + bottom


def varied(picture: Image.Image, side: int, rng: random.Random) -> Image.Image:
    """A cut-out turned and lit at random, its longer side of so many pixels."""
    turned = picture.rotate(rng.uniform(-TURN, TURN), Image.Resampling.BICUBIC, expand=True)
    lit = ImageEnhance.Brightness(turned).enhance(rng.uniform(*LIGHT))
    factor = side / max(lit.size)
    width, height = (max(2, round(extent * factor)) for extent in lit.size)
    return lit.resize((width, height), Image.Resampling.BILINEAR)


@dataclass(frozen=True)
class ProductWorld:
    """Scenes of product cut-outs before photographs: a `World` of `sprc.demo.worlds`."""

    cut_outs: dict[str, Image.Image]
    grounds: tuple[Path, ...]
    suffix: ClassVar[str] = ".jpg"
    save_options: ClassVar[Mapping[str, Any]] = {"quality": 90}
    most_captions: ClassVar[int] = MOST_CAPTIONS

    def before(self, grounds: tuple[Path, ...]) -> "ProductWorld":
        """The same products before other backgrounds."""
        return replace(self, grounds=grounds)

    def groups(self, rng: random.Random) -> Iterator[Group[Product]]:
        return distinct(iter(partial(product_scenes.make_group, rng, list(self.cut_outs)), None))

    def change_between(self, old: Product | None, new: Product | None) -> str | None:
        return product_scenes.change_between(old, new)

    def caption_of(self, old: Product | None, new: Product | None, rng: random.Random, said: Container[str]) -> str:
        return product_scenes.caption_of(old, new, rng, said)

    def render(self, scene: tuple[Product, ...], rng: random.Random) -> tuple[Image.Image, list]:
        """The scene as an RGB image of random size and aspect ratio; its boxes have the products' names as labels."""
        image = background(rng.choice(self.grounds), random_size(rng, 2), rng)
        placed = [(place_product(image, item, self.cut_outs[item.name], rng), item.name) for item in scene]
        placed.sort(key=lambda part: -box_area(part[0]))
        whole = image.size * 2
        return image, [
            {"box": [edge / side for edge, side in zip(box, whole, strict=True)], "label": name} for box, name in placed
        ]


def product_world(photos: Photos) -> ProductWorld:
    """The world of all products, cut out, before the backgrounds of training. Raises InputError as `cut_out`."""
    return ProductWorld({name: cut_out(path) for name, path in photos.products.items()}, photos.parts()["train"])
