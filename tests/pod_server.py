"""A pod on this machine: a real OpenSSH server, RunPod's API as an HTTP server, and a line between that misbehaves.

with PodServer(folder) as pod, ApiServer() as api, Proxy(pod.port) as line: ...
"""

import argparse
import contextlib
import getpass
import json
import os
import re
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self

from src.pod.api import RunPodApi
from src.pod.client import Choices, PodClient
from src.pod.launch import Command, open_run
from src.pod.payload import Payload
from src.pod.persona_data_runner import attend
from src.pod.remote.layout import RunFolder
from src.pod.run_record import RunRecord, RunRecords
from src.pod.settings import PodSettings

ACCOUNT_KEY = "rpa_ACCOUNT0123456789"  # pragma: allowlist secret
POD_KEY = "rpa_PODSCOPED9876543210"  # pragma: allowlist secret
PASSPHRASE = "correct horse battery staple"  # pragma: allowlist secret
HUB_TOKEN = "hf_SECRETTOKEN000111222"  # pragma: allowlist secret

PASSED_ON = ("SSL_CERT_FILE", "UV_FIND_LINKS", "UV_INDEX_URL", "UV_DEFAULT_INDEX", "UV_OFFLINE", "UV_CACHE_DIR")
SLEEPY = "import time\nprint('asleep', flush=True)\ntime.sleep(60)\n"


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
        self._sshd = sshd
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
        with (self.folder / "sshd.log").open("ab") as log:
            self._process = subprocess.Popen([self._sshd, "-D", "-e", "-f", str(config)], stderr=log)
        wait_for(lambda: answers(self.port), "sshd answers")

    def stop(self) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait()

    def end_processes(self) -> None:
        """Kill -9 what runs on the pod, as the end of its container does."""
        for pid in processes_in(self.folder):
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        self.end_processes()


def processes_in(folder: Path) -> list[int]:
    """Processes started through the pod's sshd: they have its TMPDIR in their environment."""
    mark = f"TMPDIR={folder / 'tmp'}".encode()
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            if mark in path.read_bytes().split(b"\0"):
                found.append(int(path.parent.name))
        except OSError:
            continue
    return found


def answers(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1) as connection:
            return connection.recv(3) == b"SSH"
    except OSError:
        return False


def wait_for(holds: Callable[[], object], what: str, seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, f"waited {seconds} s in vain: {what}"
        time.sleep(0.02)


def pod_entry(pod_id: str, port: int | None = None, **fields: Any) -> dict[str, Any]:
    """A pod as the API shows it; without a port its image is still being pulled."""
    ports = [{"ip": "127.0.0.1", "isIpPublic": True, "privatePort": 22, "publicPort": port, "type": "tcp"}]
    return {
        "id": pod_id,
        "name": f"name of {pod_id}",
        "desiredStatus": "RUNNING",
        "costPerHr": 0.5,
        "gpuCount": 0,
        "imageName": "image",
        "podType": "RESERVED",
        "networkVolumeId": None,
        "machine": {"gpuDisplayName": "RTX 4090"},
        "runtime": None if port is None else {"uptimeInSeconds": 1, "ports": ports, "gpus": []},
        **fields,
    }


@dataclass
class ApiServer:
    """GraphQL as far as the client speaks it. `failures` are answered first, in order: (status, body, headers)."""

    pods: dict[str, dict[str, Any]] = field(default_factory=dict)
    failures: list[tuple[int, str, dict[str, str]]] = field(default_factory=list)
    asked: list[tuple[str, str]] = field(default_factory=list)  # (key, query)
    created: list[str] = field(default_factory=list)
    delay: float = 0.0  # seconds before an answer

    def __enter__(self) -> Self:
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                key = self.headers.get("Authorization", "").removeprefix("Bearer ")
                status, text, headers = server.answer(self.path, key, body["query"])
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(text.encode())))
                self.end_headers()
                with contextlib.suppress(ConnectionError):
                    self.wfile.write(text.encode())

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002
                return

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def calls(self, mutation: str) -> list[str]:
        """The keys under which a mutation was asked for."""
        return [key for key, query in self.asked if mutation in query]

    def answer(self, path: str, key: str, query: str) -> tuple[int, str, dict[str, str]]:
        self.asked.append((key, query))
        time.sleep(self.delay)
        if self.failures:
            return self.failures.pop(0)
        if path != "/graphql" or key not in (ACCOUNT_KEY, POD_KEY):
            return 401, "", {}
        return 200, json.dumps({"data": self.data(query)}), {}

    def data(self, query: str) -> dict[str, Any]:
        found = re.search(r'podId: "([^"]*)"', query)
        pod_id = found[1] if found else ""
        if "podStop" in query:
            self.pods[pod_id]["desiredStatus"] = "EXITED"
            return {"podStop": {"id": pod_id, "desiredStatus": "EXITED"}}
        if "podTerminate" in query:
            self.pods.pop(pod_id, None)
            return {"podTerminate": None}
        if "gpuTypes" in query:
            return {"gpuTypes": [{"id": "x", "lowestPrice": {"minimumBidPrice": 0.2, "uninterruptablePrice": 0.5}}]}
        for mutation in ("podRentInterruptable", "podFindAndDeployOnDemand"):
            if mutation in query:
                self.created.append(query)
                self.pods["new1"] = pod_entry("new1")
                return {mutation: {"id": "new1", "name": "n", "desiredStatus": "CREATED", "costPerHr": 0.5}}
        if "myself" in query:
            return {"myself": {"pods": list(self.pods.values())}}
        return {"pod": self.pods.get(pod_id)}


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


def client_for(pod: PodServer, api: ApiServer, folder: Path, **fields: Any) -> PodClient:
    """A client whose home is `folder`. `fields` are those of `Choices`, `PodSettings` and `PodClient`."""
    parts: list[dict[str, Any]] = [
        {name: fields.pop(name) for name in list(fields) if name in kind.__dataclass_fields__}
        for kind in (Choices, PodSettings, PodClient)
    ]
    choices: dict[str, Any] = {
        "remote_python": sys.executable,
        "installs": False,
        "is_guarded": False,
        "pod_poll": 0.05,
        **parts[0],
    }
    settings: dict[str, Any] = {"key": pod.key, "remote_root": str(pod.root), **parts[1]}
    own: dict[str, Any] = {"say": lambda text: None, "pins": folder / "pins", **parts[2]}
    assert not fields, fields
    return PodClient(
        RunPodApi(api.url, ACCOUNT_KEY, wait=lambda seconds: None),
        PodSettings(api_key=ACCOUNT_KEY, api_url=api.url, user=getpass.getuser(), **settings),
        RunRecords(folder / "results/runs"),
        Choices(**choices),
        **own,
    )


def job_command(
    folder: Path, source: str, files: dict[str, Path] | None = None, options: Sequence[str] = ()
) -> Command:
    """A command that runs a few lines of Python in the run's working folder; `out` is what it leaves."""
    script = folder / "job.py"
    script.parent.mkdir(parents=True, exist_ok=True)
    script.write_text(source)
    payload = Payload("job.py", list(options), {"job.py": script, **(files or {})}, ["out"])
    return Command("script", "job.py", list(options), ["out"], lambda: payload)


def attend_to(client: PodClient, command: Command, folder: Path, is_detached: bool = False) -> RunRecord:
    """What the runner does with a command, from its record to the fetched results; the record at the end."""
    record = open_run(client, command)
    own = argparse.Namespace(detach=is_detached, results_dir=folder / "results")
    attend(client, record, own, command)
    return client.records.load(record.run_id)


def remote(pod: PodServer, record: RunRecord) -> RunFolder:
    """The folder of a run on the pod."""
    return RunFolder(pod.root, record.run_id)
