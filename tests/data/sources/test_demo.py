import itertools
from pathlib import Path

import numpy as np
import pytest

from jaxvsa.core.errors import UserError
from jaxvsa.data.sources import demo
from jaxvsa.data.sources.csmv import read_release
from jaxvsa.data.sources.demo import TASKS, bayes_accuracy, prototypes, read_facts, write_demo

pytestmark = pytest.mark.smoke


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    """The corpus of the demo: folder, facts, corpus as the reader of the release sees it."""
    root = tmp_path_factory.mktemp("demo") / "release"
    facts = write_demo(root)
    return root, facts, read_release(root, strict=True)


def content(root):
    return {p.relative_to(root): p.read_bytes() for p in Path(root).rglob("*") if p.is_file()}


def sayings(task):
    """What each phrase of a task, with every noun filled in, means: phrase -> saying."""
    return {
        way.format(it=it): number
        for number, ways in enumerate(TASKS[task].phrases.values())
        for way in ways
        for it in demo._IT
    }


def read_saying(task, text):
    """Numbers of the sayings whose phrases occur in a comment, as whole words."""
    return {n for phrase, n in sayings(task).items() if f" {phrase} " in f" {text} "}


def read_hidden(root, videos):
    """Task -> video -> hidden class, by the prototype nearest to the mean row."""
    mean_bf = np.stack(
        [
            np.load(root / demo.FEATURES / f"{video[:-4]}.npy").mean(0, dtype=float)
            for video in videos
        ]
    )
    found = {}
    for task, prototype_cf in prototypes().items():
        distance_bc = np.linalg.norm(mean_bf[:, None] - prototype_cf, axis=-1)
        found[task] = dict(zip(videos, distance_bc.argmin(1), strict=True))
    return found


def test_bayes_accuracy_of_opinion_equals_the_sums_done_by_hand():
    right, wrong = 0.94, 0.03  # noise 0.06 over two other classes
    p, n, m = 0.42, 0.36, 0.22  # positive, neutral, negative
    # Text: explicit comments are right up to the noise; deferring ones are guessed as positive, and
    # contrary ones as negative, which is what a positive video makes of them.
    guess = p * right + (n + m) * wrong
    text = 0.40 * right + 0.40 * guess + 0.20 * guess
    # Video: deferring comments agree with it, contrary ones only if it is neutral.
    share = {"p": 0.40 + 0.4 * p, "n": 0.40 + 0.20 + 0.4 * n, "m": 0.40 + 0.4 * m}
    video = sum(
        z * (share[k] * right + (1 - share[k]) * wrong) for z, k in ((p, "p"), (n, "n"), (m, "m"))
    )
    assert bayes_accuracy("opinion") == pytest.approx({"both": right, "text": text, "video": video})


@pytest.mark.parametrize("task", TASKS)
def test_bayes_accuracy_is_the_best_of_all_rules(task):
    """Oracle: the joint distribution by loops over z, x, y, and each rule's best answer."""
    spec, noise, mass = TASKS[task], 0.1, {}
    labels = spec.labels
    says = {**{y: spec.forms[0] * w for y, w in spec.prior.items()}}
    says |= {"deferring": spec.forms[1], "contrary": spec.forms[2]}
    for (z, p_z), (x, p_x), y in itertools.product(spec.prior.items(), says.items(), labels):
        meant = {"deferring": z, "contrary": spec.opposite[z]}.get(x, x)
        p_y = 1 - noise if y == meant else noise / (len(labels) - 1)
        mass[z, x, y] = p_z * p_x * p_y
    assert sum(mass.values()) == pytest.approx(1)

    def best(view):
        groups = {}
        for (z, x, y), p in mass.items():
            group = groups.setdefault(view(z, x), dict.fromkeys(labels, 0.0))
            group[y] += p
        return sum(max(group.values()) for group in groups.values())

    want = {
        "both": best(lambda z, x: (z, x)),
        "text": best(lambda z, x: x),
        "video": best(lambda z, x: z),
    }
    assert bayes_accuracy(task, noise) == pytest.approx(want, abs=1e-12)


@pytest.mark.parametrize("task", TASKS)
def test_neither_input_alone_comes_near_both(task):
    found = bayes_accuracy(task)
    assert found["both"] >= 0.9
    assert 0.5 < found["text"] < 0.65 and 0.5 < found["video"] < 0.6


@pytest.mark.parametrize("task", TASKS)
def test_opposites_come_in_pairs(task):
    opposite = TASKS[task].opposite
    assert all(opposite[opposite[label]] == label for label in TASKS[task].labels)
    assert sum(TASKS[task].prior.values()) == pytest.approx(1)
    assert sum(TASKS[task].forms) == pytest.approx(1)
    assert list(TASKS[task].phrases) == [*TASKS[task].labels, "deferring", "contrary"]


def test_every_phrase_has_a_word_that_nothing_else_uses():
    plain = " ".join((*demo._IT, *demo._OPENERS, *demo._JOINERS, *demo._CLOSERS, "{it}"))
    said = {(task, x): ways for task, spec in TASKS.items() for x, ways in spec.phrases.items()}
    for cell, ways in said.items():
        others = " ".join(way for other in said if other != cell for way in said[other])
        for way in ways:
            assert set(way.split()) - set(others.split()) - set(plain.split()), (cell, way)


def test_comments_say_exactly_what_was_planted(full):
    _, _, corpus = full
    words = set()
    for text in corpus.comments().text:
        assert 5 <= len(text.split()) <= 14, text
        assert all(len(read_saying(task, text)) == 1 for task in TASKS), text
        words |= set(text.split())
    assert 140 <= len(words) <= 300


def test_the_video_shows_its_hidden_classes(full):
    """Told by deferring comments, whose optimum is the hidden class itself."""
    root, facts, corpus = full
    comments = corpus.comments()
    hidden = read_hidden(root, corpus.videos())
    for task, spec in TASKS.items():
        deferring = list(spec.phrases).index("deferring")
        best = dict(
            (video, label)
            for video, text, label in zip(
                comments.video, comments.text, facts.predicted(comments.key, task), strict=True
            )
            if read_saying(task, text) == {deferring}
        )
        assert len(best) > 1500
        agree = [spec.labels[hidden[task][video]] == label for video, label in best.items()]
        assert np.mean(agree) > 0.998


def test_realised_optimum_is_what_the_labels_say(full):
    """Recomputed from the files alone, with the rules written out; and near the closed form."""
    root, facts, corpus = full
    hidden = read_hidden(root, corpus.videos())
    for split, comments in corpus.splits.items():
        for task, spec in TASKS.items():
            label_b, names = comments.labels[task], np.array(spec.labels)
            predicted = np.array(facts.predicted(comments.key, task))
            both = np.mean(predicted == names[label_b])
            assert facts.realised[split][task]["both"] == pytest.approx(both)
            joint = spec.joint(facts.label_noise)
            saying = [min(read_saying(task, text)) for text in comments.text]
            text = np.mean(joint.sum(0).argmax(-1)[saying] == label_b)
            assert facts.realised[split][task]["text"] == pytest.approx(text)
            seen = [hidden[task][video] for video in comments.video]
            video = np.mean(joint.sum(1).argmax(-1)[seen] == label_b)
            assert facts.realised[split][task]["video"] == pytest.approx(video, abs=0.005)
            for mode, accuracy in facts.realised[split][task].items():
                # Comments of one video share its hidden class: about 4 of them count as one.
                error = np.sqrt(0.25 / (len(comments) / 4))
                assert abs(accuracy - facts.closed_form[task][mode]) < 3 * error


def test_sizes_are_those_of_a_demo(full):
    root, facts, corpus = full
    sizes = [len(part) for part in corpus.splits.values()]
    assert sizes[0] > 8500 and sizes[1] >= 1000 and sizes[2] >= 2000
    assert len(corpus.videos()) == facts.num_videos == 2000
    assert corpus.label_names == {task: spec.labels for task, spec in TASKS.items()}
    assert set(corpus.splits["test"].video) & set(corpus.splits["train"].video)
    assert set(corpus.splits["train"].extra["hashtag"]) == {"synthetic"}
    counts = {len(np.load(path)) for path in (root / demo.FEATURES).iterdir()}
    assert counts == set(range(6, 25))
    first = np.load(root / demo.FEATURES / "000000.npy")
    assert first.dtype == np.float16 and first.shape[1] == 32


def test_prototypes_are_orthogonal_across_tasks():
    all_cf = np.concatenate(list(prototypes().values()))
    np.testing.assert_array_equal(all_cf @ all_cf.T, np.eye(11) * 32 * 0.75**2)


def test_same_seed_gives_the_same_bytes(tmp_path):
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        write_demo(tmp_path / name, seed, num_videos=12)
    assert content(tmp_path / "a") == content(tmp_path / "b")
    assert len(content(tmp_path / "a")) == 12 + 7  # one of features for each video, seven of JSON
    assert content(tmp_path / "a") != content(tmp_path / "c")


def test_without_noise_the_optimum_is_always_right(tmp_path):
    facts = write_demo(tmp_path / "a", num_videos=20, label_noise=0.0)
    for split in facts.realised.values():
        assert all(task["both"] == 1 for task in split.values())
    assert facts.closed_form["opinion"]["both"] == pytest.approx(1)


def test_facts_come_back_from_the_folder(tmp_path):
    facts = write_demo(tmp_path / "a", num_videos=10)
    assert vars(read_facts(tmp_path / "a")) == vars(facts)
    with pytest.raises(UserError, match="facts of the synthetic corpus"):
        read_facts(tmp_path)
    (tmp_path / "bayes.json").write_text('{"seed": 1}')
    with pytest.raises(UserError, match="does not describe a synthetic corpus"):
        read_facts(tmp_path)


def test_demo_refuses(tmp_path):
    with pytest.raises(UserError, match="num_videos is 9"):
        write_demo(tmp_path / "a", num_videos=9)
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "mine.txt").write_text("keep")
    with pytest.raises(UserError, match="already exists"):
        write_demo(tmp_path / "b", num_videos=10)
    assert [p.name for p in (tmp_path / "b").iterdir()] == ["mine.txt"]
    assert not (tmp_path / "a").exists()
