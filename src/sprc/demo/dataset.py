"""Writes a dataset in CIRR's layout: images of a world's scenes, captions that change one object, exact boxes.

The demo dataset is that of painted scenes.
"""

import json
import random
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from itertools import islice, product
from pathlib import Path

from tqdm import tqdm

from sprc.core.errors import InputError
from sprc.core.files import made_and_held, read_json, unwritable, write_atomically
from sprc.demo.scenes import DIFFICULTIES, GROUP_SIZE, Group, group_triplets
from sprc.demo.worlds import PaintedWorld, World

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
    place = SettingsFile(output, SETTINGS_FILE, "demo dataset", "give another --output")
    return place.write_once(asdict(settings), lambda: _write_demo_dataset(output, settings))


def _write_demo_dataset(output: Path, settings: DemoSettings) -> None:
    world = PaintedWorld(DIFFICULTIES[settings.difficulty])
    groups = world.groups(random.Random(settings.seed))
    first_pair = 0
    for split, (images, triplets) in settings.sizes().items():
        members = take_groups(
            groups, images, f"difficulty {settings.difficulty}", "ask for fewer images, or for a harder difficulty"
        )
        writer = SplitWriter(output, split, members, world, settings.seed)
        writer.write_images()
        writer.write_captions(triplets, first_pair)
        first_pair += triplets


def take_groups(groups: Iterator[Group], images: int, title: str, fix: str) -> list[Group]:
    """The next groups, for so many images. Raises InputError if the world, of this title, has too few."""
    count = -(-images // GROUP_SIZE)
    members = list(islice(groups, count))
    if len(members) < count:
        raise InputError(f"{title} has too few distinct scenes for {images} images: {fix}")
    return members


@dataclass(frozen=True)
class SettingsFile:
    """The file of a dataset that says what it was made with; messages call the dataset `title`, and `another` is how
    to ask for another folder.
    """

    output: Path
    name: str
    title: str
    another: str

    def write_once(self, settings: dict, write: Callable[[], None]) -> bool:
        """Have the dataset written; False if it is there already with the same settings.

        If a second process makes it at the same time, it waits, and finds the dataset there. Raises InputError if the
        folder holds other data.
        """
        with made_and_held(self.output):
            if self._is_there(settings):
                return False
            write()
            write_atomically(self.output / self.name, json.dumps(settings))
            return True

    def _is_there(self, settings: dict) -> bool:
        path = self.output / self.name
        if path.is_file():
            if read_json(path, dict, f"remove {self.output}, or {self.another}") == settings:
                return True
            raise InputError(
                f"{self.output} holds a {self.title} with other settings ({path}): remove it, or {self.another}"
            )
        if (self.output / "cirr").exists() and not (self.output / "boxes").is_dir():
            raise InputError(f"{self.output} holds data that is no {self.title}: {self.another}")
        return False


@dataclass(frozen=True)
class SplitWriter:
    """Writes the files of one split; `groups` are its groups of scenes, out of `world`."""

    output: Path
    split: str
    groups: list[Group]
    world: World
    seed: int | str

    def write_images(self) -> None:
        """The images, the image list and the box file. Raises InputError if the disk is full."""
        places, boxes = {}, {}
        for number, group in enumerate(tqdm(self.groups, desc=f"{self.split} groups", dynamic_ncols=True)):
            for member in range(GROUP_SIZE):
                name, place = self.member_name(number, member), self.image_place(number, member)
                rng = random.Random(f"{self.seed}/{name}")
                image, boxes[name] = self.world.render(group.scene(member), rng)
                places[name] = place
                try:
                    (self.output / place).parent.mkdir(parents=True, exist_ok=True)
                    image.save(self.output / place, **self.world.save_options)
                except OSError as error:
                    raise unwritable(self.output / place, error) from error
        self._write_json(f"cirr/image_splits/split.rc2.{self.split}.json", places)
        self._write_json(f"boxes/cirr_boxes_{self.split}.json", boxes)

    def write_captions(self, triplets: int, first_pair: int) -> None:
        """The captions, numbered from `first_pair`. They are dealt to the groups in turn: every group has its share.

        If there are more triplets than pairs of images, a pair has several captions, all different. Raises InputError
        if there are still too few.
        """
        rng = random.Random(f"{self.seed}/{self.split}/captions")
        chosen = list(islice(self._deal_triplets(rng), triplets))
        if len(chosen) < triplets:
            raise InputError(
                f"{len(self.groups) * GROUP_SIZE} {self.split} images give {len(chosen)} triplets, not {triplets}:"
                " ask for fewer"
            )
        said: dict[tuple, set[str]] = defaultdict(set)
        entries = []
        for pair_id, (number, pair) in enumerate(chosen, start=first_pair):
            old, new = (self.groups[number].variants[member] for member in pair)
            caption = self.world.caption_of(old, new, rng, said[number, pair])
            said[number, pair].add(caption)
            entries.append(self.caption_entry(pair_id, caption, number, pair))
        self._write_json(f"cirr/captions/cap.rc2.{self.split}.json", entries)

    def _deal_triplets(self, rng: random.Random) -> Iterator[tuple[int, tuple[int, int]]]:
        """(group number, (reference member, target member)), one of each group in turn until all are used; and again,
        as often as a pair can be captioned.
        """
        hands = [group_triplets(group, self.world.change_between) for group in self.groups]
        for hand in hands:
            rng.shuffle(hand)
        turns = range(max(map(len, hands), default=0))
        for _, turn, (number, hand) in product(range(self.world.most_captions), turns, enumerate(hands)):
            if turn < len(hand):
                yield number, hand[turn]

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
        return f"./{folder}/{self.member_name(number, member)}{self.world.suffix}"

    def _write_json(self, place: str, content: dict | list) -> None:
        write_atomically(self.output / place, json.dumps(content))
