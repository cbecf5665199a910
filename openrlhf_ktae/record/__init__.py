"""The record of a run: metrics.jsonl, recorded rollouts, the run directory."""
