"""Systems of devices, edge and cloud that train within a second."""

import functools
from dataclasses import replace

from snake_jax.scct.system import build, rounds
from snake_jax.scct.system.settings import SystemSettings
from tests.launches import write_model

SMALL = SystemSettings(
    small_layers=3,
    small_width=16,
    nodes=3,
    rounds=2,
    epochs=2,
    iterations=2,
    batch_size=2,
    adapter_width=2,
    adapter_rate=0.05,
    small_rate=0.05,
    plain_loss="never",
    splits="fixed:1",
    subcarriers=8,
    samples=2,
    train_questions=6,
    held_out=2,
    max_length=40,
    max_answer=4,
)


class Systems:
    """Systems by their changes from `SMALL`, each prepared once; all have one large model."""

    def __init__(self, folder):
        self.model = write_model(folder / "large", num_hidden_layers=2)

    @functools.cache  # noqa: B019, as long as the module
    def __call__(self, **changes):
        """The system of these settings, whose devices can hold all layers."""
        system = build.prepare(replace(SMALL, model=str(self.model), **changes))
        roomy = tuple(replace(one, memory_bytes=1e9) for one in system.scenario.devices)
        return system._replace(scenario=replace(system.scenario, devices=roomy))

    @functools.cache  # noqa: B019
    def trained(self, **changes):
        """Its reports, from the first round to the last."""
        system = self(**changes)
        return list(rounds.train(system, rounds.first_state(system)))
