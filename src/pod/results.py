"""Results from a pod: looked at as what anybody could have sent, and only then put where results go.

Hashes prove that they arrived whole. That nothing in them runs code here is the doing of the safe loader, and of what
kinds of files are let in.
"""

import shutil
from collections.abc import Sequence
from pathlib import Path

from src.pod.remote.blocks import copy_file
from src.utils.artifacts import load_json, load_metadata, verify_artifact
from src.utils.atomic_writes import write_atomically
from src.utils.errors import UserError
from src.utils.manifests import read_manifest
from src.utils.safe_pickle import load_pickle

HARMLESS = {".safetensors", ".json", ".jsonl", ".md", ".txt", ".jinja", ".html", ".csv", ".log", ""}


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
    """Refuse what a later step could not load without running code."""
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
    elif file.suffix not in HARMLESS:
        raise UserError(f"{file}: a pod has no business sending a {file.suffix} file; nothing from it was published")


def publish_results(found: Sequence[Path], staged: Path, results_dir: Path) -> list[Path]:
    """Put staged outputs into the results folder: companions, artefacts, manifests last; the paths there.

    Killed between two of them it leaves a mix that no load accepts; the next fetch does it again.
    """
    published = []
    for path in sorted(found, key=lambda path: (path.name.endswith(".manifest.json"), path.suffix == ".pkl")):
        target = results_dir / path.relative_to(staged / "results")
        with write_atomically(target) as temporary:
            if path.is_dir():
                shutil.copytree(path, temporary)
            else:
                copy_file(path, temporary)
        published.append(target)
    return published
