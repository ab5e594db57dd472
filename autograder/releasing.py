"""``python -m autograder release --out DIR``: the course as students get it.

Leaves out: hiding what the course itself must hold. The package is the course's subject, and the
exercises' tests hold known mistakes: a student can read both. What neither can do is earn a mark
by being called (``take_away.py``).
"""

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

__all__ = ["course_files", "release", "without_answers"]

KEPT_BACK = ("solutions", "benchmarks", "gradescope", "classroom", ".ci", ".github")
FOLDERS = ("lessons", "tests", "figures")
FILES = re.compile(r"\w+|conftest\.py|.+\.(md|txt|toml)|\.gitignore")
ANSWER = re.compile(r"<details>\s*<summary>Worked answer</summary>.*?</details>\n*", re.DOTALL)


def course_files(root: Path, without=()) -> list[Path]:
    """What students may have, relative to ``root``: all but solutions and the project's own tests.
    """
    return [
        path for path in _known_files(Path(root))
        if path.parts[0] not in (*KEPT_BACK, *without)
        and (path.parts[0] != "tests" or path.parts[1] == "exercises")
    ]


def _known_files(root: Path) -> list[Path]:
    """The files that git knows; without git, the course's folders: never what merely lies there."""
    asked = subprocess.run(["git", "-C", str(root), "ls-files", "-z"], capture_output=True)
    if asked.returncode == 0 and asked.stdout:
        names = asked.stdout.decode("utf-8", "surrogateescape").split("\0")
        found = [Path(name) for name in names if name]
    else:
        folders = [
            path for path in root.iterdir() if path.is_dir()
            and ((path / "__init__.py").exists() or path.name in FOLDERS)
        ]
        found = [path.relative_to(root) for folder in folders for path in folder.rglob("*")]
        found += [Path(name) for name in os.listdir(root) if FILES.fullmatch(name)]
    return sorted(path for path in found if _counts(path) and (root / path).is_file())


def _counts(path: Path) -> bool:
    return not any(part in ("__pycache__", ".ipynb_checkpoints") for part in path.parts)


def without_answers(notebook: str) -> str:
    """The text of a notebook without its folded worked answers; hints stay."""
    data = json.loads(notebook)
    for cell in data["cells"]:
        if cell["cell_type"] == "markdown":
            text = ANSWER.sub("", "".join(cell["source"])).rstrip()
            cell["source"] = text.splitlines(keepends=True)
    return json.dumps(data, indent=1, ensure_ascii=False) + "\n"


def release(root: Path, out: Path, *, answers=True, say=print) -> int:
    """Copy the course into the new folder ``out``; returns the exit code."""
    root, out = Path(root), Path(out)
    if out.exists() and any(out.iterdir()):
        say(f"{out} is not empty; give a new folder")
        return 2
    files = course_files(root)
    for path in files:
        (out / path).parent.mkdir(parents=True, exist_ok=True)
        if not answers and path.parts[0] == "lessons" and path.suffix == ".ipynb":
            text = without_answers((root / path).read_text(encoding="utf-8"))
            (out / path).write_text(text, encoding="utf-8")
        else:
            shutil.copy2(root / path, out / path)
    kept = "worked answers folded in the lessons" if answers else "no worked answers in the lessons"
    say(f"{len(files)} files in {out}: no solutions, {kept}")
    return 0
