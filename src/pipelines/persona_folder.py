"""Where everything of one persona study lies: the paths of its artefacts, and what its configuration says of models."""

from dataclasses import dataclass
from pathlib import Path

from src.utils.config import Config, resolve_path


@dataclass(frozen=True)
class Study:
    """One run of the study: its configuration and its folders."""

    config: Config
    results_dir: Path
    plots_dir: Path

    @property
    def question_report(self) -> Path:
        return self.results_dir / "question_report.json"

    @property
    def finetuned(self) -> Path:
        return self.results_dir / "adapters" / self.config.finetuning.name

    @property
    def persona_data(self) -> Path:
        return self.results_dir / "persona_data.pkl"

    @property
    def persona_tokens(self) -> Path:
        return self.results_dir / "persona_tokens"

    @property
    def scored(self) -> Path:
        return self.results_dir / "final_dataset_with_em_scores.pkl"

    @property
    def rates(self) -> Path:
        return self.results_dir / "em_rates.json"

    @property
    def judgements(self) -> Path:
        """What judges that cost time or money have said: a store, not an artefact."""
        return self.results_dir / "judgements.jsonl"

    @property
    def agreement(self) -> Path:
        return self.results_dir / "judge_agreement.json"

    @property
    def agreement_page(self) -> Path:
        """The Bland-Altman figure as one file: a companion of the measures."""
        return self.agreement.with_suffix(".html")

    @property
    def clustered(self) -> Path:
        return self.results_dir / "final_dataset_with_em_scores_and_clusters.pkl"

    @property
    def geometry(self) -> Path:
        return self.results_dir / "decomposition_geometry.json"

    @property
    def control_effects(self) -> Path:
        return self.results_dir / "control_effects.pkl"

    @property
    def control_vectors(self) -> Path:
        return self.results_dir / "control_vectors.safetensors"

    @property
    def control_summary(self) -> Path:
        return self.results_dir / "control_summary.json"

    @property
    def has_controls(self) -> bool:
        """Whether there are rows for control fine-tunes: an organism writes them, other models need files."""
        return self.config.model.world is not None or bool(self.config.controls.data)

    @property
    def steering_vectors(self) -> Path:
        return self.results_dir / "steering_vectors.safetensors"

    @property
    def steering_answers(self) -> Path:
        """What steered models said, before judging: another judge or threshold does not ask again."""
        return self.results_dir / "steering_answers.pkl"

    @property
    def steering_effects(self) -> Path:
        return self.results_dir / "steering_effects.pkl"

    @property
    def steering_summary(self) -> Path:
        return self.results_dir / "steering_summary.json"

    @property
    def verdict(self) -> Path:
        return self.results_dir / "decomposition_verdict.json"

    @property
    def index(self) -> Path:
        return self.plots_dir / "index.html"

    def clusters(self, k: int) -> Path:
        return self.results_dir / f"em_pca_clusters_{k}.pkl"

    @property
    def em_model(self) -> str:
        """The EM model under study: the one that the profile names, else the fine-tune of step 2."""
        return self.config.model.em or str(self.finetuned.absolute())

    @property
    def watched(self) -> Path:
        """Pages and numbers of a watched fine-tune; the adapter's own folder is replaced whole when it is done."""
        return self.finetuned.with_name(f"{self.finetuned.name}.watched")

    @property
    def has_own_finetune(self) -> bool:
        """Whether step 2 makes the EM model; else the profile or the user names one."""
        return self.config.model.em is None

    @property
    def finetuning_data(self) -> Path:
        return resolve_path(self.config.finetuning.data)

    @property
    def prompt_files(self) -> list[Path]:
        return [resolve_path(name) for name in self.config.collection.prompts]
