"""What the GPT, its cache, sampling and the tokenizer promise."""

import copy
import inspect
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_llama import tiny_model
from transformers import GPT2Config, GPT2LMHeadModel, MistralConfig, MistralForCausalLM

from rlhf_minimal.gpt import GPT, GPTConfig, KeyValueCache
from rlhf_minimal.log_probs import pad_sequences
from rlhf_minimal.sampling import generate, sample_next_token
from rlhf_minimal.tokenizer import WordTokenizer, prettify

ULP = 2.0**-23  # float32's step at 1
# Logits of these models stay below 8, where float32's step is 4 ulps of 1; another order of
# summation in a few layers costs a handful of such steps.
CLOSE = dict(rtol=0, atol=64 * ULP)
VOCABULARY, END, PAD = 12, 1, 0
PROMPTS = [[5, 6, 7, 8], [9], [3, 4], [2, 2, 2], [10, 11, 3], [4]]
many = settings(deadline=None, derandomize=True, max_examples=40)


def tiny_gpt(seed=0, **sizes):
    torch.manual_seed(seed)
    return GPT(GPTConfig(**(dict(vocab_size=VOCABULARY, context=24, width=32) | sizes))).eval()


def logits_of_real_tokens(model, sequences, left):
    tokens, mask = pad_sequences(sequences, PAD, left=left)
    with torch.no_grad():
        logits = model(tokens, mask)
    return [row[real == 1] for row, real in zip(logits, mask, strict=True)]


@pytest.fixture(scope="module")
def model():
    return tiny_gpt()


# --- the model ----------------------------------------------------------------------------------


@given(
    st.lists(st.lists(st.integers(0, 11), min_size=1, max_size=9), min_size=1, max_size=5),
    st.booleans(),
)
@many
def test_a_row_in_a_padded_batch_has_the_logits_it_has_alone(sequences, left):
    model = tiny_gpt()
    together = logits_of_real_tokens(model, sequences, left)
    for sequence, logits in zip(sequences, together, strict=True):
        with torch.no_grad():
            torch.testing.assert_close(logits, model(torch.tensor([sequence]))[0], **CLOSE)


def test_what_stands_in_the_padding_does_not_matter(model):
    tokens, mask = pad_sequences(PROMPTS, PAD, left=True)
    other = torch.where(mask == 1, tokens, 7)
    with torch.no_grad():
        difference = (model(tokens, mask) - model(other, mask))[mask == 1]
    assert difference.abs().max() == 0


def test_a_later_token_does_not_change_earlier_logits_and_does_change_its_own(model):
    tokens = torch.tensor([[2, 3, 4, 5, 6, 7]])
    changed = tokens.clone()
    changed[0, 3] = 9
    with torch.no_grad():
        before, after = model(tokens), model(changed)
    torch.testing.assert_close(before[:, :3], after[:, :3], **CLOSE)
    assert ((before - after)[:, 3:].abs().amax(-1) > 0.01).all()


def test_the_order_of_earlier_tokens_matters(model):
    with torch.no_grad():
        one, other = model(torch.tensor([[2, 3, 4]])), model(torch.tensor([[3, 2, 4]]))
    assert (one - other)[0, -1].abs().max() > 0.01


@pytest.mark.parametrize("left", [True, False])
@pytest.mark.parametrize("chunk", [1, 2, 5])
def test_logits_with_the_cache_equal_those_without(model, left, chunk):
    tokens, mask = pad_sequences([[5, 6, 7, 8, 3, 2, 9], [4, 4, 2], [11, 10, 9, 8, 7]], PAD, left)
    cache = KeyValueCache(model.config, batch=3, length=7)
    with torch.no_grad():
        whole = model(tokens, mask)
        parts = [
            model(tokens[:, start : start + chunk], mask[:, : start + chunk], cache)
            for start in range(0, 7, chunk)
        ]
    difference = (torch.cat(parts, 1) - whole)[mask == 1]
    assert difference.abs().max() < CLOSE["atol"]
    assert cache.length == 7


def test_a_cache_without_a_mask_takes_every_token_for_real(model):
    tokens = torch.tensor([[2, 3, 4, 5]])
    cache = KeyValueCache(model.config, batch=1, length=4)
    with torch.no_grad():
        model(tokens[:, :2], cache=cache)
        torch.testing.assert_close(model(tokens[:, 2:], cache=cache), model(tokens)[:, 2:], **CLOSE)


@pytest.mark.parametrize("rows", [[True, False, True], [2, 0], [1, 1, 0, 1]])
def test_a_cache_can_go_on_with_some_of_its_rows(rows, model):
    tokens = torch.tensor([[2, 3, 4], [5, 6, 7], [8, 9, 10]])
    cache = KeyValueCache(model.config, batch=3, length=3)
    rows = torch.tensor(rows)
    with torch.no_grad():
        model(tokens[:, :2], cache=cache)
        cache.select(rows)
        kept = model(tokens[rows, 2:], cache=cache)
        torch.testing.assert_close(kept, model(tokens)[rows, 2:], **CLOSE)


def test_the_output_layer_is_the_token_embedding(model):
    assert model.get_output_embeddings().weight is model.embed_token.weight


def test_the_default_sizes_make_about_110_000_parameters():
    model = GPT(GPTConfig(vocab_size=149))
    # 149·64 words + 80·64 positions + 2 blocks of 12·64² + 13·64 (weights and biases, two norms)
    # + a last norm of 2·64
    by_hand = 149 * 64 + 80 * 64 + 2 * (12 * 64**2 + 13 * 64) + 2 * 64
    assert sum(parameter.numel() for parameter in model.parameters()) == by_hand == 114_752


def test_a_state_dict_round_trip_gives_equal_logits(model, tmp_path):
    torch.save(model.state_dict(), tmp_path / "gpt.pt")
    other = tiny_gpt(seed=1)
    tokens = torch.tensor([PROMPTS[0]])
    with torch.no_grad():
        assert not torch.equal(other(tokens), model(tokens))
        other.load_state_dict(torch.load(tmp_path / "gpt.pt"))
        assert torch.equal(other(tokens), model(tokens))


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"width": 30, "heads": 4}, "width is 30; it must be a multiple of 4 heads"),
        ({"layers": 0}, "layers is 0"),
        ({"vocab_size": -1}, "vocab_size is -1"),
    ],
)
def test_sizes_that_cannot_be_are_refused(sizes, message):
    with pytest.raises(ValueError, match=message):
        GPTConfig(**({"vocab_size": 10} | sizes))


def test_a_sequence_beyond_the_context_is_refused(model):
    with pytest.raises(ValueError, match="25 tokens but the model's context is 24"):
        model(torch.zeros(1, 25, dtype=torch.long))


@pytest.mark.parametrize("shape", [(2, 3), (2, 5), (1, 4)])
def test_a_mask_of_another_shape_is_refused(model, shape):
    with pytest.raises(ValueError, match=r"attention_mask has shape .* it must be \(2, 4\)"):
        model(torch.ones(2, 4, dtype=torch.long), torch.ones(shape, dtype=torch.long))


# --- one token ----------------------------------------------------------------------------------

LOGITS = torch.tensor([1.0, -0.5, 2.0, 0.0, 1.5])
DRAWS = 40_000


def frequencies(**options):
    generator = torch.Generator().manual_seed(0)
    drawn = sample_next_token(LOGITS.expand(DRAWS, 5), generator=generator, **options)
    return torch.bincount(drawn, minlength=5) / DRAWS


def kept_by_loop(probabilities, top_k=None, top_p=None):
    """Keep tokens from the likeliest on, until one of the two limits is reached."""
    ranked = sorted(range(5), key=lambda i: -probabilities[i])
    kept, mass = [], 0.0
    for token in ranked:
        if (top_k is not None and len(kept) == top_k) or (top_p is not None and mass >= top_p):
            break
        kept.append(token)
        mass += probabilities[token]
    return kept


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"temperature": 0.5},
        {"temperature": 3.0},
        {"top_k": 1},
        {"top_k": 3},
        {"top_k": 99},
        {"top_p": 0.3},
        {"top_p": 0.75},
        {"top_p": 1.0},
        {"temperature": 2.0, "top_k": 4},
        {"temperature": 2.0, "top_p": 0.6},
    ],
    ids=str,
)
def test_samples_follow_the_cut_and_sharpened_softmax(options):
    cut = {name: value for name, value in options.items() if name != "temperature"}
    expected = (LOGITS / options.get("temperature", 1.0)).softmax(-1)
    kept = kept_by_loop(expected.tolist(), **cut)
    outside = torch.ones(5, dtype=torch.bool)
    outside[kept] = False
    expected = expected.masked_fill(outside, 0.0)
    expected /= expected.sum()
    observed = frequencies(**options)
    assert (observed[outside] == 0).all()
    # 4.5 standard errors: wrong for one of 20 right frequencies in about 7,000 such tables.
    errors = (expected * (1 - expected) / DRAWS).sqrt()
    assert ((observed - expected).abs() <= 4.5 * errors + 1e-7).all()


def test_top_k_then_top_p_cuts_what_top_k_left():
    # Probabilities 0.46, 0.28, 0.17, …: the first two make 0.73 of all, but 0.81 of the top three.
    assert (frequencies(top_k=3, top_p=0.8) > 0).tolist() == [False, False, True, False, True]
    assert (frequencies(top_p=0.8) > 0).tolist() == [True, False, True, False, True]


def test_temperature_zero_is_the_argmax_whatever_the_seed():
    logits = torch.randn(50, 9, generator=torch.Generator().manual_seed(3))
    for seed in range(3):
        generator = torch.Generator().manual_seed(seed)
        drawn = sample_next_token(logits, temperature=0, generator=generator)
        assert torch.equal(drawn, logits.argmax(-1))


def test_rows_of_a_batch_have_distributions_and_cuts_of_their_own():
    rows = torch.tensor([[0.0, 9.0, 9.0, 0.0], [9.0, 0.0, 0.0, 9.0]])
    for options in ({"top_k": 2}, {"top_p": 0.9}):
        drawn = sample_next_token(
            rows.repeat(200, 1), generator=torch.Generator().manual_seed(0), **options
        )
        assert set(drawn[0::2].tolist()) == {1, 2} and set(drawn[1::2].tolist()) == {0, 3}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": -1.0}, "temperature is -1.0"),
        ({"temperature": math.nan}, "temperature is nan"),
        ({"top_k": 0}, "top_k 0"),
        ({"top_p": 0.0}, "top_p is 0.0"),
        ({"top_p": 1.5}, "top_p is 1.5"),
        ({"top_p": math.nan}, "top_p is nan"),
    ],
)
def test_sampling_refuses_options_without_a_meaning(options, message):
    with pytest.raises(ValueError, match=message):
        sample_next_token(torch.zeros(1, 3), **options)


# --- whole answers ------------------------------------------------------------------------------


def run(model, prompts, seed=0, **options):
    tokens, mask = pad_sequences(prompts, PAD, left=True)
    options = dict(max_new_tokens=12, end_id=END, pad_id=PAD) | options
    generator = torch.Generator().manual_seed(seed)
    return generate(model, tokens, mask, generator=generator, **options)


def answers(model, prompts, **options):
    """Answers without padding, as lists of ids."""
    tokens, mask = run(model, prompts, **options)
    width = max(map(len, prompts))
    pairs = zip(tokens[:, width:], mask[:, width:], strict=True)
    return [row[real == 1].tolist() for row, real in pairs]


def naive_greedy(model, prompt, steps, end=END):
    """One row, no cache, no padding: the whole sequence again for each token."""
    sequence = list(prompt)
    for _ in range(steps):
        with torch.no_grad():
            output = model(torch.tensor([sequence]))
        sequence.append(int(getattr(output, "logits", output)[0, -1].argmax()))
        if sequence[-1] == end:
            break
    return sequence[len(prompt) :]


def cut_at(end, answer):
    """The answer up to the first end token."""
    return answer[: answer.index(end) + 1] if end in answer else answer


@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.parametrize("seed", range(6))
def test_greedy_answers_of_a_batch_are_those_of_each_row_alone(seed, use_cache):
    model = tiny_gpt(seed)
    with torch.no_grad():
        model.embed_position.weight *= 3  # else greedy answers say one word over and over
    free = [naive_greedy(model, prompt, 12, end=None) for prompt in PROMPTS]
    # Call that token the end which makes rows stop, and be dropped, at the most different times.
    candidates = [[cut_at(end, answer) for answer in free] for end in range(VOCABULARY)]
    spread = [len({len(answer) for answer in expected}) for expected in candidates]
    end = spread.index(max(spread))
    assert max(spread) >= 3
    found = answers(model, PROMPTS, temperature=0, end_id=end, use_cache=use_cache)
    assert found == candidates[end]


def test_behind_the_end_token_there_is_only_padding_and_the_end_token_counts(model):
    stopped = 0
    for seed in range(5):
        tokens, mask = run(model, PROMPTS, seed=seed)
        for row, real in zip(tokens[:, 4:].tolist(), mask[:, 4:].tolist(), strict=True):
            length = row.index(END) + 1 if END in row else len(row)
            assert real == [1] * length + [0] * (len(row) - length)
            assert row[length:] == [PAD] * (len(row) - length)
            stopped += length < len(row)
    assert stopped >= 5


def test_prompts_come_back_unchanged(model):
    tokens, mask = pad_sequences(PROMPTS, PAD, left=True)
    sequence, real = run(model, PROMPTS)
    assert torch.equal(sequence[:, :4], tokens) and torch.equal(real[:, :4], mask)


def test_arguments_are_not_changed_in_place(model):
    tokens, mask = pad_sequences(PROMPTS, PAD, left=True)
    before = tokens.clone(), mask.clone()
    generate(model, tokens, mask, max_new_tokens=5, end_id=END)
    assert torch.equal(tokens, before[0]) and torch.equal(mask, before[1])


def test_generation_stops_when_the_last_row_has_ended(model):
    first = naive_greedy(model, [5, 6], 1)[0]
    tokens, mask = run(model, [[5, 6]], temperature=0, end_id=first)
    assert tokens.tolist() == [[5, 6, first]] and mask.tolist() == [[1, 1, 1]]


def test_a_generator_s_seed_repeats_exactly_and_another_differs(model):
    first, again, other = (run(model, PROMPTS, seed=seed)[0] for seed in (3, 3, 4))
    assert torch.equal(first, again)
    assert first.shape != other.shape or not torch.equal(first, other)


def test_the_global_seed_has_no_say_where_a_generator_is_given(model):
    torch.manual_seed(1)
    first = run(model, PROMPTS)[0]
    torch.manual_seed(2)
    assert torch.equal(first, run(model, PROMPTS)[0])


@pytest.mark.parametrize("use_cache", [True, False])
def test_sampled_answers_come_as_often_as_the_model_says(use_cache):
    """Every answer of up to two tokens over a vocabulary of three, counted."""
    torch.manual_seed(1)
    model = GPT(GPTConfig(vocab_size=3, context=8, width=8, layers=1, heads=2))
    draws = 6000
    prompts = [[2], [2, 2, 0]]  # two lengths, so that one is padded
    tokens, mask = run(model, prompts * draws, max_new_tokens=2, use_cache=use_cache)
    for which, prompt in enumerate(prompts):
        counts = {}
        for row, real in zip(tokens[which::2, 3:], mask[which::2, 3:], strict=True):
            answer = tuple(row[real == 1].tolist())
            counts[answer] = counts.get(answer, 0) + 1
        with torch.no_grad():
            first = model(torch.tensor([prompt]))[0, -1].softmax(-1)
            second = [model(torch.tensor([[*prompt, a]]))[0, -1].softmax(-1) for a in range(3)]
        expected = {(END,): first[END].item()} | {
            (a, b): (first[a] * second[a][b]).item() for a in (0, 2) for b in range(3)
        }
        assert sum(expected.values()) == pytest.approx(1, abs=1e-6) and set(counts) <= set(expected)
        for answer, probability in expected.items():
            error = math.sqrt(probability * (1 - probability) / draws)
            # 4.5 standard errors: one right table of 14 frequencies in 10,000 would fail.
            assert abs(counts.get(answer, 0) / draws - probability) < 4.5 * error


def their_model(kind):
    """Positions that are learnt (GPT-2), turned (Llama), or seen through a window (Mistral)."""
    if kind == "llama":
        return tiny_model()
    torch.manual_seed(0)
    if kind == "gpt2":
        sizes = dict(vocab_size=VOCABULARY, n_positions=40, n_embd=16, n_layer=2, n_head=2)
        model = GPT2LMHeadModel(GPT2Config(**sizes)).eval()
        with torch.no_grad():
            model.transformer.wpe.weight *= 30  # else the place hardly matters
        return model
    sizes = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4)
    more = dict(vocab_size=VOCABULARY, num_key_value_heads=2, sliding_window=4)
    return MistralForCausalLM(MistralConfig(**sizes, **more)).eval()


@pytest.mark.parametrize("use_cache", [True, False, None])
@pytest.mark.parametrize("kind", ["gpt2", "llama", "mistral"])
def test_a_transformers_model_is_sampled_from_like_any_other(kind, use_cache):
    model = their_model(kind)
    free = [naive_greedy(model, prompt, 12, end=None) for prompt in PROMPTS]
    ends = {token for answer in free for token in answer}
    cut = {end: [cut_at(end, answer) for answer in free] for end in ends}
    end = max(cut, key=lambda token: len({len(answer) for answer in cut[token]}))
    expected = cut[end]
    assert len({len(answer) for answer in expected}) >= 2  # rows are dropped on the way
    assert answers(model, PROMPTS, temperature=0, end_id=end, use_cache=use_cache) == expected


def test_a_transformers_model_reads_a_token_once_where_it_has_a_cache(monkeypatch):
    model, seen = their_model("llama"), []
    forward = type(model).forward

    def watched(self, tokens, **options):
        seen.append(tokens.shape[1])
        return forward(self, tokens, **options)

    watched.__signature__ = inspect.signature(forward)
    monkeypatch.setattr(type(model), "forward", watched)
    run(model, [[5, 6, 7]], max_new_tokens=4, end_id=-1)
    assert seen == [3, 1, 1, 1]
    seen.clear()
    run(model, [[5, 6, 7]], max_new_tokens=4, end_id=-1, use_cache=False)
    assert seen == [3, 4, 5, 6]


@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.parametrize("kind", ["ours", "gpt2", "llama", "mistral"])
def test_prompts_that_come_several_times_are_read_once(kind, use_cache, monkeypatch):
    model, seen = tiny_gpt(0) if kind == "ours" else their_model(kind), []
    expected = [naive_greedy(model, prompt, 12, end=None) for prompt in PROMPTS]
    name = "hidden_states" if kind == "ours" else "forward"
    forward = getattr(type(model), name)

    def watched(self, tokens, *more, **options):
        seen.append(tuple(tokens.shape))
        return forward(self, tokens, *more, **options)

    watched.__signature__ = inspect.signature(forward)
    monkeypatch.setattr(type(model), name, watched)
    order = [0, 1, 2, 1, 0, 2, 2, 1, 0]
    repeated = [PROMPTS[i] for i in order]
    found = answers(model, repeated, temperature=0, end_id=-1, use_cache=use_cache)
    assert found == [expected[i] for i in order]
    longest = max(map(len, PROMPTS))
    assert seen[:2] == ([(3, longest), (9, 1)] if use_cache else [(9, longest), (9, longest + 1)])


def test_a_model_that_computes_its_layers_again_is_sampled_from_without_cache():
    model = their_model("llama")
    expected = answers(model, PROMPTS, temperature=0)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    model.train()
    assert answers(model, PROMPTS, temperature=0) == expected
    with pytest.raises(TypeError, match="LlamaForCausalLM takes no cache as it stands"):
        run(model, [[5]], use_cache=True)


def test_a_prompt_padded_on_the_right_is_refused(model):
    tokens, mask = pad_sequences(PROMPTS, PAD)
    with pytest.raises(ValueError, match="ends in padding; pad on the left"):
        generate(model, tokens, mask, max_new_tokens=3, end_id=END)


def test_an_answer_may_fill_the_context_and_not_more(model):
    # The last token needs no room in the context, since nothing is read behind it.
    tokens, _ = run(model, PROMPTS, max_new_tokens=21, end_id=-1)
    assert tokens.shape[1] == 25
    with pytest.raises(ValueError, match=r"4 tokens and max_new_tokens is 22.*context is 24"):
        run(model, PROMPTS, max_new_tokens=22, end_id=-1)


def test_an_answer_of_no_tokens_is_refused(model):
    with pytest.raises(ValueError, match="max_new_tokens is 0"):
        run(model, PROMPTS, max_new_tokens=0)


def test_sampling_leaves_the_model_as_it_was(model):
    before = copy.deepcopy(model.state_dict())
    run(model, PROMPTS)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


# --- the tokenizer ------------------------------------------------------------------------------

WORDS = ["you", "need", "flour", "flower", "."]


@given(st.lists(st.sampled_from(WORDS), max_size=8))
@many
def test_decoding_gives_back_what_was_encoded(words):
    tokenizer = WordTokenizer(WORDS)
    text = " ".join(words)
    ids = tokenizer.encode(text, end=True)
    assert tokenizer.decode(ids) == text
    assert ids == [*tokenizer.encode(text), tokenizer.end_id]


def test_nothing_behind_the_end_token_is_read_and_padding_is_left_out():
    tokenizer = WordTokenizer(WORDS)
    assert tokenizer.decode([0, 0, 2, 3, 1, 4, 1]) == "you need"


def test_padding_and_end_are_two_tokens_outside_the_words():
    tokenizer = WordTokenizer(WORDS)
    assert len(tokenizer) == 7
    assert {tokenizer.pad_id, tokenizer.end_id}.isdisjoint(tokenizer.encode(" ".join(WORDS)))
    assert tokenizer.pad_id != tokenizer.end_id


def test_an_unknown_word_is_named_with_words_like_it():
    with pytest.raises(ValueError, match=r"'flours' is not in the vocabulary.*'flour'"):
        WordTokenizer(WORDS).encode("you need flours")


def test_a_word_given_twice_is_named():
    with pytest.raises(ValueError, match=r"\['need'\]"):
        WordTokenizer(["you", "need", "need"])


def test_prettify_sets_marks_and_capitals():
    pretty = prettify("is it good ? yes , very good : take flour . enjoy !")
    assert pretty == "Is it good? Yes, very good: take flour. Enjoy!"
