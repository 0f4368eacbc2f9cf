"""Records of the files that users write: studies, datasets, hardware and site."""
