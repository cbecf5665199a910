"""Prompt files: which files an option names, and what stands in their rows."""
