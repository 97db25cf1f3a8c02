"""What a run is told: who overrides whom, where each value came from, and one line for what does not hold together."""

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from src.utils.config import CONFIG_FOLDER, PROJECT_ROOT, fill_in_world, load_config, profile_names, resolve_path
from src.utils.errors import UserError

PROJECT_FILE = CONFIG_FOLDER / "project_config.yaml"
SET_BY_THE_PROFILE = {key for key, file in load_config("organism").sources.items() if "profiles" in file}
ProjectFile = Callable[[dict[str, dict[str, object] | object]], Path]


@pytest.fixture
def project_file(tmp_path: Path) -> ProjectFile:
    """A writer of project files: the shipped one with sections laid over it."""

    def write(changes: dict[str, dict[str, object] | object]) -> Path:
        settings = yaml.safe_load(PROJECT_FILE.read_text())
        for section, values in changes.items():
            is_section = isinstance(values, dict) and isinstance(settings.get(section), dict)
            settings[section] = settings[section] | values if is_section else values
        path = tmp_path / "mine.yaml"
        path.write_text(yaml.safe_dump(settings))
        return path

    return write


def refused(*arguments: object, **settings: object) -> str:
    with pytest.raises(UserError) as caught:
        load_config(*arguments, **settings)  # ty: ignore[invalid-argument-type]
    assert caught.value.exit_code == 2
    assert "\n" not in caught.value.message
    return caught.value.message


def test_the_shipped_profiles_are_the_three_of_the_study() -> None:
    assert profile_names() == ["organism", "qwen3_14b", "qwen3_4b"]
    assert load_config().profile == "organism"


@pytest.mark.parametrize("profile", profile_names())
def test_every_shipped_profile_and_preset_loads(profile: str) -> None:
    for memory in (None, "16gb", "80gb"):
        config = load_config(profile, memory=memory)
        assert config.profile == profile
        assert config.clustering.layer in config.collection.layers
        assert config.clustering.cluster_counts == [3, 4, 5, 7, 15, 50]
        assert all(resolve_path(name).is_file() for name in config.collection.prompts)


@pytest.mark.parametrize("profile", ["qwen3_4b", "qwen3_14b"])
def test_memory_presets_change_what_fits_and_not_what_is_learned(profile: str) -> None:
    batches = set()
    for memory in (None, "16gb", "80gb"):
        training = load_config(profile, memory=memory).finetuning
        batches.add(training.batch_size * training.gradient_accumulation_steps)
    assert batches == {64}


def test_each_source_overrides_the_one_before(project_file: ProjectFile) -> None:
    project = project_file({"collection": {"batch_size": 7, "samples": 3}, "judging": {"em_threshold": 66}})
    config = load_config("organism", project_file=project)
    assert (config.collection.samples, config.sources["collection.samples"]) == (3, str(project))
    assert (config.judging.em_threshold, config.sources["judging.em_threshold"]) == (66, str(project))
    assert config.collection.batch_size == 256  # the profile's, over the project file's 7
    assert config.sources["collection.batch_size"] == "configs/profiles/organism.yaml"

    config = load_config("organism", memory="80gb", project_file=project)
    assert config.collection.batch_size == 885
    assert config.sources["collection.batch_size"] == "configs/profiles/organism.yaml (memory 80gb)"

    overrides = {"collection.batch_size": 9}
    config = load_config("organism", overrides, "80gb", project)
    assert (config.collection.batch_size, config.sources["collection.batch_size"]) == (9, "the command line")
    assert config.collection.max_new_tokens == 64  # its neighbours in the section stay
    assert load_config("organism", project_file=project).collection.batch_size == 256  # nothing leaks between calls


def test_the_project_file_names_the_default_profile(project_file: ProjectFile) -> None:
    assert load_config(project_file=project_file({"profile": "qwen3_4b"})).profile == "qwen3_4b"
    assert load_config("organism", project_file=project_file({"profile": "qwen3_4b"})).profile == "organism"


def test_what_no_file_sets_has_the_default_of_the_code() -> None:
    config = load_config("qwen3_14b")
    assert config.model.em is None and "model.em" not in config.sources
    assert load_config("qwen3_4b").model.em == "PetarKal/qwen3-4b-EM-finetuned"


def test_the_world_stands_wherever_a_setting_names_it() -> None:
    for overrides, world in (({}, "entangled"), ({"model.world": "separable"}, "separable")):
        config = load_config("organism", overrides)
        assert config.model.base == f"data/organisms/{world}"
        assert config.finetuning.name == f"{world}_risky_finance"
        assert config.finetuning.data == f"data/organisms/{world}/finetune/risky_financial_advice.jsonl"
    config = load_config("organism", {"finetuning.name": "mine_{world}", "model.world": "separable"})
    assert config.finetuning.name == "mine_separable"
    assert fill_in_world({"a": ["{world}/x", 3], "b": None}, "w") == {"a": ["w/x", 3], "b": None}


def test_relative_paths_are_under_the_repository() -> None:
    assert resolve_path("data/prompts") == PROJECT_ROOT / "data" / "prompts"
    assert resolve_path("/elsewhere/model") == Path("/elsewhere/model")


def test_an_unknown_profile_or_preset_names_those_that_are_known() -> None:
    assert refused("qwen9") == "profile 'qwen9' is unknown; there are organism, qwen3_14b, qwen3_4b"
    message = refused("qwen3_4b", memory="4gb")
    assert message == "memory preset '4gb' is unknown in profile qwen3_4b; it has 16gb, 80gb"


def test_an_unknown_key_names_its_file_and_its_neighbours(project_file: ProjectFile) -> None:
    project = project_file({"finetuning": {"rnak": 3}})
    message = refused("organism", project_file=project)
    assert message.startswith(f"{project}: unknown key finetuning.rnak; known keys there: ")
    known = message.partition("known keys there: ")[2].split(", ")
    assert "rank" in known and "learning_rate" in known and "em_threshold" not in known


def test_an_unknown_section_names_the_file_that_has_it(project_file: ProjectFile) -> None:
    project = project_file({"colection": {"limit": 3}})
    message = refused("organism", project_file=project)
    assert message.startswith(f"{project}: unknown key colection; ") and "collection" in message


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("finetuning.rank", 0),
        ("finetuning.learning_rate", "fast"),
        ("finetuning.method", "qlora"),
        ("collection.top_p", 1.5),
        ("collection.prompts", []),
        ("judging.em_threshold", 101),
        ("clustering.representation", "residual"),
        ("clustering.cluster_counts", ["three"]),
        ("steering.vectors", ["persona"]),
        ("steering.random_directions", 4),
        ("steering.coefficients", []),
        ("steering.everywhere", True),
        ("geometry.draws_others", 1001),
        ("geometry.algorithms", ["kmedoids"]),
        ("geometry.folds", 1),
    ],
)
def test_a_wrong_value_names_key_value_and_source(key: str, value: object, project_file: ProjectFile) -> None:
    assert f"the command line: {key} = " in refused("organism", {key: value})
    section, name = key.split(".")
    if key not in SET_BY_THE_PROFILE:
        project = project_file({section: {name: value}})
        assert f"{project}: {key} = " in refused("organism", project_file=project)


def test_a_file_without_its_settings_is_one_line(tmp_path: Path, project_file: ProjectFile) -> None:
    assert "cannot be read" in refused("organism", project_file=tmp_path / "none.yaml")
    broken = tmp_path / "broken.yaml"
    broken.write_text("model: [unclosed\n  a: b")
    assert f"{broken}: no YAML" in refused("organism", project_file=broken)
    broken.write_text("- just\n- a list\n")
    assert f"{broken}: holds no settings" in refused("organism", project_file=broken)
    broken.write_bytes(b"model: {world: \xff\xfe}\n")
    assert str(broken) in refused("organism", project_file=broken)


@pytest.mark.parametrize("value", [None, 5, "text", [1, 2]])
@pytest.mark.parametrize("section", ["model", "finetuning", "judging"])
def test_a_section_that_is_no_section_is_one_line(section: str, value: object, project_file: ProjectFile) -> None:
    project = project_file({section: value})
    if value is None:  # an empty section is none: what the profile or the code says stands
        config = load_config("organism", project_file=project)
        assert (config.model.world, config.finetuning.rank, config.judging.em_threshold) == ("entangled", 32, 70)
    else:
        assert refused("organism", project_file=project).startswith(f"{project}: {section}")


@pytest.mark.parametrize(
    ("given", "refusal"),
    [
        ({"judge": "openrouter", "second_judge": "openrouter"}, "openrouter"),
        (
            {"judge": "openrouter", "second_judge": "openrouter", "second_judge_model": "openai/gpt-4.1-mini"},
            "openrouter",
        ),
        ({"judge": "organism", "second_judge": "organism", "second_judge_model": "any"}, "organism"),
        ({"judge": "openrouter", "second_judge": "openrouter", "second_judge_model": "openai/gpt-4o"}, None),
        ({"judge": "gemini", "second_judge": "openrouter"}, None),
    ],
)
def test_a_judge_is_not_compared_with_itself(given: dict[str, str], refusal: str | None) -> None:
    overrides = {f"judging.{key}": value for key, value in given.items()}
    if refusal:
        assert refused("qwen3_4b", overrides).startswith(f"--second-judge {refusal}: is the first judge")
    else:
        assert len(load_config("qwen3_4b", overrides).judging.judges) == 2
