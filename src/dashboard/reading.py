"""Reading what may be missing, half-written, damaged or somebody else's: a value, or the reason why there is none.

Each file is read once for each state it is in (path, modification time, size), by whichever session asks first. What
is read is shared between sessions: nobody changes it.
"""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from threading import Lock, Thread
from typing import Any, Generic, TypeVar

from src.utils.errors import UserError
from src.utils.manifests import manifest_path

Value = TypeVar("Value")
Stamp = tuple[tuple[str, int, int], ...]  # path, modification time in ns, size; -1 twice where there is no file
KEPT = 400  # readings, the least recently used dropped first


@dataclass(frozen=True)
class Reading(Generic[Value]):
    """What a file says. `problem` is one line with file, reason and remedy; None where there is a value.

    `is_missing` if a file is not there at all, which is no fault of anybody's.
    """

    value: Value | None
    problem: str | None = None
    is_missing: bool = False


class Readings:
    """The latest reading of each file by each loader; one older than the file is replaced, not kept beside it."""

    def __init__(self, kept: int = KEPT) -> None:
        self.kept, self.lock = kept, Lock()
        self.known: OrderedDict[tuple[Any, ...], tuple[Stamp, Reading[Any]]] = OrderedDict()
        self.loading: dict[tuple[Any, ...], Lock] = {}

    def read(
        self, load: Callable[..., Value], *paths: Path, made_by: str, options: tuple[Any, ...] = ()
    ) -> Reading[Value]:
        """`load(*paths, *options)`, or why not; `made_by` is the command that makes the files.

        `load` is a function of a module: it is part of what a reading is kept under.
        """
        key, stamp = (load, paths, options), stamp_of(*paths)
        found = self.remembered(key, stamp)
        if found is not None:
            return found
        with self.lock:
            own = self.loading.setdefault(key, Lock())
        with own:  # who comes meanwhile waits for this reading; read side by side both would take twice as long
            found = self.remembered(key, stamp)
            if found is not None:
                return found
            reading = read_now(load, paths, made_by, options)
            with self.lock:
                self.known[key] = (stamp, reading)
                self.known.move_to_end(key)
                while len(self.known) > self.kept:
                    self.loading.pop(self.known.popitem(last=False)[0], None)
        return reading

    def remembered(self, key: tuple[Any, ...], stamp: Stamp) -> Reading[Any] | None:
        """The reading of files in this very state, if there is one."""
        with self.lock:
            found = self.known.get(key)
            if found is None or found[0] != stamp:
                return None
            self.known.move_to_end(key)
            return found[1]

    def read_ahead(self, load: Callable[..., Any], *paths: Path, made_by: str) -> None:
        """Read what will be asked for soon, in a thread; nothing where that is known already or being read."""
        key, stamp = (load, paths, ()), stamp_of(*paths)
        own = self.loading.get(key)
        if self.remembered(key, stamp) is None and not (own is not None and own.locked()):
            Thread(target=self.read, args=(load, *paths), kwargs={"made_by": made_by}, daemon=True).start()


READINGS = Readings()


def read(load: Callable[..., Value], *paths: Path, made_by: str, options: tuple[Any, ...] = ()) -> Reading[Value]:
    """`Readings.read` of what all sessions share."""
    return READINGS.read(load, *paths, made_by=made_by, options=options)


def read_now(
    load: Callable[..., Value], paths: tuple[Path, ...], made_by: str, options: tuple[Any, ...]
) -> Reading[Value]:
    """Read without remembering."""
    missing = next((path for path in paths if not path.exists()), None)
    if missing is not None:
        return Reading(None, f"{missing}: not there yet; made by: {made_by}", is_missing=True)
    try:
        return Reading(load(*paths, *options))
    except UserError as error:
        return Reading(None, " ".join(error.message.split()))
    except Exception as error:  # a file of another program or version can fail anywhere in what draws it
        detail = " ".join(str(error).split())[:200]
        names = ", ".join(str(path) for path in paths)
        return Reading(
            None,
            f"{names}: not what {made_by} writes in this version ({type(error).__name__}: {detail}); make it again",
        )


def stamp_of(*paths: Path) -> Stamp:
    """The state of the files and of the manifests beside them, without opening any."""
    return tuple(one for path in paths for one in (own_stamp(path), own_stamp(manifest_path(path))))


def own_stamp(path: Path) -> tuple[str, int, int]:
    try:
        found = path.stat()
    except OSError:
        return str(path), -1, -1
    return str(path), found.st_mtime_ns, found.st_size
