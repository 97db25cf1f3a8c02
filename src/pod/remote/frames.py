"""Frames between client and pod over one SSH channel: a kind, a length, a payload.

Python 3.8 and its standard library are enough for everything in this package: it runs on the pod before anything is
installed there. A side that is busy sends heartbeats, so that silence always means a dead peer.
"""

from __future__ import annotations

import json
import struct
import threading
from collections.abc import Callable
from typing import Any

HEADER = struct.Struct(">cI")
BLOCK_HEADER = struct.Struct(">II")  # file, block
MAX_PAYLOAD = 64 << 20
HEARTBEAT_SECONDS = 5.0
GREETING = b"\nem-persona helper\n"  # the frames begin after it, and after what the pod's shell says at login

JSON, BLOCK, ACCEPTED, REFUSED, PUBLISHED = b"J", b"B", b"A", b"N", b"P"
LOG, STATUS, HEARTBEAT, ERROR, END = b"L", b"S", b".", b"E", b"Z"  # END: of what a command reads or writes


class FrameError(Exception):
    """The other side sent what is no frame, or stopped in the middle of one."""


class Wire:
    """Frames over two functions; `read_exactly` returns fewer bytes at the end only. Threads may share `write`."""

    def __init__(self, read_exactly: Callable[[int], bytes], write_all: Callable[[bytes], object]) -> None:
        self._read_exactly = read_exactly
        self._write_all = write_all
        self._lock = threading.Lock()

    def write(self, kind: bytes, payload: bytes = b"", large: bytes = b"") -> None:
        """One frame; `large` is the rest of its payload, not copied."""
        with self._lock:
            self._write_all(HEADER.pack(kind, len(payload) + len(large)) + payload)
            if large:
                self._write_all(large)

    def write_json(self, value: Any, kind: bytes = JSON) -> None:
        self.write(kind, json.dumps(value).encode())

    def write_block(self, file: int, block: int, data: bytes) -> None:
        self.write(BLOCK, BLOCK_HEADER.pack(file, block), data)

    def read(self) -> tuple[bytes, bytes] | None:
        """The next frame that is no heartbeat; None where the other side has closed between two frames."""
        while True:
            header = self._read_exactly(HEADER.size)
            if not header:
                return None
            if len(header) < HEADER.size:
                raise FrameError("the connection ended within a frame")
            kind, length = HEADER.unpack(header)
            if length > MAX_PAYLOAD:
                raise FrameError("what came is no frame: " + repr(header))
            payload = self._read_exactly(length)
            if len(payload) < length:
                raise FrameError("the connection ended within a frame")
            if kind != HEARTBEAT:
                return kind, payload


class Heartbeats:
    """Sends a heartbeat every few seconds while the block runs."""

    def __init__(self, wire: Wire, seconds: float = HEARTBEAT_SECONDS) -> None:
        self._wire = wire
        self._seconds = seconds
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._stopped.set()

    def _beat(self) -> None:
        while not self._stopped.wait(self._seconds):
            try:
                self._wire.write(HEARTBEAT)
            except OSError:
                return
