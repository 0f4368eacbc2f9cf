"""What the tasks of a study do."""
