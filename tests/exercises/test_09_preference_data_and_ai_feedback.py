"""Lesson 09: rankings read from an export, agreement, verdicts, a ranker's loss, self-rewarding."""

import math
import re
from itertools import combinations, pairwise

import torch
import torch.nn.functional as F

from autograder import exercise, grads

AGREEMENT = "rlhf_minimal.agreement"
FEEDBACK = "rlhf_minimal.ai_feedback"

STRICT = "`strict` guards against lists of different lengths, which no case has"

# -- 09.1 ---------------------------------------------------------------------------------------

label_studio_pairs = exercise(
    "label_studio_pairs", number="09.1", points=2,
    takes_away=[
        "rlhf_minimal.preferences:read_label_studio",
        "rlhf_minimal.preference_files:ranked_answers",
    ],
)


@label_studio_pairs.reference
def pairs_of_task(task):
    pairs = []
    for annotation in _finished(task):
        ranked = _ranked(task, annotation)
        pairs += [(task["data"]["prompt"], *two) for two in combinations(ranked, 2)]
    return pairs


@label_studio_pairs.cases(visible=6, fresh=12)
def exported_tasks(g):
    kinds = ["done", "done", *g.choice([[], ["cancelled"], ["unfinished"],
                                        ["cancelled", "unfinished"]])]
    kinds = [kinds[i] for i in g.permutation(len(kinds)).tolist()]
    size = g.choice([3, 3, 4])
    ids = [str(number) for number in g.sample(range(1000, 10_000), size)]
    bodies = g.sample(["take dough .", "fry it .", "gladly , mix it .", "take ham .",
                       "you need egg .", "it depends on taste ."], size)
    items = [dict(id=i, title="", body=body) for i, body in zip(ids, bodies, strict=True)]
    annotations = []
    for number, kind in enumerate(kinds):
        order = [ids[i] for i in g.permutation(size).tolist()]
        entry = dict(from_name="ranking", to_name="answers", type="ranker",
                     value=dict(ranker=dict(ranking=order)))
        result = [] if kind == "unfinished" else [entry]
        annotations.append(dict(id=7 + number, result=result, was_cancelled=kind == "cancelled"))
    return dict(task=dict(id=g.integer(1, 90), annotations=annotations,
                          data=dict(prompt=" ".join(g.words(3)) + " ?", items=items)))


@label_studio_pairs.probe
def pairs_in_any_order(answer, case):
    found = answer.label_studio_pairs(**case)
    if isinstance(found, (list, tuple)) and all(isinstance(row, (list, tuple)) for row in found):
        found = sorted(([*row] for row in found), key=str)
    return dict(pairs=found, inputs_after=case)


def _finished(task):
    return [a for a in task["annotations"] if not a["was_cancelled"] and a["result"]]


def _ranking(annotation):
    return annotation["result"][0]["value"]["ranker"]["ranking"]


def _ranked(task, annotation):
    bodies = {item["id"]: item["body"] for item in task["data"]["items"]}
    return [bodies[identity] for identity in _ranking(annotation)]


@label_studio_pairs.mistake(
    "The answers are taken in the order in which they were *shown* (`items`). What the annotator"
    " said is the list of ids in `ranking`; the items are only the dictionary for it."
)
def as_shown(task):
    shown = [item["body"] for item in task["data"]["items"]]
    return [(task["data"]["prompt"], *two) for _ in _finished(task)
            for two in combinations(shown, 2)]


@label_studio_pairs.mistake(
    "Chosen and rejected are exchanged: the ranking begins with the *best* answer."
)
def worst_first(task):
    return [(prompt, worse, better) for prompt, better, worse in pairs_of_task(task)]


@label_studio_pairs.mistake(
    "Only neighbours in the ranking are paired. The first is also better than the third:"
    " n answers hold n(n − 1)/2 pairs."
)
def neighbours_only(task):
    return [(task["data"]["prompt"], *two) for a in _finished(task)
            for two in pairwise(_ranked(task, a))]


@label_studio_pairs.mistake(
    "Only the best answer is paired with the others; the others were ranked, too."
)
def best_against_others(task):
    return [(task["data"]["prompt"], best, other) for a in _finished(task)
            for best, *others in [_ranked(task, a)] for other in others]


@label_studio_pairs.mistake(
    "These are ids where texts are asked: look each one up in the task's `items`."
)
def ids_for_texts(task):
    return [(task["data"]["prompt"], *two) for a in _finished(task)
            for two in combinations(_ranking(a), 2)]


@label_studio_pairs.mistake(
    "Only the first usable annotation is read. A task may have been ranked by several people, and"
    " each of them counts."
)
def one_annotator(task):
    return pairs_of_task({**task, "annotations": _finished(task)[:1]})


@label_studio_pairs.mistake(
    "Cancelled annotations count. Whoever pressed “Skip” has said nothing, but the list as it stood"
    " is in the file all the same: look at `was_cancelled`."
)
def cancelled_counted(task):
    everything = [{**a, "was_cancelled": False} for a in task["annotations"]]
    return pairs_of_task({**task, "annotations": everything})


@label_studio_pairs.mistake(
    "Where an annotation holds no ranking, the order on the page is taken for one. Nobody said so:"
    " leave it out."
)
def unfinished_as_shown(task):
    shown = [item["id"] for item in task["data"]["items"]]
    entry = dict(value=dict(ranker=dict(ranking=shown)))
    filled = [{**a, "result": a["result"] or [entry]} for a in task["annotations"]]
    return pairs_of_task({**task, "annotations": filled})


@label_studio_pairs.mistake(
    "Only the best and the worst of a ranking are paired. What lies between was ranked, too: n"
    " answers hold n(n − 1)/2 pairs."
)
def best_against_worst(task):
    return [(task["data"]["prompt"], ranked[0], ranked[-1]) for a in _finished(task)
            for ranked in [_ranked(task, a)]]


@label_studio_pairs.mistake(
    "A pair on which two people agree is there only once. Agreement is worth two labels: keep both."
)
def agreement_counted_once(task):
    return list(dict.fromkeys(pairs_of_task(task)))


@label_studio_pairs.mistake("Each pair is there twice, once in each direction: that says nothing.")
def both_directions(task):
    return pairs_of_task(task) + worst_first(task)


@label_studio_pairs.mistake("The prompt is missing: a row is (prompt, chosen, rejected).")
def without_prompt(task):
    return [(better, worse) for _, better, worse in pairs_of_task(task)]


# -- 09.2 ---------------------------------------------------------------------------------------

cohens_kappa = exercise(
    "cohens_kappa", number="09.2", points=2, reference=f"{AGREEMENT}:cohens_kappa",
    tolerance=(1e-6, "shares of a few dozen labels, some of them in float32"),
)


@cohens_kappa.cases(visible=6, fresh=14)
def two_annotators(g):
    if g.bool(0.25):                               # one and the same category: nothing to compare
        n = g.integer(2, 6)
        return dict(first=["tie"] * n, second=["tie"] * n)
    n = g.size(8, 16)
    common = ["first", "first", "first", "second", "tie"]
    first = [g.choice(common) for _ in range(n)]
    second = [one if g.bool(0.5) else g.choice(["first", "second", "second", "tie"])
              for one in first]
    second[0], second[1], first[2] = first[0], None, None
    first[3], second[3], first[4], second[4] = "first", "second", "tie", "first"
    return dict(first=first, second=second)


@cohens_kappa.probe
def kappa_as_number(answer, case):
    found = answer.cohens_kappa(**case)
    if isinstance(found, torch.Tensor) or type(found).__module__ == "numpy":
        found = float(found)
    return dict(kappa=float(found) if type(found) is int else found, inputs_after=case)


def _both(first, second):
    return [two for two in zip(first, second, strict=True) if None not in two]


def _observed(both):
    return sum(a == b for a, b in both) / len(both)


def _share(both, place, category):
    return sum(two[place] == category for two in both) / len(both)


def _kappa(observed, chance):
    return (observed - chance) / (1 - chance) if chance < 1 else math.nan


def _chance(both, first=0, second=1):
    categories = {label for two in both for label in two}
    return sum(_share(both, first, c) * _share(both, second, c) for c in categories)


@cohens_kappa.mistake(
    "This is the raw agreement P_o. Two annotators who never read a word agree often, too, if both"
    " like one category: take chance out."
)
def raw_agreement(first, second):
    both = _both(first, second)
    return _observed(both) if _chance(both) < 1 else math.nan


@cohens_kappa.mistake(
    "The division is missing: P_o − P_e is at most 1 − P_e. Divide by that, so that 1 is perfect."
)
def not_divided(first, second):
    both = _both(first, second)
    return _observed(both) - _chance(both) if _chance(both) < 1 else math.nan


@cohens_kappa.mistake(
    "Chance is taken from the two annotators' pooled shares (that is Scott's π, and Fleiss'). Cohen"
    " gives each annotator shares of their own: Σ p_first(c)·p_second(c)."
)
def pooled_shares(first, second):
    both = _both(first, second)
    categories = {label for two in both for label in two}
    chance = sum(((_share(both, 0, c) + _share(both, 1, c)) / 2) ** 2 for c in categories)
    return _kappa(_observed(both), chance)


@cohens_kappa.mistake(
    "Chance is taken from the first annotator's shares alone, squared. It takes one factor from"
    " each: p_first(c)·p_second(c)."
)
def first_alone(first, second):
    both = _both(first, second)
    return _kappa(_observed(both), _chance(both, 0, 0))


@cohens_kappa.mistake(
    "Chance is 1/3, as if all three choices were equally popular. Take the annotators' own shares."
)
def equal_chances(first, second):
    both = _both(first, second)
    if _chance(both) == 1:
        return math.nan
    return _kappa(_observed(both), 1 / 3)


@cohens_kappa.mistake(
    "`None` counts as a category of its own, or as disagreement. An item that one of them did not"
    " label says nothing about agreement: leave it out of all shares."
)
def missing_counted(first, second):
    both = list(zip(first, second, strict=True))
    return _kappa(_observed(both), _chance(both))


@cohens_kappa.mistake(
    "The items that lack a label are left out of the counts, but you still divide by the number of"
    " all items. Divide by those that have both."
)
def divided_by_all(first, second):
    both, kept = _both(first, second), len(_both(first, second)) / len(first)
    if _chance(both) == 1:
        return math.nan
    return _kappa(kept * _observed(both), kept**2 * _chance(both))


@cohens_kappa.mistake(
    "P_o is a share of all items, those that lack a label included. Use the items that have both,"
    " as for P_e."
)
def observed_of_all(first, second):
    both = _both(first, second)
    return _kappa(sum(a == b for a, b in both) / len(first), _chance(both))


@cohens_kappa.mistake(
    "Missing labels are left out of P_o, but each annotator's shares are still taken over all that"
    " *they* labelled. Use the same items for both."
)
def own_shares(first, second):
    one, other = ([x for x in labels if x is not None] for labels in (first, second))
    chance = sum(one.count(c) * other.count(c) for c in set(one)) / (len(one) * len(other))
    return _kappa(_observed(_both(first, second)), chance)


@cohens_kappa.mistake(
    "Where both used one and the same category only, P_e is 1 and κ is 0/0: that agreement says"
    " nothing, neither 1 nor 0. Return NaN (`math.nan`)."
)
def one_for_nothing(first, second):
    value = _kappa(_observed(_both(first, second)), _chance(_both(first, second)))
    return 1.0 if math.isnan(value) else value


@cohens_kappa.mistake(
    "κ is 0/0 where both used one category only, and you say 0. That agreement says nothing, not"
    " that it is chance: return NaN (`math.nan`)."
)
def zero_for_nothing(first, second):
    value = _kappa(_observed(_both(first, second)), _chance(_both(first, second)))
    return 0.0 if math.isnan(value) else value


cohens_kappa.equivalent("`True` becomes `False`", STRICT)


# -- 09.3 ---------------------------------------------------------------------------------------

parse_score = exercise(
    "parse_score", number="09.3", points=2, reference="rlhf_minimal.judge_prompts:parse_score",
    takes_away=[f"{FEEDBACK}:parse_score"],
)

BEFORE = (
    "It names 2 of the 3 ingredients.", "Right, but it rambles.", "Polite and clear!",
    "1 is missing and 2 are wrong.", "The 3 steps are there, the 4 spices are not.",
)


@parse_score.cases(visible=32, fresh=40)
def what_judges_say(g):
    low, high = g.choice([(0, 5), (1, 10)])
    inside = g.integer(low + 1, high - 1)
    one, two, three = g.sample([f"{low}", f"{high}", f"{inside}", f"{inside}.5"], 3)
    off = g.choice([f"{high + g.integer(1, 30)}", f"{low - g.integer(1, 3)}"])
    ending = g.choice([
        f"Score: [[{one}]]", f"Score: [[{one}]]. On reflection: [[{two}]].", f"Score: {one}",
        f"Score: {one}/{high}.", f"Score: {one}/{2 * high}", f"Score: [[{off}]]", f"Score: {off}",
        f"Score: {one}? No. Score: {two}", f"[[{two}]] It is a pity about the 7 eggs.", "",
        f"Score: [[{three}]]. On reflection: [[{off}]].",
        f"[[{one}]], no, [[{two}]]. Now I have it: [[{three}]]",
    ])
    return dict(text=f"{g.choice(BEFORE)} {ending}".strip(), low=low, high=high)


@parse_score.probe
def grade_or_none(answer, case):
    found = answer.parse_score(**case)
    number = float(found) if type(found) is int else found
    return dict(gives_a_grade=found is not None, score=number)


def _read(text, low, high, pick=-1, number=r"-?\d+(?:\.\d+)?", off=None, tops=True, other=None):
    """The right reading, with a place for each mistake."""
    top = ""
    marks = re.findall(rf"\[\[({number})\]\]", text)
    cues = re.findall(rf"Score: ({number})(?:/(\d+))?", text)
    if marks:
        value = marks[pick]
    elif cues:
        value, top = cues[pick]
    else:
        return other(text) if other else None
    value = float(value)
    if tops and top and float(top) != high:
        return tops(value, float(top)) if callable(tops) else None
    if low <= value <= high:
        return value
    return off(value) if off else None


@parse_score.mistake(
    "The first grade is taken. A judge who thinks aloud changes its mind: the last one counts."
)
def first_grade(text, low=0, high=5):
    return _read(text, low, high, pick=0)


@parse_score.mistake(
    "A number off the scale is clipped to its end. That invents a grade, and mostly the best or the"
    " worst: say `None`."
)
def clipped(text, low=0, high=5):
    return _read(text, low, high, off=lambda value: float(min(max(value, low), high)))


@parse_score.mistake(
    "A number off the scale passes as a grade. One such number moves a mean by more than ten honest"
    " ones: say `None`."
)
def off_the_scale(text, low=0, high=5):
    return _read(text, low, high, off=lambda value: value)


@parse_score.mistake(
    "“4/10” counts as 4 out of 5. The number behind the slash is another scale's top: `None`."
)
def top_not_read(text, low=0, high=5):
    return _read(text, low, high, tops=False)


@parse_score.mistake(
    "“4/10” is rescaled. The judge has not understood what scale was asked for; its number is no"
    " grade: `None`."
)
def rescaled(text, low=0, high=5):
    return _read(text, low, high, tops=lambda value, top: value / top * high)


@parse_score.mistake(
    "Half points are cut off, or lost: “3.5” is a grade. Allow a decimal point in the pattern."
)
def whole_numbers(text, low=0, high=5):
    value = _read(text, low, high)
    return value if value is None else float(int(value))


@parse_score.mistake(
    "Any number in the text will do here. “2 of the 3 ingredients” is no grade: only [[…]], or a"
    " number behind “Score:”."
)
def any_number(text, low=0, high=5):
    found = [float(number) for number in re.findall(r"-?\d+(?:\.\d+)?", text)]
    inside = [number for number in found if low <= number <= high]
    return _read(text, low, high, other=lambda _: inside[-1] if inside else None)


@parse_score.mistake(
    "Where there is no grade, you say the lowest one. To grade what was not graded counts the"
    " judge's slips against the answers: `None`."
)
def lowest_for_none(text, low=0, high=5):
    value = _read(text, low, high)
    return float(low) if value is None else value


@parse_score.mistake(
    "Only [[…]] is read. Judges forget the brackets: where there are none, a number behind “Score:”"
    " counts."
)
def brackets_only(text, low=0, high=5):
    return _read(text, low, high) if "[[" in text else None


@parse_score.mistake(
    "Only the first [[…]] is read, whatever its number. Three things are missing: the *last* one"
    " counts, a number off the scale is none, and without brackets “Score:” counts."
)
def first_brackets_only(text, low=0, high=5):
    return _read(text, low, high, pick=0, off=lambda value: value) if "[[" in text else None


@parse_score.mistake(
    "The ends of the scale are fixed at 0 and 5; they are `low` and `high`."
)
def ends_fixed(text, low=0, high=5):
    return _read(text, 0, 5)


UNTIDY = "what the package reads beyond the exercise's three rules; no case has it"
parse_score.equivalent("`not found` becomes `found`", UNTIDY)
parse_score.equivalent("`[number for number in numbers if number[1]] or numbers` becomes", UNTIDY)


# -- 09.4 ---------------------------------------------------------------------------------------

position_bias = exercise(
    "position_bias", number="09.4", points=2, reference=f"{FEEDBACK}:position_bias",
    takes_away=[f"{FEEDBACK}:consistent_verdicts", f"{FEEDBACK}:PositionBias"],
    tolerance=(1e-6, "shares of a few dozen verdicts, some of them in float32"),
)


def _verdicts(g):
    """Both orders of some pairs: every combination that matters, and some more, shuffled."""
    rows = [("A", "A"), ("A", "B"), ("B", "A"), ("tie", "tie"), ("A", "tie"), ("B", "B"),
            ("tie", "B"), (None, "A"), ("B", None)]
    rows += [(g.choice(["A", "B", "tie", "A"]), g.choice(["A", "B", "tie"]))
             for _ in range(g.size(1, 9))]
    rows += [("A", "A")] * g.integer(1, 3)
    rows = [rows[i] for i in g.permutation(len(rows)).tolist()]
    return dict(verdicts=[one for one, _ in rows], swapped=[two for _, two in rows])


@position_bias.cases(visible=5, fresh=12)
def judged_both_ways(g):
    return _verdicts(g)


@position_bias.probe
def four_shares(answer, case):
    found = _listed(answer.position_bias(**case))
    if isinstance(found, dict):
        found = list(found.values())
    if not isinstance(found, (list, tuple)):
        return dict(order=found)
    names = ("consistent", "first", "second", "unreadable")
    named = {name: float(x) if type(x) is int else x for name, x in zip(names, found, strict=False)}
    return dict(order=[*named], **named, inputs_after=case)


def _listed(found):
    """A list for an array or a tensor: the container is a matter of taste."""
    is_array = isinstance(found, torch.Tensor) or type(found).__module__ == "numpy"
    return found.tolist() if is_array else found


def _counts(verdicts, swapped, kind):
    found = [kind(*two) for two in zip(verdicts, swapped, strict=True)]
    return [found.count(name) / len(found) for name in range(4)]


def _kind(one, two):
    if None in (one, two):
        return 3
    if (one, two) in (("A", "B"), ("B", "A"), ("tie", "tie")):
        return 0
    return 1 if "A" in (one, two) else 2


@position_bias.mistake(
    "A judge who says “A” in both orders counts as consistent here. A and B are *places*: after the"
    " exchange, A is the other answer. Consistent is A then B, or B then A (or two ties)."
)
def letters_as_answers(verdicts, swapped):
    def kind(one, two):
        if None in (one, two):
            return 3
        return 0 if one == two else 1 if one == "A" else 2

    return tuple(_counts(verdicts, swapped, kind))


@position_bias.mistake(
    "First and second are exchanged: “A” in both orders is a lean to the *first* place."
)
def places_exchanged(verdicts, swapped):
    consistent, first, second, unreadable = _counts(verdicts, swapped, _kind)
    return consistent, second, first, unreadable


@position_bias.mistake(
    "Pairs without a verdict are left out of the divisor. They are the fourth share: all four sum"
    " to 1."
)
def of_the_readable(verdicts, swapped):
    *shares, unreadable = _counts(verdicts, swapped, _kind)
    return *(share / (1 - unreadable) for share in shares), unreadable


@position_bias.mistake(
    "Whatever differs counts as consistent. “A” in one order and a tie in the other differ, too,"
    " and are a lean; two ties are equal, and consistent."
)
def different_is_consistent(verdicts, swapped):
    def kind(one, two):
        if None in (one, two):
            return 3
        return 0 if one != two else 1 if one == "A" else 2

    return tuple(_counts(verdicts, swapped, kind))


@position_bias.mistake(
    "The first list's letter alone decides where the judge leans. A tie, and then “A” in the"
    " exchanged prompt, leans to the first place, too."
)
def lean_of_the_first_list(verdicts, swapped):
    def kind(one, two):
        right = _kind(one, two)
        return right if right in (0, 3) else 1 if one == "A" else 2

    return tuple(_counts(verdicts, swapped, kind))


@position_bias.mistake(
    "Unreadable is a pair with no verdict in *at least one* order; you ask for both."
)
def both_unreadable(verdicts, swapped):
    def kind(one, two):
        if one is None and two is None:
            return 3
        return (1 if "A" in (one, two) else 2) if None in (one, two) else _kind(one, two)

    return tuple(_counts(verdicts, swapped, kind))


@position_bias.mistake(
    "A tie with a letter is split between both places. The letter says where it leans: “A” to the"
    " first, “B” to the second."
)
def half_a_tie_split(verdicts, swapped):
    shares = _counts(verdicts, swapped, _kind)
    split = sum("tie" in two and set(two) != {"tie"} and None not in two
                for two in zip(verdicts, swapped, strict=True)) / len(verdicts)
    letters = _counts(verdicts, swapped, lambda one, two: 3 if "tie" in (one, two)
                      else _kind(one, two))
    return shares[0], letters[1] + split / 2, letters[2] + split / 2, shares[3]


@position_bias.mistake("These are counts. Divide by the number of pairs.")
def counts_not_shares(verdicts, swapped):
    return tuple(share * len(verdicts) for share in _counts(verdicts, swapped, _kind))


@position_bias.mistake(
    "A tie in one order and a letter in the other counts as consistent. It is not: exchanging the"
    " answers has changed the verdict. “A” with a tie leans to the first place, “B” with a tie to"
    " the second."
)
def half_a_tie_consistent(verdicts, swapped):
    return tuple(_counts(verdicts, swapped, lambda one, two: 0
                         if "tie" in (one, two) and None not in (one, two) else _kind(one, two)))


@position_bias.mistake(
    "A tie in one order and a letter in the other counts as unreadable, or is lost. It is a lean:"
    " “A” with a tie to the first place, “B” with a tie to the second."
)
def half_a_tie_unreadable(verdicts, swapped):
    return tuple(_counts(verdicts, swapped, lambda one, two: 3
                         if "tie" in (one, two) and one != two else _kind(one, two)))


@position_bias.mistake(
    "A tie in both orders is a consistent verdict, too; you count A-then-B and B-then-A only."
)
def ties_not_consistent(verdicts, swapped):
    return tuple(_counts(verdicts, swapped, lambda one, two: 3
                         if (one, two) == ("tie", "tie") else _kind(one, two)))


@position_bias.mistake(
    "The second list is not read: these are the shares of A and B in one order alone. A judge"
    " who says A often may be right often; only the exchange tells."
)
def one_order_only(verdicts, swapped):
    n = len(verdicts)
    return (verdicts.count("tie") / n, verdicts.count("A") / n, verdicts.count("B") / n,
            verdicts.count(None) / n)


position_bias.equivalent("`True` becomes `False`", STRICT)


# -- 09.5 ---------------------------------------------------------------------------------------

consistent_verdicts = exercise(
    "consistent_verdicts", number="09.5", points=1, reference=f"{FEEDBACK}:consistent_verdicts",
    takes_away=[f"{FEEDBACK}:position_bias"],
)


@consistent_verdicts.cases(visible=4, fresh=12)
def to_be_kept(g):
    return _verdicts(g)


@consistent_verdicts.probe
def kept_in_a_list(answer, case):
    return dict(kept=_listed(answer.consistent_verdicts(**case)), inputs_after=case)


@consistent_verdicts.mistake(
    "What has the same letter twice is kept: just the verdicts that follow the place. After the"
    " exchange the same answer has the *other* letter."
)
def same_letter_kept(verdicts, swapped):
    return [one if one == two else None for one, two in zip(verdicts, swapped, strict=True)]


@consistent_verdicts.mistake(
    "The right pairs are kept, in the letters of the *exchanged* prompt. Give them in those of"
    " `verdicts`: A is the answer that stood first there."
)
def letters_of_swapped(verdicts, swapped):
    return [two if _kind(one, two) == 0 else None
            for one, two in zip(verdicts, swapped, strict=True)]


@consistent_verdicts.mistake(
    "The list has become shorter: what did not survive must stay as `None`, so that the verdicts"
    " still stand beside their pairs."
)
def dropped(verdicts, swapped):
    return [one for one, two in zip(verdicts, swapped, strict=True) if _kind(one, two) == 0]


@consistent_verdicts.mistake(
    "Whatever differs between the orders is kept, and nothing else. “A” and then a tie differ, too,"
    " and are no agreement; a tie twice is."
)
def whatever_differs(verdicts, swapped):
    return [one if one != two else None for one, two in zip(verdicts, swapped, strict=True)]


@consistent_verdicts.mistake(
    "Contradictions become ties. A tie is a verdict (“both are equally good”); here the judge has"
    " given none: `None`."
)
def tie_for_none(verdicts, swapped):
    return [one if _kind(one, two) == 0 else None if None in (one, two) else "tie"
            for one, two in zip(verdicts, swapped, strict=True)]


@consistent_verdicts.mistake(
    "A tie in both orders is a verdict that survives: it stays “tie”."
)
def ties_lost(verdicts, swapped):
    return [one if _kind(one, two) == 0 and one != "tie" else None
            for one, two in zip(verdicts, swapped, strict=True)]


@consistent_verdicts.mistake(
    "Where one order says a letter and the other a tie, the letter is kept. Exchanging the answers"
    " has changed that verdict: `None`."
)
def letter_beats_tie(verdicts, swapped):
    turned = {"A": "B", "B": "A", "tie": "tie", None: None}
    kept = []
    for one, two in zip(verdicts, swapped, strict=True):
        if "tie" in (one, two) and None not in (one, two):
            kept.append(turned[two] if one == "tie" else one)
        else:
            kept.append(one if _kind(one, two) == 0 else None)
    return kept


@consistent_verdicts.mistake(
    "Where one order is unreadable, the other's verdict is kept. It has survived nothing: `None`."
)
def one_is_enough(verdicts, swapped):
    turned = {"A": "B", "B": "A", "tie": "tie", None: None}
    return [one if _kind(one, two) == 0 else (one or turned[two]) if None in (one, two) else None
            for one, two in zip(verdicts, swapped, strict=True)]


consistent_verdicts.equivalent("`True` becomes `False`", STRICT)


# -- 09.6 ---------------------------------------------------------------------------------------

pair_ranker_loss = exercise(
    "pair_ranker_loss", number="09.6", points=2,
    reference="rlhf_minimal.pair_ranker:pair_ranker_loss", any_dtype=True,
)


@pair_ranker_loss.cases(visible=4, fresh=12)
def scores_of_pairs(g):
    B = g.size(3, 7)
    z = g.bools(B).float()
    z[0], z[1] = 1.0, 0.0
    return dict(first_scores=g.normal(B), second_scores=g.normal(B), first_is_better=z)


@pair_ranker_loss.probe
def loss_and_gradient(answer, case):
    scores = {name: case[name].clone().requires_grad_()
              for name in ("first_scores", "second_scores")}
    loss = answer.pair_ranker_loss(**scores, first_is_better=case["first_is_better"])
    return dict(loss=loss, grad=grads(loss, scores), inputs_after=case)


@pair_ranker_loss.mistake(
    "Only the first answer's score is trained. Where the second one stands, its score must learn"
    " as well: add its term, with target 1 − z."
)
def first_term_only(first_scores, second_scores, first_is_better):
    unused = 0 * second_scores.sum()
    return F.binary_cross_entropy_with_logits(first_scores, first_is_better) + unused


@pair_ranker_loss.mistake(
    "Both scores have the target z. Where the first answer is better, the second is worse: its"
    " target is 1 − z."
)
def same_target(first_scores, second_scores, first_is_better):
    bce = F.binary_cross_entropy_with_logits
    return bce(first_scores, first_is_better) + bce(second_scores, first_is_better)


@pair_ranker_loss.mistake(
    "The targets are turned round: z is 1 where the *first* answer is better. This trains towards"
    " the worse one."
)
def targets_turned(first_scores, second_scores, first_is_better):
    bce = F.binary_cross_entropy_with_logits
    return bce(first_scores, 1 - first_is_better) + bce(second_scores, first_is_better)


@pair_ranker_loss.mistake(
    "The batch is summed. Take the mean over pairs, or the step grows with the batch."
)
def summed(first_scores, second_scores, first_is_better):
    bce = F.binary_cross_entropy_with_logits
    return len(first_scores) * (
        bce(first_scores, first_is_better) + bce(second_scores, 1 - first_is_better)
    )


@pair_ranker_loss.mistake(
    "The mean is over pairs *and* over both answers: half of what is asked. The two terms of a pair"
    " are added."
)
def halved(first_scores, second_scores, first_is_better):
    bce = F.binary_cross_entropy_with_logits
    return (bce(first_scores, first_is_better) + bce(second_scores, 1 - first_is_better)) / 2


@pair_ranker_loss.mistake(
    "This is Bradley–Terry's loss of the difference (lesson 05). PairRM trains each score by"
    " itself: two cross-entropies, one towards 1 and one towards 0."
)
def of_the_difference(first_scores, second_scores, first_is_better):
    return F.binary_cross_entropy_with_logits(first_scores - second_scores, first_is_better)


@pair_ranker_loss.mistake(
    "The sigmoid is applied twice: `…_with_logits` applies its own. The loss can no longer come"
    " near 0."
)
def sigmoid_twice(first_scores, second_scores, first_is_better):
    bce = F.binary_cross_entropy_with_logits
    return (bce(first_scores.sigmoid(), first_is_better)
            + bce(second_scores.sigmoid(), 1 - first_is_better))


@pair_ranker_loss.mistake(
    "z is not read: as if the first answer always won. Where z is 0, the first score goes down and"
    " the second up."
)
def first_always_wins(first_scores, second_scores, first_is_better):
    return (F.softplus(-first_scores) + F.softplus(second_scores)).mean()


@pair_ranker_loss.mistake(
    "These are squared errors of the probabilities (Brier's score). Cross-entropy is asked:"
    " −log of the probability of what happened."
)
def squared(first_scores, second_scores, first_is_better):
    errors = (first_scores.sigmoid() - first_is_better, second_scores.sigmoid() - 1
              + first_is_better)
    return sum(error.square().mean() for error in errors)


@pair_ranker_loss.mistake("The sign is missing: this is the log-likelihood, to be maximised.")
def likelihood(first_scores, second_scores, first_is_better):
    bce = F.binary_cross_entropy_with_logits
    return -bce(first_scores, first_is_better) - bce(second_scores, 1 - first_is_better)


@pair_ranker_loss.mistake(
    "Only the better answer's score is pushed up; the worse one's is never pushed down. Two terms"
    " are missing: (1 − z)·log(1 − σ(s₁)) and z·log(1 − σ(s₂))."
)
def better_one_only(first_scores, second_scores, first_is_better):
    z = first_is_better
    return -(z * F.logsigmoid(first_scores) + (1 - z) * F.logsigmoid(second_scores)).mean()


# -- 09.7 ---------------------------------------------------------------------------------------

soft_preference = exercise(
    "soft_preference", number="09.7", points=1, reference=f"{FEEDBACK}:soft_preference",
    any_dtype=True,
)


@soft_preference.cases(visible=5, fresh=12)
def two_words(g):
    B = g.size(2, 5)
    far = 0.0 if g.bool(0.6) else -300.0           # words that the model finds next to impossible
    return dict(log_prob_a=-g.uniform(0.2, 4.0, B) + far, log_prob_b=-g.uniform(0.2, 4.0, B) + far)


@soft_preference.mistake(
    "The probabilities are turned round: this is how likely the *second* answer is better."
)
def of_the_second(log_prob_a, log_prob_b):
    return torch.sigmoid(log_prob_b - log_prob_a)


@soft_preference.mistake(
    "This is p_A alone. What the judge might say beside “(A)” and “(B)” is no verdict: divide by"
    " p_A + p_B."
)
def not_normalised(log_prob_a, log_prob_b):
    return log_prob_a.exp()


@soft_preference.mistake(
    "Logarithms are divided by logarithms. p_A/(p_A + p_B) is of probabilities; of"
    " log-probabilities it is σ(log p_A − log p_B)."
)
def logs_divided(log_prob_a, log_prob_b):
    return log_prob_a / (log_prob_a + log_prob_b)


@soft_preference.mistake(
    "This is the hard verdict, 1 or 0. How sure the judge is has been thrown away."
)
def hard_verdict(log_prob_a, log_prob_b):
    return (log_prob_a > log_prob_b).float()


@soft_preference.mistake(
    "“(B)” is not read: the sigmoid is of the *difference* of both logarithms."
)
def sigmoid_of_a(log_prob_a, log_prob_b):
    return log_prob_a.sigmoid()


@soft_preference.mistake(
    "The softmax runs over the batch. Each pair of answers is a question of its own: normalise over"
    " “(A)” and “(B)”."
)
def over_the_batch(log_prob_a, log_prob_b):
    return (log_prob_a - log_prob_b).softmax(0)


@soft_preference.mistake("These are the odds p_A/p_B. The probability is odds/(1 + odds).")
def odds(log_prob_a, log_prob_b):
    return (log_prob_a - log_prob_b).exp()


@soft_preference.mistake("This is log P. The probability itself is asked.")
def log_of_it(log_prob_a, log_prob_b):
    return F.logsigmoid(log_prob_a - log_prob_b)


@soft_preference.mistake(
    "Right, until both words are improbable: exp(−300) is 0 in float32, and 0/0 is NaN. Subtract"
    " the logarithms first: σ(log p_A − log p_B)."
)
def underflow(log_prob_a, log_prob_b):
    return log_prob_a.exp() / (log_prob_a.exp() + log_prob_b.exp())


# -- 09.8 ---------------------------------------------------------------------------------------

self_rewarding_pairs = exercise(
    "self_rewarding_pairs", number="09.8", points=2, reference=f"{FEEDBACK}:self_rewarding_pairs",
)


@self_rewarding_pairs.cases(visible=6, fresh=12)
def graded_candidates(g):
    P, N, S = g.integer(5, 8), g.choice([3, 4]), g.choice([2, 3])
    prompts = [g.integers(2, 9, 2).tolist() for _ in range(P)]
    candidates = [[[10 * i + j + 10] for j in range(N)] for i in range(P)]
    scores = g.integers(0, 6, P, N, S).float()
    scores[0] = scores[0, :1]                       # all alike: nothing to learn
    scores[1, 0], scores[1, 1:] = 5.0, 1.0          # best and worst are the same text
    candidates[1] = [candidates[1][0]] * N
    scores[2], scores[2, 1:3] = 2.0, 4.0            # two are best, or two are worst
    scores[3], scores[3, 0, 0] = 3.0, 5.0           # one lucky grade …
    scores[3, 0, 1:], scores[3, 1] = 0.0, 4.0       # … of an answer that is not the best
    return dict(prompts=prompts, candidates=candidates, scores=scores)


@self_rewarding_pairs.probe
def pairs_of_lists(answer, case):
    found = answer.self_rewarding_pairs(**case)
    if isinstance(found, (list, tuple)) and all(isinstance(row, (list, tuple)) for row in found):
        found = [[*row] for row in found]
    return dict(pairs=found, inputs_after=case)


def _pairs(prompts, candidates, means, worst=None, ties=False, same=False, last=False):
    pairs = []
    for prompt, answers, row in zip(prompts, candidates, means.double(), strict=True):
        best = int(row.argmax())
        low = int(row.argmin()) if worst is None else worst(row)
        if last:
            best = len(row) - 1 - int(row.flip(0).argmax())
            low = len(row) - 1 - int(row.flip(0).argmin())
        if (ties or row[best] > row[low]) and (same or answers[best] != answers[low]):
            pairs.append((prompt, answers[best], answers[low]))
    return pairs


@self_rewarding_pairs.mistake(
    "One grade an answer is read, and the others are thrown away. A single reading is a noisy"
    " grade: average over the last dimension."
)
def first_grade_only(prompts, candidates, scores):
    return _pairs(prompts, candidates, scores[..., 0])


@self_rewarding_pairs.mistake(
    "The *best* of an answer's grades counts here. That rewards answers whose grades scatter; take"
    " their mean."
)
def luckiest_grade(prompts, candidates, scores):
    return _pairs(prompts, candidates, scores.max(-1).values)


@self_rewarding_pairs.mistake(
    "The median of an answer's grades counts here; their mean is asked."
)
def median_grade(prompts, candidates, scores):
    return _pairs(prompts, candidates, scores.median(-1).values)


@self_rewarding_pairs.mistake(
    "The average is over the *answers*. Scores have shape (P, N, S): average over the judgings, the"
    " last dimension, and compare the N answers."
)
def averaged_over_answers(prompts, candidates, scores):
    return _pairs(prompts, candidates, scores.mean(1)[:, :len(candidates[0])])


@self_rewarding_pairs.mistake(
    "Every prompt gives a pair, also where best and worst are graded alike or are one text. Both"
    " tests are missing: such a pair teaches nothing."
)
def nothing_left_out(prompts, candidates, scores):
    return _pairs(prompts, candidates, scores.mean(-1), ties=True, same=True)


@self_rewarding_pairs.mistake(
    "Chosen and rejected are exchanged: the model would learn to write what it finds worst."
)
def worst_chosen(prompts, candidates, scores):
    return [(p, b, a) for p, a, b in _pairs(prompts, candidates, scores.mean(-1))]


@self_rewarding_pairs.mistake(
    "The best answer is paired with the second best. Best and *worst* are asked: with noisy grades"
    " only a wide gap can be trusted."
)
def best_and_second(prompts, candidates, scores):
    return _pairs(prompts, candidates, scores.mean(-1),
                  worst=lambda row: int(row.argsort(descending=True, stable=True)[1]))


@self_rewarding_pairs.mistake(
    "A prompt whose answers all have the same score gives a pair here. The model sees no"
    " difference there; leave the prompt out."
)
def ties_kept(prompts, candidates, scores):
    return _pairs(prompts, candidates, scores.mean(-1),
                  worst=lambda row: int(row.argmin()) if row.min() < row.max() else 1, ties=True)


@self_rewarding_pairs.mistake(
    "Best and worst may be the same text, graded differently by chance. Such a pair teaches"
    " nothing; leave it out."
)
def same_text_kept(prompts, candidates, scores):
    return _pairs(prompts, candidates, scores.mean(-1), same=True)


@self_rewarding_pairs.mistake(
    "Of equal scores the *earlier* answer stands; you take the later (`<=`, or a sort turned"
    " round)."
)
def later_of_equals(prompts, candidates, scores):
    return _pairs(prompts, candidates, scores.mean(-1), last=True)


@self_rewarding_pairs.mistake(
    "Every pair of answers with different scores is there. One pair a prompt is asked: the best"
    " against the worst."
)
def all_pairs(prompts, candidates, scores):
    pairs = []
    for prompt, answers, row in zip(prompts, candidates, scores.double().mean(-1), strict=True):
        for i, j in combinations(range(len(answers)), 2):
            if row[i] != row[j] and answers[i] != answers[j]:
                better, worse = (i, j) if row[i] > row[j] else (j, i)
                pairs.append((prompt, answers[better], answers[worse]))
    return pairs


@self_rewarding_pairs.mistake(
    "Places in the list are returned; the answers themselves are asked."
)
def places_for_answers(prompts, candidates, scores):
    return [(p, answers.index(a), answers.index(b)) for (p, a, b), answers in (
        (pair, next(c for c in candidates if pair[1] in c))
        for pair in _pairs(prompts, candidates, scores.mean(-1)))]


EMPTY = "for no prompts at all, which no case has"
FLAT = "the cases have several judgings an answer, as the exercise says"
self_rewarding_pairs.equivalent("`len(candidates[0]) if len(candidates) else 0` becomes", EMPTY)
self_rewarding_pairs.equivalent("`0` becomes `1`", "every prompt has as many candidates")
self_rewarding_pairs.equivalent("`scores.mean(-1) if scores.dim() == 3 else scores` becomes", FLAT)
self_rewarding_pairs.equivalent(
    "`scores.mean(-1)` becomes `scores.sum(-1)`", "the order of sums is that of the means"
)
self_rewarding_pairs.equivalent("`True` becomes `False`", STRICT)
self_rewarding_pairs.equivalent(
    "`row[best] > row[worst]` becomes", "where all are equal, best and worst are the same answer"
)
