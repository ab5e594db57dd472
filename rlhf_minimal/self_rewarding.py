"""Self-rewarding: a model grades its own answers and learns from its own verdicts.

Follows Yuan et al. 2024, arXiv 2401.10020: M1 is taught to answer and to grade; it answers each
prompt N times, grades all with several drawn grades an answer, and the best and worst make a pair;
DPO on these, from M1, gives M2, and the same from M2 gives M3. Nobody is asked again.

Departure: prompts come from the toy world, not from the model.

Leaves out: choosing which checkpoint judges. The model of a round judges its own round.
"""

import copy
from typing import NamedTuple

import torch

from rlhf_minimal.ai_feedback import self_rewarding_pairs
from rlhf_minimal.dpo import train_dpo
from rlhf_minimal.gold_reward import gold_reward
from rlhf_minimal.gpt import GPT
from rlhf_minimal.rollouts import sample_rollouts
from rlhf_minimal.sft import train_sft
from rlhf_minimal.toy_judge import ToyJudge, judge_examples, judge_tokenizer, widen
from rlhf_minimal.toy_world import demonstrations

__all__ = ["Round", "first_model", "gold_of", "self_rewarding_round"]


class Round(NamedTuple):
    """One round: the model that came out, its pairs, and what its grades were worth."""

    model: GPT
    pairs: list
    agreement: float  # share of the pairs whose chosen answer has the higher gold reward; ½ a tie


def first_model(sft: GPT, *, size: int = 4000, steps: int = 500, seed: int = 0, **options):
    """M1: a copy of the SFT model that answers and grades, taught by both kinds of example.

    Returns:
        The model (with the vocabulary of :func:`~rlhf_minimal.toy_judge.judge_tokenizer`) and the
        history of its training.
    """
    model, tokenizer = widen(sft, len(judge_tokenizer()), seed=seed), judge_tokenizer()
    answers = [
        (tokenizer.encode(prompt), tokenizer.encode(answer, end=True))
        for prompt, answer in demonstrations(size, seed)
    ]
    grades = judge_examples(size, seed, pairwise=0.0, references=0.0)
    options = dict(batch_size=32, lr=2e-3, seed=seed, label="M1") | options
    return model, train_sft(model, answers + grades, steps=steps, **options)


def _answers(model, prompts, repeat: int, generator, **sampling):
    """``repeat`` answers to each prompt (texts), as token ids; a list of lists."""
    tokenizer = judge_tokenizer()
    rows = [tokenizer.encode(prompt) for prompt in prompts for _ in range(repeat)]
    ends = dict(max_new_tokens=32, end_id=tokenizer.end_id, pad_id=tokenizer.pad_id)
    answers = sample_rollouts(model, rows, generator=generator, **ends, **sampling).answers()
    return [answers[start : start + repeat] for start in range(0, len(answers), repeat)]


def _gold(prompt: str, answer: list[int]) -> float:
    tokenizer = judge_tokenizer()
    return gold_reward(prompt, tokenizer.decode(answer), answer[-1] == tokenizer.end_id)


def gold_of(model, prompts, seed: int = 0) -> list[float]:
    """The gold reward of one sampled answer to each prompt: seen, never used."""
    answers = _answers(model, prompts, 1, torch.Generator().manual_seed(seed))
    return [_gold(prompt, answer) for prompt, (answer,) in zip(prompts, answers, strict=True)]


def self_rewarding_round(
    model: GPT,
    prompts,
    *,
    candidates: int = 4,
    judgings: int = 5,
    make_pairs=self_rewarding_pairs,
    seed: int = 0,
    steps: int = 40,
    **options,
) -> Round:
    """The next model: DPO on pairs that ``model`` made of its own answers by its own grades.

    Args:
        prompts: texts.
        candidates: N, answers a prompt (sampled at temperature 1).
        judgings: grades drawn an answer, which are averaged.
        make_pairs: called as ``make_pairs(prompts, candidates, scores)``.
        options: those of ``train_dpo``; beta is 0.3 and the learning rate 5e-4 unless given:
            100 steps at 1e-3 and beta 0.1 make the next model worse than this one.
    """
    generator, tokenizer = torch.Generator().manual_seed(seed), judge_tokenizer()
    answers = _answers(model, prompts, candidates, generator)
    texts = [tokenizer.decode(answer) for row in answers for answer in row]
    asked = [prompt for prompt in prompts for _ in range(candidates)]
    scores = ToyJudge(model).scores(asked, texts, samples=judgings, generator=generator)
    rows = [tokenizer.encode(prompt) for prompt in prompts]
    pairs = make_pairs(rows, answers, scores.view(len(prompts), candidates, judgings))
    gains = [
        _gold(tokenizer.decode(prompt), chosen) - _gold(tokenizer.decode(prompt), rejected)
        for prompt, chosen, rejected in pairs
    ]
    agreement = sum((gain > 0) + 0.5 * (gain == 0) for gain in gains) / max(len(gains), 1)
    policy = copy.deepcopy(model)
    options = (
        dict(beta=0.3, batch_size=32, lr=5e-4, warmup=5, schedule="cosine", seed=seed) | options
    )
    train_dpo(policy, model, pairs, steps=steps, pad_id=tokenizer.pad_id, **options)
    return Round(policy, pairs, agreement)
