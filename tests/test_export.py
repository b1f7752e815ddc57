"""Parquet, LaTeX and the model card: what they say is what was measured, and they can be read."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from huggingface_hub import ModelCard, metadata_load
from huggingface_hub.repocard_data import EvalResult, model_index_to_eval_results

import rib_harness
from rib_harness import RibError, RunResult
from rib_harness.arms import arms_of
from rib_harness.export import latex_table, to_latex, to_model_card, to_parquet
from rib_harness.matrix import Cell, Matrix
from rib_harness.results import Results
from rib_harness.statistics import Interval


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    """Two methods with two seeds on two datasets of the embedded suite."""
    return rib_harness.run(
        method=["ft", "l2-sp"],
        backbone="digits-conv",
        dataset=["digits-a", "digits-r"],
        limit=2,
        seed=[0, 1],
        recipe={"epochs": 1},
        store=tmp_path_factory.mktemp("store"),
    )


def changed(run: RunResult, **record: Any) -> RunResult:
    return replace(run, record={**run.record, **record})


def without(run: RunResult, source: str, dataset: str) -> RunResult:
    """The run as it is while one cell is not computed yet."""
    post = {
        i: {j: cell for j, cell in row.items() if (i, j) != (source, dataset)}
        for i, row in run.matrix.post.items()
    }
    return replace(run, matrix=replace(run.matrix, post=post))


def mri_by_hand(run: RunResult) -> float:
    """mRI of two datasets, written out: the mean of the two changes off the diagonal."""
    a, r, pre, post = "digits-a", "digits-r", run.matrix.pre, run.matrix.post
    return ((post[a][r].top1 - pre[r].top1) + (post[r][a].top1 - pre[a].top1)) / 2


def with_seed(results: Results, seed: int) -> list[RunResult]:
    return [run for run in results if run.record["seed"] == seed]


# Parquet


def test_parquet_has_the_rows_of_the_csv(results: Results) -> None:
    """Source: the CSV form, read by Python's csv."""
    table = pq.read_table(io.BytesIO(to_parquet(results)))
    expected = list(csv.DictReader(io.StringIO(results.to_csv())))
    assert table.column_names == list(expected[0])
    shown = [{k: "" if v is None else str(v) for k, v in row.items()} for row in table.to_pylist()]
    assert shown == expected


def test_parquet_has_types_also_where_nothing_is_known(results: Results) -> None:
    """Source: what each column of `Results.rows` is."""
    schema = pq.read_schema(io.BytesIO(to_parquet(results)))
    types = {field.name: field.type for field in schema}
    integers = {"seed", "limit", "pretraining_images", "correct", "n"}
    reals = {"top1", "change", "known_answer"}
    for name, kind in types.items():
        text = name not in integers | reals
        assert kind == (pa.string() if text else pa.int64() if name in integers else pa.float64())
    pre_only = replace(results[0], matrix=replace(results[0].matrix, post={}))
    again = pq.read_schema(io.BytesIO(to_parquet(Results([changed(pre_only, limit=None)]))))
    assert {field.name: field.type for field in again} == types


def test_parquet_says_where_it_comes_from(results: Results) -> None:
    """Source: the runs' own JSON form."""
    table = pq.read_table(io.BytesIO(to_parquet(results)))
    facts = json.loads(table.schema.metadata[b"rib_harness"])
    assert facts["version"] == rib_harness.__version__
    documents = json.loads(results.dumps("json"))
    for fact, document in zip(facts["runs"], documents, strict=True):
        del document["interval"]  # computed, not kept
        provenance, expected = fact.pop("provenance"), document.pop("provenance")
        assert {**fact, "pre": document["pre"], "post": document["post"]} == document
        assert provenance["components"] == expected["components"]
        steps = expected["steps"].values()
        assert [one["packages"] for one in provenance["environments"]] == [
            next(iter(steps))["packages"]
        ]


def test_parquet_of_nothing() -> None:
    table = pq.read_table(io.BytesIO(to_parquet(Results([]))))
    assert (table.num_rows, table.num_columns) == (0, 0)


# LaTeX


def tables_of(text: str) -> list[dict[str, Any]]:
    """A strict reader of what a LaTeX table may be: environments nest, rows have all columns.

    Written from booktabs' manual and LaTeX's rules for special characters.
    """
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("%")]
    body, stack, found = "\n".join(lines), [], []
    for verb, name in re.findall(r"\\(begin|end)\{(\w+)\}", body):
        if verb == "begin":
            stack.append(name)
        else:
            assert stack.pop() == name
    assert not stack
    assert body.count("{") == body.count("}")
    assert not re.search(r"(?<!\\)[#_%~^<>|]", body), "a special character is not escaped"
    assert len(re.findall(r"(?<!\\)\$", body)) % 2 == 0
    for table in re.findall(r"\\begin\{table\}(.*?)\\end\{table\}", body, re.DOTALL):
        columns = re.search(r"\\begin\{tabular\}\{([lr]+)\}", table)
        inner = re.search(
            r"\\toprule\n(.*?)\\\\\n\s*\\midrule\n(.*)\\\\\n\s*\\bottomrule", table, re.DOTALL
        )
        assert columns and inner
        rows = [inner[1], *re.split(r"\\\\\n", inner[2])]
        cells = [[c.strip() for c in re.split(r"(?<!\\)&", row)] for row in rows]
        assert {len(row) for row in cells} == {len(columns[1])}
        found.append(
            {
                "head": cells[0][1:],
                "rows": {row[0]: row[1:] for row in cells[1:]},
                "caption": table.partition(r"\caption{")[2].partition("}\n")[0],
                "notes": re.findall(r"\{\\footnotesize (.*)\}\n", table),
            }
        )
        assert len(found[-1]["rows"]) == len(cells) - 1
    return found


def test_latex_has_mri_over_seeds(results: Results) -> None:
    """Source: the definition, written out for two datasets and two seeds."""
    (table,) = tables_of(to_latex(results))
    assert table["head"] == ["digits-conv"]
    for method in ("ft", "l2-sp"):
        mri = fmean(mri_by_hand(run) for run in results if run.method == method)
        assert table["rows"][method] == [f"${mri:+.2f}$"]
    for part in ("2 of 8 sources (digits-a, digits-r)", "mean over seeds 0, 1", "preset default",
                 "limit 2 images a class", "1 epochs", "digits-rib"):  # fmt: skip
        assert part in table["caption"]
    assert table["notes"] == []


def test_latex_has_intervals_where_they_are_given(results: Results) -> None:
    """Source: half of 3 − 1 is 1; the second arm has none."""
    text = to_latex(results, {0: Interval(2.0, 1.0, 3.0, 90.0, "images and seeds")})
    (table,) = tables_of(text)
    assert [arm.method for arm in arms_of(results)] == ["ft", "l2-sp"]
    assert table["rows"]["ft"][0].endswith(r"$ $\pm$ 1.00")
    assert r"\pm" not in table["rows"]["l2-sp"][0]
    assert r"$\pm$ is half the 90 \% interval over images and seeds." in table["caption"]


def test_latex_says_what_is_incomplete_and_what_was_not_asked_for(results: Results) -> None:
    """Source: with one of two changes unknown, mRI lies half of 0 … 100 around the other."""
    ft, l2 = (run for run in with_seed(results, 0))
    other = changed(l2, backbone="digits-vit", backbone_id="digits/digits-vit")
    gone = without(ft, "digits-a", "digits-r")
    (table,) = tables_of(to_latex(Results([gone, other]), {0: Interval(0, -1, 1)}))
    assert table["head"] == ["digits-conv", "digits-vit"]
    assert table["rows"] == {"ft": ["--", ""], "l2-sp": ["", f"${mri_by_hand(other):+.2f}$"]}
    assert r"\pm" not in table["caption"]
    pre, post = ft.matrix.pre, ft.matrix.post
    known = post["digits-r"]["digits-a"].top1 - pre["digits-a"].top1 - pre["digits-r"].top1
    low, high = (f"{(known + x) / 2:+.2f}".replace("-", "$-$") for x in (0, 100))
    (note,) = table["notes"]
    assert note == (
        f"-- ft on digits-conv: incomplete, from {low} to {high} whatever the missing cells hold."
    )
    reference = without(ft, "digits-a", "digits-test")
    (table,) = tables_of(to_latex(Results([reference])))
    assert table["rows"]["ft"] == [f"${mri_by_hand(ft):+.2f}$"] and not table["notes"]


def test_latex_of_one_dataset_has_no_mri(results: Results) -> None:
    """Source: RI averages over the other datasets, and there is none."""
    run = results[0]
    lonely = replace(run, matrix=replace(run.matrix, members=("digits-a",), sources=("digits-a",)))
    (table,) = tables_of(to_latex(Results([lonely])))
    assert table["rows"]["ft"] == ["--"]
    assert table["notes"] == ["-- ft on digits-conv: mRI compares datasets, and there is only one."]


def test_latex_keeps_apart_what_is_not_comparable(results: Results) -> None:
    """Source: one change each; arms of one table differ in backbone and method only."""
    first = with_seed(results, 0)[0]
    recipe = {**first.record["recipe"], "lr": 0.5}
    for change in ({"suite": "other"}, {"recipe": recipe}, {"limit": None}, {"preset": "paper"},
                   {"sources": ["digits-a"]}, {"data": {"digits-a": "x=1"}}):  # fmt: skip
        one, two = tables_of(to_latex(Results([first, changed(first, **change)])))
        assert one["caption"] != two["caption"]
    whole = changed(first, suite_members=["digits-a", "digits-r"])
    (table,) = tables_of(to_latex(Results([whole])))
    assert "over 2 of 2 sources;" in table["caption"]
    most = changed(first, suite_members=["digits-a", "digits-r", "object"])
    (table,) = tables_of(to_latex(Results([most])))
    assert "2 of 3 sources (without object)" in table["caption"]


def test_latex_of_several_seeds_says_which(results: Results) -> None:
    ft, l2 = [run for run in results if run.method == "ft"], with_seed(results, 1)[1]
    (table,) = tables_of(to_latex(Results([*ft, l2])))
    assert "seed" not in table["caption"]
    assert table["notes"] == [
        "ft on digits-conv: mean over seeds 0, 1.",
        "l2-sp on digits-conv: seed 1.",
    ]


def test_latex_loses_no_arm_of_the_same_name(results: Results) -> None:
    """Source: two arms in, two numbers out."""
    first = with_seed(results, 0)[0]
    twin = changed(first, method_id="mine/ft")
    (table,) = tables_of(to_latex(Results([first, twin])))
    assert len(table["rows"]) == 2 and any("(mine/ft" in name for name in table["rows"])
    twin = changed(first, weights="sha256:00")
    (table,) = tables_of(to_latex(Results([first, twin])))
    assert len(table["head"]) == 2 and "sha256:00" in table["head"][1]


def test_latex_is_escaped(results: Results) -> None:
    """Source: LaTeX's ten special characters, in every text that a user or a plugin gives."""
    nasty = r"50%_of#a&b{c}~^\x $1 <|>"
    run = with_seed(results, 0)[0]
    nasty_run = changed(run, method=nasty, backbone=nasty, suite=nasty, notes=[f"{nasty}\nmore"],
                        data={"digits-a": nasty})  # fmt: skip
    gone = without(nasty_run, "digits-a", "digits-r")
    text = to_latex(Results([gone]))
    (table,) = tables_of(text)
    assert (
        list(table["rows"])
        == table["head"]
        == [
            r"50\%\_of\#a\&b\textbraceleft{}c\textbraceright{}\textasciitilde{}\textasciicircum{}"
            r"\textbackslash{}x \$1 \textless{}\textbar{}\textgreater{}"
        ]
    )
    assert f"% note: {nasty} more\n" in text


def test_latex_without_fine_tuning(results: Results) -> None:
    untouched = changed(results[0], method=None, method_id=None, recipe=None, seed=None)
    text = to_latex(Results([untouched]))
    assert tables_of(text) == [] and "nothing was fine-tuned" in text


def test_a_table_of_plain_texts() -> None:
    """Source: a minus is typeset in mathematics, a hyphen is not."""
    text = latex_table(["x", "B − A"], [["a-1", "-0.50 [-1, +2.5]"], ["b", "v-1 · 3"]], ["50 %"])
    (table,) = tables_of(text)
    assert table["head"] == ["B $-$ A"] and table["caption"] == ""
    assert table["rows"] == {"a-1": ["$-0.50$ [$-1$, $+2.5$]"], "b": [r"v-1 $\cdot$ 3"]}
    assert table["notes"] == [r"50 \%"]


def test_the_reader_of_tables_can_fail() -> None:
    """What LaTeX would refuse is refused here too."""
    table = r"\begin{table}\caption{a}" "\n" r"\begin{tabular}{lr}\toprule" "\n" r"a & b \\" "\n"
    end = r"\midrule" "\n" r"%s \\" "\n" r"\bottomrule\end{tabular}\end{table}"
    assert tables_of(table + end % "c & d")
    for row in ("c", "c & d & e", "c_d & e", "c & {d", r"\begin{x} & d", "c & $d"):
        with pytest.raises(AssertionError):
            tables_of(table + end.replace("%s", row))


# The model card


def loaded(card: str) -> tuple[dict[str, Any], dict[tuple[str, str], EvalResult], str]:
    """Metadata, results by dataset and name, and text, as the Hub's own library reads them."""
    path = Path("README.md")
    path.write_text(card, encoding="utf-8")
    metadata = metadata_load(path)
    assert metadata is not None
    found = {}
    if "model-index" in metadata:
        name, listed = model_index_to_eval_results(metadata["model-index"])
        assert name == ModelCard.load(path).data.model_name
        found = {(one.dataset_name, str(one.metric_name)): one for one in listed}
        assert len(found) == len(listed)
    return metadata, found, ModelCard.load(path).text


BEFORE = "top-1 before, %"
AFTER = "top-1 after fine-tuning on another set, %, mean over sources"


def test_the_card_says_what_was_measured(results: Results) -> None:
    """Source: the cells, and the definition written out; read back by huggingface_hub."""
    run = results[0]
    metadata, found, text = loaded(to_model_card(run, "@misc{x,\n}\n"))
    assert metadata["pipeline_tag"] == "image-classification"
    mri = found["digits-rib", "mRI, points, 2 of 8 sources"]
    assert (mri.metric_type, mri.dataset_type) == ("mri", "digits-rib")
    assert mri.metric_value == pytest.approx(mri_by_hand(run), abs=1e-4)
    pre, post = run.matrix.pre, run.matrix.post
    after = {
        "digits-a": post["digits-r"]["digits-a"].top1,
        "digits-r": post["digits-a"]["digits-r"].top1,
        "digits-test": fmean(post[i]["digits-test"].top1 for i in ("digits-a", "digits-r")),
    }
    for name, top1 in after.items():
        assert found[name, BEFORE].metric_value == pytest.approx(pre[name].top1, abs=1e-4)
        assert found[name, AFTER].metric_value == pytest.approx(top1, abs=1e-4)
        assert found[name, AFTER].dataset_args == {"limit": 2}
    assert len(found) == 1 + 2 * 3
    row = f"| digits-a | {pre['digits-a'].n} | {pre['digits-a'].top1:.2f} | {after['digits-a']:.2f}"
    assert row in text
    assert f"**mRI: {mri_by_hand(run):+.2f} points**, on digits-rib, 2 of 8 sources" in text
    assert "diagnostic of this checkpoint's family: 2 checkpoints" in text
    assert text.rstrip().endswith("```bibtex\n@misc{x,\n}\n```")


def test_the_card_says_how_and_with_what(results: Results) -> None:
    """Source: the run's record and the provenance of its steps."""
    run = changed(results[1], notes=["a note\nof two lines"], data={"digits-a": "x=1"})
    _, found, text = loaded(to_model_card(Results([run])))
    for part in ("- suite: digits-rib, sources digits-a, digits-r (2 of 8 sources)", "- seed: 1\n",
                 "- recipe: preset default, ", "- limit: 2 images a class", "- a note of two lines",
                 f"weights {run.record['weights']}", "- method: ft (cl-methods/ft)",
                 f"- exported by rib-harness {rib_harness.__version__}",
                 "- data: digits-a: x=1"):  # fmt: skip
        assert part in text
    for component in run.record["components"]:
        assert f"- {component['distribution']} {component['version']}" in text
    packages = next(iter(run.provenance.values()))["packages"]
    assert all(f"{name} {version}" in text for name, version in packages.items())
    assert found["digits-a", BEFORE].dataset_config == "x=1"
    assert "## Citation" not in text


def test_an_incomplete_card_leaves_out_what_is_not_known(results: Results) -> None:
    """Source: one cell is gone: mRI and the mean that it is part of cannot be known."""
    run = without(results[0], "digits-a", "digits-r")
    _, found, text = loaded(to_model_card(run))
    assert not any(one.metric_type == "mri" for one in found.values())
    assert ("digits-r", BEFORE) in found and ("digits-r", AFTER) not in found
    assert ("digits-a", AFTER) in found
    assert "**mRI: incomplete, from " in text
    assert "- missing cells: digits-a → digits-r" in text
    nothing = replace(run, matrix=replace(run.matrix, pre={}, post={}))
    metadata, found, _ = loaded(to_model_card(nothing))
    assert "model-index" not in metadata and not found


def test_one_missing_source_is_no_mean_of_the_others() -> None:
    """Source: a matrix of three datasets by hand; 50 and 70 have the mean 60."""
    names, cell = ("a", "b", "c"), Cell(40.0, 4, 10)
    post = {
        i: {j: Cell(top1, 5, 10) for j in names}
        for i, top1 in zip(names, (50.0, 70.0, 90.0), strict=True)
    }
    matrix = Matrix(names, (), names, dict.fromkeys(names, cell), post)
    record = {
        "suite": "s", "backbone": "net", "backbone_id": "p/net", "weights": "none", "method": "a|b",
        "method_id": "p/m", "seed": 0, "preset": "default", "limit": None, "sources": list(names),
        "suite_members": list(names), "notes": [], "components": [],
        "recipe": {"optimizer": "sgd", "lr": 1.0, "batch_size": 1, "epochs": 1,
                   "schedule": "cosine", "warmup_steps": 0, "keep": 1.0},
    }  # fmt: skip
    run = RunResult(record, matrix, {})
    _, found, text = loaded(to_model_card(run))
    assert found["c", AFTER].metric_value == 60.0
    assert found["c", AFTER].dataset_args is None
    assert found["s", "mRI, points, 3 of 3 sources"].metric_value == pytest.approx(30.0)
    assert "| a | 10 | 40.00 | 80.00 | +10.00 |" in text
    gone = replace(run, matrix=replace(matrix, post={**post, "a": {}}))
    _, found, text = loaded(to_model_card(gone))
    assert ("c", AFTER) not in found and ("a", AFTER) in found
    assert "| c | 10 | 40.00 | – | +50.00 |" in text


def test_a_fence_in_a_citation_ends_no_block(results: Results) -> None:
    """Source: CommonMark: a fence is closed by one at least as long."""
    assert "\n````bibtex\n@misc{a, note = {```}}\n````\n" in to_model_card(
        results[0], "@misc{a, note = {```}}"
    )


def test_a_card_is_of_one_fine_tuned_model(results: Results) -> None:
    with pytest.raises(
        RibError, match=r"these are 4 \(digits-conv · ft · seed 0; .*l2-sp · seed 1"
    ):
        to_model_card(results)
    with pytest.raises(RibError, match=r"these are 0\. Choose one"):
        to_model_card(Results([]))
    with pytest.raises(RibError, match="only evaluates digits-conv"):
        to_model_card(changed(results[0], method=None))


def test_importing_is_light() -> None:
    """Source: a fresh process's own list of modules."""
    code = (
        "import sys, rib_harness.export, rib_harness.citations\n"
        "assert not {'torch', 'scipy', 'jinja2', 'huggingface_hub'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env=dict(os.environ))
