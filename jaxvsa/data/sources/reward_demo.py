"""Synthetic reward data whose optimum is known: generators G1 to G5, and files of real formats.

Everything follows from a seed. Vectors are float64 rows of numpy; `answer` is 1 if A is better, -1
if B is, 0 for a tie.

Source: CleveReward specification, A8 and CA3, where the figures of several models are.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np

from jaxvsa.core.files import staged_folder

BETA = 6.0
"""Slope of G1's true logit on the difference of the cosines."""
WIDTH, NUISANCE = 16, 8
PLANTED = 20
"""Test prompts of G5 with a near-duplicate in train."""


@dataclasses.dataclass(frozen=True, eq=False)
class CosinePairs:
    """Pairs of G1, G3 or G4; letters as everywhere, with v for the two videos A and B.

    Attributes:
        text_bf: features of the prompt, (b, f).
        video_bvf: features of A and B, (b, 2, f).
        logit_b: true log-odds of A against B; without ties P(A) = sigmoid(logit).
        answer_b: int8.
        prompt_b: int64 number of the prompt; train and test share none.
    """

    text_bf: np.ndarray
    video_bvf: np.ndarray
    logit_b: np.ndarray
    answer_b: np.ndarray
    prompt_b: np.ndarray


def bt_cosine(
    seed: int,
    num_train: int = 3000,
    num_test: int = 1000,
    pairs_per_prompt: int = 8,
    tie_k: float | None = None,
) -> dict[str, CosinePairs]:
    """G1, or G4 with `tie_k`: the true reward is the cosine of hidden text and video vectors.

    The text t is uniform on the sphere of R^16, e uniform on the part of it orthogonal to t, and
    v = a t + sqrt(1 - a^2) e with a ~ U(-.2, .9), so that cos(v, t) = a exactly. Eight more
    dimensions N(0, .5^2 / 8) are noise, new for each video, fixed for each prompt; two fixed random
    rotations of R^24 hide which dimensions are which.

    Args:
        seed: of everything.
        num_train: prompts of "train".
        num_test: other prompts, of "test".
        pairs_per_prompt: pairs of each.
        tie_k: None draws answers from Bradley-Terry; a number over 1 from Rao-Kupper with this k.

    Returns:
        "train" and "test".
    """
    rng = np.random.default_rng(seed)
    rotation_ff, text_rotation_ff = _rotation(rng), _rotation(rng)
    num = num_train + num_test
    text_gd = _sphere(rng, (num, WIDTH))
    noise_gd = rng.normal(0, 0.5 / NUISANCE**0.5, (num, NUISANCE))
    text_gf = np.concatenate([text_gd, noise_gd], axis=1) @ text_rotation_ff
    prompt_b = np.repeat(np.arange(num), pairs_per_prompt)
    shape = (len(prompt_b), 2)
    reward_bv = rng.uniform(-0.2, 0.9, shape)
    text_bvd = text_gd[prompt_b][:, None]
    other_bvd = rng.normal(size=(*shape, WIDTH))
    other_bvd -= np.sum(other_bvd * text_bvd, axis=-1, keepdims=True) * text_bvd
    other_bvd /= np.linalg.norm(other_bvd, axis=-1, keepdims=True)
    a_bvd = reward_bv[..., None]
    video_bvd = a_bvd * text_bvd + np.sqrt(1 - a_bvd**2) * other_bvd
    noise_bvd = rng.normal(0, 0.5 / NUISANCE**0.5, (*shape, NUISANCE))
    video_bvf = np.concatenate([video_bvd, noise_bvd], axis=-1) @ rotation_ff
    logit_b = BETA * (reward_bv[:, 0] - reward_bv[:, 1])
    answer_b = draw_answers(rng, logit_b, tie_k)
    columns = (text_gf[prompt_b], video_bvf, logit_b, answer_b, prompt_b)
    train_b = prompt_b < num_train
    return {
        name: CosinePairs(*(column[keep_b] for column in columns))
        for name, keep_b in (("train", train_b), ("test", ~train_b))
    }


def answer_probabilities(logit_b: np.ndarray, tie_k: float | None = None) -> np.ndarray:
    """Probability of A, of B, and of a tie: float64 (b, 3).

    Source: Rao and Kupper (1967): P(A) = sigmoid(d - ln k), P(B) = sigmoid(-d - ln k),
    P(tie) = (k^2 - 1) P(A) P(B); k = 1 is Bradley-Terry, and None means it.
    """
    k = 1.0 if tie_k is None else tie_k
    a_b = 1 / (1 + k * np.exp(-logit_b))
    b_b = 1 / (1 + k * np.exp(logit_b))
    return np.stack([a_b, b_b, (k**2 - 1) * a_b * b_b], axis=1)


def draw_answers(
    rng: np.random.Generator, logit_b: np.ndarray, tie_k: float | None = None
) -> np.ndarray:
    """An answer for each logit, int8 (b,)."""
    probability_bc = answer_probabilities(logit_b, tie_k)
    draw_b = rng.random(len(logit_b))
    a_b, b_b, _ = probability_bc.T
    return np.where(draw_b < a_b, 1, np.where(draw_b < a_b + b_b, -1, 0)).astype(np.int8)


@dataclasses.dataclass(frozen=True, eq=False)
class ScaledSource:
    """One source of G2.

    Attributes:
        video_nf: features, (n, 16).
        quality_n: the truth, comparable between sources.
        score_n: what its raters gave, on its own scale.
        delta: gap above which its pairs are decided.
    """

    video_nf: np.ndarray
    quality_n: np.ndarray
    score_n: np.ndarray
    delta: float

    def pairs(self, num: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Of `num` random pairs those with a gap over `delta`: places of better and worse."""
        first_m, second_m = rng.integers(len(self.score_n), size=(2, num))
        gap_m = self.score_n[first_m] - self.score_n[second_m]
        keep_m = np.abs(gap_m) > self.delta
        better_m = np.where(gap_m > 0, first_m, second_m)[keep_m]
        return better_m, np.where(gap_m > 0, second_m, first_m)[keep_m]


def two_scales(
    seed: int, own_curve: bool = True, num: int = 2000
) -> dict[tuple[str, str], ScaledSource]:
    """G2: one quality q = w.x, two sources that grade it on scales of their own.

    x = N(0, I) - .8 w - 1.5 u in source A and N(0, I) + .8 w + 1.5 u in B, with w and u orthonormal
    in R^16. With `own_curve` A gives 50 + 16.6 (q + .8) + 4 N(0, 1) and B the level
    clip(round(2.5 + .9 (q - .8)), 1, 4): each grades around its own mean. Without it, both use q.

    Args:
        seed: of everything.
        own_curve: mode 0 of CA3; False is mode 1.
        num: videos of each source and split.

    Returns:
        (source, split) -> videos, for sources "A", "B" and splits "train", "test".
    """
    rng = np.random.default_rng(seed)
    w_f, u_f = np.linalg.qr(rng.normal(size=(WIDTH, 2)))[0].T
    found = {}
    for split in ("train", "test"):
        for source, side in (("A", -1.0), ("B", 1.0)):
            video_nf = rng.normal(size=(num, WIDTH)) + side * (0.8 * w_f + 1.5 * u_f)
            quality_n = video_nf @ w_f
            graded_n = quality_n - side * 0.8 * own_curve
            if source == "A":
                score_n, delta = 50 + 16.6 * graded_n + 4 * rng.normal(size=num), 8.3
            else:
                score_n, delta = np.clip(np.round(2.5 + 0.9 * graded_n), 1, 4), 0.5
            found[source, split] = ScaledSource(video_nf, quality_n, score_n, delta)
    return found


def mismatch_pairs(seed: int, num_train: int = 2000, num_test: int = 500) -> dict[str, CosinePairs]:
    """G3: a video shows what its prompt says and nothing else, so quality tells it nothing.

    z is uniform on the sphere of R^16, the text z Q_t, each video (z + .3 N(0, I) / 4) Q_v. Pairs
    of "train" are two videos of one prompt with a coin's answer, logit 0. Pairs of "test" are of
    new prompts: A is the prompt's video, B that of another prompt with a cosine under .3, the
    answer is 1 and the logit infinite.

    Returns:
        "train" and "test".
    """
    rng = np.random.default_rng(seed)
    text_rotation_ff, rotation_ff = _rotation(rng, WIDTH), _rotation(rng, WIDTH)
    num = num_train + num_test
    concept_gf = _sphere(rng, (num, WIDTH))
    shown_gvf = concept_gf[:, None] + 0.3 * rng.normal(size=(num, 2, WIDTH)) / 4
    video_gvf, text_gf = shown_gvf @ rotation_ff, concept_gf @ text_rotation_ff
    coin_b = rng.choice(np.array([1, -1], np.int8), num_train)
    test_b = np.arange(num_train, num)
    cosine_gg = concept_gf[test_b] @ concept_gf[test_b].T
    draw_gg = np.where(cosine_gg < 0.3, rng.random(cosine_gg.shape), -1.0)
    other_b = test_b[np.argmax(draw_gg, axis=1)]
    return {
        "train": CosinePairs(
            text_gf[:num_train], video_gvf[:num_train], np.zeros(num_train), coin_b,
            np.arange(num_train),
        ),
        "test": CosinePairs(
            text_gf[test_b], np.stack([video_gvf[test_b, 0], video_gvf[other_b, 0]], axis=1),
            np.full(num_test, np.inf), np.ones(num_test, np.int8), test_b,
        ),
    }  # fmt: skip


def leaking_prompts(seed: int) -> dict[str, list[str]]:
    """G5: 400 prompts of 12 out of 64 words; 20 of the 40 test prompts have a twin in train.

    Twins are made in turn by upper case and a full stop, doubled spaces, " !" at the end, a
    character left out or two exchanged, "s" at the end.

    Returns:
        "train", 380 prompts, and "test", 40.
    """
    rng = np.random.default_rng(seed)
    words = _words(rng, 64)
    prompts = [" ".join(rng.choice(words, 12, replace=False)) for _ in range(400)]
    train, test = prompts[:360], prompts[360:]
    twins = [_twin(prompt, number, rng) for number, prompt in enumerate(test[:PLANTED])]
    return {"train": train + twins, "test": test}


def _twin(prompt: str, number: int, rng: np.random.Generator) -> str:
    at = int(rng.integers(1, len(prompt) - 2))
    exchanged = prompt[:at] + prompt[at + 1] + prompt[at] + prompt[at + 2 :]
    typo = exchanged if number % 2 and exchanged != prompt else prompt[:at] + prompt[at + 1 :]
    ways = (prompt.upper() + ".", prompt.replace(" ", "  "), prompt + " !", typo, prompt + "s")
    return ways[number % len(ways)]


@dataclasses.dataclass(frozen=True, eq=False)
class Memorable:
    """Pairs of G5 from which nothing but the pair itself can be learned.

    Attributes:
        feature_nf: (n, 96) of prompt, A and B.
        answer_n: 1 or -1, as good as a coin for an unseen prompt.
        prompt_n: int64 number of the prompt.
    """

    feature_nf: np.ndarray
    answer_n: np.ndarray
    prompt_n: np.ndarray


def memorable_pairs(seed: int, num_prompts: int = 400, num_generators: int = 6) -> Memorable:
    """G5: the score of each cell (prompt, generator) is N(0, 1); features tell the cells apart.

    Features are [E_p, E_p + G_a, E_p + G_b] with E and G ~ N(0, I) in R^32.
    """
    rng = np.random.default_rng(seed)
    prompt_gf = rng.normal(size=(num_prompts, 32))
    generator_gf = rng.normal(size=(num_generators, 32))
    score_pg = rng.normal(size=(num_prompts, num_generators))
    first, second = np.triu_indices(num_generators, 1)
    prompt_n = np.repeat(np.arange(num_prompts), len(first))
    a_n, b_n = np.tile(first, num_prompts), np.tile(second, num_prompts)
    swap_n = rng.random(len(prompt_n)) < 0.5
    a_n, b_n = np.where(swap_n, b_n, a_n), np.where(swap_n, a_n, b_n)
    shown_nf = prompt_gf[prompt_n]
    feature_nf = np.concatenate(
        [shown_nf, shown_nf + generator_gf[a_n], shown_nf + generator_gf[b_n]], axis=1
    )
    answer_n = np.sign(score_pg[prompt_n, a_n] - score_pg[prompt_n, b_n]).astype(np.int8)
    return Memorable(feature_nf, answer_n, prompt_n)


def write_releases(
    out: str | Path,
    seed: int = 0,
    num_prompts: int = 1000,
    num_feedback: int = 33_000,
    per_prompt: int = 6,
    num_votes: int = 1069,
) -> dict[str, Path]:
    """Writes files of the published formats and, by default, of about the published sizes.

    Args:
        out: a new folder.
        seed: of everything.
        num_prompts: of T2VQA-DB, with ten videos each.
        num_feedback: videos of VideoFeedback.
        per_prompt: of these for each prompt.
        num_votes: of GenAI-Bench, about five for each prompt.

    Returns:
        "t2vqa", "videofeedback", "genai" -> file.

    Raises:
        UserError: `out` is in use or cannot be written.
    """
    rng = np.random.default_rng(seed)
    words = _words(rng, 4000)
    levels = rng.integers(1, 5, (num_feedback, 5)).tolist()
    mos_n = np.clip(50 + 16.6 * rng.normal(size=10 * num_prompts), 0, 100)
    names = {"t2vqa": "t2vqa.txt", "videofeedback": "videofeedback.jsonl", "genai": "genai.json"}
    with staged_folder(out) as folder:
        asked = _sentences(rng, words, num_prompts)
        lines = [f"{n:05d}.mp4|{asked[n // 10]}|{mos:.4f}" for n, mos in enumerate(mos_n)]
        (folder / names["t2vqa"]).write_text("\n".join(lines) + "\n", encoding="utf-8")
        asked = _sentences(rng, words, -(-num_feedback // per_prompt))
        rows = [_feedback(n, asked[n // per_prompt], level) for n, level in enumerate(levels)]
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / names["videofeedback"]).write_text(text, encoding="utf-8")
        asked = _sentences(rng, words, -(-num_votes // 5))
        kinds = rng.choice(["leftvote", "rightvote", "tievote", "bothbad_vote"], num_votes)
        votes = [_vote(n, asked[n // 5], str(kind)) for n, kind in enumerate(kinds)]
        (folder / names["genai"]).write_text(json.dumps(votes), encoding="utf-8")
    return {name: Path(out, file) for name, file in names.items()}


def _feedback(number: int, prompt: str, levels: list[int]) -> dict[str, Any]:
    columns = (
        "visual quality", "temporal consistency", "dynamic degree", "text-to-video alignment",
        "factual consistency",
    )  # fmt: skip
    scores = dict(zip(columns, levels, strict=True))
    return {
        "id": f"{number:06d}",
        "images": [],
        "text prompt": prompt,
        "video link": None,
        **scores,
    }


def _vote(number: int, prompt: str, kind: str) -> dict[str, str]:
    return {
        "prompt": prompt, "left_model": "one", "left_video": f"{number}_l.mp4",
        "right_model": "two", "right_video": f"{number}_r.mp4", "vote_type": kind,
    }  # fmt: skip


def _words(rng: np.random.Generator, num: int) -> list[str]:
    """Words of 4 to 9 letters, each once."""
    letters = np.array(list("abcdefghijklmnopqrstuvwxyz"))
    found: dict[str, None] = {}
    while len(found) < num:
        found["".join(rng.choice(letters, int(rng.integers(4, 10))))] = None
    return list(found)


def random_prompts(rng: np.random.Generator, num: int) -> list[str]:
    """Prompts of 6 to 20 out of 4,000 words, none near another."""
    words = _words(rng, 4000)
    lengths = rng.integers(6, 21, num).tolist()
    return [" ".join(words[n] for n in rng.integers(len(words), size=size)) for size in lengths]


def _sentences(rng: np.random.Generator, words: list[str], num: int) -> list[str]:
    """Prompts of 6 to 20 words."""
    return [" ".join(rng.choice(words, int(rng.integers(6, 21)))) for _ in range(num)]


def _sphere(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Uniform on the sphere of the last axis."""
    found = rng.normal(size=shape)
    return found / np.linalg.norm(found, axis=-1, keepdims=True)


def _rotation(rng: np.random.Generator, width: int = WIDTH + NUISANCE) -> np.ndarray:
    """A random orthogonal matrix."""
    return np.linalg.qr(rng.normal(size=(width, width)))[0]
