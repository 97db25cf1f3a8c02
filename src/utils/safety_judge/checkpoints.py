"""The trainer's checkpoints: where an unfinished training is kept, and when it may be continued or thrown away."""

import json
import shutil
from pathlib import Path

from src.utils.artifacts import open_resumable
from src.utils.errors import UserError
from src.utils.manifests import Provenance, as_json


def open_checkpoints(folder: Path, provenance: Provenance, is_resuming: bool, is_forced: bool) -> Path:
    """The folder for checkpoints: with the unfinished training if it is resumed, else empty.

    An unfinished training is neither thrown away without `is_forced` nor continued with other settings or data:
    `UserError`. Resuming where nothing is unfinished is starting; of both wishes, resuming counts.
    """
    if not any(folder.glob("checkpoint-*")) or (is_forced and not is_resuming):
        shutil.rmtree(folder, ignore_errors=True)
    elif not is_resuming:
        raise UserError(f"{folder}: holds a training that was stopped; --resume continues it, --force starts over")
    elif (changed := first_difference(folder, provenance)) is not None:
        raise UserError(
            f"{folder}: the training that was stopped had another {changed}; "
            "give --resume the same options, or --force to start over"
        )
    return open_resumable(folder, provenance)


def first_difference(folder: Path, provenance: Provenance) -> str | None:
    """The first setting, seed or input in which the plan of a folder differs; None if it is this training's."""
    try:
        plan = json.loads((folder / "plan.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return "plan (it cannot be read)"
    now = {"config": as_json(provenance.config), "seeds": dict(provenance.seeds), "inputs": dict(provenance.inputs)}
    before, after = (flattened({name: state.get(name) for name in now}) for state in (plan, now))
    return next((key for key in sorted(before.keys() | after.keys()) if before.get(key) != after.get(key)), None)


def flattened(value: object, prefix: str = "") -> dict[str, object]:
    """Nested settings under dotted names."""
    if not isinstance(value, dict):
        return {prefix: value}
    found: dict[str, object] = {}
    for key, item in value.items():
        found |= flattened(item, f"{prefix}.{key}" if prefix else str(key))
    return found
