"""Reads notebooks, runs student code in a box, judges the evidence, explains, reports.

In a lesson::

    from autograder import check
    dpo_loss = check(dpo_loss)

In an exercise's declaration (``tests/exercises/test_NN_topic.py``)::

    from autograder import exercise, grads, leaves

On the command line: ``python -m autograder`` (``--help`` lists the commands). As a pytest plugin:
``pytest tests/exercises --submissions DIR``.

Knows notebooks and pytest, and nothing of what the course teaches.
"""

__all__ = ["Exercise", "check", "copies", "exercise", "grads", "leaves", "raised"]

HOMES = {
    "check": "autograder.checking",
    "Exercise": "autograder.exercises",
    "exercise": "autograder.exercises",
}


def __getattr__(name: str):
    """Import on first use: the box needs little of this, and pytest starts faster without torch."""
    import importlib

    if name not in __all__:
        raise AttributeError(f"module 'autograder' has no attribute {name!r}; it has {__all__}")
    value = getattr(importlib.import_module(HOMES.get(name, "autograder.evidence")), name)
    globals()[name] = value
    return value
