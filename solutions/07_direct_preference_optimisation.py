# %% [markdown]
# # 07 · Direct preference optimisation
#
# *Why this matters: the loss you derive here trains a language model on preferences
# with two models instead of four and without sampling. It is a dozen lines, it is
# everywhere, and what it does to a model is not what its name suggests.*
#
# **You will be able to**
#
# - derive DPO's loss from the optimum of RLHF, and check every step by numbers;
# - say which pairs pull hardest, and find the wrong labels by it;
# - explain why the likelihood of *both* answers falls, and when that is no accident;
# - say how far DPO ends from the true optimum, and what noise, smoothing and IPO
#   change;
# - tell what the reference, the sum and the mean are for, by taking them away;
# - read one picture on which PPO, DPO, IPO, SimPO and best-of-n stand side by side.
#
# **It assumes** log-probabilities of answers and their masks (lesson 04), Bradley–Terry
# (05), and the objective of RLHF with its optimum (06). KL is lesson 03's.
#
# | | |
# |---|---|
# | reading | 38 minutes |
# | coding | 52 minutes, twelve exercises, 20 points |
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
import json
import math
import time
from functools import partial
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
import torch.nn.functional as F
from IPython.display import HTML

import rlhf_minimal
from autograder import check
from rlhf_minimal import exact_preferences as exact
from rlhf_minimal.exact import make_world, optimal_policy
from rlhf_minimal.kitchen import Kitchen, interval, kl_from_sft
from rlhf_minimal.kl import sequence_kl
from rlhf_minimal.log_probs import response_mask, token_log_probs
from rlhf_minimal.pairs import distinct_answers, pair_batches
from rlhf_minimal.plots import COLOURS
from rlhf_minimal.tokenizer import prettify
from rlhf_minimal.toy_world import POLITE_WORDS, RAMBLINGS, sample_prompts
from rlhf_minimal.training import (
    adamw,
    learning_rate_factor,
    optimizer_step,
    set_learning_rate,
)

torch.set_num_threads(1)  # a model this small only loses time to a second thread
DPO, IPO, SIMPO, GREY = COLOURS["DPO"], COLOURS["IPO"], COLOURS["SimPO"], "#666666"
BLUE, GREEN, SKY = "#0072B2", "#009E73", "#56B4E9"


def whose(*names):
    """Says with whose functions the next experiment runs."""
    for name in names:
        own = globals()[name].__module__ == "__main__"
        print(f"{name:22s} {'yours' if own else 'ours'}")


def tidy(*many):
    for axes in many:
        axes.spines[["top", "right"]].set_visible(False)


# %% [markdown]
# ## 1 · The long way, and a question
#
# Lesson 06 went the long way. People compared answers; a reward model learned to score
# like them; PPO sampled answers, had them scored, and moved the policy, while a frozen
# copy held it back. Four models in memory, and most of the time went into writing.
#
# All of that to reach a policy which you can *write down*. For the objective
#
# $$\max_\pi\; \mathbb{E}_{x,\; y\sim\pi(\cdot\mid x)}\bigl[r(x,y)\bigr]
#   - \beta\,\mathrm{KL}\bigl(\pi \,\|\, \pi_{\mathrm{ref}}\bigr)$$
#
# it is $\pi^* \propto \pi_{\mathrm{ref}}\exp(r/\beta)$. Rafailov et al. (2023) asked:
# if the reward determines the policy, does the policy determine the reward? If so, the
# policy can *be* the reward model. Train it on the comparisons, and you are done.
#
# The derivation has three steps. You write one function for each. To check them we use
# the world of lesson 06 in which everything can be listed: four prompts, 125 answers
# each, rewards known.

# %%
world = make_world()
reference, rewards = world.reference(), world.rewards  # (4, 125) each
beta = world.beta
print(f"log π_ref {tuple(reference.shape)}, rewards {tuple(rewards.shape)}, β = {beta}")

# %% [markdown]
# ## 2 · Step one: the optimum and its partition function
#
# The optimum has to sum to 1 over the answers, so it needs a divisor, one for each
# prompt. It is called the **partition function**:
#
# $$\pi^*(y\mid x) = \frac{1}{Z(x)}\,\pi_{\mathrm{ref}}(y\mid x)\, e^{\,r(x,y)/\beta},
# \qquad Z(x) = \sum_y \pi_{\mathrm{ref}}(y\mid x)\, e^{\,r(x,y)/\beta}$$
#
# (Rafailov et al. 2023, equation 4). *Why this is the optimum*, in one line: put $r =
# \beta\log(\pi^*/\pi_{\mathrm{ref}}) + \beta\log Z$ into the objective and it becomes
# $\beta\log Z(x) - \beta\,\mathrm{KL}(\pi\|\pi^*)$; the first term does not depend on
# $\pi$, and the second is largest, 0, at $\pi = \pi^*$.
#
# $Z$ is what makes the formula useless in practice. For a language model the sum has
# $V^n$ terms. Remember that: it must go.
#
# ### 07.1 · `log_partition` — difficulty 2 of 5, 3 minutes, 1 point
#
# <details>
# <summary>Hint 1: stay in log space</summary>
#
# The logarithm of one term is $\log\pi_{\mathrm{ref}} + r/\beta$. What is asked is the
# logarithm of the sum of the exponentials of these.
#
# </details>
#
# <details>
# <summary>Hint 2: the function</summary>
#
# `logsumexp(dim)`: the same in one go, and it cannot overflow.
#
# </details>
#
# <!-- answer: log_partition -->


# %%
def log_partition(reference_log_probs, rewards, beta):
    """log Z(x) = log Σ_y π_ref(y|x)·exp(r(x, y)/β), one number for each prompt.

    Args:
        reference_log_probs: log π_ref of all answers to each prompt, shape (P, Y).
        rewards: of the same answers, shape (P, Y).
        beta: above 0. It may be small, and r/β in the hundreds.

    Returns:
        Shape (P,).

    Example: reference [[log 0.5, log 0.5]], rewards [[0, log 3]] and beta 1 give
    [log 2] = [0.6931].
    """
    # SOLUTION
    return (reference_log_probs + rewards / beta).logsumexp(-1)
    # END SOLUTION


# %%
log_partition = check(log_partition)

# %%
log_z = log_partition(reference, rewards, beta)  # (4,)
optimum = reference + rewards / beta - log_z[:, None]  # log π*
print("log Z of the four prompts:", [f"{z:.3f}" for z in log_z])
print("π* sums to", [f"{s:.6f}" for s in optimum.exp().sum(-1)])
gap = (optimum - optimal_policy(reference, rewards, beta)).abs().max()
print(f"largest difference from the package's optimum: {gap:.1e}")

# %% [markdown]
# ## 3 · Step two: solve for the reward
#
# Take logarithms: $\log\pi^* = \log\pi_{\mathrm{ref}} + r/\beta - \log Z$. Solve for
# $r$ (equation 5 of the paper). Do it on paper before you write it.
#
# ### 07.2 · `reward_from_policy` — difficulty 1 of 5, 3 minutes, 1 point
#
# <details>
# <summary>Hint 1: on paper</summary>
#
# $r/\beta = \log\pi^* - \log\pi_{\mathrm{ref}} + \log Z$. Now multiply *everything*.
#
# </details>
#
# <details>
# <summary>Hint 2: shapes</summary>
#
# `log_z` has shape (P,), the others (P, Y). `log_z[:, None]` has shape (P, 1), and is
# then the same for every answer to a prompt.
#
# </details>
#
# <!-- answer: reward_from_policy -->


# %%
def reward_from_policy(policy_log_probs, reference_log_probs, log_z, beta):
    """The reward r(x, y) of which a policy is the optimum.

    Args:
        policy_log_probs: log π* of all answers, shape (P, Y).
        reference_log_probs: log π_ref of all answers, shape (P, Y).
        log_z: log Z of each prompt, shape (P,).
        beta: the price of KL.

    Returns:
        Rewards, shape (P, Y).

    Example: policy [[log 0.6]], reference [[log 0.3]], log_z [0.5], beta 2 give
    2·(log 2 + 0.5) = [[2.3863]].
    """
    # SOLUTION
    return beta * (policy_log_probs - reference_log_probs + log_z[:, None])
    # END SOLUTION


# %%
reward_from_policy = check(reward_from_policy)

# %%
recovered = reward_from_policy(optimum, reference, log_z, beta)
error = (recovered - rewards).abs().max()
print(f"largest error of the recovered rewards: {error:.1e}")
without_z = reward_from_policy(optimum, reference, torch.zeros(4), beta)
off = without_z - rewards
print("without log Z the rewards are off by, prompt by prompt,")
for number, row in enumerate(off):
    print(f"    prompt {number}: {row.min():.4f} to {row.max():.4f}")

# %% [markdown]
# So the optimal policy carries the whole reward within it. Without $\log Z$ the rewards
# are wrong by a constant **of each prompt**, the same for all its answers. Which is to
# say: between two answers to *one* prompt they are right.

# %% [markdown]
# ## 4 · Step three: into Bradley–Terry, and Z is gone
#
# People compare two answers to one prompt. Bradley–Terry says (lesson 05)
#
# $$P(y_1 \succ y_2 \mid x) = \sigma\bigl(r(x,y_1) - r(x,y_2)\bigr).$$
#
# Put in the reward of step two, once for each answer:
#
# $$\begin{aligned}
# r(x,y_1) - r(x,y_2)
#  &= \beta\log\frac{\pi^*(y_1\mid x)}{\pi_{\mathrm{ref}}(y_1\mid x)} + \beta\log Z(x)
#   \\ &\qquad
#   - \beta\log\frac{\pi^*(y_2\mid x)}{\pi_{\mathrm{ref}}(y_2\mid x)} - \beta\log Z(x)
#   \\
#  &= \beta\log\frac{\pi^*(y_1\mid x)}{\pi_{\mathrm{ref}}(y_1\mid x)}
#   - \beta\log\frac{\pi^*(y_2\mid x)}{\pi_{\mathrm{ref}}(y_2\mid x)} .
# \end{aligned}$$
#
# The sum over all answers has cancelled (equation 6). What remains are four
# log-probabilities, and these a language model gives in two passes.
#
# ### 07.3 · `preference_probability` — difficulty 2 of 5, 4 minutes, 1 point
#
# <details>
# <summary>Hint 1: what goes into the sigmoid</summary>
#
# Each answer's own log-ratio, policy minus reference; the first's minus the second's;
# times β.
#
# </details>
#
# <details>
# <summary>Hint 2: signs</summary>
#
# Written out there are four terms: + policy_first − reference_first − policy_second +
# reference_second. `x.sigmoid()` is σ.
#
# </details>
#
# <!-- answer: preference_probability -->


# %%
def preference_probability(
    policy_first, policy_second, reference_first, reference_second, beta
):
    """P(first ≻ second) in the eyes of somebody whose optimal policy this is.

    Args:
        policy_first, policy_second: log π of two answers to the same prompt, (B,) each.
        reference_first, reference_second: log π_ref of the same answers, (B,) each.
        beta: the price of KL.

    Returns:
        Probabilities, shape (B,).

    Example: beta 0.5, policy [−1.0] and [−3.0], reference [−2.0] and [−2.0] give
    σ(0.5·(1 + 1)) = [0.7311].
    """
    # SOLUTION
    first = policy_first - reference_first
    second = policy_second - reference_second
    return (beta * (first - second)).sigmoid()
    # END SOLUTION


# %%
preference_probability = check(preference_probability)

# %% [markdown]
# The check against what is known: all 62,000 ordered pairs of answers, with the true
# rewards on one side and nothing but the two policies on the other.

# %%
whose("log_partition", "reward_from_policy", "preference_probability")
everything = exact.population_preferences(world)  # each pair, and how often it comes up
x, y1, y2 = everything.prompt, everything.chosen, everything.rejected
by_policy = preference_probability(
    optimum[x, y1], optimum[x, y2], reference[x, y1], reference[x, y2], beta
)
by_reward = (rewards[x, y1] - rewards[x, y2]).sigmoid()
print(f"{len(x):,} pairs, largest difference {(by_policy - by_reward).abs().max():.1e}")
as_start = preference_probability(
    reference[x, y1], reference[x, y2], reference[x, y1], reference[x, y2], beta
)
print(f"the reference itself says {as_start.min():.3f} to {as_start.max():.3f} of each")

# %% [markdown]
# **Now turn it round.** We do not have $\pi^*$; we have labels. So take any policy
# $\pi_\theta$, let it *claim* preferences by this formula, and make the labels as
# likely as possible. That is the whole method:
#
# $$\mathcal{L}_{\mathrm{DPO}}(\theta) = -\,\mathbb{E}_{(x,\,y_w,\,y_l)}\left[\log\sigma
# \left(\beta\log\frac{\pi_\theta(y_w\mid x)}{\pi_{\mathrm{ref}}(y_w\mid x)}
# - \beta\log\frac{\pi_\theta(y_l\mid x)}{\pi_{\mathrm{ref}}(y_l\mid x)}\right)\right]$$
#
# (equation 7; $y_w$ won, $y_l$ lost). It is lesson 05's pairwise loss with the
# **implicit reward** $\hat r(x,y) = \beta\log\frac{\pi_\theta(y\mid x)}
# {\pi_{\mathrm{ref}}(y\mid x)}$ in the place of the reward model. Where the labels
# follow Bradley–Terry and every pair comes up, its minimum is $\pi^*$; section 9 checks
# that.

# %% [markdown]
# ## 5 · The loss, from logits up
#
# First the log-probability of a whole answer: the **sum** over its tokens (lesson 04).
# $\pi(y\mid x)$ in the derivation is the probability of the answer, a product over
# tokens. A mean instead of the sum is not "DPO, normalised": step two no longer holds.
#
# ### 07.4 · `sequence_log_probs` — difficulty 2 of 5, 5 minutes, 2 points
#
# <details>
# <summary>Hint 1: what you have already</summary>
#
# `token_log_probs(logits, tokens)` of lesson 04 is imported: shape (B, T − 1), of the
# tokens 1 to T − 1. Weigh with the mask, and sum over the tokens.
#
# </details>
#
# <details>
# <summary>Hint 2: the shift</summary>
#
# The mask has T columns, the log-probabilities T − 1. The first token has none, so it
# is the mask's first column that has to go: `mask[:, 1:]`.
#
# </details>
#
# <!-- answer: sequence_log_probs -->


# %%
def sequence_log_probs(logits, tokens, mask):
    """log π(answer | prompt) = Σ_t log π(y_t | x, y_<t), over the answer's tokens.

    Args:
        logits: shape (B, T, V); position t scores the token at t + 1.
        tokens: prompt, answer and padding, shape (B, T).
        mask: 1 on the answer's tokens, the end token included, else 0; shape (B, T).

    Returns:
        Shape (B,), in nats, with gradient to the logits.

    Example: four tokens, V = 2, all logits 0, mask [[0, 0, 1, 1]] give 2·log 0.5 =
    [−1.3863].
    """
    # SOLUTION
    return (token_log_probs(logits, tokens) * mask[:, 1:]).sum(-1)
    # END SOLUTION


# %%
sequence_log_probs = check(sequence_log_probs)

# %% [markdown]
# ### 07.5 · `implicit_rewards` — difficulty 1 of 5, 2 minutes, 1 point
#
# <details>
# <summary>Hint 1: in words</summary>
#
# β times the log of a ratio; the log of a ratio is a difference.
#
# </details>
#
# <details>
# <summary>Hint 2: which way round</summary>
#
# An answer that the policy gives more often than the reference has a positive reward.
#
# </details>
#
# <!-- answer: implicit_rewards -->


# %%
def implicit_rewards(policy, reference, beta=0.1):
    """r̂(x, y) = β·(log π(y|x) − log π_ref(y|x)).

    Args:
        policy, reference: summed log-probabilities of the same answers, (B,) each.
        beta: the price of KL; a larger one keeps the policy closer to the reference.

    Returns:
        Shape (B,), with gradient to ``policy``.

    Example: policy [−10], reference [−12] and beta 0.1 give [0.2].
    """
    # SOLUTION
    return beta * (policy - reference)
    # END SOLUTION


# %%
implicit_rewards = check(implicit_rewards)

# %% [markdown]
# **Labels that lie.** Suppose a label is turned round with probability $\varepsilon$.
# *Conservative DPO* (Mitchell 2023) then counts each label as right with probability
# $1-\varepsilon$ and wrong with $\varepsilon$, as label smoothing does. With the margin
# $h = \hat r(x,y_w) - \hat r(x,y_l)$:
#
# $$\ell(h) = -(1-\varepsilon)\log\sigma(h) - \varepsilon\log\sigma(-h),
# \qquad \ell'(h) = \sigma(h) - (1-\varepsilon).$$
#
# It is least where $\sigma(h) = 1-\varepsilon$: at the finite margin
# $\log\frac{1-\varepsilon}{\varepsilon}$. With $\varepsilon = 0$ there is no minimum;
# $h$ is pushed for ever, ever more weakly.
#
# ### 07.6 · `dpo_loss` — difficulty 3 of 5, 8 minutes, 3 points
#
# <details>
# <summary>Hint 1: three lines</summary>
#
# Both answers' implicit rewards; their difference, chosen minus rejected; then the two
# terms, averaged over the pairs.
#
# </details>
#
# <details>
# <summary>Hint 2: the logarithm of a sigmoid</summary>
#
# `F.logsigmoid(h)`. With `h.sigmoid().log()` a pair that is badly wrong gives log 0.
#
# </details>
#
# <!-- answer: dpo_loss -->


# %%
def dpo_loss(policy_chosen, policy_rejected, reference_chosen, reference_rejected,
             beta=0.1, label_smoothing=0.0):
    """Mean over pairs of −(1 − ε)·log σ(h) − ε·log σ(−h), h = r̂_chosen − r̂_rejected.

    Args:
        policy_chosen, policy_rejected: summed log-probabilities under the policy, (B,).
        reference_chosen, reference_rejected: the same under the reference, (B,).
        beta: of the implicit rewards.
        label_smoothing: ε in [0, 0.5); 0 is plain DPO.

    Returns:
        A scalar in nats, with gradient to the policy's log-probabilities. Margins may
        be in the hundreds; the loss must stay finite.

    Example: policy [−10] and [−12], reference [−11] and [−11], beta 0.5 give
    −log σ(1) = 0.3133; with label_smoothing 0.1 it is 0.4133.
    """
    # SOLUTION
    chosen = implicit_rewards(policy_chosen, reference_chosen, beta)
    rejected = implicit_rewards(policy_rejected, reference_rejected, beta)
    h = chosen - rejected
    right, wrong = F.logsigmoid(h), F.logsigmoid(-h)
    return -((1 - label_smoothing) * right + label_smoothing * wrong).mean()
    # END SOLUTION


# %%
dpo_loss = check(dpo_loss)

# %% [markdown]
# ## 6 · The gradient: who pulls hardest?
#
# Plain DPO, one pair. From $\frac{d}{dh}\left[-\log\sigma(h)\right] = -\sigma(-h)$ and
# the chain rule:
#
# $$\nabla_\theta \ell = -\,\beta\;
# \underbrace{\sigma\bigl(\hat r(x,y_l) - \hat r(x,y_w)\bigr)}_{\text{the weight}}
# \Bigl[\nabla_\theta\log\pi_\theta(y_w\mid x) - \nabla_\theta\log\pi_\theta(y_l\mid x)
# \Bigr].$$
#
# The winner is pulled up and the loser pushed down, with *equal* force. The force is
# the probability which the model gives to the label being **wrong**: near 1 where it
# ranks the pair the other way round, near 0 where it is already right by far (Rafailov
# et al. 2023, section 4, "What does the DPO update do?").
#
# ### 07.7 · `dpo_gradient` — difficulty 3 of 5, 6 minutes, 2 points
#
# Write the gradient of the mean loss with respect to the two vectors of summed
# log-probabilities, by the formula and not by autograd.
#
# <details>
# <summary>Hint 1: factors</summary>
#
# For pair $i$ of $B$: $\partial\ell/\partial\log\pi(y_w) = -\beta\,\sigma(\hat r_l -
# \hat r_w)/B$. One β comes from the chain rule, another sits in the rewards.
#
# </details>
#
# <details>
# <summary>Hint 2: the other one</summary>
#
# For the rejected answers it is the same with the opposite sign.
#
# </details>
#
# <!-- answer: dpo_gradient -->


# %%
def dpo_gradient(policy_chosen, policy_rejected, reference_chosen, reference_rejected,
                 beta=0.1):
    """Gradient of the mean DPO loss (no smoothing) in both vectors of log-probs.

    Args:
        as for ``dpo_loss``, shape (B,) each.

    Returns:
        Two tensors of shape (B,): ∂loss/∂policy_chosen and ∂loss/∂policy_rejected.

    Example: one pair with all four log-probabilities equal and beta 0.1 gives
    [−0.05] and [0.05].
    """
    # SOLUTION
    chosen = implicit_rewards(policy_chosen, reference_chosen, beta)
    rejected = implicit_rewards(policy_rejected, reference_rejected, beta)
    pull = beta * (rejected - chosen).sigmoid() / len(chosen)
    return -pull, pull
    # END SOLUTION


# %%
dpo_gradient = check(dpo_gradient)

# %%
whose("dpo_loss", "dpo_gradient")
generator = torch.Generator().manual_seed(0)
four = -20 * torch.rand(4, 1000, generator=generator, dtype=torch.float64)
leaf_chosen, leaf_rejected = (row.clone().requires_grad_() for row in four[:2])
loss = dpo_loss(leaf_chosen, leaf_rejected, *four[2:], beta=0.4)
by_autograd = torch.autograd.grad(loss, (leaf_chosen, leaf_rejected))
by_formula = dpo_gradient(*four, beta=0.4)
errors = [(a - b).abs().max() for a, b in zip(by_autograd, by_formula, strict=True)]
print(f"1,000 pairs, largest difference from autograd: {max(errors):.1e} "
      f"(gradients up to {by_formula[1].max():.1e})")

# %% [markdown]
# ## 7 · Train it
#
# Back to the kitchen. The base model, the SFT model, and comparisons by an annotator
# who follows Bradley–Terry on the gold reward, as in lessons 04 to 06. No reward model
# is trained today.

# %%
kitchen = Kitchen(seed=0)
kitchen.train_base(show_progress=False)
kitchen.train_sft(show_progress=False)
agreement = kitchen.collect_preferences()
tokenizer, sft, pairs = kitchen.tokenizer, kitchen.sft, kitchen.pairs
PAD, END, decode = tokenizer.pad_id, tokenizer.end_id, tokenizer.decode
gold = torch.tensor([
    [kitchen.gold(decode(pair.prompt), answer) for answer in pair[1:]] for pair in pairs
])  # (N, 2); nobody who trains may look at it
mislabelled = gold[:, 0] < gold[:, 1]
print(f"{len(pairs):,} comparisons; the annotator agrees with the gold reward on "
      f"{agreement:.0%}")

# %% [markdown]
# The loop. A batch holds some prompts with four answers each, all six comparisons among
# them, and each answer goes through the model once (`distinct_answers`). The reference
# never changes: its log-probabilities are computed *once, before training*.


# %%
def answer_sums(model, batch, mask=None):
    """Summed log-probabilities of a batch's answers, by your ``sequence_log_probs``."""
    logits = model(batch.tokens, batch.attention_mask)
    mask = batch.mask if mask is None else mask
    return sequence_log_probs(logits, batch.tokens, mask)


def batch_of(rows):
    return distinct_answers([pairs[i] for i in rows], PAD)


@torch.no_grad()
def sums_of_pairs(model, whole=False):
    """Log-probabilities of chosen and rejected, (N, 2); ``whole``: the prompt's too."""
    parts = []
    for start in range(0, len(pairs), 96):
        batch = batch_of(range(start, min(start + 96, len(pairs))))
        sums = answer_sums(model, batch, batch.attention_mask if whole else None)
        parts.append(torch.stack([sums[batch.chosen], sums[batch.rejected]], -1))
    return torch.cat(parts)


def train(pair_loss, steps):
    """A copy of the SFT model, trained; ``pair_loss(policy, batch, rows)`` gives a loss
    and a dictionary of what is to be watched."""
    policy, watched = copy.deepcopy(sft), []
    optimizer, shuffle = adamw(policy, 5e-4), torch.Generator().manual_seed(0)
    for step, rows in enumerate(pair_batches(pairs, 96, steps, shuffle)):
        factor = learning_rate_factor(step, steps, schedule="linear")
        set_learning_rate(optimizer, 5e-4 * factor)
        loss, numbers = pair_loss(policy, batch_of(rows.tolist()), rows)
        optimizer_step(optimizer, loss)
        watched.append({"loss": loss.item(), **numbers})
    return policy, watched


test_prompts = sample_prompts(400, kitchen.seed + 5, held_out=True)


@torch.no_grad()
def measure(policy):
    """Gold reward, KL from SFT and length on 400 held-out prompts."""
    rollouts = kitchen.rollouts(policy, test_prompts, seed=kitchen.seed + 6)
    answers = rollouts.answers()
    scores = [kitchen.gold(*two) for two in zip(test_prompts, answers, strict=True)]
    return dict(gold=interval(scores)["mean"], se=interval(scores)["se"],
                kl=kl_from_sft(kitchen, policy, rollouts),
                length=np.mean([len(answer) for answer in answers]))


sft_sums = sums_of_pairs(sft)  # (N, 2), once
start = measure(sft)

# %% [markdown]
# ### 07.8 · `reward_accuracy` — difficulty 1 of 5, 3 minutes, 1 point
#
# What one watches beside the loss: on how many pairs does the implicit reward agree
# with the label? Mind what it says *before* the first step.
#
# <details>
# <summary>Hint 1: before the first step</summary>
#
# All implicit rewards are 0, every pair is a tie, and the policy prefers nothing. Only
# one answer is honest then: 0.5.
#
# </details>
#
# <details>
# <summary>Hint 2: counting</summary>
#
# `(a > b).float()` plus half of `(a == b).float()`, then the mean.
#
# </details>
#
# <!-- answer: reward_accuracy -->


# %%
def reward_accuracy(chosen_rewards, rejected_rewards):
    """Share of pairs whose chosen answer has the larger reward; a tie counts one half.

    Args:
        chosen_rewards, rejected_rewards: shape (B,) each.

    Returns:
        A scalar between 0 and 1.

    Example: chosen [1, 0], rejected [0, 0] give 0.75.
    """
    # SOLUTION
    wins = (chosen_rewards > rejected_rewards).float()
    ties = (chosen_rewards == rejected_rewards).float()
    return (wins + 0.5 * ties).mean()
    # END SOLUTION


# %%
reward_accuracy = check(reward_accuracy)


# %%
def preference_loss(loss, beta, expected=None, whole=False):
    """A ``pair_loss`` for ``train``: DPO or IPO, with what lessons watch."""
    expected = sft_sums if expected is None else expected

    def pair_loss(policy, batch, rows):
        sums = answer_sums(policy, batch, batch.attention_mask if whole else None)
        chosen, rejected = sums[batch.chosen], sums[batch.rejected]
        ref_chosen, ref_rejected = expected[rows].T
        value = loss(chosen, rejected, ref_chosen, ref_rejected, beta=beta)
        ratios = chosen.detach() - ref_chosen, rejected.detach() - ref_rejected
        accuracy = reward_accuracy(*(beta * ratio for ratio in ratios))
        return value, dict(accuracy=float(accuracy), chosen=ratios[0].mean().item(),
                           rejected=ratios[1].mean().item())

    return pair_loss


whose("sequence_log_probs", "implicit_rewards", "dpo_loss", "reward_accuracy")
BETA = 0.4
began = time.process_time()
dpo, dpo_log = train(preference_loss(dpo_loss, BETA), steps=200)
print(f"{time.process_time() - began:.0f} seconds of CPU time")
dpo_sums, dpo_end = sums_of_pairs(dpo), measure(dpo)
for name, row in (("SFT", start), ("DPO", dpo_end)):
    print(f"{name}: gold {row['gold']:.2f} ± {row['se']:.2f}   KL {row['kl']:.2f} nats"
          f"   {row['length']:.1f} tokens an answer")

# %%
def smooth(log, name, width=10):
    values = np.array([row[name] for row in log])
    return np.convolve(values, np.ones(width) / width, mode="valid")


figure, (left, right) = plt.subplots(1, 2, figsize=(10.5, 3.6), layout="constrained")
left.plot(smooth(dpo_log, "accuracy"), color=DPO, label="implicit-reward accuracy")
left.axhline(agreement, color=GREY, linestyle="--", linewidth=1,
             label="the gold reward's own accuracy")
left.set(title="The labels' noise is the ceiling", xlabel="step (mean of ten)",
         ylabel="share of a batch's pairs", ylim=(0.45, 0.9))
chosen_end, rejected_end = (dpo_sums - sft_sums).mean(0).tolist()
right.plot(smooth(dpo_log, "chosen"), color=GREEN, label="chosen")
right.plot(smooth(dpo_log, "rejected"), color=DPO, label="rejected")
right.axhline(0, color=GREY, linewidth=0.8)
right.set(title="Both likelihoods fall, the rejected one faster" if chosen_end < 0
          else "The chosen answers' likelihood rises",
          xlabel="step (mean of ten)", ylabel="log π − log π_ref (nats an answer)")
for axes in (left, right):
    axes.legend(frameon=False)
tidy(left, right)
plt.show()
print(f"on all pairs, after training: chosen {chosen_end:+.2f}, rejected "
      f"{rejected_end:+.2f} nats; {(dpo_sums < sft_sums)[:, 0].float().mean():.0%} of "
      "the chosen answers have become less likely")

# %% [markdown]
# Two things to explain. The right picture is section 8. First the weights: **which
# pairs pull hardest** once the policy has learned? By the formula those that it ranks
# the other way round. Predict: what kind of pairs are they, in a world where more
# than a fifth of the labels is against the gold reward?

# %%
h = (BETA * (dpo_sums - sft_sums)).T
h = h[0] - h[1]
weights = (-h).sigmoid()
order = weights.argsort(descending=True)
tenths = np.array_split(order.numpy(), 10)
wrong = [mislabelled[part].float().mean().item() for part in tenths]

figure, (left, right) = plt.subplots(1, 2, figsize=(10.5, 3.6), layout="constrained")
grid = torch.linspace(-5, 5, 200)
left.plot(grid, (-grid).sigmoid(), color="black", label="weight σ(−h)")
heights = left.twinx()
bins = np.linspace(-5, 5, 41)
heights.hist([h[~mislabelled], h[mislabelled]], bins, stacked=True, alpha=0.7,
             color=[SKY, DPO], label=["label right", "label against gold"])
heights.set(ylabel="pairs", ylim=(0, 1700))
heights.spines["top"].set_visible(False)
left.set(title="Labels against gold end with small margins\nor negative ones, "
         "and weigh most",
         xlabel="margin h = r̂(chosen) − r̂(rejected)", ylabel="weight in the gradient")
left.set_zorder(heights.get_zorder() + 1)
left.patch.set_visible(False)
left.set_ylim(0, 1.25)
left.legend(frameon=False, loc="upper left")
heights.legend(frameon=False, loc="upper right")
right.bar(range(1, 11), wrong, color=[DPO] + [SKY] * 9)
right.axhline(mislabelled.float().mean(), color=GREY, linestyle="--", linewidth=1,
              label="all pairs")
right.set(title=f"Of the tenth that pulls hardest, {wrong[0]:.0%} are mislabelled",
          xlabel="tenths of the pairs, the hardest pulling first",
          ylabel="share of labels against gold", ylim=(0, 1), xticks=range(1, 11))
right.legend(frameon=False)
tidy(left, right)
plt.show()

# %%
for i in order[:3].tolist():
    pair = pairs[i]
    print(f"weight {weights[i]:.2f}   {prettify(decode(pair.prompt))}\n"
          f"    chosen   (gold {gold[i, 0]:5.2f}) {prettify(decode(pair.chosen))}\n"
          f"    rejected (gold {gold[i, 1]:5.2f}) {prettify(decode(pair.rejected))}")

# %% [markdown]
# At first all pairs pull alike (weight ½). Later the loudest are, for the most part,
# the annotator's slips: the policy has learned the rule, and the exceptions shout. That
# is good for *finding* wrong labels: read the pairs of largest weight. And it is bad
# when training goes on, because what is left to learn is the noise.

# %% [markdown]
# ## 8 · Why both likelihoods fall
#
# The loss sees only the difference. It rises when the rejected answer falls faster than
# the chosen one, and nothing in it asks that the chosen one should rise. But why *do*
# both fall? Here the answers in the pairs were sampled from the reference. Then there
# is an identity:
#
# $$\mathbb{E}_{y\sim\pi_{\mathrm{ref}}}\left[\log\frac{\pi_\theta(y\mid x)}
# {\pi_{\mathrm{ref}}(y\mid x)}\right] = -\,\mathrm{KL}(\pi_{\mathrm{ref}}\,\|\,
# \pi_\theta) \le 0 .$$
#
# Whatever the policy is, the answers that the reference would give *must on average
# become less likely*. Probability sums to 1: to make a few answers much more likely,
# all others have to give, and on a log scale the many losers outweigh the few winners.
# Chosen and rejected are both such answers. With
# $d = \mathrm{KL}(\pi_{\mathrm{ref}}\|\pi_\theta)$ and $m$ the mean margin of their
# log-ratios (a pair is two draws from the reference),
#
# $$\text{mean of the chosen} = -d + \tfrac{m}{2}, \qquad
# \text{mean of the rejected} = -d - \tfrac{m}{2} .$$
#
# The chosen ones fall as soon as $d > m/2$. On 1,000 fresh answers of the SFT model:

# %%
fresh = kitchen.rollouts(sft, sample_prompts(1000, seed=77, held_out=True), seed=78)
with torch.no_grad():
    both = [model(fresh.tokens, fresh.attention_mask) for model in (sft, dpo)]
    exact_kl = sequence_kl(*(logits[:, :-1] for logits in both), fresh.mask[:, 1:])
    sums = [sequence_log_probs(logits, fresh.tokens, fresh.mask) for logits in both]
change = interval((sums[1] - sums[0]).tolist())
print(f"mean log-ratio of fresh SFT answers   {change['mean']:.2f} "
      f"± {change['se']:.2f}")
print(f"−KL(SFT‖DPO), token by token, exact   {-exact_kl.mean():.2f}")
print(f"share of them that became likelier    {(sums[1] > sums[0]).float().mean():.0%}")

# %% [markdown]
# So falling likelihoods are no proof of a fault. **Even the exact optimum has them.**
# In the listed world the expectation over all pairs can be computed for $\pi^*$ itself,
# for every $\beta$:

# %%
betas = np.geomspace(0.1, 4, 60)
means = []
for b in betas:
    ratio = optimal_policy(reference, rewards, float(b)) - reference
    means.append([(everything.weights * ratio[x, y]).sum().item() for y in (y1, y2)])
means = np.array(means)
crossing = betas[means[:, 0] > 0].min()


def three_answers(steps=400, rate=0.02):
    """One hidden state, three answers; only the state learns: prefer 0 to 1."""
    outputs = torch.tensor([[1.0, 0.5], [1.0, -0.5], [0.0, 3.0]])  # a row an answer
    state = torch.tensor([0.7, 0.0], requires_grad=True)
    before = (outputs @ state).log_softmax(-1).detach()
    rows = []
    for _ in range(steps):
        now = (outputs @ state).log_softmax(-1)
        rows.append(now.detach().exp())
        loss = dpo_loss(now[:1], now[1:2], before[:1], before[1:2], beta=1.0)
        (gradient,) = torch.autograd.grad(loss, state)
        state = (state - rate * gradient).detach().requires_grad_()
    return torch.stack(rows)


moved = three_answers()
figure, (left, right) = plt.subplots(1, 2, figsize=(10.5, 3.7), layout="constrained")
left.plot(betas, means[:, 0], color=GREEN, label="chosen")
left.plot(betas, means[:, 1], color=DPO, label="rejected")
left.axhline(0, color=GREY, linewidth=0.8)
left.set(title=f"At the exact optimum the chosen answers\nrise only for β above "
         f"{crossing:.1f}", xlabel="β", xscale="log", ylim=(-8, 1),
         ylabel="mean of log π* − log π_ref (nats)")
names = (("chosen", GREEN), ("rejected", DPO), ("a third, in no pair", BLUE))
for column, (name, colour) in enumerate(names):
    right.plot(moved[:, column], color=colour, label=name)
right.set(title="One pair, three answers: the chosen one falls,\nand a bystander takes "
          "the probability", xlabel="gradient steps", ylabel="probability", ylim=(0, 1))
for axes in (left, right):
    axes.legend(frameon=False)
tidy(left, right)
plt.show()
print("before:", moved[0].numpy().round(2), "  after:", moved[-1].numpy().round(2))

# %% [markdown]
# On the left it is as it should be: the probability goes to answers that are better
# than most chosen ones. On the right it is not. One comparison, three answers with
# output vectors $u_w = (1, \frac12)$, $u_l = (1, -\frac12)$, $u_3 = (0, 3)$, and one
# hidden state that learns. The gradient moves the state along $u_w - u_l = (0, 1)$:
# chosen and rejected are so alike that only their small difference counts, and $u_3$
# happens to point that way, more than $u_w$ does. It takes all, and the loss is
# content.
#
# Razin et al. (2024) call it *likelihood displacement*. They trace it to pairs whose
# hidden embeddings are alike, and show that what gains may be the opposite of what was
# meant: teaching a model to prefer "No" over "Never" can raise "Yes". A table of logits
# has no such bystanders; a neural network has.
#
# What to do: watch the chosen log-ratio, and *read samples*. If what the policy writes
# is good, falling likelihoods are the price of probability that sums to 1.

# %% [markdown]
# ## 9 · Does DPO reach the optimum?
#
# With every comparison there is, weighed with its probability, it should reach $\pi^*$.
# Labels in life are few and noisy, though: 1,000 or 100,000 comparisons a prompt, both
# answers drawn from the reference, one noisy label each. We use your loss on a table of
# logits that can represent every policy, so that whatever is missed, the data are to
# blame. The distance is $\mathrm{KL}(\pi\|\pi^*)$, exact.
#
# Two relatives shall try as well: conservative DPO, and **IPO**. Azar et al. (2023)
# start from the observation that $-\log\sigma$ is never content. If one answer has won
# all its comparisons, be it a single one, Bradley–Terry's best explanation is an
# infinite reward, and the pull to the reference is lost, whatever $\beta$ is. IPO asks
# for a finite margin instead, and takes the square of the distance from it (equation
# 17):
#
# $$\mathcal{L}_{\mathrm{IPO}} = \mathbb{E}\left[\left(h_\pi - \frac{1}{2\beta}\right)^2
# \right],\qquad h_\pi = \log\frac{\pi_\theta(y_w\mid x)}{\pi_{\mathrm{ref}}(y_w\mid x)}
# - \log\frac{\pi_\theta(y_l\mid x)}{\pi_{\mathrm{ref}}(y_l\mid x)} .$$
#
# Mind that $h_\pi$ is made of bare log-ratios, without β.
#
# ### 07.9 · `ipo_loss` — difficulty 2 of 5, 4 minutes, 2 points
#
# <details>
# <summary>Hint 1: where β is</summary>
#
# In the target alone. A small β asks for a large margin.
#
# </details>
#
# <details>
# <summary>Hint 2: a trap of Python's</summary>
#
# `1 / 2 * beta` is β/2. Write `1 / (2 * beta)`.
#
# </details>
#
# <!-- answer: ipo_loss -->


# %%
def ipo_loss(policy_chosen, policy_rejected, reference_chosen, reference_rejected,
             beta=0.1):
    """(h_π − 1/(2β))², the mean over pairs.

    Args:
        as for ``dpo_loss``: summed log-probabilities, shape (B,) each.
        beta: sets the target 1/(2β); a larger one keeps the policy closer.

    Returns:
        A scalar, with gradient to the policy's log-probabilities.

    Example: policy [−10] and [−12], reference [−11] and [−11], beta 0.25 give
    (2 − 2)² = 0; with beta 0.5 it is (2 − 1)² = 1.
    """
    # SOLUTION
    h = (policy_chosen - reference_chosen) - (policy_rejected - reference_rejected)
    return (h - 1 / (2 * beta)).square().mean()
    # END SOLUTION


# %%
ipo_loss = check(ipo_loss)

# %%
whose("dpo_loss", "ipo_loss")


def sampled(a_prompt):
    draw = torch.Generator().manual_seed(0)
    return exact.sample_preferences(world, a_prompt * len(rewards), draw)


smoothed = partial(dpo_loss, label_smoothing=0.1)
few, many = sampled(1_000), sampled(100_000)
runs = {}
for name, data, options in (
    ("DPO, all comparisons", everything, dict(loss=dpo_loss)),
    ("DPO, 100,000 a prompt", many, dict(loss=dpo_loss)),
    ("DPO, 1,000 a prompt", few, dict(loss=dpo_loss)),
    ("… the same pairs, labels without noise",
     exact.without_label_noise(world, few), dict(loss=dpo_loss)),
    ("… smoothing 0.1", few, dict(loss=smoothed)),
    ("… IPO at β/4", few, dict(loss=ipo_loss, beta=beta / 4)),
    ("smoothing 0.1, all comparisons", everything, dict(loss=smoothed)),
    ("IPO at β/4, all comparisons", everything, dict(loss=ipo_loss, beta=beta / 4)),
):
    runs[name] = exact.train_on_preferences(world, data, **options)
begins = world.distance(reference).item()
print(f"KL(π‖π*) of the reference: {begins:.2f} nats. After 300 steps:")
for name, (_, history) in runs.items():
    print(f"    {name:40s} {history['kl'][-1]:8.2g}")

# %%
STYLES = {
    "DPO, 1,000 a prompt": (DPO, "-"), "… smoothing 0.1": (SIMPO, "-"),
    "… IPO at β/4": (IPO, "-"), "… the same pairs, labels without noise": (GREEN, "-"),
    "DPO, 100,000 a prompt": (DPO, "--"), "DPO, all comparisons": (DPO, ":"),
}
figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
for name, (colour, dash) in STYLES.items():
    history = runs[name][1]
    left.plot(history["step"], np.maximum(history["kl"], 1e-11), dash, color=colour,
              label=name)
left.axhline(begins, color=GREY, linewidth=0.8)
left.text(300, begins * 0.6, "the reference", ha="right", fontsize=8, color=GREY)
farther = runs["DPO, 1,000 a prompt"][1]["kl"][-1] > begins
left.set(title="DPO reaches π* on all comparisons; on 1,000 noisy ones\nit "
         + ("ends farther away than it began" if farther else "comes no nearer"),
         xlabel="steps, each on all of the comparisons", yscale="log", ylim=(1e-4, 9),
         ylabel="KL(π‖π*) (nats an answer)")
left.legend(frameon=False, fontsize=8, loc="upper right", bbox_to_anchor=(1, 0.79))
grid = torch.linspace(-4, 8, 241)
zero = torch.zeros(1)
for name, loss, colour in (
    ("DPO", partial(dpo_loss, beta=1.0), DPO),
    ("smoothing 0.1", partial(dpo_loss, beta=1.0, label_smoothing=0.1), SIMPO),
    ("IPO (target 2)", partial(ipo_loss, beta=0.25), IPO),
):
    values = torch.stack([loss(h[None], zero, zero, zero) for h in grid])
    right.plot(grid, values, color=colour, label=name)
right.set(title="DPO is never content: there is always a little to gain\nby a larger "
          "margin. Smoothing and IPO have a minimum", ylim=(0, 5),
          xlabel="margin (here β = 1 for DPO)", ylabel="loss of one pair")
right.legend(frameon=False)
tidy(left, right)
plt.show()

# %% [markdown]
# **Why 1,000 comparisons end farther off than the reference began.** Not because of the
# pairs: the very same pairs with the *probability* of each label instead of one draw
# end close to $\pi^*$ (green). It is the noise of the labels, together with a loss that
# is never content. Some rare answers came up once or twice and happened to win each
# time. Let us count them.

# %%
few_policy = runs["DPO, 1,000 a prompt"][0]().detach()
won, lost = (torch.zeros(4, 125) for _ in range(2))
real = few.chosen != few.rejected  # an answer may meet itself, which teaches nothing
for table, side in ((won, few.chosen), (lost, few.rejected)):
    table.index_put_((few.prompt[real], side[real]), torch.ones(int(real.sum())), True)
groups = {
    "never lost": (won > 0) & (lost == 0), "never won": (won == 0) & (lost > 0),
    "won and lost": (won > 0) & (lost > 0), "never drawn": (won + lost) == 0,
}
print("                 answers   π_ref    π*   π trained   their part of KL(π‖π*)")
for name, those in groups.items():
    three = (reference, optimum, few_policy)
    mass = [(p.exp() * those).sum().item() / 4 for p in three]
    part = (few_policy.exp() * (few_policy - optimum) * those).sum().item() / 4
    print(f"{name:14s} {int(those.sum()):9d}   {mass[0]:5.1%} {mass[1]:6.1%} "
          f"{mass[2]:9.1%} {round(part, 2) + 0.0:17.2f} nats")

# %% [markdown]
# A handful of answers that never lost, which the reference hardly gives at all, have
# taken a large part of the probability and make up most of the distance. More steps
# make it worse (`figures/exact_world.json`: 2.4 nats on average over five seeds after
# 300 steps, 4.6 after 1,500). Smoothing and IPO give every label a finite target, and
# lose less: 1.1 and 0.8 nats over the same five seeds. That is no arrival either, since
# the reference *began* at 1.1; on the seed drawn here smoothing ends beyond it. The
# price stands in the last two lines of the first table: with *all*
# comparisons they miss $\pi^*$. Take a pair by itself whose first answer wins with
# probability $p$, and look for the margin of $\log\pi/\pi_{\mathrm{ref}}$ at which its
# loss is least (differentiate):
#
# | | best margin |
# |---|---|
# | DPO | $\frac1\beta\,\mathrm{logit}\,p$, which is that of $\pi^*$ |
# | smoothing | $\frac1\beta\,\mathrm{logit}\,q$, with $q = p + \varepsilon(1 - 2p)$ |
# | IPO | $\frac{1}{2\beta}(2p-1)$ |
#
# Here $\mathrm{logit}\,p = \log\frac{p}{1-p}$ has no bound; the other two have one.
# Near a tie $\mathrm{logit}\,p \approx 4(p - \frac12)$, and IPO at a quarter of DPO's β
# wants just DPO's margin, which is why we took that; for clear cases it wants less.
# Stopping early, or seeing each pair only once, helps without that bias (README, second
# table).
#
# *A table has nothing that carries over from one answer to the next. A network does:
# what it learns about "please" serves all answers. That tames the noise, and is why DPO
# works in the kitchen at all.*

# %% [markdown]
# ## 10 · Label noise in the kitchen
#
# The annotator's own noise follows Bradley–Terry, and DPO's model of the world allows
# for it. What if labels are turned round *blindly*, by tired clicks? We turned round a
# share of the kitchen's labels and trained at β = 0.1, where the reference holds
# loosely. This takes many runs, so the numbers are **recorded**: `python
# figures/frontier.py --record` makes them anew, on several seeds, each with models,
# samples and labels of its own.

# %%
recorded = json.loads(
    (Path(rlhf_minimal.__file__).parents[1] / "figures" / "frontier.json").read_text()
)
seeds = recorded["runs"]
print(f"recorded seeds: {recorded['seeds']}, measured on prompts {recorded['prompts']}")


def over_seeds(values):
    """Mean over seeds and its standard error."""
    values = np.array(values)
    return values.mean(), values.std(ddof=1) / len(values) ** 0.5


def recorded_rows(table, **facts):
    """A recorded table's row with these facts, one for each seed."""
    return [next(row for row in seed[table] if facts.items() <= row.items())
            for seed in seeds]


def gain(rows):
    """Gold reward above the same seed's SFT model."""
    return [row["gold"] - seed["sft"]["gold"]
            for row, seed in zip(rows, seeds, strict=True)]


print("\nturned round  smoothing   gold above SFT     KL from SFT")
for flipped in (0.0, 0.2, 0.4):
    for smoothing in (0.0, 0.2):
        rows = recorded_rows("label_noise", flipped=flipped, smoothing=smoothing)
        (up, up_error), (kl, kl_error) = over_seeds(gain(rows)), over_seeds(
            [row["kl"] for row in rows])
        print(f"{flipped:11.0%} {smoothing:10.1f}   {up:6.2f} ± {up_error:.2f}   "
              f"{kl:9.2f} ± {kl_error:.2f}")

# %% [markdown]
# Read it slowly, it is not what one expects. *Without* a single flip, plain DPO at this
# small β gains least of all six, with the widest error: it runs far from SFT and
# over-optimises. A fifth of
# the labels turned round makes it *better*, and does almost the same as smoothing by a
# fifth. That is no accident. With flips of probability $\varepsilon$ the expected loss
# of a pair is $(1-\varepsilon)\,\ell(h) + \varepsilon\,\ell(-h)$, which *is* the
# smoothed loss. Blind noise shrinks the margins that are worth having; it holds the
# policy back, as a larger β would, and it costs information.
#
# So smoothing is a brake. It helps most where DPO goes too far (no flips), and no
# longer where noise brakes already (40%). What the noise *costs* shows at like
# distance: with 40% flipped and no smoothing the policy stands about one nat from SFT,
# and gains much less than DPO with the kitchen's own labels gains there (section 14).
# First turn β; smooth when you know that labels are wrong more often than Bradley–Terry
# says.
#
# If the rate $\varepsilon$ is known, one can also undo the shrinking instead of adding
# to it: Chowdhury et al. (2024) weigh the two terms so that the loss is unbiased.

# %% [markdown]
# ## 11 · SimPO, or: what are the reference and the mean for?
#
# Meng et al. (2024) note that a model is *used* by its likelihood, not by its ratio to
# a reference, and that a summed likelihood is a poor reward because it falls with every
# token. They take the **mean** log-probability a token as the reward, drop the
# reference, and ask for a margin γ (their equation 6):
#
# $$\mathcal{L}_{\mathrm{SimPO}} = -\,\mathbb{E}\left[\log\sigma\left(
# \frac{\beta}{|y_w|}\log\pi_\theta(y_w\mid x) -
# \frac{\beta}{|y_l|}\log\pi_\theta(y_l\mid x) - \gamma\right)\right].$$
#
# Its β has another size than DPO's (2 and more), since it multiplies a mean. And
# nothing holds the policy near where it began but a small learning rate and few steps.
#
# ### 07.10 · `simpo_loss` — difficulty 2 of 5, 4 minutes, 2 points
#
# <details>
# <summary>Hint 1: what comes in</summary>
#
# The division by the length is done already. What is left: scale the difference, take γ
# off, −log σ, mean.
#
# </details>
#
# <details>
# <summary>Hint 2: γ's units</summary>
#
# γ is compared with β times the difference, so it is not multiplied by β itself.
#
# </details>
#
# <!-- answer: simpo_loss -->


# %%
def simpo_loss(policy_chosen_mean, policy_rejected_mean, beta=2.0, margin=1.0):
    """−log σ(β·(m_chosen − m_rejected) − γ), the mean over pairs.

    Args:
        policy_chosen_mean, policy_rejected_mean: log-probabilities a token, averaged
            over each answer, shape (B,).
        beta: scale of the reward.
        margin: γ, by how much the chosen reward should exceed the other.

    Returns:
        A scalar in nats, finite for any difference.

    Example: [−0.5], [−1.0], beta 2, margin 1 give −log σ(0) = 0.6931.
    """
    # SOLUTION
    h = beta * (policy_chosen_mean - policy_rejected_mean)
    return -F.logsigmoid(h - margin).mean()
    # END SOLUTION


# %%
simpo_loss = check(simpo_loss)

# %% [markdown]
# Three runs, live: IPO (for later), SimPO, and an invention of ours to see what the
# reference is for: **sums without a reference**, DPO with both reference
# log-probabilities set to 0. Predict for the last one: the sum falls with every token.
# Do its answers become shorter or longer than those of the SFT model?


# %%
def mean_loss(policy, batch, rows, mask=None):
    """SimPO's loss; ``mask`` other than the answers' is for the bug hunt."""
    mask = batch.mask if mask is None else mask
    means = answer_sums(policy, batch, mask) / mask[:, 1:].sum(-1)
    return simpo_loss(means[batch.chosen], means[batch.rejected], beta=4.0), {}


whose("sequence_log_probs", "ipo_loss", "simpo_loss", "dpo_loss")
ipo, _ = train(preference_loss(ipo_loss, 0.1), steps=200)
simpo, _ = train(mean_loss, steps=150)
no_reference, _ = train(
    preference_loss(dpo_loss, BETA, expected=torch.zeros_like(sft_sums)), steps=150
)
live = {"DPO": dpo_end, "IPO": measure(ipo), "SimPO": measure(simpo),
        "sums, no reference": measure(no_reference)}
print("                     gold          KL    tokens an answer")
for name, row in {"SFT": start, **live}.items():
    print(f"{name:18s} {row['gold']:5.2f} ± {row['se']:.2f} {row['kl']:6.2f} "
          f"{row['length']:10.1f}")

# %%
lengths = torch.tensor([[len(a) for a in pair[1:]] for pair in pairs])
difference = (lengths[:, 0] - lengths[:, 1]).float()
by_sum = sft_sums[:, 0] - sft_sums[:, 1]
by_mean = (sft_sums / lengths)[:, 0] - (sft_sums / lengths)[:, 1]
print("Before any training, over all pairs: correlation of the reward's margin with the"
      "\ndifference in length")
for name, margin in (("sum", by_sum), ("mean, SimPO's", by_mean)):
    print(f"    {name:14s} {np.corrcoef(margin, difference)[0, 1]:+.2f}")
print("    DPO's          none: all its margins are 0 where policy = reference")
print(f"chosen answers have {lengths[:, 0].float().mean():.1f} tokens, rejected ones "
      f"{lengths[:, 1].float().mean():.1f}")

# %% [markdown]
# The *mean* corrects the sum's taste for short answers, and here it over-corrects: the
# SFT model's ramblings ("some people like it , some do not .") are stock phrases, easy
# to foresee, and lift the average. So SimPO begins with a taste for *long* answers and
# has to unlearn it. DPO starts without any taste, because the reference is subtracted.
#
# **And without a reference?** The sum favours short answers, yet training on it made
# them *longer*. The derivation says why. With $\log\pi_{\mathrm{ref}}$ set to a
# constant, DPO's optimum is $\pi^* \propto e^{r/\beta}$ over *all* token sequences,
# each as good as any other before the reward speaks. There are ever so many more long
# sequences than short ones. The reference is no decoration: it carries everything about
# language that the comparisons do not say.
#
# Now with several seeds, and with a second annotator who likes length (0.2 of gold
# reward a word). Recorded:

# %%
METHODS = {"DPO": DPO, "SimPO": SIMPO, "sums, no reference": GREY}
figure, (left, right) = plt.subplots(1, 2, figsize=(10.5, 3.7), layout="constrained")
found = {}
for shift, taste in ((-0.2, 0.0), (0.2, 0.2)):
    for place, (method, colour) in enumerate(METHODS.items()):
        rows = recorded_rows("answer_length", taste=taste, method=method)
        longer = [row["length"] - seed["sft"]["length"]
                  for row, seed in zip(rows, seeds, strict=True)]
        found[method, taste] = [over_seeds(some) for some in (
            longer, gain(rows), [row["kl"] for row in rows])]
        look = dict(color=colour, alpha=1.0 if taste == 0 else 0.5, capsize=3,
                    hatch=None if taste == 0 else "//")
        for axes, values in ((left, longer), (right, gain(rows))):
            mean, error = over_seeds(values)
            axes.bar(place + shift, mean, 0.38, yerr=error, **look)
for axes in (left, right):
    axes.axhline(0, color="black", linewidth=0.8)
    axes.set_xticks(range(3), METHODS)
d, s = (found[method, 0.0][0][0] for method in ("DPO", "SimPO"))
left.set(title=f"On the same labels DPO changes the length by {d:+.1f},\nSimPO by "
         f"{s:+.1f} tokens (hatched: annotator who likes length)".replace("-", "−"),
         ylabel="tokens an answer, against SFT")
d, s = (found[method, 0.2][1][0] for method in ("DPO", "SimPO"))
right.set(title=f"Where the annotator likes length, DPO gains {abs(d):.1f}\nand SimPO "
          f"{'loses' if s < 0 else 'gains'} {abs(s):.1f} of gold reward",
          ylabel="gold reward above SFT")
tidy(left, right)
plt.show()
print("                     annotator      tokens        gold            KL from SFT")
for (method, taste), three in found.items():
    (mean, error), (up, up_error), (kl, kl_error) = three
    print(f"{method:20s} {'likes length' if taste else 'as before':12s} "
          f"{mean:+5.1f} ± {error:.1f}   {up:+.2f} ± {up_error:.2f}   "
          f"{kl:6.2f} ± {kl_error:.2f}")

# %% [markdown]
# Two honest surprises. On the kitchen's own labels, which punish rambling, SimPO
# shortens answers by more than DPO does: the taste for long answers that it starts with
# is unlearned, and more than that. And where the *annotator* likes length, the division
# by the length is no protection: SimPO's answers grow as much as DPO's, it goes farther
# from SFT, and loses more. A normalised reward cannot tell a length that people were
# fooled by from one that they wanted. (Meng et al. 2024 report that SimPO does not
# lengthen the answers of large models much; their labels and models are others.)

# %% [markdown]
# ## 12 · Which token earned it?
#
# PPO has a critic that says at which token things went better than expected. DPO has
# one number an answer, and section 6 shows that $\partial\ell/\partial\log\pi(y_t)$ is
# the *same* for every token of an answer: the good and the bad words of a winner are
# pushed up alike. Yet the implicit reward is a sum,
#
# $$\hat r(x,y) = \sum_t \beta\,\log\frac{\pi_\theta(y_t\mid x, y_{<t})}
# {\pi_{\mathrm{ref}}(y_t\mid x, y_{<t})},$$
#
# and its terms need not be alike, since a word that stands in winners and losers
# equally often is pushed up and down in turn. Rafailov et al. (2024) read these terms
# as credit for single tokens.
#
# ### 07.11 · `token_credit` — difficulty 2 of 5, 5 minutes, 2 points
#
# <details>
# <summary>Hint 1: the sum, not summed</summary>
#
# It is `implicit_rewards`, token by token, with zeros where the answer is not.
#
# </details>
#
# <details>
# <summary>Hint 2: the shift, again</summary>
#
# The log-probabilities have T − 1 columns, the mask T: `mask[:, 1:]`.
#
# </details>
#
# <!-- answer: token_credit -->


# %%
def token_credit(policy_log_probs, reference_log_probs, mask, beta=0.1):
    """Each token's term of the implicit reward, β·(log π − log π_ref).

    Args:
        policy_log_probs, reference_log_probs: of the tokens 1 to T − 1, as
            ``token_log_probs`` gives them, shape (B, T − 1).
        mask: 1 on the answers' tokens, shape (B, T).
        beta: of the implicit reward.

    Returns:
        Shape (B, T − 1), zeros outside the answers. A row sums to the implicit reward.

    Example: policy [[−1, −1, −1]], reference [[−2, −3, −1]], mask [[0, 0, 1, 1]] and
    beta 0.5 give [[0, 1, 0]].
    """
    # SOLUTION
    return beta * (policy_log_probs - reference_log_probs) * mask[:, 1:]
    # END SOLUTION


# %%
token_credit = check(token_credit)


# %%
@torch.no_grad()
def credits_of(batch):
    """Credits (B, T − 1) that the DPO policy gives to the tokens of a batch."""
    logs = [token_log_probs(model(batch.tokens, batch.attention_mask), batch.tokens)
            for model in (dpo, sft)]
    return token_credit(*logs, batch.mask, beta=BETA)


def coloured(words, credits):
    """Words on their credit's colour, the credit below: blue up, vermillion down."""
    spans = []
    for word, credit in zip(words, credits, strict=True):
        rgb = "0,114,178" if credit > 0 else "213,94,0"
        shade = min(abs(credit), 1) * 0.8
        number = f"{credit:+.2f}" if abs(credit) >= 0.005 else "0"
        spans.append(
            f"<span style='display:inline-block;text-align:center;padding:1px 4px;"
            f"margin:1px;color:#000;background:rgba({rgb},{shade:.2f})'"
            f">{word}<br><small>{number}</small></span>"
        )
    return "".join(spans)


whose("token_credit")
questions = (h.argsort(descending=True)).tolist()
picked = [next(i for i in questions if not decode(pairs[i].prompt).endswith("tl;dr :")),
          next(i for i in questions if decode(pairs[i].prompt).endswith("tl;dr :")),
          int(order[0])]
lines = []
for i in picked:
    batch = batch_of([i])
    credit, sides = credits_of(batch), (("chosen", batch.chosen), ("rejected",
                                                                   batch.rejected))
    lines.append(f"<p><i>{decode(pairs[i].prompt)}</i></p>")
    for side, row in sides:
        row = int(row)
        here = batch.mask[row, 1:].bool()
        words = [tokenizer.words[t].replace("<", "").replace(">", "")
                 for t in batch.tokens[row, 1:][here].tolist()]
        total = credit[row].sum().item()
        lines.append(f"<p><b>{side}</b>, r̂ = {total:+.2f}, gold "
                     f"{gold[i, int(side == 'rejected')]:+.2f}<br>"
                     f"{coloured(words, credit[row][here].tolist())}</p>")
HTML("<div style='background:#fff;color:#000;line-height:1.5'>" + "".join(lines)
     + "</div>")

# %% [markdown]
# Two pairs of which the policy is surest (a question and a summary), and the pair that
# still pulls hardest. Colours and numbers say the same: blue and + for a token that has
# become likelier than under SFT. Look where a rambling comes a *second* time ("some
# people like it" after "some people like it"): nothing in the loss points at that word,
# and yet the blame is there, and large.
#
# Does the credit fall where the gold reward pays? On the 1,000 fresh answers, by kind
# of token:


# %%
def kinds_of(words):
    """What each word of an answer is."""
    kinds = ["polite word" if word in POLITE_WORDS else "any other" for word in words]
    for phrase in map(str.split, RAMBLINGS):
        for place in range(len(words)):
            if words[place : place + len(phrase)] == phrase:
                kinds[place] = "rambling, first word"
                later = range(place + 1, place + len(phrase))
                for number in later:
                    kinds[number] = "rambling, later words"
    if words[-1] == tokenizer.words[END]:
        kinds[-1] = "the end"
    return kinds


with torch.no_grad():
    logs = [token_log_probs(logits, fresh.tokens) for logits in both[::-1]]
credit = token_credit(*logs, fresh.mask, beta=BETA)
by_kind = {}
for numbers, tokens, inside in zip(credit, fresh.tokens[:, 1:], fresh.mask[:, 1:] == 1,
                                   strict=True):
    words = [tokenizer.words[token] for token in tokens[inside].tolist()]
    for kind, number in zip(kinds_of(words), numbers[inside].tolist(), strict=True):
        by_kind.setdefault(kind, []).append(number)
by_kind = dict(sorted(by_kind.items(), key=lambda item: -np.mean(item[1])))

figure, axes = plt.subplots(figsize=(7.6, 3.2), layout="constrained")
rows = [interval(numbers) for numbers in by_kind.values()]
axes.barh(list(by_kind), [row["mean"] for row in rows], capsize=3,
          xerr=[1.96 * row["se"] for row in rows],
          color=[BLUE if row["mean"] > 0 else DPO for row in rows])
axes.axvline(0, color="black", linewidth=0.8)
axes.invert_yaxis()
most, *_, least = by_kind
axes.set(title="Every token is pushed alike; credit goes to the\n"
         f"{most}, blame to the {least}",
         xlabel="mean credit a token (implicit reward; bars: 95% interval)")
tidy(axes)
plt.show()
for (kind, numbers), row in zip(by_kind.items(), rows, strict=True):
    print(f"{kind:22s} {row['mean']:+.3f} ± {row['se']:.3f}"
          f"   ({len(numbers):,} tokens)")

# %% [markdown]
# So it does, by and large. Polite words, which the gold reward pays for, have gained.
# Of a rambling the *first* word has lost, and the words after it have hardly changed:
# once "my" is said, "grandmother loved cooking" is as good as certain, and nothing is
# left to decide. All tokens of a rambling were pushed down alike. But a probability
# near 1 does not move easily; the push lands where there was a choice. (The ramblings
# coloured above are extremes. Said a second time, even their second word was not
# certain, and it got the blame; in the mean over fresh answers that does not show.)
#
# (Credit of this kind describes what the policy does, not what a single word is worth:
# the polite word of an answer that is wrong has it too.)

# %% [markdown]
# ## 13 · Two models instead of four
#
# What stands in memory? A weight that is *trained* with Adam takes 16 bytes in float32:
# itself, its gradient, and Adam's two moments. A frozen one takes 4. Activations come
# on top for all, and for PPO the cache of the sampling (lesson 04).

# %%
TRAINED, FROZEN = 16, 4
ledger = {
    "PPO (policy, critic; reference, reward model)": 2 * TRAINED + 2 * FROZEN,
    "DPO (policy; reference)": TRAINED + FROZEN,
    "DPO, reference's log-probs computed beforehand": TRAINED,
    "SimPO (policy)": TRAINED,
}
parameters = sum(p.numel() for p in sft.parameters())
print(f"bytes a weight, and for models of one size: this one ({parameters:,} weights) "
      "and Mistral-7B\n")
for name, size in ledger.items():
    print(f"{name:47s} {size:3d}   {size * parameters / 1e6:5.1f} MB "
          f"{size * 7.24e9 / 1e9:7.0f} GB")
print(f"\nwhat the third line keeps instead of a model: {sft_sums.numel():,} numbers")

# %% [markdown]
# (Float32 throughout, to count simply; lesson 08 makes the same ledger for 16, 8 and 4
# bits and adapters.) The price is on another page: PPO may score *new* answers, its
# own, as long as it lives. DPO learns from the answers that somebody collected, and the
# further the policy moves from them, the less they say about what it does now.

# %% [markdown]
# ## 14 · The frontier
#
# One question remains, the one that people argue about: which method is better? No
# single run can say, because each has a dial that trades reward for distance. So turn
# the dials, all on the same comparisons, and draw gold reward against distance from
# SFT. The lines are **recorded** (`figures/frontier.py --record`; mean over the seeds,
# bars of one standard error over seeds, numbers beside the points are β, or n). The
# stars are **live**: what *your* losses reached above, on seed 0.

# %%
MARKERS = {"PPO": "o", "DPO": "^", "IPO": "s", "SimPO": "v", "best-of-n": "D"}
RISING, FALLING = {"IPO": (-5, 5), "SimPO": (12, -15)}, {"IPO": (-5, 5),
                                                         "SimPO": (-6, -14)}
points = {}
for row in seeds[0]["sweep"]:
    rows = recorded_rows("sweep", method=row["method"], strength=row["strength"])
    across = over_seeds([math.sqrt(r["kl"]) for r in rows])
    points.setdefault(row["method"], []).append(
        (row["strength"], *across, *over_seeds(gain(rows))))

figure, axes = plt.subplots(figsize=(10, 5.4), layout="constrained")
for method, some in points.items():
    strengths, at, at_error, up, up_error = zip(*some, strict=True)
    colour = COLOURS[method]
    axes.errorbar(at, up, up_error, at_error, color=colour, marker=MARKERS[method],
                  capsize=2, label=f"{method}, recorded")
    for strength, *place in zip(strengths, at, up, strict=True):  # beside the curve
        rising = place[0] <= at[np.argmax(up)]
        shift = (RISING.get(method, (17, -11)) if rising
                 else FALLING.get(method, (20, 5)))
        axes.annotate(f"{strength:g}", place, shift, textcoords="offset points",
                      fontsize=8, color=colour, ha="right")
for method in ("DPO", "IPO", "SimPO"):
    place = math.sqrt(live[method]["kl"]), live[method]["gold"] - start["gold"]
    axes.plot(*place, "*", markersize=15, color=COLOURS[method],
              markeredgecolor="black", label=f"{method}, live")
best = {method: max(some, key=lambda row: row[3]) for method, some in points.items()}
far = {method: max(some, key=lambda row: row[1]) for method, some in points.items()}
top = max(best, key=lambda method: best[method][3])
fallen = [method for method in points if best[method][3] - far[method][3] > 0.2]
axes.axhline(0, color=GREY, linewidth=0.8)
axes.set(title=f"{top} gets highest; held too loosely, {', '.join(fallen)} fall again",
         xlabel="distance from the SFT model, √KL (√nats; best-of-n: its upper bound)",
         ylabel=f"gold reward above SFT (mean of {len(seeds)} seeds)", xlim=(0, 4.4))
axes.legend(frameon=False, loc="upper right")
tidy(axes)
plt.show()

leader = gain(recorded_rows("sweep", method=top, strength=best[top][0]))
print(f"best point of each  strength   √KL           gold above SFT   {top} leads by")
for method, (strength, at, at_error, up, up_error) in best.items():
    own = gain(recorded_rows("sweep", method=method, strength=strength))
    lead, lead_error = over_seeds(np.array(leader) - own)
    print(f"{method:16s} {strength:11g}   {at:.2f} ± {at_error:.2f}   {up:6.2f} ± "
          f"{up_error:.2f}    {lead:6.2f} ± {lead_error:.2f}")
print("\nlive, and the recorded run of the same seed:")
for method, strength in (("DPO", 0.4), ("IPO", 0.1), ("SimPO", 4.0)):
    row = recorded_rows("sweep", method=method, strength=strength)[0]
    print(f"{method:6s} gold {live[method]['gold']:.3f} and {row['gold']:.3f}, "
          f"KL {live[method]['kl']:.3f} and {row['kl']:.3f}")

# %% [markdown]
# What can be said, and what cannot:
#
# - **Near SFT the methods lie close together.** DPO and IPO get as much for a nat as
#   PPO with its four models, or more. (Best-of-n is drawn at an upper bound of its KL;
#   its true curve lies further left.)
# - **PPO gets highest here**, at β = 0.2. But look at the paired differences: its lead
#   over DPO's best is less than two standard errors, over the others' about three;
#   with four seeds 95% confidence wants 3.2, so none is sure. And the settings of
#   all but IPO were chosen on seeds 0 and 1 (README), the best points on the very data
#   shown, and PPO may sample and score new answers all the time.
# - **Held too loosely, DPO falls as PPO does**, without any reward model to be fooled:
#   the implicit reward goes on rising on the training pairs while gold falls. Rafailov
#   et al. (2024b) measure this over-optimisation for DPO and IPO on larger models.
# - **SimPO's β is no leash.** With no reference, smaller β means bare margins must grow
#   larger, so it runs *farther*; no setting here keeps it as near to SFT as the
#   others can go. Fewer steps or a smaller learning rate would.
# - **IPO is the tamest**: a finite target for each pair, and no fall in the range
#   tried.
#
# One toy world, one size of model, four seeds. That is enough to see mechanisms and too
# little to crown a method.

# %% [markdown]
# ## 15 · Bug hunt: the question in the answer
#
# A colleague tidies up. There are two masks in every batch, `attention_mask` and
# `mask`; surely one will do. So the log-probabilities are now summed over all real
# tokens, the *prompt's included*:


# %%
def log_probs_as_found(logits, tokens, attention_mask):
    """Summed log-probability, and its mean a token."""
    sums = sequence_log_probs(logits, tokens, attention_mask)
    return sums, sums / attention_mask[:, 1:].sum(-1)


# %% [markdown]
# **Predict.** Train DPO with the sums as found. Is the loss higher, lower, or what?

# %%
right_run, right_log = train(preference_loss(dpo_loss, BETA), steps=40)
whole_sums = sums_of_pairs(sft, whole=True)
found_run, found_log = train(
    preference_loss(dpo_loss, BETA, expected=whole_sums, whole=True), steps=40
)
both_logs = zip(right_log, found_log, strict=True)
apart = max(abs(a["loss"] - b["loss"]) for a, b in both_logs)
print(f"largest difference between the two losses in 40 steps: {apart:.1e}")
print("step   chosen log-ratio: answers alone   as found")
for step in (0, 10, 20, 39):
    two = right_log[step]["chosen"], found_log[step]["chosen"]
    print(f"{step:4d} {two[0]:24.3f} {two[1]:18.3f}")

# %% [markdown]
# Nothing! Work out why before you read on.
#
# Both answers of a pair follow the *same* prompt. $\log\pi(x)$ stands in both sums and
# cancels in the margin, as $Z(x)$ did, and so does its gradient. The loss, the accuracy
# and the trained model are the same up to rounding. Tests pass and curves agree, and
# the function goes into the library.
#
# But the rewards it reports are wrong (second table): each has
# $\beta\log\frac{\pi_\theta (x)}{\pi_{\mathrm{ref}}(x)}$ in it, how much the policy has
# changed its opinion of the *question*. Whoever compares implicit rewards across
# prompts, or watches the chosen likelihood as section 8 advises, sees something else.
# And where prompts differ between the two answers (in a few rows of hh-rlhf they do,
# lesson 08), nothing cancels.
#
# Some weeks later somebody trains SimPO with the library's *mean*.

# %%
whose("sequence_log_probs", "simpo_loss")
simpo_found, _ = train(
    lambda policy, batch, rows: mean_loss(policy, batch, rows, batch.attention_mask),
    steps=150,
)
simpo_end = measure(simpo_found)


@torch.no_grad()
def prompt_log_prob(model):
    """Mean log-probability of the prompts' own tokens."""
    logs = token_log_probs(model(fresh.tokens, fresh.attention_mask), fresh.tokens)
    inside = (fresh.attention_mask - fresh.mask)[:, 1:]
    return ((logs * inside).sum() / inside.sum()).item()


table = {"SFT": (start, sft), "SimPO": (live["SimPO"], simpo),
         "SimPO, as found": (simpo_end, simpo_found)}
print("                    gold          KL   length   log π of a prompt's token")
for name, (row, model) in table.items():
    print(f"{name:16s} {row['gold']:5.2f} ± {row['se']:.2f} {row['kl']:7.2f} "
          f"{row['length']:7.1f} {prompt_log_prob(model):12.2f}")

# %%
figure, (left, middle, right) = plt.subplots(1, 3, figsize=(11, 3.2),
                                             layout="constrained")
for place, (row, model) in enumerate(table.values()):
    colour = (SKY, SIMPO, GREY)[place]
    left.bar(place, row["gold"], yerr=1.96 * row["se"], color=colour, capsize=3)
    middle.bar(place, row["kl"], color=colour)
    right.bar(place, prompt_log_prob(model), color=colour)
left.set(title="Less reward …", ylabel="gold reward")
middle.set(title="… for more distance,", ylabel="KL from SFT (nats)")
right.set(title="and it foresees the questions",
          ylabel="log π of a prompt's token (nats)")
for axes in (left, middle, right):
    axes.set_xticks(range(3), ["SFT", "SimPO", "as found"])
tidy(left, middle, right)
plt.show()

# %% [markdown]
# **Understand it.** The mean over prompt and answer is $\frac{\log\pi(x) +
# \log\pi(y\mid x)}{|x| + |y|}$. The two answers of a pair differ in length, so that
# $\log\pi(x)$ is divided by two different numbers and does *not* cancel. Chosen answers
# are mostly the shorter ones here; to raise their mean above the other, it pays to make
# the *prompt* likelier. A good part of the training goes into that.
#
# ### 07.12 · `mean_answer_log_probs` — difficulty 2 of 5, 5 minutes, 2 points
#
# **Mend it.** Beware of mending one half: the prompt's tokens are in the sum *and* in
# the count.
#
# <details>
# <summary>Hint 1: the right mask</summary>
#
# `response_mask(attention_mask, prompt_lengths)` of lesson 04 is imported: 1 on the
# answer's tokens, the end included.
#
# </details>
#
# <details>
# <summary>Hint 2: twice</summary>
#
# Use it in `sequence_log_probs`, and again for the number of tokens. A prompt has at
# least one token, so the first column of the mask is 0 and all answer tokens count.
#
# </details>
#
# <!-- answer: mean_answer_log_probs -->


# %%
def mean_answer_log_probs(logits, tokens, attention_mask, prompt_lengths):
    """Log-probability a token, averaged over each answer alone.

    Args:
        logits: shape (B, T, V).
        tokens, attention_mask: prompts with their answers, padded on the right, (B, T).
        prompt_lengths: tokens of each prompt, 1 or more, shape (B,).

    Returns:
        Shape (B,), with gradient to the logits.

    Example: five tokens, V = 2, all logits 0, attention_mask [[1, 1, 1, 1, 0]] and
    prompt_lengths [2] give log 0.5 = [−0.6931].
    """
    # SOLUTION
    mask = response_mask(attention_mask, prompt_lengths)
    return sequence_log_probs(logits, tokens, mask) / mask.sum(-1)
    # END SOLUTION


# %%
mean_answer_log_probs = check(mean_answer_log_probs)

# %%
whose("mean_answer_log_probs")
batch = batch_of(range(6))
prompt_lengths = (batch.attention_mask - batch.mask).sum(-1)
with torch.no_grad():
    logits = sft(batch.tokens, batch.attention_mask)
three = logits, batch.tokens, batch.attention_mask
_, as_found = log_probs_as_found(*three)
mended = mean_answer_log_probs(*three, prompt_lengths)
print("four answers to one question, log-probability a token")
print("as found:", as_found.numpy().round(2), "  mended:", mended.numpy().round(2))

# %% [markdown]
# The test that would have found it at once: the log-probability of an answer must not
# change when the *prompt's own* logits do. Yours passes it; write such a test for every
# mask.

# %% [markdown]
# ## 16 · To discuss
#
# 1. β multiplies the log-ratio, so a large β seems to make *large* rewards. Why does a
#    larger β nevertheless keep the policy closer to the reference?
#
# <details>
# <summary>What we think</summary>
#
# The labels fix which reward differences explain them. With a large β a small log-ratio
# suffices for the same reward. In the weight σ(−h) the pull dies out sooner.
#
# </details>
#
# 2. DPO's derivation assumes that the labels follow Bradley–Terry on *some* reward.
#    Name a way in which people break that, and what DPO then does.
#
# <details>
# <summary>What we think</summary>
#
# Circles (A over B, B over C, C over A), two groups with opposite tastes, a preference
# that depends on what else is shown. DPO fits the Bradley–Terry reward that is nearest
# in likelihood, as a reward model would. IPO's derivation starts from the preference
# probabilities themselves and needs no Bradley–Terry (Azar et al. 2023).
#
# </details>
#
# 3. You have 5,000 comparisons of answers by *another* model. What changes in section
#    8's identity, and in section 9?
#
# <details>
# <summary>What we think</summary>
#
# The identity speaks of samples from the reference. With foreign answers the mean
# log-ratio may be of either sign. And the pairs may lie where the reference hardly ever
# goes: they say little about what the policy will write. SFT on the chosen answers
# first (as Rafailov et al. do where no SFT model is at hand) brings the reference to
# the data.
#
# </details>
#
# 4. A colleague adds an SFT term on the chosen answers to DPO's loss, and the chosen
#    likelihood no longer falls. Has the method become better?
#
# <details>
# <summary>What we think</summary>
#
# The symptom is gone; the identity says that other SFT answers must pay instead. It
# guards against displacement to bystanders, and holds the policy to the *chosen*
# answers, good or not. Measure on samples. (Pal et al. 2024, arXiv 2402.13228, add a
# related penalty.)
#
# </details>
#
# 5. Section 7 found mislabelled pairs by their weight. May one simply drop the top
#    tenth and train again?
#
# <details>
# <summary>What we think</summary>
#
# Some of them are right and hard: rare tastes, rare prompts. Dropping what the model
# disagrees with makes it agree with itself. Have the top tenth *labelled again*; that
# is where a second opinion is worth most.
#
# </details>
#
# 6. For which of DPO, IPO and SimPO would a constant added to all log-probabilities of
#    a prompt change the loss? And one added to each *token*?
#
# <details>
# <summary>What we think</summary>
#
# A constant a prompt cancels in DPO and IPO, as in the bug hunt; divided by two lengths
# it does not cancel in SimPO. A constant a token is $c|y|$ in a sum and changes DPO and
# IPO wherever lengths differ; in a mean it is $c$ for both, and cancels in SimPO.
#
# </details>
#
# ## What to read next
#
# - R. Rafailov et al., *Direct preference optimization: your language model is secretly
#   a reward model*, 2023, arXiv 2305.18290: sections 2 to 7 of this lesson.
# - N. Razin et al., *Unintentional unalignment: likelihood displacement in direct
#   preference optimization*, 2024, arXiv 2410.08847.
# - M. Azar et al., *A general theoretical paradigm to understand learning from human
#   preferences*, 2023, arXiv 2310.12036: IPO.
# - E. Mitchell, *A note on DPO with noisy preferences and relationship to IPO*, 2023:
#   conservative DPO. S. Chowdhury et al., *Provably robust DPO*, 2024, arXiv
#   2403.00409: a loss that is unbiased under flips.
# - Y. Meng et al., *SimPO: simple preference optimization with a reference-free
#   reward*, 2024, arXiv 2405.14734.
# - R. Rafailov et al., *From r to Q\*: your language model is secretly a Q-function*,
#   2024, arXiv 2404.12358: credit for tokens.
# - R. Rafailov et al., *Scaling laws for reward model overoptimization in direct
#   alignment algorithms*, 2024 (2024b above), arXiv 2406.02900.
# - The package's `rlhf_minimal/dpo.py` and `exact_preferences.py`; the figure of
#   section 14 is drawn by `figures/frontier.py`.
#
# **Next: lesson 08.** The same loss, on a model of seven billion weights, on one GPU.

# %%
print(f"{time.process_time():.0f} seconds of CPU time in this notebook so far")
