"""Downloads from a server on this machine that drops, stalls, lies and changes its mind.

Whatever it does, the file has its own name only when its bytes are those that were published.
Expected digests are hashlib's; expected requests are those of RFC 9110.
"""

from __future__ import annotations

import hashlib
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from rib_harness import DataError
from rib_harness.files.download import FRUITLESS, Patience, fetch
from rib_harness.progress import Silence
from rib_harness.specs import Archive

BODY = np.random.default_rng(0).bytes(700_000)
#: As long, but other bytes.
OTHER = np.random.default_rng(1).bytes(700_000)
FAST = Patience(answer=20, pause=0.01)
IMPATIENT = Patience(answer=0.3, pause=0.01)
AT_ONCE = Patience(answer=20, pause=0)
OLD, NEW = formatdate(1e9, usegmt=True), formatdate(1.1e9, usegmt=True)


class Asked(NamedTuple):
    """What a request asked for."""

    name: str
    range: str | None
    if_range: str | None


class Server(ThreadingHTTPServer):
    """Each name has its script: one step a request; the last one is repeated."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.steps: dict[str, list[Step]] = {}
        self.asked: list[Asked] = []
        self.closing = threading.Event()

    def url(self, name: str, *steps: Step) -> str:
        """An address that answers by this script."""
        self.steps[name] = list(steps)
        return f"http://127.0.0.1:{self.server_port}/{name}"

    @property
    def ranges(self) -> list[str | None]:
        return [one.range for one in self.asked]

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is no error here."""


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        name = self.path.removeprefix("/")
        before = sum(one.name == name for one in self.server.asked)
        self.server.asked.append(Asked(name, self.headers["Range"], self.headers["If-Range"]))
        steps = self.server.steps[name]
        steps[min(before, len(steps) - 1)](self)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing."""


Step = Callable[[Handler], None]


@dataclass(frozen=True)
class Serve:
    """Answers with a file, well or badly.

    Args:
        body: the file.
        stop: how many bytes are sent before it ends badly; None for all.
        how: it ends badly by `close`, `reset` or `stall`.
        ranges: whether it knows them.
        length: what it says instead of the length; empty for nothing.
        headers: more of them. An ETag or Last-Modified is compared with If-Range.
        honours: whether it cares about If-Range.
        content_range: what it says instead of the right one.
        before: done before it answers.
    """

    body: bytes = BODY
    stop: int | None = None
    how: str = "close"
    ranges: bool = True
    length: str | None = None
    headers: dict[str, str] = field(default_factory=dict)
    honours: bool = True
    content_range: str | None = None
    before: Callable[[], object] = bool

    def __call__(self, handler: Handler) -> None:
        self.before()
        asked, condition = handler.headers["Range"], handler.headers["If-Range"]
        start = 0
        if asked and self.ranges:
            same = condition in (None, *self.headers.values())
            start = int(asked.removeprefix("bytes=").removesuffix("-"))
            start = start if same or not self.honours else 0
        if start >= len(self.body):
            handler.send_error(416)
            return
        handler.send_response(206 if start else 200)
        if start:
            said = f"bytes {start}-{len(self.body) - 1}/{len(self.body)}"
            handler.send_header("Content-Range", self.content_range or said)
        length = str(len(self.body) - start) if self.length is None else self.length
        if length:
            handler.send_header("Content-Length", length)
        for name, value in {"Content-Type": "application/x-tar", **self.headers}.items():
            handler.send_header(name, value)
        handler.end_headers()
        stop = len(self.body) if self.stop is None else start + self.stop
        handler.wfile.write(self.body[start:stop])
        handler.wfile.flush()
        if self.how == "stall":
            handler.server.closing.wait(30)
        if self.how == "reset":
            handler.connection.setsockopt(
                socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
            )
            handler.connection.close()


def status(code: int, **headers: str) -> Step:
    """Answers with a code only."""

    def answer(handler: Handler) -> None:
        handler.send_response(code)
        for name, value in headers.items():
            handler.send_header(name, value)
        handler.end_headers()

    return answer


def chunked(stop: int) -> Step:
    """Answers in chunks of HTTP/1.1, without a length; drops within one, or ends well."""

    def answer(handler: Handler) -> None:
        handler.protocol_version, handler.close_connection = "HTTP/1.1", True
        handler.send_response(200)
        handler.send_header("Transfer-Encoding", "chunked")
        handler.end_headers()
        for start in range(0, stop, 50_000):
            piece = BODY[start : min(start + 50_000, stop)]
            handler.wfile.write(b"%x\r\n" % 50_000 + piece)  # which divides the body's length
            handler.wfile.write(b"\r\n" if len(piece) == 50_000 else b"")
        if stop == len(BODY):
            handler.wfile.write(b"0\r\n\r\n")

    return answer


PAGE = Serve(b"<html>Please log in</html>", ranges=False, headers={"Content-Type": "text/html"})


class Watch(Silence):
    """Notes what is said and shown."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.bars: list[tuple[int, int]] = []
        self.came = 0

    def bar(self, label: str, total: int, done: int = 0, unit: str = "images") -> Watch:
        assert unit == "bytes"
        self.bars.append((done, total))
        return self

    def say(self, line: str) -> None:
        self.lines.append(line)

    def advance(self, n: int, **numbers: float) -> None:
        self.came += n


class Stopped(Watch):
    """Ctrl-C after so many bytes."""

    def __init__(self, after: int) -> None:
        super().__init__()
        self.after = after

    def advance(self, n: int, **numbers: float) -> None:
        super().advance(n)
        if self.came >= self.after:
            raise KeyboardInterrupt


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with Server() as made:
        thread = threading.Thread(target=made.serve_forever, args=(0.01,))
        thread.start()
        yield made
        made.closing.set()
        made.shutdown()
        thread.join()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "data"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MiB; skips where none can be mounted."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(place)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("a small file system cannot be mounted here: needs root and `mount`")
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def published(*urls: str) -> Archive:
    return Archive(name="set.tar", urls=urls, size=len(BODY), sha256=sha256(BODY))


def get(
    archive: Archive, folder: Path, watch: Watch | None = None, patience: Patience = FAST
) -> None:
    """Fetch; what is there afterwards under the file's own name is always the published file."""
    target = folder / archive.name
    try:
        made = fetch(archive, folder, watch or Watch(), patience)
    finally:
        assert not target.exists() or target.read_bytes() == BODY
    assert made == target
    assert target.exists()
    assert not list(folder.glob("*.part*"))


def refused(
    archive: Archive,
    folder: Path,
    match: str,
    patience: Patience = FAST,
    watch: Watch | None = None,
) -> None:
    """Fetch in vain: a clear error, and nothing under the file's own name."""
    with pytest.raises(DataError, match=match):
        fetch(archive, folder, watch or Watch(), patience)
    assert not (folder / archive.name).exists()


def test_a_file_is_fetched_once(server: Server, folder: Path) -> None:
    watch = Watch()
    archive = published(server.url("a", Serve()))
    get(archive, folder, watch)
    assert watch.bars == [(0, len(BODY))]
    assert watch.came == len(BODY)
    get(archive, folder)
    assert server.asked == [Asked("a", None, None)]


@pytest.mark.parametrize("stop", [1, 1000, 2**18, 2**18 + 1, len(BODY) - 1])
def test_a_dropped_connection_goes_on_where_it_was(server: Server, folder: Path, stop: int) -> None:
    watch = Watch()
    get(published(server.url("a", Serve(stop=stop), Serve())), folder, watch)
    assert server.ranges == [None, f"bytes={stop}-"]
    assert watch.bars == [(0, len(BODY)), (stop, len(BODY))]
    assert watch.came == len(BODY)  # no byte came twice


def test_many_drops_are_no_reason_to_give_up_while_bytes_come(server: Server, folder: Path) -> None:
    get(published(server.url("a", Serve(stop=100_000))), folder)
    assert server.ranges == [None, *(f"bytes={n}00000-" for n in range(1, 7))]


def test_connections_that_bring_nothing_end_in_an_error(server: Server, folder: Path) -> None:
    archive = published(server.url("a", Serve(stop=1000), Serve(stop=0)))
    refused(archive, folder, f"closed early, {FRUITLESS} times")
    assert server.ranges == [None, *["bytes=1000-"] * FRUITLESS]
    server.url("a", Serve())
    server.asked.clear()
    get(archive, folder)
    assert server.ranges == ["bytes=1000-"]


def test_a_reset_connection_is_tried_again(server: Server, folder: Path) -> None:
    get(published(server.url("a", Serve(stop=300_000, how="reset"), Serve())), folder)
    assert len(server.asked) == 2


def test_what_came_is_in_the_file_at_once(server: Server, folder: Path) -> None:
    """For a process that is killed; also a little, which a buffer would keep back."""

    class Looking(Watch):
        def advance(self, n: int, **numbers: float) -> None:
            super().advance(n)
            assert (folder / "set.tar.part").stat().st_size == self.came

    watch = Looking()
    get(published(server.url("a", Serve(stop=1000), Serve(stop=1000), Serve())), folder, watch)
    assert watch.came == len(BODY)


def test_what_came_before_a_stall_is_kept(server: Server, folder: Path) -> None:
    url = server.url("a", Serve(stop=100_000, how="stall"), Serve())
    get(published(url), folder, patience=IMPATIENT)
    assert server.ranges == [None, "bytes=100000-"]


def test_stalls_are_no_reason_to_give_up_while_bytes_come(server: Server, folder: Path) -> None:
    url = server.url("a", Serve(stop=200_000, how="stall"))
    get(published(url), folder, patience=IMPATIENT)
    assert server.ranges == [None, "bytes=200000-", "bytes=400000-", "bytes=600000-"]


def test_a_server_that_never_answers_is_left_for_the_next(server: Server, folder: Path) -> None:
    url = server.url("a", Serve(before=lambda: server.closing.wait(30)))
    get(published(url, server.url("b", Serve())), folder, patience=IMPATIENT)
    assert [one.name for one in server.asked] == ["a"] * FRUITLESS + ["b"]


def test_a_server_that_ignores_ranges_sends_all_again(server: Server, folder: Path) -> None:
    watch = Watch()
    url = server.url("a", Serve(stop=300_000, ranges=False), Serve(ranges=False))
    get(published(url), folder, watch)
    assert server.ranges == [None, "bytes=300000-"]
    assert watch.bars == [(0, len(BODY))] * 2


def test_a_server_that_ignores_ranges_and_drops_is_given_up(server: Server, folder: Path) -> None:
    archive = published(server.url("a", Serve(stop=300_000, ranges=False)))
    refused(archive, folder, f"closed early, {FRUITLESS} times")


def test_a_server_that_ignores_ranges_is_not_asked_forever(server: Server, folder: Path) -> None:
    """It drops now earlier, now later: further than the last time, and nowhere."""
    drops = [Serve(stop=100_000 * (1 + n % 2), ranges=False) for n in range(40)]
    archive = published(server.url("a", *drops, status(404)))
    refused(archive, folder, "could not be downloaded", AT_ONCE)
    assert len(server.asked) < 40


def test_a_file_that_is_too_short_is_not_fetched_forever(server: Server, folder: Path) -> None:
    """Without a length it seems dropped; then 416; then all from the start."""
    short = Serve(BODY[:300_000], length="")
    archive = published(server.url("a", *[short] * 40, status(404)))
    refused(archive, folder, "could not be downloaded", AT_ONCE)
    assert len(server.asked) < 40


def test_the_pause_is_doubled_while_nothing_comes(
    server: Server, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slept: list[float] = []
    monkeypatch.setattr(time, "sleep", slept.append)
    refused(published(server.url("a", status(503))), folder, "503", Patience(20, 3))
    assert slept == [3, 6, 12]


def test_the_pause_is_short_again_when_bytes_came(
    server: Server, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else ten short outages in one large download make a pause of 17 minutes."""
    slept: list[float] = []
    monkeypatch.setattr(time, "sleep", slept.append)
    steps: list[Step] = [Serve(stop=50_000), status(503)] * 10
    get(published(server.url("a", *steps, Serve())), folder, patience=Patience(20, 3))
    assert slept == [3] * 10


@pytest.mark.parametrize("algorithm", ["sha256", "md5"])
def test_a_wrong_checksum_sends_to_the_next_mirror(
    server: Server, folder: Path, algorithm: str
) -> None:
    digest = hashlib.new(algorithm, BODY).hexdigest()
    came = hashlib.new(algorithm, OTHER).hexdigest()
    archive = Archive(
        name="set.tar",
        urls=(server.url("a", Serve(OTHER)), server.url("b", Serve())),
        **{algorithm: digest},  # type: ignore[arg-type]
    )
    watch = Watch()
    get(archive, folder, watch)
    assert server.asked == [Asked("a", None, None), Asked("b", None, None)]
    assert watch.lines == [f"{archive.urls[0]}: its {algorithm} is {came}, expected {digest}"]


def test_every_published_digest_is_checked(server: Server, folder: Path) -> None:
    url = server.url("a", Serve())
    right = replace(published(url), md5=hashlib.md5(BODY).hexdigest())
    refused(replace(right, md5="0" * 32), folder, f"md5 is {right.md5}, expected 000")
    refused(replace(right, sha256="0" * 64), folder, f"sha256 is {right.sha256}, expected 000")
    get(right, folder)


@pytest.mark.parametrize("code", [401, 403, 404, 410])
def test_a_refusal_is_not_repeated(server: Server, folder: Path, code: int) -> None:
    archive = published(server.url("a", status(code)), server.url("b", Serve()))
    get(archive, folder)
    assert [one.name for one in server.asked] == ["a", "b"]


@pytest.mark.parametrize("code", [408, 429, 500, 503])
def test_a_server_in_trouble_is_asked_again(server: Server, folder: Path, code: int) -> None:
    url = server.url("a", Serve(stop=1000), status(code), status(code), Serve())
    get(published(url), folder)
    assert server.ranges == [None, *["bytes=1000-"] * 3]


def test_a_server_that_stays_in_trouble_is_left_for_the_next(server: Server, folder: Path) -> None:
    archive = published(server.url("a", status(503)), server.url("b", Serve()))
    get(archive, folder)
    assert [one.name for one in server.asked] == ["a"] * FRUITLESS + ["b"]


def test_a_web_page_is_never_taken_for_the_file(server: Server, folder: Path) -> None:
    """As of a login, with status 200, also where nothing is known of the file."""
    unknown = Archive(name="set.tar", urls=(server.url("a", PAGE),))
    refused(unknown, folder, "a web page instead of the file")
    assert not (folder / "set.tar.part").exists()


def test_a_web_page_does_not_cost_what_has_come(server: Server, folder: Path) -> None:
    first = server.url("a", Serve(stop=1000), PAGE)
    get(published(first, server.url("b", Serve())), folder)
    assert server.ranges == [None, "bytes=1000-", "bytes=1000-"]


@pytest.mark.parametrize("length", [len(BODY) - 1, len(BODY) + 1, 0])
def test_a_file_of_another_length_is_not_even_begun(
    server: Server, folder: Path, length: int
) -> None:
    url = server.url("a", Serve(length=str(length)))
    refused(published(url), folder, f"its file has {length:,} bytes, expected 700,000")
    assert len(server.asked) == 1
    assert not (folder / "set.tar.part").exists()


@pytest.mark.parametrize("length", ["many", "-5", "7e5", "\u00b2"])
def test_a_length_that_is_no_number_is_the_mirrors_fault(
    server: Server, folder: Path, length: str
) -> None:
    watch = Watch()
    archive = published(server.url("a", Serve(length=length)), server.url("b", Serve()))
    get(archive, folder, watch)
    assert "Content-Length" in watch.lines[0]


def test_a_length_beyond_the_end_is_a_dropped_connection(server: Server, folder: Path) -> None:
    unknown = Archive(
        name="set.tar", urls=(server.url("a", Serve(length="800000")),), sha256=sha256(OTHER)
    )
    refused(unknown, folder, "could not be downloaded")


def test_without_a_length_the_published_size_tells_the_end(server: Server, folder: Path) -> None:
    get(published(server.url("a", Serve(stop=300_000, length=""), Serve(length=""))), folder)
    assert server.ranges == [None, "bytes=300000-"]


def test_chunks_are_put_together(server: Server, folder: Path) -> None:
    unknown = replace(published(server.url("a", chunked(len(BODY)))), size=None)
    get(unknown, folder)
    (folder / "set.tar").unlink()
    get(published(server.url("b", chunked(330_000), Serve())), folder)
    assert server.ranges == [None, None, "bytes=330000-"]


def test_without_any_length_the_digest_tells(server: Server, folder: Path) -> None:
    broken, whole = Serve(stop=300_000, length=""), Serve(length="")
    unknown = replace(published(server.url("a", broken), server.url("b", whole)), size=None)
    get(unknown, folder)
    assert server.ranges == [None, None]
    (folder / "set.tar").unlink()
    refused(replace(unknown, urls=unknown.urls[:1]), folder, "its sha256 is")


def test_ctrl_c_keeps_what_has_come(server: Server, folder: Path) -> None:
    archive = published(server.url("a", Serve()))
    with pytest.raises(KeyboardInterrupt):
        fetch(archive, folder, Stopped(after=300_000), FAST)
    kept = (folder / "set.tar.part").stat().st_size
    assert kept >= 300_000
    assert not (folder / "set.tar").exists()
    watch = Watch()
    get(archive, folder, watch)
    assert server.ranges == [None, f"bytes={kept}-"]
    assert watch.bars == [(kept, len(BODY))]


SCRIPT = """
import sys
from pathlib import Path
from rib_harness.files.download import Patience, fetch
from rib_harness.progress import Silence
from rib_harness.specs import Archive
name, url, size, sha256, folder = sys.argv[1:]
print("ready", flush=True)
archive = Archive(name=name, urls=(url,), size=int(size), sha256=sha256)
fetch(archive, Path(folder), Silence(), Patience(20, 0.01))
"""


def process(archive: Archive, folder: Path) -> subprocess.Popen[str]:
    """Another process that fetches it, and is about to begin."""
    options = [archive.name, *archive.urls, str(archive.size), archive.sha256, str(folder)]
    command = [sys.executable, "-c", SCRIPT, *options]
    started = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert started.stdout is not None
    assert started.stdout.readline() == "ready\n"
    return started


def test_a_killed_process_leaves_what_the_next_goes_on_with(server: Server, folder: Path) -> None:
    archive = published(server.url("a", Serve(stop=600_000, how="stall"), Serve()))
    part = folder / "set.tar.part"
    with process(archive, folder) as killed:
        while not part.exists() or part.stat().st_size < 2**18:
            assert killed.poll() is None
            time.sleep(0.01)
        killed.send_signal(signal.SIGKILL)
    assert not (folder / "set.tar").exists()
    kept = part.stat().st_size
    get(archive, folder)
    assert server.ranges == [None, f"bytes={kept}-"]


def test_two_processes_fetch_once(server: Server, folder: Path) -> None:
    waiting = threading.Event()
    archive = published(server.url("a", Serve(before=lambda: waiting.wait(30))))
    with process(archive, folder) as one, process(archive, folder) as two:
        time.sleep(0.3)
        waiting.set()
        assert (one.wait(), two.wait()) == (0, 0)
    assert len(server.asked) == 1
    assert (folder / "set.tar").read_bytes() == BODY


def test_two_threads_fetch_once(server: Server, folder: Path) -> None:
    archive = published(server.url("a", Serve(before=lambda: time.sleep(0.2))))
    with ThreadPoolExecutor(4) as pool:
        made = list(pool.map(lambda _: fetch(archive, folder, Watch(), FAST), range(4)))
    assert made == [folder / "set.tar"] * 4
    assert len(server.asked) == 1
    assert made[0].read_bytes() == BODY


def interrupted(server: Server, folder: Path, step: Serve) -> Archive:
    """A download that was stopped after 300,000 bytes or more, as `step` served it."""
    archive = published(server.url("a", step))
    with pytest.raises(KeyboardInterrupt):
        fetch(archive, folder, Stopped(after=300_000), FAST)
    server.asked.clear()
    return archive


@pytest.mark.parametrize(
    ("first", "then", "condition"),
    [
        ({"ETag": '"1"'}, {"ETag": '"2"'}, '"1"'),
        ({"ETag": '"1"', "Last-Modified": OLD}, {"ETag": '"2"', "Last-Modified": NEW}, '"1"'),
        ({"ETag": 'W/"1"', "Last-Modified": OLD}, {"Last-Modified": NEW}, OLD),
        ({"Last-Modified": OLD}, {"Last-Modified": NEW}, OLD),
    ],
)
def test_a_file_that_was_changed_meanwhile_is_fetched_from_the_start(
    server: Server, folder: Path, first: dict[str, str], then: dict[str, str], condition: str
) -> None:
    """RFC 9110, 13.1.5: `If-Range` carries a strong ETag or a date; else all is sent."""
    archive = interrupted(server, folder, Serve(OTHER, headers=first))
    server.url("a", Serve(headers=then))
    watch = Watch()
    get(archive, folder, watch)
    assert [one.if_range for one in server.asked] == [condition]
    assert watch.bars == [(0, len(BODY))]


def test_a_file_that_is_the_same_goes_on(server: Server, folder: Path) -> None:
    archive = interrupted(server, folder, Serve(headers={"ETag": '"1"'}))
    watch = Watch()
    get(archive, folder, watch)
    assert [one.if_range for one in server.asked] == ['"1"']
    assert watch.bars[0][0] >= 300_000


def test_what_one_server_calls_its_file_is_not_told_to_another(
    server: Server, folder: Path
) -> None:
    archive = interrupted(server, folder, Serve(headers={"ETag": '"1"'}))
    kept = (folder / "set.tar.part").stat().st_size
    get(replace(archive, urls=(server.url("b", Serve(headers={"ETag": '"9"'})),)), folder)
    assert server.asked == [Asked("b", f"bytes={kept}-", None)]


@pytest.mark.parametrize("headers", [{}, {"ETag": '"2"'}])
def test_a_changed_file_behind_a_server_that_does_not_say_so_is_found_by_its_digest(
    server: Server, folder: Path, headers: dict[str, str]
) -> None:
    archive = interrupted(server, folder, Serve(OTHER, headers={"ETag": '"1"'} if headers else {}))
    kept = (folder / "set.tar.part").stat().st_size
    server.url("a", Serve(headers=headers, honours=False))
    get(archive, folder)
    assert server.ranges == [f"bytes={kept}-", None]


def test_a_file_that_changes_within_one_download_is_never_mixed(
    server: Server, folder: Path
) -> None:
    steps = Serve(OTHER, stop=300_000), Serve()
    refused(published(server.url("a", *steps)), folder, "its sha256 is")
    get(published(server.url("a", *steps)), folder)


@pytest.mark.parametrize("size", [1, 300_000, len(BODY)])
def test_a_kept_part_of_another_file_costs_one_more_request(
    server: Server, folder: Path, size: int
) -> None:
    folder.mkdir()
    (folder / "set.tar.part").write_bytes(OTHER[:size])
    get(published(server.url("a", Serve())), folder)
    asked = [f"bytes={size}-", None] if size < len(BODY) else [None]
    assert server.ranges == asked


@pytest.mark.parametrize("said", ["", "[]", "{", '{"url": 3, "tag": null}', "\udcff"])
def test_a_damaged_note_beside_the_part_is_no_matter(
    server: Server, folder: Path, said: str
) -> None:
    folder.mkdir()
    (folder / "set.tar.part").write_bytes(BODY[:1000])
    (folder / "set.tar.part.json").write_bytes(said.encode(errors="surrogateescape"))
    get(published(server.url("a", Serve())), folder)
    assert server.ranges == ["bytes=1000-"]


def test_a_part_that_is_too_long_is_fetched_anew(server: Server, folder: Path) -> None:
    folder.mkdir()
    (folder / "set.tar.part").write_bytes(BODY + b"more")
    get(published(server.url("a", Serve())), folder)
    assert server.ranges == ["bytes=700004-", None]


def test_a_whole_part_only_needs_its_name(server: Server, folder: Path) -> None:
    """A process was killed after the last byte. Where the size is unknown, the server says 416."""
    archive = published(server.url("a", Serve()))
    for known in (archive, replace(archive, size=None)):
        folder.mkdir(exist_ok=True)
        (folder / "set.tar.part").write_bytes(BODY)
        get(known, folder)
        (folder / "set.tar").unlink()
    assert server.ranges == ["bytes=700000-"]


@pytest.mark.parametrize("said", ["bytes 7-9/700000", "bytes */700000", "pages 1-2", "nonsense"])
def test_other_bytes_than_asked_for_are_not_taken(server: Server, folder: Path, said: str) -> None:
    url = server.url("a", Serve(stop=1000), Serve(content_range=said))
    refused(published(url), folder, r"it sent (bytes from 7 when|no valid Content-Range)")
    assert (folder / "set.tar.part").read_bytes() == BODY[:1000]


def test_a_redirected_request_still_goes_on(server: Server, folder: Path) -> None:
    to = server.url("b", Serve(stop=1000), Serve())
    get(published(server.url("a", status(302, Location=to))), folder)
    assert server.asked[2:] == [Asked("a", "bytes=1000-", None), Asked("b", "bytes=1000-", None)]


def test_the_error_lists_what_each_mirror_did_and_what_to_do(server: Server, folder: Path) -> None:
    with socket.socket() as closed:  # a port where nobody listens
        closed.bind(("127.0.0.1", 0))
        nobody = f"http://127.0.0.1:{closed.getsockname()[1]}/e"
    steps: list[Step] = [status(404), PAGE, Serve(OTHER), status(500)]
    urls = [server.url(name, step) for name, step in zip("abcd", steps, strict=True)]
    with pytest.raises(DataError) as caught:
        fetch(published(*urls, nobody), folder, Watch(), FAST)
    lines = str(caught.value).splitlines()
    assert lines[0] == "set.tar could not be downloaded:"
    said = ["404", "a web page", "its sha256 is", "500", "Connection refused"]
    for line, url, word in zip(lines[1:6], [*urls, nobody], said, strict=True):
        assert line.startswith(f"  - {url}: ")
        assert word in line
    assert "the same command goes on" in lines[6]
    assert "--from FILE" in lines[6]
    assert not (folder / "set.tar").exists()


def test_a_file_that_no_program_can_fetch_says_how_a_person_gets_it(folder: Path) -> None:
    archive = replace(published(), get="Log in on https://image-net.org.")
    refused(archive, folder, r"Log in on https://image-net.org. Then: .* --from FILE")


def test_a_damaged_file_that_is_there_is_fetched_again(server: Server, folder: Path) -> None:
    folder.mkdir()
    for damaged in (OTHER, BODY[:-1], b""):
        (folder / "set.tar").write_bytes(damaged)
        watch = Watch()
        get(published(server.url("a", Serve())), folder, watch)
        assert "it is fetched again" in watch.lines[0]
    assert len(server.asked) == 3


def test_a_damaged_file_goes_also_where_none_can_be_had(server: Server, folder: Path) -> None:
    folder.mkdir()
    (folder / "set.tar").write_bytes(OTHER)
    refused(published(server.url("a", status(404))), folder, "404")


def free_space(monkeypatch: pytest.MonkeyPatch, free: int) -> None:
    """A disk of 5 MB, of which 100,000 bytes (a fiftieth) are always left free."""
    usage = shutil.disk_usage("/")._replace(total=5_000_000, used=0, free=free)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)


def test_what_does_not_fit_is_not_begun(
    server: Server, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = published(server.url("a", Serve()))
    free_space(monkeypatch, 799_999)
    refused(archive, folder, r"needs 0\.00 GiB on the disk of .* Make room")
    assert not (folder / "set.tar.part").exists()
    free_space(monkeypatch, 800_000)
    get(archive, folder)


def test_to_go_on_only_the_rest_must_fit(
    server: Server, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder.mkdir()
    (folder / "set.tar.part").write_bytes(BODY[:500_000])
    archive = published(server.url("a", Serve()))
    free_space(monkeypatch, 299_999)
    refused(archive, folder, "Make room")
    assert (folder / "set.tar.part").read_bytes() == BODY[:500_000]
    free_space(monkeypatch, 300_000)
    get(archive, folder)
    assert server.ranges == ["bytes=500000-"] * 2


def test_to_begin_again_the_room_of_what_came_counts(
    server: Server, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder.mkdir()
    (folder / "set.tar.part").write_bytes(BODY[:500_000])
    free_space(monkeypatch, 300_000)
    get(published(server.url("a", Serve(ranges=False))), folder)


def test_a_small_disk_is_not_filled_by_what_does_not_fit(server: Server, small_disk: Path) -> None:
    large = BODY * 3
    archive = Archive(name="set.tar", urls=(server.url("a", Serve(large)),), sha256=sha256(large))
    refused(archive, small_disk, "Make room, or choose another --data-root")
    assert not (small_disk / "set.tar.part").exists()


def test_a_disk_that_fills_keeps_what_has_come_and_goes_on(
    server: Server, small_disk: Path
) -> None:
    """Somebody else fills it, when the download has begun."""
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(1_200_000))

    def fill() -> None:
        with ballast.open("ab") as file:
            file.write(bytes(350_000))

    class Filling(Watch):
        def bar(self, *args: Any, **options: Any) -> Watch:
            fill()
            return super().bar(*args, **options)

    archive = published(server.url("a", Serve()), server.url("b", Serve()))
    message = r"The disk of .* is full\. [\d,]+ bytes of set\.tar are kept; make room"
    refused(archive, small_disk, message, watch=Filling())
    part = small_disk / "set.tar.part"
    kept = part.stat().st_size
    assert 2**18 <= kept < len(BODY)
    assert part.read_bytes() == BODY[:kept]
    assert [one.name for one in server.asked] == ["a"]  # another mirror would not help
    ballast.unlink()
    get(archive, small_disk)
    assert server.ranges == [None, f"bytes={kept}-"]


def test_a_disk_that_has_room_again_in_time_loses_nothing(server: Server, small_disk: Path) -> None:
    """An unbuffered `write` may write less than it was given."""
    ballast, part = small_disk / "ballast", small_disk / "set.tar.part"
    ballast.write_bytes(bytes(1_200_000))

    class Emptied(Watch):
        def bar(self, *args: Any, **options: Any) -> Watch:
            with ballast.open("ab") as file:
                file.write(bytes(350_000))
            return super().bar(*args, **options)

        def advance(self, n: int, **numbers: float) -> None:
            super().advance(n)
            if ballast.exists() and part.stat().st_size < self.came:
                ballast.unlink()

    archive = published(server.url("a", Serve()))
    watch = Emptied()
    try:
        get(archive, small_disk, watch)
    except DataError as error:
        assert "is full" in str(error)
        kept = part.read_bytes()
        assert kept == BODY[: len(kept)]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_a_full_disk_is_told_where_none_can_be_mounted(server: Server, folder: Path) -> None:
    folder.mkdir()
    (folder / "set.tar.part").symlink_to("/dev/full")
    refused(published(server.url("a", Serve())), folder, r"The disk of .* is full\. 0 bytes")
    assert len(server.asked) == 1
