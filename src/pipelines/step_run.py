"""What every step's script does before its own work: options, config, staleness, refusing to eat another's results."""

from collections.abc import Sequence
from dataclasses import dataclass

from src.pipelines.persona_folder import Study
from src.pipelines.step import Step
from src.utils.cli import parse_arguments
from src.utils.config import Config
from src.utils.manifests import Provenance, refuse_foreign_overwrite


@dataclass(frozen=True)
class StepRun:
    """A step that has work to do: the study and the provenance under which its artefact is saved."""

    study: Study
    provenance: Provenance
    yes: bool  # whether requests that cost money need no confirmation
    force: bool  # whether to make again what is there

    @property
    def config(self) -> Config:
        return self.study.config


def begin_step(step: Step, description: str | None, arguments: Sequence[str]) -> StepRun | None:
    """Parse the options and decide whether there is anything to do; None, and a line, if the artefact is up to date.

    Raises `UserError` for a missing input, and where the artefact belongs to another profile or world.
    """
    parsed = parse_arguments(description or "", step.keys, arguments)
    study = Study(parsed.config, parsed.results_dir, parsed.plots_dir)
    artefact = step.artefact(study)
    refuse_foreign_overwrite(artefact, study.config.profile, study.config.model.world, parsed.force)
    provenance = step.provenance(study)
    if not parsed.force and step.freshness(study, provenance):
        print(f"{step.name}: {artefact} is up to date (--force makes it again)")
        return None
    return StepRun(study, provenance, parsed.yes, parsed.force)
