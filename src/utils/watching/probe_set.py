"""The fixed samples on which a judge is watched: the same two safe and two unsafe ones every time, and a larger sample.

Everything is chosen from the validation split by its order alone, so that two trainings on the same data are watched on
the same samples.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from src.utils.errors import UserError
from src.utils.prompts import spread
from src.utils.safety_judge.samples import SafetySample
from src.utils.safety_judge.scoring import EncodedPrompt, JudgeTemplate, encode

SHOWN_A_CLASS = 2


@dataclass(frozen=True)
class Probe:
    """One sample as the judge reads it, with the text of each token."""

    sample: SafetySample
    encoded: EncodedPrompt
    tokens: tuple[str, ...]


@dataclass(frozen=True)
class ProbeSet:
    """`shown`: samples 0 and 1 are safe, 2 and 3 unsafe; `statistics` is what numbers are taken over.

    `newline_id` is the token of a line's end, which says nothing.
    """

    shown: tuple[Probe, ...]
    statistics: tuple[Probe, ...]
    newline_id: int


def choose_probes(
    samples: Sequence[SafetySample],
    tokenizer: PreTrainedTokenizerBase,
    template: JudgeTemplate,
    max_length: int,
    n_statistics: int,
) -> ProbeSet:
    """Choose and encode; fewer than two samples of a class raise `UserError`.

    Shown are the first two contrast pairs, so that safe sample i differs from unsafe sample i + 2 in a word or two, and
    where there are no pairs the first two of each class. Statistics take both classes in equal number, evenly spread:
    whole contrast pairs of equal length first, since only these can be patched into each other, then single samples.
    """
    safe = [sample for sample in samples if not sample.unsafe]
    unsafe = [sample for sample in samples if sample.unsafe]
    for name, members in (("safe", safe), ("unsafe", unsafe)):
        if len(members) < SHOWN_A_CLASS:
            raise UserError(f"validation data: {len(members)} {name} prompts; watching needs {SHOWN_A_CLASS} of each")
    shown = [*shown_first(safe, unsafe), *shown_first(unsafe, safe)]
    pairs = spread(matched_pairs(samples, tokenizer), n_statistics // 2)
    paired = {sample.sample_id for pair in pairs for sample in pair}
    chosen: list[SafetySample] = []
    for place, members in enumerate((safe, unsafe)):
        rest = [sample for sample in members if sample.sample_id not in paired]
        chosen += [*(pair[place] for pair in pairs), *spread(rest, n_statistics // 2 - len(pairs))]

    def probes(members: Sequence[SafetySample]) -> tuple[Probe, ...]:
        encoded = encode(tokenizer, template, [sample.prompt for sample in members], max_length)
        return tuple(
            Probe(sample, one, tuple(str(tokenizer.decode([token])) for token in one.ids))
            for sample, one in zip(members, encoded, strict=True)
        )

    return ProbeSet(probes(shown), probes(chosen), tokenizer.encode("\n", add_special_tokens=False)[-1])


def shown_first(members: Sequence[SafetySample], others: Sequence[SafetySample]) -> list[SafetySample]:
    """Two samples of a class: the first of each pair that both classes share, pairs in order, then any."""
    shared = sorted({one.pair_id for one in members if one.pair_id} & {one.pair_id for one in others if one.pair_id})
    paired = [next(sample for sample in members if sample.pair_id == pair) for pair in shared[:SHOWN_A_CLASS]]
    return [*paired, *(sample for sample in members if sample not in paired)][:SHOWN_A_CLASS]


def matched_pairs(
    samples: Sequence[SafetySample], tokenizer: PreTrainedTokenizerBase
) -> list[tuple[SafetySample, SafetySample]]:
    """Contrast pairs whose two prompts have as many tokens, (safe, unsafe), in order of their first sample."""
    members: dict[str, dict[bool, SafetySample]] = {}
    for sample in samples:
        if sample.pair_id is not None:
            members.setdefault(sample.pair_id, {}).setdefault(sample.unsafe, sample)
    whole = [(pair[False], pair[True]) for pair in members.values() if len(pair) == 2]
    return [pair for pair in whole if len({length_of(tokenizer, sample) for sample in pair}) == 1]


def length_of(tokenizer: PreTrainedTokenizerBase, sample: SafetySample) -> int:
    """Tokens of a prompt without its template, markup in it as plain text: as `scoring.encode` counts them."""
    return len(tokenizer.encode(sample.prompt, add_special_tokens=False, split_special_tokens=True))
