"""Runs source statements in namespaces of their own; turns errors into the student's own lines.

Works in the box, beside student code.

Leaves out: which statements (``reading.py``).
"""

import sys
import traceback
import types

__all__ = ["Sources", "out_of_memory"]

MAX_FRAMES_SHOWN = 8
def out_of_memory(error) -> bool:
    if isinstance(error, MemoryError):
        return True
    text = str(error) if type(error) is RuntimeError else ""
    return (
        "can't allocate memory" in text or "not enough memory" in text or "std::bad_alloc" in text
    )


class Sources:
    """Runs statements in namespaces, and turns tracebacks into the student's own lines."""

    def __init__(self, request):
        self.name = request["name"]
        self.dropped = dict(request.get("dropped", {}))
        self.lines: dict[str, dict[int, str]] = {}          # the student's, by cell and line
        self.failures: list[dict] = []
        self.failed: dict[str, dict] = {}  # a name, and why it could not be defined

    def run(self, name: str, statements, known=None) -> dict:
        """Run each statement; one that fails is remembered and costs only what it defines.

        What is ``known`` stands there from the beginning.
        """
        module = types.ModuleType(name)
        module.__file__ = None
        vars(module).update(known or {})
        sys.modules[name] = module
        for statement in statements:
            if name == "__main__":
                self._remember(statement)
            try:
                # Whatever the padding: line numbers in tracebacks are those of the cell.
                source = "\n" * (statement["line"] - 1) + statement["source"]
                exec(compile(source, statement["label"], "exec"), vars(module))
            except BaseException as error:
                if out_of_memory(error):
                    raise
                self.failures.append(self.describe(error))
                for defined in statement["defines"]:
                    if statement["kind"] == "value":
                        self.dropped.setdefault(defined, statement["label"])
                    elif name == "__main__":
                        self.failed[defined] = self.failures[-1]
        return vars(module)

    def stand_in(self, name, source):
        """The reference of an earlier exercise: by path, or as source text."""
        from autograder.exercises import resolve

        return (
            resolve(source)
            if isinstance(source, str)
            else self.run(f"stand_in_{name}", source)[name]
        )

    def _remember(self, statement) -> None:
        lines = self.lines.setdefault(statement["label"], {})
        for offset, line in enumerate(statement["source"].split("\n")):
            lines[statement["line"] + offset] = line

    def describe(self, error) -> dict:
        """The kind and message of an error, and the frames that stand in the student's cells."""
        kind = type.__getattribute__(type(error), "__name__")
        try:
            message = str(error)[:600]
        except BaseException:
            message = ""
        frames = []
        for frame, line in traceback.walk_tb(error.__traceback__):
            label = frame.f_code.co_filename
            if label in self.lines:
                frames.append(
                    [label, line, frame.f_code.co_name, self.lines[label].get(line, "").strip()]
                )
        if isinstance(error, SyntaxError) and error.filename in self.lines:
            frames.append([error.filename, error.lineno or 0, "", (error.text or "").strip()])
        stub = (
            type(error) is NotImplementedError
            and bool(frames)
            and "NotImplementedError" in frames[-1][3]
        )
        shown = (
            frames
            if len(frames) <= MAX_FRAMES_SHOWN
            else [*frames[:2], *frames[2 - MAX_FRAMES_SHOWN :]]
        )
        described = {"kind": kind, "message": message, "frames": shown, "stub": stub}
        if isinstance(error, NameError) and not isinstance(error, UnboundLocalError):
            name = getattr(error, "name", None)
            if type(name) is not str:
                return described
            described |= {"name": name, "set_in": self.dropped.get(name)}
            return self.failed.get(name, described)
        return described
