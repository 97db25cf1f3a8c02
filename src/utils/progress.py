"""One progress bar for everything that takes long: live on a terminal, and in a log a line every few seconds."""

import sys
from typing import Any, TextIO

from tqdm import tqdm

LOG_SECONDS = 5.0  # between two lines of a log; a terminal's bar moves ten times a second


class LogLines:
    """A stream that gets each state of a bar as a line of its own, in place of carriage returns and blanks."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def write(self, text: str) -> int:
        if line := text.strip():
            self.stream.write(f"{line}\n")
        return len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


def progress_bar(desc: str, unit: str, total: int | None = None, initial: int = 0, is_hidden: bool = False) -> tqdm:
    """A bar on standard error, to be updated and closed, or used as a context manager.

    Give `set_postfix` and `set_postfix_str` `refresh=False`: in a log, each refresh is a line.
    """
    settings: dict[str, Any] = {"desc": desc, "unit": unit, "total": total, "initial": initial, "disable": is_hidden}
    if not sys.stderr.isatty():
        settings |= {"file": LogLines(sys.stderr), "mininterval": LOG_SECONDS}
    return tqdm(**settings)
