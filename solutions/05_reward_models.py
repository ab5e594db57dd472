# %% [markdown]
# # 05 · Reward models
#
# *Why this matters: nobody can write down what a good answer is, but people can say which
# of two is better. This lesson turns such clicks into a number that an optimiser can
# climb. Whatever the number gets wrong, the optimiser will find.*
#
# **You will be able to**
#
# - derive the Bradley–Terry model, fit it, and put intervals on what you fitted;
# - say what Elo ratings have to do with it, and what they lack;
# - write the loss of a reward model, and say what each of its mistakes costs;
# - compute how accurate a model can be at most when people disagree;
# - tell a calibrated reward model from an overconfident one, and mend the latter;
# - show what a reward model learns from annotators who like long answers;
# - read a reward at the right token, and save labels by pre-training on other
#   preferences.
#
# **It assumes** lesson 00 (pairs from a ranking), PyTorch with `backward()`, and of
# lesson 04 what a hidden state and a padded batch are.
#
# | | |
# |---|---|
# | reading | 35 minutes |
# | coding | 50 minutes, seven exercises, 13 points |
# | computing | under two minutes on one CPU core; the last cell says how much it was |
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
import itertools
import random
import time

import matplotlib.pyplot as plt
import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from autograder import check
from rlhf_minimal import toy_world
from rlhf_minimal.gold_reward import Annotator
from rlhf_minimal.kitchen import Kitchen, KitchenSizes
from rlhf_minimal.pairs import TokenPair, collate_answers, distinct_answers
from rlhf_minimal.reward_model import train_reward_model
from rlhf_minimal.tokenizer import prettify

plt.rcParams["figure.dpi"] = 84
torch.set_num_threads(1)  # a model this small only loses time to a second thread
BLUE, ORANGE, GREEN, GREY = "#0072B2", "#E69F00", "#009E73", "#666666"
SKY, RED, PURPLE = "#56B4E9", "#D55E00", "#CC79A7"


def whose(*names):
    """Says with whose functions the next experiment runs."""
    for name in names:
        own = globals()[name].__module__ == "__main__"
        print(f"{name:20s} {'yours' if own else 'ours'}")


# %% [markdown]
# ## 1 · A click is a match
#
# An annotator is shown a prompt and several answers and ranks them. Lesson 00 took the
# ranking apart: four answers, six pairs. Each pair is a *match* that one answer has won
# and the other lost. So the question of this lesson is an old one, from chess and from
# tasting experiments: **given who beat whom, how strong is everybody?**
#
# Give each answer a positive strength $\pi_i$, and let it win its share:
#
# $$P(i \succ j) = \frac{\pi_i}{\pi_i + \pi_j}.$$
#
# That is the model of Bradley & Terry (1952). Write $\pi_i = e^{s_i}$ and divide by the
# numerator:
#
# $$P(i \succ j) = \frac{e^{s_i}}{e^{s_i} + e^{s_j}}
#   = \frac{1}{1 + e^{-(s_i - s_j)}} = \sigma(s_i - s_j).$$
#
# So $s_i - s_j = \log\frac{P}{1-P}$: the **difference of strengths is the log-odds of
# winning**, in nats. Add 5 to all strengths and nothing changes: their zero is free, and
# we shall hold their mean at 0.
#
# *Where could such a law come from?* Suppose each time an annotator reads answer $i$, it
# is worth $s_i + \varepsilon_i$ to her, with an $\varepsilon$ that varies with her mood,
# and she prefers what is worth more. If the $\varepsilon$ are independent and follow
# Gumbel's distribution, $P(\varepsilon \le x) = e^{-e^{-x}}$, their difference is
# logistic and $P(i \succ j) = \sigma(s_i - s_j)$ exactly. We shall use that in section 8.
#
# **Elo.** Chess federations cannot refit all strengths after each game. They move the two
# players' ratings a little. With $S_a$ the score (1 won, 0 lost, ½ tied),
#
# $$E_a = \frac{1}{1 + 10^{(R_b - R_a)/400}}, \qquad
#   R_a \leftarrow R_a + k\,(S_a - E_a), \qquad R_b \leftarrow R_b - k\,(S_a - E_a).$$
#
# $E_a$ is Bradley–Terry's probability with
# $R = \frac{400}{\log 10}\, s \approx 173.7\, s$. And the step is no accident. One game's
# log-likelihood is $\ell = S_a \log\sigma(d) + (1 - S_a)\log\sigma(-d)$ with
# $d = s_a - s_b$. From $\sigma'= \sigma(1-\sigma)$,
#
# $$\frac{\partial \ell}{\partial s_a}
#   = S_a\,(1 - \sigma(d)) - (1 - S_a)\,\sigma(d) = S_a - \sigma(d) = S_a - E_a .$$
#
# **Elo is stochastic gradient ascent on Bradley–Terry's likelihood, one game a step, at a
# learning rate that never falls**: $k = 32$ points are $32/173.7 \approx 0.18$ nats.

# %% [markdown]
# ### 05.1 · `elo_update` — difficulty 1 of 5, 5 minutes, 1 point
#
# <details>
# <summary>Hint 1: two lines and a return</summary>
#
# First the expected score of a, from both ratings *before* the game; then the points that
# change hands.
#
# </details>
#
# <details>
# <summary>Hint 2: check the sign</summary>
#
# A favourite ($R_a \gg R_b$) must have an expected score near 1: there
# `10 ** ((rating_b - rating_a) / 400)` is tiny.
#
# </details>
#
# <!-- answer: elo_update -->


# %%
def elo_update(rating_a, rating_b, score_a, k=32.0):
    """Both ratings after one game.

    Args:
        rating_a, rating_b: ratings before the game, in points (floats).
        score_a: 1.0 where a won, 0.0 where b won, 0.5 for a tie.
        k: how many points one game can move a rating at most.

    Returns:
        (new_rating_a, new_rating_b). What a gains, b loses.

    Example: ratings 1600 and 1200 and score 0 (the favourite lost; E_a = 10/11) give
    (1570.91, 1229.09).
    """
    # SOLUTION
    expected_a = 1 / (1 + 10 ** ((rating_b - rating_a) / 400))
    change = k * (score_a - expected_a)
    return rating_a + change, rating_b - change
    # END SOLUTION


# %%
elo_update = check(elo_update)

# %% [markdown]
# ## 2 · All matches at once
#
# Elo forgets: what a game long ago said is overwritten by later ones, and the order of
# games matters. If the strengths do not change (answers do not), nothing speaks for that.
# Take *all* games and find the strengths that make them most likely. With $w_{ij}$ the
# number of times $i$ beat $j$ and $n_{ij} = w_{ij} + w_{ji}$:
#
# $$\ell(s) = \sum_{i \ne j} w_{ij}\,\log\sigma(s_i - s_j), \qquad
# \frac{\partial \ell}{\partial s_i}
#   = \sum_{j}\big(w_{ij} - n_{ij}\,\sigma(s_i - s_j)\big).$$
#
# Each game contributes Elo's $S - E$; at the maximum, **everybody has won as many games
# as the model expects**. Differentiate once more:
#
# $$-\frac{\partial^2 \ell}{\partial s_i\,\partial s_j} = -\,n_{ij}\,p_{ij}(1 - p_{ij})
# \quad (i \ne j), \qquad
# -\frac{\partial^2 \ell}{\partial s_i^2} = \sum_{j} n_{ij}\,p_{ij}(1 - p_{ij}).$$
#
# This matrix $I$ is the **Fisher information**. It is never negative in any direction, so
# $\ell$ is concave and has one top, if it has one: when some answers have never lost
# against the rest, their strengths run off to infinity (Ford 1957). Its rows sum to 0:
# all strengths moved together change nothing, and $I$ has no inverse. Adding $1/n$ to
# each entry fills just that direction. **Newton's step**
# $(I + \tfrac1n)^{-1}\,\nabla\ell$ is therefore well defined and keeps the mean at 0.

# %% [markdown]
# ### 05.2 · `fit_bradley_terry` — difficulty 4 of 5, 14 minutes, 3 points
#
# <details>
# <summary>Hint 1: as matrices</summary>
#
# `p = torch.sigmoid(s[:, None] - s[None, :])` holds every $p_{ij}$;
# `games = wins + wins.T`. The gradient is `(wins - games * p).sum(1)`; the weights
# $n_{ij}p_{ij}(1-p_{ij})$ are `games * p * (1 - p)`, and $I$ is
# `torch.diag(weight.sum(1)) - weight`.
#
# </details>
#
# <details>
# <summary>Hint 2: the loop</summary>
#
# Start at zero and repeat some thirty times
# `s = s + torch.linalg.solve(information + 1 / n, gradient)`. Where results are lopsided
# a full step may overshoot: scale it so that no entry exceeds 1. Use float64
# (`wins.double()`). Many small gradient steps do it, too, only more slowly.
#
# </details>
#
# <!-- answer: fit_bradley_terry -->


# %%
def fit_bradley_terry(wins):
    """Maximum-likelihood strengths of the Bradley–Terry model.

    Args:
        wins: shape (n, n), counts; wins[i, j] says how often i beat j. The diagonal is
            0, and everybody is connected with everybody through wins.

    Returns:
        Strengths, shape (n,), in nats, with mean 0. Right to three decimals at least.

    Example: [[0, 3], [1, 0]] gives [0.5493, −0.5493]: a difference of log 3.
    """
    # SOLUTION
    wins = wins.double()
    games, n = wins + wins.T, len(wins)
    strengths = torch.zeros(n, dtype=torch.float64)
    for _ in range(30):
        p = torch.sigmoid(strengths[:, None] - strengths[None, :])
        gradient = (wins - games * p).sum(1)
        weight = games * p * (1 - p)
        information = torch.diag(weight.sum(1)) - weight
        step = torch.linalg.solve(information + 1 / n, gradient)
        strengths = strengths + step / max(1.0, step.abs().max().item())
    return strengths - strengths.mean()
    # END SOLUTION


# %%
fit_bradley_terry = check(fit_bradley_terry)

# %% [markdown]
# **How sure are we?** Another set of matches would have given other strengths. For many
# games the estimate scatters like a Gaussian whose covariance is the inverse of $I$; in
# the directions that are determined, that is
#
# $$C = \left(I + \tfrac1n\right)^{-1} - \tfrac1n, \qquad
#   \mathrm{error}(s_i) = \sqrt{C_{ii}} .$$
#
# (Minus $1/n$ takes the filled direction out again; $C$ is the pseudo-inverse of $I$.)
# A 95% interval is $s_i \pm 1.96$ errors.
#
# ### 05.3 · `bradley_terry_errors` — difficulty 3 of 5, 8 minutes, 2 points
#
# <details>
# <summary>Hint 1: you have most of it</summary>
#
# The information is the same as in the fit, at the strengths that are given.
#
# </details>
#
# <details>
# <summary>Hint 2: invert, then pick</summary>
#
# Invert the whole matrix before taking the diagonal: the other strengths are uncertain
# too. `torch.linalg.inv(information + 1 / n) - 1 / n`, then `.diagonal().sqrt()`. Without
# the first `1 / n` there is no inverse, and rounding makes huge or negative "variances"
# of that: NaN. (`torch.linalg.pinv(information)` does it in one go.)
#
# </details>
#
# <!-- answer: bradley_terry_errors -->


# %%
def bradley_terry_errors(wins, strengths):
    """Standard errors of Bradley–Terry strengths, from the Fisher information.

    Args:
        wins: shape (n, n), float64; wins[i, j] says how often i beat j.
        strengths: shape (n,), float64, mean 0: where to compute the information.

    Returns:
        One standard error a strength, shape (n,), of strengths whose mean is held at 0.

    Example: wins [[0, 8], [8, 0]] with strengths [0, 0] give [0.25, 0.25].
    """
    # SOLUTION
    n = len(wins)
    p = torch.sigmoid(strengths[:, None] - strengths[None, :])
    weight = (wins + wins.T) * p * (1 - p)
    information = torch.diag(weight.sum(1)) - weight
    covariance = torch.linalg.inv(information + 1 / n) - 1 / n
    return covariance.diagonal().sqrt()
    # END SOLUTION


# %%
bradley_terry_errors = check(bradley_terry_errors)

# %% [markdown]
# ## 3 · A tournament in the kitchen
#
# Time for matches. Six contestants answer the kitchen's prompts, questions and posts to
# sum up: the base model, the SFT model, the same at temperature 1.5 (lesson 04), the SFT
# model behind a rambling first sentence, people, and "best of 4": of four SFT answers
# the one with the highest gold reward (lesson 00: what an answer is really worth here).
# The judge is a simulated annotator who follows Bradley–Terry on the gold reward, at
# temperature 0.8. (Base and SFT model are trained for fewer steps than in lesson 04, to
# save time for what comes.)

# %%
sizes = KitchenSizes(base_steps=600, sft_steps=200)
kitchen = Kitchen(seed=0, sizes=sizes)
tokenizer = kitchen.tokenizer
kitchen.train_base(show_progress=False)
kitchen.train_sft(show_progress=False)
PAD, END, V = tokenizer.pad_id, tokenizer.end_id, len(tokenizer)
annotator = Annotator(temperature=0.8)
decode, encode = tokenizer.decode, tokenizer.encode

prompts = toy_world.sample_prompts(400, seed=21)
rng = random.Random("tournament")


def words_of(policy, seed, **options):
    """The policy's answers to the tournament's prompts, as text."""
    rollouts = kitchen.rollouts(policy, prompts, seed, **options)
    return [decode(answer) for answer in rollouts.answers()]


four = [words_of(kitchen.sft, seed) for seed in (31, 32, 33, 34)]
answers = {
    "best of 4": [max(group, key=lambda a, p=p: annotator.score(p, a))
                  for p, group in zip(prompts, zip(*four, strict=True), strict=True)],
    "people": [toy_world.write_answer(prompt, rng) for prompt in prompts],
    "SFT": words_of(kitchen.sft, 35),
    "SFT, rambling": [f"{rng.choice(toy_world.RAMBLINGS)} {a}"
                      for a in words_of(kitchen.sft, 36)],
    "SFT, T = 1.5": words_of(kitchen.sft, 37, temperature=1.5),
    "base": words_of(kitchen.base, 38),
}
players = list(answers)
n = len(players)
for kind in (False, True):
    i = next(i for i, p in enumerate(prompts) if toy_world.is_summary(p) == kind)
    print(prettify(prompts[i]))
    for name in players:
        print(f"    {name:14s} {prettify(answers[name][i])}")

# %%
worth = torch.tensor([[annotator.score(p, a) for p, a in zip(prompts, answers[name],
                                                             strict=True)]
                      for name in players], dtype=torch.float64)  # (n, prompts)
beats = torch.sigmoid((worth[:, None] - worth[None, :]) / annotator.temperature)


def tournament(generator, matches=600):
    """Who met whom, and whether the first one won: three tensors (matches,)."""
    pairs = torch.tensor(list(itertools.combinations(range(n), 2)))
    first, second = pairs[torch.randint(len(pairs), (matches,), generator=generator)].T
    question = torch.randint(len(prompts), (matches,), generator=generator)
    won = torch.rand(matches, generator=generator) < beats[first, second, question]
    return first, second, won


def count_wins(first, second, won):
    """The matrix of wins, (n, n)."""
    wins = torch.zeros(n, n, dtype=torch.float64)
    winner, loser = torch.where(won, first, second), torch.where(won, second, first)
    return wins.index_put((winner, loser), torch.tensor(1.0).double(), accumulate=True)


def play_elo(games, k=32.0):
    """Ratings after each game, (matches + 1, n), from 0 for everybody."""
    ratings, path = [0.0] * n, [[0.0] * n]
    for a, b, won in zip(*(x.tolist() for x in games), strict=True):
        new = elo_update(ratings[a], ratings[b], float(won), k)
        ratings[a], ratings[b] = map(float, new)
        path.append(list(ratings))
    return torch.tensor(path)


def fit_all(wins):
    """Your strengths and their errors, in points."""
    strengths = fit_bradley_terry(wins).detach().double()
    return strengths * POINTS, bradley_terry_errors(wins, strengths).detach() * POINTS


whose("elo_update", "fit_bradley_terry", "bradley_terry_errors")
generator = torch.Generator().manual_seed(5)
games = tournament(generator)
POINTS = 400 / np.log(10)
# What endlessly many matches would give: each pair's mean chance as its "wins".
limit = beats.mean(-1).fill_diagonal_(0)
truth, _ = fit_all(limit)

wins = count_wins(*games)
fitted, errors = fit_all(wins)
path = play_elo(games)
boots, shuffled = [], []
for _ in range(200):
    draw = torch.randint(len(games[0]), (len(games[0]),), generator=generator)
    boots.append(fit_all(count_wins(*(x[draw] for x in games)))[0])
    order = torch.randperm(len(games[0]), generator=generator)
    shuffled.append(play_elo([x[order] for x in games])[-1])
boots, shuffled = torch.stack(boots), torch.stack(shuffled)
bootstrap = boots.quantile(torch.tensor([0.025, 0.975]).double(), dim=0)
by_order = shuffled.quantile(torch.tensor([0.025, 0.975]), dim=0)

print("points            limit   Elo   BT   ±Fisher   bootstrap 95%     "
      "Elo, 95% of orders")
for i, name in enumerate(players):
    print(f"{name:16s} {truth[i]:6.0f} {path[-1, i]:5.0f} {fitted[i]:5.0f} "
          f"{1.96 * errors[i]:8.0f}     {bootstrap[0, i]:5.0f} to "
          f"{bootstrap[1, i]:4.0f}     {by_order[0, i]:5.0f} to {by_order[1, i]:4.0f}")

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(10.8, 4.0), layout="constrained")
colours = [GREEN, "#000000", BLUE, RED, ORANGE, GREY]
for i, name in enumerate(players):
    left.plot(path[:, i], color=colours[i], label=name)
left.set(title="Elo never comes to rest", xlabel="matches played",
         ylabel="Elo rating, k = 32 (points)")
left.set_ylim(None, 420)
left.legend(frameon=False, fontsize=9, ncols=3, loc="upper center")
place = np.arange(n)[::-1]
marks = [
    right.errorbar(fitted, place + 0.2, xerr=1.96 * errors, fmt="o", color=BLUE,
                   label="Bradley–Terry, ±1.96 Fisher errors"),
    right.hlines(place, *bootstrap, color=SKY, linewidth=5,
                 label="Bradley–Terry, bootstrap 95%"),
    right.hlines(place - 0.2, *by_order, color=ORANGE, linewidth=5,
                 label="Elo, 95% of 200 orders of the same matches"),
    right.vlines(truth, place - 0.4, place + 0.4, color="black",
                 label="limit of endless matches"),
]
elo_width = (by_order[1] - by_order[0]).mean()
bt_width = (bootstrap[1] - bootstrap[0]).mean()
right.set(title=f"The order alone moves Elo by {elo_width:.0f} points;\n"
          f"new matches would move Bradley–Terry by {bt_width:.0f}", yticks=place,
          xlabel="points, mean 0", ylim=(-3.0, n - 0.5))
right.set_yticks(place, players)
right.legend(handles=marks, frameon=False, fontsize=9, loc="lower right")
for axes in (left, right):
    axes.spines[["top", "right"]].set_visible(False)
plt.show()

# %% [markdown]
# Fisher and bootstrap agree, and neither knows of the other: one is a formula, the other
# draws the matches anew, with replacement, and fits again. Elo, from the *same* matches,
# depends on the order in which they happened to be played. (A smaller $k$ scatters
# less and arrives later. The leaderboard of Chatbot Arena fits Bradley–Terry to all of
# its votes: Chiang et al. 2024.)
#
# Do the intervals keep their promise? 300 further tournaments:

# %%
inside, elo_miss, bt_miss = [], [], []
for _ in range(300):
    games = tournament(generator)
    wins = count_wins(*games)
    found, error = fit_all(wins)
    inside.append(((found - truth).abs() <= 1.96 * error).double())
    bt_miss.append((found - truth).square())
    elo_miss.append((play_elo(games)[-1] - truth).square())
print(f"95% intervals that hold the limit: {torch.stack(inside).mean():.1%}")
print("root mean square error: Bradley–Terry "
      f"{torch.stack(bt_miss).mean().sqrt():.0f}, "
      f"Elo {torch.stack(elo_miss).mean().sqrt():.0f} points")
p_model = torch.sigmoid((truth[:, None] - truth[None, :]) / POINTS)
gap = (p_model - limit).abs().fill_diagonal_(0)
i, j = divmod(int(gap.argmax()), n)
print(f"worst pair: {players[i]} beats {players[j]} with {limit[i, j]:.3f}, "
      f"one strength each says {p_model[i, j]:.3f}")

# %% [markdown]
# The last line is a warning. Six strengths cannot know that contestants are good at
# different prompts: averaged over prompts, chances need not follow Bradley–Terry. Here
# the gap is small. It is the reason to give a strength to each *answer*
# and not to each contestant, and that is a reward model.

# %% [markdown]
# ## 4 · From strengths to a function
#
# A strength for each answer ever written cannot be looked up; it must be *computed* from
# prompt $x$ and answer $y$. Replace $s_i$ by a model $r_\theta(x, y)$, and everything
# above stays:
# $P(y_w \succ y_l \mid x) = \sigma\big(r_\theta(x, y_w) - r_\theta(x, y_l)\big)$. The
# likelihood of all labels is a product over pairs; its negative logarithm, the mean over
# pairs, is the loss:
#
# $$L(\theta) = -\,\mathbb{E}\big[\log\sigma\big(r_\theta(x, y_w)
#   - r_\theta(x, y_l)\big)\big].$$
#
# Ouyang et al. (2022) train InstructGPT's reward model so, with $K = 4$ to 9 ranked
# answers to a prompt, all $\binom K2$ pairs in one batch. What does a pair cost, with
# $d = r_w - r_l$?
#
# | case | $d$ | loss $-\log\sigma(d)$ | pull on $r_w$: $\sigma(-d)$ |
# |---|---|---|---|
# | clearly right | 3 | 0.049 | 0.047 |
# | cannot tell | 0 | $\log 2 = 0.693$ | 0.5 |
# | clearly wrong | −3 | 3.049 | 0.953 |
#
# The pull, $-\partial L/\partial r_w = 1 - \sigma(d) = \sigma(-d)$, is the probability
# that the model gave to the *other* outcome: Elo's $S - E$ once more. $r_l$ is pushed
# down by as much.
#
# **Without −log.** Teaching material in circulation gives the loss as
# $\sigma(r_w - r_l)$. Minimise that, and the model learns to prefer what people rejected.
# With its sign mended, $-\sigma(d)$, it trains, but its pull $\sigma(d)\,\sigma(-d)$ is
# gone for the very pairs that are badly wrong. You will see both in the figure below.
#
# A **margin** $m$ asks more, $-\log\sigma(d - m)$: where annotators said how much better
# the chosen answer is, let $m$ grow with that (Touvron et al. 2023).

# %% [markdown]
# ### 05.4 · `pairwise_loss` — difficulty 2 of 5, 6 minutes, 2 points
#
# <details>
# <summary>Hint 1: let torch do the logarithm</summary>
#
# `F.logsigmoid(d)` is right for d = −1000 too, where `torch.sigmoid(d)` is 0 and its
# logarithm −∞.
#
# </details>
#
# <details>
# <summary>Hint 2: one line</summary>
#
# Minus, log-sigmoid of (chosen − rejected − margin), mean.
#
# </details>
#
# <!-- answer: pairwise_loss -->


# %%
def pairwise_loss(chosen, rejected, margin=0.0):
    """Mean of −log σ(r_chosen − r_rejected − margin) over pairs.

    Args:
        chosen, rejected: rewards of the two answers of each pair, shape (B,).
        margin: by how much chosen should win; a number, or a tensor of shape (B,).

    Returns:
        A scalar in nats, with gradient to the rewards; finite for any finite rewards.

    Example: chosen [1.0] and rejected [1.0] give log 2 = 0.6931.
    """
    # SOLUTION
    return -F.logsigmoid(chosen - rejected - margin).mean()
    # END SOLUTION


# %%
pairwise_loss = check(pairwise_loss)

# %%
whose("pairwise_loss")
d = torch.linspace(-6, 6, 241, requires_grad=True)
zero = torch.zeros(())
losses = {
    "−log σ(d)": (torch.stack([pairwise_loss(x[None], zero[None]) for x in d]), BLUE),
    "−σ(d): without the logarithm": (-torch.sigmoid(d), ORANGE),
    "σ(d): without −log": (torch.sigmoid(d), RED),
}
figure, (left, right) = plt.subplots(1, 2, figsize=(10.5, 3.5), layout="constrained")
for name, (loss, colour) in losses.items():
    (slope,) = torch.autograd.grad(loss.sum(), d)
    left.plot(d.detach(), loss.detach(), color=colour, linewidth=2, label=name)
    right.plot(d.detach(), -slope, color=colour, linewidth=2)
left.set(title="Only −log σ goes on counting what is badly wrong",
         xlabel="d: reward of chosen − reward of rejected", ylabel="loss of a pair")
left.legend(frameon=False)
right.axhline(0, color=GREY, linewidth=0.8)
right.set(title="−σ lets go of wrong pairs; σ pushes the wrong way",
          xlabel="d: reward of chosen − reward of rejected",
          ylabel="pull on the chosen answer's reward")
for axes in (left, right):
    axes.spines[["top", "right"]].set_visible(False)
plt.show()

# %% [markdown]
# ## 5 · How good can a reward model be?
#
# InstructGPT's labellers agreed with each other on about 73% of the pairs (Ouyang et al.
# 2022); around 70% is common. Does that mean that no reward model can be more accurate
# than 70%?
#
# Let $p$ be the probability that an annotator prefers the first answer of a pair. Two
# annotators, each for himself, **agree** with probability $p^2 + (1-p)^2$. A model that
# knows everything can but say which answer is likelier to win, and is right with
# $\max(p, 1-p)$. So over many pairs
#
# $$a = \mathbb{E}\big[p^2 + (1-p)^2\big], \qquad
#   \text{ceiling} = \mathbb{E}\big[\max(p, 1-p)\big].$$
#
# Usually one knows the agreement only. How far does it fix the ceiling? With
# $m = \max(p, 1-p)$ a pair's agreement is $a(m) = 1 - 2m(1 - m)$.
#
# - *From below.* $a(m) \le m$ is the same as $1 - m \le 2m(1-m)$, which holds as
#   $m \ge \tfrac12$. So the **ceiling is at least the agreement**: the model need not
#   toss the second annotator's coin. They are equal where each pair is either certain
#   or a coin's toss.
# - *From above.* $a(m)$ is convex, so by Jensen's inequality
#   $a \ge 1 - 2M(1-M)$ with $M = \mathbb{E}[m]$. Solved for $M$:
#
# $$a \;\le\; \text{ceiling} \;\le\; \frac{1 + \sqrt{2a - 1}}{2},$$
#
# with equality on the right where all pairs are equally hard. An agreement of 73% allows
# an accuracy between 73% and 84%.

# %% [markdown]
# ### 05.5 · `agreement_ceiling` — difficulty 2 of 5, 6 minutes, 2 points
#
# <details>
# <summary>Hint 1: agreement</summary>
#
# Both say "first", or both say "second": $p^2 + (1-p)^2$ for each pair, then the mean.
#
# </details>
#
# <details>
# <summary>Hint 2: ceiling</summary>
#
# `torch.maximum(p, 1 - p)` for each pair, *then* the mean.
#
# </details>
#
# <!-- answer: agreement_ceiling -->


# %%
def agreement_ceiling(probabilities):
    """How often two annotators agree, and the best accuracy that a model can have.

    Args:
        probabilities: shape (B,); for each pair the probability that an annotator
            prefers its first answer.

    Returns:
        (agreement, ceiling), two scalars between ½ and 1: the expected share of pairs
        on which two annotators say the same, and the expected accuracy, against one
        annotator's labels, of a model that knows the probabilities.

    Example: [0.8, 0.5] gives an agreement of (0.68 + 0.5)/2 = 0.59 and a ceiling of
    (0.8 + 0.5)/2 = 0.65.
    """
    # SOLUTION
    p = probabilities
    agreement = (p**2 + (1 - p) ** 2).mean()
    ceiling = torch.maximum(p, 1 - p).mean()
    return agreement, ceiling
    # END SOLUTION


# %%
agreement_ceiling = check(agreement_ceiling)

# %% [markdown]
# Now data: three SFT answers to each of 2,000 prompts, two to each of 800 held-out
# prompts (dish and question, or name, dish and outcome, in combinations that nothing was
# trained on; a prompt may come more than once). Since our annotator is simulated we know
# $p$ for each pair, and can turn two dials: *temperature*, how hard small differences are
# to see, and *noise*, the share $\varepsilon$ of labels that are turned round whatever
# the answers:
# $p' = (1-\varepsilon)\,p + \varepsilon\,(1-p)$.


# %%
def compare_all(texts, seed, answers_a_prompt):
    """Pairs of different SFT answers (text, answer, answer), and the place of each's prompt.
    """
    written = kitchen.answers(
        kitchen.sft, [text for text in texts for _ in range(answers_a_prompt)], seed
    )
    pairs, places = [], []
    for i, text in enumerate(texts):
        group = written[i * answers_a_prompt : (i + 1) * answers_a_prompt]
        new = [(text, a, b) for a, b in itertools.combinations(group, 2) if a != b]
        pairs += new
        places += [i] * len(new)
    return pairs, places


def scores_by(who, pairs):
    """What an annotator's taste says to both answers of each pair, (pairs, 2)."""
    return torch.tensor([[who.score(text, decode(answer)) for answer in two]
                         for text, *two in pairs])


def chance_first(scores, temperature=0.8, noise=0.0):
    """The annotator's probability of preferring the first answer, (pairs,)."""
    p = torch.sigmoid((scores[:, 0] - scores[:, 1]) / temperature)
    return (1 - noise) * p + noise * (1 - p)


train_texts = toy_world.sample_prompts(2000, seed=2)
test_texts = toy_world.sample_prompts(800, seed=77, held_out=True)
train, prompt_of = compare_all(train_texts, 3, 3)
test, _ = compare_all(test_texts, 4, 2)
gold_train, gold_test = scores_by(annotator, train), scores_by(annotator, test)
is_summary = torch.tensor([toy_world.is_summary(text) for text, *_ in test])
print(f"{len(train):,} pairs to learn from, {len(test)} to test on")
text, a, b = test[int(is_summary.float().argmax())]
print(prettify(text))
p = chance_first(scores_by(annotator, [(text, a, b)])).item()
print(f"    {p:.0%} prefer   {prettify(decode(a))}")
print(f"    {1 - p:.0%} prefer   {prettify(decode(b))}")

# %%
whose("agreement_ceiling")
dials = [(temperature, noise) for temperature in (0.2, 0.4, 0.8, 1.6)
         for noise in (0.0, 0.15, 0.3)]
people = {dial: [float(x) for x in agreement_ceiling(chance_first(gold_test, *dial))]
          for dial in dials}
a = np.linspace(0.5, 1, 200)
figure, axes = plt.subplots(figsize=(6.4, 4.2), layout="constrained")
axes.fill_between(a, a, (1 + np.sqrt(2 * a - 1)) / 2, color="#DDDDDD",
                  label="possible: a ≤ ceiling ≤ (1 + √(2a − 1))/2")
for noise, colour in ((0.0, BLUE), (0.15, ORANGE), (0.3, RED)):
    found = np.array([people[t, noise] for t in (0.2, 0.4, 0.8, 1.6)])
    axes.plot(*found.T, "o-", color=colour,
              label=f"kitchen, {noise:.0%} of labels flipped")
axes.plot([0.73, 0.73], [0.73, (1 + 0.46**0.5) / 2], color="black", linewidth=3,
          label="InstructGPT's labellers: about 73%")
found = people[0.8, 0.0]
axes.annotate("our annotator", found, (found[0] + 0.06, found[1] - 0.045),
              arrowprops=dict(arrowstyle="-", color=GREY))
axes.set(title=f"Agreeing on {found[0]:.0%} of pairs still allows an accuracy of "
         f"{found[1]:.0%}", xlabel="agreement of two annotators",
         ylabel="best accuracy against one annotator", xlim=(0.5, 1), ylim=(0.5, 1.01))
axes.spines[["top", "right"]].set_visible(False)
axes.legend(frameon=False, loc="lower right", fontsize=9)
plt.show()

# %% [markdown]
# ## 6 · Labels, noise, and a reward model in no time
#
# To see how accuracy grows with labels we need a hundred reward models. So
# this section's are cheap: the SFT model stays as it is, and only a **linear head** on
# what it computes is fitted, with your loss. For each answer: the sum and the mean of its
# tokens' hidden states, and how likely the SFT model finds the answer (sum, mean and
# smallest of its tokens' log-probabilities); 131 numbers. A small ridge penalty keeps
# the weights from running off with few labels (a Gaussian prior). From section 9 on we
# train all weights, as is usual.


# %%
@torch.no_grad()
def features_of(examples):
    """Numbers (N, 131) from the frozen SFT model, for N pairs (prompt, answer)."""
    rows = []
    for start in range(0, len(examples), 300):
        prompt_ids, answer_ids = zip(*examples[start : start + 300], strict=True)
        tokens, attention_mask, mask = collate_answers(prompt_ids, answer_ids, PAD)
        hidden = kitchen.sft.hidden_states(tokens, attention_mask)  # (B, T, W)
        log_p = kitchen.sft.output(hidden)[:, :-1].log_softmax(-1)
        log_p = log_p.gather(-1, tokens[:, 1:, None]).squeeze(-1)  # (B, T - 1)
        log_p = log_p * mask[:, 1:]
        count, total = mask.sum(-1, keepdim=True), (hidden * mask[..., None]).sum(1)
        likely = log_p.sum(-1, keepdim=True)
        smallest = log_p.min(-1, keepdim=True).values
        rows.append(torch.cat([total / 10, total / count, likely / 10, likely / count,
                               smallest], -1))
    return torch.cat(rows)


def pair_features(pairs):
    """Features of both answers of each pair, (pairs, 2, 131)."""
    examples = [(encode(text), answer) for text, *two in pairs for answer in two]
    return features_of(examples).view(len(pairs), 2, -1)


def fit_head(loss_of, size, ridge):
    """Weights (size,) that minimise ``loss_of(weights)`` plus a ridge penalty."""
    weights = torch.zeros(size, requires_grad=True)
    optimizer = torch.optim.LBFGS([weights], max_iter=60, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        loss = loss_of(weights) + ridge * weights.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    return weights.detach()


def fit_on_pairs(features, first_won, strength=4.0):
    """A linear reward from comparisons: features (N, 2, F), labels (N,)."""
    first_won = first_won[:, None]
    chosen = torch.where(first_won, features[:, 0], features[:, 1])
    rejected = torch.where(first_won, features[:, 1], features[:, 0])
    return fit_head(lambda w: pairwise_loss(chosen @ w, rejected @ w),
                    features.shape[-1], strength / len(features))


def accuracy(margin, p):
    """Expected accuracy against one annotator's labels, given r(first) − r(second)."""
    return torch.where(margin > 0, p, 1 - p).mean().item()


def margin_of(weights, features=None):
    """r(first) − r(second), of the test pairs unless others are given."""
    features = on_test if features is None else features
    return (features[:, 0] - features[:, 1]) @ weights


raw_train, raw_test = pair_features(train), pair_features(test)
scale = raw_train.flatten(0, 1).std(0) + 1e-3
on_train, on_test = raw_train / scale, raw_test / scale

# %%
whose("pairwise_loss", "agreement_ceiling")
SIZES, NOISES, SEEDS = (50, 150, 500, 1500, 5000), (0.0, 0.15, 0.3), 5
clean = (gold_test[:, 0] != gold_test[:, 1])  # pairs with a better answer
truly = (gold_test[:, 0] > gold_test[:, 1])[clean]


def finds_better(margin):
    """Share of the test pairs in which the model finds the answer of higher gold."""
    return ((margin[clean] > 0) == truly).float().mean().item()


sweep = {}
for noise in NOISES:
    p_test = chance_first(gold_test, noise=noise)
    for size, seed in itertools.product(SIZES, range(SEEDS)):
        g = torch.Generator().manual_seed(seed)
        rows = torch.randperm(len(train), generator=g)[:size]
        p_train = chance_first(gold_train, noise=noise)[rows]
        labels = torch.rand(size, generator=g) < p_train
        margin = margin_of(fit_on_pairs(on_train[rows], labels))
        sweep.setdefault((noise, size), []).append(
            (accuracy(margin, p_test), finds_better(margin))
        )
ceilings = {noise: float(agreement_ceiling(chance_first(gold_test, noise=noise))[1])
            for noise in NOISES}
print("accuracy against one annotator's labels, as noisy as those learned from")
print("flipped   " + "   ".join(f"{size:>6,d}" for size in SIZES) + "   ceiling")
for noise in NOISES:
    means = [np.mean(sweep[noise, size], 0)[0] for size in SIZES]
    print(f"{noise:7.0%}   " + "   ".join(f"{m:6.3f}" for m in means)
          + f"   {ceilings[noise]:7.3f}")
print("the same models against the better answer by the gold reward")
for noise in NOISES:
    means = [np.mean(sweep[noise, size], 0)[1] for size in SIZES]
    print(f"{noise:7.0%}   " + "   ".join(f"{m:6.3f}" for m in means) + "     1.000")

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(10.8, 4.0), layout="constrained")
for noise, colour in zip(NOISES, (BLUE, ORANGE, RED), strict=True):
    values = np.array([sweep[noise, size] for size in SIZES])  # (sizes, seeds, 2)
    for which, axes in enumerate((left, right)):
        one = values[..., which]
        axes.errorbar(SIZES, one.mean(1), one.std(1, ddof=1), fmt="o-",
                      color=colour, capsize=3, label=f"{noise:.0%} flipped")
    left.axhline(ceilings[noise], color=colour, linestyle="--", linewidth=1)
left.text(52, ceilings[0.0] + 0.004, "ceilings (dashed)", fontsize=9, color=GREY)
left.set(title="Noise lowers the ceiling, and the way to it is longer",
         ylabel="accuracy against equally noisy labels", ylim=(0.44, 0.8))
best = np.mean(sweep[0.15, SIZES[-1]], 0)
right.set(title=f"At 15%, what measures as {best[0]:.0%} is right in {best[1]:.0%}",
          ylabel="accuracy against the gold reward")
for axes in (left, right):
    axes.set(xscale="log", xlabel="labels")
    axes.set_xticks(SIZES, [f"{size:,d}" for size in SIZES])
    axes.minorticks_off()
    axes.spines[["top", "right"]].set_visible(False)
left.legend(frameon=False, loc="lower center", ncols=3)
plt.show()

# %% [markdown]
# Bars are one standard deviation over five draws of pairs and labels. Three things to
# take away:
#
# - **Against one annotator's labels nobody reaches 100%.** An accuracy means something
#   only beside its ceiling.
# - **Noisy labels measure a model worse than it is.** The same models, held against the
#   truth (right), do far better than against noisy labels (left).
# - **Noise costs labels.** Flipping with $\varepsilon$ leaves $p - \tfrac12$ only
#   $1 - 2\varepsilon$ of its size. Where people are undecided, $1/(1-2\varepsilon)^2$
#   times as many labels are needed to see it: 2 times at 15%, 6 times at 30%. Where they
#   are sure it is more, since there a single flipped label misleads most. On the right,
#   find the labels with which each colour reaches 74%.
#
# The blue curve still rises at 5,000 labels, slowly: in part it wants labels, in part
# a linear head on frozen features cannot say everything.
#
# **Questions and summaries.** Much of the history of RLHF happened on posts of Reddit
# with "TL;DR" (Ziegler et al. 2019; Stiennon et al. 2020). In the kitchen a summary must
# say who made what and how it went, briefly. Does a reward model that has learned on
# questions know a good summary?

# %%
of_summary = torch.tensor([toy_world.is_summary(text) for text, *_ in train])
p_train, p_test = chance_first(gold_train), chance_first(gold_test)
parts = {"questions": ~of_summary, "summaries": of_summary,
         "both": torch.ones(len(train), dtype=torch.bool)}
size = int(min(part.sum() for part in parts.values()))
print(f"learned from {size:,} pairs of    accuracy on questions   on summaries")
for name, part in parts.items():
    found = []
    for seed in range(SEEDS):
        g = torch.Generator().manual_seed(seed)
        rows = part.nonzero()[:, 0]
        rows = rows[torch.randperm(len(rows), generator=g)[:size]]
        labels = torch.rand(size, generator=g) < p_train[rows]
        margin = margin_of(fit_on_pairs(on_train[rows], labels))
        found.append([accuracy(margin[kind], p_test[kind])
                      for kind in (~is_summary, is_summary)])
    mean, std = np.mean(found, 0), np.std(found, 0, ddof=1)
    print(f"{name:28s}{mean[0]:12.3f} ± {std[0]:.3f} {mean[1]:12.3f} ± {std[1]:.3f}")
tops = [float(agreement_ceiling(p_test[k])[1]) for k in (~is_summary, is_summary)]
print(f"{'ceiling':28s}{tops[0]:12.3f}         {tops[1]:12.3f}")

# %% [markdown]
# From one kind to the other the model carries over about two thirds of what a specialist
# has beyond a coin's toss: nothing invented, no rambling and a proper end are common to
# both; what must be *in* the answer is not. A model that learns both, from
# the same number of labels in all, does as well on each as the specialist within the
# scatter. (± is one standard deviation over five draws.)

# %% [markdown]
# ## 7 · Calibration
#
# A reward model also says *how sure* it is: where $\sigma(r_1 - r_2) = 0.9$, nine in ten
# annotators should prefer the first answer. If that holds, it is **calibrated**.
# RLHF weighs the reward against $\beta$ times a KL: rewards five times too large act like
# a $\beta$ five times too small. (Best-of-n sees the order alone and does not notice.)
#
# Sort the test pairs by predicted probability, cut them into groups, and compare the
# prediction with the share of annotators who agree.
# The *expected calibration error* is the mean gap, weighed with the groups' sizes.


# %%
def calibration(margin, p, groups=8):
    """Mean prediction and mean p in groups of equal size, and the expected error."""
    said = torch.sigmoid(margin)
    parts = said.argsort().chunk(groups)
    x = torch.stack([said[part].mean() for part in parts])
    y = torch.stack([p[part].mean() for part in parts])
    share = torch.tensor([len(part) / len(said) for part in parts])
    return x, y, ((x - y).abs() * share).sum().item()


def best_temperature(margin, labels):
    """The τ for which σ(margin/τ) makes the labels likeliest."""
    signed = torch.where(labels, margin, -margin)
    grid = torch.logspace(-1, 2, 301)
    costs = torch.stack([pairwise_loss(signed / tau, torch.zeros_like(signed))
                         for tau in grid])
    return grid[costs.argmin()].item()


whose("pairwise_loss")
g = torch.Generator().manual_seed(3)
labels = torch.rand(len(train), generator=g) < p_train
p_test = chance_first(gold_test)
held = torch.arange(len(test)) % 2 == 0  # one half to find τ on, the other to look at
drawn = torch.rand(len(test), generator=g) < p_test
few = torch.randperm(len(train), generator=g)[:400]
models = {
    f"{len(train):,} labels": (fit_on_pairs(on_train, labels), BLUE),
    "400 labels, hardly any ridge": (
        fit_on_pairs(on_train[few], labels[few], 0.01), RED),
}
curves = {}
for name, (weights, colour) in models.items():
    margin = margin_of(weights)
    tau = best_temperature(margin[held], drawn[held])
    curves[name] = (*calibration(margin[~held], p_test[~held]), colour, "o-")
    if "400" in name:
        curves[f"the same, divided by τ = {tau:.1f}"] = (
            *calibration(margin[~held] / tau, p_test[~held]), ORANGE, "s--")
    signed = torch.where(drawn, margin, -margin)[~held]
    nats = pairwise_loss(signed, torch.zeros_like(signed))
    right = accuracy(margin[~held], p_test[~held])
    seen = few if "400" in name else torch.arange(len(train))
    own = margin_of(weights, on_train[seen])
    own = torch.where(labels[seen], own, -own)
    print(f"{name:28s} loss on its own labels {pairwise_loss(own, own * 0):.3f}, on new "
          f"ones {nats:.3f}; accuracy {right:.3f}; τ = {tau:.2f}")
print(f"a model that never knows: loss {np.log(2):.3f}")

# %%
figure, axes = plt.subplots(figsize=(5.6, 4.4), layout="constrained")
axes.plot([0, 1], [0, 1], color=GREY, linestyle=":", label="calibrated")
for name, (x, y, error, colour, style) in curves.items():
    axes.plot(x, y, style, color=colour, label=f"{name}: error {error:.3f}")
axes.set(title="Fitted to few labels, a reward model is far too sure",
         xlabel="predicted chance that the first answer wins",
         ylabel="share of annotators who prefer it")
axes.spines[["top", "right"]].set_visible(False)
axes.legend(frameon=False, fontsize=9)
plt.show()

# %% [markdown]
# With 400 labels for 131 weights the model bends to what is chance in its own labels: on
# these its loss is small, and it is as sure of pairs that it has never seen. On new labels
# it then costs *more* than a model that says "½" to everything, although it is right more
# often than not. Dividing all rewards by one number
# $\tau$, found on held-out labels, mends the certainty and leaves each ranking, and so
# the accuracy, as it was (Guo et al. 2017 call it temperature scaling).

# %% [markdown]
# ## 8 · Tastes and scales
#
# ### The annotator who likes it long
#
# Long answers look like work. Suppose each word is worth 0.2 to an annotator, on top of
# what the answer is really worth. Nobody tells the reward model.
#
# **Predict.** The gold reward *deducts* 0.1 for each word past the fourteenth (the ninth
# in a summary), and ¼ for each repeated word. What will this model say to an answer to
# which sentences are added that say nothing?

# %%
lover = Annotator(temperature=0.8, length_taste=0.2)
g = torch.Generator().manual_seed(8)
p_lover = chance_first(scores_by(lover, train))
taught = {
    "gold": fit_on_pairs(on_train, torch.rand(len(train), generator=g) < p_train),
    "length": fit_on_pairs(on_train, torch.rand(len(train), generator=g) < p_lover),
}
words = torch.tensor([[len(decode(a).split()) for a in two] for _, *two in test])
longer = words[:, 0] - words[:, 1]
print("                               annotator:    as before   likes length")
for name, row in {
    "longer answer preferred by the annotator": [
        accuracy(longer[longer != 0], p[longer != 0])
        for p in (chance_first(gold_test), chance_first(scores_by(lover, test)))],
    "longer answer preferred by the model": [
        ((margin_of(w) > 0) == (longer > 0))[longer != 0].float().mean().item()
        for w in taught.values()],
    "correlation of reward and length": [
        np.corrcoef(margin_of(w), longer)[0, 1] for w in taught.values()],
    "model finds the better answer": [
        finds_better(margin_of(w)) for w in taught.values()],
}.items():
    print(f"{name:42s} {row[0]:12.3f} {row[1]:14.3f}")

# %%
rng = random.Random("rambling")
some = [(text, a) for text, a, _ in test if len(encode(text)) + len(a) <= 44][:200]


def padded_out(k):
    """The 200 answers, each with k rambling sentences before its end."""
    return [(text, " ".join([decode(a), *rng.sample(toy_world.RAMBLINGS, k)]))
            for text, a in some]


lines = {"gold reward": [], "model, annotator as before": [], "model, likes length": []}
for k in range(4):
    versions = padded_out(k)
    lines["gold reward"].append([annotator.score(*version) for version in versions])
    features = features_of([(encode(t), encode(a, end=True)) for t, a in versions])
    features = features / scale
    lines["model, annotator as before"].append((features @ taught["gold"]).tolist())
    lines["model, likes length"].append((features @ taught["length"]).tolist())
spread = [gold_test.std(), (on_test @ taught["gold"]).std(),
          (on_test @ taught["length"]).std()]

figure, axes = plt.subplots(figsize=(6.8, 3.7), layout="constrained")
rises = {}
for (name, values), unit, colour in zip(lines.items(), spread, (ORANGE, BLUE, RED),
                                        strict=True):
    change = (np.array(values) - np.array(values[0])) / float(unit)  # (4, answers)
    rises[name] = change.mean(1)
    axes.errorbar(range(4), change.mean(1), 1.96 * change.std(1) / len(some) ** 0.5,
                  fmt="o-", capsize=3, color=colour, label=name)
axes.axhline(0, color=GREY, linewidth=0.8)
rise = rises["model, likes length"][-1]
fall = rises["gold reward"][-1]
title = f"Three empty sentences: gold {fall:+.1f} deviations, the biased model {rise:+.1f}"
axes.set(title=title.replace("-", "−"),
         xlabel="rambling sentences added to the same answers", xticks=range(4),
         ylabel="change of reward (in standard\ndeviations among test answers)")
axes.spines[["top", "right"]].set_visible(False)
axes.legend(frameon=False)
plt.show()

# %% [markdown]
# The model has learned that emptiness pays. Compare the first two rows of the table, too:
# the annotator takes the longer answer two times in three, and the model four times in
# five. What people choose with 60%, a model that ranks chooses each time.
#
# The bias came in through the labels, and no held-out accuracy *against the same
# annotator* would show it. An optimiser set on this reward will ramble: lesson 06. (With
# real people the same happens: Singhal et al. 2023 find rewards strongly correlated with
# length, and that a reward of nothing but length brings most of what RLHF had brought.)

# %% [markdown]
# ### Ratings, and why they do not add up
#
# Why not ask for a number from 1 to 7, and learn it by regression?
#
# ### 05.6 · `rating_loss` — difficulty 1 of 5, 3 minutes, 1 point
#
# <details>
# <summary>Hint 1: which mean?</summary>
#
# Square each error first; then the mean over the batch.
#
# </details>
#
# <details>
# <summary>Hint 2: one line</summary>
#
# `(predicted - ratings).square().mean()`
#
# </details>
#
# <!-- answer: rating_loss -->


# %%
def rating_loss(predicted, ratings):
    """Mean squared error between predicted rewards and people's ratings.

    Args:
        predicted: shape (B,), from the model.
        ratings: shape (B,), from people, float.

    Returns:
        A scalar, in squared rating units, with gradient to predicted.
        (F.mse_loss is taken away while yours is tried.)

    Example: predicted [7, 2] and ratings [8, 2] give (1 + 0)/2 = 0.5.
    """
    # SOLUTION
    return (predicted - ratings).square().mean()
    # END SOLUTION


# %%
rating_loss = check(rating_loss)

# %% [markdown]
# Six raters; each prompt's three answers go to one of them. All judge alike: an answer
# is worth its gold reward plus 0.8 times Gumbel noise, so that *comparing* two of these
# numbers is exactly our annotator (section 1). But each writes the number down on a scale
# of their own: one gives a 5 or a 6 to nearly everything, another uses all of the scale.
#
# Three ways to learn from the same ratings: regress on them as they are; first subtract
# each rater's mean and divide by their deviation; or keep only who got more *from the
# same rater to the same prompt*, as pairs (ties say nothing).

# %%
RATERS = {"offset": torch.tensor([2.2, 3.2, 4.6, 2.6, 5.0, 1.6]),
          "slope": torch.tensor([1.2, 0.6, 0.5, 1.0, 0.35, 1.3])}
first_of = {}
for i, (prompt, (_, a, b)) in enumerate(zip(prompt_of, train, strict=True)):
    first_of.setdefault((prompt, tuple(a)), (i, 0))  # row and column of each answer
    first_of.setdefault((prompt, tuple(b)), (i, 1))
places = torch.tensor(list(first_of.values()))
on_answers = on_train[places[:, 0], places[:, 1]]  # (answers, 131)
gold_answers = gold_train[places[:, 0], places[:, 1]]
group = torch.tensor([prompt for prompt, _ in first_of])


def ratings_of(rows, g):
    """Raters and their ratings, whole numbers from 1 to 7, of some answers."""
    rater = torch.randint(6, (len(train_texts),), generator=g)[group[rows]]
    uniform = torch.rand(len(rows), generator=g).clamp(1e-9, 1 - 1e-7)
    gumbel = -torch.log(-torch.log(uniform))
    felt = gold_answers[rows] + 0.8 * gumbel
    written = RATERS["offset"][rater] + RATERS["slope"][rater] * felt
    return rater, written.round().clamp(1, 7), felt


def regress(features, targets):
    """A linear reward by your rating loss; the targets' mean is its intercept."""
    centre = targets.mean()
    return fit_head(lambda w: rating_loss(features @ w + centre, targets),
                    features.shape[-1], 4 / len(features))


def same_prompt(rows):
    """All pairs of positions in ``rows`` whose answers belong to one prompt."""
    mine = group[rows]
    table = (mine[:, None] == mine[None, :]).triu(1)
    return table.nonzero().T


whose("rating_loss", "pairwise_loss")
LEARNERS = ("ratings as given", "standardised by rater", "pairs of one rater")
results = {}
for prompts_rated, seed in itertools.product((50, 200, 800), range(SEEDS)):
    g = torch.Generator().manual_seed(100 + seed)
    chosen_prompts = torch.randperm(len(train_texts), generator=g)[:prompts_rated]
    rows = torch.isin(group, chosen_prompts).nonzero()[:, 0]
    rater, ratings, felt = ratings_of(rows, g)
    mean = torch.stack([ratings[rater == r].mean() for r in range(6)])
    std = torch.stack([ratings[rater == r].std() for r in range(6)])
    x = on_answers[rows]
    one, other = same_prompt(rows)
    differ = ratings[one] != ratings[other]
    two = torch.stack([x[one], x[other]], 1)[differ]
    heads = (regress(x, ratings), regress(x, (ratings - mean[rater]) / std[rater]),
             fit_on_pairs(two, (ratings[one] > ratings[other])[differ]))
    for name, head in zip(LEARNERS, heads, strict=True):
        results.setdefault((name, prompts_rated), []).append(accuracy(margin_of(head),
                                                                      p_test))
print(f"{(~differ).float().mean():.0%} of the pairs are ties")
print("ratings, by rater:   " + "   ".join(
    f"{mean[r]:.1f} ± {std[r]:.1f}" for r in range(6)))
print("accuracy with prompts rated:      50                200               800")
for name in LEARNERS:
    print(f"{name:26s}" + "   ".join(
        f"{np.mean(results[name, k]):9.3f} ± {np.std(results[name, k], ddof=1):.3f}"
        for k in (50, 200, 800)))

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(10.5, 3.6), layout="constrained")
for r, colour in enumerate(("#000000", BLUE, RED, GREEN, ORANGE, PURPLE)):
    mine = rater == r
    left.scatter(gold_answers[rows][mine][:150], ratings[mine][:150] + 0.08 * (r - 2.5),
                 s=6, color=colour)
left.set(title="The same worth, six scales (a colour a rater)",
         xlabel="gold reward of the answer", ylabel="rating, 1 to 7")
for name, colour in zip(LEARNERS, (RED, ORANGE, BLUE), strict=True):
    values = np.array([results[name, k] for k in (50, 200, 800)])
    right.errorbar((50, 200, 800), values.mean(1), values.std(1, ddof=1), fmt="o-",
                   capsize=3, color=colour, label=name)
right.axhline(ceilings[0.0], color=GREY, linestyle="--", label="ceiling")
right.set(title="Without the private scales, ratings teach more", xscale="log",
          xlabel="prompts rated, three answers each", ylabel="accuracy on test pairs")
right.set_xticks((50, 200, 800), (50, 200, 800))
right.minorticks_off()
right.legend(frameon=False, fontsize=9, loc="lower right")
for axes in (left, right):
    axes.spines[["top", "right"]].set_visible(False)
plt.show()

# %% [markdown]
# As they are, the ratings mix two things: how good the answer is, and who was asked.
# Taking each rater's mean and deviation out helps, on average, at every size.
#
# The pairs are immune to any scale by construction. They do better than the ratings as
# given and, within the scatter, as well as the standardised ones, though they throw away
# much: ties, by how much, and every comparison between answers to different prompts.
# (Standardising needs enough ratings from each rater; pairs need no more than two.) And
# our prompts went to raters by lot, so that scales were only noise. If generous raters
# get the long answers, that is no noise any more but a bias, and no number of ratings
# averages it out.
#
# Two assumptions flatter the ratings: our raters have one taste, and each keeps to his
# scale from morning to evening. Real ones drift. That is why
# people are asked to compare: not because it holds more information (it holds less), but
# because what it holds needs no common scale.

# %% [markdown]
# ## 9 · Bug hunt: the reward that depends on the company
#
# Now the usual reward model: a language model whose output layer is replaced by a
# **scalar head**, all weights trained, and the reward read **at the last token**, the
# only one that has seen all of the answer. InstructGPT starts from the SFT model, and so
# do we. A colleague has written it. Nothing crashes, and it learns:


# %%
class RewardHead(nn.Module):
    """A copy of a language model's trunk, a linear head, and a way to read it."""

    def __init__(self, model, read, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.trunk, self.read = copy.deepcopy(model), read
        self.head = nn.Linear(model.config.width, 1)
        nn.init.normal_(self.head.weight, std=model.config.width**-0.5)
        nn.init.zeros_(self.head.bias)

    def forward(self, tokens, attention_mask):
        hidden = self.trunk.hidden_states(tokens, attention_mask)  # (B, T, W)
        return self.read(self.head(hidden).squeeze(-1), attention_mask)  # (B,)


def read_as_found(values, attention_mask):
    """The reward at the end of each row."""
    return values[:, -1]


def token_pairs(pairs, first_won):
    """Labelled pairs for ``train_reward_model``."""
    return [TokenPair(encode(text), *((a, b) if won else (b, a)))
            for (text, a, b), won in zip(pairs, first_won.tolist(), strict=True)]


@torch.no_grad()
def test_margins(model, batch_size=300):
    """r(first) − r(second) of the test pairs, scored in batches of so many pairs."""
    found = []
    for start in range(0, len(test), batch_size):
        some_pairs = [TokenPair(encode(t), a, b) for t, a, b in
                      test[start : start + batch_size]]
        batch = distinct_answers(some_pairs, PAD)
        rewards = model(batch.tokens, batch.attention_mask)
        found.append(rewards[batch.chosen] - rewards[batch.rejected])
    return torch.cat(found)


g = torch.Generator().manual_seed(11)
labelled = token_pairs(train, torch.rand(len(train), generator=g) < p_train)
settings = dict(batch_size=24, lr=2e-3, show_progress=False, loss=pairwise_loss)
as_found = RewardHead(kitchen.sft, read_as_found)
history = train_reward_model(as_found, labelled, steps=150, **settings)
print(f"training accuracy, last 30 steps: {history.mean('accuracy', last=30):.3f}")
print(f"test accuracy: {accuracy(test_margins(as_found), p_test):.3f}")

# %% [markdown]
# **Find it.** The colleague scores single answers for a demonstration, and the numbers
# look odd. Here is one answer, alone and with 2, 5, … padding tokens on the right, as in
# batches with longer ones:


# %%
@torch.no_grad()
def reward_with_padding(model, prompt, answer, padding):
    """The reward of one answer when so many padding tokens stand behind it."""
    row = prompt + answer
    tokens = torch.tensor([row + [PAD] * padding])
    attention_mask = torch.tensor([[1] * len(row) + [0] * padding])
    return model(tokens, attention_mask).item()


text, good, _ = test[0]
print(prettify(text), "\n   ", prettify(decode(good)))
for padding in (0, 2, 5, 10, 20):
    value = reward_with_padding(as_found, encode(text), good, padding)
    print(f"    {padding:2d} padding tokens: reward {value:+.3f}")

# %% [markdown]
# **Understand it.** Rows of a batch are padded to equal length. The last *column* is the
# last token of the longest row only; of all others it is padding. The head is read at a
# padding token, at a position that depends on who else is in the batch. Attention lets
# that token look back at the answer, so the model learns a little anyway. That is what
# makes the bug so hard to see.
#
# ### 05.7 · `last_token_reward` — difficulty 2 of 5, 8 minutes, 2 points
#
# **Mend it**, for either side: generation pads on the left, training on the right. Beware
# of recognising padding by its id: where pad is the end token (lesson 04), the answer's
# own end would be skipped. The attention mask knows.
#
# <details>
# <summary>Hint 1: a place a row</summary>
#
# The last real token stands at the largest position whose mask is 1: number the columns,
# `torch.arange(T)`, and multiply by the mask.
#
# </details>
#
# <details>
# <summary>Hint 2: pick one a row</summary>
#
# `values.gather(-1, last[:, None]).squeeze(-1)` takes from each row the value at its
# `last`; `argmax(-1)` of hint 1's products gives it.
#
# </details>
#
# <!-- answer: last_token_reward -->


# %%
def last_token_reward(values, attention_mask):
    """The value at each row's last real token, whichever side is padded.

    Args:
        values: the head's value at each token, shape (B, T).
        attention_mask: int64, 1 on real tokens and 0 on padding, shape (B, T); each row
            has a real token at least.

    Returns:
        Shape (B,), with gradient to the values.

    Example: values [[1, 2, 9]] with mask [[1, 1, 0]] give [2].
    """
    # SOLUTION
    positions = torch.arange(values.shape[1])
    last = (positions * attention_mask).argmax(-1)
    return values.gather(-1, last[:, None]).squeeze(-1)
    # END SOLUTION


# %%
last_token_reward = check(last_token_reward)

# %%
whose("last_token_reward", "pairwise_loss")
mended = RewardHead(kitchen.sft, last_token_reward)
train_reward_model(mended, labelled, steps=150, **settings)
test_rows = [encode(text) + answer for text, *two in test for answer in two]


@torch.no_grad()
def margins_unpadded(model):
    """r(first) − r(second) of the test pairs, rows of one length at a time: no padding."""
    rewards = torch.empty(len(test_rows))
    for length in {len(row) for row in test_rows}:
        same = [i for i, row in enumerate(test_rows) if len(row) == length]
        tokens = torch.tensor([test_rows[i] for i in same])
        rewards[same] = model(tokens, torch.ones_like(tokens))
    return rewards[0::2] - rewards[1::2]


print("            accuracy in batches     without padding   pairs whose order changes")
for name, model in (("as found", as_found), ("mended", mended)):
    batched, alone = test_margins(model), margins_unpadded(model)
    turned = ((batched > 0) != (alone > 0)).float().mean()
    print(f"{name:10s} {accuracy(batched, p_test):20.3f} "
          f"{accuracy(alone, p_test):19.3f} {turned:27.1%}")

# %%
figure, axes = plt.subplots(figsize=(6.6, 3.5), layout="constrained")
for name, model, colour in (("as found", as_found, RED), ("mended", mended, BLUE)):
    for i in range(5):
        text, a, _ = test[i]
        rewards = [reward_with_padding(model, encode(text), a, k) for k in range(31)]
        axes.plot(rewards, color=colour, linewidth=1.5, label=name if i == 0 else None)
axes.set(title="Read in the last column, a reward changes with its batch",
         xlabel="padding tokens behind the answer",
         ylabel="reward of the same answer\n(five answers)")
axes.spines[["top", "right"]].set_visible(False)
axes.legend(frameon=False)
plt.show()

# %% [markdown]
# *How would you notice?* Not from the accuracy, which hardly tells the two apart: the
# model as found ranks about as well as the other, only by another number each time. Score
# the same answer alone and in a batch; the two must agree to the last digits. One line,
# and it belongs into every test suite. In lesson 06 PPO will ask this model for the
# rewards of freshly sampled answers, in other batches than it was trained in.

# %% [markdown]
# ## 10 · Preference-model pre-training
#
# Look once more at the accuracy above: all weights trained, on 150 batches of about 24
# pairs, and worse than section 6's linear head with 150 labels. (The head was given the
# SFT model's log-probabilities, which say "this ingredient does not belong here"; the
# trunk has to find out how to compute such a thing, from labels that are right three
# times in four.) What would spare the labels?
#
# Askell et al. (2021) put a stage in between. **Preference-model pre-training** trains
# the comparison loss on *other* preferences of which there are plenty: votes on Stack
# Exchange and Reddit, reverted edits of Wikipedia. Then come the few labels that one
# really wants.
#
# Our "forum": 2,000 of the training prompts' kind, four answers by people to each, voted
# on by a crowd of other taste. It does not care for politeness, and likes answers short.
# Then both models are fine-tuned on the same few labels of our annotator, with the same
# number of steps.

# %%
crowd = Annotator(temperature=0.8, length_taste=-0.05, politeness_taste=-0.5)
rng = random.Random("forum")
votes = []
for text in toy_world.sample_prompts(2000, seed=1234):
    for a, b in itertools.combinations(
        [toy_world.write_answer(text, rng) for _ in range(4)], 2
    ):
        if a != b:
            a, b = (a, b) if crowd.prefers_first(text, a, b, rng) else (b, a)
            ids = encode(text), encode(a, end=True), encode(b, end=True)
            votes.append(TokenPair(*ids))
whose("last_token_reward", "pairwise_loss")
pretrained = RewardHead(kitchen.sft, last_token_reward)
train_reward_model(pretrained, votes, steps=350, **settings)
crowd_p = chance_first(scores_by(crowd, test))
unlabelled = accuracy(margins_unpadded(pretrained), p_test)
print(f"{len(votes):,} votes; accuracy on our test pairs without one label of ours: "
      f"{unlabelled:.3f}")
print(f"a model that knew the crowd's taste perfectly would have "
      f"{accuracy(crowd_p - 0.5, p_test):.3f}, one that knew ours {ceilings[0.0]:.3f}")

# %%
FEW, TUNE_SEEDS = (50, 200, 800), 4
# Each start at the best of three learning rates (tried beforehand, on two of the seeds).
RATES = {"SFT model": 1e-3, "pre-trained on votes": 3e-4}
tuned = {}
for size, seed in itertools.product(FEW, range(TUNE_SEEDS)):
    rows = sorted(random.Random(seed).sample(range(len(labelled)), size))
    for start, rate in RATES.items():
        if start == "SFT model":
            model = RewardHead(kitchen.sft, last_token_reward, seed)
        else:
            model = copy.deepcopy(pretrained)
        train_reward_model(model, [labelled[i] for i in rows], steps=40,
                           **settings | dict(lr=rate, seed=seed))
        found = accuracy(margins_unpadded(model), p_test)
        tuned.setdefault((start, size), []).append(found)
print("accuracy with labels:        " + "".join(f"{size:>16d}" for size in FEW))
for start in RATES:
    print(f"{start:26s}" + "".join(
        f"   {np.mean(tuned[start, k]):7.3f} ± {np.std(tuned[start, k], ddof=1):.3f}"
        for k in FEW))
gains = {k: np.array(tuned["pre-trained on votes", k]) - tuned["SFT model", k]
         for k in FEW}
print("difference                " + "".join(
    f"   {g.mean():+7.3f} ± {g.std(ddof=1):.3f}" for g in gains.values()))

# %%
figure, axes = plt.subplots(figsize=(6.6, 3.8), layout="constrained")
for start, colour in (("SFT model", GREY), ("pre-trained on votes", PURPLE)):
    values = np.array([tuned[start, k] for k in FEW])
    axes.errorbar(FEW, values.mean(1), values.std(1, ddof=1), fmt="o-", capsize=4,
                  color=colour, linewidth=2, label=f"from the {start}"
                  if start == "SFT model" else start)
    for k in FEW:
        axes.plot([k] * TUNE_SEEDS, tuned[start, k], ".", color=colour, alpha=0.5)
axes.axhline(unlabelled, color=PURPLE, linestyle=":", label="pre-trained, no label at all")
plain, with_votes = (np.mean(tuned[s, k]) for s, k in
                     (("SFT model", 800), ("pre-trained on votes", 50)))
axes.set(title=f"Votes and 50 labels: {with_votes:.1%}; 800 labels alone: {plain:.1%}",
         xlabel="labels of our annotator", ylabel="accuracy on test pairs",
         xscale="log")
axes.set_xticks(FEW, FEW)
axes.minorticks_off()
axes.spines[["top", "right"]].set_visible(False)
axes.legend(frameon=False, loc="lower right")
plt.show()

# %% [markdown]
# (Bars are one standard deviation over four seeds, each with labels of its own; the pairs
# of runs share their labels, so the printed differences are the sharper comparison.)
#
# **The votes save labels.** With 50 of ours behind them the model is ahead of the one
# without votes after 800: a factor of sixteen. They cost us nothing, they are of
# another taste, and about answers of other writers. What carries over is, we believe,
# *how to read*: which ingredient belongs to which dish, who was named in the post.
#
# **And their limits.** The gain shrinks as labels come in. Look also at the dotted line:
# the model stands there before it has seen one label of ours, and 50 or 200 hardly move
# it. So the saving is the votes' doing, not the 50 labels'. Nor is it taste that is
# missing: whoever knew the crowd's taste perfectly would be close to our ceiling (printed
# above). Missing is reading, and a few labels do not teach it. At the rate
# that serves the SFT model best, 50 labels even do harm: try it. A crowd of quite
# another taste would leave more to unlearn.
#
# One reservation: each start's learning rate is the best of three, chosen on two of the
# four seeds **by these same test pairs**. The gains are a little flattered by that.

# %% [markdown]
# ## 11 · To discuss
#
# 1. A reward model reaches 68% on held-out labels. Your manager asks when it will be 90%.
#    What do you measure before you answer?
#
# <details>
# <summary>What we think</summary>
#
# How often two annotators agree on the same pairs. If it is 70%, the ceiling is between
# 70% and 82% (section 5), and 90% will never come, with any model. Several labels
# a pair would tell where in between, and how much is left to gain.
#
# </details>
#
# 2. A reward is fixed only up to a constant, and not even one constant for all: adding
#    $c(x)$ to all answers to a prompt changes no comparison. What does PPO need that for,
#    and what could go wrong?
#
# <details>
# <summary>What we think</summary>
#
# Policy gradients compare an answer with what is usual *for its prompt*; a baseline that
# knows $x$ (lesson 01) takes $c(x)$ out again. Without one, prompts with a large $c$
# would push all of their answers up. Packages usually centre rewards on some reference
# answers; ours sets the mean reward of SFT answers to 0.
#
# </details>
#
# 3. One ranking of nine answers gives 36 pairs. Is it worth 36 labels?
#
# <details>
# <summary>What we think</summary>
#
# No. The pairs share nine answers and one person's mood; Fisher's formula, fed with 36
# "games", would be too sure. Ouyang et al. (2022) report that shuffled into one data set
# such pairs made the model overfit, and made all pairs of a prompt one element of
# a batch.
#
# </details>
#
# 4. You cannot replace the annotators who like length. What would you do?
#
# <details>
# <summary>What we think</summary>
#
# Show them pairs of similar length. Give the model the length as a feature of its own
# while it learns, and leave that out when it judges. Balance the data, so that the longer
# answer wins half the time. Each leaves something: often the longer answer *is* better,
# and the first two lose that too.
#
# </details>
#
# 5. Where people really disagree (spicy or mild?), what does a Bradley–Terry reward
#    learn, and what does a policy do with it?
#
# <details>
# <summary>What we think</summary>
#
# The mean of the log-odds, weighed by who happened to label. The policy then serves the
# majority always, not in proportion. Bradley–Terry takes disagreement for noise around
# *one* truth. Who was asked, then, decides what "good" means.
#
# </details>
#
# ## What to read next
#
# - R. Bradley & M. Terry, *Rank analysis of incomplete block designs*, Biometrika 1952;
#   L. Ford, *Solution of a ranking problem from binary comparisons*, American
#   Mathematical Monthly 1957.
# - A. Elo, *The rating of chessplayers, past and present*, 1978.
# - D. Ziegler et al., *Fine-tuning language models from human preferences*, 2019, arXiv
#   1909.08593; N. Stiennon et al., *Learning to summarize from human feedback*, 2020,
#   arXiv 2009.01325.
# - A. Askell et al., *A general language assistant as a laboratory for alignment*, 2021,
#   arXiv 2112.00861: preference-model pre-training.
# - L. Ouyang et al., *Training language models to follow instructions with human
#   feedback*, 2022, arXiv 2203.02155: the reward model that this lesson follows.
# - H. Touvron et al., *Llama 2*, 2023, arXiv 2307.09288: margins.
# - C. Guo et al., *On calibration of modern neural networks*, 2017, arXiv 1706.04599.
# - P. Singhal et al., *A long way to go: investigating length correlations in RLHF*,
#   2023, arXiv 2310.03716.
# - W.-L. Chiang et al., *Chatbot Arena*, 2024, arXiv 2403.04132: a leaderboard by
#   Bradley–Terry.
# - The package's `rlhf_minimal/bradley_terry.py`, `reward_model.py` and
#   `gold_reward.py`: this lesson in code.
#
# **Next: lesson 06.** A policy climbs the reward that you have just built, and finds what
# is wrong with it.

# %%
print(f"{time.process_time():.0f} seconds of CPU time in this notebook so far")
