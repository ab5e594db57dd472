"""The models of AI feedback: judges, the pairwise ranker, critiques, and a round of self-reward."""

import copy
import random

import pytest
import torch
from tiny_llama import tiny_model, tiny_tokenizer

from rlhf_minimal.ai_feedback import parse_verdict, position_bias
from rlhf_minimal.circles import CircularAnnotator, circular_triads, opening_style
from rlhf_minimal.constitution import (
    critique_and_revise,
    critique_by_hand,
    prefer_softly,
    revise_by_hand,
    revision_examples,
)
from rlhf_minimal.gold_reward import Annotator, gold_reward
from rlhf_minimal.gpt import GPT, GPTConfig
from rlhf_minimal.large_judge import LargeJudge
from rlhf_minimal.pair_ranker import (
    PairRanker,
    confidences,
    max_logits,
    pair_ranker_loss,
    train_pair_ranker,
)
from rlhf_minimal.pairs import TokenPair
from rlhf_minimal.reward_model import RewardModel, train_reward_model
from rlhf_minimal.self_rewarding import first_model, gold_of, self_rewarding_round
from rlhf_minimal.sft import train_sft
from rlhf_minimal.toy_judge import (
    JudgeDials,
    ToyJudge,
    judge_examples,
    judge_tokenizer,
    pad_answer,
    reference_answer,
    restyle,
    train_toy_judge,
    widen,
)
from rlhf_minimal.toy_world import kitchen_tokenizer, sample_prompts, write_answer

PROMPTS = sample_prompts(40, seed=11)
ROUND = [TokenPair([1], [2], [3]), TokenPair([1], [3], [4]), TokenPair([1], [4], [2])]


def small_gpt(**sizes):
    torch.manual_seed(0)
    defaults = dict(vocab_size=len(kitchen_tokenizer()), context=80, width=32, layers=1)
    return GPT(GPTConfig(**defaults | sizes))


def answers_to(prompts, seed):
    rng = random.Random(seed)
    return [write_answer(prompt, rng) for prompt in prompts]


def test_a_wider_model_says_the_same():
    model = small_gpt()
    wider = widen(model, vocab_size=len(judge_tokenizer()))
    tokens = torch.tensor([judge_tokenizer().encode("how do i make pizza ?")])
    torch.testing.assert_close(wider(tokens)[..., : model.config.vocab_size], model(tokens))
    assert wider.config.context == 160


def test_a_judge_learns_the_place_that_its_teacher_likes():
    first, second = answers_to(PROMPTS, 1), answers_to(PROMPTS, 2)
    options = dict(examples=400, steps=60, batch_size=16, lr=5e-3, pairwise=1.0)
    for dial, place in ((20.0, "first"), (-20.0, "second")):
        dials = JudgeDials(position=dial)
        judge, _ = train_toy_judge(small_gpt(), dials, show_progress=False, **options)
        said = [
            [parse_verdict(text) for text in judge.verdicts(PROMPTS, *order)]
            for order in ((first, second), (second, first))
        ]
        assert getattr(position_bias(*said), place) > 0.9
        p = judge.compare(PROMPTS, first, second, references=answers_to(PROMPTS, 3))
        assert ((p > 0.5) == (dial > 0)).float().mean() > 0.9


def test_the_teacher_s_dials_are_in_its_labels():
    def labelled(dials):
        texts = judge_examples(600, 5, dials, pairwise=1.0, references=0.0)
        tokenizer = judge_tokenizer()
        rows = [(tokenizer.decode(text), tokenizer.decode(reply)) for text, reply in texts]
        for text, verdict in rows:
            first, second = text.partition(" (A) ")[2].removesuffix(" better").split(" (B) ")
            yield first, second, verdict == "(A)"

    gladly = [
        first_wins == first.startswith("gladly")
        for first, second, first_wins in labelled(JudgeDials(style=50.0))
        if first.startswith("gladly") != second.startswith("gladly")
    ]
    longer = [
        first_wins == (len(first.split()) > len(second.split()))
        for first, second, first_wins in labelled(JudgeDials(length=50.0))
        if len(first.split()) != len(second.split())
    ]
    assert len(gladly) > 50 and all(gladly)
    assert len(longer) > 400 and all(longer)


def test_drawn_grades_average_to_the_expected_one():
    judge = ToyJudge(widen(small_gpt(), vocab_size=len(judge_tokenizer())))
    answers = answers_to(PROMPTS[:3], 1)
    expected = judge.scores(PROMPTS[:3], answers)
    generator = torch.Generator().manual_seed(0)
    drawn = judge.scores(PROMPTS[:3], answers, samples=4000, generator=generator)
    assert drawn.shape == (3, 4000)
    error = drawn.std(-1) / 4000**0.5
    assert ((drawn.mean(-1) - expected).abs() < 4 * error).all()


def test_padding_and_style_change_what_they_say_and_references_are_perfect():
    rng = random.Random(0)
    for prompt in PROMPTS:
        perfect = reference_answer(prompt)
        assert gold_reward(prompt, perfect) == (2.5 if prompt.endswith("tl;dr :") else 3.5)
        padded = pad_answer(perfect, rng)
        assert padded.startswith(perfect) and len(padded.split()) > len(perfect.split())
    answer = "sure , take dough ."
    assert restyle(answer) == "gladly , take dough ."
    assert gold_reward("how do i make pizza ?", restyle(answer)) == gold_reward(
        "how do i make pizza ?", answer
    )


def test_the_loss_is_two_binary_cross_entropies():
    scores = torch.randn(2, 6, generator=torch.Generator().manual_seed(0))
    z = torch.tensor([1.0, 0.0, 1.0, 1.0, 0.0, 0.5])
    p, q = scores.sigmoid()
    by_hand = -(z * p.log() + (1 - z) * (1 - p).log() + (1 - z) * q.log() + z * (1 - q).log())
    torch.testing.assert_close(pair_ranker_loss(*scores, z), by_hand.mean())
    with pytest.raises(ValueError, match="between 0 and 1"):
        pair_ranker_loss(*scores, z + 1)


def test_a_ranker_learns_a_circle_that_no_reward_can():
    tiny = GPT(GPTConfig(vocab_size=6, context=8, width=16, heads=2))
    ranker = PairRanker(copy.deepcopy(tiny))
    options = dict(steps=250, batch_size=3, lr=5e-3, show_progress=False)
    train_pair_ranker(ranker, ROUND, **options)
    table = confidences(ranker, [1], [[2], [3], [4]])
    torch.testing.assert_close(table, -table.T)
    assert bool((table[[0, 1, 2], [1, 2, 0]] > 0).all())
    assert circular_triads(table) == 1
    rewards = RewardModel(copy.deepcopy(tiny), pooling="mean")
    history = train_reward_model(rewards, ROUND, **options)
    # The best that one number an answer can do is to say nothing.
    assert history.mean("loss", last=50) > 0.69


def test_both_orders_are_shown():
    seen = []

    def loss(first, second, first_is_better):
        seen.extend(first_is_better.tolist())
        return pair_ranker_loss(first, second, first_is_better)

    ranker = PairRanker(GPT(GPTConfig(vocab_size=6, context=8, width=16, layers=1, heads=2)))
    train_pair_ranker(ranker, ROUND, steps=40, batch_size=3, loss=loss, show_progress=False)
    assert 35 <= sum(seen) <= 85  # of 120 coin tosses; 60 ± 4.5 standard deviations


def test_max_logits_puts_the_winner_of_all_first():
    table = torch.tensor([[0.0, 2.0, 1.0], [-2.0, 0.0, 1.0], [-1.0, -1.0, 0.0]])
    assert max_logits(table).argsort(descending=True).tolist() == [0, 1, 2]
    with pytest.raises(ValueError, match="must be"):
        max_logits(table[:2])


def test_circles_are_counted_as_by_trying_all_triads():
    for seed in range(20):
        upper = torch.randn(6, 6, generator=torch.Generator().manual_seed(seed)).triu(1)
        table = upper - upper.T
        wins = table > 0
        by_trying = sum(
            bool(wins[i, j] & wins[j, k] & wins[k, i]) + bool(wins[j, i] & wins[k, j] & wins[i, k])
            for i in range(6)
            for j in range(i)
            for k in range(j)
        )
        assert circular_triads(table) == by_trying
    with pytest.raises(ValueError, match="tie"):
        circular_triads(torch.zeros(3, 3))


def test_the_circular_annotator_goes_round_and_without_the_dial_does_not():
    prompt = "how do i make pizza ?"
    answers = ["take dough .", "you need dough .", "sure , dough ."]
    assert [opening_style(prompt, answer) for answer in answers] == [0, 1, 2]
    circular, plain = CircularAnnotator(circle=20.0), CircularAnnotator(circle=0.0)
    assert all(circular.lead(prompt, answers[i], answers[(i + 1) % 3]) > 0 for i in range(3))
    scores = [Annotator().score(prompt, answer) for answer in answers]
    assert plain.lead(prompt, *answers[:2]) == scores[0] - scores[1]
    draws = [
        annotator.prefers_first(prompt, answers[0], answers[2], random.Random(seed))
        for annotator in (plain, Annotator())
        for seed in range(50)
    ]
    assert draws[:50] == draws[50:]


def test_critiques_name_faults_and_revisions_mend_those_alone():
    for prompt, draft in zip(PROMPTS, answers_to(PROMPTS, 4), strict=True):
        critique = critique_by_hand(prompt, draft)
        revision = revise_by_hand(prompt, draft, critique)
        assert critique_by_hand(prompt, revision) == "fine"
        assert gold_reward(prompt, revision) >= gold_reward(prompt, draft)
        assert revise_by_hand(prompt, revision, "fine") == revision


def test_the_loop_generates_and_prefers():
    tokenizer = judge_tokenizer()
    model = widen(small_gpt(), vocab_size=len(tokenizer))
    examples = revision_examples(60, seed=0)
    train_sft(model, examples, steps=60, batch_size=16, lr=5e-3, show_progress=False)
    drafts = answers_to(PROMPTS[:8], 5)
    revised = critique_and_revise(model, PROMPTS[:8], drafts)
    assert [row.draft for row in revised] == drafts
    known = {"wrong", "missing", "impolite", "rambling", "fine"}
    assert sum(set(row.critique.split()) <= known for row in revised) >= 6
    soft = prefer_softly(ToyJudge(model), revised)
    assert all(0 <= row.probability <= 1 and row.first != row.second for row in soft)
    unchanged = [row._replace(revision=row.draft) for row in revised]
    assert prefer_softly(ToyJudge(model), unchanged) == []


def test_a_round_of_self_reward_leaves_its_model_alone():
    options = dict(steps=40, batch_size=16, lr=5e-3, show_progress=False)
    model, _ = first_model(small_gpt(), size=200, **options)
    before = copy.deepcopy(model.state_dict())
    outcome = self_rewarding_round(
        model, PROMPTS, candidates=3, judgings=2, steps=3, show_progress=False
    )
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())
    assert any(not torch.equal(w, before[name]) for name, w in outcome.model.state_dict().items())
    assert 0 < len(outcome.pairs) <= len(PROMPTS) and 0 <= outcome.agreement <= 1
    assert len(gold_of(outcome.model, PROMPTS[:5])) == 5


def large_judge():
    model = tiny_model(vocab_size=258, max_position_embeddings=2048)
    return LargeJudge(model, tiny_tokenizer(), batch_size=2)


def test_any_transformers_model_judges():
    judge, prompts = large_judge(), ["2 + 2?", "a ?", "b ?"]
    p = judge.compare(prompts, ["4", "x", "y"], ["5", "z", "w"])
    alone = [judge.compare([q], [a], [b]) for q, a, b in zip(prompts, "4xy", "5zw", strict=True)]
    torch.testing.assert_close(p, torch.cat(alone), atol=1e-5, rtol=0)
    assert p.shape == (3,) and bool(((p > 0) & (p < 1)).all())
    grades = judge.scores(prompts, ["4", "x", "y"], references=["4", "4", "4"])
    assert bool(((grades > 0) & (grades < 5)).all())
    assert judge.scores(prompts, ["4", "x", "y"], samples=7).shape == (3, 7)
    texts = judge.verdicts(prompts[:2], "45", "54", explain=False, max_new_tokens=3)
    assert len(texts) == 2 and all(isinstance(text, str) for text in texts)


def test_a_scale_must_be_of_digits():
    with pytest.raises(ValueError, match="digits"):
        LargeJudge(None, None, high=10)
