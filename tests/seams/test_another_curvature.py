"A curvature matrix of one's own, from one method: it takes part in everything."
import torch
from torch import nn

from conftest import blobs, build, randn
from hessnb import HessianOperator, Objective, spectral_density, top_eigenpairs, trace
from hessnb.curvature.derivatives import Pullback, pushforward
from hessnb.curvature.hessian import CurvatureOperator


class TangentKernel(CurvatureOperator):
    "The mean over examples of J^T J: it has the spectrum of the neural tangent kernel."
    def linear_map(self, inputs, target):
        leaves = list(self.leaves.values())
        outputs = self.objective.outputs(self.leaves, inputs)
        push, pull = pushforward(outputs, leaves), Pullback(outputs, leaves)
        return lambda v: pull(push(v).reshape(outputs.shape)) / self.objective.n_examples


def test_another_curvature():
    X, y = blobs(N=33, D=2, C=3)
    model = build(lambda: nn.Sequential(nn.Linear(2, 6), nn.Tanh(), nn.Linear(6, 3)))
    objective = Objective(model, list(zip(X.split([20, 13]), y.split([20, 13]))))
    theta = objective.theta
    J = torch.autograd.functional.jacobian(lambda t: torch.func.functional_call(model, objective.named(t), X), theta)
    A = J.flatten(0, 1).T @ J.flatten(0, 1) / 33
    for kwargs in (dict(), dict(product="replay"), dict(memory_budget=0)):
        op = TangentKernel(objective, **kwargs)
        pairs = top_eigenpairs(op, 4, tol=1e-8)
        assert torch.allclose(pairs.values, torch.linalg.eigvalsh(A).flip(0)[:4], rtol=1e-8) and pairs.converged.all()
        assert abs(trace(op, exact=True).value / A.trace().item() - 1) < 1e-10
    V = randn(200, len(theta))
    assert torch.allclose(op.matmat(V), V @ A, atol=1e-10)
    assert spectral_density(TangentKernel(objective), n_steps=20, n_probes=3).n_matvecs == 60
    mixed = (HessianOperator(objective) + .1 * TangentKernel(objective)).to_dense()
    assert torch.allclose(mixed - .1 * A, HessianOperator(objective).to_dense(), atol=1e-12)
