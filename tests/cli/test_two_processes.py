"""One run of two processes: a mesh over the devices of both ends as one over the devices of one
process.
"""

import os
import shutil
import socket

import numpy as np
import pytest

from tests.launches import (
    in_new_process,
    is_silent,
    json_lines,
    last_arrays,
    results,
    write_model,
    write_pairs,
)
from tests.sweeps import sweep

FLAGS = [
    "--mesh=fsdp:4,tensor:2",
    "--algorithm=snake",
    "--nodes=2",
    "--batch_size=4",
    "--max_length=64",
]
FLAGS += ["--optimizer=sgd", "--learning_rate=0.1", "--save=none", "--distill=on"]
WAYS = {
    "blocks": ["--lora_rank=0", "--frozen_dtype=int8", "--carry_optimizer_state", "--momentum=0.9"],
    "adapters": ["--lora_rank=4", "--frozen_dtype=nf4", "--local_epochs=2", "--cache_prefix=host"],
}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    write_model(folder / "model", num_key_value_heads=2)
    write_pairs(folder / "pairs.jsonl")
    return folder


def started(folder, workdir, way, devices, *more):
    """A process of the run with so many devices."""
    environment = os.environ | {
        "JAX_NUM_CPU_DEVICES": str(devices),
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
    }
    flags = [*FLAGS, *WAYS[way], f"--model={folder / 'model'}", f"--data={folder / 'pairs.jsonl'}"]
    return in_new_process([*flags, f"--workdir={workdir}", *more], "finetune", env=environment)


def ended(processes):
    """What they print, once all have ended well."""
    outputs = [process.communicate(timeout=300) for process in processes]
    assert [process.returncode for process in processes] == [0] * len(processes), outputs
    return [stdout for stdout, _ in outputs]


def both(folder, workdir, way, *more):
    """Two processes of one run, each with four devices."""
    with socket.create_server(("localhost", 0)) as server:
        port = server.getsockname()[1]
    members = (f"--coordinator_address=localhost:{port}", "--num_processes=2")
    return [
        started(folder, workdir, way, 4, *members, f"--process_id={i}", *more) for i in range(2)
    ]


def measured(lines, name):
    """The values of a field in the lines that have one."""
    return [line[name] for line in lines if line[name] is not None]


@pytest.fixture(scope="module")
def two(files):
    """The folder of a run of two processes, and what they print."""
    folders = {}

    def run(way):
        if way not in folders:
            folders[way] = (files / way, ended(both(files, files / way, way)))
        return folders[way]

    return run


@pytest.mark.parametrize("way", sweep(WAYS, quick=["blocks"]))
def test_two_processes_end_as_one_with_the_devices_of_both(files, two, tmp_path, way):
    folder, (first, second) = two(way)
    assert "block_02" in first
    assert is_silent(second)
    ended([started(files, tmp_path, way, 8)])
    pair = results(folder), results(tmp_path)
    assert pair[0]["ledger"] == pair[1]["ledger"]
    for name in ("loss", "test_loss", "tokens", "train_flops", "bytes_up", "bytes_down"):
        of_two, of_one = (measured(end["metrics"], name) for end in pair)
        np.testing.assert_allclose(of_two, of_one, rtol=1e-5)
    (steps, arrays), (others, alone) = (end["arrays"] for end in pair)
    assert steps == others == 3
    for name, array in arrays.items():
        floats = [np.frombuffer(content, np.float32) for content in (array, alone[name])]
        np.testing.assert_allclose(*floats, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_two_processes_go_on_from_a_checkpoint_to_the_same_bits(files, two, tmp_path):
    folder, _ = two("blocks")
    workdir = shutil.copytree(folder, tmp_path / "cut")
    (workdir / "checkpoints" / "3.npz").unlink()
    (workdir / "summary.json").unlink()
    first, second = ended(both(files, workdir, "blocks"))
    assert "going on after visit 2 of 3" in first
    assert is_silent(second)
    assert last_arrays(workdir) == last_arrays(folder)
    assert json_lines(workdir / "metrics.jsonl") == json_lines(folder / "metrics.jsonl")


@pytest.mark.parametrize(
    ("mesh", "reason"),
    [
        (
            "fsdp:2,tensor:2",
            "4 of 8 devices leave out process 1; take a mesh over the devices of all",
        ),
        ("", "2 processes need a mesh: say --mesh=fsdp:8"),
    ],
)
def test_a_mesh_of_some_processes_is_one_line(files, tmp_path, mesh, reason):
    processes = both(files, tmp_path, "blocks", f"--mesh={mesh}")
    outputs = [process.communicate(timeout=300) for process in processes]
    assert [process.returncode for process in processes] == [2, 2]
    told = []
    for _, stderr in outputs:
        told += [line for line in stderr.splitlines() if reason in line]
    (line,) = told
    assert line.startswith("error: ")
