"""A page of one query and its results: one file, with its pictures in it, that asks for nothing from elsewhere."""

import base64
import io
from collections.abc import Sequence
from html import escape
from string import Template

from PIL import Image

from lavis.datasets.region_boxes import Region
from sprc.boxes.drawing import COLOURS
from sprc.data.images import naming_image, open_rgb
from sprc.report.heat_maps import draw_heat_map
from sprc.report.pictures import Picture
from sprc.report.sheets import SheetRow

SIDE = 384  # most pixels of a picture's side

PAGE = Template("""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title>
<style>
:root { color-scheme: light dark; --mark: #2563eb; }
body { font: 16px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 75rem; padding: 0 1rem; }
.query { display: flex; gap: 2rem; align-items: center; flex-wrap: wrap; margin-bottom: 1.5rem; }
.query .frame { width: 15rem; outline: 3px solid var(--mark); }
.sentence { font-size: 1.5rem; margin: 0; max-width: 40rem; overflow-wrap: anywhere; }
.note { opacity: .7; margin: .25rem 0; overflow-wrap: anywhere; }
.results { display: grid; grid-template-columns: repeat(auto-fill, minmax(12rem, 1fr)); gap: 1.5rem 1rem; padding: 0;
  list-style: none; }
.frame { position: relative; }
.frame img { display: block; width: 100%; height: auto; }
.frame .heat, .frame svg { position: absolute; inset: 0; width: 100%; height: 100%; visibility: hidden; }
body:has(#heat:checked) .heat, body:has(#boxes:checked) svg { visibility: visible; }
.caption { font-size: .9rem; display: flex; gap: .5rem; align-items: baseline; margin: .4rem 0 0; }
.rank { font-weight: 700; }
.name { overflow-wrap: anywhere; flex: 1; }
.score { font-variant-numeric: tabular-nums; opacity: .7; }
label { margin-right: 1.5rem; cursor: pointer; }
</style>
</head>
<body>
<div class="query">
<div class="frame">$reference</div>
<div>
<p class="sentence">$sentence</p>
<p class="note">Reference: $name</p>
</div>
</div>
<p><label><input type="checkbox" id="heat" checked> where the model looks</label>$switch</p>
<ol class="results">
$results
</ol>
<p class="note">The score is the largest cosine between the query and the target tokens of an image. The heat map is the
cross-attention of the token that has it. $found_by</p>
</body>
</html>
""")
ITEM = Template("""<li><div class="frame">$picture</div>
<p class="caption"><span class="rank">$rank</span><span class="name">$name</span>
<span class="score">$score</span></p>
</li>
""")
SWITCH = '<label><input type="checkbox" id="boxes" checked> boxes</label>'


def html_page(row: SheetRow, found_by: str) -> str:
    """The page of a query and its results; all texts are escaped, and so are bytes of a file's name that are no text.

    Raises InputError for an image that cannot be read, by name.
    """
    found = [picture for line in row.results for picture in line.pictures]
    has_boxes = any(picture.regions for picture in (row.reference, *found))
    page = PAGE.substitute(
        title=escape(row.sentence),
        reference=_frame(row.reference),
        sentence=escape(row.sentence),
        name=escape(row.reference.name),
        switch=SWITCH if has_boxes else "",
        results="".join(map(_item, found)),
        found_by=escape(found_by),
    )
    return page.encode(errors="backslashreplace").decode()


def _item(picture: Picture) -> str:
    texts = {"rank": picture.title, "name": picture.name, "score": picture.detail}
    return ITEM.substitute(picture=_frame(picture), **{name: escape(text) for name, text in texts.items()})


def _frame(picture: Picture) -> str:
    """An image, over it the same under its heat map, and its boxes."""
    with naming_image(picture.name, picture.path):
        raw = open_rgb(picture.path)
    image = raw.copy()
    image.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    layers = _image(image, picture.name)
    if picture.heat is not None:
        layers += _image(draw_heat_map(image, picture.heat, raw.size), "", ' class="heat"')
    return layers + _boxes(picture.regions, image.size)


def _image(image: Image.Image, text: str, more: str = "") -> str:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=88)
    content = base64.b64encode(buffer.getvalue()).decode("ascii")
    return f'<img{more} alt="{escape(text)}" src="data:image/jpeg;base64,{content}">'


def _boxes(regions: Sequence[Region], size: tuple[int, int]) -> str:
    """Boxes over a picture of `size`, each with its label."""
    width, height = size
    shapes = []
    for number, region in enumerate(regions):
        left, top, right, bottom = (value * side for value, side in zip(region.box, (width, height) * 2, strict=True))
        colour = COLOURS[number % len(COLOURS)]
        shapes.append(
            f'<rect x="{left:.1f}" y="{top:.1f}" width="{right - left:.1f}" height="{bottom - top:.1f}" fill="none"'
            f' stroke="{colour}" stroke-width="3"/>'
            f'<text x="{left + 5:.1f}" y="{top + 16:.1f}" font-size="14" fill="{colour}" stroke="#fff"'
            f' stroke-width="3" paint-order="stroke">{number + 1} {escape(region.label or "")}</text>'
        )
    if not shapes:
        return ""
    return f'<svg viewBox="0 0 {width} {height}" preserveAspectRatio="none">{"".join(shapes)}</svg>'
