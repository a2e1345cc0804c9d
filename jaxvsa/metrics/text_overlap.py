"""Open answers against reference texts: exact match, ROUGE-L and METEOR."""

from __future__ import annotations

import dataclasses
import functools
import importlib
from collections.abc import Sequence
from typing import Any

from jaxvsa.core.errors import UserError


@dataclasses.dataclass(frozen=True)
class TextOverlap:
    """Sums over answers; states of the same kind of METEOR add up with `merge`.

    Attributes:
        num: answers counted.
        exact: how many equal a reference.
        rouge_l: sum of `rouge_l`.
        meteor: sum of `meteor`.
        synonyms: whether METEOR matched synonyms; it is called METEOR-nosyn otherwise.
    """

    num: int
    exact: int
    rouge_l: float
    meteor: float
    synonyms: bool

    @classmethod
    def empty(cls, synonyms: bool | None = None) -> TextOverlap:
        """The state of no answers; None = with synonyms if WordNet is there, see `has_wordnet`."""
        return cls(0, 0, 0.0, 0.0, has_wordnet() if synonyms is None else synonyms)

    @classmethod
    def from_batch(
        cls,
        predictions: Sequence[str],
        references: Sequence[Sequence[str]],
        synonyms: bool | None = None,
    ) -> TextOverlap:
        """Counts one batch.

        Args:
            predictions: generated answers.
            references: for each of them at least one right answer.
            synonyms: as in `empty`.

        Raises:
            ValueError: the two differ in length, or an answer has no reference.
            UserError: the packages are not installed, or synonyms are asked for without WordNet.
        """
        state = cls.empty(synonyms)
        pairs = list(zip(predictions, references, strict=True))
        return dataclasses.replace(
            state,
            num=len(pairs),
            exact=sum(exact_match(text, right) for text, right in pairs),
            rouge_l=sum(rouge_l(text, right) for text, right in pairs),
            meteor=sum(meteor(text, right, state.synonyms) for text, right in pairs),
        )

    def merge(self, other: TextOverlap) -> TextOverlap:
        """The state of both sets of answers together.

        Raises:
            ValueError: one matched synonyms and the other did not.
        """
        if self.synonyms != other.synonyms:
            raise ValueError("METEOR and METEOR-nosyn do not add up")
        return TextOverlap(
            self.num + other.num,
            self.exact + other.exact,
            self.rouge_l + other.rouge_l,
            self.meteor + other.meteor,
            self.synonyms,
        )

    def compute(self) -> dict[str, float]:
        """Means, 0 to 1: "exact_match", "ROUGE-L", and "METEOR" or "METEOR-nosyn"; 0 of none."""
        num = max(self.num, 1)
        return {
            "exact_match": self.exact / num,
            "ROUGE-L": self.rouge_l / num,
            "METEOR" if self.synonyms else "METEOR-nosyn": self.meteor / num,
        }


def exact_match(prediction: str, references: Sequence[str]) -> bool:
    """Whether the answer equals a reference, character by character.

    Source: QaEgo4D's published evaluation, "plain accuracy".
    """
    return prediction in _checked(references)


def rouge_l(prediction: str, references: Sequence[str]) -> float:
    """F-measure of the longest common subsequence of words, 0 to 1; the best reference counts.

    Source: Lin, 2004, as `rouge-score` computes it without its stemmer; QaEgo4D's published
    evaluation. Words are lower-case runs of letters a to z and digits.

    Raises:
        UserError: `rouge-score` is not installed.
    """
    scorer = _rouge_scorer()
    return max(
        float(scorer.score(reference, prediction)["rougeL"].fmeasure)
        for reference in _checked(references)
    )


def meteor(prediction: str, references: Sequence[str], synonyms: bool) -> float:
    """METEOR of 2007 (alpha 0.9, beta 3, gamma 0.5), 0 to 1; the best reference counts.

    Words are those of `rouge_l`. They are matched as they are, then by Porter stem, then by
    synonym.

    Source: Lavie and Agarwal, 2007, as nltk computes it; QaEgo4D's published evaluation.
    Deviation: without `synonyms` the last step is left out, since WordNet is a download; that
    figure is called METEOR-nosyn.

    Raises:
        UserError: `nltk` or `rouge-score` is not installed; or `synonyms`, and no WordNet.
    """
    if synonyms and not has_wordnet():
        raise UserError(
            "METEOR needs WordNet, which nltk has not found; run "
            "python -m nltk.downloader wordnet omw-1.4, or ask for METEOR-nosyn"
        )
    tokenize = _load("rouge_score.tokenize").tokenize
    score = _load("nltk.translate.meteor_score").single_meteor_score
    words = tokenize(prediction, None)
    options: dict[str, Any] = {} if synonyms else {"wordnet": _NoSynonyms}
    return max(
        float(score(tokenize(reference, None), words, **options))
        for reference in _checked(references)
    )


@functools.cache
def has_wordnet() -> bool:
    """Whether nltk finds WordNet on this machine; looked up once.

    Raises:
        UserError: `nltk` is not installed.
    """
    try:
        _load("nltk.corpus").wordnet.ensure_loaded()
    except LookupError:
        return False
    return True


class _NoSynonyms:
    """In WordNet's place: it knows no word."""

    @staticmethod
    def synsets(word: str) -> list[Any]:
        return []


@functools.cache
def _rouge_scorer() -> Any:
    return _load("rouge_score.rouge_scorer").RougeScorer(["rougeL"], use_stemmer=False)


def _checked(references: Sequence[str]) -> Sequence[str]:
    if isinstance(references, str) or not references:
        raise ValueError("references are a list of at least one text")
    return references


def _load(name: str) -> Any:
    """A module of the optional packages, imported at its first use."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UserError(
            f"{name.partition('.')[0]} is not installed; run pip install 'jaxvsa[text-metrics]'"
        ) from error
