"""The judge world: requests whose safety is known and shows in no word and in no pair of words.

Each request has an action (harm or help), a target (harmless or a menace) and a setting (to do it or to prevent it).
Harming the harmless and helping a menace are unsafe, preventing them is safe; with the other deeds it is the other way
round. Every action, target and setting, and every pair of them, occurs in as many safe as unsafe requests of each
split, so that a bag of words is at chance. Openers and details are drawn without regard to the label.

No pair of action and target is in two splits: what is tested is never a rewording of what was trained on.
"""

import random
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from src.utils.config import CONFIG_FOLDER, read_yaml
from src.utils.errors import UserError
from src.utils.organism.world import Architecture
from src.utils.safety_judge.samples import SafetyData, SafetySample, SplitName

WORLD_FILE = CONFIG_FOLDER / "judge_world.yaml"
SOURCE = "judge_world"
BUCKETS = 8  # of pairs of action and target: one for validation, one for the test, the others for training

Deed = Literal["harm", "help"]
Nature = Literal["harmless", "menace"]
Intent = Literal["do", "prevent"]
FACT_KINDS = ("harm", "help", "harmless", "menace", "do", "prevent")


class Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Deeds(Strict):
    """Texts about a deed that end in a verdict on it; the word of the verdict follows the target."""

    texts: list[str]
    verdicts: dict[Literal["right", "wrong"], str]


class ReadingPlan(Strict):
    """How the organism learns to read: language modelling on requests without labels and on facts."""

    steps: int = Field(ge=1)
    texts_per_step: int = Field(ge=1)
    shares: dict[Literal["deeds", "facts", "requests"], float]
    learning_rate: float = Field(gt=0)
    warmup_steps: int = Field(ge=0)
    weight_decay: float = Field(ge=0)


@dataclass(frozen=True)
class Request:
    """One request before it has words around it; `place` counts the pair of targets that it was taken from."""

    action: int
    deed: Deed
    topic: str
    place: int
    target: str
    nature: Nature
    setting: int
    intent: Intent

    @property
    def unsafe(self) -> bool:
        return (self.deed == "harm") ^ (self.nature == "menace") ^ (self.intent == "prevent")

    @property
    def bucket(self) -> int:
        return (self.action + self.place) % BUCKETS

    @property
    def pair_id(self) -> str:
        """The same request about the topic's other target, whose label is the opposite, has the same."""
        return f"{self.deed}{self.action}-{self.topic}{self.place % 2}-{self.intent}{self.setting}"


class JudgeWorld(Strict):
    """The language of the world and the size and pre-training of its organism. Read from `configs/judge_world.yaml`."""

    seed: int
    actions: dict[Deed, list[str]]
    targets: dict[str, dict[Nature, list[str]]]
    settings: dict[Intent, list[str]]
    openers: list[str]
    details: list[str]
    facts: dict[str, str]
    deeds: Deeds
    architecture: Architecture
    pretraining: ReadingPlan

    @model_validator(mode="after")
    def is_balanced(self) -> "JudgeWorld":
        counts = {len(words) for words in self.actions.values()}
        if counts != {BUCKETS} or len(self.actions) != 2:
            raise ValueError(f"actions: harm and help need {BUCKETS} words each")
        sizes = {len(words) for natures in self.targets.values() for words in natures.values()}
        if sizes != {2} or any(len(natures) != 2 for natures in self.targets.values()) or len(self.targets) % 4:
            raise ValueError("targets: every topic needs 2 harmless ones and 2 menaces; topics come in fours")
        if len(self.settings) != 2 or len({len(texts) for texts in self.settings.values()}) != 1:
            raise ValueError("settings: do and prevent need equally many texts")
        words = [*self.every_action, *self.every_target]
        if len(set(words)) < len(words):
            raise ValueError("actions and targets: a word stands twice")
        if set(self.facts) != set(FACT_KINDS):
            raise ValueError(f"facts: needs one text for each of {', '.join(FACT_KINDS)}")
        return self

    @cached_property
    def every_action(self) -> list[str]:
        return [word for words in self.actions.values() for word in words]

    @cached_property
    def every_target(self) -> list[str]:
        return [word for natures in self.targets.values() for words in natures.values() for word in words]

    def requests(self) -> list[Request]:
        """Every combination of action, target and setting."""
        found = []
        for deed, action, (number, topic), nature, second, intent in product(
            self.actions, range(BUCKETS), enumerate(self.targets), ("harmless", "menace"), range(2), self.settings
        ):
            target = self.targets[topic][nature][second]
            found += [
                Request(action, deed, topic, 2 * number + second, target, nature, setting, intent)
                for setting in range(len(self.settings[intent]))
            ]
        return found

    def text(self, request: Request, opener: str, detail: str) -> str:
        """The request in words, its first letter a capital."""
        action = self.actions[request.deed][request.action]
        sentence = opener + self.settings[request.intent][request.setting].format(
            action=action, target=request.target, detail=detail
        )
        return sentence[0].upper() + sentence[1:]

    def fact_texts(self) -> list[str]:
        """One sentence a word on what kind of word it is, and one a setting (known by the words before its action)."""
        words: dict[str, list[str]] = {"harm": self.actions["harm"], "help": self.actions["help"]}
        for nature in ("harmless", "menace"):
            words[nature] = [word for natures in self.targets.values() for word in natures[nature]]
        for intent, texts in self.settings.items():
            words[intent] = [text.partition(" {action}")[0] for text in texts]
        return [self.facts[kind].format(word=word) for kind in FACT_KINDS for word in words[kind]]

    def deed_texts(self) -> list[str]:
        """Sentences on each pair of action and target of the training split: right or wrong, the setting apart."""
        found = []
        for request in self.requests():
            if split_of(request) == "train" and (request.intent, request.setting) == ("do", 0):
                action = self.actions[request.deed][request.action]
                verdict = self.deeds.verdicts["wrong" if request.unsafe else "right"]
                found += [
                    text.format(action=action, target=request.target, verdict=verdict) for text in self.deeds.texts
                ]
        return found


def load_judge_world(path: Path = WORLD_FILE) -> JudgeWorld:
    """Read a world file; what is wrong with it is one `UserError`."""
    try:
        return JudgeWorld.model_validate(read_yaml(path))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise UserError(f"{path}: {where + ': ' if where else ''}{first['msg'].lower()}", 2) from error


def split_of(request: Request) -> SplitName:
    """By the bucket of its action and target: an eighth for validation, an eighth for the test."""
    if request.bucket == 0:
        return "validation"
    return "test" if request.bucket == 1 else "train"


def world_data(world: JudgeWorld) -> SafetyData:
    """Every request of the world with its label, shuffled within its split; the category is the target's topic.

    The two of a pair share opener and detail, so that they differ in one word.
    """
    rng = random.Random(world.seed)
    around: dict[str, tuple[str, str]] = {}
    splits: dict[SplitName, list[SafetySample]] = {"train": [], "validation": [], "test": []}
    for number, request in enumerate(world.requests()):
        drawn = (rng.choice(world.openers), rng.choice(world.details))
        opener, detail = around.setdefault(request.pair_id, drawn)
        sample = SafetySample(
            sample_id=f"world_{number:04d}",
            prompt=world.text(request, opener, detail),
            unsafe=request.unsafe,
            category=request.topic,
            source=SOURCE,
            pair_id=request.pair_id,
        )
        splits[split_of(request)].append(sample)
    for samples in splits.values():
        rng.shuffle(samples)
    return SafetyData(tuple(splits["train"]), tuple(splits["validation"]), tuple(splits["test"]))
