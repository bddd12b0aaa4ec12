"""Descent inside and outside of the space of the top C eigenvectors, C the number of classes.

    python benchmarks/top_space.py                        both networks, to nbs/results/top_space.csv (10 minutes)
    python benchmarks/top_space.py --networks mlp --seeds 2 --out /tmp/top_space.csv

A network is trained by SGD with a constant step, and then goes on in four ways over the same batches: as before (sgd),
with every update projected onto the space (top), onto what is orthogonal to it (bulk), and onto a space of C random
directions, drawn anew for each step (random). The eigenvectors are those of the Hessian of the training loss at the
parameters reached, renewed every step (mlp) or every fifth (cnn). Cross-entropy, digits, 50 examples a batch.
"""
import argparse
import csv
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hessnb.curvature.eigenpairs import EigenPairs
from hessnb.curvature.hessian import HessianOperator
from hessnb.curvature.objective import Objective
from hessnb.curvature.top import top_eigenpairs
from hessnb.paper.data import mnist_digits
from hessnb.paper.networks import cnn, mlp

HEADER = ("network", "seed", "run", "step", "measure", "value")
RUNS, N_CLASSES, BATCH = ("sgd", "top", "bulk", "random"), 10, 50


@dataclass(frozen=True)
class Setup:
    "How a network is trained, and how often it is looked at."
    seeds: int
    lr: float
    before: int  # steps of SGD before the ways part
    after: int  # steps from there on
    renew: int  # steps between two sets of eigenvectors
    every: int  # steps between two rows of the table
    watch: int  # steps between two looks at the gradient


SETUPS = {"mlp": Setup(5, .1, 300, 300, 1, 15, 15), "cnn": Setup(3, .05, 100, 100, 5, 5, 20)}


def digits(network: str) -> tuple[Tensor, Tensor]:
    "500 images of 8 x 8 pixels as rows, or 200 of 28 x 28."
    if network == "cnn":
        data = mnist_digits(tuple(range(N_CLASSES)), n_per_class=40)
        return data.X_train[:200], data.y_train[:200]
    from sklearn.datasets import load_digits
    X, y = map(torch.as_tensor, load_digits(return_X_y=True))
    some = torch.randperm(len(y), generator=torch.Generator().manual_seed(0))[:500]
    return (X[some] / 16).float(), y[some]


def network_of(name: str, seed: int) -> nn.Module:
    return cnn(N_CLASSES, seed=seed) if name == "cnn" else mlp(64, N_CLASSES, (32,), seed=seed)


def inside(V: Tensor, g: Tensor) -> Tensor:  # `(P,)`
    "What of a vector lies in the span of orthonormal rows `(k, P)`."
    return (V @ g) @ V


def share(V: Tensor, g: Tensor) -> float: return (inside(V, g).square().sum() / g.square().sum()).item()


def top_space(objective: Objective, theta: Tensor, start: EigenPairs | None, **options) -> EigenPairs:
    "The top C eigenpairs at `theta`, searched from those of an earlier step."
    op = HessianOperator(objective.at(theta), verify=False)  # was verified where the training began
    start = None if start is None else start.vectors
    return top_eigenpairs(op, N_CLASSES, start=start, progress=False, **options)


def random_space(like: Tensor, generator: torch.Generator) -> Tensor:  # `(C, P)`
    return torch.linalg.qr(torch.randn(len(like), N_CLASSES, generator=generator, dtype=like.dtype)).Q.T


def descend(
    model: nn.Module,  # trained in place
    X: Tensor, y: Tensor,
    setup: Setup,
    run: str,  # one of RUNS
    seed: int,  # of the batches, the same for all runs
) -> Iterator[tuple[int, Tensor, Tensor]]:
    "Step, parameters and the gradient of the batch to come, before each update and at the end."
    params, objective, pairs = list(model.parameters()), Objective(model, (X, y)), None
    batches, spaces = torch.Generator().manual_seed(seed), torch.Generator().manual_seed(1000 + seed)
    theta = objective.theta
    end = setup.before + setup.after
    for step in range(end + 1):
        batch = torch.randint(0, len(y), (BATCH,), generator=batches)
        grads = torch.autograd.grad(F.cross_entropy(model(X[batch]), y[batch]), params)
        g = torch.cat([each.flatten() for each in grads])
        yield step, theta, g
        if step == end: return
        if step >= setup.before and run != "sgd":
            if run == "random": V = random_space(g, spaces)
            else:
                if (step - setup.before) % setup.renew == 0:
                    pairs = top_space(objective, theta, pairs, tol=.05, miss_probability=1)
                V = pairs.vectors
            g = g - inside(V, g) if run == "bulk" else inside(V, g)
        theta = theta - setup.lr * g
        nn.utils.vector_to_parameters(theta, params)


def measured(name: str, run: str, seed: int, X: Tensor, y: Tensor, setup: Setup) -> Iterator[tuple[int, str, float]]:
    "Step, measure and value of one run."
    model, pairs = network_of(name, seed), None
    objective = Objective(model, (X, y))
    for step, theta, g in descend(model, X, y, setup, run, seed):
        if step % setup.every == 0 and (run == "sgd" or step >= setup.before):
            yield step, "loss", objective.at(theta).value()
            yield step, "accuracy", (objective.at(theta).classes(X) == y).double().mean().item()
        if run == "sgd" and step % setup.watch == 0:
            pairs = top_space(objective, theta, pairs, tol=1e-2)
            yield step, "share", share(pairs.vectors, objective.at(theta).grad())
            yield step, "share of a batch", share(pairs.vectors, g)
            yield step, "lambda_1", pairs.values[0].item()
            yield step, "lambda_C", pairs.values[-1].item()


def read(path: Path) -> list[dict]:
    with open(path, newline="") as file: return list(csv.DictReader(file))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", default=list(SETUPS), choices=list(SETUPS))
    parser.add_argument("--seeds", type=int, help="default: 5 for mlp, 3 for cnn")
    parser.add_argument("--out", type=Path, default=Path("nbs/results/top_space.csv"))
    options = parser.parse_args()
    part = options.out.with_suffix(".part")
    with open(part, "w", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(HEADER)
        for name in options.networks:
            X, y = digits(name)
            for seed in range(options.seeds or SETUPS[name].seeds):
                began = time.perf_counter()
                for run in RUNS:
                    for step, measure, value in measured(name, run, seed, X, y, SETUPS[name]):
                        table.writerow((name, seed, run, step, measure, f"{value:.6g}"))
                print(f"{name} seed {seed}: {time.perf_counter() - began:.0f} s", flush=True)
    os.replace(part, options.out)


if __name__ == "__main__": main()
