"Data frames and estimators go in, data frames come out."
import os
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch
from test_callbacks import START, python_with
from torch import nn

from conftest import F64, HERE, blobs, mlp, randn
from hessnb import Objective, align, compare_minima, examine, layer_eigenpairs, top_eigenpairs
from hessnb.boundary.probe import eigenvector_table
from hessnb.curvature.estimators import inside, is_estimator, open_estimator
from hessnb.curvature.tables import as_array
from hessnb.training.records import Record, Table

pd = pytest.importorskip("pandas")
pipeline, preprocessing = (pytest.importorskip(f"sklearn.{name}") for name in ("pipeline", "preprocessing"))
X, y = blobs()
FRAME, LABELS = pd.DataFrame(X.numpy(), columns=["a", "b", "c"]), pd.Series(y.numpy(), index=range(40, 0, -1))


def other_types(frame):
    "The same numbers in columns of other types."
    yield "float32 beside float64", frame.astype({"a": "float32"}).astype({"a": "float64"})
    yield "nullable", frame.convert_dtypes()
    yield "sparse", frame.astype(pd.SparseDtype("float", 0.))
    yield "an index of its own", frame.set_index(frame.index[::-1])


class TestTables:
    def test_a_frame_is_its_array(self):
        model, expected = mlp(), Objective(mlp(), (X, y)).value()
        for name, frame in other_types(FRAME):
            objective = Objective(model, (frame, LABELS))
            if "float32" not in name: assert objective.value() == expected, name
            V = torch.ones(1, objective.n_params, dtype=F64)
            torch.testing.assert_close(align(objective, frame, V).cosines, align(objective, X, V).cosines)

    def test_truth_values_and_whole_numbers_beside_others(self):
        mixed = FRAME.assign(b=FRAME.b > 0, c=(3 * FRAME.c).astype(int))
        assert as_array(mixed).dtype == np.float64 and as_array(mixed[["b"]]).dtype == np.float64
        expected = np.stack([FRAME.a, FRAME.b > 0, (3 * FRAME.c).astype(int)], 1)
        np.testing.assert_array_equal(as_array(mixed), expected)
        assert Objective(mlp(), (mixed, LABELS)).value() == Objective(mlp(), (torch.tensor(expected), y)).value()
        assert as_array(FRAME.astype(int)).dtype.kind == "i"  # perhaps of an embedding

    @pytest.mark.parametrize("change,error,said", [
        (dict(b="u"), TypeError, r"column 'b' of the table holds no numbers \('u'\)"),
        (dict(a=pd.Categorical(["u", "v"] * 20), c="w"), TypeError, "columns 'a', 'c' of the table hold no numbers"),
        (dict(b=pd.Timestamp("2020-02-02")), TypeError, "'b'.*2020-02-02"),
        (dict(c=[np.nan] + [1.] * 39), ValueError, "column 'c' of the table: values are missing"),
        (dict(c=pd.array([None] + [1] * 39, dtype="Int64")), ValueError, "'c' of the table: values are missing")])
    def test_columns_that_are_no_inputs_are_named(self, change, error, said):
        objective = Objective(mlp(), (X, y))
        with pytest.raises(error, match=said): Objective(mlp(), (FRAME.assign(**change), LABELS))
        with pytest.raises(error, match=said): objective.predict(FRAME.assign(**change))

    @pytest.mark.parametrize("labels", [LABELS.map(str), LABELS.map(str).astype("category"), y.numpy().astype(str)])
    def test_labels_in_words(self, labels):
        with pytest.raises(TypeError, match=r"holds no numbers \('0', '1', '2', ...\).*np.unique"):
            Objective(mlp(), (X, labels))

    def test_whole_numbers_for_a_layer_of_floats(self):
        for whole in (FRAME.astype(int), FRAME.astype(int).to_numpy(), X.long()):
            with pytest.raises(TypeError, match=r"whole numbers.*astype\('float32'\)"): Objective(mlp(), (whole, y))

    def test_sparse_matrices(self):
        sparse = pytest.importorskip("scipy.sparse")
        for kind in (sparse.csr_matrix, sparse.coo_array):
            assert Objective(mlp(), (kind(X.numpy()), y)).value() == Objective(mlp(), (X, y)).value()


class Searched:
    "A finished search over estimators."
    def __init__(self, best): self.best_estimator_ = best
    def fit(self, X, y): return self
    def get_params(self): return {}


class TestEstimators:
    def made(self):
        "A pipeline that scales and then asks a network, and the same by hand."
        frame = 7 + 3 * FRAME
        scaler, model = preprocessing.StandardScaler().fit(frame), mlp()
        whole = pipeline.Pipeline([("scale", scaler), ("net", model)])
        return whole, frame, model, torch.tensor(scaler.transform(frame))

    def test_a_pipeline_is_its_module_behind_its_transformers(self):
        whole, frame, model, scaled = self.made()
        for estimator in (whole, Searched(whole)):
            objective, expected = Objective(estimator, (frame, LABELS)), Objective(model, (scaled, y))
            assert objective.model is model and objective.value() == expected.value()
            torch.testing.assert_close(objective.predict(frame), expected.predict(scaled))
            torch.testing.assert_close(objective.predict(scaled), expected.predict(scaled))  # already scaled
            V = randn(2, objective.n_params)
            torch.testing.assert_close(align(objective, frame, V).cosines, align(expected, scaled, V).cosines)

    def test_everything_that_takes_a_model_takes_it(self):
        whole, frame, model, scaled = self.made()
        expected = top_eigenpairs(model, 2, data=(scaled, y)).values
        torch.testing.assert_close(top_eigenpairs(whole, 2, data=(frame, LABELS)).values, expected)
        quick = dict(k=3, pairs=3, n_candidates=1)
        compared = compare_minima({"a": whole}, (frame, LABELS), test=(frame, LABELS), **quick)
        alone = examine(whole, (frame, LABELS), test=(frame, LABELS), **quick)
        assert alone.test_accuracy == alone.train_accuracy == compared.to_frame().loc["a", "test_accuracy"]

    def test_what_is_no_network(self):
        from sklearn.linear_model import LogisticRegression
        assert not is_estimator(mlp()) and not is_estimator(LogisticRegression) and is_estimator(LogisticRegression())
        with pytest.raises(TypeError, match="LogisticRegression holds no torch module"):
            Objective(LogisticRegression().fit(X, y), (X, y))
        whole, frame, *_ = self.made()
        with pytest.raises(TypeError, match=r"data of an estimator is \(X, y\)"):
            Objective(whole, [(X, y), (X, y), (X, y)])

    def test_a_module_left_in_training_mode_is_looked_at_in_evaluation_mode(self):
        model = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 4)).train()
        opened = open_estimator(pipeline.Pipeline([("net", model)]))
        assert model.training and not any(m.training for m in opened.model.modules()) and opened.transform is None
        assert inside(pipeline.Pipeline([("net", model)]), (X, y), "mse")[2] == "mse"


SKORCH = """
import numpy as np, skorch
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from hessnb import Objective, top_eigenpairs
X, y = X.numpy(), y.numpy()
settings = dict(max_epochs=3, batch_size=16, lr=.1, train_split=None, verbose=0)

def softmaxed(): return nn.Sequential(net(), nn.Softmax(1))

fitted = make_pipeline(StandardScaler(), skorch.NeuralNetClassifier(softmaxed, **settings)).fit(X, y)
assert fitted[-1].module_.training
o = Objective(fitted, (X, y), dtype=torch.float64)
p = np.log(fitted.predict_proba(X)[range(len(y)), y].astype(float))
assert abs(o.value() + p.mean()) < 1e-5, (o.value(), -p.mean())
assert (o.classes(X).numpy() == fitted.predict(X)).all()
settings |= dict(criterion=nn.CrossEntropyLoss, criterion__label_smoothing=.1)
scores = skorch.NeuralNetClassifier(net, **settings).fit(X, y)
o = Objective(scores, (X, y))
with torch.no_grad(): expected = nn.CrossEntropyLoss(label_smoothing=.1)(
    scores.forward(X), torch.tensor(y)).item()
assert abs(o.value() - expected) < 1e-5, (o.value(), expected)
pairs = top_eigenpairs(scores, 2, data=(X, y), tol=1e-3)
assert pairs.converged.all()
try: Objective(skorch.NeuralNetClassifier(net), (X, y))
except ValueError as e: assert "not fitted" in str(e)
else: raise AssertionError("an estimator that was not fitted was taken")
"""


def test_skorch(tmp_path):
    python = python_with("skorch")
    if python is None: pytest.skip("skorch is not installed, nor in HESSNB_CALLBACKS_PYTHON")
    file = tmp_path / "script.py"
    file.write_text(textwrap.dedent(START + SKORCH))
    found = subprocess.run([python, file], env={**os.environ, "PYTHONPATH": str(HERE.parent)}, capture_output=True,
                           text=True, cwd=tmp_path, timeout=300)
    assert found.returncode == 0, found.stdout[-2000:] + found.stderr[-4000:]


class TestFrames:
    def test_eigenpairs(self):
        objective = Objective(mlp(), (X, y))
        pairs = top_eigenpairs(objective, 3)
        frame = pairs.to_frame()
        assert list(frame.index) == [1, 2, 3] and frame.eigenvalue.tolist() == pairs.values.tolist()
        assert frame.converged.dtype == bool and frame.relative_residual.tolist() == pairs.relative_residuals.tolist()
        table = eigenvector_table(objective, X, pairs).to_frame()
        assert table.eigenvalue.tolist() == pairs.values.tolist() and len(table.examples.iloc[0]) > 0
        layers = layer_eigenpairs(objective, 2)
        assert list(layers.to_frame().index) == list(layers.names)

    def test_records(self):
        frame = Table([Record(0, {"loss": 2.}), Record(5, {"loss": 1., "accuracy": .5})]).to_frame()
        assert list(frame.index) == [0, 5] and frame.loc[5, "accuracy"] == .5 and np.isnan(frame.loc[0, "accuracy"])
        assert frame.index.name == "step" and Table().to_frame().empty

    def test_without_pandas(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "pandas", None)
        with pytest.raises(ImportError, match="pip install pandas"): Table([Record(0, {"loss": 2.})]).to_frame()
