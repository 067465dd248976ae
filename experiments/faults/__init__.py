"""The fault matrix: what can go wrong around a run, and what becomes of it."""
