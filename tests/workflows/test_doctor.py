"""Each fault is found, named in plain words, and the healthy case is not."""

import importlib.metadata
import json
import shutil
import subprocess

import jax
import numpy as np
import pytest

from jaxvsa import doctor as door
from jaxvsa.core.config import to_plain
from jaxvsa.interop.tensors import load_safetensors, save_safetensors
from jaxvsa.workflows import doctor

GIB = 2**30
HAS_NVIDIA = doctor.has_nvidia


@pytest.fixture(autouse=True)
def healthy(monkeypatch):
    """A machine without faults; each test adds its own."""
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: ["jax>=0.10", "x>=1; extra"])
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "0.10.2")
    monkeypatch.setattr(doctor, "has_nvidia", lambda: False)
    monkeypatch.setattr(doctor, "available_memory", lambda: 64 * GIB)
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    _set_free_disk(monkeypatch, 64 * GIB)


def _set_free_disk(monkeypatch, free):
    usage = shutil._ntuple_diskusage(free, 0, free)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)


def _findings(**given):
    return {finding.name: finding for finding in doctor.examine(**given)}


def _problem(name, **given):
    """Text of the one finding that is a problem."""
    bad = [finding for finding in doctor.examine(**given) if not finding.ok]
    assert [finding.name for finding in bad] == [name]
    return bad[0].text


def test_nothing_is_wrong_with_a_sound_run(trained_run, prepared, weights, tiny):
    found = _findings(
        run=trained_run, weights=weights, config=to_plain(tiny(f"weights.text={weights}"))
    )
    assert all(finding.ok for finding in found.values()), found
    assert {"packages", "device", "run", "run and data", "comments", "features", "weights"} < set(
        found
    )
    assert found["features"].text == "net, 120 rows of 5 float16, 15 videos"
    assert found["comments"].text.startswith("90; labels mood (3), topic (2); splits official")
    assert found["checkpoint 4"].text.startswith("intact, ")
    assert found["configuration"].text.startswith("vccsa, ")
    assert found["device"].text == "4 x cpu"


def test_cpu_jaxlib_on_a_gpu_machine(monkeypatch):
    monkeypatch.setattr(doctor, "has_nvidia", lambda: True)
    text = _problem("device")
    assert text == (
        "JAX runs on the CPU, but this machine has an NVIDIA GPU; run pip install -U 'jax[cuda]'"
    )
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    assert _problem("device").endswith("unset JAX_PLATFORMS=cpu")


def test_a_gpu_is_known_by_its_driver_or_by_nvidia_smi(monkeypatch, tmp_path):
    def smi(code, printed):
        done = subprocess.CompletedProcess([], code, printed)
        monkeypatch.setattr(subprocess, "run", lambda *args, **kwargs: done)

    monkeypatch.setattr(doctor, "DRIVER", tmp_path / "version")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert not HAS_NVIDIA()  # no such program
    smi(0, b"GPU 0: NVIDIA H200 (UUID: GPU-1)")
    assert HAS_NVIDIA()
    smi(9, b"NVIDIA-SMI has failed")
    assert not HAS_NVIDIA()
    (tmp_path / "version").touch()
    assert HAS_NVIDIA()


def test_a_backend_that_does_not_start(monkeypatch):
    def fail():
        raise RuntimeError("Unable to initialize backend 'cuda'\nmore")

    monkeypatch.setattr(jax, "devices", fail)
    assert _problem("device").startswith(
        "JAX finds no device (Unable to initialize backend 'cuda')"
    )


def test_old_and_missing_packages(monkeypatch):
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: ["jax>=0.11.3"])
    assert _problem("packages") == "jax is 0.10.2; run pip install -U 'jax>=0.11.3'"

    def only_ours(name):
        if name != "jaxvsa":
            raise importlib.metadata.PackageNotFoundError(name)
        return "0.1.0"

    monkeypatch.setattr(importlib.metadata, "version", only_ours)
    assert _problem("packages") == "jax is missing; run pip install 'jax>=0.11.3'"


def test_records_that_do_not_fit_their_manifest(prepared, tmp_path):
    data = shutil.copytree(prepared, tmp_path / "data")
    record = json.loads((data / "data.json").read_text())
    for key, value in (("width", 7), ("num_rows", 119), ("num_rows", 121), ("digest", "0")):
        manifest = {**record["manifest"], key: value}
        (data / "data.json").write_text(json.dumps({**record, "manifest": manifest}))
        assert "videos is not what data.json describes (" in _problem("features", data=data)


def test_missing_records_and_folders(prepared, tmp_path):
    data = shutil.copytree(prepared, tmp_path / "data")
    next((data / "videos").rglob("*.array_record*")).unlink()
    assert "is missing; prepare the data again" in _problem("features", data=data)
    found = _findings(data=tmp_path)
    assert not found["comments"].ok and "is not prepared" in found["comments"].text


def test_data_of_other_features_than_the_run(trained_run, prepared, tmp_path):
    data = shutil.copytree(prepared, tmp_path / "data")
    record = json.loads((data / "data.json").read_text())
    record["manifest"]["encoder"] = "i3d"
    (data / "data.json").write_text(json.dumps(record))
    text = _problem("run and data", run=trained_run, data=data)
    assert "trained on features of 'net' (encoder net), the data has 'i3d'" in text
    record["labels"]["mood"] = ["down", "flat", "high"]
    (data / "data.json").write_text(json.dumps(record))
    assert "'flat', 'high'" in _problem("run and data", run=trained_run, data=data)


def test_weights_of_the_wrong_size(weights, tmp_path):
    folder = shutil.copytree(weights, tmp_path / "weights")
    state = load_safetensors(folder)
    name = "embeddings.word_embeddings.weight"
    save_safetensors(folder / "model.safetensors", {**state, name: state[name][:-1]})
    assert f"tensor '{name}' makes 'word/embedding'" in _problem("weights", weights=folder)


def test_a_tokenizer_larger_than_the_word_table(weights, tmp_path):
    folder = shutil.copytree(weights, tmp_path / "weights")
    state, config = load_safetensors(folder), json.loads((folder / "config.json").read_text())
    name, rows = "embeddings.word_embeddings.weight", 270
    save_safetensors(folder / "model.safetensors", {**state, name: state[name][:rows]})
    (folder / "config.json").write_text(json.dumps({**config, "vocab_size": rows}))
    assert "word table only 270 rows" in _problem("weights", weights=folder)
    (folder / "tokenizer.json").unlink()
    assert "no tokenizer" in _problem("weights", weights=folder)


def test_positions_too_few_for_the_text_length(tiny):
    text = _problem("configuration", config=to_plain(tiny("model.text.max_positions=20")))
    assert "24 tokens, but its positions allow 18; lower data.text_len" in text


def test_too_little_disk(monkeypatch, tiny):
    _set_free_disk(monkeypatch, 1000)
    text = _problem("disk", config=to_plain(tiny()))
    assert "1,000 bytes free, 4 checkpoints of" in text


def test_too_little_memory(monkeypatch, tiny):
    monkeypatch.setattr(doctor, "available_memory", lambda: 2**16)
    text = _problem("memory", config=to_plain(tiny()))
    assert text.startswith("too little memory: 64.0 KiB available, at least")
    assert "1.2 KiB for features" in text  # 120 rows of 5 values of 2 bytes


def test_memory_is_read_from_the_machine(monkeypatch):
    monkeypatch.undo()
    assert 2**24 < doctor.available_memory() < 2**50


def test_size_of_a_checkpoint_is_that_on_the_disk(trained_run, tiny):
    found = _findings(run=trained_run, config=to_plain(tiny()))
    on_disk = found["checkpoint 4"].text.removeprefix("intact, ")
    assert f"4 checkpoints of {on_disk} are kept at once" in found["disk"].text


@pytest.mark.parametrize("damage", ["flip", "cut", "lost", "record"])
def test_a_damaged_checkpoint(damage, trained_run, tmp_path):
    run = shutil.copytree(trained_run, tmp_path / "run")
    folder = run / "checkpoints" / "4"
    if damage == "lost":
        shutil.rmtree(folder / "meta")
    elif damage == "record":
        (folder / "meta" / "metadata").write_text("{}")
    else:
        for path in (folder / "state").glob("**/d/*"):
            values = bytearray(path.read_bytes())
            middle = len(values) // 2
            values[middle] ^= 1
            path.write_bytes(values if damage == "flip" else values[:middle])
    found = _findings(run=run)
    assert not found["checkpoint 4"].ok
    words = "is damaged: meta/metadata is missing" if damage == "lost" else "is damaged: "
    assert words in found["checkpoint 4"].text


def test_a_folder_that_is_no_run(tmp_path):
    assert "is not a run" in _problem("run", run=tmp_path)


def test_an_unfinished_run_is_measured_too(monkeypatch, trained_run, tmp_path):
    run = shutil.copytree(trained_run, tmp_path / "run")
    assert "disk" not in _findings(run=run)  # complete: nothing will be written
    (run / "results.json").unlink()
    _set_free_disk(monkeypatch, 1000)
    assert "1,000 bytes free" in _problem("disk", run=run)


def test_nothing_is_written(trained_run, prepared, tiny):
    folders = (trained_run, prepared)
    before = [sorted(folder.rglob("*")) for folder in folders]
    times = [path.stat().st_mtime_ns for paths in before for path in paths]
    _findings(run=trained_run, config=to_plain(tiny()))
    assert [sorted(folder.rglob("*")) for folder in folders] == before
    assert [path.stat().st_mtime_ns for paths in before for path in paths] == times


def test_door_answers_with_lines_and_an_exit_code(monkeypatch, prepared, capsys):
    assert door.main([f"--data={prepared}"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert all(line.startswith("ok ") for line in lines)
    assert lines[-1] == "ok       features: net, 120 rows of 5 float16, 15 videos"
    monkeypatch.setattr(doctor, "has_nvidia", lambda: True)
    assert door.main([]) == 1
    assert "problem  device: JAX runs on the CPU" in capsys.readouterr().out


def test_door_joins_data_and_weights_to_the_configuration(prepared, weights, capsys):
    given = ["--config=vccsa:tiny", "--config.train.steps=7"]
    assert door.main([*given, f"--data={prepared}", f"--weights={weights}"]) == 0
    printed = capsys.readouterr().out
    assert "ok       configuration: vccsa, " in printed and "7 updates" in printed
    assert np.all([name in printed for name in ("weights: roberta, 1 layers", "disk:", "memory:")])
