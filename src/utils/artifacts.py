"""Artefacts on disk: written whole or not at all, with a manifest beside them, and checked when they are read.

Where an artefact has several files, all are staged first and renamed together, the manifest last: a save that was
killed half-way leaves the old artefact, the new one, or a mix that its manifest does not match and no load accepts.
What a manifest says and what makes an artefact stale is left to `manifests`.
"""

import json
import shutil
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file, save_file

from src.utils.atomic_writes import write_atomically, write_together
from src.utils.errors import UserError
from src.utils.manifests import (
    Manifest,
    Provenance,
    as_json,
    find_damage,
    folder_hashes,
    manifest_path,
    read_manifest,
    sha256_path,
)
from src.utils.safe_pickle import dump_pickle, load_pickle

Writer = Callable[[Path], object]
METADATA = "metadata"


def save_frame(
    frame: pd.DataFrame, path: Path, provenance: Provenance, tensors: Mapping[str, np.ndarray] | None = None
) -> Manifest:
    """Save a frame, with `tensors` in the safetensors file of the same stem as its companion if they are given.

    Equal content gives equal bytes, however the frame was put together. Raises `UserError` if it cannot be written or
    if it holds what `load_frame` would refuse, before anything is replaced.
    """
    frame = _canonical(frame)
    writers: dict[Path, Writer] = {path: lambda file: _write_pickle(frame, file)}
    schema: dict[str, Any] = {"rows": len(frame), "columns": {str(name): _kind(frame[name]) for name in frame.columns}}
    if tensors is not None:
        writers[path.with_suffix(".safetensors")] = lambda file: write_tensors(tensors, file)
        schema["tensors"] = {name: _kind(array) for name, array in tensors.items()}
    return save_artifact(path, writers, provenance, schema)


def save_object(value: Mapping[Any, Any], path: Path, provenance: Provenance) -> Manifest:
    """Save a dict of arrays, frames and builtins; no sets, whose order differs between processes."""
    schema = {str(key): _kind(item) for key, item in value.items()}
    return save_artifact(path, {path: lambda file: _write_pickle(dict(value), file)}, provenance, schema)


def save_tensors(
    tensors: Mapping[str, np.ndarray], path: Path, provenance: Provenance, metadata: Mapping[str, Any] | None = None
) -> Manifest:
    """Save arrays as safetensors, with a manifest of their own; `metadata` is plain data for `load_metadata`."""
    schema = {name: _kind(array) for name, array in tensors.items()}
    return save_artifact(path, {path: lambda file: write_tensors(tensors, file, metadata)}, provenance, schema)


def save_json(
    value: Mapping[str, Any], path: Path, provenance: Provenance, pages: Mapping[Path, str] | None = None
) -> Manifest:
    """Save plain data as indented JSON, with `pages`, HTML texts by path, as its companions.

    Raises `ValueError` for NaN and infinity, which JSON has not.
    """
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    texts = {path: text, **(pages or {})}
    writers: dict[Path, Writer] = {file: partial(_write_text, content) for file, content in texts.items()}
    return save_artifact(path, writers, provenance, {"keys": list(value)})


def save_folder(path: Path, fill: Writer, provenance: Provenance, schema: Mapping[str, Any] | None = None) -> Manifest:
    """Let `fill` write files into an empty temporary folder, then put that in the place of `path`."""

    def write(folder: Path) -> None:
        folder.mkdir()
        fill(folder)

    return save_artifact(path, {path: write}, provenance, schema or {})


def save_artifact(
    path: Path, writers: Mapping[Path, Writer], provenance: Provenance, schema: Mapping[str, Any]
) -> Manifest:
    """Save the artefact `path` of one or several files, or of a folder, and its manifest.

    `writers` holds `path` and its companions in the same folder; each is called with a temporary path and makes a file
    or a folder there. Nothing is renamed before all are written. Order: companions, `path`, manifest.
    """
    companions = [file for file in writers if file != path]
    if path not in writers or any(file.parent != path.parent for file in companions):
        raise ValueError(f"the writers of {path} are for it and for companions in its folder, not for {[*writers]}")
    with write_together([*companions, path, manifest_path(path)]) as (*staged, staged_manifest):
        for file, temporary in zip([*companions, path], staged, strict=True):
            writers[file](temporary)
        hashes = {file.name: sha256_path(temporary) for file, temporary in zip(companions, staged[:-1], strict=True)}
        files = folder_hashes(staged[-1]) if staged[-1].is_dir() else hashes
        manifest = provenance.manifest(path.name, sha256_path(staged[-1]), files, schema)
        _write_text(manifest.model_dump_json(indent=2) + "\n", staged_manifest)
    return manifest


def open_resumable(folder: Path, provenance: Provenance) -> Path:
    """The folder for the unfinished work of a step, cleared if another configuration or other inputs left it."""
    state = {
        "step": provenance.step,
        "config": as_json(provenance.config),
        "seeds": dict(provenance.seeds),
        "inputs": dict(provenance.inputs),
    }
    plan = folder / "plan.json"
    try:
        same = json.loads(plan.read_text(encoding="utf-8")) == state
    except (OSError, ValueError):
        same = False
    if not same:
        shutil.rmtree(folder, ignore_errors=True)
        with write_atomically(plan) as temporary:
            _write_text(json.dumps(state, indent=2) + "\n", temporary)
    return folder


def load_frame(path: Path, made_by: str | None = None) -> pd.DataFrame:
    """Load a frame; see `verify_artifact` for what is refused. A foreign pickle without manifest is not verified."""
    frame = _load_verified_pickle(path, made_by)
    if not isinstance(frame, pd.DataFrame):
        raise UserError(f"{path}: holds a {type(frame).__name__}, not a frame; check the path")
    return frame


def load_object(path: Path, made_by: str | None = None) -> dict[Any, Any]:
    """Load what `save_object` wrote; see `verify_artifact` for what is refused."""
    value = _load_verified_pickle(path, made_by)
    if not isinstance(value, dict):
        raise UserError(f"{path}: holds a {type(value).__name__}, not a dict; check the path")
    return value


def load_tensors(path: Path, made_by: str | None = None, of: Path | None = None) -> dict[str, np.ndarray]:
    """Load a safetensors file; `of` is the artefact whose companion it is, and whose manifest lists it."""
    manifest = verify_artifact(path if of is None else of, made_by)
    if of is not None and (manifest is None or path.name not in manifest.files):
        raise UserError(f"{path}: {of.name} does not list it among its files; run {made_by or 'its step'} again")
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: no safetensors file ({error}); run {made_by or 'its step'} again") from error


def load_metadata(path: Path) -> Any:
    """The plain data that `save_tensors` put into the header of a safetensors file; None if there is none."""
    try:
        with safe_open(path, framework="np") as file:
            header = file.metadata() or {}
        return json.loads(header[METADATA]) if METADATA in header else None
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{path}: no safetensors file ({error}); run its step again") from error


def load_json(path: Path, made_by: str | None = None) -> Any:
    """Load plain data; see `verify_artifact` for what is refused."""
    verify_artifact(path, made_by)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise UserError(f"{path}: no JSON ({error}); run {made_by or 'its step'} again") from error


def verify_artifact(path: Path, made_by: str | None = None) -> Manifest | None:
    """The manifest of the file or folder `path`, all of whose files have the hashes listed there.

    None if there is no manifest. Raises `UserError` if `path` is missing (naming `made_by`, the step that makes it),
    or if a file is missing or differs. That proves that the artefact is whole, not that it is honest.
    """
    if not path.exists():
        raise UserError(f"{path}: does not exist; " + (f"run {made_by} first" if made_by else "check the path"))
    manifest = read_manifest(path)
    if manifest is not None and (damage := find_damage(path, manifest)):
        raise UserError(f"{path}: half-written or changed since ({damage}); run {manifest.step} again")
    return manifest


def _load_verified_pickle(path: Path, made_by: str | None) -> object:
    verify_artifact(path, made_by)
    return load_pickle(path)


def _write_pickle(value: object, file: Path) -> None:
    dump_pickle(value, file)
    load_pickle(file)  # better refused now, while the value is in memory, than when the next step asks for it


def write_tensors(tensors: Mapping[str, np.ndarray], file: Path, metadata: Mapping[str, Any] | None = None) -> None:
    """A safetensors file; a full disk raises `OSError`, as it does elsewhere.

    `metadata` goes into its header as one JSON text: safetensors writes several in any order.
    """
    header = None if metadata is None else {METADATA: json.dumps(metadata, ensure_ascii=False, allow_nan=False)}
    try:
        save_file({name: np.asarray(array, order="C") for name, array in tensors.items()}, file, header)
    except SafetensorError as error:  # how safetensors reports a full disk
        raise OSError(str(error)) from error


def _write_text(text: str, file: Path) -> None:
    file.write_text(text, encoding="utf-8")


def _canonical(frame: pd.DataFrame) -> pd.DataFrame:
    """The same frame built anew from its columns: no trace in its bytes of the blocks and buffers it was made of."""
    columns: dict[Any, Any] = {}
    for name in frame.columns:
        column = frame[name]
        if column.dtype == object:
            cells = np.empty(len(column), dtype=object)
            for row, cell in enumerate(column):
                cells[row] = np.asarray(cell, order="C") if isinstance(cell, np.ndarray) else cell
            columns[name] = cells
        else:
            columns[name] = column.array.copy()
    return pd.DataFrame(columns, index=_canonical_index(frame.index), columns=_canonical_index(frame.columns))


def _canonical_index(index: pd.Index) -> pd.Index:
    if isinstance(index.dtype, pd.StringDtype):
        return pd.Index(index.array.copy(), name=index.name)  # pandas pickles that a slice's array is read-only
    return index.copy()


def _kind(value: object) -> Any:
    """What a manifest's schema says of a value: dtype and shape of an array, dtype of a column, else the type."""
    if isinstance(value, pd.Series):
        cells = value.dropna() if value.dtype == object else value.iloc[:0]
        return _kind(cells.iloc[0]) if len(cells) else str(value.dtype)
    if isinstance(value, np.ndarray):
        return f"{value.dtype}{list(value.shape)}"
    return type(value).__name__
