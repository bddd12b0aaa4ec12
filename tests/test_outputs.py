"Every loss of torch, and functions of one's own, on uneven batches: value, gradient, Hessian and Gauss-Newton."
import functools
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.testing import assert_close

from conftest import F64, build, quiet, randn
from hessnb.boundary.alignment import align
from hessnb.boundary.examine import labelled_examples
from hessnb.boundary.margin import estimate_margin
from hessnb.curvature.gauss_newton import FisherOperator, GGNOperator
from hessnb.curvature.hessian import HessianOperator
from hessnb.curvature.loss import as_loss
from hessnb.curvature.objective import Objective

N, D, C, T = 23, 3, 4, 5
X, Y, SIZES = randn(N, D, seed=1), torch.arange(N) % C, (9, 9, 4, 1)
FREE, SHARES, POSITIVE = randn(N, C, seed=2), randn(N, C, seed=3).softmax(1), randn(N, C, seed=4).exp()
BITS, WEIGHT = (randn(N, C, seed=5) > 0).double(), torch.tensor([1., 2., 5., .5], dtype=F64)
GAPS, SETS = torch.where(torch.arange(N) % 3 == 0, -100, Y), torch.stack([Y, (Y + 2) % C, torch.full_like(Y, -1),
                                                                         torch.full_like(Y, 0)], 1)
SEQUENCES, TOKENS = randn(N, T, D, seed=6), torch.arange(N * T).reshape(N, T) % C
HOLES = torch.where((torch.arange(N)[:, None] + torch.arange(T)) % 4 > torch.arange(N)[:, None] % 3, -100, TOKENS)


class Ends(nn.Sequential):
    "A small network with something at its end."
    def __init__(self, end=lambda o: o, out=C):
        super().__init__(nn.Linear(D, 5), nn.Tanh(), nn.Linear(5, out))
        self.end = end
    def forward(self, x): return self.end(super().forward(x))


plain, log_p, p = lambda: Ends(), lambda: Ends(lambda o: o.log_softmax(1)), lambda: Ends(torch.sigmoid)
classes_second = lambda: Ends(lambda o: o.movedim(-1, 1))


def multi_margin(o, t, power=1, weight=None, margin=1.):
    rows = [sum((margin - z[y] + z[c]).clamp_min(0) ** power for c in range(C) if c != y) / C
            * (1 if weight is None else weight[y]) for z, y in zip(o, t)]
    return torch.stack(rows).mean()


def set_margin(o, t):
    rows = []
    for z, row in zip(o, t):
        listed = row[:int((row < 0).nonzero()[0])].tolist()
        rows.append(sum((1 - (z[j] - z[i])).clamp_min(0) for j in listed for i in range(C) if i not in listed) / C)
    return torch.stack(rows).mean()


KL = "batchmean"
CASES = {  # network, target, loss, inputs if they are not X; and plain torch on all data, if it is not the loss itself
    "L1": (plain, FREE, nn.L1Loss()),
    "smooth L1": (plain, FREE, nn.SmoothL1Loss(beta=.6)),
    "Huber": (plain, FREE, nn.HuberLoss(delta=.7)),
    "MSE": (plain, FREE, nn.MSELoss()),
    "MSE of integers": (plain, F.one_hot(Y, C), nn.MSELoss(), X, lambda o, t: F.mse_loss(o, t.double())),
    "Huber of integers": (plain, F.one_hot(Y, C), nn.HuberLoss(), X, lambda o, t: F.huber_loss(o, t.double())),
    "Poisson": (plain, POSITIVE, nn.PoissonNLLLoss()),
    "Poisson, full": (lambda: Ends(torch.exp), POSITIVE, nn.PoissonNLLLoss(log_input=False, full=True, eps=1e-6)),
    "KL": (log_p, SHARES, nn.KLDivLoss(reduction="mean")),
    "KL by example": (log_p, SHARES, nn.KLDivLoss(reduction=KL)),
    "KL of logarithms": (log_p, SHARES.log(), nn.KLDivLoss(reduction=KL, log_target=True)),
    "KL of tokens": (lambda: Ends(lambda o: o.log_softmax(-1)), randn(N, T, C).softmax(-1), nn.KLDivLoss(reduction=KL),
                     SEQUENCES),
    "BCE": (p, BITS, nn.BCELoss()),
    "BCE of classes": (p, SHARES, nn.BCELoss(weight=WEIGHT)),
    "BCE of one": (lambda: Ends(torch.sigmoid, 1), BITS[:, :1], nn.BCELoss()),
    "BCE with logits": (plain, BITS, nn.BCEWithLogitsLoss(weight=WEIGHT, pos_weight=WEIGHT.flip(0))),
    "BCE with logits of integers": (plain, BITS.long(), nn.BCEWithLogitsLoss(), X,
                                    lambda o, t: F.binary_cross_entropy_with_logits(o, t.double())),
    "BCE with logits of truth": (plain, BITS.bool(), nn.BCEWithLogitsLoss(), X,
                                 lambda o, t: F.binary_cross_entropy_with_logits(o, t.double())),
    "soft margin": (plain, 2 * BITS - 1, nn.SoftMarginLoss()),
    "hinge embedding": (lambda: Ends(lambda o: o.square() + .1), 2 * BITS - 1, nn.HingeEmbeddingLoss(margin=.8)),
    "several labels, soft margin": (plain, BITS, nn.MultiLabelSoftMarginLoss(weight=WEIGHT)),
    "several labels, margin": (plain, SETS, nn.MultiLabelMarginLoss(), X, set_margin),
    "margins": (plain, Y, nn.MultiMarginLoss(margin=.9), X, lambda o, t: multi_margin(o, t, margin=.9)),
    "squared margins": (plain, Y, nn.MultiMarginLoss(p=2, weight=WEIGHT), X,
                        lambda o, t: multi_margin(o, t, 2, WEIGHT)),
    "cross-entropy": (plain, GAPS, nn.CrossEntropyLoss(weight=WEIGHT, label_smoothing=.1)),
    "soft targets": (plain, SHARES, nn.CrossEntropyLoss(weight=WEIGHT)),
    "NLL": (log_p, GAPS, nn.NLLLoss(weight=WEIGHT)),
    "tokens": (classes_second, HOLES, nn.CrossEntropyLoss(weight=WEIGHT), SEQUENCES),
    "an ignored class": (plain, Y, nn.CrossEntropyLoss(ignore_index=2)),
    "a class of weight zero": (plain, Y, nn.CrossEntropyLoss(weight=torch.tensor([0., 1., 2., 1.], dtype=F64))),
    "segmentation": (lambda: nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.Tanh(), nn.Conv2d(4, 3, 1)),
                     torch.where(torch.arange(N * 30).reshape(N, 5, 6) % 7 == 0, 255, torch.arange(N * 30).reshape(
                         N, 5, 6) % 3), nn.CrossEntropyLoss(ignore_index=255), randn(N, 2, 5, 6)),
    # functions
    "a function of torch": (log_p, SHARES, F.kl_div, X, lambda o, t: F.kl_div(o, t, reduction="none").mean()),
    "partial": (log_p, SHARES, functools.partial(F.kl_div, reduction=KL), X, nn.KLDivLoss(reduction=KL)),
    "partial with weights": (plain, GAPS, functools.partial(F.cross_entropy, weight=WEIGHT), X,
                             nn.CrossEntropyLoss(weight=WEIGHT)),
    "partial Huber": (plain, FREE, functools.partial(F.huber_loss, delta=.5), X, nn.HuberLoss(delta=.5)),
    "ignored labels": (plain, GAPS, lambda o, t: F.cross_entropy(o, t, reduction="none"), X, F.cross_entropy),
    "ignored tokens": (lambda: Ends(), HOLES, lambda o, t: F.cross_entropy(o.transpose(1, 2), t, reduction="none"),
                       SEQUENCES, lambda o, t: F.cross_entropy(o.reshape(-1, C), t.reshape(-1))),
    "flattened tokens": (lambda: Ends(), HOLES, lambda o, t: F.cross_entropy(o.reshape(-1, C), t.reshape(-1),
                         reduction="none"), SEQUENCES, lambda o, t: F.cross_entropy(o.reshape(-1, C), t.reshape(-1))),
    "void pixels": (lambda: nn.Conv2d(2, 3, 1), torch.where(torch.arange(N * 20).reshape(N, 4, 5) % 3 == 0, 255,
                    torch.arange(N * 20).reshape(N, 4, 5) % 2), lambda o, t: F.cross_entropy(o, t, reduction="none",
                    ignore_index=255), randn(N, 2, 4, 5), lambda o, t: F.cross_entropy(o, t, ignore_index=255)),
    "missing labels": (plain, torch.where(FREE > .5, -1, BITS.long()),
                       lambda o, t: F.binary_cross_entropy_with_logits(o, t.clamp_min(0).double(), reduction="none")
                       * (t >= 0), X, lambda o, t: F.binary_cross_entropy_with_logits(o[t >= 0], t[t >= 0].double())),
    "losses and counts": (plain, Y, lambda o, t: (F.cross_entropy(o, t, WEIGHT, reduction="none"), WEIGHT[t]), X,
                          nn.CrossEntropyLoss(weight=WEIGHT)),
    "pads": (classes_second, TOKENS, lambda o, t: (F.cross_entropy(o, t, reduction="none", ignore_index=0), t != 0),
             SEQUENCES, nn.CrossEntropyLoss(ignore_index=0)),
    "hinge of signs": (lambda: Ends(lambda o: o[:, 0]), 2 * BITS[:, 0].long() - 1,
                       lambda o, t: (1 - t * o).clamp_min(0) ** 2, X, lambda o,
                       t: ((1 - t * o).clamp_min(0) ** 2).mean()),
    "focal": (plain, GAPS, lambda o, t: F.cross_entropy(o, t, reduction="none") ** 2, X,
              lambda o, t: (F.cross_entropy(o[t >= 0], t[t >= 0], reduction="none") ** 2).mean()),
}
PLAIN_NLL = "NLL"


def given(name):
    make, target, loss, *rest = CASES[name]
    inputs = rest[0] if rest else X
    reference = rest[1] if len(rest) > 1 else loss
    return build(make), inputs, target, loss, reference


def flat(tensors): return torch.cat([t.reshape(-1) for t in tensors])


def derivatives(model, inputs, target, reference):
    "Value, gradient and Hessian by plain autograd on all data at once."
    value, params = reference(model(inputs), target), list(model.parameters())
    grad = flat(torch.autograd.grad(value, params, create_graph=True))
    options = dict(retain_graph=True, allow_unused=True, materialize_grads=True)
    rows = [flat(torch.autograd.grad(g, params, **options)) if g.requires_grad else torch.zeros_like(grad)
            for g in grad]
    return value.detach(), grad.detach(), torch.stack(rows)


def gauss_newton(model, inputs, target, reference):
    "J^T (d2 loss / d outputs2) J of all data at once, dense."
    params, out = list(model.parameters()), model(inputs)
    J = torch.stack([flat(torch.autograd.grad(z, params, retain_graph=True, allow_unused=True, materialize_grads=True))
                     for z in out.reshape(-1)])
    H = torch.autograd.functional.hessian(lambda z: reference(z.reshape(out.shape), target), out.detach().reshape(-1))
    return J.T @ H @ J


@pytest.mark.filterwarnings("ignore:reduction. 'mean' divides")
@pytest.mark.parametrize("name", CASES)
def test_the_mean_is_torchs_own(name):
    model, inputs, target, loss, reference = given(name)
    value, grad, H = derivatives(model, inputs, target, reference)
    v = randn(len(grad), seed=9)
    for data in ([*zip(inputs.split(SIZES), target.split(SIZES))], (inputs, target)):
        with quiet("reduction: 'mean' divides"): objective = Objective(model, data, loss)
        assert objective.value() == pytest.approx(value.item(), rel=1e-12)
        assert_close(objective.grad(), grad, rtol=1e-10, atol=1e-13)
        for budget in (None, 0):
            assert_close(HessianOperator(objective, memory_budget=budget).matvec(v), H @ v, rtol=1e-9, atol=1e-12)


def divergence(reduction, **kwargs): return lambda z, t: F.kl_div(z.log_softmax(1), t, reduction=reduction, **kwargs)


AS_SCORES = {  # log-probabilities are scores: the softmax is the loss's
    "NLL": nn.CrossEntropyLoss(weight=WEIGHT), "KL": divergence("mean"), "KL by example": divergence(KL),
    "KL of logarithms": divergence(KL, log_target=True), "partial": divergence(KL),
    "a function of torch": divergence("mean"),
}


@pytest.mark.filterwarnings("ignore:reduction. 'mean' divides")
@pytest.mark.parametrize("name", [n for n in CASES if n not in ("segmentation", "void pixels", "KL of tokens")])
def test_gauss_newton(name):
    model, inputs, target, loss, reference = given(name)
    objective = Objective(model, [*zip(inputs.split(SIZES), target.split(SIZES))], loss)
    expected = gauss_newton(model, inputs, target, AS_SCORES.get(name, reference))
    assert_close(GGNOperator(objective).to_dense(), expected, rtol=1e-9, atol=1e-12)


def test_sums_are_warned_of():
    model = build(plain)
    for loss, target in ((nn.CrossEntropyLoss(reduction="sum"), Y), (nn.HuberLoss(reduction="sum"), FREE),
                         (functools.partial(F.mse_loss, reduction="sum"), FREE)):
        with pytest.warns(UserWarning, match="reduction='sum', but the objective is the mean") as caught:
            got = Objective(model, (X, target), loss).value()
        assert caught[0].filename == __file__
        mean = loss(model(X), target).item() / target.numel()
        assert got == pytest.approx(mean, rel=1e-12)


class OwnFocal(nn.Module):
    "A module of one's own with a reduction, as people write them."
    def __init__(self, reduction="mean", normalised=False):
        super().__init__(); self.reduction, self.normalised = reduction, normalised
    def forward(self, o, t):
        each = WEIGHT[t] * F.cross_entropy(o, t, reduction="none") ** 2
        if self.reduction == "none": return each
        if self.reduction == "sum": return each.sum()
        return each.sum() / WEIGHT[t].sum() if self.normalised else each.mean()


def test_modules_of_ones_own():
    model = build(plain)
    data = [*zip(X.split(SIZES), Y.split(SIZES))]
    for loss in (OwnFocal(), OwnFocal("none")):
        assert Objective(model, data, loss).value() == pytest.approx(OwnFocal()(model(X), Y).item(), rel=1e-12)
    with pytest.raises(ValueError, match=r"OwnFocal with reduction='mean' gives .*normaliser of its own.*\(losses, "
                                         r"counts"):
        Objective(model, data, OwnFocal(normalised=True))
    class Weighted(nn.CrossEntropyLoss):
        def forward(self, o, t): return super().forward(2 * o, t)
    with pytest.raises(ValueError, match="normaliser"): Objective(model, data, Weighted(weight=WEIGHT))
    assert Objective(model, [(X, GAPS)], Weighted()).value() == pytest.approx(F.cross_entropy(2 * model(X),
            GAPS).item())


@pytest.mark.parametrize("loss, target", [
    (lambda o, t: F.cross_entropy(o, t, reduction="none", ignore_index=0), Y),
    (lambda o, t: F.cross_entropy(o, t, reduction="none") * (t != 2), Y),
    (lambda o, t: F.cross_entropy(o, t, torch.tensor([0., 1., 1., 1.], dtype=F64), reduction="none"), Y),
    (lambda o, t: (o - t) ** 2 * (t > 0), FREE.clamp_min(0)),
    (lambda o, t: -t * o.log_softmax(1), F.one_hot(Y, C).double()),
])
def test_what_may_or_may_not_count_is_asked(loss, target):
    with pytest.raises(ValueError, match=r"zero for targets \[.*whether these count in the mean.*\(losses, counts\)"):
        Objective(build(plain), (X, target), loss)


@pytest.mark.parametrize("loss, words", [
    (nn.TripletMarginLoss(), "takes anchor, positive, negative"), (nn.CosineEmbeddingLoss(), "takes input1, input2"),
    (nn.MarginRankingLoss(), "takes input1, input2, target"), (nn.CTCLoss(), "takes log_probs, targets, input_lengths"),
    (nn.TripletMarginWithDistanceLoss(), "takes anchor"), (nn.GaussianNLLLoss(), "takes input, target, var"),
    (nn.AdaptiveLogSoftmaxWithLoss(4, 9, [3]), "parameters of its own.*last layer"),
    (nn.CrossEntropyLoss, "the class CrossEntropyLoss: make one"), (lambda o: o, "takes o, but a loss is called with"),
])
def test_losses_that_need_a_function(loss, words):
    with pytest.raises(TypeError, match=words): as_loss(loss)


def test_gaussian_likelihood_as_a_function():
    loss = lambda o, t: F.gaussian_nll_loss(o[:, :2], t, o[:, 2:].exp(), reduction="none")
    model, target = build(plain), FREE[:, :2]
    value = nn.GaussianNLLLoss()(model(X)[:, :2], target, model(X)[:, 2:].exp())
    objective = Objective(model, [*zip(X.split(SIZES), target.split(SIZES))], loss)
    assert objective.value() == pytest.approx(value.item(), rel=1e-12)


@pytest.mark.parametrize("make, target, loss, error, words", [
    (plain, 2 * BITS - 1, nn.BCEWithLogitsLoss(), ValueError, r"between 0 and 1, found -1 .. 1: .*\(y \+ 1\) / 2"),
    (plain, BITS, nn.SoftMarginLoss(), ValueError, r"must be 1 or -1, found \[0.0\].*2 \* y - 1"),
    (plain, BITS, nn.HingeEmbeddingLoss(), ValueError, "must be 1 or -1"),
    (plain, BITS, nn.BCELoss(), ValueError, "outputs between 0 and 1.*sigmoid, or use BCEWithLogitsLoss"),
    (plain, Y, nn.BCEWithLogitsLoss(), ValueError, "shaped like the outputs.*belong to cross_entropy"),
    (lambda: Ends(out=1), BITS[:, 0], nn.BCEWithLogitsLoss(), ValueError, r"shaped like.*y.reshape\(outputs.shape\)"),
    (lambda: Ends(out=1), FREE[:, 0], nn.L1Loss(), ValueError, "broadcast.*per example"),
    (lambda: Ends(out=1), FREE, nn.SmoothL1Loss(), ValueError, "broadcast"),
    (lambda: Ends(out=1), BITS[:, 0].long(), "cross_entropy", ValueError, "0..0 for 1 outputs.*BCEWithLogitsLoss"),
    (lambda: Ends(lambda o: o[:, 0]), Y, "cross_entropy", ValueError, "one logit per example use BCEWithLogitsLoss"),
    (plain, BITS, nn.BCEWithLogitsLoss(weight=torch.rand(N, 1)), ValueError, "belong to the data.*target"),
    (plain, BITS, nn.BCEWithLogitsLoss(pos_weight=torch.ones(3)), ValueError, "does not fit one example's outputs"),
    (p, BITS, nn.BCELoss(weight=torch.rand(N, C)), ValueError, "belong to the data"),
    (plain, Y + 1, nn.MultiMarginLoss(), ValueError, "0..3 for 4 outputs"),
    (plain, Y[:, None].expand(N, C) + 2, nn.MultiLabelMarginLoss(), ValueError, "filled up with -1"),
    (log_p, SHARES, nn.NLLLoss(), TypeError, "NLLLoss takes int64.*KLDivLoss"),
    (plain, F.one_hot(Y, C), "cross_entropy", ValueError, r"y.argmax\(1\)"),
    (plain, Y[:, None], "cross_entropy", ValueError, r"y.squeeze\(1\)"),
    (plain, Y.double(), "cross_entropy", TypeError, "int64"), (plain, Y.bool(), "cross_entropy", TypeError, "y.long"),
])
def test_plain_words(make, target, loss, error, words):
    with pytest.raises(error, match=words): Objective(build(make), (X, target), loss)


def test_log_probabilities_are_missed():
    for loss, target in ((nn.NLLLoss(), Y), ("nll_loss", Y)):
        with pytest.warns(UserWarning, match="expects log-probabilities.*log_softmax missing"):
            objective = Objective(build(plain), (X, target), loss)
        assert objective.value() == pytest.approx(F.nll_loss(build(plain)(X), Y).item())


ONE_SCORE = {  # the same network: the probability, the score and the two scores
    "BCELoss": (torch.sigmoid, BITS[:, :1], nn.BCELoss()),
    "SoftMarginLoss": (lambda o: o, 2 * BITS[:, :1] - 1, nn.SoftMarginLoss()),
    "BCEWithLogitsLoss": (lambda o: o, BITS[:, :1], nn.BCEWithLogitsLoss()),
}


@pytest.mark.parametrize("flat_too", [False, True])
@pytest.mark.parametrize("name", ONE_SCORE)
def test_one_output_for_two_classes(name, flat_too):
    end, target, loss = ONE_SCORE[name]
    ends = (lambda o: end(o)[:, 0]) if flat_too else end
    one = Objective(build(lambda: Ends(ends, 1)), (X, target[:, 0] if flat_too else target), loss)
    two = Objective(build(lambda: Ends(lambda o: F.pad(o, (1, 0)), 1)), (X, BITS[:, 0].long()))
    assert one.value() == pytest.approx(two.value(), rel=1e-12)
    assert torch.equal(one.classes(X), two.classes(X))
    V = randn(3, one.n_params)
    assert_close(align(one, X, V).cosines, align(two, X, V).cosines, rtol=1e-8, atol=1e-10)
    a, b = (estimate_margin(o, X, None).value for o in (one, two))
    assert a == pytest.approx(b, rel=1e-6)


def test_divergence_has_classes():
    "KLDivLoss of log-probabilities: the predicted class, and the gradient for a label, are those of cross-entropy."
    V = randn(3, sum(q.numel() for q in build(plain).parameters()))
    expected = align(Objective(build(plain), (X, Y)), X, V)
    for target, log_target in ((SHARES, False), (SHARES.log(), True), (F.one_hot(Y, C).double(), False)):
        objective = Objective(build(log_p), (X, target), nn.KLDivLoss(reduction=KL, log_target=log_target))
        assert_close(align(objective, X, V).cosines, expected.cosines, rtol=1e-8, atol=1e-10)
    with pytest.raises(TypeError, match="no classes"):
        align(Objective(build(log_p), (X, 2 * SHARES), nn.KLDivLoss(reduction=KL)), X, V)


NO_CLASSES = {name: given(name)[1:4] for name in (
    "L1", "Poisson", "hinge embedding", "several labels, margin", "several labels, soft margin", "BCE", "soft margin",
    "KL of tokens", "missing labels", "hinge of signs")}


@pytest.mark.parametrize("name", NO_CLASSES)
def test_no_classes_no_margin(name):
    model, inputs, target, loss, _ = given(name)
    objective = Objective(model, (inputs, target), loss)
    for call in (lambda: align(objective, inputs, torch.ones(1, objective.n_params, dtype=F64)),
                 lambda: estimate_margin(objective, inputs, None)):
        with pytest.raises(TypeError, match="no classes"): call()


@pytest.mark.parametrize("loss, target", [
    (lambda o, t: F.gaussian_nll_loss(o[:, 0], t.double(), o[:, 1].exp(), reduction="none"), Y),  # mean and variance
    (lambda o, t: F.poisson_nll_loss(o[:, 0] + o[:, 1], t.double(), reduction="none"), Y * 3),
    (lambda o, t: F.cross_entropy(-o, t, reduction="none"), Y),  # distances: the smallest is predicted
    (lambda o, t: F.binary_cross_entropy_with_logits(o, (t[:, None] > torch.arange(C)).double(),
                                                     reduction="none").sum(1), Y),  # cumulative, of ordered labels
])
def test_integer_targets_that_are_no_classes_of_the_outputs(loss, target):
    objective = Objective(build(plain), (X, target), loss)
    with pytest.raises(TypeError, match="no classes"): estimate_margin(objective, X, None)


def test_a_later_batch_shows_that_targets_are_counts():
    loss = lambda o, t: ((o - t[:, None]) ** 2 * F.one_hot(t % C, C)).sum(1)
    batches = [(X[:9], Y[:9]), (X[9:], Y[9:] * 5)]
    objective = Objective(build(plain), batches, lambda o, t: F.cross_entropy(o, t % C, reduction="none"))
    with pytest.raises(TypeError, match=r"no classes here: targets like 5 are no labels of 4 scores"):
        objective.classes(X)
    with pytest.raises(TypeError, match="no classes"): Objective(build(plain), batches, loss).classes(X)


@pytest.mark.parametrize("loss", [
    lambda o, t: F.cross_entropy(o, t, reduction="none") ** 2, lambda o, t: F.multi_margin_loss(o, t, reduction="none"),
    lambda o, t: F.nll_loss(o.log_softmax(1), t, reduction="none"),
    lambda o, t: -o.softmax(1).gather(1, t[:, None])[:, 0], lambda o, t: F.cross_entropy(o, t, WEIGHT,
            reduction="none"),
    lambda o, t: F.cross_entropy(o, t, reduction="none", label_smoothing=.3),
    lambda o, t: F.cross_entropy(5 * F.normalize(o, dim=1), t, reduction="none"),
    nn.CrossEntropyLoss(), nn.MultiMarginLoss()])
def test_losses_of_scores_have_classes(loss):
    model = build(plain)
    objective = Objective(model, (X, Y), loss)
    assert torch.equal(objective.classes(X), model(X).argmax(1))


def test_a_single_class_has_no_boundary():
    objective = Objective(build(lambda: Ends(out=1)), (X, Y * 0))
    assert objective.value() == 0
    with pytest.raises(TypeError, match="single output has one class.*no boundary.*BCEWithLogitsLoss"):
        objective.classes(X)


def test_classes_that_are_missing():
    "A class without examples, one that is never predicted, two classes."
    for target, out in ((Y % 2, C), (Y % 2, 2), (Y * 0, C)):
        model = build(lambda: Ends(out=out))
        objective = Objective(model, (X, target))
        value, grad, H = derivatives(model, X, target, F.cross_entropy)
        assert_close(HessianOperator(objective).to_dense(), H, rtol=1e-10, atol=1e-13)
        assert_close(FisherOperator(objective, "empirical").to_dense().trace(), sum(
            flat(torch.autograd.grad(F.cross_entropy(model(X[i:i + 1]), target[i:i + 1]), list(model.parameters())))
            .square().sum() for i in range(N)) / N)


def test_a_class_of_weight_zero_has_no_gradient():
    loss = nn.BCEWithLogitsLoss(pos_weight=torch.tensor([0.], dtype=F64))
    objective = Objective(build(lambda: Ends(out=1)), (X, BITS[:, :1]), loss)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        a = align(objective, X, torch.ones(1, objective.n_params, dtype=F64), labels=1)
    assert a.cosines.isnan().all() and a.n_undefined == N


def test_outputs_that_are_nan_are_named():
    model = build(lambda: Ends(lambda o: torch.where(o > .2, torch.nan, o)))
    with pytest.raises(ValueError, match="model outputs: .*NaN or infinite"): Objective(model, (X, Y))


@pytest.mark.parametrize("target", [Y.int(), Y + 1, Y.double(), Y[:, None]])
def test_a_function_that_fails_on_its_targets(target):
    loss = lambda o, t: F.cross_entropy(o, t, reduction="none")
    with pytest.raises(ValueError, match=r"cannot be computed for outputs torch.float64 of shape \(23, 4\) and targets "
                                         r"torch."):
        Objective(build(plain), (X, target), loss)


def test_one_hot_rows_are_labels():
    "Probabilities that are 0 and 1 stand for classes, with every loss that takes them."
    rows = F.one_hot(Y, C).double()
    for make, loss in ((plain, "cross_entropy"), (plain, "mse_loss"), (log_p, nn.KLDivLoss(reduction=KL))):
        objective = Objective(build(make), (X, rows), loss)
        assert torch.equal(labelled_examples(objective)[1], Y)
    with pytest.raises(TypeError, match="stand for none"): labelled_examples(Objective(build(plain), (X, SHARES)))
