"""Logging in to a real OpenSSH server: keys, passphrases, agents, host keys, and a peer that falls silent."""

import getpass
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import paramiko
import pytest

from src.pod.host_keys import pinned_key
from src.pod.pods import Address
from src.pod.settings import PodSettings
from src.pod.ssh import ConnectionLost, Login, SshSession, connect
from src.utils.errors import UserError
from tests.pod_api_server import ACCOUNT_KEY
from tests.pod_server import PASSPHRASE, PodServer, Proxy, make_key, wait_for


@pytest.fixture(scope="module")
def pod(tmp_path_factory: pytest.TempPathFactory, sshd: str) -> Iterator[PodServer]:
    with PodServer(tmp_path_factory.mktemp("pod"), sshd) as server:
        yield server


@pytest.fixture(autouse=True)
def _own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)


def log_in(
    pod: PodServer, folder: Path, said: list[str] | None = None, port: int | None = None, **fields
) -> SshSession:
    login_fields = {name: fields.pop(name) for name in ("expected_fingerprint", "silence") if name in fields}
    own: dict[str, Any] = {"key": pod.key, **fields}
    settings = PodSettings(ACCOUNT_KEY, user=getpass.getuser(), **own)
    login = Login(pod.pod_id, settings, folder / "pins", **login_fields)
    return connect(Address("127.0.0.1", port or pod.port), login, (said if said is not None else []).append)


def output_of(session: SshSession, command: str) -> str:
    channel = session.execute(command)
    text = channel.read_exactly(1 << 20).decode()
    assert channel.finish()[0] == 0
    session.close()
    return text


def test_the_host_key_is_shown_once_and_pinned_where_plain_ssh_finds_it(pod: PodServer, tmp_path: Path) -> None:
    said: list[str] = []
    assert output_of(log_in(pod, tmp_path, said), "echo in") == "in\n"
    assert len(said) == 1 and pod.fingerprint() in said[0]
    assert output_of(log_in(pod, tmp_path, said), "echo again") == "again\n"
    assert len(said) == 1
    options = f"-o UserKnownHostsFile={tmp_path / 'pins'} -o HostKeyAlias={pod.pod_id} -o StrictHostKeyChecking=yes"
    command = f"ssh -F none -i {pod.key} -p {pod.port} {options} {getpass.getuser()}@127.0.0.1 echo by hand"
    assert subprocess.run(command.split(), capture_output=True, text=True, check=True).stdout == "by hand\n"


def test_a_changed_host_key_is_refused_with_both_fingerprints(tmp_path: Path, sshd: str) -> None:
    pod = PodServer(tmp_path / "pod", sshd)
    with pod:
        log_in(pod, tmp_path).close()
        before = pod.fingerprint()
    pod.new_host_key()
    with pod, pytest.raises(UserError, match="host key has changed") as caught:
        log_in(pod, tmp_path)
    assert before in caught.value.message and pod.fingerprint() in caught.value.message
    log = (pod.folder / "sshd.log").read_text()
    assert log.count("Accepted publickey") == 1, "nothing was sent to the stranger"
    pod.pod_id = "another"  # the address is recycled: another pod there is no changed key
    with pod:
        log_in(pod, tmp_path).close()
    assert pinned_key("another", tmp_path / "pins") != pinned_key("pod1", tmp_path / "pins")


def test_an_expected_fingerprint_that_is_not_met(pod: PodServer, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--fingerprint says SHA256:something"):
        log_in(pod, tmp_path, expected_fingerprint="SHA256:something")
    assert pinned_key(pod.pod_id, tmp_path / "pins") is None
    log_in(pod, tmp_path, expected_fingerprint=pod.fingerprint()).close()


def test_a_key_with_a_passphrase(pod: PodServer, tmp_path: Path) -> None:
    key = make_key(tmp_path / "locked", PASSPHRASE)
    pod.authorize(key.with_suffix(".pub"))
    assert output_of(log_in(pod, tmp_path, key=key, passphrase=PASSPHRASE), "echo in") == "in\n"
    with pytest.raises(UserError, match="needs a passphrase, and RUNPOD_PRIVATE_KEY is not set"):
        log_in(pod, tmp_path, key=key)
    with pytest.raises(UserError, match="passphrase in RUNPOD_PRIVATE_KEY does not open it") as caught:
        log_in(pod, tmp_path, key=key, passphrase="wrong horse")
    assert "wrong horse" not in caught.value.message
    unlocked = log_in(pod, tmp_path, passphrase=PASSPHRASE)  # a passphrase that the key does not need
    unlocked.close()


def test_the_default_key_and_what_failed_before_it(pod: PodServer, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="SSH agent: none is running") as caught:
        log_in(pod, tmp_path, key=None)
    assert f"{tmp_path}/.ssh/id_ed25519: does not exist" in caught.value.message
    (tmp_path / ".ssh").mkdir()
    key = make_key(tmp_path / ".ssh/id_ed25519")
    with pytest.raises(UserError, match="id_ed25519: the pod does not know this key"):
        log_in(pod, tmp_path, key=None)
    pod.authorize(key.with_suffix(".pub"))
    log_in(pod, tmp_path, key=None).close()


def agent_answers() -> bool:
    """Its socket is there a moment before it listens."""
    return subprocess.run(["ssh-add", "-l"], capture_output=True, check=False).returncode != 2


def test_an_agent_opens_the_pod_and_is_not_forwarded(
    pod: PodServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    socket = tmp_path / "agent"
    agent = subprocess.Popen(["ssh-agent", "-D", "-a", str(socket)], stdout=subprocess.DEVNULL)
    try:
        monkeypatch.setenv("SSH_AUTH_SOCK", str(socket))
        wait_for(agent_answers, "the agent answers")
        subprocess.run(["ssh-add", "-q", str(pod.key)], check=True, env={**os.environ}, stderr=subprocess.DEVNULL)
        session = log_in(pod, tmp_path, key=None)
        assert output_of(session, 'echo "agent: $SSH_AUTH_SOCK"') == "agent: \n"
    finally:
        agent.terminate()
        agent.wait()


def test_an_agent_full_of_keys_leaves_room_for_the_right_one(
    pod: PodServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server hangs up after six keys that it does not know."""
    (tmp_path / ".ssh").mkdir()
    keys = [make_key(tmp_path / f"key{i}") for i in range(7)]
    socket = tmp_path / "agent"
    agent = subprocess.Popen(["ssh-agent", "-D", "-a", str(socket)], stdout=subprocess.DEVNULL)
    try:
        monkeypatch.setenv("SSH_AUTH_SOCK", str(socket))
        wait_for(agent_answers, "the agent answers")
        subprocess.run(["ssh-add", "-q", *map(str, keys)], check=True, stderr=subprocess.DEVNULL)
        default = make_key(tmp_path / ".ssh/id_ed25519")
        with pytest.raises(UserError, match=r"3 more keys were not tried.*id_ed25519: the pod does not know this key"):
            log_in(pod, tmp_path, key=None)
        pod.authorize(default.with_suffix(".pub"))
        log_in(pod, tmp_path, key=None).close()
        default.unlink()
        pod.authorize(keys[6].with_suffix(".pub"))
        default.with_suffix(".pub").write_text(keys[6].with_suffix(".pub").read_text())
        log_in(pod, tmp_path, key=None).close()
    finally:
        agent.terminate()
        agent.wait()


def test_a_chatty_command_does_not_deadlock(pod: PodServer, tmp_path: Path) -> None:
    """More on both outputs than the window holds, drained while it runs."""
    session = log_in(pod, tmp_path)
    channel = session.execute("head -c 40000000 /dev/zero | tee /dev/stderr; exit 3")
    assert len(channel.read_exactly(50_000_000)) == 40_000_000
    code, complaints = channel.finish()
    assert code == 3 and complaints
    session.close()


def test_a_silent_peer_is_noticed(pod: PodServer, tmp_path: Path) -> None:
    with Proxy(pod.port) as line:
        line.faults = [("stall", "down", 20_000)]
        session = log_in(pod, tmp_path, port=line.port, silence=2.0)
        channel = session.execute("head -c 1000000 /dev/zero")
        with pytest.raises(ConnectionLost):
            channel.read_exactly(1_000_000)
        session.close()


def test_nothing_answers(pod: PodServer, tmp_path: Path) -> None:
    with pytest.raises(ConnectionLost):
        log_in(pod, tmp_path, port=1)


def test_ciphers_that_are_twice_as_fast_come_first(pod: PodServer, tmp_path: Path) -> None:
    session = log_in(pod, tmp_path)
    transport = session._transport
    assert isinstance(transport, paramiko.Transport) and transport.local_cipher == "aes128-gcm@openssh.com"
    session.close()
