"""Hard triplets: candidates and their ranking, block by block."""
