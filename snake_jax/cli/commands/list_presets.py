"""`snake-jax presets`: its help. It has no flags."""

from absl.flags import FlagValues

from snake_jax.cli.commands.command import Command

_TEXT = """\
  snake-jax presets              lists them: what each is, how it is started and how long it runs
  snake-jax presets demo_snake   prints one: all of its header, and its flags
  snake-jax classify --preset=demo_snake --cycles=2 --workdir=runs/short

A preset's flags come before those of the command line, so any of these wins wherever it stands.
"""


def _define(values: FlagValues) -> None:
    del values


PRESETS = Command(
    name="presets",
    purpose="lists the settings that come with the package, or prints one of them",
    example="snake-jax presets demo_snake",
    text=_TEXT,
    define=_define,
    module="snake_jax.cli.list_presets",
    newcomers=(),
    wants_paths="[NAME]",
)
