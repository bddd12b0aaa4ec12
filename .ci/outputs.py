"""Stored outputs: `outputs.py NB ...` runs notebooks and stores what they show; with `--check` it looks at them.

Kept out: the state of widgets (hundreds of kilobytes that no page shows), counts and times of execution, and whatever
holds a path of this machine. Clean after that, not before: `make outputs NB=...` does both."""
import json
import re
import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient

MACHINE = re.compile(r"(?<![\w.:/])/(?:home|root|Users|work|farm|tmp|mnt|opt|private|var)/[\w.-]+/")


def text_of(output):
    "What an output says in words."
    data = output.get("data", {})
    return "".join(map(str, [output.get("text", ""), *(data.get(k, "") for k in ("text/plain", "text/html"))]))


def faults(nb):
    "What a notebook should not store, one line each."
    if "widgets" in nb.metadata: yield "the state of widgets"
    for cell in nb.cells:
        for output in cell.get("outputs", []):
            if output.output_type == "error": yield f"an error in cell {cell.id}: {output.ename}"
            found = MACHINE.search(text_of(output))
            if found: yield f"a path of this machine in cell {cell.id}: {found[0]}"


def joined(outputs):
    "The same outputs, pieces of one stream that follow each other as one."
    kept = []
    for output in outputs:
        stream = output.output_type == "stream" and output.name
        same = stream and kept and kept[-1].output_type == "stream" and kept[-1].name == stream
        if same: kept[-1].text += output.text
        else: kept.append(output)
    return kept


def store(path):
    "Run a notebook and store its outputs."
    nb = nbformat.read(path, as_version=4)
    nb.metadata.pop("widgets", None)
    NotebookClient(nb, timeout=900, store_widget_state=False, kernel_name="python3",
                   resources={"metadata": {"path": str(path.resolve().parent)}}).execute()
    for cell in (c for c in nb.cells if c.cell_type == "code"):
        cell.execution_count = None
        cell.metadata.pop("execution", None)
        cell.outputs = joined(o for o in cell.outputs if o.get("name") != "stderr" or not MACHINE.search(text_of(o)))
    text = json.dumps(json.loads(nbformat.writes(nb)), indent=1, ensure_ascii=False, sort_keys=True)
    path.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    check, paths = "--check" in sys.argv, [Path(a) for a in sys.argv[1:] if a != "--check"]
    bad = 0
    for path in paths:
        if not check: store(path)
        for fault in faults(nbformat.read(path, as_version=4)):
            bad += 1
            print(f"{path}: stores {fault}; run make outputs NB={path}")
    sys.exit(bool(bad))
