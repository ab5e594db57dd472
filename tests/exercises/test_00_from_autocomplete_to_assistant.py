"""Lesson 00: instructions from labelled examples, pairs from rankings, win rates."""

import functools
from itertools import combinations, combinations_with_replacement, pairwise, permutations

from autograder import exercise, raised
from rlhf_minimal.preferences import Preference

# -- 00.1 ------------------------------------------------------------------------------------------

to_instruction = exercise("to_instruction", number="00.1", points=2)

TASKS = (
    ("Is this review positive or negative?", ("Review",), ("positive", "negative")),
    (
        "Does the premise entail the hypothesis?",
        ("Premise", "Hypothesis"),
        ("yes", "it is not possible to tell", "no"),
    ),
    ("Which meal is this dish for?", ("Dish", "Served"), ("breakfast", "lunch", "dinner")),
)


@to_instruction.reference
def right_instruction(instruction, fields, label, label_names):
    if not 0 <= label < len(label_names):
        raise ValueError(f"label is {label}; it must be 0 to {len(label_names) - 1}")
    lines = [f"{name}: {text}" for name, text in fields.items()]
    prompt = "\n".join([instruction, "", *lines, "", "Answer:"])
    return prompt, " " + label_names[label]


@to_instruction.cases(visible=4, fresh=12)
def labelled_examples(g):
    instruction, names, labels = g.choice(TASKS)
    unlabelled = g.bool(0.2)
    # Longer than the others, so that the smallest failing case shows the text where it is wrong.
    words = 9 if unlabelled else g.size(2, 6)
    return dict(
        instruction=instruction,
        fields={name: " ".join(g.words(words)) for name in names},
        label=-1 if unlabelled else g.integer(0, len(labels)),
        label_names=list(labels),
    )


@to_instruction.probe
def instruction_probe(answer, case):
    if case["label"] < 0:
        return dict(raises=raised(lambda: answer.to_instruction(**case)))
    return dict(returns=answer.to_instruction(**case))


def slip(sentence):
    """Declares a mistake twice: by a student who looks at the label's range, and by one who
    does not.
    """

    def keep(wrong):
        @functools.wraps(wrong)
        def with_check(instruction, fields, label, label_names):
            if not 0 <= label < len(label_names):
                raise ValueError
            return wrong(instruction, fields, label, label_names)

        def without_check(instruction, fields, label, label_names):
            return wrong(instruction, fields, label, label_names)

        without_check.__name__ = f"{wrong.__name__}_and_unlabelled"
        to_instruction.mistake(sentence)(with_check)
        to_instruction.mistake(f"{sentence} (And a label of −1 is let through.)")(without_check)
        return wrong

    return keep


@to_instruction.mistake(
    "A label of −1 is let through, and `label_names[-1]` is the last name: every example that has "
    "no label would teach the last class, without a word."
)
def unlabelled_accepted(instruction, fields, label, label_names):
    if label >= len(label_names):
        raise ValueError
    return right_instruction(instruction, fields, label % len(label_names), label_names)


@slip(
    "The response is the label's number. The model knows words; what your 1 stands for, it has "
    "never read."
)
def number_as_response(instruction, fields, label, label_names):
    prompt, _ = right_instruction(instruction, fields, 0, label_names)
    return prompt, f" {label}"


@slip(
    "The answer already stands in the prompt: the model would learn to copy it, and at test time "
    "nobody writes it there."
)
def answer_in_prompt(instruction, fields, label, label_names):
    prompt, response = right_instruction(instruction, fields, label % len(label_names), label_names)
    return prompt + response, response


@slip(
    "The instruction is missing from the prompt: with many tasks in one model nothing says which "
    "one is meant."
)
def without_instruction(instruction, fields, label, label_names):
    lines = [f"{name}: {text}" for name, text in fields.items()]
    return "\n".join([*lines, "", "Answer:"]), " " + label_names[label]


@slip(
    "Only the first field is in the prompt. Whether a premise entails a hypothesis cannot be told "
    "from the premise."
)
def first_field_only(instruction, fields, label, label_names):
    name = next(iter(fields))
    lines = [instruction, "", f"{name}: {fields[name]}", "", "Answer:"]
    return "\n".join(lines), " " + label_names[label]


@slip(
    "The fields have lost their names: the model cannot tell which line is the premise and which "
    "the hypothesis."
)
def nameless_fields(instruction, fields, label, label_names):
    lines = [instruction, "", *fields.values(), "", "Answer:"]
    return "\n".join(lines), " " + label_names[label]


@slip(
    "The response lacks its leading space: prompt and response together read `Answer:yes`, a text "
    "that nobody writes."
)
def no_space(instruction, fields, label, label_names):
    prompt, response = right_instruction(instruction, fields, label % len(label_names), label_names)
    return prompt, response.strip()


@slip(
    "The prompt ends in a space, and the response begins with one: together they have two, and "
    "most tokenizers have a token of its own for that."
)
def two_spaces(instruction, fields, label, label_names):
    prompt, response = right_instruction(instruction, fields, label % len(label_names), label_names)
    return prompt + " ", response


@slip(
    "The empty lines are missing. Any layout would do, if it is the same in every example: keep "
    "to the one that is asked, instruction, empty line, fields, empty line, `Answer:`."
)
def without_empty_lines(instruction, fields, label, label_names):
    lines = [instruction, *(f"{name}: {text}" for name, text in fields.items()), "Answer:"]
    return "\n".join(lines), " " + label_names[label]


@slip("Labels are counted from 0, and you count from 1: every response is its neighbour's.")
def counted_from_one(instruction, fields, label, label_names):
    prompt, _ = right_instruction(instruction, fields, 0, label_names)
    return prompt, " " + label_names[label - 1]


# -- 00.2 ------------------------------------------------------------------------------------------

pairs_from_ranking = exercise(
    "pairs_from_ranking",
    number="00.2",
    points=2,
    reference="rlhf_minimal.preferences:pairs_from_ranking",
)

ANSWERS = (
    "take dough and cheese .",
    "sure , you need tomato .",
    "for two ?",
    "boil it well .",
    "what do i need for cake ?",
    "you need rice and milk .",
    "of course , bake it .",
    "i could talk about food all day .",
    "then fry it .",
    "please enjoy !",
)


@pairs_from_ranking.cases(visible=4, fresh=12)
def rankings(g):
    dish = g.choice(("pizza", "soup", "cake", "curry"))
    return dict(
        prompt=f"how do i make {dish} ?", best_to_worst=g.sample(ANSWERS, g.size(3, 8))
    )


@pairs_from_ranking.probe
def ranking_probe(answer, case):
    ranking = list(case["best_to_worst"])
    pairs = list(answer.pairs_from_ranking(case["prompt"], ranking))
    plain = [tuple(pair) if isinstance(pair, tuple) else pair for pair in pairs]
    return dict(
        number_of_pairs=len(pairs),
        pairs=sorted(plain, key=str),  # any order of pairs will do
        inputs_after=dict(best_to_worst=ranking),
    )


def preferences(prompt, pairs):
    return [Preference(prompt, *pair) for pair in pairs]


@pairs_from_ranking.mistake(
    "Only neighbours are compared: n − 1 pairs. Whoever ranks the first above the second and the "
    "second above the third has also said: the first above the third."
)
def neighbours_only(prompt, best_to_worst):
    return preferences(prompt, pairwise(best_to_worst))


@pairs_from_ranking.mistake(
    "Every pair is there twice, once each way round: half of your data says the opposite of the "
    "other half, and nothing can be learned from it."
)
def both_ways(prompt, best_to_worst):
    return preferences(prompt, permutations(best_to_worst, 2))


@pairs_from_ranking.mistake(
    "Chosen and rejected have changed places: a reward model trained on this loves the worst "
    "answers."
)
def turned_round(prompt, best_to_worst):
    return preferences(prompt, combinations(reversed(best_to_worst), 2))


@pairs_from_ranking.mistake(
    "Only the best answer is compared with the others: what the ranking says about second and "
    "third is lost."
)
def best_against_rest(prompt, best_to_worst):
    return preferences(prompt, [(best_to_worst[0], worse) for worse in best_to_worst[1:]])


@pairs_from_ranking.mistake(
    "Only the best and the worst are paired: one comparison out of n(n − 1)/2, and the easiest one."
)
def extremes_only(prompt, best_to_worst):
    return preferences(prompt, [(best_to_worst[0], best_to_worst[-1])])


@pairs_from_ranking.mistake(
    "The last answer is in no pair: a loop ends one too early, and the worst answer, from which "
    "there is most to learn, is never rejected."
)
def last_forgotten(prompt, best_to_worst):
    return preferences(prompt, combinations(best_to_worst[:-1], 2))


@pairs_from_ranking.mistake(
    "Each answer is paired with itself too. That is no comparison: let the second index start "
    "after the first."
)
def with_itself(prompt, best_to_worst):
    return preferences(prompt, combinations_with_replacement(best_to_worst, 2))


@pairs_from_ranking.mistake(
    "The answers are sorted before they are paired: the order in which they came was the label."
)
def ranking_sorted_away(prompt, best_to_worst):
    return preferences(prompt, combinations(sorted(best_to_worst), 2))


@pairs_from_ranking.mistake(
    "The pairs are right, but `pop` has emptied the caller's ranking. Walk over it, or over a copy."
)
def ranking_used_up(prompt, best_to_worst):
    pairs = []
    while best_to_worst:
        better = best_to_worst.pop(0)
        pairs += [Preference(prompt, better, worse) for worse in best_to_worst]
    return pairs


# -- 00.3 ------------------------------------------------------------------------------------------

win_rate = exercise(
    "win_rate", number="00.3", points=2, reference="rlhf_minimal.win_rates:win_rate"
)


@win_rate.cases(visible=4, fresh=12)
def games(g):
    prompts = g.size(4, 12)
    return dict(
        scores=g.integers(0, 6, prompts) / 2, opponent_scores=g.integers(0, 6, prompts) / 2
    )


@win_rate.mistake(
    "Ties count as losses: a model would lose against itself. Give each of the two one half."
)
def ties_lost(scores, opponent_scores):
    return (scores > opponent_scores).float().mean().item()


@win_rate.mistake(
    "Ties count as wins: two models that always tie would both have a win rate of 1. Give each "
    "one half."
)
def ties_won(scores, opponent_scores):
    return (scores >= opponent_scores).float().mean().item()


@win_rate.mistake(
    "Ties are left out: of a hundred ties and a single win you make a win rate of 1. A tie is a "
    "result, and counts one half on both sides."
)
def ties_dropped(scores, opponent_scores):
    wins, losses = (scores > opponent_scores).sum(), (scores < opponent_scores).sum()
    return (wins / (wins + losses)).item()


@win_rate.mistake(
    "That is the opponent's win rate: you count how often `opponent_scores` is higher."
)
def opponents(scores, opponent_scores):
    return 1 - right_rate(scores, opponent_scores)


@win_rate.mistake(
    "You count wins, but a rate is a share: divide by the number of prompts."
)
def counted(scores, opponent_scores):
    return right_rate(scores, opponent_scores) * len(scores)


@win_rate.mistake(
    "That is wins minus losses, from −1 to 1. A win rate goes from 0 to 1, with ½ where the two "
    "are equal."
)
def net_wins(scores, opponent_scores):
    return (scores - opponent_scores).sign().mean().item()


@win_rate.mistake(
    "You average by how much we win. A win rate asks how often: one huge win counts as much as a "
    "narrow one."
)
def mean_margin(scores, opponent_scores):
    return (scores - opponent_scores).mean().item()


@win_rate.mistake(
    "Every answer meets every answer of the opponent, those to other prompts too: compare only "
    "answers to the same prompt."
)
def across_prompts(scores, opponent_scores):
    return right_rate(scores[:, None], opponent_scores[None, :])


@win_rate.mistake(
    "The two means are compared, once: that says who is better on average, not on how many prompts."
)
def means_compared(scores, opponent_scores):
    return right_rate(scores.mean(), opponent_scores.mean())


def right_rate(scores, opponent_scores):
    wins = (scores > opponent_scores).float()
    return (wins + 0.5 * (scores == opponent_scores)).mean().item()
