"""Overrides of the host's trainer, laid out as `openrlhf.trainer` is: one override a file, `super()` for the rest."""
