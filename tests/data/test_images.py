"""The one opener: the stored frame, the colours, the formats that are read, and what is said about any other file."""

import os
import signal
import struct
import threading
import zlib
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from bad_inputs import sixteen_bits
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps
from PIL.PngImagePlugin import PngImageFile

from data_utils import CIRRDataset
from lavis.processors import BlipImageEvalProcessor
from sprc.core.errors import ImageError, InputError
from sprc.core.stop_signals import Stopped
from sprc.data import png_chunks
from sprc.data.image_check import check_images
from sprc.data.images import (
    MOST_PIXELS,
    is_tagged,
    naming_image,
    open_rgb,
    open_small,
    orientation,
    orientations,
    stored_size,
)
from sprc.data.preprocess import targetpad_transform


def tag(value: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = value
    return exif


def two_colours() -> Image.Image:
    """800 x 400 pixels, red on the left and blue on the right."""
    image = Image.new("RGB", (800, 400), "red")
    image.paste("blue", (400, 0, 800, 400))
    return image


def late(kind: bytes, content: bytes, behind: int = 0):
    """Makes a PNG with a chunk after its pixels, and so many bytes of a comment after that."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    def make(path: Path) -> None:
        two_colours().save(path)
        whole, comment = path.read_bytes(), chunk(b"tEXt", b"Comment\0" + b"x" * behind)
        path.write_bytes(whole[:-12] + chunk(kind, content) + comment * (behind > 0) + whole[-12:])

    return make


XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><tiff:Orientation>6</tiff:Orientation></x:xmpmeta>'
TAGGED = {
    "a.jpg": lambda path: two_colours().save(path, exif=tag(6), quality=95),
    "a.png": lambda path: two_colours().save(path, exif=tag(6)),
    "late.png": late(b"eXIf", tag(6).tobytes().removeprefix(b"Exif\0\0")),
    "long_before_the_end.png": late(b"eXIf", tag(6).tobytes().removeprefix(b"Exif\0\0"), 10**5),
    "late_xmp.png": late(b"iTXt", b"XML:com.adobe.xmp" + bytes(5) + XMP),
    "a.webp": lambda path: two_colours().save(path, exif=tag(8), lossless=True),
    "xmp.jpg": lambda path: two_colours().save(path, xmp=XMP, quality=95),
}


@pytest.mark.parametrize("name", TAGGED)
def test_a_tagged_image_is_seen_as_it_is_stored(tmp_path, name):
    path = tmp_path / name
    TAGGED[name](path)
    image = open_rgb(path)
    assert stored_size(path) == image.size == ImageOps.exif_transpose(image).size == (800, 400)
    assert not image.getexif()
    with Image.open(path) as raw:
        raw.load()
        assert ImageOps.exif_transpose(raw).size == (400, 800), "the file does carry a tag"
    assert is_tagged(orientation(path))
    left, right = (image.getpixel((x, 200)) for x in (10, 790))
    assert left[0] > 240 > 20 > left[2]
    assert right[2] > 240 > 20 > right[0]


@pytest.mark.parametrize("chunks", [1, 2, 70, 71, 500])
@pytest.mark.parametrize("last", [0, 1, 50, 99, 100])
@pytest.mark.parametrize("tagged", [True, False])
def test_the_chunks_of_a_png_are_leapt_over(tmp_path, monkeypatch, chunks, last, tagged):
    """A pass that met each of them would read whole files, since a disk reads ahead: 11 GB of CIRR instead of 0.4."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + bytes(4)

    pixels = [chunk(b"IDAT", bytes(100))] * (chunks - 1) + [chunk(b"IDAT", bytes(last))]
    parts = [chunk(b"IHDR", bytes(13)), *pixels, chunk(b"eXIf", bytes(500)) if tagged else b"", chunk(b"IEND", b"")]
    (tmp_path / "a.png").write_bytes(bytes(8) + b"".join(parts))
    seen, look = [], png_chunks.chunk_at
    monkeypatch.setattr(png_chunks, "chunk_at", lambda file, place: seen.append(place) or look(file, place))
    assert png_chunks.has_late_metadata(str(tmp_path / "a.png")) is tagged
    assert len(seen) < 20


def test_pillow_turns_a_tiff_for_every_reader_alike(tmp_path):
    two_colours().save(tmp_path / "a.tiff", exif=tag(6))
    assert stored_size(tmp_path / "a.tiff") == open_rgb(tmp_path / "a.tiff").size == (400, 800)
    assert orientation(tmp_path / "a.tiff") == 1


def test_orientations_of_many_files(tmp_path):
    for value in range(1, 9):
        Image.new("L", (4, 2)).save(tmp_path / f"{value}.png", exif=tag(value))
    Image.new("L", (4, 2)).save(tmp_path / "9.jpg", exif=tag(77))
    Image.new("L", (4, 2)).save(tmp_path / "10.jpg", exif=b"Exif\0\0damaged")
    (tmp_path / "11.jpg").write_bytes(b"no image")
    found = orientations([*(tmp_path / f"{v}.png" for v in range(1, 9)), *(tmp_path / f"{v}.jpg" for v in (9, 10, 11))])
    assert found[:10] == [1, 2, 3, 4, 5, 6, 7, 8, 1, 1]
    assert isinstance(found[10], ImageError)
    assert [is_tagged(answer) for answer in found] == [False, *[True] * 7, False, False, False]


def test_sixteen_bit_grey_is_grey_for_every_reader(tmp_path):
    sixteen_bits(tmp_path / "a.png")
    expected = (np.arange(2400).reshape(40, 60) * 27) >> 8
    image = open_rgb(tmp_path / "a.png")
    assert (np.asarray(image)[:, :, 1] == expected).all()
    with Image.open(tmp_path / "a.png") as raw:
        pixels = BlipImageEvalProcessor(56)(raw)
    assert torch.equal(pixels, BlipImageEvalProcessor(56)(image))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "I;16"])
def test_an_opened_image_has_the_pixels_of_pillow(tmp_path, mode):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (9, 7, 4), dtype=np.uint8), "RGBA")
    image = image.convert("RGB").convert("P") if mode == "P" else image.convert("L" if mode == "I;16" else mode)
    options = {"transparency": bytes(range(256))} if mode == "P" else {}
    image.save(tmp_path / "a.tiff" if mode == "CMYK" else tmp_path / "a.png", **options)
    assert np.array_equal(open_rgb(next(tmp_path.iterdir())), image.convert("RGB"))


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@pytest.mark.parametrize(("size", "side"), [((800, 400), 50), ((400, 801), 90), ((60, 40), 90)])
def test_a_small_copy_is_the_opened_image_made_smaller(tmp_path, kind, size, side):
    path = tmp_path / "a"
    picture = Image.effect_mandelbrot(size, (-2, -1.5, 1, 1.5), 60).convert("RGB").rotate(90, expand=size[0] > 500)
    picture.save(path, kind, exif=tag(6), quality=95)
    expected = open_rgb(path)
    expected.thumbnail((side, side))
    small = open_small(path, side)
    assert small.mode == "RGB" and small.size == expected.size and not small.getexif()
    assert max(small.size) <= side
    difference = np.abs(np.asarray(small, dtype=float) - np.asarray(expected, dtype=float)).mean()
    assert difference < (3 if kind == "JPEG" else 1e-9)


def test_a_large_jpeg_is_not_decoded_in_full(tmp_path, monkeypatch):
    Image.new("RGB", (1600, 800)).save(tmp_path / "a.jpg")
    decoded = []
    monkeypatch.setattr("sprc.data.images.as_rgb", lambda image: decoded.append(image.size) or image.convert("RGB"))
    assert open_small(tmp_path / "a.jpg", 100).size == (100, 50)
    assert decoded == [(400, 200)]


def bomb(path: Path) -> None:
    Image.new("1", (20000, 20000)).save(path)


def damaged_avif(path: Path) -> None:
    path.write_bytes(b"\0\0\0\x20ftypavif\0\0\0\0avifmif1miafMA1B" + bytes(200))


def cut(path: Path) -> None:
    Image.effect_noise((60, 40), 50).save(path)
    path.write_bytes(path.read_bytes()[:200])


def odd_tiff(path: Path) -> None:
    """Pillow logs an error of its own for it."""
    Image.new("RGB", (9, 9)).save(path, "TIFF")
    entry = struct.pack("<HHI", 277, 3, 1)  # samples per pixel
    path.write_bytes(path.read_bytes().replace(entry + b"\3\0", entry + b"\x63\0"))


FAULTS = {
    "a FIFO": (os.mkfifo, "it is no regular file: copy or download it again"),
    "a folder": (os.mkdir, "it is no regular file"),
    "no file": (lambda path: None, "No such file or directory: copy or download it again"),
    "a link in a circle": (lambda path: path.symlink_to(path), "symbolic links"),
    "an empty file": (lambda path: path.touch(), "it is empty: copy or download it again"),
    "a text": (lambda path: path.write_text("<html>"), "of a format that is not read here, none of PNG"),
    "PostScript": (lambda path: Image.new("RGB", (9, 9)).save(path, "EPS"), "of format EPS, which is not read here"),
    "a damaged AVIF": (damaged_avif, "of format AVIF, which is not read here: save it as PNG or JPEG"),
    "a damaged header": (lambda path: path.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(50)), "like a PNG, but is damaged"),
    "a TIFF of 99 samples": (odd_tiff, "begins like a TIFF, but is damaged"),
    "cut off": (cut, "truncated"),
    "a decompression bomb": (bomb, f"it has more than {MOST_PIXELS} pixels: shrink it"),
    "32-bit grey": (lambda path: Image.new("F", (9, 9)).save(path, "TIFF"), "no known range: save it with 8 bits"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_cannot_be_read_is_an_image_error(tmp_path, fault, capfd):
    path = tmp_path / "a.png"
    spoil, says = FAULTS[fault]
    spoil(path)
    with pytest.raises(ImageError) as error:
        answer_within(10, open_rgb, path)
    assert says in str(error.value)
    assert "\n" not in str(error.value)
    assert capfd.readouterr().err == ""


def answer_within(seconds: float, call, *arguments):
    """The call's result or error; fails if it hangs."""
    found = []

    def work():
        try:
            found.append((call(*arguments), None))
        except Exception as error:
            found.append((None, error))

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(seconds)
    assert found, "it hangs"
    if found[0][1] is not None:
        raise found[0][1]
    return found[0][0]


def test_permission_denied_is_told_with_its_fix(tmp_path, monkeypatch):
    Image.new("RGB", (9, 9)).save(tmp_path / "a.png")

    def denied(*arguments, **options):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Image, "open", denied)
    path, says = tmp_path / "a.png", r"image 'a' at \S+a\.png cannot be read \(Permission denied\): make it readable"
    with pytest.raises(InputError, match=says), naming_image("a", path):
        open_rgb(path)


@pytest.mark.parametrize(("kind", "method", "read"), [
    (PngImageFile, "load_prepare", open_rgb),
    (Image.Image, "getexif", orientation),
])  # fmt: skip
def test_a_signal_while_an_image_is_read_is_no_damage(tmp_path, monkeypatch, kind, method, read):
    def stop(*arguments, **options):
        raise Stopped(signal.SIGINT, "stopped by SIGINT")

    Image.new("RGB", (9, 9)).save(tmp_path / "a.png")
    monkeypatch.setattr(kind, method, stop)
    with pytest.raises(Stopped), naming_image("a", tmp_path / "a.png"):
        read(tmp_path / "a.png")


@settings(max_examples=150)
@given(kind=st.sampled_from(["PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF"]), place=st.integers(0, 10**6),
       junk=st.binary(min_size=1, max_size=40), cut_off=st.booleans())  # fmt: skip
def test_a_damaged_file_is_read_or_refused(tmp_path_factory, kind, place, junk, cut_off):
    path = tmp_path_factory.mktemp("fuzz") / "a.png"
    Image.effect_noise((31, 17), 60).save(path, kind)
    content = bytearray(path.read_bytes())
    place %= len(content)
    content[place : len(content) if cut_off else place + len(junk)] = junk
    path.write_bytes(content)
    for read in (open_rgb, partial(open_small, side=8), stored_size, orientation):
        try:
            read(path)
        except ImageError as error:
            assert len(str(error)) > 20


@pytest.mark.integration
def test_a_large_image_warns_of_nothing(warm, tmp_path):
    """Between the bound and twice the bound Pillow warns, with a line of its source: in a process of its own."""
    Image.new("1", (10000, 10000)).save(tmp_path / "a.png")
    code = f"from sprc.data import images; print(images.stored_size({str(tmp_path / 'a.png')!r}))"
    answer = warm("-c", code).finished()
    assert (answer.stdout, answer.stderr) == ("(10000, 10000)\n", "")


def test_a_bug_of_preprocess_keeps_its_trace(demo):
    def wrong(image):
        raise ValueError("of the caller")

    dataset = CIRRDataset("val", "classic", wrong, data_path=demo)
    with pytest.raises(ValueError, match=r"^of the caller$") as error:
        dataset[0]
    assert not isinstance(error.value, InputError)


def test_an_image_error_passes_between_processes():
    import pickle

    error = pickle.loads(pickle.dumps(ImageError("it is odd", "mend it")))
    assert (str(error), error.reason, error.fix) == ("it is odd: mend it", "it is odd", "mend it")


@pytest.mark.parametrize(("size", "ratio", "way"), [((20000, 100), 1.25, "padded"), ((20000, 1), 1e6, "resized")])
def test_an_image_too_large_on_its_way_is_refused(size, ratio, way):
    with pytest.raises(ImageError, match=f"{way} to .*: crop or shrink it"):
        targetpad_transform(ratio, 224)(Image.new("RGB", size))


# --- the check before training ----------------------------------------------------------------------------------------


def open_both(folder):
    preprocess = targetpad_transform(1.25, 56)
    return [CIRRDataset(split, "classic", preprocess, data_path=folder) for split in ("train", "val")]


def test_all_problems_of_all_datasets_come_in_one_error(demo_copy):
    train, val = open_both(demo_copy)
    check_images(train, val)
    places = [train.path_of(name) for name in train.names]
    for path in places[:5]:
        path.unlink()
    places[0].with_suffix(".JPG").touch()
    places[5].write_bytes(b"")
    places[6].unlink()
    os.mkfifo(places[6])
    places[7].write_text("<html>404</html>")
    gone = val.path_of(val.names[3])
    gone.unlink()
    with pytest.raises(InputError) as error:
        answer_within(10, check_images, train, val)
    said, shown = str(error.value), train.image_paths
    first = shown[train.names[0]]
    hint = f"{first} (there is {Path(first).stem}.JPG: rename it)"
    assert f"5 of 24 images of CIRR train are missing, first {hint}, {shown[train.names[1]]}, " in said
    assert shown[train.names[3]] not in said
    assert f"1 of 24 images of CIRR train cannot be read (it is empty), first {shown[train.names[5]]}: copy or" in said
    assert f"(it is no regular file), first {shown[train.names[6]]}: copy or" in said
    assert "(it is of a format that is not read here" in said
    assert f"1 of 18 images of CIRR val are missing, first {val.image_paths[val.names[3]]}: copy or" in said
    assert f"; they belong under {demo_copy}, and cirr_dataset/README.md says where they come from" in said
    assert "\n" not in said


def test_a_fault_is_told_with_its_own_fix(demo_copy):
    train, val = open_both(demo_copy)
    for name in val.names[:2]:
        bomb(val.path_of(name))
    with pytest.raises(
        InputError, match=r"^2 of 18 images of CIRR val .* pixels\), first dev/\S+, dev/\S+: shrink it;"
    ):
        check_images(train, val)


def test_only_an_image_of_no_other_name_is_to_be_renamed(demo_copy):
    val = open_both(demo_copy)[1]
    first, second = (val.path_of(name) for name in val.names[:2])
    first.rename(first.with_suffix(".txt"))  # no image by its name
    second.rename(second.with_name(first.stem.upper() + ".png"))
    val.image_paths |= {first.stem.upper(): f"dev/{first.stem.upper()}.png"}  # an image of the dataset itself
    val.names.append(first.stem.upper())
    with pytest.raises(InputError) as error:
        check_images(val)
    assert "2 of 19 images of CIRR val are missing" in str(error.value)
    assert "rename" not in str(error.value)


def test_many_reasons_do_not_make_a_long_message(demo_copy):
    val = open_both(demo_copy)[1]
    for number, name in enumerate(val.names):
        Image.new("RGB", (9, 9)).save(val.path_of(name), "BMP")
        content = bytearray(val.path_of(name).read_bytes())
        content[28:30] = struct.pack("<H", 1000 + number)  # bits of a pixel
        val.path_of(name).write_bytes(content)
    with pytest.raises(
        InputError, match="; 13 of 18 images of CIRR val cannot be read for other reasons, first "
    ) as error:
        check_images(val)
    assert len(str(error.value)) < 1500


def test_a_folder_that_cannot_be_listed_is_named(demo, monkeypatch):
    from sprc.data import image_files

    def denied(folder):
        raise PermissionError(13, "Permission denied")

    datasets = open_both(demo)
    monkeypatch.setattr(image_files.os, "listdir", denied)
    with pytest.raises(InputError, match=r"\S+ cannot be listed \(Permission denied\)"):
        check_images(*datasets)


def test_tagged_images_are_counted_once_by_dataset(demo_copy, caplog):
    train, val = open_both(demo_copy)
    for dataset, count in ((train, 3), (val, 1)):
        for name in dataset.names[:count]:
            with Image.open(dataset.path_of(name)) as image:
                image.load()
            image.save(dataset.path_of(name), exif=tag(6))
    check_images(train, val, train)
    (said,) = caplog.messages
    assert said.startswith(
        "3 of 24 images of CIRR train and 1 of 18 images of CIRR val carry an EXIF orientation. It is"
    )
    assert "mogrify -auto-orient" in said
