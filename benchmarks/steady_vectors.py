"""Do the leading eigenvectors come to rest while a network trains, and over how many parameters do they spread?

    python benchmarks/steady_vectors.py                        five seeds, four trainings, about two minutes
    python benchmarks/steady_vectors.py --seeds 1 --out /tmp/steady.csv

A perceptron 64-50-50-10 (ReLU) on 1,000 handwritten digits (scikit-learn's) in mini-batches of 64; the eigenpairs are
those of the loss of all 1,000, float64. `overlap` is the mean squared cosine of the principal angles between the five
leading eigenvectors and those of the record before, `first` the squared cosine of the first with the first; `spread`
is the participation 1 / sum v^4 of the first, in parameters, `spreads` its mean over the five.
"""
import argparse
import csv
import time
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn

from hessnb.training.track import track

OPTIMISERS = {"SGD": lambda ps: torch.optim.SGD(ps, .1), "momentum": lambda ps: torch.optim.SGD(ps, .02, momentum=.9),
              "Adam": lambda ps: torch.optim.Adam(ps, 1e-3), "Adam .01": lambda ps: torch.optim.Adam(ps, 1e-2)}
STEPS, EVERY, BATCH, K = 2400, 80, 64, 5
HEADER = ("optimiser", "seed", "step", "loss", "sharpness", "overlap", "first", "spread", "spreads", "moved")
RESULTS = Path(__file__).parents[1] / "nbs" / "results"


def digits(n: int = 1000) -> tuple[Tensor, Tensor]:  # `(n, 64)` and `(n,)`
    images, labels = load_digits(return_X_y=True)
    return torch.from_numpy(images[:n]) / 16, torch.from_numpy(labels[:n]).long()


def network(seed: int) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(64, 50), nn.ReLU(), nn.Linear(50, 50), nn.ReLU(), nn.Linear(50, 10)).double()


def follow(name: str, seed: int) -> Iterator[dict]:
    "Rows of one training."
    X, y = digits()
    model, generator, before = network(seed), torch.Generator().manual_seed(seed), None
    optimizer = OPTIMISERS[name](model.parameters())
    tracker = track(model, (X, y), k=K, every=EVERY, tol=1e-4,
                    measures=("loss", "values", "angles", "participation", "vectors"))
    at = last = nn.utils.parameters_to_vector(model.parameters()).detach().clone()
    for step in range(STEPS + 1):
        if record := tracker.step(step):
            at = nn.utils.parameters_to_vector(model.parameters()).detach().clone()
            row = dict(record.numbers, optimiser=name, seed=seed, step=step, moved=(at - last).norm().item(),
                       spread=record["participation"][0].item(), spreads=record["participation"].mean().item())
            if before is not None:
                row |= dict(overlap=record["angles"].cos().square().mean().item(),
                            first=(record["vectors"][0] @ before[0]).square().item())
            yield row
            before, last = record["vectors"], at
        some = torch.randperm(len(X), generator=generator)[:BATCH]
        optimizer.zero_grad()
        F.cross_entropy(model(X[some]), y[some]).backward()
        optimizer.step()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=RESULTS / "steady_vectors.csv")
    options = parser.parse_args()
    began = time.time()
    with options.out.open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, HEADER, extrasaction="ignore", restval="", lineterminator="\n")
        table.writeheader()
        for name in OPTIMISERS:
            for seed in range(options.seeds):
                for row in follow(name, seed):
                    table.writerow({n: f"{x:.6g}" if isinstance(x, float) else x for n, x in row.items()})
                file.flush()
                print(f"{name} seed {seed}: loss {row['loss']:.4f}, overlap {row['overlap']:.3f}, spread "
                      f"{row['spread']:.0f}; {time.time() - began:.0f} s", flush=True)


if __name__ == "__main__": main()
