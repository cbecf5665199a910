"""Does this machine hold a run: killed and resumed runs, and the check of a GPU machine."""
