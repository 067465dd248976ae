"""`snake-jax serve`: its help and its flags."""

from absl import flags
from absl.flags import FlagValues

from snake_jax.cli.commands.command import Command

_TEXT = """\
  python -c 'import secrets; print(secrets.token_urlsafe(32))' > token
  snake-jax serve --root=services --token_file=token --data_folders=/data --slots=2
  snake-jax services submit classify dataset=digits nodes=4 cycles=2 --token_file=token

Registers training services over HTTP, runs so many at a time as there are slots, and shows them
live: the page is at the address that it prints. Where others wait, a service hands its slots on
after --turn_s and goes on later. Every call needs the token, of --token_file or of SNAKE_JAX_TOKEN
in the environment. Services may read files of --data_folders alone. However it ends, the same
command goes on with all services.
"""


def _define(values: FlagValues) -> None:
    _define_running(values)
    _define_nodes(values)
    _define_access(values)


def _define_running(values: FlagValues) -> None:
    """What it keeps and runs."""
    flags.DEFINE_string(
        "root",
        "",
        "folder of the Service Provider: its services and their runs",
        flag_values=values,
    )
    flags.DEFINE_list(
        "data_folders", [], "folders whose files services may name, by comma", flag_values=values
    )
    flags.DEFINE_integer(
        "slots", 2, "services that run at a time", lower_bound=1, flag_values=values
    )
    flags.DEFINE_float(
        "turn_s",
        600.0,
        "seconds that a service runs while others wait, and at least one round",
        lower_bound=0.0,
        flag_values=values,
    )
    flags.DEFINE_float(
        "grace_s",
        20.0,
        "seconds that a visit has left to end after SIGTERM",
        lower_bound=0.0,
        flag_values=values,
    )
    flags.DEFINE_bool(
        "allow_module_models",
        False,
        "services may name models as module:function, which runs code installed here",
        flag_values=values,
    )


def _define_nodes(values: FlagValues) -> None:
    """The nodes that services share."""
    flags.DEFINE_integer(
        "pool",
        0,
        "nodes that services share, as processes here; 0: each service plays its nodes itself",
        lower_bound=0,
        flag_values=values,
    )
    flags.DEFINE_string(
        "ray_address",
        "",
        "a Ray cluster whose nodes services share: those with the resources pool_node_0, ...",
        flag_values=values,
    )
    flags.DEFINE_string(
        "ray_resources",
        "",
        "what a service takes of each shared node, as GPU=0.25",
        flag_values=values,
    )
    flags.DEFINE_bool(
        "ray_without_tls",
        False,
        "share machines whose traffic others on their network could read and change",
        flag_values=values,
    )


def _define_access(values: FlagValues) -> None:
    """Who may speak to it, and how."""
    flags.DEFINE_string(
        "host", "127.0.0.1", "the address to listen on; other machines: 0.0.0.0", flag_values=values
    )
    flags.DEFINE_integer(
        "port",
        8321,
        "the port to listen on; 0: any that is free",
        lower_bound=0,
        upper_bound=65535,
        flag_values=values,
    )
    flags.DEFINE_string(
        "token_file", "", "file with the token; empty: SNAKE_JAX_TOKEN", flag_values=values
    )
    flags.DEFINE_string("certfile", "", "the certificate for TLS (PEM)", flag_values=values)
    flags.DEFINE_string("keyfile", "", "its key; empty: in the same file", flag_values=values)
    flags.DEFINE_bool(
        "without_tls",
        False,
        "speak with other machines though others could read the token",
        flag_values=values,
    )


SERVE = Command(
    name="serve",
    purpose="takes training services over HTTP, runs several at a time, and shows them live",
    example="snake-jax serve --root=services --token_file=token",
    text=_TEXT,
    define=_define,
    module="snake_jax.cli.serve",
    newcomers=(
        "root",
        "host",
        "port",
        "token_file",
        "data_folders",
        "slots",
        "pool",
        "certfile",
        "keyfile",
    ),
)
