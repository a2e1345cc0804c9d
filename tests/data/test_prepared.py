"""Prepared data: what was written comes back, in order; what is damaged is refused by file."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from jaxvsa.core.errors import UserError
from jaxvsa.data import prepared as prepared_module
from jaxvsa.data.corpus import Comments, Corpus
from jaxvsa.data.features import FeatureTable
from jaxvsa.data.prepared import Prepared, write_prepared
from jaxvsa.data.splits import by_video

pytestmark = pytest.mark.smoke

NUM = 40


def make_corpus() -> Corpus:
    """40 comments on 10 videos; texts with emoji, breaks and nothing at all."""
    rng = np.random.default_rng(0)
    texts = ["👍🏽 nice", "two\nlines", "", "ﬁn – «ok»"]
    comments = Comments(
        key=[f"k{i}" for i in range(NUM)],
        video=[f"v{g}.mp4" for g in rng.permutation(np.arange(NUM) % 10)],
        text=[texts[i % 4] + str(i // 4) * (i % 4 != 2) for i in range(NUM)],
        labels={
            "mood": rng.integers(0, 3, NUM).astype(np.int32),
            "stars": rng.integers(0, 2, NUM).astype(np.int32),
        },
        extra={"hashtag": [f"#{i % 3}" for i in range(NUM)]},
    )
    cuts = {"train": range(28), "dev": range(28, 32), "test": range(32, NUM)}
    splits = {split: comments.take(cut) for split, cut in cuts.items()}
    return Corpus(splits, {"mood": ("up", "down", "so so"), "stars": ("1", "2")}, {"rows": NUM})


def make_features(dtype: np.dtype | type) -> FeatureTable:
    """Ten videos of 1 to 10 rows, 6 wide."""
    count_g = np.arange(1, 11)
    values_nf = np.random.default_rng(1).normal(size=(count_g.sum(), 6)).astype(dtype)
    return FeatureTable.from_counts(values_nf, count_g, [f"v{g}.mp4" for g in range(10)])


def assert_same(got: Comments, want: Comments) -> None:
    """Every column is equal."""
    assert (got.key, got.video, got.text, got.extra) == (
        want.key,
        want.video,
        want.text,
        want.extra,
    )
    assert list(got.labels) == list(want.labels)
    for task, label_b in want.labels.items():
        np.testing.assert_array_equal(got.labels[task], label_b)
        assert got.labels[task].dtype == np.int32


@pytest.fixture
def written(tmp_path: Path) -> Path:
    """A prepared folder with both protocols and float16 features."""
    corpus, features = make_corpus(), make_features(np.float16)
    corpora = {"official": corpus, "by_video": by_video(corpus, 0)}
    write_prepared(tmp_path / "data", corpora, features, features.describe("i3d"))
    return tmp_path / "data"


def test_comments_come_back_per_protocol_and_split_in_their_order(written):
    corpus = make_corpus()
    prepared = Prepared.open(written)
    for protocol, source in (("official", corpus), ("by_video", by_video(corpus, 0))):
        for split, part in source.splits.items():
            assert_same(prepared.comments(protocol, split), part)
            assert prepared.protocols[protocol][split] == len(part)
    assert prepared.labels == corpus.label_names


def test_no_comment_and_no_video_is_stored_twice(written):
    files = json.loads((written / "data.json").read_text())["files"]
    assert sum(files["comments"].values()) == NUM
    assert sum(files["videos"].values()) == 10
    on_disk = {str(path.relative_to(written)) for path in written.rglob("*.array_record*")}
    assert on_disk == {*files["comments"], *files["videos"]}


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("part_bytes", [1 << 20, 100])
def test_features_come_back_bit_for_bit(tmp_path, monkeypatch, dtype, part_bytes):
    monkeypatch.setattr("jaxvsa.data.tables.PART_BYTES", part_bytes)
    corpus, features = make_corpus(), make_features(dtype)
    manifest = features.describe("i3d", rows_per_s=3.0)
    prepared = write_prepared(tmp_path / "data", {"official": corpus}, features, manifest)
    again = prepared.features()
    assert again.values_nf.dtype == dtype and again.values_nf.flags.c_contiguous
    np.testing.assert_array_equal(
        again.values_nf.view(np.uint16), features.values_nf.view(np.uint16)
    )
    np.testing.assert_array_equal(again.start_g, features.start_g)
    np.testing.assert_array_equal(again.count_g, features.count_g)
    assert again.row == features.row
    assert prepared.manifest == manifest.to_dict()
    parts = {path.name.split(".")[0] for path in (tmp_path / "data/videos/1.0.0").glob("videos-*")}
    assert len(parts) == (1 if part_bytes == 1 << 20 else 7)  # 660 bytes in parts of 100


def test_rows_point_at_the_video_of_each_comment(written):
    prepared = Prepared.open(written)
    comments = prepared.comments("official", "test")
    row_b = prepared.rows(comments)
    assert row_b.dtype == np.int32
    assert [f"v{g}.mp4" for g in row_b] == comments.video


def test_text_alone_has_no_features_and_no_rows(tmp_path):
    prepared = write_prepared(tmp_path / "data", {"official": make_corpus()})
    assert prepared.features() is None and prepared.manifest is None
    np.testing.assert_array_equal(
        prepared.rows(prepared.comments("official", "dev")), np.full(4, -1, np.int32)
    )


def test_tensorflow_datasets_reads_the_same_records(written):
    import tensorflow_datasets as tfds

    corpus, features = make_corpus(), make_features(np.float16)
    source = tfds.builder_from_directory(str(written / "comments/1.0.0")).as_data_source("dev")
    assert [record["text"].decode() for record in source] == corpus.splits["dev"].text
    assert [record["labels"]["mood"] for record in source] == list(
        corpus.splits["dev"].labels["mood"]
    )
    builder = tfds.builder_from_directory(str(written / "videos/1.0.0"))
    record = builder.as_data_source("part_0000")[3]
    assert record["video"] == b"v3.mp4"
    np.testing.assert_array_equal(record["values"], features.of("v3.mp4"))


def test_report_holds_the_source_counts_and_the_leak_of_each_protocol(written):
    report = Prepared.open(written).report
    assert (report["rows"], report["by_video_seed"]) == (NUM, 0)
    assert report["splits"]["official"]["train"]["comments"] == 28
    assert report["splits"]["by_video"]["test"]["videos_in_train"] == 0


def test_writing_twice_gives_the_same_digest_and_a_changed_label_another(tmp_path):
    corpus = make_corpus()
    digests = [write_prepared(tmp_path / n, {"official": corpus}).digest for n in ("a", "b")]
    corpus.splits["dev"].labels["mood"][0] ^= 1
    digests.append(write_prepared(tmp_path / "c", {"official": corpus}).digest)
    assert digests[0] == digests[1] != digests[2]


def test_unknown_protocol_and_split_name_what_there_is(written):
    prepared = Prepared.open(written)
    with pytest.raises(
        UserError, match=r"no protocol 'oficial'; did you mean 'official'.*by_video"
    ):
        prepared.comments("oficial", "train")
    with pytest.raises(UserError, match=r"no split 'valid'; prepared: .*dev"):
        prepared.comments("official", "valid")


def test_a_folder_that_was_not_prepared_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"is not prepared: run python -m jaxvsa.prepare"):
        Prepared.open(tmp_path)
    (tmp_path / "data.json").write_text('{"format": 99}')
    with pytest.raises(
        UserError, match=r"data.json: format 99, this version reads 1; prepare again"
    ):
        Prepared.open(tmp_path)


@pytest.mark.parametrize("name", ["comments", "videos"])
@pytest.mark.parametrize("damage", ["cut", "empty", "flip", "gone", "swap"])
def test_a_damaged_record_file_is_named(written, name, damage):
    path = sorted(written.glob(f"{name}/1.0.0/*.array_record*"))[-1]
    raw = path.read_bytes()
    filled = [i for i, byte in enumerate(raw) if byte]  # files are padded to 64 KiB
    at = filled[len(filled) // 3]
    match damage:
        case "cut":
            path.write_bytes(raw[: len(raw) // 2])
        case "empty":
            path.write_bytes(b"")
        case "flip":
            path.write_bytes(raw[:at] + bytes([raw[at] ^ 255]) + raw[at + 1 :])
        case "gone":
            path.unlink()
        case "swap":  # a sound file with other contents
            other = "videos" if name == "comments" else "comments"
            path.write_bytes(sorted(written.glob(f"{other}/1.0.0/*.array_record*"))[0].read_bytes())
    prepared = Prepared.open(written)
    with pytest.raises(UserError, match=f"{path} .*prepare the data again"):
        prepared.comments("official", "train") if name == "comments" else prepared.features()


def test_records_that_data_json_does_not_describe_are_refused(written):
    info = json.loads((written / "data.json").read_text())
    digest = {"digest": "0" * 32}
    (written / "data.json").write_text(json.dumps({**info, **digest}))
    with pytest.raises(
        UserError, match=r"comments is not what data.json describes .*; prepare the"
    ):
        Prepared.open(written).comments("official", "train")
    manifest = {"manifest": {**info["manifest"], **digest}}
    (written / "data.json").write_text(json.dumps({**info, **manifest}))
    with pytest.raises(UserError, match=r"videos is not what data.json describes .*; prepare the"):
        Prepared.open(written).features()


def test_sound_records_of_another_data_set_are_refused(written, tmp_path):
    info = json.loads((written / "data.json").read_text())
    info["files"] = {"comments": info["files"]["videos"], "videos": info["files"]["comments"]}
    (written / "data.json").write_text(json.dumps(info))
    with pytest.raises(UserError, match=r"comments is not what data.json describes"):
        Prepared.open(written).comments("official", "train")
    with pytest.raises(UserError, match=r"videos is not what data.json describes"):
        Prepared.open(written).features()


@pytest.mark.parametrize("entry", ["labels", "files", "extra", "digest"])
def test_a_description_without_an_entry_is_refused(written, entry):
    info = json.loads((written / "data.json").read_text())
    info.pop(entry)
    (written / "data.json").write_text(json.dumps(info))
    with pytest.raises(UserError, match=rf"data.json: no entry '{entry}'; prepare again"):
        Prepared.open(written)


def test_fewer_classes_than_the_records_have_are_refused(written):
    info = json.loads((written / "data.json").read_text())
    info["labels"]["mood"] = ["up", "down"]
    (written / "data.json").write_text(json.dumps(info))
    with pytest.raises(UserError, match=r"is not what data.json describes .more classes of mood"):
        Prepared.open(written).comments("official", "train")


def test_a_failure_leaves_nothing_behind(tmp_path, monkeypatch):
    def full_disk(*args: object) -> None:
        raise OSError(28, "No space left on device")

    features = make_features(np.float16)
    monkeypatch.setattr(prepared_module, "write_table", full_disk)
    with pytest.raises(OSError, match=r"No space"):
        corpora = {"official": make_corpus()}
        write_prepared(tmp_path / "data", corpora, features, features.describe("i3d"))
    assert list(tmp_path.iterdir()) == []


def test_writing_leaves_no_folder_for_temporary_files(tmp_path, monkeypatch):
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    write_prepared(tmp_path / "data", {"official": make_corpus()})
    assert list((tmp_path / "tmp").iterdir()) == []


def test_an_existing_folder_is_not_touched(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"already exists"):
        write_prepared(tmp_path, {"official": make_corpus()})
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_half_a_surrogate_pair_is_refused_with_the_key(tmp_path):
    corpus = make_corpus()
    corpus.splits["dev"].text[1] = json.loads('"\\ud83d"')
    with pytest.raises(UserError, match=r"comment 'k29': its text has half a surrogate pair"):
        write_prepared(tmp_path / "data", {"official": corpus})


def test_protocols_must_hold_the_same_comments(tmp_path):
    corpus = make_corpus()
    with pytest.raises(ValueError, match=r"do not hold the same comments"):
        corpora = {"official": corpus, "by_video": corpus.without_videos({"v1.mp4"})}
        write_prepared(tmp_path / "data", corpora)


def test_reading_needs_neither_tensorflow_nor_jax(written):
    code = (
        "import sys; from jaxvsa.data.prepared import Prepared;"
        f"p = Prepared.open({str(written)!r}); p.features(); p.comments('official', 'train');"
        "print('tensorflow' in sys.modules, 'flax' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]
