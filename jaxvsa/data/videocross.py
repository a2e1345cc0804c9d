"""VideoCross: pairs of videos from many scored data sets, without scores compared across them."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxvsa.core.errors import UserError, nearest
from jaxvsa.data.catalogue import Catalogue, check_votes, make_catalogue
from jaxvsa.data.corpus import SPLITS
from jaxvsa.data.pairs import KINDS, Pairs, pair_ids, seeded_order, without_duplicates
from jaxvsa.data.scored import DIMENSIONS, RewardRows, ScoredVideo
from jaxvsa.data.scored_pairs import Questions, Scores, Settings, scored_pairs, voted_pairs


@dataclasses.dataclass(frozen=True, eq=False)
class VideoCross:
    """The pairs and what their numbers refer to.

    Attributes:
        videos: by `Pairs.video_a_n`.
        sources: by `Pairs.source_n`.
        questions: by `Pairs.question_n`.
        prompts: by `Pairs.prompt_a_n`.
        groups: name of the group of each prompt.
        pairs: ordered by split, then at random.
        ids: of each pair.
        card: counts, shares, settings; JSON values.
    """

    videos: tuple[ScoredVideo, ...]
    sources: tuple[str, ...]
    questions: tuple[str, ...]
    prompts: tuple[str, ...]
    groups: tuple[str, ...]
    pairs: Pairs
    ids: tuple[str, ...]
    card: dict[str, Any]


def build(parts: Sequence[RewardRows], settings: Settings | None = None) -> VideoCross:
    """Makes the pairs, in nine steps; the same rows and settings give the same pairs.

    Source: CleveReward section 3; A5 with CA2, 11 to 17.
    Chosen: `cap` holds for a video in each dimension; one mismatch a video; cross-prompt and
    mismatch pairs are drawn inside each split.

    Args:
        parts: what the readers returned.
        settings: None = the defaults.

    Raises:
        UserError: a setting for a source that is not there; tie_eps over delta; no number of raters
            where reliability is wanted; a vote across splits; no pair left, with the reasons.
    """
    settings = settings or Settings()
    found = make_catalogue(parts, settings.seed)
    check_votes(parts, found)
    _check_sources(settings, found.sources)
    dropped: Counter = Counter()
    for part in parts:
        dropped.update(part.report)
    asked = Questions(found)
    scores = Scores.of(parts, found, asked, dropped)
    made = [
        voted_pairs(parts, found, asked, dropped),
        *scored_pairs(scores, found, settings, dropped),
    ]
    pairs, report = without_duplicates(_without_same_video(Pairs.join(made), dropped))
    dropped.update(report)
    pairs, ids = _order(pairs, asked.texts, found, settings, dropped)
    dropped = Counter({name: count for name, count in dropped.items() if count})
    if not len(pairs):
        why = ", ".join(f"{name} {count:,}" for name, count in dropped.most_common()) or "no scores"
        raise UserError(f"no pair is left: {why}; loosen that filter, or add sources")
    cross = VideoCross(
        tuple(found.videos),
        tuple(found.sources),
        tuple(asked.texts),
        tuple(found.texts),
        tuple(found.groups[group] for group in found.group_k.tolist()),
        pairs,
        tuple(ids),
        {},
    )
    return dataclasses.replace(cross, card=make_card(cross, dropped, settings))


def make_card(cross: VideoCross, dropped: Mapping[str, int], settings: Settings) -> dict[str, Any]:
    """What there is, as JSON values: step 9 of A5.

    "a_share" is A's part of the decided pairs; "a_share_limit" four standard errors, which it
    should not be farther from one half.
    """
    pairs = cross.pairs
    cell_n = np.stack([pairs.source_n, pairs.dimension_n, pairs.kind_n, pairs.split_n])
    cells, count_c = np.unique(cell_n, axis=1, return_counts=True)
    decided = int(np.sum(pairs.answer_n != 0))
    return {
        "settings": {
            name: dict(value) if isinstance(value, Mapping) else value
            for name, value in vars(settings).items()
        },
        "videos": len(cross.videos),
        "prompts": len(cross.prompts),
        "prompt_groups": len(set(cross.groups)),
        "pairs": len(pairs),
        "a_share": float(np.sum(pairs.answer_n == 1) / max(decided, 1)),
        "a_share_limit": 2 / max(decided, 1) ** 0.5,
        "tie_share": 1 - decided / len(pairs),
        "dropped": dict(sorted(dropped.items())),
        "counts": [
            {
                "source": cross.sources[source],
                "dimension": DIMENSIONS[dimension],
                "kind": KINDS[kind],
                "split": SPLITS[split],
                "pairs": int(count),
            }
            for (source, dimension, kind, split), count in zip(cells.T, count_c, strict=True)
        ],
    }


def _check_sources(settings: Settings, sources: Sequence[str]) -> None:
    for option in ("delta", "tie_eps", "rater_sd"):
        flag, least = (
            f"--{option.replace('_', '-')}",
            "above 0" if option == "rater_sd" else "from 0",
        )
        for name, value in getattr(settings, option).items():
            if name not in sources:
                raise UserError(
                    f"{flag}: no source '{name}'{nearest(name, sources)}; "
                    f"read: {', '.join(sources)}"
                )
            if not 0 <= value < np.inf or (option == "rater_sd" and not value):
                raise UserError(f"{flag} {name}={value:g}: give a finite number {least}")


def _without_same_video(pairs: Pairs, dropped: Counter) -> Pairs:
    differ_n = pairs.video_a_n != pairs.video_b_n
    dropped["same_video"] += int(np.sum(~differ_n))
    return pairs.take(differ_n)


def _order(
    pairs: Pairs, questions: Sequence[str], found: Catalogue, settings: Settings, dropped: Counter
) -> tuple[Pairs, list[str]]:
    """Cut to the budget, in the final order, A and B by a hash."""
    ids = pair_ids(pairs, questions, [video.video_id for video in found.videos])
    order_n = seeded_order(ids, settings.seed)
    kept_n = np.lexsort((order_n, pairs.kind_n))[: settings.budget]
    dropped["budget"] += len(pairs) - len(kept_n)
    kept_n = kept_n[np.lexsort((order_n[kept_n], pairs.split_n[kept_n]))]
    # Another hash than that of the order, whose smallest values a budget selects.
    swap_n = seeded_order([ids[n] + "/side" for n in kept_n.tolist()], settings.seed) % 2 == 1
    return pairs.take(kept_n).swap(swap_n), [ids[n] for n in kept_n.tolist()]
