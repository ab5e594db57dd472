"""How our DPO grows: seconds a step and memory against parameters, length, batch and processes.

One quantity moves, the others stay at a width of 128, sequences of 64 tokens and batches of 16
pairs. Processes are started by ``torchrun``, exchange gradients over gloo, have one thread each and
share batches of 32 pairs.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from common import Clock, Shape, Variant, now_mib, our_gpt, parameters, random_pairs, run_variant

TITLE = "Scaling of DPO on our GPT"
WARM_UP, STEPS = 2, 6
BASE = dict(width=128, length=64, batch=16)
POINTS = {
    "width": (64, 128, 256, 384, 512),
    "length": (32, 64, 128, 256, 512),
    "batch": (4, 8, 16, 32, 64),
}
AXES = {"width": "parameters", "length": "tokens a sequence", "batch": "pairs a batch"}


def point(quick, turn, name, axis, value) -> dict:
    sizes = BASE | {axis: value}
    shape = Shape(sizes["width"], 4, 4, 400, sizes["length"] // 2, sizes["length"] // 2)
    found = steps_of(shape, sizes["batch"], quick)
    x = found["parameters"] if axis == "width" else value
    return found | {"axis": AXES[axis], "x": x}


def steps_of(shape, batch: int, quick: bool, processes=None) -> dict:
    """Seconds a step and memory of one setting, the reference's log-probabilities given."""
    import torch

    from rlhf_minimal.dpo import train_dpo
    from rlhf_minimal.engine import Engine

    before, steps = now_mib(), 1 if quick else STEPS
    model, clock = our_gpt(shape), Clock(WARM_UP)
    pairs = random_pairs(shape, batch * (WARM_UP + steps))
    train_dpo(model, torch.zeros(len(pairs), 2), pairs, steps=WARM_UP + steps, batch_size=batch,
              history=clock, show_progress=False, engine=Engine(model, 1e-4, processes=processes))
    return {"parameters": parameters(model), "seconds_per_step": clock.per_step, "unit": "s",
            "after_imports_mib": before, "loss": clock.mean("loss"),
            **clock.columns()}


def shared(quick, turn, name, count) -> dict:
    """The same batches on ``count`` processes of one thread each; memory is their sum."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone",
               f"--nproc_per_node={count}", __file__, "--worker"] + ["--quick"] * quick
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([*command, folder], check=True, stdout=subprocess.DEVNULL,
                       env=os.environ | {"OMP_NUM_THREADS": "1"})
        parts = [json.loads(path.read_text()) for path in sorted(Path(folder).iterdir())]
    sums = {key: sum(part[key] for part in parts) for key in ("peak_mib", "after_imports_mib")}
    return parts[0] | sums | {"axis": "processes", "x": count}


def worker(folder: str, quick: bool) -> None:
    """One of torchrun's processes."""
    import torch
    from common import status_mib

    from rlhf_minimal.engine import Processes

    torch.set_num_threads(1)
    processes = Processes.of_torchrun()
    found = steps_of(Shape(128, 4, 4, 400, 32, 32), 32, quick, processes)
    found["peak_mib"] = status_mib("VmHWM")
    (Path(folder) / f"{processes.rank}.json").write_text(json.dumps(found))
    processes.close()


VARIANTS = {
    f"{axis} {value}": Variant(point, dict(axis=axis, value=value))
    for axis, values in POINTS.items()
    for value in values
} | {f"processes {count}": Variant(shared, dict(count=count)) for count in (1, 2)}
ROUNDS = 1
AIMS = []

if __name__ == "__main__":
    if "--worker" in sys.argv:
        worker(sys.argv[-1], "--quick" in sys.argv)
    else:
        run_variant(VARIANTS)
