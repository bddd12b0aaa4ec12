"Tensors in a file: read as written, by others too; never half written; refused when damaged."
import json
import math
import os
from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from conftest import F64, blobs, mlp, prescribed, quiet, randn
from hessnb.curvature import store
from hessnb.curvature.basis import FileRows
from hessnb.curvature.eigenpairs import EigenPairs
from hessnb.curvature.hessian import HessianOperator
from hessnb.curvature.objective import Objective
from hessnb.curvature.store import DTYPES, TensorFile, write_tensors
from hessnb.curvature.top import top_eigenpairs
from hessnb.curvature.verify import Verification

ODD = torch.tensor([math.nan, math.inf, -math.inf, -0., 5e-324, 1 / 3, 1e308], dtype=F64)


def bits(x): return x.contiguous().reshape(-1).view(torch.uint8)


def made(dtype, *shape, seed=0):
    x = 100 * randn(math.prod(shape), seed=seed).reshape(shape)
    return x > 0 if dtype == torch.bool else x.abs().to(dtype) if dtype == torch.uint8 else x.to(dtype)


@pytest.mark.parametrize("block", [2**26, 64, 1])
@pytest.mark.parametrize("dtype", DTYPES.values())
def test_what_is_written_is_read_by_us_and_by_others(tmp_path, monkeypatch, dtype, block):
    monkeypatch.setattr(store, "BLOCK", block)
    tensors = {"matrix": made(dtype, 5, 7), "turned": made(dtype, 5, 7).T, "one": made(dtype),
               "none": made(dtype, 0, 3), "cube": made(dtype, 2, 3, 4).permute(2, 0, 1),
               "apart": made(dtype, 9, 4)[::2], "odd": ODD}
    size = write_tensors(tmp_path / "a", tensors, {"note": "äöü\n\"", "empty": ""})
    assert size == (tmp_path / "a").stat().st_size and os.listdir(tmp_path) == ["a"]
    theirs = load_file(tmp_path / "a")
    with TensorFile(tmp_path / "a") as file, safe_open(tmp_path / "a", "pt") as other:
        assert set(file) == set(tensors) and file.texts == other.metadata() == {"note": "äöü\n\"", "empty": ""}
        for name, x in tensors.items():
            for y in (file.read(name), theirs[name]):
                assert y.dtype == x.dtype and y.shape == x.shape and torch.equal(bits(x), bits(y)), name
        assert torch.equal(file.read("matrix", 1, 4), tensors["matrix"][1:4])
        assert torch.equal(file.read("cube", 3), tensors["cube"][3:]) and len(file.read("matrix", 2, 2)) == 0


@pytest.mark.parametrize("dtype", DTYPES.values())
def test_what_others_write_is_read(tmp_path, dtype):
    tensors = {"b": made(dtype, 3, 3), "a": made(torch.int8, 5), "c": ODD, "d": made(dtype)}
    save_file(tensors, tmp_path / "a")
    with TensorFile(tmp_path / "a") as file:
        assert all(torch.equal(bits(file.read(name)), bits(x)) for name, x in tensors.items()) and file.texts == {}


def test_a_grown_up_tensor_needs_no_gradient_and_no_copy(tmp_path):
    write_tensors(tmp_path / "a", {"w": torch.ones(3, requires_grad=True)})
    with TensorFile(tmp_path / "a") as file: assert not file.read("w").requires_grad


class OnDisk:
    "Rows in a file, as a basis on disk has them; counts what it hands out at a time."
    def __init__(self, rows, width):
        self.shape, self.dtype, self.width, self.most = tuple(rows.shape), rows.dtype, width, 0
        self.file = FileRows(rows.shape[1], rows.dtype)
        self.file.write(0, slice(0, rows.shape[1]), rows)
    def blocks(self):
        for i in range(0, self.shape[1], self.width):
            part = self.file.read(0, self.shape[0], slice(i, min(i + self.width, self.shape[1])))
            self.most = max(self.most, part.numel())
            yield slice(i, i + part.shape[1]), part


@pytest.mark.parametrize("block", [2**26, 24, 8])
def test_rows_on_disk_go_from_file_to_file(tmp_path, monkeypatch, block):
    monkeypatch.setattr(store, "BLOCK", block)
    rows = randn(4, 50)
    source = OnDisk(rows, 8)
    write_tensors(tmp_path / "a", {"rows": source, "more": randn(3)})
    assert source.most == 32 and torch.equal(load_file(tmp_path / "a")["rows"], rows)


def test_a_reader_sees_the_old_or_the_new_one(tmp_path):
    path = tmp_path / "a"
    write_tensors(path, {"x": torch.zeros(3)})
    class Broken:
        shape, dtype = (2, 3), F64
        def blocks(self):
            yield slice(0, 2), torch.ones(2, 2, dtype=F64)
            raise OSError(28, "No space left on device")
    with pytest.raises(OSError, match="No space left"): write_tensors(path, {"x": Broken()})
    assert torch.equal(load_file(path)["x"], torch.zeros(3)) and os.listdir(tmp_path) == ["a"]
    with TensorFile(path) as file:  # opened before, read after
        write_tensors(path, {"x": torch.ones(300)})
        assert torch.equal(file.read("x"), torch.zeros(3))
    os.symlink(path, tmp_path / "link")
    write_tensors(tmp_path / "link", {"x": torch.full((2,), 7.)})
    assert (tmp_path / "link").is_symlink() and load_file(path)["x"].tolist() == [7, 7]


def test_a_file_gets_the_rights_that_files_get(tmp_path):
    write_tensors(tmp_path / "a", {"x": torch.zeros(3)})
    (tmp_path / "plain").write_bytes(b"")
    assert (tmp_path / "a").stat().st_mode == (tmp_path / "plain").stat().st_mode


def raw(head, data=b"", n=None):
    text = head if isinstance(head, bytes) else json.dumps(head).encode()
    return (len(text) if n is None else n).to_bytes(8, "little") + text + data


def entry(begin=0, end=8, shape=(2,), dtype="F32"):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}


BAD = {
    "empty": (b"", "0 bytes in all"),
    "no length": (b"1234567", "7 bytes in all"),
    "a pickle": (b"\x80\x02ctorch._utils\n_rebuild", "another format"),
    "a zip": (b"PK\x03\x04" + bytes(60), "another format|begins with"),
    "header beyond the end": (raw({}, n=3), "3 bytes, expected at most 2"),
    "header too large": (raw({}, n=2**40), "at most"),
    "no object": (raw(b"[]"), r"begins with b'\[\]'"),
    "no JSON": (raw(b"{'a': 1}"), "no JSON"),
    "no text": (raw(b"{\xff}"), "no JSON"),
    "deep": (raw(b'{"a":' * 100_000), "no JSON"),
    "twice": (raw(b'{"a": {}, "a": {}}'), "a name twice"),
    "metadata": (raw({"__metadata__": {"a": 1}}), "not texts"),
    "no entry": (raw({"a": 7}), "a: 7, expected dtype"),
    "no offsets": (raw({"a": {"dtype": "F32", "shape": [2]}}), "expected dtype, shape"),
    "dtype": (raw({"a": entry(dtype="F8_E4M3")}, bytes(8)), "dtype F8_E4M3"),
    "shape": (raw({"a": entry(shape=[-2])}, bytes(8)), "whole numbers"),
    "shape of floats": (raw({"a": entry(shape=[2.])}, bytes(8)), "whole numbers"),
    "size": (raw({"a": entry(shape=[3])}, bytes(8)), "a at bytes 0 to 8, expected 12"),
    "beyond the end": (raw({"a": entry()}, bytes(7)), "is it cut"),
    "bytes left over": (raw({"a": entry()}, bytes(9)), "is it cut"),
    "overlap": (raw({"a": entry(), "b": entry(4, 12)}, bytes(12)), "b at bytes 4 to 12, expected 8 bytes from 8 on"),
    "hole": (raw({"a": entry(), "b": entry(12, 20)}, bytes(20)), "expected 8 bytes from 8 on"),
    "negative": (raw({"a": entry(-8, 0)}, bytes(8)), "whole numbers"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_files_are_refused_by_us_as_by_others(tmp_path, name):
    content, message = BAD[name]
    (tmp_path / "a").write_bytes(content)
    with pytest.raises(ValueError, match=message) as error: TensorFile(tmp_path / "a")
    assert str(tmp_path / "a") in str(error.value) and "expected" in str(error.value)
    if name not in ("dtype", "no text"):  # they know more kinds of numbers
        with pytest.raises((SafetensorError, RuntimeError)): load_file(tmp_path / "a")


def test_every_cut_is_noticed(tmp_path):
    write_tensors(tmp_path / "a", {"x": randn(5), "y": randn(2).float()}, {"t": "u"})
    whole = (tmp_path / "a").read_bytes()
    for n in range(len(whole)):
        (tmp_path / "b").write_bytes(whole[:n])
        with pytest.raises(ValueError): TensorFile(tmp_path / "b")


def same_pairs(a, b):
    for f in fields(EigenPairs):
        x, y = getattr(a, f.name), getattr(b, f.name)
        if isinstance(x, torch.Tensor): assert x.dtype == y.dtype and torch.equal(bits(x), bits(y)), f.name
        else: assert x == y or x != x and y != y or repr(x) == repr(y), f.name


@pytest.mark.parametrize("verified", [
    None, False, Verification(True, 1.1e-9, 3, F64, 1e-7), Verification(None),
    Verification(True, math.inf, 7, torch.float32, None, False, .1, True)])
@pytest.mark.parametrize("dtype", [F64, torch.float32])
def test_pairs_come_back_as_they_were(tmp_path, verified, dtype):
    pairs = EigenPairs(ODD[:3], randn(3, 9).to(dtype), ODD[2:5], torch.tensor([True, False, True]), 10, 3, "BE", 1 / 3,
                       5e-324, "halted", 2, math.nan, verified)
    pairs.save(tmp_path / "a")
    back = EigenPairs.load(tmp_path / "a")
    same_pairs(pairs, back)
    assert type(back.verified) is type(verified)


def test_pairs_of_a_model_with_what_its_check_has_found(tmp_path):
    op = HessianOperator(Objective(mlp(), blobs(), "cross_entropy"))
    pairs = top_eigenpairs(op, 2)
    pairs.save(tmp_path / "a")
    back = EigenPairs.load(str(tmp_path / "a"))
    same_pairs(pairs, back)
    assert back.verified == op.verified and repr(back) == repr(pairs) and "verified" in repr(back)
    assert set(load_file(tmp_path / "a")) == {"values", "vectors", "residuals", "converged"}
    with quiet(): assert top_eigenpairs(op, 2, start=back.vectors).converged.all()


def test_a_verification_of_another_class(tmp_path):
    class Own: passed, product_error = True, np.float64(.25)
    pairs = replace(top_eigenpairs(prescribed(range(9)), 1), verified=Own)
    pairs.save(tmp_path / "a")
    back = EigenPairs.load(tmp_path / "a")
    assert back.verified.passed is True and back.verified.product_error == .25 and back.doubt == pairs.doubt != ""


def test_files_that_hold_no_pairs(tmp_path):
    pairs, path = top_eigenpairs(prescribed(range(9)), 2), tmp_path / "a"
    with pytest.raises(FileNotFoundError): EigenPairs.load(path)
    pairs.save(path)
    with TensorFile(path) as file: tensors, texts = {name: file.read(name) for name in file}, file.texts
    for change, message in [({"kind": "x"}, "holds x, expected hessnb.EigenPairs"), ({"version": "2"}, "version 2"),
                            ({"fields": "{"}, "lacks"), ({"fields": "{}"}, "lacks asymmetry")]:
        write_tensors(path, tensors, {**texts, **change})
        with pytest.raises(ValueError, match=message): EigenPairs.load(path)
    write_tensors(path, {**tensors, "values": tensors["values"][:1]}, texts)
    with pytest.raises(ValueError, match="k=2 vectors|vectors beside"): EigenPairs.load(path)
    write_tensors(path, {n: x for n, x in tensors.items() if n != "values"}, texts)
    with pytest.raises(ValueError, match="holds no 'values'"): EigenPairs.load(path)
    with pytest.raises(IsADirectoryError): pairs.save(tmp_path)
    with pytest.raises(FileNotFoundError): pairs.save(tmp_path / "nowhere" / "a")
