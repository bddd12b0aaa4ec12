"""What does a search save that begins with the eigenvectors of a while ago? Products along training runs, to a CSV.

    python benchmarks/warm.py                        both networks, every optimiser and spacing (half an hour)
    python benchmarks/warm.py --networks cnn --records 5 --out /tmp/warm.csv

At each record three searches of the same Hessian to the same certificate: from a random vector (cold), from the sum of
the eigenvectors of the record before (warm), and from all of these as a block. Digits of scikit-learn, float32.
"""
import argparse
import csv
import warnings
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import nn

from hessnb import HessianOperator, Objective, top_eigenpairs

N = 300
OPTIMISERS = {"gd": lambda ps: torch.optim.SGD(ps, .05), "sgd": lambda ps: torch.optim.SGD(ps, .05, momentum=.9),
              "adam": lambda ps: torch.optim.Adam(ps, 1e-3)}
HEADER = ("network", "optimiser", "every", "k", "record", "cold_search", "cold_certify", "warm_search", "warm_certify",
          "block_search", "block_certify", "angle", "agree")


def cnn():
    def block(i, o): return nn.Conv2d(i, o, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)
    return nn.Sequential(nn.Unflatten(1, (1, 8)), *block(1, 8), *block(8, 16), nn.Flatten(), nn.Linear(64, 10))


class Encoder(nn.Module):
    "Two layers of attention over the rows of an image."
    def __init__(self, width=32):
        super().__init__()
        layer = nn.TransformerEncoderLayer(width, 4, 64, dropout=0., batch_first=True, activation="gelu")
        self.rows, self.places = nn.Linear(8, width), nn.Parameter(.1 * torch.randn(8, width))
        self.layers, self.head = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), nn.Linear(width, 10)

    def forward(self, x): return self.head(self.layers(self.rows(x) + self.places).mean(1))


NETWORKS = {"cnn": cnn, "encoder": Encoder}


def trajectory(network, optimiser, X, y, every, n, seed=0):
    "The objective, and the parameters `(n, P)` along training."
    torch.manual_seed(seed)
    model, generator, at = NETWORKS[network](), torch.Generator().manual_seed(seed), []
    steps = OPTIMISERS[optimiser](model.parameters())
    for i in range(every * n):
        if i % every == 0: at.append(nn.utils.parameters_to_vector(model.parameters()).detach().clone())
        some = slice(None) if optimiser == "gd" else torch.randint(0, N, (64,), generator=generator)
        steps.zero_grad()
        nn.functional.cross_entropy(model(X[some]), y[some]).backward()
        steps.step()
    return Objective(model.eval(), (X, y)), torch.stack(at)


def compare(objective, thetas, k, tol):
    "For each record but the first: products of the three searches, the largest angle, and whether they agree."
    before = None
    for i, theta in enumerate(thetas):
        op = HessianOperator(objective.at(theta), verify=False)
        search = lambda start: top_eigenpairs(op, k, tol=tol, start=start, single=False)
        cold = search(None)
        if before is not None:
            found = [cold, search(before.sum(0)), search(before)]
            counts = [n for pairs in found for n in (pairs.n_matvecs, pairs.n_certify)]
            cosine = torch.linalg.svdvals(cold.vectors.double() @ before.double().T).min().clamp(0, 1)
            agree = all(torch.allclose(pairs.values, cold.values, rtol=2 * tol) for pairs in found)
            yield i, *counts, round(torch.acos(cosine).item(), 4), int(agree)
        before = cold.vectors


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=NETWORKS)
    parser.add_argument("--records", type=int, default=30)
    parser.add_argument("--tol", type=float, default=1e-2)
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "nbs" / "results" / "warm.csv")
    args = parser.parse_args()
    data = load_digits()
    X, y = torch.tensor(data.images[:N], dtype=torch.float32) / 16, torch.tensor(data.target[:N])
    warnings.simplefilter("ignore")  # of pairs that do not converge at the start of training: they are counted alike
    with open(args.out, "w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(HEADER)
        for network in args.networks:
            for optimiser in OPTIMISERS:
                for every in (1, 10, 50):
                    objective, thetas = trajectory(network, optimiser, X, y, every, args.records)
                    for k in (1, 5):
                        rows.writerows((network, optimiser, every, k, *row)
                                       for row in compare(objective, thetas, k, args.tol))
                        file.flush()


if __name__ == "__main__": main()
