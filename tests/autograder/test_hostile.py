"""Hostile and unlucky submissions: each gets what it deserves, and the exercise beside it keeps its
own.

Every file in ``hostile/`` defines ``weighted_mean`` (2 points) in some bad way and
``running_total`` (1 point) rightly. The table says which verdicts ``weighted_mean`` may get; what
is not listed here must not be there.
"""

import json
import os
import socket
from pathlib import Path

import pytest

from autograder.submissions import Entry, read_entry

FOLDER = Path(__file__).parent / "hostile"
RIGHT, WRONG, ERROR, TIMEOUT = {"right"}, {"wrong"}, {"error"}, {"timeout"}
MEMORY, DIED, MISSING = {"memory"}, {"died"}, {"missing"}
NOT_BOTH = {"nb_cut_short", "nb_merge_conflict", "nb_web_page", "nb_empty", "nb_a_list"}

TABLE = {
    # time
    "endless_loop": TIMEOUT,
    "endless_loop_that_swallows": TIMEOUT,
    "sleeps_forever": TIMEOUT,
    "ignores_the_clock_signal": TIMEOUT,
    "blocks_all_signals": TIMEOUT,
    "raises_its_own_limits": TIMEOUT,
    "deadlock": TIMEOUT,
    "message_that_never_ends": TIMEOUT,
    "waits_for_input": ERROR,
    "deep_recursion": ERROR,
    "deep_recursion_without_limit": DIED | MEMORY | ERROR | TIMEOUT,
    # exits
    "exits": ERROR,
    "exits_while_defined": ERROR,
    "exits_at_once": DIED,
    "keyboard_interrupt": ERROR,
    "raises_base_exception": ERROR,
    "stops_iteration": ERROR,
    "kills_itself": DIED,
    "aborts": DIED,
    "segfault": DIED,
    # memory
    "memory_hog": MEMORY,
    "memory_in_children": MEMORY | TIMEOUT,
    "huge_tensor": MEMORY,
    "huge_answer": MEMORY,
    "huge_text": WRONG,
    "endless_nesting": ERROR,
    "huge_int": WRONG,
    # threads and processes
    "thread_flood": WRONG,
    "fork_bomb": TIMEOUT | DIED,
    "forked_answer": WRONG | DIED,
    "leaves_a_daemon": WRONG,
    "waiting_thread_but_right": RIGHT,
    "exit_handler_but_right": RIGHT,
    "patched_exit_but_right": RIGHT,
    "closed_stdout_but_right": RIGHT,
    "chatty_but_right": RIGHT,
    "warns_but_right": RIGHT,
    # patches
    "patched_comparison": WRONG,
    "patched_operators": WRONG | ERROR,
    "patched_judge": WRONG,
    "patched_wire": WRONG | DIED,
    "patched_evidence": WRONG,
    "patched_probe": WRONG | ERROR,
    "patched_builtins": WRONG | ERROR | DIED,
    "patched_pytest": WRONG,
    # lying objects
    "lying_tensor": WRONG,
    "always_equal": WRONG,
    "lying_class": WRONG | ERROR,
    "lying_float": WRONG,
    "pickle_bomb": WRONG,
    # spying
    "frame_inspection": WRONG,
    "gc_inspection": ERROR | WRONG,
    "imports_the_answer": ERROR,
    "answer_by_default_argument": ERROR,
    "answer_by_another_function": ERROR,
    "reads_the_source": ERROR,
    "reloads_the_package": ERROR,
    "reads_the_bytecode": ERROR,
    "reads_the_tests": ERROR,
    "recorded_answers": WRONG,
    "right_for_the_first_cases": WRONG,
    "prints_the_environment": WRONG,
    # forged replies
    "forged_verdict": DIED | WRONG,
    "forged_answers": WRONG,
    "garbage_reply": DIED,
    "flooded_reply": DIED,
    "deep_reply": DIED,
    "says_ungraded": DIED,
    "closes_everything": DIED,
    # surroundings
    "kills_the_parent": WRONG | ERROR,
    "kills_everyone": WRONG | DIED | ERROR,
    "touches_files": WRONG,
    "deletes_files": WRONG,
    "fills_the_disk": WRONG,
    "uses_the_network": WRONG,
    "attaches_to_the_judge": WRONG,
    # nearly right
    "changes_inputs_but_right": WRONG,
    "default_dtype_but_right": RIGHT,
    "no_gradient": WRONG,
    "returns_nothing": WRONG,
    "is_no_function": ERROR,
    "stub": {"not attempted"},
    "missing": MISSING,
    # notebooks that have been through a lot
    "nb_without_metadata": RIGHT,
    "nb_version_3": RIGHT,
    "nb_with_byte_order_mark": RIGHT,
    "nb_in_utf16": RIGHT,
    "nb_in_latin1": RIGHT,
    "nb_with_windows_lines": RIGHT,
    "nb_with_magics": RIGHT,
    "nb_with_training": RIGHT,
    "nb_with_broken_other_cell": RIGHT,
    "nb_with_broken_own_cell": ERROR,
    "nb_broken_beside_innocent": ERROR,
    "nb_two_definitions": RIGHT,
    "nb_global_from_training": ERROR,
    "nb_global_literal": RIGHT,
    "nb_missing_import": ERROR,
    "nb_unused_missing_import": RIGHT,
    "nb_strange_cells": RIGHT,
    "nb_await_at_top": RIGHT,
    "nb_zero_bytes": RIGHT,
    "nb_helpers_and_classes": RIGHT,
    "nb_cut_short": MISSING,
    "nb_merge_conflict": MISSING,
    "nb_web_page": MISSING,
    "nb_empty": MISSING,
    "nb_a_list": MISSING,
    "py_percent": RIGHT,
    "py_latin1": RIGHT,
    "py_broken_middle": RIGHT,
}
SAYS = {
    "exits": "calls `exit`",
    "imports_the_answer": "this exercise asks you to write it",
    "answer_by_default_argument": "this exercise asks you to write it",
    "answer_by_another_function": "this exercise asks you to write it",
    "changes_inputs_but_right": "in place",
    "no_gradient": "carries no gradient",
    "returns_nothing": "is a `return` missing",
    "nb_global_from_training": "uses `beta`, which is set in cell 3: pass it as an argument",
    "nb_missing_import": "No module named 'not_installed_anywhere'",
    "nb_with_broken_own_cell": "cell 1 cannot be read: SyntaxError",
}
ISOLATED = {
    "reads_the_source",
    "reloads_the_package",
    "reads_the_bytecode",
    "reads_the_tests",
    "kills_the_parent",
    "kills_everyone",
    "touches_files",
    "deletes_files",
    "uses_the_network",
}


def judged(judge, path: Path):
    """The results of both exercises."""
    (_, submission), *_ = read_entry(judge, Entry(path.stem, path, [path]), lesson="01")
    exercises = {ex.name: ex for lesson in judge.lessons for ex in lesson.exercises}
    names = ("weighted_mean", "running_total")
    return [judge.judge(submission, exercises[name]) for name in names]


def file_of(name: str) -> Path:
    return next(path for path in sorted(FOLDER.iterdir()) if path.stem == name)


def test_the_table_lists_every_file():
    names = {path.stem for path in FOLDER.iterdir() if path.suffix in (".py", ".ipynb")}
    assert names == set(TABLE)
    assert len(names) >= 50


@pytest.mark.parametrize("name", TABLE)
def test_gets_what_it_deserves(judge, name):
    if name in ISOLATED and judge.runner.level < 2:
        pytest.skip("needs isolation level 2, which this machine does not allow")
    hostile, innocent = judged(judge, file_of(name))
    assert hostile.verdict in TABLE[name], hostile.headline
    assert hostile.points == (2 if hostile.verdict == "right" else 0)
    assert SAYS.get(name, "") in hostile.headline
    assert innocent.verdict == ("missing" if name in NOT_BOTH else "right"), innocent.headline


def test_nothing_is_left_behind(judge, course):
    if judge.runner.level < 2:
        pytest.skip("needs isolation level 2, which this machine does not allow")
    for name in ("leaves_a_daemon", "touches_files", "deletes_files", "pickle_bomb"):
        judged(judge, file_of(name))
    assert not list(course.rglob("*was-here"))
    assert not any(
        (Path(p) / "autograder-was-here").exists() for p in ("/tmp", "/var/tmp", "/dev/shm")
    )
    assert (course / "toycourse" / "sums.py").exists()
    lines = [
        path.read_bytes()
        for path in Path("/proc").glob("[0-9]*/cmdline")
        if os.access(path, os.R_OK)
    ]
    assert b"sleep\x0098765\x00" not in lines


def test_the_network_is_cut_off(judge):
    if judge.runner.level < 2:
        pytest.skip("needs isolation level 2, which this machine does not allow")
    with socket.create_server(("127.0.0.1", 48211)) as server:
        server.settimeout(0.2)
        judged(judge, file_of("uses_the_network"))
        with pytest.raises(TimeoutError):
            server.accept()


def test_the_environment_holds_no_secret(judge, monkeypatch):
    hostile, _ = judged(judge, file_of("prints_the_environment"))
    assert "HOME" in hostile.stdout
    assert "PYTEST" not in hostile.stdout


@pytest.mark.parametrize("kind", ["outputs", "deep_json", "deep_code", "deep_outputs"])
def test_notebooks_too_large_to_commit(judge, tmp_path, kind):
    good = ["def weighted_mean(values, mask):\n    return (values * mask).sum() / mask.sum()\n",
            "def running_total(values):\n    return values.cumsum(-1)\n"]
    cells = [{"cell_type": "code", "source": source, "outputs": []} for source in good]
    if kind == "outputs":
        cells[0]["outputs"] = [{"data": {"image/png": "A\\\"" * 2_000_000}}] * 3
    elif kind == "deep_code":
        cells.insert(1, {"cell_type": "code", "source": "x = " + "(" * 5_000 + ")" * 5_000})
        cells.insert(1, {"cell_type": "code", "source": "y = " + "-" * 200_000 + "1"})
        cells.insert(1, {"cell_type": "code", "source": "z = " + "a" + ".a" * 100_000})
    text = json.dumps({"cells": cells})
    nest = "[" * 500_000 + "]" * 500_000
    if kind == "deep_json":
        text = text[:-1] + f', "metadata": {nest}' + "}"
    elif kind == "deep_outputs":
        text = text.replace('"outputs": []', f'"outputs": {nest}', 1)
    path = tmp_path / "large.ipynb"
    path.write_text(text)
    hostile, innocent = judged(judge, path)
    wanted = "missing" if kind == "deep_json" else "right"
    assert (hostile.verdict, innocent.verdict) == (wanted, wanted), (
        hostile.headline,
        hostile.hints,
    )
