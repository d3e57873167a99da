"""What a search gives back."""

from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True)
class Result:
    """An image that a query found.

    `rank` counts from 1. `name` is the image's path below the folder of photographs, `path` its file. `score` is
    SPRC's, the largest cosine between the query and the image's target tokens, and `token` the number of the token that
    has it. `size` is (width, height) of the raw image in pixels.
    """

    rank: int
    name: str
    path: Path
    score: float
    token: int
    size: tuple[int, int]

    def as_dict(self) -> dict:
        """The same in JSON's types."""
        return asdict(self) | {"path": str(self.path)}
