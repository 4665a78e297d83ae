"""What several test files share.  Every test runs with the shapes and types of csglib's annotations checked."""

import dataclasses
import fcntl
import functools
import http.server
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import jaxtyping
import pytest
import torch
from jaxtyping import install_import_hook

install_import_hook(["csglib", "csgbook"], "beartype.beartype")  # before csglib is first imported

from brought import pets, place, town  # noqa: E402, F401 (fixtures)

from csglib import data, runs  # noqa: E402
from csglib.analysis.information import mutual_information  # noqa: E402
from csglib.data.released import CIFAR10  # noqa: E402
from csglib.recipe import Recipe  # noqa: E402

mutual_information(torch.rand(8, 1), torch.arange(8) % 2, 2)  # numba compiles it once, and not under a test's broken disk

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared"
BUILD = ROOT / "build" / "smoke"
BIN = Path(sys.executable).parent
LONG = bool(os.environ.get("CSGLIB_LONG"))  # tests that kill, mutate and draw then do it as often as the project promises


def pytest_collection_modifyitems(items):
    """Marks by fixture; and one process builds the book at once, while the others do what needs none."""
    needs_book = {item.path for item in items if "html" in item.fixturenames}
    items.sort(key=lambda item: (item.path in needs_book) - 2 * (item.path.stem == "test_book"))
    for item in items:
        if {"html", "browser", "cifar10_folder", "third_party_file"} & set(item.fixturenames):
            item.add_marker(pytest.mark.slow)
        if item.get_closest_marker("long") and not LONG:
            item.add_marker(pytest.mark.skip(reason="the long form: set CSGLIB_LONG=1"))


def shared(tmp_path_factory) -> Path:
    """A folder of this session's, the same one in each of its test processes."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if os.environ.get("PYTEST_XDIST_WORKER") else base


@pytest.fixture(scope="session")
def cifar10_folder(tmp_path_factory) -> Path:
    """The folder that holds the official binary release: CSGLIB_DATA, or unpacked from the shared strips."""
    if value := os.environ.get("CSGLIB_DATA"):
        return Path(value)
    script = SHARED / "data" / "unpack-cifar10"
    if not script.exists():
        pytest.skip(f"full CIFAR-10 is not here: set CSGLIB_DATA to the folder that holds {CIFAR10.folder}")
    folder = tmp_path_factory.mktemp("cifar10")
    subprocess.run([sys.executable, script, folder], check=True, capture_output=True)
    return folder


@pytest.fixture(scope="session")
def cifar10(cifar10_folder) -> data.Dataset:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CSGLIB_DATA", str(cifar10_folder))
        return data.load("cifar10")


@pytest.fixture(scope="session")
def mini() -> data.Dataset:
    return data.load("cifar10-mini")


@pytest.fixture(scope="session")
def tiny(mini):
    """A data set `tiny` of 320 + 100 images of the sample, for tests that train; exists as long as the tests run."""

    def part(images: data.Images, n: int) -> data.Images:
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))[:n]
        return data.Images(images.images[order], images.labels[order])

    dataset = data.Dataset("tiny", mini.classes, part(mini.train, 320), part(mini.test, 100), "0" * 64)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(data.DATASETS, "tiny", lambda: dataset)
        yield dataset


@pytest.fixture(scope="session")
def run(tmp_path_factory) -> runs.Run:
    """A finished run on the embedded sample: one gated epoch, one standard.  Read only; damage copies of it."""
    from csglib.training.trainer import train

    folder = shared(tmp_path_factory)
    with (folder / "run.lock").open("w") as turn:  # of several test processes one trains
        fcntl.flock(turn, fcntl.LOCK_EX)
        if not (folder / "run").exists():
            recipe = Recipe(dataset="cifar10-mini", net="resnet8", epochs=2, cycle="gs", precision="float32")
            train(recipe, folder / "run", "cpu")
    return runs.read(folder / "run")


@pytest.fixture(scope="session")
def bare(run) -> runs.Run:
    """The same run without its gate, as standard training leaves one."""
    copy = dataclasses.replace(run)
    object.__setattr__(copy, "readout", dataclasses.replace(run.readout, gate=None, gates=None))
    return copy


@pytest.fixture(scope="session")
def third_party_file() -> Path:
    path = SHARED / "data" / "weights" / "resnet20-12fca82f.th"
    if not path.exists():
        pytest.skip(f"the third-party weights are not here: {path}")
    return path


@pytest.fixture
def csglib(monkeypatch, capsys):
    """The command line, in this process: csglib("evaluate", path) gives the exit code, stdout and stderr."""
    from csglib import cli

    return functools.partial(command, cli.main, "csglib", monkeypatch, capsys)


@pytest.fixture
def csgbook(monkeypatch, capsys):
    """The book's command line, in this process."""
    from csgbook import cli

    return functools.partial(command, cli.main, "csgbook", monkeypatch, capsys)


def command(main, name, monkeypatch, capsys, *words) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", [name, *map(str, words)])
    capsys.readouterr()
    try:
        main()
        code = 0
    except SystemExit as stop:
        code = stop.code or 0
    return code, *capsys.readouterr()


@pytest.fixture
def unchecked():
    """Without the checks of shapes that only tests have: what is refused is then refused for users too."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture
def snapshot():
    """snapshot(folder): every path under it with its content, to show that nothing was written."""

    def take(folder: Path) -> dict[str, bytes | None]:
        return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None for p in sorted(folder.rglob("*"))}

    return take


# The built book and a browser


def snakemake(*config: str) -> subprocess.CompletedProcess:
    command = [BIN / "snakemake", "--cores", "2", "--nolock", "--rerun-triggers", "mtime", "input", "--rerun-incomplete"]
    environment = os.environ | {"PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}"}
    return subprocess.run([*command, "--config", *config], cwd=ROOT, env=environment, capture_output=True, text=True)


@pytest.fixture(scope="session")
def html(tmp_path_factory) -> Path:
    """The smoke profile: trains every recipe of every page on the embedded sample, executes the pages, builds the book."""
    BUILD.mkdir(parents=True, exist_ok=True)
    built = shared(tmp_path_factory) / "built"
    with (BUILD.parent / "smoke.lock").open("w") as turn:  # of several test processes one builds, the others wait
        fcntl.flock(turn, fcntl.LOCK_EX)
        if not built.exists():
            train = [BIN / "csgbook", "missing", "--profile", "smoke", "--runs-folder", "build/smoke/runs", "--device", "cpu"]
            subprocess.run(train, cwd=ROOT, check=True, capture_output=True)  # one process: torch is imported once
            if not (BUILD / "smoke").exists():
                pages_in_one_kernel()
            done = snakemake("profile=smoke", "build=build/smoke")
            assert done.returncode == 0, done.stderr[-4000:]
            built.touch()
    return BUILD / "html"


def pages_in_one_kernel() -> None:
    """Execute all pages but one, which the pipeline's own rule executes: to import all anew takes longer than most pages."""
    sys.path.insert(0, str(ROOT / "tools"))
    import execute
    from jupyter_client import KernelManager
    from parameters import parameters

    from csgbook import experiments

    kernel = KernelManager(kernel_name="python3")
    kernel.start_kernel(cwd=str(ROOT), env=os.environ | {"TQDM_DISABLE": "1"})
    try:
        for page in list(experiments.book()["pages"])[1:]:
            values = parameters(page, "smoke", "build/smoke/runs")
            execute.execute(page, values, BUILD / "smoke" / f"{page}.ipynb", solutions=True, kernel=kernel)
    finally:
        kernel.shutdown_kernel(now=True)


@pytest.fixture(scope="session")
def site(html):
    handler = type("Quiet", (http.server.SimpleHTTPRequestHandler,), {"log_message": lambda *_: None})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(handler, directory=html)) as server:
        threading.Thread(target=server.serve_forever, args=[0.01], daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture(scope="session")
def browser():
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not chromium or not driver:
        pytest.skip("no Chromium with its driver here: install Debian's chromium and chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in ("headless=new", "no-sandbox", "disable-gpu", "disable-dev-shm-usage", "disable-background-networking"):
        options.add_argument(f"--{flag}")
    options.add_argument("--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    chrome = webdriver.Chrome(options=options, service=Service(driver))
    yield chrome
    chrome.quit()


def open_page(browser, url: str, width: int) -> None:
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    browser.get(url)
    deadline = time.monotonic() + 20
    ready = "return document.readyState == 'complete' && !document.querySelector('.math:not(:has(mjx-container))')"
    while not browser.execute_script(ready) and time.monotonic() < deadline:
        time.sleep(0.1)
