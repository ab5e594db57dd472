# %% [markdown]
# # 04 · A language model is a policy
#
# *Why this matters: every method from here on trains a language model by the
# log-probabilities of what it wrote. Which token belongs to which logit, and which
# tokens count, is decided in ten lines. When they are wrong, nothing crashes.*
#
# **You will be able to**
#
# - say what state, action and episode are when a language model is the policy;
# - take a GPT apart and put it together again, with the shape of every part;
# - compute the log-probability of each token of an answer: shift, gather, mask;
# - fine-tune a model on demonstrations, and say what its loss counts;
# - sample with temperature, top-k and top-p, and say what each does to the policy;
# - explain why a cache makes writing fast, and what it costs;
# - recognise the bug that makes models talk for ever.
#
# **It assumes** PyTorch with `backward()`, and lesson 01 (policy, trajectory, the
# log-derivative trick). Of lesson 03 it uses the word "KL" in two places.
#
# | | |
# |---|---|
# | reading | 32 minutes |
# | coding | 53 minutes, seven exercises, 15 points |
# | computing | a good minute on one CPU core; the last cell says how much it was |
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

import matplotlib.pyplot as plt
import numpy as np
import torch
import torch.nn.functional as F

from autograder import check
from rlhf_minimal import toy_world
from rlhf_minimal.gpt import GPT, GPTConfig, KeyValueCache
from rlhf_minimal.kitchen import Kitchen, interval
from rlhf_minimal.log_probs import pad_sequences
from rlhf_minimal.sampling import generate
from rlhf_minimal.tokenizer import prettify
from rlhf_minimal.training import (
    adamw,
    learning_rate_factor,
    minibatches,
    optimizer_step,
    set_learning_rate,
)

torch.set_num_threads(1)  # a model this small only loses time to a second thread
BLUE, ORANGE, GREY = "#0072B2", "#E69F00", "#666666"
SKY, RED = "#56B4E9", "#D55E00"


def whose(*names):
    """Says with whose functions the next experiment runs."""
    for name in names:
        own = globals()[name].__module__ == "__main__"
        print(f"{name:18s} {'yours' if own else 'ours'}")


# %% [markdown]
# ## 1 · The game of writing
#
# In lesson 01 a policy balanced a pole. Here it writes an answer, and the words of that
# lesson keep their meaning:
#
# | reinforcement learning | CartPole | a language model |
# |---|---|---|
# | state $s_t$ | four numbers | the **context**: the prompt and what has been written |
# | action $a_t$ | left or right | the **next token** |
# | action space | 2 actions | the **vocabulary**: 100 to 200,000 tokens |
# | policy $\pi_\theta(a \mid s)$ | a small network | a softmax over the vocabulary |
# | transition | physics | append the token: $s_{t+1} = (s_t, a_t)$ |
# | episode | until the pole falls | **one answer**, until the end token |
# | reward | 1 a step | none, until a judge reads the finished answer |
#
# Three things are unlike CartPole. The transition is *known*: the token is appended.
# (CartPole's physics is deterministic too, but nobody tells the policy.) The state never
# forgets: two different histories never lead to the same state. And there are very many
# actions, of which only a handful make sense.
#
# Lesson 01 wrote the probability of a trajectory as
# $P(\tau\mid\pi) = \rho_0(s_0)\prod_t P(s_{t+1}\mid s_t,a_t)\,\pi(a_t\mid s_t)$. Here
# every transition has probability 1 and drops out. Given the prompt $x$, for an answer
# $y = (y_1, \dots, y_n)$ whose last token is the end token,
#
# $$\pi_\theta(y\mid x) = \prod_{t=1}^{n}\pi_\theta(y_t\mid x, y_{<t}),
# \qquad
# \log\pi_\theta(y\mid x) = \sum_{t=1}^{n}\log\pi_\theta(y_t\mid x, y_{<t}).$$
#
# That sum, whole or term by term, is all that REINFORCE, PPO and DPO ask of the policy.
# You are going to compute it.
#
# (One may also call the *whole answer* a single action, and the game a bandit: Ouyang et
# al. 2022, section 3.5, describe their environment so. Ramamurthy et al. 2023 write the
# game token by token, as above. The sum shows why both may be right.)
#
# **The end token is an action.** An episode ends because the policy *decides* to end it.
# Remember that in section 8.
#
# Our world is the kitchen of lesson 00: questions about ten dishes, and short posts to
# sum up. The base model learns to go on with documents; that takes some seconds.

# %%
kitchen = Kitchen(seed=0)
tokenizer, base = kitchen.tokenizer, kitchen.base
encode, V = tokenizer.encode, len(tokenizer)
PAD, END = tokenizer.pad_id, tokenizer.end_id
history = kitchen.train_base()
first, last = history["loss"][0], history.mean("loss", last=30)
print(f"loss {first:.2f} -> {last:.2f} nats a token")
print(f"vocabulary: {V} tokens; a policy that knows nothing has log {V} = "
      f"{math.log(V):.2f} nats a token")

context = encode("how do i make pizza ?")
with torch.no_grad():
    logits = base(torch.tensor([context]))[0, -1]  # (1, T, V) -> (V,)
policy = logits.softmax(-1)
print("\nstate: how do i make pizza ?")
for p, action in zip(*policy.topk(6), strict=True):
    print(f"    action {tokenizer.words[int(action)]:8s} π(a|s) = {p:.3f}")

# %% [markdown]
# ## 2 · A GPT from its parts
#
# The policy network is a decoder-only transformer (Vaswani et al. 2017, the right half of
# their figure 1, without the middle layer that looks at the encoder), in the form of
# GPT-2 (Radford et al. 2019). From tokens to logits, with $B$ sequences of $T$ tokens,
# width $W$, $H$ heads of $D = W/H$ numbers, vocabulary $V$:
#
# | part | shape out | what for |
# |---|---|---|
# | tokens | $(B, T)$ | numbers of words |
# | token embedding | $(B, T, W)$ | a vector for each word |
# | + position embedding | $(B, T, W)$ | without it, attention could not tell word order |
# | · layer norm | $(B, T, W)$ | each vector to mean 0 and variance 1 |
# | · query, key, value | 3 × $(B, H, T, D)$ | what I seek, offer, give |
# | · **causal attention** | $(B, H, T, D)$ | the only place where positions meet |
# | · project, + residual | $(B, T, W)$ | heads are mixed and added to what was there |
# | · layer norm | $(B, T, W)$ | |
# | · widen, ReLU | $(B, T, 4W)$ | each position thinks for itself |
# | · narrow, + residual | $(B, T, W)$ | and adds what it found |
# | layer norm | $(B, T, W)$ | |
# | output (the token embedding) | $(B, T, V)$ | a score for each word: how well it fits |
#
# The rows with a dot are a **block**, or layer; it comes several times.
#
# The norms stand *before* attention and feed-forward layer, and once more at the end
# (Radford et al. 2019, section 2.3). The output layer uses the same matrix as the token
# embedding: to Press & Wolf (2017) it is a way to save parameters that also lowers
# perplexity; Vaswani et al. (2017, section 3.4) do the same.
#
# **Attention.** Each position asks a question of all positions before it. The query
# $q_t$ is held against every key, the scores become weights that sum to 1, and the
# values are averaged with these weights (Vaswani et al. 2017, equation 1, with the mask
# of their section 3.2.3):
#
# $$\mathrm{attention}(q, k, v)_t = \sum_{s \le t} w_{ts}\, v_s,
# \qquad w_{ts} = \frac{\exp(q_t\cdot k_s/\sqrt{D})}
#   {\sum_{u\le t}\exp(q_t\cdot k_u/\sqrt{D})}.$$
#
# *Why $\sqrt D$?* If the entries of $q$ and $k$ are independent with mean 0 and variance
# 1, then $q\cdot k$ is a sum of $D$ products with mean 0 and variance 1 each; its
# variance is $D$. That of $q\cdot k/\sqrt{D}$ is 1, however wide the heads are.
#
# *Why only $s \le t$?* The logits at position $t$ are to predict token $t + 1$. Could
# position $t$ see token $t + 1$, it would copy it. The mask is what lets one pass over a
# text train all its positions at once.
#
# *Fewer queries than keys.* While the model writes, only the newest token asks; keys and
# values of the older ones lie in a cache (section 7). With $T$ queries and $S \ge T$ keys
# the queries are the **last** $T$ positions: query $t$ sees the keys
# $0, \dots, S - T + t$.

# %% [markdown]
# ### 04.1 · `causal_attention` — difficulty 4 of 5, 12 minutes, 3 points
#
# <details>
# <summary>Hint 1: four steps</summary>
#
# Scores `(B, H, T, S)` by a matrix product with the transposed keys, divided by √D; a
# mask that puts −∞ where a query may not look; a softmax over the keys; a matrix product
# with the values.
#
# </details>
#
# <details>
# <summary>Hint 2: the mask</summary>
#
# `torch.ones(T, S, dtype=torch.bool).tril(S - T)` is true where a query may look: a lower
# triangle whose diagonal begins at column S − T. Then
# `scores.masked_fill(~seen, -torch.inf)`, *before* the softmax.
#
# </details>
#
# <!-- answer: causal_attention -->


# %%
def causal_attention(query, key, value):
    """Scaled dot-product attention in which no position sees a later one.

    Args:
        query: shape (B, H, T, D); the queries of the last T positions.
        key: shape (B, H, S, D), with S ≥ T; keys of all positions so far.
        value: shape (B, H, S, E); E is usually D.

    Returns:
        Shape (B, H, T, E), float32 like the values: for each query the weighted mean of
        the values that it may see, its own included.

    (F.scaled_dot_product_attention is taken away while yours is tried.)

    Example: one head, D = 1, query [[0], [0]], key [[1], [1]], value [[2], [4]]: all
    scores are 0, and the result is [[2], [3]].
    """
    # SOLUTION
    T, S = query.shape[-2], key.shape[-2]
    scores = query @ key.transpose(-2, -1) / query.shape[-1] ** 0.5  # (B, H, T, S)
    seen = torch.ones(T, S, dtype=torch.bool).tril(S - T)
    weights = scores.masked_fill(~seen, -torch.inf).softmax(-1)
    return weights @ value
    # END SOLUTION


# %%
causal_attention = check(causal_attention)

# %% [markdown]
# The rest of a GPT is linear layers and additions. Here is the whole forward pass, with
# your attention and the trained weights of the base model. Does it give the same logits
# as the package's model?


# %%
def forward_by_hand(model, tokens, say=lambda name, x: None, watch=None):
    """Logits (B, T, V) of a GPT, part by part; ``watch`` collects attention weights."""
    B, T = tokens.shape
    W, H = model.config.width, model.config.heads
    x = model.embed_token(tokens)
    say("token embedding", x)
    x = x + model.embed_position(torch.arange(T))
    say("+ position embedding", x)
    for block in model.blocks:
        three = block.query_key_value(block.norm_1(x))  # (B, T, 3·W)
        query, key, value = three.view(B, T, 3, H, W // H).permute(2, 0, 3, 1, 4)
        say("query (key, value)", query)
        if watch is not None:  # values: the identity. See below.
            watch.append(causal_attention(query, key, torch.eye(T).expand(B, H, T, T)))
        mixed = causal_attention(query, key, value)
        say("causal attention", mixed)
        x = x + block.project(mixed.transpose(1, 2).reshape(B, T, W))
        say("project, + residual", x)
        wide = F.relu(block.widen(block.norm_2(x)))
        say("widen, ReLU", wide)
        x = x + block.narrow(wide)
        say("narrow, + residual", x)
    logits = model.norm(x) @ model.embed_token.weight.T  # the tied output layer
    say("output", logits)
    return logits


whose("causal_attention")
questions = ("how do i make pizza ?", "how do i make curry ?")
tokens = torch.tensor([encode(question) for question in questions])
with torch.no_grad():
    by_hand = forward_by_hand(
        base, tokens, say=lambda name, x: print(f"    {name:22s} {tuple(x.shape)}")
    )
    gap = (by_hand - base(tokens)).abs().max()
print(f"largest difference from the package's logits: {gap:.1e}")

# %%
parts = {
    "token embedding = output": base.embed_token,
    "position embedding": base.embed_position,
    "attention, all layers": [(b.query_key_value, b.project) for b in base.blocks],
    "feed-forward, all layers": [(b.widen, b.narrow) for b in base.blocks],
    "norms": [*((b.norm_1, b.norm_2) for b in base.blocks), (base.norm,)],
}
for name, part in parts.items():
    modules = [m for pair in part for m in pair] if isinstance(part, list) else [part]
    print(f"{name:26s} {sum(p.numel() for m in modules for p in m.parameters()):7,d}")
print(f"{'together':26s} {sum(p.numel() for p in base.parameters()):7,d} parameters")

# %% [markdown]
# The smallest GPT-2 has the same parts (with GELU, a smoother ReLU): 12 layers, width
# 768, 50,257 tokens, a context of 1,024 (Radford et al. 2019, table 2 and section 2.3).
#
# **What does it look at?** A post must be summed up; the model has written "lena made"
# and must now name the dish. Each row is a head, each column a word of the context. (The
# function returns no weights. But a weighted mean of the rows of the identity matrix *is*
# the weights: that is the `torch.eye` above.)

# %%
post = "lena made curry for dinner . the cat was asleep . it was too salty . tl;dr :"
story = f"{post} lena made"
words, watch = story.split(), []
with torch.no_grad():
    dish = forward_by_hand(base, torch.tensor([encode(story)]), watch=watch)[0, -1]
weights = torch.cat([layer[0, :, -1] for layer in watch])  # (layers · H, T)

figure, axes = plt.subplots(figsize=(9.5, 3.1), layout="constrained")
image = axes.imshow(weights, cmap="Blues", vmin=0, vmax=1, aspect="auto")
on_dish = weights[:, words.index("curry")]
H = base.config.heads
best = int(on_dish.argmax())
axes.set(
    title=f"About to name the dish, head {best % H + 1} of layer {best // H + 1} puts "
    f"{on_dish[best]:.0%} of its attention on “curry”",
    xticks=range(len(words)),
    yticks=range(len(weights)),
    xlabel="word of the context",
    ylabel="layer · head",
)
axes.set_xticklabels(words, rotation=60, ha="right", rotation_mode="anchor")
axes.set_yticklabels([f"{i // H + 1} · {i % H + 1}" for i in range(len(weights))])
figure.colorbar(image, label="attention weight")
plt.show()
print(f"π(curry | the post, lena made) = {dish.softmax(-1)[encode('curry')[0]]:.2f}")

# %% [markdown]
# Attention weights show where information *may* come from, not what is done with it. Do
# not read more into such a picture than that.

# %% [markdown]
# ## 3 · Log-probabilities of tokens
#
# One pass over a text gives logits at every position, $(B, T, V)$. Three steps lead to
# the log-probability of each token:
#
# 1. **shift**: the logits at position $t$ have seen the tokens $0, \dots, t$. They are
#    about token $t + 1$. So the last logits have no token to score, and the first token
#    has no logits that score it;
# 2. **normalise**: $\log\pi(a\mid s) = z_a - \log\sum_j e^{z_j}$, which is `log_softmax`;
# 3. **gather**: of $V$ numbers at each position keep the one of the token that stands
#    there.
#
# | position | 0 | 1 | 2 | 3 |
# |---|---|---|---|---|
# | token | need | flour | . | `<end>` |
# | logits at this position are about | flour | . | `<end>` | nothing |
# | entry of the result | flour | . | `<end>` | |
#
# From $T$ tokens come $T - 1$ log-probabilities. Off by one here, and the loss falls to
# zero while the model learns to copy.

# %% [markdown]
# ### 04.2 · `token_log_probs` — difficulty 2 of 5, 7 minutes, 2 points
#
# <details>
# <summary>Hint 1: which slices</summary>
#
# `logits[:, :-1]` and `tokens[:, 1:]` belong together. Log-softmax over the last
# dimension, the vocabulary.
#
# </details>
#
# <details>
# <summary>Hint 2: gather</summary>
#
# `log_probs.gather(-1, index)` wants an index with as many dimensions as `log_probs`:
# give `tokens[:, 1:, None]` of shape (B, T − 1, 1), and take the last dimension away
# again with `.squeeze(-1)`.
#
# </details>
#
# <!-- answer: token_log_probs -->


# %%
def token_log_probs(logits, tokens):
    """Log-probability of each token, given all tokens before it.

    Args:
        logits: shape (B, T, V); position t is about the token at t + 1. They may be
            hundreds apart.
        tokens: the sequences, int64, shape (B, T).

    Returns:
        Shape (B, T − 1): entry t is log π(tokens[t + 1] | tokens[0..t]), in nats.

    Example: logits [[[log 0.25, log 0.75], [0, 0]]] and tokens [[0, 1]] give
    [[log 0.75]].
    """
    # SOLUTION
    log_probs = logits[:, :-1].log_softmax(-1)  # (B, T - 1, V)
    return log_probs.gather(-1, tokens[:, 1:, None]).squeeze(-1)
    # END SOLUTION


# %%
token_log_probs = check(token_log_probs)

# %% [markdown]
# **The gradient** of $\log\pi(a\mid s)$ in the logits is worth knowing by heart. With
# $\log\pi(a) = z_a - \log\sum_j e^{z_j}$,
#
# $$\frac{\partial \log\pi(a)}{\partial z_i} = \mathbb{1}[i = a]
#   - \frac{e^{z_i}}{\sum_j e^{z_j}} = \mathbb{1}[i = a] - \pi(i).$$
#
# The chosen token's logit is pushed up by $1 - \pi(a)$, every other down by its own
# probability. What is nearly certain already is hardly moved. Whatever loss the
# log-probability of a token goes into, be it SFT, PPO or DPO: a multiple of this vector
# is all that comes back to the logits. The methods differ in the factor.

# %%
whose("token_log_probs")
text = "what do i need for curry ? you need rice and chicken ."
tokens = torch.tensor([encode(text, end=True)])
logits = base(tokens).detach().requires_grad_()
log_probs = token_log_probs(logits, tokens)
(gradient,) = torch.autograd.grad(log_probs[0, 9], logits)
chosen = tokens[0, 10]
rule = F.one_hot(chosen, V) - logits[0, 9].softmax(-1)
print(f"entry 9 is about the token at 10, “{tokenizer.words[chosen]}”")
print(f"gradient against the rule: {(gradient[0, 9] - rule).abs().max():.0e} apart; "
      f"at other positions {gradient[0, :9].abs().max():.0f}")

# %%
shown = log_probs[0].detach().exp()
names = [tokenizer.words[t] for t in tokens[0, 1:]]
prompt_length = len(encode("what do i need for curry ?"))
colours = [GREY if t + 1 < prompt_length else BLUE for t in range(len(names))]
figure, axes = plt.subplots(figsize=(9, 3.8), layout="constrained")
bars = axes.bar(range(len(names)), shown, color=colours)
axes.bar_label(bars, [f"{p:.2f}" for p in shown], fontsize=8, padding=1)
answer_sum = log_probs[0, prompt_length - 1 :].sum().item()
axes.set(title="The base model reads a question (grey) and an answer (blue):\n"
         f"log π(answer | question) = {answer_sum:.2f} nats, the sum of the blue logs",
         xlabel="token (the first, “what”, has no logits that score it)",
         ylabel="π(token | what stands before)", ylim=(0, 1.15))
axes.set_xticks(range(len(names)))
axes.set_xticklabels(names, rotation=45, ha="right", rotation_mode="anchor")
axes.spines[["top", "right"]].set_visible(False)
plt.show()

# %% [markdown]
# Where there is one way to go on, as after "what do i", the model is nearly sure. Where
# the writer had a choice, it is not, and no training could change that: which
# ingredient comes first is up to chance.

# %% [markdown]
# ## 4 · Fine-tuning on demonstrations
#
# Somebody wrote good answers $y^*$ to prompts $x$. **Supervised fine-tuning** (SFT;
# Ouyang et al. 2022, section 3.5) makes them likelier:
#
# $$\mathcal{L}(\theta) = -\frac{1}{N}\sum_{(x, y^*)}\ \sum_{t}
#   \log\pi_\theta(y^*_t\mid x, y^*_{<t}),$$
#
# where $N$ counts all answer tokens of the batch. You have met this before, twice.
#
# - **As a policy gradient.** Lesson 01: $\nabla J = \mathbb{E}_{y\sim\pi}
#   \left[G\,\nabla\log\pi(y\mid x)\right]$. Put $G = 1$ and take the episodes from people
#   instead of from $\pi$: that is $-\nabla\mathcal{L}$ up to a factor. SFT is REINFORCE
#   on somebody else's episodes, all of which are rewarded alike. (In reinforcement
#   learning this is called behaviour cloning.)
# - **As a KL divergence.** Lesson 03: maximising $\mathbb{E}_{y\sim\text{people}}
#   [\log\pi(y)]$ is minimising the *forward* divergence
#   $\mathrm{KL}(\text{people}\,\|\,\pi)$. The model must cover everything that people
#   write, their mistakes too.
#
# **Only answer tokens count.** The prompt is given; at run time the model never has to
# write it. So each batch comes with a mask of the tokens' shape:
#
# | | what | do | i | need | … | you | need | rice | . | `<end>` | pad | pad |
# |---|---|---|---|---|---|---|---|---|---|---|---|---|
# | attention mask | 1 | 1 | 1 | 1 | 1 | 1 | 1 | 1 | 1 | 1 | 0 | 0 |
# | **response mask** | 0 | 0 | 0 | 0 | 0 | 1 | 1 | 1 | 1 | **1** | 0 | 0 |
#
# The end token counts: ending is an action that has to be learned. Padding does not: it
# is there because tensors are rectangular. Both are decided by *position*, which is why
# the function below sees lengths and no token ids.

# %% [markdown]
# ### 04.3 · `response_mask` — difficulty 1 of 5, 4 minutes, 1 point
#
# <details>
# <summary>Hint 1: two conditions</summary>
#
# A token is 1 if its position is at or behind its prompt's length, *and* it is real.
#
# </details>
#
# <details>
# <summary>Hint 2: compare a row with a column</summary>
#
# `torch.arange(T)[None, :] >= prompt_lengths[:, None]` has shape (B, T). Multiply it by
# `attention_mask`.
#
# </details>
#
# <!-- answer: response_mask -->


# %%
def response_mask(attention_mask, prompt_lengths):
    """Which tokens belong to the answer: its end token does, prompt and padding do not.

    Args:
        attention_mask: 1 for real tokens, 0 for padding, which stands on the right;
            int64, shape (B, T). The end token is real.
        prompt_lengths: tokens of each prompt, int64, shape (B,).

    Returns:
        1 on answer tokens, else 0; int64, shape (B, T).

    Example: attention_mask [[1, 1, 1, 1, 0]] and prompt_lengths [2] give
    [[0, 0, 1, 1, 0]].
    """
    # SOLUTION
    positions = torch.arange(attention_mask.shape[1])
    after_prompt = positions[None, :] >= prompt_lengths[:, None]  # (B, T)
    return after_prompt * attention_mask
    # END SOLUTION


# %%
response_mask = check(response_mask)

# %% [markdown]
# ### 04.4 · `sft_loss` — difficulty 2 of 5, 6 minutes, 2 points
#
# Every answer token *of the batch* weighs the same. (A mean over each answer first, then
# over the answers, is another loss: there a token of a short answer weighs more.)
#
# <details>
# <summary>Hint 1: line up the mask</summary>
#
# `token_log_probs` has T − 1 columns, for the tokens 1 to T − 1. The mask that goes with
# them is `mask[:, 1:]`.
#
# </details>
#
# <details>
# <summary>Hint 2: a masked mean</summary>
#
# Sum of `log_probs * mask`, divided by the sum of that same mask, with a minus. Or select
# with a *boolean* mask and take `mean()`: integers used as an index do not select.
#
# </details>
#
# <!-- answer: sft_loss -->


# %%
def sft_loss(logits, tokens, mask):
    """Mean of −log π over the answer tokens of a batch.

    Args:
        logits: shape (B, T, V).
        tokens: int64, shape (B, T).
        mask: 1 on answer tokens (column 0 never is one), int64, shape (B, T).

    Returns:
        A scalar in nats a token, with gradient to the logits.

    Example: logits of zeros with V = 4 give log 4 = 1.3863, whatever the mask.
    """
    # SOLUTION
    log_probs = token_log_probs(logits, tokens)
    counts = mask[:, 1:]
    return -(log_probs * counts).sum() / counts.sum()
    # END SOLUTION


# %%
sft_loss = check(sft_loss)

# %% [markdown]
# Now the training loop, whole. Batches come from the package, and so do AdamW, the
# learning rate's warm-up and its fall along half a cosine; masks and loss are yours.

# %%
demonstrations = [
    (encode(prompt), encode(answer, end=True))
    for prompt, answer in toy_world.demonstrations(kitchen.sizes.demonstrations, seed=0)
]


def answers_only(prompts, answers):
    """A batch for SFT: tokens, attention mask, response mask, each (B, T)."""
    rows = [prompt + answer for prompt, answer in zip(prompts, answers, strict=True)]
    tokens, attention_mask = pad_sequences(rows, PAD)
    lengths = torch.tensor([len(prompt) for prompt in prompts])
    return tokens, attention_mask, response_mask(attention_mask, lengths)


def fine_tune(model, batch_of, steps=300, lr=5e-3):
    """Trains a copy of the model on the demonstrations; returns it and its losses."""
    model, losses = copy.deepcopy(model), []
    optimizer = adamw(model, lr)
    lengths = [len(prompt) + len(answer) for prompt, answer in demonstrations]
    generator = torch.Generator().manual_seed(0)
    batches = minibatches(len(demonstrations), 32, steps, generator, lengths)
    for step, rows in enumerate(batches):
        prompts, answers = zip(*(demonstrations[i] for i in rows.tolist()), strict=True)
        tokens, attention_mask, mask = batch_of(prompts, answers)
        loss = sft_loss(model(tokens, attention_mask), tokens, mask)
        factor = learning_rate_factor(step, steps, warmup=20, schedule="cosine")
        set_learning_rate(optimizer, lr * factor)
        optimizer_step(optimizer, loss)
        losses.append(loss.item())
    return model, losses


whose("response_mask", "sft_loss")
sft, losses = fine_tune(base, answers_only)
last = np.mean(losses[-30:])
print(f"loss on answer tokens {losses[0]:.2f} -> {last:.2f} nats a token")

# %% [markdown]
# **Before and after, on the same prompts**, none of which is among the demonstrations.
# (Sampled by the package's `generate`; you write its heart in section 6.)

# %%
test_prompts = toy_world.sample_prompts(300, seed=11, held_out=True)
answers = {
    name: kitchen.answers(model, test_prompts, seed=12)
    for name, model in (("base", base), ("SFT", sft))
}
for i in range(6):
    print(prettify(test_prompts[i]))
    for name, written in answers.items():
        print(f"    {name:5s} {prettify(tokenizer.decode(written[i]))}")

# %%
def gold_of(prompts, answers):
    """Mean gold reward of answers, with its error."""
    pairs = zip(prompts, answers, strict=True)
    return interval([kitchen.gold(prompt, answer) for prompt, answer in pairs])


def asks(text):
    """Whether a text goes on with the question, or with another one: no answer."""
    first = (text.split() or [""])[0]
    more = ("for", "with", "without", "how", "what", "can")
    return first in more or text.startswith("i want")


for name, written in answers.items():
    gold = gold_of(test_prompts, written)
    print(f"{name:5s} mean gold reward {gold['mean']:5.2f}  "
          f"(95% interval {gold['low']:.2f} to {gold['high']:.2f})", end="  ")
    share = np.mean([asks(tokenizer.decode(answer)) for answer in written])
    print(f"goes on asking: {share:.0%}")

# %% [markdown]
# The gold reward is lesson 00's: what an answer is worth in the kitchen, which no model
# is ever shown. What SFT changed most is *that* the model answers: the base model had
# seen answers as well, but also questions that are followed by more questions.

# %% [markdown]
# ## 5 · Perplexity
#
# A mean of −log π is hard to picture; its exponential is not. A policy that chooses
# evenly among $k$ tokens has $-\log\pi = \log k$ at every step, so
#
# $$\mathrm{perplexity} = \exp\Big(-\frac1N\sum_{i=1}^{N}\log\pi(y_i\mid\dots)\Big)
#   = \Big(\prod_{i=1}^{N}\frac{1}{\pi(y_i\mid\dots)}\Big)^{1/N}$$
#
# says among how many equally likely tokens the model might as well be choosing. It is the
# *geometric* mean of $1/\pi$: a single token that is called impossible makes it infinite.
# It is 1 at best, in theory only: text whose next word is not determined has a floor, and
# $V$ is what an ignorant model gets.
#
# Test sets do not fit into one batch. Sums and counts may be added up across batches;
# means and perplexities may not, for batches hold different numbers of tokens.

# %% [markdown]
# ### 04.5 · `perplexity` — difficulty 2 of 5, 6 minutes, 2 points
#
# <details>
# <summary>Hint 1: what to carry along</summary>
#
# Two numbers: the sum of the masked log-probabilities, and the number of masked tokens.
#
# </details>
#
# <details>
# <summary>Hint 2: the last line</summary>
#
# After the loop, once: `torch.exp(-total / count)`.
#
# </details>
#
# <!-- answer: perplexity -->


# %%
def perplexity(batches):
    """Perplexity of all masked tokens of all batches together.

    Args:
        batches: a list of pairs (log_probs, mask), both of one shape (B, T), which may
            be another in each batch; log_probs in nats, mask float, 1 where a token
            counts and 0 elsewhere.

    Returns:
        A scalar, 1 or more. Every masked token weighs the same, whatever its batch.

    Example: [(log [[0.5, 0.5]], [[1, 1]]), (log [[0.125, 0.9]], [[1, 0]])] gives
    (2 · 2 · 8)^(1/3) = 3.1748.
    """
    # SOLUTION
    total, count = 0.0, 0.0
    for log_probs, mask in batches:
        total += (log_probs * mask).sum()
        count += mask.sum()
    return torch.exp(-total / count)
    # END SOLUTION


# %%
perplexity = check(perplexity)

# %% [markdown]
# **Predict** before you run the next cell: three models, three kinds of text. The third
# model is fine-tuned like yours, but with the prompts in the loss as well. Fine-tuning
# makes answers likelier; what does it do to documents as the base model knew them? And
# is it any help to learn the prompts too?


# %%
def everything(prompts, answers):
    """As ``answers_only``, with all real tokens in the loss."""
    tokens, attention_mask, _ = answers_only(prompts, answers)
    return tokens, attention_mask, attention_mask


@torch.no_grad()
def perplexity_on(model, examples, batch_of=answers_only):
    """Perplexity of a model on pairs of prompt and answer, in batches of 100."""
    batches = []
    for start in range(0, len(examples), 100):
        prompts, written = zip(*examples[start : start + 100], strict=True)
        tokens, attention_mask, mask = batch_of(prompts, written)
        log_probs = token_log_probs(model(tokens, attention_mask), tokens)
        batches.append((log_probs, mask[:, 1:].float()))
    return float(perplexity(batches))


rng = random.Random("test answers")
test_answers = [toy_world.write_answer(prompt, rng) for prompt in test_prompts]
held_out = [
    (encode(prompt), encode(answer, end=True))
    for prompt, answer in zip(test_prompts, test_answers, strict=True)
]
new_documents = [encode(text, end=True) for text in toy_world.base_corpus(300, seed=99)]
new_documents = [(document[:1], document[1:]) for document in new_documents]

whose("token_log_probs", "perplexity")
prompts_too, _ = fine_tune(base, everything)
models = {"base": base, "SFT": sft, "SFT, prompts learned too": prompts_too}
print(f"{'':26s} {'answers to':>12s} {'their':>9s} {'new':>11s}")
print(f"{'perplexity on':26s} {'new prompts':>12s} {'prompts':>9s} {'documents':>11s}")
prompts_alone = [(prompt[:1], prompt[1:]) for prompt, _ in held_out]
texts = held_out, prompts_alone, new_documents
for name, model in models.items():
    row = [perplexity_on(model, examples) for examples in texts]
    print(f"{name:26s} {row[0]:12.2f} {row[1]:9.2f} {row[2]:11.2f}")
print(f"{'a model that knows nothing':26s} {V:12d} {V:9d} {V:11d}")

# %% [markdown]
# Fine-tuning is *forgetting*, too. The SFT model finds documents, and the very prompts,
# less likely than the base model does: nothing in its loss kept it from that. RLHF does
# the same, and Ouyang et al. (2022, sections 1 and 3.5) call the price an alignment tax:
# they mix pretraining gradients into PPO ("PPO-ptx") against it.
#
# Whether the prompt's tokens belong into the loss is a choice. For the answers it matters
# less than one might think: compare the first column's rows. Shi et al. (2024) found that
# with long instructions and short outputs, learning the prompts too can even help.
#
# And a low perplexity is not yet a good answer. Ouyang et al. (2022, section 3.5) trained
# their SFT models for 16 epochs although the validation loss rose after the first: the
# reward model's scores and people's preferences went on improving.

# %% [markdown]
# ## 6 · Sampling
#
# The policy gives a distribution. How is a token drawn from it?
#
# **Temperature.** Divide the logits by $T$:
#
# $$\pi_T(a\mid s) = \frac{e^{z_a/T}}{\sum_j e^{z_j/T}} \propto \pi(a\mid s)^{1/T}.$$
#
# Two tokens with probabilities in the ratio $r$ have the ratio $r^{1/T}$. $T < 1$
# sharpens; as $T\to0$ all mass goes to the likeliest token (*greedy*); $T > 1$ flattens,
# and $T\to\infty$ is the uniform distribution.
#
# **Top-k** (Fan et al. 2018) keeps the $k$ likeliest tokens. **Top-p**, or *nucleus
# sampling* (Holtzman et al. 2020, section 3.1), keeps the smallest set of likeliest
# tokens whose probabilities sum to at least $p$. Whatever stays is normalised again. The
# reason for both: a model with 50,000 tokens gives each of tens of thousands of absurd
# ones a tiny probability, and together that is not tiny. Write long enough, and you draw
# one.
#
# The course's order is temperature, then top-k, then top-p in what is left.

# %% [markdown]
# ### 04.6 · `sample_next_token` — difficulty 4 of 5, 12 minutes, 3 points
#
# The check draws some twenty thousand tokens for each case and looks at how often each
# came up. *How* you draw is up to you.
#
# <details>
# <summary>Hint 1: cut by −∞</summary>
#
# First temperature 0, as a case of its own: `argmax`. Then divide, and cut twice by
# putting −∞ into (a copy of) the logits. Draw last: `logits.softmax(-1)` and
# `torch.multinomial(probabilities, 1, generator=generator)`, which has shape (B, 1).
#
# </details>
#
# <details>
# <summary>Hint 2: the two cuts</summary>
#
# Top-k: `logits.topk(k).values[:, -1:]` is each row's smallest kept logit; cut what is
# less. Top-p: sort downwards (`sort` gives values *and* the order); the mass **before**
# each token is `p.cumsum(-1) - p`; cut where that is ≥ top_p already. Then put the values
# back into their places: `torch.empty_like(logits).scatter_(-1, order, ranked)`.
#
# </details>
#
# <!-- answer: sample_next_token -->


# %%
def sample_next_token(logits, temperature=1.0, top_k=None, top_p=None, generator=None):
    """Draws one token for each row.

    Args:
        logits: shape (B, V); they are not changed.
        temperature: divides the logits; 0 means the likeliest token.
        top_k: if given, only the k likeliest tokens of a row may come up (all, if k is
            V or more).
        top_p: if given (0 < top_p ≤ 1), only the smallest set of likeliest tokens whose
            probabilities sum to at least top_p; it looks at the distribution that
            temperature and top_k have left, and always keeps the likeliest token.
        generator: a torch.Generator, or None for torch's own.

    Returns:
        Token ids, int64, shape (B,).

    Example: with probabilities [0.5, 0.3, 0.2] and top_p = 0.6, token 0 comes up in 5
    of 8 draws on average, token 1 in 3 of 8, token 2 never.
    """
    # SOLUTION
    if temperature == 0:
        return logits.argmax(-1)
    logits = logits / temperature
    if top_k is not None and top_k < logits.shape[-1]:
        smallest_kept = logits.topk(top_k).values[:, -1:]
        logits = logits.masked_fill(logits < smallest_kept, -torch.inf)
    if top_p is not None:
        ranked, order = logits.sort(-1, descending=True)
        p = ranked.softmax(-1)
        mass_before = p.cumsum(-1) - p
        ranked = ranked.masked_fill(mass_before >= top_p, -torch.inf)
        logits = torch.empty_like(logits).scatter_(-1, order, ranked)
    chosen = torch.multinomial(logits.softmax(-1), 1, generator=generator)  # (B, 1)
    return chosen.squeeze(-1)
    # END SOLUTION


# %%
sample_next_token = check(sample_next_token)

# %% [markdown]
# Here it is on a real distribution, your model's. **Predict:** at temperature ½, how
# much more often does the likeliest token come up than at 1, roughly? And at 2?


# %%
@torch.no_grad()
def next_logits(model, text):
    """Logits of the next token after a text, (V,)."""
    return model(torch.tensor([encode(text)]))[0, -1]


def frequencies(logits, draws=20_000, **settings):
    """How often each token came up, by ``sample_next_token``, (V,)."""
    generator = torch.Generator().manual_seed(0)
    rows = logits.expand(draws, -1)
    drawn = sample_next_token(rows, generator=generator, **settings)
    return drawn.bincount(minlength=V) / draws


whose("sample_next_token")
FLAT = "how do i make salad ? you need"
SURE = "how do i make salad ? you need lettuce and oil . mix it"
flat = next_logits(sft, FLAT)
order = flat.argsort(descending=True)[:12]
figure, axes = plt.subplots(figsize=(9, 3.6), layout="constrained")
temperatures = {0.5: BLUE, 1.0: SKY, 2.0: ORANGE}
tops = []
for i, (temperature, colour) in enumerate(temperatures.items()):
    drawn = frequencies(flat, temperature=temperature)
    tops.append(drawn[order[0]].item())
    axes.bar(np.arange(12) + 0.28 * (i - 1), drawn[order], 0.28, color=colour,
             label=f"T = {temperature}: {drawn[order].sum():.0%} on these 12")
axes.set(title=f"“you need …”: the likeliest ingredient comes up in {tops[0]:.0%}, "
         f"{tops[1]:.0%} and {tops[2]:.0%} of draws at T = ½, 1 and 2",
         xlabel="next token, the 12 likeliest",
         ylabel="share of 20,000 draws", xticks=range(12))
axes.set_xticklabels([tokenizer.words[t] for t in order], rotation=30, ha="right")
axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
axes.spines[["top", "right"]].set_visible(False)
axes.legend(frameon=False)
plt.show()
p = flat.softmax(-1)
for T, drawn in zip(temperatures, tops, strict=True):
    exact = (p ** (1 / T) / (p ** (1 / T)).sum()).max()
    print(f"T = {T}: π^(1/T), normalised, gives {exact:.3f}; drawn {drawn:.3f}")

# %% [markdown]
# At T = ½ the probabilities are squared and normalised again, at T = 2 it is their square
# roots. Where a few tokens are about equally likely, as here, squaring takes little from
# the second and third; what the first one gains comes from the long tail.

# %%
SHOWN = 14
figure, panels = plt.subplots(1, 2, figsize=(10.5, 3.7), layout="constrained")
kept = []
for axes, text in zip(panels, (FLAT, SURE), strict=True):
    z = next_logits(sft, text)
    order = z.argsort(descending=True)[:SHOWN]
    nucleus = frequencies(z, top_p=0.9) > 0
    kept.append(int(nucleus.sum()))
    colours = [BLUE if nucleus[t] else "#BBBBBB" for t in order]
    axes.bar(range(SHOWN), z.softmax(-1)[order], color=colours)
    axes.axvline(4.5, color=RED, linestyle="--", linewidth=1.2)
    axes.text(4.65, 0.93, "top-k with k = 5\nkeeps what is left of here", color=RED,
              fontsize=9, va="top", transform=axes.get_xaxis_transform())
    axes.set(title=f"“… {' '.join(text.split()[-3:])} …”\ntop-p = 0.9 keeps {kept[-1]}"
             f" token{'s' if kept[-1] > 1 else ''} (blue)",
             xlabel="next token, the likeliest first", ylabel="π(token | context)",
             xticks=range(SHOWN))
    axes.set_xticklabels([tokenizer.words[t] for t in order], rotation=50, ha="right",
                         rotation_mode="anchor")
    axes.spines[["top", "right"]].set_visible(False)
plt.show()

# %% [markdown]
# The nucleus breathes: wide where much can follow, narrow where little can. A fixed $k$
# is too small for one context or too large for the other, and often both (this is
# Holtzman et al.'s argument, section 3.2).
#
# **A sampler for whole answers** is a loop around your function. The state grows by the
# action, and rows that have ended only write padding.


# %%
@torch.no_grad()
def write(model, texts, seed=0, max_new_tokens=32, **settings):
    """An answer to each prompt, as token ids, with the end token if there is one."""
    tokens, mask = pad_sequences([encode(text) for text in texts], PAD, left=True)
    generator = torch.Generator().manual_seed(seed)
    cache = KeyValueCache(model.config, len(texts), tokens.shape[1] + max_new_tokens)
    ended = torch.zeros(len(texts), dtype=torch.bool)
    new, columns, real = tokens, [], []
    for _ in range(max_new_tokens):
        logits = model(new, mask, cache)[:, -1]  # (B, V)
        chosen = sample_next_token(logits, generator=generator, **settings)
        new = chosen.masked_fill(ended, PAD)[:, None]
        mask = torch.cat([mask, (~ended).long()[:, None]], dim=1)
        columns.append(new)
        real.append(~ended)
        ended = ended | (chosen == END)
        if ended.all():
            break
    rows = torch.cat(columns, 1).tolist()
    lengths = torch.stack(real, 1).sum(-1).tolist()
    return [row[:length] for row, length in zip(rows, lengths, strict=True)]


# %%
whose("sample_next_token")
SETTINGS = {
    "all tokens": [dict(temperature=T) for T in (0, 0.3, 0.6, 1.0, 1.5, 2.0)],
    "top-p = 0.9": [dict(temperature=T, top_p=0.9) for T in (0.3, 0.6, 1.0, 1.5, 2.0)],
}
prompts = test_prompts[:40]
repeated = [prompt for prompt in prompts for _ in range(8)]
found = {}
print("sampling                     different answers of 8    mean gold reward")
for name, list_of_settings in SETTINGS.items():
    for settings in list_of_settings:
        written = write(sft, repeated, **settings)
        gold = gold_of(repeated, written)
        groups = [written[i : i + 8] for i in range(0, len(written), 8)]
        different = np.mean([len(set(map(tuple, group))) for group in groups])
        T = settings["temperature"]
        found.setdefault(name, []).append((different, gold["mean"], gold["se"], T))
        print(f"{name:12s} T = {T:<10} {different:22.1f} {gold['mean']:14.2f} ± "
              f"{1.96 * gold['se']:.2f}")

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(10.5, 3.6), layout="constrained")
for (name, rows), colour in zip(found.items(), (ORANGE, BLUE), strict=True):
    different, gold, error, T = zip(*rows, strict=True)
    left.errorbar(T, gold, yerr=1.96 * np.array(error), fmt="o-", color=colour,
                  capsize=3, label=f"{name} (bars: 95% intervals)")
    right.plot(T, different, "o-", color=colour, label=name)
left.set(title="Hotter answers are worse; cutting the tail helps", xlabel="temperature",
         ylabel="mean gold reward")
right.set(title="Hotter answers are more varied", xlabel="temperature", ylim=(0, 8.4),
          ylabel="different answers among 8")
for axes in (left, right):
    axes.spines[["top", "right"]].set_visible(False)
left.legend(frameon=False, loc="lower left")
plt.show()

# %% [markdown]
# Variety and quality are traded, and temperature is the dial. Top-p makes hot sampling
# far less bad. But compare rows of *like variety* in the table before you call it better:
# in the kitchen a lower temperature buys about as much. (149 tokens are not 50,000: the
# tail that top-p is made for is short.) Even greedy answers are fine here, where answers
# are short; on long texts, always going for the likeliest ends in repetition (Holtzman et
# al. 2020, section 1).
#
# **A warning for all that follows.** With $T \neq 1$, top-k or top-p you sample from
# *another policy*. The log-probabilities of section 3 are those of the model itself. In
# policy gradients the two must be the same: therefore RL samples with $T = 1$ and cuts
# nothing.

# %% [markdown]
# ## 7 · The cache: why writing is not quadratically slow
#
# To write the token after position $t$, the model needs the keys and values of all
# positions up to $t$. Positions never look ahead, so those of *earlier* positions are the
# same as in the step before. Compute them once and keep them: the **key-value cache**.
#
# After a prompt of $P$ tokens, writing $N$ more costs, counted in positions that go
# through the network,
#
# $$\text{without: } \sum_{i=0}^{N-1}(P + i) = NP + \tfrac{N(N-1)}{2},
# \qquad\text{with: } P + N - 1 .$$
#
# (Attention still looks back at all keys, so that even with a cache each token costs a
# little more than the last. But that is one row of products, not a network.)
#
# The price is memory: $2 \cdot \text{layers} \cdot \text{heads} \cdot D$ numbers for
# each token of each sequence. Mistral-7B (Jiang et al. 2023) has 32 layers and 8
# key-value heads of 128 numbers: $2\cdot32\cdot8\cdot128 = 65{,}536$ numbers, or 128 KiB
# a token at 16 bits, and 1 GiB for a sequence of 8,192. (With a key-value head for each
# of its 32 query heads it would be four times that: the reason for grouped heads.
# Shazeer 2019 began it.)
#
# First, that it changes nothing. Your attention, one token at a time, with keys and
# values kept in a list, against the whole text at once:


# %%
@torch.no_grad()
def logits_one_by_one(model, tokens):
    """Logits (1, T, V), reading one token at a time and keeping keys and values."""
    W, H = model.config.width, model.config.heads
    kept, found = [[] for _ in model.blocks], []
    for t in range(tokens.shape[1]):
        x = model.embed_token(tokens[:, t : t + 1]) + model.embed_position.weight[t]
        for block, cache in zip(model.blocks, kept, strict=True):
            three = block.query_key_value(block.norm_1(x)).view(1, 1, 3, H, W // H)
            query, key, value = three.permute(2, 0, 3, 1, 4)  # (1, H, 1, D)
            cache.append((key, value))
            keys, values = (torch.cat(part, 2) for part in zip(*cache, strict=True))
            mixed = causal_attention(query, keys, values)  # one query, t + 1 keys
            x = x + block.project(mixed.transpose(1, 2).reshape(1, 1, W))
            x = x + block.narrow(F.relu(block.widen(block.norm_2(x))))
        found.append(model.norm(x) @ model.embed_token.weight.T)
    return torch.cat(found, 1)


whose("causal_attention")
tokens = torch.tensor([encode(text, end=True)])
gap = (logits_one_by_one(sft, tokens) - sft(tokens)).abs().max().item()
print(f"largest difference of the logits: {gap:.1e}")

# %% [markdown]
# Then the speed: an untrained GPT of the same width with a longer context, 8 sequences at
# a time, by the package's `generate` with and without its cache. The two take turns, so
# that whatever else the machine does meets both, and the best of three counts.
# **Predict** the ratio for 256 tokens. How many positions does the formula say?

# %%
torch.manual_seed(0)
long_model = GPT(GPTConfig(vocab_size=V, context=320))
start = torch.randint(2, V, (8, 8))
LENGTHS = (8, 32, 128, 256)


def cpu_seconds(use_cache, n):
    """CPU time to write n tokens after each of 8 prompts; no token ends them."""
    options = dict(max_new_tokens=n, end_id=-1, use_cache=use_cache)
    before = time.process_time()
    generate(long_model, start, **options)
    return time.process_time() - before


speeds = {}
for n in LENGTHS:
    times = [(cpu_seconds(True, n), cpu_seconds(False, n)) for _ in range(3)]
    speeds[n] = [8 * n / min(column) for column in zip(*times, strict=True)]
print("tokens written   with cache    without    ratio   positions: with / without")
for n, (cached, uncached) in speeds.items():
    counted = 8 + n - 1, 8 * n + n * (n - 1) // 2
    print(f"{n:14d} {cached:8,.0f} /s {uncached:8,.0f} /s  {cached / uncached:6.1f}"
          f"   {counted[0]:7,d} / {counted[1]:,d}")

# %%
figure, axes = plt.subplots(figsize=(6.8, 3.5), layout="constrained")
for i, (name, colour) in enumerate((("with cache", BLUE), ("without", ORANGE))):
    axes.plot(LENGTHS, [speeds[n][i] for n in LENGTHS], "o-", color=colour, label=name)
axes.set(title="Without a cache, every further token comes more slowly",
         xlabel="tokens written to each of 8 prompts", ylabel="tokens per CPU second",
         xscale="log", yscale="log", xticks=LENGTHS)
axes.set_xticks(LENGTHS, LENGTHS)
axes.set_yticks([500, 1000, 2000, 5000, 10_000, 20_000])
axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
axes.minorticks_off()
axes.spines[["top", "right"]].set_visible(False)
axes.legend(frameon=False, loc="lower left")
plt.show()

# %% [markdown]
# The measured ratio grows with the length, as it should, and stays well below that of the
# positions. Many positions in one matrix product cost less than one each: with the cache,
# a step on a model this small is mostly the fixed price of calling dozens of operations.
# On a GPU the same is true of large models: there, a step with cache is bound by reading
# the weights and the cache from memory (Shazeer 2019; Pope et al. 2022).
#
# And in *training* there is no cache: a whole answer is scored in one pass. Writing is
# what costs time in RLHF.

# %% [markdown]
# ## 8 · Bug hunt: the model that never stops
#
# Many tokenizers have no padding token. A popular remedy is one line,
# `tokenizer.pad_token = tokenizer.eos_token`: pad with the end token. A colleague does
# that in the kitchen, and writes the labels the way that many scripts do: a copy of the
# tokens, with −100 ("ignore") wherever there is nothing to learn.


# %%
def collate_as_found(prompts, answers, end_id):
    """Tokens, attention mask and labels, padded with the end token."""
    rows = [prompt + answer for prompt, answer in zip(prompts, answers, strict=True)]
    width = max(map(len, rows))
    tokens = torch.tensor([row + [end_id] * (width - len(row)) for row in rows])
    attention_mask = (tokens != end_id).long()
    labels = tokens.clone()
    labels[tokens == end_id] = -100  # padding
    for row, prompt in enumerate(prompts):
        labels[row, : len(prompt)] = -100
    return tokens, attention_mask, labels


def batches_by(collate):
    """The same as a ``batch_of`` for ``fine_tune``: a mask instead of labels."""

    def batch_of(prompts, answers):
        tokens, attention_mask, labels = collate(prompts, answers, END)
        return tokens, attention_mask, (labels != -100).long()

    return batch_of


whose("sft_loss", "sample_next_token")
broken, broken_losses = fine_tune(base, batches_by(collate_as_found))
print("last 30 steps: loss as it should be "
      f"{np.mean(losses[-30:]):.3f}, as found {np.mean(broken_losses[-30:]):.3f}")
some = test_prompts[:4]
for prompt, answer in zip(some, write(broken, some), strict=True):
    print(f"{prettify(prompt)}\n    {prettify(tokenizer.decode(answer))}"
          f"{'' if answer[-1] == END else ' …'}")

# %% [markdown]
# **Find it.** The loss looks healthy, if anything better. Look at the first row of a
# small batch: which tokens have a label?

# %%
tokens, attention_mask, labels = collate_as_found(
    [encode("how do i make soup ?"), encode("any ideas ?")],
    [encode("take carrot .", end=True), encode("sure , boil it well .", end=True)],
    END,
)
print("token         attention   label")
for token, seen, label in zip(tokens[0], attention_mask[0], labels[0], strict=True):
    meant = tokenizer.words[label] if label >= 0 else "-"
    print(f"{tokenizer.words[token]:13s} {seen:5d}       {meant}")

# %% [markdown]
# **Understand it.** Padding was recognised by its *id*. But the answer's own end has the
# same id, and lost its label with the padding. No gradient ever says "now stop".
#
# This is no invention. `DataCollatorForLanguageModeling` of the transformers library
# makes its labels so (`labels[labels == pad_token_id] = -100`), and with pad = eos it
# ignores every end: issue 23530 of huggingface/transformers (2023). Issue 976 of
# huggingface/trl (2023) tells the same of answers-only fine-tuning on it: the model
# "rarely (if ever)" ended.
#
# ### 04.7 · `collate_examples` — difficulty 2 of 5, 6 minutes, 2 points
#
# **Mend it**, still padding with the end token. Beware of quick remedies: a prompt may
# hold end tokens (earlier turns of a conversation), and an answer that was cut off has
# none. Both masks are wrong as found.
#
# <details>
# <summary>Hint 1: what knows where padding begins</summary>
#
# The lengths of the rows do, before they are padded; ids do not. Make the attention mask
# from `len(row)`: position < length.
#
# </details>
#
# <details>
# <summary>Hint 2: you have written the other half</summary>
#
# `response_mask(attention_mask, prompt_lengths)` says which tokens are learned. Labels
# are `tokens.masked_fill(mask == 0, -100)`.
#
# </details>
#
# <!-- answer: collate_examples -->


# %%
def collate_examples(prompts, answers, end_id):
    """A batch for fine-tuning, padded on the right with the end token.

    Args:
        prompts: B lists of token ids; there may be end tokens among them.
        answers: B lists of token ids; most end with the end token.
        end_id: the end token, which serves as padding too.

    Returns:
        tokens, attention_mask, labels: int64, each (B, T). attention_mask is 1 on all
        tokens of prompt and answer. labels are the answers' tokens where they stand,
            −100 on prompts and padding.

    (The package's pad_sequences is taken away while yours is tried.)

    Example: prompts [[5, 6], [5]], answers [[7, 2], [2]], end_id 2 give tokens
    [[5, 6, 7, 2], [5, 2, 2, 2]], attention_mask [[1, 1, 1, 1], [1, 1, 0, 0]] and labels
    [[−100, −100, 7, 2], [−100, 2, −100, −100]].
    """
    # SOLUTION
    rows = [prompt + answer for prompt, answer in zip(prompts, answers, strict=True)]
    lengths = torch.tensor([len(row) for row in rows])
    width = max(map(len, rows))
    tokens = torch.tensor([row + [end_id] * (width - len(row)) for row in rows])
    attention_mask = (torch.arange(width) < lengths[:, None]).long()
    prompt_lengths = torch.tensor([len(prompt) for prompt in prompts])
    mask = response_mask(attention_mask, prompt_lengths)
    return tokens, attention_mask, tokens.masked_fill(mask == 0, -100)
    # END SOLUTION


# %%
collate_examples = check(collate_examples)

# %% [markdown]
# Our base model has one advantage: it saw end tokens behind its documents, and
# fine-tuning as found only lets it *forget* them. Often the base has not even that. The
# end token of a chat template is usually new at fine-tuning, and nothing is known about
# it. So we train twice more from fresh weights, which have never seen an end.
#
# **Predict** for each of the four models how many of 300 answers end within 32 tokens.

# %%
whose("collate_examples", "sft_loss", "sample_next_token")
torch.manual_seed(1)
fresh = GPT(GPTConfig(vocab_size=V))
runs = {
    "base, mended": fine_tune(base, batches_by(collate_examples))[0],
    "base, as found": broken,
    "fresh, mended": fine_tune(fresh, batches_by(collate_examples))[0],
    "fresh, as found": fine_tune(fresh, batches_by(collate_as_found))[0],
}
written = {name: write(model, test_prompts, seed=3) for name, model in runs.items()}


@torch.no_grad()
def on_ends_and_words(model):
    """On people's answers: mean π(end) at the ends; loss of the ends, of the words."""
    tokens, attention_mask, mask = answers_only(*zip(*held_out, strict=True))
    log_probs = token_log_probs(model(tokens, attention_mask), tokens)
    last = attention_mask.sum(-1, keepdim=True) - 1  # where the answer's end stands
    ends = (torch.arange(1, tokens.shape[1]) == last).float()
    words = mask[:, 1:] - ends
    p, end, word = ((x * w).sum() / w.sum() for x, w in (
        (log_probs.exp(), ends), (-log_probs, ends), (-log_probs, words)))
    return f"{p:10.4f} {end:12.2f} {word:13.2f}"


print("                  300 answers of its own    mean over 300 answers of people")
print("                     end   mean length     π(end)  −log π(end)  −log π(word)")
for name, model in runs.items():
    ended = np.mean([answer[-1] == END for answer in written[name]])
    length = np.mean([len(answer) for answer in written[name]])
    print(f"{name:16s} {ended:7.1%} {length:13.1f} {on_ends_and_words(model)}")

# %%
figure, axes = plt.subplots(figsize=(7.8, 3.9), layout="constrained")
by_people = [answer for _, answer in held_out]
lines = {"people": (by_people, "black", ":"), "base, mended": (None, BLUE, "-"),
         "fresh, mended": (None, SKY, "--"), "base, as found": (None, RED, "-"),
         "fresh, as found": (None, ORANGE, "--")}
shares = {}
for name, (texts, colour, dash) in lines.items():
    texts = written[name] if texts is None else texts
    shares[name] = [np.mean([len(a) <= n and a[-1] == END for a in texts])
                    for n in range(33)]
    axes.step(range(33), shares[name], dash, where="post", color=colour, linewidth=2,
              label=f"{name}: {shares[name][-1]:.0%}")
with_base, without = (shares[f"{start}, as found"][-1] for start in ("base", "fresh"))
axes.set(title=f"Padding masked by id: {with_base:.0%} of the answers end,\n"
         f"and {without:.0%} without a base that knew how",
         xlabel="tokens written", ylabel="share of answers that have ended",
         xlim=(0, 32), ylim=(-0.03, 1.03))
axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
axes.spines[["top", "right"]].set_visible(False)
axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
plt.show()

# %% [markdown]
# A model from fresh weights, trained as found, never stops: the end token only ever
# appears among the tokens that were *not* chosen, so the gradient of section 3 pushes it
# down at every single step. And where a base knew how to end, fine-tuning takes most of
# it away.
#
# With a padding token of its own, as the kitchen's tokenizer has, masking by id is
# harmless. Masking by position is right in both cases, and costs nothing.
#
# *How would you notice?* Not from the loss: it even fell. Wherever an answer might end,
# the mended model must leave some probability to the end; as found, words get all of it,
# and their loss is lower (last column). The loss of the ends alone, next to it, tells at
# once: it is above the log 149 ≈ 5 nats of a model that knows nothing. Put it into the
# log, and with it the share of sampled answers that end within the limit.

# %% [markdown]
# ## 9 · To discuss
#
# 1. The answer "take dough ." has the log-probability −5, the answer "sure , you need
#    dough , tomato and cheese . bake it well ." has −12. Is the first one better, in the
#    model's opinion? What would you compare?
#
# <details>
# <summary>What we think</summary>
#
# A sum over tokens falls with every token: long answers are always unlikely. As a whole
# the first *is* likelier to be sampled. But "how well is each token predicted" is the
# mean, −5/4 = −1.25 against −12/15 = −0.8 (with their end tokens). Neither is an opinion
# on quality. Lesson 07 comes back to this: DPO needs the sum, SimPO chose the mean.
#
# </details>
#
# 2. In which sense is $T = 0$ no policy for reinforcement learning? What would REINFORCE
#    do with its samples?
#
# <details>
# <summary>What we think</summary>
#
# The same answer comes each time, so there is nothing to compare; minus a baseline the
# return is 0, and so is the update. Without a baseline, whatever is said anyway is
# pushed up. Learning from one's own samples needs samples that differ.
#
# </details>
#
# 3. The tempered policy is the answer to a question. Show that
#    $\pi_T = \operatorname{argmax}_q\ \mathbb{E}_{a\sim q}[\log\pi(a)] + T\,H(q)$.
#    What takes the place of $\log\pi$ in lesson 06?
#
# <details>
# <summary>What we think</summary>
#
# With $Z = \sum_a\pi(a)^{1/T}$ the objective is
# $\sum_a q(a)\left[\log\pi(a) - T\log q(a)\right]
# = -T\sum_a q(a)\log\frac{q(a)}{\pi(a)^{1/T}}
# = -T\,\mathrm{KL}\!\left(q\,\|\,\pi_T\right) + T\log Z$,
# largest where the divergence is 0. In RLHF the reward stands in the place of $\log\pi$
# and the distance from a reference in that of the entropy; the same two lines then give
# $\pi^* \propto \pi_{\mathrm{ref}}\,e^{r/\beta}$.
#
# </details>
#
# 4. In training, the model always continues what a *person* wrote. When it writes, it
#    continues itself. What follows for the states that it meets?
#
# <details>
# <summary>What we think</summary>
#
# After its first slip it is in a state that no demonstration contains, and what it does
# there was never trained; slips may add up. That is behaviour cloning's known weakness:
# errors may grow with the square of the episode's length (Ross & Bagnell 2010, restated
# in Ross, Gordon & Bagnell 2011, section 2). RLHF trains on the model's own episodes, and
# so on the states that it really meets.
#
# </details>
#
# 5. Somebody mends the bug by adding a new token for padding. What must change in the
#    model, and what can go wrong?
#
# <details>
# <summary>What we think</summary>
#
# The embedding needs one row more (tied: the output too), with weights for it, and
# checkpoint and tokenizer must travel together. If the row starts at random it also takes
# part in every softmax, and may even be sampled until training has pushed it down. A mask
# by position needs none of this.
#
# </details>
#
# 6. Two language models use different tokenizers. Can you compare their perplexities?
#
# <details>
# <summary>What we think</summary>
#
# Not a token: whoever cuts text into more, smaller pieces has easier guesses. Compare the
# total −log π of the same *text*, or bits per character or byte.
#
# </details>
#
# ## What to read next
#
# - A. Vaswani et al., *Attention is all you need*, 2017, arXiv 1706.03762.
# - A. Radford et al., *Language models are unsupervised multitask learners*, OpenAI 2019:
#   GPT-2, the form that this lesson's model has.
# - O. Press & L. Wolf, *Using the output embedding to improve language models*, EACL
#   2017, arXiv 1608.05859: tied weights.
# - A. Fan, M. Lewis & Y. Dauphin, *Hierarchical neural story generation*, ACL 2018, arXiv
#   1805.04833: top-k sampling.
# - A. Holtzman et al., *The curious case of neural text degeneration*, ICLR 2020, arXiv
#   1904.09751: top-p sampling, and why likely text is dull.
# - L. Ouyang et al., *Training language models to follow instructions with human
#   feedback*, 2022, arXiv 2203.02155: SFT as the first of three steps.
# - R. Ramamurthy et al., *Is reinforcement learning (not) for natural language
#   processing?*, ICLR 2023, arXiv 2210.01241: writing as a decision process.
# - Z. Shi et al., *Instruction tuning with loss over instructions*, 2024, arXiv
#   2405.14394.
# - N. Shazeer, *Fast transformer decoding: one write-head is all you need*, 2019, arXiv
#   1911.02150; R. Pope et al., *Efficiently scaling transformer inference*, 2022, arXiv
#   2211.05102; A. Jiang et al., *Mistral 7B*, 2023, arXiv 2310.06825.
# - S. Ross, G. Gordon & D. Bagnell, *A reduction of imitation learning and structured
#   prediction to no-regret online learning*, AISTATS 2011, arXiv 1011.0686.
# - The package's `rlhf_minimal/gpt.py`, `log_probs.py`, `sft.py` and `sampling.py`: this
#   lesson in code.
#
# **Next: lesson 05.** Where the reward comes from: from people who compare two answers to
# a number for each.

# %%
print(f"{time.process_time():.0f} seconds of CPU time in this notebook so far")
