"""What supervised fine-tuning and reward models promise."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_llama import tiny_model
from tiny_task import same_weights

from rlhf_minimal.gpt import GPT, GPTConfig
from rlhf_minimal.history import History
from rlhf_minimal.log_probs import pad_sequences
from rlhf_minimal.pairs import TokenPair, collate_answers
from rlhf_minimal.reward_model import (
    RewardModel,
    last_token_reward,
    pairwise_loss,
    rating_loss,
    train_on_ratings,
    train_reward_model,
)
from rlhf_minimal.sft import sft_loss, train_sft

many = settings(deadline=None, derandomize=True, max_examples=40)
END = 1


def tiny_gpt(seed=0):
    torch.manual_seed(seed)
    return GPT(GPTConfig(vocab_size=10, context=12, width=16, layers=1, heads=2))


def random_batch(seed, rows=3, length=5, vocabulary=4):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(rows, length, vocabulary, generator=generator, dtype=torch.float64)
    tokens = torch.randint(vocabulary, (rows, length), generator=generator)
    mask = torch.tensor([[0, 0, 1, 1, 1], [0, 1, 1, 0, 0], [0, 0, 0, 1, 0]])
    return logits, tokens, mask


# --- supervised fine-tuning: the loss -----------------------------------------------------------


def test_sft_loss_by_hand():
    # The answer's two tokens had probabilities 0.5 and 0.2: (−log 0.5 − log 0.2)/2.
    probabilities = torch.tensor([[[0.9, 0.1], [0.5, 0.5], [0.8, 0.2], [0.3, 0.7]]])
    loss = sft_loss(probabilities.log(), torch.tensor([[0, 0, 0, 1]]), torch.tensor([[0, 0, 1, 1]]))
    assert loss.item() == pytest.approx((math.log(2) + math.log(5)) / 2, rel=1e-6)


def test_sft_loss_is_torch_s_cross_entropy_with_the_rest_ignored():
    logits, tokens, mask = random_batch(0)
    labels = tokens.masked_fill(mask == 0, -100)[:, 1:]
    expected = F.cross_entropy(logits[:, :-1].flatten(0, 1), labels.flatten())
    torch.testing.assert_close(sft_loss(logits, tokens, mask), expected, rtol=1e-12, atol=0)


def test_every_answer_token_weighs_the_same_however_long_its_answer():
    logits, tokens, mask = random_batch(1)
    log_probs = logits.log_softmax(-1)
    counted = [
        log_probs[b, t - 1, tokens[b, t]].item() for b in range(3) for t in range(5) if mask[b, t]
    ]
    assert len(counted) == 6
    assert sft_loss(logits, tokens, mask).item() == pytest.approx(-sum(counted) / 6, rel=1e-12)


def test_prompt_tokens_are_no_targets():
    logits, tokens, mask = random_batch(2)
    changed = torch.where(mask == 0, (tokens + 1) % 4, tokens)
    assert torch.equal(sft_loss(logits, tokens, mask), sft_loss(logits, changed, mask))


def test_each_answer_token_is_a_target_the_last_one_too():
    logits, tokens, mask = random_batch(3)
    loss = sft_loss(logits, tokens, mask)
    for b, t in mask.nonzero().tolist():
        changed = tokens.clone()
        changed[b, t] = (tokens[b, t] + 1) % 4
        assert sft_loss(logits, changed, mask) != loss


def test_the_gradient_of_the_sft_loss_is_right():
    logits, tokens, mask = random_batch(4)
    logits.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: sft_loss(x, tokens, mask), (logits,))


def test_the_gradient_goes_to_the_logits_before_answer_tokens_only():
    logits, tokens, mask = random_batch(5)
    logits.requires_grad_()
    sft_loss(logits, tokens, mask).backward()
    before = torch.cat([mask[:, 1:], torch.zeros(3, 1)], -1) == 1
    assert torch.equal(logits.grad.abs().sum(-1) > 0, before)


def test_a_mask_that_counts_nothing_is_refused():
    logits, tokens, mask = random_batch(6)
    with pytest.raises(ValueError, match="mask counts no token"):
        sft_loss(logits, tokens, 0 * mask)


# --- supervised fine-tuning: the loop -----------------------------------------------------------

# Say the prompt's token again and stop; two prompts are twice as long as the others.
EXAMPLES = [([n], [n, END]) for n in range(2, 8)] + [([8, 2], [8, 2, END]), ([9, 3], [9, 3, END])]


def fine_tuned(examples=EXAMPLES, model=None, **options):
    model = model or tiny_gpt()
    options = dict(steps=80, batch_size=8, lr=1e-2, show_progress=False) | options
    return model, train_sft(model, examples, **options)


def test_training_teaches_the_answers_and_where_they_end():
    model, history = fine_tuned()
    assert history["loss"][0] > 1.5 and history["loss"][-1] < 0.1
    tokens, attention_mask, mask = collate_answers(*zip(*EXAMPLES, strict=True), pad_id=0)
    with torch.no_grad():
        guesses = model(tokens, attention_mask).argmax(-1)[:, :-1]
    assert torch.equal(guesses[mask[:, 1:] == 1], tokens[:, 1:][mask[:, 1:] == 1])


def test_where_padding_is_the_end_token_stopping_is_learnt_all_the_same():
    model, _ = fine_tuned(pad_id=END)
    with torch.no_grad():
        for prompt, answer in EXAMPLES:
            logits = model(torch.tensor([prompt + answer[:-1]]))[0, -1]
            assert logits.argmax() == END and logits.softmax(-1)[END] > 0.8


def test_a_mask_by_token_ids_would_never_teach_to_stop():
    def loss_by_ids(logits, tokens, mask):
        return sft_loss(logits, tokens, mask * (tokens != END))

    model, _ = fine_tuned(pad_id=END, loss=loss_by_ids)
    with torch.no_grad():
        chances = [model(torch.tensor([p + a[:-1]]))[0, -1].softmax(-1)[END] for p, a in EXAMPLES]
    assert max(chances) < 0.2


def test_fine_tuning_repeats_with_its_seed_and_another_differs():
    results = [fine_tuned(steps=4, batch_size=3, seed=seed) for seed in (1, 1, 2)]
    (first, history), (again, same_history), (other, _) = results
    assert same_weights(first, again) and history.rows == same_history.rows
    assert not same_weights(first, other)


def test_the_loss_passed_in_is_the_one_trained_with():
    model, history = fine_tuned(loss=lambda logits, tokens, mask: 0 * logits.sum() + 7, steps=2)
    assert history["loss"] == [7.0, 7.0] and same_weights(model, tiny_gpt())


def test_the_learning_rate_warms_up_and_fades():
    model = tiny_gpt()
    positions = []

    def loss(logits, tokens, mask):
        positions.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
        return sft_loss(logits, tokens, mask)

    fine_tuned(model=model, loss=loss, steps=30, warmup=10, schedule="linear")
    moves = torch.stack(positions).diff(dim=0).norm(dim=-1)
    assert moves[0] < 0.5 * moves[9] and moves[-1] < 0.5 * moves[9]


def test_a_transformers_model_is_fine_tuned_by_the_same_call():
    _, history = fine_tuned(model=tiny_model(), steps=15, warmup=2)
    assert history["loss"][-1] < 0.7 * history["loss"][0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"examples": []}, "nothing to train on"),
        ({"examples": [([2], [])]}, "the answer of row 0 is empty"),
        ({"examples": [([], [2])]}, "the prompt of row 0 is empty"),
        ({"examples": [([2] * 9, [3] * 4)]}, "13 tokens but the model's context is 12"),
        ({"steps": 0}, "steps is 0"),
        ({"lr": -1.0}, "lr is -1.0"),
        ({"schedule": "wavy"}, "schedule is 'wavy'"),
    ],
)
def test_fine_tuning_refuses_what_it_cannot_do(change, message):
    with pytest.raises(ValueError, match=message):
        fine_tuned(**change)


def test_an_interrupted_fine_tuning_leaves_a_history_on_disk(tmp_path):
    calls = []

    def loss(*arguments):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return sft_loss(*arguments)

    path = tmp_path / "history.json"
    with pytest.raises(KeyboardInterrupt):
        fine_tuned(loss=loss, history=History(path))
    found = History.load(path)
    assert found.interrupted and len(found) == 3


# --- reward models: the losses ------------------------------------------------------------------


def test_the_pairwise_loss_by_hand():
    # Differences 1.5 and −0.5: (0.2014133 + 0.9740770)/2
    loss = pairwise_loss(torch.tensor([2.0, 0.0]), torch.tensor([0.5, 0.5]))
    assert loss.item() == pytest.approx(0.5877451, abs=1e-6)


def test_the_pairwise_loss_is_bradley_terry_s_likelihood():
    generator = torch.Generator().manual_seed(0)
    chosen, rejected = torch.randn(2, 20, generator=generator, dtype=torch.float64)
    probability = chosen.exp() / (chosen.exp() + rejected.exp())
    torch.testing.assert_close(pairwise_loss(chosen, rejected), -probability.log().mean())


def test_a_margin_is_taken_from_the_difference_number_or_tensor():
    chosen, rejected = torch.tensor([2.0, 1.0]), torch.tensor([0.0, 0.0])
    zero = torch.zeros(2)
    margins = torch.tensor([0.5, 1.0])
    assert pairwise_loss(chosen, rejected, 0.5) == pairwise_loss(chosen - 0.5, zero)
    assert pairwise_loss(chosen, rejected, margins) == pairwise_loss(chosen - margins, zero)


def test_a_reward_that_all_answers_share_changes_nothing():
    generator = torch.Generator().manual_seed(1)
    chosen, rejected = torch.randn(2, 20, generator=generator, dtype=torch.float64)
    torch.testing.assert_close(
        pairwise_loss(chosen + 7, rejected + 7), pairwise_loss(chosen, rejected)
    )


def test_the_pairwise_loss_of_enormous_differences_is_finite():
    chosen = torch.tensor([-500.0, 500.0], requires_grad=True)
    loss = pairwise_loss(chosen, -chosen.detach())
    loss.backward()
    assert loss.item() == 500.0 and chosen.grad.tolist() == [-0.5, 0.0]


def test_gradients_of_both_losses_are_right():
    generator = torch.Generator().manual_seed(2)
    a, b = (x.requires_grad_() for x in torch.randn(2, 5, generator=generator).double().unbind())
    assert torch.autograd.gradcheck(lambda a, b: pairwise_loss(a, b, 0.3), (a, b))
    assert torch.autograd.gradcheck(rating_loss, (a, b))


def test_the_rating_loss_is_the_mean_square():
    assert rating_loss(torch.tensor([7.0, 2.0, 0.0]), torch.tensor([8.0, 2.0, 2.0])).item() == (
        pytest.approx(5 / 3)
    )


@pytest.mark.parametrize("loss", [pairwise_loss, rating_loss])
def test_shapes_that_would_broadcast_and_empty_batches_are_refused(loss):
    with pytest.raises(ValueError, match=r"has shape \(3,\) but .* has shape \(3, 1\)"):
        loss(torch.zeros(3), torch.zeros(3, 1))
    with pytest.raises(ValueError, match="is empty"):
        loss(torch.zeros(0), torch.zeros(0))


def test_margins_that_would_broadcast_are_refused():
    with pytest.raises(ValueError, match=r"margin has shape \(3, 1\)"):
        pairwise_loss(torch.zeros(3), torch.zeros(3), torch.zeros(3, 1))


def test_ratings_that_are_nan_are_refused():
    with pytest.raises(ValueError, match=r"ratings\[1\] is nan"):
        rating_loss(torch.zeros(2), torch.tensor([1.0, math.nan]))


# --- reward models: where the reward is read ----------------------------------------------------


@given(st.lists(st.integers(1, 6), min_size=1, max_size=5), st.booleans())
@many
def test_the_reward_is_the_last_real_token_s_on_either_side_of_the_padding(lengths, left):
    sequences = [[10 * row + place for place in range(n)] for row, n in enumerate(lengths)]
    values, mask = pad_sequences(sequences, pad_id=-1, left=left)
    found = last_token_reward(values.float(), mask)
    assert found.tolist() == [float(sequence[-1]) for sequence in sequences]


def test_a_row_without_a_real_token_is_refused():
    with pytest.raises(ValueError, match="no real token"):
        last_token_reward(torch.zeros(2, 3), torch.tensor([[1, 1, 0], [0, 0, 0]]))


def random_reward_model(seed=0, trunk=None):
    model = RewardModel(trunk or tiny_gpt(seed))
    with torch.no_grad():
        model.head.weight.normal_(generator=torch.Generator().manual_seed(seed))
        model.head.bias.fill_(0.3)
    return model


@pytest.mark.parametrize("trunk", [tiny_gpt, tiny_model])
def test_a_row_s_reward_does_not_depend_on_padding_or_neighbours(trunk):
    model = random_reward_model(trunk=trunk())
    sequences = [[5, 6, 7, 1], [9, 1], [3, 4, 2, 2, 8, 1]]
    with torch.no_grad():
        alone = torch.cat([model(torch.tensor([s]), torch.ones(1, len(s))) for s in sequences])
        for left in (False, True):
            batch = model(*pad_sequences(sequences, 0, left=left))
            # Rewards of size 10 at most, where float32's step is 1e-6, after a few layers.
            torch.testing.assert_close(batch, alone, rtol=0, atol=2e-5)
    assert alone.std() > 0.1


def test_the_head_starts_with_a_variance_of_one_over_the_width():
    trunk = tiny_gpt()
    heads = torch.cat([RewardModel(trunk).head.weight for _ in range(300)])  # (300, D)
    # The variance of n draws of N(0, v) has a standard error of v·√(2/n).
    variance, error = 1 / heads.shape[1], (2 / heads.numel()) ** 0.5 / heads.shape[1]
    assert abs(heads.var().item() - variance) < 4 * error


def test_mean_pooling_averages_the_head_over_real_tokens_and_reads_no_padding():
    torch.manual_seed(0)
    model = RewardModel(tiny_gpt(), pooling="mean")
    alone = torch.tensor([[2, 3, 4]])
    expected = model.token_values(alone, torch.ones_like(alone)).mean(-1)
    padded = model(torch.tensor([[2, 3, 4, 0, 0]]), torch.tensor([[1, 1, 1, 0, 0]]))
    torch.testing.assert_close(padded, expected, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(padded, RewardModel(model.trunk)(alone, torch.ones_like(alone)))


def test_mean_pooling_refuses_a_row_without_a_real_token():
    model = RewardModel(tiny_gpt(), pooling="mean")
    with pytest.raises(ValueError, match="no real token"):
        model(torch.tensor([[2, 3], [2, 3]]), torch.tensor([[1, 1], [0, 0]]))


def test_an_unknown_pooling_is_refused_by_name():
    with pytest.raises(ValueError, match="'max'"):
        RewardModel(tiny_gpt(), pooling="max")


def test_centre_moves_the_mean_to_zero_and_keeps_differences():
    model = random_reward_model()
    batch = pad_sequences([[5, 6, 7, 1], [9, 1], [3, 4, 1]], 0)
    with torch.no_grad():
        before = model(*batch)
        model.centre(before)
        after = model(*batch)
        # Of numbers below 8, whose float32 step is 1e-6 at most.
        assert abs(before.mean()) > 0.1 and abs(after.mean()) < 2e-6
        torch.testing.assert_close(after, before - before.mean(), rtol=0, atol=2e-6)
        model.centre(after + 1.0)  # once more, from where it stands
        torch.testing.assert_close(model(*batch), after - 1.0, rtol=0, atol=3e-6)


def test_a_state_dict_round_trip_gives_equal_rewards(tmp_path):
    model, other = random_reward_model(0), RewardModel(tiny_gpt(1))
    model.centre(torch.tensor([2.0]))
    torch.save(model.state_dict(), tmp_path / "reward.pt")
    other.load_state_dict(torch.load(tmp_path / "reward.pt"))
    batch = pad_sequences([[5, 6, 7, 1], [9, 1]], 0)
    with torch.no_grad():
        assert torch.equal(model(*batch), other(*batch)) and model(*batch).abs().min() > 0


# --- reward models: training --------------------------------------------------------------------


def answers(size, seed):
    """Prompts and answers of 2 to 5 tokens out of 2 to 9, and what they are worth."""
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for _ in range(size):
        prompt = torch.randint(2, 10, (2,), generator=generator).tolist()
        length = int(torch.randint(1, 5, (1,), generator=generator))
        rows.append((prompt, [*torch.randint(2, 10, (length,), generator=generator).tolist(), END]))
    return rows, torch.tensor([float(answer.count(3) - answer.count(4)) for _, answer in rows])


def comparisons(size, seed):
    """Pairs in which the answer with more 3s and fewer 4s is chosen."""
    rows, worth = answers(2 * size, seed)
    found = []
    for (prompt, one), (_, other), a, b in zip(
        rows[::2], rows[1::2], worth[::2], worth[1::2], strict=True
    ):
        if a != b:
            found.append(TokenPair(prompt, *((one, other) if a > b else (other, one))))
    return found


FAST = dict(steps=150, lr=1e-2, show_progress=False)


@pytest.fixture(scope="module")
def judge():
    """A reward model trained on comparisons, and the history of its training."""
    model = RewardModel(tiny_gpt())
    return model, train_reward_model(model, comparisons(1500, seed=0), **FAST)


def accuracy(model, pairs):
    rewards = []
    for name in ("chosen", "rejected"):
        sequences = [pair.prompt + getattr(pair, name) for pair in pairs]
        with torch.no_grad():
            rewards.append(model(*pad_sequences(sequences, 0)))
    return (rewards[0] > rewards[1]).float().mean().item()


def test_a_separable_preference_is_learnt_and_holds_on_unseen_pairs(judge):
    model, history = judge
    assert history.mean("loss", last=20) < 0.3 < history["loss"][0]
    assert history.mean("accuracy", last=20) > 0.95
    assert accuracy(model, comparisons(300, seed=1)) > 0.95


def test_ratings_are_learnt_and_hold_on_unseen_answers():
    model = RewardModel(tiny_gpt())
    train_on_ratings(model, *answers(1500, seed=0), **FAST)
    unseen, worth = answers(300, seed=1)
    with torch.no_grad():
        rewards = model(*pad_sequences([prompt + answer for prompt, answer in unseen], 0))
    # Predicting the mean leaves the ratings' variance; a twentieth of it is what may remain.
    assert (rewards - worth).square().mean() < worth.var() / 20


@pytest.mark.parametrize("seeds", [(1, 1, 2)])
def test_reward_training_repeats_with_its_seed_and_another_differs(seeds):
    results = []
    for seed in seeds:
        model = RewardModel(tiny_gpt())
        history = train_reward_model(
            model, comparisons(60, 0), steps=3, batch_size=8, seed=seed, show_progress=False
        )
        results.append((model, history.rows))
    assert same_weights(results[0][0], results[1][0]) and results[0][1] == results[1][1]
    assert not same_weights(results[0][0], results[2][0])


def test_the_losses_passed_in_are_those_trained_with():
    model = RewardModel(tiny_gpt())
    before = copy.deepcopy(model)

    def loss(first, second):
        assert first.shape == second.shape == (8,)
        return 0 * first.sum() + 7

    options = dict(steps=2, batch_size=8, show_progress=False, loss=loss)
    rows, worth = answers(20, 0)
    histories = [
        train_reward_model(model, comparisons(40, 0), **options),
        train_on_ratings(model, rows, worth, **options),
    ]
    assert [history["loss"] for history in histories] == [[7.0, 7.0]] * 2
    assert same_weights(before, model)


@pytest.mark.parametrize(
    ("ratings", "message"),
    [
        ([1.0, 2.0], "3 examples but 2 ratings"),
        ([1.0, math.nan, 2.0], r"ratings\[1\] is nan"),
        ([[1.0], [2.0], [3.0]], r"ratings has shape \(3, 1\)"),
    ],
)
def test_ratings_that_cannot_be_right_are_refused(ratings, message):
    examples = [([2], [3, 1])] * 3
    with pytest.raises(ValueError, match=message):
        train_on_ratings(RewardModel(tiny_gpt()), examples, ratings, steps=1, show_progress=False)


@pytest.mark.parametrize(
    ("change", "message"),
    [({"steps": 0}, "steps is 0"), ({"lr": 0.0}, "lr is 0.0"), ({"pairs": []}, "nothing to train")],
)
def test_reward_training_refuses_what_it_cannot_do(change, message):
    options = dict(pairs=comparisons(10, 0), steps=1, show_progress=False) | change
    with pytest.raises(ValueError, match=message):
        train_reward_model(RewardModel(tiny_gpt()), **options)
