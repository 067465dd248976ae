"""Carries out `snake-jax serve`: the Service Provider, until it is told to end."""

import importlib.util
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
        from snake_jax.services.pool import Machines
        from snake_jax.services.provider import Provider
        from snake_jax.services.terms import Offer
    except ModuleNotFoundError as error:
        raise UserError(
            f"snake-jax serve needs {error.name}: pip install 'snake-jax[serve]'"
        ) from error
    address = listen.Address(flags.host, flags.port, flags.certfile, flags.keyfile)
    listen.check(address, flags.without_tls)
    _check_pool(flags)
    machines = None
    if flags.pool or flags.ray_address:
        machines = Machines(
            flags.pool, flags.ray_address, flags.ray_resources, flags.ray_without_tls
        )
    offer = Offer(flags.slots, flags.turn_s, flags.grace_s, _allowed(flags), machines)

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
    pooled = bool(flags.pool or flags.ray_address)
    return admission.Allowed(folders, flags.allow_module_models, known, pooled)


def _check_pool(flags: FlagValues) -> None:
    """Refuses flags of a pool that contradict each other, or that nothing installed can do."""
    if flags.pool and flags.ray_address:
        raise UserError(
            "--pool is for a cluster that is started here; with --ray_address nodes are where "
            "`ray start --resources` says pool_node_0, pool_node_1, ...; leave one of the two out"
        )
    if not flags.pool and not flags.ray_address:
        for name in ("ray_resources", "ray_without_tls"):
            if getattr(flags, name):
                raise UserError(f"--{name} is for a pool; give --pool or --ray_address too")
        return
    if importlib.util.find_spec("ray") is None:
        raise UserError("a pool needs Ray, which is not installed: pip install 'snake-jax[ray]'")
    # Here, since it takes jax.
    from snake_jax.engines import ray_tls
    from snake_jax.engines.choice import RAY, Choice, resources

    choice = Choice(RAY, flags.ray_address, without_tls=flags.ray_without_tls)
    ray_tls.check_address(choice)
    resources(flags.ray_resources)
