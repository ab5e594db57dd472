"""The kitchen's experiments, stage by stage: base → SFT → preferences → reward model → evaluation.

What the demo and the lessons share: one :class:`Kitchen` holds the models, prompts and comparisons
of a seed, and :func:`evaluate` measures any policy in it the same way.

Leaves out: the methods themselves; each has a file of its own.
"""

import copy
import itertools
import random
from dataclasses import dataclass

import torch

from rlhf_minimal.gold_reward import Annotator, gold_reward
from rlhf_minimal.gpt import GPT, GPTConfig
from rlhf_minimal.kl import sequence_kl
from rlhf_minimal.log_probs import next_token_logits
from rlhf_minimal.pairs import TokenPair, distinct_answers
from rlhf_minimal.reward_model import RewardModel, train_reward_model
from rlhf_minimal.rollouts import Rollouts, sample_rollouts
from rlhf_minimal.sft import train_sft
from rlhf_minimal.tokenizer import prettify
from rlhf_minimal.toy_world import (
    base_corpus,
    demonstrations,
    kitchen_tokenizer,
    sample_prompts,
)
from rlhf_minimal.win_rates import interval

__all__ = [
    "SHOWN_PROMPTS",
    "Kitchen",
    "KitchenSizes",
    "evaluate",
    "interval",
    "kl_from_sft",
    "sample_answers",
]

MAX_NEW_TOKENS = 32
MADE_BY = dict(sft="train_sft", pairs="collect_preferences", reward_model="train_reward_model")
SHOWN_PROMPTS = (
    "how do i make pizza ?",
    "what do i need for curry ?",
    "it was a long day . mia made soup for dinner . the cat was asleep . it burned . tl;dr :",
)


@dataclass(frozen=True)
class KitchenSizes:
    """How much of everything; the defaults are the demo's."""

    documents: int = 20_000
    base_steps: int = 1300
    demonstrations: int = 6_000
    sft_steps: int = 300
    comparison_prompts: int = 1_750
    reward_steps: int = 1000
    training_prompts: int = 1_000
    evaluation_prompts: int = 400


class Kitchen:
    """One seed's models and data, made stage by stage; each stage needs those before it.

    Args:
        seed: of everything: initial weights, corpora, samples, annotator.
        annotator: who compares the answers.
    """

    def __init__(self, seed: int = 0, sizes: KitchenSizes | None = None, annotator=None):
        self.seed = seed
        self.sizes = sizes = sizes or KitchenSizes()
        self.annotator = annotator or Annotator()
        self.tokenizer = kitchen_tokenizer()
        torch.manual_seed(seed)
        self.base = GPT(GPTConfig(vocab_size=len(self.tokenizer)))
        self.sft: GPT | None = None
        self.reward_model: RewardModel | None = None
        self.pairs: list[TokenPair] = []
        self._opponents: dict[bool, list[float]] = {}
        texts = sample_prompts(sizes.training_prompts, seed + 1)
        self.prompts = [self.tokenizer.encode(text) for text in texts]

    def train_base(self, **options):
        """Next-word prediction on documents: each is the "answer" to its own first word."""
        corpus = base_corpus(self.sizes.documents, self.seed)
        documents = [self.tokenizer.encode(text, end=True) for text in corpus]
        examples = [(document[:1], document[1:]) for document in documents]
        options = dict(steps=self.sizes.base_steps, seed=self.seed, label="base model") | options
        return train_sft(self.base, examples, batch_size=16, lr=5e-3, **options)

    def train_sft(self, **options):
        """Imitation of demonstrations, on a copy of the base model."""
        examples = [
            (self.tokenizer.encode(prompt), self.tokenizer.encode(answer, end=True))
            for prompt, answer in demonstrations(self.sizes.demonstrations, self.seed)
        ]
        self.sft, self._opponents = copy.deepcopy(self.base), {}
        options = dict(steps=self.sizes.sft_steps, seed=self.seed) | options
        return train_sft(self.sft, examples, batch_size=32, lr=5e-3, **options)

    def collect_preferences(self, answers_a_prompt: int = 4) -> float:
        """Several SFT answers a prompt, each two of them compared by the annotator.

        Four answers give six comparisons (Ouyang et al. 2022, section 3.4): the answers are what
        costs, and every further comparison averages out some of the annotator's noise.

        Returns:
            How often the annotator and the gold reward agree, where the latter tells a difference.
        """
        self._need("sft")
        texts = sample_prompts(self.sizes.comparison_prompts, self.seed + 2)
        repeated = [text for text in texts for _ in range(answers_a_prompt)]
        answers = iter(self.answers(self.sft, repeated, seed=self.seed + 3))
        rng = random.Random(self.seed)
        self.pairs, agreements = [], []
        for text in texts:
            prompt = self.tokenizer.encode(text)
            group = list(itertools.islice(answers, answers_a_prompt))
            for two in itertools.combinations(group, 2):
                if two[0] == two[1]:
                    continue
                words = [self.tokenizer.decode(answer) for answer in two]
                gold = [self.gold(text, answer) for answer in two]
                first_wins = self.annotator.prefers_first(text, *words, rng)
                if gold[0] != gold[1]:
                    agreements.append(first_wins == (gold[0] > gold[1]))
                self.pairs.append(TokenPair(prompt, *(two if first_wins else two[::-1])))
        return sum(agreements) / len(agreements)

    def train_reward_model(self, **options):
        """A reward model on the comparisons, its zero at the mean reward of SFT answers."""
        self._need("sft", "pairs")
        self.reward_model = RewardModel(copy.deepcopy(self.sft), pooling="mean")
        options = dict(steps=self.sizes.reward_steps, seed=self.seed) | options
        history = train_reward_model(
            self.reward_model, self.pairs, batch_size=24, lr=2e-3, **options
        )
        some = distinct_answers(self.pairs[:1000], self.tokenizer.pad_id)
        with torch.no_grad():
            self.reward_model.centre(self.reward_model(some.tokens, some.attention_mask))
        return history

    def score(self, rollouts: Rollouts):
        """The proxy: rewards that the learned model gives, ``(B,)``."""
        self._need("reward_model")
        return self.reward_model(rollouts.tokens, rollouts.attention_mask)

    def gold(self, prompt: str, answer: list[int]) -> float:
        """The gold reward of an answer in token ids, whether it ended included."""
        ended = answer[-1] == self.tokenizer.end_id
        return gold_reward(prompt, self.tokenizer.decode(answer), ended)

    def sampling(self) -> dict:
        """What every sampling function needs to know of this world."""
        ends = dict(end_id=self.tokenizer.end_id, pad_id=self.tokenizer.pad_id)
        return dict(max_new_tokens=MAX_NEW_TOKENS, **ends)

    def rollouts(self, policy, texts, seed: int, **options) -> Rollouts:
        """Sampled answers to prompts given as text."""
        prompts = [self.tokenizer.encode(text) for text in texts]
        generator = torch.Generator().manual_seed(seed)
        return sample_rollouts(policy, prompts, generator=generator, **self.sampling(), **options)

    def answers(self, policy, texts, seed: int, batch_size: int = 500) -> list[list[int]]:
        """Sampled answers as token ids, in batches that stay in the processor's cache."""
        starts = range(0, len(texts), batch_size)
        batches = (self.rollouts(policy, texts[i : i + batch_size], seed + i) for i in starts)
        return [answer for batch in batches for answer in batch.answers()]

    def opponents(self, texts, held_out: bool) -> list[float]:
        """Gold rewards of the SFT model's answers to the evaluation's prompts, made once."""
        self._need("sft")
        if held_out not in self._opponents:
            answers = self.rollouts(self.sft, texts, seed=self.seed + 7).answers()
            pairs = zip(texts, answers, strict=True)
            self._opponents[held_out] = [self.gold(*pair) for pair in pairs]
        return self._opponents[held_out]

    def _need(self, *stages: str) -> None:
        for stage in stages:
            if not getattr(self, stage):
                raise ValueError(f"this kitchen has no {stage} yet; {MADE_BY[stage]}() makes it")

    def watch_gold(self, rollouts: Rollouts) -> dict:
        """The mean gold reward of rollouts, for a training loop's ``watch``: seen, never used."""
        golds = [self.gold(*pair) for pair in self._pairs_of(rollouts)]
        return {"gold": sum(golds) / len(golds)}

    def _pairs_of(self, rollouts):
        """Prompts as text, and answers as token ids."""
        prompts = Rollouts(*rollouts[:2], rollouts.attention_mask - rollouts.mask).answers()
        return zip(map(self.tokenizer.decode, prompts), rollouts.answers(), strict=True)


@torch.no_grad()
def evaluate(kitchen: Kitchen, policy, held_out: bool = False, choose=None) -> dict:
    """Measure a policy on prompts of its own, against answers of the SFT model to the same prompts.

    Args:
        held_out: on prompts whose combinations no stage of training has seen.
        choose: ``choose(prompts) -> rollouts`` instead of sampling from ``policy`` (best-of-n).

    Returns:
        ``gold`` and ``win_rate`` (ties count one half) as :func:`interval`; ``proxy``; ``kl`` from
        the SFT model in nats an answer (None with ``choose``); ``length`` in tokens.
    """
    texts = sample_prompts(kitchen.sizes.evaluation_prompts, kitchen.seed + 5, held_out)
    if choose is None:
        rollouts = kitchen.rollouts(policy, texts, seed=kitchen.seed + 6)
    else:
        rollouts = choose([kitchen.tokenizer.encode(text) for text in texts])
    answers = rollouts.answers()
    gold = [kitchen.gold(*pair) for pair in zip(texts, answers, strict=True)]
    other = kitchen.opponents(texts, held_out)
    wins = [(a > b) + 0.5 * (a == b) for a, b in zip(gold, other, strict=True)]
    return dict(
        gold=interval(gold),
        win_rate=interval(wins),
        proxy=kitchen.score(rollouts).mean().item(),
        kl=None if choose else kl_from_sft(kitchen, policy, rollouts),
        length=sum(map(len, answers)) / len(answers),
    )


@torch.no_grad()
def kl_from_sft(kitchen: Kitchen, policy, rollouts: Rollouts) -> float:
    """KL(policy‖SFT) in nats an answer, exact over the vocabulary at each token of the rollouts."""
    logits = [
        next_token_logits(model, rollouts.tokens, rollouts.attention_mask)[:, :-1]
        for model in (policy, kitchen.sft)
    ]
    return sequence_kl(*logits, rollouts.mask[:, 1:]).mean().item()


def sample_answers(kitchen: Kitchen, policy, choose=None) -> list[str]:
    """One answer to each of three prompts, as a person would set it; "…" where it was cut off."""
    if choose is None:
        rollouts = kitchen.rollouts(policy, SHOWN_PROMPTS, seed=kitchen.seed + 8)
    else:
        rollouts = choose([kitchen.tokenizer.encode(text) for text in SHOWN_PROMPTS])
    return [
        prettify(kitchen.tokenizer.decode(answer))
        + ("" if answer[-1] == kitchen.tokenizer.end_id else " …")
        for answer in rollouts.answers()
    ]
