"""``python -m rlhf_minimal demo``, from the command to its last line: wall time.

The processes' memory is that of the largest of them; there is no peer.
"""

import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from common import ROOT, Variant, run_variant

TITLE = "`make demo`, seconds from the command to the page"
LIMIT_S = 90.0


def demo(quick, turn, name) -> dict:
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "rlhf_minimal", "demo", "--out", folder]
        started = time.perf_counter()
        subprocess.run(command + ["--fast"] * quick, cwd=ROOT, check=True, capture_output=True)
        seconds = time.perf_counter() - started
        facts = json.loads((Path(folder) / "demo.json").read_text(encoding="utf-8"))
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return {
        "seconds_to_solve": seconds, "unit": "s", "limit": LIMIT_S, "workers": facts["workers"],
        "peak_mib": children.ru_maxrss / 1024,
        "cpu_seconds": children.ru_utime + children.ru_stime,
    }


VARIANTS = {"demo": Variant(demo)}
ROUNDS = 1
AIMS = []

if __name__ == "__main__":
    run_variant(VARIANTS)
