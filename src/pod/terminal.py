"""What comes from a pod as it may be shown: no control character that a terminal would obey.

A pod is not trusted, and neither is what a model says in its log: escape sequences could set the title, write the
clipboard, or paint over what was said before. Line ends, tabs and the carriage returns of progress bars stay.
"""

import codecs
import re
from typing import Any

SEQUENCE = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]")  # CSI, ECMA-48 section 5.4: colours and cursor moves are left out
CONTROL = re.compile(
    r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]"
)  # C0, C1, and turning lines round


def harmless(text: str) -> str:
    """The text without sequences, every other control character made visible as U+FFFD."""
    return CONTROL.sub("\ufffd", SEQUENCE.sub("", text))


def harmless_json(value: Any) -> Any:
    """The value with every text in it, names of fields included, made harmless."""
    if isinstance(value, str):
        return harmless(value)
    if isinstance(value, list):
        return [harmless_json(item) for item in value]
    if isinstance(value, dict):
        return {harmless(name): harmless_json(item) for name, item in value.items()}
    return value


class HarmlessText:
    """Bytes as they come, pieces ending anywhere, to text that may be shown."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def __call__(self, piece: bytes) -> str:
        return harmless(self._decoder.decode(piece))
