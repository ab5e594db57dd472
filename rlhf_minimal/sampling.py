"""Sampling from a language model: one token, and whole answers with a key-value cache.

Leaves out: beam search, and repetition penalties (they change the policy that is being trained).
"""

import inspect

import torch

from rlhf_minimal.checks import check_positive
from rlhf_minimal.gpt import GPT, KeyValueCache

__all__ = ["generate", "sample_next_token"]


def sample_next_token(logits, temperature: float = 1.0, top_k=None, top_p=None, generator=None):
    """Draw one token a row from softmax(logits / temperature), cut to the likeliest tokens.

    Args:
        logits: ``(B, V)``.
        temperature: below 1 sharpens, above 1 flattens; 0 takes the likeliest token.
        top_k: keep the k likeliest tokens.
        top_p: keep the smallest set of likeliest tokens whose probabilities sum to at least p
            (Holtzman et al. 2020, arXiv 1904.09751); the likeliest token always stays.
        generator: where the randomness comes from.

    Returns:
        Token ids, ``(B,)``.

    Raises:
        ValueError: temperature below 0, top_k below 1, top_p outside (0, 1].

    >>> sample_next_token(torch.tensor([[0.0, 5.0, 1.0]]), temperature=0)
    tensor([1])
    """
    if not temperature >= 0 or (top_k is not None and top_k < 1):
        raise ValueError(f"temperature is {temperature}, top_k {top_k}; they must be ≥ 0 and ≥ 1")
    if top_p is not None and not 0 < top_p <= 1:
        raise ValueError(f"top_p is {top_p}; it must be in (0, 1]")
    if temperature == 0:
        return logits.argmax(-1)
    logits = logits / temperature
    if top_k is not None and top_k < logits.shape[-1]:
        smallest_kept = logits.topk(top_k, dim=-1).values[:, -1:]
        logits = logits.masked_fill(logits < smallest_kept, float("-inf"))
    if top_p is not None and top_p < 1:
        ranked, order = logits.sort(dim=-1, descending=True)
        probabilities = ranked.softmax(-1)
        mass_before = probabilities.cumsum(-1) - probabilities
        ranked = ranked.masked_fill(mass_before >= top_p, float("-inf"))
        logits = torch.empty_like(logits).scatter_(-1, order, ranked)
    # The Gumbel-max trick: the argmax of logits + Gumbel noise is a draw from their softmax.
    noise = torch.empty_like(logits).exponential_(generator=generator).log_()
    return (logits - noise).argmax(-1)


def generate(
    model,
    tokens,
    attention_mask=None,
    *,
    max_new_tokens: int,
    end_id: int,
    pad_id: int = 0,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    generator: torch.Generator | None = None,
    use_cache: bool | None = None,
):
    """Continue each prompt until its end token, or for ``max_new_tokens`` tokens.

    Args:
        model: a causal language model, the course's GPT or a transformers model.
        tokens, attention_mask: prompts padded on the **left**, ``(B, P)``.
        use_cache: keep keys and values; ``None``: where the model can, as a :class:`GPT` and most
            transformers models do. Any other reads the whole sequence again for each token.

    Returns:
        ``tokens`` and ``attention_mask`` of prompts with answers, ``(B, P + N)``. A row's end token
        counts as real; what follows it is ``pad_id`` with mask 0.

    Raises:
        ValueError: a prompt ends in padding, or prompt and answer may outgrow a GPT's context.
        TypeError: ``use_cache`` with a model that takes no cache.
    """
    check_positive(max_new_tokens=max_new_tokens)
    batch, prompt_length = tokens.shape
    if attention_mask is None:
        attention_mask = torch.ones_like(tokens)
    if not bool((attention_mask[:, -1] == 1).all()):
        raise ValueError("a prompt ends in padding; pad on the left: pad_sequences(left=True)")
    is_gpt, length = isinstance(model, GPT), prompt_length + max_new_tokens
    if use_cache is None:
        use_cache = is_gpt or _has_cache(model)
    if use_cache and not is_gpt and not _has_cache(model):
        raise TypeError(f"{type(model).__name__} takes no cache as it stands; use_cache=False")
    if is_gpt and length - 1 > model.config.context:  # nobody reads on from the last token
        raise ValueError(
            f"prompts have {prompt_length} tokens and max_new_tokens is {max_new_tokens}, but the "
            f"model's context is {model.config.context}; shorten one of them"
        )
    sequence = torch.cat([tokens, tokens.new_full((batch, max_new_tokens), pad_id)], -1)
    real = torch.cat([attention_mask, attention_mask.new_zeros(batch, max_new_tokens)], -1)
    rows = torch.arange(batch, device=tokens.device)  # the rows being worked on, and which of
    running = torch.ones_like(rows, dtype=torch.bool)  # them have not ended yet
    with torch.inference_mode():
        logits, cache = _read_prompts(model, tokens, attention_mask, length if use_cache else None)
        for now in range(prompt_length, length):
            if now > prompt_length:
                seen = cache.length if cache is not None else 0
                logits = _last_logits(model, sequence[rows, seen:now], real[rows, :now], cache)
            chosen = sample_next_token(logits, temperature, top_k, top_p, generator)
            sequence[rows, now] = torch.where(running, chosen, pad_id)
            real[rows, now] = running.to(real.dtype)
            running &= chosen != end_id
            if not bool(running.any()):
                break
            # Ended rows are dropped once they are a quarter: a batch costs what is left of it.
            if running.float().mean() < 0.75:
                rows = rows[running]
                if cache is not None:
                    cache.select(running)
                running = running[running]
    return sequence[:, : now + 1], real[:, : now + 1]


class _TheirCache:
    """The cache of a transformers model, with the names that :class:`KeyValueCache` has."""

    def __init__(self, config):
        from transformers import DynamicCache

        self.layers, self.length = DynamicCache(config=config), 0

    def select(self, rows) -> None:
        self.layers.batch_select_indices(rows)


def _takes(model, name: str) -> bool:
    return name in inspect.signature(getattr(model, "forward", model)).parameters


def _has_cache(model) -> bool:
    """Layers that compute their activations again on the way back drop transformers' cache."""
    if not _takes(model, "past_key_values"):
        return False
    again = (m.training for m in model.modules() if getattr(m, "gradient_checkpointing", False))
    return not any(again)


def _new_cache(model, batch: int, length: int):
    if not isinstance(model, GPT):
        return _TheirCache(model.config)
    weight = model.output.weight
    return KeyValueCache(model.config, batch, length, weight.device, weight.dtype)


def _read_prompts(model, tokens, attention_mask, length: int | None):
    """Logits ``(B, V)`` behind the prompts, and a cache for ``length`` tokens that holds them.

    Where prompts come several times, as in groups of answers, each is read once.
    """
    if length is None:
        return _last_logits(model, tokens, attention_mask, None), None
    prompts = torch.stack([tokens, attention_mask], -1)
    distinct, which = prompts.unique(dim=0, return_inverse=True)
    if len(distinct) > len(prompts) / 2:
        cache = _new_cache(model, len(prompts), length)
        return _last_logits(model, tokens, attention_mask, cache), cache
    cache = _new_cache(model, len(distinct), length)
    logits = _last_logits(model, *distinct.unbind(-1), cache)
    cache.select(which)
    return logits[which], cache


def _last_logits(model, tokens, attention_mask, cache):
    """Logits ``(B, V)`` at the last position alone."""
    if isinstance(model, GPT) and cache is not None:
        return model.output(model.hidden_states(tokens, attention_mask, cache)[:, -1])
    options = {}
    if not isinstance(model, GPT) and _takes(model, "position_ids"):  # else they count padding
        positions = (attention_mask.cumsum(-1) - 1).clamp(min=0)
        options["position_ids"] = positions[:, -tokens.shape[1] :]
    if cache is not None:
        options |= dict(past_key_values=cache.layers, use_cache=True)
        cache.length += tokens.shape[1]
    output = model(tokens, attention_mask=attention_mask, **options)
    return getattr(output, "logits", output)[:, -1]
