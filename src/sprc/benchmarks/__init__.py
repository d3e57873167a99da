"""One file for each benchmark, and the interface that they share."""
