"""What `python -m experiments.reproduce` is made of: cases, runs, tables, pictures."""
