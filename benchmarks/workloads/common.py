"""What the workloads share: models, data, the clock, and the one line that a run prints.

Models are GPT-2s of transformers with random weights, without dropout and with ReLU, so that the
course's GPT with the same weights is the same function: all sides of a comparison compute the same
losses, and a run reports them. All sequences have full length: no side gains by padding less.

Leaves out: the workloads themselves, one a file beside this one.
"""

import argparse
import json
import os
import random
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from rlhf_minimal.history import History  # noqa: E402  (imports no torch)

PAD, END = 0, 1


class Shape(NamedTuple):
    """A model's sizes and those of its data."""

    width: int
    layers: int
    heads: int
    vocab: int
    prompt: int  # tokens of a prompt
    answer: int  # tokens of an answer

    @property
    def length(self) -> int:
        return self.prompt + self.answer


SMALL = Shape(width=128, layers=4, heads=4, vocab=400, prompt=24, answer=24)     # 0.86 M weights
LARGE = Shape(width=384, layers=7, heads=6, vocab=3400, prompt=64, answer=64)    # 13.8 M weights


class Aim(NamedTuple):
    """``ours`` should be at least (``at_most``: at most) ``factor`` times ``peer``."""

    ours: str
    peer: str
    factor: float
    what: str = "rate"  # or "peak_mib", "seconds"

    @property
    def at_most(self) -> bool:
        return self.what != "rate"


class Variant(NamedTuple):
    """One way to do the work: a function of ``quick`` and ``turn``, and whose Python runs it."""

    run: object
    options: Mapping = MappingProxyType({})
    python: str = "bench"  # or "ppo": the environment with the TRL that had PPO
    once: bool = False  # in the first round only: what takes many times as long


# --- models and data ------------------------------------------------------------------------------


def gpt2_config(shape: Shape):
    from transformers import GPT2Config

    return GPT2Config(
        vocab_size=shape.vocab, n_positions=shape.length, n_embd=shape.width,
        n_layer=shape.layers, n_head=shape.heads, activation_function="relu",
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
        pad_token_id=PAD, eos_token_id=END, bos_token_id=END,
    )


def gpt2(shape: Shape):
    """A causal language model of transformers; the same weights each time."""
    import torch
    from transformers import GPT2LMHeadModel

    torch.manual_seed(0)
    return GPT2LMHeadModel(gpt2_config(shape))


def our_gpt(shape: Shape):
    """The course's GPT with :func:`gpt2`'s weights."""
    return as_our_gpt(gpt2(shape), shape)


def as_our_gpt(model, shape: Shape):
    """The course's GPT with a GPT-2's weights; that one keeps linear weights as (in, out)."""
    import torch

    from rlhf_minimal.gpt import GPT, GPTConfig

    ours = GPT(GPTConfig(shape.vocab, shape.length, shape.width, shape.layers, shape.heads))
    names = {
        "norm_1": "ln_1", "norm_2": "ln_2", "query_key_value": "attn.c_attn",
        "project": "attn.c_proj", "widen": "mlp.c_fc", "narrow": "mlp.c_proj",
    }
    trunk = model.base_model
    with torch.no_grad():
        ours.embed_token.weight.copy_(trunk.wte.weight)
        ours.embed_position.weight.copy_(trunk.wpe.weight)
        for name in ("weight", "bias"):
            getattr(ours.norm, name).copy_(getattr(trunk.ln_f, name))
        for block, theirs in zip(ours.blocks, trunk.h, strict=True):
            for mine, other in names.items():
                layer, source = block.get_submodule(mine), theirs.get_submodule(other)
                layer.weight.copy_(source.weight if "norm" in mine else source.weight.T)
                layer.bias.copy_(source.bias)
    return ours


def parameters(model) -> int:
    return sum(p.numel() for p in model.parameters())


def random_prompts(shape: Shape, count: int) -> list[list[int]]:
    noise = random.Random(1)
    return [[noise.randrange(2, shape.vocab) for _ in range(shape.prompt)] for _ in range(count)]


def random_pairs(shape: Shape, count: int):
    """Token pairs of full length, each answer ending with the end token."""
    from rlhf_minimal.pairs import TokenPair

    noise = random.Random(0)
    draw = lambda n: [noise.randrange(2, shape.vocab) for _ in range(n)]  # noqa: E731
    return [
        TokenPair(draw(shape.prompt), [*draw(shape.answer - 1), END],
                  [*draw(shape.answer - 1), END])
        for _ in range(count)
    ]


def in_our_order(pairs, batch_size: int, steps: int, seed: int = 0):
    """The pairs in the order in which our loop will take them; the peer reads them one by one."""
    import torch

    from rlhf_minimal.pairs import pair_batches

    batches = pair_batches(pairs, batch_size, steps, torch.Generator().manual_seed(seed))
    return [pairs[i] for batch in batches for i in batch.tolist()]


def tokenizer(shape: Shape, ends: bool = True):
    """A word a token, for those who insist on text.

    With ``ends=False`` the end token's number is one that no model can produce, so that every
    sampled answer has full length on all sides.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {f"w{i}": i for i in range(shape.vocab)}
    del words[f"w{PAD}"], words[f"w{END}"]
    words |= {"<pad>": PAD, "<end>": END if ends else shape.vocab}
    core = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", eos_token="<end>")


def text(tokens) -> str:
    return " ".join(f"w{token}" for token in tokens)


def pair_rows(pairs) -> list[dict]:
    """Pairs as TRL wants them; it adds the end token itself."""
    return [
        {"prompt": text(p.prompt), "chosen": " " + text(p.chosen[:-1]),
         "rejected": " " + text(p.rejected[:-1])}
        for p in pairs
    ]


# --- TRL ------------------------------------------------------------------------------------------


def quieten() -> None:
    import warnings

    import datasets
    import transformers

    os.environ["TQDM_DISABLE"] = "1"
    datasets.disable_progress_bars()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    warnings.filterwarnings("ignore")


def trl_settings(cls, tuned: bool, folder, **options):
    """A trainer's settings: what the work demands, and on top, ``tuned``, what is best on a CPU."""
    common = dict(output_dir=folder, report_to="none", save_strategy="no", disable_tqdm=True,
                  lr_scheduler_type="constant", seed=0, use_cpu=True)
    best = dict(bf16=False, gradient_checkpointing=False, dataloader_pin_memory=False,
                logging_steps=10_000, optim="adamw_torch_fused")
    return cls(**{**common, **(best if tuned else {}), **options})


def ticking(clock):
    """A callback that tells the clock of every step."""
    from transformers import TrainerCallback

    class Ticks(TrainerCallback):
        def on_train_begin(self, *args, **kwargs):
            clock.start()

        def on_step_end(self, *args, **kwargs):
            clock.tick()

    return Ticks()


# --- the clock ------------------------------------------------------------------------------------


AFTER_WARM_UP: list = []  # what is called once the steps that count begin: a profiler's start


def warmed_up() -> None:
    for call in AFTER_WARM_UP:
        call()


class Clock(History):
    """Seconds of every step. As the ``history`` of one of our loops it ticks with each record."""

    def __init__(self, warm_up: int):
        super().__init__()
        self.warm_up, self.seconds, self.cpu = warm_up, [], []
        self.start()

    def start(self) -> None:
        self.last, self.last_cpu = time.perf_counter(), time.process_time()

    def tick(self) -> None:
        before, before_cpu = self.last, self.last_cpu
        self.start()
        self.seconds.append(self.last - before)
        self.cpu.append(self.last_cpu - before_cpu)
        if len(self.seconds) == self.warm_up:
            warmed_up()
            self.start()

    def __enter__(self):
        self.start()
        return super().__enter__()

    def record(self, **numbers) -> None:
        super().record(**numbers)
        self.tick()

    @property
    def per_step(self) -> float:
        """Mean over the steps that count; the mean, because stalls belong to the price."""
        counted = self.seconds[self.warm_up:]
        return sum(counted) / len(counted)

    def columns(self) -> dict:
        """What each step took; processor time is what a busy machine leaves nearly true."""
        counted = self.cpu[self.warm_up:]
        return {"seconds": [round(s, 4) for s in self.seconds],
                "cpu_per_step": sum(counted) / len(counted)}


def status_mib(name: str) -> float:
    """``VmHWM`` (the peak) or ``VmRSS`` of this process."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name):
            return int(line.split()[1]) / 1024
    raise OSError(f"/proc/self/status has no {name}")


# --- how much work it is --------------------------------------------------------------------------


def forward_flop(shape: Shape, with_logits: bool = True, answers: int = 1) -> float:
    """Multiplications and additions of one forward pass over a prompt and its answers.

    Two a weight and token; each token attends to those before it; logits at the answers' tokens.
    """
    tokens = shape.prompt + answers * shape.answer
    looks = shape.prompt**2 + answers * (shape.length**2 - shape.prompt**2)
    trunk = 2 * 12 * shape.width**2 * shape.layers * tokens
    attention = 2 * shape.width * looks * shape.layers
    logits = 2 * shape.width * shape.vocab * answers * shape.answer if with_logits else 0
    return trunk + attention + logits


def training_bytes(shape: Shape, prompts: int, weights: int, answers: int = 1) -> float:
    """Bytes that a training step on prompts with so many answers each moves at least, roughly.

    Some 16 numbers of the model's width a token and layer are kept for the way back; each is
    written, read on, read again, and its gradient written and read. The logits likewise, twice.
    Weights are read twice, their gradient written, and AdamW reads four arrays and writes three.
    """
    tokens = shape.prompt + answers * shape.answer
    kept = 16 * shape.width * shape.layers * tokens + 2 * shape.vocab * answers * shape.answer
    return 4 * (5 * kept * prompts + 10 * weights)


# --- one run --------------------------------------------------------------------------------------


def run_variant(variants: dict) -> None:
    """``--variant NAME``: do it in this process and print one JSON line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--variant", required=True, choices=list(variants))
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--turn", type=int, default=0)
    parser.add_argument("--quick", action="store_true")
    given = parser.parse_args()
    import torch

    torch.set_num_threads(given.threads)
    variant = variants[given.variant]
    result = variant.run(given.quick, given.turn, given.variant, **variant.options)
    result |= {"variant": given.variant, "threads": torch.get_num_threads()}
    result.setdefault("peak_mib", status_mib("VmHWM"))
    print("RESULT " + json.dumps(result), flush=True)


def now_mib(models: bool = True) -> float:
    """Memory in use after imports, before models and data: what a library costs just to be there.

    Called by each variant once its imports are done; transformers' model is imported here, for
    all sides alike.
    """
    if models:
        from transformers import GPT2ForSequenceClassification, GPT2LMHeadModel  # noqa: F401
    return status_mib("VmRSS")
