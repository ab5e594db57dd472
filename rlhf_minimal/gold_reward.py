"""What an answer in the kitchen is really worth, and an annotator who sees it through noise.

The gold reward stands for what people want, which no one can write down for real language. Here it
can be written down, so that over-optimisation, length bias and noisy labels are experiments and not
anecdotes. The learners never see it; they see the annotator's comparisons.

Leaves out: learning from the gold reward. It is for looking, and for the annotator.
"""

import itertools
import math
import random
from dataclasses import dataclass
from functools import lru_cache

from rlhf_minimal.checks import check_positive
from rlhf_minimal.toy_world import (
    DISHES,
    INGREDIENTS,
    METHODS,
    NAMES,
    OUTCOMES,
    POLITE_WORDS,
    base_corpus,
    demonstrations,
    is_summary,
)

__all__ = ["Annotator", "gold_parts", "gold_reward"]

MAY_REPEAT = frozenset((",", ".", "!", "and", "it", "is", "was", "you", "the", "a", "for", "some"))

FACTS = frozenset((*NAMES, *DISHES, *INGREDIENTS, *METHODS))


def gold_parts(prompt: str, answer: str, ended: bool = True) -> dict[str, float]:
    """The gold reward in parts that can be checked by eye.

    - ``coverage``, up to 2: a question's three ingredients and its method, ½ each; a post's who,
      what and how it went, ⅔ each;
    - ``invented``: −½ for each ingredient, method, dish, name or outcome that does not belong;
    - ``politeness``: 1 for an answer with a polite word (a summary needs none);
    - ``rambling``: −0.1 for each word past 14 (past 9 in a summary);
    - ``repetition``: −¼ each time a word of content comes again;
    - ``grammar``: −¼ for each two neighbours that stand side by side in no text of this world;
    - ``ending``: ½ for an answer that ends, and with a full stop or "!"; −½ for one that does not.

    Args:
        ended: whether the model itself ended the answer, rather than being cut off.

    >>> gold_parts("how do i make pizza ?", "sure , take dough and tomato . bake it well .")
    {'coverage': 1.5, 'invented': 0.0, 'politeness': 1.0, 'rambling': 0.0,
     'repetition': 0.0, 'grammar': 0.0, 'ending': 0.5}
    """
    words = answer.split()
    facts = _summary_facts if is_summary(prompt) else _recipe_facts
    wanted, wrong = facts(prompt, answer)
    content = [word for word in words if word not in MAY_REPEAT]
    polite = not is_summary(prompt) and any(word in POLITE_WORDS for word in words)
    strangers = [pair for pair in _neighbours(answer) if pair not in _known_neighbours()]
    proper_end = ended and bool(words) and words[-1] in (".", "!")
    return {
        "coverage": 2.0 * sum(wanted) / len(wanted),
        "invented": 0.0 - 0.5 * wrong,
        "politeness": 1.0 * polite,
        "rambling": 0.0 - 0.1 * max(0, len(words) - (9 if is_summary(prompt) else 14)),
        "repetition": 0.0 - 0.25 * (len(content) - len(set(content))),
        "grammar": 0.0 - 0.25 * len(strangers),
        "ending": 0.5 if proper_end else -0.5,
    }


def gold_reward(prompt: str, answer: str, ended: bool = True) -> float:
    """Sum of :func:`gold_parts`; 3.5 for a perfect polite recipe, 2.5 for a perfect summary.

    >>> gold_reward("how do i make pizza ?", "take dough .")
    1.0
    """
    return sum(gold_parts(prompt, answer, ended).values())


def _recipe_facts(prompt, answer):
    """Which of the four wanted words are there, and how many that do not belong."""
    dish = next((word for word in prompt.split() if word in DISHES), None)
    if dish is None:
        raise ValueError(f"no dish in the prompt {prompt!r}; it must name one of {list(DISHES)}")
    words, wanted = set(answer.split()), DISHES[dish]
    return [word in words for word in wanted], len((words & FACTS).difference(wanted, [dish]))


def _summary_facts(prompt, answer):
    """Which of who, what and outcome are there, and how many others that are not the post's."""
    in_prompt, in_answer = (
        FACTS.intersection(text.split()) | {outcome for outcome in OUTCOMES if outcome in text}
        for text in (prompt, answer)
    )
    if not in_prompt:
        raise ValueError(f"nothing in the prompt {prompt!r} could be summed up: no name, no dish")
    return [fact in in_answer for fact in in_prompt], len(in_answer - in_prompt)


def _neighbours(text: str):
    """Words side by side; the start of the text and of each sentence look alike."""
    words = [".", *("." if word == "!" else word for word in text.split())]
    return list(itertools.pairwise(words))


@lru_cache(maxsize=1)
def _known_neighbours() -> frozenset:
    """All neighbours in a large sample of the world's text (every template many times over)."""
    texts = [answer for _, answer in demonstrations(6000, seed=0)] + base_corpus(3000, seed=0)
    return frozenset(pair for text in texts for pair in _neighbours(text))


@dataclass(frozen=True)
class Annotator:
    """A simulated person who compares two answers, by Bradley–Terry on what they like.

    P(first is preferred) = σ((s₁ − s₂)/temperature), s = gold reward + tastes; then the label is
    turned round with probability ``noise``.

    Args:
        temperature: how hard small differences are to see, in gold-reward units.
        noise: share of labels flipped whatever the answers, in [0, 0.5].
        length_taste: reward a word, for annotators who take long answers for good ones.
        politeness_taste: reward a polite word, beyond what the gold reward gives.
    """

    temperature: float = 0.8
    noise: float = 0.0
    length_taste: float = 0.0
    politeness_taste: float = 0.0

    def __post_init__(self):
        check_positive(temperature=self.temperature)
        if not 0 <= self.noise <= 0.5:
            raise ValueError(f"noise is {self.noise}; it must be in [0, 0.5]: 0.5 is a coin's toss")

    def score(self, prompt: str, answer: str, ended: bool = True) -> float:
        """What this annotator likes an answer for: the gold reward and their own tastes."""
        words = answer.split()
        polite = sum(word in POLITE_WORDS for word in words)
        own = self.length_taste * len(words) + self.politeness_taste * polite
        return gold_reward(prompt, answer, ended) + own

    def prefers_first(self, prompt: str, first: str, second: str, rng: random.Random) -> bool:
        """One comparison of two texts, drawn with ``rng``; they are taken to have ended."""
        difference = self.score(prompt, first) - self.score(prompt, second)
        probability = 0.5 + 0.5 * math.tanh(difference / (2 * self.temperature))  # σ, no overflow
        probability = probability * (1 - self.noise) + (1 - probability) * self.noise
        return rng.random() < probability
