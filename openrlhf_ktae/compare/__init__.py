"""Several runs beside each other: arms x seeds, what each reached, paired tests."""
