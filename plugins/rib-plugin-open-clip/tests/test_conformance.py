"""What every plugin promises: the harness's conformance kit, on a tiny CLIP in local files."""

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from rib_harness.testing import parametrize_with_checks

#: Named when tests are collected, made when they are run.
FOLDER = Path(tempfile.gettempdir()) / f"rib-conformance-clip-{os.getpid()}"
CONFIG, WEIGHTS = FOLDER / "tiny-conformance.json", FOLDER / "tiny-conformance.safetensors"

TINY = {
    "embed_dim": 12,
    "vision_cfg": {
        "image_size": 32, "layers": 1, "width": 16, "head_width": 8, "patch_size": 8,
    },
    "text_cfg": {
        "context_length": 20, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1,
    },
}  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def tiny_clip() -> Iterator[None]:
    import open_clip
    import rib_plugin_open_clip.backbone  # looks at open_clip's own models first

    assert rib_plugin_open_clip.backbone
    FOLDER.mkdir()
    try:
        CONFIG.write_text(json.dumps(TINY))
        open_clip.add_model_config(CONFIG)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = open_clip.create_model(CONFIG.stem)
        save_file({k: v.contiguous() for k, v in model.state_dict().items()}, WEIGHTS)
        yield
    finally:
        shutil.rmtree(FOLDER)


@parametrize_with_checks(
    "open-clip",
    references=[f"open-clip:{CONFIG.stem},weights={WEIGHTS},config={CONFIG},templates=one"],
)
def test_conformance(check: Callable[[], None]) -> None:
    check()
