"""Which study a command line is about, and which of its words go where."""

import pytest

from src.pipelines import judge_run, persona_run
from src.pipelines.option_words import choose_studies, name_of, options_in, share_out, values_of
from src.utils.errors import UserError

KNOWN = (persona_run.OPTIONS, judge_run.OPTIONS)
JUDGE_STEP_NAMES = {"train_safety_judge", "train"}


def test_words_are_cut_into_options_with_their_values() -> None:
    words = ["--num_epochs=3", "--coefficients", "-1", "2", "--dry_run", "-h"]
    assert options_in(words) == [["--num-epochs=3"], ["--coefficients", "-1", "2"], ["--dry-run"], ["--help"]]
    assert options_in(["stray", "words", "--force"]) == [["stray", "words"], ["--force"]]
    assert [name_of(found) for found in options_in(["--no-probes", "--no-baselines", "--a=b"])] == [
        *("--probes", "--no-baselines", "--a")
    ]
    assert values_of(["--only", "03", "04", "--only=05"], "--only") == ["05"]


@pytest.mark.parametrize(
    ("line", "studies"),
    [
        ("", ("persona",)),
        ("--dry-run --force --seed 3", ("persona",)),
        ("--profile qwen3_4b --memory 80gb --only 03", ("persona",)),
        ("--visualize_during_training --visualization_interval 3", ("persona",)),  # its fine-tune can be watched too
        ("--visualize-training", ("judge",)),
        ("--visualize-training --skip-open-ended", ("judge",)),
        ("--skip_open_ended", ("judge",)),
        ("--run-advanced-mi", ("judge",)),
        ("--num_epochs 3 --batch-size 8", ("judge",)),
        ("--batch_size=8", ("judge",)),
        ("--output-dir x", ("judge",)),
        ("--only train", ("judge",)),
        ("--from=train_safety_judge", ("judge",)),
        ("--study judge", ("judge",)),
        ("--study=persona --dry-run", ("persona",)),
        ("--study both --num-epochs 3 --rank 4", ("persona", "judge")),
    ],
)
def test_which_study_is_meant(line: str, studies: tuple[str, ...]) -> None:
    assert choose_studies(line.split(), *KNOWN, JUDGE_STEP_NAMES) == studies


def test_each_of_two_studies_gets_what_it_knows() -> None:
    line = "--study both --profile organism --rank 4 --num_epochs 3 --coefficients -1 2 --results-dir r --output-dir o"
    shares = share_out([*line.split(), "--force"], ("persona", "judge"), *KNOWN)
    common = ["--study", "both", "--profile", "organism"]
    assert shares["persona"] == [*common, *"--rank 4 --coefficients -1 2 --results-dir r --force".split()]
    assert shares["judge"] == [*common, *"--num-epochs 3 --output-dir o --force".split()]


def test_one_study_gets_everything() -> None:
    words = ["--learning-rate", "0.1", "--unheard-of"]
    assert share_out(words, ("judge",), *KNOWN) == {"judge": words}


@pytest.mark.parametrize("name", ["--learning-rate", "--data", "--base_model"])
def test_an_option_that_means_two_things_is_given_to_one_study_at_a_time(name: str) -> None:
    with pytest.raises(UserError, match="is another setting in each study") as caught:
        share_out(["--study", "both", name, "x"], ("persona", "judge"), *KNOWN)
    assert caught.value.exit_code == 2
