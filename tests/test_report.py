"The command: what it writes, what it refuses, and what an interruption leaves."
import html
import json
import re
import signal
import subprocess
import sys
import time

import pytest

from hessnb import report as report_module
from hessnb.cli import DATA_SETS, main

KEYS = {"n_params", "train_accuracy", "test_accuracy", "train_loss", "eigenvalues", "residuals", "converged",
        "n_matvecs", "trace", "n_outliers", "measure", "margin", "effective_directions", "density", "class_structure",
        "outliers", "most_negative", "boundary_complexity"}


def run(*args): return main(["report", *args, "--quiet"])


def check_report(folder, dataset, kinds, k):
    text = (folder / "summary.json").read_text()
    numbers = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert numbers["dataset"] == dataset and list(numbers["minima"]) == kinds
    for m in numbers["minima"].values():
        assert KEYS <= set(m) and {"value", "spread"} <= set(m["margin"])
        assert {"value", "count", "threshold", "reduce", "certified"} <= set(m["measure"])
        assert len(m["eigenvalues"]) == len(m["residuals"]) == len(m["converged"]) == k
        assert m["eigenvalues"] == sorted(m["eigenvalues"], reverse=True) and m["train_accuracy"] == 1
        for value, residual, ok in zip(m["eigenvalues"], m["residuals"], m["converged"]):
            assert not ok or residual <= 1e-6 * abs(value) * (1 + 1e-9)
        assert m["measure"]["count"] / m["n_params"] == pytest.approx(m["measure"]["value"])
    page = (folder / "index.html").read_text()
    assert not re.search(r"""(src|href)=["'](?!data:image|https://arxiv\.org|#)""", page), "not self-contained"
    assert "nan" not in re.sub(r"base64,[^\"]*|<script.*?</script>", "", page, flags=re.S).lower().replace("&nan", "")
    assert all(kind.replace("_", "-") in page for kind in kinds)
    check_verdict(page, numbers)
    return page


def check_verdict(page, numbers):
    "The first line is the verdict and fits the numbers; of one network nothing is said to be simple or wide."
    said = re.sub("<.*?>", "", html.unescape(re.search(r'<p class="verdict">(.*?)</p>', page)[1]))
    assert said == numbers["headline"] and page.index('class="verdict"') < page.index("<h2")
    first = page[:page.index('id="words"')]
    if len(numbers["minima"]) == 1:
        assert numbers["verdict"] == "" and not re.search("simplest|widest|is wider|top left", first)
        return
    for m in numbers["minima"].values():
        c = m["boundary_complexity"]
        low, high = c["interval"]
        assert low <= c["dimension"] <= high and c["n_points"] > 4 and len(c["directions"]) == c["value"]
        assert f"take {c['dimension']:.1f} directions (95% interval {low:.1f} to {high:.1f}" in page
        assert m["columns"]["boundary_low"] == low and m["columns"]["boundary_high"] == high
        assert m["baselines"]["linear_directions"] > 0 and m["baselines"]["neighbour_distance"] > 0
    titles = ["boundary directions", "margin", "effective directions"]
    places = [page.index(f"<b>{title}</b>") for title in titles]
    assert places == sorted(places)


@pytest.mark.parametrize("dataset,kinds,k", [
    pytest.param("gauss", ["normal", "large_norm"], 10, marks=pytest.mark.slow), ("intro1d", ["normal"], 4),
    ("iris", ["normal"], 6)])
def test_report(tmp_path, dataset, kinds, k, capsys):
    assert run(dataset, "--minima", *kinds, "--k", str(k), "--quick", "--out", str(tmp_path / "r")) == 0
    assert capsys.readouterr().out.strip() == str((tmp_path / "r" / "index.html").resolve())
    page = check_report(tmp_path / "r", dataset, kinds, k)
    if len(kinds) > 1: assert re.search(r"<em>normal</em> is simpler \(4 .*\) and wider \(0\.36\d against", page)
    assert ("principal plane" in page) == (dataset == "iris")
    assert sorted(p.name for p in (tmp_path / "r").iterdir()) == ["index.html", "summary.json"]


@pytest.mark.slow
@pytest.mark.parametrize("dataset,kinds", [("checkerboard", ["normal", "noisy_init", "adversarial"]),
                                           ("mnist017", ["normal", "adversarial"])])
def test_report_slow(tmp_path, dataset, kinds):
    assert run(dataset, "--minima", *kinds, "--out", str(tmp_path / "r")) == 0
    assert "t-SNE" in check_report(tmp_path / "r", dataset, kinds, 25) or dataset == "checkerboard"


def test_refuses_before_any_work(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(report_module, "find_minimum", lambda *a, **k: pytest.fail("work was spent"))
    (tmp_path / "keep.txt").write_text("mine")
    assert run("gauss", "--out", str(tmp_path)) == 2
    assert "not empty" in capsys.readouterr().err and [p.name for p in tmp_path.iterdir()] == ["keep.txt"]
    assert run("gauss", "--out", str(tmp_path / "keep.txt")) == 2
    assert run("gauss", "--minima", "normal", "noisy_init", "--out", str(tmp_path / "a")) == 2
    assert "checkerboard" in capsys.readouterr().err
    assert run("gauss", "--k", "0", "--out", str(tmp_path / "a")) == 2
    assert not (tmp_path / "a").exists()
    for bad in [["nosuchset"], ["gauss", "--minima", "wild"]]:
        with pytest.raises(SystemExit) as stop: run(*bad)
        assert stop.value.code == 2
    assert run("gauss", "--minima", "normal", "normal", "--out", str(tmp_path / "a")) == 2
    assert "twice" in capsys.readouterr().err


@pytest.mark.parametrize("curvature,words", [("ggn", "Gauss-Newton matrix"), ("fisher", "Fisher matrix")])
def test_another_curvature(tmp_path, curvature, words):
    out = tmp_path / "r"
    assert run("intro1d", "--minima", "normal", "--k", "4", "--quick", "--curvature", curvature, "--out", str(out)) == 0
    numbers = json.loads((out / "summary.json").read_text())
    assert numbers["curvature"] == curvature and min(numbers["minima"]["normal"]["eigenvalues"]) > 0
    page = (out / "index.html").read_text()
    assert f"seen by the {words}" in page and "Hessian" not in page


def test_without_a_command_it_helps(capsys):
    assert main([]) == 0
    out = capsys.readouterr().out
    assert "usage: hessnb" in out and "report" in out and "lab" in out
    assert all(re.search(rf"^  {name} +\w", out, flags=re.M) for name in DATA_SETS)


@pytest.mark.parametrize("command,options", [("report", ["--minima", "--k", "--curvature", "--out", "--seed", "--dtype",
                                                         "--force", "--quiet", "--quick", "--model", "--data",
                                                         "--target", "--class-names"]),
                                             ("lab", ["--force", "--copy-only"])])
def test_each_command_has_its_own_help(command, options, capsys):
    with pytest.raises(SystemExit) as stop: main([command, "--help"])
    assert stop.value.code == 0
    out = capsys.readouterr().out
    assert f"usage: hessnb {command}" in out and all(option in out for option in options) and "default:" in out


def test_what_can_be_mended_is_one_line_on_stderr(tmp_path, capsys):
    (tmp_path / "keep.txt").write_text("mine")
    assert run("gauss", "--out", str(tmp_path)) == 2
    found = capsys.readouterr()
    assert found.out == "" and found.err.startswith("hessnb report: ") and found.err.count("\n") == 1


def test_force_replaces_the_report_and_nothing_else(tmp_path):
    out = tmp_path / "r"
    out.mkdir()
    (out / "index.html").write_text("old")
    (out / "keep.txt").write_text("mine")
    assert run("intro1d", "--minima", "normal", "--k", "3", "--quick", "--out", str(out), "--force") == 0
    assert (out / "keep.txt").read_text() == "mine" and "old" != (out / "index.html").read_text()


def test_ctrl_c_leaves_nothing(tmp_path):
    out = tmp_path / "r"
    listen = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)  # the background of a shell ignores the signal
    command = [sys.executable, "-m", "hessnb", "report", "gauss", "--out", str(out)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, preexec_fn=listen)
    for line in process.stderr:
        if "training" in line: break
    time.sleep(.5)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=200)
    # Python reports the second if the signal lands inside an import; a shell shows 130 for both
    assert process.returncode in (130, -signal.SIGINT)
    assert "no report was written" in err
    assert not out.exists()
