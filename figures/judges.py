"""What judges are worth: accuracy and position bias of the toy judge and of a real small model.

    python figures/judges.py --record toy                            the kitchen's judges
    python figures/judges.py --record NAME --model DIR --gguf FILE   any model of transformers
    python figures/judges.py                                         draw from judges.json

Each recording adds its row to judges.json. The real model compares the answers of twelve questions
that are written below, right against wrong, in both orders; then each right answer with itself and
a sentence that says nothing.
"""

import argparse
import json
import random
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch

from rlhf_minimal.ai_feedback import (
    consistent_verdicts,
    parse_verdict,
    position_bias,
    swap_average,
    verbosity_bias,
)
from rlhf_minimal.gold_reward import gold_reward
from rlhf_minimal.held_out import wilson_interval
from rlhf_minimal.history import write_json
from rlhf_minimal.kitchen import Kitchen
from rlhf_minimal.large_judge import LargeJudge
from rlhf_minimal.large_models import load_model
from rlhf_minimal.toy_judge import JudgeDials, pad_answer, train_toy_judge
from rlhf_minimal.toy_world import sample_prompts, write_answer
from rlhf_minimal.win_rates import interval

HERE = Path(__file__).resolve().parent
NUMBERS = HERE / "judges.json"
COLOURS = dict(consistent="#009E73", first="#E69F00", second="#56B4E9", unreadable="#999999")
PADDING = " That is really all there is to say about it, and it is a good question to ask."
DIALS = {
    "toy, fair": JudgeDials(),
    "toy, position 1": JudgeDials(position=1.0),
    "toy, length ¼": JudgeDials(length=0.25),
}

# Question, a right answer, a wrong one of about the same length.
QUESTIONS = [
    ("How many legs has a spider?", "A spider has eight legs.", "A spider has four legs."),
    ("What is 7 + 5?", "7 + 5 is 12.", "7 + 5 is 14."),
    ("At what temperature does water freeze?", "At 0 degrees Celsius.", "At 50 degrees Celsius."),
    ("Which planet is nearest to the sun?", "Mercury is.", "Neptune is."),
    ("What do bees make?", "Bees make honey.", "Bees make cotton."),
    ("What is the capital of France?", "It is Paris.", "It is Madrid."),
    ("Which animal gives milk?", "A cow gives milk.", "A trout gives milk."),
    ("What is bread made of?", "Mostly of flour and water.", "Mostly of sand and glue."),
    ("How many days has a week?", "A week has seven days.", "A week has eleven days."),
    ("Is ice colder than steam?", "Yes, ice is colder.", "No, steam is colder."),
    ("What does a dentist look after?", "Your teeth.", "Your car's tyres."),
    ("What colour is fresh snow?", "Snow is white.", "Snow is green."),
]


def measure(judge, prompts, right, wrong, padded, **say) -> dict:
    """The row of one judge: accuracy, what survives swapping, position and verbosity bias."""
    orders = (right, wrong), (wrong, right)
    p, swapped = (judge.compare(prompts, *order) for order in orders)
    fair = swap_average(p, swapped)
    texts = [judge.verdicts(prompts, *order, **say) for order in orders]
    verdicts = [[parse_verdict(text) for text in said] for said in texts]
    kept = [v for v in consistent_verdicts(*verdicts) if v in ("A", "B")]
    longer = swap_average(
        judge.compare(prompts, padded, right), judge.compare(prompts, right, padded)
    )
    one_order = torch.cat([p > 0.5, swapped < 0.5]).float()
    return {
        "pairs": len(prompts),
        "accuracy_one_order": interval(one_order),
        "accuracy_both_orders": interval((fair > 0.5).float()),
        "kept": len(kept) / len(prompts),
        "accuracy_kept": sum(v == "A" for v in kept) / len(kept) if kept else None,
        "position": position_bias(*verdicts)._asdict(),
        "position_of_probabilities": position_bias(
            *(["A" if x > 0.5 else "B" for x in row.tolist()] for row in (p, swapped))
        )._asdict(),
        "mean_p_first": torch.cat([p, swapped]).mean().item(),
        "padded_wins": verbosity_bias(longer),
        "score_right": judge.scores(prompts, right).mean().item(),
        "score_wrong": judge.scores(prompts, wrong).mean().item(),
        "said": texts[0][:4],
    }


def record_large(model: str, gguf: str | None) -> dict:
    judge = LargeJudge(*load_model(model, gguf_file=gguf))
    prompts, right, wrong = (list(column) for column in zip(*QUESTIONS, strict=True))
    padded = [answer + PADDING for answer in right]
    return measure(judge, prompts, right, wrong, padded, explain=False, max_new_tokens=8)


def record_toy(size: int = 400) -> dict:
    """Held-out prompts, people's answers; the better one by the gold reward counts as right."""
    kitchen = Kitchen(seed=0)
    kitchen.train_base()
    kitchen.train_sft()
    rng, rows = random.Random(5), []
    for prompt in sample_prompts(size, 77, held_out=True):
        two = [write_answer(prompt, rng) for _ in range(2)]
        gains = [gold_reward(prompt, answer) for answer in two]
        if gains[0] != gains[1]:
            rows.append((prompt, *(two if gains[0] > gains[1] else two[::-1])))
    prompts, right, wrong = (list(column) for column in zip(*rows, strict=True))
    padded = [pad_answer(answer, rng) for answer in right]
    judges = {name: train_toy_judge(kitchen.sft, dials)[0] for name, dials in DIALS.items()}
    return {name: measure(judge, prompts, right, wrong, padded) for name, judge in judges.items()}


def draw(data: dict, path: Path) -> None:
    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 4), layout="constrained")
    names = list(data)
    places = range(len(names))
    start = [0.0] * len(names)
    for kind, colour in COLOURS.items():
        shares = [data[name]["position"][kind] for name in names]
        left.barh(places, shares, left=start, color=colour, label=kind)
        start = [a + b for a, b in zip(start, shares, strict=True)]
    left.set_yticks(places, [f"{name} ({data[name]['pairs']})" for name in names])
    left.set(xlabel="share of the pairs, judged in both orders", xlim=(0, 1))
    left.legend(frameon=False, fontsize=8, ncol=4, loc="upper center", bbox_to_anchor=(0.5, -0.15))
    kinds = {"accuracy_one_order": ("one order", "o"), "accuracy_both_orders": ("averaged", "s")}
    for shift, (kind, (label, marker)) in zip((-0.12, 0.12), kinds.items(), strict=True):
        values = [data[name][kind]["mean"] for name in names]
        ends = [
            wilson_interval(v * data[n]["pairs"], data[n]["pairs"])
            for n, v in zip(names, values, strict=True)
        ]
        right.errorbar(
            values,
            [place + shift for place in places],
            xerr=[
                [v - low for v, (low, _) in zip(values, ends, strict=True)],
                [high - v for v, (_, high) in zip(values, ends, strict=True)],
            ],
            fmt=marker,
            color="black" if shift < 0 else "#0072B2",
            capsize=3,
            label=f"{label}, all pairs",
        )
    kept = [(data[name]["accuracy_kept"], place) for place, name in enumerate(names)]
    kept = [(value, place) for value, place in kept if value is not None]
    style = dict(color=COLOURS["consistent"], label="what survives swapping")
    right.plot([value for value, _ in kept], [place for _, place in kept], "D", **style)
    right.axvline(0.5, color="grey", linestyle="--", linewidth=1)
    right.set_yticks(places, [])
    right.set(xlabel="share of right verdicts", xlim=(0, 1.02))
    right.legend(frameon=False, fontsize=8)
    lean = max(names, key=lambda name: 1 - data[name]["position"]["consistent"])
    left.set_title(
        f"Swapping: {lean} keeps {data[lean]['position']['consistent']:.0%} of its verdicts",
        fontsize=10,
    )
    right.set_title("Accuracy, 95% intervals (a coin: 0.5)", fontsize=10)
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--record", metavar="NAME", help='"toy", or how to call the model')
    parser.add_argument("--model", help="a directory, a GGUF file, or a name on the hub")
    parser.add_argument("--gguf", help="the GGUF file in that directory")
    arguments = parser.parse_args()
    data = json.loads(NUMBERS.read_text()) if NUMBERS.exists() else {}
    if arguments.record:
        if (arguments.record == "toy") == bool(arguments.model):
            raise SystemExit("--record toy takes no --model; any other name needs one")
        if arguments.record == "toy":
            data |= record_toy()
        else:
            data[arguments.record] = record_large(arguments.model, arguments.gguf)
        write_json(NUMBERS, data)
    draw(data, HERE / "judges.png")


if __name__ == "__main__":
    main()
