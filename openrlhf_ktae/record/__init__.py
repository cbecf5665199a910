"""What a run writes of itself: metrics.jsonl, recorded rollouts, the run directory."""
