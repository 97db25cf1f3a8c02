"""Asking the user before requests that cost money."""

import sys

from src.utils.errors import UserError


def confirm(estimate_line: str, model: str, yes: bool, question: str = "Start?") -> None:
    """Print what a run would ask of `model`, and return only where the user agrees or `yes` was given.

    `question` names what would be done. Raises `UserError`: exit code 1 on anything but y or yes, 2 where stdin is no
    terminal and nobody can be asked.
    """
    print(f"{model}: {estimate_line}", flush=True)
    if yes:
        return
    if not sys.stdin.isatty():
        what = question.rstrip("?").lower()
        raise UserError(
            f"nobody can be asked whether to {what} (stdin is no terminal); --yes does it without asking", 2
        )
    try:
        answer = input(f"{question} [y/N] ")
    except EOFError:
        answer = ""
    if answer.strip().lower() not in ("y", "yes"):
        raise UserError("not confirmed; nothing was done")
