"""Launches: flags in, library calls, files out."""
