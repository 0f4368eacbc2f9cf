"""Segmentation of volumes: what a run trains on, training, plan and forecast."""
