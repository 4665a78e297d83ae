"""Downloads: over a connection that breaks, from servers that know ranges and such that do not, onto a disk that fills."""

import dataclasses
import errno
import hashlib
import http.server
import os
import re
import resource
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import ROOT

from csglib import Problem
from csglib.data import download
from csglib.data.download import Archive, fetched
from csglib.files import lock

BYTES = np.random.default_rng(0).bytes(200_000)


class Handler(http.server.BaseHTTPRequestHandler):
    """Sends the file that its server has, or what is asked of it, and breaks off as often and where it is told to."""

    def do_GET(self):
        place, asked = self.server, self.headers["Range"]
        place.asked.append(asked)
        if place.status:
            return self.send_error(place.status)
        whole, start = place.content, 0
        if asked and place.ranges:
            start = int(re.fullmatch(r"bytes=(\d+)-", asked)[1])
            if start >= len(whole):
                return self.send_error(416)
            start = max(0, start + place.shift)
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(whole) - 1}/{len(whole)}")
        else:
            self.send_response(200)
        if place.length:
            self.send_header("Content-Length", str(len(whole) - start))
        self.end_headers()
        self.wfile.write(whole[start:][: place.breaks.pop(0) if place.breaks else None])
        place.open.wait(60)

    def log_message(self, *_):
        pass


@pytest.fixture
def place(monkeypatch):
    """A server: its content, whether it knows ranges, after how many bytes its next connections break; what it was asked."""
    monkeypatch.setattr(download, "PAUSE", 0.0)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        vars(server).update(content=BYTES, ranges=True, length=True, breaks=[], asked=[], status=0, shift=0)
        server.open = threading.Event()  # until then a connection stays open when all is sent
        server.open.set()
        threading.Thread(target=server.serve_forever, args=[0.01], daemon=True).start()
        yield server
        server.open.set()
        server.shutdown()


@pytest.fixture
def get(place, tmp_path):
    """get(): the bytes that come, and nothing else stays; get(digest=""), get(size=0) without what is known of them."""

    def call(**changes) -> bytes:
        url = f"http://127.0.0.1:{place.server_port}/set.tar.gz"
        known = Archive(url, hashlib.md5(BYTES).hexdigest(), len(BYTES))
        with fetched(dataclasses.replace(known, **changes), "The set", tmp_path / "set.part", "put it there by hand") as path:
            assert path.parent == tmp_path / "set.part"
            content = path.read_bytes()
        assert list(tmp_path.iterdir()) == []
        return content

    return call


def here(folder: Path) -> dict[str, int]:
    return {p.relative_to(folder).as_posix(): p.stat().st_size for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("known", [{}, {"size": 0}, {"digest": ""}, {"digest": "", "size": 0}])
@pytest.mark.parametrize("length", [True, False])
def test_a_file_comes_whole_with_what_is_known_of_it_and_without(length, known, place, get, capsys):
    place.length = length
    assert get(**known) == BYTES
    assert "The set" in capsys.readouterr().err  # the bar
    assert place.asked == [None]


@pytest.mark.parametrize("length", [True, False])
def test_a_connection_that_breaks_is_taken_up_where_it_broke(length, place, get):
    place.length, place.breaks = length, [50_000, 70_000, 1]
    assert get() == BYTES
    assert place.asked == [None, "bytes=50000-", "bytes=120000-", "bytes=120001-"]


def test_without_ranges_the_file_begins_anew(place, get):
    place.ranges, place.breaks = False, [50_000, 70_000]
    assert get() == BYTES
    assert place.asked == [None, "bytes=50000-", "bytes=70000-"]


def test_without_ranges_a_connection_that_always_breaks_at_one_place_ends_with_the_remedy(place, get, tmp_path):
    place.ranges, place.breaks = False, [50_000] * 9
    with pytest.raises(Problem, match="could not download The set .*it ended after 50,000 of 200,000 bytes"):
        get()
    assert len(place.asked) == 2


@pytest.mark.parametrize("ranges", [True, False])
def test_the_next_call_goes_on_with_what_came(ranges, place, get, tmp_path):
    place.breaks = [150_000, 0]
    with pytest.raises(Problem, match=r"0\.1 of 0\.2 MiB are kept in .*set\.part.* goes on from there: try again, or put it"):
        get()
    assert here(tmp_path) == {"set.part/set.tar.gz": 150_000}
    place.ranges, place.asked = ranges, []
    assert get() == BYTES
    assert place.asked == ["bytes=150000-"]


def test_a_call_that_was_stopped_goes_on_too_and_its_litter_goes(place, get, tmp_path):
    (tmp_path / "set.part" / "unpacked").mkdir(parents=True)
    (tmp_path / "set.part" / "unpacked" / "half.bin").write_bytes(b"half")
    (tmp_path / "set.part" / "set.tar.gz").write_bytes(BYTES[:1000])
    assert get() == BYTES
    assert place.asked == ["bytes=1000-"]


KILLED = """
import sys
from pathlib import Path
from csglib.data.download import Archive, fetched
url, digest, folder = sys.argv[1:]
with fetched(Archive(url, digest), "The set", Path(folder), "") as path:
    pass
"""


@pytest.mark.slow
def test_a_process_that_is_killed_leaves_what_came_to_the_next(place, get, tmp_path):
    place.content, place.breaks = BYTES * 20, [3_500_000]
    place.open.clear()
    url, digest = f"http://127.0.0.1:{place.server_port}/set.tar.gz", hashlib.md5(place.content).hexdigest()
    child = subprocess.Popen([sys.executable, "-c", KILLED, url, digest, tmp_path / "set.part"], cwd=ROOT)
    try:
        until = time.monotonic() + 60
        while here(tmp_path) != {"set.part/set.tar.gz": 3 << 20} and time.monotonic() < until:
            time.sleep(0.05)
    finally:
        child.kill()
        child.wait()
    place.open.set()
    place.asked = []
    assert get(digest=digest, size=len(place.content)) == place.content
    assert place.asked == [f"bytes={3 << 20}-"]


def test_ctrl_c_keeps_what_came(place, get, tmp_path, monkeypatch):
    class Stopped:
        def __init__(self, **_):
            pass

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def update(self, n):
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(download, "tqdm", Stopped)
        with pytest.raises(KeyboardInterrupt):
            get()
    assert here(tmp_path) == {"set.part/set.tar.gz": len(BYTES)}  # one block
    place.asked = []
    assert get() == BYTES
    assert place.asked == []  # it was whole


def test_where_nothing_is_known_of_the_whole_a_broken_download_is_not_kept(place, get, tmp_path):
    place.breaks = [1000, 0]
    with pytest.raises(Problem, match=r"could not download The set from .*\): try again"):
        get(digest="")
    assert list(tmp_path.iterdir()) == []


def test_a_whole_file_of_unknown_size_is_not_asked_for_again(place, get, tmp_path):
    (tmp_path / "set.part").mkdir()
    (tmp_path / "set.part" / "set.tar.gz").write_bytes(BYTES)
    assert get(size=0) == BYTES  # the server says that there is no more
    assert place.asked == [f"bytes={len(BYTES)}-"]


@pytest.mark.parametrize("shift", [-500, -50_000])
def test_a_server_that_sends_more_than_the_rest_is_written_where_it_belongs(shift, place, get):
    place.breaks, place.shift = [50_000], shift
    assert get() == BYTES


def test_a_server_that_leaves_bytes_out_is_not_believed(place, get, tmp_path):
    place.breaks, place.shift = [50_000], 500
    with pytest.raises(Problem, match="it sends another part of the file than it was asked for"):
        get()
    assert list(tmp_path.iterdir()) == []


def test_another_file_of_this_size_is_refused_and_goes(place, get, tmp_path):
    place.content = b"x" * len(BYTES)
    with pytest.raises(Problem, match=r"is not the official release \(its md5 differs\): try again, or put it there by hand"):
        get()
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_changed_between_its_parts_is_refused_and_then_comes_whole(place, get, tmp_path):
    (tmp_path / "set.part").mkdir()
    (tmp_path / "set.part" / "set.tar.gz").write_bytes(b"x" * 1000)
    with pytest.raises(Problem, match="its md5 differs"):
        get()
    assert get() == BYTES


@pytest.mark.parametrize("content", [b"<html>sorry</html>", BYTES + b"more"])
def test_a_file_of_another_size_is_refused_before_it_comes_and_what_was_kept_stays(content, place, get, tmp_path):
    place.content, place.ranges = content, False
    with pytest.raises(Problem, match=rf"sends another file than The set, of {len(content):,} bytes in place of 200,000"):
        get()
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "set.part").mkdir()
    (tmp_path / "set.part" / "set.tar.gz").write_bytes(BYTES[:1000])
    with pytest.raises(Problem, match="sends another file"):
        get()
    assert here(tmp_path) == {"set.part/set.tar.gz": 1000}


def test_an_endless_file_is_stopped_and_goes(place, get, tmp_path, monkeypatch):
    place.length = False
    place.content = BYTES * 2
    with pytest.raises(Problem, match="sends more than The set can have"):
        get()
    monkeypatch.setattr(download, "MOST", 1000)
    with pytest.raises(Problem, match="sends more than The set can have"):
        get(size=0)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("status", [403, 404, 500, 503])
def test_a_server_that_refuses_is_asked_once(status, place, get, tmp_path):
    place.status = status
    with pytest.raises(Problem, match=rf"could not download The set from .*{status}.*: try again, or put it there by hand"):
        get()
    assert len(place.asked) == 1 and list(tmp_path.iterdir()) == []


def test_two_at_once_are_refused(place, get, tmp_path):
    (tmp_path / "set.part").mkdir()
    held = lock(tmp_path / "set.part")
    try:
        with pytest.raises(Problem, match=r"another process is at work in .*set\.part: wait"):
            get()
    finally:
        os.close(held)
    assert place.asked == []


# A disk that fills


def test_a_set_for_which_there_is_no_room_is_refused_before_it_comes(place, get, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=10**9))
    with pytest.raises(
        Problem, match=r"The set needs 1\.50 GB in .*, and 1\.00 GB are free: free some space, or set CSGLIB_DATA"
    ):
        get(room=15 * 10**8)
    assert place.asked == [] and list(tmp_path.iterdir()) == []


def test_a_disk_that_fills_while_it_comes_is_told_and_the_same_command_goes_on(place, get, tmp_path):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, before[1]))
        with pytest.raises(
            Problem, match=r"the disk with .* is full while The set is written, and .*gz is kept: free some space"
        ):
            get()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert here(tmp_path) == {"set.part/set.tar.gz": 60_000}
    assert get() == BYTES
    assert place.asked == [None, "bytes=60000-"]


def test_a_disk_that_fills_while_it_is_unpacked_keeps_the_download_alone(place, get, tmp_path):
    archive = Archive(f"http://127.0.0.1:{place.server_port}/set.tar.gz", hashlib.md5(BYTES).hexdigest(), len(BYTES))
    full = pytest.raises(Problem, match=r"is full while The set is written, and .*gz is kept")
    with full, fetched(archive, "The set", tmp_path / "set.part", "") as path:
        (path.parent / "unpacked").mkdir()
        (path.parent / "unpacked" / "half.bin").write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")
    assert here(tmp_path) == {"set.part/set.tar.gz": len(BYTES)}
    place.asked = []
    assert get() == BYTES and place.asked == []
