"""What plugins, stores and files say does nothing to a terminal, a page of Markdown or a sheet."""

from __future__ import annotations

import ast
import csv
import io
import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from markdown_it import MarkdownIt

from rib_harness import cli
from rib_harness.cli.say import Printable
from rib_harness.cli.show_progress import RichProgress
from rib_harness.cli.tables import console, table
from rib_harness.escaping import in_csv, in_markdown, printable
from rib_harness.export import to_model_card
from rib_harness.results import RunResult, collect
from rib_harness.store import RUN_FORMAT, Store, key_of
from rib_harness.testing.plugins import FakeSite

#: Colours, a title, a link, clearing by one byte, a turned direction, and no width.
CONTROLS = ["\x1b[31m", "\x1b]0;t\x07", "\x1b]8;;http://x\x1b\\", "\x9b2J", "\r", "\x7f",
            "\u202e", "\u2066", "\u200b", "\ufeff", "\u2028"]  # fmt: skip

#: What a name may be as well.
NASTY = "".join(CONTROLS[:9]) + "=a|b`c`<img src=x>[red](y)[bold]"


def harmless(text: str) -> bool:
    """Whether a terminal obeys none of it. Source: the categories of Unicode, by `isprintable`."""
    return all(c.isprintable() or c in "\n\t\u00a0" for c in text)


@pytest.mark.parametrize("control", CONTROLS)
def test_what_is_not_printable_is_seen(control: str) -> None:
    text = printable(f"a{control}b")
    assert harmless(text) and "\ufffd" in text
    assert (text[0], text[-1]) == ("a", "b")


def test_what_is_printable_stays() -> None:
    text = "Zoë · 数字 → −1\u00a0%\n\tα e\u0301 🙂"
    assert printable(text) == text
    assert printable("caf\udce9") == r"caf\udce9"  # of a name in latin-1


# A terminal


def test_lines_tables_bars_and_logs(capsys: pytest.CaptureFixture[str]) -> None:
    shown = table("name", NASTY)
    shown.add_row(NASTY, "[red]x")
    console().print(shown)
    console().print(NASTY, style="dim")
    with RichProgress() as progress:
        progress.say(NASTY)
        bar = progress.bar(NASTY, 1)
        bar.advance(1)
        bar.close()
    out, err = capsys.readouterr()
    assert harmless(out) and harmless(err)
    assert "[red]x" in out and err.count("[red](y)[bold]") == 2
    record = logging.LogRecord("x", logging.ERROR, "", 0, "%s", (NASTY,), None)
    assert harmless(Printable().format(record))


def test_all_text_of_the_command_line_goes_one_way() -> None:
    """Not past `say` and `tables`, whatever verb is added."""
    ways = {"say.py": "click.echo", "tables.py": "Console"}
    for path in Path(cli.__file__).parent.glob("*.py"):
        called = {
            ast.unparse(node.func)
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            if isinstance(node, ast.Call)
        }
        for place, name in ways.items():
            assert name not in called or path.name == place, f"{path.name} calls {name}"
        assert "print" not in called


@pytest.mark.parametrize(
    "arguments",
    [[f"v{NASTY}"], ["results", "--store", f"s{NASTY}"], ["list", f"x{NASTY}"],
     ["run", "--reproduce", f"x{NASTY}"], ["results", f"--no{NASTY}"]],
    ids=lambda arguments: arguments[0].partition("\x1b")[0],
)  # fmt: skip
def test_errors(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli._code(arguments) in (1, 2)
    err = capsys.readouterr().err
    assert harmless(err) and "31m" in err


def test_a_log_of_the_program(tmp_path: Path) -> None:
    code = (
        "import logging; from rib_harness import cli\n"
        "cli._code = lambda _: logging.getLogger('x').error('a\\x1b[31m') or 0; cli.main()"
    )
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("", "a\ufffd[31m\n")


def test_what_a_plugin_says_of_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its summary, its docstring and the reason why another did not load."""
    (tmp_path / "site").mkdir()
    site = FakeSite(tmp_path / "site")
    head = "from rib_harness import MethodSpec, hookimpl\nRIB_PLUGIN_API = 1\n"
    spec = f"MethodSpec(name='mine', target='nasty:Mine', summary={'m' + NASTY!r})"
    source = f"{head}@hookimpl\ndef register_methods():\n    return [{spec}]\n"
    source += f"class Mine:\n    __doc__ = {'d' + NASTY!r}\n    def finetune(self, task): ...\n"
    with site:
        site.add("nasty", {"nasty.py": source})
        site.add("broken", {"broken_one.py": f"raise ValueError({'r' + NASTY!r})\n"})
        for arguments in (["list", "methods"], ["show", "nasty/mine"], ["list-plugins"],
                          ["run", "-m", "broken/x"]):  # fmt: skip
            cli._code(arguments)
            out, err = capsys.readouterr()
            assert harmless(out) and harmless(err), arguments
            assert "\ufffd" in out + err, arguments


# A store of another's


@pytest.fixture
def run(tmp_path: Path) -> RunResult:
    """One whose every text is nasty."""
    store = Store(tmp_path / "store")
    store.prepare()
    summary = {"top1": 50.0, "correct": 1, "n": 2, "groups": {}}
    said = {"python": NASTY, "packages": {NASTY: NASTY}, "device": NASTY}
    names = [f"{letter}{NASTY}" for letter in "ab"]

    def step(*what: str) -> str:
        key = key_of({"what": list(what)})
        with store.writing(key, {}, {"id": NASTY, "summary": summary, "provenance": said}):
            return key

    recipe = {"optimizer": NASTY, "lr": 0.1, "batch_size": 1, "epochs": 1, "schedule": NASTY,
              "warmup_steps": 0, "keep": 1.0, "keep_by": "random"}  # fmt: skip
    component = {"id": NASTY, "distribution": NASTY, "version": NASTY, "commit": NASTY}
    record: dict[str, Any] = {
        "format": RUN_FORMAT, "suite": NASTY, "suite_id": NASTY, "backbone": NASTY,
        "backbone_id": NASTY, "weights": NASTY, "pretraining": NASTY, "pretraining_images": None,
        "data": {names[0]: NASTY}, "method": NASTY, "method_id": NASTY, "options": {}, "seed": 0,
        "preset": NASTY, "recipe": recipe, "limit": None, "accepted_licenses": [NASTY],
        "expected": {}, "suite_members": names, "members": names, "references": [],
        "sources": names, "shares": [], "notes": [NASTY], "components": [component],
        "finetune": {}, "cells": {
            "pre": {j: step("pre", j) for j in names},
            "post": {i: {j: step(i, j) for j in names} for i in names},
        },
    }  # fmt: skip
    store.save_run(record, "", "2026-01-01")
    found: RunResult = collect(store)[0]
    return found


def test_the_table_of_a_strange_store(run: RunResult, capsys: pytest.CaptureFixture[str]) -> None:
    cli._code(["results", "--store", "store"])
    out, err = capsys.readouterr()
    assert harmless(out) and harmless(err)
    assert f"note: {printable(NASTY)}" in out.replace("\n", "")


def page(text: str) -> tuple[str, set[str], set[int]]:
    """What Markdown makes of it: HTML, the tags in it, and how many cells a row of tables has.

    Source: markdown-it, with HTML and tables as GitHub has them.
    """
    tokens = MarkdownIt("commonmark", {"html": True}).enable("table").parse(text)
    flat = [one for token in tokens for one in (token, *(token.children or []))]
    kinds = {one.type for one in flat}
    rows: list[int] = []
    for one in flat:
        if one.type == "tr_open":
            rows.append(0)
        rows[-1:] = [rows[-1] + (one.type in ("td_open", "th_open"))] if rows else []
    return " ".join(one.content for one in flat if one.type == "text"), kinds, set(rows)


@pytest.mark.parametrize("form", ["md", "model-card"])
def test_markdown_of_it_has_no_elements_of_its_own(form: str, run: RunResult) -> None:
    results = collect(Store("store"))
    text = results.to_markdown() if form == "md" else to_model_card(run)
    front, _, body = (
        text.removeprefix("---\n").partition("\n---\n") if form != "md" else ("", "", text)
    )
    assert harmless(body)
    shown, kinds, cells = page(body)
    assert not kinds & {"html_inline", "html_block", "image", "code_inline"}
    assert "a|b`c`<img src=x>[red](y)[bold]" in shown
    assert cells == {4 if form == "md" else 5}
    if form != "md":
        card = yaml.safe_load(front)
        assert card["model-index"][0]["name"] == f"{NASTY} + {NASTY}"
        assert kinds >= {"link_open"} and body.count("](http") == 1  # the paper's


@pytest.mark.parametrize(
    "text",
    ["a|b", "a\\|b", "`a`", "<script>x</script>", "<!-- x", "[a](b)", "![a](b)", "a\n\n# b",
     "a < b, c <= 2", "[95 %]", "\\"],
)  # fmt: skip
def test_a_text_in_markdown_is_itself(text: str) -> None:
    """Source: markdown-it reads it back, in an item and in a cell."""
    line = " ".join(text.split())
    for around in (f"- {in_markdown(text)}", f"| h |\n|---|\n| {in_markdown(text)} |"):
        shown, kinds, _ = page(around)
        assert shown.removeprefix("h ").replace(" ", "") == line.replace(" ", "")
        assert not kinds & {"html_inline", "html_block", "image", "link_open", "code_inline"}


def test_no_cell_of_a_csv_is_a_formula(run: RunResult) -> None:
    results = collect(Store("store"))
    (first, *_) = csv.DictReader(io.StringIO(results.to_csv()))
    assert first["method"] == printable(NASTY)
    for text in ("=1+1", "+1+1", "-1+1", "@x", "\tx", "\rx", "-2 points"):
        results[0].record["method"] = text
        (first, *_) = csv.DictReader(io.StringIO(results.to_csv(), newline=""))
        assert first["method"] == (f"'{text}" if text != "\rx" else "\ufffdx")
    for number in (-1, -0.5, "-0.5", "+3", "", "a=b", None):
        assert in_csv(number) == number
    row = next(row for row in csv.DictReader(io.StringIO(results.to_csv())) if row["source"])
    assert float(row["change"]) == 0.0
