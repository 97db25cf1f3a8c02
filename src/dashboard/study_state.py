"""Where a persona study stands: which results folders there are, and each step's state by its manifests."""

import contextlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import Literal

from huggingface_hub import constants

from src.dashboard.reading import Stamp, stamp_of
from src.pipelines.persona_study import STEPS, Step, Study
from src.pipelines.step_command import command_of
from src.utils.config import PROJECT_ROOT, load_config
from src.utils.errors import UserError
from src.utils.manifests import read_manifest

StepStatus = Literal["fresh", "stale", "missing", "unknown", "not needed"]
MARKS: dict[StepStatus, str] = {"fresh": "✓", "stale": "↻", "missing": "○", "unknown": "?", "not needed": "·"}
ARTEFACTS = ("persona_data.pkl", "em_rates.json", "question_report.json", "decomposition_verdict.json")


@dataclass(frozen=True)
class StepState:
    """One step. `reason` is one line; `made` and `seconds` come from the artefact's manifest, None without one."""

    name: str
    status: StepStatus
    reason: str
    artefact: str
    made: datetime | None
    seconds: float | None
    command: str


def find_results(root: Path) -> list[Path]:
    """The results folders at and directly below `root`; `root` first, also when there is nothing in it yet."""
    below = sorted(
        path for path in root.glob("*") if path.is_dir() and any((path / name).exists() for name in ARTEFACTS)
    )
    return [root, *below]


def study_of(results_dir: Path) -> Study:
    """The study of a folder under the profile and world of what lies in it; the default one where nothing does.

    A damaged manifest is passed over, and a profile that no longer exists raises `UserError`.
    """
    profile = world = None
    for name in ARTEFACTS:
        with contextlib.suppress(UserError):
            manifest = read_manifest(results_dir / name)
            if manifest is not None:
                profile, world = manifest.profile, manifest.world
                break
    config = load_config(profile, {} if world is None else {"model.world": world})
    is_default = results_dir.absolute() == PROJECT_ROOT / "results"
    return Study(config, results_dir, PROJECT_ROOT / "cluster_plots" if is_default else results_dir / "cluster_plots")


def step_states(study: Study) -> Sequence[StepState]:
    """Every step in order; looked at again only where a file that a step writes has changed."""
    return _step_states(study.results_dir, study.config.profile, study.config.model.world, stamp_of(*outputs_of(study)))


@lru_cache(maxsize=8)
def _step_states(results_dir: Path, profile: str, world: str | None, stamp: Stamp) -> Sequence[StepState]:
    study = study_of(results_dir)
    with without_network():
        return tuple(step_state(step, study) for step in STEPS)


def outputs_of(study: Study) -> list[Path]:
    return [path for step in STEPS for path in (step.artefact(study), *step.companions(study))]


def size_of(paths: Iterable[Path]) -> int:
    """Bytes of the files among them: what a look at the steps has to read, since it compares hashes."""
    return sum(path.stat().st_size for path in paths if path.is_file())


def step_state(step: Step, study: Study) -> StepState:
    """The state of one step under the settings of its profile as they are now."""
    path = step.artefact(study)
    manifest = None
    with contextlib.suppress(UserError):  # a damaged manifest is the reason that `freshness` gives
        manifest = read_manifest(path)
    status, reason = status_of(step, study, path)
    return StepState(
        name=step.name,
        status=status,
        reason=reason,
        artefact=path.name,
        made=manifest.created if manifest else None,
        seconds=manifest.wall_seconds if manifest else None,
        command=command_of(step, study),
    )


def status_of(step: Step, study: Study, path: Path) -> tuple[StepStatus, str]:
    if not step.is_needed(study):
        return "not needed", step.why_not_needed(study)
    if not path.exists():
        return "missing", "not made yet"
    try:
        freshness = step.freshness(study, step.provenance(study))
    except UserError as error:  # what it was made from is gone, or cannot be had here
        return "unknown", error.message
    return ("fresh" if freshness else "stale"), freshness.reason


@contextlib.contextmanager
def without_network():
    """A look at a study asks no hub: its own process alone, trainings started from here are not touched."""
    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before
