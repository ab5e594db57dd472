"""Toy lesson 02: texts, and a reference that stands in the test file."""

from autograder import exercise, raised

longest_word = exercise("longest_word", number="02.1", points=2, seconds=1)


@longest_word.reference
def right(words):
    if not words:
        raise ValueError("words is empty")
    return max(words, key=len)


@longest_word.cases(visible=4, fresh=8)
def cases(g):
    return dict(words=[g.word() + "s" * g.integer(0, 3) for _ in range(g.integer(4, 8))])


@longest_word.probe
def probe(answer, case):
    return dict(
        word=answer.longest_word(case["words"]), empty=raised(lambda: answer.longest_word([]))
    )


@longest_word.mistake("The shortest word is returned.")
def shortest(words):
    if not words:
        raise ValueError
    return min(words, key=len)


@longest_word.mistake("Of words of one length the first is asked, and you give the last.")
def last_of_equals(words):
    if not words:
        raise ValueError
    return max(reversed(words), key=len)


@longest_word.mistake("An empty list must end in a ValueError.")
def empty_is_fine(words):
    return max(words, key=len, default="")
