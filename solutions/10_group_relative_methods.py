# %% [markdown]
# # 10 · Group-relative methods and verifiable rewards
#
# *Why this matters: DeepSeek-R1 and many open models after it learned to "reason" without
# a value model and, for the most part, without a learned reward model: several answers to
# one question, a program that checks them, and a comparison within the group. You will
# write all three, and see how a check that is a little too lenient is found out.*
#
# **You will be able to**
#
# - replace the value model by the other answers to the same prompt, and prove that this
#   leaves the gradient unbiased;
# - say what dividing by the group's standard deviation does to easy and hard questions,
#   and what dividing by an answer's length does to wrong answers;
# - recognise the bug of groups whose rewards are all equal, and mend it twice;
# - write a verifier that is hard to cheat, and measure pass@k without bias;
# - train a small model on sums by GRPO, and say honestly what it learned;
# - break a naive autograder, and say why the one that marks you holds.
#
# **It assumes** lessons 01 (baselines), 02 (the clipped surrogate), 03 ($k_3$) and 04
# (masks, log-probabilities, SFT). Section 10 uses the optimum of lesson 06.
#
# | | |
# |---|---|
# | reading | 34 minutes |
# | coding | 44 minutes, six exercises, 12 points; three attacks for no points |
# | computing | about a minute and a half on one CPU core; the last cell says how much |
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
import csv
import itertools
import json
import math
import re
import tempfile
import time
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch

import rlhf_minimal
from autograder import check
from rlhf_minimal.arithmetic import (
    all_questions,
    arithmetic_tokenizer,
    carries,
    demonstrations,
    prompt_of,
    scorer,
)
from rlhf_minimal.exact import make_world
from rlhf_minimal.exact_methods import train_group
from rlhf_minimal.gpt import GPT, GPTConfig
from rlhf_minimal.grpo import train_grpo
from rlhf_minimal.plots import COLOURS
from rlhf_minimal.rollouts import sample_rollouts
from rlhf_minimal.sft import train_sft

torch.set_num_threads(1)  # models this small only lose time to a second thread
BLUE, SKY, GREY, RED = COLOURS["PPO"], COLOURS["SFT"], "#666666", "#D55E00"
GREEN, ORANGE, YELLOW = COLOURS["GRPO"], "#E69F00", COLOURS["RLOO"]


def whose(*names):
    """Says with whose functions the next experiment runs."""
    for name in names:
        own = globals()[name].__module__ == "__main__"
        print(f"{name:26s} {'yours' if own else 'ours'}")


# %% [markdown]
# ## 1 · A baseline for nothing
#
# Lesson 01: any number that does not depend on the action may be subtracted from the
# reward, and a good one makes the gradient much calmer. PPO *learns* such a number: the
# value model, often as large as the policy, and wrong while it learns.
#
# But what is the value of a prompt? The mean reward of the policy's answers to it. That
# can be sampled. Ask the same question $G$ times and you have a **group**: rewards
# $r_1, \dots, r_G$. The mean of the *other* answers is a baseline for answer $i$:
#
# $$A_i = r_i - b_i, \qquad b_i = \frac{1}{G-1}\sum_{j\ne i} r_j .$$
#
# That is **RLOO**, REINFORCE leave-one-out (Ahmadian et al. 2024, after Kool et al.
# 2019). It is unbiased. Write $s_i = \nabla\log\pi(y_i\mid x)$. The answers are drawn
# independently, so $b_i$, made of the others, is independent of $y_i$, and
#
# $$\mathbb{E}[A_i\, s_i] = \mathbb{E}[r_i\, s_i] - \mathbb{E}[b_i]\,\mathbb{E}[s_i]
#   = \nabla\,\mathbb{E}[r] - \mathbb{E}[b_i]\cdot 0 .$$
#
# *And the plain mean of the group?* It contains $r_i$, so this argument fails. But with
# $\bar r$ the mean of all $G$,
#
# $$r_i - \bar r = r_i - \frac{r_i + (G-1)\,b_i}{G} = \frac{G-1}{G}\,(r_i - b_i),$$
#
# so it is the same advantage, a little smaller: the direction is right, and a learning
# rate swallows the factor.

# %% [markdown]
# ### 10.1 · `rloo_advantages` — difficulty 2 of 5, 5 minutes, 2 points
#
# <details>
# <summary>Hint 1: no loop is needed</summary>
#
# The sum of the others is the sum of all, minus your own.
#
# </details>
#
# <details>
# <summary>Hint 2: shapes</summary>
#
# `rewards.sum(-1, keepdim=True)` is (B, 1), and stretches over the row. There are
# `rewards.shape[-1] - 1` others.
#
# </details>
#
# <!-- answer: rloo_advantages -->


# %%
def rloo_advantages(rewards):
    """Each reward minus the mean of the other rewards of its group.

    Args:
        rewards: shape (B, G): G answers to each of B prompts, G ≥ 2.

    Returns:
        Shape (B, G).

    Example: [[1, 2, 6]] gives [[−3, −1.5, 4.5]]: 1 − (2 + 6)/2, and so on.
    """
    # SOLUTION
    others = rewards.sum(-1, keepdim=True) - rewards
    return rewards - others / (rewards.shape[-1] - 1)
    # END SOLUTION


# %%
rloo_advantages = check(rloo_advantages)

# %% [markdown]
# A question with five possible answers, whose exact gradient can be listed. 20,000
# batches of one group of four: mean and spread of the estimated gradient with the bare
# rewards, and with your advantages. (All rewards are positive here, which is where a
# baseline matters most.)

# %%
whose("rloo_advantages")
z = torch.tensor([0.5, 0.0, -0.5, 1.0, -1.0]).double()
worth = torch.tensor([5.0, 7.0, 6.0, 4.0, 8.0]).double()
p = z.softmax(-1)
exact = p * (worth - p @ worth)  # ∇ E[r] for a softmax

drawn = torch.multinomial(p.expand(20_000, 5), 4, True,
                          generator=torch.Generator().manual_seed(0))
rewards = worth[drawn]
scores = torch.nn.functional.one_hot(drawn, 5) - p  # ∇ log π of each, (N, 4, 5)
print("exact gradient     ", " ".join(f"{x:+.3f}" for x in exact))
for name, weights in (("bare rewards", rewards), ("RLOO", rloo_advantages(rewards)),
                      ("group mean", rewards - rewards.mean(-1, keepdim=True))):
    estimates = (weights[..., None] * scores).mean(1)  # (N, 5)
    mean = estimates.mean(0)
    error = estimates.std(0).max() / 20_000**0.5
    print(f"{name:18s} ", " ".join(f"{x:+.3f}" for x in mean),
          f"  (± {error:.3f}); variance {estimates.var(0).sum():6.2f}")

# %% [markdown]
# All three point the same way. "Group mean" is the 3/4 of it that the formula says, and
# the variance without a baseline is many times that of RLOO.
#
# ## 2 · Dividing by the deviation
#
# **GRPO** (Shao et al. 2024) takes the group's mean as baseline, and then divides by the
# group's standard deviation:
#
# $$A_i = \frac{r_i - \operatorname{mean}(r_1,\dots,r_G)}
#   {\operatorname{std}(r_1,\dots,r_G) + \varepsilon} .$$
#
# Every answer's advantage is then a number around 1, whatever the unit of the rewards:
# convenient. But the divisor is another one for each *question*. What does that do?

# %% [markdown]
# ### 10.2 · `group_relative_advantages` — difficulty 2 of 5, 6 minutes, 2 points
#
# <details>
# <summary>Hint 1: which deviation</summary>
#
# The sample deviation, whose sum of squares is divided by n − 1: `rewards.std(-1)` is
# that by default. Keep the dimension (`keepdim=True`).
#
# </details>
#
# <details>
# <summary>Hint 2: two returns</summary>
#
# First the centred rewards. Without `normalize_by_std` they are the answer; with it, they
# are divided by (std + eps).
#
# </details>
#
# <!-- answer: group_relative_advantages -->


# %%
def group_relative_advantages(rewards, normalize_by_std=True, eps=1e-6):
    """(r − mean)/(std + eps) within each group: GRPO's advantages.

    Args:
        rewards: shape (B, G), G ≥ 2.
        normalize_by_std: False leaves the division out.
        eps: added to the sample deviation (n − 1), so that a group of equal rewards
            has advantages of 0 and not 0/0.

    Returns:
        Shape (B, G).

    Example: [[1, 2, 6], [5, 5, 5]] gives [[−0.756, −0.378, 1.134], [0, 0, 0]].
    """
    # SOLUTION
    centred = rewards - rewards.mean(-1, keepdim=True)
    if not normalize_by_std:
        return centred
    return centred / (rewards.std(-1, keepdim=True) + eps)
    # END SOLUTION


# %%
group_relative_advantages = check(group_relative_advantages)

# %% [markdown]
# Let rewards be 1 (right) or 0, and let the policy solve a question with probability
# $p$. Of $G$ answers $k$ are right, $k\sim\mathrm{Binomial}(G, p)$; right ones have the
# advantage $A_+(k)$, wrong ones $A_-(k)$. The gradient of a group is
# $\frac1G\sum_i A_i s_i$. On average the score $s$ of a right answer is
# $\nabla p/p$ and that of a wrong one $-\nabla p/(1-p)$ (the log-derivative trick, on
# "right" as an event). So the expected gradient is $w(p)\,\nabla p$ with
#
# $$w(p) = \mathbb{E}_k\left[\frac{k}{G}\,\frac{A_+(k)}{p}
#   - \frac{G-k}{G}\,\frac{A_-(k)}{1-p}\right].$$
#
# For RLOO, $A_+ = \frac{G-k}{G-1}$ and $A_- = -\frac{k}{G-1}$, and with
# $\mathbb{E}[k(G-k)] = G(G-1)\,p(1-p)$ the bracket's mean is 1: plain $\nabla p$, as it
# must be. With GRPO and a large group the divisor tends to $\sqrt{p(1-p)}$, so
# $w(p)\to 1/\sqrt{p(1-p)}$. That is the gradient of another objective:
#
# $$\frac{\nabla p}{\sqrt{p(1-p)}} = \nabla\; 2\arcsin\sqrt p .$$
#
# So GRPO with large groups climbs the mean over questions of $2\arcsin\sqrt{p}$, not of
# $p$. Liu et al. (2025) name this a bias towards questions that are too easy or too hard.
# For a group of 8 the sum over $k$ has nine terms, and your functions can do it.
#
# **Predict** the curve for GRPO. Where is it largest? Does it go to infinity?

# %%
whose("rloo_advantages", "group_relative_advantages")
G = 8


def weight_of_a_question(advantages, p):
    """w(p), exactly: all k from 0 to G."""
    total = 0.0
    for k in range(G + 1):
        rewards = torch.tensor([[1.0] * k + [0.0] * (G - k)])
        A = advantages(rewards)[0]
        right, wrong = A[:k].sum().item() / G, A[k:].sum().item() / G
        chance = math.comb(G, k) * p**k * (1 - p) ** (G - k)
        total += chance * (right / p - wrong / (1 - p))
    return total


def without_std(rewards):
    return group_relative_advantages(rewards, normalize_by_std=False)


ps = np.linspace(0.005, 0.995, 100)
curves = {
    "RLOO": (rloo_advantages, YELLOW, "-"),
    "group mean alone": (without_std, GREY, "--"),
    "GRPO": (group_relative_advantages, GREEN, "-"),
}
figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.7), layout="constrained")
for name, (advantages, colour, dash) in curves.items():
    w = np.array([weight_of_a_question(advantages, p) for p in ps])
    left.plot(ps, w, dash, color=colour, linewidth=3, label=name)
    right.plot(ps, w * ps * (1 - ps), dash, color=colour, linewidth=3, label=name)
left.plot(ps, 1 / np.sqrt(ps * (1 - ps)), ":", color=GREEN,
          label="GRPO, endless group: 1/√(p(1 − p))")
rare, even = (weight_of_a_question(group_relative_advantages, p) for p in (0.02, 0.5))
left.set(title=f"A question solved 1 time in 50 weighs {rare / even:.2f} times\n"
         "what one solved every second time does",
         xlabel="p, how often the policy solves the question",
         ylabel="weight w(p) of ∇p", ylim=(0, 4))
at = {}
for name in ("RLOO", "GRPO"):
    at_rare, at_even = (weight_of_a_question(curves[name][0], p) for p in (0.02, 0.5))
    at[name] = at_rare * 0.02 * 0.98 / (at_even * 0.25)
right.set(title="The push on a single logit at p = 0.02 is, of that at\n"
          f"0.5, {at['RLOO']:.0%} with RLOO, {at['GRPO']:.0%} with GRPO",
          xlabel="p, how often the policy solves the question",
          ylabel="w(p) · p(1 − p)")
left.legend(frameon=False, fontsize=8)
for axes in (left, right):
    axes.spines[["top", "right"]].set_visible(False)
plt.show()
print(f"GRPO, at p = 0.02: w = {rare:.2f};   at 0.5: {even:.2f};   "
      f"its end, (G − 1)/√G = {(G - 1) / G**0.5:.2f}")

# %% [markdown]
# Left: RLOO weighs all questions alike. GRPO weighs the rarely and the nearly always
# solved ones more, up to $(G-1)/\sqrt G$, for the group is finite: of a question that is
# solved once in a thousand times it mostly sees groups with no right answer.
#
# Right: what arrives at a policy that has one logit for "right", where
# $\nabla p = p(1-p)$. A question that is never solved teaches nothing, divided or not.
#
# Is that bad? Not always. If every question counts alike in the exam, $p$ is what you
# want. If the hard ones are what you care for, you may like the extra weight. (The nearly
# solved get it too.) But choose it; do not inherit it from a line of normalisation.

# %% [markdown]
# ## 3 · Bug hunt: a group that all agree
#
# A colleague pays 1 for a right answer and 0.2 for the right form, so the rewards are 0,
# 0.2 and 1.2. His first version divided by the deviation alone; in the first batch with a
# group of equal rewards it gave 0/0, and all weights were NaN. So he added an
# $\varepsilon$, "the usual 1e-8". Now it runs. It just learns worse than it should.


# %%
def advantages_as_found(rewards):
    """GRPO's advantages, by a colleague."""
    centred = rewards - rewards.mean(-1, keepdim=True)
    return centred / (rewards.std(-1, keepdim=True) + 1e-8)


torch.set_printoptions(precision=2, sci_mode=False, linewidth=88)
batch = torch.tensor([
    [0.2, 1.2, 0.2, 0.2, 1.2, 0.2, 0.0, 0.2],
    [1.2, 0.2, 1.2, 1.2, 1.2, 1.2, 1.2, 1.2],
    [1.2, 1.2, 1.2, 1.2, 1.2, 1.2, 1.2, 1.2],
    [0.2, 0.2, 0.2, 0.2, 0.2, 0.2, 0.2, 0.2],
])
print(advantages_as_found(batch))
torch.set_printoptions(profile="default")

# %% [markdown]
# **Find it** before you read on. Which group speaks loudest, and what does it have to
# say? (What exactly is printed in the last two rows depends on the order in which your
# processor adds up; on most it is not 0.)

# %%
print(f"1.2 in float32:       {batch[2, 0].item():.10f}")
print(f"mean of eight 1.2's:  {batch.mean(-1)[2].item():.10f}")
print(f"difference:           {(batch[2, 0] - batch.mean(-1)[2]).item():.2e}")
print(f"standard deviation:   {batch.std(-1)[2].item():.2e}")

# %% [markdown]
# Neither 1.2 nor 0.2 has a finite binary expansion, and the mean of eight equal numbers
# may come out as their *neighbour* among the floats, $10^{-7}$ away. Divided by a
# deviation of 0 plus $10^{-8}$, a rounding error is an advantage of 12: several
# times as loud as any group with something to say, and with one sign for all of it.
# All-equal groups are common, too: every question that is mastered, and every one that is
# hopeless. Rewards of 0 and 1 never show the bug (their sums are exact), which is why a
# test with 0 and 1 passes.
#
# Two remedies, both good: an $\varepsilon$ that is large beside rounding errors and small
# beside real deviations (with 1e-4 the same error is 0.001; our own 1e-6 would still
# leave 0.1 here), and not to use such groups at all.
#
# ### 10.3 · `informative_groups` — difficulty 1 of 5, 4 minutes, 1 point
#
# <details>
# <summary>Hint 1: equal to what?</summary>
#
# Not to the mean: that is the bug. If all rewards of a row are equal, they are all equal
# to its first.
#
# </details>
#
# <details>
# <summary>Hint 2: any or all</summary>
#
# One different reward is enough: `(...).any(-1)`.
#
# </details>
#
# <!-- answer: informative_groups -->


# %%
def informative_groups(rewards):
    """Which groups have something to compare.

    Args:
        rewards: shape (B, G), any finite numbers.

    Returns:
        Booleans, shape (B,): False where all G rewards are exactly equal.

    Example: [[1, 0, 1], [0.2, 0.2, 0.2]] gives [True, False].
    """
    # SOLUTION
    return (rewards != rewards[:, :1]).any(-1)
    # END SOLUTION


# %%
informative_groups = check(informative_groups)


# %%
whose("group_relative_advantages", "informative_groups")


def advantages_mended(rewards):
    """GRPO's advantages; exactly 0 where there is nothing to compare."""
    heard = informative_groups(rewards).bool()[:, None]
    return torch.where(heard, group_relative_advantages(rewards), 0.0)


both = {"as found": advantages_as_found, "mended": advantages_mended}
for name, advantages in both.items():
    loudest = "  ".join(f"{a:5.2f}" for a in advantages(batch).abs().amax(-1))
    print(f"{name:9s} largest |A| in each group: {loudest}")

# %% [markdown]
# A group that is silent still costs its sampling. DAPO (Yu et al. 2025) therefore samples
# on until a batch is full of groups that are not.
#
# ## 4 · Rewards that can be checked
#
# Is the answer polite? Somebody has to judge. Is 37 + 48 = 85? A program can tell,
# always, and for nothing: a **verifiable reward**. Mathematics with a known result, code
# with tests, a proof with a checker. No reward model, so nothing learned that could be
# over-optimised, as in lesson 06. What remains to be cheated is the program.
#
# The toy: sums of two two-digit numbers, written one digit a token. People have shown how
# they work them out, units first, with the result in brackets. Some forget the brackets;
# some put a first attempt into brackets, and correct themselves.

# %%
tokenizer = arithmetic_tokenizer()
questions = all_questions(seed=0)
test, shown, unlabelled = questions[:200], questions[200:1000], questions[1000:]
examples = demonstrations(shown, tokenizer, seed=0, no_brackets=0.3, twice=0.1)
print(f"{len(tokenizer)} tokens; {len(questions)} sums: {len(test)} to test on, "
      f"{len(shown)} with a demonstration, {len(unlabelled)} without")
for prompt, answer in examples[:6]:
    print("   ", tokenizer.decode(prompt), "|", tokenizer.decode(answer))

# %% [markdown]
# Your verifier decides what the model will learn. Rules:
#
# - exactly one `[` and one `]`, and the text ends with that `]`. What comes before the
#   bracket is working, and free;
# - inside stand digits and spaces, nothing else, and one digit at least;
# - read as one number, they are the solution. A leading zero does no harm, nor do spaces
#   around the text.
#
# ### 10.4 · `verify_answer` — difficulty 3 of 5, 8 minutes, 2 points
#
# <details>
# <summary>Hint 1: refuse first</summary>
#
# `text.count("[")`, `text.count("]")`, `text.strip().endswith("]")`: whatever fails one
# of these is worth 0. Then what stands between the brackets is
# `text[text.index("[") + 1 : -1]`.
#
# </details>
#
# <details>
# <summary>Hint 2: digits only</summary>
#
# Take the spaces out with `"".join(inside.split())`. Is what remains not empty, and made
# of `"0123456789"` alone? Only then call `int`. Do not call `eval`: see what it would
# make of `[ 3 7 + 4 8 ]`.
#
# </details>
#
# <!-- answer: verify_answer -->


# %%
def verify_answer(text, solution):
    """1.0 if the answer's only bracket, at its very end, holds the solution; else 0.0.

    Args:
        text: the answer, such as "7 + 8 = 1 5 , 3 + 4 + 1 = 8 , [ 8 5 ]". Anything may
            come: no brackets, several, an empty text. It never raises.
        solution: the right result, an integer ≥ 0.

    Returns:
        1.0 or 0.0.

    Examples, for the solution 85: "[ 8 5 ]" and "1 5 , [ 0 8 5 ]" give 1.0; "8 5",
    "[ 8 4 ] [ 8 5 ]", "[ 8 5 ] ," and "[ 3 7 + 4 8 ]" give 0.0.
    """
    # SOLUTION
    text = text.strip()
    if text.count("[") != 1 or text.count("]") != 1 or not text.endswith("]"):
        return 0.0
    digits = "".join(text[text.index("[") + 1 : -1].split())
    if not digits or not set(digits) <= set("0123456789"):
        return 0.0
    return float(int(digits) == solution)
    # END SOLUTION


# %%
verify_answer = check(verify_answer)

# %% [markdown]
# Now imitate the people: a GPT of 100,000 weights, 800 demonstrations, and it stops
# before it can add.

# %%
encode = tokenizer.encode
test_prompts = [encode(prompt_of(a, b)) for a, b in test]
free_prompts = [encode(prompt_of(a, b)) for a, b in unlabelled]
SAMPLING = dict(max_new_tokens=36, end_id=tokenizer.end_id)

torch.manual_seed(0)
sft = GPT(GPTConfig(vocab_size=len(tokenizer), context=48))
history = train_sft(sft, examples, steps=400)
last = history.mean("loss", last=20)
print(f"loss {history['loss'][0]:.2f} -> {last:.2f} nats a token")


# %%
N = 32  # answers to each of the 200 questions


def answers_of(model, n=N, seed=5):
    """n answers to each test question: texts, as a list of lists."""
    repeated = [prompt for prompt in test_prompts for _ in range(n)]
    generator = torch.Generator().manual_seed(seed)
    rollouts = sample_rollouts(model, repeated, generator=generator, **SAMPLING)
    texts = [tokenizer.decode(answer) for answer in rollouts.answers()]
    return [texts[i : i + n] for i in range(0, len(texts), n)]


def verdicts(texts, verify):
    """(questions, n) of the verifier's rewards."""
    return torch.tensor([[float(verify(text, a + b)) for text in row]
                         for row, (a, b) in zip(texts, test, strict=True)])


whose("verify_answer")
texts = {"SFT": answers_of(sft)}
right = {"SFT": verdicts(texts["SFT"], verify_answer)}
a, b = test[1]
print(f"\n{a} + {b}, eight of {N} answers:")
for text, reward in list(zip(texts["SFT"][1], right["SFT"][1], strict=True))[:8]:
    print(f"    {reward:.0f}  {text}")

flat = [text for row in texts["SFT"] for text in row]
form = np.mean([text.count("[") == 1 and text.endswith("]") for text in flat])
unbracketed = verdicts(texts["SFT"], lambda text, solution: float(
    "[" not in text and text.replace(" ", "").endswith(f",{solution}"))).mean()
print(f"\nright {right['SFT'].mean():.1%}; one bracket, at the end: {form:.1%}; "
      f"right but without brackets: {unbracketed:.1%}")
by_carries = [right["SFT"][[carries(*q) == c for q in test]].mean() for c in range(3)]
print("right, by how often one carries (0, 1, 2):",
      "  ".join(f"{share:.1%}" for share in by_carries))

# %% [markdown]
# **A format reward.** Many answers are right and unreadable for the verifier. Systems
# that train with verifiable rewards often pay a little for the form alone (DeepSeek-AI
# 2025 add such a reward to that for accuracy). What it does at the start can be computed
# from the answers you have: cut each question's 32 into four groups of 8, and ask how
# many groups have something to compare.


# %%
def format_reward(text):
    """1.0 if there is exactly one bracket, and the text ends with it."""
    return float(text.count("[") == text.count("]") == 1 and text.endswith("]"))


whose("informative_groups", "verify_answer")
well_formed = verdicts(texts["SFT"], lambda text, solution: format_reward(text))
for name, rewards in (("right", right["SFT"]),
                      ("right + 0.2 · form", right["SFT"] + 0.2 * well_formed)):
    speaking = informative_groups(rewards.reshape(-1, G)).float().mean()
    print(f"{name:20s} {1 - speaking:6.1%} of the groups are silent")

# %% [markdown]
# Without the form about one group in ten is silent, with it hardly any. But what the
# groups say that speak only then is about the form alone, which the first reward asks for
# as well, since nothing passes without it. Where a model is seldom right, the format
# reward gives it something to climb; where it is right one time in three, it is not
# needed, and we leave it out below. Keep it small: a form is easier to learn than a sum,
# and a model that is paid for it well enough will learn to be wrong in perfect brackets.

# %% [markdown]
# ## 5 · pass@k
#
# "Right 37% of the time" may be a model that solves 37% of the questions always, or one
# that solves all of them now and then. **pass@k** tells them apart: the chance that at
# least one of $k$ answers is right.
#
# One could draw $k$ answers a question and look. But that is one draw, and noisy. Better:
# draw $n \ge k$ answers, of which $c$ are right, and average over *all* ways to choose
# $k$ of them. $\binom nk$ ways there are, $\binom{n-c}{k}$ of them without a right one:
#
# $$\widehat{\text{pass@}k} = 1 - \frac{\binom{n-c}{k}}{\binom nk}
#   = 1 - \prod_{i=0}^{k-1}\frac{n-c-i}{n-i} .$$
#
# *Why unbiased?* Each of the $k$-subsets is a sample of $k$ independent answers, and has
# no right one with probability $(1-p)^k$; a mean of such indicators has that mean,
# however much they overlap. The tempting $1-(1-c/n)^k$ draws *with* replacement, and
# comes out too low: $(1-x)^k$ is convex, so by Jensen's inequality
# $\mathbb{E}[(1-c/n)^k] \ge (1-p)^k$ (Chen et al. 2021).
#
# ### 10.5 · `pass_at_k` — difficulty 3 of 5, 8 minutes, 2 points
#
# <details>
# <summary>Hint 1: as draws, one after another</summary>
#
# The first answer drawn is wrong with chance (n − c)/n, the second then with
# (n − c − 1)/(n − 1), … Multiply k of these and take the product from 1.
#
# </details>
#
# <details>
# <summary>Hint 2: fewer than k wrong ones</summary>
#
# Then one of the factors is 0, and so is the product: nothing special to do. With
# `i = torch.arange(k)` and `wrong = (samples - correct)[:, None]`, the factors are
# `(wrong - i) / (samples - i)`, (B, k). (Whoever prefers logarithms of factorials needs
# `double()`: in float32 they are good to four digits here.)
#
# </details>
#
# <!-- answer: pass_at_k -->


# %%
def pass_at_k(correct, samples, k):
    """The chance that one at least of k answers is right, for each question.

    Args:
        correct: c, how many of the n answers were right, int64, shape (B,).
        samples: n, a number: answers to each question.
        k: a number, 1 ≤ k ≤ n.

    Returns:
        1 − C(n − c, k)/C(n, k), shape (B,), floating. n may be some hundreds.

    Example: correct [0, 1, 3], samples 4, k 2 give [0, 0.5, 1].
    """
    # SOLUTION
    wrong = (samples - correct)[:, None].double()  # (B, 1)
    i = torch.arange(k)
    return 1 - ((wrong - i) / (samples - i)).prod(-1)  # (B, k) -> (B,)
    # END SOLUTION


# %%
pass_at_k = check(pass_at_k)

# %%
whose("pass_at_k")
p, n, k = 0.1, 10, 5
c = torch.distributions.Binomial(n, torch.tensor(p).double()).sample((100_000,)).long()
tempting = 1 - (1 - c.double() / n) ** k
print(f"p = {p}: pass@{k} is 1 − (1 − p)^{k}     = {1 - (1 - p) ** k:.4f}")
print(f"mean of yours, 100,000 times n = {n}  = "
      f"{pass_at_k(c, n, k).double().mean():.4f}")
print(f"mean of 1 − (1 − c/n)^{k}, same draws  = {tempting.mean():.4f}")


def with_interval(right, k):
    """pass@k over the questions, with half the width of a 95% interval."""
    each = pass_at_k(right.sum(-1).long(), right.shape[1], k).double()
    return each.mean().item(), 1.96 * each.std().item() / len(each) ** 0.5


print("\nSFT, 200 questions it has not seen:")
for k in (1, 4, 16, 32):
    mean, half = with_interval(right["SFT"], k)
    print(f"    pass@{k:<3d} {mean:6.1%} ± {half:.1%}")

# %% [markdown]
# So this model is of the second kind: it *can* solve nearly every sum, and does so about
# one time in three. The interval is over questions: it says what other questions of this
# sort might give, not what another training run would.

# %% [markdown]
# ## 6 · GRPO's loss, and whose tokens count
#
# Lesson 02's clipped surrogate, with one advantage for the whole answer, and a KL penalty
# that stands in the loss instead of in the reward. With
# $\rho_t = \pi(y_t)/\pi_{\mathrm{old}}(y_t)$ and $l_t = \log\pi(y_t) -
# \log\pi_{\mathrm{ref}}(y_t)$, each token of answer $i$ contributes
#
# $$-\min\left(\rho_t A_i,\
#   \operatorname{clip}(\rho_t, 1-\epsilon, 1+\epsilon)\,A_i\right)
#   + \beta\left(e^{-l_t} - 1 + l_t\right).$$
#
# And then? GRPO as published takes the mean over the tokens of *each answer*, then over
# the answers. So a token weighs $1/|y_i|$. For a right answer that favours short ones:
# each of their tokens is pushed harder. For a **wrong** answer it favours long ones:
# their punishment is spread thin. Liu et al. (2025) see wrong answers grow longer and
# longer under it, and divide by a constant ("Dr. GRPO"); Yu et al. (2025) divide by the
# number of tokens of all answers together. We do the latter, over the batch: **every
# token of the batch weighs the same**.
#
# *Why is there no push on the length without the division?* Let $T$ be an answer's length
# and $s$ its score with respect to whatever decides the length. If the reward does not
# depend on the length, $\mathbb{E}[A\,s] = A\,\mathbb{E}[s] = 0$. But
# $\mathbb{E}[\frac{1}{T}A\,s] = A\,\mathrm{Cov}(\frac1T, s)$, and short answers have both
# a large $1/T$ and a score that points to "stop". So where $A<0$, stopping is pushed
# down.
#
# ### 10.6 · `grpo_loss` — difficulty 4 of 5, 13 minutes, 3 points
#
# <details>
# <summary>Hint 1: the pieces</summary>
#
# `ratio = (log_probs - old_log_probs).exp()`, `A = advantages[:, None]`, the `torch.min`
# of `ratio * A` and `ratio.clamp(1 - clip, 1 + clip) * A`; `log_ratio = log_probs -
# ref_log_probs` and k3 of it. Each is (B, T).
#
# </details>
#
# <details>
# <summary>Hint 2: signs and mean</summary>
#
# A token's loss is minus the surrogate plus beta times k3. Multiply by the mask, sum
# everything, and divide by the mask's sum.
#
# </details>
#
# <!-- answer: grpo_loss -->


# %%
def grpo_loss(log_probs, old_log_probs, ref_log_probs, advantages, mask, beta=0.04,
              clip=0.2):
    """−(clipped surrogate) + β·k3, the mean over all answer tokens of the batch.

    Args:
        log_probs: of the sampled tokens under the policy in training, shape (B, T).
        old_log_probs: under the policy that sampled them, (B, T); a constant.
        ref_log_probs: under the reference, (B, T); a constant.
        advantages: one number an answer, (B,); a constant.
        mask: 1 on answer tokens, 0 on all others, (B, T), int64.
        beta: price of the KL. clip: ε.

    Returns:
        A scalar, with gradient to log_probs.

    Example: one answer of two tokens with ratio 1, at the reference, A = 2: −2.
    """
    # SOLUTION
    ratio = (log_probs - old_log_probs).exp()
    A = advantages[:, None]  # (B,) -> (B, 1): all tokens of an answer get the same
    surrogate = torch.min(ratio * A, ratio.clamp(1 - clip, 1 + clip) * A)
    log_ratio = log_probs - ref_log_probs
    k3 = (-log_ratio).exp() - 1 + log_ratio
    return ((beta * k3 - surrogate) * mask).sum() / mask.sum()
    # END SOLUTION


# %%
grpo_loss = check(grpo_loss)

# %% [markdown]
# The smallest policy that has a length: after each token it stops with probability
# $\sigma(z)$. One copy writes only right answers ($A = +1$), another only wrong ones
# ($A = -1$), whatever their length. Nothing is to be gained from length. Train both with
# your loss, and with the mean taken within each answer first.

# %%
whose("grpo_loss")


def mean_within_answers(log_probs, old_log_probs, ref_log_probs, advantages, mask):
    """GRPO's normalisation as published: a token weighs 1/|y|. (No KL, to compare.)"""
    ratio = (log_probs - old_log_probs).exp() * advantages[:, None]
    return -((ratio * mask).sum(-1) / mask.sum(-1)).mean()


def over_all_tokens(log_probs, old_log_probs, ref_log_probs, advantages, mask):
    return grpo_loss(log_probs, old_log_probs, ref_log_probs, advantages, mask, 0.0)


def lengths_while_training(loss, A, steps=150, B=512, longest=200, seed=0):
    """Mean length, 1/σ(z), after each step, from 10 tokens on."""
    generator = torch.Generator().manual_seed(seed)
    z = torch.tensor(math.log(1 / 9), requires_grad=True)  # stops 1 time in 10
    place, means = torch.arange(longest), []
    for _ in range(steps):
        means.append(1 / z.sigmoid().item())
        stops = torch.rand(B, longest, generator=generator) < z.sigmoid().item()
        stops[:, -1] = True
        length = stops.float().argmax(-1) + 1  # the first stop
        mask = (place < length[:, None]).long()
        goes_on = torch.nn.functional.logsigmoid(-z).expand(B, longest)
        at_end = place == length[:, None] - 1
        log_probs = torch.where(at_end, torch.nn.functional.logsigmoid(z), goes_on)
        old = log_probs.detach()
        (slope,) = torch.autograd.grad(loss(log_probs, old, old, A.expand(B), mask), z)
        z.data -= 0.2 * slope
    return means


figure, axes = plt.subplots(figsize=(7.2, 3.6), layout="constrained")
ends = {}
for A, dash, kind in ((-1.0, "-", "wrong"), (1.0, "--", "right")):
    for loss, colour, name in ((mean_within_answers, RED, "within answers"),
                               (over_all_tokens, BLUE, "over all tokens")):
        means = lengths_while_training(loss, torch.tensor(A))
        ends[kind, name] = means[-1]
        axes.plot(means, dash, color=colour, linewidth=2, label=f"{kind}, mean {name}")
axes.set(title="Divided by their length, wrong answers grow from 10 to "
         f"{ends['wrong', 'within answers']:.0f} tokens,\nfor no reason in the reward; "
         "with one weight a token they stay near "
         f"{ends['wrong', 'over all tokens']:.0f}",
         xlabel="step", ylabel="mean length (tokens)", ylim=(0, None))
axes.spines[["top", "right"]].set_visible(False)
axes.legend(frameon=False, fontsize=8)
plt.show()

# %% [markdown]
# ## 7 · Training on what can be checked
#
# Everything is yours now: the verifier scores, `informative_groups` and
# `group_relative_advantages` compare, `grpo_loss` trains. 7,100 sums *without*
# demonstration, 16 of them a step, groups of 8. No KL ($\beta = 0$): there is no learned
# reward from which the reference would have to protect us. Two seeds.
#
# **Predict**: pass@1 goes from 37% to …? And pass@32, from 98.5%?

# %%
whose("verify_answer", "informative_groups", "group_relative_advantages", "grpo_loss")


def train(reward, seed=0, steps=80):
    """GRPO from the SFT model; what it recorded goes into the history."""
    policy, score = copy.deepcopy(sft), scorer(tokenizer, reward)
    silent = []

    def advantages(rewards):
        silent.append(1 - informative_groups(rewards).float().mean().item())
        return advantages_mended(rewards)

    history = train_grpo(
        policy, sft, score, free_prompts, beta=0.0, advantages=advantages,
        loss=grpo_loss, steps=steps, group_size=G, prompts_a_step=16, lr=1e-3,
        seed=seed,
        watch=lambda rollouts: {"form": np.mean([
            format_reward(tokenizer.decode(answer)) for answer in rollouts.answers()])},
        **SAMPLING,
    )
    return policy, history, silent


runs = {f"GRPO, seed {seed}": train(verify_answer, seed) for seed in (0, 1)}
for name, (policy, _, _) in runs.items():
    texts[name] = answers_of(policy)
    right[name] = verdicts(texts[name], verify_answer)

KS = (1, 2, 4, 8, 16, 32)
print("              " + "".join(f"pass@{k:<10d}" for k in KS))
table = {}
for name, verdict in right.items():
    table[name] = row = [with_interval(verdict, k) for k in KS]
    print(f"{name:14s}" + "".join(f"{m:5.1%} ± {h:4.1%}  " for m, h in row))
print("\npass@32 after, less before, question by question:")
ever = {name: pass_at_k(v.sum(-1).long(), N, 32).double() for name, v in right.items()}
for name in runs:
    change = ever[name] - ever["SFT"]
    half = 1.96 * change.std() / len(test) ** 0.5
    print(f"    {name}  {change.mean():+.1%} ± {half:.1%}")
print("\nof the groups of 8 in these answers:   all right   all wrong")
for name, verdict in right.items():
    sums = verdict.reshape(-1, G).sum(-1)
    all_right, all_wrong = (sums == G).float().mean(), (sums == 0).float().mean()
    print(f"    {name:32s} {all_right:11.1%} {all_wrong:11.1%}")
print("\nright, by how often one carries:    0       1       2")
for name, verdict in right.items():
    shares = [verdict[[carries(*q) == c for q in test]].mean() for c in range(3)]
    print(f"{name:30s}", "  ".join(f"{share:6.1%}" for share in shares))

# %%
figure, (left, right_axes) = plt.subplots(1, 2, figsize=(10, 3.8), layout="constrained")
styles = {"SFT": (SKY, "-"), "GRPO, seed 0": (GREEN, "-"),
          "GRPO, seed 1": (GREEN, "--")}
for name, (colour, dash) in styles.items():
    mean, half = np.array(table[name]).T
    left.errorbar(KS, mean, half, fmt=f"o{dash}", color=colour, capsize=3, label=name)
gain = {k: np.mean([table[name][i][0] for name in runs]) - table["SFT"][i][0]
        for i, k in ((0, 1), (5, 32))}
told = {k: f"{100 * by:+.0f}".replace("-", "−") for k, by in gain.items()}
left.set(title=f"pass@1 changes by {told[1]} points, pass@32 by {told[32]}\n"
         "(mean of two seeds; bars: 95% over questions)",
         xlabel="k, answers to a question", ylabel="pass@k", xscale="log", xticks=KS,
         xticklabels=KS, ylim=(0, 1.03))
left.minorticks_off()
left.legend(frameon=False, loc="lower right")


def smooth(values, n=8):
    return np.convolve(values, np.ones(n) / n, mode="valid")


for name, (_, history, silent) in runs.items():
    dash = styles[name][1]
    first = name.endswith("0")
    right_axes.plot(smooth(history["score"]), dash, color=GREEN,
                    label="right" if first else None)
    right_axes.plot(smooth(history["form"]), dash, color=ORANGE,
                    label="right form" if first else None)
    right_axes.plot(smooth(silent), dash, color=GREY,
                    label="silent groups" if first else None)
forms = [(history["form"][0], np.mean(history["form"][-8:]))
         for _, history, _ in runs.values()]
right_axes.set(title=f"The form is learned first, from {np.mean(forms, 0)[0]:.0%} to "
               f"{np.mean(forms, 0)[1]:.0%},\nthough nothing is paid for it by itself",
               xlabel="step (mean of 8)", ylabel="share", ylim=(0, 1.03))
right_axes.legend(frameon=False, loc="lower center", ncols=3)
for axes in (left, right_axes):
    axes.spines[["top", "right"]].set_visible(False)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
plt.show()

# %% [markdown]
# What was learned? pass@1 rose by some thirty points, on sums that nobody demonstrated
# and that none of the steps trained on. pass@32 fell, by 5 ± 4 points in one run and by
# 1 ± 3 in the other: no gain, and perhaps a loss. The curves cross: with 16 or 32
# attempts the SFT model is at least as good. What the trained model does most of the
# time, the SFT model could do before, now and then. In these runs reinforcement learning
# moved probability onto answers that were already there, and took it from others. Yue et
# al. (2025) report the like for large models: trained ones win at small $k$, and at large
# $k$ their base models catch up or overtake them.
#
# Be careful with the moral. A toy of 80 steps proves nothing about long training, and
# whoever has no verifier at run time can show one answer only: pass@1 is what a user
# sees. But "it has learned to reason" asks for more than a higher pass@1.
#
# On the right, the grey line is sampling for nothing: a fifth to two fifths of the groups
# for most of the run, where the SFT model had a tenth. At the end it is success that is
# silent: on the test questions a quarter of the groups are all right, where before there
# were hardly any, and about one in ten is all wrong, as before. Who always samples the
# same questions pays more and more for what is known already.
#
# **Who gains?** Each question by its own: success before, and after (mean of two seeds).

# %%
before = right["SFT"].mean(-1).numpy()
after = np.mean([right[name].mean(-1).numpy() for name in runs], axis=0)
edges = np.array([-0.01, 0.125, 0.25, 0.375, 0.5, 1.0])
figure, axes = plt.subplots(figsize=(6.4, 3.8), layout="constrained")
jitter = np.random.default_rng(0).uniform(-0.008, 0.008, len(before))
axes.plot(before + jitter, after, "o", color=GREEN, alpha=0.35, markersize=4)
axes.plot([0, 1], [0, 1], color=GREY, linewidth=1, linestyle=":")
print("success before     questions   before    after")
for low, high in itertools.pairwise(edges):
    inside = (before > low) & (before <= high)
    if inside.any():
        print(f"{max(low, 0):6.1%} to {high:6.1%}  {inside.sum():9d}   "
              f"{before[inside].mean():6.1%}   {after[inside].mean():6.1%}")
worse = np.mean(after < before)
axes.set(title=f"{1 - worse:.0%} of the questions are solved as often or more often,\n"
         f"the other {worse:.0%} less often than before",
         xlabel="solved by the SFT model, of 32", ylabel="solved after GRPO, of 2 × 32",
         xlim=(-0.03, 1.03), ylim=(-0.03, 1.03))
axes.spines[["top", "right"]].set_visible(False)
for axis in (axes.xaxis, axes.yaxis):
    axis.set_major_formatter(lambda value, _: f"{value:.0%}")
plt.show()

# %% [markdown]
# Most questions gain, and the rare ones gain too. But look along the bottom: questions
# that were solved now and then, and hardly ever are any more. What became of the three
# that lost most?

# %%
def commonest(row):
    """The answer that comes most often, and how often."""
    text = max(set(row), key=row.count)
    return f"{row.count(text) / len(row):4.0%}  {text}"


lost = np.argsort(after - before)[:3]
for i in lost.tolist():
    a, b = test[i]
    print(f"{a} + {b}: right {before[i]:.0%} before, {after[i]:.0%} after")
    for name in ("SFT", *runs):
        print(f"    {name:14s} {commonest(texts[name][i])}")

# %% [markdown]
# The commonest answers show it: a mistake in one step has become a habit. No group ever
# rewarded that; a wrong answer is not pushed up. But the weights are shared. We suspect
# that what makes the policy surer of other sums makes it surer of this one too, and of
# whichever step happens to be likeliest. What is then no longer sampled can no longer be
# rewarded.
#
# ## 8 · The verifier is the reward model now
#
# Somebody finds your verifier petty. "A person may correct himself. If *one* of the
# brackets is right, I count it." It sounds humane. Train on it, from the same SFT model,
# which has seen people put two brackets now and then.


# %%
def lenient(text, solution):
    """1.0 if any bracket holds the solution."""
    brackets = re.findall(r"\[([\d ]+)\]", text)
    return float(any("".join(digits.split()) == str(solution) for digits in brackets))


whose("verify_answer")
hacked, hacked_history, _ = train(lenient)
texts["lenient"] = answers_of(hacked)
right["lenient"] = verdicts(texts["lenient"], verify_answer)


def brackets_in(name):
    return np.mean([text.count("[") for row in texts[name] for text in row])


print("                     lenient says   yours says   brackets an answer")
for name in ("SFT", "GRPO, seed 0", "lenient"):
    says = verdicts(texts[name], lenient).mean()
    label = "trained on lenient" if name == "lenient" else name
    print(f"{label:20s} {says:12.1%} {right[name].mean():12.1%} "
          f"{brackets_in(name):14.2f}")
print()
for (a, b), row in list(zip(test, texts["lenient"], strict=True))[:5]:
    print(f"    {a} + {b} = {row[0]}")

# %%
figure, axes = plt.subplots(figsize=(6.8, 3.5), layout="constrained")
names = ["SFT", "GRPO, seed 0", "lenient"]
places = np.arange(3)
paid = [verdicts(texts[name], lenient).mean() for name in names]
strict = [right[name].mean() for name in names]
for shift, colour, label, values in ((-0.2, COLOURS["proxy"], "lenient verifier", paid),
                                     (0.2, COLOURS["gold"], "strict verifier", strict)):
    bars = axes.bar(places + shift, values, 0.4, color=colour, label=label)
    axes.bar_label(bars, [f"{value:.0%}" for value in values], padding=2)
axes.set(title=f"Trained on the lenient verifier: {paid[2]:.0%} by its own account,\n"
         f"{strict[2]:.0%} by the strict one, {brackets_in('lenient'):.1f} brackets an "
         "answer", ylabel="answers counted as right", xticks=places, ylim=(0, 1.1),
         xticklabels=["SFT", "trained on\nthe strict", "trained on\nthe lenient"])
axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
axes.spines[["top", "right"]].set_visible(False)
axes.legend(frameon=False, loc="upper left")
plt.show()

# %% [markdown]
# The lenient verifier pays for guessing, so guesses are what it gets: an attempt, and
# another, as many as fit. It pays this model about as much as it would pay the one that
# learned to add; nothing in its own numbers tells the two apart. Nobody cheated: the
# reward was climbed. It is the gap of lesson 06 again, proxy up and gold down, with a
# program of two lines as the proxy. (This is one run. Try `train(lenient, seed=1)` to see
# whether it was chance.) Verifiable does not mean unhackable.
#
# ## 9 · The grader's edition
#
# You have been rewarded by a verifier all through this course: `check`. Is *it* hackable?
# First, one that is. It runs your code in its own process and compares:

# %%
NAIVE = '''
import math
import sys

names = {}
exec(open(sys.argv[1]).read(), names)
cases = [("[ 8 5 ]", 85, 1.0), ("[ 8 4 ]", 85, 0.0), ("8 5", 85, 0.0)]
for text, solution, expected in cases:
    got = names["verify_answer"](text, solution)
    assert got == expected or math.isclose(got, expected), text
'''
workplace = Path(tempfile.mkdtemp())
(workplace / "naive_grader.py").write_text(NAIVE)
submissions = workplace / "submissions"
submissions.mkdir()


def naive_mark(source):
    """2 points if the grader ends with exit code 0, as many real ones decide."""
    (workplace / "student.py").write_text(source)
    command = [sys.executable, "naive_grader.py", "student.py"]
    done = subprocess.run(command, cwd=workplace, capture_output=True, timeout=60)
    return 2 if done.returncode == 0 else 0


attacks = {
    "honest": '''
def verify_answer(text, solution):
    text = text.strip()
    if text.count("[") != 1 or text.count("]") != 1 or not text.endswith("]"):
        return 0.0
    digits = "".join(text[text.index("[") + 1 : -1].split())
    if not digits or not set(digits) <= set("0123456789"):
        return 0.0
    return float(int(digits) == solution)
''',
    "wrong": '''
def verify_answer(text, solution):
    return 1.0
''',
}
for name, source in attacks.items():
    print(f"{name:8s} {naive_mark(source)} of 2 points")

# %% [markdown]
# **Your turn.** Make the naive grader give 2 points to a `verify_answer` that verifies
# nothing. Three ways, each three lines or so:
#
# 1. an object that equals everything;
# 2. an early exit: what does the grader decide by?
# 3. a comparison that has been exchanged: who owns `math`?
#
# They run in a process of their own in a temporary folder; do no harm in them. (For no
# points: nothing could mark them fairly.)
#
# <details>
# <summary>Our three attacks</summary>
#
# ```python
# class Agrees:
#     def __eq__(self, other):
#         return True
#
# def verify_answer(text, solution):
#     return Agrees()
# ```
#
# ```python
# def verify_answer(text, solution):
#     raise SystemExit(0)
# ```
#
# ```python
# import math
#
# math.isclose = lambda *both: True
#
# def verify_answer(text, solution):
#     return 0.5
# ```
#
# </details>

# %%
# attacks["always equal"] = '''
# class Agrees: ...
# '''
# SOLUTION
attacks["always equal"] = '''
class Agrees:
    def __eq__(self, other):
        return True

def verify_answer(text, solution):
    return Agrees()
'''
attacks["early exit"] = '''
def verify_answer(text, solution):
    raise SystemExit(0)
'''
attacks["patched comparison"] = '''
import math

math.isclose = lambda *both: True

def verify_answer(text, solution):
    return 0.5
'''
# END SOLUTION
for name, source in attacks.items():
    print(f"{name:20s} {naive_mark(source)} of 2 points")

# %% [markdown]
# The fault is not in the comparison. It is that student code runs *where the verdict is
# made*: what it can reach, it can change, and the verdict is within reach. This course's
# grader separates them:
#
# - student code runs in a process of its own (the **box**), with a time limit, and is
#   asked for *evidence*: the values that your function gave, as plain numbers and
#   tensors;
# - expected values and comparison live in another process (the **judge**), which never
#   runs student code. An exit there is impossible, and an exit in the box is no answer;
# - what crosses over is data of exactly known types. An object that equals everything is
#   no number, and stays outside;
# - the functions that an exercise asks for are taken away in the box, and most cases are
#   drawn when you are graded: there is no answer to import, and none to learn by heart.
#
# **Write one new attack on it.** Ours, to begin with: look into the caller's variables,
# import the answer from the package, search the memory for expected values. Add yours to
# the dictionary (or several), and let the grader's public door decide: `python -m
# autograder grade`, as an instructor would call it.

# %%
attacks["caller's variables"] = '''
import sys

def verify_answer(text, solution):
    return sys._getframe(1).f_locals["expected"]
'''
attacks["imports the answer"] = '''
from rlhf_minimal.verifiable import verify_answer as theirs

def verify_answer(text, solution):
    return theirs(text, solution)
'''
attacks["searches the memory"] = '''
import gc

def verify_answer(text, solution):
    for thing in gc.get_objects():
        if type(thing) is dict and "expected" in thing:
            return thing["expected"]
    return 1.0
'''
# Yours: attacks["my attack"] = "..."

for number, source in enumerate(attacks.values()):
    (submissions / f"attack_{number}.py").write_text(source)
command = [sys.executable, "-m", "autograder", "grade", str(submissions),
           "--lesson", "10", "--out", str(workplace / "marks"), "--jobs", "1"]
root = Path(rlhf_minimal.__file__).parents[1]
done = subprocess.run(command, cwd=root, capture_output=True, text=True)
with open(workplace / "marks" / "details.csv", encoding="utf-8") as file:
    rows = {row["submission"]: row for row in csv.DictReader(file)
            if row["exercise"] == "verify_answer"}
print("                     naive grader    this course's")
for number, (name, source) in enumerate(attacks.items()):
    row = rows[f"attack_{number}"]
    print(f"{name:20s} {naive_mark(source)} of 2 points   {row['points']} of "
          f"{row['out_of']} points: {row['verdict']}")

# %% [markdown]
# If your attack earned a mark, you have found a bug: the project has a folder of hostile
# submissions that must fail, and yours belongs in it. Note what the grader does *not*
# promise. A copied right answer is a right answer; and a function that is right on every
# case which is ever drawn is right, as far as any test can tell.
#
# The likeness to section 8 is no accident. A verifier, a reward model, an exam: each is a
# proxy, and whoever is optimised against it finds the gap between the proxy and what was
# meant. One can make the gap small, watch from outside (the strict count in section 8 was
# not in the loss), and not optimise for ever.

# %% [markdown]
# ## 10 · Against the exact optimum
#
# Last, the world of lesson 06 in which everything can be listed: the optimum $\pi^*$ of
# $\mathbb{E}[r] - \beta\,\mathrm{KL}$ is known, and so is each policy's distance
# $\mathrm{KL}(\pi\|\pi^*)$ from it. Three ways to train, all with groups of 16:
#
# - RLOO, with $\beta\log(\pi/\pi_{\mathrm{ref}})$ taken off the reward;
# - your GRPO advantages on the same rewards;
# - GRPO as published: advantages of the bare rewards, and $\beta\,k_3$ in the loss.
#
# **Predict** which of them arrive.

# %%
whose("rloo_advantages", "group_relative_advantages")
world = make_world(seed=0)
methods = {
    "RLOO": (dict(advantages=rloo_advantages), YELLOW, "-"),
    "GRPO": (dict(advantages=group_relative_advantages), GREEN, "-"),
    "GRPO, k3 in the loss": (
        dict(advantages=group_relative_advantages, kl_in="k3"), GREEN, "--"),
}
with open(root / "figures" / "exact_world.json", encoding="utf-8") as file:
    full = {row["method"]: row["kl"] for row in json.load(file)["rows"]
            if row["data"] in ("sampled", "–")}
begins = full["reference"][0]
figure, axes = plt.subplots(figsize=(7.2, 3.8), layout="constrained")
print("KL(π‖π*), nats           700 steps here     2,000 steps, five seeds")
for name, (options, colour, dash) in methods.items():
    _, history = train_group(world, steps=700, seed=0, **options)
    axes.plot(history["step"], history["kl"], dash, color=colour, linewidth=3,
              label=name)
    ends = full[name]
    print(f"{name:22s} {history['kl'][-1]:15.1e} {min(ends):17.1e} to {max(ends):.1e}")
axes.axhline(begins, color=GREY, linestyle=":", linewidth=1)
axes.text(700, begins * 1.1, "the reference", color=GREY, ha="right", va="bottom")
axes.set(title="RLOO and GRPO arrive when the KL is in the reward;\n"
         "GRPO with k3 in the loss ends about as far away as it began",
         xlabel="step", yscale="log", ylim=(None, 3 * begins),
         ylabel="distance from the optimum,\nKL(π‖π*) (nats)")
axes.spines[["top", "right"]].set_visible(False)
axes.legend(frameon=False, loc="lower left")
plt.show()

# %% [markdown]
# (The right column is from `figures/exact_world.json`, which `python -m rlhf_minimal
# exact --seeds 5` repeats.)
#
# Why does GRPO arrive although its direction is biased? At $\pi^*$, $r -
# \beta\log(\pi^*/\pi_{\mathrm{ref}}) = \beta\log Z$ is the same for every answer: all
# groups are silent, and any weighing of silent groups has the same end. The bias of
# section 2 decides the *way*, and, where the policy cannot do everything at once, the end
# too; a table can.
#
# Why does it not with $k_3$ in the loss? Two reasons, both of which you know. As a loss,
# $k_3$ has the gradient of $\mathrm{KL}(\pi_{\mathrm{ref}}\|\pi)$ (lesson 03). And the
# reward is divided by its deviation while the KL is not: where answers grow alike,
# rewards are blown up, and $\beta$ shrinks beside them. The $\beta$ of GRPO is no price
# in units of reward.
#
# ## 11 · To discuss
#
# 1. A group has $G = 2$. What are RLOO's advantages? And GRPO's, for rewards 0 and 1, and
#    for 0.50 and 0.51?
#
# <details>
# <summary>What we think</summary>
#
# RLOO: $\pm(r_1 - r_2)$. GRPO: $\pm 1/\sqrt2$ in both cases, since the deviation is
# $|r_1 - r_2|/\sqrt 2$. Only who won counts, not by how much: a hair's breadth is as good
# as a mile. With a noisy reward model that is a lot of noise at full volume.
#
# </details>
#
# 2. A budget of 128 answers a step: 64 groups of 2, or 2 groups of 64?
#
# <details>
# <summary>What we think</summary>
#
# Large groups have good baselines and catch rare successes; but questions vary as well,
# and 2 questions a step are a poor sample of them. A group of 2 is silent with
# probability $p^2 + (1-p)^2$, at least one half. Something between, and larger groups the
# harder the questions.
#
# </details>
#
# 3. All tokens of a right answer get the same advantage, a wrong step that was put right
#    later included. Does that matter? What would lesson 02 do?
#
# <details>
# <summary>What we think</summary>
#
# On average over many answers a bad step is found more often in wrong ones, so it is
# pushed down in the end; with noise. A value model could tell at which token the
# prospects fell (GAE). For short answers the noise is cheap, for very long ones it is
# what limits learning.
#
# </details>
#
# 4. A model's pass@1 went from 36% to 70%, its pass@64 from 98% to 92%. Colleague A says
#    "better", colleague B "it has forgotten". Who is right, and when does it matter?
#
# <details>
# <summary>What we think</summary>
#
# Both, if the intervals part. Whoever shows one answer to a user wants pass@1. Whoever
# has a verifier at run time, or goes on training from here, may miss the variety: what is
# never sampled any more can never be rewarded.
#
# </details>
#
# 5. Name a task whose answers a program can check, and then the cheapest way to satisfy
#    the program without doing the task.
#
# <details>
# <summary>What we think</summary>
#
# "Make the tests pass": change the tests, special-case their inputs, exit with 0 before
# they run. "The summary mentions all names": list the names. "The proof compiles": use an
# axiom that says so. If the cheap way is within reach of sampling, expect to meet it.
#
# </details>
#
# ## What to read next
#
# - A. Ahmadian et al., *Back to basics: revisiting REINFORCE style optimization for
#   learning from human feedback in LLMs*, 2024, arXiv 2402.14740; W. Kool, H. van Hoof &
#   M. Welling, *Buy 4 REINFORCE samples, get a baseline for free!*, ICLR 2019 workshop.
# - Z. Shao et al., *DeepSeekMath*, 2024, arXiv 2402.03300: GRPO.
# - Z. Liu et al., *Understanding R1-Zero-like training: a critical perspective*, 2025,
#   arXiv 2503.20783: what the two divisions do, and Dr. GRPO.
# - Q. Yu et al., *DAPO: an open-source LLM reinforcement learning system at scale*, 2025,
#   arXiv 2503.14476: silent groups, and the mean over tokens.
# - DeepSeek-AI, *DeepSeek-R1*, 2025, arXiv 2501.12948: rewards for accuracy and format.
# - M. Chen et al., *Evaluating large language models trained on code*, 2021, arXiv
#   2107.03374: pass@k.
# - Y. Yue et al., *Does reinforcement learning really incentivize reasoning capacity in
#   LLMs beyond the base model?*, 2025, arXiv 2504.13837.
# - The package's `rlhf_minimal/grpo.py`, `groups.py`, `verifiable.py` and
#   `arithmetic.py`: this lesson in code.
#
# **Next: lesson 11.** Choose a taste, and align a model to it.

# %%
print(f"{time.process_time():.0f} seconds of CPU time in this notebook so far")
