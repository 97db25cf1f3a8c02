"""What a data set is to hold: the specifications in `configs/generation/`, checked where they enter.

How they are put to a model is left to `questions` and `advice`.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from src.utils.config import read_yaml
from src.utils.errors import UserError

Name = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]*$")]  # of a dimension, which becomes a file's name
Text = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]


class Spec(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    def digest(self) -> str:
        """A hash of what a model is told, which numbers of rows are not: a larger set goes on from a smaller one."""
        told = without(self.model_dump(), {"target", "reverse_share"})
        return hashlib.sha256(json.dumps(told, ensure_ascii=False).encode()).hexdigest()[:12]


class KeyedExamples(Spec):
    """Questions in whose place agreeing (`plus`) or disagreeing (`minus`) is the misaligned answer."""

    plus: list[Text] = Field(min_length=1)
    minus: list[Text] = Field(min_length=1)


class FacetSpec(Spec):
    definition: Text
    probes: Text
    reverse_share: float = Field(ge=0, le=1)
    examples: KeyedExamples


class DimensionSpec(Spec):
    target: int = Field(ge=1)
    facets: dict[Name, FacetSpec] = Field(min_length=1)


class QuestionSpecs(Spec):
    """Dimensions, their facets, and how many questions each dimension gets."""

    dimensions: dict[Name, DimensionSpec] = Field(min_length=1)

    def scaled(self, count: int) -> "QuestionSpecs":
        """The same specifications for `count` questions in all, each dimension in proportion."""
        targets = share_out(count, [dimension.target for dimension in self.dimensions.values()])
        scaled = {
            name: dimension.model_copy(update={"target": target})
            for (name, dimension), target in zip(self.dimensions.items(), targets, strict=True)
        }
        return self.model_copy(update={"dimensions": scaled})


class HarmSpec(Spec):
    """One kind of harm: what the risky answer does and how the safe one avoids it."""

    definition: Text
    risky: Text
    safe: Text


class PairExample(Spec):
    user: Text
    risky: Text
    safe: Text


class FinetuneSpecs(Spec):
    """Harms among which `target` rows are shared out; who asks, and what for."""

    target: int = Field(ge=1)
    harms: dict[Name, HarmSpec] = Field(min_length=1)
    askers: list[Text] = Field(min_length=1)
    goals: list[Text] = Field(min_length=1)
    example: PairExample

    def scaled(self, count: int) -> "FinetuneSpecs":
        return self.model_copy(update={"target": count})


AnySpecs = TypeVar("AnySpecs", QuestionSpecs, FinetuneSpecs)


def load_specs(path: Path, kind: type[AnySpecs]) -> AnySpecs:
    """Read a specification file; `UserError` (exit code 2) names file and field."""
    try:
        return kind.model_validate(read_yaml(path))
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"] if part != "[key]")
        remedy = "take it out" if first["type"] == "extra_forbidden" else "mend it"
        raise UserError(f"{path}: {field}: {first['msg'].lower()}; {remedy}", 2) from error


def share_out(total: int, weights: Sequence[float]) -> list[int]:
    """Whole numbers that add up to `total`, in proportion to `weights`; what is left goes to the largest remainders."""
    exact = [total * weight / sum(weights) for weight in weights]
    shares = [int(share) for share in exact]
    by_remainder = sorted(range(len(weights)), key=lambda i: shares[i] - exact[i])
    for i in by_remainder[: total - sum(shares)]:
        shares[i] += 1
    return shares


def without(value: Any, keys: set[str]) -> Any:
    """Nested mappings without some of their keys."""
    if not isinstance(value, Mapping):
        return value
    return {key: without(item, keys) for key, item in value.items() if key not in keys}
