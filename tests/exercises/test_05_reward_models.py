"""Lesson 05: Elo, Bradley–Terry and its errors, losses for reward models, ceilings, reading."""

import torch
import torch.nn.functional as F

from autograder import exercise, grads, leaves

STRENGTHS = "rlhf_minimal.bradley_terry"
REWARDS = "rlhf_minimal.reward_model"

# -- 05.1 ---------------------------------------------------------------------------------------

elo_update = exercise(
    "elo_update", number="05.1", points=1, reference=f"{STRENGTHS}:elo_update",
    tolerance=(1e-4, "a ten-thousandth of a point; ratings of 2,000 in float32 are that coarse"),
    any_dtype=True,
)


@elo_update.cases(visible=5, fresh=12)
def one_game(g):
    return dict(
        rating_a=g.choice([1000.0, 1400.0, 1500.0]) + g.integer(-80, 80),
        rating_b=g.choice([1200.0, 1500.0, 1900.0]) + g.integer(-80, 80),
        score_a=g.choice([0.0, 1.0, 1.0, 0.5]), k=g.choice([10.0, 24.0, 40.0]),
    )


@elo_update.probe
def both_ratings(answer, case):
    found = _two_numbers(answer.elo_update(**case))
    if not isinstance(found, (tuple, list)) or len(found) != 2:
        return dict(ratings=found)                 # two ratings are asked: (a's, b's)
    return dict(rating_a=found[0], rating_b=found[1])


def _two_numbers(found):
    """A tensor or an array of two numbers as a list; anything else as it is."""
    return found.tolist() if getattr(found, "shape", None) == (2,) else found


def _expected(rating_a, rating_b, base=10.0, scale=400):
    return 1 / (1 + base ** ((rating_b - rating_a) / scale))


@elo_update.mistake(
    "The expected score is the opponent's: the exponent must be (R_b − R_a)/400, which makes it"
    " small for a favourite. As it stands, a win that was certain earns most."
)
def difference_turned_round(rating_a, rating_b, score_a, k=32.0):
    change = k * (score_a - _expected(rating_b, rating_a))
    return rating_a + change, rating_b - change


@elo_update.mistake(
    "The base is e; Elo's is 10: 400 points are odds of ten to one."
)
def natural_base(rating_a, rating_b, score_a, k=32.0):
    change = k * (score_a - _expected(rating_a, rating_b, base=2.718281828459045))
    return rating_a + change, rating_b - change


@elo_update.mistake(
    "Both ratings move the same way. What a gains, b loses: points are only passed on."
)
def both_gain(rating_a, rating_b, score_a, k=32.0):
    change = k * (score_a - _expected(rating_a, rating_b))
    return rating_a + change, rating_b + change


@elo_update.mistake(
    "b's change is computed with a's *new* rating. Both expected scores belong to the ratings"
    " before the game."
)
def one_after_the_other(rating_a, rating_b, score_a, k=32.0):
    new_a = rating_a + k * (score_a - _expected(rating_a, rating_b))
    return new_a, rating_b + k * (1 - score_a - _expected(rating_b, new_a))


@elo_update.mistake(
    "The opponent does not matter here: the score is held against ½. Hold it against the"
    " *expected* score, else beating beginners makes a champion."
)
def against_one_half(rating_a, rating_b, score_a, k=32.0):
    change = k * (score_a - 0.5)
    return rating_a + change, rating_b - change


@elo_update.mistake(
    "a's rating is right. b's score is 1 − S_a (where a won, b lost): b loses what a gains."
)
def both_have_the_score(rating_a, rating_b, score_a, k=32.0):
    expected = _expected(rating_a, rating_b)
    return rating_a + k * (score_a - expected), rating_b + k * (score_a - (1 - expected))


@elo_update.mistake("These are the changes of the ratings; the new ratings are asked.")
def changes_only(rating_a, rating_b, score_a, k=32.0):
    change = k * (score_a - _expected(rating_a, rating_b))
    return change, -change


@elo_update.mistake("`k` is not used: 32 stands in its place.")
def k_fixed(rating_a, rating_b, score_a, k=32.0):
    change = 32.0 * (score_a - _expected(rating_a, rating_b))
    return rating_a + change, rating_b - change


@elo_update.mistake(
    "The step has the wrong sign: the winner loses points. Add k·(score − expected) to a."
)
def winner_pays(rating_a, rating_b, score_a, k=32.0):
    change = k * (score_a - _expected(rating_a, rating_b))
    return rating_a - change, rating_b + change


@elo_update.mistake(
    "Strengths are divided, a's rating by the sum of both. Ratings are logarithms: only their"
    " difference counts, as 1/(1 + 10^((R_b − R_a)/400))."
)
def share_of_ratings(rating_a, rating_b, score_a, k=32.0):
    change = k * (score_a - rating_a / (rating_a + rating_b))
    return rating_a + change, rating_b - change


@elo_update.mistake(
    "The 400 is missing: a lead of three points would already be odds of a thousand to one."
)
def without_the_scale(rating_a, rating_b, score_a, k=32.0):
    change = k * (score_a - 1 / (1 + 10 ** (rating_b - rating_a)))
    return rating_a + change, rating_b - change


@elo_update.mistake("b's rating has not moved. What a gains, b loses.")
def opponent_forgotten(rating_a, rating_b, score_a, k=32.0):
    return rating_a + k * (score_a - _expected(rating_a, rating_b)), rating_b


@elo_update.mistake("Only a's new rating comes back; return both, (a's, b's).")
def one_rating(rating_a, rating_b, score_a, k=32.0):
    return rating_a + k * (score_a - _expected(rating_a, rating_b))


@elo_update.mistake("A tie counts as a loss here. Its score is ½: use `score_a` as it comes.")
def tie_as_loss(rating_a, rating_b, score_a, k=32.0):
    change = k * ((score_a == 1) - _expected(rating_a, rating_b))
    return rating_a + change, rating_b - change


elo_update.equivalent("`300.0` becomes `600.0`", "a guard for ratings 120,000 points apart")

# -- 05.2 ---------------------------------------------------------------------------------------

fit_bradley_terry = exercise(
    "fit_bradley_terry", number="05.2", points=3, reference=f"{STRENGTHS}:fit_bradley_terry",
    takes_away=[f"{STRENGTHS}:bradley_terry_errors"], any_dtype=True, seconds=20,
    tolerance=(1e-3, "fitting may stop a little early; an error of a thousandth of a nat moves a"
               " probability by a quarter of a thousandth at most"),
)


@fit_bradley_terry.cases(visible=5, fresh=10)
def a_tournament(g):
    n = 2 + g.size(1, 4)
    wins = g.integers(0, 8, n, n).double()
    ring = torch.arange(n)
    wins[ring, (ring + 1) % n] += 1                # everybody beats the next: all are connected
    return dict(wins=wins.fill_diagonal_(0))


def _fit(wins, steps=60, rate=None):
    """Newton with a small ridge; or plain gradient steps where a rate is given."""
    wins = wins.double()
    games, n = wins + wins.T, len(wins)
    strengths = torch.zeros(n, dtype=torch.float64)
    for _ in range(steps):
        p = torch.sigmoid(strengths[:, None] - strengths)
        gradient = (wins - games * p).sum(1)
        weight = games * p * (1 - p)
        if rate is None:
            information = torch.diag(weight.sum(1)) - weight
            step = torch.linalg.solve(information + 1 / n, gradient)
            step = step / max(1.0, step.abs().max().item())
        else:
            step = rate * gradient
        strengths = strengths + step
    return strengths - strengths.mean()


@fit_bradley_terry.mistake(
    "The signs are turned round: the best item comes out weakest. wins[i, j] counts how often i,"
    " the row, beat j."
)
def losses_for_wins(wins):
    return _fit(wins.T)


@fit_bradley_terry.mistake(
    "This is each item's share of won games. It is no log-odds, and it takes no account of who the"
    " opponents were."
)
def share_of_wins(wins):
    share = wins.sum(1) / (wins + wins.T).sum(1)
    return share - share.mean()


@fit_bradley_terry.mistake(
    "These are the log-odds of each item's wins over all its games. That takes no account of who"
    " the opponents were: a win against the strongest counts like one against the weakest."
)
def odds_of_all_games(wins):
    odds = (wins.sum(1) / wins.sum(0)).log()
    return odds - odds.mean()


@fit_bradley_terry.mistake(
    "Only differences are determined, and here the first item is held at 0. Subtract the mean."
)
def first_at_zero(wins):
    strengths = _fit(wins)
    return strengths - strengths[0]


@fit_bradley_terry.mistake(
    "These are the exponentials of the strengths, Bradley and Terry's own form. Asked are the"
    " strengths themselves, in nats: take the logarithm, then subtract the mean."
)
def exponentials(wins):
    p = _fit(wins).exp()
    return p / p.sum()


@fit_bradley_terry.mistake(
    "The strengths are in Elo's points; nats are asked: divide by 400/log 10 = 173.7."
)
def in_elo_points(wins):
    return _fit(wins) * 400 / torch.log(torch.tensor(10.0)).double()


@fit_bradley_terry.mistake(
    "All pairs weigh the same, however many games they played: you fit the *shares*. Ten games say"
    " more than one: the likelihood sums over games."
)
def shares_fitted(wins):
    games = wins + wins.T
    return _fit(torch.where(games > 0, wins / games.clamp(min=1), torch.zeros_like(wins)))


@fit_bradley_terry.mistake(
    "The fit has stopped far too early: the strengths are still close to 0. Go on until no"
    " strength moves any more, or use Newton's step."
)
def stopped_early(wins):
    return _fit(wins, steps=1, rate=0.01)


@fit_bradley_terry.mistake(
    "Only one Newton step is taken. Its probabilities and its matrix are those of equal strengths:"
    " compute them anew from the new strengths, and repeat until nothing moves."
)
def one_newton_step(wins):
    games = wins + wins.T
    information = torch.diag(games.sum(1)) / 4 - games / 4
    return torch.linalg.solve(information + 1 / len(wins), (wins - games / 2).sum(1))


@fit_bradley_terry.mistake(
    "Only differences are determined, and here the exponentials of the strengths sum to 1. Subtract"
    " the mean of the strengths."
)
def exponentials_sum_to_one(wins):
    return _fit(wins).log_softmax(-1)


@fit_bradley_terry.mistake(
    "Newton's matrix cannot be inverted. Its rows sum to 0: add 1/n to each entry. (If you did,"
    " look at the step's sign: where strengths run off, all p become 0 or 1, and the matrix 0.)"
)
def singular(wins):
    games = wins + wins.T
    information = torch.diag(games.sum(1)) - games
    return torch.linalg.solve(information * 0, wins.sum(1) - games.sum(1) / 2)


@fit_bradley_terry.mistake(
    "One is added to all counts, or a penalty pulls the strengths towards 0. That is a prior; the"
    " maximum of the likelihood is asked."
)
def one_added(wins):
    return _fit((wins + 1).fill_diagonal_(0))


ARRIVES = "Newton's method arrives at the same top, only in more steps"
FREE = "it fills the direction in which all strengths move together; the gradient has no part in it"
HALVING = "a guard for steps that overshoot, which these tournaments never need"
STOPPING = "the last steps change less than the tolerance"
CENTRED = "the steps keep the mean at 0, up to rounding"
fit_bradley_terry.equivalent("`(wins - expected).sum(1)` becomes", ARRIVES)
fit_bradley_terry.equivalent("`_information(wins, strengths) + 1 / n` becomes", FREE)
fit_bradley_terry.equivalent("`1 / n` becomes", FREE)
fit_bradley_terry.equivalent("`1` becomes `2`", f"of 1 / n: {FREE}; of 1 + 1e-12: {HALVING}")
fit_bradley_terry.equivalent("`_log_likelihood(wins, strengths + step) < now", HALVING)
fit_bradley_terry.equivalent("`1e-12` becomes", HALVING)
fit_bradley_terry.equivalent("`step / 2` becomes", HALVING)
fit_bradley_terry.equivalent("`2` becomes `3`", HALVING)
fit_bradley_terry.equivalent("`step.abs().max() <= tolerance` becomes", STOPPING)
fit_bradley_terry.equivalent("`step.abs().max()` becomes", STOPPING)
fit_bradley_terry.equivalent("`step.abs()` becomes", STOPPING)
fit_bradley_terry.equivalent("`strengths - strengths.mean()` becomes", CENTRED)
fit_bradley_terry.equivalent("`strengths.mean()` becomes", CENTRED)

# -- 05.3 ---------------------------------------------------------------------------------------

bradley_terry_errors = exercise(
    "bradley_terry_errors", number="05.3", points=2,
    reference=f"{STRENGTHS}:bradley_terry_errors", any_dtype=True,
    tolerance=(1e-4, "an inverse in float32"),
)


@bradley_terry_errors.cases(visible=4, fresh=12)
def strengths_and_games(g):
    n = 2 + g.size(1, 4)
    wins = g.integers(0, 8, n, n).double()
    ring = torch.arange(n)
    wins[ring, (ring + 1) % n] += 1
    strengths = g.normal(n).double()
    return dict(wins=wins.fill_diagonal_(0), strengths=strengths - strengths.mean())


@bradley_terry_errors.probe
def one_error_a_strength(answer, case):
    try:
        errors = answer.bradley_terry_errors(**case)
    except torch.linalg.LinAlgError:
        errors = torch.full_like(case["strengths"], float("nan"))
    if isinstance(errors, torch.Tensor) and not (errors.abs() < 1000).all():
        errors = torch.full_like(errors, float("nan"))     # what rounding makes of "no inverse"
    return dict(errors=errors, inputs_after=case)


def _information(wins, strengths):
    p = torch.sigmoid(strengths[:, None] - strengths)
    weight = (wins + wins.T) * p * (1 - p)
    return torch.diag(weight.sum(1)) - weight


@bradley_terry_errors.mistake(
    "These are variances; a standard error is their square root."
)
def variances(wins, strengths):
    return torch.linalg.pinv(_information(wins, strengths)).diagonal()


@bradley_terry_errors.mistake(
    "One over the square root of the information's diagonal: that is the error if all *other*"
    " strengths were known. They are estimated too: invert the whole matrix, then take the"
    " diagonal."
)
def others_known(wins, strengths):
    return _information(wins, strengths).diagonal().rsqrt()


@bradley_terry_errors.mistake(
    "The mean is not held at 0: the 1/n that was added to make the matrix invertible is still in"
    " the covariance. Subtract it again, or use the pseudo-inverse."
)
def one_over_n_left_in(wins, strengths):
    inverse = torch.linalg.inv(_information(wins, strengths) + 1 / len(wins))
    return inverse.diagonal().sqrt()


@bradley_terry_errors.mistake(
    "Only won games are counted. A lost game says as much: pair (i, j) met wins[i, j] + wins[j, i]"
    " times."
)
def wins_only(wins, strengths):
    p = torch.sigmoid(strengths[:, None] - strengths)
    weight = wins * p * (1 - p)
    return torch.linalg.pinv(torch.diag(weight.sum(1)) - weight).diagonal().abs().sqrt()


@bradley_terry_errors.mistake(
    "Each game weighs ¼, as if every match were even. A game between unequals says less:"
    " p·(1 − p)."
)
def all_even(wins, strengths):
    return torch.linalg.pinv(_information(wins, strengths * 0)).diagonal().sqrt()


@bradley_terry_errors.mistake(
    "The weight of a game is p·(1 − p), the variance of its result; the factor 1 − p is missing,"
    " and the matrix is not even symmetric."
)
def without_one_minus_p(wins, strengths):
    n, p = len(wins), torch.sigmoid(strengths[:, None] - strengths)
    weight = (wins + wins.T) * p
    inverse = torch.linalg.inv(torch.diag(weight.sum(1)) - weight + 1 / n) - 1 / n
    return inverse.diagonal().sqrt()


@bradley_terry_errors.mistake(
    "The first strength is held at 0, so its error is 0 and all others carry its share. Hold the"
    " *mean* at 0."
)
def first_held(wins, strengths):
    covariance = torch.zeros_like(wins)
    covariance[1:, 1:] = torch.linalg.inv(_information(wins, strengths)[1:, 1:])
    return covariance.diagonal().sqrt()


@bradley_terry_errors.mistake(
    "These are half-widths of 95% intervals; one standard error is asked, without the 1.96."
)
def half_widths(wins, strengths):
    return 1.96 * torch.linalg.pinv(_information(wins, strengths)).diagonal().sqrt()


@bradley_terry_errors.mistake(
    "The matrix has no inverse, and rounding makes numbers beyond all measure of it, or negative"
    " variances, whose roots are NaN. The information's rows sum to 0: add 1/n to each *entry*"
    " before you invert. (If you did: are the diagonal's sums positive, all else negative?)"
)
def no_inverse(wins, strengths):
    return torch.linalg.inv(_information(wins, strengths)).diagonal().sqrt()


@bradley_terry_errors.mistake(
    "1/n is added to the diagonal alone. That pulls all strengths towards 0; asked is 1/n in"
    " *every* entry, which touches only the direction in which all move together."
)
def identity_over_n(wins, strengths):
    n = len(wins)
    filled = _information(wins, strengths) + torch.eye(n).double() / n
    return (torch.linalg.inv(filled) - 1 / n).diagonal().sqrt()


@bradley_terry_errors.mistake(
    "The strengths that were passed are not used: you fit again. Compute the information at"
    " `strengths`."
)
def fitted_again(wins, strengths):
    return torch.linalg.pinv(_information(wins, _fit(wins))).diagonal().sqrt()


# -- 05.4 ---------------------------------------------------------------------------------------

pairwise_loss = exercise(
    "pairwise_loss", number="05.4", points=2, reference=f"{REWARDS}:pairwise_loss",
)


@pairwise_loss.cases(visible=6, fresh=12)
def rewards_of_pairs(g):
    B, spread = g.size(2, 8), g.choice([1.0, 1.0, 1.0, 200.0])
    case = dict(chosen=g.normal(B, std=spread), rejected=g.normal(B, std=spread))
    kind = g.choice(["none", "number", "tensor"])
    if kind == "number":
        case["margin"] = g.uniform(0.3, 1.5)
    if kind == "tensor":
        case["margin"] = g.uniform(0.3, 1.5, B)
    return case


@pairwise_loss.probe
def loss_and_gradients(answer, case):
    x = leaves({name: case[name] for name in ("chosen", "rejected")})
    rest = {name: case[name] for name in case if name == "margin"}
    loss = answer.pairwise_loss(**x, **rest)
    return dict(loss=loss, grad=grads(loss, x), inputs_after=x)


@pairwise_loss.mistake(
    "There is no −log: this is the mean of σ(r_chosen − r_rejected) itself. It *falls* when chosen"
    " loses to rejected, so minimising it trains the model to prefer the wrong answer."
)
def without_minus_log(chosen, rejected, margin=0.0):
    return torch.sigmoid(chosen - rejected - margin).mean()


@pairwise_loss.mistake(
    "The sign is right, but the logarithm is missing: −σ, or 1 − σ. Its gradient vanishes for pairs"
    " that the model gets badly wrong, so those are never mended."
)
def without_log(chosen, rejected, margin=0.0):
    return -torch.sigmoid(chosen - rejected - margin).mean()


@pairwise_loss.mistake(
    "The sign is right, but the logarithm is missing: 1 − σ. Its gradient vanishes for pairs that"
    " the model gets badly wrong, so those are never mended."
)
def one_minus_sigma(chosen, rejected, margin=0.0):
    return (1 - torch.sigmoid(chosen - rejected - margin)).mean()


@pairwise_loss.mistake(
    "The minus before the logarithm is missing: this is the log-likelihood, which is to be as"
    " *large* as possible. A loss is minimised."
)
def without_minus(chosen, rejected, margin=0.0):
    return F.logsigmoid(chosen - rejected - margin).mean()


@pairwise_loss.mistake(
    "Chosen and rejected are exchanged: this trains towards the rejected answer."
)
def exchanged(chosen, rejected, margin=0.0):
    return -F.logsigmoid(rejected - chosen - margin).mean()


@pairwise_loss.mistake("Summed over the pairs; the mean is asked: the step must not grow with the"
                       " batch.")
def summed(chosen, rejected, margin=0.0):
    return -F.logsigmoid(chosen - rejected - margin).sum()


@pairwise_loss.mistake(
    "The logarithm is taken after the sigmoid, or of 1 + exp(r_rejected − r_chosen): where rejected"
    " leads by 100, σ rounds to 0 (and exp overflows), and the loss is infinite. `F.logsigmoid`"
    " does both at once."
)
def log_after_sigmoid(chosen, rejected, margin=0.0):
    return -torch.sigmoid(chosen - rejected - margin).log().mean()


@pairwise_loss.mistake(
    "The margin has the wrong sign: it must be *subtracted*, so that chosen has to win by more."
)
def margin_added(chosen, rejected, margin=0.0):
    return -F.logsigmoid(chosen - rejected + margin).mean()


@pairwise_loss.mistake("The margin is not used.")
def margin_unused(chosen, rejected, margin=0.0):
    return -F.logsigmoid(chosen - rejected).mean()


@pairwise_loss.mistake(
    "The logarithm of the mean probability. The likelihood is a product over pairs, so its"
    " logarithm is the sum of the pairs' logarithms: log first, then mean."
)
def log_of_mean(chosen, rejected, margin=0.0):
    return -torch.sigmoid(chosen - rejected - margin).mean().log()


@pairwise_loss.mistake(
    "The value is right, and no gradient flows back (a `detach`, `no_grad` or `.item()` cut it"
    " off): the reward model would never learn."
)
def loss_cut_off(chosen, rejected, margin=0.0):
    return -F.logsigmoid(chosen - rejected - margin).mean().detach()


@pairwise_loss.mistake(
    "One number a pair; the mean over the pairs is asked."
)
def not_averaged(chosen, rejected, margin=0.0):
    return -F.logsigmoid(chosen - rejected - margin)


@pairwise_loss.mistake(
    "Every chosen answer is compared with every rejected one, also those of other pairs. Subtract"
    " within the pairs: (B,) from (B,)."
)
def all_with_all(chosen, rejected, margin=0.0):
    return -F.logsigmoid(chosen[:, None] - rejected - margin).mean()


@pairwise_loss.mistake(
    "The margin stands outside of the logarithm. There it adds a constant, which has no gradient:"
    " chosen need not win by more."
)
def margin_outside(chosen, rejected, margin=0.0):
    return (margin - F.logsigmoid(chosen - rejected)).mean()


@pairwise_loss.mistake(
    "`binary_cross_entropy` of a sigmoid cuts the loss off at 100 where σ rounds to 0, and with it"
    " the gradient. Its form `..._with_logits`, or `F.logsigmoid`, does both at once."
)
def cut_at_one_hundred(chosen, rejected, margin=0.0):
    p = torch.sigmoid(chosen - rejected - margin)
    return F.binary_cross_entropy(p, torch.ones_like(p))


@pairwise_loss.mistake(
    "This is a hinge, max(0, margin − d). It is silent as soon as chosen leads by the margin;"
    " Bradley–Terry's likelihood, −log σ(d − margin), is asked."
)
def hinge(chosen, rejected, margin=0.0):
    return F.relu(margin - (chosen - rejected)).mean()


SHAPES = "it decides whether the margin's shape is checked, not what is computed"
pairwise_loss.equivalent("`margin.dim() > 0` becomes", SHAPES)
pairwise_loss.equivalent("`0` becomes `1`", SHAPES)

# -- 05.5 ---------------------------------------------------------------------------------------

agreement_ceiling = exercise(
    "agreement_ceiling", number="05.5", points=2,
    tolerance=(1e-5, "a mean in float32; plain numbers are as good as tensors here"),
)


@agreement_ceiling.reference
def two_means(probabilities):
    p = probabilities
    agreement = (p**2 + (1 - p) ** 2).mean()
    ceiling = torch.maximum(p, 1 - p).mean()
    return agreement, ceiling


@agreement_ceiling.cases(visible=4, fresh=12)
def how_sure_people_are(g):
    B = g.size(2, 9)
    p = g.uniform(0.02, 0.98, B)
    p[0], p[1] = g.uniform(0.1, 0.4), g.uniform(0.6, 0.95)   # one on either side of a half
    return dict(probabilities=p)


@agreement_ceiling.probe
def agreement_and_ceiling(answer, case):
    found = _two_numbers(answer.agreement_ceiling(**case))
    if not isinstance(found, (tuple, list)) or len(found) != 2:
        return dict(both=found)                    # two numbers are asked
    agreement, ceiling = (x.item() if getattr(x, "shape", None) == () else x for x in found)
    return dict(agreement=agreement, ceiling=ceiling, inputs_after=case)


@agreement_ceiling.mistake(
    "Agreement lacks its second half: both may also prefer the second answer, (1 − p)²."
)
def both_first_only(probabilities):
    p = probabilities
    return (p**2).mean(), torch.maximum(p, 1 - p).mean()


@agreement_ceiling.mistake(
    "This is how often two annotators *dis*agree, 2p(1 − p). Agreement is what is left of 1."
)
def disagreement(probabilities):
    p = probabilities
    return (2 * p * (1 - p)).mean(), torch.maximum(p, 1 - p).mean()


@agreement_ceiling.mistake(
    "The ceiling is the mean of p. The best model does not always say “the first”: where p is below"
    " ½ it says the second, and is right with 1 − p."
)
def always_the_first(probabilities):
    p = probabilities
    return (p**2 + (1 - p) ** 2).mean(), p.mean()


@agreement_ceiling.mistake(
    "The larger of p and 1 − p is taken after averaging. The best model decides for every pair"
    " anew: maximum first, then mean."
)
def maximum_of_means(probabilities):
    p = probabilities
    return (p**2 + (1 - p) ** 2).mean(), torch.maximum(p.mean(), 1 - p.mean())


@agreement_ceiling.mistake(
    "Agreement is computed from the mean p. Squares must be averaged, not averages squared:"
    " pairs on which people are sure make up for those on which they are not."
)
def square_of_mean(probabilities):
    p = probabilities
    return p.mean() ** 2 + (1 - p.mean()) ** 2, torch.maximum(p, 1 - p).mean()


@agreement_ceiling.mistake(
    "The two numbers stand in each other's place: (agreement, ceiling) is asked."
)
def order_exchanged(probabilities):
    agreement, ceiling = two_means(probabilities)
    return ceiling, agreement


@agreement_ceiling.mistake(
    "The ceiling is taken to be the agreement. A model may do better than that: it need not toss"
    " the coin that a second annotator tosses."
)
def ceiling_is_agreement(probabilities):
    agreement, _ = two_means(probabilities)
    return agreement, agreement


@agreement_ceiling.mistake(
    "The ceiling is computed from the agreement, (1 + √(2a − 1))/2: that is an upper bound, reached"
    " where all pairs are equally hard. Here you have the probabilities themselves."
)
def upper_bound(probabilities):
    agreement, _ = two_means(probabilities)
    return agreement, (1 + (2 * agreement - 1).sqrt()) / 2


@agreement_ceiling.mistake(
    "The ceiling is the *smaller* of p and 1 − p: that is how often the best model is wrong."
)
def share_of_errors(probabilities):
    p = probabilities
    return (p**2 + (1 - p) ** 2).mean(), torch.minimum(p, 1 - p).mean()


@agreement_ceiling.mistake(
    "Agreement is m² with m = max(p, 1 − p): both side with the majority. Both may also side"
    " against it, (1 − m)²."
)
def majority_only(probabilities):
    m = torch.maximum(probabilities, 1 - probabilities)
    return (m**2).mean(), m.mean()


@agreement_ceiling.mistake(
    "The ceiling is the share of pairs with p above ½, how often the best model says “the first”."
    " It is right with max(p, 1 − p)."
)
def share_above_half(probabilities):
    p = probabilities
    return (p**2 + (1 - p) ** 2).mean(), (p > 0.5).float().mean()


@agreement_ceiling.mistake("Only the agreement comes back; return both, (agreement, ceiling).")
def agreement_alone(probabilities):
    return two_means(probabilities)[0]


@agreement_ceiling.mistake(
    "One number a pair; the means over the pairs are asked."
)
def ceilings_of_pairs(probabilities):
    p = probabilities
    return p**2 + (1 - p) ** 2, torch.maximum(p, 1 - p)


# -- 05.6 ---------------------------------------------------------------------------------------

rating_loss = exercise(
    "rating_loss", number="05.6", points=1, reference=f"{REWARDS}:rating_loss",
    takes_away=["torch.nn.functional:mse_loss"],
)


@rating_loss.cases(visible=4, fresh=10)
def predictions_and_ratings(g):
    B = g.size(2, 8)
    return dict(predicted=g.normal(B, mean=3.0), ratings=g.integers(1, 8, B).float())


@rating_loss.probe
def squared_error_and_gradient(answer, case):
    x = leaves({"predicted": case["predicted"]})
    loss = answer.rating_loss(ratings=case["ratings"], **x)
    return dict(loss=loss, grad=grads(loss, x), inputs_after=x)


@rating_loss.mistake(
    "The errors' absolute values are averaged; asked are their squares. (Absolute errors lead to"
    " the raters' median, squared ones to their mean.)"
)
def absolute_error(predicted, ratings):
    return (predicted - ratings).abs().mean()


@rating_loss.mistake("The squares are summed; their mean is asked.")
def summed_squares(predicted, ratings):
    return (predicted - ratings).square().sum()


@rating_loss.mistake("There is a root over the mean: the mean of the squares is asked.")
def root_of_mean(predicted, ratings):
    return (predicted - ratings).square().mean().sqrt()


@rating_loss.mistake("The mean is halved; no ½ is asked.")
def halved(predicted, ratings):
    return (predicted - ratings).square().mean() / 2


@rating_loss.mistake(
    "The errors are averaged and then squared: a rating too high makes up for one too low."
    " Square first."
)
def mean_then_square(predicted, ratings):
    return (predicted - ratings).mean().square()


@rating_loss.mistake(
    "The value is right, and no gradient flows back to the predictions: nothing would be learned."
)
def rating_cut_off(predicted, ratings):
    return (predicted - ratings).square().mean().detach()


# -- 05.7 ---------------------------------------------------------------------------------------

last_token_reward = exercise(
    "last_token_reward", number="05.7", points=2, reference=f"{REWARDS}:last_token_reward",
    takes_away=[f"{REWARDS}:RewardModel"],
)


@last_token_reward.cases(visible=6, fresh=14)
def values_and_padding(g):
    B, T = g.size(2, 5), g.size(3, 7)
    side = g.choice(["right", "right", "left"])
    mask = g.padding_mask(B, T, side=side).long()
    values = g.normal(B, T)
    if g.choice([True, True, False]):              # a reward may be 0; it is no padding for that
        values[0, mask[0].nonzero().max()] = 0.0
    return dict(values=values, attention_mask=mask)


@last_token_reward.probe
def rewards_and_gradient(answer, case):
    x = leaves(case)
    rewards = answer.last_token_reward(**x)
    return dict(rewards=rewards, grad=grads(rewards, x), inputs_after=x)


@last_token_reward.mistake(
    "The last *column* is read. In a batch padded on the right that is padding for all rows but the"
    " longest: the same answer gets another reward in other company."
)
def last_column(values, attention_mask):
    return values[:, -1]


@last_token_reward.mistake(
    "Right under right padding alone: the number of real tokens, less one, is the last token's"
    " place only where the row begins at 0. Look for the largest *position* whose mask is 1."
)
def count_less_one(values, attention_mask):
    last = attention_mask.sum(-1) - 1
    return values.gather(-1, last[:, None]).squeeze(-1)


@last_token_reward.mistake(
    "Off by one: with n real tokens, counted from 0, the last stands at n − 1. What you read is"
    " the first padding token, or the last column where there is none."
)
def one_too_far(values, attention_mask):
    last = attention_mask.sum(-1).clamp(max=values.shape[1] - 1)
    return values.gather(-1, last[:, None]).squeeze(-1)


@last_token_reward.mistake(
    "Off by one: this is the token *before* the last. The last real one stands at the largest"
    " position whose mask is 1; nothing is shifted here."
)
def one_too_near(values, attention_mask):
    last = (torch.arange(values.shape[1]) * attention_mask).argmax(-1)
    return values.gather(-1, (last - 1).clamp(min=0)[:, None]).squeeze(-1)


@last_token_reward.mistake(
    "The last value that is not 0 is read. A real token's value may be 0, too: look at the mask,"
    " not at the values."
)
def last_not_zero(values, attention_mask):
    return torch.stack([row[row != 0][-1] for row in values * attention_mask])


@last_token_reward.mistake(
    "Values at padding are set to 0, and then the last column is read: a 0 for every row that is"
    " padded on the right."
)
def last_column_masked(values, attention_mask):
    return (values * attention_mask)[:, -1]


@last_token_reward.mistake(
    "The first real token is read (`argmax` of the mask gives the first 1). It is the prompt's, and"
    " has seen nothing of the answer."
)
def first_real(values, attention_mask):
    first = attention_mask.argmax(-1)
    return values.gather(-1, first[:, None]).squeeze(-1)


@last_token_reward.mistake(
    "This is the mean over the real tokens. It can be a good reward too, but the last token's value"
    " is asked."
)
def mean_of_real(values, attention_mask):
    return (values * attention_mask).sum(-1) / attention_mask.sum(-1)


@last_token_reward.mistake(
    "This is the sum over the real tokens: such a reward grows with the answer's length."
)
def sum_of_real(values, attention_mask):
    return (values * attention_mask).sum(-1)


@last_token_reward.mistake(
    "This is the largest value of a real token, not the value of the last one."
)
def largest_value(values, attention_mask):
    return values.masked_fill(attention_mask == 0, -torch.inf).max(-1).values


@last_token_reward.mistake(
    "The shape is (B, 1): the dimension that `gather` needs must go again (`squeeze(-1)`), else"
    " chosen − rejected would become a table of all with all."
)
def dimension_left(values, attention_mask):
    return _last(values, attention_mask)[:, None]


@last_token_reward.mistake(
    "The values are right, and no gradient flows back to them: the reward model would never learn."
)
def reward_cut_off(values, attention_mask):
    return _last(values, attention_mask).detach()


def _last(values, attention_mask):
    places = torch.arange(values.shape[1]) * attention_mask
    return values.gather(-1, places.argmax(-1)[:, None]).squeeze(-1)


last_token_reward.equivalent("`-1` becomes `1`", "the last dimension of (B, T) is dimension 1")
