"""The pages of tables in a browser: on a phone and on a desk, light and dark."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from minirlaif.benchmarks import page as table_page
from minirlaif.benchmarks.plots import draw
from minirlaif.benchmarks.tables import table_json
from tests.benchmarks.test_tables import five, models, scores
from tests.fixtures.browser import chromium


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as instance:
        yield instance


@pytest.fixture(scope="module")
def page_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    table = table_json([scores("a", five()), scores("b", five())])
    path = tmp_path_factory.mktemp("pages") / "table.html"
    path.write_text(table_page.document(table, "run r", draw(table), [], {}))
    return path


def opened(browser: Any, path: Path, width: int, dark: bool) -> Any:
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme="dark" if dark else "light")
    page = context.new_page()
    page.goto(path.as_uri())
    return page


def test_a_wide_table_scrolls_inside_its_own_box_on_a_phone(browser: Any, page_file: Path):
    page = opened(browser, page_file, 390, False)
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    box = page.locator(".scroll").first
    assert box.evaluate("e => e.scrollWidth > e.clientWidth")
    name = box.locator("tbody th").first
    before = name.bounding_box()["x"]
    box.evaluate("e => e.scrollLeft = 150")
    assert name.bounding_box()["x"] == before  # the row's name stays in sight
    page.context.close()


def shade(page: Any) -> int:
    """How much darker the right edge of the first table's box is than the card that it lies on, in steps of 255."""
    picture = Image.open(io.BytesIO(page.locator(".scroll").first.screenshot())).convert("L")
    return max(255 - picture.getpixel((picture.width - 2, y)) for y in (2, 3, picture.height - 3))


def test_a_shade_says_that_there_is_more(browser: Any, page_file: Path):
    page = opened(browser, page_file, 390, False)
    assert shade(page) > 30
    page.locator(".scroll").first.evaluate("e => e.scrollLeft = 9999")
    assert shade(page) < 5
    page.context.close()
    page = opened(browser, page_file, 1440, False)  # everything fits
    assert shade(page) < 5
    page.context.close()


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [390, 1440])
def test_pictures_lie_on_the_card_and_are_read_on_it(browser: Any, page_file: Path, dark: bool, width: int):
    page = opened(browser, page_file, width, dark)
    for place in range(2):
        picture = page.locator(".pictures img").nth(place)
        grey = Image.open(io.BytesIO(picture.screenshot())).convert("L")
        ground = grey.getpixel((1, 1))
        assert (ground < 60) == dark and (ground > 240) != dark  # no panel of its own
        darkest, lightest = grey.getextrema()
        assert (lightest > 200) if dark else (darkest < 60)  # its ink stands out
        assert picture.bounding_box()["width"] >= 300
    page.context.close()


def test_bars_of_many_models_are_drawn(browser: Any, tmp_path: Path):
    table = table_json(models(8))
    path = tmp_path / "table.html"
    path.write_text(table_page.document(table, "run r", draw(table), [], {}))
    page = opened(browser, path, 390, True)
    assert page.locator(".pictures img").evaluate_all("all => all.map(e => e.naturalWidth > 0)") == [True]
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    page.context.close()
