"""The steps of the persona study: what each reads, which settings it depends on, and what it writes.

Scripts take their provenance from here and the runner decides from it what is stale, so that both mean the same.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from src.utils.artifacts import verify_artifact
from src.utils.config import Config, resolve_path
from src.utils.errors import UserError
from src.utils.manifests import Freshness, Provenance, hash_inputs, is_fresh, read_manifest, sha256_path
from src.utils.model_files import fingerprint
from src.utils.organism.folder import grammar_of

TRAINING_LOG = "training_log.jsonl"

# names and paths are hashed as inputs instead; how often a checkpoint is written changes nothing that is measured
OPERATIONAL = {"finetuning": {"name", "data", "save_steps"}, "collection": {"prompts"}}


@dataclass(frozen=True)
class Study:
    """One run of the study: its configuration and its folders."""

    config: Config
    results_dir: Path
    plots_dir: Path

    @property
    def question_report(self) -> Path:
        return self.results_dir / "question_report.json"

    @property
    def finetuned(self) -> Path:
        return self.results_dir / "adapters" / self.config.finetuning.name

    @property
    def persona_data(self) -> Path:
        return self.results_dir / "persona_data.pkl"

    @property
    def scored(self) -> Path:
        return self.results_dir / "final_dataset_with_em_scores.pkl"

    @property
    def rates(self) -> Path:
        return self.results_dir / "em_rates.json"

    @property
    def clustered(self) -> Path:
        return self.results_dir / "final_dataset_with_em_scores_and_clusters.pkl"

    @property
    def index(self) -> Path:
        return self.plots_dir / "index.html"

    def clusters(self, k: int) -> Path:
        return self.results_dir / f"em_pca_clusters_{k}.pkl"

    @property
    def em_model(self) -> str:
        """The EM model under study: the one that the profile names, else the fine-tune of step 2."""
        return self.config.model.em or str(self.finetuned.absolute())

    @property
    def has_own_finetune(self) -> bool:
        """Whether step 2 makes the EM model; else the profile or the user names one."""
        return self.config.model.em is None

    @property
    def finetuning_data(self) -> Path:
        return resolve_path(self.config.finetuning.data)

    @property
    def prompt_files(self) -> list[Path]:
        return [resolve_path(name) for name in self.config.collection.prompts]


@dataclass(frozen=True)
class Step:
    """One script. `artefact` is what it is for; `inputs` hashes what it reads and raises where that is missing.

    `companions` are the artefacts that it writes beside that, with manifests of their own.
    """

    name: str
    script: str
    keys: tuple[str, ...]
    artefact: Callable[[Study], Path]
    settings: Callable[[Config], dict[str, Any]]
    inputs: Callable[[Study], dict[str, str]]
    reads: tuple[str, ...] = ()  # names of the steps whose artefacts it takes
    is_needed: Callable[[Study], bool] = lambda study: True
    companions: Callable[[Study], Sequence[Path]] = lambda study: ()

    def freshness(self, study: Study, provenance: Provenance) -> Freshness:
        """Whether the artefact and all its companions can be kept."""
        found = is_fresh(self.artefact(study), provenance)
        for path in self.companions(study):
            if not found:
                break
            companion = is_fresh(path, provenance)
            found = found if companion else Freshness(False, f"{path.name}: {companion.reason}")
        return found

    def provenance(self, study: Study) -> Provenance:
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


def slices(*sections: str) -> Callable[[Config], dict[str, Any]]:
    """The config sections that a step depends on, without what is only operational."""

    def settings(config: Config) -> dict[str, Any]:
        return {name: getattr(config, name).model_dump(exclude=OPERATIONAL.get(name, set())) for name in sections}

    return settings


def with_dtype(settings: Callable[[Config], dict[str, Any]]) -> Callable[[Config], dict[str, Any]]:
    """The same settings and the dtype in which the model runs."""
    return lambda config: settings(config) | {"model": {"dtype": config.model.dtype}}


def keys_of(section: str, *names: str) -> tuple[str, ...]:
    return tuple(f"{section}.{name}" for name in names)


def made_by(step_name: str, study: Study, *paths: Path) -> dict[str, str]:
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


def prompt_inputs(study: Study) -> dict[str, str]:
    """The question files with their places: their order is that of the frame, and two may have one name."""
    return hash_inputs({f"prompts {i} {path.name}": path for i, path in enumerate(study.prompt_files, start=1)})


def finetuning_inputs(study: Study) -> dict[str, str]:
    data = study.finetuning_data
    if not data.is_file():
        raise UserError(
            f"{study.config.finetuning.data}: does not exist; give chat rows with --data FILE.jsonl (or .jsonl.gz)"
        )
    return {f"data {data.name}": sha256_path(data), "base model": fingerprint(study.config.model.base)}


def collection_inputs(study: Study) -> dict[str, str]:
    if study.config.model.em is None:
        made_by("02_finetune_lora (or name a model with --em-model)", study, study.finetuned)
    return prompt_inputs(study) | {
        "base model": fingerprint(study.config.model.base),
        "EM model": fingerprint(study.em_model),
    }


def judging_inputs(study: Study) -> dict[str, str]:
    inputs = made_by("03_collect_activations", study, study.persona_data)
    if study.config.judging.judge == "organism":
        inputs["grammar"] = sha256_path(grammar_of(study.config.model.base))
    return inputs


def picture_inputs(study: Study) -> dict[str, str]:
    config = study.config
    clusters = [study.clusters(k) for k in config.clustering.cluster_counts]
    inputs = made_by("04_judge_responses", study, study.rates)
    inputs |= made_by("05_pca_and_clustering", study, study.clustered, *clusters)
    clustered, scores = read_manifest(study.clustered), read_manifest(study.scored)
    if clustered and scores and clustered.inputs.get(study.scored.name) != scores.sha256:
        raise UserError(f"{study.clustered}: was made from older scores; run 05_pca_and_clustering first")
    if study.has_own_finetune:
        inputs |= made_by("02_finetune_lora", study, study.finetuned)
    return inputs


REPORT = Step(
    name="01_generate_dataset",
    script="src/scripts/01_generate_dataset.py",
    keys=keys_of("collection", "prompts"),
    artefact=lambda study: study.question_report,
    settings=lambda config: {},
    inputs=prompt_inputs,
)
FINETUNE = Step(
    name="02_finetune_lora",
    script="src/scripts/02_finetune_lora.py",
    keys=keys_of("model", "base", "dtype", "device_map")
    + keys_of(
        "finetuning",
        *("name", "data", "method", "rank", "alpha", "use_rslora", "dropout", "target_modules", "layers"),
        *("learning_rate", "scheduler", "warmup_steps", "weight_decay", "epochs", "max_steps", "batch_size"),
        *("gradient_accumulation_steps", "gradient_checkpointing", "max_length", "save_steps", "seed"),
    ),
    artefact=lambda study: study.finetuned,
    settings=with_dtype(slices("finetuning")),
    inputs=finetuning_inputs,
    is_needed=lambda study: study.has_own_finetune,
)
COLLECT = Step(
    name="03_collect_activations",
    script="src/scripts/03_collect_activations.py",
    reads=("02_finetune_lora",),
    keys=keys_of("model", "base", "em", "dtype", "device_map")
    + keys_of("finetuning", "name")
    + keys_of(
        "collection",
        *("prompts", "limit", "samples", "temperature", "top_p", "top_k", "max_new_tokens", "layers", "batch_size"),
        "seed",
    ),
    artefact=lambda study: study.persona_data,
    settings=with_dtype(slices("collection")),
    inputs=collection_inputs,
)
JUDGE = Step(
    name="04_judge_responses",
    script="src/scripts/04_judge_responses.py",
    reads=("03_collect_activations",),
    keys=keys_of("model", "base")
    + keys_of("judging", "judge", "em_threshold", "coherence_threshold", "bootstrap_resamples", "seed"),
    artefact=lambda study: study.scored,
    settings=slices("judging"),
    inputs=judging_inputs,
    companions=lambda study: [study.rates],
)
CLUSTER = Step(
    name="05_pca_and_clustering",
    script="src/scripts/05_pca_and_clustering.py",
    reads=("04_judge_responses",),
    keys=keys_of("clustering", "layer", "representation", "components", "cluster_counts", "restarts", "seed"),
    artefact=lambda study: study.clustered,
    settings=slices("clustering"),
    inputs=lambda study: made_by("04_judge_responses", study, study.scored),
    companions=lambda study: [study.clusters(k) for k in study.config.clustering.cluster_counts],
)
PICTURES = Step(
    name="clusters_visualizations",
    script="src/visualizations/clusters_visualizations.py",
    reads=("02_finetune_lora", "04_judge_responses", "05_pca_and_clustering"),
    keys=keys_of("model", "base", "em")
    + keys_of("clustering", "cluster_counts")
    + keys_of("judging", "em_threshold")
    + keys_of("finetuning", "name"),
    artefact=lambda study: study.index,
    settings=lambda config: {
        "clustering": {"cluster_counts": config.clustering.cluster_counts},
        "judging": {"em_threshold": config.judging.em_threshold},
    },
    inputs=picture_inputs,
)
STEPS = (REPORT, FINETUNE, COLLECT, JUDGE, CLUSTER, PICTURES)
