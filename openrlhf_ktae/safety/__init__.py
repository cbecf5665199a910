"""What a run does only when asked: run code of a model, show keys, answer strangers (docs/reliability.md)."""
