"""Speaks with a Service Provider: what `snake-jax services` asks of it."""

import json
import shutil
import tarfile
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import IO, Any, NamedTuple
from urllib.parse import urlsplit

import requests

from snake_jax.errors import UserError
from snake_jax.services.credentials import is_loopback

Answer = dict[str, Any]

_CONNECT_S, _READ_S = 10.0, 60.0
_WAIT_S = 30.0  # for which one answer follows a file: less than what is waited for a line of it
_CHUNK_BYTES = 1 << 20
_OVER = ("finished", "failed", "cancelled")


class ServiceProvider(NamedTuple):
    """A Service Provider.

    Attributes:
      url: of it.
      token: that it takes.
      cafile: the certificate that its own is checked by; empty: those of the system.
    """

    url: str
    token: str
    cafile: str = ""


def server(url: str, token: str, cafile: str = "", without_tls: bool = False) -> ServiceProvider:
    """A Service Provider by its URL.

    Raises:
      UserError: it is none, or the token would be sent where others can read it.
    """
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise UserError(f"--url={url}: want http://HOST:PORT or https://HOST:PORT")
    if parts.scheme == "http" and not without_tls and not is_loopback(parts.hostname):
        raise UserError(
            f"--url={url}: others could read the token; say https://, or --without_tls where the "
            f"network is your own"
        )
    if cafile and not Path(cafile).expanduser().is_file():
        raise UserError(f"--cafile={cafile}: no such file")
    return ServiceProvider(url.rstrip("/"), token, str(Path(cafile).expanduser()) if cafile else "")


def submit(provider: ServiceProvider, registration: Mapping[str, Any]) -> Answer:
    """Registers a service; gives it."""
    return _json(_call(provider, "POST", "/services", registration))


def every(provider: ServiceProvider) -> Answer:
    """All services, and the slots."""
    return _json(_call(provider, "GET", "/services"))


def show(provider: ServiceProvider, number: int) -> Answer:
    """A service."""
    return _json(_call(provider, "GET", f"/services/{number}"))


def nodes(provider: ServiceProvider) -> list[Answer]:
    """The nodes that services share, as they stand."""
    return _json(_call(provider, "GET", "/nodes"))["nodes"]


def events(provider: ServiceProvider, number: int) -> list[Answer]:
    """What happened to a service."""
    return _json(_call(provider, "GET", f"/services/{number}/events"))["events"]


def log(provider: ServiceProvider, number: int) -> str:
    """What a service's process printed."""
    return _call(provider, "GET", f"/services/{number}/log").text


def metrics(provider: ServiceProvider, number: int) -> Iterator[Answer]:
    """A service's lines of metrics as they come, until it is over."""
    first = 0
    while True:
        # Asked before: what is written before the end is read.
        over = show(provider, number)["state"] in _OVER
        path = f"/services/{number}/metrics?first={first}&wait_s={_WAIT_S:g}"
        answer = _call(provider, "GET", path, stream=True)
        try:
            for line in answer.iter_lines():
                first += 1
                yield json.loads(line)
        except requests.RequestException as error:
            raise _unreachable(provider, error) from error
        finally:
            answer.close()
        if over:
            return


def cancel(provider: ServiceProvider, number: int) -> Answer:
    """Cancels a service."""
    return _json(_call(provider, "POST", f"/services/{number}/cancel"))


def remove(provider: ServiceProvider, number: int) -> None:
    """De-registers a service."""
    _call(provider, "DELETE", f"/services/{number}")


def fetch(provider: ServiceProvider, number: int, folder: Path) -> int:
    """Writes the result of a service that is over into a new folder; gives the number of files.

    Raises:
      UserError: the folder is there already, cannot be written, or what `_call` raises.
    """
    if folder.exists():
        raise UserError(f"--output={folder} is there already; give a new folder")
    answer = _call(provider, "GET", f"/services/{number}/archive", stream=True)
    with answer, tempfile.TemporaryFile() as copy:
        try:
            for piece in answer.iter_content(_CHUNK_BYTES):
                copy.write(piece)
        except requests.RequestException as error:
            raise _unreachable(provider, error) from error
        copy.seek(0)
        try:
            return _unpacked(copy, folder)
        except (OSError, tarfile.TarError) as error:
            raise UserError(f"--output={folder}: {error}; give another folder") from error


def _unpacked(copy: IO[bytes], folder: Path) -> int:
    """Writes the files of an archive; gives their number.

    Raises:
      UserError: it holds what a Service Provider never sends: a link, a device, or a file that
        would lie outside the folder.
    """
    with tarfile.open(fileobj=copy, mode="r:") as packed:
        entries = packed.getmembers()
        # All of them are looked at before the first is written.
        places = [_place_within(folder, entry) for entry in entries]
        folder.mkdir(parents=True)
        for entry, place in zip(entries, places, strict=True):
            content = packed.extractfile(entry)
            assert content is not None, "a regular file has a content"
            place.parent.mkdir(parents=True, exist_ok=True)
            with content, place.open("wb") as file:
                shutil.copyfileobj(content, file)
    return len(entries)


def _place_within(folder: Path, entry: tarfile.TarInfo) -> Path:
    """Where a file of an archive goes, without the one folder that all of them lie in there."""
    path = PurePosixPath(entry.name.partition("/")[2])
    is_within = bool(path.parts) and not path.is_absolute() and ".." not in path.parts
    if not entry.isfile() or not is_within:
        raise UserError(
            f"{entry.name}: the archive would write outside its folder; fetch it from a Service "
            f"Provider that you trust"
        )
    return folder / path


def _call(
    provider: ServiceProvider,
    method: str,
    path: str,
    body: Mapping[str, Any] | None = None,
    stream: bool = False,
) -> requests.Response:
    """An answer that is no refusal.

    Raises:
      UserError: the Service Provider is not reached, or refuses; in its own words.
    """

    def with_token(request: requests.PreparedRequest) -> requests.PreparedRequest:
        request.headers["Authorization"] = f"Bearer {provider.token}"
        return request

    try:
        with requests.Session() as session:
            # What the environment says of proxies and passwords: no proxy reads a token that goes
            # without TLS, and no password of a .netrc takes the token's place.
            session.trust_env = provider.url.startswith("https://")
            answer = session.request(
                method,
                provider.url + path,
                json=body,
                stream=stream,
                auth=with_token,
                timeout=(_CONNECT_S, _READ_S),
                verify=provider.cafile or True,
                # The token goes nowhere else.
                allow_redirects=False,
            )
    except requests.RequestException as error:
        raise _unreachable(provider, error) from error
    if answer.status_code >= 300:
        raise UserError(f"{provider.url}: {_reason(answer)}")
    return answer


def _reason(answer: requests.Response) -> str:
    try:
        return str(answer.json()["error"])
    except (ValueError, KeyError, TypeError):
        return f"answered {answer.status_code}; is it a snake-jax serve?"


def _json(answer: requests.Response) -> Answer:
    try:
        return answer.json()
    except ValueError as error:
        raise UserError(f"{answer.url}: no JSON; is it a snake-jax serve?") from error


def _unreachable(provider: ServiceProvider, error: requests.RequestException) -> UserError:
    if isinstance(error, requests.exceptions.SSLError):
        return UserError(
            f"--url={provider.url}: its certificate is not trusted; give the one that signed it "
            f"with --cafile"
        )
    return UserError(f"--url={provider.url}: not reached; is snake-jax serve running there?")
