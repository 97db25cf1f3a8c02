"""The command line of every script: options that override the config, help that says where defaults come from.

A script names the dotted config keys that it lets its user change. Hyphens and underscores are both accepted in
option names. What a user can cause is printed as one line.
"""

import argparse
import os
import sys
import types
import typing
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from dotenv import load_dotenv
from pydantic.fields import FieldInfo

from src.utils.config import PROJECT_ROOT, Config, load_config, profile_names, shown
from src.utils.errors import UserError

OPTION_NAMES = {
    "model.base": "--base-model",
    "model.em": "--em-model",
    "finetuning.name": "--adapter-name",
    "judging.judge_limit": "--limit",  # as in step 3: that many questions
    "steering.model": "--steered-model",
    "steering.layer": "--steering-layer",  # other steps have settings of the same name
    "steering.representation": "--steering-representation",
    "steering.components": "--steering-components",
    "steering.cluster_count": "--steering-clusters",
    "steering.limit": "--steering-limit",
    "geometry.draws": "--null-draws",
    "geometry.draws_others": "--null-draws-others",
    "controls.rows": "--control-rows",
    "controls.limit": "--control-limit",
    "verdict.resamples": "--verdict-resamples",
    "steering.samples": "--steering-samples",
    "steering.max_new_tokens": "--steering-max-new-tokens",
}
SHORTHANDS = {"finetuning.method": ("--full-finetuning", "full")}  # a flag for one value of a setting
COMMON_OPTIONS = ("--profile", "--world", "--memory", "--config", "--results-dir", "--plots-dir", "--force", "--yes")
PATH_KEYS = {
    *("model.base", "model.em", "finetuning.data", "collection.prompts"),
    *("judging.judge_model", "judging.second_judge_model"),
}


class OneLineParser(argparse.ArgumentParser):
    """A parser that says what is wrong in one line, without the list of all options before it."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message}; --help lists the options\n")


@dataclass(frozen=True)
class Arguments:
    """What a script was asked to do: the resolved config, where results go, and its own options."""

    config: Config
    results_dir: Path
    plots_dir: Path
    force: bool
    yes: bool
    own: argparse.Namespace


def run_script(main: Callable[[Sequence[str]], int | None], arguments: Sequence[str] | None = None) -> None:
    """Run a script's `main` and leave with its exit code: 2 for usage, 1 for failure, 130 when stopped by Ctrl-C."""
    load_dotenv(PROJECT_ROOT / ".env")
    try:
        code = main(sys.argv[1:] if arguments is None else arguments)
    except UserError as error:
        print(f"error: {' '.join(error.message.split())}", file=sys.stderr)
        code = error.exit_code
    except Exception as error:
        if type(error).__name__ != "OutOfMemoryError":  # torch's, which this module does without
            raise
        print("error: the GPU is out of memory; lower --batch-size, or choose --memory 16gb", file=sys.stderr)
        code = 1
    except KeyboardInterrupt:
        print("stopped; the same command continues where it was", file=sys.stderr)
        code = 130
    sys.stdout.flush()
    sys.exit(code or 0)


def parse_arguments(
    description: str,
    keys: Sequence[str],
    arguments: Sequence[str],
    add_options: Callable[[argparse.ArgumentParser], object] = lambda parser: None,
    seed_keys: Sequence[str] = (),
) -> Arguments:
    """Parse a script's arguments.

    `keys` are the dotted config keys that become options; `add_options` adds what is no config; `seed_keys`
    are set together by one `--seed`. Exits with code 2 on
    a usage error, as argparse does, and raises `UserError` with code 2 where the config does not hold together.
    """
    spelled = [with_hyphens(argument) for argument in arguments]
    first = common_parser(add_help=False)
    known, _ = first.parse_known_args(spelled)
    config = load_config(known.profile, world_override(known), known.memory, known.config)

    parser = common_parser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    from_config = parser.add_argument_group("settings")
    for key in keys:
        add_config_option(from_config, key, config)
    if seed_keys:
        from_config.add_argument("--seed", help=f"sets {', '.join(seed_keys)}; default see each script's --help")
    add_options(parser)
    own = parser.parse_args(spelled)

    overrides = world_override(own)
    for key in keys:
        value = getattr(own, destination(key), None)
        if value is not None:
            overrides[key] = local_paths(value) if key in PATH_KEYS else value
    if seed_keys and own.seed is not None:
        overrides |= dict.fromkeys(seed_keys, own.seed)
    results_dir = own.results_dir or PROJECT_ROOT / "results"
    default_plots = PROJECT_ROOT / "cluster_plots" if own.results_dir is None else results_dir / "cluster_plots"
    return Arguments(
        config=load_config(own.profile, overrides, own.memory, own.config),
        results_dir=results_dir,
        plots_dir=own.plots_dir or default_plots,
        force=own.force,
        yes=own.yes,
        own=own,
    )


def common_parser(**settings: Any) -> argparse.ArgumentParser:
    """The options that every script has."""
    parser = OneLineParser(allow_abbrev=False, **settings)
    run = parser.add_argument_group("run")
    run.add_argument(
        "--profile", help=f"one of {', '.join(profile_names())} (default: see configs/project_config.yaml)"
    )
    run.add_argument("--world", help="organism only: the world to study (default: see configs/profiles/organism.yaml)")
    run.add_argument("--memory", help="memory preset of the profile, for example 16gb or 80gb (default: none)")
    run.add_argument("--config", type=Path, help="project file (default: configs/project_config.yaml)")
    run.add_argument("--results-dir", type=Path, help="where artefacts go (default: results)")
    run.add_argument(
        "--plots-dir", type=Path, help="where pictures go (default: cluster_plots, or <results-dir>/cluster_plots)"
    )
    run.add_argument("--force", action="store_true", help="make it again, over whatever profile's artefact is there")
    run.add_argument("--yes", action="store_true", help="do not ask before requests that cost money")
    return parser


def world_override(own: argparse.Namespace) -> dict[str, Any]:
    return {} if own.world is None else {"model.world": own.world}


def add_config_option(group: Any, key: str, config: Config) -> None:
    """One option for one config key, its default shown with its source; the config checks the value."""
    section, name = key.split(".")
    field: FieldInfo = type(getattr(config, section)).model_fields[name]
    kind = without_none(field.annotation)
    value = getattr(getattr(config, section), name)
    source = config.sources.get(key, "src/utils/config_sections.py")
    text = f"{field.description + '; ' if field.description else ''}default {display(value)}, from {source}"
    settings: dict[str, Any] = {"dest": destination(key), "help": text.replace("%", "%%")}
    if kind is bool:
        settings["action"] = argparse.BooleanOptionalAction
    elif typing.get_origin(kind) is list:
        settings |= {"nargs": "+", "metavar": name.upper().rstrip("S")}
    elif typing.get_origin(kind) is typing.Literal:
        settings["choices"] = typing.get_args(kind)
    else:
        settings["metavar"] = name.upper()
    group.add_argument(option_name(key), **settings)
    if key in SHORTHANDS:
        flag, constant = SHORTHANDS[key]
        text = f"the same as {option_name(key)} {constant}"
        group.add_argument(flag, dest=destination(key), action="store_const", const=constant, help=text)


def options_of(keys: Sequence[str]) -> set[str]:
    """The options of a script that lets its user change these keys, shorthands and those of every script included."""
    names = {*COMMON_OPTIONS, *(option_name(key) for key in keys)}
    return names | {SHORTHANDS[key][0] for key in keys if key in SHORTHANDS}


def option_name(key: str) -> str:
    """The option of a config key: `finetuning.max_steps` is `--max-steps`."""
    return OPTION_NAMES.get(key, f"--{key.split('.')[1].replace('_', '-')}")


def without_none(annotation: Any) -> Any:
    """`X` of `X | None`, anything else as it is."""
    if typing.get_origin(annotation) in (types.UnionType, typing.Union):
        return next(part for part in typing.get_args(annotation) if part is not type(None))
    return annotation


def display(value: object) -> str:
    if isinstance(value, list) and value:
        return " ".join(shown(Path(item)) if isinstance(item, str) else str(item) for item in value)
    return "none" if value is None or value == [] else str(value)


def destination(key: str) -> str:
    return key.replace(".", "__")


def with_hyphens(argument: str) -> str:
    """`--max_steps=3` as `--max-steps=3`; values keep their underscores."""
    if not argument.startswith("--"):
        return argument
    name, equals, value = argument.partition("=")
    return name.replace("_", "-") + equals + value


def positive(kind: Callable[[str], float]) -> Callable[[str], float]:
    """An argparse type: a finite number above zero."""

    def parse(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            value = 0.0
        if not 0 < value < float("inf"):
            raise argparse.ArgumentTypeError(f"{text!r} is no number above 0, or not a whole one where that is needed")
        return value

    return parse


def local_paths(value: Any) -> Any:
    """Paths typed by the user that exist from where he stands, as the config writes paths; others stay as they are."""
    if isinstance(value, list):
        return [local_paths(item) for item in value]
    is_here = os.path.exists(value)  # noqa: PTH110  # Path.exists raises for a name that is too long
    return shown(Path(value).absolute()) if is_here else value
