"""Every number and every strong word in README, on the start page and in the report's text, beside what proves it.

Prints a line for each claim; fails where a claim has no proof in claims.toml, where a proof is gone or says something
else, and where an entry is about a sentence that no page has any more. A proof is one of
  tests/test_x.py::TestY::test_z         a test that is there
  nbs/a/b.ipynb "text"                   a cell of the notebook, or its output, that holds the text
  nbs/results/x.csv "expression"         true of the table `t`, a dict of columns (numbers where all are)
  = reason                               why the sentence needs none
"""
import ast
import csv
import html
import json
import re
import sys
import tomllib
from pathlib import Path

root = Path(__file__).resolve().parents[1]
STRONG = (r"never|always|nothing|none of|no request|every|everything|any|all|fastest|faster|largest|certified|verified|"
          r"exact\w*")
PAGES = {"README": "nbs/index.ipynb", "start": "nbs/start.ipynb", "report": "hessnb/templates/report.html"}
ABBREVIATIONS = r"(?<!\be\.g)(?<!\bi\.e)(?<!\bvs)(?<!\bFig)(?<!\bcf)"


def cells(path): return json.loads(path.read_text(encoding="utf-8"))["cells"]


def source(cell): return "".join(cell["source"])


def plain(markdown):
    "Prose without code, links' addresses, formulas, table rows and tags."
    text = re.sub(r"```.*?```", "\n\n", markdown, flags=re.S)
    text = re.sub(r"(?m)^\s*\|.*$|^#.*$", "\n", text)
    text = re.sub(r"`([^`]*)`", r"\1", re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", text))
    return re.sub(r"<[^>]+>", " ", text.replace("**", "").replace("*", ""))


def template(text):
    "The words of a page's template, with a hole where something computed stands."
    text = re.sub(r"<style>.*?</style>|<script.*?</script>|{#.*?#}|{%.*?%}", " ", text, flags=re.S)
    return html.unescape(re.sub(r"<[^>]+>", "\n", re.sub(r"{{.*?}}", " … ", text, flags=re.S)))


def sentences(text):
    for paragraph in re.split(r"\n\s*\n|\n(?=\s*[-*] )|\n(?=\s*\d+\. )", text):
        for s in re.split(ABBREVIATIONS + r"(?<=[.!?])[)\"']?\s+(?=[A-Z`(])", " ".join(paragraph.split())):
            if s := s.strip("- >"): yield s


def is_claim(sentence):
    "Has it a number that is no name (arXiv 2306.07104, v1, 2-D), or one of the strong words?"
    bare = re.sub(r"arXiv \S+|\b[A-Za-z_]+-?\d+\w*\b|\d-D\b|…", " ", sentence)
    return bool(re.search(r"\d", bare) or re.search(rf"\b({STRONG})\b", bare, flags=re.I))


def prose(page):
    path = root / PAGES[page]
    if path.suffix == ".html": return template(path.read_text(encoding="utf-8"))
    return "\n\n".join(plain(source(c)) for c in cells(path) if c["cell_type"] == "markdown")


def shown(cell):
    "Source and text outputs of a cell."
    data = [o.get("data", {}) for o in cell.get("outputs", ())]
    texts = [o.get("text", "") for o in cell.get("outputs", ())]
    texts += [d[kind] for d in data for kind in d if "text" in kind]
    return "\n".join([source(cell), *("".join(t) for t in texts)])


def has_test(path, names):
    body = ast.parse((root / path).read_text(encoding="utf-8")).body
    for name in names:
        found = next((n for n in body if getattr(n, "name", None) == name), None)
        if found is None: return False
        body = found.body
    return True


def table(path):
    with open(root / path, newline="", encoding="utf-8") as f: rows = list(csv.DictReader(f))
    def column(name):
        try: return [float(r[name]) for r in rows]
        except ValueError: return [r[name] for r in rows]
    return {name: column(name) for name in rows[0]}


def fault(proof):
    "Why this proves nothing; empty if it does."
    if proof.startswith("= "): return ""
    path, _, said = proof.partition(" ")
    path, *names = path.split("::")
    if not (root / path).exists(): return f"{path} is not there"
    if names: return "" if has_test(path, names) else f"{path} has no test {'::'.join(names)}"
    text = said.strip().strip('"')
    if not text: return "" if path.endswith(".py") else "say which cell, or what is true of the table"
    if path.endswith(".csv"):
        import numpy as np
        return "" if eval(text, {"np": np, "t": table(path)}) else f"not true of {path}: {text}"
    whole = [shown(c) for c in cells(root / path)] if path.endswith(".ipynb") else [(root / path).read_text("utf-8")]
    return "" if any(text in " ".join(w.split()) or text in w for w in whole) else f"{path} does not say {text!r}"


def main(quiet):
    entries = tomllib.loads((root / ".ci/claims.toml").read_text(encoding="utf-8"))
    faults, lines, used = [], [], set()
    for page in PAGES:
        known = entries.get(page, {})
        for sentence in dict.fromkeys(sentences(prose(page))):
            found = [text for text in known if text in sentence]
            used |= {(page, text) for text in found}
            if not found and is_claim(sentence): faults.append(f"{page}: no proof is given for: {sentence}")
            lines += [f"{page}: {sentence}\n    {proof}" for text in found for proof in listed(known[text])]
    for page, known in entries.items():
        for text, proofs in known.items():
            if (page, text) not in used: faults.append(f"{page}: no sentence has the words: {text}")
            faults += [f"{page}: {text!r}: {why}" for proof in listed(proofs) if (why := fault(proof))]
    if not quiet: print("\n".join(lines))
    for line in faults: print(line, file=sys.stderr)
    print(f"{len(lines)} claims with proofs, {len(faults)} faults")
    return 1 if faults else 0


def listed(proofs): return [proofs] if isinstance(proofs, str) else proofs


if __name__ == "__main__": sys.exit(main("--quiet" in sys.argv))
