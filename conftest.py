"""Every test has its own cache and store, and no network."""

from __future__ import annotations

import gc
import os
import socket
from pathlib import Path

import pytest

# Before torch is imported, here and in child processes: the tests' nets are tiny, and threads
# that wait for each other cost them a factor of seven. CPU only: it is what is exact to the bit.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")


def pytest_collection_finish() -> None:
    """Thousands of collected tests are no garbage: each full collection would go through them."""
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cache")
    os.environ["RIB_CACHE"] = str(folder)
    return folder


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in list(os.environ):
        if name.startswith("RIB_") and name not in ("RIB_CACHE", "RIB_SHARED"):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    connect = socket.socket.connect

    def only_loopback(self: socket.socket, address: object) -> None:
        if isinstance(address, tuple) and not str(address[0]).startswith(
            ("127.", "::1", "localhost")
        ):
            raise AssertionError(f"a test tried to reach {address}")
        connect(self, address)  # type: ignore[arg-type]

    monkeypatch.setattr(socket.socket, "connect", only_loopback)


@pytest.fixture
def shared() -> Path:
    """The development data: `RIB_SHARED`, or `../shared` beside the checkout."""
    folder = Path(os.environ.get("RIB_SHARED", Path(__file__).parents[1] / "shared"))
    if not (folder / "data").is_dir():
        pytest.skip(f"no development data in {folder} (set RIB_SHARED)")
    return folder
