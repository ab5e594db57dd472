"""Answers to one prompt side by side in one row, so that the prompt is computed once.

A pair with a prompt of 24 tokens and answers of 24 is 96 tokens in two rows and 72 in one:
``[prompt | chosen | rejected]``. Each answer sees the prompt and itself, and its positions go on
from the prompt's last; so every hidden state is what it would be in a row of its own, and so is
every gradient. Wang and Hegde 2024, arXiv 2410.20305, do this for DPO. What it costs is a mask
written out, ``(R, 1, W, W)``, where plain causal rows need none: short prompts gain little.

Leaves out: prompts that share only their beginning, and masks that skip blocks nobody looks at.
"""

from collections import defaultdict
from typing import NamedTuple

import torch

from rlhf_minimal.checks import check_positive, check_same_shape
from rlhf_minimal.log_probs import hidden_states, pad_sequences

__all__ = ["PackedAnswers", "pack_answers", "shared_hidden_states"]


class PackedAnswers(NamedTuple):
    """``R`` rows of a prompt and its answers, and where each token of ``N`` plain rows went.

    ``tokens`` and ``positions`` are ``(R, W)``; ``visible`` is ``(R, 1, W, W)``, whom each token
    looks at; ``places`` is ``(N, T)``, indices into the ``R·W`` packed tokens (0 for padding).
    """

    tokens: torch.Tensor
    positions: torch.Tensor
    visible: torch.Tensor
    places: torch.Tensor


def pack_answers(tokens, attention_mask, mask, answers_a_row: int = 4) -> PackedAnswers:
    """Put answers to the same prompt behind one copy of it.

    Args:
        tokens, attention_mask, mask: prompts with answers, padded on the right, and the answers'
            mask, as :func:`~rlhf_minimal.pairs.collate_answers` makes them; each ``(N, T)``.
        answers_a_row: more answers than these start a new row: attention costs the row's square.

    Raises:
        ValueError: the padding is on the left, or a mask is not the end of its row.

    >>> rows = torch.tensor([[5, 6, 7], [5, 6, 8]])
    >>> packed = pack_answers(rows, torch.ones_like(rows), torch.tensor([[0, 0, 1]] * 2))
    >>> packed.tokens.tolist(), packed.positions.tolist(), packed.places.tolist()
    ([[5, 6, 7, 8]], [[0, 1, 2, 2]], [[0, 1, 2], [0, 1, 3]])
    """
    check_positive(answers_a_row=answers_a_row)
    prompt_lengths = _prompt_lengths(tokens, attention_mask, mask)
    sequences, ends = tokens.tolist(), attention_mask.sum(-1).tolist()
    groups, sizes = defaultdict(list), defaultdict(int)
    for row, length in enumerate(prompt_lengths):
        prompt = tuple(sequences[row][:length])
        groups[prompt, sizes[prompt] // answers_a_row].append(row)
        sizes[prompt] += 1
    lines, owners, positions = [], [], []  # tokens, whose they are (1: the prompt's, 0: padding), …
    columns, line_of_row = [[]] * len(sequences), [[0]] * len(sequences)
    for (prompt, _), members in groups.items():
        start = len(prompt)
        line, owner, position = [*prompt], [1] * start, [*range(start)]
        for number, row in enumerate(members, start=2):
            answer = sequences[row][start : ends[row]]
            columns[row] = [*range(start), *range(len(line), len(line) + len(answer))]
            line_of_row[row] = [len(lines)]
            line += answer
            owner += [number] * len(answer)
            position += range(start, ends[row])
        lines.append(line)
        owners.append(owner)
        positions.append(position)
    packed, owner, position, column = (
        pad_sequences(x, pad_id=0)[0] for x in (lines, owners, positions, columns)
    )
    places = torch.tensor(line_of_row) * packed.shape[1] + column
    places = torch.nn.functional.pad(places, (0, tokens.shape[1] - places.shape[1]))
    places = places.masked_fill(attention_mask.cpu() == 0, 0)
    result = (packed, position, _visible(owner), places)
    return PackedAnswers(*(tensor.to(tokens.device) for tensor in result))


def _visible(owner):
    """Each token looks back at its prompt and its own answer; padding (owner 0) at padding."""
    mine, theirs = owner[:, :, None], owner[:, None, :]
    together = (mine == theirs) | ((theirs == 1) & (mine > 1))
    return together.tril()[:, None]


def _prompt_lengths(tokens, attention_mask, mask) -> list[int]:
    check_same_shape(tokens=tokens, attention_mask=attention_mask, mask=mask)
    lengths = (attention_mask.sum(-1) - (mask != 0).sum(-1))[:, None]
    positions = torch.arange(tokens.shape[1], device=tokens.device)
    expected = (positions >= lengths) & (positions < attention_mask.sum(-1)[:, None])
    if not torch.equal(expected, mask != 0):
        raise ValueError("a mask is not the end of its row; pad on the right, behind the answer")
    return lengths.flatten().tolist()


def shared_hidden_states(model, tokens, attention_mask, mask, answers_a_row: int = 4):
    """:func:`~rlhf_minimal.log_probs.hidden_states` of such rows, each prompt computed once.

    Args:
        model: a :class:`~rlhf_minimal.gpt.GPT`, or a transformers model that takes
            ``position_ids`` and a mask of four dimensions ("sdpa" and "eager" attention do).
        tokens, attention_mask, mask, answers_a_row: as for :func:`pack_answers`.

    Returns:
        ``(N, T, D)``; what stands at padding has no meaning.

    Raises:
        ValueError: the model's attention takes no such mask; errors of :func:`pack_answers`.
    """
    attention = getattr(getattr(model, "config", None), "_attn_implementation", "sdpa")
    if attention not in ("sdpa", "eager"):
        raise ValueError(
            f"the model's attention is {attention!r}, which takes no mask of its own for each row; "
            'load it with attn_implementation="sdpa", or do not share prompts'
        )
    packed = pack_answers(tokens, attention_mask, mask, answers_a_row)
    dtype = model.get_output_embeddings().weight.dtype
    added = torch.zeros(packed.visible.shape, dtype=dtype, device=tokens.device)
    added.masked_fill_(~packed.visible, float("-inf"))
    hidden = hidden_states(model, packed.tokens, added, position_ids=packed.positions)
    return hidden.flatten(0, 1)[packed.places]
