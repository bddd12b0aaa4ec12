"Every word that an explorer or a table shows has an entry in the glossary."
import re

import pytest

from conftest import HERE, blobs, mlp
from hessnb import HessianOperator, Objective, compare_minima, top_eigenpairs
from hessnb.boundary.columns import COLUMNS
from hessnb.boundary.glossary import GLOSSARY, find_term, glossary_html, meaning
from hessnb.page import WORDS
from hessnb.show.comparer import MinimaComparer
from hessnb.show.explorer import BoundaryExplorer
from hessnb.show.layers import LayerExplorer
from hessnb.show.sliders import EigenvectorSliders
from hessnb.show.spectrum import SpectrumExplorer
from hessnb.show.training import READINGS
from hessnb.show.view import View
from hessnb.show.workbook import EXPLORERS


@pytest.fixture
def said(monkeypatch):
    "The names of all rows that views say."
    rows, say = set(), View.say
    def listen(self, told, *args, **kwargs):
        rows.update(row[0] for row in told if len(row) > 1)
        return say(self, told, *args, **kwargs)
    monkeypatch.setattr(View, "say", listen)
    return rows


def problem(D):
    X, y = blobs(N=18, D=D, C=3)
    objective = Objective(mlp(D=D, C=3), (X, y))
    return objective, top_eigenpairs(HessianOperator(objective), 3, tol=1e-4)


def unexplained(said, *own):
    "Names that no entry explains, without those of features and layers that the data brought."
    return sorted(name for name in said - {"", "...", *own} if not meaning(name))


@pytest.mark.parametrize("D", [2, 3])
def test_rows_of_the_explorers_of_a_model_are_explained(said, D):
    objective, pairs = problem(D)
    names = [f"own {j}" for j in range(D)]
    SpectrumExplorer(objective, pairs, feature_names=names).state = {"index": 1}
    view = BoundaryExplorer(objective, pairs, n=16, feature_names=names)
    view.state = {"point": (.1, .1), "layer": 0}
    EigenvectorSliders(objective, pairs, n=16).state = {"amounts": (.1, 0, 0)}
    assert {"residual", "lives in", "separates", "nearest example", "boundary", "quadratic prediction"} <= said
    assert not unexplained(said, *names)


def test_rows_of_layers_and_of_minima_are_explained(said):
    objective, pairs = problem(3)
    layers = LayerExplorer(objective, pairs, background=False)
    layers.button.click()
    found = compare_minima({"one": objective, "two": problem(3)[0]}, k=3, pairs=3)
    MinimaComparer(found, n=16).state = {"index": 2, "amount": .2}
    assert {"holds", "squared gradient", "eigenvalue 3", "boundary directions", "loss here"} <= said
    assert "on another colour" in said  # three features
    assert not unexplained(said)


def test_no_explorer_is_left_out():
    known = {SpectrumExplorer, BoundaryExplorer, EigenvectorSliders, LayerExplorer, MinimaComparer}
    assert set(EXPLORERS) <= known, "let the tests above make it"


def test_rows_of_trainings_and_heads_of_tables_are_explained():
    assert not unexplained(set(READINGS) | {c.title for c in COLUMNS if c.title})
    for c in COLUMNS:
        if c.title: assert meaning(c.name) == meaning(c.title) and c.help[1:] in meaning(c.name)


def test_what_the_report_explains_is_explained(): assert len(WORDS) > 10 and not unexplained(set(WORDS))


@pytest.mark.parametrize("word, name", [
    ("RESIDUAL", "residual"), ("eigenvalues", "eigenvalue"), ("Eigenvalue 12", "eigenvalue"), ("classes", "class"),
    ("boundaries", "boundary"), ("loss  here", "loss here"), ("active", "active (paper)"),
    ("lambda_1", "largest eigenvalue"), ("predictions changed", "predictions changed"),
    ("sharpness (of the edge)", "sharpness"), ("missed copy", "missed copies"),
    ("large_norm", "large norm"), ("noisy-init", "noisy init"), ("first order distances", "first-order distance")])
def test_a_word_is_found_in_other_forms(word, name): assert find_term(word) is GLOSSARY[name]


@pytest.mark.parametrize("word", ["", "s", "7", "()", "petal length", "(cm)", "eigen", "loss of face"])
def test_unknown_words_have_the_empty_meaning(word): assert meaning(word) == "" and find_term(word) is None


def test_entries_are_sentences_and_lead_to_pages_that_exist():
    for term in GLOSSARY.values():
        assert term.meaning[:1].isupper() and term.meaning.endswith("."), term
        assert 1 <= len(re.findall(r"[.:](?= |$)", term.meaning)) <= 6 and len(term.meaning) < 420, term
        wing, name = term.link.split("/")
        assert len(list((HERE.parent / "nbs" / wing).glob(f"[0-9][0-9]_{name}.ipynb"))) == 1, term
        assert not term.typical or ".csv" in term.typical, term


def test_words_that_are_unknown_are_left_out_of_a_list():
    text = glossary_html(["margin", "nothing", "Margins", "trace"])
    assert re.findall(r"<dt>(\w+)", text) == ["margin", "trace"]
    assert "href" not in text and "<a href='to boundary/margin'>" in glossary_html(["margin"], "to {}".format)
    assert glossary_html([]) == "<dl></dl>"
