"""One result as people see it in a lesson: a small card in a notebook, plain lines anywhere else.

Leaves out: the pages for a class (``pages.py``). No time and no path is shown, so that a lesson
that is run again gives the same outputs.
"""

import html
import re

__all__ = ["Card", "as_html", "as_lines", "marks"]

SIGNS = {
    "right": "✓", "wrong": "✗", "error": "✗", "timeout": "✗", "memory": "✗", "died": "✗",
    "missing": "–", "not attempted": "·", "ungraded": "?",
}
COLOURS = {
    "right": "#1a7f37",
    "not attempted": "#6e7781",
    "missing": "#6e7781",
    "ungraded": "#9a6700",
}
WRONG = "#b35900"
PRE = "white-space:pre-wrap;overflow-wrap:anywhere;font-family:monospace;font-size:90%;" \
      "margin:4px 0 4px 0;padding:6px;border:1px solid rgba(128,128,128,.35);" \
      "border-radius:4px;background:rgba(128,128,128,.08)"


class Card:
    """What ``check`` displays: HTML where the front end shows it, text where it does not."""

    def __init__(self, result, progress: str = "", afterwards: str = ""):
        self.result, self.progress, self.afterwards = result, progress, afterwards

    def __repr__(self):
        extra = [line for line in (self.afterwards, self.progress) if line]
        return "\n".join([*as_lines(self.result), *extra])

    def _repr_mimebundle_(self, include=None, exclude=None):
        return {"text/plain": repr(self), "text/html": self.html()}

    def html(self) -> str:
        small = "".join(
            f'<div style="opacity:.75;margin-top:4px;white-space:pre-wrap">{coded(line)}</div>'
            for line in (self.afterwards, self.progress) if line
        )
        return as_html(self.result, small)


def marks(results) -> str:
    """The progress line: each exercise's number with its sign; ``results`` maps numbers to
    verdicts.
    """
    return "   ".join(f"{number} {SIGNS.get(verdict, ' ')}" for number, verdict in results.items())


def as_lines(result) -> list[str]:
    """A result as plain text."""
    lines = [f"{SIGNS[result.verdict]} {result.number} {result.exercise}: {title(result)}"]
    lines += [f"  {hint}" for hint in result.hints]
    for name, text in parts(result):
        lines += [f"  {name}:", *(f"      {line}" for line in text.split("\n"))]
    return lines


def title(result) -> str:
    points = (
        ""
        if result.right or not result.points
        else f" ({result.points:g} of {result.out_of:g} points)"
    )
    return result.headline + points


def parts(result) -> list[tuple[str, str]]:
    """The pieces of evidence that are shown, each with its name."""
    trace = "\n".join(
        f"{label}, line {line}{f', in {function}' if function else ''}: {text}"
        for label, line, function, text in result.traceback
    )
    named = [
        ("your code", trace), ("smallest failing case", result.case), ("expected", result.expected),
        ("got", result.got), ("it printed, all cases together", result.stdout[:1500].strip()),
    ]
    if result.right:
        return []
    return [(name, text) for name, text in named if text]


def coded(text: str) -> str:
    """A sentence as HTML, what stands in backquotes as code."""
    return re.sub(r"`([^`]*)`", r"<code>\1</code>", html.escape(text))


def as_html(result, below: str = "") -> str:
    """A result as a card; styles are inline, since front ends drop style sheets."""
    colour = COLOURS.get(result.verdict, WRONG)
    head = (
        f'<div><b style="color:{colour}">{SIGNS[result.verdict]} {html.escape(result.number)} '
        f"<code>{html.escape(result.exercise)}</code></b> {coded(title(result))}</div>"
    )
    hints = "".join(f'<div style="margin-top:2px">{coded(hint)}</div>' for hint in result.hints)
    evidence = "".join(
        f'<div style="margin-top:4px;opacity:.8">{name}</div>'
        f'<pre style="{PRE}">{html.escape(text)}</pre>'
        for name, text in parts(result)
    )
    return (
        f'<div style="border-left:4px solid {colour};padding:4px 0 4px 10px;margin:6px 0;'
        f'max-width:60em">{head}{hints}{evidence}{below}</div>'
    )
