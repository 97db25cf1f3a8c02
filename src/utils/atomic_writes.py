"""Files written whole or not at all: in a hidden folder beside their place first, flushed to the disk, then renamed.

Apart from `artifacts`, which needs pandas: a record of a few bytes should not.
"""

import os
import re
import secrets
import shutil
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path

from src.utils.errors import UserError


@contextmanager
def write_atomically(path: Path) -> Generator[Path]:
    """Yield a temporary path in the folder of `path`; what was written there takes its place when the block ends.

    If the block raises, `path` is untouched and the temporary file gone. A full disk, a read-only folder and the like
    raise `UserError`. A kill leaves at most the folder `.<name>.<pid>-<random>.tmp`; the next save of that name removes
    it.
    """
    with write_together([path]) as (temporary,):
        yield temporary


@contextmanager
def write_together(paths: Sequence[Path]) -> Generator[list[Path]]:
    """Yield a temporary path for each of `paths`, which share a folder; at the end rename them in that order.

    All lie in one hidden folder named after the last of `paths`, and so does what a library puts beside the file that
    it writes (safetensors renames a temporary file of its own).
    """
    folder = paths[0].parent
    staging = folder / f".{paths[-1].name}.{os.getpid()}-{secrets.token_hex(4)}.tmp"
    try:
        staging.mkdir(parents=True)
        staged = [staging / path.name for path in paths]
        yield staged
        for temporary in staged:
            flush(temporary)
        for path, temporary in zip(paths, staged, strict=True):
            replace(temporary, path)
        flush_one(folder)
    except OSError as error:
        reason = error.strerror or error
        raise UserError(
            f"{paths[0]}: cannot be written ({reason}); mend that, or give --results-dir another folder"
        ) from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    remove_leftovers(paths[-1])


def replace(temporary: Path, path: Path) -> None:
    """Rename; a folder cannot be renamed over one with files, so the old one steps aside into the staging folder."""
    if path.is_dir():
        path.rename(temporary.with_name(f"old {path.name}"))
    temporary.replace(path)


def flush(path: Path) -> None:
    """Flush a file, or a folder and all in it, to the disk (fsync)."""
    if path.is_dir():
        for inner in path.rglob("*"):
            flush_one(inner)
    flush_one(path)


def flush_one(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_leftovers(path: Path) -> None:
    """Remove what killed saves of `path` left; a process that is alive may still be writing its own."""
    pattern = re.compile(rf"\.{re.escape(path.name)}\.(\d+)-[0-9a-f]{{8}}\.tmp")
    for file in path.parent.iterdir():
        match = pattern.fullmatch(file.name)
        if match and not is_alive(int(match[1])):
            shutil.rmtree(file, ignore_errors=True)


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True
