"""Runs a `dpo` command that gets a signal within one of its steps: ``killed.py SIGNAL STEP …``."""

import os
import signal
import sys

import torch

from rlhf_minimal.__main__ import main
from rlhf_minimal.engine import Engine

torch.set_num_threads(1)
name, number, *arguments = sys.argv[1:]
step = Engine.step


def step_with_a_signal(engine, lr):
    if engine.steps_done == int(number) - 1:
        os.kill(os.getpid(), signal.Signals[name])
    return step(engine, lr)


Engine.step = step_with_a_signal
sys.exit(main(arguments))
