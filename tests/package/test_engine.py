"""What `engine.py` promises: two processes take one's steps, and float16 loses no gradient.

All commands of two processes run in one start of torchrun, which costs more than they do.
"""

import json
import math
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_llama import WIDE, tiny_model, tiny_tokenizer
from torch import nn

from rlhf_minimal.__main__ import main
from rlhf_minimal.engine import AnswerScorer, Engine, Processes
from rlhf_minimal.history import History
from rlhf_minimal.large_models import load_model
from rlhf_minimal.log_probs import answer_log_probs
from rlhf_minimal.pairs import collate_answers

STEPS = 4
ADAPTERS = ["--lora-rank", "4"]
ULP = 2.0**-23


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("engine")
    tiny_model(**WIDE).save_pretrained(folder / "model")
    tiny_tokenizer().save_pretrained(folder / "model")
    noise, lines = random.Random(0), []
    for number in range(40):
        prompt = f"\n\nHuman: question {number}\n\nAssistant:"
        dish = noise.choice(["tea", "soup", "rice"])
        row = {"chosen": f"{prompt} {dish}, please", "rejected": f"{prompt} {dish}, now"}
        lines.append(json.dumps(row))
    (folder / "pairs.jsonl").write_text("\n".join(lines))
    return folder


def command(folder, out, *more):
    given = {"model": folder / "model", "pairs": folder / "pairs.jsonl", "out": folder / out}
    given |= {"steps": STEPS, "lr": 3e-3, "held-out": 6, "beta": 0.5, "lora-dropout": 0}
    return ["dpo", "--quiet", *(str(x) for n, v in given.items() for x in (f"--{n}", v)), *more]


@pytest.fixture(scope="module")
def alone(folder):
    """The same runs in this process alone, with the same global batch."""
    kinds = {"adapters": ADAPTERS, "nf4": [*ADAPTERS, "--quantize", "nf4"], "all": []}
    for name, more in kinds.items():
        assert main(command(folder, f"one-{name}", *more)) == 0
    return folder


@pytest.fixture(scope="module")
def together(folder):
    """Status and output of each command in each of two processes, by the second one's rank."""
    dropout, shard = [*ADAPTERS, "--lora-dropout", "0.1"], [*ADAPTERS, "--shard"]
    cases = {
        "adapters": (ADAPTERS, None),
        "nf4": ([*ADAPTERS, "--quantize", "nf4"], None),
        "all": ([], None),
        "shard-adapters": ([*shard, "--merge"], None),
        "shard-all": (["--shard"], None),
        "shared-prompts": ([*ADAPTERS, "--share-prompts"], None),
        "shard-shared-prompts": ([*shard, "--share-prompts"], None),
        "odd": ([*ADAPTERS, "--batch-size", "3"], None),
        "dropout": (dropout, None),
        "stopped": (dropout, 2),
        "shard-stopped": (shard, 2),
    }
    listed = {
        name: {"arguments": command(folder, name, *more), "interrupt_after": after}
        for name, (more, after) in cases.items()
    }
    for name, more in (("stopped", dropout), ("shard-stopped", shard)):
        listed[f"{name}-resumed"] = {"arguments": command(folder, name, *more, "--resume")}
    (folder / "cases.json").write_text(json.dumps(listed))
    here = Path(__file__).parent
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(here.parents[1])}
    script = [here / "two_processes.py", folder / "cases.json"]
    ended = subprocess.run(
        [*torchrun, "--standalone", *script], env=env, capture_output=True, text=True, timeout=900
    )
    assert ended.returncode == 0, ended.stderr
    return [json.loads((folder / f"results-{rank}.json").read_text()) for rank in (0, 1)]


# Two processes


@pytest.mark.parametrize(
    ("two", "one"),
    [
        ("adapters", "adapters"),
        ("nf4", "nf4"),
        ("all", "all"),
        ("shard-adapters", "adapters"),
        ("shard-all", "all"),
        ("shared-prompts", "adapters"),
        ("shard-shared-prompts", "adapters"),
    ],
)
def test_two_processes_take_the_steps_of_one(together, alone, two, one):
    for rank in (0, 1):
        assert together[rank][two]["status"] == 0, together[rank][two]["printed"]
    rows = [History.load(alone / name / "history.json").rows for name in (f"one-{one}", two)]
    assert len(rows[0]) == len(rows[1]) == STEPS
    for expected, found in zip(*rows, strict=True):
        # The same sums of float32 in another order, and four steps of AdamW on top.
        assert found["loss"] == pytest.approx(expected["loss"], rel=1e-4)
        assert found["grad_norm"] == pytest.approx(expected["grad_norm"], rel=1e-4)
        assert found["margin"] == pytest.approx(expected["margin"], rel=1e-3, abs=1e-5)


def trained(folder, out):
    adapters = folder / out / "adapters.safetensors"
    if adapters.exists():
        return load_file(adapters)
    return load_model(folder / out / "model", device="cpu")[0].state_dict()


@pytest.mark.parametrize(
    ("two", "one"), [("adapters", "adapters"), ("shard-adapters", "adapters"), ("shard-all", "all")]
)
def test_two_processes_save_what_one_does(together, alone, two, one):
    expected, found = trained(alone, f"one-{one}"), trained(alone, two)
    assert expected.keys() == found.keys()
    # Gradients equal to an ulp or so; AdamW divides by their size, so where one is all rounding
    # error its step (3e-3 at most, four times) may go the other way: such weights are few.
    distance = torch.cat([(expected[n] - found[n]).abs().flatten() for n in expected])
    assert distance.median() < 1e-6
    assert (distance > 1e-4).float().mean() < 0.01


def test_a_sharded_run_merges_its_adapters_into_a_model(together, folder):
    merged, _ = load_model(folder / "shard-adapters" / "model", device="cpu")
    plain, adapters = tiny_model(**WIDE), trained(folder, "shard-adapters")
    for name, layer in plain.named_modules():
        weight = getattr(layer, "weight", None)
        if f"{name}.lora_a" in adapters:
            update = 2 * adapters[f"{name}.lora_b"] @ adapters[f"{name}.lora_a"]
            weight = weight + update
        if weight is not None:
            torch.testing.assert_close(merged.get_submodule(name).weight, weight)


def test_only_the_first_process_writes_and_prints(together, folder):
    finished = ["adapters", "nf4", "all", "shard-adapters", "shard-all", "dropout"]
    for name in finished:
        assert "held-out pairs" in together[0][name]["printed"]
        assert together[1][name]["printed"] == ""
        assert list((folder / f"{name}-second").iterdir()) == []
    assert list((folder / "stopped-second").iterdir()) == []


def test_a_batch_that_the_processes_cannot_share_is_refused(together):
    for result in together:
        assert result["odd"]["status"] == 2
        assert "a batch of 3 pairs does not divide by 2 processes" in result["odd"]["printed"]


def test_a_signal_to_one_process_stops_all_between_two_steps(together):
    for result in together:
        assert result["stopped"]["status"] == result["shard-stopped"]["status"] == 130
        assert result["stopped-resumed"]["status"] == 0, result["stopped-resumed"]["printed"]
    assert "going on after step 2 of 4" in together[0]["stopped-resumed"]["printed"]


def test_a_run_of_two_processes_goes_on_as_if_it_had_never_stopped(together, folder):
    for whole, stopped in (("dropout", "stopped"), ("shard-adapters", "shard-stopped")):
        rows = [History.load(folder / name / "history.json").rows for name in (whole, stopped)]
        assert rows[0] == rows[1]
        first, second = trained(folder, whole), trained(folder, stopped)
        assert all(torch.equal(first[name], second[name]) for name in first)


def test_float32_adapters_over_bfloat16_weights_can_be_sharded(together):
    copied, sharded = together[0]["mixed"]
    assert copied == together[1]["mixed"][0]
    for one, other in zip(copied, sharded, strict=True):
        # The same bfloat16 products; only the order of float32 sums differs.
        assert other["loss"] == pytest.approx(one["loss"], rel=1e-5)
        assert other["grad_norm"] == pytest.approx(one["grad_norm"], rel=1e-3)


# Shares of the work


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_shares_of_a_batch_are_equal_and_make_it_up(count):
    rows = torch.arange(12)
    shares = [Processes(count, rank, "cpu").share(rows) for rank in range(count)]
    assert {len(share) for share in shares} == {12 // count}
    assert sorted(torch.cat(shares).tolist()) == rows.tolist()


@pytest.mark.parametrize("count", [1, 2, 3, 4])
@pytest.mark.parametrize("batches", [1, 2, 5, 8])
def test_all_processes_get_as_many_batches_and_each_counts_once(count, batches):
    shares = [Processes(count, r, "cpu").shared_out(list(range(batches))) for r in range(count)]
    assert len({len(share) for share in shares}) == 1
    assert sorted(b for share in shares for b, counts in share if counts) == list(range(batches))


# Float16


class TinySlope(nn.Module):
    """A loss whose gradient is ``slope``, by way of float16."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def loss(self, slope, size=1.0):
        # On the way back the gradient, slope and scale together, stands in float16 once.
        return ((self.weight.half() * size).float() * slope).sum()


def step_with(slope, float16, size=1.0):
    model = TinySlope()
    engine = Engine(model, 1.0, optimizer=lambda m, lr: torch.optim.SGD(m.parameters(), lr=lr))
    engine.scaler = torch.amp.GradScaler("cpu", enabled=float16)
    assert Engine(model, float16=float16).scaler.is_enabled() == float16
    engine.backward(model.loss(slope, size))
    norm = engine.step(1.0)
    return model.weight.item(), norm, engine


def test_a_gradient_too_small_for_float16_survives_scaled():
    slope = 1e-8  # the smallest float16 is 6e-8
    assert step_with(slope, float16=False)[0] == 0.0
    weight, norm, _ = step_with(slope, float16=True)
    # 1e-8 x 65,536 = 6.6e-4 in float16's 11 bits, unscaled again before the step.
    assert weight == pytest.approx(-slope, rel=2**-10)
    assert norm == pytest.approx(slope, rel=2**-10)


def test_a_scaled_gradient_too_large_for_float16_makes_no_step_and_a_smaller_scale():
    weight, norm, engine = step_with(10.0, float16=True)
    assert weight == 0.0
    assert not math.isfinite(norm)
    assert engine.scaler.get_scale() == 65_536 / 2
    assert engine.steps_done == 1  # the run goes on
    while weight == 0.0:
        engine.backward(engine.policy.loss(10.0))
        engine.step(1.0)
        weight = engine.policy.weight.item()
    assert weight == pytest.approx(-1.0)  # the gradient's norm, 10, is clipped to 1


def test_without_scaling_a_gradient_that_is_not_finite_stops_the_run():
    with pytest.raises(FloatingPointError, match="the weights are untouched"):
        step_with(math.inf, float16=False)


# Logits in chunks


def scored(chunk):
    """Log-probabilities, gradients, and how many places each call of the output layer scored."""
    model, sizes = tiny_model(), []
    model.lm_head.register_forward_hook(lambda layer, x, y: sizes.append(y.shape[0]))
    prompts, answers = [[5, 6, 3], [2], [7, 8]], [[7] * 9, [4, 4, 9, 3, 1], [3] * 14]
    found = AnswerScorer(model, chunk)(*collate_answers(prompts, answers, pad_id=0))
    found.square().sum().backward()
    return found.detach(), [p.grad for p in model.parameters()], sizes


@pytest.mark.parametrize("chunk", [1, 5, 7, 28, 100])
def test_logits_in_chunks_give_the_same_numbers_and_gradients(chunk):
    whole, parts = scored(None), scored(chunk)
    torch.testing.assert_close(parts[0], whole[0], rtol=0, atol=16 * ULP)
    for found, expected in zip(parts[1], whole[1], strict=True):
        # float32 sums over 28 places in another order
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * expected.abs().max())
    assert whole[2] == [28]
    assert max(parts[2]) == min(chunk, 28)
    assert sum(parts[2]) == 2 * 28  # each place once on the way there, once on the way back


def test_no_chunk_s_logits_are_kept_for_the_way_back():
    kept, model = [], tiny_model()

    def keep(tensor):
        kept.append(tensor)
        return tensor

    batch = collate_answers([[5]], [[7] * 30], pad_id=0)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        answer_log_probs(model, *batch, logits_chunk=6)
        assert not [t for t in kept if t.dim() == 2 and t.shape[1] == 258 and t.shape[0] <= 30]
        answer_log_probs(model, *batch)
        assert [t for t in kept if t.shape == (30, 258)]
