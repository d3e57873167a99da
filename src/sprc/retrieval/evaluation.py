"""Evaluate a model: encode gallery and queries, score them, and take the metrics of each task."""

from collections import defaultdict
from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.data import Subset
from tqdm import tqdm

from lavis.models import Blip2QformerCirAlignPrompt
from sprc.benchmarks.benchmark import Metrics, RetrievalTask, Validation
from sprc.core.process_group import World
from sprc.core.runtime import Runtime
from sprc.data.batches import make_loader
from sprc.index.scores import gallery_scores
from sprc.retrieval.options import Scoring


class Evaluator:
    """A model with its processor of sentences, and how it scores: `score` a task, `evaluate` a validation."""

    def __init__(
        self,
        model: Blip2QformerCirAlignPrompt,
        process_caption: Callable[[str], str],
        scoring: Scoring,
        runtime: Runtime,
    ):
        self.model, self.process_caption, self.scoring, self.runtime = model, process_caption, scoring, runtime

    @property
    def world(self) -> World:
        return self.runtime.world

    def evaluate(self, validation: Validation) -> Metrics:
        """The metrics of a validation, in percent, task by task; the same on every rank."""
        metrics = {}
        for name, task in validation.tasks.items():
            scores = self.score(task)
            metrics[name] = task.metrics(scores) if self.world.is_main else {}
        return self.world.share(validation.summary(metrics) if self.world.is_main else {})

    @torch.no_grad()
    def score(self, task: RetrievalTask) -> Tensor:
        """Scores (Q, N) of every query against every gallery image, float32, on the CPU; on rank 0, (0, N) elsewhere.

        The gallery passes once, and a query is encoded as its reference passes: nothing larger than a batch of raw
        image tokens is ever kept. Every rank encodes its share of the gallery.
        """
        self.model.eval()
        share = range(self.world.rank, len(task.gallery), self.world.size)
        with self.runtime.autocast(self.runtime.scoring):
            targets, queries = self._encode(task, share)
        no_rows = self._no_rows()  # of this rank, if its share is empty or holds no query's reference
        places = torch.tensor(share, dtype=torch.long)  # without the type those of no image would be floats
        numbers = torch.tensor(list(queries), dtype=torch.long)
        columns = self._in_order(torch.cat([no_rows.to(self._kept_on), *targets]), places)  # (N, Q, E)
        rows = self._in_order(torch.stack([*queries.values()]) if queries else no_rows[:, 0], numbers)
        return gallery_scores(rows if self.world.is_main else rows[:0], columns, self.scoring.memory_mib)

    @property
    def _kept_on(self) -> torch.device:
        return torch.device("cpu") if self.scoring.save_memory else self.runtime.device

    def _encode(self, task: RetrievalTask, share: range) -> tuple[list[Tensor], dict[int, Tensor]]:
        """The target tokens (n, Q, E) of each batch of the gallery's share, and query number -> feature (E,)."""
        queries_of: defaultdict[str, list[int]] = defaultdict(list)
        for number, name in enumerate(task.reference_names):
            queries_of[name].append(number)
        sentences = [self.process_caption(sentence) for sentence in task.sentences]
        loader = make_loader(
            Subset(task.gallery, share), self.scoring.batch_size, self.scoring.num_workers, self.runtime.device
        )
        targets: list[Tensor] = []
        queries: dict[int, Tensor] = {}
        for names, images in tqdm(loader, desc="gallery", dynamic_ncols=True, leave=False):
            loaded = task.gallery.on_device(images, self.runtime.device)
            features, image_embeds = self.model.extract_target_features(loaded)
            targets.append(features.to(self._kept_on))
            pairs = [(query, row) for row, name in enumerate(names) for query in queries_of.get(name, ())]
            queries |= self._encode_queries(pairs, image_embeds, sentences)
        return targets, queries

    def _encode_queries(
        self, pairs: list[tuple[int, int]], image_embeds: Tensor, sentences: list[str]
    ) -> dict[int, Tensor]:
        """The features (E,) of queries; `pairs` are the number of a query and the row of its reference in the batch."""
        features: dict[int, Tensor] = {}
        for first in range(0, len(pairs), self.scoring.batch_size):
            queries, rows = zip(*pairs[first : first + self.scoring.batch_size], strict=True)
            encoded = self.model.extract_query_features(image_embeds[list(rows)], [sentences[q] for q in queries])
            features |= dict(zip(queries, encoded, strict=True))
        return features

    def _no_rows(self) -> Tensor:
        """(0, Q, E): the target tokens of no image."""
        config = self.model.config
        return torch.zeros(0, config.qformer.num_query_token, config.embed_dim, device=self.runtime.device)

    def _in_order(self, rows: Tensor, numbers: Tensor) -> Tensor:
        """All ranks' rows in the order of their numbers, which are 0, 1, 2 ... over all ranks."""
        return self.world.gather(rows)[self.world.gather(numbers).argsort().to(rows.device)]
