"""What a setting will need before anything runs: memory, FLOPs and hours, from the real program on fake tensors."""
