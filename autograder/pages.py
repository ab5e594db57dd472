"""The pages people open: one a student, one for the class. Each is one file without outside parts.

Leaves out: scripts; what can be read from the tables.
"""

import html
import statistics
from collections import Counter
from urllib.parse import quote

from autograder.cards import SIGNS, as_html, coded
from autograder.results import place

__all__ = ["class_page", "feedback"]

STYLE = """
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 0 auto; padding: 1rem; }
h1 { font-size: 1.4rem; margin: .2rem 0; } h2 { font-size: 1.1rem; margin: 1.6rem 0 .4rem; }
p { margin: .3rem 0; } code, pre { font-family: ui-monospace, monospace; }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-size: .9rem; }
th, td { padding: .15rem .45rem; text-align: center; white-space: nowrap; border: 1px solid #8884; }
th[scope=row] { text-align: left; font-weight: normal; }
th[scope=row] { position: sticky; left: 0; background: Canvas; max-width: min(16rem, 34vw); }
th[scope=row] { overflow: hidden; text-overflow: ellipsis; }
td.status { text-align: left; white-space: normal; font-style: italic; }
th small { font-weight: normal; } th[scope=col] { white-space: normal; vertical-align: top; }
.key { white-space: nowrap; margin-right: .7rem; }
td.v { color: #fff; font-weight: bold; } .faint { opacity: .7; font-size: .85rem; }
.bar { display: flex; gap: .6rem; align-items: baseline; margin: .55rem 0; }
.bar b { flex: 0 0 2.2rem; text-align: right; } .bar div { flex: 1; min-width: 0; }
.bar u { display: block; height: .4rem; background: #8883; border-radius: 2px; margin-top: .1rem; }
.bar i { display: block; height: .4rem; background: #0072b2; border-radius: 2px; min-width: 2px; }
summary { cursor: pointer; margin: .5rem 0; }
.loud { border: 2px solid #b35900; padding: .5rem; }
"""
SHOWN = 10                      # mistakes in sight before the rest is folded
# Told apart without red against green, and by their signs.
CELLS = {
    "right": "#0072b2",
    "wrong": "#c96a00",
    "error": "#7f3b08",
    "timeout": "#7a4a9e",
    "memory": "#7a4a9e",
    "died": "#7a4a9e",
    "missing": "#999999",
    "not attempted": "#999999",
    "ungraded": "#000000",
}


def _page(title: str, body: str) -> str:
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(title)}</title><style>{STYLE}</style></head><body>\n{body}\n</body></html>\n"
    )


def feedback(record, facts) -> str:
    """The page of one student: every exercise with what is wrong and the smallest failing case."""
    parts = [
        f"<h1>{html.escape(record.name)}: {record.total:g} of {record.out_of:g} points</h1>",
        f"<p>{html.escape(record.status)}</p>",
        *(f"<p>{html.escape(note)}</p>" for note in record.notes),
    ]
    if record.ungraded:
        parts.append(
            '<p class="loud">Some exercises could not be graded through a fault of the grader, not '
            "yours. They count neither for nor against you until they are graded again.</p>"
        )
    lesson = None
    for result in record.results:
        if result.lesson != lesson:
            lesson = result.lesson
            parts.append(f"<h2>Lesson {html.escape(lesson)}</h2>")
        points = f"{result.points:g} of {result.out_of:g} points"
        ungraded = result.verdict == "ungraded"
        parts.append(as_html(result, "" if ungraded else f'<div class="faint">{points}</div>'))
    parts.append(f'<p class="faint">{html.escape(_facts(facts))}</p>')
    return _page(f"{record.name}: feedback", "\n".join(parts))


def _facts(facts) -> str:
    return "; ".join(f"{name}: {value}" for name, value in facts.items() if value)


def class_page(records, facts) -> str:
    """The class at a glance: how many got each exercise, which mistakes, who got what."""
    titles = sorted(
        {(r.number, r.exercise) for record in records for r in record.results}, key=place
    )
    totals = [record.total for record in records if record.results]
    most = max((record.out_of for record in records), default=0)
    middle = f"median {statistics.median(totals):g} of {most:g}" if totals else "nothing graded yet"
    ungraded = sum(len(record.ungraded) for record in records)
    loud = (
        f'<p class="loud">{ungraded} results are ungraded: the grader failed there. Run again with '
        "<code>--resume</code>.</p>" if ungraded else ""
    )
    body = [
        f"<h1>{len(records)} submissions, {middle}</h1>", loud,
        "<h2>Exercises, by how many got them right</h2>", _shares(records, titles),
        "<h2>Known mistakes, by how many made them</h2>", _mistakes(records),
        "<h2>Who got what</h2>", _legend(), _heat_map(records, titles),
        f'<p class="faint">{html.escape(_facts(facts))}</p>',
    ]
    return _page("The class", "\n".join(body))


def _bars(rows) -> str:
    """Rows of label, count and the number that a full bar stands for."""
    return "\n".join(
        f'<div class="bar"><b>{count}</b><div>{label}'
        f'<u><i style="width:{100 * count / max(most, 1):.1f}%"></i></u></div></div>'
        for label, count, most in rows
    )


def _mistakes(records) -> str:
    """The commonest in sight, the rest folded; a full bar is all whose exercise was marked."""
    found = Counter(
        (r.number, r.exercise, r.headline)
        for record in records for r in record.results if r.mistake
    )
    marked = Counter((r.number, r.exercise) for record in records for r in record.results)
    if not found:
        return "<p>No known mistake was found.</p>"
    rows = [
        (f"{html.escape(number)} <code>{html.escape(name)}</code> {coded(text)}", count,
         marked[number, name])
        for (number, name, text), count in found.most_common()
    ]
    first, rest = _bars(rows[:SHOWN]), rows[SHOWN:]
    if not rest:
        return first
    return f"{first}\n<details><summary>{len(rest)} more</summary>\n{_bars(rest)}</details>"


def _shares(records, titles) -> str:
    rows = []
    for title in titles:
        results = [
            r for record in records for r in record.results if (r.number, r.exercise) == title
        ]
        untried = sum(r.verdict in ("missing", "not attempted") for r in results)
        name = f"{html.escape(title[0])} <code>{html.escape(title[1])}</code>"
        label = f"{name} of {len(results)}" + (f", {untried} have not tried" if untried else "")
        rows.append((label, sum(r.right for r in results), len(results)))
    return _bars(rows)


def _heat_map(records, titles) -> str:
    head = "".join(
        f'<th scope="col">{html.escape(n)}<br><small>{_breakable(name)}</small></th>'
        for n, name in titles
    )
    rows = []
    for record in records:
        by_title = {(r.number, r.exercise): r for r in record.results}
        cells = "".join(_heat_cell(by_title.get(title)) for title in titles)
        link = quote(f"feedback/{record.name}.html")
        if not record.results:
            words = html.escape(record.status)
            cells = f'<td class="status" colspan="{len(titles)}">{words}</td>'
        rows.append(
            f'<tr><th scope="row"><a href="{link}">{html.escape(record.name)}</a></th>'
            f"<td>{record.total:g}/{record.out_of:g}</td>{cells}</tr>"
        )
    return (
        f'<div class="wide"><table><tr><th></th><th scope="col">total</th>{head}</tr>'
        f"{''.join(rows)}</table></div>"
    )


def _breakable(name: str) -> str:
    """A name that may be broken at its underscores, so that columns stay narrow."""
    return html.escape(name).replace("_", "_<wbr>")


def _heat_cell(result) -> str:
    if result is None:
        return "<td></td>"
    words = html.escape(f"{result.verdict}: {result.headline}", quote=True)
    colour, sign = CELLS[result.verdict], SIGNS[result.verdict]
    return f'<td class="v" style="background:{colour}" title="{words}">{sign}</td>'


def _legend() -> str:
    items = "".join(
        f'<span class="key"><span style="color:{colour}">■</span> {SIGNS[verdict]} {verdict}'
        "</span> "
        for verdict, colour in CELLS.items()
    )
    return f"<p><small>{items}</small></p>"
