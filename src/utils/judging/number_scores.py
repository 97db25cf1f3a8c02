"""How probable a language model finds each of a list of short replies, exactly, whatever its tokenizer does to them.

Many tokenizers (Qwen's) spell numbers in digits, so that a reply is a path of tokens: its probability is the product
along the path times the probability that it ends there. All paths form a tree; after one pass over the prompts, a
second pass runs the whole tree at once, each node seeing the prompt and its own ancestors only.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from src.utils.errors import UserError

TOLERANCE = 0.5  # between the tree and a plain pass, in log-probability; bfloat16 differs by some hundredths
LEAST = 1e-9  # probabilities below this are alike


@dataclass(frozen=True)
class TokenTree:
    """The token paths of several replies, shared beginnings once.

    `tokens`, `depths` (0 for a first token) and `parents` (-1 for none) are by node; `ends` is each reply's last node.
    """

    tokens: tuple[int, ...]
    depths: tuple[int, ...]
    parents: tuple[int, ...]
    ends: tuple[int, ...]

    def sees(self) -> Bool[Tensor, "nodes nodes"]:
        """Which node sees which: itself and its ancestors."""
        sees = torch.eye(len(self.tokens), dtype=torch.bool)
        for node, parent in enumerate(self.parents):  # parents come before their children
            if parent >= 0:
                sees[node] |= sees[parent]
        return sees


def token_tree(paths: Sequence[Sequence[int]]) -> TokenTree:
    nodes: dict[tuple[int, ...], int] = {}
    tokens: list[int] = []
    depths: list[int] = []
    parents: list[int] = []
    for path in paths:
        for depth, token in enumerate(path):
            prefix = tuple(path[: depth + 1])
            if prefix not in nodes:
                parents.append(nodes.get(tuple(path[:depth]), -1))
                nodes[prefix] = len(tokens)
                tokens.append(token)
                depths.append(depth)
    return TokenTree(tuple(tokens), tuple(depths), tuple(parents), tuple(nodes[tuple(path)] for path in paths))


@lru_cache(maxsize=4)
def continuing_tokens(tokenizer: PreTrainedTokenizerBase, size: int) -> Bool[Tensor, " vocabulary"]:
    """Which of the `size` ids would continue a number or a word: their text begins with a letter or a digit."""
    texts = tokenizer.batch_decode([[i] for i in range(min(size, len(tokenizer)))], skip_special_tokens=True)
    continues = torch.zeros(size, dtype=torch.bool)
    continues[: len(texts)] = torch.tensor([text[:1].isalnum() for text in texts])
    return continues


@torch.inference_mode()
def reply_probabilities(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    replies: Sequence[str],
) -> Float[Tensor, "prompts replies"]:
    """The probability, for each prompt of token ids, that the model's reply is each of `replies` and ends there.

    A reply ends where the next token begins with neither letter nor digit: the end of the turn, a full stop, a space.
    """
    tree = token_tree([tokenizer.encode(reply, add_special_tokens=False) for reply in replies])
    input_ids, mask = left_padded(prompts, pad=tokenizer.pad_token_id or 0)
    input_ids, mask = input_ids.to(model.device), mask.to(model.device)
    lengths = mask.sum(dim=1)
    first = model(
        input_ids=input_ids,
        attention_mask=mask,
        position_ids=(mask.cumsum(dim=1) - 1).clamp(min=0),
        use_cache=True,
        logits_to_keep=1,
    )
    nodes = torch.tensor(tree.tokens, device=model.device)
    depths = torch.tensor(tree.depths, device=model.device)
    second = model(
        input_ids=nodes.expand(len(prompts), -1),
        attention_mask=tree_mask(mask, tree, model.dtype),
        position_ids=lengths[:, None] + depths,
        past_key_values=first.past_key_values,
        use_cache=True,
    )
    return path_probabilities(
        first.logits[:, -1], second.logits, tree, continuing_tokens(tokenizer, first.logits.shape[-1])
    )


def tree_mask(
    prompt_mask: Int[Tensor, "prompts length"], tree: TokenTree, dtype: torch.dtype
) -> Float[Tensor, "prompts 1 nodes length+nodes"]:
    """Zero where a node may look (its prompt without the padding, itself, its ancestors), else the least number."""
    sees = tree.sees().to(prompt_mask.device)
    n_prompts, n_nodes = len(prompt_mask), len(sees)
    may = torch.cat(
        [prompt_mask.bool()[:, None, :].expand(-1, n_nodes, -1), sees.expand(n_prompts, -1, -1)],
        dim=-1,
    )
    return torch.zeros(may.shape, dtype=dtype, device=may.device).masked_fill(~may, torch.finfo(dtype).min)[:, None]


def path_probabilities(
    root_logits: Float[Tensor, "prompts vocabulary"],
    node_logits: Float[Tensor, "prompts nodes vocabulary"],
    tree: TokenTree,
    continues: Bool[Tensor, " vocabulary"],
) -> Float[Tensor, "prompts replies"]:
    """Products along the paths, times the probability that the path ends; float64 on the CPU."""
    continues = continues.to(root_logits.device)
    log_root = root_logits.float().log_softmax(dim=-1)
    log_here = torch.empty(len(root_logits), len(tree.tokens), dtype=torch.float64)
    log_end = torch.empty_like(log_here)
    children: dict[int, list[int]] = {}
    for node, parent in enumerate(tree.parents):
        children.setdefault(parent, []).append(node)
    for node in [-1, *range(len(tree.tokens))]:
        log_next = log_root if node < 0 else node_logits[:, node].float().log_softmax(dim=-1)
        if node >= 0:
            log_end[:, node] = log_next.masked_fill(continues, float("-inf")).logsumexp(dim=-1).double().cpu()
        for child in children.get(node, ()):
            above = log_here[:, node] if node >= 0 else 0.0
            log_here[:, child] = above + log_next[:, tree.tokens[child]].double().cpu()
    ends = list(tree.ends)
    return (log_here[:, ends] + log_end[:, ends]).exp()


def check_architecture(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompt: Sequence[int], replies: Sequence[str]
) -> None:
    """Compare the tree with a plain pass over prompt and reply; `UserError` for a model whose attention differs."""
    by_tree = reply_probabilities(model, tokenizer, [prompt], replies)[0].tolist()
    for reply, found in zip(replies, by_tree, strict=True):
        expected = plain_probability(model, tokenizer, prompt, reply)
        if not abs(math.log(found + LEAST) - math.log(expected + LEAST)) <= TOLERANCE:
            raise UserError(
                f"{model.config.name_or_path}: its attention does not take a tree of replies ({reply!r}: {found:.2e}, "
                f"by itself {expected:.2e}); choose another local judge"
            )


@torch.inference_mode()
def plain_probability(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompt: Sequence[int], reply: str
) -> float:
    """One reply's probability by one pass over prompt and reply, without cache, tree or padding."""
    path = tokenizer.encode(reply, add_special_tokens=False)
    logits = model(input_ids=torch.tensor([[*prompt, *path]], device=model.device)).logits[0].float()
    log_probs = logits[len(prompt) - 1 :].log_softmax(dim=-1).double().cpu()
    continues = continuing_tokens(tokenizer, logits.shape[-1])
    along = sum(log_probs[i, token].item() for i, token in enumerate(path))
    end = log_probs[len(path)].masked_fill(continues, float("-inf")).logsumexp(dim=-1).item()
    return float(torch.tensor(along + end, dtype=torch.float64).exp())


def left_padded(
    prompts: Sequence[Sequence[int]], pad: int
) -> tuple[Int[Tensor, "prompts length"], Int[Tensor, "prompts length"]]:
    """Ids and attention mask, prompts ending together."""
    longest = max(map(len, prompts))
    ids = torch.tensor([[pad] * (longest - len(prompt)) + list(prompt) for prompt in prompts])
    mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    return ids, mask
