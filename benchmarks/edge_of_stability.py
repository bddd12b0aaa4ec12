"""Where does the largest eigenvalue go while gradient descent trains? With a quadratic model and two failing cases.

    python benchmarks/edge_of_stability.py                       three seeds, about five minutes, to a CSV
    python benchmarks/edge_of_stability.py --seeds 1 --out /tmp/edge.csv

A tanh network 64-50-50-10 on 1,000 handwritten digits (scikit-learn's), all of them in each step, float64. The loss is
half the squared distance to the one-hot label, averaged over examples: C / 2 times `nn.MSELoss`, and so are its
eigenvalues. A row is a step: `rises` is the share of the steps since the row before in which the loss went up.
"""
import argparse
import csv
import math
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn

from hessnb import HessianOperator, Objective
from hessnb.training.track import track

ETAS, SMALL, CROSS = (.3, .5, .8), .1, 2.  # step sizes: at the edge; too small for it; of cross-entropy
TIME, RECORDS = 400., 80  # steps times step size; rows of a run
BEYOND, MODEL_STEPS, HIGH = 1.03, 600, 1e9  # sharpness over 2/eta where the quadratic model is taken; its end
DIVERGED = 100.  # the loss at which a run is given up
HEADER = ("kind", "seed", "eta", "step", "loss", "sharpness", "rises")


def digits(n: int = 1000) -> tuple[Tensor, Tensor]:  # `(n, 64)` and `(n,)`
    "Images with mean 0 over examples and standard deviation 1 over all pixels, and their labels."
    images, labels = load_digits(return_X_y=True)
    X = torch.from_numpy(images[:n])
    X = (X - X.mean(0)) / X.std()
    return X, torch.from_numpy(labels[:n]).long()


def network(seed: int, width: int = 50, scale: float = 1.) -> nn.Sequential:
    "A tanh network with two hidden layers, initialised as torch does, times `scale`."
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(64, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh(),
                              nn.Linear(width, 10)).double()
    with torch.no_grad():
        for p in model.parameters(): p *= scale
    return model


def half_squares(outputs: Tensor, labels: Tensor) -> Tensor:  # `(B, C)`, `(B,)` -> `(B,)`
    "Half the squared distance to the one-hot label."
    return .5 * (outputs - F.one_hot(labels, outputs.shape[1])).square().sum(1)


def cross_entropy(outputs: Tensor, labels: Tensor) -> Tensor: return F.cross_entropy(outputs, labels, reduction="none")


def descend(
    kind: str,  # of the run, for the table
    seed: int,  # of the network, and of the batches
    eta: float,  # step size
    loss: Callable[[Tensor, Tensor], Tensor],  # of each example
    *,
    data: tuple[Tensor, Tensor] | None = None,
    model: nn.Module | None = None,
    duration: float = TIME,  # steps times step size
    records: int = RECORDS,
    batch: int | None = None,  # examples of a step, drawn anew each time; None: all of them
    quadratic: bool = False,  # also on the quadratic model, from where the sharpness first goes beyond 2/eta
) -> Iterator[dict]:
    "Rows of a run."
    X, y = data or digits()
    model, steps, generator = model or network(seed), round(duration / eta), torch.Generator().manual_seed(seed)
    optimizer, last, rose = torch.optim.SGD(model.parameters(), lr=eta), math.inf, []
    tracker = track(model, (X, y), k=1, every=max(1, steps // records), optimizer=optimizer, loss=loss, tol=1e-4,
                    measures=("loss", "values", "threshold", *["batch_sharpness"] * (batch is not None)),
                    minibatch=batch)
    for i in range(steps + 1):
        rows = slice(None) if batch is None else torch.randperm(len(X), generator=generator)[:batch]
        value = loss(model(X[rows]), y[rows]).mean()
        rose, last = [*rose, value.item() > last], value.item()
        if not last < DIVERGED: return
        if record := tracker.step(i):
            yield dict(record.numbers, kind=kind, seed=seed, eta=eta, batch=batch or len(X), step=i,
                       rises=sum(rose) / len(rose))
            rose = []
            if quadratic and record["sharpness"] > BEYOND * record["threshold"]:
                quadratic, about = False, dict(kind="quadratic", seed=seed, eta=eta, sharpness=record["sharpness"])
                for step, value_there in enumerate(on_the_quadratic(Objective(model, (X, y), loss), eta)):
                    if step % 5 == 0: yield dict(about, step=i + step, loss=value_there)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()


def on_the_quadratic(objective: Objective, eta: float) -> Iterator[float]:
    "Values of the second-order model of the loss, while gradient descent runs on it."
    op, value, g = HessianOperator(objective), objective.value(), objective.grad()
    d = torch.zeros_like(g)
    for _ in range(MODEL_STEPS + 1):
        Hd = op.matvec(d)
        found = float(value + d @ g + d @ Hd / 2)
        yield found
        if found > HIGH: return
        d -= eta * (g + Hd)


def runs(seeds: int) -> Iterator[Iterator[dict]]:
    "Rows of all runs, run by run."
    for eta in ETAS:
        for seed in range(seeds): yield descend("squares", seed, eta, half_squares, quadratic=True)
    for seed in range(min(seeds, 3)): yield descend("small step", seed, SMALL, half_squares)
    for seed in range(min(seeds, 3)): yield descend("cross-entropy", seed, CROSS, cross_entropy)


def write(path: Path, header: tuple, runs: Iterable[Iterator[dict]]) -> None:
    "The table of all runs, and a line about each."
    began = time.time()
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, header, extrasaction="ignore", restval="", lineterminator="\n")
        writer.writeheader()
        for run in runs:
            rows = list(run)
            for row in rows: writer.writerow({n: f"{x:.6g}" if isinstance(x, float) else x for n, x in row.items()})
            file.flush()
            own = [row for row in rows if row["kind"] == rows[0]["kind"]]
            text = "{kind:>13} seed {seed} eta {eta:<4} batch {batch:>4} loss {loss:.4f};".format(**own[-1])
            for name in ("sharpness", "batch_sharpness"):
                late = [row[name] / row["threshold"] for row in own[2 * len(own) // 3:] if name in row]
                if late: text += f" {name} * eta / 2 over the last third {statistics.median(late):.3f},"
            print(f"{text} {time.time() - began:.0f} s", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("nbs/results/edge_of_stability.csv"))
    options = parser.parse_args()
    write(options.out, HEADER, runs(options.seeds))


if __name__ == "__main__": main()
