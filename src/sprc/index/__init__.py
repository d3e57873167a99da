"""Scores of queries against target tokens, and a gallery of photographs on disk with the engines that search it."""
