"""Start a run: Ray, the classes that replace the host's, the nodes, the console."""
