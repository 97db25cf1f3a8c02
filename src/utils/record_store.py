"""An append-only file of records, one JSON object a line, each with a `key`: what was paid for is never lost.

A record is in the file when `append` returns, so that `kill -9` loses nothing; a last line that was cut in the middle
is dropped at the next opening. One process at a time holds the file.
"""

import errno
import fcntl
import json
import os
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from io import FileIO
from pathlib import Path
from typing import Any

from src.utils.errors import UserError


class RecordStore:
    """Records by key, the newest of a key counting; made by `open_store`."""

    def __init__(self, path: Path, file: FileIO, records: dict[str, dict[str, Any]]) -> None:
        self.path = path
        self.records = records
        self._file = file

    def get(self, key: str) -> dict[str, Any] | None:
        return self.records.get(key)

    def append(self, record: Mapping[str, Any]) -> None:
        """Write one record through to the operating system; `UserError` where the disk takes no more."""
        line = json.dumps(record, ensure_ascii=False, allow_nan=False).encode() + b"\n"
        end = os.fstat(self._file.fileno()).st_size
        try:
            if self._file.write(line) != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            os.ftruncate(self._file.fileno(), end)
            raise UserError(f"{self.path}: cannot be written ({error.strerror}); make room and run again") from error
        self.records[record["key"]] = dict(record)


@contextmanager
def open_store(path: Path) -> Generator[RecordStore]:
    """Open the store at `path`, making it if it is not there.

    Raises `UserError` for a file that cannot be opened, for one that another process holds, and for a line, other than
    a cut last one, that is no record.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        opened = path.open("ab", buffering=0)
    except OSError as error:
        raise UserError(f"{path}: cannot be opened ({error.strerror}); choose another --results-dir") from error
    with opened as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise UserError(f"{path}: another run is writing it; wait for that, or stop it") from error
        try:
            content = path.read_bytes()
            whole = content.rfind(b"\n") + 1
            records = parse_records(path, content[:whole])
            os.ftruncate(file.fileno(), whole)
            yield RecordStore(path, file, records)
            os.fsync(file.fileno())
        finally:
            fcntl.flock(file, fcntl.LOCK_UN)


def parse_records(path: Path, content: bytes) -> dict[str, dict[str, Any]]:
    records: dict[str, dict[str, Any]] = {}
    for number, line in enumerate(content.split(b"\n"), start=1):
        if not line:
            continue
        try:
            record = json.loads(line)
            records[record["key"]] = record
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path}, line {number}: no record; take the line out, and it is asked again") from error
    return records
