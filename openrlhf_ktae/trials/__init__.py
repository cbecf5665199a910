"""Does a run survive: a configuration on a few of its steps, killed again and again, and what differs afterwards."""
