"""One SSH connection to a pod: its host key checked, then logged in, nothing forwarded, silence noticed.

paramiko checks no host key at the level of `Transport`, so it is done here, before anything is sent that says who we
are. Whatever breaks a connection is `ConnectionLost`, which callers answer by connecting again.
"""

import contextlib
import logging
import socket
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from pathlib import Path

import paramiko

from src.pod.host_keys import check_host_key, pinned_key
from src.pod.pods import Address
from src.pod.settings import DEFAULT_KEY, PodSettings
from src.pod.terminal import harmless
from src.utils.errors import UserError

CONNECT_TIMEOUT = 15
SILENCE_SECONDS = 30.0  # the pod's helper sends something at least every 5 s
KEEPALIVE_SECONDS = 10
WINDOW_BYTES = 16 << 20
SEND_BYTES = 1 << 18
AGENT_KEYS = 4  # tried at most: a server hangs up after six that it does not know
CIPHERS = ("aes128-gcm@openssh.com", "aes256-gcm@openssh.com")  # twice as fast here as AES-CTR with a MAC beside it


logging.getLogger("paramiko").setLevel(logging.CRITICAL)  # what it would say is said by ConnectionLost


class ConnectionLost(Exception):
    """The connection is gone or the peer is silent; connecting again may help."""


@dataclass(frozen=True)
class Login:
    """How to log in to one pod, and against what its host key is checked."""

    pod_id: str
    settings: PodSettings
    pins: Path
    expected_fingerprint: str | None = None
    silence: float = SILENCE_SECONDS


class SshSession:
    """A connected, authenticated session. Closing it ends its channels."""

    def __init__(self, transport: paramiko.Transport, silence: float) -> None:
        self._transport = transport
        self._silence = silence

    def is_alive(self) -> bool:
        return self._transport.is_active()

    def execute(self, command: str) -> "Channel":
        """Run a command on the pod; secrets have no place in it. Raises `ConnectionLost`."""
        with lost_connections():
            channel = self._transport.open_session(window_size=WINDOW_BYTES, timeout=self._silence)
            channel.settimeout(self._silence)
            channel.exec_command(command)
            return Channel(channel)

    def open_sftp(self) -> paramiko.SFTPClient:
        with lost_connections():
            sftp = paramiko.SFTPClient.from_transport(self._transport)
            channel = sftp.get_channel() if sftp is not None else None
            assert sftp is not None and channel is not None
            channel.settimeout(self._silence)
            return sftp

    def close(self) -> None:
        self._transport.close()


class Channel:
    """A running command: its input, its output and, drained beside it, its complaints."""

    def __init__(self, channel: paramiko.Channel) -> None:
        self._channel = channel
        self._complaints = bytearray()

    def write_all(self, data: bytes) -> None:
        """Send all of it; `ConnectionLost` where the pod takes nothing for the time of silence."""
        view = memoryview(data)
        with lost_connections():
            while view:
                sent = self._channel.send(view[:SEND_BYTES])
                if sent == 0:
                    raise ConnectionLost("the pod closed the channel")
                view = view[sent:]

    def read_exactly(self, count: int) -> bytes:
        """So many bytes, fewer only at the end of the output; `ConnectionLost` after the time of silence."""
        pieces, missing = [], count
        with lost_connections():
            while missing:
                self._drain_complaints()
                piece = self._channel.recv(missing)
                if not piece:
                    break
                pieces.append(piece)
                missing -= len(piece)
        return b"".join(pieces)

    def finish(self) -> tuple[int, str]:
        """Close the input, wait for the end; exit code (-1 where none came) and the last of what it complained."""
        with lost_connections():
            self._channel.shutdown_write()
            while self._channel.recv(SEND_BYTES):
                self._drain_complaints()
            while piece := self._channel.recv_stderr(SEND_BYTES):
                self._complaints += piece
                del self._complaints[:-8000]
            deadline = time.monotonic() + CONNECT_TIMEOUT
            while not self._channel.exit_status_ready() and time.monotonic() < deadline:
                time.sleep(0.01)  # recv_exit_status has no timeout
        code = self._channel.recv_exit_status() if self._channel.exit_status_ready() else -1
        return code, harmless(self._complaints[-2000:].decode("utf-8", "replace")).strip()

    def close(self) -> None:
        self._channel.close()

    def _drain_complaints(self) -> None:
        """Undrained output would fill the window and stop the command."""
        while self._channel.recv_stderr_ready():
            self._complaints += self._channel.recv_stderr(SEND_BYTES)
            del self._complaints[:-8000]


@contextlib.contextmanager
def lost_connections() -> Generator[None]:
    """All the ways in which paramiko says that a connection is gone, as `ConnectionLost`."""
    try:
        yield
    except TimeoutError as error:
        raise ConnectionLost("no answer in time") from error
    except (OSError, EOFError, paramiko.SSHException, paramiko.SFTPError) as error:
        raise ConnectionLost(str(error) or type(error).__name__) from error


def connect(address: Address, login: Login, say: Callable[[str], object] = print) -> SshSession:
    """Connect, check the host key, log in. `ConnectionLost` where it may work later, else `UserError`."""
    with lost_connections():
        raw = socket.create_connection((address.host, address.port), timeout=CONNECT_TIMEOUT)
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        transport = paramiko.Transport(raw)
    try:
        transport.banner_timeout = transport.handshake_timeout = transport.auth_timeout = CONNECT_TIMEOUT
        options = transport.get_security_options()
        options.ciphers = (*CIPHERS, *(name for name in options.ciphers if name not in CIPHERS))
        known = pinned_key(login.pod_id, login.pins)
        if known is not None:  # a server shows the first of its keys that we ask for: ask for the one we know
            options.key_types = sorted(options.key_types, key=lambda name: name != known.get_name())
        with lost_connections():
            transport.start_client(timeout=CONNECT_TIMEOUT)
        check_host_key(login.pod_id, transport.get_remote_server_key(), login.pins, login.expected_fingerprint, say)
        log_in(transport, login.settings)
        transport.set_keepalive(KEEPALIVE_SECONDS)
    except BaseException:
        transport.close()
        raise
    return SshSession(transport, login.silence)


def log_in(transport: paramiko.Transport, settings: PodSettings) -> None:
    """Try `--key`, else the agent's keys and then the default key; `UserError` says how each of them failed."""
    failures: list[str] = []
    for name, load in candidates(settings, failures):
        try:
            key = load()
        except UserError as error:
            failures.append(error.message)
            continue
        try:
            transport.auth_publickey(settings.user, key)
            return
        except paramiko.AuthenticationException:
            failures.append(f"{name}: the pod does not know this key")
        except (paramiko.SSHException, OSError, EOFError) as error:
            if not transport.is_active():
                raise ConnectionLost(str(error) or type(error).__name__) from error
            failures.append(f"{name}: {error}")
    raise UserError(
        f"SSH login as {settings.user} failed ({'; '.join(failures)}); give the key that the pod knows with --key, its "
        "passphrase in .env (RUNPOD_PRIVATE_KEY), and its public half in RunPod's settings before the pod is created"
    )


def candidates(settings: PodSettings, failures: list[str]) -> Iterator[tuple[str, Callable[[], paramiko.PKey]]]:
    """Names of keys and how to load them. An agent without keys is noted among the failures."""
    if settings.key is not None:
        path = settings.key
        yield str(path), lambda: load_key(path, settings.passphrase)
        return
    default = DEFAULT_KEY.expanduser()
    held = agent_keys(default.with_name(default.name + ".pub"))
    if not held:
        failures.append("SSH agent: none is running, or it holds no key")
    for key in held[:AGENT_KEYS]:
        yield f"SSH agent, key {key.get_name()}", lambda key=key: key
    if len(held) > AGENT_KEYS:
        failures.append(f"SSH agent: {len(held) - AGENT_KEYS} more keys were not tried")
    yield str(default), lambda: load_key(default, settings.passphrase)


def agent_keys(first: Path) -> list[paramiko.PKey]:
    """The agent's keys, the one before all others whose public half lies in the file `first`."""
    try:
        preferred = first.read_text(encoding="utf-8") if first.is_file() else ""
        return sorted(paramiko.Agent().get_keys(), key=lambda key: key.get_base64() not in preferred)
    except (paramiko.SSHException, OSError):
        return []


def load_key(path: Path, passphrase: str | None) -> paramiko.PKey:
    """A private key; `UserError` names the file and what is wrong, never the passphrase."""
    if not path.is_file():
        raise UserError(f"{path}: does not exist")
    try:
        return paramiko.PKey.from_path(path)
    except (TypeError, ValueError, paramiko.PasswordRequiredException):
        pass  # is encrypted, or no key at all: with the passphrase we know
    except (OSError, paramiko.SSHException, paramiko.pkey.UnknownKeyType) as error:
        raise UserError(f"{path}: cannot be read as a private key ({type(error).__name__})") from error
    if passphrase is None:
        raise UserError(f"{path}: needs a passphrase, and RUNPOD_PRIVATE_KEY is not set (or it is no private key)")
    try:
        return paramiko.PKey.from_path(path, passphrase.encode())  # ty: ignore[invalid-argument-type]  # takes bytes only
    except Exception as error:  #  # cryptography raises what it likes for a wrong passphrase
        raise UserError(f"{path}: the passphrase in RUNPOD_PRIVATE_KEY does not open it") from error
