"""Small files of votes and scores in the formats that the door reads."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest

from jaxvsa import evaluate as door
from jaxvsa.core.cli import run_door

VOTES = ("leftvote", "rightvote", "tievote", "bothbad_vote")
# Differences .9, -.3, -.8, 0, .1, .05 and means .55, .45, .5, .5, .65, .175.
SCORES = {
    "l0.mp4": 1.0, "r0.mp4": 0.1, "l1.mp4": 0.3, "r1.mp4": 0.6, "l2.mp4": 0.1, "r2.mp4": 0.9,
    "l3.mp4": 0.5, "r3.mp4": 0.5, "l4.mp4": 0.7, "r4.mp4": 0.6, "l5.mp4": 0.2, "r5.mp4": 0.15,
}  # fmt: skip


def write(path: Path, rows) -> Path:
    """JSON lines, a JSON list or CSV by the extension."""
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows))
    else:
        columns = list(rows[0])
        lines = [columns, *([row.get(name, "") for name in columns] for row in rows)]
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows(lines)
        path.write_text(text.getvalue())
    return path


def genai(people, prompts) -> list[dict]:
    """Rows as GenAI-Bench publishes them; videos l0.mp4 and r0.mp4, and so on."""
    return [
        {
            "prompt": prompt,
            "left_model": "m1",
            "left_video": f"l{n}.mp4",
            "right_model": "m2",
            "right_video": {"path": f"r{n}.mp4"},
            "vote_type": VOTES[vote],
        }
        for n, (vote, prompt) in enumerate(zip(people, prompts, strict=True))
    ]


def run(*argv) -> int:
    """Exit code of the door."""
    with pytest.raises(SystemExit) as left:
        run_door(door.main, [str(one) for one in argv])
    return left.value.code


def scores_file(path: Path, scores=None, **more) -> Path:
    """A score for each video."""
    rows = [{"video": v, "score": s, **more} for v, s in (scores or SCORES).items()]
    return write(path, rows)


def pair(n: int, split: str, **more) -> dict:
    """A row of pairs.jsonl."""
    return {
        "pair_id": f"p{n}", "question": "overall quality: a cat", "dimension": "overall",
        "source": "t2vqa", "prompt_group": "cat", "prompt_a": "a cat", "prompt_b": "a cat",
        "video_a": f"a{n}", "video_b": f"b{n}", "answer": "A", "kind": "same_prompt",
        "split": split, **more,
    }  # fmt: skip


def six_votes(folder: Path) -> Path:
    """Two left, two right, a tie, both bad; two prompts."""
    prompts = ["a cat", "a cat", "a cat", "a dog", "a dog", "a dog"]
    return write(folder / "votes.jsonl", genai([0, 0, 1, 1, 2, 3], prompts))
