"""Fair use of slots, and what an ended process comes to."""

import pytest

from snake_jax.services import turns
from snake_jax.services.store import Service


def service(number, **values):
    plain = Service(number, "", "", "classify", "{}", slots=1, run_s=0.0, restarts=2)
    return plain._replace(**{"waiting_s": float(number), **values})


def test_the_one_that_has_waited_longest_is_first():
    assert turns.first_in_line([]) is None
    late, early = service(1, waiting_s=9.0), service(2, waiting_s=4.0)
    assert turns.first_in_line([late, early]) == early
    assert turns.first_in_line([service(3, state="running")]) is None


def test_owners_share_slots_whatever_one_of_them_registers():
    running = [service(1, owner="ann", state="running"), service(2, owner="ann", state="ending")]
    waiting = [service(3, owner="ann"), service(4, owner="ann"), service(5, owner="bob")]
    assert turns.first_in_line([*running, *waiting]).number == 5
    bobs = service(6, owner="bob", state="running", slots=3)
    assert turns.first_in_line([*running, *waiting, bobs]).number == 3


def test_slots_in_use_are_those_of_all_that_have_a_process():
    services = [
        service(1, state="running", slots=2),
        service(2, state="ending"),
        service(3, slots=4),
    ]
    assert turns.free_slots(services, 4) == 1


def test_a_turn_is_over_after_its_time_and_not_before_a_round_is_finished_in_it():
    early = service(1, state="running", started_s=100.0, rounds=3)
    late = service(2, state="running", started_s=105.0, rounds=0)
    done = {1: 4, 2: 1}
    assert turns.makes_room([early, late], done, 109.9, turn_s=10.0) is None
    assert turns.makes_room([early, late], done, 110.0, turn_s=10.0) == early
    assert turns.makes_room([early, late], done | {1: 3}, 114.0, turn_s=10.0) is None
    assert turns.makes_room([early, late], done | {1: 3}, 115.0, turn_s=10.0) == late
    told = early._replace(state="ending")
    assert turns.makes_room([told], done, 200.0, turn_s=10.0) is None


@pytest.mark.parametrize(
    ("values", "code", "state"),
    [
        ({}, 0, "finished"),
        ({"wanted": "cancelled"}, 0, "finished"),
        ({"wanted": "cancelled"}, 143, "cancelled"),
        ({"wanted": "cancelled"}, None, "cancelled"),
        ({"wanted": "failed"}, -9, "failed"),
        ({"wanted": "waiting"}, 143, "waiting"),
        ({}, 2, "failed"),
        ({}, 1, "failed"),
        ({}, 143, "waiting"),
        ({}, -9, "waiting"),
        ({}, None, "waiting"),
        ({"crashes": 2}, -9, "failed"),
    ],
)
def test_what_a_service_comes_to(values, code, state):
    assert turns.ending(service(1, **values), code, "no data").state == state


def test_a_failure_says_why():
    assert turns.ending(service(1), 2, "no such data").cause == "no such data"
    assert turns.ending(service(1), 1, "").cause == "it ended with exit code 1"
    killed = turns.ending(service(1, crashes=2), -9, "")
    assert killed.cause == "killed by signal 9, 3 times in all: no restarts are left"
    assert killed.crashed
    limit = service(1, wanted="failed", cause="limits: too long")
    assert turns.ending(limit, 143, "terminated").cause == "limits: too long"
