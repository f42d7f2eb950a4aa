"""`make lab`: JupyterLab opens the start page, with kernels of this environment that compute with one thread."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from urllib.error import URLError
from urllib.request import Request, urlopen

from jupyter_client import BlockingKernelClient

ROOT = Path(__file__).parents[1]


def test_lab_opens_the_start_page_and_kernels_are_this_interpreter(tmp_path):
    another = tmp_path / "home/.local/share/jupyter/kernels/python3/kernel.json"  # a user's own, of the same name
    another.parent.mkdir(parents=True)
    another.write_text(json.dumps({"argv": ["false"], "display_name": "another", "language": "python"}))
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("JUPYTER", "XDG", "OMP"))}
    environment |= {"HOME": str(tmp_path / "home"), "JUPYTER_RUNTIME_DIR": str(tmp_path / "runtime")}
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = f"ARGS=--no-browser --allow-root --port={port} --ServerApp.token=x --ServerApp.disable_check_xsrf=True"
    command = ["make", "-o", ".venv/.ready", f"PYTHON={sys.executable}", "lab", options]
    with (tmp_path / "log").open("w") as log:
        server = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log, start_new_session=True)
    try:
        page = ask(server, f"http://127.0.0.1:{port}/?token=x", tmp_path / "log")
        assert (
            page.url.partition("?")[0].endswith("/lab/tree/00_start_here.ipynb")
            and b"jupyterlab" in page.read().lower()
        )
        headers = {"Authorization": "token x"}
        made = urlopen(Request(f"http://127.0.0.1:{port}/api/kernels", b'{"name": "python3"}', headers))
        kernel = BlockingKernelClient(
            connection_file=str(tmp_path / "runtime" / f"kernel-{json.load(made)['id']}.json")
        )
        kernel.load_connection_file()
        kernel.start_channels(hb=False)  # a busy machine may miss a beat
        kernel.wait_for_ready(60)
        said = []
        code = "import os, sys; print(sys.executable, os.environ['OMP_NUM_THREADS'])"
        kernel.execute_interactive(
            code, timeout=60, output_hook=lambda message: said.append(message["content"].get("text"))
        )
        kernel.stop_channels()
        assert f"{sys.executable} 1\n" in said
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def ask(server, url, log):
    """Return the answer to a request, as soon as the server gives one."""
    while True:
        try:
            return urlopen(url)
        except URLError:
            assert server.poll() is None, log.read_text()
            time.sleep(0.1)
