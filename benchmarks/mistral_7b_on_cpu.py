"""The command of the 7B run at its full size on a CPU: one DPO step of a 4-bit Mistral-7B.

    python benchmarks/mistral_7b_on_cpu.py              # some 15 minutes, 15 GB of disk, 8 GiB free
    python benchmarks/mistral_7b_on_cpu.py --layers 1   # a rehearsal; writes nothing

No download: a checkpoint of Mistral-7B's shapes with random weights in bfloat16 is written to disk
first, and ``python -m rlhf_minimal dpo --quantize nf4`` then reads, quantises and trains it as it
would the real one, only in float32 and on one pair a step. All texts are random words, 128 tokens
of prompt and of each answer. What it is for: that the whole path holds at this size, and what it
takes of memory, beside what the ledger said. Its seconds say nothing of a GPU.

Writes ``benchmarks/mistral_7b_on_cpu.json``.
"""

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import MistralConfig

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from rlhf_minimal.memory import GIB, empty_model  # noqa: E402

WORDS = 128  # of a prompt, and of an answer
CHAT = (
    "{% for m in messages %}{{ m['content'] + ' ' }}"
    "{% if m['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
)


def write_checkpoint(folder: Path, layers: int) -> int:
    """Random weights, a file a layer; returns how many."""
    config = MistralConfig(
        num_hidden_layers=layers, bos_token_id=1, eos_token_id=2, dtype="bfloat16",
        architectures=["MistralForCausalLM"],
    )
    config.save_pretrained(folder)
    shapes = {name: p.shape for name, p in empty_model(config).named_parameters()}
    files: dict[str, list] = {}
    for name in shapes:
        part = name.split(".")[2] if ".layers." in name else "ends"
        files.setdefault(f"model-{part}.safetensors", []).append(name)
    torch.manual_seed(0)
    for file, names in files.items():
        tensors = {n: torch.ones(shapes[n], dtype=torch.bfloat16) for n in names}
        for tensor in tensors.values():
            if tensor.dim() == 2:
                tensor.normal_(std=0.02)
        save_file(tensors, folder / file, {"format": "pt"})
    where = {name: file for file, names in files.items() for name in names}
    index = {"metadata": {}, "weight_map": where}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return sum(shape.numel() for shape in shapes.values())


def write_tokenizer(folder: Path) -> None:
    """A word a token, Mistral's 32,000 of them."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.WordLevel({f"w{n}": n for n in range(32_000)}, unk_token="w0"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, pad_token="w0", eos_token="w2")
    tokenizer.chat_template = CHAT
    tokenizer.save_pretrained(folder)


def write_pairs(path: Path, count: int) -> None:
    """Rows in hh-rlhf's form."""
    noise = random.Random(0)
    text = lambda: " ".join(f"w{noise.randrange(3, 32_000)}" for _ in range(WORDS))  # noqa: E731
    rows = []
    for _ in range(count):
        prompt = f"\n\nHuman: {text()}\n\nAssistant: "
        rows.append({"chosen": prompt + text(), "rejected": prompt + text()})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=32, help="fewer: a rehearsal")
    parser.add_argument("--share-prompts", action="store_true", help="passed on to the command")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        weights = write_checkpoint(folder, given.layers)
        write_tokenizer(folder)
        write_pairs(folder / "pairs.jsonl", 3)
        started = time.monotonic()
        command = [
            sys.executable, "-m", "rlhf_minimal", "dpo", "--model", name, "--pairs",
            str(folder / "pairs.jsonl"), "--held-out", "2", "--quantize", "nf4", "--lora-rank",
            "32", "--steps", "1", "--batch-size", "1", "--out", str(folder / "out"),
            "--memory-ledger", *["--share-prompts"] * given.share_prompts,
        ]
        subprocess.run(command, check=True, cwd=HERE.parent)
        seconds = time.monotonic() - started
        found = json.loads((folder / "out" / "result.json").read_text())
    predicted = sum(found["memory"]["predicted_bytes"].values())
    row = {
        "layers": given.layers, "weights": weights, "counted": found["parameters"],
        "prompts_shared": given.share_prompts,
        "predicted_gib": predicted / GIB, "peak_gib": found["memory"]["peak_bytes"] / GIB,
        "before_loading_gib": found["memory"]["peak_before_loading_bytes"] / GIB,
        "scoring_seconds": found["scoring_seconds"], "step_seconds": found["seconds_per_step"],
        "seconds": seconds, "threads": found["threads"],
    }
    print(json.dumps(row, indent=1))
    if given.layers == 32:
        (HERE / "mistral_7b_on_cpu.json").write_text(json.dumps(row, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
