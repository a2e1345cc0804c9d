"""metrics.jsonl, optional services, progress."""

import io
import sys
import types

import pytest
from rich.console import Console

from jaxvsa.core import distributed
from jaxvsa.core.errors import UserError
from jaxvsa.core.files import read_jsonl
from jaxvsa.training.log import MetricsLog, Progress, clock_time

pytestmark = pytest.mark.smoke


def test_metrics_log_resumes_without_doubled_rows(tmp_path):
    log = MetricsLog(tmp_path)
    for step in (10, 20, 30):
        log.write(step, {"train/loss": step / 10})
    log.close()
    resumed = MetricsLog(tmp_path)
    resumed.cut_after(20)
    resumed.write(30, {"train/loss": 4.0, "dev/opinion/micro_f1": 0.5})
    resumed.close()
    rows = read_jsonl(tmp_path / "metrics.jsonl")
    assert [row["step"] for row in rows] == [10, 20, 30]
    assert [row["train/loss"] for row in rows] == [1.0, 2.0, 4.0]
    assert rows[-1]["dev/opinion/micro_f1"] == 0.5
    assert all(row["time_s"] >= 0 for row in rows)


def test_metrics_log_of_another_process_writes_nothing(tmp_path, monkeypatch):
    MetricsLog(tmp_path).write(1, {"train/loss": 1.0})
    before = (tmp_path / "metrics.jsonl").read_bytes()
    monkeypatch.setattr(distributed, "is_first", lambda: False)
    log = MetricsLog(tmp_path)
    log.cut_after(0)
    log.write(1, {"train/loss": 2.0})
    log.close()
    assert (tmp_path / "metrics.jsonl").read_bytes() == before


def test_metrics_log_survives_a_half_written_row(tmp_path):
    log = MetricsLog(tmp_path)
    log.write(1, {"train/loss": 1.0})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 2, "train/lo')
    resumed = MetricsLog(tmp_path)
    resumed.cut_after(1)
    resumed.write(2, {"train/loss": 2.0})
    assert [row["step"] for row in read_jsonl(tmp_path / "metrics.jsonl")] == [1, 2]


class _Writer:
    """Stands for tensorboardX.SummaryWriter and for a run of wandb."""

    def __init__(self, *args, **kwargs):
        self.calls = [("open", args, kwargs)]

    def add_scalar(self, *args):
        self.calls.append(args)

    def define_metric(self, *args, **kwargs):
        self.calls.append((args, kwargs))

    def log(self, row):
        self.calls.append(row)

    def close(self):
        self.calls.append("closed")

    finish = close


def test_metrics_log_sends_rows_to_the_services(tmp_path, monkeypatch):
    opened = []

    def open_writer(*args, **kwargs):
        opened.append(_Writer(*args, **kwargs))
        return opened[-1]

    for package, name in (("tensorboardX", "SummaryWriter"), ("wandb", "init")):
        module = types.SimpleNamespace(**{name: open_writer})
        monkeypatch.setitem(sys.modules, package, module)
    log = MetricsLog(tmp_path, tensorboard=True, wandb="csmv")
    log.cut_after(4)
    assert not opened
    log.write(5, {"train/loss": 0.5})
    log.close()
    tensorboard, wandb = opened
    assert tensorboard.calls[0][2] == {"purge_step": 5}
    assert tensorboard.calls[1:] == [("train/loss", 0.5, 5), "closed"]
    assert wandb.calls[0][2]["project"] == "csmv" and wandb.calls[0][2]["resume"] == "allow"
    assert wandb.calls[-2:] == [{"step": 5, "train/loss": 0.5}, "closed"]


@pytest.mark.parametrize("package", ["tensorboardX", "wandb"])
def test_metrics_log_names_the_extra_that_is_missing(tmp_path, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    options = {"tensorboard": True} if package == "tensorboardX" else {"wandb": "csmv"}
    with pytest.raises(UserError, match=rf"{package}.*pip install 'jaxvsa\[logging\]'"):
        MetricsLog(tmp_path, **options)


class _Clock:
    now_s = 100.0

    def __call__(self):
        return self.now_s


def _plain(total, start=0, enabled=True):
    clock, file = _Clock(), io.StringIO()
    console = Console(file=file, force_terminal=False)
    return Progress(total, start, enabled, console, clock), clock, file


def test_progress_rate_excludes_the_first_update():
    progress, clock, _ = _plain(100)
    clock.now_s += 60.0  # compilation
    progress.update(1, 16, 1.0)
    assert progress.samples_per_s is None
    clock.now_s += 2.0
    progress.update(3, 32, 0.9)
    assert progress.samples_per_s == 16.0


def test_progress_rate_is_recent_and_forgets_evaluations():
    progress, clock, _ = _plain(1000)
    for step in range(1, 60):  # 1 step/s, then 2 steps/s for longer than the window
        clock.now_s += 1.0
        progress.update(step, 10, 1.0)
    assert progress.samples_per_s == pytest.approx(10.0)
    for step in range(60, 140):
        clock.now_s += 0.5
        progress.update(step, 10, 1.0)
    assert progress.samples_per_s == pytest.approx(20.0)
    clock.now_s += 500.0
    progress.restart_window()
    progress.update(141, 10, 1.0)
    clock.now_s += 1.0
    progress.update(142, 10, 1.0)
    assert progress.samples_per_s == pytest.approx(10.0)


def test_progress_prints_a_line_every_ten_seconds_and_at_the_end():
    progress, clock, file = _plain(40)
    with progress:
        for step in range(1, 41):
            clock.now_s += 1.0
            progress.update(step, 16, 1 / step)
    assert file.getvalue().splitlines() == [
        "step 10/40  loss 0.1000  16.0 samples/s  0:00:30 left",
        "step 20/40  loss 0.0500  16.0 samples/s  0:00:20 left",
        "step 30/40  loss 0.0333  16.0 samples/s  0:00:10 left",
        "step 40/40  loss 0.0250  16.0 samples/s  0:00:00 left",
    ]


def test_progress_prints_where_an_early_end_came():
    progress, clock, file = _plain(40)
    with progress:
        clock.now_s += 1.0
        progress.update(1, 16, 0.5)
    assert file.getvalue() == "step 1/40  loss 0.5000\n"


def test_progress_can_be_silent():
    progress, clock, file = _plain(2, enabled=False)
    with progress:
        for step in (1, 2):
            clock.now_s += 20.0
            progress.update(step, 4, 0.5)
        progress.say("nothing")
    assert file.getvalue() == "" and progress.samples_per_s == pytest.approx(0.2)


@pytest.mark.parametrize("terminal", [True, False])
def test_progress_on_a_quiet_console_draws_nothing(terminal):
    file = io.StringIO()
    console = Console(file=file, force_terminal=terminal, quiet=True)
    with Progress(2, 0, True, console, _Clock()) as progress:
        progress.update(1, 8, 0.75)
        progress.say("nothing")
        assert progress._bar is None
    assert file.getvalue() == ""


def test_progress_draws_a_bar_in_a_terminal():
    file = io.StringIO()
    clock = _Clock()
    console = Console(file=file, force_terminal=True, width=100, color_system=None)
    with Progress(10, 4, True, console, clock) as progress:
        progress.update(5, 8, 0.75)
        clock.now_s += 1.0
        progress.update(6, 8, 0.5)
        progress.say("dev/opinion/micro_f1 [70.0]")
    last = file.getvalue().split("\r")[-1]
    assert "dev/opinion/micro_f1 [70.0]\n" in file.getvalue()
    assert "step 6/10" in last and "loss 0.5000  8.0 samples/s  0:00:04 left" in last


def test_clock_time_by_hand():
    assert [clock_time(s) for s in (0, 59.6, 3725)] == ["0:00:00", "0:01:00", "1:02:05"]
