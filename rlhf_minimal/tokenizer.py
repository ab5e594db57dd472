"""A word-level tokenizer: one word, one number. What a reader sees is what the model sees.

Leaves out: subwords. A hundred and some words need none; the large models of the last lessons
bring their own tokenizers.
"""

import difflib
import re

__all__ = ["WordTokenizer", "prettify"]


class WordTokenizer:
    """Maps the words of a closed vocabulary to ids and back.

    Args:
        words: the vocabulary without special tokens, each once.

    ``pad_id`` is 0 and ``end_id`` is 1. They are two tokens on purpose: where they are one, masking
    "padding" by its id hides the end of every answer, and the model never learns to stop.

    >>> tokenizer = WordTokenizer(["you", "need", "flour", "."])
    >>> tokenizer.encode("you need flour .", end=True)
    [2, 3, 4, 5, 1]
    >>> tokenizer.decode([2, 3, 4, 5, 1, 0, 0])
    'you need flour .'
    """

    pad, end = "<pad>", "<end>"
    pad_id, end_id = 0, 1

    def __init__(self, words):
        self.words = [self.pad, self.end, *words]
        self.ids = {word: number for number, word in enumerate(self.words)}
        if len(self.ids) != len(self.words):
            twice = sorted({word for word in self.words if self.words.count(word) > 1})
            raise ValueError(f"words stand more than once in the vocabulary: {twice}")

    def __len__(self) -> int:
        return len(self.words)

    def encode(self, text: str, end: bool = False) -> list[int]:
        """Ids of the words of ``text``, separated by spaces; with ``end``, the end token behind.

        Raises:
            ValueError: a word is not in the vocabulary; the message offers near ones.
        """
        try:
            ids = [self.ids[word] for word in text.split()]
        except KeyError as error:
            near = difflib.get_close_matches(error.args[0], self.words, n=3)
            hint = f"did you mean one of {near}?" if near else "words are separated by spaces"
            raise ValueError(f"{error.args[0]!r} is not in the vocabulary; {hint}") from None
        return [*ids, self.end_id] if end else ids

    def decode(self, ids) -> str:
        """The words up to the first end token, padding left out."""
        words = []
        for number in ids:
            if number == self.end_id:
                break
            if number != self.pad_id:
                words.append(self.words[number])
        return " ".join(words)


def prettify(text: str) -> str:
    """The same words as a person would set them.

    >>> prettify("sure , you need flour and eggs . enjoy !")
    'Sure, you need flour and eggs. Enjoy!'
    """
    text = re.sub(r" ([,.!?:])", r"\1", text)
    return re.sub(r"(^|[.!?] )([a-z])", lambda match: match[1] + match[2].upper(), text)
