"""Certificates: both ends of a connection know each other by them; strangers are turned away."""

import socket
import ssl
import stat
import threading

import pytest

from snake_jax.cli import certificates, main


@pytest.fixture
def snake_jax(monkeypatch, capfd):
    """`snake_jax(*words)`: the program in this process; exit code, output and errors."""

    def run(*words):
        capfd.readouterr()
        monkeypatch.setattr("sys.argv", ["snake-jax", "certificates", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            main.main()
        return ended.value.code, *capfd.readouterr()

    return run


def context(side, folder, host):
    """Of one end of a connection, which shows its certificate and wants to see the other's."""
    made = ssl.SSLContext(side)
    made.load_cert_chain(folder / host / "cert.pem", folder / host / "key.pem")
    made.load_verify_locations(folder / "ca.pem")
    made.verify_mode = ssl.CERT_REQUIRED
    return made


def said(server, client, name):
    """What a client reads from a server of this name over TLS; an error of either end is raised."""
    here, there = socket.socketpair()
    failed = []

    def serve():
        try:
            with server.wrap_socket(there, server_side=True) as connection:
                connection.sendall(b"welcome")
        except OSError as error:
            failed.append(error)
            there.close()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        with client.wrap_socket(here, server_hostname=name) as connection:
            text = connection.recv(20)
    finally:
        here.close()
        thread.join(10)
        there.close()
    if failed:
        raise failed[0]
    return text


def test_machines_of_one_authority_speak_to_each_other(tmp_path):
    certificates.make(tmp_path, ["head.lan", "10.0.0.7"], days=30)
    server = context(ssl.PROTOCOL_TLS_SERVER, tmp_path, "10.0.0.7")
    client = context(ssl.PROTOCOL_TLS_CLIENT, tmp_path, "head.lan")
    for name in ("10.0.0.7", "localhost"):
        assert said(server, client, name) == b"welcome"


def test_a_name_that_the_certificate_does_not_have_is_turned_away(tmp_path):
    certificates.make(tmp_path, ["head.lan"], days=30)
    server = context(ssl.PROTOCOL_TLS_SERVER, tmp_path, "head.lan")
    client = context(ssl.PROTOCOL_TLS_CLIENT, tmp_path, "head.lan")
    with pytest.raises(OSError, match="Hostname mismatch"):
        said(server, client, "other.lan")


@pytest.mark.parametrize("stranger", ["server", "client"])
def test_a_stranger_at_either_end_is_turned_away(stranger, tmp_path):
    for authority in ("ours", "theirs"):
        certificates.make(tmp_path / authority, ["localhost"], days=30)
    ends = {"server": tmp_path / "ours", "client": tmp_path / "ours"}
    ends[stranger] = tmp_path / "theirs"
    server = context(ssl.PROTOCOL_TLS_SERVER, ends["server"], "localhost")
    client = context(ssl.PROTOCOL_TLS_CLIENT, ends["client"], "localhost")
    with pytest.raises(OSError, match=r"certificate verify failed|unknown ca|decrypt error"):
        said(server, client, "localhost")


def test_keys_are_their_owners_alone_and_stay(tmp_path, snake_jax):
    folder = tmp_path / "keys"
    code, stdout, _ = snake_jax(folder, "--hosts=head.lan")
    assert code in (None, 0)
    for file in ("ca-key.pem", "head.lan/key.pem"):
        assert f"made {folder / file}" in stdout
        assert stat.S_IMODE((folder / file).stat().st_mode) == 0o600
    assert f"--certfile={folder / 'head.lan/cert.pem'}" in stdout

    # A second call adds a host and leaves what is there.
    before = {path: path.read_bytes() for path in folder.rglob("*.pem")}
    code, stdout, _ = snake_jax(folder, "--hosts=head.lan,third.lan")
    assert stdout.count("made ") == 2
    assert before == {path: path.read_bytes() for path in before}
    assert "all there already" in snake_jax(folder, "--hosts=third.lan")[1]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "one folder is wanted, not 0: snake-jax certificates keys --hosts=head.lan"),
        (["F", "--hosts=../up"], "--hosts=../up: want names or addresses of machines"),
        (["F", "--hosts="], "--hosts=: want names or addresses of machines"),
        (["F", "--days=0"], "flag --days=0"),
        (["broken"], "ca-key.pem is broken"),
        (["half"], "ca.pem is there without its other half"),
        (["mixed"], "ca-key.pem is not the key of ca.pem beside it"),
    ],
)
def test_what_is_wrong_is_one_line(words, message, tmp_path, snake_jax, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("broken", "half", "mixed", "other"):
        certificates.make(tmp_path / name, ["localhost"], days=1)
    (tmp_path / "broken" / "ca-key.pem").write_text("no key")
    (tmp_path / "half" / "ca-key.pem").unlink()
    (tmp_path / "mixed" / "ca-key.pem").write_bytes((tmp_path / "other/ca-key.pem").read_bytes())
    code, stdout, stderr = snake_jax(*words)
    assert (code, stdout) == (2, "")
    (line,) = stderr.splitlines()
    assert message in line
    assert not (tmp_path / "F").exists()
