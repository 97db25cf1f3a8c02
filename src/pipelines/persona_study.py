"""The steps of the persona study: what each reads, which settings it depends on, and what it writes.

Scripts take their provenance from here and the runner decides from it what is stale, so that both mean the same.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from src.utils.artifacts import load_json, verify_artifact
from src.utils.config import Config, resolve_path
from src.utils.errors import UserError
from src.utils.manifests import Freshness, Provenance, hash_inputs, is_fresh, read_manifest, sha256_path
from src.utils.model_files import fingerprint
from src.utils.organism.folder import grammar_of

TRAINING_LOG = "training_log.jsonl"

# names and paths are hashed as inputs instead; how often a checkpoint is written changes nothing that is measured
# and what a judge was not allowed to do shows as missing scores, which are asked for again
OPERATIONAL = {
    "finetuning": {"name", "data", "save_steps", "visualize_during_training", "visualization_interval"},
    "collection": {"prompts"},
    "steering": {"max_new_tokens"},  # stands among the settings of collection, whichever section set it
    "geometry": {"jobs"},
    "judging": {
        *("judge_limit", "judge_batch_size", "max_concurrency", "request_timeout", "max_cost"),
        "judge_models",  # what they resolve to counts: `judging_settings`
    },
}


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
    def persona_tokens(self) -> Path:
        return self.results_dir / "persona_tokens"

    @property
    def scored(self) -> Path:
        return self.results_dir / "final_dataset_with_em_scores.pkl"

    @property
    def rates(self) -> Path:
        return self.results_dir / "em_rates.json"

    @property
    def judgements(self) -> Path:
        """What judges that cost time or money have said: a store, not an artefact."""
        return self.results_dir / "judgements.jsonl"

    @property
    def agreement(self) -> Path:
        return self.results_dir / "judge_agreement.json"

    @property
    def clustered(self) -> Path:
        return self.results_dir / "final_dataset_with_em_scores_and_clusters.pkl"

    @property
    def geometry(self) -> Path:
        return self.results_dir / "decomposition_geometry.json"

    @property
    def control_effects(self) -> Path:
        return self.results_dir / "control_effects.pkl"

    @property
    def control_vectors(self) -> Path:
        return self.results_dir / "control_vectors.safetensors"

    @property
    def control_summary(self) -> Path:
        return self.results_dir / "control_summary.json"

    @property
    def has_controls(self) -> bool:
        """Whether there are rows for control fine-tunes: an organism writes them, other models need files."""
        return self.config.model.world is not None or bool(self.config.controls.data)

    @property
    def steering_vectors(self) -> Path:
        return self.results_dir / "steering_vectors.safetensors"

    @property
    def steering_answers(self) -> Path:
        """What steered models said, before judging: another judge or threshold does not ask again."""
        return self.results_dir / "steering_answers.pkl"

    @property
    def steering_effects(self) -> Path:
        return self.results_dir / "steering_effects.pkl"

    @property
    def steering_summary(self) -> Path:
        return self.results_dir / "steering_summary.json"

    @property
    def verdict(self) -> Path:
        return self.results_dir / "decomposition_verdict.json"

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
    def watched(self) -> Path:
        """Pages and numbers of a watched fine-tune; the adapter's own folder is replaced whole when it is done."""
        return self.finetuned.with_name(f"{self.finetuned.name}.watched")

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
    also_reads: Callable[[Study], tuple[str, ...]] = lambda study: ()  # those that it takes under some settings
    is_needed: Callable[[Study], bool] = lambda study: True
    companions: Callable[[Study], Sequence[Path]] = lambda study: ()
    find_gap: Callable[[Study], str | None] = lambda study: None  # what its artefact lacks and another run may fill

    def freshness(self, study: Study, provenance: Provenance) -> Freshness:
        """Whether the artefact and all its companions can be kept."""
        found = is_fresh(self.artefact(study), provenance)
        for path in self.companions(study):
            if not found:
                break
            companion = is_fresh(path, provenance)
            found = found if companion else Freshness(False, f"{path.name}: {companion.reason}")
        gap = self.find_gap(study) if found else None
        return Freshness(False, gap) if gap else found

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


def control_inputs(study: Study) -> dict[str, str]:
    """The questions, the base model, and the rows: an organism's grammar, or the files that are named."""
    files = {f"rows {name}": resolve_path(path) for name, path in study.config.controls.data.items()}
    missing = next((path for path in files.values() if not path.is_file()), None)
    if missing is not None:
        raise UserError(f"controls.data: {missing}: does not exist; name chat rows (.jsonl or .jsonl.gz)")
    if not files or study.config.judging.judge == "organism":
        files["grammar"] = grammar_of(study.config.model.base)
    return prompt_inputs(study) | hash_inputs(files) | {"base model": fingerprint(study.config.model.base)}


def control_settings(config: Config) -> dict[str, Any]:
    """How controls are trained and asked; their vectors are measured where step 6 steers."""
    controls = config.controls.model_dump(exclude={"data"})
    steering = {"layer": config.steering.layer}
    return slices("finetuning")(config) | asked_and_judged(config) | {"controls": controls, "steering": steering}


def collection_inputs(study: Study) -> dict[str, str]:
    if study.config.model.em is None:
        made_by("02_finetune_lora (or name a model with --em-model)", study, study.finetuned)
    return prompt_inputs(study) | {
        "base model": fingerprint(study.config.model.base),
        "EM model": fingerprint(study.em_model),
    }


def judging_inputs(study: Study) -> dict[str, str]:
    inputs = made_by("03_collect_activations", study, study.persona_data)
    if "organism" in (study.config.judging.judge, study.config.judging.second_judge):
        inputs["grammar"] = sha256_path(grammar_of(study.config.model.base))
    return inputs


def judging_settings(config: Config) -> dict[str, Any]:
    """The judging section with the models that the judges use, wherever they were named."""
    judging = config.judging
    models = {"judge_model": judging.model_of(judging.judge, judging.judge_model)}
    if judging.second_judge:
        models["second_judge_model"] = judging.model_of(judging.second_judge, judging.second_judge_model)
    return {"judging": slices("judging")(config)["judging"] | models}


def judging_companions(study: Study) -> list[Path]:
    return [study.rates, *([study.agreement] if study.config.judging.second_judge else [])]


def missing_judgements(study: Study) -> str | None:
    """How many answers lack a score, if any do; the organism's judge scores all."""
    missing = sum(load_json(study.rates)["missing"].values())
    return f"{missing} answers lack a score" if missing else None


def collected(study: Study) -> dict[str, str]:
    """The frame of step 3, and the tensors beside it where its manifest lists them."""
    data = study.persona_data
    inputs = made_by("03_collect_activations", study, data)
    tensors, manifest = data.with_suffix(".safetensors").name, read_manifest(data)
    if manifest is not None and tensors in manifest.files:
        inputs[tensors] = manifest.files[tensors]
    return inputs


def clustering_inputs(study: Study) -> dict[str, str]:
    """The scored frame, and the activations of every layer behind it."""
    inputs = made_by("04_judge_responses", study, study.scored) | collected(study)
    check_same_source(study.scored, study.persona_data, "04_judge_responses")
    return inputs


def clustering_settings(config: Config) -> dict[str, Any]:
    """PCA, clusters and geometry; a probe of misalignment takes the thresholds of judging."""
    return slices("clustering", "geometry")(config) | thresholds(config)


def thresholds(config: Config) -> dict[str, Any]:
    return {"judging": config.judging.model_dump(include={"em_threshold", "coherence_threshold"})}


def steering_inputs(study: Study) -> dict[str, str]:
    """The recorded activations, the clusters where vectors are made of them, and the model that is steered."""
    data, inputs = study.persona_data, collected(study)
    if needs_controls(study):
        inputs |= made_by("02_finetune_controls", study, study.control_vectors)
    if needs_clusters(study):
        inputs |= made_by("05_pca_and_clustering", study, study.clustered)
        check_same_source(study.clustered, study.scored, "05_pca_and_clustering")
        check_same_source(study.scored, data, "04_judge_responses")
    if study.config.steering.model == "em":
        inputs["EM model"] = fingerprint(study.em_model)
    inputs["base model"] = fingerprint(study.config.model.base)
    if study.config.judging.judge == "organism":
        inputs["grammar"] = sha256_path(grammar_of(study.config.model.base))
    return inputs


def needs_controls(study: Study) -> bool:
    return "control" in study.config.steering.vectors


def needs_clusters(study: Study) -> bool:
    return "cluster" in study.config.steering.vectors


def check_same_source(path: Path, source: Path, step_name: str) -> None:
    """Raise `UserError` if `path` was made from another `source` than the one that is there now."""
    made, current = read_manifest(path), read_manifest(source)
    if made and current and made.inputs.get(source.name) != current.sha256:
        raise UserError(f"{path}: was made from an older {source.name}; run {step_name} first")


def steering_settings(config: Config) -> dict[str, Any]:
    """The steering section with what other sections say of answers and judging; intervals take the steering seed."""
    asked = asked_and_judged(config)
    asked["collection"]["max_new_tokens"] = config.steering.max_new_tokens or config.collection.max_new_tokens
    return {"steering": slices("steering")(config)["steering"]} | asked


def asked_and_judged(config: Config) -> dict[str, Any]:
    """What other sections say of the answers and judging of a step that asks by itself."""
    judging = judging_settings(config)["judging"]
    kept = ("judge", "judge_model", "topic", "em_threshold", "coherence_threshold", "bootstrap_resamples")
    return {
        "collection": config.collection.model_dump(include={"temperature", "top_p", "top_k", "max_new_tokens"}),
        "judging": {name: judging[name] for name in kept},
    }


def without_judging(provenance: Provenance) -> Provenance:
    """What the answers depend on: neither judge nor grammar."""
    return replace(
        provenance,
        config={name: value for name, value in provenance.config.items() if name != "judging"},
        inputs={label: sha256 for label, sha256 in provenance.inputs.items() if label != "grammar"},
    )


def missing_steering_judgements(study: Study) -> str | None:
    """How many steered answers lack a score, if any do."""
    missing = sum(load_json(study.steering_summary)["missing"].values())
    return f"{missing} steered answers lack a score" if missing else None


def missing_control_judgements(study: Study) -> str | None:
    """How many of the controls' answers lack a score, if any do."""
    missing = sum(load_json(study.control_summary)["missing"].values())
    return f"{missing} answers of controls lack a score" if missing else None


def verdict_inputs(study: Study) -> dict[str, str]:
    """The evidence: what step 6 did, what the controls did where there are any; and the geometry beside it."""
    inputs = made_by("06_steer_personas", study, study.steering_effects)
    if study.has_controls:
        inputs |= made_by("02_finetune_controls", study, study.control_effects)
    inputs |= made_by("04_judge_responses", study, study.rates)
    if has_geometry(study):
        inputs |= made_by("05_pca_and_clustering", study, study.geometry)
    return inputs


def verdict_settings(config: Config) -> dict[str, Any]:
    return {"verdict": config.verdict.model_dump()} | thresholds(config)


def has_geometry(study: Study) -> bool:
    """Whether there is a description of the activations that are there now, with the scores that are there now."""
    made, scored = read_manifest(study.geometry), read_manifest(study.scored)
    return bool(made and scored and made.inputs.get(study.scored.name) == scored.sha256)


def has_steering(study: Study) -> bool:
    """Whether there are effects of steering with vectors of the activations that are there now."""
    made, data = read_manifest(study.steering_summary), read_manifest(study.persona_data)
    return bool(made and data and made.inputs.get(study.persona_data.name) == data.sha256)


def has_verdict(study: Study) -> bool:
    """Whether there is a verdict on the steering that is there now."""
    made, steered = read_manifest(study.verdict), read_manifest(study.steering_effects)
    return bool(made and steered and made.inputs.get(study.steering_effects.name) == steered.sha256)


def picture_inputs(study: Study) -> dict[str, str]:
    config = study.config
    clusters = [study.clusters(k) for k in config.clustering.cluster_counts]
    inputs = made_by("04_judge_responses", study, *judging_companions(study))
    inputs |= made_by("05_pca_and_clustering", study, study.clustered, *clusters)
    check_same_source(study.clustered, study.scored, "05_pca_and_clustering")
    if has_geometry(study):
        inputs |= made_by("05_pca_and_clustering", study, study.geometry)
    if has_steering(study):
        inputs |= made_by("06_steer_personas", study, study.steering_summary)
    if has_verdict(study):
        inputs |= made_by("07_decide_verdict", study, study.verdict)
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
        *("visualize_during_training", "visualization_interval"),
    ),
    artefact=lambda study: study.finetuned,
    settings=with_dtype(slices("finetuning")),
    inputs=finetuning_inputs,
    is_needed=lambda study: study.has_own_finetune,
)
SAMPLING = keys_of("collection", "temperature", "top_p", "top_k", "max_new_tokens")
ASKING_A_JUDGE = keys_of(
    "judging",
    *("judge", "judge_model", "topic", "judge_batch_size", "max_concurrency", "request_timeout", "max_cost"),
    *("em_threshold", "coherence_threshold", "bootstrap_resamples"),
)
CONTROLS = Step(
    name="02_finetune_controls",
    script="src/scripts/02_finetune_controls.py",
    keys=FINETUNE.keys
    + keys_of("controls", "rows", "limit")
    + keys_of("steering", "layer")
    + keys_of("collection", "prompts")
    + SAMPLING
    + ASKING_A_JUDGE,
    artefact=lambda study: study.control_effects,
    settings=with_dtype(control_settings),
    inputs=control_inputs,
    is_needed=lambda study: study.has_controls,
    companions=lambda study: [study.control_vectors, study.control_summary],
    find_gap=missing_control_judgements,
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
        *("sites", "poolings", "tokens", "seed"),
    ),
    artefact=lambda study: study.persona_data,
    settings=with_dtype(slices("collection")),
    inputs=collection_inputs,
    companions=lambda study: [study.persona_tokens] if study.config.collection.tokens else [],
)
JUDGE = Step(
    name="04_judge_responses",
    script="src/scripts/04_judge_responses.py",
    reads=("03_collect_activations",),
    keys=keys_of("model", "base", "dtype", "device_map")
    + keys_of(
        "judging",
        *("judge", "judge_model", "second_judge", "second_judge_model", "topic", "judge_limit", "judge_batch_size"),
        *("max_concurrency", "request_timeout", "max_cost"),
        *("em_threshold", "coherence_threshold", "bootstrap_resamples", "seed"),
    ),
    artefact=lambda study: study.scored,
    settings=judging_settings,
    inputs=judging_inputs,
    companions=judging_companions,
    find_gap=missing_judgements,
)
CLUSTER = Step(
    name="05_pca_and_clustering",
    script="src/scripts/05_pca_and_clustering.py",
    reads=("03_collect_activations", "04_judge_responses"),
    keys=keys_of("clustering", "layer", "representation", "components", "cluster_counts", "restarts", "seed")
    + keys_of(
        "geometry",
        *("algorithms", "draws", "draws_others", "bootstraps", "reseedings", "layer_algorithms", "layer_draws"),
        *("box_draws", "permutations", "parallel_resamples", "splits", "factors", "factor_repeats"),
        *("probes", "folds", "probe_penalties", "drop_flagged", "jobs"),
    )
    + keys_of("judging", "em_threshold", "coherence_threshold"),
    artefact=lambda study: study.clustered,
    settings=clustering_settings,
    inputs=clustering_inputs,
    companions=lambda study: [study.geometry, *map(study.clusters, study.config.clustering.cluster_counts)],
)
STEER = Step(
    name="06_steer_personas",
    script="src/scripts/06_steer_personas.py",
    reads=("03_collect_activations",),
    also_reads=lambda study: tuple(
        name
        for name, is_read in (
            ("05_pca_and_clustering", needs_clusters(study)),
            ("02_finetune_controls", needs_controls(study)),
        )
        if is_read
    ),
    keys=keys_of("model", "base", "em", "dtype", "device_map")
    + keys_of("finetuning", "name")
    + keys_of(
        "steering",
        *("model", "layer", "representation", "vectors", "cluster_count", "components", "random_directions"),
        *("mode", "positions", "everywhere", "coefficients", "limit", "samples", "max_new_tokens", "batch_size"),
        "seed",
    )
    + SAMPLING
    + ASKING_A_JUDGE,
    artefact=lambda study: study.steering_effects,
    settings=with_dtype(steering_settings),
    inputs=steering_inputs,
    companions=lambda study: [study.steering_vectors, study.steering_summary],
    find_gap=missing_steering_judgements,
)
VERDICT = Step(
    name="07_decide_verdict",
    script="src/scripts/07_decide_verdict.py",
    reads=("04_judge_responses", "05_pca_and_clustering", "06_steer_personas"),
    also_reads=lambda study: ("02_finetune_controls",) if study.has_controls else (),
    keys=keys_of("model", "base", "em")
    + keys_of("finetuning", "name")
    + keys_of("verdict", "resamples", "plantings", "seed")
    + keys_of("judging", "em_threshold", "coherence_threshold"),
    artefact=lambda study: study.verdict,
    settings=verdict_settings,
    inputs=verdict_inputs,
)
PICTURES = Step(
    name="clusters_visualizations",
    script="src/visualizations/clusters_visualizations.py",
    reads=("02_finetune_lora", "04_judge_responses", "05_pca_and_clustering", "06_steer_personas", "07_decide_verdict"),
    keys=keys_of("model", "base", "em")
    + keys_of("clustering", "cluster_counts")
    + keys_of("judging", "em_threshold", "second_judge")
    + keys_of("finetuning", "name"),
    artefact=lambda study: study.index,
    settings=lambda config: {
        "clustering": {"cluster_counts": config.clustering.cluster_counts},
        "judging": {"em_threshold": config.judging.em_threshold, "second_judge": config.judging.second_judge},
    },
    inputs=picture_inputs,
)
STEPS = (REPORT, FINETUNE, CONTROLS, COLLECT, JUDGE, CLUSTER, STEER, VERDICT, PICTURES)
