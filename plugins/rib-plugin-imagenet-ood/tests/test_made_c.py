"""ImageNet-C made from val. Expected: the corruption package and torchvision, called here."""

from __future__ import annotations

import io
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from rib_plugin_imagenet_ood import corruptions
from rib_plugin_imagenet_ood.corruptions import corrupted, make
from rib_plugin_imagenet_ood.datasets import ImageNet, ImageNetC, ImageNetCMade
from rib_plugin_imagenet_ood.published import CORRUPTIONS, EXTRA_CORRUPTIONS
from torchvision import transforms

from rib_harness import DataError
from rib_harness.catalog import load_catalog
from rib_harness.progress import Silence

pytest.importorskip("imagecorruptions")

GROUPS = ("brightness/1", "brightness/5", "gaussian_noise/3")


def write_val(root: Path, photographs: int = 2) -> None:
    rng = np.random.default_rng(0)
    for i in range(photographs):
        pixels = rng.integers(0, 256, (30, 40, 3), dtype=np.uint8)
        path = root / f"imagenet/val/n0144{i:04}/ILSVRC2012_val_{i + 1:08}.JPEG"
        path = root / f"imagenet/val/{('n01440764', 'n01443537')[i % 2]}/{path.name}"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).resize((400, 300)).save(path, quality=95)


def made(root: Path, workers: int | None = 1) -> dict[str, bytes]:
    make(ImageNet().open(root), root / "imagenet-c-made", GROUPS, Silence(), workers)
    folder = root / "imagenet-c-made"
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*.JPEG")}


def test_pictures_are_those_of_the_package_on_the_authors_crop(tmp_path: Path) -> None:
    """Resize(256) and CenterCrop(224), JPEG of quality 85, optimised: the authors' script."""
    from imagecorruptions import corrupt

    write_val(tmp_path)
    files = made(tmp_path)
    assert len(files) == 6
    name = "n01440764/ILSVRC2012_val_00000001.JPEG"
    with Image.open(tmp_path / "imagenet/val" / name) as opened:
        picture = opened.convert("RGB")
    crop = transforms.Compose([transforms.Resize(256), transforms.CenterCrop(224)])
    pixels = np.asarray(crop(picture))
    for severity in (1, 5):  # which draws nothing
        expected = corrupt(pixels, severity=severity, corruption_name="brightness")
        buffer = io.BytesIO()
        Image.fromarray(expected).save(buffer, "JPEG", quality=85, optimize=True)
        assert files[f"brightness/{severity}/{name}"] == buffer.getvalue()
    with Image.open(io.BytesIO(files[f"gaussian_noise/3/{name}"])) as noisy:
        assert noisy.size == (224, 224)


def test_each_picture_depends_on_its_photograph_only(tmp_path: Path) -> None:
    """Not on other photographs, the number of processes, or what drew numbers before."""
    write_val(tmp_path / "one")
    first = made(tmp_path / "one")
    write_val(tmp_path / "two")
    shutil.rmtree(tmp_path / "two/imagenet/val/n01440764")
    np.random.seed(5)
    before = np.random.get_state()[1].copy()
    second = made(tmp_path / "two", workers=2)
    assert (np.random.get_state()[1] == before).all()
    assert second == {name: data for name, data in first.items() if "n01443537" in name}
    noise = [corrupted(np.full((64, 64, 3), 128, np.uint8), "gaussian_noise", 3, name)
             for name in ("a", "a", "b")]  # fmt: skip
    assert (noise[0] == noise[1]).all() and (noise[0] != noise[2]).any()


def test_all_19_corruptions_can_be_made() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (224, 224, 3), dtype=np.uint8)
    for corruption in (*CORRUPTIONS, *EXTRA_CORRUPTIONS):
        out = corrupted(pixels, corruption, 1, "x")
        assert out.shape == pixels.shape and out.dtype == np.uint8, corruption
        assert (out != pixels).any(), corruption


def test_what_was_stopped_goes_on_and_is_not_there_before_it_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_val(tmp_path / "whole")
    expected = made(tmp_path / "whole")
    write_val(tmp_path / "part")
    original, seen = corruptions.corrupted, []

    def stopped(*arguments: Any) -> Any:
        seen.append(arguments[3])
        if len(seen) == 5:
            raise KeyboardInterrupt
        return original(*arguments)

    monkeypatch.setattr(corruptions, "corrupted", stopped)
    with pytest.raises(KeyboardInterrupt):
        made(tmp_path / "part")
    assert not (tmp_path / "part/imagenet-c-made").exists()
    seen.clear()
    assert made(tmp_path / "part") == expected
    assert len(seen) == 2  # four of six were there
    with pytest.raises(DataError, match="is there already; move it away"):
        made(tmp_path / "part")


def test_pictures_of_other_photographs_are_not_taken_over(tmp_path: Path) -> None:
    write_val(tmp_path)
    val = ImageNet().open(tmp_path)
    scratch = tmp_path / ".imagenet-c-made.making"
    make(val, tmp_path / "imagenet-c-made", GROUPS[:1], Silence(), 1)
    (tmp_path / "imagenet-c-made").rename(scratch)
    (scratch / "made.json").write_text("{}")
    (scratch / "brightness/1/n01440764/ILSVRC2012_val_00000001.JPEG").write_bytes(b"other")
    make(val, tmp_path / "imagenet-c-made", GROUPS[:1], Silence(), 1)
    whole = list((tmp_path / "imagenet-c-made").rglob("*.JPEG"))
    assert all(path.stat().st_size > 100 for path in whole)


def test_the_dataset_has_a_name_and_a_suite_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(DataError, match="data make imagenet-c"):
        ImageNetCMade().open(tmp_path)
    write_val(tmp_path, photographs=1)
    images = ImageNetC().make(tmp_path, Silence())
    assert len(images) == 75
    assert images.cropped == 224
    assert set(images.source) == {"imagenet-val/ILSVRC2012_val_00000001"}
    suite: Any = load_catalog().get("suite", "imagenet-rib-made-c").spec
    assert "imagenet-c-made" in suite.members
    assert "imagenet-c" not in suite.members
    monkeypatch.setattr(
        corruptions.metadata, "version", lambda _: (_ for _ in ()).throw(  # not installed
            corruptions.metadata.PackageNotFoundError("x"))
    )  # fmt: skip
    with pytest.raises(DataError, match=r"pip install 'rib-plugin-imagenet-ood\[make-c\]'"):
        ImageNetC().make(tmp_path, Silence())
