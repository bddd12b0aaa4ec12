"""Are the spectra of a network's blocks alike? A small VGG and a small encoder of BERT's shape.

    python benchmarks/layers_alike.py                     to nbs/results/layers_alike.csv (4 minutes)
    python benchmarks/layers_alike.py --seeds 2 --out /tmp/layers_alike.csv

A block is the part of the Hessian that belongs to one weight matrix or kernel. Its spectral density is estimated by
stochastic Lanczos quadrature. Distances are Jensen-Shannon's (square root, base 2, between 0 and 1), of all pairs of
blocks: of the densities smoothed on a linear scale (`linear`), or in bins of the logarithm of the absolute eigenvalue
for both signs (`log`); with eigenvalues in units of the largest of all blocks, or of the block's own largest (`shape`).
The networks: a VGG on digits of 8 x 8 pixels, an encoder that fills in masked letters, and the same encoder on the
digits, a row of pixels as a token; each at the start and after 300 steps of Adam.
"""
import argparse
import csv
import itertools
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from sklearn.datasets import load_breast_cancer, load_diabetes, load_digits, load_wine
from torch import Tensor, nn

from hessnb.curvature.density import SpectralDensity, spectral_density
from hessnb.curvature.hessian import HessianOperator
from hessnb.curvature.objective import Objective

HEADER = ("network", "seed", "stage", "block", "other", "measure", "value")
SEEDS, STEPS, WIDTH, LETTERS, MASK = 3, 300, 24, 27, 27
N_STEPS, N_PROBES = 20, 4  # of the quadrature
GRID, SMOOTHING = torch.linspace(-1.1, 1.1, 441, dtype=torch.float64), .01  # likewise
EDGES = torch.logspace(-7, 0, 15, dtype=torch.float64)  # relative to the largest eigenvalue


def vgg() -> nn.Module:
    "Kernels and matrices begin as in He's initialisation, so that signals keep their size through the layers."
    model = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    for p in model.parameters(): nn.init.kaiming_normal_(p, nonlinearity="relu") if p.ndim > 1 else nn.init.zeros_(p)
    return model


class Layer(nn.Module):
    "Attention with two heads and a dense layer, each before a norm and beside a residual connection."
    def __init__(self):
        super().__init__()
        self.query, self.key, self.value, self.out = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.wide, self.narrow = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(2 * WIDTH, WIDTH)
        self.first, self.second = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (each(x).unflatten(-1, (2, -1)).transpose(1, 2) for each in (self.query, self.key, self.value))
        weights = (q @ k.transpose(-2, -1) / q.shape[-1] ** .5).softmax(-1)
        x = self.first(x + self.out((weights @ v).transpose(1, 2).flatten(2)))
        return self.second(x + self.narrow(F.gelu(self.wide(x))))


class Encoder(nn.Module):
    "Logits `(B, 27, T)` of letters, or `(B, 10)` of images whose rows are the tokens."
    def __init__(self, letters: bool):
        super().__init__()
        self.letters = letters
        self.tokens = nn.Embedding(LETTERS + 1, WIDTH) if letters else nn.Linear(8, WIDTH)
        self.places = nn.Parameter(torch.zeros(WIDTH, WIDTH).normal_(std=.02))
        self.norm, self.layers = nn.LayerNorm(WIDTH), nn.Sequential(Layer(), Layer())
        self.head = nn.Linear(WIDTH, LETTERS if letters else 10)
        if letters: nn.init.normal_(self.tokens.weight, std=.02)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layers(self.norm(self.tokens(x) + self.places[:x.shape[1]]))
        return self.head(x).transpose(1, 2) if self.letters else self.head(x.mean(1))


def letters() -> tuple[Tensor, Tensor]:
    "40 pieces of 24 letters of scikit-learn's descriptions of data, of which 15% are masked; targets, else -100."
    text = " ".join(load().DESCR for load in (load_breast_cancer, load_diabetes, load_digits, load_wine))
    text = re.sub("[^a-z]+", " ", text.lower())[:960]
    y = torch.tensor([0 if c == " " else ord(c) - ord("a") + 1 for c in text]).view(40, 24)
    masked = torch.rand(y.shape, generator=torch.Generator().manual_seed(0)) < .15
    return y.masked_fill(masked, MASK), y.masked_fill(~masked, -100)


def digits() -> tuple[Tensor, Tensor]:
    X, y = map(torch.as_tensor, load_digits(return_X_y=True))
    return (X[:100] / 16).float().view(100, 8, 8), y[:100]


def cases() -> dict[str, tuple]:
    "What makes the network, and its data."
    X, y = digits()
    return {"vgg": (vgg, (X[:, None], y)), "encoder": (lambda: Encoder(True), letters()),
            "encoder on digits": (lambda: Encoder(False), (X, y))}


def made(make, seed: int) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return make()


def blocks(model: nn.Module) -> list[str]:
    "Names of weight matrices and kernels."
    return [name for name, p in model.named_parameters() if p.ndim > 1 and name != "places"]


def density(model: nn.Module, data: tuple[Tensor, Tensor], name: str) -> SpectralDensity:
    "Of one block, without knowing any of its pairs."
    op = HessianOperator(Objective(model, data, params=[name]), verify=False)
    return spectral_density(op, n_steps=N_STEPS, n_probes=N_PROBES, explore=False)


def shares(nodes: Tensor, weights: Tensor, scale: float) -> Tensor:  # `(2 b + 1,)`, sums to 1
    "Mass of each bin, from the most negative eigenvalues through those near zero to the largest."
    bins = torch.bucketize(nodes.abs() / scale, EDGES[:-1]) * nodes.sign().long()  # 0: below the first edge
    out = torch.zeros(2 * len(EDGES) - 1, dtype=torch.float64)
    return out.index_add_(0, (bins + len(EDGES) - 1).flatten(), weights.flatten()) / len(nodes)


def smoothed(nodes: Tensor, weights: Tensor, scale: float) -> Tensor:  # `(g,)`, sums to 1
    "The density on a linear scale, eigenvalues in units of `scale`, smoothed by a Gaussian."
    bumps = (-.5 * ((GRID - nodes[..., None] / scale) / SMOOTHING) ** 2).exp()
    density = (weights[..., None] * bumps).sum((0, 1))
    return density / density.sum()


def jensen_shannon(p: Tensor, q: Tensor) -> float:
    "Distance of two distributions, in [0, 1]."
    entropy = lambda x: -torch.special.xlogy(x, x).sum()
    divergence = entropy((p + q) / 2) - (entropy(p) + entropy(q)) / 2
    return (divergence / torch.log(torch.tensor(2.))).clamp(0, 1).sqrt().item()


def compared(found: dict[str, SpectralDensity]) -> Iterator[tuple[str, str, str, float]]:
    "Block, other block, measure and value."
    largest = {name: d.nodes.abs().max().item() for name, d in found.items()}
    common = dict.fromkeys(found, max(largest.values()))
    for measure, put, scale in (("log", shares, common), ("log shape", shares, largest),
                                ("linear", smoothed, common), ("linear shape", smoothed, largest)):
        part = lambda name, rows: put(found[name].nodes[rows], found[name].weights[rows], scale[name])
        for a, b in itertools.combinations(found, 2):
            yield a, b, measure, jensen_shannon(part(a, slice(None)), part(b, slice(None)))
        for a in found:  # the two halves of the probes of one block
            yield a, a, measure, jensen_shannon(part(a, slice(0, None, 2)), part(a, slice(1, None, 2)))
    for name, value in largest.items(): yield name, "", "largest", value


def measured(network: str, seed: int) -> Iterator[tuple]:
    "Rows of the table."
    make, (X, y) = cases()[network]
    model = made(make, seed)
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for stage in ("start", "trained"):
        if stage == "trained":
            for _ in range(STEPS):
                optimizer.zero_grad()
                F.cross_entropy(model(X), y).backward()
                optimizer.step()
        row = lambda block, other, measure, value: (network, seed, stage, block, other, measure, f"{value:.4g}")
        yield row("", "", "loss", F.cross_entropy(model(X), y).item())
        for found in compared({name: density(model, (X, y), name) for name in blocks(model)}): yield row(*found)


def read(path: Path) -> list[dict]:
    with open(path, newline="") as file: return list(csv.DictReader(file))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--out", type=Path, default=Path("nbs/results/layers_alike.csv"))
    options = parser.parse_args()
    part = options.out.with_suffix(".part")
    with open(part, "w", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(HEADER)
        for network, seed in itertools.product(cases(), range(options.seeds)):
            began = time.perf_counter()
            table.writerows(measured(network, seed))
            print(f"{network} seed {seed}: {time.perf_counter() - began:.0f} s", flush=True)
    os.replace(part, options.out)


if __name__ == "__main__": main()
