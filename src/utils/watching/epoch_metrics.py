"""The record of one watched moment, `epoch_{N}_metrics.json` (`step_{N}_metrics.json` where steps are watched).

Record 0 is the baseline, measured before training. A share or score that could not be measured is null, never 0.

A judge's `metrics` are those of `safety_judge.metrics.JudgeMetrics` at margin 0, and quantiles of the margins as
`margin/<label>/<quantile>`. A persona's are shares of answers (`in_domain`, `transfer`, `flip`, `coherent`), ends of
their 95% intervals over `n` questions (`/low`, `/high`), the mean `em_score`, `projection/<pooling>` (shift since step
0, in lengths of the direction; `projection_at` is before subtraction), `adapter/norm` and `adapter/local_cosine`.

The headline numbers of a picture are its `facts`; logits are of the margin, layers those of `hidden_states`:

* token_attribution: `baseline_token`, what stands in a request's place; for each `sample_<i>` its `sample_id`, `margin`
  and `baseline_margin`, the margin `towards_predicted` class, ERASER's `comprehensiveness` and `sufficiency` in logits
  and those of random orders, and what the budget `cut`, if anything.
* layer_activation: `n_frozen` layers, from the embeddings on, cannot move; `moved_frozen_layers` did (empty, or
  something is wrong); for each `sample_<i>` its `margin`.
* circuit_comparison: `rows` probed; `probe_auroc` held out, by layer; `learned_layers` beat shuffled labels and what
  they said before training; `pairs` patched; `gap`, the mean margin of the unsafe minus that of the safe of a pair;
  `divergence`, the layer with its 95% interval, null if none was found.
* neuron_map: `neurons` tested; how many are `corrected` (survive correction), `replicated` as well, and `claimed`
  (also above before training), `claimed_by_block`; `top`, the [block, neuron] ablated; `ablation` by kind, the classes'
  separation and what ablation takes of it, in logits, and `ablation_p` beside matched random neurons.
* circuits: `pairs`, `gap` and whether it is more than chance (`has_gap`); for each of `circuit_sizes` its
  `faithfulness` (the share of the gap kept), the `best_random` circuit's and `p`, null where none was run;
  `chosen_edges`, the size chosen on other pairs, and `drawn_edges`, null if no circuit was found; `rank_correlation` of
  estimated with exact effects; `change_since_start`, how far all edges' effects moved since record 0 as a share of
  their length (`total`), the noise of repeated extraction (`noise`), and the share of the squared change that exceeds
  it (`beyond_noise`).
"""

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError

from src.utils.atomic_writes import write_atomically
from src.utils.errors import UserError

Unit = Literal["epoch", "step"]


class Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Convergence(Record):
    """How far an integrated gradient is from complete: the attributions' sum minus the margin's change, in logits.

    It has passed if `error`, the absolute deltas of all parts of the path added up, is within the tolerance.
    """

    sample: str
    delta: float
    error: float
    tolerance: float
    has_passed: bool
    points: int = Field(description="where gradients were taken on the path from baseline to input")


class PageRecord(Record):
    """A page as the index lists it."""

    file_name: str
    title: str
    sentence: str


class PictureRecord(Record):
    """One picture at one moment: what it cost and, where it was not drawn, why."""

    name: str
    pages: list[PageRecord]
    seconds: float = Field(ge=0, description="measuring and drawing")
    budget_seconds: float
    peak_memory_bytes: int = Field(description="on a GPU allocated there at most meanwhile; else the process's peak")
    memory_raised_bytes: int = Field(description="by how much the picture raised the peak that training had reached")
    sub_sampled: str | None = Field(None, description="what the budget cut; null if nothing")
    failure: str | None = Field(None, description="why a page with this reason stands in its place; null if drawn")
    facts: dict[str, JsonValue] = Field(default_factory=dict, description="headline numbers; see this module")
    convergence: list[Convergence] = Field(default_factory=list)


class EpochMetrics(Record):
    """One moment: `number` counts `unit`s, `step` optimiser steps since the beginning."""

    schema_version: Literal[1] = 1
    unit: Unit
    number: int = Field(ge=0)
    step: int = Field(ge=0)
    is_visualised: bool
    training_loss: float | None = Field(None, description="mean of the logged losses since the record before")
    metrics: dict[str, float | None] = Field(default_factory=dict, description="measured here, on the probe set")
    trainer_metrics: dict[str, float] = Field(default_factory=dict, description="eval_*, as the trainer reported them")
    failure: str | None = Field(None, description="why `metrics` is empty; null if they were measured")
    training_seconds: float = Field(ge=0, description="since the record before, watching left out")
    watching_seconds: float = Field(ge=0, description="statistics, pictures and files")
    pictures: list[PictureRecord] = Field(default_factory=list)


def metrics_file(unit: Unit, number: int) -> str:
    return f"{unit}_{number}_metrics.json"


def save_metrics(record: EpochMetrics, folder: Path) -> Path:
    """Write a record whole or not at all; a folder that cannot be written to raises `UserError`."""
    path = folder / metrics_file(record.unit, record.number)
    with write_atomically(path) as temporary:
        temporary.write_text(record.model_dump_json(indent=2) + "\n", encoding="utf-8")
    return path


def load_metrics(path: Path) -> EpochMetrics:
    """Read a record; one that is missing, damaged or of another version raises `UserError`."""
    try:
        return EpochMetrics.model_validate_json(path.read_bytes())
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); watch the training again") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "JSON"
        raise UserError(f"{path}: no record of this version ({where}: {first['msg']}); watch again") from error


def load_history(folder: Path, unit: Unit, last: int | None = None) -> list[EpochMetrics]:
    """All records of a folder in order, up to number `last`; damaged ones raise `UserError`."""
    records = [load_metrics(path) for path in folder.glob(f"{unit}_*_metrics.json")]
    chosen = [record for record in records if last is None or record.number <= last]
    return sorted(chosen, key=lambda record: record.number)
