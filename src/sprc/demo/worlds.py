"""What a dataset in CIRR's layout can show: a world makes scenes in groups of six, pictures of them, and sentences."""

import random
from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, TypeVar

from PIL import Image

from sprc.demo import painting, scenes
from sprc.demo.scenes import MOST_CAPTIONS, Difficulty, Group, SceneObject

T = TypeVar("T")


class World(Protocol[T]):
    """A world whose scenes hold objects of type T.

    Its images are files of `suffix`, with a dot, that Pillow saves with `save_options`. A pair of them has up to
    `most_captions` sentences.
    """

    suffix: ClassVar[str]
    save_options: ClassVar[Mapping[str, Any]]
    most_captions: ClassVar[int]

    def groups(self, rng: random.Random) -> Iterator[Group[T]]:
        """Groups of scenes, no scene twice, until the world has no more."""
        ...

    def change_between(self, old: T | None, new: T | None) -> str | None:
        """The kind of change from one variant of a group to another if one sentence can say it, else None."""
        ...

    def caption_of(self, old: T | None, new: T | None, rng: random.Random, said: Container[str]) -> str:
        """A sentence for a change that `change_between` names, but none of those that were `said` before."""
        ...

    def render(self, scene: tuple[T, ...], rng: random.Random) -> tuple[Image.Image, list]:
        """The scene as an RGB image, and its boxes as entries of a box file, largest area first."""
        ...


@dataclass(frozen=True)
class PaintedWorld:
    """The demo's: painted shapes of one difficulty."""

    difficulty: Difficulty
    suffix: ClassVar[str] = ".png"
    save_options: ClassVar[Mapping[str, Any]] = {"compress_level": 1}
    most_captions: ClassVar[int] = MOST_CAPTIONS

    def groups(self, rng: random.Random) -> Iterator[Group[SceneObject]]:
        return scenes.distinct_groups(rng, self.difficulty)

    def change_between(self, old: SceneObject | None, new: SceneObject | None) -> str | None:
        return scenes.change_between(old, new)

    def caption_of(
        self, old: SceneObject | None, new: SceneObject | None, rng: random.Random, said: Container[str]
    ) -> str:
        return scenes.caption_of(old, new, rng, said)

    def render(self, scene: tuple[SceneObject, ...], rng: random.Random) -> tuple[Image.Image, list]:
        return painting.render(scene, rng, self.difficulty)
