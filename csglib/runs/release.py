"""Where the project is published: its address, its runs for a copy that came without them, and a run as one file to take away.

The address stands in pyproject.toml alone.  `make address` writes it into the notebooks, which need it before csglib is there.
"""

import os
import sys
import tarfile
import tempfile
import tomllib
import zipfile
import zlib
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, metadata
from pathlib import Path, PurePosixPath

from csglib import files, runs
from csglib.data.download import Archive, fetched
from csglib.errors import Problem
from csglib.files import MIB
from csglib.paths import ROOT
from csglib.recipe import NAME
from csglib.runs import Run, schema
from csglib.runs.verify import verify

UNKNOWN = "OWNER/NAME"  # what pyproject.toml says as long as nobody has pushed the project anywhere
ARCHIVE = 4096 * MIB  # more than the repository's archive will ever unpack to: the published runs take some 90 MB


def repository() -> str:
    """The address that `git clone` takes; empty as long as it is not known."""
    file = ROOT / "pyproject.toml"
    if file.is_file():
        address = tomllib.loads(file.read_text())["project"]["urls"]["Repository"]
    else:
        try:
            urls = metadata("csglib").get_all("Project-URL") or []
        except PackageNotFoundError:
            urls = []
        address = dict(url.split(", ", 1) for url in urls).get("Repository", "")
    return "" if address.endswith(UNKNOWN) else address


def get_runs(folder: Path | None = None, url: str | None = None) -> tuple[int, int]:
    """Fetch the published runs that are not in the folder yet; returns how many came, and how many were there.

    They come out of the repository's archive as the host packs it.  Each is compared with its digests before it gets its name.
    Raises Problem where the archive cannot be had, is too large or holds no run, and where a run in it is damaged.
    """
    folder = folder or runs.PUBLISHED
    if url is None and not repository():
        raise Problem(
            "the address of the repository is not known to this copy: clone the repository, which holds the runs in data/runs"
        )
    url = url or f"{repository()}/archive/HEAD.tar.gz"
    remedy = "clone the repository, which holds the runs in data/runs"
    with fetched(Archive(url), "the runs", folder / "runs.part", remedy) as path:
        target = path.parent / "unpacked"
        target.mkdir()
        try:
            with path.open("rb") as packed:
                unpack_runs(packed, target)
        except (EOFError, zlib.error, tarfile.TarError) as error:
            raise Problem(f"the runs from {url} cannot be unpacked ({error}): try again, or {remedy}") from None
        found = sorted(target.iterdir())
        if not found:
            raise Problem(f"{url} holds no run under data/runs: {remedy}")
        new = [p for p in found if not (folder / p.name).exists()]
        for path in new:
            runs.read(path)
            os.rename(path, folder / path.name)
    return len(new), len(found) - len(new)


def unpack_runs(stream, target: Path) -> None:
    """The files of runs out of the repository's .tar.gz, NAME/data/runs/RUN/FILE, and nothing else, each within its bounds."""
    taken = 0
    with tarfile.open(fileobj=stream, mode="r|gz") as tar:
        for member in tar:
            taken += member.size
            if taken > ARCHIVE:
                raise tarfile.TarError("it unpacks to more than the repository")
            parts = PurePosixPath(member.name).parts
            if len(parts) != 5 or parts[1:3] != ("data", "runs") or parts[4] not in (*runs.FILES, "provenance.json"):
                continue  # report.json too, of a training that diverged
            if not member.isfile() or member.size > schema.LIMITS[parts[4]] or not NAME.fullmatch(parts[3]):
                raise tarfile.TarError(f"{member.name:.100} is no file of a run")
            (target / parts[3]).mkdir(exist_ok=True)
            (target / parts[3] / parts[4]).write_bytes(tar.extractfile(member).read())


def publish_without_weights(run: Run, folder: Path | None = None) -> Path:
    """Verify a run and copy what is small of it: recipe, history, metrics and provenance, which then says what is left out.

    Args:
        run: As `csglib train` wrote it.
        folder: Where it goes, under its recipe's name; the published runs if None.

    Returns:
        The new run folder.

    Raises:
        Problem: Where the run is not what it says, or was published.
    """
    folder = folder or runs.PUBLISHED
    out = folder / run.recipe.name
    if out.exists():
        raise Problem(f"{out} exists: a published run is never replaced")
    if run.left_out:
        raise Problem(f"{run.path} has no weights to verify it by: give the run as it was trained")
    verify(run)
    more = {"left_out": list(schema.HEAVY), "test_images": len(run.readout.labels)}
    with tempfile.TemporaryDirectory(dir=folder, prefix=".publish-") as tmp:
        new = Path(tmp) / out.name
        new.mkdir()
        for name in (name for name in runs.FILES if name not in schema.HEAVY):
            files.write(new / name, (run.path / name).read_bytes())
        files.write(new / "provenance.json", runs.dump(run.provenance | more))
        verify(runs.read(new))
        os.rename(new, out)
    return out


def download(taken: Iterable[Run]) -> Path | None:
    """On Colab, hand runs to the reader's browser as one zip, named after the run or `runs.zip`; elsewhere do nothing."""
    taken = list({run.recipe.name: run for run in taken}.values())
    if "google.colab" not in sys.modules or not taken:
        return None
    from google.colab import files

    path = Path(f"{taken[0].recipe.name}.zip" if len(taken) == 1 else "runs.zip").absolute()
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for run in taken:
            for name in (*runs.FILES, "provenance.json"):
                if (run.path / name).exists():
                    archive.write(run.path / name, f"{run.recipe.name}/{name}")
    files.download(str(path))
    return path
