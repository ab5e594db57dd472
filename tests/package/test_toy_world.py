"""What the kitchen, its gold reward, its annotator and the measurements in it promise."""

import math
import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_task import same_weights

from rlhf_minimal.gold_reward import Annotator, gold_parts, gold_reward
from rlhf_minimal.kitchen import (
    Kitchen,
    KitchenSizes,
    evaluate,
    interval,
    kl_from_sft,
    sample_answers,
)
from rlhf_minimal.log_probs import next_token_logits, pad_sequences
from rlhf_minimal.rollouts import best_of_n
from rlhf_minimal.toy_world import (
    DISHES,
    NAMES,
    OUTCOMES,
    base_corpus,
    demonstrations,
    is_summary,
    kitchen_tokenizer,
    question_prompts,
    sample_prompts,
)

PIZZA = "how do i make pizza ?"
POST = "it was a long day . mia made soup for dinner . the cat was asleep . it burned . tl;dr :"
SEEDS = range(3)


# --- the world ----------------------------------------------------------------------------------


def story(post):
    """Who made what and how it went, as a post tells it."""
    words = post.split()
    name = next(word for word in words if word in NAMES)
    dish = next(word for word in words if word in DISHES)
    return name, dish, next(outcome for outcome in OUTCOMES if outcome in post)


def combinations(prompts):
    """Questions as they stand, posts by what they tell."""
    return {story(prompt) if is_summary(prompt) else prompt for prompt in prompts}


@pytest.fixture(scope="module")
def held_out():
    return combinations(sample_prompts(3000, seed=0, held_out=True))


def test_the_questions_of_the_two_splits_are_disjoint_and_together_all():
    training, held_out = question_prompts(), question_prompts(held_out=True)
    assert set(training).isdisjoint(held_out)
    assert len({*training, *held_out}) == len(training) + len(held_out) == 6 * len(DISHES)


def test_no_held_out_combination_is_ever_a_training_prompt(held_out):
    assert len(held_out) > 60  # 15 questions and about 75 stories
    for seed in SEEDS:
        assert combinations(sample_prompts(2000, seed)).isdisjoint(held_out)


def test_no_held_out_combination_stands_in_a_demonstration(held_out):
    assert combinations(p for p, _ in demonstrations(4000, seed=0)).isdisjoint(held_out)


def test_no_held_out_combination_stands_in_the_base_corpus(held_out):
    questions = [each for each in held_out if isinstance(each, str)]
    for document in base_corpus(4000, seed=0):
        assert not any(question in document for question in questions)
        if "tl;dr :" in document:
            assert story(document.split("tl;dr :")[0]) not in held_out


def test_every_dish_stands_in_both_splits():
    for held_out in (False, True):
        dishes = {word for p in question_prompts(held_out) for word in p.split() if word in DISHES}
        assert dishes == set(DISHES)


def test_every_text_of_the_world_is_in_the_vocabulary_and_every_word_is_used():
    tokenizer = kitchen_tokenizer()
    texts = base_corpus(4000, seed=3) + sample_prompts(1000, seed=4, held_out=True)
    texts += [f"{prompt} {answer}" for prompt, answer in demonstrations(4000, seed=5)]
    seen = set()
    for text in texts:
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text
        seen.update(ids)
    assert seen == set(range(2, len(tokenizer)))  # all but padding and end


def test_prompts_and_answers_leave_room_in_the_context():
    tokenizer = kitchen_tokenizer()
    prompts = sample_prompts(3000, seed=0) + sample_prompts(3000, seed=0, held_out=True)
    assert max(len(tokenizer.encode(prompt)) for prompt in prompts) + 32 <= 80


@pytest.mark.parametrize("make", [sample_prompts, demonstrations, base_corpus])
def test_what_is_generated_repeats_with_its_seed(make):
    assert make(50, seed=1) == make(50, seed=1)
    assert make(50, seed=1) != make(50, seed=2)


def test_generating_leaves_the_global_randomness_alone():
    random.seed(0)
    expected = random.random()
    random.seed(0)
    base_corpus(20, seed=1)
    assert random.random() == expected


def test_the_share_of_summaries_is_the_one_asked_for():
    for share in (0.0, 0.4, 1.0):
        found = sum(map(is_summary, sample_prompts(4000, seed=0, summaries=share))) / 4000
        # Four standard errors of a share of 4000.
        assert abs(found - share) <= 4 * math.sqrt(share * (1 - share) / 4000)


@pytest.mark.parametrize("options", [{"size": -1}, {"summaries": 1.5}, {"summaries": math.nan}])
def test_prompts_that_cannot_be_sampled_are_refused(options):
    ((name, value),) = options.items()
    with pytest.raises(ValueError, match=f"{name} (is )?{value}"):
        sample_prompts(**({"size": 3, "seed": 0} | options))


# --- the gold reward ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prompt", "answer"),
    [
        (PIZZA, "sure , you need dough , tomato and cheese . bake it well ."),
        (PIZZA, "gladly , take cheese , dough and tomato . then bake it ."),
        ("what do i need for salad ?", "gladly , take oil , lettuce and cucumber . mix it well ."),
    ],
)
def test_a_perfect_recipe_is_worth_three_and_a_half(prompt, answer):
    assert gold_reward(prompt, answer) == 3.5


def test_a_perfect_summary_is_worth_two_and_a_half():
    assert gold_reward(POST, "mia made soup . it burned .") == 2.5


@pytest.mark.parametrize(
    ("prompt", "answer", "part", "value"),
    [
        (PIZZA, "you need dough and tomato .", "coverage", 1.0),
        (PIZZA, "bake it well .", "coverage", 0.5),
        (PIZZA, "you need rice .", "coverage", 0.0),
        (POST, "mia made soup .", "coverage", 4 / 3),
        (PIZZA, "you need dough , rice and cheese .", "invented", -0.5),
        (PIZZA, "you need dough and cheese . then boil it .", "invented", -0.5),
        (PIZZA, "you need dough , rice and onion . then boil it .", "invented", -1.5),
        (POST, "tom made soup . it burned .", "invented", -0.5),
        (POST, "mia made soup . it burned . the dog stole it .", "invented", -0.5),
        (POST, "tom made cake . it was too salty .", "invented", -1.5),
        (PIZZA, "of course , you need dough .", "politeness", 1.0),
        (PIZZA, "sure , you need dough . please enjoy !", "politeness", 1.0),
        (PIZZA, "you need dough .", "politeness", 0.0),
        (POST, "sure , mia made soup . it burned .", "politeness", 0.0),
        (PIZZA, "you need dough . it is really very good .", "rambling", 0.0),
        (POST, "mia made soup . it burned .", "rambling", 0.0),
        (PIZZA, "you need dough and dough .", "repetition", -0.25),
        (PIZZA, "you need dough , dough and dough .", "repetition", -0.5),
        (PIZZA, "take cheese and tomato . bake it .", "repetition", 0.0),
        (PIZZA, "you need dough . then dough .", "grammar", -0.25),
        (PIZZA, "dough need .", "grammar", -0.75),
        (PIZZA, "you need dough .", "grammar", 0.0),
        (PIZZA, "you need dough", "ending", -0.5),
        (PIZZA, "", "ending", -0.5),
        (PIZZA, "thanks for asking !", "ending", 0.5),
    ],
)
def test_each_part_of_the_gold_reward_by_hand(prompt, answer, part, value):
    assert gold_parts(prompt, answer)[part] == pytest.approx(value)


@pytest.mark.parametrize("prompt", [PIZZA, POST])
def test_once_an_answer_rambles_each_word_costs_a_tenth(prompt):
    short = "it is really very good ."
    long = " ".join([short] * 4)  # 24 words, more than any answer needs
    longer = long + " some people like it , some do not ."
    costs = [gold_parts(prompt, answer)["rambling"] for answer in (short, long, longer)]
    assert costs[0] == 0 and costs[1] < -0.5
    assert costs[2] == pytest.approx(costs[1] - 0.9)


def test_an_answer_that_was_cut_off_has_not_ended():
    cut_off = gold_parts(PIZZA, "you need dough .", ended=False)
    assert cut_off["ending"] == -0.5 and gold_parts(PIZZA, "you need dough .")["ending"] == 0.5


def test_the_gold_reward_is_the_sum_of_its_parts():
    for prompt, answer in demonstrations(300, seed=9):
        assert gold_reward(prompt, answer) == sum(gold_parts(prompt, answer).values())


def test_one_slip_alone_costs_what_its_part_says():
    perfect = "sure , you need dough , tomato and cheese . bake it well ."
    assert gold_reward(PIZZA, perfect.replace("cheese", "ham")) == 3.5 - 0.5 - 0.5
    assert gold_reward(PIZZA, perfect.removesuffix(" .")) == 2.5
    assert gold_reward(PIZZA, perfect.removeprefix("sure , ")) == 2.5


def test_what_people_wrote_has_no_grammar_penalty():
    for seed in (101, 102):
        for prompt, answer in demonstrations(3000, seed):
            assert gold_parts(prompt, answer)["grammar"] == 0, answer


def test_people_s_answers_leave_room_to_improve():
    golds = [gold_reward(*pair) for pair in demonstrations(2000, seed=103)]
    # The best answers come near the 3.5 of a perfect one; the usual answer is far from it.
    assert 0.5 < sum(golds) / 2000 < 2.2 and 2.5 < max(golds) <= 3.5


@pytest.mark.parametrize("prompt", ["how do i make tea ?", "a sunny day . tl;dr :"])
def test_a_prompt_without_anything_to_answer_is_refused(prompt):
    with pytest.raises(ValueError, match="the prompt"):
        gold_reward(prompt, "take dough .")


# --- the annotator ------------------------------------------------------------------------------

GOOD, POOR = "you need dough and cheese .", "you need dough and rice ."  # 1.5 and 0.5 in gold


def preferred(annotator, first=GOOD, second=POOR, draws=4000, seed=0):
    """How often the annotator prefers the first answer."""
    rng = random.Random(seed)
    return sum(annotator.prefers_first(PIZZA, first, second, rng) for _ in range(draws)) / draws


def close(share, expected, draws=4000):
    """Within four standard errors: one right share in 16,000 would fail."""
    return abs(share - expected) <= 4 * math.sqrt(expected * (1 - expected) / draws)


@pytest.mark.parametrize("temperature", [0.3, 0.7, 2.0])
def test_preferences_follow_bradley_terry(temperature):
    assert gold_reward(PIZZA, GOOD) - gold_reward(PIZZA, POOR) == 1.0
    expected = 1 / (1 + math.exp(-1 / temperature))
    assert close(preferred(Annotator(temperature)), expected)
    assert close(preferred(Annotator(temperature), POOR, GOOD), 1 - expected)


def test_noise_turns_that_share_of_labels_round():
    clean = 1 / (1 + math.exp(-1 / 0.7))
    expected = 0.8 * clean + 0.2 * (1 - clean)
    assert not close(clean, expected)
    assert close(preferred(Annotator(0.7, noise=0.2)), expected)


def test_with_noise_of_a_half_a_label_is_a_coin_s_toss():
    assert close(preferred(Annotator(temperature=0.01, noise=0.5)), 0.5)


def test_equal_answers_are_preferred_equally():
    assert close(preferred(Annotator(), GOOD, GOOD), 0.5)


def test_a_taste_for_length_or_politeness_turns_preferences():
    # POOR with 8 words more; two wrong ingredients behind a polite word, for which the gold reward
    # pays 1 and the taste 2 (in gold: 0.5, against GOOD's 1.5).
    long = POOR + " i could talk about food all day ."
    polite = "sure , you need rice and ham ."
    sharp = dict(temperature=0.05)
    assert preferred(Annotator(**sharp), GOOD, long, 50) == 1.0
    assert preferred(Annotator(**sharp, length_taste=0.5), GOOD, long, 50) == 0.0
    assert preferred(Annotator(**sharp), GOOD, polite, 50) == 1.0
    assert preferred(Annotator(**sharp, politeness_taste=2.0), GOOD, polite, 50) == 0.0


def test_scores_of_tastes_by_hand():
    annotator = Annotator(length_taste=0.1, politeness_taste=0.3)
    answer = "sure , you need dough . please enjoy !"  # 9 words, 3 of them polite
    assert annotator.score(PIZZA, answer) == pytest.approx(gold_reward(PIZZA, answer) + 0.9 + 0.9)


@pytest.mark.parametrize("temperature", [1e-300, 1e-9, 1e9])
def test_an_extreme_temperature_does_not_overflow(temperature):
    expected = 1.0 if temperature < 1 else 0.5
    assert close(preferred(Annotator(temperature), draws=1000), expected, 1000)


def test_an_annotator_repeats_with_its_seed():
    annotator = Annotator()

    def labels(seed):
        rng = random.Random(seed)
        return [annotator.prefers_first(PIZZA, GOOD, POOR, rng) for _ in range(100)]

    assert labels(1) == labels(1) != labels(2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": 0.0}, "temperature is 0.0"),
        ({"temperature": -1.0}, "temperature is -1.0"),
        ({"temperature": math.nan}, "temperature is nan"),
        ({"noise": 0.6}, "noise is 0.6"),
        ({"noise": -0.1}, "noise is -0.1"),
        ({"noise": math.nan}, "noise is nan"),
    ],
)
def test_an_annotator_that_cannot_be_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Annotator(**options)


# --- measurements -------------------------------------------------------------------------------


def test_the_interval_of_known_numbers():
    # Mean 2.5, sample deviation √(5/3), standard error √(5/12) = 0.6454972
    found = interval([1.0, 2.0, 3.0, 4.0])
    assert found["mean"] == 2.5 and found["se"] == pytest.approx(0.6454972, abs=1e-7)
    assert found["low"] == pytest.approx(2.5 - 1.96 * 0.6454972, abs=1e-6)
    assert found["high"] == pytest.approx(2.5 + 1.96 * 0.6454972, abs=1e-6)


@given(st.lists(st.floats(-100, 100), min_size=2, max_size=20))
@settings(deadline=None, derandomize=True, max_examples=40)
def test_the_interval_holds_the_mean_and_shrinks_with_repetition(values):
    once, often = interval(values), interval(values * 4)
    assert once["low"] <= once["mean"] <= once["high"]
    # Four times the numbers: half the error, but for the n − 1.
    n = len(values)
    factor = math.sqrt((n - 1) / (4 * n - 1))
    assert often["se"] == pytest.approx(factor * once["se"], rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("values", [[], [1.0], [[1.0, 2.0]]])
def test_an_interval_of_too_few_numbers_is_refused(values):
    with pytest.raises(ValueError, match="needs two or more"):
        interval(values)


TINY = KitchenSizes(
    documents=300,
    base_steps=30,
    demonstrations=300,
    sft_steps=60,
    comparison_prompts=20,
    reward_steps=5,
    training_prompts=20,
    evaluation_prompts=24,
)


def tiny_kitchen(seed):
    """All stages on a few steps, and what each of them said."""
    kitchen, quiet = Kitchen(seed, TINY), dict(show_progress=False)
    said = [kitchen.train_base(**quiet).rows, kitchen.train_sft(**quiet).rows]
    said += [kitchen.collect_preferences(), kitchen.train_reward_model(**quiet).rows]
    return kitchen, said


@pytest.fixture(scope="module")
def stages():
    return tiny_kitchen(0)


@pytest.fixture(scope="module")
def kitchen(stages):
    return stages[0]


def test_every_stage_leaves_its_model_and_data(stages):
    kitchen, (base, sft, agreement, reward) = stages
    assert (len(base), len(sft), len(reward)) == (30, 60, 5)
    assert base[-1]["loss"] < base[0]["loss"] and sft[-1]["loss"] < sft[0]["loss"]
    assert 0.5 < agreement <= 1.0 and 60 < len(kitchen.pairs) <= 20 * 6
    assert len(kitchen.prompts) == 20
    assert not same_weights(kitchen.base, kitchen.sft)
    assert not same_weights(kitchen.sft, kitchen.reward_model.trunk)


def test_the_reward_model_s_zero_is_the_mean_of_its_comparisons(kitchen):
    sequences = [pair.prompt + a for pair in kitchen.pairs for a in (pair.chosen, pair.rejected)]
    with torch.no_grad():
        rewards = kitchen.reward_model(*pad_sequences(sequences, kitchen.tokenizer.pad_id))
    # A hundred numbers of size 1 at most, each good to a few float32 ulps.
    assert rewards.std() > 1e-3 and abs(rewards.mean()) < 1e-5


def test_the_whole_pipeline_repeats_with_its_seed_and_another_differs(stages):
    kitchen, said = stages
    again, same = tiny_kitchen(0)
    assert said == same and kitchen.pairs == again.pairs
    assert same_weights(kitchen.reward_model, again.reward_model)
    assert evaluate(kitchen, kitchen.base) == evaluate(again, again.base)
    assert not same_weights(kitchen.base, Kitchen(1, TINY).base)


def test_an_evaluation_holds_what_it_promises(kitchen):
    found = evaluate(kitchen, kitchen.base)
    assert set(found) == {"gold", "win_rate", "proxy", "kl", "length"}
    assert set(found["gold"]) == {"mean", "se", "low", "high"}
    assert 0 <= found["win_rate"]["mean"] <= 1 and 1 <= found["length"] <= 32
    assert found["kl"] > 0.5 and math.isfinite(found["proxy"])


def test_the_sft_model_is_no_distance_from_itself_and_wins_about_half(kitchen):
    found = evaluate(kitchen, kitchen.sft)
    assert found["kl"] == 0.0
    win_rate = found["win_rate"]
    assert abs(win_rate["mean"] - 0.5) < 4 * win_rate["se"]


def test_a_tie_counts_as_half_a_win(kitchen, monkeypatch):
    monkeypatch.setattr(kitchen, "gold", lambda prompt, answer: 1.0)
    monkeypatch.setattr(kitchen, "_opponents", {})  # else remembered from an evaluation before
    found = evaluate(kitchen, kitchen.base)["win_rate"]
    assert found["mean"] == 0.5 and found["se"] == 0.0


def test_held_out_prompts_are_others(kitchen):
    assert evaluate(kitchen, kitchen.base, held_out=True) != evaluate(kitchen, kitchen.base)


def test_a_chooser_s_rollouts_are_measured_in_place_of_samples(kitchen):
    def choose(prompts):
        generator = torch.Generator().manual_seed(0)
        options = dict(n=8, generator=generator, **kitchen.sampling())
        return best_of_n(kitchen.sft, kitchen.score, prompts, **options)

    found = evaluate(kitchen, kitchen.sft, choose=choose)
    assert found["kl"] is None
    assert found["proxy"] > evaluate(kitchen, kitchen.sft)["proxy"]


def test_the_kl_from_sft_is_a_sum_over_answer_tokens(kitchen):
    rollouts = kitchen.rollouts(kitchen.base, sample_prompts(5, seed=0), seed=0)
    with torch.no_grad():
        p, q = (
            torch.distributions.Categorical(logits=next_token_logits(model, *rollouts[:2]))
            for model in (kitchen.base, kitchen.sft)
        )
    per_token = torch.distributions.kl_divergence(p, q)[:, :-1]
    expected = (per_token * rollouts.mask[:, 1:]).sum() / 5
    # Sums of some 30 float32 numbers.
    assert kl_from_sft(kitchen, kitchen.base, rollouts) == pytest.approx(expected.item(), rel=1e-4)


def test_gold_counts_whether_the_answer_ended(kitchen):
    ids = kitchen.tokenizer.encode("you need dough .")
    assert kitchen.gold(PIZZA, [*ids, kitchen.tokenizer.end_id]) - kitchen.gold(PIZZA, ids) == 1.0


def test_watching_gold_gives_the_mean_over_the_rollouts(kitchen):
    texts = sample_prompts(12, seed=3)
    rollouts = kitchen.rollouts(kitchen.sft, texts, seed=0)
    golds = [kitchen.gold(*pair) for pair in zip(texts, rollouts.answers(), strict=True)]
    assert kitchen.watch_gold(rollouts) == {"gold": pytest.approx(sum(golds) / 12)}


def test_an_answer_that_was_cut_off_is_shown_so(kitchen):
    shown = sample_answers(kitchen, kitchen.sft)
    assert len(shown) == 3
    rollouts = kitchen.rollouts(kitchen.sft, (PIZZA, "what do i need for curry ?", POST), seed=8)
    for text, answer in zip(shown, rollouts.answers(), strict=True):
        assert text.endswith(" …") == (answer[-1] != kitchen.tokenizer.end_id)


def test_a_stage_before_its_time_says_which_one_is_missing():
    fresh = Kitchen()
    with pytest.raises(ValueError, match=r"no sft yet; train_sft\(\) makes it"):
        fresh.collect_preferences()
    fresh.sft = fresh.base
    with pytest.raises(ValueError, match=r"no pairs yet; collect_preferences\(\)"):
        fresh.train_reward_model()
