"""Flower's simulation (Ray) of the same FedAvg: clients that train as `torch_side` does, the
strategy FedAvg.

A client's process keeps images and model from one call to the next. The clock runs from one
server-side evaluation, of which there is nothing but the waiting, to the next.

  python -m experiments.bench.flower_side WORK.npz CHECKED.npz '{"cpus": 1, "cores": 2,
  "channels_last": true}'
"""

import functools
import json
import os
import sys
from pathlib import Path
from typing import Any

os.environ |= {"FLWR_TELEMETRY_ENABLED": "0", "RAY_USAGE_STATS_ENABLED": "0"}

import flwr
import ray
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation

from experiments.bench.torch_side import Trainer, from_torch, network, together
from experiments.bench.work import Done, Line, load

client_app = ClientApp()


@functools.cache
def _trainer(work_file: str, threads: int, channels_last: bool) -> Trainer:
    return Trainer(load(Path(work_file)), threads, channels_last)


@client_app.train()
def train(message: Message, context: Context) -> Message:
    """A node's part of a round: from the received weights, one epoch, weights and loss back."""
    settings, node = message.content["config"], int(context.node_config["partition-id"])
    trainer = _trainer(settings["work"], settings["cpus"], settings["channels_last"])
    trainer.receive(list(message.content["arrays"].to_torch_state_dict().values()))
    done = trainer.epoch(settings["server-round"] - 1, node)
    metrics = MetricRecord({"loss": done.loss, "steps": done.steps, "num-examples": done.examples})
    arrays = ArrayRecord(trainer.model.state_dict())
    return Message(content=RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=message)


def serve(line: Line, work_file: str, options: dict[str, Any]) -> None:
    """Does the rounds that are asked for."""
    work, seen = load(Path(work_file)), []

    def summed(replies: list[RecordDict], _: str) -> MetricRecord:
        each = [reply["metrics"] for reply in replies]
        seen.append(together([Done(m["loss"], m["steps"], m["num-examples"]) for m in each]))
        return MetricRecord({})

    def between(number: int, arrays: ArrayRecord) -> None:
        if number:
            if seen[-1].examples != sum(map(len, work.shards)):
                raise RuntimeError(
                    f"Flower trained on {seen[-1].examples} examples: a client failed, see above"
                )
            line.answer(
                seen[-1],
                lambda: from_torch(list(arrays.to_torch_state_dict().values()), work.params),
            )
        else:
            variant = "channels last" if options["channels_last"] else "channels first"
            made = from_torch(list(arrays.to_torch_state_dict().values()), work.params)
            line.ready(
                made, variant=variant, versions={"flwr": flwr.__version__, "ray": ray.__version__}
            )
        if number < work.rounds and not line.asked():
            raise KeyboardInterrupt

    server_app, count = ServerApp(), len(work.shards)

    @server_app.main()
    def _main(grid: Grid, context: Context) -> None:
        strategy = FedAvg(
            fraction_train=1.0,
            fraction_evaluate=0.0,
            min_train_nodes=count,
            min_available_nodes=count,
            train_metrics_aggr_fn=summed,
        )
        strategy.start(
            grid=grid,
            initial_arrays=ArrayRecord(network(work.params).state_dict()),
            num_rounds=work.rounds,
            train_config=ConfigRecord({"work": work_file, **options}),
            evaluate_fn=between,
        )

    backend = {"client_resources": {"num_cpus": options["cpus"], "num_gpus": 0.0}}
    backend["init_args"] = {"num_cpus": options["cores"], "include_dashboard": False}
    run_simulation(server_app, client_app, num_supernodes=count, backend_config=backend)


def main(work_file: str, checked_file: str, options: str) -> None:
    """From the command line."""
    # Ray sends what it finds in __main__ by value, and would send the cache of trainers along.
    from experiments.bench import flower_side

    flower_side.serve(Line(Path(checked_file)), work_file, json.loads(options))


if __name__ == "__main__":
    main(*sys.argv[1:])
