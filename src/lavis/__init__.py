"""LAVIS's public names on today's stack: only what composed image retrieval with SPRC needs."""
