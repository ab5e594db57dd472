"""What `shared_prompts.py` promises: the numbers of plain rows, from fewer tokens."""

import copy
import random

import pytest
import torch
from tiny_llama import tiny_model
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

from rlhf_minimal.dpo import train_dpo, train_simpo
from rlhf_minimal.engine import AnswerScorer, Engine
from rlhf_minimal.gpt import GPT, GPTConfig
from rlhf_minimal.grpo import train_grpo, train_rloo
from rlhf_minimal.log_probs import hidden_states
from rlhf_minimal.lora import add_lora, lora_parameters
from rlhf_minimal.pairs import TokenPair, collate_answers, distinct_answers
from rlhf_minimal.quantized import prepare_for_training
from rlhf_minimal.reward_model import RewardModel, train_reward_model
from rlhf_minimal.scoring import reference_log_probs
from rlhf_minimal.shared_prompts import pack_answers, shared_hidden_states

VOCAB, PROMPT, ANSWER = 23, 7, 6


def our_gpt():
    torch.manual_seed(0)
    return GPT(GPTConfig(vocab_size=VOCAB, context=PROMPT + ANSWER, width=16))


def gpt2(attention="sdpa"):
    torch.manual_seed(0)
    dropout = dict(resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)
    sizes = dict(vocab_size=VOCAB, n_positions=PROMPT + ANSWER, n_embd=16, n_layer=2, n_head=2)
    return GPT2LMHeadModel(GPT2Config(**sizes, **dropout, attn_implementation=attention))


def llama(attention="sdpa"):
    return tiny_model(
        vocab_size=VOCAB, eos_token_id=1, pad_token_id=0, attn_implementation=attention
    )


MODELS = {
    "ours": our_gpt,
    "GPT-2": gpt2,
    "GPT-2, eager": lambda: gpt2("eager"),
    "Llama": llama,
    "Llama, eager": lambda: llama("eager"),
}


def close(name: str) -> dict:
    """Float64's tolerance; float32's for Llama, whose norms and rotations are float32's always."""
    if name.startswith("Llama"):
        return dict(rtol=1e-4, atol=1e-4)
    return dict(rtol=1e-10, atol=1e-12)


def some_pairs(seed: int, prompts: int = 3, answers: int = 4, longest: bool = False):
    """All comparisons of some answers to each prompt, of all lengths unless ``longest``."""
    noise = random.Random(seed)

    def words(most):
        count = most if longest else noise.randint(1, most)
        return [noise.randrange(1, VOCAB) for _ in range(count)]

    pairs = []
    for _ in range(prompts):
        prompt, group = words(PROMPT), [words(ANSWER) for _ in range(answers)]
        pairs += [TokenPair(prompt, a, b) for a in group for b in group if a < b]
    return pairs


def batch_of(pairs):
    return distinct_answers(pairs, 0)[:3]


# --- rows ---------------------------------------------------------------------------------------


def test_a_batch_by_hand():
    # Two answers behind 5 6, one behind 5 alone; 9 is padding.
    tokens = torch.tensor([[5, 6, 7, 9], [5, 1, 2, 3], [5, 6, 8, 8]])
    real = torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1], [1, 1, 1, 1]])
    answers = torch.tensor([[0, 0, 1, 0], [0, 1, 1, 1], [0, 0, 1, 1]])
    packed = pack_answers(tokens, real, answers)
    assert packed.tokens.tolist() == [[5, 6, 7, 8, 8], [5, 1, 2, 3, 0]]
    assert packed.positions.tolist() == [[0, 1, 2, 2, 3], [0, 1, 2, 3, 0]]
    assert packed.places.tolist() == [[0, 1, 2, 0], [5, 6, 7, 8], [0, 1, 3, 4]]
    assert packed.visible[:, 0].int().tolist() == [
        [[1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [1, 1, 1, 0, 0], [1, 1, 0, 1, 0], [1, 1, 0, 1, 1]],
        [[1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [1, 1, 1, 0, 0], [1, 1, 1, 1, 0], [0, 0, 0, 0, 1]],
    ]


@pytest.mark.parametrize(("limit", "rows"), [(1, 7), (2, 4), (3, 3), (4, 2), (7, 1)])
def test_a_row_holds_no_more_answers_than_asked(limit, rows):
    tokens = torch.tensor([[5, 6, n] for n in range(7)])
    answers = torch.tensor([[0, 0, 1]]).expand(7, 3)
    packed = pack_answers(tokens, torch.ones_like(tokens), answers, answers_a_row=limit)
    assert packed.tokens.shape == (rows, 2 + min(limit, 7))
    assert torch.equal(packed.tokens.flatten()[packed.places], tokens)


@pytest.mark.parametrize("seed", range(10))
def test_every_token_finds_its_place_and_its_position(seed):
    tokens, real, answers = batch_of(some_pairs(seed))
    packed = pack_answers(tokens, real, answers)
    there = real != 0
    expected = torch.arange(tokens.shape[1]).expand_as(tokens)
    assert torch.equal(packed.tokens.flatten()[packed.places][there], tokens[there])
    assert torch.equal(packed.positions.flatten()[packed.places][there], expected[there])


def test_a_mask_that_is_not_the_end_of_its_row_is_refused():
    tokens = torch.tensor([[5, 6, 7, 8]])
    for real, answers in (
        ([[0, 1, 1, 1]], [[0, 0, 1, 1]]),  # padded on the left
        ([[1, 1, 1, 1]], [[0, 1, 0, 1]]),  # a hole
        ([[1, 1, 1, 1]], [[0, 1, 1, 0]]),  # words behind the answer
        ([[1, 1, 1, 0]], [[0, 0, 1, 1]]),  # an answer of padding
    ):
        with pytest.raises(ValueError, match="not the end of its row"):
            pack_answers(tokens, torch.tensor(real), torch.tensor(answers))


# --- the same numbers ---------------------------------------------------------------------------


def states_and_gradients(model, batch, share, **options):
    """Hidden states of real tokens, and every weight's gradient of a random sum of them."""
    model.zero_grad()
    if share:
        hidden = shared_hidden_states(model, *batch, **options)
    else:
        hidden = hidden_states(model, *batch[:2])
    real = hidden[batch[1] != 0]
    torch.manual_seed(7)
    (real * torch.randn_like(real)).sum().backward()
    gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    return real.detach(), gradients


@pytest.mark.parametrize("limit", [1, 2, 4])
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", MODELS)
def test_states_and_gradients_are_those_of_plain_rows(name, seed, limit):
    model, batch = MODELS[name]().double(), batch_of(some_pairs(seed))
    plain = states_and_gradients(model, batch, share=False)
    shared = states_and_gradients(model, batch, share=True, answers_a_row=limit)
    torch.testing.assert_close(shared, plain, **close(name))
    assert all(gradient.abs().max() > 0 for gradient in plain[1].values())


def test_no_answer_hears_of_the_other():
    model, pair = our_gpt(), TokenPair([3, 4], [5, 6], [7, 8])
    other = pair._replace(rejected=[9, 10])
    heard = [shared_hidden_states(model, *batch_of([p])) for p in (pair, other)]
    assert torch.equal(heard[0][0], heard[1][0]) and not torch.equal(heard[0][1], heard[1][1])


def test_a_row_may_be_longer_than_the_context_as_long_as_no_sequence_is():
    pairs = some_pairs(0, longest=True)
    assert pairs[0].longest == PROMPT + ANSWER == our_gpt().config.context
    for model in (our_gpt(), gpt2()):
        plain = states_and_gradients(model.double(), batch_of(pairs), share=False)
        shared = states_and_gradients(model, batch_of(pairs), share=True)
        torch.testing.assert_close(shared, plain, rtol=1e-10, atol=1e-12)


def test_checkpointed_adapters_get_the_same_gradients():
    gradients = {}
    for share in (False, True):
        model = llama().double()
        add_lora(model, ["q_proj", "v_proj", "down_proj", "lm_head"], rank=2, alpha=4, dropout=0.0)
        torch.manual_seed(3)
        for parameter in lora_parameters(model).values():
            parameter.data = torch.randn_like(parameter, dtype=torch.float64)
        prepare_for_training(model)
        score = AnswerScorer(model, logits_chunk=5, share_prompts=share)
        score(*batch_of(some_pairs(1))).sum().backward()
        gradients[share] = {n: p.grad for n, p in lora_parameters(model).items()}
    torch.testing.assert_close(gradients[True], gradients[False], **close("Llama"))
    assert all(gradient.abs().max() > 0 for gradient in gradients[True].values())


def test_attention_that_takes_no_mask_is_refused():
    model = llama()
    model.config._attn_implementation = "flash_attention_2"
    with pytest.raises(ValueError, match="attention is 'flash_attention_2'"):
        shared_hidden_states(model, *batch_of(some_pairs(0)))


def test_a_prompt_goes_through_the_model_once():
    prompt, answers = [1] * 6, [[2] * 6, [3] * 6, [4] * 6]
    batch, seen = collate_answers([prompt] * 3, answers, 0), []
    model = our_gpt()
    model.embed_token.register_forward_hook(lambda m, given, out: seen.append(given[0].numel()))
    AnswerScorer(model)(*batch)
    AnswerScorer(model, share_prompts=True)(*batch)
    assert seen == [3 * 12, 6 + 3 * 6]


# --- where it is switched on --------------------------------------------------------------------


@pytest.fixture
def counted(monkeypatch):
    """How many tokens each pass of a model reads."""
    seen = []
    forward = nn.Embedding.forward

    def counting(module, tokens):
        if module.num_embeddings == VOCAB:
            seen.append(tokens.numel())
        return forward(module, tokens)

    monkeypatch.setattr(nn.Embedding, "forward", counting)
    return seen


def run_twice(train, model, counted):
    """The weights after training with plain and with shared prompts, and the tokens read."""
    weights, tokens = [], []
    for share in (False, True):
        trained = copy.deepcopy(model).double()
        counted.clear()
        train(trained, share_prompts=share, steps=3, show_progress=False)
        weights.append(dict(trained.named_parameters()))
        tokens.append(sum(counted))
    assert tokens[1] < tokens[0]
    torch.testing.assert_close(*weights, rtol=1e-6, atol=1e-9)
    moved = [weights[0][n] - p for n, p in model.named_parameters()]
    assert max(change.abs().max() for change in moved) > 1e-4


def test_pairs_are_learnt_alike(counted):
    pairs = some_pairs(2, prompts=8)
    reference = our_gpt().double()
    run_twice(lambda m, **o: train_dpo(m, reference, pairs, lr=1e-3, **o), our_gpt(), counted)
    run_twice(lambda m, **o: train_simpo(m, pairs, lr=1e-3, **o), our_gpt(), counted)


@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_rewards_are_learnt_alike(pooling, counted):
    torch.manual_seed(0)
    model = RewardModel(our_gpt(), pooling)
    pairs = some_pairs(3, prompts=8)
    run_twice(lambda m, **o: train_reward_model(m, pairs, lr=1e-3, **o), model, counted)


@pytest.mark.parametrize("train", [train_grpo, train_rloo])
def test_groups_are_learnt_alike(train, counted):
    sampling = dict(max_new_tokens=4, end_id=2, group_size=4, prompts_a_step=3)
    score = lambda rollouts: (rollouts.tokens * rollouts.mask % 5).sum(-1)  # noqa: E731
    reference, prompts = our_gpt().double(), [[3, 4, 5, 6, 7], [8, 9], [10, 11, 12]]

    def trained(model, **options):
        train(model, reference, score, prompts, **sampling, **options)

    run_twice(trained, our_gpt(), counted)


def test_reference_log_probs_are_alike_and_read_fewer_tokens(counted):
    model, pairs = our_gpt().double(), some_pairs(4, prompts=20)
    plain = reference_log_probs(model, pairs, 0, batch_size=8)
    before = sum(counted)
    shared = reference_log_probs(model, pairs, 0, batch_size=8, share_prompts=True)
    torch.testing.assert_close(shared, plain, rtol=1e-6, atol=0)  # kept in float32
    assert sum(counted) - before < 0.8 * before
    counted.clear()
    engine = Engine(model, share_prompts=True)
    again = reference_log_probs(model, pairs, 0, batch_size=8, engine=engine)
    assert torch.equal(again, shared) and sum(counted) < 0.8 * before
