"""Digests of local files, remembered by path, size and time of change, so that unchanged files are not read again."""

import json
import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from src.pod.remote.blocks import Digest, digest_file
from src.utils.atomic_writes import write_atomically
from src.utils.errors import UserError

SETTLED_SECONDS = 2.0  # a file changed more recently may change again within one tick of its file system's clock
SMALL_BYTES = 1 << 16  # faster to read than to remember


class DigestCache:
    """A JSON file of digests; a damaged one is an empty one."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._is_changed = False
        try:
            self._known: dict[str, dict] = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            self._known = {}

    def digest(self, paths: Sequence[Path]) -> list[Digest]:
        """Digests in the order of `paths`, side by side where they are not known; `UserError` for a missing one."""
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            return list(pool.map(self._digest_one, paths))

    def save(self) -> None:
        if self._is_changed:
            with write_atomically(self._path) as temporary:
                temporary.write_text(json.dumps(self._known), encoding="utf-8")

    def _digest_one(self, path: Path) -> Digest:
        try:
            stat = path.stat()
            if stat.st_size < SMALL_BYTES:
                return digest_file(path)
            state = [stat.st_size, stat.st_mtime_ns, stat.st_ino]
            key = str(path.absolute())
            known = self._known.get(key)
            if known is not None and known.get("state") == state:
                return Digest.from_json(known)
            digest = digest_file(path)
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror}); mend that, or name another file") from error
        if time.time() - stat.st_mtime > SETTLED_SECONDS:
            self._known[key] = {"state": state, **digest.as_json()}
            self._is_changed = True
        return digest
