"""JSONL as it enters: one JSON value a line, plain or gzipped. What a value must be is left to who reads it."""

import gzip
import json
import zlib
from collections.abc import Iterator
from pathlib import Path

from src.utils.errors import UserError


def read_jsonl(path: Path) -> Iterator[tuple[int, object]]:
    """Line number and value of every non-empty line of a `.jsonl` or `.jsonl.gz` file.

    Raises `UserError` for a file that cannot be read and, with its number, for a line that is no JSON.
    """
    try:
        content = path.read_bytes()
        # a newline only: splitlines would also part a text at U+2028
        lines = (gzip.decompress(content) if path.suffix == ".gz" else content).decode("utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise _unreadable(path, "not UTF-8 text") from error
    except (OSError, EOFError, zlib.error) as error:
        raise _unreadable(path, getattr(error, "strerror", None) or str(error)) from error
    for number, line in enumerate(lines, start=1):
        if line.strip():
            try:
                yield number, json.loads(line)
            except json.JSONDecodeError as error:
                raise UserError(f"{path}, line {number}: no JSON ({error.msg}); mend the line") from error


def _unreadable(path: Path, reason: str) -> UserError:
    return UserError(f"{path}: cannot be read ({reason}); give a .jsonl or .jsonl.gz file")
