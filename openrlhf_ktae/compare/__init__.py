"""Compare runs: arms x seeds, outcomes of each run, paired tests."""
