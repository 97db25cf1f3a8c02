"""The steps of the persona study, in their order.

Where each writes is left to `persona_folder`, what it reads to `persona_inputs`, what it depends on to
`persona_settings`.
"""

from src.pipelines.persona_folder import Study
from src.pipelines.persona_inputs import (
    clustering_inputs,
    collection_inputs,
    control_inputs,
    finetuning_inputs,
    judging_companions,
    judging_inputs,
    missing_control_judgements,
    missing_judgements,
    missing_steering_judgements,
    needs_clusters,
    needs_controls,
    picture_inputs,
    prompt_inputs,
    steering_inputs,
    verdict_inputs,
)
from src.pipelines.persona_settings import (
    clustering_settings,
    control_settings,
    judging_settings,
    slices,
    steering_settings,
    verdict_settings,
    with_dtype,
)
from src.pipelines.step import Step, keys_of

TRAINING_LOG = "training_log.jsonl"

PersonaStep = Step[Study]

REPORT = PersonaStep(
    name="01_generate_dataset",
    script="src/scripts/01_generate_dataset.py",
    keys=keys_of("collection", "prompts"),
    artefact=lambda study: study.question_report,
    settings=lambda config: {},
    inputs=prompt_inputs,
)
FINETUNE = PersonaStep(
    name="02_finetune_lora",
    script="src/scripts/02_finetune_lora.py",
    keys=keys_of("model", "base", "dtype", "device_map")
    + keys_of(
        "finetuning",
        *("name", "data", "method", "rank", "alpha", "use_rslora", "dropout", "target_modules", "layers"),
        *("learning_rate", "scheduler", "warmup_steps", "weight_decay", "epochs", "max_steps", "batch_size"),
        *("gradient_accumulation_steps", "gradient_checkpointing", "max_length", "save_steps", "seed"),
        *("visualize_during_training", "visualization_interval", "run_advanced_mi"),
    ),
    artefact=lambda study: study.finetuned,
    settings=with_dtype(slices("finetuning")),
    inputs=finetuning_inputs,
    is_needed=lambda study: study.has_own_finetune,
    why_not_needed=lambda study: f"the profile names the EM model {study.config.model.em}",
)
SAMPLING = keys_of("collection", "temperature", "top_p", "top_k", "max_new_tokens")
ASKING_A_JUDGE = keys_of(
    "judging",
    *("judge", "judge_model", "topic", "judge_batch_size", "max_concurrency", "request_timeout", "reply_tokens"),
    "max_cost",
    *("em_threshold", "coherence_threshold", "bootstrap_resamples"),
)
CONTROLS = PersonaStep(
    name="02_finetune_controls",
    script="src/scripts/02_finetune_controls.py",
    keys=FINETUNE.keys
    + keys_of("model", "processes")
    + keys_of("controls", "rows", "limit")
    + keys_of("steering", "layer")
    + keys_of("collection", "prompts")
    + SAMPLING
    + ASKING_A_JUDGE,
    artefact=lambda study: study.control_effects,
    settings=with_dtype(control_settings),
    inputs=control_inputs,
    is_needed=lambda study: study.has_controls,
    why_not_needed=lambda study: "controls.data names no rows for control fine-tunes",
    companions=lambda study: [study.control_vectors, study.control_summary],
    find_gap=missing_control_judgements,
)
COLLECT = PersonaStep(
    name="03_collect_activations",
    script="src/scripts/03_collect_activations.py",
    reads=("02_finetune_lora",),
    keys=keys_of("model", "base", "em", "dtype", "device_map", "processes")
    + keys_of("finetuning", "name")
    + keys_of(
        "collection",
        *("prompts", "limit", "samples", "temperature", "top_p", "top_k", "max_new_tokens", "layers", "batch_size"),
        *("sites", "poolings", "tokens", "token_sites", "token_layers", "seed"),
    ),
    artefact=lambda study: study.persona_data,
    settings=with_dtype(slices("collection")),
    inputs=collection_inputs,
    companions=lambda study: [study.persona_tokens] if study.config.collection.tokens else [],
)
JUDGE = PersonaStep(
    name="04_judge_responses",
    script="src/scripts/04_judge_responses.py",
    reads=("03_collect_activations",),
    keys=keys_of("model", "base", "dtype", "device_map")
    + keys_of(
        "judging",
        *("judge", "judge_model", "second_judge", "second_judge_model", "topic", "judge_limit", "judge_batch_size"),
        *("max_concurrency", "request_timeout", "reply_tokens", "max_cost"),
        *("em_threshold", "coherence_threshold", "bootstrap_resamples", "seed"),
    ),
    artefact=lambda study: study.scored,
    settings=judging_settings,
    inputs=judging_inputs,
    companions=judging_companions,
    find_gap=missing_judgements,
)
CLUSTER = PersonaStep(
    name="05_pca_and_clustering",
    script="src/scripts/05_pca_and_clustering.py",
    reads=("03_collect_activations", "04_judge_responses"),
    keys=keys_of(
        "clustering",
        *("layer", "layers_jointly", "site", "pooling", "representation", "centre", "whiten"),
        *("remove_dimension_means", "token_level", "components", "cluster_counts", "restarts", "seed"),
    )
    + keys_of(
        "geometry",
        *("algorithms", "draws", "draws_others", "bootstraps", "reseedings", "layer_algorithms", "layer_draws"),
        *("box_draws", "permutations", "parallel_resamples", "splits", "factors", "factor_repeats"),
        *("probes", "folds", "probe_penalties", "drop_flagged", "jobs"),
        *("power_angles", "power_snrs", "power_repeats", "power_permutations", "power_draws"),
    )
    + keys_of("judging", "em_threshold", "coherence_threshold"),
    artefact=lambda study: study.clustered,
    settings=clustering_settings,
    inputs=clustering_inputs,
    companions=lambda study: [study.geometry, *map(study.clusters, study.config.clustering.cluster_counts)],
)
STEER = PersonaStep(
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
    keys=keys_of("model", "base", "em", "dtype", "device_map", "processes")
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
VERDICT = PersonaStep(
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
PICTURES = PersonaStep(
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
