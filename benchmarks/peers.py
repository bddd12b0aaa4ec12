"""The same eigenpairs from hessnb and from its peers: seconds, memory, products, and the true residual of each answer.

    make bench                                       everything
    python benchmarks/peers.py --quick               small problems, few repetitions
    python benchmarks/peers.py --only cnn lenet      problems whose name contains one of these
    python benchmarks/peers.py --summary             tables and plot from the rows that are there
    python benchmarks/peers.py --device cuda --out benchmarks/results/gpu

On a CPU every run is a process of its own, forked from one that has imported everything and computed nothing, with the
same number of threads; the runs of a problem are interleaved, repetition by repetition. A clock covers all that a user
waits for: from a model and its data to the eigenvectors. Short runs are made twice in the process and the second one
counts, because the first loads code; its time is kept as `cold`. Long ones are repeated less often: see `ENOUGH`.
Memory is the growth of the process's high-water mark over the first, on a GPU that of torch's allocator. Afterwards,
outside the clock, the residuals |Hv - lambda v| / |lambda| of the vectors that came back are computed in float64 with
products by plain double backward, lambda being their Rayleigh quotient, and the worst one is kept: a solver is compared
only where it reached the goal. Rows go to `peers.jsonl` in `--out`; the benchmark goes on where it was stopped. Remove
rows to measure them again.
"""
import argparse
import copy
import functools
import gc
import importlib
import json
import math
import multiprocessing
import os
import platform
import statistics
import subprocess
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from scipy.sparse.linalg import LinearOperator, eigsh
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from hessnb.boundary.alignment import align
from hessnb.curvature import lanczos, operator
from hessnb.curvature.hessian import HessianOperator
from hessnb.curvature.lowrank import nonzero_eigenpairs
from hessnb.curvature.objective import Objective
from hessnb.curvature.top import eigenpairs_until, top_eigenpairs
from hessnb.paper.data import load_data
from hessnb.paper.networks import cnn, lenet5, mlp, resnet18

# float32 products are not exact enough for a smaller true residual, whoever computes
FLOOR = {"float32": 1e-4, "float64": 0.}
WARM = 5.  # seconds; a solver that is done sooner is asked twice, and the second time counts: the first one loads code
# seconds; once a solver's runs on a problem add up to this, it is not repeated; nor is one that is far from the goal
ENOUGH = 20.


@dataclass(frozen=True)
class Problem:
    "A network at given parameters, its data, and what is asked."
    network: str  # one of NETWORKS
    n: int  # examples
    k: int = 10  # pairs
    tol: float = 1e-3
    dtype: str = "float32"
    device: str = "cpu"

    @property
    def key(self) -> str:
        place = f"-{self.device}" if self.device != "cpu" else ""
        return f"{self.network}-N{self.n}-k{self.k}-tol{self.tol:g}-{self.dtype}{place}"
    @property  # worst true relative residual; ARPACK's own estimates are that exact
    def goal(self) -> float: return max(1.5 * self.tol, FLOOR[self.dtype])


# networks and data


class Encoder(nn.Module):
    "A transformer encoder of four layers for sequences of 32 symbols."
    def __init__(self, width: int = 128, length: int = 32, n_symbols: int = 200, n_classes: int = 10):
        super().__init__()
        self.table, self.place = nn.Embedding(n_symbols, width), nn.Parameter(.02 * torch.randn(length, width))
        layer = nn.TransformerEncoderLayer(width, 4, 5 * width, dropout=0., batch_first=True, activation="gelu")
        self.layers, self.out = nn.TransformerEncoder(layer, 4, enable_nested_tensor=False), nn.Linear(width, n_classes)
    def forward(self, x: Tensor) -> Tensor: return self.out(self.layers(self.table(x) + self.place).mean(1))


@functools.cache
def digits(name: str, n: int) -> tuple[Tensor, Tensor]:
    "The first `n` images of a fixed order of all that there are."
    data = load_data(name, n_per_class=500 if name == "mnist10" else 300)
    X, y = torch.cat([data.X_train, data.X_test]), torch.cat([data.y_train, data.y_test])
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(0))[:n]
    return X[order].float(), y[order]


def drawn(shape: tuple, n: int, symbols: int = 0) -> tuple[Tensor, Tensor]:
    "Random images or sequences, and random labels of ten classes."
    g = torch.Generator().manual_seed(0)
    X = torch.randint(0, symbols, (n, *shape), generator=g) if symbols else torch.randn(n, *shape, generator=g)
    return X, torch.randint(0, 10, (n,), generator=g)


def gauss(n: int) -> tuple[Tensor, Tensor]:
    data = load_data("gauss", n_per_class=2 * n // 3)
    return data.X_train[:n].float(), data.y_train[:n]


def encoder() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Encoder()


# model, data of n examples, steps of full-batch Adam before the measurement
NETWORKS: dict[str, tuple[Callable, Callable, int]] = {
    "mlp": (lambda: mlp(2, 3), gauss, 200),
    "cnn": (lambda: cnn(3), lambda n: digits("mnist017", n), 40),
    "lenet": (lambda: lenet5(10, 1, 28), lambda n: digits("mnist10", n), 40),
    "resnet": (lambda: resnet18(10), lambda n: drawn((3, 32, 32), n), 20),
    "encoder": (encoder, lambda n: drawn((32,), n, symbols=200), 10),
}


def build(problem: Problem, folder: Path) -> tuple[nn.Module, Tensor, Tensor]:
    "The model, briefly trained on its data (once; then read from a file), and the data, in the problem's precision."
    make, data, steps = NETWORKS[problem.network]
    model, (X, y) = make().eval().to(problem.device), (t.to(problem.device) for t in data(problem.n))
    path = folder / f"{problem.network}-{problem.n}.pt"
    if path.exists(): model.load_state_dict(torch.load(path, map_location=problem.device))
    else:
        adam = torch.optim.Adam(model.parameters(), 1e-3)
        for _ in range(steps):
            adam.zero_grad()
            F.cross_entropy(model(X), y).backward()
            adam.step()
        adam.zero_grad()
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(model.state_dict(), path)
    dtype = getattr(torch, problem.dtype)
    return model.to(dtype), X.to(dtype) if X.is_floating_point() else X, y


# solvers: (problem, model, X, y, seed) -> vectors (k, P), number of products


def ours(problem: Problem, model, X, y, seed: int, **kwargs) -> tuple[Tensor, int]:
    op = HessianOperator(Objective(model, (X, y)))
    pairs = top_eigenpairs(op, problem.k, tol=problem.tol, generator=torch.Generator().manual_seed(seed), **kwargs)
    return pairs.vectors, op.n_matvecs


def arpack(problem: Problem, product: Callable, n: int, seed: int) -> tuple[Tensor, int]:
    "SciPy's solver on a product of NumPy vectors."
    count, dtype = [0], np.dtype(problem.dtype)
    def counted(v):
        count[0] += 1
        return product(v.reshape(-1))
    v0 = np.random.default_rng(seed).standard_normal(n).astype(dtype)
    _, V = eigsh(LinearOperator((n, n), matvec=counted, dtype=dtype), k=problem.k, which="LA", tol=problem.tol, v0=v0)
    return torch.from_numpy(V.T.copy()), count[0]


def curvlinops(problem: Problem, model, X, y, seed: int) -> tuple[Tensor, int]:
    from curvlinops import HessianLinearOperator
    params = [p for p in model.parameters() if p.requires_grad]
    H = HessianLinearOperator(model, nn.CrossEntropyLoss(), params, [(X, y)], check_deterministic=False).to_scipy()
    return arpack(problem, lambda v: H @ v, H.shape[0], seed)


def backpack(problem: Problem, model, X, y, seed: int) -> tuple[Tensor, int]:
    from backpack.hessianfree.hvp import hessian_vector_product
    params = [p for p in model.parameters() if p.requires_grad]
    loss = F.cross_entropy(model(X), y)
    grads = torch.autograd.grad(loss, params, create_graph=True)
    def product(v):
        parts = [part.view_as(p) for part, p in zip(torch.from_numpy(v).to(X.device).split([p.numel() for p in params]),
                                                    params)]
        return torch.cat([h.reshape(-1)
                          for h in hessian_vector_product(loss, params, parts, grad_params=grads)]).cpu().numpy()
    return arpack(problem, product, sum(p.numel() for p in params), seed)


def eigenthings(problem: Problem, model, X, y, seed: int, steps: int | None = None) -> tuple[Tensor, int]:
    "Its tolerance does not drive the iteration: the number of steps is given from outside, see `enough_steps`."
    import hessian_eigenthings as peer
    op = peer.HessianOperator(model, [(X, y)], peer.supervised_loss(nn.CrossEntropyLoss()))
    result = peer.lanczos(op, k=problem.k, max_iter=steps, tol=problem.tol, which="LA", reorthogonalize=True, seed=seed)
    return result.eigenvectors, result.iterations


def pyhessian(problem: Problem, model, X, y, seed: int) -> tuple[Tensor, int]:
    import pyhessian  # noqa: F401
    peer, count = sys.modules["pyhessian.hessian"], [0]  # the package has a class of the same name
    product = peer.hessian_vector_product
    def counted(*args):
        count[0] += 1
        return product(*args)
    peer.hessian_vector_product = counted
    torch.manual_seed(seed)
    try:
        found = peer.hessian(model, nn.CrossEntropyLoss(), data=(X, y), cuda=X.is_cuda)
        _, vectors = found.eigenvalues(maxIter=100, tol=problem.tol, top_n=problem.k)
    finally: peer.hessian_vector_product = product
    model.zero_grad(set_to_none=True)
    return torch.stack([torch.cat([p.reshape(-1) for p in v]) for v in vectors]).detach(), count[0]


SOLVERS = {
    "hessnb": ours, "hessnb, no probe": lambda *args: ours(*args, miss_probability=1),
    "curvlinops + SciPy": curvlinops, "BackPACK + SciPy": backpack, "hessian-eigenthings": eigenthings,
           "PyHessian": pyhessian,
}
STEPS = (1, 1.5, 2, 3, 4, 6, 8, 12, 16)  # times (k + 10), tried for hessian-eigenthings


# one run, in a process of its own


def memory(device: str, reset: bool = False) -> int:
    "The high-water mark in bytes; what is in use now, after a reset."
    if device == "cuda":
        if reset: torch.cuda.reset_peak_memory_stats()
        return torch.cuda.max_memory_allocated()
    if reset: Path("/proc/self/clear_refs").write_text("5")
    field = "VmRSS" if reset else "VmHWM"
    return 1024 * int(next(line for line in open("/proc/self/status") if line.startswith(field)).split()[1])


def residuals(problem: Problem, model: nn.Module, X: Tensor, y: Tensor, vectors: Tensor) -> list[float]:
    "True relative residuals in float64, by double backward."
    model, X = copy.deepcopy(model).double(), X.double() if X.is_floating_point() else X
    params, relative = list(model.parameters()), []
    with sdpa_kernel(SDPBackend.MATH):
        g = torch.cat([p.reshape(-1) for p in torch.autograd.grad(F.cross_entropy(model(X), y),
            params, create_graph=True)])
    for v in vectors.double():
        v = v / v.norm()
        w = torch.cat([p.reshape(-1) for p in torch.autograd.grad(g, params, v, retain_graph=True)])
        value = v @ w
        relative.append(((w - value * v).norm() / value.abs()).item())
    return relative


def once(problem: Problem, solver: str, seed: int, data: tuple, steps: int | None, twice: bool) -> dict:
    "Solve; seconds (of a second time, if the first is short and `twice`), memory, products and true residuals."
    model, X, y = data
    kwargs = dict(steps=steps) if solver == "hessian-eigenthings" else {}
    def timed():
        start = time.perf_counter()
        vectors, n_products = SOLVERS[solver](problem, model, X, y, seed, **kwargs)
        vectors[-1, -1].item()  # nothing is on its way any more
        return vectors, n_products, time.perf_counter() - start
    with sdpa_kernel(SDPBackend.MATH):  # the fused kernels have no second derivative
        gc.collect()  # nothing of an earlier run is given back meanwhile
        before = memory(problem.device, reset=True)
        vectors, n_products, cold = timed()
        seconds, peak = cold, memory(problem.device) - before
        if twice and cold < WARM and peak < 4 * 2**30: vectors, n_products, seconds = timed()
    vectors = vectors.to(problem.device)
    overlap = (vectors.double() @ vectors.double().T -
               torch.eye(len(vectors), dtype=torch.float64, device=vectors.device)).abs().max().item()
    place = dict(machine=f"{torch.cuda.get_device_name()}, {os.cpu_count()} CPU cores, torch {torch.__version__}")
    return dict(seconds=seconds, cold=cold, mib=peak / 2**20, products=n_products,
                residual=max(residuals(problem, model, X, y, vectors)), overlap=overlap, n_params=vectors.shape[1],
                threads=torch.get_num_threads(), **(place if X.is_cuda else {}))


def ready(problem: Problem, folder: Path) -> tuple:
    "Model and data, after a first touch of the libraries, so that nobody pays for it."
    warnings.simplefilter("ignore")
    model, X, y = build(problem, folder)
    with sdpa_kernel(SDPBackend.MATH): F.cross_entropy(model(X[:2]), y[:2]).backward()
    model.zero_grad(set_to_none=True)
    return model, X, y


def run(problem: Problem, solver: str, seed: int, folder: Path, steps: int | None) -> dict:
    return once(problem, solver, seed, ready(problem, folder), steps, True)


def together(problem: Problem, folder: Path, solvers: list[str], repetitions: int) -> Iterator[dict]:
    """All runs of a problem in this process, interleaved: on a GPU a process takes seconds to begin, and torch can tell
    the memory of each run. The first run of each solver loads code and does not count."""
    torch.backends.cudnn.allow_tf32 = False  # or the products of the peers are not exact enough
    data, spent = ready(problem, folder), dict.fromkeys(solvers, 0.)
    def attempt(solver, seed, steps=None):
        try: return once(problem, solver, seed, data, steps, False)
        except Exception as e: return dict(failed=f"{type(e).__name__}: {e}"[:300])
    steps = None
    for factor in STEPS if "hessian-eigenthings" in solvers else ():
        found = attempt("hessian-eigenthings", 0, round(factor * (problem.k + 10)))
        if "failed" in found: break
        if found["residual"] <= problem.goal / 10 and found["overlap"] < .1:
            steps = round(factor * (problem.k + 10))
            break
    for repetition in range(-1, repetitions):
        for solver in solvers:
            if spent[solver] > ENOUGH: continue
            hopeless = solver == "hessian-eigenthings" and steps is None
            result = dict(failed="no number of steps of the ladder reached the goal") if hopeless else \
                attempt(solver, max(repetition, 0), steps)
            if repetition >= 0 or "failed" in result: spent[solver] += result.get("seconds", math.inf)
            if repetition >= 0 or "failed" in result: yield dict(solver=solver, repetition=max(repetition, 0), **result)


class Rows:
    "Finished runs, in a file with a line for each."
    def __init__(self, path: Path):
        self.path = path
        self.rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    def find(self, **key) -> list[dict]: return [r for r in self.rows if all(r.get(k) == v for k, v in key.items())]
    def add(self, **row) -> dict:
        self.rows.append(row)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a") as f: f.write(json.dumps(row) + "\n")
        return row


def load_peers() -> None:
    "Import what the solvers need, so that no clock sees it."
    for name in ("curvlinops", "backpack.hessianfree.hvp", "hessian_eigenthings", "pyhessian"):
        importlib.import_module(name)


def child(args: argparse.Namespace, fn: Callable, *what) -> dict:
    "What `fn` returns in a forked process, or the reason why there is nothing."
    receive, send = multiprocessing.Pipe(duplex=False)
    def work():
        torch.set_num_threads(args.threads)
        try: send.send(fn(*what))
        except Exception as e: send.send(dict(failed=f"{type(e).__name__}: {e}"[:300]))
    process = multiprocessing.get_context("fork").Process(target=work)
    process.start()
    send.close()
    try: return receive.recv() if receive.poll(args.limit) else dict(failed=f"over the limit of {args.limit:g} s")
    except EOFError: return dict(failed="the process died")
    finally:
        process.kill()
        process.join()


def enough_steps(args: argparse.Namespace, rows: Rows, problem: Problem) -> int | None:
    """The fewest steps of a ladder with which hessian-eigenthings reaches the goal; None if none does. Looked for once,
    outside the clock, in its favour."""
    for factor in STEPS:
        steps = round(factor * (problem.k + 10))
        found = rows.find(part="steps", problem=problem.key, steps=steps)
        row = found[0] if found else rows.add(part="steps", problem=problem.key, steps=steps,
                                              **child(args, run, problem, "hessian-eigenthings", 0, args.work, steps))
        if "failed" in row: return None
        # other starts take a step or two more
        if row["residual"] <= problem.goal / 10 and row["overlap"] < .1: return steps
    return None


def measure(args: argparse.Namespace, rows: Rows, problems: list[Problem]) -> None:
    "All runs that have no row yet; a solver that failed once is not tried again on that problem."
    for problem in problems:
        if problem.device != "cpu":
            solvers = [s for s in args.solvers if s != "PyHessian"
                       and (s != "hessnb, no probe" or problem.network == "mlp")
                       and not rows.find(part="pairs", problem=problem.key, solver=s)]
            for result in together(problem, args.work, solvers, args.repetitions) if solvers else ():
                row = rows.add(part="pairs", problem=problem.key, **asdict(problem), **result)
                print(problem.key, {k: row[k] for k in ("solver", "seconds", "mib", "products", "residual", "failed")
                                    if k in row}, flush=True)
            continue
        child(args, lambda problem=problem: bool(build(problem, args.work)))
        steps = enough_steps(args, rows, problem) if "hessian-eigenthings" in args.solvers else None
        for repetition in range(args.repetitions):
            for solver in args.solvers:
                key = dict(part="pairs", problem=problem.key, solver=solver)
                if rows.find(**key, repetition=repetition) or any("failed" in r for r in rows.find(**key)): continue
                done = rows.find(**key)
                if sum(r["seconds"] for r in done) > ENOUGH or any(r["residual"] > 10 * problem.goal for r in done):
                    continue
                if solver == "hessnb, no probe" and problem.network != "mlp": continue
                if solver == "hessian-eigenthings" and steps is None:
                    result = dict(failed="no number of steps of the ladder reached the goal")
                elif solver == "PyHessian" and problem.dtype == "float64":
                    result = dict(failed="its vectors are float32")
                elif solver == "PyHessian" and (problem.k > 5 and problem.network != "mlp"
                                                or problem.network == "resnet"):
                    result = dict(failed="not run: up to 100 k products")
                else: result = child(args, run, problem, solver, repetition, args.work, steps or 0)
                row = rows.add(**key, repetition=repetition, **asdict(problem), **result)
                print(problem.key, solver, repetition,
                      {k: row[k] for k in ("seconds", "mib", "products", "residual", "failed") if k in row}, flush=True)


# what is not a search for the largest pairs


def each_ms(fn: Callable, at_least: float = 2.) -> float:
    "Seconds of one call: the median over at least two seconds of calls, three at least."
    times, end = [], time.perf_counter() + at_least
    fn()
    while len(times) < 3 or time.perf_counter() < end:
        start = time.perf_counter()
        fn()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def products(network: str, n: int, dtype: str, folder: Path) -> dict:
    "Seconds of a gradient and of each kind of product."
    model, X, y = build(Problem(network, n, dtype=dtype), folder)
    objective = Objective(model, (X, y))
    v, result = torch.randn(objective.n_params, dtype=objective.dtype), dict(gradient=each_ms(objective.grad))
    for name, kind in dict(graph=dict(product="graph"), replay=dict(product="replay"),
                           recomputed=dict(memory_budget=0, product="graph")).items():
        op = HessianOperator(objective, **kind)
        result[name] = each_ms(lambda: op.matvec(v))
    return result | dict(n_params=objective.n_params)


class Stopwatch:
    "Seconds spent in named parts; inside another part, the outer one stands still."
    def __init__(self): self.seconds, self.calls, self.open, self.mark = Counter(), Counter(), [], 0.

    def switch(self, change: Callable) -> None:
        now = time.perf_counter()
        if self.open: self.seconds[self.open[-1]] += now - self.mark
        change()
        self.mark = time.perf_counter()

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        self.switch(lambda: self.open.append(name))
        self.calls[name] += 1
        try: yield
        finally: self.switch(self.open.pop)

    def watch(self, owner: object, method: str, name: Callable[[], str]) -> None:
        "Every call of this method of a class, or function of a module, becomes a part of its own."
        original = getattr(owner, method)
        def call(*args, **kwargs):
            with self.part(name()): return original(*args, **kwargs)
        setattr(owner, method, call)


def profile(network: str, n: int, k: int, tol: float, dtype: str, folder: Path) -> dict:
    "Where the time of a search goes: seconds of its parts, products in each, and a gradient for comparison."
    model, X, y = build(Problem(network, n, k, tol, dtype), folder)
    clock, gradient = Stopwatch(), each_ms(Objective(model, (X, y)).grad)
    phase = lambda: next((p for p in reversed(clock.open) if p in ("probe", "checks", "recording")), "search")
    for method in ("_choose", "in_single"): clock.watch(HessianOperator, method, lambda: "recording")
    clock.watch(lanczos._Search, "look_beyond", lambda: "probe")
    for method in ("certify", "polish"): clock.watch(lanczos._Search, method, lambda: "checks")
    for cls in (HessianOperator, operator._Single):
        clock.watch(cls, "_product", lambda: "recording" if phase() == "recording" else f"{phase()} products")
    def once():
        with clock.part("set-up"): op = HessianOperator(Objective(model, (X, y)))
        with clock.part("search"): top_eigenpairs(op, k, tol=tol)
    start = time.perf_counter()
    once()
    runs = max(1, min(20, int(5 / (time.perf_counter() - start))))
    clock.seconds, clock.calls = Counter(), Counter()
    for _ in range(runs): once()
    parts = {p: s / runs for p, s in clock.seconds.items()}
    counts = {f"n {p}": c / runs for p, c in clock.calls.items() if "products" in p}
    return dict(total=sum(parts.values()), gradient=gradient, **parts, **counts)


def all_pairs(folder: Path) -> dict:
    """Every eigenpair above rounding of the small network: in blocks, by one-vector Lanczos, and with `eigh` from the
    dense matrix, which the same block products make."""
    model, X, y = build(Problem("mlp", 150, dtype="float64"), folder)
    objective = Objective(model, (X, y))
    def timed(fn): return (start := time.perf_counter(), fn(), time.perf_counter() - start)[1:]
    timed(lambda: nonzero_eigenpairs(HessianOperator(objective)))  # loads code
    pairs, seconds = timed(lambda: nonzero_eigenpairs(HessianOperator(objective)))
    size = pairs.values.abs().max().item()
    until = lambda values, vectors: values.abs().min().item() < 1e-8 * size
    one_by_one, lanczos_seconds = timed(lambda: eigenpairs_until(HessianOperator(objective), until, k=256, tol=1e-6))
    A, dense_seconds = timed(lambda: HessianOperator(objective).to_dense())
    (values, _), eigh_seconds = timed(lambda: torch.linalg.eigh(A))
    nonzero = values[values.abs() > 1e-8 * values.abs().max()]
    same = len(nonzero) == len(pairs)
    return dict(dense=dense_seconds + eigh_seconds, to_dense=dense_seconds, hessnb=seconds, lanczos=lanczos_seconds,
                nonzero=len(nonzero), found=len(pairs),
                found_lanczos=int((one_by_one.values.abs() > 1e-8 * size).sum()),
                difference=(pairs.values.sort().values - nonzero).abs().max().item() / size if same else None,
                residual=pairs.relative_residuals.max().item(), products=pairs.n_matvecs + pairs.n_certify,
                products_lanczos=one_by_one.n_matvecs + one_by_one.n_certify)


def alignments(folder: Path, n: int = 10_000, k: int = 25, looped: int = 300) -> dict:
    "Alignments of `n` points with `k` vectors, and the loop over samples, timed on the first `looped` of them."
    model, X, y = build(Problem("mlp", 150), folder)
    points, objective = torch.randn(n, 2, generator=torch.Generator().manual_seed(1)) * 4, Objective(model, (X, y))
    V = torch.linalg.qr(torch.randn(objective.n_params, k,
                                    generator=torch.Generator().manual_seed(2)))[0].T.contiguous()
    def loop():
        rows = []
        for x in points[:looped]:
            out = model(x[None])
            g = torch.cat([p.reshape(-1) for p in torch.autograd.grad(F.cross_entropy(out, out.argmax(1)),
                list(model.parameters()))])
            rows.append(V @ (g / g.norm()))
        return torch.stack(rows)
    ours = align(objective, points, V)
    ok = ours.grad_norms[:looped] > 1e-4
    return dict(loop=each_ms(loop) * n / looped, hessnb=each_ms(lambda: align(objective, points, V)),
                difference=(ours.cosines[:looped] - loop())[ok].abs().max().item())


def start_up() -> dict:
    "Seconds to import the package, and torch alone, in fresh processes."
    def took(what):
        code = f"import time; t = time.perf_counter(); import {what}; print(time.perf_counter() - t)"
        runs = [subprocess.run([sys.executable, "-c", code], capture_output=True, text=True) for _ in range(5)]
        return statistics.median(float(r.stdout) for r in runs)
    return dict(torch=took("torch"), hessnb=took("hessnb"))


def scaling(axis: str, value: int, folder: Path) -> dict:
    "One point of a curve: the time of a product over N or P, of a search over k."
    if axis == "k":
        model, X, y = build(Problem("lenet", 500), folder)
        start = time.perf_counter()
        pairs = top_eigenpairs(HessianOperator(Objective(model, (X, y))), value, tol=1e-3, miss_probability=1)
        return dict(x=value, seconds=time.perf_counter() - start, products=pairs.n_matvecs)
    if axis == "N": model, X, y = build(Problem("lenet", value), folder)
    else: model, (X, y) = mlp(64, 10, (value, value)).eval(), drawn((64,), 500)
    objective = Objective(model, (X, y))
    op, v = HessianOperator(objective, product="replay"), torch.randn(objective.n_params)
    return dict(x=len(y) if axis == "N" else objective.n_params, seconds=each_ms(lambda: op.matvec(v)))


CURVES = dict(N=(250, 500, 1000, 2000, 4000), P=(200, 280, 400, 560, 800, 1100), k=(2, 5, 10, 20, 40, 80))
EXTRAS = [("products", n, str(size), d) for n, size in (("mlp", 150), ("cnn", 450), ("lenet", 1000), ("encoder", 64),
                                                        ("resnet", 16)) for d in ("float32", "float64")]
EXTRAS += [("profile", *what) for what in (("mlp", "150", "5", "1e-3", "float32"),
                                           ("mlp", "150", "20", "1e-6", "float64"),
                                           ("cnn", "450", "5", "1e-3", "float32"),
                                           ("cnn", "450", "20", "1e-3", "float32"),
                                           ("lenet", "1000", "5", "1e-3", "float32"),
                                           # where fewer than three times a peer's speed is reached
                                           ("encoder", "64", "5", "1e-3", "float32"),
                                           ("encoder", "64", "20", "1e-3", "float32"),
                                           ("resnet", "64", "5", "1e-3", "float32"))]
EXTRAS += [("all_pairs",), ("alignments",), ("start_up",),
           *(("scaling", axis, str(x)) for axis, xs in CURVES.items() for x in xs)]


def extra(name: str, *rest: str, folder: Path) -> dict:
    if name == "products": return products(rest[0], int(rest[1]), rest[2], folder)
    if name == "profile": return profile(rest[0], int(rest[1]), int(rest[2]), float(rest[3]), rest[4], folder)
    if name == "scaling": return scaling(rest[0], int(rest[1]), folder)
    return start_up() if name == "start_up" else dict(all_pairs=all_pairs, alignments=alignments)[name](folder)


# summary


def medians(rows: Rows) -> Iterator[dict]:
    "For every problem and solver: median and spread of the repetitions."
    measured = rows.find(part="pairs")
    first = {r["problem"]: (list(NETWORKS).index(r["network"]), r["n"], r["dtype"], -r["tol"], r["k"])
             for r in measured}
    for problem, solver in sorted({(r["problem"], r["solver"]) for r in measured},
                                  key=lambda key: (first[key[0]], list(SOLVERS).index(key[1]))):
        found = rows.find(part="pairs", problem=problem, solver=solver)
        failed = [r["failed"] for r in found if "failed" in r]
        if failed:
            yield dict(problem=problem, solver=solver, failed=failed[0])
            continue
        p = Problem(**{k: found[0][k] for k in asdict(Problem("", 0)) if k in found[0]})
        seconds = [r["seconds"] for r in found]
        yield dict(problem=problem, solver=solver, **asdict(p), n_params=found[0]["n_params"], runs=len(found),
                   threads=found[0]["threads"], seconds=statistics.median(seconds), low=min(seconds), high=max(seconds),
                   cold=statistics.median(r["cold"] for r in found),
                   mib=statistics.median(r["mib"] for r in found),
                   products=statistics.median(r["products"] for r in found), residual=max(r["residual"] for r in found),
                   overlap=max(r["overlap"] for r in found),
                   reached=all(r["residual"] <= p.goal and r["overlap"] < .1 for r in found))


def table(rows: list[dict]) -> str:
    "Markdown: one line for each problem and solver; the last column compares solvers that reached the goal."
    lines = ["| problem | solver | runs | seconds, median (range) | cold | MiB | products | worst true residual | "
             "time against hessnb |", "| --- | --- | --- | --- | --- | --- | --- | --- | --- |"]
    base = {r["problem"]: r["seconds"] for r in rows if r["solver"] == "hessnb" and r.get("reached")}
    for r in rows:
        if "failed" in r:
            lines.append(f"| {r['problem']} | {r['solver']} | | {r['failed']} | | | | | |")
            continue
        compared = r["reached"] and r["problem"] in base
        against = f"{r['seconds'] / base[r['problem']]:.2f}" if compared else "goal not reached"
        lines.append(f"| {r['problem']} | {r['solver']} | {r['runs']} | {r['seconds']:.3g} ({r['low']:.3g} to "
                     f"{r['high']:.3g}) | {r['cold']:.3g} | {r['mib']:.0f} | {r['products']:.0f} | "
                     f"{r['residual']:.1e} | {against} |")
    return "\n".join(lines)


def exponent(points: list[dict]) -> float:
    return float(np.polyfit(np.log([p["x"] for p in points]), np.log([p["seconds"] for p in points]), 1)[0])


def summarise(args: argparse.Namespace, rows: Rows) -> None:
    "Write `peers.md`, `peers.json` and `peers.png`."
    pairs, extras = list(medians(rows)), [r for r in rows.find(part="extra") if "failed" not in r]
    curves = {axis: sorted((r for r in extras if r["name"][:2] == ["scaling", axis]), key=lambda r: r["x"])
              for axis in CURVES}
    model = next((line.split(":")[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")),
                 platform.machine())
    machines = sorted({r["machine"] for r in rows.rows if "machine" in r})  # on a GPU the rows may come from elsewhere
    where = "; ".join(machines) or f"{os.cpu_count()} cores of {model}, torch {torch.__version__}"
    how = "All runs of a problem in one process" if machines else "Every run in a process of its own"
    lines = [f"Measured on {where}. {how}, interleaved. Threads: "
             f"{', '.join(sorted({str(r['threads']) for r in pairs if 'threads' in r}))}. Time limit: {args.limit} s.",
             "", table(pairs), ""]
    units = dict(products="seconds", all_pairs="seconds, pairs and products", alignments="seconds, largest difference",
                 start_up="seconds")
    for r in extras:
        if r["name"][0] not in ("scaling", "profile"):
            lines.append(f"- {' '.join(r['name'])} ({units[r['name'][0]]}): " +
                         ", ".join(f"{k} {v:.4g}" for k, v in r.items() if isinstance(v, (int, float))))
    lines += [f"- seconds grow as {axis}^{exponent(points):.2f} ({points[0]['x']} to {points[-1]['x']})"
              for axis, points in curves.items() if len(points) > 2]
    lines += ["", *profiles([r for r in extras if r["name"][0] == "profile"])]
    (args.out / "peers.md").write_text("\n".join(lines) + "\n")
    (args.out / "peers.json").write_text(json.dumps(dict(machine=where, pairs=pairs, extras=extras), indent=1) + "\n")
    plot(args.out / "peers.png", pairs, curves)
    print("\n".join(lines))


def profiles(rows: list[dict]) -> list[str]:
    "Markdown: for every profiled search, the seconds of each part, with its number of products."
    if not rows: return []
    parts = ("set-up", "recording", "search products", "probe products", "checks products")
    lines = ["Where the time of a search goes (mean; in brackets the number of products; algebra is all that is not "
             "in another column):", "",
             "| search | seconds | " + " | ".join(p.replace("checks products", "products of the certificate")
                                                  for p in parts) + " | algebra | product / gradient |",
             "| --- " * (len(parts) + 4) + "|"]
    for r in rows:
        r = r | dict(recording=r.get("recording", 0.) + r.get("recording products", 0.))  # of earlier rows
        shown = [f"{r.get(p, 0.):.3g}" + (f" ({r[f'n {p}']:.3g})" if r.get(f"n {p}") else "") for p in parts]
        n, took = (sum(r.get(key + p, 0.) for p in parts[2:]) for key in ("n ", ""))
        network, size, k, tol, dtype = r["name"][1:]
        lines.append(f"| {network}, N={int(size):,}, k={k}, tol={tol}, {dtype} | {r['total']:.3g} | "
                     f"{' | '.join(shown)} | {r['total'] - sum(r.get(p, 0.) for p in parts):.3g} | "
                     f"{took / n / r['gradient']:.3g} |")
    return [*lines, ""]


def plot(path: Path, rows: list[dict], curves: dict[str, list[dict]]) -> None:
    "Left: every solver's time over hessnb's where both reached the goal. Right: seconds over N, P, k, with exponents."
    import matplotlib
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    import matplotlib.ticker
    base = {r["problem"]: r for r in rows if r["solver"] == "hessnb" and r.get("reached")}
    if not base: return
    names, solvers = list(base), [s for s in SOLVERS if s != "hessnb"
                                  and any(r["solver"] == s and r.get("reached") for r in rows)]
    shown = {axis: points for axis, points in curves.items() if len(points) > 2}
    fig = plt.figure(figsize=(10 if shown else 7, 1.4 + .27 * len(names)), layout="constrained")
    left, *right = fig.subfigures(1, 2, width_ratios=[2.6, 1]) if shown else [fig]
    ax = left.subplots()
    ax.axvline(1, color="k", lw=1)
    for solver, marker in zip(solvers, "|osD^"):
        mine = [r for r in rows if r["solver"] == solver and r.get("reached") and r["problem"] in base]
        ax.plot([r["seconds"] / base[r["problem"]]["seconds"] for r in mine], [names.index(r["problem"]) for r in mine],
                marker, ms=7 if marker == "|" else 5, alpha=.8, label=solver)
    labels = []
    for name in names:
        p = Problem(**{k: base[name][k] for k in asdict(Problem("", 0))})
        labels.append(f"{p.network}, N={p.n:,}, k={p.k}, tol={p.tol:g}, {p.dtype}: {base[name]['seconds']:.3g} s")
    ax.set(yticks=range(len(names)), yticklabels=labels, xscale="log",
           xlabel="time relative to hessnb (left of the line: faster)",
           title="The same eigenpairs, at equal true residual")
    ax.set_xticks([t for t in (.25, .5, 1, 2, 3, 4, 6, 10, 20, 50) if ax.get_xlim()[0] < t < ax.get_xlim()[1]])
    ax.xaxis.set_major_formatter("{x:g}")
    ax.xaxis.set_minor_locator(matplotlib.ticker.NullLocator())
    ax.tick_params(axis="y", labelsize=8)
    ax.grid(axis="x", alpha=.3)
    ax.invert_yaxis()
    left.legend(fontsize=8, loc="outside lower center", ncols=3)
    for ax, (axis, points) in zip(right[0].subplots(len(shown), 1) if shown else [], shown.items()):
        ax.loglog([p["x"] for p in points], [p["seconds"] for p in points], "o-", ms=4)
        ax.set(xlabel=dict(N="examples N", P="parameters P", k="pairs k")[axis], ylabel="seconds",
               title=f"{'search' if axis == 'k' else 'product'}: {axis}$^{{{exponent(points):.2f}}}$")
        for side in (ax.xaxis, ax.yaxis): side.set_minor_formatter(matplotlib.ticker.NullFormatter())
    fig.savefig(path, dpi=100)
    plt.close(fig)


def problems(quick: bool, device: str = "cpu") -> list[Problem]:
    "The list of the benchmark, from small to large."
    if device != "cpu":
        out = [Problem(net, n, 5) for net, n in (("mlp", 150), ("cnn", 450), ("lenet", 1000), ("encoder", 64),
                                                 ("lenet", 5000), ("resnet", 64))]
        out += [Problem(net, n, 20) for net, n in (("cnn", 450), ("lenet", 1000), ("encoder", 64))]
        out += [Problem(net, n, 5, 1e-6, "float64") for net, n in (("mlp", 150), ("cnn", 450), ("lenet", 1000))]
        out += [Problem("resnet", 256, 5), Problem("resnet", 64, 20)]
        return [replace(p, device=device) for p in out]
    small = ("mlp", 150), ("cnn", 450), ("lenet", 1000)
    mlp150 = [Problem("mlp", 150, k, tol, "float64") for k in (5, 20) for tol in (1e-3, 1e-6)]
    out = [*(Problem(net, n, 5) for net, n in small), *mlp150, Problem("encoder", 64, 5),
           *(Problem(net, n, 5, tol, "float64") for tol in (1e-3, 1e-6) for net, n in small[1:])]
    # float32 allows no true residual of 1e-6
    out += [*(Problem(net, n, 20) for net, n in (*small, ("encoder", 64))), Problem("resnet", 64, 5),
            Problem("lenet", 5000, 5)]
    out += [Problem(net, n, 20, tol, "float64") for tol in (1e-6, 1e-3) for net, n in small[1:]]
    out += [Problem("mlp", 150, 100, tol, dtype)
            for tol, dtype in ((1e-3, "float32"), (1e-3, "float64"), (1e-6, "float64"))]
    return [*out, Problem("cnn", 450, 100), Problem("lenet", 5000, 20), Problem("lenet", 1000, 100),
            Problem("resnet", 64, 20), Problem("resnet", 256, 5)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--work", type=Path, default=Path(".bench/models"), help="weights of the networks")
    parser.add_argument("--quick", action="store_true", help="small problems, three repetitions")
    parser.add_argument("--only", nargs="*", default=[""], help="problems and extras whose name contains one of these")
    parser.add_argument("--solvers", nargs="*", default=list(SOLVERS), choices=list(SOLVERS))
    parser.add_argument("--repetitions", type=int)
    parser.add_argument("--device", default="cpu", help="cuda: a shorter list of problems, on a GPU")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--limit", type=float, default=1800,
                        help="seconds for one run; a solver that exceeds it is not tried again")
    parser.add_argument("--summary", action="store_true", help="measure nothing")
    args = parser.parse_args()
    if args.device != "cpu": torch.set_num_threads(args.threads)
    args.repetitions = args.repetitions or (3 if args.quick else 5)
    rows, fits = Rows(args.out / "peers.jsonl"), lambda name: any(part in name for part in args.only)
    if not args.summary:
        load_peers()
        measure(args, rows, [p for p in problems(args.quick, args.device) if fits(p.key)])
        for name in EXTRAS:
            if not fits(" ".join(name)) or args.quick or args.device != "cpu": continue
            if rows.find(part="extra", name=list(name)): continue
            print(rows.add(part="extra", name=list(name),
                           **child(args, lambda name=name: extra(*name, folder=args.work))), flush=True)
    summarise(args, rows)


if __name__ == "__main__": main()
