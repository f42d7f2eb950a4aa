"""Profiles, measures, progress and provenance."""

import json
import os
import sys

import pytest
import torch
from joblib import cpu_count

from nkdlib.compendium.provenance import provenance
from nkdlib.tasks.measure import Stopwatch, peak_memory_mb
from nkdlib.tasks.places import write_atomically
from nkdlib.tasks.progress import Progress, progress


def test_a_stopwatch_reads_wall_cpu_and_device_seconds():
    with Stopwatch() as watch:
        assert sum(range(300_000))
    assert watch.wall_s > 0 and watch.device_s == watch.cpu_s > 0


def test_memory_is_in_mebibytes():
    assert 50 < peak_memory_mb() < 50_000


def test_progress_says_one_line_in_a_log(capsys):
    assert list(progress(range(3), "counting")) == [0, 1, 2]
    with pytest.raises(ZeroDivisionError):
        for _ in progress(iter("ab"), "dividing", unit="letter"):
            1 / 0  # noqa: B018
    assert capsys.readouterr().out.splitlines() == [
        "counting: 3/3 it, done after 00:00",
        "dividing: 0 letter, stopped after 00:00",
    ]


def test_progress_is_drawn_where_the_runner_says(tmp_path, monkeypatch, capsys):
    (tmp_path / "terminal").touch()
    monkeypatch.setenv("NKD_PROGRESS", str(tmp_path / "terminal"))
    assert list(progress("abc", "spelling")) == ["a", "b", "c"]
    assert "spelling:" in (tmp_path / "terminal").read_text() and capsys.readouterr().out == ""


def test_progress_within_progress_stands_behind_the_bar_of_a_notebooks_cell(monkeypatch, capsys):
    monkeypatch.setattr(sys.modules[Progress.__module__], "_cell", lambda: 1)
    with Progress("outer", 2) as outer, Progress("inner", 3) as inner:
        inner.advance()
        inner.note("soon")
        outer.advance()
    out, drawn = capsys.readouterr()
    assert out == "" and "outer:" in drawn and "inner: 1/3" in drawn and "inner:   0%" not in drawn
    left = progress("abc", "left open by an error")
    next(left)
    monkeypatch.setattr(sys.modules[Progress.__module__], "_cell", lambda: 2)
    assert list(progress("ab", "the next cell")) == ["a", "b"]
    assert "the next cell:" in capsys.readouterr().err
    left.close()


def test_provenance_names_code_data_packages_and_hardware_and_no_one():
    record = provenance({"seeds": 5, "data": f"{os.sep}home{os.sep}someone{os.sep}photos"}, "d1", {"wall": 1.23456})
    text = json.dumps(record)
    assert record["parameters"] == {"seeds": 5, "data": "photos"}
    assert record["seeds"] == 5 and record["data"] == "d1" and record["seconds"] == {"wall": 1.235}
    assert record["packages"]["torch"] == torch.__version__.split("+")[0]
    assert record["hardware"]["cores"] == cpu_count() and record["python"] in sys.version
    assert len(record["commit"]) == 40 and isinstance(record["dirty"], bool)
    for private in (os.uname().nodename, os.path.expanduser("~") + os.sep, "someone"):
        assert private not in text


def test_writing_leaves_whole_files_only(tmp_path, monkeypatch):
    path = write_atomically(tmp_path / "new" / "a.txt", b"old")
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError("disk")))
    with pytest.raises(OSError, match="disk"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old" and [p.name for p in path.parent.iterdir()] == ["a.txt"]
