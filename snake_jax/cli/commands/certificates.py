"""`snake-jax certificates`: its help and its flags."""

from absl import flags
from absl.flags import FlagValues

from snake_jax.cli.commands.command import Command

_TEXT = """\
  snake-jax certificates FOLDER --hosts=head.lan,10.0.0.7
  snake-jax certificates FOLDER --hosts=third.lan       one more host, by the same authority

What machines need to know each other by (TLS, both sides verified). FOLDER gets an authority of its
own, ca.pem and ca-key.pem, at the first call; every host gets HOST/cert.pem and HOST/key.pem signed
by it. Copy to a machine its own two files and ca.pem; ca-key.pem stays where it is: whoever has it
can let machines in. What is there already is left as it is.

The last lines of the output are the settings for Ray on such a machine, and the flags of
snake-jax serve.
"""


def _define(values: FlagValues) -> None:
    flags.DEFINE_list(
        "hosts",
        ["localhost"],
        "names or addresses of the machines, as the others reach them",
        flag_values=values,
    )
    flags.DEFINE_integer(
        "days",
        365,
        "the certificates are valid for",
        lower_bound=1,
        upper_bound=36500,
        flag_values=values,
    )


CERTIFICATES = Command(
    name="certificates",
    purpose="makes the keys by which the machines of a cluster or a service trust each other",
    example="snake-jax certificates keys --hosts=head.lan,node1.lan",
    text=_TEXT,
    define=_define,
    module="snake_jax.cli.certificates",
    newcomers=("hosts", "days"),
    wants_paths="FOLDER",
)
