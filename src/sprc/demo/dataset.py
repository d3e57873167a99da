"""Writes the demo dataset: CIRR's layout, images of scenes, captions that change one object, exact boxes."""

import json
import random
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import islice, product
from pathlib import Path

from tqdm import tqdm

from sprc.core.errors import InputError
from sprc.core.files import made_and_held, read_json, unwritable, write_atomically
from sprc.demo.painting import render
from sprc.demo.scenes import (
    DIFFICULTIES,
    GROUP_SIZE,
    MOST_CAPTIONS,
    Group,
    caption_of,
    distinct_groups,
    group_triplets,
)

SETTINGS_FILE = "demo.json"
# Split of CIRR -> (folder of its images, first part of their names).
SPLITS = {"train": ("train", "train"), "val": ("dev", "dev"), "test1": ("test1", "test1")}


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
    """Write the dataset; False if it is there already with the same settings.

    If a second process makes it at the same time, it waits, and finds the dataset there. Raises InputError if the
    folder holds other data, or the difficulty has too few scenes for so many images.
    """
    with made_and_held(output):
        if _is_there(output, settings):
            return False
        _write_demo_dataset(output, settings)
        return True


def _write_demo_dataset(output: Path, settings: DemoSettings) -> None:
    groups = distinct_groups(random.Random(settings.seed), DIFFICULTIES[settings.difficulty])
    first_pair = 0
    for split, (images, triplets) in settings.sizes().items():
        count = -(-images // GROUP_SIZE)
        members = list(islice(groups, count))
        if len(members) < count:
            raise InputError(
                f"difficulty {settings.difficulty} has too few distinct scenes for {images} {split} images:"
                " ask for fewer images, or for a harder difficulty"
            )
        writer = SplitWriter(output, split, members, settings)
        writer.write_images()
        writer.write_captions(triplets, first_pair)
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


@dataclass(frozen=True)
class SplitWriter:
    """Writes the files of one split; `groups` are its groups of scenes."""

    output: Path
    split: str
    groups: list[Group]
    settings: DemoSettings

    def write_images(self) -> None:
        """The images, the image list and the box file. Raises InputError if the disk is full."""
        places, boxes = {}, {}
        for number, group in enumerate(tqdm(self.groups, desc=f"{self.split} groups", dynamic_ncols=True)):
            for member in range(GROUP_SIZE):
                name, place = self.member_name(number, member), self.image_place(number, member)
                rng = random.Random(f"{self.settings.seed}/{name}")
                image, boxes[name] = render(group.scene(member), rng, DIFFICULTIES[self.settings.difficulty])
                places[name] = place
                try:
                    (self.output / place).parent.mkdir(parents=True, exist_ok=True)
                    image.save(self.output / place, compress_level=1)
                except OSError as error:
                    raise unwritable(self.output / place, error) from error
        self._write_json(f"cirr/image_splits/split.rc2.{self.split}.json", places)
        self._write_json(f"boxes/cirr_boxes_{self.split}.json", boxes)

    def write_captions(self, triplets: int, first_pair: int) -> None:
        """The captions, numbered from `first_pair`. They are dealt to the groups in turn: every group has its share.

        If there are more triplets than pairs of images, a pair has several captions, all different. Raises InputError
        if there are still too few.
        """
        rng = random.Random(f"{self.settings.seed}/{self.split}/captions")
        chosen = list(islice(deal_triplets(self.groups, rng), triplets))
        if len(chosen) < triplets:
            raise InputError(
                f"{len(self.groups) * GROUP_SIZE} {self.split} images give {len(chosen)} triplets, not {triplets}:"
                " ask for fewer"
            )
        said: dict[tuple, set[str]] = defaultdict(set)
        entries = []
        for pair_id, (number, pair) in enumerate(chosen, start=first_pair):
            old, new = (self.groups[number].variants[member] for member in pair)
            caption = caption_of(old, new, rng, said[number, pair])
            said[number, pair].add(caption)
            entries.append(self.caption_entry(pair_id, caption, number, pair))
        self._write_json(f"cirr/captions/cap.rc2.{self.split}.json", entries)

    def caption_entry(self, pair_id: int, caption: str, number: int, pair: tuple[int, int]) -> dict:
        """One entry of CIRR's captions file, `pair` of group `number`; test1 keeps its target to itself."""
        reference, target = pair
        members = [self.member_name(number, member) for member in range(GROUP_SIZE)]
        entry = {"pairid": pair_id, "reference": members[reference]}
        img_set = {"id": number, "members": members, "reference_rank": reference}
        if self.split != "test1":
            entry |= {"target_hard": members[target], "target_soft": {members[target]: 1.0}}
            img_set |= {"target_rank": target}
        return entry | {"caption": caption, "img_set": img_set}

    def member_name(self, number: int, member: int) -> str:
        """A name like CIRR's, `dev-12-0-img1`, of a member of group `number`."""
        return f"{SPLITS[self.split][1]}-{number}-{member // 2}-img{member % 2}"

    def image_place(self, number: int, member: int) -> str:
        """The path that CIRR gives to the image, relative to the dataset's folder."""
        folder = f"train/{number % 100}" if self.split == "train" else SPLITS[self.split][0]
        return f"./{folder}/{self.member_name(number, member)}.png"

    def _write_json(self, place: str, content: dict | list) -> None:
        write_atomically(self.output / place, json.dumps(content))


def deal_triplets(groups: list[Group], rng: random.Random) -> Iterator[tuple[int, tuple[int, int]]]:
    """(group number, (reference member, target member)), one of each group in turn until all are used; and again, as
    often as a pair can be captioned.
    """
    hands = [group_triplets(group) for group in groups]
    for hand in hands:
        rng.shuffle(hand)
    turns = range(max(map(len, hands), default=0))
    for _, turn, (number, hand) in product(range(MOST_CAPTIONS), turns, enumerate(hands)):
        if turn < len(hand):
            yield number, hand[turn]
