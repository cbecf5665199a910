"""A run from its validated options to its record: preflight, launch, run directory."""
