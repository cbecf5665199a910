"""Can this machine sustain a run? Killed and resumed runs, and the check of a GPU machine."""
