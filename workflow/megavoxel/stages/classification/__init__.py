"""What stages do with a study of `task: classification`: arguments in, one call out."""
