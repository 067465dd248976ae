"""What may be sent over a network: a Ray cluster of several machines speaks TLS, with a token.

Ray itself checks the certificates of both ends of every connection, where it is told to use TLS.
Here is checked that it is told so, before anything is sent to another machine.
"""

import ipaddress
import os
import socket
from collections.abc import Sequence
from pathlib import Path

from snake_jax.engines.choice import Choice
from snake_jax.errors import UserError

_FILES = ("RAY_TLS_SERVER_CERT", "RAY_TLS_SERVER_KEY", "RAY_TLS_CA_CERT")
_WAY_OUT = (
    "`snake-jax certificates` makes what TLS needs and BUILD.md has the commands, or say "
    "--ray_without_tls where the network is your own"
)


def check_address(choice: Choice) -> None:
    """Refuses to join another machine's cluster in the clear; sends nothing.

    Raises:
      UserError: it would, or a file of the certificates is not there.
    """
    if uses_tls():
        _check_files()
    host = choice.address.partition("://")[2] or choice.address
    host = host.rpartition(":")[0].strip("[]")
    if host:
        check_machines(choice, [host])


def check_machines(choice: Choice, hosts: Sequence[str]) -> None:
    """Refuses a cluster with other machines that is spoken to in the clear.

    Args:
      choice: of the engine.
      hosts: names or addresses of the cluster's machines.

    Raises:
      UserError: it is refused.
    """
    missing = [] if uses_tls() else ["TLS"]
    if not has_token():
        missing.append("a token")
    others = [host for host in hosts if not _is_this_machine(host)]
    if choice.without_tls or not others or not missing:
        return
    raise UserError(
        f"--ray_address={choice.address}: {others[0]} is another machine, and Ray is used without "
        f"{' and '.join(missing)}: others could read and change what is sent; {_WAY_OUT}"
    )


def uses_tls() -> bool:
    """Whether Ray is told to use TLS."""
    return os.environ.get("RAY_USE_TLS", "0").lower() in ("1", "true")


def has_token() -> bool:
    """Whether Ray has a token, and is not told to leave it."""
    if os.environ.get("RAY_AUTH_MODE", "token").lower() != "token":
        return False
    if os.environ.get("RAY_AUTH_TOKEN"):
        return True
    file = os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token"
    return Path(file).is_file()


def _check_files() -> None:
    """Raises UserError where Ray is to use TLS and lacks what that needs."""
    for name in _FILES:
        file = os.environ.get(name, "")
        if not Path(file).is_file():
            raise UserError(
                f"RAY_USE_TLS=1 and {name}={file}: no such file; `snake-jax certificates` makes "
                "them and says how they are named"
            )


def _is_this_machine(host: str) -> bool:
    """Whether a name or an address is this machine's own: then it can be listened at."""
    try:
        address = socket.getaddrinfo(host, 0, type=socket.SOCK_DGRAM)[0]
    except OSError:
        return False
    if ipaddress.ip_address(address[4][0]).is_loopback:
        return True
    with socket.socket(address[0], socket.SOCK_DGRAM) as probe:
        try:
            probe.bind(address[4])
        except OSError:
            return False
    return True
