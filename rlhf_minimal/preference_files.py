"""Files of preferences, line by line: what is a good row, and what is wrong with the others.

:func:`rlhf_minimal.preferences.read_hh_rlhf` and ``read_label_studio`` are built on these.

Leaves out: other formats. They differ in where the same three texts stand.
"""

import gzip
import json
import zlib
from pathlib import Path

__all__ = ["existing_file", "hh_texts", "numbered_lines", "ranked_answers"]

ASSISTANT = "\n\nAssistant:"


def existing_file(path) -> Path:
    """``path``, if it is a file; ``hub:OWNER/DATASET:FILE`` is fetched from Hugging Face's hub."""
    if str(path).startswith("hub:"):
        return _from_hub(str(path))
    path = Path(path)
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a directory; name a file in it")
    if not path.exists():
        raise FileNotFoundError(f"there is no file {path}")
    return path


def _from_hub(name: str) -> Path:
    """A data set's file, downloaded once and then kept."""
    parts = name.split(":")
    if len(parts) != 3:
        raise ValueError(f"{name!r} must be hub:OWNER/DATASET:FILE")
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(hf_hub_download(parts[1], parts[2], repo_type="dataset"))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise OSError(f"cannot fetch {name}: {reason}") from error


def numbered_lines(path):
    """``(line number, bytes)`` of every line that is not blank; a damaged end as an exception."""
    with existing_file(path).open("rb") as raw:
        zipped = raw.read(2) == b"\x1f\x8b"
        raw.seek(0)
        lines = gzip.GzipFile(fileobj=raw) if zipped else raw
        number = 0
        try:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    yield number, line
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            yield number + 1, ValueError(f"the compressed file is damaged from here on: {error}")


def hh_texts(line: bytes) -> tuple[str, str, str]:
    """Prompt, chosen and rejected of one line; a ``ValueError`` or ``TypeError`` tells a bad one.

    Each transcript is split at its own last Assistant turn.
    """
    try:
        row = json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise ValueError(f"not valid UTF-8: {error.reason} at byte {error.start}") from error
    except ValueError as error:
        raise ValueError(f"not valid JSON: {error}") from error
    if not isinstance(row, dict):
        raise TypeError(f"the line is a JSON {type(row).__name__}, not an object")
    prompts, answers = [], []
    for key in ("chosen", "rejected"):
        if key not in row:
            raise ValueError(f"the key {key!r} is missing; the row has {sorted(row)}")
        if not isinstance(row[key], str):
            raise TypeError(f"{key} must be a string, not {type(row[key]).__name__}")
        prompt, mark, answer = row[key].rpartition(ASSISTANT)
        if not mark:
            raise ValueError(f"{key} has no Assistant turn (no '\\n\\nAssistant:')")
        if not answer.strip():
            raise ValueError(f"the {key} answer is empty")
        prompts.append(prompt + mark)
        answers.append(answer)
    if prompts[0] != prompts[1]:
        raise ValueError("the conversations differ before the last answer")
    return prompts[0], answers[0], answers[1]


def ranked_answers(items, annotation) -> list[str]:
    """The items' bodies in the order in which one annotator put them."""
    if annotation.get("was_cancelled"):
        raise ValueError("the annotation was cancelled")
    rankings = [entry["value"] for entry in annotation["result"] if entry["type"] == "ranker"]
    if not rankings:
        raise ValueError("the annotation was not finished: it holds no ranking")
    columns = list(rankings[0]["ranker"].values())
    if len(rankings) > 1 or len(columns) != 1:
        raise ValueError("the annotation sorts into buckets or ranks twice; one ranking is needed")
    bodies = {item["id"]: item["body"] for item in items}
    (order,) = columns
    if sorted(map(str, order)) != sorted(map(str, bodies)):
        raise ValueError(f"the ranking names {order} but the items are {sorted(bodies)}")
    return [bodies[identity] for identity in order]
