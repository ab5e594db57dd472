"""``name = check(name)``: the cell under each stub of a lesson.

It sends the source of the cells that were run, not the live function, to the same judge that marks
a class. So an endless loop cannot freeze the kernel, and what an old cell left in memory cannot
help.

Leaves out: running the student's function here.
"""

import os
import sys

from autograder import cards, lessons
from autograder.grading import course_runner
from autograder.judge import Judge

__all__ = ["check"]

RIGHT_AFTER = "The lesson goes on with your function."
OTHER_AFTER = "The lesson goes on with the course's function, so you can read on and come back."


class Session:
    """What one kernel remembers: its zygote, the judge of each lesson, verdicts, the student's
    functions.
    """

    def __init__(self):
        self.root = lessons.find_root()
        self.runner = course_runner(self.root)
        self.judges: dict[str, Judge] = {}
        self.verdicts: dict[str, dict[str, str]] = {}
        self.functions: dict[str, object] = {}

    def judge_of(self, file) -> Judge:
        """One judge a lesson; the lessons before it are loaded when an exercise uses one of theirs.
        """
        if file not in self.judges:
            lesson = lessons.load_lesson(file)
            known = {ex.name for ex in lesson.exercises}
            used = {name for ex in lesson.exercises for name in ex.uses} - known
            files = dict.fromkeys(
                path for name in sorted(used) for path in lessons.declaring(self.root, name)
            )
            self.judges[file] = Judge(self.runner, [lesson, *map(lessons.load_lesson, files)])
        return self.judges[file]


SESSION: Session | None = None


def session() -> Session:
    global SESSION
    if SESSION is None:
        SESSION = Session()
    return SESSION


def check(function, lesson: str | None = None):
    """Try the function you have written; show whether it is right and, if not, what is wrong.

    Args:
        function: what the stub's name stands for now.
        lesson: two digits, where two lessons ask for functions of one name.

    Returns:
        Your function where it is right; otherwise the course's, so that nobody is blocked.

    Raises:
        ValueError: no exercise has this name.
    """
    now = session()
    cells = executed_cells()
    name = _name_of(function)
    file = _file_of(now, name, cells, lesson)
    judge = now.judge_of(file)
    own = judge.lessons[0]
    exercise = next(ex for ex in own.exercises if ex.name == name)
    submission = judge.read("your notebook", cells=cells)
    result = judge.judge(submission, exercise)
    if function is not exercise.answer():
        now.functions[exercise.title] = function
    verdicts = now.verdicts.setdefault(own.number, {ex.number: "" for ex in own.exercises})
    verdicts[exercise.number] = result.verdict
    done = sum(verdict == "right" for verdict in verdicts.values())
    progress = f"Lesson {own.number}, {done} of {len(verdicts)}:   {cards.marks(verdicts)}"
    show(cards.Card(result, progress, RIGHT_AFTER if result.right else OTHER_AFTER))
    if result.right:
        return now.functions.get(exercise.title, function)
    return exercise.answer()


def show(card) -> None:
    if _shell() is None:
        print(repr(card))
        return
    from IPython.display import display

    display(card)


def _shell():
    if "IPython" not in sys.modules:
        return None
    return sys.modules["IPython"].get_ipython()


def _name_of(function) -> str:
    """The name a student has given; a lambda's is that of the variable which holds it."""
    name = getattr(function, "__name__", "")
    shell = _shell()
    if name in ("", "<lambda>") and shell is not None:
        return next((k for k, v in shell.user_ns.items() if v is function and k[0] != "_"), name)
    return name


def executed_cells() -> list[list[str]]:
    """Label and source of what this kernel has run, in order; of a script, its whole text."""
    shell = _shell()
    if shell is None:
        path = getattr(sys.modules.get("__main__"), "__file__", None)
        if not path or not os.path.exists(path):
            raise RuntimeError(
                "check() reads the cells you have run; call it in a notebook or a script"
            )
        with open(path, encoding="utf-8") as file:
            return [[os.path.basename(path), file.read()]]
    sources = list(shell.history_manager.input_hist_raw)
    return [[f"cell {n}", text] for n, text in enumerate(sources) if n and text.strip()]


def _file_of(now: Session, name: str, cells, lesson):
    """The test file that declares ``name``: of several, the one that fits what the notebook
    defines.
    """
    files = lessons.declaring(now.root, name)
    if lesson is not None:
        files = [file for file in files if file.name.startswith(f"test_{str(lesson).zfill(2)}_")]
    if not files:
        raise ValueError(
            f"`{name}` is no exercise{f' of lesson {lesson}' if lesson else ' of this course'}; "
            "check(...) takes the function that a stub asks you to write"
        )
    if len(files) == 1:
        return files[0]
    text = "\n".join(source for _, source in cells)

    def fit(file):
        return sum(f"check({ex.name})" in text or f"def {ex.name}(" in text
                   for ex in lessons.load_lesson(file).exercises)

    return max(files, key=fit)


if _shell() is not None:
    session()                   # the zygote imports torch while the student reads
