"""The labelling widget in a real JupyterLab and a real browser, by mouse and by keys.

    python benchmarks/labelling_live.py --jupyter .venv/bin/jupyter-lab

Needs JupyterLab, Chromium and `pip install playwright`, and installs none of them. Shows the widget
as lesson 09 does, on a server of its own, and tries each button and key, a double click, keys that
are meant for the page, and a kernel that is killed. Exits with 1 as soon as the screen or the file
of labels is not as it should be. With `--jupyter jupyter-notebook` it tries Notebook 7.
"""

import argparse
import contextlib
import os
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path

import nbformat
from nbformat import v4
from playwright.sync_api import sync_playwright

ROOT = Path(__file__).resolve().parent.parent
FIRST = """import os
from rlhf_minimal.label_files import comparisons
from rlhf_minimal.labelling import LabellingWidget
asked = comparisons([(f'question {i} ?', f'good {i}', f'bad {i}') for i in range(20)])
print('kernel', os.getpid())"""
SECOND = "widget = LabellingWidget(asked, 'labels.jsonl', 'me')\nwidget.show()"
CELLS = [FIRST, SECOND, *["\n".join(f"line_{i} = {i}" for i in range(30))] * 2]


@contextlib.contextmanager
def own_server(program: str, folder: Path):
    """A Jupyter server of our own that reads nobody's settings; yields how to ask it for pages."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    token = os.urandom(20).hex()
    command = [program, "--no-browser", "--allow-root", "--ServerApp.ip=127.0.0.1"]
    command += [f"--ServerApp.port={port}", f"--ServerApp.root_dir={folder}"]
    home = {f"JUPYTER_{name}_DIR": str(folder / name) for name in ("CONFIG", "DATA", "RUNTIME")}
    environment = {**os.environ, **home, "PYTHONPATH": str(ROOT), "JUPYTER_TOKEN": token}
    server = subprocess.Popen(command, stderr=subprocess.DEVNULL, env=environment)
    try:
        for _ in range(120):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
                break
            time.sleep(0.5)
        yield lambda path: f"http://127.0.0.1:{port}/{path}?token={token}"
    finally:
        server.terminate()
        server.wait(30)


class Notebook:
    """The notebook in the browser, and the file that its widget writes."""

    def __init__(self, page, file: Path):
        self.page, self.file, self.lines, self.kernel = page, file, 0, None

    def run(self, number: int) -> None:
        self.page.locator(".jp-CodeCell .cm-content").nth(number).click()
        self.page.keyboard.press("Shift+Enter")
        self.page.wait_for_timeout(1000)

    def start(self) -> None:
        """Run the first cell until a new kernel answers, then the second; wait for the widget."""
        for _ in range(60):
            self.run(0)
            said = self.page.locator(".jp-OutputArea-output").all_inner_texts()
            if said and said[0] != self.kernel:
                break
        self.kernel = said[0]
        self.run(1)
        self.page.locator(".labelling").wait_for(timeout=60_000)

    def expect(self, what: str, labels: int, lines: int) -> None:
        """So many labels on the screen; as soon as they are, ``lines`` more lines on the disk."""
        self.lines += lines
        with contextlib.suppress(Exception):  # a time out: the comparison below says what is wrong
            self.page.locator(f".labelling :text('{labels} of 20')").wait_for(timeout=10_000)
        found = self.file.read_text().splitlines() if self.file.exists() else []
        shown = self.page.locator(".labelling .widget-html").last.inner_text()
        bar = self.page.locator(".labelling .progress-bar").get_attribute("style")
        good = shown.startswith(f"{labels} of 20") and f"width: {labels * 5}%" in bar
        good &= len(found) == self.lines
        print(f"{what:38s} {len(found):2d} lines; {shown}", "" if good else f"({bar}) WRONG")
        if not good:
            raise SystemExit(1)
        self.page.wait_for_timeout(1000)  # a person reads the next two answers


def label(book: Notebook) -> None:
    page, keys = book.page, book.page.keyboard
    for name, labels in {"left": 1, "right": 2, "tie": 3, "undo": 2}.items():
        page.locator(f".label-{name}").click()
        book.expect(f"a click on {name}", labels, 1)
    page.get_by_text("question 2 ?").hover()
    for key, labels in {"ArrowLeft": 3, "ArrowRight": 4, "ArrowDown": 5, "t": 6, "u": 5}.items():
        keys.press(key)
        book.expect(f"{key}, the mouse over the text", labels, 1)
    page.locator(".label-left").dblclick()
    book.expect("a double click", 6, 1)
    page.locator(".jp-CodeCell .cm-content").nth(1).click()
    page.get_by_text("question 6 ?").hover()
    for key in ["ArrowLeft", "ArrowDown", "Escape", *["ArrowUp"] * 2, *["ArrowDown"] * 3]:
        keys.press(key)
        page.wait_for_timeout(300)  # the page scrolls under the mouse
    page.locator(".jp-CodeCell .cm-content").nth(0).scroll_into_view_if_needed()
    page.wait_for_timeout(1000)  # time enough for a label that shall not come
    book.expect("keys in the editor and between cells", 6, 0)


def kill_and_resume(book: Notebook) -> None:
    os.kill(int(book.kernel.split()[1]), signal.SIGKILL)
    book.page.locator(".jp-Dialog button").last.click(timeout=60_000)
    with book.file.open("a") as file:
        file.write('{"id": "6", "prom')  # what a kernel leaves that dies while it writes
    book.start()
    book.expect("killed in mid-line, and run again", 6, 1)
    book.page.locator(".label-right").click()
    book.expect("a click on right", 7, 1)
    book.page.mouse.move(5, 5)
    book.page.keyboard.press("ArrowLeft")
    book.expect("ArrowLeft, the focus on a button", 8, 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--jupyter", default="jupyter-lab", help="the program to start")
    parser.add_argument("--chromium", default="/usr/bin/chromium", help="the browser")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, sync_playwright() as playwright:
        folder = Path(name)
        notebook = v4.new_notebook(cells=[v4.new_code_cell(source) for source in CELLS])
        notebook.metadata.kernelspec = {"name": "python3", "display_name": "Python 3"}
        nbformat.write(notebook, folder / "labels.ipynb")
        with own_server(arguments.jupyter, folder) as address:
            chromium = {"executable_path": arguments.chromium, "args": ["--no-sandbox"]}
            page = playwright.chromium.launch(**chromium).new_page()
            page.set_viewport_size({"width": 1300, "height": 800})
            place = "lab/tree" if arguments.jupyter.endswith("lab") else "notebooks"
            page.goto(address(f"{place}/labels.ipynb"))
            page.locator(".jp-CodeCell").first.wait_for(timeout=120_000)
            book = Notebook(page, folder / "labels.jsonl")
            book.start()
            book.expect("shown", 0, 0)
            label(book)
            kill_and_resume(book)
    print("each label was on the disk when the next question stood; none was lost or doubled")


if __name__ == "__main__":
    main()
