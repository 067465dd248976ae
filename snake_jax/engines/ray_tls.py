"""What may be sent over a network: a Ray cluster of several machines speaks TLS, with a token.

Ray itself checks the certificates of both ends of every connection, where it is told to use TLS.
Here is checked that it is told so before anything is sent to another machine, and that both ends
trust each other: Ray says nothing of that, and tries again for minutes.
"""

import ipaddress
import os
import socket
import ssl
from collections.abc import Sequence
from pathlib import Path

from snake_jax.engines.choice import Choice
from snake_jax.errors import UserError

_FILES = ("RAY_TLS_SERVER_CERT", "RAY_TLS_SERVER_KEY", "RAY_TLS_CA_CERT")
_ANSWERS_S = 10.0
# How HTTP/2, which gRPC speaks, begins: the client's greeting and empty settings (RFC 9113, 3.4).
_GREETING = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
_WAY_OUT = (
    "`snake-jax certificates` makes what TLS needs and BUILD.md has the commands, or say "
    "--ray_without_tls where the network is your own"
)
_TRUST = (
    "both ends need certificates of one authority, with the names that they are called by; "
    "`snake-jax certificates` makes them"
)


def check_address(choice: Choice) -> None:
    """Refuses to join another machine's cluster in the clear; sends nothing.

    Raises:
      UserError: it would, or a file of the certificates is not there.
    """
    if uses_tls():
        for name in _FILES:
            file = os.environ.get(name, "")
            if not Path(file).is_file():
                raise UserError(
                    f"RAY_USE_TLS=1 and {name}={file}: no such file; `snake-jax certificates` "
                    "makes them and says how they are named"
                )
    # `auto` names no machine; which ones it has is seen when it is joined.
    if ":" in choice.address:
        host, _ = _host_and_port(choice.address)
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


def check_server(address: str) -> None:
    """Shakes hands with a cluster's head as Ray would.

    Args:
      address: of the head, HOST:PORT.

    Raises:
      UserError: nothing listens there, one of the two uses TLS and the other does not, or one does
        not trust the other's certificate.
    """
    host, port = _host_and_port(address)
    flag = f"--ray_address={address}"
    try:
        plain = socket.create_connection((host, port), _ANSWERS_S)
    except (OSError, OverflowError) as error:
        raise UserError(
            f"{flag}: no Ray cluster answers there ({error}); start one with `ray start --head`, "
            "or leave --ray_address out"
        ) from error

    speaks, answers = False, False
    with plain:
        try:
            with _context().wrap_socket(plain, server_hostname=host) as encrypted:
                speaks = True
                # With TLS 1.3 it is after the handshake that a certificate is refused.
                encrypted.sendall(_GREETING)
                answers = encrypted.recv(1) != b""
        except ssl.SSLCertVerificationError as error:
            raise UserError(
                f"{flag}: its certificate is not trusted ({error.verify_message}); {_TRUST}"
            ) from error
        except OSError:
            # No handshake, or the certificate that was shown was refused.
            answers = False

    if speaks and not uses_tls():
        raise UserError(f"{flag}: it speaks TLS, and RAY_USE_TLS is not 1 here; {_TRUST}")
    if uses_tls() and not speaks:
        raise UserError(
            f"{flag}: it does not speak TLS, and RAY_USE_TLS is 1 here; start it with TLS too"
        )
    if uses_tls() and not answers:
        raise UserError(f"{flag}: it does not trust the certificate of this machine; {_TRUST}")


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


def _context() -> ssl.SSLContext:
    """As Ray is told to use TLS: both ends show a certificate of one authority. Else unchecked, to
    see whether it is spoken at all.
    """
    if uses_tls():
        certificate, key, authority = (os.environ[name] for name in _FILES)
        context = ssl.create_default_context(cafile=authority)
        context.load_cert_chain(certificate, key)
    else:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    return context


def _host_and_port(address: str) -> tuple[str, int]:
    """HOST:PORT in its parts.

    Raises:
      UserError: it is not of that form.
    """
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal():
        raise UserError(f"--ray_address={address}: want auto or HOST:PORT")
    return host.strip("[]"), int(port)


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
