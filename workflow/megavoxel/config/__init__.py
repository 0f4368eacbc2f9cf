"""What a user may write: study, dataset and hardware files, checked against their schemas."""
