"""Results from a pod: looked at as what anybody could have sent, and only then put where results go.

Hashes prove that they arrived whole. That nothing in them runs code here is the doing of the safe loader, and of what
kinds of files are let in.
"""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from plotly.offline import get_plotlyjs

from src.pod.remote.blocks import copy_file
from src.utils.artifacts import load_json, load_metadata, verify_artifact
from src.utils.atomic_writes import write_atomically
from src.utils.errors import UserError
from src.utils.manifests import read_manifest, refuse_foreign_overwrite
from src.utils.record_store import open_store, parse_records
from src.utils.safe_pickle import load_pickle

HARMLESS = {".safetensors", ".json", ".jsonl", ".md", ".txt", ".jinja", ".html", ".csv", ".log", ""}
PLOTLY_JS = "plotly.min.js"  # beside pages; ours takes the place of the pod's
STORE = "judgements.jsonl"  # grows on both sides


def verify_results(staged: Path, outputs: Sequence[str]) -> list[Path]:
    """The staged outputs that are there, checked: manifests hold, pickles load through the allow-list, nothing runs.

    Raises `UserError` for the first that does not; nothing of it has gone anywhere then.
    """
    found = [staged / name for name in outputs if (staged / name).exists()]
    for path in found:
        if path.name.endswith(".manifest.json"):
            artefact = path.with_name(path.name.removesuffix(".manifest.json"))
            verify_artifact(artefact)
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            if file.is_file():
                check_file(file)
    return found


def check_file(file: Path) -> None:
    """Refuse what a later step could not load without running code; a page runs code in the browser as it is."""
    if file.is_symlink():
        raise UserError(f"{file}: is a link; nothing from the pod was published")
    if file.suffix == ".pkl":
        load_pickle(file)
    elif file.suffix == ".safetensors":
        load_metadata(file)
    elif file.name.endswith(".manifest.json"):
        read_manifest(file.with_name(file.name.removesuffix(".manifest.json")))
    elif file.suffix == ".json":
        load_json(file)
    elif file.name == PLOTLY_JS:
        file.write_text(get_plotlyjs(), encoding="utf-8")
    elif file.name == STORE:
        parse_records(file, file.read_bytes())
    elif file.suffix not in HARMLESS:
        raise UserError(f"{file}: a pod has no business sending a {file.suffix} file; nothing from it was published")


def publish_results(found: Sequence[Path], staged: Path, folder: Path, force: bool = False) -> list[Path]:
    """Put what lies in the folder `staged` under the same names into `folder`; the paths there.

    Companions come first, then artefacts, manifests last.
    Killed between two of them it leaves a mix that no load accepts; the next fetch does it again. Raises `UserError`
    where an artefact of another profile or world is in the way, unless `force`.
    """
    published = []
    for path in found:
        if (made := read_manifest(path)) is not None:
            target = folder / path.relative_to(staged)
            refuse_foreign_overwrite(target, made.profile, made.world, force)
    for path in sorted(found, key=lambda path: (path.name.endswith(".manifest.json"), path.suffix == ".pkl")):
        target = folder / path.relative_to(staged)
        if path.name == STORE:
            add_records(path, target)
            continue
        with write_atomically(target) as temporary:
            if path.is_dir():
                shutil.copytree(path, temporary)
            else:
                copy_file(path, temporary)
        published.append(target)
    return published


def add_records(path: Path, target: Path) -> None:
    """Take into the store at `target` what the one at `path` knows and it does not, or has asked for later."""
    with open_store(target) as store:
        for key, record in parse_records(path, path.read_bytes()).items():
            known = store.get(key)
            if known is None or asked_at(record) > asked_at(known):
                store.append(record)


def asked_at(record: Mapping[str, Any]) -> int | float:
    """When a judgement was asked for; a pod may say anything."""
    asked = record.get("asked")
    return asked if isinstance(asked, int | float) else 0
