"""Our Label Studio config, tasks and reader against a real server, the whole way round.

    python -m venv studio && studio/bin/pip install "label-studio==1.23.*"        about 1 GB
    python benchmarks/label_studio.py --label-studio studio/bin/label-studio

Starts a server of its own on loopback, in a temporary folder (the first start takes minutes: it
makes a database); creates a project with `label_studio_config()`, imports `label_studio_tasks()`,
submits rankings, one cancelled annotation and one without a ranking, exports JSON, reads it back
with `read_label_studio`, and exits with 1 if a pair is missing, wrong or too many.

`--export FILE` keeps the export; `--screenshot FILE` looks at the labelling page in a browser
(`pip install playwright`, and `--chromium` names the browser).
"""

import argparse
import contextlib
import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from rlhf_minimal.label_studio import label_studio_config, label_studio_tasks  # noqa: E402
from rlhf_minimal.preferences import pairs_from_ranking, read_label_studio  # noqa: E402

USER, PASSWORD = "mia@example.org", secrets.token_hex(8)
GROUPS = [
    (
        "how do i make pizza ?",
        [
            "sure , you need dough , tomato and cheese . bake it well .",
            "take dough and cheese . then bake it .",
            "take dough . my grandmother loved cooking . it is really very good .",
        ],
    ),
    (
        "what do i need for curry ?",
        [
            "you need rice , chicken and coconut . please enjoy !",
            "you need rice . i could talk about food all day .",
            "take <b>banana</b> & milk .",
        ],
    ),
    ("can you help me cook soup ?", ["take carrot and onion . boil it well .", "take beef ."]),
    ("what goes into a good salad ?", ["lettuce , cucumber and oil .", "it depends on taste ."]),
    ("how do i make cake ?", ["take flour , sugar and cream .", "take flour ."]),
]


class Server:
    """A Label Studio server that answers API calls."""

    def __init__(self, url: str, token: str):
        self.url, self.token = url, token

    def call(self, path: str, body=None):
        """GET without a body, POST with one."""
        headers = {"Authorization": f"Token {self.token}", "Content-Type": "application/json"}
        data = json.dumps(body).encode() if body is not None else None
        request = urllib.request.Request(self.url + path, data, headers)
        try:
            with urllib.request.urlopen(request, timeout=120) as answer:
                return json.loads(answer.read() or b"null")
        except urllib.error.HTTPError as error:
            raise SystemExit(f"{path}: {error.code} {error.read()[:500].decode()}") from error


@contextlib.contextmanager
def own_server(program: str, wait_s: float):
    """Start a server on a free port of loopback; end it and remove its folder afterwards."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    token = secrets.token_hex(20)
    with tempfile.TemporaryDirectory() as folder:
        command = [program, "start", "--no-browser", "--port", str(port)]
        command += ["--internal-host", "127.0.0.1", "--data-dir", folder]
        command += ["--username", USER, "--password", PASSWORD, "--user-token", token]
        environment = {**os.environ, "LABEL_STUDIO_ENABLE_LEGACY_API_TOKEN": "true"}
        environment |= {"LABEL_STUDIO_BASE_DATA_DIR": folder, "COLLECT_ANALYTICS": "False"}
        with open(Path(folder) / "log.txt", "wb") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
            try:
                wait_for(f"http://127.0.0.1:{port}/health", process, log.name, wait_s)
                yield Server(f"http://127.0.0.1:{port}", token)
            finally:
                process.terminate()
                process.wait(30)


def wait_for(url: str, process, log: str, wait_s: float) -> None:
    until = time.monotonic() + wait_s
    while time.monotonic() < until:
        if process.poll() is not None:
            raise SystemExit(f"Label Studio ended: {Path(log).read_text()[-2000:]}")
        with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=5):
            return
        time.sleep(1)
    raise SystemExit(f"Label Studio did not answer within {wait_s:.0f} s")


def ranking(task, answers) -> list[dict]:
    """An annotation's result as the page itself submits it, the best first."""
    identities = {item["body"]: item["id"] for item in task["data"]["items"]}
    order = [identities[answer] for answer in answers]
    value = {"ranker": {"ranking": order}}
    return [{"from_name": "ranking", "to_name": "answers", "type": "ranker", "value": value}]


def submit(server: Server, project: int):
    """Rank the tasks, the last two in ways that give no pair; returns the pairs to be expected."""
    tasks = server.call(f"/api/tasks?project={project}&fields=all")["tasks"]
    by_prompt = {task["data"]["prompt"]: task for task in tasks}
    expected = []
    for number, (prompt, answers) in enumerate(GROUPS):
        task = by_prompt[prompt]
        annotation = {"result": ranking(task, answers), "was_cancelled": False}
        if number == len(GROUPS) - 2:
            annotation = {"result": [], "was_cancelled": True}
        elif number == len(GROUPS) - 1:
            annotation = {"result": [], "was_cancelled": False}
        else:
            expected += pairs_from_ranking(prompt, answers)
        server.call(f"/api/tasks/{task['id']}/annotations/", annotation)
    # A second annotator's opinion of the first task: the two worst exchanged.
    prompt, (best, middle, worst) = GROUPS[0]
    task, second = by_prompt[prompt], [best, worst, middle]
    annotation = {"result": ranking(task, second), "was_cancelled": False}
    server.call(f"/api/tasks/{task['id']}/annotations/", annotation)
    return expected + pairs_from_ranking(prompt, second)


def screenshot(server: Server, project: int, path: str, chromium: str, login) -> None:
    """Log in as a person does, open the first task, and keep a picture of it."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1200, "height": 640})
        page.goto(f"{server.url}/user/login/", timeout=120_000)
        page.fill("input[name=email]", login[0])
        page.fill("input[name=password]", login[1])
        page.click("button[type=submit]")
        page.wait_for_load_state("networkidle", timeout=120_000)
        page.goto(f"{server.url}/projects/{project}/data?labeling=1", timeout=120_000)
        page.get_by_text("how do i make pizza ?").first.wait_for(timeout=120_000)
        page.wait_for_timeout(3000)
        page.screenshot(path=path)
        browser.close()


def round_trip(server: Server, arguments) -> int:
    version = server.call("/api/version").get("release")
    config = {"title": "kitchen", "label_config": label_studio_config()}
    project = server.call("/api/projects/", config)["id"]
    imported = server.call(f"/api/projects/{project}/import", label_studio_tasks(GROUPS))
    print(f"Label Studio {version}: project {project}, {imported['task_count']} tasks imported")
    if arguments.screenshot:
        login = (arguments.user, arguments.password)
        screenshot(server, project, arguments.screenshot, arguments.chromium, login)
    expected = submit(server, project)
    export = server.call(f"/api/projects/{project}/export?exportType=JSON&download_all_tasks=true")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(arguments.export or Path(folder) / "export.json")
        path.write_text(json.dumps(export, indent=1) + "\n", encoding="utf-8")
        pairs, skipped = read_label_studio(path)
    print(f"{len(pairs)} pairs read, {len(expected)} expected")
    for row in skipped:
        print(f"skipped: task {row.line}: {row.reason}")
    wrong = sorted(pairs) != sorted(expected) or len(skipped) != 2
    print("DIFFERENT" if wrong else "the same pairs, and both unusable annotations reported")
    return int(wrong)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--label-studio", default="label-studio", help="the program to start")
    parser.add_argument("--wait", type=float, default=900, help="seconds until it must answer")
    parser.add_argument("--url", help="use this running server instead")
    parser.add_argument("--token", help="its user's token")
    parser.add_argument("--user", default=USER)
    parser.add_argument("--password", default=PASSWORD)
    parser.add_argument("--export", help="keep the export here")
    parser.add_argument("--screenshot", help="keep a picture of the labelling page here")
    parser.add_argument("--chromium", default=shutil.which("chromium"))
    arguments = parser.parse_args()
    if arguments.url:
        return round_trip(Server(arguments.url, arguments.token), arguments)
    if shutil.which(arguments.label_studio) is None:
        raise SystemExit(f"there is no {arguments.label_studio}; see the head of this file")
    with own_server(arguments.label_studio, arguments.wait) as server:
        return round_trip(server, arguments)


if __name__ == "__main__":
    sys.exit(main())
