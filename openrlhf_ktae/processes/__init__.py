"""The processes of a run: setup, discovery, watching, stopping, and recognising their deaths."""
