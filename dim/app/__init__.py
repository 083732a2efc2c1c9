"""What every job has: flags, logs, progress, its Ray cluster, and an output folder."""
