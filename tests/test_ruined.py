"""A ruined model is no result of its method, and is called that wherever its numbers stand."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from click.testing import CliRunner

import rib_harness
from rib_harness import Cell, Matrix
from rib_harness.cli import cli


def matrix_of(before: int, after: int, n: int) -> Matrix:
    """One member `a` and its own column; `b` beside it."""
    cells = [{"a": Cell(100 * k / n, k, n), "b": Cell(50.0, 5, 10)} for k in (before, after)]
    return Matrix(("a", "b"), (), ("a",), cells[0], {"a": cells[1]})


@pytest.mark.parametrize(
    ("before", "after", "n", "ruined"),
    [
        (60, 29, 100, True),
        (60, 30, 100, False),  # half is left
        (90, 100, 100, False),
        (60, 0, 100, True),
        (3, 1, 10, False),  # two images are within chance: 2 · √(.021 + .009) = .35
        (8, 2, 10, True),
    ],
)
def test_less_than_half_on_its_own_set_is_ruined(
    before: int, after: int, n: int, ruined: bool
) -> None:
    """Source: by hand."""
    found = matrix_of(before, after, n).ruined
    assert found == ({"a": (100 * before / n, 100 * after / n)} if ruined else {})


def test_what_has_no_number_yet_is_not_ruined() -> None:
    matrix = matrix_of(60, 0, 100)
    assert Matrix(("a", "b"), (), ("a",), matrix.pre, {}).ruined == {}
    assert Matrix(("a", "b"), (), (), matrix.pre, {}).ruined == {}


def test_a_ruined_model_is_told_everywhere(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A rate at which a few steps forget everything, and stay finite; `ft` beside it is well."""
    arguments = {
        "backbone": "digits-conv", "dataset": ["digits-a", "digits-r"], "limit": 20,
        "recipe": {"epochs": 2, "clip_grad": 1.0}, "store": tmp_path / "s",
    }  # fmt: skip
    results = rib_harness.run(method=["ft", "lora:lr_scale=1000"], **arguments)
    fine, ruined = results
    assert fine.matrix.ruined == {} and set(ruined.matrix.ruined) == {"digits-a", "digits-r"}
    line = ruined.describe_ruined()
    assert line.startswith("RUINED: lora:lr_scale=1000.0, seed 0: accuracy on its own")
    assert line in caplog.text and "RUINED: ft" not in caplog.text
    store = ["--store", str(tmp_path / "s")]

    def out(*command: str) -> str:
        done = CliRunner().invoke(cli, [*command, *store])
        assert done.exit_code == 0, done.output
        return done.stdout

    said = out("results")
    assert re.search(r"lora:lr_scale=1000\.0 .*\n RUINED +\n", said) and "ft RUINED" not in said
    assert line in " ".join(said.split())
    found = {one["method"]: one["ruined"] for one in json.loads(out("results", "--format", "json"))}
    assert found["ft"] == {} and set(found["lora:lr_scale=1000.0"]) == {"digits-a", "digits-r"}
    assert "RUINED on its own fine-tuning set: digits-a, digits-r" in out(
        "results", "--format", "latex"
    )
    out("report", "--out", str(tmp_path / "report.html"))
    page = (tmp_path / "report.html").read_text()
    assert "<strong>RUINED</strong>: lora" in page and page.count(">RUINED</span>") == 1
