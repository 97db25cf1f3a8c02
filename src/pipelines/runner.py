"""Run the steps that are not up to date, in order, each as a process of its own.

A step of its own process gives its memory back, is measured alone, and is exactly what a user runs by hand.
"""

import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

from src.pipelines.memory_watch import memory_watched
from src.pipelines.option_words import name_of, options_in
from src.pipelines.persona_study import STEPS
from src.pipelines.step import AnyStudy, Step
from src.pipelines.warm_process import load_libraries, start_script
from src.utils.config import PROJECT_ROOT
from src.utils.errors import UserError
from src.utils.shared_work import can_fork, die_with_parent


@dataclass(frozen=True)
class Decision:
    """Whether a step is to run, and why, in one line."""

    step: Step
    runs: bool
    reason: str


@dataclass(frozen=True)
class Measured:
    """What one step took: seconds, and the bytes that the run's processes held together at its peak."""

    step: Step
    seconds: float
    peak_memory: int


def choose_steps(only: Sequence[str], start: str | None, steps: Sequence[Step] = STEPS) -> list[Step]:
    """The steps named by `--only` (in their own order) or from `--from` on; see `find_step` for names."""
    if only and start:
        raise UserError("--only and --from exclude each other; give one", 2)
    if only:
        wanted = {find_step(name, steps).name for name in only}
        return [step for step in steps if step.name in wanted]
    first = steps.index(find_step(start, steps)) if start else 0
    return list(steps[first:])


def find_step(name: str, steps: Sequence[Step] = STEPS) -> Step:
    """The step of that script name, `03_collect_activations`, `collect_activations` or `03`."""
    stem = name.rsplit("/", 1)[-1].removesuffix(".py")
    for step in steps:
        if stem and stem in names_of(step):
            return step
    raise UserError(f"step {name!r} is unknown; there are {', '.join(step.name for step in steps)}", 2)


def names_of(step: Step) -> tuple[str, ...]:
    first, _, rest = step.name.partition("_")
    return step.name, first, rest


def decide(step: Step, study: AnyStudy, forced: bool, running: Sequence[str] = ()) -> Decision:
    """Decide about one step now; `running` names earlier steps of a dry run that would have changed its inputs."""
    if not step.is_needed(study):
        return Decision(step, False, f"not needed: {step.why_not_needed(study)}")
    if forced:
        return Decision(step, True, "forced")
    upstream = [name for name in running if name in (*step.reads, *step.also_reads(study))]
    if upstream:
        return Decision(step, True, f"reads what {upstream[-1]} makes")
    freshness = step.freshness(study, step.provenance(study))
    return Decision(step, not freshness.fresh, freshness.reason)


def plan(steps: Sequence[Step], study: AnyStudy, forced: bool) -> list[Decision]:
    """What a run would do, as far as that can be said before it: steps behind one that runs are taken to run."""
    decisions: list[Decision] = []
    for step in steps:
        running = [decision.step.name for decision in decisions if decision.runs]
        decisions.append(decide(step, study, forced, running))
    return decisions


def run_steps(steps: Sequence[Step], study: AnyStudy, options: Sequence[str], forced: bool) -> list[Measured]:
    """Run what is stale. Raises `UserError` as soon as a step fails; what earlier steps made stays."""
    measured = []
    warm = len(steps) > 1 and can_fork()
    for number, step in enumerate(steps, start=1):
        decision = decide(step, study, forced)
        verb = "run" if decision.runs else "keep"
        print(f"[{number}/{len(steps)}] {step.name}: {verb} ({decision.reason})", flush=True)
        if decision.runs:
            measured.append(run_step(step, [*accepted(step, options), *step.given(study, forced)], warm))
    return measured


def run_step(step: Step, options: Sequence[str], warm: bool = False) -> Measured:
    """One script in its own process, its output shown as it comes; Ctrl-C reaches it and ends the run."""
    started = time.perf_counter()
    if warm:
        load_libraries()
    child = start_script(PROJECT_ROOT / step.script, options, die_with_parent, warm)
    with memory_watched() as memory:
        try:
            _, status, usage = os.wait4(child, 0)
        except KeyboardInterrupt:
            os.waitpid(child, 0)
            raise
    code = os.waitstatus_to_exitcode(status)
    if code < 0:
        raise UserError(f"{step.name}: was killed by signal {-code}; the same command continues there")
    if code > 0:
        sys.exit(code)  # the step has said why, in one line
    scale = 1 if sys.platform == "darwin" else 1024
    largest = usage.ru_maxrss * scale  # of the step's own processes; it knows what came and went between two looks
    return Measured(step, time.perf_counter() - started, max(memory.value, largest))


def accepted(step: Step, options: Sequence[str]) -> list[str]:
    """The options that a step's script knows: those of every script, and the settings that it lists."""
    known = step.options
    return [word for words in options_in(options) if name_of(words) in known for word in words]


def format_measured(measured: Sequence[Measured]) -> str:
    """Wall time and peak memory of each step, and of all."""
    lines = [f"{'step':<26} {'seconds':>8} {'peak memory':>12}"]
    lines += [f"{m.step.name:<26} {m.seconds:>8.1f} {m.peak_memory / 2**20:>8.0f} MiB" for m in measured]
    total, peak = sum(m.seconds for m in measured), max((m.peak_memory for m in measured), default=0)
    return "\n".join([*lines, f"{'all':<26} {total:>8.1f} {peak / 2**20:>8.0f} MiB"])
