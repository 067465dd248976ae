"""Benchmarks of whole runs: `python -m experiments.bench.emulation`."""
