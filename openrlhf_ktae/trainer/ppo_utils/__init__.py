"""Overrides of `openrlhf.trainer.ppo_utils`."""
