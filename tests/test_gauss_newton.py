"Gauss-Newton and Fisher matrices against dense J^T M J, for every kind of model, loss and batch that the tests know."
import pytest
import torch
import torch.nn.functional as F
from test_operators import NoSecond, OnceNet
from test_replay import NETWORKS, layers, normed
from torch import nn
from torch.testing import assert_close

from conftest import F64, blobs, build, mlp, quiet, randn, seeded, untouched
from hessnb.curvature.density import spectral_density
from hessnb.curvature.gauss_newton import FisherOperator, GGNOperator
from hessnb.curvature.hessian import HessianOperator
from hessnb.curvature.loss import Loss
from hessnb.curvature.objective import Objective
from hessnb.curvature.top import top_eigenpairs
from hessnb.curvature.trace import trace

X, Y = blobs(45)
WEIGHT = torch.tensor([1., 2., 5., .5], dtype=F64)
UNEVEN = (20, 20, 5)


def cut(X, y, sizes=UNEVEN): return list(zip(X.split(sizes), y.split(sizes)))


class Tokens(nn.Module):
    "Scores `(B, C, T)` for every token of a sequence."
    def __init__(self): super().__init__(); self.first, self.out = nn.Linear(3, 6), nn.Linear(6, 4)
    def forward(self, x): return self.out(self.first(x).tanh()).movedim(-1, 1)


class Heads(nn.Module):
    "Attention, as torch has it."
    def __init__(self):
        super().__init__()
        self.attention, self.out = nn.MultiheadAttention(8, 2, batch_first=True), nn.Linear(8, 4)
    def forward(self, x): return self.out(self.attention(x, x, x, need_weights=False)[0].mean(1))


class LogSoftmax(nn.Module):
    def __init__(self): super().__init__(); self.layer = nn.Linear(3, 4)
    def forward(self, x): return self.layer(x).log_softmax(1)


def used():
    "Batch norm with statistics that are not those of a fresh one."
    model = layers(normed)()
    model[1].running_mean.add_(.3), model[1].running_var.mul_(2)
    return model


def one_logit(): return build(lambda: nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 1)))


SEQUENCES, LABELS = randn(12, 5, 3), torch.arange(60).reshape(12, 5) % 4
HOLES = torch.where(LABELS == 2, -100, LABELS)
SOFT = randn(45, 4, seed=5).softmax(1)
BITS = (torch.arange(45) % 2).to(F64)[:, None]
LSTM = build(lambda: nn.LSTM(3, 4, batch_first=True))


class Last(nn.Module):
    def __init__(self): super().__init__(); self.rnn, self.out = LSTM, nn.Linear(4, 4).double()
    def forward(self, x): return self.out(self.rnn(x)[0][:, -1])


MODELS = {name: (make, inputs, torch.arange(len(inputs)) % 4, "cross_entropy", 7)
          for name, (make, inputs) in NETWORKS.items() if name != "residual"}
MODELS |= {
    "class weights": (mlp, X, Y, nn.CrossEntropyLoss(weight=WEIGHT), UNEVEN),
    "weights and smoothing": (mlp, X, Y, nn.CrossEntropyLoss(weight=WEIGHT, label_smoothing=.2), UNEVEN),
    "ignored": (mlp, X, torch.where(Y == 1, -100, Y), nn.CrossEntropyLoss(weight=WEIGHT), UNEVEN),
    "soft labels": (mlp, X, SOFT, nn.CrossEntropyLoss(weight=WEIGHT, label_smoothing=.1), UNEVEN),
    "tokens": (lambda: build(Tokens), SEQUENCES, HOLES, nn.CrossEntropyLoss(weight=WEIGHT, label_smoothing=.1), 5),
    "soft tokens": (lambda: build(Tokens), SEQUENCES, randn(12, 4, 5, seed=6).softmax(1), "cross_entropy", 5),
    "as many tokens as classes": (lambda: build(Tokens), SEQUENCES[:, :4], LABELS[:, :4], "cross_entropy", 5),
    "log-probabilities": (lambda: build(LogSoftmax), X, Y, nn.NLLLoss(weight=WEIGHT), UNEVEN),
    "squared errors": (mlp, X, randn(45, 4, seed=7), "mse_loss", UNEVEN),
    "squared errors of tokens": (lambda: build(Tokens), SEQUENCES, randn(12, 4, 5, seed=8), "mse_loss", 5),
    "one logit": (one_logit, X, BITS, nn.BCEWithLogitsLoss(pos_weight=torch.tensor(3.)), UNEVEN),
    "several labels": (mlp, X, (SOFT > .25).to(F64), nn.BCEWithLogitsLoss(weight=WEIGHT), UNEVEN),
    "a callable": (mlp, X, Y, lambda out, t: F.cross_entropy(out, t, reduction="none") ** 2, UNEVEN),
    "statistics of batch norm": (used, X, Y, "cross_entropy", UNEVEN),
    "multi-head attention": (lambda: build(Heads), randn(12, 6, 8), torch.arange(12) % 4, "cross_entropy", 5),
    "LSTM": (lambda: build(Last), SEQUENCES, torch.arange(12) % 4, "cross_entropy", 5),
}
LIKELIHOODS = [name for name in MODELS if name != "a callable"]


def objective_of(name, **kwargs):
    make, inputs, target, loss, sizes = MODELS[name]
    return Objective(make(), cut(inputs, target, sizes), loss, **kwargs)


def jacobians(objective, inputs):
    "One backward pass for each number of the outputs: `(B, outputs, P)`."
    leaves = list(objective.leaves().values())
    out = objective.outputs(dict(zip(objective.params, leaves)), inputs)
    options = dict(retain_graph=True, allow_unused=True, materialize_grads=True)
    grad = lambda z: torch.cat([g.reshape(-1) for g in torch.autograd.grad(z, leaves, **options)])
    return torch.stack([torch.stack([grad(z) for z in row.reshape(-1)]) for row in out]), out.detach()


def rows_of_ggn(objective, V, own=None):
    "J^T H J with autograd's own second derivative of the loss, times rows."
    total, n, own = torch.zeros_like(V), 0, own or objective.loss.total
    for inputs, target in objective.micro_batches():
        J, out = jacobians(objective, inputs)
        n = n + objective.loss.normaliser(out, target)
        for i in range(len(out)):
            loss = lambda z: own(z.reshape(out[i:i + 1].shape), target[i:i + 1])
            total += V @ J[i].T @ torch.autograd.functional.hessian(loss, out[i].reshape(-1)) @ J[i]
    return total / n


def dense_ggn(objective): return rows_of_ggn(objective, torch.eye(objective.n_params, dtype=F64))


@pytest.mark.parametrize("name", MODELS)
def test_gauss_newton_is_exact(name):
    "In every way to compute it: the whole matrix of a small model, some products with a larger one."
    objective = objective_of(name)
    V = torch.eye(objective.n_params, dtype=F64) if objective.n_params < 300 else randn(4, objective.n_params)
    as_scores = lambda z, t: F.cross_entropy(z, t, WEIGHT, reduction="sum")  # log-probabilities are taken for scores
    expected = rows_of_ggn(objective, V, as_scores if name == "log-probabilities" else None)
    for kwargs in (dict(product="graph"), dict(product="replay"), dict(memory_budget=0)):
        with untouched(objective.model), quiet(): rows = GGNOperator(objective, **kwargs).matmat(V)
        assert (rows - expected).norm() <= 1e-10 * expected.norm(), kwargs
    if name != "a callable": assert ((rows * V).sum(1) >= -1e-12).all()  # positive semidefinite


def dense_fisher(objective, scores):
    "From the gradients of labels, one by one: `scores` gives for outputs and target one `s` for each label."
    total, n = 0, 0
    for inputs, target in objective.micro_batches():
        J, out = jacobians(objective, inputs)
        n = n + objective.loss.normaliser(out, target)
        for i in range(len(out)):
            for s in scores(out[i:i + 1], target[i:i + 1]):
                g = s.reshape(-1) @ J[i]
                total = total + torch.outer(g, g)
    return total / n


def class_scores(weight=None):
    "The gradient of each label's own term, whose outer product counts as often as the label does."
    def scores(out, target):
        positions = [()] if out.ndim == 2 else [(t,) for t in range(out.shape[2])]
        for at in positions:
            label, z = target[(0, *at)], out.clone().requires_grad_()
            if label == -100: continue
            w = 1. if weight is None else weight[label]
            yield w ** .5 * torch.autograd.grad(F.cross_entropy(z[(slice(None), slice(None), *at)], label[None]), z)[0]
    return scores


def whole_scores(loss):
    "The gradient of an example's own loss."
    def scores(out, target):
        z = out.clone().requires_grad_()
        yield torch.autograd.grad(loss(z, target), z)[0]
    return scores


EMPIRICAL = {
    "dense": class_scores(), "recurrent": class_scores(), "encoder": class_scores(), "LSTM": class_scores(),
    "multi-head attention": class_scores(),
    "class weights": class_scores(WEIGHT), "ignored": class_scores(WEIGHT), "as many tokens as classes": class_scores(),
    "statistics of batch norm": class_scores(), "squared errors": whole_scores(lambda z, t: (z - t).square().sum()),
    "squared errors of tokens": whole_scores(lambda z, t: (z - t).square().sum()),
}


@pytest.mark.parametrize("name", EMPIRICAL)
def test_empirical_fisher_is_exact(name):
    objective = objective_of(name)
    V = randn(5, objective.n_params)
    expected = V @ dense_fisher(objective, EMPIRICAL[name])
    for kwargs in (dict(product="graph"), dict(product="replay"), dict(memory_budget=0)):
        with untouched(objective.model), quiet(): rows = FisherOperator(objective, "empirical", **kwargs).matmat(V)
        assert (rows - expected).norm() <= 1e-10 * expected.norm()


def test_empirical_fisher_of_tokens_with_holes():
    make, inputs, _, _, sizes = MODELS["tokens"]
    objective = Objective(make(), cut(inputs, HOLES, sizes), nn.CrossEntropyLoss(weight=WEIGHT))
    expected = dense_fisher(objective, class_scores(WEIGHT))
    assert_close(FisherOperator(objective, "empirical").to_dense(), expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", [n for n in LIKELIHOODS if n not in ("LeNet-5", "convolutions")])
def test_sampled_fisher_is_unbiased(name):
    "Its mean over generators is the Gauss-Newton matrix, within as many standard errors as chance allows."
    objective, k = objective_of(name), 40
    v, w = randn(2, objective.n_params)
    drawn = [FisherOperator(objective, n_samples=25, generator=seeded(i)) for i in range(k)]
    samples = torch.stack([torch.stack([v @ op.matvec(v), v @ op.matvec(w)]) for op in drawn])
    G = GGNOperator(objective)
    true = torch.stack([v @ G.matvec(v), v @ G.matvec(w)])
    assert (samples[:, 0] >= 0).all() and samples[:, 0].std() > 1e-3 * true[0]
    assert ((samples.mean(0) - true).abs() <= 4.5 * samples.std(0) / k ** .5).all()


def test_expected_fisher_of_cross_entropy_is_gauss_newton():
    "The mean over all labels, weighted by their probabilities, not over drawn ones."
    objective = objective_of("dense")
    def expected(out, target):
        p = out.softmax(1)
        for c in range(4): yield p[0, c].sqrt() * (p - F.one_hot(torch.tensor([c]), 4))
    assert_close(dense_fisher(objective, expected), GGNOperator(objective).to_dense(), rtol=1e-10, atol=1e-12)


def test_a_drawn_fisher_is_fixed():
    "The same labels in every product, in every way to compute it, and for the same generator; others for another one."
    objective, v = objective_of("tokens"), randn(objective_of("tokens").n_params)
    make = lambda seed, **kwargs: FisherOperator(objective, n_samples=3, generator=seeded(seed), **kwargs)
    some = objective.cost.fixed + 5 * objective.cost.per_example
    first = make(0).matvec(v)
    for budget in (None, some, 0):
        op = make(0, memory_budget=budget)
        assert torch.equal(op.matvec(v), op.matvec(v))
        assert_close(op.matvec(v), first, rtol=1e-12, atol=1e-14)
        assert (op.to_dense() - op.to_dense().T).abs().max() == 0
    assert torch.equal(make(0, product="graph").matvec(v), make(0, product="replay").matvec(v))
    assert (make(1).matvec(v) - first).norm() > 1e-2 * first.norm()
    assert torch.equal(FisherOperator(objective).matvec(v), FisherOperator(objective).matvec(v))


def test_micro_batches_draw_labels_of_their_own():
    same = Objective(mlp(), cut(X[:1].repeat(40, 1), Y[:1].repeat(40), 20))
    op = FisherOperator(same)
    v = randn(op.shape[0])
    first, second = (part(v) for part in op.kept.maps)
    assert (first - second).norm() > 1e-6 * first.norm()


def test_global_random_state_is_left_alone(rng_draws):
    objective = objective_of("dense")
    with untouched(objective.model): FisherOperator(objective).to_dense()


@pytest.mark.parametrize("width", [6, 20])
def test_trace_of_a_piecewise_linear_network(width):
    parts = lambda: (nn.Linear(3, width), nn.ReLU(), nn.Linear(width, width), nn.LeakyReLU(), nn.Linear(width, 4))
    model = layers(parts)()
    objective = Objective(model, cut(X, Y), nn.CrossEntropyLoss(weight=WEIGHT))
    H, G = HessianOperator(objective), GGNOperator(objective)
    assert trace(H, exact=True).value == pytest.approx(trace(G, exact=True).value, rel=1e-12)
    assert (H.to_dense() - G.to_dense()).norm() > .05 * G.to_dense().norm()


def test_a_linear_model():
    "There Gauss-Newton is the Hessian."
    linear = build(lambda: nn.Linear(3, 4))
    for loss, target in ((nn.CrossEntropyLoss(weight=WEIGHT, label_smoothing=.1), Y), ("mse_loss", randn(45, 4))):
        objective = Objective(linear, cut(X, target), loss)
        assert_close(GGNOperator(objective).to_dense(), HessianOperator(objective).to_dense(), rtol=1e-11, atol=1e-13)


def test_chosen_parameters_give_the_diagonal_block():
    whole, layer = (GGNOperator(Objective(mlp(), cut(X, Y), params=p)).to_dense() for p in (None, "2.*"))
    assert_close(layer, whole[20:, 20:])


@pytest.mark.parametrize("make", [GGNOperator, FisherOperator, lambda o, **kw: FisherOperator(o, "empirical", **kw)])
@pytest.mark.parametrize("dtype", [F64, torch.float32])
def test_replay_and_blocks(make, dtype):
    objective = objective_of("encoder", dtype=dtype)
    graph, replay = (make(objective, product=p) for p in ("graph", "replay"))
    V = randn(80, objective.n_params).to(dtype)
    expected = torch.stack([graph.matvec(v) for v in V])
    assert torch.equal(torch.stack([replay.matvec(v) for v in V]), expected)
    rows = replay.matmat(V)
    assert replay.kept.block_rows > 1 and (rows - expected).norm() <= 100 * torch.finfo(dtype).eps * expected.norm()


def test_memory_of_gauss_newton_is_what_the_objective_measured():
    "What is kept between products, against what is charged for it."
    for name in ("convolutions", "encoder", "recurrent"):
        objective = objective_of(name)
        op = GGNOperator(objective, product="replay")
        constants = [t.untyped_storage() for program in op.kept.maps for t in program.constants.values()]
        held = {t.data_ptr(): t.nbytes() for t in constants}
        fixed = sum(p.numel() * p.element_size() for p in objective.params.values())  # is not charged
        assert sum(held.values()) <= 1.1 * op.kept.n_bytes + fixed, name


@pytest.mark.parametrize("curvature", [GGNOperator, FisherOperator, lambda o: FisherOperator(o, "empirical")])
def test_algorithms_take_them(curvature):
    objective = Objective(mlp(hidden=8), cut(X, Y))
    op = curvature(objective)
    A = op.to_dense()
    values = torch.linalg.eigvalsh(A).flip(0)
    with quiet("rounding floor", "miss_probability"): pairs = top_eigenpairs(op, 4, tol=1e-8)
    assert_close(pairs.values, values[:4], rtol=1e-8, atol=1e-12)
    assert trace(op, exact=True).value == pytest.approx(A.trace().item(), rel=1e-10)
    density = spectral_density(op, n_steps=30, n_probes=4)
    assert abs(density.trace.value - A.trace().item()) <= 5 * density.trace.standard_error


def test_a_search_in_mixed_precision():
    images = NETWORKS["convolutions"][1].repeat(6, 1, 1, 1) + .1 * randn(72, 1, 28, 28)
    op = GGNOperator(Objective(NETWORKS["convolutions"][0](), (images, torch.arange(72) % 4)))
    pairs = top_eigenpairs(op, 3, tol=1e-3)
    assert pairs.n_single > 3 and pairs.converged.all()


@pytest.mark.parametrize("what, error, message", [
    (lambda: GGNOperator(mlp()), TypeError, "expected an Objective, got Sequential"),
    (lambda: FisherOperator(objective_of("dense"), "observed"), ValueError,
     "kind must be 'sampled' or 'empirical', got 'observed'"),
    (lambda: FisherOperator(objective_of("dense"), n_samples=0), ValueError, "n_samples must be at least 1, got 0"),
    (lambda: FisherOperator(objective_of("a callable")), TypeError,
     "no Fisher matrix here: use the Gauss-Newton matrix"),
    (lambda: GGNOperator(objective_of("dense"), product="fast"), ValueError, "product must be"),
    (lambda: GGNOperator(Objective(build(OnceNet), (X, Y))), NotImplementedError,
     "autograd.Function Once .*no second derivative"),
    (lambda: FisherOperator(Objective(build(NoSecond), (X, Y))), NotImplementedError,
     "_segment_reduce_backward has no second derivative"),
])
def test_refusals(what, error, message):
    with pytest.raises(error, match=message): what()


class Cauchy(Loss):
    "A loss of one's own; its second derivative comes from autograd, its score from the density."
    name = "Cauchy"
    def total(self, outputs, target): return (outputs - target).square().log1p().sum()
    def score(self, outputs, target, generator=None):
        if generator is None: return 2 * (outputs - target) / (1 + (outputs - target).square())
        uniform = torch.rand(outputs.shape, generator=generator, dtype=F64)
        noise = torch.tan(torch.pi * (uniform - .5))
        return 2 * noise / (1 + noise.square())


def test_a_loss_of_ones_own():
    objective = Objective(mlp(), cut(X, randn(45, 4)), Cauchy())
    assert_close(GGNOperator(objective).to_dense(), dense_ggn(objective), rtol=1e-10, atol=1e-12)
    own = whole_scores(lambda z, t: Cauchy().total(z, t))
    empirical = FisherOperator(objective, "empirical").to_dense()
    assert_close(empirical, dense_fisher(objective, own), rtol=1e-10, atol=1e-12)
    information = .5  # of a Cauchy distribution, about its centre
    half = dense_fisher(objective, lambda out, t: torch.eye(4, dtype=F64) * information ** .5)
    drawn = FisherOperator(objective, n_samples=4000).to_dense()
    assert (drawn - half).norm() <= .05 * half.norm()
