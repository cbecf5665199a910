"""Is one value the other? Runs in worker processes; needs mpmath."""
