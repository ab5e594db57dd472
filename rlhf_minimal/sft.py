"""Supervised fine-tuning: imitate the answers that people wrote, token by token.

Follows Ouyang et al. 2022, arXiv 2203.02155, section 3.5. The same loop trains the base model: a
document is an "answer" to its own first token.

Leaves out: packing several examples into a row.
"""

import torch

from rlhf_minimal.checks import check_positive
from rlhf_minimal.history import History, progress
from rlhf_minimal.log_probs import masked_mean, next_token_logits, token_log_probs
from rlhf_minimal.pairs import collate_answers
from rlhf_minimal.training import (
    adamw,
    learning_rate_factor,
    minibatches,
    optimizer_step,
    set_learning_rate,
)

__all__ = ["sft_loss", "train_sft"]


def sft_loss(logits, tokens, mask):
    """Mean −log π of the masked tokens: every answer token of the batch weighs the same.

    Args:
        logits: ``(B, T, V)``.
        tokens: ``(B, T)``.
        mask: 1 on answer tokens, the end token included, ``(B, T)``. Prompt tokens are 0: the
            prompt is given, so there is nothing to learn about how to write it.

    Returns:
        A scalar, in nats a token; its exponential is the perplexity.

    >>> tokens, mask = torch.tensor([[0, 1, 2]]), torch.tensor([[0, 1, 1]])
    >>> sft_loss(torch.zeros(1, 3, 4), tokens, mask)  # log 4
    tensor(1.3863)
    """
    return -masked_mean(token_log_probs(logits, tokens), mask[:, 1:])


def train_sft(
    model,
    examples,
    *,
    steps: int,
    batch_size: int = 64,
    lr: float = 3e-3,
    warmup: int = 20,
    schedule: str = "cosine",
    seed: int = 0,
    pad_id: int = 0,
    loss=sft_loss,
    history: History | None = None,
    show_progress: bool = True,
    label: str = "SFT",
) -> History:
    """Train ``model`` in place to write the given answers after their prompts.

    Args:
        model: a causal language model, the course's GPT or a transformers model.
        examples: ``N`` pairs of token-id lists, prompt and answer; answers end with the end token.
        loss: called as ``loss(logits, tokens, mask)``.

    Returns:
        The history: a row a step with the loss in nats a token.
    """
    check_positive(steps=steps, batch_size=batch_size, lr=lr)
    history = history if history is not None else History()
    optimizer = adamw(model, lr)
    device = next(model.parameters()).device
    lengths = [len(prompt) + len(answer) for prompt, answer in examples]
    generator = torch.Generator().manual_seed(seed)
    batches = minibatches(len(examples), batch_size, steps, generator, lengths)
    with history:
        for step in progress(steps, label, show_progress):
            prompts, answers = zip(*(examples[i] for i in next(batches).tolist()), strict=True)
            tokens, attention_mask, mask = collate_answers(prompts, answers, pad_id, device)
            set_learning_rate(optimizer, lr * learning_rate_factor(step, steps, warmup, schedule))
            value = loss(next_token_logits(model, tokens, attention_mask), tokens, mask)
            optimizer_step(optimizer, value)
            history.record(step=step, loss=value)
    return history
