"""Is one value the other? Runs in worker processes; needs mpmath, and math-verify for what our reader does not read."""
