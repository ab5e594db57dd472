"""Log-probabilities of many answers under a frozen model, computed once and kept.

Leaves out: training, and keeping the numbers on disk, which a run's checkpoint does.
"""

import torch

from rlhf_minimal.engine import Engine
from rlhf_minimal.history import progress
from rlhf_minimal.pairs import collate_answers, number_answers

__all__ = ["reference_log_probs"]


@torch.no_grad()
def reference_log_probs(
    reference,
    pairs,
    pad_id: int,
    batch_size: int = 64,
    show_progress=False,
    share_prompts: bool = False,
    engine=None,
):
    """Both answers' summed log-probabilities under the frozen reference, ``(N, 2)``, computed once.

    The reference never changes, so a pair seen in ten epochs needs it once, and the model can leave
    memory before training starts. Answers of like length share a batch, which saves padding; one
    that stands in several pairs is computed once.

    Args:
        batch_size: answers that go through the model at once.
        engine: an :class:`~rlhf_minimal.engine.Engine` that scores for ``reference``; its processes
            then share the work, and its own ``share_prompts`` counts.
        share_prompts: compute a prompt once for its answers, which then share a batch.
    """
    engine = engine if engine is not None else Engine(reference, share_prompts=share_prompts)
    answers, numbers = number_answers(pairs)
    lengths = [len(prompt) + len(answer) for prompt, answer in answers]
    order = lengths
    if engine.share_prompts:
        longest: dict[tuple, int] = {}
        for (prompt, _), length in zip(answers, lengths, strict=True):
            longest[prompt] = max(length, longest.get(prompt, 0))
        order = [(longest[prompt], prompt) for prompt, _ in answers]
    by_length = sorted(range(len(answers)), key=order.__getitem__)
    device, result = next(reference.parameters()).device, torch.zeros(len(answers))
    batches = [by_length[i : i + batch_size] for i in range(0, len(answers), batch_size)]
    mine = engine.processes.shared_out(batches)
    for batch, counts in progress(mine, "reference", show_progress):
        prompts, texts = zip(*(answers[i] for i in batch), strict=True)
        sums = engine.score(*collate_answers(prompts, texts, pad_id, device)).sum(-1)
        if counts:
            result[batch] = sums.float().cpu()
    return engine.processes.sum(result)[numbers]
