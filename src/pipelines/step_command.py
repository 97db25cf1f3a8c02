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
    config, results = study.config, study.results_dir.absolute()
    words = ["uv", "run", "python", step.script]
    options: dict[str, object] = {
        "--profile": config.profile,
        "--world": config.model.world,
        "--memory": config.memory,
        "--config": config.project_file and config.project_file.absolute(),
        "--results-dir": results if results != PROJECT_ROOT / "results" else None,
    }
    for key in step.keys:
        if config.sources.get(key) == "the command line":
            section, name = key.split(".")
            options[option_name(key)] = getattr(getattr(config, section), name)
    for option, value in options.items():
        words += option_words(option, value, names_paths)
    return shlex.join(words)


def option_words(option: str, value: object, names_paths: bool) -> list[str]:
    """An option as it is typed; none where there is no value."""
    if value is None:
        return []
    if isinstance(value, bool):
        return [option if value else f"--no-{option.removeprefix('--')}"]
    values = value if isinstance(value, list) else [value]
    placeholder = option.removeprefix("--").replace("-", "_").upper()
    return [option, *(path_or_value(str(one), placeholder, names_paths) for one in values)]


def path_or_value(value: str, placeholder: str, names_paths: bool) -> str:
    path = Path(value)
    if not path.is_absolute():
        return value
    return shown(path) if names_paths or path.is_relative_to(PROJECT_ROOT) else placeholder
