"""What `--data` means: the judge world, a folder of JSONL splits, or published sets, put together into three splits."""

import hashlib
from collections.abc import Sequence

from src.utils.config import resolve_path
from src.utils.errors import UserError
from src.utils.manifests import sha256_path
from src.utils.safety_judge.published import PUBLISHED, LoadedSet, load_published
from src.utils.safety_judge.samples import SPLITS, SafetyData, SafetySample, SplitName, check_splits, load_splits
from src.utils.safety_judge.world import WORLD_FILE, load_judge_world, world_data

WORLD = "world"
TRAIN_SHARE, VALIDATION_SHARE = 0.7, 0.15


def load_data(names: Sequence[str]) -> SafetyData:
    """The splits of one or more data sets: `world`, a folder, a published set's name, or `name=file`.

    Splits of a publisher are kept; what has none is split by a hash of the prompt, and validation is taken from
    training where a publisher has none. A prompt that several sets share stays where it stood first. Raises `UserError`
    for a set that cannot be had and for a split of one class.
    """
    splits: dict[SplitName, dict[str, SafetySample]] = {name: {} for name in SPLITS}
    seen: set[str] = set()
    for name in names:
        one = load_one(name)
        fresh: set[str] = set()
        for split in SPLITS:
            for sample in one.split(split):
                key = normalised(sample.prompt)
                if key not in seen:
                    fresh.add(key)
                    splits[split].setdefault(key, sample)
        seen |= fresh
    data = SafetyData(*(tuple(samples.values()) for samples in splits.values()))
    check_splits(data, ", ".join(names))
    return data


def load_one(name: str) -> SafetyData:
    if name == WORLD:
        return world_data(load_judge_world())
    published, _, location = name.partition("=")
    if published in PUBLISHED:
        return split_published(load_published(published, resolve_path(location) if location else None))
    folder = resolve_path(name)
    if folder.is_dir():
        return load_splits(folder)
    raise UserError(
        f"data {name!r}: is no folder of train.jsonl, validation.jsonl and test.jsonl; "
        f"name one, or {', '.join([WORLD, *PUBLISHED])}, the latter also as name=file",
        2,
    )


def load_everything(name: str) -> tuple[SafetySample, ...]:
    """All samples of a data set, whatever their split: what is only tested on."""
    published, _, location = name.partition("=")
    if published in PUBLISHED:
        return load_published(published, resolve_path(location) if location else None).everything()
    data = load_one(name)
    return tuple(sample for split in SPLITS for sample in data.split(split))


def split_published(loaded: LoadedSet) -> SafetyData:
    """Three splits of a published set; its test prompts are in no other, whatever the publisher did."""
    splits: dict[SplitName, list[SafetySample]] = {name: [] for name in SPLITS}
    has_validation = "validation" in loaded.samples
    taken: set[str] = set()
    for split in ("test", "validation", "train", None):
        for sample in loaded.samples.get(split, ()):
            key = normalised(sample.prompt)
            if key in taken:
                continue
            taken.add(key)
            place = share_of(key)
            target: SplitName = split or (
                "train" if place < TRAIN_SHARE else "validation" if place < TRAIN_SHARE + VALIDATION_SHARE else "test"
            )
            if split == "train" and not has_validation and place >= 1 - VALIDATION_SHARE:
                target = "validation"
            splits[target].append(sample)
    return SafetyData(*(tuple(samples) for samples in splits.values()))


def share_of(text: str) -> float:
    """A number between 0 and 1 that a text always has."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") / 2**64


def normalised(prompt: str) -> str:
    return " ".join(prompt.casefold().split())


def data_inputs(names: Sequence[str]) -> dict[str, str]:
    """SHA-256 of what the data sets are read from, by name; a set of the hub is known by its name alone."""
    hashes = {}
    for name in names:
        published, _, location = name.partition("=")
        path = WORLD_FILE if name == WORLD else resolve_path(location or name)
        if path.exists():
            hashes[name] = sha256_path(path)
        elif published in PUBLISHED and not location:
            hashes[name] = hashlib.sha256(PUBLISHED[published].hub.encode()).hexdigest()
    return hashes
