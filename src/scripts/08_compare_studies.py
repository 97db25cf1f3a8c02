"""Two studies beside each other: full fine-tuning against LoRA, a larger model against a smaller one, two worlds.

    uv run python src/scripts/08_compare_studies.py results results/separable
    uv run python run_full_pipeline.py --results-dir results/full --full-finetuning --adapter-name full
    uv run python src/scripts/08_compare_studies.py results results/full --output results/lora_against_full

A smaller organism beside the shipped one: step 0 with --world small (244,000 parameters); steps 02 to 05 with --world
small --results-dir results/small, of three blocks (--layers 0 1 2 --max-steps 10 in step 2, --layers 1 2 --prompts
data/organisms/small/held_out_questions.jsonl in step 3, --layer 2 in step 5); and the shipped one asked those prompts.

Reads of each folder the artefacts of steps 4, 5, 6 and 7 (steering and verdict where those have run), asked the same
questions; writes comparison.json and index.html with its pages to --output: rates with paired intervals, agreement of
clusters, similarity of activations, angles between leading components where the models are equally wide, verdicts.
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

from src.pipelines.persona_study import CLUSTER, JUDGE, STEER, VERDICT
from src.utils.artifacts import load_frame, load_json, load_object, load_tensors, save_artifact, save_json
from src.utils.cli import OneLineParser, run_script
from src.utils.config import PROJECT_ROOT, shown
from src.utils.decomposition.study_comparison import StudyResults, compare_studies, format_comparison, subspace_lines
from src.utils.errors import UserError
from src.utils.manifests import Provenance, hash_inputs
from src.visualizations.comparison_figures import clusters_beside, rates_beside
from src.visualizations.figure_page import FigurePage, page_files
from src.visualizations.palette import display_name

SCORED, VECTORS, DECIDED = (
    "final_dataset_with_em_scores.pkl",
    "steering_vectors.safetensors",
    "decomposition_verdict.json",
)


def main(arguments: Sequence[str]) -> None:
    parser = OneLineParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("first", type=Path, help="results folder A")
    parser.add_argument("second", type=Path, help="results folder B")
    output = PROJECT_ROOT / "results" / "comparison"
    for name, kind, default, text in (
        ("--output", Path, output, f"folder for the record and the pages; default {shown(output)}"),
        ("--em-threshold", float, 70, "a score above it counts as misaligned; default 70"),
        ("--coherence-threshold", float, 50, "a coherence above it counts as coherent; default 50"),
        ("--resamples", int, 2000, "bootstrap draws of the questions behind every interval; default 2000"),
        ("--seed", int, 0, "of these draws; default 0"),
    ):
        parser.add_argument(name, type=kind, default=default, help=text)
    options = parser.parse_args(arguments)

    folders = (options.first, options.second)
    first, second = studies = [study_results(folder) for folder in folders]
    settings = {name: getattr(options, name) for name in ("em_threshold", "coherence_threshold", "resamples")}
    record = compare_studies(first, second, **settings, seed=options.seed)
    print(format_comparison(record))

    files = {f"{label} {name}": folder / name for label, folder in zip("AB", folders, strict=True)
             for name in (SCORED, VECTORS, DECIDED) if (folder / name).is_file()}  # fmt: skip
    provenance = Provenance(
        step="08_compare_studies", profile="comparison", config=settings, inputs=hash_inputs(files),
        seeds={"comparison": options.seed},
    )  # fmt: skip
    options.output.mkdir(parents=True, exist_ok=True)
    save_json(record, options.output / "comparison.json", provenance)
    command = " ".join(["uv run python src/scripts/08_compare_studies.py", *(study.name for study in studies)])
    if options.output != output:
        command += f" --output {name_of(options.output)}"
    pages = [
        FigurePage("rates_beside.html", "Two studies: rates",
                   "Which dimensions the second study turned more (above the line) or less than the first.",
                   rates_beside(record), command, provenance.inputs),
    ]  # fmt: skip
    if isinstance(record["clusters"], list):
        sentence = "Clusters that agree with each other no more than with the dimension are the topic in both."
        figure = clusters_beside(record)
        pages.append(
            FigurePage("clusters_beside.html", "Two studies: clusters", sentence, figure, command, provenance.inputs)
        )
    table = [["misaligned, on-topic answers", "A", "B", "B - A, points"], *(
        [display_name(row["subset"]), f"{row['first']:.1%}", f"{row['second']:.1%}", points(row["difference"])]
        for row in record["rates"] if row["measure"] == "em_on_topic" and row["first"] is not None
    )]  # fmt: skip
    index = options.output / "index.html"
    calls = [f"{label}: {one.get('verdict', 'none')}" for label, one in zip("AB", record["verdicts"], strict=True)]
    sentence = (
        f"A is {studies[0].name}, B is {studies[1].name}. Verdicts: {', '.join(calls)}; "
        f"{'; '.join(subspace_lines(record['subspaces'])[:2])}. In brackets 95% intervals over questions."
    )
    files_of_pages = page_files(pages, options.output, table, sentence)
    save_artifact(index, files_of_pages, provenance, {"pages": [page.file_name for page in pages]})
    print(options.output / "comparison.json", index, sep="\n")


def name_of(folder: Path) -> str:
    """A folder as pages name it: from the repository's root, or without where it lies."""
    return shown(folder.absolute()) if folder.absolute().is_relative_to(PROJECT_ROOT) else folder.name


def points(change: Mapping[str, float]) -> str:
    return "{:+.1f} [{:+.1f}, {:+.1f}]".format(*(100 * change[name] for name in ("estimate", "low", "high")))


def study_results(folder: Path) -> StudyResults:
    """What a results folder holds; without a scored frame there is nothing to compare."""
    if not folder.is_dir():
        raise UserError(f"{folder}: does not exist; name a results folder", 2)
    clusterings = {
        int(path.stem.rsplit("_", 1)[1]): load_object(path, made_by=CLUSTER.name)
        for path in sorted(folder.glob("em_pca_clusters_*.pkl"))
    }
    vectors, verdict = folder / VECTORS, folder / DECIDED
    directions = load_tensors(vectors, made_by=STEER.name) if vectors.is_file() else {}
    return StudyResults(
        name=name_of(folder),
        frame=load_frame(folder / SCORED, made_by=JUDGE.name),
        clusterings=dict(sorted(clusterings.items())),
        directions={key: value for key, value in directions.items() if not key.startswith("random_")},
        verdict=load_json(verdict, made_by=VERDICT.name) if verdict.is_file() else None,
    )


if __name__ == "__main__":
    run_script(main)
