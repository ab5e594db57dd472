"""Lesson 02: the clipped surrogate, approximate KL, GAE, the critic, and one PPO update."""

import numbers

import torch

from autograder import copies, exercise, grads, leaves
from rlhf_minimal import ppo_losses
from rlhf_minimal.policy_gradient import action_log_probs

PACKAGE = "rlhf_minimal.ppo_losses"


# -- 02.1 ---------------------------------------------------------------------------------------

probability_ratio = exercise("probability_ratio", number="02.1", points=1)


@probability_ratio.reference
def ratio_of_probabilities(log_probs, old_log_probs):
    return (log_probs - old_log_probs).exp()


@probability_ratio.cases(visible=6, fresh=12)
def two_policies(g):
    N, far = g.size(2, 8), g.choice([0.0, 140.0])
    old = -g.uniform(0.05, 3.0, N) - far
    return dict(log_probs=old + g.normal(N, std=0.5), old_log_probs=old)


@probability_ratio.probe
def ratio_and_gradient(answer, case):
    x = copies(case)
    x["log_probs"].requires_grad_()
    ratio = answer.probability_ratio(**x)
    return dict(ratio=ratio, grad=grads(ratio, x), inputs_after=x)


@probability_ratio.mistake(
    "This is the log-ratio, the difference of the log-probabilities. The ratio is its exponential:"
    " 1 where nothing has changed, never negative."
)
def log_ratio(log_probs, old_log_probs):
    return log_probs - old_log_probs


@probability_ratio.mistake(
    "You divide one log-probability by the other. A quotient of logarithms is no ratio of"
    " probabilities: subtract them, then take the exponential."
)
def quotient_of_logs(log_probs, old_log_probs):
    return log_probs / old_log_probs


@probability_ratio.mistake(
    "The ratio is upside down, old over new: an action that became likelier would count as one that"
    " became rarer, and every push would go the wrong way."
)
def upside_down(log_probs, old_log_probs):
    return (old_log_probs - log_probs).exp()


@probability_ratio.mistake(
    "Two exponentials, then a quotient: below about e^−104 a float32 probability is 0, and 0/0 is"
    " NaN. Whole answers of a language model are that unlikely. Subtract first, then take `exp`."
)
def underflow(log_probs, old_log_probs):
    return log_probs.exp() / old_log_probs.exp()


@probability_ratio.mistake(
    "This is the difference of the probabilities; their quotient is asked."
)
def difference(log_probs, old_log_probs):
    return log_probs.exp() - old_log_probs.exp()


@probability_ratio.mistake(
    "The ratio is clipped already. Give it as it is: the loss needs the clipped one *and* the"
    " unclipped one."
)
def clipped_here(log_probs, old_log_probs):
    return (log_probs - old_log_probs).exp().clamp(0.8, 1.2)


@probability_ratio.mistake(
    "The values are right, and no gradient flows back to `log_probs` (a `detach`, `no_grad` or"
    " `.item()` cut it off): this ratio is what PPO differentiates."
)
def detached_ratio(log_probs, old_log_probs):
    return (log_probs - old_log_probs).exp().detach()


# -- 02.2 ---------------------------------------------------------------------------------------

clipped_policy_loss = exercise(
    "clipped_policy_loss", number="02.2", points=3, reference=f"{PACKAGE}:clipped_policy_loss",
    uses=["probability_ratio"],
)


@clipped_policy_loss.cases(visible=6, fresh=16)
def one_batch(g):
    masked = g.bool(0.5)
    shape = (g.integer(2, 4), g.integer(3, 6)) if masked else (g.size(3, 10),)
    old = -g.uniform(0.05, 3.0, *shape)
    signs = 2.0 * g.bools(*shape).float() - 1
    return dict(
        log_probs=old + g.normal(*shape, std=0.4), old_log_probs=old,
        advantages=signs * g.uniform(0.3, 2.0, *shape),
        clip=g.choice([0.1, 0.2, 0.3]), mask=g.mask(*shape) if masked else None,
    )


@clipped_policy_loss.probe
def clipped_loss_and_gradients(answer, case):
    x = copies(case)
    for name in ("log_probs", "advantages"):
        x[name].requires_grad_()
    loss = answer.clipped_policy_loss(**x)
    return dict(loss=loss, grad=grads(loss, x), inputs_after=x)


def _mean(x, mask):
    return x.mean() if mask is None else (x * mask).sum() / mask.sum()


def _surrogate(ratio, advantages, clip):
    return torch.min(ratio * advantages, ratio.clamp(1 - clip, 1 + clip) * advantages)


@clipped_policy_loss.mistake(
    "The clip is missing: this is the plain importance-weighted surrogate, and nothing keeps the"
    " policy from running away from the data."
)
def never_clipped(log_probs, old_log_probs, advantages, clip=0.2, mask=None):
    return -_mean((log_probs - old_log_probs).exp() * advantages.detach(), mask)


@clipped_policy_loss.mistake(
    "Only the clipped term is there, without the minimum. Where the ratio has gone the *wrong* way"
    " its gradient is zero too, so that a bad step is never taken back."
)
def without_minimum(log_probs, old_log_probs, advantages, clip=0.2, mask=None):
    ratio = (log_probs - old_log_probs).exp().clamp(1 - clip, 1 + clip)
    return -_mean(ratio * advantages.detach(), mask)


@clipped_policy_loss.mistake(
    "This is the maximum of the two terms (a minus pulled inside the minimum does the same). The"
    " minimum is the pessimist's choice: it counts a gain up to the clip only, and a loss in full."
)
def optimist(log_probs, old_log_probs, advantages, clip=0.2, mask=None):
    ratio, advantages = (log_probs - old_log_probs).exp(), advantages.detach()
    clipped = ratio.clamp(1 - clip, 1 + clip) * advantages
    return -_mean(torch.max(ratio * advantages, clipped), mask)


@clipped_policy_loss.mistake(
    "The minus is missing. An optimizer descends: this would make good actions rarer."
)
def climbs_down(log_probs, old_log_probs, advantages, clip=0.2, mask=None):
    ratio = (log_probs - old_log_probs).exp()
    return _mean(_surrogate(ratio, advantages.detach(), clip), mask)


@clipped_policy_loss.mistake(
    "You clip the product ρ·A. It is the ratio that is clipped: an advantage of 3 must still count"
    " three times as much as one of 1."
)
def product_clipped(log_probs, old_log_probs, advantages, clip=0.2, mask=None):
    gain = (log_probs - old_log_probs).exp() * advantages.detach()
    return -_mean(torch.min(gain, gain.clamp(1 - clip, 1 + clip)), mask)


@clipped_policy_loss.mistake(
    "The ratio is upside down, old over new."
)
def old_over_new(log_probs, old_log_probs, advantages, clip=0.2, mask=None):
    ratio = (old_log_probs - log_probs).exp()
    return -_mean(_surrogate(ratio, advantages.detach(), clip), mask)


@clipped_policy_loss.mistake(
    "The log-ratio stands where the ratio belongs: `exp` is missing. A log-ratio of 0 means"
    " \"nothing has changed\", and you clip it to lie near 1."
)
def exp_forgotten(log_probs, old_log_probs, advantages, clip=0.2, mask=None):
    return -_mean(_surrogate(log_probs - old_log_probs, advantages.detach(), clip), mask)


@clipped_policy_loss.mistake(
    "The ratio is clipped from above only. With a negative advantage the policy wants the ratio"
    " *small*, and there 1 − ε is the fence."
)
def upper_fence_only(log_probs, old_log_probs, advantages, clip=0.2, mask=None):
    ratio, advantages = (log_probs - old_log_probs).exp(), advantages.detach()
    return -_mean(torch.min(ratio * advantages, ratio.clamp(max=1 + clip) * advantages), mask)


@clipped_policy_loss.mistake(
    "You clip the *log*-ratio to ±ε and take the exponential afterwards: the fences then stand at"
    " e^−ε and e^ε. Take the exponential first, and clip the ratio to 1 ± ε."
)
def log_ratio_clipped(log_probs, old_log_probs, advantages, clip=0.2, mask=None):
    log_ratio, advantages = log_probs - old_log_probs, advantages.detach()
    clipped = log_ratio.clamp(-clip, clip).exp() * advantages
    return -_mean(torch.min(log_ratio.exp() * advantages, clipped), mask)


@clipped_policy_loss.mistake(
    "The ratio is clipped to ±ε, around 0. A ratio of 1 means that nothing has changed: the fences"
    " stand at 1 − ε and 1 + ε."
)
def fences_around_zero(log_probs, old_log_probs, advantages, clip=0.2, mask=None):
    ratio, advantages = (log_probs - old_log_probs).exp(), advantages.detach()
    return -_mean(torch.min(ratio * advantages, ratio.clamp(-clip, clip) * advantages), mask)


@clipped_policy_loss.mistake(
    "The two means are taken first, and the smaller of them: the clip then acts on the whole batch"
    " or not at all. The minimum is chosen entry by entry, before the mean."
)
def minimum_of_means(log_probs, old_log_probs, advantages, clip=0.2, mask=None):
    ratio, advantages = (log_probs - old_log_probs).exp(), advantages.detach()
    clipped = ratio.clamp(1 - clip, 1 + clip) * advantages
    return -torch.min(_mean(ratio * advantages, mask), _mean(clipped, mask))


@clipped_policy_loss.mistake(
    "The advantages are normalised in here. Take them as they come: whoever calls the loss has"
    " decided on their scale."
)
def normalised_inside(log_probs, old_log_probs, advantages, clip=0.2, mask=None):
    advantages = advantages.detach()
    unit = (advantages - advantages.mean()) / (advantages.std() + 1e-8)
    return -_mean(_surrogate((log_probs - old_log_probs).exp(), unit, clip), mask)


@clipped_policy_loss.mistake(
    "The clip range is 0.2 whatever `clip` says: use the argument."
)
def always_a_fifth(log_probs, old_log_probs, advantages, clip=0.2, mask=None):
    ratio = (log_probs - old_log_probs).exp()
    return -_mean(_surrogate(ratio, advantages.detach(), 0.2), mask)


@clipped_policy_loss.mistake(
    "A sum where a mean is asked: the step would grow with the batch."
)
def added_up(log_probs, old_log_probs, advantages, clip=0.2, mask=None):
    surrogate = _surrogate((log_probs - old_log_probs).exp(), advantages.detach(), clip)
    return -(surrogate if mask is None else surrogate * mask).sum()


@clipped_policy_loss.mistake(
    "`mask` is not used: steps that do not count (padding, resets) train the policy."
)
def mask_ignored(log_probs, old_log_probs, advantages, clip=0.2, mask=None):
    return -_surrogate((log_probs - old_log_probs).exp(), advantages.detach(), clip).mean()


@clipped_policy_loss.mistake(
    "Masked entries are zeroed but still counted below the fraction bar: divide by `mask.sum()`,"
    " not by the number of entries."
)
def divided_by_all(log_probs, old_log_probs, advantages, clip=0.2, mask=None):
    surrogate = _surrogate((log_probs - old_log_probs).exp(), advantages.detach(), clip)
    return -(surrogate if mask is None else surrogate * mask).mean()


@clipped_policy_loss.mistake(
    "You average each row over its mask and then the rows: a step in a short row counts more than"
    " one in a long row. Average over all unmasked entries at once."
)
def row_by_row(log_probs, old_log_probs, advantages, clip=0.2, mask=None):
    surrogate = _surrogate((log_probs - old_log_probs).exp(), advantages.detach(), clip)
    if mask is None:
        return -surrogate.mean()
    return -((surrogate * mask).sum(-1) / mask.sum(-1)).mean()


@clipped_policy_loss.mistake(
    "The value is right, but a gradient flows into the advantages, and from there into the critic"
    " that made them. They are constants here: detach them."
)
def advantages_attached(log_probs, old_log_probs, advantages, clip=0.2, mask=None):
    return -_mean(_surrogate((log_probs - old_log_probs).exp(), advantages, clip), mask)


@clipped_policy_loss.mistake(
    "The value is right and the gradient is gone: `log_probs` is what this loss trains, so nothing"
    " may detach it."
)
def policy_detached(log_probs, old_log_probs, advantages, clip=0.2, mask=None):
    ratio = (log_probs.detach() - old_log_probs).exp()
    return -_mean(_surrogate(ratio, advantages, clip), mask)


for mutant in ("becomes `advantages`", "`0.0` becomes `1.0`"):
    clipped_policy_loss.equivalent(
        mutant, "entries masked out are left out of the mean, whatever they hold, if it is finite"
    )


# -- 02.3 ---------------------------------------------------------------------------------------

approximate_kl = exercise(
    "approximate_kl", number="02.3", points=2, reference=f"{PACKAGE}:approximate_kl",
    uses=["probability_ratio"],
)


@approximate_kl.cases(visible=5, fresh=14)
def after_some_epochs(g):
    masked = g.bool(0.4)
    shape = (g.integer(2, 4), g.integer(3, 6)) if masked else (g.size(3, 10),)
    old = -g.uniform(0.05, 3.0, *shape)
    new = old + g.normal(*shape, mean=-0.1, std=0.6)
    return dict(log_probs=new, old_log_probs=old, mask=g.mask(*shape) if masked else None)


@approximate_kl.probe
def kl_as_a_number(answer, case):
    x = copies(case)
    return dict(value=_as_tensor(answer.approximate_kl(**x)), inputs_after=x)


def _as_tensor(value):
    """What is only watched may be a plain number as well, NumPy's included."""
    return torch.tensor(float(value)) if isinstance(value, numbers.Real) else value


@approximate_kl.mistake(
    "This is mean(log π − log π_old): the log-ratio is turned round. The actions come from π_old,"
    " so this estimates −KL and is negative on average: no threshold would ever be passed."
)
def turned_round(log_probs, old_log_probs, mask=None):
    return _mean(log_probs - old_log_probs, mask)


@approximate_kl.mistake(
    "This is k1, the mean of log π_old − log π. It is unbiased too, but single batches make it"
    " negative, which a KL never is. Asked is (ρ − 1) − log ρ, whose every term is ≥ 0."
)
def first_estimator(log_probs, old_log_probs, mask=None):
    return _mean(old_log_probs - log_probs, mask)


@approximate_kl.mistake(
    "This is k2, half the squared log-ratio: near the old policy it agrees, farther away it is"
    " biased. Asked is (ρ − 1) − log ρ."
)
def second_estimator(log_probs, old_log_probs, mask=None):
    return _mean((log_probs - old_log_probs).square() / 2, mask)


@approximate_kl.mistake(
    "The ratio is upside down, π_old/π: on actions from π_old its average is not 1, so the"
    " correction ρ − 1 adds a bias instead of removing noise."
)
def ratio_upside_down(log_probs, old_log_probs, mask=None):
    flipped = old_log_probs - log_probs
    return _mean(flipped.expm1() - flipped, mask)


@approximate_kl.mistake(
    "You add log ρ instead of subtracting it: (ρ − 1) and log ρ nearly agree, and their difference"
    " is what measures the distance."
)
def log_added(log_probs, old_log_probs, mask=None):
    log_ratio = log_probs - old_log_probs
    return _mean(log_ratio.expm1() + log_ratio, mask)


@approximate_kl.mistake(
    "This is ρ·log ρ − (ρ − 1), which estimates the other direction, KL(π‖π_old). Asked is"
    " KL(π_old‖π), by (ρ − 1) − log ρ."
)
def other_direction(log_probs, old_log_probs, mask=None):
    log_ratio = log_probs - old_log_probs
    return _mean(log_ratio.exp() * log_ratio - log_ratio.expm1(), mask)


@approximate_kl.mistake(
    "The bracket has its sign turned: (1 − ρ) − log ρ. Log ρ is at most ρ − 1, so it is"
    " (ρ − 1) − log ρ that is never negative."
)
def bracket_turned(log_probs, old_log_probs, mask=None):
    log_ratio = log_probs - old_log_probs
    return _mean(-log_ratio.expm1() - log_ratio, mask)


@approximate_kl.mistake(
    "The −1 is missing: for two equal policies this gives 1 and not 0."
)
def one_too_much(log_probs, old_log_probs, mask=None):
    log_ratio = log_probs - old_log_probs
    return _mean(log_ratio.exp() - log_ratio, mask)


@approximate_kl.mistake(
    "You weigh each term with π_old(a). So does the definition, summing over *all* actions; but"
    " these were drawn from π_old, and frequent ones come often already: a plain mean is enough."
)
def weighed_again(log_probs, old_log_probs, mask=None):
    return _mean(old_log_probs.exp() * (old_log_probs - log_probs), mask)


@approximate_kl.mistake(
    "This is the mean of ρ − 1 alone. Its expectation is 0 whatever the policies are."
)
def ratio_only(log_probs, old_log_probs, mask=None):
    return _mean((log_probs - old_log_probs).expm1(), mask)


@approximate_kl.mistake(
    "A sum where a mean is asked: the target would depend on how many actions the batch holds."
)
def sum_of_terms(log_probs, old_log_probs, mask=None):
    log_ratio = log_probs - old_log_probs
    terms = log_ratio.expm1() - log_ratio
    return (terms if mask is None else terms * mask).sum()


@approximate_kl.mistake("`mask` is not used: entries that do not count are measured too.")
def mask_unused(log_probs, old_log_probs, mask=None):
    log_ratio = log_probs - old_log_probs
    return (log_ratio.expm1() - log_ratio).mean()


@approximate_kl.mistake(
    "Masked entries are zeroed but still counted: divide by `mask.sum()`. The KL looks smaller than"
    " it is, and the stop comes late."
)
def masked_still_counted(log_probs, old_log_probs, mask=None):
    log_ratio = log_probs - old_log_probs
    terms = log_ratio.expm1() - log_ratio
    return (terms if mask is None else terms * mask).mean()


@approximate_kl.mistake(
    "The averages are taken first, and the formula applied to the mean log-ratio: moves up and"
    " moves down cancel, and a policy that has changed everywhere may look unchanged."
)
def mean_first(log_probs, old_log_probs, mask=None):
    log_ratio = _mean(log_probs - old_log_probs, mask)
    return log_ratio.expm1() - log_ratio


# -- 02.4 ---------------------------------------------------------------------------------------

run_epochs = exercise("run_epochs", number="02.4", points=1)


@run_epochs.reference
def until_too_far(one_epoch, measure_kl, epochs, target_kl):
    for epoch in range(epochs):
        one_epoch()
        if target_kl is not None and measure_kl() > target_kl:
            return epoch + 1
    return epochs


@run_epochs.cases(visible=6, fresh=16)
def distances(g):
    epochs, target = g.integer(5, 9), g.uniform(0.01, 0.03)
    passes = g.integer(2, epochs - 1)  # the epoch after which the target is passed
    below = [target * g.uniform(0.25, 0.9) for _ in range(passes - 1)]
    above = [target * g.uniform(1.1, 1.4) for _ in range(g.integer(2, 4))]
    above += [target * g.uniform(1.6, 3.0) for _ in range(9)]
    return dict(
        kl=[0.0, *(round(x, 5) for x in below + above)], epochs=epochs + 3,
        target_kl=g.choice([target, target, target, None]),
    )


@run_epochs.probe
def epochs_that_ran(answer, case):
    finished = []

    def one_epoch():
        finished.append(len(finished))

    def measure_kl():
        return torch.tensor(case["kl"][len(finished)])

    returned = answer.run_epochs(one_epoch, measure_kl, case["epochs"], case["target_kl"])
    return dict(returned=returned, epochs_run=len(finished))


@run_epochs.mistake(
    "It never stops early: every epoch runs, however far the policy has gone."
)
def never_stops(one_epoch, measure_kl, epochs, target_kl):
    for _ in range(epochs):
        one_epoch()
    return epochs


@run_epochs.mistake(
    "The comparison is turned round: you stop while the policy is still *near*, after the very"
    " first epoch."
)
def stops_when_near(one_epoch, measure_kl, epochs, target_kl):
    for epoch in range(epochs):
        one_epoch()
        if target_kl is not None and measure_kl() < target_kl:
            return epoch + 1
    return epochs


@run_epochs.mistake(
    "The right number of epochs runs, but the number returned is one too small: `range` counts"
    " from 0."
)
def index_returned(one_epoch, measure_kl, epochs, target_kl):
    for epoch in range(epochs):
        one_epoch()
        if target_kl is not None and measure_kl() > target_kl:
            return epoch
    return epochs - 1


@run_epochs.mistake(
    "The right number of epochs runs, but you return the number that was planned, whether or not"
    " the loop ended early."
)
def plan_returned(one_epoch, measure_kl, epochs, target_kl):
    until_too_far(one_epoch, measure_kl, epochs, target_kl)
    return epochs


@run_epochs.mistake(
    "One epoch too many: the KL is measured before the epoch and looked at after it. Measure after"
    " each epoch, and stop at once."
)
def looks_too_late(one_epoch, measure_kl, epochs, target_kl):
    for epoch in range(epochs):
        before = measure_kl()
        one_epoch()
        if target_kl is not None and before > target_kl:
            return epoch + 1
    return epochs


@run_epochs.mistake(
    "The KLs of the epochs are added up. Each is measured from the rollout's policy, the whole way"
    " so far, so their sum counts the early steps again and again."
)
def added_over_epochs(one_epoch, measure_kl, epochs, target_kl):
    total = 0.0
    for epoch in range(epochs):
        one_epoch()
        total += measure_kl()
        if target_kl is not None and total > target_kl:
            return epoch + 1
    return epochs


@run_epochs.mistake(
    "`target_kl=None` means \"never stop early\"; you treat it as a target of 0, so that the first"
    " epoch is the last."
)
def none_is_zero(one_epoch, measure_kl, epochs, target_kl):
    return until_too_far(one_epoch, measure_kl, epochs, target_kl or 0.0)


@run_epochs.mistake(
    "You stop at one and a half times the target. Some libraries do (Stable-Baselines3 among them);"
    " asked is the target itself."
)
def half_as_much_again(one_epoch, measure_kl, epochs, target_kl):
    return until_too_far(one_epoch, measure_kl, epochs, target_kl and 1.5 * target_kl)


run_epochs.equivalent(
    "`measure_kl() > target_kl` becomes `measure_kl() >= target_kl`",
    "no measured KL equals its target to the last digit",
)


# -- 02.5 ---------------------------------------------------------------------------------------

gae = exercise("gae", number="02.5", points=4, reference=f"{PACKAGE}:gae")


@gae.cases(visible=6, fresh=16)
def one_rollout(g):
    T = g.size(5, 12)
    shape = (T,) if g.bool() else (T, g.integer(2, 4))
    steps = g.sample(range(1, T - 1), 2)
    terminated, truncated = torch.zeros(2, *shape, dtype=torch.bool)
    terminated[steps[0]] = True
    truncated[steps[1]] = True
    if len(shape) == 2:  # the environments do not end together
        terminated[:, 1:], truncated[:, 1:] = False, False
        terminated[g.integer(0, T), 1] = True
        truncated[-1, 1] = ~terminated[-1, 1]
    values = g.normal(*shape, mean=1.0)
    done = terminated | truncated
    led_to = torch.cat([values[1:], g.normal(1, *shape[1:], mean=1.0)])
    after_an_end = g.normal(*shape, mean=2.0)
    return dict(
        rewards=g.normal(*shape), values=values, next_values=led_to.where(~done, after_an_end),
        terminated=terminated, done=done, gamma=g.uniform(0.6, 0.95), lam=g.uniform(0.3, 0.95),
    )


def _recursion(deltas, decay):
    advantages, running = torch.zeros_like(deltas), torch.zeros_like(deltas[0])
    for t in reversed(range(len(deltas))):
        running = deltas[t] + decay[t] * running
        advantages[t] = running
    return advantages


def _gae(rewards, values, next_values, no_future, stop, gamma, decay):
    deltas = rewards + gamma * next_values * ~no_future - values
    return _recursion(deltas, decay * (~stop).float())


@gae.mistake(
    "Truncation is treated as termination: where the clock ran out you count the future as"
    " worthless. Only `terminated` cuts the bootstrap; `done` only stops the recursion."
)
def truncation_is_termination(rewards, values, next_values, terminated, done, gamma, lam):
    return _gae(rewards, values, next_values, done, done, gamma, gamma * lam)


@gae.mistake(
    "The recursion goes on over a truncation, into an episode that has nothing to do with this one."
    " It stops wherever `done` is set; `terminated` alone is not enough."
)
def runs_over_truncation(rewards, values, next_values, terminated, done, gamma, lam):
    return _gae(rewards, values, next_values, terminated, terminated, gamma, gamma * lam)


@gae.mistake(
    "You bootstrap after termination: the value of a fallen pole is added, as if there were a"
    " future. Where `terminated` is set, V(s_{t+1}) counts as 0."
)
def future_after_the_end(rewards, values, next_values, terminated, done, gamma, lam):
    nowhere = torch.zeros_like(terminated)
    return _gae(rewards, values, next_values, nowhere, done, gamma, gamma * lam)


@gae.mistake(
    "The recursion never stops: the advantages of the next episode flow back into this one."
)
def never_stopped(rewards, values, next_values, terminated, done, gamma, lam):
    nowhere = torch.zeros_like(done)
    return _gae(rewards, values, next_values, terminated, nowhere, gamma, gamma * lam)


@gae.mistake(
    "You bootstrap from `values[t + 1]`. After an end that is the first state of the *next*"
    " episode; `next_values[t]` is where step t really led."
)
def next_row(rewards, values, next_values, terminated, done, gamma, lam):
    shifted = torch.cat([values[1:], next_values[-1:]])
    return _gae(rewards, values, shifted, terminated, done, gamma, gamma * lam)


@gae.mistake(
    "The cut is one step off: you clear the running sum after the last step of an episode has"
    " already taken over what comes from the next one. `done[t]` says that nothing follows step t."
)
def cut_one_late(rewards, values, next_values, terminated, done, gamma, lam):
    deltas = rewards + gamma * next_values * ~terminated - values
    decay = gamma * lam * torch.cat([torch.ones_like(deltas[:1]), (~done[:-1]).float()])
    return _recursion(deltas, decay)


@gae.mistake(
    "λ is missing in the recursion: A_t = δ_t + γ·A_{t+1} is the λ = 1 end of the dial, whatever"
    " `lam` says."
)
def lambda_forgotten(rewards, values, next_values, terminated, done, gamma, lam):
    return _gae(rewards, values, next_values, terminated, done, gamma, gamma)


@gae.mistake(
    "γ is missing in the recursion: the TD errors to come fade by γλ a step, not by λ alone."
)
def gamma_forgotten(rewards, values, next_values, terminated, done, gamma, lam):
    return _gae(rewards, values, next_values, terminated, done, gamma, lam)


@gae.mistake(
    "γ is missing in the TD error: δ_t = r_t + γ·V(s_{t+1}) − V(s_t)."
)
def undiscounted_error(rewards, values, next_values, terminated, done, gamma, lam):
    return _gae(rewards, values, next_values / gamma, terminated, done, gamma, gamma * lam)


@gae.mistake(
    "These are the TD errors alone, the λ = 0 end of the dial. Add up what comes after them,"
    " fading by γλ a step."
)
def errors_alone(rewards, values, next_values, terminated, done, gamma, lam):
    return _gae(rewards, values, next_values, terminated, done, gamma, 0.0)


@gae.mistake(
    "The last step of an episode is set to 0 altogether. Only what comes *after* it is cut off:"
    " (1 − done_t) multiplies A_{t+1}, and δ_t stays."
)
def last_step_wiped(rewards, values, next_values, terminated, done, gamma, lam):
    deltas = rewards + gamma * next_values * ~terminated - values
    return _recursion(deltas * ~done, gamma * lam * (~done).float())


@gae.mistake(
    "The flags are used the wrong way round: you bootstrap and go on where an episode *ended*. It"
    " is `~terminated` and `~done`."
)
def flags_turned_round(rewards, values, next_values, terminated, done, gamma, lam):
    return _gae(rewards, values, next_values, ~terminated, ~done, gamma, gamma * lam)


@gae.mistake(
    "V(s_t) is not subtracted: these are estimates of the return. An advantage says how much"
    " *better than expected* it went."
)
def returns_not_advantages(rewards, values, next_values, terminated, done, gamma, lam):
    right = _gae(rewards, values, next_values, terminated, done, gamma, gamma * lam)
    return right + values


@gae.mistake(
    "V(s_t) is missing in every TD error, so that the rewards are never compared with what was"
    " expected."
)
def nothing_expected(rewards, values, next_values, terminated, done, gamma, lam):
    none = torch.zeros_like(values)
    return _gae(rewards, none, next_values, terminated, done, gamma, gamma * lam)


@gae.mistake(
    "The recursion runs forwards: each step collects the TD errors of its past. Start at the last"
    " step and walk back."
)
def forwards(rewards, values, next_values, terminated, done, gamma, lam):
    deltas = rewards + gamma * next_values * ~terminated - values
    advantages, running = torch.zeros_like(deltas), torch.zeros_like(deltas[0])
    for t in range(len(deltas)):
        before = ~done[t - 1] if t else ~done[0]
        running = deltas[t] + gamma * lam * before * running
        advantages[t] = running
    return advantages


@gae.mistake(
    "The advantages are right, and `rewards` has been overwritten by them: write into a new tensor."
)
def rewards_gone(rewards, values, next_values, terminated, done, gamma, lam):
    return rewards.copy_(
        _gae(rewards, values, next_values, terminated, done, gamma, gamma * lam)
    )


gae.equivalent("`0` becomes `1`", "only the shape of one row is taken from there")


# -- 02.6 ---------------------------------------------------------------------------------------

value_loss = exercise("value_loss", number="02.6", points=1, reference=f"{PACKAGE}:value_loss")


@value_loss.cases(visible=5, fresh=12)
def predictions_and_targets(g):
    masked = g.bool(0.4)
    shape = (g.integer(2, 4), g.integer(3, 6)) if masked else (g.size(3, 10),)
    return dict(
        values=g.normal(*shape), returns=g.normal(*shape, mean=1.0, std=2.0),
        mask=g.mask(*shape) if masked else None,
    )


@value_loss.probe
def value_loss_and_gradients(answer, case):
    x = leaves(case)
    if x["mask"] is not None:
        x["mask"].requires_grad_(False)
    loss = answer.value_loss(**x)
    return dict(loss=loss, grad=grads(loss, x), inputs_after=x)


@value_loss.mistake(
    "A factor ½ stands in front. Many write the loss so; the course does not, and `value_coef` in"
    " the training loop would mean something else."
)
def halved(values, returns, mask=None):
    return _mean((values - returns.detach()).square(), mask) / 2


@value_loss.mistake("A sum where a mean is asked: the step would grow with the batch.")
def errors_added_up(values, returns, mask=None):
    error = (values - returns.detach()).square()
    return (error if mask is None else error * mask).sum()


@value_loss.mistake(
    "This is the absolute error. The value is an *expectation*, and the mean is what squared errors"
    " are smallest at; absolute errors lead to the median."
)
def absolute_error(values, returns, mask=None):
    return _mean((values - returns.detach()).abs(), mask)


@value_loss.mistake("This is the root of the mean squared error; the course trains on the mean.")
def root(values, returns, mask=None):
    return _mean((values - returns.detach()).square(), mask).sqrt()


@value_loss.mistake(
    "The value is right, but a gradient flows into the returns. They are the target: with it the"
    " target would move towards the critic as well."
)
def target_attached(values, returns, mask=None):
    return _mean((values - returns).square(), mask)


@value_loss.mistake(
    "The wrong one is detached: `values` is what the critic learns by, `returns` is the target."
)
def critic_detached(values, returns, mask=None):
    return _mean((values.detach() - returns).square(), mask)


@value_loss.mistake("`mask` is not used: padding would train the critic.")
def padding_counts(values, returns, mask=None):
    return (values - returns.detach()).square().mean()


@value_loss.mistake(
    "Masked entries are zeroed but still counted below the fraction bar: divide by `mask.sum()`."
)
def zeros_counted(values, returns, mask=None):
    error = (values - returns.detach()).square()
    return (error if mask is None else error * mask).mean()


@value_loss.mistake(
    "You average each row over its mask and then the rows: a step in a short row counts more than"
    " one in a long row. Average over all unmasked entries at once."
)
def rows_then_all(values, returns, mask=None):
    error = (values - returns.detach()).square()
    return error.mean() if mask is None else ((error * mask).sum(-1) / mask.sum(-1)).mean()


@value_loss.mistake(
    "The mean of the errors is squared: errors up and down cancel before they count. Square each"
    " error, then average."
)
def mean_then_square(values, returns, mask=None):
    return _mean(values - returns.detach(), mask).square()


@value_loss.mistake("The errors are not averaged; a loss is one number.")
def error_of_each(values, returns, mask=None):
    error = (values - returns.detach()).square()
    return error if mask is None else error * mask


for mutant in ("`error.masked_fill(mask == 0, 0.0)` becomes `error`", "`0.0` becomes `1.0`"):
    value_loss.equivalent(
        mutant, "entries masked out are left out of the mean, whatever they hold, if it is finite"
    )


# -- 02.7 ---------------------------------------------------------------------------------------

explained_variance = exercise(
    "explained_variance", number="02.7", points=1, reference=f"{PACKAGE}:explained_variance"
)


@explained_variance.cases(visible=6, fresh=14)
def critic_and_returns(g):
    N = g.size(3, 10)
    if g.bool(0.25):
        return dict(values=g.normal(N), returns=torch.full((N,), float(g.integer(1, 9))))
    returns = g.normal(N, mean=3.0, std=2.0)
    return dict(values=0.6 * returns + g.normal(N, mean=1.0), returns=returns)


@explained_variance.probe
def share_as_a_number(answer, case):
    x = copies(case)
    return dict(value=_as_tensor(answer.explained_variance(**x)), inputs_after=x)


@explained_variance.mistake(
    "This is the *unexplained* share, Var(R − V)/Var(R): a perfect critic would get 0. Subtract it"
    " from 1."
)
def unexplained(values, returns):
    return _guarded((returns - values).var() / returns.var(), returns)


@explained_variance.mistake(
    "You use the mean squared error instead of the variance of the error: that is R², which also"
    " blames a critic for a constant offset. The advantages lose a constant when they are"
    " normalised."
)
def r_squared(values, returns):
    share = (returns - values).square().mean() / returns.var(correction=0)
    return _guarded(1 - share, returns)


@explained_variance.mistake(
    "You divide by the variance of the predictions; it is the returns' variance that there is to"
    " explain."
)
def by_predictions(values, returns):
    return _guarded(1 - (returns - values).var() / values.var(), returns)


@explained_variance.mistake(
    "This is Var(V)/Var(R): a critic that scatters as much as the returns and has nothing to do"
    " with them would get 1."
)
def spread_of_values(values, returns):
    return _guarded(values.var() / returns.var(), returns)


@explained_variance.mistake(
    "This is the squared correlation. It is 1 for a critic that predicts ten times too much; the"
    " explained variance is not."
)
def squared_correlation(values, returns):
    a, b = values - values.mean(), returns - returns.mean()
    return _guarded((a * b).sum().square() / (a.square().sum() * b.square().sum()), returns)


@explained_variance.mistake(
    "Equal returns give −∞: there was no variance to explain, and the honest answer is NaN."
)
def minus_infinity(values, returns):
    return 1 - (returns - values).var() / returns.var()


@explained_variance.mistake(
    "A small number below the fraction bar hides that there is nothing to explain: equal returns"
    " give a huge negative number, and the honest answer is NaN."
)
def small_number_below(values, returns):
    return 1 - (returns - values).var() / (returns.var() + 1e-8)


@explained_variance.mistake(
    "Equal returns give 0 as if the critic had failed: there was no variance to explain, and the"
    " honest answer is NaN."
)
def zero_instead(values, returns):
    spread = returns.var()
    return torch.where(spread > 0, 1 - (returns - values).var() / spread, 0.0)


@explained_variance.mistake(
    "You mix two variances: one divides by N − 1 and the other by N. Use the same for both."
)
def mixed_divisors(values, returns):
    return _guarded(1 - (returns - values).var() / returns.var(correction=0), returns)


@explained_variance.mistake(
    "Standard deviations where variances are asked: only variances of independent parts add up to"
    " the whole, so only they have shares."
)
def deviations_divided(values, returns):
    return _guarded(1 - (returns - values).std() / returns.std(), returns)


def _guarded(share, returns):
    return torch.where(returns.var() > 0, share, torch.nan)


# -- 02.8 ---------------------------------------------------------------------------------------

ppo_update = exercise("ppo_update", number="02.8", points=3, uses=["clipped_policy_loss"])


@ppo_update.reference
def scores_what_was_done(
    policy, optimizer, observations, actions, old_log_probs, advantages, epochs=4, clip=0.2
):
    losses = []
    for _ in range(epochs):
        log_probs = action_log_probs(policy(observations), actions)
        loss = ppo_losses.clipped_policy_loss(log_probs, old_log_probs, advantages, clip)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@ppo_update.cases(visible=5, fresh=12)
def small_policy_and_rollout(g):
    N, D, A = g.size(6, 12), g.integer(2, 4), g.integer(2, 4)
    return dict(
        weight=g.normal(A, D, std=0.5), bias=g.normal(A, std=0.3), observations=g.normal(N, D),
        actions=g.integers(0, A, N), advantages=g.normal(N, std=1.5), epochs=g.integer(3, 6),
        clip=g.choice([0.1, 0.15, 0.3]), seed=g.seed(),
    )


@ppo_update.probe
def weights_after_the_update(answer, case):
    torch.manual_seed(case["seed"])
    x = copies(case)
    policy = torch.nn.Linear(x["weight"].shape[1], x["weight"].shape[0])
    policy.load_state_dict({"weight": x["weight"], "bias": x["bias"]})
    policy.to(x["weight"].dtype)
    with torch.no_grad():
        rows = torch.arange(len(x["actions"]))
        old_log_probs = policy(x["observations"]).log_softmax(-1)[rows, x["actions"]]
    optimizer = torch.optim.SGD(policy.parameters(), lr=0.4)
    losses = answer.ppo_update(
        policy, optimizer, x["observations"], x["actions"], old_log_probs, x["advantages"],
        epochs=x["epochs"], clip=x["clip"],
    )
    weight, bias = policy.weight.detach(), policy.bias.detach()
    return dict(losses=losses, weight=weight, bias=bias, inputs_after=x)


def _updated(
    policy, optimizer, observations, actions, old_log_probs, advantages, epochs, clip,
    choose=None, loss_of=ppo_losses.clipped_policy_loss,
):
    """The reference with two places where something else may be done."""
    losses = []
    for _ in range(epochs):
        logits = policy(observations)
        chosen = actions if choose is None else choose(logits)
        loss = loss_of(action_log_probs(logits, chosen), old_log_probs, advantages, clip)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@ppo_update.mistake(
    "The bug is still there: each epoch samples new actions and gives them the advantages of the"
    " actions that were really taken. Score the stored `actions`."
)
def samples_again(
    policy, optimizer, observations, actions, old_log_probs, advantages, epochs=4, clip=0.2
):
    def sample(logits):
        return torch.distributions.Categorical(logits=logits).sample()

    return _updated(
        policy, optimizer, observations, actions, old_log_probs, advantages, epochs, clip, sample
    )


@ppo_update.mistake(
    "You score the likeliest action in each state. The advantages belong to the actions that were"
    " taken, exploration included."
)
def scores_the_likeliest(
    policy, optimizer, observations, actions, old_log_probs, advantages, epochs=4, clip=0.2
):
    return _updated(
        policy, optimizer, observations, actions, old_log_probs, advantages, epochs, clip,
        lambda logits: logits.argmax(-1),
    )


@ppo_update.mistake(
    "In each epoch the ratio is 1 (`old_log_probs` renewed, or REINFORCE's loss without a ratio):"
    " the clip never acts. The old log-probabilities are the rollout's, and stay what they are."
)
def old_policy_renewed(
    policy, optimizer, observations, actions, old_log_probs, advantages, epochs=4, clip=0.2
):
    return _updated(
        policy, optimizer, observations, actions, old_log_probs, advantages, epochs, clip,
        loss_of=lambda new, old, *rest: ppo_losses.clipped_policy_loss(new, new.detach(), *rest),
    )


@ppo_update.mistake(
    "The gradients of the epochs add up: call `optimizer.zero_grad()` before each `backward()`."
)
def gradients_pile_up(
    policy, optimizer, observations, actions, old_log_probs, advantages, epochs=4, clip=0.2
):
    losses = []
    for _ in range(epochs):
        log_probs = action_log_probs(policy(observations), actions)
        loss = ppo_losses.clipped_policy_loss(log_probs, old_log_probs, advantages, clip)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@ppo_update.mistake(
    "The gradients are cleared between `backward()` and `step()`, so that no step changes anything:"
    " clear them before `backward()`."
)
def cleared_too_late(
    policy, optimizer, observations, actions, old_log_probs, advantages, epochs=4, clip=0.2
):
    losses = []
    for _ in range(epochs):
        log_probs = action_log_probs(policy(observations), actions)
        loss = ppo_losses.clipped_policy_loss(log_probs, old_log_probs, advantages, clip)
        losses.append(loss.item())
    return losses


@ppo_update.mistake(
    "The logits of the actions are used as their log-probabilities: normalise them first"
    " (`action_log_probs` does)."
)
def logits_as_log_probs(
    policy, optimizer, observations, actions, old_log_probs, advantages, epochs=4, clip=0.2
):
    losses = []
    for _ in range(epochs):
        log_probs = policy(observations)[torch.arange(len(actions)), actions]
        loss = ppo_losses.clipped_policy_loss(log_probs, old_log_probs, advantages, clip)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@ppo_update.mistake(
    "Only one step is taken, whatever `epochs` says. At the first step the ratio is 1 everywhere,"
    " and PPO is nothing but a policy gradient."
)
def a_single_epoch(
    policy, optimizer, observations, actions, old_log_probs, advantages, epochs=4, clip=0.2
):
    return scores_what_was_done(
        policy, optimizer, observations, actions, old_log_probs, advantages, 1, clip
    )


@ppo_update.mistake(
    "The clip range is 0.2 whatever `clip` says: hand the argument on to the loss."
)
def clip_not_handed_on(
    policy, optimizer, observations, actions, old_log_probs, advantages, epochs=4, clip=0.2
):
    return scores_what_was_done(
        policy, optimizer, observations, actions, old_log_probs, advantages, epochs, 0.2
    )


@ppo_update.mistake(
    "The ratio is not clipped: use `clipped_policy_loss`, or the epochs run away from the data."
)
def no_clip_at_all(
    policy, optimizer, observations, actions, old_log_probs, advantages, epochs=4, clip=0.2
):
    return scores_what_was_done(
        policy, optimizer, observations, actions, old_log_probs, advantages, epochs, 1e6
    )


@ppo_update.mistake(
    "The loss already has its minus; you negate it once more and make good actions rarer."
)
def negated_twice(
    policy, optimizer, observations, actions, old_log_probs, advantages, epochs=4, clip=0.2
):
    return _updated(
        policy, optimizer, observations, actions, old_log_probs, advantages, epochs, clip,
        loss_of=lambda *arguments: -ppo_losses.clipped_policy_loss(*arguments),
    )


@ppo_update.mistake(
    "The advantages are normalised here once more. Take them as they come: who calls the update has"
    " decided on their scale."
)
def normalised_again(
    policy, optimizer, observations, actions, old_log_probs, advantages, epochs=4, clip=0.2
):
    unit = (advantages - advantages.mean()) / (advantages.std(correction=0) + 1e-8)
    return scores_what_was_done(
        policy, optimizer, observations, actions, old_log_probs, unit, epochs, clip
    )
