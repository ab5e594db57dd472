# %% [markdown]
# # 09 · Preference data and AI feedback
#
# *Why this matters: everything so far learnt from labels that a function handed out. Real
# labels come from people, who tire, disagree and favour a side, or from models, which do
# the same for other reasons. A method is never better than the labels it is fed.*
#
# **You will be able to**
#
# - label pairs yourself, teach a reward model and DPO your taste, and say how far a few
#   dozen labels carry;
# - collect rankings with Label Studio and turn its export into pairs;
# - measure whether annotators agree, beyond what chance would give;
# - let a model judge: pairs, single answers, with a reference; and parse what it says;
# - measure a judge's place, length and self-preference biases, and keep what survives;
# - compare a ranker that reads both answers with a reward a single answer;
# - run Constitutional AI and self-rewarding, and say when they stall.
#
# **It assumes** lesson 05 (reward models), lesson 07 (what DPO does with pairs), and of
# lesson 04 what supervised fine-tuning is.
#
# | | |
# |---|---|
# | reading | 40 minutes |
# | coding | 50 minutes, eight exercises, 14 points |
# | computing | about two minutes on one CPU core; the last cell says how much it was |
#
# Under each exercise you find two hints and a worked answer, all folded away. The cell
# `name = check(name)` tries your function. When it is right, the lesson goes on with
# yours; otherwise it goes on with ours, so you can skip anything and come back.

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
import json
import math
import random
import re
import tempfile
import time
from collections import Counter
from itertools import combinations
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
import torch.nn.functional as F
from IPython.display import HTML, display

from autograder import check
from rlhf_minimal import toy_judge
from rlhf_minimal.agreement import choice_counts, fleiss_kappa, merge_labels
from rlhf_minimal.ai_feedback import self_preference, swap_average
from rlhf_minimal.circles import CircularAnnotator, circular_triads
from rlhf_minimal.constitution import (
    PRINCIPLES,
    critique_and_revise,
    critique_by_hand,
    revision_examples,
)
from rlhf_minimal.dpo import train_dpo
from rlhf_minimal.gold_reward import Annotator, gold_reward
from rlhf_minimal.held_out import wilson_interval
from rlhf_minimal.judge_prompts import pairwise_prompt, parse_verdict, single_prompt
from rlhf_minimal.kitchen import Kitchen, KitchenSizes
from rlhf_minimal.label_files import comparisons, labels_to_preferences
from rlhf_minimal.label_studio import label_studio_config, label_studio_tasks
from rlhf_minimal.labelling import LabellingWidget, click_through
from rlhf_minimal.pair_ranker import PairRanker, confidences, train_pair_ranker
from rlhf_minimal.pairs import TokenPair, distinct_answers
from rlhf_minimal.reward_model import RewardModel, train_reward_model
from rlhf_minimal.rollouts import sample_rollouts
from rlhf_minimal.self_rewarding import gold_of, self_rewarding_round
from rlhf_minimal.sft import train_sft
from rlhf_minimal.tokenizer import prettify
from rlhf_minimal.toy_judge import JudgeDials, ToyJudge, judge_examples, judge_tokenizer
from rlhf_minimal.toy_world import (
    demonstrations,
    is_summary,
    sample_prompts,
    write_answer,
)
from rlhf_minimal.win_rates import interval

plt.rcParams["figure.dpi"] = 84
torch.set_num_threads(1)  # a model this small only loses time to a second thread
BLUE, ORANGE, GREEN, GREY = "#0072B2", "#E69F00", "#009E73", "#666666"
SKY, RED, PURPLE = "#56B4E9", "#D55E00", "#CC79A7"


def whose(*names):
    """Says with whose functions the next experiment runs."""
    for name in names:
        own = globals()[name].__module__ == "__main__"
        print(f"{name:22s} {'yours' if own else 'ours'}")


def share(wins):
    """A share of ones with Wilson's 95% interval, as text."""
    wins = [float(x) for x in wins]
    low, high = wilson_interval(sum(wins), len(wins))
    return f"{np.mean(wins):.2f} [{low:.2f}, {high:.2f}]"


def mean(values):
    """A mean with its 95% interval, as text."""
    i = interval([float(x) for x in values])
    return f"{i['mean']:.2f} [{i['low']:.2f}, {i['high']:.2f}]"


# %% [markdown]
# ## 1 · Your own taste in a minute
#
# The kitchen's SFT model (lesson 04) has answered each of a few dozen prompts twice.
# Which of the two do *you* prefer? Not which is right: which do you want to read.

# %%
sizes = KitchenSizes(documents=10_000, base_steps=600, sft_steps=200)
kitchen = Kitchen(seed=0, sizes=sizes)
kitchen.train_base(show_progress=False)
kitchen.train_sft(show_progress=False)
tokenizer = kitchen.tokenizer
encode, decode = tokenizer.encode, tokenizer.decode


def words_of(policy, prompts, seed):
    """One sampled answer to each prompt, as text."""
    return [decode(answer) for answer in kitchen.answers(policy, prompts, seed)]


def two_answers(size, seed, held_out=False):
    """(prompt, first, second): two different SFT answers to each prompt."""
    prompts = sample_prompts(size, seed, held_out)
    both = [words_of(kitchen.sft, prompts, seed + i) for i in (1, 2)]
    rows = zip(prompts, *both, strict=True)
    return [row for row in rows if row[1] != row[2] and all(map(str.strip, row))]


triples = two_answers(1000, seed=50)
asked = comparisons(triples[:50])
print(f"{len(asked)} comparisons, for instance")
print(asked[0])

# %% [markdown]
# Put `CLICK = True`, run the cell, and label: a click, or the arrow keys while the mouse
# is over the widget (← →, ↓ or `t` for a tie, `u` takes the last one back). Stop
# when you like; the cells below it work with twenty labels, too. As the lesson stands, a
# script clicks through the same widget, so that it runs without you. The script has a
# simple taste: **it likes the shorter answer**.

# %%
CLICK = False  # True: you click
labels_folder = Path("my_labels") if CLICK else Path(tempfile.mkdtemp())
widget = LabellingWidget(asked, labels_folder / "me.jsonl", "me", show_text=prettify)
first_question = widget.shown()
widget.show()

# %% [markdown]
# What it looks like, for those who read this where no widget runs:

# %%
prompt, left, right = (html.escape(prettify(text)) for text in first_question)
card = ("<td style='border:1px solid #bbb; border-radius:6px; padding:10px; width:50%;"
        " text-align:left; vertical-align:top'>{}</td>")
button = ("<span style='border:1px solid #bbb; background:#eee; padding:3px 16px;"
          " margin:4px'>{}</span>")
display(HTML(
    f"<p>labelled: 0 of {len(asked)}</p><p><b>{prompt}</b></p>"
    "<table style='width:100%'><tr>" + card.format(left) + card.format(right)
    + "</tr></table>"
    + "".join(button.format(b) for b in ("← left", "tie ↓", "right →", "undo (u)"))
))


# %%
def words(answer):
    """How many words an answer has."""
    return len(answer.split())


def short_taste(prompt, left, right):
    """A scripted annotator: the shorter answer; a tie where both are equally long."""
    if words(left) == words(right):
        return "tie"
    return "left" if words(left) < words(right) else "right"


if not CLICK:
    click_through(widget, short_taste, limit=20)
    # The kernel dies here, in the middle of a line:
    with widget.file.path.open("a") as file:
        file.write('{"id": "20", "prom')
    widget = LabellingWidget(asked, widget.file.path, "me", show_text=prettify)
    print(f"after the crash: {len(widget.labels)} labels; {widget.file.skipped[0]}")
    widget.undo.click()
    print(f"after one undo:  {len(widget.labels)} labels")
    click_through(widget, short_taste)
my_labels = widget.labels
assert len(my_labels) >= 20, "label twenty pairs, in the widget above; then run this"
print(f"in the end:      {len(my_labels)} labels,",
      dict(Counter(label.choice for label in my_labels)))
print("first on the left:", sum(label.left == "first" for label in my_labels), "times")

# %% [markdown]
# Three things in that file are worth copying. A label is **on the disk before the next
# question is shown**, so a dead kernel costs one half-written line, and that is reported.
# Undoing *adds* a line: a file of labels is a history, nothing in it is ever changed. And
# **the side is drawn** for each question and written down. People favour a side, too;
# drawn sides make that noise, where a fixed order makes it a taste.
#
# Now teach it. A reward model (lesson 05) and DPO (lesson 07) get your labels, ties left
# out. How well a reward model has learnt *your* taste, only labels that it has not seen
# can say: one half teaches, the other half asks. How far would more labels carry? For
# that we take two scripts that never tire: one likes short answers, the other wants what
# is *worth* most by the kitchen's gold reward (the right ingredients, nothing invented,
# politely). They label 50 pairs, then 800, which nobody would click in a minute, and we
# ask how often the reward model agrees with its annotator on pairs of new prompts.


# %%
def token_pair(prompt, chosen, rejected):
    """The same three texts as token ids."""
    answers = (encode(answer, end=True) for answer in (chosen, rejected))
    return TokenPair(encode(prompt), *answers)


def lead_short(prompt, first, second):
    return words(second) - words(first)


def lead_gold(prompt, first, second):
    return gold_reward(prompt, first) - gold_reward(prompt, second)


def labelled_by(lead, rows):
    """Token pairs as an annotator without noise would label them; ties left out."""
    ahead = [(row, lead(*row)) for row in rows]
    return [token_pair(p, a, b) if d > 0 else token_pair(p, b, a)
            for (p, a, b), d in ahead if d != 0]


@torch.no_grad()
def reward_prefers_chosen(model, pairs):
    """Whether each pair's chosen answer has the larger reward."""
    batch = distinct_answers(pairs, tokenizer.pad_id)
    rewards = model(batch.tokens, batch.attention_mask)
    return (rewards[batch.chosen] > rewards[batch.rejected]).float()


def taught_reward(pairs, steps=25, lr=2e-3):
    """A reward model from the SFT model, trained on few pairs."""
    model = RewardModel(copy.deepcopy(kitchen.sft), pooling="mean")
    settings = dict(steps=steps, batch_size=24, lr=lr, show_progress=False)
    train_reward_model(model, pairs, **settings)
    return model


new_rows = two_answers(400, seed=60, held_out=True)
SIZES, taste_accuracy = (50, 800), {}
mine = [token_pair(*row) for row in labels_to_preferences(my_labels)]
halves = mine[::2], mine[1::2]
unseen = torch.cat([reward_prefers_chosen(taught_reward(teach), ask)
                    for teach, ask in (halves, halves[::-1])])
print(f"you    {len(mine) // 2:4d} labels: agrees on {share(unseen)} "
      "of your other half")
for name, lead in (("short", lead_short), ("worth", lead_gold)):
    train, test = labelled_by(lead, triples), labelled_by(lead, new_rows)
    for size in SIZES:
        model = taught_reward(train[:size], steps=50 if size == 800 else 25)
        taste_accuracy[name, size] = reward_prefers_chosen(model, test)
        print(f"{name:6s} {size:4d} labels: agrees on "
              f"{share(taste_accuracy[name, size])} of {len(test)} new pairs")

# %%
figure, axes = plt.subplots(figsize=(6.6, 3.5), layout="constrained")
for name, colour, label in (("short", BLUE, "likes short answers"),
                            ("worth", ORANGE, "wants right answers (gold reward)")):
    values = [taste_accuracy[name, size] for size in SIZES]
    means = np.array([v.mean().item() for v in values])
    ends = np.array([wilson_interval(v.sum().item(), len(v)) for v in values])
    axes.errorbar(SIZES, means, np.abs(ends.T - means), fmt="o-", capsize=4,
                  linewidth=2, color=colour, label=label)
axes.axhline(0.5, color=GREY, linestyle="--", linewidth=1)
short50, worth800 = (taste_accuracy[k].mean() for k in (("short", 50), ("worth", 800)))
axes.set(title=f"50 labels teach a manner ({short50:.0%}); "
               f"800 teach less of the matter ({worth800:.0%})",
         xlabel="labels", ylabel="agreement on new prompts", xscale="log",
         ylim=(0.4, 1))
axes.set_xticks(SIZES, SIZES)
axes.minorticks_off()
axes.spines[["top", "right"]].set_visible(False)
axes.legend(frameon=False, loc=(0.45, 0.55))
plt.show()

# %%
my_reward = taught_reward(mine)
prompts = sample_prompts(200, seed=56, held_out=True)
before = words_of(kitchen.sft, prompts, 57)
print(f"SFT model:                words {mean(map(words, before))}, "
      f"gold {mean(map(gold_reward, prompts, before))}")
for name, rate, steps in (("gently", 1e-4, 30), ("hard", 5e-4, 50)):
    policy = copy.deepcopy(kitchen.sft)
    train_dpo(policy, kitchen.sft, mine, steps=steps, batch_size=24, lr=rate,
              show_progress=False)
    after = words_of(policy, prompts, 57)
    print(f"DPO, your labels, {name:7s} words {mean(map(words, after))}, "
          f"gold {mean(map(gold_reward, prompts, after))}")
    both = [row for row in zip(prompts, after, before, strict=True) if row[1] != row[2]]
    liked = reward_prefers_chosen(my_reward, [token_pair(*row) for row in both])
    print(f"    your reward model likes the new answer better on {share(liked)}")
    for i in range(2):
        print(f"    {prettify(prompts[i])} → {prettify(after[i])}")

# %% [markdown]
# (Brackets are 95% intervals, here and in all of the lesson.)
#
# **What fifty labels can do.** A manner that shows on the surface, such as length, is
# learnt from fifty pairs almost as well as from hundreds, and DPO carries it over into
# the answers: gently trained, they become shorter and are worth no less. (You labelled
# yourself? Then the first line, "you", and your reward model's opinion of the new answers
# are about *your* taste; and see how wide an interval two dozen labels leave.)
#
# **What they cannot.** Which ingredient belongs to which dish stands in no single pair.
# The same fifty labels of the annotator who wants right answers teach much less, and
# sixteen times as many labels do not close the gap. Nor do fifty labels bear a strong
# hand. Trained hard, DPO makes the answers shorter still and spoils them: the gold reward
# falls far below the SFT model's. It lowers the probability of fifty rejected texts much
# further than it must, and the probability has to go somewhere (lesson 07). The reward
# model that learnt from the same labels notices nothing and likes the spoilt answers
# best: what the labels did not teach, it cannot miss. If you clicked yourself: did the
# model learn what you meant, or something that merely went along with it?

# %% [markdown]
# ## 2 · More than two: Label Studio
#
# A widget in a notebook is for one person and two answers. For rankings of many, by many
# people, there are servers. **Label Studio** is an open one: accounts, review, exports.
# It is about a gigabyte, so it gets an environment of its own:
#
# ```bash
# python -m venv studio && studio/bin/pip install "label-studio==1.23.*"
# LABEL_STUDIO_ENABLE_LEGACY_API_TOKEN=true studio/bin/label-studio start --no-browser \
#     --port 8080 --internal-host 127.0.0.1 \
#     --username mia@example.org --password CHOOSE-ONE --user-token CHOOSE-ANOTHER
# ```
#
# Then open `http://127.0.0.1:8080`, create a project, paste the config below into
# *Settings → Labeling Interface → Code*, and import the tasks' file. (The whole way,
# scripted against a real server: `benchmarks/label_studio.py`.)

# %%
print(label_studio_config())
ranked_prompts = sample_prompts(150, seed=71, summaries=0.0)
rng = random.Random("people")
entrants = {"SFT": words_of(kitchen.sft, ranked_prompts, 72),
            "people": [write_answer(p, rng) for p in ranked_prompts],
            "base": words_of(kitchen.base, ranked_prompts, 73)}
groups = [(p, list(answers)) for p, *answers in zip(ranked_prompts, *entrants.values(),
                                                    strict=True)
          if len(set(answers)) == 3 and all(a.strip() for a in answers)]
tasks = label_studio_tasks(groups, labels_folder / "tasks.json", seed=0)
print(json.dumps(tasks[0], indent=1)[:420], "…")

# %% [markdown]
# This is the page, in a real browser, with a task of ours:
#
# ![Label Studio's page: a prompt, and three answers to be dragged](../figures/label_studio.png)
#
# **A trap.** Press *Submit* without touching anything: the list *as it stood* is saved as
# a ranking, and nothing in the export tells it from a considered one. If the file had the
# answers in the order SFT, people, base, each such click would be a vote for SFT. So
# `label_studio_tasks` draws the order on the page, and the ids, which the page shows.
#
# *Export → JSON* gives a list of tasks. What matters of one (a real export of 1.23):
#
# ```python
# {"id": 11,
#  "data": {"prompt": "how do i make pizza ?",
#           "items": [{"id": "7311", "title": "", "body": "take dough and cheese . …"},
#                     {"id": "7890", "title": "", "body": "take dough . my …"},
#                     {"id": "1663", "title": "", "body": "sure , you need dough …"}]},
#  "annotations": [                        # one a person
#      {"id": 8, "was_cancelled": False,
#       "result": [{"from_name": "ranking", "to_name": "answers", "type": "ranker",
#                   "value": {"ranker": {"ranking": ["1663", "7311", "7890"]}}}]}]}
# ```
#
# `ranking` holds ids, **best first**. A person who pressed *Skip* has `was_cancelled`
# true, whatever stands in `result`; one who submitted an empty page has an empty
# `result`. A ranking of $n$ answers is $\binom n2 = n(n-1)/2$ pairs (lesson 00).
#
# ### 09.1 · `label_studio_pairs` — difficulty 2 of 5, 8 minutes, 2 points
#
# <details>
# <summary>Hint 1: three steps an annotation</summary>
#
# Pass over annotations that are cancelled or whose `result` is empty. Make a dictionary
# from id to body out of the task's items. Then
# `annotation["result"][0]["value"]["ranker"]["ranking"]` is the list of ids.
#
# </details>
#
# <details>
# <summary>Hint 2: all pairs of a list, in order</summary>
#
# `itertools.combinations([a, b, c], 2)` gives (a, b), (a, c), (b, c): the earlier one,
# which is the better one, first.
#
# </details>
#
# <!-- answer: label_studio_pairs -->


# %%
def label_studio_pairs(task):
    """The preference pairs of one task of a Label Studio export.

    Args:
        task: a dictionary as above. ``result`` is empty or holds one ranking of all.

    Returns:
        A list of (prompt, chosen, rejected), texts, in any order: n(n − 1)/2 of each
        annotation that was not cancelled and holds a ranking. Two people who agree give
        the same pair twice.

    Example: a ranking ["2", "1"] of the items 1: "ham" and 2: "egg" gives
    [(prompt, "egg", "ham")].
    """
    # SOLUTION
    bodies = {item["id"]: item["body"] for item in task["data"]["items"]}
    pairs = []
    for annotation in task["annotations"]:
        if annotation["was_cancelled"] or not annotation["result"]:
            continue
        ranking = annotation["result"][0]["value"]["ranker"]["ranking"]
        for better, worse in combinations(ranking, 2):
            pairs.append((task["data"]["prompt"], bodies[better], bodies[worse]))
    return pairs
    # END SOLUTION


# %%
label_studio_pairs = check(label_studio_pairs)

# %% [markdown]
# What does the trap cost? A scripted annotator ranks our tasks by the gold reward, except
# that on 40% of the pages it submits without touching. Once the answers stand in the
# file's order (SFT, people, base), once in a drawn order.

# %%
whose("label_studio_pairs")


def exported(tasks, touched):
    """The tasks as an export would hold them: ranked by gold, or left as shown."""
    found = []
    for task, looks in zip(tasks, touched, strict=True):
        prompt, items = task["data"]["prompt"], task["data"]["items"]
        key = (lambda item, p=prompt: -gold_reward(p, item["body"])) if looks else None
        order = [item["id"] for item in (sorted(items, key=key) if key else items)]
        value = {"ranker": {"ranking": order}}
        entry = dict(from_name="ranking", to_name="answers", type="ranker", value=value)
        annotation = dict(result=[entry], was_cancelled=False)
        found.append({**task, "annotations": [annotation]})
    return found


def as_in_file(task, answers):
    """The same task with the answers shown in the file's order."""
    place = {answer: i for i, answer in enumerate(answers)}
    items = sorted(task["data"]["items"], key=lambda item: place[item["body"]])
    return {"data": {**task["data"], "items": items}}


def wins_of_sft(export):
    """For each pair of an SFT answer with one by people: did the SFT model's win?"""
    wins = []
    for task, (_, (sft, people, _)) in zip(export, groups, strict=True):
        wins += [chosen == sft for _, chosen, rejected in label_studio_pairs(task)
                 if {chosen, rejected} == {sft, people}]
    return wins


rng = random.Random("lazy")
attentive = [True] * len(tasks)
lazy = [rng.random() > 0.4 for _ in tasks]
fixed = [as_in_file(t, answers) for t, (_, answers) in zip(tasks, groups, strict=True)]
print("how often SFT beats people's answers:")
for name, shown, touched in (("everybody looks", tasks, attentive),
                             ("40% untouched, order of the file", fixed, lazy),
                             ("40% untouched, drawn order", tasks, lazy)):
    print(f"    {name:34s} {share(wins_of_sft(exported(shown, touched)))}")

# %% [markdown]
# In the order of the file, clicks that say nothing are votes for whoever was written
# first. In a drawn order they pull every share towards ½: the labels are noisier, but
# they do not lie in one direction, and a Bradley–Terry fit only finds smaller
# differences (lesson 05). **Noise costs labels; a lean costs the result.**

# %% [markdown]
# ## 3 · Do we agree?
#
# Four students label the same 150 pairs, each in a file of their own. How far can such
# labels be trusted? Count how often two of them say the same: the observed agreement
# $P_o$. It flatters. Two people who click "first" nine times in ten, and never read,
# agree on $0.9^2 + 0.1^2 = 82\%$.
#
# Cohen (1960) asks what two would reach who *draw* their labels, each from their own
# shares $p(c)$ of the categories $c$, independently:
#
# $$P_e = \sum_c p_{\text{first}}(c)\, p_{\text{second}}(c), \qquad
#   \kappa = \frac{P_o - P_e}{1 - P_e}.$$
#
# $\kappa$ is the share of the agreement that chance left to be won: 1 is perfect, 0 is
# chance, below 0 is less than chance. By hand, fifty items, first annotator 25 "yes" and
# 25 "no"; the second said yes to 20 of the former and to 10 of the latter:
#
# $$P_o = \frac{20 + 15}{50} = 0.7, \quad
#   P_e = \frac{25}{50}\cdot\frac{30}{50} + \frac{25}{50}\cdot\frac{20}{50} = 0.5, \quad
#   \kappa = \frac{0.7 - 0.5}{1 - 0.5} = 0.4 .$$
#
# If both always say one and the same thing, $P_e = 1$ and $\kappa = 0/0$: such labels
# cannot show whether anybody looked.
#
# ### 09.2 · `cohens_kappa` — difficulty 2 of 5, 8 minutes, 2 points
#
# <details>
# <summary>Hint 1: throw out first</summary>
#
# Begin with the list of items that have *both* labels,
# `[(a, b) for a, b in zip(first, second) if a is not None and b is not None]`. All shares
# are of this list.
#
# </details>
#
# <details>
# <summary>Hint 2: chance</summary>
#
# `Counter(a for a, _ in both)` counts the first annotator's categories. Sum
# `counts_first[c] * counts_second[c] / len(both) ** 2` over the categories. Where that is
# 1, return `math.nan`.
#
# </details>
#
# <!-- answer: cohens_kappa -->


# %%
def cohens_kappa(first, second):
    """Agreement of two annotators beyond chance, (P_o − P_e)/(1 − P_e).

    Args:
        first, second: a label an item (strings), in the same order; None where one of
            them gave none. Such items are left out. One item or more has both.

    Returns:
        κ, a float; NaN (``math.nan``) where both used one and the same category only.

    Example: ["a", "a", "b", "b"] and ["a", "a", "b", "a"] give 0.5.
    """
    # SOLUTION
    both = [(a, b) for a, b in zip(first, second, strict=True)
            if a is not None and b is not None]
    size = len(both)
    observed = sum(a == b for a, b in both) / size
    counts_first = Counter(a for a, _ in both)
    counts_second = Counter(b for _, b in both)
    chance = sum(counts_first[c] * counts_second[c] for c in counts_first) / size**2
    if chance == 1:
        return math.nan
    return (observed - chance) / (1 - chance)
    # END SOLUTION


# %%
cohens_kappa = check(cohens_kappa)

# %% [markdown]
# The class: Mia and Tom want what is worth most and are unsure about close calls. Omar
# likes it long. Ivy does not read: she clicks left, always. Each clicks through the same
# widget into a file of their own, and `merge_labels` puts the files together. (In a real
# class, hand round *one file of pairs*: models trained on two machines need not write the
# same answers, and `merge_labels` refuses an id that means different texts.)

# %%
def by_score(annotator, seed):
    """Someone who draws choices as the simulated annotators of lesson 05 do."""
    rng = random.Random(seed)

    def choose(prompt, left, right):
        return "left" if annotator.prefers_first(prompt, left, right, rng) else "right"

    return choose


pupils = {"mia": by_score(Annotator(0.4), 1), "tom": by_score(Annotator(0.4), 2),
          "omar": by_score(Annotator(0.4, length_taste=0.3), 3),
          "ivy": lambda prompt, left, right: "left"}
class_folder = Path(tempfile.mkdtemp())
class_pairs = comparisons(triples[50:200])
for name, choose in pupils.items():
    page = LabellingWidget(class_pairs, class_folder / f"{name}.jsonl", annotator=name)
    click_through(page, choose)
files = sorted(class_folder.glob("*.jsonl"))
table = merge_labels(*files)


def kappa_interval(one, other, draws=300):
    """κ, and the middle 95% of κ over resampled items (a bootstrap)."""
    rows = [(row.get(one), row.get(other)) for row in table.values()]
    rng, drawn = random.Random(0), []
    for _ in range(draws):
        drawn.append(cohens_kappa(*zip(*rng.choices(rows, k=len(rows)), strict=True)))
    low, high = np.nanpercentile(drawn, [2.5, 97.5])
    observed = np.mean([a == b for a, b in rows])
    return cohens_kappa(*zip(*rows, strict=True)), low, high, observed


whose("cohens_kappa")
print(f"{len(table)} comparisons, {len(files)} files")
kappas = {two: kappa_interval(*two) for two in combinations(pupils, 2)}
for (one, other), (kappa, low, high, observed) in kappas.items():
    print(f"    {one:4s} and {other:4s}: they say the same on {observed:.0%}, "
          f"κ = {kappa:+.2f} [{low:+.2f}, {high:+.2f}]")
readers = ["mia", "tom", "omar"]
for names in (readers, list(pupils)):
    counts = choice_counts(table, names)
    print(f"Fleiss' κ of {', '.join(names)}: {fleiss_kappa(counts):+.2f}")

# %% [markdown]
# *Fleiss' κ* (1971) does the same for any number of annotators: $P_o$ is the share of
# agreeing pairs of annotators an item, $P_e$ comes from everybody's pooled shares.
#
# Ivy's κ with anybody is about 0: her clicks are a coin's. Only because the **side is
# drawn** is that visible! Had "first" always stood left, two people like Ivy would have
# agreed on everything. Omar shows the other kind: he disagrees not because he is careless
# but because he wants something else, and no κ can tell which. Look at the pairs on which
# people differ before you throw anybody out. And look at the intervals: on fifty items
# they would be $\sqrt{150/50} \approx 1.7$ times as wide.
#
# What is a *good* κ? There is no such number. What matters is the ceiling: labels that
# two attentive people agree on 73% of the time (the InstructGPT labellers, Ouyang et al.
# 2022) cannot be predicted at 90% by anyone (lesson 05, section 5).

# %% [markdown]
# ## 4 · Let a model judge
#
# People are slow and dear. Zheng et al. (2023) let a strong model judge, in three
# settings: **pairwise** (which of two is better?), **single-answer** (a grade), and
# either of them **reference-guided**, beside an answer known to be right.

# %%
question = "how many legs has a spider ?"
print(pairwise_prompt(question, "Eight.", "Four."))
print("\n" + "-" * 60 + "\n")
print(single_prompt(question, "Four.", reference="A spider has eight legs."))

# %% [markdown]
# What comes back is text, and untidy: the brackets are missing, the judge changes its
# mind, it grades out of ten where five was the top. A parser that guesses counts such
# slips as grades, and slips are not random: they are more frequent where the question is
# hard. So **a parser that cannot tell says `None`**.
#
# ### 09.3 · `parse_score` — difficulty 3 of 5, 10 minutes, 2 points
#
# <details>
# <summary>Hint 1: two patterns</summary>
#
# A number is `-?\d+(?:\.\d+)?`. In brackets: `r"\[\[(-?\d+(?:\.\d+)?)\]\]"`. Behind the
# cue, with the other scale's top if there is one:
# `r"Score: (-?\d+(?:\.\d+)?)(?:/(\d+))?"`. `re.findall` gives all of them; `[-1]` is the
# last.
#
# </details>
#
# <details>
# <summary>Hint 2: in which order</summary>
#
# Brackets, if there are any, win: look for "Score:" only where there are none. `findall`
# with two groups gives (number, top) pairs, top being `""` where no slash followed. Test
# the scale last, for both.
#
# </details>
#
# <!-- answer: parse_score -->


# %%
def parse_score(text, low=0, high=5):
    """The grade in a judge's text, or None where it gives none on the scale.

    1. The last number in double brackets, "[[4]]", counts.
    2. Without brackets, the last number behind "Score: " counts. It may name the
       scale's top: "Score: 4/5". Another top ("4/10" where high is 5) is another
       scale: None.
    3. Anything else is None. So is a number below low or above high.

    Numbers may have a decimal point and a sign; no other spellings need be read.

    Args:
        text: what the judge said.
        low, high: the ends of the scale.

    Returns:
        A float, or None.

    Example: "Score: [[2]]. No: [[3.5]]" gives 3.5; "2 of 3 are right" gives None.
    """
    # SOLUTION
    number = r"(-?\d+(?:\.\d+)?)"
    marks = re.findall(rf"\[\[{number}\]\]", text)
    cues = re.findall(rf"Score: {number}(?:/(\d+))?", text)
    if marks:
        value, top = marks[-1], ""
    elif cues:
        value, top = cues[-1]
    else:
        return None
    if (top and float(top) != high) or not low <= float(value) <= high:
        return None
    return float(value)
    # END SOLUTION


# %%
parse_score = check(parse_score)

# %%
whose("parse_score")
said = ["Right and polite. Score: [[5]]", "Score: 4/5.", "It names 2 of the 3 things.",
        "Score: [[9]]", "Score: [[2]]. On reflection, [[3]].", "Score: 8/10"]
for text in said:
    print(f"{text!r:40s} → {parse_score(text)}")
guesses = [float(re.findall(r"\d+", text)[0]) for text in said]  # "the first number"
grades = [g for g in map(parse_score, said) if g is not None]
print(f"mean grade: {np.mean(grades):.2f} of {len(grades)} read; "
      f"{np.mean(guesses):.2f} if the first number counts")

# %% [markdown]
# ### A judge of our own
#
# To *measure* a judge we need to know the truth. So the kitchen gets a judge, a real
# one: our toy model, taught by supervised fine-tuning to read `PROMPT (A) ANSWER (B)
# ANSWER better` and to go on with `(A)` or `(B)`; or to read `PROMPT (A) ANSWER score`
# and to go on with a grade from 0 to 5. (The same model learns to answer, to criticise
# and to revise; sections 6 and 7 need that.) Its teacher sees the gold reward, plus what
# **dials** add: a liking for the first place, for length, for the style of answers that
# begin with "gladly". The judge then has learnt its biases from labels, as real ones do.

# %%
judge_words = judge_tokenizer()


def as_ids(prompt, answer):
    """A text and what follows it, as examples for supervised fine-tuning."""
    return judge_words.encode(prompt), judge_words.encode(answer, end=True)


assistant = toy_judge.widen(kitchen.sft, len(judge_words))
examples = [as_ids(*row) for row in demonstrations(3000, seed=1)]
examples += judge_examples(8000, seed=0, pairwise=0.65, references=0.15)
examples += revision_examples(2000, seed=0)
quiet = dict(batch_size=32, lr=2e-3, show_progress=False)
train_sft(assistant, examples, steps=500, seed=0, **quiet)


def taught_judge(dials, steps=150):
    """A judge of pairs: the assistant, taught further by a teacher with these dials."""
    model = copy.deepcopy(assistant)
    lessons = judge_examples(steps * 32, 3, dials, pairwise=1.0, references=0.0)
    train_sft(model, lessons, steps=steps, seed=3, **quiet)
    return ToyJudge(model)


DIALS = {"fair": JudgeDials(), "place": JudgeDials(position=0.7),
         "length": JudgeDials(length=0.3), "style": JudgeDials(style=1.5)}
judges = {name: taught_judge(dials) for name, dials in DIALS.items()}

rng, trials = random.Random("trials"), []
for prompt in sample_prompts(420, seed=77, held_out=True):
    two = [write_answer(prompt, rng) for _ in range(2)]
    gap = gold_reward(prompt, two[0]) - gold_reward(prompt, two[1])
    if abs(gap) >= 0.5:  # a difference that can be seen
        trials.append((prompt, *(two if gap > 0 else two[::-1])))
P, better, worse = (list(column) for column in zip(*trials, strict=True))
padded = [toy_judge.pad_answer(answer, rng) for answer in better]
print(f"{len(trials)} pairs of people's answers, held-out prompts; the better is known")
print(trials[0])
verdict = judges["fair"].verdicts(P[:1], better[:1], worse[:1])[0]
print("the fair judge, better one first, says", verdict, "→", parse_verdict(verdict))

# %% [markdown]
# **Exchange the answers.** Ask each question twice, the answers in both orders. Careful:
# a verdict names a *place*. A judge that says "A" and then, exchanged, "B" has preferred
# the same answer twice. One that says "A" both times has preferred the first place.
#
# | | exchanged: A | B | tie | no verdict |
# |---|---|---|---|---|
# | **A** | first | *consistent* | first | unreadable |
# | **B** | *consistent* | second | second | unreadable |
# | **tie** | first | second | *consistent* | unreadable |
# | **no verdict** | unreadable | unreadable | unreadable | unreadable |
#
# ### 09.4 · `position_bias` — difficulty 2 of 5, 7 minutes, 2 points
#
# <details>
# <summary>Hint 1: one pair at a time</summary>
#
# Go through `zip(verdicts, swapped)` and decide for each pair which of the four names of
# the table it gets. Test for `None` first.
#
# </details>
#
# <details>
# <summary>Hint 2: what is left</summary>
#
# Consistent are ("A", "B"), ("B", "A") and ("tie", "tie"). Of the others, those that hold
# an "A" lean to the first place, the rest to the second. Divide by the number of pairs.
#
# </details>
#
# <!-- answer: position_bias -->


# %%
def position_bias(verdicts, swapped):
    """What a judge does when the two answers change places.

    Args:
        verdicts: "A", "B", "tie" or None (no verdict) for each pair.
        swapped: the same pairs with the answers exchanged: "A" is the answer that stood
            first *in that prompt*.

    Returns:
        (consistent, first, second, unreadable): four shares of all pairs that sum to 1.

    Example: ["A", "A", "B", None] and ["B", "A", "tie", "A"] give (¼, ¼, ¼, ¼).
    """
    # SOLUTION
    counts = [0, 0, 0, 0]
    for one, two in zip(verdicts, swapped, strict=True):
        if one is None or two is None:
            counts[3] += 1
        elif (one, two) in (("A", "B"), ("B", "A"), ("tie", "tie")):
            counts[0] += 1
        elif "A" in (one, two):
            counts[1] += 1
        else:
            counts[2] += 1
    return tuple(count / len(verdicts) for count in counts)
    # END SOLUTION


# %%
position_bias = check(position_bias)

# %% [markdown]
# A verdict that turns with the places is no opinion on the answers. The simplest remedy:
# **keep only what survives the exchange.**
#
# ### 09.5 · `consistent_verdicts` — difficulty 1 of 5, 4 minutes, 1 point
#
# <details>
# <summary>Hint 1: the other letter</summary>
#
# `{"A": "B", "B": "A", "tie": "tie", None: None}` says what a verdict of the exchanged
# prompt means in the letters of the first.
#
# </details>
#
# <details>
# <summary>Hint 2: one line</summary>
#
# A list over `zip(verdicts, swapped)`: `one` where it equals the turned `two`, else
# `None`.
#
# </details>
#
# <!-- answer: consistent_verdicts -->


# %%
def consistent_verdicts(verdicts, swapped):
    """The verdicts that survive exchanging the answers; the others become None.

    Args:
        verdicts, swapped: as for position_bias.

    Returns:
        A list, one entry a pair: "A" or "B" (in the letters of ``verdicts``) or "tie"
        where both orders say so; else None.

    Example: ["A", "A", "tie", "B"] and ["B", "A", "tie", None] give
    ["A", None, "tie", None].
    """
    # SOLUTION
    turned = {"A": "B", "B": "A", "tie": "tie", None: None}
    return [one if one == turned[two] else None
            for one, two in zip(verdicts, swapped, strict=True)]
    # END SOLUTION


# %%
consistent_verdicts = check(consistent_verdicts)

# %%
whose("position_bias", "consistent_verdicts")
shares, right = {}, {}
print(f"{'':8s} one order          kept: right          kept   averaged")
for name, judge in judges.items():
    said = [[parse_verdict(text) for text in judge.verdicts(P, *order)]
            for order in ((better, worse), (worse, better))]
    shares[name] = position_bias(*said)
    kept = [v == "A" for v in consistent_verdicts(*said) if v in ("A", "B")]
    one_order = [((v == "A") + (w == "B")) / 2 for v, w in zip(*said, strict=True)]
    p, swapped = judge.compare(P, better, worse), judge.compare(P, worse, better)
    averaged = (swap_average(p, swapped) > 0.5).float()
    right[name] = one_order, kept, averaged
    of_kept = share(kept) if kept else "nothing kept"
    print(f"{name:8s} {mean(one_order)}  {of_kept:17s} "
          f"{len(kept) / len(P):5.0%}  {share(averaged)}")

# %%
figure, (left_axes, axes) = plt.subplots(1, 2, figsize=(11, 3.6), layout="constrained")
start, names = np.zeros(len(judges)), list(judges)
kinds = ("consistent", "leans to the first place", "leans to the second", "unreadable")
for i, (kind, colour) in enumerate(zip(kinds, (GREEN, ORANGE, SKY, GREY), strict=True)):
    values = np.array([shares[name][i] for name in names])
    left_axes.barh(names, values, left=start, color=colour, label=kind)
    start += values
left_axes.set(title=f"Kept after the exchange: fair judge {shares['fair'][0]:.0%}, "
                    f"place judge {shares['place'][0]:.0%}",
              xlabel="share of pairs, judged in both orders", xlim=(0, 1))
left_axes.legend(frameon=False, fontsize=8, ncol=2, loc="upper center",
                 bbox_to_anchor=(0.5, -0.2))
labels = ("one order, all pairs", "kept after exchange", "averaged, all pairs")
for i, (label, colour) in enumerate(zip(labels, (GREY, GREEN, BLUE), strict=True)):
    for row, name in enumerate(names):
        if len(right[name][i]):
            wins = [float(x) for x in right[name][i]]
            low_high = interval(wins)  # of "one order", each pair holds a mean of two
            ends = ([low_high["low"], low_high["high"]] if i == 0
                    else wilson_interval(sum(wins), len(wins)))
            axes.plot(ends, [row + 0.2 * (i - 1)] * 2, color=colour)
            axes.plot(np.mean(wins), row + 0.2 * (i - 1), "o", color=colour,
                      label=label if row == 0 else None)
axes.axvline(0.5, color=GREY, linestyle="--", linewidth=1)
gain = np.mean([float(x) for x in right["place"][2]]) - np.mean(right["place"][0])
axes.set(title=f"Averaging both orders gives the place judge {gain:+.2f}",
         xlabel="share of right verdicts (a coin: 0.5)", yticks=range(len(names)),
         yticklabels=names, xlim=(0.2, 1))
axes.legend(frameon=False, fontsize=8)
for both_axes in (left_axes, axes):
    both_axes.invert_yaxis()  # the fair judge on top, as in the table
plt.show()

# %% [markdown]
# Read the row of the judge that was taught to like the first place. Its verdicts lean to
# the first place more often than they follow the answer, and in one order they are worth
# less than the fair judge's. Yet **its probabilities still know**: averaged over both
# orders, $p$ and $1 - p'$, they are about as right as the fair judge's. Why? Let $d$ be
# the log-odds by which the judge finds the first answer better, and $c$ its constant lean
# to the first place. Then $p = \sigma(d + c)$, exchanged $p' = \sigma(-d + c)$, and
#
# $$\tfrac12\big[p + (1 - p')\big] = \tfrac12\big[\sigma(d + c) + \sigma(d - c)\big],$$
#
# which rises with $d$ and is ½ at $d = 0$ whatever $c$ is: **the mean is above ½ exactly
# where $d > 0$.** Keeping what survives costs pairs, averaging does not; the kept ones
# are the surer ones ($|d| > |c|$).
#
# Look at the fair judge, too. Nobody taught it a lean, and a good part of its verdicts
# turn with the places all the same: **where a weak judge cannot tell, it goes by the
# place**, now by the one and now by the other.
#
# *Exchanging places cannot reveal a liking for what stands in the answer*: the judge of
# style keeps most of its verdicts, and these are right as often as the fair judge's. Such
# likings take measurements of their own:
#
# - **verbosity bias**: the same answer against itself with an empty sentence added, in
#   both orders. It says nothing more, so whoever lets it win counts words.
# - **self-preference**: how much more often the judge lets *its own* answers win than
#   the truth does. (Its win rate alone shows nothing: they may be better.) Our judges
#   "own" the style that begins with "gladly".

# %%
questions = [p for p in sample_prompts(400, 31, held_out=True) if not is_summary(p)]
rng = random.Random("own")
own = [toy_judge.restyle(write_answer(p, rng)) for p in questions]
others = [toy_judge.restyle(write_answer(p, rng), "sure , ") for p in questions]
gaps = [gold_reward(p, a) - gold_reward(p, b)
        for p, a, b in zip(questions, own, others, strict=True)]
truth = [(gap > 0) + 0.5 * (gap == 0) for gap in gaps]


def both_orders(judge, prompts, first, second):
    """P(first is better), the place averaged out."""
    there = judge.compare(prompts, first, second)
    return swap_average(there, judge.compare(prompts, second, first))


print(f"{'':8s} padded answer wins     own style beyond the truth")
for name, judge in judges.items():
    longer = both_orders(judge, P, padded, better) > 0.5
    beyond = self_preference(both_orders(judge, questions, own, others), truth)
    print(f"{name:8s} {share(longer):20s}   {beyond['mean']:+.2f} "
          f"[{beyond['low']:+.2f}, {beyond['high']:+.2f}]")
references = [toy_judge.reference_answer(prompt) for prompt in P]
grader = ToyJudge(assistant)
for name, beside in (("alone", None), ("beside a reference", references)):
    grades = [grader.scores(P, answers, beside) for answers in (better, worse)]
    print(f"the assistant's single grades, {name:18s} rank "
          f"{share(grades[0] > grades[1])} of the pairs rightly")

# %% [markdown]
# Each bias stands out in its own column, far above the other judges: measure all of them.
# (The style judge's teacher liked "gladly" by 1.5 gold points, and the judge, having
# learnt it from labels, hands its own answers wins that they did not earn.) Nor are the
# others clean: they let empty sentences win now and then, which nobody taught them. The
# last two lines are of grades, given to one answer at a time. They have no place to lean
# to, and a reference in front of the answer is no help by itself: *this* judge has seen
# few of them in its lessons. Measure that, too, before you pay for references.
#
# **A real model is one argument away.** Any chat model of transformers takes the place
# of the toy:
#
# ```python
# from rlhf_minimal.large_judge import LargeJudge
# from rlhf_minimal.large_models import load_model
#
# judge = LargeJudge(*load_model("HuggingFaceTB/SmolLM2-135M-Instruct"))
# judge.compare([question], ["Eight."], ["Four."])     # P(first is better)
# judge.verdicts([question], ["Eight."], ["Four."])    # texts for parse_verdict
# ```
#
# `figures/judges.py` puts such a model through the same measurements, on twelve questions
# with a right and a wrong answer, and keeps what it found. The model is not run here,
# since it needs a download; these are its recorded numbers:

# %%
numbers = Path(toy_judge.__file__).parents[1] / "figures" / "judges.json"
real = json.loads(numbers.read_text())["SmolLM2-135M-Instruct"]
count = real["pairs"]
print(f"SmolLM2-135M-Instruct, {count} questions such as the spider's")
print("told to reply with (A) or (B) and nothing else, it says, for instance:")
for text in real["said"]:
    print(f"    {text!r:36s} → {parse_verdict(text)}")
for name, key in (("its words", "position"),
                  ("its probabilities", "position_of_probabilities")):
    print(f"{name:17s} " + ", ".join(f"{k} {v:.0%}" for k, v in real[key].items()))
for name, key in (("one order", "accuracy_one_order"),
                  ("averaged", "accuracy_both_orders")):
    low, high = wilson_interval(real[key]["mean"] * count, count)
    print(f"right, {name:10s} {real[key]['mean']:.2f} [{low:.2f}, {high:.2f}]")
print(f"mean grade of right answers {real['score_right']:.2f}, "
      f"of wrong ones {real['score_wrong']:.2f}")

# %% [markdown]
# Poor, and instructive. For most questions one reply or both hold no verdict, and by its
# probabilities it prefers the first place on *every* question: in one order it is exactly
# a coin, and nothing survives the exchange. Averaging takes the lean out, and something
# may be left of an opinion, though twelve questions cannot tell that from chance. Its
# grades do not tell right from wrong. Put *your* judge through this before you believe
# it.

# %% [markdown]
# ## 5 · Reading both answers at once
#
# A reward model gives each answer one number. So its preferences can never go round in a
# circle: from $r_a > r_b > r_c$ follows $r_a > r_c$. People's can (Tversky 1969): where
# answers differ in several ways, the pair decides which one catches the eye. A **pairwise
# ranker** (PairRM; Jiang, Ren & Lin 2023) reads prompt and *both* answers and gives each
# a score *in that company*, $s_1$ and $s_2$. With $z = 1$ where the first is better, each
# score is a classifier of its own, "this one wins":
#
# $$L = -\big[z\log\sigma(s_1) + (1-z)\log(1 - \sigma(s_1))\big]
#       -\big[(1-z)\log\sigma(s_2) + z\log(1 - \sigma(s_2))\big],$$
#
# the mean over pairs. Both orders come up in training, so that the place has nothing to
# teach. Where the model cannot tell, $L = 2\log 2 = 1.386$.
#
# ### 09.6 · `pair_ranker_loss` — difficulty 2 of 5, 5 minutes, 2 points
#
# <details>
# <summary>Hint 1: a loss you know</summary>
#
# Each bracket is `F.binary_cross_entropy_with_logits(scores, target)`; it takes the
# sigmoid and the mean itself.
#
# </details>
#
# <details>
# <summary>Hint 2: two targets</summary>
#
# The first score's target is $z$, the second one's $1 - z$. Add both.
#
# </details>
#
# <!-- answer: pair_ranker_loss -->


# %%
def pair_ranker_loss(first_scores, second_scores, first_is_better):
    """Cross-entropy of both scores: the better answer's towards 1, the other's to 0.

    Args:
        first_scores, second_scores: scores of the answer that stands first and of the
            one that stands second, shape (B,) each.
        first_is_better: z, float, 1 where the first one was preferred and else 0, (B,).

    Returns:
        A scalar in nats, the mean over pairs (the two terms of a pair are added).

    Example: scores [5, −5] and [−5, 5] with z = [1, 0] give 0.0134.
    """
    # SOLUTION
    loss, z = F.binary_cross_entropy_with_logits, first_is_better
    return loss(first_scores, z) + loss(second_scores, 1 - z)
    # END SOLUTION


# %%
pair_ranker_loss = check(pair_ranker_loss)

# %% [markdown]
# An annotator with a circular taste: to her "take …" beats "you need …", which beats
# politeness, which beats "take …"; beyond that she goes by the gold reward. Half of her
# pairs are people's answers, half say the same thing in two ways, so that the opening
# alone decides. Both models get the same pairs and the same number of steps.

# %%
whose("pair_ranker_loss")
RANKER_STEPS, SAME_THING = 200, 0.5
circular = CircularAnnotator(temperature=0.4, circle=2.0)
openings = ("take ", "you need ", "sure , you need ")


def opened(prompt, opening):
    """All that the asker needs, behind an opening."""
    return opening + toy_judge.reference_answer(prompt).removeprefix(openings[-1])


def circular_pairs(size, seed, held_out=False):
    """Pairs of answers to questions, as the circular annotator labels them."""
    rng, rows = random.Random(f"circle {seed}"), []
    for prompt in sample_prompts(size, seed, held_out, summaries=0.0):
        a, b = write_answer(prompt, rng), write_answer(prompt, rng)
        if rng.random() < SAME_THING:
            a, b = (opened(prompt, opening) for opening in rng.sample(openings, 2))
        if a != b:
            first = circular.prefers_first(prompt, a, b, rng)
            rows.append(token_pair(prompt, *((a, b) if first else (b, a))))
    return rows


circle_train, circle_test = circular_pairs(3000, 60), circular_pairs(800, 61, True)
clock = time.process_time()
pointwise = taught_reward(circle_train, steps=RANKER_STEPS, lr=2e-3)
reward_right = reward_prefers_chosen(pointwise, circle_test)
print(f"reward model    {share(reward_right)}  ({time.process_time() - clock:.0f} s)")
clock = time.process_time()
ranker = PairRanker(toy_judge.widen(kitchen.sft, len(tokenizer)))
train_pair_ranker(ranker, circle_train, steps=RANKER_STEPS, loss=pair_ranker_loss,
                  show_progress=False)
with torch.no_grad():
    three = list(zip(*circle_test, strict=True))
    there = ranker.compare(*three)
    back = ranker.compare(three[0], three[2], three[1])
ranker_right = (there[:, 0] - there[:, 1] + back[:, 1] - back[:, 0] > 0).float()
print(f"pairwise ranker {share(ranker_right)}  ({time.process_time() - clock:.0f} s)")
print(f"the ranker's lead on the same pairs: {mean(ranker_right - reward_right)}")

# Triads of answers that differ in how they open: who goes round?
triads, rounds_of = 60, dict(annotator=0, ranker=0, reward=0)
for prompt in sample_prompts(triads, 63, True, summaries=0.0):
    texts = [opened(prompt, opening) for opening in openings]
    answers = [encode(text, end=True) for text in texts]
    leads = [[circular.lead(prompt, a, b) for b in texts] for a in texts]
    rows = [[*encode(prompt), *answer] for answer in answers]
    with torch.no_grad():
        rewards = torch.cat([pointwise(torch.tensor([row]), torch.ones(1, len(row)))
                             for row in rows])
    rounds_of["annotator"] += circular_triads(leads)
    rounds_of["ranker"] += circular_triads(confidences(ranker, encode(prompt), answers))
    rounds_of["reward"] += circular_triads(rewards[:, None] - rewards)
print(f"circles among {triads} triads:",
      ", ".join(f"{name} {found}" for name, found in rounds_of.items()))

# %% [markdown]
# Where taste goes in circles, a reward model is beaten by its form: of three answers that
# go round, one number each gets two pairs right at best, however many labels there are.
# The ranker is free to follow, and here it does. But freedom alone is not enough: it has
# to learn *what to compare*. Put `SAME_THING = 0.0` (people's answers only, where the
# opening is one difference among many) and run the cell again: the same number of steps
# finds no circle, and the lead shrinks to next to nothing. The cost: $N$ answers take $N$
# readings with a reward and $N(N-1)$ of about twice the length with a ranker in both
# orders. That is one reason why policies are trained on rewards.

# %% [markdown]
# ## 6 · Constitutional AI
#
# Bai et al. (2022) replace the labels by *principles*, written down once. First the model
# criticises its own draft in the light of a principle and revises it; supervised
# fine-tuning on the revisions makes the next model. Then a judge compares answers, and
# its probabilities become preference labels. The kitchen's constitution:

# %%
for fault, (_, principle) in PRINCIPLES.items():
    print(f"{fault:10s} {principle}")
cai_prompts = sample_prompts(200, seed=90, held_out=True)


def sampled_texts(model, prompts, seed, **options):
    """One sampled answer each of a model with the judge's vocabulary, as text."""
    rows = [judge_words.encode(prompt) for prompt in prompts]
    generator = torch.Generator().manual_seed(seed)
    rollouts = sample_rollouts(model, rows, generator=generator, max_new_tokens=32,
                               end_id=judge_words.end_id, pad_id=judge_words.pad_id,
                               **options)
    return [judge_words.decode(answer) for answer in rollouts.answers()]


drafts = sampled_texts(assistant, cai_prompts, 91)
revised = critique_and_revise(assistant, cai_prompts, drafts)
for row in [row for row in revised if row.revision != row.draft][:3]:
    print("\n" + "\n".join(f"{name:9s} {prettify(text)}"
                           for name, text in row._asdict().items()))
gold_drafts = [gold_reward(row.prompt, row.draft) for row in revised]
gold_revised = [gold_reward(row.prompt, row.revision) for row in revised]
print(f"\ngold of drafts {mean(gold_drafts)}, of revisions {mean(gold_revised)}")
agreed = [row.critique == critique_by_hand(row.prompt, row.draft) for row in revised]
print("the critique is the one that the rules would give:", share(agreed))
told_fine = [f"{row.prompt} (A) {row.draft} critique fine revision" for row in revised]
for name, asked_for in (("answers, likeliest words", cai_prompts),
                        ("revisions, told \"fine\"", told_fine)):
    texts = sampled_texts(assistant, asked_for, 94, temperature=0)
    print(f"gold of {name}: {mean(map(gold_reward, cai_prompts, texts))}")

# %% [markdown]
# Each step is a generation of the same small model. Before you believe in the leap, take
# it apart. Drafts are sampled, and revisions are made of the likeliest words: that alone
# lifts plain answers part of the way (the line before the last). And the last line: put
# the critique "fine" into its mouth, which asks for nothing, and the revision is as good.
# **This model does not read its critique.** It was taught both formats on people's
# drafts, with critiques by rule and *flawless* revisions; so "revision" has come to mean
# "now write the flawless answer", and what these lessons knew came in with them. Bai et
# al. left the critique out, too: it helped their small models, and the large ones hardly.
# The test is cheap: break the step that should carry the gain, and see whether the gain
# stays.
#
# However it comes about, it can be made a habit: fine-tune a copy on its revisions of
# *new* prompts, so that it answers so without being asked twice. Here both are sampled.

# %%
study = sample_prompts(500, seed=92)
loop = critique_and_revise(assistant, study, sampled_texts(assistant, study, 93))
habit = copy.deepcopy(assistant)
own_words = [as_ids(row.prompt, row.revision) for row in loop if row.revision.strip()]
train_sft(habit, own_words, steps=60, seed=0, **quiet | dict(lr=1e-3))
gold_habit = [gold_reward(p, a) for p, a in
              zip(cai_prompts, sampled_texts(habit, cai_prompts, 91), strict=True)]
print(f"gold, answering at once: before {mean(gold_drafts)}, after {mean(gold_habit)}")

# %% [markdown]
# The second half: **AI preferences**. The judge is asked which of two answers is better
# and may say many things; only the probabilities of "(A)" and "(B)" are looked at, and
# normalised:
#
# $$P(\text{first is better}) = \frac{p_A}{p_A + p_B}
#   = \frac{1}{1 + e^{-(\log p_A - \log p_B)}} = \sigma(\log p_A - \log p_B).$$
#
# A **soft label**: it keeps how sure the judge was. And since logits are
# log-probabilities up to a constant that all words share, logits will do as well.
#
# ### 09.7 · `soft_preference` — difficulty 1 of 5, 4 minutes, 1 point
#
# <details>
# <summary>Hint 1: the formula's right end</summary>
#
# The arguments are logarithms already; the difference of the two goes into
# `torch.sigmoid`.
#
# </details>
#
# <details>
# <summary>Hint 2: why not exp?</summary>
#
# A judge that was about to say "Well" gives "(A)" and "(B)" a probability of $e^{-300}$
# each. In float32 that is 0, and 0/0 is NaN; the difference of the logarithms is fine.
#
# </details>
#
# <!-- answer: soft_preference -->


# %%
def soft_preference(log_prob_a, log_prob_b):
    """P(first is better) from the probabilities of "(A)" and "(B)": p_A/(p_A + p_B).

    Args:
        log_prob_a, log_prob_b: log-probabilities (or logits) of the two words, (B,).

    Returns:
        Probabilities, shape (B,); 0.5 where the judge cannot tell. Right also where
        both words are next to impossible.

    Example: log 0.06 and log 0.02 give 0.75.
    """
    # SOLUTION
    return torch.sigmoid(log_prob_a - log_prob_b)
    # END SOLUTION


# %%
soft_preference = check(soft_preference)

# %% [markdown]
# Are soft labels worth more than hard ones? Hold both against the truth on our held-out
# pairs, by log-loss: what a label costs, in nats, where the better answer turns out to be
# the other one. A coin costs $\log 2 = 0.693$. A hard label must not say "certain": we
# give it the confidence that fits it best *on these very pairs*, its own accuracy.

# %%
whose("soft_preference")
plain_compare = toy_judge.soft_preference
toy_judge.soft_preference = soft_preference  # the judge reads with yours


def nats(p):
    """Log-loss of P(the better one is better)."""
    return -torch.as_tensor(p, dtype=torch.float64).clamp(1e-6, 1 - 1e-6).log()


for name, judge in judges.items():
    there, back = judge.compare(P, better, worse), judge.compare(P, worse, better)
    one, fair_p = torch.cat([there, 1 - back]), swap_average(there, back)
    acc = (fair_p > 0.5).double().mean()
    hard = torch.where(fair_p > 0.5, acc, 1 - acc)
    print(f"{name:8s} log-loss: soft, one order {nats(one).mean():.3f}; soft, both "
          f"{nats(fair_p).mean():.3f}; hard, both {nats(hard).mean():.3f}; "
          f"hard − soft {mean(nats(hard) - nats(fair_p))}")
judged = both_orders(judges["fair"], [r.prompt for r in loop],
                     [r.revision for r in loop], [r.draft for r in loop])
print(f"the fair judge on revision against draft: mean P = {judged.mean():.2f}")
toy_judge.soft_preference = plain_compare

# %% [markdown]
# These probabilities can go straight into a loss: Bradley–Terry's likelihood with a soft
# target, $-p\log\sigma(r_1 - r_2) - (1 - p)\log\sigma(r_2 - r_1)$ (`soft_pairwise_loss`
# in `rlhf_minimal/ai_feedback.py`). Whether they help is a matter of **calibration**
# (lesson 05). Averaged over both orders every judge pays less: it must, since $-\log$ is
# convex. After that, soft and hard labels cost nearly the same, now one less and now the
# other; and our hard labels had their confidence fitted on the very pairs of the test,
# which nobody can do in earnest. Look at the judge of length. Its soft labels cost more
# than a coin's. Its hard ones are cheaper only because their confidence, its accuracy, is
# below ½: they speak *against* its own verdicts. To keep how sure a judge was is worth
# something only where being sure goes with being right.

# %% [markdown]
# ## 7 · Self-rewarding
#
# If a model can answer *and* judge, does it need anybody? Yuan et al. (2024): M0 is a
# base model, M1 is taught both. It answers each prompt $N$ times and grades each answer
# several times (one reading is a noisy grade); best and worst make a pair; DPO on the
# pairs, from M1, gives M2; the same from M2 gives M3. Our M0 is the kitchen's base model,
# our M1 the assistant of section 4. (They let the model write new prompts, too; ours come
# from the kitchen.) We go one round further than they did.
#
# ### 09.8 · `self_rewarding_pairs` — difficulty 2 of 5, 6 minutes, 2 points
#
# <details>
# <summary>Hint 1: one score an answer</summary>
#
# `scores.mean(-1)` averages the judgings; then a loop over prompts with `argmax` and
# `argmin`, which take the first of equals (`int(...)` makes a place of it).
#
# </details>
#
# <details>
# <summary>Hint 2: what gives no pair</summary>
#
# Two tests before you append: the best score is really larger than the worst, and the
# two answers are different texts.
#
# </details>
#
# <!-- answer: self_rewarding_pairs -->


# %%
def self_rewarding_pairs(prompts, candidates, scores):
    """Each prompt's best and worst answer by the model's own scores, as a pair.

    Args:
        prompts: P prompts, each a list of token ids.
        candidates: for each prompt its N answers, each a list of token ids.
        scores: shape (P, N, S): S grades an answer, which are averaged.

    Returns:
        A list of (prompt, chosen, rejected), P at most, in the prompts' order. A prompt
        whose best and worst mean are equal gives none, nor does one whose two answers
        are the same text. Of equal means the earlier answer stands.

    Example: prompts [[7]], candidates [[[1], [2], [3]]] and scores
    [[[4, 2], [5, 5], [1, 0]]] give [([7], [2], [3])].
    """
    # SOLUTION
    pairs = []
    for prompt, answers, row in zip(prompts, candidates, scores.mean(-1), strict=True):
        best, worst = int(row.argmax()), int(row.argmin())
        if row[best] > row[worst] and answers[best] != answers[worst]:
            pairs.append((prompt, answers[best], answers[worst]))
    return pairs
    # END SOLUTION


# %%
self_rewarding_pairs = check(self_rewarding_pairs)

# %%
whose("self_rewarding_pairs")
eyes = sample_prompts(300, seed=95, held_out=True)


def make_pairs(prompts, candidates, scores):
    """Yours, as the package's loop wants it."""
    rows = self_rewarding_pairs(prompts, candidates, scores)
    return [TokenPair(*row) for row in rows]


def rounds(seed, number, **options):
    """Gold rewards of M0, M1, M2, …, and what each round's own grades were worth."""
    model, worth = assistant, []
    golds = [gold_of(m, eyes, seed) for m in (kitchen.base, assistant)]
    for i in range(number):
        prompts = sample_prompts(150, seed=1000 * seed + i)
        found = self_rewarding_round(model, prompts, make_pairs=make_pairs, seed=seed,
                                     show_progress=False, **options)
        model = found.model
        golds.append(gold_of(model, eyes, seed))
        worth.append((found.agreement, len(found.pairs)))
    return golds, worth


GENTLY, HARD = dict(steps=20, lr=5e-4), dict(steps=40, lr=1e-3, beta=0.1)
histories = {"gently (20 steps, lr 5e-4)": [rounds(s, 3, **GENTLY) for s in (1, 2, 3)],
             "hard (40 steps, lr 1e-3)": [rounds(1, 2, **HARD)]}
for name, runs in histories.items():
    print(name)
    for golds, worth in runs:
        print("   gold", " → ".join(mean(g) for g in golds))
        print("   best above worst, by gold:",
              ", ".join(f"{share_:.0%} of {n} pairs" for share_, n in worth))

# %%
figure, axes = plt.subplots(figsize=(6.6, 3.5), layout="constrained")
for (name, runs), colour in zip(histories.items(), (BLUE, RED), strict=True):
    for i, (golds, _) in enumerate(runs):
        ends = [interval(g) for g in golds]
        axes.errorbar(np.arange(len(golds)) + 0.03 * i, [e["mean"] for e in ends],
                      [1.96 * e["se"] for e in ends], fmt="o-", color=colour, capsize=3,
                      linewidth=1.5, label=name if i == 0 else None)
gentle, hard = ([np.mean([np.mean(golds[i]) for golds, _ in runs])
                 for i in range(len(runs[0][0]))] for runs in histories.values())
axes.set(title=f"M1 {gentle[1]:.1f}: two gentle rounds make {gentle[3]:.1f}, "
               f"a third {gentle[4]:.1f}; two hard ones {hard[3]:.1f}",
         xlabel="model", ylabel="gold reward, held-out prompts", xticks=range(5),
         xticklabels=["M0 (base)", "M1", "M2", "M3", "M4"])
axes.spines[["top", "right"]].set_visible(False)
axes.legend(frameon=False, loc="lower left")
plt.show()

# %% [markdown]
# **It works, and then it stalls.** The largest step is M0 → M1, and that one is people's
# demonstrations. After it, two gentle rounds help with every seed: even grades that put
# the better answer first in six or seven pairs of ten carry a direction, and DPO averages
# over more than a hundred of them. The third round takes back what they gave, or most of
# it. Read the lines "best above worst" to see why: nobody has told the model anything
# new, its judge has learnt nothing since M1, and once the easy faults are gone, its
# grades put the better answer first little more often than a coin. What is left to learn
# are the judge's own mistakes (lesson 06's over-optimisation, with the model as its own
# reward model). Pushed hard, it gets there in two rounds and falls below M0.
#
# How many rounds were worth it, only the gold reward shows: one round fewer, and this
# would have been a story of steady progress. Without a gold reward, what would you watch?

# %% [markdown]
# ## 8 · Bug hunt: the new model is always better
#
# A colleague compares models with a judge. Each time somebody trains a new model, it
# beats the old one. The whole team is glad. Here is the code as found:


# %%
def win_rate_as_found(judge, prompts, new_answers, old_answers):
    """How often the judge prefers the new model's answer."""
    said = judge.verdicts(prompts, new_answers, old_answers)
    return [parse_verdict(text) == "A" for text in said]


again = [sampled_texts(assistant, cai_prompts, seed) for seed in (96, 97)]
for name, judge in judges.items():
    print(f"{name:8s} the same model against itself: "
          f"{share(win_rate_as_found(judge, cai_prompts, *again))}")

# %% [markdown]
# **Find it** before you read on. Both columns of answers are samples of *one* model: the
# win rate must be ½.
#
# **Understand it.** The new answers always stand first. A judge that likes the first
# place praises whatever is new, and one that likes the second buries it: compare the
# rows. **Mend it** with
# `consistent_verdicts`; what does not survive, or is a tie, counts one half:


# %%
def win_rate_mended(judge, prompts, new_answers, old_answers):
    """How often the judge prefers the new model's answer, in whatever place."""
    orders = (new_answers, old_answers), (old_answers, new_answers)
    said = [[parse_verdict(t) for t in judge.verdicts(prompts, *two)] for two in orders]
    return [{"A": 1.0, "B": 0.0}.get(v, 0.5) for v in consistent_verdicts(*said)]


whose("consistent_verdicts")
for name, judge in judges.items():
    itself = win_rate_mended(judge, cai_prompts, *again)
    new = [row.revision for row in revised]
    revisions = win_rate_mended(judge, cai_prompts, new, drafts)
    print(f"{name:8s} against itself {mean(itself)}   revisions against drafts "
          f"{mean(revisions)}")

# %% [markdown]
# *How would you notice?* Let a model play against itself before it plays against anyone.
# It costs one run, and no other test is as hard to argue with. Look at the right column,
# too. What does not survive counts ½, so a judge that often has no opinion says little,
# also of revisions that are much better (section 6 knows by how much). And the judge of
# length passes the test against itself, and is wrong about the revisions, most of which
# are shorter. **Exchanging places mends the place, and nothing else.**

# %% [markdown]
# ## 9 · To discuss
#
# 1. Two annotators have κ = 0.35. One colleague wants to throw the data away, the
#    other to train on it. Whom do you follow?
#
# <details>
# <summary>What we think</summary>
#
# Neither, yet. Look at the pairs on which they differ. If these are close calls, the
# noise costs labels, not direction (lesson 05's ceilings). If one of them wants
# something else, you have two tastes, and must decide whose. If one of them does not
# read, drop that file. κ alone cannot tell these apart.
#
# </details>
#
# 2. Your judge model agrees with people on 80% of the pairs, as often as people
#    agree with each other. May it replace them?
#
# <details>
# <summary>What we think</summary>
#
# Not by that number alone. People's errors scatter, a judge's all lean one way: length,
# place, its own style. A policy trained against it will find the lean. Measure the
# biases, and keep people for a sample, above all of what the *trained* policy writes.
#
# </details>
#
# 3. Only verdicts that survive the exchange are kept. What does that do to the data?
#
# <details>
# <summary>What we think</summary>
#
# It keeps the easy pairs. The model learns from clear cases and is never shown close
# ones; the accuracy on kept pairs says nothing about the rest. Averaged soft labels
# keep the close ones at p near ½, where they weigh little but are there.
#
# </details>
#
# 4. Who writes the constitution?
#
# <details>
# <summary>What we think</summary>
#
# Labelling hides that question among thousands of clicks; principles put it on one page,
# which can be read, and disputed. That is a gain. But a page says little about how two
# principles are weighed where they collide; the judge model decides that, unasked.
#
# </details>
#
# 5. Could self-rewarding go on for ever, if only each round were gentle enough?
#
# <details>
# <summary>What we think</summary>
#
# Something must get better at judging, or come in from outside. Where *checking* is
# easier than *doing*, the judge is ahead of the writer and there is something to climb,
# up to the judge's level. Where an outside check exists (a calculation, a test that
# runs), lesson 10 uses it in place of the judge.
#
# </details>
#
# ## What to read next
#
# - J. Cohen, *A coefficient of agreement for nominal scales*, 1960; J. Fleiss, *Measuring
#   nominal scale agreement among many raters*, 1971.
# - L. Zheng et al., *Judging LLM-as-a-judge with MT-Bench and Chatbot Arena*, 2023, arXiv
#   2306.05685: the three settings, the biases, consistency under swapping.
# - D. Jiang, X. Ren & B. Y. Lin, *LLM-Blender*, 2023, arXiv 2306.02561: PairRM;
#   A. Tversky, *Intransitivity of preferences*, 1969.
# - Y. Bai et al., *Constitutional AI: harmlessness from AI feedback*, 2022, arXiv
#   2212.08073.
# - W. Yuan et al., *Self-rewarding language models*, 2024, arXiv 2401.10020.
# - L. Ouyang et al., *Training language models to follow instructions with human
#   feedback*, 2022, arXiv 2203.02155: how rankings were collected, and agreement.
# - Label Studio: labelstud.io, its documentation of `Ranker` and `List`.
# - The package's `labelling.py`, `agreement.py`, `ai_feedback.py`, `toy_judge.py`,
#   `constitution.py`, `self_rewarding.py` and `pair_ranker.py`: this lesson in code.
#
# **Next: lesson 10.** Rewards that nobody has to judge, because they can be checked,
# and a policy gradient that needs no critic.

# %%
print(f"{time.process_time():.0f} seconds of CPU time in this notebook so far")
