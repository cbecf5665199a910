"""The processes of a run: how they start, are found, watched, stopped and die."""
