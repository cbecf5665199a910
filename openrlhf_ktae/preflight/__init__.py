"""What is refused before any model loads: options, sizes, models, data and files that cannot work."""
