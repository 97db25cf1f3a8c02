"""Files by content: SHA-256 of every block, an address over all of them, and the part of a file that has arrived.

Both sides of a transfer use this module. A block is written only when its hash is right, and a file takes its name
only when all of its blocks are there: a cut connection costs the blocks that were under way, at most `IN_FLIGHT` bytes.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Union

Buffer = Union[bytes, memoryview]  # noqa: UP007  # Python 3.9 evaluates it

BLOCK_BYTES = 1 << 20
SYNC_BYTES = 16 << 20
IN_FLIGHT = 4 << 20  # bytes that are sent before the first of them is acknowledged


@dataclass(frozen=True)
class Digest:
    """A file's size in bytes, the SHA-256 of its blocks of `BLOCK_BYTES` (the last is shorter), and its address."""

    size: int
    blocks: tuple[str, ...]

    @property
    def address(self) -> str:
        """SHA-256 over size and block hashes: equal for equal content."""
        return hashlib.sha256((f"{self.size}\n" + "\n".join(self.blocks)).encode()).hexdigest()

    def length_of(self, block: int) -> int:
        return min(BLOCK_BYTES, self.size - block * BLOCK_BYTES)

    def as_json(self) -> dict[str, Any]:
        return {"size": self.size, "blocks": list(self.blocks)}

    @staticmethod
    def from_json(value: dict[str, Any]) -> Digest:
        """`ValueError` where the blocks do not make up the size."""
        digest = Digest(int(value["size"]), tuple(map(str, value["blocks"])))
        if digest.size < 0 or len(digest.blocks) != -(-digest.size // BLOCK_BYTES):
            raise ValueError(f"{len(digest.blocks)} blocks are no file of {digest.size} bytes")
        return digest


def digest_file(path: Path) -> Digest:
    """Read a file once and hash its blocks."""
    blocks, size = [], 0
    with path.open("rb") as file:
        while data := file.read(BLOCK_BYTES):
            blocks.append(hashlib.sha256(data).hexdigest())
            size += len(data)
    return Digest(size, tuple(blocks))


def read_block(file: int, block: int) -> bytes:
    """One block of an open file descriptor; the last one is shorter."""
    return os.pread(file, BLOCK_BYTES, block * BLOCK_BYTES)


class Part:
    """A file that is arriving: `<address>.part` and, beside it, one byte for each block that is in it.

    Its files are open from the first write until `publish` or `close`. Two processes may write one part at a time: they
    write the same bytes.
    """

    def __init__(self, folder: Path, digest: Digest) -> None:
        self.digest = digest
        self.path = folder / (digest.address + ".part")
        self._marks_path = folder / (digest.address + ".have")
        self._opened: tuple[int, int] | None = None
        self._unsynced = 0
        self._syncing: threading.Thread | None = None

    def missing(self) -> list[int]:
        """Blocks that are not there yet; those that are said to be are read again, as a crash may have lost them."""
        if not self._marks_path.exists():
            return list(range(len(self.digest.blocks)))
        file, marks_file = self._files()
        marks = os.pread(marks_file, len(self.digest.blocks), 0).ljust(len(self.digest.blocks), b"\0")
        return [
            block
            for block, sha256 in enumerate(self.digest.blocks)
            if not marks[block] or hashlib.sha256(read_block(file, block)).hexdigest() != sha256
        ]

    def write(self, block: int, data: Buffer) -> bool:
        """Keep a block if it is what it should be; whether it was."""
        if block >= len(self.digest.blocks) or len(data) != self.digest.length_of(block):
            return False
        if hashlib.sha256(data).hexdigest() != self.digest.blocks[block]:
            return False
        file, marks = self._files()
        view, done = memoryview(data), 0
        while done < len(view):
            done += os.pwrite(file, view[done:], block * BLOCK_BYTES + done)
        os.pwrite(marks, b"\1", block)
        self._unsynced += done
        if self._unsynced >= SYNC_BYTES and not (self._syncing and self._syncing.is_alive()):
            self._unsynced = 0
            self._syncing = threading.Thread(target=os.fsync, args=(file,))
            self._syncing.start()  # the disk works while the line does
        return True

    def size(self) -> int:
        """Bytes that it takes on the disk."""
        return self.path.stat().st_blocks * 512 if self.path.exists() else 0

    def publish(self, path: Path) -> None:
        """Give the complete file its name; all blocks must have been written or found."""
        file, _ = self._files()
        os.ftruncate(file, self.digest.size)
        os.fsync(file)
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self.path.replace(path)
        except FileNotFoundError:  # the other has just published it, or nobody has
            if not path.exists():
                raise
        with contextlib.suppress(FileNotFoundError):
            self._marks_path.unlink()
        self.close()

    def close(self) -> None:
        if self._syncing is not None:
            self._syncing.join()
        for file in self._opened or ():
            os.close(file)
        self._opened = None

    def _files(self) -> tuple[int, int]:
        if self._opened is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            flags = os.O_RDWR | os.O_CREAT
            self._opened = (os.open(self.path, flags, 0o600), os.open(self._marks_path, flags, 0o600))
        return self._opened


class Store:
    """Files under their addresses; what is in it never changes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, address: str) -> Path:
        return self.folder / address[:2] / address

    def has(self, digest: Digest) -> bool:
        path = self.path(digest.address)
        return path.is_file() and path.stat().st_size == digest.size

    def part(self, digest: Digest) -> Part:
        return Part(self.folder / "parts", digest)

    def keep(self, part: Part) -> None:
        part.publish(self.path(part.digest.address))

    def put_into(self, address: str, path: Path) -> None:
        """Make `path` the file of that address: a copy, so that whoever writes into it does not change the store."""
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.placing-{os.getpid()}")
        copy_file(self.path(address), temporary)
        temporary.replace(path)


def bytes_to_come(store: Store, digests: Sequence[Digest]) -> int:
    """Bytes of different files that the store does not have; what has arrived of one takes its room already."""
    unknown = {digest.address: digest for digest in digests if not store.has(digest)}.values()
    return sum(max(0, digest.size - store.part(digest).size()) for digest in unknown)


def copy_file(source: Path, target: Path) -> None:
    """Copy without the metadata."""
    with source.open("rb") as reader, target.open("wb") as writer:
        while data := reader.read(8 << 20):
            writer.write(data)


def list_files(root: Path, names: Sequence[str], describe: Callable[[Path], Digest]) -> dict[str, Digest]:
    """Name relative to `root` -> digest of each file and of all files below each folder, as far as they are there."""
    found: dict[str, Digest] = {}
    for name in names:
        path = root / name
        files = sorted(path.rglob("*")) if path.is_dir() else [path]
        for file in files:
            if file.is_file() and not any(part.endswith(".tmp") for part in file.relative_to(root).parts):
                found[file.relative_to(root).as_posix()] = describe(file)
    return found
