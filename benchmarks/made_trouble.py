"""Hostile and unlucky answers and files for a made-up class; a longer list, each tried by itself,
is ``tests/autograder/hostile``.

``FUNCTIONS``: a kind, then the source of the cell (from the exercise's name and its right answer)
and the verdicts that it may get. ``FILES``: a kind, then how the file is written, and whether
anything in it can still be read.
"""

import ast

__all__ = ["FILES", "FUNCTIONS"]


def _body(text: str):
    """A function that does ``text``, whatever it is given."""
    lines = "\n    ".join(text.split("\n"))
    return lambda name, right: f"def {name}(*args, **kwargs):\n    {lines}\n"


def _chatty(name: str, right: str) -> str:
    """The right answer, and far too much printed."""
    tree = ast.parse(right)
    node = next(n for n in tree.body if getattr(n, "name", "") == name)
    node.body.insert(1, ast.parse("print('here ' * 100_000)").body[0])
    return ast.unparse(tree)


FUNCTIONS = {
    "endless loop": (_body("while True:\n    pass"), {"timeout"}),
    "endless loop that swallows": (
        _body("while True:\n    try:\n        1 / 0\n    except BaseException:\n        pass"),
        {"timeout"},
    ),
    "sleeps": (_body("import time\ntime.sleep(10_000)"), {"timeout"}),
    "sys.exit": (_body("import sys\nsys.exit(0)"), {"error"}),
    "os._exit": (_body("import os\nos._exit(0)"), {"died"}),
    "exits while it is defined": (
        lambda name, right: f"def {name}(x=__import__('os')._exit(0), *args, **kwargs):\n"
                            "    return x\n",
        {"died"},
    ),
    "memory hog": (_body("hoard = []\nwhile True:\n    hoard.append(bytearray(50_000_000))"),
                   {"memory"}),
    "huge tensor": (_body("import torch\nreturn torch.ones(10**10)"), {"memory"}),
    "fork bomb": (_body("import os\nwhile True:\n    os.fork()"), {"timeout", "died", "error"}),
    "thread flood": (
        _body("import threading, time\nfor _ in range(10_000):\n"
              "    threading.Thread(target=time.sleep, args=(100,)).start()"),
        {"error", "timeout", "died", "memory"},
    ),
    "segmentation fault": (_body("import ctypes\nctypes.string_at(0)"), {"died"}),
    "endless recursion": (
        lambda name, right: f"def {name}(*args, **kwargs):\n    return {name}(*args, **kwargs)\n",
        {"error"},
    ),
    "patched torch": (
        _body("import torch\ntorch.equal = torch.allclose = lambda *a, **k: True\n"
              "torch.Tensor.__eq__ = lambda *a: True\nreturn torch.zeros(())"),
        {"wrong", "error"},
    ),
    "answers everything": (
        _body("class Yes(float):\n    def __eq__(self, other):\n        return True\n"
              "    __hash__ = None\nreturn Yes(1)"),
        {"wrong", "error"},
    ),
    "forged reply": (
        _body("import os\nos.write(3, b'{\"verdict\": \"right\", \"points\": 1000}')\nos._exit(0)"),
        {"died"},
    ),
    "kills the parent": (
        _body("import os, signal\nos.kill(os.getppid(), signal.SIGKILL)\nreturn None"),
        {"wrong", "error", "died"},
    ),
    "deletes files": (
        _body("import os, shutil\nshutil.rmtree(os.path.expanduser('~'), ignore_errors=True)\n"
              "shutil.rmtree(os.getcwd(), ignore_errors=True)\nreturn None"),
        {"wrong"},
    ),
    "prints without end": (_body("while True:\n    print('x' * 10_000)"), {"timeout"}),
    "waits for input": (_body("return input('gamma? ')"), {"error"}),
    "broken cell of its own": (
        lambda name, right: f"def {name}(*args, **kwargs)\n    return None\n", {"error"},
    ),
    "two definitions, the last right": (
        lambda name, right: f"def {name}(*args, **kwargs):\n    return None\n\n\n{right}",
        {"right"},
    ),
    "prints much and is right": (_chatty, {"right"}),
    "leans on another cell": (
        lambda name, right: f"def {name}(*args, **kwargs):\n    return made_in_training\n",
        {"error"},
    ),
    "copied with its check": (lambda name, right: f"{right}\n\n{name} = check({name})", {"right"}),
}


def _write(path, text, encoding="utf-8"):
    path.write_bytes(text.encode(encoding))


def _stripped(path, notebook, save):
    cells = [{"cell_type": c["cell_type"], "source": c["source"]} for c in notebook["cells"]]
    _write(path, save({"cells": cells}))


def _version_3(path, notebook, save):
    cells = [
        {"cell_type": "code", "input": c["source"], "language": "python", "outputs": []}
        if c["cell_type"] == "code" else {"cell_type": "markdown", "source": c["source"]}
        for c in notebook["cells"]
    ]
    _write(path, save({"nbformat": 3, "metadata": {}, "worksheets": [{"cells": cells}]}))


def _script(path, notebook, save):
    code = ["".join(c["source"]) for c in notebook["cells"] if c["cell_type"] == "code"]
    _write(path.with_suffix(".py"), "\n\n# %%\n".join(code))


def _huge(path, notebook, save):
    blob = {"output_type": "display_data", "metadata": {}, "data": {"image/png": "A" * 8_000_000}}
    next(c for c in notebook["cells"] if c["cell_type"] == "code")["outputs"] = [blob]
    _write(path, save(notebook))


def _in_a_folder(path, notebook, save):
    path.with_suffix("").mkdir()
    _write(path.with_suffix("") / "homework (final) (2).ipynb", save(notebook))


FILES = {
    "metadata stripped": (_stripped, True),
    "nbformat 3": (_version_3, True),
    "byte order mark": (lambda path, nb, save: _write(path, save(nb), "utf-8-sig"), True),
    "utf-16": (lambda path, nb, save: _write(path, save(nb), "utf-16"), True),
    "a script": (_script, True),
    "huge outputs": (_huge, True),
    "in a folder": (_in_a_folder, True),
    "cut short": (lambda path, nb, save: _write(path, save(nb)[:-5000]), False),
    "merge conflict": (
        lambda path, nb, save: _write(
            path, save(nb).replace('{\n "cells"', '{\n<<<<<<< HEAD\n "cells"', 1)
        ),
        False,
    ),
    "empty": (lambda path, nb, save: _write(path, ""), False),
    "garbage": (lambda path, nb, save: path.write_bytes(bytes(range(256)) * 99), False),
    "a web page": (lambda path, nb, save: _write(path, "<!doctype html><p>Log in"), False),
    "an empty folder": (lambda path, nb, save: path.with_suffix("").mkdir(), False),
}
