"""Lesson 03: the KL divergence: exact, from logits, estimated, of sequences, held at a target."""

import torch
import torch.nn.functional as F

from autograder import exercise, grads, leaves

PACKAGE = "rlhf_minimal.kl"


# -- 03.1 ---------------------------------------------------------------------------------------

kl_divergence = exercise(
    "kl_divergence", number="03.1", points=2, reference=f"{PACKAGE}:kl_divergence",
    takes_away=[f"{PACKAGE}:kl_from_logits", f"{PACKAGE}:sequence_kl"],
)


@kl_divergence.cases(visible=8, fresh=16)
def two_distributions(g):
    kind = g.choice(["full", "p has zeros", "both have zeros", "infinite", "infinite"])
    shape = g.choice([(g.size(3, 6),), (g.size(2, 4), g.size(3, 6))])
    p, q = _twentieths(g, *shape), _twentieths(g, *shape)
    if kind in ("p has zeros", "both have zeros"):
        p = _without_first(p)
    if kind in ("both have zeros", "infinite"):
        q = _without_first(q)
    if len(shape) == 2 and g.bool():
        return dict(p=p.T.contiguous(), q=q.T.contiguous(), dim=0)
    return dict(p=p, q=q, dim=-1)


@kl_divergence.mistake(
    "The two distributions are turned round: this is KL(q‖p). The first one weighs, and stands"
    " above the fraction bar: Σ p·log(p/q)."
)
def turned_round(p, q, dim=-1):
    return _kl(q, p, dim)


@kl_divergence.mistake(
    "Where p is 0 you multiply 0 by log 0 = −∞, which is NaN. An outcome that never happens costs"
    " nothing: its term is 0 (`torch.special.xlogy(p, p)` knows that)."
)
def zero_times_infinity(p, q, dim=-1):
    return (p * (p / q).log()).sum(dim)


@kl_divergence.mistake(
    "A small number added inside the logarithm makes the divergence finite where q = 0 < p. It is"
    " infinite there, and that is information: q calls impossible what does happen."
)
def epsilon(p, q, dim=-1):
    return (p * ((p + 1e-8) / (q + 1e-8)).log()).sum(dim)


@kl_divergence.mistake(
    "Outcomes with q = 0 are left out too. Only those with p = 0 cost nothing; where q = 0 and p is"
    " not, the divergence is infinite."
)
def zeros_of_q_left_out(p, q, dim=-1):
    both = (p > 0) & (q > 0)
    ratio = torch.where(both, p, 1.0) / torch.where(both, q, 1.0)
    return (p * ratio.log()).sum(dim)


@kl_divergence.mistake(
    "`nan_to_num` mends the zeros of p and breaks those of q: it also turns an infinite divergence"
    " into 3.4e38, a finite number that nobody will recognise."
)
def painted_over(p, q, dim=-1):
    return (p * (p / q).log()).nan_to_num().sum(dim)


@kl_divergence.mistake(
    "This is in bits: a logarithm to base 2. The course counts in nats, with the natural logarithm."
)
def in_bits(p, q, dim=-1):
    return _kl(p, q, dim) / torch.tensor(2.0).log()


@kl_divergence.mistake(
    "The terms are averaged over the outcomes. Their weights p sum to 1 already, so their sum is"
    " the mean; divided once more, it shrinks with the size of the vocabulary."
)
def averaged(p, q, dim=-1):
    return _kl(p, q, dim) / p.shape[dim]


@kl_divergence.mistake(
    "The log-ratios are added up without their weights p: an outcome that hardly ever happens would"
    " count like one that always does."
)
def unweighted(p, q, dim=-1):
    return torch.where(p > 0, (p / q).log(), 0.0).sum(dim)


@kl_divergence.mistake(
    "The sign is wrong: this is Σ p·log(q/p), which is never positive. The divergence is never"
    " negative."
)
def negative(p, q, dim=-1):
    return -_kl(p, q, dim)


@kl_divergence.mistake(
    "This is the cross-entropy −Σ p·log q. It contains p's own entropy, so that it is not zero"
    " where p = q; subtract that, or use log(p/q)."
)
def cross_entropy(p, q, dim=-1):
    return -torch.special.xlogy(p, q).sum(dim)


@kl_divergence.mistake(
    "`dim` is not used: the sum always runs over the last dimension, where here the outcomes run"
    " along another."
)
def last_dimension(p, q, dim=-1):
    return _kl(p, q, -1)


@kl_divergence.mistake(
    "Everything is added up into one number. Each pair of distributions has a divergence of its"
    " own: sum along `dim` alone."
)
def one_number(p, q, dim=-1):
    return _kl(p, q, dim).sum()


@kl_divergence.mistake(
    "`reduction='batchmean'` adds everything up and divides by the first dimension: of a single"
    " pair of distributions that is the number of outcomes. Ask for `'none'` and sum along `dim`."
)
def batchmean(p, q, dim=-1):
    return F.kl_div(q.log(), p, reduction="batchmean")


@kl_divergence.mistake(
    "Right, but for outcomes that *neither* ever gives: `F.kl_div` multiplies p = 0 by log q = −∞"
    " there, which is NaN. The term is 0 (`xlogy` for both sums)."
)
def by_kl_div(p, q, dim=-1):
    return F.kl_div(q.log(), p, reduction="none").sum(dim)


@kl_divergence.mistake(
    "Both directions are averaged. That is symmetric (half of Jeffreys' divergence) and is not what"
    " is asked: KL(p‖q) and KL(q‖p) answer different questions."
)
def both_directions(p, q, dim=-1):
    return (_kl(p, q, dim) + _kl(q, p, dim)) / 2


@kl_divergence.mistake(
    "Each term is taken without its sign. Single terms may well be negative, where q > p; only"
    " their sum never is."
)
def without_signs(p, q, dim=-1):
    return (torch.special.xlogy(p, p) - torch.special.xlogy(p, q)).abs().sum(dim)


def _kl(p, q, dim):
    return (torch.special.xlogy(p, p) - torch.special.xlogy(p, q)).sum(dim)


def _twentieths(g, *shape):
    """Rows of multiples of 0.05 that sum to 1, none of them zero."""
    rows, V = torch.Size(shape[:-1]).numel(), shape[-1]
    extra = [g.integers(0, V, 20 - V).bincount(minlength=V) for _ in range(rows)]
    return ((torch.stack(extra) + 1) / 20).reshape(shape)


def _without_first(p):
    """The last outcome takes the first one's share as well."""
    p = p.clone()
    p[..., -1] += p[..., 0]
    p[..., 0] = 0.0
    return p


# -- 03.2 ---------------------------------------------------------------------------------------

kl_from_logits = exercise(
    "kl_from_logits", number="03.2", points=2, reference=f"{PACKAGE}:kl_from_logits",
    uses=["kl_divergence"], takes_away=[f"{PACKAGE}:sequence_kl"],
    tolerance={"kl_of_wide_logits": (0.2, (
        "float32 holds logits of 1,000 to 6e-5; an exponential of their difference is then good to"
        " 1e-4 of itself, and weighs log-ratios of up to 1,500"
    ))},
)


@kl_from_logits.cases(visible=8, fresh=16)
def two_rows_of_logits(g):
    shape = g.choice([(g.size(3, 6),), (g.size(2, 4), g.size(3, 6)), (2, 3, 4)])
    spread = g.choice([1.0, 1.0, 300.0])
    p, q = g.normal(*shape, std=spread), g.normal(*shape, std=spread)
    if spread == 1.0 and g.bool(0.4):
        p[..., 0] = -torch.inf
        if g.bool():
            q[..., 0] = -torch.inf
    if len(shape) == 2 and g.bool():
        return dict(p_logits=p.T.contiguous(), q_logits=q.T.contiguous(), dim=0)
    return dict(p_logits=p, q_logits=q, dim=-1)


@kl_from_logits.probe
def divergence_and_gradient(answer, case):
    x = leaves(case)
    kl = answer.kl_from_logits(**x)
    if case["q_logits"].nan_to_num(neginf=0.0).abs().max() < 20:
        return dict(kl=kl, grad=grads(kl, x), inputs_after=x)
    # Logits in the hundreds: right formulas round the gradient, a difference of large numbers,
    # by more than it is large. Only that it is there and is a number counts.
    gradient = grads(kl, x)
    if isinstance(gradient, dict):
        gradient = {place: values.isnan() for place, values in gradient.items()}
    return dict(kl_of_wide_logits=kl, grad_is_nan=gradient, inputs_after=x)


@kl_from_logits.mistake(
    "The arguments are turned round: this is KL(q‖p). (`F.kl_div(a, b)` takes log q first and p"
    " second.)"
)
def logits_turned_round(p_logits, q_logits, dim=-1):
    return _kl_logits(q_logits, p_logits, dim)


@kl_from_logits.mistake(
    "The logarithm is taken after the softmax: with widely spread logits a probability rounds to 0"
    " and its logarithm to −∞. `log_softmax` does both at once and stays finite."
)
def log_of_softmax(p_logits, q_logits, dim=-1):
    p, q = p_logits.softmax(dim), q_logits.softmax(dim)
    return (p * (p / q).log()).sum(dim)


@kl_from_logits.mistake(
    "The logarithm is taken after the softmax, with the zeros of p mended: but a probability of q"
    " that merely rounds to 0 makes the divergence infinite. Stay in log space: `log_softmax`."
)
def through_probabilities(p_logits, q_logits, dim=-1):
    return _kl(p_logits.softmax(dim), q_logits.softmax(dim), dim)


@kl_from_logits.mistake(
    "A small number inside the logarithm keeps it finite and makes it wrong: no log-probability can"
    " fall below log ε any more. `log_softmax` needs no such help."
)
def softmax_with_epsilon(p_logits, q_logits, dim=-1):
    p, q = p_logits.softmax(dim), q_logits.softmax(dim)
    return (p * ((p + 1e-8) / (q + 1e-8)).log()).sum(dim)


@kl_from_logits.mistake(
    "The logits are subtracted as they are. They become log-probabilities only when the log of the"
    " sum of their exponentials is taken off; without it the result moves with any constant added."
)
def not_normalised(p_logits, q_logits, dim=-1):
    p = p_logits.softmax(dim)
    return (p * _where_positive(p, p_logits - q_logits)).sum(dim)


@kl_from_logits.mistake(
    "Right, but for outcomes that p never gives (a logit of −∞): there 0 is multiplied by −∞, NaN."
    " Put 0 in place of the difference where p is 0."
)
def impossible_outcome(p_logits, q_logits, dim=-1):
    log_p, log_q = p_logits.log_softmax(dim), q_logits.log_softmax(dim)
    return (log_p.exp() * (log_p - log_q)).sum(dim)


@kl_from_logits.mistake(
    "The value is right, and the gradient is NaN where p is 0: the product 0·(−∞) is computed"
    " before it is replaced, and autograd goes through it. Replace the difference, then multiply."
)
def replaced_too_late(p_logits, q_logits, dim=-1):
    log_p, log_q = p_logits.log_softmax(dim), q_logits.log_softmax(dim)
    terms = log_p.exp() * (log_p - log_q)
    return torch.where(log_p.exp() > 0, terms, 0.0).sum(dim)


@kl_from_logits.mistake(
    "Where p is 0 (or rounds to 0) the gradient is NaN: `F.kl_div` with probabilities, and `xlogy`,"
    " differentiate p·log p there. As a penalty it would end the training. Write out"
    " p·(log p − log q), with the difference replaced by 0 where p is 0."
)
def gradient_through_log_zero(p_logits, q_logits, dim=-1):
    log_p, log_q = p_logits.log_softmax(dim), q_logits.log_softmax(dim)
    return F.kl_div(log_q, log_p.exp(), reduction="none").sum(dim)


@kl_from_logits.mistake(
    "`torch.distributions` calls the divergence infinite where q's probability merely rounds to 0,"
    " and always sums over the last dimension. `log_softmax(dim)` stays finite."
)
def by_distributions(p_logits, q_logits, dim=-1):
    p, q = (
        torch.distributions.Categorical(logits=logits) for logits in (p_logits, q_logits)
    )
    return torch.distributions.kl_divergence(p, q)


@kl_from_logits.mistake(
    "A mean over the outcomes where the sum is asked: their weights p sum to 1 already."
)
def mean_over_outcomes(p_logits, q_logits, dim=-1):
    return _kl_logits(p_logits, q_logits, dim) / p_logits.shape[dim]


@kl_from_logits.mistake(
    "The log-ratios are weighed with p's logits or log-probabilities. The weights are the"
    " probabilities: `log_softmax(dim).exp()`."
)
def weighed_with_logs(p_logits, q_logits, dim=-1):
    log_p, log_q = p_logits.log_softmax(dim), q_logits.log_softmax(dim)
    return (log_p * (log_p - log_q)).sum(dim)


@kl_from_logits.mistake(
    "`dim` is not used: softmax and sum always run over the last dimension."
)
def always_last(p_logits, q_logits, dim=-1):
    return _kl_logits(p_logits, q_logits, -1)


@kl_from_logits.mistake(
    "This is the cross-entropy, −Σ p·log q: p's own entropy is still in it. Weigh log p − log q."
)
def cross_entropy_of_logits(p_logits, q_logits, dim=-1):
    p = p_logits.softmax(dim)
    return -(p * _where_positive(p, q_logits.log_softmax(dim))).sum(dim)


@kl_from_logits.mistake(
    "The log-ratio is weighed with q. The divergence KL(p‖q) is an expectation under p."
)
def weighed_with_q(p_logits, q_logits, dim=-1):
    return -_kl_logits(q_logits, p_logits, dim)


@kl_from_logits.mistake(
    "The value is right, and no gradient flows back to the logits (a `detach`, `no_grad` or"
    " `.item()` cut it off): as a penalty in a loss it would do nothing."
)
def cut_off(p_logits, q_logits, dim=-1):
    return _kl_logits(p_logits.detach(), q_logits.detach(), dim)


@kl_from_logits.mistake(
    "One number for all rows. Each pair of distributions has a divergence of its own."
)
def all_rows_averaged(p_logits, q_logits, dim=-1):
    return _kl_logits(p_logits, q_logits, dim).mean()


def _where_positive(p, values):
    return values.masked_fill(p == 0, 0.0)


def _kl_logits(p_logits, q_logits, dim=-1):
    log_p, log_q = p_logits.log_softmax(dim), q_logits.log_softmax(dim)
    p = log_p.exp()
    return (p * _where_positive(p, log_p - log_q)).sum(dim)


kl_from_logits.equivalent(
    "`0.0` becomes `1.0`", "what stands where p is 0 is multiplied by 0, in the gradient too"
)


# -- 03.3 ---------------------------------------------------------------------------------------

kl_estimates = exercise(
    "kl_estimates", number="03.3", points=2, reference=f"{PACKAGE}:kl_estimates"
)


@kl_estimates.cases(visible=4, fresh=12)
def log_probs_of_samples(g):
    shape = g.choice([(g.size(2, 8),), (g.size(2, 4), g.size(2, 6))])
    log_p = -g.uniform(0.05, 3.0, *shape)
    return dict(log_p=log_p, log_q=_rounded(log_p + g.normal(*shape)))


@kl_estimates.probe
def estimates_and_gradients(answer, case):
    x = leaves(case)
    found = answer.kl_estimates(**x)
    if isinstance(found, dict):
        return dict(estimates=found)               # a tuple is asked; unpacked, this is its keys
    k1, k2, k3 = found
    gradients = dict(k1=grads(k1, x), k2=grads(k2, x), k3=grads(k3, x))
    return dict(k1=k1, k2=k2, k3=k3, grad=gradients, inputs_after=x)


@kl_estimates.mistake(
    "The log-ratio is turned round. The samples come from p, so l = log p − log q; with the other"
    " sign k1 is negative on average and k3 estimates something else. Only k2 does not notice."
)
def ratio_turned_round(log_p, log_q):
    return _estimates(log_q - log_p)


@kl_estimates.mistake(
    "k1 and k2 are right; k3 has the ratio turned round: exp(l) − 1 − l, never negative and much"
    " too large. Written with l = log p − log q it is exp(−l) − 1 + l."
)
def third_turned_round(log_p, log_q):
    k1, k2, _ = _estimates(log_p - log_q)
    return k1, k2, torch.expm1(k1) - k1


@kl_estimates.mistake(
    "k3's last sign is wrong: exp(−l) − 1 − l. The mean of exp(−l) − 1 is zero, so what is left"
    " estimates −KL; add l."
)
def third_subtracts(log_p, log_q):
    k1, k2, _ = _estimates(log_p - log_q)
    return k1, k2, torch.expm1(-k1) - k1


@kl_estimates.mistake(
    "k3 is too large by 1 everywhere: exp(−l) has mean 1 under p; subtract it, and what you add to"
    " l has mean zero."
)
def third_without_one(log_p, log_q):
    k1, k2, k3 = _estimates(log_p - log_q)
    return k1, k2, k3 + 1


@kl_estimates.mistake("k2 lacks its ½: near p = q it comes out at twice the divergence.")
def second_without_half(log_p, log_q):
    k1, k2, k3 = _estimates(log_p - log_q)
    return k1, 2 * k2, k3


@kl_estimates.mistake(
    "k1 is taken without its sign. Single estimates may be negative, and half of them often are;"
    " cut that off, and the mean is too large."
)
def first_without_sign(log_p, log_q):
    k1, k2, k3 = _estimates(log_p - log_q)
    return k1.abs(), k2, k3


@kl_estimates.mistake(
    "Negative values of k1 are cut off at 0. They are what makes the mean right: the divergence is"
    " never negative, one estimate of it may be."
)
def first_clamped(log_p, log_q):
    k1, k2, k3 = _estimates(log_p - log_q)
    return k1.clamp(min=0), k2, k3


@kl_estimates.mistake(
    "The estimates are weighed with p. The samples come from p, so that frequent outcomes come"
    " often: weighing them once more counts p twice."
)
def weighed_again(log_p, log_q):
    return tuple(log_p.exp() * k for k in _estimates(log_p - log_q))


@kl_estimates.mistake(
    "The estimates are averaged already. One number a sample is asked, so that whoever calls can"
    " mask, sum or average, and see the spread."
)
def averaged_already(log_p, log_q):
    return tuple(k.mean() for k in _estimates(log_p - log_q))


@kl_estimates.mistake("k2 and k3 stand in each other's place: the order is (k1, k2, k3).")
def order_changed(log_p, log_q):
    k1, k2, k3 = _estimates(log_p - log_q)
    return k1, k3, k2


@kl_estimates.mistake(
    "The values are right, and no gradient flows back (a `detach`, `no_grad` or a new"
    " `torch.tensor` cut it off). The lesson goes on to use them as losses."
)
def without_gradient(log_p, log_q):
    return _estimates((log_p - log_q).detach())


@kl_estimates.mistake(
    "The probabilities are subtracted, not their logarithms: a ratio becomes a difference of"
    " logarithms."
)
def difference_of_probabilities(log_p, log_q):
    return _estimates(log_p.exp() - log_q.exp())


def _rounded(values):
    """To three decimals, so that a failing case can be read."""
    return (1000 * values).round() / 1000


def _estimates(log_ratio):
    return log_ratio, log_ratio.square() / 2, torch.expm1(-log_ratio) + log_ratio


# -- 03.4 ---------------------------------------------------------------------------------------

sequence_kl = exercise(
    "sequence_kl", number="03.4", points=3, reference=f"{PACKAGE}:sequence_kl",
    uses=["kl_from_logits"],
)


@sequence_kl.cases(visible=4, fresh=12)
def logits_along_answers(g):
    B, T, V = g.size(2, 4), g.size(3, 7), g.size(2, 6)
    mask = g.padding_mask(B, T, shortest=2)
    mask[:, 0] = 0.0                          # the prompt's position: p has not drawn what follows
    return dict(p_logits=g.normal(B, T, V), q_logits=g.normal(B, T, V), mask=mask)


@sequence_kl.mistake(
    "The mask is not used: the positions of the prompt and of padding count too, where p has drawn"
    " nothing."
)
def all_positions(p_logits, q_logits, mask):
    return _kl_logits(p_logits, q_logits).sum(-1)


@sequence_kl.mistake(
    "This is a mean over the tokens. The chain rule adds the tokens' divergences up: a longer"
    " answer has more room to differ."
)
def mean_over_tokens(p_logits, q_logits, mask):
    return (_kl_logits(p_logits, q_logits) * mask).sum(-1) / mask.sum(-1)


@sequence_kl.mistake(
    "You divide by the number of positions, T, padding included: the same answer in a longer batch"
    " would seem nearer to the reference. Sum over the positions."
)
def divided_by_length(p_logits, q_logits, mask):
    return (_kl_logits(p_logits, q_logits) * mask).mean(-1)


@sequence_kl.mistake(
    "One number for the batch: give one an answer. Whoever wants the mean can take it, and the"
    " spread as well."
)
def mean_over_answers(p_logits, q_logits, mask):
    return (_kl_logits(p_logits, q_logits) * mask).sum(-1).mean()


@sequence_kl.mistake(
    "Everything is summed into one number: it would grow with the batch. Sum over the tokens of"
    " each answer alone."
)
def sum_over_everything(p_logits, q_logits, mask):
    return (_kl_logits(p_logits, q_logits) * mask).sum()


@sequence_kl.mistake(
    "The sum runs over the answers (dimension 0) instead of over the tokens of each (dimension 1)."
)
def sum_over_answers(p_logits, q_logits, mask):
    return (_kl_logits(p_logits, q_logits) * mask).sum(0)


@sequence_kl.mistake(
    "The directions are turned round: these are the divergences KL(q‖p) of the tokens. The answers"
    " were sampled from p, so p weighs."
)
def tokens_turned_round(p_logits, q_logits, mask):
    return (_kl_logits(q_logits, p_logits) * mask).sum(-1)


@sequence_kl.mistake(
    "The mask is shifted by one: `mask[:, t]` already speaks of the token that the logits at t"
    " predict."
)
def mask_shifted(p_logits, q_logits, mask):
    return (_kl_logits(p_logits, q_logits)[:, :-1] * mask[:, 1:]).sum(-1)


@sequence_kl.mistake(
    "The mask is turned round: you add up the prompt and the padding, and leave the answer out."
)
def mask_inverted(p_logits, q_logits, mask):
    return (_kl_logits(p_logits, q_logits) * (1 - mask)).sum(-1)


@sequence_kl.mistake(
    "The single positions are not added up: (B, T). The divergence of an answer is the sum over its"
    " tokens."
)
def not_added_up(p_logits, q_logits, mask):
    return _kl_logits(p_logits, q_logits) * mask


@sequence_kl.mistake(
    "The softmax runs over the positions instead of over the vocabulary: the last dimension holds"
    " the outcomes."
)
def over_positions(p_logits, q_logits, mask):
    log_p, log_q = p_logits.log_softmax(1), q_logits.log_softmax(1)
    return ((log_p.exp() * (log_p - log_q)).sum(-1) * mask).sum(-1)


@sequence_kl.mistake(
    "The divergences of the single outcomes are averaged over the vocabulary: sum over it."
)
def mean_over_vocabulary(p_logits, q_logits, mask):
    kl = _kl_logits(p_logits, q_logits) / p_logits.shape[-1]
    return (kl * mask).sum(-1)


sequence_kl.equivalent(
    "`0` becomes `1`", "`p_logits[..., 0]` is used for its shape alone; in the mask it is killed"
)
sequence_kl.equivalent("`-1` becomes `1`", "the last dimension of (B, T) is dimension 1")


# -- 03.5 ---------------------------------------------------------------------------------------

adaptive_kl = exercise(
    "adaptive_kl", number="03.5", points=2, takes_away=[f"{PACKAGE}:AdaptiveKL"]
)


@adaptive_kl.reference
def proportional_controller(beta, kl, target, samples, horizon):
    error = min(max(kl / target - 1, -0.2), 0.2)
    return beta * (1 + error * samples / horizon)


@adaptive_kl.cases(visible=6, fresh=14)
def one_update(g):
    target = g.choice([0.5, 2.0, 6.0])
    kl = target * g.choice([0.2, 0.9, 1.1, 3.0]) * g.uniform(0.95, 1.05)
    horizon = g.choice([500, 1000])
    return dict(
        beta=g.choice([0.05, 0.1, 0.4]), kl=round(kl, 3), target=target,
        samples=g.choice([64, 100, 250]), horizon=horizon,
    )


@adaptive_kl.mistake(
    "The error is taken without its sign: β can only rise, and a policy that stays too close is"
    " held more tightly still."
)
def error_without_sign(beta, kl, target, samples, horizon):
    return beta * (1 + min(abs(kl / target - 1), 0.2) * samples / horizon)


@adaptive_kl.mistake(
    "The sign is turned round: a KL above the target must *raise* β, which holds the policy more"
    " tightly. This controller runs away."
)
def wrong_way(beta, kl, target, samples, horizon):
    return beta * (1 - _error(kl, target) * samples / horizon)


@adaptive_kl.mistake(
    "The error is not clipped to ±0.2: a single batch that lands far off would move β by as much."
)
def not_clipped(beta, kl, target, samples, horizon):
    return beta * (1 + (kl / target - 1) * samples / horizon)


@adaptive_kl.mistake(
    "The error is clipped above and not below: a KL near zero would let β fall five times faster"
    " than it can rise."
)
def clipped_above(beta, kl, target, samples, horizon):
    return beta * (1 + min(kl / target - 1, 0.2) * samples / horizon)


@adaptive_kl.mistake(
    "The error is kl − target, in nats. Divided by the target it is a share, and the same ±0.2"
    " means the same for a target of 0.5 and of 6."
)
def absolute_error(beta, kl, target, samples, horizon):
    return beta * (1 + min(max(kl - target, -0.2), 0.2) * samples / horizon)


@adaptive_kl.mistake(
    "The error is kl/target, without the −1: on target it is 1 instead of 0, and β could only rise."
)
def without_one(beta, kl, target, samples, horizon):
    return beta * (1 + min(max(kl / target, -0.2), 0.2) * samples / horizon)


@adaptive_kl.mistake(
    "The fraction is turned round, target/kl − 1: positive where the KL is too *small*."
)
def fraction_turned_round(beta, kl, target, samples, horizon):
    return beta * (1 + min(max(target / kl - 1, -0.2), 0.2) * samples / horizon)


@adaptive_kl.mistake(
    "The number of samples and the horizon are not used: β may then change by 20% after every"
    " batch, small or large, and overshoots."
)
def no_horizon(beta, kl, target, samples, horizon):
    return beta * (1 + _error(kl, target))


@adaptive_kl.mistake(
    "samples/horizon stands upside down: β would jump, and the more the longer the horizon."
)
def upside_down(beta, kl, target, samples, horizon):
    return beta * (1 + _error(kl, target) * horizon / samples)


@adaptive_kl.mistake(
    "The error is added to β. Multiplied, it changes β by a share, whatever β's size, and β stays"
    " positive."
)
def added(beta, kl, target, samples, horizon):
    return beta + _error(kl, target) * samples / horizon


@adaptive_kl.mistake(
    "The clipping comes last, after the error was multiplied by samples/horizon: it hardly ever"
    " bites. Clip the error itself."
)
def clipped_last(beta, kl, target, samples, horizon):
    step = (kl / target - 1) * samples / horizon
    return beta * (1 + min(max(step, -0.2), 0.2))


@adaptive_kl.mistake(
    "`min` and `max` have changed places: `max(min(e, −0.2), 0.2)` is 0.2 whatever e is, and β can"
    " only rise. It is `min(max(e, −0.2), 0.2)`."
)
def min_and_max_swapped(beta, kl, target, samples, horizon):
    return beta * (1 + max(min(kl / target - 1, -0.2), 0.2) * samples / horizon)


@adaptive_kl.mistake(
    "The error is a share of `kl`, (kl − target)/kl. Ask how far it is off as a share of the"
    " *target*: a KL of nearly 0 must not blow it up."
)
def share_of_kl(beta, kl, target, samples, horizon):
    return beta * (1 + min(max((kl - target) / kl, -0.2), 0.2) * samples / horizon)


@adaptive_kl.mistake(
    "A bracket is in the wrong place: samples/horizon multiplies the error alone, not 1 + e. On"
    " target β must stay what it is."
)
def bracket_misplaced(beta, kl, target, samples, horizon):
    return beta * (1 + _error(kl, target)) * samples / horizon


@adaptive_kl.mistake(
    "The gain is 0.1 whatever `samples` and `horizon` say: K_β is samples/horizon here."
)
def fixed_gain(beta, kl, target, samples, horizon):
    return beta * (1 + 0.1 * _error(kl, target))


@adaptive_kl.mistake(
    "You give the factor by which β changes; the new β is asked."
)
def only_the_factor(beta, kl, target, samples, horizon):
    return 1 + _error(kl, target) * samples / horizon


@adaptive_kl.mistake(
    "You use exp(e·n/h). For small steps that is nearly 1 + e·n/h, which is what the paper's"
    " equation says and what is asked here."
)
def exponential(beta, kl, target, samples, horizon):
    return beta * torch.tensor(_error(kl, target) * samples / horizon).exp().item()


def _error(kl, target):
    return min(max(kl / target - 1, -0.2), 0.2)


# -- 03.6 ---------------------------------------------------------------------------------------

measured_kl = exercise("measured_kl", number="03.6", points=2, uses=["kl_estimates"])


@measured_kl.reference
def both_estimates(log_probs, ref_log_probs, mask):
    log_ratio = (log_probs - ref_log_probs) * mask
    k3 = torch.expm1(-log_ratio) + log_ratio
    return log_ratio.sum(-1).mean(), k3.sum(-1).mean()


@measured_kl.cases(visible=4, fresh=12)
def answers_of_a_batch(g):
    B, T = g.size(2, 5), g.size(3, 7)
    mask = g.padding_mask(B, T)
    log_probs = -g.uniform(0.05, 3.0, B, T)
    ref_log_probs = _rounded(log_probs - g.normal(B, T, mean=0.3, std=0.8))
    return dict(log_probs=log_probs, ref_log_probs=ref_log_probs, mask=mask)


@measured_kl.probe
def the_two_means(answer, case):
    k1, k3 = answer.measured_kl(**case)
    return dict(k1=torch.as_tensor(k1), k3=torch.as_tensor(k3))  # plain numbers will do


@measured_kl.mistake(
    "This is the code as found: the formulas of the blog post, with the ratio turned round. There"
    " r is reference over policy on samples from the policy, so log r = ref_log_probs − log_probs."
)
def as_found(log_probs, ref_log_probs, mask):
    l = _masked_ratio(log_probs, ref_log_probs, mask)
    return -_total(l), _total(torch.expm1(l) - l)


@measured_kl.mistake(
    "k1 has its sign back, and k3 is as it was found: exp(l) − 1 − l. Never negative, it hides its"
    " fault; turn the ratio round there too."
)
def half_mended(log_probs, ref_log_probs, mask):
    l = _masked_ratio(log_probs, ref_log_probs, mask)
    return _total(l), _total(torch.expm1(l) - l)


@measured_kl.mistake(
    "k3 has the new sign in one place and the old one in the other. With l = log π − log π_ref it"
    " is exp(−l) − 1 + l: both signs turn."
)
def one_sign_left(log_probs, ref_log_probs, mask):
    l = _masked_ratio(log_probs, ref_log_probs, mask)
    return _total(l), _total(torch.expm1(l) + l)


@measured_kl.mistake(
    "The second number is k2, half the squared log-ratio, which is biased. Asked is k3,"
    " exp(−l) − 1 + l."
)
def second_instead_of_third(log_probs, ref_log_probs, mask):
    l = _masked_ratio(log_probs, ref_log_probs, mask)
    return _total(l), _total(l.square() / 2)


@measured_kl.mistake(
    "k3 is mended, and k1 still has the wrong sign: its mean is −KL."
)
def first_still_negative(log_probs, ref_log_probs, mask):
    k1, k3 = both_estimates(log_probs, ref_log_probs, mask)
    return -k1, k3


@measured_kl.mistake(
    "The absolute value makes the sign disappear, and the mean wrong: single log-ratios may be"
    " negative. The ratio is what has to be turned round."
)
def absolute(log_probs, ref_log_probs, mask):
    l = _masked_ratio(log_probs, ref_log_probs, mask)
    return _total(l.abs()), _total(torch.expm1(-l) + l)


@measured_kl.mistake(
    "Negative log-ratios are cut off at 0. That hides the symptom and gives a mean that is too"
    " large; turn the ratio round and keep the signs."
)
def clamped(log_probs, ref_log_probs, mask):
    l = _masked_ratio(log_probs, ref_log_probs, mask)
    return _total(l.clamp(min=0)), _total(torch.expm1(-l) + l)


@measured_kl.mistake(
    "The mask is lost: what stands at padding is no token of the answer."
)
def padding_counted(log_probs, ref_log_probs, mask):
    return both_estimates(log_probs, ref_log_probs, torch.ones_like(mask))


@measured_kl.mistake(
    "This is a mean over tokens. Asked is the divergence of whole answers: add up each answer's"
    " tokens, then average over the answers."
)
def mean_per_token(log_probs, ref_log_probs, mask):
    k1, k3 = both_estimates(log_probs, ref_log_probs, mask)
    return k1 * len(mask) / mask.sum(), k3 * len(mask) / mask.sum()


@measured_kl.mistake(
    "Averaged over all B·T positions, padding included: the same answers in a longer batch would"
    " seem nearer to the reference. Sum over tokens, average over answers."
)
def mean_over_positions(log_probs, ref_log_probs, mask):
    k1, k3 = both_estimates(log_probs, ref_log_probs, mask)
    return k1 / mask.shape[1], k3 / mask.shape[1]


@measured_kl.mistake(
    "Summed over the answers too: the measured KL would double with the batch."
)
def sum_over_batch(log_probs, ref_log_probs, mask):
    k1, k3 = both_estimates(log_probs, ref_log_probs, mask)
    return k1 * len(mask), k3 * len(mask)


@measured_kl.mistake(
    "k3 is taken of each answer's summed log-ratio. That is unbiased as well, but its exponential"
    " of a sum is far noisier; here one k3 a token is asked."
)
def third_of_whole_answers(log_probs, ref_log_probs, mask):
    l = _masked_ratio(log_probs, ref_log_probs, mask)
    k1, _ = both_estimates(log_probs, ref_log_probs, mask)
    return k1, (torch.expm1(-l.sum(-1)) + l.sum(-1)).mean()


def _masked_ratio(log_probs, ref_log_probs, mask):
    return (log_probs - ref_log_probs) * mask


def _total(values):
    return values.sum(-1).mean()


measured_kl.equivalent("`-1` becomes `1`", "the last dimension of (B, T) is dimension 1")
