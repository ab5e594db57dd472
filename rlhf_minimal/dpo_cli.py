"""``python -m rlhf_minimal dpo``: the arguments of aligning a real model on a file of preferences.

Leaves out: the run itself, which is :mod:`rlhf_minimal.dpo_run`, and sampling from the result.
"""

import argparse
import sys
from pathlib import Path

__all__ = ["LECTURE_TARGETS", "add_dpo_command"]

# Seven of a Mistral's eight kinds of linear layer, as a published lecture chose them. Without
# o_proj it trains 75.5 million weights in the decoder's layers; with it, 83.9 million.
LECTURE_TARGETS = "q_proj,k_proj,v_proj,gate_proj,up_proj,down_proj,lm_head"


def _at_least(low, kind=int):
    """An argparse type: a number of ``kind`` that is ``low`` or more."""

    def parse(text):
        try:
            value = kind(text)
        except ValueError:
            value = None
        if value is None or not low <= value < float("inf"):
            raise argparse.ArgumentTypeError(f"{text!r} is not a number of {low} or more")
        return value

    return parse


def _positive(text):
    value = _at_least(0.0, float)(text)
    if value == 0:
        raise argparse.ArgumentTypeError("0 is not a number above 0")
    return value


def _below(limit):
    def parse(text):
        value = _at_least(0.0, float)(text)
        if value >= limit:
            raise argparse.ArgumentTypeError(f"{text!r} is not in [0, {limit})")
        return value

    return parse


def _names(text):
    return [name.strip() for name in text.split(",") if name.strip()]


def add_dpo_command(subparsers) -> None:
    """Register ``dpo``; sets ``run``, which returns an exit status.

    Args:
        subparsers: what ``ArgumentParser.add_subparsers()`` returned.
    """
    text = "DPO (or IPO) on a language model and a file of preferences"
    parser = subparsers.add_parser("dpo", help=text, description=text)
    parser.set_defaults(run=_run)
    _add_data(parser.add_argument_group("model and data"))
    _add_training(parser.add_argument_group("training"))
    _add_memory(parser.add_argument_group("memory"))
    _add_output(parser.add_argument_group("output"))


def _add_data(group) -> None:
    count, add = _at_least(1), group.add_argument
    add("--model", required=True, metavar="PATH_OR_HUB_ID", help="a directory or a hub name")
    add("--gguf", metavar="FILE", help="a GGUF file in that directory")
    add(
        "--pairs",
        required=True,
        metavar="FILE",
        help=".jsonl or .jsonl.gz, as hh-rlhf; or hub:OWNER/DATASET:FILE, for instance "
        "hub:Anthropic/hh-rlhf:harmless-base/train.jsonl.gz (some of it is offensive)",
    )
    add("--max-length", type=_at_least(2), default=256, help="tokens of prompt and answer")
    add("--max-prompt", type=count, default=128, help="tokens of the prompt, of the above")
    add("--held-out", type=_at_least(2), default=200, help="pairs set aside (default: 200)")


def _add_training(group) -> None:
    count, add = _at_least(1), group.add_argument
    add("--steps", type=count, default=50, help="optimizer steps (default: 50)")
    add("--batch-size", type=count, default=4, help="pairs a step (default: 4)")
    add("--micro-batch", type=count, default=1, help="pairs in memory at once (default: 1)")
    add("--lr", type=_positive, help="of AdamW (default: 2e-5 for adapters, else 5e-6)")
    add("--warmup", type=_at_least(0), default=0, help="steps of linear warm-up (default: 0)")
    schedules = ["constant", "linear", "cosine"]
    add("--schedule", choices=schedules, help="(default: cosine for adapters, else constant)")
    add("--loss", choices=["dpo", "ipo"], default="dpo")
    add("--beta", type=_positive, default=0.1, help="larger stays closer (default: 0.1)")
    add("--label-smoothing", type=_below(0.5), default=0.0, help="share of wrong labels (dpo only)")
    add("--seed", type=_at_least(0), default=0)


def _add_memory(group) -> None:
    count, add = _at_least(1), group.add_argument
    add("--quantize", choices=["nf4"], help="keep the frozen weights in 4 bits; needs --lora-rank")
    add("--lora-rank", type=count, metavar="R", help="train adapters of this rank (lecture: 32)")
    add("--lora-alpha", type=_positive, help="their scale is alpha / rank (default: 2 x rank)")
    add("--lora-dropout", type=_below(1.0), default=0.05, help="(default: 0.05)")
    add("--lora-targets", type=_names, default=_names(LECTURE_TARGETS), metavar="A,B,…")
    add("--dtype", choices=["float32", "float16", "bfloat16"], help="on a GPU (default: best)")
    add("--optimizer", choices=["adamw", "adamw8bit"], help="(default: 8 bits on a GPU, if there)")
    add("--logits-chunk", type=count, default=128, help="answer tokens scored at once")
    add("--share-prompts", action="store_true", help="a prompt once for both answers: less work")
    add("--no-checkpointing", action="store_true", help="keep all activations: faster, larger")
    add("--shard", action="store_true", help="under torchrun: spread the weights (FSDP2)")
    add("--memory-ledger", action="store_true", help="print what will be held, before loading")
    add("--ignore-memory", action="store_true", help="start even if the ledger says it won't fit")


def _add_output(group) -> None:
    add = group.add_argument
    add("--out", type=Path, default=Path("out/dpo"), help="folder (default: out/dpo)")
    add("--save-every", type=_at_least(1), metavar="K", help="(default: 1 for adapters, else 10)")
    add("--resume", action="store_true", help="go on with the interrupted run in --out")
    add("--merge", action="store_true", help="write the adapters into a plain model too")
    add("--quiet", action="store_true", help="no progress bars")


def _run(arguments) -> int:
    """Run, with what a user can mend told in one line instead of a traceback."""
    # transformers takes seconds to import; `--help` and bad arguments should not wait for it.
    from rlhf_minimal.dpo_run import run_dpo

    mendable = OSError, ValueError, ImportError, FloatingPointError, MemoryError
    try:
        run_dpo(_settled(arguments))
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except mendable as error:
        line = " ".join(str(error).split())
        print(f"python -m rlhf_minimal dpo: error: {line}", file=sys.stderr)
        return 2
    return 0


def _settled(arguments):
    """The arguments with the defaults that depend on others filled in, and checked together."""
    adapters = arguments.lora_rank is not None
    if arguments.loss == "ipo" and arguments.label_smoothing:
        raise ValueError("--label-smoothing belongs to --loss dpo; IPO has a finite optimum anyway")
    if arguments.max_prompt >= arguments.max_length:
        raise ValueError(
            f"--max-prompt is {arguments.max_prompt}; it must be below --max-length, which is "
            f"{arguments.max_length}, to leave room for the answer"
        )
    if arguments.quantize and not adapters:
        raise ValueError("4-bit weights cannot be trained themselves; add --lora-rank 32")
    if arguments.quantize and arguments.shard:
        raise ValueError("--shard spreads weights in 16 or 32 bits; leave out --quantize")
    if arguments.merge and not adapters:
        raise ValueError("--merge writes adapters into a model; there are none without --lora-rank")
    if arguments.dtype == "float16" and not adapters:
        raise ValueError("weights in float16 cannot be trained themselves; add --lora-rank 32")
    defaults = {
        "dtype": None if adapters else "float32",
        "lr": 2e-5 if adapters else 5e-6,
        "schedule": "cosine" if adapters else "constant",
        "lora_alpha": 2 * arguments.lora_rank if adapters else None,
        "save_every": 1 if adapters else 10,
    }
    for name, value in defaults.items():
        if getattr(arguments, name) is None:
            setattr(arguments, name, value)
    return arguments
