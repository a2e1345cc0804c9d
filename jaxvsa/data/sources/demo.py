"""A synthetic corpus in the release's own file format, whose best possible accuracy is known.

Every video has a hidden valence v (3) and mood m (8), independent, shown as prototype vectors in
two segments of its feature rows. Every comment has a hidden stance s and tone t, told by its words:
a stance names an opinion, or defers to the video ("same here": the opinion is v), or contradicts
it (positive and negative change places); a tone names an emotion or defers (the emotion is m). With
probability `noise` a label is replaced by one of the others, drawn uniformly.

So with both inputs the best rule is right with probability 1 - noise. With text alone it is

    sum_s P(s) max_y sum_v P(v) P(y | s, v)

and with video alone the same with s and v exchanged; `bayes` computes these sums exactly. No rule
can do better than its sum in expectation, also not by memorising videos, since given v the labels
of different comments are independent. Nothing here is real, and no figure on it says anything of
real comments.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxvsa.core.files import write_json
from jaxvsa.data.corpus import SPLITS

OPINIONS = ("positive", "neutral", "negative")
EMOTIONS = (
    "joy", "disgust", "surprise", "sadness", "trust", "fear", "anger", "anticipation",
)  # fmt: skip
MODES = ("both", "text", "video")
WIDTH, LEAST_ROWS, MOST_ROWS = 32, 6, 24
SHARES = (0.7, 0.1, 0.2)

_DEFER, _CONTRARY = "defer", "contrary"
_STANCES = {
    "positive": ("love this", "this is so good", "well done", "what a great one", "big yes from me"),
    "neutral": ("it is okay", "no view on this", "could go either way", "just watching", "hm fine"),
    "negative": ("hate this", "this is so bad", "what a waste", "awful one", "big no from me"),
    _DEFER: ("same here", "exactly this", "i feel as shown", "agree with the clip", "like he said"),
    _CONTRARY: ("the opposite for me", "i see it the other way", "reverse that", "quite unlike me"),
}
_TONES = {
    "joy": ("haha 😂", "laughing so hard", "made my day 😄"),
    "disgust": ("gross 🤢", "makes me sick", "yuck"),
    "surprise": ("wow 😮", "did not expect it", "no way"),
    "sadness": ("crying 😢", "my heart hurts", "so sad"),
    "trust": ("respect 🤝", "i believe them", "you can count on it"),
    "fear": ("scared 😱", "this gives me chills", "i would run"),
    "anger": ("furious 😡", "this drives me mad", "how dare they"),
    "anticipation": ("cannot wait 🤞", "next part please", "counting the days"),
    _DEFER: ("mood", "that face is me", "feeling it all", "so me right now"),
}
_FILLERS = (
    "bro", "honestly", "today", "again", "my friend", "on monday", "at work", "in my town",
    "for real", "with my cat", "tbh", "after lunch", "since 2019", "guys", "🔥", "and yes",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Planting:
    """The joint distribution of one task, over a cause in the text and a cause in the video.

    Attributes:
        classes: label names.
        text: cause -> probability; a class name, "defer" or "contrary".
        video: probability of each class as the video's hidden state.
        noise: probability that the label is replaced by another one.
    """

    classes: tuple[str, ...]
    text: dict[str, float]
    video: tuple[float, ...]
    noise: float

    def label(self, cause: str, state: int) -> int:
        """The label without noise."""
        if cause == _DEFER:
            return state
        if cause == _CONTRARY:
            return len(self.classes) - 1 - state
        return self.classes.index(cause)

    def joint(self) -> np.ndarray:
        """P(cause, state, label): float64 (causes, states, classes), sums to 1."""
        size = len(self.classes)
        table = np.empty((len(self.text), size, size))
        for at, (cause, weight) in enumerate(self.text.items()):
            for state, share in enumerate(self.video):
                table[at, state] = self.noise / (size - 1)
                table[at, state, self.label(cause, state)] = 1 - self.noise
                table[at, state] *= weight * share
        return table

    def rules(self) -> dict[str, np.ndarray]:
        """Mode -> the label that the best rule gives, int (causes, states)."""
        joint = self.joint()
        shape = joint.shape[:2]
        return {
            "both": joint.argmax(-1),
            "text": np.broadcast_to(joint.sum(1).argmax(-1)[:, None], shape),
            "video": np.broadcast_to(joint.sum(0).argmax(-1)[None], shape),
        }

    def bayes(self) -> dict[str, float]:
        """Mode -> accuracy of the best rule, exactly."""
        joint = self.joint()
        return {
            "both": float(joint.max(-1).sum()),
            "text": float(joint.sum(1).max(-1).sum()),
            "video": float(joint.sum(0).max(-1).sum()),
        }


PLANTED = {
    "opinion": Planting(
        OPINIONS,
        {"positive": 0.18, "neutral": 0.14, "negative": 0.13, _DEFER: 0.40, _CONTRARY: 0.15},
        (0.45, 0.30, 0.25),
        0.06,
    ),
    "emotion": Planting(
        EMOTIONS,
        {**dict.fromkeys(EMOTIONS, 0.06), _DEFER: 0.52},
        (0.22, 0.11, 0.11, 0.10, 0.18, 0.08, 0.08, 0.12),
        0.08,
    ),
}


@dataclasses.dataclass(frozen=True)
class DemoFacts:
    """What was written.

    Attributes:
        num_videos: videos, each with features.
        num_comments: split -> comments.
        bayes: task -> mode -> accuracy of the best rule, in closed form.
    """

    num_videos: int
    num_comments: dict[str, int]
    bayes: dict[str, dict[str, float]]


def write_demo(root: str | Path, seed: int = 0, num_videos: int = 1500) -> DemoFacts:
    """Writes the synthetic corpus.

    The files are those of the release (`lable_data_dict.json`, three split files, two label maps,
    `visual_feature/demo/<video>.npy`, float16), and bayes.json: the closed form, and for every
    comment what the best rule of each mode says.

    Args:
        root: an existing, empty folder.
        seed: the same seed gives the same bytes.
        num_videos: with about 9 comments each, split 70/10/20 by comment, as the release is.
    """
    root = Path(root)
    rng = np.random.default_rng(seed)
    prototypes = _prototypes(rng)
    rules = {task: planting.rules() for task, planting in PLANTED.items()}
    rows: dict[str, dict[str, Any]] = {}
    optimal: dict[str, dict[str, list[str]]] = {}
    folder = root / "visual_feature" / "demo"
    folder.mkdir(parents=True)
    for video in range(num_videos):
        name = f"7{seed % 1000:03d}{video:06d}"
        states = {task: _draw(rng, planting.video) for task, planting in PLANTED.items()}
        np.save(folder / f"{name}.npy", _features(rng, prototypes, states))
        for number in range(int(rng.integers(4, 15))):
            key = f"synthetic_{number}_{name}.mp4"
            causes = {t: _draw(rng, tuple(p.text.values())) for t, p in PLANTED.items()}
            rows[key] = {
                "video_file_id": f"{name}.mp4",
                "comment": _comment(rng, causes),
                "hashtag": "synthetic",
                **{f"{t}_label": _label(rng, PLANTED[t], causes[t], states[t]) for t in PLANTED},
            }
            optimal[key] = {
                task: [
                    PLANTED[task].classes[rules[task][mode][causes[task], states[task]]]
                    for mode in MODES
                ]
                for task in PLANTED
            }
    split = _split(rng, list(rows))
    write_json(root / "lable_data_dict.json", rows)
    for name, keys in split.items():
        write_json(root / f"{name}_set.json", keys)
    for task, planting in PLANTED.items():
        labels = {label: at for at, label in enumerate(planting.classes)}
        write_json(root / f"{task}_label_map.json", labels)
    bayes = {task: planting.bayes() for task, planting in PLANTED.items()}
    write_json(
        root / "bayes.json",
        {"synthetic": True, "seed": seed, "modes": MODES, "bayes": bayes, "optimal": optimal},
    )
    return DemoFacts(num_videos, {name: len(keys) for name, keys in split.items()}, bayes)


def _draw(rng: np.random.Generator, probs: Sequence[float]) -> int:
    """An index with these probabilities."""
    return int(np.searchsorted(np.cumsum(probs)[:-1], rng.random(), side="right"))


def _prototypes(rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Orthogonal vectors of length 3 for every state of every task."""
    total = sum(len(planting.classes) for planting in PLANTED.values())
    basis, _ = np.linalg.qr(rng.normal(size=(WIDTH, total)))
    found, at = {}, 0
    for task, planting in PLANTED.items():
        found[task] = 3 * basis.T[at : at + len(planting.classes)]
        at += len(planting.classes)
    return found


def _features(
    rng: np.random.Generator, prototypes: dict[str, np.ndarray], states: dict[str, int]
) -> np.ndarray:
    """Rows (t, WIDTH) float16: noise, and each state's prototype in a third of the rows or more."""
    count = int(rng.integers(LEAST_ROWS, MOST_ROWS + 1))
    rows = rng.normal(0, 0.5, (count, WIDTH))
    for task, state in states.items():
        length = int(rng.integers(-(-count // 3), count + 1))
        first = int(rng.integers(count - length + 1))
        rows[first : first + length] += prototypes[task][state]
    return rows.astype(np.float16)


def _comment(rng: np.random.Generator, causes: dict[str, int]) -> str:
    """Stance, tone and one to three fillers, in random order."""
    parts = []
    for task, phrases in (("opinion", _STANCES), ("emotion", _TONES)):
        choices = phrases[list(PLANTED[task].text)[causes[task]]]
        parts.append(choices[int(rng.integers(len(choices)))])
    parts += [_FILLERS[int(i)] for i in rng.integers(len(_FILLERS), size=rng.integers(1, 4))]
    return " ".join(parts[i] for i in rng.permutation(len(parts)))


def _label(rng: np.random.Generator, planting: Planting, cause: int, state: int) -> str:
    """The label with its noise."""
    right = planting.label(list(planting.text)[cause], state)
    if rng.random() < planting.noise:
        others = [c for c in range(len(planting.classes)) if c != right]
        right = others[int(rng.integers(len(others)))]
    return planting.classes[right]


def _split(rng: np.random.Generator, keys: list[str]) -> dict[str, list[str]]:
    """Keys by split, at random by comment."""
    order = [keys[i] for i in rng.permutation(len(keys))]
    ends = np.rint(np.cumsum((0, *SHARES)) * len(keys)).astype(int)
    return {name: order[a:b] for name, a, b in zip(SPLITS, ends[:-1], ends[1:], strict=True)}
