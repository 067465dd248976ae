"""The Service Provider: what services come to, on how many slots, and what a restart finds."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from snake_jax import pids
from snake_jax.errors import UserError
from snake_jax.pids import Process
from snake_jax.services import children, keeper, store
from snake_jax.services.provider import Provider
from snake_jax.services.terms import NotThere, Offer, WrongState
from tests.service_provider import asked, provider_of, stepped, wait_until, words


def states(provider):
    return [service.state for service in provider.services()]


def is_over(provider, number):
    return lambda: provider.find(number).state in store.OVER


def told(provider, number):
    return [event.event for event in provider.events(number)]


needs_proc = pytest.mark.skipif(sys.platform != "linux", reason="the system has no /proc")


def session_of(pid):
    """The living processes of a session, as proc_pid_stat(5) tells them."""
    found = []
    for file in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            state, _, _, session, *_ = file.read_text().rpartition(")")[2].split()
            if session == str(pid) and state != "Z":
                found.append(int(file.parent.name))
    return found


def test_what_services_come_to_and_why(tmp_path):
    with provider_of(tmp_path, slots=4) as provider:
        for name in ("nothing", "wrong", "bug", "few rounds"):
            provider.register(asked(name))
        stepped(provider, lambda: all(state in store.OVER for state in states(provider)))
        assert states(provider) == ["finished", "failed", "failed", "finished"]
        causes = [service.cause for service in provider.services()]
        assert causes == ["", "no such data; give some", "ZeroDivisionError: a bug", ""]
        assert told(provider, 1) == ["registered", "started", "finished"]
        assert told(provider, 2) == ["registered", "started", "failed"]
        assert provider.log(provider.find(2)) == "working\nerror: no such data; give some\n"
        assert provider.progress(4).place.lines == 7
        finished = provider.find(4)
        assert finished.registered_s <= finished.started_s <= finished.ended_s
        assert finished.used_s > 0.3


def test_no_more_run_than_there_are_slots(tmp_path):
    with provider_of(tmp_path, slots=3) as provider:
        for slots in (2, 2, 1):
            provider.register(asked("many rounds", slots=slots))
        provider.step()
        # The third would fit, but the second came first.
        assert states(provider) == ["running", "waiting", "waiting"]
        provider.cancel(1)
        stepped(provider, lambda: states(provider) == ["cancelled", "running", "running"])
        with pytest.raises(UserError, match="4 slots are wanted, there are 3"):
            provider.register(asked("nothing", slots=4))


def test_a_service_hands_its_slot_on_and_goes_on_where_it_was(tmp_path):
    with provider_of(tmp_path, slots=1, turn_s=0.2) as provider:
        provider.register(asked("many rounds"))
        provider.step()
        provider.register(asked("few rounds"))
        stepped(provider, lambda: states(provider) == ["waiting", "running"])
        done = provider.progress(1).place.lines
        assert done > 0
        assert told(provider, 1)[-2:] == ["told to end", "turn over"]
        assert provider.find(1).used_s > 0
        stepped(provider, is_over(provider, 2))
        stepped(provider, lambda: provider.progress(1).place.lines > done)
        first = provider.find(1)
        # They took turns until the second was done.
        assert first.attempt >= 2
        assert (first.state, first.crashes) == ("running", 0)
        lines = (provider.run_folder(1) / "metrics.jsonl").read_text().splitlines()
        numbers = [int(line.split('"visit": ')[1].split(",")[0]) for line in lines]
        assert numbers == list(range(len(lines))), "no round twice, none left out"


def test_cancelling_is_at_once_for_what_waits_and_after_the_round_for_what_runs(tmp_path):
    with provider_of(tmp_path, slots=1) as provider:
        for _ in range(2):
            provider.register(asked("many rounds"))
        stepped(provider, lambda: provider.progress(1).place.lines > 0)
        assert provider.cancel(2).state == "cancelled"
        assert provider.cancel(1).state == "ending"
        assert provider.cancel(1).state == "ending", "a second time changes nothing"
        stepped(provider, is_over(provider, 1))
        assert provider.find(1).state == "cancelled"
        for number in (1, 2):
            with pytest.raises(WrongState, match="is cancelled: it needs no cancelling"):
                provider.cancel(number)


@needs_proc
def test_one_that_does_not_end_is_killed_with_all_that_it_started(tmp_path, monkeypatch):
    monkeypatch.setattr("snake_jax.services.provider._KILLED_AFTER_S", 0.2)
    with provider_of(tmp_path, grace_s=0.2) as provider:
        provider.register(asked("stubborn"))
        provider.step()
        keeper = provider.find(1).pid
        wait_until(lambda: len(session_of(keeper)) == 2)
        time.sleep(0.3)  # until it does not heed SIGTERM
        provider.cancel(1)
        stepped(provider, is_over(provider, 1))
        assert provider.find(1).state == "cancelled"
        wait_until(lambda: session_of(keeper) == [])


def test_one_that_is_killed_is_started_again_so_often_and_no_more(tmp_path):
    with provider_of(tmp_path) as provider:
        provider.register(asked("killed", restarts=2))
        stepped(provider, is_over(provider, 1))
        service = provider.find(1)
        assert (service.state, service.attempt, service.crashes) == ("failed", 3, 3)
        assert service.cause == "killed by signal 9, 3 times in all: no restarts are left"
        assert told(provider, 1).count("lost") == 2


@needs_proc
def test_a_killed_keeper_takes_its_command_along_and_is_replaced(tmp_path):
    with provider_of(tmp_path) as provider:
        provider.register(asked("many rounds"))
        stepped(provider, lambda: provider.progress(1).place.lines > 0)
        keeper = provider.find(1).pid
        assert len(session_of(keeper)) == 2
        children.end(Process(keeper, provider.find(1).process), signal.SIGSTOP)  # no last words
        os.kill(keeper, signal.SIGKILL)
        wait_until(lambda: session_of(keeper) == [])
        stepped(provider, lambda: provider.find(1).attempt == 2)
        assert provider.find(1).crashes == 1


def test_the_limit_of_running_is_kept(tmp_path):
    with provider_of(tmp_path) as provider:
        provider.register(asked("many rounds", run_s=0.5))
        stepped(provider, is_over(provider, 1))
        service = provider.find(1)
        assert service.state == "failed"
        assert service.cause == "limits: it has run for run_s=0.5 seconds"
        assert service.used_s > 0.5


def test_a_process_knows_no_token_and_reads_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("SNAKE_JAX_TOKEN", "secret-secret-secret")
    with provider_of(tmp_path) as provider:
        provider.register(asked("tells"))
        stepped(provider, is_over(provider, 1))
        assert provider.log(provider.find(1)) == "None True\n"


def test_de_registering_forgets_what_is_over(tmp_path):
    with provider_of(tmp_path) as provider:
        provider.register(asked("few rounds"))
        provider.register(asked("many rounds"))
        stepped(provider, is_over(provider, 1))
        folder = provider.run_folder(1).parent
        assert folder.is_dir()
        provider.deregister(1)
        assert not folder.exists()
        for look in (provider.find, provider.events, provider.cancel, provider.deregister):
            with pytest.raises(NotThere, match="service 1: there is none"):
                look(1)
        with pytest.raises(WrongState, match="service 2 is running: cancel it first"):
            provider.deregister(2)


def test_one_folder_has_one_service_provider(tmp_path):
    offer = Offer()
    with provider_of(tmp_path), pytest.raises(UserError, match="another Service Provider has it"):
        Provider(tmp_path, offer, words)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"--root=.*: .*; give a folder that can be written"):
        Provider(tmp_path / "file", offer, words)


def abandoned(provider):
    """As a kill leaves it: nothing is settled, no process told."""
    Provider.close(provider)


@needs_proc
def test_a_restart_finds_every_service_as_it_is(tmp_path):
    """Right after it, without a step: what ran and runs, what ended meanwhile, what was killed
    meanwhile, what was told to end, what waits, and what was over.
    """
    names = ("many rounds", "few rounds", "sleeps", "many rounds", "nothing", "many rounds")
    first = provider_of(tmp_path, slots=5)
    provider = first.__enter__()
    for name in names:
        provider.register(asked(name))
    provider.step()
    stepped(provider, is_over(provider, 5))
    provider.register(asked("nothing", slots=5))
    assert states(provider)[4:] == ["finished", "running", "waiting"]
    stepped(provider, lambda: provider.progress(4).place.lines > 0)
    provider.cancel(4)
    before = provider.services()
    ended = provider.run_folder(2).parent / "exit_1"
    abandoned(provider)
    wait_until(ended.exists)
    os.killpg(before[2].pid, signal.SIGKILL)
    wait_until(lambda: session_of(before[2].pid) == [])

    with provider_of(tmp_path, slots=5) as provider:
        found = provider.services()
        wanted = ["running", "finished", "waiting", "ending", "finished", "running", "waiting"]
        if found[3].state == "cancelled":
            wanted[3] = "cancelled"  # its process was faster
        assert [service.state for service in found] == wanted
        assert [found[i].pid for i in (0, 5)] == [before[i].pid for i in (0, 5)]
        assert found[0].attempt == 1
        assert told(provider, 1)[-1] == "taken up"
        assert told(provider, 3)[-1] == "lost"
        assert found[2].crashes == 0, "it was nobody's fault"
        # And all goes on: watched, started again, ended.
        stepped(provider, lambda: provider.find(4).state == "cancelled")
        stepped(provider, lambda: provider.find(3).attempt == 2)
        done = provider.progress(1).place.lines
        stepped(provider, lambda: provider.progress(1).place.lines > done)


KILLED = """
import os, pathlib, signal, sys
from snake_jax.services import children, provider, terms
from tests.service_provider import asked, words
start = children.start
def start_and_die(*arguments):
    if sys.argv[2] == "after":
        start(*arguments)
    os.kill(os.getpid(), signal.SIGKILL)
children.start = start_and_die
made = provider.Provider(pathlib.Path(sys.argv[1]), terms.Offer(), words)
made.register(asked("many rounds"))
made.step()
"""


@needs_proc
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_kill_around_the_start_of_a_process_leaves_none_that_nobody_watches(tmp_path, when):
    """The Service Provider is killed before it has noted the process, or before there is one."""
    command = [sys.executable, "-c", KILLED, str(tmp_path), when]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    folder = tmp_path / "services" / "1"
    if when == "after":
        wait_until((folder / "keeper_1").exists)
    with provider_of(tmp_path) as provider:
        (service,) = provider.services()
        if when == "after":
            assert (service.state, service.attempt) == ("running", 1)
            assert service.pid == int((folder / "keeper_1").read_text())
            assert told(provider, 1)[-1] == "taken up"
        else:
            assert (service.state, service.crashes) == ("waiting", 0)
        stepped(provider, lambda: provider.progress(1).place.lines > 0)
        assert provider.find(1).attempt == (1 if when == "after" else 2)
        keeper_pid = provider.find(1).pid
        provider.cancel(1)
        stepped(provider, is_over(provider, 1))
        wait_until(lambda: session_of(keeper_pid) == [])


def test_a_keeper_whose_attempt_was_given_up_runs_nothing(tmp_path):
    """One that was started so late that a new Service Provider had looked for it before."""
    assert children.of_attempt(tmp_path, 1) == Process(0, "")
    process = children.start(tmp_path, 1, [sys.executable, "-c", "print('ran')"], {})
    wait_until(lambda: not children.is_alive(process))
    assert {file.name for file in tmp_path.iterdir()} == {"keeper_1"}
    assert keeper.taken(tmp_path / "keeper_1") is None


def test_another_process_of_the_same_pid_is_not_taken_for_the_service(tmp_path):
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other:
        assert children.is_alive(Process(other.pid, pids.started(other.pid)))
        assert not children.is_alive(Process(other.pid, "earlier"))
        children.end(Process(other.pid, "earlier"), signal.SIGTERM)
        assert other.poll() is None
        other.communicate(b"\n")
    assert not children.is_alive(Process(other.pid, "whatever"))
    assert not children.is_alive(Process(0, ""))


def test_a_second_keeper_of_a_folder_waits_for_the_first(tmp_path):
    script = "import pathlib, time; print('in'); time.sleep(1); print('out')"
    environment = {"PATH": "/usr/bin"}
    for attempt in (1, 2):
        words = [sys.executable, "-I", "-u", "-c", script]
        children.start(tmp_path, attempt, words, environment)
        wait_until((tmp_path / "output_1.log").exists)
    assert not (tmp_path / "output_2.log").exists()
    wait_until(lambda: children.exit_code(tmp_path, 2) == 0)
    first, second = (tmp_path / f"output_{attempt}.log" for attempt in (1, 2))
    assert first.read_text() == second.read_text() == "in\nout\n"
    assert (tmp_path / "exit_1").stat().st_mtime_ns <= second.stat().st_mtime_ns
