# %% [markdown]
# # 01 · Policy gradients
#
# *Why this matters: every method of this course that lets a language model learn from
# its own answers, RLHF's PPO and GRPO alike, is the one gradient you derive here, made
# calmer.*
#
# **You will be able to**
#
# - say what a policy, a trajectory, a return and a value are, and compute each;
# - solve the Bellman equation of a small world exactly, by iteration and by algebra;
# - derive the policy gradient from the definition of expected return, line by line;
# - write REINFORCE, and show on a problem with a known gradient that it is unbiased;
# - say what a baseline changes and what it leaves alone, and measure both.
#
# **It assumes** Python, PyTorch tensors with `backward()`, probabilities and expected
# values, and the chain rule. No reinforcement learning. Lesson 00 is a good start, but
# nothing here needs it.
#
# | | |
# |---|---|
# | reading | 37 minutes |
# | coding | 53 minutes, seven exercises, 15 points |
# | computing | about 80 seconds on one CPU core; the last cell says how much it was |
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
import itertools
import time
import warnings

import matplotlib.pyplot as plt
import numpy as np
import torch
from tqdm.auto import tqdm

from autograder import check
from rlhf_minimal import policy_gradient
from rlhf_minimal.plots import COLOURS, points

# %% [markdown]
# ## 1 · An agent, a world, and what it is worth
#
# A **cook** stands in a kitchen. She sees where she is, takes a step, and something
# happens. That is all of reinforcement learning's vocabulary:
#
# | word | symbol | in the kitchen | in a language model (lesson 04) |
# |---|---|---|---|
# | agent | | the cook | the model |
# | environment | | the kitchen | the reader who asked |
# | state | $s_t$ | where she stands | the text so far |
# | action | $a_t$ | a step up, right, down or left | the next token |
# | policy | $\pi_\theta(a \mid s)$ | how she chooses, with knobs $\theta$ | the softmax |
# | reward | $r_t$ | −1 for slipping on a spill | a score for the answer |
# | trajectory | $\tau$ | one walk, start to end | one prompt and its answer |
#
# The environment answers each action with a next state drawn from
# $P(s_{t+1} \mid s_t, a_t)$ and a reward $r_t$. We number the reward like the action that
# earned it; Sutton & Barto (2018) call the same number $R_{t+1}$. A **trajectory**
# is $\tau = (s_0, a_0, r_0, s_1, a_1, r_1, \dots, s_{T-1}, a_{T-1}, r_{T-1}, s_T)$.
#
# The **return** from step $t$ is what the agent still gets, later rewards discounted by
# $\gamma \in [0, 1]$ for each step they are away:
#
# $$G_t = r_t + \gamma\, r_{t+1} + \gamma^2 r_{t+2} + \dots
#      = \sum_{k=t}^{T-1} \gamma^{\,k-t}\, r_k .$$
#
# Take $\gamma$ out of all terms but the first, and what stands in the bracket is again
# a return, the next one (Sutton & Barto 2018, eq. 3.8 and 3.9):
#
# $$G_t = r_t + \gamma\,\bigl(r_{t+1} + \gamma\, r_{t+2} + \dots\bigr)
#      = r_t + \gamma\, G_{t+1}, \qquad G_T = 0 .$$
#
# **Why discount?** A reward now is surer than one later; an endless sum stays finite (at
# most $r_{\max}/(1-\gamma)$); and a reward far away says little about *this* action.
# With $\gamma = 0.99$ a reward 69 steps away counts half ($0.99^{69} \approx 0.5$).

# %% [markdown]
# ### 01.1 · `discounted_returns` — difficulty 1 of 5, 8 minutes, 2 points
#
# Turn the rewards of one episode into the return of every step.
#
# <details>
# <summary>Hint 1: where to begin</summary>
#
# The equation gives $G_t$ from $G_{t+1}$, and the last one you know: $G_T = 0$. So walk
# through the episode *backwards*, carrying one number.
#
# </details>
#
# <details>
# <summary>Hint 2: the shape of the code</summary>
#
# Start with `total = 0.0`. For each reward, last one first, set `total` to the reward
# plus `gamma` times `total`, and keep it. What you kept is in reversed order.
#
# </details>
#
# <!-- answer: discounted_returns -->


# %%
def discounted_returns(rewards, gamma):
    """The return of every step, G_t = r_t + γ·G_{t+1} with G_T = 0.

    Args:
        rewards: of one episode, float tensor of shape (T,).
        gamma: discount factor, a float from 0 to 1.

    Returns:
        Returns, shape (T,); ``rewards`` itself stays as it was.

    Example: rewards [1, 0, 2] and γ = 0.5 give [1.5, 1.0, 2.0].
    """
    # SOLUTION
    returns, total = [], 0.0
    for reward in reversed(rewards.tolist()):
        total = reward + gamma * total
        returns.append(total)
    return torch.tensor(returns[::-1])
    # END SOLUTION


# %%
discounted_returns = check(discounted_returns)

# %% [markdown]
# ## 2 · The value of a state, and the Bellman equation
#
# A return belongs to one walk. The **value** of a state is its expectation over all
# walks that start there and follow the policy:
# $V^\pi(s) = \mathbb{E}_\pi[G_t \mid s_t = s]$.
#
# Put the recursion of the return inside the expectation, and average first over the
# action, then over where it leads:
#
# $$\begin{aligned}
# V^\pi(s) &= \mathbb{E}_\pi[\,r_t + \gamma\, G_{t+1} \mid s_t = s\,] \\
#  &= \sum_a \pi(a \mid s)\,\Bigl[\, r(s, a)
#     + \gamma \sum_{s'} P(s' \mid s, a)\;
#       \mathbb{E}_\pi[G_{t+1} \mid s_{t+1} = s'] \Bigr] \\
#  &= \sum_a \pi(a \mid s)\,\Bigl[\, r(s, a)
#     + \gamma \sum_{s'} P(s' \mid s, a)\; V^\pi(s') \Bigr].
# \end{aligned}$$
#
# This is the **Bellman equation** (Sutton & Barto 2018, eq. 3.14). The last step uses
# that the future depends on the past only through $s'$: the Markov property. It can be
# read in two ways.
#
# **As algebra.** It is linear in $V$. With $r^\pi(s) = \sum_a \pi(a|s)\,r(s,a)$ and
# $P^\pi(s, s') = \sum_a \pi(a|s)\,P(s'|s,a)$ it says $V = r^\pi + \gamma P^\pi V$, so
# $V = (I - \gamma P^\pi)^{-1} r^\pi$. Exact, and one line of code, as long as the states
# can be listed.
#
# **As a recipe.** Start from any $V$, put it in on the right, take what comes out on the
# left, repeat. One such step is a *backup*, written $\mathcal{T}V$. It always
# converges for $\gamma < 1$, and the proof is short. For two value functions $V$ and $U$
#
# $$\bigl|\mathcal{T}V(s) - \mathcal{T}U(s)\bigr|
#   = \gamma\,\Bigl|\sum_{s'} P^\pi(s, s')\,\bigl(V(s') - U(s')\bigr)\Bigr|
#   \le \gamma\, \max_{s'} \bigl|V(s') - U(s')\bigr| ,$$
#
# because an average is never larger than the largest of its parts. Take $U = V^\pi$,
# which a backup leaves as it is: the largest error shrinks at least by $\gamma$ with
# every sweep (Sutton & Barto 2018, eq. 4.5, call it iterative policy evaluation).

# %% [markdown]
# ### 01.2 · `bellman_backup` — difficulty 3 of 5, 10 minutes, 3 points
#
# Write one backup, for all states at once.
#
# <details>
# <summary>Hint 1: which sums there are</summary>
#
# Two: over next states $s'$ and over actions $a$. Do the inner one first. It gives the
# *action values* $Q(s, a) = r(s,a) + \gamma\sum_{s'}P(s'|s,a)V(s')$, of shape (S, A).
#
# </details>
#
# <details>
# <summary>Hint 2: the shapes</summary>
#
# `transitions @ values` multiplies (S, A, S) by (S,) and sums over the last dimension:
# (S, A). Then weigh by `policy`, also (S, A), and sum over the actions.
#
# </details>
#
# <!-- answer: bellman_backup -->


# %%
def bellman_backup(values, policy, transitions, rewards, gamma):
    """One Bellman backup: V'(s) = Σ_a π(a|s) [ r(s,a) + γ Σ_s' P(s'|s,a) V(s') ].

    Args:
        values: V, shape (S,).
        policy: π(a|s), shape (S, A); each row sums to 1.
        transitions: P(s'|s,a) at [s, a, s'], shape (S, A, S).
        rewards: expected reward r(s, a), shape (S, A).
        gamma: discount factor.

    Returns:
        V', shape (S,), all of it computed from the old ``values``.
    """
    # SOLUTION
    action_values = rewards + gamma * (transitions @ values)  # (S, A)
    return (policy * action_values).sum(dim=-1)  # (S,)
    # END SOLUTION


# %%
bellman_backup = check(bellman_backup)

# %% [markdown]
# ### A kitchen small enough to solve
#
# The cook starts at `A`. The meal is served at `G` (+1, the walk ends), `X` is a spill
# (−1, the walk ends too), `#` is the counter, and every step costs 0.01. The floor is
# slippery: with probability 0.1 each she slides to the left or to the right of where she
# wanted to go. Against a wall she stays where she is.

# %%
KITCHEN = ["....G", ".#.X.", ".#.X.", "A...."]
MOVES = [(-1, 0), (0, 1), (1, 0), (0, -1)]  # up, right, down, left
ENDS = {"G": 1.0, "X": -1.0}
STEP_COST, GAMMA = 0.01, 0.99

cells = [
    (row, column)
    for row, line in enumerate(KITCHEN)
    for column, what in enumerate(line)
    if what != "#"
]
index = {cell: s for s, cell in enumerate(cells)}
letter = [KITCHEN[row][column] for row, column in cells]
start = letter.index("A")


# %%
def build_kitchen():
    """Transitions (S, A, S) and expected rewards (S, A) of the kitchen."""
    transitions = torch.zeros(len(cells), 4, len(cells))
    rewards = torch.zeros(len(cells), 4)
    for s, (row, column) in enumerate(cells):
        for a in range(4):
            if letter[s] in ENDS:
                transitions[s, a, s] = 1.0  # the walk is over: nothing more happens
                continue
            for turn, probability in ((0, 0.8), (1, 0.1), (-1, 0.1)):
                down, right = MOVES[(a + turn) % 4]
                there = index.get((row + down, column + right), s)
                transitions[s, a, there] += probability
                rewards[s, a] += probability * ENDS.get(letter[there], 0.0)
            rewards[s, a] -= STEP_COST
    return transitions, rewards


transitions, rewards = build_kitchen()
print(f"{len(cells)} states, 4 actions; every row of P sums to 1:",
      torch.allclose(transitions.sum(-1), torch.ones(len(cells), 4)))

# %% [markdown]
# First the cook who does not care where she goes: all four directions alike. We solve
# for her values by algebra, then by your backup, and watch the error.


# %%
def solve(policy):
    """V = (I − γ P^π)⁻¹ r^π, exact up to rounding."""
    P = torch.einsum("sa,sat->st", policy, transitions)  # (S, S)
    r = (policy * rewards).sum(dim=-1)  # (S,)
    return torch.linalg.solve(torch.eye(len(r)) - GAMMA * P, r)


random_walk = torch.full((len(cells), 4), 0.25)
exact = solve(random_walk)

values = torch.zeros(len(cells))
errors = [(values - exact).abs().max()]
for _ in range(300):
    values = bellman_backup(values, random_walk, transitions, rewards, GAMMA)
    errors.append((values - exact).abs().max())

for sweep in (0, 1, 10, 30, 100, 300):
    bound = GAMMA**sweep * errors[0]
    print(f"after {sweep:3d} sweeps: largest error {errors[sweep]:.6f}, "
          f"and at most {bound:.6f} by the proof")

# %% [markdown]
# The error stays below the proof's bound all the way, and falls much faster: the walks
# end, and where a walk has ended there is nothing left to be wrong about.
#
# ### From values to a better policy
#
# Once you know what states are worth, you can do better than the policy that they were
# computed for: in each state take the action with the best $Q(s, a)$. The new policy is
# at least as good in *every* state (the policy improvement theorem: Sutton & Barto 2018,
# §4.2), so evaluate it, improve it again, and stop when nothing changes. With finitely
# many policies that must happen. This is **policy iteration** (Howard 1960).


# %%
def improve(values):
    """The greedy policy (S, A) with respect to ``values``."""
    action_values = rewards + GAMMA * (transitions @ values)
    return torch.nn.functional.one_hot(action_values.argmax(-1), 4).float()


best, rounds = random_walk, 0
while rounds < 50 and not torch.equal(improve(solve(best)), best):
    best, rounds = improve(solve(best)), rounds + 1
best_values = solve(best)
print(f"{rounds} improvements; the start was worth {exact[start]:.2f}, "
      f"now it is worth {best_values[start]:.2f}")


# %%
def draw_kitchen(axes, values, policy, title):
    """Values as colours and numbers; arrows where the policy has made up its mind."""
    picture = np.full((len(KITCHEN), len(KITCHEN[0])), np.nan)
    for (row, column), value in zip(cells, values.tolist(), strict=True):
        picture[row, column] = value
    axes.set_facecolor("#555555")
    image = axes.imshow(picture, cmap="PuOr", vmin=-1, vmax=1)
    for s, (row, column) in enumerate(cells):
        if letter[s] in ENDS:
            what = "meal" if letter[s] == "G" else "spill"
            text = f"{what}\nends: {ENDS[letter[s]]:+.0f}"
            axes.text(column, row, text, ha="center", va="center", fontsize=9)
            continue
        name = "start\n" if s == start else ""
        tone = "white" if abs(values[s]) > 0.65 else "black"
        axes.text(column, row - 0.2, f"{name}{values[s]:+.2f}", ha="center",
                  va="center", fontsize=9, color=tone)
        if policy[s].max() > 0.99:
            down, right = MOVES[int(policy[s].argmax())]
            axes.annotate("", (column + 0.22 * right, row + 0.25 + 0.18 * down),
                          (column - 0.22 * right, row + 0.25 - 0.18 * down),
                          arrowprops={"arrowstyle": "-|>", "color": tone})
    axes.set(title=title, xticks=[], yticks=[])
    return image


figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
draw_kitchen(left, exact, random_walk,
             f"Random steps: the start is worth {exact[start]:+.2f}")
image = draw_kitchen(right, best_values, best,
                     f"The best policy: the start is worth {best_values[start]:+.2f}")
figure.colorbar(image, ax=[left, right], label="value of the state, V(s)", shrink=0.85)
plt.show()

# %% [markdown]
# Look at the arrows beside the spills: she walks *against* the counter and the walls, on
# purpose. A slide goes sideways only, so against the wall it is the slides that move her,
# and never into the spill behind her back. And from the two squares right of the start
# she turns round and takes the long way. Nobody told her to be careful; it follows from
# the rewards. Make a step dearer, `STEP_COST = 0.04` and `GAMMA = 0.95`, and look again.
#
# We could solve the kitchen because we *knew* $P$ and could list all states. A language
# model's states are texts, and nobody can list those. What we can do is act, and see
# what we get. The rest of this lesson does with samples what we just did with algebra.

# %% [markdown]
# ## 3 · Exploration
#
# Whoever learns from samples has a question that algebra never asked: an action never
# tried cannot be found to be good. **Exploiting** takes what looks best so far,
# **exploring** tries something else (Sutton & Barto 2018, ch. 2).
#
# The smallest world that shows it has one state and one step: the **bandit**. Here are
# five recipes whose average ratings are unknown; every serving is rated with noise. The
# *greedy* cook serves what has the best average so far. *ε-greedy* does so too, but with
# probability ε serves anything. We play 1,000 games of 500 servings for each.


# %%
def serve(epsilon, games=1000, servings=500, recipes=5, seed=0):
    """How often the best recipe was served at each serving, shape (servings,)."""
    g = torch.Generator().manual_seed(seed)
    quality = torch.randn(games, recipes, generator=g)
    best_recipe = quality.argmax(-1)
    total, count = torch.zeros(games, recipes), torch.zeros(games, recipes)
    rows, share = torch.arange(games), []
    for _ in range(servings):
        looks = torch.where(count > 0, total / count.clamp(min=1), 0.0)
        ties = 1e-6 * torch.rand(games, recipes, generator=g)
        choice = (looks + ties).argmax(-1)
        explore = torch.rand(games, generator=g) < epsilon
        anything = torch.randint(recipes, (games,), generator=g)
        choice = torch.where(explore, anything, choice)
        noise = torch.randn(games, generator=g)
        total[rows, choice] += quality[rows, choice] + noise
        count[rows, choice] += 1
        share.append((choice == best_recipe).float().mean())
    return torch.stack(share)


curves = {epsilon: serve(epsilon) for epsilon in (0.0, 0.1, 1.0)}

# %%
figure, axes = plt.subplots(figsize=(7, 3.6), layout="constrained")
for epsilon, colour, name in (
    (0.0, "#666666", "greedy (ε = 0)"),
    (0.1, COLOURS["REINFORCE"], "ε-greedy (ε = 0.1)"),
    (1.0, COLOURS["SFT"], "always anything (ε = 1)"),
):
    axes.plot(100 * curves[epsilon], color=colour, label=name)
last = {epsilon: 100 * curve[-100:].mean() for epsilon, curve in curves.items()}
axes.set(
    title=f"The best recipe is served {last[0.1]:.0f}% of the time with ε = 0.1, "
          f"{last[0.0]:.0f}% without exploring\n(last 100 of 500 servings)",
    xlabel="serving", ylabel="best recipe served (% of games)", ylim=(0, 100),
)
axes.spines[["top", "right"]].set_visible(False)
axes.legend(frameon=False, loc="center right", bbox_to_anchor=(1, 0.38))
plt.show()

# %% [markdown]
# A policy that gives every action some probability explores all by itself: it *samples*
# its actions. That is how a language model explores, and why a model that has become too
# sure of itself stops learning (we come back to that as *entropy* in lesson 02).

# %% [markdown]
# ## 4 · The log-derivative trick
#
# Let the policy $\pi_\theta$ have parameters. We want the gradient of the expected
# return, to climb it. Write $R(\tau) = \sum_t \gamma^t r_t$ for the return of a whole
# trajectory and $P(\tau \mid \pi_\theta)$ for its probability.
#
# **(1) What we want to climb.** An expectation is an integral over everything that can
# happen (for discrete actions, read it as a sum):
#
# $$J(\theta) = \int P(\tau \mid \pi_\theta)\, R(\tau)\, d\tau .$$
#
# **(2) The gradient goes inside.** Only $P$ depends on $\theta$; a walk, once walked, is
# worth what it is worth. (For episodes of bounded length with bounded rewards the swap
# is allowed.)
#
# $$\nabla_\theta J = \int \nabla_\theta P(\tau \mid \pi_\theta)\, R(\tau)\, d\tau .$$
#
# This is no longer an expectation: $\nabla P$ is no probability, and we cannot sample
# from it. That is the whole difficulty.
#
# **(3) The trick.** The chain rule says $\nabla \log f = \nabla f / f$. Turned round:
# $\nabla P = P\, \nabla \log P$.
#
# **(4) An expectation again.** Put (3) into (2), and the probability is back in front:
#
# $$\nabla_\theta J
#  = \int P(\tau \mid \pi_\theta)\,
#    \nabla_\theta \log P(\tau \mid \pi_\theta)\, R(\tau)\, d\tau
#  = \mathbb{E}_{\tau \sim \pi_\theta}
#    \bigl[\nabla_\theta \log P(\tau \mid \pi_\theta)\; R(\tau)\bigr].$$
#
# **(5) The logarithm turns a product into a sum.** A trajectory happens when all its
# parts happen, $P(\tau \mid \pi_\theta) = \rho(s_0)\prod_t \pi_\theta(a_t \mid s_t)\,
# P(s_{t+1} \mid s_t, a_t)$, so
#
# $$\log P(\tau \mid \pi_\theta) = \log \rho(s_0)
#  + \sum_{t=0}^{T-1} \bigl[\log \pi_\theta(a_t \mid s_t)
#  + \log P(s_{t+1} \mid s_t, a_t)\bigr].$$
#
# **(6) The world drops out.** Neither the start nor the environment depends on $\theta$.
# We need not know them, and we need not differentiate through them:
#
# $$\nabla_\theta \log P(\tau \mid \pi_\theta)
#  = \sum_{t=0}^{T-1} \nabla_\theta \log \pi_\theta(a_t \mid s_t).$$
#
# **(7) Together:**
#
# $$\nabla_\theta J = \mathbb{E}_{\tau \sim \pi_\theta}
#  \Bigl[\sum_{t=0}^{T-1} \nabla_\theta \log \pi_\theta(a_t \mid s_t)\; R(\tau)\Bigr].$$
#
# Play, remember $\log\pi$ of what you did, weigh it by what you got. (Williams 1992,
# Theorem 1 for one step, and its *episodic REINFORCE* for several.)
#
# ### Two steps further: nobody changes the past
#
# **(8) A lemma that does all the work below.** The *score* $\nabla\log\pi$ is zero on
# average, in every state:
#
# $$\mathbb{E}_{a \sim \pi_\theta}\bigl[\nabla_\theta \log \pi_\theta(a \mid s)\bigr]
#  = \sum_a \pi_\theta(a \mid s)\,
#    \frac{\nabla_\theta \pi_\theta(a \mid s)}{\pi_\theta(a \mid s)}
#  = \nabla_\theta \sum_a \pi_\theta(a \mid s) = \nabla_\theta 1 = 0 .$$
#
# **(9) Rewards from before an action.** Take a reward $r_k$ with $k < t$. Once we know
# the walk up to $s_t$, that reward is a fixed number, and only $a_t$ is still open:
#
# $$\mathbb{E}\bigl[\nabla_\theta \log \pi_\theta(a_t \mid s_t)\; r_k\bigr]
#  = \mathbb{E}\Bigl[\, r_k\;
#    \underbrace{\mathbb{E}\bigl[\nabla_\theta \log \pi_\theta(a_t \mid s_t)
#    \,\big|\, s_t\bigr]}_{=\,0\text{ by (8)}} \Bigr] = 0 .$$
#
# Such terms add nothing but noise. Leave them out of (7). What remains of
# $R(\tau)$ at step $t$ is $\sum_{k \ge t} \gamma^k r_k = \gamma^t G_t$, the
# **reward to go**:
#
# $$\boxed{\;\nabla_\theta J = \mathbb{E}_{\tau \sim \pi_\theta}
#  \Bigl[\sum_{t} \gamma^t\, \nabla_\theta \log \pi_\theta(a_t \mid s_t)\; G_t\Bigr]\;}$$
#
# (It goes back to GPOMDP: Baxter & Bartlett 2001, Peters & Schaal 2008. Written
# with states instead of trajectories it is the policy gradient theorem, Sutton & Barto
# 2018, eq. 13.5 and 13.8.) Nearly everyone, this course too, drops the factor $\gamma^t$:
# kept, it would tell the agent not to care how it acts late in an episode. To be honest,
# what remains is then no longer the exact gradient of $J$ when $\gamma < 1$ (Nota &
# Thomas 2020). With $\gamma = 1$ the two agree.
#
# **The algorithm** that follows this gradient with samples is **REINFORCE** (Williams
# 1992): play a batch of episodes, compute $G_t$, take one step along the average of
# $\nabla\log\pi \cdot G_t$, throw the data away, play again. Away, because (1) takes its
# expectation under the policy *as it is now*.

# %% [markdown]
# ### 01.3 · `action_log_probs` — difficulty 1 of 5, 5 minutes, 1 point
#
# A network gives *logits*; the policy is their softmax. What (7) needs is the logarithm
# of the probability of the one action taken.
#
# <details>
# <summary>Hint 1: two steps</summary>
#
# First turn every row of logits into log-probabilities, with one function that does both
# the softmax and the logarithm. Then pick from each row the entry of its own action.
#
# </details>
#
# <details>
# <summary>Hint 2: picking</summary>
#
# `log_probs[torch.arange(N), actions]` picks one entry a row. So does
# `gather(-1, actions.unsqueeze(-1))`, which leaves a dimension of size 1 to squeeze.
#
# </details>
#
# <!-- answer: action_log_probs -->


# %%
def action_log_probs(logits, actions):
    """log π(a|s) of the action taken in each row.

    Args:
        logits: of all actions, float tensor of shape (N, A); they may be large.
        actions: which action was taken, int64 tensor of shape (N,).

    Returns:
        Log-probabilities, shape (N,), with gradient back to the logits.
    """
    # SOLUTION
    log_probs = logits.log_softmax(dim=-1)  # (N, A)
    return log_probs.gather(-1, actions.unsqueeze(-1)).squeeze(-1)  # (N,)
    # END SOLUTION


# %%
action_log_probs = check(action_log_probs)

# %% [markdown]
# ### 01.4 · `policy_gradient_loss` — difficulty 2 of 5, 5 minutes, 2 points
#
# PyTorch's optimizers go *down* a scalar. Build the scalar whose gradient is minus the
# policy gradient. Its *value* means nothing: it does not fall as the policy gets better.
#
# <details>
# <summary>Hint 1: what is a constant</summary>
#
# In (7) only $\log\pi$ is differentiated. The weight says how good the action was; it
# may have come out of a network (a critic, lesson 02), and no gradient may flow there.
#
# </details>
#
# <details>
# <summary>Hint 2: the steps</summary>
#
# Detach the weights, multiply entry by entry, average over the batch, change the sign.
#
# </details>
#
# <!-- answer: policy_gradient_loss -->


# %%
def policy_gradient_loss(log_probs, weights):
    """The REINFORCE loss, −(1/N) Σ_i log π(a_i|s_i) · weight_i.

    Args:
        log_probs: of the actions taken, shape (N,), with gradient.
        weights: how good each was, shape (N,); constants, whatever they came from.

    Returns:
        A scalar.

    Example: log-probabilities [−1, −0.5] and weights [2, 4] give 2.
    """
    # SOLUTION
    return -(log_probs * weights.detach()).mean()
    # END SOLUTION


# %%
policy_gradient_loss = check(policy_gradient_loss)

# %% [markdown]
# ## 5 · A bandit whose gradient is known exactly
#
# Does the estimator really give the gradient? Let us hold it against something we can
# compute. Three recipes, ratings around 5, 6 and 7 with noise, and a softmax policy
# with one logit each. With $\pi = \mathrm{softmax}(\theta)$ the score has a simple form:
#
# $$\log \pi(a) = \theta_a - \log \sum_j e^{\theta_j}
#  \quad\Rightarrow\quad
#  \frac{\partial \log \pi(a)}{\partial \theta_i} = \mathbf{1}[i = a] - \pi_i ,$$
#
# and the exact gradient of $J = \sum_a \pi_a \mu_a$ ($\mu_a$ is recipe $a$'s mean rating)
# follows from it:
#
# $$\frac{\partial J}{\partial \theta_i}
#  = \sum_a \pi_a \mu_a \bigl(\mathbf{1}[i = a] - \pi_i\bigr) = \pi_i\,(\mu_i - J).$$

# %%
logits = torch.tensor([0.5, 0.0, -0.5])
mean_rating = torch.tensor([5.0, 6.0, 7.0])
NOISE = 1.0

probs = logits.softmax(-1)
J = probs @ mean_rating
exact_gradient = probs * (mean_rating - J)
print("policy        ", [f"{p:.3f}" for p in probs])
print("expected rating", f"{J:.3f}")
print("exact gradient", [f"{x:+.4f}" for x in exact_gradient])


# %%
def play_bandit(n, seed):
    """n servings: which recipe, and how it was rated; both of shape (n,)."""
    g = torch.Generator().manual_seed(seed)
    actions = probs.multinomial(n, replacement=True, generator=g)
    ratings = mean_rating[actions] + NOISE * torch.randn(n, generator=g)
    return actions, ratings


def estimated_gradient(actions, weights):
    """Minus the loss's gradient, by autograd, through the two functions above."""
    leaf = logits.clone().requires_grad_()
    log_probs = action_log_probs(leaf.expand(len(actions), 3), actions)
    policy_gradient_loss(log_probs, weights).backward()
    return -leaf.grad


# %% [markdown]
# A mean of $N$ samples scatters around the truth by its **standard error**, the deviation
# of a single sample divided by $\sqrt N$. If the estimator is unbiased, the difference
# should be a standard error or two, and not more.

# %%
N = 200_000
actions, ratings = play_bandit(N, seed=1)
scores = torch.nn.functional.one_hot(actions, 3) - probs  # ∇log π, (N, 3)

print("recipe  baseline    exact  estimate  standard error  difference in s.e.")
for name, b in (("none", 0.0), ("J", J.item())):
    estimate = estimated_gradient(actions, ratings - b)
    error = ((ratings - b).unsqueeze(-1) * scores).std(dim=0) / N**0.5
    for i in range(3):
        off = (estimate[i] - exact_gradient[i]) / error[i]
        print(f"{i:6d}  {name:8s} {exact_gradient[i]:+.4f}   {estimate[i]:+.4f}"
              f"          {error[i]:.4f}  {off:18.1f}")

# %% [markdown]
# All six estimates agree with the exact gradient to within a standard error or so, just
# as unbiased ones should, with a baseline and without. What the baseline changes is how
# large the standard error is.
#
# ## 6 · Why a baseline
#
# **All-positive rewards push every action up.** Every rating here is positive, so
# whatever was served becomes more likely, good or bad. On average the better recipes win
# because they are pushed *more*. But a single update knows only its own sample:

# %%
print("served  rating    change of its logit, no baseline    with baseline J")
for a in range(3):
    push = 1 - probs[a]
    print(f"{a:6d}  {mean_rating[a]:6.1f}  {mean_rating[a] * push:+25.2f}"
          f"  {(mean_rating[a] - J) * push:+25.2f}")

# %% [markdown]
# Without a baseline the *worst* recipe, when served, is pushed up too. With it, better
# than expected goes up and worse than expected goes down.
#
# **It changes nothing on average.** Let $b(s)$ depend on the state, but not on the
# action. By the lemma (8)
#
# $$\mathbb{E}_{a \sim \pi}\bigl[\nabla \log \pi(a \mid s)\;b(s)\bigr]
#  = b(s)\;\mathbb{E}_{a \sim \pi}\bigl[\nabla \log \pi(a \mid s)\bigr]
#  = b(s) \cdot 0 = 0 .$$
#
# So $G_t - b(s_t)$ in place of $G_t$ leaves the gradient's expectation where it was
# (Williams 1992, Theorem 1, has the baseline already; Sutton & Barto 2018, eq. 13.10).
# Should $b$ depend on the action, it could not be pulled out, and the proof would break.
#
# **It changes the variance.** Write $g_b = (r - b)\,\nabla\log\pi(a)$. Its mean does not
# depend on $b$, so its total variance (the sum over all parameters) is
#
# $$\mathrm{Var}(g_b) = \mathbb{E}\bigl[(r - b)^2\,\|\nabla\log\pi(a)\|^2\bigr]
#  - \|\nabla J\|^2 ,$$
#
# a parabola in $b$. Set its derivative to zero:
#
# $$-2\,\mathbb{E}\bigl[(r - b)\,\|\nabla\log\pi(a)\|^2\bigr] = 0
#  \quad\Rightarrow\quad
#  b^* = \frac{\mathbb{E}\bigl[r\,\|\nabla\log\pi(a)\|^2\bigr]}
#             {\mathbb{E}\bigl[\|\nabla\log\pi(a)\|^2\bigr]} .$$
#
# The best constant baseline is a *weighted* mean of the rewards (Greensmith, Bartlett &
# Baxter 2004). The plain mean, $b = J$, is simpler. How near it comes, we shall see.

# %% [markdown]
# ### 01.5 · `variance_with_baseline` — difficulty 3 of 5, 12 minutes, 3 points
#
# Measure it. Every sample gives one estimate of the
# gradient, a vector with one entry a logit. How much do these vectors scatter?
#
# <details>
# <summary>Hint 1: one row a sample</summary>
#
# Build a matrix of shape (N, A): row $i$ is $(r_i - b)\,\nabla\log\pi(a_i)$. The score
# $\nabla\log\pi(a_i)$ is a one-hot row (1 at the action taken) minus the probabilities.
#
# </details>
#
# <details>
# <summary>Hint 2: from the matrix to a number</summary>
#
# `estimates.var(dim=0)` is the variance of each parameter over the samples, with N − 1
# below. The total variance is the sum of those. `torch.nn.functional.one_hot(actions, A)`
# makes the one-hot rows.
#
# </details>
#
# <!-- answer: variance_with_baseline -->


# %%
def variance_with_baseline(logits, actions, rewards, baseline):
    """Total sample variance of the one-sample gradient estimates of a softmax bandit.

    Estimate i is g_i = (r_i − b)·∇_θ log π(a_i), a vector of length A. The total
    variance is Σ_j Var(g_ij); each Var is over the N samples and divides by N − 1.

    Args:
        logits: θ of the policy π = softmax(θ), shape (A,).
        actions: sampled from π, int64 tensor of shape (N,).
        rewards: what each earned, shape (N,).
        baseline: b, a float.

    Returns:
        A scalar tensor.
    """
    # SOLUTION
    taken = torch.nn.functional.one_hot(actions, len(logits))  # (N, A)
    scores = taken - logits.softmax(dim=-1)  # (N, A)
    estimates = (rewards - baseline).unsqueeze(-1) * scores  # (N, A)
    return estimates.var(dim=0).sum()
    # END SOLUTION


# %%
variance_with_baseline = check(variance_with_baseline)


# %% [markdown]
# Your measurements, on the theory's parabola:


# %%
def exact_variance(b):
    """The parabola above, with the expectation worked out over recipes and noise."""
    square = (torch.eye(3) - probs).square().sum(-1)  # ‖∇log π(a)‖², (3,)
    second_moment = (probs * ((mean_rating - b) ** 2 + NOISE**2) * square).sum()
    return second_moment - exact_gradient.square().sum()


square = (torch.eye(3) - probs).square().sum(-1)
best_baseline = ((probs * mean_rating * square).sum() / (probs * square).sum()).item()
measured = {
    b: variance_with_baseline(logits, actions, ratings, b).item()
    for b in (0.0, 2.0, 4.0, J.item(), best_baseline, 8.0, 10.0)
}
ratio = measured[0.0] / measured[J.item()]
for name, b in (("none", 0.0), ("J", J.item()), ("b*", best_baseline)):
    print(f"baseline {name:4s} = {b:.2f}: total variance {measured[b]:5.2f}")

# %%
figure, axes = plt.subplots(figsize=(7, 3.8), layout="constrained")
grid = torch.linspace(-0.5, 11, 100)
axes.plot(grid, [exact_variance(b) for b in grid], color="#666666", label="exact")
axes.plot(list(measured), list(measured.values()), "o", color=COLOURS["REINFORCE"],
          markersize=8, label=f"measured on {N:,} samples")
axes.annotate("no baseline", (0, measured[0.0]), (0.5, measured[0.0]), va="center")
axes.annotate(f"b = J = {J:.2f}", (J.item(), measured[J.item()]), (J.item(), 8),
              ha="center", arrowprops={"arrowstyle": "-", "color": "#666666"})
axes.set(title=f"Subtracting the mean reward divides the variance by {ratio:.0f}",
         xlabel="baseline b (rating points)", ylabel="total variance of one estimate",
         ylim=(0, None))
axes.spines[["top", "right"]].set_visible(False)
axes.legend(frameon=False, loc="upper right")
plt.show()

# %% [markdown]
# A variance $k$ times smaller is worth $k$ times as many samples: the mean of $N$
# estimates has variance $\mathrm{Var}/N$. Note too that a *bad* baseline makes things
# worse: far to the right the parabola rises above its value at zero.

# %% [markdown]
# ## 7 · Reward to go against the whole episode's return
#
# Step (9) promised that leaving out the past costs nothing and saves noise. To see it we
# need episodes of more than one step. Let the cook serve ten times in a row: an episode
# of ten servings, the same three recipes each time, $\gamma = 1$.
#
# A batch of episodes is stored end to end in one long tensor, with a flag at the last
# step of each. That is how real training code stores it too, and it has a trap.
#
# ### 01.6 · `reward_to_go` — difficulty 3 of 5, 10 minutes, 3 points
#
# <details>
# <summary>Hint 1: what the flag does</summary>
#
# It is the walk backwards of 01.1 over the whole tensor. But where `ends[t]` is true,
# nothing of what lies after $t$ belongs to $t$.
#
# </details>
#
# <details>
# <summary>Hint 2: in which order</summary>
#
# At each step, first ask for the flag and clear the total if it is set; then add the
# step's own reward. (Or cut the tensor into episodes and use `discounted_returns`.) The
# last episode may be unfinished: its flag is missing, its rewards still count.
#
# </details>
#
# <!-- answer: reward_to_go -->


# %%
def reward_to_go(rewards, ends, gamma):
    """Discounted return from each step to the end of its own episode.

    G_t = r_t + γ·G_{t+1}, where G_{t+1} = 0 if step t was the last of its episode or of
    the whole tensor.

    Args:
        rewards: of several episodes, one after the other, shape (N,).
        ends: True at the last step of each episode, bool tensor of shape (N,). The very
            last episode may be unfinished: then its last entry is False.
        gamma: discount factor.

    Returns:
        Returns, shape (N,); ``rewards`` itself stays as it was.

    Example: rewards [1, 2, 4, 8], ends [F, T, F, T], γ = 0.5 give [2, 2, 8, 8].
    """
    # SOLUTION
    returns, total = [], 0.0
    steps = list(zip(rewards.tolist(), ends.tolist(), strict=True))
    for reward, last in reversed(steps):
        total = reward + gamma * (0.0 if last else total)
        returns.append(total)
    return torch.tensor(returns[::-1])
    # END SOLUTION


# %%
reward_to_go = check(reward_to_go)

# %% [markdown]
# Now four ways to weigh the same actions: by the whole episode's return or by the
# reward to go, each without and with a baseline (what an episode, or its rest, is worth
# on average). The exact gradient is ten times that of one serving.

# %%
EPISODES, T = 20_000, 10
actions, ratings = play_bandit(EPISODES * T, seed=2)
ends = (torch.arange(EPISODES * T) + 1) % T == 0
to_go = reward_to_go(ratings, ends, gamma=1.0).reshape(EPISODES, T)
whole = to_go[:, :1].expand(EPISODES, T)  # the first step's is the whole one
remaining = J * torch.arange(T, 0, -1)  # expected reward to go, (T,)
scores = (torch.nn.functional.one_hot(actions, 3) - probs).reshape(EPISODES, T, 3)

weights = {
    "whole episode": whole,
    "reward to go": to_go,
    "whole episode, baseline": whole - J * T,
    "reward to go, baseline": to_go - remaining,
}

# %%
variances = {}
exact_text = "         ".join(f"{10 * x:+.2f}" for x in exact_gradient)
print("the gradient's entry for  recipe 0      recipe 1      recipe 2     furthest")
print(f"exact                     {exact_text}       off (s.e.)  variance")
for name, weight in weights.items():
    estimates = (weight.unsqueeze(-1) * scores).sum(dim=1)  # one row an episode
    variances[name] = estimates.var(dim=0).sum().item()
    mean, error = estimates.mean(0), estimates.std(0) / EPISODES**0.5
    off = ((mean - 10 * exact_gradient) / error).abs().max()
    text = "  ".join(f"{m:+.2f} ± {e:.2f}" for m, e in zip(mean, error, strict=True))
    print(f"{name:24s}   {text}   {off:8.1f}    {variances[name]:8.0f}")

# %%
figure, axes = plt.subplots(figsize=(7, 2.8), layout="constrained")
greys = ["#666666", "#666666", COLOURS["REINFORCE"], COLOURS["REINFORCE"]]
bars = axes.barh(list(variances), list(variances.values()), color=greys)
axes.bar_label(bars, fmt=" {:,.0f}")
saved = variances["whole episode"] / variances["reward to go"]
both = variances["whole episode"] / variances["reward to go, baseline"]
axes.set(title=f"Reward to go divides the variance by {saved:.1f}, "
               f"with a baseline by {both:.0f}",
         xlabel="total variance of one episode's estimate (logarithmic)", xscale="log",
         xlim=(10, 80_000))
axes.invert_yaxis()
axes.spines[["top", "right"]].set_visible(False)
plt.show()

# %% [markdown]
# The number after ± is the standard error. No estimate is off by more than two or three
# of those, and among twelve numbers one at two or so is to be expected. So none of the
# four is *wrong*. They differ in how many episodes you must play to see the gradient
# through the noise.

# %% [markdown]
# ## 8 · Bug hunt: the episode that turned the policy into NaN
#
# A popular recipe goes one step further: subtract the mean of the returns *and* divide by
# their standard deviation, so that the size of a step does not depend on whether rewards
# are counted in points or in thousands of points. Here is the code as one often finds
# it. On long episodes it does its work. Then someone tries it on episodes of one step.


# %%
def normalise_as_found(returns):
    return (returns - returns.mean()) / (returns.std() + 1e-8)


def train_on_bandit(weigh, servings, updates=150, seed=0):
    """REINFORCE on the three recipes, ``servings`` samples an update; returns π."""
    leaf = torch.zeros(3, requires_grad=True)
    optimizer = torch.optim.SGD([leaf], lr=0.1)
    g = torch.Generator().manual_seed(seed)
    for _ in range(updates):
        policy = leaf.detach().softmax(-1)
        actions = policy.nan_to_num(1.0).multinomial(servings, True, generator=g)
        ratings = mean_rating[actions] + NOISE * torch.randn(servings, generator=g)
        log_probs = action_log_probs(leaf.expand(servings, 3), actions)
        loss = policy_gradient_loss(log_probs, weigh(ratings))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return leaf.detach().softmax(-1)


with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # PyTorch does warn; who reads warnings?
    for servings in (8, 1):
        final = train_on_bandit(normalise_as_found, servings)
        print(f"{servings} servings an update: policy", [f"{p:.3f}" for p in final])

# %% [markdown]
# **Find it.** Before you read on: which line makes the first NaN? Follow the value
# through. Run the next cell and look at each intermediate.

# %%
one_return = torch.tensor([5.3])
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    print("mean              ", one_return.mean())
    print("return − mean     ", one_return - one_return.mean())
    print("std()             ", one_return.std())
    print("std(correction=0) ", one_return.std(correction=0))
    print("as found          ", normalise_as_found(one_return))

# %% [markdown]
# **Understand it.** `std()` is the *sample* deviation, which divides by $N - 1$; for
# $N = 1$ that is $0/0$, and adding $10^{-8}$ to NaN gives NaN. One NaN in the loss makes
# every gradient NaN, one optimizer step makes every parameter NaN, and from then on
# nothing brings it back. No exception is raised anywhere.
#
# We do not want an unbiased estimate of a spread here, just a scale. The *population*
# deviation divides by $N$ and is 0 for a single return. So is the numerator; the epsilon
# keeps 0/0 away.
#
# ### 01.7 · `normalise` — difficulty 2 of 5, 5 minutes, 1 point
#
# **Mend it.** Mind the other 0/0 as well: a batch whose returns are all equal.
#
# <details>
# <summary>Hint 1: which deviation</summary>
#
# `values.std(correction=0)` divides by $N$. (Or write it out: the square root of the mean
# of the squared centred values.)
#
# </details>
#
# <details>
# <summary>Hint 2: where eps goes</summary>
#
# Below the fraction bar, added to the deviation: `centred / (deviation + eps)`.
#
# </details>
#
# <!-- answer: normalise -->


# %%
def normalise(values, eps=1e-8):
    """Zero mean and unit deviation: (x − mean) / (population deviation + eps).

    Args:
        values: returns of a batch, shape (N,), N ≥ 1.
        eps: keeps equal returns, and a single one, finite.

    Returns:
        Shape (N,), zeros where N = 1 or all values are equal; ``values`` unchanged.

    Example: [1, 3] gives [−1, 1], and [7] gives [0].
    """
    # SOLUTION
    centred = values - values.mean()
    deviation = centred.square().mean().sqrt()  # divides by N, not by N − 1
    return centred / (deviation + eps)
    # END SOLUTION


# %%
normalise = check(normalise)

# %%
for servings in (8, 1):
    final = train_on_bandit(normalise, servings)
    print(f"{servings} servings an update: policy", [f"{p:.3f}" for p in final])

# %% [markdown]
# With eight servings an update the best recipe wins. With one, the policy is finite now,
# and it has learned *nothing*: it still stands where it began. One return alone, less
# its own mean, is always 0. The crash is mended; that you cannot tell better from worse
# in a batch of one is no bug, it is a fact. (This is also why `train_reinforce` below
# normalises over the whole batch of episodes and not within each.)

# %% [markdown]
# ## 9 · CartPole with your code
#
# A pole stands on a cart; push left or right so that it does not fall (Barto, Sutton &
# Anderson 1983). Reward 1 for every step, at most 500 steps; Gymnasium calls
# `CartPole-v1` solved at an average of 475. All rewards are positive: a case for a
# baseline.
#
# The package's `train_reinforce` is the loop: it makes the environments and the network
# (two hidden layers of 64), plays batches of whole episodes, runs Adam, and now and then
# evaluates the policy greedily on 20 episodes. The *algorithm*, what the numbers mean and
# what is optimised, is handed in. Whose is it?


# %%
def whose(function):
    return "yours" if function.__module__ == "__main__" else "the course's"


for role, function in (
    ("returns=", discounted_returns),
    ("loss=", policy_gradient_loss),
    ("baseline=", normalise),
):
    print(f"{role:10s} {function.__name__:22s} {whose(function)}")
print("           action_log_probs       the course's (it lives inside the loop)")

# %% [markdown]
# Three ways to weigh the actions: the returns as they are, the returns less their mean
# over the batch, and the returns normalised. Small batches of four episodes, so that
# noise matters; five seeds each, because one seed shows luck.

# %%
SEEDS, MAX_STEPS = range(5), 30_000
BASELINES = {
    "no baseline": policy_gradient.no_baseline,
    "mean subtracted": policy_gradient.subtract_mean,
    "normalised": normalise,
}


def train(baseline, seed):
    """Environment steps and greedy returns of one run."""
    _, history = policy_gradient.train_reinforce(
        "CartPole-v1", seed=seed, max_steps=MAX_STEPS, num_envs=4, evaluate_every=2_000,
        returns=discounted_returns, loss=policy_gradient_loss, baseline=baseline,
        show_progress=False,
    )
    return points(history, "steps", "greedy_return")


runs = {name: [] for name in BASELINES}
for name, seed in tqdm(list(itertools.product(BASELINES, SEEDS)), desc="CartPole"):
    runs[name].append(train(BASELINES[name], seed))

# %%
grid = np.arange(2_500, MAX_STEPS + 1, 500)
curves = {
    name: np.array([np.interp(grid, steps, returns) for steps, returns in seeds])
    for name, seeds in runs.items()
}  # each (seeds, grid)
middle = {name: np.median(curve.mean(axis=1)) for name, curve in curves.items()}
print("greedy return, seed by seed: averaged over training, and at the end")
for name, curve in curves.items():
    mean = "".join(f"{value:5.0f}" for value in curve.mean(axis=1))
    end = "".join(f"{value:5.0f}" for value in curve[:, -1])
    print(f"{name:16s} {mean} (median {middle[name]:.0f})   {end} "
          f"(median {np.median(curve[:, -1]):.0f})")

# %%
figure, axes = plt.subplots(figsize=(7.5, 4.8), layout="constrained")
palette = ["#666666", COLOURS["REINFORCE"], COLOURS["PPO"]]
for (name, curve), colour in zip(curves.items(), palette, strict=True):
    axes.plot(grid, curve.T, color=colour, linewidth=0.8, alpha=0.35)
    axes.plot(grid, np.median(curve, axis=0), color=colour, linewidth=2.4,
              label=f"{name} (median of {len(curve)} seeds)")
axes.axhline(475, color="black", linestyle="--", linewidth=1, label="solved: 475")
axes.set(
    title=f"Averaged over training, the median run gets {middle['no baseline']:.0f} "
          f"without a baseline,\n{middle['mean subtracted']:.0f} with the mean "
          f"subtracted and {middle['normalised']:.0f} with returns normalised",
    xlabel="environment steps", ylabel="greedy return (reward per episode)",
    ylim=(0, 520),
)
axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
axes.spines[["top", "right"]].set_visible(False)
axes.legend(frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=2)
plt.show()

# %% [markdown]
# In the run that the solution shows, the baseline decides. Without one, the median run
# averages about two thirds of what it averages with one, and two of the five seeds have
# not learned by the end. Subtracting the mean is what helps; dividing by the
# deviation as well adds little here. One reason: Adam divides the gradient by its own
# typical size anyway (Kingma & Ba 2015, §2.1): the weights' scale hardly matters.
#
# Look at the thin lines too. Even with a baseline some runs reach 500 and fall again.
# A step that was too large, and the next batch comes from a worse policy? Lesson 02 takes
# up that suspicion.

# %% [markdown]
# ## 10 · To discuss
#
# 1. In this experiment every update sees four episodes. Set `num_envs=16` and run it
#    again. What is left of the difference, and why? What does that say about baselines
#    when samples are cheap, and when they are dear (a language model's answers)?
# 2. The bandit's variance fell by the factor in its figure's title. Add 10 to all
#    ratings. What happens to the variance without a baseline, with one, and to the
#    exact gradient?
# 3. The batch's mean contains each action's own return, so it is *not* independent of the
#    action, and the proof of section 6 does not quite apply. For a batch of $N$ one-step
#    episodes, show that the expected gradient shrinks by the factor $1 - 1/N$ and keeps
#    its direction. Which mean would avoid it? (Lesson 10 does.)
# 4. Dividing by the standard deviation makes every batch's step the same size. Is that
#    good when all episodes went almost equally well?
# 5. A thumbs-up for a whole conversation of twenty turns: which of these tools help to
#    find out which turn earned it, and which do not?
# 6. Our cook walks into walls to stay clear of a spill. Can you think of a policy that is
#    best by its reward, and yet not at all what its designer wanted?
#
# ## What to read next
#
# - R. S. Sutton & A. G. Barto, *Reinforcement Learning: An Introduction*, 2nd ed. 2018:
#   chapter 3 (returns, values), 4 (policy iteration), 13 (policy gradients).
# - R. J. Williams, *Simple statistical gradient-following algorithms for connectionist
#   reinforcement learning*, Machine Learning 8, 1992: REINFORCE, with the baseline.
# - J. Peters & S. Schaal, *Reinforcement learning of motor skills with policy gradients*,
#   Neural Networks 21, 2008: the estimators of section 4 side by side.
# - E. Greensmith, P. Bartlett & J. Baxter, *Variance reduction techniques for gradient
#   estimates in reinforcement learning*, JMLR 5, 2004: which baseline is best.
# - C. Nota & P. Thomas, *Is the policy gradient a gradient?*, AAMAS 2020: what is lost
#   with the factor $\gamma^t$.
# - Also cited: J. Baxter & P. Bartlett, *Infinite-horizon policy-gradient estimation*,
#   JAIR 15, 2001; A. Barto, R. Sutton & C. Anderson, *Neuronlike adaptive elements that
#   can solve difficult learning control problems*, IEEE Transactions SMC 13, 1983;
#   R. Howard, *Dynamic Programming and Markov Processes*, 1960; D. Kingma & J. Ba, *Adam:
#   a method for stochastic optimization*, ICLR 2015.
# - The package's `rlhf_minimal/policy_gradient.py`: this lesson in 250 lines.
#
# **Next: lesson 02.** REINFORCE throws its data away after one step, because the policy
# that made them is gone. Proximal policy optimisation uses them several times, and has
# to pay attention to how far it goes.

# %%
print(f"{time.process_time():.0f} seconds of CPU time in this notebook so far")
