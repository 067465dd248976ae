"""A run ends after so many steps, and goes on to just there after a kill."""

import pytest

from snake_jax.algorithms.visits import Visit
from snake_jax.config import ImageConfig
from snake_jax.runs import front, limits, loop
from snake_jax.runs.workdir import Workdir
from tests.helpers import same_bits
from tests.launches import write_images

# 90 images over three nodes in batches of 8: four steps a visit, 16 in all.
SMALL = {"model": "mlp", "width": 0.25, "nodes": 3, "cycles": 2, "batch_size": 8}


@pytest.fixture(scope="module")
def small(tmp_path_factory, quick_compilation):
    images = write_images(tmp_path_factory.mktemp("data") / "images.npz")
    return {**SMALL, "dataset": f"npz:{images}"}


def reports(small, **flags):
    setup = loop.prepare(ImageConfig(**small, **flags))
    engine, state = loop.make_engine(setup), loop.initial_state(setup)
    return list(loop.train(setup, engine, state, lambda state: None))


def test_the_last_visit_is_cut_to_what_is_left(small):
    found = reports(small, max_steps=10)
    assert [report.record["iterations"] for report in found] == [4, 4, 2]
    assert found[-1].record["accuracy"] is not None
    assert [report.record["iterations"] for report in reports(small, max_steps=8)] == [4, 4]
    assert len(reports(small, max_steps=1000)) == 4


def test_of_nodes_side_by_side_the_longest_counts(small):
    found = reports(small, max_steps=6, algorithm="fedavg")
    assert [report.record["iterations"] for report in found] == [12, 6]


def test_a_share_of_any_visit_is_cut_to_whole_steps():
    class Stand(dict):
        __getattr__ = dict.__getitem__

    for total in range(1, 60):
        setup = Stand(config=Stand(max_steps=total), steps=(total,))
        for done in range(total + 1):
            (cut,) = limits.shortened(setup, (Visit(0, 0, 0, ()),), done)
            begin, end = (int(part * total) for part in cut.share)
            assert end - begin == total - done


def test_killed_it_ends_after_the_same_step(small, tmp_path):
    config = ImageConfig(**small, max_steps=10)
    setup = loop.prepare(config)
    for _ in range(2):
        # Who stops reading after a round leaves the run as a kill would.
        for _report in front.train(setup.job, setup.data, tmp_path):
            break
    rest = list(front.train(setup.job, setup.data, tmp_path))
    assert [report.record["iterations"] for report in rest] == [2]
    assert same_bits(rest[-1].state.params, reports(small, max_steps=10)[-1].state.params)
    assert list(front.train(setup.job, setup.data, tmp_path)) == []
    folder = Workdir(tmp_path, config)
    assert folder.resume(setup, pytest.fail).steps == 10
    folder.close()


def test_in_one_place_the_steps_are_those_of_all_nodes_data(small):
    found = reports(small, max_steps=10, algorithm="centralised")
    assert sum(report.record["iterations"] for report in found) == 10
