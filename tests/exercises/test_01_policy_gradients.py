"""Lesson 01: returns, the Bellman equation, REINFORCE and its variance."""

import itertools

import torch

from autograder import copies, exercise, grads, leaves

PACKAGE = "rlhf_minimal.policy_gradient"


# -- 01.1 ---------------------------------------------------------------------------------------

discounted_returns = exercise(
    "discounted_returns", number="01.1", points=2, reference=f"{PACKAGE}:discounted_returns"
)


@discounted_returns.cases(visible=4, fresh=12)
def one_episode(g):
    return dict(rewards=g.normal(g.size(3, 12)), gamma=g.choice([0.5, 1.0, g.uniform(0.1, 0.99)]))


@discounted_returns.mistake(
    "You add up the past: the sum at step t runs over the rewards before it. An action cannot"
    " change what has already happened; start at the last step and walk back."
)
def from_the_start(rewards, gamma):
    total, returns = 0.0, []
    for reward in rewards.tolist():
        total = reward + gamma * total
        returns.append(total)
    return torch.tensor(returns)


@discounted_returns.mistake(
    "The numbers are right and their order is reversed: you collected them from the last step to"
    " the first and have not turned the list round."
)
def left_reversed(rewards, gamma):
    return _returns(rewards, gamma).flip(0)


@discounted_returns.mistake(
    "The reward of the step itself is missing: you give G_{t+1} where G_t is asked. The action at t"
    " earns r_t first of all."
)
def without_own_reward(rewards, gamma):
    return torch.cat([_returns(rewards, gamma)[1:], torch.zeros(1)])


@discounted_returns.mistake(
    "The reward of the step itself is discounted too: only what comes later is multiplied by γ,"
    " G_t = r_t + γ·G_{t+1}."
)
def present_discounted(rewards, gamma):
    return gamma * _returns(rewards, gamma)


@discounted_returns.mistake(
    "Every step gets the return of the whole episode, G_0. Each step's return begins at that step."
)
def same_everywhere(rewards, gamma):
    return _returns(rewards, gamma)[0].expand(len(rewards)).clone()


@discounted_returns.mistake(
    "You discount from the start of the episode, γ^k, where the discount counts the steps since t,"
    " γ^(k−t): late actions would hardly matter at all."
)
def discounted_from_start(rewards, gamma):
    weighed = rewards * gamma ** torch.arange(len(rewards))
    return weighed.flip(0).cumsum(0).flip(0)


@discounted_returns.mistake("γ is not used: this is the undiscounted sum of the rewards to come.")
def undiscounted(rewards, gamma):
    return rewards.flip(0).cumsum(0).flip(0)


@discounted_returns.mistake(
    "You look one step ahead only, r_t + γ·r_{t+1}. The recursion needs the next return, which"
    " you have just computed, instead of the next reward."
)
def one_step_ahead(rewards, gamma):
    return rewards + gamma * torch.cat([rewards[1:], torch.zeros(1)])


@discounted_returns.mistake(
    "The returns are right, and `rewards` has been overwritten by them: whoever uses the rewards"
    " afterwards works with wrong numbers. Write into a new tensor."
)
def in_place(rewards, gamma):
    for t in range(len(rewards) - 2, -1, -1):
        rewards[t] += gamma * rewards[t + 1]
    return rewards


discounted_returns.equivalent("becomes `rewards.dtype`", "the cases' rewards are floats already")
discounted_returns.equivalent("becomes `torch.float32`", "the cases' rewards are float32 already")


def _returns(rewards, gamma):
    total, returns = 0.0, []
    for reward in rewards.tolist()[::-1]:
        total = reward + gamma * total
        returns.append(total)
    return torch.tensor(returns[::-1])


# -- 01.2 ---------------------------------------------------------------------------------------

bellman_backup = exercise("bellman_backup", number="01.2", points=3)


@bellman_backup.reference
def expected_backup(values, policy, transitions, rewards, gamma):
    action_values = rewards + gamma * (transitions @ values)  # (S, A, S) @ (S,) -> (S, A)
    return (policy * action_values).sum(dim=-1)  # (S, A) -> (S,)


@bellman_backup.cases(visible=4, fresh=12)
def small_world(g):
    S, A = g.size(2, 6), g.integer(2, 4)
    return dict(
        values=g.normal(S), policy=g.probabilities(S, A), transitions=g.probabilities(S, A, S),
        rewards=g.normal(S, A), gamma=g.uniform(0.3, 0.95),
    )


@bellman_backup.mistake(
    "You take the best action's value: that is the backup of Bellman's optimality equation. Here"
    " the policy acts, so average over its actions with its probabilities."
)
def best_action(values, policy, transitions, rewards, gamma):
    return (rewards + gamma * (transitions @ values)).max(dim=-1).values


@bellman_backup.mistake(
    "All actions count alike. The policy takes some more often than others: weigh each by π(a|s)."
)
def uniform_policy(values, policy, transitions, rewards, gamma):
    return (rewards + gamma * (transitions @ values)).mean(dim=-1)


@bellman_backup.mistake(
    "The actions' values are added up without their probabilities: a state with more actions would"
    " be worth more for that alone."
)
def unweighed_sum(values, policy, transitions, rewards, gamma):
    return (rewards + gamma * (transitions @ values)).sum(dim=-1)


@bellman_backup.mistake(
    "Policy-weighted values are averaged once more: the probabilities already sum to 1, so sum over"
    " the actions instead of taking a mean."
)
def averaged_twice(values, policy, transitions, rewards, gamma):
    return (policy * (rewards + gamma * (transitions @ values))).mean(dim=-1)


@bellman_backup.mistake(
    "γ is not used: a reward after a hundred steps would count as much as the next one, and in a"
    " world without an end the values would grow for ever."
)
def no_discount(values, policy, transitions, rewards, gamma):
    return (policy * (rewards + transitions @ values)).sum(dim=-1)


@bellman_backup.mistake(
    "The immediate reward is discounted too: γ belongs to the value of the next state alone."
)
def reward_discounted(values, policy, transitions, rewards, gamma):
    return (policy * gamma * (rewards + transitions @ values)).sum(dim=-1)


@bellman_backup.mistake(
    "The immediate reward is missing: with γ < 1 every value would shrink to zero, sweep by sweep."
)
def no_reward(values, policy, transitions, rewards, gamma):
    return (policy * gamma * (transitions @ values)).sum(dim=-1)


@bellman_backup.mistake(
    "transitions[s, a, s'] is read the wrong way round: you sum over the state one comes from. A"
    " state's value looks forward, to the states it leads to."
)
def looks_backward(values, policy, transitions, rewards, gamma):
    came_from = torch.einsum("sat,s->ta", transitions, values)
    return (policy * (rewards + gamma * came_from)).sum(dim=-1)


@bellman_backup.mistake(
    "The value of the state itself stands where the next state's belongs: where an action leads"
    " would make no difference."
)
def own_value(values, policy, transitions, rewards, gamma):
    return (policy * (rewards + gamma * values.unsqueeze(-1))).sum(dim=-1)


@bellman_backup.mistake(
    "States later in the sweep already see the new values of earlier ones. That converges as well"
    " (Gauss–Seidel), but one backup asks for all new values from the old ones."
)
def new_values_at_once(values, policy, transitions, rewards, gamma):
    values = values.clone()
    for s in range(len(values)):
        values[s] = policy[s] @ (rewards[s] + gamma * (transitions[s] @ values))
    return values


@bellman_backup.mistake(
    "`values` is overwritten: the new values are right, but the caller's old ones are gone, and the"
    " change from one sweep to the next always looks like zero."
)
def overwritten(values, policy, transitions, rewards, gamma):
    values.copy_(expected_backup(values, policy, transitions, rewards, gamma))
    return values


bellman_backup.equivalent("`-1` becomes `1`", "the last dimension of (S, A) is dimension 1")


# -- 01.3 ---------------------------------------------------------------------------------------

action_log_probs = exercise(
    "action_log_probs", number="01.3", points=1, reference=f"{PACKAGE}:action_log_probs"
)


@action_log_probs.cases(visible=6, fresh=14)
def logits_and_actions(g):
    N, A = g.size(2, 8), g.integer(2, 5)
    spread = g.choice([1.0, 1.0, 150.0])
    actions = g.integers(0, A, N)
    return dict(logits=g.normal(N, A, std=spread), actions=actions)


@action_log_probs.probe
def log_probs_and_gradient(answer, case):
    x = leaves(case)
    value = answer.action_log_probs(**x)
    return dict(log_probs=value, grad=grads(value, x), inputs_after=x)


@action_log_probs.mistake(
    "These are the logits themselves. They become log-probabilities only when the log of the sum of"
    " their exponentials is subtracted: without that the other actions are never pushed down."
)
def raw_logits(logits, actions):
    return logits.gather(-1, actions.unsqueeze(-1)).squeeze(-1)


@action_log_probs.mistake(
    "These are probabilities; their logarithm is asked. The gradient of π is not the gradient of"
    " log π: it is too small by the factor π itself."
)
def probabilities(logits, actions):
    return logits.softmax(-1).gather(-1, actions.unsqueeze(-1)).squeeze(-1)


@action_log_probs.mistake(
    "The logarithm is taken after the softmax: with widely spread logits a probability rounds to 0"
    " and its log to −∞. `log_softmax` does both at once and stays finite."
)
def log_of_softmax(logits, actions):
    return logits.softmax(-1).log().gather(-1, actions.unsqueeze(-1)).squeeze(-1)


@action_log_probs.mistake(
    "The softmax runs over the batch instead of over the actions: each row must hold the"
    " probabilities that sum to 1."
)
def softmax_over_batch(logits, actions):
    return logits.log_softmax(0).gather(-1, actions.unsqueeze(-1)).squeeze(-1)


@action_log_probs.mistake(
    "`log_probs[:, actions]` picks every row's value for every action in the batch, (N, N). Each"
    " row needs its own action only: index with `torch.arange(N)` too, or use `gather`."
)
def all_pairs(logits, actions):
    return logits.log_softmax(-1)[:, actions]


@action_log_probs.mistake(
    "The shape is (N, 1), and times weights of shape (N,) it would silently become (N, N). Squeeze"
    " the last dimension away."
)
def one_column(logits, actions):
    return logits.log_softmax(-1).gather(-1, actions.unsqueeze(-1))


@action_log_probs.mistake(
    "This is the negative log-probability, as a cross-entropy gives it. Log-probabilities are"
    " never positive."
)
def negative(logits, actions):
    return torch.nn.functional.cross_entropy(logits, actions, reduction="none")


@action_log_probs.mistake(
    "One number for the whole batch: give one log-probability per action taken, so that each can"
    " be weighed by its own return."
)
def already_averaged(logits, actions):
    return logits.log_softmax(-1).gather(-1, actions.unsqueeze(-1)).mean()


@action_log_probs.mistake(
    "You give the log-probability of the likeliest action. The policy must be judged by what it"
    " did, exploration included."
)
def likeliest_action(logits, actions):
    return logits.log_softmax(-1).max(-1).values


@action_log_probs.mistake(
    "The values are right, and no gradient flows back to the logits (a `detach`, `no_grad`,"
    " `.item()` or a new `torch.tensor` cut it off): nothing could be learned."
)
def detached(logits, actions):
    return logits.detach().log_softmax(-1).gather(-1, actions.unsqueeze(-1)).squeeze(-1)


action_log_probs.equivalent(
    "`-1` becomes `1`", "the cases are matrices, whose last dimension is dimension 1"
)


# -- 01.4 ---------------------------------------------------------------------------------------

policy_gradient_loss = exercise(
    "policy_gradient_loss", number="01.4", points=2, reference=f"{PACKAGE}:policy_gradient_loss"
)


@policy_gradient_loss.cases(visible=4, fresh=12)
def log_probs_and_weights(g):
    N = g.size(2, 9)
    return dict(log_probs=-g.uniform(0.05, 3.0, N), weights=g.normal(N, mean=1.0, std=2.0))


@policy_gradient_loss.probe
def loss_and_gradients(answer, case):
    x = leaves(case)
    loss = answer.policy_gradient_loss(**x)
    return dict(loss=loss, grad=grads(loss, x), inputs_after=x)


@policy_gradient_loss.mistake(
    "The minus is missing. An optimizer descends, and you want to climb: this would make actions"
    " with a high return less likely."
)
def wrong_sign(log_probs, weights):
    return (log_probs * weights.detach()).mean()


@policy_gradient_loss.mistake(
    "A sum where a mean is asked: the step would grow with the number of samples in the batch, so"
    " the learning rate would mean something else for every batch."
)
def summed(log_probs, weights):
    return -(log_probs * weights.detach()).sum()


@policy_gradient_loss.mistake(
    "You average log-probabilities and weights apart and multiply the averages: every action would"
    " be pushed alike, whatever it earned. Multiply first, then average."
)
def product_of_means(log_probs, weights):
    return -log_probs.mean() * weights.detach().mean()


@policy_gradient_loss.mistake(
    "Shapes (N, 1) and (N,) multiply to (N, N): every action is weighed by every other action's"
    " return as well. Both must have shape (N,) before you multiply (and detach the weights)."
)
def broadcast(log_probs, weights):
    return -(log_probs.unsqueeze(-1) * weights).mean()


@policy_gradient_loss.mistake(
    "The value is right, but a gradient flows into the weights: a critic that they came from would"
    " be trained to make its errors fit the log-probabilities. Detach them."
)
def weights_attached(log_probs, weights):
    return -(log_probs * weights).mean()


@policy_gradient_loss.mistake(
    "The probabilities are weighed, not their logarithms. The log-derivative trick has divided by π"
    " already, because the samples come from π."
)
def exponentiated(log_probs, weights):
    return -(log_probs.exp() * weights.detach()).mean()


@policy_gradient_loss.mistake(
    "The log-probabilities are detached: the value is right and nothing can be learned. It is the"
    " weights that are constants here."
)
def detached_policy(log_probs, weights):
    return -(log_probs.detach() * weights).mean()


@policy_gradient_loss.mistake(
    "The losses of the single steps are not averaged; a loss is one number, and `backward` needs a"
    " scalar."
)
def not_reduced(log_probs, weights):
    return -(log_probs * weights.detach())


@policy_gradient_loss.mistake(
    "You divide by the sum of the weights: with a baseline that sum is about zero, or negative, and"
    " the step explodes or turns round. Divide by the number of samples."
)
def weighted_mean(log_probs, weights):
    return -(log_probs * weights.detach()).sum() / weights.detach().sum()


@policy_gradient_loss.mistake(
    "A baseline is subtracted inside the loss. Take the weights as they come: whoever calls the"
    " loss decides on the baseline."
)
def own_baseline(log_probs, weights):
    return -(log_probs * (weights - weights.mean()).detach()).mean()


# -- 01.5 ---------------------------------------------------------------------------------------

variance_with_baseline = exercise(
    "variance_with_baseline", number="01.5", points=3, uses=["action_log_probs"]
)


@variance_with_baseline.reference
def total_variance(logits, actions, rewards, baseline):
    taken = torch.nn.functional.one_hot(actions, len(logits)).to(logits.dtype)  # (N, A)
    scores = taken - logits.softmax(dim=-1)  # ∇log π of a softmax policy, (N, A)
    estimates = (rewards - baseline).unsqueeze(-1) * scores  # (N, A)
    return estimates.var(dim=0).sum()


@variance_with_baseline.cases(visible=4, fresh=12)
def pulls(g):
    A, N = g.integer(2, 5), g.size(4, 12)
    return dict(
        logits=g.normal(A), actions=g.integers(0, A, N), rewards=g.normal(N, mean=2.0),
        baseline=g.uniform(0.5, 2.5),
    )


@variance_with_baseline.mistake(
    "The baseline is not subtracted: this is the variance without one."
)
def without_baseline(logits, actions, rewards, baseline):
    return _estimates(logits, actions, rewards).var(0).sum()


@variance_with_baseline.mistake(
    "The baseline is added instead of subtracted: all rewards look better still, and the variance"
    " grows."
)
def baseline_added(logits, actions, rewards, baseline):
    return _estimates(logits, actions, rewards + baseline).var(0).sum()


@variance_with_baseline.mistake(
    "This is the variance of the weights r − b. A constant does not change that at all; it is the"
    " gradient estimates whose variance a baseline lowers."
)
def variance_of_weights(logits, actions, rewards, baseline):
    return (rewards - baseline).var()


@variance_with_baseline.mistake(
    "The score is taken as 1 for the action taken and 0 for all others: the −π of ∇log π is"
    " missing. It is what pushes the other actions down."
)
def one_hot_scores(logits, actions, rewards, baseline):
    taken = torch.nn.functional.one_hot(actions, len(logits)).float()
    return ((rewards - baseline).unsqueeze(-1) * taken).var(0).sum()


@variance_with_baseline.mistake(
    "You divide by N once more: that is the variance of the mean of the estimates. Asked is the"
    " variance of a single one."
)
def of_the_mean(logits, actions, rewards, baseline):
    return total_variance(logits, actions, rewards, baseline) / len(actions)


@variance_with_baseline.mistake(
    "The parameters' variances are averaged; the total variance is their sum."
)
def averaged_parameters(logits, actions, rewards, baseline):
    return _estimates(logits, actions, rewards - baseline).var(0).mean()


@variance_with_baseline.mistake(
    "You divide by N, not by N − 1: deviations from the sample's own mean come out a little too"
    " small."
)
def divided_by_n(logits, actions, rewards, baseline):
    return _estimates(logits, actions, rewards - baseline).var(0, correction=0).sum()


@variance_with_baseline.mistake(
    "This is the mean square of the estimates; their mean, which is the gradient itself, has not"
    " been subtracted."
)
def second_moment(logits, actions, rewards, baseline):
    return _estimates(logits, actions, rewards - baseline).square().sum(1).mean()


@variance_with_baseline.mistake(
    "The variance is taken over all N·A numbers at once: the parameters' differing means count as"
    " noise. Take it over the samples, one parameter at a time, then add up."
)
def all_at_once(logits, actions, rewards, baseline):
    return _estimates(logits, actions, rewards - baseline).var()


@variance_with_baseline.mistake(
    "The variance is taken over the parameters of each sample (dimension 1); it is the samples that"
    " scatter (dimension 0)."
)
def over_parameters(logits, actions, rewards, baseline):
    return _estimates(logits, actions, rewards - baseline).var(1).sum()


@variance_with_baseline.mistake(
    "These are standard deviations; variances are asked, and only variances add up."
)
def deviations(logits, actions, rewards, baseline):
    return _estimates(logits, actions, rewards - baseline).std(0).sum()


def _estimates(logits, actions, weights):
    """One gradient estimate a row, ``(N, A)``."""
    taken = torch.nn.functional.one_hot(actions, len(logits)).to(logits.dtype)
    return weights.unsqueeze(-1) * (taken - logits.softmax(-1))


variance_with_baseline.equivalent(
    "`-1` becomes `1`", "(rewards - baseline) has one dimension, so that the last new one is 1"
)


# -- 01.6 ---------------------------------------------------------------------------------------

reward_to_go = exercise(
    "reward_to_go", number="01.6", points=3, uses=["discounted_returns"]
)


@reward_to_go.reference
def returns_within_episodes(rewards, ends, gamma):
    returns, total = torch.zeros_like(rewards), 0.0
    for t in reversed(range(len(rewards))):
        if ends[t]:
            total = 0.0
        total = rewards[t] + gamma * total
        returns[t] = total
    return returns


@reward_to_go.cases(visible=4, fresh=12)
def episodes_end_to_end(g):
    lengths = [g.integer(1, 4) for _ in range(g.integer(2, 5))]
    lengths[g.integer(0, len(lengths))] = 3
    ends = torch.zeros(sum(lengths), dtype=torch.bool)
    ends[torch.tensor(lengths).cumsum(0) - 1] = True
    ends[-1] = g.bool(0.4)
    return dict(
        rewards=g.normal(len(ends)), ends=ends, gamma=g.choice([g.uniform(0.3, 0.95), 1.0])
    )


@reward_to_go.mistake(
    "`ends` is ignored: the rewards of the next episode flow back into this one, whose actions had"
    " no part in them. Start again from zero at each end."
)
def episodes_run_together(rewards, ends, gamma):
    return _returns(rewards, gamma)


@reward_to_go.mistake(
    "The reward of an episode's last step is lost: you set the total to zero after adding it."
    " Clear what comes from the next episode first, then add the step's own reward."
)
def last_reward_lost(rewards, ends, gamma):
    returns, total = torch.zeros_like(rewards), 0.0
    for t in reversed(range(len(rewards))):
        total = 0.0 if ends[t] else rewards[t] + gamma * total
        returns[t] = total
    return returns


@reward_to_go.mistake(
    "The cut is one step off: you clear the total after the last step, so that the last step of an"
    " episode still sees the next one. `ends[t]` says that nothing follows step t."
)
def cut_too_late(rewards, ends, gamma):
    returns, total = torch.zeros_like(rewards), 0.0
    for t in reversed(range(len(rewards))):
        total = rewards[t] + gamma * total
        returns[t] = total
        if ends[t]:
            total = 0.0
    return returns


@reward_to_go.mistake(
    "Each step gets its episode's whole return. That is unbiased too, but it blames and praises an"
    " action for rewards that came before it, and that is pure noise."
)
def whole_episode(rewards, ends, gamma):
    return _by_episode(rewards, ends, lambda own: _returns(own, gamma)[:1].expand(len(own)))


@reward_to_go.mistake(
    "The sum runs from the episode's start to the step: that is what the action could not change."
)
def reward_so_far(rewards, ends, gamma):
    return _by_episode(rewards, ends, lambda own: _returns(own.flip(0), gamma).flip(0))


@reward_to_go.mistake(
    "You discount from the start of the episode, γ^k, instead of from the step, γ^(k−t)."
)
def discounted_from_the_start(rewards, ends, gamma):
    return _by_episode(rewards, ends, lambda own: discounted_from_start(own, gamma))


@reward_to_go.mistake(
    "The steps after the last `True` are lost: where a batch stops in the middle of an episode, its"
    " return so far still belongs to its steps."
)
def unfinished_dropped(rewards, ends, gamma):
    returns = returns_within_episodes(rewards, ends, gamma)
    finished = ends.flip(0).cumsum(0).flip(0) > 0
    return returns * finished


@reward_to_go.mistake("γ is not used inside the episodes.")
def undiscounted_to_go(rewards, ends, gamma):
    return returns_within_episodes(rewards, ends, 1.0)


@reward_to_go.mistake(
    "The returns are right, and `rewards` has been overwritten by them. Write into a new tensor."
)
def rewards_overwritten(rewards, ends, gamma):
    return rewards.copy_(returns_within_episodes(rewards, ends, gamma))


def _by_episode(rewards, ends, returns_of):
    """``returns_of`` each episode, put end to end again."""
    cuts = (ends.nonzero().flatten() + 1).tolist()
    bounds = sorted({0, *cuts, len(rewards)})
    pieces = [rewards[a:b] for a, b in itertools.pairwise(bounds)]
    return torch.cat([returns_of(piece) for piece in pieces])


reward_to_go.equivalent(
    "becomes `torch.ones_like(rewards)`", "every entry is overwritten; only the shape matters"
)


# -- 01.7 ---------------------------------------------------------------------------------------

normalise = exercise("normalise", number="01.7", points=1, reference=f"{PACKAGE}:normalise")


@normalise.cases(visible=6, fresh=14)
def returns_of_a_batch(g):
    kind, N = g.choice(["equal", "one", "usual", "usual", "usual"]), g.size(2, 9)
    values = {"one": g.normal(1, std=3.0), "equal": torch.full((N,), float(g.integer(1, 9)))}
    return dict(values=values.get(kind, g.normal(N, mean=5.0, std=3.0)))


@normalise.probe
def weights(answer, case):
    inputs = copies(case)
    return dict(weights=answer.normalise(**inputs), inputs_after=inputs)


@normalise.mistake(
    "`values.std()` divides by N − 1: for a single return that is 0/0, NaN, and one NaN in the loss"
    " turns every weight of the policy into NaN. Divide by N: `std(correction=0)`."
)
def sample_deviation(values, eps=1e-8):
    return (values - values.mean()) / (_sample_deviation(values) + eps)


@normalise.mistake(
    "A single return gives 0, as it should, but the cause stays: `std()` still divides by N − 1."
    " With the population deviation (÷ N) one return needs no special case, and no NaN is hidden."
)
def nan_painted_over(values, eps=1e-8):
    return ((values - values.mean()) / (_sample_deviation(values) + eps)).nan_to_num()


@normalise.mistake(
    "When all returns are equal, their deviation is 0 and 0/0 is NaN. Add eps to the deviation"
    " before dividing."
)
def no_eps(values, eps=1e-8):
    return (values - values.mean()) / values.std(correction=0)


@normalise.mistake(
    "The mean is not subtracted: all returns stay positive, and the baseline is lost."
)
def not_centred(values, eps=1e-8):
    return values / (values.std(correction=0) + eps)


@normalise.mistake(
    "You divide by the variance, not by its square root: the result has no unit deviation, and its"
    " size depends on the unit in which rewards are counted."
)
def by_variance(values, eps=1e-8):
    return (values - values.mean()) / (values.var(correction=0) + eps)


@normalise.mistake(
    "The values are squeezed into 0 to 1: no weight is negative any more, so that nothing is ever"
    " pushed down."
)
def between_zero_and_one(values, eps=1e-8):
    return (values - values.min()) / (values.max() - values.min() + eps)


@normalise.mistake(
    "A batch of one is handed back as it is: then its raw return is the weight, as if there were no"
    " baseline. One return alone says nothing about better or worse: 0."
)
def single_unchanged(values, eps=1e-8):
    return values if len(values) == 1 else _unit(values, eps)


@normalise.mistake(
    "The mean is subtracted and the deviation is not divided out."
)
def only_centred(values, eps=1e-8):
    return values - values.mean()


@normalise.mistake(
    "The weights are right, and the caller's returns have been overwritten by them (`-=`, `/=`)."
    " Write `values = values - …`, which makes a new tensor."
)
def returns_overwritten(values, eps=1e-8):
    return values.copy_(_unit(values, eps))


normalise.equivalent(
    "becomes `centred.square().mean().sqrt() - eps`",
    "eps is below rounding where returns differ, and where they are equal the numerator is 0",
)


def _sample_deviation(values):
    """What ``values.std()`` gives, without its warning: NaN for one value."""
    return ((values - values.mean()).square().sum() / torch.tensor(len(values) - 1.0)).sqrt()


def _unit(values, eps):
    centred = values - values.mean()
    return centred / (centred.square().mean().sqrt() + eps)
