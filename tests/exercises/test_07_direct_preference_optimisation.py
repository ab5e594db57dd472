"""Lesson 07: from the optimum to DPO's loss, its gradient and relatives; credit; masks."""

import torch
import torch.nn.functional as F

from autograder import exercise, grads, leaves

# -- 07.1 ---------------------------------------------------------------------------------------

log_partition = exercise("log_partition", number="07.1", points=1)


@log_partition.reference
def log_of_sum(reference_log_probs, rewards, beta):
    return (reference_log_probs + rewards / beta).logsumexp(-1)


@log_partition.cases(visible=5, fresh=12)
def listed_answers(g):
    P, Y = g.size(1, 4), g.size(2, 6)
    reference = g.probabilities(P, Y).log()
    beta = g.choice([0.25, 0.5, 2.0, 0.01])        # with 0.01 an exponential overflows float32
    return dict(reference_log_probs=_rounded(reference), rewards=g.normal(P, Y) + 1, beta=beta)


@log_partition.mistake(
    "The reward is multiplied by β. It is divided: exp(r/β). A small β lets the reward speak up."
)
def times_beta(reference_log_probs, rewards, beta):
    return (reference_log_probs + rewards * beta).logsumexp(-1)


@log_partition.mistake("β is not used: the weights are exp(r/β), not exp(r).")
def partition_without_beta(reference_log_probs, rewards, beta):
    return (reference_log_probs + rewards).logsumexp(-1)


@log_partition.mistake(
    "The reference is missing: Z is a mean of exp(r/β) over answers *drawn from the reference*, so"
    " each answer is weighed with π_ref(y|x)."
)
def unweighted(reference_log_probs, rewards, beta):
    return (rewards / beta).logsumexp(-1)


@log_partition.mistake("This is Z itself. Its logarithm is asked; Z soon overflows.")
def not_the_log(reference_log_probs, rewards, beta):
    return log_of_sum(reference_log_probs, rewards, beta).exp()


@log_partition.mistake(
    "Right on paper, and infinite where r/β is large: the exponential overflows before the"
    " logarithm brings it back. `logsumexp` does all three steps without leaving log space."
)
def overflowing(reference_log_probs, rewards, beta):
    return (reference_log_probs.exp() * (rewards / beta).exp()).sum(-1).log()


@log_partition.mistake(
    "One number for all prompts. Every prompt has a Z of its own: sum over the answers, the last"
    " dimension, alone."
)
def all_prompts_together(reference_log_probs, rewards, beta):
    return (reference_log_probs + rewards / beta).flatten().logsumexp(-1)


@log_partition.mistake(
    "A mean over the list of answers. π_ref already sums to 1, so the weighted *sum* is the mean."
)
def divided_by_answers(reference_log_probs, rewards, beta):
    return (reference_log_probs + rewards / beta).exp().mean(-1).log()


@log_partition.mistake(
    "This is E[r]/β, the mean of the exponents. The logarithm of the mean of exponentials is larger"
    " (Jensen)."
)
def mean_reward(reference_log_probs, rewards, beta):
    return (reference_log_probs.exp() * rewards / beta).sum(-1)


log_partition.equivalent("`-1` becomes `1`", "the last dimension of (P, Y) is dimension 1")


def _rounded(values):
    """To three decimals, so that a failing case can be read."""
    return (1000 * values).round() / 1000


# -- 07.2 ---------------------------------------------------------------------------------------

reward_from_policy = exercise("reward_from_policy", number="07.2", points=1)


@reward_from_policy.reference
def solved_for_reward(policy_log_probs, reference_log_probs, log_z, beta):
    return beta * (policy_log_probs - reference_log_probs + log_z[:, None])


@reward_from_policy.cases(visible=4, fresh=12)
def policy_and_reference(g):
    P, Y = g.size(2, 4), g.size(4, 7)
    return dict(
        policy_log_probs=_rounded(g.probabilities(P, Y).log()),
        reference_log_probs=_rounded(g.probabilities(P, Y).log()),
        log_z=g.normal(P), beta=g.uniform(0.1, 0.6),
    )


@reward_from_policy.mistake(
    "The ratio is turned round: an answer that π* gives *more* often than the reference must have"
    " the larger reward."
)
def reward_turned_round(policy_log_probs, reference_log_probs, log_z, beta):
    return solved_for_reward(reference_log_probs, policy_log_probs, log_z, beta)


@reward_from_policy.mistake(
    "log Z is missing: you have dropped a constant of each prompt. In the next exercise it will"
    " cancel; here the reward itself is asked."
)
def without_partition(policy_log_probs, reference_log_probs, log_z, beta):
    return beta * (policy_log_probs - reference_log_probs)


@reward_from_policy.mistake(
    "log Z is subtracted. In log π* = log π_ref + r/β − log Z it has a minus; on the other side of"
    " the equation it gets a plus."
)
def partition_subtracted(policy_log_probs, reference_log_probs, log_z, beta):
    return beta * (policy_log_probs - reference_log_probs - log_z[:, None])


@reward_from_policy.mistake(
    "log Z is not multiplied by β: the whole of the other side is, when you solve r/β = … for r."
)
def partition_without_beta_factor(policy_log_probs, reference_log_probs, log_z, beta):
    return beta * (policy_log_probs - reference_log_probs) + log_z[:, None]


@reward_from_policy.mistake("Divided by β where it must be multiplied: r/β = …, so r = β·(…).")
def divided_by_beta(policy_log_probs, reference_log_probs, log_z, beta):
    return (policy_log_probs - reference_log_probs + log_z[:, None]) / beta


@reward_from_policy.mistake("The last step is missing: this is r/β.")
def still_over_beta(policy_log_probs, reference_log_probs, log_z, beta):
    return policy_log_probs - reference_log_probs + log_z[:, None]


@reward_from_policy.mistake(
    "The logarithm was taken away: this uses the ratio π*/π_ref itself. Take logarithms on both"
    " sides first."
)
def ratio_without_log(policy_log_probs, reference_log_probs, log_z, beta):
    return beta * ((policy_log_probs - reference_log_probs).exp() + log_z[:, None])


@reward_from_policy.mistake(
    "Brackets are missing: β multiplies the first term alone. r/β = … has three terms on the other"
    " side, and all of them are multiplied."
)
def first_term_alone(policy_log_probs, reference_log_probs, log_z, beta):
    return beta * policy_log_probs - reference_log_probs + log_z[:, None]


# -- 07.3 ---------------------------------------------------------------------------------------

preference_probability = exercise(
    "preference_probability", number="07.3", points=1,
    takes_away=["rlhf_minimal.dpo:reward_margin", "rlhf_minimal.dpo:implicit_rewards"],
)


@preference_probability.reference
def bradley_terry(policy_first, policy_second, reference_first, reference_second, beta):
    first, second = policy_first - reference_first, policy_second - reference_second
    return (beta * (first - second)).sigmoid()


@preference_probability.cases(visible=4, fresh=12)
def two_answers(g):
    B = g.size(2, 6)
    first, second = (-g.uniform(1.0, 9.0, B) for _ in range(2))
    return dict(
        policy_first=_rounded(first), policy_second=_rounded(second),
        reference_first=_rounded(first + g.normal(B)),
        reference_second=_rounded(second + g.normal(B)), beta=g.choice([0.1, 0.4, 0.7]),
    )


@preference_probability.mistake(
    "This is the probability that the *second* answer is preferred."
)
def second_preferred(policy_first, policy_second, reference_first, reference_second, beta):
    return 1 - bradley_terry(
        policy_first, policy_second, reference_first, reference_second, beta
    )


@preference_probability.mistake(
    "This is the difference of the rewards. Bradley–Terry puts it through a sigmoid."
)
def difference_only(policy_first, policy_second, reference_first, reference_second, beta):
    return beta * (policy_first - reference_first - policy_second + reference_second)


@preference_probability.mistake("β is missing: the reward is β·log(π/π_ref).")
def preference_without_beta(
    policy_first, policy_second, reference_first, reference_second, beta
):
    return bradley_terry(policy_first, policy_second, reference_first, reference_second, 1.0)


@preference_probability.mistake(
    "The reference is missing. What counts is not how likely an answer is, but how much likelier it"
    " has become."
)
def preference_without_reference(
    policy_first, policy_second, reference_first, reference_second, beta
):
    return (beta * (policy_first - policy_second)).sigmoid()


@preference_probability.mistake(
    "The two log-ratios are added. Bradley–Terry looks at their difference; only there does the"
    " partition function cancel."
)
def ratios_added(policy_first, policy_second, reference_first, reference_second, beta):
    total = policy_first - reference_first + policy_second - reference_second
    return (beta * total).sigmoid()


@preference_probability.mistake(
    "A sign is wrong: the second answer's reference enters with a plus. β·[(π₁ − ref₁) − (π₂ −"
    " ref₂)] has four terms, with the signs + − − +; your last two are turned round or your"
    " references are."
)
def references_turned_round(
    policy_first, policy_second, reference_first, reference_second, beta
):
    margin = policy_first - policy_second + reference_first - reference_second
    return (beta * margin).sigmoid()


@preference_probability.mistake("This is the logarithm of the probability that is asked.")
def log_of_probability(policy_first, policy_second, reference_first, reference_second, beta):
    return bradley_terry(
        policy_first, policy_second, reference_first, reference_second, beta
    ).log()


@preference_probability.mistake("Divided by β: the reward is β·log(π/π_ref), multiplied.")
def preference_over_beta(
    policy_first, policy_second, reference_first, reference_second, beta
):
    return bradley_terry(
        policy_first, policy_second, reference_first, reference_second, 1 / beta
    )


@preference_probability.mistake(
    "β stands outside the sigmoid. It scales the rewards, so it belongs inside; as it is, β is the"
    " largest probability there can be."
)
def beta_outside(policy_first, policy_second, reference_first, reference_second, beta):
    return beta * bradley_terry(
        policy_first, policy_second, reference_first, reference_second, 1.0
    )


@preference_probability.mistake(
    "Brackets are missing: all that follows the first term is subtracted. The second answer's"
    " reference has a plus, since it is a minus within a minus."
)
def brackets_missing(policy_first, policy_second, reference_first, reference_second, beta):
    total = policy_first - reference_first - policy_second - reference_second
    return (beta * total).sigmoid()


@preference_probability.mistake(
    "Log-probabilities are divided by each other. The logarithm of π/π_ref is the *difference*"
    " log π − log π_ref."
)
def quotients(policy_first, policy_second, reference_first, reference_second, beta):
    return (
        beta * (policy_first / reference_first - policy_second / reference_second)
    ).sigmoid()


# -- 07.4 ---------------------------------------------------------------------------------------

LOGS = "rlhf_minimal.log_probs"
sequence_log_probs = exercise(
    "sequence_log_probs", number="07.4", points=2, reference=f"{LOGS}:sequence_log_probs",
    takes_away=[
        f"{LOGS}:mean_log_probs", f"{LOGS}:answer_log_probs", "rlhf_minimal.sft:sft_loss",
        "rlhf_minimal.pairs:pair_log_probs", "rlhf_minimal.dpo:reference_log_probs",
    ],
)


@sequence_log_probs.cases(visible=5, fresh=12)
def prompts_and_answers(g):
    B, V = g.size(2, 5), g.size(3, 6)
    attention, mask, _ = _masks(g, B)
    shape = attention.shape
    return dict(logits=g.normal(*shape, V), tokens=g.integers(0, V, *shape), mask=mask)


@sequence_log_probs.probe
def sums_and_gradient(answer, case):
    x = leaves(case)
    sums = answer.sequence_log_probs(**x)
    return dict(sums=sums, grad=grads(sums, x), inputs_after=x)


@sequence_log_probs.mistake(
    "This is the mean over the answer's tokens. The log-probability of an answer is the *sum*: DPO"
    " derived with π(y|x) and computed with a mean is another method."
)
def mean_for_sum(logits, tokens, mask):
    return _sums(logits, tokens, mask) / mask[:, 1:].sum(-1)


@sequence_log_probs.mistake(
    "The mask is off by one: `token_log_probs` gives the tokens 1 to T − 1, and `mask[:, 1:]`"
    " belongs to them. With `mask[:, :-1]` the first token of the answer is lost."
)
def mask_not_shifted(logits, tokens, mask):
    return (_tokens(logits, tokens) * mask[:, :-1]).sum(-1)


@sequence_log_probs.mistake(
    "The mask is not used: the prompt's tokens and the padding are in the sum."
)
def unmasked(logits, tokens, mask):
    return _tokens(logits, tokens).sum(-1)


@sequence_log_probs.mistake(
    "The end token is left out: the answer's last token is an action of the policy like any other."
)
def end_lost(logits, tokens, mask):
    places = torch.arange(mask.shape[1])
    last = (places * mask).argmax(-1, keepdim=True)
    return _sums(logits, tokens, mask * (places != last))


@sequence_log_probs.mistake(
    "Not shifted: the logits at t score the token at t, which they have already seen."
)
def logits_not_shifted(logits, tokens, mask):
    found = logits.log_softmax(-1).gather(-1, tokens[..., None]).squeeze(-1)
    return (found * mask).sum(-1)


@sequence_log_probs.mistake(
    "Everything is added up into one number. Each answer has a log-probability: sum over the tokens"
    " alone."
)
def one_number(logits, tokens, mask):
    return _sums(logits, tokens, mask).sum()


@sequence_log_probs.mistake("The sign is that of a loss: this is −log π, and positive.")
def negated(logits, tokens, mask):
    return -_sums(logits, tokens, mask)


@sequence_log_probs.mistake(
    "The logits are summed as they are. They become log-probabilities through `log_softmax`."
)
def bare_logits(logits, tokens, mask):
    found = logits[:, :-1].gather(-1, tokens[:, 1:, None]).squeeze(-1)
    return (found * mask[:, 1:]).sum(-1)


@sequence_log_probs.mistake(
    "These are probabilities, products over tokens. Real answers underflow; keep the sum of logs."
)
def probabilities(logits, tokens, mask):
    return _sums(logits, tokens, mask).exp()


@sequence_log_probs.mistake(
    "Divided by the width of the batch: the same answer in a wider batch would become likelier."
    " (`.mean(-1)` where `.sum(-1)` is asked.)"
)
def divided_by_width(logits, tokens, mask):
    return _sums(logits, tokens, mask) / (mask.shape[1] - 1)


@sequence_log_probs.mistake(
    "The values are right, and no gradient flows back to the logits: nothing would be learned."
)
def cut_off(logits, tokens, mask):
    return _sums(logits.detach(), tokens, mask)


sequence_log_probs.equivalent("`-1` becomes `1`", "the last dimension of (B, T) is dimension 1")


def _masks(g, B):
    """Attention mask, answer mask and prompt lengths; two lengths of prompt at least."""
    prompts = [g.size(2, 5) for _ in range(B)]
    answers = [g.size(2, 5) for _ in range(B)]
    prompts[0] = prompts[1] + 1
    answers[1] += 2
    lengths, starts = torch.tensor(prompts) + torch.tensor(answers), torch.tensor(prompts)
    places = torch.arange(int(lengths.max()))
    attention = (places < lengths[:, None]).long()
    return attention, attention * (places >= starts[:, None]).long(), starts


def _tokens(logits, tokens):
    shifted = logits[:, :-1].log_softmax(-1)
    return shifted.gather(-1, tokens[:, 1:, None]).squeeze(-1)


def _sums(logits, tokens, mask):
    return (_tokens(logits, tokens) * mask[:, 1:]).sum(-1)


# -- 07.5 ---------------------------------------------------------------------------------------

DPO = "rlhf_minimal.dpo"
implicit_rewards = exercise(
    "implicit_rewards", number="07.5", points=1, reference=f"{DPO}:implicit_rewards",
    takes_away=[f"{DPO}:reward_margin"],
)


@implicit_rewards.cases(visible=4, fresh=12)
def summed_log_probs(g):
    B = g.size(2, 7)
    policy = -g.uniform(2.0, 20.0, B)
    return dict(
        policy=policy, reference=_rounded(policy + g.normal(B)), beta=g.choice([0.1, 0.4, 0.7])
    )


@implicit_rewards.probe
def rewards_and_gradient(answer, case):
    policy = case["policy"].clone().requires_grad_()
    rewards = answer.implicit_rewards(policy, case["reference"], case["beta"])
    return dict(rewards=rewards, grad=grads(rewards, {"policy": policy}), inputs_after=case)


@implicit_rewards.mistake(
    "The sign is turned round: an answer that has become likelier than under the reference has a"
    " positive reward."
)
def rewards_turned_round(policy, reference, beta=0.1):
    return beta * (reference - policy)


@implicit_rewards.mistake("β is missing: this is the log-ratio.")
def log_ratio_only(policy, reference, beta=0.1):
    return policy - reference


@implicit_rewards.mistake("β is fixed at 0.1: use the argument, of which 0.1 is the default.")
def beta_fixed(policy, reference, beta=0.1):
    return 0.1 * (policy - reference)


@implicit_rewards.mistake("Divided by β where it must be multiplied.")
def rewards_over_beta(policy, reference, beta=0.1):
    return (policy - reference) / beta


@implicit_rewards.mistake("The reference is missing: that is the log-probability, scaled.")
def rewards_without_reference(policy, reference, beta=0.1):
    return beta * policy


@implicit_rewards.mistake(
    "This is β·π/π_ref, a ratio of probabilities; its logarithm is asked, the difference of the"
    " log-probabilities."
)
def ratio_of_probabilities(policy, reference, beta=0.1):
    return beta * (policy - reference).exp()


@implicit_rewards.mistake(
    "The logarithm of a *quotient of log-probabilities*. They are logarithms already, and log(a/b)"
    " is their difference."
)
def log_of_quotient(policy, reference, beta=0.1):
    return beta * (policy / reference).log()


@implicit_rewards.mistake("One number for all answers; each answer has a reward of its own.")
def averaged_rewards(policy, reference, beta=0.1):
    return (beta * (policy - reference)).mean()


@implicit_rewards.mistake(
    "The values are right, and no gradient flows back to the policy: the loss is made of these."
)
def rewards_cut_off(policy, reference, beta=0.1):
    return beta * (policy - reference).detach()


implicit_rewards.equivalent(
    "`reference.detach()` becomes `reference`", "the reference's numbers carry no gradient here"
)


# -- 07.6 ---------------------------------------------------------------------------------------

dpo_loss = exercise(
    "dpo_loss", number="07.6", points=3, reference=f"{DPO}:dpo_loss", uses=["implicit_rewards"],
    takes_away=[f"{DPO}:reward_margin"],
)


@dpo_loss.cases(visible=8, fresh=14)
def a_batch_of_pairs(g):
    case = _pair_case(g)
    return case | dict(
        beta=g.choice([0.1, 0.4, 0.7]), label_smoothing=g.choice([0.0, 0.0, 0.1, 0.3])
    )


@dpo_loss.probe
def dpo_loss_and_gradient(answer, case):
    case, x = _with_leaves(case)
    loss = answer.dpo_loss(**case)
    return dict(loss=loss, grad=grads(loss, x), inputs_after=case)


@dpo_loss.mistake(
    "The sign inside the sigmoid is turned round: this trains towards the rejected answer."
)
def dpo_flipped(policy_chosen, policy_rejected, reference_chosen, reference_rejected,
                beta=0.1, label_smoothing=0.0):
    h = _margin(policy_chosen, policy_rejected, reference_chosen, reference_rejected)
    return _smoothed(-beta * h, label_smoothing)


@dpo_loss.mistake(
    "The minus is missing: this is the log-likelihood, which a *minimiser* would make worse. Its"
    " sign shows it: a loss of this kind is never below 0."
)
def dpo_no_minus(policy_chosen, policy_rejected, reference_chosen, reference_rejected,
                 beta=0.1, label_smoothing=0.0):
    h = _margin(policy_chosen, policy_rejected, reference_chosen, reference_rejected)
    return -_smoothed(beta * h, label_smoothing)


@dpo_loss.mistake(
    "The reference is not used. Without it, answers that were likely from the start seem good; that"
    " is another loss, and it starts elsewhere than at log 2."
)
def dpo_no_reference(policy_chosen, policy_rejected, reference_chosen, reference_rejected,
                     beta=0.1, label_smoothing=0.0):
    return _smoothed(beta * (policy_chosen - policy_rejected), label_smoothing)


@dpo_loss.mistake(
    "The reference enters with the wrong sign: it must be taken off, (π_w − ref_w) − (π_l − ref_l)."
)
def dpo_reference_added(policy_chosen, policy_rejected, reference_chosen, reference_rejected,
                        beta=0.1, label_smoothing=0.0):
    h = _margin(policy_chosen, policy_rejected, -reference_chosen, -reference_rejected)
    return _smoothed(beta * h, label_smoothing)


@dpo_loss.mistake("β is not used inside the sigmoid: the margin is β times the log-ratios'.")
def dpo_no_beta(policy_chosen, policy_rejected, reference_chosen, reference_rejected,
                beta=0.1, label_smoothing=0.0):
    h = _margin(policy_chosen, policy_rejected, reference_chosen, reference_rejected)
    return _smoothed(h, label_smoothing)


@dpo_loss.mistake(
    "β stands in front of the loss instead of inside the sigmoid. There it only scales the learning"
    " rate; inside it says how far the policy may go."
)
def dpo_beta_outside(policy_chosen, policy_rejected, reference_chosen, reference_rejected,
                     beta=0.1, label_smoothing=0.0):
    h = _margin(policy_chosen, policy_rejected, reference_chosen, reference_rejected)
    return beta * _smoothed(h, label_smoothing)


@dpo_loss.mistake(
    "β comes in twice: `implicit_rewards` has multiplied by it already."
)
def dpo_beta_twice(policy_chosen, policy_rejected, reference_chosen, reference_rejected,
                   beta=0.1, label_smoothing=0.0):
    h = _margin(policy_chosen, policy_rejected, reference_chosen, reference_rejected)
    return _smoothed(beta * beta * h, label_smoothing)


@dpo_loss.mistake(
    "A sum over the pairs where the mean is asked: the step would grow with the batch."
)
def dpo_sum(policy_chosen, policy_rejected, reference_chosen, reference_rejected,
            beta=0.1, label_smoothing=0.0):
    h = _margin(policy_chosen, policy_rejected, reference_chosen, reference_rejected)
    return _smoothed(beta * h, label_smoothing) * len(h)


@dpo_loss.mistake("One loss a pair; a loss is one number, the mean over the pairs.")
def dpo_a_pair(policy_chosen, policy_rejected, reference_chosen, reference_rejected,
               beta=0.1, label_smoothing=0.0):
    h = beta * _margin(policy_chosen, policy_rejected, reference_chosen, reference_rejected)
    return _terms(h, label_smoothing)


@dpo_loss.mistake(
    "The margins are averaged before the sigmoid. Each pair has a loss of its own: one that is"
    " right by far must not pay for one that is wrong."
)
def dpo_mean_first(policy_chosen, policy_rejected, reference_chosen, reference_rejected,
                   beta=0.1, label_smoothing=0.0):
    h = _margin(policy_chosen, policy_rejected, reference_chosen, reference_rejected)
    return _terms(beta * h.mean(), label_smoothing)


@dpo_loss.mistake(
    "The logarithm is missing: −σ(h) instead of −log σ(h). A pair that is badly wrong would have"
    " almost no gradient, where it should have the largest."
)
def dpo_no_log(policy_chosen, policy_rejected, reference_chosen, reference_rejected,
               beta=0.1, label_smoothing=0.0):
    h = beta * _margin(policy_chosen, policy_rejected, reference_chosen, reference_rejected)
    e = label_smoothing
    return -((1 - e) * h.sigmoid() + e * (-h).sigmoid()).mean()


@dpo_loss.mistake(
    "The logarithm is taken of a sigmoid that has rounded to 0: infinite where a pair is badly"
    " wrong. `F.logsigmoid` does both at once and stays finite."
)
def dpo_log_of_sigmoid(policy_chosen, policy_rejected, reference_chosen, reference_rejected,
                       beta=0.1, label_smoothing=0.0):
    h = beta * _margin(policy_chosen, policy_rejected, reference_chosen, reference_rejected)
    e = label_smoothing
    wrong_way = e * (-h).sigmoid().log() if e else 0.0
    return -((1 - e) * h.sigmoid().log() + wrong_way).mean()


@dpo_loss.mistake(
    "The other label's term is 1 − log σ(h). The probability of the other label is 1 − σ(h) ="
    " σ(−h); its logarithm is log σ(−h)."
)
def dpo_one_minus_log(policy_chosen, policy_rejected, reference_chosen, reference_rejected,
                      beta=0.1, label_smoothing=0.0):
    h = beta * _margin(policy_chosen, policy_rejected, reference_chosen, reference_rejected)
    e, right = label_smoothing, F.logsigmoid(h)
    return -((1 - e) * right + e * (1 - right)).mean()


@dpo_loss.mistake(
    "The smoothing is half as strong, ε/2, as where ε is spread over both labels. Here the wrong"
    " label gets all of ε."
)
def dpo_half_smoothing(policy_chosen, policy_rejected, reference_chosen, reference_rejected,
                       beta=0.1, label_smoothing=0.0):
    h = _margin(policy_chosen, policy_rejected, reference_chosen, reference_rejected)
    return _smoothed(beta * h, label_smoothing / 2)


@dpo_loss.mistake(
    "The second logarithm is taken of 1 − σ(h), which rounds to 0 where a pair is right by far."
    " log(1 − σ(h)) is log σ(−h): `F.logsigmoid(-h)` stays finite."
)
def dpo_log_of_rest(policy_chosen, policy_rejected, reference_chosen, reference_rejected,
                    beta=0.1, label_smoothing=0.0):
    h = beta * _margin(policy_chosen, policy_rejected, reference_chosen, reference_rejected)
    e = label_smoothing
    return -((1 - e) * F.logsigmoid(h) + e * (1 - h.sigmoid()).log()).mean()


@dpo_loss.mistake(
    "`label_smoothing` is not used: −(1 − ε)·log σ(h) − ε·log σ(−h)."
)
def dpo_no_smoothing(policy_chosen, policy_rejected, reference_chosen, reference_rejected,
                     beta=0.1, label_smoothing=0.0):
    h = _margin(policy_chosen, policy_rejected, reference_chosen, reference_rejected)
    return _smoothed(beta * h, 0.0)


@dpo_loss.mistake(
    "The two probabilities are mixed *inside* the logarithm, −log((1 − ε)·σ(h) + ε·σ(−h)). That is"
    " the likelihood of labels that were turned round; conservative DPO is the mixture of the two"
    " losses, with the logarithms inside."
)
def dpo_mixed_inside(policy_chosen, policy_rejected, reference_chosen, reference_rejected,
                     beta=0.1, label_smoothing=0.0):
    h = beta * _margin(policy_chosen, policy_rejected, reference_chosen, reference_rejected)
    e = label_smoothing
    return -((1 - e) * h.sigmoid() + e * (-h).sigmoid()).log().mean()


@dpo_loss.mistake(
    "The first term is not weighed with 1 − ε: the two weights must sum to 1, they are the"
    " probabilities of the two labels."
)
def dpo_weights_too_large(policy_chosen, policy_rejected, reference_chosen, reference_rejected,
                          beta=0.1, label_smoothing=0.0):
    h = beta * _margin(policy_chosen, policy_rejected, reference_chosen, reference_rejected)
    return -(F.logsigmoid(h) + label_smoothing * F.logsigmoid(-h)).mean()


@dpo_loss.mistake(
    "The smoothed term has the wrong sign: ε·log σ(−h) is subtracted too. (With a plus, over"
    " 1 − 2ε, it would be another paper's loss: Chowdhury et al. 2024.)"
)
def dpo_smoothing_sign(policy_chosen, policy_rejected, reference_chosen, reference_rejected,
                       beta=0.1, label_smoothing=0.0):
    h = beta * _margin(policy_chosen, policy_rejected, reference_chosen, reference_rejected)
    e = label_smoothing
    return -((1 - e) * F.logsigmoid(h) - e * F.logsigmoid(-h)).mean()


@dpo_loss.mistake(
    "The loss is right, and no gradient flows back to the policy (a `detach`, `.item()` or"
    " `no_grad`)."
)
def dpo_cut_off(policy_chosen, policy_rejected, reference_chosen, reference_rejected,
                beta=0.1, label_smoothing=0.0):
    h = _margin(policy_chosen, policy_rejected, reference_chosen, reference_rejected)
    return _smoothed(beta * h.detach(), label_smoothing)


@dpo_loss.mistake(
    "Only the chosen answers send a gradient: the rejected ones are detached. Half of the method"
    " is missing."
)
def dpo_rejected_cut_off(policy_chosen, policy_rejected, reference_chosen, reference_rejected,
                         beta=0.1, label_smoothing=0.0):
    h = _margin(policy_chosen, policy_rejected.detach(), reference_chosen, reference_rejected)
    return _smoothed(beta * h, label_smoothing)


def _pair_case(g):
    """Log-probabilities of pairs; now and then margins at which a sigmoid rounds to 0."""
    B, far = g.size(2, 7), g.choice([1.0, 900.0])
    chosen, rejected = -g.uniform(5.0, 15.0, B) * far, -g.uniform(5.0, 15.0, B) * far
    return dict(
        policy_chosen=_rounded(chosen), policy_rejected=_rounded(rejected),
        reference_chosen=_rounded(chosen + far * g.normal(B, std=2.0)),
        reference_rejected=_rounded(rejected + far * g.normal(B, std=2.0)),
    )


def _with_leaves(case):
    """The case with leaves for what the policy gives; the reference never has a gradient."""
    names = [name for name in case if name.startswith("policy")]
    x = leaves({name: case[name] for name in names})
    return {**case, **x}, x


def _margin(policy_chosen, policy_rejected, reference_chosen, reference_rejected):
    return (policy_chosen - reference_chosen) - (policy_rejected - reference_rejected)


def _terms(h, label_smoothing):
    return -(1 - label_smoothing) * F.logsigmoid(h) - label_smoothing * F.logsigmoid(-h)


def _smoothed(h, label_smoothing):
    return _terms(h, label_smoothing).mean()


# -- 07.7 ---------------------------------------------------------------------------------------

dpo_gradient = exercise("dpo_gradient", number="07.7", points=2, uses=["implicit_rewards"])


@dpo_gradient.reference
def both_gradients(
    policy_chosen, policy_rejected, reference_chosen, reference_rejected, beta=0.1
):
    chosen = beta * (policy_chosen - reference_chosen)
    rejected = beta * (policy_rejected - reference_rejected)
    pull = beta * (rejected - chosen).sigmoid() / len(chosen)
    return -pull, pull


@dpo_gradient.cases(visible=4, fresh=12)
def pairs_to_differentiate(g):
    return _pair_case(g) | dict(beta=g.choice([0.1, 0.4, 0.7]))


@dpo_gradient.probe
def two_gradients(answer, case):
    chosen, rejected = answer.dpo_gradient(**case)
    return dict(chosen=chosen, rejected=rejected, inputs_after=case)


@dpo_gradient.mistake(
    "The weight is that of a pair which is *right*: σ(r̂_w − r̂_l). DPO pulls hardest where it is"
    " wrong: σ(r̂_l − r̂_w)."
)
def weight_turned_round(
    policy_chosen, policy_rejected, reference_chosen, reference_rejected, beta=0.1
):
    return both_gradients(
        policy_rejected, policy_chosen, reference_rejected, reference_chosen, beta
    )


@dpo_gradient.mistake(
    "Both signs are turned round: this is minus the gradient, the direction in which the policy is"
    " moved. The loss falls where the chosen answer's log-probability rises."
)
def signs_turned_round(
    policy_chosen, policy_rejected, reference_chosen, reference_rejected, beta=0.1
):
    return both_gradients(
        policy_chosen, policy_rejected, reference_chosen, reference_rejected, beta
    )[::-1]


@dpo_gradient.mistake(
    "The factor β in front is missing: it comes out of the chain rule, in addition to the β inside."
)
def gradient_without_beta(
    policy_chosen, policy_rejected, reference_chosen, reference_rejected, beta=0.1
):
    return _scaled(both_gradients(
        policy_chosen, policy_rejected, reference_chosen, reference_rejected, beta
    ), 1 / beta)


@dpo_gradient.mistake(
    "The 1/B is missing: the loss is a mean over B pairs."
)
def gradient_of_sum(
    policy_chosen, policy_rejected, reference_chosen, reference_rejected, beta=0.1
):
    return _scaled(both_gradients(
        policy_chosen, policy_rejected, reference_chosen, reference_rejected, beta
    ), len(policy_chosen))


@dpo_gradient.mistake(
    "This is the derivative of σ, σ(h)·σ(−h), which vanishes on both sides. Of *log* σ it is σ(−h):"
    " a pair that is badly wrong pulls with full weight."
)
def derivative_of_sigmoid(
    policy_chosen, policy_rejected, reference_chosen, reference_rejected, beta=0.1
):
    h = beta * _margin(policy_chosen, policy_rejected, reference_chosen, reference_rejected)
    pull = beta * h.sigmoid() * (-h).sigmoid() / len(h)
    return -pull, pull


@dpo_gradient.mistake(
    "Both gradients have one sign: the rejected answer is pushed the same way as the chosen one. In"
    " the margin it stands with a minus."
)
def both_signs_alike(
    policy_chosen, policy_rejected, reference_chosen, reference_rejected, beta=0.1
):
    down, _ = both_gradients(
        policy_chosen, policy_rejected, reference_chosen, reference_rejected, beta
    )
    return down, down


@dpo_gradient.mistake(
    "The weight forgets the reference: r̂ is β·(log π − log π_ref)."
)
def weight_without_reference(
    policy_chosen, policy_rejected, reference_chosen, reference_rejected, beta=0.1
):
    zero = torch.zeros_like(policy_chosen)
    return both_gradients(policy_chosen, policy_rejected, zero, zero, beta)


@dpo_gradient.mistake(
    "The weight lacks the β inside the sigmoid: it compares log-ratios instead of rewards."
)
def weight_without_beta(
    policy_chosen, policy_rejected, reference_chosen, reference_rejected, beta=0.1
):
    return _scaled(both_gradients(
        policy_chosen, policy_rejected, reference_chosen, reference_rejected, 1.0
    ), beta)


def _scaled(pair, factor):
    return tuple(part * factor for part in pair)


# -- 07.8 ---------------------------------------------------------------------------------------

reward_accuracy = exercise(
    "reward_accuracy", number="07.8", points=1, reference=f"{DPO}:reward_accuracy"
)


@reward_accuracy.cases(visible=5, fresh=12)
def rewards_of_pairs(g):
    B = g.size(3, 9)
    chosen, rejected = g.integers(-2, 3, B) / 2, g.integers(-2, 3, B) / 2
    rejected[0] = chosen[0]                         # a tie
    rejected[1] = chosen[1] - 0.5
    rejected[2] = chosen[2] + 0.02                  # close, and no tie
    return dict(chosen_rewards=chosen.float(), rejected_rewards=rejected.float())


@reward_accuracy.probe
def share(answer, case):
    return dict(share=torch.as_tensor(answer.reward_accuracy(**case)).float(), inputs_after=case)


@reward_accuracy.mistake(
    "A tie counts as wrong. Before training every implicit reward is 0, and this would report an"
    " accuracy of 0 where 0.5 is honest."
)
def ties_lost(chosen_rewards, rejected_rewards):
    return (chosen_rewards > rejected_rewards).float().mean()


@reward_accuracy.mistake(
    "A tie counts as right. Before training every implicit reward is 0, and this would report an"
    " accuracy of 100%."
)
def ties_won(chosen_rewards, rejected_rewards):
    return (chosen_rewards >= rejected_rewards).float().mean()


@reward_accuracy.mistake("This is the share of pairs that are *wrong*.")
def share_of_wrong(chosen_rewards, rejected_rewards):
    return 1 - _accuracy(chosen_rewards, rejected_rewards)


@reward_accuracy.mistake("A number of pairs; their share is asked.")
def count(chosen_rewards, rejected_rewards):
    return _accuracy(chosen_rewards, rejected_rewards) * len(chosen_rewards)


@reward_accuracy.mistake(
    "This asks whether the chosen answer's reward is positive. Both may be negative, and often are;"
    " only the comparison counts."
)
def positive_rewards(chosen_rewards, rejected_rewards):
    return _accuracy(chosen_rewards, torch.zeros_like(chosen_rewards))


@reward_accuracy.mistake("This is the mean margin; the accuracy counts pairs, by how much or not.")
def mean_margin(chosen_rewards, rejected_rewards):
    return (chosen_rewards - rejected_rewards).mean()


@reward_accuracy.mistake(
    "Ties are left out of the count altogether: of a policy that prefers nothing the accuracy would"
    " be 0/0."
)
def ties_dropped(chosen_rewards, rejected_rewards):
    differ = chosen_rewards != rejected_rewards
    return (chosen_rewards > rejected_rewards)[differ].float().mean()


@reward_accuracy.mistake(
    "Nearly equal rewards count as a tie. Implicit rewards are small at first; however small the"
    " difference, the pair is decided."
)
def ties_by_tolerance(chosen_rewards, rejected_rewards):
    tie = (chosen_rewards - rejected_rewards).abs() < 0.1
    return torch.where(tie, 0.5, (chosen_rewards > rejected_rewards).float()).mean()


@reward_accuracy.mistake(
    "This is the mean of σ(margin), the model's own confidence. The accuracy counts pairs."
)
def mean_confidence(chosen_rewards, rejected_rewards):
    return (chosen_rewards - rejected_rewards).sigmoid().mean()


for mutant in ("becomes `chosen_rewards > rejected_rewards`",
               "becomes `chosen_rewards == rejected_rewards`"):
    reward_accuracy.equivalent(mutant, "0.5 times a boolean, or a float plus one, is a float")


def _accuracy(chosen, rejected):
    return ((chosen > rejected).float() + 0.5 * (chosen == rejected).float()).mean()


# -- 07.9 ---------------------------------------------------------------------------------------

ipo_loss = exercise(
    "ipo_loss", number="07.9", points=2, reference=f"{DPO}:ipo_loss", uses=["implicit_rewards"],
    takes_away=[f"{DPO}:reward_margin"],
)


@ipo_loss.cases(visible=4, fresh=12)
def pairs_for_ipo(g):
    B = g.size(2, 7)
    chosen, rejected = -g.uniform(5.0, 15.0, B), -g.uniform(5.0, 15.0, B)
    return dict(
        policy_chosen=chosen, policy_rejected=rejected,
        reference_chosen=_rounded(chosen + g.normal(B, std=3.0)),
        reference_rejected=_rounded(rejected + g.normal(B, std=3.0)),
        beta=g.choice([0.1, 0.25, 0.4]),
    )


@ipo_loss.probe
def ipo_loss_and_gradient(answer, case):
    case, x = _with_leaves(case)
    loss = answer.ipo_loss(**case)
    return dict(loss=loss, grad=grads(loss, x), inputs_after=case)


@ipo_loss.mistake(
    "h is made of implicit rewards, β·log-ratios. In IPO's loss h is the difference of the"
    " log-ratios themselves; β only sets the target 1/(2β)."
)
def ipo_of_rewards(
    policy_chosen, policy_rejected, reference_chosen, reference_rejected, beta=0.1
):
    h = _margin(policy_chosen, policy_rejected, reference_chosen, reference_rejected)
    return (beta * h - 1 / (2 * beta)).square().mean()


@ipo_loss.mistake(
    "`1 / 2 * beta` is β/2: Python goes from left to right. The target is 1/(2β), large where β is"
    " small."
)
def target_upside_down(
    policy_chosen, policy_rejected, reference_chosen, reference_rejected, beta=0.1
):
    h = _margin(policy_chosen, policy_rejected, reference_chosen, reference_rejected)
    return (h - 1 / 2 * beta).square().mean()


@ipo_loss.mistake("The target is 1/β here; it is half of that, 1/(2β).")
def target_twice(
    policy_chosen, policy_rejected, reference_chosen, reference_rejected, beta=0.1
):
    h = _margin(policy_chosen, policy_rejected, reference_chosen, reference_rejected)
    return (h - 1 / beta).square().mean()


@ipo_loss.mistake("The square is missing: the absolute distance from the target.")
def not_squared(
    policy_chosen, policy_rejected, reference_chosen, reference_rejected, beta=0.1
):
    h = _margin(policy_chosen, policy_rejected, reference_chosen, reference_rejected)
    return (h - 1 / (2 * beta)).abs().mean()


@ipo_loss.mistake(
    "Chosen and rejected are turned round: the margin is driven to −1/(2β)."
)
def ipo_flipped(
    policy_chosen, policy_rejected, reference_chosen, reference_rejected, beta=0.1
):
    h = _margin(policy_rejected, policy_chosen, reference_rejected, reference_chosen)
    return (h - 1 / (2 * beta)).square().mean()


@ipo_loss.mistake("The reference is not used.")
def ipo_no_reference(
    policy_chosen, policy_rejected, reference_chosen, reference_rejected, beta=0.1
):
    return (policy_chosen - policy_rejected - 1 / (2 * beta)).square().mean()


@ipo_loss.mistake("A sum over the pairs where the mean is asked.")
def ipo_sum(
    policy_chosen, policy_rejected, reference_chosen, reference_rejected, beta=0.1
):
    h = _margin(policy_chosen, policy_rejected, reference_chosen, reference_rejected)
    return (h - 1 / (2 * beta)).square().sum()


@ipo_loss.mistake(
    "The mean is taken before the square: pairs far above the target make up for pairs far below,"
    " and the loss is 0 though none is there."
)
def mean_before_square(
    policy_chosen, policy_rejected, reference_chosen, reference_rejected, beta=0.1
):
    h = _margin(policy_chosen, policy_rejected, reference_chosen, reference_rejected)
    return (h - 1 / (2 * beta)).mean().square()


@ipo_loss.mistake(
    "Margins beyond the target cost nothing here. IPO pulls them back: that is what keeps it near"
    " the reference."
)
def one_sided(
    policy_chosen, policy_rejected, reference_chosen, reference_rejected, beta=0.1
):
    h = _margin(policy_chosen, policy_rejected, reference_chosen, reference_rejected)
    return (1 / (2 * beta) - h).clamp(min=0).square().mean()


# -- 07.10 --------------------------------------------------------------------------------------

simpo_loss = exercise("simpo_loss", number="07.10", points=2, reference=f"{DPO}:simpo_loss")


@simpo_loss.cases(visible=5, fresh=12)
def mean_log_probs_of_pairs(g):
    B, far = g.size(2, 7), g.choice([1.0, 1.0, 200.0])
    chosen = -g.uniform(0.1, 2.5, B) * far
    rejected = -g.uniform(0.1, 2.5, B) * far
    return dict(
        policy_chosen_mean=_rounded(chosen), policy_rejected_mean=_rounded(rejected),
        beta=g.choice([2.0, 2.5, 4.0]), margin=g.choice([0.5, 1.0, 1.5]),
    )


@simpo_loss.probe
def simpo_loss_and_gradient(answer, case):
    case, x = _with_leaves(case)
    loss = answer.simpo_loss(**case)
    return dict(loss=loss, grad=grads(loss, x), inputs_after=case)


@simpo_loss.mistake(
    "The margin is added. It is taken off: the difference must *exceed* γ before the loss is"
    " content."
)
def margin_added(policy_chosen_mean, policy_rejected_mean, beta=2.0, margin=1.0):
    return _simpo(policy_chosen_mean - policy_rejected_mean, beta, -margin)


@simpo_loss.mistake("γ is not used.")
def without_margin(policy_chosen_mean, policy_rejected_mean, beta=2.0, margin=1.0):
    return _simpo(policy_chosen_mean - policy_rejected_mean, beta, 0.0)


@simpo_loss.mistake(
    "γ is multiplied by β. It is in units of the reward: β·(m_w − m_l) − γ."
)
def margin_times_beta(policy_chosen_mean, policy_rejected_mean, beta=2.0, margin=1.0):
    return _simpo(policy_chosen_mean - policy_rejected_mean, beta, beta * margin)


@simpo_loss.mistake("β is not used.")
def simpo_without_beta(policy_chosen_mean, policy_rejected_mean, beta=2.0, margin=1.0):
    return _simpo(policy_chosen_mean - policy_rejected_mean, 1.0, margin)


@simpo_loss.mistake("Chosen and rejected are turned round: this trains towards the rejected one.")
def simpo_flipped(policy_chosen_mean, policy_rejected_mean, beta=2.0, margin=1.0):
    return _simpo(policy_rejected_mean - policy_chosen_mean, beta, margin)


@simpo_loss.mistake("The minus is missing: a loss is made smaller, a log-likelihood larger.")
def simpo_no_minus(policy_chosen_mean, policy_rejected_mean, beta=2.0, margin=1.0):
    return -_simpo(policy_chosen_mean - policy_rejected_mean, beta, margin)


@simpo_loss.mistake("A sum over the pairs where the mean is asked.")
def simpo_sum(policy_chosen_mean, policy_rejected_mean, beta=2.0, margin=1.0):
    total = _simpo(policy_chosen_mean - policy_rejected_mean, beta, margin)
    return total * len(policy_chosen_mean)


@simpo_loss.mistake(
    "The logarithm is taken of a sigmoid that has rounded to 0. `F.logsigmoid` stays finite."
)
def simpo_log_of_sigmoid(policy_chosen_mean, policy_rejected_mean, beta=2.0, margin=1.0):
    h = beta * (policy_chosen_mean - policy_rejected_mean) - margin
    return -h.sigmoid().log().mean()


@simpo_loss.mistake(
    "A hinge, max(0, γ − h): SimPO puts h − γ into −log σ, which never becomes flat."
)
def hinge(policy_chosen_mean, policy_rejected_mean, beta=2.0, margin=1.0):
    h = beta * (policy_chosen_mean - policy_rejected_mean)
    return (margin - h).clamp(min=0).mean()


@simpo_loss.mistake(
    "γ is divided by β. It is in units of the reward, β·(m_w − m_l), and taken off as it is."
)
def margin_over_beta(policy_chosen_mean, policy_rejected_mean, beta=2.0, margin=1.0):
    return _simpo(policy_chosen_mean - policy_rejected_mean, beta, margin / beta)


@simpo_loss.mistake(
    "γ stands outside −log σ, where it is a constant: it shifts the loss and teaches nothing."
)
def margin_outside(policy_chosen_mean, policy_rejected_mean, beta=2.0, margin=1.0):
    return _simpo(policy_chosen_mean - policy_rejected_mean, beta, 0.0) + margin


@simpo_loss.mistake(
    "γ is taken off the loss, outside −log σ, where it is a constant and teaches nothing."
)
def margin_off_the_loss(policy_chosen_mean, policy_rejected_mean, beta=2.0, margin=1.0):
    return _simpo(policy_chosen_mean - policy_rejected_mean, beta, 0.0) - margin


def _simpo(difference, beta, margin):
    return -F.logsigmoid(beta * difference - margin).mean()


# -- 07.11 --------------------------------------------------------------------------------------

token_credit = exercise("token_credit", number="07.11", points=2, uses=["implicit_rewards"])


@token_credit.reference
def share_of_each_token(policy_log_probs, reference_log_probs, mask, beta=0.1):
    return beta * (policy_log_probs - reference_log_probs) * mask[:, 1:]


@token_credit.cases(visible=4, fresh=12)
def log_probs_of_tokens(g):
    _, mask, _ = _masks(g, g.size(2, 5))
    B, T = mask.shape
    policy = -g.uniform(0.05, 3.0, B, T - 1)
    return dict(
        policy_log_probs=policy,
        reference_log_probs=_rounded(policy + g.normal(B, T - 1)).clamp(max=-0.01),
        mask=mask, beta=g.choice([0.1, 0.4, 0.7]),
    )


@token_credit.mistake(
    "The mask is off by one. It has the shape of the tokens, and entry t of the log-probabilities"
    " is about token t + 1: `mask[:, 1:]` goes with them."
)
def credit_mask_off(policy_log_probs, reference_log_probs, mask, beta=0.1):
    return beta * (policy_log_probs - reference_log_probs) * mask[:, :-1]


@token_credit.mistake(
    "The mask is not used: the prompt's tokens and padding have no part in the answer's reward."
)
def credit_unmasked(policy_log_probs, reference_log_probs, mask, beta=0.1):
    return beta * (policy_log_probs - reference_log_probs)


@token_credit.mistake("β is missing: the credits must add up to the implicit reward.")
def credit_without_beta(policy_log_probs, reference_log_probs, mask, beta=0.1):
    return share_of_each_token(policy_log_probs, reference_log_probs, mask, 1.0)


@token_credit.mistake(
    "Summed over the tokens: that is the implicit reward. One number a token is asked."
)
def credit_summed(policy_log_probs, reference_log_probs, mask, beta=0.1):
    return share_of_each_token(policy_log_probs, reference_log_probs, mask, beta).sum(-1)


@token_credit.mistake(
    "Divided by the answer's sum, so that the credits add up to 1. That throws the sign away where"
    " the reward is negative, and explodes where it is near 0."
)
def credit_normalised(policy_log_probs, reference_log_probs, mask, beta=0.1):
    credit = share_of_each_token(policy_log_probs, reference_log_probs, mask, beta)
    return credit / credit.sum(-1, keepdim=True)


@token_credit.mistake("The ratio is turned round: tokens that have become likelier earn credit.")
def credit_turned_round(policy_log_probs, reference_log_probs, mask, beta=0.1):
    return share_of_each_token(reference_log_probs, policy_log_probs, mask, beta)


@token_credit.mistake(
    "Divided by the number of tokens: then the credits add up to a mean, and DPO's reward is a sum."
)
def credit_averaged(policy_log_probs, reference_log_probs, mask, beta=0.1):
    credit = share_of_each_token(policy_log_probs, reference_log_probs, mask, beta)
    return credit / mask[:, 1:].sum(-1, keepdim=True)


@token_credit.mistake(
    "The reward is spread evenly: every token gets the answer's mean. The *gradient* is even; the"
    " credits are each token's own log-ratio."
)
def credit_spread(policy_log_probs, reference_log_probs, mask, beta=0.1):
    credit = share_of_each_token(policy_log_probs, reference_log_probs, mask, beta)
    counts = mask[:, 1:]
    return credit.sum(-1, keepdim=True) / counts.sum(-1, keepdim=True) * counts


@token_credit.mistake("The signs are gone: tokens that have become rarer have negative credit.")
def credit_absolute(policy_log_probs, reference_log_probs, mask, beta=0.1):
    return share_of_each_token(policy_log_probs, reference_log_probs, mask, beta).abs()


@token_credit.mistake(
    "A running total: each entry is the reward of the answer so far. What is asked is the term"
    " that the token itself adds."
)
def credit_running(policy_log_probs, reference_log_probs, mask, beta=0.1):
    return share_of_each_token(policy_log_probs, reference_log_probs, mask, beta).cumsum(-1)


# -- 07.12 --------------------------------------------------------------------------------------

mean_answer_log_probs = exercise(
    "mean_answer_log_probs", number="07.12", points=2, uses=["sequence_log_probs"],
    takes_away=[
        f"{LOGS}:mean_log_probs", f"{LOGS}:answer_log_probs", "rlhf_minimal.sft:sft_loss",
        "rlhf_minimal.pairs:pair_log_probs", "rlhf_minimal.dpo:reference_log_probs",
    ],
)


@mean_answer_log_probs.reference
def answers_alone(logits, tokens, attention_mask, prompt_lengths):
    places = torch.arange(tokens.shape[1])
    mask = attention_mask * (places >= prompt_lengths[:, None])
    log_probs = logits[:, :-1].log_softmax(-1).gather(-1, tokens[:, 1:, None]).squeeze(-1)
    return (log_probs * mask[:, 1:]).sum(-1) / mask.sum(-1)


@mean_answer_log_probs.cases(visible=5, fresh=12)
def padded_rows(g):
    B, V = g.size(2, 5), g.size(3, 6)
    attention, _, starts = _masks(g, B)
    shape = attention.shape
    return dict(
        logits=g.normal(*shape, V), tokens=g.integers(0, V, *shape), attention_mask=attention,
        prompt_lengths=starts,
    )


@mean_answer_log_probs.probe
def means_and_gradient(answer, case):
    logits = case["logits"].clone().requires_grad_()
    means = answer.mean_answer_log_probs(**{**case, "logits": logits})
    return dict(means=means, grad=grads(means, {"logits": logits}), inputs_after=case)


@mean_answer_log_probs.mistake(
    "This is the code as found: the prompt's tokens are in the sum and in the count."
)
def as_found(logits, tokens, attention_mask, prompt_lengths):
    return _sums(logits, tokens, attention_mask) / attention_mask[:, 1:].sum(-1)


@mean_answer_log_probs.mistake(
    "The sum is mended. It is still divided by all tokens, the prompt's too: a long question would"
    " make every answer to it seem likely."
)
def divisor_as_found(logits, tokens, attention_mask, prompt_lengths):
    mask = _answers(attention_mask, prompt_lengths)
    return _sums(logits, tokens, mask) / attention_mask[:, 1:].sum(-1)


@mean_answer_log_probs.mistake(
    "The count is mended. The prompt's log-probabilities are still in the sum."
)
def sum_as_found(logits, tokens, attention_mask, prompt_lengths):
    mask = _answers(attention_mask, prompt_lengths)
    return _sums(logits, tokens, attention_mask) / mask.sum(-1)


@mean_answer_log_probs.mistake("This is the sum over the answer; SimPO wants the mean a token.")
def sum_for_mean(logits, tokens, attention_mask, prompt_lengths):
    return _sums(logits, tokens, _answers(attention_mask, prompt_lengths))


@mean_answer_log_probs.mistake(
    "Padding counts: everything behind the prompt. Multiply by the attention mask."
)
def padding_in(logits, tokens, attention_mask, prompt_lengths):
    mask = _answers(torch.ones_like(attention_mask), prompt_lengths)
    return _sums(logits, tokens, mask) / mask.sum(-1)


@mean_answer_log_probs.mistake(
    "The prompt's last token counts too: with n prompt tokens the answer begins at position n,"
    " counted from 0."
)
def starts_too_early(logits, tokens, attention_mask, prompt_lengths):
    mask = _answers(attention_mask, prompt_lengths - 1)
    return _sums(logits, tokens, mask) / mask.sum(-1)


@mean_answer_log_probs.mistake(
    "The answer's first token is lost: > where ≥ is needed, or a shift made twice."
)
def starts_too_late(logits, tokens, attention_mask, prompt_lengths):
    mask = _answers(attention_mask, prompt_lengths + 1)
    return _sums(logits, tokens, mask) / mask.sum(-1)


@mean_answer_log_probs.mistake(
    "One prompt length is used for all rows; each row has its own."
)
def one_length(logits, tokens, attention_mask, prompt_lengths):
    mask = _answers(attention_mask, prompt_lengths.min().expand_as(prompt_lengths))
    return _sums(logits, tokens, mask) / mask.sum(-1)


@mean_answer_log_probs.mistake(
    "Divided by the width of the batch, padding included."
)
def by_width(logits, tokens, attention_mask, prompt_lengths):
    mask = _answers(attention_mask, prompt_lengths)
    return _sums(logits, tokens, mask) / (tokens.shape[1] - 1)


mean_answer_log_probs.equivalent("`-1` becomes `1`", "the last dimension of (B, T) is dimension 1")


def _answers(attention_mask, prompt_lengths):
    places = torch.arange(attention_mask.shape[1])
    return attention_mask * (places >= prompt_lengths[:, None]).long()
