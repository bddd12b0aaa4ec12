"""Minima that differ, and what is measured at each: the data for asking which measure tells the test error.

    python benchmarks/study.py                    trains what is not there, measures what has no row, prints statistics
    python benchmarks/study.py train --only moons
    python benchmarks/study.py measure --limit 5
    python benchmarks/study.py statistics

Weights go to `--models` (a file for each minimum, with its training record), rows to `--out` (a CSV, one row for each
minimum). Both phases go on where they were stopped; remove a file or a row to have it made again. Every network is
trained here, whatever the zoo holds: another machine gives other networks, and the same statistics within intervals.
"""
import argparse
import csv
import math
import sys
import time
import warnings
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
import torch

from hessnb.boundary.curves import trace_boundary
from hessnb.boundary.examine import examine
from hessnb.boundary.measure import generalization_measure, random_baseline
from hessnb.boundary.paper_margin import paper_margin
from hessnb.curvature.objective import Objective
from hessnb.paper.data import ClassificationData, load_data
from hessnb.paper.minima import Minimum, Plan, default_recipe, train_minimum
from hessnb.paper.networks import cnn, mlp
from hessnb.paper.training import Recipe, param_norm

PLANE = ("gauss", "moons", "circles", "checkerboard", "hierarchical", *(f"blobs{c}" for c in range(2, 9)))
N_TEST = 2000  # points in the plane, drawn afresh
TEST_SEED = 1000  # no training set has it
THRESHOLDS = (.02, .05, .1, .3)  # of the paper's measure


@dataclass(frozen=True)
class Run:
    "All that decides one minimum."
    dataset: str
    kind: str = "normal"
    width: int = 100  # of both hidden layers; 0: the convolutional network for images
    seed: int = 0  # of initialisation, batches, label noise
    lr_factor: float = 1.  # on the step size of the usual recipe
    label_noise: float = 0.  # share of wrong training labels
    n_per_class: int | None = None  # training and test together; None: the usual number

    @property
    def key(self) -> str:
        n = self.n_per_class or "usual"
        return (f"{self.dataset}-{self.kind}-w{self.width}-s{self.seed}-lr{self.lr_factor:g}"
                f"-noise{self.label_noise:g}-n{n}")


def runs() -> list[Run]:
    "The list of the study: the same plan for each data set, so that several minima of one set can be compared."
    def plan(name):
        data = usual(name)
        per_class = (len(data.y_train) + len(data.y_test)) // data.n_classes
        small, large = (max(8, round(f * per_class / 2) * 2) for f in (.3, 2))
        crowded = 40 if name == "blobs8" else None  # two usual points of different classes are .03 apart: slow to fit
        yield Run(name)
        yield Run(name, "adversarial", seed=1, n_per_class=crowded)
        yield Run(name, "large_norm", seed=2)
        yield Run(name, width=30, seed=3)
        yield Run(name, width=300, seed=4, lr_factor=.3, n_per_class=crowded)
        # the checkerboard's blobs are too crowded for wrong labels
        yield Run(name, label_noise=.1, seed=5, n_per_class=80 if name == "checkerboard" else None)
        yield Run(name, n_per_class=small, seed=6)
        if name in ("gauss", "moons", "circles", "hierarchical", "blobs3", "blobs5"):
            yield Run(name, n_per_class=large, width=30, seed=7, lr_factor=2)
        if name in ("checkerboard",): yield Run(name, "noisy_init", seed=8)
    three = [("normal", 0, 1, 0), ("adversarial", 1, 1, 0), ("large_norm", 2, 1, 0),
             ("normal", 3, .3, 0), ("normal", 4, 1, .1)]
    ten = [("normal", 0, 1, 0), ("adversarial", 1, 1, 0), ("normal", 2, 1, .1)]
    images = [Run(name, kind, 0, seed, lr, noise, n)
              for name, n, some in (("mnist017", 100, three), ("mnist10", 40, ten)) for kind, seed, lr, noise in some]
    return [run for name in PLANE for run in plan(name)] + images


@cache
def usual(name: str) -> ClassificationData: return load_data(name)


@cache
def held_out(name: str) -> tuple[torch.Tensor, torch.Tensor]:
    "`N_TEST` points of the plane that no run trains on; they depend on the data set alone."
    fresh = load_data(name, n_per_class=2 * math.ceil(N_TEST / usual(name).n_classes / 2), seed=TEST_SEED)
    return torch.cat([fresh.X_train, fresh.X_test])[:N_TEST], torch.cat([fresh.y_train, fresh.y_test])[:N_TEST]


def data_of(run: Run) -> ClassificationData:
    "Training data of a run, with wrong labels if it wants them, and the held-out points as its test set."
    data = load_data(run.dataset, n_per_class=run.n_per_class)
    if run.dataset in PLANE:
        X, y = held_out(run.dataset)
        data = replace(data, X_test=X, y_test=y)
    if run.label_noise: data = data.with_label_noise(run.label_noise, torch.Generator().manual_seed(run.seed))
    return data


def network(run: Run, data: ClassificationData) -> torch.nn.Module:
    if run.width == 0: return cnn(data.n_classes, seed=run.seed)
    return mlp(data.X_train.shape[1], data.n_classes, (run.width, run.width), seed=run.seed)


def recipes(run: Run, data: ClassificationData) -> list[Recipe]:
    "What is tried in turn: the usual recipe, then those that fit crowded and wrong labels, with more momentum."
    first = default_recipe(run.kind, data)
    if run.dataset in PLANE:
        by_heart = [replace(default_recipe("random_labels", data), epochs=20_000),
                    Recipe(lr=.02, momentum=.95, epochs=8_000, batch_size=50)]
        tried = by_heart if run.label_noise else [first, *by_heart]
    else: tried = [first, replace(first, momentum=.95, epochs=600)]
    return [replace(recipe, lr=run.lr_factor * recipe.lr) for recipe in tried]


def train_one(run: Run) -> tuple[Minimum, float]:
    "The minimum of a run and the seconds it took; `RuntimeError` if no recipe led to one."
    began = time.perf_counter()
    data = replace(data_of(run), name=run.dataset)  # recipes go by the name of the clean set
    for recipe in recipes(run, data):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a missed target leads to the next recipe
            minimum = train_minimum(Plan(run.kind, data, run.seed, network(run, data), recipe=recipe))
        if minimum.train_accuracy == 1 and minimum.reached: return minimum, time.perf_counter() - began
    raise RuntimeError(f"not a minimum: {minimum.stages[-1]}")


def save(path: Path, run: Run, minimum: Minimum, seconds: float) -> None:
    recipe = minimum.stages[-1].recipe
    record = dict(run=asdict(run), lr=recipe.lr, momentum=recipe.momentum, batch_size=recipe.batch_size or 0,
                  state=minimum.model.state_dict(), train_loss=minimum.train_loss,
                  train_accuracy=minimum.train_accuracy, test_accuracy=minimum.test_accuracy,
                  epochs=[s.epochs for s in minimum.stages], seconds=seconds)
    torch.save(record, path.with_suffix(".part"))
    path.with_suffix(".part").rename(path)  # an interrupted run leaves no half file


def load(path: Path) -> tuple[Run, Minimum, ClassificationData, dict]:
    "A stored minimum, in float64, with its data and its record."
    record = torch.load(path, weights_only=True)
    run = Run(**record["run"])
    data = data_of(run)
    model = network(run, data)
    model.load_state_dict(record["state"])
    numbers = (record[name] for name in ("train_loss", "train_accuracy", "test_accuracy"))
    return run, Minimum(model.double().eval(), run.kind, data.name, run.seed, *numbers, ()), data, record


def measures(minimum: Minimum, data: ClassificationData) -> dict[str, float]:
    "What is compared: a row's last columns."
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # convergence is a column
        box = (0., 1.) if data.X_train.ndim == 4 else None
        e = examine(minimum.model, (data.X_train, data.y_train), max_matvecs=800, tol=.1, box=box)
        published = paper_margin(e.objective, data.X_train, e.pairs, n_starts=4, n_steps=150)
    d, o, m, by_pair = e.directions, e.outliers, e.margin, e.structure.by_pair
    row = dict(lambda_1=e.pairs.values[0].item(), trace=e.trace.value, trace_error=e.trace.standard_error,
               most_negative=e.most_negative, n_converged=int(e.resolved.pairs.converged.sum()), n_pairs=d.n_pairs,
               directions=d.value, directions_lower=d.bounds[0], entropy=d.entropy, coverage=d.coverage,
               outliers=o.count, outliers_low=o.stability[0], outliers_high=o.stability[1],
               explained=by_pair.explained.mean().item(), explained_random=by_pair.shuffled.mean().item(),
               margin=m.value, margin_source=m.source, margin_forward=m.n_forward, paper_margin=published.value)
    baseline = random_baseline(e.objective, data.X_train)
    for name, eps in [*((f"{eps:g}", eps) for eps in THRESHOLDS), ("random", baseline.mean)]:
        G = generalization_measure(e.resolved.alignment, threshold=eps, n_params=e.objective.n_params)
        row |= {f"G_{name}": G.value, f"active_{name}": G.count, f"certified_{name}": int(G.certified)}
    return row


def boundary_numbers(run: Run, minimum: Minimum, data: ClassificationData) -> dict[str, float]:
    "Smallest distance of a training point to the boundary, and its length in the data's window; NaN without a plane."
    if run.dataset not in PLANE: return dict(true_margin=math.nan, margin_certain=math.nan, boundary_length=math.nan)
    low, high = (getattr(held_out(run.dataset)[0], f)(0).values for f in ("min", "max"))
    space = .3 * (high - low)
    (a, c), (b, d) = (low - space).tolist(), (high + space).tolist()
    curves = trace_boundary(Objective(minimum.model, (data.X_train, data.y_train)), extent=(a, b, c, d))
    distance = curves.distance(data.X_train)
    nearest = int(distance.argmin())
    certain = int(curves.within_reach(data.X_train).min() >= distance[nearest])
    return dict(true_margin=distance[nearest].item(), margin_certain=certain, boundary_length=curves.length)


def measure_one(path: Path) -> dict:
    "One row of the study."
    began = time.perf_counter()
    run, minimum, data, record = load(path)
    with torch.no_grad(): wrong = minimum.model(data.X_test.double()).argmax(1) != data.y_test
    n_params = sum(p.numel() for p in minimum.model.parameters())
    row = dict(run=run.key, **asdict(run), **{name: record[name] for name in ("lr", "momentum", "batch_size")},
               n_train=len(data.y_train), n_test=len(data.y_test), n_params=n_params, train_loss=minimum.train_loss,
               train_accuracy=minimum.train_accuracy, test_error=wrong.double().mean().item(),
               param_norm=param_norm(minimum.model), train_seconds=round(record["seconds"], 2))
    row["n_per_class"] = run.n_per_class or ""
    row |= boundary_numbers(run, minimum, data)
    between = time.perf_counter()
    row |= measures(minimum, data)
    ended = time.perf_counter()
    return row | dict(boundary_seconds=round(between - began, 2), measure_seconds=round(ended - between, 2))


def train_all(todo: list[Run], models: Path) -> None:
    models.mkdir(parents=True, exist_ok=True)
    for i, run in enumerate(todo):
        path = models / f"{run.key}.pt"
        if path.exists(): continue
        try:
            minimum, seconds = train_one(run)
            save(path, run, minimum, seconds)
            path.with_suffix(".failed").unlink(missing_ok=True)
            print(f"{i + 1}/{len(todo)} {run.key}: {seconds:.1f} s, loss {minimum.train_loss:.2g}, "
                  f"test error {1 - minimum.test_accuracy:.2%}", flush=True)
        except RuntimeError as error:
            path.with_suffix(".failed").write_text(str(error))
            print(f"{i + 1}/{len(todo)} {run.key}: FAILED {error}", flush=True)


def measure_all(todo: list[Run], models: Path, out: Path) -> None:
    done = {row["run"] for row in read(out)} if out.exists() else set()
    for i, run in enumerate(todo):
        path = models / f"{run.key}.pt"
        if run.key in done or not path.exists(): continue
        row = measure_one(path)
        append(out, row)
        seconds = row["boundary_seconds"] + row["measure_seconds"]
        print(f"{i + 1}/{len(todo)} {run.key}: {seconds:.1f} s, margin {row['true_margin']:.3g}, "
              f"lambda_1 {row['lambda_1']:.3g}, test error {row['test_error']:.2%}", flush=True)


def read(out: Path) -> list[dict]:
    with open(out, newline="") as f: return list(csv.DictReader(f))


def append(out: Path, row: dict) -> None:
    "One more row; `ValueError` if the file has other columns than the row."
    new = not out.exists()
    if not new:
        with open(out, newline="") as f: columns = next(csv.reader(f))
        if columns != list(row):
            others = sorted(set(columns) ^ set(row))
            raise ValueError(f"{out} has other columns than this version of the study writes: {others}; "
                             "give another --out")
    out.parent.mkdir(parents=True, exist_ok=True)
    with open(out, "a", newline="") as f:
        writer = csv.DictWriter(f, list(row), lineterminator="\n")
        if new: writer.writeheader()
        writer.writerow(row)


@dataclass(frozen=True)
class Tau:
    "Kendall's tau-b with a bootstrap interval over minima."
    value: float
    low: float
    high: float
    n: int  # minima with both numbers
    n_groups: int  # data sets that entered

    def __str__(self):
        return f"{self.value:+.2f} [{self.low:+.2f}, {self.high:+.2f}] ({self.n} minima, {self.n_groups} sets)"


def taus(x: np.ndarray, y: np.ndarray, counts: np.ndarray) -> np.ndarray:
    "tau-b of `x` and `y` `(n,)` where minimum i occurs `counts[b, i]` times; `(B,)`, NaN where one is constant."
    sx, sy = (np.sign(v[:, None] - v[None]) for v in (x, y))
    total = lambda s: np.einsum("bi,ij,bj->b", counts, s, counts, optimize=True)
    with np.errstate(invalid="ignore", divide="ignore"):
        return total(sx * sy) / np.sqrt(total(abs(sx)) * total(abs(sy)))


def kendall(
    x,  # `(n,)` a measure
    y,  # `(n,)` what it should tell
    groups=None,  # `(n,)` data sets; None: all minima are one set
    *,
    n_boot: int = 2000,  # resamples
    level: float = .95,  # of the interval
    seed: int = 0,  # of the resamples
) -> Tau:
    """tau-b within each group, averaged with the groups' numbers of pairs as weights; resampled within groups.

    Copies of one minimum in a resample count as ties. Minima with NaN are left out; so are groups of one, and groups
    whose x or y is constant."""
    x, y = np.asarray(x, float), np.asarray(y, float)
    groups = np.zeros(len(x), int) if groups is None else np.asarray(groups)
    if not len(x) == len(y) == len(groups):
        raise ValueError(f"x, y and groups differ in length: {len(x)}, {len(y)}, {len(groups)}")
    there, rng = np.isfinite(x) & np.isfinite(y), np.random.default_rng(seed)
    values, weights, boots, n = [], [], [], 0
    for group in np.unique(groups):
        mine = there & (groups == group)
        m = int(mine.sum())
        if m < 2: continue
        tau = taus(x[mine], y[mine], np.ones((1, m)))[0]
        if np.isnan(tau): continue
        resampled = rng.multinomial(m, np.full(m, 1 / m), n_boot).astype(float)
        values.append(tau), weights.append(m * (m - 1) / 2), boots.append(taus(x[mine], y[mine], resampled))
        n += m
    if not values: return Tau(math.nan, math.nan, math.nan, 0, 0)
    weights, boots = np.array(weights), np.array(boots)
    present = weights[:, None] * ~np.isnan(boots)
    with np.errstate(invalid="ignore"):
        pooled = (present * np.nan_to_num(boots)).sum(0) / present.sum(0)
    low, high = np.nanquantile(pooled, [(1 - level) / 2, (1 + level) / 2])
    return Tau(float(np.average(values, weights=weights)), float(low), float(high), n, len(values))


SETTINGS = {*Run.__dataclass_fields__, "run", "lr", "momentum", "batch_size", "n_train", "n_test", "n_params",
            "train_accuracy", "train_seconds", "boundary_seconds", "measure_seconds", "n_converged", "margin_certain",
            "trace_error", "margin_source", "margin_forward", "n_pairs", "coverage", "explained_random"}


def statistics(out: Path) -> None:
    "Print Kendall's tau of every measure with test error, boundary length and true margin, within sets and over all."
    rows = read(out)
    number = lambda name: np.array([float(row[name] or "nan") for row in rows])
    sets = np.array([row["dataset"] for row in rows])
    print(f"{len(rows)} minima of {len(set(sets))} data sets; Kendall's tau-b, 95% bootstrap interval")
    for goal in ("test_error", "boundary_length", "true_margin"):
        for name in rows[0]:
            if name in SETTINGS | {goal} or name.startswith("certified"): continue
            within, over_all = kendall(number(name), number(goal), sets), kendall(number(name), number(goal))
            print(f"{goal:12} {name:18} within sets {within}   all {over_all}")


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("phase", nargs="?", choices=("all", "train", "measure", "statistics", "list"), default="all")
    parser.add_argument("--models", type=Path, default=Path("study_models"), help="folder of the trained weights")
    parser.add_argument("--out", type=Path, default=Path("study.csv"), help="table of the measures")
    parser.add_argument("--only", default="", help="only runs whose name contains this, such as moons or adversarial")
    parser.add_argument("--limit", type=int, help="only so many runs")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    todo = [run for run in runs() if args.only in run.key][:args.limit]
    if not todo and args.phase != "statistics": sys.exit(f"no run's name contains {args.only!r}")
    if args.phase == "list": print(*(run.key for run in todo), sep="\n")
    if args.phase in ("all", "train"): train_all(todo, args.models)
    if args.phase in ("all", "measure"): measure_all(todo, args.models, args.out)
    if args.phase in ("all", "statistics"):
        if not args.out.exists(): sys.exit(f"{args.out} is not there: measure first")
        statistics(args.out)


if __name__ == "__main__": main()
