"""One run of ``python -m rlhf_minimal dpo``: read, load, train, and say what changed.

All weights or adapters, 32 to 4 bits, one process or several: the loop is the same. What is
measured is measured on pairs that were set aside by prompt, with 95% intervals.

Leaves out: the arguments' meaning (:mod:`rlhf_minimal.dpo_cli`) and the report's wording
(:mod:`rlhf_minimal.dpo_report`).
"""

import sys
import time
from functools import partial
from pathlib import Path

import torch
from transformers.utils.logging import disable_progress_bar

from rlhf_minimal import memory
from rlhf_minimal.checkpoints import read_state, restore_state, save_lora, save_merged, save_state
from rlhf_minimal.dpo import dpo_loss, ipo_loss, train_dpo
from rlhf_minimal.dpo_report import predicted_memory, print_report, print_skipped
from rlhf_minimal.engine import Engine, Processes
from rlhf_minimal.held_out import held_out_report, split_by_prompt
from rlhf_minimal.history import History, stop_softly, write_json
from rlhf_minimal.large_models import load_model, padding_id, tokenize_preferences
from rlhf_minimal.lora import add_lora
from rlhf_minimal.preferences import read_hh_rlhf
from rlhf_minimal.quantized import choose_adamw, compute_dtype, count_weights, prepare_for_training
from rlhf_minimal.scoring import reference_log_probs

__all__ = ["run_dpo"]

# What may differ between a run and its continuation.
FREE = ("run", "quiet", "resume", "out", "save_every", "memory_ledger", "ignore_memory", "merge")


def run_dpo(arguments) -> dict:
    """Run the command; returns what it writes to ``result.json``.

    Raises:
        OSError, ValueError, ImportError, MemoryError: bad files or arguments, in words for users.
        FloatingPointError: the loss became NaN or infinite.
        KeyboardInterrupt: passed on after model and history are saved.
    """
    arguments.out.mkdir(parents=True, exist_ok=True)  # now, not after an hour of training
    processes = Processes.of_torchrun(arguments.shard)
    if not processes.first:
        arguments.quiet = True
    if arguments.quiet:
        disable_progress_bar()
    try:
        return Run(arguments, processes).whole()
    finally:
        processes.close()


class Run:
    """What the parts of one run share."""

    def __init__(self, arguments, processes: Processes):
        self.arguments, self.processes = arguments, processes
        self.dtype = compute_dtype(processes.device, arguments.dtype)
        settings = {k: v for k, v in vars(arguments).items() if k not in FREE}
        settings |= {name: Path(settings[name]).name for name in ("model", "pairs")}
        self.settings = settings | {"processes": processes.count, "compute": str(self.dtype)}
        self.result: dict = {"settings": self.settings, "interrupted": False}

    def whole(self) -> dict:
        """All steps in their order."""
        self.state = self.arguments.out / "state.pt"
        going_on = read_state(self.state, self.settings) if self.arguments.resume else None
        training, held_out = self._read()
        ledger = self._ledger()
        self._load()
        pairs, held_out = self._tokenize(training, held_out)
        self._start(pairs, held_out, going_on)
        self._train(pairs)
        return self._report(held_out, ledger)

    def say(self, text: str, to=None) -> None:
        """Print, once for all processes."""
        if self.processes.first:
            print(text, file=to, flush=True)

    def _read(self):
        """Training and held-out preferences, saying what was skipped; no more than are used."""
        given = self.arguments
        preferences, skipped = read_hh_rlhf(given.pairs)
        if self.processes.first:
            self.result["skipped"] = print_skipped(given.pairs, preferences, skipped)
        training, held_out = split_by_prompt(preferences, given.held_out, given.seed)
        return training[: given.steps * given.batch_size], held_out

    def _ledger(self) -> dict:
        """What the run will hold, before anything is loaded; refuses what cannot fit."""
        given, device = self.arguments, self.processes.device
        ledger = predicted_memory(given, device, self.dtype)
        if given.memory_ledger:
            self.say(f"predicted, before loading:\n{memory.ledger_text(ledger)}")
        if not given.ignore_memory and not self.processes.shard:
            memory.check_fits(ledger, memory.available_bytes(device))
        return ledger

    def _load(self) -> None:
        given, device = self.arguments, self.processes.device
        self.peak_before = memory.peak_bytes(device)
        place = "cpu" if self.processes.shard else device  # sharding moves it, layer by layer
        self.model, self.tokenizer = load_model(
            given.model, given.gguf, self.dtype, place, quantize=given.quantize is not None
        )
        memory.forget_peak(device)
        self.result["parameters"] = count_weights(self.model)
        if given.lora_rank is not None:
            sizes = given.lora_rank, given.lora_alpha, given.lora_dropout
            add_lora(self.model, given.lora_targets, *sizes, seed=given.seed)
        trained = sum(p.numel() for p in self.model.parameters() if p.requires_grad)
        self.result |= {"trained_parameters": trained, "threads": torch.get_num_threads()}
        self.pad_id = padding_id(self.tokenizer)
        torch.manual_seed(given.seed + self.processes.rank)  # dropout's

    def _tokenize(self, training, held_out):
        given = self.arguments
        cut = partial(
            tokenize_preferences,
            tokenizer=self.tokenizer,
            max_length=given.max_length,
            max_prompt=given.max_prompt,
        )
        (pairs, cut_pairs), (aside, cut_aside) = cut(training), cut(held_out)
        self.say(f"training on {len(pairs)} pairs ({cut_pairs} cut to {given.max_length} tokens)")
        self.say(f"holding out {len(aside)} pairs ({cut_aside} cut), no prompt in common")
        self.result |= {
            "training_pairs": len(pairs),
            "held_out_pairs": len(aside),
            "truncated": {"training": cut_pairs, "held_out": cut_aside},
        }
        return pairs, aside

    def _start(self, pairs, held_out, going_on) -> None:
        """The engine, and the frozen model's log-probabilities: computed, or from the last state.

        Adapters start as the frozen model, so before the first step the model is its own reference.
        """
        given, device = self.arguments, self.processes.device
        self.engine = Engine(
            self.model,
            given.lr,
            optimizer=choose_adamw(given.optimizer, device),
            logits_chunk=given.logits_chunk,
            share_prompts=given.share_prompts,
            float16=self.dtype == torch.float16,
            processes=self.processes,
        )
        names = ("loss", "beta", "steps", "batch_size", "micro_batch", "lr", "seed")
        path = given.out / "history.json" if self.processes.first else None
        self.history = History(path, **{n: getattr(given, n) for n in names})
        if going_on is not None:
            restore_state(going_on, self.engine, self.history)
            self.before, self.reference = (going_on["kept"][k] for k in ("before", "reference"))
            self.say(f"going on after step {self.engine.steps_done} of {given.steps}")
            return
        self.model.eval()
        started = time.monotonic()
        self.before, self.reference = self._score(held_out), self._score(pairs)
        self.result["scoring_seconds"] = time.monotonic() - started
        self.engine.remember_randomness()
        self._save_state()

    def _score(self, pairs):
        """Summed log-probabilities of the answers, as the model is now."""
        return reference_log_probs(
            self.model,
            pairs,
            self.pad_id,
            batch_size=4,  # more at once only takes memory
            show_progress=not self.arguments.quiet,
            engine=self.engine,
        )

    def _train(self, pairs) -> None:
        given = self.arguments
        loss = ipo_loss
        if given.loss == "dpo":
            loss = partial(dpo_loss, label_smoothing=given.label_smoothing)
        prepare_for_training(self.model, not given.no_checkpointing and given.lora_rank is not None)
        names = ("steps", "batch_size", "micro_batch", "lr", "warmup", "schedule", "seed", "beta")
        started, first = time.monotonic(), self.engine.steps_done
        try:
            with stop_softly() as stop:
                train_dpo(
                    self.model,
                    self.reference,
                    pairs,
                    loss=loss,
                    pad_id=self.pad_id,
                    history=self.history,
                    show_progress=not given.quiet,
                    after_step=partial(self._after_step, stop),
                    engine=self.engine,
                    **{name: getattr(given, name) for name in names},
                )
        except KeyboardInterrupt:
            self.result["interrupted"] = True
            self._save_model()
            self.say(f"model and history so far are in {given.out}; --resume goes on", sys.stderr)
            raise
        seconds, done = time.monotonic() - started, max(given.steps - first, 1)
        self.result |= {"training_seconds": seconds, "seconds_per_step": seconds / done}
        self._save_model()  # before the last numbers, so that a failure there loses nothing

    def _after_step(self, stop, done: int) -> None:
        stopping = bool(self.processes.sum(torch.tensor([float(stop.asked)])))
        if stopping or done % self.arguments.save_every == 0:
            self._save_state()
        if stopping:
            raise KeyboardInterrupt

    def _save_state(self) -> None:
        kept = {"before": self.before, "reference": self.reference}
        save_state(self.state, self.engine, self.history, self.settings, **kept)

    def _save_model(self) -> None:
        out, first = self.arguments.out, self.processes.first
        if self.arguments.lora_rank is not None:
            save_lora(self.model, out / "adapters.safetensors", first)
        else:
            save_merged(self.model, self.tokenizer, out / "model", write=first)
        if first:
            write_json(out / "result.json", self.result)
        self.processes.wait()

    def _report(self, held_out, ledger) -> dict:
        given, device = self.arguments, self.processes.device
        self.model.eval()
        tokens = torch.tensor([[len(pair.chosen), len(pair.rejected)] for pair in held_out])
        after = self._score(held_out)
        report = held_out_report(self.before, after, tokens.float(), given.beta)
        self.result["held_out"] = report
        self.result["memory"] = {
            "predicted_bytes": ledger,
            "peak_bytes": memory.peak_bytes(device),
            "peak_before_loading_bytes": self.peak_before,
        }
        if given.merge:
            save_merged(self.model, self.tokenizer, given.out / "model", write=self.processes.first)
        if self.processes.first:
            write_json(given.out / "result.json", self.result)
            print_report(self.result, given.out)
            self.state.unlink()  # nothing is left to go on with
        return self.result
