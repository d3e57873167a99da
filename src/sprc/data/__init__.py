"""From image files to tensors: opening, preprocessing, datasets, the feature cache."""
