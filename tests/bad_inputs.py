"""Bad input, one case a line: what is wrong, how it is made, and a part of what the scripts must say."""

import json
import os
import zipfile
from argparse import Namespace
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file

CAPTIONS = "cirr/captions/cap.rc2.{}.json"
SPLIT = "cirr/image_splits/split.rc2.{}.json"
BOXES = "boxes/cirr_boxes_train.json"
AVIF = b"\0\0\0\x20ftypavif\0\0\0\0avifmif1miafMA1B" + bytes(200)
UPSIDE_DOWN = Image.Exif()
UPSIDE_DOWN[0x0112] = 3


@dataclass(frozen=True)
class Case:
    """`spoil(folder)` breaks a demo dataset, and may write weights into it; `flags` come last, with {folder} filled in.

    `says` is a part of the message; None where the input is odd but right, and the training ends well.
    """

    kind: str
    what: str
    says: str | None
    spoil: Callable[[Path], None] = lambda folder: None
    flags: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.kind}: {self.what}"


def changed(place: str, change: Callable) -> Callable[[Path], None]:
    """Change a JSON file: `change` gets its content, and its result is written where it is not None."""

    def spoil(folder: Path) -> None:
        path = folder / place
        content = json.loads(path.read_text())
        result = change(content)
        path.write_text(json.dumps(content if result is None else result))

    return spoil


def entry(key: str, value, split: str = "train") -> Callable[[Path], None]:
    """Set a key of the fourth caption."""
    return changed(CAPTIONS.format(split), lambda entries: entries[3].update({key: value}))


def written(place: str, content: bytes) -> Callable[[Path], None]:
    return lambda folder: (folder / place).write_bytes(content)


def removed(place: str) -> Callable[[Path], None]:
    return lambda folder: (folder / place).unlink()


def split_place(value) -> Callable[[Path], None]:
    return changed(SPLIT.format("train"), lambda places: places.update({next(iter(places)): value}))


def split_alias(folder: Path) -> None:
    """Give the first training image a second name."""
    changed(SPLIT.format("train"), lambda places: places.update(alias=next(iter(places.values()))))(folder)


def marked(place: str) -> Callable[[Path], None]:
    """As Windows' editors write a file."""
    return lambda folder: (folder / place).write_bytes(b"\xef\xbb\xbf" + (folder / place).read_bytes())


def pipe_instead(place: str) -> Callable[[Path], None]:
    return lambda folder: ((folder / place).unlink(), os.mkfifo(folder / place))


def link_to_itself(place: str) -> Callable[[Path], None]:
    return lambda folder: ((folder / place).unlink(), (folder / place).symlink_to(folder / place))


def boxes(value) -> Callable[[Path], None]:
    """Give the first image of the box file another value."""
    return changed(BOXES, lambda regions: regions.update({next(iter(regions)): value}))


def image(make: Callable[[Path], None]) -> Callable[[Path], None]:
    """Replace the first training image: `make` writes to its path, of a triplet and so met for certain."""

    def spoil(folder: Path) -> None:
        places = json.loads((folder / SPLIT.format("train")).read_text())
        name = json.loads((folder / CAPTIONS.format("train")).read_text())[0]["reference"]
        make(folder / places[name])

    return spoil


def saved(mode: str, size: tuple[int, int] = (60, 40), **options) -> Callable[[Path], None]:
    return image(lambda path: Image.new(mode, size).save(path, **options))


def sixteen_bits(path: Path) -> None:
    Image.fromarray(np.arange(2400, dtype=np.uint16).reshape(40, 60) * 27).save(path)


def animated(path: Path) -> None:
    frames = [Image.new("P", (60, 40), colour) for colour in (1, 2)]
    frames[0].save(path, format="GIF", save_all=True, append_images=frames[1:])


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:200])


def fifo_instead(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def folder_instead(path: Path) -> None:
    path.unlink()
    path.mkdir()


def torch_file(content) -> Callable[[Path], None]:
    return lambda folder: torch.save(content, folder / "w.pt")


class Marker:
    """Unpickled by a loader that runs code, it would leave a file."""

    def __init__(self, path: str):
        self.path = path

    def __reduce__(self):
        return Path.touch, (Path(self.path),)


def pickle_with_code(folder: Path) -> None:
    torch.save({"Blip2QformerCirAlignPrompt": {"temp": Marker(str(folder / "marked"))}}, folder / "w.pt")


def half_a_file(folder: Path) -> None:
    torch.save({"a": torch.zeros(1000)}, folder / "whole.pt")
    (folder / "w.pt").write_bytes((folder / "whole.pt").read_bytes()[:2000])


def half_safetensors(folder: Path) -> None:
    save_file({"a": torch.zeros(1000)}, folder / "whole.safetensors")
    (folder / "w.pt").write_bytes((folder / "whole.safetensors").read_bytes()[:500])


def other_zip(folder: Path) -> None:
    with zipfile.ZipFile(folder / "w.pt", "w") as file:
        file.writestr("hello.txt", "hello")


def tiny_checkpoint(folder: Path) -> None:
    from lavis.models import load_model
    from lavis.models.checkpoint import save_model

    save_model(load_model("blip2_cir_align_prompt", "tiny"), 0, folder / "w.pt")


def flipped_bit(folder: Path) -> None:
    """A file of weights, one bit of a number of which is another."""
    torch.save({"Blip2QformerCirAlignPrompt": {"temp": torch.full((1000,), 0.5)}}, folder / "w.pt")
    content = bytearray((folder / "w.pt").read_bytes())
    content[content.index(np.full(1000, 0.5, np.float32).tobytes()) + 2000] ^= 1
    (folder / "w.pt").write_bytes(content)


def tiny_with(name: str, value: torch.Tensor) -> Callable[[Path], None]:
    """Weights of the tiny backbone, one tensor of which is another."""

    def write(folder: Path) -> None:
        from lavis.models import load_model

        state = load_model("blip2_cir_align_prompt", "tiny").state_dict()
        torch.save({"Blip2QformerCirAlignPrompt": state | {name: value}}, folder / "w.pt")

    return write


def other_tiny(old: str, new: str) -> Callable[[Path], None]:
    """The YAML of `tiny` with a text replaced."""

    def spoil(folder: Path) -> None:
        from lavis.models.model_config import config_path

        text = config_path("tiny").read_text()
        assert old in text
        (folder / "m.yaml").write_text(text.replace(old, new))

    return spoil


WEIGHTS = ("--weights", "{folder}/w.pt")
TINY_WEIGHTS = (*WEIGHTS, "--backbone", "tiny")
REGIONS = ("--use-region-loss", "--box-file", "{folder}/" + BOXES)
TRAIN, VAL = CAPTIONS.format("train"), CAPTIONS.format("val")
YAML = ("--backbone", "{folder}/m.yaml")

CASES = [
    Case("captions", "no file", "no file", removed(TRAIN)),
    Case("captions", "no JSON", "not valid JSON", written(TRAIN, b"[{]")),
    Case("captions", "cut off", "not valid JSON", written(TRAIN, b'[{"pairid": 1, "refe')),
    Case("captions", "not UTF-8", "not valid JSON", written(TRAIN, b'["\xff\xfe"]')),
    Case("captions", "a key twice", "entry 0 has the key 'pairid' twice", written(TRAIN, b'[{"pairid": 1, "pairid": 2}]')),
    Case("captions", "half of a character", "entry 3, 'caption' holds half of a character", entry("caption", "x \ud83d")),
    Case("captions", "half of a character in val", "entry 3, 'caption' holds half of a character", entry("caption", "x \ud83d", "val")),
    Case("captions", "lists in lists in lists", "nested too deeply", written(TRAIN, b"[" * 100_000)),
    Case("captions", "a number of 5000 digits", "not valid JSON (Exceeds", written(TRAIN, b"[" + b"7" * 5000 + b"]")),
    Case("captions", "a byte order mark", None, marked(TRAIN)),
    Case("captions", "a pipe", "no regular file", pipe_instead(TRAIN)),
    Case("captions", "a link to itself", "Too many levels of symbolic links", link_to_itself(TRAIN)),
    Case("captions", "an object, not a list", "should hold a JSON list", written(TRAIN, b"{}")),
    Case("captions", "an empty list", "holds no caption", written(TRAIN, b"[]")),
    Case("captions", "an entry that is a number", "entry 3 is 5", changed(TRAIN, lambda e: [*e[:3], 5])),
    Case("captions", "no target", "entry 3 (pairid 3) lacks target_hard", changed(TRAIN, lambda e: e[3].pop("target_hard") and None)),
    Case("captions", "a caption that is a number", "needs a text as caption", entry("caption", 7)),
    Case("captions", "a reference of no image", "names 'nowhere', which split", entry("reference", "nowhere")),
    Case("captions", "a target of no image", "names 'nowhere', which split", entry("target_hard", "nowhere")),
    Case("captions", "a reference that is null", "names None", entry("reference", None)),
    Case("captions", "no group", "a list as img_set.members", entry("img_set", {}, "val")),
    Case("captions", "a group of no image", "names 'x'", entry("img_set", {"members": ["x"]}, "val")),
    Case("captions", "a target outside its group", "none of the other members of its group", changed(VAL, lambda e: e[0]["img_set"].update(members=[e[0]["reference"]]))),
    Case("split", "no file", "no file", removed(SPLIT.format("train"))),
    Case("split", "a list, not an object", "should hold a JSON dict", written(SPLIT.format("train"), b"[]")),
    Case("split", "no image", "lists no image", written(SPLIT.format("train"), b"{}")),
    Case("split", "an absolute path", "write it as './train", split_place("/etc/passwd")),
    Case("split", "a path that leaves the folder", "write it as './train", split_place("./train/../../secret.png")),
    Case("split", "a path with \\", "write it with / instead of", split_place(".\\train\\0\\a.png")),
    Case("split", "a path that is the folder", "write it as './train", split_place("./")),
    Case("split", "a name that is empty", "give the image a name", changed(SPLIT.format("train"), lambda places: places.update({"": "./train/0/a.png"}))),
    Case("split", "a name twice", "the object has the key 'train-0-0-img0' twice", written(SPLIT.format("train"), b'{"train-0-0-img0": "./a.png", "train-0-0-img0": "./b.png"}')),
    Case("split", "half of a character in a name", "half of a character", changed(SPLIT.format("train"), lambda places: places.update({"\ud83d": "./train/0/a.png"}))),
    Case("split", "an image under two names", None, split_alias),
    Case("split", "a path that is a number", "write it as './train", split_place(3)),
    Case("split", "images that are not there", "1 of 24 images of CIRR train are missing", split_place("./train/0/none.png")),
    Case("boxes", "no file", "no file", removed(BOXES), REGIONS),
    Case("boxes", "no JSON", "not valid JSON", written(BOXES, b"boxes"), REGIONS),
    Case("boxes", "a list, not an object", "should hold a JSON dict", written(BOXES, b"[]"), REGIONS),
    Case("boxes", "no box of an image of this dataset", "shares no image name", written(BOXES, b'{"other": []}'), REGIONS),
    Case("boxes", "an image twice", "the object has the key 'a' twice", written(BOXES, b'{"a": [], "a": [[0, 0, 1, 1]]}'), REGIONS),
    Case("boxes", "null for an image", "write a list of boxes", boxes(None), REGIONS),
    Case("boxes", "three numbers", "write four numbers", boxes([[0.1, 0.1, 0.5]]), REGIONS),
    Case("boxes", "pixels", "these look like pixels", boxes([[10, 20, 100, 90]]), REGIONS),
    Case("boxes", "a negative number", "outside [0, 1]", boxes([[-0.1, 0, 0.5, 0.5]]), REGIONS),
    Case("boxes", "a rounding above 1 and below 0", None, boxes([[-1e-7, 0.5, 1.0000001, 0.9]]), REGIONS),
    Case("boxes", "a number above 1 by more than a rounding", "outside [0, 1]", boxes([[0.5, 0.5, 1.01, 0.9]]), REGIONS),
    Case("boxes", "NaN", "NaN", boxes([[float("nan"), 0, 1, 1]]), REGIONS),
    Case("boxes", "right and left exchanged", "x2 must be above x1", boxes([[0.9, 0.1, 0.2, 0.5]]), REGIONS),
    Case("boxes", "no area", "x2 must be above x1", boxes([[0.2, 0.2, 0.2, 0.5]]), REGIONS),
    Case("boxes", "texts", "write four numbers", boxes([["0", "0", "1", "1"]]), REGIONS),
    Case("boxes", "true and false", "write four numbers", boxes([[False, False, True, True]]), REGIONS),
    Case("boxes", "an object without a box", "write four numbers", boxes([{"label": "dog"}]), REGIONS),
    Case("boxes", "a label that is a class number", None, boxes([{"box": [0, 0, 1, 1], "label": 3}]), REGIONS),
    Case("boxes", "a label that is true", "label must be a text", boxes([{"box": [0, 0, 1, 1], "label": True}]), REGIONS),
    Case("boxes", "another frame", "boxes are read in the frame", changed(BOXES, lambda b: b.update(__frame__="upright")), REGIONS),
    Case("boxes", "the frame that is meant", None, changed(BOXES, lambda b: b.update(__frame__="stored")), REGIONS),
    Case("boxes", "a score that is a text", "score must be a number", boxes([{"box": [0, 0, 1, 1], "score": "high"}]), REGIONS),
    Case("boxes", "a score of 400 digits", "score must be a number", boxes([{"box": [0, 0, 1, 1], "score": 10**400}]), REGIONS),
    Case("boxes", "no box at all", None, changed(BOXES, lambda b: {name: [] for name in b}), REGIONS),
    Case("images", "cut off", "cannot be read", image(truncated)),
    Case("images", "an empty file", "1 of 24 images of CIRR train cannot be read (it is empty)", image(lambda path: path.write_bytes(b""))),
    Case("images", "a text", "of a format that is not read here", image(lambda path: path.write_text("<html>404</html>"))),
    Case("images", "a folder", "it is no regular file", image(folder_instead)),
    Case("images", "a FIFO", "it is no regular file", image(fifo_instead)),
    Case("images", "another suffix", "JPG: rename it)", image(lambda path: path.rename(path.with_suffix(".JPG")))),
    Case("images", "a damaged AVIF", "of format AVIF, which is not read here", image(lambda path: path.write_bytes(AVIF))),
    Case("images", "20,000 x 100 pixels", "padded to 20000 x 16000", saved("RGB", (20000, 100))),
    Case("images", "a decompression bomb", "pixels)", saved("1", (20000, 20000))),
    Case("images", "32-bit numbers", "has no known range", saved("F", format="TIFF")),
    Case("images", "an EXIF orientation", None, saved("RGB", format="JPEG", exif=UPSIDE_DOWN)),
    Case("images", "an EXIF orientation, and boxes of an unknown frame", "does not say in which frame", saved("RGB", format="JPEG", exif=UPSIDE_DOWN), REGIONS),
    Case("images", "one pixel", None, saved("RGB", (1, 1))),
    Case("images", "a palette", None, saved("P")),
    Case("images", "CMYK", None, saved("CMYK", format="JPEG")),
    Case("images", "transparent", None, saved("RGBA")),
    Case("images", "16-bit grey", None, image(sixteen_bits)),
    Case("images", "animated", None, image(animated)),
    Case("images", "a JPEG named .png", None, saved("RGB", format="JPEG")),
    Case("weights", "no file", "no weights at", flags=WEIGHTS),
    Case("weights", "an empty file", "cannot be read as a weight file", written("w.pt", b""), WEIGHTS),
    Case("weights", "a web page", "cannot be read as a weight file", written("w.pt", b"<html>login</html>"), WEIGHTS),
    Case("weights", "a checkpoint cut off", "cannot be read as a weight file", half_a_file, WEIGHTS),
    Case("weights", "safetensors cut off", "cannot be read as a weight file", half_safetensors, WEIGHTS),
    Case("weights", "another zip file", "cannot be read as a weight file", other_zip, WEIGHTS),
    Case("weights", "a pickle with code in it", "cannot be read as a weight file", pickle_with_code, WEIGHTS),
    Case("weights", "a list", "holds a list, not a dictionary", torch_file([1, 2]), WEIGHTS),
    Case("weights", "another model", "no weights that this model can read", torch_file({"conv1.weight": torch.zeros(2)}), WEIGHTS),
    Case("weights", "numbers in place of tensors", "is no tensor", torch_file({"Blip2QformerCirAlignPrompt": {"temp": 1}}), WEIGHTS),
    Case("weights", "most names missing", "missing:", torch_file({"Blip2QformerCirAlignPrompt": {"temp": torch.tensor(0.07)}}), WEIGHTS),
    Case("weights", "another backbone", "wrongly shaped", tiny_checkpoint, WEIGHTS),
    Case("weights", "a vision encoder alone", "holds the vision encoder alone", torch_file({"blocks.0.attn.q_bias": torch.zeros(2)}), WEIGHTS),
    Case("weights", "a flipped bit", "is damaged: w/data/0 is not what was written", flipped_bit, WEIGHTS),
    Case("weights", "whole numbers of 8 bits", "1 tensors are of a type that no one trains in: ln_vision.weight (int8)", tiny_with("ln_vision.weight", torch.ones(96, dtype=torch.int8)), TINY_WEIGHTS),
    Case("weights", "NaN", "is bad: 1 tensors hold NaN or infinite numbers: temp", tiny_with("temp", torch.tensor(float("nan"))), TINY_WEIGHTS),
    Case("weights", "the state of a run", "is the state of a run, not weights", torch_file({"config": {}, "model": {}, "optimization": {}, "random": []}), WEIGHTS),
    Case("weights", "settings beside the weights", "it holds argparse.Namespace, and code in a file is never run", torch_file({"state_dict": {}, "args": Namespace(lr=1)}), WEIGHTS),
    Case("weights", "too long a name", "File name too long", flags=("--weights", "{folder}/" + "x" * 300)),
    Case("weights", "a folder without weights", "no weights at", flags=("--weights", "{folder}/cirr")),
    Case("backbone", "unknown", "unknown backbone 'huge'", flags=("--backbone", "huge")),
    Case("backbone", "no YAML", "not valid YAML", written("m.yaml", b"a: [1"), YAML),
    Case("backbone", "a list", "should be a table", written("m.yaml", b"[1]"), YAML),
    Case("backbone", "an unknown entry", "unknown entries ['depth']", written("m.yaml", b"depth: 3"), YAML),
    Case("backbone", "an entry twice", "'embed_dim' stands twice", written("m.yaml", b"embed_dim: 3\nembed_dim: 4"), YAML),
    Case("backbone", "a size of 0", "embed_dim is 0; write a number that is at least 1", other_tiny("embed_dim: 64", "embed_dim: 0"), YAML),
    Case("backbone", "a negative size", "vision.depth is -1", other_tiny("depth: 1", "depth: -1"), YAML),
    Case("backbone", "lists in lists in lists", "nested too deeply", written("m.yaml", b"[" * 5000), YAML),
    Case("backbone", "weights in another folder", "write the name of a file, without a folder", other_tiny("embed_dim: 64", "embed_dim: 64\nweights: ../../w.pth"), YAML),
    Case("flags", "an unknown flag", "unrecognized arguments: --region-loss", flags=("--region-loss",)),
    Case("flags", "no number", "invalid int value: 'many'", flags=("--batch-size", "many")),
    Case("flags", "an unknown dataset", "dataset 'coco'", flags=("--dataset", "coco")),
    Case("flags", "no dataset folder", "no folder", flags=("--data-path", "{folder}/nowhere")),
    Case("flags", "an unknown model", "'blip3'", flags=("--blip-model-name", "blip3")),
    Case("flags", "batch size 0", "--batch-size must be above 0", flags=("--batch-size", "0")),
    Case("flags", "a batch larger than the data", "--batch-size 41 is more than the 40 triplets", flags=("--batch-size", "41")),
    Case("flags", "micro-batch 0", "--micro-batch must be at least 1", flags=("--micro-batch", "0")),
    Case("flags", "no epochs", "--num-epochs must be above 0", flags=("--num-epochs", "0")),
    Case("flags", "a negative learning rate", "--learning-rate must be", flags=("--learning-rate", "-1")),
    Case("flags", "an infinite learning rate", "--learning-rate must be", flags=("--learning-rate", "inf")),
    Case("flags", "a loss weight that is no number", "--loss-rtc must be", flags=("--loss-rtc", "nan")),
    Case("flags", "a negative loss weight", "--loss-align must be", flags=("--loss-align", "-1")),
    Case("flags", "a negative seed", "--seed must be", flags=("--seed", "-1")),
    Case("flags", "negative workers", "--num-workers must be at least 0", flags=("--num-workers", "-1")),
    Case("flags", "no triplets", "--max-triplets must be above 0", flags=("--max-triplets", "0")),
    Case("flags", "an unknown transform", "invalid choice: 'crop'", flags=("--transform", "crop")),
    Case("flags", "a ratio below 1", "at least 1, not 0.5", flags=("--target-ratio", "0.5")),
    Case("flags", "an infinite ratio", "at least 1, not inf", flags=("--target-ratio", "inf")),
    Case("flags", "an unknown device", "'toaster' is not a device", flags=("--device", "toaster")),
    Case("flags", "a device that is none here", "'mps' is not a device that this project runs on", flags=("--device", "mps")),
    Case("flags", "a device without memory", "'meta' is not a device that this project runs on", flags=("--device", "meta")),
    Case("flags", "fp16 on the CPU", "needs a CUDA device", flags=("--precision", "fp16")),
    Case("flags", "cache on CUDA without CUDA", "--cache-device cuda: this run is on cpu", flags=("--feature-cache", "{folder}/f", "--cache-device", "cuda")),
    Case("flags", "regions without boxes", "--use-region-loss needs --box-file", flags=("--use-region-loss",)),
    Case("flags", "boxes without regions", "no effect without --use-region-loss", flags=REGIONS[1:]),
    Case("flags", "a bias of the attention without boxes", "--region-bias needs --box-file", flags=("--region-bias", "4")),
    Case("flags", "a bias that prefers the background", "--region-bias must be at least 0", flags=(*REGIONS, "--region-bias", "-4")),
    Case("flags", "a bias that falls after the end", "--region-bias-until is a part of the training", flags=(*REGIONS, "--region-bias", "4", "--region-bias-until", "2")),
    Case("flags", "a negative region weight", "at least 0", flags=(*REGIONS, "--loss-region", "-1")),
    Case("flags", "no regions an image", "--max-regions must be", flags=(*REGIONS, "--max-regions", "0")),
    Case("flags", "a region schedule beyond the end", "up to 1", flags=(*REGIONS, "--loss-region", "1", "--loss-region-until", "2")),
    Case("flags", "an unknown objective", "invalid choice: 'all'", flags=(*REGIONS, "--region-objective", "all")),
    Case("flags", "a warm-up of more than all", "--warmup is a part", flags=("--warmup", "2")),
    Case("flags", "a schedule shorter than the training", "less than the 1 epochs", flags=("--schedule-epochs", "0")),
    Case("flags", "memory of 0 MiB", "--memory-mib must be above 0", flags=("--memory-mib", "0")),
    Case("flags", "validation never", "--validation-frequency must be above 0", flags=("--validation-frequency", "0")),
    Case("flags", "saving every 0 steps", "--save-every is epoch", flags=("--save-every", "0")),
    Case("flags", "saving at no time", "--save-every is epoch", flags=("--save-every", "infm")),
    Case("flags", "the home folder of nobody", "write the whole path", flags=("--data-path", "~nobody_of_this_name/x")),
    Case("flags", "no run to go on with", "there is no training_state.pt", flags=("--resume", "{folder}")),
    Case("flags", "FashionIQ's gallery for CIRR", "is not for CIRR", flags=("--gallery", "captions")),
]  # fmt: skip
