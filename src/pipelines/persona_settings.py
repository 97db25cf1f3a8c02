"""Which settings each step of the persona study depends on: a change of one makes exactly those steps stale."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from src.utils.config import Config
from src.utils.manifests import Provenance

# names and paths are hashed as inputs instead; how often a checkpoint is written changes nothing that is measured
# and what a judge was not allowed to do shows as missing scores, which are asked for again
OPERATIONAL = {
    "finetuning": {
        "name",
        "data",
        "save_steps",
        "visualize_during_training",
        "visualization_interval",
        "run_advanced_mi",
    },
    "collection": {"prompts"},
    "steering": {"max_new_tokens"},  # stands among the settings of collection, whichever section set it
    "geometry": {"jobs"},
    "judging": {
        *("judge_limit", "judge_batch_size", "max_concurrency", "request_timeout", "reply_tokens", "max_cost"),
        "judge_models",  # what they resolve to counts: `judging_settings`
    },
}


JUDGE_INPUT = "judge "  # with the model's name behind it: the input of a judge whose weights lie here


def slices(*sections: str) -> Callable[[Config], dict[str, Any]]:
    """The config sections that a step depends on, without what is only operational."""

    def settings(config: Config) -> dict[str, Any]:
        return {name: getattr(config, name).model_dump(exclude=OPERATIONAL.get(name, set())) for name in sections}

    return settings


def with_dtype(settings: Callable[[Config], dict[str, Any]]) -> Callable[[Config], dict[str, Any]]:
    """The same settings and the dtype in which the model runs."""
    return lambda config: settings(config) | {"model": {"dtype": config.model.dtype}}


def control_settings(config: Config) -> dict[str, Any]:
    """How controls are trained and asked; their vectors are measured where step 6 steers."""
    controls = config.controls.model_dump(exclude={"data"})
    steering = {"layer": config.steering.layer}
    return slices("finetuning")(config) | asked_and_judged(config) | {"controls": controls, "steering": steering}


def judging_settings(config: Config) -> dict[str, Any]:
    """The judging section with the models that the judges use, wherever they were named."""
    judging = config.judging
    models = {"judge_model": judging.model_of(judging.judge, judging.judge_model)}
    if judging.second_judge:
        models["second_judge_model"] = judging.model_of(judging.second_judge, judging.second_judge_model)
    return {"judging": slices("judging")(config)["judging"] | models}


def clustering_settings(config: Config) -> dict[str, Any]:
    """PCA, clusters and geometry; a probe of misalignment takes the thresholds of judging."""
    return slices("clustering", "geometry")(config) | thresholds(config)


def thresholds(config: Config) -> dict[str, Any]:
    return {"judging": config.judging.model_dump(include={"em_threshold", "coherence_threshold"})}


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
    kept = {
        label: sha256
        for label, sha256 in provenance.inputs.items()
        if label != "grammar" and not label.startswith(JUDGE_INPUT)
    }
    return replace(
        provenance,
        config={name: value for name, value in provenance.config.items() if name != "judging"},
        inputs=kept,
    )


def verdict_settings(config: Config) -> dict[str, Any]:
    return {"verdict": config.verdict.model_dump()} | thresholds(config)
