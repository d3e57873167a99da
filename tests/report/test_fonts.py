"""Texts fit their room, break where they may, and get a font that has their characters."""

import itertools
import logging
import random

import pytest

from sprc.report import fonts
from sprc.report.fonts import ELLIPSIS, font_for, plain, shorten, wrap

LONG_AGO = "\U0001d5d4"  # a mathematical letter that DejaVu Sans lacks, and its bold has


@pytest.fixture
def font():
    return font_for("abc", 16)


@pytest.fixture
def system(monkeypatch):
    """A function that sets the fonts of the system."""
    caches = (fonts.system_font, fonts.system_fonts, fonts.say_that_no_font_has_all)

    def have(*paths):
        monkeypatch.setattr("matplotlib.font_manager.findSystemFonts", lambda: list(map(str, paths)))
        for function in caches:
            function.cache_clear()

    yield have
    for function in caches:
        function.cache_clear()


@pytest.mark.parametrize("seed", range(20))
def test_lines_keep_every_word_and_fit(font, seed):
    rng = random.Random(seed)
    words = ["".join(rng.choices("abcdefiWM", k=rng.randint(1, 9))) for _ in range(rng.randint(0, 30))]
    lines = wrap(" ".join(words), font, 130, 99)
    assert " ".join(lines).split() == words
    assert all(font.getlength(line) <= 130 for line in lines)
    for line, after in itertools.pairwise(lines):
        assert font.getlength(f"{line} {after.split()[0]}") > 130  # no line ends too early


@pytest.mark.parametrize("text", ["x" * 200, "把红色的圆变成蓝色" * 9, "short " + "W" * 80 + " short", "a 变成" * 30])
def test_words_that_are_too_long_break_anywhere(font, text):
    lines = wrap(text, font, 100, 99)
    assert "".join(lines).replace(" ", "") == text.replace(" ", "")
    assert all(font.getlength(line) <= 100 for line in lines)


def test_what_does_not_fit_the_lines_ends_in_an_ellipsis(font):
    lines = wrap("make it red " * 20, font, 150, 2)
    assert len(lines) == 2
    assert lines[1].endswith(ELLIPSIS)
    assert font.getlength(lines[1]) <= 150
    assert wrap("make it red", font, 150, 2) == ["make it red"]
    assert wrap("W", font, 1, 3) == ["W"]  # no room at all: it goes on


def test_names_are_shortened_in_the_middle(font):
    short = shorten("dev-1234-0-img1-and-more-and-more.png", font, 120)
    start, end = short.split(ELLIPSIS)
    assert font.getlength(short) <= 120
    assert "dev-1234-0-img1-and-more-and-more.png".startswith(start) and short.endswith(".png"[-len(end) :])
    assert abs(len(start) - len(end)) <= 1
    assert shorten("dev.png", font, 120) == "dev.png"
    assert shorten("dev.png", font, 0) == ELLIPSIS


def test_text_out_of_a_file_is_one_bounded_line():
    assert plain("a\nb\t\x07c\udcff  d ") == "a b c d"
    assert len(plain("x" * 10**7)) == fonts.MOST_CHARACTERS


def test_matplotlibs_font_is_taken_where_it_is_enough(system):
    system()
    assert font_for("Größe, цвет", 12).getname() == ("DejaVu Sans", "Book")
    assert font_for("reference", 12, bold=True).getname() == ("DejaVu Sans", "Bold")


def test_a_font_of_the_system_has_what_that_lacks(system, caplog):
    caplog.set_level(logging.INFO)
    folder = fonts.own_font("")
    system(
        folder / "DejaVuSerif.ttf",
        folder / "none.ttf",
        folder / "DejaVuSans-Bold.ttf",
        folder / "LastResortHE-Regular.ttf",
    )
    assert font_for(f"a {LONG_AGO}", 12).getname() == ("DejaVu Sans", "Bold")
    assert not caplog.records


def test_a_missing_character_is_said_once(system, caplog):
    caplog.set_level(logging.INFO)
    system(fonts.own_font("LastResortHE-Regular.ttf"))
    for text in ("变", "圆形", "变"):
        assert font_for(text, 12).getname() == ("DejaVu Sans", "Book")
    assert ["fonts-noto-cjk" in record.getMessage() for record in caplog.records] == [True]


def test_an_upright_font_comes_before_a_slanted_one(system):
    folder = fonts.own_font("")
    both = "\uf5c5", "\ufb37"
    assert all(character in fonts.characters_of(folder / "DejaVuSans-BoldOblique.ttf") for character in both)
    system(folder / "DejaVuSans-BoldOblique.ttf", folder / "DejaVuSerif.ttf", folder / "DejaVuSansMono-Oblique.ttf")
    assert fonts.system_fonts()[0].name == "DejaVuSerif.ttf"
