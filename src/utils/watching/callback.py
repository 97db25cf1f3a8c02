"""Watching a fine-tune: one trainer callback that measures, draws and leaves the training as it would have been.

At number 1, at every multiple of the interval and at the last one it has every picture drawn; statistics it takes at
each. What was measured before training (number 0) is kept as the baseline. A picture that fails leaves a page with
the reason, and the training goes on. What there is to see is left to the pictures.
"""

import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from src.utils.errors import UserError
from src.utils.manifests import Provenance
from src.utils.sites import AnyModel
from src.utils.watching.epoch_metrics import EpochMetrics, PageRecord, PictureRecord, save_metrics
from src.utils.watching.memory_peak import MemoryPeak
from src.utils.watching.pages_folder import PagesFolder
from src.utils.watching.pictures import Budget, Measurement, Moment, Picture
from src.utils.watching.schedule import Schedule
from src.utils.watching.undisturbed import InterferenceError, undisturbed
from src.visualizations.figure_page import FigurePage
from src.visualizations.training_figures import placeholder_page

VISUALIZATIONS = "training_visualizations"
COSTLY_SHARE, COSTLY_SECONDS = 0.5, 15.0  # costly pictures together: of the training since the last moment, or so long
MEASURING = 0.95  # of that; the rest is for drawing, and for a last batch that takes longer than those before
log = logging.getLogger(__name__)

Losses = Sequence[tuple[int, float]]  # optimiser step, training loss
Statistics = Callable[[Moment], dict[str, float | None]]
DrawProgress = Callable[[Sequence[EpochMetrics], Losses], FigurePage]


class Watcher(TrainerCallback):
    """Watches one training; epochs get statistics each, steps only where pictures are due.

    `statistics` measures numbers of the moment, `draw_progress` makes of all records and losses the page that is
    written anew each time. `budget_seconds` is for each picture, times its `relative_budget`; costly ones together get
    no more than the larger of half an epoch and 15 s, and what one of them leaves goes to the next. A folder that
    cannot be written to raises `UserError` here, before anything is trained.
    """

    def __init__(
        self,
        folder: Path,
        schedule: Schedule,
        pictures: Sequence[Picture],
        statistics: Statistics,
        draw_progress: DrawProgress,
        budget_seconds: float,
        provenance: Provenance,
        command: str,
    ) -> None:
        self.pages = PagesFolder(folder, schedule.unit, provenance, command)
        self.schedule = schedule
        self.pictures, self.statistics, self.draw_progress = list(pictures), statistics, draw_progress
        self.budget_seconds = budget_seconds
        self.records: dict[int, EpochMetrics] = {}
        self.measured: dict[str, dict[int, Measurement]] = {picture.name: {} for picture in pictures}
        self.resumed_at = 0.0
        self.is_watching = False

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.is_watching = state.is_world_process_zero
        if not self.is_watching:
            return
        if getattr(args, "fsdp", None) or getattr(args, "deepspeed", None):
            self.is_watching = False  # one process alone cannot run a model that is shared out
            log.warning("the training is not watched: no process holds the whole model")
            return
        self.guarded("the records of this folder", lambda: self.begin(state, kwargs["model"]))
        self.resumed_at = time.perf_counter()

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self.schedule.unit == "epoch" and self.is_watching:
            number = self.number_of(state)
            is_last = state.global_step >= state.max_steps or control.should_training_stop
            self.watch(state, kwargs["model"], number, is_visualised=self.schedule.is_due(number, is_last))

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self.schedule.unit == "step" and self.is_watching:
            is_last = state.global_step >= state.max_steps or control.should_training_stop
            if self.schedule.is_due(state.global_step, is_last):
                self.watch(state, kwargs["model"], state.global_step, is_visualised=True)

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """The trainer evaluates after the epoch's pictures: its figures join the record that is there."""
        record = self.records.get(self.number_of(state))
        if not self.is_watching or record is None or record.step != state.global_step:
            return
        found = {name: float(value) for name, value in (metrics or {}).items() if isinstance(value, int | float)}
        updated = record.model_copy(update={"trainer_metrics": {k: v for k, v in found.items() if math.isfinite(v)}})
        self.guarded("the trainer's metrics", lambda: self.keep(updated, state))

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Draws what an early stop left undrawn, unless the weights are by now those of another epoch."""
        if not self.is_watching:
            return
        last = self.records.get(self.number_of(state))
        is_drawn = last is not None and last.step == state.global_step and last.is_visualised
        if not is_drawn and not args.load_best_model_at_end and state.global_step:
            self.watch(state, kwargs["model"], self.number_of(state), is_visualised=True)
        self.guarded("the training's progress", lambda: self.pages.finish(self.progress_page(state)))

    def number_of(self, state: TrainerState) -> int:
        if self.schedule.unit == "step":
            return state.global_step
        return math.ceil((state.epoch or 0.0) - 1e-6)

    def begin(self, state: TrainerState, model: AnyModel) -> None:
        """Take up the records up to here, or clear the folder and measure the baseline."""
        number = self.number_of(state)
        if state.global_step == 0:
            self.pages.clear()
            self.watch(state, model, 0, is_visualised=False)
            return
        self.records = {record.number: record for record in self.pages.records(number)}
        self.pages.clear(after=max(self.records, default=-1))
        for picture in self.pictures:
            self.measured[picture.name] = self.pages.measurements(picture.name, list(self.records.values()))

    def watch(self, state: TrainerState, model: AnyModel, number: int, is_visualised: bool) -> None:
        """Everything at one moment, in such a way that the training does not notice."""
        started = time.perf_counter()
        training_peak = MemoryPeak.so_far()
        training_seconds = started - self.resumed_at if self.resumed_at else 0.0
        moment = Moment(self.schedule.unit, number, state.global_step, model)

        def everything() -> None:
            with undisturbed(model):
                metrics, failure = self.measure_statistics(moment)
                drawn = self.take_all(moment, training_peak, training_seconds) if is_visualised or not number else []
            record = EpochMetrics(
                unit=moment.unit,
                number=number,
                step=moment.step,
                is_visualised=is_visualised,
                training_loss=self.mean_loss(state, moment.step),
                metrics=metrics,
                failure=failure,
                training_seconds=training_seconds,
                watching_seconds=time.perf_counter() - started,
                pictures=drawn,
            )
            self.pages.save_values(
                number, {name: found[number] for name, found in self.measured.items() if number in found}
            )
            self.keep(record, state)

        self.guarded(f"{moment.unit} {number}", everything)
        self.resumed_at = time.perf_counter()

    def measure_statistics(self, moment: Moment) -> tuple[dict[str, float | None], str | None]:
        try:
            return self.statistics(moment), None
        except Exception as error:
            return {}, reason_of(error)

    def seconds_for(self, picture: Picture, training_seconds: float) -> float:
        """What a picture may take, where the training since the moment before took so long."""
        seconds = picture.relative_budget * self.budget_seconds
        if picture.relative_budget <= 1:
            return seconds
        together = self.budget_seconds * sum(one.relative_budget for one in self.pictures if one.relative_budget > 1)
        allowed = MEASURING * max(COSTLY_SHARE * training_seconds, COSTLY_SECONDS)
        return seconds * min(1.0, allowed / max(together, 1e-9))

    def take_all(self, moment: Moment, training_peak: int, training_seconds: float) -> list[PictureRecord]:
        """Every picture in turn."""
        records: list[PictureRecord] = []
        spared = 0.0
        for picture in self.pictures:
            is_costly = picture.relative_budget > 1
            seconds = self.seconds_for(picture, training_seconds) + spared * is_costly
            records.append(self.take(picture, moment, training_peak, seconds))
            if is_costly:
                spared = max(0.0, seconds - records[-1].seconds)
        return records

    def take(self, picture: Picture, moment: Moment, training_peak: int, seconds: float) -> PictureRecord:
        """Measure and draw one picture in so many seconds, with what it cost; a failure is drawn in its place."""
        budget = Budget(seconds)
        memory = MemoryPeak(training_peak)
        history = self.measured[picture.name]
        pages: list[FigurePage] = []
        failure = None
        try:
            before = picture.shared(history)
            history[moment.number] = picture.measure(moment, budget, history.get(0))
            if moment.number:
                numbers = [number for number in history if number] if picture.shared(history) != before else []
                for number in {*numbers, moment.number}:
                    drawn = picture.draw(number, history)
                    self.pages.write(drawn)
                    pages = drawn if number == moment.number else pages
        except Exception as error:
            history.pop(moment.number, None)
            failure = reason_of(error)
            if isinstance(error, torch.OutOfMemoryError):
                torch.cuda.empty_cache()
            if moment.number:
                pages = [placeholder_page(name, picture.name, failure) for name in picture.file_names(moment.number)]
                self.pages.write(pages)
        measured = history.get(moment.number, Measurement({}))
        return PictureRecord(
            name=picture.name,
            pages=[PageRecord(file_name=page.file_name, title=page.title, sentence=page.sentence) for page in pages],
            seconds=budget.spent,
            budget_seconds=budget.seconds,
            peak_memory_bytes=memory.so_far(),
            memory_raised_bytes=memory.raised,
            sub_sampled=measured.sub_sampled,
            failure=failure,
            facts=dict(measured.facts),
            convergence=list(measured.convergence),
        )

    def keep(self, record: EpochMetrics, state: TrainerState) -> None:
        """Put a record in its place and write what shows all of them."""
        self.records[record.number] = record
        save_metrics(record, self.pages.folder)
        self.pages.save_overview(list(self.records.values()), self.progress_page(state))

    def progress_page(self, state: TrainerState) -> FigurePage:
        ordered = [self.records[number] for number in sorted(self.records)]
        return self.pages.signed(self.draw_progress(ordered, losses_of(state)))

    def mean_loss(self, state: TrainerState, step: int) -> float | None:
        """Mean of the losses logged since the record before."""
        since = max((record.step for record in self.records.values() if record.step < step), default=0)
        own = [loss for at, loss in losses_of(state) if since < at <= step]
        return sum(own) / len(own) if own else None

    def guarded(self, what: str, work: Callable[[], None]) -> None:
        """Whatever fails in watching is said once and ends nothing, but for a picture that wrote to the weights."""
        try:
            work()
        except InterferenceError:
            raise
        except Exception as error:
            log.warning("watching %s failed, the training goes on: %s", what, reason_of(error))


def losses_of(state: TrainerState) -> list[tuple[int, float]]:
    return [(int(row["step"]), float(row["loss"])) for row in state.log_history if "loss" in row]


def reason_of(error: Exception) -> str:
    """What went wrong, in one line."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return f"out of memory; lower the batch size or raise the interval ({str(error).splitlines()[0][:200] or '-'})"
    if isinstance(error, UserError):
        return error.message
    text = " ".join(str(error).split())[:300]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
