"""Metrics, scores of label maps, and the post-processing that is chosen by them."""
