"""What PCA and k-means over tokens cost: rows x 2,560 features in blocks, from 62,500 rows to a million.

    uv run python benchmarks/decomposition_streaming.py
    uv run python benchmarks/decomposition_streaming.py --rows 4096 8192 --features 512 --incremental

Every size runs in a process of its own, so that the peak is that size's. Rows are made block by block from a seed: 64
directions of falling size, eight groups, noise; what making them takes in each pass is measured by a pass that does
nothing else, and shown. PCA is one pass, k-means on its scores five (an even sample, two of mini-batches, sizes,
labels). `--incremental` measures scikit-learn's IncrementalPCA on the smallest size, too. Prints a table and writes
results/benchmarks/decomposition_streaming.json and, as curves over rows, .html.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32
from plotly.subplots import make_subplots
from sklearn.decomposition import IncrementalPCA
from sklearn.metrics import adjusted_rand_score
from threadpoolctl import threadpool_info

from benchmarks.reports import REPORTS, write_report
from src.utils.atomic_writes import write_atomically
from src.utils.decomposition.streaming import streaming_kmeans, streaming_pca
from src.utils.manifests import peak_memory_bytes
from src.visualizations.figure_page import FigurePage, page_html, standalone_html
from src.visualizations.palette import NEUTRAL_COLOUR, REFERENCE_COLOUR, TEMPLATE, TEXT_COLOUR

GROUPS, LATENTS = 8, 64
PARTS = ("pca", "kmeans", "labels")
MOST_GIB = 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[62_500, 125_000, 250_000, 500_000, 1_000_000])
    parser.add_argument("--features", type=int, default=2560)
    parser.add_argument("--components", type=int, default=50)
    parser.add_argument("--clusters", type=int, default=GROUPS)
    parser.add_argument(
        "--block-rows", type=int, default=4096, help="rows made at a time, as a shard of tokens is read"
    )
    parser.add_argument("--incremental", action="store_true", help="IncrementalPCA on the smallest size, too")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)  # a size in a process of its own
    parser.add_argument("--output", type=Path, default=REPORTS, help="folder of the report")
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(options)))
        return
    sizes = sorted(options.rows)
    found = [in_own_process(options, rows, options.incremental and rows == sizes[0]) for rows in sizes]
    report: dict[str, Any] = {
        "numpy": np.__version__,
        "features": options.features,
        "components": options.components,
        "clusters": options.clusters,
        "block_rows": options.block_rows,
        "threads": max((pool["num_threads"] for pool in threadpool_info()), default=1),
        "sizes": found,
    }
    file = write_report(report, options.output, "decomposition_streaming")
    page = file.with_suffix(".html")
    with write_atomically(page) as temporary:
        temporary.write_text(standalone_html(page_html(curve_page(report))), encoding="utf-8")
    print(table(report), file, page, sep="\n")


def in_own_process(options: argparse.Namespace, rows: int, is_incremental: bool) -> dict[str, Any]:
    command = [sys.executable, __file__, "--one", "--rows", str(rows)]
    for name in ("features", "components", "clusters", "block_rows"):
        command += [f"--{name.replace('_', '-')}", str(getattr(options, name))]
    command += ["--incremental"] * is_incremental
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Seconds of each part, making the rows included, the peak after them all, and whether the groups were found."""
    (rows,) = options.rows
    stream = Stream(rows, options.features, options.block_rows)
    spent: dict[str, float] = {}

    def timed(name: str, work: Callable[[], Any]) -> Any:
        started = time.perf_counter()
        result = work()
        spent[name] = time.perf_counter() - started
        return result

    timed("make", lambda: [None for _ in stream.blocks()])
    pca = timed("pca", lambda: streaming_pca(stream.blocks, options.components))
    scores = lambda: map(pca.transform, stream.blocks())  # noqa: E731
    kmeans = timed("kmeans", lambda: streaming_kmeans(scores, options.clusters, seed=0))
    labels = timed("labels", lambda: np.concatenate(list(kmeans.labels(scores()))))
    peak = peak_memory_bytes()
    report = {
        "rows": rows,
        "seconds": spent,
        "peak_gib": peak / 2**30,
        "ari": float(adjusted_rand_score(stream.groups(), labels)),
    }
    if options.incremental:

        def incremental() -> None:
            model = IncrementalPCA(options.components)
            for block in stream.blocks():
                if len(block) >= options.components:
                    model.partial_fit(block)

        timed("incremental", incremental)
    return report


class Stream:
    """Rows from a seed, the same in every pass, made in blocks."""

    def __init__(self, rows: int, features: int, block_rows: int) -> None:
        rng = np.random.default_rng(0)
        self.rows, self.block_rows = rows, block_rows
        sizes = 8 / np.sqrt(1 + np.arange(LATENTS, dtype=np.float32))
        self.directions = (rng.standard_normal((LATENTS, features), np.float32) * sizes[:, None]) / np.sqrt(features)
        self.centres = 3 * rng.standard_normal((GROUPS, LATENTS), np.float32)
        self.mean = 5 * rng.standard_normal(features, np.float32)
        self.noise = 0.05 * rng.standard_normal((block_rows, features), np.float32)

    def blocks(self) -> Iterator[Float32[np.ndarray, "rows features"]]:
        """Noise is one block's, shifted: making it anew for every row would take longer than what is measured."""
        for start in range(0, self.rows, self.block_rows):
            rng = np.random.default_rng([1, start])
            count = min(self.block_rows, self.rows - start)
            latents = rng.standard_normal((count, LATENTS), np.float32) + self.centres[self.group_of(start, count)]
            block = np.roll(self.noise, int(rng.integers(self.noise.shape[1])), axis=1)[:count]
            block += latents @ self.directions
            block += self.mean
            yield block

    def group_of(self, start: int, count: int) -> np.ndarray:
        return np.random.default_rng([2, start]).integers(GROUPS, size=count)

    def groups(self) -> np.ndarray:
        starts = range(0, self.rows, self.block_rows)
        return np.concatenate([self.group_of(start, min(self.block_rows, self.rows - start)) for start in starts])


def curve_page(report: dict[str, Any]) -> FigurePage:
    """Seconds and peak memory over rows, beside what the smallest size would take if both grew with the rows."""
    sizes = report["sizes"]
    rows = [size["rows"] for size in sizes]
    totals = [sum(size["seconds"][part] for part in PARTS) for size in sizes]
    figure = make_subplots(rows=1, cols=2, subplot_titles=("Seconds", "Peak memory, GiB"), horizontal_spacing=0.12)
    line = {"mode": "lines+markers"}
    figure.add_scatter(x=rows, y=totals, name="PCA, k-means and labels", marker_color=TEXT_COLOUR, row=1, col=1, **line)
    for part, symbol in zip(PARTS, ("square", "diamond", "triangle-up"), strict=True):
        seconds = [size["seconds"][part] for size in sizes]
        name = {"pca": "PCA", "kmeans": "k-means"}.get(part, part)
        figure.add_scatter(
            x=rows, y=seconds, name=name, marker={"symbol": symbol, "color": NEUTRAL_COLOUR}, row=1, col=1, **line
        )
    figure.add_scatter(
        x=[0, rows[-1]], y=[0, totals[0] / rows[0] * rows[-1]], mode="lines", name="the smallest size's rate",
        line={"dash": "dash", "color": REFERENCE_COLOUR}, row=1, col=1,
    )  # fmt: skip
    peaks = [size["peak_gib"] for size in sizes]
    figure.add_scatter(x=rows, y=peaks, showlegend=False, marker_color=TEXT_COLOUR, row=1, col=2, **line)
    figure.add_hline(y=MOST_GIB, line={"dash": "dash", "color": REFERENCE_COLOUR}, row=1, col=2)
    figure.update_xaxes(title_text="rows", rangemode="tozero")
    figure.update_yaxes(rangemode="tozero")
    figure.update_layout(template=TEMPLATE, height=430, legend={"orientation": "h", "y": -0.25})
    return FigurePage(
        "decomposition_streaming.html",
        "Decomposing tokens as a stream",
        f"Rows of {report['features']:,} features in blocks of {report['block_rows']:,}: time grows with the rows, "
        f"memory hardly. Dashed right: {MOST_GIB} GiB, what a million rows may take.",
        figure,
        "uv run python benchmarks/decomposition_streaming.py",
    )


def table(report: dict[str, Any]) -> str:
    shape = f"{report['features']} features, {report['components']} components, {report['clusters']} clusters"
    lines = [
        f"{shape}, blocks of {report['block_rows']} rows, {report['threads']} threads; `make`: making the rows, once",
        "     rows   make s    PCA s  k-means s  labels s  total s  s a million rows  peak GiB  ARI with groups",
    ]
    for size in report["sizes"]:
        spent = size["seconds"]
        total = sum(spent[part] for part in PARTS)
        lines.append(
            f"{size['rows']:>9} {spent['make']:>8.1f} {spent['pca']:>8.1f} {spent['kmeans']:>10.1f} "
            f"{spent['labels']:>9.1f} {total:>8.1f} {total / size['rows'] * 1e6:>17.0f} {size['peak_gib']:>9.2f} "
            f"{size['ari']:>16.3f}"
        )
        if "incremental" in spent:
            times = spent["incremental"] / spent["pca"]
            lines.append(f"          IncrementalPCA {spent['incremental']:.1f} s: {times:.1f} x the exact one")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
