"""Work behind its caller: in order, one piece at a time, and what fails is said."""

import threading

import pytest

from snake_jax.runs.behind import Behind


@pytest.fixture
def behind():
    made = Behind()
    yield made
    made.close()


def test_the_caller_goes_on_while_a_piece_is_done(behind):
    go_on, done = threading.Event(), []

    def slow():
        assert go_on.wait(60)
        done.append("slow")

    behind.do(slow)
    assert done == []
    go_on.set()
    behind.do(lambda: done.append("fast"))
    assert done[0] == "slow", "the next one waits for the one before"
    behind.settle()
    assert done == ["slow", "fast"]


def test_what_a_piece_raises_is_raised_once_and_the_next_piece_is_not_begun(behind):
    done = []
    behind.do(lambda: done.append(1 / 0))
    with pytest.raises(ZeroDivisionError):
        behind.do(lambda: done.append("not begun"))
    behind.do(lambda: done.append("begun"))
    behind.settle()
    assert done == ["begun"]
