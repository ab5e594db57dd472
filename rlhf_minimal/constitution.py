"""Constitutional AI in miniature: critique a draft by principles, revise it, prefer by a judge.

Follows Bai et al. 2022, arXiv 2212.08073: a model criticises its own answer in the light of written
principles and revises it; the judge's probabilities of "(A)" and "(B)" are then soft labels. Theirs
draws one principle at a time and repeats; the kitchen's critique names all that is wrong.

The toy model is taught both formats by supervised fine-tuning, on drafts as people write them:
``PROMPT (A) DRAFT critique`` → faults, ``PROMPT (A) DRAFT critique FAULTS revision`` → an answer
without them. After that every step is a generation of its own. A model this small learns "revision"
as "now write the flawless answer", whatever the critique says: lesson 09 measures it.

Leaves out: harmful prompts, which are what the paper is about.
"""

import random
from typing import NamedTuple

from rlhf_minimal.ai_feedback import swap_average
from rlhf_minimal.gold_reward import gold_parts
from rlhf_minimal.log_probs import pad_sequences
from rlhf_minimal.sampling import generate
from rlhf_minimal.toy_judge import judge_tokenizer, reference_answer
from rlhf_minimal.toy_world import (
    OPENINGS,
    POLITE_WORDS,
    RAMBLINGS,
    is_summary,
    sample_prompts,
    write_answer,
)

__all__ = [
    "PRINCIPLES",
    "Revised",
    "SoftPreference",
    "critique_and_revise",
    "critique_by_hand",
    "prefer_softly",
    "revise_by_hand",
    "revision_examples",
]

# A fault's word, the part of the gold reward that it costs, and the principle that it breaks.
PRINCIPLES = {
    "wrong": ("invented", "Name nothing that does not belong to the dish or the post."),
    "missing": ("coverage", "Name all that the asker needs."),
    "impolite": ("politeness", "Answer a question politely."),
    "rambling": ("rambling", "Say nothing that does not help."),
}
FINE = "fine"


class Revised(NamedTuple):
    """One way through the loop; all four are texts."""

    prompt: str
    draft: str
    critique: str
    revision: str


class SoftPreference(NamedTuple):
    """Two answers, and how likely a judge finds the first one the better."""

    prompt: str
    first: str
    second: str
    probability: float


def critique_by_hand(prompt: str, draft: str) -> str:
    """The faults of a draft, in the order of :data:`PRINCIPLES`; "fine" if it has none.

    >>> critique_by_hand("how do i make pizza ?", "take dough and egg . bake it well .")
    'wrong missing impolite'
    """
    parts = gold_parts(prompt, draft)
    broken = {
        "wrong": parts["invented"] < 0,
        "missing": parts["coverage"] < 2 - 1e-9,
        "impolite": not is_summary(prompt) and parts["politeness"] == 0,
        "rambling": any(sentence in draft for sentence in RAMBLINGS),
    }
    return " ".join(fault for fault in PRINCIPLES if broken[fault]) or FINE


def revise_by_hand(prompt: str, draft: str, critique: str) -> str:
    """The draft without the faults that the critique names; what it does not name stays.

    >>> revise_by_hand("how do i make pizza ?", "take dough .", "missing impolite")
    'sure , you need dough , tomato and cheese . bake it well .'
    """
    faults = set(critique.split())
    rambled = [sentence for sentence in RAMBLINGS if sentence in draft]
    for sentence in rambled:
        draft = draft.replace(sentence, "").replace("  ", " ").strip()
    if faults & {"wrong", "missing"}:
        polite = any(word in POLITE_WORDS for word in draft.split())
        draft = reference_answer(prompt)
        if not polite and "impolite" not in faults:
            draft = draft.removeprefix(OPENINGS[0])
    elif "impolite" in faults:
        draft = OPENINGS[0] + draft
    return draft if "rambling" in faults else " ".join([draft, *rambled])


def revision_examples(size: int, seed: int):
    """Critiques and revisions of people's drafts, for supervised fine-tuning.

    Returns:
        ``2·size`` pairs of token-id lists: a text up to "critique" or "revision", what follows.
    """
    rng, tokenizer = random.Random(f"revisions {seed}"), judge_tokenizer()
    examples = []
    for prompt in sample_prompts(size, seed + 3_000_003):
        draft = write_answer(prompt, rng)
        critique = critique_by_hand(prompt, draft)
        revision = revise_by_hand(prompt, draft, critique)
        for text, reply in (
            (f"{prompt} (A) {draft} critique", critique),
            (f"{prompt} (A) {draft} critique {critique} revision", revision),
        ):
            examples.append((tokenizer.encode(text), tokenizer.encode(reply, end=True)))
    return examples


def critique_and_revise(model, prompts, drafts, generator=None, temperature: float = 0.0):
    """Let the model criticise each draft and then revise it by its own critique.

    Args:
        model: taught by :func:`revision_examples`.
        prompts, drafts: texts, ``N`` each.
        temperature: of both generations; 0 takes the likeliest words.

    Returns:
        ``N`` :class:`Revised`.
    """
    options = dict(generator=generator, temperature=temperature)
    both = zip(prompts, drafts, strict=True)
    texts = [f"{prompt} (A) {draft} critique" for prompt, draft in both]
    critiques = _continue(model, texts, max_new_tokens=6, **options)
    texts = [f"{text} {said} revision" for text, said in zip(texts, critiques, strict=True)]
    revisions = _continue(model, texts, max_new_tokens=32, **options)
    return [Revised(*four) for four in zip(prompts, drafts, critiques, revisions, strict=True)]


def _continue(model, texts, max_new_tokens: int, **options) -> list[str]:
    tokenizer = judge_tokenizer()
    tokens, mask = pad_sequences([tokenizer.encode(text) for text in texts], 0, left=True)
    ends = dict(end_id=tokenizer.end_id, pad_id=tokenizer.pad_id, max_new_tokens=max_new_tokens)
    whole, _ = generate(model, tokens, mask, **ends, **options)
    return [tokenizer.decode(row) for row in whole[:, tokens.shape[1] :].tolist()]


def prefer_softly(judge, revised) -> list[SoftPreference]:
    """Soft labels for revision against draft, the place averaged out.

    Args:
        judge: a :class:`~rlhf_minimal.toy_judge.ToyJudge` or a ``LargeJudge``.
        revised: from :func:`critique_and_revise`; those whose revision is the draft, or empty, are
            left out.

    Returns:
        The revision stands first; 1 − probability is the draft's.
    """
    changed = [row for row in revised if row.revision.strip() and row.revision != row.draft]
    if not changed:
        return []
    prompts, drafts, _, revisions = (list(column) for column in zip(*changed, strict=True))
    probability = judge.compare(prompts, revisions, drafts)
    fair = swap_average(probability, judge.compare(prompts, drafts, revisions))
    rows = zip(prompts, revisions, drafts, fair.tolist(), strict=True)
    return [SoftPreference(*row) for row in rows]
