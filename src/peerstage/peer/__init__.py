"""The facade: the original's vocabulary, and nothing of it anywhere else."""
