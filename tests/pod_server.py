"""A pod on this machine: a real OpenSSH server, and a line to it that misbehaves.

with PodServer(folder, sshd) as pod, Proxy(pod.port) as line: ...
"""

import contextlib
import os
import select
import shlex
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Self

from tests.pod_api_server import POD_KEY

PASSPHRASE = "correct horse battery staple"  # pragma: allowlist secret

# what /start.sh of RunPod's images does with scripts that lie beside it
HOOKS = "[[ -f {0}/pre_start.sh ]] && bash {0}/pre_start.sh\n"
PASSED_ON = ("SSL_CERT_FILE", "UV_FIND_LINKS", "UV_INDEX_URL", "UV_DEFAULT_INDEX", "UV_OFFLINE", "UV_CACHE_DIR")


def make_key(path: Path, passphrase: str = "") -> Path:
    """An ed25519 key pair."""
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", passphrase, "-C", "test", "-f", str(path)], check=True)
    return path


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class PodServer:
    """sshd on a port of its own, with host key, user key, and the environment that a pod's container would have."""

    def __init__(self, folder: Path, sshd: str, pod_id: str = "pod1", api_url: str | None = None) -> None:
        self.folder = folder
        self.pod_id = pod_id
        self.port = free_port()
        self.key = folder / "user_key"
        self.root = folder / "volume"
        self.environment = {"RUNPOD_POD_ID": pod_id, "PATH": os.environ["PATH"], "TMPDIR": str(folder / "tmp")}
        self.environment |= {name: value for name, value in os.environ.items() if name in PASSED_ON}
        if api_url is not None:
            self.environment |= {"RUNPOD_API_KEY": POD_KEY, "RUNPOD_API_BASE_URL": api_url}
        self.start_command = "bash -c '/start.sh'"  # RunPod's own, in whose place a pod may be created with another
        self._sshd = sshd
        self._mark = f"SSHD_OF={folder}"
        self._process: subprocess.Popen | None = None
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "tmp").mkdir(exist_ok=True)
        if not self.key.exists():
            make_key(self.key)
        (folder / "authorized").write_text((folder / "user_key.pub").read_text())
        self.new_host_key()

    def new_host_key(self) -> None:
        for file in (self.folder / "host_key", self.folder / "host_key.pub"):
            file.unlink(missing_ok=True)
        make_key(self.folder / "host_key")

    def fingerprint(self) -> str:
        listed = subprocess.run(
            ["ssh-keygen", "-l", "-f", str(self.folder / "host_key.pub")], capture_output=True, text=True, check=True
        )
        return listed.stdout.split()[1]

    def authorize(self, public: Path) -> None:
        with (self.folder / "authorized").open("a") as file:
            file.write(public.read_text())

    def start(self) -> None:
        if os.geteuid() == 0:
            Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
        settings = {
            "Port": self.port,
            "ListenAddress": "127.0.0.1",
            "HostKey": self.folder / "host_key",
            "AuthorizedKeysFile": self.folder / "authorized",
            "StrictModes": "no",
            "UsePAM": "no",
            "PasswordAuthentication": "no",
            "PidFile": "none",
            "PermitRootLogin": "yes",
            "MaxStartups": "100",
            "Subsystem": "sftp internal-sftp",
            "SetEnv": " ".join(f'"{name}={value}"' for name, value in self.environment.items()),
        }
        config = self.folder / "sshd_config"
        config.write_text("".join(f"{name} {value}\n" for name, value in settings.items()))
        knows = [
            self._sshd,
            "-t",
            "-f",
            config,
            "-o",
            "PerSourcePenalties=no",
        ]  # since 9.8: who often fails is shut out
        if subprocess.run(knows, stderr=subprocess.DEVNULL, check=False).returncode == 0:
            config.write_text(config.read_text() + "PerSourcePenalties no\n")
        image = self.folder / "start.sh"
        image.write_text(
            f"#!/bin/bash\n{HOOKS.format(self.folder)}exec env -u TMPDIR {self._mark} {self._sshd} -D -e -f {config}\n"
        )
        image.chmod(0o755)
        with (self.folder / "sshd.log").open("ab") as log:
            command = shlex.split(self.start_command.replace("/start.sh", str(image)))
            self._process = subprocess.Popen(command, stdout=log, stderr=log, env=self.environment, cwd=self.folder)
        wait_for(lambda: answers(self.port), "sshd answers")

    def stop(self) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait()

    def end_container(self) -> None:
        self.stop()
        self.end_processes()
        kill(processes_with(self._mark))

    def restart_container(self, is_new: bool = False) -> None:
        """As RunPod does after a crash: every process is gone, the start command runs; a new one has an empty disk."""
        self.end_container()
        if is_new:
            shutil.rmtree(self.folder / "tmp")
            (self.folder / "tmp").mkdir()
        self.start()

    def end_processes(self) -> None:
        """Kill -9 what runs on the pod, as the end of its container does, until nothing is left of it."""
        while left := processes_in(self.folder):
            kill(left)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        self.end_processes()


def processes_in(folder: Path) -> list[int]:
    """Processes started through the pod's sshd, or its start command: they have its TMPDIR in their environment."""
    return processes_with(f"TMPDIR={folder / 'tmp'}")


def processes_with(variable: str) -> list[int]:
    mark, found = variable.encode(), []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            if mark in path.read_bytes().split(b"\0"):
                found.append(int(path.parent.name))
        except OSError:
            continue
    return found


def kill(pids: Sequence[int]) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):  # one may end with the one before it
            os.kill(pid, signal.SIGKILL)


def holds(pid: int, name: str) -> bool:
    """Whether a process has a file of that name open."""
    try:
        opened = list(Path(f"/proc/{pid}/fd").iterdir())
    except OSError:
        return False
    for path in opened:
        with contextlib.suppress(OSError):  # closed meanwhile, and no word on the others
            if path.readlink().name == name:
                return True
    return False


def parent_of(pid: int) -> int | None:
    """The process that started another, or that took it over; None once it has ended."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    return int(status.rpartition(")")[2].split()[1])


def answers(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1) as connection:
            return connection.recv(3) == b"SSH"
    except OSError:
        return False


def wait_for(holds: Callable[[], object], what: str, seconds: float = 45.0) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, f"waited {seconds} s in vain: {what}"
        time.sleep(0.02)


class Proxy:
    """A line to a port that can be made to cut, stall or corrupt. Counts bytes over all connections, per direction.

    `cut_after`, `stall_after`, `corrupt_at`: so many bytes to the server (`up`) or from it (`down`) in one connection.
    """

    def __init__(self, target: int) -> None:
        self.target = target
        self.faults: list[tuple[str, str, int]] = []  # (what, direction, after bytes), one a connection, in order
        self.bytes = {"up": 0, "down": 0}
        self.connections = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._is_open = True

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_open = False
        self._listener.close()

    def _accept(self) -> None:
        while self._is_open:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            fault = self.faults.pop(0) if self.faults else ("", "up", 0)
            threading.Thread(target=self._carry, args=(client, fault), daemon=True).start()

    def _carry(self, client: socket.socket, fault: tuple[str, str, int]) -> None:
        server = socket.create_connection(("127.0.0.1", self.target))
        what, where, limit = fault
        passed = {"up": 0, "down": 0}
        is_stalled = False
        with client, server:
            while self._is_open:
                readable, _, _ = select.select([client, server], [], [], 0.2)
                if is_stalled:
                    time.sleep(0.05)
                    continue
                for source in readable:
                    direction, sink = ("up", server) if source is client else ("down", client)
                    try:
                        data = source.recv(65536)
                        if not data:
                            return
                        before, passed[direction] = passed[direction], passed[direction] + len(data)
                        self.bytes[direction] += len(data)
                        if direction == where and what and passed[direction] > limit >= before:
                            if what == "cut":
                                return
                            if what == "stall":
                                is_stalled = True
                                continue
                            if what == "corrupt":
                                data = data[:-1] + bytes([data[-1] ^ 1])
                        sink.sendall(data)
                    except OSError:
                        return
