"""An index of the demo's validation images, by a model of random weights, and a query that finds its target there."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch

from lavis.models import load_model
from sprc.retrieval.results import Result
from sprc.retrieval.retriever import Retriever

NAME = "Blip2QformerCirAlignPrompt"
FOUND_WITHIN = 5


@dataclass(frozen=True)
class DemoQuery:
    """A validation caption of the demo: names of photographs in the index, and what is said."""

    reference: str
    target: str
    sentence: str


def make_index(demo: Path, yaml: str, folder: Path) -> Retriever:
    """A retriever whose index `folder/index` is open: the photographs are copied to `folder/photos`."""
    torch.manual_seed(3)
    checkpoint = folder / "weights.pt"
    torch.save({"epoch": 0, NAME: load_model("blip2_cir_align_prompt", yaml).state_dict()}, checkpoint)
    shutil.copytree(demo / "dev", folder / "photos")
    retriever = Retriever.from_checkpoint(checkpoint, backbone=yaml, device="cpu", num_workers=0)
    retriever.index(folder / "photos", folder / "index")
    return retriever


def demo_queries(demo: Path) -> list[DemoQuery]:
    entries = json.loads((demo / "cirr/captions/cap.rc2.val.json").read_text())
    return [DemoQuery(f"{e['reference']}.png", f"{e['target_hard']}.png", e["caption"]) for e in entries]


def query_that_finds(retriever: Retriever, demo: Path) -> tuple[DemoQuery, list[Result]]:
    """The first validation caption whose target the model finds within the first `FOUND_WITHIN`, and its results."""
    for query in demo_queries(demo):
        results = retriever.search(query.reference, query.sentence, FOUND_WITHIN)
        if query.target in [result.name for result in results]:
            return query, results
    raise AssertionError("the model finds no target: give it another seed")
