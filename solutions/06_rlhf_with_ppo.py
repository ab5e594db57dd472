# %% [markdown]
# # 06 · RLHF with PPO
#
# *Why this matters: this is the step that turned language models into assistants. It is
# also where they learn to please a judge instead of people, and where a wrong order of
# two lines costs a model its manners without a single error message.*
#
# **You will be able to**
#
# - derive the policy that RLHF is looking for, and compute it in a world small enough to
#   list;
# - turn one score an answer into rewards, advantages and returns a token;
# - train a language model by PPO with functions that are all your own;
# - show over-optimisation, fit the published curve to it, and say where the fit fails;
# - get much of the gain without training, by best-of-n, and say how far it strays;
# - find a bug whose cost depends on a constant that nobody looks at;
# - add up what four models take of a GPU's memory.
#
# **It assumes** lesson 02 (GAE, the clipped loss), lesson 03 (KL), lesson 04
# (log-probabilities, masks) and lesson 05 (where the reward model comes from).
#
# | | |
# |---|---|
# | reading | 45 minutes |
# | coding | 50 minutes, six exercises, 13 points |
# | computing | two to three minutes on one CPU core; the last cell says how much |
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
import time

import matplotlib.pyplot as plt
import numpy as np
import torch

from autograder import check
from rlhf_minimal.exact import make_world, objective
from rlhf_minimal.exact_methods import descend
from rlhf_minimal.kitchen import Kitchen, evaluate, interval, sample_answers
from rlhf_minimal.kl import kl_from_logits
from rlhf_minimal.log_probs import answer_log_probs
from rlhf_minimal.plots import COLOURS
from rlhf_minimal.ppo import clipped_policy_loss, value_loss
from rlhf_minimal.rlhf import train_rlhf
from rlhf_minimal.rollouts import best_of_n_kl, sample_rollouts
from rlhf_minimal.tokenizer import prettify
from rlhf_minimal.toy_world import sample_prompts

torch.set_num_threads(1)  # models this small only lose time to a second thread
BLUE, BROWN, GREY = COLOURS["PPO"], COLOURS["best-of-n"], "#666666"
GOLD, PROXY, GREEN, RED = COLOURS["gold"], COLOURS["proxy"], "#009E73", "#D55E00"


def whose(*names):
    """Says with whose functions the next experiment runs."""
    for name in names:
        own = globals()[name].__module__ == "__main__"
        print(f"{name:24s} {'yours' if own else 'ours'}")


def plain(*all_axes):
    for axes in all_axes:
        axes.spines[["top", "right"]].set_visible(False)


# %% [markdown]
# ## 1 · A judge, and a leash
#
# Lesson 05 ended with a reward model: it reads a prompt with an answer and gives a
# number. Reinforcement learning needs nothing more. Let the model answer, let the judge
# score, and make what scored well more likely.
#
# It would work too well. The judge has learned from comparisons of the SFT model's
# answers, and it is roughly right *about such answers*. Farther away it has seen nothing,
# and somewhere there is always a text that it likes for no good reason. So the policy is
# put on a leash. RLHF maximises (Stiennon et al. 2020; Ouyang et al. 2022, section 3.5)
#
# $$J(\pi) = \mathbb{E}_{x,\;y\sim\pi(\cdot|x)}\bigl[\,r(x, y)\,\bigr]
#   \;-\; \beta\;\mathrm{KL}\bigl(\pi\,\|\,\pi_{\mathrm{ref}}\bigr) ,$$
#
# where $\pi_{\mathrm{ref}}$ is the SFT model, frozen. $\beta$ is the price of a nat, in
# units of reward. **A larger $\beta$ stays *closer* to the reference.** (One reads advice
# that has it the other way round; the formula settles it.)
#
# In the kitchen we are in a position that nobody is in outside: besides the learned
# reward, the **proxy**, we know the **gold** reward, what an answer is really worth. No
# method ever sees it. Base model, SFT, comparisons and reward model first; that takes
# most of a minute.

# %%
kitchen = Kitchen(seed=0)
kitchen.train_base(show_progress=False)
kitchen.train_sft(show_progress=False)
agreement = kitchen.collect_preferences()
accuracy = kitchen.train_reward_model(show_progress=False).mean("accuracy", last=30)
tokenizer, sampling = kitchen.tokenizer, kitchen.sampling()

of_sft = evaluate(kitchen, kitchen.sft)
print(f"{len(kitchen.pairs):,} comparisons; the annotator agrees with the gold reward "
      f"on {agreement:.0%}")
print(f"reward model: right about {accuracy:.0%} of the comparisons it is trained on")
print(f"SFT model: gold reward {of_sft['gold']['mean']:.2f}, "
      f"proxy {of_sft['proxy']:.2f}, {of_sft['length']:.1f} tokens an answer\n")
for answer in sample_answers(kitchen, kitchen.sft):
    print("   ", answer)

# %% [markdown]
# The proxy's zero is the mean score of the SFT model's answers. Keep that in mind: it
# looks like a matter of taste, and section 8 is about it.
#
# ## 2 · What the best policy is
#
# Before training anything, ask what we are training *towards*. Take one prompt, and write
# $J$ as a sum over all answers:
#
# $$\begin{aligned}
# J(\pi) &= \sum_y \pi(y)\Bigl[r(y) - \beta\log\frac{\pi(y)}{\pi_{\mathrm{ref}}(y)}\Bigr]
# && \text{(both terms are expectations under } \pi)\\
# &= -\beta \sum_y \pi(y)\Bigl[\log\pi(y) - \log\pi_{\mathrm{ref}}(y) -
#    \frac{r(y)}{\beta}\Bigr] && (-\beta \text{ taken out})\\
# &= -\beta \sum_y \pi(y)\,\log\frac{\pi(y)}{\pi_{\mathrm{ref}}(y)\,e^{r(y)/\beta}}
# && (r/\beta = \log e^{r/\beta}).
# \end{aligned}$$
#
# This would be a KL divergence if the denominator were a distribution. It lacks a
# constant. Let $Z = \sum_y \pi_{\mathrm{ref}}(y)\,e^{r(y)/\beta}$ and
#
# $$\boxed{\;\pi^*(y) = \frac{1}{Z}\;\pi_{\mathrm{ref}}(y)\;e^{r(y)/\beta}\;}
# \qquad\text{then}\qquad
# J(\pi) = \beta\log Z \;-\; \beta\;\mathrm{KL}(\pi\,\|\,\pi^*) .$$
#
# $Z$ does not depend on $\pi$, and a KL divergence is never negative and zero only for
# equal distributions (lesson 03). So $\pi^*$ is *the* optimum: the reference, each
# answer weighted by the exponential of its reward. (For language
# models: Korbak et al. 2022; Rafailov et al. 2023, equation 4.)
#
# The second formula says more: what a policy loses against the optimum is exactly
# $\beta\,\mathrm{KL}(\pi\|\pi^*)$. **All of RLHF is the attempt to make one KL divergence
# zero.** Why not simply use the formula? Because $Z$ is a sum over all answers. With a
# vocabulary of 32,000 and 100 tokens there are $10^{450}$ of them.

# %% [markdown]
# ### 06.1 · `optimal_policy` — difficulty 2 of 5, 6 minutes, 2 points
#
# <details>
# <summary>Hint 1: take logarithms first</summary>
#
# log π* = log π_ref + r/β − log Z. Rewards of 40 at β = 0.1 are e^400, which is no number
# in float32: never compute the exponential by itself.
#
# </details>
#
# <details>
# <summary>Hint 2: who subtracts log Z</summary>
#
# `log_softmax(-1)` takes off the log of the sum of exponentials along the last dimension.
# That is what log Z is. It also does the right thing where log π_ref is −∞.
#
# </details>
#
# <!-- answer: optimal_policy -->


# %%
def optimal_policy(reference_log_probs, rewards, beta):
    """The policy that maximises E[r] − β·KL(π‖π_ref): log π* = log π_ref + r/β − log Z.

    Args:
        reference_log_probs: log π_ref of all answers to each prompt, shape (..., Y);
            −inf where the reference never gives an answer.
        rewards: of the same answers, shape (..., Y).
        beta: price of a nat, a float above 0.

    Returns:
        log π*, shape (..., Y); along the last dimension the probabilities sum to 1.

    Example: two answers with π_ref = [0.5, 0.5], rewards [0, 0.5495] and β = 0.5 give
    π* = [0.25, 0.75], since exp(0.5495/0.5) = 3. (The logarithms of these are asked.)
    """
    # SOLUTION
    return (reference_log_probs + rewards / beta).log_softmax(-1)
    # END SOLUTION


# %%
optimal_policy = check(optimal_policy)

# %% [markdown]
# **A world small enough to list.** Four prompts, five tokens, answers of three tokens:
# 125 answers to each prompt, a random reference, a random reward for each answer. Here
# every expectation is a sum. First the identity
# $J(\pi^*) - J(\pi) = \beta\,\mathrm{KL}(\pi\|\pi^*)$, for five random policies.

# %%
whose("optimal_policy")
world = make_world(seed=0)  # in float64; β = 0.5
reference = world.reference()  # log π_ref, (4, 125)
g = torch.Generator().manual_seed(1)
best = optimal_policy(reference, world.rewards, world.beta)


def value_of(log_probs):
    return objective(log_probs, reference, world.rewards, world.beta).item()


print("J(π*) − J(π)       β·KL(π‖π*)")
for _ in range(5):
    logits = torch.randn(reference.shape, generator=g, dtype=torch.float64)
    some = logits.log_softmax(-1)
    loss = world.beta * kl_from_logits(some, best).mean().item()
    print(f"{value_of(best) - value_of(some):.12f}     {loss:.12f}")

# %%
BETAS = np.geomspace(0.03, 10, 60)


def reward_and_kl(log_probs):
    """E[r] and KL(π‖π_ref), exact, means over the four prompts."""
    expected = (log_probs.exp() * world.rewards).sum(-1).mean().item()
    return expected, kl_from_logits(log_probs, reference).mean().item()


optima = {b: reward_and_kl(optimal_policy(reference, world.rewards, b)) for b in BETAS}
start, top = reward_and_kl(reference)[0], world.rewards.max(-1).values.mean().item()
print("    β    E[r]   KL(π*‖π_ref)    share of the likeliest answer")
for b in (10.0, 2.0, 0.5, 0.1, 0.03):
    log_probs = optimal_policy(reference, world.rewards, b)
    r, kl = reward_and_kl(log_probs)
    share = log_probs.exp().max(-1).values.mean()
    print(f"{b:5.2f}   {r:5.2f}   {kl:8.3f}        {share:12.1%}")
print(f"the reference itself: {start:.2f}; always the best answer: {top:.2f}")

# %% [markdown]
# With a dear nat nothing moves; as it gets cheaper, reward and divergence both grow, and
# at last one answer takes it all. Between the two lies a *frontier*: for a given
# divergence no policy earns more than the $\pi^*$ that has it. (Suppose one did: at that
# $\beta$ its $J$ would be larger than the maximum.) The figure of the next section draws
# it.

# %% [markdown]
# ## 3 · Best-of-n: RLHF without training
#
# Sample $n$ answers, let the judge choose. No gradient, nothing to tune, and hard to beat
# (for Nakano et al. 2021 the best of 64 did better than RL). It pays at every answer
# instead of once.
#
# ### 06.2 · `best_of_n` — difficulty 2 of 5, 8 minutes, 2 points
#
# `sample_rollouts(policy, prompts, **sampling)` is there (imported above): it takes `B`
# prompts as lists of token ids and gives `Rollouts`, one sampled answer each.
# `rollouts.rows(index)` picks rows.
#
# <details>
# <summary>Hint 1: copies</summary>
#
# Put each prompt n times in a row: `[p for p in prompts for _ in range(n)]`. One call
# samples all B·n answers.
#
# </details>
#
# <details>
# <summary>Hint 2: which row is it?</summary>
#
# `score(rollouts).view(B, n).argmax(-1)` counts *within* each group. The group of prompt
# b begins at row b·n.
#
# </details>
#
# <!-- answer: best_of_n -->


# %%
def best_of_n(policy, score, prompts, n, **sampling):
    """The best of n sampled answers to each prompt, by ``score``.

    Args:
        policy: a language model.
        score: called as score(rollouts), gives one number an answer, shape (N,).
        prompts: B lists of token ids.
        n: answers to sample to each prompt, an int of 1 or more.
        sampling: what sample_rollouts needs beside; hand it on.

    Returns:
        Rollouts, B rows in the order of the prompts.
    """
    # SOLUTION
    copies = [prompt for prompt in prompts for _ in range(n)]
    rollouts = sample_rollouts(policy, copies, **sampling)
    best = score(rollouts).view(len(prompts), n).argmax(-1)  # (B,)
    return rollouts.rows(torch.arange(len(prompts)) * n + best)
    # END SOLUTION


# %%
best_of_n = check(best_of_n)

# %% [markdown]
# **How far does it stray?** Suppose that no two answers score the same and each is rare.
# Let $u(y)$ be the share of the reference's answers that score no more than $y$; then
# for a sample of the reference $u$ is uniform on [0, 1]. The best of $n$ is below $u$
# when all $n$ are: with probability $u^n$. Its density relative to the reference is the
# derivative, $n\,u^{n-1}$, and the divergence
#
# $$\mathrm{KL} = \int_0^1 n u^{n-1}\,\log\bigl(n u^{n-1}\bigr)\,du
#  = \log n + (n-1)\int_0^1 n u^{n-1}\log u\,du
#  = \log n - \frac{n-1}{n},$$
#
# for $\int_0^1 n u^{n-1}\log u\,du = -\frac1n$ by parts. No word of the policy or of the
# judge. This formula stands in many papers as *the* KL of best-of-n. It is an **upper
# bound** (Beirami et al. 2024 prove it): where answers tie, or where a single answer has
# a noticeable share, there is less to choose from.
#
# In our world the distribution of the best of $n$ is a sum. Sort the answers of a prompt
# by reward; those that tie form a class; let $F$ be the reference's probability of this
# class or a lower one, $F'$ of a lower one only. The best lies in the class with
# probability $F^n - F'^n$, and inside the class chances are as the reference has them.

# %%
NS = [1, 2, 4, 8, 16, 32, 64, 128, 256, 512]


def exact_best_of_n(log_probs, rewards, n):
    """log-probabilities of the best of n samples of each row, (P, Y)."""
    rows = []
    for log_p, r in zip(log_probs, rewards, strict=True):
        classes = r.unique(return_inverse=True)[1]  # 0 = the lowest reward
        share = torch.zeros(int(classes.max()) + 1, dtype=log_p.dtype)
        share = share.scatter_add(0, classes, log_p.exp())
        F = share.cumsum(0).clamp(max=1.0)
        of_class = (F**n).diff(prepend=F.new_zeros(1))
        rows.append(log_p + (of_class / share).log()[classes])
    return torch.stack(rows)


def verified(n=8, draws=20_000):
    """E[r] of the best of n: as a sum, and by sampling."""
    exact = (exact_best_of_n(reference, world.rewards, n).exp() * world.rewards).sum(-1)
    g = torch.Generator().manual_seed(0)
    drawn = torch.multinomial(reference.exp(), n * draws, replacement=True, generator=g)
    sampled = world.rewards.gather(1, drawn).view(4, draws, n).max(-1).values
    return exact.mean().item(), sampled.mean().item(), sampled.std().item()


exact, sampled, spread = verified()
print(f"best of 8: E[r] = {exact:.4f} as a sum, {sampled:.4f} ± "
      f"{spread / 80_000**0.5:.4f} from 80,000 draws")

cases = {
    "no ties": (reference, world.rewards),
    "rewards rounded to whole numbers": (reference, world.rewards.round()),
    "a verdict: right or wrong": (reference, (world.rewards > 1).double()),
    "a reference of few words": ((4 * reference).log_softmax(-1), world.rewards),
}
kls = {
    name: [kl_from_logits(exact_best_of_n(p, r, n), p).mean().item() for n in NS]
    for name, (p, r) in cases.items()
}
print(f"\n{'KL in nats, n =':34s}" + "".join(f"{n:7d}" for n in NS[1::2]))
print(f"{'log n − (n − 1)/n':34s}"
      + "".join(f"{best_of_n_kl(n):7.2f}" for n in NS[1::2]))
for name, values in kls.items():
    print(f"{name:34s}" + "".join(f"{value:7.2f}" for value in values[1::2]))

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(10.5, 3.9), layout="constrained")
left.plot(NS, [best_of_n_kl(n) for n in NS], "--", color="black",
          label="log n − (n − 1)/n")
for (name, values), colour in zip(kls.items(), (BROWN, BLUE, GREEN, RED), strict=True):
    left.plot(NS, values, "o-", markersize=4, color=colour, label=name)
left.set(title="The formula is a bound: ties and frequent answers\nlie below it",
         xlabel="n", ylabel="KL(best of n ‖ reference) (nats)", xscale="log")
left.legend(frameon=False, fontsize=9)

curve = np.array(list(optima.values()))
curve = curve[curve[:, 1] < 3.3]
right.plot(curve[:, 1], curve[:, 0], color="black", label="π*, β from 10 down")
few = [n for n in NS if n <= 64]
points = [reward_and_kl(exact_best_of_n(reference, world.rewards, n)) for n in few]
right.plot([kl for _, kl in points], [r for r, _ in points], "o", color=BROWN,
           label="best of 1, 2, 4, …, 64, exact KL")
right.plot([best_of_n_kl(n) for n in few], [r for r, _ in points], "x", color=GREY,
           label="the same, KL by the formula")
right.set(title="Best-of-n lies close to the frontier\nthat no policy can pass",
          xlabel="KL from the reference (nats)", ylabel="expected reward")
right.legend(frameon=False, fontsize=9, loc="lower right")
plain(left, right)
plt.show()

# %% [markdown]
# Even without ties the measured KL falls behind the formula when $n$ reaches the number
# of answers: the best one has a share of its own, and $-\log\pi_{\mathrm{ref}}(y_{best})$
# nats is all that choosing can ever cost. Judges with few verdicts stop much earlier. So
# a plot that sets best-of-n at the formula's KL draws it too far to the *right*: it makes
# best-of-n look worse than it is.

# %% [markdown]
# ## 4 · One score an answer, a reward a token
#
# PPO wants a reward for every action. The judge speaks once, at the end. The KL does
# better: $\log\frac{\pi(y|x)}{\pi_{\mathrm{ref}}(y|x)}$ is a sum over tokens (lesson 04),
# so each token can be charged for its own share:
#
# $$r_t = -\beta\,\log\frac{\pi(y_t|x, y_{<t})}{\pi_{\mathrm{ref}}(y_t|x, y_{<t})}
#   \;+\; [\,t \text{ is the last token}\,]\; r(x, y) .$$
#
# Summed over an answer that is
# $r(x,y) - \beta\log\frac{\pi(y|x)}{\pi_{\mathrm{ref}}(y|x)}$, whose mean over samples of
# $\pi$ is $J$ (Ziegler et al. 2019; Ouyang et al. 2022). A token that $\pi$ writes *less*
# readily than the reference earns something. It must: only the mean over samples is a
# divergence. And these rewards are numbers: no gradient runs through them (lesson 03,
# section 6, tells what happens otherwise).
#
# ### 06.3 · `kl_shaped_rewards` — difficulty 3 of 5, 10 minutes, 3 points
#
# <details>
# <summary>Hint 1: where is the last token?</summary>
#
# Answers begin after prompts of different lengths and end at different columns. The last
# token is where the mask is 1 and the next column's is not (or does not exist).
# `(mask * torch.arange(T)).argmax(-1)` finds its column.
#
# </details>
#
# <details>
# <summary>Hint 2: adding to one place in each row</summary>
#
# `rewards.scatter_add(-1, last[:, None], scores[:, None])`, or
# `rewards[torch.arange(B), last] += scores`. Added, not set: the last token has a
# log-ratio too.
#
# </details>
#
# <!-- answer: kl_shaped_rewards -->


# %%
def kl_shaped_rewards(scores, log_probs, ref_log_probs, mask, beta):
    """−β·(log π − log π_ref) at each answer token, plus the score at the last one.

    Args:
        scores: the judge's, one an answer, shape (B,).
        log_probs, ref_log_probs: of the sampled tokens under π and π_ref, shape (B, T).
        mask: 1 on the answer's tokens, shape (B, T); each row has one run of ones, with
            zeros before it (prompt) and after it (padding).
        beta: price of a nat, a float of 0 or more.

    Returns:
        Shape (B, T), zeros outside the answers.

    Example: score 3, log-ratios [0.5, −1, 2], β = 0.5 and mask [1, 1, 0] give
    [−0.25, 3.5, 0].
    """
    # SOLUTION
    rewards = -beta * (log_probs - ref_log_probs) * mask  # (B, T)
    last = (mask * torch.arange(mask.shape[1])).argmax(-1)  # (B,)
    return rewards.scatter_add(-1, last[:, None], scores[:, None])
    # END SOLUTION


# %%
kl_shaped_rewards = check(kl_shaped_rewards)

# %% [markdown]
# One answer, token by token. As nothing is trained yet, take the SFT model as policy and
# the *base* model as reference, so that there is a log-ratio to see.

# %%
whose("kl_shaped_rewards")
rollout = kitchen.rollouts(kitchen.sft, ["how do i make soup ?"], seed=4)
with torch.no_grad():
    ours, base = (answer_log_probs(m, *rollout) for m in (kitchen.sft, kitchen.base))
    score = kitchen.score(rollout)
mask = rollout.mask[:, 1:]
rewards = kl_shaped_rewards(score, ours, base, mask, beta=0.1)
print(f"score {score.item():.2f}, β = 0.1\n")
print("token       log π   log π_ref   log-ratio   reward")
columns = (rollout.tokens[0, 1:], ours[0], base[0], rewards[0], mask[0])
for token, p, q, r, m in zip(*columns, strict=True):
    if m:
        print(f"{tokenizer.words[token]:9s} {p:7.2f} {q:11.2f} {p - q:11.2f} {r:8.2f}")
print(f"{'together':9s} {ours.sum():7.2f} {base.sum():11.2f} "
      f"{(ours - base).sum():11.2f} {rewards.sum():8.2f}")

# %% [markdown]
# ## 5 · Advantages over tokens
#
# A critic $V_t$ guesses, from prompt and answer so far, what is still to come. The
# advantages are lesson 02's GAE along the answer, one episode a row:
#
# $$\delta_t = r_t + \gamma V_{t+1} - V_t ,\qquad
# A_t = \delta_t + \gamma\lambda A_{t+1} ,\qquad
# R_t = A_t + V_t ,$$
#
# with $V_{t+1} = 0$ and $A_{t+1} = 0$ after the answer's last token: the episode has
# *terminated* there. $R_t$ is what the critic learns from. Usually $\gamma = 1$: an
# answer is short, and its end matters as much as its beginning. $V_t$ stands for the
# context *before* token $t$ is written.
#
# ### 06.4 · `token_advantages` — difficulty 4 of 5, 12 minutes, 3 points
#
# <details>
# <summary>Hint 1: columns from right to left</summary>
#
# Keep a running `(B,)` tensor, and go through the columns backwards.
# `inside = mask[:, t + 1]` (zeros for the last column) says whether the next column still
# belongs to the answer.
#
# </details>
#
# <details>
# <summary>Hint 2: two places for it</summary>
#
# Multiply both the next value *and* the running advantage by `inside`. At the end
# multiply advantages and returns by the mask. The critic's values outside the answer are
# not 0: don't let them in.
#
# </details>
#
# <!-- answer: token_advantages -->


# %%
def token_advantages(rewards, values, mask, gamma=1.0, lam=0.95):
    """GAE along each answer, and the returns that it implies.

    Args:
        rewards: a number a token, zeros outside the answers, shape (B, T).
        values: the critic's, shape (B, T); values[:, t] is that of the context before
            token t. Outside the answers they may be anything.
        mask: 1 on the answer's tokens, one run of ones a row, shape (B, T).
        gamma, lam: discount and trace decay, floats in [0, 1].

    Returns:
        advantages, and returns = advantages + values; both of shape (B, T), zeros
        outside the answers.

    Example: rewards [0, 1, 0], values [0.5, 0.5, 7], mask [1, 1, 0], γ = 1, λ = 0.5:
    the last token has δ = 1 − 0.5 = 0.5, the first δ = 0 + 0.5 − 0.5 = 0; advantages
    [0.25, 0.5, 0], returns [0.75, 1, 0].
    """
    # SOLUTION
    T = rewards.shape[1]
    advantages, running = torch.zeros_like(rewards), torch.zeros_like(rewards[:, 0])
    for t in reversed(range(T)):
        inside = mask[:, t + 1] if t + 1 < T else torch.zeros_like(mask[:, t])
        following = values[:, t + 1] if t + 1 < T else torch.zeros_like(running)
        delta = rewards[:, t] + gamma * following * inside - values[:, t]
        running = delta + gamma * lam * running * inside
        advantages[:, t] = running
    return advantages * mask, (advantages + values) * mask
    # END SOLUTION


# %%
token_advantages = check(token_advantages)

# %% [markdown]
# **Whitening.** Advantages come in units of reward, and a reward model's scale is an
# accident. Shifted and scaled to mean 0 and variance 1 over the batch, they fit one
# learning rate. Over *all* the batch's answer tokens, not row by row: that one answer is
# better than another is all we know.
#
# ### 06.5 · `whiten` — difficulty 2 of 5, 6 minutes, 2 points
#
# <details>
# <summary>Hint 1: pick, then count</summary>
#
# `values[mask != 0]` is one long tensor of what counts. Mean and variance are those of
# this tensor.
#
# </details>
#
# <details>
# <summary>Hint 2: two traps</summary>
#
# `var(correction=0)` divides by n; the default divides by n − 1 and gives NaN for a
# single token. Add 1e-8 to the variance before its root, against 0/0. Zeros outside:
# `torch.where(mask != 0, …, 0.0)`.
#
# </details>
#
# <!-- answer: whiten -->


# %%
def whiten(values, mask):
    """The masked values shifted and scaled to mean 0 and variance 1 (divided by n).

    Args:
        values: shape (B, T).
        mask: 1 where a value counts, shape (B, T).

    Returns:
        Shape (B, T), zeros where the mask is 0. A single value becomes 0, not NaN (add
        1e-8, and no more, to the variance or to its root).

    Example: values [[1, 3, 99]] with mask [[1, 1, 0]] give [[−1, 1, 0]].
    """
    # SOLUTION
    inside = values[mask != 0]
    mean, variance = inside.mean(), inside.var(correction=0)
    return torch.where(mask != 0, (values - mean) * (variance + 1e-8).rsqrt(), 0.0)
    # END SOLUTION


# %%
whiten = check(whiten)

# %% [markdown]
# ### Does it arrive? PPO in the world that can be listed
#
# All pieces are there. Before a language model gets them, let them prove themselves where
# the answer is known: a policy that is a table of logits, one row a prefix; a table of
# values; 64 answers to each prompt, two steps on each batch. `descend` is Adam with a
# learning rate that falls to 0; it records $\mathrm{KL}(\pi\|\pi^*)$, summed over all 125
# answers, as it goes.


# %%
def ppo_in_the_world(whitening, seed, lam=1.0, group=64, steps=300):
    """PPO from the reference on; the policy, and its distance from π* along the way."""
    old_policy, g = world.start(), torch.Generator().manual_seed(seed)
    prompts = torch.arange(4).repeat_interleave(group)  # (B,)
    values = torch.zeros_like(world.reference_logits[..., 0], requires_grad=True)

    def losses(policy):
        answers = policy.sample(group, g).flatten()  # (B,)
        rows = (prompts[:, None], policy.rows[answers])  # (B, T)
        with torch.no_grad():
            old = policy.token_log_probs()[prompts, answers]
            ref = old_policy.token_log_probs()[prompts, answers]
            scores, mask = world.rewards[prompts, answers], torch.ones_like(old)
            rewards = kl_shaped_rewards(scores, old, ref, mask.long(), world.beta)
            advantages, returns = token_advantages(rewards, values[rows], mask, lam=lam)
            if whitening:
                advantages = whiten(advantages, mask)
        for _ in range(2):
            log_probs = policy.token_log_probs()[prompts, answers]
            policy_term = clipped_policy_loss(log_probs, old, advantages)
            yield policy_term + value_loss(values[rows], returns)

    return descend(world, losses, steps, lr=0.05, extra=[values])


whose("kl_shaped_rewards", "token_advantages", "whiten")
arrived = {
    name: [ppo_in_the_world(name == "whitened", seed) for seed in range(3)]
    for name in ("as they are", "whitened")
}
print(f"\nKL(π‖π*) in nats, {len(arrived['whitened'])} seeds; π_ref itself: "
      f"{kl_from_logits(reference, best).mean():.3f}")
for name, runs in arrived.items():
    for place in (len(runs[0][1]["kl"]) // 4, -1):
        steps = runs[0][1]["step"][place]
        ends = "  ".join(f"{history['kl'][place]:.5f}" for _, history in runs)
        print(f"advantages {name:12s} step {steps:3d}:   {ends}")
policy = arrived["as they are"][0][0]().detach()
print(f"\nwhat the last distance costs: J(π*) − J(π) = "
      f"{value_of(best) - value_of(policy):.6f} = β·KL = "
      f"{world.beta * kl_from_logits(policy, best).mean():.6f}")

# %%
figure, axes = plt.subplots(figsize=(7.2, 3.7), layout="constrained")
for (name, runs), colour in zip(arrived.items(), (BLUE, GREEN), strict=True):
    for i, (_, history) in enumerate(runs):
        axes.plot(history["step"], history["kl"], color=colour, linewidth=1.3,
                  label=f"advantages {name}, three seeds" if i == 0 else None)
fall = min(h["kl"][0] / h["kl"][-1] for runs in arrived.values() for _, h in runs)
axes.set(title="PPO with your functions reaches π*: the distance falls\n"
         f"to less than 1/{int(fall / 100) * 100} in every run", yscale="log",
         xlabel="batches",
         ylabel="KL(π‖π*) (nats), exact")
axes.legend(frameon=False)
plain(axes)
plt.show()

# %% [markdown]
# It arrives, and stays on its way as noisy as samples are. Whitening is the faster one at
# first: it takes steps of one size, whatever the rewards' scale. Near $\pi^*$ that turns
# against it for a while. *At* the optimum all true advantages are zero: with
# $r - \beta\log\frac{\pi^*}{\pi_{\mathrm{ref}}} = \beta\log Z$ every answer has the same
# return. What is left in a batch is noise, and whitening blows it up to variance 1; only
# the falling learning rate then brings the policy home.

# %% [markdown]
# ## 6 · The kitchen, for four prices of a nat
#
# `train_rlhf` is a loop of forty lines (`rlhf_minimal/rlhf.py`; read it now): sample a
# batch of answers, score them, and then call *your* functions. The critic reads the
# reward model's features through a new linear head (InstructGPT starts its value function
# from the reward model too: Ouyang et al. 2022, appendix C). The learning rate falls to 0
# along a line, so that the policies come to rest; only the one without a price keeps it
# to the end, for there we want to see how far it goes.
#
# **Predict** before you run: when β falls from 0.4 to 0, what do proxy, gold reward and
# KL do? Which β has the best gold reward?

# %%
whose("kl_shaped_rewards", "token_advantages", "whiten")
PRICES = (0.4, 0.1, 0.03, 0.0)
WILD = dict(steps=32, schedule="constant")  # for β = 0: full speed to the end


def ppo(beta, **options):
    """A copy of the SFT model trained by PPO against the proxy; it and its history."""
    policy = copy.deepcopy(kitchen.sft)
    options = dict(
        steps=40,
        beta=beta,
        seed=0,
        value_model=kitchen.reward_model.critic(),
        shaped_rewards=kl_shaped_rewards,
        advantages=token_advantages,
        whitening=whiten,
        policy_loss=clipped_policy_loss,
        critic_loss=value_loss,
        show_progress=False,
    ) | sampling | options
    score = options.pop("score", kitchen.score)
    return policy, train_rlhf(policy, kitchen.sft, score, kitchen.prompts, **options)


policies, runs, measured = {}, {}, {}
print("\n   β   gold reward      proxy   KL (nats)   wins over SFT   tokens")
for beta in PRICES:
    options = WILD if beta == 0 else {}
    policies[beta], runs[beta] = ppo(beta, watch=kitchen.watch_gold, **options)
    m = measured[beta] = evaluate(kitchen, policies[beta])
    print(f"{beta:5.2f}  {m['gold']['mean']:5.2f} ± {m['gold']['se']:.2f} "
          f"{m['proxy']:10.2f} {m['kl']:10.2f} {m['win_rate']['mean']:14.0%} "
          f"{m['length']:11.1f}")
print(f"  SFT  {of_sft['gold']['mean']:5.2f} ± {of_sft['gold']['se']:.2f} "
      f"{of_sft['proxy']:10.2f} {0:10.2f}")

# %% [markdown]
# And best-of-n with your function, for n from 2 to 32. Its KL is the formula's, a bound.

# %%
whose("best_of_n")
FEW = [2, 4, 8, 16, 32]
texts = sample_prompts(kitchen.sizes.evaluation_prompts, kitchen.seed + 5)[:120]
prompts = [tokenizer.encode(text) for text in texts]


def gold_and_proxy(rollouts):
    pairs = zip(texts, rollouts.answers(), strict=True)
    golds = [kitchen.gold(*pair) for pair in pairs]
    return interval(golds), kitchen.score(rollouts).mean().item()


chosen = {}
with torch.no_grad():
    for n in [1, *FEW]:
        options = sampling | dict(generator=torch.Generator().manual_seed(n))
        picked = best_of_n(kitchen.sft, kitchen.score, prompts, n, **options)
        chosen[n] = gold_and_proxy(picked)
        gold, proxy = chosen[n]
        print(f"best of {n:2d}   gold {gold['mean']:5.2f} ± {gold['se']:.2f}   "
              f"proxy {proxy:5.2f}   KL ≤ {best_of_n_kl(n):.2f}")

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(10.5, 4.2), layout="constrained")
wild = runs[0.0]
root = np.sqrt(np.clip(wild["kl"], 0, None))
left.plot(root, wild["score"], ".-", color=PROXY, label="proxy")
left.plot(root, wild["gold"], ".-", color=GOLD, label="gold reward")
left.axhline(of_sft["gold"]["mean"], color=GREY, linewidth=1, linestyle=":")
left.text(root.max(), of_sft["gold"]["mean"] - 0.1, "SFT's gold reward", ha="right",
          va="top", fontsize=9, color=GREY)
left.set(title="β = 0: the judge is ever more pleased;\ngold rises a little, and then "
         "falls and falls", xlabel="√KL from the SFT model (√nats)",
         ylabel="reward (a point a batch)")
left.legend(frameon=False, loc="lower left")

priced = [beta for beta in PRICES if beta > 0]
x = [math.sqrt(measured[b]["kl"]) for b in priced]
for name, colour, marker in (("gold", GOLD, "o"), ("proxy", PROXY, "s")):
    y = [measured[b][name] for b in priced]
    y = [value["mean"] if name == "gold" else value for value in y]
    right.plot(x, y, f"{marker}-", color=colour, label=f"PPO, {name}")
    y = [chosen[n][name == "proxy"] for n in FEW]
    y = [value["mean"] if name == "gold" else value for value in y]
    right.plot([math.sqrt(best_of_n_kl(n)) for n in FEW], y, f"{marker}--",
               color=colour, markerfacecolor="white", label=f"best-of-n, {name}")
for beta, place in zip(priced, x, strict=True):
    right.annotate(f"β = {beta:g}", (place, measured[beta]["gold"]["mean"]),
                   textcoords="offset points", fontsize=9,
                   xytext=(4, -14) if place == min(x) else (-4, 8))
right.margins(x=0.09)
peak = max(priced, key=lambda b: measured[b]["gold"]["mean"])
right.set(title=f"With a price, gold is highest at β = {peak:g} and falls below it;\n"
          "the proxy goes on rising", xlabel="√KL from the SFT model (√nats)",
          ylabel="reward")
right.legend(frameon=False, fontsize=9)
plain(left, right)
plt.show()

# %% [markdown]
# This is **over-optimisation**, or Goodhart's law: when a measure becomes a target, it
# ceases to be a good measure. Note what you would see *without* a gold reward: the proxy,
# which only ever improves. KL is the one warning light that everybody has.

# %% [markdown]
# ### What the judge loves: answers at β = 0

# %%
ASKED = ["how do i make pizza ?", "what do i need for curry ?",
         "any ideas for a salad ?"]
for beta in (0.1, 0.0):
    rollouts = kitchen.rollouts(policies[beta], ASKED, seed=3)
    scores = kitchen.score(rollouts).tolist()
    print(f"β = {beta:g}")
    for text, answer, proxy in zip(ASKED, rollouts.answers(), scores, strict=True):
        words = prettify(tokenizer.decode(answer))
        end = "" if answer[-1] == tokenizer.end_id else " …"
        print(f"  {text}\n    {words}{end}\n    proxy {proxy:.2f}, gold "
              f"{kitchen.gold(text, answer):.2f}")


def enjoyed(answers):
    """Mean and largest number of times that an answer says "enjoy"."""
    times = [tokenizer.decode(answer).split().count("enjoy") for answer in answers]
    return f"{np.mean(times):.2f} on average, at most {max(times)}"


compared = [answer for pair in kitchen.pairs for answer in (pair.chosen, pair.rejected)]
print('\n"enjoy", times an answer')
print(f"  in the {len(compared):,} compared  {enjoyed(compared)}")
print(f"  at β = 0             "
      f"{enjoyed(kitchen.answers(policies[0.0], texts, seed=11))}")

# %% [markdown]
# Politeness was worth something to the annotator, so the reward model found polite words
# good. In the answers that were compared such words come once or twice, if at all (the
# last lines above count one of them). Out there the judge extrapolates: more of a good thing is
# better. The policy walks that way. Nothing is malicious here, and nothing is
# broken: PPO did what it was asked to do. (At β = 0.1 the answers are short and end.)

# %% [markdown]
# ## 7 · A law for it?
#
# Gao, Schulman & Hilton (2023) measured over-optimisation for language models, with a
# large reward model in the role of gold and smaller ones as proxies. With
# $d = \sqrt{\mathrm{KL}(\pi\|\pi_{\mathrm{ref}})}$, the gold reward gained over the
# start was well described by
#
# $$R_{\mathrm{RL}}(d) = d\,(\alpha - \beta'\log d),\qquad
#   R_{\mathrm{BoN}}(d) = d\,(\alpha - \beta' d)$$
#
# ($\beta'$ is a fitted number, and not the price of a nat). Both are *empirical* forms,
# chosen since they fitted. Both are linear in the two unknowns, so least squares needs
# one line. Fit the first to the β = 0 run: one point a batch, 64 answers each (so $d$ is
# an estimate too, and rough where it is small). And then do what is too rarely done: look
# at the residuals, try the other form on the same points, and fit one part to predict the
# other.

# %%
FORMS = {"d (α − β' log d)": np.log, "d (α − β' d)": lambda d: d}


def fitted(d, gain, form):
    """α and β' by least squares, R² and residuals."""
    d, gain = np.asarray(d), np.asarray(gain)
    columns = np.stack([d, -d * FORMS[form](d)], axis=1)
    coefficients = np.linalg.lstsq(columns, gain, rcond=None)[0]
    residuals = gain - columns @ coefficients
    r2 = 1 - (residuals**2).sum() / ((gain - gain.mean()) ** 2).sum()
    return coefficients, r2, residuals


def curve_of(form, coefficients, d):
    return d * (coefficients[0] - coefficients[1] * FORMS[form](d))


moved = root > 0.1  # the first batch is the reference itself: d = 0
d_run = root[moved]
gain_run = np.array(wild["gold"])[moved] - of_sft["gold"]["mean"]
zero = chosen[1][0]["mean"]  # best of 1 is SFT, on the same prompts
d_bon = np.array([math.sqrt(best_of_n_kl(n)) for n in FEW])
gain_bon = np.array([chosen[n][0]["mean"] for n in FEW]) - zero
noise = of_sft["gold"]["se"] * math.sqrt(kitchen.sizes.evaluation_prompts / 64)

fits = {}
for data, d, gain in (("PPO, β = 0", d_run, gain_run), ("best-of-n", d_bon, gain_bon)):
    for form in FORMS:
        coefficients, r2, residuals = fits[data, form] = fitted(d, gain, form)
        size = np.sqrt((residuals**2).mean())
        print(f"{data:11s} {form:17s} α = {coefficients[0]:5.2f}, "
              f"β' = {coefficients[1]:6.3f}   R² = {r2:.3f}   residuals ± {size:.2f}")
print(f"\na batch's gold reward has a standard error of about {noise:.2f}")
far = d_run > 3
share = np.corrcoef(d_run[far] ** 2, gain_run[far])[0, 1] ** 2
slope = np.polyfit(d_run[far] ** 2, gain_run[far], 1)[0]
print(f"beyond d = 3: a straight line in KL, {slope:.3f} a nat, has R² = {share:.3f}")
near = d_run < 4
short = {form: fitted(d_run[near], gain_run[near], form) for form in FORMS}
print(f"\nfitted where d < 4 ({near.sum()} batches), then asked for the last five:")
ends = []
for form, (coefficients, r2, _) in short.items():
    ends.append(curve_of(form, coefficients, d_run[-5:]).mean())
    print(f"{form:17s} R² = {r2:.3f} there; predicts {ends[-1]:6.2f}, measured "
          f"{gain_run[-5:].mean():6.2f}")

# %%
figure, (left, middle, right) = plt.subplots(1, 3, figsize=(12.5, 3.9),
                                             layout="constrained")
grid = np.linspace(0.05, d_run.max(), 200)
left.plot(d_run, gain_run, "o", markersize=4, color=BLUE,
          label="PPO, β = 0, a batch each")
dashes = dict(zip(FORMS, (("black", "-"), (GREEN, "--")), strict=True))
for form, (colour, dash) in dashes.items():
    coefficients, r2, residuals = fits["PPO, β = 0", form]
    left.plot(grid, curve_of(form, coefficients, grid), dash, color=colour,
              label=f"{form}, R² = {r2:.2f}")
    middle.plot(d_run, residuals, "o" if colour == "black" else "x", markersize=4,
                color=colour, label=form)
for form, colour in zip(FORMS, (RED, "#CC79A7"), strict=True):
    left.plot(grid, curve_of(form, short[form][0], grid), ":", color=colour,
              label=f"{form}, from d < 4 alone")
r2s = sorted(fits["PPO, β = 0", form][1] for form in FORMS)
left.set(title=f"PPO's run: R² is {r2s[0]:.3f} and {r2s[1]:.3f},\n"
         f"the start alone foretells an end at {ends[0]:.0f} or {ends[1]:.0f}",
         xlabel="d = √KL (√nats)",
         ylabel="gold reward gained over SFT")
left.legend(frameon=False, fontsize=8.5)
middle.axhline(0, color="black", linewidth=0.8)
middle.axhspan(-2 * noise, 2 * noise, color=GREY, alpha=0.15, linewidth=0,
               label="± 2 standard errors of a batch")
middle.set(title="The residuals of both are not noise:\nthey come in runs",
           xlabel="d = √KL (√nats)",
           ylabel="measured − fitted")
middle.margins(y=0.3)
middle.legend(frameon=False, fontsize=8.5, loc="lower right")
errors = [1.96 * math.hypot(chosen[n][0]["se"], chosen[1][0]["se"]) for n in FEW]
right.errorbar(d_bon, gain_bon, yerr=errors, fmt="o", color=BROWN, capsize=2,
               label="best of 2, 4, …, 32, 95%")
to_64 = np.linspace(0, 2.2, 100)[1:]
for form, (colour, dash) in dashes.items():
    right.plot(to_64, curve_of(form, fits["best-of-n", form][0], to_64), dash,
               color=colour, label=f"{form}, R² = {fits['best-of-n', form][1]:.2f}")
right.set(title="Best-of-n: both forms pass", xlabel="d = √(log n − (n − 1)/n) (√nats)",
          ylabel="gold reward gained over SFT", ylim=(0, None))
right.legend(frameon=False, fontsize=8.5, loc="lower right")
plain(left, middle, right)
plt.show()

# %% [markdown]
# Look at it with a cool head.
#
# - **By R² alone** one would be content with either form, and our world was never made to
#   obey them.
# - **The residuals object.** They come in runs of one sign, many of them outside what a
#   batch's noise allows, and near the start the form for RL promises too much. Its slope
#   $\alpha - \beta' - \beta'\log d$ is infinite at $d = 0$. But there even π* gains only
#   $\sqrt{2\,\mathrm{Var}(r)}\;d$ (try it: for large β, $\pi^*$ gains
#   $\mathrm{Var}(r)/\beta$ at a KL of $\mathrm{Var}(r)/2\beta^2$).
# - **Which form is ahead says little.** It is one run, and the points of a run are no
#   independent draws: each batch starts where the last one ended. Try other seeds,
#   `ppo(0.0, seed=1, watch=kitchen.watch_gold, **WILD)`, before you believe in an order.
# - **The fall has a simpler description.** Beyond $d = 3$ the policy adds one phrase
#   after the other, and each costs about so many nats and loses about so much gold: a
#   straight line in $\mathrm{KL} = d^2$. That is a fact about this kitchen, not a law.
# - **The start does not say how it ends.** Fitted to $d < 4$ alone, both forms explain
#   about half of the variance where they were fitted, and foretell an end that is no worse
#   than SFT. Nothing in the first part of the run announces the fall.
# - **For best-of-n** both forms pass through all intervals. Five points and two
#   parameters: with so little, a high R² is no evidence for a form, and the overfitting
#   part $\beta'$ is hardly seen at all. Choosing among 32 answers does not go far enough.
#
# One seed, one world, and a proxy that learned from ten thousand noisy comparisons. What
# does carry over is the shape: up, over a top, down, while the proxy rises. What does not
# is the formula.
#
# **Is the price better than stopping early?** Gao et al. found that a KL penalty raises
# the *proxy* that is reached at a given KL, but not the gold reward: as far as gold is
# concerned, it acted like early stopping (and they warn that this may depend on
# hyper-parameters). Here we can compare: each policy trained with a price, against the
# five batches of the β = 0 run whose KL is nearest.

# %%
print("   β      KL    gold: with price   at β = 0, same KL   proxy: with   at β = 0")
for beta in priced:
    kl, m = measured[beta]["kl"], measured[beta]
    same = sorted(range(len(root)), key=lambda i: abs(root[i] ** 2 - kl))[:5]
    gold, proxy = (np.mean([wild[name][i] for i in same]) for name in ("gold", "score"))
    print(f"{beta:5.2f}  {kl:6.2f} {m['gold']['mean']:14.2f} {gold:19.2f} "
          f"{m['proxy']:14.2f} {proxy:10.2f}")

# %% [markdown]
# At the small divergences the price does better than stopping early, and in gold too. In
# this world our result differs from theirs. A plausible reason: π* is the frontier, and a
# run *with* a price goes on improving at its KL until it is near it (and with a falling
# learning rate comes to rest there), while a run without one only passes by, at full
# speed. Whether the gain is gold depends on how good the judge is at that
# distance, and near the reference ours is good. At the smallest β little is left of it.

# %% [markdown]
# ## 8 · Bug hunt: the order of two lines
#
# A colleague tidies up: "advantages and returns belong together, and whitening is part of
# it". Her function looks like this.


# %%
def prepare_as_found(rewards, values, mask, lam=0.95):
    """Whitened advantages, and returns for the critic."""
    advantages, _ = token_advantages(rewards, values, mask, lam=lam)
    advantages = whiten(advantages, mask)
    returns = (advantages + values) * mask
    return advantages, returns


# %% [markdown]
# **Find it** before you read on. Which of the two results is wrong, and in what units?
#
# The returns are made of *whitened* advantages. The critic's target is
# $V_t + (A_t - m)/s$ instead of $V_t + A_t$. Does it matter? Run it in the kitchen
# against the right order. A small batch will do; and for reasons that you will see in a
# moment we run both with three judges who *agree on every comparison*: the proxy as it is
# (three seeds), the proxy minus 4 (two) and the proxy plus 4 (one). A reward model learns
# from differences alone; nothing in its training fixes the constant (lesson 05).


# %%
def in_order(rewards, values, mask, lam=0.95):
    advantages, returns = token_advantages(rewards, values, mask, lam=lam)
    return whiten(advantages, mask), returns


def keep(values, mask):
    return values


WAYS = {"right": in_order, "as found": prepare_as_found}
SEEDS = {0.0: (0, 1, 2), -4.0: (0, 1), 4.0: (0,)}  # by what is added to the judge


def cost_of(way, shift, seed, lam=0.95):
    """A short run against proxy + shift: gold reward, length, the critic's values."""
    seen = []

    def watched(rewards, values, mask, lam):
        returns = token_advantages(rewards, torch.zeros_like(values), mask, lam=1.0)[1]
        seen.append((values[mask == 1].mean().item(), returns[mask == 1].mean().item()))
        return WAYS[way](rewards, values, mask, lam=lam)

    policy, _ = ppo(0.1, steps=18, batch_size=32, minibatch_size=32, seed=seed, lam=lam,
                    advantages=watched, whitening=keep,
                    score=lambda rollouts: kitchen.score(rollouts) + shift)
    answers = kitchen.rollouts(policy, texts, seed=7).answers()
    gold = [kitchen.gold(*pair) for pair in zip(texts, answers, strict=True)]
    value, target = np.mean(seen[-5:], axis=0)
    return dict(gold=np.mean(gold), length=np.mean([len(answer) for answer in answers]),
                value=value, target=target)


whose("token_advantages", "whiten")
costs = {(shift, way): [cost_of(way, shift, seed) for seed in seeds]
         for shift, seeds in SEEDS.items() for way in WAYS}
print("\njudge      order      gold reward, each seed     tokens      values   returns")
for (shift, way), rows in costs.items():
    golds = "  ".join(f"{row['gold']:5.2f}" for row in rows)
    tokens, value, target = (np.mean([row[name] for row in rows])
                             for name in ("length", "value", "target"))
    print(f"proxy {shift:+.0f}   {way:10s} {golds:>22s} {tokens:12.1f} {value:11.2f} "
          f"{target:9.2f}")

# %% [markdown]
# With the judge as it is the bug costs nothing that three seeds could show: it would
# live in a code base for years. With the stern one (−4) it ruins the answers: far too
# long, and worth less than SFT's. With the generous one (+4) it makes them curt, at
# little cost in gold in the one seed here.
#
# **Understand it.** Compare the columns "values" and "returns": the right critic learns
# the level of the returns, the other one never does.
#
# 1. Whitened advantages have mean 0. So the targets $V + \tilde A$ have the mean of $V$:
#    whatever level the critic has, it keeps. It starts at 0 and stays there, while the
#    returns are $c$ higher.
# 2. What does a constant error $c$ do to the advantages? Within the answer it cancels in
#    $\delta_t = r_t + V_{t+1} - V_t$. At the last token there is no $V_{t+1}$, and
#    $\delta_T$ is $c$ too large. GAE hands it back: a token $k$ steps before the end gets
#    $\lambda^k c$.
# 3. Whitening takes off the mean of that, but it is not constant: **it depends on how
#    near the end is**. For $c > 0$ whatever brings the end near looks good; for $c < 0$
#    whatever puts it off. A policy decides when to stop, so this is no baseline but a
#    reward for length.
#
# The kitchen centres its judge: SFT answers have mean 0, $c$ is small, and the bug
# sleeps. The explanation predicts something: with $\lambda = 1$ the factor $\lambda^k$ is
# 1 everywhere, whitening removes it, and the bug must be harmless even with the stern
# judge.

# %%
costs[-4.0, "as found, λ = 1"] = [cost_of("as found", -4.0, seed=0, lam=1.0)]
golds = "  ".join(f"{row['gold']:5.2f}" for row in costs[-4.0, "as found, λ = 1"])
tokens = np.mean([row["length"] for row in costs[-4.0, "as found, λ = 1"]])
print(f"proxy −4, as found, λ = 1: gold {golds}, {tokens:.1f} tokens")

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(10.5, 3.7), layout="constrained")
for axes, name, label in ((left, "gold", "gold reward"), (right, "length", "tokens")):
    for i, (way, colour) in enumerate((("right", BLUE), ("as found", RED))):
        for j, shift in enumerate((-4.0, 0.0, 4.0)):
            values = [row[name] for row in costs[shift, way]]
            place = j + 0.14 * (2 * i - 1)
            axes.plot([place] * len(values), values, "o", color=colour,
                      label=way if j == 0 else None)
    cured = [row[name] for row in costs[-4.0, "as found, λ = 1"]]
    axes.plot([0.0] * len(cured), cured, "x", color=GREY, label="as found, λ = 1")
    axes.set_xticks(range(3), ["proxy − 4", "proxy", "proxy + 4"])
    axes.set(xlabel="the judge", ylabel=label, xlim=(-0.5, 2.5))
right.set_ylim(0, None)
left.set(title="The bug costs little with a centred judge,\nand much with a stern one")
right.set(title="A stern judge makes it ramble,\na generous one makes it curt")
left.legend(frameon=False, loc="lower right")
plain(left, right)
plt.show()

# %% [markdown]
# Predicted, and so it is. (With the right order the stern judge costs something as well:
# a critic that starts at 0 needs batches to learn the level, and as long as it has not,
# the same thing happens in small. That is a reason to centre a reward model, and to set
# its zero where the policy starts.)
#
# In the world of section 5 you could not have found it: all its answers have three
# tokens. A test world that lacks the freedom which a bug exploits will pass the bug.
#
# ### 06.6 · `advantages_and_targets` — difficulty 1 of 5, 4 minutes, 1 point
#
# <details>
# <summary>Hint 1: who needs what</summary>
#
# The policy needs whitened advantages. The critic needs returns in units of reward.
#
# </details>
#
# <details>
# <summary>Hint 2: it is all there</summary>
#
# `token_advantages` gives both, in the right units. Whiten one of the two, and hand on λ.
#
# </details>
#
# <!-- answer: advantages_and_targets -->


# %%
def advantages_and_targets(rewards, values, mask, lam=0.95):
    """What the policy learns from and what the critic learns from.

    Args:
        rewards, values, mask: as for token_advantages, shape (B, T) each.
        lam: trace decay, a float in [0, 1].

    Returns:
        advantages, whitened; targets for the critic, in units of reward. Both (B, T),
        zeros outside the answers.
    """
    # SOLUTION
    advantages, targets = token_advantages(rewards, values, mask, lam=lam)
    return whiten(advantages, mask), targets
    # END SOLUTION


# %%
advantages_and_targets = check(advantages_and_targets)

# %% [markdown]
# ## 9 · Four models in memory
#
# Count what the loop holds: the **policy** and the **critic**, which learn; the
# **reference** and the **reward model**, which are only read. A weight that is read takes
# its own bytes. A weight that learns with Adam takes, in mixed precision, 16 bytes
# (Rajbhandari et al. 2020): 2 for the weight, 2 for its gradient, and in float32 a master
# copy, the mean and the square of the gradient, 4 each. In float32 throughout, as in our
# kitchen, it is 16 again: 4 each for weight, gradient, mean and square.

# %%
MISTRAL = 7.24e9  # weights of Mistral 7B (Jiang et al. 2023)


def ledger(models, read):
    """Bytes by model and kind; ``models``: name -> (weights, how many learn)."""
    rows = {}
    for name, (weights, learning) in models.items():
        kinds = dict(weights=read * weights, gradients=read * learning,
                     optimizer=(16 - 2 * read) * learning)
        rows[name] = kinds
    return rows


def show(title, rows, unit, size):
    print(f"{title:24s} weights  gradients  optimizer   together ({unit})")
    for name, kinds in rows.items():
        cells = "".join(f"{value / size:10.2f}" for value in kinds.values())
        print(f"{name:22s}{cells}{sum(kinds.values()) / size:11.2f}")
    total = sum(sum(kinds.values()) for kinds in rows.values())
    print(f"{'together':52s}{total / size:11.2f}\n")


def count(module, learning=False):
    parameters = (p for p in module.parameters() if p.requires_grad or not learning)
    return sum(p.numel() for p in parameters)


critic = kitchen.reward_model.critic()
toy = {
    "policy": (count(kitchen.sft), count(kitchen.sft)),
    "critic": (count(critic), count(critic, learning=True)),
    "reference": (count(kitchen.sft), 0),
    "reward model": (count(kitchen.reward_model), 0),
}
large = {"policy": (MISTRAL, MISTRAL), "critic": (MISTRAL, MISTRAL),
         "reference": (MISTRAL, 0), "reward model": (MISTRAL, 0)}
without = {name: large[name] for name in ("policy", "reference")}
show("the kitchen, float32", ledger(toy, read=4), "MB", 1e6)
show("four times 7B, 16 bit", ledger(large, read=2), "GB", 1e9)
show("DPO, lesson 07", ledger(without, read=2), "GB", 1e9)
cache = 2 * 32 * 8 * 128 * 2  # keys and values, layers, heads of keys, width, bytes
print(f"keys and values of a token while it writes: {cache / 1024:.0f} KiB; of 64 "
      f"answers with 1,024 tokens each: {64 * 1024 * cache / 1e9:.1f} GB")

# %% [markdown]
# Four times 7B is more than three GPUs of 80 GB hold, before a single activation. Hence
# the tricks of the trade: adapters instead of full training, with the reference being the
# same model without its adapters (lesson 08); a critic that shares the policy's trunk, or
# none at all (lesson 10); a reward model on another machine; and no judge and no critic,
# since nothing is sampled (lesson 07). In the kitchen the critic borrows the reward
# model's features and learns one layer of 65 numbers.

# %% [markdown]
# ## 10 · To discuss
#
# 1. Two papers use β = 0.1. Do their policies stay equally close to their references?
#
# <details>
# <summary>What we think</summary>
#
# No: β is in units of reward a nat. Multiply a reward model by 2 and π* at β = 0.2 is
# what it was at 0.1. Comparisons fix the scale of rewards only as far as the annotators'
# noise does. Report the KL that was reached.
#
# </details>
#
# 2. The KL term is an average over samples of π. What does it not forbid?
#
# <details>
# <summary>What we think</summary>
#
# Rare disasters, and silence: KL(π‖π_ref) is cheap where π gives up something that the
# reference does (lesson 03: it seeks modes). A policy that answers every question with
# the same one of the reference's answers may be close. It punishes what the reference
# would never say, and that is what it is for.
#
# </details>
#
# 3. You have no gold reward. How do you choose β, and when do you stop?
#
# <details>
# <summary>What we think</summary>
#
# Measure with something that was not trained against: people on a few hundred pairs, a
# reward model trained on other comparisons. Look at KL, length, and repeated phrases;
# read answers. Nothing that the policy is trained on can tell you.
#
# </details>
#
# 4. Would new comparisons of the β = 0 policy's answers mend the judge?
#
# <details>
# <summary>What we think</summary>
#
# For this hack, yes: one look at an answer that repeats itself to the end and the
# annotator prefers another. Collecting new comparisons of the newest policies again and
# again, about once a week, is what Bai et al. (2022) did. The next policy then looks for
# the next gap; it becomes harder to find.
#
# </details>
#
# 5. Best of 16 is as good as the best of our trained policies, at a smaller KL. Why train
#    at all?
#
# <details>
# <summary>What we think</summary>
#
# It samples sixteen times for every answer, for ever, and needs the judge at hand. Some
# therefore train a policy to imitate its own best of n. And its reach is limited: log n
# nats. What has a chance of one in a million in the reference, it will not find.
#
# </details>
#
# ## What to read next
#
# - L. Ouyang et al., *Training language models to follow instructions with human
#   feedback*, 2022, arXiv 2203.02155: the method of this lesson.
# - D. Ziegler et al., *Fine-tuning language models from human preferences*, 2019, arXiv
#   1909.08593; N. Stiennon et al., *Learning to summarize from human feedback*, 2020,
#   arXiv 2009.01325: where it began, over-optimised summaries included.
# - L. Gao, J. Schulman & J. Hilton, *Scaling laws for reward model overoptimization*,
#   ICML 2023, arXiv 2210.10760.
# - T. Korbak, E. Perez & C. Buckley, *RL with KL penalties is better viewed as Bayesian
#   inference*, 2022, arXiv 2205.11275: π* as a posterior.
# - R. Rafailov et al., *Direct preference optimization*, 2023, arXiv 2305.18290, appendix
#   A.1: the derivation of section 2.
# - A. Beirami et al., *Theoretical guarantees on the best-of-n alignment policy*, 2024,
#   arXiv 2401.01879: the formula is a bound.
# - R. Nakano et al., *WebGPT*, 2021, arXiv 2112.09332: best-of-n in earnest.
# - S. Huang et al., *The N+ implementation details of RLHF with PPO*, 2024, arXiv
#   2403.17031: whitening, and what else decides.
# - J. Schulman et al., *High-dimensional continuous control using generalized advantage
#   estimation*, 2016, arXiv 1506.02438; *Proximal policy optimization algorithms*, 2017,
#   arXiv 1707.06347.
# - S. Rajbhandari et al., *ZeRO*, 2020, arXiv 1910.02054: sixteen bytes a weight.
# - Y. Bai et al., *Training a helpful and harmless assistant*, 2022, arXiv 2204.05862.
# - A. Jiang et al., *Mistral 7B*, 2023, arXiv 2310.06825: the sizes of section 9.
# - The package's `rlhf_minimal/rlhf.py`, `rollouts.py` and `exact.py`: this lesson in
#   code.
#
# **Next: lesson 07.** Solve $\pi^*$ for $r$, and the reward model disappears.

# %%
print(f"{time.process_time():.0f} seconds of CPU time in this notebook so far")
