"""How much of the top eigenvectors lies in the span of mean gradients of classes, while a network learns.

    python benchmarks/class_pairs.py                      both networks, to nbs/results/class_pairs.csv (5 minutes)
    python benchmarks/class_pairs.py --networks mlp --seeds 2 --out /tmp/class_pairs.csv

At some steps of SGD the 2 C largest eigenpairs of the Hessian are found, C the number of classes. Means are taken of
the loss gradients of a class (`class`), of a class and the class that the network mistakes it for most (`pair`), and of
the gradients of single logits over all examples (`logit`) or over one class (`class and logit`, C x C means). Against
them: groups of the same sizes drawn at random (`shuffled`), the gradients of C examples, one of each class
(`examples`), and C random directions (`random`).
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

from hessnb.boundary.structure import class_structure
from hessnb.curvature.eigenpairs import EigenPairs
from hessnb.curvature.hessian import HessianOperator
from hessnb.curvature.objective import Objective
from hessnb.curvature.top import top_eigenpairs
from hessnb.paper.data import mnist_digits
from hessnb.paper.networks import cnn, mlp

HEADER = ("network", "seed", "step", "span", "rank", "pair", "explained")  # pair: 1 is that of the largest eigenvalue
N_CLASSES, BATCH = 10, 50


@dataclass(frozen=True)
class Setup:
    "How a network is trained, and when it is looked at."
    seeds: int
    lr: float
    steps: tuple[int, ...]


SETUPS = {"mlp": Setup(5, .1, (0, 25, 50, 100, 150, 200, 300, 450, 600)), "cnn": Setup(3, .05, (0, 20, 50, 100, 200))}


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


def flat_grads(output: Tensor, model: nn.Module) -> Tensor:  # `(P,)`
    return torch.cat([g.flatten() for g in torch.autograd.grad(output, list(model.parameters()), retain_graph=True)])


def logit_means(model: nn.Module, X: Tensor, y: Tensor) -> Tensor:  # `(C, C, P)`
    "Mean gradient of each logit (second axis) over the examples of each class (first axis)."
    logits = model(X)
    return torch.stack([torch.stack([flat_grads(logits[y == c, j].mean(), model) for j in range(N_CLASSES)])
                        for c in range(N_CLASSES)])


def one_of_each(model: nn.Module, X: Tensor, y: Tensor, generator: torch.Generator) -> Tensor:  # `(C, P)`
    "Loss gradients of one example of each class."
    order = torch.randperm(len(y), generator=generator)
    chosen = [order[y[order] == c][0] for c in range(N_CLASSES)]
    losses = F.cross_entropy(model(X), y, reduction="none")
    return torch.stack([flat_grads(losses[i], model) for i in chosen])


def explained(rows: Tensor, V: Tensor) -> tuple[int, Tensor]:
    "Rank of rows `(g, P)`, and the squared norm of each of V's unit vectors `(k, P)` in their span, `(k,)`."
    rows = rows.double() / rows.double().norm(dim=1, keepdim=True).clamp_min(1e-300)
    _, s, W = torch.linalg.svd(rows, full_matrices=False)
    W = W[s > 1e-5 * s[0]]
    return len(W), (V.double() @ W.T).square().sum(1)


def spans(model: nn.Module, objective: Objective, pairs: EigenPairs, seed: int) -> Iterator[tuple[str, int, Tensor]]:
    "Name and rank of each span, and the share of each eigenvector that lies in it, `(2 C,)`."
    X, y = objective.examples()
    generator, V = torch.Generator().manual_seed(seed), pairs.vectors
    structure = class_structure(objective, X, pairs, labels=y, weighting="raw", generator=generator)
    for name, groups in (("class", structure.by_class), ("pair", structure.by_pair)):
        yield name, groups.rank, groups.explained
        yield f"shuffled {name}", groups.rank, groups.shuffled
    means = logit_means(model, X, y)
    weights = torch.bincount(y, minlength=N_CLASSES).to(means) / len(y)
    yield "logit", *explained(torch.einsum("c,cjp->jp", weights, means), V)
    yield "class and logit", *explained(means.flatten(0, 1), V)
    yield "examples", *explained(one_of_each(model, X, y, generator), V)
    yield "random", *explained(torch.randn(N_CLASSES, V.shape[1], generator=generator), V)


def measured(name: str, seed: int, X: Tensor, y: Tensor) -> Iterator[tuple]:
    "Rows of the table."
    model, setup, pairs = network_of(name, seed), SETUPS[name], None
    batches = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.SGD(model.parameters(), setup.lr)
    for step in range(setup.steps[-1] + 1):
        if step in setup.steps:
            objective = Objective(model, (X, y))
            start = None if pairs is None else pairs.vectors
            pairs = top_eigenpairs(HessianOperator(objective), 2 * N_CLASSES, tol=1e-2, start=start, progress=False)
            yield name, seed, step, "loss", 0, 0, f"{objective.value():.5g}"
            for span, rank, shares in spans(model, objective, pairs, seed):
                for i, x in enumerate(shares.tolist(), 1): yield name, seed, step, span, rank, i, f"{x:.4f}"
        batch = torch.randint(0, len(y), (BATCH,), generator=batches)
        optimizer.zero_grad()
        F.cross_entropy(model(X[batch]), y[batch]).backward()
        optimizer.step()


def read(path: Path) -> list[dict]:
    with open(path, newline="") as file: return list(csv.DictReader(file))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", default=list(SETUPS), choices=list(SETUPS))
    parser.add_argument("--seeds", type=int, help="default: 5 for mlp, 3 for cnn")
    parser.add_argument("--out", type=Path, default=Path("nbs/results/class_pairs.csv"))
    options = parser.parse_args()
    part = options.out.with_suffix(".part")
    with open(part, "w", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(HEADER)
        for name in options.networks:
            X, y = digits(name)
            for seed in range(options.seeds or SETUPS[name].seeds):
                began = time.perf_counter()
                table.writerows(measured(name, seed, X, y))
                print(f"{name} seed {seed}: {time.perf_counter() - began:.0f} s", flush=True)
    os.replace(part, options.out)


if __name__ == "__main__": main()
