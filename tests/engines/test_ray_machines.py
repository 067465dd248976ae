"""The engine on several machines, faked by daemons of Ray on this one, over TLS: the bits of the
local engine, a machine that is gone, and who is kept out.
"""

import contextlib
import socket
import ssl
import subprocess
import sys
import threading
from types import SimpleNamespace

import flax.linen as nn
import numpy as np
import pytest

import snake_jax as sj
from snake_jax.cli import certificates
from snake_jax.engines import ray_tls
from snake_jax.engines.choice import Choice
from snake_jax.errors import UserError
from tests.engines.test_ray import QUIET, assert_alike, prepared, trained
from tests.launches import write_images

ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'snake-jax[ray]'")

pytestmark = pytest.mark.usefixtures("quick_compilation")
MACHINES = """
import sys
from ray.cluster_utils import Cluster
small = {"num_cpus": 1, "object_store_memory": 80_000_000}
cluster = Cluster(initialize_head=True, head_node_args={**small, "include_dashboard": False})
others = [cluster.add_node(**small, resources={name: 1}) for name in ("first", "second")]
print(cluster.address, flush=True)
for line in sys.stdin:
    cluster.remove_node(others[int(line)], allow_graceful=False)
    print("gone", flush=True)
cluster.shutdown()
"""


def environment(folder, host):
    """What has Ray use TLS with the certificates of an authority."""
    own = folder / host
    return {
        "RAY_USE_TLS": "1",
        "RAY_TLS_CA_CERT": str(folder / "ca.pem"),
        "RAY_TLS_SERVER_CERT": str(own / "cert.pem"),
        "RAY_TLS_SERVER_KEY": str(own / "key.pem"),
    }


@pytest.fixture(scope="module")
def authorities(tmp_path_factory):
    """Two that do not know each other, and the address that Ray calls this machine by."""
    host = ray.util.get_node_ip_address()
    folders = [tmp_path_factory.mktemp(name) for name in ("ours", "theirs")]
    for folder in folders:
        certificates.make(folder, [host], days=1)
    return SimpleNamespace(ours=folders[0], theirs=folders[1], host=host)


@pytest.fixture(scope="module")
def machines(authorities):
    """A cluster of three daemons that speak TLS, which this process has joined."""
    from snake_jax.engines import ray_cluster

    with contextlib.ExitStack() as stack:
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        # As a run has them, so that a machine that is gone is seen in seconds.
        variables = {**ray_cluster._QUIET, **QUIET}
        for name, value in {**variables, **environment(authorities.ours, authorities.host)}.items():
            patch.setenv(name, value)
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        command = [sys.executable, "-c", MACHINES]
        server = stack.enter_context(subprocess.Popen(command, **pipes))
        address = server.stdout.readline().strip()
        assert address, "the cluster did not start"
        choice = Choice("ray", address, actors=2, deadline_s=120.0)
        with ray_cluster.cluster(choice):
            yield SimpleNamespace(choice=choice, server=server, address=address)
        server.stdin.close()
        server.wait(60)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """Flags of a small run."""
    file = write_images(tmp_path_factory.mktemp("machines") / "images.npz")
    flags = {"model": "mlp", "width": 0.05, "nodes": 3, "cycles": 2, "batch_size": 8}
    return flags | {"dataset": f"npz:{file}", "mode": "peer_to_peer"}


@pytest.mark.timeout(300)
def test_nodes_on_machines_end_with_the_bits_of_the_local_engine_over_tls(
    machines, small, monkeypatch
):
    setup = prepared(small)
    on_each = placing(monkeypatch)
    assert_alike(trained(setup, machines.choice)[0], trained(setup)[0])
    assert on_each == ["first", "second"]


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_machine_that_is_gone_with_what_it_trained_replays_as_a_flag(machines, monkeypatch):
    """It is gone when its node has said that it is done, and before the layers were fetched."""
    from snake_jax.engines.ray_engine import RayEngine

    placing(monkeypatch)
    outcome = RayEngine._outcome

    def gone_before(engine, one):
        if one.order.visit.turn == 1 and machines.server.poll() is None and not ended:
            ended.append(one.order.visit.node)
            machines.server.stdin.write("1\n")
            machines.server.stdin.flush()
            assert machines.server.stdout.readline() == "gone\n"
        return outcome(engine, one)

    ended = []
    monkeypatch.setattr(RayEngine, "_outcome", gone_before)
    lost, _ = trained(large(), machines.choice)
    assert ended == [1]
    why = {one.why for report in lost for one in report.lost}
    assert why == {"what it trained was lost with its machine"}
    flagged, _ = trained(large(interrupt="1@0", interruption="lost"))
    assert_alike(lost, flagged)


def large(**changes):
    """A run whose layers are too large to come with an answer: they stay where they were trained
    until they are fetched.
    """
    stages = [(name, Dense(256)) for name in ("one", "two", "three")]
    model = sj.from_linen("large", [*stages, ("four", Dense(4))], input_shape=(8, 8, 3))
    settings = {"nodes": 3, "cycles": 2, "mode": "peer_to_peer", "batch_size": 8, **changes}
    job = sj.Job(model, **settings)
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (60, 8, 8, 3), dtype=np.uint8), np.arange(60) % 4
    data = sj.image_data(job, (images[:48], labels[:48]), (images[48:], labels[48:]))
    return job.task.setup(job, data)


class Dense(nn.Module):
    features: int

    @nn.compact
    def __call__(self, x):
        return nn.relu(nn.Dense(self.features)(x.reshape(x.shape[0], -1)))


def placing(monkeypatch):
    """Has actor number n on the machine of that number; gives the names of their machines."""
    from snake_jax.engines.ray_engine import RayEngine

    names, found = ("first", "second"), []

    def placed(engine, number):
        # Who takes the place of one that is gone is where there is room.
        again = number < len(found)
        found.append(names[number])
        return {**engine._options, "resources": {} if again else {names[number]: 0.5}}

    monkeypatch.setattr(RayEngine, "_placed", placed)
    return found


def refused(monkeypatch, variables, address):
    for name in ("RAY_USE_TLS", *ray_tls._FILES):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError) as error:
        ray_tls.check_server(address)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_client_without_certificates_or_with_another_authority_s_is_refused(
    machines, authorities, monkeypatch
):
    address, host = machines.address, authorities.host
    assert "it speaks TLS, and RAY_USE_TLS is not 1" in refused(monkeypatch, {}, address)
    theirs = environment(authorities.theirs, host)
    said = refused(monkeypatch, theirs, address)
    assert "its certificate is not trusted (unable to get local issuer certificate)" in said
    # One that trusts the cluster, and whom the cluster does not trust.
    ours = environment(authorities.ours, host)
    mixed = theirs | {"RAY_TLS_CA_CERT": ours["RAY_TLS_CA_CERT"]}
    said = refused(monkeypatch, mixed, address)
    assert "it does not trust the certificate of this machine" in said
    for name, value in ours.items():
        monkeypatch.setenv(name, value)
    ray_tls.check_server(address)


# Without a cluster


@contextlib.contextmanager
def listening(context=None, host="127.0.0.1"):
    """The address of a server that answers as a cluster's head does; None: in the clear."""
    with socket.create_server((host, 0)) as server:

        def answer():
            accepted, _ = server.accept()
            # Whatever a client does wrong is its own to say.
            with contextlib.suppress(OSError), accepted:
                wrapped = context.wrap_socket(accepted, server_side=True) if context else accepted
                with wrapped:
                    wrapped.sendall(bytes(9))
                    wrapped.recv(100)

        thread = threading.Thread(target=answer)
        thread.start()
        yield f"{host}:{server.getsockname()[1]}"
        thread.join(20)
        assert not thread.is_alive()


def test_a_cluster_in_the_clear_is_not_joined_with_tls(authorities, monkeypatch):
    for name, value in environment(authorities.ours, authorities.host).items():
        monkeypatch.setenv(name, value)
    with listening() as address, pytest.raises(UserError, match="it does not speak TLS"):
        ray_tls.check_server(address)
    monkeypatch.delenv("RAY_USE_TLS")
    with listening() as address:
        ray_tls.check_server(address)


def test_a_certificate_of_another_name_is_not_trusted(authorities, tmp_path, monkeypatch):
    certificates.make(tmp_path, ["elsewhere.lan"], days=1)
    for name, value in environment(tmp_path, "elsewhere.lan").items():
        monkeypatch.setenv(name, value)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    own = tmp_path / "elsewhere.lan"
    context.load_cert_chain(own / "cert.pem", own / "key.pem")
    # Every certificate has the machine's names for itself too.
    with listening(context) as address:
        ray_tls.check_server(address)
    mismatch = pytest.raises(UserError, match="IP address mismatch")
    with listening(context, authorities.host) as address, mismatch:
        ray_tls.check_server(address)


def test_what_does_not_listen_or_is_no_address_is_said_in_one_line(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with pytest.raises(UserError, match="no Ray cluster answers there"):
        ray_tls.check_server(f"127.0.0.1:{port}")
    for wrong in ("127.0.0.1:x", ":6379"):
        with pytest.raises(UserError, match="want auto or HOST:PORT"):
            ray_tls.check_server(wrong)


ELSEWHERE = Choice("ray", "192.0.2.77:6379")  # an address of documentation, RFC 5737


def test_another_machine_is_refused_without_tls_and_a_token(authorities, monkeypatch):
    for name in ("RAY_USE_TLS", *ray_tls._FILES):
        monkeypatch.delenv(name, raising=False)
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(authorities.ours / "no-token"))
    with pytest.raises(UserError) as error:
        ray_tls.check_address(ELSEWHERE)
    assert "192.0.2.77 is another machine, and Ray is used without TLS and a token" in (
        str(error.value)
    )
    assert "`snake-jax certificates`" in str(error.value)
    assert "\n" not in str(error.value)
    monkeypatch.setenv("RAY_AUTH_TOKEN", "secret")
    with pytest.raises(UserError, match="without TLS: others could"):
        ray_tls.check_address(ELSEWHERE)
    ray_tls.check_address(ELSEWHERE._replace(without_tls=True))
    for here in ("127.0.0.1:6379", "localhost:6379", f"{authorities.host}:6379", "auto", ""):
        ray_tls.check_address(Choice("ray", here))
    # A cluster that was found here, with a machine elsewhere.
    with pytest.raises(UserError, match="another machine"):
        ray_tls.check_machines(Choice("ray", "auto"), ["127.0.0.1", "192.0.2.77"])
    for name, value in environment(authorities.ours, authorities.host).items():
        monkeypatch.setenv(name, value)
    ray_tls.check_address(ELSEWHERE)
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    with pytest.raises(UserError, match="without a token: others could"):
        ray_tls.check_address(ELSEWHERE)


def test_tls_without_its_files_is_refused(authorities, monkeypatch):
    variables = environment(authorities.ours, authorities.host)
    for name, value in (variables | {"RAY_TLS_SERVER_KEY": "nowhere.pem"}).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=r"RAY_TLS_SERVER_KEY=nowhere\.pem: no such file"):
        ray_tls.check_address(Choice("ray"))
