"""The page of a real run, opened in headless Chromium."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

import rib_harness
from rib_harness.catalog import load_catalog
from rib_harness.report.page import write_report
from rib_harness.results import collect
from rib_harness.store import Store

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = shutil.which("chromium")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium"),
]


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Drawn once for all workers, whose folders lie beside each other."""
    folder = tmp_path_factory.getbasetemp()
    folder = (folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder) / "report"
    with FileLock(f"{folder}.lock"):
        if not (folder / "report.html").exists():
            # All eight members, with probes along the way and features of some images.
            store = Store(folder / "store")
            rib_harness.run(
                backbone="digits-conv", method=["ft", "wise-ft"], probe_every=5, limit=2,
                recipe={"epochs": 10}, features=30, store=store.path,
            )  # fmt: skip
            write_report(collect(store), store, load_catalog(), folder / "report.html")
    return folder / "report.html"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


class Opened:
    """The page at a width, with all that went wrong on it."""

    def __init__(self, browser: Any, file: Path, width: int, **settings: Any):
        self.context = browser.new_context(
            viewport={"width": width, "height": 900}, offline=True, **settings
        )
        self.page = self.context.new_page()
        self.problems: list[str] = []
        self.requests: list[str] = []
        self.page.on("console", lambda message: self.problems.append(message.text))
        self.page.on("pageerror", lambda error: self.problems.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(file.as_uri())

    def column(self, table: str, k: int) -> list[str]:
        """Texts of a column, from top to bottom."""
        cells: list[str] = self.page.eval_on_selector_all(
            f"{table} tbody tr", f"rows => rows.map(row => row.cells[{k}].textContent.trim())"
        )
        return cells

    def data(self, name: str) -> Any:
        return json.loads(self.page.locator(f"#{name}").text_content())


@pytest.fixture
def opened(browser: Any, file: Path) -> Iterator[Opened]:
    one = Opened(browser, file, 1400)
    yield one
    one.context.close()
    assert one.problems == []
    assert [url for url in one.requests if not url.startswith(("file:", "data:"))] == []


def values(texts: list[str]) -> list[float]:
    return [float(text.split()[0].split("[")[0].replace("−", "-")) for text in texts]


def test_tables_sort_by_click_and_by_keyboard(opened: Opened) -> None:
    page = opened.page
    head = page.locator(".overview thead th").nth(1)
    head.get_by_role("button").click()
    assert head.get_attribute("aria-sort") == "ascending"
    first = values(opened.column(".overview", 1))
    assert first == sorted(first) and len(first) == 2
    page.keyboard.press("Enter")
    assert head.get_attribute("aria-sort") == "descending"
    assert values(opened.column(".overview", 1)) == sorted(first, reverse=True)
    # By name, from the keyboard alone.
    page.locator(".overview thead button").first.focus()
    page.keyboard.press("Space")
    assert head.get_attribute("aria-sort") is None
    assert opened.column(".overview", 0) == ["ft", "wise-ft"]
    page.keyboard.press("Space")
    assert opened.column(".overview", 0) == ["wise-ft", "ft"]


def test_the_first_key_leads_past_the_navigation(opened: Opened) -> None:
    opened.page.keyboard.press("Tab")
    link = opened.page.locator(":focus")
    assert link.text_content() == "Skip to the results"
    assert link.bounding_box()["x"] >= 0
    opened.page.keyboard.press("Enter")
    assert opened.page.evaluate("document.activeElement.id") == "main"


def shown(opened: Opened) -> int:
    return int(opened.page.locator(".explorer").get_attribute("data-flips"))


def test_the_explorer_shows_what_its_filters_say(opened: Opened) -> None:
    """Source: the page's own data, filtered here by a loop."""
    page, data = opened.page, opened.data("p0-flip-data")
    images = data["images"]

    def count(**wanted: Any) -> int:
        n = 0
        for line, source, i, before, _ in data["flips"]:
            dataset, _, label, group, _ = images[i]
            facts = {
                "direction": "lost" if before == label else "gained",
                "line": line, "source": source, "dataset": dataset,
                "class": data["names"][dataset][str(label)],
                "group": data["groups"][dataset][group],
            }  # fmt: skip
            n += all(facts[name] == value for name, value in wanted.items())
        return n

    assert shown(opened) == count(direction="lost") > 0
    controls = {name: page.locator(f".explorer select[name={name}]") for name in
                ("direction", "line", "source", "dataset", "class", "group")}  # fmt: skip
    controls["direction"].select_option("gained")
    assert shown(opened) == count(direction="gained")
    controls["direction"].select_option("")
    assert shown(opened) == count() == len(data["flips"])
    controls["line"].select_option("1")
    controls["source"].select_option("0")
    assert shown(opened) == count(line=1, source=0)
    controls["dataset"].select_option(str(data["datasets"].index("digits-c")))
    c = data["datasets"].index("digits-c")
    assert shown(opened) == count(line=1, source=0, dataset=c)
    cell = next(x for x in data["cells"] if x[:3] == [1, 0, c])
    status = page.locator(".explorer .status")
    assert f"{cell[4]:,} lost, {cell[5]:,} gained" in status.text_content()
    name = controls["class"].locator("option").nth(1).get_attribute("value")
    controls["class"].select_option(name)
    assert shown(opened) == count(**{"line": 1, "source": 0, "dataset": c, "class": name})
    controls["class"].select_option("")
    group = controls["group"].locator("option").nth(1).get_attribute("value")
    controls["group"].select_option(group)
    assert shown(opened) == count(line=1, source=0, dataset=c, group=group)
    # A choice that the next dataset does not have is let go.
    controls["dataset"].select_option("0")
    assert shown(opened) == count(line=1, source=0, dataset=0)
    page.locator(".explorer button[type=reset]").click()
    page.wait_for_function(f"+document.querySelector('.explorer').dataset.flips === "
                           f"{count(direction='lost')}")  # fmt: skip


def test_the_explorer_by_keyboard(opened: Opened) -> None:
    page = opened.page
    everything = shown(opened)
    page.locator(".explorer select[name=direction]").focus()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowDown")
    assert shown(opened) > everything  # both directions
    first = page.locator(".cards > li").first.text_content()
    page.locator(".explorer .next").focus()
    page.keyboard.press("Enter")
    assert page.locator(".explorer .where").text_content().startswith("page 2 of")
    assert page.locator(".cards > li").first.text_content() != first
    assert page.locator(".explorer .previous").is_enabled()


def test_pictures_load_and_say_what_they_are(opened: Opened) -> None:
    pictures = opened.page.locator(".cards img")
    assert pictures.count() > 0
    for k in range(pictures.count()):
        assert pictures.nth(k).evaluate("async img => (await img.decode(), img.naturalWidth)") > 0
        assert pictures.nth(k).get_attribute("alt")
    data = opened.data("p0-flip-data")
    lacking = {k for k, image in enumerate(data["images"]) if not image[4]}
    assert len(lacking) < len(data["images"]) / 2
    assert data["without"] == sum(flip[2] in lacking for flip in data["flips"])


def test_nearest_images_of_the_fine_tuning_set_stand_below_their_flip(opened: Opened) -> None:
    """Source: the data that the page carries."""
    page, data = opened.page, opened.data("p0-flip-data")
    shown = page.locator(".cards .near")
    assert shown.count() > 0
    source, line = "1", "0"
    page.locator(".explorer select[name=source]").select_option(source)
    page.locator(".explorer select[name=line]").select_option(line)
    expected = [
        [data["nearest"][place] for place, _, _ in near]
        for k, s, i, before, _ in data["flips"]
        if (k, s) == (0, 1) and before == data["images"][i][2]
        and (near := data["near"].get(f"{data['encoders'][k]}/{s}/{i}"))
    ]  # fmt: skip
    told = {
        tuple(shown.nth(n).locator("img, span").evaluate_all("all => all.map(x => x.title)"))
        for n in range(shown.count())
    }
    assert 0 < len(told) <= len(expected)
    name = data["sources"][1]
    known = {tuple((c, row) for _, row, c, _ in near) for near in expected}
    for titles in told:
        pairs = tuple(
            (title.rpartition(f", {name} no. ")[0],
             int(title.rpartition(f", {name} no. ")[2].split(",")[0]))
            for title in titles
        )  # fmt: skip
        assert pairs in known
    assert shown.locator("img").count() > 0


def test_the_classes_of_a_choice(opened: Opened) -> None:
    page, data = opened.page, opened.data("p0-class-data")
    page.locator(".classes select[name=line]").select_option("1")
    page.locator(".classes select[name=dataset]").select_option("2")
    rows = data["tables"]["1/2"]["rows"]
    names = opened.column(".bars", 0)
    assert sorted(names) == sorted(row[0] for row in rows)
    told = values(opened.column(".bars", 4))
    assert told == sorted(told)
    by_name = dict(zip(names, told, strict=True))
    for name, _, before, after, _ in rows:
        assert by_name[name] == pytest.approx(after - before, abs=0.0501)
    page.locator(".bars thead button").nth(1).click()
    numbers = [int(text) for text in opened.column(".bars", 1)]
    assert numbers == sorted(numbers)


def luminance(opened: Opened, selector: str, what: str) -> float:
    """Relative luminance of a computed colour, 0 to 1 (WCAG 2.2)."""
    # A canvas turns any colour of CSS into sRGB.
    red, green, blue = opened.page.locator(selector).first.evaluate(
        f"""element => {{
          const context = document.createElement("canvas").getContext("2d");
          context.fillStyle = getComputedStyle(element).{what};
          context.fillRect(0, 0, 1, 1);
          return [...context.getImageData(0, 0, 1, 1).data].slice(0, 3);
        }}"""
    )

    def linear(value: float) -> float:
        c = value / 255
        return c / 12.92 if c <= 0.04045 else float(((c + 0.055) / 1.055) ** 2.4)

    return 0.2126 * linear(red) + 0.7152 * linear(green) + 0.0722 * linear(blue)


def contrast(opened: Opened, selector: str, background: str) -> float:
    one, two = (luminance(opened, selector, "color"),
                luminance(opened, background, "backgroundColor"))  # fmt: skip
    return (max(one, two) + 0.05) / (min(one, two) + 0.05)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_light_and_dark_are_readable(browser: Any, file: Path, scheme: str) -> None:
    """Source: WCAG 2.2, contrast of at least 4.5."""
    opened = Opened(browser, file, 768, color_scheme=scheme)
    assert (luminance(opened, "body", "backgroundColor") > 0.5) == (scheme == "light")
    opened.page.eval_on_selector_all(
        ".heat .gain, .heat .loss", "all => all.forEach(x => x.style.setProperty('--k', '100%'))"
    )  # the strongest colours that a cell can have
    for selector, background in [
        ("p", "body"), (".note", "body"), (".ci", "body"), ("nav a", "body"),
        (".heat .loss", ".heat .loss"), (".heat .gain", ".heat .gain"),
    ]:  # fmt: skip
        assert contrast(opened, selector, background) >= 4.5, selector
    button = opened.page.locator("#theme")
    assert button.get_attribute("aria-pressed") == str(scheme == "dark").lower()
    button.click()
    assert (luminance(opened, "body", "backgroundColor") > 0.5) == (scheme == "dark")
    # Figures follow: their text is in the ink of the page.
    ink = opened.page.locator("figure svg text").first.evaluate("x => getComputedStyle(x).fill")
    assert ink == opened.page.evaluate("getComputedStyle(document.body).color")
    assert opened.problems == []
    opened.context.close()


@pytest.mark.parametrize("width", [360, 768, 1400])
def test_nothing_is_wider_than_the_window(browser: Any, file: Path, width: int) -> None:
    opened = Opened(browser, file, width)
    opened.page.eval_on_selector_all("details", "all => all.forEach(one => { one.open = true; })")
    wide = opened.page.evaluate("document.documentElement.scrollWidth")
    assert wide <= width
    outside = opened.page.eval_on_selector_all(
        "figure svg, select, button:not(.sort), .cards > li, p, h1, h2, h3, .facts",
        "all => all.filter(x => x.getBoundingClientRect().right > innerWidth + 1)"
        ".map(x => x.outerHTML.slice(0, 80))",
    )
    assert outside == []
    assert opened.problems == []
    opened.context.close()


def test_it_prints_unfolded_and_light(browser: Any, file: Path, tmp_path: Path) -> None:
    opened = Opened(browser, file, 1400, color_scheme="dark")
    opened.page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert opened.page.locator(".fold:not([open])").count() == 0
    opened.page.emulate_media(media="print", color_scheme="dark")
    assert luminance(opened, "body", "backgroundColor") > 0.5
    assert not opened.page.locator("nav").is_visible()
    assert not opened.page.locator(".explorer .controls").is_visible()
    opened.page.pdf(path=tmp_path / "page.pdf")
    assert (tmp_path / "page.pdf").read_bytes().startswith(b"%PDF-")
    opened.context.close()
