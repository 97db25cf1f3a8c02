"""The pictures of a judge that ask for nothing but one forward or backward pass: token attribution, layer activation.

What is measured is left to `token_attribution` and `layer_activation`, how it looks to the figures; here is what of it
is done for which sample within a budget, and what is kept so that a page can be drawn again.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from src.utils.safety_judge.scoring import JudgeTemplate, forward_margins
from src.utils.sites import AnyModel, decoder_of
from src.utils.watching.epoch_metrics import Convergence
from src.utils.watching.layer_activation import (
    LayerChange,
    as_tensor,
    change_since,
    count_frozen,
    last_token_stream,
    norms,
    residual_stream,
)
from src.utils.watching.pictures import Budget, Measurement, Moment
from src.utils.watching.probe_set import Probe, ProbeSet
from src.utils.watching.token_attribution import (
    RANDOM_ORDERS,
    MarginOf,
    RemovalCurves,
    attribute_tokens,
    empty_token,
    removal_curves,
    without_request,
)
from src.visualizations.figure_page import FigurePage
from src.visualizations.layer_figures import layer_page
from src.visualizations.palette import LABEL_COLOURS
from src.visualizations.training_figures import SampleView, token_page

CURVES = ("counts", "removed", "kept", "random_removed", "random_kept")
BATCH = 16  # samples of the statistics at once; the same batches each time, so that frozen layers repeat to the bit


def margins_of(model: AnyModel, template: JudgeTemplate) -> MarginOf:
    """Margins with their graph, of a batch of inputs without padding."""
    return lambda ids: forward_margins(model, ids, ids.new_ones(ids.shape), template)


def page_name(number: int, index: int, probe: Probe, kind: str) -> str:
    return f"epoch_{number}_sample_{index}_{probe.sample.label}_{kind}.html"


def view_of(probe: Probe, index: int, margin: float) -> SampleView:
    return SampleView(index, probe.sample.label, probe.tokens, probe.encoded.content_span, margin)


@dataclass(frozen=True)
class TokenAttributionPicture:
    """`epoch_{N}_sample_{i}_{label}_tokens.html` of the four shown samples."""

    probes: ProbeSet
    template: JudgeTemplate
    name: str = "token_attribution"
    is_advanced: bool = False
    relative_budget: float = 1.0

    def file_names(self, number: int) -> list[str]:
        return [page_name(number, index, probe, "tokens") for index, probe in enumerate(self.probes.shown)]

    def measure(self, moment: Moment, budget: Budget, baseline: Measurement | None) -> Measurement:
        margin_of = margins_of(moment.model, self.template)
        embedding = decoder_of(moment.model).get_submodule("embed_tokens")
        empty_id = empty_token(next(embedding.parameters()), self.template.pad_id, self.probes.newline_id)
        values: dict[str, np.ndarray] = {}
        facts: dict[str, Any] = {"baseline_token": "padding" if empty_id == self.template.pad_id else "newline"}
        convergence: list[Convergence] = []
        cuts: dict[str, str] = {}
        for index, probe in enumerate(self.probes.shown):
            own = budget.share(len(self.probes.shown) - index)
            span = probe.encoded.content_span
            ids = as_tensor(probe.encoded.ids, moment.model)
            empty = as_tensor(without_request(probe.encoded.ids, span, empty_id), moment.model)
            found, was_cut = attribute_tokens(margin_of, embedding, ids, empty, Budget(0.7 * own.left))
            curves = removal_curves(margin_of, ids, empty, span, found.values, own)
            orders = len(curves.random_removed)
            key = f"sample_{index}"
            values |= {f"{key}/attribution": found.values} | {f"{key}/{n}": getattr(curves, n) for n in CURVES}
            facts[key] = {
                "sample_id": probe.sample.sample_id,
                "margin": found.margin,
                "baseline_margin": found.baseline_margin,
                "towards_predicted": curves.full,
                "comprehensiveness": curves.comprehensiveness,
                "random_comprehensiveness": curves.random_comprehensiveness,
                "sufficiency": curves.sufficiency,
                "random_sufficiency": curves.random_sufficiency,
            }
            convergence.append(found.convergence(key))
            cut = [f"stopped at {found.points} points"] if was_cut else []
            cut += [f"{orders} of {RANDOM_ORDERS} random orders"] if orders < RANDOM_ORDERS else []
            if cut:
                cuts[f"sample {index}"] = facts[key]["cut"] = ", ".join(cut)
        return Measurement(values, facts, convergence, budget.note(f"{sample}: {cut}" for sample, cut in cuts.items()))

    def shared(self, history: Mapping[int, Measurement]) -> Mapping[str, float]:
        """The largest absolute attribution of any sample at any moment, in logits; of those that converged, if any."""
        largest: dict[bool, float] = {}
        for found in history.values():
            for one in found.convergence:
                reached = float(np.abs(found.values[f"{one.sample}/attribution"]).max())
                largest[one.has_passed] = max(reached, largest.get(one.has_passed, 0.0))
        return {"colour_range": largest.get(True, largest.get(False, 0.0))}

    def draw(self, number: int, history: Mapping[int, Measurement]) -> list[FigurePage]:
        found, colour_range = history[number], self.shared(history)["colour_range"]
        pages = []
        for index, (probe, convergence) in enumerate(zip(self.probes.shown, found.convergence, strict=True)):
            key = f"sample_{index}"
            facts: Any = found.facts[key]
            start, end = probe.encoded.content_span
            arrays = {name: found.values[f"{key}/{name}"] for name in CURVES}
            curves = RemovalCurves(full=facts["towards_predicted"], n_tokens=end - start, **arrays)
            pages.append(
                token_page(
                    page_name(number, index, probe, "tokens"),
                    f"Epoch {number}",
                    view_of(probe, index, facts["margin"]),
                    found.values[f"{key}/attribution"],
                    facts["baseline_margin"],
                    str(found.facts["baseline_token"]),
                    convergence,
                    curves,
                    max(colour_range, 1e-6),
                    f"Over its share of the budget, sub-sampled: {facts['cut']}" if "cut" in facts else None,
                )
            )
        return pages


@dataclass(frozen=True)
class LayerActivationPicture:
    """`epoch_{N}_sample_{i}_{label}_layers.html` of the four shown samples, beside the larger sample's last tokens."""

    probes: ProbeSet
    template: JudgeTemplate
    name: str = "layer_activation"
    is_advanced: bool = False
    relative_budget: float = 1.0

    def file_names(self, number: int) -> list[str]:
        return [page_name(number, index, probe, "layers") for index, probe in enumerate(self.probes.shown)]

    def measure(self, moment: Moment, budget: Budget, baseline: Measurement | None) -> Measurement:
        margin_of = margins_of(moment.model, self.template)
        n_frozen = count_frozen(moment.model)
        values: dict[str, np.ndarray] = {}
        facts: dict[str, Any] = {"n_frozen": n_frozen}
        faults: set[int] = set()
        for index, probe in enumerate(self.probes.shown):
            key = f"sample_{index}"
            stream = residual_stream(moment.model, probe.encoded.ids)
            facts[key] = {"margin": float(margin_of(as_tensor(probe.encoded.ids, moment.model)[None]).detach())}
            values[f"{key}/norms"] = norms(stream)
            if moment.number == 0:
                values[f"{key}/stream"] = stream
            elif baseline is not None:
                change = change_since(stream, baseline.values[f"{key}/stream"])
                values |= {f"{key}/relative": change.relative, f"{key}/largest": change.largest}
                faults |= set(change.faults(n_frozen))
        streams, note = self.last_tokens(moment.model, budget)
        if moment.number == 0:
            values["last_token/stream"] = streams
        elif baseline is not None:
            count = min(streams.shape[1], baseline.values["last_token/stream"].shape[1])
            change = change_since(streams[:, :count], baseline.values["last_token/stream"][:, :count])
            values["last_token/relative"] = change.relative.T
            faults |= set(change.faults(n_frozen))
        facts["moved_frozen_layers"] = sorted(faults)
        return Measurement(values, facts, sub_sampled=note)

    def last_tokens(
        self, model: AnyModel, budget: Budget
    ) -> tuple[Float[np.ndarray, "layers rows d_model"], str | None]:
        """As many batches of the larger sample as the budget holds, at least one."""
        rows = [probe.encoded.ids for probe in interleaved(self.probes.statistics)]
        parts = []
        for start in range(0, len(rows), BATCH):
            began = time.perf_counter()
            parts.append(last_token_stream(model, rows[start : start + BATCH], self.template.pad_id))
            if time.perf_counter() - began > budget.left:
                break
        streams = np.concatenate(parts, axis=1)
        measured = streams.shape[1]
        return streams, budget.note([f"{measured} of {len(rows)} samples" if measured < len(rows) else ""])

    def shared(self, history: Mapping[int, Measurement]) -> Mapping[str, float]:
        """The shortest and longest vector (log10) and the largest relative change of any sample at any moment."""
        arrays = [item for found in history.values() for item in found.values.items()]
        lengths = [array for key, array in arrays if key.endswith("/norms")]
        changes = [array for key, array in arrays if key.endswith("/relative") and key.startswith("sample")]
        low = min((float(array[array > 0].min(initial=1.0)) for array in lengths), default=1.0)
        high = max((float(array.max()) for array in lengths), default=1.0)
        return {
            "norm_low": float(np.log10(low)),
            "norm_high": float(np.log10(max(high, 1e-12))),
            "change": max((float(np.nanmax(array)) for array in changes), default=0.0),
        }

    def draw(self, number: int, history: Mapping[int, Measurement]) -> list[FigurePage]:
        found, ranges = history[number], self.shared(history)
        n_frozen = found.facts["n_frozen"]
        assert isinstance(n_frozen, int)
        pages = []
        for index, probe in enumerate(self.probes.shown):
            key = f"sample_{index}"
            relative = found.values.get(f"{key}/relative")
            change = None if relative is None else LayerChange(relative, found.values[f"{key}/largest"])
            facts: Any = found.facts[key]
            pages.append(
                layer_page(
                    page_name(number, index, probe, "layers"),
                    f"Epoch {number}",
                    view_of(probe, index, facts["margin"]),
                    found.values[f"{key}/norms"],
                    change,
                    self.by_label(found.values.get("last_token/relative")),
                    n_frozen,
                    (ranges["norm_low"], ranges["norm_high"]),
                    ranges["change"],
                    found.sub_sampled,
                )
            )
        return pages

    def by_label(self, relative: np.ndarray | None) -> dict[Any, Float[np.ndarray, "samples layers"]]:
        """The larger sample's changes at the last token, by label; none without a baseline."""
        if relative is None:
            return {}
        labels = np.array([probe.sample.label for probe in interleaved(self.probes.statistics)][: len(relative)])
        return {label: relative[labels == label] for label in LABEL_COLOURS}


def interleaved(probes: Sequence[Probe]) -> list[Probe]:
    """Safe and unsafe in turn, so that a part of the sample has both."""
    safe = [probe for probe in probes if not probe.sample.unsafe]
    unsafe = [probe for probe in probes if probe.sample.unsafe]
    mixed = [probe for pair in zip(safe, unsafe, strict=False) for probe in pair]
    return [*mixed, *safe[len(unsafe) :], *unsafe[len(safe) :]]
