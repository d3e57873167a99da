"""SPRC with region features: everything that is neither the model (`lavis`) nor a script."""
