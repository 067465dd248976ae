"""Carries out `snake-jax services`: speaks with a Service Provider."""

import dataclasses
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from absl.flags import FlagValues

from snake_jax.cli.commands.command import Given
from snake_jax.errors import UserError
from snake_jax.report.progress import progress_text
from snake_jax.services import client, credentials
from snake_jax.services.admission import TASKS
from snake_jax.services.client import Answer, ServiceProvider

_WANTED = "want submit, list, nodes, show, logs, cancel, fetch or remove"


def main(given: Given) -> None:
    """Does what the first word says."""
    flags, paths = given.flags, given.paths
    verbs: dict[str, Callable[[ServiceProvider, FlagValues, Sequence[str]], None]] = {
        "submit": _submit,
        "list": _list,
        "nodes": _nodes,
        "show": _show,
        "logs": _logs,
        "cancel": _cancel,
        "fetch": _fetch,
        "remove": _remove,
    }
    if not paths or paths[0] not in verbs:
        raise UserError(f"{paths[0] if paths else 'services'}: {_WANTED}")
    verb, *rest = paths
    token = credentials.read_token(flags.token_file)
    provider = client.server(flags.url, token, flags.cafile, flags.without_tls)
    verbs[verb](provider, flags, rest)


def registration(words: Sequence[str]) -> dict[str, Any]:
    """What is registered: an object of a file, or a task and its settings as NAME=VALUE.

    Raises:
      UserError: it is neither.
    """
    if not words:
        raise UserError("submit: want a task and settings as nodes=4, or a JSON file")
    first, *rest = words
    if first not in TASKS:
        if rest:
            raise UserError(f"submit {first}: not one of {', '.join(TASKS)}")
        return _read(first)
    types = {field.name: field.type for field in dataclasses.fields(TASKS[first])}
    settings = {}
    for word in rest:
        name, equals, text = word.partition("=")
        if not equals:
            raise UserError(f"{word}: settings are given as NAME=VALUE")
        settings[name] = _value(name, text, types.get(name, str))
    return {"task": first, "settings": settings}


def _read(file: str) -> dict[str, Any]:
    try:
        content = json.loads(Path(file).read_text())
    except OSError as error:
        raise UserError(f"submit {file}: {error.strerror or error}") from error
    except ValueError as error:
        raise UserError(f"submit {file}: no JSON ({error})") from error
    if not isinstance(content, dict):
        raise UserError(f"submit {file}: a JSON object is wanted")
    return content


def _value(name: str, text: str, kind: object) -> object:
    """A setting's text as the flag's type."""
    if kind is bool:
        if text not in ("true", "false"):
            raise UserError(f"{name}={text}: want true or false")
        return text == "true"
    for number in (int, float):
        if kind is number:
            try:
                return number(text)
            except ValueError as error:
                raise UserError(f"{name}={text}: want a number") from error
    return text


def _submit(provider: ServiceProvider, flags: FlagValues, words: Sequence[str]) -> None:
    asked = registration(words)
    for name in ("name", "owner"):
        if flags[name].value:
            asked[name] = flags[name].value
    service = client.submit(provider, asked)
    print(f"service {service['number']}: {service['state']}")


def _list(provider: ServiceProvider, flags: FlagValues, words: Sequence[str]) -> None:
    _no_more(words)
    answer = client.every(provider)
    print(f"{answer['slots_in_use']} of {answer['slots']} slots in use")
    for service in answer["services"]:
        print(_line(service))


def _nodes(provider: ServiceProvider, flags: FlagValues, words: Sequence[str]) -> None:
    _no_more(words)
    found = client.nodes(provider)
    if not found:
        print("no nodes are shared: each service plays its own")
    for node in found:
        state = "free" if node["alive"] else "gone"
        if node["service"] is not None:
            state = f"service {node['service']}, visit {node['turn']}: {', '.join(node['layers'])}"
        waiting = "".join(f", service {number} waits" for number in node["waiting"])
        print(f"{node['node']:>4}  {node['host']}  {node['visits']} visits  {state}{waiting}")


def _show(provider: ServiceProvider, flags: FlagValues, words: Sequence[str]) -> None:
    service = client.show(provider, _number(words))
    print(_line(service))
    for name, value in service["settings"].items():
        print(f"  {name}={value}")
    for event in client.events(provider, service["number"]):
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(event["time_s"]))
        where = [f"{name} {event[name]}" for name in ("visit", "node") if event[name] is not None]
        parts = [f"  {when}", event["event"], ", ".join(where), event["cause"]]
        print("  ".join(part for part in parts if part))
    if service["last"]:
        print(f"  {progress_text(service['last'])}")


def _logs(provider: ServiceProvider, flags: FlagValues, words: Sequence[str]) -> None:
    number = _number(words)
    if not flags.follow:
        print(client.log(provider, number), end="")
        return
    for record in client.metrics(provider, number):
        print(f"visit {record.get('visit')}  {progress_text(record)}", flush=True)
    print(_line(client.show(provider, number)))


def _cancel(provider: ServiceProvider, flags: FlagValues, words: Sequence[str]) -> None:
    print(_line(client.cancel(provider, _number(words))))


def _fetch(provider: ServiceProvider, flags: FlagValues, words: Sequence[str]) -> None:
    number = _number(words)
    folder = Path(flags.output or f"service_{number}").expanduser()
    count = client.fetch(provider, number, folder)
    print(f"{folder}: {count} files")


def _remove(provider: ServiceProvider, flags: FlagValues, words: Sequence[str]) -> None:
    number = _number(words)
    client.remove(provider, number)
    print(f"service {number}: removed")


def _line(service: Answer) -> str:
    """A service in a line; what there is none of is left out."""
    rounds = service["rounds"]
    parts = [
        f"{service['number']:>4}",
        f"{service['state']:<9}",
        service["task"],
        service["name"],
        service["owner"],
        f"{rounds} {'round' if rounds == 1 else 'rounds'}",
        service["cause"],
    ]
    return "  ".join(part for part in parts if part)


def _number(words: Sequence[str]) -> int:
    if len(words) != 1 or not words[0].isdecimal():
        raise UserError(f"{' '.join(words) or 'nothing'}: want the number of one service")
    return int(words[0])


def _no_more(words: Sequence[str]) -> None:
    if words:
        raise UserError(f"{words[0]}: list and nodes take no more words")
