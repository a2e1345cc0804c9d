"""A synthetic corpus in the CSMV release's file format, with labels whose optimum is known.

Every video has a hidden valence and a hidden mood, shown in its features. Every comment expresses
an opinion and an emotion in one of three forms: *explicit* ("i hate this clip"), *deferring* ("i
agree with this clip": the label is the video's), or *contrary* ("this clip has it backwards": the
label is the opposite of the video's). Text alone cannot know what a comment defers to, video alone
cannot know whether a comment defers at all; both together know everything but the label noise.

For one task, let z be the video's hidden class, x what the comment says (one of the C classes, or
deferring, or contrary), y the label, and p(z, x, y) = p(z) p(x) p(y | z, x), where z and x are
independent, p(y | z, x) is 1 - noise for the class meant and noise / (C - 1) for each other one:

    both  = sum_z sum_x  max_y  p(z, x, y)
    text  = sum_x        max_y  sum_z p(z, x, y)
    video = sum_z        max_y  sum_x p(z, x, y)

are the best accuracies any predictor can have in expectation (Bayes accuracies). They are exact as
far as z can be read from the features, which the nearest prototype does for all videos but one in
thousands, and x from the text, where every phrase has a word that no other meaning uses.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from jaxvsa.core.errors import UserError
from jaxvsa.core.files import read_json, staged_folder, write_json

SPLIT_SHARES = {"train": 0.7, "dev": 0.1, "test": 0.2}
FEATURES = Path("visual_feature", "demo")
HASHTAG = "synthetic"
WIDTH = 32
_LABEL_NOISE = 0.06
_COMMENTS = (4, 9)  # per video, both included
_ROWS = (6, 24)  # per video, both included
_SIGNAL, _NOISE = 0.75, 0.5  # size of a prototype's components, deviation of the noise on each


@dataclasses.dataclass(frozen=True, eq=False)
class _Task:
    """What comments say about one task, and how often.

    Attributes:
        prior: class -> probability, of the video's hidden class and of an explicit comment alike.
        forms: probability of an explicit, a deferring and a contrary comment.
        opposite: what a contrary comment means, for each hidden class.
        phrases: what is said -> ways to say it: first the classes, then "deferring", "contrary".
    """

    prior: dict[str, float]
    forms: tuple[float, float, float]
    opposite: dict[str, str]
    phrases: dict[str, tuple[str, ...]]

    @property
    def labels(self) -> tuple[str, ...]:
        """Class names in index order, which is the release's."""
        return tuple(self.prior)

    def meaning(self) -> np.ndarray:
        """Class meant for each (hidden class z, saying x), int (classes, classes + 2)."""
        index = {label: i for i, label in enumerate(self.labels)}
        hidden = np.arange(len(index))
        opposite = np.array([index[self.opposite[label]] for label in self.labels])
        explicit = np.broadcast_to(hidden, (len(index), len(index)))
        return np.concatenate([explicit, hidden[:, None], opposite[:, None]], axis=1)

    def saying(self) -> np.ndarray:
        """Probability of each saying x, (classes + 2,)."""
        explicit, deferring, contrary = self.forms
        return np.array([*(explicit * p for p in self.prior.values()), deferring, contrary])

    def joint(self, noise: float) -> np.ndarray:
        """The distribution p(z, x, y), (classes, classes + 2, classes)."""
        classes = len(self.prior)
        says_y = np.full((classes, classes), noise / (classes - 1))
        np.fill_diagonal(says_y, 1 - noise)
        prior = np.array(list(self.prior.values()))
        return prior[:, None, None] * self.saying()[:, None] * says_y[self.meaning()]


_OPINION = _Task(
    prior={"positive": 0.42, "neutral": 0.36, "negative": 0.22},
    forms=(0.40, 0.40, 0.20),
    opposite={"positive": "negative", "neutral": "neutral", "negative": "positive"},
    phrases={
        "positive": (
            "i love {it}",
            "{it} is great",
            "i support {it}",
            "thumbs up for {it}",
            "{it} is wonderful",
        ),
        "neutral": (
            "{it} is okay",
            "{it} is just average",
            "i am undecided about {it}",
            "no strong view on {it}",
        ),
        "negative": (
            "i hate {it}",
            "{it} is bad",
            "{it} is garbage",
            "thumbs down for {it}",
            "i am against {it}",
        ),
        "deferring": (
            "i agree with {it}",
            "exactly what {it} says",
            "{it} speaks for me",
            "count me in with {it}",
        ),
        "contrary": (
            "i disagree with {it}",
            "{it} has it backwards",
            "turn {it} around",
            "not true {it} is mistaken",
        ),
    },
)
# The opposites are those of Plutchik's wheel, from which the release takes its eight emotions.
_EMOTION = _Task(
    prior={
        "joy": 0.30,
        "disgust": 0.08,
        "surprise": 0.10,
        "sadness": 0.08,
        "trust": 0.22,
        "fear": 0.05,
        "anger": 0.05,
        "anticipation": 0.12,
    },
    forms=(0.50, 0.44, 0.06),
    opposite={
        "joy": "sadness",
        "disgust": "trust",
        "surprise": "anticipation",
        "sadness": "joy",
        "trust": "disgust",
        "fear": "anger",
        "anger": "fear",
        "anticipation": "surprise",
    },
    phrases={
        "joy": ("so happy right now", "it makes me smile", "laughing all day 😂", "pure joy 😊"),
        "disgust": ("this is gross", "i feel sick 🤮", "what a disgusting thing 🤢", "yuck no way"),
        "surprise": ("did not expect that 😮", "what a surprise", "wow i am shocked", "mind blown"),
        "sadness": ("i am crying 😭", "so sad now", "this breaks my heart", "tears in my eyes 😢"),
        "trust": ("i trust them", "we rely on them", "full faith in them 🤝", "they keep promises"),
        "fear": ("i am scared 😱", "this is frightening", "so afraid now", "terrified of that"),
        "anger": ("i am furious 😡", "so angry right now", "makes my blood boil", "full of rage"),
        "anticipation": (
            "i cannot wait",
            "counting the days 👀",
            "looking forward to more",
            "when is the next",
        ),
        "deferring": (
            "same mood here",
            "that vibe got me too",
            "it moved me as well",
            "i caught the feeling",
        ),
        "contrary": (
            "the opposite mood for me",
            "i feel the reverse",
            "my vibe is the contrary",
            "it left me otherwise",
        ),
    },
)
TASKS = {"opinion": _OPINION, "emotion": _EMOTION}
_IT = ("this video", "this clip", "this post", "this one")
_OPENERS = ("", "", "honestly", "well", "listen", "look")
_JOINERS = ("and", "plus", "also", "...")
_CLOSERS = ("", "", "", "lol", "🙏", "✨", "💯")


@dataclasses.dataclass(frozen=True, eq=False)
class DemoFacts:
    """What is known of a synthetic corpus because it was made: the content of `bayes.json`.

    Attributes:
        seed: the corpus was made from.
        num_videos: videos in it.
        label_noise: share of labels replaced by another class.
        closed_form: task -> mode ("both", "text", "video") -> Bayes accuracy in expectation.
        realised: split -> task -> mode -> accuracy of the Bayes-optimal prediction on that split.
        optimal: key -> task -> the Bayes-optimal label given both inputs.
    """

    seed: int
    num_videos: int
    label_noise: float
    closed_form: dict[str, dict[str, float]]
    realised: dict[str, dict[str, dict[str, float]]]
    optimal: dict[str, dict[str, str]]

    def predicted(self, keys: Sequence[str], task: str) -> list[str]:
        """Bayes-optimal labels of comments in the order given, for any way of splitting them."""
        return [self.optimal[key][task] for key in keys]


def read_facts(root: str | Path) -> DemoFacts:
    """The facts `write_demo` left in `root`.

    Raises:
        UserError: no such file, or one of another kind.
    """
    path = Path(root) / "bayes.json"
    values = read_json(path, "the facts of the synthetic corpus")
    try:
        return DemoFacts(**values)
    except TypeError as error:
        raise UserError(f"{path} does not describe a synthetic corpus; write it again") from error


def bayes_accuracy(task: str, noise: float = _LABEL_NOISE) -> dict[str, float]:
    """Closed form of the module's docstring, per mode."""
    joint = TASKS[task].joint(noise)
    return {
        "both": float(joint.max(-1).sum()),
        "text": float(joint.sum(0).max(-1).sum()),
        "video": float(joint.sum(1).max(-1).sum()),
    }


def prototypes() -> dict[str, np.ndarray]:
    """Per task, what a hidden class adds to a row: float64 (classes, 32), all orthogonal.

    They are rows of a Walsh matrix, hence exact on every machine.
    """
    word = np.arange(WIDTH)
    walsh = 1.0 - 2.0 * (np.bitwise_count(word[:, None] & word) % 2)
    first, found = 1, {}
    for task, spec in TASKS.items():
        found[task] = _SIGNAL * walsh[first : first + len(spec.prior)]
        first += len(spec.prior)
    return found


def write_demo(
    root: str | Path, seed: int = 0, num_videos: int = 2000, label_noise: float = _LABEL_NOISE
) -> DemoFacts:
    """Writes a synthetic corpus that `csmv.read_release` reads, and `bayes.json` beside it.

    Splits are drawn by comment, 70/10/20 %, as the release's, so most videos of the test split
    also occur in train. The same arguments give the same bytes. Features are float16, their folder
    is `visual_feature/demo`.

    Args:
        root: new or empty folder.
        seed: at least 0.
        num_videos: each has 4 to 9 comments and 6 to 24 feature rows.
        label_noise: probability that a label is replaced by another class, drawn uniformly.

    Raises:
        UserError: `root` is not empty, or fewer than 10 videos are asked for.
    """
    if num_videos < 10:
        raise UserError(f"num_videos is {num_videos}; a synthetic corpus needs at least 10")
    rng = np.random.Generator(np.random.PCG64(seed))
    hidden_g = {
        task: rng.choice(len(spec.prior), num_videos, p=list(spec.prior.values()))
        for task, spec in TASKS.items()
    }
    videos = [f"{g:06d}.mp4" for g in range(num_videos)]
    with staged_folder(root) as folder:
        (folder / FEATURES).mkdir(parents=True)
        for g, video in enumerate(videos):
            rows_tf = _draw_rows(rng, {task: hidden_g[task][g] for task in TASKS})
            np.save(folder / FEATURES / video.replace(".mp4", ".npy"), rows_tf)
        low, high = _COMMENTS
        video_b = np.repeat(np.arange(num_videos), rng.integers(low, high + 1, num_videos))
        drawn = {
            task: _draw_task(rng, task, hidden_g[task][video_b], label_noise) for task in TASKS
        }
        texts = _write_texts(rng, {task: drawn[task].saying_b for task in TASKS})
        keys = [f"{HASHTAG}_{b}_{videos[g]}" for b, g in enumerate(video_b)]
        split_b = _draw_splits(rng, len(keys))
        facts = _facts(seed, num_videos, label_noise, keys, drawn, split_b)
        rows = {
            key: {
                "video_file_id": videos[video_b[b]],
                "comment": texts[b],
                **{f"{task}_label": TASKS[task].labels[drawn[task].label_b[b]] for task in TASKS},
                "hashtag": HASHTAG,
            }
            for b, key in enumerate(keys)
        }
        write_json(folder / "lable_data_dict.json", rows)
        for split, index_b in split_b.items():
            write_json(folder / f"{split}_set.json", [keys[b] for b in index_b])
        for task, spec in TASKS.items():
            index = {label: i for i, label in enumerate(spec.labels)}
            write_json(folder / f"{task}_label_map.json", index)
        write_json(folder / "bayes.json", dataclasses.asdict(facts))
    return facts


@dataclasses.dataclass(frozen=True, eq=False)
class _Drawn:
    """One task's side of all comments: hidden class, saying and label, int (comments,)."""

    hidden_b: np.ndarray
    saying_b: np.ndarray
    label_b: np.ndarray


def _draw_rows(rng: np.random.Generator, hidden: Mapping[str, int]) -> np.ndarray:
    """Features (t, 32) float16: noise, and each task's prototype over a third of the rows or more.

    The segments of the two tasks are drawn independently of each other.
    """
    low, high = _ROWS
    count = int(rng.integers(low, high + 1))
    rows_tf = rng.normal(0.0, _NOISE, (count, WIDTH))
    for task, prototype_cf in prototypes().items():
        length = int(rng.integers(-(-count // 3), count + 1))
        first = int(rng.integers(0, count - length + 1))
        rows_tf[first : first + length] += prototype_cf[hidden[task]]
    return rows_tf.astype(np.float16)


def _draw_task(rng: np.random.Generator, task: str, hidden_b: np.ndarray, noise: float) -> _Drawn:
    """Sayings and labels of one task, given the hidden class of each comment's video."""
    spec, count, classes = TASKS[task], len(hidden_b), len(TASKS[task].prior)
    saying_b = rng.choice(classes + 2, count, p=spec.saying())
    shift_b = np.where(rng.random(count) < noise, rng.integers(1, classes, count), 0)
    return _Drawn(hidden_b, saying_b, (spec.meaning()[hidden_b, saying_b] + shift_b) % classes)


def _write_texts(rng: np.random.Generator, saying: Mapping[str, np.ndarray]) -> list[str]:
    """Comments of 5 to 14 words: the two sayings in either order, with words that mean nothing."""
    count = len(saying["opinion"])
    draws_bs = rng.random((count, 7))
    ways = {task: list(spec.phrases.values()) for task, spec in TASKS.items()}

    def pick(options: Sequence[str], draw: float) -> str:
        return options[int(draw * len(options))]

    texts = []
    for b, (opening, first, second, it, joining, order, closing) in enumerate(draws_bs.tolist()):
        opinion = pick(ways["opinion"][saying["opinion"][b]], first).format(it=pick(_IT, it))
        pair = [opinion, pick(ways["emotion"][saying["emotion"][b]], second)]
        body = f" {pick(_JOINERS, joining)} ".join(pair if order < 0.5 else pair[::-1])
        texts.append(f"{pick(_OPENERS, opening)} {body} {pick(_CLOSERS, closing)}".strip())
    return texts


def _draw_splits(rng: np.random.Generator, count: int) -> dict[str, np.ndarray]:
    """Comments of each split, in random order."""
    ends = np.round(np.cumsum(list(SPLIT_SHARES.values())) * count).astype(int)
    parts = np.split(rng.permutation(count), ends[:-1])
    return dict(zip(SPLIT_SHARES, parts, strict=True))


def _facts(
    seed: int,
    num_videos: int,
    noise: float,
    keys: Sequence[str],
    drawn: Mapping[str, _Drawn],
    split_b: Mapping[str, np.ndarray],
) -> DemoFacts:
    best = {task: _best(task, noise, drawn[task]) for task in TASKS}
    realised = {
        split: {
            task: {
                mode: float(np.mean((best_b == drawn[task].label_b)[index_b]))
                for mode, best_b in best[task].items()
            }
            for task in TASKS
        }
        for split, index_b in split_b.items()
    }
    optimal = {
        key: {task: TASKS[task].labels[best[task]["both"][b]] for task in TASKS}
        for b, key in enumerate(keys)
    }
    closed_form = {task: bayes_accuracy(task, noise) for task in TASKS}
    return DemoFacts(seed, num_videos, noise, closed_form, realised, optimal)


def _best(task: str, noise: float, drawn: _Drawn) -> dict[str, np.ndarray]:
    """Bayes-optimal class of each comment, per mode."""
    joint = TASKS[task].joint(noise)
    return {
        "both": joint.argmax(-1)[drawn.hidden_b, drawn.saying_b],
        "text": joint.sum(0).argmax(-1)[drawn.saying_b],
        "video": joint.sum(1).argmax(-1)[drawn.hidden_b],
    }
