"JupyterLab in a real browser: a server of its own, notebooks that a test writes and runs, pictures compared by pixels."
import importlib.util
import io
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import nbformat
import numpy as np
import pytest
from PIL import Image

from .timing import until

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync"]


def pytest_collection_modifyitems(config, items):
    here = Path(__file__).parent
    missing = "no Chromium on this machine (Debian: apt-get install chromium)" if CHROMIUM is None else None
    if importlib.util.find_spec("playwright") is None: missing = "playwright is not installed (pip install playwright)"
    for item in items:
        if here in Path(item.fspath).parents and missing: item.add_marker(pytest.mark.skip(reason=missing))


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    "(address, folder) of a running JupyterLab that touches nothing of the user's."
    home = tmp_path_factory.mktemp("lab")
    names = [f"JUPYTER_{kind}_DIR" for kind in ("CONFIG", "DATA", "RUNTIME")]
    folders = {name: home / name.lower() for name in (*names, "JUPYTERLAB_SETTINGS_DIR", "JUPYTERLAB_WORKSPACES_DIR")}
    for folder in folders.values(): folder.mkdir()
    quiet = folders["JUPYTERLAB_SETTINGS_DIR"] / "@jupyterlab/apputils-extension/notification.jupyterlab-settings"
    quiet.parent.mkdir(parents=True)
    quiet.write_text('{"fetchNews":"false","checkForUpdates":false}')
    notebooks = home / "notebooks"
    notebooks.mkdir()
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    args = [sys.executable, "-m", "jupyterlab", "--no-browser", "--ip=127.0.0.1", f"--port={port}",
            "--ServerApp.port_retries=0", "--ServerApp.allow_root=True", "--IdentityProvider.token=",
            "--LabApp.expose_app_in_browser=True", f"--ServerApp.root_dir={notebooks}"]
    env = {"OMP_NUM_THREADS": "2", **os.environ, **{name: str(folder) for name, folder in folders.items()}}
    with open(home / "log", "w") as log:
        process = subprocess.Popen(args, env=env, stdout=log, stderr=log, cwd=notebooks)
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(240):
            if process.poll() is not None: raise RuntimeError((home / "log").read_text()[-3000:])
            try: urllib.request.urlopen(f"{address}/api", timeout=2).read()
            except OSError: time.sleep(.25)
            else: break
        else: raise RuntimeError("JupyterLab did not answer within a minute")
        yield address, notebooks
    finally:
        process.terminate()
        try: process.wait(15)
        except subprocess.TimeoutExpired: process.kill()


@pytest.fixture(scope="session")
def browser():
    from playwright.sync_api import sync_playwright
    with sync_playwright() as p:
        chromium = p.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield chromium
        chromium.close()


class Lab:
    "One notebook in one page."
    def __init__(self, page, address, folder):
        self.page, self.address, self.folder = page, address, folder

    def run(self, name, *sources, timeout=120):
        "Write a notebook of these cells, open it and run all of them."
        path = self.folder / f"{name}.ipynb"
        kernel = {"display_name": "python3", "language": "python", "name": "python3"}
        cells = [nbformat.v4.new_code_cell(source) for source in sources]
        nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernel}), path)
        self.open(path.name)
        self.run_all(timeout)

    def open(self, path):
        "Open a notebook, and wait until its kernel answers."
        self.page.goto(f"{self.address}/doc/tree/{path}")
        shown = "window.jupyterapp && window.jupyterapp.shell.currentWidget"
        self.page.wait_for_function(f"{shown} && window.jupyterapp.shell.currentWidget.context", timeout=60_000)
        self.page.evaluate("""async () => {
            const context = window.jupyterapp.shell.currentWidget.context;
            await context.ready;
            await context.sessionContext.ready;
            await context.sessionContext.session.kernel.info;
        }""")

    def run_all(self, timeout=120):
        self.page.set_default_timeout(1000 * timeout)
        done = self.page.evaluate("window.jupyterapp.commands.execute('notebook:run-all-cells')")
        self.page.set_default_timeout(20_000)
        errors = ".jp-OutputArea-output[data-mime-type='application/vnd.jupyter.stderr']"
        assert done, self.page.locator(errors).all_inner_texts()

    def execute(self, code):
        "Run code in the notebook's kernel, and return what it printed."
        return self.page.evaluate("""async (code) => {
            const kernel = window.jupyterapp.shell.currentWidget.context.sessionContext.session.kernel;
            const future = kernel.requestExecute({ code, store_history: false });
            let text = "";
            future.onIOPub = (m) => {
                if (m.header.msg_type === "stream") text += m.content.text;
                if (m.header.msg_type === "error") text += m.content.ename + ": " + m.content.evalue;
            };
            await future.done;
            return text;
        }""", code).strip()

    def widget(self, name): return self.page.locator(f".hessnb-{name}").first

    def image(self, name, index=0): return self.widget(name).locator("img.hessnb-image").nth(index)

    def pixels(self, name, index=0):
        "The picture as the page shows it, `(H, W, 3)`."
        image = self.image(name, index)
        image.scroll_into_view_if_needed()
        return np.asarray(Image.open(io.BytesIO(image.screenshot())).convert("RGB")).astype(int)

    def until_changed(self, name, before, index=0, share=.01, seconds=30):
        "The picture once more than `share` of its pixels differ from `before`."
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            now = self.pixels(name, index)
            if now.shape == before.shape and (abs(now - before).max(2) > 8).mean() > share: return now
            time.sleep(.05)
        raise AssertionError(f"the picture of {name} did not change within {seconds} s")

    def readout(self, name): return self.widget(name).locator(".hessnb-readout").first.inner_text()

    def error(self, name):
        "What the widget, and those in its tabs, say of errors."
        return "".join(self.widget(name).locator(".hessnb-error").all_text_contents()).strip()

    until = staticmethod(until)

    def handle(self, name, index=0): return self.widget(name).locator(".hessnb-handle, .noUi-handle").nth(index)

    def press(self, handle, key, n=1):
        "Press a key `n` times at a slider; each time the slider must have moved in the page."
        shown = lambda: handle.get_attribute("aria-valuenow")
        def moved():
            before = shown()
            handle.press(key)
            if shown() != before: return True
            assert not handle.evaluate("node => node === document.activeElement"), f"{key} moved nothing"
            return False  # the page took the focus away in between: again
        for _ in range(n): until(moved, what=f"{key} moves the slider")

    def screenshot(self, name):
        "A picture of the page, kept where HESSNB_SCREENSHOTS says."
        folder = os.environ.get("HESSNB_SCREENSHOTS")
        if folder: self.page.screenshot(path=f"{folder}/{name}.png")


@pytest.fixture(scope="module")
def lab(server, browser):
    address, folder = server
    page = browser.new_page(viewport={"width": 1300, "height": 900})
    page.set_default_timeout(20_000)
    page.on("dialog", lambda dialog: dialog.accept())
    yield Lab(page, address, folder)
    page.close()
