"""``RESULTS.md`` and its figures from the numbers of ``results.json``; called by ``run.py``.

Every sentence with a number is worked out here from the recorded numbers.
"""

import importlib
import json
import math
import statistics
from pathlib import Path

import scaling_fit

ORDER = ["cartpole", "dpo_small", "dpo_large", "reward_model", "rloo", "ppo_lm", "sampling", "demo"]
FOLDER = Path(__file__).resolve().parent
NEVER = math.inf

HEAD = """# Speed, memory and cost, side by side with the peers

Written by `make bench`; the numbers are in `results.json`. Every variant is a process of its own,
the variants take turns within each round, and a **ratio is the median of the ratios within the
rounds**: the same loop can take twice as long a minute later. Shown are medians, with the least and
the most in brackets. Start-up is not counted: imports, building the model, reading the data, and
the first steps.

**Both sides do the same work**: the same architecture and weights (GPT-2 with ReLU and without
dropout, so that the course's GPT with the same weights is the same function), the same data in the
same order, as many tokens and steps, the same optimizer, threads and precision. All sequences have
full length, so nobody gains by padding less. Where training is not sampled, the mean loss over a
run is shown: it agrees between all that computed the same in float32. **TRL tuned** is TRL in
float32, without gradient checkpointing, with fused AdamW and hardly any logging; its defaults
(bfloat16 and checkpointing, on a CPU too) stand beside it, measured on fewer steps. Not tried:
`torch.compile`, which needs a compiler on the machine and would serve both sides.

**Prompts shared** is ours with `share_prompts=True` (off by default): a prompt goes through the
model once for its answers, fewer operations for the same losses and gradients. TRL 1.16 has no such
setting, so these rows do less work than TRL's for the same result. Sampling reads a prompt that
comes several times once in any case.

"Peak" is the process's largest resident memory, libraries included; "above imports" is what came on
top of the memory after the imports. "Of the machine" is the work's floating-point operations
(two a weight and token, causal attention, logits at answers only; three passes' worth to train)
over the rate of fp32 products of 1024 × 1024 matrices, measured in the same rounds.
"""
LEFT_OUT = """## What is not compared

- **CleanRL** does not install on this Python: its releases of the last years (1.2.0 among them) ask
  for a Python below 3.11, and 0.4.8, which pip takes instead, is written against the old `gym`,
  whose `reset` and `step` return other things than gymnasium's.
- **Padding**: real data have answers of different lengths and several pairs to a prompt, where our
  batches by length, and each answer computed once, would gain further.
- **PPO** is measured with TRL 1.9.2 in an environment of its own: TRL 1.16 has none.
- **GPUs**: `python benchmarks/mistral_7b.py`, where there is one.
"""


# --- rows -----------------------------------------------------------------------------------------


def rows_of(found: dict) -> dict:
    """Row name -> what each round gave: rate or seconds, memory, loss, operations, bytes."""
    rows: dict[str, list] = {}
    for run in found["runs"]:
        if "failed" in run:
            continue
        values = run.get("rates") or {run["variant"]: run.get("seconds_to_solve") or NEVER}
        for name, value in values.items():
            one = {key: (run.get(key) or {}).get(name) for key in ("flop", "bytes")}
            rows.setdefault(name, []).append(one | {"value": value, **{
                key: run.get(key) for key in (
                    "round", "peak_mib", "after_imports_mib", "loss", "unit", "variant",
                    "steps_to_solve", "steps_per_second")
            }})
    return rows


def median(values) -> float:
    return statistics.median(values)


def number(value: float) -> str:
    """Three significant digits."""
    if value == NEVER:
        return "not reached"
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def spread(values) -> str:
    if len(values) == 1:
        return number(values[0])
    reached = [value for value in values if value < NEVER]
    if len(reached) < len(values):
        least = f", the fastest {number(min(reached))}" if reached else ""
        return f"{number(median(values))} ({len(reached)} of {len(values)} reached{least})"
    return f"{number(median(values))} ({number(min(values))}–{number(max(values))})"


def machine_rate(found: dict, key: str) -> float:
    rates = [row[key] for row in found["machine"] if key in row]
    return median(rates) if rates else math.nan


def ratio(rows, aim) -> float | None:
    """Ours over the peer's: median of the rounds' ratios; for seconds, ratio of the medians."""
    if aim.ours not in rows or aim.peer not in rows:
        return None
    if aim.what == "seconds":
        ours, peer = (median([r["value"] for r in rows[name]]) for name in (aim.ours, aim.peer))
        return ours / peer if ours < NEVER else NEVER
    key = "value" if aim.what == "rate" else aim.what
    peers = {row["round"]: row[key] for row in rows[aim.peer]}
    found = [row[key] / peers[row["round"]] for row in rows[aim.ours] if row["round"] in peers]
    return median(found) if found else None


# --- parts of the page ----------------------------------------------------------------------------


def table(found: dict, rows: dict) -> list[str]:
    unit = next(iter(rows.values()))[0]["unit"]
    timed = unit == "s"
    lines = [
        f"| | {'seconds' if timed else unit} | peak MiB | above imports | "
        f"{'steps | steps/s' if timed else 'of the machine | mean loss'} |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    peak = machine_rate(found, "large_gflops")
    for name, runs in rows.items():
        memory = median([run["peak_mib"] for run in runs])
        above = [run["peak_mib"] - run["after_imports_mib"] for run in runs
                 if run["after_imports_mib"]]
        cells = [name, spread([run["value"] for run in runs]), number(memory),
                 number(median(above)) if above else ""]
        if timed:
            for key in ("steps_to_solve", "steps_per_second"):
                values = [run[key] for run in runs if run[key]]
                cells.append(number(median(values)) if values else "")
        else:
            rate = median([run["value"] for run in runs])
            share = runs[0]["flop"] * rate / 1e9 / peak if runs[0]["flop"] else math.nan
            loss = runs[0]["loss"]
            cells += [f"{share:.0%}" if share == share else "", f"{loss:.6f}" if loss else ""]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def aims(name: str, found: dict, rows: dict) -> list[str]:
    """A line for each aim: met, or missed, by how much and why."""
    lines = []
    for aim in importlib.import_module(name).AIMS:
        value = ratio(rows, aim)
        if value is None:
            lines.append(f"- {aim.ours} / {aim.peer}: not measured.")
            continue
        what = {"rate": "rate", "peak_mib": "peak memory", "seconds": "time"}[aim.what]
        met = value <= aim.factor if aim.at_most else value >= aim.factor
        sign = "≤" if aim.at_most else "≥"
        if value == NEVER:
            lines.append(f"- {aim.ours}: not solved in the median; aim {sign} {aim.factor:g} ×.")
            continue
        text = (f"- {aim.ours} / {aim.peer}, {what}: **{value:.2f} ×**, aim {sign} "
                f"{aim.factor:g} ×: ")
        if met:
            lines.append(text + "met.")
            continue
        short = value / aim.factor - 1 if aim.at_most else 1 - value / aim.factor
        lines.append(text + f"**missed** by {short:.0%}.")
        if aim.what == "rate":
            lines.append(limit(found, rows[aim.ours], rows[aim.peer], aim))
    return lines


def limit(found: dict, ours, peer, aim) -> str:
    """What the machine would allow: operations and bytes against its measured rates."""
    rate = median([run["value"] for run in ours])
    wanted = aim.factor * median([run["value"] for run in peer])
    large, small, copy = (
        machine_rate(found, key) for key in ("large_gflops", "small_gflops", "copy_gbytes")
    )
    flop, moved = ours[0]["flop"] / 1e9, ours[0]["bytes"] / 1e9
    return (
        f"  One item is {flop:.3g} GFLOP and moves some {moved * 1000:.3g} MB. At {number(rate)} "
        f"a second that is {flop * rate:.0f} GFLOP/s, {flop * rate / large:.0%} of what large "
        f"matrices get here ({large:.0f}) and {flop * rate / small:.0%} of what 1,536 × 128 × 512 "
        f"gets ({small:.0f}), and {moved * rate:.1f} GB/s, {moved * rate / copy:.0%} of a plain "
        f"copy's rate ({copy:.1f}). The aim asks for {number(wanted)} a second, "
        f"{wanted * flop / large:.0%} of the large matrices' rate; with the arithmetic alone at "
        f"that rate the limit would be {number(large / flop)}."
    )


def where_time_goes(found: dict) -> list[str]:
    """What a profiler says of ours: the operators that take most."""
    lines = []
    for variant, shares in found.get("profile", {}).items():
        told = ", ".join(f"`{name}` {share:.0%}" for name, share, calls in shares
                         if share >= 0.03 and calls)
        outside = next(share for name, share, calls in shares if not calls)
        lines.append(f"- Profile of {variant}: {told}; Python and dispatch outside operators "
                     f"{outside:.0%}.")
    return lines


def section(name: str, found: dict) -> list[str]:
    module, rows = importlib.import_module(name), rows_of(found)
    lines = [f"## {module.TITLE}", ""]
    for row in found["runs"]:
        if "failed" in row:
            last = row["failed"].strip().splitlines()[-1:]
            lines += [f"{row['variant']} **failed** in round {row['round'] + 1}: {last}", ""]
    if not rows:
        return lines
    threads = {run["threads"] for run in found["runs"] if "threads" in run}
    rates = [f"{machine_rate(found, k):.0f} {unit}" for k, unit in (
        ("large_gflops", "GFLOP/s on large matrices"), ("small_gflops", "on small ones"),
        ("copy_gbytes", "GB/s copying"))]
    rounds = f"{found['rounds']} round{'s' * (found['rounds'] != 1)}"
    lines += [f"{rounds} on {found['date']}, threads: "
              f"{', '.join(map(str, sorted(threads)))}; meanwhile the machine gave "
              f"{', '.join(rates)}.", "", *table(found, rows), "", *aims(name, found, rows),
              *where_time_goes(found)]
    if hasattr(module, "LIMIT_S"):
        seconds = median([run["value"] for run in rows[name]])
        over = seconds / module.LIMIT_S - 1
        verdict = "met" if over <= 0 else f"**missed** by {over:.0%}"
        spent = median([run["cpu_seconds"] for run in found["runs"] if "cpu_seconds" in run])
        cores = found["facts"]["cores"]
        lines.append(f"- aim ≤ {module.LIMIT_S:.0f} s: {verdict}. All its processes took "
                     f"{spent:.0f} s of processor time: {spent / cores:.0f} s with {cores} cores "
                     "busy from beginning to end, but the stages up to the reward model need one.")
    return [*lines, ""]


def recorded_elsewhere() -> list[str]:
    """Grading and the 7B model, from the files that their own commands write."""
    lines, path = [], FOLDER / "grading.json"
    if path.exists():
        data = json.loads(path.read_text(encoding="utf-8"))
        cost, size = data["cost"], data["size"]
        seconds, memory = cost["wall_seconds"], cost["peak_pss_mb"]
        met = seconds <= 120 * size / 200 and memory <= 2048
        lines += [
            "## Grading a class (`python benchmarks/grading.py`)", "",
            f"{size} notebooks of lesson {data['lesson']} in {seconds:.0f} s "
            f"({seconds / size:.2f} s each, {cost['cpu_seconds'] / size:.2f} processor seconds), "
            f"{memory:,} MB with shared pages once, {cost['peak_rss_mb']:,} MB summed; "
            f"{len(data['faults'])} of {data['results']} marks not as deserved. "
            f"The load before was {data['machine']['load_before']}; with all "
            f"{data['machine']['cores']} cores to itself and busy throughout it would be "
            f"{cost['cpu_seconds'] / data['machine']['cores']:.0f} s.",
            "", f"- aim ≤ 120 s and ≤ 2 GB for 200: {'met' if met else '**missed**'}.", "",
        ]
    path = FOLDER / "mistral_7b.json"
    if path.exists():
        lines += mistral(json.loads(path.read_text(encoding="utf-8")))
    return lines


def mistral(data: dict) -> list[str]:
    runs: dict[str, list] = {}
    for run in data["runs"]:
        runs.setdefault(run["variant"], []).append(run)
    lines = ["## 4-bit DPO of a 7B model (`python benchmarks/mistral_7b.py`)", "",
             f"On {data['runs'][0]['device']}, {data['steps']} steps.", "",
             "| | tokens/s | peak GiB |", "| --- | ---: | ---: |"]
    for name, found in runs.items():
        lines.append(f"| {name} | {spread([r['tokens_per_second'] for r in found])} | "
                     f"{spread([r['peak_gib'] for r in found])} |")
    return [*lines, ""]


def page(results: dict) -> str:
    """The whole of ``RESULTS.md``."""
    found, lines = results["workloads"], [HEAD]
    for facts in dict.fromkeys(json.dumps(one["facts"]) for one in found.values()):
        one = json.loads(facts)
        lines.append(f"Machine: {one['cpu']}, {one['cores']} cores, {one['memory_gib']} GiB, "
                     f"{one['system']}.")
    for key, title in (("versions", "Versions"), ("ppo_versions", "For PPO")):
        for text in dict.fromkeys(json.dumps(one[key]) for one in found.values()):
            named = ", ".join(f"{n} {v}" for n, v in json.loads(text).items())
            lines.append(f"{title}: {named}.")
    if "dpo_small" in found or "rloo" in found:
        lines += ["", "![Ours over the peer in its best configuration](results.png)", ""]
    for name in ORDER:
        if name in found:
            lines += section(name, found[name])
    if "scaling" in found:
        lines += scaling_fit.section(found["scaling"])
    return "\n".join([*lines, *recorded_elsewhere(), LEFT_OUT])


# --- the figure -----------------------------------------------------------------------------------


def draw(results: dict, path: Path) -> None:
    """Each aim as a bar: how many times the peer's speed, and a mark where the aim is."""
    from matplotlib.figure import Figure

    bars = []
    for name in ORDER:
        found = results["workloads"].get(name)
        rows = rows_of(found) if found else {}
        for aim in importlib.import_module(name).AIMS if rows else []:
            value = ratio(rows, aim)
            if value and value < NEVER and aim.what != "peak_mib":
                faster, wanted = (value, aim.factor)
                if aim.what == "seconds":
                    faster, wanted = 1 / value, 1 / aim.factor
                bars.append((f"{name}: {aim.ours}", faster, wanted))
    if not bars:
        return
    figure = Figure(figsize=(8.5, 0.45 * len(bars) + 1.4), layout="constrained")
    axes = figure.subplots()
    places = range(len(bars))
    axes.barh(places, [bar[1] for bar in bars], color="#0072B2", height=0.6, label="measured")
    axes.plot([bar[2] for bar in bars], places, "|", color="#D55E00", markersize=18,
              markeredgewidth=2.5, label="aim")
    axes.axvline(1, color="#666666", linestyle="--", linewidth=1, label="the peer, tuned")
    for place, (_, faster, _) in zip(places, bars, strict=True):
        axes.text(0.03, place, f"{faster:.1f}×", va="center", color="white")
    axes.set_yticks(places, [bar[0] for bar in bars])
    axes.invert_yaxis()
    met = sum(faster >= wanted for _, faster, wanted in bars)
    ahead = sum(faster > 1.05 for _, faster, _ in bars)
    axes.set_title(f"More than 5% faster than the tuned peer in {ahead} of {len(bars)}\n"
                   f"comparisons; {met} of these aims met", loc="left")
    axes.set_xlabel("times the peer's speed, same result")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="best")
    figure.savefig(path, dpi=160)


def write(results: dict, folder: Path) -> None:
    """The page and its figures."""
    (folder / "RESULTS.md").write_text(page(results) + "\n", encoding="utf-8")
    draw(results, folder / "results.png")
    if "scaling" in results["workloads"]:
        scaling_fit.draw(results["workloads"]["scaling"], folder / "scaling.png")
