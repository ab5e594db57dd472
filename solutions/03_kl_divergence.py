# %% [markdown]
# # 03 · KL divergence
#
# *Why this matters: "stay close to the model you came from" is half of RLHF, DPO and
# GRPO. The KL divergence is how closeness is counted, and its estimates are where
# published code goes wrong without anyone noticing.*
#
# **You will be able to**
#
# - work out a KL divergence by hand, and say when it is zero, lopsided or infinite;
# - prove that it is never negative;
# - choose between its two directions, and say what each does to a model;
# - estimate it from samples in three ways, and say how far each can be trusted;
# - tell which of the three may be differentiated, and what the others do instead;
# - measure it between language models, token by token, and hold it at a target.
#
# **It assumes** probabilities, expected values, logarithms, PyTorch with `backward()`,
# and the log-derivative trick of lesson 01 (section 4). Lesson 02 is not needed.
#
# | | |
# |---|---|
# | reading | 28 minutes |
# | coding | 34 minutes, six exercises, 13 points |
# | computing | about 20 seconds on one CPU core; the last cell says how much it was |
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
import math
import time

import matplotlib.pyplot as plt
import numpy as np
import torch
import torch.nn.functional as F

from autograder import check
from rlhf_minimal.exact import all_answers, optimal_policy, prefix_rows
from rlhf_minimal.kl import entropy


def whose(*names):
    """Says with whose functions the next experiment runs."""
    for name in names:
        own = globals()[name].__module__ == "__main__"
        print(f"{name:16s} {'yours' if own else 'ours'}")


# %% [markdown]
# ## 1 · How far is P from Q?
#
# Two cooks write recipes. The next word is "salt", "sugar" or "pepper". The cook you
# have trained says them with probabilities $P = [0.2,\ 0.5,\ 0.3]$, the cook she was
# copied from with $Q = [0.1,\ 0.4,\ 0.5]$. You hear one word. How much does it tell you
# that it was $P$ who spoke?
#
# If the word is $x$, the evidence is the **log-ratio** $\log \frac{P(x)}{Q(x)}$: positive
# when $P$ says it more often, negative when $Q$ does. The **Kullback–Leibler divergence**
# is the evidence that a word brings *on average, when it is $P$ who speaks* (Kullback &
# Leibler 1951 call it the mean information for discrimination):
#
# $$\mathrm{KL}(P \,\|\, Q) = \mathbb{E}_{x \sim P}\left[\log \frac{P(x)}{Q(x)}\right]
#   = \sum_x P(x) \,\log \frac{P(x)}{Q(x)} .$$
#
# With natural logarithms it is counted in **nats** (with base 2 in bits; one nat is
# $1/\ln 2 \approx 1.44$ bits). By hand:
#
# | word | P | Q | P/Q | log(P/Q) | P · log(P/Q) |
# |---|---:|---:|---:|---:|---:|
# | salt | 0.2 | 0.1 | 2 | 0.6931 | 0.13863 |
# | sugar | 0.5 | 0.4 | 1.25 | 0.2231 | 0.11157 |
# | pepper | 0.3 | 0.5 | 0.6 | −0.5108 | −0.15325 |
# | **sum** | 1 | 1 | | | **0.0969535** |
#
# Weigh each log-ratio with $P$ (0.2 · 0.6931 = 0.13863, and so on), and add up. A tenth of
# a nat a word: for odds of 100 to 1 you need $\log 100 = 4.6$ nats, and so must listen to
# some 47 words. Note the third row: a single term may be negative. The sum, as you will
# see proved, never is.
#
# **Zeros.** If $P(x) = 0$, the word never comes up and its term is 0; that is also the
# limit, $t \log t \to 0$. If $Q(x) = 0$ and $P(x) > 0$, a single such word proves that it
# was not $Q$: the divergence is **infinite** (Cover & Thomas 2006, section 2.3, fix the
# same conventions).

# %% [markdown]
# ### 03.1 · `kl_divergence` — difficulty 2 of 5, 6 minutes, 2 points
#
# <details>
# <summary>Hint 1: what to weigh, and with what</summary>
#
# The first argument does both: it weighs the terms and stands above the fraction bar.
# Write $\log(p/q)$ as $\log p - \log q$ and you have two sums, $\sum p \log p$ and
# $\sum p \log q$.
#
# </details>
#
# <details>
# <summary>Hint 2: zeros without an if</summary>
#
# `torch.special.xlogy(a, b)` is `a * b.log()`, except that it gives 0 wherever `a` is 0.
# Use it for both sums. Do not add a small number anywhere: where `q` is 0 and `p` is
# not, the answer *is* infinity.
#
# </details>
#
# <!-- answer: kl_divergence -->


# %%
def kl_divergence(p, q, dim=-1):
    """KL(p‖q) = Σ p·log(p/q), in nats.

    Args:
        p, q: probabilities, two tensors of one shape, each summing to 1 along ``dim``.
        dim: the dimension along which the outcomes run.

    Returns:
        The shape of ``p`` without ``dim``. Outcomes with p = 0 add 0, whatever q is;
        where q = 0 and p > 0 the divergence is ``inf``.

    Example: p = [0.2, 0.5, 0.3] and q = [0.1, 0.4, 0.5] give 0.0970.
    """
    # SOLUTION
    p_log_p = torch.special.xlogy(p, p)  # p·log p, and 0 where p is 0
    p_log_q = torch.special.xlogy(p, q)  # p·log q, 0 where p is 0, −inf where only q is
    return (p_log_p - p_log_q).sum(dim)
    # END SOLUTION


# %%
kl_divergence = check(kl_divergence)

# %% [markdown]
# **Predict** before you run the next cell. The pepper-less cook says "salt" and "sugar"
# only. Which of the four numbers is infinite? Are the first two equal?

# %%
P = torch.tensor([0.2, 0.5, 0.3])
Q = torch.tensor([0.1, 0.4, 0.5])
PEPPER_LESS = torch.tensor([0.5, 0.5, 0.0])

print(f"KL(P‖Q)             {kl_divergence(P, Q):.7f}")
print(f"KL(Q‖P)             {kl_divergence(Q, P):.7f}")
print(f"KL(pepper-less ‖ P) {kl_divergence(PEPPER_LESS, P):.7f}")
print(f"KL(P ‖ pepper-less) {kl_divergence(P, PEPPER_LESS):.7f}")

# %%
BLUE, ORANGE, GREEN, GREY = "#0072B2", "#E69F00", "#009E73", "#666666"
SKY, RED = "#56B4E9", "#D55E00"

words = ["salt", "sugar", "pepper"]
terms = P * (P / Q).log()
figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.3), layout="constrained")
places = np.arange(3)
left.bar(places - 0.2, P, 0.4, color=BLUE, label="P, the trained cook")
left.bar(places + 0.2, Q, 0.4, color=SKY, label="Q, the cook she was copied from")
left.set(title="Two distributions over the next word", ylabel="probability",
         xticks=places, xticklabels=words, ylim=(0, 0.75))
left.legend(frameon=False, loc="upper left")
bottoms = [0, terms[0], terms[0] + terms[1], 0]
heights = [*terms.tolist(), kl_divergence(P, Q).item()]
colours = [RED if height < 0 else GREEN for height in heights[:3]] + [GREY]
bars = right.bar(range(4), heights, bottom=bottoms, color=colours)
right.bar_label(bars, [f"{height:+.4f}" for height in heights], padding=3)
right.axhline(0, color="black", linewidth=0.8)
right.set(title="One term is negative; the sum is 0.0970 nats",
          ylabel="P·log(P/Q), added up from left (nats)", xticks=range(4),
          xticklabels=[*words, "KL(P‖Q)"], ylim=(0, 0.3))
for axes in (left, right):
    axes.spines[["top", "right"]].set_visible(False)
plt.show()

# %% [markdown]
# $\mathrm{KL}(P\|Q)$ and $\mathrm{KL}(Q\|P)$ are different numbers, though close ones:
# when two distributions are near each other, both are about
# $\frac12\sum (P-Q)^2/Q$, and the asymmetry is in what comes after. The last two lines
# show how lopsided it can get. A cook who never says "pepper" is a modest 0.46 nats
# away from $P$; the other way round it is infinite, since $P$ will sooner or later
# say what the pepper-less cook cannot.
#
# That is no curiosity. Sampling with top-k or top-p gives a distribution with zeros.
# Against *it*, the full model's divergence is infinite.

# %% [markdown]
# ## 2 · Never negative
#
# **Jensen's inequality**: for a concave function such as the logarithm,
# $\mathbb{E}[\log Y] \le \log \mathbb{E}[Y]$, with equality only if $Y$ is constant. Take
# $Y = Q(x)/P(x)$ with $x \sim P$, and sum over the $x$ with $P(x) > 0$ only:
#
# $$\begin{aligned}
# -\mathrm{KL}(P\|Q) &= \sum_{x:\,P(x)>0} P(x) \log\frac{Q(x)}{P(x)}
#    && \text{(the sign turns the fraction round)} \\
#  &\le \log \sum_{x:\,P(x)>0} P(x)\,\frac{Q(x)}{P(x)}
#    && \text{(Jensen)} \\
#  &= \log \sum_{x:\,P(x)>0} Q(x) && \text{($P$ cancels)} \\
#  &\le \log 1 = 0 . && \text{($Q$ sums to at most 1 there)}
# \end{aligned}$$
#
# So $\mathrm{KL}(P\|Q) \ge 0$. Zero needs equality in both steps: $Q/P$ is constant where
# $P > 0$, and $Q$ has nothing elsewhere. Then the constant is 1, and $P = Q$ (Cover &
# Thomas 2006, Theorem 2.6.3).
#
# Never negative, zero only when equal: like a distance. But it is not symmetric, and
# keeps no triangle inequality. Do not call it one.
#
# **Entropy is a KL in disguise.** Against the uniform distribution over $n$ outcomes
#
# $$\mathrm{KL}(P\,\|\,U) = \sum_x P(x)\log\frac{P(x)}{1/n}
#   = \log n - H(P), \qquad H(P) = -\sum_x P(x)\log P(x),$$
#
# so $H(P) \le \log n$, and the *entropy bonus* that keeps a policy exploring (lesson 02)
# is a KL penalty whose reference knows nothing. RLHF puts a language model in its place.

# %%
print("temperature    entropy    log n − KL(P‖U)")
for temperature in (0.25, 1.0, 4.0, 100.0):
    logits = P.log() / temperature
    through_kl = math.log(3) - kl_divergence(logits.softmax(-1), torch.ones(3) / 3)
    print(f"{temperature:11.2f}    {entropy(logits):.5f}    {through_kl:.5f}")
print(f"the most that three words allow: log 3 = {math.log(3):.5f}")

# %% [markdown]
# ## 3 · From logits
#
# A network gives logits, and the way through probabilities is short and full of holes:

# %%
sure, opposite = torch.tensor([200.0, 0.0]), torch.tensor([0.0, 200.0])
p, q = sure.softmax(-1), opposite.softmax(-1)
print("the probabilities in float32:", p.tolist(), q.tolist())
print("p·log(p/q), summed:          ", (p * (p / q).log()).sum().item())
print("with xlogy:                  ",
      (torch.special.xlogy(p, p) - torch.special.xlogy(p, q)).sum().item())

# %% [markdown]
# Neither is right. $p$ is as good as sure of the first outcome, to which $q$ gives
# $e^{-200}$: a divergence of 200 nats, large and finite. But $e^{-200}$ rounds to 0 in
# float32, and what was lost there no logarithm brings back. The way out is never to leave
# log space: `log_softmax` computes $z_i - \log\sum_j e^{z_j}$ and subtracts the largest
# $z$ first, so that nothing overflows and nothing is lost.
#
# One hole remains. Forbidden tokens are given a logit of $-\infty$; there $p = 0$, and
# $0 \cdot (\log p - \log q)$ is $0 \cdot (-\infty)$, which is NaN.
#
# ### 03.2 · `kl_from_logits` — difficulty 3 of 5, 6 minutes, 2 points
#
# <details>
# <summary>Hint 1: three steps</summary>
#
# Both log-probabilities with `log_softmax(dim)`; `p` as the exponential of the first;
# then $\sum p\,(\log p - \log q)$ along `dim`.
#
# </details>
#
# <details>
# <summary>Hint 2: where p is 0</summary>
#
# Replace the *difference* by 0 where `p == 0` (`masked_fill` or `torch.where`), and
# multiply by `p` afterwards. The other order gives the right value and a NaN gradient:
# autograd differentiates the product that you then throw away, and $0 \cdot \infty$ is
# NaN there too.
#
# </details>
#
# <!-- answer: kl_from_logits -->


# %%
def kl_from_logits(p_logits, q_logits, dim=-1):
    """KL(p‖q) in nats, where p = softmax(p_logits) and q = softmax(q_logits).

    Args:
        p_logits, q_logits: two tensors of one shape. Entries may be large; −inf means
            a probability of 0, and such an outcome of p adds 0 (with gradient 0).
        dim: the dimension along which the outcomes run.

    Returns:
        The shape of ``p_logits`` without ``dim``, with gradient to both.

    Example: [200, 0] and [0, 200] give 200.
    """
    # SOLUTION
    log_p = p_logits.log_softmax(dim)
    log_q = q_logits.log_softmax(dim)
    p = log_p.exp()
    log_ratio = (log_p - log_q).masked_fill(p == 0, 0.0)  # first this, then the product
    return (p * log_ratio).sum(dim)
    # END SOLUTION


# %%
kl_from_logits = check(kl_from_logits)

# %%
print("sure against opposite:", kl_from_logits(sure, opposite).item())
print("P against Q:          ", kl_from_logits(P.log() + 100, Q.log() - 50).item())
print("F.kl_div(log q, p):   ", F.kl_div(Q.log(), P, reduction="sum").item(),
      "(log q first, p second, and ask for the sum)")

# %% [markdown]
# ## 4 · Two directions: covering and seeking
#
# A target $T$ with two bumps, a model $M$ with one: a single Gaussian. It cannot be
# right. *How* it is wrong depends on the direction in which you count:
#
# - $\mathrm{KL}(T\|M)$, **forward**: the target speaks. Where $T$ has mass, $M$ must not
#   be small, or the log-ratio explodes. Fitting a model to *data* does this: maximising
#   $\mathbb{E}_T[\log M]$ is minimising $\mathrm{KL}(T\|M)$, as $T$'s own entropy is
#   fixed. Pretraining and supervised fine-tuning are forward.
# - $\mathrm{KL}(M\|T)$, **reverse**: the model speaks. Where $T$ is small, $M$ must not
#   go; what $M$ leaves out costs nothing. The penalty of RLHF,
#   $\mathrm{KL}(\pi\|\pi_{\mathrm{ref}})$, is reverse.
#
# Minka (2005) calls them inclusive and exclusive.
#
# **Predict.** The bumps stand at −2 (65% of the mass) and at 2.5 (35%). Where will the
# forward fit put its mean? Where the reverse fit? Does the start matter?
#
# We minimise both by gradient descent (Adam) from 18 starts each, nine means with a
# narrow and a wide Gaussian, all at once. The axis is cut into 601 points, so that your
# `kl_from_logits` can do the counting: log-densities are logits.

# %%
whose("kl_from_logits")
x = torch.linspace(-12, 12, 601)


def log_gaussian(mean, log_std):
    """Log-density on the points of the axis, up to a constant."""
    return -0.5 * ((x - mean) / log_std.exp()) ** 2 - log_std


weight = torch.tensor([0.65, 0.35])
mean, std = torch.tensor([-2.0, 2.5]), torch.tensor([0.6, 0.8])
bumps = log_gaussian(mean[:, None], std.log()[:, None]) + weight.log()[:, None]
target = bumps.logsumexp(0)  # (601,)

starts = [(m, s) for m in (-5, -3, -1, 0, 0.5, 1, 2, 3, 5) for s in (0.5, 3.0)]


def fit(direction, steps=2000):
    """Means, deviations and divergences reached from every start, (18,) each."""
    start = torch.tensor(starts)
    means = start[:, :1].clone().requires_grad_()
    log_stds = start[:, 1:].log().requires_grad_()
    optimizer = torch.optim.Adam([means, log_stds], lr=0.05)
    for _ in range(steps):
        model = log_gaussian(means, log_stds)  # (18, 601)
        wanted = target.expand_as(model)
        pair = (wanted, model) if direction == "forward" else (model, wanted)
        kl = kl_from_logits(*pair)
        optimizer.zero_grad()
        kl.sum().backward()
        optimizer.step()
    return means.detach()[:, 0], log_stds.detach().exp()[:, 0], kl.detach()


fits = {direction: fit(direction) for direction in ("forward", "reverse")}

# %%
print("direction   mean   deviation   KL (nats)   starts that end there")
ends = {}
for direction, (means, stds, kls) in fits.items():
    kinds = [(round(m.item(), 1), round(s.item(), 1))
             for m, s in zip(means, stds, strict=True)]
    for kind in sorted(set(kinds), key=lambda k: kls[kinds.index(k)]):
        i = kinds.index(kind)
        ends.setdefault(direction, []).append((means[i], stds[i], kls[i].item()))
        print(f"{direction}   {means[i]:6.3f}   {stds[i]:9.3f}   {kls[i]:9.3f}   "
              f"{kinds.count(kind):2d} of {len(starts)}")

exact_mean = (weight * mean).sum()
exact_std = ((weight * (std**2 + mean**2)).sum() - exact_mean**2).sqrt()
print(f"\nthe target's own mean {exact_mean:.3f} and deviation {exact_std:.3f}")
print(f"−log 0.65 = {-math.log(0.65):.3f}, −log 0.35 = {-math.log(0.35):.3f}")

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(10.5, 3.8), layout="constrained",
                                     width_ratios=[1.5, 1])


def density(log_density):
    return log_density.softmax(-1) / (x[1] - x[0])


left.fill_between(x, density(target), color="#DDDDDD", label="target T")
styles = {"forward": (RED, ["-"]), "reverse": (BLUE, ["-", "--", ":"])}
for direction, (colour, dashes) in styles.items():
    for (m, s, kl), dash in zip(ends[direction], dashes, strict=False):
        left.plot(x, density(log_gaussian(m, s.log())), dash, color=colour, linewidth=2,
                  label=f"{direction}, KL = {kl:.2f}")
left.set(title="Forward covers both bumps; reverse seeks one",
         xlabel="x", ylabel="density", xlim=(-7, 7), ylim=(0, 0.95))
left.legend(frameon=False, loc="upper right", fontsize=9)
for direction, marker in (("forward", "s"), ("reverse", "o")):
    means, _, kls = fits[direction]
    for i, (m, s) in enumerate(starts):
        right.plot(m + (0.1 if s > 1 else -0.1), means[i], marker, markersize=7,
                   color=styles[direction][0],
                   markerfacecolor="white" if s > 1 else styles[direction][0])
for height, side, text in ((-2, 3, "left bump"), (2.5, -3, "right bump")):
    right.axhline(height, color="#BBBBBB", linewidth=1, zorder=0)
    right.text(side, height + 0.1, text, color=GREY, fontsize=9, ha="center")
right.set(title="Forward always ends in one place,\nreverse where its start lets it", 
          ylim=(-2.4, 3.1), xlabel="mean at the start (open: wide, filled: narrow)",
          ylabel="mean at the end")
for axes in (left, right):
    axes.spines[["top", "right"]].set_visible(False)
plt.show()

# %% [markdown]
# **Forward** ends at the target's own mean and deviation from every start. (Set the
# derivatives of $\mathbb{E}_T[\log M]$ to zero: a Gaussian *matches moments*.) It puts
# much of its mass in the valley, where the target has next to none.
#
# **Reverse** has three resting places. The best sits on the larger bump and costs
# $0.430 \approx -\log 0.65$: where $M$ lives, $T$ is just $M$ with 65% of the mass. The
# smaller bump costs about $-\log 0.35$. The third is broad, neither here nor there,
# the worst of the three, and still a local minimum: most wide starts between the bumps
# get stuck in it. "Reverse KL seeks modes" is a tendency of
# its optimum, no promise about what gradient descent finds.
#
# For RLHF this means: the penalty $\mathrm{KL}(\pi\|\pi_{\mathrm{ref}})$ does not mind
# when $\pi$ stops saying most of what $\pi_{\mathrm{ref}}$ could say. Less variety after
# RLHF is what the objective allows.

# %% [markdown]
# ## 5 · Estimating it from samples
#
# Nobody can sum over all answers of a language model. What one has is answers sampled
# from the policy, with the log-probability that the policy and the reference give each.
# The course's convention, everywhere:
#
# $$l = \log\pi(x) - \log\pi_{\mathrm{ref}}(x), \qquad x \sim \pi .$$
#
# Schulman (2020) compares three estimates of $\mathrm{KL}(\pi\|\pi_{\mathrm{ref}})$, one
# a sample:
#
# $$k_1 = l, \qquad k_2 = \tfrac12\, l^2, \qquad k_3 = e^{-l} - 1 + l .$$
#
# **$k_1$** is the definition, so it is unbiased. But single values are often negative,
# though what they estimate never is.
#
# **$k_2$** says how far apart the two are, whatever the sign. It is biased; when they are
# near each other, not by much.
#
# **$k_3$** is $k_1$ plus something whose mean is known to be zero:
# $\mathbb{E}_\pi[e^{-l}] = \sum_x \pi(x)\frac{\pi_{\mathrm{ref}}(x)}{\pi(x)} = 1$ (as long
# as $\pi$ can say all that $\pi_{\mathrm{ref}}$ can). So it is unbiased too. And since
# $e^{-l} \ge 1 - l$ for every $l$, it is never negative. Adding a term of mean zero to
# lower the variance is called a *control variate*; a baseline (lesson 01) is one.
#
# Careful with the blog post: it samples from $q$, estimates $\mathrm{KL}(q\|p)$, and its
# ratio $r$ is $p/q$. So its $\log r$ is our $-l$. Section 9 shows what happens when that
# is overlooked.

# %% [markdown]
# ### 03.3 · `kl_estimates` — difficulty 1 of 5, 5 minutes, 2 points
#
# <details>
# <summary>Hint 1: one line first</summary>
#
# Compute the log-ratio once; which of the two log-probabilities comes first decides
# everything. The samples come from `p`.
#
# </details>
#
# <details>
# <summary>Hint 2: small log-ratios</summary>
#
# For tiny $l$, `exp(-l) - 1` loses digits; `torch.expm1(-l)` is the same without the
# loss. Return one value a sample, not means.
#
# </details>
#
# <!-- answer: kl_estimates -->


# %%
def kl_estimates(log_p, log_q):
    """Three estimates of KL(p‖q) at each sample of p: l, l²/2 and exp(−l) − 1 + l.

    Args:
        log_p, log_q: log-probabilities, under p and under q, of outcomes that were
            sampled from p; two tensors of one shape.

    Returns:
        (k1, k2, k3), each of that shape, with gradient to both arguments.

    Example: log_p = [−1.0] and log_q = [−1.5] give [0.5], [0.125] and [0.1065].
    """
    # SOLUTION
    log_ratio = log_p - log_q
    k1 = log_ratio
    k2 = log_ratio.square() / 2
    k3 = torch.expm1(-log_ratio) + log_ratio
    return k1, k2, k3
    # END SOLUTION


# %%
kl_estimates = check(kl_estimates)

# %% [markdown]
# ### Bias and variance, with the truth beside them
#
# Two Gaussians of deviation 1 whose means are $\Delta$ apart: their divergence is
# $\kappa = \Delta^2/2$, and the log-ratio itself is Gaussian,
# $l \sim \mathcal{N}(\kappa,\ 2\kappa)$. So all means and variances can be written down:
#
# | | mean | variance |
# |---|---|---|
# | $k_1$ | $\kappa$ | $2\kappa$ |
# | $k_2$ | $\kappa + \kappa^2/2$ | $2\kappa^2 + 2\kappa^3$ |
# | $k_3$ | $\kappa$ | $e^{2\kappa} - 1 - 2\kappa$ |
#
# (For $k_3$: $e^{-l}$ has mean 1, variance $e^{2\kappa} - 1$, and covariance $-2\kappa$
# with $l$.)
#
# **Predict.** For small divergences $k_3$ is said to be far better than $k_1$. Does that
# hold at 1 nat? At 5?

# %%
whose("kl_estimates")
SAMPLES = 100_000
kappas = np.array([0.001, 0.005, 0.02, 0.1, 0.3, 0.5, 1.0, 2.0, 3.5, 5.0])


def exact_moments(kappa):
    """Means and standard deviations of (k1, k2, k3), two tuples."""
    means = kappa, kappa + kappa**2 / 2, kappa
    variances = 2 * kappa, 2 * kappa**2 + 2 * kappa**3, np.expm1(2 * kappa) - 2 * kappa
    return means, tuple(np.sqrt(variance) for variance in variances)


g = torch.Generator().manual_seed(0)
measured = []
for kappa in kappas:
    delta = (2 * kappa) ** 0.5
    samples = delta + torch.randn(SAMPLES, generator=g, dtype=torch.float64)  # from p
    log_p, log_q = -((samples - delta) ** 2) / 2, -(samples**2) / 2
    ks = kl_estimates(log_p, log_q)
    measured.append([[k.mean().item(), k.std().item()] for k in ks])
measured = np.array(measured)  # (kappas, 3 estimators, mean and deviation)

print(f"{SAMPLES:,} samples; mean/KL and deviation/KL, in brackets what is exact")
print("KL (nats)   k1                k2                k3                "
      "k1            k2            k3")
for kappa, row in zip(kappas, measured, strict=True):
    means, stds = exact_moments(kappa)
    shown = [f"{row[i, 0] / kappa:7.3f} ({means[i] / kappa:6.3f})" for i in range(3)]
    shown += [f"{row[i, 1] / kappa:5.2f} ({stds[i] / kappa:5.2f})" for i in range(3)]
    print(f"{kappa:9.3f} " + "  ".join(shown))

# %%
low, high = 0.1, 2.0  # where Var(k3) − Var(k1) = e^{2κ} − 1 − 4κ changes its sign
for _ in range(50):
    middle = (low + high) / 2
    low, high = (low, middle) if np.expm1(2 * middle) > 4 * middle else (middle, high)
crossing = low

names, colours = ["k1", "k2", "k3"], [ORANGE, SKY, GREEN]
figure, (left, right) = plt.subplots(1, 2, figsize=(10.5, 3.9), layout="constrained")
grid = np.geomspace(0.0008, 6, 200)
means, stds = exact_moments(grid)
for i in range(3):
    dash = "--" if i == 2 else "-"
    left.plot(grid, means[i] / grid, dash, color=colours[i], label=f"{names[i]}, exact")
    left.plot(kappas, measured[:, i, 0] / kappas, "o", color=colours[i])
    right.plot(grid, stds[i] / grid, dash, color=colours[i], label=f"{names[i]}, exact")
    right.plot(kappas, measured[:, i, 1] / kappas, "o", color=colours[i])
left.plot([], [], "o", color=GREY, label="measured")
left.set(title="k1 and k3 are unbiased; k2 doubles at 2 nats", xscale="log",
         xlabel="true KL (nats)", ylabel="mean of the estimate / true KL",
         ylim=(0, 4.2))
right.axvline(crossing, color=GREY, linestyle=":", linewidth=1)
right.text(crossing * 0.9, 25, f"{crossing:.2f}", color=GREY, ha="right")
right.set(title=f"k3 is calmer than k1 only below {crossing:.2f} nats", xscale="log",
          yscale="log", xlabel="true KL (nats)", ylim=(0.25, 60),
          ylabel="deviation of one estimate / true KL")
for axes in (left, right):
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="upper left" if axes is left else "lower left")
plt.show()

# %% [markdown]
# At 0.005 and 0.5 nats the brackets are the numbers of Schulman's two tables. Read on to
# the right, where his tables end:
#
# - **Near** the reference, $k_1$'s noise is many times the quantity itself, while $k_2$
#   and $k_3$ scatter by about 1.4 times it, whatever it is.
# - **Farther**, $k_2$'s bias grows, and $k_3$'s variance grows exponentially. For these
#   Gaussians $k_1$ is the calmest of the unbiased two from 0.63 nats on.
# - **Far out**, look at the last dots of $k_3$: they lie *below* their exact line, at 5
#   nats by a factor of six. Its variance comes from rare samples with an enormous
#   $e^{-l}$, and 100,000 draws have not met enough of them. So the error bar that you
#   would put on such an estimate is six times too small.
#
# A token's divergence is usually a small fraction of a nat: there $k_3$ is a good choice.
# A whole answer's is several nats: take $k_3$ token by token and add up, never of the
# whole answer's log-ratio.

# %% [markdown]
# ## 6 · As a loss, the three trade places
#
# To *hold* a policy near its reference, one needs the gradient of the divergence. It is
# tempting to average $k$ over samples and call `backward()`. But the samples are fixed
# numbers by then: autograd differentiates $k$, and not the fact that another policy would
# have sampled other words. In expectation it computes $\mathbb{E}_\pi[\nabla k]$, and
# $\nabla\,\mathbb{E}_\pi[k]$ is something else.
#
# What is the right answer? By the log-derivative trick (lesson 01)
#
# $$\nabla\,\mathrm{KL}(\pi\|\pi_{\mathrm{ref}})
#  = \nabla \sum_x \pi(x)\, l(x)
#  = \sum_x \nabla\pi(x)\; l(x) + \sum_x \pi(x)\,\nabla l(x)
#  = \mathbb{E}_\pi[\,l\;\nabla\log\pi\,] ,$$
#
# where the second sum is zero: $\nabla l = \nabla\log\pi$, whose mean is 0 (lesson 01,
# step 8). Now the three, with $\nabla l = \nabla \log \pi$ again:
#
# - **$k_1$**: $\mathbb{E}_\pi[1\cdot\nabla\log\pi] = 0$. Nothing but noise.
# - **$k_2$**: $\mathbb{E}_\pi[\,l\;\nabla\log\pi]$. Exactly
#   $\nabla\,\mathrm{KL}(\pi\|\pi_{\mathrm{ref}})$.
# - **$k_3$**: $\mathbb{E}_\pi[(1 - e^{-l})\,\nabla\log\pi]$. That is
#   $\nabla\,\mathrm{KL}(\pi_{\mathrm{ref}}\|\pi)$: the *other direction*.
#
# For the last one: the 1 drops out, and
# $-\mathbb{E}_\pi[e^{-l}\,\nabla\log\pi] = -\sum_x \pi_{\mathrm{ref}}(x)\nabla\log\pi(x)
# = \nabla\,\mathrm{KL}(\pi_{\mathrm{ref}}\|\pi)$. The unbiased estimates have the wrong
# gradients and the biased one has the right one (Tang & Munos 2025 find such losses in
# published projects and papers). Five outcomes are enough to check it to the last digit,
# by listing them.

# %%
whose("kl_estimates", "kl_from_logits")
ref_logits = torch.tensor([1.0, 0.5, 0.0, -0.5, -1.0], dtype=torch.float64)
start_logits = torch.tensor([-1.0, 2.0, 0.5, 1.0, -2.5], dtype=torch.float64)


def gradient(loss_of, logits):
    """∇ of ``loss_of(logits)`` at ``logits``."""
    leaf = logits.clone().requires_grad_()
    loss_of(leaf).backward()
    return leaf.grad


def as_loss(which):
    """E_π[k]: each outcome with its share of the samples, which are fixed numbers."""

    def loss(logits):
        log_p, log_q = logits.log_softmax(-1), ref_logits.log_softmax(-1)
        share = log_p.detach().exp()
        return (share * kl_estimates(log_p, log_q)[which]).sum()

    return loss


gradients = {
    "KL(π‖ref), exact": gradient(lambda z: kl_from_logits(z, ref_logits), start_logits),
    "k1 as a loss": gradient(as_loss(0), start_logits),
    "k2 as a loss": gradient(as_loss(1), start_logits),
    "k3 as a loss": gradient(as_loss(2), start_logits),
    "KL(ref‖π), exact": gradient(lambda z: kl_from_logits(ref_logits, z), start_logits),
}
for name, values in gradients.items():
    print(f"{name:18s}", "  ".join(f"{value:+.6f}" for value in values.tolist()))

# %% [markdown]
# The middle three agree with the derivation to all digits printed. What does that do to
# a policy that also earns rewards? Climb
# $\mathbb{E}_\pi[r] - \beta \cdot (\text{penalty})$ with each gradient. The
# optimum is known, $\pi^* \propto \pi_{\mathrm{ref}}\, e^{r/\beta}$ (Korbak et al. 2022; you
# will derive it in lesson 06), so we can look how far from it each ends. Nothing is
# sampled here: what goes wrong goes wrong in expectation.
#
# **Predict** the end of each: at $\pi^*$, somewhere else, or nowhere near?

# %%
outcome_rewards = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0], dtype=torch.float64)
BETA = 0.5
best = optimal_policy(ref_logits.log_softmax(-1), outcome_rewards, BETA)


def climb(penalty, steps=1500, lr=0.3):
    """KL(π‖π*) along gradient ascent from the reference, and the last logits."""
    logits, distance = ref_logits.clone(), []
    for _ in range(steps):
        distance.append(kl_from_logits(logits, best).item())
        up = gradient(lambda z: z.softmax(-1) @ outcome_rewards, logits)
        logits += lr * (up - BETA * gradient(penalty, logits))
    return distance, logits


penalties = {"k1": as_loss(0), "k2": as_loss(1), "k3": as_loss(2)}
climbs = {name: climb(penalty) for name, penalty in penalties.items()}
ends_at = {name: logits.softmax(-1) for name, (_, logits) in climbs.items()}

print("probabilities at the end                         KL(π‖π*)   KL(π‖ref)")
for name, policy in {"π*": best.exp(), **ends_at}.items():
    print(f"{name:3s} ", "  ".join(f"{value:.4f}" for value in policy.tolist()),
          f"    {kl_divergence(policy, best.exp()):.2e}   "
          f"{kl_divergence(policy, ref_logits.softmax(-1)):.3f}")

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(10.5, 3.8), layout="constrained",
                                     width_ratios=[1.4, 1])
bar_colours = ["#000000", ORANGE, SKY, GREEN, "#BBBBBB"]
for i, (name, values) in enumerate(gradients.items()):
    place = np.arange(5) + 0.16 * (i - 2)
    left.bar(place, values, 0.16, color=bar_colours[i], label=name)
left.axhline(0, color="black", linewidth=0.8)
left.set(title="k1's gradient is zero, k2's is exact,\n"
               "k3's is that of the other direction",
         xlabel="logit of outcome", ylabel="expected gradient (nats)")
left.legend(frameon=False, fontsize=9)
for (name, (distance, _)), colour in zip(climbs.items(), colours, strict=True):
    right.plot(np.arange(1, len(distance) + 1), np.maximum(distance, 1e-12),
               color=colour, linewidth=2, label=f"{name} as the penalty")
right.set(title="Of the three, only k2 leads to π*", xscale="log",
          yscale="log", xlabel="gradient steps", ylabel="KL(π‖π*) (nats)",
          ylim=(1e-12, 10))
right.legend(frameon=False, loc="lower left")
for axes in (left, right):
    axes.spines[["top", "right"]].set_visible(False)
plt.show()

# %% [markdown]
# With $k_1$ the penalty is not there at all: the policy runs to the best-paid
# outcome as if $\beta$ were 0. With $k_3$ it comes to rest, elsewhere. Look at the
# factor before $\nabla\log\pi$: $k_3$'s is $1 - e^{-l}$, which never exceeds 1, however
# many times likelier than the reference $\pi$ has made an outcome; $k_2$'s is $l$, which
# goes on growing. (The README's table of the exact world tells the same story for whole
# answers.)
#
# There is a fourth way, the oldest: put $k_1$ into the **reward**, $r - \beta\,l$, as a
# plain number without gradient, and let the policy gradient do the rest. That is
# $\mathbb{E}_\pi[l\,\nabla\log\pi]$ once more, exact. InstructGPT's PPO does so
# (Ouyang et al. 2022), and so will you in section 8 and in lesson 06. GRPO
# (Shao et al. 2024) puts $k_3$ into the loss.

# %% [markdown]
# ## 7 · Language models: one log-ratio is not the KL
#
# An answer is a sequence $y = (y_1, \dots, y_T)$, and its log-ratio is a sum over tokens:
# $l(y) = \sum_t \log\frac{\pi(y_t \mid y_{<t})}{\pi_{\mathrm{ref}}(y_t \mid y_{<t})}$.
# People call this number "the KL". It is *one sample of $k_1$*. The divergence is its
# expectation over all answers that $\pi$ might give. Group that expectation by
# what comes before each token (inside, only $y_t$ is still open):
#
# $$\begin{aligned}
# \mathrm{KL}(\pi\|\pi_{\mathrm{ref}})
#  &= \mathbb{E}_{y\sim\pi}\Bigl[\sum_t
#     \log\tfrac{\pi(y_t|y_{<t})}{\pi_{\mathrm{ref}}(y_t|y_{<t})}\Bigr]
#   = \mathbb{E}_{y\sim\pi}\Bigl[\sum_t
#     \mathbb{E}_{y_t\sim\pi(\cdot|y_{<t})}\bigl[
#     \log\tfrac{\pi(y_t|y_{<t})}{\pi_{\mathrm{ref}}(y_t|y_{<t})}
#     \,\big|\, y_{<t}\bigr]\Bigr] \\
#  &= \mathbb{E}_{y\sim\pi}\Bigl[\sum_t
#     \mathrm{KL}\bigl(\pi(\cdot|y_{<t})\,\|\,\pi_{\mathrm{ref}}(\cdot|y_{<t})\bigr)\Bigr].
# \end{aligned}$$
#
# The divergence of whole answers is the **expected sum of per-token divergences**, along
# answers that $\pi$ writes (the chain rule: Cover & Thomas 2006, Theorem 2.5.3). And each
# per-token divergence can be computed *exactly*: both models hand you their logits over
# the whole vocabulary anyway. Only the walk through the prefixes is sampled.
#
# It is a sum, not a mean: an answer of a hundred tokens, each 0.05 nats off, is 5 nats
# away. And it is $\pi$ that must have written the answers.

# %% [markdown]
# ### 03.4 · `sequence_kl` — difficulty 2 of 5, 6 minutes, 3 points
#
# Logits of both models along sampled answers, `(B, T, V)`, and a mask: 1 at positions
# whose *next* token was sampled by $p$; 0 in the prompt and behind the end.
#
# <details>
# <summary>Hint 1: you have it already</summary>
#
# `kl_from_logits` takes any shape and removes the vocabulary: `(B, T, V)` becomes
# `(B, T)`.
#
# </details>
#
# <details>
# <summary>Hint 2: what is left</summary>
#
# Multiply by the mask, sum over the tokens. No mean: neither over tokens nor over
# answers.
#
# </details>
#
# <!-- answer: sequence_kl -->


# %%
def sequence_kl(p_logits, q_logits, mask):
    """Σ_t KL(p(·|y_<t) ‖ q(·|y_<t)) along each answer y that p has sampled.

    Args:
        p_logits, q_logits: next-token logits along the answers, shape (B, T, V).
        mask: 1 where the next token was sampled by p, else 0; float, shape (B, T).

    Returns:
        Nats an answer, shape (B,); their mean estimates KL(p‖q) of whole answers.
    """
    # SOLUTION
    per_token = kl_from_logits(p_logits, q_logits)  # (B, T, V) -> (B, T)
    return (per_token * mask).sum(dim=-1)  # (B, T) -> (B,)
    # END SOLUTION


# %%
sequence_kl = check(sequence_kl)

# %% [markdown]
# ### A language small enough to list
#
# Four tokens: the end, "add", "salt" and "please"; answers of at most four tokens.
# That makes 121 different answers. The reference is a random table of next-token logits,
# one row for each prefix. The policy is the same cook grown polite: 1.5 added to the
# logit of "please", everywhere.

# %%
TOKENS, LENGTH = ["■", "add", "salt", "please"], 4
every = all_answers(len(TOKENS), LENGTH)  # (256, 4)
before = (every == 0).cumsum(-1) - (every == 0).long()  # ends before this token
mask = (before == 0).double()  # the end itself counts, what follows does not
keep = (every * (before > 0)).sum(-1) == 0  # one way to write each answer
answers, mask = every[keep], mask[keep]  # (121, 4)
rows = prefix_rows(answers, len(TOKENS))  # which row of the table each token is from

g = torch.Generator().manual_seed(0)
ref_table = torch.randn(85, 4, generator=g, dtype=torch.float64)  # 1 + 4 + 16 + 64 rows
polite_table = ref_table + torch.tensor([0.0, 0.0, 0.0, 1.5], dtype=torch.float64)


def token_log_probs(table):
    """log π of every token of every answer, 0 behind the end, (121, 4)."""
    return table.log_softmax(-1)[rows, answers] * mask


def answer_log_probs(table):
    return token_log_probs(table).sum(-1)  # (121,)


def text(answer, counts):
    return " ".join(TOKENS[token] for token, c in zip(answer, counts, strict=True) if c)


log_p, log_q = answer_log_probs(polite_table), answer_log_probs(ref_table)
print(f"{len(answers)} answers; probabilities sum to "
      f"{log_p.exp().sum():.12f} and {log_q.exp().sum():.12f}")

# %%
whose("kl_divergence", "kl_estimates", "sequence_kl")
exact = kl_divergence(log_p.exp(), log_q.exp())
log_ratios, _, whole_k3 = kl_estimates(log_p, log_q)  # (121,)
_, _, token_k3 = kl_estimates(token_log_probs(polite_table), token_log_probs(ref_table))
along = sequence_kl(polite_table[rows], ref_table[rows], mask)  # (121,)

ways = {
    "log-ratio of the answer": log_ratios,
    "k3 of the answer": whole_k3,
    "k3 of each token, added up": token_k3.sum(-1),
    "exact KL of each token, added up": along,
}
print(f"KL of the 121 answers' distributions: {exact:.12f}\n")
print("from one answer of π               mean             deviation     least    most")
spreads = {}
for name, values in ways.items():
    mean = (log_p.exp() * values).sum()
    spreads[name] = (log_p.exp() * (values - mean) ** 2).sum().sqrt().item()
    print(f"{name:33s}  {mean:.12f}   {spreads[name]:6.3f}      "
          f"{values.min():6.2f}  {values.max():6.2f}")

# %%
picked = log_p.exp().multinomial(6, generator=torch.Generator().manual_seed(3))
print("six answers of the polite cook           log-ratio    exact per token, added up")
for i in picked:
    print(f"{text(answers[i], mask[i]):40s} {log_ratios[i]:+9.2f} {along[i]:15.2f}")

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(10.5, 3.5), layout="constrained",
                                     sharex=True, sharey=True)
bins = np.arange(-3, 3.21, 0.2)
for axes, name, colour in (
    (left, "log-ratio of the answer", ORANGE),
    (right, "exact KL of each token, added up", BLUE),
):
    axes.hist(ways[name], bins, weights=log_p.exp(), color=colour)
    axes.axvline(exact, color="black", linestyle="--", linewidth=1.2)
    axes.text(exact - 0.1, 0.52, f"KL = {exact:.2f}", fontsize=9, ha="right")
    axes.spines[["top", "right"]].set_visible(False)
    axes.set(xlabel=f"{name} (nats)")
negative = 100 * log_p.exp()[log_ratios < 0].sum()
factor = (spreads["log-ratio of the answer"] / spreads[name]) ** 2
left.set(title=f"{negative:.0f}% of all log-ratios are negative", ylabel="probability")
right.set(title=f"Exact per token: {factor:.0f} times less variance")
plt.show()

# %% [markdown]
# All four ways have the same mean, the divergence, to twelve digits: the chain rule, and
# the unbiasedness of $k_1$ and $k_3$, proved by listing. They differ in how much one
# answer says about it. A single log-ratio lies anywhere between about −4 and 3, and more
# than four in ten are negative. Exact divergences along the answer never are, and scatter
# far less, for logits that the forward pass has computed anyway. $k_3$ of the whole
# answer is noisier than $k_1$: 0.73 nats is past the crossing of section 5; $k_3$ token
# by token does well. That exact sums can never scatter *more* than log-ratios is the
# Rao–Blackwell theorem (Amini, Vieira & Cotterell 2025 work it out for language models).

# %% [markdown]
# ## 8 · Holding it at a target
#
# The penalty's price $\beta$ is hard to choose: the divergence it leads to depends on the
# rewards' scale and on everything else. Ziegler et al. (2019) say instead
# what divergence they want, and let a controller move $\beta$:
#
# $$e = \mathrm{clip}\Bigl(\frac{\mathrm{KL}}{\mathrm{KL}_{\mathrm{target}}} - 1,\ -0.2,\
#   0.2\Bigr), \qquad \beta \leftarrow \beta\,(1 + K_\beta\, e),\qquad K_\beta = 0.1 .$$
#
# Too far away, and $\beta$ rises, which holds the policy *closer*. It is a thermostat.
# Multiplying, not adding, means that the controller works in log β. For the gain, write
# $K_\beta = n / h$: $n$ samples in this update, $h$ a **horizon** (so does the code that
# they published). An error of 20% over $h$ samples then changes $\beta$ by about 20%, in
# however many batches they come.
#
# ### 03.5 · `adaptive_kl` — difficulty 1 of 5, 5 minutes, 2 points
#
# <details>
# <summary>Hint 1: the error</summary>
#
# A plain Python number: how far `kl` is above the target, as a *share* of the target,
# cut off at ±0.2 with `min` and `max`.
#
# </details>
#
# <details>
# <summary>Hint 2: the step</summary>
#
# `beta * (1 + error * samples / horizon)`. Which way must β go when the divergence is too
# large?
#
# </details>
#
# <!-- answer: adaptive_kl -->


# %%
def adaptive_kl(beta, kl, target, samples, horizon):
    """The new β: β·(1 + e·samples/horizon), e = clip(kl/target − 1, −0.2, 0.2).

    Args:
        beta: the present price of a nat, a float above 0.
        kl: the measured divergence, nats an answer, a float.
        target: the divergence to hold, a float above 0.
        samples: answers in this batch, an int, at most ``horizon``.
        horizon: answers over which an error of 20% changes β by about 20%, an int.

    Returns:
        A float.

    Example: β = 0.1, KL 12, target 6, 100 samples, horizon 1,000 give 0.102.
    """
    # SOLUTION
    error = min(max(kl / target - 1, -0.2), 0.2)
    return beta * (1 + error * samples / horizon)
    # END SOLUTION


# %%
adaptive_kl = check(adaptive_kl)

# %% [markdown]
# (The package has it as a class that remembers its β: `rlhf_minimal.kl.AdaptiveKL`.)
#
# ### A closed loop, trained
#
# The cook is paid for politeness: reward 1 for each "please". Every update samples 64
# answers, takes $r - \beta\,l$ as the reward (section 6's fourth way), subtracts the
# batch's mean, and makes one step of REINFORCE with Adam on the table of logits. The KL
# is measured on the same 64 answers with `sequence_kl`.
#
# First three fixed prices, then the controller from the same three, with a target of 1.5
# nats and a horizon of 1,280 answers: $K_\beta = 64/1280 = 0.05$, half the paper's. In a
# world that can be listed, we can also compute which $\beta$ the optimum with 1.5 nats
# *has*, and see whether the controller finds it.
#
# **Predict.** One more run has a horizon four times shorter. Will it be at the target
# sooner? Will it stay there?

# %%
REWARDS = (answers == 3).double().sum(-1)  # one for each "please", (121,)
TARGET, BATCH, HORIZON, UPDATES = 1.5, 64, 1280, 600
BETAS = (2.0, 0.4, 0.05)


def exact_measure(table, picked):
    """The batch's KL with the per-token divergences computed exactly."""
    own, ref = table[rows[picked]], ref_table[rows[picked]]
    return sequence_kl(own, ref, mask[picked]).mean().item()


def train(beta, horizon=None, measure=exact_measure, seed=0):
    """True KL, measured KL, β and true mean reward before each update, (UPDATES, 4)."""
    g = torch.Generator().manual_seed(seed)
    table = ref_table.clone().requires_grad_()
    optimizer = torch.optim.Adam([table], lr=0.1)
    ref_log_probs, rows_of_history = answer_log_probs(ref_table), []
    for _ in range(UPDATES):
        log_probs = answer_log_probs(table)
        now = log_probs.detach()
        picked = now.exp().multinomial(BATCH, replacement=True, generator=g)
        shaped = REWARDS[picked] - beta * (now - ref_log_probs)[picked]
        loss = -((shaped - shaped.mean()) * log_probs[picked]).mean()
        kl = measure(table.detach(), picked)
        rows_of_history.append([
            (now.exp() * (now - ref_log_probs)).sum().item(), kl, beta,
            (now.exp() * REWARDS).sum().item(),
        ])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if horizon is not None:
            beta = float(adaptive_kl(beta, kl, TARGET, BATCH, horizon))
    return np.array(rows_of_history)


whose("sequence_kl", "adaptive_kl")
fixed = {beta: train(beta) for beta in BETAS}
held = {beta: train(beta, HORIZON) for beta in BETAS}
hasty = train(2.0, horizon=HORIZON // 4)


# %%
def kl_of_optimum(beta):
    ref = answer_log_probs(ref_table)
    best = optimal_policy(ref, REWARDS, beta)
    return kl_divergence(best.exp(), ref.exp()).item()


low, high = 0.05, 5.0  # a larger β means a smaller KL
for _ in range(60):
    middle = (low * high) ** 0.5
    low, high = (middle, high) if kl_of_optimum(middle) > TARGET else (low, middle)
right_beta = low

print(f"the optimum with a KL of {TARGET} nats has β = {right_beta:.3f}\n")
print("averages over the last 100 updates")
print("start β    fixed: KL    held: KL   β       reward")
for beta in BETAS:
    end = held[beta][-100:].mean(0)
    print(f"{beta:7.2f}    {fixed[beta][-100:, 0].mean():9.2f}    {end[0]:8.2f}   "
          f"{end[2]:.3f}   {end[3]:.2f}")
swing = hasty[-200:, 0]
print(f"with a quarter of the horizon the KL swings from {swing.min():.2f} "
      f"to {swing.max():.2f}")

# %%
figure, (left, middle, right) = plt.subplots(1, 3, figsize=(12, 3.7),
                                             layout="constrained")
shades = [SKY, BLUE, RED]
for beta, colour in zip(BETAS, shades, strict=True):
    left.plot(fixed[beta][:, 0], color=colour, label=f"β = {beta}")
    middle.plot(held[beta][:, 0], color=colour, label=f"β starts at {beta}")
    right.plot(held[beta][:, 2], color=colour)
middle.plot(hasty[:, 0], color="#BBBBBB", label="from 2.0, horizon / 4", zorder=0)
right.plot(hasty[:, 2], color="#BBBBBB", zorder=0)
for axes in (left, middle):
    axes.axhline(TARGET, color="black", linestyle="--", linewidth=1)
    axes.set(xlabel="updates of 64 answers", ylabel="KL(π‖ref) (nats an answer)",
             ylim=(0, 7.2))
    axes.legend(frameon=False, loc="upper right")
left.set_title("Fixed prices lead to very different KLs")
middle.set_title(f"The controller ends at {TARGET} nats\nfrom every start")
right.axhline(right_beta, color="black", linestyle="--", linewidth=1)
right.text(UPDATES, 0.3, f"exact: {right_beta:.2f}", ha="right", fontsize=9)
right.set(title="and finds the price\nthat belongs to it", yscale="log",
          xlabel="updates of 64 answers", ylabel="β (reward per nat)")
for axes in (left, middle, right):
    axes.spines[["top", "right"]].set_visible(False)
plt.show()

# %% [markdown]
# The target is held from all three starts, at the price that theory asks for (and so it
# is with `seed=1` to `4`). The hasty controller is there sooner and never comes to rest:
# the policy follows the price with a delay, and by the time the divergence has come down,
# $\beta$ is far too high. Whoever steers something slow must steer slowly.
#
# Starting far too cheap is the expensive mistake. $\beta$ can grow by 1% an update at
# most, so for two hundred updates the policy runs free, and collapses onto a few answers.
# Start with a $\beta$ that is too large rather than too small.

# %% [markdown]
# ## 9 · Bug hunt: the run that let go
#
# Next day somebody makes the measurement cheaper: no logits over the whole vocabulary,
# only the log-probabilities of the sampled tokens, and the estimators copied from the
# blog post: $k_1 = -\log r$ and $k_3 = (r - 1) - \log r$. Same loop, same target, same
# seed.


# %%
def measured_kl_as_found(log_probs, ref_log_probs, mask):
    """Mean over answers of the tokens' summed k1, and of their summed k3."""
    log_r = (log_probs - ref_log_probs) * mask
    k1 = -log_r
    k3 = log_r.exp() - 1 - log_r
    return k1.sum(-1).mean(), k3.sum(-1).mean()


def sampled_measure(function):
    """A measure for ``train``: k1's mean from the sampled tokens alone."""

    def measure(table, picked):
        own, ref = token_log_probs(table), token_log_probs(ref_table)
        return float(function(own[picked], ref[picked], mask[picked])[0])

    return measure


as_found = train(0.4, HORIZON, measure=sampled_measure(measured_kl_as_found))
print("update   measured KL   true KL   β")
for update in (0, 20, 100, 300, 599):
    true, kl, beta, _ = as_found[update]
    print(f"{update:6d}   {kl:11.2f}   {true:7.2f}   {beta:.6f}")

# %% [markdown]
# **Find it.** The log shows a divergence below zero, which section 2 proved impossible.
# Here are a thousand answers of the polite cook of section 7, for whom you know the
# truth. Compare the two estimates with it, and with each other.

# %%
picked = log_p.exp().multinomial(
    1000, replacement=True, generator=torch.Generator().manual_seed(5)
)
batch = [token_log_probs(table)[picked] for table in (polite_table, ref_table)]
k1, k3 = measured_kl_as_found(*batch, mask[picked])
print(f"true KL {exact:.3f};  as found: k1 {k1:.3f}, k3 {k3:.3f}")

# %% [markdown]
# **Understand it.** In the blog post the samples come from $q$ and $r = p/q$: the
# distribution that was *not* sampled stands above. Here the policy was sampled, so
# $r = \pi_{\mathrm{ref}}/\pi$; the code has it turned round. Its $k_1$ is $-l$, with mean
# $-\mathrm{KL}$. Its $k_3$ is $e^{l} - 1 - l$, with mean
# $\mathbb{E}_\pi[\pi/\pi_{\mathrm{ref}}] - 1 - \mathrm{KL}$: that is positive, looks
# healthy, and is another quantity ($\chi^2$ minus KL, token by token). Two *unbiased*
# estimates of one number must agree up to their noise. These do not, and that test
# catches what the sign of $k_3$ never shows.
#
# The controller takes a negative divergence for "far too close", and lowers the price for
# ever.
#
# It happens to careful people: the code that accompanies the *RLHF Book* (Lambert;
# `code/policy_gradients/loss.py` at commit `0c2ba9c`) had both formulas with
# `log_probs - log_probs_ref`, and a test that fixed $k_3$ at $l = 1$ to be
# $e - 2 \approx 0.718$. Right is $e^{-1} \approx 0.368$. A later version of that test has it right.
#
# ### 03.6 · `measured_kl` — difficulty 2 of 5, 6 minutes, 2 points
#
# **Mend it.** Tempting and wrong: an absolute value, or cutting negative values off.
#
# <details>
# <summary>Hint 1: which line</summary>
#
# One line is wrong, the first. With the ratio the right way round, the blog post's two
# formulas may stay as they are. Or use your `kl_estimates`.
#
# </details>
#
# <details>
# <summary>Hint 2: masks, sums and means</summary>
#
# Put the mask on the log-ratio: $l = 0$ makes both estimates 0. Then sum over the tokens
# of each answer, and average over the answers.
#
# </details>
#
# <!-- answer: measured_kl -->


# %%
def measured_kl(log_probs, ref_log_probs, mask):
    """Two estimates of KL(π‖π_ref) of whole answers, from answers sampled by π.

    Args:
        log_probs, ref_log_probs: of the sampled tokens, shape (B, T).
        mask: 1 for tokens of the answer, 0 for padding, where any finite numbers may
            stand; float, shape (B, T).

    Returns:
        (k1, k3), two scalars in nats an answer: each token's k1 (and k3) summed over
        the answer's tokens, then averaged over the answers.

    Example: log_probs [[−1.0]], ref_log_probs [[−1.5]] and mask [[1.0]] give 0.5 and
    0.1065.
    """
    # SOLUTION
    log_r = (ref_log_probs - log_probs) * mask  # the one that was not sampled, above
    k1 = -log_r
    k3 = log_r.exp() - 1 - log_r
    return k1.sum(-1).mean(), k3.sum(-1).mean()
    # END SOLUTION


# %%
measured_kl = check(measured_kl)

# %%
whose("measured_kl", "adaptive_kl")
k1, k3 = measured_kl(*batch, mask[picked])
print(f"true KL {exact:.3f};  mended: k1 {k1:.3f}, k3 {k3:.3f}")
mended = train(0.4, HORIZON, measure=sampled_measure(measured_kl))

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(10.5, 3.6), layout="constrained",
                                     sharey=True)
for axes, run in ((left, as_found), (right, mended)):
    axes.plot(run[:, 1], color=ORANGE, linewidth=0.8,
              label="measured KL (k1, 64 answers)")
    axes.plot(run[:, 0], color=BLUE, linewidth=2, label="true KL")
    axes.axhline(TARGET, color="black", linestyle="--", linewidth=1, label="target")
    axes.axhline(0, color=GREY, linewidth=0.8)
    axes.set(xlabel="updates of 64 answers")
    axes.spines[["top", "right"]].set_visible(False)
left.set(title="As found: the measured KL falls, the true one\nclimbs as far as it can",
         ylabel="nats an answer")
right.set_title("Mended: the target is held,\nthough k1 is noisier than the exact sum")
right.legend(frameon=False, loc="lower right")
plt.show()

# %%
top = answer_log_probs(ref_table)[(REWARDS == 4).nonzero()[0, 0]]
print(f"the answer 'please please please please' alone is {-top:.2f} nats away")
print("                   KL      β          mean number of 'please'")
for name, run in (("as found", as_found), ("mended", mended)):
    true, _, beta, reward = run[-100:].mean(0)
    print(f"{name:10s}  {true:9.2f}      {beta:.6f}   {reward:.2f}")

# %% [markdown]
# ## 10 · To discuss
#
# 1. The divergence is infinite where the reference gives probability 0 to something the
#    policy says. Can that happen to two language models with softmax outputs? And if
#    answers are *sampled* with top-p, but log-probabilities are taken from the full
#    softmax, which divergence do $k_1$'s averages estimate?
#
# <details>
# <summary>What we think</summary>
#
# A softmax never gives exactly 0 in exact arithmetic, so the divergence is finite, if
# perhaps huge. With top-p sampling the answers come from a third distribution $\pi'$:
# one estimates $\mathbb{E}_{\pi'}[\log\pi - \log\pi_{\mathrm{ref}}]$, which is the
# divergence of neither pair, and may be negative.
#
# </details>
#
# 2. In the bug hunt $k_2$ would not have changed at all when the ratio was turned round.
#    Is that a reason to prefer it for monitoring?
#
# <details>
# <summary>What we think</summary>
#
# It is robust against this one bug because it does not know the direction: and so cannot
# tell you the direction. Its mean is off by half of the divergence, relative to itself
# (for Gaussians). Two estimates side by side, $k_1$ and $k_3$, whose means must agree,
# tell more than one that cannot complain.
#
# </details>
#
# 3. As a *loss*, what does the reversed $k_3$, $e^{l} - 1 - l$, do? Work out its expected
#    gradient as in section 6.
#
# <details>
# <summary>What we think</summary>
#
# $\mathbb{E}_\pi[(e^{l} - 1)\nabla\log\pi] = \sum_x \frac{\pi(x)}{\pi_{\mathrm{ref}}(x)}
# \nabla\pi(x) = \frac12\nabla\sum_x \frac{\pi(x)^2}{\pi_{\mathrm{ref}}(x)}$: it pulls
# towards the reference all the same, as the gradient of $\frac12\chi^2$. A far stiffer
# brake where $\pi \gg \pi_{\mathrm{ref}}$: runs do not fail, they are only held by
# something other than what the paper says. That is why such bugs live long.
#
# </details>
#
# 4. Supervised fine-tuning is forward, the RLHF penalty reverse. Which of the two would
#    you expect to make a model repeat its favourite opening, and which to make it say
#    things that no single annotator would?
#
# <details>
# <summary>What we think</summary>
#
# Reverse allows the policy to drop most of what the reference could say, so variety
# shrinks. Forward must cover all annotators' habits, and a model too small to separate
# them fills the valley between, as the wide Gaussian does: answers that are a blend.
#
# </details>
#
# 5. A colleague reports "KL = 0.02". Which questions do you ask?
#
# <details>
# <summary>What we think</summary>
#
# A token or an answer? Which direction, and which of the two was sampled? Which
# estimator, over how many answers, with what standard error? Nats or bits? With the
# temperature and top-p of the sampling, or without?
#
# </details>
#
# 6. The controller clips its error at ±20%. What would the run that began at β = 0.05 do
#    without the clip? Try it: copy `adaptive_kl` under another name, and look for what
#    else changes.
#
# <details>
# <summary>What we think</summary>
#
# The policy stands at three times the target, an error of 2 instead of 0.2, and β climbs
# ten times faster. In our run it is back before update 100 instead of 300, but β shoots up
# to 6, the KL falls to 0.3, and both ring for a while. The clip protects against
# over-steering and freak batches, and pays with slowness when the start is bad.
#
# </details>
#
# ## What to read next
#
# - S. Kullback & R. A. Leibler, *On information and sufficiency*, Annals of Mathematical
#   Statistics 22, 1951: where it comes from.
# - T. M. Cover & J. A. Thomas, *Elements of Information Theory*, 2nd ed. 2006, chapter 2:
#   entropy, divergence, the chain rule, Jensen.
# - T. Minka, *Divergence measures and message passing*, Microsoft Research technical
#   report MSR-TR-2005-173, 2005: covering and seeking, and what lies between.
# - J. Schulman, *Approximating KL divergence*, 2020, joschu.net/blog/kl-approx.html.
# - Y. Tang & R. Munos, *On a few pitfalls in KL divergence gradient estimation for RL*,
#   2025, arXiv 2506.09477: section 6, with a second trap for sequences.
# - A. Amini, T. Vieira & R. Cotterell, *Better estimation of the Kullback–Leibler
#   divergence between language models*, 2025, arXiv 2504.10637: section 7.
# - D. Ziegler et al., *Fine-tuning language models from human preferences*, 2019, arXiv
#   1909.08593: the penalty and its controller.
# - Also cited: L. Ouyang et al. 2022, arXiv 2203.02155 (InstructGPT); T. Korbak et al.
#   2022, arXiv 2205.11275 (the optimum); Z. Shao et al. 2024, arXiv 2402.03300 (GRPO).
# - The package's `rlhf_minimal/kl.py`: this lesson in 180 lines.
#
# **Next: lesson 04.** A language model is a policy: its states, its actions, its
# log-probabilities, and the masks that decide which of them count.

# %%
print(f"{time.process_time():.0f} seconds of CPU time in this notebook so far")
