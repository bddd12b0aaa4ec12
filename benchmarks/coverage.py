"""The paper's experiments that no chapter shows: one small, seeded version of each, written to one long table.

    python benchmarks/coverage.py                                  runs what is not in the table yet
    python benchmarks/coverage.py --experiments dynamics,variants --seeds 2
    python benchmarks/coverage.py --list

Rows are `experiment, case, seed, step, measure, value`; the table is replaced as a whole after every case and seed, so
that a run goes on where it was stopped. Perceptrons and points are computed in float64, images in float32. Each network
is trained here: another machine gives others, and the same statistics within intervals.
"""
import argparse
import copy
import csv
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, jacrev

from hessnb.boundary.alignment import align
from hessnb.boundary.complexity import boundary_complexity
from hessnb.boundary.gradients import ReinforcingGradients
from hessnb.boundary.plane import scan_plane
from hessnb.boundary.points import boundary_points
from hessnb.boundary.probe import boundary_map
from hessnb.curvature.hessian import HessianOperator
from hessnb.curvature.objective import Objective
from hessnb.curvature.outliers import count_outliers
from hessnb.curvature.top import top_eigenpairs
from hessnb.paper.data import ClassificationData, load_data, mnist_digits
from hessnb.paper.networks import cnn, lenet5, mlp

HEADER = ("experiment", "case", "seed", "step", "measure", "value")
K, N_POINTS = 25, 100  # eigenpairs; points on the boundary
Rows = Iterator[tuple[int, str, float]]  # step, measure, value
CHECKPOINTS = (0, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000)  # epochs


def target(loss: str, y: Tensor, n_classes: int, dtype: torch.dtype) -> Tensor:
    return y if loss in ("ce", "nll") else F.one_hot(y, n_classes).to(dtype)


LOSSES = {"ce": nn.CrossEntropyLoss, "nll": nn.NLLLoss, "mse": nn.MSELoss, "bce": nn.BCEWithLogitsLoss}


def fit(model: nn.Module, X: Tensor, y: Tensor, n_classes: int, *, loss: str = "ce", adam: float | None = None,
        goal: float = 5e-3, steps: int = 3000) -> float:
    "Descend with all examples at once until every label is right and the loss is at most `goal`; the loss reached."
    each, t = LOSSES[loss](), target(loss, y, n_classes, X.dtype)
    optimizer = (torch.optim.Adam(model.parameters(), adam) if adam else
                 torch.optim.SGD(model.parameters(), .05, momentum=.9, nesterov=True))
    model.train()
    for _ in range(steps):
        optimizer.zero_grad()
        outputs = model(X)
        value = each(outputs, t)
        if value.item() <= goal and bool((outputs.argmax(1) == y).all()): break
        value.backward()
        optimizer.step()
    model.zero_grad(set_to_none=True)
    model.eval()
    return value.item()


def spectrum(op: HessianOperator, k: int, seed: int, tol: float):
    "The largest pairs, and the most negative eigenvalue."
    generator = torch.Generator().manual_seed(seed)
    pairs = top_eigenpairs(op, k, tol=tol, max_matvecs=600, generator=generator)
    negative = top_eigenpairs(op, 1, which="SA", tol=.05, max_matvecs=200, generator=generator).values[0].item()
    return pairs, min(negative, pairs.values.min().item())


def outlier_rows(pairs, negative: float) -> dict[str, float]:
    values = pairs.values
    return dict(lambda_1=values[0].item(), negative=negative, outliers_mirror=count_outliers(values,
                negative=negative).count, outliers_gap=count_outliers(values).count)


def shares(cosines: Tensor, n_classes: int) -> dict[str, float]:
    "Mean squared length of the unit gradients inside the first m vectors."
    inside = cosines.square().nanmean(0).cumsum(0)
    sizes = {"1": 1, "C-1": n_classes - 1, "C": n_classes, "5": 5, "10": 10, "all": len(inside)}
    return {name: inside[min(m, len(inside)) - 1].item() for name, m in sizes.items()}


def judged(model: nn.Module, data: ClassificationData, X: Tensor, *, loss: str = "ce", k: int = K, seed: int = 0,
           tol: float = 1e-3, pairs=None) -> dict[str, float]:
    "What is said of a network: outliers, and how much of the gradients at its boundary the top eigenvectors hold."
    y = data.y_train
    own = Objective(model, (X, target(loss, y, data.n_classes, X.dtype)), LOSSES[loss]())
    plain = Objective(model, (X, y))  # at the boundary its gradient is that of the difference of two logits
    pairs, negative = spectrum(HessianOperator(own), k, seed, tol)
    row = outlier_rows(pairs, negative) | dict(loss=float(own.value()), n_params=own.n_params)
    with torch.no_grad():
        predicted = model(X).argmax(1)
        row["train_accuracy"] = (predicted == y).double().mean().item()
        row["test_accuracy"] = (model(data.X_test.to(X)).argmax(1) == data.y_test).double().mean().item()
    if len(predicted.unique()) < 2: return row  # training broke down
    found = boundary_points(plain, X, n=N_POINTS, generator=torch.Generator().manual_seed(seed))
    row["n_points"] = len(found)
    if len(found) < 8: return row
    at = align(plain, found.points, pairs.vectors).cosines
    row |= {f"boundary_{m}": value for m, value in shares(at, data.n_classes).items()}
    row["boundary_last"] = at[:, -10:].square().nanmean(0).sum().item()  # the ten smallest of the pairs
    chance = torch.randn(10, own.n_params, dtype=X.dtype, generator=torch.Generator().manual_seed(seed))
    row["boundary_random"] = align(plain, found.points, chance).cosines.square().nanmean(0).sum().item()
    if loss != "bce":  # the paper's gradients, for the label predicted, of the loss that was trained with
        a, b = (align(own, x, pairs.vectors).cosines for x in (found.inside, found.points))
        strong = a[:, :5].abs() >= .1
        row["sign_changes"] = (a[:, :5] * b[:, :5] < 0)[strong].double().mean().item() if strong.any() else np.nan
        g, h = (ReinforcingGradients(own, x).unit(slice(None)) for x in (found.inside, found.points))
        row["two_sides"] = (g * h).sum(1).nanmean().item()  # cosine of the gradients on the two sides
    row["complexity"] = boundary_complexity(plain, X, n=N_POINTS).dimension
    return row


def once(row: dict[str, float], step: int = 0) -> Rows:
    for name, value in row.items(): yield step, name, value


# Spectrum and alignments during training

def dynamics(case: str, seed: int) -> Rows:
    "Four Gaussian classes, batches of 64, from the first step to 2,000 epochs."
    data = load_data("hierarchical", seed=seed)
    X, y, model = data.X_train.double(), data.y_train, mlp(2, 4, seed=seed).double()
    optimizer = (torch.optim.SGD(model.parameters(), .02) if case == "sgd" else
                 torch.optim.Adam(model.parameters(), 2e-3))
    order, states = torch.Generator().manual_seed(seed), {}
    for epoch in range(max(CHECKPOINTS) + 1):
        if epoch in CHECKPOINTS: states[epoch] = copy.deepcopy(model.state_dict())
        for batch in torch.randperm(len(y), generator=order).split(64):
            optimizer.zero_grad()
            F.cross_entropy(model(X[batch]), y[batch]).backward()
            optimizer.step()
    model.zero_grad(set_to_none=True)
    last = None
    for epoch in reversed(CHECKPOINTS):
        model.load_state_dict(states[epoch])
        pairs, negative = spectrum(HessianOperator(Objective(model, (X, y))), K, seed, 1e-3)
        last = pairs.vectors[:4] if last is None else last
        row = outlier_rows(pairs, negative) | dict(loss=F.cross_entropy(model(X), y).item())
        row["overlap"] = (pairs.vectors[:4] @ last.T).square().sum().item() / 4  # with the last top four
        a = align(Objective(model, (X, y)), X, pairs.vectors).cosines
        row |= {f"train_{m}": value for m, value in shares(a, 4).items()}
        with torch.no_grad(): p = model(X).argmax(1)
        row["train_accuracy"] = (p == y).double().mean().item()
        if len(p.unique()) == 4: row["contrast"] = contrast(a, p)
        yield from once(row, epoch)


def contrast(a: Tensor, p: Tensor) -> float:
    "Mean over the top three vectors of the largest difference of two classes' mean alignments."
    means = torch.stack([a[p == c, :3].nanmean(0) for c in p.unique()])
    return (means.amax(0) - means.amin(0)).mean().item()


# Other losses, activation, optimiser

VARIANTS = ("ce", "mse", "nll", "bce", "sigmoid", "adam")


def variants(case: str, seed: int) -> Rows:
    "One thing changed: loss, activation or optimiser."
    name, what = case.split("/")
    data = load_data(name, seed=seed)
    X, loss = data.X_train.double(), what if what in LOSSES else "ce"
    model = mlp(2, data.n_classes, seed=seed).double()
    if what == "sigmoid": model = nn.Sequential(*(nn.Sigmoid() if isinstance(m, nn.ReLU) else m for m in model))
    if what == "nll": model.append(nn.LogSoftmax(1))
    adam = {"adam": .01, "sigmoid": .01}.get(what)  # plain descent leaves sigmoids on their plateau for long
    fit(model, X, data.y_train, data.n_classes, loss=loss, adam=adam, goal=.01)
    yield from once(judged(model, data, X, loss=loss, seed=seed))


# The Hessian of some classes' examples

def subsets(case: str, seed: int) -> Rows:
    "The Hessian of the examples of two classes of a network that was trained on all."
    name, kept = case.split("/")
    data = load_data(name, seed=seed) if name != "digits" else mnist_digits((0, 1, 7), n_per_class=100, seed=seed)
    model, X, y = trained(name, data, seed), data.X_train.double(), data.y_train
    classes = range(data.n_classes) if kept == "all" else tuple(map(int, kept))
    mask = torch.isin(y, torch.tensor(tuple(classes)))
    pairs, negative = spectrum(HessianOperator(Objective(model, (X[mask], y[mask]))), K, seed, 1e-3)
    plain = Objective(model, (X, y))
    found = boundary_points(plain, X, n=N_POINTS, generator=torch.Generator().manual_seed(seed))
    at = align(plain, found.points, pairs.vectors).cosines[:, :5].square().sum(1)
    row, inside = outlier_rows(pairs, negative), torch.isin(found.classes, torch.tensor(tuple(classes))).sum(1)
    for n, where in enumerate(("outside", "touching", "inside")):
        if (inside == n).any(): row[f"boundary_{where}"] = at[inside == n].nanmean().item()
    met = found.class_pairs[inside == 2].unique(dim=0)
    yield from once(row | dict(n_pairs=len(met)))


KEPT: dict[tuple, nn.Module] = {}


def trained(name: str, data: ClassificationData, seed: int) -> nn.Module:
    "The network of a data set, trained once."
    if (name, seed) not in KEPT:
        model = cnn(3, seed=seed) if name == "digits" else mlp(2, data.n_classes, seed=seed).double()
        X = data.X_train.to(next(model.parameters()))
        fit(model, X, data.y_train, data.n_classes)
        KEPT[name, seed] = model.double()
    return KEPT[name, seed]


# Random labels inside pairs of classes

def within(case: str, seed: int) -> Rows:
    "Started from true labels, from labels permuted inside two pairs of classes, and from all labels permuted."
    data = load_data("hierarchical", seed=seed)
    X, y, model = data.X_train.double(), data.y_train, mlp(2, 4, seed=seed).double()
    order, wrong = torch.Generator().manual_seed(seed), y.clone()
    for group in {"normal": (), "within": ((0, 1), (2, 3)), "uniform": ((0, 1, 2, 3),)}[case]:
        members = torch.isin(y, torch.tensor(group)).nonzero()[:, 0]
        wrong[members] = y[members[torch.randperm(len(members), generator=order)]]
    first = {}
    if case != "normal":
        first["memorised_loss"] = fit(model, X, wrong, 4, adam=2e-3, goal=.05, steps=8000)
        first["memorised_accuracy"] = (model(X).argmax(1) == wrong).double().mean().item()
    fit(model, X, y, 4, adam=1e-3, goal=.01, steps=8000)
    row = judged(model, data, X, seed=seed) | first
    found = boundary_points(Objective(model, (X, y)), X, n=N_POINTS)
    pairs = found.class_pairs
    same = ((pairs == torch.tensor([0, 1])).all(1) | (pairs == torch.tensor([2, 3])).all(1))
    for name, part in (("within", same), ("between", ~same)):  # directions of the boundary by kind of class pair
        if part.sum() >= 8: row[f"directions_{name}"] = dimension(Objective(model, (X, y)), found.points[part][:40])
    yield from once(row)


def dimension(objective: Objective, X: Tensor) -> float:
    "Effective dimension, at a noise level of 1%, of unit gradients."
    G = ReinforcingGradients(objective, X).unit(slice(None))
    p = torch.linalg.eigvalsh(G @ G.T).clamp_min(0)
    return (p / (p + .01 * p.sum())).sum().item()


# Coherence of the logits' gradients

def coherence(case: str, seed: int) -> Rows:
    "Cosines of single logits' gradients, before and after training, by logit and by class of the example."
    data = load_data(case, seed=seed) if case != "digits" else mnist_digits((0, 1, 7), n_per_class=100, seed=seed)
    rows = torch.cat([(data.y_train == c).nonzero()[:15, 0] for c in range(data.n_classes)])
    X, y = data.X_train[rows].double(), data.y_train[rows]
    for step in (0, 1):  # at the start, at the minimum
        start = cnn(3, seed=seed) if case == "digits" else mlp(2, data.n_classes, seed=seed)
        model = trained(case, data, seed) if step else start.double()
        yield from once(logit_cosines(model, X, y, data.n_classes), step)


def logit_cosines(model: nn.Module, X: Tensor, y: Tensor, n_classes: int) -> dict[str, float]:
    "Mean cosines of the logits' gradients of different examples."
    params = {name: p.detach() for name, p in model.named_parameters()}
    J = jacrev(lambda p: functional_call(model, p, (X,)))(params)
    G = torch.cat([j.reshape(len(X), n_classes, -1) for j in J.values()], 2)
    G = G / G.norm(dim=2, keepdim=True)
    cos = torch.einsum("icp,jdp->icjd", G, G)
    same = (y[:, None] == y[None])[:, None, :, None]
    logit = torch.eye(n_classes, dtype=torch.bool)[None, :, None, :]
    other = ~torch.eye(len(y), dtype=torch.bool)[:, None, :, None]
    mean = lambda where: cos[where.expand_as(cos)].mean().item()
    row = dict(logit_class=mean(same & logit & other), logit_other=mean(~same & logit & other),
               other_class=mean(same & ~logit & other), other_other=mean(~same & ~logit & other))
    own = G[torch.arange(len(y)), y]  # of the label's own logit
    margin = own - G.mean(1)
    return row | dict(rank_all=spread(G.flatten(0, 1)), rank_margin=spread(margin))


def spread(G: Tensor) -> float:
    "Participation ratio of the unit rows' Gram matrix."
    G = G / G.norm(dim=1, keepdim=True)
    return len(G) ** 2 / (G @ G.T).square().sum().item()


# The boundary rebuilt from eigenvectors

def rebuilt(case: str, seed: int) -> Rows:
    "Changes of prediction on a grid that show as reversals of the alignments with k vectors; top, last and random."
    data = load_data(case, seed=seed)
    X, y = data.X_train.double(), data.y_train
    objective, order = Objective(trained(case, data, seed), (X, y)), torch.Generator().manual_seed(seed)
    pairs, _ = spectrum(HessianOperator(objective), K, seed, 1e-3)
    random = torch.linalg.qr(torch.randn(objective.n_params, 10, generator=order, dtype=X.dtype))[0].T
    scan = scan_plane(objective, X, torch.cat([pairs.vectors, random]), n=60)
    row, chosen = {}, {f"top{k}": range(k) for k in (1, 2, 3, 5, 10)}
    chosen |= {f"last{k}": range(K - k, K) for k in (1, 5, 10)} | {f"random{k}": range(K, K + k) for k in (1, 5, 10)}
    values = torch.cat([pairs.values, torch.ones(10, dtype=X.dtype)])
    for name, which in chosen.items():
        which = list(which)
        made = boundary_map(replace(scan, cosines=scan.cosines[which]), values[which].clamp_min(1e-12))
        row |= {f"found_{name}": made.found, f"true_{name}": made.true}
    p, a = scan.predictions, scan.cosines[:5]
    turns = [torch.randint(0, 2, (5,), generator=order).double() * 2 - 1 for _ in range(16)]
    recalls = [signed_recall((s[:, None, None] * pairs.values[:5, None, None] * a).sum(0), p) for s in turns]
    yield from once(row | dict(signed_lowest=min(recalls), signed_highest=max(recalls)))


def signed_recall(signed: Tensor, p: Tensor) -> float:
    "Share of the changes of prediction where the authors' signed sum changes its sign."
    flat = lambda t, d: (t[:, 1:], t[:, :-1]) if d else (t[1:], t[:-1])
    changed, turned = zip(*(((flat(p, d)[0] != flat(p, d)[1]).flatten(),
                             (flat(signed, d)[0] * flat(signed, d)[1] < 0).flatten()) for d in (0, 1)))
    changed, turned = torch.cat(changed), torch.cat(turned)
    return (changed & turned).sum().item() / changed.sum().item()


# Digits, and images of the shape of CIFAR's

def digits(case: str, seed: int) -> Rows:
    "The paper's CNN on some digits, from torch's initialisation or from random labels; 50 images a class."
    which, start = case.split("/")
    data = mnist_digits(tuple(map(int, which)), n_per_class=100, seed=seed)
    X, y, model = data.X_train, data.y_train, cnn(data.n_classes, seed=seed)
    first = {}
    if start == "adversarial":
        wrong = y[torch.randperm(len(y), generator=torch.Generator().manual_seed(seed))]
        first["memorised_loss"] = fit(model, X, wrong, data.n_classes, adam=2e-3, goal=.05, steps=600)
    fit(model, X, y, data.n_classes, steps=600)
    yield from once(judged(model, data, X, k=15, seed=seed, tol=1e-2) | first)


def coloured(classes: tuple[int, ...], seed: int, n: int) -> ClassificationData:
    "Digits in random colours over random coloured waves, 3 x 32 x 32."
    data, draw = mnist_digits(classes, n_per_class=2 * n, seed=seed), torch.Generator().manual_seed(seed)
    u = torch.linspace(0, 1, 32)
    def painted(X: Tensor) -> Tensor:
        ink = F.pad(X, (2, 2, 2, 2))
        waves = torch.rand(len(X), 3, 3, generator=draw)
        phase = 12 * (waves[..., :1, None] * u[:, None] + waves[..., 1:2, None] * u) + 6.3 * waves[..., 2:, None]
        colour = .5 + .5 * torch.rand(len(X), 3, 1, 1, generator=draw)
        return ink * colour + (1 - ink) * (.25 + .25 * phase.sin())
    return replace(data, name="coloured", X_train=painted(data.X_train), X_test=painted(data.X_test))


class Block(nn.Module):
    "Two 3 x 3 convolutions with batch-norm, added to their input."
    def __init__(self, n_in: int, n_out: int, stride: int):
        super().__init__()
        conv = lambda a, b, size, step: nn.Sequential(nn.Conv2d(a, b, size, step, size // 2, bias=False),
                                                      nn.BatchNorm2d(b, momentum=1.))
        self.residual = nn.Sequential(conv(n_in, n_out, 3, stride), nn.ReLU(), conv(n_out, n_out, 3, 1))
        self.shortcut = nn.Identity() if stride == 1 and n_in == n_out else conv(n_in, n_out, 1, stride)

    def forward(self, x: Tensor) -> Tensor: return F.relu(self.residual(x) + self.shortcut(x))


def thin_resnet18(n_classes: int, seed: int, width: int = 12) -> nn.Module:
    "ResNet-18 for small images with 12 .. 96 channels instead of 64 .. 512."
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        widths = [width * 2**i for i in range(4)]
        blocks = [b for i, (a, c) in enumerate(zip([width, *widths], widths))
                  for b in (Block(a, c, 1 if i == 0 else 2), Block(c, c, 1))]
        return nn.Sequential(nn.Conv2d(3, width, 3, padding=1, bias=False), nn.BatchNorm2d(width, momentum=1.),
                             nn.ReLU(), *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8 * width, n_classes))


def images(case: str, seed: int) -> Rows:
    "LeNet-5 and a thin ResNet-18 (batch-norm in evaluation mode) on coloured digits of 3 x 32 x 32."
    name, which = case.split("/")
    classes = tuple(map(int, which))
    data = coloured(classes, seed, n=50 if name == "lenet5" else 25)
    X, y, C = data.X_train, data.y_train, data.n_classes
    model = lenet5(C, seed=seed) if name == "lenet5" else thin_resnet18(C, seed)
    fit(model, X, y, C, adam=2e-3, goal=.01, steps=400 if name == "lenet5" else 80)
    if name != "lenet5":
        with torch.no_grad(): model.train()(X)  # statistics of these parameters, not of the step before
        model.eval()
    yield from once(judged(model, data, X, k=12 if name == "lenet5" else 6, seed=seed, tol=1e-2))


POINTS = ("gauss", "hierarchical", "moons", "circles", "checkerboard")
TRIPLES = ("017", "179", "358", "246", "0179", "1379")
EXPERIMENTS: dict[str, tuple[Callable[[str, int], Rows], tuple[str, ...], int]] = {
    "dynamics": (dynamics, ("sgd", "adam"), 5),
    "variants": (variants, tuple(f"{d}/{v}" for d in ("gauss", "circles", "moons") for v in VARIANTS), 5),
    "subsets": (subsets, (*(f"gauss/{s}" for s in ("all", "01", "02", "12")),
                          *(f"hierarchical/{s}" for s in ("all", "01", "12", "23", "03", "02", "13")),
                          *(f"digits/{s}" for s in ("all", "01", "02", "12"))), 3),
    "within": (within, ("normal", "within", "uniform"), 4),
    "coherence": (coherence, ("gauss", "hierarchical", "digits"), 5),
    "rebuilt": (rebuilt, POINTS, 5),
    "digits": (digits, tuple(f"{t}/{s}" for t in TRIPLES for s in ("normal", "adversarial")), 2),
    "images": (images, ("lenet5/127", "lenet5/017", "resnet18/127"), 2),
}


def read(out: Path) -> list[dict]:
    if not out.exists(): return []
    with open(out, newline="") as f: return list(csv.DictReader(f))


def write(out: Path, rows: list[dict]) -> None:
    "Replace the table as a whole; an interruption leaves the old one."
    out.parent.mkdir(parents=True, exist_ok=True)
    part = out.with_suffix(".part")
    with open(part, "w", newline="") as f:
        writer = csv.DictWriter(f, HEADER, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    os.replace(part, out)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("coverage.csv"), help="the table")
    parser.add_argument("--experiments", default=",".join(EXPERIMENTS), help="which, with commas between")
    parser.add_argument("--cases", default="", help="only cases that begin so")
    parser.add_argument("--seeds", type=int, help="how many; otherwise as in EXPERIMENTS")
    parser.add_argument("--list", action="store_true", help="only say what there is")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    for name in args.experiments.split(","):
        if name not in EXPERIMENTS: parser.error(f"no experiment {name!r}; there are {', '.join(EXPERIMENTS)}")
        run, cases, usual = EXPERIMENTS[name]
        if args.list:
            print(name, f"{args.seeds or usual} seeds:", *cases)
            continue
        for seed in range(args.seeds or usual):
            for case in cases:
                rows, key = read(args.out), dict(experiment=name, case=case, seed=str(seed))
                if not case.startswith(args.cases) or any(key.items() <= row.items() for row in rows): continue
                began = time.perf_counter()
                for step, measure, value in run(case, seed):
                    rows.append(key | dict(step=step, measure=measure, value=f"{value:.6g}"))
                write(args.out, rows)
                print(f"{name} {case} seed {seed}: {time.perf_counter() - began:.1f} s", flush=True)
        KEPT.clear()


if __name__ == "__main__": main()
