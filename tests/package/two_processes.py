"""Run by torchrun in each of two processes: `dpo` commands from a file, one after the other.

What each process printed, and how each command ended, goes to files beside the list.
"""

import contextlib
import io
import json
import os
import signal
import sys
from pathlib import Path

import torch

RANK = os.environ.get("RANK", "0")


def run(arguments, interrupt_after=None):
    """Exit status and output; a signal comes to the first process after so many steps."""
    from rlhf_minimal.__main__ import main
    from rlhf_minimal.engine import Engine

    step, printed = Engine.step, io.StringIO()

    def step_with_a_signal(engine, lr):
        norm = step(engine, lr)
        if RANK == "0" and engine.steps_done == interrupt_after:
            os.kill(os.getpid(), signal.SIGTERM)
        return norm

    Engine.step = step_with_a_signal
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        status = main(arguments)
    Engine.step = step
    return status, printed.getvalue()


def own_place(arguments):
    """The second process writes elsewhere, if it writes: what lies there it should not have."""
    index = arguments.index("--out") + 1
    if RANK == "0" or "--resume" in arguments:
        return arguments
    return [*arguments[:index], arguments[index] + "-second", *arguments[index + 1 :]]


def mixed_precision_step(shard: bool) -> dict:
    """One step of float32 adapters over bfloat16 weights: its loss, and its gradient's norm."""
    from tiny_llama import tiny_model

    from rlhf_minimal.engine import Engine, Processes
    from rlhf_minimal.lora import add_lora
    from rlhf_minimal.pairs import TokenPair, train_on_pairs

    model = add_lora(tiny_model().bfloat16(), ["q_proj", "down_proj"], rank=2, alpha=4.0)
    processes = Processes(int(os.environ["WORLD_SIZE"]), int(RANK), "cpu", shard)
    engine = Engine(model, 1e-3, processes=processes)
    pairs = [TokenPair([5, 6], [7 + n, 8, 257], [9, 10 + n, 257]) for n in range(4)]
    history = train_on_pairs(
        model,
        pairs,
        lambda log_probs, rows: (-log_probs.chosen.mean(), {}),
        steps=2,
        batch_size=4,
        micro_batch=1,
        show_progress=False,
        engine=engine,
    )
    return history.rows


if __name__ == "__main__":
    from rlhf_minimal.engine import Processes

    torch.set_num_threads(1)
    torch.compiler.set_stance("force_eager")
    torch.distributed.init_process_group("gloo")  # once: a group cannot be joined a second time
    Processes.close = lambda self: None
    path = Path(sys.argv[1])
    results = {}
    results["mixed"] = [mixed_precision_step(shard) for shard in (False, True)]
    for name, case in json.loads(path.read_text()).items():
        status, printed = run(own_place(case["arguments"]), case.get("interrupt_after"))
        results[name] = {"status": status, "printed": printed}
        path.with_name(f"results-{RANK}.json").write_text(json.dumps(results))
    torch.distributed.destroy_process_group()
