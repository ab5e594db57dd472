"""What ``python -m rlhf_minimal dpo`` tells: rows it skipped, the memory it needs, what changed.

Leaves out: the training between the two.
"""

from collections import Counter
from pathlib import Path

from rlhf_minimal.large_models import load_config
from rlhf_minimal.memory import GIB, empty_model, memory_ledger
from rlhf_minimal.quantized import choose_adamw
from rlhf_minimal.training import adamw

__all__ = ["predicted_memory", "print_report", "print_skipped"]


def predicted_memory(arguments, device, dtype) -> dict[str, int]:
    """The run's memory ledger, from the model's configuration alone."""
    eight_bits = choose_adamw(arguments.optimizer, device) is not adamw
    adapters = arguments.lora_rank is not None
    return memory_ledger(
        empty_model(load_config(arguments.model, arguments.gguf)),
        quantize=arguments.quantize is not None,
        weight_bytes=dtype.itemsize,
        lora_rank=arguments.lora_rank,
        targets=arguments.lora_targets,
        optimizer_bytes=2 if eight_bits else 8,
        sequences=2 * arguments.micro_batch,
        length=arguments.max_length,
        logits_chunk=arguments.logits_chunk,
        checkpointing=adapters and not arguments.no_checkpointing,
    )


def print_skipped(pairs, preferences, skipped) -> dict[str, int]:
    """How many rows are good, and why and where the others are not; returns count by reason."""
    print(f"{len(preferences)} good pairs in {pairs}, {len(skipped)} rows skipped")
    reasons = Counter(row.reason for row in skipped)
    for reason, count in reasons.most_common():
        lines = [str(row.line) for row in skipped if row.reason == reason]
        more = ", …" if count > 8 else ""
        print(f"  {count} x {reason} (line {', '.join(lines[:8])}{more})")
    return dict(reasons)


def print_report(result: dict, out: Path) -> None:
    """Held-out numbers before and after, seconds, memory."""
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
        f"\n{result['trained_parameters']:,} weights trained, {result['seconds_per_step']:.1f} s a "
        f"step, {result['training_seconds']:.0f} s of training; model and numbers are in {out}"
    )
    memory = result["memory"]
    predicted = sum(memory["predicted_bytes"].values()) / GIB
    if memory["peak_bytes"] is not None:
        print(
            f"memory: predicted {predicted:.2f} GiB, measured peak {memory['peak_bytes'] / GIB:.2f}"
            f" GiB, of which {memory['peak_before_loading_bytes'] / GIB:.2f} before loading"
        )
