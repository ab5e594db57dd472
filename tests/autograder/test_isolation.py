"""Every plan judges alike; what differs is what a submission can reach."""

import os
import sys

import pytest

from autograder.grading import course_runner
from autograder.isolation import LEVELS
from autograder.judge import Judge
from autograder.landlock import version
from autograder.spawn import SpawnRunner
from autograder.take_away import take_away

GOOD = "def weighted_mean(values, mask): return (values * mask).sum() / mask.sum()"
LOOP = "def weighted_mean(values, mask):\n    while True: pass"
SPY = """
import os, socket
def weighted_mean(values, mask):
    try:
        socket.create_connection(("127.0.0.1", 9), timeout=0.2)
        net = "open"
    except OSError as error:
        net = type(error).__name__
    print(os.getuid(), os.getpid(), net, os.listdir("."))
"""
READS = """
import toycourse.sums
def weighted_mean(values, mask):
    space = {}
    with open(toycourse.sums.__file__) as file:
        exec(file.read(), space)
    return space["weighted_mean"](values, mask)
"""
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="namespaces are Linux's")


def judged(runner, lessons, source):
    judge = Judge(runner, lessons, "plans")
    exercise = next(ex for ex in lessons[0].exercises if ex.name == "weighted_mean")
    return judge.judge(judge.read("x", cells=[["cell 1", source]]), exercise)


@pytest.mark.parametrize("plan", ["root", "user", "uid", "none"])
def test_plans(course, lessons, plan):
    with course_runner(course, plan) as runner:
        if runner.plan != plan:
            pytest.skip(f"plan {plan} is not to be had here")
        assert judged(runner, lessons, GOOD).verdict == "right"
        assert judged(runner, lessons, LOOP).verdict == "timeout"
        if plan in ("root", "user") or version():
            assert judged(runner, lessons, READS).verdict == "error"
        uid, pid, net, files = judged(runner, lessons, SPY).stdout.split("\n")[0].split(" ", 3)
    assert files == "[]"
    assert (int(uid) != os.getuid()) == (plan in ("root", "uid"))
    if plan in ("root", "user"):
        assert int(pid) < 10
        assert net != "ConnectionRefusedError"


def test_a_plan_that_is_not_to_be_had_is_not_claimed(course):
    with course_runner(course, "uid" if os.getuid() else "none") as runner:
        assert (runner.level, runner.description[:17]) == (0, "isolation level 0")


def test_without_fork_a_process_each_time(course, lessons, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(course))
    with SpawnRunner() as runner:
        assert runner.level == LEVELS["spawn"][0] == 0
        assert judged(runner, lessons, GOOD).verdict == "right"
        assert judged(runner, lessons, LOOP).verdict == "timeout"


def test_the_answer_is_taken_away_from_all_who_hold_it(course):
    """In a process of its own, since it is for good."""
    code = (
        "import sys; sys.path.append(sys.argv[1])\n"
        "import torch; from toycourse import sums\n"
        "from autograder.take_away import take_away\n"
        "held = sums.weighted_mean\n"
        "for name in ('weighted_mean', 'Shifted'): take_away(f'toycourse.sums:{name}')\n"
        "for call in (held, sums.improve, sums.Shifted):\n"
        "    try: call(torch.ones(1))\n"
        "    except RuntimeError as error: print(error)\n"
        "print(sums.running_total(torch.ones(2)), torch.nn.Linear(1, 1).bias.shape)\n"
    )
    import subprocess

    out = subprocess.run([sys.executable, "-c", code, str(course)], capture_output=True, text=True)
    assert out.stdout.count("this exercise asks you to write it") == 3, out.stderr
    assert "tensor([1., 2.]) torch.Size([1])" in out.stdout


def test_a_function_without_python_code_is_taken_away_with_the_same_sentence():
    """torch's own attention, by every name it has, and from whoever imports it later."""
    code = (
        "import torch, torch.nn.functional as F\n"
        "from autograder.take_away import take_away\n"
        "take_away('torch.nn.functional:scaled_dot_product_attention')\n"
        "from torch.nn.functional import scaled_dot_product_attention as imported\n"
        "x = torch.ones(1, 1, 2, 2)\n"
        "for call in (F.scaled_dot_product_attention, imported,\n"
        "             torch._C._nn.scaled_dot_product_attention):\n"
        "    try: call(x, x, value=x)\n"
        "    except RuntimeError as error: print(error)\n"
        "print(F.relu(torch.ones(1)))\n"
    )
    import subprocess

    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert out.stdout.count("made `scaled_dot_product_attention` is taken away") == 3, out.stderr
    assert "tensor([1.])" in out.stdout


def test_what_is_not_there_cannot_be_taken_away():
    take_away("no_such_module:f")
    take_away("math:no_such_function")
