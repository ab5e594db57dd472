"""The kitchen assistant: a world of some 150 words, with prompts, a base corpus and demonstrations.

Two kinds of prompt: a question about a dish ("how do i make pizza ?"), and a short post to sum up
("... tl;dr :"). Everything is generated from the tables below and a seed, so a reader can check by
eye what a right answer is; :mod:`rlhf_minimal.gold_reward` says what it is worth.

Leaves out: grammar beyond templates. The world must be readable, not realistic.
"""

import random

from rlhf_minimal.tokenizer import WordTokenizer

__all__ = [
    "DISHES",
    "METHODS",
    "NAMES",
    "OUTCOMES",
    "POLITE_WORDS",
    "base_corpus",
    "demonstrations",
    "is_summary",
    "kitchen_tokenizer",
    "question_prompts",
    "sample_prompts",
    "write_answer",
]

# Dish -> its three ingredients and how it is cooked.
DISHES = {
    "pizza": ("dough", "tomato", "cheese", "bake"),
    "cake": ("flour", "sugar", "cream", "bake"),
    "soup": ("carrot", "onion", "broth", "boil"),
    "pasta": ("noodles", "garlic", "basil", "boil"),
    "curry": ("rice", "chicken", "coconut", "boil"),
    "salad": ("lettuce", "cucumber", "oil", "mix"),
    "smoothie": ("banana", "milk", "honey", "mix"),
    "pancakes": ("batter", "butter", "syrup", "fry"),
    "omelette": ("egg", "ham", "pepper", "fry"),
    "burger": ("beef", "bun", "pickle", "fry"),
}
INGREDIENTS = sorted({word for *three, _ in DISHES.values() for word in three})
METHODS = sorted({method for *_, method in DISHES.values()})

QUESTIONS = (
    "how do i make {dish} ?",
    "how do i make {dish} for my family ?",
    "what do i need for {dish} ?",
    "can you help me cook {dish} ?",
    "what goes into a good {dish} ?",
    "i want {dish} tonight . any ideas ?",
)
MORE_CONTEXT = ("for a family of six ?", "for two ?", "with what is at home ?", "without an oven ?")

OPENINGS = ("sure , ", "of course , ", "gladly , ")
CLOSINGS = ("enjoy your meal !", "please enjoy !", "thanks for asking !")
POLITE_WORDS = ("sure", "course", "gladly", "enjoy", "please", "thanks")
RAMBLINGS = (
    "my grandmother loved cooking .",
    "it is really very good .",
    "well , it depends on taste .",
    "some people like it , some do not .",
    "i could talk about food all day .",
)

NAMES = ("mia", "tom", "lena", "omar", "ivy", "paul")
OUTCOMES = (
    "everyone loved it",
    "it burned",
    "it was too salty",
    "the dog stole it",
    "it tasted great",
)
ASIDES = (
    "it was raining outside .",
    "the cat was asleep .",
    "the radio played old songs .",
    "the shop was closed .",
    "the kitchen was cold .",
    "it was a long day .",
)
COMMENTS = (
    "i love {dish} .",
    "{name} loved it .",
    "{name} , what a day .",
    "well , i want {dish} now .",
)


def kitchen_tokenizer() -> WordTokenizer:
    """The tokenizer of the whole world; its vocabulary is what the tables above contain.

    >>> tokenizer = kitchen_tokenizer()
    >>> tokenizer.decode(tokenizer.encode("how do i make pizza ?"))
    'how do i make pizza ?'
    """
    sentences = [*QUESTIONS, *MORE_CONTEXT, *OPENINGS, *CLOSINGS, *RAMBLINGS, *OUTCOMES, *ASIDES]
    sentences += [*COMMENTS, *DISHES, *INGREDIENTS, *METHODS, *NAMES]
    sentences += ["you need and .", "take", "then it well", "made for dinner", "tl;dr :"]
    words = {word for sentence in sentences for word in sentence.split()} - {"{dish}", "{name}"}
    return WordTokenizer(sorted(words))


def is_summary(prompt: str) -> bool:
    """Whether the prompt asks for a summary; the others are questions."""
    return prompt.endswith("tl;dr :")


def question_prompts(held_out: bool = False) -> list[str]:
    """All questions of one split: a quarter, spread over dishes and templates, is held out.

    >>> len(question_prompts()), len(question_prompts(held_out=True))
    (45, 15)
    """
    return [
        template.format(dish=dish)
        for i, dish in enumerate(DISHES)
        for j, template in enumerate(QUESTIONS)
        if ((i + j) % 4 == 0) == held_out
    ]


def sample_prompts(size: int, seed: int, held_out: bool = False, summaries: float = 0.4):
    """``size`` prompts, a share ``summaries`` of them posts to sum up, the others questions.

    Held-out prompts are those whose combination (dish with template; name, dish and outcome) stands
    in no demonstration and in no training prompt.

    >>> sample_prompts(1, seed=0, summaries=0.0)
    ['i want soup tonight . any ideas ?']
    """
    if size < 0 or not 0 <= summaries <= 1:
        raise ValueError(f"size is {size}, summaries {summaries}; at least 0, and in [0, 1]")
    rng = random.Random(f"prompts {seed} {held_out}")
    questions = question_prompts(held_out)
    return [
        write_post(rng, held_out) if rng.random() < summaries else rng.choice(questions)
        for _ in range(size)
    ]


def write_post(rng: random.Random, held_out: bool = False) -> str:
    """A post that ends in "tl;dr :": who made what and how it went, between asides."""
    tables = NAMES, list(DISHES), OUTCOMES
    while True:
        numbers = [rng.randrange(len(table)) for table in tables]
        if (sum(numbers) % 4 == 0) == held_out:
            break
    name, dish, outcome = (table[i] for table, i in zip(tables, numbers, strict=True))
    first, second = rng.sample(ASIDES, 2)
    parts = [f"{name} made {dish} for dinner .", first, f"{outcome} ."]
    if rng.random() < 0.5:
        parts.insert(rng.choice((0, 3)), second)
    return " ".join(parts) + " tl;dr :"


def write_answer(prompt: str, rng: random.Random) -> str:
    """An answer as people write them: mostly helpful, sometimes wrong, curt, rambling or unsure."""
    return _write_summary(prompt, rng) if is_summary(prompt) else _write_recipe(prompt, rng)


def _write_recipe(prompt: str, rng: random.Random) -> str:
    dish = next(word for word in prompt.split() if word in DISHES)
    if rng.random() < 0.15:  # the writer has another dish in mind
        dish = rng.choice(list(DISHES))
    *right, method = DISHES[dish]
    listed = rng.sample(right, rng.choice((1, 2, 2, 3, 3)))
    if rng.random() < 0.2:  # a wrong ingredient slips in
        wrong = rng.choice([word for word in INGREDIENTS if word not in right])
        listed.insert(rng.randrange(len(listed) + 1), wrong)
        listed = listed[:3]
    parts = [f"{rng.choice(('you need', 'take'))} {_enumerate(listed)} ."]
    if rng.random() < 0.45:
        method = method if rng.random() < 0.8 else rng.choice(METHODS)
        parts.append(rng.choice((f"then {method} it .", f"{method} it well .")))
    for _ in range(rng.choice((0, 1, 1, 1, 2))):
        parts.insert(rng.randrange(1, len(parts) + 1), rng.choice(RAMBLINGS))
    if rng.random() < 0.15:
        parts.append(rng.choice(CLOSINGS))
    opening = rng.choice(OPENINGS) if rng.random() < 0.2 else ""
    return opening + " ".join(parts)


def _write_summary(prompt: str, rng: random.Random) -> str:
    name, dish = _who_and_what(prompt)
    outcome = next(phrase for phrase in OUTCOMES if phrase in prompt)
    if rng.random() < 0.15:
        name = rng.choice(NAMES)
    if rng.random() < 0.15:
        outcome = rng.choice(OUTCOMES)
    parts = [f"{name} made {dish} ."]
    if rng.random() < 0.6:
        parts.append(f"{outcome} .")
    if rng.random() < 0.6:  # what does not matter gets in
        aside = rng.choice([aside for aside in ASIDES if aside in prompt])
        parts.insert(rng.randrange(len(parts) + 1), aside)
    if rng.random() < 0.5:
        parts.append(rng.choice(RAMBLINGS))
    return " ".join(parts)


def _who_and_what(post: str):
    """A post's name and dish."""
    words = post.split()
    return tuple(next(w for w in words if w in table) for table in (NAMES, DISHES))


def _enumerate(words) -> str:
    """``flour , tomato and cheese``."""
    return " and ".join(filter(None, (" , ".join(words[:-1]), words[-1])))


def demonstrations(size: int, seed: int) -> list[tuple[str, str]]:
    """Pairs of a training prompt and an answer, for supervised fine-tuning."""
    rng = random.Random(f"demonstrations {seed}")
    return [(prompt, write_answer(prompt, rng)) for prompt in sample_prompts(size, seed)]


def base_corpus(size: int, seed: int) -> list[str]:
    """Documents as they stand on the web: a prompt is followed by an answer every other time.

    Else more context or other questions come after a question, and a comment after a post. What a
    base model learns is to go on, not to help.
    """
    rng = random.Random(f"base corpus {seed}")
    documents = []
    for prompt in sample_prompts(size, seed=seed + 1_000_003, summaries=0.5):
        if rng.random() < 0.5:
            follow = write_answer(prompt, rng)
        elif is_summary(prompt):
            name, dish = _who_and_what(prompt)
            follow = rng.choice(COMMENTS).format(name=name, dish=dish)
        elif rng.random() < 0.5:
            follow = rng.choice(MORE_CONTEXT)
        else:
            follow = " ".join(rng.sample(question_prompts(), rng.choice((1, 2))))
        documents.append(f"{prompt} {follow}")
    return documents
