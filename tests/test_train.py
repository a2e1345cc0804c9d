"""The door `python -m jaxvsa.train`: what it says, and its exit codes."""

from __future__ import annotations

from pathlib import Path

import pytest

from jaxvsa.core.cli import run_door
from jaxvsa.train import main

pytestmark = pytest.mark.smoke


def leave(*argv: str) -> int:
    """Exit code of the door."""
    with pytest.raises(SystemExit) as caught:
        run_door(main, argv)
    return int(caught.value.code or 0)


def test_help_shows_one_example(capsys: pytest.CaptureFixture[str]) -> None:
    assert leave("--help") == 0
    assert "--config configs/vccsa.py:paper --config.data.root=" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ((), "--config is missing"),
        (("--config", "vccsa:papr"), "unknown variant 'papr'"),
        (("--config", "vcsa"), "did you mean 'vccsa'"),
        (("--config", "configs/none.py"), "configs/none.py does not exist"),
        (("--config", "vccsa", "--config.model.num_scale=3"), "did you mean 'num_scales'"),
        (("--config", "vccsa", "--config.model.consensus.widht=3"), "did you mean 'width'"),
        (("--config", "vccsa", "--config.optim.lr=fast"), "config.optim.lr: expected float"),
        (("--config", "vccsa", "--dry-runn"), "did you mean '--dry-run'"),
        (("--config", "vccsa:paper"), "config.data.root is empty"),
        (("--config", "vccsa:paper", "--config.data.root=nowhere"), "nowhere is not prepared"),
    ],
)
def test_mistake_is_one_line_and_exit_code_2(
    argv: tuple[str, ...],
    message: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert leave(*argv) == 2
    found = capsys.readouterr().err
    assert found.startswith("error: ") and found.count("\n") == 1
    assert message in found
    assert not list(tmp_path.iterdir())
