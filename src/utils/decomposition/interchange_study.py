"""The interchange of one study: its candidate directions, and its two models, one at a time."""

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager

from src.utils.config_sections import ModelConfig
from src.utils.decomposition.interchange import Arm, OpenArm
from src.utils.model_files import is_adapter
from src.utils.models import check_checkpoint_fits, load_adapter, load_model
from src.utils.sites import AnyModel
from src.utils.steering_vectors import Differences, SteeringVector, by_cluster, principal_components

MOST_FORKS = 60  # a dimension


def candidates(
    differences: Differences, steered: Sequence[SteeringVector], cluster_count: int, components: int
) -> list[SteeringVector]:
    """The directions that step 6 steered along, and, unless they are among them, clusters' and leading components'.

    Clusters are those of step 5, where `differences.frame` has a column `cluster_<cluster_count>`.
    """
    kinds = {vector.kind for vector in steered}
    found = list(steered)
    if "cluster" not in kinds and f"cluster_{cluster_count}" in differences.frame:
        found += by_cluster(differences, cluster_count)
    if "principal_component" not in kinds:
        found += principal_components(differences, components)
    return found


def study_arms(settings: ModelConfig, em_model: str) -> OpenArm:
    """What opens the base or the EM model: an adapter is switched off and on, a checkpoint loaded when it is asked for.

    Models that cannot be loaded raise `UserError`.
    """
    if is_adapter(em_model):
        return adapter_arms(lambda: load_adapter(load_model(settings.base, settings), em_model))
    check_checkpoint_fits(settings.base, em_model)

    @contextmanager
    def checkpoint(arm: Arm) -> Generator[AnyModel]:
        yield load_model(settings.base if arm == "base" else em_model, settings)

    return checkpoint


def adapter_arms(load: Callable[[], AnyModel]) -> OpenArm:
    """One copy of the weights for both arms, loaded when the first is opened."""
    loaded: list[AnyModel] = []

    @contextmanager
    def adapter(arm: Arm) -> Generator[AnyModel]:
        if not loaded:
            loaded.append(load())
        if arm == "em":
            yield loaded[0]
            return
        with loaded[0].disable_adapter():  # ty: ignore[not-callable]  # PeftModel's
            yield loaded[0]

    return adapter
