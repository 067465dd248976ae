"""Carries out `snake-jax presets`: lists the presets, or prints one."""

from snake_jax.cli import presets
from snake_jax.cli.commands.command import Given
from snake_jax.errors import UserError

_SHOWN = ("command", "hardware", "time", "expected")


def main(given: Given) -> None:
    """All presets with the head of their headers, or the whole text of one."""
    if len(given.paths) > 1:
        raise UserError(f"one preset at a time, not {len(given.paths)}: snake-jax presets NAME")
    if given.paths:
        print(presets.read(given.paths[0]).text, end="")
        return
    for name in presets.NAMES:
        preset = presets.read(name)
        print(f"{name}: {preset.summary}")
        for key in _SHOWN:
            print(f"    {key}: {preset.header[key]}")
        print()
    print("snake-jax presets NAME prints one with its weaknesses and flags.")
