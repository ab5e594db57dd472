"""What the machine gives at the moment: matrix products and copies, in float32.

``--threads`` as the workloads have them. Tiny models are not made of large matrices, so their rate
is measured too: 1,536 tokens times a layer of 128 to 512.
"""

import time

from common import Variant, run_variant


def rates(quick, turn, name) -> dict:
    import torch

    large = torch.randn(1024, 1024)
    small, layer = torch.randn(1536, 128), torch.randn(128, 512)
    source = torch.randn(2**24)
    target = torch.empty_like(source)
    with torch.inference_mode():
        return {
            "unit": "GFLOP/s",
            "large_gflops": median_rate(lambda: large @ large, 2 * 1024**3),
            "small_gflops": median_rate(lambda: small @ layer, 2 * 1536 * 128 * 512),
            "copy_gbytes": median_rate(lambda: target.copy_(source), 2 * 4 * 2**24),
        }


def median_rate(work, size: float) -> float:
    """Billions a second: the median of thirty tries, after three that do not count."""
    seconds = []
    for _ in range(33):
        started = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - started)
    return size / sorted(seconds[3:])[15] / 1e9


VARIANTS = {"machine": Variant(rates)}

if __name__ == "__main__":
    run_variant(VARIANTS)
