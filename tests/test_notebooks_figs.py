"""The notebooks of FiGS and of the ImageNet network at smoke, so that two workers share the runs."""

from test_notebooks import ELSEWHERE, NOTEBOOKS, each, run_at_smoke


@each(path for path in NOTEBOOKS if path.stem.startswith(ELSEWHERE))
def test_a_notebook_runs_at_smoke_and_is_then_up_to_date(path, reproduced, monkeypatch, capfd):
    run_at_smoke(path, reproduced, monkeypatch, capfd)
