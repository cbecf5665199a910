"""Prompt files: which files an option names, and what their rows contain."""
