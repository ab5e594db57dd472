"""A language of six tokens and a reward that can be counted: say token 3 as often as you can."""

import torch

from rlhf_minimal.gpt import GPT, GPTConfig
from rlhf_minimal.kl import sequence_kl
from rlhf_minimal.rollouts import sample_rollouts

PAD, END, GOOD = 0, 1, 3
PROMPTS = [[2], [4, 5], [5, 2, 4]]
SAMPLING = dict(max_new_tokens=5, end_id=END, pad_id=PAD)


def tiny_policy(seed: int = 0) -> GPT:
    """One layer; untrained, so nearly every answer is as likely as the next."""
    torch.manual_seed(seed)
    policy = GPT(GPTConfig(vocab_size=6, context=8, width=16, layers=1, heads=2))
    with torch.no_grad():
        policy.norm.weight *= 0.3  # smaller logits, so that no token is rare
    return policy


def count_good(rollouts):
    """How often an answer says token 3, ``(B,)``: between 0 and 5."""
    return ((rollouts.tokens == GOOD) & (rollouts.mask != 0)).float().sum(-1)


@torch.no_grad()
def true_reward_and_kl(policy, reference, size: int = 600):
    """Means over fresh samples: the reward, and the KL divergence in nats an answer."""
    generator = torch.Generator().manual_seed(123)
    rollouts = sample_rollouts(policy, PROMPTS * (size // 3), generator=generator, **SAMPLING)
    logits = [model(*rollouts[:2])[:, :-1] for model in (policy, reference)]
    kl = sequence_kl(*logits, rollouts.mask[:, 1:]).mean()
    return count_good(rollouts).mean().item(), kl.item()


def same_weights(one, other) -> bool:
    """Bit for bit."""
    return all(map(torch.equal, one.parameters(), other.parameters()))
