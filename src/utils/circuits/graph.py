"""A model as a graph: what writes into the residual stream and what reads from it.

Writers are the embeddings, each attention head and each MLP; readers are each head's query, each key-value head's key
and value, each MLP and the logits. With grouped-query attention several query heads share a key and a value, so that
keys and values are readers of their own; without it there is one a head, as in TransformerLens's edge attribution.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from jaxtyping import Bool

from src.utils.errors import UserError
from src.utils.sites import AnyModel, blocks_of, count_layers, decoder_of, has_norms_after

ReaderKind = Literal["q", "k", "v", "mlp", "logits"]
PROJECTIONS: tuple[Literal["q", "k", "v"], ...] = ("q", "k", "v")
NEEDED = (*(f"self_attn.{name}_proj" for name in (*PROJECTIONS, "o")), "post_attention_layernorm", "mlp")


@dataclass(frozen=True)
class Writer:
    kind: Literal["embed", "head", "mlp"]
    layer: int = 0
    head: int = 0

    @property
    def name(self) -> str:
        names = {"embed": "embeddings", "head": f"L{self.layer}H{self.head}", "mlp": f"MLP{self.layer}"}
        return names[self.kind]


@dataclass(frozen=True)
class Reader:
    """`head` counts query heads for q and key-value heads for k and v."""

    kind: ReaderKind
    layer: int = 0
    head: int = 0

    @property
    def name(self) -> str:
        if self.kind in ("mlp", "logits"):
            return f"MLP{self.layer}" if self.kind == "mlp" else "logits"
        return f"L{self.layer}{'H' if self.kind == 'q' else 'KV'}{self.head}.{self.kind}"


@dataclass(frozen=True)
class Graph:
    """The sizes of a model and, in the order of the forward pass, its writers and readers."""

    n_layers: int
    n_heads: int
    n_kv_heads: int

    @classmethod
    def of(cls, model: AnyModel) -> "Graph":
        """Raises `UserError` for blocks that are made otherwise.

        Those that normalise or multiply before they add, as heads do not add up there; those with one projection for
        queries, keys and values, or without a norm before the MLP.
        """
        decoder = decoder_of(model)
        own = [{name for name, _ in block.named_modules()} for block in blocks_of(decoder)]
        if missing := [name for name in NEEDED if not all(name in names for names in own)]:
            raise UserError(f"{type(decoder).__name__}: its blocks have no {missing[0]}; no edges can be drawn")
        if any(has_norms_after(block) for block in blocks_of(decoder)):
            raise UserError(f"{type(decoder).__name__}: its blocks normalise what heads write; no edges can be drawn")
        config = decoder.config
        if getattr(config, "residual_multiplier", 1.0) != 1.0:
            raise UserError(f"{type(decoder).__name__}: its blocks multiply what heads write; no edges can be drawn")
        return cls(count_layers(model), config.num_attention_heads, config.num_key_value_heads)

    @cached_property
    def writers(self) -> list[Writer]:
        found = [Writer("embed")]
        for layer in range(self.n_layers):
            found += [Writer("head", layer, head) for head in range(self.n_heads)]
            found.append(Writer("mlp", layer))
        return found

    @cached_property
    def readers(self) -> list[Reader]:
        found: list[Reader] = []
        for layer in range(self.n_layers):
            for kind in PROJECTIONS:
                found += [Reader(kind, layer, head) for head in range(self.heads_of(kind))]
            found.append(Reader("mlp", layer))
        return [*found, Reader("logits", self.n_layers)]

    def heads_of(self, kind: Literal["q", "k", "v"]) -> int:
        return self.n_heads if kind == "q" else self.n_kv_heads

    def group(self, kind: ReaderKind, layer: int = 0) -> slice:
        """Where the readers of a kind and layer stand among all."""
        start = layer * (self.n_heads + 2 * self.n_kv_heads + 1)
        sizes = {"q": self.n_heads, "k": self.n_kv_heads, "v": self.n_kv_heads, "mlp": 1, "logits": 1}
        for other in ("q", "k", "v", "mlp"):
            if other == kind or kind == "logits":
                break
            start += sizes[other]
        return slice(start, start + sizes[kind]) if kind != "logits" else slice(len(self.readers) - 1, None)

    def upstream(self, kind: ReaderKind, layer: int = 0) -> int:
        """How many of the writers such a reader can read from; they are the first ones."""
        if kind == "logits":
            return len(self.writers)
        return 1 + layer * (self.n_heads + 1) + (self.n_heads if kind == "mlp" else 0)

    def heads_writing(self, layer: int) -> slice:
        """Where the heads of a block stand among the writers; its MLP comes next."""
        start = 1 + layer * (self.n_heads + 1)
        return slice(start, start + self.n_heads)

    @cached_property
    def edges(self) -> Bool[np.ndarray, "readers writers"]:
        """Which pairs are an edge."""
        found = np.zeros((len(self.readers), len(self.writers)), dtype=bool)
        for row, reader in enumerate(self.readers):
            found[row, : self.upstream(reader.kind, reader.layer)] = True
        return found
