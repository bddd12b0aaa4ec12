"Reports and exports appear whole or not at all, one run at a time, whatever the names are."
import json
import os
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from conftest import build, randn
from hessnb import report as report_module
from hessnb.analysis import QUICK
from hessnb.boundary.columns import Missing
from hessnb.boundary.compare import Comparison
from hessnb.cli import main
from hessnb.page import render_html
from hessnb.paper.data import load_data
from hessnb.paper.zoo import find_minimum
from hessnb.report import analyse_minimum, report, subject_of, summary, write_analyses
from hessnb.show import folder as folder_module
from hessnb.show.findings import file_names
from hessnb.show.folder import reserved, write_files
from hessnb.show.plots import label_text, plot_classes, plot_comparison, plot_measure
from hessnb.show.spectrum import Examples
from hessnb.show.workbook import Workbook

ODD = [r"$\foo{$", "<b>bold</b>", "R&D", 'quo"te\'s', "two\nlines", "x" * 300,
       "größer 日本", "שלום", "_under", "a$b$c$"]
FAST = dict(minima=["normal"], k=3, quick=True, progress=False)
QUICK_REPORT = ["report", "intro1d", "--minima", "normal", "--k", "3", "--quick"]


@pytest.fixture(scope="module")
def analysed():
    data = load_data("intro1d")
    return subject_of(data), [analyse_minimum(find_minimum("normal", data), data, k=3, effort=QUICK)]


def write(subject, analyses, out):
    with reserved(out) as folder: write_analyses(subject, analyses, folder)


def contents(folder): return {p.name: p.read_text() for p in Path(folder).iterdir() if p.is_file()}


@pytest.mark.parametrize("fails", ["write", "render_html", "rename first", "rename second"])
@pytest.mark.parametrize("there", [False, True])
def test_an_error_leaves_what_was_there(tmp_path, analysed, monkeypatch, fails, there):
    out = tmp_path / "r"
    if there:
        out.mkdir()
        for name in ("index.html", "summary.json", "mine.txt"): (out / name).write_text("old")
    count = []
    def full(*args, **kwargs): raise OSError(28, "No space left on device")
    def replace_but(source, target):
        count.append(target)
        if Path(target).parent == out and len([t for t in count if Path(t).parent == out]) == 1 + ("second" in fails):
            full()
        return rename(source, target)
    rename = os.replace
    monkeypatch.setattr(report_module, "render_html", lambda *args, **kwargs: "a page")  # drawing one takes seconds
    if fails == "write": monkeypatch.setattr(folder_module.os, "fsync", full)
    elif fails == "render_html": monkeypatch.setattr(report_module, "render_html", full)
    elif there: monkeypatch.setattr(folder_module.os, "replace", replace_but)
    else: monkeypatch.setattr(folder_module.os, "rename", full)
    with pytest.raises(OSError): write(*analysed, out)
    monkeypatch.undo()
    monkeypatch.setattr(report_module, "render_html", lambda *args, **kwargs: "a page")
    assert (contents(out) == dict.fromkeys(["index.html", "summary.json", "mine.txt"], "old")) if there else \
        not out.exists()
    assert [p.name for p in tmp_path.iterdir()] == ["r"] * there and (not there or len(list(out.iterdir())) == 3)
    write(*analysed, out)
    assert json.loads((out / "summary.json").read_text())["dataset"] == "intro1d"


def test_two_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(report_module, "load_data", lambda *a, **k: pytest.fail("work was spent"))
    with reserved(tmp_path / "deep" / "r"):
        with pytest.raises(BlockingIOError, match="another run is writing"): report("intro1d", out=tmp_path / "deep/r")
        assert main(["report", "intro1d", "--quiet", "--out", str(tmp_path / "deep" / "r")]) == 2
        assert capsys.readouterr().err.startswith("hessnb report: another run")
    assert list(tmp_path.iterdir()) == []
    monkeypatch.undo()
    report("intro1d", out=tmp_path / "deep" / "r", **FAST)
    assert sorted(contents(tmp_path / "deep" / "r")) == ["index.html", "summary.json"]
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["r"]


@pytest.mark.parametrize("where", ["file/r", "file", "/proc/hessnb/r", "x" * 300])
def test_an_impossible_place_is_noticed_first(tmp_path, monkeypatch, capsys, where):
    monkeypatch.setattr(report_module, "load_data", lambda *a, **k: pytest.fail("work was spent"))
    (tmp_path / "file").write_text("mine")
    assert main(["report", "intro1d", "--quiet", "--out", str(tmp_path / where)]) == 2
    said = capsys.readouterr().err
    assert said.startswith("hessnb report: ") and said.count("\n") == 1
    assert any(words in said for words in ("--out", "is a file", "too long"))
    assert contents(tmp_path) == {"file": "mine"}


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="the super-user may write everywhere")
def test_a_folder_without_permission(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(PermissionError, match="no report can be written"), reserved(tmp_path / "r"): pass


def test_relative_places_and_folders_that_are_there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with reserved("r") as out: write_files(out, {"a": "1"})
    os.symlink("r", "link")
    with reserved("link") as out: write_files(out, {"a": "2"})
    assert (tmp_path / "r" / "a").read_text() == "2" and sorted(p.name for p in tmp_path.iterdir()) == ["link", "r"]


@pytest.mark.filterwarnings("ignore:Glyph")
def test_odd_names_on_the_page(analysed):
    data, (analysis,) = analysed
    n = len(data.class_names)
    for start in range(0, len(ODD) - n + 1, n):
        names = tuple(ODD[start:start + n])
        named = replace(data, name=ODD[start], class_names=names)
        shown = Examples(analysis.shown.X, analysis.shown.y, class_names=names)
        page = render_html(named, [replace(analysis, shown=shown)])
        assert "<b>bold" not in page and ("&lt;b&gt;bold" in page) == ("<b>bold</b>" in (*names, named.name))
        json.dumps(summary(named, [analysis]), allow_nan=False)


@pytest.mark.filterwarnings("ignore:Glyph")
def test_odd_names_in_figures(analysed):
    data, (a,) = analysed
    for ax in (plot_classes(randn(10, 2), torch.arange(10), ODD),
               plot_measure({name: torch.rand(4) for name in ODD}),
               plot_comparison(Comparison(dict.fromkeys(ODD, a.examined)))):
        ax.figure.canvas.draw()
        if ax.get_legend(): assert len(ax.get_legend().get_texts()) == len(ODD)
    assert all(len(label_text(name).replace("\\$", "$").strip()) <= 40 for name in ODD)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Glyph")
def test_odd_names_in_a_workbook(tmp_path):
    X, y = randn(30, 2), torch.arange(30) % 3
    models = {name: build(lambda: nn.Linear(2, 3)) for name in ("a b", "a_b", "A b", *ODD[:3])}
    book = Workbook(models, (X, y), k=2, background=False, class_names=ODD[:3], feature_names=ODD[3:5])
    assert book.error.value == ""
    assert "<b>bold" not in book.numbers.value and "&lt;b&gt;bold" in book.numbers.value
    assert all("<b>bold" not in view.readout.value for view in book.explorers.values())
    for view in book.explorers.values():
        if view.title == "boundary": view.state = {"layer": 0}
        assert view.error.value == ""
    files = book.export(tmp_path)
    assert len({f.name.casefold() for f in files}) == len(files) == len(list(tmp_path.iterdir()))
    assert sum(f.suffix == ".npz" for f in files) == len(models)
    mine = sorted(files)[0]
    mine.write_text("somebody's")
    with pytest.raises(FileExistsError, match=f"holds .*{re.escape(sorted(f.name for f in files)[0])}.*name another"):
        book.export(tmp_path)
    assert mine.read_text() == "somebody's" and len(list(tmp_path.iterdir())) == len(files)
    again = book.export(tmp_path, force=True)
    assert sorted(again) == sorted(files) and mine.read_bytes() != b"somebody's"
    book.close()


def test_names_of_files():
    names = file_names([*ODD, "a b", "a_b", "A_B", "", ".", "..", "../x", "CON", "a" * 61, "a" * 62])
    assert len({n.casefold() for n in names.values()}) == len(names)
    assert all(n and len(n) < 70 and n[0] != "." and not set(n) & set('/\\:*?"<>|$&\n ') for n in names.values())


def test_what_is_true_of_the_weights(tmp_path, capsys):
    assert main([*QUICK_REPORT, "--out", str(tmp_path / "a")]) == 0
    said, page = capsys.readouterr().err, (tmp_path / "a" / "index.html").read_text()
    assert "weights intro1d-normal-0 from the zoo" in said and "intro1d-normal-0 of the zoo" in page
    numbers = json.loads((tmp_path / "a" / "summary.json").read_text())["minima"]["normal"]
    assert numbers["weights"] == "intro1d-normal-0" and "verified" in numbers
    assert main([*QUICK_REPORT, "--retrain", "--out", str(tmp_path / "b")]) == 0
    assert "trained here" in capsys.readouterr().err
    assert "Trained for this page" in (tmp_path / "b" / "index.html").read_text()


def test_a_report_of_what_there_is(analysed, tmp_path):
    "Everything that refers to a boundary may be missing; the page and the numbers go without."
    data, (a,) = analysed
    why = Missing("MyLoss has no <classes>")
    parts = dict.fromkeys(("alignment", "resolved", "measure", "structure", "margin", "outliers", "test_accuracy"), why)
    bare = replace(a, examined=replace(a.examined, paper_margin=why, **parts), scan=None, exhibits={}, tested=None,
                   name="adversarial", minimum=replace(a.minimum, kind="adversarial"))
    for analyses in ([bare], [a, bare]):
        write(data, analyses, tmp_path / "r")
        page = (tmp_path / "r" / "index.html").read_text()
        assert "MyLoss has no &lt;classes&gt;" in page and "Whole spectrum" in page or "whole spectrum" in page
    numbers = json.loads((tmp_path / "r" / "summary.json").read_text())["minima"]
    assert "MyLoss" in numbers["adversarial"]["margin"]["missing"] and numbers["normal"]["margin"]["value"] > 0
    assert numbers["adversarial"]["n_outliers"] is None
