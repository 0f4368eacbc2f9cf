"""Networks as programs of blocks: one description that runs, is checkpointed, and can be cut."""
