"""What users do to a run without meaning to: kill it, fill the disk, damage what it keeps, take the network away.

    make trials [TRIALS=robustness]     or, in tests/: python -m trials.robustness [killed disk cache data places]

Every trial works on clones in a folder with spaces in its name; it asks for Linux and root (mount, unshare).
"""

import gzip
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
from PIL import Image
from trials.record import Record, Row, clone, left, make

SEED, KILLS = 0, 10
NOTEBOOK = "01_local_replacement"
SECONDS = {"x"}  # units of metrics that are ratios of seconds, which no two runs share


def start(checkout: Path, target: str = "reproduce", **more: object) -> subprocess.Popen:
    """Start the notebook at smoke."""
    return make(checkout, target, "PROFILE=smoke", f"NOTEBOOKS={NOTEBOOK}", **more)


def reproduce(checkout: Path, target: str = "reproduce", **more: object) -> tuple[int, str]:
    """Run the notebook at smoke to the end; the exit status and what was printed."""
    process = start(checkout, target, **more)
    said, _ = process.communicate()
    return process.returncode, said


def observed(figures: Path) -> dict[tuple, float]:
    """Every observation of a folder of figures but those that are seconds."""
    from nkdlib.compendium.claims import claim_by_id

    rows = [row for path in figures.glob("smoke/*/observations.json") for row in read(path)["observations"]]
    timed = {row["metric"] for row in rows if claim_by_id(row["claim"]).criterion(row["metric"]).unit in SECONDS}
    return {(row["claim"], row["metric"], row["seed"]): row["value"] for row in rows if row["metric"] not in timed}


def read(path: Path) -> dict:
    return json.loads(path.read_text())


def last(said: str) -> str:
    """The last line of what was printed, without colors."""
    lines = [line.strip() for line in re.sub(r"\x1b\[[0-9;]*m", "", said).splitlines()]
    lines = [re.sub(rf"{tempfile.gettempdir()}/[^/]+/", ".../", line) for line in lines]
    return next((line for line in reversed(lines) if line and not line.startswith("make")), "nothing was printed")


def compare(row: Row, checkout: Path, status: int, said: str, expected: dict, also: str = "") -> None:
    """End a trial whose right result is `expected`."""
    found = observed(checkout / "figures")
    same = status == 0 and found == expected
    result = f"the same {len(found)} observations" if same else f"status {status}, {last(said)}"
    row.end(same, f"{result}{also}")


@contextmanager
def mounted(place: Path, *options: object) -> Iterator[None]:
    """A file system at `place` for a while."""
    place.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", *map(str, options), str(place)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


def killed(record: Record, expected: dict) -> None:
    """Ten moments and ways, drawn from one seed; a run that ends before its moment is compared, and begun anew."""
    chance, moments, different = random.Random(SEED), [], 0
    with clone("killed and resumed") as checkout, record("", "the same observations as undisturbed") as row:
        ended, wait = 0, 0.0
        while wait is not None:
            wait = chance.uniform(4, 25) if len(moments) < KILLS else None
            way = chance.choice(("everything", "runner", "terminated", "kernel"))
            process = start(checkout, start_new_session=True)
            try:
                process.wait(wait)
            except subprocess.TimeoutExpired:
                moments.append(f"{wait:.0f} ({way})")
                kill(process, way)
            process.communicate()
            if process.returncode == 0:
                ended += 1
                different += observed(checkout / "figures") != expected
                if wait is not None:
                    shutil.rmtree(checkout / "runs")
                    shutil.rmtree(checkout / "figures" / "smoke")
        row.done = f"{KILLS} kills, seconds after a start (what was killed): {', '.join(moments)}; seed {SEED}"
        row.end(
            process.returncode == 0 and not different,
            f"{ended} runs came to their end, the last one and those before their moment; "
            f"{different} of them with other observations",
        )


def kill(process: subprocess.Popen, way: str) -> None:
    """End a run: everything at once, the runner alone, the runner politely, or its kernel."""
    family = psutil.Process(process.pid).children(recursive=True)
    runner = [member for member in family if "nkdlib.compendium.run" in member.cmdline()]
    kernels = [member for member in family if "ipykernel_launcher" in " ".join(member.cmdline())]
    with suppress(psutil.Error, ProcessLookupError):
        if way == "everything":
            os.killpg(process.pid, signal.SIGKILL)
            for member in family:
                member.kill()
        elif way == "terminated":
            runner[0].terminate()
        else:
            ((kernels if way == "kernel" else runner) or runner)[0].kill()


def disk(record: Record, expected: dict) -> None:
    """Runs and figures on a disk that fills up at different places, and room again."""
    with clone("disk full") as checkout:
        for room in (0, 400):
            with mounted(checkout / "runs", "-t", "tmpfs", "-o", f"size={4 * (room // 4 + 1)}k", "none"):
                with record(f"{room} kB for `runs/`", "an error that names the disk") as row:
                    status, said = reproduce(checkout)
                    row.end(status and "No space left" in said and len(said) < 4000, last(said))
                with record("room again", "the same observations") as row:
                    subprocess.run(["mount", "-o", "remount,size=500m", checkout / "runs"], check=True)
                    kept = len(list((checkout / "runs").glob("cache/*/*")))
                    compare(row, checkout, *reproduce(checkout), expected, f"; {kept} artefacts had been kept")
            shutil.rmtree(checkout / "figures" / "smoke")
        with mounted(checkout / "figures" / "smoke", "-t", "tmpfs", "-o", "size=40k", "none"):
            with record("40 kB for `figures/smoke`", "an error that names the disk") as row:
                status, said = reproduce(checkout)
                row.end(status and "No space left" in said, last(said))
            subprocess.run(["mount", "-o", "remount,size=500m", checkout / "figures" / "smoke"], check=True)
            with record("room again", "the same observations") as row:
                compare(row, checkout, *reproduce(checkout), expected)


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


TOGETHER = {  # of an artefact's folder
    "tensors cut in half": lambda place: cut(place / "tensors.safetensors"),
    "tensors emptied": lambda place: os.truncate(place / "tensors.safetensors", 0),
    "a bit of the tensors flipped": lambda place: flip(place / "tensors.safetensors"),
    "tensors removed": lambda place: (place / "tensors.safetensors").unlink(),
    "info cut in half": lambda place: cut(place / "info.json"),
    "a bit of info flipped": lambda place: flip(place / "info.json"),
    "info removed": lambda place: (place / "info.json").unlink(),
    "the folder emptied": lambda place: [file.unlink() for file in place.iterdir()],
    "the folder removed": shutil.rmtree,
}
ALONE = {
    "info that is JSON of another kind": lambda place: (place / "info.json").write_text("[]"),
    "a file in the folder's place": lambda place: (shutil.rmtree(place), place.write_text("")),
    "another artefact in its place": lambda place: (
        shutil.rmtree(place),
        shutil.copytree(min(other for other in place.parent.iterdir() if other.is_dir()), place),
    ),
}


def cache(record: Record, expected: dict, checkout: Path) -> None:
    """Artefacts damaged, nine at once and one alone, then everything drawn again."""
    backup = checkout.parent / "backup"
    before = {
        path.parent: read(path)["tensors_sha256"] for path in sorted(checkout.glob("runs/cache/replace/*/info.json"))
    }
    for damages in (TOGETHER, *({way: damage} for way, damage in ALONE.items())):
        places = list(before)[-len(damages) :]
        shutil.copytree(places[0], backup)
        with record("; ".join(damages), "made anew, the rest kept; the same observations") as row:
            for place, damage in zip(places, damages.values(), strict=True):
                damage(place)
            ages = {place: (place / "info.json").stat().st_mtime for place in before if place not in places}
            compare(row, checkout, *reproduce(checkout, "figures"), expected)
            if row.well:
                whole = all(read(place / "info.json")["tensors_sha256"] == digest for place, digest in before.items())
                kept = all((place / "info.json").stat().st_mtime == age for place, age in ages.items())
                row.end(whole and kept, row.happened + ("" if whole and kept else ", but not the same artefacts"))
        if not row.well:
            shutil.rmtree(places[0], ignore_errors=True)
            places[0].unlink(missing_ok=True)
            shutil.copytree(backup, places[0])
        shutil.rmtree(backup)


def data(record: Record) -> None:
    """Files of data sets that are missing, cut or wrong."""
    with tempfile.TemporaryDirectory() as folder:
        images = Path(folder) / "pictures"
        for number, part in enumerate(("train/cat", "train/dog", "test/cat", "test/dog")):
            (images / part).mkdir(parents=True)
            for copy in range(3):
                Image.new("RGB", (8, 8), (50 * number, copy, 0)).save(images / part / f"{copy}.png")
        archive = Path(shutil.make_archive(str(images), "tar", images))
        fashion = Path(folder) / "fashion"
        fashion.mkdir()
        for name in ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1"):
            (fashion / f"{name}-ubyte.gz").write_bytes(gzip.compress(bytes(2000)))
        wrong = fashion / "t10k-labels-idx1-ubyte.gz"
        trials = {
            "a folder that is not there": ("no/where", lambda: None, "no/where"),
            "a picture cut in half": (images, lambda: cut(images / "train/cat/1.png"), "1.png is damaged"),
            "a picture that is text": (
                images,
                lambda: (images / "train/cat/1.png").write_text("?"),
                "1.png is damaged",
            ),
            "no pictures to test on": (images, lambda: shutil.rmtree(images / "test"), "test or val"),
            "an archive cut in half": (archive, lambda: cut(archive), "tar is damaged"),
            "Fashion-MNIST of other content": ("fashion-mnist", lambda: None, "ubyte.gz is damaged"),
            "Fashion-MNIST with a file cut in half": (
                "fashion-mnist",
                lambda: cut(fashion / "train-images-idx3-ubyte.gz"),
                "ubyte.gz is damaged",
            ),
            "Fashion-MNIST without one file, no network": ("fashion-mnist", wrong.unlink, "put its four files"),
            "NKD_DATA that is not there": ("fashion-mnist", lambda: shutil.rmtree(fashion), "must be a folder"),
        }
        with clone("wrong data") as checkout:
            for done, (name, damage, said_must) in trials.items():
                with record(done, f"one line with `{said_must}`") as row:
                    damage()
                    settings = {"NKD_DATA": str(fashion), "NKD_CACHE": str(Path(folder) / "cache")}
                    process = make(checkout, "data", f"DATA={name}", env=settings, before=["unshare", "-n"])
                    said, _ = process.communicate()
                    lines = [
                        line for line in said.splitlines() if not line.startswith(("make", "decoding", "fetching"))
                    ]
                    text = " / ".join(line.strip() for line in lines).replace(folder, "...")
                    row.end(process.returncode and said_must in said and "Traceback" not in said, text)


def places(record: Record, expected: dict) -> None:
    """A read-only checkout, another working directory, two runs at once, no network."""
    with clone("read only") as checkout, tempfile.TemporaryDirectory() as folder:
        outside = {"NKD_RUNS": f"{folder}/runs", "NKD_FIGURES": f"{folder}/figures"}
        with mounted(checkout, "--bind", checkout):
            subprocess.run(["mount", "-o", "remount,bind,ro", checkout], check=True)
            with record("a read-only checkout", "an error that says so") as row:
                status, said = reproduce(checkout)
                row.end(status and "Read-only" in said and "Traceback" not in said, last(said))
            with record("a read-only checkout, NKD_RUNS and NKD_FIGURES elsewhere", "the same observations") as row:
                status, said = reproduce(checkout, env=outside)
                row.end(status == 0 and observed(Path(folder) / "figures") == expected, last(said))
    with clone("two at once") as checkout, record("two `make reproduce` at once", "the work once; the same") as row:
        both = [start(checkout) for _ in range(2)]
        said = [process.communicate()[0] for process in both]
        compare(row, checkout, max(p.returncode for p in both), said[0], expected)
        row.well = row.well and sum("up to date\n" in text for text in said) == 1
    with clone("no network") as checkout:
        with record("no network, profile smoke", "the same observations") as row:
            compare(row, checkout, *reproduce(checkout, before=["unshare", "-n"]), expected)
        with record("no network, Fashion-MNIST not here", "what was tried, and how to bring it") as row:
            process = make(checkout, "data", before=["unshare", "-n"], env={"NKD_DATA": "", "NKD_CACHE": ""})
            said, _ = process.communicate()
            row.end(process.returncode and "To bring it yourself" in said and "Traceback" not in said, last(said))
    with clone("elsewhere") as checkout, tempfile.TemporaryDirectory() as folder:
        with record("another working directory, the runner by hand", "the same; nothing left there") as row:
            command = [sys.executable, "-m", "nkdlib.compendium.run", NOTEBOOK, "--profile", "smoke"]
            done = subprocess.run(
                command, cwd=folder, env=os.environ | {"PYTHONPATH": str(checkout)}, capture_output=True, text=True
            )
            compare(
                row, checkout, done.returncode, done.stdout + done.stderr, expected, f"; left: {os.listdir(folder)}"
            )
            row.well = row.well and not os.listdir(folder)
        with record("what a run leaves in a clone", "`runs/` and `figures/smoke/`") as row:
            written = left(checkout)
            row.end({*written} <= {"runs/", "figures/smoke/"}, ", ".join(written))


def versions(record: Record, expected: dict) -> None:
    """The set-up from nothing and a run under other versions of Python; they must be on the PATH."""
    for version in ("3.12", "3.13"):
        with record(f"Python {version}: `make reproduce` in a clone without `.venv`", "the same observations") as row:
            if not (found := shutil.which(f"python{version}")):
                row.end(False, "not tried: there is no such Python here")
                continue
            with clone(f"python {version}", environment=False) as checkout:
                where = subprocess.check_output([found, "-c", "import sys; print(sys.base_exec_prefix)"], text=True)
                path = f"{where.strip()}/bin{os.pathsep}{os.environ['PATH']}"
                status, said = reproduce(checkout, env={"PATH": path})
                origin = read(checkout / "figures/smoke" / NOTEBOOK / "provenance.json") if status == 0 else {}
                compare(row, checkout, status, said, expected, f"; Python {origin.get('python')}")
                row.well = row.well and origin["python"].startswith(f"{version}.")


TRIALS = {
    "killed": (killed, "Killed and resumed"),
    "cache": (cache, "The cache damaged"),
    "data": (data, "Data missing, cut or wrong"),
    "disk": (disk, "The disk full"),
    "places": (places, "Other places, two at once, no network"),
    "versions": (versions, "Other versions of Python"),
}


def main() -> None:
    """Try everything, or what is named; what an undisturbed run observed is the right result."""
    wanted, well = sys.argv[1:] or list(TRIALS), True
    with clone("a clone of mine") as checkout:
        status, said = reproduce(checkout)
        assert status == 0, said
        expected = observed(checkout / "figures")
        for name in wanted:
            trial, title = TRIALS[name]
            record = Record(name, title)
            trial(record, *{"cache": [expected, checkout], "data": []}.get(name, [expected]))
            well = record.write() and well
    sys.exit(not well)


if __name__ == "__main__":
    main()
