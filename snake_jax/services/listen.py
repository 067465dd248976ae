"""Where the Service Provider listens: its token, its address, TLS; and the server itself."""

import contextlib
import socket
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import uvicorn
from starlette.types import ASGIApp

from snake_jax.errors import UserError
from snake_jax.services.credentials import is_loopback

_GRACE_S = 2  # for answers that are under way when the server ends


class Address(NamedTuple):
    """Where to listen.

    Attributes:
      host: a name or a number of this machine.
      port: 0: any that is free.
      certfile: the certificate, PEM; empty: no TLS.
      keyfile: its key, where it is not in the same file.
    """

    host: str
    port: int
    certfile: str = ""
    keyfile: str = ""


def check(address: Address, without_tls: bool) -> None:
    """Refuses an address whose traffic, the token in it, others could read.

    Args:
      address: to listen on.
      without_tls: whether that was asked for.

    Raises:
      UserError: it is refused, or a file of the certificate is not there.
    """
    if address.keyfile and not address.certfile:
        raise UserError("--keyfile without --certfile: give the certificate too")
    for flag, file in (("certfile", address.certfile), ("keyfile", address.keyfile)):
        if file and not Path(file).is_file():
            raise UserError(f"--{flag}={file}: no such file")
    if not address.certfile and not without_tls and not is_loopback(address.host):
        raise UserError(
            f"--host={address.host}: others could read the token; give --certfile and --keyfile, "
            f"or say --without_tls where the network is your own"
        )


def serve(app: ASGIApp, address: Address, listening: Callable[[str], None]) -> None:
    """Answers requests until the process is told to end.

    Args:
      app: the application.
      address: to listen on.
      listening: is called with the URL once connections are taken.

    Raises:
      UserError: the address is not this machine's or is taken, or the certificate is none.
    """
    with contextlib.closing(_bound(address)) as bound:
        try:
            config = uvicorn.Config(
                app,
                # The program's own: warnings, on stderr.
                log_config=None,
                # Neither paths nor headers of requests are written anywhere.
                access_log=False,
                server_header=False,
                timeout_graceful_shutdown=_GRACE_S,
                ssl_certfile=address.certfile or None,
                ssl_keyfile=address.keyfile or None,
                lifespan="off",
            )
            config.load()
        except OSError as error:
            raise UserError(
                f"--certfile={address.certfile}: no certificate and key of it ({error})"
            ) from error
        scheme = "https" if address.certfile else "http"
        port = bound.getsockname()[1]
        host = f"[{address.host}]" if ":" in address.host else address.host
        listening(f"{scheme}://{host}:{port}")
        uvicorn.Server(config).run(sockets=[bound])


def _bound(address: Address) -> socket.socket:
    try:
        family = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)[0][0]
        bound = socket.create_server((address.host, address.port), family=family)
    except OSError as error:
        raise UserError(
            f"--host={address.host} --port={address.port}: {error.strerror or error}; give others"
        ) from error
    return bound
