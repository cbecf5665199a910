"""From an answer as written to a value: clean it, cut it into tokens, read its structure. Standard library only."""
