"""The command `csglib`: train | evaluate | data | runs | verify | doctor."""

import json
import sys
import warnings
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Literal

try:
    import tyro
    from tyro.conf import OmitArgPrefixes, Positional
    from tyro.extras import subcommand_cli_from_dict
except ImportError:
    sys.exit("csglib: the command needs tyro: pip install 'csglib[cli]'")

from csglib.errors import Problem
from csglib.paths import PUBLISHED
from csglib.recipe import Recipe


def train(
    recipe: OmitArgPrefixes[Recipe],
    out: Path | None = None,
    device: str | None = None,
    checkpoint_every: int = 1,
    seeds: tuple[int, ...] = (),
    read: Literal["auto", "resident", "streamed"] = "auto",
    workers: int | None = None,
) -> None:
    """Train a recipe and write its run; called again after an interruption, go on where it stopped.

    Args:
        recipe: What decides the trained network.
        out: Folder of the run; it must not exist yet.  Default: build/runs/ and the recipe's name.
        device: cpu or cuda.  Default: cuda where there is one.
        checkpoint_every: Epochs from one checkpoint to the next; an interruption costs at most these.
        seeds: Several seeds in place of the recipe's, side by side; out is then the folder of their folders.
        read: Where pictures in files are while it trains: resident in memory, or streamed from their files.  Default: by their
            size, up to 2 GiB in memory.
        workers: Processes that read files.  Default: one a processor, of which training without a GPU keeps half.
    """
    from csglib.data.streamed import Reading
    from csglib.precision import pick_device, settle_precision
    from csglib.training import pace
    from csglib.training.trainer import side_by_side, train

    reading = Reading(read, workers)
    recipe = settle_precision(recipe, pick_device(device))[0] if out is None or seeds else recipe
    if seeds:
        recipes = [replace(recipe, seed=seed) for seed in seeds]
        trained = side_by_side(
            [(r, (out or Path("build/runs")) / r.name) for r in recipes], device, checkpoint_every, pace.tell, reading=reading
        )
    else:
        where = out or Path("build/runs") / recipe.name
        trained = [train(recipe, where, device, checkpoint_every, pace.tell, reading=reading)]
    for run in trained:
        print(json.dumps(run.metrics, indent=2))
        print(f"{run.path}: {run.recipe.epochs} epochs in {run.provenance['train_seconds']:.0f} s", file=sys.stderr)


def evaluate(run: Positional[Path], json_: Annotated[bool, tyro.conf.arg(name="json")] = False, images: bool = False) -> None:
    """Compute a run's metrics anew from its readout.

    Args:
        run: A run folder.
        json_: Print JSON instead of a table.
        images: First make the readout anew from the weights and the test images, instead of reading the stored one.
    """
    from csglib import runs
    from csglib.analysis import metrics
    from csglib.runs.inference import read_images

    opened = runs.read(run)
    values = metrics.evaluate(read_images(opened) if images else opened.readout)
    if json_:
        print(json.dumps({"recipe": asdict(opened.recipe), "key": opened.recipe.key} | values, indent=2))
    else:
        for name, value in values.items():
            print(f"{name:16}" + ("-" if value is None else f"{value:.4f}"))


def data(action: Positional[Literal["get", "verify"]], dataset: Positional[str] = "cifar10") -> None:
    """Download or verify a data set.  CSGLIB_DATA says where it lies (default data/raw).

    Args:
        action: get downloads the official release, checks and unpacks it, and goes on where an earlier download broke; verify
            compares every file with its digest, or, where nobody has published one, reads every picture and says which do
            not open, or have changed since.
        dataset: cifar10, cifar100, stl10, tiny-imagenet; voc2007 to voc2012, PASCAL VOC of that year, to get;
            cifar10-mini, which is part of the repository; voc:PATH, objects in VOC's layout, folder:PATH, pictures with
            one subfolder per class, and imagenet:PATH, to verify (@64 behind the PATH is the side in pixels, @skip leaves out
            what cannot be read, voc:PATH@cat,dog or @all says which classes, and imagenet:PATH@20classes how many); runs, the
            published runs, to get where the library came without.
    """
    if (action, dataset) == ("get", "runs"):
        from csglib.runs.release import get_runs

        new, old = get_runs()
        print(f"runs: {new} fetched, {old} were here (in {PUBLISHED})")
        return
    from csglib.data import DATASETS, in_files, load, own, refuse, sized, streamed
    from csglib.data.released import RELEASES, Binary, get, verify
    from csglib.data.voc import get_voc
    from csglib.paths import folder

    years = {f"voc{year}": str(year) for year in range(2007, 2013)}
    if action == "get" and dataset in years:
        print(f"{dataset}: photographs in {get_voc(years[dataset])}")
        return
    if (action, dataset) == ("get", "imagenet"):
        raise Problem(
            "ImageNet's terms let nobody else send it: take the training and the validation pictures of ILSVRC 2012 from "
            "image-net.org, unpack them into PATH/train and PATH/val, and name them imagenet:PATH"
        )
    release, kind = RELEASES.get(dataset), in_files(dataset)
    if not release and not kind and not own(dataset) and not sized(dataset) and dataset not in DATASETS:
        refuse(dataset, *RELEASES, *(years if action == "get" else ()))
    if action == "get" and release:
        get(dataset)
    terms = f"; {release.terms}" if action == "get" and release else ""
    if release and not isinstance(release, Binary):
        verify(dataset)
        if action == "get":
            print(f"{dataset}: all of its parts are in {folder() / release.folder}{terms}")
            return
    with warnings.catch_warnings(action="ignore"):  # the report is printed
        found = load(dataset, reading=streamed.AUTO if kind in (None, "folder") else streamed.Reading("streamed"))
    told = ", as released" if dataset in DATASETS else ""
    if isinstance(found.train, streamed.Streamed):
        told = f", every picture read, sha256 {streamed.verify(found.train.root, found.train, found.test)}"
    many = f", of {listed(found.classes)}" if kind or own(dataset) or len(found.classes) > 10 else ""
    place = f" (in {folder()})" if release else ""
    report = f"; {found.report}" if found.report else ""
    print(f"{dataset}: {len(found.train)} training and {len(found.test)} test images{many}{told}{place}{report}{terms}")


def listed(classes: tuple[str, ...], most: int = 10) -> str:
    """Their names, or of more than ten how many there are and which is the first and the last."""
    return ", ".join(classes) if len(classes) <= most else f"{len(classes)} classes, {classes[0]} to {classes[-1]}"


def list_runs(folder: Positional[Path] = PUBLISHED) -> None:
    """List the runs in a folder, each verified.

    Args:
        folder: Where run folders lie.
    """
    from csglib.runs import read

    if not folder.is_dir():
        raise Problem(f"{folder} is not a folder: name one that holds runs")
    for path in sorted(p.parent for p in folder.glob("*/provenance.json")):
        m = read(path).metrics
        density = "-" if m["l1_density"] is None else f"{m['l1_density']:.4f}"
        print(f"{path.name:48} accuracy {m['accuracy']:.4f}  mis {m['mis']:.4f}  density {density}")


def verify(folders: Positional[tuple[Path, ...]]) -> None:
    """Recompute what runs say of themselves, and tell what that was: digests, metrics from the readout, the readout from the
    weights where images are.

    Args:
        folders: Run folders.
    """
    from csglib import runs
    from csglib.runs.verify import verify

    for folder in folders:
        print(f"{folder}: {verify(runs.read(folder))}")


def doctor(gpu: bool = False) -> None:
    """Say what is found here (Python, torch, GPU, data, runs) and what to do; exit with 1 where something has to be done.

    Args:
        gpu: Try the GPU instead, which takes some minutes: every method captured, stopped, side by side, in each precision.
    """
    from csglib.doctor import examine, try_gpu

    found = []
    for finding in try_gpu() if gpu else examine():
        print(finding, flush=True)
        found.append(finding.state)
    wrong = found.count("do")
    print(f"{wrong} thing{'s' * (wrong > 1)} to do, marked `do`" if wrong else "Nothing has to be done.")
    sys.exit(wrong > 0)


def main() -> None:
    commands = {"train": train, "evaluate": evaluate, "data": data, "runs": list_runs, "verify": verify}
    run_command("csglib", __doc__, commands | {"doctor": doctor})


def run_command(prog: str, description: str, commands: dict[str, Callable]) -> None:
    """Read the command line and do what it asks; what goes wrong is told in one sentence, with an exit status other than 0."""
    warnings.formatwarning = lambda message, *_: f"csglib: {message}\n"  # without the place in the code
    try:
        subcommand_cli_from_dict(commands, prog=prog, description=description)
    except Problem as problem:
        print(f"csglib: {problem}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        print(f"csglib: {error}: check that the path exists and can be written", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        told = "given again, `train` goes on from the last whole epoch, and a download where it was"
        print(f"csglib: stopped; {told}", file=sys.stderr)
        sys.exit(130)
