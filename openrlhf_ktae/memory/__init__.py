"""Memory a model needs in each phase of a step, and memory a device has."""
