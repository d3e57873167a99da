"""Text on pictures: a font that has the characters, lines that fit a width, and names shortened to it."""

import logging
from collections.abc import Iterator
from functools import cache
from itertools import islice
from pathlib import Path

from PIL import ImageFont

logger = logging.getLogger(__name__)

MOST_CHARACTERS = 1000  # of a text that is drawn
ELLIPSIS = "…"
# Matplotlib's copies: they are on every machine, with Latin, Greek, Cyrillic and more.
REGULAR, BOLD = "DejaVuSans.ttf", "DejaVuSans-Bold.ttf"
# Fonts with a box for every character.
PLACEHOLDERS = ("last resort", "lastresort", "adobe blank", "adobeblank")
PLAIN = ("Regular", "Book", "Normal", "Roman", "Medium")

Font = ImageFont.FreeTypeFont


def plain(text: str) -> str:
    """A text out of a file in one line, without characters that cannot be drawn, and no longer than is ever drawn."""
    visible = "".join(character if character.isprintable() else " " for character in text[:MOST_CHARACTERS])
    return " ".join(visible.split())


def font_for(text: str, size: int, bold: bool = False) -> Font:
    """A font of `size` pixels that has all characters of a text; if none has, the log says so once.

    The system's fonts are asked for what matplotlib's own lacks, such as Chinese.
    """
    own = own_font(BOLD if bold else REGULAR)
    missing = frozenset(text) - characters_of(own) - {" "}
    other = system_font(missing) if missing else None
    return _opened(own if other is None else other, size)


def wrap(text: str, font: Font, width: float, most_lines: int) -> list[str]:
    """A text in lines of at most `width` pixels; what does not fit `most_lines` ends in an ellipsis.

    Lines break at spaces, and anywhere within a word that is too long and in texts that have no spaces.
    """
    lines = list(islice(_lines(text, font, width), most_lines + 1))
    if len(lines) > most_lines:
        rest = lines[most_lines - 1] + lines[most_lines]
        lines[most_lines - 1 :] = [_longest_start(rest, font, width - font.getlength(ELLIPSIS)).rstrip() + ELLIPSIS]
    return lines


def shorten(text: str, font: Font, width: float) -> str:
    """A text of at most `width` pixels: what is too much is left out of its middle."""
    if font.getlength(text) <= width:
        return text
    kept = next((n for n in range(len(text) - 1, 0, -1) if font.getlength(_without_middle(text, n)) <= width), 0)
    return _without_middle(text, kept)


def _without_middle(text: str, kept: int) -> str:
    """The first and last characters of a text, `kept` in all."""
    start = (kept + 1) // 2
    return text[:start] + ELLIPSIS + text[len(text) - (kept - start) :]


def _lines(text: str, font: Font, width: float) -> Iterator[str]:
    line = ""
    for word in text.split():
        joined = f"{line} {word}" if line else word
        while font.getlength(joined) > width:
            if line:
                start = _longest_start(joined, font, width) if _breaks_anywhere(word) else line
            else:
                start = _longest_start(joined, font, width) or joined[0]
            yield start.rstrip()
            joined, line = joined[len(start) :].lstrip(), ""
        line = joined
    if line:
        yield line


def _breaks_anywhere(word: str) -> bool:
    """Whether a word is of a script that is written without spaces: Chinese, Japanese."""
    return any("\u2e80" <= character <= "\u9fff" or "\uf900" <= character <= "\uffef" for character in word)


def _longest_start(text: str, font: Font, width: float) -> str:
    """The longest start of a text that is at most `width` pixels wide."""
    fitting, beyond = 0, len(text) + 1
    while beyond - fitting > 1:
        middle = (fitting + beyond) // 2
        fitting, beyond = (middle, beyond) if font.getlength(text[:middle]) <= width else (fitting, middle)
    return text[:fitting]


def own_font(name: str) -> Path:
    import matplotlib  # slow to import

    return Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name


@cache
def _opened(path: Path, size: int) -> Font:
    return ImageFont.truetype(str(path), size)


@cache
def characters_of(path: Path) -> frozenset[str]:
    """The characters that a font has; none if the file cannot be read."""
    from matplotlib.ft2font import FT2Font

    try:
        return frozenset(map(chr, FT2Font(str(path)).get_charmap()))
    except (OSError, RuntimeError):
        return frozenset()


@cache
def system_font(wanted: frozenset[str]) -> Path | None:
    """The font of this system with all the wanted characters, upright and of normal weight if there is a choice.

    If there is none, the log says so, and it is the font with most of them, or None.
    """
    whole = next((path for path in system_fonts() if wanted <= characters_of(path)), None)
    if whole is not None:
        return whole
    best = max(system_fonts(), key=lambda path: len(wanted & characters_of(path)), default=None)
    say_that_no_font_has_all()
    return best if best and wanted & characters_of(best) else None


@cache
def say_that_no_font_has_all() -> None:
    logger.info(
        "note: no font of this system has all characters of a text, so some are drawn as boxes: install one, for"
        " Chinese and Japanese for example the package fonts-noto-cjk"
    )


@cache
def system_fonts() -> tuple[Path, ...]:
    """The fonts of this system that can be drawn with, upright ones of normal weight first."""
    from matplotlib.font_manager import findSystemFonts  # its list of fonts at hand would be an old one

    styles = {Path(path): _style(Path(path)) for path in sorted(findSystemFonts())}
    return tuple(sorted((path for path, style in styles.items() if style), key=lambda path: styles[path] not in PLAIN))


def _style(path: Path) -> str:
    """Regular, Bold Italic or the like; "" for a font that Pillow cannot draw with, and for `PLACEHOLDERS`.

    A file may be broken, or have bitmaps of one size alone.
    """
    try:
        family, style = _opened(path, 16).getname()
    except OSError:
        return ""
    return "" if (family or "").lower().startswith(PLACEHOLDERS) else style or "unknown"
