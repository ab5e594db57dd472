"""How a training step is carried out: one process or several, float32 or float16.

The loop on pairs says *what* a step is; an :class:`Engine` knows where it runs. Several processes
each take a share of every batch and average their gradients, by PyTorch's own DDP, or by FSDP2
where the weights do not fit one card (Zhao et al. 2023, arXiv 2304.11277); the step is the one that
a single process would take. Float16 needs its loss scaled (Micikevicius et al. 2018, 1710.03740).

Leaves out: pipelines and tensor parallelism, and starting the processes, which ``torchrun`` does.
"""

import os
import warnings
from contextlib import nullcontext

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from rlhf_minimal.log_probs import answer_log_probs
from rlhf_minimal.shared_prompts import shared_hidden_states
from rlhf_minimal.training import adamw, apply_gradients, set_learning_rate

__all__ = ["AnswerScorer", "Engine", "Processes"]


class AnswerScorer(nn.Module):
    """:func:`~rlhf_minimal.log_probs.answer_log_probs` as a forward: DDP and FSDP hook onto those.

    Args:
        policy: a causal language model.
        logits_chunk: tokens whose logits are in memory at once.
        share_prompts: compute a prompt once for all its answers in a batch, see
            :mod:`~rlhf_minimal.shared_prompts`.
    """

    def __init__(self, policy, logits_chunk: int | None = None, share_prompts: bool = False):
        super().__init__()
        self.policy, self.logits_chunk, self.share_prompts = policy, logits_chunk, share_prompts

    def forward(self, tokens, attention_mask, mask):
        """Each ``(N, T)``, to token log-probabilities ``(N, T - 1)``."""
        batch = self.policy, tokens, attention_mask, mask
        hidden = shared_hidden_states(*batch) if self.share_prompts else None
        return answer_log_probs(*batch, hidden=hidden, logits_chunk=self.logits_chunk)


class Processes:
    """The processes that share a run; by default this one alone.

    Args:
        count, rank: how many there are, and which of them this is.
        device: where this one computes; ``None``: a GPU if there is one.
        shard: spread the weights over the processes (FSDP2) instead of copying them (DDP).
    """

    def __init__(self, count: int = 1, rank: int = 0, device=None, shard: bool = False):
        self.count, self.rank, self.shard = count, rank, shard and count > 1
        self.device = device or ("cuda" if torch.cuda.is_available() else "cpu")

    @classmethod
    def of_torchrun(cls, shard: bool = False) -> "Processes":
        """Those that ``torchrun`` started, joined into a group; without it, this one alone."""
        count, rank = (int(os.environ.get(n, d)) for n, d in (("WORLD_SIZE", 1), ("RANK", 0)))
        device = None
        if torch.cuda.is_available():
            device = f"cuda:{os.environ.get('LOCAL_RANK', 0)}"
            torch.cuda.set_device(device)
        if count > 1 and not dist.is_initialized():
            dist.init_process_group("nccl" if device else "gloo")
        return cls(count, rank, device, shard)

    def close(self) -> None:
        """Leave the group."""
        if self.count > 1:
            dist.destroy_process_group()

    @property
    def first(self) -> bool:
        """Whether this is the process that prints and writes."""
        return self.rank == 0

    def wrap(self, scorer: AnswerScorer):
        """The scorer, exchanging gradients between the processes on the way back."""
        if self.count == 1:
            return scorer
        if not self.shard:
            self._agree_on(p for p in scorer.parameters() if p.requires_grad)
            with warnings.catch_warnings():  # its successor exchanges buffers once after all
                warnings.simplefilter("ignore", FutureWarning)
                return DistributedDataParallel(scorer, init_sync=False, broadcast_buffers=False)
        from torch.distributed.fsdp import fully_shard  # takes a second to import

        for module in list(scorer.modules()):
            if hasattr(module, "gradient_checkpointing") and module is not scorer.policy.base_model:
                fully_shard(module)  # a decoder layer: gathered when its turn comes
        return fully_shard(scorer)

    @torch.no_grad()
    def _agree_on(self, parameters) -> None:
        for parameter in parameters:
            dist.broadcast(parameter, src=0)

    def share(self, rows):
        """This process's part of a batch's row numbers; each has at least one.

        Raises:
            ValueError: the batch does not divide by the processes.
        """
        if len(rows) % self.count:
            raise ValueError(
                f"a batch of {len(rows)} pairs does not divide by {self.count} processes; "
                "choose a batch size that does"
            )
        return rows[self.rank :: self.count]

    def shared_out(self, batches: list) -> list:
        """This process's batches, each with whether its result counts.

        All processes get equally many, because those that share a model's weights must walk through
        it together; what fills up the last round does not count.
        """
        rounds = -(-len(batches) // self.count)
        places = [turn * self.count + self.rank for turn in range(rounds)]
        return [(batches[min(p, len(batches) - 1)], p < len(batches)) for p in places]

    def sum(self, values):
        """The sum of a tensor over the processes."""
        if self.count > 1:
            values = values.to(self.device)
            dist.all_reduce(values)
        return values.cpu()

    def gather(self, value) -> list:
        """The object of every process, in order of rank."""
        everyone = [value] * self.count
        if self.count > 1:
            dist.all_gather_object(everyone, value)
        return everyone

    def wait(self) -> None:
        """Until all are here: ``torchrun`` ends the others as soon as one has failed or stopped."""
        if self.count > 1:
            dist.barrier()

    def total(self, values: dict) -> dict:
        """Each value summed over the processes."""
        if self.count == 1:
            return values
        together = self.sum(torch.tensor(list(values.values()), dtype=torch.float64))
        return dict(zip(values, together.tolist(), strict=True))


class Engine:
    """Scores answers, takes gradients, steps.

    Args:
        policy: the model to train, in place; only parameters that require a gradient move.
        lr: learning rate; ``None``: the engine only scores.
        optimizer: called as ``optimizer(policy, lr)`` after the processes have shared the model.
        logits_chunk, share_prompts: see :class:`AnswerScorer`.
        float16: scale the loss, because small gradients vanish in float16.
        processes: a :class:`Processes`; this one alone by default.
    """

    def __init__(
        self,
        policy,
        lr: float | None = None,
        *,
        optimizer=adamw,
        logits_chunk: int | None = None,
        share_prompts: bool = False,
        float16: bool = False,
        processes: Processes | None = None,
    ):
        self.policy = policy
        self.processes = processes if processes is not None else Processes()
        self.share_prompts = share_prompts
        self.score = self.processes.wrap(AnswerScorer(policy, logits_chunk, share_prompts))
        self.optimizer = optimizer(policy, lr) if lr is not None else None
        device = next(policy.parameters()).device.type
        self.scaler = torch.amp.GradScaler(device, enabled=float16)
        self.steps_done = 0
        self.remember_randomness()

    def remember_randomness(self) -> None:
        """Where the generators stand between two steps: a run that goes on starts from here."""
        gpu = torch.cuda.get_rng_state() if torch.cuda.is_available() else None
        self.randomness = {"cpu": torch.get_rng_state(), "gpu": gpu}

    def restore_randomness(self, state: dict) -> None:
        """Put the generators where they stood."""
        torch.set_rng_state(state["cpu"])
        if state["gpu"] is not None and torch.cuda.is_available():
            torch.cuda.set_rng_state(state["gpu"])
        self.randomness = state

    def part(self, last: bool):
        """Context of one part of a batch: gradients are exchanged once, with the last."""
        if last or not isinstance(self.score, DistributedDataParallel):
            return nullcontext()
        return self.score.no_sync()

    def backward(self, loss) -> None:
        """Add the gradients of this process's share of the loss."""
        self.scaler.scale(loss * self.processes.count).backward()  # DDP and FSDP2 average

    def step(self, lr: float) -> float:
        """One optimizer step with the gradients so far; returns their norm before clipping."""
        set_learning_rate(self.optimizer, lr)
        norm = apply_gradients(self.optimizer, scaler=self.scaler)
        self.steps_done += 1
        self.remember_randomness()
        return norm
