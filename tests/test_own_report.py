"A report on networks of one's own: what a person types, what is refused, and what the page says."
import html
import json
import re
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from conftest import build, randn, seeded
from hessnb import Objective, given, top_eigenpairs, write_report
from hessnb.analysis import QUICK, Outcomes, Subject, analyse, linear_dimension, outcomes, typical_distances
from hessnb.boundary.columns import Missing
from hessnb.cli import main
from hessnb.figures import layout
from hessnb.page import chance_warning, headline, missed, number_rows, reasons, render_html
from hessnb.show.evidence import nearest_exhibit

NET = """
import csv
import torch
from torch import nn

def make():
    rows = list(csv.reader(open("flowers.csv")))[1:]
    X = torch.tensor([[float(v) for v in row[:2]] for row in rows])
    y = torch.tensor([["aster", "rose"].index(row[2]) for row in rows])
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 2))
    optimiser = torch.optim.Adam(net.parameters(), .05)
    for _ in range(150):
        optimiser.zero_grad()
        nn.functional.cross_entropy(net(X), y).backward()
        optimiser.step()
    return net

state = {"weight": torch.zeros(2)}
def broken(): return 1 / 0
def nothing(): return None
"""
FAST = dict(quick=True, k=3)


def flowers(seed=0, n=40):
    X = randn(n, 2, seed=seed) + torch.tensor([[2., 0.], [-2., 0.]])[torch.arange(n) % 2]
    return X, torch.arange(n) % 2


def table(path, seed=0):
    X, y = flowers(seed)
    lines = (f"{a:.4f},{b:.4f},{['rose', 'aster'][c]}" for (a, b), c in zip(X.tolist(), y.tolist()))
    path.write_text("petal (cm),leaf (cm),kind\n" + "\n".join(lines) + "\n")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("own")
    table(folder / "flowers.csv")
    table(folder / "test.csv", seed=1)
    (folder / "net.py").write_text(NET)
    return folder


@pytest.fixture(scope="module")
def typed(folder):
    "Beside a table and the code of a network, one command."
    command = "-m hessnb report --model net.py:make --data flowers.csv --target kind --test test.csv --quick"
    done = subprocess.run([sys.executable, *command.split()], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done


def words(page):
    "What a reader reads: text without styles, scripts and pictures."
    page = re.sub(r"<(style|script).*?</\1>", " ", page, flags=re.S)
    return html.unescape(re.sub("<[^>]*>", " ", re.sub("</?(em|b|small)>", "", page)))


def test_a_report_by_one_command(typed, folder):
    assert typed.stdout.strip() == str((folder / "report" / "index.html").resolve())
    page = words((folder / "report" / "index.html").read_text())
    numbers = json.loads((folder / "report" / "summary.json").read_text())
    found = numbers["minima"]["net"]
    assert found["train_accuracy"] == 1 and found["test_accuracy"] > .8 and numbers["dataset"] == "flowers"
    assert numbers["headline"].startswith("net: its boundary takes") and numbers["headline"] in page
    assert "petal (cm)" in page and "aster" in page and "rose" in page and "class 0" not in page
    assert "From net.py:make and flowers.csv." in page


def test_what_was_found_is_said(typed):
    said = typed.stderr
    assert "net: Sequential of 42 parameters, put into evaluation mode" in said
    assert "40 examples of shape (2,), classes in the order aster, rose; test: 40 examples" in said
    assert re.search(r"report after \d+ s", said)


@pytest.mark.parametrize("args,words", [
    ("--model net.py:make", "--data FILE.npz"),
    ("--model net.py --data flowers.csv --target kind", "FILE.py:MAKE"),
    ("--model nut.py:make --data flowers.csv --target kind", "no file nut.py"),
    ("--model net.py:makes --data flowers.csv --target kind", "did you mean 'make'?"),
    ("--model net.py:state --data flowers.csv --target kind", "state dictionary"),
    ("--model net.py:broken --data flowers.csv --target kind", "ZeroDivisionError"),
    ("--model net.py:make --data flowers.csv", "--target, one of petal (cm), leaf (cm), kind"),
    ("--model net.py:make --data flowers.csv --target kinds", "did you mean 'kind'?"),
    ("--model net.py:make --data flowers.csv --target leaf(cm)", "no column"),
    ("--model net.py:make --data flowers.csv --target kind --drop sepal", "no column 'sepal'"),
    ("--model net.py:make --data flowers.json --target kind", "no file flowers.json"),
    ("--model net.py:make --data net.py:nothing", "gives None"),
    ("--model net.py:make --data flowers.csv --target kind --class-names rose", "are not among the class names"),
    ("--model net.py:make --data flowers.csv --target kind --feature-names a b c", "expected 2 feature names"),
    ("--model net.py:make --data flowers.csv --target kind --loss crossentropy", "is not known"),
    ("--model a=net.py:make --model a=net.py:make --data flowers.csv --target kind", "twice"),
    ("--model net.py:make --data flowers.csv --target kind --k 2", "at least 3"),
    ("gauss --model net.py:make", "leave it out"), ("--data flowers.csv", "--model"),
    ("--model net.py:make --seed 1", "--seed is for the paper's networks")])
def test_refusals_are_one_line(folder, capsys, monkeypatch, args, words):
    monkeypatch.chdir(folder)
    assert main(["report", *args.split(), "--quiet", "--out", "refused"]) == 2
    found = capsys.readouterr()
    assert found.out == "" and found.err.startswith("hessnb report: ") and found.err.count("\n") == 1
    assert words in found.err and not (folder / "refused").exists() and not list(folder.glob(".refused*"))


# ---- files
def test_npz_with_text_and_names(tmp_path):
    X, y = randn(6, 2).numpy(), np.array(["b", "a", "b", "a", "a", "b"])
    np.savez(tmp_path / "d.npz", X=X, y=y, X_test=X[:2], y_test=y[:2], feature_names=np.array(["u", "v"]))
    found = given.given_data(str(tmp_path / "d.npz"))
    assert found.train[1].tolist() == [1, 0, 1, 0, 0, 1] and found.test[1].tolist() == [1, 0]
    assert found.class_names == ("a", "b") and found.feature_names == ("u", "v")
    other = given.given_data(str(tmp_path / "d.npz"), class_names=("b", "a"))
    assert other.train[1].tolist() == [0, 1, 0, 1, 1, 0]


def test_pickles_are_not_read(tmp_path):
    class Trap:
        def __reduce__(self): return (print, ("read",))
    np.savez(tmp_path / "d.npz", X=np.zeros((2, 2)), y=np.array([Trap(), Trap()], dtype=object))
    with pytest.raises(ValueError, match="which are not read"): given.given_data(str(tmp_path / "d.npz"))


def test_tables_with_and_without_pandas(tmp_path, monkeypatch):
    text = 'a,"b, c",n,kind\n1,2.5,1,x\n3,4,2,"y, z"\n5,,1,x\n'
    (tmp_path / "t.csv").write_text(text)
    def refused(name, *args): raise ImportError(name)
    both = [given._columns(tmp_path / "t.csv")]
    monkeypatch.setattr(given.importlib, "import_module", refused)
    both.append(given._columns(tmp_path / "t.csv"))
    for name in ("a", "n", "kind"): assert both[0][name].tolist() == both[1][name].tolist()
    assert np.isnan(both[0]["b, c"]).tolist() == np.isnan(both[1]["b, c"]).tolist() == [False, False, True]
    with pytest.raises(ValueError, match="b, c of .* missing"): given.given_data(str(tmp_path / "t.csv"), target="kind")
    found = given.given_data(str(tmp_path / "t.csv"), target="kind", drop=["b, c"])
    assert found.class_names == ("x", "y, z") and found.feature_names == ("a", "n")


def test_numbers_as_classes(tmp_path):
    for name, ys in {"train": (5, 7, 5), "test": (7, 7, 5), "other": (6, 7, 5)}.items():
        (tmp_path / f"{name}.csv").write_text("x,grade\n" + "".join(f"{i},{y}\n" for i, y in enumerate(ys)))
    place = lambda name: str(tmp_path / f"{name}.csv")
    found = given.given_data(place("train"), test=place("test"), target="grade")
    assert found.class_names == ("grade 5", "grade 7") and found.test[1].tolist() == [1, 1, 0]
    with pytest.raises(ValueError, match="grade 6"):
        given.given_data(place("train"), test=place("other"), target="grade")
    line = given.given_data(place("train"), target="grade", classes=False)
    assert line.class_names is None and line.train[1].is_floating_point()


def test_a_model_that_was_saved(tmp_path):
    torch.save(nn.Linear(2, 2), tmp_path / "saved.pt")
    (tmp_path / "m.py").write_text("def path(): return 'saved.pt'\ndef lost(): return 'nowhere.pt'\n")
    model, said = given.given_model(f"{tmp_path}/m.py:path")
    assert type(model) is nn.Linear and "saved.pt" in said and not model.training
    with pytest.raises(FileNotFoundError, match="nowhere.pt"): given.given_model(f"{tmp_path}/m.py:lost")


# ---- the page
def trained(X, y, C=2, steps=150):
    model = build(lambda: nn.Sequential(nn.Linear(X.shape[1], 8), nn.Tanh(), nn.Linear(8, C)))
    optimiser = torch.optim.Adam(model.parameters(), .05)
    for _ in range(steps):
        optimiser.zero_grad()
        nn.functional.cross_entropy(model(X), y).backward()
        optimiser.step()
    return model


@pytest.fixture(scope="module")
def analysis():
    X, y = flowers()
    subject = Subject("flowers", ("rose", "aster"), ("petal (cm)", "leaf (cm)"), test=flowers(seed=1))
    return subject, analyse(trained(X, y), (X, y), subject, name="net", effort=replace(QUICK, k=4))


def changed(a, name, *, dimension=None, margin=None, right=None, **examined):
    "The same analysis with other numbers."
    e = a.examined
    if dimension: examined["complexity"] = replace(e.complexity, dimension=dimension, value=round(dimension),
                                                   interval=(dimension - .4, dimension + .4))
    if margin: examined["margin"] = replace(e.margin, value=margin)
    t = a.tested if right is None else Outcomes(torch.zeros(len(right)).long(), torch.tensor(right))
    return replace(a, name=name, examined=replace(e, **examined), tested=t)


def test_headlines(analysis):
    a = analysis[1]
    good = [True] * 40
    simple, rich = changed(a, "one", dimension=8, margin=.53, right=good), changed(a, "two", dimension=14, margin=.23,
                                                                                  right=good)
    said = headline([simple, rich])
    assert said == ("<em>one</em> is simpler (8 against 14 directions) and wider (0.53 against 0.23); their test "
                    "accuracies are equal (100.0% of 40).")
    near = changed(a, "two", dimension=8.3, margin=.531, right=good[:39] + [False])
    said = headline([simple, near]).striptags()
    assert said.startswith("Which of one and two is simpler is not decided (8.0 [7.6, 8.4] and 8.3 [7.9, 8.7] boundary "
                           "directions: the intervals overlap); which of two and one is wider is not decided")
    assert said.endswith("differ by no more than chance (100.0% and 97.5% of 40).")
    bad = changed(a, "two", dimension=14, margin=.9, right=[False] * 20 + good[:20])
    said = headline([simple, bad]).striptags()
    assert "one is simpler (8 against 14 directions); two is wider (0.9 against 0.53)" in said
    assert said.endswith("on the test data one is better than two (100.0% and 50.0% of 40).")
    three = headline([simple, rich, changed(a, "three", dimension=20, margin=.1, right=good)]).striptags()
    assert "one is the simplest (8, next 14 directions) and the widest (0.53, next 0.23)" in three
    assert "<b>" not in headline([changed(a, "<b>", dimension=8), rich])


def test_a_single_network_is_not_compared(analysis):
    subject, a = analysis
    first = words(render_html(subject, [a], quick=True)).split("What the words mean")[0]
    assert not re.search("simplest|widest|simpler|wider|top left", first.replace("fewer is simpler", ""))


def test_missed_targets_stand_in_the_heading(analysis):
    subject, a = analysis
    e = a.examined
    none = replace(e.pairs, converged=torch.tensor([True, False, True, False]))
    poor = replace(changed(a, "poor", pairs=none, train_accuracy=.925, margin=.2), gain=3.)
    poor = replace(poor, examined=replace(poor.examined, margin=replace(poor.examined.margin, verified=False)))
    said = missed(poor)
    assert said == ["92.5% of the training examples predicted as labelled", "2 of 4 eigenpairs not converged",
                    "margin not confirmed on both sides",
                    "not at rest: Newton steps along its eigenvectors would lower the loss by 100% or more"]
    heading = words(re.search(r'<h2 id="network1">.*?</h2>', render_html(subject, [poor], quick=True))[0])
    assert all(text in heading for text in said)
    assert missed(replace(changed(a, "good", train_accuracy=1.), gain=.1)) == []


def test_worse_than_chance_is_said(analysis):
    subject, a = analysis
    swapped = changed(a, "net", train_accuracy=.1)
    assert chance_warning(a) == "" and "in the order of the model's outputs" in chance_warning(swapped)
    assert chance_warning(swapped)[4:] in html.unescape(render_html(subject, [swapped], quick=True))


def test_baselines(analysis):
    a = analysis[1]
    X, y = flowers()
    away = torch.cdist(X, X)
    near = away.masked_fill(torch.eye(len(X), dtype=bool), torch.inf).amin(1)
    assert a.distances.neighbours == pytest.approx(near.median().item())
    assert a.distances.smallest == pytest.approx(away[y[:, None] != y].min().item())
    many = torch.rand(60, 1, 28, 28, generator=seeded(0), dtype=torch.float64)  # where distances are taken by products
    far = typical_distances(many, torch.arange(60) % 2)
    assert far.neighbours == pytest.approx((2 * 784 / 12) ** .5, rel=.1) and far.smallest <= far.neighbours * 1.1
    some = typical_distances(X, y, n=15)
    assert some.n == 15 and some.smallest >= a.distances.smallest
    rows = {row.column.name: row.against for row in number_rows([a])}
    assert f"{near.median():.3g} apart" in rows["margin"] and "50.0%" in rows["test_accuracy"]
    assert f"{a.linear:.1f}" in rows["boundary_directions"] and "0.69" in rows["train_loss"]
    assert len(a.tested) == 40 and a.tested.accuracy == a.examined.test_accuracy


def test_a_linear_network_takes_the_directions_of_a_linear_classifier():
    X, y = flowers()
    X = (X - X.mean(0)) / X.std(0)
    net = build(lambda: nn.Linear(2, 2))
    with torch.no_grad(): net.weight.copy_(torch.tensor([[3., 0.], [-3., 0.]]))
    a = analyse(net, (X, y), Subject("line"), effort=replace(QUICK, k=3, moving=(0, 0), designed=(0, 0)))
    assert linear_dimension(a.examined.complexity, X) == pytest.approx(a.examined.complexity.dimension, rel=1e-3)


def test_the_nearest_example_and_its_boundary_point(analysis):
    a = analysis[1]
    m, rows = a.examined.margin, a.exhibits["nearest"].rows
    x, end = a.shown.X[m.nearest], m.boundary_point
    assert [row[0] for row in rows[1:]] == ["petal (cm)", "leaf (cm)"]
    assert [float(v) for v in list(zip(*rows[1:]))[1]] == pytest.approx(x.tolist(), rel=1e-3)
    assert [float(v) for v in list(zip(*rows[1:]))[2]] == pytest.approx(end.tolist(), rel=1e-3)
    assert a.examined.objective.classes(end[None]).item() == m.classes[1] != m.classes[0]
    assert len(a.exhibits["nearest"].figures) == 2


def test_features_that_change_most_come_first():
    X = randn(30, 12)
    y = (X[:, 7] > 0).long()
    a = analyse(trained(X, y), (X, y), Subject("wide"), effort=replace(QUICK, k=3, moving=(0, 0), designed=(0, 0)))
    rows = nearest_exhibit(a.examined.objective, a.shown, a.examined.margin, most=5).rows
    change = [abs(float(row[3])) for row in rows[1:6]]
    assert change == sorted(change, reverse=True) and rows[6][0].startswith("7 others, ")
    away = (a.examined.margin.boundary_point - a.shown.X[a.examined.margin.nearest]).abs()
    assert rows[1][0] == f"x{int(away.argmax()) + 1}"


def test_examples_on_either_side(analysis):
    a = analysis[1]
    cosines = a.examined.alignment.cosines[:, 0]
    rows = a.exhibits["v1"].rows
    index, said = [int(row[0]) for row in rows[1:]], [float(row[2]) for row in rows[1:]]
    assert index[0] == int(cosines.argmax()) and index[-1] == int(cosines.argmin())
    assert said == pytest.approx(cosines[index].tolist(), abs=.006)
    assert {row[1].split(",")[0] for row in rows[1:]} <= {"rose", "aster"}


def test_images():
    X = torch.rand(24, 1, 6, 6, generator=seeded(0), dtype=torch.float64)
    y = (X[:, 0, :3].mean((1, 2)) > X[:, 0, 3:].mean((1, 2))).long()
    model = nn.Sequential(nn.Flatten(), *trained(X.flatten(1), y).children())
    subject = Subject("squares", ("bottom", "top"), box=(0., 1.))
    a = analyse(model, (X, y), subject, effort=replace(QUICK, k=3, vectors=2))
    assert [len(a.exhibits[name].images) for name in ("nearest", "v1", "designed")] == [3, 8, 3]
    page = render_html(subject, [a], quick=True)
    assert "predicted as bottom" in page or "predicted as top" in page
    assert page.count("image-rendering") == 1 and "pixel" in page
    end = a.examined.margin.boundary_point
    assert (end >= 0).all() and (end <= 1).all()


class Both(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(3, 2), nn.Linear(2, 2)
    def forward(self, x, z): return self.a(x) + self.b(z)


def kinds_without_pictures():
    X, y = randn(20, 3), torch.arange(20) % 2
    tokens = torch.randint(0, 9, (20, 4), generator=seeded(0))
    bag = lambda: nn.Sequential(nn.Embedding(9, 4), nn.Flatten(), nn.Linear(16, 2))
    line = lambda: nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
    return {"regression": (build(line), (X, X[:, :1] ** 2), dict(loss="mse_loss")),
            "tokens": (build(bag), (tokens, y), dict(class_names=["noun", "verb"])),
            "several inputs": (build(Both), ((X, X[:, :2]), y), dict(class_names=["in", "out"]))}


@pytest.mark.parametrize("kind", ["regression", "tokens", "several inputs"])
def test_what_cannot_be_shown_is_said(tmp_path, kind):
    model, data, options = kinds_without_pictures()[kind]
    page = words(write_report(model, data, **options, out=tmp_path / "r", **FAST).read_text())
    assert "What this page does not show" in page and "The spectrum" in page
    numbers = json.loads((tmp_path / "r" / "summary.json").read_text())
    assert numbers["missing"] and all(why in page for _, why, _ in numbers["missing"])
    assert "missing" in numbers["minima"]["model"]["margin"]
    if kind == "regression":
        assert "The curvature of" in page and "the largest eigenvalue is" in numbers["headline"] in page
        assert "test accuracy" not in page and "boundary directions takes" not in page
    else: assert "The decision boundary" in page and options["class_names"][0] in page and "most aligned" in page


def test_loaders_and_objectives(tmp_path):
    X, y = flowers()
    model, loader = trained(X, y), torch.utils.data.DataLoader(torch.utils.data.TensorDataset(X, y), batch_size=16)
    path = write_report({"by objective": Objective(model, loader)}, out=tmp_path / "r", **FAST)
    found = json.loads((path.parent / "summary.json").read_text())["minima"]["by objective"]
    assert found["eigenvalues"] == pytest.approx(top_eigenpairs(model, 3, data=(X, y)).values.tolist(), rel=1e-5)
    assert "class 0" in path.read_text()


def test_options_that_are_unknown_or_do_not_fit(tmp_path):
    X, y = flowers()
    model = trained(X, y, steps=5)
    for error, words, options in [(TypeError, "did you mean 'class_names'", {"class_name": ["a", "b"]}),
                                  (ValueError, "1 names", {"class_names": ["a"]}),
                                  (ValueError, "at least 3", {"k": 2}),
                                  (ValueError, "expected 2 feature names", {"feature_names": ["a"]})]:
        with pytest.raises(error, match=words): write_report(model, (X, y), out=tmp_path / "r", **{**FAST, **options})
    with pytest.raises(ValueError, match="no network"): write_report({}, (X, y), out=tmp_path / "r")
    assert not list(tmp_path.iterdir())


def test_test_data_in_uneven_batches(analysis):
    objective, (X, y) = analysis[1].examined.objective, flowers(seed=1)
    whole, parts = outcomes(objective, (X, y)), outcomes(objective, [(X[:7], y[:7]), (X[7:], y[7:])])
    assert torch.equal(whole.right, parts.right) and whole.chance == .5


def test_layout_falls_back_to_the_principal_plane(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.manifold", None)
    assert layout(randn(10, 4)).names[0] == "principal axis 1"
    assert layout(randn(10, 2)) is None and layout(randn(10, 1) * torch.ones(1, 3, dtype=torch.float64)) is None


def test_designed_inputs_refuse_other_losses():
    X, y = randn(30, 2), torch.arange(30) % 3
    a = analyse(trained(X, y, C=3), (X, y), Subject("smooth"), loss=nn.CrossEntropyLoss(label_smoothing=.1),
                effort=replace(QUICK, k=3, moving=(0, 0)))
    assert isinstance(a.exhibits["designed"], Missing) and "cross-entropy" in a.exhibits["designed"].reason
    assert "Designed inputs: not shown" in words(render_html(Subject("smooth"), [a], quick=True))


def test_a_network_in_training_mode_is_refused_before_anything(tmp_path):
    model = nn.Sequential(nn.Linear(2, 4), nn.Dropout(.5), nn.Linear(4, 2)).double()
    with pytest.raises(ValueError, match=r"model.eval\(\)"): write_report(model, flowers(), out=tmp_path / "r", **FAST)
    assert not list(tmp_path.iterdir())


def test_no_reason_is_said_twice(analysis):
    a = analysis[1]
    none = Missing("no classes")
    both = [replace(a, name=n, examined=replace(a.examined, alignment=none, resolved=none)) for n in ("one", "two")]
    assert [(why, who) for _, why, who in reasons(both) if why == "no classes"] == [("no classes", "one, two")]
    assert reasons([a]) == []
