"""Lesson 04: a language model as a policy: attention, log-probabilities, masks, loss, sampling."""

import itertools

import torch
import torch.nn.functional as F

from autograder import exercise, grads, leaves

# -- 04.1 ---------------------------------------------------------------------------------------

causal_attention = exercise(
    "causal_attention", number="04.1", points=3,
    takes_away=["torch.nn.functional:scaled_dot_product_attention"],
)


@causal_attention.reference
def attention_by_hand(query, key, value):
    T, S = query.shape[-2], key.shape[-2]
    scores = query @ key.transpose(-2, -1) / query.shape[-1] ** 0.5
    past = torch.ones(T, S, dtype=torch.bool, device=query.device).tril(S - T)
    return scores.masked_fill(~past, -torch.inf).softmax(-1) @ value


@causal_attention.cases(visible=6, fresh=12)
def heads_of_a_layer(g):
    B, H, D, T = g.size(1, 3), g.size(1, 3), g.choice([2, 4]), g.size(2, 5)
    S = T + g.choice([0, 0, 1, 3])                 # keys and values that a cache held already
    return dict(
        query=g.normal(B, H, T, D), key=g.normal(B, H, S, D),
        value=g.normal(B, H, S, g.choice([D, D, D + 1])),
    )


@causal_attention.probe
def mixed_values_and_gradients(answer, case):
    x = leaves(case)
    mixed = answer.causal_attention(**x)
    return dict(mixed=mixed, grad=grads(mixed, x), inputs_after=x)


@causal_attention.mistake(
    "The scores are not divided by √D. Sums of D products grow with √D, the softmax saturates, and"
    " its gradient vanishes (Vaswani et al. 2017, section 3.2.1)."
)
def not_scaled(query, key, value):
    return _mix(query @ key.transpose(-2, -1), value)


@causal_attention.mistake(
    "The scores are divided by D instead of √D: with wide heads the softmax becomes nearly uniform."
)
def scaled_by_width(query, key, value):
    return _mix(query @ key.transpose(-2, -1) / query.shape[-1], value)


@causal_attention.mistake(
    "The scores are scaled by the number of keys. The sum in a score runs over the head's D"
    " numbers: divide by √D."
)
def scaled_by_length(query, key, value):
    return _mix(query @ key.transpose(-2, -1) / key.shape[-2] ** 0.5, value)


@causal_attention.mistake(
    "There is no mask: every position sees the whole sequence. In training the model then reads the"
    " very token it is to predict, and when it must write, that token is not there."
)
def sees_the_future(query, key, value):
    return _scores(query, key).softmax(-1) @ value


@causal_attention.mistake(
    "A position does not see itself (the diagonal is masked too). The first position then has"
    " nothing to look at, and its softmax is NaN."
)
def not_itself(query, key, value):
    return _mix(_scores(query, key), value, shift=-1)


@causal_attention.mistake(
    "The mask's diagonal is one column too far to the right: each position sees the very token that"
    " it is to predict. Query t sees the keys up to S − T + t, itself, and no further."
)
def one_ahead(query, key, value):
    return _mix(_scores(query, key), value, shift=1)


@causal_attention.mistake(
    "The mask is multiplied by −∞, and 0 · (−∞) is NaN: that spoils just the places that may be"
    " seen. Put −∞ only where it belongs, with `masked_fill` or `torch.where`."
)
def infinity_times_zero(query, key, value):
    scores = _scores(query, key)
    seen = torch.ones_like(scores).tril(scores.shape[-1] - scores.shape[-2])
    return (scores + (1 - seen) * -torch.inf).softmax(-1) @ value


@causal_attention.mistake(
    "The mask is turned round: each position sees itself and the future, and not the past."
)
def past_hidden(query, key, value):
    scores = _scores(query, key)
    seen = torch.ones_like(scores, dtype=torch.bool).triu(scores.shape[-1] - scores.shape[-2])
    return scores.masked_fill(~seen, -torch.inf).softmax(-1) @ value


@causal_attention.mistake(
    "Right as long as there are as many keys as queries. With S > T the queries are the *last* T"
    " positions (the others are in the cache): the mask's diagonal must start at S − T."
)
def corner_at_the_left(query, key, value):
    scores = _scores(query, key)
    seen = torch.ones_like(scores, dtype=torch.bool).tril()
    return scores.masked_fill(~seen, -torch.inf).softmax(-1) @ value


@causal_attention.mistake(
    "The mask comes after the softmax: the future's weights are thrown away, and what is left does"
    " not sum to 1. Put −∞ into the scores before the softmax."
)
def masked_after_softmax(query, key, value):
    weights = _scores(query, key).softmax(-1)
    return weights.tril(weights.shape[-1] - weights.shape[-2]) @ value


@causal_attention.mistake(
    "Masked scores are set to 0, and exp(0) = 1 is a weight like any other. Only −∞ becomes a"
    " weight of 0."
)
def masked_with_zero(query, key, value):
    scores = _scores(query, key)
    return scores.tril(scores.shape[-1] - scores.shape[-2]).softmax(-1) @ value


@causal_attention.mistake(
    "The softmax runs over the queries. Each query divides its attention among the *keys*: the last"
    " dimension of the scores."
)
def over_queries(query, key, value):
    scores = _scores(query, key)
    seen = torch.ones_like(scores, dtype=torch.bool).tril(scores.shape[-1] - scores.shape[-2])
    return scores.masked_fill(~seen, -torch.inf).softmax(-2) @ value


@causal_attention.mistake(
    "The value is right, and no gradient flows back (a `detach` or `no_grad` cut it off): nothing"
    " below this layer would learn."
)
def attention_cut_off(query, key, value):
    return attention_by_hand(query, key, value).detach()


def _scores(query, key):
    return query @ key.transpose(-2, -1) / query.shape[-1] ** 0.5


causal_attention.equivalent("`-2` becomes `2`", "dimension 2 of (B, H, T, D) is the last but one")


def _mix(scores, value, shift=0):
    offset = scores.shape[-1] - scores.shape[-2] + shift
    seen = torch.ones_like(scores, dtype=torch.bool).tril(offset)
    return scores.masked_fill(~seen, -torch.inf).softmax(-1) @ value


# -- 04.2 ---------------------------------------------------------------------------------------

token_log_probs = exercise(
    "token_log_probs", number="04.2", points=2,
    reference="rlhf_minimal.log_probs:token_log_probs",
    takes_away=[
        "rlhf_minimal.log_probs:sequence_log_probs", "rlhf_minimal.log_probs:mean_log_probs",
        "rlhf_minimal.log_probs:answer_log_probs", "rlhf_minimal.sft:sft_loss",
    ],
    any_dtype=True,
)


@token_log_probs.cases(visible=6, fresh=14)
def logits_and_tokens(g):
    B, T, V = g.size(1, 4), g.size(3, 6), g.size(3, 7)
    spread = g.choice([1.0, 1.0, 300.0])
    return dict(logits=g.normal(B, T, V, std=spread), tokens=g.integers(0, V, B, T))


@token_log_probs.probe
def log_probs_and_gradient(answer, case):
    x = leaves(case)
    log_probs = answer.token_log_probs(**x)
    return dict(log_probs=log_probs, grad=grads(log_probs, x), inputs_after=x)


@token_log_probs.mistake(
    "Not shifted: the logits at t score the token at t, which they have read already. They are"
    " about the token at t + 1."
)
def not_shifted(logits, tokens):
    return _gathered(logits, tokens)


@token_log_probs.mistake(
    "Cut to T − 1 and still not shifted: logits *and* tokens lose their first position. Drop the"
    " logits' last one and the tokens' first."
)
def both_lose_the_first(logits, tokens):
    return _gathered(logits[:, 1:], tokens[:, 1:])


@token_log_probs.mistake(
    "Cut to T − 1 and still not shifted: logits *and* tokens lose their last position. Drop the"
    " logits' last one and the tokens' first."
)
def both_lose_the_last(logits, tokens):
    return _gathered(logits[:, :-1], tokens[:, :-1])


@token_log_probs.mistake(
    "Shifted the wrong way: the logits at t + 1 score the token at t. Keep `logits[:, :-1]` and"
    " `tokens[:, 1:]`."
)
def shifted_back(logits, tokens):
    return _gathered(logits[:, 1:], tokens[:, :-1])


@token_log_probs.mistake(
    "These are the logits themselves. They become log-probabilities when the log of the sum of"
    " their exponentials is taken off: `log_softmax(-1)`."
)
def bare_logits(logits, tokens):
    return logits[:, :-1].gather(-1, tokens[:, 1:, None]).squeeze(-1)


@token_log_probs.mistake("These are probabilities; their logarithms are asked.")
def probabilities(logits, tokens):
    return _gathered(logits[:, :-1], tokens[:, 1:]).exp()


@token_log_probs.mistake(
    "The logarithm is taken after the softmax: a small probability rounds to 0 in float32, and its"
    " logarithm is −∞. `log_softmax` does both at once."
)
def log_after_softmax(logits, tokens):
    p = logits[:, :-1].softmax(-1)
    return p.gather(-1, tokens[:, 1:, None]).squeeze(-1).log()


@token_log_probs.mistake(
    "A small number inside the logarithm keeps it finite and makes it wrong: nothing can be less"
    " likely than that number any more. `log_softmax` needs no such help."
)
def log_with_epsilon(logits, tokens):
    p = logits[:, :-1].softmax(-1)
    return (p.gather(-1, tokens[:, 1:, None]).squeeze(-1) + 1e-8).log()


@token_log_probs.mistake(
    "Right for small logits only: the exponential of a logit of 100 is infinite in float32 already."
    " `log_softmax` (or `logsumexp`) takes the largest logit off first."
)
def overflowing(logits, tokens):
    z = logits[:, :-1]
    return z.gather(-1, tokens[:, 1:, None]).squeeze(-1) - z.exp().sum(-1).log()


@token_log_probs.mistake(
    "The softmax runs over the batch, so that one sequence takes probability from another. The"
    " actions are the words of the vocabulary: the last dimension, `log_softmax(-1)`."
)
def softmax_over_batch(logits, tokens):
    return logits[:, :-1].log_softmax(0).gather(-1, tokens[:, 1:, None]).squeeze(-1)


@token_log_probs.mistake(
    "The softmax runs over the positions. The actions are the words of the vocabulary: the last"
    " dimension."
)
def softmax_over_positions(logits, tokens):
    return logits[:, :-1].log_softmax(1).gather(-1, tokens[:, 1:, None]).squeeze(-1)


@token_log_probs.mistake(
    "The sign is that of a loss: `F.cross_entropy` gives −log π. A log-probability is 0 or less."
)
def negated(logits, tokens):
    return -_gathered(logits[:, :-1], tokens[:, 1:])


@token_log_probs.mistake(
    "The likeliest token's log-probability is taken, not that of the token which stands in the"
    " sequence: gather with the tokens."
)
def of_the_likeliest(logits, tokens):
    return logits[:, :-1].log_softmax(-1).max(-1).values


@token_log_probs.mistake(
    "Added up already. One number a token is asked: whoever calls has the mask, and knows whether"
    " a sum or a mean is wanted."
)
def summed_already(logits, tokens):
    return _gathered(logits[:, :-1], tokens[:, 1:]).sum(-1)


@token_log_probs.mistake(
    "The values are right, and no gradient flows back to the logits: this policy could be watched"
    " and never trained."
)
def log_probs_cut_off(logits, tokens):
    return _gathered(logits[:, :-1], tokens[:, 1:]).detach()


def _gathered(logits, tokens):
    return logits.log_softmax(-1).gather(-1, tokens[..., None]).squeeze(-1)


# -- 04.3 ---------------------------------------------------------------------------------------

response_mask = exercise(
    "response_mask", number="04.3", points=1, reference="rlhf_minimal.log_probs:response_mask",
    takes_away=["rlhf_minimal.pairs:collate_answers"],
)


@response_mask.cases(visible=5, fresh=12)
def padded_prompts_and_answers(g):
    prompts, answers = _lengths(g)
    mask = _rows([n + m for n, m in zip(prompts, answers, strict=True)])
    return dict(attention_mask=mask, prompt_lengths=torch.tensor(prompts))


@response_mask.probe
def zeros_and_ones(answer, case):
    mask = answer.response_mask(**case)
    return dict(mask=torch.as_tensor(mask).long(), inputs_after=case)  # booleans will do


@response_mask.mistake(
    "Padding counts as answer: everything after the prompt is 1. Multiply by the attention mask,"
    " which knows where the padding begins."
)
def padding_counted(attention_mask, prompt_lengths):
    return _after(attention_mask, prompt_lengths)


@response_mask.mistake(
    "The last token of every answer is left out. It is the end token: a model that is never trained"
    " on it never learns to stop."
)
def end_left_out(attention_mask, prompt_lengths):
    last = attention_mask.sum(-1, keepdim=True) - 1
    places = torch.arange(attention_mask.shape[1])
    return _after(attention_mask, prompt_lengths) * attention_mask * (places != last)


@response_mask.mistake(
    "The prompt's last token counts too. With prompts of n tokens, the answer begins at position n"
    " (counted from 0)."
)
def last_of_prompt(attention_mask, prompt_lengths):
    return _after(attention_mask, prompt_lengths - 1) * attention_mask


@response_mask.mistake(
    "The answer's first token is left out: > where ≥ is needed. Position n (counted from 0) is the"
    " first after a prompt of n tokens."
)
def first_left_out(attention_mask, prompt_lengths):
    return _after(attention_mask, prompt_lengths + 1) * attention_mask


@response_mask.mistake(
    "Turned round: the prompt is 1 and the answer 0. The model would learn to ask."
)
def prompt_instead(attention_mask, prompt_lengths):
    return (1 - _after(attention_mask, prompt_lengths)) * attention_mask


@response_mask.mistake(
    "This is the attention mask: prompts count too. There is nothing to learn about how to write"
    " the prompt; it is given."
)
def everything_real(attention_mask, prompt_lengths):
    return attention_mask.clone()


@response_mask.mistake(
    "One condition *or* the other. A token counts if it stands behind the prompt *and* is real."
)
def either_condition(attention_mask, prompt_lengths):
    return _after(attention_mask, prompt_lengths) | attention_mask


@response_mask.mistake(
    "One prompt length is used for all rows. Each row has its own: compare positions (1, T) with"
    " lengths (B, 1)."
)
def one_length_for_all(attention_mask, prompt_lengths):
    longest = prompt_lengths.max().expand_as(prompt_lengths)
    return _after(attention_mask, longest) * attention_mask


@response_mask.mistake(
    "Shifted by one, to stand beside the logits. The mask has the shape of the tokens; the shift"
    " is made once, by whoever compares it with logits."
)
def shifted_already(attention_mask, prompt_lengths):
    return (_after(attention_mask, prompt_lengths) * attention_mask)[:, 1:]


response_mask.equivalent("`1` becomes `2`", "`shape[1]` of a two-dimensional mask has no 2")


def _lengths(g):
    B = g.size(2, 5)
    prompts = [g.size(1, 5) for _ in range(B)]
    answers = [g.size(1, 5) for _ in range(B)]
    prompts[0], prompts[1] = 1 + (prompts[1] == 1), prompts[1]    # two lengths at least
    answers[0] = max(a + p for a, p in zip(answers, prompts, strict=True)) + 1 - prompts[0]
    return prompts, answers                                        # row 0 is full, others padded


def _rows(lengths):
    return (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()


def _after(attention_mask, prompt_lengths):
    return (torch.arange(attention_mask.shape[1]) >= prompt_lengths[:, None]).long()


# -- 04.4 ---------------------------------------------------------------------------------------

sft_loss = exercise(
    "sft_loss", number="04.4", points=2, reference="rlhf_minimal.sft:sft_loss",
    uses=["token_log_probs"], any_dtype=True,
)


@sft_loss.cases(visible=5, fresh=12)
def a_batch_of_answers(g):
    prompts, answers = _lengths(g)
    attention = _rows([n + m for n, m in zip(prompts, answers, strict=True)])
    V = g.size(3, 6)
    return dict(
        logits=g.normal(*attention.shape, V), tokens=g.integers(0, V, *attention.shape),
        mask=_after(attention, torch.tensor(prompts)) * attention,
    )


@sft_loss.probe
def loss_and_gradient(answer, case):
    x = leaves(case)
    loss = answer.sft_loss(**x)
    return dict(loss=loss, grad=grads(loss, x), inputs_after=x)


@sft_loss.mistake(
    "The mask is not used: prompts and padding are learned as well."
)
def without_mask(logits, tokens, mask):
    return -_shifted(logits, tokens).mean()


@sft_loss.mistake(
    "The mask is off by one: `token_log_probs` gives the tokens 1 to T − 1, so the mask that goes"
    " with them is `mask[:, 1:]`. With `mask[:, :-1]` the answer's first token is left out, and"
    " padding comes in behind the end."
)
def mask_off_by_one(logits, tokens, mask):
    return _masked(-_shifted(logits, tokens), mask[:, :-1])


@sft_loss.mistake(
    "You divide by all positions, prompt and padding included: the same answers in a longer batch"
    " would have a smaller loss. Divide by the number of masked tokens."
)
def mean_over_positions(logits, tokens, mask):
    return -(_shifted(logits, tokens) * mask[:, 1:]).mean()


@sft_loss.mistake(
    "You divide by the size of the mask, B·T: prompt, padding and all. Divide by the number of"
    " masked tokens, the mask's sum."
)
def divided_by_everything(logits, tokens, mask):
    return -(_shifted(logits, tokens) * mask[:, 1:]).sum() / mask.numel()


@sft_loss.mistake(
    "A sum where the mean is asked: the size of a step would grow with the answers' lengths and"
    " with the batch."
)
def summed_loss(logits, tokens, mask):
    return -(_shifted(logits, tokens) * mask[:, 1:]).sum()


@sft_loss.mistake(
    "First a mean for each answer, then the mean of those. A token of a short answer then weighs"
    " more than one of a long answer; asked is that each token of the batch weighs the same."
)
def mean_of_means(logits, tokens, mask):
    counts = mask[:, 1:]
    return (-(_shifted(logits, tokens) * counts).sum(-1) / counts.sum(-1)).mean()


@sft_loss.mistake(
    "You divide by the number of answers. Divide by the number of masked tokens of the batch."
)
def divided_by_answers(logits, tokens, mask):
    return -(_shifted(logits, tokens) * mask[:, 1:]).sum(-1).mean()


@sft_loss.mistake(
    "The sign is wrong: minimising this makes the demonstrations as unlikely as possible."
)
def likelihood_minimised(logits, tokens, mask):
    return _masked(_shifted(logits, tokens), mask[:, 1:])


@sft_loss.mistake(
    "The logits are not shifted: position t scores the token at t, which it has read. The loss"
    " falls to nearly 0 by copying, and the model learns nothing about what comes next."
)
def copying(logits, tokens, mask):
    return _masked(-_gathered(logits, tokens), mask)


@sft_loss.mistake(
    "The mask is turned round: prompts and padding are learned, the answers not."
)
def mask_turned_round(logits, tokens, mask):
    return _masked(-_shifted(logits, tokens), 1 - mask[:, 1:])


@sft_loss.mistake(
    "A mask of integers used as an index does not select: it picks rows 0 and 1 over and over. Make"
    " it boolean first, `values[mask != 0]`."
)
def integers_as_index(logits, tokens, mask):
    return -_shifted(logits, tokens)[mask[:, 1:]].mean()


@sft_loss.mistake(
    "Probabilities are averaged instead of their logarithms: a word with probability 0.001 would"
    " hardly cost more than one with 0.01."
)
def mean_probability(logits, tokens, mask):
    return 1 - _masked(_shifted(logits, tokens).exp(), mask[:, 1:])


@sft_loss.mistake(
    "Token 0 is taken for padding and left out (`ignore_index=0`). Here 0 is a token like any"
    " other: let the mask say what counts."
)
def token_zero_ignored(logits, tokens, mask):
    counts = mask[:, 1:] * (tokens[:, 1:] != 0)
    return -(_shifted(logits, tokens) * counts).sum() / counts.sum()


@sft_loss.mistake(
    "The value is right, and no gradient flows back (a `detach` or `no_grad` cut it off): nothing"
    " would be trained."
)
def loss_cut_off(logits, tokens, mask):
    return _masked(-_shifted(logits, tokens), mask[:, 1:]).detach()


def _shifted(logits, tokens):
    return _gathered(logits[:, :-1], tokens[:, 1:])


def _masked(values, mask):
    return values[mask != 0].mean()


# -- 04.5 ---------------------------------------------------------------------------------------

perplexity = exercise("perplexity", number="04.5", points=2, any_dtype=True)


@perplexity.reference
def perplexity_of_all_tokens(batches):
    total = sum((log_probs * mask).sum() for log_probs, mask in batches)
    count = sum(mask.sum() for _, mask in batches)
    return (-total / count).exp()


@perplexity.cases(visible=5, fresh=12)
def batches_of_log_probs(g):
    batches = []
    for scale in g.choice([(1.0, 3.0), (3.0, 1.0), (2.0, 1.0, 3.0), (1.0, 2.5, 1.0)]):
        B, T = g.size(1, 4), g.size(3, 6)
        mask = g.padding_mask(B, T)
        mask[0, 0] = 0.0                                     # a token of the prompt
        batches.append((-g.uniform(0.05, scale, B, T), mask))
    return dict(batches=batches)


@perplexity.probe
def one_number(answer, case):
    return dict(perplexity=torch.as_tensor(answer.perplexity(**case)), inputs_after=case)


@perplexity.mistake(
    "The perplexities of the batches are averaged. The exponential comes last: add up all −log π,"
    " divide by all tokens, then exponentiate."
)
def mean_of_perplexities(batches):
    return torch.stack([perplexity_of_all_tokens([batch]) for batch in batches]).mean()


@perplexity.mistake(
    "The batches' perplexities are averaged, each weighed by its tokens. The weights are right, the"
    " order is not: average −log π first, and take the exponential once, at the end."
)
def weighted_mean_of_perplexities(batches):
    counts = torch.stack([mask.sum() for _, mask in batches])
    each = torch.stack([perplexity_of_all_tokens([batch]) for batch in batches])
    return (each * counts).sum() / counts.sum()


@perplexity.mistake(
    "This is the ordinary mean of 1/π. The perplexity is the geometric one: average −log π, then"
    " take the exponential."
)
def mean_of_inverses(batches):
    total = sum(((-values).exp() * mask).sum() for values, mask in batches)
    return total / sum(mask.sum() for _, mask in batches)


@perplexity.mistake(
    "Each batch's mean counts the same, however many tokens it holds: the result changes with the"
    " way the data are cut. Add up sums and counts over the batches, and divide once."
)
def mean_of_batch_means(batches):
    return torch.stack([perplexity_of_all_tokens([b]).log() for b in batches]).mean().exp()


@perplexity.mistake(
    "Only the last batch counts: the sums begin anew in each round of the loop."
)
def last_batch_only(batches):
    return perplexity_of_all_tokens(batches[-1:])


@perplexity.mistake(
    "Only the first batch counts: the `return` stands inside the loop."
)
def first_batch_only(batches):
    return perplexity_of_all_tokens(batches[:1])


@perplexity.mistake(
    "A probability that is masked to 0 has the logarithm −∞, and the perplexity becomes infinite."
    " Multiply the *log*-probabilities by the mask: what does not count then adds 0."
)
def logarithm_of_masked(batches):
    total = sum((values.exp() * mask).log().sum() for values, mask in batches)
    return (-total / sum(mask.sum() for _, mask in batches)).exp()


@perplexity.mistake(
    "The sign is missing: this is below 1. A perplexity is the exponential of the mean of −log π,"
    " 1 or more."
)
def below_one(batches):
    return 1 / perplexity_of_all_tokens(batches)


@perplexity.mistake(
    "This is the mean −log π, in nats. The perplexity is its exponential."
)
def still_in_nats(batches):
    return perplexity_of_all_tokens(batches).log()


@perplexity.mistake(
    "2 to the power of a mean in nats. The base must fit: e with natural logarithms, 2 with bits."
)
def wrong_base(batches):
    return 2 ** perplexity_of_all_tokens(batches).log()


@perplexity.mistake(
    "The mask is not used: what stands at prompts and padding counts as well."
)
def mask_not_used(batches):
    return perplexity_of_all_tokens([(values, torch.ones_like(m)) for values, m in batches])


@perplexity.mistake(
    "The masked sum is divided by all positions, padding included: more padding, better perplexity."
)
def divided_by_positions(batches):
    total = sum((values * mask).sum() for values, mask in batches)
    return (-total / sum(mask.numel() for _, mask in batches)).exp()


@perplexity.mistake(
    "Probabilities are averaged and then inverted. One word that the model calls nearly impossible"
    " should ruin its perplexity; here it hardly shows. Average the logarithms."
)
def inverse_of_mean_probability(batches):
    total = sum((values.exp() * mask).sum() for values, mask in batches)
    return sum(mask.sum() for _, mask in batches) / total


@perplexity.mistake(
    "The exponential of the sum: that grows with every further token. Divide by their number first."
)
def not_a_mean(batches):
    return (-sum((values * mask).sum() for values, mask in batches)).exp()


@perplexity.mistake(
    "Divided by the number of answers: this is the exponential of an answer's mean −log π, and"
    " longer answers would look worse. Divide by the number of masked tokens."
)
def per_answer(batches):
    total = sum((values * mask).sum() for values, mask in batches)
    return (-total / sum(len(mask) for _, mask in batches)).exp()


@perplexity.mistake(
    "Each answer has a perplexity, and their mean is taken. Short answers then weigh as much as"
    " long ones, and the exponential of a mean is not the mean of exponentials."
)
def mean_over_answers(batches):
    rows = [
        torch.exp(-(values * mask).sum(-1) / mask.sum(-1).clamp(min=1)) for values, mask in batches
    ]
    return torch.cat(rows).mean()


# -- 04.6 ---------------------------------------------------------------------------------------

DRAWS = 8_000                       # a row; few enough for whoever loops over the rows

sample_next_token = exercise(
    "sample_next_token", number="04.6", points=3,
    reference="rlhf_minimal.sampling:sample_next_token",
    takes_away=["rlhf_minimal.sampling:generate", "rlhf_minimal.rollouts:sample_rollouts"],
    seconds=60,
    tolerance={
        "frequencies": (0.05, (
            "two frequencies of 8,000 draws differ by 0.0079 (their standard deviation) at most;"
            " this is 6.3 of those"
        )),
        "share_that_changes": (0.1, (
            "the same with 2,000 draws, where the deviation is 0.0158 at most"
        )),
    },
)


@sample_next_token.cases(visible=12, fresh=12)
def two_rows_and_settings(g):
    kind = g.choice(KINDS) if g.scale == 1.0 else KINDS[round(12 * g.scale) - 1]
    both = {"k", "p"} <= set(kind.split())
    V = g.integer(6, 8) if both else g.integer(4, 6)
    logits = torch.stack([g.permutation(V) * step + g.uniform(-2.0, 2.0) for step in (0.6, 0.9)])
    temperature = g.choice([0.7, 1.7]) if "temperature" in kind else 1.0
    top_k = g.choice([3, 4] if both else [2, 3]) if "k" in kind.split() else None
    if kind == "k too large":
        top_k = V + 2
    top_p = _between(logits / temperature, top_k, g) if "p" in kind.split() else None
    return dict(
        logits=logits, temperature=0 if kind == "greedy" else temperature, top_k=top_k,
        top_p=0.05 if kind == "tiny p" else top_p, seed=g.seed(),
    )


KINDS = (
    "plain", "temperature", "greedy", "k", "p", "temperature p", "temperature k", "k p",
    "temperature k p", "k too large", "tiny p", "temperature p",
)


@sample_next_token.probe
def many_draws(answer, case):
    settings = {name: case[name] for name in ("temperature", "top_k", "top_p")}
    V, n = case["logits"].shape[1], DRAWS
    rows = case["logits"].repeat_interleave(n, 0)
    some = torch.cat([rows[:1_000], rows[n : n + 1_000]])
    torch.manual_seed(case["seed"])
    drawn = answer.sample_next_token(
        rows, **settings, generator=torch.Generator().manual_seed(case["seed"])
    )
    if drawn.shape != rows.shape[:1]:
        return dict(shape=list(drawn.shape), of_logits=list(rows.shape))
    counts = [drawn[i * n : (i + 1) * n].bincount(minlength=V) for i in range(2)]
    again = []
    for _ in range(2):                       # torch's own seed goes on, the generator's does not
        g = torch.Generator().manual_seed(case["seed"])
        again.append(answer.sample_next_token(some, **settings, generator=g))
    later = answer.sample_next_token(some, **settings, generator=g)
    without = answer.sample_next_token(case["logits"], **settings)
    return dict(
        frequencies=torch.stack(counts) / n,
        which_came_up=torch.stack(counts) > 0,
        share_that_changes=dict(
            with_the_same_generator=(again[0] != again[1]).float().mean(),
            as_the_generator_goes_on=(again[1] != later).float().mean(),
        ),
        shape=list(drawn.shape), dtype=str(drawn.dtype),
        shape_without_generator=list(without.shape),
        logits_after=rows[::n],
    )


@sample_next_token.mistake(
    "The temperature multiplies. It divides the logits: below 1 it sharpens, above 1 it flattens."
)
def multiplied(logits, temperature=1.0, top_k=None, top_p=None, generator=None):
    if temperature == 0:
        return logits.argmax(-1)
    return _draw(_cut(logits * temperature, top_k, top_p), generator)


@sample_next_token.mistake(
    "The temperature has no effect. Divided into *probabilities* it cancels when they are"
    " normalised; divide the logits, before the softmax."
)
def without_temperature(logits, temperature=1.0, top_k=None, top_p=None, generator=None):
    if temperature == 0:
        return logits.argmax(-1)
    return _draw(_cut(logits, top_k, top_p), generator)


@sample_next_token.mistake(
    "A temperature of 0 divides by zero. It stands for the limit, the likeliest token: return the"
    " argmax before you divide."
)
def divided_by_zero(logits, temperature=1.0, top_k=None, top_p=None, generator=None):
    return _draw(_cut(logits / temperature, top_k, top_p), generator)


@sample_next_token.mistake(
    "Always the likeliest token: this is greedy decoding, and the policy explores nothing."
)
def always_greedy(logits, temperature=1.0, top_k=None, top_p=None, generator=None):
    return logits.argmax(-1)


@sample_next_token.mistake(
    "Top-k keeps one token too few: the k-th itself stays (cut what is *less* than the k-th logit)."
)
def kth_is_cut(logits, temperature=1.0, top_k=None, top_p=None, generator=None):
    k = None if top_k is None else top_k - 1
    return _sampled(logits, temperature, k, top_p, generator)


@sample_next_token.mistake(
    "Top-k keeps one token too many: with top_k = 2 three tokens can come up."
)
def one_more_than_k(logits, temperature=1.0, top_k=None, top_p=None, generator=None):
    k = None if top_k is None else top_k + 1
    return _sampled(logits, temperature, k, top_p, generator)


@sample_next_token.mistake(
    "Top-k fails where k is larger than the vocabulary: `topk` wants k ≤ V. Take `min(top_k, V)`."
)
def too_many_wanted(logits, temperature=1.0, top_k=None, top_p=None, generator=None):
    if top_k is not None:
        logits.topk(top_k)
    return _sampled(logits, temperature, top_k, top_p, generator)


@sample_next_token.mistake(
    "Top-k is not used."
)
def no_top_k(logits, temperature=1.0, top_k=None, top_p=None, generator=None):
    return _sampled(logits, temperature, None, top_p, generator)


@sample_next_token.mistake(
    "Top-p is not used."
)
def no_top_p(logits, temperature=1.0, top_k=None, top_p=None, generator=None):
    return _sampled(logits, temperature, top_k, None, generator)


@sample_next_token.mistake(
    "The token that carries the sum past p is cut. It stays: the nucleus is the smallest set whose"
    " sum is *at least* p. Look at the mass before each token, not at the mass up to it."
)
def nucleus_too_small(logits, temperature=1.0, top_k=None, top_p=None, generator=None):
    return _nucleus(logits, temperature, top_k, top_p, generator, lambda p: p.cumsum(-1) > top_p)


@sample_next_token.mistake(
    "The token that carries the sum past p is cut, even where it is the very first: nothing is left"
    " to draw from. It stays: the nucleus is the smallest set whose sum is *at least* p."
)
def nucleus_empty(logits, temperature=1.0, top_k=None, top_p=None, generator=None):
    if temperature == 0 or top_p is None:
        return _sampled(logits, temperature, top_k, top_p, generator)
    ranked, order = _cut(logits / temperature, top_k, None).sort(-1, descending=True)
    away = ranked.softmax(-1).cumsum(-1) > top_p
    chosen = _draw(ranked.masked_fill(away, -torch.inf), generator)
    return order.gather(-1, chosen[:, None]).squeeze(-1)


@sample_next_token.mistake(
    "This keeps tokens whose own probability is at least p. Top-p adds up: from the likeliest down,"
    " until the *sum* reaches p."
)
def own_probability(logits, temperature=1.0, top_k=None, top_p=None, generator=None):
    return _nucleus(logits, temperature, top_k, top_p, generator, lambda p: p < top_p)


@sample_next_token.mistake(
    "The nucleus is found in the distribution at temperature 1. The temperature comes first: top-p"
    " is about the distribution that is sampled."
)
def nucleus_before_temperature(logits, temperature=1.0, top_k=None, top_p=None, generator=None):
    if temperature == 0:
        return logits.argmax(-1)
    kept = _cut(_cut(logits, top_k, None), None, top_p)
    return _draw(kept / temperature, generator)


@sample_next_token.mistake(
    "Top-p is found in the full distribution, before top-k has cut it. Here top-k comes first, and"
    " top-p looks at what is left, normalised again."
)
def nucleus_before_top_k(logits, temperature=1.0, top_k=None, top_p=None, generator=None):
    if temperature == 0:
        return logits.argmax(-1)
    return _draw(_cut(_cut(logits / temperature, None, top_p), top_k, None), generator)


@sample_next_token.mistake(
    "Where both are given, only top-k is used (is there an `elif`?). Top-p looks at what top-k has"
    " left, and cuts again."
)
def one_or_the_other(logits, temperature=1.0, top_k=None, top_p=None, generator=None):
    return _sampled(logits, temperature, top_k, top_p if top_k is None else None, generator)


@sample_next_token.mistake(
    "The cut of top-p was found in the order of the *sorted* logits and is laid on the unsorted"
    " ones: it hits the wrong tokens. Put it back into their places first (`scatter`)."
)
def cut_in_sorted_order(logits, temperature=1.0, top_k=None, top_p=None, generator=None):
    if temperature == 0 or top_p is None:
        return _sampled(logits, temperature, top_k, top_p, generator)
    kept = _cut(logits / temperature, top_k, None)
    p = kept.sort(-1, descending=True).values.softmax(-1)
    return _draw(kept.masked_fill(p.cumsum(-1) - p >= top_p, -torch.inf), generator)


@sample_next_token.mistake(
    "The sorted logits are put back with `gather(order)`, which sorts them once more. `order` says"
    " where each came from: `scatter` to there, or gather with `order.argsort(-1)`."
)
def gathered_back(logits, temperature=1.0, top_k=None, top_p=None, generator=None):
    if temperature == 0 or top_p is None:
        return _sampled(logits, temperature, top_k, top_p, generator)
    ranked, order = _cut(logits / temperature, top_k, None).sort(-1, descending=True)
    p = ranked.softmax(-1)
    kept = ranked.masked_fill(p.cumsum(-1) - p >= top_p, -torch.inf)
    return _draw(kept.gather(-1, order), generator)


@sample_next_token.mistake(
    "One random number serves all rows, so that they rise and fall together: eight answers to one"
    " prompt would be one answer eight times. Draw a number for each row."
)
def one_number_for_all(logits, temperature=1.0, top_k=None, top_p=None, generator=None):
    if temperature == 0:
        return logits.argmax(-1)
    sums = _cut(logits / temperature, top_k, top_p).softmax(-1).cumsum(-1)
    number = torch.rand(1, generator=generator)
    return (sums < number).sum(-1).clamp(max=logits.shape[-1] - 1)


@sample_next_token.mistake(
    "With top-p you return the token's *rank*: after sorting, position 0 is the likeliest token and"
    " not token 0. Look the token up in the order that `sort` gave."
)
def rank_returned(logits, temperature=1.0, top_k=None, top_p=None, generator=None):
    if temperature == 0 or top_p is None:
        return _sampled(logits, temperature, top_k, top_p, generator)
    kept = _cut(logits / temperature, top_k, top_p)
    return _draw(kept.sort(-1, descending=True).values, generator)


@sample_next_token.mistake(
    "Tokens that are cut get a logit of 0, and exp(0) = 1: they can still come up, some even more"
    " often. A logit of −∞ is a probability of 0."
)
def cut_to_zero(logits, temperature=1.0, top_k=None, top_p=None, generator=None):
    if temperature == 0:
        return logits.argmax(-1)
    kept = _cut(logits / temperature, top_k, top_p)
    return _draw(kept.masked_fill(kept.isinf(), 0.0), generator)


@sample_next_token.mistake(
    "One threshold serves all rows. Each row is a context of its own: its k-th logit is its own."
)
def one_threshold(logits, temperature=1.0, top_k=None, top_p=None, generator=None):
    if temperature == 0 or top_k is None:
        return _sampled(logits, temperature, top_k, top_p, generator)
    smallest = logits.topk(min(top_k, logits.shape[-1])).values[:, -1].max()
    least = torch.minimum(smallest, logits.max(-1, keepdim=True).values)
    kept = logits.masked_fill(logits < least, -torch.inf)
    return _draw(_cut(kept / temperature, None, top_p), generator)


@sample_next_token.mistake(
    "The generator is not used: two runs with one seed differ. Hand it on to whatever draws."
)
def generator_ignored(logits, temperature=1.0, top_k=None, top_p=None, generator=None):
    return _sampled(logits, temperature, top_k, top_p, None)


@sample_next_token.mistake(
    "Each call starts with the same seed: the draws never change, and every answer is written with"
    " one and the same sequence of numbers. Let the generator that was given go on."
)
def seeded_anew(logits, temperature=1.0, top_k=None, top_p=None, generator=None):
    g = torch.Generator().manual_seed(0)
    return _sampled(logits, temperature, top_k, top_p, g)


@sample_next_token.mistake(
    "The shape is (B, 1): `multinomial` gives a column. One token a row is asked, (B,): squeeze it."
)
def a_column(logits, temperature=1.0, top_k=None, top_p=None, generator=None):
    return _sampled(logits, temperature, top_k, top_p, generator)[:, None]


@sample_next_token.mistake(
    "The logits that were handed in are changed (`logits[...] = −∞`, `masked_fill_`, `/=`). Whoever"
    " called may still need them, for the log-probability of what was drawn."
)
def changed_in_place(logits, temperature=1.0, top_k=None, top_p=None, generator=None):
    if temperature == 0:
        return logits.argmax(-1)
    kept = _cut(logits / temperature, top_k, top_p)
    logits.copy_(kept)
    return _draw(kept, generator)


def _sampled(logits, temperature, top_k, top_p, generator):
    if temperature == 0:
        return logits.argmax(-1)
    return _draw(_cut(logits / temperature, top_k, top_p), generator)


def _nucleus(logits, temperature, top_k, top_p, generator, cut):
    """Tokens for which ``cut(sorted probabilities)`` is true leave; the likeliest always stays."""
    if temperature == 0 or top_p is None:
        return _sampled(logits, temperature, top_k, top_p, generator)
    ranked, order = _cut(logits / temperature, top_k, None).sort(-1, descending=True)
    away = cut(ranked.softmax(-1))
    away[:, 0] = False
    chosen = _draw(ranked.masked_fill(away, -torch.inf), generator)
    return order.gather(-1, chosen[:, None]).squeeze(-1)


def _cut(logits, top_k, top_p):
    if top_k is not None:
        least = logits.topk(min(top_k, logits.shape[-1])).values[:, -1:]
        logits = logits.masked_fill(logits < least, -torch.inf)
    if top_p is not None:
        ranked, order = logits.sort(-1, descending=True)
        p = ranked.softmax(-1)
        ranked = ranked.masked_fill(p.cumsum(-1) - p >= top_p, -torch.inf)
        logits = ranked.gather(-1, order.argsort(-1))
    return logits


def _draw(logits, generator):
    return logits.softmax(-1).multinomial(1, generator=generator).squeeze(-1)


sample_next_token.equivalent("`-1` becomes `1`", "the last dimension of (B, V) is dimension 1")
for mutant in ("`logits.topk(top_k, dim=-1)` becomes", "`logits.sort(dim=-1, descending=True)`"):
    sample_next_token.equivalent(mutant, "the last dimension is the default")
sample_next_token.equivalent(
    "`top_k < logits.shape[-1]` becomes", "the V likeliest of V tokens are all of them"
)
for mutant in ("`top_p < 1` becomes", "`1` becomes `2`"):
    sample_next_token.equivalent(mutant, "no token has a mass of 1 before it, but for rounding")
sample_next_token.equivalent(
    "`mass_before >= top_p` becomes", "no p stands exactly on a sum: there, rounding decides"
)


def _between(logits, top_k, g):
    """A p well between the sums at which a row's nucleus grows by a token, before and after top-k.

    With top-k, where there is such a p: one at which the nucleus found before top-k is larger than
    the right one, and smaller than k.
    """
    full, left = (
        _cut(logits, k, None).softmax(-1).sort(-1, descending=True).values.cumsum(-1)
        for k in (None, top_k)
    )
    sums = sorted(s for s in [*full.flatten().tolist(), *left.flatten().tolist()] if s < 0.999)
    gaps = [(b - a, (a + b) / 2) for a, b in itertools.pairwise([*sums, 1.0])]
    wide = [middle for gap, middle in gaps if gap > 0.03]
    if top_k is not None:
        def told_apart(p):
            sizes = [(sums < p).sum(-1) + 1 for sums in (left, full)]
            return bool(((sizes[0] < sizes[1]) & (sizes[1] < top_k)).any())

        wide = [p for p in wide if told_apart(p)] or wide
    return round(g.choice(wide), 4)


# -- 04.7 ---------------------------------------------------------------------------------------

collate_examples = exercise(
    "collate_examples", number="04.7", points=2, uses=["response_mask"],
    takes_away=[
        "rlhf_minimal.pairs:collate_answers", "rlhf_minimal.log_probs:pad_sequences",
    ],
)
END = 2


@collate_examples.reference
def labels_by_position(prompts, answers, end_id):
    rows = [prompt + answer for prompt, answer in zip(prompts, answers, strict=True)]
    width = max(map(len, rows))
    tokens = torch.tensor([row + [end_id] * (width - len(row)) for row in rows])
    places = torch.arange(width)
    attention_mask = (places < torch.tensor([len(row) for row in rows])[:, None]).long()
    after = places >= torch.tensor([len(prompt) for prompt in prompts])[:, None]
    labels = tokens.masked_fill(~(after & (attention_mask == 1)), -100)
    return tokens, attention_mask, labels


@collate_examples.cases(visible=5, fresh=12)
def conversations(g):
    lengths = _lengths(g)
    prompts, answers = (
        [g.integers(3, 9, n).tolist() for n in some] for some in lengths
    )
    answers = [[*answer[:-1], END] for answer in answers]
    if g.bool(0.7):                                # an earlier turn, with an end of its own
        row = g.integer(0, len(prompts))
        prompts[row] = [*g.integers(3, 9, 1).tolist(), END, *prompts[row]]
    if g.bool(0.4):                                # an answer that was cut off
        answers[1] = [*answers[1][:-1], 5]
    return dict(prompts=prompts, answers=answers, end_id=END)


@collate_examples.probe
def three_tensors(answer, case):
    tokens, attention_mask, labels = answer.collate_examples(**case)
    return dict(
        tokens=torch.as_tensor(tokens).long(), labels=torch.as_tensor(labels).long(),
        attention_mask=torch.as_tensor(attention_mask).long(), inputs_after=case,
    )


@collate_examples.mistake(
    "This is the code as found: padding is recognised by its id, and so the answer's own end token"
    " is hidden too. Lengths say where padding begins; ids do not."
)
def as_found(prompts, answers, end_id):
    tokens, _, labels = labels_by_position(prompts, answers, end_id)
    hidden = tokens == end_id
    return tokens, (~hidden).long(), labels.masked_fill(hidden, -100)


@collate_examples.mistake(
    "The labels are mended. The attention mask is still made from ids: it hides the ends of earlier"
    " turns, and the answer's own, from the model."
)
def attention_as_found(prompts, answers, end_id):
    tokens, _, labels = labels_by_position(prompts, answers, end_id)
    return tokens, (tokens != end_id).long(), labels


@collate_examples.mistake(
    "The attention mask is mended. The labels still lose every end token: the model is never told"
    " to stop."
)
def labels_as_found(prompts, answers, end_id):
    tokens, attention_mask, labels = labels_by_position(prompts, answers, end_id)
    return tokens, attention_mask, labels.masked_fill(tokens == end_id, -100)


@collate_examples.mistake(
    "The padding is learned: a label of the end token at every place behind the answer. Half of the"
    " loss is then about writing ends after an end, which nobody will ever sample."
)
def padding_learned(prompts, answers, end_id):
    tokens, attention_mask, _ = labels_by_position(prompts, answers, end_id)
    return tokens, attention_mask, _prompts_hidden(tokens, prompts)


@collate_examples.mistake(
    "The prompt is learned as well: −100 belongs on every prompt token."
)
def prompt_learned(prompts, answers, end_id):
    tokens, attention_mask, _ = labels_by_position(prompts, answers, end_id)
    return tokens, attention_mask, tokens.masked_fill(attention_mask == 0, -100)


@collate_examples.mistake(
    "The padding is another token, 0. The tokenizer of this task has no padding token, and its 0 is"
    " a word: pad with `end_id`, and mask by position."
)
def padded_with_zero(prompts, answers, end_id):
    tokens, attention_mask, labels = labels_by_position(prompts, answers, end_id)
    return tokens * attention_mask, attention_mask, labels


@collate_examples.mistake(
    "The first end token after the prompt is given its label back, padding or not: where an answer"
    " was cut off and has no end, the model learns to stop in the middle of a sentence. Go by"
    " lengths."
)
def first_end_kept(prompts, answers, end_id):
    tokens, attention_mask, labels = labels_by_position(prompts, answers, end_id)
    ends = (_prompts_hidden(tokens, prompts) == end_id).int()
    return tokens, attention_mask, labels.where((ends.cumsum(-1) != 1) | (ends == 0), tokens)


@collate_examples.mistake(
    "Padded on the left. For training the sequences stand at the left and padding on the right;"
    " left padding is for sampling, where all rows must end at one place."
)
def padded_on_the_left(prompts, answers, end_id):
    found = labels_by_position(prompts, answers, end_id)
    shifts = (found[1] == 0).sum(-1).tolist()
    return tuple(
        torch.stack([row.roll(n) for row, n in zip(part, shifts, strict=True)]) for part in found
    )


@collate_examples.mistake(
    "The labels are shifted to the left already. They stand where their tokens stand; the loss"
    " shifts, and it would shift a second time."
)
def labels_shifted(prompts, answers, end_id):
    tokens, attention_mask, labels = labels_by_position(prompts, answers, end_id)
    return tokens, attention_mask, F.pad(labels[:, 1:], (0, 1), value=-100)


collate_examples.equivalent(
    "`True` becomes `False`", "`strict` only guards against lists of different lengths"
)


def _prompts_hidden(tokens, prompts):
    lengths = torch.tensor([len(prompt) for prompt in prompts])[:, None]
    return tokens.masked_fill(torch.arange(tokens.shape[1]) < lengths, -100)
