"""A decoder-only transformer in a hundred lines, and its key-value cache.

Follows Radford et al. 2019 (GPT-2): pre-norm blocks, learned positions, and an output layer that
shares its weights with the token embedding. Departures: ReLU for GELU, which at this size takes a
fifth of a step's time on a CPU, and a larger initialisation.

Leaves out: dropout (the toy corpora are generated, so nothing repeats) and rotary positions.
"""

from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F
from torch import nn

from rlhf_minimal.checks import check_positive

__all__ = ["GPT", "GPTConfig", "KeyValueCache"]


@dataclass(frozen=True)
class GPTConfig:
    """Sizes of a GPT; the defaults make the course's 110,000 parameters."""

    vocab_size: int
    context: int = 80  # the longest sequence, prompt and answer together
    width: int = 64
    layers: int = 2
    heads: int = 4

    def __post_init__(self):
        check_positive(**asdict(self))
        if self.width % self.heads:
            raise ValueError(f"width is {self.width}; it must be a multiple of {self.heads} heads")


class KeyValueCache:
    """Keys and values of the tokens seen so far, in memory that is allocated once.

    Without it, each new token costs a pass over the whole sequence; with it, over one token.
    """

    def __init__(self, config: GPTConfig, batch: int, length: int, device=None, dtype=None):
        head_width = config.width // config.heads
        shape = (config.layers, 2, batch, config.heads, length, head_width)
        self.store = torch.empty(shape, device=device, dtype=dtype)
        self.length = 0

    def extend(self, layer: int, keys, values):
        """Write the new tokens' keys and values ``(B, heads, T, D)``; returns all until now."""
        until = self.length + keys.shape[2]
        self.store[layer, 0, :, :, self.length : until] = keys
        self.store[layer, 1, :, :, self.length : until] = values
        return self.store[layer, 0, :, :, :until], self.store[layer, 1, :, :, :until]

    def select(self, rows) -> None:
        """Go on with other rows: those of a boolean mask, or of an index, which may repeat some."""
        self.store = self.store[:, :, rows]


class Block(nn.Module):
    """Attention, then a feed-forward layer, each added to its input."""

    def __init__(self, config: GPTConfig):
        super().__init__()
        self.heads = config.heads
        self.norm_1 = nn.LayerNorm(config.width)
        self.query_key_value = nn.Linear(config.width, 3 * config.width)
        self.project = nn.Linear(config.width, config.width)
        self.norm_2 = nn.LayerNorm(config.width)
        self.widen = nn.Linear(config.width, 4 * config.width)
        self.narrow = nn.Linear(4 * config.width, config.width)

    def forward(self, x, visible, cache=None, layer=0):
        x = x + self.attend(self.norm_1(x), visible, cache, layer)
        return x + self.narrow(F.relu(self.widen(self.norm_2(x))))

    def attend(self, x, visible, cache, layer):
        """Multi-head attention; ``visible`` is ``(B, 1, T, S)``, or None for causal."""
        batch, time, width = x.shape
        heads = self.query_key_value(x).view(batch, time, 3, self.heads, width // self.heads)
        query, key, value = heads.permute(2, 0, 3, 1, 4)  # (B, T, 3·H·D) -> 3 × (B, H, T, D)
        if cache is not None:
            key, value = cache.extend(layer, key, value)  # (B, H, S, D)
        mixed = F.scaled_dot_product_attention(
            query, key, value, attn_mask=visible, is_causal=visible is None
        )
        return self.project(mixed.transpose(1, 2).reshape(batch, time, width))


class GPT(nn.Module):
    """``model(tokens, attention_mask=None)`` gives logits ``(B, T, V)``; position t is about t + 1.

    Padding may stand on either side: positions are counted over real tokens, so the logits of real
    tokens do not depend on how a batch is padded.

    >>> model = GPT(GPTConfig(vocab_size=10, context=8, width=16))
    >>> model(torch.tensor([[1, 2, 3]])).shape
    torch.Size([1, 3, 10])
    """

    def __init__(self, config: GPTConfig):
        super().__init__()
        self.config = config
        self.embed_token = nn.Embedding(config.vocab_size, config.width)
        self.embed_position = nn.Embedding(config.context, config.width)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.width)
        self.output = nn.Linear(config.width, config.vocab_size, bias=False)
        self.output.weight = self.embed_token.weight
        self.apply(self._initialise)

    def _initialise(self, module):
        # GPT-2's 0.02 suits a width of 768; a width of 64 learns much faster from 1/√width.
        if isinstance(module, (nn.Linear, nn.Embedding)):
            nn.init.normal_(module.weight, std=self.config.width**-0.5)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)

    def forward(self, tokens, attention_mask=None, cache=None):
        return self.output(self.hidden_states(tokens, attention_mask, cache))

    def get_output_embeddings(self) -> nn.Linear:
        """The layer from hidden states to logits, under the name that transformers gives it."""
        return self.output

    def hidden_states(self, tokens, attention_mask=None, cache=None, position_ids=None):
        """What the output layer reads, ``(B, T, width)``.

        Args:
            tokens: the new tokens, ``(B, T)``.
            attention_mask: 1 for real tokens, over the cached tokens too, ``(B, S)``.
            cache: a :class:`KeyValueCache` that holds the S − T tokens before these.
            position_ids: the tokens' positions, ``(B, T)``, where rows are no plain sequences;
                ``attention_mask`` is then what attention adds to its scores, ``(B, 1, T, S)``.
        """
        start = cache.length if cache is not None else 0
        end = start + tokens.shape[1]
        visible = attention_mask
        if position_ids is None:
            self._check(tokens, attention_mask, start, end)
            rows = attention_mask, start, end, tokens.device
            position_ids, visible = _positions_and_visibility(*rows)
        x = self.embed_token(tokens) + self.embed_position(position_ids)
        for layer, block in enumerate(self.blocks):
            x = block(x, visible, cache, layer)
        if cache is not None:
            cache.length = end
        return self.norm(x)

    def _check(self, tokens, attention_mask, start: int, end: int) -> None:
        if end > self.config.context:
            raise ValueError(
                f"the sequence has {end} tokens but the model's context is {self.config.context}; "
                "shorten the prompt or max_new_tokens"
            )
        if attention_mask is not None and attention_mask.shape != (len(tokens), end):
            raise ValueError(
                f"attention_mask has shape {tuple(attention_mask.shape)}; with {start} tokens in "
                f"the cache and tokens of shape {tuple(tokens.shape)} it must be "
                f"({len(tokens)}, {end})"
            )


def _positions_and_visibility(attention_mask, start: int, end: int, device):
    """Positions ``(1 or B, T)`` of tokens start..end, and who may look at whom (None: causal)."""
    rows = torch.arange(start, end, device=device)
    if attention_mask is None or (start == 0 and _right_padded(attention_mask)):
        # Behind the last real token nobody looks at padding, so the causal order alone suffices.
        if start == 0:
            return rows[None], None
        attention_mask = torch.ones(1, end, dtype=torch.long, device=device)
    positions = (attention_mask.cumsum(-1) - 1).clamp(min=0)[:, start:end]
    real = attention_mask[:, None, None, :end] != 0  # (B, 1, 1, S)
    columns = torch.arange(end, device=device)
    causal = columns[None, :] <= rows[:, None]  # (T, S)
    # A padding token looks at itself: a row with nothing to look at would be NaN.
    itself = columns[None, :] == rows[:, None]
    return positions, (real & causal) | itself


def _right_padded(attention_mask) -> bool:
    return bool((attention_mask[:, 1:] <= attention_mask[:, :-1]).all()) and bool(
        (attention_mask[:, 0] == 1).all()
    )
