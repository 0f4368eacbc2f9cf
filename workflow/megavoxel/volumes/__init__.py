"""Volumes on disk: how their files are opened and written, and the arithmetic of their grids."""
