"""What log-probabilities, masks, padding and pairs of answers promise."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_llama import tiny_model

from rlhf_minimal.gpt import GPT, GPTConfig
from rlhf_minimal.log_probs import (
    answer_log_probs,
    masked_mean,
    mean_log_probs,
    next_token_logits,
    pad_sequences,
    response_mask,
    sequence_log_probs,
    token_log_probs,
)
from rlhf_minimal.pairs import (
    TokenPair,
    collate_answers,
    distinct_answers,
    pair_batches,
    pair_log_probs,
    train_on_pairs,
)

ULP = 2.0**-23  # float32's step at 1
many = settings(deadline=None, derandomize=True, max_examples=60)
sequences = st.lists(st.lists(st.integers(2, 9), min_size=1, max_size=6), min_size=1, max_size=5)


def random_batch(seed, rows=4, length=6, vocabulary=7):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(rows, length, vocabulary, generator=generator, dtype=torch.float64)
    tokens = torch.randint(vocabulary, (rows, length), generator=generator)
    mask = (torch.rand(rows, length, generator=generator) < 0.5).long()
    mask[:, -1] = 1  # every row has something to count
    return logits, tokens, mask


def tiny_gpt(seed=0, **sizes):
    torch.manual_seed(seed)
    return GPT(GPTConfig(**(dict(vocab_size=10, context=16, width=16, heads=2) | sizes)))


# --- tokens and sequences -----------------------------------------------------------------------


def test_token_log_probs_by_hand():
    # After token 0 comes 2 with probability 0.7, after 2 comes 1 with 0.25; the last row of
    # logits speaks of a token that is not there.
    probabilities = torch.tensor([[[0.1, 0.2, 0.7], [0.5, 0.25, 0.25], [0.9, 0.05, 0.05]]])
    log_probs = token_log_probs(probabilities.log(), torch.tensor([[0, 2, 1]]))
    torch.testing.assert_close(log_probs.exp(), torch.tensor([[0.7, 0.25]]))


def test_token_log_probs_equal_a_loop_and_torch_s_cross_entropy():
    logits, tokens, _ = random_batch(0)
    log_probs = token_log_probs(logits, tokens)
    cross_entropy = F.cross_entropy(logits[:, :-1].transpose(1, 2), tokens[:, 1:], reduction="none")
    torch.testing.assert_close(log_probs, -cross_entropy, rtol=1e-12, atol=0)
    for b in range(4):
        for t in range(5):
            total = sum(math.exp(value) for value in logits[b, t].tolist())
            expected = logits[b, t, tokens[b, t + 1]].item() - math.log(total)
            assert log_probs[b, t].item() == pytest.approx(expected, rel=1e-12)


def test_sequence_and_mean_log_probs_equal_a_loop():
    logits, tokens, mask = random_batch(1)
    log_probs = logits.log_softmax(-1)
    sums, means = sequence_log_probs(logits, tokens, mask), mean_log_probs(logits, tokens, mask)
    for b in range(4):
        counted = [log_probs[b, t - 1, tokens[b, t]].item() for t in range(1, 6) if mask[b, t]]
        assert sums[b].item() == pytest.approx(sum(counted), rel=1e-12)
        assert means[b].item() == pytest.approx(sum(counted) / len(counted), rel=1e-12)


def test_the_first_token_has_no_log_probability_whatever_the_mask_says():
    logits, tokens, mask = random_batch(2)
    with_first, without = mask.clone(), mask.clone()
    with_first[:, 0], without[:, 0] = 1, 0
    for function in (sequence_log_probs, mean_log_probs):
        assert torch.equal(function(logits, tokens, with_first), function(logits, tokens, without))


def test_what_is_masked_out_may_be_nan():
    logits, tokens, _ = random_batch(3)
    mask = torch.tensor([[0, 0, 1, 1, 0, 0]]).expand(4, 6)
    expected = sequence_log_probs(logits, tokens, mask)
    spoilt = logits.clone()
    spoilt[:, 3:] = math.nan  # these rows are about tokens 4 and 5
    assert torch.equal(sequence_log_probs(spoilt, tokens, mask), expected)


def test_gradients_of_log_probs_are_right():
    logits, tokens, mask = random_batch(4, rows=2, length=4, vocabulary=3)
    logits.requires_grad_()
    for function in (sequence_log_probs, mean_log_probs):
        assert torch.autograd.gradcheck(lambda x, f=function: f(x, tokens, mask), (logits,))


def test_half_precision_logits_are_summed_in_float32_and_float64_stays():
    logits, tokens, _ = random_batch(5, vocabulary=500)
    half = logits.bfloat16()
    # bfloat16 has 8 bits: summed in it, log-probabilities near −7 would be wrong by about 0.03.
    exact = token_log_probs(half.double(), tokens)
    torch.testing.assert_close(token_log_probs(half, tokens).double(), exact, rtol=0, atol=1e-5)
    assert exact.dtype == torch.float64


@pytest.mark.parametrize(
    ("logits", "tokens", "message"),
    [
        ((2, 3, 5), (2, 4), r"logits have shape \(2, 3, 5\) but tokens \(2, 4\)"),
        ((3, 5), (3,), r"logits have shape \(3, 5\)"),
        ((2, 1, 5), (2, 1), "one position only"),
    ],
)
def test_token_log_probs_refuse_shapes_that_do_not_fit(logits, tokens, message):
    with pytest.raises(ValueError, match=message):
        token_log_probs(torch.zeros(logits), torch.zeros(tokens, dtype=torch.long))


@pytest.mark.parametrize("function", [sequence_log_probs, mean_log_probs])
def test_an_answer_without_tokens_is_refused_by_its_row(function):
    mask = torch.tensor([[0, 1, 1], [1, 0, 0]])
    with pytest.raises(ValueError, match="row 1 of mask counts no token"):
        function(torch.zeros(2, 3, 5), torch.zeros(2, 3, dtype=torch.long), mask)


def test_a_mask_of_the_answer_alone_is_refused():
    with pytest.raises(ValueError, match=r"tokens has shape \(2, 3\) but mask has shape \(2, 2\)"):
        sequence_log_probs(
            torch.zeros(2, 3, 5), torch.zeros(2, 3, dtype=torch.long), torch.ones(2, 2)
        )


# --- masks and padding --------------------------------------------------------------------------


def test_masked_mean_weighs_tokens_and_not_rows():
    values = torch.tensor([[1.0, 2.0, 3.0], [10.0, 0.0, 0.0]])
    mask = torch.tensor([[1, 1, 1], [1, 0, 0]])
    assert masked_mean(values, mask).item() == 4.0  # 16/4; the mean of row means would be 6
    assert masked_mean(values).item() == pytest.approx(16 / 6)


def test_masked_mean_of_nothing_is_refused():
    with pytest.raises(ValueError, match="mask counts no token"):
        masked_mean(torch.ones(2, 3), torch.zeros(2, 3))


@given(sequences, st.booleans())
@many
def test_padding_keeps_every_sequence(rows, left):
    tokens, mask = pad_sequences(rows, pad_id=0, left=left)
    assert [t[m == 1].tolist() for t, m in zip(tokens, mask, strict=True)] == rows
    assert tokens[mask == 0].eq(0).all() and mask.sum() == sum(map(len, rows))
    assert mask[:, -1 if left else 0].all()  # every row touches that side


@pytest.mark.parametrize("rows", [[], [[1], []]])
def test_nothing_to_pad_is_refused(rows):
    with pytest.raises(ValueError, match="non-empty lists"):
        pad_sequences(rows, pad_id=0)


@given(st.lists(st.tuples(st.integers(1, 5), st.integers(0, 5)), min_size=1, max_size=5))
@many
def test_response_mask_equals_a_loop(lengths):
    width = max(prompt + answer for prompt, answer in lengths)
    expected = [[0] * p + [1] * a + [0] * (width - p - a) for p, a in lengths]
    attention_mask = torch.tensor([[1] * (p + a) + [0] * (width - p - a) for p, a in lengths])
    assert response_mask(attention_mask, torch.tensor([p for p, _ in lengths])).tolist() == expected


def test_the_end_token_counts_where_it_is_the_padding_token_too():
    end = pad = 1
    tokens, _, mask = collate_answers([[5, 6], [5]], [[7, end], [7, 8, 9, end]], pad)
    assert [t[m == 1].tolist() for t, m in zip(tokens, mask, strict=True)] == [[7, 1], [7, 8, 9, 1]]
    by_id = tokens != pad  # the trap: the same row, made from ids, never sees an end
    assert not (by_id & (tokens == end)).any()


def test_response_mask_refuses_padding_on_the_left():
    with pytest.raises(ValueError, match="padded on the left"):
        response_mask(torch.tensor([[0, 1, 1]]), torch.tensor([1]))


def test_response_mask_refuses_one_length_for_many_rows():
    with pytest.raises(ValueError, match=r"prompt_lengths have shape \(1,\)"):
        response_mask(torch.ones(2, 3, dtype=torch.long), torch.tensor([1]))


# --- answers under a model ----------------------------------------------------------------------


@pytest.fixture(scope="module", params=["gpt", "llama"])
def model(request):
    return tiny_gpt() if request.param == "gpt" else tiny_model()


@pytest.fixture(scope="module")
def batch():
    return collate_answers([[5, 6, 3], [2]], [[7, 1], [4, 4, 9, 3, 1]], pad_id=0)


def test_answer_log_probs_equal_those_from_full_logits(model, batch):
    tokens, attention_mask, mask = batch
    with torch.no_grad():
        full = token_log_probs(next_token_logits(model, tokens, attention_mask), tokens)
        answers = answer_log_probs(model, tokens, attention_mask, mask)
    # One matrix product in another shape: a few ulps of numbers up to about 8.
    torch.testing.assert_close(answers, full * mask[:, 1:], rtol=0, atol=32 * ULP)


def test_answer_log_probs_do_not_depend_on_where_the_padding_stands(model):
    sequences = [[5, 6, 3, 7, 1], [2, 4, 1]]
    answers = [[0, 0, 0, 1, 1], [0, 1, 1]]
    sums = []
    for left in (False, True):
        tokens, attention_mask = pad_sequences(sequences, 0, left=left)
        mask, _ = pad_sequences(answers, 0, left=left)
        with torch.no_grad():
            sums.append(answer_log_probs(model, tokens, attention_mask, mask).sum(-1))
    torch.testing.assert_close(sums[0], sums[1], rtol=0, atol=64 * ULP)  # of sums up to about 15


def test_answer_log_probs_pass_the_same_gradient_as_full_logits(batch):
    tokens, attention_mask, mask = batch
    gradients = []
    for full in (False, True):
        model = tiny_gpt().double()
        if full:
            logits = next_token_logits(model, tokens, attention_mask)
            total = sequence_log_probs(logits, tokens, mask).sum()
        else:
            total = answer_log_probs(model, tokens, attention_mask, mask).sum()
        total.backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-10, atol=1e-13)


# --- pairs --------------------------------------------------------------------------------------

PAIRS = [
    TokenPair([2, 3], [4, 1], [5, 6, 7, 1]),
    TokenPair([3], [4, 4, 4, 4, 1], [1]),
    TokenPair([2, 2, 5, 6], [9, 1], [8, 1]),
    TokenPair([7, 8], [3, 1], [3, 3, 1]),
    TokenPair([9], [5, 1], [6, 6, 1]),
]


def pairs_of_groups(sizes):
    """All pairs of ``sizes[i]`` answers to prompt ``i``, group after group."""
    return [
        TokenPair([2 + group], [9, first, 1], [9, second, 1])
        for group, size in enumerate(sizes)
        for first, second in itertools.combinations(range(10, 10 + size), 2)
    ]


def test_a_batch_of_pairs_holds_each_answer_once():
    pairs = [*PAIRS, PAIRS[1], TokenPair(PAIRS[2].prompt, PAIRS[2].rejected, [7, 7, 1])]
    batch = distinct_answers(pairs, pad_id=0)
    answers = [t[m == 1].tolist() for t, m in zip(batch.tokens, batch.mask, strict=True)]
    assert len(answers) == 2 * len(PAIRS) + 1
    assert [answers[i] for i in batch.chosen] == [pair.chosen for pair in pairs]
    assert [answers[i] for i in batch.rejected] == [pair.rejected for pair in pairs]


@pytest.mark.parametrize("sizes", [[4, 4, 4, 4, 4], [2] * 7, [4, 2, 3, 4, 2, 5]])
def test_pairs_that_share_answers_come_together_and_each_once_an_epoch(sizes):
    pairs = pairs_of_groups(sizes)
    generator = torch.Generator().manual_seed(0)
    batches = list(pair_batches(pairs, 6, 200, generator))
    counts = torch.bincount(torch.cat(batches), minlength=len(pairs))
    assert counts.min() > 0.5 * counts.float().mean()
    for batch in batches:
        assert len(set(batch.tolist())) == len(batch)
        prompts = [pairs[i].prompt[0] for i in batch.tolist()]
        for prompt in set(prompts):
            size = sizes[prompt - 2]
            whole = size * (size - 1) // 2
            assert prompts.count(prompt) == whole or whole > 6


def test_pairs_without_a_common_answer_fill_every_batch_exactly():
    generator = torch.Generator().manual_seed(0)
    assert {len(batch) for batch in pair_batches(PAIRS * 4, 6, 50, generator)} == {6}


def test_pair_log_probs_equal_one_sequence_at_a_time():
    model = tiny_gpt().double()
    with torch.no_grad():
        log_probs = pair_log_probs(model, PAIRS, pad_id=0)
        for row, pair in enumerate(PAIRS):
            for name in ("chosen", "rejected"):
                answer = getattr(pair, name)
                tokens = torch.tensor([pair.prompt + answer])
                token_sums = token_log_probs(model(tokens), tokens)[0, -len(answer) :].sum()
                torch.testing.assert_close(
                    getattr(log_probs, name)[row], token_sums, rtol=1e-10, atol=0
                )
                assert getattr(log_probs, f"{name}_lengths")[row] == len(answer)


def test_empty_prompts_and_answers_are_refused_by_row():
    with pytest.raises(ValueError, match="the answer of row 1 is empty"):
        collate_answers([[1], [2]], [[3], []], pad_id=0)
    with pytest.raises(ValueError, match="the prompt of row 0 is empty"):
        collate_answers([[], [2]], [[3], [4]], pad_id=0)


def chosen_up(log_probs, rows):
    """A loss whose value in a batch is a mean over its pairs."""
    return -(log_probs.chosen / log_probs.chosen_lengths).mean(), {
        "rows": rows.float().mean(),
        "chosen": log_probs.chosen.mean().detach(),
    }


@pytest.mark.parametrize("micro_batch", [1, 2, 3, 5, 9])
def test_training_in_micro_batches_equals_training_on_the_whole_batch(micro_batch):
    results = []
    for part in (None, micro_batch):
        model = tiny_gpt(context=8).double()
        history = train_on_pairs(
            model,
            PAIRS,
            chosen_up,
            steps=3,
            batch_size=5,
            micro_batch=part,
            lr=1e-3,
            show_progress=False,
        )
        results.append((list(model.parameters()), history["loss"], history["chosen"]))
    (whole, *numbers), (parts, *part_numbers) = results
    torch.testing.assert_close(parts, whole, rtol=1e-9, atol=1e-12)
    assert part_numbers[0] == pytest.approx(numbers[0], rel=1e-9)
    assert part_numbers[1] == pytest.approx(numbers[1], rel=1e-9)


def test_a_loss_that_is_nan_names_its_pairs_and_leaves_the_weights():
    model = tiny_gpt()
    before = [parameter.clone() for parameter in model.parameters()]
    with pytest.raises(FloatingPointError, match=r"loss is nan on pairs \[\d\]"):
        train_on_pairs(
            model,
            PAIRS,
            lambda log_probs, rows: (log_probs.chosen.sum() * math.nan, {}),
            steps=1,
            batch_size=1,
            show_progress=False,
        )
    assert all(map(torch.equal, before, model.parameters()))


def test_an_interrupted_run_leaves_no_gradient_to_the_next():
    once, twice = tiny_gpt(), tiny_gpt()
    chosen_up(pair_log_probs(twice, PAIRS, 0), torch.arange(5))[0].backward()  # and Ctrl-C here
    for model in (once, twice):
        train_on_pairs(model, PAIRS, chosen_up, steps=1, lr=0.1, show_progress=False)
    assert all(map(torch.equal, once.parameters(), twice.parameters()))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 0}, "steps is 0"),
        ({"batch_size": -1}, "batch_size is -1"),
        ({"micro_batch": 0}, "micro_batch is 0"),
        ({"lr": 0.0}, "lr is 0.0"),
        ({"pairs": []}, "nothing to train on"),
        ({"schedule": "wavy"}, "schedule is 'wavy'"),
    ],
)
def test_training_on_pairs_refuses_what_it_cannot_do(change, message):
    arguments = {"pairs": PAIRS, "steps": 2, "warmup": 1, "show_progress": False} | change
    pairs = arguments.pop("pairs")
    with pytest.raises(ValueError, match=message):
        train_on_pairs(tiny_gpt(), pairs, chosen_up, **arguments)
