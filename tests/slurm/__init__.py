"""A SLURM of one node on loopback, for tests."""
