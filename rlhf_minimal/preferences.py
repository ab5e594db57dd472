"""Preference data: comparisons as text, from rankings, from hh-rlhf files and from Label Studio.

A file that is half wrong loses none of its good rows: a reader returns the good rows and, for every
other one, where it stands and what is wrong with it.

Follows Ouyang et al. 2022, arXiv 2203.02155 (pairs from rankings), Bai et al. 2022, arXiv
2204.05862 (hh-rlhf) and Label Studio's export format. Strengths from comparisons (Bradley–Terry,
Elo) stand in :mod:`rlhf_minimal.bradley_terry` and can be imported from here too.

Leaves out: ties, ratings of single answers, downloading data.
"""

import json
import re
from itertools import combinations
from typing import NamedTuple

from rlhf_minimal.bradley_terry import bradley_terry_errors, elo_update, fit_bradley_terry
from rlhf_minimal.preference_files import existing_file, hh_texts, numbered_lines, ranked_answers

__all__ = [
    "Preference",
    "SkippedRow",
    "bradley_terry_errors",
    "elo_update",
    "fit_bradley_terry",
    "pairs_from_ranking",
    "read_hh_rlhf",
    "read_label_studio",
    "split_conversation",
]

ROLES = {"Human": "user", "Assistant": "assistant"}


class _Texts(NamedTuple):
    prompt: str
    chosen: str
    rejected: str


class Preference(_Texts):
    """One comparison: to ``prompt``, somebody preferred ``chosen`` to ``rejected``.

    Raises:
        TypeError: a field is not a string.
        ValueError: a field is blank, or both answers are the same: that is no comparison.

    >>> Preference("2 + 2?", chosen="4", rejected="4")
    Traceback (most recent call last):
    ValueError: chosen and rejected are the same answer; a pair needs two
    """

    __slots__ = ()

    def __new__(cls, prompt, chosen, rejected):
        for name, text in (("prompt", prompt), ("chosen", chosen), ("rejected", rejected)):
            if not isinstance(text, str):
                raise TypeError(f"{name} must be a string, not {type(text).__name__}")
            if not text.strip():
                raise ValueError(f"{name} is empty")
            try:
                text.encode()
            except UnicodeEncodeError as error:  # JSON can write half a surrogate pair: "\\ud800"
                raise ValueError(f"{name} is no text: {error.reason} at {error.start}") from error
        if chosen == rejected:
            raise ValueError("chosen and rejected are the same answer; a pair needs two")
        return super().__new__(cls, prompt, chosen, rejected)


class SkippedRow(NamedTuple):
    """A row that a reader left out: its line (or place in the list), counted from 1, and why."""

    line: int
    reason: str


def pairs_from_ranking(prompt: str, best_to_worst) -> list[Preference]:
    """All n(n − 1)/2 comparisons that a ranking of n answers holds.

    Ouyang et al. 2022, section 3.5: labellers rank 4 to 9 answers, and all pairs of one prompt go
    into one batch, since they are far from independent.

    Args:
        best_to_worst: two or more different answers, the best first. Ties cannot be written here:
            leave all but one of the tied answers out.

    Raises:
        ValueError: fewer than two answers, or the same answer twice.

    >>> [(pair.chosen, pair.rejected) for pair in pairs_from_ranking("?", ["a", "b", "c"])]
    [('a', 'b'), ('a', 'c'), ('b', 'c')]
    """
    if isinstance(best_to_worst, str):
        raise TypeError("best_to_worst is one string; pass a list of answers")
    answers = list(best_to_worst)
    if len(answers) < 2:
        raise ValueError(f"best_to_worst holds {len(answers)} answers; a comparison needs two")
    repeated = [answer for place, answer in enumerate(answers) if answer in answers[:place]]
    if repeated:
        raise ValueError(f"the answer {repeated[0]!r} stands twice in the ranking; keep one place")
    return [Preference(prompt, better, worse) for better, worse in combinations(answers, 2)]


def split_conversation(text: str) -> list[dict]:
    """An hh-rlhf transcript as chat messages.

    Turns start with ``"\\n\\nHuman:"`` or ``"\\n\\nAssistant:"``. A last Assistant turn that is
    still empty (the end of a prompt) is left out. Two turns of one speaker in a row become one,
    because chat templates want speakers to alternate; text before the first turn is the user's.

    Returns:
        ``[{"role": "user" | "assistant", "content": str}, ...]``, contents stripped.

    >>> split_conversation("\\n\\nHuman: Hi\\n\\nAssistant: Hello!\\n\\nHuman: Bye\\n\\nAssistant:")
    [{'role': 'user', 'content': 'Hi'}, {'role': 'assistant', 'content': 'Hello!'},
     {'role': 'user', 'content': 'Bye'}]
    """
    before, *turns = re.split(r"(?:^|\n\n)(Human|Assistant):", text)
    turns = ["Human", before, *turns] if before.strip() else turns
    messages: list[dict] = []
    for speaker, content in zip(turns[::2], turns[1::2], strict=True):
        role, content = ROLES[speaker], content.strip()
        if messages and messages[-1]["role"] == role:
            messages[-1]["content"] = f"{messages[-1]['content']}\n\n{content}".strip()
        else:
            messages.append({"role": role, "content": content})
    if messages and messages[-1] == {"role": "assistant", "content": ""}:
        messages.pop()
    return messages


def read_hh_rlhf(path) -> tuple[list[Preference], list[SkippedRow]]:
    """Read pairs in hh-rlhf's format: JSON lines with the transcripts ``chosen`` and ``rejected``.

    The prompt is everything up to and including the last ``"\\n\\nAssistant:"``, and *each* text is
    split at its own. To cut both at the length of chosen's prompt is a common error: where the
    transcripts differ earlier, it takes a part of the conversation for an answer.

    Args:
        path: a ``.jsonl`` file, gzipped or not (told by its content, not by its name).

    Returns:
        The good pairs, in the file's order, and the rows left out. ``prompt + chosen`` is the text
        as it stands in the file. Blank lines are not rows.

    Raises:
        FileNotFoundError, OSError: there is no such file, or it cannot be read.
        ValueError: the file holds no rows at all.
    """
    preferences: list[Preference] = []
    skipped: list[SkippedRow] = []
    for number, line in numbered_lines(path):
        try:
            if isinstance(line, Exception):
                raise line
            preferences.append(Preference(*hh_texts(line)))
        except (ValueError, TypeError, RecursionError) as error:
            skipped.append(SkippedRow(number, str(error)))
    if not preferences and not skipped:
        raise ValueError(f"{path} holds no rows; it must hold one JSON object a line")
    return preferences, skipped


def read_label_studio(
    path, prompt_key: str = "prompt", items_key: str = "items"
) -> tuple[list[Preference], list[SkippedRow]]:
    """Read the JSON export of a Label Studio project whose ``Ranker`` sorts a ``List``.

    A task's ``data`` holds the prompt and the items, ``{"id": ..., "body": ...}``; each
    annotation holds the ids in order, the best first, and becomes n(n − 1)/2 pairs.

    Args:
        path: an export in the format called JSON.
        prompt_key, items_key: what the task's data calls the prompt and the list of items.

    Returns:
        The pairs, and the tasks or annotations left out (cancelled, not finished, not a plain
        ranking of all items); ``line`` is the task's place in the file, counted from 1.

    Raises:
        OSError: the file cannot be read. ValueError: it is not an export.
    """
    try:
        tasks = json.loads(existing_file(path).read_text(encoding="utf-8-sig"))
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(tasks, list) or not tasks:
        raise ValueError(f"{path} is no Label Studio export: it must be a list of tasks")
    preferences: list[Preference] = []
    skipped: list[SkippedRow] = []
    for place, task in enumerate(tasks, start=1):
        annotations = task.get("annotations") if isinstance(task, dict) else None
        if not isinstance(annotations, list) or not annotations:
            skipped.append(SkippedRow(place, "the task has no annotations"))
            continue
        for annotation in annotations:
            try:
                answers = ranked_answers(task["data"][items_key], annotation)
                preferences += pairs_from_ranking(task["data"][prompt_key], answers)
            except KeyError as error:
                skipped.append(SkippedRow(place, f"the key {error} is missing"))
            except (ValueError, TypeError, AttributeError) as error:
                skipped.append(SkippedRow(place, str(error)))
    return preferences, skipped
