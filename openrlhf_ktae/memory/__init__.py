"""How much memory a model takes in each phase of a step, and how much a device has."""
