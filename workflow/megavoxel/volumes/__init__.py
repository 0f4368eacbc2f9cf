"""Volumes on disk: one way to open them whatever their format, what is wrong with them, and how they are written."""
