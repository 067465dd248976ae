"""Benchmarks of the kernels, one module a suite: `python -m experiments.bench.kernels SUITE`."""
