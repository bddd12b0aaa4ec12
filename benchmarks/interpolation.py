"""Does the decision boundary simplify or fragment when a network comes to interpolate its training data?

    python benchmarks/interpolation.py                        five seeds, clean and wrong labels, some two minutes
    python benchmarks/interpolation.py --seeds 1 --out /tmp/interpolation.csv

Two half moons, 200 points, none or a tenth of the labels wrong; a network 2-64-64-2 (ReLU), Adam on all examples,
float64. `directions` is `boundary_complexity`, `regions` the number of connected pieces that the predicted classes have
on a grid of 160 x 160 over the data, `test` the accuracy on 1,000 other points with right labels.
"""
import argparse
import csv
import time
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from scipy.ndimage import label
from sklearn.datasets import make_moons
from torch import Tensor, nn

from hessnb.training.track import track

SHARES, STEPS, EVERY, GRID = (0., .1), 8000, 200, 160
HEADER = ("wrong", "seed", "step", "loss", "accuracy", "test", "directions", "regions", "sharpness")
RESULTS = Path(__file__).parents[1] / "nbs" / "results"


def points(wrong: float, seed: int) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    "Training data, a share of its labels wrong, and test data."
    (X, y), test = (tuple(map(torch.from_numpy, make_moons(n, noise=.2, random_state=seed + n))) for n in (200, 1000))
    flipped = torch.randperm(len(y), generator=torch.Generator().manual_seed(seed))[:round(wrong * len(y))]
    y[flipped] = 1 - y[flipped]
    return (X, y), test


def network(seed: int) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(2, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 2)).double()


def regions(frame: Tensor) -> int:
    "Connected pieces of all predicted classes together."
    return sum(label(frame.numpy() == c)[1] for c in frame.unique().tolist())


def follow(wrong: float, seed: int) -> Iterator[dict]:
    "Rows of one training."
    (X, y), (X_test, y_test) = points(wrong, seed)
    model = network(seed)
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    tracker = track(model, (X, y), k=1, every=EVERY, frame=GRID, tol=1e-2,
                    measures=("loss", "accuracy", "values", "complexity", "frame"))
    for step in range(STEPS + 1):
        if record := tracker.step(step):
            with torch.no_grad(): test = (model(X_test).argmax(1) == y_test).double().mean().item()
            yield dict(record.numbers, wrong=wrong, seed=seed, step=step, test=test, regions=regions(record["frame"]),
                       directions=record["complexity"])
        optimizer.zero_grad()
        F.cross_entropy(model(X), y).backward()
        optimizer.step()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=RESULTS / "interpolation.csv")
    options = parser.parse_args()
    began = time.time()
    with options.out.open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, HEADER, extrasaction="ignore", restval="", lineterminator="\n")
        table.writeheader()
        for wrong in SHARES:
            for seed in range(options.seeds):
                for row in follow(wrong, seed):
                    table.writerow({n: f"{x:.6g}" if isinstance(x, float) else x for n, x in row.items()})
                file.flush()
                print("wrong {wrong} seed {seed}: loss {loss:.4f}, accuracy {accuracy:.3f}, test {test:.3f}, "
                      "directions {directions:.0f}, regions {regions}; ".format(**row) + f"{time.time() - began:.0f} s",
                      flush=True)


if __name__ == "__main__": main()
