"""Measures, progress and files written whole."""

import io
import sys
import time
import types

import pytest
import tqdm.auto

from nkdlib.tasks.executors import InProcess, gather
from nkdlib.tasks.measure import Stopwatch
from nkdlib.tasks.places import write_atomically
from nkdlib.tasks.progress import Progress, progress

module = sys.modules[Progress.__module__]


class Terminal(io.StringIO):
    """A file that says it is a terminal."""

    def isatty(self):
        return True


@pytest.fixture
def clock(monkeypatch):
    """Seconds that the test sets: a list of one number."""
    now = [0.0]
    monkeypatch.setattr(module, "time", types.SimpleNamespace(monotonic=lambda: now[0]))
    return now


def test_a_stopwatch_reads_wall_cpu_and_device_seconds():
    with Stopwatch() as watch:
        assert sum(range(300_000))
    assert watch.wall_s > 0 and watch.device_s == watch.cpu_s > 0


def test_progress_says_one_line_at_the_end_in_a_log(capsys):
    assert list(progress(range(3), "counting")) == [0, 1, 2]
    with pytest.raises(ZeroDivisionError):
        for _ in progress(iter("ab"), "dividing", unit="letter"):
            1 / 0  # noqa: B018
    with Progress("outer", 1) as outer:
        assert list(progress("ab", "inner")) == ["a", "b"]
        outer.advance()
    assert capsys.readouterr().out.splitlines() == [
        "counting: 3/3 it, done after 00:00",
        "dividing: 0 letter, stopped after 00:00",
        "outer: 1/1 it, done after 00:00",
    ]


def test_a_long_run_says_a_line_a_minute_with_the_time_left(clock, capsys):
    with Progress("outer", 1), Progress("training", 100, "steps") as steps:
        steps.note("loss 0.5")
        for _ in range(10):
            clock[0] += 20
            steps.advance(5)
    assert capsys.readouterr().out.splitlines() == [
        "training: 15/100 steps, 05:40 left, loss 0.5",
        "training: 30/100 steps, 04:40 left, loss 0.5",
        "training: 45/100 steps, 03:40 left, loss 0.5",
        "training: 50/100 steps, done after 03:20",
        "outer: 0/1 it, done after 03:20",
    ]


def test_the_time_left_follows_from_what_tasks_took_before(clock, capsys):
    def work():
        clock[0] += next(seconds)

    seconds = iter([100, 10, 10])  # on a machine half as fast as before
    gather([("long", work), ("short", work), ("short", work)], InProcess(), "working", [50, 5, 5], done=7)
    assert capsys.readouterr().out.splitlines() == [
        "working: 8/10 tasks, 00:20 left",
        "working: 10/10 tasks, done after 02:00",
    ]


def test_progress_is_shown_where_the_runner_says(tmp_path, monkeypatch, capsys):
    (tmp_path / "log").touch()
    monkeypatch.setenv("NKD_PROGRESS", str(tmp_path / "log"))
    assert list(progress("abc", "spelling")) == ["a", "b", "c"]
    assert (tmp_path / "log").read_text() == "spelling: 3/3 it, done after 00:00\n" and capsys.readouterr().out == ""


def test_a_terminal_shows_a_bar_with_the_time_left(monkeypatch, capsys):
    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setattr(tqdm.auto, "tqdm", tqdm.tqdm)
    monkeypatch.setattr(module, "MINUTE", 0.0)
    with Progress("outer", 2) as outer, Progress("inner") as inner:
        outer.note("soon")
        outer.advance()
        inner.advance()
        time.sleep(0.11)
        outer.advance()
    drawn = sys.stderr.getvalue()
    assert "outer: 100%" in drawn and "2/2" in drawn and "00:00 left, soon" in drawn and "inner: 0it" in drawn
    assert capsys.readouterr().out == ""


def test_writing_leaves_whole_files_only(tmp_path, monkeypatch):
    path = write_atomically(tmp_path / "new" / "a.txt", b"old")
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError("disk")))
    with pytest.raises(OSError, match="disk"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old" and [p.name for p in path.parent.iterdir()] == ["a.txt"]
