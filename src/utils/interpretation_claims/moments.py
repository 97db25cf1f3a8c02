"""What is measured of a judge at one moment of its training: the numbers that the claims speak of, no pictures.

All samples are of the validation split, but for the training loss, and the same at every moment and for every seed.
Nothing is cut by time: the same weights give the same numbers on a busy machine.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import cycle
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from src.utils.circuits.contrast import Margin, contrast_pairs, has_gap, judgement_margin
from src.utils.circuits.divergence import HALF
from src.utils.circuits.neurons import neuron_activations, neuron_table
from src.utils.circuits.patching import ATTENTION, LAST, MLP, LayerPatching, patch_layers
from src.utils.interpretation_claims.key_words import is_key_token, requests_of
from src.utils.interpretation_claims.row_budget import RowBudget
from src.utils.open_ended.styles import WRAPPINGS, n_variants, wrap
from src.utils.prompts import spread
from src.utils.safety_judge.metrics import judge_metrics
from src.utils.safety_judge.samples import SafetyData, SafetySample, labels
from src.utils.safety_judge.scoring import EncodedPrompt, JudgeTemplate, encode, forward_margins, pad_right, score
from src.utils.safety_judge.world import JudgeWorld
from src.utils.watching.layer_activation import count_frozen, last_token_stream
from src.utils.watching.token_attribution import attribute_tokens, empty_token, without_request

SCORED, ATTRIBUTED, PAIRS = 256, 6, 32  # samples of each split scored; requests attributed; contrast pairs patched
ATTRIBUTION_ROWS = 320  # inputs through the model for one request's attribution
BATCH = 128
MEASURED = {"scored": SCORED, "attributed": ATTRIBUTED, "pairs": PAIRS, "attribution_rows": ATTRIBUTION_ROWS}


@dataclass(frozen=True)
class Moment:
    """Numbers of one epoch (0: before training). Layers are `hidden_states` numbers, blocks count from 0.

    `divergence_layer` is where half of the margin's gap is carried (interpolated), None without a gap;
    `divergence_size` the largest distance between the two of a pair over the layers, in mean lengths of the stream;
    `carried` each block's share of the gap by attention and MLP, None without a gap. `claimed` counts the safety
    neurons of each block, None where they cannot be tested. `sparsity` is Hoyer's of the learning blocks' neurons.
    `entropy` is that of |attribution| over a request's tokens as a share of the evenly spread one's, `key_focus` the
    share on action and target minus their share of the tokens, means over requests; `attributions` a profile each.
    `stream` is the mean length of the residual stream by layer, `written` that of what each block adds to it.
    """

    epoch: int
    accuracy: float
    auroc: float
    loss: float
    train_loss: float
    robust_accuracy: float
    divergence_layer: float | None
    divergence_size: float
    carried: list[float] | None
    claimed: list[int] | None
    sparsity: float
    entropy: float
    key_focus: float
    converged: float
    attributions: list[list[float]]
    stream: list[float]
    written: list[float]
    n_frozen_blocks: int

    def as_record(self) -> dict[str, Any]:
        return asdict(self)


class MomentMeter:
    """Measures one training: `measure` at each epoch, epoch 0 first, since neurons are judged above the untrained."""

    def __init__(
        self,
        data: SafetyData,
        world: JudgeWorld,
        tokenizer: PreTrainedTokenizerBase,
        template: JudgeTemplate,
        max_length: int,
    ) -> None:
        def encoded(samples: Sequence[SafetySample], texts: Sequence[str] | None = None) -> list[EncodedPrompt]:
            prompts = [sample.prompt for sample in samples] if texts is None else texts
            return encode(tokenizer, template, prompts, max_length)

        self.template = template
        validation = both_halves(data.validation, SCORED)
        train = spread(data.train, SCORED)
        self.unsafe, self.train_unsafe = labels(validation), labels(train)
        self.groups = np.array([sample.group for sample in validation])
        self.rows, self.train_rows = encoded(validation), encoded(train)
        self.wrapped_rows = encoded(validation, wrapped(validation))
        self.pairs = contrast_pairs(validation, self.rows, template.pad_id, most=PAIRS)
        requests = requests_of(world)
        shown = spread(validation, ATTRIBUTED)
        self.shown = encoded(shown)
        self.keys = [is_key_token(sample, requests[sample.sample_id], world, tokenizer) for sample in shown]
        self.newline_id = tokenizer.encode("\n", add_special_tokens=False)[-1]
        self.reference: Float32[np.ndarray, "layers rows neurons"] | None = None

    def measure(self, model: PreTrainedModel, epoch: int) -> Moment:
        """All numbers of the model as it is; in evaluation mode, which the caller provides."""
        margins = score(model, self.rows, self.template, BATCH)
        of_train = score(model, self.train_rows, self.template, BATCH)
        of_wrapped = score(model, self.wrapped_rows, self.template, BATCH)
        measured = judge_metrics(self.unsafe, margins)
        stream = last_token_stream(model, [row.ids for row in self.rows], self.template.pad_id)
        frozen = max(0, count_frozen(model) - 1)
        neurons = self.neurons(model)
        if epoch == 0:
            self.reference = neurons
        table = neuron_table(neurons, self.unsafe, self.groups, None if epoch == 0 else self.reference)
        layer, carried = decision_layers(patch_layers(self.margin(model), self.pairs))
        focus = [self.attribution(model, row, key) for row, key in zip(self.shown, self.keys, strict=True)]
        return Moment(
            epoch=epoch,
            accuracy=measured.accuracy,
            auroc=measured.auroc if measured.auroc is not None else float("nan"),
            loss=log_loss(self.unsafe, margins),
            train_loss=log_loss(self.train_unsafe, of_train),
            robust_accuracy=float(np.mean((of_wrapped > 0) == self.unsafe)),
            divergence_layer=layer,
            divergence_size=divergence_size(stream, self.unsafe, self.groups),
            carried=carried,
            claimed=None if table is None else table.is_claimed.sum(axis=1).tolist(),
            sparsity=hoyer_sparsity(np.abs(neurons[frozen:]).mean(axis=1)),
            entropy=float(np.mean([entropy_share(values) for values, _, _ in focus])),
            key_focus=float(np.mean([share for _, share, _ in focus])),
            converged=float(np.mean([passed for _, _, passed in focus])),
            attributions=[profile(values).round(6).tolist() for values, _, _ in focus],
            stream=np.linalg.norm(stream, axis=-1).mean(axis=1).astype(float).tolist(),
            written=np.linalg.norm(np.diff(stream, axis=0), axis=-1).mean(axis=1).astype(float).tolist(),
            n_frozen_blocks=frozen,
        )

    def margin(self, model: PreTrainedModel) -> Margin:
        return Margin(model, judgement_margin(self.template))

    def neurons(self, model: PreTrainedModel) -> Float32[np.ndarray, "layers rows neurons"]:
        parts = []
        for start in range(0, len(self.rows), BATCH):
            ids, mask = pad_right(self.rows[start : start + BATCH], self.template.pad_id)
            parts.append(neuron_activations(model, self.margin(model), ids, mask)[1])
        return np.concatenate(parts, axis=1)

    def attribution(
        self, model: PreTrainedModel, row: EncodedPrompt, is_key: Bool[np.ndarray, " tokens"]
    ) -> tuple[Float[np.ndarray, " tokens"], float, bool]:
        """One request's attribution in logits, its focus on the key tokens, and whether the integral converged."""
        embedding = model.get_input_embeddings()
        empty = empty_token(embedding.get_parameter("weight"), self.template.pad_id, self.newline_id)
        budget = RowBudget(ATTRIBUTION_ROWS)
        margin_of = budget.counted(lambda ids: forward_margins(model, ids, ids.new_ones(ids.shape), self.template))
        ids = torch.tensor(row.ids, device=model.device)
        baseline = torch.tensor(without_request(row.ids, row.content_span, empty), device=model.device)
        found, _ = attribute_tokens(margin_of, embedding, ids, baseline, budget)
        values = found.values[slice(*row.content_span)]
        return values, float(profile(values)[is_key].sum() - is_key.mean()), found.has_converged


def both_halves(samples: Sequence[SafetySample], most: int) -> list[SafetySample]:
    """So many samples, evenly spread over the pairs, both halves of each pair; those without a partner are left out."""
    members: dict[str, list[SafetySample]] = {}
    for sample in samples:
        members.setdefault(sample.group, []).append(sample)
    whole = [members[group] for group in sorted(members) if len({one.unsafe for one in members[group]}) == 2]
    return [sample for pair in spread(whole, most // 2) for sample in pair]


def wrapped(samples: Sequence[SafetySample]) -> list[str]:
    """Each prompt in one wrapping that training never shows, styles and variants in turn."""
    frames = [(style, variant) for style in WRAPPINGS for variant in range(n_variants(style))]
    return [
        wrap(sample.prompt, style, (variant,)) for sample, (style, variant) in zip(samples, cycle(frames), strict=False)
    ]


def decision_layers(patching: LayerPatching) -> tuple[float | None, list[float] | None]:
    """The layer at which half of the gap is carried, between layers where it lies between, and each block's share."""
    if not has_gap(patching.safe, patching.unsafe):
        return None, None
    every = np.ones((1, len(patching.safe)))
    by_kind = {kind: np.mean(patching.shares(kind, every), axis=0)[0] for kind in (LAST, ATTENTION, MLP)}
    return crossing(by_kind[LAST]), (by_kind[ATTENTION] + by_kind[MLP]).tolist()


def crossing(shares: Float[np.ndarray, " layers"], threshold: float = HALF) -> float:
    """Where the shares first reach the threshold, linear between layers; the last layer where they never do."""
    reached = np.flatnonzero(shares >= threshold)
    if len(reached) == 0:
        return float(len(shares) - 1)
    first = int(reached[0])
    if first == 0:
        return 0.0
    below, above = shares[first - 1], shares[first]
    return float(first - 1 + (threshold - below) / (above - below))


def divergence_size(
    stream: Float[np.ndarray, "layers rows d_model"], unsafe: Bool[np.ndarray, " rows"], groups: np.ndarray
) -> float:
    """Mean distance of the two of a pair over the mean length of the stream, at the layer where it is largest.

    Rows are pairs: in each group one safe and one unsafe row.
    """
    order = np.lexsort((unsafe, groups))
    halves = stream[:, order].astype(np.float64)
    distance = np.linalg.norm(halves[:, 1::2] - halves[:, ::2], axis=-1).mean(axis=1)
    return float((distance / np.linalg.norm(halves, axis=-1).mean(axis=1)).max())


def hoyer_sparsity(values: Float[np.ndarray, "..."]) -> float:
    """(sqrt(n) - L1/L2) / (sqrt(n) - 1): 0 where all are equal, 1 where one alone is not zero (Hoyer 2004)."""
    flat = np.abs(values.ravel().astype(np.float64))
    root, length = np.sqrt(len(flat)), np.linalg.norm(flat)
    return float((root - flat.sum() / length) / (root - 1)) if length else 0.0


def profile(values: Float[np.ndarray, " tokens"]) -> Float[np.ndarray, " tokens"]:
    """Absolute values as shares of their sum; evenly spread where all are zero."""
    sizes = np.abs(values)
    return sizes / sizes.sum() if sizes.sum() > 0 else np.full(len(values), 1 / len(values))


def entropy_share(values: Float[np.ndarray, " tokens"]) -> float:
    """Entropy of the profile over that of an even one: 1 is as scattered as can be, 0 all on one token."""
    shares = profile(values)
    shares = shares[shares > 0]
    return float(-(shares * np.log(shares)).sum() / np.log(len(values))) if len(values) > 1 else 0.0


def log_loss(unsafe: Bool[np.ndarray, " rows"], margins: Float[np.ndarray, " rows"]) -> float:
    """Mean loss in nats of sigmoid(margin)."""
    return float(np.logaddexp(0, np.where(unsafe, -margins, margins)).mean())
