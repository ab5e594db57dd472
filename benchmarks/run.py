"""Speed, memory and cost side by side with the peers: ``make bench``.

    python benchmarks/run.py                              # everything, about 45 minutes
    python benchmarks/run.py --only dpo_small --rounds 3  # a part; the rest of the page stays
    python benchmarks/run.py --quick --only rloo          # does it run? writes nothing
    python benchmarks/run.py --report                     # the page again, from results.json
    make bench BENCH="--resume"                           # what is not recorded yet
    make bench BENCH="--profile"                          # only: where the time of ours goes

Each variant of a workload (``workloads/``) is a process of its own, and in each round all take
their turn, first the machine itself: how many products of matrices it gives a second just now.
Ratios are formed within a round, because a machine that others use is not the same a minute later.
Written are ``results.json``, ``RESULTS.md``, ``results.png`` and ``scaling.png``.

Leaves out: GPUs (``mistral_7b.py``) and grading (``grading.py``), which have commands of their own;
the page shows what they recorded.
"""

import argparse
import importlib
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
ROOT = FOLDER.parent
sys.path[:0] = [str(FOLDER / "workloads"), str(ROOT)]

WORKLOADS = [
    "cartpole", "dpo_small", "dpo_large", "reward_model", "rloo", "ppo_lm", "sampling", "demo",
    "scaling",
]
PACKAGES = ["torch", "transformers", "trl", "stable-baselines3", "gymnasium", "numpy"]
VERSIONS = (
    "import json, platform\nfrom importlib.metadata import PackageNotFoundError, version\n"
    "found = {'python': platform.python_version()}\n"
    "for name in NAMES:\n"
    "    try:\n        found[name] = version(name)\n"
    "    except PackageNotFoundError:\n        pass\n"
    "print(json.dumps(found))"
)


def one_run(workload: str, name: str, variant, turn: int, given) -> dict:
    """One variant in a process of its own; what it printed, or why it failed."""
    threads = getattr(importlib.import_module(workload), "THREADS", given.threads)
    command = [
        getattr(given, f"{variant.python}_python"), str(FOLDER / "workloads" / f"{workload}.py"),
        "--variant", name, "--turn", str(turn), "--threads", str(threads),
    ]
    environment = os.environ | {
        "OMP_NUM_THREADS": str(threads), "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    started = time.perf_counter()
    done = subprocess.run(
        command + ["--quick"] * given.quick, capture_output=True, text=True, env=environment
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    row = {"variant": name, "round": turn, "load": os.getloadavg()[0]}
    if done.returncode or not lines:
        return row | {"failed": (done.stderr or done.stdout)[-1500:]}
    row |= json.loads(lines[-1].removeprefix("RESULT "))
    return row | {"wall_seconds": round(time.perf_counter() - started, 1)}


def run_workload(name: str, given) -> dict:
    """All variants, a round at a time, a different one first each time."""
    module, machine = importlib.import_module(name), importlib.import_module("machine")
    rounds = given.rounds or getattr(module, "ROUNDS", 3)
    found = {"runs": [], "machine": [], "rounds": rounds}
    variants = list(module.VARIANTS.items())
    for turn in range(rounds):
        rates = one_run("machine", "machine", machine.VARIANTS["machine"], turn, given)
        found["machine"].append(rates)
        shift = turn % len(variants)
        for variant_name, variant in variants[shift:] + variants[:shift]:
            if variant.once and turn:
                continue
            row = one_run(name, variant_name, variant, turn, given)
            found["runs"].append(row)
            print(f"{name:13} round {turn + 1}/{rounds}  {line(row)}", flush=True)
    return found


def profiles(name: str, given) -> dict:
    """Operator by operator, once for each variant of ours."""
    module, found = importlib.import_module(name), {}
    for variant in getattr(module, "VARIANTS", {}):
        # CartPole's millions of tiny operators would fill the memory with their records.
        if not variant.startswith("ours") or name in ("cartpole", "demo", "scaling"):
            continue
        if "no cache" in variant:
            continue
        command = [
            given.bench_python, str(FOLDER / "workloads" / "profiled.py"), "--workload", name,
            "--variant", variant, "--threads", str(getattr(module, "THREADS", given.threads)),
        ]
        done = subprocess.run(command + ["--quick"] * given.quick, capture_output=True, text=True)
        lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
        if not lines:
            raise RuntimeError(f"{name}, {variant}: {done.stderr[-1500:]}")
        found[variant] = json.loads(lines[-1].removeprefix("RESULT "))["shares"]
        print(f"{name:13} {variant}: {found[variant][:3]}", flush=True)
    return found


def line(row: dict) -> str:
    """One run as it is shown while it goes on."""
    if "failed" in row:
        return f"{row['variant']}: FAILED\n{row['failed']}"
    shown = row.get("rates") or {
        row["variant"]: row.get("seconds_to_solve", row.get("seconds_per_step"))
    }
    parts = [
        f"{name}: {'not reached' if value is None else f'{value:.4g}'} {row['unit']}"
        for name, value in shown.items()
    ]
    return f"{'; '.join(parts)}; peak {row['peak_mib']:.0f} MiB"


def versions(python: str) -> dict:
    """Of Python and the packages that matter, in one environment."""
    code = VERSIONS.replace("NAMES", repr(PACKAGES))
    done = subprocess.run([python, "-c", code], capture_output=True, text=True)
    return json.loads(done.stdout) if done.returncode == 0 else {}


def machine_facts() -> dict:
    """Processor, cores, memory and system."""
    cpu = next((line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text()
                .splitlines() if line.startswith("model name")), platform.machine())
    kib = int(Path("/proc/meminfo").read_text().split()[1])
    return {"cpu": cpu, "cores": len(os.sched_getaffinity(0)), "memory_gib": round(kib / 2**20),
            "system": f"{platform.system()} {platform.release()}"}


def read(path: Path) -> dict:
    empty = {"workloads": {}}
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else empty


def write(path: Path, results: dict) -> None:
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    partial.replace(path)


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=WORKLOADS, default=WORKLOADS)
    parser.add_argument("--rounds", type=int, help="default: 3; CartPole 5, demo and scaling 1")
    parser.add_argument("--quick", action="store_true", help="hardly any steps; writes nothing")
    parser.add_argument("--resume", action="store_true", help="skip workloads that are recorded")
    parser.add_argument("--profile", action="store_true", help="profile what is recorded")
    parser.add_argument("--report", action="store_true", help="only write the page again")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--out", type=Path, default=FOLDER, help="folder (default: benchmarks)")
    for name, folder in (("bench", ".venv-bench"), ("ppo", ".venv-bench-ppo")):
        python = str(ROOT / folder / "bin" / "python")
        parser.add_argument(f"--{name}-python", default=python, metavar="PATH")
    return parser.parse_args()


def main() -> int:
    given = arguments()
    given.out.mkdir(parents=True, exist_ok=True)
    path, failed = given.out / "results.json", 0
    results = {"workloads": {}} if given.quick else read(path)
    for name in [] if given.report else given.only:
        if given.profile:
            if given.quick:
                profiles(name, given)
            elif name in results["workloads"]:
                results["workloads"][name]["profile"] = profiles(name, given)
                write(path, results)
            continue
        if given.resume and name in results["workloads"]:
            continue
        found = run_workload(name, given)
        failed += sum("failed" in row for row in found["runs"])
        found |= {"versions": versions(given.bench_python), "facts": machine_facts(),
                  "ppo_versions": versions(given.ppo_python), "date": time.strftime("%Y-%m-%d")}
        results["workloads"][name] = found
        if not given.quick:
            write(path, results)
    import report

    if given.quick:
        print(report.page(results))
    else:
        report.write(results, given.out)
        print(given.out / "RESULTS.md")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
