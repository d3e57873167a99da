"""Upstream's file name for ranking and recall; they are in `sprc.benchmarks` and `sprc.retrieval`."""

from sprc.benchmarks.cirr import cirr_metrics
from sprc.benchmarks.fashioniq import fashioniq_recalls
from sprc.index.scores import gallery_scores

__all__ = ["cirr_metrics", "fashioniq_recalls", "gallery_scores"]
