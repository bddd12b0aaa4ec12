"Gauss-Newton and Fisher matrices of BCELoss, SoftMarginLoss and KLDivLoss, against J^T M J with autograd's own M."
import pytest
import torch
from test_gauss_newton import cut, dense_fisher, jacobians
from torch import nn
from torch.testing import assert_close

from conftest import F64, blobs, build, randn, seeded
from hessnb.curvature.gauss_newton import FisherOperator, GGNOperator
from hessnb.curvature.loss import as_loss
from hessnb.curvature.objective import Objective

X, Y = blobs(45)
WEIGHT = torch.tensor([1., 2., 5., .5], dtype=F64)
SHARES = randn(45, 4, seed=5).softmax(1)
BITS = (SHARES > .25).to(F64)


def ends(last, n=4): return lambda: build(lambda: nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, n), last))


def bce(p, t, w=1.): return -(w * (t * p.log() + (1 - t) * (1 - p).log())).sum()
def soft_margin(z, t): return (1 + (-t * z).exp()).log().sum()
def softmax_kl(z, t): return (t * (t.log() - (z - z.exp().sum(1, keepdim=True).log()))).sum()


LOSSES = {  # model, targets, module, the summed loss in plain operations, what it is divided by for each example
    "BCE": (ends(nn.Sigmoid()), BITS, nn.BCELoss(), bce, 4),
    "BCE of one": (ends(nn.Sigmoid(), 1), BITS[:, :1], nn.BCELoss(), bce, 1),
    "BCE, weights and shares": (ends(nn.Sigmoid()), SHARES, nn.BCELoss(weight=WEIGHT),
                                lambda p, t: bce(p, t, WEIGHT), 4),
    "soft margin": (ends(nn.Identity()), 2 * BITS - 1, nn.SoftMarginLoss(), soft_margin, 4),
    "soft margin of one": (ends(nn.Identity(), 1), 2 * BITS[:, :1] - 1, nn.SoftMarginLoss(), soft_margin, 1),
    "KL": (ends(nn.LogSoftmax(1)), SHARES, nn.KLDivLoss(reduction="batchmean"), softmax_kl, 1),
    "KL, mean": (ends(nn.LogSoftmax(1)), SHARES, nn.KLDivLoss(), softmax_kl, 4),
    "KL of logarithms": (ends(nn.LogSoftmax(1)), SHARES.log(), nn.KLDivLoss(reduction="batchmean", log_target=True),
                         lambda z, t: softmax_kl(z, t.exp()), 1),
}


def made(name):
    make, target, module = LOSSES[name][:3]
    return Objective(make(), cut(X, target), module)


def dense(objective, middle, count):
    "J^T M J over the normaliser, where `middle` gives M of one example from its outputs and target."
    total = 0
    for inputs, target in objective.micro_batches():
        J, out = jacobians(objective, inputs)
        for i in range(len(out)): total = total + J[i].T @ middle(out[i:i + 1], target[i:i + 1]) @ J[i]
    return total / (len(X) * count)


@pytest.mark.parametrize("name", LOSSES)
def test_gauss_newton(name):
    own, count = LOSSES[name][3:]
    def middle(out, t):
        return torch.autograd.functional.hessian(lambda z: own(z.reshape(out.shape), t), out.reshape(-1))
    objective = made(name)
    assert_close(GGNOperator(objective).to_dense(), dense(objective, middle, count), rtol=1e-9, atol=1e-13)
    assert GGNOperator(objective).verified.passed


@pytest.mark.parametrize("name", [n for n in LOSSES if n.startswith(("soft", "KL"))])
def test_gauss_newton_of_a_linear_model_is_the_hessian(name):
    "For outputs that are linear, up to the softmax that belongs to the loss."
    make, target, module, own, count = LOSSES[name]
    n = target.shape[1]
    model = build(lambda: nn.Sequential(nn.Linear(3, n), make()[-1]))
    objective = Objective(model, (X, target), module)
    def loss(theta):
        scores = X @ theta[:3 * n].reshape(n, 3).T + theta[3 * n:]
        return own(scores, target) / (len(X) * count)
    H = torch.autograd.functional.hessian(loss, objective.theta)
    assert_close(GGNOperator(objective).to_dense(), H, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", [n for n in LOSSES if n not in ("BCE, weights and shares", "KL, mean")])
def test_empirical_fisher(name):
    own, count = LOSSES[name][3:]
    def scores(out, t):
        z = out.clone().requires_grad_()
        yield torch.autograd.grad(own(z, t), z)[0]
    objective = made(name)
    assert_close(FisherOperator(objective, "empirical").to_dense(), dense_fisher(objective, scores), rtol=1e-9,
                 atol=1e-12)


INFORMATION = {  # the mean of s s^T over the labels of the model, for one example
    "BCE": lambda out: (1 / (out * (1 - out))).reshape(-1).diag(),
    "BCE of one": lambda out: (1 / (out * (1 - out))).reshape(-1).diag(),
    "BCE, weights and shares": lambda out: (WEIGHT / (out * (1 - out))).reshape(-1).diag(),
    "soft margin": lambda out: (out.sigmoid() * (-out).sigmoid()).reshape(-1).diag(),
    "soft margin of one": lambda out: (out.sigmoid() * (-out).sigmoid()).reshape(-1).diag(),
    "KL": lambda out: out.exp()[0].diag() - torch.outer(out.exp()[0], out.exp()[0]),
    "KL, mean": lambda out: out.exp()[0].diag() - torch.outer(out.exp()[0], out.exp()[0]),
    "KL of logarithms": lambda out: out.exp()[0].diag() - torch.outer(out.exp()[0], out.exp()[0]),
}


@pytest.mark.parametrize("name", INFORMATION)
def test_sampled_fisher_is_unbiased(name):
    objective, k = made(name), 40
    F = dense(objective, lambda out, t: INFORMATION[name](out), LOSSES[name][4])
    v, w = randn(2, objective.n_params)
    drawn = [FisherOperator(objective, n_samples=25, generator=seeded(i)) for i in range(k)]
    samples = torch.stack([torch.stack([v @ op.matvec(v), v @ op.matvec(w)]) for op in drawn])
    true = torch.stack([v @ F @ v, v @ F @ w])
    assert ((samples.mean(0) - true).abs() <= 4.5 * samples.std(0) / k ** .5).all()


@pytest.mark.parametrize("operator", [GGNOperator, FisherOperator])
def test_a_divergence_without_classes_is_refused(operator):
    model = build(lambda: nn.Sequential(nn.Linear(3, 4), nn.LogSoftmax(-1)))
    tokens = Objective(model, (randn(12, 5, 3), randn(12, 5, 4).softmax(-1)), nn.KLDivLoss(reduction="batchmean"))
    with pytest.raises(TypeError, match="KLDivLoss has .* where outputs are .N, C.*use the Hessian"): operator(tokens)


@pytest.mark.parametrize("module, target", [(nn.L1Loss(), SHARES), (nn.HuberLoss(), SHARES),
                                            (nn.MultiMarginLoss(), Y), (nn.MultiLabelSoftMarginLoss(), BITS)])
def test_what_is_no_likelihood_has_no_fisher_matrix(module, target):
    name = type(module).__name__
    with pytest.raises(TypeError, match=f"{name} is not the likelihood.*use the Gauss-Newton.*a loss that has one"):
        FisherOperator(Objective(ends(nn.Identity())(), (X, target), module))


def test_certain_probabilities():
    "A probability of 0 or 1 to rounding, of a label that it fits: finite, and the same as from logits' own side."
    loss = as_loss(nn.BCELoss())
    p = torch.tensor([[0.], [1.], [1e-9]], dtype=F64)
    t = torch.tensor([[0.], [1.], [0.]], dtype=F64)
    assert_close(loss.output_hessian(p, t, torch.ones_like(p)), torch.ones_like(p))
    assert loss.score(p, t).isfinite().all()
