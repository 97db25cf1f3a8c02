"""Where activations are read and changed: TransformerLens's names for places in a Hugging Face model, and one hook.

Capture, steering and watching all go through `edit_sites`, which takes its hooks away however its block ends.

    hook_embed                    output of the token embedding
    blocks.<l>.hook_resid_pre     residual stream into block l: Hugging Face's hidden_states[l]
    blocks.<l>.hook_resid_mid     residual stream between attention and MLP
    blocks.<l>.hook_resid_post    residual stream out of block l
    blocks.<l>.hook_attn_out      what attention adds to the residual stream
    blocks.<l>.hook_mlp_out       what the MLP adds
    blocks.<l>.attn.hook_z        the heads' outputs before the output projection, (batch, seq, n_heads * d_head)
    blocks.<l>.attn.hook_result   what each head adds to the residual stream, (batch, seq, n_heads * d_model); only its
                                  means can be had, from those of hook_z
    blocks.<l>.attn.hook_pattern  attention probabilities, (batch, n_heads, query, key); needs eager attention
"""

import re
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from peft import PeftModel
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from src.utils.errors import UserError

AnyModel = PreTrainedModel | PeftModel
Edit = Callable[[Tensor], Tensor | None]  # what a hook does with an activation; None leaves it as it is

BLOCK_SITES = ("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out", "attn.z", "attn.result", "attn.pattern")
SITE = re.compile(
    r"hook_embed|blocks\.(\d+)\.(?:hook_(resid_pre|resid_mid|resid_post|attn_out|mlp_out)|attn\.hook_(z|result|pattern))"
)


@dataclass(frozen=True)
class Site:
    """One place in a model; `kind` is one of `BLOCK_SITES` or `embed`, which has no block."""

    kind: str
    block: int | None = None

    @property
    def name(self) -> str:
        """The TransformerLens name."""
        if self.block is None:
            return "hook_embed"
        part = f"attn.hook_{self.kind.removeprefix('attn.')}" if self.kind.startswith("attn.") else f"hook_{self.kind}"
        return f"blocks.{self.block}.{part}"


def parse_site(name: str) -> Site:
    """The site of a TransformerLens name; an unknown one raises `UserError` (exit code 2)."""
    found = SITE.fullmatch(name)
    if found is None:
        raise UserError(
            f"site {name!r}: unknown; there are hook_embed, blocks.<l>.hook_resid_pre and src/utils/sites.py", 2
        )
    if found[1] is None:
        return Site("embed")
    return Site(found[2] or f"attn.{found[3]}", int(found[1]))


def resid_site(layer: int, n_layers: int) -> Site:
    """The residual stream of a layer number: into block `layer`, or out of the last block for `layer` = n_layers."""
    return Site("resid_post", n_layers - 1) if layer == n_layers else Site("resid_pre", layer)


def decoder_of(model: AnyModel) -> PreTrainedModel:
    """The stack of blocks under the language-model head, adapters left in place."""
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    assert isinstance(base, PreTrainedModel)
    return base.get_decoder()


def blocks_of(decoder: PreTrainedModel) -> nn.ModuleList:
    blocks = decoder.get_submodule("layers")
    assert isinstance(blocks, nn.ModuleList)
    return blocks


def count_layers(model: AnyModel) -> int:
    return len(blocks_of(decoder_of(model)))


@contextmanager
def edit_sites(decoder: PreTrainedModel, edits: Mapping[Site, Edit]) -> Generator[None]:
    """While open, each edit sees the activation of its site, (batch, seq, width), and may give another in its place.

    The hooks are gone when the block ends, however it ends. What an edit raises ends the forward pass.
    """
    handles: list[RemovableHandle] = []
    try:
        for site, edit in edits.items():
            handles.append(hook_site(decoder, site, edit))  # those before a faulty one are removed
        yield
    finally:
        for handle in handles:
            handle.remove()


def hook_site(decoder: PreTrainedModel, site: Site, edit: Edit) -> RemovableHandle:
    """Install one edit; who calls this removes the handle (`edit_sites` does)."""
    if site.block is None:
        return decoder.get_submodule("embed_tokens").register_forward_hook(on_output(edit))
    blocks = blocks_of(decoder)
    if not 0 <= site.block < len(blocks):
        raise UserError(f"site {site.name}: the model has blocks 0 to {len(blocks) - 1}", 2)
    block = blocks[site.block]
    if site.kind == "resid_pre":
        return block.register_forward_pre_hook(on_input(edit), with_kwargs=True)
    if site.kind == "resid_post":
        return block.register_forward_hook(on_output(edit))
    if site.kind == "resid_mid":
        return module_after_attention(block).register_forward_pre_hook(on_input(edit), with_kwargs=True)
    if site.kind == "attn_out":
        return attention_writer(block).register_forward_hook(on_output(edit))
    if site.kind == "mlp_out":
        return mlp_writer(block).register_forward_hook(on_output(edit))
    attention = block.get_submodule("self_attn")
    if site.kind == "attn.result":
        raise UserError(f"site {site.name}: the model does not compute it; take attn.z", 2)
    if site.kind == "attn.z":
        return attention.get_submodule("o_proj").register_forward_pre_hook(on_input(edit), with_kwargs=True)
    return attention.register_forward_hook(on_pattern(edit))


def has_norms_after(block: nn.Module) -> bool:
    """Whether a block normalises what attention and MLP add before it adds it (Gemma 2 and 3, OLMo 2, GLM 4)."""
    return hasattr(block, "post_feedforward_layernorm") or hasattr(block, "post_mlp_layernorm")


def module_after_attention(block: nn.Module) -> nn.Module:
    """The module whose input is the residual stream between attention and MLP: a norm, where there is one."""
    if hasattr(block, "pre_feedforward_layernorm"):
        return block.get_submodule("pre_feedforward_layernorm")
    return block.get_submodule("mlp" if hasattr(block, "post_feedforward_layernorm") else "post_attention_layernorm")


def attention_writer(block: nn.Module) -> nn.Module:
    """The module whose output attention adds to the residual stream."""
    if hasattr(block, "post_self_attn_layernorm"):
        return block.get_submodule("post_self_attn_layernorm")
    return block.get_submodule("post_attention_layernorm" if has_norms_after(block) else "self_attn")


def mlp_writer(block: nn.Module) -> nn.Module:
    if hasattr(block, "post_mlp_layernorm"):
        return block.get_submodule("post_mlp_layernorm")
    return block.get_submodule("post_feedforward_layernorm" if has_norms_after(block) else "mlp")


def on_input(edit: Edit) -> Callable[[nn.Module, tuple, dict], tuple[tuple, dict] | None]:
    """A pre-hook that lets `edit` see and replace a module's first argument."""

    def hook(module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict] | None:
        edited = edit(args[0] if args else kwargs["hidden_states"])
        if edited is None:
            return None
        return ((edited, *args[1:]), kwargs) if args else (args, kwargs | {"hidden_states": edited})

    return hook


def on_output(edit: Edit) -> Callable[[nn.Module, tuple, Any], Any]:
    """A hook that lets `edit` see and replace a module's output, or the first of several."""

    def hook(module: nn.Module, args: tuple, output: Any) -> Any:
        first = output[0] if isinstance(output, tuple) else output
        edited = edit(first)
        if edited is None:
            return None
        return (edited, *output[1:]) if isinstance(output, tuple) else edited

    return hook


def on_pattern(edit: Edit) -> Callable[[nn.Module, tuple, Any], None]:
    """A hook that lets `edit` see attention probabilities; they cannot be replaced, they have been used."""

    def hook(module: nn.Module, args: tuple, output: Any) -> None:
        if output[1] is None:
            raise RuntimeError("attention probabilities are only there with eager attention; see `eager_attention`")
        edit(output[1])

    return hook


@contextmanager
def eager_attention(model: AnyModel) -> Generator[None]:
    """While open, the model computes attention probabilities; its numbers may differ in the last bits."""
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    assert isinstance(base, PreTrainedModel)
    before = base.config._attn_implementation
    base.set_attn_implementation("eager")
    try:
        yield
    finally:
        base.set_attn_implementation(before)


def deepest_first(sites: Iterable[Site]) -> list[Site]:
    """Sites in the order opposite to that of the forward pass."""
    order = ("embed", "resid_pre", "attn.z", "attn.pattern", "attn_out", "resid_mid", "mlp_out", "resid_post")
    return sorted(
        sites, key=lambda site: (-1 if site.block is None else site.block, order.index(site.kind)), reverse=True
    )
