"A copy of the tutorials has all that its pages read and lead to, wherever it comes from."
import json
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import setuptools

from conftest import HERE
from hessnb import lab

ROOT = HERE.parent
FILES = re.compile(r"""["'(]((?:\.\.?/)*[\w/-]+\.(?:py|csv|npz|ipynb|md|pt|json|safetensors|png|gif|sh))["')#]""")


@pytest.fixture(scope="module")
def copied(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lab") / "mine"
    lab.copy_tutorials(folder)
    return folder


def cells(path): return json.loads(path.read_text(encoding="utf-8"))["cells"]


def missing(folder):
    "Files that the pages of a folder name in links, or read in code, and that are not there; scripts by their name."
    for page in folder.rglob("*.ipynb"):
        for cell in cells(page):
            source = "".join(cell["source"])
            named = [m for m in FILES.findall(source) if cell["cell_type"] == "markdown" and f"]({m}" in source
                     or cell["cell_type"] == "code" and m.startswith("../")]
            for name in named:
                if not (page.parent / name).exists(): yield page.relative_to(folder).as_posix(), name
            for name in re.findall(r"\"(benchmarks/[\w/]+\.\w+)\"", source):
                if not (folder / name).is_file(): yield page.name, name
            for name in re.findall(r"load_script\(\"(\w+)\"", source):
                if not (folder / f"benchmarks/{name}.py").is_file(): yield page.name, name


def test_every_file_that_pages_name_is_there(copied):
    pages = {p.relative_to(copied).as_posix() for p in copied.rglob("*.ipynb")}
    assert {"start.ipynb", "tutorials/07_trust.ipynb", "paper/05_study.ipynb", "recipes/01_cluster.ipynb"} <= pages
    assert not list(missing(copied))
    assert not [p for p in copied.rglob("*.ipynb") if any("spec_from_file" in "".join(c["source"]) for c in cells(p))]


@pytest.mark.parametrize("lost", ["benchmarks/study.py", "results/study.csv", "paper/10_coverage.ipynb"])
def test_a_lost_file_is_seen_and_comes_back(tmp_path, lost):
    lab.copy_tutorials(tmp_path)
    (tmp_path / lost).unlink()
    (tmp_path / "start.ipynb").write_text('{"cells": []}')  # the user's own
    if lost != "paper/10_coverage.ipynb": assert list(missing(tmp_path))
    written, kept = lab.copy_tutorials(tmp_path)
    assert (written, kept) == ([tmp_path / lost], [tmp_path / "start.ipynb"])
    assert (tmp_path / "start.ipynb").read_text() == '{"cells": []}'


def test_the_wheel_has_what_is_copied(monkeypatch):
    told = {}
    monkeypatch.setattr(setuptools, "setup", lambda **options: told.update(options))
    runpy.run_path(str(ROOT / "setup.py"))
    shipped = {path.resolve() for package, patterns in told["package_data"].items() if package in told["package_dir"]
               for pattern in patterns for path in (ROOT / told["package_dir"][package]).glob(pattern)}
    assert set(told["package_dir"]) <= set(told["packages"])
    assert {path.resolve() for path in lab.files_to_copy().values()} <= shipped


def test_as_installed(tmp_path, monkeypatch):
    "Where the scripts lie inside of the tutorials' folder, the copy is the same."
    inside, usual = tmp_path / "tutorials", lab.files_to_copy()
    for name, path in usual.items():
        (inside / name).parent.mkdir(parents=True, exist_ok=True)
        (inside / name).write_bytes(path.read_bytes())
    monkeypatch.setattr(lab, "tutorials", lambda: inside)
    assert list(lab.files_to_copy()) == list(usual)
    monkeypatch.chdir(tmp_path)
    assert Path(lab.load_script("study").__file__) == inside / "benchmarks/study.py"
    del sys.modules["study"]


def run(page):
    "Run a page's code in its folder, as one script."
    code = "\n".join("".join(c["source"]) for c in cells(page) if c["cell_type"] == "code")
    code = "import matplotlib; matplotlib.use('agg')\n" + re.sub(r"^[%!].*$", "", code, flags=re.M)
    return subprocess.run([sys.executable, "-c", code], cwd=page.parent, capture_output=True, text=True, timeout=300)


@pytest.mark.slow
def test_the_study_runs_in_the_copy(copied):
    done = run(copied / "paper/05_study.ipynb")
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.slow
def test_every_study_runs_in_the_copy(copied):
    for page in [*copied.glob("paper/*.ipynb"), *copied.glob("recipes/0[6-9]*.ipynb")]:
        done = run(page)
        assert done.returncode == 0, (page.name, done.stderr[-2000:])


def test_no_link_between_notebooks_leads_nowhere():
    links = [(page, link) for page in (ROOT / "nbs").rglob("*.ipynb") for cell in cells(page)
             if cell["cell_type"] == "markdown"
             for link in re.findall(r"\]\(((?:\.\./)*[\w/]+\.ipynb)", "".join(cell["source"]))]
    assert len(links) > 40 and not [(page.name, link) for page, link in links if not (page.parent / link).exists()]
