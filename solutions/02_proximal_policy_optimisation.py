# %% [markdown]
# # 02 · Proximal policy optimisation
#
# *Why this matters: a language model's answers are dear to sample, so RLHF squeezes
# several gradient steps out of each batch. PPO is what keeps that from ending in
# gibberish; InstructGPT was trained with it.*
#
# **You will be able to**
#
# - show why a policy gradient is true only close to the policy that made the data;
# - derive the importance ratio, the clipped surrogate and its gradient, case by case;
# - write generalised advantage estimation, and say what its dial λ trades for what;
# - tell an episode that ended from a clock that ran out, and measure what it costs to
#   mix them up;
# - find the bug in a published PPO that can never learn, and prove that it cannot.
#
# **It assumes** lesson 01: returns, values, the policy gradient, baselines.
#
# | | |
# |---|---|
# | reading | 45 minutes |
# | coding | 60 minutes, eight exercises, 16 points |
# | computing | about two and a half minutes on one core; see the last cell |
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
import io
import itertools
import math
import random
import time

import gymnasium as gym
import ipywidgets as widgets
import matplotlib.pyplot as plt
import numpy as np
import torch
from tqdm.auto import tqdm

from autograder import check
from rlhf_minimal.environments import make_environments, play_episodes
from rlhf_minimal.kl import entropy, kl_from_logits
from rlhf_minimal.plots import COLOURS, points
from rlhf_minimal.policy_gradient import (
    action_log_probs,
    discounted_returns,
    mlp,
    normalise,
    policy_gradient_loss,
    train_reinforce,
)
from rlhf_minimal.ppo import clip_fraction, train_ppo

torch.set_num_threads(1)  # with networks this small a second thread only waits


def tidy(*many):
    """No frame above and to the right of a picture."""
    for axes in many:
        axes.spines[["top", "right"]].set_visible(False)


# %% [markdown]
# ## 1 · The cliff
#
# Lesson 01 ended with a suspicion. Some runs reached 500 and fell again; was that one
# step too far? Let us look at a single step. We take a policy that is half trained,
# play eight episodes with it, and compute the policy gradient of lesson 01.

# %%
half_trained, history = train_reinforce(
    seed=0, max_steps=6_000, evaluate_every=10_000, show_progress=False
)
eight = make_environments("CartPole-v1", 8)
many = make_environments("CartPole-v1", 48)


def play_batch(seed):
    """Eight episodes of the half-trained policy: observations, actions, weights."""
    generator = torch.Generator().manual_seed(seed)
    episodes = play_episodes(half_trained, eight, generator, seed)
    mask = episodes.mask  # (T, N), True while an episode runs
    returns = [
        discounted_returns(episodes.rewards[:, i][mask[:, i]].float(), 0.99)
        for i in range(8)
    ]
    observations = episodes.observations.transpose(0, 1)[mask.T]
    actions = episodes.actions.T[mask.T]
    return observations, actions, normalise(torch.cat(returns))


def worth(policy, seed=1):
    """Mean length of 48 episodes that ``policy`` plays, sampling its actions."""
    generator = torch.Generator().manual_seed(seed)
    return play_episodes(policy, many, generator, seed).rewards.sum(0).mean().item()


print(f"the half-trained policy keeps the pole up for {worth(half_trained):.0f} steps")

# %% [markdown]
# **Predict.** We walk along that gradient by 0.1, 0.2, 0.4, ... (the length of the step
# in parameter space), and play the policy where we arrive. If 0.1 helps, will 0.2 help
# twice as much? And 6.4?

# %%
STEPS = [0.0, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4]
BATCHES = range(10, 16)


def walk(batch_seed):
    """Episode length after steps of growing size along one batch's gradient."""
    observations, actions, weights = play_batch(batch_seed)
    log_probs = action_log_probs(half_trained(observations), actions)
    loss = policy_gradient_loss(log_probs, weights)
    gradient = torch.autograd.grad(loss, list(half_trained.parameters()))
    length = sum(g.square().sum() for g in gradient).sqrt()
    lengths = []
    for step in STEPS:
        there = copy.deepcopy(half_trained)
        with torch.no_grad():
            for parameter, g in zip(there.parameters(), gradient, strict=True):
                parameter -= step * g / length
        lengths.append(worth(there))
    return lengths


walks = np.array([walk(seed) for seed in BATCHES])
print("step        " + "".join(f"{step:6.1f}" for step in STEPS))
for seed, lengths in zip(BATCHES, walks, strict=True):
    print(f"batch {seed:3d}   " + "".join(f"{x:6.0f}" for x in lengths))

# %%
figure, axes = plt.subplots(figsize=(7, 3.6), layout="constrained")
place = np.arange(len(STEPS))
axes.plot(place, walks.T, color=COLOURS["REINFORCE"], linewidth=0.9, alpha=0.6)
axes.plot(place, np.median(walks, axis=0), color=COLOURS["REINFORCE"], linewidth=2.6,
          label=f"median of {len(walks)} batches (thin lines)")
axes.axhline(walks[0, 0], color="#666666", linestyle="--", linewidth=1,
             label="before the step")
axes.set(title=f"A short step along the gradient helps; a long one falls from "
               f"{walks[0, 0]:.0f} steps to {np.median(walks[:, -1]):.0f}",
         xlabel="length of the step in parameter space (doubling from 0.1 on)",
         ylabel="steps the pole stays up", ylim=(0, None), xticks=place,
         xticklabels=STEPS)
tidy(axes)
axes.legend(frameon=False)
plt.show()

# %% [markdown]
# Every batch ends at the foot of a cliff, and a noisy one may point down from the
# start. The gradient is a statement about the policy *as it is*; a few steps away it
# says nothing.
#
# In supervised learning that would be a hiccup: the next batch comes from the same data
# set and pulls the model back. Here **the next batch comes from the policy itself**. A
# policy that has fallen off the cliff plays episodes of ten steps, sees nothing but
# falling poles, and has to learn from those. The data are *non-stationary*: what you
# learn changes what you will see.
#
# The timid answer is tiny steps and fresh data after each: REINFORCE. The next three
# sections do better: take *several* steps on one batch, and notice when to stop.

# %% [markdown]
# ## 2 · Importance ratios: judging a new policy by old data
#
# The batch was played by $\pi_{\text{old}}$. After one gradient step the policy is
# $\pi_\theta$, and lesson 01's derivation wants actions drawn from *that*. Start with
# one state, and any number $f(a)$ that we know for the actions played:
#
# $$\begin{aligned}
# \mathbb{E}_{a \sim \pi_\theta}[f(a)]
#  &= \sum_a \pi_\theta(a)\, f(a) \\
#  &= \sum_a \pi_{\text{old}}(a)\,
#     \frac{\pi_\theta(a)}{\pi_{\text{old}}(a)}\, f(a)
#     \qquad\text{(multiply and divide)} \\
#  &= \mathbb{E}_{a \sim \pi_{\text{old}}}\bigl[\rho(a)\, f(a)\bigr],
#  \qquad \rho(a) = \frac{\pi_\theta(a)}{\pi_{\text{old}}(a)} .
# \end{aligned}$$
#
# An average over old actions, each weighed by its **importance ratio** $\rho$: above 1
# where the new policy would do it more often. With $\rho_t$ the ratio of the action
# taken at step $t$ and $\hat A_t$ an estimate of how much better than expected it was
# (its **advantage**, section 5), the **surrogate objective** is
#
# $$L(\theta) = \hat{\mathbb{E}}_t\bigl[\rho_t(\theta)\, \hat A_t\bigr]
#  \qquad\text{(Schulman et al. 2017, eq. 6)}.$$
#
# It is a real objective, a function of $\theta$ that can be evaluated again after each
# step, and at the start it has the right slope. By $\nabla\pi = \pi\,\nabla\log\pi$,
#
# $$\nabla_\theta\, \rho_t
#  = \frac{\nabla_\theta\, \pi_\theta(a_t)}{\pi_{\text{old}}(a_t)}
#  = \rho_t\; \nabla_\theta \log \pi_\theta(a_t)
#  \;\;\overset{\theta = \theta_{\text{old}}}{=}\;\;
#  \nabla_\theta \log \pi_\theta(a_t),$$
#
# because $\rho_t = 1$ there: the policy gradient of lesson 01.
#
# **What it does not correct.** Our one-state derivation replaced the distribution of
# *actions*. The states in the batch are still those that $\pi_{\text{old}}$ visited. A
# policy that acts differently also gets to different places, and of those the batch
# knows nothing. That is the cliff: near $\pi_{\text{old}}$ the difference is small
# (Schulman et al. 2015, *Trust region policy optimization*, bound it by the KL
# divergence), far away the surrogate is a tale about places where nobody goes.

# %% [markdown]
# ### 02.1 · `probability_ratio` — difficulty 1 of 5, 4 minutes, 1 point
#
# Policies are stored as log-probabilities. Mind how small a probability can be: an
# answer of a language model, a hundred tokens long, may have a log-probability of −150.
#
# <details>
# <summary>Hint 1: which rule</summary>
#
# $\log (x / y) = \log x - \log y$. Stay with logarithms as long as you can.
#
# </details>
#
# <details>
# <summary>Hint 2: the steps</summary>
#
# Subtract, then `exp()`. Never take `exp()` of a single log-probability: $e^{-150}$ is
# 0 in float32, and 0/0 is NaN.
#
# </details>
#
# <!-- answer: probability_ratio -->


# %%
def probability_ratio(log_probs, old_log_probs):
    """The importance ratio of each action, ρ = π(a|s) / π_old(a|s).

    Args:
        log_probs: log π(a|s) under the policy being trained, shape (N,), with gradient.
        old_log_probs: log π_old(a|s) of the same actions under the policy that took
            them, shape (N,).

    Returns:
        Ratios, shape (N,), with gradient back to ``log_probs``.

    Example: log-probabilities [log 0.6, log 0.1] and old ones [log 0.3, log 0.2] give
    [2, 0.5].
    """
    # SOLUTION
    return (log_probs - old_log_probs).exp()
    # END SOLUTION


# %%
probability_ratio = check(probability_ratio)

# %% [markdown]
# The identity is exact; an average over a *finite* batch is not. One state, four
# actions, and a new policy whose logits have moved by a growing amount. How many honest
# samples is a batch of 1,000 reweighed ones worth? The usual answer is the *effective
# sample size* $(\sum\rho)^2 / \sum\rho^2$ (Kong 1992).

# %%
generator = torch.Generator().manual_seed(0)
old_logits, direction = torch.zeros(4), torch.tensor([1.5, 0.5, -0.5, -1.5])
quality = torch.tensor([1.0, 0.0, 0.0, -1.0])  # f(a): what each action is worth
actions = old_logits.softmax(-1).multinomial(1_000, True, generator=generator)

print("shift    KL   exact E[f]   reweighed       largest ρ   effective of 1,000")
for shift in (0.0, 0.1, 0.3, 1.0, 3.0):
    new_logits = old_logits + shift * direction
    ratio = probability_ratio(
        new_logits.log_softmax(-1)[actions], old_logits.log_softmax(-1)[actions]
    )
    weighed = ratio * quality[actions]
    exact, kl = new_logits.softmax(-1) @ quality, kl_from_logits(old_logits, new_logits)
    error = weighed.std() / 1_000**0.5
    effective = ratio.sum() ** 2 / ratio.square().sum()
    print(f"{shift:5.1f} {kl:5.2f}   {exact:10.3f}   {weighed.mean():.3f} ± {error:.3f}"
          f"   {ratio.max():9.2f}   {effective:18.0f}")

# %% [markdown]
# The estimates agree with the exact values (± is one standard error), but the batch
# melts away: far from the old policy a few samples carry most of the weight. With one
# state and four actions that is bearable. Over a whole answer the ratios of its tokens
# *multiply*.

# %% [markdown]
# ## 3 · The clip
#
# PPO's idea: let each action's ratio move, but only so far, and see to it that there is
# *nothing to be gained* beyond (Schulman et al. 2017, eq. 7):
#
# $$L^{\text{CLIP}}(\theta) = \hat{\mathbb{E}}_t\Bigl[\min\bigl(
#  \rho_t \hat A_t,\;\;
#  \mathrm{clip}(\rho_t,\, 1 - \varepsilon,\, 1 + \varepsilon)\, \hat A_t
#  \bigr)\Bigr], \qquad \varepsilon = 0.2 .$$
#
# What does the minimum choose? Go through the cases.
#
# | advantage | ratio | the minimum is | slope in $\rho$ | in words |
# |---|---|---|---|---|
# | $\hat A > 0$ | $\rho > 1 + \varepsilon$ | $(1+\varepsilon)\hat A$ | 0 | enough |
# | $\hat A > 0$ | $\rho \le 1 + \varepsilon$ | $\rho \hat A$ | $\hat A$ | likelier! |
# | $\hat A < 0$ | $\rho < 1 - \varepsilon$ | $(1-\varepsilon)\hat A$ | 0 | enough |
# | $\hat A < 0$ | $\rho \ge 1 - \varepsilon$ | $\rho \hat A$ | $\hat A$ | rarer! |
#
# Note what is *not* clipped: $\hat A > 0$ and $\rho = 0.3$, a good action that has
# become rare by mistake, keeps its full slope, and so does $\hat A < 0$ with $\rho =
# 3$. The minimum is a pessimist: it caps what may be gained and never what may be lost.
#
# **Predict.** Draw the two curves ($\hat A = 1$, $\hat A = -1$) against $\rho$ from 0
# to 2.5 before you look.


# %%
def draw_clip(left, right, clip=0.2, advantage=1.0):
    """The surrogate of one action against its ratio, and its slope, on two axes."""
    ratio = torch.linspace(0, 2.5, 501, requires_grad=True)
    clipped = ratio.clamp(1 - clip, 1 + clip) * advantage
    surrogate = torch.min(ratio * advantage, clipped)
    (slope,) = torch.autograd.grad(surrogate.sum(), ratio)
    x = ratio.detach()
    left.plot(x, x * advantage, color="#666666", linestyle=":", label="unclipped, ρ·A")
    left.plot(x, surrogate.detach(), color=COLOURS["PPO"], linewidth=2.6,
              label="clipped surrogate")
    left.plot(1, advantage, "o", color="black", label="start of the update")
    right.plot(x, slope, color=COLOURS["DPO"], linewidth=2.6, label="slope in ρ")
    for axes in (left, right):
        axes.axvspan(1 - clip, 1 + clip, color="#56B4E9", alpha=0.2,
                     label="1 ± ε")
        axes.axhline(0, color="black", linewidth=0.6)
    sign = "+" if advantage > 0 else "−"
    left.set(xlabel="ratio ρ", ylabel="surrogate of this action",
             title=f"A = {sign}{abs(advantage):g}")
    side = "above 1 + ε" if advantage > 0 else "below 1 − ε"
    right.set(xlabel="ratio ρ", ylabel="slope",
              title=f"A = {sign}{abs(advantage):g}: flat {side}")
    tidy(left, right)


figure, grid = plt.subplots(2, 2, figsize=(8.5, 5.6), layout="constrained")
for row, advantage in zip(grid, (1.0, -1.0), strict=True):
    draw_clip(*row, clip=0.2, advantage=advantage)
grid[0, 0].legend(frameon=False, fontsize=8)
grid[0, 1].legend(frameon=False, fontsize=8)
figure.suptitle("The clip ends the reward for going on, on one side only (ε = 0.2)")
plt.show()

# %% [markdown]
# The same picture with two sliders, live in Jupyter and Colab. (A page that only shows
# the notebook has no sliders; there the still picture above has to do. Without them you
# can call `draw_clip` yourself.)


# %%
def clip_png(clip, advantage):
    """The picture above for one ε and one A, as the bytes of a PNG file."""
    figure, axes = plt.subplots(1, 2, figsize=(8.5, 2.9), layout="constrained")
    draw_clip(*axes, clip, advantage)
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=80)
    plt.close(figure)
    return file.getvalue()


epsilon = widgets.FloatSlider(0.2, min=0.05, max=0.9, step=0.05, description="ε")
size = widgets.FloatSlider(1.0, min=-2.0, max=2.0, step=0.25, description="A")
picture = widgets.Image(value=clip_png(0.2, 1.0), format="png")


def redraw(change):
    picture.value = clip_png(epsilon.value, size.value)


epsilon.observe(redraw, "value")
size.observe(redraw, "value")
widgets.VBox([widgets.HBox([epsilon, size]), picture])

# %% [markdown]
# ### 02.2 · `clipped_policy_loss` — difficulty 3 of 5, 12 minutes, 3 points
#
# As everywhere in the course a loss is *minimised*, and a `mask` of zeros and ones says
# which entries count. CartPole needs no mask; answers of different lengths (lesson 06)
# do.
#
# <details>
# <summary>Hint 1: in which order</summary>
#
# Ratio; ratio times advantage; clipped ratio times advantage; the smaller of the two,
# entry by entry; mean; minus. The advantages are constants: no gradient through them.
#
# </details>
#
# <details>
# <summary>Hint 2: the functions</summary>
#
# `torch.min(x, y)` of two tensors works entry by entry, `ratio.clamp(low, high)` clips.
# With a mask the mean is `(surrogate * mask).sum() / mask.sum()`. Negate *after* the
# minimum: $-\min(x, y)$ is not $\min(-x, -y)$.
#
# </details>
#
# <!-- answer: clipped_policy_loss -->


# %%
def clipped_policy_loss(log_probs, old_log_probs, advantages, clip=0.2, mask=None):
    """PPO's loss, −mean( min( ρ·A, clip(ρ, 1 − ε, 1 + ε)·A ) ).

    Args:
        log_probs: of the actions taken, under the policy being trained; any shape, with
            gradient.
        old_log_probs: of the same actions under the policy that took them, same shape.
        advantages: A of the same actions, same shape; constants, wherever they came
            from.
        clip: ε.
        mask: None, or a float tensor of the same shape, 1 where an entry counts and 0
            where not; the mean is over the entries that count.

    Returns:
        A scalar.

    Example: ratios [1.5, 0.5], advantages [1, 1] and ε = 0.2 give −(1.2 + 0.5)/2.
    """
    # SOLUTION
    ratio = probability_ratio(log_probs, old_log_probs)
    advantages = advantages.detach()
    clipped = ratio.clamp(1 - clip, 1 + clip)
    surrogate = torch.min(ratio * advantages, clipped * advantages)
    if mask is None:
        return -surrogate.mean()
    return -(surrogate * mask).sum() / mask.sum()
    # END SOLUTION


# %%
clipped_policy_loss = check(clipped_policy_loss)

# %% [markdown]
# ### It is the ratio that is clipped, not the gradient
#
# One often reads that "PPO clips the gradient". Look at six actions: their ratios,
# their advantages, and the gradient of the loss with respect to each log-probability
# (times the six of the mean; a *negative* number makes the action likelier).

# %%
ratios = torch.tensor([1.0, 1.19, 1.5, 1.5, 0.5, 0.5])
advantages = torch.tensor([1.0, 1.0, 1.0, -1.0, 1.0, -1.0])
log_probs = ratios.log().requires_grad_()
clipped_policy_loss(log_probs, torch.zeros(6), advantages, clip=0.2).backward()
print("ratio  advantage  gradient")
for rho, A, g in zip(ratios, advantages, 6 * log_probs.grad, strict=True):
    print(f"{rho:5.2f} {A:10.0f}  {g:+8.2f}")

# %% [markdown]
# No gradient was shortened to 0.2, or to anything. It is 0 for the third and the last
# action, whose ratio has gone past the fence on the side that their advantage wants,
# and *whole* for all others: the fourth has +1.50, more than any ratio inside the fence
# could give.
#
# Two consequences. First, **the clip is no wall.** A zero gradient does not pull back:
# the same weights serve all actions, Adam has momentum, and so ratios do leave $[1 -
# \varepsilon, 1 + \varepsilon]$. Second, real code *also* clips the gradient's norm
# (`max_grad_norm`), which is another thing for another reason: a single wild batch.
#
# ## 4 · How far has it gone?
#
# If the clip is no wall, watch the distance. Schulman (2020) gives an estimate of
# $\mathrm{KL}(\pi_{\text{old}} \| \pi_\theta)$ from the ratios of the actions at hand,
#
# $$\widehat{\mathrm{KL}} = \hat{\mathbb{E}}_t\bigl[(\rho_t - 1) - \log \rho_t\bigr].$$
#
# *Why it is right on average:* the actions come from $\pi_{\text{old}}$, so
# $\mathbb{E}[\rho] = \sum_a \pi_{\text{old}}\,\pi_\theta/\pi_{\text{old}} = 1$. The
# first bracket is 0 on average, and what remains is $\mathbb{E}[-\log\rho] = \sum_a
# \pi_{\text{old}} \log(\pi_{\text{old}}/\pi_\theta)$, which is the KL divergence. *Why
# the bracket is there:* $\log\rho \le \rho - 1$ always, so no term is negative, as no
# KL ever is. Lesson 03 compares it with its rivals.

# %% [markdown]
# ### 02.3 · `approximate_kl` — difficulty 2 of 5, 7 minutes, 2 points
#
# <details>
# <summary>Hint 1: what is at hand</summary>
#
# `log_probs - old_log_probs` is $\log\rho$, and `probability_ratio` gives $\rho$.
#
# </details>
#
# <details>
# <summary>Hint 2: check yourself</summary>
#
# For equal policies every term is $(1 - 1) - 0 = 0$. Take the mean of the terms, not
# the terms of the mean; over the entries that count, if there is a mask.
#
# </details>
#
# <!-- answer: approximate_kl -->


# %%
def approximate_kl(log_probs, old_log_probs, mask=None):
    """Estimate of KL(π_old‖π) on actions from π_old: mean( (ρ − 1) − log ρ ).

    Args:
        log_probs: of the actions taken, under the policy being trained, any shape.
        old_log_probs: of the same actions under the policy that took them, same shape.
        mask: None, or a float tensor of the same shape, 1 where an entry counts.

    Returns:
        A scalar, never negative.

    Example: one action whose probability doubled, log-probabilities [log 0.6] and
    [log 0.3], gives 2 − 1 − log 2 = 0.3069.
    """
    # SOLUTION
    log_ratio = log_probs - old_log_probs
    terms = log_ratio.exp() - 1 - log_ratio
    if mask is None:
        return terms.mean()
    return (terms * mask).sum() / mask.sum()
    # END SOLUTION


# %%
approximate_kl = check(approximate_kl)

# %% [markdown]
# ### 02.4 · `run_epochs` — difficulty 2 of 5, 6 minutes, 1 point
#
# One pass over the batch is an **epoch**. Ten of them may be fine for one batch and too
# many for the next, so stop early: after each epoch measure the KL, and if it has
# passed the target, end the update (Spinning Up's PPO does so, CleanRL's has it as an
# option). What an epoch does and how the KL is measured is handed in.
#
# <details>
# <summary>Hint 1: the order of things</summary>
#
# Inside the loop: run the epoch, *then* measure, then decide. An epoch that went too
# far has happened; it counts, but it is the last.
#
# </details>
#
# <details>
# <summary>Hint 2: the two corners</summary>
#
# `target_kl=None` means that nothing stops the loop early. And `range` counts from 0,
# while asked is how many epochs *ran*.
#
# </details>
#
# <!-- answer: run_epochs -->


# %%
def run_epochs(one_epoch, measure_kl, epochs, target_kl):
    """Run epochs until the policy has gone farther than ``target_kl``.

    Args:
        one_epoch: ``one_epoch()`` makes one pass over the batch.
        measure_kl: ``measure_kl()`` gives the present KL from the policy that played
            the batch: the whole way so far, not that of the last epoch.
        epochs: how many to run at most, 1 or more.
        target_kl: stop after the first epoch after which the KL is *above* this; None
            never stops early.

    Returns:
        How many epochs ran, an int.

    Example: with KLs 0.01, 0.02, 0.05, 0.06 after each epoch and a target of 0.03,
    three epochs run.
    """
    # SOLUTION
    for epoch in range(epochs):
        one_epoch()
        if target_kl is not None and measure_kl() > target_kl:
            return epoch + 1
    return epochs
    # END SOLUTION


# %%
run_epochs = check(run_epochs)

# %% [markdown]
# ### The other way: pay for distance
#
# Instead of a fence, a price. The **KL-penalty** variant of the same paper maximises
#
# $$L^{\text{KLPEN}}(\theta) = \hat{\mathbb{E}}_t\bigl[\rho_t \hat A_t
#  - \beta\, \mathrm{KL}(\pi_{\text{old}}(\cdot|s_t)\, \|\, \pi_\theta(\cdot|s_t))\bigr]
#  \qquad\text{(eq. 8)}$$
#
# and moves $\beta$ after each update so that the KL stays near a target $d$: halve
# $\beta$ if the KL was below $d/1.5$, double it if it was above $1.5\,d$ (section 4
# there; lesson 03 builds such a controller). In the paper's comparison on seven MuJoCo
# tasks the penalty did *worse* than the clip: normalised scores 0.82 for the clip at
# $\varepsilon = 0.2$, 0.74 for the best adaptive and 0.72 for the best fixed penalty,
# −0.39 with neither (Table 1). Some lectures call the two equal; that table does not.
# RLHF has a penalty too (lesson 06), but towards a *third* policy, the reference, and
# for another reason.
#
# **One batch, thirty-two epochs.** Our half-trained policy once more, six batches. Each
# epoch is one Adam step on the whole batch. We compare the bare surrogate, the clip,
# the penalty, and the bare surrogate with early stopping. **Predict:** whose
# *surrogate* will be highest after 32 epochs, and whose *policy* best?


# %%
def bare(log_probs, old_log_probs, weights, logits, old_logits):
    return -(probability_ratio(log_probs, old_log_probs) * weights).mean()


def clipped(log_probs, old_log_probs, weights, logits, old_logits):
    return clipped_policy_loss(log_probs, old_log_probs, weights, clip=0.2)


def penalised(log_probs, old_log_probs, weights, logits, old_logits, beta=0.5):
    kl = kl_from_logits(old_logits, logits).mean()
    return bare(log_probs, old_log_probs, weights, logits, old_logits) + beta * kl


# %%
LOOK = [0, 1, 2, 4, 8, 16, 32]


def update_on(batch, loss_of, target_kl=None):
    """Rows (surrogate, KL, clip fraction, episode length) after 0, 1, 2, ... epochs."""
    observations, actions, weights = batch
    policy = copy.deepcopy(half_trained)
    optimizer = torch.optim.Adam(policy.parameters(), lr=3e-3)
    with torch.no_grad():
        old_logits = policy(observations)
        old_log_probs = action_log_probs(old_logits, actions)
    rows = []

    def now():
        return action_log_probs(policy(observations), actions).detach()

    def look():
        gain = (probability_ratio(now(), old_log_probs) * weights).mean()
        kl = approximate_kl(now(), old_log_probs)
        outside = clip_fraction(now(), old_log_probs, 0.2)
        rows.append([float(gain), float(kl), float(outside), worth(policy)])

    def one_epoch():
        logits = policy(observations)
        log_probs = action_log_probs(logits, actions)
        loss = loss_of(log_probs, old_log_probs, weights, logits, old_logits)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        one_epoch.ran += 1
        if one_epoch.ran in LOOK:
            look()

    one_epoch.ran = 0
    look()
    run_epochs(one_epoch, lambda: approximate_kl(now(), old_log_probs), 32, target_kl)
    if one_epoch.ran not in LOOK:
        look()
    return rows + rows[-1:] * (len(LOOK) - len(rows))  # a stopped policy stays


LIMITS = {
    "no limit": (bare, None),
    "clip 0.2": (clipped, None),
    "KL penalty, β = 0.5": (penalised, None),
    "early stop at KL 0.03": (bare, 0.03),
}
batches = [play_batch(seed) for seed in BATCHES]
outcomes = {
    name: np.array([update_on(batch, *how) for batch in batches])
    for name, how in tqdm(LIMITS.items(), desc="one batch, many epochs")
}  # each (batches, looks, 4)

# %%
print("after 32 epochs         surrogate     KL   outside 1 ± 0.2   "
      "episode length: mean  worst")
for name, rows in outcomes.items():
    gain, kl, outside, length = rows[:, -1].mean(axis=0)
    print(f"{name:22s} {gain:10.3f} {kl:6.3f} {outside:17.0%} "
          f"{length:22.0f} {rows[:, -1, 3].min():6.0f}")
print(f"before the update      {0:10.3f} {0:6.3f} {0:17.0%} {walks[0, 0]:22.0f}")

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(9.5, 3.9), layout="constrained")
LINES = [("#000000", "-"), (COLOURS["PPO"], "-"), (COLOURS["GRPO"], "--"),
         (COLOURS["DPO"], ":")]
place = np.arange(len(LOOK))
for (name, rows), (colour, style) in zip(outcomes.items(), LINES, strict=True):
    pen = dict(color=colour, linestyle=style)
    left.plot(place, rows[:, :, 0].mean(0), **pen, linewidth=2.4, label=name)
    right.plot(place, rows[:, :, 3].min(0), **pen, linewidth=2.4)
    right.plot(place, rows[:, :, 3].max(0), **pen, linewidth=1, alpha=0.6)
left.set(title="What the batch promises", xlabel="epochs on the same batch",
         ylabel="surrogate, mean of six batches", xticks=place, xticklabels=LOOK)
right.set(title="What comes of it (thick: worst batch, thin: best)",
          xlabel="epochs on the same batch", ylabel="steps the pole stays up",
          ylim=(0, None), xticks=place, xticklabels=LOOK)
left.legend(frameon=False)
tidy(left, right)
worst = {name: rows[:, -1, 3].min() for name, rows in outcomes.items()}
figure.suptitle(
    f"Without a limit the promise goes on rising and the worst batch falls to "
    f"{worst['no limit']:.0f} steps; clipped, to {worst['clip 0.2']:.0f}", fontsize=11)
plt.show()

# %% [markdown]
# Read the table row by row. *Without a limit* the promise is highest and what comes of
# it is a lottery with a bad end: this batch's noise has been learned by heart. *The
# clip* is the most careful: it hardly leaves the spot. Beyond the fence there is
# nothing to gain, and every action whose ratio moved the wrong way pulls back with its
# full slope. *Penalty* and *early stop* went farther, and on these batches it paid off
# on average; but look at the worst batch of each. One update of one policy decides no
# contest; the paper's Table 1 is over whole trainings. What the picture does show is
# what all three are *for*.

# %% [markdown]
# ## 5 · Advantages: a dial between guessing and waiting
#
# How much better than expected was an action? Lesson 01 waited for the end of the
# episode and took the return: right on average, and as noisy as the whole rest of the
# episode. If we have a **critic**, a network $V(s)$ that predicts the return, we can
# ask after one step already. The **TD error** (temporal difference)
#
# $$\delta_t = r_t + \gamma V(s_{t+1}) - V(s_t)$$
#
# compares what one step brought, and where it led, with what was expected. *If* $V$ is
# the true $V^\pi$, then $\mathbb{E}[\delta_t] = Q^\pi(s_t, a_t) - V^\pi(s_t)$: by
# definition the advantage. If $V$ is wrong, so is $\delta_t$, and no amount of data
# mends it.
#
# In between: wait for $k$ steps, then ask the critic. Watch what happens when we write
# that with TD errors; the values in the middle cancel, each appearing once with
# $+\gamma$ and once with $-$:
#
# $$\begin{aligned}
# \hat A_t^{(1)} &= \delta_t
#   = r_t + \gamma V(s_{t+1}) - V(s_t) \\
# \hat A_t^{(2)} &= \delta_t + \gamma\,\delta_{t+1}
#   = r_t + \gamma r_{t+1} + \gamma^2 V(s_{t+2}) - V(s_t) \\
# \hat A_t^{(k)} &= \sum_{l=0}^{k-1} \gamma^l \delta_{t+l}
#   = r_t + \dots + \gamma^{k-1} r_{t+k-1} + \gamma^k V(s_{t+k}) - V(s_t) .
# \end{aligned}$$
#
# **Generalised advantage estimation** (Schulman et al. 2016, eq. 16) does not choose a
# $k$. It averages over all, with weights that fade by $\lambda$:
#
# $$\begin{aligned}
# \hat A_t &= (1 - \lambda)\bigl(\hat A_t^{(1)} + \lambda \hat A_t^{(2)}
#    + \lambda^2 \hat A_t^{(3)} + \dots\bigr) \\
#  &= (1 - \lambda)\bigl(\delta_t\,(1 + \lambda + \lambda^2 + \dots)
#    + \gamma\delta_{t+1}\,(\lambda + \lambda^2 + \dots) + \dots\bigr) \\
#  &= \delta_t + \gamma\lambda\,\delta_{t+1} + (\gamma\lambda)^2\,\delta_{t+2} + \dots
#  \qquad\text{since } 1 + \lambda + \lambda^2 + \dots = \tfrac{1}{1 - \lambda} .
# \end{aligned}$$
#
# And as always a fading sum is a walk backwards:
#
# $$\hat A_t = \delta_t + \gamma\lambda\, \hat A_{t+1} .$$
#
# At $\lambda = 0$ it is the TD error alone (guess after one step), at $\lambda = 1$ the
# return less the value (wait to the end: Monte Carlo).
#
# ### Two ways for an episode to end
#
# A rollout runs through ends of episodes, and they are not all alike.
#
# - **Terminated**: the pole fell. There is no future; $V(s_{t+1})$ counts as 0.
# - **Truncated**: the clock ran out at step 500. The pole still stands, there *is* a
#   future, we just did not play it. $V(s_{t+1})$ stands for it.
#
# At both the *recursion* stops: the next row of the tensor belongs to another episode.
# So two flags do two jobs (Pardo et al. 2018 show what goes wrong if they are one):
#
# $$\delta_t = r_t + \gamma\,(1 - \texttt{terminated}_t)\,V(s_{t+1}) - V(s_t), \qquad
#  \hat A_t = \delta_t + \gamma\lambda\,(1 - \texttt{done}_t)\,\hat A_{t+1} ,$$
#
# with `done = terminated or truncated`.

# %% [markdown]
# ### 02.5 · `gae` — difficulty 4 of 5, 15 minutes, 4 points
#
# <details>
# <summary>Hint 1: two parts</summary>
#
# All TD errors at once, without a loop; where `terminated`, the next value counts as 0.
# Then a walk backwards with one running row, as in lesson 01. The flags are bool
# tensors: `~done` turns them round, `.float()` makes numbers of them. (`1 - done` is an
# error.)
#
# </details>
#
# <details>
# <summary>Hint 2: the loop</summary>
#
# `running = torch.zeros_like(deltas[0])`; for t from the last to the first: `running =
# deltas[t] + gamma * lam * (~done[t]) * running`, and store it at row `t` of a new
# tensor. It works for (T,) and (T, N) alike. Bootstrap from `next_values[t]`, never
# from `values[t + 1]`: after an end that is another episode.
#
# </details>
#
# <!-- answer: gae -->


# %%
def gae(rewards, values, next_values, terminated, done, gamma, lam):
    """Generalised advantage estimates, A_t = δ_t + γλ·(1 − done_t)·A_{t+1}.

    δ_t = r_t + γ·(1 − terminated_t)·V(s_{t+1}) − V(s_t); A = 0 beyond the last row.

    Args:
        rewards: r_t, shape (T, ...), time first; (T,) or (T, N) for N environments.
        values: V(s_t), shape (T, ...).
        next_values: V of the state that each step *led to*, shape (T, ...). After an
            end that is not ``values[t + 1]``, which belongs to the next episode.
        terminated: True where no future is left, bool tensor of shape (T, ...).
        done: True where an episode ended, terminated or truncated, bool, (T, ...). Turn
            a bool tensor round with ``~done``; ``1 - done`` is an error in PyTorch.
        gamma: discount factor. lam: λ, from 0 to 1.

    Returns:
        Advantages, shape (T, ...); the inputs stay as they were.

    Example: rewards [1, 1], values [0, 0], next values [0, 10], γ = 0.5, λ = 1, done
    [False, True]: truncated at the end they are [4, 6], terminated [1.5, 1].
    """
    # SOLUTION
    deltas = rewards + gamma * next_values * (~terminated) - values
    advantages = torch.zeros_like(deltas)
    running = torch.zeros_like(deltas[0])
    for t in reversed(range(len(deltas))):
        running = deltas[t] + gamma * lam * (~done[t]) * running
        advantages[t] = running
    return advantages
    # END SOLUTION


# %%
gae = check(gae)

# %% [markdown]
# ### The dial, measured
#
# To measure bias we must know the truth. Back to lesson 01's kitchen (`A` start, `G`
# meal +1, `X` spill −1, 0.01 a step, slippery floor), where values can be solved for
# exactly. The cook follows a fixed policy, good but not greedy. Three critics advise
# her: one is **exact**; one sees **only the column** she stands in and gives its
# average value, as a network too small for its task would; and one **knows nothing**
# and says 0 everywhere.

# %%
KITCHEN = ["....G", ".#.X.", ".#.X.", "A...."]
MOVES = [(-1, 0), (0, 1), (1, 0), (0, -1)]  # up, right, down, left
ENDS = {"G": 1.0, "X": -1.0}
GAMMA = 0.99
cells = [
    (row, column)
    for row, line in enumerate(KITCHEN)
    for column, what in enumerate(line)
    if what != "#"
]
index = {cell: s for s, cell in enumerate(cells)}
letter = [KITCHEN[row][column] for row, column in cells]
S = len(cells)
alive = torch.tensor([what not in ENDS for what in letter])  # (S,)

P = torch.zeros(S, 4, S)  # P[s, a, s']
R = torch.zeros(S, 4, S)  # reward of that step
for s, (row, column) in enumerate(cells):
    for a, (turn, p) in itertools.product(range(4), ((0, 0.8), (1, 0.1), (-1, 0.1))):
        down, right = MOVES[(a + turn) % 4]
        there = index.get((row + down, column + right), s)
        if alive[s]:
            P[s, a, there] += p
            R[s, a, there] = ENDS.get(letter[there], 0.0) - 0.01
r = (P * R).sum(-1)  # expected reward of an action, (S, A)

Q = torch.zeros(S, 4)
for _ in range(300):  # the best values, by Bellman's optimality backup
    Q = r + GAMMA * (P @ (Q.max(-1).values * alive))
cook = torch.softmax(Q / 0.1, dim=-1)  # good, not greedy

P_cook = torch.einsum("sa,sat->st", cook, P) * alive  # from s to s' while she walks
r_cook = (cook * r).sum(-1)
V = torch.linalg.solve(torch.eye(S) - GAMMA * P_cook, r_cook)  # exact
Q_cook = r + GAMMA * (P @ V)

column = torch.tensor([c for _, c in cells])
by_column = torch.stack([V[(column == c) & alive].mean() for c in column]) * alive
CRITICS = {"exact": V, "sees only the column": by_column, "knows nothing": 0 * V}
for name, critic in CRITICS.items():
    error = (critic - V)[alive].square().mean().sqrt()
    print(f"critic: {name:22s} root mean square error {error:.3f}")

# %% [markdown]
# We let her start 1,000 times from every cell, compute `gae` on all these walks, and
# look at the first step of each. $\hat A + V(s)$ is then an estimate of $Q^\pi(s, a)$,
# which we know. (Adding $V(s)$ takes out the critic's error at $s$ itself: it is the
# same for all actions, a baseline, and harmless by lesson 01's lemma.) The bias can
# even be computed exactly: the expected TD error of each state, fading by
# $\gamma\lambda$ along the cook's paths, is one more linear system. So: dots are
# measured with your function, lines are theory.

# %%
LAMBDAS = [0.0, 0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 0.98, 1.0]


def walk_kitchen(from_each, seed=0):
    """N walks: states, next states, rewards, ends, flags (T, N); first actions (N,)."""
    g = torch.Generator().manual_seed(seed)
    state = alive.nonzero().flatten().repeat(from_each)
    running, rows, first = torch.ones(len(state), dtype=torch.bool), [], None
    while running.any():
        action = cook[state].multinomial(1, generator=g).squeeze(-1)
        first = action if first is None else first
        to = P[state, action].where(running[:, None], torch.ones(())).multinomial(
            1, generator=g).squeeze(-1).where(running, state)
        end = running & ~alive[to]
        rows.append((state, to, R[state, action, to] * running, end, running))
        state, running = to, running & ~end
    return *(torch.stack(x) for x in zip(*rows, strict=True)), first


states, led_to, step_rewards, terminated, walking, first_actions = walk_kitchen(1_000)
start, truth = states[0], Q_cook[states[0], first_actions]


def dial(critic, lam):
    """Bias and deviation of the estimates of Q over all starts, and the exact bias."""
    advantages = gae(step_rewards, critic[states] * walking, critic[led_to] * walking,
                     terminated, terminated | ~walking, GAMMA, lam)
    error = advantages[0] + critic[start] - truth  # (N,)
    pair = start * 4 + first_actions  # each state and action has a bias of its own
    count = torch.bincount(pair, minlength=4 * S).clamp(min=1)
    mean = torch.bincount(pair, error, minlength=4 * S) / count
    noise = (error - mean[pair]).square().sum() / (len(pair) - (count > 1).sum())
    square = mean.square() - noise / count  # what a mean of `count` adds by chance
    measured = (square * count).sum() / len(pair)

    expected = (r_cook + GAMMA * P_cook @ critic - critic) * alive  # E[δ] in each state
    tail = torch.linalg.solve(torch.eye(S) - GAMMA * lam * P_cook, expected)
    bias = r + GAMMA * P @ (critic + lam * tail * alive) - Q_cook  # (S, A)
    exact = (cook * bias.square()).sum(-1)[alive].mean().sqrt()
    return measured.clamp(min=0).sqrt(), noise.sqrt(), exact


dials = {
    name: np.array([[float(x) for x in dial(critic, lam)] for lam in LAMBDAS])
    for name, critic in CRITICS.items()
}  # each (lambdas, 3)
print("the critic that knows nothing:")
print("λ                  " + "".join(f"{lam:7.2f}" for lam in LAMBDAS))
for label, numbers in zip(("bias, measured", "deviation", "bias, exact"),
                          dials["knows nothing"].T, strict=True):
    print(f"{label:19s}" + "".join(f"{x:7.3f}" for x in numbers))

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(9.8, 4), layout="constrained")
place = np.arange(len(LAMBDAS))
LINES = [COLOURS["PPO"], COLOURS["GRPO"], COLOURS["DPO"]]
for (name, (bias, noise, exact)), colour in zip(
    ((n, d.T) for n, d in dials.items()), LINES, strict=True
):
    left.plot(place, exact, color=colour, linewidth=2.2, label=f"bias: {name}")
    left.plot(place, bias, "o", color=colour, markersize=5)
    if name == "exact":
        left.plot(place, noise, color="#666666", linestyle="--",
                  label="deviation (nearly the same for all)")
BEST = {}
for n, style in ((1, ":"), (16, "--"), (256, "-")):
    for name, colour in zip(list(dials)[1:], LINES[1:], strict=True):
        total = np.sqrt(dials[name][:, 2] ** 2 + dials[name][:, 1] ** 2 / n)
        BEST[name, n] = LAMBDAS[total.argmin()]
        label = "one sample" if n == 1 else f"mean of {n}"
        label = label if name == "knows nothing" else None
        right.plot(place, total, color=colour, linestyle=style, label=label)
        right.plot(total.argmin(), total.min(), "v", color=colour, markersize=8)
left.set(title="Bias falls with λ, noise grows",
         xlabel="λ (0: TD error, 1: Monte Carlo)",
         ylabel="error of one estimate of Q", xticks=place, xticklabels=LAMBDAS)
right.set(title="Bias and noise together (▼ smallest)", xlabel="λ",
          ylabel="root mean square error", xticks=place, xticklabels=LAMBDAS,
          ylim=(0, 0.75))
left.legend(frameon=False, fontsize=8)
right.legend(frameon=False, fontsize=8)
tidy(left, right)
figure.suptitle(
    f"With the critic that knows nothing, the best λ is {BEST['knows nothing', 1]} "
    f"for one sample, {BEST['knows nothing', 16]} for the mean of 16, "
    f"{BEST['knows nothing', 256]} for the mean of 256", fontsize=11)
plt.show()

# %% [markdown]
# Three things to read off.
#
# 1. With the exact critic there is no bias at any λ, so λ = 0 is best: noise is all
#    there is. The worse the critic, the farther up the dial.
# 2. The noise depends on λ and hardly on the critic.
# 3. **Averaging takes away noise and leaves bias.** A gradient averages over hundreds
#    of steps, so the best λ is far above that for a single step. That is why practice
#    stands at 0.9 to 0.98 (PPO's paper uses 0.95).

# %% [markdown]
# ## 6 · The critic
#
# The critic learns by regression: its target at step $t$ is the return as best we know,
# $\hat R_t = \hat A_t + V(s_t)$, with the values of *before* the update. In PPO's paper
# the loss is $(V(s_t) - \hat R_t)^2$ (eq. 9, with a coefficient $c_1$).
#
# ### 02.6 · `value_loss` — difficulty 1 of 5, 4 minutes, 1 point
#
# <details>
# <summary>Hint 1: which of the two learns</summary>
#
# The values come from the network, the returns are its target: detach the returns.
#
# </details>
#
# <details>
# <summary>Hint 2: the formula</summary>
#
# The mean of `(values - returns.detach()) ** 2` over the entries that count. No ½.
#
# </details>
#
# <!-- answer: value_loss -->


# %%
def value_loss(values, returns, mask=None):
    """Mean squared error of the critic, mean( (V(s) − R)² ), without a factor ½.

    Args:
        values: V(s) of the critic, any shape, with gradient.
        returns: its targets, same shape; constants, whatever they came from.
        mask: None, or a float tensor of the same shape, 1 where an entry counts.

    Returns:
        A scalar.

    Example: values [1, 4] and returns [2, 1] give (1 + 9)/2 = 5.
    """
    # SOLUTION
    error = (values - returns.detach()).square()
    if mask is None:
        return error.mean()
    return (error * mask).sum() / mask.sum()
    # END SOLUTION


# %%
value_loss = check(value_loss)

# %% [markdown]
# The loss is in squared units of reward; is 90 good or bad? A number without units says
# how much of the returns' ups and downs the critic foresaw.
#
# ### 02.7 · `explained_variance` — difficulty 2 of 5, 5 minutes, 1 point
#
# <details>
# <summary>Hint 1: the variance of what</summary>
#
# Of what is left over, `returns - values`, and of the returns. (Not the mean squared
# error: a constant offset of the critic costs nothing here.)
#
# </details>
#
# <details>
# <summary>Hint 2: nothing to explain</summary>
#
# Where all returns are equal their variance is 0, and the answer is `torch.nan`. Mind
# that a number divided by 0 gives infinity in PyTorch, not an error.
#
# </details>
#
# <!-- answer: explained_variance -->


# %%
def explained_variance(values, returns):
    """How much of the returns the critic foresaw, 1 − Var(R − V) / Var(R).

    Args:
        values: V(s), shape (N,).
        returns: what came, shape (N,).

    Returns:
        A scalar: 1 for a perfect critic, 0 for a constant one, negative for one
        that is worse than a constant, NaN where all returns are equal.

    Example: values [1, 2, 3] and returns [2, 4, 6] give 0.75.
    """
    # SOLUTION
    spread = returns.var(correction=0)
    if spread == 0:
        return torch.tensor(torch.nan)
    return 1 - (returns - values).var(correction=0) / spread
    # END SOLUTION


# %%
explained_variance = check(explained_variance)

# %% [markdown]
# **Predict.** What does the *exact* critic get in the kitchen: 1?

# %%
no_critic = torch.zeros(step_rewards.shape)
returns = gae(step_rewards, no_critic, no_critic, terminated, terminated | ~walking,
              GAMMA, 1.0)[walking]  # λ = 1 and V = 0: the plain return of every step
for name, critic in CRITICS.items():
    share = explained_variance(critic[states[walking]], returns)
    print(f"critic: {name:22s} explained variance {share:.2f}")

# %% [markdown]
# Not 1. The floor is slippery and the cook is not greedy: even who knows all values
# does not know the luck. So watch whether explained variance *rises*; do not expect 1.
# Near 0 your critic is no better than a constant; below 0 it does harm.

# %% [markdown]
# ## 7 · Termination is not truncation, measured
#
# CartPole-v1 stops the clock at 500 steps. Here is a player who never lets the pole
# fall: a hand-written rule, with one action in twenty turned round.

# %%
RULE = torch.tensor([0.1, 0.5, 3.0, 1.0])  # position, speed, angle, turning speed


def play_rule(limit, players, seed):
    """Observations (T + 1, N, 4) of N episodes cut off at ``limit``; how many fell."""
    envs = gym.make_vec("CartPole-v1", num_envs=players, max_episode_steps=limit)
    g = torch.Generator().manual_seed(seed)
    observation, _ = envs.reset(seed=seed)
    seen, fell = [torch.as_tensor(observation)], 0
    for _ in range(limit):
        action = (seen[-1] @ RULE > 0).long()
        slip = torch.rand(players, generator=g) < 0.05
        observation, _, terminated, _, _ = envs.step((action ^ slip).numpy())
        seen.append(torch.as_tensor(observation).clone())
        fell += terminated.sum()
    return torch.stack(seen), fell


_, fell = play_rule(limit=2_000, players=16, seed=0)
print(f"16 episodes of 2,000 steps: the pole fell {fell} times")
print(f"reward of 2,000 such steps, discounted by 0.99: {(1 - 0.99**2_000) / 0.01:.3f}")

# %% [markdown]
# So every state that this player visits is worth $1/(1 - \gamma) = 100$: a reward of 1
# a step, for ever. Now we let two critics learn from the same sixteen episodes of 500
# steps, with your `gae` and your `value_loss`. One is told the truth: the last step was
# truncated. The other is told that it was terminated, as code with a single `done`
# does.
#
# **Predict.** The critic sees position, speed and angle, no clock. What can the second
# one learn for a state that occurs at step 30 as well as at step 499?

# %%
seen, _ = play_rule(limit=500, players=16, seed=1)
clock = torch.zeros(500, 16, dtype=torch.bool)
clock[-1] = True  # the last step, where time ran out


def learn_values(terminated, sweeps=40):
    """Fit a critic by GAE(0.95) targets; values and advantages by step, each (500,)."""
    torch.manual_seed(0)
    critic = mlp([4, 64, 64, 1])
    optimizer = torch.optim.Adam(critic.parameters(), lr=5e-3)
    states, rewards = seen[:-1].reshape(-1, 4), torch.ones(500, 16)
    for _ in range(sweeps):
        with torch.no_grad():
            values = critic(seen).squeeze(-1)  # (501, 16)
            advantages = gae(
                rewards, values[:-1], values[1:], terminated, clock, 0.99, 0.95
            )
            targets = (advantages + values[:-1]).flatten()
        for rows in torch.randperm(len(states)).split(800) * 2:
            loss = value_loss(critic(states[rows]).squeeze(-1), targets[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return values[:-1].mean(1), advantages.mean(1), advantages.std().item()


TREATMENTS = {
    "truncated (right)": learn_values(terminated=torch.zeros_like(clock)),
    "terminated (wrong)": learn_values(terminated=clock),
}
print("told that the last step was    mean value    advantages: spread   at step 499")
for name, (values, advantages, spread) in TREATMENTS.items():
    print(f"{name:27s} {values.mean():13.1f} {spread:21.2f} {advantages[-1]:13.1f}")

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(9.5, 3.7), layout="constrained")
for (name, (values, advantages, _)), colour in zip(
    TREATMENTS.items(), (COLOURS["PPO"], COLOURS["DPO"]), strict=True
):
    left.plot(values, color=colour, linewidth=2, label=name)
    right.plot(advantages, color=colour, linewidth=2, label=name)
left.axhline(100, color="black", linestyle="--", linewidth=1, label="true value: 100")
left.set(title="What the critic learns", xlabel="step of the episode",
         ylabel="value, mean of 16 episodes", ylim=(0, 110))
right.set(title="What the policy is told", xlabel="step of the episode",
          ylabel="advantage, mean of 16 episodes")
left.legend(frameon=False)
tidy(left, right)
wrong = TREATMENTS["terminated (wrong)"]
figure.suptitle(
    f"Taking the clock for a fall teaches a value of {wrong[0].mean():.0f}, "
    f"and an advantage of −{-wrong[1][-1]:.0f} at the last step")
plt.show()

# %% [markdown]
# The wrong critic cannot tell step 30 from step 499, so it learns a mixture and is
# wrong in both. And the advantages, which should be about 0 (nothing here is better or
# worse than expected), blame whatever was done in the last second before the bell:
# noise that is pushed into the policy at every update.
#
# The mistake is treacherous because it sleeps. As long as no episode lasts 500 steps,
# both treatments are *the same computation*. It wakes up when your policy gets good.
#
# Learning curves are a poor place to look for it. Hand section 10's tuned PPO a function
# that calls your `gae` with `done` in the place of `terminated`, without `target_return`:
# on our machine the curves of two seeds hardly told the two apart. Advantages are
# normalised, and CartPole forgives a lot. Values and advantages do not hide it.

# %% [markdown]
# ## 8 · The whole loss, and the details that matter
#
# Schulman et al. 2017, eq. 9, written as a loss:
#
# $$\underbrace{-L^{\text{CLIP}}}_{\text{02.2}}
#  \; + \; c_1\,\underbrace{\hat{\mathbb{E}}_t\bigl[(V(s_t) - \hat R_t)^2\bigr]}_{
#   \text{02.6}}
#  \; - \; c_2\,\underbrace{\hat{\mathbb{E}}_t\bigl[H(\pi_\theta(\cdot|s_t))\bigr]}_{
#   \text{entropy}} .$$
#
# **Entropy**, $H(\pi) = -\sum_a \pi(a)\log\pi(a)$, is largest where all actions are
# equally likely and 0 where one has everything. Its bonus keeps the policy from making
# up its mind before it has seen enough: what is never tried is never learned about. Two
# actions:

# %%
for p in (0.5, 0.7, 0.9, 0.99, 0.999):
    logits = torch.tensor([p, 1 - p]).log().requires_grad_()
    value = entropy(logits)
    value.backward()
    print(f"π = ({p:.3f}, {1 - p:.3f}): entropy {value.item():.3f} nats, "
          f"pull on the likelier action's logit {logits.grad[0]:+.3f}")

# %% [markdown]
# The pull back is strongest in the middle and fades where the policy is nearly certain:
# the bonus slows the collapse, it does not undo one.
#
# **Details that matter.** Engstrom et al. (2020) took PPO apart and found that most of
# its gain in reward over TRPO came from "code-level optimizations" that the paper
# hardly mentions, and not from the clip. Andrychowicz et al. (2021) trained 250,000
# agents and asked of each choice what it does. Huang et al. (2022) list 37 details of
# one implementation. Some that the package's `train_ppo` has, and why:
#
# | detail | why |
# |---|---|
# | advantages normalised in each minibatch | the rewards' unit does not matter |
# | policy's last layer starts a hundred times smaller | all actions equally likely |
# | orthogonal weights, tanh | signals keep their size through the layers |
# | learning rate falls to 0 | large steps early, no stumbling late |
# | gradient norm clipped at 0.5 | one wild batch cannot throw the policy far |
# | policy and critic are separate networks | no fight over shared weights |
# | minibatches shuffled, several epochs | more steps from each batch |
#
# Value clipping, which many codes have, we leave out: Andrychowicz et al. found that it
# does not help.

# %% [markdown]
# ## 9 · Bug hunt: the PPO that never learns
#
# A published lecture on PPO trains on CartPole with this recipe: one hidden layer of
# 128, Adam at 0.01, $\gamma = 0.99$, $\varepsilon = 0.2$, four epochs an update, one
# episode an update, returns normalised and used as advantages. Its notebook runs
# without a warning for 1,000 episodes, whose mean lengths stay between about 10 and 26
# steps. The code below is ours; the recipe and the mistake are the lecture's.
#
# **Find it.** One line of `update_as_found` is wrong. Read before you run.


# %%
def update_as_found(
    policy, optimizer, observations, actions, old_log_probs, advantages,
    epochs=4, clip=0.2,
):
    losses = []
    for _ in range(epochs):
        distribution = torch.distributions.Categorical(logits=policy(observations))
        actions = distribution.sample()
        log_probs = distribution.log_prob(actions)
        loss = clipped_policy_loss(log_probs, old_log_probs, advantages, clip)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


# %%
def play_episode(policy, env, dice, seed=None):
    """One episode: observations (T, 4), actions (T,), returns (T,)."""
    observation, _ = env.reset(seed=seed)
    observations, actions, rewards, done = [], [], [], False
    with torch.inference_mode():
        while not done:
            left, right = policy(torch.from_numpy(observation)).tolist()
            action = int(dice.random() < 1 / (1 + math.exp(left - right)))
            observations.append(observation)
            actions.append(action)
            observation, reward, terminated, truncated, _ = env.step(action)
            rewards.append(reward)
            done = terminated or truncated
    returns = discounted_returns(torch.tensor(rewards), 0.99)
    return torch.tensor(np.array(observations)), torch.tensor(actions), returns


def train_as_in_the_lecture(update, episodes, seed):
    """The lecture's loop with any update; the policy and the length of each episode."""
    torch.manual_seed(seed)
    policy = torch.nn.Sequential(
        torch.nn.Linear(4, 128), torch.nn.ReLU(), torch.nn.Linear(128, 2)
    )
    optimizer = torch.optim.Adam(policy.parameters(), lr=0.01)
    env, dice = gym.make("CartPole-v1", disable_env_checker=True), random.Random(seed)
    lengths = []
    for episode in tqdm(range(episodes), desc=update.__name__, leave=False):
        start = seed if episode == 0 else None
        observations, actions, returns = play_episode(policy, env, dice, start)
        with torch.no_grad():
            old_log_probs = action_log_probs(policy(observations), actions)
        update(policy, optimizer, observations, actions, old_log_probs,
               normalise(returns), epochs=4, clip=0.2)
        lengths.append(len(actions))
    return policy, lengths


found = [train_as_in_the_lecture(update_as_found, 1_000, seed) for seed in range(3)]
print("mean length of 100 episodes each, from the first to the last hundred")
for seed, (_, lengths) in enumerate(found):
    hundreds = np.reshape(lengths, (10, 100)).mean(axis=1)
    print(f"seed {seed}: " + "".join(f"{x:6.1f}" for x in hundreds))

# %% [markdown]
# There it is: a thousand episodes, and nothing learned. (A random policy lasts about 22
# steps; a policy that always pushes to the same side, 9 or 10.)
#
# **Understand it.** The log-probabilities in the ratio's numerator are those of actions
# that are *sampled anew* in each epoch. But the advantages, and the log-probabilities
# in the denominator, belong to the actions that were *played*. An action that was never
# tried gets the praise or the blame for another.
#
# How bad is that on average? Take one state, at the first epoch ($\pi =
# \pi_{\text{old}}$), clip aside. The played action $a$ comes from $\pi$, the new one
# $a'$ too, independently:
#
# $$\begin{aligned}
# \mathbb{E}_{a,\,a'}\Bigl[A(a)\,\frac{\nabla\pi(a')}{\pi(a)}\Bigr]
#  &= \sum_a \pi(a)\,\frac{A(a)}{\pi(a)} \;\cdot\; \sum_{a'} \pi(a')\,\nabla\pi(a') \\
#  &= \Bigl(\sum_a A(a)\Bigr) \cdot
#     \tfrac{1}{2}\,\nabla \sum_{a'} \pi(a')^2 .
# \end{aligned}$$
#
# The expectation falls apart into two factors, and **which action was better appears in
# neither**. The first asks only whether this state's advantages are high on the whole,
# the second makes the policy more decided, whatever it tends to do. It cannot learn; it
# is no matter of patience. (The right update has $\sum_a A(a)\,\nabla\pi(a)$: each
# action with its own advantage.) What it does instead: early steps of an episode have
# the highest returns, so there the policy becomes decided, for no reason at all, or it
# wanders about the coin toss where it began.

# %%
print("mean probability of the likelier action in 500 starting states, after training")
starts = torch.empty(500, 4).uniform_(-0.05, 0.05, generator=generator)
for seed, (policy, lengths) in enumerate(found):
    decided = policy(starts).softmax(-1).max(-1).values.mean()
    last = np.mean(lengths[-100:])
    print(f"seed {seed}: {decided:.3f}   (its last 100 episodes: {last:.1f} steps)")

# %% [markdown]
# ### 02.8 · `ppo_update` — difficulty 3 of 5, 8 minutes, 3 points
#
# **Mend it.** Use `clipped_policy_loss` (above) and `action_log_probs` (from lesson 01,
# imported at the top).
#
# <details>
# <summary>Hint 1: what changes between epochs</summary>
#
# The policy does. The observations, the actions, their old log-probabilities and their
# advantages are data; they stay what they were when the episode was played.
#
# </details>
#
# <details>
# <summary>Hint 2: the line</summary>
#
# `log_probs = action_log_probs(policy(observations), actions)`, in each epoch anew,
# with the `actions` that were handed in.
#
# </details>
#
# <!-- answer: ppo_update -->


# %%
def ppo_update(
    policy, optimizer, observations, actions, old_log_probs, advantages,
    epochs=4, clip=0.2,
):
    """Several steps of the clipped surrogate on one batch, the whole batch in each.

    Args:
        policy: ``policy(observations)`` gives logits, shape (N, A); trained in place.
        optimizer: of the policy's parameters.
        observations: shape (N, D).
        actions: those that were *taken* there, int64, shape (N,).
        old_log_probs: of these actions, under the policy that took them, shape (N,).
        advantages: of these actions, shape (N,); used as they are.
        epochs: gradient steps. clip: ε.

    Returns:
        A list of ``epochs`` floats: the loss of each epoch, before its step.
    """
    # SOLUTION
    losses = []
    for _ in range(epochs):
        log_probs = action_log_probs(policy(observations), actions)
        loss = clipped_policy_loss(log_probs, old_log_probs, advantages, clip)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses
    # END SOLUTION


# %%
ppo_update = check(ppo_update)

# %%
mended = [train_as_in_the_lecture(ppo_update, 150, seed) for seed in range(5)]
print("mean length of 50 episodes each, from the first to the last fifty")
for seed, (_, lengths) in enumerate(mended):
    print(f"seed {seed}: " + "".join(
        f"{x:6.1f}" for x in np.reshape(lengths, (3, 50)).mean(axis=1)))

# %%
def running_mean(lengths, width=50):
    return np.convolve(lengths, np.ones(width) / width, mode="valid")


figure, axes = plt.subplots(figsize=(8, 3.9), layout="constrained")
for runs, colour, label in ((found, COLOURS["DPO"], "as found: samples new actions"),
                            (mended, COLOURS["PPO"], "mended: scores the stored ones")):
    for i, (_, lengths) in enumerate(runs):
        means = running_mean(lengths)
        axes.plot(50 + np.arange(len(means)), means, color=colour, linewidth=1.5,
                  alpha=0.85,
                  label=f"{label} ({len(runs)} seeds)" if i == 0 else None)
highest = max(running_mean(lengths).max() for _, lengths in found)
learned = sum(running_mean(lengths).max() > 100 for _, lengths in mended)
axes.axhline(30, color="black", linestyle="--", linewidth=1, label="30 steps")
axes.set(title=f"As found: the mean of 50 episodes never passes {highest:.0f} steps;\n"
               f"one line mended: {learned} of {len(mended)} seeds pass 100",
         xlabel="episodes (the mended loop is stopped at 150)",
         ylabel="episode length, mean of 50", yscale="log", ylim=(7, 600),
         yticks=[10, 30, 100, 300, 500], yticklabels=[10, 30, 100, 300, 500])
axes.minorticks_off()
tidy(axes)
axes.legend(frameon=False, loc="center right")
plt.show()

# %% [markdown]
# Same network, same learning rate, same loop; one line. And note what did *not* help
# to find it: no exception, no NaN, no warning, a loss that goes up and down as losses
# in reinforcement learning do. **Compare with a random policy before you believe a
# curve.**
#
# The recipe stays a nervous one: a batch is a single episode, and the learning rate is
# high. Curves fall again, and once in a while a mended seed too gets stuck at ten steps.
# Which one can hang on the last digit of a sum, so your curves need not be ours. That is
# why one seed proves nothing: here a few learn or do not, there *all* stay down.

# %% [markdown]
# ## 10 · The race: environment steps until CartPole is solved
#
# What did all this buy? Three learners, five seeds each:
#
# - **REINFORCE** of lesson 01, with the package's settings: batches of 16 episodes, one
#   step each, used once and thrown away.
# - **PPO, common settings**: those that CleanRL's `ppo.py` has by default (Huang et al.
#   2022): 4 environments, 128 steps, 4 epochs in minibatches of 128, learning rate
#   0.00025, entropy bonus 0.01.
# - **PPO, tuned**: the package's settings, found by trying on this very task: 8
#   environments, 128 steps, 10 epochs in minibatches of 256, learning rate 0.003, no
#   entropy bonus.
#
# "Solved" means a mean of 475 in three greedy evaluations in a row (20 episodes each,
# one about every 1,000 steps); we count the steps to the first of the three. Evaluation
# steps are not counted. Whose functions are at work?


# %%
def whose(function):
    return "yours" if function.__module__ == "__main__" else "the course's"


for role, function in (("policy_loss=", clipped_policy_loss),
                       ("value_loss=", value_loss), ("advantages=", gae)):
    print(f"{role:13s} {function.__name__:20s} {whose(function)}")
print("              everything of REINFORCE and the rest of the loop: the course's")

# %% [markdown]
# **Predict.** By what factor will tuned PPO beat REINFORCE? And the same algorithm with
# common settings?

# %%
SEEDS = range(5)
SHARED = dict(max_steps=60_000, evaluate_every=1_000, target_return=475,
              show_progress=False)
YOURS = dict(policy_loss=clipped_policy_loss, value_loss=value_loss, advantages=gae)
COMMON = dict(num_envs=4, rollout_length=128, epochs=4, minibatch_size=128,
              learning_rate=2.5e-4, entropy_coef=0.01)
LEARNERS = {
    "REINFORCE": lambda seed: train_reinforce(seed=seed, **SHARED),
    "PPO, common": lambda seed: train_ppo(seed=seed, **COMMON, **YOURS, **SHARED),
    "PPO, tuned": lambda seed: train_ppo(seed=seed, **YOURS, **SHARED),
}


def steps_until_solved(history):
    """Steps at the first of three evaluations in a row that reach 475; inf if never."""
    steps, returns = points(history, "steps", "greedy_return")
    for i in range(len(steps) - 2):
        if min(returns[i : i + 3]) >= 475:
            return steps[i]
    return math.inf


histories = {name: [] for name in LEARNERS}
for name, seed in tqdm(list(itertools.product(LEARNERS, SEEDS)), desc="CartPole"):
    histories[name].append(LEARNERS[name](seed)[1])

# %%
solved = {
    name: [steps_until_solved(history) for history in runs]
    for name, runs in histories.items()
}
middle = {name: float(np.median(steps)) for name, steps in solved.items()}
print("environment steps until solved     median   seed by seed (inf: not in 60,000)")
for name, steps in solved.items():
    print(f"{name:30s} {middle[name]:10,.0f}  " + "".join(f"{x:9,.0f}" for x in steps))

# %%
curves = {
    name: [points(history, "steps", "greedy_return") for history in runs]
    for name, runs in histories.items()
}
figure, axes = plt.subplots(figsize=(7.8, 4.6), layout="constrained")
grid = np.arange(3_000, 60_001, 250)
for (name, runs), colour in zip(
    curves.items(), (COLOURS["REINFORCE"], COLOURS["SFT"], COLOURS["PPO"]), strict=True
):
    for x, y in runs:
        axes.plot(x, y, color=colour, linewidth=0.8, alpha=0.4)
    median = np.median([np.interp(grid, x, y) for x, y in runs], axis=0)
    axes.plot(grid, median, color=colour, linewidth=2.6,
              label=f"{name}: solved after {middle[name]:,.0f} steps (median)")
gain = {name: middle["REINFORCE"] / middle[name] for name in middle}
axes.axhline(475, color="black", linestyle="--", linewidth=1, label="475")
axes.set(title=f"REINFORCE needs {gain['PPO, common']:.1f} times as many steps as PPO "
               f"with common settings, {gain['PPO, tuned']:.1f} times as many as tuned",
         xlabel="environment steps (thin lines: single seeds, each ends when solved)",
         ylabel="greedy return (reward per episode)", ylim=(0, 520))
axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
tidy(axes)
axes.legend(frameon=False, loc="lower right")
plt.show()

# %% [markdown]
# Two honest remarks. *Tuned* was tuned on this task, and the others were not: part of
# its lead is that. And steps are not seconds: PPO takes dozens of gradient steps where
# REINFORCE takes one, and on CartPole, where a step costs a few microseconds, REINFORCE
# needs *less* computing time. Where a sample is dear (a robot, a patient, a language
# model's answer that a reward model has to read), steps are what counts.

# %% [markdown]
# ## 11 · To discuss
#
# 1. In the first epoch all ratios are 1. Which of two changes then changes nothing: a
#    larger ε, or a larger advantage? What does that say about PPO with one epoch on the
#    whole batch?
#
# <details>
# <summary>An answer</summary>
#
# With $\rho = 1$ nothing is clipped for any ε, so ε changes nothing; PPO with one epoch
# and one minibatch *is* the policy gradient. The clip, and the ratio, matter from the
# second step on the same data.
#
# </details>
#
# 2. Run the race with `clip=1e6` added to tuned PPO, on several seeds. What holds the
#    policy back when the clip does not?
#
# <details>
# <summary>An answer</summary>
#
# Some seeds do as well as before and others need several times as long: the clip is an
# insurance, and on a lucky seed you pay for nothing. What else holds back: the falling
# learning rate, the gradient norm at 0.5, and that ten epochs are not a hundred.
#
# </details>
#
# 3. Set `evaluate_every=2_000` in the race and run it again. What becomes of "PPO,
#    common", although not a single step of its training has changed? What would you
#    report?
#
# <details>
# <summary>An answer</summary>
#
# Three good evaluations in a row now span 6,000 steps of training and not 3,000. On our
# machine three of its five seeds then count as unsolved after 60,000 steps: they reach
# 475, fall back, and come again. "Steps until solved" depends on the ruler; so give the
# ruler, show the curves, and compare methods under the same one.
#
# </details>
#
# 4. The clip treats every action alike: from 0.01 to 0.012 is as far as from 0.5 to
#    0.6. Is that a good idea for a vocabulary of 50,000 tokens, most of them rare?
#
# <details>
# <summary>An answer</summary>
#
# The first hardly changes the policy (KL about 0.0002), the second a good deal (0.02).
# A fence in ratios is tight for rare actions and wide for common ones. Good rare tokens
# climb slowly, 20% an update at most; that is one reason why exploration dries up.
#
# </details>
#
# 5. In RLHF the episode is one answer, and its reward comes at the last token. Which λ
#    and which γ would you try, and what must the critic then learn?
#
# <details>
# <summary>An answer</summary>
#
# γ = 1: a good answer is not worse for being long. λ near 1 as long as the critic is
# poor: with λ small, tokens at the beginning would hear of the reward only through the
# critic. The critic has to predict the final score from half an answer. Lessons 06 and
# 10 (which does without a critic) return to this.
#
# </details>
#
# 6. A critic has explained variance 0.9 on its own rollout and 0.1 on the next one.
#    What happened, and does it bias the policy gradient?
#
# <details>
# <summary>An answer</summary>
#
# It learned the rollout by heart. At λ = 1 a wrong baseline, fixed before the data it
# is used on, costs variance only. At λ < 1 its errors at the *next* states enter the
# advantages: bias.
#
# </details>
#
# 7. An answer that reaches the maximal length without an end token: was it terminated
#    or truncated? What does each choice teach the model?
#
# <details>
# <summary>An answer</summary>
#
# By the nature of things truncated: it would have gone on. Bootstrapping says "judge it
# by where it was heading". But many *want* to teach that answers end, and treat it as
# terminated with a penalty. Both can be right; what is wrong is not to have decided.
#
# </details>
#
# ## What to read next
#
# - J. Schulman, F. Wolski, P. Dhariwal, A. Radford & O. Klimov, *Proximal policy
#   optimization algorithms*, 2017, arXiv:1707.06347: twelve pages, read them.
# - J. Schulman, P. Moritz, S. Levine, M. Jordan & P. Abbeel, *High-dimensional
#   continuous control using generalized advantage estimation*, ICLR 2016,
#   arXiv:1506.02438.
# - J. Schulman, S. Levine, P. Moritz, M. Jordan & P. Abbeel, *Trust region policy
#   optimization*, ICML 2015, arXiv:1502.05477: the cliff, with a theorem.
# - F. Pardo, A. Tavakoli, V. Levdik & P. Kormushev, *Time limits in reinforcement
#   learning*, ICML 2018, arXiv:1712.00378.
# - L. Engstrom et al., *Implementation matters in deep policy gradients: a case study
#   on PPO and TRPO*, ICLR 2020, arXiv:2005.12729.
# - M. Andrychowicz et al., *What matters for on-policy deep actor-critic methods? A
#   large-scale study*, ICLR 2021, arXiv:2006.05990.
# - S. Huang et al., *The 37 implementation details of proximal policy optimization*,
#   ICLR blog track 2022; and CleanRL, whose `ppo.py` is one readable file.
# - Also cited: J. Schulman, *Approximating KL divergence*, 2020 (a blog post); A. Kong,
#   *A note on importance sampling using standardized weights*, 1992 (University of
#   Chicago).
# - The package's `rlhf_minimal/ppo.py` and `ppo_losses.py`: this lesson as a loop.
#
# **Next: lesson 03.** We have used a KL divergence as a ruler and as a price, and took
# on trust that it measures a distance, in which direction, and that a batch of samples
# estimates it. Time to look at the ruler.

# %%
print(f"{time.process_time():.0f} seconds of CPU time in this notebook so far")
