"""Acceptance of a device: everything that a chip's owner can check in half an hour."""
