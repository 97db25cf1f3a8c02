"""The command line that runs one step of a study again."""

import shlex
from pathlib import Path

from src.pipelines.persona_folder import Study
from src.pipelines.step import Step
from src.utils.cli import option_name
from src.utils.config import PROJECT_ROOT, shown


def command_of(step: Step[Study], study: Study, names_paths: bool = True) -> str:
    """The command that makes the step's artefact of this study, with the options that were given for it.

    Paths are relative to the repository; one outside it stands as it is, or as a placeholder unless `names_paths`,
    for pages that are passed on.
    """

    def named(value: object, placeholder: str) -> str:
        path = Path(str(value))
        if not path.is_absolute():
            return str(value)
        return shown(path) if names_paths or path.is_relative_to(PROJECT_ROOT) else placeholder

    config = study.config
    words = ["uv", "run", "python", step.script, "--profile", config.profile]
    if config.model.world:
        words += ["--world", config.model.world]
    if study.results_dir.absolute() != PROJECT_ROOT / "results":
        words += ["--results-dir", named(study.results_dir.absolute(), "RESULTS_DIR")]
    for key in step.keys:
        if config.sources.get(key) == "the command line":
            section, name = key.split(".")
            value = getattr(getattr(config, section), name)
            values = value if isinstance(value, list) else [value]
            words += [option_name(key), *(named(one, name.upper()) for one in values)]
    return shlex.join(words)
