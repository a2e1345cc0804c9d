"""From a file and its overrides to a ConfigDict, from a section to an object."""

import dataclasses
from typing import Literal

import pytest
from flax import linen as nn

from jaxvsa.core import config as lib
from jaxvsa.core.errors import UserError

FILE = """
from ml_collections import ConfigDict, config_dict

def tree(lr):
    return {
        "seed": 0,
        "init_from": config_dict.placeholder(str),
        "nothing": None,
        "data": {"root": "demo", "rungs": (8, 16), "rates": (0.5,), "resident": True},
        "optim": {"lr": lr, "schedule": {"warmup": 10}},
    }

VARIANTS = {"demo": lambda: tree(1e-4), "paper": lambda: tree(5e-5)}

def get_config(variant="demo"):
    return ConfigDict(VARIANTS[variant]())
"""


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "small.py"
    path.write_text(FILE)
    return path


@dataclasses.dataclass(frozen=True)
class Inner:
    size: int
    rates: tuple[float, ...] = ()


class Layer(nn.Module):
    width: int
    scale: float | None
    kind: Literal["hf", "torch"]
    inner: Inner
    pair: tuple[int, str]
    weights: dict[str, float]
    flag: bool
    vocab: int


GOOD = {
    "width": 4,
    "scale": 1,
    "kind": "hf",
    "inner": {"size": 2, "rates": [1, 0.5]},
    "pair": [3, "x"],
    "weights": {"fear": 2},
    "flag": False,
}


@pytest.mark.smoke
def test_load_config_takes_file_variant_and_overrides(file):
    config = lib.load_config(f"{file}:paper", ["--config.seed=-3", "--config.data.resident=false"])
    assert (config.optim.lr, config.seed, config.data.resident) == (5e-5, -3, False)
    assert lib.load_config(str(file)).optim.lr == 1e-4
    assert lib.variants(str(file)) == ["demo", "paper"]


@pytest.mark.parametrize(
    ("override", "key", "value"),
    [
        ("--config.optim.lr=1", "optim.lr", 1.0),
        ("--config.optim.schedule.warmup=7", "optim.schedule.warmup", 7),
        ("--config.data.resident", "data.resident", True),
        ("--config.data.root=a=b c", "data.root", "a=b c"),
        ("--config.data.root=", "data.root", ""),
        ("--config.data.rungs=(1, 2, 3)", "data.rungs", (1, 2, 3)),
        ("--config.data.rungs=4", "data.rungs", (4,)),
        ("--config.data.rates=1,2", "data.rates", (1.0, 2.0)),
        ("--config.init_from=runs/a", "init_from", "runs/a"),
    ],
)
def test_override_keeps_the_type_of_its_key(file, override, key, value):
    got = lib.load_config(str(file), [override])
    for part in key.split("."):
        got = got[part]
    assert got == value
    assert type(got) is type(value)
    if isinstance(value, tuple):
        assert [type(one) for one in got] == [type(one) for one in value]


def test_last_override_of_a_key_wins_and_files_are_read_anew(file):
    assert lib.load_config(str(file), ["--config.seed=1", "--config.seed=2"]).seed == 2
    assert lib.load_config(str(file)).seed == 0


def test_loaded_config_is_locked(file):
    with pytest.raises(AttributeError):
        lib.load_config(str(file)).optim.lrr = 1.0


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("--config.sede=1", r"unknown key config\.sede; did you mean 'seed'\?"),
        ("--config.optim.lrr=1", r"unknown key config\.optim\.lrr; did you mean 'lr'\?"),
        ("--config.optim.schedule.warm_up=1", r"schedule\.warm_up; did you mean 'warmup'\?"),
        ("--config.optim.zzz=1", r"unknown key config\.optim\.zzz; known: lr, schedule"),
        ("--config.seed.x=1", r"config\.seed is a value, not a section"),
        ("--config.optim=1", r"config\.optim is a section; set one of its keys: lr, schedule"),
        ("--config.seed=1e3", r"config\.seed: expected int, got '1e3'"),
        ("--config.seed", r"config\.seed: expected int, got no value"),
        ("--config.optim.lr=fast", r"config\.optim\.lr: expected float, got 'fast'"),
        ("--config.data.resident=maybe", r"config\.data\.resident: expected bool, got 'maybe'"),
        ("--config.data.rungs=(1, 'a')", r"config\.data\.rungs\[1\]: expected int, got 'a'"),
        ("--config.nothing=1", r"config\.nothing is a None: it is set in the file"),
        ("--lr=1", r"unknown argument --lr=1; a setting is written --config\.key=value"),
    ],
)
def test_override_that_does_not_fit_is_one_line(file, override, message):
    with pytest.raises(UserError, match=message) as caught:
        lib.load_config(str(file), [override])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("def get_config(:\n", r"small\.py line 1: "),
        ("import no_such_module\n", r"small\.py line 1: ModuleNotFoundError: .*no_such_module"),
        ("\0", r"small\.py: source code .*null bytes"),
        ("x = 1\n", r"small\.py has no function get_config"),
        ("\ndef get_config():\n    return 1 / 0\n", r"small\.py line 3: ZeroDivisionError"),
        ("def get_config():\n    return {}\n", "must return a ConfigDict, not dict"),
    ],
)
def test_file_with_a_mistake_names_file_and_line(file, content, message):
    file.write_text(content)
    with pytest.raises(UserError, match=message) as caught:
        lib.load_config(str(file))
    assert "\n" not in str(caught.value)


def test_missing_file_variant_and_package_config_name_the_nearest(file):
    with pytest.raises(UserError, match=r"unknown variant 'papr' .*; did you mean 'paper'\?"):
        lib.load_config(f"{file}:papr")
    with pytest.raises(UserError, match=r"smal\.py does not exist; did you mean '.*small\.py'\?"):
        lib.load_config(str(file.with_name("smal.py")))
    with pytest.raises(UserError, match=r"no config 'vcsa' in the package; .*mean 'vccsa'\?"):
        lib.load_config("vcsa")


def test_package_config_is_found_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert lib.load_config("vccsa").system == "vccsa"
    assert "paper" in lib.variants("vccsa:demo")


@pytest.mark.smoke
def test_build_makes_modules_with_tuples_and_nested_parts():
    layer = lib.build(Layer, GOOD, vocab=9)
    assert (layer.width, layer.scale, layer.kind, layer.vocab) == (4, 1.0, "hf", 9)
    assert layer.inner == Inner(2, (1.0, 0.5))
    assert layer.pair == (3, "x")
    assert dict(layer.weights) == {"fear": 2.0}
    assert type(layer.scale) is float
    assert lib.build(Layer, GOOD | {"scale": None}, vocab=9).scale is None
    assert lib.build(Inner, {"size": 1}) == Inner(1, ())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"widht": 1}, r"unknown key config\.model\.widht; did you mean 'width'\?"),
        ({"name": "x"}, r"unknown key config\.model\.name"),
        ({"parent": None}, r"unknown key config\.model\.parent"),
        ({"vocab": 3}, r"config\.model\.vocab is set by the program; remove it"),
        ({"width": 4.0}, r"config\.model\.width: expected int, got 4\.0"),
        ({"width": True}, r"config\.model\.width: expected int, got True"),
        ({"flag": 1}, r"config\.model\.flag: expected bool, got 1"),
        ({"scale": "1"}, r"config\.model\.scale: expected float, got '1'"),
        ({"kind": "troch"}, r"expected one of 'hf', 'torch', got 'troch'; did you mean 'torch'\?"),
        ({"inner": 3}, r"config\.model\.inner: expected a section \(Inner\), got 3"),
        ({"inner": {}}, r"missing key config\.model\.inner\.size, int"),
        ({"inner": {"size": 1, "rate": 1}}, r"config\.model\.inner\.rate; did you mean 'rates'\?"),
        ({"inner": {"size": 1, "rates": [0, "x"]}}, r"rates\[1\]: expected float, got 'x'"),
        ({"pair": [3]}, r"config\.model\.pair: expected tuple"),
        ({"weights": {"fear": "2"}}, r"config\.model\.weights\.fear: expected float, got '2'"),
    ],
)
def test_build_refuses_what_the_fields_do_not_allow(change, message):
    with pytest.raises(UserError, match=message):
        lib.build(Layer, GOOD | change, vocab=9)


def test_build_names_a_missing_key_and_its_type():
    section = {key: value for key, value in GOOD.items() if key != "width"}
    with pytest.raises(UserError, match=r"missing key config\.model\.width, int"):
        lib.build(Layer, section, vocab=9)


def test_to_plain_gives_what_json_gives_back(file):
    plain = lib.to_plain(lib.load_config(str(file), ["--config.init_from=runs/a"]))
    assert plain["data"] == {"root": "demo", "rungs": [8, 16], "rates": [0.5], "resident": True}
    assert (plain["init_from"], plain["nothing"]) == ("runs/a", None)
    with pytest.raises(UserError, match=r"config\.a\.b: a set cannot be stored"):
        lib.to_plain({"a": {"b": {1}}})


def test_differences_name_keys_and_both_values(file):
    old = lib.to_plain(lib.load_config(f"{file}:paper"))
    new = lib.load_config(str(file), ["--config.data.rungs=8,16"])
    assert lib.differences(old, new) == ["optim.lr: 0.0001 here, 5e-05 in the run"]
    assert lib.differences(old, old) == []
    assert lib.differences({"a": {"b": 1}}, {"a": {"c": "x"}}) == [
        "a.b: not set here, 1 in the run",
        'a.c: "x" here, not set in the run',
    ]
