"""The page of `audit` in a browser: blind, by keys, one label per pair, and nothing for other pages."""

from __future__ import annotations

import json
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from minirlaif.app import audit_tab
from minirlaif.benchmarks.audit import Audit
from minirlaif.errors import UserError
from minirlaif.runs.run import Run
from tests.fixtures import audit_run
from tests.fixtures.browser import chromium, wait_for


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    for name in ("GRADIO_TEMP_DIR", "GRADIO_EXAMPLES_CACHE", "GRADIO_ANALYTICS_ENABLED", "HF_HUB_DISABLE_TELEMETRY"):
        monkeypatch.setenv(name, "")  # put back afterwards
    return audit_run.make(tmp_path)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as instance:
        yield instance


def opened(browser: Any, address: str) -> Any:
    page = browser.new_page(viewport={"width": 390, "height": 800})
    page.goto(address)
    page.wait_for_selector("#pair h1")
    return page


def test_a_pair_without_the_judges_verdict(run: Run, browser: Any):
    audit = Audit(run, 3, 0)
    with audit_tab.serving(audit, 0, 60.0) as address:
        page = opened(browser, address)
        item, text = audit.items[0], page.inner_html("#pair .report")
        first, second = item.answers[::-1] if item.flipped else item.answers
        assert item.question in text and "data:image/jpeg" in text and 0 < text.index(first) < text.index(second)
        audit._rows[item.id].update(choice="B", orders=["B", "B"])
        page.reload()
        page.wait_for_selector("#pair h1")
        assert page.inner_html("#pair .report") == text
        wait_for(lambda: page.evaluate("document.querySelector('#pair video').readyState") >= 1)  # the clip is served
        page.close()


def test_keys_press_the_buttons(run: Run, browser: Any):
    """1 to 4 on three pairs; no key with Ctrl, none that is held down, none beyond; then the figures, and a label taken back."""
    audit = Audit(run, 3, 0)
    with audit_tab.serving(audit, 0, 60.0) as address:
        page = opened(browser, address)
        page.keyboard.press("9")
        page.keyboard.press("Control+1")
        page.evaluate("document.dispatchEvent(new KeyboardEvent('keydown', {key: '1', repeat: true}))")
        page.wait_for_timeout(300)
        assert audit.labels == {}
        for count, key in enumerate("142", 1):
            page.keyboard.press(key)
            page.wait_for_selector(f"#pair :text('{count} of 3 labelled')")
        assert [audit.labels[item.id] for item in audit.items] == ["first", "skip", "second"]
        assert "Judge and person" in page.inner_text("#pair") and "too few to rely on" in page.inner_text("#pair")
        ends = page.locator("#pair td, #pair th").evaluate_all("all => all.map(e => e.getBoundingClientRect().right)")
        assert max(ends) <= 390  # nothing is cut at the right
        result = json.loads((run.root / "audit" / "result.json").read_text())
        assert result["labels"] == {"first": 1, "second": 1, "tie": 0, "skip": 1} and result["agreement"]["n"] == 2
        page.click("#previous")
        page.wait_for_selector(f"#pair :text('{audit.items[2].question}')")
        page.keyboard.press("3")
        wait_for(lambda: audit.labels[audit.items[2].id] == "tie")
        page.close()
    assert Audit(run, 3, 0).labels == audit.labels


def test_two_keys_at_once_label_one_pair(run: Run, browser: Any):
    """The second key belongs to the pair on the screen, not to the one that is about to come."""
    audit = Audit(run, 3, 0)
    with audit_tab.serving(audit, 0, 60.0) as address:
        page = opened(browser, address)
        page.evaluate("['1', '2'].map(key => document.dispatchEvent(new KeyboardEvent('keydown', {key})))")
        labels = run.root / "audit" / "labels.jsonl"
        wait_for(lambda: labels.is_file() and labels.read_text().count("\n") == 2)
        page.wait_for_timeout(300)
        lines = [json.loads(line) for line in labels.read_text().splitlines()]
        assert sorted((line["id"], line["label"]) for line in lines) == [
            (audit.items[0].id, name) for name in ("first", "second")
        ]
        assert audit.labels == {audit.items[0].id: lines[-1]["label"]}  # of two requests at once, the one that came last
        page.close()


@pytest.mark.parametrize("headers", [{"Host": "evil.example"}, {"Origin": "http://evil.example"}])
def test_other_pages_are_refused(headers: dict[str, str], run: Run):
    audit = Audit(run, 3, 0)
    with audit_tab.serving(audit, 0, 60.0) as address:
        request = urllib.request.Request(f"{address.rstrip('/')}/gradio_api/queue/join", b"{}", headers)
        with pytest.raises(urllib.error.HTTPError) as error:
            urllib.request.urlopen(request)
        assert error.value.code == 403
    assert audit.labels == {}


def test_the_command_says_where_and_ends_with_the_figures(run: Run, capsys: pytest.CaptureFixture[str]):
    Audit(run, 2, 0)
    stop = threading.Event()
    stop.set()
    audit_tab.serve(Audit(run, 4, 5), 0, 60.0, stop)
    output = capsys.readouterr().out
    assert output.startswith("2 pairs drawn before (seed 0) are used") and "label at http://127.0.0.1:" in output
    assert "2 pairs drawn, 0 labelled" in output and f"audit: {run.root / 'audit' / 'result.json'}" in output


def test_a_port_that_is_taken_is_one_line(run: Run):
    audit = Audit(run, 2, 0)
    with audit_tab.serving(audit, 0, 60.0) as address:
        port = int(address.rstrip("/").rsplit(":", 1)[1])
        with pytest.raises(UserError, match=f"--port {port}: cannot listen on this port"), audit_tab.serving(audit, port, 60.0):
            pass
