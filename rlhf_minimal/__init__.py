"""RLHF from scratch: every algorithm of the course, one idea a file.

Import the file whose idea you need, as the lessons do::

    from rlhf_minimal.dpo import dpo_loss
    from rlhf_minimal.ppo import gae

``python -m rlhf_minimal --help`` lists what can be run from the command line.
"""

__version__ = "0.1.0"
