"""Checkpoints as people have them: what is taken, what is asked, and what a file is said to be.

The right weights are all ones, so that which were loaded can be seen from one number.
"""

from __future__ import annotations

import argparse
import datetime
import gzip
import io
import pickle
import tarfile
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from rib_harness import DataError, load_weights, read_weights


def net() -> nn.Module:
    """A batch-norm, for buffers, between two layers."""
    return nn.Sequential(
        OrderedDict(stem=nn.Linear(3, 4), norm=nn.BatchNorm1d(4), head=nn.Linear(4, 2))
    )


def ones(prefix: str = "", value: float = 1.0) -> dict[str, Tensor]:
    state = {prefix + k: torch.full_like(v, value) for k, v in net().state_dict().items()}
    return state


def loaded(tmp_path: Path, holds: Any, **settings: Any) -> tuple[set[float], str]:
    """The values of a model into which a file of `holds` was loaded, and what was said."""
    file = tmp_path / "w.pth"
    torch.save(holds, file)
    model = net()
    said = load_weights(model, file, **settings)
    return {v for t in model.state_dict().values() for v in t.flatten().tolist()}, " ".join(said)


def refused(tmp_path: Path, holds: Any, **settings: Any) -> str:
    with pytest.raises(DataError) as error:
        loaded(tmp_path, holds, **settings)
    assert "weights_only" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    ("raw", "averaged"),
    [
        ("state_dict", "state_dict_ema"),
        ("model", "model_ema"),
        ("student", "teacher"),
        ("module", "averaged_model"),
        ("model", "callbacks.ema.weights"),
        ("net", "swa"),
    ],
)
def test_of_trained_and_averaged_weights_neither_is_guessed(
    tmp_path: Path, raw: str, averaged: str
) -> None:
    inner: Any = ones("module.")  # as wrappers that average name them
    for part in reversed(averaged.split(".")[1:]):
        inner = {part: inner}
    holds = {raw: ones(value=0), averaged.partition(".")[0]: inner, "epoch": 3}
    message = refused(tmp_path, holds)
    assert f"'{raw}'" in message and f"'{averaged}'" in message
    assert "weights_key=" in message
    values, said = loaded(tmp_path, holds, key=averaged)
    assert values == {1.0}
    assert averaged in said
    assert loaded(tmp_path, holds, key=raw)[0] == {0.0}
    assert f"Did you mean '{raw}'" in refused(tmp_path, holds, key=raw + "s")
    with pytest.raises(DataError, match="weights_key="):
        read_weights(tmp_path / "w.pth")
    assert set(read_weights(tmp_path / "w.pth", raw)) == set(ones())


def test_averages_that_share_not_all_names_are_asked_for_too(tmp_path: Path) -> None:
    """Of parameters only, with a counter, or as a list in the order of the parameters."""
    parameters = dict(net().named_parameters())
    average = AveragedModel(net()).state_dict()
    assert "n_averaged" in average
    shadow = {"decay": 0.999, "shadow_params": list(parameters.values())}
    for other in (parameters, average, shadow):
        assert "several sets of weights" in refused(tmp_path, {"model": ones(), "ema": other})
    assert "without names" in refused(
        tmp_path, {"model": ones(), "ema": shadow}, key="ema.shadow_params"
    )
    mixed = {**ones(value=0), "ema": ones()}
    assert "several sets of weights" in refused(tmp_path, mixed)


def test_one_part_of_a_model_is_taken_when_it_is_named(tmp_path: Path) -> None:
    both = {**ones("encoder_q.", 0), **ones("encoder_k.")}
    message = refused(tmp_path, {"state_dict": both})
    assert "weights_key=state_dict.encoder_k or weights_key=state_dict.encoder_q" in message
    assert loaded(tmp_path, {"state_dict": both}, key="state_dict.encoder_k")[0] == {1.0}


def test_what_is_beside_the_weights_does_not_confuse(tmp_path: Path) -> None:
    model = net()
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.zeros(2, 3)).sum().backward()
    optimizer.step()
    holds = {
        "net": ones(),
        "optimizer": optimizer.state_dict(),
        "optimizer_states": [optimizer.state_dict()],
        "queue": torch.zeros(9),
        "normalizer": {"mean": torch.zeros(3), "std": torch.ones(3)},
        "args": argparse.Namespace(lr=0.1, out=Path("/tmp/x"), at=datetime.datetime(2024, 1, 1)),
        "best": np.float64(0.5),
        "curve": np.arange(3.0),
        "config": OrderedDict(lr=0.1),
    }
    values, said = loaded(tmp_path, holds)
    assert values == {1.0}
    assert "'net' is what was loaded" in said


@pytest.mark.parametrize(
    "prefix",
    ["module.", "model.", "_orig_mod.", "backbone.", "net.", "encoder.", "module._orig_mod.",
     "model.backbone.net.", "classifier_of_mine."],
)  # fmt: skip
def test_a_prefix_is_left_out_where_then_all_names_fit(tmp_path: Path, prefix: str) -> None:
    values, said = loaded(tmp_path, {"state_dict": ones(prefix)})
    assert values == {1.0}
    assert prefix in said
    assert "does not fit" in refused(tmp_path, {**ones(prefix), f"{prefix}other.x": torch.ones(1)})


def test_names_of_wrappers_are_left_out_wherever_they_stand(tmp_path: Path) -> None:
    """`DataParallel` around the features, and `torch.compile` of a part."""
    names = {"stem": "stem.module", "norm": "norm._orig_mod", "head": "head"}
    state = {}
    for name, tensor in ones().items():
        first, _, rest = name.partition(".")
        state[f"{names[first]}.{rest}"] = tensor
    assert loaded(tmp_path, state)[0] == {1.0}
    average = {"n_averaged": torch.tensor(7), **ones("module.")}
    assert loaded(tmp_path, average)[0] == {1.0}
    values, said = loaded(tmp_path, {**ones("module."), "n_averaged": torch.tensor(7)})
    assert values == {1.0}
    assert "'module." in str(said) and "n_averaged" not in str(said)


def test_names_that_fit_stay_as_they_are(tmp_path: Path) -> None:
    """Both are `module.…`, and the model's own names are, too."""
    file = tmp_path / "w.pth"
    model = nn.Sequential(OrderedDict(module=nn.Sequential(OrderedDict(module=nn.Linear(2, 2)))))
    torch.save({k: torch.ones_like(v) for k, v in model.state_dict().items()}, file)
    assert load_weights(model, file) == ()
    assert set(next(model.parameters()).flatten().tolist()) == {1.0}


def test_what_does_not_fit_is_said_with_the_nearest_names(tmp_path: Path) -> None:
    renamed = {k.replace("stem", "stm"): v for k, v in ones().items()}
    assert "missing stem.weight, stem.bias. Did you mean 'stm.weight'" in refused(tmp_path, renamed)
    other = {**ones(), "head.weight": torch.ones(10, 4), "head.bias": torch.ones(10)}
    message = refused(tmp_path, other)
    assert "head.weight is (10, 4), expected (2, 4)" in message
    assert "of 10 classes, and the model's of 2" in message


@pytest.mark.parametrize("kind", [torch.int8, torch.complex64, torch.bool])
def test_weights_of_another_kind_of_number_are_not_cast(tmp_path: Path, kind: torch.dtype) -> None:
    """torch casts them without a word: quantised weights, say, without their scale."""
    state = {**ones(), "head.weight": ones()["head.weight"].to(kind)}
    assert f"head.weight is {kind}, expected torch.float32" in refused(tmp_path, state)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_not_finite_are_called_that(tmp_path: Path, value: float) -> None:
    state = ones()
    state["norm.weight"][1] = value
    message = refused(tmp_path, {"model": state})
    assert "1 of 4 values of norm.weight are" in message
    with pytest.raises(DataError, match=r"values of norm\.weight"):
        read_weights(tmp_path / "w.pth")


def test_safetensors_are_told_by_what_is_in_them(tmp_path: Path) -> None:
    for name in ("UPPER.SAFETENSORS", "w.bin", "w.pth", "without"):
        save_file(ones(), tmp_path / name)
        assert set(read_weights(tmp_path / name)) == set(ones())
    torch.save(ones(), tmp_path / "torch.safetensors")
    assert set(read_weights(tmp_path / "torch.safetensors")) == set(ones())
    torch.save(ones(), tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    assert set(read_weights(tmp_path / "old.pth")) == set(ones())


def zipped(members: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as file:
        for name, data in members.items():
            file.writestr(name, data)
    return out.getvalue()


def tarred() -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as file:
        file.addfile(tarfile.TarInfo("w.pth"), io.BytesIO())
    return out.getvalue()


def arrays() -> bytes:
    out = io.BytesIO()
    np.savez(out, weight=np.ones(3))
    return out.getvalue()


def scripted() -> bytes:
    """The members of one: `torch.jit` goes, and its files stay."""
    return zipped({f"net/{n}": b"" for n in ("data.pkl", "constants.pkl", "code/__torch__.py")})


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"", "empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 7\n", "Git LFS"),
        (b"\n <!DOCTYPE html><html></html>", "web page"),
        (b"\xef\xbb\xbf<HTML>", "web page"),
        (b'{"error": "not found"}', "JSON"),
        (b'{"weight_map": {"a": "1.safetensors", "b": "2.safetensors"}}', "weights in 2 files"),
        (arrays(), "npz"),
        (scripted(), "TorchScript"),
        (zipped({"config.json": b"{}", "model.weights.h5": b""}), "Keras"),
        (b"\x89HDF\r\n\x1a\n\x00", "HDF5"),
        (zipped({"w.pth": b"x"}), "zip archive"),
        (tarred(), "tar archive"),
        (gzip.compress(b"x"), "gzip"),
        (b"PK\x03\x04 cut off", "damaged zip"),
        (b"what is this", "begins with b'what is '"),
        (pickle.dumps({"weight": 1}, protocol=2), "torch"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
@pytest.mark.parametrize("name", ["w.pth", "w.safetensors"])
def test_a_file_is_said_to_be_what_it_is(
    tmp_path: Path, content: bytes, what: str, name: str
) -> None:
    file = tmp_path / name
    file.write_bytes(content)
    with pytest.raises(DataError) as error:
        read_weights(file)
    message = str(error.value)
    if name == "w.pth" or "begins with" not in what:
        assert what in message
    assert str(file) in message and "weights_only" not in message and "\n" not in message


def test_a_folder_is_one_and_the_files_in_it_are_named(tmp_path: Path) -> None:
    save_file(ones(), tmp_path / "model.safetensors")
    with pytest.raises(DataError, match=r"a folder: name a file in it, model\.safetensors"):
        read_weights(tmp_path)


class Marker:
    """Would be called by a pickle that is let do what it says."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> Any:
        return (Path.touch, (self.path,))


def test_objects_that_may_run_code_are_refused_beside_weights_too(tmp_path: Path) -> None:
    """No setting of torch is advised; where it was made, the weights alone can be saved."""
    marker = tmp_path / "owned"
    for holds in (
        {"state_dict": ones(), "callback": Marker(marker)},
        {"state_dict": ones(), "args": argparse.Namespace(hook=Marker(marker))},
        net(),
    ):
        message = refused(tmp_path, holds)
        assert "code in it is not run" in message
        assert "torch.save(model.state_dict(), FILE)" in message
    assert not marker.exists()
