"""Training: configuration, trainer, gradients, state on disk."""
