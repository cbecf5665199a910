"""From an answer as written to a value: clean the text, cut it into tokens, read its structure. Standard library only."""
