"""Overrides of the host's trainer, laid out like `openrlhf.trainer`: one override per file, `super()` for the rest."""
