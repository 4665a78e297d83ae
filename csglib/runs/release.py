"""Where the project is published: its address, its runs for a copy that came without them, and a run as one file to take away.

The address stands in pyproject.toml alone.  `make address` writes it into the notebooks, which need it before csglib is there.
"""

import dataclasses
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

import torch
from safetensors.torch import save

from csglib import files, runs
from csglib.data.download import Archive, fetched, unpack
from csglib.errors import Problem
from csglib.files import MIB
from csglib.paths import ROOT, digest
from csglib.readout import Readout
from csglib.recipe import NAME
from csglib.runs import Run, packing, schema
from csglib.runs.verify import verify

UNKNOWN = "OWNER/NAME"  # what pyproject.toml says as long as nobody has pushed the project anywhere
RELEASE = "runs"  # its tag
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


def get_runs(folder: Path | None = None, url: str | None = None, base: str | None = None) -> tuple[int, int]:
    """Fetch the published runs that are not in the folder yet; returns how many came, and how many were there.

    They come out of the repository's archive as the host packs it.  Each is compared with its digests before it gets its name.
    What is too large for the repository comes from the files of its release, under the address `base`.
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
    for run in (runs.read(folder / path.name) for path in found):
        if "released" in run.provenance and not all((run.path / name).exists() for name in run.left_out):
            get_released(run, base or f"{repository()}/releases/download/{RELEASE}")
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
            if len(parts) != 5 or parts[1:3] != ("data", "runs") or parts[4] not in schema.LIMITS:
                continue  # report.json too, of a training that diverged
            if not member.isfile() or member.size > schema.LIMITS[parts[4]] or not NAME.fullmatch(parts[3]):
                raise tarfile.TarError(f"{member.name:.100} is no file of a run")
            (target / parts[3]).mkdir(exist_ok=True)
            (target / parts[3] / parts[4]).write_bytes(tar.extractfile(member).read())


def publish_without_weights(run: Run, folder: Path | None = None, sample: int = 0, released: Path | None = None) -> Path:
    """Verify a run and copy what is small of it: recipe, history, metrics and provenance, which then says what is left out.

    Args:
        run: As `csglib train` wrote it.
        folder: Where it goes, under its recipe's name; the published runs if None.
        sample: Of so many test images, at equal distances, the readout stays, for explorers; 0: of none.
        released: A folder for a zip file of what is left out, to be uploaded to the project's release `runs`, from which
            `csglib data get runs` takes it; None makes none.

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
    if released is not None:
        more["released"] = zipped(run, released)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".publish-") as tmp:
        new = Path(tmp) / out.name
        new.mkdir()
        for name in (name for name in runs.FILES if name not in schema.HEAVY):
            files.write(new / name, (run.path / name).read_bytes())
        if sample:
            files.write(new / schema.SAMPLE, save(packing.pack(part_of(run.readout, sample))))
            more["sha256"] = run.provenance["sha256"] | {schema.SAMPLE: digest(new / schema.SAMPLE)}
        if released is not None:
            files.write(new / ".gitignore", "".join(f"{name}\n" for name in schema.HEAVY))  # what is fetched is no part of git
        files.write(new / "provenance.json", runs.dump(run.provenance | more))
        verify(runs.read(new))
        os.rename(new, out)
    return out


def part_of(readout: Readout, n: int) -> Readout:
    """Of n images at equal distances, or of all where there are fewer; with the last gate alone."""
    N = len(readout.labels)
    place = torch.linspace(0, N - 1, min(n, N)).long()
    return dataclasses.replace(readout, features=readout.features[place], labels=readout.labels[place], gates=None)


def zipped(run: Run, folder: Path) -> dict:
    """Pack what is left out of a run into a file of the release; return what provenance says of it."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{run.recipe.name}.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in schema.HEAVY:
            archive.write(run.path / name, name)
    return {"file": path.name, "bytes": path.stat().st_size, "sha256": digest(path)}


def get_released(run: Run, base: str) -> None:
    """Fetch what was left out of a run from the project's release, whose files lie under the address `base`.

    Raises Problem where it cannot be had, or is not what the run's provenance says.
    """
    told, again = run.provenance["released"], "train the run again"
    archive = Archive(f"{base}/{told['file']}", told["sha256"], told["bytes"], 2 * told["bytes"])
    part = run.path.with_name(f"{run.path.name}.part")
    with fetched(archive, f"what {run.path.name} was published without", part, again) as path:
        unpack(path, path.parent / "unpacked", {PurePosixPath(name) for name in run.left_out})
        for name in run.left_out:
            found = path.parent / "unpacked" / name
            if not found.is_file() or digest(found) != run.provenance["sha256"][name]:
                raise Problem(f"{archive.url} holds no {name} of {run.path}: {again}")
            os.replace(found, run.path / name)


def download(taken: Iterable[Run]) -> Path | None:
    """On Colab, hand runs to the reader's browser as one zip, named after the run or `runs.zip`; elsewhere do nothing."""
    taken = list({run.recipe.name: run for run in taken}.values())
    if "google.colab" not in sys.modules or not taken:
        return None
    from google.colab import files

    path = Path(f"{taken[0].recipe.name}.zip" if len(taken) == 1 else "runs.zip").absolute()
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for run in taken:
            for name in (*runs.FILES, schema.SAMPLE, "provenance.json"):
                if (run.path / name).exists():
                    archive.write(run.path / name, f"{run.recipe.name}/{name}")
    files.download(str(path))
    return path
