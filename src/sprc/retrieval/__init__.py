"""Scores of queries against a gallery, and the evaluation of a checkpoint."""
