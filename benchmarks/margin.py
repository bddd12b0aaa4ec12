"""The margin from few examples against searches over all of them.

    python benchmarks/margin.py --part plane --models study_models
        minima of benchmarks/study.py in the plane, truth from the traced boundary
    python benchmarks/margin.py --part pairs
        pairs of checkerboard minima: is the wider one named?
    python benchmarks/margin.py --part images --models margin_models
        20 minima on MNIST digits 0, 1, 7, against two attacks on every example

Each part writes a CSV (a row for each minimum) and a summary in markdown to `--out`, and prints both; it goes on where
it was stopped. The attacks are those of foolbox, which is installed beside the environment: see
benchmarks/requirements-margin.txt.
"""
import argparse
import math
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parent))
import study

from hessnb.boundary.alignment import align
from hessnb.boundary.curves import trace_boundary
from hessnb.boundary.distance import nearest_boundary
from hessnb.boundary.margin import estimate_margin, support_examples
from hessnb.boundary.paper_margin import paper_margin
from hessnb.curvature.eigenpairs import EigenPairs
from hessnb.curvature.hessian import HessianOperator
from hessnb.curvature.objective import Objective
from hessnb.curvature.outliers import count_outliers
from hessnb.curvature.top import top_eigenpairs
from hessnb.paper.data import load_data
from hessnb.paper.zoo import find_minimum

MOST = 10  # outlier directions looked at
BOX = (0., 1.)  # of the pixels


def outlier_pairs(objective: Objective) -> tuple[EigenPairs, int]:
    "Leading eigenpairs, and how many of them are outliers by the mirror rule (1 to `MOST`)."
    op = HessianOperator(objective)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pairs = top_eigenpairs(op, min(MOST, op.shape[0]), tol=1e-5, miss_probability=1)
        negative = top_eigenpairs(op, 1, which="SA", tol=1e-2, miss_probability=1).values[0].item()
    return pairs, max(1, count_outliers(pairs.values, negative=min(negative, pairs.values[-1].item())).count)


def ranks(objective: Objective, X: Tensor, pairs: EigenPairs, k: int, nearest: int) -> dict:
    "Is the nearest example an extreme of v1, of an outlier direction; its place in the order of first-order distances."
    cosines = align(objective, X, pairs.vectors[:k]).cosines.nan_to_num()
    extremes = [(int(a.argmax()), int(a.argmin())) for a in cosines.T]
    order = list(support_examples(objective, X, cosines[:, :0], n_candidates=len(X), n_screened=len(X)))
    return dict(extreme_of_v1=int(nearest in extremes[0]), extreme_of_outlier=int(any(nearest in e for e in extremes)),
                first_order_rank=order.index(nearest) + 1)


def extremes_only(objective: Objective, X: Tensor, pairs: EigenPairs, k: int, distances: Tensor) -> float:
    "The smallest of given distances over the extremes of the outlier directions."
    cosines = align(objective, X, pairs.vectors[:k]).cosines
    return distances[list(support_examples(objective, X, cosines, n_candidates=2 * k, n_screened=0))].min().item()


def ours(objective: Objective, X: Tensor, pairs: EigenPairs, k: int, designed: bool, **options) -> dict:
    "Columns of our estimate, with the eigenvectors, without them, and from designed inputs too (NaN unless asked for)."
    margin = estimate_margin(objective, X, pairs, n_directions=k, **options)
    plain = estimate_margin(objective, X, None, **options)
    from_designed = estimate_margin(objective, X, pairs, n_directions=k, designed=True,
                                    **options).value if designed else math.nan
    return dict(ours=margin.value, nearest=margin.nearest, source=margin.source, agreement=margin.agreement,
                n_searched=len(margin.candidates), verified=int(margin.verified),
                n_forward=margin.n_forward, n_backward=margin.n_backward,
                first_order_only=plain.value, designed=from_designed)


def rays(objective: Objective, X: Tensor, radius: float, n_angles: int = 360, n_radii: int = 6) -> int:
    """How many points of polar grids of `radius` around all examples are predicted otherwise than their example: none
    if the margin is at least `radius`."""
    angle = torch.arange(n_angles) * (2 * math.pi / n_angles)
    disc = (torch.linspace(1 / n_radii, 1, n_radii)[:, None, None] *
            torch.stack([angle.cos(), angle.sin()], 1)).reshape(-1, 2).to(X) * radius
    own, found = objective.predict(X).argmax(1), 0
    for x, y in zip(X.split(20), own.split(20)):
        points = (x.reshape(-1, 1, 2) + disc).reshape(-1, *X.shape[1:])
        found += int((objective.predict(points).argmax(1) != y.repeat_interleave(len(disc))).sum())
    return found


def plane_row(path: Path, designed: bool) -> dict:
    run, minimum, data, _ = study.load(path)
    objective, X = Objective(minimum.model, (data.X_train, data.y_train)), data.X_train.double()
    curves = trace_boundary(objective, X, n=600)
    distance = curves.distance(X)
    truth, nearest = distance.min().item(), int(distance.argmin())
    pairs, k = outlier_pairs(objective)
    row = dict(run=run.key, kind=run.kind, n=len(X), outliers=k, truth=truth,
               truth_nearest=nearest) | ours(objective, X, pairs, k, designed)
    every = nearest_boundary(objective, X)
    excess = every.values / distance - 1
    row |= dict(every=every.values.min().item(), every_forward=every.n_forward, every_backward=every.n_backward,
                extremes_only=extremes_only(objective, X, pairs, k, every.values),
                examples_off=int((excess > .02).sum()), worst_example=excess.max().item(),
                points_inside=rays(objective, X, .98 * row["ours"]))
    return row | ranks(objective, X, pairs, k, nearest)


def pair_row(seed: int) -> dict:
    "Two checkerboard minima of one seed, from a usual and from a noisy start."
    data, row = load_data("checkerboard"), dict(run=f"checkerboard-s{seed}")
    for kind in ("normal", "noisy_init"):
        minimum = find_minimum(kind, data, seed=seed)
        objective, X = Objective(minimum.model.double(), (data.X_train, data.y_train)), data.X_train.double()
        pairs, k = outlier_pairs(objective)
        margin = estimate_margin(objective, X, pairs, n_directions=k)
        paper = paper_margin(objective, X, pairs, generator=torch.Generator().manual_seed(seed))
        truth = trace_boundary(objective, X, n=600).distance(X).min().item()
        row |= {f"{kind}_{name}": value for name, value in dict(truth=truth, ours=margin.value, source=margin.source,
                                                                searched=len(margin.candidates),
                                                                paper=paper.value).items()}
    order = lambda name: row[f"normal_{name}"] < row[f"noisy_init_{name}"]
    return row | dict(ours_right=int(order("ours") == order("truth")),
                      paper_right=int(order("paper") == order("truth")))


class Counted(nn.Module):
    "A model that counts the inputs sent forward, and those that a gradient came back for."
    def __init__(self, model: nn.Module):
        super().__init__()
        self.model, self.n_forward, self.n_backward = model, 0, 0

    def forward(self, x: Tensor) -> Tensor:
        self.n_forward += len(x)
        out = self.model(x)
        if out.requires_grad: out.register_hook(self._count)
        return out

    def _count(self, grad: Tensor) -> None: self.n_backward += len(grad)


def attacks(steps: int) -> dict[str, Callable]:
    "Minimal-perturbation attacks by name."
    try:
        from foolbox.attacks import DDNAttack, L2DeepFoolAttack
    except ImportError as error:
        sys.exit(f"--part images needs foolbox ({error}); see benchmarks/requirements-margin.txt:\n"
                 "  pip install --target attack_libs --no-deps -r benchmarks/requirements-margin.txt\n"
                 "  PYTHONPATH=attack_libs python benchmarks/margin.py --part images")
    return {"ddn": DDNAttack(steps=steps), "deepfool": L2DeepFoolAttack(steps=50, overshoot=.002)}


def polished(model: nn.Module, X: Tensor, points: Tensor, own: Tensor) -> Tensor:
    """Distances `(N,)` of an attack's points in float64: each is bisected towards its example, and counts only if it is
    predicted otherwise."""
    with torch.no_grad():
        step = points - X
        low, high = torch.zeros(len(X), dtype=X.dtype), torch.ones(len(X), dtype=X.dtype)
        other = lambda t: model((X + t.reshape(-1, 1, 1, 1) * step).clamp(*BOX)).argmax(1) != own
        for slack in (1., 1.0005, 1.002):  # an attack in float32 may stop a rounding error before the boundary
            crossed = other(slack * torch.ones_like(high))
            if slack == 1.: reached = crossed
            high, reached = torch.where(crossed & ~reached, slack, high), reached | crossed
        for _ in range(20):
            middle = (low + high) / 2
            crossed = other(middle)
            low, high = torch.where(crossed, low, middle), torch.where(crossed, middle, high)
    return torch.where(reached, high * step.flatten(1).norm(dim=1), math.inf)


def attack_columns(model: nn.Module, X: Tensor, own: Tensor, steps: int) -> tuple[dict, Tensor]:
    "What each attack finds over all examples, with its passes, and the smallest distance of each example `(N,)`."
    from foolbox import PyTorchModel
    row, best = {}, torch.full((len(X),), math.inf, dtype=X.dtype)
    for name, attack in attacks(steps).items():
        counted = Counted(model.float())
        torch.manual_seed(0)
        found = attack(PyTorchModel(counted.eval(), bounds=BOX, device="cpu"), X.float(), own, epsilons=None)[0]
        distance = polished(model.double(), X, found.double(), own)
        best = torch.minimum(best, distance)
        row |= {name: distance.min().item(), f"{name}_nearest": int(distance.argmin()),
                f"{name}_forward": counted.n_forward, f"{name}_backward": counted.n_backward,
                f"{name}_failed": int(distance.isinf().sum())}
    return row, best


def image_runs() -> list[study.Run]:
    return [study.Run("mnist017", kind, 0, seed) for seed in range(7)
            for kind in ("normal", "adversarial", "large_norm")][:20]


def image_row(path: Path, designed: bool, steps: int, search_all: bool) -> dict:
    run, minimum, data, _ = study.load(path)
    model, X = minimum.model, data.X_train.double()
    objective = Objective(model, (X, data.y_train))
    own = objective.predict(X).argmax(1)
    pairs, k = outlier_pairs(objective)
    row = dict(run=run.key, kind=run.kind, n=len(X), outliers=k) | ours(objective, X, pairs, k, designed, box=BOX)
    columns, best = attack_columns(model, X, own, steps)
    row |= columns
    if search_all:
        every = nearest_boundary(objective.to(torch.float32), X.float(), box=BOX)
        values = polished(model, X, every.points.double(), own)
        row |= dict(every=values.min().item(), every_forward=every.n_forward, every_backward=every.n_backward,
                    examples_off=int((values / best > 1.02).sum()), worst_example=(values / best).max().item() - 1)
        best = torch.minimum(best, values)
    row |= dict(extremes_only=extremes_only(objective, X, pairs, k, best), truth=min(best.min().item(), row["ours"]),
                truth_nearest=int(best.argmin()))
    return row | ranks(objective, X, pairs, k, int(best.argmin()))


def summary(part: str, rows: list[dict]) -> str:
    "The rows' medians and worst cases as a markdown table."
    column = lambda name: np.array([float(row[name]) for row in rows])
    if part == "pairs":
        parts = [f"{len(rows)} pairs; order right: ours {column('ours_right').sum():.0f}, the paper's estimate "
                 f"{column('paper_right').sum():.0f}"]
        worst = lambda name: max(abs(float(r[f"{kind}_{name}"]) / float(r[f"{kind}_truth"]) - 1) for r in rows
                                 for kind in ("normal", "noisy_init"))
        return "\n".join(parts + [f"worst relative error: ours {worst('ours'):.2%}, the paper's {worst('paper'):.0%}"])
    lines = ["| | median excess | worst excess | off by > 2% | forward passes (median) | backward |",
             "| --- | --- | --- | --- | --- | --- |"]
    for name in ("ours", "first_order_only", "extremes_only", "designed", "every", "ddn", "deepfool"):
        if name not in rows[0]: continue
        if np.isnan(column(name)).all(): continue
        excess, passes = column(name) / column("truth") - 1, {"ours": "n"}.get(name, name)
        counts = [f"{np.median(column(f'{passes}_{way}')):,.0f}" if f"{passes}_{way}" in rows[0] else ""
                  for way in ("forward", "backward")]
        lines.append(f"| {name} | {np.nanmedian(excess):.2%} | {np.nanmax(excess):.2%} | {(excess > .02).sum()} of "
                     f"{np.isfinite(excess).sum()} | {counts[0]} | {counts[1]} |")
    lines += ["", f"the nearest example is an extreme of v1 in {column('extreme_of_v1').sum():.0f}, of an outlier "
                  f"direction in {column('extreme_of_outlier').sum():.0f}, among the 3 (10) smallest first-order "
                  f"distances "
              f"in {(column('first_order_rank') <= 3).sum()} ({(column('first_order_rank') <= 10).sum()}) of "
              f"{len(rows)} minima; largest rank {column('first_order_rank').max():.0f}"]
    if "examples_off" in rows[0]:
        lines.append(f"single examples off by > 2% in the search over all: {column('examples_off').sum():.0f} of "
                     f"{column('n').sum():.0f}, worst {column('worst_example').max():.1%}")
    if part == "plane":
        lines.append(f"minima with a point of the polar grids inside 98% of our margin: "
                     f"{(column('points_inside') > 0).sum()}")
    return "\n".join(lines)


def measure(part: str, todo: dict[str, Callable[[], dict]], out: Path) -> None:
    "Rows that are not there yet, then the summary."
    table = out / f"margin_{part}.csv"
    out.mkdir(parents=True, exist_ok=True)
    done = {row["run"] for row in study.read(table)} if table.exists() else set()
    for name, make in todo.items():
        if name in done: continue
        row = make()
        study.append(table, row)
        print(", ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items()), flush=True)
    if not table.exists(): sys.exit("nothing was measured: are there models?")
    text = summary(part, study.read(table))
    (out / f"margin_{part}.md").write_text(text + "\n")
    print(text)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=("plane", "pairs", "images"), required=True)
    parser.add_argument("--models", type=Path, default=Path("study_models"),
                        help="folder of trained weights; part images trains what is missing")
    parser.add_argument("--out", type=Path, default=Path("margin_results"), help="folder for the tables")
    parser.add_argument("--only", default="", help="only runs whose name contains this")
    parser.add_argument("--limit", type=int, help="only so many runs")
    parser.add_argument("--designed", action="store_true", help="also start from designed inputs: dear")
    parser.add_argument("--steps", type=int, default=500, help="of DDN")
    parser.add_argument("--every", action="store_true",
                        help="images: our search over all examples too, not only the attacks: dear")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    if args.part == "pairs": todo = {f"checkerboard-s{seed}": lambda seed=seed: pair_row(seed) for seed in range(10)}
    elif args.part == "plane":
        todo = {p.stem: lambda p=p: plane_row(p, args.designed) for p in sorted(args.models.glob("*.pt"))
                if p.stem.split("-")[0] in study.PLANE}
    else:
        attacks(1)
        study.train_all([run for run in image_runs() if args.only in run.key][:args.limit], args.models)
        todo = {run.key: lambda p=args.models / f"{run.key}.pt": image_row(p, args.designed, args.steps, args.every)
                for run in image_runs() if (args.models / f"{run.key}.pt").exists()}
    measure(args.part, dict([(k, v) for k, v in todo.items() if args.only in k][:args.limit]), args.out)


if __name__ == "__main__": main()
