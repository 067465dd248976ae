"""Carries out `snake-jax serve`: the Service Provider, until it is told to end."""

import os
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

from absl.flags import FlagValues

from snake_jax.cli.commands import COMMANDS
from snake_jax.cli.commands.command import Given
from snake_jax.errors import UserError
from snake_jax.services import admission, credentials
from snake_jax.services.store import Service


def main(given: Given) -> None:
    """Checks the flags, takes up the services that there are, and listens."""
    flags = given.flags
    if not flags.root:
        raise UserError("--root is needed: the folder of the Service Provider's services")
    if os.name != "posix":
        raise UserError("snake-jax serve needs processes as Linux and macOS have them")
    token = credentials.read_token(flags.token_file)
    try:
        # Here, since what they need comes with an extra.
        from snake_jax.services import api, listen
        from snake_jax.services.provider import Offer, Provider
    except ModuleNotFoundError as error:
        raise UserError(
            f"snake-jax serve needs {error.name}: pip install 'snake-jax[serve]'"
        ) from error
    address = listen.Address(flags.host, flags.port, flags.certfile, flags.keyfile)
    listen.check(address, flags.without_tls)
    offer = Offer(flags.slots, flags.turn_s, flags.grace_s, _allowed(flags))

    def words(service: Service, run: Path) -> Sequence[str]:
        return service_words(service, run, flags.grace_s)

    provider = Provider(Path(flags.root), offer, words)
    stopped = threading.Event()
    watching = threading.Thread(target=provider.go_on, args=(stopped,))
    watching.start()

    def listening(url: str) -> None:
        print(f"{url}: {flags.slots} slots; the page is there, the API at {url}/openapi.json")
        sys.stdout.flush()

    try:
        listen.serve(api.make_app(provider, token), address, listening)
    finally:
        stopped.set()
        watching.join()
        provider.close()


def service_words(service: Service, run: Path, grace_s: float) -> Sequence[str]:
    """The command that a service is.

    Args:
      service: it.
      run: its run folder.
      grace_s: how long a round may go on after SIGTERM.
    """
    program = [sys.executable, "-m", "snake_jax", service.task]
    own = [f"--workdir={run}", f"--grace_s={grace_s}"]
    return [*program, *own, *admission.words(admission.settings_of(service.settings))]


def _allowed(flags: FlagValues) -> admission.Allowed:
    folders = tuple(admission.data_folder(text) for text in flags.data_folders)
    known = {}
    for task in admission.TASKS:
        values = FlagValues()
        COMMANDS[task].define(values)
        known[task] = frozenset(values)
    return admission.Allowed(folders, flags.allow_module_models, known)
