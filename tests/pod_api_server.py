"""RunPod's API as an HTTP server on this machine, as far as the client speaks it."""

import contextlib
import json
import re
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

ACCOUNT_KEY = "rpa_ACCOUNT0123456789"  # pragma: allowlist secret
POD_KEY = "rpa_PODSCOPED9876543210"  # pragma: allowlist secret


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
        "dockerArgs": "",
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
                given = re.search(r'dockerArgs: ("(?:[^"\\]|\\.)*")', query)
                self.pods["new1"] = pod_entry("new1", dockerArgs=json.loads(given[1]) if given else "")
                return {mutation: {"id": "new1", "name": "n", "desiredStatus": "CREATED", "costPerHr": 0.5}}
        if "myself" in query:
            return {"myself": {"pods": list(self.pods.values())}}
        return {"pod": self.pods.get(pod_id)}
