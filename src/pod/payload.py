"""What a step needs on the pod and what it leaves there: the same script, the same options, as on this machine."""

import argparse
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from src.utils.cli import with_hyphens
from src.utils.config import PROJECT_ROOT
from src.utils.errors import UserError

if TYPE_CHECKING:
    from src.pipelines.persona_study import Step, Study

STEPS = {"finetune": "02", "collect": "03", "judge": "04", "steer": "06"}  # steps of the study, by script number
JUDGE_TRAIN = "judge-train"
SCRIPT = "script"
CODE = ("src", "configs", "pyproject.toml")
LEFT_OUT = {"__pycache__", ".DS_Store", ".parts", ".git", ".venv"}
REMOTE_RESULTS = "results"
SHARED = ("--profile", "--world", "--memory", "--config", "--base-model", "--dtype", "--device-map", "--adapter-name")
JUDGE_OUTPUT = "outputs/checkpoints"


@dataclass(frozen=True)
class Payload:
    """`files` are local files by their name in the pod's working folder; `outputs` are names there (files, folders).

    `before` are scripts, with their options, that run before the script.
    """

    script: str
    options: list[str]
    files: dict[str, Path]
    outputs: list[str]
    before: tuple[tuple[str, list[str]], ...] = ()


def step_payload(step: "Step", study: "Study", options: Sequence[str], root: Path = PROJECT_ROOT) -> Payload:
    """A step of the study with the options of its own script. `UserError` where an input is missing."""
    from src.utils.config import resolve_path
    from src.utils.organism.folder import grammar_of

    config = study.config
    model_folders = [resolve_path(name) for name in (config.model.base, config.model.em) if name is not None]
    inputs = [path for path in model_folders if path.is_dir()]
    if step.name.startswith("02"):
        inputs.append(study.finetuning_data)
    if step.name.startswith("03") or (step.name.startswith("02") and config.finetuning.visualize_during_training):
        inputs += study.prompt_files  # in step 2 the probes of the watched training are drawn from them
    if "organism" in (config.judging.judge, config.judging.second_judge) and step.name[:2] in ("04", "06"):
        inputs.append(grammar_of(config.model.base))
    earlier = [finetuning()] if lacks_finetune(step, study) else []
    inputs += [study.finetuning_data] if earlier else []
    read = [path for name in (*step.reads, *step.also_reads(study)) for path in artefacts_of(name, study)]
    rewritten, mentioned = rewrite_options(without_folder(options, "--results-dir"), root)
    files = {name: path for path in inputs for name, path in files_below(path, name_on_pod(path, root))}
    read += [path for path in stores_of(step, study) if path.exists()]
    for path in read:
        files |= dict(files_below(path, f"{REMOTE_RESULTS}/{path.relative_to(study.results_dir).as_posix()}"))
    left = [path for one in (*earlier, step) for path in outputs_of(one, study)]
    return Payload(
        step.script,
        [*rewritten, "--results-dir", REMOTE_RESULTS],
        code_files(root) | files | mentioned,
        [f"{REMOTE_RESULTS}/{path.relative_to(study.results_dir).as_posix()}" for path in left],
        tuple((one.script, [*shared_options(rewritten), "--results-dir", REMOTE_RESULTS]) for one in earlier),
    )


def finetuning() -> "Step":
    from src.pipelines.persona_study import FINETUNE

    return FINETUNE


def lacks_finetune(step: "Step", study: "Study") -> bool:
    """Whether the collection needs a fine-tune that is not there: it is made on the pod first."""
    return step.name.startswith("03") and study.has_own_finetune and not study.finetuned.exists()


def shared_options(words: Sequence[str]) -> list[str]:
    """Of the options of the collection those that the fine-tune has, too: which study, and which models."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for name in SHARED:
        parser.add_argument(name)
    known, _ = parser.parse_known_args([with_hyphens(word) for word in words])
    return [word for name, value in vars(known).items() if value for word in (f"--{name.replace('_', '-')}", value)]


def outputs_of(step: "Step", study: "Study") -> list[Path]:
    """What a step may leave, as it lies here: its artefacts with tensors and pages beside them, and what it watched."""
    artefacts = (step.artefact(study), *step.companions(study))
    found = [
        path
        for artefact in artefacts
        for path in (artefact, *map(artefact.with_suffix, (".safetensors", ".html")), manifest_of(artefact))
    ]
    if step.name == "02_finetune_lora":
        found.append(study.watched)
    return [*found, *stores_of(step, study)]


def stores_of(step: "Step", study: "Study") -> list[Path]:
    """What a step keeps beside its artefacts, so that nothing is asked twice: judgements, and what was judged."""
    found = [study.judgements] if step.name[:2] in ("04", "06") else []
    if step.name[:2] == "06":
        found += [study.steering_answers, manifest_of(study.steering_answers)]
    return found


def script_payload(
    script: str, options: Sequence[str], inputs: Sequence[Path], outputs: Sequence[str], root: Path = PROJECT_ROOT
) -> Payload:
    """Any script of the repository, with the files and folders that it reads and the names of what it writes."""
    path = Path(script) if Path(script).is_absolute() else root / script
    if not path.is_file():
        raise UserError(f"--script {script}: there is no such file in {root}; name one of the repository's scripts", 2)
    name = name_on_pod(path, root)
    for output in outputs:
        if Path(output).is_absolute() or ".." in Path(output).parts:
            raise UserError(f"--output {output}: must lie under the working folder; give a relative path", 2)
        if Path(output) in (Path(), Path(REMOTE_RESULTS)):
            raise UserError(f"--output {output}: is more than the script writes; name its files and folders there", 2)
    rewritten, mentioned = rewrite_options(options, root)
    files = {name: path for given in inputs for name, path in files_below(given, name_on_pod(given, root))}
    return Payload(name, rewritten, code_files(root) | {name: path} | files | mentioned, list(outputs))


def judge_train_payload(options: Sequence[str], root: Path = PROJECT_ROOT) -> Payload:
    """The safety judge's training, with all that ships for it; one that was interrupted there is resumed."""
    inputs = [path for path in (root / "data/safety", root / "data/organisms") if path.is_dir()]
    given = without_folder(options, "--output-dir", "--results-dir")
    words = [*given, "--output-dir", JUDGE_OUTPUT, *([] if "--resume" in given else ["--resume"])]
    return script_payload("src/train_safety_judge.py", words, inputs, [JUDGE_OUTPUT], root)


def judge_folder(options: Sequence[str], root: Path = PROJECT_ROOT) -> Path:
    """Where a judge that was trained with these options lies here, as one that is trained here does."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--output-dir", type=Path, default=root / JUDGE_OUTPUT)
    return parser.parse_known_args([with_hyphens(word) for word in options])[0].output_dir


def code_files(root: Path) -> dict[str, Path]:
    """The project's code and configuration as they are now, committed or not."""
    return {name: path for part in CODE for name, path in files_below(root / part, part)}


def files_below(path: Path, name: str) -> Iterable[tuple[str, Path]]:
    """Name and path of a file, or of each file below a folder, sorted; `UserError` if there is neither."""
    if path.is_file():
        return [(name, path)]
    if not path.is_dir():
        raise UserError(f"{path}: does not exist; make it first, or correct the path")
    inner = sorted(file.relative_to(path) for file in path.rglob("*") if file.is_file())
    return [(f"{name}/{file.as_posix()}", path / file) for file in inner if not is_left_out(file)]


def is_left_out(file: Path) -> bool:
    """Caches, files that are being written, and what holds secrets: names below the folder that is sent."""
    return any(part in LEFT_OUT or part.endswith(".tmp") or part.startswith(".env") for part in file.parts)


def name_on_pod(path: Path, root: Path) -> str:
    """Its place in the repository; what lies elsewhere comes under `inputs/`, apart from others of its name."""
    absolute = path.absolute()
    if absolute.is_relative_to(root):
        return absolute.relative_to(root).as_posix()
    return f"inputs/{abs(hash_of(str(absolute.parent))):08x}/{absolute.name}"


def hash_of(text: str) -> int:
    """The same number in every process."""
    import zlib

    return zlib.crc32(text.encode())


def rewrite_options(options: Sequence[str], root: Path) -> tuple[list[str], dict[str, Path]]:
    """Options with local paths as they are named on the pod, and the files that these mean."""
    words, files = [], {}
    for word in options:
        option, equals, value = "", "", word
        if (path := find_path(word, root)) is None:  # `--data=file`, `xstest=file`
            option, equals, value = word.partition("=")
            path = find_path(value, root) if value else None
        if path is None:
            words.append(word)
            continue
        name = name_on_pod(path, root)
        files |= dict(files_below(path, name))
        words.append(f"{option}{equals}{name}")
    return words, files


def find_path(word: str, root: Path) -> Path | None:
    """The file or folder that a word of the command line names, from here or from the repository; None for others.

    A folder in which the repository lies is no input.
    """
    if "/" not in word and "." not in word:  # `entangled` is a world, not the folder of that name
        return None
    for path in (Path(word).expanduser(), root / word):
        try:
            if path.exists() and not root.resolve().is_relative_to(path.resolve()):
                return path.absolute()
        except OSError:  # too long for a name
            return None
    return None


def without_folder(options: Sequence[str], *names: str) -> list[str]:
    """Options without those that name a folder for results: it has one name on the pod, wherever it is here."""
    spelled = {*names, *("--" + name[2:].replace("-", "_") for name in names)}
    kept: list[str] = []
    is_value = False
    for word in options:
        if is_value:
            is_value = False
        elif word in spelled:
            is_value = True
        elif word.partition("=")[0] not in spelled:
            kept.append(word)
    return kept


def artefacts_of(step_name: str, study: "Study") -> list[Path]:
    """The files of an earlier step's artefacts, with their manifests, as far as they are there."""
    from src.pipelines.persona_study import STEPS as STUDY_STEPS
    from src.utils.manifests import read_manifest

    step = next(step for step in STUDY_STEPS if step.name == step_name)
    if not step.is_needed(study):
        return []
    found = []
    for artefact in (step.artefact(study), *step.companions(study)):
        manifest = read_manifest(artefact)
        companions = manifest.files if manifest is not None and not artefact.is_dir() else {}
        paths = [artefact, manifest_of(artefact), *(artefact.with_name(name) for name in companions)]
        found += [path for path in paths if path.exists()]
    return found


def manifest_of(artefact: Path) -> Path:
    from src.utils.manifests import manifest_path

    return manifest_path(artefact)
