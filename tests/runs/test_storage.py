"""Buckets as the place of runs: real clients against a server of the storage's own protocol, in
memory.

The files go through gcsfs, the arrays of whole checkpoints through tensorstore; both are told where
the server is.
"""

import contextlib
import os
import re
import socket
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import pytest
from etils import epath
from jax.experimental.compilation_cache import compilation_cache

from snake_jax.config import ImageConfig
from snake_jax.engines.contract import Compilations
from snake_jax.errors import UserError
from snake_jax.nodes import ledger
from snake_jax.nodes.ledger import Transfer
from snake_jax.nodes.places import SERVER, node
from snake_jax.runs import storage
from snake_jax.runs.loop import Report, initial_state, prepare
from snake_jax.runs.workdir import Workdir
from tests.helpers import same_bits
from tests.launches import COMMAND, ROOT, Ended, Launcher, in_new_process, results, write_images

COMPILED = Compilations(3, 1.5, 1000)
SMALL = (
    "--model=mlp",
    "--width=0.1",
    "--nodes=3",
    "--batch_size=8",
    "--learning_rate=0.05",
    "--cycles=2",
)


@pytest.fixture(scope="session")
def server():
    """The address of a storage server with an empty bucket."""
    pytest.importorskip("gcp_storage_emulator", reason="no storage server to test with")
    with socket.create_server(("localhost", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "tests.storage_server", str(port)]
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        while process.poll() is None:
            with (
                contextlib.suppress(ConnectionRefusedError),
                socket.create_connection(("localhost", port)),
            ):
                break
            time.sleep(0.05)
        yield f"http://localhost:{port}"
        process.terminate()


@pytest.fixture(scope="session")
def _clients(server):
    """Clients find the server in the environment, when they are imported or first used."""
    assert "gcsfs" not in sys.modules
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STORAGE_EMULATOR_HOST", server)
        patch.setenv("TENSORSTORE_GCS_HTTP_URL", server)
        patch.setenv("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")  # asks for credentials
        pytest.importorskip("gcsfs", reason="buckets need gcsfs")
        yield


@pytest.fixture
def bucket(_clients, tmp_path):
    """A folder of the test's own in a bucket."""
    return f"gs://runs/{tmp_path.name}"


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("data") / "images.npz")


@pytest.fixture(scope="module")
def setup(images):
    return prepare(
        ImageConfig(
            model="mlp", width=0.1, nodes=3, dataset=f"npz:{images}", carry_optimizer_state=True
        )
    )


@pytest.fixture(scope="module")
def fresh(setup):
    return initial_state(setup)


def add(folder, fresh, number):
    transfers = [Transfer(number, SERVER, node(0), ("fc1",), 5, "update")]
    state = fresh._replace(rounds=number, network=ledger.start(["fc1", f"version{number}"]))
    folder.add(Report({"visit": number, "loss": None}, transfers, state), COMPILED)


def names(folder):
    return sorted(entry.name for entry in epath.Path(folder).iterdir())


def local_copy(folder, target):
    """All that lies in the bucket's folder."""
    for entry in epath.Path(folder).iterdir():
        if entry.is_dir():
            local_copy(entry, target / entry.name)
        else:
            target.mkdir(parents=True, exist_ok=True)
            (target / entry.name).write_bytes(entry.read_bytes())
    return target


def test_a_run_in_a_bucket_goes_on_with_all_that_was_there(bucket, setup, fresh):
    folder = Workdir(f"{bucket}/run", setup.config)
    assert same_bits(folder.resume(setup, pytest.fail).params, fresh.params)
    for number in (1, 2, 3):
        add(folder, fresh, number)
    folder.close()
    storage.append(
        epath.Path(bucket) / "run" / "metrics.jsonl", [{"visit": 4}]
    )  # the process ended before its checkpoint

    again = Workdir(f"{bucket}/run", setup.config)
    state = again.resume(setup, pytest.fail)
    assert (state.rounds, state.network) == (3, ledger.start(["fc1", "version3"]))
    assert same_bits(state.params, fresh.params)
    assert again.records == [{"visit": number, "loss": None} for number in (1, 2, 3)]
    assert len((again.path / "metrics.jsonl").read_text().splitlines()) == 3
    # Nothing of the model changed: the last two read the first.
    assert names(f"{bucket}/run/checkpoints") == ["1", "2.npz", "3.npz"]
    again.close()
    assert names(f"{bucket}/run") == [
        "checkpoints",
        "config.json",
        "events.jsonl",
        "ledger.jsonl",
        "metrics.jsonl",
        "owner.json",
    ]


def test_a_damaged_object_is_noticed_and_the_checkpoint_before_it_used(bucket, setup, fresh):
    folder = Workdir(f"{bucket}/run", setup.config)
    add(folder, fresh, 1)
    add(folder, fresh._replace(params=jax.tree.map(jnp.copy, fresh.params)), 2)
    folder.close()
    file = epath.Path(f"{bucket}/run/checkpoints/2.npz")
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(bytes(content))
    warnings = []
    again = Workdir(f"{bucket}/run", setup.config)
    assert again.resume(setup, warnings.append).rounds == 1
    again.close()
    (line,) = warnings
    assert line.startswith(f"checkpoint {bucket}/run/checkpoints/2.npz is damaged")


def test_who_opens_a_bucket_last_has_it(bucket, setup, fresh):
    first = Workdir(f"{bucket}/run", setup.config)
    add(first, fresh, 1)
    first.settle()
    second = Workdir(f"{bucket}/run", setup.config)
    assert second.resume(setup, pytest.fail).rounds == 1
    before = (second.path / "metrics.jsonl").read_text()
    add(first, fresh, 2)
    with pytest.raises(UserError, match="was taken over by another process"):
        first.settle()
    assert (second.path / "metrics.jsonl").read_text() == before
    add(second, fresh, 2)
    first.close()
    second.close()


def test_a_bucket_with_other_flags_or_files_is_refused(bucket, setup):
    Workdir(f"{bucket}/run", setup.config).close()
    owner = (epath.Path(bucket) / "run" / "owner.json").read_text()
    with pytest.raises(UserError, match="holds a run with other flags"):
        Workdir(f"{bucket}/run", ImageConfig(model="mlp", width=0.2, dataset=setup.config.dataset))
    assert (epath.Path(bucket) / "run" / "owner.json").read_text() == owner, (
        "a run that goes on is left alone"
    )
    (epath.Path(bucket) / "other" / "thesis.tex").write_text("")
    with pytest.raises(UserError, match="holds files but no run"):
        Workdir(f"{bucket}/other", setup.config)


@pytest.fixture
def _own_programs():
    """The launch sets where compiled programs are kept, which is undone."""
    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = {name: getattr(jax.config, name) for name in names}
    compilation_cache.reset_cache()
    yield
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


def read(name, *arguments):
    """Runs a launch that reads runs, in a process of its own."""
    command = [*COMMAND, f"experiments.{name}", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    return Ended(done.returncode, done.stdout, done.stderr)


@pytest.mark.usefixtures("_own_programs")
def test_a_launch_with_everything_in_a_bucket_ends_as_a_local_one(
    bucket, images, monkeypatch, capfd, tmp_path
):
    run, flag_list = Launcher(monkeypatch, capfd), (*SMALL, f"--dataset=npz:{images}")
    rest = (
        f"--compilation_cache_dir={bucket}/programs",
        f"--trace_dir={bucket}/trace",
        "--tensorboard",
    )
    # A process of its own: the profiler is one for all that a process does.
    process = in_new_process([*flag_list, *rest, f"--workdir={bucket}/runs/a"])
    stdout, _ = process.communicate(timeout=300)
    assert process.returncode == 0
    assert f"curves: {bucket}/runs/a/curves.png" in stdout
    assert run(*flag_list, f"--workdir={tmp_path / 'here'}").code == 0
    copy = local_copy(f"{bucket}/runs/a", tmp_path / "copy")
    assert results(copy) == results(tmp_path / "here")
    assert (copy / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert len(list((copy / "tensorboard").glob("events.out.tfevents.*"))) == 1
    assert any(name.endswith("-cache") for name in names(f"{bucket}/programs"))
    assert (
        len(list(local_copy(f"{bucket}/trace", tmp_path / "trace").rglob("*.trace.json.gz"))) == 1
    )


def test_runs_in_a_bucket_are_compared_and_reported(bucket, setup, fresh):
    for name in "ab":
        folder = Workdir(f"{bucket}/runs/{name}", setup.config)
        add(folder, fresh, 1)
        folder.close()
    end = read("compare", f"{bucket}/runs/a", f"{bucket}/runs/b")
    assert (end.code, end.stderr) == (0, f"\ncurves: {bucket}/runs/comparison.png\n")
    assert (epath.Path(bucket) / "runs" / "comparison.png").read_bytes().startswith(b"\x89PNG")
    end = read("report", f"{bucket}/runs")
    assert (end.code, end.stderr) == (0, "")
    assert end.stdout.startswith(f"{bucket}/runs/report.html: 2 runs, ")
    assert "<html" in (epath.Path(bucket) / "runs" / "report.html").read_text()


def test_no_run_in_a_bucket_is_named_as_the_user_named_it(bucket):
    end = read("compare", f"{bucket}/absent")
    assert (end.code, end.stderr) == (
        2,
        f"error: {bucket}/absent: no such folder, or no run in it\n",
    )


@pytest.mark.parametrize("place", ["s3://bucket/run", "gs://", "ftp://host/run"])
def test_other_places_are_refused(place):
    with pytest.raises(
        UserError,
        match=rf"--workdir={place}: give a folder, or one in a bucket as gs://BUCKET/FOLDER",
    ):
        storage.path_of(place, "workdir")


def test_a_missing_client_is_said_with_what_to_install(monkeypatch):
    def missing(self):
        raise ImportError("No module named 'gcsfs'")

    monkeypatch.setattr("etils.epath.gpath.PosixGPath.exists", missing)
    with pytest.raises(UserError, match=re.escape("pip install -e '.[gcs]'")):
        storage.path_of("gs://bucket/run", "workdir")


def test_an_unreachable_bucket_is_one_line(monkeypatch):
    def unreachable(self):
        raise RuntimeError("no\ncredentials")

    monkeypatch.setattr("etils.epath.gpath.PosixGPath.exists", unreachable)
    with pytest.raises(
        UserError,
        match=r"--workdir=gs://bucket/run: the bucket cannot be reached \(no credentials\)",
    ):
        storage.path_of("gs://bucket/run", "workdir")


def test_runs_of_several_places_have_no_common_folder(tmp_path):
    assert storage.common(["gs://b/x/1", "gs://b/x/y/2"], "output") == "gs://b/x"
    assert storage.common([str(tmp_path / "1"), str(tmp_path / "2")], "output") == os.path.realpath(
        tmp_path
    )
    with pytest.raises(UserError, match="say with --output where to write"):
        storage.common(["gs://b/x", "x"], "output")
