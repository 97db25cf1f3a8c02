"""The table at the end of a run: what the fine-tune did to the answers, and what clustering made of them."""

from src.pipelines.persona_study import Study
from src.utils.artifacts import load_frame, load_json
from src.utils.em_rates import format_rates, rates_from_json


def summarise(study: Study) -> str:
    """EM rates by dimension and cluster sizes, from the artefacts; what has not been made is left out."""
    parts = []
    if study.rates.exists():
        parts.append(format_rates(rates_from_json(load_json(study.rates))))
    if study.clustered.exists():
        parts.append(cluster_sizes(study))
    return "\n\n".join(parts)


def cluster_sizes(study: Study) -> str:
    """One line a cluster count, largest cluster first."""
    frame = load_frame(study.clustered)
    lines = []
    for k in study.config.clustering.cluster_counts:
        if f"cluster_{k}" in frame:
            sizes = frame[f"cluster_{k}"].value_counts().tolist()
            shown = " ".join(map(str, sizes[:15])) + (" ..." if len(sizes) > 15 else "")
            lines.append(f"clusters, k = {k:>2}: {shown}")
    return "\n".join(lines)
