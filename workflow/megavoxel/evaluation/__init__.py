"""Scores of label maps (DSC, NSD) and the post-processing that is chosen by them."""
