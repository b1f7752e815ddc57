"""What a file is by its first bytes, whatever its name says."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

#: How a file begins → what it is, and what to do.
_BEGINNINGS = (
    (
        b"version https://git-lfs.github.com/",
        "a Git LFS pointer, not the file itself: git lfs pull",
    ),
    (b"version https://hawser", "a Git LFS pointer, not the file itself: git lfs pull"),
    (b"/annex/objects/", "a git-annex pointer, not the file itself: git annex get"),
    (b"../.git/annex/", "a git-annex pointer, not the file itself: git annex get"),
    (
        b"\x89HDF\r\n\x1a\n",
        "an HDF5 file, as Keras and TensorFlow write: convert it to safetensors",
    ),
    (b"\x93NUMPY", "a NumPy array: convert it to safetensors"),
    (b"GGUF", "a GGUF file: convert it to safetensors"),
    (b"\x1f\x8b", "compressed with gzip: unpack it"),
    (b"BZh", "compressed with bzip2: unpack it"),
    (b"\xfd7zXZ\x00", "compressed with xz: unpack it"),
    (b"\x28\xb5\x2f\xfd", "compressed with zstd: unpack it"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive: unpack it"),
    (b"Rar!", "a RAR archive: unpack it"),
    (b"%PDF", "a PDF"),
    (b"\x89PNG", "a picture"),
    (b"\xff\xd8\xff", "a picture"),
)

#: How a text begins that is markup: pages of errors and logins are saved in place of files.
_MARKUP = (b"<!doctype", b"<html", b"<head", b"<body", b"<?xml", b"<!--")

#: The longest header that the format allows.
_SAFETENSORS_HEADER = 100_000_000


def is_safetensors(file: Path) -> bool:
    """Whether it begins as safetensors do: the length of a header, and an object in JSON."""
    with file.open("rb") as opened:
        start = opened.read(9)
    length = int.from_bytes(start[:8], "little")
    return start[8:] == b"{" and 1 < length <= _SAFETENSORS_HEADER


def no_weights(file: Path) -> str:
    """What a file is that holds no weights, as the end of "FILE is …"; empty if it may hold some.

    Raises:
        OSError: it cannot be read.
    """
    if file.is_dir():
        inside = sorted(p.name for p in file.iterdir() if p.suffix in _WEIGHTS)
        named = f": name a file in it, {', '.join(inside[:3])}" if inside else ", not a file"
        return f"a folder{named}"
    with file.open("rb") as opened:
        start = opened.read(1024)
    if not start:
        return "empty: the download or the copy did not end; fetch it again"
    for beginning, what in _BEGINNINGS:
        if start.startswith(beginning):
            return what
    if start[257:262] == b"ustar":
        return "a tar archive: unpack it, and name the weights file in it"
    if start.startswith(b"PK"):
        return _no_weights_zip(file)
    text = start.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if text.startswith(_MARKUP):
        return "a web page, such as one that asks to sign in: fetch the file itself"
    if text[:1] in (b"{", b"[") and not is_safetensors(file):
        return _no_weights_json(file)
    return ""


_WEIGHTS = (".safetensors", ".pth", ".pt", ".bin", ".ckpt")


def _no_weights_zip(file: Path) -> str:
    """Of a zip; a torch file is one with `data.pkl` in a folder, and TorchScript has code too."""
    try:
        with zipfile.ZipFile(file) as opened:
            names = opened.namelist()
    except (zipfile.BadZipFile, NotImplementedError):
        return "a damaged zip, as torch files are: the download or the copy did not end"
    last = {name.rpartition("/")[2] for name in names}
    if "constants.pkl" in last or any("/code/" in name for name in names):
        return (
            "TorchScript, a program with its weights, and no program in a file is run: save the "
            "weights of the model alone, torch.save(model.state_dict(), FILE)"
        )
    if "data.pkl" in last:
        return ""
    if "model.weights.h5" in last:
        return "a Keras model: convert it to safetensors"
    if names and all(name.endswith(".npy") for name in names):
        return "an .npz of NumPy arrays: convert it to safetensors"
    return "a zip archive that is no torch file: unpack it, and name the weights file in it"


def _no_weights_json(file: Path) -> str:
    try:
        said = json.loads(file.read_bytes())
    except (ValueError, RecursionError):
        return "a text, not weights"
    shards = said.get("weight_map") if isinstance(said, dict) else None
    if isinstance(shards, dict):
        count = len(set(map(str, shards.values())))
        return (
            f"the index of weights in {count} files, and one file is expected: join them, e.g. "
            "with save_file of safetensors"
        )
    return "a text in JSON, not weights"
