"""Assignment of a language model's visits to unlike nodes; nothing is trained for it."""

import itertools
import json

import pytest

from snake_jax.config import TextConfig
from snake_jax.errors import UserError
from snake_jax.runs import loop, text_task
from snake_jax.runs.job import planned
from tests.launches import write_model, write_pairs

BLOCKS = tuple(f"block_0{index}.lora" for index in range(3))


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """`prepared(nodes, flags)`: the job on nodes of a file, or the `whole` setup."""
    folder = tmp_path_factory.mktemp("files")
    model, data = write_model(folder / "model"), write_pairs(folder / "pairs.jsonl")

    def of(nodes, whole=False, **flags):
        (folder / "nodes.json").write_text(json.dumps({"nodes": nodes}))
        values = {"model": str(model), "data": str(data), "node_file": str(folder / "nodes.json")}
        values |= {"nodes": len(nodes), "max_length": 64, "batch_size": 4, "lora_rank": 4}
        setup = loop.prepare(TextConfig(**values | flags))
        return setup if whole else setup.job

    return of


@pytest.mark.parametrize("how", ["proportional", "milp"])
def test_a_fast_node_takes_more_blocks(prepared, how):
    slow = {"flops_per_s": 1e6, "latency_s": 0, "up_bytes_per_s": 1e12, "down_bytes_per_s": 1e12}
    job = prepared([slow, {**slow, "flops_per_s": 1e9}], assign=how)
    assert set(job.plan.visitors) == {(block,) for block in BLOCKS}
    assert set(job.plan.visitors.values()) == {1}
    assert [visits[0].node for visits in planned(job)] == [1, 1, 1]


def test_greedy_goes_to_the_fast_node_first_and_to_each_once(prepared):
    slow = {"flops_per_s": 1e6, "latency_s": 0, "up_bytes_per_s": 1e12, "down_bytes_per_s": 1e12}
    nodes = [slow, {**slow, "flops_per_s": 1e9}, slow]
    job = prepared(nodes, assign="greedy", mode="peer_to_peer")
    assert [visits[0].node for visits in planned(job)] == [1, 0, 2]
    # Over a graph the second hop is to a neighbour of the first, and later cycles go on from there.
    job = prepared([*nodes, slow], assign="greedy", mode="peer_to_peer", topology="ring", cycles=2)
    found = [visits[0].node for visits in planned(job)]
    assert found[0] == 1
    assert all(abs(a - b) in (1, 3) for a, b in itertools.pairwise(found))
    assert set(found) == {0, 1, 2, 3}
    assert job.plan.visitors == {}


def test_a_fast_node_takes_several_blocks_in_one_visit(prepared):
    near = {"latency_s": 0, "up_bytes_per_s": 1e12, "down_bytes_per_s": 1e12}
    slow, fast = {**near, "flops_per_s": 1e6}, {**near, "flops_per_s": 2.5e6}
    job = prepared([slow, fast], assign="segments", cycles=2)
    assert job.plan.visitors == {BLOCKS[:1]: 0, BLOCKS[1:]: 1}
    assert set(job.plan.able) == {BLOCKS[:1], BLOCKS[1:]}
    visits = [visit for visits in planned(job) for visit in visits]
    assert [visit.layers for visit in visits] == [BLOCKS[:1], BLOCKS[1:]] * 2
    assert [visit.turn for visit in visits] == [0, 1, 2, 3]
    # One without the memory has none.
    job = prepared([{**fast, "memory_bytes": 1000}, slow], assign="segments")
    assert job.plan.visitors == {BLOCKS: 1}
    with pytest.raises(UserError, match="--assign=segments: the 2 nodes, one visit each, cannot"):
        prepared([{"memory_bytes": 1000}, {"memory_bytes": 1000}], assign="segments")


def test_a_node_of_smaller_rank_is_sooner_done_with_handing_in(prepared):
    slow_link = {"flops_per_s": 1e15, "latency_s": 0, "up_bytes_per_s": 1, "down_bytes_per_s": 1e15}
    narrow, wide = (
        prepared([slow_link, slow_link], assign="milp", rank=rank).plan.able[BLOCKS[:1]]
        for rank in ("1,4", "4,4")
    )
    assert narrow[1] == wide[0] == wide[1]
    assert narrow[0] == pytest.approx(wide[0] / 4, rel=1e-3)


def test_nodes_take_turns_unless_they_are_told_otherwise(prepared):
    job = prepared([{}, {}])
    assert job.plan.visitors == {}
    assert [visits[0].node for visits in planned(job)] == [0, 1, 0]
    assert {tuple(nodes) for nodes in job.plan.able.values()} == {(0, 1)}


def test_a_node_that_cannot_hold_a_block_takes_none(prepared):
    small = {"memory_bytes": 1000}
    job = prepared([small, {}], assign="milp")
    assert set(job.plan.visitors.values()) == {1}
    assert {tuple(nodes) for nodes in job.plan.able.values()} == {(1,)}
    with pytest.raises(UserError, match="memory"):
        prepared([small, {}])


@pytest.mark.parametrize("algorithm", ["snake", "fedavg", "sequential"])
def test_what_visits_take_at_each_node_is_known_of_language_models_too(prepared, algorithm):
    nodes = [{}, {"flops_per_s": 1e9}, {}]
    job = prepared(nodes, algorithm=algorithm, follow_clock=algorithm != "sequential")
    alone = {(block,) for block in BLOCKS}
    assert set(job.plan.able) == (alone if algorithm == "snake" else {BLOCKS})
    for seconds in job.plan.able.values():
        assert seconds[1] > seconds[0] > 0


def test_each_node_drops_unsound_texts_of_its_own_and_says_so(prepared, tmp_path):
    rows = [{"prompt": f"what is {n}?", "response": f"it is {n}"} for n in range(20)]
    rows[5:9] = [rows[4]] * 4
    rows[12] = {"prompt": "what?", "response": "\x01\x02\x03"}
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    flags = {"data": str(file), "test_share": 0.1, "partition": "iid"}
    data = prepared([{}], whole=True, **flags).data
    (quality,) = data.rows.of_nodes
    left = len(data.rows.shards[0])
    assert quality.dropped["non-text"] + quality.dropped["repeated"] == quality.held - left > 0
    assert data.rows.counts.sum() == left
    assert f"node 0 kept {left} of {quality.held}: dropped " in data.quality
    asis = prepared([{}], whole=True, clean="none", **flags).data
    assert len(asis.rows.shards[0]) == quality.held
    assert "quality" not in asis.quality
    with pytest.raises(UserError, match=r"--outliers=0\.1: with --clean=none no node looks"):
        prepared([{}], clean="none", outliers=0.1, **flags)


def test_ranks_that_differ_turn_distillation_on_whatever_the_text(prepared):
    nodes = [{}, {}]
    asked = {"distill": "auto", "partition": "iid"}
    assert prepared(nodes, **asked).distilled is False
    assert prepared(nodes, **asked, rank="4,4").distilled is False
    assert prepared(nodes, **asked, rank="2,4").distilled is True
    assert prepared(nodes, distill="off", rank="2,4").distilled is False


def test_nodes_pass_over_their_texts_as_often_as_they_are_told(prepared):
    nodes = [{}, {}]
    once = prepared(nodes, whole=True, distill="auto")
    differ = prepared(nodes, whole=True, distill="auto", node_epochs="1,3")
    assert differ.steps == (once.steps[0], 3 * once.steps[1])
    assert differ.verdict.why == "the nodes' passes over their data differ (1, 3)"
    assert prepared(nodes, distill="auto", node_epochs="3,3").distilled is False


def test_a_node_of_smaller_rank_computes_less_and_holds_what_others_cannot(prepared):
    alike = {"flops_per_s": 1e6, "latency_s": 0, "up_bytes_per_s": 1e15, "down_bytes_per_s": 1e15}
    job = prepared([alike, alike], assign="milp", rank="1,4")
    narrow, wide = (text_task.visit_state(job, node).total for node in (0, 1))
    assert text_task.visit_state(job).total == wide
    trained = text_task.visit_state(job, 1).trained
    # Three columns of four: gradients and two moments of each; the weights are held all the same.
    assert wide - narrow == 3 * 3 * trained // 4
    seconds = job.plan.able[BLOCKS[:1]]
    assert seconds[0] < seconds[1]

    # Memory between the two: the node of rank 1 alone can hold the visits.
    tight = {**alike, "memory_bytes": (narrow + wide) // 2}
    job = prepared([tight, tight], assign="milp", rank="1,4")
    assert set(job.plan.visitors.values()) == {0}
    assert all(list(nodes) == [0] for nodes in job.plan.able.values())
