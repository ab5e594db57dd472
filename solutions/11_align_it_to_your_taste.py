# %% [markdown]
# # 11 · Capstone: align it to your taste
#
# *Why this matters: "better" is always better according to somebody. Here it is you. You
# say what you like, teach it with fifty clicks, measure what came of it, and sign a page
# that says what may be believed and what may not.*
#
# **You will be able to**
#
# - put a taste into words that a stranger could label by, and into fifty labels;
# - measure what those labels say *besides* your taste;
# - train by two methods on the same labels, and report reward, KL and win rate, each
#   with its interval and over several seeds;
# - hunt for the failure that good numbers hide, with probes of your own;
# - write down what you would not trust, and report a null result without shame.
#
# **It assumes** lesson 05 (reward models), 07 (DPO) and 09 (labelling); 06 or 10 if you
# choose PPO or GRPO; 03 for what a KL estimate is.
#
# | | |
# |---|---|
# | reading | 25 minutes |
# | labelling | 130 clicks, about 15 minutes: fifty before training, eighty after |
# | training, hunting, writing | 2 to 3 hours |
# | computing | about a minute and a half on one CPU core; the last cell says how much |
#
# There are no stubs here, and no `check`: no program marks this. Section 10 is the
# rubric, 20 points; **read it first.**

# %% [markdown] tags=["lesson"]
# **This is a template.** It runs from top to bottom as it stands, with a placeholder for
# a taste and a script that clicks. Places marked **✎** are yours:
#
# | | section |
# |---|---|
# | ✎ your taste, in words and (if you can) as a function | 2 |
# | ✎ your labels: `CLICK = True` | 3 and 7 |
# | ✎ your two methods | 5 |
# | ✎ your probe, and the failure you found | 8 |
# | ✎ your report: five texts | 9 |
#
# The rest is machinery. Read it, change it where you must, and say so in the report. The
# last cell of section 9 lists what is still as handed out. **Hand in** this notebook with
# its outputs, and the folder `my_labels`.

# %% [markdown] tags=["solution"]
# **This is a worked example**: one pass through the template. A script clicks, through
# the same widget as a person, so that everything repeats; and because a script does not
# tire, it labels three *different* draws of fifty pairs, where you will have one. The
# settings of both methods were chosen on other draws than those shown.

# %%
import os
import subprocess
import sys

# Where this course lives. In Colab, put the address of your copy here.
REPOSITORY = "https://github.com/rlhf-from-scratch/rlhf-from-scratch"

if "google.colab" in sys.modules:
    folder = "/content/rlhf-from-scratch"
    if not os.path.isdir(folder):
        subprocess.run(["git", "clone", "--depth", "1", REPOSITORY, folder], check=True)
    install = ["pip", "install", "--quiet", "--no-deps", "-e", folder]
    subprocess.run([sys.executable, "-m", *install], check=True)
    sys.path.insert(0, folder)
    os.chdir(f"{folder}/lessons")

# %%
import copy
import html
import math
import random
import tempfile
import time
import zlib
from collections import Counter
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from IPython.display import HTML, Markdown, display

from rlhf_minimal.dpo import ipo_loss, train_dpo, train_simpo
from rlhf_minimal.gold_reward import gold_reward
from rlhf_minimal.grpo import train_grpo
from rlhf_minimal.held_out import wilson_interval
from rlhf_minimal.kitchen import Kitchen, KitchenSizes
from rlhf_minimal.kl import sequence_kl
from rlhf_minimal.label_files import comparisons, labels_to_preferences, read_labels
from rlhf_minimal.labelling import LabellingWidget, click_through
from rlhf_minimal.log_probs import next_token_logits
from rlhf_minimal.pairs import TokenPair, collate_answers
from rlhf_minimal.plots import COLOURS
from rlhf_minimal.reward_model import RewardModel, train_reward_model
from rlhf_minimal.rlhf import train_rlhf
from rlhf_minimal.rollouts import best_of_n, best_of_n_kl
from rlhf_minimal.tokenizer import prettify
from rlhf_minimal.toy_world import (
    DISHES,
    METHODS,
    OUTCOMES,
    POLITE_WORDS,
    is_summary,
    sample_prompts,
)
from rlhf_minimal.win_rates import interval

plt.rcParams["figure.dpi"] = 84
torch.set_num_threads(1)  # a model this small only loses time to a second thread
GREY, ORANGE, SKY = "#666666", "#E69F00", "#56B4E9"


def share(wins):
    """A share of ones (a half is a tie) with Wilson's 95% interval, as text."""
    wins = [float(x) for x in wins]
    if not wins:
        return "none to count"
    low, high = wilson_interval(sum(wins), len(wins))
    return f"{np.mean(wins):.2f} [{low:.2f}, {high:.2f}]"


def mean(values):
    """A mean with its 95% interval, as text."""
    i = interval([float(x) for x in values])
    return f"{i['mean']:.2f} [{i['low']:.2f}, {i['high']:.2f}]"


# %% [markdown]
# ## 1 · The model
#
# The kitchen's SFT model of lesson 04. It answers two kinds of prompt: a question about a
# dish, and a short post to sum up.

# %%
kitchen = Kitchen(seed=0, sizes=KitchenSizes(10_000, base_steps=600, sft_steps=200))
kitchen.train_base(show_progress=False)
kitchen.train_sft(show_progress=False)
encode, decode = kitchen.tokenizer.encode, kitchen.tokenizer.decode


def texts_of(rollouts):
    """Sampled answers as text; one without a word is shown as three dots."""
    return [decode(answer).strip() or "..." for answer in rollouts.answers()]


def two_answers(size, seed, held_out=False):
    """(prompt, first, second): two different SFT answers to each of some prompts."""
    prompts = sample_prompts(size, seed, held_out)
    both = [texts_of(kitchen.rollouts(kitchen.sft, prompts, seed + i)) for i in (1, 2)]
    return [row for row in zip(prompts, *both, strict=True) if row[1] != row[2]]


for prompt, first, second in two_answers(8, seed=1)[:4]:
    print(f"{prettify(prompt)}\n    {prettify(first)}\n    {prettify(second)}")

# %% [markdown]
# ## 2 · ✎ Your taste
#
# Write down what makes one answer better than another *to you*, so that a stranger who
# reads only these words would label most pairs as you do. It need not be "correct". Good
# tastes to try: polite, but not to a post; every ingredient named, none twice; no
# chatter; sums up like a headline; warns when something burned. "Short" is lesson 09's,
# and taken.
#
# Then, **before** you label: what could go along with your taste in these answers without
# being it? Length? Politeness? One kind of prompt? Write that down, too. It is your
# prediction, and section 4 measures it.
#
# Can your taste be computed? Then write it as a function: a script can click for you
# while you try things out, and later it judges more answers than you would. If it cannot,
# put `my_taste = None`; your clicks are then the only judge.

# %% tags=["lesson"]
MY_TASTE = """✎ (one or two sentences: what makes one answer better than another?)"""
MY_PREDICTION = """✎ (what else will the answers I choose have in common?)"""


def placeholder_taste(prompt, answer):
    """The shorter the better: a number, larger for a better answer."""
    return -len(answer.split())


my_taste = placeholder_taste  # ✎ a function of your own, by its own name, or None


# %% tags=["solution"]
MY_TASTE = """The answer tells me **how**, and gets it right. A recipe says how the dish
is cooked (bake, boil, fry or mix, whichever it is for that dish); a summary says how it
went, as the post has it. Nothing else counts: neither ingredients nor length nor
manners. Where both answers do, or neither, it is a tie."""
MY_PREDICTION = """Saying how takes some words, so the answers I choose will be longer.
And most answers that say how say it rightly or nearly so: fifty labels may well teach
*that* something is said, and not *what*."""


def says_how(prompt, answer):
    """Whether a recipe names some way of cooking, or a summary some outcome."""
    if is_summary(prompt):
        return any(outcome in answer for outcome in OUTCOMES)
    return any(word in METHODS for word in answer.split())


def says_how_rightly(prompt, answer):
    """1 where the answer says how, and rightly; otherwise 0."""
    if is_summary(prompt):
        return float(any(o in answer and o in prompt for o in OUTCOMES))
    dish = next(word for word in prompt.split() if word in DISHES)
    return float(DISHES[dish][3] in answer.split())


my_taste = says_how_rightly


# %%
display(Markdown(f"**My taste.** {MY_TASTE}\n\n**My prediction.** {MY_PREDICTION}"))

# %% [markdown]
# ## 3 · ✎ Your fifty labels
#
# Two answers of the SFT model to one prompt. A click, or the arrow keys while the mouse
# is over the widget (← →; ↓ or `t`: a tie; `u` takes the last one back). Label by the
# words above, not by the mood of the moment; where they do not decide, it is a **tie**.
# Ties teach nothing and are left out: count how many labels remain.

# %% tags=["lesson"]
CLICK = False  # ✎ True: you click, here and in section 7. False: a script clicks.
SEEDS = (0, 1, 2)  # of the training
DRAWS = SEEDS[:1]  # of the fifty pairs: one, and all seeds learn from it
LABELS = 50

# %% tags=["solution"]
CLICK = False  # a script clicks
SEEDS = (0, 1, 2)  # of the training,
DRAWS = SEEDS  # and of the fifty pairs: each seed learns from other ones
LABELS = 50


# %%
placeholder = getattr(my_taste, "__name__", "") == "placeholder_taste"
taste = None if CLICK and placeholder else my_taste  # what judges beside your clicks
if not CLICK and taste is None:
    raise ValueError("my_taste is None, so no script can click: put CLICK = True")
labels_folder = Path("my_labels") if CLICK else Path(tempfile.mkdtemp())


def by_taste(prompt, left, right):
    """The script that clicks for you: it sees what stands on the screen."""
    ahead = taste(prompt, left) - taste(prompt, right)
    return "tie" if ahead == 0 else "left" if ahead > 0 else "right"


def labelling(name, triples):
    """A widget; what its file already holds is kept and is not asked again."""
    path = labels_folder / f"{name}.jsonl"
    asked = comparisons(triples)
    before = read_labels(path)[0] if path.exists() else []
    kept = {label.comparison.id: label.comparison for label in before}
    asked = [kept.get(question.id, question) for question in asked]
    return LabellingWidget(asked, path, "me", show_text=prettify)


def finish(widget):
    """A widget's labels; a script makes those that are missing, unless you click."""
    if not CLICK:
        click_through(widget, by_taste)
    missing = len(widget.asked) - len(widget.labels)
    if missing:
        print(f"✎ {missing} of {len(widget.asked)} are not labelled yet")
    if not widget.labels:
        raise ValueError(
            "there is no label yet: label in the widget above, then go on from here "
            "with 'Run Selected Cell and All Below'"
        )
    return widget.labels


# %% tags=["lesson"]
widget = labelling("fifty", two_answers(LABELS + 20, seed=11_000)[:LABELS])
widget.show()

# %% tags=["lesson"]
labels = dict.fromkeys(SEEDS, finish(widget))

# %% tags=["solution"]
labels = {}
for seed in SEEDS:
    pairs_to_label = two_answers(LABELS + 20, seed=11_000 + 10 * seed)[:LABELS]
    widget = labelling(f"fifty-{seed}", pairs_to_label)
    labels[seed] = finish(widget)
widget.show()

# %%
preferences = {seed: labels_to_preferences(labels[seed]) for seed in SEEDS}
for seed in DRAWS:
    choices = Counter(label.choice for label in labels[seed])
    print(f"draw {seed}: {len(labels[seed])} labels, {dict(choices)}: "
          f"{len(preferences[seed])} pairs to learn from")
    if not preferences[seed]:
        raise ValueError("all labels are ties: nothing to learn from; change the taste")
if CLICK and taste is not None:
    says = [by_taste(*x.comparison[1:]) for x in labels[SEEDS[0]]]
    side = dict(first="left", second="right", tie="tie")
    agree = [side[x.choice] == s for x, s in zip(labels[SEEDS[0]], says, strict=True)]
    print("my_taste, the function, says what you clicked on", share(agree))

# %% [markdown]
# **For whoever marks this.** Six of the pairs. Read the taste above, decide, then unfold.


# %%
def side_by_side(rows, heads):
    """Texts in a table that can be read."""
    cell = "<td style='text-align:left; vertical-align:top; width:{}%'>{}</td>"
    widths = [100 // len(heads)] * len(heads)
    texts = [[html.escape(prettify(text)) for text in row] for row in rows]
    body = "".join(
        "<tr>" + "".join(cell.format(w, f"<b>{t}</b>" if number == 0 else t)
                         for w, t in zip(widths, line, strict=True)) + "</tr>"
        for number, line in enumerate([heads, *texts]))
    return f"<table style='width:100%'>{body}</table>"


six = random.Random(6).sample(labels[SEEDS[0]], min(6, len(labels[SEEDS[0]])))
answers = ", ".join(f"{i}: {label.choice}" for i, label in enumerate(six, start=1))
display(HTML(
    side_by_side([(f"{i}. {x.comparison.prompt}", x.comparison.first,
                   x.comparison.second) for i, x in enumerate(six, start=1)],
                 ("prompt", "first", "second"))
    + f"<details><summary>What was clicked</summary>{answers}</details>"
))

# %% [markdown]
# ## 4 · What else do your labels say?
#
# A model sees pairs, not your reasons. Whatever *differs* between the chosen and the
# rejected answers explains your labels as well as your taste does. So count: among the
# pairs in which the two answers differ in some plain feature, how often did the chosen
# one have more of it? Add features of your own, above all the one you predicted.

# %%
CHATTER = ("grandmother", "really very", "depends on", "some people", "talk about food")
FEATURES = {
    "more words": lambda prompt, answer: len(answer.split()),
    "more chatter": lambda prompt, answer: sum(mark in answer for mark in CHATTER),
    "a polite word": lambda prompt, answer: any(w in answer for w in POLITE_WORDS),
    "says how (cooked, or went)": lambda prompt, answer: any(
        word in answer for word in (OUTCOMES if is_summary(prompt) else METHODS)),
    "ends in a full stop or '!'": lambda prompt, answer: answer[-1] in ".!",
}


def chosen_has_more(feature, pairs):
    """For each pair that differs in a feature: has the chosen answer more of it?"""
    both = [(feature(p.prompt, p.chosen), feature(p.prompt, p.rejected)) for p in pairs]
    return [chosen > rejected for chosen, rejected in both if chosen != rejected]


for seed in DRAWS:
    print(f"draw {seed}: {len(preferences[seed])} pairs")
    for name, feature in FEATURES.items():
        counted = chosen_has_more(feature, preferences[seed])
        print(f"    {name:28s} {share(counted):20s} of {len(counted)} that differ")

# %% [markdown]
# An interval that lies above ½ is a second teacher. One that straddles ½ on eight pairs
# is *not* an acquittal: it only says that eight pairs cannot tell.

# %% [markdown] tags=["solution"]
# Seven labels in ten were ties: the price of a taste that most pairs do not touch. Where
# the two answers differ in saying how at all, the one that says it was chosen without
# exception; only the few pairs in which both say it can teach *what* to say. Of length
# and chatter these labels say nothing that is sure. A reward model has to decide all the
# same, and each draw will decide for itself.

# %% [markdown]
# ## 5 · ✎ Your two methods
#
# Six are ready; each gets the same pairs and starts from the SFT model. PPO, GRPO and
# best-of-n use your labels through a **reward model**; DPO, IPO and SimPO directly.
# Settings are gentle on purpose (lesson 09: fifty labels bear no strong hand). Whatever
# you change, say what you looked at when you chose it: settings chosen by the numbers
# that you then report make those numbers too good.


# %%
def taught_reward(pairs, seed, steps=60):
    """A reward model from the SFT model, its zero at the mean of SFT answers."""
    torch.manual_seed(seed)
    model = RewardModel(copy.deepcopy(kitchen.sft), pooling="mean")
    train_reward_model(model, pairs, steps=steps, batch_size=24, lr=1e-3, seed=seed,
                       show_progress=False)
    model.centre(rewards_of(model, *some_answers))
    return model


some_answers = list(zip(*two_answers(200, seed=12_000), strict=True))[:2]


@torch.no_grad()
def rewards_of(model, prompts, answers):
    """Rewards of answers given as text, (B,)."""
    ids = [encode(p) for p in prompts], [encode_answer(a) for a in answers]
    tokens, attention_mask, _ = collate_answers(*ids, kitchen.tokenizer.pad_id)
    return model(tokens, attention_mask)


def encode_answer(answer):
    """Token ids with the end token; "..." stands for an answer without a word."""
    return encode("" if answer == "..." else answer, end=True)


def token_pairs(preferences):
    """The same texts as token ids."""
    return [TokenPair(encode(p), encode_answer(c), encode_answer(r))
            for p, c, r in preferences]


def on_pairs(train, **settings):
    """A method that learns from the pairs directly."""
    def method(pairs, reward, seed):
        policy = copy.deepcopy(kitchen.sft)
        models = (policy,) if train is train_simpo else (policy, kitchen.sft)
        train(*models, pairs, steps=40, batch_size=24, lr=1e-4, seed=seed,
              show_progress=False, **settings)
        return policy
    return method


def on_reward(train, **settings):
    """A method that samples, and learns from what the reward model says of it."""
    def method(pairs, reward, seed):
        policy, more = copy.deepcopy(kitchen.sft), dict(settings)
        if train is train_rlhf:
            more["value_model"] = reward.critic()
        train(policy, kitchen.sft, score_by(reward), kitchen.prompts, steps=40,
              seed=seed, show_progress=False, **kitchen.sampling(), **more)
        return policy
    return method


def score_by(reward):
    def score(rollouts):
        with torch.no_grad():
            return reward(rollouts.tokens, rollouts.attention_mask)
    return score


class BestOf:
    """No training at all: the best of n SFT answers, by the reward model."""

    def __init__(self, n, reward):
        self.n, self.reward = n, reward

    def rollouts(self, prompts, seed):
        generator = torch.Generator().manual_seed(seed)
        ids = [encode(p) for p in prompts]
        return best_of_n(kitchen.sft, score_by(self.reward), ids, self.n,
                         generator=generator, **kitchen.sampling())


READY = {
    "PPO": on_reward(train_rlhf, beta=0.6),
    "GRPO": on_reward(train_grpo, beta=0.45),
    "best-of-n": lambda pairs, reward, seed: BestOf(8, reward),
    "DPO": on_pairs(train_dpo, beta=0.1),
    "IPO": on_pairs(train_dpo, loss=ipo_loss, beta=0.1),
    "SimPO": on_pairs(train_simpo, beta=2.0, margin=1.0),
}

# %% tags=["lesson"]
MY_METHODS = ("DPO", "GRPO")  # ✎ two of READY, or add one of your own to it
WHY_THESE = """✎ (why these two, and what difference between them you expect)"""

# %% tags=["solution"]
MY_METHODS = ("DPO", "GRPO")
WHY_THESE = """One learns from the pairs alone and never samples; the other samples and
follows a reward model learnt from the same pairs. If labels teach a wrong thing, I
expect GRPO to run after it, and DPO to be held by the few texts it has seen."""

# %%
rewards, trained = {}, {}
for seed in SEEDS:
    pairs = token_pairs(preferences[seed])
    rewards[seed] = taught_reward(pairs, seed)
    for name in MY_METHODS:
        trained[name, seed] = READY[name](pairs, rewards[seed], seed)
print(f"{len(trained)} policies, trained by {' and '.join(MY_METHODS)}; "
      f"{time.process_time():.0f} seconds of CPU time so far")

# %% [markdown]
# ## 6 · Reward and distance
#
# All on 400 **held-out** prompts: their combinations stand in no label and no training.
# (The questions among them are only fifteen, asked again and again and answered anew:
# the intervals speak of these fifteen, and of posts of this kind.)
#
# - **Reward**: what your own reward model says of the policy's answers, minus what it
#   says of the SFT model's. It says whether training worked, never whether you like the
#   result.
# - **KL** from the SFT model, in nats an answer. Estimator: along the policy's own
#   samples, the exact KL over the vocabulary at each token, summed (`sequence_kl`, lesson
#   03; by the chain rule unbiased). For best-of-n only the bound log n − (n − 1)/n is
#   known.
# - **Words** an answer, and the kitchen's **gold reward**, which stands for what *others*
#   want. It is no goal of yours; it shows what your taste costs them.

# %%
prompts = sample_prompts(400, seed=13_000, held_out=True)
sft_answers = texts_of(kitchen.rollouts(kitchen.sft, prompts, 13_001))


def measure(policy, reward, seed):
    """What one policy does on the held-out prompts; a number an answer."""
    plain = isinstance(policy, torch.nn.Module)
    sample_seed = 13_002 + seed
    rollouts = (kitchen.rollouts(policy, prompts, sample_seed) if plain
                else policy.rollouts(prompts, sample_seed))
    answers = texts_of(rollouts)
    gain = (rewards_of(reward, prompts, answers)
            - rewards_of(reward, prompts, sft_answers))
    return dict(answers=answers, reward=gain.numpy(),
                kl=kl_an_answer(policy, rollouts) if plain else None,
                bound=None if plain else best_of_n_kl(policy.n),
                words=np.array([len(a.split()) for a in answers]),
                gold=np.array([gold_reward(*x)
                               for x in zip(prompts, answers, strict=True)]))


@torch.no_grad()
def kl_an_answer(policy, rollouts):
    """KL(policy‖SFT) of each answer: exact at each token, summed, (B,)."""
    logits = [next_token_logits(model, rollouts.tokens, rollouts.attention_mask)[:, :-1]
              for model in (policy, kitchen.sft)]
    return sequence_kl(*logits, rollouts.mask[:, 1:]).numpy()


measured = {key: measure(policy, rewards[key[1]], key[1])
            for key, policy in trained.items()}
sft_words = np.array([len(a.split()) for a in sft_answers])
sft_gold = np.array([gold_reward(*x) for x in zip(prompts, sft_answers, strict=True)])
print("              reward above SFT     KL (nats)            words         gold")
print(f"{'SFT':13s} {'0':20s} {'0':20s} {sft_words.mean():5.1f}         "
      f"{sft_gold.mean():.2f}")
for (name, seed), row in measured.items():
    kl = f"≤ {row['bound']:.2f}" if row["kl"] is None else mean(row["kl"])
    print(f"{name:9s} {seed:3d} {mean(row['reward']):20s} {kl:20s} "
          f"{row['words'].mean():5.1f}         {row['gold'].mean():.2f}")

# %%
T_95 = {2: 12.71, 3: 4.30, 4: 3.18, 5: 2.78}  # Student's t for so many seeds


def over_seeds(values):
    """The mean over seeds with Student's 95% interval, as text."""
    if len(values) < 2:
        return f"{values[0]:.2f} (one seed: no interval)"
    half = T_95.get(len(values), 2.78) * np.std(values, ddof=1) / math.sqrt(len(values))
    middle = np.mean(values)
    return f"{middle:.2f} [{middle - half:.2f}, {middle + half:.2f}]"


def of_method(name, number):
    """number(row, key) of each seed's policy of one method."""
    return [number(measured[name, seed], (name, seed)) for seed in SEEDS]


for name in MY_METHODS:
    gains = of_method(name, lambda row, _: row["reward"].mean())
    print(f"{name:9s} reward over {len(SEEDS)} seeds: {over_seeds(gains)}")

# %% [markdown]
# The first table's intervals say how sure we are of *one* policy: they hold for these
# weights, on other prompts. The second says how much another seed changes, on these
# prompts, and with three seeds it is wide, as it should be.
#
# Two methods at different KL are not compared by their rewards alone: the one that went
# further should have got more. Either bring them to about the same KL, or say so.

# %% [markdown]
# ## 7 · ✎ Blind: do you like it better?
#
# The only judge of your taste is you. Forty prompts a method, its answer beside the SFT
# model's, in drawn order, both methods mixed, and no SFT answer used twice: one that
# came back would betray itself. You cannot know whose is whose. These labels are
# **held out**: nothing is ever trained on them. (Retrain, and the texts change: the
# file's name holds a check sum of them, so you are asked again.)

# %% tags=["lesson"]
BLIND = 40  # comparisons a method
BLIND_SEEDS = SEEDS[:1]  # you judge the first seed's policies

# %% tags=["solution"]
BLIND = 40  # comparisons a method
BLIND_SEEDS = SEEDS


# %%
def blind_widget(seed):
    """A widget of all methods' answers against SFT's, mixed; and whose each one is."""
    rows, ties = [], []
    for place, name in enumerate(MY_METHODS):
        for i in range(place * BLIND, (place + 1) * BLIND):  # each prompt once
            ours = measured[name, seed]["answers"][i]
            row = (name, i), (prompts[i], ours, sft_answers[i])
            (ties if ours == sft_answers[i] else rows).append(row)  # the same: a tie
    random.Random(seed).shuffle(rows)
    triples = [triple for _, triple in rows]
    check_sum = zlib.crc32(repr(triples).encode())
    widget = labelling(f"blind-{seed}-{check_sum:08x}", triples)
    return widget, [key for key, _ in rows], [key for key, _ in ties]


blind = {seed: blind_widget(seed) for seed in BLIND_SEEDS}
for widget, *_ in blind.values():
    print(f"{len(widget.asked)} comparisons, {len(widget.labels)} labelled")
widget.show()

# %%
points = {"first": 1.0, "tie": 0.5, "second": 0.0}
verdicts = {}  # (method, seed) -> {number of the prompt: 1 a win, ½ a tie, 0 a loss}
for seed, (widget, whose, ties) in blind.items():
    for key in ties:
        verdicts.setdefault((key[0], seed), {})[key[1]] = 0.5
    for label in finish(widget):
        name, i = whose[int(label.comparison.id)]
        verdicts.setdefault((name, seed), {})[i] = points[label.choice]


def wins_by(judge, answers):
    """Win, tie or loss against SFT's answer on every held-out prompt, by a function."""
    both = [(judge(*x), judge(x[0], other)) for *x, other
            in zip(prompts, answers, sft_answers, strict=True)]
    return [float(a > b) + 0.5 * (a == b) for a, b in both]


by_function = {key: None if taste is None else wins_by(taste, row["answers"])
               for key, row in measured.items()}
print("wins over SFT     blind labels              by my_taste, all held-out prompts")
for key in measured:
    labelled = list(verdicts.get(key, {}).values())
    text = f"{share(labelled)} of {len(labelled)}" if labelled else "not labelled"
    function = "-" if by_function[key] is None else share(by_function[key])
    print(f"{key[0]:9s} {key[1]:3d}     {text:25s} {function}")


def both_lucks(wins):
    """Mean, low, high of wins (seeds, prompts): the luck of both, squares added."""
    wins, seeds = np.array(wins), 0.0
    if len(wins) > 1:
        t = T_95.get(len(wins), 2.78)
        seeds = t * wins.mean(1).std(ddof=1) / math.sqrt(len(wins))
    drawn = 1.96 * wins.mean(0).std(ddof=1) / math.sqrt(wins.shape[1])
    half = math.hypot(seeds, drawn)
    return wins.mean(), wins.mean() - half, wins.mean() + half


over_all = {name: both_lucks(of_method(name, lambda _, key: by_function[key]))
            for name in (MY_METHODS if taste is not None else ())}
for name, (middle, low, high) in over_all.items():
    print(f"{name:9s} over {len(SEEDS)} seeds, by my_taste: "
          f"{middle:.2f} [{low:.2f}, {high:.2f}]")

# %% [markdown]
# A tie counts one half; Wilson's interval does not know about ties, and is a little too
# wide where there are many: the safe side. Forty labels of *one* policy say nothing of
# another seed's. The interval over seeds holds two kinds of luck: another seed, and other
# prompts with other SFT answers, which all seeds share.
#
# Your labels are also the first honest exam of your **reward model**: it never saw them,
# and they compare the answers it has to judge when a policy is trained on it.

# %%
agreed, disagreed = [], []
for (name, seed), found in verdicts.items():
    for i, win in found.items():
        if win != 0.5:
            gain = measured[name, seed]["reward"][i]
            agreed.append((gain > 0) == (win == 1))
            if gain > 0 and win == 0:
                disagreed.append((gain, name, seed, i))
print("the reward model agrees with the blind labels on", share(agreed),
      f"of {len(agreed)} that were no tie")

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(9.6, 3.7), layout="constrained")
for place, (key, row) in enumerate(measured.items()):
    colour = COLOURS.get(key[0], GREY)
    i = interval(row["reward"])
    left.errorbar(place, i["mean"], 1.96 * i["se"], fmt="o", capsize=4, color=colour)
    for values, marker, shift in ((verdicts.get(key, {}).values(), "o", -0.12),
                                  (by_function[key] or [], "s", 0.12)):
        values = list(values)
        if values:
            at, ends = np.mean(values), wilson_interval(sum(values), len(values))
            right.errorbar(place + shift, at, [[at - ends[0]], [ends[1] - at]],
                           fmt=marker, capsize=4, color=colour,
                           markerfacecolor="white" if marker == "o" else colour)
blind_lows = [wilson_interval(sum(v.values()), len(v))[0] for v in verdicts.values()]
sure = sum(low > 0.5 for low in blind_lows)
risen = sum(interval(row["reward"])["low"] > 0 for row in measured.values())
left.set(title=f"The reward rises for {risen} of {len(measured)} policies …",
         ylabel="reward above SFT, own reward model")
right.set(title=f"… blind labels are sure of {sure} of {len(verdicts)}",
          ylabel="wins over SFT", ylim=(0, 1))
left.axhline(0, color=GREY, linestyle="--", linewidth=1)
right.axhline(0.5, color=GREY, linestyle="--", linewidth=1)
right.plot([], [], "o", color=GREY, markerfacecolor="white", label="blind labels")
if taste is not None:
    right.plot([], [], "s", color=GREY, label="my_taste, 400 prompts")
right.legend(frameon=False, loc="lower right")
for axes in (left, right):
    axes.set_xticks(range(len(measured)), [f"{n}\nseed {s}" for n, s in measured])
    axes.spines[["top", "right"]].set_visible(False)
plt.show()

# %% [markdown]
# ## 8 · ✎ Hunt a failure
#
# **First read.** Where did *you* prefer the SFT model's answer though your reward model
# was sure of the policy's? These rows, each policy's worst, are where it praises what
# you do not want. What do they have in common?

# %%
worst = {}
for gain, name, seed, i in sorted(disagreed, reverse=True):
    worst.setdefault((name, seed), (gain, name, seed, i))
rows = [(prompts[i], sft_answers[i], measured[n, s]["answers"][i], f"{n} {s}: {g:+.1f}")
        for g, n, s, i in worst.values()]
heads = ("prompt", "SFT, which you preferred", "policy", "policy, reward above SFT")
display(HTML(side_by_side(rows, heads)) if rows else Markdown("No such row."))

# %% [markdown]
# **Then guess, and test the guess.** A row is an anecdote. Turn it into a *probe*: take
# answers, change **one** thing, and count how often the reward follows. A probe is a list
# of (prompt, better, worse), where you know which is better *by your words*. Half the
# time means that the reward model cannot tell; far below means that it prefers the worse.
#
# Padding is a probe that everybody should run: the same answer, and a sentence of
# chatter.

# %%
PAD = "i could talk about food all day ."


def probe(reward, rows):
    """For each (prompt, better, worse): does the reward model prefer the better?"""
    texts, better, worse = zip(*rows, strict=True)
    gap = rewards_of(reward, texts, better) - rewards_of(reward, texts, worse)
    return [float(g > 0) for g in gap]


padded = [(p, a, f"{a} {PAD}") for p, a in zip(prompts, sft_answers, strict=True)]
for seed in SEEDS:
    print(f"seed {seed}: the reward model prefers the answer without the chatter in "
          f"{share(probe(rewards[seed], padded))} of {len(padded)}")

# %% tags=["lesson"]
# ✎ Your own probe. This placeholder drops an answer's last word.
both = zip(prompts, sft_answers, strict=True)
my_probe = [(p, a, a.rsplit(" ", 1)[0]) for p, a in both if " " in a]
MY_PROBE = """✎ (what the probe changes, and why the first answer is the better)"""
for seed in SEEDS:
    print(f"seed {seed}: prefers the better in {share(probe(rewards[seed], my_probe))}")

# %% [markdown] tags=["lesson"]
# **Then ask where it comes from.** The labels (section 4), the reward model (the probe),
# or the training (does it grow with KL, does the other method have it too)? If you can,
# try a remedy, and report it whether or not it helps: other pairs to label often do more
# than more pairs.

# %% [markdown] tags=["solution"]
# **Luck, first.** The padding probe gives opposite answers in different draws: one reward
# model prefers the chatter nearly always, another hardly ever. One taste, one annotator,
# the same settings; only the fifty pairs are others. Which companion of the taste is
# learnt with it, a draw decides.
#
# **The failure.** Some rows praise what their draw happened to like, chatter in one and
# brevity in another, and say no how at all; others say how, and say it *wrongly*. The
# first is luck, the second can be in every draw. The probe for it keeps every word but
# one phrase: right answers of the SFT model in which "boil" becomes "bake", or "everyone
# loved it" becomes "it tasted great".

# %% tags=["solution"]
MY_PROBE = """An SFT answer that says how rightly, and the same answer with another way
of cooking, or another outcome. Length, manner and all other words are the same."""


def swapped(prompt, answer, rng):
    """The same answer with a wrong how of as many words; None where there is none."""
    if is_summary(prompt):
        right, others = next(o for o in OUTCOMES if o in prompt), OUTCOMES
    else:
        right = DISHES[next(w for w in prompt.split() if w in DISHES)][3]
        others = METHODS
    others = [x for x in others if x != right and x.count(" ") == right.count(" ")]
    return answer.replace(right, rng.choice(others)) if others else None


def swaps(rows, rng):
    """(prompt, right, wrong) from (prompt, first, second)."""
    found = [(p, a, swapped(p, a, rng)) for p, a, _ in rows if my_taste(p, a) == 1]
    return [row for row in found if row[2] is not None]


def preferred(rows):
    """(prompt, better, worse) as the taste has it; ties left out."""
    lead = [(row, my_taste(*row[:2]) - my_taste(row[0], row[2])) for row in rows]
    return [(p, a, b) if d > 0 else (p, b, a) for (p, a, b), d in lead if d != 0]


new_rows = two_answers(1000, seed=14_000, held_out=True)
new_pairs = preferred(new_rows)
lengths = [(len(c.split()), len(r.split())) for _, c, r in new_pairs]
exams = {
    "new pairs": new_pairs,
    "… chosen is longer": [x for x, (a, b) in zip(new_pairs, lengths, strict=True)
                           if a > b],
    "… chosen is shorter": [x for x, (a, b) in zip(new_pairs, lengths, strict=True)
                            if a < b],
    "how swapped": swaps(new_rows, random.Random(0)),
}
print("agrees with the taste on:" + "".join(f"{name:>22s}" for name in exams))
results = {}
for seed in SEEDS:
    results["50 labels", seed] = [probe(rewards[seed], rows) for rows in exams.values()]
    print(f"seed {seed}                  "
          + "".join(f"{share(x):>22s}" for x in results["50 labels", seed]))
print("rows                    " + "".join(f"{len(x):22d}" for x in exams.values()))

# %% [markdown] tags=["solution"]
# On new pairs all three are right more often than not. What carries them differs: one is
# good only where the better answer is the longer, another where it is the shorter. With
# everything else held fixed, *none* tells a right how from a wrong one better than a
# coin. What accuracy they have was earned with companions of the taste.
#
# Did the policies learn the same? Count in their answers. And is a policy that says how
# wrongly paid for it? The last columns are the reward of its answers, centred on SFT's.

# %% tags=["solution"]
says, right_how = {}, {}
answers_of = {("SFT", ""): sft_answers}
answers_of |= {key: row["answers"] for key, row in measured.items()}
for key, answers in answers_of.items():
    pairs = list(zip(prompts, answers, strict=True))
    says[key] = [says_how(*x) for x in pairs]
    right_how[key] = [my_taste(*x) for x in pairs]
print("              says how             rightly              right among those    "
      "reward if: right  wrong  silent")
paid = {}
for key, answers in answers_of.items():
    right, said = (np.array(x[key], dtype=bool) for x in (right_how, says))
    line = f"{key[0]:9s} {key[1]!s:3s} {share(said):20s} {share(right):20s} "
    line += share(right[said])
    if key in measured:
        reward = rewards_of(rewards[key[1]], prompts, answers).numpy()
        paid[key] = [reward[rows].mean() for rows in (right, said & ~right, ~said)]
        line += "       {:9.1f} {:6.1f} {:6.1f}".format(*paid[key])
    print(line)

# %% tags=["solution"]
right_among = {key: sum(right_how[key]) / sum(says[key]) for key in says}
changed = [key for key in measured]
said_after = np.mean([np.mean(says[key]) for key in changed])
right_after = np.mean([right_among[key] for key in changed])
figure, axes = plt.subplots(figsize=(8.6, 3.6), layout="constrained")
for place, key in enumerate(says):
    good, any_how = np.mean(right_how[key]), np.mean(says[key])
    axes.bar(place, good, color=GREY,
             label="says how, rightly" if place == 0 else None)
    axes.bar(place, any_how - good, bottom=good, color=ORANGE, hatch="//",
             edgecolor="white", label="says how, wrongly" if place == 0 else None)
    axes.text(place, any_how + 0.02, f"{right_among[key]:.0%}\nright", ha="center",
              fontsize=8, color=GREY)
axes.set_xticks(range(len(says)),
                [n if n == "SFT" else f"{n}\nseed {s}" for n, s in says])
before = np.mean(says["SFT", ""])
axes.set(title=f"{said_after:.0%} instead of {before:.0%} say how; of those, "
               f"{right_after:.0%} instead of {right_among['SFT', '']:.0%} are right",
         ylabel="share of answers to held-out prompts", ylim=(0, 1.12))
axes.spines[["top", "right"]].set_visible(False)
axes.legend(frameon=False, loc="upper left", ncols=2)
plt.show()

# %% [markdown] tags=["solution"]
# That is the failure, in one picture. The policies do what the labels *said*, and talk
# about how; they do not do what was *meant*, and know no better than before whether to
# bake or to boil. The win rate may rise all the same: someone who says something more
# often is right more often than someone who says nothing.
#
# **A remedy, tried.** More labels of the same kind, or other labels? Four and sixteen
# times as many natural pairs; and beside them the fifty with fifty swapped ones, which
# a person could label as fast: one answer, two versions of it.

# %% tags=["solution"]
many = two_answers(840, seed=15_000)
for size, steps in ((200, 60), (800, 100)):
    pairs = token_pairs(preferred(many[:size]))
    model = taught_reward(pairs, seed=0, steps=steps)
    results[f"{size} labels", 0] = [probe(model, rows) for rows in exams.values()]
contrast_policy = {}
for seed in SEEDS:
    rows = two_answers(300, seed=16_000 + 10 * seed)
    contrasts = swaps(rows, random.Random(seed))[:50]
    pairs = token_pairs([*preferences[seed], *contrasts])
    model = taught_reward(pairs, seed, steps=100)
    results["50 + 50 swapped", seed] = [probe(model, rows) for rows in exams.values()]
    contrast_policy[seed] = texts_of(kitchen.rollouts(
        READY["DPO"](pairs, model, seed), prompts, 13_002 + seed))
for (kind, seed), found in results.items():
    print(f"{kind:17s} seed {seed}  " + "".join(f"{share(x):>22s}" for x in found))
swap_rows = exams["how swapped"]
for kind, wanted in (("recipes", False), ("summaries", True)):
    rows = [i for i, row in enumerate(swap_rows) if is_summary(row[0]) == wanted]
    values = [np.array(results["50 + 50 swapped", seed][3])[rows].mean()
              for seed in SEEDS]
    print(f"50 + 50 swapped, {kind}: " + ", ".join(f"{v:.2f}" for v in values))
more_right = []
print("DPO, 50 + 50 swapped: words, says how, right among those that say")
for seed, answers in contrast_policy.items():
    pairs = list(zip(prompts, answers, strict=True))
    among = [my_taste(*x) for x in pairs if says_how(*x)]
    print(f"    seed {seed}: {np.mean([len(a.split()) for a in answers]):.1f}, "
          f"{share([says_how(*x) for x in pairs])}, {share(among)}")
    more_right.append(np.mean(among) - right_among["DPO", seed])
print("more often right than DPO on the fifty alone:", over_seeds(more_right))

# %% tags=["solution"]
figure, axes = plt.subplots(figsize=(8.6, 3.7), layout="constrained")
kinds = {"50 labels": (SKY, "o"), "200 labels": ("#0072B2", "s"),
         "800 labels": ("#000000", "D"), "50 + 50 swapped": ("#CC79A7", "^")}
for shift, (kind, (colour, marker)) in enumerate(kinds.items()):
    for seed in [s for k, s in results if k == kind]:
        for place, wins in enumerate(results[kind, seed]):
            at, (low, high) = np.mean(wins), wilson_interval(sum(wins), len(wins))
            axes.errorbar(place + 0.2 * (shift - 1.5) + 0.045 * (seed - 1), at,
                          [[at - low], [high - at]], fmt=marker, color=colour,
                          capsize=2, markersize=5,
                          label=kind if (place, seed) == (0, 0) else None)
axes.axhline(0.5, color=GREY, linestyle="--", linewidth=1)
swap_at = {kind: np.mean([np.mean(x[3]) for (k, _), x in results.items() if k == kind])
           for kind in kinds}
axes.set(title=f"Swapped: 50 labels {swap_at['50 labels']:.0%}, "
               f"800 labels {swap_at['800 labels']:.0%}, "
               f"50 + 50 swapped {swap_at['50 + 50 swapped']:.0%}",
         ylabel="reward model agrees with the taste", ylim=(0.25, 1))
axes.set_xticks(range(4), exams)
axes.spines[["top", "right"]].set_visible(False)
axes.legend(frameon=False, loc="lower left", ncols=2)
plt.show()

# %% [markdown]
# ## 9 · ✎ How much can these numbers bear, and what do you report?
#
# An interval's width follows from the number of comparisons and little else. To tell a
# true win rate $p$ from ½ in four studies of five (power 0.8), at 95%, one needs about
#
# $$n \approx \left(\frac{1.96\cdot\tfrac12 + 0.84\sqrt{p(1-p)}}{p - \tfrac12}\right)^2$$
#
# comparisons: the distance from ½ must hold 1.96 standard errors under "no difference"
# and 0.84 more under the truth.


# %%
def comparisons_needed(p, power_z=0.84):
    """How many comparisons tell a win rate p from one half (normal approximation)."""
    return math.ceil(((0.98 + power_z * math.sqrt(p * (1 - p))) / (p - 0.5)) ** 2)


for p in (0.55, 0.6, 0.65, 0.7, 0.8):
    low, high = wilson_interval(p * BLIND, BLIND)
    print(f"true win rate {p:.2f}: {BLIND} comparisons show [{low:.2f}, {high:.2f}]; "
          f"{comparisons_needed(p):4d} would be needed")
for key, found in verdicts.items():
    p = np.mean(by_function[key] or list(found.values()))
    needed = comparisons_needed(p) if abs(p - 0.5) > 0.02 else "more than 4,900"
    print(f"{key[0]:9s} seed {key[1]}: if {p:.2f} is true, {needed} are needed")

# %% tags=["lesson"]
REPORT = {
    "Claim": """✎ (a sentence or a few, none stronger than its intervals. "I cannot tell
it from the SFT model; n comparisons would be needed" is a full answer.)""",
    "Evidence": """✎ (the numbers that carry it: reward, KL, win rate, each with its
interval, over which seeds, on which prompts, judged by whom)""",
    "Failure": """✎ (what goes wrong, two answers that show it, how often it happens,
where it comes from and how you know)""",
    "What I would not trust": """✎ (three things at least that are true of *this* run,
and what evidence would change your mind)""",
    "Was my prediction right?": """✎ (section 2 against section 4)""",
}

# %% tags=["solution"]
usable = [len(preferences[seed]) for seed in SEEDS]
ties = sum(label.choice == "tie" for seed in SEEDS for label in labels[seed])
longer = [w for seed in SEEDS
          for w in chosen_has_more(FEATURES["more words"], preferences[seed])]
all_wins = [np.mean(wins) for wins in by_function.values()]
unpadded = [np.mean(probe(rewards[seed], padded)) for seed in SEEDS]
swap_scores = {kind: [np.mean(x[3]) for (k, _), x in results.items() if k == kind]
               for kind in kinds}
top = max(measured, key=lambda key: measured[key]["reward"].mean())
poorer = sum(row["gold"].mean() < sft_gold.mean() for row in measured.values())
paid_wrong = sum(wrong > silent for _, wrong, silent in paid.values())
paid_more = sum(wrong > right for right, wrong, _ in paid.values())
first, second = MY_METHODS
worse = sum(right_among[second, s] < right_among[first, s] for s in SEEDS)
ahead = sum(np.mean(by_function[first, s]) > np.mean(by_function[second, s])
            for s in SEEDS)


def span(values, form=".2f"):
    """The smallest and the largest of a few seeds."""
    return f"{min(values):{form}} to {max(values):{form}}"


def claim(name):
    """What may be said of a method's wins over draws."""
    middle, low, high = over_all[name]
    said = "surely" if low > 0.5 else "not surely"
    return f"{name} wins {middle:.2f} [{low:.2f}, {high:.2f}] ({said} more than half)"


def evidence(name):
    """One method's line."""
    numbers = (
        lambda row, key: row["reward"].mean(),
        lambda row, key: row["kl"].mean(),
    )
    reward, kl = (over_seeds(of_method(name, number)) for number in numbers)
    blind_wins = of_method(name, lambda _, key: np.mean(list(verdicts[key].values())))
    return (f"**{name}**: reward above SFT {reward}; KL {kl} nats; wins by the taste "
            f"on 400 prompts {over_all[name][0]:.2f} [{over_all[name][1]:.2f}, "
            f"{over_all[name][2]:.2f}], by {BLIND} blind labels {span(blind_wins)}")


REPORT = {
    "Claim": f"""At best a little of the taste was taught. By the taste itself, over
three draws, {claim(first)} and {claim(second)}; what rose is how often an answer says
how, not how rightly. By forty blind labels, {sure} of {len(verdicts)} policies are
surely better than the SFT model: if the mean win rate, {np.mean(all_wins):.2f}, is the
truth, a person needs about {round(comparisons_needed(np.mean(all_wins)), -2)} blind
labels a policy to see it. Which method is better I cannot say: {first} wins more on
{ahead} of {len(SEEDS)} draws.""",
    "Evidence": f"""Means over three draws of fifty pairs, with intervals over draws.
{evidence(first)}. {evidence(second)}. All on held-out prompts, judged by a script that
follows the taste; each policy's own intervals are in sections 6 and 7.""",
    "Failure": f"""The policies say how more often ({said_after:.0%} of answers instead
of {before:.0%}) and know it no better: of those that say how, {right_after:.0%} are
right, {right_among["SFT", ""]:.0%} were before. In {paid_wrong} of {len(paid)} policies
a wrong how earns more reward than silence, in {paid_more} more than a right one. The
reward models agree with the taste on
{span([np.mean(results["50 labels", s][0]) for s in SEEDS])} of new pairs, and on
{span(swap_scores["50 labels"])} where only the how was swapped. It comes from the
labels and not from the training: the reward model has it before any policy is trained,
and DPO, which uses none, has it too. It is not their number either: 800 labels of the
same kind reach {np.mean(results["800 labels", 0][0]):.2f} on new pairs and
{swap_scores["800 labels"][0]:.2f} on swapped ones. Fifty swapped pairs beside the fifty
reach {span(swap_scores["50 + 50 swapped"])}, most of it on summaries, where the right
outcome can be copied from the post; DPO on them is right more often by
{over_seeds(more_right)} of its hows, which is nothing sure.""",
    "What I would not trust": f"""(1) **The reward.** It is largest for {top[0]}, seed
{top[1]} (+{measured[top]["reward"].mean():.1f}), which wins {share(by_function[top])}
by the taste. I would trust it more if over many draws the two rose together. (2) **One
draw.** The reward models prefer an answer without chatter to the same with it in
{", ".join(f"{x:.0%}" for x in unpadded)} of cases, draw by draw: what else was learnt
is luck, and three draws only show that it is. Ten would show how often. (3) **Accuracy
on new pairs**, since they have the same companions of the taste in them; the swapped
pairs would change my mind. (4) **A comparison of the methods**: three draws, different
KL, settings tuned by hand for both on three other draws. (5) **That this holds beyond
one SFT model**, from which all three draws start. (6) **That others would like it**: by
the gold reward {poorer} of {len(measured)} policies are worse than the SFT model. (7)
**These labels as a person's**: a script never tires or changes its mind.""",
    "Was my prediction right?": f"""About length: not shown. Longer answers were chosen
in {share(longer)} of the pairs that differ in length, all draws together; {ties} of
{len(SEEDS) * LABELS} labels were ties, so that {span(usable, "d")} pairs a draw were
left. That they teach *that* something is said, and not *what*: yes. That {second} runs
after it more than {first}: of the hows that are said, {second}'s are less often right
on {worse} of {len(SEEDS)} draws; at unequal KL that is a hint.""",
}

# %%
report = "\n\n".join(f"**{name}.** {text}" for name, text in REPORT.items())
display(Markdown(f"### My report\n\n**Taste.** {MY_TASTE}\n\n**Methods.** "
                 f"{', '.join(MY_METHODS)}: {WHY_THESE}\n\n"
                 f"**Probe.** {MY_PROBE}\n\n{report}"))

# %% tags=["lesson"]
texts = {"your taste (section 2)": MY_TASTE,
         "your prediction (section 2)": MY_PREDICTION,
         "why these methods (section 5)": WHY_THESE,
         "your probe (section 8)": MY_PROBE}
texts |= {f"report: {name} (section 9)": text for name, text in REPORT.items()}
undone = [name for name, text in texts.items() if text.lstrip().startswith("✎")]
if not CLICK:
    undone.append("your labels (sections 3 and 7): a script clicked, by my_taste")
if not CLICK and placeholder:
    undone.append("my_taste is placeholder_taste (shorter is better)")
for widget, *_ in blind.values():
    if len(widget.labels) < len(widget.asked):
        undone.append(f"blind labels: {len(widget.labels)} of {len(widget.asked)}")
if len(labels[SEEDS[0]]) < LABELS:
    undone.append(f"labels: {len(labels[SEEDS[0]])} of {LABELS}")
print("✎ still as handed out:" if undone else "Everything marked ✎ is filled in.")
for name in undone:
    print("   ", name)

# %% [markdown] tags=["solution"]
# **How we would mark this example**: 18½ of 20. Half of criterion 2 is lost, because a
# script clicked. The rest has all its points, though the result is next to nothing: the
# claim says so, the failure is counted and its cause tested, and what is not trusted is
# true of this run. An honest no is a result.

# %% [markdown]
# ## 10 · The rubric
#
# Marked by a person, in about ten minutes. Instructors can print
# `classroom/capstone_rubric.md`, which says the same.
#
# | | criterion | points | given |
# | --- | --- | --- | --- |
# | 1 | Taste and prediction | 2 | |
# | 2 | Labels | 3 | |
# | 3 | Two methods | 2 | |
# | 4 | Numbers | 4 | |
# | 5 | A failure | 4 | |
# | 6 | What is not trusted | 3 | |
# | 7 | The claim | 2 | |
# | | unsupported claims: −1 each, at most −3 | | |
#
# **1 · Taste and prediction, 2 points.**
# *Full:* a stranger can label by the words; what may go along with the taste is
# predicted before labelling.
# *Half:* the words leave most pairs open, or the prediction was plainly written
# afterwards.
# *None:* "better answers", or the placeholder.
#
# **2 · Labels, 3 points.**
# *Full:* fifty and the blind ones clicked by a person, files handed in; ties counted;
# what else the labels say is measured (section 4), with a feature of the student's
# own; you, from the words, agree on four of the six pairs shown.
# *Half:* fewer than forty labels, or only the features that were there, or a script
# clicked by a taste of the student's own.
# *None:* the placeholder's labels.
#
# **3 · Two methods, 2 points.**
# *Full:* two that differ in kind or for a stated reason, on the same labels; every
# changed setting is named, with what it was chosen by; their KL is brought close, or
# the difference is discussed.
# *Half:* one of these is missing.
# *None:* one method.
#
# **4 · Numbers, 4 points.**
# *Full:* reward, KL (estimator named) and win rate for each method, each with an
# interval, on held-out prompts, over three seeds; what the seeds vary, and what they
# do not, is said.
# *Half:* a number lacks its interval or its seeds, or the best seed is shown.
# *None:* the reward alone.
#
# **5 · A failure, 4 points.**
# *Full:* outputs side by side that show it; a probe or a count that says how often; a
# cause that was tested against another cause. "I looked for these three and found
# none, and here is what I could have missed" is full as well.
# *Half:* an anecdote; or a count whose cause is a guess.
# *None:* "it sometimes makes mistakes".
#
# **6 · What is not trusted, 3 points.**
# *Full:* three things that are true of *this* run, each with the evidence that would
# change the student's mind.
# *Half:* true of any run ("small model, few labels").
# *None:* nothing, or things the run contradicts.
#
# **7 · The claim, 2 points.**
# *Full:* a sentence or a few, none stronger than its intervals. **A null result,
# honestly told with what it would take to see more, is full.**
# *Half:* right, but vague.
# *None:* stronger than the numbers.
#
# **Unsupported claims** cost a point each, at most three, wherever they stand:
# "better" where the interval holds ½; a method crowned at another KL; the reward taken
# for the taste; a seed, a prompt or a setting picked by the number then reported. A
# result that disappoints costs nothing.
#
# ### Ten minutes
#
# 1. *One minute.* The list at the end of section 9: what is still as handed out?
# 2. *Two.* Read the taste, label the six pairs of section 3 from the words alone,
#    unfold, count.
# 3. *Two.* Sections 4 to 7: intervals there, blind labels made (`my_labels`: a line a
#    click; undone ones show that somebody thought), KL of the two methods.
# 4. *Three.* The failure: read the rows, then the probe. Would the probe have come out
#    otherwise if the student's explanation were wrong?
# 5. *Two.* Claim and mistrust. Hold each sentence of the claim against one interval.
#
# Nothing need be run again; the outputs are in the notebook. Where a file of labels
# and the notebook disagree, ask.
#
# ### Questions for an oral
#
# 1. Here is a pair that you labelled. Which is better by your words? Why did you click
#    the other?
# 2. Which two features in section 4 could your labels not tell apart? Name ten pairs
#    that would.
# 3. Your reward rose and your win rate did not. Give two explanations, and what would
#    tell them apart.
# 4. What does your KL estimate average over? Could it be negative? Could k1 have been?
# 5. Why does the win rate count ties as one half, and what does that do to the
#    interval?
# 6. Your three seeds agree. What did they vary, and what was the same in all three?
# 7. How many comparisons would have shown the effect you hoped for? How many hours is
#    that?
# 8. What would your second method have done with ten times the labels? With labels
#    that lie one time in ten?
# 9. Somebody ships your policy. What breaks first, and who notices?
# 10. What result would have made you write the opposite claim?
#
# ## 11 · To discuss
#
# 1. Two people label the same fifty pairs by the same words and agree on 80%. Whose taste
#    does a model learn from both files together?
#
# <details>
# <summary>What we think</summary>
#
# Nobody's: a compromise that neither would sign, most like the one whose labels lean
# the same way most often. Look at the 20% first (lesson 09, κ): carelessness may be
# averaged, a different taste may not.
#
# </details>
#
# 2. Why not simply train on the blind labels, too, once they are there?
#
# <details>
# <summary>What we think</summary>
#
# They are the better labels: they compare what the policy really writes. That is what a
# second *round* of RLHF does. But then nothing is held out any more; before the next
# claim, click again.
#
# </details>
#
# 3. You label until the interval excludes ½, and then stop. What is wrong?
#
# <details>
# <summary>What we think</summary>
#
# An interval holds its 95% for a number of comparisons fixed in advance. Look after every
# click, and it will exclude ½ at some moment far more often than one time in twenty,
# with no difference at all. Fix the number first.
#
# </details>
#
# 4. Is a taste that fifty labels cannot teach a bad taste?
#
# <details>
# <summary>What we think</summary>
#
# It is one that needs other evidence: pairs that differ in nothing else, a rule that is
# checked (lesson 10), a demonstration (lesson 04), or a written principle (lesson 09).
# Preferences are one channel of several.
#
# </details>
#
# ## What to read next
#
# - E. B. Wilson, *Probable inference, the law of succession, and statistical inference*,
#   1927: the interval.
# - L. Gao, J. Schulman & J. Hilton, *Scaling laws for reward model overoptimization*,
#   2023, arXiv 2210.10760: how far a reward may be followed.
# - L. Ouyang et al., *Training language models to follow instructions with human
#   feedback*, 2022, arXiv 2203.02155: forty labellers instead of you, and how they were
#   chosen.
# - R. Rafailov et al., *Direct preference optimization*, 2023, arXiv 2305.18290; Z. Shao
#   et al., *DeepSeekMath*, 2024, arXiv 2402.03300: the two methods of the worked example.
# - The package's `labelling.py`, `held_out.py`, `win_rates.py` and `kl.py`: what this
#   lesson measures with.
#
# That was the course. Whatever you align next, somebody's taste is in it: say whose.

# %%
print(f"{time.process_time():.0f} seconds of CPU time in this notebook so far")
