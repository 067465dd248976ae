"""A Service Provider whose services are small programs in the place of training."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from snake_jax.services import admission
from snake_jax.services.provider import Provider
from snake_jax.services.store import OVER, Service
from snake_jax.services.terms import Offer, ServiceTerms

TOKEN = "a-token-of-the-tests"
SETTINGS: dict[str, admission.Setting] = {"model": "mlp", "nodes": 2, "dataset": "digits"}
# A round in each 0.05 s, `count` in all, kept in a file; SIGTERM ends it after its round.
_ROUNDS = """
import json, pathlib, signal, sys, time
told = []
signal.signal(signal.SIGTERM, lambda number, frame: told.append(number))
run = pathlib.Path(sys.argv[1])
run.mkdir(exist_ok=True)
file = run / "metrics.jsonl"
done = len(file.read_text().splitlines()) if file.exists() else 0
for visit in range(done, int(sys.argv[2])):
    time.sleep(0.05)
    line = {"visit": visit, "cycle": visit // 3, "node": visit % 2, "accuracy": visit / 10,
            "layers": ["fc1", f"fc{2 + visit % 3}", "fc5"], "loss": 1 / (visit + 1), "event": ""}
    sent = {"visit": visit, "source": "server", "destination": f"node{visit % 2}",
            "layers": ["fc1"], "bytes": 100, "why": "update"}
    with (run / "ledger.jsonl").open("a") as stream:
        stream.write(json.dumps(sent) + "\\n")
    with file.open("a") as stream:
        stream.write(json.dumps(line) + "\\n")
    if told:
        sys.exit(143)
(run / "summary.json").write_text("{}")
"""
# What a service is, by its name.
PROGRAMS = {
    "nothing": "pass",
    "wrong": "import sys; print('working'); print('error: no such data; give some'); sys.exit(2)",
    "bug": "raise ZeroDivisionError('a bug')",
    "killed": "import os; os.kill(os.getpid(), 9)",
    "sleeps": "import time; time.sleep(100)",
    "stubborn": "import signal, time; signal.signal(15, signal.SIG_IGN); time.sleep(100)",
    "tells": "import os, sys; print(os.environ.get('SNAKE_JAX_TOKEN'), sys.stdin.read() == '')",
    "few rounds": _ROUNDS,
    "many rounds": _ROUNDS,
}
_COUNTS = {"few rounds": 7, "many rounds": 10_000}


def words(service: Service, run: Path) -> list[str]:
    """The program that a service is."""
    count = _COUNTS.get(service.name, 0)
    return [sys.executable, "-I", "-S", "-c", PROGRAMS[service.name], str(run), str(count)]


def asked(name: str, **changes: object) -> ServiceTerms:
    """A service that is a program of `PROGRAMS`."""
    return ServiceTerms("classify", SETTINGS, name)._replace(**changes)


@contextmanager
def provider_of(root: Path, **offer: object) -> Iterator[Provider]:
    """A Service Provider of small programs, none of which is left at the end."""
    provider = Provider(root, Offer(**{"grace_s": 5.0, **offer}), words)
    try:
        yield provider
        for service in provider.services():
            if service.state not in OVER:
                provider.cancel(service.number)
        stepped(provider, lambda: all(one.state in OVER for one in provider.services()))
    finally:
        provider.close()


def stepped(provider: Provider, done: Callable[[], object], patience_s: float = 60.0) -> None:
    """Steps until something is so; the machine may be slow, so patience is no measure."""
    wait_until(lambda: provider.step() or done(), patience_s)


def wait_until(done: Callable[[], object], patience_s: float = 60.0) -> None:
    """Waits until something is so."""
    until = time.monotonic() + patience_s
    while not done():
        assert time.monotonic() < until, "it did not come to be"
        time.sleep(0.03)
