"""Where a variant's time goes, operator by operator: ``run.py --profile`` calls this for ours.

    python benchmarks/workloads/profiled.py --workload sampling --variant "ours, our GPT"

Shares are of the wall time after the warm-up, with the profiler on, which makes small operators and
Python look a little dearer than they are.
"""

import argparse
import importlib
import json
import os
import time

from common import AFTER_WARM_UP

TOP = 8


def shares_of(events, seconds: float) -> list[list]:
    """``[operator, share, calls]`` of the dearest, and of what is outside all of them."""
    spent = sorted(((e.self_cpu_time_total / 1e6, e.key, e.count) for e in events), reverse=True)
    outside = seconds - sum(one for one, *_ in spent)
    rows = [[name.removeprefix("aten::"), one / seconds, count] for one, name, count in spent[:TOP]]
    return [*rows, ["outside operators", max(outside, 0.0) / seconds, None]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workload", required=True)
    parser.add_argument("--variant", required=True)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--quick", action="store_true")
    given = parser.parse_args()
    import torch
    from torch.profiler import ProfilerActivity, profile

    module = importlib.import_module(given.workload)
    torch.set_num_threads(given.threads)
    variant = module.VARIANTS[given.variant]
    seen, started = profile(activities=[ProfilerActivity.CPU]), []

    def start() -> None:
        if not started:
            seen.start()
            started.append(time.perf_counter())

    AFTER_WARM_UP.append(start)
    variant.run(given.quick, 0, given.variant, **variant.options)
    seconds = time.perf_counter() - started[0]
    seen.stop()
    print("RESULT " + json.dumps({"shares": shares_of(seen.key_averages(), seconds)}), flush=True)


if __name__ == "__main__":
    main()
