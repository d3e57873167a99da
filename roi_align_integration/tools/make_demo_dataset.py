"""Make a small dataset in CIRR's layout: scenes of coloured shapes, captions that change one object, exact boxes."""

import argparse
import json
import random
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import islice, product
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPOSITORY / "src"))

from sprc.core.command_line import HelpFormatter, positive_int, run_main, user_path  # noqa: E402
from sprc.core.errors import InputError  # noqa: E402
from sprc.core.files import made_and_held, read_json, unwritable, write_atomically  # noqa: E402

DEFAULT_OUTPUT = REPOSITORY / "roi_align_integration" / "data" / "demo_dataset"
SETTINGS_FILE = "demo.json"
# Split of CIRR -> (folder of its images, first part of their names).
SPLITS = {"train": ("train", "train"), "val": ("dev", "dev"), "test1": ("test1", "test1")}
GROUP_SIZE = 6


@dataclass(frozen=True)
class DemoSettings:
    """What fixes the dataset to the last byte. Images are rounded up to whole groups of six."""

    images: int = 1800
    triplets: int = 3000
    val_images: int = 600
    val_triplets: int = 600
    test_images: int = 120
    test_triplets: int = 120
    seed: int = 0
    difficulty: str = "normal"

    def sizes(self) -> dict[str, tuple[int, int]]:
        """Split -> (images, triplets)."""
        return {
            "train": (self.images, self.triplets),
            "val": (self.val_images, self.val_triplets),
            "test1": (self.test_images, self.test_triplets),
        }


def make_demo_dataset(output: Path, settings: DemoSettings) -> bool:
    """Write the dataset; False where it is there already with the same settings.

    A second process that makes it at the same time waits, and finds it there. Raises InputError where the folder holds
    other data, or the difficulty has too few scenes for so many images.
    """
    with made_and_held(output):
        if _is_there(output, settings):
            return False
        _write_demo_dataset(output, settings)
        return True


def _write_demo_dataset(output: Path, settings: DemoSettings) -> None:
    from demo_scenes import DIFFICULTIES, distinct_groups

    difficulty = DIFFICULTIES[settings.difficulty]
    groups = distinct_groups(random.Random(settings.seed), difficulty)
    first_pair = 0
    for split, (images, triplets) in settings.sizes().items():
        count = -(-images // GROUP_SIZE)
        members = list(islice(groups, count))
        if len(members) < count:
            raise InputError(
                f"difficulty {settings.difficulty} has too few distinct scenes for {images} {split} images:"
                " ask for fewer images, or for a harder difficulty"
            )
        write_images(output, split, members, settings)
        write_captions(output, split, members, triplets, first_pair, settings)
        first_pair += triplets
    write_atomically(output / SETTINGS_FILE, json.dumps(asdict(settings)))


def _is_there(output: Path, settings: DemoSettings) -> bool:
    path = output / SETTINGS_FILE
    if path.is_file():
        if read_json(path, dict, f"remove {output}, or give another --output") == asdict(settings):
            return True
        raise InputError(
            f"{output} holds a demo dataset with other settings ({path}): remove it, or give another --output"
        )
    if (output / "cirr").exists() and not (output / "boxes").is_dir():
        raise InputError(f"{output} holds data that is no demo dataset: give another --output")
    return False


def member_name(split: str, group: int, member: int) -> str:
    """A name like CIRR's, `dev-12-0-img1`."""
    return f"{SPLITS[split][1]}-{group}-{member // 2}-img{member % 2}"


def image_place(split: str, group: int, member: int) -> str:
    """Where CIRR keeps the image, relative to the dataset's folder."""
    folder = f"train/{group % 100}" if split == "train" else SPLITS[split][0]
    return f"./{folder}/{member_name(split, group, member)}.png"


def write_images(output: Path, split: str, groups: list, settings: DemoSettings) -> None:
    """The images of a split, its image list and its box file."""
    from demo_scenes import DIFFICULTIES, render
    from tqdm import tqdm

    places, boxes = {}, {}
    for number, group in enumerate(tqdm(groups, desc=f"{split} groups", dynamic_ncols=True)):
        for member in range(GROUP_SIZE):
            name, place = member_name(split, number, member), image_place(split, number, member)
            rng = random.Random(f"{settings.seed}/{name}")
            image, boxes[name] = render(group.scene(member), rng, DIFFICULTIES[settings.difficulty])
            places[name] = place
            try:
                (output / place).parent.mkdir(parents=True, exist_ok=True)
                image.save(output / place, compress_level=1)
            except OSError as error:
                raise unwritable(output / place, error) from error
    write_atomically(output / "cirr" / "image_splits" / f"split.rc2.{split}.json", json.dumps(places))
    write_atomically(output / "boxes" / f"cirr_boxes_{split}.json", json.dumps(boxes))


def write_captions(
    output: Path, split: str, groups: list, triplets: int, first_pair: int, settings: DemoSettings
) -> None:
    """The captions of a split: triplets are dealt to the groups in turn, so that every group has its share.

    Where there are more triplets than pairs of images, a pair has several captions, all different.
    """
    rng = random.Random(f"{settings.seed}/{split}/captions")
    chosen = list(islice(deal_triplets(groups, rng), triplets))
    if len(chosen) < triplets:
        raise InputError(
            f"{len(groups) * GROUP_SIZE} {split} images give {len(chosen)} triplets, not {triplets}: ask for fewer"
        )
    said: dict[tuple, set[str]] = defaultdict(set)
    entries = []
    for number, pair in chosen:
        entries.append(
            caption_entry(split, first_pair + len(entries), number, groups[number], pair, rng, said[number, pair])
        )
    write_atomically(output / "cirr" / "captions" / f"cap.rc2.{split}.json", json.dumps(entries))


def deal_triplets(groups: list, rng: random.Random) -> Iterator[tuple[int, tuple[int, int]]]:
    """(group number, (reference member, target member)), one of each group in turn until all are used; and again, as
    often as a pair can be captioned.
    """
    from demo_scenes import MOST_CAPTIONS, group_triplets

    hands = [group_triplets(group) for group in groups]
    for hand in hands:
        rng.shuffle(hand)
    turns = range(max(map(len, hands), default=0))
    for _, turn, (number, hand) in product(range(MOST_CAPTIONS), turns, enumerate(hands)):
        if turn < len(hand):
            yield number, hand[turn]


def caption_entry(
    split: str, pair_id: int, number: int, group, pair: tuple[int, int], rng: random.Random, said: set[str]
) -> dict:
    """One entry of CIRR's captions file; test1 keeps its target to itself. Its caption is none of `said`, and joins."""
    from demo_scenes import caption_of

    reference, target = pair
    members = [member_name(split, number, member) for member in range(GROUP_SIZE)]
    caption = caption_of(group.variants[reference], group.variants[target], rng, said)
    said.add(caption)
    img_set = {"id": number, "members": members, "reference_rank": reference}
    if split == "test1":
        return {"pairid": pair_id, "reference": members[reference], "caption": caption, "img_set": img_set}
    return {
        "pairid": pair_id,
        "reference": members[reference],
        "target_hard": members[target],
        "target_soft": {members[target]: 1.0},
        "caption": caption,
        "img_set": img_set | {"target_rank": target},
    }


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    defaults = DemoSettings()
    parser.add_argument("--output", type=user_path, default=DEFAULT_OUTPUT, help="folder of the dataset")
    for name, what in (
        ("images", "training images"),
        ("triplets", "training triplets"),
        ("val-images", "validation images"),
        ("val-triplets", "validation triplets"),
        ("test-images", "test images"),
        ("test-triplets", "test queries"),
    ):
        default = getattr(defaults, name.replace("-", "_"))
        parser.add_argument(f"--{name}", type=positive_int, default=default, help=what)
    parser.add_argument("--seed", type=int, default=defaults.seed, help="the same seed gives the same bytes")
    parser.add_argument(
        "--difficulty",
        choices=("easy", "normal", "hard", "plain", "cluttered"),
        default=defaults.difficulty,
        help="objects, colours, noise, clutter",
    )
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Make the dataset and say what was made. Raises InputError as `make_demo_dataset`."""
    arguments = vars(parse_arguments(argv))
    output = arguments.pop("output")
    settings, start = DemoSettings(**arguments), time.perf_counter()
    if not make_demo_dataset(output, settings):
        print(f"demo dataset is there: {output}")
        return
    sizes = ", ".join(f"{split} {images} images and {n} captions" for split, (images, n) in settings.sizes().items())
    print(f"demo dataset in {output}: {sizes}, in {time.perf_counter() - start:.1f} s")


if __name__ == "__main__":
    run_main(main)
