"""Notebooks in JupyterLab as a new user runs them: `make lab` in a clone, "Run All Cells" in a real browser.

    make trials [TRIALS=lab]        or, in tests/: python -m trials.lab [NOTEBOOK...]

Screenshots, for eyes, and what was measured go to runs/trials/.
"""

import argparse
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import sync_playwright
from trials.record import ROOT, TRIALS, Record, clone, cpu_seconds, left, same_observations

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
CELLS = """() => jupyterapp.shell.currentWidget.content.widgets.map(cell => ({
    waits: cell.model.type == "code" && cell.model.executionState == "running",
    bar: !!cell.node.querySelector(".widget-hprogress"), source: cell.model.sharedModel.getSource(),
    type: cell.model.type, outputs: cell.model.type == "code" ? cell.model.outputs.toJSON() : []}))"""
WRONG = {  # what a user may get wrong in 00's parameters -> what the error must name
    'data: str = "fashon-mnist"': "fashon-mnist",
    "share: float = 0.0": "must be a share above 0",
    'device: str = "cuda"': "NVIDIA",
    'executor: str = "ray-cluster"': "ray-cluster",
    "images: int = 0": "must be 1 to",
    'profile: str = "small"': "small",
}


class Lab:
    """JupyterLab on a clone, in a browser; `page` is playwright's."""

    def __init__(self, page, url: str, server: int):
        self.page, self.url, self.server, self.said = page, url, server, []
        page.on("pageerror", lambda error: self.said.append(str(error)))
        page.on("console", lambda message: self.said.append(message.text) if message.type == "error" else None)

    def open(self, path: str) -> None:
        """Open a notebook with a new kernel and nothing else."""
        if self.page.url != "about:blank":
            self.page.evaluate("jupyterapp.serviceManager.sessions.shutdownAll()")
        self.page.goto(f"{self.url}/lab/tree/{path}?token=x&reset")
        self.page.wait_for_selector(".jp-Notebook", timeout=60_000)
        self.page.wait_for_function("""async () => {
            const session = jupyterapp.shell.currentWidget?.sessionContext;
            await session?.ready;
            return session?.session?.kernel?.status == "idle"}""")

    def cells(self) -> list[dict]:
        """Every cell: whether it `waits` for its end, shows a `bar`; its `source`, `type` and `outputs`."""
        return self.page.evaluate(CELLS)

    def change(self, old: str, new: str) -> None:
        """Write `new` in place of `old` in the cell of the parameters."""
        change = "([old, text]) => {const cell = jupyterapp.shell.currentWidget.content.widgets[1].model.sharedModel;"
        change += "cell.setSource(cell.getSource().replace(old, text))}"
        assert old in self.cells()[1]["source"], old
        self.page.evaluate(change, [old, new])

    def run_all(self, limit: float = 600, shots: Path | None = None) -> dict:
        """Run all cells; `seconds`, `cpu_seconds`, `bars` seen, the longest `silence` without a bar or new
        cell, and the `silent` cell; whether it was `done` in the limit.

        shots: the screenshots' beginning: one of the first bar and one every 15 s.
        """
        cpu, started = cpu_seconds(self.server), time.monotonic()
        last, changed, silence, bars, taken = 0, 0.0, (0.0, 0), set(), 0
        self.page.click(".lm-MenuBar-itemLabel:text-is('Run')")
        self.page.click(".lm-Menu-itemLabel:text-is('Run All Cells')")
        while True:
            now = time.monotonic() - started
            cells = self.cells()
            waits = [place for place, cell in enumerate(cells) if cell["waits"]]
            if not waits or now > limit:
                break
            if waits[0] != last or cells[waits[0]]["bar"]:
                last, changed = waits[0], now
            silence = max(silence, (now - changed, waits[0]))
            if cells[waits[0]]["bar"]:
                if shots and (waits[0] not in bars or now > 15 * (taken + 1)):
                    self.show(waits[0], f"{shots}-bar-{taken}.png")
                    taken += 1
                bars.add(waits[0])
            self.page.wait_for_timeout(150)
        return {
            "seconds": now,
            "cpu_seconds": cpu_seconds(self.server) - cpu,
            "bars": len(bars),
            "silence": silence[0],
            "silent": silence[1],
            "done": not waits,
        }

    def show(self, place: int, shot: Path | str) -> None:
        """Scroll to the end of a cell, which JupyterLab draws only when it is in sight, and take a screenshot."""
        self.page.evaluate(f"jupyterapp.shell.currentWidget.content.scrollToItem({place}, 'end')")
        self.page.screenshot(path=shot)

    def outputs(self, kind: str) -> list[dict]:
        """Outputs of a kind: `error`, `stream`, `execute_result`, `display_data`."""
        return [one for cell in self.cells() for one in cell["outputs"] if one["output_type"] == kind]

    def photograph(self, shots: Path) -> None:
        """The whole notebook, page by page."""
        scroll = "document.querySelector('.jp-WindowedPanel-outer')"
        self.page.evaluate(f"{scroll}.scrollTop = 0")
        for number in range(40):
            self.page.wait_for_timeout(400)
            self.page.screenshot(path=f"{shots}-page-{number:02}.png")
            before = self.page.evaluate(f"{scroll}.scrollTop")
            if self.page.evaluate(f"{scroll}.scrollTop += {scroll}.clientHeight - 60, {scroll}.scrollTop") == before:
                break


def listening(port: int) -> bool:
    """Whether a server answers at this port."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@contextmanager
def lab(checkout: Path, *arguments: str):
    """Start `make lab` in a checkout whose environment is ready, and a browser; yields a Lab.

    The user is new: their home is the empty folder `home` beside the checkout.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = f"--no-browser --allow-root --port={port} --ServerApp.token=x --LabApp.expose_app_in_browser=True"
    command = ["make", "-o", ".venv/.ready", "lab", f"ARGS={' '.join([options, *arguments])}"]
    (checkout.parent / "home").mkdir()
    with (checkout.parent / "lab.log").open("w") as log, sync_playwright() as playwright:
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("JUPYTER", "XDG"))}
        environment |= {"HOME": str(checkout.parent / "home"), "PYTHONPATH": str(checkout)}
        server = subprocess.Popen(
            command, cwd=checkout, env=environment, stdout=log, stderr=log, start_new_session=True
        )
        try:
            browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
            while not listening(port):
                assert server.poll() is None, Path(log.name).read_text()
                time.sleep(0.1)
            yield Lab(
                browser.new_page(viewport={"width": 1400, "height": 1000}), f"http://127.0.0.1:{port}", server.pid
            )
            browser.close()
        finally:
            os.killpg(server.pid, signal.SIGKILL)  # its kernels end with it
            server.wait()


def main() -> None:
    """Run the notebooks, wrong parameters, and `make reproduce` on what they left."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("notebooks", nargs="*")
    names = parser.parse_args().notebooks or sorted(path.stem for path in (ROOT / "notebooks").glob("*.ipynb"))
    record = Record("lab", "In JupyterLab")
    TRIALS.mkdir(parents=True, exist_ok=True)
    with clone() as checkout:
        with lab(checkout) as user:
            with record("`make lab`", "the start page opens") as row:
                started = time.monotonic()
                user.page.goto(f"{user.url}/?token=x")
                user.page.wait_for_selector(".jp-Notebook h1", timeout=60_000)
                title = user.page.inner_text(".jp-Notebook h1 >> nth=0").strip("¶")
                row.end(title == "Start here", f"shows {title!r} after {time.monotonic() - started:.0f} s")
                user.page.screenshot(path=TRIALS / "start.png")
            for name in names:
                with record(f"all cells of {name}", "no error and no warning, in under two minutes, with bars") as row:
                    user.open(f"{name}.ipynb")
                    took = user.run_all(shots=TRIALS / name)
                    errors = [error["evalue"] for error in user.outputs("error")]
                    errors += [text["text"] for text in user.outputs("stream") if text["name"] == "stderr"]
                    user.photograph(TRIALS / name)
                    row.seconds, row.cpu_seconds = took["seconds"], took["cpu_seconds"]
                    seen = f"bars in {took['bars']} cells; {took['silence']:.0f} s at most without one"
                    seen += f" (cell {took['silent']})"
                    row.end(took["done"] and not errors and took["seconds"] < 120, "; ".join([*errors, seen]))
            user.open("00_start_here.ipynb")
            user.change("steps: int = 50", "steps: int = 7")
            with record("00_start_here with `steps = 7`", "the table says so") as row:
                user.run_all()
                said = any("7 steps more" in str(one["data"]) for one in user.outputs("execute_result"))
                row.end(said and not user.outputs("error"), "the table says so" if said else "it does not")
            for wrong, named in WRONG.items():
                user.open("00_start_here.ipynb")
                (old,) = [line for line in user.cells()[1]["source"].splitlines() if line.startswith(wrong[:5])]
                user.change(old, wrong)
                with record(f"00_start_here with `{wrong}`", "an error that names it") as row:
                    user.run_all()
                    errors = [f"{error['ename']}: {error['evalue']}" for error in user.outputs("error")]
                    row.end(len(errors) == 1 and named in errors[0], "; ".join(errors) or "no error")
                    failed = [any("ename" in one for one in cell["outputs"]) for cell in user.cells()]
                    user.show(failed.index(True), TRIALS / f"wrong-{wrong[:5].strip(': ')}.png")
            with record("the browser's console", "silent") as row:
                said = [text for text in user.said if "Canceled future" not in text]  # of kernels that `open` ended
                row.end(not said, "; ".join(dict.fromkeys(said)) or "silent")
        with record("what all this wrote", "`runs/`, what JupyterLab keeps, and notebooks it saved") as row:
            home = {path.relative_to(checkout.parent).parts[1] for path in (checkout.parent / "home").rglob("*")}
            written = [*left(checkout), *(f"~/{name}" for name in sorted(home))]
            usual = {"runs/", "notebooks/.ipynb_checkpoints/", "~/.jupyter", "~/.ipython", "~/.local"}
            usual |= {"~/.cache", "~/.config", "~/.npm"}  # of matplotlib, and of npm where JupyterLab finds it
            usual |= {f"notebooks/{name}.ipynb" for name in names}  # JupyterLab saves them every two minutes
            row.end({*written} <= usual, ", ".join(written))
        same = [name for name in names if name != "03_student_search"]  # which chooses by milliseconds of the moment
        with record(f"then `make reproduce` of {len(same)} of them there", "the same observations") as row:
            row.end(*same_observations(checkout, same))
    sys.exit(not record.write())


if __name__ == "__main__":
    main()
