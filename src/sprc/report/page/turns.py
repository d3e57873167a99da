"""What one visitor of the page has asked so far. Nothing of it is ever changed: a step makes a new session."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from sprc.retrieval.results import Result


@dataclass(frozen=True)
class Reference:
    """The photograph that a sentence changes: its file, and the name that the page shows."""

    path: Path
    name: str


@dataclass(frozen=True)
class Turn:
    """A query and what it found. `maps`, once they are asked for, are one heat map (g, g) of each result."""

    reference: Reference
    sentence: str
    results: tuple[Result, ...]
    maps: tuple[np.ndarray, ...] = ()


@dataclass(frozen=True)
class Session:
    """The reference for the next search, all turns, which of them is shown, and which of its results is large."""

    reference: Reference | None = None
    turns: tuple[Turn, ...] = ()
    shown: int = -1
    chosen: int = 0

    @property
    def turn(self) -> Turn | None:
        """The turn that is shown."""
        return self.turns[self.shown] if self.turns else None

    def with_reference(self, reference: Reference) -> "Session":
        return replace(self, reference=reference)

    def with_turn(self, turn: Turn) -> "Session":
        """One turn more, which is shown."""
        return replace(self, turns=(*self.turns, turn), shown=len(self.turns), chosen=0)

    def with_maps(self, maps: tuple[np.ndarray, ...]) -> "Session":
        """The shown turn with its heat maps."""
        turns = list(self.turns)
        turns[self.shown] = replace(turns[self.shown], maps=maps)
        return replace(self, turns=tuple(turns))

    def back_to(self, number: int) -> "Session":
        """An earlier turn is shown, and its reference is the next one; later turns stay. Unchanged for no such turn."""
        if not 0 <= number < len(self.turns):
            return self
        return replace(self, reference=self.turns[number].reference, shown=number, chosen=0)

    def choose(self, number: int) -> "Session":
        """Another result is large. Unchanged for no such result."""
        if self.turn is None or not 0 <= number < len(self.turn.results):
            return self
        return replace(self, chosen=number)
