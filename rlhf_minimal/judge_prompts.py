"""What a judge model is asked, and what it meant: prompts for three kinds of judging, two parsers.

Follows the three settings of Zheng et al. 2023, arXiv 2306.05685: two answers compared, a single
answer graded, either with a reference answer beside. The wording is the course's own.

A parser that cannot tell says ``None``. To guess would count the judge's slips as verdicts, and a
slip is not random: it happens more often where the question is hard.

Leaves out: judging whole conversations, and several judges.
"""

import re

__all__ = ["pairwise_prompt", "parse_score", "parse_verdict", "single_prompt"]

PAIRWISE = """Two assistants answered the same question. Which answer serves the asker better?
What counts: it is right, it answers what was asked, it is clear. Neither the order in which the \
answers stand nor their length counts.
{reference}
Question: {question}

Answer (A): {first}

Answer (B): {second}

{ending}"""

EXPLAIN = "Say why in one sentence. Then end with your verdict: [[A]], [[B]], or [[tie]]."
CHOOSE = "Reply with (A) or (B) and nothing else."

SINGLE = """An assistant answered a question. Grade its answer from {low} (worst) to {high} (best).
What counts: it is right, it answers what was asked, it is clear. Its length does not count.
{reference}
Question: {question}

Answer: {answer}

Say why in one sentence. Then end with your grade: Score: [[number]]."""

REFERENCE = "\nAn answer known to be right, to compare with: {reference}\n"

LETTER = (
    r"[\s*_`\"'(\[]*(?:(?i:answer|assistant|response|option)[\s(]*)?"
    r"(A|B|[Tt]ie\b|(?<=\()[ab](?=\)))(?![\w'])"
)
NO_SENTENCE = r"(?!\s+(?!because|is|since|as)[a-z])"  # "Answer: A good cook …" is no verdict
CUES = re.compile(
    rf"(?i:\b(?:verdict|winner|choice|answer|better|best)\s*(?:is\b|:)){LETTER}{NO_SENTENCE}"
    rf"|(?i:\b(?<!not )(?:prefer|choose|pick)\b){LETTER}"
    r"|\b(A|B)\b\)?\s+(?i:(?:is|was|seems|looks)\s+(?!not\b)(?:\w+\s+)?(?:better|best|winner)|wins)\b"
)
NUMBER = r"(-?\d+(?:[.,]\d+)?)(?:\s*(?:/|out of)\s*(\d+))?(?![\d.,]*\d)"
SCORE_CUES = re.compile(rf"(?i:\b(?:score|grade|rating)\b[^\d\n-]{{0,20}}?){NUMBER}")


def pairwise_prompt(
    question: str, first: str, second: str, reference: str | None = None, explain: bool = True
) -> str:
    """Ask which of two answers is better; with ``reference``, beside an answer known to be right.

    Args:
        explain: ask for a reason and then a verdict, to be parsed; else for "(A)" or "(B)" alone,
            whose probabilities can be read.

    >>> print(pairwise_prompt("2 + 2?", "4", "5").splitlines()[-1])
    Say why in one sentence. Then end with your verdict: [[A]], [[B]], or [[tie]].
    """
    beside = REFERENCE.format(reference=reference) if reference is not None else ""
    texts = dict(question=question, first=first, second=second, reference=beside)
    return PAIRWISE.format(**texts, ending=EXPLAIN if explain else CHOOSE)


def single_prompt(
    question: str, answer: str, reference: str | None = None, low: int = 0, high: int = 5
) -> str:
    """Ask for a grade of one answer from ``low`` to ``high``; with ``reference``, beside another.

    >>> print(single_prompt("2 + 2?", "4").splitlines()[-1])
    Say why in one sentence. Then end with your grade: Score: [[number]].
    """
    beside = REFERENCE.format(reference=reference) if reference is not None else ""
    texts = dict(question=question, answer=answer, reference=beside)
    return SINGLE.format(**texts, low=low, high=high)


def parse_verdict(text: str) -> str | None:
    """Which answer a judge's text prefers: "A", "B", "tie", or ``None`` where it does not say.

    In this order: the last ``[[A]]``; a sentence that names the winner; marks such as ``(A)`` that
    all name one answer; a lone letter. Two names that contradict each other are no verdict.

    >>> [parse_verdict(t) for t in ("[[b]]", "**Winner: A**", "I prefer (B).", "A good answer.")]
    ['B', 'A', 'B', None]
    """
    marks = re.findall(r"\[\[\s*(a|b|tie|c)\s*\]\]", text, re.IGNORECASE)
    if marks:
        return _verdict(marks[-1])
    named = ["".join(groups) for groups in CUES.findall(text)]
    named = named or re.findall(r"[(\[](A|B)[)\]]", text)
    named = named or re.findall(r"^[\W_]*(A|B|[Tt]ie|TIE)[\W_]*$", text)
    verdicts = {_verdict(name) for name in named}
    return verdicts.pop() if len(verdicts) == 1 else None


def _verdict(mark: str) -> str:
    return {"a": "A", "b": "B"}.get(mark.lower(), "tie")  # [[C]] is a tie in MT-bench's prompts


def parse_score(text: str, low: float = 0, high: float = 5) -> float | None:
    """The grade in a judge's text, or ``None`` where it gives none on the scale.

    In this order: the last ``[[4]]``; the last number behind "score", "grade" or "rating"; a number
    "out of" the scale's top; the only number there is. A number off the scale is no grade, nor is
    one on another scale ("7/10" where 5 is the top): to clip or to rescale would invent one.

    >>> [parse_score(t) for t in ("Score: [[4]]", "I give it 3 out of 5.", "9/10", "3 of 4 steps")]
    [4.0, 3.0, None, None]
    """
    found = re.findall(rf"\[\[\s*{NUMBER}\s*\]\]", text)[-1:]
    if not found and re.search(r"\d\s*[-–]\s*\d", text):  # "3-4"
        return None
    found = found or SCORE_CUES.findall(text)[-1:]
    if not found:
        numbers = re.findall(rf"(?<![\d.,]){NUMBER}", text)
        found = [number for number in numbers if number[1]] or numbers
    if len(found) != 1:
        return None
    (number, top), scale_top = found[0], f"{high:g}"
    value = float(number.replace(",", "."))
    if not low <= value <= high or top not in ("", scale_top):
        return None
    return value
