"""Says what is wrong, in words that teach: the known mistake, or what can be read off the numbers.

First whether the replies are those of a known mistake on every case; then a constant factor (and
where it comes from), sign, offset, transposition, a shift by one, shape, dtype, NaN, a cut
gradient, an input changed in place. Always the smallest failing case, as code, with expected and
got.

Leaves out: deciding. What is said here changes no mark.
"""

from autograder.compare import leaves_of
from autograder.expectation import same
from autograder.pasteable import as_code, as_text, size_of
from autograder.patterns import gap_of, pattern_of

__all__ = ["explain", "explain_end"]

SIGNALS = {
    4: "illegal instruction",
    6: "abort",
    7: "bus error",
    9: "killed",
    11: "segmentation fault",
}


def explain_end(reply, exercise, found) -> dict | None:
    """Verdicts that need no comparison: time, memory, death, a stub, definitions that fail."""
    answers = [e for evidence in found.values() for e in evidence]
    if (
        reply.has("memory")
        or reply.ending.get("end") == "memory"
        or any(e and "memory" in e for e in answers)
    ):
        text = f"It asked for more than {exercise.memory_mb} MB of memory."
        return {"verdict": "memory", "headline": text}
    if reply.has("undefined"):
        return _failed_definition(reply.find("undefined"), exercise)
    if not reply.has("end"):
        return _unfinished(reply, exercise, answers)
    errors = [e["error"] for e in answers if e and "error" in e]
    if errors and len(errors) == len(answers) and all(_is_stub(e, exercise) for e in errors):
        return {"verdict": "not attempted", "headline": "Not attempted yet."}
    return None


def _unfinished(reply, exercise, answers) -> dict:
    done = sum(e is not None for e in answers)
    where = f" It answered {done} of {len(answers)} cases." if done else ""
    end = reply.ending.get("end")
    if end == "timeout":
        text = f"It was not done after {exercise.seconds} s of computing.{where}"
        text += " Is there a loop that never ends?"
        return {"verdict": "timeout", "headline": text}
    if end == "flood":
        return {"verdict": "died", "headline": "Its answer is no answer, or more than can be read."}
    fault = reply.find("fault")
    code = reply.ending.get("signal", reply.ending.get("code"))
    how = SIGNALS.get(code, f"signal {code}") if end == "signal" else f"exit code {code}"
    why = f" ({fault})" if isinstance(fault, str) else ""
    return {
        "verdict": "died",
        "headline": f"Its process ended ({how}) before it had answered.{where}{why}",
    }


def _failed_definition(error, exercise) -> dict:
    if not isinstance(error, dict):
        text = f"`{exercise.name}` could not be defined."
        return {"verdict": "error", "headline": text}
    return {"verdict": "error", **_in_words(error, exercise)}


def _is_stub(error, exercise) -> bool:
    frames = _frames(error)
    return error.get("stub") is True and bool(frames) and frames[-1][2] not in exercise.uses


def _frames(error) -> list:
    """The frames of an error as ``[label, line, function, text]``; anything else is left out."""
    frames = error.get("frames")
    kinds = [str, int, str, str]
    return [f for f in frames if type(f) is list and [type(p) for p in f] == kinds] \
        if type(frames) is list else []


def _in_words(error, exercise) -> dict:
    kind, message = str(error.get("kind")), str(error.get("message"))
    frames = _frames(error)
    headline = f"{kind}: {message}" if message else kind
    hints = []
    name, place = error.get("name"), error.get("set_in")
    if type(name) is str and type(place) is str:
        user = next((f[2] for f in reversed(frames) if f[2] not in ("<module>", "")), exercise.name)
        headline = f"`{user}` uses `{name}`, which is set in {place}: pass it as an argument."
    elif type(name) is str:
        headline = f"`{exercise.name}` uses `{name}`, which no cell defines."
    elif kind == "SystemExit":
        headline = "It calls `exit`: a function gives its answer with `return`."
    elif "leaf Variable that requires grad is being used in an in-place" in message:
        hints.append("It changes its argument in place; compute a new tensor instead.")
    elif not frames:
        hints.append(
            "What it returns cannot be used as the exercise asks; look at its type and shape."
        )
    return {"headline": headline, "hints": hints, "traceback": frames}


def explain(exercise, expectation, found) -> dict:
    """Why the evidence is not the reference's."""
    failing = _failing(expectation, found)
    probe, index = failing[0]
    case, got = expectation.cases[index], found[probe][index]
    wanted = expectation.right[probe][index]
    words = {"case": as_code(exercise, case.data)}
    mistake = expectation.mistake_of(found) if _complete(found) else None
    if got is None:
        return {"verdict": "died", "headline": "A case was left without an answer.", **words}
    if "error" in got:
        words |= {"verdict": "error", **_in_words(got["error"], exercise)}
    else:
        pairs = [
            (expectation.cases[i].data, expectation.right[p][i]["tree"], found[p][i]["tree"])
            for p, i in failing if p == probe and "tree" in (found[p][i] or {})
        ]
        pattern = pattern_of(pairs, expectation.tolerances[probe])
        words |= {
            "verdict": "wrong",
            "headline": pattern.sentence,
            "hints": pattern.hints,
            "expected": as_text(pattern.path, pattern.expected),
            "got": as_text(pattern.path, pattern.got),
        }
        if words["expected"] == words["got"] and (gap := gap_of(pattern.expected, pattern.got)):
            words["hints"] = [*words["hints"], f"They print alike and are {gap:.1g} apart at most."]
    if mistake is not None:
        told = "error" not in got and not words["headline"].endswith("is not what is expected.")
        words["hints"] = [words["headline"]] if told else []
        words |= {"headline": mistake.sentence, "mistake": mistake.name}
    words["hints"] = [*words.get("hints", []), _count(failing, found)]
    if "tree" in wanted and "expected" not in words:
        path, leaf = next(iter(leaves_of(wanted["tree"])), ("", None))
        words["expected"] = as_text(path, leaf)
    return words


def _complete(found) -> bool:
    return all(e is not None and "memory" not in e for evidence in found.values() for e in evidence)


def _failing(expectation, found) -> list[tuple[str, int]]:
    """Probe and case of each failure: visible cases first, the smallest first."""
    failing = [
        (probe, index)
        for probe, wanted in expectation.right.items()
        for index, right in enumerate(wanted)
        if found[probe][index] is None
        or not same(right, found[probe][index], expectation.tolerances[probe])
    ]

    def order(place):
        case = expectation.cases[place[1]]
        return not case.visible, size_of(case.data), place[1]

    return sorted(failing, key=order)


def _count(failing, found) -> str:
    total = sum(len(evidence) for evidence in found.values())
    return f"{total - len(failing)} of {total} cases are right; this is the smallest that is not."
