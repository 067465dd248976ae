"""Every architecture against PyTorch: `python -m experiments.parity`."""
