"""Lesson 10: group-relative advantages, rewards that can be checked, pass@k, GRPO's loss."""

import math
import re

import torch

from autograder import copies, exercise, grads

PACKAGE = "rlhf_minimal.grpo"
CHECKED = "rlhf_minimal.verifiable"

# -- 10.1 ---------------------------------------------------------------------------------------

rloo_advantages = exercise(
    "rloo_advantages", number="10.1", points=2, reference=f"{PACKAGE}:rloo_advantages"
)


@rloo_advantages.cases(visible=4, fresh=12)
def rewards_in_groups(g):
    B, G = g.size(2, 5), g.size(2, 6)
    rewards = g.normal(B, G, mean=1.0) if g.bool(0.6) else g.integers(0, 2, B, G).float()
    return dict(rewards=rewards)


@rloo_advantages.mistake(
    "An answer's own reward is in its baseline: this subtracts the mean of the whole group, and"
    " comes out (G − 1)/G times too small. Leave reward i out of the mean it is compared with."
)
def own_reward_in_baseline(rewards):
    return rewards - rewards.mean(-1, keepdim=True)


@rloo_advantages.mistake(
    "The sum of the others is divided by G. There are only G − 1 others."
)
def others_divided_by_group(rewards):
    return rewards - (rewards.sum(-1, keepdim=True) - rewards) / rewards.shape[-1]


@rloo_advantages.mistake(
    "The whole group's sum, your own reward included, is divided by G − 1."
)
def own_reward_in_the_sum(rewards):
    return rewards - rewards.sum(-1, keepdim=True) / (rewards.shape[-1] - 1)


@rloo_advantages.mistake(
    "The answers are compared along the wrong dimension: with answers to *other* prompts. A group"
    " is a row, (B, G): leave one out along the last dimension."
)
def along_prompts(rewards):
    return rewards - (rewards.sum(0, keepdim=True) - rewards) / (rewards.shape[0] - 1)


@rloo_advantages.mistake(
    "The baseline is taken over the whole batch. Then an answer to an easy prompt looks good"
    " because the prompt is easy; compare it with the answers to its own prompt."
)
def whole_batch(rewards):
    return rewards - (rewards.sum() - rewards) / (rewards.numel() - 1)


@rloo_advantages.mistake(
    "The sign is wrong: an answer better than the others must have a *positive* advantage."
)
def baseline_minus_reward(rewards):
    return _others_mean(rewards) - rewards


@rloo_advantages.mistake("This is the baseline. The advantage is the reward minus it.")
def baseline_alone(rewards):
    return _others_mean(rewards)


@rloo_advantages.mistake(
    "Divided by the group's standard deviation: that is GRPO's, the next exercise. RLOO's gradient"
    " is unbiased because nothing but a baseline is applied."
)
def divided_by_deviation(rewards):
    return (rewards - _others_mean(rewards)) / (rewards.std(-1, keepdim=True) + 1e-6)


@rloo_advantages.mistake(
    "Each reward is compared with the best of the others. Then nearly everything is pushed down;"
    " what is asked is the others' mean."
)
def best_of_the_others(rewards):
    G = rewards.shape[-1]
    others = rewards[:, None, :].masked_fill(torch.eye(G, dtype=torch.bool), -torch.inf)
    return rewards - others.amax(-1)


@rloo_advantages.mistake(
    "Python divides before it subtracts: `/ G - 1` is one less than the quotient by G. Put"
    " parentheses around `(G - 1)`."
)
def parentheses_forgotten(rewards):
    G = rewards.shape[-1]
    return rewards - (rewards.sum(-1, keepdim=True) - rewards) / G - 1


@rloo_advantages.mistake(
    "`keepdim=True` is missing: sums of shape (B,) are laid over the *columns* of (B, G). That goes"
    " without an error where B = G, and is wrong: answer i meets the sum of group i."
)
def sums_over_columns(rewards):
    others = rewards.sum(-1) - rewards
    return rewards - others / (rewards.shape[-1] - 1)


@rloo_advantages.mistake(
    "The *sum* of the others is subtracted; asked is their mean: divide it by G − 1."
)
def sum_of_the_others(rewards):
    return rewards - (rewards.sum(-1, keepdim=True) - rewards)


@rloo_advantages.mistake(
    "Divided by B − 1, the number of other prompts. There are G − 1 other answers: the last"
    " dimension's size."
)
def divided_by_prompts(rewards):
    others = rewards.sum(-1, keepdim=True) - rewards
    return rewards - others / (rewards.shape[0] - 1)


@rloo_advantages.mistake(
    "The mean of the group is subtracted and the result made smaller, (G − 1)/G times. It is the"
    " other way round: r − b is G/(G − 1) times r − mean."
)
def factor_turned_round(rewards):
    G = rewards.shape[-1]
    return (rewards - rewards.mean(-1, keepdim=True)) * (G - 1) / G


rloo_advantages.equivalent("`-1` becomes `1`", "dimension 1 of (B, G) is the last")


def _others_mean(rewards):
    return (rewards.sum(-1, keepdim=True) - rewards) / (rewards.shape[-1] - 1)


# -- 10.2 ---------------------------------------------------------------------------------------

group_relative_advantages = exercise(
    "group_relative_advantages", number="10.2", points=2,
    reference=f"{PACKAGE}:group_relative_advantages",
)


@group_relative_advantages.cases(visible=8, fresh=16)
def groups_and_options(g):
    B, G = g.size(2, 5), g.size(2, 6)
    rewards = g.normal(B, G, mean=1.0) if g.bool(0.6) else g.integers(0, 2, B, G).float()
    if g.bool(0.5):
        rewards[0] = g.choice([0.0, 0.5, 1.0])       # sums of these are exact in float32
    eps = g.choice([1e-6, 0.1])
    if eps == 0.1:
        rewards[-1] = 0.5 + 0.02 * torch.arange(G)    # nearly equal
    return dict(rewards=rewards, normalize_by_std=g.bool(0.6), eps=eps)


@group_relative_advantages.mistake(
    "A group whose rewards are all equal gives 0/0, NaN, and one NaN in a batch makes all weights"
    " NaN at the next step. Add eps to the deviation."
)
def without_eps(rewards, normalize_by_std=True, eps=1e-6):
    return _relative(rewards, normalize_by_std, rewards.std(-1, keepdim=True))


@group_relative_advantages.mistake(
    "The argument eps is not added to every group's deviation: either equal rewards are mended by"
    " themselves, or a number of your own stands where eps should. Groups that are *nearly* equal"
    " come out too large. Divide by (std + eps), always."
)
def mended_afterwards(rewards, normalize_by_std=True, eps=1e-6):
    return _relative(rewards, normalize_by_std, rewards.std(-1, keepdim=True)).nan_to_num()


@group_relative_advantages.mistake(
    "The deviation is that of a population, divided by n. Asked is the sample's, divided by n − 1:"
    " torch's default (numpy's default is the other)."
)
def population_deviation(rewards, normalize_by_std=True, eps=1e-6):
    std = rewards.std(-1, keepdim=True, correction=0)
    return _relative(rewards, normalize_by_std, std + eps)


@group_relative_advantages.mistake(
    "Divided by the variance. A reward in other units (all of them times 10) would then give other"
    " advantages; the deviation has the unit of the rewards."
)
def by_variance(rewards, normalize_by_std=True, eps=1e-6):
    return _relative(rewards, normalize_by_std, rewards.var(-1, keepdim=True) + eps)


@group_relative_advantages.mistake(
    "eps stands under the root. There it acts as its root, 0.001 for 1e-6; asked is std + eps."
)
def eps_under_the_root(rewards, normalize_by_std=True, eps=1e-6):
    std = (rewards.var(-1, keepdim=True) + eps).sqrt()
    return _relative(rewards, normalize_by_std, std)


@group_relative_advantages.mistake(
    "The deviation is that of the whole batch. That treats all prompts alike, which has its"
    " merits, but it is not GRPO: each group is divided by its own."
)
def deviation_of_the_batch(rewards, normalize_by_std=True, eps=1e-6):
    return _relative(rewards, normalize_by_std, rewards.std() + eps)


@group_relative_advantages.mistake(
    "The mean (and the deviation) runs over the whole batch. Then an answer to an easy prompt looks"
    " good because the prompt is easy: compare within the group, the last dimension."
)
def mean_of_the_batch(rewards, normalize_by_std=True, eps=1e-6):
    centred = rewards - rewards.mean()
    return centred / (rewards.std() + eps) if normalize_by_std else centred


@group_relative_advantages.mistake(
    "Mean and deviation run over the prompts, dimension 0. A group is a row."
)
def over_prompts(rewards, normalize_by_std=True, eps=1e-6):
    return _relative(rewards.T, normalize_by_std, rewards.T.std(-1, keepdim=True) + eps).T


@group_relative_advantages.mistake(
    "`normalize_by_std` is not used: the division always happens."
)
def always_divided(rewards, normalize_by_std=True, eps=1e-6):
    return _relative(rewards, True, rewards.std(-1, keepdim=True) + eps)


@group_relative_advantages.mistake(
    "`normalize_by_std` is turned round: you divide where it says not to."
)
def switch_turned_round(rewards, normalize_by_std=True, eps=1e-6):
    return _relative(rewards, not normalize_by_std, rewards.std(-1, keepdim=True) + eps)


@group_relative_advantages.mistake(
    "The group's mean is not subtracted: right answers are pushed up, but wrong ones are not pushed"
    " down, and where all are right everything is pushed."
)
def mean_forgotten(rewards, normalize_by_std=True, eps=1e-6):
    return rewards / (rewards.std(-1, keepdim=True) + eps) if normalize_by_std else rewards.clone()


@group_relative_advantages.mistake(
    "The baseline leaves one's own reward out, as RLOO's does. GRPO's is the mean of the group."
)
def leave_one_out_baseline(rewards, normalize_by_std=True, eps=1e-6):
    centred = rewards - _others_mean(rewards)
    return centred / (rewards.std(-1, keepdim=True) + eps) if normalize_by_std else centred


@group_relative_advantages.mistake(
    "eps is a floor here (`clamp` or `max`), not a summand: std + eps is asked."
)
def eps_as_floor(rewards, normalize_by_std=True, eps=1e-6):
    return _relative(rewards, normalize_by_std, rewards.std(-1, keepdim=True).clamp(min=eps))


@group_relative_advantages.mistake(
    "Without the division you give back the bare rewards. `normalize_by_std=False` leaves out the"
    " deviation alone; the mean is subtracted in any case."
)
def bare_without_division(rewards, normalize_by_std=True, eps=1e-6):
    if not normalize_by_std:
        return rewards.clone()
    return _relative(rewards, True, rewards.std(-1, keepdim=True) + eps)


@group_relative_advantages.mistake(
    "Python divides before it subtracts: only the mean is divided here. Put `(rewards - mean)` in"
    " parentheses."
)
def only_mean_divided(rewards, normalize_by_std=True, eps=1e-6):
    mean = rewards.mean(-1, keepdim=True)
    return rewards - (mean / (rewards.std(-1, keepdim=True) + eps) if normalize_by_std else mean)


@group_relative_advantages.mistake(
    "eps is added to the quotient, not to the deviation: a group of equal rewards is still 0/0."
    " Parentheses around (std + eps)."
)
def eps_added_last(rewards, normalize_by_std=True, eps=1e-6):
    centred = rewards - rewards.mean(-1, keepdim=True)
    return centred / rewards.std(-1, keepdim=True) + eps if normalize_by_std else centred


@group_relative_advantages.mistake(
    "The deviation is the group's own, but the mean is that of the whole batch: an answer to an"
    " easy prompt looks good because the prompt is easy. Both are the group's."
)
def mean_alone_of_the_batch(rewards, normalize_by_std=True, eps=1e-6):
    centred = rewards - rewards.mean()
    return centred / (rewards.std(-1, keepdim=True) + eps) if normalize_by_std else centred


@group_relative_advantages.mistake(
    "Divided by the mean *absolute* deviation. Asked is the standard deviation: the root of the"
    " mean square, `rewards.std(-1)`."
)
def absolute_deviation(rewards, normalize_by_std=True, eps=1e-6):
    centred = rewards - rewards.mean(-1, keepdim=True)
    return _relative(rewards, normalize_by_std, centred.abs().mean(-1, keepdim=True) + eps)


@group_relative_advantages.mistake(
    "eps is used without the division too: everything is divided by (1 + eps). With"
    " `normalize_by_std=False` nothing is divided."
)
def eps_in_any_case(rewards, normalize_by_std=True, eps=1e-6):
    std = rewards.std(-1, keepdim=True) if normalize_by_std else 1.0
    return _relative(rewards, True, std + eps)


@group_relative_advantages.mistake(
    "`keepdim=True` is missing: means of shape (B,) are laid over the *columns* of (B, G). That"
    " goes without an error where B = G, and is wrong."
)
def means_over_columns(rewards, normalize_by_std=True, eps=1e-6):
    centred = rewards - rewards.mean(-1)
    return centred / (rewards.std(-1) + eps) if normalize_by_std else centred


group_relative_advantages.equivalent("`-1` becomes `1`", "dimension 1 of (B, G) is the last")
group_relative_advantages.equivalent(
    "`rewards - rewards[:, :1]` becomes `rewards + rewards[:, :1]`",
    "whatever is added to a whole group goes with its mean: rounding apart, the same numbers",
)


def _relative(rewards, normalize_by_std, divisor):
    centred = rewards - rewards.mean(-1, keepdim=True)
    return centred / divisor if normalize_by_std else centred


# -- 10.3 ---------------------------------------------------------------------------------------

informative_groups = exercise(
    "informative_groups", number="10.3", points=1, reference=f"{PACKAGE}:informative_groups"
)


@informative_groups.cases(visible=8, fresh=16)
def groups_some_all_equal(g):
    B, G = g.size(4, 9), g.size(3, 9)
    rewards = g.integers(0, 2, B, G).float() if g.bool(0.4) else g.choice(
        [g.uniform(0.0, 1.3, B, G), (g.integers(0, 3, B, G) - 1).float()]
    )
    rewards[1:3] = g.uniform(0.05, 1.3, 2)[:, None]      # equal, and no sum of halves
    rewards[3] = rewards[3, 0]
    rewards[3, g.integer(1, G)] += 0.25                   # one alone is different
    if g.bool():
        rewards[0] = g.choice([0.0, 1.0])
    return dict(rewards=rewards)


@informative_groups.probe
def zeros_and_ones(answer, case):
    found = answer.informative_groups(**copies(case))
    if isinstance(found, torch.Tensor):
        found = found.float()                             # 0/1 will do
    return dict(informative=found)


@informative_groups.mistake(
    "Rewards are compared with their *mean*. The mean of eight times 1.2 is not 1.2 in float32 but"
    " its neighbour: compare the rewards with each other."
)
def compared_with_the_mean(rewards):
    return (rewards != rewards.mean(-1, keepdim=True)).any(-1)


@informative_groups.mistake(
    "Turned round: this marks the groups that have nothing to compare."
)
def silent_groups(rewards):
    return (rewards == rewards[:, :1]).all(-1)


@informative_groups.mistake(
    "Right for rewards of 0 and 1 only: with a format reward, or one below 0, a sum between 0 and G"
    " says nothing."
)
def by_the_sum(rewards):
    return (rewards.sum(-1) > 0) & (rewards.sum(-1) < rewards.shape[-1])


@informative_groups.mistake(
    "Only first and last are compared. One answer in the middle may be the different one."
)
def first_and_last(rewards):
    return rewards[:, 0] != rewards[:, -1]


@informative_groups.mistake(
    "`all` where `any` is needed: one different reward is enough, not every one."
)
def all_different(rewards):
    return (rewards[:, 1:] != rewards[:, :1]).all(-1)


@informative_groups.mistake(
    "A group counts as soon as something was rewarded. Where *all* are right there is nothing to"
    " compare either."
)
def anything_rewarded(rewards):
    return (rewards > 0).any(-1)


@informative_groups.mistake("Prompts are compared with each other. A group is a row.")
def columns(rewards):
    return (rewards != rewards[:1]).any(0)


@informative_groups.mistake(
    "Only the first two are compared. The different one may come later: compare *all* with the"
    " first."
)
def first_two(rewards):
    return rewards[:, 0] != rewards[:, 1]


@informative_groups.mistake(
    "All are compared with one number, the first of the whole batch. A group is compared with"
    " itself: `rewards[:, :1]`, (B, 1), is the first of each row."
)
def first_of_the_batch(rewards):
    return (rewards != rewards[0, 0]).any(-1)


@informative_groups.mistake(
    "This looks for a 1 and a 0 in the group. With a format reward there are other numbers: ask"
    " whether any two are different."
)
def a_one_and_a_zero(rewards):
    return (rewards == 1).any(-1) & (rewards == 0).any(-1)


@informative_groups.mistake(
    "Each is compared with its neighbour, and *all* neighbours must differ. One pair is enough:"
    " `any`."
)
def all_neighbours(rewards):
    return (rewards[:, 1:] != rewards[:, :-1]).all(-1)


informative_groups.equivalent("`-1` becomes `1`", "dimension 1 of (B, G) is the last")


# -- 10.4 ---------------------------------------------------------------------------------------

verify_answer = exercise(
    "verify_answer", number="10.4", points=2, reference=f"{CHECKED}:verify_answer",
    takes_away=["rlhf_minimal.arithmetic:scorer"],
)


@verify_answer.cases(visible=10, fresh=16)
def answers_of_all_kinds(g):
    a, b = (0, 0) if g.bool(0.15) else (g.integer(10, 100), g.integer(10, 100))
    right, wrong = a + b, a + b + g.choice([-10, -1, 1, 10] if a else [1, 10])
    steps = f"{_spaced(a % 10)} + {_spaced(b % 10)} = {_spaced(a % 10 + b % 10)} ,"
    kinds = {
        "right": f"{steps} [ {_spaced(right)} ]",
        "bare": f"[ {_spaced(right)} ]",
        "wrong": f"{steps} [ {_spaced(wrong)} ]",
        "in a row": f"[ {_spaced(wrong)} ] [ {_spaced(right)} ]",
        "changed mind": f"[ {_spaced(right)} ] [ {_spaced(wrong)} ]",
        "no brackets": f"{steps} {_spaced(right)}",
        "longer number": f"{steps} [ 1 {_spaced(right)} ]",
        "goes on": f"[ {_spaced(right)} ] + 1",
        "question": f"[ {_spaced(a)} + {_spaced(b)} ]",
        "empty": f"{_spaced(right)} [ ]",
        "never closed": f"{steps} [ {_spaced(right)}",
        "never opened": f"{steps} {_spaced(right)} ]",
        "leading zero": f"[ 0 {_spaced(right)} ]",
        "signed": f"[ + {_spaced(right)} ]",
        "list": f"[ {_spaced(wrong)} , {_spaced(right)} ]",
        "turned round": f"] {_spaced(right)} [",
        "without spaces": f"{steps} [{right}]",
        "spaces around": f"  [ {_spaced(right)} ] ",
        "an equation": f"[ = {_spaced(right)} ]",
        "nothing": "",
    }
    return dict(texts=g.sample(kinds.values(), 9), solution=right)


@verify_answer.probe
def rewards_of_all(answer, case):
    solution = case["solution"]
    return {repr(text): float(answer.verify_answer(text, solution)) for text in case["texts"]}


@verify_answer.mistake(
    "`eval` works the bracket out. So “[ 3 7 + 4 8 ]”, the question in brackets, is worth a full"
    " reward, and that is the easiest answer there is: the model will learn it. Read digits alone."
)
def evaluated(text, solution):
    inside = _inside(text)
    if inside is None:
        return 0.0
    try:
        return float(eval(re.sub(r"\b0+(?=\d)", "", inside)) == solution)
    except Exception:
        return 0.0


@verify_answer.mistake(
    "The solution may stand anywhere in the text, inside a longer number too. Only what the bracket"
    " says counts: whoever writes many numbers would be right once."
)
def anywhere(text, solution):
    return float(str(solution) in text.replace(" ", ""))


@verify_answer.mistake(
    "Any bracket may hold the solution. A model that fills brackets until one is right is paid as"
    " much as one that knows: accept exactly one bracket."
)
def any_bracket(text, solution):
    found = re.findall(r"\[([\d ]+)\]", text)
    return float(text.strip().endswith("]") and any(_number(part) == solution for part in found))


@verify_answer.mistake(
    "Several brackets are allowed, and the last one counts. Whoever corrects himself has not"
    " committed himself: exactly one `[` and one `]`."
)
def last_bracket(text, solution):
    found = re.findall(r"\[([\d ]+)\]$", text.strip())
    return float(bool(found) and _number(found[-1]) == solution)


@verify_answer.mistake(
    "The first bracket counts and what comes after it is not read: a second bracket, or more text."
    " The text must end where its only bracket closes."
)
def first_bracket(text, solution):
    found = re.search(r"\[([\d ]+)\]", text)
    return float(bool(found) and _number(found[1]) == solution)


@verify_answer.mistake(
    "Text after the bracket is accepted. The result must be the last thing said: the text ends"
    " in `]`."
)
def more_after_it(text, solution):
    if text.count("[") != 1 or text.count("]") != 1:
        return 0.0
    found = re.search(r"\[([\d ]+)\]", text)
    return float(bool(found) and _number(found[1]) == solution)


@verify_answer.mistake(
    "Compared as text, so that a leading zero makes a right number wrong. Turn the digits into a"
    " number."
)
def as_text(text, solution):
    inside = _inside(text)
    return float(inside == str(solution))


@verify_answer.mistake(
    "`int()` reads more than digits: it accepts a sign, “+85”. Make sure that there are digits"
    " only, then convert."
)
def int_is_lenient(text, solution):
    inside = _inside(text)
    try:
        return float(inside is not None and int(inside) == solution)
    except ValueError:
        return 0.0


@verify_answer.mistake(
    "Only the form is checked, not the number: everything in brackets is worth a full reward."
)
def form_only(text, solution):
    inside = _inside(text)
    return float(inside is not None and _number(inside) is not None)


@verify_answer.mistake(
    "The brackets are not asked for: the last number of the text counts. Then nobody can tell a"
    " result from a step on the way to it."
)
def last_number(text, solution):
    found = re.findall(r"\d[\d ]*", text)
    return float(bool(found) and _number(found[-1]) == solution)


@verify_answer.mistake(
    "The working is not allowed: you accept the bare bracket alone. What stands before it is free."
)
def bare_bracket_only(text, solution):
    return _strict(text, solution) if text.strip().startswith("[") else 0.0


@verify_answer.mistake(
    "Whatever is no digit is dropped from the bracket: “[ 8 4 , 8 5 ]” becomes 8485, and"
    " “[ + 8 5 ]” becomes right. A bracket with anything but digits is worth 0."
)
def others_dropped(text, solution):
    inside = _inside(text)
    digits = re.sub(r"\D", "", inside or "")
    return float(bool(digits) and int(digits) == solution)


@verify_answer.mistake(
    "A part of the reward is given for the form. That may be a reward of its own; this function"
    " says whether the answer is right, 1 or 0."
)
def part_for_the_form(text, solution):
    form = 0.2 * form_only(text, solution)
    return max(_strict(text, solution), form)


@verify_answer.mistake(
    "The end of the text is compared with “[solution]”. What stands before it is not read: an"
    " earlier bracket passes. And a leading zero makes a right number wrong."
)
def end_as_text(text, solution):
    return float("".join(text.split()).endswith(f"[{solution}]"))


@verify_answer.mistake(
    "“[solution]” may stand anywhere: another bracket, or more text, may come before and after. And"
    " a leading zero makes a right number wrong."
)
def bracket_anywhere(text, solution):
    return float(f"[{solution}]" in "".join(text.split()))


@verify_answer.mistake(
    "The whole text is compared with “[solution]”: no working may stand before it, and no zero"
    " before the number."
)
def whole_as_text(text, solution):
    return float("".join(text.split()) == f"[{solution}]")


@verify_answer.mistake(
    "Spaces around the text do no harm, says the rule: `strip` it before you look at its end."
)
def not_stripped(text, solution):
    return _strict(text, solution) if text.endswith("]") else 0.0


@verify_answer.mistake(
    "The digits are not joined: “8 5” is one number, written a digit a token. Take the spaces out"
    " before you read it."
)
def digits_apart(text, solution):
    if _inside(text) is None:
        return 0.0
    inside = text.strip().partition("[")[2][:-1].strip()
    return float(inside.isdigit() and int(inside) == solution)


@verify_answer.mistake(
    "A wrong answer costs −1 here. The reward is 1 or 0."
)
def minus_one(text, solution):
    return 2 * _strict(text, solution) - 1


verify_answer.equivalent(
    "`set(digits) <= set(DIGITS)` becomes `set(digits) < set(DIGITS)`",
    "no sum of two numbers below 100 has ten different digits",
)
verify_answer.equivalent(
    "`float(int(digits) == solution)` becomes `int(digits) == solution`",
    "True and False will do: the probe takes them as 1 and 0",
)


def _spaced(number):
    return " ".join(str(number))


def _inside(text):
    text = text.strip()
    if text.count("[") != 1 or text.count("]") != 1 or not text.endswith("]"):
        return None
    return "".join(text.partition("[")[2][:-1].split())


def _number(text):
    digits = text.replace(" ", "")
    return int(digits) if digits.isdigit() else None


def _strict(text, solution):
    inside = _inside(text)
    return float(inside is not None and _number(inside) == solution)


# -- 10.5 ---------------------------------------------------------------------------------------

pass_at_k = exercise(
    "pass_at_k", number="10.5", points=2, reference=f"{CHECKED}:pass_at_k", any_dtype=True
)


@pass_at_k.cases(visible=5, fresh=12)
def counts_and_k(g):
    n = g.choice([3, 4, 6, 10, 200])
    k = min(n, g.choice([1, 2, 2, 3, 5]))
    correct = g.integers(0, n + 1, g.size(2, 6))
    correct[0] = g.integer(0, 3)
    return dict(correct=correct, samples=n, k=k)


@pass_at_k.mistake(
    "1 − (1 − c/n)^k draws the k answers *with* replacement: the same wrong answer may be drawn"
    " twice. It is too low on average; draw k different ones of the n."
)
def with_replacement(correct, samples, k):
    return 1 - (1 - correct / samples) ** k


@pass_at_k.mistake("k is not used: this is c/n, pass@1.")
def always_pass_at_one(correct, samples, k):
    return correct / samples


@pass_at_k.mistake(
    "This asks whether any of all n answers is right: pass@n. With n larger than k it is far too"
    " high."
)
def any_of_all(correct, samples, k):
    return (correct > 0).float()


@pass_at_k.mistake(
    "The chances are added up, k·c/n: that counts twice the draws in which two are right."
)
def added_up(correct, samples, k):
    return (k * correct / samples).clamp(max=1.0)


@pass_at_k.mistake(
    "This is the chance that *all* k answers are right. One is enough: take the chance that all are"
    " wrong from 1."
)
def all_of_them(correct, samples, k):
    return _falling(correct, k) / math.prod(range(samples - k + 1, samples + 1))


@pass_at_k.mistake("This is the chance that all k answers are wrong; take it from 1.")
def none_of_them(correct, samples, k):
    return 1 - _passed(correct, samples, k)


@pass_at_k.mistake(
    "Averaged over the questions already. One number a question is asked: whoever calls wants an"
    " interval too."
)
def averaged_over_questions(correct, samples, k):
    return _passed(correct, samples, k).mean()


@pass_at_k.mistake(
    "One draw too few: the product must have k factors, from (n − c)/n to"
    " (n − c − k + 1)/(n − k + 1)."
)
def one_draw_too_few(correct, samples, k):
    return _passed(correct, samples, k - 1)


@pass_at_k.mistake(
    "The denominator stays at n. After each draw one answer less is left, right or wrong: n, n − 1,"
    " …, n − k + 1."
)
def denominator_stays(correct, samples, k):
    return 1 - _falling(samples - correct, k) / samples**k


@pass_at_k.mistake(
    "Right and wrong are changed round: this is the chance that *not all* k are right. The product"
    " runs over the wrong answers, n − c."
)
def not_all_right(correct, samples, k):
    return 1 - _falling(correct, k) / math.prod(range(samples - k + 1, samples + 1))


@pass_at_k.mistake(
    "This is the chance that *exactly* one of the k is right. Two right ones pass as well."
)
def exactly_one(correct, samples, k):
    ways = [c * math.comb(samples - c, k - 1) for c in correct.tolist()]
    return torch.tensor([way / math.comb(samples, k) for way in ways])


@pass_at_k.mistake(
    "One draw too many: the product must have k factors, i from 0 to k − 1."
)
def one_draw_too_many(correct, samples, k):
    return _drawn(correct, samples, torch.arange(k + 1))


@pass_at_k.mistake(
    "The draws are counted from 1. Before the first draw nothing has been taken away: i runs from 0"
    " to k − 1."
)
def counted_from_one(correct, samples, k):
    return _drawn(correct, samples, torch.arange(1, k + 1))


@pass_at_k.mistake(
    "The numerator stays at n − c. Each draw that failed has taken one wrong answer away: n − c,"
    " n − c − 1, …"
)
def numerator_stays(correct, samples, k):
    return 1 - (samples - correct).double() ** k / math.prod(range(samples - k + 1, samples + 1))


@pass_at_k.mistake(
    "The factors are averaged. The draws must *all* fail: multiply (`prod`)."
)
def factors_averaged(correct, samples, k):
    i = torch.arange(k)
    return 1 - ((samples - correct[:, None] - i) / (samples - i)).mean(-1)


pass_at_k.equivalent(".float()` becomes", "the float type of the result is free")
pass_at_k.equivalent("`-1` becomes `1`", "dimension 1 of (B, k) is the last")


def _drawn(correct, samples, i):
    return 1 - ((samples - correct[:, None] - i).double() / (samples - i)).prod(-1)


def _falling(start, k):
    return (start[:, None].double() - torch.arange(k)).prod(-1)


def _passed(correct, samples, k):
    return 1 - _falling(samples - correct, k) / math.prod(range(samples - k + 1, samples + 1))


# -- 10.6 ---------------------------------------------------------------------------------------

grpo_loss = exercise(
    "grpo_loss", number="10.6", points=3, reference=f"{PACKAGE}:grpo_loss", any_dtype=True
)


@grpo_loss.cases(visible=5, fresh=12)
def a_batch_of_answers(g):
    B, T = g.size(3, 6), g.size(4, 7)
    mask = g.padding_mask(B, T)
    mask[0, 2:] = 0.0                                    # two lengths at least
    mask[1] = 1.0
    log_probs = -g.uniform(0.05, 2.5, B, T)
    return dict(
        log_probs=log_probs,
        old_log_probs=_three(log_probs + g.normal(B, T, std=0.4)),
        ref_log_probs=_three(log_probs + g.normal(B, T, std=0.7)),
        advantages=g.normal(B, std=1.5), mask=mask.long(), beta=g.choice([0.04, 0.3, 1.0]),
        clip=g.choice([0.1, 0.2]),
    )


@grpo_loss.probe
def loss_and_gradient(answer, case):
    x = copies(case)
    policy = {"log_probs": x["log_probs"].requires_grad_()}
    loss = answer.grpo_loss(**x)
    return dict(loss=loss, grad=grads(loss, policy), inputs_after=x)


@grpo_loss.mistake(
    "The surrogate's sign is wrong. A loss is minimised: it is *minus* what should grow."
)
def surrogate_maximised(
    log_probs, old_log_probs, ref_log_probs, advantages, mask, beta=0.04, clip=0.2
):
    gain = _gain(log_probs, old_log_probs, advantages, clip)
    return _mean(gain + beta * _k3(log_probs, ref_log_probs), mask)


@grpo_loss.mistake(
    "The KL is subtracted: the loss pays the policy for moving away from the reference."
)
def kl_rewarded(log_probs, old_log_probs, ref_log_probs, advantages, mask, beta=0.04, clip=0.2):
    gain = _gain(log_probs, old_log_probs, advantages, clip)
    return -_mean(gain + beta * _k3(log_probs, ref_log_probs), mask)


@grpo_loss.mistake("The KL term is missing: the reference is not used.")
def without_kl(log_probs, old_log_probs, ref_log_probs, advantages, mask, beta=0.04, clip=0.2):
    return -_mean(_gain(log_probs, old_log_probs, advantages, clip), mask)


@grpo_loss.mistake(
    "k3 has the ratio turned round: with l = log π − log π_ref, it is exp(−l) − 1 + l. (The samples"
    " come from π.)"
)
def k3_turned_round(log_probs, old_log_probs, ref_log_probs, advantages, mask, beta=0.04, clip=0.2):
    gain = _gain(log_probs, old_log_probs, advantages, clip)
    return -_mean(gain - beta * _k3(ref_log_probs, log_probs), mask)


@grpo_loss.mistake(
    "The KL is the bare log-ratio, k1. As a loss its gradient is zero on average (lesson 03): GRPO"
    " takes k3."
)
def k1_as_kl(log_probs, old_log_probs, ref_log_probs, advantages, mask, beta=0.04, clip=0.2):
    gain = _gain(log_probs, old_log_probs, advantages, clip)
    return -_mean(gain - beta * (log_probs - ref_log_probs), mask)


@grpo_loss.mistake(
    "The KL is taken between the *old* policy and the reference: it has no gradient, and holds"
    " nothing back. It is the policy being trained that must stay near."
)
def kl_of_the_old(log_probs, old_log_probs, ref_log_probs, advantages, mask, beta=0.04, clip=0.2):
    gain = _gain(log_probs, old_log_probs, advantages, clip)
    return -_mean(gain - beta * _k3(old_log_probs, ref_log_probs), mask)


@grpo_loss.mistake(
    "The ratio is turned round: π_old/π shrinks where the policy has become more likely to say it."
)
def ratio_turned_round(
    log_probs, old_log_probs, ref_log_probs, advantages, mask, beta=0.04, clip=0.2
):
    gain = _gain(old_log_probs, log_probs, advantages, clip)
    return -_mean(gain - beta * _k3(log_probs, ref_log_probs), mask)


@grpo_loss.mistake(
    "The ratio is taken against the reference. It says how far the policy has moved from the one"
    " that *sampled* these answers; the reference belongs to the KL."
)
def ratio_to_the_reference(
    log_probs, old_log_probs, ref_log_probs, advantages, mask, beta=0.04, clip=0.2
):
    gain = _gain(log_probs, ref_log_probs, advantages, clip)
    return -_mean(gain - beta * _k3(log_probs, ref_log_probs), mask)


@grpo_loss.mistake(
    "Not clipped: a second step on the same answers may go as far as it likes."
)
def not_clipped(log_probs, old_log_probs, ref_log_probs, advantages, mask, beta=0.04, clip=0.2):
    gain = (log_probs - old_log_probs).exp() * advantages[:, None]
    return -_mean(gain - beta * _k3(log_probs, ref_log_probs), mask)


@grpo_loss.mistake(
    "Clipped always, without the minimum: where the ratio has gone the *wrong* way, the gradient"
    " that would bring it back is lost."
)
def without_minimum(log_probs, old_log_probs, ref_log_probs, advantages, mask, beta=0.04, clip=0.2):
    ratio = (log_probs - old_log_probs).exp().clamp(1 - clip, 1 + clip)
    return -_mean(ratio * advantages[:, None] - beta * _k3(log_probs, ref_log_probs), mask)


@grpo_loss.mistake(
    "The maximum of the two surrogates is taken. The minimum is the careful one; with the sign of a"
    " loss inside, minimum becomes maximum, but not both."
)
def maximum(log_probs, old_log_probs, ref_log_probs, advantages, mask, beta=0.04, clip=0.2):
    gain = -_gain(log_probs, old_log_probs, -advantages, clip)
    return -_mean(gain - beta * _k3(log_probs, ref_log_probs), mask)


@grpo_loss.mistake(
    "First a mean within each answer, then over answers. That is GRPO as first published, and what"
    " this section warns of: a token of a long answer weighs less, so long wrong answers are"
    " punished too little. Here each token of the batch weighs the same."
)
def mean_within_answers(
    log_probs, old_log_probs, ref_log_probs, advantages, mask, beta=0.04, clip=0.2
):
    gain = _gain(log_probs, old_log_probs, advantages, clip)
    each = (gain - beta * _k3(log_probs, ref_log_probs)) * mask
    return -(each.sum(-1) / mask.sum(-1)).mean()


@grpo_loss.mistake("The mask is not used: padding is trained too.")
def mask_unused(log_probs, old_log_probs, ref_log_probs, advantages, mask, beta=0.04, clip=0.2):
    gain = _gain(log_probs, old_log_probs, advantages, clip)
    return -(gain - beta * _k3(log_probs, ref_log_probs)).mean()


@grpo_loss.mistake(
    "Padding adds nothing but is counted: you divide by B·T. Divide by the mask's sum, or a batch"
    " with one long answer learns more slowly."
)
def divided_by_everything(
    log_probs, old_log_probs, ref_log_probs, advantages, mask, beta=0.04, clip=0.2
):
    gain = _gain(log_probs, old_log_probs, advantages, clip)
    return -((gain - beta * _k3(log_probs, ref_log_probs)) * mask).mean()


@grpo_loss.mistake(
    "A sum over tokens where their mean is asked: the step would grow with the batch."
)
def summed(log_probs, old_log_probs, ref_log_probs, advantages, mask, beta=0.04, clip=0.2):
    gain = _gain(log_probs, old_log_probs, advantages, clip)
    return -((gain - beta * _k3(log_probs, ref_log_probs)) * mask).sum()


@grpo_loss.mistake("No gradient flows back to `log_probs`: nothing would be trained.")
def cut_off(log_probs, old_log_probs, ref_log_probs, advantages, mask, beta=0.04, clip=0.2):
    gain = _gain(log_probs.detach(), old_log_probs, advantages, clip)
    return -_mean(gain - beta * _k3(log_probs.detach(), ref_log_probs), mask)


@grpo_loss.mistake(
    "The KL is the squared log-ratio, k2. Its gradient is good (lesson 03), but GRPO is asked: k3,"
    " exp(−l) − 1 + l."
)
def k2_as_kl(log_probs, old_log_probs, ref_log_probs, advantages, mask, beta=0.04, clip=0.2):
    gain = _gain(log_probs, old_log_probs, advantages, clip)
    return -_mean(gain - beta * (log_probs - ref_log_probs) ** 2 / 2, mask)


@grpo_loss.mistake(
    "`beta` is not used: the KL has the weight 1."
)
def beta_unused(log_probs, old_log_probs, ref_log_probs, advantages, mask, beta=0.04, clip=0.2):
    gain = _gain(log_probs, old_log_probs, advantages, clip)
    return -_mean(gain - _k3(log_probs, ref_log_probs), mask)


@grpo_loss.mistake(
    "`beta` is a number of your own, 0.04, whatever the caller says."
)
def beta_fixed(log_probs, old_log_probs, ref_log_probs, advantages, mask, beta=0.04, clip=0.2):
    gain = _gain(log_probs, old_log_probs, advantages, clip)
    return -_mean(gain - 0.04 * _k3(log_probs, ref_log_probs), mask)


@grpo_loss.mistake(
    "`clip` is a number of your own, 0.2, whatever the caller says."
)
def clip_fixed(log_probs, old_log_probs, ref_log_probs, advantages, mask, beta=0.04, clip=0.2):
    gain = _gain(log_probs, old_log_probs, advantages, 0.2)
    return -_mean(gain - beta * _k3(log_probs, ref_log_probs), mask)


@grpo_loss.mistake(
    "The − 1 of k3 is missing: the gradient is right, but the KL is not 0 at the reference."
)
def one_forgotten(log_probs, old_log_probs, ref_log_probs, advantages, mask, beta=0.04, clip=0.2):
    gain = _gain(log_probs, old_log_probs, advantages, clip)
    return -_mean(gain - beta * (_k3(log_probs, ref_log_probs) + 1), mask)


@grpo_loss.mistake(
    "The KL is taken to the policy that sampled. It is the *reference* that one must stay near; the"
    " old policy moves along."
)
def kl_to_the_old(log_probs, old_log_probs, ref_log_probs, advantages, mask, beta=0.04, clip=0.2):
    gain = _gain(log_probs, old_log_probs, advantages, clip)
    return -_mean(gain - beta * _k3(log_probs, old_log_probs), mask)


@grpo_loss.mistake(
    "The minimum is taken of the ratios, before the advantage: for A < 0 that is the maximum of the"
    " two products. Multiply both by A first."
)
def minimum_of_ratios(
    log_probs, old_log_probs, ref_log_probs, advantages, mask, beta=0.04, clip=0.2
):
    ratio = (log_probs - old_log_probs).exp().clamp(max=1 + clip)
    return -_mean(ratio * advantages[:, None] - beta * _k3(log_probs, ref_log_probs), mask)


@grpo_loss.mistake(
    "The ratio is clipped to (−ε, ε). It is near 1, not near 0: clip to (1 − ε, 1 + ε)."
)
def clipped_around_zero(
    log_probs, old_log_probs, ref_log_probs, advantages, mask, beta=0.04, clip=0.2
):
    ratio, A = (log_probs - old_log_probs).exp(), advantages[:, None]
    gain = torch.min(ratio * A, ratio.clamp(-clip, clip) * A)
    return -_mean(gain - beta * _k3(log_probs, ref_log_probs), mask)


@grpo_loss.mistake(
    "The difference of the log-probabilities is taken for the ratio. `exp` is missing."
)
def exp_forgotten(log_probs, old_log_probs, ref_log_probs, advantages, mask, beta=0.04, clip=0.2):
    ratio, A = log_probs - old_log_probs, advantages[:, None]
    gain = torch.min(ratio * A, ratio.clamp(1 - clip, 1 + clip) * A)
    return -_mean(gain - beta * _k3(log_probs, ref_log_probs), mask)


@grpo_loss.mistake(
    "The mask is on the surrogate alone: the KL of the padding is in the loss."
)
def kl_of_padding(log_probs, old_log_probs, ref_log_probs, advantages, mask, beta=0.04, clip=0.2):
    gain = _gain(log_probs, old_log_probs, advantages, clip)
    return (beta * _k3(log_probs, ref_log_probs) - gain * mask).sum() / mask.sum()


@grpo_loss.mistake(
    "Divided by the number of answers, B: a sum over each answer's tokens, which grows with its"
    " length. Divide by the number of answer tokens, the mask's sum."
)
def divided_by_answers(
    log_probs, old_log_probs, ref_log_probs, advantages, mask, beta=0.04, clip=0.2
):
    gain = _gain(log_probs, old_log_probs, advantages, clip)
    return -((gain - beta * _k3(log_probs, ref_log_probs)) * mask).sum() / mask.shape[0]


grpo_loss.equivalent(
    "log_probs.masked_fill(mask == 0, 0.0)`", "the padding of the cases holds finite numbers"
)
grpo_loss.equivalent("`0.0` becomes `1.0`", "what stands in the padding is masked out later")


def _gain(log_probs, old_log_probs, advantages, clip):
    ratio = (log_probs - old_log_probs).exp()
    A = advantages[:, None]
    return torch.min(ratio * A, ratio.clamp(1 - clip, 1 + clip) * A)


def _k3(log_probs, ref_log_probs):
    log_ratio = log_probs - ref_log_probs
    return (-log_ratio).exp() - 1 + log_ratio


def _mean(values, mask):
    return (values * mask).sum() / mask.sum()


def _three(values):
    return (values * 1000).round() / 1000
