"""Fifty DPO steps on a 4-bit Mistral-7B within 14.5 GiB of one GPU: ours beside TRL's.

    python benchmarks/mistral_7b.py                     # on a GPU; no download, no network
    python benchmarks/mistral_7b.py --tiny --steps 3    # a rehearsal of the same code on a CPU

The model has Mistral-7B's shapes and random weights, made and quantised layer by layer; speed and
memory do not depend on what the weights say. The data are random words, so that every pair has the
lesson's full length: 128 tokens of prompt and 128 of each answer. Settings are the lesson's: rank
32, one pair in memory, four a step. TRL 1.16 refuses an adapter on the output layer (it multiplies
by that layer's weight itself, so the adapter would never be trained); the comparison therefore has
six kinds of layer on both sides, and ours runs with all seven as well. The process may take no more
than 14.5 GiB of the card (``torch.cuda.set_per_process_memory_fraction``), as on a 16 GB one.

Every run is a process of its own; the variants take turns. Printed and written to
``benchmarks/mistral_7b.json``: seconds a step (median, least, most; the first five steps do not
count), tokens a second, the peak of allocated memory. TRL, PEFT and bitsandbytes have to be
installed, or ``--only ours``.

Leaves out: how long this would take on a T4. That has to be measured on a T4.
"""

import argparse
import json
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

TARGETS = ["q_proj", "k_proj", "v_proj", "gate_proj", "up_proj", "down_proj"]
CAP_GIB, RANK, PROMPT, ANSWER, WARM_UP = 14.5, 32, 128, 128, 5
VARIANTS = {
    "ours, float16": ("ours", "float16", {}),
    "ours, bfloat16": ("ours", "bfloat16", {}),
    "ours with lm_head, float16": ("ours", "float16", {"more": ["lm_head"]}),
    "TRL, its defaults, bfloat16": ("trl", "bfloat16", {}),
    "TRL tuned, float16": ("trl", "float16", {"precompute_ref_log_probs": True}),
    "TRL tuned, bfloat16": ("trl", "bfloat16", {"precompute_ref_log_probs": True}),
}


def mistral_config(tiny: bool):
    from transformers import MistralConfig

    small = dict(
        hidden_size=128, intermediate_size=448, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, vocab_size=2000, head_dim=32,
    )
    config = MistralConfig(**(small if tiny else {}))
    config.bos_token_id, config.eos_token_id, config.pad_token_id = 1, 2, 0
    return config


def random_model(config, dtype, device):
    """Mistral's shapes with random weights, its linear layers in NF4; never whole in 16 bits."""
    import torch
    from torch import nn
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig
    from transformers.quantizers import AutoHfQuantizer

    from rlhf_minimal.quantized import kept_whole, same_numbers_everywhere, to_nf4

    torch.manual_seed(0)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    whole = kept_whole(model)
    for name, module in list(model.named_modules()):
        last = name.rpartition(".")[2]
        if type(module) is nn.Linear and name not in whole:
            filled = nn.Linear(module.in_features, module.out_features, False, device, dtype)
            nn.init.normal_(filled.weight, std=0.02)
            parent = model.get_submodule(name.rpartition(".")[0])
            setattr(parent, last, to_nf4(filled, dtype, device))
        elif "rotary" in last:
            with torch.device(device):
                model.model.rotary_emb = type(module)(config)
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            if parameter.is_meta:
                value = torch.empty(parameter.shape, dtype=dtype, device=device)
                value = value.fill_(1) if value.dim() == 1 else nn.init.normal_(value, std=0.02)
                setattr(module, name, nn.Parameter(value, requires_grad=False))
    model.config.quantization_config = BitsAndBytesConfig(     # what PEFT and TRL look for
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )
    model.hf_quantizer = AutoHfQuantizer.from_config(model.config.quantization_config)
    model.is_loaded_in_4bit = model.is_quantized = True
    same_numbers_everywhere(model)
    return model.eval()


def random_pairs(config, count):
    """Token pairs of full length; each answer's last token is the end."""
    from rlhf_minimal.pairs import TokenPair

    noise = random.Random(0)
    draw = lambda n: [noise.randrange(3, config.vocab_size) for _ in range(n)]  # noqa: E731
    end = [config.eos_token_id]
    return [
        TokenPair(draw(PROMPT), draw(ANSWER - 1) + end, draw(ANSWER - 1) + end)
        for _ in range(count)
    ]


class Clock:
    """Seconds of every step, the device's work included."""

    def __init__(self, device):
        self.device, self.seconds = device, []
        self.tick()

    def tick(self):
        import torch

        if self.device != "cpu":
            torch.cuda.synchronize()
        self.last = time.perf_counter()

    def step_done(self, *ignored):
        before = self.last
        self.tick()
        self.seconds.append(self.last - before)


def train_ours(model, pairs, steps, dtype, device, clock, more=()):
    import torch

    from rlhf_minimal.dpo import train_dpo
    from rlhf_minimal.engine import Engine
    from rlhf_minimal.lora import add_lora
    from rlhf_minimal.quantized import choose_adamw, prepare_for_training
    from rlhf_minimal.scoring import reference_log_probs

    add_lora(model, [*TARGETS, *more], RANK, 2 * RANK, dropout=0.05)
    engine = Engine(
        model, 2e-5, optimizer=choose_adamw(None, device), logits_chunk=128,
        float16=dtype == torch.float16,
    )
    reference = reference_log_probs(model, pairs, 0, batch_size=4, engine=engine)
    prepare_for_training(model)
    clock.tick()
    history = train_dpo(
        model, reference, pairs, beta=0.1, steps=steps, batch_size=4, micro_batch=1, lr=2e-5,
        schedule="cosine", pad_id=0, engine=engine, show_progress=False,
        after_step=clock.step_done,
    )
    return history["loss"][-1]


def train_trl(model, pairs, steps, dtype, device, clock, config, options):
    import torch
    from datasets import Dataset
    from peft import LoraConfig, prepare_model_for_kbit_training
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, TrainerCallback
    from trl import DPOConfig, DPOTrainer

    words = {f"w{number}": number for number in range(config.vocab_size)}
    core = Tokenizer(models.WordLevel(words, unk_token="w0"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, pad_token="w0", eos_token="w2")
    text = lambda tokens: " ".join(f"w{token}" for token in tokens)  # noqa: E731
    rows = [
        {"prompt": text(p.prompt), "chosen": " " + text(p.chosen[:-1]),
         "rejected": " " + text(p.rejected[:-1])}
        for p in pairs
    ]
    kinds = {torch.float16: {"fp16": True, "bf16": False}, torch.bfloat16: {"bf16": True}}
    precision = kinds.get(dtype, {"bf16": False, "use_cpu": True})
    optimizer = "paged_adamw_8bit" if device != "cpu" else "adamw_torch_fused"
    arguments = DPOConfig(
        output_dir=tempfile.mkdtemp(), per_device_train_batch_size=1,
        gradient_accumulation_steps=4, max_steps=steps, learning_rate=2e-5, beta=0.1,
        lr_scheduler_type="cosine", max_length=PROMPT + ANSWER, optim=optimizer,
        report_to="none", save_strategy="no", logging_steps=steps, disable_tqdm=True,
        **precision, **options,
    )

    class Ticks(TrainerCallback):
        def on_train_begin(self, *args, **kwargs):
            clock.tick()

        def on_step_end(self, *args, **kwargs):
            clock.step_done()

    if device != "cpu":
        model = prepare_model_for_kbit_training(model)
    adapters = LoraConfig(
        r=RANK, lora_alpha=2 * RANK, lora_dropout=0.05, target_modules=TARGETS,
        task_type="CAUSAL_LM",
    )
    trainer = DPOTrainer(
        model, args=arguments, train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer, peft_config=adapters, callbacks=[Ticks()],
    )
    return trainer.train().training_loss


def one_run(name, steps, tiny) -> dict:
    """One variant, in this process."""
    import torch

    from rlhf_minimal.memory import GIB, peak_bytes

    kind, precision, options = VARIANTS[name]
    device = "cuda" if torch.cuda.is_available() and not tiny else "cpu"
    dtype = torch.float32 if device == "cpu" else getattr(torch, precision)
    if device != "cpu":
        whole = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, CAP_GIB * GIB / whole))
    config = mistral_config(tiny)
    pairs = random_pairs(config, 4 * steps)
    model = random_model(config, dtype, device)
    loaded = peak_bytes(device)
    clock = Clock(device)
    if kind == "ours":
        loss = train_ours(model, pairs, steps, dtype, device, clock, **options)
    else:
        loss = train_trl(model, pairs, steps, dtype, device, clock, config, options)
    counted = clock.seconds[min(WARM_UP, steps - 1):]
    tokens = 4 * 2 * (PROMPT + ANSWER)
    return {
        "variant": name, "device": torch.cuda.get_device_name(0) if device != "cpu" else "CPU",
        "seconds_per_step": statistics.median(counted), "least": min(counted), "most": max(counted),
        "tokens_per_second": tokens / statistics.median(counted),
        "loaded_gib": loaded / GIB, "peak_gib": peak_bytes(device) / GIB, "loss": loss,
        "cap_gib": CAP_GIB if device != "cpu" else None,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", choices=["ours", "trl"])
    parser.add_argument("--tiny", action="store_true", help="a rehearsal on a CPU; writes nothing")
    parser.add_argument("--variant", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.variant:
        print("RESULT " + json.dumps(one_run(given.variant, given.steps, given.tiny)))
        return 0
    names = [n for n, (kind, *_) in VARIANTS.items() if given.only in (None, kind)]
    rows, failed = [], 0
    for turn in range(given.rounds):
        for name in names:
            command = [sys.executable, __file__, "--variant", name, "--steps", str(given.steps)]
            command += ["--tiny"] if given.tiny else []
            done = subprocess.run(command, capture_output=True, text=True)
            found = [x for x in done.stdout.splitlines() if x.startswith("RESULT ")]
            if done.returncode or not found:
                failed += 1
                print(f"{name}: failed\n{done.stderr[-1500:]}", file=sys.stderr)
                continue
            row = json.loads(found[-1].removeprefix("RESULT "))
            rows.append(row | {"round": turn})
            print(
                f"{name:30} {row['seconds_per_step']:7.3f} s a step "
                f"{row['tokens_per_second']:8.0f} tokens/s  peak {row['peak_gib']:6.2f} GiB  "
                f"loss {row['loss']:.4f}", flush=True,
            )
    if not given.tiny and rows:
        result = {"steps": given.steps, "versions": _versions(), "runs": rows}
        (ROOT / "benchmarks" / "mistral_7b.json").write_text(json.dumps(result, indent=1) + "\n")
    return 1 if failed else 0


def _versions() -> dict:
    found = {"python": platform.python_version()}
    for name in ("torch", "transformers", "trl", "peft", "bitsandbytes"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found


if __name__ == "__main__":
    sys.exit(main())
