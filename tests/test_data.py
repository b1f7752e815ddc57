"""From picture to batch. Expected values: torchvision's own transforms, and plain torch."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import xxhash
from PIL import Image, ImageOps
from torchvision import transforms

from rib_harness import ConfigError, DataError, ImageSet, Preprocess
from rib_harness.engine.data import Augment, Normalizer, Pixels, epoch_order, in_order
from rib_harness.engine.labels import ClassMap
from rib_harness.engine.packs import write_pack
from rib_harness.testing import TINY, tiny_images


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.mark.parametrize("size", [(64, 48), (48, 64), (37, 91), (256, 256), (20, 300), (224, 500)])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_pixels_equal_torchvision_to_the_bit(size: tuple[int, int], interpolation: str) -> None:
    made = Preprocess(size=32, resize=37, interpolation=interpolation).pixels(picture(*size))
    mode = transforms.InterpolationMode(interpolation)
    oracle = transforms.Compose([transforms.Resize(37, mode), transforms.CenterCrop(32)])
    np.testing.assert_array_equal(made.transpose(1, 2, 0), np.asarray(oracle(picture(*size))))


@pytest.mark.parametrize("size", [(20, 300), (300, 21), (31, 31), (33, 32)])
def test_a_crop_without_resize_equals_torchvision_also_where_it_pads(size: tuple[int, int]) -> None:
    made = Preprocess(size=32).pixels(picture(*size))
    oracle = transforms.CenterCrop(32)(picture(*size))
    np.testing.assert_array_equal(made.transpose(1, 2, 0), np.asarray(oracle))


def test_crops_are_not_resized_again() -> None:
    """ImageNet-C's pictures are 224 × 224: a second resize costs points (datasets.md)."""
    crop = picture(32, 32)
    made = Preprocess(size=32, resize=37).for_crops(32)
    np.testing.assert_array_equal(made.pixels(crop).transpose(1, 2, 0), np.asarray(crop))
    larger = Preprocess(size=48, resize=55).for_crops(32).pixels(crop)
    np.testing.assert_array_equal(
        larger.transpose(1, 2, 0), np.asarray(crop.resize((48, 48), Image.Resampling.BICUBIC))
    )


def test_normalised_values_equal_torchvision_to_the_bit() -> None:
    preprocess = Preprocess(size=32)
    pixels = preprocess.pixels(picture(40, 40))
    made = Normalizer(preprocess)(torch.from_numpy(pixels)[None])[0]
    oracle = transforms.Compose(
        [
            transforms.CenterCrop(32),
            transforms.ToTensor(),
            transforms.Normalize(preprocess.mean, preprocess.std),
        ]
    )
    assert torch.equal(made, oracle(picture(40, 40)))


def test_grey_cmyk_and_transparent_pictures_become_rgb() -> None:
    for mode in ("L", "CMYK", "RGBA", "P", "1"):
        assert Preprocess(size=8).pixels(picture(9, 9).convert(mode)).shape == (3, 8, 8)


def read_all(pixels: Pixels, order: list[np.ndarray], augment: Augment | None = None) -> np.ndarray:
    return np.concatenate(list(pixels.batches(order, augment)))


def test_packed_streamed_and_any_number_of_workers_give_the_same_pixels() -> None:
    images = tiny_images(50)
    order = epoch_order(50, 7, [3])
    expected = read_all(Pixels(images, TINY, workers=1, pack=False), order)
    for workers, pack in ((4, False), (1, True), (4, True)):
        made = read_all(Pixels(images, TINY, workers=workers, pack=pack), order)
        np.testing.assert_array_equal(made, expected)


def test_a_pack_of_another_set_is_never_taken() -> None:
    one, two = tiny_images(20, seed=1), tiny_images(20, seed=2)
    order = in_order(20, 20)
    first = read_all(Pixels(one, TINY, pack=True), order)
    second = read_all(Pixels(two, TINY, pack=True), order)
    limited = Pixels(one.limited(1), TINY, pack=True)
    assert not np.array_equal(first, second)
    assert len(limited) < 20
    np.testing.assert_array_equal(
        read_all(limited, in_order(len(limited), 4)),
        read_all(Pixels(one.limited(1), TINY, pack=False), in_order(len(limited), 4)),
    )


@pytest.mark.parametrize("kind", ["flip", "crop-flip"])
def test_augmented_views_depend_on_seed_epoch_and_index_only(kind: str) -> None:
    images = tiny_images(30)
    pixels = Pixels(images, TINY, workers=4, pack=False)
    one = read_all(pixels, in_order(30, 30), Augment(kind, 0, 1))
    backwards = [np.arange(30)[::-1]]
    alone = Pixels(images, TINY, workers=1, pack=False)
    np.testing.assert_array_equal(read_all(alone, backwards, Augment(kind, 0, 1))[::-1], one)
    assert not np.array_equal(read_all(pixels, in_order(30, 30), Augment(kind, 0, 2)), one)
    assert not np.array_equal(read_all(pixels, in_order(30, 30), Augment(kind, 1, 1)), one)


@pytest.mark.parametrize(("kind", "views"), [("flip", 2), ("crop-flip", 30)])
def test_the_same_picture_at_another_index_has_a_view_of_its_own(kind: str, views: int) -> None:
    """Of 30 copies about half are mirrored, and a random part is another each time."""
    images = tiny_images(30)
    pixels = Pixels(replace(images, read=lambda index: images.read(0)), TINY, pack=False)
    seen = read_all(pixels, in_order(30, 30), Augment(kind, 0, 1))
    assert len({view.tobytes() for view in seen}) > views / 2
    mirrored = {view.tobytes() for view in seen} & {view[:, :, ::-1].tobytes() for view in seen}
    assert kind == "crop-flip" or len(mirrored) == 2


@pytest.mark.parametrize("n", [1, 2, 63, 64, 65, 128, 129])
def test_an_epoch_has_each_image_once_and_no_batch_of_one(n: int) -> None:
    order = epoch_order(n, 64, [0, 0])
    assert sorted(np.concatenate(order)) == list(range(n))
    assert n == 1 or min(map(len, order)) > 1
    assert len(epoch_order(n, 64, [0, 0])) == len(order)


def test_several_ids_add_their_probabilities_in_a_loss_and_take_the_maximum_in_scoring() -> None:
    logits = torch.randn(5, 6, dtype=torch.float64)
    classes = ClassMap([(0, 3), (1,), (2, 4, 5)])
    p = logits.softmax(1)
    expected = torch.stack([p[:, 0] + p[:, 3], p[:, 1], p[:, 2] + p[:, 4] + p[:, 5]], 1)
    torch.testing.assert_close(classes(logits, "logsumexp").softmax(1), expected)
    maxima = torch.stack([logits[:, [0, 3]].amax(1), logits[:, 1], logits[:, [2, 4, 5]].amax(1)], 1)
    torch.testing.assert_close(classes(logits, "max"), maxima)


def test_a_class_map_keeps_the_gradient_finite() -> None:
    logits = torch.randn(2, 3, requires_grad=True)
    ClassMap([(0,), (1, 2)])(logits, "logsumexp").sum().backward()
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()


def test_limit_takes_the_first_of_each_class_in_each_group() -> None:
    images = tiny_images(200, classes=3, groups=("fog/1", "fog/2"))
    limited = images.limited(4)
    cells = list(zip(limited.labels.tolist(), limited.group.tolist(), strict=True))
    assert {cell: cells.count(cell) for cell in cells} == dict.fromkeys(cells, 4)
    assert len(set(cells)) == 6
    where = {name: i for i, name in enumerate(images.names)}
    for i, name in enumerate(limited.names):
        assert np.array_equal(np.asarray(limited.image(i)), np.asarray(images.image(where[name])))


def broken(**changes: object) -> ImageSet:
    good = tiny_images(4)
    fields = {name: getattr(good, name) for name in good.__dataclass_fields__}
    return ImageSet(**{**fields, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"labels": np.array([0, 1, 2, 10])}, r"tiny\[3\]: its label 10 is outside 0 … 9"),
        ({"labels": np.array([0, -1, 2, 3])}, r"tiny\[1\]: its label -1 is outside"),
        ({"names": ["a"]}, "needs 4 names"),
        ({"class_map": ((0,),)}, "class_map needs 10 entries"),
        ({"class_map": tuple((0,) for _ in range(10))}, "id 0 is of 'class 0' and of 'class 1'"),
        ({"class_map": tuple((np.int64(i),) for i in range(10))}, "plain integers as"),
        ({"class_map": tuple(range(10))}, r"a tuple of ids for the class 'class 0', .* got 0"),
        ({"labels": [0, 1, 2, 3]}, r"expected labels as an int64 array \(N,\), got list"),
    ],
)
def test_a_wrong_set_names_what_is_wrong(changes: dict[str, object], text: str) -> None:
    with pytest.raises(DataError, match=text):
        broken(**changes)


def test_an_image_that_does_not_decode_is_named() -> None:
    def read(index: int) -> Image.Image:
        raise OSError("image file is truncated")

    images = broken(read=read)
    with pytest.raises(DataError, match=r"tiny\[0\]: this image cannot be decoded .*truncated"):
        Pixels(images, TINY, pack=True)


def test_what_is_no_picture_is_named() -> None:
    images = broken(read=lambda index: np.zeros((8, 8, 3), dtype=np.uint8))
    with pytest.raises(DataError, match=r"tiny\[0\]: `read` gave ndarray, expected a PIL image"):
        images.image(0)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"mean": 0.5}, r"expected mean as three numbers, .* got 0\.5"),
        ({"mean": (127.5, 127.5, 127.5)}, r"of pixels in 0 … 1, got \(127"),
        ({"std": (0.2, 0.2, 0.0)}, r"expected std as three numbers"),
        ({"mean": ("0.5",) * 3}, r"expected mean as three numbers"),
    ],
)
def test_a_mean_and_a_std_are_of_three_channels_in_0_to_1(
    changes: dict[str, object], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        Preprocess(size=8, **changes)  # type: ignore[arg-type]


@pytest.fixture
def packs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where packs are kept; of this test alone."""
    monkeypatch.setenv("RIB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "packs"


def inverted(file: Path, picture: int) -> None:
    np.lib.format.open_memmap(file, "r+")[picture] ^= 255


def of_an_earlier_version(file: Path) -> None:
    """It kept no checksums, and may hold anything."""
    pictures = 255 - np.load(file)
    file.unlink()
    np.save(file, pictures)


def instead(file: Path, make: Callable[[Path], object]) -> None:
    file.unlink()
    make(file)


PACK_DAMAGE: dict[str, Callable[[Path], object]] = {
    "a picture": lambda file: inverted(file, 17),
    "cut off": lambda file: os.truncate(file, file.stat().st_size - 100),
    "its head only": lambda file: os.truncate(file, 3),
    "empty": lambda file: file.write_bytes(b""),
    "an earlier version": of_an_earlier_version,
    "of another set": lambda file: instead(
        file, lambda file: write_pack(file.with_name("x"), (40, 3, 8, 8), ONES).path.rename(file)
    ),
    "a folder": lambda file: instead(file, lambda file: (file / "x").mkdir(parents=True)),
}
ONES = np.ones((40, 3, 8, 8), np.uint8)


@pytest.mark.parametrize("damage", PACK_DAMAGE)
def test_a_damaged_pack_is_named_and_made_again(
    packs: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    images, order = tiny_images(40, seed=11), in_order(40, 40)
    expected = read_all(Pixels(images, TINY, pack=True), order)
    (made,) = packs.iterdir()
    whole = made.read_bytes()
    PACK_DAMAGE[damage](made)
    np.testing.assert_array_equal(read_all(Pixels(images, TINY, pack=True), order), expected)
    assert made.read_bytes() == whole
    (told,) = caplog.messages
    assert str(made) in told
    assert "decoded again" in told
    np.testing.assert_array_equal(read_all(Pixels(images, TINY, pack=True), order), expected)
    assert len(caplog.messages) == 1


def test_a_pack_that_a_link_to_nowhere_stands_for_is_made(packs: Path) -> None:
    images, order = tiny_images(40, seed=11), in_order(40, 40)
    expected = read_all(Pixels(images, TINY, pack=True), order)
    (made,) = packs.iterdir()
    instead(made, lambda file: file.symlink_to("nowhere"))
    np.testing.assert_array_equal(read_all(Pixels(images, TINY, pack=True), order), expected)
    assert not made.is_symlink()


def inverted_later(file: Path) -> None:
    before = file.stat().st_mtime_ns
    inverted(file, 17)
    os.utime(file, ns=(before, before + 10**9))  # clocks of files may be coarse


@pytest.mark.parametrize("damage", [inverted_later, lambda file: os.truncate(file, 500)])
def test_a_pack_that_is_damaged_under_a_run_is_made_again(
    packs: Path, damage: Callable[[Path], object]
) -> None:
    """Also what was verified before; and to touch what was cut off would end the process."""
    images, order = tiny_images(40, seed=11), in_order(40, 8)
    pixels = Pixels(images, TINY, pack=True)
    part = pixels.taken(np.arange(10, 20))
    expected = read_all(pixels, order)
    (made,) = packs.iterdir()
    damage(made)
    np.testing.assert_array_equal(read_all(pixels, order), expected)
    np.testing.assert_array_equal(read_all(part, in_order(10, 4)), expected[10:20])


def test_a_picture_is_hashed_when_it_is_first_taken_and_not_again(
    packs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = tiny_images(40, seed=11)
    Pixels(images, TINY, pack=True)
    hashed: list[int] = []
    real = xxhash.xxh3_64_intdigest

    def noted(data: memoryview) -> int:
        hashed.append(data.nbytes if isinstance(data, memoryview) else 0)
        return real(data)

    monkeypatch.setattr(xxhash, "xxh3_64_intdigest", noted)
    pixels = Pixels(images, TINY, pack=True)
    for seed in range(3):
        read_all(pixels, epoch_order(40, 8, [seed]))
    assert [size for size in hashed if size] == [3 * 8 * 8] * 40


@pytest.mark.parametrize("at", ["start", "under a run"])
def test_where_a_pack_cannot_be_kept_pictures_are_decoded(
    packs: Path, at: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    images, order = tiny_images(40, seed=11), in_order(40, 8)
    expected = read_all(Pixels(images, TINY, pack=False), order)
    pixels = Pixels(images, TINY, pack=True)
    (made,) = packs.iterdir()
    inverted(made, 17)

    def refused(**_: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(tempfile, "mkstemp", refused)
    if at == "start":
        made.unlink()
        pixels = Pixels(images, TINY, pack=True)
    np.testing.assert_array_equal(read_all(pixels, order), expected)
    assert f"{made} cannot be kept (Permission denied)" in caplog.text


def test_a_pack_of_pictures_that_are_read_otherwise_now_is_made_again() -> None:
    """A dataset's code changed; the fingerprint, of its files, did not."""
    images, order = tiny_images(40, seed=13), in_order(40, 40)
    before = read_all(Pixels(images, TINY, pack=True), order)
    changed = replace(images, read=lambda index: ImageOps.invert(images.image(index)))
    told: list[int] = []
    for times in (1, 1):
        made = Pixels(changed, TINY, pack=True, repacked=lambda: told.append(1))
        np.testing.assert_array_equal(read_all(made, order), 255 - before)
        assert len(told) == times


def test_a_pack_serves_where_the_pictures_have_gone() -> None:
    images, order = tiny_images(40, seed=14), in_order(40, 40)
    before = read_all(Pixels(images, TINY, pack=True), order)

    def gone(index: int) -> Image.Image:
        raise FileNotFoundError(index)

    there = Pixels(replace(images, read=gone), TINY, pack=True)
    np.testing.assert_array_equal(read_all(there, order), before)

    def mistaken(index: int) -> Image.Image:
        return images.image(index).no_such_method()  # type: ignore[no-any-return, attr-defined]

    for wrong in (mistaken, lambda index: np.asarray(images.image(index))):
        with pytest.raises(DataError, match=r"no_such_method|`read` gave ndarray"):
            Pixels(replace(images, read=wrong), TINY, pack=True)


def test_a_pack_that_was_made_is_ones_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process may put its own, of other code, in the place at any moment."""
    images, order = tiny_images(40, seed=15), in_order(40, 40)
    expected = read_all(Pixels(images, TINY, pack=False), order)
    replaced = Path.replace

    def overtaken(self: Path, target: Path) -> Path:
        placed = replaced(self, target)
        other = target.with_suffix(".other.npy")
        np.save(other, 255 - np.load(placed))
        return replaced(other, target)

    monkeypatch.setattr(Path, "replace", overtaken)
    np.testing.assert_array_equal(read_all(Pixels(images, TINY, pack=True), order), expected)


def test_without_room_for_a_pack_the_pictures_are_decoded_at_each_pass(
    monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    def full(file: object, header: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np.lib.format, "write_array_header_2_0", full)
    images = tiny_images(40, seed=12)
    before = set((cache / "packs").iterdir())
    pixels = Pixels(images, TINY, pack=True)
    assert pixels.packed is None
    assert set((cache / "packs").iterdir()) == before
    direct = read_all(Pixels(images, TINY, pack=False), in_order(40, 40))
    np.testing.assert_array_equal(read_all(pixels, in_order(40, 40)), direct)
