"""Several processes that work on one network: how they start, meet, and hand tensors to one another."""
