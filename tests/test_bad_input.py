"Bad input is refused before any work: what was found, what was expected, what to do; nothing of the user's changes."
import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.testing import assert_close
from torch.utils.data import DataLoader, Dataset, RandomSampler, SubsetRandomSampler, TensorDataset

from conftest import F64, blobs, build, copy, mlp, prescribed, quiet, randn, untouched
from hessnb.curvature.checks import check_mode
from hessnb.curvature.eigenpairs import dense_eigenpairs
from hessnb.curvature.example_grads import example_grads
from hessnb.curvature.hessian import HessianOperator
from hessnb.curvature.loss import as_loss
from hessnb.curvature.objective import Objective
from hessnb.curvature.top import top_eigenpairs

X, Y = blobs(40)


def refused(error, message, model, data=(X, Y), loss="cross_entropy", **kwargs):
    tensors = [t for t in (data if isinstance(data, (tuple, list)) else []) if isinstance(t, torch.Tensor)]
    models = [model] if isinstance(model, nn.Module) else []
    torch.rand(1)
    with untouched(*models, tensors=tensors), pytest.raises(error) as e: Objective(model, data, loss, **kwargs)
    assert re.search(message, str(e.value), re.S), str(e.value)


def net(*extra): return build(lambda: nn.Sequential(nn.Linear(3, 6), *extra, nn.Linear(6, 4)))


def training(model, *names):
    for name in names: model.get_submodule(name).train()
    return model


class Rnn(nn.Module):
    def __init__(self):
        super().__init__(); self.rnn, self.out = nn.GRU(3, 4, 2, dropout=.3, batch_first=True), nn.Linear(4, 4)
    def forward(self, x): return self.out(self.rnn(x[:, None])[0][:, -1])


@pytest.mark.parametrize("model, named", [
    (lambda: net(nn.BatchNorm1d(6)).train(), "'1'"), (lambda: net(nn.Dropout(.5)).train(), "'1'"),
    (lambda: training(net(nn.Dropout(.5), nn.ReLU()), "1"), "'1'"),
    (lambda: net(nn.AlphaDropout(.1)).train(), "'1'"), (lambda: net(nn.RReLU()).train(), "'1'"),
    (lambda: training(build(Rnn), "rnn"), "'rnn'"),
    (lambda: net(nn.Sequential(nn.Tanh(), nn.BatchNorm1d(6))).train(), "'1.1'"),
])
def test_training_mode(model, named):
    refused(ValueError, rf"layers in training mode.*{named}.*call model.eval\(\) first", model())


def test_batch_norm_without_statistics():
    refused(ValueError, "without running statistics mixes the examples of a batch: .'1'.; use track_running_stats=True",
            net(nn.BatchNorm1d(6, track_running_stats=False)))


@pytest.mark.parametrize("model", [mlp().train(), training(net(nn.LayerNorm(6)), "1"), training(net(nn.Tanh()), "0"),
                                   net(nn.Dropout(.5), nn.BatchNorm1d(6))])
def test_harmless_modes_are_allowed(model):
    with untouched(model), quiet(): assert Objective(model, (X, Y)).value() > 0
    check_mode(model)


class Noise(nn.Module):
    def __init__(self): super().__init__(); self.layer = nn.Linear(3, 4)
    def forward(self, x): return F.dropout(self.layer(x), .5, training=True)


def test_hidden_randomness():
    refused(RuntimeError, r"different outputs for the same input.*call model.eval\(\)", build(Noise))


class Augmented(Dataset):
    def __len__(self): return 40
    def __getitem__(self, i): return X[i] + .1 * torch.randn(3, dtype=F64), Y[i]


class OwnNoise:
    def __init__(self): self.rng = np.random.default_rng(0)
    def __iter__(self): yield X + torch.from_numpy(self.rng.normal(size=X.shape)), Y


class Fading:
    def __init__(self, n): self.left = [(X, Y)] * n
    def __iter__(self):
        while self.left: yield self.left.pop()


TENSORS = TensorDataset(X, Y)


@pytest.mark.parametrize("data, error, message", [
    (lambda: DataLoader(TENSORS, shuffle=True), RuntimeError, "the DataLoader shuffles.*build it with shuffle=False"),
    (lambda: DataLoader(TENSORS, sampler=RandomSampler(TENSORS)), RuntimeError, "shuffles"),
    (lambda: DataLoader(TENSORS, 8, sampler=SubsetRandomSampler(range(40))), RuntimeError,
     "differs from pass to pass.*fix the order"),
    (lambda: DataLoader(TENSORS, batch_sampler=torch.utils.data.BatchSampler(RandomSampler(TENSORS), 8, False)),
     RuntimeError, "differs from pass to pass"),
    (lambda: DataLoader(Augmented(), 8), RuntimeError, "random augmentation.*random transforms"),
    (lambda: Augmented(), RuntimeError, "random augmentation"),
    (OwnNoise, RuntimeError, "differs from pass to pass"),
    (lambda: Fading(1), RuntimeError, "ran dry: 1 batches in the first pass, 0 in the second; pass a list of batches"),
    (lambda: Fading(0), ValueError, "data is empty"),
    (lambda: iter([(X, Y)]), TypeError, "read only once: pass a list of batches or a DataLoader"),
    (lambda: ((X, Y) for _ in range(2)), TypeError, "read only once"),
    (lambda: zip([X], [Y]), TypeError, "read only once"), (list, ValueError, "data is empty"),
    (lambda: (X[:0], Y[:0]), ValueError, "data is empty"),
    (lambda: X, TypeError, r"data must be \(X, y\).*got Tensor"), (lambda: None, TypeError, "got NoneType"),
    (lambda: {"x": X, "y": Y}, TypeError, "got dict"),
    (lambda: "data.npz", TypeError, "got str"),
    (lambda: [X, X, X], TypeError, r"a batch must be \(inputs, target\) or a dict, got Tensor; or pass unpack="),
    (lambda: (X, X, Y), TypeError, "pass unpack="),
    (lambda: [{"a": X, "b": Y}], TypeError, r"target under one of .*'labels'.*got \['a', 'b'\]; or pass unpack="),
    (lambda: (X, Y[:-1]), ValueError, r"X has 40 examples and y has shape \(39,\)"),
    (lambda: (X, torch.tensor(1)), ValueError, r"y has shape \(\)"),
    (lambda: ((X, X[:3]), Y), ValueError, r"agree in the first dimension, got sizes \[3, 40\]"),
    (lambda: [(X[:9], Y[:8])], ValueError, r"\(8,\)"), (lambda: [(X, Y), (X[:9], Y[:8])], ValueError, r"\(8,\)"),
    (lambda: (X / 0, Y), ValueError, "data: .* of 120 values are NaN or infinite"),
    (lambda: (X.log(), Y), ValueError, "NaN or infinite"),
    (lambda: [(X, Y), (X * float("nan"), Y)], ValueError, "data: 120 of 120"),
    pytest.param(lambda: [(X.numpy(), Y.numpy()), (X.numpy() * float("nan"), Y.numpy())], ValueError,
                 "NaN or infinite"),
])
def test_data(data, error, message): refused(error, message, mlp(), data())


@pytest.mark.parametrize("labels, error, message", [
    (lambda: Y + 1, ValueError, r"labels must lie in 0..3 for 4 outputs, found \[4\]"),
    (lambda: Y - 1, ValueError, r"found \[-1\]"), (lambda: Y.int(), TypeError, r"torch.int32.*y.long\(\)"),
    (lambda: Y.to(torch.uint8), TypeError, r"torch.uint8: class indices must be int64, call y.long\(\)"),
    (lambda: Y > 0, TypeError, "torch.bool"),
    (lambda: Y.double(), TypeError,
     r"torch.float64 of shape \(40,\): give int64 class indices, or probabilities \(40, 4\)"),
    (lambda: Y[:, None], ValueError, r"shape \(40, 1\), expected \(40,\) for outputs \(40, 4\)"),
    (lambda: F.one_hot(Y, 4), ValueError, r"shape \(40, 4\), expected \(40,\)"),
    (lambda: torch.full_like(Y, -100), ValueError, "no example counts: the loss ignores every label"),
])
def test_labels(labels, error, message):
    refused(error, message, mlp(), (X, labels()))
    if "counts" in message: return
    refused(error, r"labels|in 0..3", mlp(), [(X, Y), (X, labels())])  # in a later batch
    with pytest.raises(error): example_grads(Objective(mlp(), (X, Y)), X, labels())


class Out(nn.Module):
    def __init__(self, out): super().__init__(); self.layer, self.out = nn.Linear(3, 4), out
    def forward(self, x): return self.out(self.layer(x))


@pytest.mark.parametrize("out, error, message", [
    (lambda o: o / 0, ValueError, "model outputs: 160 of 160 values are NaN or infinite"),
    (lambda o: (o, o), TypeError, r"model returned tuple: it must return a tensor or have .logits; wrap it"),
    (lambda o: 1., TypeError, "model returned float"), (lambda o: o[:, 0], ValueError,
     r"must return \(B, C\) logits for class labels, got shape \(40,\)"),
    (lambda o: o.mean(0, keepdim=True), ValueError, r"shape \(40,\), expected \(1,\)"),
    (lambda o: o.detach(), ValueError, "does not depend on any selected parameter; is the model detached"),
])
def test_outputs(out, error, message): refused(error, message, build(lambda: Out(out)))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("params", [None, "2.*"])
def test_parameters_not_finite(value, params):
    model = mlp()
    with torch.no_grad(): model[0].weight[1, 2] = value
    refused(ValueError, "parameters and buffers: 1 of 15 values are NaN or infinite; mend them", model, params=params)


def test_buffer_not_finite():
    model = net(nn.BatchNorm1d(6))
    model[1].running_mean[0] = float("nan")
    refused(ValueError, "buffers: 1 of 6", model)


def test_parameters():
    refused(ValueError, "'conv.*' matches no parameter; names are", mlp(), params="conv.*")
    refused(ValueError, "no parameters selected", mlp(), params=lambda n, p: False)
    refused(ValueError, "set requires_grad", mlp().requires_grad_(False))
    refused(TypeError, "complex128; curvature needs float32 or float64",
            build(lambda: nn.Linear(3, 4)).to(torch.complex128))
    refused(TypeError, "must be a torch.nn.Module, got function", lambda x: x)
    refused(TypeError, "dtype must be float32 or float64, got torch.float16", mlp(), dtype=torch.float16)


class IntegerWeights(nn.Module):
    def __init__(self):
        super().__init__(); self.w = nn.Parameter(torch.ones(4, 3, dtype=torch.int64), requires_grad=False)
    def forward(self, x): return F.linear(x, self.w.to(x))


def test_integer_parameters():
    refused(ValueError, "set requires_grad", IntegerWeights())
    refused(TypeError, "parameters are torch.int64", IntegerWeights(), params="*")


@pytest.mark.parametrize("loss, error, message", [
    ("crossentropy", ValueError, r"'crossentropy' is not known; give one of \['binary_cross_entropy_with_logits', "
                                 r"'causal_lm', "
                                 r"'cross_entropy', 'mse_loss', 'nll_loss', 'token_cross_entropy'\]"),
    (3, TypeError, "loss must be .* got int"), (None, TypeError, "got NoneType"),
    (lambda o, t: F.cross_entropy(o, t), ValueError,
     r"one value per example, first dimension .*got shape \(\); use reduction='none'"),
    (lambda o, t: 1., ValueError, "got float"), (lambda o, t: F.cross_entropy(o, t, reduction="none").log() / 0,
                                                 ValueError, "NaN or infinite"),
    (nn.MSELoss(), ValueError, r"MSELoss needs targets shaped like the outputs .*one_hot"),
    (nn.CrossEntropyLoss(weight=torch.tensor([1., float("nan"), 1., 1.])), ValueError, "NaN or infinite"),
    (nn.CrossEntropyLoss(weight=torch.zeros(4)), ValueError, "all their class weights are zero"),
    (nn.CrossEntropyLoss(weight=torch.ones(3)), (ValueError, RuntimeError), "4 classes.*3"),
])
def test_losses(loss, error, message): refused(error, message, mlp(), loss=loss)


def test_the_loss_given_is_not_changed():
    for loss in (nn.CrossEntropyLoss(weight=torch.ones(4), reduction="sum"), nn.MSELoss(),
                 nn.HuberLoss(reduction="sum")):
        kept = copy.deepcopy(loss)
        target = Y if isinstance(loss, nn.CrossEntropyLoss) else F.one_hot(Y, 4).double()
        Objective(mlp(), (X, target), loss).grad()
        assert loss.reduction == kept.reduction and (getattr(loss, "weight", None) is None
                                                     or loss.weight.dtype == torch.float32)


@pytest.mark.parametrize("size", [0, -1])
def test_batch_size(size): refused(ValueError, f"batch_size must be at least 1, got {size}", mlp(), batch_size=size)


def test_batch_size_for_batches():
    for data in ([(X, Y)], DataLoader(TENSORS, 8)):
        refused(ValueError, r"batch_size is for \(X, y\) or a Dataset; this data has batches of its own", mlp(), data,
                batch_size=4)


@pytest.mark.parametrize("v, error, message", [
    (X, ValueError, r"expected a vector of shape \(44,\), got \(40, 3\)"), (randn(43), ValueError, r"got \(43,\)"),
    (randn(44).float(), TypeError, r"expected a vector of torch.float64, got torch.float32: call v.to"),
    (np.ones(44), TypeError, "expected a tensor .* got ndarray"), ([1.] * 44, TypeError, "got list"),
    (torch.zeros(44, dtype=F64, device="meta"), ValueError, "expected a vector on cpu, got meta"),
    (torch.full((44,), float("nan"), dtype=F64), ValueError, "NaN or infinite")])
def test_vectors(v, error, message):
    model = mlp()
    objective = Objective(model, (X, Y))
    with untouched(model):
        for call in (objective.value, objective.named, *([objective.grad] if "NaN" not in message else [])):
            if "NaN" in message and call == objective.named: continue
            with pytest.raises(error, match=message): call(v)


@pytest.mark.parametrize("k, error, message", [(0, ValueError, "k must be between 1 and P=60, got 0"),
                                               (-1, ValueError, "got -1"), (61, ValueError, "P=60, got 61"),
                                               (3., TypeError, "k must be an int, got float"),
                                               (True, TypeError, "got bool"), ("3", TypeError, "got str"),
                                               (None, TypeError, "got NoneType")])
def test_k(k, error, message):
    op = prescribed(np.linspace(-1, 2, 60))
    with pytest.raises(error, match=message): top_eigenpairs(op, k)
    if k is not None:
        with pytest.raises(error, match=message): dense_eigenpairs(op, k)
    assert op.n_matvecs == 0


@pytest.mark.parametrize("kwargs, error, message", [
    (dict(which="largest"), ValueError, r"which must be one of \('LA', 'SA', 'LM', 'BE'\), got 'largest'"),
    (dict(tol=0), ValueError, "tol must be positive, got 0"), (dict(tol=-1.), ValueError, "tol must be positive"),
    (dict(tol=float("nan")), ValueError, "tol must be positive"), (dict(max_matvecs=2), ValueError,
     "max_matvecs=2 cannot give k=3 pairs: at least one product each"),
    (dict(basis_on="cloud"), ValueError, "basis_on must be 'auto', 'device', 'host' or 'disk', got 'cloud'"),
    (dict(basis_bytes=0), ValueError, "basis_bytes must be at least 1, got 0")])
def test_options(kwargs, error, message):
    op = prescribed(np.linspace(-1, 2, 60))
    with pytest.raises(error, match=message): top_eigenpairs(op, 3, **kwargs)
    assert op.n_matvecs == 0


def test_dense_hessian_that_would_not_fit():
    wide = HessianOperator(Objective(nn.Linear(3, 40_000), (X.float(), Y)))
    for call in (wide.to_dense, lambda: dense_eigenpairs(wide)):
        n = wide.n_matvecs
        with pytest.raises(ValueError,
                           match="160,000 x 160,000 matrix in torch.float32 takes 95.4 GiB, above max_bytes=4 GiB"):
            call()
        assert wide.n_matvecs == n


def test_all_pairs():
    op = prescribed(np.linspace(-1, 2, 60))
    with quiet(): assert_close(top_eigenpairs(op, 60).values, torch.linspace(2, -1, 60, dtype=F64), rtol=0, atol=1e-12)


@pytest.mark.parametrize("data, C", [((X[:1], Y[:1]), 4), ((X, Y * 0), 1), ((X, Y * 0), 4),
                                     ([(X[:1], Y[:1]), (X[1:], Y[1:])], 4)])
def test_small_but_sound(data, C):
    "One example, one class, a first batch of one."
    model = mlp(C=C)
    with untouched(model), quiet(): H = HessianOperator(Objective(model, data)).to_dense()
    xs, ys = data if isinstance(data, tuple) else (X, Y)
    objective = Objective(model, (xs, ys))
    dense = torch.autograd.functional.hessian(lambda t: F.cross_entropy(torch.func.functional_call(model,
            objective.named(t), xs), ys), objective.theta)
    assert_close(H, dense, rtol=1e-10, atol=1e-14)


def test_inputs_of_other_precision_are_converted():
    expected = Objective(mlp(), (X.half().double(), Y)).value()
    assert Objective(mlp(), (X.half(), Y)).value() == expected and Objective(mlp(), [(X.half(), Y)]).value() == expected


class TestWhatAUserWouldExpect:
    "Found by trying; each is a question of a clear message or a silent wrong number."

    @pytest.mark.filterwarnings("ignore:Using a target size")
    @pytest.mark.parametrize("loss", [nn.HuberLoss(), nn.L1Loss(), lambda o, t: (o - t) ** 2])
    def test_broadcasting_loss(self, loss):
        with pytest.raises(ValueError, match="per example"): Objective(mlp(C=1), (X, Y.double()), loss)

    def test_lengths_differ_in_a_batch(self):
        with pytest.raises(ValueError, match="first dimension"):
            Objective(mlp(C=1), [(X, Y[:1].double())], lambda o, t: (o[:, 0] - t) ** 2)

    def test_subclass_of_cross_entropy(self):
        class Focal(nn.CrossEntropyLoss):
            def forward(self, o, t): return F.cross_entropy(o, t, reduction="none").square().mean()
        with pytest.raises(ValueError, match="one value per example"): Objective(mlp(), (X, Y), Focal())

    def test_loss_is_additive_where_it_is_allowed(self):
        class Plain(nn.CrossEntropyLoss): pass
        assert Objective(mlp(), (X, Y), Plain()).value() == Objective(mlp(), (X, Y)).value()

    @pytest.mark.parametrize("kind", ["model", "recurrent over the batch", "loss"])
    def test_mixing(self, kind):
        class Centred(nn.Module):
            def __init__(self): super().__init__(); self.layer = nn.Linear(3, 4)
            def forward(self, x): return self.layer(x - x.mean(0))
        class Recurrent(nn.Module):
            def __init__(self):
                super().__init__(); self.rnn, self.out = nn.GRU(3, 4), nn.Linear(4, 4)  # batch_first forgotten
            def forward(self, x): return self.out(self.rnn(x)[0][:, -1])
        model = {"model": build(Centred), "recurrent over the batch": build(Recurrent), "loss": mlp()}[kind]
        data = (randn(40, 5, 3), Y) if "recurrent" in kind else (X, Y)
        loss = (lambda o, t: (o @ o.T).sum(1)) if kind == "loss" else "cross_entropy"
        with pytest.raises((ValueError, RuntimeError), match="mixes|depends on the other examples"):
            Objective(model, data, loss)

    @pytest.mark.parametrize("data", [(X, Y.tolist()), (X.tolist(), Y.tolist()), (X.tolist(), Y)])
    def test_lists(self, data):
        "As tensors, or refused with a word on what to do."
        try: value = Objective(mlp(), data).value()
        except (TypeError, ValueError) as e:
            assert "torch.as_tensor" in str(e) or "tensor" in str(e) and "list" in str(e)
        else: assert value == Objective(mlp(), (X, Y)).value()

    def test_lists_elsewhere(self):
        objective = Objective(mlp(), (X, Y))
        assert_close(objective.predict(X.tolist()), objective.predict(X))
        assert_close(example_grads(objective, X, Y.tolist()), example_grads(objective, X, Y))

    @pytest.mark.parametrize("extra", ["a.png", None])
    def test_metadata_in_a_batch(self, extra):
        "What no model computes with is left out, as a column of text is."
        with_it, without = (Objective(mlp(), [{"input": X, "labels": Y, **more}]) for more in ({"path": extra}, {}))
        assert with_it.value() == without.value()

    @pytest.mark.parametrize("weight", [[1., -1., 3., 1.], [-1.] * 4])
    def test_negative_class_weights(self, weight):
        with pytest.raises(ValueError, match="negative"):
            Objective(mlp(), (X, Y), nn.CrossEntropyLoss(weight=torch.tensor(weight)))

    def test_numpy_k(self):
        assert len(top_eigenpairs(prescribed(np.linspace(-1, 2, 60)), np.int64(3))) == 3

    @pytest.mark.parametrize("tol", [1., 10., float("inf")])
    def test_huge_tol(self, tol):
        with pytest.raises(ValueError, match="tol must"): top_eigenpairs(prescribed(np.linspace(-1, 2, 60)), 3, tol=tol)

    @pytest.mark.parametrize("thing", [torch.eye(60), np.eye(60), mlp()])
    @pytest.mark.parametrize("call", [lambda op: top_eigenpairs(op, 3), lambda op: top_eigenpairs(op, 30),
                                      dense_eigenpairs])
    def test_not_an_operator(self, thing, call):
        with pytest.raises(TypeError, match="MatrixOperator|HessianOperator"): call(thing)

    def test_batch_size_zero_for_a_dataset(self):
        class Plain(Dataset):
            def __len__(self): return 40
            def __getitem__(self, i): return X[i], Y[i]
        with pytest.raises(ValueError, match="batch_size must be at least 1"): Objective(mlp(), Plain(), batch_size=0)

    def test_drop_last(self):
        with pytest.warns(UserWarning, match="drop_last"): Objective(mlp(), DataLoader(TENSORS, 7, drop_last=True))

    def test_nan_vector(self):
        objective = Objective(mlp(), (X, Y))
        with pytest.raises(ValueError, match="NaN or infinite"): objective.grad(objective.theta * float("nan"))

    def test_autocast(self):
        expected = Objective(mlp().float(), (X, Y)).grad()
        with torch.autocast("cpu", dtype=torch.bfloat16): grad = Objective(mlp().float(), (X, Y)).grad()
        assert_close(grad, expected)

    @pytest.mark.parametrize("call", ["objective", "dense"])
    def test_warnings_point_at_the_caller(self, call):
        class Idle(nn.Module):
            def __init__(self): super().__init__(); self.used, self.idle = nn.Linear(3, 4), nn.Linear(3, 4)
            def forward(self, x): return self.used(x)
        model, op = build(Idle), prescribed(np.linspace(-1, 2, 60), dtype=torch.float32)
        with pytest.warns(UserWarning) as caught:
            if call == "objective": Objective(model, (X, Y))
            else: dense_eigenpairs(op, tol=1e-9)
        assert caught[0].filename == __file__

    def test_dense_products_not_finite(self):
        op = prescribed(np.linspace(-1, 2, 60))
        op.A = op.A * float("nan")
        with pytest.raises(ValueError, match="NaN or infinite"): dense_eigenpairs(op)

    def test_losses_by_name_and_function(self):
        assert as_loss("mse_loss").name == "MSELoss" and as_loss(F.nll_loss).logits(torch.ones(2, 3)).shape == (2, 3)
