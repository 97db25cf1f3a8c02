"""The command line of the judge's scripts: settings of `configs/safety_judge.yaml`, and where things go."""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from src.utils.cli import OneLineParser, add_config_option, destination, local_paths, with_hyphens
from src.utils.config import PROJECT_ROOT, Config
from src.utils.safety_judge.settings import CONFIG_FILE, JudgeConfig, judge_profiles, load_judge_config

OUTPUT_DIR = PROJECT_ROOT / "outputs" / "checkpoints"
PATH_KEYS = ("model.base", "data.data")


@dataclass(frozen=True)
class JudgeArguments:
    """What a judge's script was asked to do."""

    config: JudgeConfig
    output_dir: Path
    force: bool
    own: argparse.Namespace


def parse_judge_arguments(
    description: str | None,
    keys: Sequence[str],
    arguments: Sequence[str],
    add_options: Callable[[argparse.ArgumentParser], object] = lambda parser: None,
) -> JudgeArguments:
    """Parse a script's arguments; underscores and hyphens in option names are the same.

    `keys` are the dotted config keys that become options. Exits with code 2 on a usage error, and raises `UserError`
    with code 2 where the config does not hold together.
    """
    spelled = [with_hyphens(argument) for argument in arguments]
    known, _ = common_parser(add_help=False).parse_known_args(spelled)
    config = load_judge_config(known.profile, file=known.config)

    parser = common_parser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    settings = parser.add_argument_group("settings")
    for key in keys:
        add_config_option(settings, key, cast(Config, config))  # needs a config's sections and sources, has both
    add_options(parser)
    own = parser.parse_args(spelled)
    overrides: dict[str, Any] = {}
    for key in keys:
        value = getattr(own, destination(key), None)
        if value is not None:
            overrides[key] = with_local_paths(value) if key in PATH_KEYS else value
    return JudgeArguments(
        config=load_judge_config(own.profile, overrides, own.config),
        output_dir=own.output_dir.absolute(),
        force=own.force,
        own=own,
    )


def common_parser(**settings: Any) -> argparse.ArgumentParser:
    """The options that every script of the judge has."""
    parser = OneLineParser(allow_abbrev=False, **settings)
    run = parser.add_argument_group("run")
    run.add_argument("--profile", help=f"one of {', '.join(judge_profiles())} (default: see configs/safety_judge.yaml)")
    run.add_argument("--config", type=Path, default=CONFIG_FILE, help="judge file (default: configs/safety_judge.yaml)")
    run.add_argument(
        "--output-dir",
        "--results-dir",
        type=Path,
        default=OUTPUT_DIR,
        help="where everything goes (default: outputs/checkpoints)",
    )
    run.add_argument("--force", action="store_true", help="make it again, over whatever profile's result is there")
    return parser


def with_local_paths(value: Any) -> Any:
    """Paths typed by the user as the config writes paths; of `name=file` the file."""
    if isinstance(value, list):
        return [with_local_paths(item) for item in value]
    name, equals, location = str(value).partition("=")
    return f"{name}={local_paths(location)}" if equals else local_paths(value)
