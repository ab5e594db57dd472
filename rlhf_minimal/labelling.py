"""Label your own: a widget that shows a prompt with two answers and keeps what you click.

In a notebook, ``LabellingWidget(comparisons(triples), "labels.jsonl").show()``. Labels are on disk
as they are made (:mod:`rlhf_minimal.label_files`); the same line again goes on where you stopped.

Which answer stands on the left is drawn at random and recorded: people, too, favour a side.

Leaves out: rankings of more than two (Label Studio has them: :mod:`rlhf_minimal.label_studio`).
"""

import html
import math
import random
import time
from collections.abc import Callable
from pathlib import Path

import ipywidgets as widgets
from IPython.display import display

from rlhf_minimal.label_files import Comparison, Label, LabelFile

__all__ = ["LabellingWidget", "click_through"]

# A label this soon after the last one is the second half of a double click, or was clicked while
# the kernel was busy: nobody has read the two answers that it would be about.
HASTY_S = 0.5

# The arrow keys click the buttons of the widget that the mouse has moved over, or of which a button
# has the focus and can be seen. A widget that was only scrolled under the mouse hears no keys, nor
# does any while somebody types: there, ↓ means to go down. The script listens on the window, before
# Jupyter does on the document (Notebook 7), for Jupyter's arrow keys go to the next cell. Where a
# cell's output is a frame of its own (Colab, VS Code), it hears keys only after a click into it.
KEYS = """
(() => {
  if (window.labellingKeys) return;  // one listener serves all these widgets on a page
  window.labellingKeys = true;
  const keys = {ArrowLeft: "left", ArrowRight: "right", ArrowDown: "tie", t: "tie", u: "undo"};
  const box = (node) => (node && node.closest ? node.closest(".labelling") : null);
  const seen = (x, y) => box(document.elementFromPoint(x, y));
  const focused = () => {
    const at = document.activeElement.getBoundingClientRect();
    return box(document.activeElement) && seen((at.left + at.right) / 2, (at.top + at.bottom) / 2);
  };
  let over = null, x = 0, y = 0;
  document.addEventListener("mousemove", (event) => {
    [over, x, y] = [box(event.target), event.clientX, event.clientY];
  }, true);
  window.addEventListener("keydown", (event) => {
    const typing = event.target.closest && event.target.closest(
      "input, textarea, .cm-editor, [contenteditable=true]");
    if (typing) over = null;
    if (typing || event.ctrlKey || event.metaKey || event.altKey) return;
    const here = over && seen(x, y) === over ? over : focused();
    const button = here && keys[event.key] && here.querySelector(".label-" + keys[event.key]);
    if (!button) return;
    event.preventDefault();
    event.stopImmediatePropagation();
    if (!event.repeat) button.click();
  }, true);
})();
"""

CARD = (
    '<div style="white-space: pre-wrap; line-height: 1.5; padding: 10px; min-height: 5em; '
    'border: 1px solid #bbb; border-radius: 6px">{}</div>'
)


class LabellingWidget(widgets.VBox):
    """Two answers, four buttons (``left``, ``right``, ``tie``, ``undo``) and a progress bar.

    Args:
        asked: :class:`~rlhf_minimal.label_files.Comparison` s, each id once.
        path: the file of labels; those of this annotator that it holds are not asked again.
        annotator: your name, as it shall stand in the file.
        seed: draws, with the annotator's name, which answer stands on the left.
        show_text: what to make of a text before it is shown, e.g. ``prettify``.

    A click within half a second of the last label is not counted (scripts: :func:`click_through`),
    nor is one after something else wrote to the file: the widget first goes on from what it holds.

    Raises:
        ValueError: nothing to ask, an id twice, or the file holds labels of other texts or people.
    """

    def __init__(
        self,
        asked,
        path,
        annotator: str = "me",
        seed: int = 0,
        show_text: Callable[[str], str] = str,
    ):
        asked = list(asked)
        self.asked: dict[str, Comparison] = {comparison.id: comparison for comparison in asked}
        if not asked or len(self.asked) != len(asked):
            raise ValueError(
                f"there are {len(asked)} comparisons with {len(self.asked)} different ids; "
                "give one or more, each with an id of its own"
            )
        self.annotator, self.seed, self.show_text = annotator, seed, show_text
        self.file, self._bytes = self._open(path), _size(path)
        self.labelled_at = -math.inf
        self.prompt, self.message = widgets.HTML(), widgets.HTML()
        self.texts = [widgets.HTML(layout={"width": "50%", "margin": "4px"}) for _ in range(2)]
        self.progress = widgets.IntProgress(max=len(self.asked), description="labelled")
        self.left = self._button("← left", "left")
        self.right = self._button("right →", "right")
        self.tie = self._button("tie ↓", "tie")
        self.undo = self._button("undo (u)", "undo")
        answers = widgets.HBox(self.texts, layout={"width": "100%"})
        buttons = widgets.HBox([self.left, self.tie, self.right, self.undo])
        super().__init__([self.progress, self.prompt, answers, buttons, self.message])
        self.add_class("labelling")
        self._refresh()

    def __repr__(self) -> str:
        """What a page shows that cannot show widgets; ipywidgets cuts it after 110 letters."""
        done = f"{len(self.labels)} of {len(self.asked)} labelled."
        return f"{done} No buttons here? Install ipywidgets where Jupyter itself runs; reload."

    def show(self) -> None:
        """Display the widget, with ← and → (↓ or t: a tie; u: undo) as keys.

        Keys work while the mouse is over the widget, or after a click on one of its buttons.
        """
        display(self)
        plain = "(a widget with buttons stands here while the notebook runs)"
        display({"application/javascript": KEYS, "text/plain": plain}, raw=True)

    @property
    def current(self) -> Comparison | None:
        """The first comparison that has no label yet; ``None`` when all have."""
        labelled = {label.comparison.id for label in self.file.labels}
        return next((c for key, c in self.asked.items() if key not in labelled), None)

    @property
    def labels(self) -> list[Label]:
        """All labels so far, those of earlier sessions included."""
        return list(self.file.labels)

    def sides(self) -> tuple[str, str]:
        """Which answer of the current comparison stands left and which right.

        Drawn from seed, name and id alone, so that a resumed session shows the same.
        """
        if self.current is None:
            raise ValueError("all comparisons are labelled; there is nothing on the screen")
        drawn = random.Random(f"{self.seed} {self.annotator} {self.current.id}").random()
        return ("first", "second") if drawn < 0.5 else ("second", "first")

    def shown(self) -> tuple[str, str, str]:
        """Prompt, left answer and right answer, as texts."""
        return self.current.prompt, *(getattr(self.current, side) for side in self.sides())

    def _open(self, path) -> LabelFile:
        file = LabelFile(path)
        for label in file.labels:
            if label.annotator != self.annotator:
                raise ValueError(
                    f"{path} holds the labels of {label.annotator!r}, not {self.annotator!r}; "
                    "name another file"
                )
            if self.asked.get(label.comparison.id) != label.comparison:
                raise ValueError(
                    f"{path} holds a label of other texts under the id {label.comparison.id!r}; "
                    "name another file, or give the comparisons it was made with"
                )
        return file

    def _button(self, text: str, name: str) -> widgets.Button:
        button = widgets.Button(description=text)
        button.add_class(f"label-{name}")
        button.on_click(lambda _: self._clicked(name))
        return button

    def _clicked(self, name: str) -> None:
        """Write first, show then: what is on the screen as done is on the disk."""
        if self.current is None and name != "undo":
            return
        try:
            note = self._write(name)
        except (OSError, ValueError) as error:
            self.message.value = f"<b>not saved:</b> {html.escape(str(error))}"
            return
        self._refresh()
        self.message.value += note

    def _write(self, name: str) -> str:
        """Put a click into the file, or say why it is not counted."""
        if _size(self.file.path) != self._bytes:
            self.file, self._bytes = self._open(self.file.path), _size(self.file.path)
            return "; the file has changed meanwhile, so this click was not counted"
        if name == "undo":
            self.file.undo()
        elif time.monotonic() - self.labelled_at < HASTY_S:
            return "; a click so soon after the last one was not counted"
        else:
            choice = dict(zip(("left", "right"), self.sides(), strict=True)).get(name, name)
            self.file.append(Label(self.current, choice, self.sides()[0], self.annotator))
            self.labelled_at = time.monotonic()
        self._bytes = _size(self.file.path)
        return ""

    def _refresh(self) -> None:
        done = len(self.file.labels)
        self.progress.value = done
        self.undo.disabled = done == 0
        for button in (self.left, self.right, self.tie):
            button.disabled = self.current is None
        self.message.value = f"{done} of {len(self.asked)}"
        if self.current is None:
            path = html.escape(str(Path(self.file.path)))
            self.message.value = f"<b>done:</b> {done} labels in {path}"
            self.prompt.value = self.texts[0].value = self.texts[1].value = ""
            return
        prompt, *answers = (html.escape(self.show_text(text)) for text in self.shown())
        self.prompt.value = f"<b>{prompt}</b>"
        for widget, answer in zip(self.texts, answers, strict=True):
            widget.value = CARD.format(answer)


def _size(path) -> int:
    """Bytes of a file; 0 where there is none."""
    return Path(path).stat().st_size if Path(path).exists() else 0


def click_through(widget: LabellingWidget, choose, limit: int | None = None) -> int:
    """Let a script use the widget as a person does: look at what is shown, click.

    Args:
        choose: called with prompt, left answer and right answer; says "left", "right" or "tie".
        limit: stop after so many clicks; ``None``: when all is labelled.

    Returns:
        How many clicks it made.
    """
    clicks = 0
    while widget.current is not None and (limit is None or clicks < limit):
        before = len(widget.file.labels)
        choice = choose(*widget.shown())
        if choice not in ("left", "right", "tie"):
            raise ValueError(f"choose said {choice!r}; it must say 'left', 'right' or 'tie'")
        widget.labelled_at = -math.inf  # a script has read the answers, fast as it is
        getattr(widget, choice).click()
        if len(widget.file.labels) == before:
            raise OSError(f"the label was not saved: {widget.message.value}")
        clicks += 1
    return clicks
