"""Several processes as one run: they end as one process does, in the same state, and what ends one
ends all.
"""

import os
import signal
import socket
import time

import pytest

from tests.launches import (
    Ended,
    Launcher,
    in_new_process,
    is_silent,
    json_lines,
    results,
    write_images,
)

FLAGS = (
    "--algorithm=fedavg",
    "--model=mlp",
    "--width=0.1",
    "--nodes=4",
    "--batch_size=8",
    "--learning_rate=0.05",
)
ROUNDS = 4


@pytest.fixture(scope="module")
def flag_list(tmp_path_factory):
    """Of a run over all devices, its programs compiled once."""
    folder = tmp_path_factory.mktemp("cluster")
    images = write_images(folder / "images.npz")
    quick = f"--compilation_cache_dir={folder / 'programs'}"
    return (*FLAGS, f"--cycles={ROUNDS}", f"--dataset=npz:{images}", "--executor=shard_map", quick)


def two(first, second, module="snake_jax"):
    """Starts two processes as one run, each with its own flags."""
    with socket.create_server(("localhost", 0)) as server:
        port = server.getsockname()[1]
    members = f"--coordinator_address=localhost:{port}", "--num_processes=2"
    return [
        in_new_process((*own, *members, f"--process_id={i}"), module=module)
        for i, own in enumerate((first, second))
    ]


def ended(processes):
    try:
        outputs = [process.communicate(timeout=240) for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [
        Ended(process.returncode, *output)
        for process, output in zip(processes, outputs, strict=True)
    ]


def wait_for_lines(file, count, process):
    while not file.exists() or file.read_bytes().count(b"\n") < count:
        assert process.poll() is None, process.communicate()
        time.sleep(0.005)


@pytest.fixture(scope="module")
def alone(flag_list, tmp_path_factory):
    """The results of one process with as many devices."""
    folder = tmp_path_factory.mktemp("alone") / "run"
    devices = {"JAX_NUM_CPU_DEVICES": "2"}
    done = in_new_process((*flag_list, f"--workdir={folder}"), env=os.environ | devices)
    (end,) = ended([done])
    assert (end.code, end.stderr) == (0, "")
    return results(folder)


def test_two_processes_end_as_one_does_and_go_on_after_sigterm_to_either(
    flag_list, alone, tmp_path
):
    own = (*flag_list, f"--workdir={tmp_path / 'run'}")
    # The second process writes nothing, and must not end the first while that writes.
    grace = (*own, "--grace_s=600")
    processes = two(grace, grace, module="tests.slow_saves")
    wait_for_lines(tmp_path / "run" / "metrics.jsonl", 1, processes[0])
    processes[1].send_signal(signal.SIGTERM)
    first, second = ended(processes)
    assert (first.code, second.code) == (143, 143)
    (line,) = (first.stderr + second.stderr).splitlines()
    assert line.startswith("terminated after round ")
    assert is_silent(second.stdout), "the first process alone prints"
    done = len(json_lines(tmp_path / "run" / "metrics.jsonl"))
    assert 1 <= done < ROUNDS

    first, second = ended(two(own, own))
    assert [(end.code, end.stderr) for end in (first, second)] == [(0, ""), (0, "")]
    assert f"going on after round {done} of {ROUNDS}" in first.stdout
    assert is_silent(second.stdout)
    assert results(tmp_path / "run") == alone


def test_what_is_wrong_in_one_process_ends_both_with_one_line(flag_list, tmp_path):
    own = (*flag_list, f"--workdir={tmp_path / 'run'}")
    first, second = ended(two(own, (*own, f"--dataset=npz:{tmp_path / 'absent.npz'}")))
    assert (first.code, second.code) == (2, 2)
    assert first.stderr == ""
    (line,) = second.stderr.splitlines()
    assert line.startswith("error: ")
    assert "absent.npz" in line


WRONG = {
    "half of it": (
        ("--process_id=1",),
        "--process_id is given and --coordinator_address, --num_processes not",
    ),
    "one too many": (
        ("--coordinator_address=localhost:9", "--num_processes=2", "--process_id=2"),
        "--process_id=2: --num_processes=2 are counted from 0",
    ),
    "no port": (
        ("--coordinator_address=localhost", "--num_processes=2", "--process_id=0"),
        "--coordinator_address=localhost: want HOST:PORT of process 0",
    ),
    "no cluster": (("--distributed",), "--distributed: no cluster is known here"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_flags_are_one_line(case, flag_list, monkeypatch, capfd, tmp_path):
    given, message = WRONG[case]
    monkeypatch.setattr(
        "jax._src.xla_bridge.backends_are_initialized", lambda: False
    )  # as in a process of its own
    end = Launcher(monkeypatch, capfd)(*flag_list, *given, f"--workdir={tmp_path / 'run'}")
    assert (end.code, end.stdout) == (2, "")
    (line,) = end.stderr.splitlines()
    assert line.startswith(f"error: {message}")
    assert not (tmp_path / "run").exists()
