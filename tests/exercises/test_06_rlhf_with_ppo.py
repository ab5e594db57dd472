"""Lesson 06: RLHF with PPO: the optimum, best-of-n, rewards and advantages a token, whitening."""

import torch
import torch.nn.functional as F
from torch import nn

from autograder import exercise

PACKAGE = "rlhf_minimal.rlhf"

# -- 06.1 ---------------------------------------------------------------------------------------

optimal_policy = exercise(
    "optimal_policy", number="06.1", points=2, reference="rlhf_minimal.exact:optimal_policy",
    takes_away=["rlhf_minimal.exact:optimality_gap"],
)


@optimal_policy.cases(visible=7, fresh=14)
def a_reference_and_rewards(g):
    shape = g.choice([(g.size(2, 6),), (g.size(2, 4), g.size(3, 6)), (2, 3, 4)])
    reference = g.normal(*shape).log_softmax(-1)
    if g.bool(0.3):
        first = torch.zeros(shape[-1]).index_fill(0, torch.tensor([0]), -torch.inf)
        reference = (reference + first).log_softmax(-1)
    spread = g.choice([1.0, 1.0, 40.0])      # e^400 is no number in float32
    beta = g.choice([0.1, 0.4, 2.0])
    return dict(reference_log_probs=reference, rewards=g.normal(*shape, std=spread), beta=beta)


@optimal_policy.mistake(
    "The reward is multiplied by β, not divided. A larger β must bring π* closer to the reference;"
    " so it takes it farther away."
)
def times_beta(reference_log_probs, rewards, beta):
    return (reference_log_probs + rewards * beta).log_softmax(-1)


@optimal_policy.mistake(
    "β is not used: at whatever price, the same policy."
)
def without_beta(reference_log_probs, rewards, beta):
    return (reference_log_probs + rewards).log_softmax(-1)


@optimal_policy.mistake(
    "The reference is left out: this maximises reward and entropy, and moves to answers which"
    " nobody would write."
)
def without_reference(reference_log_probs, rewards, beta):
    return (rewards / beta).log_softmax(-1)


@optimal_policy.mistake(
    "Not normalised: log Z(x) has to be taken off, so that the probabilities sum to 1."
)
def without_z(reference_log_probs, rewards, beta):
    return reference_log_probs + rewards / beta


@optimal_policy.mistake(
    "These are probabilities; their logarithms are asked."
)
def as_probabilities(reference_log_probs, rewards, beta):
    return (reference_log_probs + rewards / beta).softmax(-1)


@optimal_policy.mistake(
    "exp(r/β) is computed as a number and overflows: e^89 is too large for float32, and inf/inf is"
    " NaN. Stay in log space: add log π_ref and r/β, then `log_softmax`."
)
def overflowing(reference_log_probs, rewards, beta):
    weights = reference_log_probs.exp() * (rewards / beta).exp()
    return (weights / weights.sum(-1, keepdim=True)).log()


@optimal_policy.mistake(
    "The logarithm is taken after the softmax: a small probability rounds to 0 in float32, and its"
    " logarithm is −∞. `log_softmax` does both at once."
)
def log_after_softmax(reference_log_probs, rewards, beta):
    return (reference_log_probs + rewards / beta).softmax(-1).log()


@optimal_policy.mistake(
    "Z is taken over the first dimension. Each prompt has a Z of its own, the sum over its answers:"
    " the last dimension."
)
def over_prompts(reference_log_probs, rewards, beta):
    return (reference_log_probs + rewards / beta).log_softmax(0)


@optimal_policy.mistake(
    "One Z for all prompts together. Each prompt's answers must sum to 1 by themselves."
)
def one_z(reference_log_probs, rewards, beta):
    tilted = reference_log_probs + rewards / beta
    return tilted - tilted.flatten().logsumexp(0)


@optimal_policy.mistake(
    "The reward is taken from the log-probability: this is the policy that *avoids* reward."
)
def wrong_sign(reference_log_probs, rewards, beta):
    return (reference_log_probs - rewards / beta).log_softmax(-1)


@optimal_policy.mistake(
    "The reference is divided by β as well: β = 0.1 would raise π_ref to the tenth power. Only the"
    " reward is divided."
)
def reference_tempered(reference_log_probs, rewards, beta):
    return ((reference_log_probs + rewards) / beta).log_softmax(-1)


@optimal_policy.mistake(
    "The reference's probabilities are added where their logarithms belong: a product of"
    " probability and exponential is a sum of *logarithms*."
)
def probabilities_added(reference_log_probs, rewards, beta):
    return (reference_log_probs.exp() + rewards / beta).log_softmax(-1)


@optimal_policy.mistake(
    "This is π_ref^β·e^r: the exponent was to be divided by β as a whole, and only the reference"
    " got its β. It is log π_ref + r/β."
)
def beta_on_the_reference(reference_log_probs, rewards, beta):
    return (beta * reference_log_probs + rewards).log_softmax(-1)


@optimal_policy.mistake(
    "Z lacks the reference's weights: it is Σ π_ref·e^{r/β}, and this takes off Σ e^{r/β}. The"
    " probabilities do not sum to 1."
)
def z_without_reference(reference_log_probs, rewards, beta):
    return reference_log_probs + (rewards / beta).log_softmax(-1)


@optimal_policy.mistake(
    "The reference comes as logarithms already. Their logarithm once more is that of a negative"
    " number: NaN."
)
def logarithm_twice(reference_log_probs, rewards, beta):
    return (reference_log_probs.log() + rewards / beta).log_softmax(-1)


# -- 06.2 ---------------------------------------------------------------------------------------

best_of_n = exercise("best_of_n", number="06.2", points=2,
                     reference="rlhf_minimal.rollouts:best_of_n")

END, FIRST = 1, 10


class Scripted(nn.Module):
    """Gives the j-th asked-for answer to prompt p: token FIRST + j, then the end.

    Which answer comes does not depend on the order in which prompts are asked.
    """

    def __init__(self, prompts, vocabulary):
        super().__init__()
        self.prompts, self.vocabulary = prompts, vocabulary
        self.asked = [0] * len(prompts)
        self.anchor = nn.Parameter(torch.zeros(1))

    def forward(self, tokens, attention_mask=None):
        following = [self._next(t[m == 1].tolist()) for t, m in zip(tokens, attention_mask,
                                                                    strict=True)]
        logits = F.one_hot(torch.tensor(following), self.vocabulary) * 1e4
        return logits[:, None].expand(-1, tokens.shape[1], -1)

    def _next(self, context):
        if context not in self.prompts:
            return END
        place = self.prompts.index(context)
        self.asked[place] += 1
        return FIRST + self.asked[place] - 1


@best_of_n.cases(visible=5, fresh=10)
def prompts_and_scores(g):
    B, n = g.size(2, 5), g.size(2, 6)
    lengths = [g.integer(1, 4) for _ in range(B)]
    prompts = [[2 + b, *[9] * (length - 1)] for b, length in enumerate(lengths)]
    return dict(prompts=prompts, n=n, scores=g.normal(B, n))


@best_of_n.probe
def what_was_chosen(answer, case):
    prompts, n, scores = case["prompts"], case["n"], case["scores"]
    policy = Scripted(prompts, FIRST + 4 * n * len(prompts))

    def score(rollouts):
        first = rollouts.tokens.gather(-1, (rollouts.mask != 0).long().argmax(-1)[:, None])[:, 0]
        start = rollouts.attention_mask.argmax(-1)
        which = rollouts.tokens.gather(-1, start[:, None])[:, 0] - 2
        return scores[which, (first - FIRST) % n]

    generator = torch.Generator().manual_seed(0)
    before = generator.get_state()
    options = dict(max_new_tokens=3, end_id=END, pad_id=0, generator=generator)
    best = answer.best_of_n(policy, score, prompts, n, **options)
    returned = type(best).__name__
    if returned != "Rollouts":
        return dict(returned=returned)
    prompt = best._replace(mask=best.attention_mask - best.mask).answers()
    return dict(returned=returned, answered=prompt, answers=best.answers(),
                sampled_per_prompt=policy.asked,
                generator_moved=int((generator.get_state() != before).any()))


def _sampled(policy, score, repeated, sampling):
    from rlhf_minimal.rollouts import sample_rollouts
    rollouts = sample_rollouts(policy, repeated, **sampling)
    return rollouts, score(rollouts)


def _beside(policy, score, prompts, n, sampling):
    return _sampled(policy, score, [p for p in prompts for _ in range(n)], sampling)


@best_of_n.mistake(
    "The prompts are repeated as a whole (`prompts * n`), and cut into groups as if each one's"
    " copies stood side by side: every group mixes different prompts."
)
def tiled(policy, score, prompts, n, **sampling):
    rollouts, scores = _sampled(policy, score, list(prompts) * n, sampling)
    best = scores.view(len(prompts), n).argmax(-1)
    return rollouts.rows(torch.arange(len(prompts)) * n + best)


@best_of_n.mistake(
    "The scores are cut into n groups of B; with a prompt's copies side by side they are B groups"
    " of n: `view(B, n)`, a row a prompt."
)
def cut_the_other_way(policy, score, prompts, n, **sampling):
    rollouts, scores = _beside(policy, score, prompts, n, sampling)
    best = scores.view(n, len(prompts)).argmax(0)
    return rollouts.rows(torch.arange(len(prompts)) * n + best)


@best_of_n.mistake(
    "`argmax` counts within each group, and is used as if it counted all B·n rows: every answer is"
    " one to the first prompt. Add b·n for prompt b."
)
def without_offset(policy, score, prompts, n, **sampling):
    rollouts, scores = _beside(policy, score, prompts, n, sampling)
    return rollouts.rows(scores.view(len(prompts), n).argmax(-1))


@best_of_n.mistake("This keeps the *worst* of n.")
def worst(policy, score, prompts, n, **sampling):
    rollouts, scores = _beside(policy, score, prompts, n, sampling)
    best = scores.view(len(prompts), n).argmin(-1)
    return rollouts.rows(torch.arange(len(prompts)) * n + best)


@best_of_n.mistake(
    "One answer remains, the best over all prompts. Each prompt needs its own."
)
def single_winner(policy, score, prompts, n, **sampling):
    rollouts, scores = _beside(policy, score, prompts, n, sampling)
    return rollouts.rows(scores.argmax()[None])


@best_of_n.mistake(
    "These are the B best-scored of all B·n answers: an easy prompt comes several times, a hard one"
    " not at all. Choose within each prompt."
)
def top_of_all(policy, score, prompts, n, **sampling):
    rollouts, scores = _beside(policy, score, prompts, n, sampling)
    return rollouts.rows(scores.topk(len(prompts)).indices)


@best_of_n.mistake("The first answer to each prompt is kept, whatever the scores say.")
def the_first(policy, score, prompts, n, **sampling):
    rollouts, _ = _beside(policy, score, prompts, n, sampling)
    return rollouts.rows(torch.arange(len(prompts)) * n)


@best_of_n.mistake("All B·n answers come back: nothing has been chosen.")
def all_of_them(policy, score, prompts, n, **sampling):
    return _beside(policy, score, prompts, n, sampling)[0]


@best_of_n.mistake("One answer too few is sampled to each prompt: this is best of n − 1.")
def one_too_few(policy, score, prompts, n, **sampling):
    rollouts, scores = _beside(policy, score, prompts, n - 1, sampling)
    best = scores.view(len(prompts), n - 1).argmax(-1)
    return rollouts.rows(torch.arange(len(prompts)) * (n - 1) + best)


@best_of_n.mistake(
    "The answers are sampled with a generator of your own, and the caller's is not used: the same"
    " answers would come at every call. Hand `**sampling` on as it is."
)
def own_generator(policy, score, prompts, n, **sampling):
    sampling["generator"] = torch.Generator().manual_seed(0)
    rollouts, scores = _beside(policy, score, prompts, n, sampling)
    best = scores.view(len(prompts), n).argmax(-1)
    return rollouts.rows(torch.arange(len(prompts)) * n + best)


@best_of_n.mistake(
    "A list of answers comes back. Rollouts are asked: with prompts and masks, to be scored again."
    " `rollouts.rows(index)` picks them."
)
def as_a_list(policy, score, prompts, n, **sampling):
    rollouts, scores = _beside(policy, score, prompts, n, sampling)
    best = scores.view(len(prompts), n).argmax(-1)
    return rollouts.rows(torch.arange(len(prompts)) * n + best).answers()


best_of_n.equivalent("`-1` becomes `1`", "the last dimension of (B, n) is dimension 1")


# -- 06.3 ---------------------------------------------------------------------------------------

kl_shaped_rewards = exercise(
    "kl_shaped_rewards", number="06.3", points=3, reference=f"{PACKAGE}:kl_shaped_rewards",
)


@kl_shaped_rewards.cases(visible=6, fresh=14)
def scores_and_log_probs(g):
    mask = _answers(g)
    B, T = mask.shape
    log_probs = -g.uniform(0.05, 3.0, B, T) * mask
    ref_log_probs = ((log_probs - g.normal(B, T, mean=0.3, std=0.8)) * mask).round(decimals=3)
    return dict(
        scores=g.normal(B), log_probs=log_probs, ref_log_probs=ref_log_probs, mask=mask,
        beta=g.choice([0.0, 0.1, 0.5, 2.0]),
    )


def _answers(g):
    """One run of ones a row, after a prompt and before padding; the first row is longest.

    Now and then the first answer fills its row: whatever wraps round shows there.
    """
    B = g.size(2, 5)
    starts = [g.integer(0, 3) for _ in range(B)]
    lengths = [g.size(1, 5) for _ in range(B)]
    starts[0], lengths[0] = 1, max(lengths) + 1
    T = max(s + n for s, n in zip(starts, lengths, strict=True)) + g.choice([0, 1])
    places = torch.arange(T)
    begin = torch.tensor(starts)[:, None]
    end = begin + torch.tensor(lengths)[:, None]
    mask = ((places >= begin) & (places < end)).long()
    if g.bool(0.25):
        mask[0] = 1
    return mask


def _last(mask):
    """1 at the last token of each answer."""
    following = torch.cat([mask[:, 1:], torch.zeros_like(mask[:, :1])], -1)
    return mask * (1 - following)


@kl_shaped_rewards.mistake(
    "The sign of the KL term is turned round: this *pays* for leaving the reference. (The log-ratio"
    " is log π − log π_ref, and β times it is a cost.)"
)
def paid_for_leaving(scores, log_probs, ref_log_probs, mask, beta):
    return beta * (log_probs - ref_log_probs) * mask + scores[:, None] * _last(mask)


@kl_shaped_rewards.mistake(
    "The score stands in the last column, where most rows have padding: no token earns it. It"
    " belongs to the answer's own last token."
)
def in_the_last_column(scores, log_probs, ref_log_probs, mask, beta):
    rewards = -beta * (log_probs - ref_log_probs) * mask
    rewards[:, -1] += scores
    return rewards


@kl_shaped_rewards.mistake(
    "The score stands at `mask.sum(-1) - 1`, the last token of an answer that begins in column 0."
    " Answers begin after their prompts: look for the last column where the mask is 1."
)
def place_by_length(scores, log_probs, ref_log_probs, mask, beta):
    rewards = -beta * (log_probs - ref_log_probs) * mask
    return rewards.scatter_add(-1, mask.sum(-1, keepdim=True) - 1, scores[:, None])


@kl_shaped_rewards.mistake(
    "Every token gets the whole score: long answers would be paid many times."
)
def score_everywhere(scores, log_probs, ref_log_probs, mask, beta):
    return (scores[:, None] - beta * (log_probs - ref_log_probs)) * mask


@kl_shaped_rewards.mistake(
    "The score is spread evenly over the answer. The sum is right, and the credit is not what is"
    " asked: the judge speaks once, when the answer is finished."
)
def score_spread(scores, log_probs, ref_log_probs, mask, beta):
    share = scores[:, None] / mask.sum(-1, keepdim=True)
    return (share - beta * (log_probs - ref_log_probs)) * mask


@kl_shaped_rewards.mistake(
    "The score stands at the answer's first token. It is known when the last one is written."
)
def score_first(scores, log_probs, ref_log_probs, mask, beta):
    rewards = -beta * (log_probs - ref_log_probs) * mask
    return rewards.scatter_add(-1, mask.argmax(-1, keepdim=True), scores[:, None])


@kl_shaped_rewards.mistake(
    "The whole answer's KL cost stands at its last token. The sum is right, and each token's own"
    " share is known: charge it where it arises, and credit is easier to assign."
)
def cost_at_the_end(scores, log_probs, ref_log_probs, mask, beta):
    log_ratio = ((log_probs - ref_log_probs) * mask).sum(-1)
    return (scores - beta * log_ratio)[:, None] * _last(mask)


@kl_shaped_rewards.mistake("There is no KL cost at all: this is RLHF with β = 0.")
def score_alone(scores, log_probs, ref_log_probs, mask, beta):
    return scores[:, None] * _last(mask)


@kl_shaped_rewards.mistake("β is not used: each nat costs 1, whatever its price.")
def beta_forgotten(scores, log_probs, ref_log_probs, mask, beta):
    return (ref_log_probs - log_probs) * mask + scores[:, None] * _last(mask)


@kl_shaped_rewards.mistake(
    "β multiplies the score too. It is the price of a nat; the score has its own scale."
)
def beta_on_both(scores, log_probs, ref_log_probs, mask, beta):
    return beta * ((ref_log_probs - log_probs) * mask + scores[:, None] * _last(mask))


@kl_shaped_rewards.mistake(
    "The absolute value of the log-ratio is charged. A token that π gives *less* often than the"
    " reference must earn something, or the sum over samples is not the KL."
)
def absolute_ratio(scores, log_probs, ref_log_probs, mask, beta):
    cost = (log_probs - ref_log_probs).abs()
    return -beta * cost * mask + scores[:, None] * _last(mask)


@kl_shaped_rewards.mistake(
    "The costs are averaged over the answer's tokens. The KL of whole answers is a *sum* over"
    " tokens; divided by the length, long answers would stray cheaply."
)
def cost_per_length(scores, log_probs, ref_log_probs, mask, beta):
    cost = (log_probs - ref_log_probs) * mask / mask.sum(-1, keepdim=True)
    return -beta * cost + scores[:, None] * _last(mask)


@kl_shaped_rewards.mistake(
    "At the last token the score *replaces* the cost. It is added to it: the last token has a"
    " log-ratio too."
)
def score_replaces(scores, log_probs, ref_log_probs, mask, beta):
    cost = (log_probs - ref_log_probs) * mask * (1 - _last(mask))
    return -beta * cost + scores[:, None] * _last(mask)


@kl_shaped_rewards.mistake(
    "The KL is charged by the non-negative estimate e^{−l} − 1 + l (k3). Its mean is the same, and"
    " the sum over an answer is no longer β·log(π/π_ref): asked is the log-ratio itself."
)
def k3_charged(scores, log_probs, ref_log_probs, mask, beta):
    ratio = log_probs - ref_log_probs
    return -beta * ((-ratio).exp() - 1 + ratio) * mask + scores[:, None] * _last(mask)


@kl_shaped_rewards.mistake(
    "Only positive log-ratios are charged. A token that π gives *less* often than the reference"
    " must earn something, or the sum over samples is not the KL."
)
def never_earned(scores, log_probs, ref_log_probs, mask, beta):
    cost = (log_probs - ref_log_probs).clamp(min=0)
    return -beta * cost * mask + scores[:, None] * _last(mask)


@kl_shaped_rewards.mistake(
    "The last token is looked for with `roll`, which wraps round: an answer that fills its row is"
    " followed by its own first column, and never ends. Behind the last column comes a 0."
)
def last_by_roll(scores, log_probs, ref_log_probs, mask, beta):
    last = mask * (1 - mask.roll(-1, -1))
    return -beta * (log_probs - ref_log_probs) * mask + scores[:, None] * last


kl_shaped_rewards.equivalent("`-1` becomes `1`", "the last dimension of (B, T) is dimension 1")


# -- 06.4 ---------------------------------------------------------------------------------------

token_advantages = exercise(
    "token_advantages", number="06.4", points=3, reference=f"{PACKAGE}:token_advantages",
    takes_away=["rlhf_minimal.ppo_losses:gae"],
)


@token_advantages.cases(visible=8, fresh=14)
def rewards_and_values(g):
    mask = _answers(g)
    gamma, lam = g.choice([(1.0, 0.95), (1.0, 1.0), (1.0, 0.5), (0.9, 0.8), (0.5, 0.9)])
    return dict(
        rewards=g.normal(*mask.shape) * mask, values=g.normal(*mask.shape), mask=mask,
        gamma=gamma, lam=lam,
    )


@token_advantages.probe
def advantages_and_returns(answer, case):
    inputs = {name: x.clone() if isinstance(x, torch.Tensor) else x for name, x in case.items()}
    advantages, returns = answer.token_advantages(**inputs)
    return dict(advantages=advantages, returns=returns, inputs_after=inputs)


def _backward(rewards, values, mask, gamma, lam, after=True, stop=True, follow=None):
    """The recursion with its parts to be broken."""
    advantages, running = torch.zeros_like(rewards), torch.zeros_like(rewards[:, 0])
    for t in reversed(range(rewards.shape[1])):
        here = mask[:, t]
        inside = mask[:, t + 1] if t + 1 < mask.shape[1] else torch.zeros_like(here)
        later = values[:, t + 1] if t + 1 < mask.shape[1] else torch.zeros_like(values[:, 0])
        bootstrap = later * inside if after else later
        delta = rewards[:, t] + gamma * bootstrap - values[:, t]
        running = delta + gamma * lam * running * (inside if stop else 1)
        advantages[:, t] = running
    return advantages


def _with_returns(advantages, values, mask):
    return advantages * mask, (advantages + values) * mask


@token_advantages.mistake(
    "The value after the answer's last token is read: there the critic sees padding, or the end"
    " itself. The episode is over; what comes after is worth 0."
)
def beyond_the_end(rewards, values, mask, gamma=1.0, lam=0.95):
    advantages = _backward(rewards, values, mask, gamma, lam, after=False)
    return _with_returns(advantages, values, mask)


@token_advantages.mistake(
    "The recursion runs through the padding: the critic's values there leak into the answer's"
    " advantages. Start afresh at each answer's last token."
)
def through_the_padding(rewards, values, mask, gamma=1.0, lam=0.95):
    advantages = _backward(rewards, values, mask, gamma, lam, stop=False)
    return _with_returns(advantages, values, mask)


@token_advantages.mistake(
    "The recursion neither stops at the answer's end nor leaves out the value behind it; the mask"
    " comes last, when the padding has leaked in. Use it inside the loop, at both places."
)
def masked_last(rewards, values, mask, gamma=1.0, lam=0.95):
    advantages = _backward(rewards, values, mask, gamma, lam, after=False, stop=False)
    return _with_returns(advantages, values, mask)


@token_advantages.mistake(
    "The mask is not used at all: values behind the answer's end enter its advantages."
)
def no_mask_at_all(rewards, values, mask, gamma=1.0, lam=0.95):
    advantages = _backward(rewards, values, torch.ones_like(mask), gamma, lam)
    return advantages, advantages + values


@token_advantages.mistake(
    "Prompt and padding have advantages and returns of their own. They are no actions of the"
    " policy: put zeros there."
)
def junk_outside(rewards, values, mask, gamma=1.0, lam=0.95):
    advantages = _backward(rewards, values, mask, gamma, lam)
    return advantages, advantages + values


@token_advantages.mistake(
    "λ is not used: this is λ = 1, the whole return less the value."
)
def lam_unused(rewards, values, mask, gamma=1.0, lam=0.95):
    return _with_returns(_backward(rewards, values, mask, gamma, 1.0), values, mask)


@token_advantages.mistake(
    "γ is missing before the next value: δ_t = r_t + γ·V_{t+1} − V_t."
)
def undiscounted_value(rewards, values, mask, gamma=1.0, lam=0.95):
    advantages = torch.zeros_like(rewards)
    running = torch.zeros_like(rewards[:, 0])
    T = rewards.shape[1]
    for t in reversed(range(T)):
        inside = mask[:, t + 1] if t + 1 < T else torch.zeros_like(mask[:, 0])
        later = values[:, t + 1] * inside if t + 1 < T else torch.zeros_like(running)
        running = rewards[:, t] + later - values[:, t] + gamma * lam * running * inside
        advantages[:, t] = running
    return _with_returns(advantages, values, mask)


@token_advantages.mistake(
    "γ is missing in the recursion: A_t = δ_t + γλ·A_{t+1}."
)
def undiscounted_trace(rewards, values, mask, gamma=1.0, lam=0.95):
    deltas = _backward(rewards, values, mask, gamma, 0.0)
    advantages = _backward(deltas, torch.zeros_like(values), mask, 1.0, lam)
    return _with_returns(advantages, values, mask)


@token_advantages.mistake(
    "These are TD errors, δ_t alone (λ = 0): the score at the end reaches no token but the last."
)
def td_errors(rewards, values, mask, gamma=1.0, lam=0.95):
    return _with_returns(_backward(rewards, values, mask, gamma, 0.0), values, mask)


@token_advantages.mistake(
    "The returns are the advantages once more. The critic's target is A + V: an advantage says how"
    " far its guess was off."
)
def returns_without_values(rewards, values, mask, gamma=1.0, lam=0.95):
    advantages = _backward(rewards, values, mask, gamma, lam) * mask
    return advantages, advantages


@token_advantages.mistake(
    "The returns are the plain rewards to go, λ left aside. Asked is what GAE implies, A + V; the"
    " two agree at λ = 1 only."
)
def rewards_to_go(rewards, values, mask, gamma=1.0, lam=0.95):
    advantages = _backward(rewards, values, mask, gamma, lam) * mask
    return advantages, _backward(rewards, torch.zeros_like(values), mask, gamma, 1.0) * mask


@token_advantages.mistake(
    "The advantages are whitened in here. Whiten them after the returns are made; and it is a"
    " function of its own."
)
def whitened_inside(rewards, values, mask, gamma=1.0, lam=0.95):
    advantages = _backward(rewards, values, mask, gamma, lam) * mask
    returns = (advantages + values) * mask
    inside = advantages[mask == 1]
    return (advantages - inside.mean()) / (inside.std(correction=0) + 1e-8) * mask, returns


@token_advantages.mistake(
    "The values are not taken off: these are λ-weighted sums of rewards without a baseline."
)
def without_baseline(rewards, values, mask, gamma=1.0, lam=0.95):
    advantages = _backward(rewards, torch.zeros_like(values), mask, gamma, lam)
    return _with_returns(advantages, values, mask)


@token_advantages.mistake(
    "The two results are in the wrong order: advantages first, then returns."
)
def swapped(rewards, values, mask, gamma=1.0, lam=0.95):
    return _with_returns(_backward(rewards, values, mask, gamma, lam), values, mask)[::-1]


@token_advantages.mistake(
    "The next value is looked up with `roll`, which wraps round: where an answer fills its row, its"
    " last token sees the value of column 0. Behind the last column comes a 0."
)
def next_by_roll(rewards, values, mask, gamma=1.0, lam=0.95):
    inside = values * mask
    deltas = (rewards + gamma * inside.roll(-1, -1) - inside) * mask
    advantages = _backward(deltas, torch.zeros_like(values), mask, gamma, lam)
    return _with_returns(advantages, values, mask)


@token_advantages.mistake(
    "The recursion runs from left to right: each token gets what came *before* it. A_t is made of"
    " δ_t and what follows; go through the columns backwards."
)
def forwards(rewards, values, mask, gamma=1.0, lam=0.95):
    deltas = _backward(rewards, values, mask, gamma, 0.0) * mask
    running, columns = torch.zeros_like(rewards[:, 0]), []
    for t in range(rewards.shape[1]):
        running = deltas[:, t] + gamma * lam * running
        columns.append(running)
    return _with_returns(torch.stack(columns, 1), values, mask)


token_advantages.equivalent("`-1` becomes `1`", "the last dimension of (B, T) is dimension 1")
token_advantages.equivalent(
    "`(counts & ~following).float()` becomes `counts & ~following`", "gae reads it as a boolean"
)
token_advantages.equivalent(
    "`rewards.masked_fill(~counts, 0.0)` becomes `rewards`",
    "the recursion starts afresh at each answer's last token, and the rest is masked at the end;"
    " the zeros keep a NaN of the padding out",
)
token_advantages.equivalent("`0.0` becomes `1.0`", "the rewards outside are not read, as above")
token_advantages.equivalent(
    "becomes `torch.ones_like(",
    "behind the last column nothing follows: the recursion begins there, with a value of 0",
)


# -- 06.5 ---------------------------------------------------------------------------------------

whiten = exercise("whiten", number="06.5", points=2, reference=f"{PACKAGE}:whiten")


@whiten.cases(visible=7, fresh=14)
def values_and_mask(g):
    if g.bool(0.2):
        return dict(values=g.normal(1, 3), mask=torch.tensor([[0, 1, 0]]))
    mask = _answers(g)
    shift, spread = g.choice([(0.0, 1.0), (1.5, 0.7), (-2.0, 3.0)])
    return dict(values=g.normal(*mask.shape, mean=shift, std=spread), mask=mask)


def _standard(values, mean, deviation, mask):
    return torch.where(mask != 0, (values - mean) / (deviation + 1e-8), 0.0)


@whiten.mistake(
    "Mean and deviation are those of all entries, prompt and padding included: how long the padding"
    " is would change what every token learns."
)
def over_everything(values, mask):
    return _standard(values, values.mean(), values.std(correction=0), mask)


@whiten.mistake(
    "The mask is not used at all: prompt and padding enter mean and deviation, and get values of"
    " their own."
)
def mask_unused(values, mask):
    return (values - values.mean()) / (values.std() + 1e-8)


@whiten.mistake(
    "Masked entries are set to 0 and then counted: the mean is drawn towards 0, and the more so the"
    " more padding there is. Divide by the number of masked tokens."
)
def zeros_counted(values, mask):
    inside = values * mask
    return _standard(values, inside.mean(), inside.std(correction=0), mask)


@whiten.mistake(
    "What stands outside the mask is shifted and scaled too. Put zeros there: they are no actions."
)
def outside_kept(values, mask):
    inside = values[mask != 0]
    return (values - inside.mean()) / (inside.std(correction=0) + 1e-8)


@whiten.mistake(
    "The sample deviation divides by n − 1: of one token it is NaN, and one NaN ends the training."
    " Divide by n (`correction=0`)."
)
def sample_deviation(values, mask):
    inside = values[mask != 0]
    n = torch.tensor(float(len(inside)))
    deviation = (inside.var(correction=0) * n / (n - 1)).sqrt()
    return _standard(values, inside.mean(), deviation, mask)


@whiten.mistake(
    "Each row is whitened by itself. Whether an answer is better than others is lost so: a good and"
    " a bad one both have mean 0."
)
def row_by_row(values, mask):
    n = mask.sum(-1, keepdim=True)
    mean = (values * mask).sum(-1, keepdim=True) / n
    variance = ((values - mean).square() * mask).sum(-1, keepdim=True) / n
    return _standard(values, mean, variance.sqrt(), mask)


@whiten.mistake("Divided by the variance: it is its square root that makes the variance 1.")
def by_variance(values, mask):
    inside = values[mask != 0]
    return _standard(values, inside.mean(), inside.var(correction=0), mask)


@whiten.mistake(
    "The mean is not taken off. (Some do so on purpose; a whitened batch has mean 0.)"
)
def not_shifted(values, mask):
    return _standard(values, 0.0, values[mask != 0].std(correction=0), mask)


@whiten.mistake("The mean is taken off, and the scale is left: the variance is not 1 yet.")
def not_scaled(values, mask):
    return _standard(values, values[mask != 0].mean(), 1.0, mask)


@whiten.mistake(
    "Divided by the root mean square of the values as they are: the deviation is taken around the"
    " mean."
)
def by_root_mean_square(values, mask):
    inside = values[mask != 0]
    return _standard(values, inside.mean(), inside.square().mean().sqrt(), mask)


@whiten.mistake(
    "The mean is added again after the scaling (some whiten rewards so); asked is a batch of mean"
    " 0."
)
def mean_put_back(values, mask):
    inside = values[mask != 0]
    return (_standard(values, inside.mean(), inside.std(correction=0), mask) + inside.mean()) * mask


whiten.equivalent("`1e-08` becomes `2e-08`", "it only keeps 0/0 from becoming NaN")


# -- 06.6 ---------------------------------------------------------------------------------------

advantages_and_targets = exercise(
    "advantages_and_targets", number="06.6", points=1, uses=["token_advantages", "whiten"],
)


@advantages_and_targets.reference
def whitened_last(rewards, values, mask, lam=0.95):
    from rlhf_minimal.rlhf import token_advantages, whiten
    advantages, targets = token_advantages(rewards, values, mask, lam=lam)
    return whiten(advantages, mask), targets


@advantages_and_targets.cases(visible=4, fresh=12)
def a_batch(g):
    mask = _answers(g)
    rewards = g.normal(*mask.shape, mean=1.0) * mask
    return dict(rewards=rewards, values=g.normal(*mask.shape), mask=mask,
                lam=g.choice([0.95, 1.0, 0.5]))


@advantages_and_targets.probe
def what_each_learns_from(answer, case):
    advantages, targets = answer.advantages_and_targets(**case)
    return dict(advantages=advantages, targets=targets)


def _both(rewards, values, mask, lam):
    advantages = _backward(rewards, values, mask, 1.0, lam) * mask
    return advantages, (advantages + values) * mask


@advantages_and_targets.mistake(
    "This is the code as found: the targets are made of whitened advantages. The critic then never"
    " hears how large the returns are, only how they compare with the batch."
)
def as_found(rewards, values, mask, lam=0.95):
    advantages, _ = _both(rewards, values, mask, lam)
    advantages = _white(advantages, mask)
    return advantages, (advantages + values) * mask


@advantages_and_targets.mistake(
    "The targets are right now, and the advantages are no longer whitened. The policy's learning"
    " rate would then depend on the reward's scale."
)
def not_whitened_at_all(rewards, values, mask, lam=0.95):
    return _both(rewards, values, mask, lam)


@advantages_and_targets.mistake(
    "The targets are whitened as well. The critic must foresee returns in units of reward; its"
    " values are subtracted from rewards when the next batch comes."
)
def targets_whitened(rewards, values, mask, lam=0.95):
    advantages, targets = _both(rewards, values, mask, lam)
    return _white(advantages, mask), _white(targets, mask)


@advantages_and_targets.mistake(
    "The rewards are whitened before the returns are made. Shifted rewards are those of another"
    " task: a constant a token pays for length, or fines it."
)
def rewards_whitened(rewards, values, mask, lam=0.95):
    advantages, targets = _both(_white(rewards, mask), values, mask, lam)
    return _white(advantages, mask), targets


@advantages_and_targets.mistake(
    "λ is not passed on: whatever is asked, 0.95 is used."
)
def lam_not_passed_on(rewards, values, mask, lam=0.95):
    advantages, targets = _both(rewards, values, mask, 0.95)
    return _white(advantages, mask), targets


@advantages_and_targets.mistake(
    "The two results are in the wrong order: whitened advantages first, then targets."
)
def results_swapped(rewards, values, mask, lam=0.95):
    advantages, targets = _both(rewards, values, mask, lam)
    return targets, _white(advantages, mask)


@advantages_and_targets.mistake(
    "λ is handed over in γ's place: the fourth argument of `token_advantages` is gamma. Say"
    " `lam=lam`."
)
def lam_as_gamma(rewards, values, mask, lam=0.95):
    advantages = _backward(rewards, values, mask, lam, 0.95) * mask
    return _white(advantages, mask), (advantages + values) * mask


@advantages_and_targets.mistake(
    "The targets are those of λ = 1, the rewards to go; asked are the ones that come with these"
    " advantages, from one call."
)
def targets_of_another_lam(rewards, values, mask, lam=0.95):
    advantages, _ = _both(rewards, values, mask, lam)
    return _white(advantages, mask), _both(rewards, values, mask, 1.0)[1]


@advantages_and_targets.mistake(
    "The whitened advantages come back as targets too. The critic must foresee returns."
)
def advantages_twice(rewards, values, mask, lam=0.95):
    advantages = _white(_both(rewards, values, mask, lam)[0], mask)
    return advantages, advantages


@advantages_and_targets.mistake(
    "The targets are made of advantages + values without the mask: outside the answers the critic's"
    " values stand. `token_advantages` gives them with zeros there."
)
def targets_unmasked(rewards, values, mask, lam=0.95):
    advantages, _ = _both(rewards, values, mask, lam)
    return _white(advantages, mask), advantages + values


@advantages_and_targets.mistake(
    "The advantages are whitened without their mask: the zeros of prompt and padding enter the"
    " mean. Hand the mask on."
)
def whitened_without_mask(rewards, values, mask, lam=0.95):
    advantages, targets = _both(rewards, values, mask, lam)
    return _white(advantages, torch.ones_like(mask)), targets


def _white(values, mask):
    inside = values[mask != 0]
    return _standard(values, inside.mean(), inside.std(correction=0), mask)
