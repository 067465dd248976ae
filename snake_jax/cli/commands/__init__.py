"""The commands by name: what each is for, its help text and its flags.

The work is elsewhere, in the module that a command names, which is imported once the flags are
right.
"""

from snake_jax.cli.commands.accounting import ACCOUNTING
from snake_jax.cli.commands.certificates import CERTIFICATES
from snake_jax.cli.commands.classify import CLASSIFY
from snake_jax.cli.commands.command import Command
from snake_jax.cli.commands.compare import COMPARE
from snake_jax.cli.commands.finetune import FINETUNE
from snake_jax.cli.commands.generate import GENERATE
from snake_jax.cli.commands.list_presets import PRESETS
from snake_jax.cli.commands.profile import PROFILE
from snake_jax.cli.commands.report import REPORT
from snake_jax.cli.commands.scct import SCCT
from snake_jax.cli.commands.serve import SERVE
from snake_jax.cli.commands.services import SERVICES

_ALL = (
    CLASSIFY,
    FINETUNE,
    SERVE,
    SERVICES,
    COMPARE,
    REPORT,
    GENERATE,
    PROFILE,
    SCCT,
    ACCOUNTING,
    CERTIFICATES,
    PRESETS,
)
COMMANDS: dict[str, Command] = {command.name: command for command in _ALL}
