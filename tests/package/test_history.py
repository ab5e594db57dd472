"""What histories, the checks of arguments and the shared training steps promise."""

import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf_minimal.checks import (
    check_finite,
    check_mask,
    check_nonnegative,
    check_positive,
    check_same_shape,
)
from rlhf_minimal.history import History, progress, write_json
from rlhf_minimal.training import (
    adamw,
    apply_gradients,
    learning_rate_factor,
    minibatches,
    optimizer_step,
)

many = settings(deadline=None, derandomize=True, max_examples=60)


# --- histories ----------------------------------------------------------------------------------


def test_a_saved_history_loads_as_it_was(tmp_path):
    history = History(tmp_path / "deep" / "history.json", seed=3, method="dpo")
    history.record(step=0, loss=0.5, accuracy=1.0)
    history.record(step=1, loss=0.25)
    history.save()
    found = History.load(history.path)
    assert (found.rows, found.facts, found.interrupted) == (history.rows, history.facts, False)
    assert found.path == history.path


def test_tensors_and_numpy_numbers_become_python_numbers(tmp_path):
    history = History(tmp_path / "history.json", beta=np.float32(0.5))
    history.record(loss=torch.tensor(1.5), count=np.int64(3))
    assert history.rows == [{"loss": 1.5, "count": 3}]
    assert all(type(value) in (int, float) for value in history.rows[0].values())
    assert History.load(history.save()).facts == {"beta": 0.5}


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, torch.tensor(math.nan)])
def test_what_json_has_no_word_for_becomes_null(tmp_path, value):
    history = History(tmp_path / "history.json")
    history.record(loss=value)
    text = history.save().read_text(encoding="utf-8")
    assert json.loads(text)["rows"] == [{"loss": None}] and "NaN" not in text


def test_a_column_holds_the_rows_that_have_it():
    history = History()
    history.record(loss=1.0)
    history.record(loss=2.0, accuracy=0.5)
    history.record(loss=6.0)
    assert history["accuracy"] == [0.5] and history["loss"] == [1.0, 2.0, 6.0]
    assert history.mean("loss") == 3.0 and history.mean("loss", last=2) == 4.0


def test_an_unknown_column_is_answered_with_the_known_ones():
    history = History()
    history.record(loss=1.0, accuracy=0.5)
    with pytest.raises(KeyError, match=r"no column 'lost'.*\['accuracy', 'loss'\]"):
        history["lost"]


def test_rows_reach_the_disk_while_the_loop_runs(tmp_path):
    path = tmp_path / "history.json"
    history = History(path)
    history.save_every_s = -1.0  # always due
    history.record(step=0)
    assert len(History.load(path)) == 1
    history.record(step=1)
    assert len(History.load(path)) == 2


def test_saving_waits_until_it_is_due(tmp_path):
    path = tmp_path / "history.json"
    history = History(path)
    history.save_every_s = math.inf
    history.record(step=0)
    assert not path.exists()


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError, None])
def test_whatever_ends_a_loop_the_rows_are_saved(tmp_path, error):
    path = tmp_path / "history.json"

    def loop():
        with History(path) as history:
            history.save_every_s = math.inf
            history.record(step=0)
            if error:
                raise error

    if error:
        with pytest.raises(error):
            loop()
    else:
        loop()
    found = History.load(path)
    assert len(found) == 1 and found.interrupted == (error is KeyboardInterrupt)


def test_a_history_without_a_path_says_how_to_save_it(tmp_path):
    with pytest.raises(ValueError, match="no path; pass one"):
        History().save()
    assert History().save(tmp_path / "history.json").exists()


@pytest.mark.parametrize("text", ["", "{", "[1, 2]", '{"rows": []}', '"rows"'])
def test_a_file_that_is_no_history_is_refused_by_name(tmp_path, text):
    path = tmp_path / "other.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=r"other\.json is not a history file"):
        History.load(path)


def test_writing_that_fails_leaves_the_old_file(tmp_path):
    path = write_json(tmp_path / "data.json", {"a": 1})
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    assert json.loads(path.read_text(encoding="utf-8")) == {"a": 1}


def test_a_write_cut_short_leaves_the_old_file(tmp_path, monkeypatch):
    path = write_json(tmp_path / "data.json", {"a": 1})
    whole = type(path).write_text

    def half(self, text, **options):
        whole(self, text[: len(text) // 2], **options)
        raise OSError("disk full")

    monkeypatch.setattr(type(path), "write_text", half)
    with pytest.raises(OSError, match="disk full"):
        write_json(path, {"a": 2})
    assert json.loads(path.read_text(encoding="utf-8")) == {"a": 1}


def test_progress_counts_and_can_be_silent(capsys):
    assert list(progress(3, "label", show=False)) == [0, 1, 2]
    assert list(progress(["a", "b"], "label", show=False)) == ["a", "b"]
    assert capsys.readouterr().err == ""


# --- checks -------------------------------------------------------------------------------------


def test_the_checks_let_good_values_through():
    check_same_shape(a=torch.zeros(2, 3), b=torch.ones(2, 3))
    check_mask(torch.tensor([0, 1]), torch.tensor([math.nan, 1.0]))
    check_finite("a", torch.tensor([0.0, -1e38]))
    check_nonnegative(beta=0, lr=0.5)
    check_positive(steps=1)


@pytest.mark.parametrize(
    ("check", "error", "message"),
    [
        (
            lambda: check_same_shape(a=torch.zeros(2), b=torch.zeros(2, 1)),
            ValueError,
            r"a has shape \(2,\) but b has shape \(2, 1\)",
        ),
        (lambda: check_same_shape(a=[1.0], b=torch.zeros(1)), TypeError, "a must be a .*not list"),
        (lambda: check_same_shape(a=torch.zeros(0, 3)), ValueError, r"a is empty \(shape \(0, 3"),
        (lambda: check_mask(torch.zeros(2), torch.ones(2)), ValueError, "counts no token"),
        (lambda: check_mask(torch.ones(3), torch.ones(2), "x"), ValueError, "x has shape.*mask"),
        (
            lambda: check_finite("a", torch.tensor([[0.0, 1.0], [2.0, -math.inf]])),
            ValueError,
            r"a\[1, 1\] is -inf",
        ),
        (lambda: check_finite("a", torch.tensor(math.nan)), ValueError, "a is nan"),
        (lambda: check_nonnegative(beta=0, lr=-1), ValueError, "lr is -1; it must be 0 or more"),
        (lambda: check_nonnegative(beta=math.nan), ValueError, "beta is nan"),
        (lambda: check_nonnegative(beta=math.inf), ValueError, "beta is inf.*finite"),
        (lambda: check_positive(steps=0), ValueError, "steps is 0; it must be above 0"),
        (lambda: check_positive(lr=math.nan), ValueError, "lr is nan"),
        (lambda: check_positive(lr=math.inf), ValueError, "lr is inf.*finite"),
    ],
)
def test_each_check_names_the_value_and_what_would_be_right(check, error, message):
    with pytest.raises(error, match=message):
        check()


# --- training steps -----------------------------------------------------------------------------


def batches_of(size, batch_size, steps, seed=0, lengths=None):
    generator = torch.Generator().manual_seed(seed)
    return [b.tolist() for b in minibatches(size, batch_size, steps, generator, lengths)]


@given(st.integers(1, 40), st.integers(1, 50), st.integers(0, 1000), st.booleans())
@many
def test_an_epoch_of_minibatches_repeats_no_index(size, batch_size, seed, by_length):
    lengths = [7 * i % 5 for i in range(size)] if by_length else None
    batch_size_used = min(size, batch_size)
    epoch = size // batch_size_used
    batches = batches_of(size, batch_size, 3 * epoch, seed, lengths)
    assert len(batches) == 3 * epoch
    for start in range(0, 3 * epoch, epoch):
        drawn = [i for batch in batches[start : start + epoch] for i in batch]
        assert len(drawn) == len(set(drawn)) == epoch * batch_size_used
        assert set(drawn) <= set(range(size))


def test_an_epoch_covers_everything_where_batches_divide_it():
    drawn = [i for batch in batches_of(12, 4, 3) for i in batch]
    assert sorted(drawn) == list(range(12)) and drawn != list(range(12))


def test_a_remainder_gets_its_turn_in_other_epochs():
    drawn = {i for batch in batches_of(5, 4, 40) for i in batch}
    assert drawn == set(range(5))


def test_sequences_of_like_length_share_a_batch():
    lengths = [i % 4 for i in range(64)]
    for batch in batches_of(64, 16, 4, lengths=lengths):
        assert len({lengths[i] for i in batch}) == 1


def test_batches_of_one_length_come_in_no_fixed_order():
    lengths = list(range(64))
    orders = {
        tuple(sum(batch) for batch in batches_of(64, 16, 4, seed, lengths)) for seed in range(10)
    }
    assert len(orders) > 5


def test_minibatches_repeat_with_their_seed():
    assert batches_of(50, 8, 20, seed=1) == batches_of(50, 8, 20, seed=1)
    assert batches_of(50, 8, 20, seed=1) != batches_of(50, 8, 20, seed=2)


def test_no_examples_and_no_batch_are_refused():
    with pytest.raises(ValueError, match="nothing to train on"):
        batches_of(0, 4, 1)
    with pytest.raises(ValueError, match="batch_size is 0"):
        batches_of(4, 0, 1)


def test_learning_rate_factors_by_hand():
    def factors(*arguments):
        return [learning_rate_factor(step, *arguments) for step in range(6)]

    assert factors(6, 0, "constant") == [1.0] * 6
    assert factors(6, 2, "constant") == pytest.approx([1 / 3, 2 / 3, 1, 1, 1, 1])
    assert factors(6, 2, "linear") == pytest.approx([1 / 3, 2 / 3, 1, 0.75, 0.5, 0.25])
    half = math.sqrt(0.5)
    cosine = [1 / 3, 2 / 3, 1, (1 + half) / 2, 0.5, (1 - half) / 2]
    assert factors(6, 2, "cosine") == pytest.approx(cosine)


def test_an_unknown_schedule_is_refused_at_once_and_not_after_the_warmup():
    with pytest.raises(ValueError, match=r"schedule is 'wavy'.*\['constant', 'cosine', 'linear'\]"):
        learning_rate_factor(0, 10, 5, "wavy")


@pytest.fixture
def model():
    torch.manual_seed(0)
    return torch.nn.Linear(3, 1)


def weights(model):
    return [parameter.detach().clone() for parameter in model.parameters()]


def test_a_step_goes_downhill_and_clears_the_gradient(model):
    x = torch.ones(4, 3)
    optimizer = adamw(model, lr=0.01)
    before = model(x).square().mean()
    norm = optimizer_step(optimizer, before)
    assert model(x).square().mean() < before and norm > 0
    assert all(parameter.grad is None for parameter in model.parameters())


def test_the_gradient_s_norm_is_that_before_clipping(model):
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    before = weights(model)
    # The gradient is (30, 40, 0) and 0: of norm 50, cut to 0.5.
    loss = (model.weight * torch.tensor([[30.0, 40.0, 0.0]])).sum() + 0.0 * model.bias.sum()
    assert optimizer_step(optimizer, loss, max_norm=0.5) == pytest.approx(50.0)
    moved = before[0] - model.weight.detach()
    torch.testing.assert_close(moved, torch.tensor([[0.3, 0.4, 0.0]]), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_leaves_the_weights(model, value):
    optimizer, before = adamw(model, lr=0.1), weights(model)
    with pytest.raises(FloatingPointError, match=f"the loss is {value}"):
        optimizer_step(optimizer, model.weight.square().sum() * value)
    assert all(map(torch.equal, before, model.parameters()))


def test_a_gradient_that_is_not_finite_leaves_the_weights_and_no_gradient(model):
    optimizer, before = adamw(model, lr=0.1), weights(model)
    zero = model.weight.sum() - model.weight.sum().detach()
    with pytest.raises(FloatingPointError, match="norm is nan; the weights are untouched"):
        optimizer_step(optimizer, zero.square().pow(0.25))  # its value is 0, its slope 0·∞
    assert all(map(torch.equal, before, model.parameters()))
    assert all(parameter.grad is None for parameter in model.parameters())


def test_accumulated_gradients_are_applied_once_and_cleared(model):
    x = torch.ones(1, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    before = weights(model)
    for _ in range(2):
        (0.5 * model(x)).sum().backward()
    norm = apply_gradients(optimizer, max_norm=100.0)
    assert norm == pytest.approx(2.0)  # slopes 1, 1, 1 and 1
    torch.testing.assert_close(before[0] - model.weight.detach(), torch.full((1, 3), 0.01))


def test_a_new_optimizer_starts_without_left_over_gradients(model):
    model(torch.ones(1, 3)).sum().backward()
    adamw(model, lr=0.1)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_frozen_parameters_stay(model):
    model.bias.requires_grad_(False)
    optimizer, before = adamw(model, lr=0.1), weights(model)
    optimizer_step(optimizer, model(torch.ones(1, 3)).square().sum())
    assert torch.equal(before[1], model.bias) and not torch.equal(before[0], model.weight)


def test_a_model_with_nothing_to_train_is_refused(model):
    model.requires_grad_(False)
    with pytest.raises(ValueError, match="no parameter with requires_grad=True"):
        adamw(model, lr=0.1)
    with pytest.raises(ValueError, match=r"lr is 0\.0"):
        adamw(torch.nn.Linear(1, 1), lr=0.0)
