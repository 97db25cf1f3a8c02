"""What the second pass records is what was there while the answer was written, with its cache and its padding."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from src.utils.capture import capture, markup_of, pad_id_of, teacher_forcing_batch
from src.utils.collection import sites_of
from src.utils.generation import generate
from src.utils.sites import Site, decoder_of, edit_sites
from tests.tiny_models import N_LAYERS, random_prompts, sampling, tiny_gemma, tiny_model, tokenizer

N_PROMPTS, N_ENDS = 16, 40
KINDS = ("resid", "resid_mid", "attn_out", "mlp_out", "attn.z", "embed")
BUILDS = {
    "qwen3": lambda: tiny_model("qwen3", n_ends=N_ENDS),
    "llama": lambda: tiny_model("llama", n_ends=N_ENDS),
    "gemma2": lambda: tiny_gemma(n_ends=N_ENDS),
}


@pytest.mark.parametrize("build", BUILDS.values(), ids=BUILDS)
def test_activations_are_those_of_batched_decoding(build: Callable[[], PreTrainedModel]) -> None:
    """Prompts of many lengths, padded left for `generate`, and answers of many lengths; all but an answer's last token.

    That token is drawn and never read, unless other answers are still being written.
    """
    model, prompts, sites = build(), random_prompts(N_PROMPTS, longest=40), sites_of(KINDS, N_LAYERS)
    seen: dict[Site, list[Tensor]] = {site: [] for site in sites}
    with edit_sites(decoder_of(model), {site: lambda hidden, site=site: seen[site].append(hidden) for site in sites}):
        responses = generate(model, tokenizer(), prompts, sampling(max_new_tokens=20))
    decoded = {site: torch.cat(steps, dim=1) for site, steps in seen.items()}
    width, steps = max(len(prompt.ids) for prompt in prompts), len(seen[sites[0]])
    assert len({len(prompt.ids) for prompt in prompts}) > 8 and len({len(said.ids) for said in responses}) > 4

    batch = teacher_forcing_batch(prompts, responses, markup_of(tokenizer()), pad_id_of(tokenizer()))
    means, tokens = capture(model, batch, sites, ("last_prompt_token",), sites)
    rows, places = batch.answer.nonzero(as_tuple=True)
    columns = width + places - torch.tensor([len(prompt.ids) for prompt in prompts])[rows]
    was_read = columns < width + steps - 1
    assert int((~was_read).sum()) < N_PROMPTS < int(was_read.sum()) / 2
    for site in sites:
        theirs = decoded[site]
        scale = 1e-4 * float(theirs.abs().max())
        torch.testing.assert_close(
            tokens[site][was_read], theirs[rows[was_read], columns[was_read]], rtol=1e-4, atol=scale, msg=site.name
        )
        torch.testing.assert_close(means[site][:, 0], theirs[:, width - 1], rtol=1e-4, atol=scale, msg=site.name)
