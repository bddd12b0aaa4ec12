"Records of a real training, made by hand: what `track` writes, for tests of what shows it."
import math
import time

import torch
from torch import nn

from conftest import build, randn, seeded
from hessnb.boundary.complexity import boundary_complexity
from hessnb.boundary.margin_profile import margin_profile
from hessnb.curvature.hessian import HessianOperator
from hessnb.curvature.layers import layer_mass
from hessnb.curvature.objective import Objective
from hessnb.curvature.outliers import count_outliers
from hessnb.curvature.sampling import sampling_error
from hessnb.curvature.top import top_eigenpairs
from hessnb.curvature.trace import trace
from hessnb.show.grid import view_grid
from hessnb.training.records import Record, TrainingRecords


def points(D=2, N=60, C=3, seed=0):
    "Clusters that touch: inputs `(N, D)` and their classes."
    y = torch.arange(N) % C
    turn = 2 * math.pi * y / C
    X = .6 * randn(N, D, seed=seed)
    X[:, 0] += 1.5 * turn.cos()
    X[:, 1] += 1.5 * turn.sin()
    return X, y


def net(D=2, C=3, seed=0):
    return build(lambda: nn.Sequential(nn.Linear(D, 16), nn.Tanh(), nn.Linear(16, C)), seed)


def frame_of(objective, X, r):
    "Predicted classes and logit margins on a grid, and its box; rows go up."
    grid = view_grid(objective, X, n=r)
    top = objective.logits(grid.inputs).topk(2).values
    classes = objective.classes(grid.inputs).reshape(r, r).to(torch.uint8)
    return classes, (top[:, 0] - top[:, 1]).reshape(r, r).half(), list(grid.extent)


def watched(n=8, every=10, *, lr=.5, k=3, D=2, r=40, rich=True, frames=True, seed=0, folder=None):
    "`n` records of gradient descent; rich: with all standard measures."
    X, y = points(D)
    model, loss_fn = net(D, seed=seed), nn.functional.cross_entropy
    about = {"k": k, "n_params": sum(p.numel() for p in model.parameters()), "classes": ["a", "b", "c"],
             "optimizer": "SGD", "tol": 1e-3, "which": "LA", "frame_kind": "input",
             "frame_points": [[*x, int(c)] for x, c in zip(X[:, :2].tolist(), y)]}
    records, optimizer = TrainingRecords(folder, about), torch.optim.SGD(model.parameters(), lr=lr)
    start, before = time.monotonic(), None
    for i in range(n):
        objective = Objective(model, (X, y))
        op = HessianOperator(objective)
        pairs = top_eigenpairs(op, k, tol=1e-3)
        gradient, out = objective.grad(), model(X).detach()
        right = out.argmax(1) == y
        numbers = {"seconds": time.monotonic() - start, "loss": objective.value(), "lr": lr, "threshold": 2 / lr,
                   "accuracy": right.double().mean().item(), "sharpness": pairs.values[0].item(),
                   "gradient_norm": gradient.norm().item(), "n_matvecs": float(pairs.n_matvecs)}
        arrays = {"values": pairs.values, "residuals": pairs.residuals, "converged": pairs.converged}
        if rich:
            V, mass = pairs.vectors, layer_mass(objective, pairs.vectors)
            total, wide = trace(op, pairs=pairs, generator=seeded(i)), margin_profile(objective, X)
            numbers |= {"trace": total.value, "trace_error": total.standard_error,
                        "outliers": float(count_outliers(pairs.values).count),
                        "complexity": boundary_complexity(objective, X).dimension, "margin": wide[.5]}
            arrays |= {"errors": sampling_error(op, pairs).standard_error, "layers": mass.mass,
                       "participation": 1 / V.pow(4).sum(1), "gradient": (V @ gradient / gradient.norm()).square(),
                       "accuracies": torch.stack([right[y == c].double().mean() for c in range(3)])}
            if before is not None: arrays["angles"] = torch.linalg.svdvals(before @ V.T).clamp(max=1).acos().flip(0)
            records.describe(layers=list(mass.names))
            before = V
        if frames: arrays["frame"], arrays["frame_margin"], box = frame_of(objective, X, r)
        if frames: records.describe(frame_box=box)
        records.append(Record(i * every, numbers, arrays))
        for _ in range(every):
            optimizer.zero_grad()
            loss_fn(model(X), y).backward()
            optimizer.step()
    return records
