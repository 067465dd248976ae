"""The token that callers and Service Provider share, and where it may be sent without TLS."""

import ipaddress
import os
from pathlib import Path

from snake_jax.errors import UserError

TOKEN_VARIABLE = "SNAKE_JAX_TOKEN"
_SHORTEST = 16
_MAKE_ONE = "python -c 'import secrets; print(secrets.token_urlsafe(32))' > token makes one"


def read_token(file: str) -> str:
    """The token of a file, or of the environment where none is named.

    Raises:
      UserError: there is none, or none that is hard to guess.
    """
    if file:
        where = f"--token_file={file}"
        try:
            token = Path(file).expanduser().read_text().strip()
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "no text"
            raise UserError(f"{where}: {reason}; {_MAKE_ONE}") from error
    else:
        where = TOKEN_VARIABLE
        token = os.environ.get(TOKEN_VARIABLE, "").strip()
        if not token:
            raise UserError(f"a token is needed: --token_file=FILE, or {where}; {_MAKE_ONE}")
    # A header holds visible ASCII.
    if len(token) < _SHORTEST or not all("!" <= letter <= "~" for letter in token):
        raise UserError(
            f"{where}: at least {_SHORTEST} letters, digits and signs in one word; {_MAKE_ONE}"
        )
    return token


def is_loopback(host: str) -> bool:
    """Whether a host is this machine as none but itself reaches it."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
