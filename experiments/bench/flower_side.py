"""Flower's simulation (Ray) of the same FedAvg, with clients that train as `torch_side` does.

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
from experiments.bench.work import Done, Line, Params, Work, load

client_app = ClientApp()


@functools.cache
def _trainer(work_file: str, threads: int, channels_last: bool) -> Trainer:
    return Trainer(load(Path(work_file)), threads, channels_last)


@client_app.train()
def train(message: Message, context: Context) -> Message:
    """A node's part of a round: from the received weights, one epoch, weights and loss back."""
    settings = message.content["config"]
    node = int(context.node_config["partition-id"])
    trainer = _trainer(settings["work"], settings["cpus"], settings["channels_last"])
    trainer.receive(list(message.content["arrays"].to_torch_state_dict().values()))
    done = trainer.epoch(settings["server-round"] - 1, node)  # Flower counts rounds from 1
    metrics = MetricRecord({"loss": done.loss, "steps": done.steps, "num-examples": done.examples})
    arrays = ArrayRecord(trainer.model.state_dict())
    return Message(content=RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=message)


def serve(line: Line, work_file: str, options: dict[str, Any]) -> None:
    """Does the rounds that are asked for."""
    work = load(Path(work_file))
    seen: list[Done] = []  # of every round so far

    def summed(replies: list[RecordDict], _: str) -> MetricRecord:
        every = []
        for reply in replies:
            told = reply["metrics"]
            every.append(Done(told["loss"], told["steps"], told["num-examples"]))
        seen.append(together(every))
        return MetricRecord({})

    def between(number: int, arrays: ArrayRecord) -> None:
        """Called with the mean after every round, and with what training starts from as round 0."""
        params = functools.partial(_params, arrays, work)
        if number == 0:
            variant = "channels last" if options["channels_last"] else "channels first"
            versions = {"flwr": flwr.__version__, "ray": ray.__version__}
            line.ready(params(), variant=variant, versions=versions)
        else:
            done = seen[-1]
            if done.examples != work.examples:
                raise RuntimeError(
                    f"Flower trained on {done.examples} examples: a client failed, see above"
                )
            line.answer(done, params)
        # The next round begins when this returns: not before it is asked for.
        if number < work.rounds and not line.asked():
            raise KeyboardInterrupt

    server_app = ServerApp()

    @server_app.main()
    def _main(grid: Grid, context: Context) -> None:
        strategy = FedAvg(
            fraction_train=1.0,
            fraction_evaluate=0.0,
            min_train_nodes=work.nodes,
            min_available_nodes=work.nodes,
            train_metrics_aggr_fn=summed,
        )
        strategy.start(
            grid=grid,
            initial_arrays=ArrayRecord(network(work.params).state_dict()),
            num_rounds=work.rounds,
            train_config=ConfigRecord({"work": work_file, **options}),
            evaluate_fn=between,
        )

    # A client is given so many CPUs; as many clients as that allows run side by side.
    backend = {
        "client_resources": {"num_cpus": options["cpus"], "num_gpus": 0.0},
        "init_args": {"num_cpus": options["cores"], "include_dashboard": False},
    }
    run_simulation(server_app, client_app, num_supernodes=work.nodes, backend_config=backend)


def _params(arrays: ArrayRecord, work: Work) -> Params:
    """Flower's state dict as the work has its parameters."""
    return from_torch(list(arrays.to_torch_state_dict().values()), work.params)


def main(work_file: str, checked_file: str, options: str) -> None:
    """From the command line."""
    # Ray sends what it finds in __main__ by value, and would send the cache of trainers along.
    from experiments.bench import flower_side

    flower_side.serve(Line(Path(checked_file)), work_file, json.loads(options))


if __name__ == "__main__":
    main(*sys.argv[1:])
