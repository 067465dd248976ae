"""What a process of nodes compiles ahead: its own visits, and those that the rule would give it."""

import functools

from snake_jax.algorithms.schedule import Plan
from snake_jax.algorithms.visits import Visit
from snake_jax.config import ImageConfig
from snake_jax.engines.compiled_ahead import own_and_others
from snake_jax.runs.engines import _stand_in

LAYERS = ("a", "b", "c")
ROUNDS = [(Visit(turn, 0, turn, (layer,)),) for turn, layer in enumerate(LAYERS)]


def ahead_at(node, seconds, **flags):
    """The layers that a node's process gets ready for: of its own visits, and of others'."""
    able = {(layer,): dict(enumerate(seconds)) for layer in LAYERS}
    plan = Plan(ImageConfig(nodes=len(seconds), **flags), LAYERS, (), able=able)
    parts = own_and_others(ROUNDS, (node,), functools.partial(_stand_in, plan))
    return ["".join(visits[0].layers[0] for visits in part) for part in parts]


def test_take_overs_are_compiled_at_the_fastest_node_and_the_fastest_ones_at_the_second():
    seconds = [5.0, 1.0, 3.0, 9.0]
    assert [ahead_at(node, seconds) for node in range(4)] == [
        ["a", ""],
        ["b", "ac"],
        ["c", "b"],
        ["", ""],
    ]


def test_with_stand_ins_in_turn_they_are_compiled_at_the_next():
    seconds = [5.0, 1.0, 3.0, 9.0]
    found = [ahead_at(node, seconds, stand_in="next") for node in range(4)]
    assert found == [["a", ""], ["b", "a"], ["c", "b"], ["", "c"]]


def test_who_is_away_in_that_turn_gets_nothing_ready():
    assert ahead_at(1, [5.0, 1.0, 3.0], leave="1@2") == ["b", "a"]
    assert ahead_at(0, [5.0, 1.0, 3.0], leave="1@2") == ["a", "c"]


def test_a_round_of_several_is_nobody_elses():
    together = (Visit(0, 0, 0, ("a",)), Visit(0, 0, 1, ("a",)))
    own, others = own_and_others([together], (1, 2), lambda visit: 2)
    assert own == [(together[1],)]
    assert others == []
