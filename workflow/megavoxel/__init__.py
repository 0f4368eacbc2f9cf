"""What the stages of the megavoxel workflow do. The package never imports Snakemake; stages meet in files."""

__version__ = "0.1.0"
