"""The house counted: `python -m experiments.house`."""
