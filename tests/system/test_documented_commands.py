"""Every command line of the two documents that this repository answers to, as written there.

The safety judge's are read as its scripts read them, and one of each kind is run at a small size on a tiny model: what
is appended comes last, and the last value of an option counts. Of the persona's, whose scripts have other names here,
each is asked for its help; what they do is tested where the steps are.
"""

import re
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

import run_full_pipeline
from src import train_safety_judge
from src.utils.config import PROJECT_ROOT
from src.utils.safety_judge.arguments import parse_judge_arguments
from tests.judge_files import judge_options, write_judge_sources
from tests.published_files import JUDGE_DOCUMENT, PERSONA_DOCUMENT, needs_documents

SMALL = ["--num_epochs", "1", "--visualization_budget", "0.1"]

JUDGE_COMMANDS = """
python run_full_pipeline.py --visualize-training
python src/train_safety_judge.py --visualize_during_training --visualization_interval 1
python src/train_safety_judge.py --visualize_during_training --run_advanced_mi
streamlit run mi_dashboard.py
python run_full_pipeline.py --visualize-training --skip-open-ended
python src/train_safety_judge.py --num_epochs 15 --batch_size 8 --visualize_during_training --visualization_interval 1 \
--output_dir outputs/checkpoints
python src/train_safety_judge.py --visualize_during_training --run_advanced_mi --visualization_interval 5
--visualize_during_training --visualization_interval 3
--visualize_during_training --run_advanced_mi --visualization_interval 1 --num_epochs 5
--visualize_during_training --visualization_interval 10
python src/train_safety_judge.py --num_epochs 3 --visualize_during_training --visualization_interval 1
streamlit run mi_dashboard.py
python src/train_safety_judge.py --num_epochs 15 --visualize_during_training --visualization_interval 5
python src/train_safety_judge.py --num_epochs 20 --visualize_during_training --run_advanced_mi \
--visualization_interval 10
""".strip().splitlines()

# the document's name of a script -> what answers to it here
PERSONA_SCRIPTS = {
    "src/pod/test_connection.py": "src/pod/test_connection.py",
    "src/pod/persona_data_runner.py": "src/pod/persona_data_runner.py",
    "src/scripts/generating_dataset/generating_pipeline.py": "src/scripts/01_generate_dataset.py",
    "src/scripts/persona_collector.py": "src/scripts/03_collect_activations.py",
    "src/scripts/judging_em_responses.py": "src/scripts/04_judge_responses.py",
    "src/scripts/pca_reduction_and_clustering.py": "src/scripts/05_pca_and_clustering.py",
    "src/visualizations/clusters_visualizations.py": "src/visualizations/clusters_visualizations.py",
}


def command_lines(document: Path) -> list[str]:
    """The lines of every bash block, comments left out, continued lines joined."""
    text = document.read_text(encoding="utf-8")
    blocks = re.findall(r"```bash\n(.*?)```", text, flags=re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [" ".join(line.split()) for line in lines if line.strip() and not line.startswith("#")]


@needs_documents
def test_the_lists_here_are_those_of_the_documents() -> None:
    assert command_lines(JUDGE_DOCUMENT) == JUDGE_COMMANDS
    named = re.findall(r"uv run python (\S+)", "\n".join(command_lines(PERSONA_DOCUMENT)))
    assert set(named) == set(PERSONA_SCRIPTS)


def words_of(script: str) -> list[list[str]]:
    """The options of every command line of the judge's document that runs a script; "" is no script, options alone."""
    prefix = f"python {script} " if script else "--"
    found = [line for line in JUDGE_COMMANDS if line.startswith(prefix)]
    return [shlex.split(line.removeprefix(prefix) if script else line) for line in found]


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("documented")
    write_judge_sources(folder)
    return folder


@pytest.mark.parametrize("words", words_of("src/train_safety_judge.py")[:2], ids=" ".join)
def test_documented_trainings_run(words: Sequence[str], sources: Path, tmp_path: Path) -> None:
    out = tmp_path / "checkpoints"
    train_safety_judge.main([*words, *judge_options(sources), "--output_dir", str(out), *SMALL])
    pictures = {path.name for path in (out / "training_visualizations").iterdir()}
    advanced = {"epoch_1_neuron_map.html", "epoch_1_circuits.html"}
    assert {
        "epoch_1_sample_0_safe_tokens.html",
        "epoch_1_circuit_comparison.html",
        "training_progress.html",
    } <= pictures
    assert advanced <= pictures if "--run_advanced_mi" in words else not advanced & pictures


@pytest.mark.parametrize("words", [*words_of("src/train_safety_judge.py"), *words_of("")], ids=" ".join)
def test_documented_settings_mean_what_they_say(words: Sequence[str]) -> None:
    parsed = parse_judge_arguments("", train_safety_judge.TRAIN.keys, words, train_safety_judge.own_options)
    config = parsed.config
    given = {word.removeprefix("--"): value for word, value in zip(words, [*words[1:], ""], strict=True)}
    assert config.watching.visualize_during_training
    assert config.watching.run_advanced_mi == ("--run_advanced_mi" in words)
    assert config.watching.visualization_interval == int(given.get("visualization_interval", 3))
    assert config.training.num_epochs == int(given.get("num_epochs", 5))
    assert config.training.batch_size == int(given.get("batch_size", 32))
    folder = Path(given["output_dir"]).absolute() if "output_dir" in given else PROJECT_ROOT / "outputs" / "checkpoints"
    assert parsed.output_dir == folder


@pytest.mark.parametrize("words", words_of("run_full_pipeline.py"), ids=" ".join)
def test_documented_pipelines_are_the_judges(
    words: Sequence[str], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """What they do is tested in `test_judge_pipeline`."""
    run_full_pipeline.main([*words, "--output-dir", str(tmp_path), "--dry-run"])
    printed = capsys.readouterr().out
    assert "train_safety_judge         run   not made yet" in printed and "02_finetune_lora" not in printed
    assert ("--skip-open-ended" in words) == ("not needed: --skip-open-ended" in printed)


@pytest.mark.parametrize("script", sorted(PERSONA_SCRIPTS.values()))
def test_scripts_of_the_persona_study_say_what_they_do(script: str, capsys: pytest.CaptureFixture[str]) -> None:
    main: Callable[[Sequence[str]], object] = load(PROJECT_ROOT / script)
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 0 and script in capsys.readouterr().out


def load(script: Path) -> Callable[[Sequence[str]], object]:
    """The `main` of a script, whose name need not be one of Python's."""
    import runpy

    return runpy.run_path(str(script), run_name="documented")["main"]
