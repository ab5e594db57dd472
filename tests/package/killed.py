"""Runs a `dpo` command that gets a signal within one of its steps: ``killed.py SIGNAL STEP …``."""

import os
import signal
import sys

import torch

from rlhf_minimal.__main__ import main
from rlhf_minimal.engine import Engine


def run(name: str, number: int, arguments) -> int:
    """The command's exit status, if the signal in its step ``number`` leaves one."""
    step = Engine.step

    def step_with_a_signal(engine, lr):
        if engine.steps_done == number - 1:
            os.kill(os.getpid(), signal.Signals[name])
        return step(engine, lr)

    Engine.step = step_with_a_signal
    return main(arguments)


if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.exit(run(sys.argv[1], int(sys.argv[2]), sys.argv[3:]))
