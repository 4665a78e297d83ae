"""Stand-ins for published data sets: few images in the official layout, which csglib takes for the official ones."""

import dataclasses
import hashlib
import io
import tarfile
import zipfile
from pathlib import Path

import numpy as np

from csglib.data import released
from csglib.data.download import Archive

STL_CLASSES = ("airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck")
BINARY = [name for name, release in released.RELEASES.items() if isinstance(release, released.Binary)]


def contents(name: str, copies: int = 1) -> dict[str, bytes]:
    """The files of a release: every class `copies` times in each part, in random order."""
    rng, release = np.random.default_rng(0), released.RELEASES[name]
    labels = rng.permutation(np.repeat(np.arange(release.classes, dtype=np.uint8), copies))
    pixels = rng.integers(0, 256, (len(labels), 3 * release.side**2), dtype=np.uint8)
    if name == "stl10":
        both = {"X": pixels.tobytes(), "y": (labels + 1).tobytes()}
        files = {f"{part}_{kind}.bin": both[kind] for part in ("train", "test") for kind in "Xy"}
        return files | {"unlabeled_X.bin": pixels.tobytes(), "class_names.txt": lines(STL_CLASSES)}
    before = [labels // 5, labels] if name == "cifar100" else [labels]  # coarse, fine
    whole = np.concatenate([*(row[:, None] for row in before), pixels], 1).tobytes()
    files = dict.fromkeys(release.sums, whole)
    if name == "cifar100":
        files["fine_label_names.txt"] = lines([f"thing_{i:02}" for i in range(100)])
        files["coarse_label_names.txt"] = lines([f"kind_{i:02}" for i in range(20)])
    return files


def lines(names) -> bytes:
    return "".join(f"{name}\n" for name in names).encode()


def tiny() -> dict[str, bytes]:
    """Tiny ImageNet's parts, without pictures that decode."""
    names = ("wnids.txt", "words.txt", "train/n01/images/n01_0.JPEG", "val/images/val_0.JPEG", "val/val_annotations.txt")
    return dict.fromkeys((*names, "test/images/test_0.JPEG"), b"a")


def pack(path: Path, members: dict[str, bytes]) -> Path:
    """A .tar.gz or .zip of these names."""
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in members.items():
                archive.writestr(name, content)
        return path
    with tarfile.open(path, "w:gz") as archive:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def packed(name: str, folder: Path, files: dict[str, bytes]) -> Path:
    release = released.RELEASES[name]
    path = folder / Path(release.archive.url).name
    return pack(path, {f"{release.folder}/{file}": content for file, content in files.items()})


def stand_in(patch, name: str, files: dict[str, bytes], archive: Path | None = None, url: str = "") -> None:
    """From now on the release has these files, and its archive is this one."""
    release, changes = released.RELEASES[name], {}
    if archive:
        md5 = hashlib.md5(archive.read_bytes()).hexdigest()
        changes["archive"] = Archive(url or archive.as_uri(), md5, archive.stat().st_size, room=1 << 20)
    for part in ("train", "test") if name in BINARY else ():
        changes[part] = {file: hashlib.md5(files[file]).hexdigest() for file in getattr(release, part) if file in files}
    patch.setitem(released.RELEASES, name, dataclasses.replace(release, **changes))


def lay(folder: Path, name: str, files: dict[str, bytes]) -> Path:
    """The release's folder with these files, as after a download."""
    where = folder / released.RELEASES[name].folder
    for file, content in files.items():
        (where / file).parent.mkdir(parents=True, exist_ok=True)
        (where / file).write_bytes(content)
    return where
