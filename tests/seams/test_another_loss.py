"A loss of one's own, in one class: it takes part in everything."
import math

import torch
import torch.nn.functional as F
from torch import nn

from conftest import blobs, build
from hessnb import HessianOperator, Objective, align, estimate_margin, scan_plane, top_eigenpairs
from hessnb.curvature.loss import Loss


class SquaredHinge(Loss):
    "The square of what the label's score lacks to be 1 above the best other score."
    name = "squared hinge"
    def total(self, outputs, target):
        own = F.one_hot(target, outputs.shape[1]).bool()
        return (1 - outputs[own] + outputs.masked_fill(own, -math.inf).amax(1)).clamp_min(0).square().sum()
    def logits(self, outputs): return outputs


def test_another_loss():
    X, y = blobs(N=30, D=2, C=3)
    model = build(lambda: nn.Sequential(nn.Linear(2, 6), nn.Tanh(), nn.Linear(6, 3)))
    objective = Objective(model, (X, y), SquaredHinge())
    pairs = top_eigenpairs(HessianOperator(objective), 3)
    a = align(objective, X, pairs.vectors)
    labels = model(X).argmax(1)
    for i in range(5):
        loss = SquaredHinge().total(model(X[i:i + 1]), labels[i:i + 1])
        g = torch.cat([t.reshape(-1) for t in torch.autograd.grad(loss, list(model.parameters()))])
        assert torch.allclose(a.cosines[i], pairs.vectors @ g / g.norm(), atol=1e-9)
    assert scan_plane(objective, X, n=9).predictions.shape == (9, 9)
    assert 0 < estimate_margin(objective, X, pairs).value < 10 and pairs.converged.all()
