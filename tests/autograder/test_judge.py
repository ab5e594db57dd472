"""Verdicts and points on the toy course."""

import textwrap

import pytest

from autograder.judge import Judge
from autograder.results import Submission
from autograder.runner import Lost
from autograder.sources import Sources

RIGHT = {
    "weighted_mean": """
        def weighted_mean(values, mask):
            return (values * mask).sum() / mask.sum()
    """,
    "scaled_error": """
        def scaled_error(predicted, target, mask, scale):
            return scale * weighted_mean((predicted - target) ** 2, mask)
    """,
    "Shifted": """
        import torch
        class Shifted(torch.nn.Module):
            def __init__(self, start):
                super().__init__()
                self.shift = torch.nn.Parameter(torch.tensor(float(start)))
            def forward(self, x):
                return x + self.shift
    """,
}


def exercise(judge, name):
    return next(ex for lesson in judge.lessons for ex in lesson.exercises if ex.name == name)


def judged(judge, name, *sources):
    cells = [[f"cell {n}", textwrap.dedent(source)] for n, source in enumerate(sources, 1)]
    return judge.judge(judge.read("test", cells=cells), exercise(judge, name))


@pytest.mark.parametrize("name", ["weighted_mean", "Shifted"])
def test_right(judge, name):
    result = judged(judge, name, RIGHT[name])
    assert (result.verdict, result.points) == ("right", 2)


def test_a_known_mistake_is_named(judge):
    result = judged(judge, "weighted_mean", "def weighted_mean(values, mask): return values.mean()")
    assert (result.verdict, result.mistake, result.points) == ("wrong", "no_mask", 0)
    assert result.headline.startswith("The mask is forgotten")
    assert result.case.startswith("import torch\n\nweighted_mean(")


def test_a_helper_and_a_constant_are_found(judge):
    helper = "TINY = 1e-30\ndef ratio(a, b): return a / (b + TINY)"
    use = "def weighted_mean(values, mask): return ratio((values * mask).sum(), mask.sum())"
    assert judged(judge, "weighted_mean", use, helper).right


def test_points_split_by_probe(judge):
    result = judged(judge, "Shifted", RIGHT["Shifted"].replace(
        "torch.nn.Parameter(torch.tensor(float(start)))", "start"))
    assert (result.points, result.mistake) == (1, "Fixed")


def test_an_error_shows_the_student_s_own_lines(judge):
    result = judged(judge, "weighted_mean", "x = 1", """
        def weighted_mean(values, mask):
            return helper(values)

        def helper(values):
            raise KeyError("no")
    """)
    assert result.verdict == "error"
    assert result.headline == "KeyError: 'no'"
    assert [frame[:3] for frame in result.traceback] == [
        ["cell 2", 3, "weighted_mean"], ["cell 2", 6, "helper"],
    ]


def test_error_carried_forward(judge):
    wrong = "def weighted_mean(values, mask): return values.mean()"
    result = judged(judge, "scaled_error", wrong, RIGHT["scaled_error"])
    assert (result.verdict, result.points, result.carried) == ("right", 3, ["weighted_mean"])


def test_the_student_s_own_comes_first(judge):
    result = judged(judge, "scaled_error", RIGHT["weighted_mean"], RIGHT["scaled_error"])
    assert (result.verdict, result.carried) == ("right", [])


def test_an_earlier_stub_is_carried_forward_too(judge):
    stub = "def weighted_mean(values, mask):\n    raise NotImplementedError"
    assert judged(judge, "scaled_error", stub, RIGHT["scaled_error"]).carried == ["weighted_mean"]


def test_an_earlier_mistake_does_not_excuse_a_later_one(judge):
    wrong = "def weighted_mean(values, mask): return values.mean()"
    later = (
        "def scaled_error(predicted, target, mask, scale): return weighted_mean(predicted, mask)"
    )
    assert judged(judge, "scaled_error", wrong, later).points == 0


def test_one_seed_gives_the_same_cases(runner, lessons):
    cases = []
    for seed in ("1", "1", "2"):
        judge = Judge(runner, lessons, seed)
        found = judge.expectation(exercise(judge, "weighted_mean")).cases
        cases.append(repr([case.data for case in found]))
    assert cases[0] == cases[1] != cases[2]


def test_visible_cases_do_not_depend_on_the_seed(runner, lessons):
    visible = [
        repr([c.data for c in exercise(judge, "weighted_mean").make_cases(seed) if c.visible])
        for seed in (1, 2) for judge in [Judge(runner, lessons)]
    ]
    assert visible[0] == visible[1]


def test_our_own_fault_is_ungraded_and_no_zero(lessons):
    class Broken:
        def preload(self, modules):
            pass

        def ask(self, request):
            raise Lost("the zygote was lost twice")

    judge = Judge(Broken(), lessons, "1")
    reading = {"kind": "definition", "defines": ["weighted_mean"], "uses": [], "source": "",
               "label": "", "line": 1}
    from autograder.reading import Reading

    result = judge.judge(Submission("x", Reading([reading])), exercise(judge, "weighted_mean"))
    assert result.verdict == "ungraded"
    assert "lost twice" in result.headline


def test_a_lost_zygote_is_started_again(course, lessons):
    from autograder.grading import course_runner

    with course_runner(course) as runner:
        judge = Judge(runner, lessons, "1")
        runner.greet()
        runner.process.kill()
        assert judged(judge, "weighted_mean", RIGHT["weighted_mean"]).right


def test_a_lesson_is_read_off_its_functions(judge):
    submission = judge.read("x", [("99_other.py", b"def longest_word(words): pass")])
    assert judge.lesson_for(submission).number == "02"


def test_printing_is_shown_with_what_is_wrong(judge):
    result = judged(judge, "weighted_mean", "def weighted_mean(values, mask):\n    print('hello')")
    assert result.stdout.startswith("hello\n")


def test_an_earlier_function_that_cannot_even_be_defined_costs_itself_alone(judge):
    exits = "import os\ndef weighted_mean(values, mask=os._exit(3)): return values.mean()"
    assert judged(judge, "weighted_mean", exits).verdict == "died"
    result = judged(judge, "scaled_error", exits, RIGHT["scaled_error"])
    assert (result.verdict, result.points, result.carried) == ("right", 3, ["weighted_mean"])


def test_a_stand_in_is_there_while_functions_are_defined(judge):
    wrong = "def weighted_mean(values, mask): return values.mean()"
    bound = (
        "def scaled_error(predicted, target, mask, scale, mean=weighted_mean):\n"
        "    return scale * mean((predicted - target) ** 2, mask)"
    )
    assert judged(judge, "scaled_error", wrong, bound).right


def test_a_reference_in_the_test_file_stands_in_under_the_name_of_its_exercise(judge):
    words = exercise(judge, "longest_word")
    statements = judge._stand_ins(words, ["longest_word"])["longest_word"]
    stand_in = Sources({"name": "later"}).stand_in("longest_word", statements)
    assert stand_in(["a", "abc"]) == "abc"


def test_judges_that_share_work_out_the_cases_once(runner, lessons):
    first = Judge(runner, lessons, "1")
    second = Judge(runner, lessons, "1", first.expectations)
    found = [j.expectation(exercise(j, "weighted_mean")) for j in (first, second)]
    assert found[0] is found[1]
