"""A small dataset that is painted, in CIRR's layout with exact boxes, and a model of random weights."""
