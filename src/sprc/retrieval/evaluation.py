"""Evaluate a model: encode gallery and queries, score them, and take the metrics of each task."""

from collections import defaultdict
from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.data import Subset
from tqdm import tqdm

from lavis.models import Blip2QformerCirAlignPrompt
from lavis.models.blip2_models.frozen_features import FrozenFeatures
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

        If the task has boxes, a score is the mean of two: of reference and gallery image seen whole, and of both seen
        through their boxes.

        The gallery passes once, and a query is encoded as its reference passes: nothing larger than a batch of raw
        image tokens is ever kept. Every rank encodes its share of the gallery.
        """
        self.model.eval()
        share = range(self.world.rank, len(task.gallery), self.world.size)
        with self.runtime.autocast(self.runtime.scoring):
            targets, queries = self._encode(task, share)
        no_rows = self._no_rows(task)  # of this rank, if its share is empty or holds no query's reference
        places = torch.tensor(share, dtype=torch.long)  # without the type those of no image would be floats
        numbers = torch.tensor(list(queries), dtype=torch.long)
        columns = self._in_order(torch.cat([no_rows.to(self._kept_on), *targets]), places)  # (N, V, Q, E)
        rows = self._in_order(torch.stack([*queries.values()]) if queries else no_rows[:, :, 0], numbers)
        return self._mean_scores(rows if self.world.is_main else rows[:0], columns)

    def _mean_scores(self, rows: Tensor, columns: Tensor) -> Tensor:
        """Queries (Q, V, E) and images (N, V, T, E) -> the mean of the scores of V views (Q, N)."""
        views = zip(rows.unbind(dim=1), columns.unbind(dim=1), strict=True)
        scores = gallery_scores(*next(views), self.scoring.memory_mib)
        for row, column in views:
            scores += gallery_scores(row, column, self.scoring.memory_mib)
        return scores.div_(rows.shape[1])

    @property
    def _kept_on(self) -> torch.device:
        return torch.device("cpu") if self.scoring.save_memory else self.runtime.device

    def _encode(self, task: RetrievalTask, share: range) -> tuple[list[Tensor], dict[int, Tensor]]:
        """The target tokens (n, V, Q, E) of each batch of the gallery's share, and query number -> features (V, E).

        There are two views if the task has boxes, otherwise one.
        """
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
            boxes = task.boxes_of(names)
            features, image_embeds = self._targets(loaded, boxes)
            targets.append(features.to(self._kept_on))
            pairs = [(query, row) for row, name in enumerate(names) for query in queries_of.get(name, ())]
            for first in range(0, len(pairs), self.scoring.batch_size):
                numbers, rows = map(list, zip(*pairs[first : first + self.scoring.batch_size], strict=True))
                own_boxes = None if boxes is None else [boxes[row] for row in rows]
                encoded = self._queries(image_embeds[rows], [sentences[number] for number in numbers], own_boxes)
                queries |= dict(zip(numbers, encoded, strict=True))
        return targets, queries

    def _targets(self, images: Tensor | FrozenFeatures, boxes: list[Tensor] | None) -> tuple[Tensor, Tensor]:
        """Target tokens (n, V, Q, E) of V views, and `ln_vision` output (n, P + 1, D)."""
        if boxes is None:
            tokens, image_embeds = self.model.extract_target_features(images)
            return tokens[:, None], image_embeds
        image_embeds = self.model.encode_images(images)
        return self.model.extract_target_views(image_embeds, boxes), image_embeds

    def _queries(self, image_embeds: Tensor, sentences: list[str], boxes: list[Tensor] | None) -> Tensor:
        """The features (n, V, E) of queries whose references are `image_embeds` (n, P + 1, D)."""
        if boxes is None:
            return self.model.extract_query_features(image_embeds, sentences)[:, None]
        return self.model.extract_query_views(image_embeds, sentences, boxes)

    def _no_rows(self, task: RetrievalTask) -> Tensor:
        """(0, V, Q, E): the target tokens of no image."""
        config, views = self.model.config, 1 if task.regions is None else 2
        return torch.zeros(0, views, config.qformer.num_query_token, config.embed_dim, device=self.runtime.device)

    def _in_order(self, rows: Tensor, numbers: Tensor) -> Tensor:
        """All ranks' rows in the order of their numbers, which are 0, 1, 2 ... over all ranks."""
        return self.world.gather(rows)[self.world.gather(numbers).argsort().to(rows.device)]
