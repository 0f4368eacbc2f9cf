"""Datasets on disk: where they come from, how their files are read and written, and whether they are sound."""
