"""What the report shows of a store that is made by hand: no model, no picture, known numbers."""

from __future__ import annotations

import csv
import json
import re
import shutil
from collections.abc import Mapping, Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from click.testing import CliRunner

from rib_harness.catalog import load_catalog
from rib_harness.cli.report_ import command
from rib_harness.errors import RibError
from rib_harness.features import Features
from rib_harness.report import flips as flips_module
from rib_harness.report.charts import charts_of
from rib_harness.report.curves import (
    PROBED,
    TRAINED,
    frontier_points,
    learning_of,
    mean_over_corruptions,
    severities,
)
from rib_harness.report.data import Part, label_lines, parts_of
from rib_harness.report.flips import class_changes, flips_of, worst_and_best
from rib_harness.report.naming import file_name, unique
from rib_harness.report.neighbours import neighbours_of
from rib_harness.report.page import embedded, render, write_report
from rib_harness.report.thumbnails import Opened, data_uri, open_datasets, thumbnails
from rib_harness.results import collect
from rib_harness.scores import SCORES, Scores
from rib_harness.store import RUN_FORMAT, Store, key_of
from rib_harness.testing import tiny_images
from rib_harness.uncertainty import Uncertainty

CLASSES, N = 3, 40
MEMBERS, REFERENCE = ["toy-a", "toy-b", "toy-c"], "toy-val"
GROUPS = [f"{name}/{level}" for name in ("fog", "snow") for level in (1, 2)]
RECIPE = {
    "optimizer": "sgd", "lr": 0.01, "batch_size": 32, "epochs": 10, "schedule": "cosine",
    "warmup_steps": 0, "momentum": 0.9, "weight_decay": 0.0, "keep": 1.0,
}  # fmt: skip


class Toy:
    """A store whose predictions are drawn: each dataset's labels, and each checkpoint's."""

    def __init__(self, path: Path, members: Sequence[str] = MEMBERS, n: int = N):
        self.store, self.members, self.n = Store(path), list(members), n
        self.store.prepare()
        self.datasets = [*members, REFERENCE]
        self.labels = {
            name: np.random.default_rng(k).integers(0, CLASSES, n)
            for k, name in enumerate(self.datasets)
        }
        self.said: dict[str, np.ndarray] = {}

    def score(self, key: str, dataset: str, right: float) -> str:
        """Writes the scores of one checkpoint, of which a share is right."""
        if self.store.done(key) is None:
            rng = np.random.default_rng(list(key.encode()))
            label = self.labels[dataset]
            wrong = (label + rng.integers(1, CLASSES, self.n)) % CLASSES
            said = np.where(rng.random(self.n) < right, label, wrong)
            self.said[key] = said
            corrupted = dataset == self.members[-1]
            group = [GROUPS[i % len(GROUPS)] if corrupted else "" for i in range(self.n)]
            per_photo = len(GROUPS) if corrupted else 1
            columns = {
                "index": range(self.n), "label": label, "prediction": said,
                "top5": [True] * self.n, "confidence": [0.5] * self.n, "nll": [1.0] * self.n,
                "brier": [0.5] * self.n, "group": group,
                "source": [f"{dataset}-{i // per_photo}" for i in range(self.n)],
            }  # fmt: skip
            table = pa.table({k: pa.array(v) for k, v in columns.items()}).cast(SCORES)
            self.finish(key, {"dataset": {"fingerprint": "f", "labels": "l"}},
                        {"summary": Scores(table).summary()}, Scores(table))  # fmt: skip
        return key

    def finish(
        self, key: str, inputs: dict[str, Any], done: dict[str, Any], scores: Scores | None = None
    ) -> None:
        facts = {"seconds": 1.5, "max_rss": 2**30, "device": "cpu", "packages": {"torch": "9.9"}}
        with self.store.writing(key, inputs, {"provenance": facts, **done}) as folder:
            if scores is not None:
                scores.write(folder / "scores.parquet")

    def run(
        self,
        method: str | None = "ft",
        *,
        backbone: str = "net",
        seed: int = 0,
        right: float = 0.5,
        sources: Sequence[str] | None = None,
        history: Sequence[Mapping[str, Any]] = (),
        **record: Any,
    ) -> None:
        """Adds a run: a matrix and its checkpoints."""
        k = len(self.store.runs())
        sources = list(self.members if sources is None else sources) if method else []
        name = f"{backbone}-{method}-{seed}-{json.dumps(record, sort_keys=True)}"
        digest = key_of({"name": name})
        pre = {j: self.score(key_of({"pre": backbone, "on": j}), j, 0.7) for j in self.datasets}
        made = {i: key_of({digest: i}) for i in sources}
        for key in made.values():
            self.finish(key, {}, {"facts": {}})
            lines = "".join(json.dumps(row) + "\n" for row in history)
            (self.store.folder(key) / "history.jsonl").write_text(lines)
        post = {
            i: {j: self.score(key_of({digest: i, "on": j}), j, right) for j in self.datasets}
            for i in sources
        }
        whole = {
            "format": RUN_FORMAT, "suite": "toys", "suite_id": "toy/toys", "backbone": backbone,
            "backbone_id": f"toy/{backbone}", "weights": "sha256:0123456789abcdef",
            "pretraining": "", "pretraining_images": None, "data": {}, "method": method,
            "method_id": f"toy/{method}", "options": {}, "seed": seed if method else None,
            "preset": "default", "recipe": RECIPE if method else None, "limit": None,
            "accepted_licenses": [], "expected": {}, "suite_members": list(self.members),
            "members": self.members, "references": [REFERENCE], "sources": sources, "shares": [],
            "notes": [], "components": [], "finetune": made, "cells": {"pre": pre, "post": post},
            **record,
        }  # fmt: skip
        self.store.save_run(whole, "", f"2026-01-01T00:00:{k:02d}")

    @property
    def parts(self) -> list[Part]:
        return parts_of(collect(self.store), Uncertainty(self.store, resamples=200))

    def page(self, **settings: Any) -> str:
        parts = self.parts
        opened = [Opened(why=dict.fromkeys(part.datasets, "no data")) for part in parts]
        return render(parts, self.store, opened, **settings)


@pytest.fixture
def blank(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draws no figure on the page: tests of everything else are quick."""
    monkeypatch.setattr("rib_harness.report.page._picture", lambda chart, name: "<svg></svg>")


@pytest.fixture
def toy(tmp_path: Path) -> Toy:
    return Toy(tmp_path / "toy-store")


class Page(HTMLParser):
    """Tags with their attributes, the text, the tables' rows and the JSON by id."""

    def __init__(self, text: str):
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text, self.rows, self.json = "", list[list[str]](), dict[str, Any]()
        self._script: str | None = None
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag in ("script", "style"):
            self._script = dict(attrs).get("id") or "code"
        elif tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th") and self.rows:
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        if tag in ("script", "style"):
            self._script = None

    def handle_data(self, data: str) -> None:
        if self._script is not None:
            if self._script != "code":
                self.json[self._script] = json.loads(data)
            return
        self.text += data
        if self.rows and self.rows[-1]:
            self.rows[-1][-1] += data

    def row(self, first: str) -> list[str]:
        rows = ([" ".join(cell.split()) for cell in row] for row in self.rows)
        return next(row for row in rows if row and row[0] == " ".join(first.split()))


def accuracy(toy: Toy, key: str, dataset: str) -> float:
    """Top-1 in %, by a loop; with groups the mean over corruptions of the mean over levels."""
    right = [s == y for s, y in zip(toy.said[key], toy.labels[dataset], strict=True)]
    if dataset != toy.members[-1]:
        return 100 * sum(right) / len(right)
    by_group = {}
    for g, group in enumerate(GROUPS):
        mine = right[g :: len(GROUPS)]
        by_group[group] = sum(mine) / len(mine)
    fog, snow = ((by_group[f"{name}/1"] + by_group[f"{name}/2"]) / 2 for name in ("fog", "snow"))
    return 100 * (fog + snow) / 2


def keys_of(toy: Toy, k: int = 0) -> tuple[dict[str, str], dict[str, dict[str, str]]]:
    cells = toy.store.runs()[k]["cells"]
    return cells["pre"], cells["post"]


def changes(toy: Toy, k: int = 0) -> dict[tuple[str, str], float]:
    pre, post = keys_of(toy, k)
    return {
        (i, j): accuracy(toy, post[i][j], j) - accuracy(toy, pre[j], j)
        for i in post
        for j in toy.datasets
    }


@pytest.mark.usefixtures("blank")
def test_the_pages_numbers_equal_the_definitions(toy: Toy) -> None:
    """Source: mRI and accuracies by plain loops over the drawn predictions."""
    toy.run()
    page, change = Page(toy.page()), changes(toy)
    mri = np.mean([change[i, j] for i in MEMBERS for j in MEMBERS if i != j])
    pre, post = keys_of(toy)
    before = np.mean([accuracy(toy, pre[j], j) for j in MEMBERS])
    after = np.mean([accuracy(toy, post[i][j], j) for i in MEMBERS for j in MEMBERS if i != j])
    gain = np.mean([change[i, i] for i in MEMBERS])
    forgotten = -np.mean([change[i, REFERENCE] for i in MEMBERS])
    told = page.row("ft")
    found = [float(re.split(r" ?\[", cell)[0].replace("−", "-")) for cell in told[1:6]]
    assert found == pytest.approx([mri, before, after, gain, forgotten], abs=0.0051)
    assert told[6] == "3 of 3seed 0" and told[7] == "4.5 s+ 18.0 s scoring"
    assert told[8].startswith("1.00 GiB ")
    assert all(re.search(r"\[[−+\d.]+, [−+\d.]+\]", cell) for cell in told[1:6])
    heat = page.row("a")
    cells = [float(re.match(r"[−+]?\d+\.\d", cell)[0].replace("−", "-")) for cell in heat[1:5]]  # type: ignore[index]
    assert cells == pytest.approx([change["toy-a", j] for j in toy.datasets], abs=0.0501)
    assert page.row("toy-c")[:3] == ["toy-c", "shifted", "40"]


@pytest.mark.usefixtures("blank")
def test_an_incomplete_matrix_has_bounds_and_no_mri(toy: Toy) -> None:
    toy.run()
    toy.run("lwf")
    _, post = keys_of(toy)
    shutil.rmtree(toy.store.folder(post["toy-a"]["toy-b"]))
    line = toy.parts[0].lines[0]
    assert line.mri is None and line.after is None and line.missing == ["toy-a → toy-b"]
    low, high = line.arm.mri_bounds
    page = Page(toy.page())
    told = page.row("ft")[1].replace("−", "-").replace("+", "")
    assert told == f"INCOMPLETE within [{low:.2f}, {high:.2f}]".replace("+", "")
    assert "toy-a → toy-b" in page.text and "not averaged over what is there" in page.text
    assert "INCOMPLETE" not in page.row("lwf")[1]
    # A picture of what is there shows a gap.
    heights = [
        c.draw().axes[0].patches[2].get_height()
        for c in charts_of(toy.parts[0], toy.store)
        if c.name.startswith("before-after")
    ]
    assert np.isnan(heights).all() and len(heights) == 1


@pytest.mark.usefixtures("blank")
def test_fewer_sources_than_the_suite_has_are_told(toy: Toy) -> None:
    toy.run(sources=["toy-a", "toy-b"])
    page = Page(toy.page())
    assert "2 of 3 sources: the mRI of ft runs over fewer fine-tuning sets" in page.text
    assert page.row("toy-c")[1] == "shifted, not fine-tuned on"


HOSTILE = [
    "</script><script>alert(1)</script>",
    "<img src=x onerror=alert(2)>",
    '"><svg onload=alert(3)>',
    "$\\frac{1}{2$ {{ 7*7 }} {% raw %}",
    "‮evil\u2028\x07 日本語 🙂",
]


@pytest.mark.slow
def test_hostile_names_are_text_everywhere(tmp_path: Path) -> None:
    toy = Toy(tmp_path / "s", members=[f"m{k} {bad}" for k, bad in enumerate(HOSTILE)], n=20)
    for k, bad in enumerate(HOSTILE):
        toy.run(bad, backbone=f"b{k % 2} {HOSTILE[k % 2]}", notes=[bad], suite=HOSTILE[0],
                history=[{"stage": 0, "epoch": 1, "step": 1, "accuracy": 50.0}])  # fmt: skip
    part = toy.parts[0]
    images = tiny_images(n=20, classes=CLASSES)
    object.__setattr__(images, "classes", tuple(HOSTILE[:CLASSES]))
    opened = Opened(sets={part.datasets[0]: images}, why={part.datasets[1]: HOSTILE[1]})
    text = render([part], toy.store, [opened])
    page = Page(text)
    assert [tag for tag, _ in page.tags].count("script") == 3  # two of data, one of code
    assert not any(name.startswith("on") for _, given in page.tags for name in given)
    assert {tag for tag, _ in page.tags if tag in ("img", "iframe", "object", "link")} == set()
    assert "49" not in page.row(HOSTILE[3])[0]  # no template in a name is filled
    for bad in HOSTILE:
        assert bad.replace("\u2028", " ").split()[0] in page.text
    data = page.json["p0-flip-data"]
    assert data["lines"] == [line.label for line in part.lines]
    assert set(data["names"][0].values()) <= set(HOSTILE)
    assert page.json["p0-class-data"]["tables"]["0/0"]["rows"][0][0] in HOSTILE


def test_json_in_the_page_cannot_end_its_script() -> None:
    assert "<" not in embedded({"</script>": "<!--"})
    assert json.loads(embedded({"</script>": ["<!--", 1]})) == {"</script>": ["<!--", 1]}


@pytest.mark.slow
def test_the_page_needs_nothing_else_and_is_the_same_again(toy: Toy) -> None:
    toy.run(history=[{"stage": 0, "epoch": 1, "step": 1, "accuracy": 50.0}])
    toy.run("lwf")
    text = toy.page()
    assert text == toy.page()
    assert "http" not in text and "@import" not in text and "url(http" not in text
    for tag, given in Page(text).tags:
        for name in ("src", "href", "srcset", "data", "action", "poster"):
            value = given.get(name)
            assert value is None or value.startswith("#"), (tag, name, value)
    assert not re.search(r"""["'(=]//""", text)
    ids = re.findall(r'\bid="([^"]+)"', text)
    assert len(ids) == len(set(ids))
    for target in re.findall(r'(?:href="|aria-labelledby=")#?([^" ]+)', text):
        assert target in ids


@pytest.mark.usefixtures("blank")
def test_what_is_not_there_is_one_line_that_says_what_would_make_it_appear(tmp_path: Path) -> None:
    toy = Toy(tmp_path / "s", members=["x-a", "x-b"])
    toy.run(None)
    text = Page(toy.page()).text
    for line in ("rib-harness run --method ft", "--sweep wise-ft:alpha=0,0.5,1", "--expect",
                 "at least three datasets", "Flips need a method"):  # fmt: skip
        assert line in text
    toy.run("ft", history=[{"stage": 0, "epoch": 1, "step": 1, "accuracy": 50.0}])
    assert "--probe-every" in Page(toy.page()).text


def test_severities_are_means_by_loops(toy: Toy) -> None:
    """Source: counts of the drawn predictions, by loops."""
    toy.run()
    line = toy.parts[0].lines[0]
    assert severities(line, "toy-a") == {}
    found = severities(line, "toy-c")
    pre, post = keys_of(toy)
    for g, group in enumerate(GROUPS):
        name, level = group.split("/")
        mine = slice(g, None, len(GROUPS))
        label = toy.labels["toy-c"][mine]

        def share(key: str, mine: slice = mine, label: Any = label) -> float:
            return float(100 * np.mean(toy.said[key][mine] == label))

        assert found["before"][name][int(level) - 1] == pytest.approx(share(pre["toy-c"]))
        expected = np.mean([share(post[i]["toy-c"]) for i in ("toy-a", "toy-b")])
        assert found["after"][name][int(level) - 1] == pytest.approx(expected)
    assert mean_over_corruptions({"fog": [1.0, None], "snow": [3.0, 4.0]}) == [2.0, None]


@pytest.mark.usefixtures("blank")
def test_learning_curves_add_up_stages_and_average_the_other_sets(toy: Toy) -> None:
    history = [
        {"stage": 0, "epoch": 1, "step": 4, "accuracy": 50.0, "loss": 1.0},
        {"stage": 0, "step": 2, "probe": {"toy-a": 10.0, "toy-b": 20.0, "toy-c": 40.0}},
        {"stage": 1, "epoch": 1, "step": 3, "accuracy": 60.0},
        {"stage": 1, "step": 3, "probe": {"toy-a": 0.0, "toy-b": 2.0, "toy-c": 4.0,
                                          "toy-val": 99.0}},
        {"stage": 1, "epoch": 2, "step": 6, "loss": 1.0},
    ]  # fmt: skip
    toy.run(history=history)
    toy.run("lwf")
    part = toy.parts[0]
    curves = learning_of(part.lines[0], toy.store, part.members)
    assert curves["toy-a"] == {TRAINED: [(4, 50.0), (7, 60.0)], PROBED: [(2, 30.0), (7, 3.0)]}
    assert curves["toy-c"][PROBED] == [(2, 15.0), (7, 1.0)]
    assert learning_of(part.lines[1], toy.store, part.members) == {}
    assert "a run with --probe-every" not in Page(toy.page()).text


def test_a_family_is_in_the_order_of_its_option(toy: Toy) -> None:
    for alpha in (1.0, 0.0, 0.5):
        label = "wise-ft" if alpha == 0.5 else f"wise-ft:alpha={alpha}"
        toy.run(label, method_id="toy/wise-ft", options={"alpha": alpha, "base": "ft"})
    toy.run("ft")
    points = frontier_points(toy.parts[0].lines)
    assert [(label, family) for label, family, *_ in points] == [
        ("alpha=0", "wise-ft"), ("alpha=0.5", "wise-ft"), ("alpha=1", "wise-ft"), ("ft", "ft"),
    ]  # fmt: skip
    assert points[0][3] == pytest.approx(points[0][4].arm.mri)


@pytest.mark.usefixtures("blank")
def test_arms_are_told_apart_and_limits_are_parts_of_their_own(toy: Toy) -> None:
    toy.run()
    toy.run(recipe={**RECIPE, "lr": 0.1})
    toy.run("lwf", seed=0)
    toy.run("lwf", seed=1)
    toy.run("ft", backbone="vit")
    toy.run("ft", limit=2)
    whole, limited = toy.parts
    assert [line.label for line in whole.lines] == [
        "ft (lr 0.01) · net", "ft (lr 0.1) · net", "lwf · net", "ft · vit",
    ]  # fmt: skip
    assert whole.lines[2].arm.seeds == (0, 1)
    assert [line.label for line in limited.lines] == ["ft"]
    assert label_lines([], whole.first.u) == []
    text = Page(toy.page()).text
    assert "toys, limit 2 a class" in text


def test_flips_are_counted_by_loops_and_sampled_alike_for_all_methods(toy: Toy) -> None:
    """Source: loops over the drawn predictions."""
    toy.run()
    toy.run("lwf")
    part = toy.parts[0]
    every = flips_of(part, toy.store)
    pre, post = keys_of(toy)
    rows = []
    for s, i in enumerate(toy.members):
        for d, j in enumerate(toy.datasets):
            lost = gained = 0
            for row in range(N):
                label = toy.labels[j][row]
                was, now = toy.said[pre[j]][row], toy.said[post[i][j]][row]
                if (was == label) != (now == label):
                    rows.append((0, s, d, row, was, now))
                    lost, gained = lost + (was == label), gained + (now == label)
            cell = next(c for c in every.cells if (c.line, c.source, c.dataset) == (0, s, d))
            assert (cell.n, cell.lost, cell.gained) == (N, lost, gained)
            assert cell.kept + cell.wrong + lost + gained == N
    found = [tuple(int(x) for x in flip) for flip in every.flips if flip[0] == 0]
    assert sorted(found) == sorted(rows)
    few = flips_of(part, toy.store, most=60)
    assert len(few.flips) <= 60 and few.cells == every.cells
    assert {tuple(f) for f in few.flips} < {tuple(f) for f in every.flips}
    assert (flips_of(part, toy.store, most=60).flips == few.flips).all()
    assert few.total == every.total == sum(c.lost + c.gained for c in every.cells)
    # The most telling image of each dataset comes first, datasets in turn.
    assert [d for d, _, _ in every.images()[:4]] == [0, 1, 2, 3]
    counts = [count for d, _, count in every.images() if d == 0]
    assert counts == sorted(counts, reverse=True)


def test_the_change_of_a_class_and_its_interval(toy: Toy) -> None:
    """Source: loops, and NumPy's sample standard deviation of paired differences; for groups
    that share photographs the sum over each photograph."""
    toy.run()
    line = toy.parts[0].lines[0]
    pre, post = keys_of(toy)
    label = toy.labels["toy-a"]
    others = [post[i]["toy-a"] for i in ("toy-b", "toy-c")]
    found = class_changes(line, "toy-a", toy.store)
    assert [one.change for one in found] == sorted(one.change for one in found)
    for one in found:
        mine = label == one.name
        was = (toy.said[pre["toy-a"]] == label)[mine].astype(float)
        now = np.mean([(toy.said[key] == label)[mine] for key in others], axis=0)
        assert one.n == mine.sum()
        assert one.before == pytest.approx(100 * was.mean())
        assert one.after == pytest.approx(100 * now.mean())
        half = 1.96 * 100 * np.std(now - was, ddof=1) / mine.sum() ** 0.5
        assert one.half == pytest.approx(half)
    one = class_changes(line, "toy-c", toy.store)[0]
    mine = np.flatnonzero(toy.labels["toy-c"] == one.name)
    others = [post[i]["toy-c"] for i in ("toy-a", "toy-b")]
    right = np.mean([toy.said[key] == toy.labels["toy-c"] for key in others], axis=0)
    change = right - (toy.said[pre["toy-c"]] == toy.labels["toy-c"])
    sums: dict[int, float] = {}
    for row in mine:
        photo = int(row) // len(GROUPS)
        sums[photo] = sums.get(photo, 0.0) + change[row] - change[mine].mean()
    g = len(sums)
    variance = g / (g - 1) * sum(x * x for x in sums.values()) / len(mine) ** 2
    assert one.half == pytest.approx(196 * variance**0.5)
    assert len(worst_and_best(found * 30)) == flips_module.WORST + flips_module.BEST


@pytest.mark.usefixtures("blank")
def test_pictures_stay_within_the_budget_and_the_page_says_what_is_left(toy: Toy) -> None:
    toy.run()
    part = toy.parts[0]
    images = {name: tiny_images(n=N, classes=CLASSES) for name in part.datasets}
    wanted = [(name, row) for row in range(N) for name in part.datasets]
    whole, problem = thumbnails(wanted, images, 1.0)
    assert len(whole) == len(wanted) and problem == ""
    assert all(uri.startswith("data:image/png;base64,") for uri in whole.values())
    budget = 0.01
    some, _ = thumbnails(wanted, images, budget)
    assert 0 < len(some) < len(whole) and sum(map(len, some.values())) <= budget * 1e6
    assert list(some) == wanted[: len(some)]
    assert thumbnails(wanted, images, 0)[0] == {} and thumbnails(wanted, {}, 1)[0] == {}
    page = Page(render([part], toy.store, [Opened(sets=images)], budget=budget))
    data = page.json["p0-flip-data"]
    shown = [bool(data["images"][i][4]) for _, _, i, _, _ in data["flips"]]
    assert data["without"] == shown.count(False) > 0
    assert f"{data['without']:,} of these flips have no picture" in page.text
    assert data["total"] == len(data["flips"])
    shut = Page(toy.page())
    assert "No pictures of toy-a: no data" in shut.text
    assert len(shut.json["p0-flip-data"]["flips"]) == data["total"]


def test_a_picture_that_cannot_be_read_is_left_out_and_told() -> None:
    def broken(index: int) -> Any:
        raise OSError("truncated")

    images = tiny_images(n=4)
    object.__setattr__(images, "read", broken)
    made, problem = thumbnails([("t", 0), ("t", 1)], {"t": images}, 1.0)
    assert made == {} and "tiny[0]" in problem and "truncated" in problem


def test_a_large_picture_becomes_small() -> None:
    """Source: Pillow reads the size back."""
    import base64
    import io

    from PIL import Image

    uri = data_uri(Image.new("L", (400, 200), 99))
    assert uri.startswith("data:image/webp;base64,")
    with Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))) as picture:
        assert picture.size == (72, 36)


def features_in(toy: Toy, kept: int = 25) -> dict[str, Features]:
    """Features of some rows of each dataset, under the untouched encoder of the first run."""
    made, keys = {}, {}
    for k, name in enumerate(toy.datasets):
        rng = np.random.default_rng(50 + k)
        index = np.sort(rng.permutation(toy.n)[:kept])
        made[name] = Features(
            rng.normal(size=(kept, 6)).astype(np.float32), np.zeros((kept, 3), np.float32),
            toy.labels[name][index], index, ((0,), (1,), (2,)),
        )  # fmt: skip
        keys[name] = key_of({"features": name})
        with toy.store.writing(keys[name], {}, {"provenance": {}}) as folder:
            made[name].write(folder / "features.safetensors")
    toy.run(features={"pre": keys, "post": {}})
    return made


def test_the_nearest_images_are_those_of_scikit_learn(toy: Toy) -> None:
    """Source: sklearn's NearestNeighbors with the cosine distance; by hand what is left out."""
    from sklearn.neighbors import NearestNeighbors

    made = features_in(toy)
    part = toy.parts[0]
    flips = flips_of(part, toy.store)
    found = neighbours_of(part, flips, toy.store)
    assert found.why == "" and found.kept == dict.fromkeys(toy.members, (25, N))
    expected = {
        (0, int(s), int(d), int(row))
        for _, s, d, row, _, _ in flips.flips
        if row in made[toy.datasets[d]].index
    }
    assert set(found.of) == expected and len(expected) < len(flips.flips)
    for (_, s, d, row), near in found.of.items():
        of_set, of_flip = made[toy.members[s]], made[toy.datasets[d]]
        peer = NearestNeighbors(n_neighbors=4, metric="cosine").fit(of_set.features)
        query = of_flip.features[of_flip.index == row]
        distances, places = (one[0] for one in peer.kneighbors(query))
        known = [
            (int(of_set.index[k]), 1 - far)
            for far, k in zip(distances, places, strict=True)
            if s != d or of_set.index[k] != row
        ][:3]
        assert [one.row for one in near] == [one for one, _ in known]
        assert [one.cosine for one in near] == pytest.approx([c for _, c in known], abs=1e-5)
        # Only the set with corruptions has several versions of a photograph.
        assert [one.same for one in near] == [
            s == d == 2 and one.row // len(GROUPS) == row // len(GROUPS) for one in near
        ]
    few = neighbours_of(part, flips, toy.store, most=5)
    assert list(few.of) == list(found.of)[:5]
    assert any(one.same for near in found.of.values() for one in near)


@pytest.mark.usefixtures("blank")
def test_nearest_images_have_pictures_within_the_budget(toy: Toy) -> None:
    features_in(toy)
    toy.run("lwf")  # without features of its own: it started from the same encoder
    toy.run("ewc", backbone="other")  # of which there are none
    images = {name: tiny_images(n=N, classes=CLASSES) for name in toy.datasets}
    object.__setattr__(images["toy-a"], "classes", ("</script><b>", "one", "two"))
    text = render(toy.parts, toy.store, [Opened(sets=images)], budget=0.1)
    page = Page(text)
    data = page.json["p0-flip-data"]
    assert "</script><b>" not in text and data["encoders"] == [0, 0, 2]
    assert "</script><b>" in {name for _, _, name, _ in data["nearest"]}
    assert {key.split("/")[0] for key in data["near"]} == {"0"}
    uris = [uri for *_, uri in data["nearest"]]
    assert 0 < sum(map(len, uris)) <= 0.4 * 0.1e6
    assert sum(len(image[4]) for image in data["images"]) <= 0.6 * 0.1e6
    assert all(key.split("/")[2].isdigit() and len(near) == 3 for key, near in data["near"].items())
    for _, source, i, _, _ in data["flips"]:
        for place, cosine, _ in data["near"].get(f"0/{source}/{i}", ()):
            assert data["nearest"][place][0] == source and -1 <= cosine <= 1
    assert "25 of 40 of toy-a" in page.text and "No nearest images" not in page.text
    shut = Page(toy.page())
    assert [uri for *_, uri in shut.json["p0-flip-data"]["nearest"] if uri] == []


@pytest.mark.usefixtures("blank")
def test_without_features_the_page_says_why_and_shows_none(toy: Toy) -> None:
    toy.run()
    page = Page(toy.page())
    assert page.json["p0-flip-data"]["near"] == {}
    assert "No nearest images of the fine-tuning set: no run here kept features" in page.text
    other = Toy(toy.store.path.with_name("other"))
    features_in(other)
    key = key_of({"features": "toy-b"})
    path = other.store.folder(key) / "features.safetensors"
    path.write_bytes(path.read_bytes()[:50])
    page = Page(other.page())
    told = "set for some: the features of toy-b are missing or damaged."
    assert f"No nearest images of the fine-tuning {told}" in page.text
    assert "toy-b" not in page.text.partition("can be found:")[2].partition(";")[0]


@pytest.mark.usefixtures("blank")
def test_a_large_store_makes_no_large_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    toy = Toy(tmp_path / "s", n=8000)
    for method in ("ft", "lwf", "ewc"):
        toy.run(method, right=0.3)
    monkeypatch.setattr("rib_harness.report.page.FLIPS", 3000)
    page = toy.page()
    data = Page(page).json["p0-flip-data"]
    assert len(data["flips"]) <= 3000 < data["total"]
    assert len(json.dumps(data)) < 400_000
    assert f"{len(data['flips']):,} of {data['total']:,} flips are on this page" in " ".join(
        page.split()
    )


def test_datasets_that_changed_or_cannot_be_opened_have_no_pictures(toy: Toy) -> None:
    toy.run()
    part, catalog = toy.parts[0], load_catalog()
    (toy.store.path / "configs" / f"{part.record['id']}.toml").unlink()
    assert "does not exist" in open_datasets(part, toy.store, catalog).why["toy-a"]
    toy = Toy(toy.store.path.with_name("digits"), members=["digits-a", "digits-r", "digits-c"])
    toy.run(suite_id="digits/digits-rib", references=["digits-test"])
    part = toy.parts[0]
    opened = open_datasets(part, toy.store, catalog)
    assert opened.sets == {}
    assert opened.why["digits-a"] == "its images are no longer those that were scored"
    assert opened.why["digits-test"] == "it was not scored"


def test_file_names_and_labels_of_any_text() -> None:
    assert file_name("a/b", "../..") == "a-b-..-.."
    assert file_name("../x") == "x" and file_name("…") == "figure"
    assert len(file_name("長" * 300).encode()) <= 160
    short = unique(["x" * 50, "x" * 51, "a\nb"], 10)
    assert list(short.values()) == ["x" * 9 + "…", "x" * 7 + "… 2", "a b"]


@pytest.mark.slow
def test_the_verb_writes_page_figures_and_their_data(toy: Toy, tmp_path: Path) -> None:
    toy.run(history=[{"stage": 0, "epoch": 1, "step": 1, "accuracy": 50.0}])
    toy.run("lwf")
    out, folder = tmp_path / "new" / "page.html", tmp_path / "figures"
    arguments = ["--store", str(toy.store.path), "--method", "ft", "--out", str(out)]
    done = CliRunner().invoke(command, [*arguments, "--figures", str(folder)])
    assert done.exit_code == 0, done.output
    assert done.output.splitlines() == [str(out), str(folder)]
    assert Page(out.read_text()).json["p0-flip-data"]["lines"] == ["ft"]
    names = {file.name for file in folder.iterdir()}
    expected = {"mri", "before-after-net", "change-ft", "severity-toy-c", "radar-toy-a",
                "severity-by-corruption-toy-c", "learning-ft", "classes-ft-toy-a"}  # fmt: skip
    assert {f"{n}.{e}" for n in expected for e in ("pdf", "svg", "png", "csv")} <= names
    with (folder / "change-ft.csv").open() as file:
        rows = list(csv.DictReader(file))
    change = changes(toy)
    assert len(rows) == 3 * 4
    for row in rows:
        assert float(row["change"]) == pytest.approx(change[row["fine-tuned on"], row["scored on"]])
        assert float(row["low"]) <= float(row["change"]) <= float(row["high"]) and row["n"] == "40"


def test_the_verb_says_what_it_cannot_do(toy: Toy, tmp_path: Path) -> None:
    run = CliRunner().invoke
    missing = run(command, ["--store", str(tmp_path / "none")])
    assert isinstance(missing.exception, RibError) and "There is no store" in str(missing.exception)
    toy.run()
    store = ["--store", str(toy.store.path), "--out", str(tmp_path / "page.html")]
    empty = run(command, [*store, "--suite", "other"])
    assert isinstance(empty.exception, RibError) and "No results" in str(empty.exception)
    _, post = keys_of(toy)
    shutil.rmtree(toy.store.folder(post["toy-a"]["toy-b"]))
    partial = run(command, store)
    assert partial.exit_code == 1 and "INCOMPLETE" in str(partial.exception)
    assert (tmp_path / "page.html").exists(), "the page is there all the same"
    (tmp_path / "file").write_text("")
    with pytest.raises(RibError, match=r"cannot be written.*another --out"):
        write_report(collect(toy.store), toy.store, load_catalog(), tmp_path / "file" / "x.html")


def test_without_the_heavy_imports_the_verb_is_listed() -> None:
    """The module of the verb imports neither matplotlib nor jinja2 nor torch."""
    import subprocess
    import sys

    code = (
        "import sys, rib_harness.cli.report_, rib_harness.report.page;"
        "assert not {'matplotlib', 'jinja2', 'torch', 'scipy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
