"""Overrides of `openrlhf.trainer.ray`."""
