"""What the page asks of a retriever. It keeps nothing of a visitor: a session goes in, and the next one comes out."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from lavis.datasets.region_boxes import Region
from sprc.core.errors import ImageError, InputError, shown
from sprc.data.images import open_small
from sprc.report.heat_maps import HeatMap
from sprc.report.page.pictures import SMALL
from sprc.report.page.turns import Reference, Session, Turn
from sprc.retrieval.retriever import Retriever

RegionsOf = Callable[[str], Sequence[Region]]

LISTED = 12  # photographs on one page of the index
MOST_RESULTS = 200


@dataclass(frozen=True)
class Listing:
    """One page of the names that a filter leaves: `number` counts from 0, `total` are all names that are left."""

    names: tuple[str, ...] = ()
    number: int = 0
    total: int = 0

    @property
    def pages(self) -> int:
        return max(1, -(-self.total // LISTED))

    def __str__(self) -> str:
        if not self.names:
            return "no photograph has such a name"
        first = self.number * LISTED
        return f"{first + 1:,} to {first + len(self.names):,} of {self.total:,}"


class Desk:
    """A retriever with an index that is open; `regions_of` gives the boxes of a name, None if there are none at all."""

    def __init__(self, retriever: Retriever, regions_of: RegionsOf | None = None):
        self.retriever, self.regions_of = retriever, regions_of

    @cached_property
    def _lower_names(self) -> list[str]:
        return [name.casefold() for name in self.retriever.gallery.names]

    def listing(self, part: str, number: int) -> Listing:
        """Page `number` of the names that have all words of `part` in them, in either case; the nearest if none is."""
        names, lower = self.retriever.gallery.names, self._lower_names
        found: Sequence[int] = range(len(names))
        for word in part.casefold().split():
            found = [position for position in found if word in lower[position]]
        last = max(0, (len(found) - 1) // LISTED)
        number = min(max(0, number), last)
        shown = found[number * LISTED : (number + 1) * LISTED]
        return Listing(tuple(names[position] for position in shown), number, len(found))

    def photograph(self, name: str) -> Reference:
        """A photograph of the index as the reference. Raises InputError for a name that the index does not have."""
        if name not in self.retriever.gallery.position_of:
            raise InputError(f"the index has no photograph {shown(name)}: choose one of those that are listed")
        return Reference(self.retriever.photos / name, name)

    def upload(self, path: Path) -> Reference:
        """A file of the visitor as the reference. Raises InputError if it is no image that can be read."""
        try:
            open_small(path, SMALL)
        except ImageError as error:
            raise InputError(f"the file {path.name} cannot be read ({error.reason}): {error.fix}") from error
        return Reference(path, path.name)

    def search(self, session: Session, sentence: str, count: float | None) -> Session:
        """One turn more. Raises InputError as `Retriever.search`, and for no reference or too many results."""
        if session.reference is None:
            raise InputError("no reference is chosen: click on a photograph of the index, or upload one")
        if count is None or not 1 <= count <= MOST_RESULTS:
            raise InputError(f"`top_k` must be from 1 to {MOST_RESULTS}")
        results = self.retriever.search(session.reference.path, sentence, int(count))
        return session.with_turn(Turn(session.reference, sentence.strip(), tuple(results)))

    def look(self, session: Session) -> Session:
        """The session whose shown turn has its heat maps. Raises InputError as `Retriever.look`."""
        turn = session.turn
        if turn is None or turn.maps:
            return session
        return session.with_maps(tuple(self.retriever.look(turn.results)))

    def heat_of(self, turn: Turn, number: int) -> HeatMap | None:
        """The heat map of a result, if the turn has its maps."""
        return HeatMap(turn.maps[number], self.retriever.preprocess) if turn.maps else None
