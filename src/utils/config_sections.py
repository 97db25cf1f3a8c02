"""The sections of the configuration: what can be set, within which bounds, and what `--help` says of it."""

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

from src.utils.errors import UserError

SEVEN_PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ModelConfig(Section):
    """What is studied. Paths are relative to the repository; anything that is no folder is a hub name."""

    base: str
    em: str | None = Field(None, description="adapter or full checkpoint to study instead of the fine-tune of step 2")
    world: str | None = Field(None, description="the organism's world; none for a model of natural language")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    device_map: Literal["auto"] | None = Field(None, description="auto: share layers out to GPU and CPU (accelerate)")
    processes: int = Field(
        1, ge=1, description="without a GPU: up to so many share the prompts, one thread each; 1: one on all cores"
    )


class FinetuningConfig(Section):
    """LoRA or full fine-tuning on chat rows; see `finetuning`."""

    name: str = Field(description="results/adapters/<name>")
    data: str
    method: Literal["lora", "full"] = "lora"
    rank: int = Field(32, ge=1)
    alpha: float = Field(64, gt=0)
    use_rslora: bool = False
    dropout: float = Field(0.0, ge=0, lt=1)
    target_modules: list[str] = Field(default_factory=lambda: list(SEVEN_PROJECTIONS), min_length=1)
    layers: list[int] | None = Field(None, description="blocks to adapt; all when not given")
    learning_rate: float = Field(gt=0)
    scheduler: Literal["linear", "cosine", "constant", "constant_with_warmup"] = "linear"
    warmup_steps: int = Field(0, ge=0)
    weight_decay: float = Field(0.01, ge=0)
    epochs: float = Field(1.0, gt=0)
    max_steps: int | None = Field(None, ge=1, description="stops before the epochs are over")
    batch_size: int = Field(16, ge=1)
    gradient_accumulation_steps: int = Field(1, ge=1)
    gradient_checkpointing: bool = False
    max_length: int = Field(1024, ge=8)
    save_steps: int = Field(50, ge=1)
    visualize_during_training: bool = Field(False, description="watch misalignment emerge, in <name>.watched/")
    visualization_interval: int = Field(3, ge=1, description="watched are every so many steps, the first and the last")
    run_advanced_mi: bool = Field(False, description="draw circuits, too, while watching")
    seed: int = 0


SiteKind = Literal["resid", "embed", "resid_mid", "attn_out", "mlp_out", "attn.z", "attn.result", "attn.pattern"]
TokenSiteKind = Literal["resid", "embed", "resid_mid", "attn_out", "mlp_out", "attn.z"]  # the others are means only


PoolingKind = Literal["response_mean", "prompt_mean", "last_prompt_token"]


class CollectionConfig(Section):
    """Which questions are asked, how answers are drawn, and which layers go into the frame."""

    prompts: list[str] = Field(min_length=1)
    limit: int | None = Field(None, ge=1, description="this many questions, evenly spread over the set")
    samples: int = Field(1, ge=1)
    temperature: float = Field(0.7, ge=0)
    top_p: float = Field(0.8, gt=0, le=1)
    top_k: int = Field(20, ge=0)
    max_new_tokens: int = Field(200, ge=1)
    layers: list[int] = Field(min_length=1, description="input of these blocks: hook_resid_pre, HF hidden_states[l]")
    batch_size: int = Field(32, ge=1)
    sites: list[SiteKind] = Field(
        default_factory=lambda: list[SiteKind](["resid"]),
        min_length=1,
        description="recorded at every layer, for the safetensors file",
    )
    poolings: list[PoolingKind] = Field(
        default_factory=lambda: list[PoolingKind](["response_mean"]),
        min_length=1,
        description="over which tokens a site is averaged",
    )
    tokens: bool = Field(False, description="keep activations token by token, too, in persona_tokens/")
    token_sites: list[TokenSiteKind] = Field(
        default_factory=lambda: list[TokenSiteKind](["resid"]), min_length=1, description="what is kept of each token"
    )
    token_layers: list[int] | None = Field(
        None, min_length=1, description="at which layers, or in which blocks (default: those of the frame)"
    )
    seed: int = 0

    @field_validator("sites", "poolings")
    @classmethod
    def has_what_the_frame_holds(cls, value: list[str], info: ValidationInfo) -> list[str]:
        needed = "resid" if info.field_name == "sites" else "response_mean"
        if needed not in value:
            raise ValueError(f"{needed} must be among them: the frame holds it")
        return value


JudgeKind = Literal["organism", "local", "openrouter", "gemini"]


class JudgingConfig(Section):
    """Who scores the answers, and where the literature draws the line."""

    judge: JudgeKind = "organism"
    judge_model: str | None = Field(
        None, description="the judge's model; when not given, the one listed in judge_models"
    )
    second_judge: JudgeKind | None = Field(None, description="scores the same answers for results/judge_agreement.json")
    second_judge_model: str | None = Field(None, description="the second judge's model")
    judge_models: dict[str, str] = Field(
        default_factory=dict, description="judge -> model it uses unless told otherwise"
    )
    topic: bool = Field(True, description="ask, in a third request, what an answer talks about (on-topic, flip)")
    judge_limit: int | None = Field(
        None, ge=1, description="judge this many questions, drawn by seed; leave the others"
    )
    judge_batch_size: int = Field(16, ge=1, description="answers at once; judge local only")
    max_concurrency: int = Field(100, ge=1, description="requests under way at once, at most; adapts to refusals")
    request_timeout: float = Field(60, gt=0, description="seconds")
    reply_tokens: int = Field(
        16, ge=1, description="that a judge's reply may take; a model that thinks first needs a thousand or more"
    )
    max_cost: float | None = Field(
        None,
        gt=0,
        description="US dollars a step, for all its judges; questions beyond it are left unjudged",
    )
    em_threshold: float = Field(70, ge=0, le=100)
    coherence_threshold: float = Field(50, ge=0, le=100)
    bootstrap_resamples: int = Field(2000, ge=100)
    seed: int = 0

    @model_validator(mode="after")
    def judges_differ(self) -> Self:
        names = [(kind, self.model_of(kind, model)) for kind, model in self.judges]
        if len(names) > len(set(names)):
            raise UserError(
                f"--second-judge {self.second_judge}: is the first judge, which agrees with itself; "
                "choose another, or another --second-judge-model",
                exit_code=2,
            )
        return self

    @property
    def judges(self) -> list[tuple[JudgeKind, str | None]]:
        """Who judges, the first judge first, each with the model that was given for it."""
        second = [(self.second_judge, self.second_judge_model)] if self.second_judge else []
        return [(self.judge, self.judge_model), *second]

    def model_of(self, judge: JudgeKind, given: str | None) -> str | None:
        """The model that a judge uses; None for the organism's, which has none."""
        return None if judge == "organism" else given or self.judge_models.get(judge)


class ClusteringConfig(Section):
    """PCA and k-means over one representation, at one layer or several jointly, of one site."""

    layer: int = Field(ge=0)
    layers_jointly: list[Annotated[int, Field(ge=0)]] = Field(
        default_factory=list, description="these layers side by side in place of one, each at mean norm 1"
    )
    site: SiteKind = Field("resid", description="what is clustered there, of what step 3 recorded (--sites)")
    pooling: PoolingKind = Field("response_mean", description="over which tokens (step 3: --poolings)")
    representation: Literal["em", "em_minus_base", "em_minus_base_on_em"] = Field(
        "em", description="raw, or less the base model: each on its own answers, or both on the EM model's"
    )
    centre: bool = Field(True, description="take the mean off before PCA and clusters; no: directions from the origin")
    whiten: bool = Field(False, description="PCA whitening with the Ledoit-Wolf covariance")
    remove_dimension_means: bool = Field(False, description="for probes estimated on training folds alone")
    token_level: bool = Field(False, description="cluster single tokens, too (step 3: --tokens)")
    components: int = Field(50, ge=2)
    cluster_counts: list[Annotated[int, Field(ge=2)]] = Field(min_length=1)
    restarts: int = Field(3, ge=1, description="of k-means, for the data and for every draw of the null")
    seed: int = 0


ClusterAlgorithm = Literal["kmeans", "gaussian_mixture", "ward", "dbscan", "hdbscan"]
EVERY_ALGORITHM: list[ClusterAlgorithm] = ["kmeans", "gaussian_mixture", "ward", "dbscan", "hdbscan"]


class GeometryConfig(Section):
    """How the representation of `clustering` is described beside its clusters, and how often each null is drawn."""

    algorithms: list[ClusterAlgorithm] = Field(
        default_factory=lambda: list(EVERY_ALGORITHM), min_length=1, description="clusterings that are tested"
    )
    draws: int = Field(1000, ge=1, description="of Gaussian data of the same covariance, for k-means")
    draws_others: int = Field(100, ge=1, description="the same for other algorithms and for stability; no more")
    bootstraps: int = Field(3, ge=0, description="resamples of the prompts behind a clustering's stability")
    reseedings: int = Field(2, ge=0, description="further seeds behind a clustering's stability")
    layer_algorithms: list[ClusterAlgorithm] = Field(
        default_factory=lambda: list[ClusterAlgorithm](["kmeans"]),
        min_length=1,
        description="clusterings that are tested at every layer of the frame, and at all of them jointly",
    )
    layer_draws: int = Field(100, ge=1, description="of the null for those")
    box_draws: int = Field(100, ge=2, description="of uniform data, for the usual gap statistic")
    permutations: int = Field(1000, ge=1, description="of prompts, behind agreement with topic and length")
    parallel_resamples: int = Field(200, ge=1, description="of parallel analysis")
    splits: int = Field(100, ge=1, description="halves of the prompts whose subspaces are compared")
    factors: int = Field(10, ge=1, description="components of ICA, NMF and dictionary beside those of PCA")
    factor_repeats: int = Field(5, ge=1, description="halves in which they are to return")
    probes: bool = Field(True, description="fit probes of dimension and misalignment")
    folds: int = Field(5, ge=2, description="of prompts, for probes and factorisations")
    probe_penalties: list[float] = Field(
        default_factory=lambda: [0.01, 0.1, 1.0, 10.0, 100.0],
        min_length=1,
        description="scikit-learn's C to choose from",
    )
    power_angles: list[Annotated[float, Field(ge=0, le=90)]] = Field(
        default_factory=lambda: [30.0, 60.0, 90.0],
        min_length=1,
        description="degrees between the planted sub-personas of two dimensions; 0: all share one",
    )
    power_snrs: list[Annotated[float, Field(gt=0)]] = Field(
        default_factory=lambda: [2.0, 4.0, 8.0, 16.0],
        min_length=1,
        description="their sizes, in residual standard deviations",
    )
    power_repeats: int = Field(54, ge=0, description="plantings a point: 36 or more, 54 allow a miss; 0: none")
    power_permutations: int = Field(59, ge=20, description="of prompts, behind the test of each planting's subspaces")
    power_draws: int = Field(
        20, ge=0, description="of the null, behind the test of each planting's clusters: 20 or more; 0: not tested"
    )
    drop_flagged: bool = Field(False, description="leave norm outliers out; kept, a cluster of them is said to be one")
    jobs: int = Field(1, ge=1, description="processes that share the draws; results do not depend on it")

    @field_validator("draws_others")
    @classmethod
    def others_are_drawn_no_more(cls, draws_others: int, info: ValidationInfo) -> int:
        if draws_others > info.data.get("draws", draws_others):
            raise ValueError("more than draws; choose at most as many")
        return draws_others

    @field_validator("power_repeats", "power_draws")
    @classmethod
    def power_can_be_shown(cls, value: int, info: ValidationInfo) -> int:
        least = 36 if info.field_name == "power_repeats" else 20
        if 0 < value < least:
            raise ValueError(f"too few to show a power of 0.9 at the 5% level; choose 0 or at least {least}")
        return value


class ControlsConfig(Section):
    """Fine-tunes of known aim, one a dimension and a safe one, trained as the study's own; `control_finetunes`."""

    data: dict[str, str] = Field(
        default_factory=dict, description="dimension, or safe -> chat rows; an organism writes its own"
    )
    rows: int = Field(320, ge=1, description="an organism's rows for each")
    limit: int = Field(120, ge=4, description="questions that each is asked, evenly spread over the set")
    seed: int = 0


VectorKind = Literal[  # <kind>_own: what each vector has beyond the mean of its kind
    "mean_difference",
    "dimension",
    "dimension_own",
    "facet",
    "cluster",
    "control",
    "control_own",
    "principal_component",
    "independent_component",
]


class SteeringConfig(Section):
    """Which vectors are added to which model, how much of them, and where; see `steering`."""

    model: Literal["base", "em"] = Field("base", description="the model that is steered")
    layer: int = Field(ge=0, description="input of this block: hook_resid_pre, HF hidden_states[l]")
    representation: Literal["em_minus_base", "em_minus_base_on_em"] = Field(
        "em_minus_base_on_em", description="differences of own answers, or of both models over the EM model's"
    )
    vectors: list[VectorKind] = Field(min_length=1)
    cluster_count: int = Field(4, ge=2, description="vectors of these clusters of step 5, where clusters are asked for")
    components: int = Field(3, ge=1, description="so many principal or independent components")
    random_directions: int = Field(5, ge=5, description="all as long as the longest vector; the control")
    mode: Literal["add", "ablate", "cap"] = Field("add", description="add, project out, or cap the projection")
    positions: Literal["all", "response", "last"] = Field(
        "all", description="every token; those from which answer tokens are drawn; the last prompt token alone"
    )
    everywhere: bool = Field(False, description="mode ablate: at all that writes to the residual stream")
    coefficients: list[float] = Field(
        min_length=1, description="in units of the vector as measured; 0, unsteered, is always there; mode add only"
    )
    limit: int | None = Field(None, ge=1, description="this many questions, evenly spread over the set")
    samples: int = Field(1, ge=1)
    max_new_tokens: int | None = Field(None, ge=1, description="as in step 3 when not given")
    batch_size: int = Field(32, ge=1)
    seed: int = Field(0, description="of answers and random directions; that of step 3 draws with the same noise")

    @field_validator("everywhere")
    @classmethod
    def everywhere_is_ablation(cls, everywhere: bool, info: ValidationInfo) -> bool:
        if everywhere and info.data.get("mode") != "ablate":
            raise ValueError("needs mode ablate, as a vector's length belongs to its own layer")
        return everywhere


class VerdictConfig(Section):
    """How the verdict is computed; its rule is no setting (`decomposition.verdict`)."""

    resamples: int = Field(2000, ge=200, description="bootstrap draws and permutations of the cross-effect matrices")
    plantings: int = Field(200, ge=20, description="planted personas for each power")
    seed: int = 0
