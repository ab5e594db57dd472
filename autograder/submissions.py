"""Which files make up a submission, what it is called, and which lessons are in it.

A file is a submission; a folder inside a folder is a student with all files in it. Names come from
file names, made safe for a file system and a spreadsheet, and told apart where two are alike.

Leaves out: judging.
"""

import dataclasses
import hashlib
import os
import re
import unicodedata
from pathlib import Path

from autograder.judge import Judge
from autograder.lessons import Lesson
from autograder.reading import Reading
from autograder.results import Submission

__all__ = ["Entry", "collect_entries", "files_in", "read_entry"]

ENDINGS = {".ipynb", ".py"}
MAX_BYTES = 256 << 20


@dataclasses.dataclass
class Entry:
    """One submission before it is read."""

    name: str
    path: Path
    files: list[Path]

    def digest(self) -> str:
        """What the files hold, in one word: whether a submission has changed since it was graded.
        """
        total = hashlib.sha256()
        for file in self.files:
            total.update(f"{file.name}\0{file.stat().st_size}\0".encode("utf-8", "replace"))
            with open(file, "rb") as opened:
                while part := opened.read(1 << 20):
                    total.update(part)
        return total.hexdigest()[:16]


def collect_entries(paths) -> list[Entry]:
    """Every submission under ``paths``, in a fixed order, each with a name of its own.

    Links are not followed: a student's folder could hold one to another student's work. A folder
    without files that count is a submission all the same, so that nobody is lost without a word.
    """
    found: list[tuple[str, Path, list[Path]]] = []
    for path in map(Path, paths):
        if not path.exists():
            raise FileNotFoundError(f"{path} does not exist; give notebooks, or a folder of them")
        if path.is_file():
            found.append((path.stem, path, [path]))
            continue
        for part in sorted(path.iterdir(), key=lambda p: p.name):
            if part.name.startswith((".", "__")):
                continue
            if part.is_dir():
                found.append((part.name, part, [] if part.is_symlink() else files_in(part)))
            elif _counts(part):
                found.append((part.stem, part, [part]))
    return _named(found)


def files_in(folder: Path) -> list[Path]:
    """A student's files: modules first, notebooks last, so that the notebook's definitions count.
    """
    found = []
    for here, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith((".", "__")))
        found += [Path(here) / name for name in names if _counts(Path(here) / name)]
    return sorted(found, key=lambda p: (p.suffix.lower() != ".py", str(p)))[:200]


def _counts(path: Path) -> bool:
    return (
        path.suffix.lower() in ENDINGS and not path.name.startswith(".")
        and path.is_file() and not path.is_symlink()
    )


def _named(found) -> list[Entry]:
    entries, taken = [], set()
    for text, path, files in found:
        base = safe_name(text)
        if base.casefold() in taken and path.parent.name:
            base = safe_name(f"{path.parent.name} {text}")
        name, number = base, 2
        while name.casefold() in taken:
            name, number = f"{base} {number}", number + 1
        taken.add(name.casefold())
        entries.append(Entry(name, path, files))
    return entries


def safe_name(text: str) -> str:
    """A name that is a file name everywhere and no formula in a spreadsheet.

    >>> safe_name("=cmd|' /C calc'!A0"), safe_name("Zoë O'Hara (2)"), safe_name("../..")
    ('cmd_ _C calc_A0', 'Zoë O_Hara (2)', 'submission')
    """
    text = unicodedata.normalize("NFC", text.encode("utf-8", "replace").decode())
    text = re.sub(r"[^\w .,()@+-]+", "_", text)
    text = text.strip(" ._=+-@,")[:80].strip()
    reserved = re.fullmatch(r"(?i)(con|prn|aux|nul|com\d|lpt\d)(\..*)?", text)
    return f"_{text}" if reserved else text or "submission"


def read_entry(
    judge: Judge, entry: Entry, lesson: str | None = None
) -> list[tuple[Lesson, Submission]]:
    """Read a submission's files and tell its lessons; each comes with the definitions that count in
    it.

    With ``lesson`` everything is taken for that lesson. Without any lesson found the list holds one
    submission with None for its lesson.
    """
    parts = []
    for file in entry.files:
        data = file.read_bytes() if file.stat().st_size <= MAX_BYTES else None
        if data is None:
            parts.append(Submission(file.name, Reading(), ["the file is too large"], [file.name]))
        else:
            name = file.name.encode("utf-8", "replace").decode()
            parts.append(judge.read(name, [(name, data)]))
    forced = next(
        (part for part in judge.lessons if lesson and part.number == str(lesson).zfill(2)), None
    )
    own = [forced or judge.lesson_for(part) for part in parts]
    modules = {file.stem for file in entry.files}
    lessons = sorted(
        {part.number: part for part in own if part}.values(), key=lambda part: part.number
    )
    if not lessons:
        return [(None, _merged(entry, parts, modules))]
    return [
        (
            found,
            _merged(
                entry, [p for p, o in zip(parts, own, strict=True) if o in (found, None)], modules
            ),
        )
        for found in lessons
    ]


def _merged(entry: Entry, parts, modules) -> Submission:
    """Several readings as one; imports of the student's own files are met by what those files
    define, and a stub in one file hides no answer in another.
    """
    reading, notes = Reading(), []
    written = {n for part in parts for s in part.reading.statements if not _is_stub(s)
               for n in s["defines"]}
    for part in parts:
        own = [
            s for s in part.reading.statements
            if not _imports_own(s, modules) and not (_is_stub(s) and written & set(s["defines"]))
        ]
        reading.statements += own if len(parts) > 1 else part.reading.statements
        reading.dropped.update(part.reading.dropped)
        reading.broken += part.reading.broken
        notes += part.notes
    return Submission(entry.name, reading, notes, [f for part in parts for f in part.filenames])


def _is_stub(statement) -> bool:
    """Whether a definition still ends as the lesson's stub does."""
    last = statement["source"].rstrip().rpartition("\n")[2].strip()
    return statement["kind"] == "definition" and last.startswith("raise NotImplementedError")


def _imports_own(statement, modules) -> bool:
    match = re.match(r"\s*from\s+\.?(\w+)\s+import", statement["source"])
    return statement["kind"] in ("import", "star") and bool(match) and match[1] in modules
