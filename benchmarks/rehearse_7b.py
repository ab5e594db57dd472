"""A DPO step of Mistral-7B on shapes alone: what lives at its peak, counted, beside the ledger.

    python benchmarks/rehearse_7b.py          # a minute or two on a CPU; needs bitsandbytes

Shapes, adapters and settings are the published lecture's: one pair of 2 x 256 tokens in memory,
rank 32 on seven kinds of layer, 8-bit AdamW, float16. Each row changes one thing. What a GPU adds,
the driver's share and the gaps between allocations, has to be measured on one
(``benchmarks/mistral_7b.py``). Writes ``benchmarks/rehearse_7b.json``.
"""

import json
import sys
from importlib.metadata import version
from pathlib import Path

import torch
from transformers import MistralConfig

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from rlhf_minimal.dpo_cli import LECTURE_TARGETS  # noqa: E402
from rlhf_minimal.memory import GIB, empty_model, memory_ledger  # noqa: E402
from rlhf_minimal.rehearsal import rehearse_step  # noqa: E402

CAP_GIB = 14.5
COMMON = dict(lora_rank=32, targets=LECTURE_TARGETS.split(","), optimizer_bytes=2)
ROWS = {
    "the lesson's step": dict(quantize=True),
    "activations not checkpointed": dict(quantize=True, checkpointing=False),
    "two pairs in memory": dict(quantize=True, sequences=4),
    "four pairs in memory": dict(quantize=True, sequences=8),
    "1,024 tokens": dict(quantize=True, length=1024),
    "1,024 tokens, logits not in chunks": dict(quantize=True, length=1024, logits_chunk=None),
    "weights in 16 bits": dict(),
}


def rehearse(name: str) -> dict:
    """One row: counted and predicted GiB."""
    config, given = MistralConfig(), COMMON | ROWS[name]
    counted = rehearse_step(empty_model(config, torch.float16), **given)
    predicted = sum(memory_ledger(empty_model(config), **given).values())
    return {
        "kept_gib": counted["kept"] / GIB,
        "peak_gib": counted["peak"] / GIB,
        "ledger_gib": predicted / GIB,
        "fits": counted["peak"] / GIB < CAP_GIB,
    }


def main() -> None:
    rows = {}
    print(f"{'':36}{'kept':>8}{'peak':>8}{'ledger':>8}  GiB")
    for name in ROWS:
        row = rows[name] = rehearse(name)
        numbers = "".join(f"{row[k]:8.2f}" for k in ("kept_gib", "peak_gib", "ledger_gib"))
        print(f"{name:36}{numbers}{'' if row['fits'] else f'  above {CAP_GIB}'}", flush=True)
    names = ("torch", "transformers", "bitsandbytes")
    result = {"versions": {name: version(name) for name in names}, "cap_gib": CAP_GIB, "rows": rows}
    (HERE / "rehearse_7b.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
