"""Published safety data in their own columns, from the Hugging Face hub or a local file, as `SafetySample`s.

A prompt is unsafe where its publisher labels the prompt harmful; labels of responses are not used. Rows without a
label, and prompts that were redacted, are left out and counted.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from src.utils.errors import UserError
from src.utils.hub import settle_hub
from src.utils.safety_judge.samples import SafetySample, SplitName

UNKNOWN = "uncategorised"


@dataclass(frozen=True)
class Label:
    """What one row says: whether its prompt is unsafe, and of which kind."""

    prompt: str
    unsafe: bool
    category: str


@dataclass(frozen=True)
class Published:
    """A data set: where its parts are on the hub, which columns it must have, and how a row is read.

    `parts` maps a name to the hub's (configuration, split) and to the split it belongs to, None where the publisher
    made none. `read` gives None for a row that has no label.
    """

    hub: str
    parts: Mapping[str, tuple[str | None, str, SplitName | None]]
    columns: tuple[str, ...]
    read: Callable[[Mapping[str, Any], str], Label | None]


@dataclass(frozen=True)
class LoadedSet:
    """Samples of a published set by split (None: the publisher made none), and how many rows had no label."""

    samples: Mapping[SplitName | None, tuple[SafetySample, ...]]
    left_out: int

    def everything(self) -> tuple[SafetySample, ...]:
        return tuple(sample for samples in self.samples.values() for sample in samples)


def text_of(value: object) -> str:
    """A cell as text; "" for what is missing."""
    return value.strip() if isinstance(value, str) else ""


def is_one(value: object) -> bool:
    """A 0/1 flag that a CSV may hold as text, number or boolean."""
    return str(value).strip().lower() in ("1", "1.0", "true")


def read_toxicchat(row: Mapping[str, Any], part: str) -> Label | None:
    """ToxicChat 0124 (arXiv 2310.17389): toxic or jailbreaking is unsafe."""
    toxic, jailbreak = is_one(row["toxicity"]), is_one(row["jailbreaking"])
    category = "jailbreaking" if jailbreak else "toxicity" if toxic else "benign"
    return Label(text_of(row["user_input"]), toxic or jailbreak, category)


def read_wildguardmix(row: Mapping[str, Any], part: str) -> Label | None:
    """WildGuardMix (arXiv 2406.18495): `prompt_harm_label`, missing where annotators did not agree."""
    label = text_of(row["prompt_harm_label"])
    if label not in ("harmful", "unharmful"):
        return None
    category = text_of(row.get("subcategory")) or ("adversarial" if is_one(row["adversarial"]) else "vanilla")
    return Label(text_of(row["prompt"]), label == "harmful", category)


def read_jbb(row: Mapping[str, Any], part: str) -> Label | None:
    """JBB-Behaviors (arXiv 2404.01318): a harmful and a benign part, the goals as prompts."""
    return Label(text_of(row["Goal"]), part == "harmful", text_of(row["Category"]) or UNKNOWN)


def read_harmbench(row: Mapping[str, Any], part: str) -> Label | None:
    """HarmBench (arXiv 2402.04249): all unsafe; columns as on the hub or as in the publishers' CSV."""
    context = text_of(row.get("context") or row.get("ContextString"))
    prompt = text_of(row.get("prompt") or row.get("Behavior"))
    category = text_of(row.get("category") or row.get("SemanticCategory")) or part
    return Label(f"{context}\n\n{prompt}" if context else prompt, True, category)


def read_xstest(row: Mapping[str, Any], part: str) -> Label | None:
    """XSTest (arXiv 2308.01263): `label` is safe or unsafe, `type` the kind of safe prompt or of its contrast."""
    label = text_of(row["label"])
    return (
        Label(text_of(row["prompt"]), label == "unsafe", text_of(row["type"])) if label in ("safe", "unsafe") else None
    )


def read_aegis(row: Mapping[str, Any], part: str) -> Label | None:
    """Aegis 2.0 (arXiv 2501.09004): `prompt_label`; rows of one prompt with several responses recur."""
    label, prompt = text_of(row["prompt_label"]).lower(), text_of(row["prompt"])
    if label not in ("safe", "unsafe") or prompt == "REDACTED":
        return None
    first = text_of(row.get("violated_categories")).split(",")[0].strip()
    return Label(prompt, label == "unsafe", (first or UNKNOWN) if label == "unsafe" else "benign")


PUBLISHED = {
    "toxicchat": Published(
        "lmsys/toxic-chat",
        {"train": ("toxicchat0124", "train", "train"), "test": ("toxicchat0124", "test", "test")},
        ("user_input", "toxicity", "jailbreaking"),
        read_toxicchat,
    ),
    "wildguardmix": Published(
        "allenai/wildguardmix",
        {"train": ("wildguardtrain", "train", "train"), "test": ("wildguardtest", "test", "test")},
        ("prompt", "adversarial", "prompt_harm_label"),
        read_wildguardmix,
    ),
    "jbb": Published(
        "JailbreakBench/JBB-Behaviors",
        {"harmful": ("behaviors", "harmful", None), "benign": ("behaviors", "benign", None)},
        ("Goal", "Target", "Behavior", "Category", "Source"),
        read_jbb,
    ),
    "harmbench": Published(
        "walledai/HarmBench",
        {name: (name, "train", None) for name in ("standard", "contextual", "copyright")},
        (),
        read_harmbench,
    ),
    "xstest": Published(
        "walledai/XSTest", {"test": (None, "test", None)}, ("prompt", "type", "label", "focus", "note"), read_xstest
    ),
    "aegis2": Published(
        "nvidia/Aegis-AI-Content-Safety-Dataset-2.0",
        {"train": (None, "train", "train"), "validation": (None, "validation", "validation"),
         "test": (None, "test", "test")},
        ("prompt", "prompt_label", "violated_categories"),
        read_aegis,
    ),
}  # fmt: skip


def load_published(name: str, location: Path | None = None) -> LoadedSet:
    """Load a set from the hub, or from a file (.csv, .json, .jsonl, .parquet) or a folder of files at `location`.

    A file is of the part that its name contains (`test`, `benign`, `contextual`), else of none. Raises `UserError` for
    an unknown set, a file that cannot be read, missing columns, and a set that holds no labelled prompt.
    """
    if name not in PUBLISHED:
        raise UserError(f"data set {name!r} is unknown; there are {', '.join(PUBLISHED)}", 2)
    published = PUBLISHED[name]
    tables = from_hub(published) if location is None else from_files(published, location)
    found: dict[SplitName | None, dict[str, SafetySample]] = {}
    rows_of: Counter[str] = Counter()
    left_out = 0
    for part, table in tables:
        missing = [column for column in published.columns if column not in table.columns]
        if missing or (name == "harmbench" and not {"prompt", "Behavior"} & set(table.columns)):
            raise UserError(
                f"{location or published.hub}: {name} has no column {', '.join(missing) or 'prompt'}; "
                f"it has {', '.join(map(str, table.columns))}"
            )
        split = published.parts[part][2] if part in published.parts else None
        if name == "jbb" and part not in published.parts:
            raise UserError(f"{location}: a JBB file must be named harmful or benign; it is a part's only label")
        first = rows_of[part]  # a part may lie in several files
        rows_of[part] += len(table)
        for number, row in enumerate(table.to_dict("records"), start=first):
            label = published.read({str(key): value for key, value in row.items()}, part)
            if label is None or not label.prompt:
                left_out += 1
                continue
            sample_id = f"{name}_{part}_{number}" if part else f"{name}_{number}"
            sample = SafetySample(sample_id, label.prompt, label.unsafe, label.category, name, None)
            found.setdefault(split, {}).setdefault(label.prompt, sample)
    if not found:
        raise UserError(f"{location or published.hub}: {name} holds no labelled prompt")
    return LoadedSet({split: tuple(samples.values()) for split, samples in found.items()}, left_out)


def from_hub(published: Published) -> list[tuple[str, pd.DataFrame]]:
    """Every part from the hub or its cache; one that cannot be had raises `UserError` in one line."""
    settle_hub()
    from datasets import load_dataset  # which asks at its import whether the hub is to be used

    tables = []
    for part, (configuration, split, _) in published.parts.items():
        try:
            table = load_dataset(published.hub, configuration, split=split).to_pandas()
        except Exception as error:  # the hub's errors have no common base: offline, gated, renamed
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise UserError(
                f"{published.hub}: cannot be loaded ({reason}); accept its terms and set HF_TOKEN, or name a local file"
            ) from error
        assert isinstance(table, pd.DataFrame)
        tables.append((part, table))
    return tables


def from_files(published: Published, location: Path) -> list[tuple[str, pd.DataFrame]]:
    """The tables of a file or folder, each with the part that its name tells, "" where it tells none."""
    files = [location]
    if location.is_dir():
        files = sorted(path for path in location.iterdir() if path.suffix in READERS)
    tables = []
    for file in files:
        if file.suffix not in READERS:
            raise UserError(f"{file}: is no {', '.join(READERS)} file; give one of these")
        part = next((name for name in published.parts if name in file.stem.lower()), "")
        try:
            tables.append((part, READERS[file.suffix](file)))
        except (OSError, ValueError) as error:
            raise UserError(
                f"{file}: cannot be read ({' '.join(str(error).split())}); give its published form"
            ) from error
    return tables


READERS: dict[str, Callable[[Path], pd.DataFrame]] = {
    ".csv": lambda path: pd.read_csv(path, dtype=str, keep_default_na=False),
    ".json": pd.read_json,
    ".jsonl": lambda path: pd.read_json(path, lines=True),
    ".parquet": pd.read_parquet,
}
