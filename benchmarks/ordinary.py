"""Ordinary minima: can a measure tell which of several ordinarily trained networks generalises better?

    python benchmarks/ordinary.py                      trains what is not there, measures what has no cell, prints
    python benchmarks/ordinary.py train --sets gauss,moons
    python benchmarks/ordinary.py measure --groups curvature,directions
    python benchmarks/ordinary.py statistics

On each data set one network is trained by many recipes that differ in nothing but optimiser, step size, batch size,
weight decay, initial gain and seed, all to the same training loss: the ordinary minima. Further networks of such
recipes first fit random labels: the spoilt ones. One file of weights for each data set goes to `--models`, a row for
each minimum to `--out`, a CSV. All phases go on where they were stopped: a group of measures is computed where its
cells are empty, and the table is replaced as a whole. The set mnist1d needs the package of that name. Each network is
trained here: another machine gives others, and the same statistics within their intervals.
"""
import argparse
import csv
import importlib
import math
import os
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import cache, cached_property
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from hessnb.boundary.complexity import boundary_complexity
from hessnb.boundary.directions import resolve_measure
from hessnb.boundary.margin import estimate_margin
from hessnb.boundary.margin_profile import margin_profile
from hessnb.curvature.hessian import HessianOperator
from hessnb.curvature.objective import Objective
from hessnb.curvature.outliers import count_outliers
from hessnb.curvature.top import top_eigenpairs
from hessnb.curvature.trace import trace
from hessnb.paper.data import ClassificationData, checkerboard, gaussian_mixture, moons
from hessnb.paper.networks import mlp
from hessnb.paper.ordinary import (
    LABELS,
    MEASURES,
    OURS,
    Minima,
    Resampled,
    decided,
    hierarchical,
    labels_right,
    labels_worth,
    leave_one_out,
    ordinary,
    over,
    pairs_right,
    significant,
    sound_from_spoilt,
    tau,
)
from hessnb.paper.training import param_norm

SETS = ("gauss", "moons", "checkerboard", "mnist1d")
N_TRAIN = {"mnist1d": 400}  # training examples; 150 elsewhere
NOISE = {"gauss": .15, "moons": .15, "checkerboard": 0.}  # standard deviation added to the inputs of the library's draw
LEVEL = .03  # training loss at which every minimum is taken
ORDINARY, SPOILT = 80, {"mnist1d": 26}  # recipes drawn, spoilt ones 40 elsewhere; some do not come down to the level
KEPT = {False: 64, True: 20}  # ordinary and spoilt minima: the first of those that do
MAX_STEPS, CHECKED = 6_000, 10  # updates at most; the loss of all training examples is looked at after so many
MEMORISE = 3000  # updates of Adam on random labels at most, until all have come down to the level


@dataclass(frozen=True)
class Recipe:
    "All that differs between two minima of a data set."
    optimiser: str  # "sgd", "momentum" (.9) or "adam"
    lr: float  # step size
    batch: int  # examples in a batch; 0: all
    decay: float  # weight decay, decoupled: a step also takes lr * decay of every parameter
    gain: float  # factor on the initial weights
    seed: int  # of the initial weights and the order of the examples
    spoilt: bool = False  # were random labels fitted first?


STEPS = {"sgd": (.1, .3, 1.), "momentum": (.03, .1, .3), "adam": (.001, .003, .01)}


def recipes(n: int, spoilt: bool = False) -> list[Recipe]:
    "Recipes drawn at random, the same for every data set."
    draw = np.random.default_rng(int(spoilt))
    pick = lambda values: values[draw.integers(len(values))]
    found = []
    for i in range(n):
        optimiser = pick(tuple(STEPS))
        found.append(Recipe(optimiser, pick(STEPS[optimiser]), pick((8, 32, 0)), pick((0., 1e-4, 1e-3)),
                            pick((.5, 1., 2.)), i + 1000 * spoilt, spoilt))
    return found


@cache
def load(name: str) -> ClassificationData:
    "Few training and many test examples."
    n = N_TRAIN.get(name, 150)
    if name == "mnist1d": return signals(n)
    data = {"gauss": lambda: gaussian_mixture(n_per_class=3000), "moons": lambda: moons(n_per_class=4500),
            "checkerboard": lambda: checkerboard("noisy", n_per_class=4500)}[name]()
    X, y = torch.cat([data.X_train, data.X_test]), torch.cat([data.y_train, data.y_test])
    X = X + NOISE[name] * torch.randn(X.shape, generator=torch.Generator().manual_seed(7))
    return replace(data, name=name, X_train=X[:n], y_train=y[:n], X_test=X[n:], y_test=y[n:])


def signals(n: int) -> ClassificationData:
    "Ten classes of signals of 40 numbers. The package seeds the global streams of Python and NumPy."
    try: package = importlib.import_module("mnist1d.data")
    except ImportError as error: raise ImportError("the signals need mnist1d: pip install mnist1d") from error
    args = package.get_dataset_args()
    args.num_samples = n + 9000
    made = package.make_dataset(args)
    X, y = (torch.from_numpy(np.concatenate([made[name], made[name + "_test"]])) for name in "xy")
    X, y = X.float(), y.long()
    return ClassificationData("mnist1d", X[:n], y[:n], X[n:], y[n:], 10, tuple(map(str, range(10))))


def build(data: ClassificationData, seed: int = 0) -> nn.Sequential:
    return mlp(data.X_train[0].numel(), data.n_classes, seed=seed)


def logits(theta: Tensor, X: Tensor, shapes: list[torch.Size]) -> Tensor:
    "Outputs `(M, n, C)` of perceptrons with parameters `(M, P)` for inputs `(M, n, D)`, one set for each."
    parts = theta.split([s.numel() for s in shapes], 1)
    for i in range(0, len(parts), 2):
        W, b = parts[i].view(-1, *shapes[i]), parts[i + 1]
        X = torch.baddbmm(b[:, None], X, W.transpose(1, 2))
        if i + 2 < len(parts): X = X.relu()
    return X


def losses(theta: Tensor, X: Tensor, y: Tensor, shapes: list[torch.Size]) -> Tensor:
    "Mean cross-entropies `(M,)`; labels are `(M, n)`."
    out = logits(theta, X, shapes)
    return F.cross_entropy(out.flatten(0, 1), y.flatten(), reduction="none").view(y.shape).mean(1)


def slopes(theta: Tensor, X: Tensor, y: Tensor, shapes: list[torch.Size]) -> Tensor:
    theta = theta.requires_grad_()
    grad, = torch.autograd.grad(losses(theta, X, y, shapes).sum(), theta)
    theta.requires_grad_(False)
    return grad


class Stepper:
    "SGD, momentum and Adam for members `(M, P)` side by side, each with its own step size and decay."
    def __init__(self, theta: Tensor, which: list[Recipe]):
        column = lambda values: theta.new_tensor(values)[:, None]
        self.theta, self.t = theta, 0
        self.mean, self.square = torch.zeros_like(theta), torch.zeros_like(theta)
        self.lr, self.decay = column([r.lr for r in which]), column([r.decay for r in which])
        self.adam = column([float(r.optimiser == "adam") for r in which]) > 0
        self.keeps = column([0. if r.optimiser == "sgd" else .9 for r in which])

    def step(self, grad: Tensor) -> None:
        self.t += 1
        self.mean = self.keeps * self.mean + torch.where(self.adam, .1, 1.) * grad
        direction = self.mean
        if self.adam.any():
            self.square = .999 * self.square + .001 * grad.square()
            scaled = self.mean / (1 - .9 ** self.t) / ((self.square / (1 - .999 ** self.t)).sqrt() + 1e-8)
            direction = torch.where(self.adam, scaled, self.mean)
        self.theta = self.theta - self.lr * (direction + self.decay * self.theta)

    def keep(self, going: Tensor) -> None:
        for name in ("theta", "mean", "square", "lr", "decay", "adam", "keeps"):
            setattr(self, name, getattr(self, name)[going])


def land(before: Tensor, after: Tensor, loss: Callable[[Tensor], Tensor]) -> Tensor:
    "Points `(m, P)` on the lines between, just below the level."
    low, high = before.new_zeros(len(before), 1), before.new_ones(len(before), 1)
    for _ in range(16):
        middle = (low + high) / 2
        above = loss(before + middle * (after - before))[:, None] > LEVEL
        low, high = torch.where(above, middle, low), torch.where(above, high, middle)
    return before + high * (after - before)


def descend(theta: Tensor, which: list[Recipe], data: ClassificationData) -> tuple[Tensor, Tensor]:
    "Members `(M, P)` of one batch size at their first crossing of the level, NaN without; and their updates `(M,)`."
    shapes, batch = [p.shape for p in build(data).parameters()], which[0].batch or len(data.y_train)
    X, y, N = data.X_train, data.y_train, len(data.y_train)
    generator = torch.Generator().manual_seed(batch)
    full = lambda t: losses(t, X.expand(len(t), *X.shape), y.expand(len(t), N), shapes)
    found, steps = torch.full_like(theta, math.nan), torch.full((len(theta),), -1)
    stepper, members, before = Stepper(theta, which), torch.arange(len(theta)), theta
    order, place = torch.zeros(0), N
    for t in range(MAX_STEPS + 1):
        if t % CHECKED == 0:
            now = full(stepper.theta)
            hit = now <= LEVEL
            if hit.any():
                found[members[hit]] = land(before[hit], stepper.theta[hit], full)
                steps[members[hit]] = t
            going = ~hit & now.isfinite()
            if not going.any(): break
            if not going.all():
                stepper.keep(going)
                members, order = members[going], order[going] if len(order) else order
            before = stepper.theta
        if batch < N and place + batch > N:
            order, place = torch.rand(len(members), N, generator=generator).argsort(1), 0
        if batch < N:
            some, place = order[:, place:place + batch], place + batch
            grad = slopes(stepper.theta, X[some], y[some], shapes)
        else: grad = slopes(stepper.theta, X.expand(len(members), *X.shape), y.expand(len(members), N), shapes)
        stepper.step(grad)
    return found, steps


def memorise(theta: Tensor, data: ClassificationData, seeds: list[int]) -> Tensor:
    "Members `(M, P)` after many updates of Adam on random labels, others for each."
    shapes = [p.shape for p in build(data).parameters()]
    y = torch.stack([data.y_train[torch.randperm(len(data.y_train), generator=torch.Generator().manual_seed(s))]
                     for s in seeds])
    stepper = Stepper(theta, [Recipe("adam", .002, 0, 0., 1., s) for s in seeds])
    X = data.X_train.expand(len(theta), *data.X_train.shape)
    for t in range(MEMORISE):
        if t % 50 == 0 and (losses(stepper.theta, X, y, shapes) <= LEVEL).all(): break
        stepper.step(slopes(stepper.theta, X, y, shapes))
    return stepper.theta


def train(name: str, which: list[Recipe]) -> tuple[list[Recipe], Tensor, Tensor]:
    "The recipes that came down to the level, their weights `(M, P)` and updates."
    data = load(name)
    theta = torch.stack([r.gain * parameters_to_vector(build(data, r.seed).parameters()).detach() for r in which])
    spoilt = [i for i, r in enumerate(which) if r.spoilt]
    if spoilt: theta[spoilt] = memorise(theta[spoilt], data, [which[i].seed for i in spoilt])
    weights, steps = torch.full_like(theta, math.nan), torch.full((len(theta),), -1)
    for batch in sorted({r.batch for r in which}):
        rows = [i for i, r in enumerate(which) if r.batch == batch]
        weights[rows], steps[rows] = descend(theta[rows], [which[i] for i in rows], data)
    there = [i for i in range(len(which)) if steps[i] > 0]
    return [which[i] for i in there], weights[there], steps[there]


def answers(weights: Tensor, data: ClassificationData) -> Tensor:
    "Which test examples `(M, n)` each network gets right."
    shapes = [p.shape for p in build(data).parameters()]
    with torch.no_grad():
        return torch.cat([logits(w[None].double(), data.X_test[None].double(), shapes)[0].argmax(1)[None] == data.y_test
                          for w in weights])


def train_all(args: argparse.Namespace) -> None:
    args.models.mkdir(parents=True, exist_ok=True)
    for name in args.sets:
        path, began = args.models / f"{name}.pt", time.perf_counter()
        if path.exists(): continue
        drawn = recipes(ORDINARY) + recipes(SPOILT.get(name, 40), spoilt=True)
        parts = [[part[:n] for part in train(name, [r for r in drawn if r.spoilt == kind])]
                 for kind, n in KEPT.items()]
        which, weights, steps = [r for p in parts for r in p[0]], *(torch.cat([p[k] for p in parts]) for k in (1, 2))
        record = dict(recipes=[asdict(r) for r in which], weights=weights, steps=steps,
                      right=answers(weights, load(name)))
        torch.save(record, path.with_suffix(".part"))
        path.with_suffix(".part").rename(path)  # an interrupted run leaves no half file
        print(f"{name}: {sum(not r.spoilt for r in which)} of {ORDINARY} ordinary and {sum(r.spoilt for r in which)} "
              f"of {SPOILT.get(name, 40)} spoilt minima kept, {time.perf_counter() - began:.0f} s", flush=True)


@dataclass(frozen=True)
class Network:
    "One minimum, in float64, on its data; what measures share is computed once."
    model: nn.Sequential
    data: ClassificationData
    seed: int

    @property
    def X(self) -> Tensor: return self.data.X_train.double()

    @property
    def generator(self) -> torch.Generator: return torch.Generator().manual_seed(self.seed)

    @cached_property
    def objective(self) -> Objective: return Objective(self.model, (self.X, self.data.y_train))


def norms(net: Network) -> dict:
    "Baselines that look at parameters or logits only."
    layers = [m for m in net.model if isinstance(m, nn.Linear)]
    with torch.no_grad():
        paths = torch.ones(layers[0].in_features, dtype=torch.float64)
        for m in layers: paths = m.weight.square() @ paths + m.bias.square()
        spectral = math.prod(torch.linalg.matrix_norm(m.weight, 2).item() for m in layers)
    X = net.X.requires_grad_()
    top = net.model(X).topk(2).values
    slope, = torch.autograd.grad((top[:, 0] - top[:, 1]).sum(), X)
    return dict(param_norm=param_norm(net.model), path_norm=paths.sum().sqrt().item(), spectral_product=spectral,
                input_gradient=slope.norm(dim=1).mean().item())


def margin(net: Network) -> dict:
    "The smallest distance, confirmed on both sides; percentiles, by first order and searched."
    found = estimate_margin(net.objective, net.X, None, generator=net.generator)
    profile = margin_profile(net.objective, net.X, levels=PERCENTILES, n_searched=30, n_exact=0,
                             generator=net.generator)
    row = dict(margin=found.value, margin_verified=int(found.verified))
    for q, value, (low, high) in zip(PERCENTILES, profile.values.tolist(), profile.intervals.tolist()):
        p = f"{100 * q:g}"
        row |= {f"margin_{p}": value, f"margin_{p}_low": low, f"margin_{p}_high": high,
                f"first_{p}": profile.first_order.quantile(q).item()}
    return row | dict(first_0=profile.first_order.min().item())


def complexity(net: Network) -> dict:
    found = boundary_complexity(net.objective, net.X, generator=net.generator)
    return dict(zip(COLUMNS["complexity"], (found.value, found.dimension, *found.interval)))


def curvature(net: Network) -> dict:
    "Outliers by both rules, the largest eigenvalue, the trace."
    op = HessianOperator(net.objective)
    pairs = top_eigenpairs(op, K, tol=1e-2, max_matvecs=1500, generator=net.generator)
    negative = top_eigenpairs(op, 1, which="SA", tol=1e-2, max_matvecs=500, generator=net.generator).values[0].item()
    mirror = count_outliers(pairs.values, negative=min(negative, pairs.values.min().item()))
    gap, total = count_outliers(pairs.values), trace(op, pairs=pairs, generator=net.generator)
    return dict(lambda_1=pairs.values[0].item(), n_converged=int(pairs.converged.sum()), trace=total.value,
                trace_error=total.standard_error, outliers_mirror=mirror.count, outliers_gap=gap.count,
                truncated=int(mirror.truncated or gap.truncated))


def directions(net: Network) -> dict:
    "Effective directions of the training gradients over the eigenvectors, and their certified lower bound."
    found = resolve_measure(HessianOperator(net.objective), net.X, tol=.1, max_pairs=200, max_matvecs=800).directions
    return dict(directions=found.value, directions_bound=found.bounds[0])


PERCENTILES, K = (.1, .25, .5), 20
GROUPS: dict[str, Callable[[Network], dict]] = {
    f.__name__: f for f in (norms, margin, complexity, curvature, directions)}
COLUMNS = {
    "norms": ("param_norm", "path_norm", "spectral_product", "input_gradient"),
    "margin": ("margin", "margin_verified", "first_0", *(
        f"{kind}_{100 * q:g}{end}" for q in PERCENTILES
        for kind, end in (("first", ""), ("margin", ""), ("margin", "_low"), ("margin", "_high")))),
    "complexity": ("complexity", "complexity_dimension", "complexity_low", "complexity_high"),
    "curvature": ("lambda_1", "n_converged", "trace", "trace_error", "outliers_mirror", "outliers_gap",
                  "truncated"),
    "directions": ("directions", "directions_bound"),
}
NAMES = ("key", "set", "optimiser", "lr", "batch", "decay", "gain", "seed", "spoilt", "steps", "loss", "train_accuracy",
         "n_test", "n_right", "discordant")  # discordant: test examples that just one gets right of it and earlier rows
HEADER = (*NAMES, *(c for group in COLUMNS.values() for c in group))


def read(out: Path) -> dict[str, dict]:
    "Rows by key; columns that the file lacks are empty."
    if not out.exists(): return {}
    with open(out, newline="") as f: return {row["key"]: dict.fromkeys(HEADER, "") | row for row in csv.DictReader(f)}


def write(out: Path, rows: dict[str, dict]) -> None:
    "Replace the table as a whole; an interruption leaves the old one."
    out.parent.mkdir(parents=True, exist_ok=True)
    part = out.with_suffix(".part")
    short = lambda v: f"{v:.6g}" if isinstance(v, float) else v
    with open(part, "w", newline="") as f:
        writer = csv.DictWriter(f, HEADER, lineterminator="\n", extrasaction="ignore")
        writer.writeheader()
        writer.writerows({k: short(v) for k, v in row.items()} for row in rows.values())
    os.replace(part, out)


def minima(path: Path, name: str) -> list[tuple[dict, Network]]:
    "The first columns of each row, and its network."
    record, data, found = torch.load(path, weights_only=True), load(name), []
    right = record["right"].double()
    apart = (right.sum(1)[:, None] + right.sum(1)[None] - 2 * right @ right.T).long().tolist()
    for i, (recipe, weights, steps) in enumerate(zip(record["recipes"], record["weights"], record["steps"].tolist())):
        model = build(data).double()
        vector_to_parameters(weights.double(), model.parameters())
        model.eval()
        with torch.no_grad(): out = model(data.X_train.double())
        key = f"{name}-{'spoilt' if recipe['spoilt'] else 'ordinary'}-{recipe['seed']}"
        values = (key, name, *(int(v) if isinstance(v, bool) else v for v in recipe.values()), steps,
                  F.cross_entropy(out, data.y_train).item(),
                  (out.argmax(1) == data.y_train).double().mean().item(), len(data.y_test), int(right[i].sum()),
                  " ".join(map(str, apart[i][:i])))
        found.append((dict(zip(NAMES, values)), Network(model, data, recipe["seed"])))
    return found


def measure_all(args: argparse.Namespace) -> None:
    rows, done = read(args.out), 0
    for group in args.groups:  # a group of all minima before the next: the cheap ones first
        for name in args.sets:
            path = args.models / f"{name}.pt"
            if not path.exists(): continue
            for names, net in minima(path, name)[::args.every]:
                row = rows.get(names["key"], {})
                if row.get("loss") != f"{names['loss']:.6g}": row = dict.fromkeys(HEADER, "")  # none, or of another
                if row[COLUMNS[group][0]] != "": continue
                if done == args.limit: return
                began, done = time.perf_counter(), done + 1
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # convergence is a column
                    new = GROUPS[group](net)
                row = row | names | new
                rows[names["key"]] = {k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()}
                write(args.out, rows)
                print(f"{names['key']}: {group}, {time.perf_counter() - began:.1f} s", flush=True)


def statistics(rows: list[dict]) -> None:
    "Print what every measure decides among ordinary minima, and between sound and spoilt ones."
    sets = by_set(rows)
    for s in sets:
        m, pairs = s.minima, significant(s.minima).sum() / ordinary(s.minima).sum()
        right = m.right[~m.spoilt] / m.n_test
        print(f"{m.name}: {len(right)} ordinary minima, test accuracy {right.min():.3f} to {right.max():.3f}, "
              f"{pairs:.0%} of their pairs differ; {m.spoilt.sum()} spoilt ones")
    curve = np.mean([labels_right(s.minima) for s in sets], 0)
    print("\n" + ", ".join(f"{k} labels {c:.2f}" for k, c in zip(LABELS, curve)))
    heads = "".join(f"{s.minima.name:>14}" for s in sets)
    print(f"\n{'':32}{'tau':>22}{'pairs right':>22}{heads}   labels   spoilt")
    for name, (title, _) in MEASURES.items():
        t, a, b = (over(sets, f, name) for f in (tau, pairs_right, sound_from_spoilt))
        print(f"{title:32}{t!s:>22}{a!s:>22}" + "".join(f"{v:14.2f}" for v in a.each.values())
              + f"{labels_worth(a.value, curve):9.1f}   {b}")
    for names in (OURS, tuple(MEASURES)): print("leave one data set out:", *leave_one_out(sets, names))
    for apart in (True, False):
        for names in DECIDED:
            both = [decided(s, names, apart=apart) for s in sets]
            made, good = (hierarchical({s.minima.name: b[k] for s, b in zip(sets, both)}) for k in (0, 1))
            print(f"{' and '.join(names)}{', apart' * apart}: decided {made}, right {good}")


DECIDED = (("complexity_dimension",), ("margin",), ("complexity_dimension", "margin"), ("margin_10",),
           ("complexity_dimension", "margin_10"))  # measures that have to agree


def by_set(rows: list[dict]) -> list[Resampled]:
    return [Resampled(Minima([r for r in rows if r["set"] == name], seed=i)) for i, name in enumerate(SETS)
            if any(r["set"] == name for r in rows)]


def main(argv: list[str] | None = None) -> None:
    split = lambda text: tuple(text.split(","))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("phase", nargs="?", choices=("all", "train", "measure", "statistics"), default="all")
    parser.add_argument("--models", type=Path, default=Path("ordinary_models"), help="folder of the trained weights")
    parser.add_argument("--out", type=Path, default=Path("ordinary.csv"), help="table of the measures")
    parser.add_argument("--sets", type=split, default=SETS, help=", ".join(SETS))
    parser.add_argument("--groups", type=split, default=tuple(GROUPS), help=", ".join(GROUPS))
    parser.add_argument("--limit", type=int, help="only so many groups of measures are computed")
    parser.add_argument("--every", type=int, default=1, help="2: only every second minimum is measured")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args(argv)
    for name, known in (("sets", SETS), ("groups", GROUPS)):
        if unknown := set(getattr(args, name)) - set(known):
            sys.exit(f"no {name} {sorted(unknown)}; there are {', '.join(known)}")
    torch.set_num_threads(args.threads)
    if args.phase in ("all", "train"): train_all(args)
    if args.phase in ("all", "measure"): measure_all(args)
    if args.phase in ("all", "statistics"):
        if not args.out.exists(): sys.exit(f"{args.out} is not there: measure first")
        statistics(list(read(args.out).values()))


if __name__ == "__main__": main()
