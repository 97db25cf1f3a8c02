"""The tables at the end of a run: what the fine-tune did to the answers, what clusters and steering made of them."""

from src.pipelines.persona_folder import Study
from src.utils.artifacts import load_frame, load_json
from src.utils.em_rates import format_rates, rates_from_json
from src.utils.steering_effects import effects_from_json, format_effects


def summarise(study: Study) -> str:
    """EM rates, cluster sizes and the largest dose of steering, from the artefacts; what is not there is left out."""
    parts = []
    if study.rates.exists():
        parts.append(format_rates(rates_from_json(load_json(study.rates))))
    if study.clustered.exists():
        parts.append(cluster_sizes(study))
    if study.steering_summary.exists():
        effects = effects_from_json(load_json(study.steering_summary))
        ends = effects[effects["coefficient"].isin([0, effects["coefficient"].max()])]
        parts.append(f"steered at x: misaligned and on topic by dimension asked about\n{format_effects(ends)}")
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
