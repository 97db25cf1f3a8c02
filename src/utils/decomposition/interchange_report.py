"""Interchange interventions as lines for a terminal, and what its pages and records call things."""

from collections.abc import Mapping
from typing import Any

WHOLE = "whole activation"
ARMS = {"base": "EM activations put into the base model", "em": "base activations put into the EM model"}


def interchange_lines(record: Mapping[str, Any]) -> list[str]:
    """A line a direction of patching: what share of the gap the whole activation carries, and the best single line."""
    if "reason" in record:
        return [f"interchange, beside the rule: {record['reason']}"]
    lines = []
    for arm, verb in (("base", "suffices"), ("em", "is needed")):
        rows = [row for row in record["rows"] if row["into"] == arm and row["share"] is not None]
        parts = []
        for name in dict.fromkeys(row["dimension"] for row in rows):
            of_dimension = [row for row in rows if row["dimension"] == name]
            whole = next(row for row in of_dimension if row["subspace"] == WHOLE)
            best = max((row for row in of_dimension if row["rank"] == 1), key=lambda row: row["share"], default=None)
            shown = f", {best['subspace']} {best['share']:.0%}" if best else ""
            parts.append(f"{name} {whole['share']:.0%}{shown}")
        lines.append(
            f"interchange, beside the rule, what {verb} at {record['site']} (whole activation, best line): "
            + ("; ".join(parts) or "no dimension has a gap")
        )
    return lines
