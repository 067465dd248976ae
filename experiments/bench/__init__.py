"""Benchmarks of steps, visits, rounds and memory beside peers.

`python -m experiments.bench SUITE` measures one.
"""
