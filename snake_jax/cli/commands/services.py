"""`snake-jax services`: its help and its flags."""

from absl import flags
from absl.flags import FlagValues

from snake_jax.cli.commands.command import Command

_TEXT = """\
  snake-jax services submit classify dataset=digits algorithm=snake nodes=4 cycles=2
  snake-jax services submit REQUEST.json     as the API takes it: with requirements and limits
  snake-jax services list
  snake-jax services nodes                   the nodes that services share, and who has them
  snake-jax services show 3                  its state, events and last line of metrics
  snake-jax services logs 3 [--follow]       what its process printed; lines of metrics as they come
  snake-jax services cancel 3
  snake-jax services fetch 3 --output=runs/fetched
  snake-jax services remove 3                forgets one that is over, and deletes its result

Settings are the flags of classify and finetune without the dashes; files are named as they lie in
the data folders of the Service Provider. What is fetched is a run folder: compare and report read
it. The token is that of --token_file, or of the environment variable SNAKE_JAX_TOKEN.
"""


def _define(values: FlagValues) -> None:
    flags.DEFINE_string(
        "url", "http://127.0.0.1:8321", "the Service Provider, snake-jax serve", flag_values=values
    )
    flags.DEFINE_string(
        "token_file", "", "file with the token; empty: SNAKE_JAX_TOKEN", flag_values=values
    )
    flags.DEFINE_string(
        "cafile",
        "",
        "certificate (PEM) to check the Service Provider's by; empty: those of the system",
        flag_values=values,
    )
    flags.DEFINE_bool(
        "without_tls",
        False,
        "speak with other machines though others could read the token",
        flag_values=values,
    )
    flags.DEFINE_string("output", "", "fetch: the new folder to write to", flag_values=values)
    flags.DEFINE_bool("follow", False, "logs: metrics as they come, to the end", flag_values=values)
    flags.DEFINE_string("name", "", "submit: what you call the service", flag_values=values)
    flags.DEFINE_string(
        "owner", "", "submit: whose it is; owners share the slots", flag_values=values
    )


SERVICES = Command(
    name="services",
    purpose="speaks with a running serve: submits, lists, shows, cancels and fetches services",
    example="snake-jax services list --token_file=token",
    text=_TEXT,
    define=_define,
    module="snake_jax.cli.services",
    newcomers=("url", "token_file", "cafile", "output", "follow", "name", "owner"),
    wants_paths="submit|list|nodes|show|logs|cancel|fetch|remove ...",
)
