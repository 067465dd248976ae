"""Nodes that pass over their data differently often."""

import pytest

from snake_jax.config import ImageConfig
from snake_jax.errors import UserError
from snake_jax.runs import loop
from tests.helpers import close
from tests.launches import write_images

SMALL = {"model": "mlp", "width": 0.25, "nodes": 3, "cycles": 2, "batch_size": 8}


@pytest.fixture(scope="module")
def small(tmp_path_factory, quick_compilation):
    images = write_images(tmp_path_factory.mktemp("data") / "images.npz")
    return {**SMALL, "dataset": f"npz:{images}"}


def trained(small, **flags):
    setup = loop.prepare(ImageConfig(**{**small, **flags}))
    engine, state = loop.make_engine(setup), loop.initial_state(setup)
    return setup, list(loop.train(setup, engine, state, lambda state: None))


def test_a_node_does_its_own_number_of_passes_and_that_turns_distillation_on(small):
    setup, reports = trained(small, node_epochs="2,1", interrupt="1@0.5")
    # 30 images in batches of 8 are 4 steps; node 2 has the first number again. Of the 4 of node 1
    # two are done; node 2 passes twice, so it does the other half of 8.
    assert [report.record["node"] for report in reports] == [0, 1, 2, 2, 0]
    assert [report.record["iterations"] for report in reports] == [8, 2, 4, 8, 8]
    assert setup.steps == (8, 4, 8)
    assert setup.verdict.why == "the nodes' passes over their data differ (1, 2)"
    assert all(report.record["distilled"] for report in reports)


@pytest.mark.slow
def test_side_by_side_and_one_after_the_other_are_the_same(small):
    flags = {"algorithm": "fedavg", "cycles": 1, "node_epochs": "1,2,1"}
    _, one_by_one = trained(small, **flags)
    _, together = trained(small, **flags, executor="vmap")
    assert one_by_one[0].record["iterations"] == together[0].record["iterations"] == 16
    assert close(one_by_one[0].state.params, together[0].state.params)


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        ({"node_epochs": "1,0"}, "--node_epochs=1,0: 0 is no number of passes from 1 to 999"),
        ({"node_epochs": "2,"}, "a gap is no number of passes"),
        ({"node_epochs": "2", "dp_clip": 1.0}, "leave --node_epochs out"),
        ({"node_epochs": "2", "algorithm": "centralised"}, "centralised has no use for it"),
    ],
)
def test_passes_that_make_no_sense_are_refused_in_one_line(small, flags, reason):
    with pytest.raises(UserError) as error:
        loop.prepare(ImageConfig(**{**small, **flags}))
    assert reason in str(error.value)
