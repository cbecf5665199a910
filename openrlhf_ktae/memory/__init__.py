"""The memory that a model needs in each phase of a step, and that a device has."""
