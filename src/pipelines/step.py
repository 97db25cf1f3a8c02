"""A step of a study: one script, what it reads, which settings it depends on, what it writes, and whether that holds.

Both studies declare their steps with this (`persona_study`, `judge_study`). Scripts take their provenance from the
declaration and the runner decides from it what is stale, so that both mean the same.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from src.utils.artifacts import verify_artifact
from src.utils.cli import COMMON_OPTIONS, options_of
from src.utils.errors import UserError
from src.utils.manifests import Freshness, Provenance, is_fresh, read_manifest, refuse_foreign_overwrite, sha256_path


class AnyStudy(Protocol):
    """What a step needs to know of a study: a configuration with `profile` and `model.world`."""

    @property
    def config(self) -> Any: ...


StudyT = TypeVar("StudyT", bound=AnyStudy)


@dataclass(frozen=True)
class Step(Generic[StudyT]):
    """One script. `artefact` is what it is for; `inputs` hashes what it reads and raises where that is missing.

    `companions` are the artefacts that it writes beside that, with manifests of their own. `keys` are the dotted
    config keys that are options of the script, `common_options` and `own_options` those that are no setting;
    `given(study, is_forced)` are words that the runner adds.
    """

    name: str
    script: str
    keys: tuple[str, ...]
    artefact: Callable[[StudyT], Path]
    settings: Callable[[Any], dict[str, Any]]
    inputs: Callable[[StudyT], dict[str, str]]
    reads: tuple[str, ...] = ()  # names of the steps whose artefacts it takes
    also_reads: Callable[[StudyT], tuple[str, ...]] = lambda study: ()  # those that it takes under some settings
    is_needed: Callable[[StudyT], bool] = lambda study: True
    why_not_needed: Callable[[StudyT], str] = lambda study: "nothing asks for it"
    companions: Callable[[StudyT], Sequence[Path]] = lambda study: ()
    find_gap: Callable[[StudyT], str | None] = lambda study: None  # what its artefact lacks and another run may fill
    common_options: tuple[str, ...] = COMMON_OPTIONS
    own_options: tuple[str, ...] = ()
    given: Callable[[StudyT, bool], tuple[str, ...]] = lambda study, is_forced: ("--force",) if is_forced else ()

    @property
    def options(self) -> set[str]:
        """The names of all options that its script knows."""
        return (options_of(self.keys) - set(COMMON_OPTIONS)) | {*self.common_options, *self.own_options}

    def freshness(self, study: StudyT, provenance: Provenance) -> Freshness:
        """Whether the artefact and all its companions can be kept."""
        found = is_fresh(self.artefact(study), provenance)
        for path in self.companions(study):
            if not found:
                break
            companion = is_fresh(path, provenance)
            found = found if companion else Freshness(False, f"{path.name}: {companion.reason}")
        gap = self.find_gap(study) if found else None
        return Freshness(False, gap) if gap else found

    def refuse_overwrite(self, study: StudyT, is_forced: bool) -> None:
        """Raise `UserError` if the artefact belongs to another profile or world, unless `is_forced`."""
        config = study.config
        refuse_foreign_overwrite(self.artefact(study), config.profile, config.model.world, is_forced)

    def provenance(self, study: StudyT) -> Provenance:
        """What this step declares about a run of it now; its inputs must be there."""
        config = study.config
        settings = self.settings(config)
        seeds = {section: values.pop("seed") for section, values in settings.items() if "seed" in values}
        return Provenance(
            step=self.name,
            profile=config.profile,
            world=config.model.world,
            config=settings,
            seeds=seeds,
            inputs=self.inputs(study),
        )


def keys_of(section: str, *names: str) -> tuple[str, ...]:
    return tuple(f"{section}.{name}" for name in names)


def made_by(step_name: str, study: AnyStudy, *paths: Path) -> dict[str, str]:
    """Name -> SHA-256 of what an earlier step wrote.

    `UserError` names that step where it is missing or damaged, and refuses what another profile or world made.
    """
    hashes = {}
    for path in paths:
        manifest = verify_artifact(path, made_by=step_name)
        owner = (study.config.profile, study.config.model.world)
        if manifest is not None and (manifest.profile, manifest.world) != owner:
            raise UserError(
                f"{path}: was made under profile {manifest.profile}, world {manifest.world}; name the same here, "
                "or another --results-dir"
            )
        hashes[path.name] = manifest.sha256 if manifest is not None else sha256_path(path)
    return hashes


def check_same_source(path: Path, source: Path, step_name: str) -> None:
    """Raise `UserError` if `path` was made from another `source` than the one that is there now."""
    made, current = read_manifest(path), read_manifest(source)
    if made and current and made.inputs.get(source.name) != current.sha256:
        raise UserError(f"{path}: was made from an older {source.name}; run {step_name} first")
