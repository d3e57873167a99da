"""BLIP-2 models for composed image retrieval."""
