"""What a run will need, before it starts: batches, memory of each phase, and whether the golds can be read."""
