"""A pretend accelerator with real numbers, its own device name and strict placement.

Tensors on it wrap CPU tensors; an operation that mixes one with a CPU tensor of at least one dimension raises, as CUDA
does. Only inside `fake_gpu()` do factory calls and `.to` reach it. `torch.func` transforms do not work on it.
"""
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

NAME = "fakegpu"
_setup_privateuseone_for_python_backend(NAME)
DEVICE = torch.device(NAME, 0)
module = torch.get_device_module(NAME)
module.get_rng_state = lambda device=None: torch.get_rng_state()  # for `torch.random.fork_rng`
module.set_rng_state = lambda state, device=None: None


class FakeTensor(torch.Tensor):
    @staticmethod
    def __new__(cls, inner):
        layout = dict(strides=inner.stride(), storage_offset=inner.storage_offset(), layout=inner.layout)
        kind = dict(dtype=inner.dtype, device=DEVICE, requires_grad=inner.requires_grad)
        outer = torch.Tensor._make_wrapper_subclass(cls, inner.shape, **layout, **kind)
        outer.inner = inner
        return outer

    def __repr__(self): return f"FakeTensor({self.inner})"

    def untyped_storage(self): return self.inner.untyped_storage()  # that of a wrapper has no address

    def __getitem__(self, key):  # torch turns a list into a tensor below the reach of the dispatch mode
        return super().__getitem__(torch.tensor(key, dtype=torch.long) if isinstance(key, list) else key)

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None): return _dispatch(func, args, kwargs or {})


def _is_fake(device): return device is not None and torch.device(device).type == NAME


def _dispatch(func, args, kwargs):
    name, target = func._schema.name, kwargs.get("device")
    tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)]
    fake = [t for t in tensors if isinstance(t, FakeTensor)]
    plain = [t for t in tensors if not isinstance(t, FakeTensor)]
    if fake and name not in ("aten::_to_copy", "aten::copy_"):
        indexes = name in ("aten::index", "aten::index_put_")  # CUDA takes host indices, too
        index = lambda t: indexes and t.dtype in (torch.long, torch.bool)
        stray = [t for t in plain if t.dim() > 0 and not index(t)]
        if stray:
            raise RuntimeError(f"{name}: expected all tensors on {DEVICE}, found one of shape {tuple(stray[0].shape)} "
                               "on the CPU")
    inner = lambda t: t.inner if isinstance(t, FakeTensor) else t
    args_, kwargs_ = tree_map(inner, args), tree_map(inner, kwargs)
    if _is_fake(kwargs_.get("device")): kwargs_["device"] = torch.device("cpu")
    out = func(*args_, **kwargs_)
    if func._schema.is_mutable and name.endswith("_") and isinstance(args[0], FakeTensor): return args[0]
    to_host = name == "aten::copy_" and not isinstance(args[0], FakeTensor)
    onto = _is_fake(target) if target is not None else bool(fake) and not to_host
    wrap = lambda t: FakeTensor(t) if isinstance(t, torch.Tensor) and not isinstance(t, FakeTensor) else t
    return tree_map(wrap, out) if onto else out


class fake_gpu(TorchDispatchMode):
    "Inside it the device exists."
    def __torch_dispatch__(self, func, types, args=(), kwargs=None): return _dispatch(func, args, kwargs or {})
