"""Made-up source pictures of products and backgrounds, for tests of the regime that trains on products."""

from pathlib import Path

from PIL import Image, ImageDraw
from product_scenes import LEAST_PRODUCTS


def product_picture(colour: tuple[int, int, int], size=(60, 80)) -> Image.Image:
    """An ellipse with a white hole, on white."""
    image = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(image)
    draw.ellipse((10, 10, size[0] - 11, size[1] - 11), fill=colour)
    draw.rectangle((27, 37, 32, 42), fill="white")
    return image


def make_photos(folder: Path, products: int = LEAST_PRODUCTS, grounds: int = 4) -> Path:
    """A folder for `--photos`; the backgrounds are of one grey each."""
    for part in ("iconic", "store"):
        (folder / part).mkdir(parents=True)
    for number in range(products):
        product_picture((200, 30 * number, 40)).save(folder / "iconic" / f"Product_-{'abcdefgh'[number]}.png")
    for number in range(grounds):
        Image.new("RGB", (120, 90), (40 + 40 * number,) * 3).save(folder / "store" / f"shop_{number}.png")
    return folder
