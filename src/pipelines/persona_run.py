"""The command line of the whole persona study: every setting of its steps that has one meaning."""

from collections.abc import Sequence

from src.pipelines.persona_folder import Study
from src.pipelines.persona_study import CLUSTER, COLLECT, JUDGE, STEPS
from src.pipelines.step import Step
from src.pipelines.study_run import RUNNER_OPTIONS, StudyRun, add_runner_options, for_steps
from src.pipelines.summary import summarise
from src.utils.cli import option_name, options_of, parse_arguments
from src.utils.errors import UserError
from src.utils.organism.folder import grammar_of
from src.utils.prompts import load_questions, spread

SHARED_NAMES = ("seed", "batch_size", "layers")  # in several sections: one --seed for all, the others by hand
SEED_KEYS = tuple(dict.fromkeys(key for step in STEPS for key in step.keys if key.endswith(".seed")))
NAMED_KEYS = {option_name(key): key for step in STEPS[::-1] for key in step.keys[::-1]}  # --limit: the first step's
KEYS = tuple(key for key in dict.fromkeys(reversed(NAMED_KEYS.values())) if key.split(".")[1] not in SHARED_NAMES)
OPTIONS = options_of(KEYS) | {"--seed", *RUNNER_OPTIONS}


def open_persona_run(description: str, arguments: Sequence[str]) -> StudyRun:
    """Parse the study's part of the command line; see `parse_arguments` for what is refused."""
    parsed = parse_arguments(description, KEYS, arguments, add_runner_options, SEED_KEYS)
    study = Study(parsed.config, parsed.results_dir, parsed.plots_dir)
    return StudyRun(
        study,
        STEPS,
        for_steps(arguments),
        parsed.own,
        parsed.force,
        check=lambda steps: check_plan(study, steps),
        summarise=lambda: summarise(study),
        pages=lambda: f"pictures: {study.index}" if study.index.exists() else "",
    )


def check_plan(study: Study, steps: Sequence[Step]) -> None:
    """Find before the first step what would stop a later one."""
    layer = study.config.clustering.layer
    if CLUSTER in steps and layer not in study.config.collection.layers:
        from src.utils.models import check_layers

        check_layers(study.config.model.base, [layer])
    if {COLLECT, CLUSTER} <= set(steps):
        check_cluster_counts(study)
    if JUDGE in steps and study.config.judging.judge == "organism":
        grammar_of(study.config.model.base)


def check_cluster_counts(study: Study) -> None:
    """`UserError` (exit code 2) for more clusters than the answers that a run collects can be cut into."""
    collection = study.config.collection
    rows = len(spread(load_questions(study.prompt_files), collection.limit)) * collection.samples
    most = max(study.config.clustering.cluster_counts)
    if most >= rows:
        raise UserError(f"--cluster-counts {most}: too many for {rows} answers; choose counts below {rows}", 2)
