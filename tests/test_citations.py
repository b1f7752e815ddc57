"""The BibTeX of a run: what it cites, that it parses, and what `references.bib` knows."""

from __future__ import annotations

import re
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

import rib_harness
from rib_harness import MethodSpec
from rib_harness.catalog import load_catalog
from rib_harness.citations import Use, bibtex_of, cite, entries_of, latex_escaped
from rib_harness.config import make_config
from rib_harness.plan import make_plan
from rib_harness.results import Results, collect
from rib_harness.specs import KINDS
from rib_harness.store import Store
from rib_harness.testing import catalog_with

Entry = tuple[str, str, dict[str, str]]


def parse(text: str) -> list[Entry]:
    """A strict reader of BibTeX: `@type{key, name = {value}, …}`, braces counted, nothing else.

    Written from the grammar of BibTeX; outside of entries an @ is an error here, as it is there.
    """
    entries, at = [], 0
    while "@" in text[at:]:
        at = text.index("@", at)
        head = re.compile(r"@([a-z]+)\{([^\s,{}@]+),").match(text, at)
        assert head, f"no entry: {text[at : at + 60]!r}"
        at, fields = head.end(), dict[str, str]()
        while not (end := re.compile(r"\s*\}").match(text, at)):
            name = re.compile(r"\s*([A-Za-z-]+)\s*=\s*(?=\{)").match(text, at)
            assert name, f"no field: {text[at : at + 60]!r}"
            depth, start = 0, name.end()
            for at in range(start, len(text)):
                depth += (text[at] == "{") - (text[at] == "}")
                if depth == 0:
                    break
            assert depth == 0, f"open: {text[start : start + 60]!r}"
            fields[name[1]] = text[start + 1 : at]
            comma = re.compile(r",|(?=\s*\})").match(text, at + 1)
            assert comma, f"no comma: {text[at : at + 60]!r}"
            at = comma.end()
        at = end.end()
        entries.append((head[1], head[2], fields))
    return entries


def the_file() -> list[Entry]:
    return parse(files("rib_harness").joinpath("references.bib").read_text(encoding="utf-8"))


def used_as(text: str) -> dict[str, str]:
    """Key → what stands in the line before its entry."""
    return {key: what for what, key in re.findall(r"% used as: (.*)\n@\w+\{([^,]+),", text)}


def planned(*methods: str, **settings: Any) -> Results:
    """Runs as they are recorded before their first step: nothing is trained."""
    config = make_config(
        {
            "method": methods,
            "backbone": "digits-conv",
            "dataset": ["digits-a", "digits-r"],
            "limit": 2,
            "store": Path("store"),
            **settings,
        }
    )
    store = Store(config.store)
    return collect(store, make_plan(config, load_catalog(), store).records)


def changed(results: Results, **fields: Any) -> Results:
    return Results([replace(one, record={**one.record, **fields}) for one in results])


# What references.bib holds


def test_every_entry_is_whole_and_nothing_is_there_twice() -> None:
    """Source: BibTeX's own rules: keys differ without regard to case."""
    entries = the_file()
    assert len(entries) > 50
    keys = [key.lower() for _, key, _ in entries]
    assert len(set(keys)) == len(keys)
    for identity in ("eprint", "doi", "url", "title"):
        values = [fields[identity] for *_, fields in entries if identity in fields]
        assert len(set(values)) == len(values)
    for kind, key, fields in entries:
        assert {"title", "author", "year"} <= set(fields), key
        assert {"eprint", "doi", "url", "citedas"} & set(fields), key
        assert ("eprint" in fields) == ("archivePrefix" in fields), key
        assert kind != "article" or "journal" in fields, key
        assert kind != "inproceedings" or "booktitle" in fields, key
        assert re.fullmatch(r"\d{4}", fields["year"]), key
        # An arXiv id says when it was first there: no paper is published before that year.
        if "eprint" in fields:
            assert 2000 + int(fields["eprint"][:2]) <= int(fields["year"]), key


def test_ascii_only_for_old_bibtex() -> None:
    """Source: 8-bit BibTeX sorts and abbreviates bytes, not letters."""
    files("rib_harness").joinpath("references.bib").read_text(encoding="ascii")


@pytest.mark.parametrize(
    ("eprint", "author", "words"),
    [
        ("2410.21582", "Hwang", "Large Pre-Training Datasets"),
        ("1606.09282", "Li, Zhizhong", "Learning without Forgetting"),
        ("1612.00796", "Kirkpatrick", "Catastrophic Forgetting"),
        ("2109.01903", "Wortsman", "Zero-Shot Models"),
        ("2203.05482", "Wortsman", "Model Soups"),
        ("2202.10054", "Kumar", "Distort Pretrained Features"),
        ("1907.07174", "Hendrycks", "Natural Adversarial Examples"),
        ("2002.02923", "Alvarez-Melis", "Geometric Dataset Distances"),
        ("2007.00644", "Taori", "Natural Distribution Shifts"),
        ("2302.01381", "Shi", "Different Training Data"),
        ("2106.00840", "Vania", "Item Response Theory"),
        ("2311.03386", "Singla", "Data Attribution"),
        ("1905.00414", "Kornblith", "Similarity of Neural Network Representations"),
        ("1706.04599", "Guo", "Calibration"),
    ],
)
def test_ids_are_of_these_papers(eprint: str, author: str, words: str) -> None:
    """Source: the papers' title pages."""
    (found,) = [fields for *_, fields in the_file() if fields.get("eprint") == eprint]
    assert found["author"].startswith(author) and words in found["title"]


def test_every_citation_of_a_component_is_known() -> None:
    """Source: what the specs say. No entry is made up from an id or a text alone."""
    known = {key for _, key, _ in the_file()}
    catalog = load_catalog()
    for component in (c for kind in KINDS for c in catalog.list(kind)):
        for entry in entries_of(component.spec.citation):
            ((_, key, _),) = parse(entry)
            assert key in known, f"{component.id}: {component.spec.citation!r}"


def test_every_id_in_the_source_is_known() -> None:
    """Source: the repository's own text, read line by line."""
    root = Path(rib_harness.__file__).parents[1]
    if not (root / "plugins").is_dir():
        pytest.skip("the plugins' source is not beside the core's")
    known = {
        value for *_, f in the_file() for name, value in f.items() if name in ("eprint", "doi")
    }
    folders = [root / "rib_harness", *(root / "plugins").glob("*/rib_plugin_*")]
    for path in (p for folder in folders for p in folder.rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        ids = [
            *re.findall(r"arXiv:(\d{4}\.\d{4,5})", text),
            *re.findall(r'doi:(10\.[^"\s]+)', text),
        ]
        assert {one.rstrip(".,;)") for one in ids} <= known, path.name


# What a run cites


def test_a_run_cites_all_that_it_used_once() -> None:
    """Source: the soup of arXiv:2410.21582 is of the pretrained model, ft, ewc and lwf."""
    text = cite(planned("ft", "soup"), load_catalog())
    entries = parse(text)
    keys = [key for _, key, _ in entries]
    assert len(keys) == len(set(keys)) and "citedas" not in text
    told = used_as(text)
    assert list(told) == keys
    assert keys[:2] == ["hwang2026large", "rib-harness"]
    assert told["hwang2026large"].startswith("the benchmark, digits-rib (suite), ft (method)")
    assert {"ri (metric)", "mri (metric)"} <= set(told["hwang2026large"].split(", "))
    assert told["alpaydin1998optical"] == (
        "digits-a (dataset), digits-r (dataset), digits-test (dataset)"
    )
    assert told["wortsman2022model"] == "soup (method)"
    assert told["kirkpatrick2017overcoming"] == "ewc (method)"
    assert told["li2018learning"] == "lwf (method)"
    assert told["russakovsky2015imagenet"] == "top-1 (metric)"
    software = next(entry for entry in entries if entry[1] == "rib-harness")
    assert software[0] == "software"
    assert software[2]["version"] == rib_harness.__version__
    assert "% without a citation: digits-conv (backbone)\n" in text


def test_a_method_brings_what_its_needs_need() -> None:
    """Source: WiSE-FT from LP-FT, which starts from linear probing (arXiv:2202.10054)."""
    told = used_as(cite(planned("wise-ft:base=lp-ft"), load_catalog()))
    assert told["wortsman2022robust"] == "wise-ft (method)"
    assert told["kumar2022finetuning"] == "lp-ft (method), lp (method)"


def test_an_evaluation_cites_no_method() -> None:
    """Source: it has none, and RI needs one."""
    text = cite(planned(), load_catalog())
    assert "(method)" not in text and "mri" not in text and "top-1 (metric)" in text


def test_pretraining_and_pruning_are_cited() -> None:
    """Source: LAION-5B's paper (arXiv:2210.08402) has LAION-2B; CLIP's is arXiv:2103.00020."""
    results = planned("ft")
    recipe = {**results[0].record["recipe"], "keep": 0.5, "keep_by": "el2n-easy"}
    told = used_as(
        cite(changed(results, pretraining="LAION-2B (CLIP)", recipe=recipe), load_catalog())
    )
    assert told["radford2021learning"] == told["schuhmann2022laion"]
    assert told["schuhmann2022laion"] == "LAION-2B (CLIP) (pretraining)"
    assert told["paul2021deep"] == "EL2N (data pruning)"
    assert "paul2021deep" not in used_as(cite(results, load_catalog()))


def test_every_known_pretraining_is_cited() -> None:
    """Source: protocol of arXiv:2410.21582: the seven names that it gives pretraining."""
    results = planned("ft")
    for name in ("IN-1K + AugReg", "IN-1K + SAM", "IN-21K", "IN-21K-P", "IN-21K + AugReg",
                 "OpenAI (CLIP)", "LAION-2B (CLIP)"):  # fmt: skip
        text = cite(changed(results, pretraining=name), load_catalog())
        assert f"{name} (pretraining)" in text
        assert not any(key.startswith("arxiv-") for _, key, _ in parse(text))


def test_what_is_not_installed_is_named() -> None:
    """A store may hold runs of a plugin that is gone."""
    results = planned("soup")
    without = load_catalog(block=["cl-methods"])
    text = cite(results, without)
    parse(text)
    last = text.rpartition("% without a citation: ")[2]
    assert "cl-methods/soup (method; not installed here)" in last
    assert "what cl-methods/soup starts from (not installed here)" in last


def test_a_third_partys_bibtex_is_kept() -> None:
    """Source: the text itself, byte by byte."""
    theirs = "@article{Mine2025,\n  title = {{M}ine, at last},\n  author = {A and B}\n}"
    text = cite(
        changed_method(planned("ft"), theirs),
        catalog_with((spec(theirs), object), base=load_catalog()),
    )
    assert f"% used as: mine (method)\n{theirs}\n" in text
    assert ("article", "Mine2025", {"title": "{M}ine, at last", "author": "A and B"}) in parse(text)


def spec(citation: str) -> MethodSpec:
    return MethodSpec(name="mine", target="", summary="Mine.", citation=citation)


def changed_method(results: Results, citation: str) -> Results:
    """The same run, as if a method of another plugin had made it."""
    component = {"id": "testing/mine", "kind": "method"}
    parts = [c for c in results[0].record["components"] if c["kind"] != "method"]
    return changed(results, method_id="testing/mine", options={}, components=[*parts, component])


# Single citations


def one(citation: str) -> Entry:
    (entry,) = parse("\n".join(entries_of(citation)))
    return entry


def test_an_unknown_arxiv_id_gives_a_small_entry() -> None:
    for written in (
        "arXiv:2999.01234v3",
        "https://arxiv.org/abs/2999.01234",
        "see arxiv:2999.01234.",
    ):
        kind, _, fields = one(written)
        assert kind == "misc"
        assert fields["eprint"] == "2999.01234" and fields["archivePrefix"] == "arXiv"
        assert fields["url"] == "https://arxiv.org/abs/2999.01234"


def test_an_unknown_doi_or_address_gives_a_small_entry() -> None:
    assert one("(doi:10.1000/a_b;c)")[2]["doi"] == "10.1000/a_b;c"
    assert one("https://doi.org/10.1000/182")[2]["doi"] == "10.1000/182"
    assert one("https://example.org/a{b}_c%20d.")[2] == {
        "howpublished": r"\url{https://example.org/a%7Bb%7D_c%20d}"
    }


def test_a_text_is_a_note_and_harmless() -> None:
    """Source: LaTeX's table of special characters; BibTeX counts every brace."""
    kind, key, fields = one("Doe & Roe {2020}, 50 % of_it @ home\n#1 \\input")
    assert (kind, key) == ("misc", "doe-roe-2020-50-of-it-home-1-input")
    assert fields == {
        "note": r"Doe \& Roe \textbraceleft{}2020\textbraceright{}, 50 \% of\_it @ home \#1 "
        r"\textbackslash{}input"
    }
    assert one("@article{broken, title = {never closed}")[0] == "misc"
    assert one("} {")[0] == "misc"
    assert latex_escaped("~^<|>$−") == (
        r"\textasciitilde{}\textasciicircum{}\textless{}\textbar{}\textgreater{}\$$-$"
    )


def test_several_in_one_and_none() -> None:
    """A known DOI with a semicolon is no two citations."""
    brier = "doi:10.1175/1520-0493(1950)078<0001:VOFEIT>2.0.CO;2"
    entries = [
        e for text in entries_of(f"arXiv:1606.09282; {brier}; Roe, 2021") for e in parse(text)
    ]
    assert [key for _, key, _ in entries] == ["li2018learning", "brier1950verification", "roe-2021"]
    assert entries_of("") == entries_of("  ") == []


def test_known_texts_and_addresses_are_looked_up() -> None:
    assert one("Barbu et al., NeurIPS 2019")[1] == "barbu2019objectnet"
    assert one("Salvador & Oberman, 2022")[1] == "salvador2022imagenet"
    assert one("https://github.com/pytorch/vision/")[1] == "torchvision2016"
    assert one("arXiv:2410.21582 for the protocol")[1] == "hwang2026large"


def test_no_key_is_there_twice() -> None:
    """Source: BibTeX refuses a repeated key, without regard to case."""
    theirs = "@misc{LI2018learning, title = {Another}}"
    text = bibtex_of(
        [Use("a", "arXiv:1606.09282"), Use("b", theirs), Use("c @ d", "Doe"), Use("e", "doe")]
    )
    assert [key for _, key, _ in parse(text)] == [
        "li2018learning",
        "LI2018learning-2",
        "doe",
        "doe-2",
    ]
    assert "% used as: c at d\n" in text.replace("  ", " ")


def test_the_reader_of_these_tests_can_fail() -> None:
    """What would be no BibTeX is refused here too."""
    for wrong in ("@misc{a", "@misc{a, b = {c}", "@misc{a, b = {{c}, }", "@misc{a, b {c}}", "x@y"):
        with pytest.raises(AssertionError):
            parse(wrong)
