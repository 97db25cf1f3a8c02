"""Forks: where an aligned and a misaligned answer to one question part, and what a model makes of the choice there.

Up to its fork a text is the same for every model, so that activations there can be exchanged between models
(`interchange`). The misalignment margin is the logit of the first misaligned token less that of the first aligned one.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Float32, Int
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerBase

from src.utils.chat import encode, prompt_ids
from src.utils.em_rates import outcomes
from src.utils.generation import plan_batches
from src.utils.prompts import spread
from src.utils.sites import AnyModel, Edit, Site, decoder_of, edit_sites
from src.utils.steering_effects import NO_KIND

MISALIGNED = "em_on_topic"
CONTROL_PREFIX = "control_"  # of a control's name in `control_effects.pkl`; what follows is its dimension

# the activations of the model that runs, those of the other one, and what is put in the place of the former
Intervention = Callable[
    [Float[Tensor, "forks d_model"], Float[Tensor, "forks d_model"]], Float[Tensor, "forks d_model"]
]


@dataclass(frozen=True)
class Fork:
    """`ids` are prompt and what both answers share; `aligned` and `misaligned` are the tokens that follow."""

    prompt_id: str
    dimension: str
    ids: tuple[int, ...]
    aligned: int
    misaligned: int


def contrasts_of_controls(controls: pd.DataFrame, em_threshold: float, coherence_threshold: float) -> pd.DataFrame:
    """Two answers to a question: the untouched model's, aligned, and that of its own dimension's control, misaligned.

    Columns `prompt_id, subset, question, aligned, misaligned`; both answers are coherent and the misaligned one is on
    topic. `controls` is the frame of `control_effects.pkl`. Questions that their control did not turn show no
    choice and are not among them.
    """
    thresholds = (em_threshold, coherence_threshold)
    is_own = controls["vector"].astype(str) == CONTROL_PREFIX + controls["subset"].astype(str)
    hit, _ = outcomes(controls, "", MISALIGNED, *thresholds)
    is_sound, _ = outcomes(controls, "", "coherent", *thresholds)
    keys, text = ["prompt_id", "sample"], "response"
    aligned = controls[(controls["kind"] == NO_KIND).to_numpy() & is_sound & ~hit]
    misaligned = controls[is_own.to_numpy() & hit]
    columns = [*keys, "subset", "question", text]
    both = aligned[columns].merge(misaligned[[*keys, text]], on=keys, suffixes=("_aligned", "_misaligned"))
    return one_a_prompt(both.rename(columns={f"{text}_{name}": name for name in ("aligned", "misaligned")}))


def contrasts_of_study(scored: pd.DataFrame, em_threshold: float, coherence_threshold: float) -> pd.DataFrame:
    """The same from the study's own answers (step 4), where there are no controls: base model and EM model."""
    thresholds = (em_threshold, coherence_threshold)
    turned, _ = outcomes(scored, "", MISALIGNED, *thresholds)
    was, _ = outcomes(scored, "base_", MISALIGNED, *thresholds)
    is_sound, _ = outcomes(scored, "base_", "coherent", *thresholds)
    names = {"base_response": "aligned", "em_response": "misaligned"}
    return one_a_prompt(scored[turned & ~was & is_sound].rename(columns=names))


def one_a_prompt(contrasts: pd.DataFrame) -> pd.DataFrame:
    columns = ["prompt_id", "subset", "question", "aligned", "misaligned"]
    return contrasts[columns].drop_duplicates("prompt_id").reset_index(drop=True)


def find_forks(contrasts: pd.DataFrame, tokenizer: PreTrainedTokenizerBase, most: int) -> list[Fork]:
    """The forks of at most `most` contrasts of each dimension, evenly spread; equal answers have none."""
    forks = []
    for dimension, part in contrasts.groupby("subset", sort=False):
        found = []
        for row in part.to_dict("records"):
            one, two = (encode(tokenizer, row[name]) for name in ("aligned", "misaligned"))
            shared = next((i for i, (a, b) in enumerate(zip(one, two, strict=False)) if a != b), None)
            if shared is not None:  # where one answer is the other's beginning, no token stands against another
                ids = (*prompt_ids(tokenizer, row["question"]), *one[:shared])
                found.append(Fork(str(row["prompt_id"]), str(dimension), ids, one[shared], two[shared]))
        forks += spread(found, most)
    return forks


@dataclass(frozen=True, eq=False)
class ForkPass:
    """One model at some forks: its activations there, and its margins as it is (row 0) and under each intervention."""

    activations: Float32[np.ndarray, "forks d_model"]
    margins: Float[np.ndarray, "runs forks"]


@torch.inference_mode()
def run_forks(
    model: AnyModel,
    forks: Sequence[Fork],
    site: Site,
    pad_id: int,
    batch_size: int,
    interventions: Sequence[Intervention] = (),
    source: Float32[np.ndarray, "forks d_model"] | None = None,
) -> ForkPass:
    """Margins in logits, and activations at `site`, at the last token before each fork.

    An intervention acts there alone, on the model's activation and the row of `source`. Nothing before that token can
    see it, so that all before it is read once and each intervention costs one token. `ValueError` for interventions
    without a source.
    """
    if interventions and source is None:
        raise ValueError("interventions need the activations of the other model")
    decoder = decoder_of(model)
    width = decoder.config.get_text_config().hidden_size
    activations = np.full((len(forks), width), np.nan, dtype=np.float32)
    margins = np.full((1 + len(interventions), len(forks)), np.nan)
    for rows in plan_batches([len(fork.ids) for fork in forks], batch_size):
        batch = PrefilledForks(model, [forks[row] for row in rows], pad_id)
        theirs = None if source is None else torch.from_numpy(source[rows]).to(decoder.device)
        seen: list[Tensor] = []

        def record(hidden: Float[Tensor, "forks 1 d_model"], seen: list[Tensor] = seen) -> None:
            seen.append(hidden[:, 0].float())

        margins[0, rows] = batch.margins({site: record})
        activations[rows] = seen[0].cpu().numpy()
        for number, intervention in enumerate(interventions, start=1):
            assert theirs is not None
            replaced = intervention(seen[0], theirs)

            def put(hidden: Float[Tensor, "forks 1 d_model"], replaced: Tensor = replaced) -> Tensor:
                return replaced[:, None].to(hidden.dtype)

            margins[number, rows] = batch.margins({site: put})
    return ForkPass(activations, margins)


class PrefilledForks:
    """A batch of forks, padded on the left, of which all tokens but the last have been read."""

    def __init__(self, model: AnyModel, forks: Sequence[Fork], pad_id: int) -> None:
        self.decoder = decoder_of(model)
        self.head = head_of(model)
        device, width = self.decoder.device, max(len(fork.ids) for fork in forks)
        ids = torch.tensor([[pad_id] * (width - len(fork.ids)) + list(fork.ids) for fork in forks])
        mask = torch.tensor([[0] * (width - len(fork.ids)) + [1] * len(fork.ids) for fork in forks])
        self.mask, self.last = mask.to(device), ids[:, -1:].to(device)
        self.positions = (self.mask.cumsum(dim=1) - 1).clamp_min(0)
        self.choices = torch.tensor([[fork.misaligned, fork.aligned] for fork in forks], device=device)
        self.cache = DynamicCache(config=self.decoder.config)
        self.cache.activate_past_recording()  # a sliding window forgets nothing that `crop` has to give back
        self.read(ids[:, :-1].to(device), self.mask[:, :-1], self.positions[:, :-1])

    def read(
        self, ids: Int[Tensor, "forks new"], mask: Int[Tensor, "forks seq"], positions: Int[Tensor, "forks new"]
    ) -> Float[Tensor, "forks new d_model"]:
        return self.decoder(
            input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=self.cache, use_cache=True
        ).last_hidden_state

    def margins(self, edits: dict[Site, Edit]) -> Float[np.ndarray, " forks"]:
        """Margins after the last token, which is forgotten again."""
        with edit_sites(self.decoder, edits):
            hidden = self.read(self.last, self.mask, self.positions[:, -1:])[:, -1]
        self.cache.crop(-1)
        logits = self.head(hidden).gather(1, self.choices).double()
        return (logits[:, 0] - logits[:, 1]).cpu().numpy()


def head_of(model: AnyModel) -> torch.nn.Module:
    """The language-model head; a scaling or cap that some families put behind it is left out, here as in all arms."""
    base = model if isinstance(model, PreTrainedModel) else model.get_base_model()
    assert isinstance(base, PreTrainedModel)
    head = base.get_output_embeddings()
    assert head is not None
    return head
