"""The same eigenpairs from hessnb and from its peers: seconds, memory, products, and the true residual of each answer.

    make bench                                       everything
    python benchmarks/peers.py --quick               small problems, few repetitions
    python benchmarks/peers.py --only cnn lenet      problems whose name contains one of these
    python benchmarks/peers.py --summary             tables and plot from the rows that are there
    python benchmarks/peers.py --device cuda --out benchmarks/results/gpu
    python benchmarks/peers.py --processor avx2 --threads 1 --out benchmarks/results/avx2

On a CPU every run is a process of its own, forked from one that has imported everything and computed nothing, with the
same number of threads; the runs of a problem are interleaved, repetition by repetition. A clock covers all that a user
waits for: from a model and its data to the eigenvectors. Short runs are made twice in the process and the second one
counts, because the first loads code; its time is kept as `cold`. Long ones are repeated less often: see `ENOUGH`.
Memory is the growth of the process's high-water mark over the first, on a GPU that of torch's allocator. Afterwards,
outside the clock, the residuals |Av - lambda v| / |lambda| of the vectors that came back are computed in float64 with
products by plain double backward, lambda being their Rayleigh quotient, and the worst one is kept: a solver is compared
only where it reached the goal. Rows go to `peers.jsonl` in `--out`; the benchmark goes on where it was stopped. Remove
rows to measure them again. `--processor` has torch, MKL and oneDNN use the kernels of another processor.
"""
import argparse
import copy
import gc
import importlib
import math
import multiprocessing
import os
import signal
import statistics
import subprocess
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from peer_problems import Problem, build, drawn, kept_product
from peer_solvers import LADDER, OF_GGN, SOLVERS, TF32
from peer_tables import Rows, summarise
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from hessnb.boundary.alignment import align
from hessnb.curvature import fast, search, top
from hessnb.curvature.hessian import HessianOperator
from hessnb.curvature.lowrank import nonzero_eigenpairs
from hessnb.curvature.objective import Objective
from hessnb.curvature.top import eigenpairs_until, top_eigenpairs
from hessnb.paper.networks import mlp

WARM = 5.  # seconds; a solver that is done sooner is asked twice, and the second time counts: the first one loads code
# seconds; once a solver's runs on a problem add up to this, it is not repeated; nor is one that is far from the goal
ENOUGH = 20.
PROCESSORS = {"own": {}, "avx2": dict(ATEN_CPU_CAPABILITY="avx2", MKL_CBWR="AVX2", ONEDNN_MAX_CPU_ISA="AVX2"),
              "default": dict(ATEN_CPU_CAPABILITY="default", MKL_CBWR="COMPATIBLE", ONEDNN_MAX_CPU_ISA="SSE41")}


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
    model, X, relative = copy.deepcopy(model).double(), X.double() if X.is_floating_point() else X, []
    with sdpa_kernel(SDPBackend.MATH): product, _ = kept_product(problem, model, X, y)
    for v in vectors.double():
        v = v / v.norm()
        w = product(v)
        value = v @ w
        relative.append(((w - value * v).norm() / value.abs()).item())
    return relative


def once(problem: Problem, solver: str, seed: int, data: tuple, steps: int | None, twice: bool) -> dict:
    "Solve; seconds (of a second time, if the first is short and `twice`), memory, products and true residuals."
    model, X, y = data
    kwargs = dict(steps=steps) if solver in LADDER else {}
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
        compiled = solver.startswith("compiled")  # which takes many seconds, once
        if compiled or twice and cold < WARM and peak < 4 * 2**30: vectors, n_products, seconds = timed()
    vectors = vectors.to(problem.device)
    overlap = (vectors.double() @ vectors.double().T -
               torch.eye(len(vectors), dtype=torch.float64, device=vectors.device)).abs().max().item()
    place = dict(machine=f"{torch.cuda.get_device_name()}, {os.cpu_count()} CPU cores, torch {torch.__version__}") \
        if X.is_cuda else {}
    return dict(seconds=seconds, cold=cold, mib=peak / 2**20, products=n_products,
                residual=max(residuals(problem, model, X, y, vectors)), overlap=overlap, n_params=vectors.shape[1],
                threads=torch.get_num_threads(), kernels=torch.backends.cpu.get_cpu_capability(), **place)


def ready(problem: Problem, folder: Path) -> tuple:
    "Model and data, after a first touch of the libraries, so that nobody pays for it."
    warnings.simplefilter("ignore")
    model, X, y = build(problem, folder)
    with sdpa_kernel(SDPBackend.MATH): F.cross_entropy(model(X[:2]), y[:2]).backward()
    model.zero_grad(set_to_none=True)
    return model, X, y


def run(problem: Problem, solver: str, seed: int, folder: Path, steps: int | None) -> dict:
    return once(problem, solver, seed, ready(problem, folder), steps, True)


@contextmanager
def within(seconds: float) -> Iterator[None]:
    "`TimeoutError` in this block when so many seconds have passed."
    def stop(*_): raise TimeoutError(f"cut after {seconds:.0f} s")
    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, 0 if seconds == math.inf else max(seconds, 1e-3))
    try: yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def together(problem: Problem, folder: Path, solvers: list[str], repetitions: int, seconds: float = math.inf,
             most: float = math.inf) -> Iterator[dict]:
    """All runs of a problem in this process, interleaved: on a GPU a process takes seconds to begin, and torch can tell
    the memory of each run. The first run of each solver loads code and does not count. They end after so many seconds
    in all, and each solver's after `most`."""
    end, used = time.monotonic() + seconds, dict.fromkeys(solvers, 0.)
    torch.backends.cudnn.allow_tf32 = False  # or the products of the peers are not exact enough
    data, spent = ready(problem, folder), dict.fromkeys(solvers, 0.)
    def attempt(solver, seed, steps=None):
        start = time.monotonic()
        try:
            with within(min(end - start, most - used[solver])): return once(problem, solver, seed, data, steps, False)
        except Exception as e: return dict(failed=f"{type(e).__name__}: {e}"[:300])
        finally: used[solver] += time.monotonic() - start
    steps = {}
    def enough(solver):
        for wanted in ladder(solver, problem):
            found = attempt(solver, 0, wanted)
            if "failed" in found: return None
            if reaches(found, problem): return wanted
    for repetition in range(-1, repetitions):
        for solver in solvers:
            if time.monotonic() > end: return
            if spent[solver] > ENOUGH or used[solver] > most: continue
            if solver in LADDER and solver not in steps: steps[solver] = enough(solver)
            result = dict(failed=HOPELESS) if solver in LADDER and steps[solver] is None else \
                attempt(solver, max(repetition, 0), steps.get(solver))
            if repetition >= 0 or "failed" in result: spent[solver] += result.get("seconds", math.inf)
            if repetition >= 0 or "failed" in result: yield dict(solver=solver, repetition=max(repetition, 0), **result)


HOPELESS = "no number of steps of the ladder reached the goal"


def ladder(solver: str, problem: Problem) -> list[int]:
    "Numbers of steps to try."
    return [round(factor * (problem.k + 10)) for factor in LADDER[solver]]


def reaches(found: dict, problem: Problem) -> bool:
    "Is that enough, although other starts take a step or two more?"
    return found["residual"] <= problem.goal / 10 and found["overlap"] < .1


def load_peers() -> None:
    "Import what the solvers need, so that no clock sees it."
    for name in ("curvlinops", "backpack.hessianfree.hvp", "hessian_eigenthings", "pyhessian", "skerch.algorithms"):
        try: importlib.import_module(name)
        except ImportError as e: print(f"{name} is not there: {e}", file=sys.stderr)


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


def enough_steps(args: argparse.Namespace, rows: Rows, problem: Problem, solver: str) -> int | None:
    """The fewest steps of a ladder with which a solver without a tolerance reaches the goal; None if none does. Looked
    for once, outside the clock, in its favour."""
    for steps in ladder(solver, problem):
        key = dict(part="steps", problem=problem.key, steps=steps, solver=solver)
        row = next(iter(rows.find(**key)), None)
        row = row or rows.add(**key, **child(args, run, problem, solver, 0, args.work, steps))
        if "failed" in row: return None
        if reaches(row, problem): return steps
    return None


def unasked(problem: Problem, solver: str) -> str | None:
    "Why a solver is not asked; empty where that goes without saying; None if it is."
    if solver == "hessnb, no probe" and problem.network != "mlp" or problem.curvature == "ggn" and solver not in OF_GGN:
        return ""
    if solver == TF32 and (problem.device == "cpu" or problem.dtype == "float64"): return ""
    if solver != "PyHessian": return None
    if problem.device != "cpu": return ""
    if problem.dtype == "float64": return "its vectors are float32"
    if problem.k > 5 and problem.network != "mlp" or problem.network == "resnet": return "not run: up to 100 k products"


def measure(args: argparse.Namespace, rows: Rows, problems: list[Problem]) -> None:
    "All runs that have no row yet; a solver that failed once is not tried again on that problem."
    def told(problem, row):
        shown = ("solver", "repetition", "seconds", "mib", "products", "residual", "failed")
        print(problem.key, {k: row[k] for k in shown if k in row}, flush=True)
    for problem in problems:
        solvers = [s for s in args.solvers if unasked(problem, s) != ""]
        if problem.device != "cpu":
            new = [s for s in solvers if not rows.find(part="pairs", problem=problem.key, solver=s)]
            for result in together(problem, args.work, new, args.repetitions) if new else ():
                told(problem, rows.add(part="pairs", problem=problem.key, **asdict(problem), **result))
            continue
        child(args, lambda problem=problem: bool(build(problem, args.work)))
        steps = {s: enough_steps(args, rows, problem, s) for s in LADDER if s in solvers}
        for repetition in range(args.repetitions):
            for solver in solvers:
                key = dict(part="pairs", problem=problem.key, solver=solver)
                done = rows.find(**key)
                if rows.find(**key, repetition=repetition) or any("failed" in r for r in done): continue
                spent, far = sum(sum({r["cold"], r["seconds"]}) for r in done), 10 * problem.goal
                if spent > ENOUGH or any(r["residual"] > far for r in done): continue
                why = unasked(problem, solver) or (HOPELESS if solver in steps and steps[solver] is None else None)
                result = dict(failed=why) if why else \
                    child(args, run, problem, solver, repetition, args.work, steps.get(solver))
                told(problem, rows.add(**key, repetition=repetition, **asdict(problem), **result))


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
    for cls, method in ((HessianOperator, "in_single"), (fast.FastSum, "trace"), (fast.FastSum, "worth_tracing")):
        clock.watch(cls, method, lambda: "recording")
    clock.watch(search, "look_beyond", lambda: "probe")
    for method in ("certify", "correct"): clock.watch(top, method, lambda: "checks")
    for cls in (HessianOperator, fast.Single):
        clock.watch(cls, "apply", lambda: "recording" if phase() == "recording" else f"{phase()} products")
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
    "Alignments of `n` points with `k` vectors, the matrix product in them, and the loop over the first `looped`."
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
    ok, G = ours.grad_norms[:looped] > 1e-4, torch.randn(n, objective.n_params)
    return dict(loop=each_ms(loop) * n / looped, hessnb=each_ms(lambda: align(objective, points, V)),
                product=each_ms(lambda: G @ V.T),  # alone, with gradients that are there
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
    out = [*(Problem(net, n, k) for k in (1, 5) for net, n in small), *mlp150, Problem("encoder", 64, 5),
           *(Problem(net, n, 10, 1e-4) for net, n in small),
           *(Problem(net, n, 5, tol, "float64") for tol in (1e-3, 1e-6) for net, n in small[1:])]
    out += [Problem(net, n, k, curvature="ggn") for k in (5, 20) for net, n in (*small, ("encoder", 64))]
    # float32 allows no true residual of 1e-6
    out += [*(Problem(net, n, 20) for net, n in (*small, ("encoder", 64))), Problem("resnet", 64, 5),
            Problem("lenet", 5000, 5)]
    out += [Problem(net, n, 20, tol, "float64") for tol in (1e-6, 1e-3) for net, n in small[1:]]
    out += [Problem("mlp", 150, 100, tol, dtype)
            for tol, dtype in ((1e-3, "float32"), (1e-3, "float64"), (1e-6, "float64"))]
    if quick: return [p for p in out if p.network in ("mlp", "cnn") and p.k < 100]
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
    parser.add_argument("--processor", choices=list(PROCESSORS), default="own", help="whose kernels are used")
    parser.add_argument("--limit", type=float, default=1800,
                        help="seconds for one run; a solver that exceeds it is not tried again")
    parser.add_argument("--summary", action="store_true", help="measure nothing")
    args = parser.parse_args()
    if wanted := {k: v for k, v in PROCESSORS[args.processor].items() if os.environ.get(k) != v}:
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **wanted})  # read when torch is loaded
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
    summarise(args, rows, CURVES)


if __name__ == "__main__": main()
