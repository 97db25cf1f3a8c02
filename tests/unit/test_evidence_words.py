"""Every choice of step 5 is told in words that a reader can tell from those of every other choice."""

from itertools import product
from typing import get_args

from src.utils.config_sections import PoolingKind, SiteKind
from src.utils.decomposition.evidence_choice import EvidenceChoice, describe_choice
from src.utils.decomposition.inputs import OTHER_ARM
from src.visualizations.evidence_words import describe_kind, evidence_words


def test_no_two_choices_are_called_alike_and_none_by_its_raw_name() -> None:
    flags = list(product((False, True), repeat=3))
    choices = [
        EvidenceChoice(kind, layers, site, pooling, whiten=white, remove_dimension_means=means, centre=centre)
        for kind, layers, site, pooling, (white, means, centre) in product(
            OTHER_ARM, ((3,), (13,), (3, 13)), get_args(SiteKind), get_args(PoolingKind), flags
        )
    ]
    names = {choice.name for choice in choices}
    words = {name: evidence_words(name) for name in names}
    assert len(set(words.values())) == len(names) > 1000
    assert not any("_layer" in text or text.startswith("Em ") for text in words.values())


def test_the_words_for_readers() -> None:
    stream = "EM activations, layer 3 (resid_pre: the input of block 3, hidden_states[3])"
    assert evidence_words("em_activations_layer_3", explains_stream=True) == stream
    assert evidence_words("em_activations_layer_3") == "EM activations, layer 3"
    attention = evidence_words("em_attn_out_layer_3", explains_stream=True)
    assert attention == "EM activations, attention output (attn_out), layer 3", "no input of a block"
    choice = EvidenceChoice("em_minus_base", (3, 13), "mlp_out", "prompt_mean", whiten=True, centre=False)
    stated = "EM minus base activations, each on its own answers, MLP output (mlp_out), layers 3, 13 jointly, "
    assert evidence_words(choice.name) == f"{stated}mean over the question's tokens, whitened, not centred"
    assert evidence_words("<b>x") == "&lt;b&gt;x"


def test_where_layers_stand_side_by_side_no_layer_is_named() -> None:
    for choice in (
        EvidenceChoice("em", (3,)),
        EvidenceChoice("em", (3, 13), "attn_out"),
        EvidenceChoice("em", (), "embed"),
    ):
        words = describe_kind({"evidence": describe_choice(choice)})
        assert words.startswith("EM activations") and "layer" not in words
