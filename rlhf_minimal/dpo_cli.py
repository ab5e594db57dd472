"""``python -m rlhf_minimal dpo``: align a real language model on a file of preferences.

Reads pairs in hh-rlhf's format, sets some aside by prompt, trains all weights with the package's
own loop, and says what changed on the pairs set aside, with 95% intervals.

Leaves out: adapters and 4-bit weights, resuming a run, several GPUs, and sampling from the result.
"""

import argparse
import sys
import time
from collections import Counter
from functools import partial
from pathlib import Path

import torch

from rlhf_minimal.dpo import dpo_loss, ipo_loss, reference_log_probs, train_dpo
from rlhf_minimal.held_out import held_out_report, split_by_prompt
from rlhf_minimal.history import History, write_json
from rlhf_minimal.preferences import read_hh_rlhf

try:
    import resource
except ImportError:  # Windows does not have it; the peak memory is then not reported
    resource = None

__all__ = ["add_dpo_command", "run_dpo"]


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


def _smoothing(text):
    value = _at_least(0.0, float)(text)
    if value >= 0.5:
        raise argparse.ArgumentTypeError(f"{text!r} is not in [0, 0.5)")
    return value


def add_dpo_command(subparsers) -> None:
    """Register ``dpo``; sets ``run``, which returns an exit status.

    Args:
        subparsers: what ``ArgumentParser.add_subparsers()`` returned.
    """
    text = "DPO (or IPO) on a language model and a file of preferences"
    parser = subparsers.add_parser("dpo", help=text, description=text)
    parser.set_defaults(run=_run)
    count, add = _at_least(1), parser.add_argument
    add("--model", required=True, metavar="PATH_OR_HUB_ID", help="a directory or a hub name")
    add("--gguf", metavar="FILE", help="a GGUF file in that directory")
    add("--pairs", required=True, type=Path, metavar="FILE", help=".jsonl or .jsonl.gz, as hh-rlhf")
    add("--steps", required=True, type=count, help="optimizer steps")
    add("--batch-size", type=count, default=4, help="pairs a step (default: 4)")
    add("--micro-batch", type=count, default=1, help="pairs in memory at once (default: 1)")
    add("--lr", type=_positive, default=5e-6, help="learning rate of AdamW (default: 5e-6)")
    add("--warmup", type=_at_least(0), default=0, help="steps of linear warm-up (default: 0)")
    add("--schedule", choices=["constant", "linear", "cosine"], default="constant")
    add("--loss", choices=["dpo", "ipo"], default="dpo")
    add("--beta", type=_positive, default=0.1, help="larger stays closer (default: 0.1)")
    add("--label-smoothing", type=_smoothing, default=0.0, help="share of wrong labels (dpo only)")
    add("--max-length", type=_at_least(2), default=256, help="tokens of prompt and answer")
    add("--max-prompt", type=count, default=128, help="tokens of the prompt, of the above")
    add("--held-out", type=_at_least(2), default=200, help="pairs set aside (default: 200)")
    add("--save-every", type=count, metavar="K", help="save the model every K steps too")
    add("--seed", type=_at_least(0), default=0)
    add("--out", type=Path, default=Path("out/dpo"), help="folder (default: out/dpo)")
    add("--quiet", action="store_true", help="no progress bars")


def _run(arguments) -> int:
    """:func:`run_dpo`, with what a user can mend told in one line instead of a traceback."""
    try:
        run_dpo(arguments)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except (OSError, ValueError, ImportError, FloatingPointError) as error:
        line = " ".join(str(error).split())
        print(f"python -m rlhf_minimal dpo: error: {line}", file=sys.stderr)
        return 2
    return 0


def _read_pairs(arguments):
    """Training and held-out preferences, saying what was skipped; no more than will be used."""
    preferences, skipped = read_hh_rlhf(arguments.pairs)
    print(f"{len(preferences)} good pairs in {arguments.pairs}, {len(skipped)} rows skipped")
    reasons = Counter(row.reason for row in skipped)
    for reason, count in reasons.most_common():
        lines = [str(row.line) for row in skipped if row.reason == reason]
        more = ", …" if count > 8 else ""
        print(f"  {count} x {reason} (line {', '.join(lines[:8])}{more})")
    training, held_out = split_by_prompt(preferences, arguments.held_out, arguments.seed)
    return training[: arguments.steps * arguments.batch_size], held_out, reasons


def run_dpo(arguments) -> dict:
    """Run the command; returns what it writes to ``result.json``.

    Raises:
        OSError, ValueError, ImportError: bad files or arguments, in words for the user.
        FloatingPointError: the loss became NaN or infinite.
        KeyboardInterrupt: passed on after model and history are saved.
    """
    # transformers takes seconds to import; `--help` and bad arguments should not wait for it.
    from rlhf_minimal.large_models import load_model, padding_id, tokenize_preferences

    if arguments.loss == "ipo" and arguments.label_smoothing:
        raise ValueError("--label-smoothing belongs to --loss dpo; IPO has a finite optimum anyway")
    if arguments.max_prompt >= arguments.max_length:
        raise ValueError(
            f"--max-prompt is {arguments.max_prompt}; it must be below --max-length, which is "
            f"{arguments.max_length}, to leave room for the answer"
        )
    arguments.out.mkdir(parents=True, exist_ok=True)  # now, not after an hour of training
    train_texts, held_out_texts, skipped = _read_pairs(arguments)
    model, tokenizer = load_model(arguments.model, arguments.gguf)
    lengths = dict(max_length=arguments.max_length, max_prompt=arguments.max_prompt)
    pairs, cut = tokenize_preferences(train_texts, tokenizer, **lengths)
    held_out, held_out_cut = tokenize_preferences(held_out_texts, tokenizer, **lengths)
    print(f"training on {len(pairs)} pairs ({cut} truncated to {arguments.max_length} tokens)")
    print(f"holding out {len(held_out)} pairs ({held_out_cut} truncated), no prompt in common")

    score = partial(
        reference_log_probs,
        model,
        pad_id=padding_id(tokenizer),
        batch_size=4,  # 8 answers: more at once only takes memory on a CPU
        show_progress=not arguments.quiet,
    )
    result = {
        "settings": {k: v for k, v in vars(arguments).items() if k not in ("run", "quiet")},
        "parameters": sum(p.numel() for p in model.parameters()),
        "threads": torch.get_num_threads(),
        "training_pairs": len(pairs),
        "held_out_pairs": len(held_out),
        "truncated": {"training": cut, "held_out": held_out_cut},
        "skipped": dict(skipped),
        "interrupted": False,
    }
    result["settings"] |= {"pairs": arguments.pairs.name, "out": arguments.out.name}
    result["settings"]["model"] = Path(arguments.model).name
    saved = partial(_save, arguments.out, model, tokenizer, result)
    started = time.monotonic()
    before = score(held_out)
    reference = score(pairs)
    result["scoring_seconds"] = time.monotonic() - started
    try:
        result |= _train(arguments, model, pairs, reference, padding_id(tokenizer), saved)
    except KeyboardInterrupt:
        result["interrupted"] = True
        saved()
        print(f"the model and its history so far are in {arguments.out}", file=sys.stderr)
        raise
    saved()  # before the last numbers, so that a failure there loses nothing
    tokens = torch.tensor([[len(pair.chosen), len(pair.rejected)] for pair in held_out])
    result["held_out"] = held_out_report(before, score(held_out), tokens.float(), arguments.beta)
    result["peak_memory_gb"] = _peak_memory_gb()
    write_json(arguments.out / "result.json", result)
    _print_report(result, arguments.out)
    return result


def _train(arguments, model, pairs, reference, pad_id, save) -> dict:
    """Train, recording ``history.json``; returns the seconds it took."""
    loss = ipo_loss
    if arguments.loss == "dpo":
        loss = partial(dpo_loss, label_smoothing=arguments.label_smoothing)

    def after_step(done):
        if arguments.save_every and done % arguments.save_every == 0:
            save()

    names = ("steps", "batch_size", "micro_batch", "lr", "warmup", "schedule", "seed")
    options = {name: getattr(arguments, name) for name in names}
    facts = {"loss": arguments.loss, "beta": arguments.beta, **options}
    history = History(arguments.out / "history.json", **facts)
    started = time.monotonic()
    train_dpo(
        model,
        reference,
        pairs,
        loss=loss,
        beta=arguments.beta,
        pad_id=pad_id,
        history=history,
        show_progress=not arguments.quiet,
        after_step=after_step,
        **options,
    )
    seconds = time.monotonic() - started
    return {"training_seconds": seconds, "seconds_per_step": seconds / arguments.steps}


def _save(out: Path, model, tokenizer, result: dict) -> None:
    model.save_pretrained(out / "model")
    tokenizer.save_pretrained(out / "model")
    write_json(out / "result.json", result)


def _peak_memory_gb() -> float:
    """The process's largest memory so far; Linux counts it in KiB, macOS in bytes."""
    if resource is None:
        return float("nan")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak * (1 if sys.platform == "darwin" else 1024) / 1e9


def _print_report(result: dict, out: Path) -> None:
    report = result["held_out"]

    def shown(name):
        value, (low, high) = report[name]["value"], report[name]["interval"]
        return f"{value:7.3f} [{low:6.3f}, {high:6.3f}]"

    print(f"\nheld-out pairs: {result['held_out_pairs']}; in brackets, 95% intervals")
    print(f"{'chosen answer preferred by':34}{'before':>24}{'after':>26}{'change':>26}")
    for name, words in (("summed", "log-probability, summed"), ("per_token", "…, per token")):
        columns = [shown(f"{name}_accuracy_{when}") for when in ("before", "after", "change")]
        print(f"{words:34}{columns[0]:>24}{columns[1]:>26}{columns[2]:>26}")
    by_definition = "0.500 by definition"
    print(f"{'implicit reward':34}{by_definition:>24}{shown('reward_accuracy_after'):>26}")
    print(f"{'mean margin of implicit rewards':34}{'0 by definition':>24}", end="")
    print(f"{shown('reward_margin_after'):>26}")
    print(
        f"\n{result['seconds_per_step']:.1f} s a step, {result['training_seconds']:.0f} s of "
        f"training, {result['peak_memory_gb']:.1f} GB of memory; model and numbers are in {out}"
    )
