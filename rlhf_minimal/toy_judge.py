"""The kitchen's judge: the toy model, taught to compare two answers and to grade one.

It reads ``PROMPT (A) ANSWER (B) ANSWER better`` and writes ``(A)`` or ``(B)``, or reads ``PROMPT
(A) ANSWER score`` and writes ``0`` to ``5``; ``PROMPT reference ANSWER`` in front makes it
reference-guided. What it learns from is a teacher who sees the gold reward through the dials of
:class:`JudgeDials`: so its biases are real, learnt from labels, and known.

Follows the settings of Zheng et al. 2023, arXiv 2306.05685.

Leaves out: saying why. The verdict is the first word that this judge writes.
"""

import random
from dataclasses import dataclass

import torch

from rlhf_minimal.ai_feedback import soft_preference
from rlhf_minimal.gold_reward import gold_reward
from rlhf_minimal.gpt import GPT, GPTConfig
from rlhf_minimal.log_probs import next_token_logits, pad_sequences
from rlhf_minimal.sft import train_sft
from rlhf_minimal.tokenizer import WordTokenizer
from rlhf_minimal.toy_world import (
    DISHES,
    NAMES,
    OPENINGS,
    OUTCOMES,
    RAMBLINGS,
    is_summary,
    kitchen_tokenizer,
    sample_prompts,
    write_answer,
)

__all__ = [
    "JudgeDials",
    "ToyJudge",
    "judge_examples",
    "judge_tokenizer",
    "pad_answer",
    "reference_answer",
    "restyle",
    "train_toy_judge",
    "widen",
]

GRADES = tuple("012345")
JUDGE_WORDS = ("(A)", "(B)", "better", "score", "reference", *GRADES)
REVISION_WORDS = ("critique", "revision", "impolite", "rambling", "wrong", "missing", "fine")
CONTEXT = 160  # a post, a reference and two answers


@dataclass(frozen=True)
class JudgeDials:
    """What the judge's teacher likes beyond the gold reward, in its units; all 0 is a fair teacher.

    Args:
        position: for standing at (A); below 0 for standing at (B).
        length: a word.
        style: for an answer that opens with "gladly", as this judge's own answers do.
    """

    position: float = 0.0
    length: float = 0.0
    style: float = 0.0

    def taste(self, answer: str) -> float:
        """What the teacher adds to the gold reward of one answer, wherever it stands."""
        words = answer.split()
        return self.length * len(words) + self.style * (words[:1] == ["gladly"])


def judge_tokenizer() -> WordTokenizer:
    """The kitchen's words under their old numbers, and behind them those of judging and revising.

    >>> judge_tokenizer().decode(judge_tokenizer().encode("take dough . score 3"))
    'take dough . score 3'
    """
    return WordTokenizer([*kitchen_tokenizer().words[2:], *JUDGE_WORDS, *REVISION_WORDS])


def widen(model: GPT, vocab_size: int | None = None, context: int = CONTEXT, seed: int = 0) -> GPT:
    """A copy with room for more words and longer sequences; what is new starts at random."""
    old = model.config
    torch.manual_seed(seed)
    sizes = (vocab_size or old.vocab_size, context, old.width, old.layers, old.heads)
    wider = GPT(GPTConfig(*sizes))
    weights = wider.state_dict()
    for name, weight in model.state_dict().items():
        weights[name][tuple(slice(0, size) for size in weight.shape)] = weight
    wider.load_state_dict(weights)
    return wider


def pad_answer(answer: str, rng: random.Random, sentences: int = 1) -> str:
    """The same answer, longer by sentences that say nothing: what verbosity bias falls for."""
    return " ".join([answer, *rng.sample(RAMBLINGS, sentences)])


def restyle(answer: str, opening: str = "gladly , ") -> str:
    """The same answer behind another opening; worth as much as behind any other polite one."""
    for old in OPENINGS:
        answer = answer.removeprefix(old)
    return opening + answer


def reference_answer(prompt: str) -> str:
    """A perfect answer, for reference-guided judging."""
    words = prompt.split()
    dish = next(word for word in words if word in DISHES)
    if is_summary(prompt):
        name = next(word for word in words if word in NAMES)
        return f"{name} made {dish} . {next(o for o in OUTCOMES if o in prompt)} ."
    one, two, three, method = DISHES[dish]
    return f"sure , you need {one} , {two} and {three} . {method} it well ."


def _pairwise_text(prompt: str, first: str, second: str, reference: str | None = None) -> str:
    beside = f" reference {reference}" if reference else ""
    return f"{prompt}{beside} (A) {first} (B) {second} better"


def _single_text(prompt: str, answer: str, reference: str | None = None) -> str:
    beside = f" reference {reference}" if reference else ""
    return f"{prompt}{beside} (A) {answer} score"


def _grade(value: float) -> str:
    """A gold reward between −0.5 and 3.5 as a grade from 0 to 5."""
    return GRADES[max(0, min(5, round((value + 0.5) * 5 / 4)))]


def _two_answers(prompt: str, rng: random.Random):
    """Mostly two people's answers; also one padded, or in two styles: what the dials are about."""
    kind, first = rng.random(), write_answer(prompt, rng)
    if kind < 0.15:
        second = pad_answer(first, rng)
    elif kind < 0.3 and not is_summary(prompt):
        first, second = (restyle(first, opening) for opening in rng.sample(OPENINGS, 2))
    else:  # a difference that can be seen: what hardly differs teaches a small model nothing
        second = write_answer(prompt, rng)
        while abs(gold_reward(prompt, first) - gold_reward(prompt, second)) < 0.5:
            first, second = write_answer(prompt, rng), write_answer(prompt, rng)
    return (first, second) if rng.random() < 0.5 else (second, first)


def judge_examples(
    size: int,
    seed: int,
    dials: JudgeDials | None = None,
    pairwise: float = 0.7,
    references: float = 0.2,
):
    """Texts to judge and the teacher's verdicts, for supervised fine-tuning.

    Args:
        pairwise: share of comparisons; the others are single grades.
        references: share of both that has a reference answer in front.

    Returns:
        ``size`` pairs of token-id lists, a text to judge and a verdict with its end token.
    """
    dials, rng, tokenizer = dials or JudgeDials(), random.Random(f"judge {seed}"), judge_tokenizer()
    examples = []
    for prompt in sample_prompts(size, seed + 2_000_003):
        first, second = _two_answers(prompt, rng)
        reference = reference_answer(prompt) if rng.random() < references else None
        values = [gold_reward(prompt, text) + dials.taste(text) for text in (first, second)]
        if rng.random() < pairwise:
            lead = values[0] - values[1] + dials.position
            first_wins = lead > 0 or (lead == 0 and rng.random() < 0.5)
            text = _pairwise_text(prompt, first, second, reference)
            verdict = "(A)" if first_wins else "(B)"
        else:
            text, verdict = _single_text(prompt, first, reference), _grade(values[0])
        examples.append((tokenizer.encode(text), tokenizer.encode(verdict, end=True)))
    return examples


def train_toy_judge(
    model: GPT,
    dials: JudgeDials | None = None,
    *,
    examples: int = 8_000,
    steps: int = 500,
    seed: int = 0,
    pairwise: float = 0.7,
    references: float = 0.2,
    **options,
):
    """A judge from a copy of ``model`` (the SFT model, or an untrained one).

    Returns:
        The :class:`ToyJudge` and the history of its training.
    """
    wider = widen(model, len(judge_tokenizer()), seed=seed)
    data = judge_examples(examples, seed, dials, pairwise, references)
    options = dict(batch_size=32, lr=2e-3, seed=seed, label="judge") | options
    history = train_sft(wider, data, steps=steps, **options)
    return ToyJudge(wider), history


class ToyJudge:
    """A model that judges by the format above; ``reference`` arguments are lists or ``None``."""

    def __init__(self, model: GPT):
        self.model, self.tokenizer = model, judge_tokenizer()

    @torch.no_grad()
    def _next_logits(self, texts, batch_size: int = 256):
        """Logits ``(N, V)`` of the word behind each text."""
        rows = [self.tokenizer.encode(text) for text in texts]
        found = []
        for start in range(0, len(rows), batch_size):
            tokens, mask = pad_sequences(rows[start : start + batch_size], self.tokenizer.pad_id)
            last = mask.sum(-1) - 1
            logits = next_token_logits(self.model, tokens, mask)
            found.append(logits[torch.arange(len(last)), last])
        return torch.cat(found)

    def compare(self, prompts, firsts, seconds, references=None):
        """P(first is better) from the probabilities of "(A)" and "(B)", ``(N,)``."""
        rows = zip(prompts, firsts, seconds, references or [None] * len(prompts), strict=True)
        logits = self._next_logits([_pairwise_text(*row) for row in rows])
        return soft_preference(*(logits[:, self.tokenizer.ids[mark]] for mark in ("(A)", "(B)")))

    def verdicts(self, prompts, firsts, seconds, references=None) -> list[str]:
        """The likeliest next words, as texts for :func:`parse_verdict`; ``N`` of them."""
        rows = zip(prompts, firsts, seconds, references or [None] * len(prompts), strict=True)
        logits = self._next_logits([_pairwise_text(*row) for row in rows])
        return [self.tokenizer.words[token] for token in logits.argmax(-1).tolist()]

    def scores(self, prompts, answers, references=None, samples: int = 0, generator=None):
        """Grades from 0 to 5: the expected one ``(N,)``, or ``samples`` drawn ones ``(N, S)``."""
        rows = zip(prompts, answers, references or [None] * len(prompts), strict=True)
        ids = [self.tokenizer.ids[grade] for grade in GRADES]
        probabilities = self._next_logits([_single_text(*row) for row in rows])[:, ids].softmax(-1)
        if samples:
            return probabilities.multinomial(samples, replacement=True, generator=generator).float()
        return probabilities @ torch.arange(6.0)
