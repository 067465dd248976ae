"""A run from its configuration to its folder: setup, rounds, records, checkpoints."""
