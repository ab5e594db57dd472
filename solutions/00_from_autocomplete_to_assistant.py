# %% [markdown]
# # 00 · From autocomplete to assistant
#
# *Why this matters: a model that has read everything still does not know that you want
# an answer. What turned such models into assistants is three steps, and you run all
# three before this lesson is over.*
#
# **You will be able to**
#
# - show why predicting the next word is not the same as following an instruction;
# - turn a labelled example into a prompt and a response;
# - name four things that imitating good answers cannot teach;
# - say why nobody can write down a loss for "helpful, honest and harmless", and why
#   people are asked to compare instead;
# - turn a ranking into pairs, measure a win rate, and draw the three steps of RLHF.
#
# **It assumes** Python, a first look at PyTorch tensors, and that you have heard what a
# language model is. Everything else comes in the lessons after this one.
#
# | | |
# |---|---|
# | reading | 27 minutes |
# | coding | 18 minutes, three exercises, 6 points |
# | computing | under two minutes on a CPU; the last cell says how much it was |
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
import math
import random
import time
from collections import Counter
from itertools import pairwise

import matplotlib.pyplot as plt
import torch

from autograder import check
from rlhf_minimal import gold_reward, toy_world
from rlhf_minimal.kitchen import Kitchen, KitchenSizes, interval
from rlhf_minimal.pairs import TokenPair
from rlhf_minimal.plots import COLOURS
from rlhf_minimal.preferences import Preference
from rlhf_minimal.rlhf import train_rlhf
from rlhf_minimal.rollouts import best_of_n
from rlhf_minimal.tokenizer import prettify

torch.set_num_threads(1)  # a model this small only loses time to a second thread


def whose(function):
    """Yours where it was right, else the course's."""
    return "your" if function.__module__ == "__main__" else "the course's"


# %% [markdown]
# ## 1 · Predicting the next word is not answering
#
# Our world is a **kitchen**: ten dishes, some 150 words, and a small transformer with
# about a hundred thousand weights. It is small enough to train while you read, and most
# of what this course says about large models you will see happen to it.
#
# A **base model** is trained on documents to predict the next word, and on nothing
# else. Here are a few of its documents. Look at what comes after the first question
# mark.

# %%
kitchen = Kitchen(seed=0, sizes=KitchenSizes())
documents = toy_world.base_corpus(kitchen.sizes.documents, kitchen.seed)
after_question = []
for question in toy_world.question_prompts():
    found = [text for text in documents if text.startswith(f"{question} ")]
    after_question += [text.removeprefix(question).strip() for text in found]
    if question.startswith("what do i need"):
        print(f"{question} | {after_question[-1]}")
print(f"{len(after_question)} of {len(documents)} documents begin with a question")

# %% [markdown]
# As on the web, a question may be followed by more context, by other questions, as in a
# list of frequent ones, or by an answer. (The other documents begin with a post and go
# on with a comment or a summary.) Training takes some seconds.

# %%
history = kitchen.train_base()
first, last = history["loss"][0], history.mean("loss", last=30)
print(f"loss {first:.2f} -> {last:.2f} nats a word, in {len(history)} steps")


# %% [markdown]
# Now we ask it, three hundred times, and sort what it says by how it begins. The
# question is one that no document holds: what comes is not learned by heart.

# %%
def kind_of(text):
    """What a continuation of a question does, told by its first words."""
    first = text.split()[0] if text else ""
    if first in ("for", "with", "without"):
        return "more context"
    if first in ("how", "what", "can") or text.startswith("i want"):
        return "another question"
    if first in ("take", "you", "sure", "of", "gladly"):
        return "an answer"
    return "something else"


def continuations(model, samples=300):
    """What the model writes after the prompt, many times over."""
    answers = kitchen.answers(model, [PROMPT] * samples, seed=1)
    return [kitchen.tokenizer.decode(answer) for answer in answers]


PROMPT = "how do i make pizza ?"
KINDS = ("more context", "another question", "an answer", "something else")
assert not any(PROMPT in text for text in documents)
written = continuations(kitchen.base)
counts = Counter(map(kind_of, written))
for kind in KINDS:
    print(f"{kind}: {counts[kind]} of {len(written)}")
    examples = list(dict.fromkeys(text for text in written if kind_of(text) == kind))
    for text in examples[:3]:
        print(f"    How do i make pizza? | {prettify(text)}")

# %% [markdown]
# Nothing is broken here. The model does what it was trained for: it goes on as a
# document might go on. That *you* would like a recipe is written nowhere in its loss,
#
# $$\mathcal{L}(\theta) = -\sum_t \log \pi_\theta(x_t \mid x_{<t}),$$
#
# which asks one thing only: how likely was the next word of this text?
#
# The gap is not one of size. Ouyang et al. (2022, abstract) had people compare answers:
# they preferred those of a model with 1.3 billion parameters that had been trained to
# follow instructions to those of the 175-billion-parameter model that had not.

# %% [markdown]
# ## 2 · Instruction tuning
#
# The plainest remedy is to show the model what answering looks like. Answers need not
# be written from nothing: decades of research left **labelled data sets**, and each
# labelled example becomes an instruction, an input and an expected output. Wei et al.
# (2022, section 2.1) turned 62 data sets into instructions with templates, and their
# model got better at tasks that were *not* among them.
#
# | | sentiment | entailment |
# |---|---|---|
# | input | "the soup was cold" | "mia bakes a cake", "mia cooks" |
# | label | 1 | 0 |
# | instruction | Is this positive or negative? | Does the first entail the second? |
# | expected output | "negative" | "yes" |

# %% [markdown]
# ### 00.1 · `to_instruction` — difficulty 1 of 5, 7 minutes, 2 points
#
# Turn a labelled example into the two texts that a language model is tuned on: a
# **prompt** that is given, and a **response** that is learned. Two details decide
# whether this works on real data:
#
# - *The space belongs to the response.* Prompt and response are glued together. In most
#   tokenizers a word takes the space before it along, so a prompt that ends in a space
#   ends in a token that no text has there.
# - *Some examples have no label.* In SNLI, the best-known entailment data set, five
#   people labelled an example, and where no three agreed it has none (Bowman et al.
#   2015, on data validation: about 2% of them). Files write that as −1, and Python is
#   glad to look up `label_names[-1]`.
#
# <details>
# <summary>Hint 1: where to begin</summary>
#
# First send away what has no label: `raise ValueError(...)` unless the label is one of
# 0, 1, …, `len(label_names) - 1`. Then build the prompt as a list of lines.
#
# </details>
#
# <details>
# <summary>Hint 2: the shape of the code</summary>
#
# `fields.items()` gives name and text in their order, for lines such as
# `f"{name}: {text}"`. The list of lines is the instruction, an empty line, the fields,
# an empty line, `"Answer:"`; then `"\n".join(lines)`.
#
# </details>


# %%
def to_instruction(instruction, fields, label, label_names):
    """A prompt and a response from one labelled example.

    Args:
        instruction: what to do, one line.
        fields: the example's inputs in their order, {name: text}.
        label: the number of the right answer, counted from 0.
        label_names: what the numbers stand for, a list of strings.

    Returns:
        (prompt, response), two strings. The prompt is the instruction, an empty line,
        a line "name: text" for each field, an empty line, and "Answer:" without a space
        behind it. The response is a space and the label's name.

    Raises:
        ValueError: the label is not among 0, 1, ..., len(label_names) - 1.

    Example: to_instruction("Is this review positive or negative?",
        {"Review": "the soup was cold"}, 1, ["positive", "negative"]) is
        ("Is this review positive or negative?\n\nReview: the soup was cold\n\nAnswer:",
         " negative").
    """
    # SOLUTION
    if not 0 <= label < len(label_names):
        raise ValueError(f"label is {label}; it must be 0 to {len(label_names) - 1}")
    lines = [instruction, ""]
    for name, text in fields.items():
        lines.append(f"{name}: {text}")
    lines += ["", "Answer:"]
    return "\n".join(lines), " " + label_names[label]
    # END SOLUTION


# %%
to_instruction = check(to_instruction)

# %% [markdown]
# <!-- answer: to_instruction -->
#
# Here it is at work on a handful of examples, one of which has no label.

# %%
ENTAILMENT = "Does the premise entail the hypothesis?"
VERDICTS = ["yes", "it is not possible to tell", "no"]
EXAMPLES = [
    ("mia bakes a cake", "mia cooks", 0),
    ("the dog stole the burger", "the dog is happy", 1),
    ("the shop was closed", "tom bought milk there", 2),
    ("it was a long day", "it was a good day", -1),
]
print(f"with {whose(to_instruction)} to_instruction\n")
for premise, hypothesis, label in EXAMPLES:
    fields = {"Premise": premise, "Hypothesis": hypothesis}
    try:
        prompt, response = to_instruction(ENTAILMENT, fields, label, VERDICTS)
        print("  ".join((prompt + response).split("\n")))
    except ValueError as error:
        print(f"left out: {error}")

# %% [markdown]
# Tuned on such texts, or on answers that people wrote for the purpose, a base model
# becomes an **SFT model** (supervised fine-tuning): the same loss as before, counted on
# the words of the response only. In the kitchen the demonstrations look like this.

# %%
for prompt, answer in toy_world.demonstrations(6, seed=0):
    print(f"{prompt}\n    {prettify(answer)}")

# %% [markdown]
# A copy of the base model, trained on a few thousand of them:

# %%
history = kitchen.train_sft()
first, last = history["loss"][0], history.mean("loss", last=30)
print(f"loss {first:.2f} -> {last:.2f} nats a word, in {len(history)} steps")

# %%
sources = {
    "the documents": (after_question, "#999999"),
    "base model": (written, COLOURS["base"]),
    "SFT model": (continuations(kitchen.sft), COLOURS["SFT"]),
}
shares = {
    name: [sum(kind_of(text) == kind for text in texts) / len(texts) for kind in KINDS]
    for name, (texts, _) in sources.items()
}
figure, axes = plt.subplots(figsize=(7.5, 3.4), layout="constrained")
for place, (name, share) in enumerate(shares.items()):
    x = [position + 0.27 * (place - 1) for position in range(len(KINDS))]
    bars = axes.bar(x, share, width=0.25, color=sources[name][1], label=name)
    axes.bar_label(bars, [f"{value:.0%}" for value in share], fontsize=8, padding=1)
answered = {name: share[KINDS.index("an answer")] for name, share in shares.items()}
axes.set(
    title="“How do i make pizza?” is answered by the base model "
    f"{answered['base model']:.0%} of the time,\nby the SFT model "
    f"{answered['SFT model']:.0%}",
    ylabel="share of continuations",
    ylim=(0, 1.12),
)
axes.set_xticks(range(len(KINDS)), KINDS)
axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
axes.spines[["top", "right"]].set_visible(False)
axes.legend(frameon=False)
plt.show()

# %% [markdown]
# Compare the first two bars of each group: the base model has learned roughly how often
# each kind follows in its documents, and repeats it. Fine-tuning moved that habit, with
# the same loss and other texts.

# %% [markdown]
# ## 3 · What imitation cannot do
#
# If showing good answers is enough, the course ends here. It does not, for four
# reasons.
#
# 1. **Demonstrations are expensive.** Somebody has to *write* each one. Ouyang et al.
#    (2022, sections 3.2 and 3.4) hired about 40 people, and had some 13,000 prompts for
#    this step.
# 2. **Often there is no single right answer.** To "write a poem about soup" there are
#    countless good answers. The loss knows one of them and counts every other as wrong.
# 3. **Every word weighs the same.** One wrong ingredient spoils a recipe, but to the
#    loss it is one word among many, no worse than "take" in the place of "you need".
# 4. **There is only praise.** A demonstration says "like this". Nothing ever says "not
#    like that", so whatever the model makes up by itself goes uncorrected.
#
# Two of these we can measure, because in the kitchen, and only there, we know what an
# answer is worth. The **gold reward** adds up parts that you can check by eye; lesson
# 05 comes back to it.

# %%
GOOD = "take dough , tomato and cheese . bake it well ."
OTHER_WORDS = "you need dough , tomato and cheese . bake it well ."
WRONG = "take dough , pickle and cheese . bake it well ."
for answer in (GOOD, OTHER_WORDS, WRONG):
    parts = gold_reward.gold_parts(PROMPT, answer)
    named = ", ".join(f"{name} {value:g}" for name, value in parts.items() if value)
    print(f"{sum(parts.values()):5.2f}  {prettify(answer)}\n       {named}")

# %% [markdown]
# Other words for the same advice cost nothing; one wrong ingredient costs a good part
# of the reward. To the loss of a demonstration the two are alike: words that are not
# the expected ones.
#
# And this is what imitation gives: the writers of our demonstrations make mistakes, as
# people do, and the model has no reason to make fewer.

# %%
teachers = toy_world.demonstrations(1000, seed=0)
questions = [prompt for prompt, _ in teachers]
pupil = kitchen.answers(kitchen.sft, questions, seed=2)
by_writers = interval([gold_reward.gold_reward(*pair) for pair in teachers])
pupils = zip(questions, pupil, strict=True)
by_model = interval([kitchen.gold(*pair) for pair in pupils])
for name, gold in (("people who wrote", by_writers), ("SFT model", by_model)):
    print(f"{name:<17} mean gold reward {gold['mean']:.2f}", end="")
    print(f"  (95% interval {gold['low']:.2f} to {gold['high']:.2f})")

# %% [markdown]
# ## 4 · Helpful, honest, harmless
#
# What would we like instead? Askell et al. (2021, introduction) put it in three words:
#
# - **helpful**: it does what was asked, briefly, and asks back where the question is
#   unclear;
# - **honest**: what it says is right, and it knows, and says, what it does not know;
# - **harmless**: it does not offend, and does not help anybody do damage.
#
# Try to write one of them as a loss, that is, as a differentiable function of the words
# of an answer. Which function is small when a text is helpful? Counting words of an
# expected answer does not do it: "the soup is *not* spoiled" shares most of its words
# with "the soup is spoiled". Whether an answer helps depends on who asked, and what
# for. And the three pull at each other: an assistant that refuses everything is
# harmless and useless (Bai et al. 2022, introduction, on helpfulness against
# harmlessness).
#
# So we have a goal that nobody can write down, and that nearly everybody recognises
# when they see it. That is the idea of RLHF in one sentence: **if people can judge what
# they cannot specify, let the model learn from their judgement.**

# %% [markdown]
# ## 5 · Three kinds of feedback
#
# | a person | which is a | and says | its weakness |
# |---|---|---|---|
# | writes an answer | **demonstration** | "do this" | slow, limited by own skill |
# | scores one answer | **rating** | "this is a 7" | whose 7? |
# | orders several | **ranking** | "this before that" | by how much, it does not say |
#
# A ranking of $n$ answers holds a comparison for every two of them,
#
# $$\binom{n}{2} = \frac{n(n-1)}{2},$$
#
# so that somebody who has read four answers has given six labels. Ouyang et al. (2022,
# section 3.5) had 4 to 9 answers ranked at a time.

# %% [markdown]
# ### 00.2 · `pairs_from_ranking` — difficulty 1 of 5, 5 minutes, 2 points
#
# Write down all comparisons that a ranking holds. One comparison is a
# `Preference(prompt, chosen, rejected)`; it refuses two answers that are the same.
#
# <details>
# <summary>Hint 1: where to begin</summary>
#
# Write the pairs of `["a", "b", "c"]` on paper: a over b, a over c, b over c. Each
# answer is chosen over every answer that stands *after* it.
#
# </details>
#
# <details>
# <summary>Hint 2: the shape of the code</summary>
#
# Two loops, the second over `best_to_worst[place + 1:]` where
# `place, better in enumerate(best_to_worst)`. Or look up `itertools.combinations`: it
# keeps the order of what it is given.
#
# </details>


# %%
def pairs_from_ranking(prompt, best_to_worst):
    """All n(n - 1)/2 comparisons that a ranking of n answers holds.

    Args:
        prompt: what was asked, a string.
        best_to_worst: n different answers, the best first; it is not changed.

    Returns:
        A list of Preference(prompt, chosen, rejected), in any order; chosen stands
        before rejected in the ranking.
    """
    # SOLUTION
    pairs = []
    for place, better in enumerate(best_to_worst):
        for worse in best_to_worst[place + 1 :]:
            pairs.append(Preference(prompt, better, worse))
    return pairs
    # END SOLUTION


# %%
pairs_from_ranking = check(pairs_from_ranking)

# %% [markdown]
# <!-- answer: pairs_from_ranking -->

# %% [markdown]
# ### 00.3 · `win_rate` — difficulty 2 of 5, 6 minutes, 2 points
#
# Comparisons are also how models are *measured*. Two models answer the same prompts, a
# judge looks at both answers, and the **win rate** is the share of prompts on which
# ours is the better one. A tie counts one half:
#
# $$\text{win rate} = \frac{\text{wins} + \tfrac12\,\text{ties}}{B} .$$
#
# With one half, a model has a win rate of exactly ½ against itself, and the win rates
# of two opponents add up to 1. Count ties in any other way, and both are lost.
#
# <details>
# <summary>Hint 1: where to begin</summary>
#
# `scores > opponent_scores` is a tensor of `True` and `False`, one for each prompt. A
# second such tensor says where there is a tie.
#
# </details>
#
# <details>
# <summary>Hint 2: the shape of the code</summary>
#
# Turn both into numbers with `.float()`, add them with the weights of the equation, and
# take the mean. `.item()` makes a Python number of a tensor that holds just one.
#
# </details>


# %%
def win_rate(scores, opponent_scores):
    """The share of prompts on which our answer scores higher, a tie counting one half.

    Args:
        scores: the judge's scores of our answers, shape (B,).
        opponent_scores: of the opponent's answers to the same prompts, shape (B,).

    Returns:
        (wins + ties / 2) / B, a number from 0 to 1.

    Example: scores [3, 1, 2, 2] against [1, 3, 2, 0] are two wins, a loss and a tie:
        0.625.
    """
    # SOLUTION
    wins = (scores > opponent_scores).float()
    ties = (scores == opponent_scores).float()
    return (wins + 0.5 * ties).mean().item()
    # END SOLUTION


# %%
win_rate = check(win_rate)

# %% [markdown]
# <!-- answer: win_rate -->

# %% [markdown]
# ### Whose 7? Why people are asked to compare
#
# Suppose that every answer has a quality, and that people see it through some fog.
# Asked for a score, each of them must first choose a *scale*: one gives a 7 to what is
# merely edible, another keeps the 7 for the meal of a lifetime. Asked which of two is
# better, they need no scale at all: it is the same in both answers, and drops out.
#
# Below are raters with a private offset and a private spread. Their fog is *equally
# thick* in all three ways of asking, so what differs is the scale alone. For each of
# many pairs of answers we ask in which order the labels put them:
#
# - **two raters**, each of whom scores one of the answers, as happens when answers are
#   handed out to many people;
# - **one rater** who scores both answers, from 1 to 10;
# - **one rater** who says which is better.

# %%
generator = torch.Generator().manual_seed(0)
PAIRS = 20_000
FOG = 0.5  # standard deviation of what a rater sees, where qualities have 1


def normal(*shape, std=1.0):
    return std * torch.randn(shape, generator=generator)


def rater():
    """A private offset and a private spread for each pair."""
    return normal(PAIRS, std=1.5), normal(PAIRS, std=0.4).exp()


def score(seen, offset, spread):
    """What a rater writes down: 1 to 10, whole numbers."""
    return (5.5 + offset + 1.5 * spread * seen).round().clamp(1, 10)


quality = normal(PAIRS, 2).sort(-1, descending=True).values  # the better answer first
better, worse = (quality + normal(PAIRS, 2, std=FOG)).T  # as they are seen
anna, ben = rater(), rater()
ways = {
    "two raters\nscore one each": (score(better, *anna), score(worse, *ben)),
    "one rater\nscores both": (score(better, *anna), score(worse, *anna)),
    "one rater\ncompares": (better, worse),
}
right_order = {way: float(win_rate(*seen)) for way, seen in ways.items()}
for way, share in right_order.items():
    print(f"{way.replace(chr(10), ' '):<27} right order {share:.1%}")

# %% cellView="form" jupyter={"source_hidden": true}
# @title The picture: five raters on their own scales, and what comes of it
figure, (left, right) = plt.subplots(1, 2, figsize=(9.5, 3.6), layout="constrained")
meals = torch.linspace(-1.6, 1.6, 7)
palette = [COLOURS[name] for name in ("PPO", "DPO", "GRPO", "SimPO", "SFT")]
few = anna[0].argsort()[PAIRS // 10 :: PAIRS // 5]  # from the strictest to the mildest
for number, colour in zip(few, palette, strict=True):
    own = (anna[0][number], anna[1][number])
    left.plot(meals, score(meals, *own), "o-", color=colour, linewidth=1, markersize=4)
left.set(
    title="Five raters without any fog: one order, five scales",
    xlabel="true quality of the answer",
    ylabel="score, 1 to 10",
    ylim=(0.5, 10.5),
)
bars = right.bar(list(right_order), right_order.values(), color="#0072B2", width=0.6)
right.bar_label(bars, [f"{share:.0%}" for share in right_order.values()], padding=2)
right.axhline(0.5, color="#666666", linestyle="--", linewidth=1)
right.text(2.75, 0.51, "a coin", ha="right", fontsize=8, color="#666666")
first, *_, last = right_order.values()
right.set(
    title=f"Different raters' scores put {first:.0%} of the pairs in order,\n"
    f"comparisons {last:.0%}",
    ylabel="share of pairs in the right order",
    xlim=(-0.5, 2.8),
    ylim=(0, 1.08),
)
right.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
for axes in (left, right):
    axes.title.set_fontsize(10)
    axes.spines[["top", "right"]].set_visible(False)
plt.show()

# %%
print(f"(counted with {whose(win_rate)} win_rate: a tie of scores is half right)")

# %% [markdown]
# Look at the second bar: one rater who scores *both* answers is nearly as good as one
# who compares. What is lost there is only what falls together: two answers that are both
# "a 7", or off the scale. What does the damage is putting scores of different people
# side by side. That comparisons need no common scale is an old idea (Thurstone 1927),
# and Christiano et al. (2017, section 3.3) report it from practice: people found
# consistent comparisons easier to give than consistent scores, and on their continuous
# control tasks learning from comparisons worked much better.
#
# Comparisons are no truth either. Two people often disagree: labellers of InstructGPT
# agreed with one another on about 73% of the pairs (Ouyang et al. 2022, section 3.4).

# %% [markdown]
# ## 6 · Three steps
#
# Put together, this is the recipe of InstructGPT (Ouyang et al. 2022, section 3.1). Its
# parts are older: Ziegler et al. (2019) and Stiennon et al. (2020) had tuned language
# models on comparisons before, the latter to write summaries.

# %% cellView="form" jupyter={"source_hidden": true}
# @title The three steps, drawn
PEOPLE, MODEL, WORK = "#E69F00", "#56B4E9", "#E5E5E5"
STEPS = {
    "1 · Demonstrate": (
        (WORK, "prompts"),
        (PEOPLE, "people write\nan answer to each"),
        (WORK, "imitate them: SFT"),
        (MODEL, "SFT model"),
    ),
    "2 · Compare": (
        (MODEL, "the SFT model writes\nseveral answers"),
        (PEOPLE, "people rank them"),
        (WORK, "fit all pairs"),
        (MODEL, "reward model"),
    ),
    "3 · Optimise": (
        (MODEL, "a copy of the SFT model\nwrites an answer"),
        (MODEL, "the reward model\nscores it"),
        (WORK, "raise the score, but\nstay close: PPO"),
        (MODEL, "assistant"),
    ),
}
HEIGHTS = (4.3, 3.1, 1.9, 0.7)
figure, axes = plt.subplots(figsize=(9.5, 4.8), layout="constrained")
axes.set(xlim=(0.2, 10.3), ylim=(-0.25, 5.5))
axes.set_axis_off()


def box(x, y, colour, text, weight):
    """One station of the pipeline; returns half of its height."""
    style = dict(boxstyle="round,pad=0.45", facecolor=colour, edgecolor="#333333")
    place = dict(ha="center", va="center", fontsize=9)
    axes.text(x, y, text, bbox=style, weight=weight, **place)
    return 0.17 + 0.1 * text.count("\n")


def arrow(start, end, bend=0.0, dashed=False):
    style = dict(arrowstyle="-|>", color="#333333", linewidth=1.3, shrinkA=0, shrinkB=0)
    style |= dict(connectionstyle=f"arc3,rad={bend}", linestyle="--" if dashed else "-")
    axes.annotate("", end, start, arrowprops=style)


for x, (title, stations) in zip((1.5, 5.0, 8.5), STEPS.items(), strict=True):
    axes.text(x, 5.15, title, ha="center", fontsize=12, weight="bold")
    halves = [
        box(x, y, *station, weight="bold" if y == HEIGHTS[-1] else "normal")
        for y, station in zip(HEIGHTS, stations, strict=True)
    ]
    ends = list(zip(HEIGHTS, halves, strict=True))
    for (above, half_above), (below, half_below) in pairwise(ends):
        arrow((x, above - half_above - 0.03), (x, below + half_below + 0.03))
arrow((2.12, 0.75), (3.98, 4.1), bend=0.2, dashed=True)
arrow((5.72, 0.75), (7.68, 2.95), bend=0.2, dashed=True)
arrow((9.45, 1.95), (9.62, 4.1), bend=0.35, dashed=True)
axes.text(9.97, 3.1, "many times", fontsize=8, ha="left", va="center", rotation=90)
legend = (2.2, PEOPLE, "people"), (4.2, MODEL, "a model"), (6.2, WORK, "work on data")
for x, colour, text in legend:
    axes.plot(x, -0.1, "s", color=colour, markersize=9, markeredgecolor="#333333")
    axes.text(x + 0.18, -0.1, text, fontsize=8, va="center")
plt.show()

# %% [markdown]
# Two details of the last step matter most, and lesson 06 is about them. The assistant
# starts as a copy of the SFT model. And it may not run far away from it: the reward
# model has seen answers of the SFT model only, and knows little about any others.

# %% [markdown]
# ## 7 · One minute of the whole thing
#
# Step 1 is done: `kitchen.sft`. For step 2 the SFT model writes four answers to each of
# a thousand prompts, and an **annotator** ranks them. Ours is simulated. They like what
# the gold reward likes, but see it through fog, as people do: how likely one answer is
# ranked above another depends on the difference of their scores (the Bradley–Terry
# model, lesson 05).


# %%
def ranked(prompt, answers, rng):
    """The annotator's ranking, best first: scores in fog, of Bradley-Terry's kind."""
    annotator, seen = kitchen.annotator, {}
    for answer in answers:
        fog = -annotator.temperature * math.log(rng.expovariate(1))  # Gumbel's
        seen[answer] = annotator.score(prompt, answer) + fog
    return sorted(answers, key=seen.get, reverse=True)


rng = random.Random(0)
prompts = toy_world.sample_prompts(1000, seed=3)
four_times = [kitchen.answers(kitchen.sft, prompts, seed=10 + k) for k in range(4)]
rankings = []
for prompt, *answers in zip(prompts, *four_times, strict=True):
    ended = [a for a in answers if a[-1] == kitchen.tokenizer.end_id and len(a) > 1]
    different = list(dict.fromkeys(map(kitchen.tokenizer.decode, ended)))
    if len(different) > 1:
        rankings.append((prompt, ranked(prompt, different, rng)))

prompt, ranking = rankings[0]
print(prompt)
for place, answer in enumerate(ranking, start=1):
    gold = gold_reward.gold_reward(prompt, answer)
    print(f"    {place}. {prettify(answer)}   (gold {gold:.2f})")

# %%
pairs = [pair for ranking in rankings for pair in pairs_from_ranking(*ranking)]
golds = [
    (gold_reward.gold_reward(p, a), gold_reward.gold_reward(p, b)) for p, a, b in pairs
]
clear = [(chosen, rejected) for chosen, rejected in golds if chosen != rejected]
agreement = sum(chosen > rejected for chosen, rejected in clear) / len(clear)
print(f"{len(rankings)} rankings -> {len(pairs)} pairs, with", end=" ")
print(f"{whose(pairs_from_ranking)} pairs_from_ranking")
print(f"the annotator agrees with the gold reward on {agreement:.0%} of the pairs")

# %% [markdown]
# The **reward model** is a copy of the SFT model that gives a number instead of a next
# word. It is trained so that the chosen answer of a pair gets the higher number. (The
# gold reward it never sees.)

# %%
encode = kitchen.tokenizer.encode
kitchen.pairs = [
    TokenPair(encode(p), encode(chosen, end=True), encode(rejected, end=True))
    for p, chosen, rejected in pairs
]
history = kitchen.train_reward_model()
accuracy = history.mean("accuracy", last=30)
print(f"{len(history)} steps; it puts {accuracy:.0%} of its training pairs in order")

# %% [markdown]
# Step 3, twice. **Best-of-n** trains nothing: let the SFT model write four answers,
# keep the one that the reward model likes best. **PPO** changes the model itself, in
# small steps, so that answers with a high reward become likelier, and pays for every
# step away from the SFT model at a price β.

# %%
assistant = copy.deepcopy(kitchen.sft)
history = train_rlhf(
    assistant,
    kitchen.sft,
    kitchen.score,
    kitchen.prompts,
    steps=40,
    beta=0.2,
    value_model=kitchen.reward_model.critic(),
    **kitchen.sampling(),
)
rewards = history["score"]
print(f"{len(rewards)} steps; mean reward of the first 5", end=" ")
print(f"{sum(rewards[:5]) / 5:.2f}, of the last 5 {sum(rewards[-5:]) / 5:.2f}")


# %% [markdown]
# Did it help? All of them answer 400 fresh prompts. The judge is the gold reward, which
# no model was shown; the opponent is the SFT model. Outside the kitchen there is
# no gold reward: there, the judge is a person again, or another model (lesson 09).

# %%
tests = toy_world.sample_prompts(400, seed=4)


def sampled(policy, seed):
    return kitchen.rollouts(policy, tests, seed)


def best_of_four():
    generator = torch.Generator().manual_seed(7)
    options = kitchen.sampling() | dict(n=4, generator=generator)
    return best_of_n(kitchen.sft, kitchen.score, [encode(t) for t in tests], **options)


def golds_of(rollouts):
    """The gold reward of each answer, shape (B,)."""
    pairs = zip(tests, rollouts.answers(), strict=True)
    return torch.tensor([kitchen.gold(prompt, answer) for prompt, answer in pairs])


with torch.no_grad():
    methods = {
        "base": sampled(kitchen.base, seed=5),
        "SFT": sampled(kitchen.sft, seed=5),
        "best-of-n": best_of_four(),
        "PPO": sampled(assistant, seed=5),
    }
    proxies = {name: kitchen.score(found).mean() for name, found in methods.items()}
    opponent = golds_of(sampled(kitchen.sft, seed=6))
judged = {name: golds_of(found) for name, found in methods.items()}


# %%
def spread(ours, theirs, draws=1000):
    """A 95% interval of the win rate: how it varies when prompts are drawn again."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randint(len(ours), (draws, len(ours)), generator=generator)
    again = torch.tensor([float(win_rate(ours[row], theirs[row])) for row in rows])
    return again.quantile(torch.tensor([0.025, 0.975])).tolist()


print(f"with {whose(win_rate)} win_rate\n")
print("            reward model   gold reward   wins over SFT   95% interval")
results = {}
for name, gold in judged.items():
    rate, (low, high) = float(win_rate(gold, opponent)), spread(gold, opponent)
    results[name] = rate, low, high
    print(f"{name:<10} {proxies[name]:13.2f} {gold.mean().item():13.2f}", end="")
    print(f" {rate:15.0%}   {low:.0%} to {high:.0%}")

# %%
figure, axes = plt.subplots(figsize=(7.5, 2.8), layout="constrained")
for height, (name, (rate, low, high)) in enumerate(reversed(results.items())):
    errors = [[rate - low], [high - rate]]
    axes.errorbar(rate, height, xerr=errors, fmt="o", color=COLOURS[name], capsize=3)
    axes.text(rate, height + 0.2, f"{rate:.0%}", ha="center", fontsize=9)
axes.axvline(0.5, color="#666666", linestyle="--", linewidth=1)
winner = max(results, key=results.get)
labels = {"best-of-n": "best of 4", "SFT": "SFT, other samples"}
axes.set(
    title=f"Against the SFT model, {labels.get(winner, winner)} wins most often: "
    f"{results[winner][0]:.0%} (bars: 95% intervals)",
    xlabel="win rate against the SFT model, judged by the gold reward",
    xlim=(0, 1),
    ylim=(-0.5, len(results) - 0.3),
)
names = [labels.get(name, name) for name in reversed(results)]
axes.set_yticks(range(len(names)), names)
axes.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
axes.title.set_fontsize(10)
axes.spines[["top", "right"]].set_visible(False)
plt.show()

# %% [markdown]
# The row "SFT, other samples" is the check of our measurement: the SFT model against
# itself should stand at one half, give or take its interval.
#
# Then compare the table's first two columns. The reward model's own score is what PPO
# was trained to raise, and what best-of-n chose by; the gold reward is what we wanted.
# They are not the same number, and with enough pressure on the first the second falls
# (Gao et al. 2023): **reward hacking**, which you will provoke in lesson 06.
#
# Read some answers before you believe any number. Here are the first prompts of the
# test, with the gold reward of each answer.

# %%
for number, prompt in enumerate(tests[:5]):
    print(prettify(prompt))
    for name, found in methods.items():
        text = prettify(kitchen.tokenizer.decode(found.answers()[number]))
        print(f"    {judged[name][number]:5.2f}  {name:<10} {text}")
    print()

# %% [markdown]
# ## 8 · To discuss
#
# 1. **One big and one small harm.** Think of an assistant that does exactly what it was
#    rewarded for, which is not quite what was meant. Describe one big harm it could do,
#    and one small harm that nobody would report. Which of the two would a labeller who
#    compares two answers notice?
# 2. **Who decides what is preferred?** Ouyang et al. (2022, section 5.2) ask to whom
#    their model is aligned, and list: the labellers they hired, themselves who wrote
#    the instructions, the customers whose prompts they used. Who is missing? What would
#    you do about it?
# 3. In the simulation one could subtract each rater's mean score and divide by their
#    spread. What must be known for that, and what must be true of the answers that each
#    rater got?
# 4. A win rate of 60% against the SFT model: does it say that the answers are good?
#    What would you have to know about the opponent, the prompts and the judge?
#
# ## What you take along
#
# - A base model goes on; it does not answer. The loss never asked for more.
# - Labelled data become instructions; imitation then teaches the form of an answer, and
#   stops at its teachers.
# - What cannot be written as a loss can still be judged, and comparisons need no common
#   scale.
# - Demonstrate, compare, optimise: three steps, each of which the next lessons build
#   from nothing. Lesson 01 starts with the last: how can a model learn from a mere
#   number?
#
# ## Sources
#
# - Askell et al. 2021, *A general language assistant as a laboratory for alignment*,
#   arXiv 2112.00861
# - Bai et al. 2022, *Training a helpful and harmless assistant with RLHF*,
#   arXiv 2204.05862
# - Bowman et al. 2015, *A large annotated corpus for learning natural language
#   inference*, EMNLP
# - Christiano et al. 2017, *Deep reinforcement learning from human preferences*,
#   arXiv 1706.03741
# - Gao, Schulman & Hilton 2023, *Scaling laws for reward model overoptimization*,
#   arXiv 2210.10760
# - Ouyang et al. 2022, *Training language models to follow instructions with human
#   feedback*, arXiv 2203.02155
# - Stiennon et al. 2020, *Learning to summarize from human feedback*, arXiv 2009.01325
# - Thurstone 1927, *A law of comparative judgment*, Psychological Review 34
# - Wei et al. 2022, *Finetuned language models are zero-shot learners*, arXiv
#   2109.01652
# - Ziegler et al. 2019, *Fine-tuning language models from human preferences*,
#   arXiv 1909.08593

# %%
print(f"CPU time of this notebook: {time.process_time():.0f} s")
