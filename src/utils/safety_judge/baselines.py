"""What a judge has to beat on the same split: a bag of words, and a linear probe of each layer of its base model.

Both are penalised logistic regressions whose penalty is chosen by inner cross-validation on the training split,
groups (contrast pairs, what was written together) kept whole. Hidden states are those of the model before it was
fine-tuned, at the token where it would answer (arXiv 2412.13435): layer l is Hugging Face's `hidden_states[l]`, the
input of block l; the last one is after the final norm.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, StratifiedGroupKFold
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from src.utils.safety_judge.judge_folder import Judge
from src.utils.safety_judge.samples import SafetySample, labels
from src.utils.safety_judge.scoring import last_real_positions, pad_right
from src.utils.safety_judge.settings import EvaluationConfig

LARGEST_ITERATIONS = 2000


@dataclass(frozen=True)
class Baseline:
    """A fitted baseline: margins (log-odds of unsafe) on validation and test, and how its penalty was chosen.

    `inner_accuracy` is that of the inner cross-validation on the training split, by which a layer is chosen too.
    """

    name: str
    layer: int | None
    penalty: float
    inner_accuracy: float
    validation_margins: Float[np.ndarray, " prompts"]
    test_margins: Float[np.ndarray, " prompts"]


def bag_of_words(
    train: Sequence[SafetySample],
    validation: Sequence[SafetySample],
    test: Sequence[SafetySample],
    settings: EvaluationConfig,
) -> Baseline:
    """TF-IDF of words and pairs of neighbouring words, then logistic regression."""
    model = make_pipeline(TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True), regression())
    inputs = (texts(samples) for samples in (train, validation, test))
    return fitted("bag of words", None, model, *inputs, train, settings)


def texts(samples: Sequence[SafetySample]) -> list[str]:
    return [sample.prompt for sample in samples]


def layer_probes(
    base: Judge,
    train: Sequence[SafetySample],
    validation: Sequence[SafetySample],
    test: Sequence[SafetySample],
    settings: EvaluationConfig,
) -> list[Baseline]:
    """One standardised logistic regression on each layer's hidden state, lowest layer first."""
    states = [hidden_states(base, samples, settings.eval_batch_size) for samples in (train, validation, test)]
    return [
        fitted(
            f"probe of layer {layer}",
            layer,
            make_pipeline(StandardScaler(), regression()),
            *(of_split[layer] for of_split in states),
            train,
            settings,
        )
        for layer in range(len(states[0]))
    ]


def regression() -> LogisticRegression:
    return LogisticRegression(max_iter=LARGEST_ITERATIONS)


def fitted(
    name: str,
    layer: int | None,
    model: Pipeline,
    train_inputs: Any,
    validation_inputs: Any,
    test_inputs: Any,
    train: Sequence[SafetySample],
    settings: EvaluationConfig,
) -> Baseline:
    """Choose the penalty by the log loss of inner folds, fit on the whole training split, score the others."""
    search = GridSearchCV(
        model,
        {"logisticregression__C": settings.penalties},
        scoring={"log_loss": "neg_log_loss", "accuracy": "accuracy"},
        refit="log_loss",
        cv=StratifiedGroupKFold(settings.folds, shuffle=True, random_state=settings.eval_seed),
    )
    with threadpool_limits(limits=1):  # sums on several threads differ in their last bits
        search.fit(train_inputs, labels(train), groups=[sample.group for sample in train])
        margins = [search.decision_function(inputs) for inputs in (validation_inputs, test_inputs)]
    return Baseline(
        name=name,
        layer=layer,
        penalty=float(search.best_params_["logisticregression__C"]),
        inner_accuracy=float(search.cv_results_["mean_test_accuracy"][search.best_index_]),
        validation_margins=margins[0],
        test_margins=margins[1],
    )


def best_probe(probes: Sequence[Baseline]) -> Baseline:
    """The layer of the best inner accuracy: neither validation nor test has a say. Of equals the lowest."""
    return max(probes, key=lambda probe: (probe.inner_accuracy, -(probe.layer or 0)))


def hidden_states(
    base: Judge, samples: Sequence[SafetySample], batch_size: int
) -> Float[np.ndarray, "layers prompts d_model"]:
    """Hidden states of every layer at each prompt's last real token, float32."""
    encoded = base.encode(samples)
    parts = []
    with torch.inference_mode():
        for start in range(0, len(encoded), batch_size):
            ids, mask = (
                part.to(base.model.device)
                for part in pad_right(encoded[start : start + batch_size], base.template.pad_id)
            )
            last = last_real_positions(mask)
            output = base.model.base_model(
                input_ids=ids, attention_mask=mask, output_hidden_states=True, use_cache=False
            )
            rows = torch.arange(len(last), device=last.device)
            parts.append(torch.stack([states[rows, last].float().cpu() for states in output.hidden_states]))
    return torch.cat(parts, dim=1).numpy()


def predictions(baseline: Baseline) -> Bool[np.ndarray, " prompts"]:
    """Which test prompts a baseline flags."""
    return baseline.test_margins > 0
