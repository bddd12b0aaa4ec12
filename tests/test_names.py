"The top level: at most forty names, seen by a type checker, each with an example; what the stub says is what is there."
import ast
import json
import os
import re
import subprocess
import sys

import pytest

import hessnb
from conftest import HERE

ROOT = HERE.parent
NAMES = sorted(hessnb.__all__)


def checked(code, folder):
    "What mypy, with our configuration, says about a user's module; run elsewhere, so that ours is a library to it."
    (folder / "user.py").write_text(code, encoding="utf-8")
    command = [sys.executable, "-m", "mypy", "--config-file", str(ROOT / "pyproject.toml"), "user.py"]
    command += ["--cache-dir", str(ROOT / ".mypy_cache")]
    done = subprocess.run(command, cwd=folder, env={**os.environ, "MYPYPATH": str(ROOT)}, capture_output=True,
                          text=True)
    assert done.returncode in (0, 1), done.stdout + done.stderr
    return done.stdout


def test_at_most_forty_names():
    assert len(NAMES) == len(set(NAMES)) <= 40
    assert NAMES == sorted(set(dir(hessnb))) and all(n[0] != "_" for n in NAMES)


def test_a_type_checker_sees_every_name(tmp_path):
    lines = ["import hessnb", *(f"from hessnb import {n}" for n in NAMES), "reveal_type(hessnb.__version__)"]
    lines += [f"reveal_type({n})" for n in NAMES]
    said = checked("\n".join(lines) + "\n", tmp_path)
    kinds = re.findall(r'Revealed type is "(.*)"', said)
    assert len(kinds) == len(NAMES) + 1 and "error" not in said, said
    seen = re.compile(r"def \(|Overload\(|(builtins\.)?str$")
    unseen = [(n, kind) for n, kind in zip(["__version__", *NAMES], kinds) if not seen.match(kind)]
    assert unseen == []


def visible_cells():
    cells = json.loads((ROOT / "nbs/names.ipynb").read_text(encoding="utf-8"))["cells"]
    return [s for c in cells if c["cell_type"] == "code" and "#| " not in (s := "".join(c["source"]))]


def test_a_type_checker_agrees_with_the_examples(tmp_path):
    cells = visible_cells()
    first = next(i for i, s in enumerate(cells) if "optimizer" in s)
    said = checked("import torch\nfrom torch import nn\n" + "\n".join(cells[first:]) + "\n", tmp_path)
    assert "Success" in said, said


def test_a_type_checker_sees_a_slip(tmp_path):
    said = checked("from hessnb import Objective, eigenpairs\nObjective().valu()\n", tmp_path)
    assert '"hessnb" has no attribute "eigenpairs"' in said and '"Objective" has no attribute "valu"' in said, said


def test_stub_and_examples_are_complete():
    "The notebook's own cells compare the stub with the table; here, that a visible cell uses every name."
    imported = [a.name for s in visible_cells() for node in ast.walk(ast.parse(s)) if isinstance(node, ast.ImportFrom)
                for a in node.names if node.module == "hessnb"]
    assert sorted(imported) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_name_is_documented(name): assert getattr(hessnb, name).__doc__


def test_import_is_lazy():
    code = "import sys, hessnb; print([m for m in ('torch', 'matplotlib', 'ipywidgets') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True).stdout == "[]\n"
    with pytest.raises(AttributeError, match="eigenpairs"): _ = hessnb.eigenpairs
