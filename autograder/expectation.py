"""What the reference, and every known mistake, answers on the cases of one run.

Made once an exercise and seed, and shared by all submissions of a run: the same cases for everyone.

Leaves out: the student's side.
"""

import functools
from types import SimpleNamespace

import torch

from autograder import wire
from autograder.box import seed_all
from autograder.compare import Tolerance, differences
from autograder.evidence import _mapped, copies
from autograder.exercises import Exercise
from autograder.lessons import undisturbed

__all__ = ["Expectation", "gather", "same"]


def gather(exercise: Exercise, function, cases, others=None) -> dict[str, list[dict]]:
    """The evidence of every probe on every case, with ``function`` as the answer; in this process.

    Only for trusted functions: the reference, mistakes, mutants.
    """
    answer = SimpleNamespace(**{**(others or {}), exercise.name: function})
    found = {}
    with undisturbed():
        for probe in exercise.all_probes():
            found[probe.name] = [_one(probe.function, answer, case) for case in cases]
    return found


def _one(function, answer, case) -> dict:
    seed_all(case.index)
    try:
        return {"tree": wire.unpack(wire.pack(function(answer, copies(case.data))))}
    except Exception as error:
        return {"error": {"kind": type(error).__name__, "message": str(error)[:300]}}


def same(expected: dict, got: dict, tolerance: Tolerance) -> bool:
    """Whether two pieces of evidence agree: equal trees, or errors of one kind."""
    if "error" in expected or "error" in got:
        kinds = [side.get("error", {}).get("kind") for side in (expected, got)]
        return kinds[0] == kinds[1]
    return not differences(expected["tree"], got.get("tree"), tolerance)


class Expectation:
    """The cases of one run and what is right on them.

    Args:
        exercise: what is asked.
        seed: the run's entropy; it is written in the reports, so that a regrade repeats the cases.
        others: references of the exercises this one uses, by name.
    """

    def __init__(self, exercise: Exercise, seed, others=None, fresh: int | None = None):
        self.exercise, self.seed, self.others = exercise, seed, dict(others or {})
        with undisturbed():
            self.cases = exercise.make_cases(seed, fresh)
        self.right = gather(exercise, exercise.answer(), self.cases, self.others)
        for probe, found in self.right.items():
            for case, evidence in zip(self.cases, found, strict=True):
                if "error" in evidence:
                    raise RuntimeError(
                        f"{exercise.title}: the reference itself fails in probe {probe}, case "
                        f"{case.index}: {evidence['error']['kind']}: {evidence['error']['message']}"
                    )
        self.tolerances = self._tolerances()

    def _tolerances(self) -> dict[str, Tolerance]:
        ex = self.exercise
        doubled = [type(c)(c.index, c.visible, _mapped(c.data, _double)) for c in self.cases]
        exact = gather(ex, ex.answer(), doubled, self.others)
        found = {}
        for probe in ex.all_probes():
            tolerance = Tolerance({}, ex.tolerance, ex.any_dtype)
            for single, double in zip(self.right[probe.name], exact[probe.name], strict=True):
                if "tree" in double:
                    tolerance.learn(single["tree"], double["tree"])
            found[probe.name] = tolerance
        return found

    @functools.cached_property
    def mistakes(self) -> dict[str, dict]:
        """The evidence of every known mistake, by its name."""
        return {
            mistake.name: gather(self.exercise, mistake.function, self.cases, self.others)
            for mistake in self.exercise.mistakes
        }

    def agrees(self, found: dict[str, list[dict]], with_what=None) -> bool:
        """Whether evidence equals the reference's (or ``with_what``) in every probe on every case.
        """
        wanted = self.right if with_what is None else with_what
        return all(
            len(found.get(probe, ())) == len(evidence)
            and all(
                same(a, b, self.tolerances[probe])
                for a, b in zip(evidence, found[probe], strict=True)
            )
            for probe, evidence in wanted.items()
        )

    def mistake_of(self, found):
        """The known mistake whose replies these are on every case; None where there is none."""
        for mistake in self.exercise.mistakes:
            evidence = self.mistakes[mistake.name]
            if not self.agrees(evidence) and self.agrees(found, evidence):
                return mistake
        return None


def _double(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.double() if tensor.is_floating_point() else tensor
