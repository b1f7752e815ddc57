"""`rib-harness data`: from nothing, an archive or a folder to a whole set, or a clear error.

The set is ImageNet-A with one small picture a class, published by a server on loopback.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image
from rib_plugin_imagenet_ood import published
from rib_plugin_imagenet_ood.classes import imagenet_classes
from rib_plugin_imagenet_ood.datasets import ShiftedImageNet

from rib_harness import Archive
from rib_harness.cli import cli

WNIDS = [c.wnid for c in imagenet_classes() if "a" in c.sets]


def make_tar(path: Path, classes: int = 200, extra: bytes = b"") -> Path:
    """ImageNet-A's archive with one picture in each of its classes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    with tarfile.open(path, "w") as tar:
        for k, wnid in enumerate(WNIDS[:classes]):
            buffer = io.BytesIO()
            Image.fromarray(rng.integers(0, 256, (12, 12, 3), dtype=np.uint8)).save(buffer, "PNG")
            info = tarfile.TarInfo(f"imagenet-a/{wnid}/{k} wrong guess _ 0.5.png")
            info.size = len(buffer.getvalue()) + len(extra)
            tar.addfile(info, io.BytesIO(buffer.getvalue() + extra))
    return path


class Server:
    """Serves one file; `script` says how each answer goes wrong."""

    def __init__(self, data: bytes):
        self.data, self.script, self.ranges = data, list[str](), list[str]()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.answer(self)

            def log_message(self, *_: Any) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.http.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.http.server_port}/imagenet-a.tar"

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        how = self.script.pop(0) if self.script else "fine"
        asked = request.headers.get("Range", "")
        self.ranges.append(asked)
        data, start = self.data, int(asked[6:-1]) if asked else 0
        if how == "wrong":
            data = data[:-1] + b"x"
        if how == "no ranges":
            start = 0
        request.send_response(206 if start else 200)
        if start:
            request.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        request.send_header("Content-Length", str(len(data) - start))
        request.end_headers()
        body = data[start:]
        try:
            if how == "drop":
                request.wfile.write(body[: len(body) // 2])
            elif how == "slow":
                for piece in range(0, len(body), 4096):
                    request.wfile.write(body[piece : piece + 4096])
                    time.sleep(0.02)
            else:
                request.wfile.write(body)
        except ConnectionError:
            pass


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    serving = Server(make_tar(tmp_path / "published/imagenet-a.tar").read_bytes())
    yield serving
    serving.http.shutdown()
    serving.http.server_close()


@pytest.fixture(autouse=True)
def small_published_set(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = Archive(
        name="imagenet-a.tar",
        urls=(server.url,),
        size=len(server.data),
        md5=hashlib.md5(server.data).hexdigest(),
    )
    small = replace(published.BY_NAME["imagenet-a"], images=200, archives=(archive,))
    monkeypatch.setitem(published.BY_NAME, "imagenet-a", small)
    monkeypatch.setattr("rib_harness.files.download.Patience.pause", 0.01, raising=False)


def data(*arguments: str, root: str | None = "data") -> Result:
    where = ["--data-root", root] if root else []
    return CliRunner().invoke(cli, ["data", *arguments, *where], catch_exceptions=True)


def told(result: Result) -> str:
    """The one message of a user's mistake."""
    assert result.exit_code != 0
    return str(result.exception)


def fingerprint(root: str = "data") -> str:
    return ShiftedImageNet(name="imagenet-a").open(Path(root)).fingerprint


def leftovers() -> list[str]:
    """What lies in the data root beside locks and downloads."""
    return sorted(p.name for p in Path("data").iterdir() if not p.name.endswith(".lock"))


def test_a_set_is_downloaded_checked_and_there_the_second_time(server: Server) -> None:
    result = data("prepare", "imagenet-a")
    assert result.exit_code == 0, result.output
    assert "imagenet-a: 200 images of 200, 200 of 200 classes" in result.output
    assert result.output.rstrip().endswith("whole")
    assert len(list(Path("data/imagenet-a").glob("*/*.png"))) == 200
    assert leftovers() == [".downloads", "imagenet-a"]
    assert not list(Path("data/.downloads").glob("*.tar"))
    again = data("prepare", "imagenet-a", "--json")
    assert json.loads(again.stdout)["fingerprint"] == fingerprint()
    assert server.ranges == [""]
    assert data("path", "imagenet-a").output.strip() == str(Path("data/imagenet-a"))
    verified = data("verify", "imagenet-a", "--all", "--json")
    assert verified.exit_code == 0
    assert json.loads(verified.stdout)["decoded"] == 200


@pytest.mark.parametrize(
    "script", [["drop"], ["drop", "drop", "drop"], ["drop", "no ranges"], ["wrong", "wrong"]]
)
def test_a_bad_server_ends_in_the_whole_set_or_in_an_error(
    server: Server, script: list[str]
) -> None:
    server.script = list(script)
    result = data("prepare", "imagenet-a")
    if "wrong" in script:
        assert "its md5 is" in told(result)
        assert leftovers() == [".downloads"]
        server.script = []
        result = data("prepare", "imagenet-a")
    assert result.exit_code == 0, result.exception
    if script[0] == "drop":
        assert server.ranges[1] == f"bytes={len(server.data) // 2}-"
    assert len(list(Path("data/imagenet-a").glob("*/*.png"))) == 200


def test_offline_nothing_is_fetched_and_the_address_is_told(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("RIB_OFFLINE", "HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
        monkeypatch.setenv(name, "0")  # restored afterwards
    message = told(data("prepare", "imagenet-a", "--offline"))
    assert "--offline forbids to download it" in message
    assert server.url in message
    assert server.ranges == []


@pytest.mark.parametrize("how", [[], ["--copy"], ["--no-extract"], ["--no-extract", "--copy"]])
def test_an_archive_that_is_here_is_unpacked_or_read_in_place(
    tmp_path: Path, how: list[str]
) -> None:
    tar = tmp_path / "published/imagenet-a.tar"
    result = data("prepare", "imagenet-a", "--from", str(tar), *how)
    assert result.exit_code == 0, result.exception
    assert tar.is_file()
    found = ShiftedImageNet(name="imagenet-a").open(Path("data"))
    assert found.form == ("tar" if "--no-extract" in how else "folder")
    if "--no-extract" in how:
        assert Path("data/imagenet-a/imagenet-a.tar").is_symlink() == ("--copy" not in how)


@pytest.mark.parametrize("copy", [True, False])
def test_a_folder_that_is_here_is_linked_to_or_copied(tmp_path: Path, copy: bool) -> None:
    with tarfile.open(tmp_path / "published/imagenet-a.tar") as tar:
        tar.extractall(tmp_path / "mine", filter="data")
    mine = tmp_path / "mine/imagenet-a"
    result = data("prepare", "imagenet-a", "--from", str(mine), *(["--copy"] if copy else []))
    assert result.exit_code == 0, result.exception
    assert Path("data/imagenet-a").is_symlink() != copy
    assert len(ShiftedImageNet(name="imagenet-a").open(Path("data"))) == 200


def test_another_archive_is_refused_unless_it_is_wanted(tmp_path: Path) -> None:
    other = make_tar(tmp_path / "other/imagenet-a.tar", extra=b"more")
    message = told(data("prepare", "imagenet-a", "--from", str(other)))
    assert "is not the published imagenet-a.tar: it has" in message
    assert leftovers() == []
    result = data("prepare", "imagenet-a", "--from", str(other), "--any-checksum")
    assert result.exit_code == 0, result.exception


def test_a_set_that_is_not_whole_is_refused_unless_it_is_wanted(tmp_path: Path) -> None:
    part = make_tar(tmp_path / "part/imagenet-a.tar", classes=190)
    arguments = ["prepare", "imagenet-a", "--from", str(part), "--any-checksum"]
    message = told(data(*arguments))
    assert "190 images, expected 200" in message
    assert f"class without any image: {WNIDS[190]}" in message
    assert leftovers() == []
    assert data(*arguments, "--allow-partial").exit_code == 0
    verified = data("verify", "imagenet-a")
    assert verified.exit_code == 1
    assert "DIFFERS: 190 images, expected 200" in verified.output
    assert "not the published set" in verified.output
    assert "is not whole" in told(data("prepare", "imagenet-a"))


def test_broken_duplicate_black_and_rotated_pictures_are_told(tmp_path: Path) -> None:
    data("prepare", "imagenet-a")
    files = sorted(Path("data/imagenet-a").glob("*/*.png"))
    files[0].write_bytes(b"")
    files[1].write_bytes(files[1].read_bytes()[:60])
    shutil.copy(files[2], files[3])
    Image.new("RGB", (9, 9)).save(files[4])
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (9, 7), (9, 9, 9)).save(files[5], exif=exif)
    result = data("verify", "imagenet-a", "--all")
    assert result.exit_code == 1
    for file in files[:2]:
        assert f"DIFFERS: picture that cannot be decoded: {file}" in result.output
    assert "note: picture in two classes: " in result.output
    assert "note: 1 pictures are all black" in result.output
    assert "note: 1 pictures carry an EXIF rotation, which is not applied" in result.output


def test_what_is_there_already_is_never_overwritten(tmp_path: Path) -> None:
    Path("data").mkdir()
    Path("data/imagenet-a").write_text("a file of mine")
    message = told(data("prepare", "imagenet-a"))
    assert "is in the way; move it" in message
    assert Path("data/imagenet-a").read_text() == "a file of mine"
    assert leftovers() == [".downloads", "imagenet-a"]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["prepare", "imagenet-a", "--from", "nowhere.tar"], "there is no file or folder"),
        (["prepare", "imagenet-b"], "or 'imagenet-a'?"),
        (["prepare", "imagenet-a:variant=x"], "has no option 'variant'"),
        (["prepare", "imagenet"], "cannot be downloaded by a program. Log in on https://image-net"),
        (["make", "imagenet-a"], "cannot be made here"),
        (["path", "imagenet-r"], "Get it: rib-harness data prepare imagenet-r"),
        (["prepare", "digits-r"], ""),
    ],
    ids=str,
)
def test_mistakes_are_told_in_one_message(arguments: list[str], expected: str) -> None:
    result = data(*arguments)
    if expected:
        assert expected in told(result)
    else:  # embedded: it is there
        assert result.exit_code == 0


def test_no_data_root_is_told() -> None:
    result = data("prepare", "imagenet-a", root=None)
    assert result.exit_code == 2
    assert "--data-root DIR" in result.output


def test_list_and_info_know_what_is_here(server: Server) -> None:
    assert data("prepare", "imagenet-a").exit_code == 0
    listed = json.loads(data("list", "--json").stdout)
    here = {row["id"]: row["location"] for row in listed}
    assert here["imagenet-ood/imagenet-a"] == str(Path("data/imagenet-a"))
    assert here["imagenet-ood/imagenet-r"] is None
    facts = json.loads(data("info", "imagenet-a", "--json").stdout)
    assert facts["archives"][0]["urls"] == [server.url]
    text = data("info", "imagenet-v2:variant=top-images").output
    assert "imagenetv2-top-images.tar.gz" in text
    assert "--accept-license objectnet" in data("info", "objectnet").output


CHILD = """
import sys
from dataclasses import replace
from rib_harness import Archive
from rib_plugin_imagenet_ood import published
small = replace(published.BY_NAME["imagenet-a"], images=200,
                archives=(Archive(name="imagenet-a.tar", urls=(sys.argv[1],)),))
published.BY_NAME["imagenet-a"] = small
from rib_harness.cli import main
main(["data", "prepare", "imagenet-a", "--data-root", "data"])
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_stopped_download_goes_on_where_it_was(server: Server, how: signal.Signals) -> None:
    server.script = ["slow"]
    child = subprocess.Popen([sys.executable, "-c", CHILD, server.url], stderr=subprocess.PIPE)
    part = Path("data/.downloads/imagenet-a.tar.part")
    deadline = time.monotonic() + 60
    while not (part.exists() and part.stat().st_size > 8192) and time.monotonic() < deadline:
        time.sleep(0.02)
    child.send_signal(how)
    child.communicate()
    assert child.returncode == (130 if how == signal.SIGINT else -9)
    assert "imagenet-a" not in leftovers()
    kept = part.stat().st_size
    assert 0 < kept < len(server.data)
    done = subprocess.run([sys.executable, "-c", CHILD, server.url], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert server.ranges[-1] == f"bytes={kept}-"
    assert leftovers() == [".downloads", "imagenet-a"]


def test_two_at_once_do_not_meet(server: Server) -> None:
    server.script = ["slow"]
    children = [
        subprocess.Popen([sys.executable, "-c", CHILD, server.url], stderr=subprocess.PIPE)
        for _ in range(2)
    ]
    errors = [child.communicate()[1].decode() for child in children]
    codes = sorted(child.returncode for child in children)
    assert codes == [0, 1] or codes == [0, 0], errors
    if codes == [0, 1]:
        assert any("is being prepared in" in error for error in errors)
    assert len(list(Path("data/imagenet-a").glob("*/*.png"))) == 200


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MiB; only root may mount one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)]
    if os.name != "posix" or os.geteuid() != 0 or not shutil.which("mount"):
        pytest.skip("mounting a small file system needs root")
    if subprocess.run(command, capture_output=True).returncode:
        pytest.skip("this machine lets nobody mount a file system")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.mark.parametrize("known", [True, False], ids=["size known", "size not known"])
def test_a_full_disk_is_told_and_nothing_half_is_left(
    small_disk: Path, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, known: bool
) -> None:
    big = make_tar(tmp_path / "big/imagenet-a.tar", extra=bytes(12000)).read_bytes()
    server.data = big
    archive = Archive(name="imagenet-a.tar", urls=(server.url,),
                      md5=hashlib.md5(big).hexdigest())  # fmt: skip
    small = replace(published.BY_NAME["imagenet-a"], archives=(archive,))
    monkeypatch.setitem(published.BY_NAME, "imagenet-a", small)
    if not known:
        monkeypatch.setattr("rib_harness.files.download.check_space", lambda *_: None)
    message = told(data("prepare", "imagenet-a", root=str(small_disk)))
    assert "GiB free" in message if known else "is full" in message
    assert not (small_disk / "imagenet-a").exists()
    if not known:  # what came is kept, and goes on where there is room
        part = small_disk / ".downloads/imagenet-a.tar.part"
        kept = part.stat().st_size
        assert kept > 500_000
        shutil.copytree(small_disk / ".downloads", "data/.downloads")
        assert data("prepare", "imagenet-a").exit_code == 0
        assert server.ranges[-1] == f"bytes={kept}-"


def test_a_disk_too_small_to_unpack_keeps_the_archive(
    small_disk: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Room for the download of 0.3 MB, but not for its 200 files beside it."""
    assert 200_000 < len(server.data) < 500_000
    (small_disk / "filler").write_bytes(bytes(2_000_000 - len(server.data) - 120_000))
    result = data("prepare", "imagenet-a", root=str(small_disk))
    assert "disk" in told(result)
    assert not (small_disk / "imagenet-a").exists()
    assert (small_disk / ".downloads/imagenet-a.tar").stat().st_size == len(server.data)
    (small_disk / "filler").unlink()
    server.ranges.clear()
    assert data("prepare", "imagenet-a", root=str(small_disk)).exit_code == 0
    assert server.ranges == []


def test_a_set_of_one_variant_is_not_taken_for_another(tmp_path: Path) -> None:
    numbered = tmp_path / "root/imagenet-v2/7"
    numbered.mkdir(parents=True)
    Image.new("RGB", (9, 9)).save(numbered / "a.png")
    assert data("path", "imagenet-v2", root=str(tmp_path / "root")).exit_code == 0
    message = told(data("path", "imagenet-v2:variant=top-images", root=str(tmp_path / "root")))
    assert "data prepare imagenet-v2:variant=top-images" in message
    named = tmp_path / "imagenetv2-matched-frequency-format-val"
    numbered.parent.rename(named)
    arguments = ["prepare", "imagenet-v2:variant=top-images", "--from", str(named)]
    assert "is imagenetv2-matched-frequency-format-val, not" in told(data(*arguments))


@pytest.mark.parametrize(
    ("reference", "expected"),
    [
        ("imagenet:per_class=7", "expected 1 or more, and split=train"),
        ("imagenet:split=train,per_class=0", "expected 1 or more, and split=train"),
        ("imagenet-sketch:over=all", "all 1000 classes"),
    ],
)
def test_options_that_mean_nothing_are_refused(reference: str, expected: str) -> None:
    folder = Path("data/imagenet-sketch/sketch/n01440764")
    folder.mkdir(parents=True)
    Image.new("RGB", (9, 9)).save(folder / "a.png")
    assert expected in told(data("verify", reference))


def test_a_set_whose_classes_compete_with_all_1000_can_be_whole() -> None:
    assert data("prepare", "imagenet-a").exit_code == 0
    result = data("verify", "imagenet-a:over=all")
    assert result.exit_code == 0, result.output
    assert "200 of 200 classes" in result.output


def test_a_partial_set_that_is_there_is_named_and_from_is_not_looked_at(tmp_path: Path) -> None:
    folder = Path("data/imagenet-a") / WNIDS[0]
    folder.mkdir(parents=True)
    Image.new("RGB", (9, 9)).save(folder / "a.png")
    tar = tmp_path / "published/imagenet-a.tar"
    message = told(data("prepare", "imagenet-a", "--from", str(tar)))
    assert message.startswith(f"imagenet-a is there already, in {Path('data/imagenet-a')},")
    assert "Move it away" in message


def test_a_broken_link_in_the_way_is_told() -> None:
    Path("data").mkdir()
    Path("data/imagenet-a").symlink_to("/gone")
    assert "is a broken link, to /gone; remove it" in told(data("prepare", "imagenet-a"))


def test_a_renamed_archive_of_several_is_not_taken_without_its_checksum(tmp_path: Path) -> None:
    other = make_tar(tmp_path / "renamed.tar")
    message = told(data("prepare", "imagenet-c", "--from", str(other)))
    assert "expected one called blur.tar, digital.tar, noise.tar, weather.tar" in message
