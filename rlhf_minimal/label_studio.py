"""Label Studio: its labelling page for rankings, and the tasks that it shows there.

Two answers can be compared in our own widget. For rankings of many, and many annotators, there is
Label Studio (https://labelstud.io): a web server with accounts, review and exports. Its export
comes back as pairs by :func:`rlhf_minimal.preferences.read_label_studio`;
``benchmarks/label_studio.py`` tries the whole way against a real server.

Leaves out: talking to the server. Config and tasks are pasted and uploaded by hand, or by its API.
"""

import random
from pathlib import Path

from rlhf_minimal.history import write_json
from rlhf_minimal.preferences import Preference

__all__ = ["label_studio_config", "label_studio_tasks"]

CONFIG = """<View>
  <Header value="{title}"/>
  <Text name="prompt" value="$prompt"/>
  <List name="answers" value="$items" title="Drag the best answer to the top"/>
  <Ranker name="ranking" toName="answers"/>
</View>
"""


def label_studio_config(title: str = "Which answer serves the asker best?") -> str:
    """The labelling page: the prompt, and the answers as a list to be put in order.

    Goes into a project's Settings → Labeling Interface → Code.

    Raises:
        ValueError: the title holds one of ``< > & "``, which end or change the XML around it.
    """
    if any(character in title for character in '<>&"'):
        raise ValueError(f'the title {title!r} holds one of < > & ", which XML reads as its own')
    return CONFIG.format(title=title)


def label_studio_tasks(groups, path=None, seed: int = 0) -> list[dict]:
    """Prompts with their answers as Label Studio's import wants them, optionally written to a file.

    The order on the page is drawn: a list that nobody touches is submitted as it stands, and would
    otherwise agree with whoever wrote the file. So are the items' ids, because the page shows them:
    an id such as "model-a" would tell the annotator who is speaking.

    Args:
        groups: ``(prompt, answers)``, two or more different answers each.
        path: a JSON file to write.
        seed: of the drawn orders.

    Returns:
        The tasks: ``{"data": {"prompt": ..., "items": [{"id", "title", "body"}, ...]}}``.

    >>> (task,) = label_studio_tasks([("2 + 2?", ["4", "5"])])
    >>> task["data"]["prompt"], sorted(item["body"] for item in task["data"]["items"])
    ('2 + 2?', ['4', '5'])
    """
    rng = random.Random(seed)
    tasks = []
    for prompt, answers in groups:
        if isinstance(answers, str) or len(answers) < 2 or len(set(answers)) < len(answers):
            raise ValueError(f"{prompt!r} needs a list of two or more different answers")
        for answer in answers[1:]:
            Preference(prompt, answers[0], answer)  # texts, and not empty
        names = rng.sample(range(1000, 10_000), len(answers))
        shown = rng.sample(list(answers), len(answers))
        items = [
            {"id": str(name), "title": "", "body": answer}
            for name, answer in zip(names, shown, strict=True)
        ]
        tasks.append({"data": {"prompt": prompt, "items": items}})
    if path is not None:
        write_json(Path(path), tasks)
    return tasks
