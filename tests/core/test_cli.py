"""What all doors share."""

import subprocess
import sys

import pytest

from jaxvsa.core.cli import door_parser, run_door, split_config_flags
from jaxvsa.core.errors import UserError


def leave(main, capsys):
    """Exit code and stderr of a door."""
    with pytest.raises(SystemExit) as caught:
        run_door(main, ["a"])
    return caught.value.code, capsys.readouterr().err


def raising(error):
    def main(argv):
        raise error

    return main


@pytest.mark.smoke
def test_run_door_hands_on_arguments_and_exit_code(capsys):
    seen = []
    assert leave(seen.append, capsys) == (0, "")
    assert seen == [["a"]]
    assert leave(lambda argv: 1, capsys) == (1, "")


def test_run_door_says_user_errors_in_one_line(capsys):
    assert leave(raising(UserError("no file\n  a.json")), capsys) == (2, "error: no file a.json\n")
    assert leave(raising(KeyboardInterrupt()), capsys) == (130, "interrupted\n")


def test_run_door_lets_our_own_mistakes_through():
    with pytest.raises(ValueError, match="ours"):
        run_door(raising(ValueError("ours")), [])


def test_run_door_is_quiet_when_the_reader_leaves():
    code = (
        "from jaxvsa.core.cli import run_door\n"
        "def main(argv):\n"
        "    while True: print('x' * 1000)\n"
        "run_door(main, [])\n"
    )
    door = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    with door:
        door.stdout.readline()
        door.stdout.close()
        assert door.stderr.read() == b""
    assert door.returncode == 141


def parser():
    made = door_parser("train", "Trains.", "python -m jaxvsa.train --config configs/vccsa.py")
    made.add_argument("--run", required=True)
    made.add_argument("--steps", type=int)
    return made


def test_parser_help_shows_the_example_and_exits_0(capsys):
    with pytest.raises(SystemExit) as caught:
        parser().parse_args(["--help"])
    text = capsys.readouterr().out
    assert caught.value.code == 0
    assert "example:\n  python -m jaxvsa.train --config configs/vccsa.py" in text
    assert text.startswith("usage: python -m jaxvsa.train ")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--rnu", "x"], "error: unknown flag --rnu; did you mean '--run'?; see "),
        (["--run=x", "--step=3"], "error: unknown flag --step; did you mean '--steps'?"),
        (["--run", "x", "--zzzz"], "error: unknown flag --zzzz; see python -m jaxvsa.train --help"),
        ([], "error: the following arguments are required: --run"),
        (["--run", "x", "--steps", "y"], "error: argument --steps: invalid int value: 'y'"),
    ],
)
def test_parser_says_mistakes_in_one_line(argv, message, capsys):
    with pytest.raises(SystemExit) as caught:
        parser().parse_args(argv)
    text = capsys.readouterr().err
    assert caught.value.code == 2
    assert text.startswith(message)
    assert text.count("\n") == 1


def test_parser_takes_a_value_with_dashes_and_spaces_for_a_value():
    assert parser().parse_args(["--run", "--a b"]).run == "--a b"
    assert parser().parse_args(["--run=--x"]).run == "--x"


def test_subcommands_know_their_own_flags(capsys):
    made = door_parser("prepare", "Prepares.", "python -m jaxvsa.prepare csmv --root CSMV/")
    made.add_subparsers(dest="source").add_parser("csmv").add_argument("--root")
    assert made.parse_args(["csmv", "--root", "x"]).root == "x"
    with pytest.raises(SystemExit) as caught:
        made.parse_args(["csmv", "--rot", "x"])
    assert caught.value.code == 2
    assert "unknown flag --rot; did you mean '--root'?" in capsys.readouterr().err


@pytest.mark.smoke
@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["--run", "x"], (["--run", "x"], None, [])),
        (["--config", "a.py:b", "--run", "x"], (["--run", "x"], "a.py:b", [])),
        (["--run", "x", "--config=a.py"], (["--run", "x"], "a.py", [])),
        (["--config.a.b=1", "--config", "c"], ([], "c", ["--config.a.b=1"])),
        (["--config.a.b", "1", "rest"], (["rest"], None, ["--config.a.b=1"])),
        (["--config.a", "-1"], ([], None, ["--config.a=-1"])),
        (["--config.a", "--run", "x"], (["--run", "x"], None, ["--config.a"])),
        (["--config.a=x=y", "--config.a="], ([], None, ["--config.a=x=y", "--config.a="])),
        (["--configs", "x"], (["--configs", "x"], None, [])),
    ],
)
def test_split_config_flags_separates_three_parts(argv, expected):
    assert split_config_flags(argv) == expected


@pytest.mark.parametrize("argv", [["--config"], ["--config="], ["--config", "--run"]])
def test_split_config_flags_refuses_config_without_a_value(argv):
    with pytest.raises(UserError, match="--config needs a value"):
        split_config_flags(argv)


def test_split_config_flags_refuses_two_configs():
    with pytest.raises(UserError, match="--config is given 2 times: a, b"):
        split_config_flags(["--config", "a", "--config=b"])
