"""Moving a trained network along its top eigenvectors until the classes' accuracies are alike.

    python benchmarks/rebalance.py                        to nbs/results/rebalance.csv (3 minutes)
    python benchmarks/rebalance.py --seeds 2 --out /tmp/rebalance.csv

A perceptron 196-32-C learns digits of 14 x 14 pixels. Of C = 10 classes the largest has 100 examples, the smallest 10
(`unequal`), or each has 50 (`equal`). Within a ball around the parameters, in the span of C - 1 directions, the place
is sought where the accuracies of the classes spread least on one held-out half, at the mean accuracy that was there;
the other half judges it. Directions: the top eigenvectors, the next ones, those further down, random ones, and the
biases of the output layer. Apart from that the eigenvalues that stand out of the bulk are counted, for 3 to 10 classes
of 50 examples at one training loss (`spikes`).
"""
import argparse
import csv
import functools
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from hessnb.curvature.hessian import HessianOperator
from hessnb.curvature.objective import Objective
from hessnb.curvature.outliers import count_outliers
from hessnb.curvature.top import top_eigenpairs
from hessnb.paper.data import mnist_digits
from hessnb.paper.networks import mlp

HEADER = ("part", "seed", "classes", "directions", "radius", "measure", "value")
N_CLASSES, LARGEST, SMALLEST, SEEDS = 10, 100, 10, 8
RADII, FAR, ROUNDS = (.25, .5, 1., 2.), 8., 5
SPIKES_AT = .1  # training loss


@dataclass(frozen=True, eq=False)
class Split:
    "Training examples, and two halves of the rest."
    train: tuple[Tensor, Tensor]
    search: tuple[Tensor, Tensor]
    judge: tuple[Tensor, Tensor]


@functools.cache
def images() -> tuple[Tensor, Tensor]:
    "500 of each digit, `(5000, 196)`, pixels in [0, 1]."
    data = mnist_digits(tuple(range(10)), n_per_class=500)
    X = torch.cat([data.X_train, data.X_test])
    return F.avg_pool2d(X, 2).flatten(1), torch.cat([data.y_train, data.y_test])


def split(sizes: list[int], seed: int) -> Split:
    "So many training examples of each class, and 200 for each half."
    X, y = images()
    generator = torch.Generator().manual_seed(seed)
    parts = [[], [], []]
    for c, n in enumerate(sizes):
        mine = (y == c).nonzero()[:, 0]
        mine = mine[torch.randperm(len(mine), generator=generator)]
        for part, some in zip(parts, (mine[:n], mine[-400:-200], mine[-200:])): part.append(some)
    return Split(*((X[rows], y[rows]) for rows in map(torch.cat, parts)))


def sizes_of(part: str, seed: int) -> list[int]:
    "50 each, or from 100 down to 10 in equal ratios, dealt to the classes at random."
    if part == "equal": return [50] * N_CLASSES
    sizes = [round(LARGEST * (SMALLEST / LARGEST) ** (j / (N_CLASSES - 1))) for j in range(N_CLASSES)]
    return [sizes[i] for i in torch.randperm(N_CLASSES, generator=torch.Generator().manual_seed(seed))]


def trained(data: Split, n_classes: int, seed: int, loss: float = 0.) -> nn.Module:
    "A perceptron after 600 steps of SGD with momentum, or as soon as its training loss is at most `loss`."
    model, X, y = mlp(196, n_classes, (32,), seed=seed), *data.train
    batches = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.SGD(model.parameters(), .1, momentum=.9)
    for _ in range(600):
        if loss and F.cross_entropy(model(X), y).item() <= loss: break
        batch = torch.randint(0, len(y), (50,), generator=batches)
        optimizer.zero_grad()
        F.cross_entropy(model(X[batch]), y[batch]).backward()
        optimizer.step()
    model.zero_grad(set_to_none=True)
    return model.eval()


class Mover:
    "A network at other parameters, and its accuracy on each class."
    def __init__(self, model: nn.Module):
        self.model, self.names = model, [(name, p.shape) for name, p in model.named_parameters()]
        self.theta = nn.utils.parameters_to_vector(model.parameters()).detach()

    @torch.no_grad()
    def accuracies(self, theta: Tensor, data: tuple[Tensor, Tensor]) -> Tensor:  # `(C,)`
        pieces = theta.split([shape.numel() for _, shape in self.names])
        params = {name: piece.view(shape) for (name, shape), piece in zip(self.names, pieces)}
        right = (functional_call(self.model, params, (data[0],)).argmax(1) == data[1]).double()
        n = torch.bincount(data[1]).double()
        return torch.zeros_like(n).index_add_(0, data[1], right) / n


def spread(accuracies: Tensor) -> float: return accuracies.std().item()  # over classes


def rebalanced(
    mover: Mover,
    V: Tensor,  # `(k, P)`, orthonormal rows
    radius: float,  # largest norm of the coefficients
    data: tuple[Tensor, Tensor],
    begin: Tensor | None = None,  # `(k,)` coefficients found in a smaller ball; None: zero
) -> Tensor:  # `(k,)`
    "Coefficients of the least spread at no less than the mean accuracy at rest, searched one after the other."
    at = lambda a: mover.accuracies(mover.theta + a @ V, data)
    floor = at(V.new_zeros(len(V))).mean().item() - 1e-9
    amounts = V.new_zeros(len(V)) if begin is None else begin
    best = spread(at(amounts))
    for step in radius * .6 ** torch.arange(ROUNDS):
        for i in range(len(V)):
            here = amounts
            for t in (-step, -step / 2, step / 2, step):
                a = here.clone()
                a[i] += t
                a *= min(1., radius / a.norm().item())
                found = at(a)
                if found.mean() >= floor and spread(found) < best: amounts, best = a, spread(found)
    return amounts


def directions(objective: Objective, seed: int) -> dict[str, Tensor]:
    "Orthonormal rows `(C - 1, P)`, for the biases `(C, P)`."
    k, P = N_CLASSES - 1, objective.n_params
    vectors = top_eigenpairs(HessianOperator(objective), 5 * k, tol=1e-2, progress=False).vectors
    drawn = torch.randn(P, k, generator=torch.Generator().manual_seed(seed))
    return {"top": vectors[:k], "next": vectors[k:2 * k], "further": vectors[4 * k:],
            "random": torch.linalg.qr(drawn).Q.T, "biases": torch.eye(P)[-N_CLASSES:]}


def moved(part: str, seed: int) -> Iterator[tuple]:
    "Rows of the table on moves, with classes `unequal` or `equal`."
    data = split(sizes_of(part, seed), seed)
    model = trained(data, N_CLASSES, seed)
    mover, objective = Mover(model), Objective(model, data.train)
    row = lambda name, radius, measure, value: (part, seed, N_CLASSES, name, radius, measure, f"{value:.5g}")

    def judged(name, radius, theta):
        for half in ("search", "judge"):
            a = mover.accuracies(theta, getattr(data, half))
            yield row(name, radius, f"spread {half}", spread(a))
            yield row(name, radius, f"accuracy {half}", a.mean())
            yield row(name, radius, f"worst {half}", a.min())
        yield row(name, radius, "loss", objective.at(theta).value())
        yield row(name, radius, "distance", (theta - mover.theta).norm())

    yield from judged("none", 0., mover.theta)
    for name, V in directions(objective, seed).items():
        amounts = None
        for radius in (*RADII, FAR) if name in ("random", "biases") else RADII:
            amounts = rebalanced(mover, V, radius, data.search, amounts)
            yield from judged(name, radius, mover.theta + amounts @ V)


def spikes(seed: int) -> Iterator[tuple]:
    "Rows of the table on counts: eigenvalues, outliers by the rule of the lowest gap, and where the widest gap is."
    for n_classes in (3, 5, 7, 10):
        data = split([50] * n_classes, seed)
        model = trained(data, n_classes, seed, SPIKES_AT)
        objective = Objective(model, data.train)
        values = top_eigenpairs(HessianOperator(objective), 3 * n_classes, tol=1e-3, progress=False).values
        row = lambda measure, value: ("spikes", seed, n_classes, "", 0., measure, f"{value:.5g}")
        yield row("loss", objective.value())
        yield row("gap rule", count_outliers(values).count)
        yield row("widest gap", (values[1:-1] / values[2:]).argmax().item() + 2)  # not between the first two
        for i, value in enumerate(values.tolist(), 1): yield row(f"lambda {i}", value)


def read(path: Path) -> list[dict]:
    with open(path, newline="") as file: return list(csv.DictReader(file))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--out", type=Path, default=Path("nbs/results/rebalance.csv"))
    options = parser.parse_args()
    part = options.out.with_suffix(".part")
    with open(part, "w", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(HEADER)
        for seed in range(options.seeds):
            began = time.perf_counter()
            for name in ("unequal", "equal"): table.writerows(moved(name, seed))
            table.writerows(spikes(seed))
            print(f"seed {seed}: {time.perf_counter() - began:.0f} s", flush=True)
    os.replace(part, options.out)


if __name__ == "__main__": main()
