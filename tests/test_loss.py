"What a loss says of itself, against plain torch: sums, second derivatives in the outputs, scores, classes, refusals."
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from conftest import F64, randn, seeded
from hessnb.curvature.loss import Loss, as_loss

N, C, T = 6, 3, 4
WEIGHT = torch.tensor([1., 2., 5.], dtype=F64)
Z, TOKENS, Y = randn(N, C, seed=1), randn(N, C, T, seed=2), torch.arange(N) % C
GAPS = torch.where(torch.arange(N) % 4 == 0, -100, Y)
TOKEN_Y = torch.where(torch.arange(N * T).reshape(N, T) % 5 == 0, -100, torch.arange(N * T).reshape(N, T) % C)
BITS = (randn(N, C, seed=3) > 0).double()
CASES = {
    "plain": (nn.CrossEntropyLoss(), Z, Y),
    "weights, gaps, smoothing": (nn.CrossEntropyLoss(weight=WEIGHT, label_smoothing=.2), Z, GAPS),
    "probabilities": (nn.CrossEntropyLoss(weight=WEIGHT, label_smoothing=.1), Z, randn(N, C, seed=4).softmax(1)),
    "tokens": (nn.CrossEntropyLoss(weight=WEIGHT), TOKENS, TOKEN_Y),
    "nll": (nn.NLLLoss(weight=WEIGHT), Z.log_softmax(1), GAPS),
    "squared": (nn.MSELoss(), Z, randn(N, C, seed=5)),
    "one logit": (nn.BCEWithLogitsLoss(pos_weight=torch.tensor(3., dtype=F64)), Z[:, :1], BITS[:, :1]),
    "one logit, no axis": (nn.BCEWithLogitsLoss(), Z[:, 0], BITS[:, 0]),
    "several labels": (nn.BCEWithLogitsLoss(weight=WEIGHT), Z, .9 * BITS + .05),
    "a function": (lambda o, t: F.cross_entropy(o, t, reduction="none") ** 2, Z, Y),
}
CLASSES = [n for n in CASES if n not in ("tokens", "squared", "several labels")]
LIKELIHOODS = [n for n in CASES if n != "a function"]


def given(name):
    module, outputs, target = CASES[name]
    return as_loss(module).specialise(outputs, target), outputs, target


def second_derivative(total, outputs):
    "`(B, D, D)` for the outputs of each example as `(B, D)`; the examples do not mix."
    H = torch.autograd.functional.hessian(lambda o: total(o.reshape(outputs.shape)), outputs.reshape(len(outputs), -1))
    return torch.stack([H[i, :, i] for i in range(len(outputs))])


@pytest.mark.parametrize("name", CASES)
def test_second_derivative_in_the_outputs(name):
    loss, outputs, target = given(name)
    total = lambda o: loss.total(o, target)
    if name == "nll":
        total = lambda o: nn.CrossEntropyLoss(weight=WEIGHT, reduction="sum")(o,
                target)  # same function on log-probabilities
    H, v = second_derivative(total, outputs), randn(*outputs.shape, seed=8)
    got = loss.output_hessian(outputs, target, v).reshape(N, -1)
    assert torch.allclose(got, torch.einsum("bij,bj->bi", H, v.reshape(N, -1)), rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("name", CASES)
def test_value_is_torchs_own_mean(name):
    module, outputs, target = CASES[name]
    loss = as_loss(module)
    mean = module(outputs, target).mean()
    assert torch.allclose(loss.total(outputs, target) / loss.normaliser(outputs, target), mean, rtol=1e-12)


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_drawn_scores_have_the_second_derivative_for_their_mean(name):
    "Each label counts as an example; 6,000 draws, within six standard errors."
    loss, outputs, target = given(name)
    g, rows, n = seeded(0), [], 6000
    label_axis = (lambda s: s.movedim(1, -1).reshape(-1, C)) if name == "tokens" else (lambda s: s.reshape(N, -1))
    for _ in range(n):
        s = label_axis(loss.score(outputs, target, g))
        rows.append(s[:, :, None] * s[:, None, :])
    rows = torch.stack(rows)
    basis = torch.eye(outputs[0].numel(), dtype=F64).reshape(-1, *outputs.shape[1:])
    H = torch.stack([loss.output_hessian(outputs, target, e.expand(outputs.shape)) for e in basis], -1)  # `(N, ..., D)`
    if name == "tokens": H = torch.stack([H[:, :, t, t::T] for t in range(T)], 1).reshape(-1, C, C)
    error = rows.std(0) / n ** .5
    assert ((rows.mean(0) - H.reshape(rows.shape[1:])).abs() <= 6 * error + 1e-12).all()


@pytest.mark.parametrize("name", ["plain", "weights, gaps, smoothing", "tokens", "squared", "one logit",
                                  "several labels"])
def test_scores_of_the_targets_are_the_gradients_of_their_terms(name):
    "Each divided by the root of how often the label counts."
    loss, outputs, target = given(name)
    out = outputs.clone().requires_grad_()
    r, = torch.autograd.grad(loss.total(out, target), out)
    count = torch.ones(N, dtype=F64)
    if name in ("weights, gaps, smoothing", "tokens"):
        count = loss.target_weights(outputs, target).sum(1, keepdim=True)
        assert (count == 0).any()
    if name == "one logit": count = torch.where(target == 1, 3., 1.).double()
    if name == "several labels": count = WEIGHT
    scores = loss.score(outputs, target)
    assert torch.allclose(scores * (count.sqrt() if count.shape != (N,) else 1), r, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("name", CLASSES)
def test_residual_is_the_gradient_for_the_label(name):
    loss, outputs, _ = given(name)
    labels = torch.arange(N) % loss.n_classes(outputs)
    out = outputs.clone().requires_grad_()
    total = nn.CrossEntropyLoss(weight=WEIGHT,
                                reduction="sum") if name == "nll" else loss.total  # of log-probabilities, the same
    r, = torch.autograd.grad(total(out, loss.target(labels, out)), out)
    unit, log_norm = loss.residual(outputs, labels)
    scale = log_norm.exp().reshape(-1, *[1] * (outputs.ndim - 1))
    assert torch.allclose(unit * scale, r, rtol=1e-9, atol=1e-12)
    each = loss.label_losses(outputs, labels)
    assert torch.allclose(each.sum(), loss.total(outputs, loss.target(labels, outputs)), rtol=1e-10)


def test_one_logit_is_two():
    loss, z, bits = given("one logit, no axis")
    scores, labels = loss.logits(z), bits.long()
    assert torch.equal(loss.predictions(z), (z > 0).long()) and loss.n_classes(z) == 2
    assert torch.allclose(F.cross_entropy(scores, labels), F.binary_cross_entropy_with_logits(z, bits))
    sure = torch.tensor([200.], dtype=torch.float32)
    unit, log_norm = loss.residual(sure, torch.tensor([1]))
    assert unit.item() == -1 and log_norm.item() == pytest.approx(-200)


@pytest.mark.parametrize("name", ["squared", "several labels"])
def test_what_has_no_class_says_so(name):
    loss, outputs, _ = given(name)
    for call in (lambda: loss.logits(outputs), lambda: loss.predictions(outputs), lambda: loss.n_classes(outputs),
                 lambda: loss.residual(outputs, Y)):
        with pytest.raises(TypeError, match=r"no classes here \(a regression, or several labels.*spectrum, trace"):
            call()


def test_squared_error_with_one_hot_rows_has_classes():
    rows = F.one_hot(Y, C).double()
    loss = as_loss("mse_loss").specialise(Z, rows)
    assert torch.equal(loss.predictions(Z), Z.argmax(1))
    assert not as_loss("mse_loss").specialise(Z, 2 * rows).one_hot and not as_loss("mse_loss").specialise(Z[:, :1],
            rows[:, :1]).one_hot


def test_scores_are_refused_without_a_likelihood():
    with pytest.raises(TypeError, match="Gauss-Newton matrix, or override Loss.score"):
        as_loss(CASES["a function"][0]).score(Z, Y)
    with pytest.raises(NotImplementedError): Loss().total(Z, Y)


@pytest.mark.parametrize("target, error, message", [
    (BITS[:, :1], ValueError, "shaped like the outputs"), (BITS * 2, ValueError, "between 0 and 1")])
def test_targets_of_several_labels(target, error, message):
    with pytest.raises(error, match=message): as_loss("binary_cross_entropy_with_logits").check(Z, target)
