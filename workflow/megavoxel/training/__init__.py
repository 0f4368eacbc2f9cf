"""Training a setting on a fold."""
