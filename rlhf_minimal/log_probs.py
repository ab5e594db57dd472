"""Log-probabilities that a language model gives to tokens and to whole answers, and their masks.

Everything here is about one off-by-one: the logits at position t are about the token at t + 1.
A *mask* has the shape of the tokens, prompt included, and is 1 where the token counts.

One code path for tiny and large: ``model(tokens, attention_mask=...)`` may return logits, as the
course's GPT does, or an object that holds them, as transformers models do.

Leaves out: models with an encoder.
"""

from functools import partial

import numpy as np
import torch
from torch.utils.checkpoint import checkpoint

from rlhf_minimal.checks import check_mask, check_same_shape

__all__ = [
    "answer_log_probs",
    "masked_mean",
    "mean_log_probs",
    "next_token_logits",
    "pad_sequences",
    "response_mask",
    "sequence_log_probs",
    "token_log_probs",
]


def masked_mean(values, mask=None):
    """Mean of the values whose mask is not 0; of all of them without a mask.

    Masked-out values do not enter at all, so a NaN among the padding does no harm, and every
    unmasked token weighs the same however long its sequence is.

    >>> masked_mean(torch.tensor([1.0, 3.0, float("nan")]), torch.tensor([1, 1, 0]))
    tensor(2.)
    """
    if mask is None:
        check_same_shape(values=values)
        return values.mean()
    check_mask(mask, values)
    return values[mask != 0].mean()


def pad_sequences(sequences, pad_id: int, left: bool = False):
    """Lists of token ids as one rectangle.

    Args:
        sequences: ``B`` lists of token ids, none empty.
        pad_id: what fills the gaps.
        left: pad on the left, so that every row ends at the same column and can be continued.

    Returns:
        ``tokens`` and ``attention_mask`` (1 = a real token), both ``(B, T)`` and int64.

    >>> tokens, mask = pad_sequences([[5, 6, 7], [8]], pad_id=0)
    >>> tokens.tolist(), mask.tolist()
    ([[5, 6, 7], [8, 0, 0]], [[1, 1, 1], [1, 0, 0]])
    """
    if not sequences or min(len(s) for s in sequences) == 0:
        raise ValueError("sequences must be one or more non-empty lists of token ids")
    lengths = torch.tensor([len(s) for s in sequences])[:, None]
    width = int(lengths.max())
    fill = ([pad_id] * (width - len(s)) for s in sequences)
    rows = [[*f, *s] if left else [*s, *f] for s, f in zip(sequences, fill, strict=True)]
    tokens = torch.from_numpy(np.array(rows, dtype=np.int64))  # torch.tensor is slow
    columns = torch.arange(width)
    mask = columns >= width - lengths if left else columns < lengths
    return tokens, mask.long()


def response_mask(attention_mask, prompt_lengths):
    """Which tokens belong to the answer: after the prompt, the end token included, padding not.

    The mask is made from *positions*. Made from token ids (``tokens != pad_id``) it would hide the
    end token wherever pad and end are one token, and the model would never learn to stop.

    Args:
        attention_mask: 1 for real tokens, padded on the right, ``(B, T)``.
        prompt_lengths: tokens of each prompt, ``(B,)``.

    Returns:
        ``(B, T)``, 1 on answer tokens.

    Raises:
        ValueError: the padding stands on the left, or there is not one length a row.

    >>> response_mask(torch.tensor([[1, 1, 1, 1, 0]]), torch.tensor([2])).tolist()
    [[0, 0, 1, 1, 0]]
    """
    if prompt_lengths.shape != attention_mask.shape[:1]:
        raise ValueError(
            f"prompt_lengths have shape {tuple(prompt_lengths.shape)} but attention_mask "
            f"{tuple(attention_mask.shape)}; pass one length a row"
        )
    if bool((attention_mask[:, 1:] > attention_mask[:, :-1]).any()):
        raise ValueError("attention_mask is padded on the left; the answer's place needs the right")
    positions = torch.arange(attention_mask.shape[1], device=attention_mask.device)
    after_prompt = positions[None, :] >= prompt_lengths[:, None]  # (B, T)
    return after_prompt.long() * attention_mask


def next_token_logits(model, tokens, attention_mask=None):
    """Logits ``(B, T, V)`` of any causal language model; ``[:, t]`` is about the token at t + 1."""
    output = model(tokens, attention_mask=attention_mask)
    return getattr(output, "logits", output)


def _at_least_float32(logits):
    """Half-precision logits as float32: a sum over a vocabulary needs more than 8 or 11 bits."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def token_log_probs(logits, tokens):
    """Log-probability of each token given those before it: shift, then gather.

    Args:
        logits: ``(B, T, V)``; position t scores the token at t + 1.
        tokens: the sequences themselves, ``(B, T)``.

    Returns:
        ``(B, T - 1)``: entry t is log π(tokens[t + 1] | tokens[:t + 1]). The first token has none.

    Raises:
        ValueError: the shapes do not fit.

    >>> logits = torch.log(torch.tensor([[[0.25, 0.75], [0.5, 0.5]]]))  # (1, 2, 2)
    >>> token_log_probs(logits, torch.tensor([[0, 1]])).exp()
    tensor([[0.7500]])
    """
    if logits.dim() != 3 or logits.shape[:2] != tokens.shape:
        raise ValueError(
            f"logits have shape {tuple(logits.shape)} but tokens {tuple(tokens.shape)}; "
            "they must be (B, T, V) and (B, T)"
        )
    if tokens.shape[1] < 2:
        raise ValueError("tokens hold one position only; the first token has no log-probability")
    shifted = _at_least_float32(logits[:, :-1])
    chosen = shifted.gather(-1, tokens[:, 1:, None]).squeeze(-1)  # (B, T - 1)
    return chosen - shifted.logsumexp(-1)


def sequence_log_probs(logits, tokens, mask):
    """Summed log-probability of the masked tokens: log π(answer | prompt), what DPO needs.

    Args:
        logits, tokens: as for :func:`token_log_probs`.
        mask: 1 on the tokens that count, ``(B, T)``, prompt included (as zeros).

    Returns:
        ``(B,)``, in nats.
    """
    log_probs = token_log_probs(logits, tokens)
    counts = _counted(tokens, mask)
    return torch.where(counts, log_probs, torch.zeros_like(log_probs)).sum(-1)


def mean_log_probs(logits, tokens, mask):
    """Log-probability a token, averaged over the masked tokens: what SimPO needs.

    Same arguments as :func:`sequence_log_probs`; a function of its own because the two differ in
    meaning: this one does not favour short answers.
    """
    return sequence_log_probs(logits, tokens, mask) / _counted(tokens, mask).sum(-1)


def _counted(tokens, mask):
    """``mask[:, 1:]`` as booleans, after the checks that keep an empty answer from passing as 0."""
    check_same_shape(tokens=tokens, mask=mask)
    counts = mask[:, 1:] != 0
    empty = ~counts.any(-1)
    if bool(empty.any()):
        raise ValueError(
            f"row {int(empty.nonzero()[0])} of mask counts no token after the first: "
            "an empty answer has no log-probability"
        )
    return counts


def answer_log_probs(model, tokens, attention_mask, mask, hidden=None, logits_chunk=None):
    """Token log-probabilities at the masked places only; the vocabulary is never scored elsewhere.

    Equal to ``token_log_probs`` of the full logits, with zeros where ``mask`` is 0, but the output
    layer (most of the memory when V is large) runs on answer positions alone.

    Args:
        model: a :class:`~rlhf_minimal.gpt.GPT` or a transformers causal language model.
        tokens, attention_mask, mask: each ``(B, T)``.
        hidden: the model's :func:`hidden_states`, where they have been computed already.
        logits_chunk: tokens whose logits are in memory at once, on the way back too, where they are
            computed again; ``None``: all. At 32,000 words 128 tokens' are 16 MB in float32.

    Returns:
        ``(B, T - 1)``, zeros where the mask is 0.
    """
    check_same_shape(tokens=tokens, attention_mask=attention_mask, mask=mask)
    counts = mask[:, 1:] != 0
    if hidden is None:
        hidden = hidden_states(model, tokens, attention_mask)
    places, targets = hidden[:, :-1][counts], tokens[:, 1:][counts]  # (n, D), (n,)
    output_layer = model.get_output_embeddings()
    if logits_chunk is None:
        values = _score(output_layer, places, targets)
    else:
        parts = zip(places.split(logits_chunk), targets.split(logits_chunk), strict=True)
        again = partial(checkpoint, _score, output_layer, use_reentrant=False)
        values = torch.cat([again(*part) for part in parts])
    result = torch.zeros(counts.shape, dtype=values.dtype, device=values.device)
    return result.masked_scatter(counts, values)


def _score(output_layer, places, targets):
    """Log-probability of each target, ``(n,)``; the logits ``(n, V)`` are gone afterwards."""
    logits = _at_least_float32(output_layer(places))
    return logits.gather(-1, targets[:, None]).squeeze(-1) - logits.logsumexp(-1)


def hidden_states(model, tokens, attention_mask, **options):
    """Last hidden states ``(B, T, D)``, after the final norm and before the output layer.

    Args:
        options: ``position_ids``, where rows are no plain sequences.
    """
    if hasattr(model, "hidden_states"):
        return model.hidden_states(tokens, attention_mask, **options)
    return model.base_model(tokens, attention_mask=attention_mask, **options).last_hidden_state
