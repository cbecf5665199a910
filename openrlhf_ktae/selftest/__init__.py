"""Checks of a machine: runs that are killed and resumed, and the check of a GPU machine."""
