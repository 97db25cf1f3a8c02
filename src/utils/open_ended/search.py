"""The search: batches of prompts, each scored by the judge at once, and what of them enters the archive.

Evolution aims at niches that are empty or where the judge does best so far, moves a random elite there and changes a
part of it: what works in one niche is tried in all (Rainbow Teaming chooses niches so, too). Random search draws each
prompt from nothing, for the same number of judged prompts. Every iteration has a generator of its own, seeded by name,
and is one record of an append-only file: a search that was killed goes on after its last whole iteration and ends in
the same archive, to the byte.
"""

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float

from src.utils.open_ended.archive import Archive, Elite, Progress
from src.utils.open_ended.attacks import Attack, AttackLanguage, AttackPrompt, Niche
from src.utils.open_ended.styles import WRAPPINGS
from src.utils.progress import progress_bar
from src.utils.record_store import RecordStore

Arm = Literal["evolution", "random"]
Score = Callable[[Sequence[AttackPrompt]], Float[np.ndarray, " prompts"]]  # margins in logits
# rewrites parents for niches, one attack each; None where it could not: `mutate` then does it
Rewrite = Callable[[Sequence[tuple[Elite, Niche]]], Sequence[Attack | None]]

TRIES = 8  # at a prompt that the batch or the archive does not hold yet
CONTENDERS = 4  # niches drawn, of which evolution aims at the one where the judge does best so far
REWRITTEN_SHARE = 0.5  # of a batch, where there is a language model


@dataclass(frozen=True)
class SearchPlan:
    iterations: int
    batch_size: int
    seed: int


def search(
    arm: Arm,
    plan: SearchPlan,
    language: AttackLanguage,
    score: Score,
    store: RecordStore,
    rewrite: Rewrite | None = None,
) -> tuple[Archive, list[Progress]]:
    """Run or take up a search; the archive, and the progress of every iteration.

    Iterations in the store are replayed, not judged again. The first batch is drawn from nothing in both arms.
    """
    archive, history, calls = Archive(language.niches), [], 0
    bar = progress_bar(f"attack by {arm}", "batch", plan.iterations)
    for iteration in range(plan.iterations):
        key = f"{arm}-{iteration}"
        record = store.get(key)
        if record is None:
            rng = random.Random(f"{plan.seed}-{key}")
            batch = propose(arm if iteration else "random", archive, language, rng, plan.batch_size, rewrite)
            margins = score(batch)
            elites = [Elite(one, float(margin), iteration) for one, margin in zip(batch, margins, strict=True)]
            entered = archive.add_all(elites)
            calls += len(batch)
            progress = archive.progress(iteration, calls)
            rows = [elite.as_record() for elite in entered]
            store.append({"key": key, "progress": asdict(progress), "entered": rows})
        else:
            archive.add_all(Elite.from_record(row, language) for row in record["entered"])
            progress = Progress(**record["progress"])
            calls = progress.calls
        history.append(progress)
        bar.update()
    bar.close()
    return archive, history


def described(arm: str, progress: Progress) -> str:
    """Where a search stands, in a line."""
    return (
        f"{arm}: {progress.calls:,} prompts judged, coverage {progress.coverage:.1%}, judge wrong in "
        f"{progress.broken:.1%} of the niches, quality-diversity score {progress.qd_score:.1f}"
    )


def propose(
    arm: Arm,
    archive: Archive,
    language: AttackLanguage,
    rng: random.Random,
    count: int,
    rewrite: Rewrite | None = None,
) -> list[AttackPrompt]:
    """A batch of prompts, none twice and none that the archive holds unless nothing else is found in `TRIES` tries."""
    known = {elite.prompt.text for elite in archive}
    elites = list(archive)
    worst = {niche: best.fitness for niche in language.niches if (best := archive.best(niche)) is not None}
    batch: list[AttackPrompt] = []
    if arm == "evolution" and rewrite is not None:
        parents = rng.choices(elites, k=int(count * REWRITTEN_SHARE))
        chosen = [(elite, rng.choice(found)) for elite in parents if (found := reworded(elite, language))]
        for (_, niche), attack in zip(chosen, rewrite(chosen), strict=True):
            if attack is None:
                continue
            made = language.prompt(attack)
            if made.niche == niche and made.text not in known:
                known.add(made.text)
                batch.append(made)
    while len(batch) < count:
        for _ in range(TRIES):
            if arm == "evolution":
                niche = min(rng.choices(language.niches, k=CONTENDERS), key=lambda one: worst.get(one, -math.inf))
                made = language.prompt(language.mutate(rng.choice(elites).prompt.attack, rng, niche))
            else:
                made = language.prompt(language.draw(rng, rng.choice(language.niches)))
            if made.text not in known:
                break
        known.add(made.text)
        batch.append(made)
    return batch


def reworded(elite: Elite, language: AttackLanguage) -> list[Niche]:
    """Where a rewording of the elite can be: a wrapping's style, and what is asked, so category and label, kept."""
    own = elite.prompt.niche
    return [
        niche
        for niche in language.niches
        if niche.style in WRAPPINGS and (niche.category, niche.unsafe) == (own.category, own.unsafe)
    ]
