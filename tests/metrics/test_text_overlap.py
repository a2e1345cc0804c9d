"""Exact match, ROUGE-L and METEOR: values by hand, beside plain loops, and what is refused."""

import builtins
import sys

import pytest

from jaxvsa.core.errors import UserError
from jaxvsa.metrics import text_overlap
from jaxvsa.metrics.text_overlap import TextOverlap, exact_match, has_wordnet, meteor, rouge_l

pytestmark = pytest.mark.smoke

PAIRS = [
    ("on the table", ["on the wooden table"]),
    ("Red!", ["red"]),
    ("cups", ["a cup", "two cups"]),
    ("", ["nothing"]),
    ("no", ["yes"]),
]


def test_exact_match_is_character_by_character():
    assert exact_match("red", ["blue", "red"])
    assert not exact_match("Red", ["red"])
    assert not exact_match("red ", ["red"])


def test_rouge_l_by_hand():
    # "on the table" within "on the wooden table": precision 3/3, recall 3/4.
    assert rouge_l(*PAIRS[0]) == pytest.approx(2 * 1 * 0.75 / 1.75)
    assert rouge_l("Red!", ["red"]) == 1.0
    # Order counts: of two words in the wrong order, one is common.
    assert rouge_l("cup red", ["red cup"]) == pytest.approx(0.5)
    # No stemming; the best reference counts: two of one and two words.
    assert rouge_l("cups", ["a cup", "two cups"]) == pytest.approx(2 / 3)
    assert rouge_l("", ["nothing"]) == 0.0


def test_meteor_without_synonyms_by_hand():
    # 3 matches in 2 runs of words: precision 1, recall 3/4, penalty 0.5 (2/3)^3.
    fmean = 0.75 / (0.9 * 1 + 0.1 * 0.75)
    want = fmean * (1 - 0.5 * (2 / 3) ** 3)
    assert meteor(*PAIRS[0], synonyms=False) == pytest.approx(want)
    # One match in one run: half of it is the penalty.
    assert meteor("Red!", ["red"], synonyms=False) == pytest.approx(0.5)
    # "cups" matches "cup" by its stem: recall 1/2, but the second reference has the same.
    assert meteor("cups", ["a cup"], synonyms=False) == pytest.approx(0.5 / 0.95 * 0.5)
    assert meteor("car", ["automobile"], synonyms=False) == 0.0
    assert meteor("", ["nothing"], synonyms=False) == 0.0


def test_the_best_reference_counts():
    for score in (rouge_l, lambda *pair: meteor(*pair, synonyms=False)):
        both = score("two cups", ["a cup", "two cups"])
        assert both == max(score("two cups", ["a cup"]), score("two cups", ["two cups"]))


def test_batches_add_up_and_means_are_by_hand():
    texts, references = zip(*PAIRS, strict=True)
    whole = TextOverlap.from_batch(texts, references, synonyms=False)
    parts = TextOverlap.empty(synonyms=False)
    for text, right in PAIRS:
        parts = parts.merge(TextOverlap.from_batch([text], [right], synonyms=False))
    assert whole.compute() == pytest.approx(parts.compute())
    assert set(whole.compute()) == {"exact_match", "ROUGE-L", "METEOR-nosyn"}
    found = TextOverlap.from_batch(["red", "no"], [["red"], ["yes"]], synonyms=False).compute()
    assert found == pytest.approx({"exact_match": 0.5, "ROUGE-L": 0.5, "METEOR-nosyn": 0.25})
    assert set(TextOverlap.empty(synonyms=False).compute().values()) == {0.0}


def test_the_name_says_whether_synonyms_were_matched():
    state = TextOverlap.empty()
    assert state.synonyms == has_wordnet()
    assert "METEOR" in TextOverlap.empty(synonyms=True).compute()
    with pytest.raises(ValueError, match="METEOR and METEOR-nosyn do not add up"):
        TextOverlap.empty(synonyms=True).merge(TextOverlap.empty(synonyms=False))


def test_synonyms_count_where_wordnet_is(monkeypatch):
    if not has_wordnet():
        with pytest.raises(UserError, match=r"METEOR needs WordNet.*nltk.downloader wordnet"):
            meteor("car", ["automobile"], synonyms=True)
        pytest.skip("nltk has no WordNet here")
    assert meteor("car", ["automobile"], synonyms=True) == pytest.approx(0.5)


def test_wrong_references_are_refused():
    for score in (exact_match, rouge_l):
        for references in ([], "red"):
            with pytest.raises(ValueError, match="a list of at least one text"):
                score("red", references)
    with pytest.raises(ValueError, match="zip"):
        TextOverlap.from_batch(["red"], [], synonyms=False)


@pytest.mark.parametrize("missing", ["rouge_score", "nltk"])
def test_a_missing_package_names_the_extra(monkeypatch, missing):
    real = builtins.__import__

    def refuse(name, *args, **kwargs):
        if name.partition(".")[0] == missing:
            raise ModuleNotFoundError(f"No module named '{name}'")
        return real(name, *args, **kwargs)

    for name in [name for name in sys.modules if name.partition(".")[0] == missing]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, missing, None)
    monkeypatch.setattr(builtins, "__import__", refuse)
    text_overlap.has_wordnet.cache_clear()
    with pytest.raises(
        UserError, match=rf"{missing} is not .*pip install 'jaxvsa\[text-metrics\]'"
    ):
        if missing == "nltk":
            has_wordnet()
        else:
            meteor("red", ["red"], synonyms=False)
    text_overlap.has_wordnet.cache_clear()
