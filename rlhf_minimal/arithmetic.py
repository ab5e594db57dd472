"""Sums with their working: a toy task whose answers can be checked, for rewards without a person.

A prompt is ``3 7 + 4 8 =``; a good answer works from the right, carries, and puts its result in
square brackets: ``7 + 8 = 1 5 , 3 + 4 + 1 = 8 , [ 8 5 ]``. The demonstrators are people: some
forget the brackets, some put a first attempt into brackets and correct themselves.

Leaves out: other operations. Two digits are enough to see what a verifier does to a model.
"""

import random

import torch

from rlhf_minimal.tokenizer import WordTokenizer
from rlhf_minimal.verifiable import verify_answer

__all__ = [
    "all_questions",
    "arithmetic_tokenizer",
    "carries",
    "demonstration",
    "demonstrations",
    "prompt_of",
    "scorer",
    "working",
]

DIGITS = "0123456789"


def arithmetic_tokenizer() -> WordTokenizer:
    """Ten digits, ``+ = ,`` and the brackets: 15 words, and the two special tokens."""
    return WordTokenizer([*DIGITS, "+", "=", ",", "[", "]"])


def all_questions(seed: int = 0) -> list[tuple[int, int]]:
    """The 8,100 sums of two two-digit numbers, in an order that ``seed`` decides."""
    questions = [(a, b) for a in range(10, 100) for b in range(10, 100)]
    random.Random(seed).shuffle(questions)
    return questions


def carries(a: int, b: int) -> int:
    """How often one has to carry: the difficulty of a sum, 0 to 2.

    >>> carries(12, 34), carries(37, 48), carries(67, 48)
    (0, 1, 2)
    """
    units = a % 10 + b % 10 >= 10
    return int(units) + int(a // 10 + b // 10 + units >= 10)


def spelled(number: int) -> str:
    """
    >>> spelled(115)
    '1 1 5'
    """
    return " ".join(str(number))


def prompt_of(a: int, b: int) -> str:
    """
    >>> prompt_of(37, 48)
    '3 7 + 4 8 ='
    """
    return f"{spelled(a)} + {spelled(b)} ="


def working(a: int, b: int) -> str:
    """The steps on paper, units first, without the result.

    >>> working(37, 48)
    '7 + 8 = 1 5 , 3 + 4 + 1 = 8 ,'
    """
    units = a % 10 + b % 10
    carry = " + 1" if units >= 10 else ""
    tens = a // 10 + b // 10 + (units >= 10)
    steps = f"{a % 10} + {b % 10} = {spelled(units)} , "
    return steps + f"{a // 10} + {b // 10}{carry} = {spelled(tens)} ,"


def demonstration(a: int, b: int, rng, *, no_brackets: float = 0.0, twice: float = 0.0) -> str:
    """What a person wrote: right, but with probability ``no_brackets`` without brackets.

    With probability ``twice`` a wrong first attempt stands in brackets before the right one.

    >>> demonstration(37, 48, random.Random(0))
    '7 + 8 = 1 5 , 3 + 4 + 1 = 8 , [ 8 5 ]'
    >>> demonstration(37, 48, random.Random(0), twice=1.0)
    '7 + 8 = 1 5 , 3 + 4 + 1 = 8 , [ 9 5 ] [ 8 5 ]'
    """
    style, slip = rng.random(), rng.choice([-10, -1, 1, 10])
    result = f"[ {spelled(a + b)} ]"
    if style < no_brackets:
        result = spelled(a + b)
    elif style < no_brackets + twice:
        result = f"[ {spelled(a + b + slip)} ] {result}"
    return f"{working(a, b)} {result}"


def demonstrations(questions, tokenizer, seed: int = 0, **habits) -> list[tuple[list, list]]:
    """Token ids of prompts and answers, for :func:`rlhf_minimal.sft.train_sft`."""
    rng = random.Random(seed)
    return [
        (
            tokenizer.encode(prompt_of(a, b)),
            tokenizer.encode(demonstration(a, b, rng, **habits), end=True),
        )
        for a, b in questions
    ]


def scorer(tokenizer: WordTokenizer, reward=verify_answer):
    """A ``score(rollouts) -> (B,)`` that gives ``reward(text, solution)`` to each answer.

    The solution is worked out from the prompt. An answer that was cut off before its end token gets
    what its text deserves.
    """

    def score(rollouts):
        rewards = []
        texts = zip(rollouts.tokens.tolist(), rollouts.answers(), strict=True)
        for tokens, answer in texts:
            prompt, _, _ = tokenizer.decode(tokens).partition("=")
            a, b = (int(number.replace(" ", "")) for number in prompt.split("+"))
            rewards.append(float(reward(tokenizer.decode(answer), a + b)))
        return torch.tensor(rewards)

    return score
