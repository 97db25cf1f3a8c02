"""What made an artefact: the JSON beside it, and whether it still holds.

Writing artefacts together with their manifests is left to `artifacts`.
"""

import hashlib
import json
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError

from src.utils.errors import UserError

PACKAGES = ("torch", "transformers", "peft", "pandas", "numpy", "scikit-learn", "plotly")


class Manifest(BaseModel):
    """The record beside an artefact. It names files and steps, never a machine, a user or a folder."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True, serialize_by_alias=True)

    schema_version: Literal[1] = 1
    artefact: str
    sha256: str
    files: dict[str, str]  # name -> SHA-256: the companions of a file, or the files of a folder
    layout: dict[str, JsonValue] = Field(alias="schema")  # `schema` itself is a method of BaseModel
    step: str
    profile: str
    world: str | None
    config: dict[str, JsonValue]
    seeds: dict[str, int]
    inputs: dict[str, str]  # label -> SHA-256
    git_commit: str | None
    git_dirty: bool | None
    packages: dict[str, str]
    python: str
    wall_seconds: float
    peak_memory_bytes: int
    created: datetime


@dataclass(frozen=True)
class GitState:
    """The commit of this code and whether the tree differs from it; None where there is no git or no commit."""

    commit: str | None
    dirty: bool | None


@cache
def git_state() -> GitState:
    """Asked once a process, by its first `Provenance`: a commit made while a step runs is not the code that it runs."""

    def git(*arguments: str) -> str:
        folder = Path(__file__).parent
        return subprocess.run(
            ["git", *arguments], cwd=folder, capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        return GitState(commit=git("rev-parse", "--verify", "HEAD"), dirty=bool(git("status", "--porcelain")))
    except (OSError, subprocess.CalledProcessError):
        return GitState(commit=None, dirty=None)


@dataclass(frozen=True)
class Provenance:
    """What a step declares about itself; its clock starts at construction.

    `config` is the slice of the config on which the step depends, as plain JSON (paths in it relative to the
    repository); `inputs` maps labels to SHA-256, see `hash_inputs`.
    """

    step: str
    profile: str
    world: str | None = None
    config: Mapping[str, Any] = field(default_factory=dict)
    seeds: Mapping[str, int] = field(default_factory=dict)
    inputs: Mapping[str, str] = field(default_factory=dict)
    code: GitState = field(default_factory=git_state)
    started: float = field(default_factory=time.perf_counter)

    def manifest(self, artefact: str, sha256: str, files: dict[str, str], schema: Mapping[str, Any]) -> Manifest:
        """The manifest as of now: wall time since construction, peak memory of this process so far."""
        return Manifest(
            artefact=artefact,
            sha256=sha256,
            files=files,
            layout=as_json(schema),
            step=self.step,
            profile=self.profile,
            world=self.world,
            config=as_json(self.config),
            seeds=dict(self.seeds),
            inputs=dict(self.inputs),
            git_commit=self.code.commit,
            git_dirty=self.code.dirty,
            packages=installed_versions(),
            python=platform.python_version(),
            wall_seconds=round(time.perf_counter() - self.started, 3),
            peak_memory_bytes=peak_memory_bytes(),
            created=datetime.now(UTC).replace(microsecond=0),
        )


@dataclass(frozen=True)
class Freshness:
    """Whether an artefact can be kept, and the reason in one line; true in a condition when it can."""

    fresh: bool
    reason: str

    def __bool__(self) -> bool:
        return self.fresh


def is_fresh(path: Path, provenance: Provenance) -> Freshness:
    """Compare what `provenance` declares, and the files' hashes, with the manifest of `path`.

    Commit, versions and wall time are recorded, never compared. A damaged manifest is a reason, not an error.
    """
    if not path.exists():
        return Freshness(False, "not made yet")
    try:
        manifest = read_manifest(path)
    except UserError as error:
        return Freshness(False, error.message)
    if manifest is None:
        return Freshness(False, "has no manifest")
    change = (
        _first_change(
            {"step": manifest.step, "profile": manifest.profile, "world": manifest.world},
            {"step": provenance.step, "profile": provenance.profile, "world": provenance.world},
        )
        or _first_change(manifest.config, as_json(provenance.config), "config changed: ")
        or _first_change(manifest.seeds, provenance.seeds, "seeds changed: ")
        or _input_change(manifest.inputs, provenance.inputs)
        or find_damage(path, manifest)
    )
    return Freshness(False, change) if change else Freshness(True, "up to date")


def refuse_foreign_overwrite(
    path: Path, profile: str, world: str | None, force: bool, option: str = "--results-dir"
) -> None:
    """Raise `UserError` if `path` was made under another profile or world, or by nobody knows whom, unless `force`."""
    if force or not path.exists():
        return
    manifest = read_manifest(path)
    if manifest is None and is_unfinished(path):
        return
    if manifest is None:
        owner = "has no manifest, so what made it is unknown"
    elif (manifest.profile, manifest.world) != (profile, world):
        owner = f"belongs to {_owner(manifest.profile, manifest.world)}"
    else:
        return
    raise UserError(
        f"{path}: {owner}, and this run is {_owner(profile, world)}; "
        f"give {option} another folder, or --force to overwrite"
    )


def is_unfinished(path: Path) -> bool:
    """Whether a save of `path` was killed between its renames: its manifest, the last, is still staged."""
    manifest = manifest_path(path).name
    staging = path.parent.glob(f".{manifest}.*.tmp")
    return any((folder / manifest).exists() and not (folder / path.name).exists() for folder in staging)


def manifest_path(path: Path) -> Path:
    return path.with_name(f"{path.name}.manifest.json")


def read_manifest(path: Path) -> Manifest | None:
    """The manifest of the artefact at `path`, None if it has none; `UserError` if damaged or of another version."""
    file = manifest_path(path)
    try:
        return Manifest.model_validate_json(file.read_bytes())
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror}); check the path") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        fault = f"no manifest of this version ({where}: {first['msg']})" if where else f"damaged ({first['msg']})"
        raise UserError(f"{file}: {fault}; run the step that makes {path.name} again, with --force") from error


def find_damage(path: Path, manifest: Manifest) -> str | None:
    """How the files at `path` differ from what their manifest lists, in one phrase; None if they do not."""
    companions = {} if path.is_dir() else manifest.files
    for name, sha256 in {path.name: manifest.sha256, **companions}.items():
        file = path.with_name(name)
        if not file.exists():
            return f"file missing: {name}"
        if sha256_path(file) != sha256:
            return f"file changed since it was written: {name}"
    return None


def hash_inputs(paths: Mapping[str, Path]) -> dict[str, str]:
    """Label -> SHA-256 of a file or folder; `UserError` for a missing one."""
    for label, path in paths.items():
        if not path.exists():
            raise UserError(f"{path}: input {label} does not exist; run the step that makes it, or correct the path")
    return {label: sha256_path(path) for label, path in paths.items()}


def sha256_path(path: Path) -> str:
    """SHA-256 of a file or a folder; one that cannot be read raises `UserError`."""
    try:
        return sha256_folder(path) if path.is_dir() else sha256_file(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); mend that or name another") from error


def sha256_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_folder(path: Path) -> str:
    """SHA-256 over the sorted relative names and hashes of the files in it; empty folders do not count."""
    lines = (f"{name}\0{sha256}\n" for name, sha256 in folder_hashes(path).items())
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def folder_hashes(path: Path) -> dict[str, str]:
    """Relative name, with forward slashes, -> SHA-256 of each file, sorted by name."""
    names = sorted(file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file())
    return {name: sha256_file(path / name) for name in names}


def as_json(value: Mapping[str, Any]) -> dict[str, Any]:
    """`value` as it comes back from JSON (tuples become lists), so that a comparison with a read one holds."""
    return json.loads(json.dumps(dict(value), allow_nan=False))


def installed_versions() -> dict[str, str]:
    """Versions of the packages that results depend on, as far as they are installed, without importing them."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def peak_memory_bytes() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # Linux counts in KiB


def _first_change(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> str | None:
    """The first differing key, nested keys joined by dots: "config changed: model.layers 3 -> 4"."""
    for key in sorted(old.keys() | new.keys()):
        before, after = old.get(key), new.get(key)
        if isinstance(before, dict) and isinstance(after, dict):
            if change := _first_change(before, after, f"{prefix}{key}."):
                return change
        elif (key in old) != (key in new) or before != after:
            return f"{prefix}{key} {_shown(old, key)} -> {_shown(new, key)}"
    return None


def _shown(values: Mapping[str, Any], key: str) -> str:
    text = json.dumps(values[key], ensure_ascii=False) if key in values else "absent"
    return text if len(text) <= 60 else f"{text[:57]}..."


def _input_change(old: Mapping[str, str], new: Mapping[str, str]) -> str | None:
    for label in sorted(old.keys() | new.keys()):
        if old.get(label) != new.get(label):
            verb = "added" if label not in old else "no longer used" if label not in new else "changed"
            return f"input {label} {verb}"
    return None


def _owner(profile: str, world: str | None) -> str:
    return f"profile {profile}" + (f", world {world}" if world else "")
