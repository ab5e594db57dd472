"""What `rehearsal.py` promises: a step on shapes holds what the step itself will hold."""

import pytest
import torch
from test_memory import SIZES, TARGETS, random_pairs
from tiny_llama import tiny_model
from torch.nn.attention import SDPBackend, sdpa_kernel

from rlhf_minimal.engine import Engine
from rlhf_minimal.lora import add_lora
from rlhf_minimal.memory import empty_model
from rlhf_minimal.pairs import train_on_pairs
from rlhf_minimal.quantized import prepare_for_training, quantize_model
from rlhf_minimal.rehearsal import TensorsAlive, rehearse_step


def test_a_storage_counts_once_and_until_its_last_view_is_gone():
    known = torch.zeros(10)
    with TensorsAlive([known]) as counted:
        assert counted.at_first == counted.now == 40
        first = torch.ones(5)
        view = first[1:]
        assert counted.now == 60
        del first
        assert counted.now == 60
        del view
        assert (counted.now, counted.most) == (40, 60)


def real_step(model, quantize, checkpointing):
    """The most that lives in two steps of two parts each, with plain attention."""
    if quantize:
        quantize_model(model, model.dtype, "cpu")
    add_lora(model, TARGETS, 8, 16.0, dropout=0.05)
    prepare_for_training(model, checkpointing)
    states = (getattr(p, "quant_state", None) for p in model.parameters())
    scales = [t for s in states if s for t in (s.absmax, s.offset, s.state2.absmax)]
    counted = TensorsAlive([*model.parameters(), *model.buffers(), *scales])
    with counted, sdpa_kernel(SDPBackend.MATH):
        train_on_pairs(
            model,
            random_pairs(),
            lambda log_probs, rows: ((log_probs.rejected - log_probs.chosen).mean(), {}),
            steps=2,
            batch_size=2,
            micro_batch=1,
            show_progress=False,
            engine=Engine(model, 1e-4, logits_chunk=32),
        )
    return counted.most


@pytest.mark.parametrize(
    ("dtype", "quantize", "checkpointing"),
    [
        (torch.float32, False, False),
        (torch.float32, False, True),
        (torch.float32, True, False),
        (torch.float32, True, True),
        (torch.bfloat16, True, True),
    ],
)
def test_the_step_on_shapes_holds_what_the_step_holds(dtype, quantize, checkpointing):
    model = tiny_model(**SIZES).to(dtype)
    shape = dict(sequences=2, prompt=64, length=128, logits_chunk=32, checkpointing=checkpointing)
    rehearsed = rehearse_step(
        empty_model(model.config, dtype), quantize=quantize, lora_rank=8, targets=TARGETS, **shape
    )
    real = real_step(model, quantize, checkpointing)
    assert rehearsed["peak"] == pytest.approx(real, rel=0.002)
    assert rehearsed["kept"] < rehearsed["peak"]


def test_longer_sequences_and_more_of_them_hold_more():
    config = tiny_model(**SIZES).config
    peak = lambda **shape: rehearse_step(  # noqa: E731
        empty_model(config), lora_rank=8, targets=TARGETS, prompt=64, **shape
    )["peak"]
    assert peak(length=128) < peak(length=256)
    assert peak(length=128) < peak(length=128, sequences=4)
    assert peak(length=128) < peak(length=128, checkpointing=False)
    with pytest.raises(ValueError, match="answer"):
        peak(length=64)
