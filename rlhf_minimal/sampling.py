"""Sampling from a language model: one token, and whole answers with a key-value cache.

Leaves out: beam search, and repetition penalties (they change the policy that is being trained).
"""

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
        use_cache: keep keys and values; ``None``: where the model is a :class:`GPT`. Any other
            model reads the whole sequence again for each token.

    Returns:
        ``tokens`` and ``attention_mask`` of prompts with answers, ``(B, P + N)``. A row's end token
        counts as real; what follows it is ``pad_id`` with mask 0.

    Raises:
        ValueError: a prompt ends in padding, or prompt and answer may outgrow a GPT's context.
        TypeError: ``use_cache`` with a model that is no GPT.
    """
    check_positive(max_new_tokens=max_new_tokens)
    batch, prompt_length = tokens.shape
    if attention_mask is None:
        attention_mask = torch.ones_like(tokens)
    if not bool((attention_mask[:, -1] == 1).all()):
        raise ValueError("a prompt ends in padding; pad on the left: pad_sequences(left=True)")
    is_gpt, length, cache = isinstance(model, GPT), prompt_length + max_new_tokens, None
    if use_cache and not is_gpt:
        raise TypeError(f"{type(model).__name__} does not take our cache; use_cache=False")
    if is_gpt and length - 1 > model.config.context:  # nobody reads on from the last token
        raise ValueError(
            f"prompts have {prompt_length} tokens and max_new_tokens is {max_new_tokens}, but the "
            f"model's context is {model.config.context}; shorten one of them"
        )
    if is_gpt and use_cache is not False:
        weight = model.output.weight
        cache = KeyValueCache(model.config, batch, length, weight.device, weight.dtype)
    sequence = torch.cat([tokens, tokens.new_full((batch, max_new_tokens), pad_id)], -1)
    real = torch.cat([attention_mask, attention_mask.new_zeros(batch, max_new_tokens)], -1)
    rows = torch.arange(batch, device=tokens.device)  # the rows being worked on, and which of
    running = torch.ones_like(rows, dtype=torch.bool)  # them have not ended yet
    with torch.inference_mode():
        for now in range(prompt_length, sequence.shape[1]):
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
                    cache.keep(running)
                running = running[running]
    return sequence[:, : now + 1], real[:, : now + 1]


def _last_logits(model, tokens, attention_mask, cache):
    """Logits ``(B, V)`` at the last position alone."""
    if cache is None:
        output = model(tokens, attention_mask=attention_mask)
        return getattr(output, "logits", output)[:, -1]
    return model.output(model.hidden_states(tokens, attention_mask, cache)[:, -1])
