"Claims in README, on the start page and in the report stand beside what proves them, and one without is seen."
import importlib.util
import json

import pytest

from conftest import HERE

ROOT = HERE.parent


@pytest.fixture
def claims(tmp_path, monkeypatch):
    "The check, over a project of one page and one table."
    spec = importlib.util.spec_from_file_location("claims", ROOT / ".ci/claims.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    (tmp_path / ".ci").mkdir()
    (tmp_path / "table.csv").write_text("network,tau\na,.9\nb,.7\n")
    (tmp_path / "test_it.py").write_text("class TestIt:\n    def test_all(self): pass\n")
    monkeypatch.setattr(module, "root", tmp_path)
    monkeypatch.setattr(module, "PAGES", {"page": "page.ipynb"})
    def run(text, entries):
        cells = [dict(cell_type="markdown", source=text),
                 dict(cell_type="code", source="f()", outputs=[dict(text="is 3")])]
        (tmp_path / "page.ipynb").write_text(json.dumps(dict(cells=cells)))
        lines = [f"{json.dumps(words)} = {json.dumps(proof)}" for words, proof in entries.items()]
        (tmp_path / ".ci/claims.toml").write_text("\n".join(["[page]", *lines]))
        return module.main(quiet=True)
    return run


TAU = "The lowest is .7, and no network is worse."


@pytest.mark.parametrize("text,entries,faults", [
    (TAU, {"lowest is .7": 'table.csv "min(t[\'tau\']) == .7"'}, 0),
    (TAU, {"lowest is .7": 'table.csv "min(t[\'tau\']) == .6"'}, 1),
    (TAU, {}, 1), (TAU, {"lowest is .8": 'table.csv "True"'}, 2), ("Nothing is missed.", {}, 1), ("It draws.", {}, 0),
    ("It is v1 of arXiv 2306.07104, in 2-D.", {}, 0), ("| a | 3 |\n\n`f(3)` gives\n\n```\nf(3)\n```", {}, 1),
    ("All are read.", {"All are": "test_it.py::TestIt::test_all"}, 0),
    ("All are read.", {"All are": "test_it.py::test_all"}, 1),
    ("It gives 3.", {"gives 3": 'page.ipynb "is 3"'}, 0), ("It gives 3.", {"gives 3": 'page.ipynb "is 4"'}, 1),
    ("It gives 3.", {"gives 3": "gone.py"}, 1), ("All of it is cited.", {"cited": "= a citation"}, 0)])
def test_a_claim_without_its_proof_is_seen(claims, text, entries, faults, capsys):
    assert claims(text, entries) == (faults > 0)
    assert f"{faults} faults" in capsys.readouterr().out
