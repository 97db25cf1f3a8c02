"""What stands where in an organism's folder, for those who only read it."""

from pathlib import Path

from src.utils.config import resolve_path
from src.utils.errors import UserError

GRAMMAR = "grammar.yaml"


def grammar_of(model: str) -> Path:
    """The grammar file of an organism; a model that has none raises `UserError`."""
    path = resolve_path(model) / GRAMMAR
    if not path.is_file():
        raise UserError(f"{model}: has no {GRAMMAR}, so the organism judge cannot read its answers; name an organism")
    return path
