"""Statistics: intervals, paired tests, pass@k."""
