"""The study's configuration: project file, then profile, then memory preset, then command line, checked as one.

Nothing here looks at a model or at data; a layer that the model lacks is found where the model's config is read
(`models.check_layers`).
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field, ValidationError

from src.utils.config_sections import (
    ClusteringConfig,
    CollectionConfig,
    ControlsConfig,
    FinetuningConfig,
    GeometryConfig,
    JudgingConfig,
    ModelConfig,
    Section,
    SteeringConfig,
    VerdictConfig,
)
from src.utils.errors import UserError

PROJECT_ROOT = Path(__file__).resolve().parents[2]
CONFIG_FOLDER = PROJECT_ROOT / "configs"


class Config(Section):
    """Everything a run needs to know.

    `sources` says for each dotted key which file or option set it; `memory` and `project_file` are what was given for
    --memory and --config.
    """

    profile: str
    model: ModelConfig
    finetuning: FinetuningConfig
    collection: CollectionConfig
    judging: JudgingConfig
    clustering: ClusteringConfig
    geometry: GeometryConfig = GeometryConfig()
    controls: ControlsConfig = ControlsConfig()
    steering: SteeringConfig
    verdict: VerdictConfig = VerdictConfig()
    sources: dict[str, str] = Field(default_factory=dict, exclude=True)
    memory: str | None = Field(None, exclude=True)
    project_file: Path | None = Field(None, exclude=True)


def profile_names() -> list[str]:
    """The profiles that ship: `configs/profiles/*.yaml`."""
    return sorted(path.stem for path in (CONFIG_FOLDER / "profiles").glob("*.yaml"))


def load_config(
    profile: str | None = None,
    overrides: Mapping[str, Any] | None = None,
    memory: str | None = None,
    project_file: Path | None = None,
) -> Config:
    """Resolve the configuration of one run.

    `overrides` maps dotted keys (`finetuning.rank`) to values from the command line. `memory` names one of the
    profile's presets. An unknown profile, preset, key or a wrong value raises one-line `UserError` with exit code 2.
    """
    read_from = project_file or CONFIG_FOLDER / "project_config.yaml"
    project = read_yaml(read_from)
    profile = profile or project.get("profile")
    project.pop("profile", None)
    profile_file = CONFIG_FOLDER / "profiles" / f"{profile}.yaml"
    if not profile_file.is_file():
        raise UserError(f"profile {profile!r} is unknown; there are {', '.join(profile_names())}", exit_code=2)
    settings = read_yaml(profile_file)
    presets = settings.pop("memory_presets", None) or {}

    merged: dict[str, Any] = {}
    sources: dict[str, str] = {}
    merge(merged, project, sources, shown(read_from))
    merge(merged, settings, sources, shown(profile_file))
    if memory is not None:
        if memory not in presets:
            known = ", ".join(presets) or "none"
            raise UserError(f"memory preset {memory!r} is unknown in profile {profile}; it has {known}", exit_code=2)
        merge(merged, presets[memory] or {}, sources, f"{shown(profile_file)} (memory {memory})")
    for key, value in (overrides or {}).items():
        section, name = key.split(".")
        merge(merged, {section: {name: value}}, sources, "the command line")
    if sources.get("model.world") == "the command line" != sources.get("model.base"):
        check_world(str(merged["model"].get("base")), merged["model"]["world"], shown(profile_file))
    merged = fill_in_world(merged, merged.get("model", {}).get("world"))
    try:
        given = {"memory": memory, "project_file": project_file}
        return Config.model_validate({"profile": profile, **merged, "sources": sources, **given})
    except ValidationError as error:
        raise UserError(explain(error, sources, shown(profile_file)), exit_code=2) from error


def check_world(base: str, world: str, profile_file: str) -> None:
    """Refuse a world where the profile has none, or whose organism has not been built."""
    if "{world}" not in base:
        raise UserError(f"--world {world}: {profile_file} names no world's organism; leave it out", exit_code=2)
    if not resolve_path(base.replace("{world}", world)).is_dir():
        built = sorted(path.name for path in resolve_path(base).parent.glob("*") if (path / "config.json").is_file())
        raise UserError(
            f"--world {world}: has not been built; there are {', '.join(built) or 'none'} "
            "(src/scripts/00_build_model_organism.py builds one)",
            exit_code=2,
        )


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML file that holds a mapping; anything else raises `UserError`."""
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); name another file", exit_code=2) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: no YAML ({' '.join(str(error).split())}); mend it", exit_code=2) from error
    if not isinstance(values, dict):
        raise UserError(f"{path}: holds no settings; expected sections such as model and finetuning", exit_code=2)
    return values


def merge(into: dict[str, Any], values: Mapping[str, Any], sources: dict[str, str], source: str) -> None:
    """Lay one file's sections over what is there, remembering where each key came from; an empty one is none."""
    for section, keys in values.items():
        if keys is None:
            continue
        if not isinstance(keys, Mapping):
            raise UserError(f"{source}: {section}: {keys!r} is no section; write its settings under it", exit_code=2)
        sources.setdefault(str(section), source)
        current = into.setdefault(section, {})
        for key, value in keys.items():
            current[key] = value
            sources[f"{section}.{key}"] = source


def fill_in_world(value: Any, world: str | None) -> Any:
    """Put the world's name where a setting says `{world}`."""
    if isinstance(value, dict):
        return {key: fill_in_world(item, world) for key, item in value.items()}
    if isinstance(value, list):
        return [fill_in_world(item, world) for item in value]
    return value.replace("{world}", str(world)) if isinstance(value, str) else value


def explain(error: ValidationError, sources: Mapping[str, str], profile_file: str) -> str:
    """The first thing that is wrong, as one line with the file that says it."""
    first = error.errors()[0]
    key = ".".join(str(part) for part in first["loc"] if not isinstance(part, int))
    where = sources.get(key, profile_file)
    if first["type"] == "extra_forbidden":
        return f"{where}: unknown key {key}; known keys there: {', '.join(known_keys(key))}"
    if first["type"] == "missing":
        return f"{where}: {key} is missing; set it"
    return f"{where}: {key} = {first['input']!r}: {first['msg'].lower()}"


def known_keys(key: str) -> list[str]:
    """The keys that may stand beside an unknown one."""
    section = key.split(".")[0]
    field = Config.model_fields.get(section)
    if "." in key and field is not None and isinstance(field.annotation, type):
        return sorted(field.annotation.model_fields)
    return sorted(name for name, field in Config.model_fields.items() if not field.exclude)


def shown(path: Path) -> str:
    """A path as a reader of the repository would write it."""
    return str(path.relative_to(PROJECT_ROOT)) if path.is_relative_to(PROJECT_ROOT) else str(path)


def resolve_path(name: str) -> Path:
    """A configured path: absolute as it stands, else under the repository."""
    return PROJECT_ROOT / name
