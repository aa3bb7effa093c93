"""Rollouts in the report's page, browsed in headless Chromium; a completion is hostile text."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow
import pytest
import yaml
from playwright.sync_api import Browser, Page, sync_playwright
from pyarrow import parquet

from grpo_lab.report import write
from grpo_lab.reporter import rollouts
from grpo_lab.store.folder import Run
from tests.reporter.test_report_page import CHROMIUM, FOREIGN
from tests.results import make, timing

HOSTILE = f"{FOREIGN}</script><!--<script>document.title='owned'</script>&lt;b&gt;\u2028\u202e\x1b[31m"
NEEDLE = "the one with the needle"
SAID: list[str] = []
"""What the page wrote on its console."""
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium (Debian: apt-get install chromium)")


def completed(folder: Path, **said: Any) -> Run:
    """A run of 60 steps of 50 completions: one hostile and one to be found in each, cut off at 9 tokens."""
    run = make(folder, metrics={"step_time_s": timing(1.0)}, **said)
    config = yaml.safe_load(run.config.read_text())
    rewards = {"accuracy": {"weight": 1.0}, HOSTILE: {"weight": 0.5}}
    run.config.write_text(yaml.safe_dump({**config, "rewards": rewards, "grpo": {"max_completion_length": 9}}))
    texts = [*(f"completion {number}" for number in range(48)), HOSTILE, NEEDLE]
    right = [float(number % 5 == 0) for number in range(50)]
    table = {
        "step": [step for step in range(1, 61) for _ in texts],
        "prompt": [f"{HOSTILE} {number}" for _ in range(60) for number in range(50)],
        "completion": texts * 60,
        "accuracy": right * 60,
        HOSTILE: [None, 0.5] * 25 * 60,
        "advantage": [value - 0.5 for value in right] * 60,
        "completion_tokens": [1 + number % 9 for number in range(50)] * 60,
    }
    parquet.write_table(pyarrow.table(table), run.completions)
    return run


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    folder = tmp_path_factory.mktemp("rollouts")
    completed(folder / "one")
    torn = completed(folder / "torn", seed=1)
    torn.completions.write_bytes(torn.completions.read_bytes()[:-30])
    write([folder], folder)
    with sync_playwright() as driver:
        browser: Browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        opened = browser.new_page(viewport={"width": 390, "height": 900})
        opened.on("console", lambda message: SAID.append(message.text))
        opened.on("pageerror", lambda error: SAID.append(str(error)))
        opened.goto((folder / "report.html").as_uri())
        yield opened
        browser.close()


def count(page: Page) -> int:
    found = re.search(r"of (\d+) that fit", page.locator("#rollouts-count").inner_text())
    assert found is not None
    return int(found[1])


def test_a_given_completion_is_found_by_filters(page: Page) -> None:
    assert count(page) == 2_000
    assert "2,000 of 3,000 completions: whole steps" in page.locator("#rollouts").inner_text()
    page.locator("#rollouts-text").fill("NEEDLE")
    assert count(page) == 40
    page.locator("#rollouts-step").fill("40")
    assert page.locator("#rollouts-step-shown").inner_text() == "60"
    assert count(page) == 1
    card = page.locator(".rollout").inner_text()
    assert NEEDLE in card
    assert "reward 0.25" in card, "accuracy 0 and half of 0.5"
    assert "step 60" in card
    assert "advantage -0.5" in card
    assert "5 tokens" in card


def test_rewards_lengths_ends_and_orders(page: Page) -> None:
    page.locator("#rollouts-text").fill("")
    page.locator("#rollouts-step").fill("1")
    assert count(page) == 50
    page.locator("#rollouts-reward-from").fill("1.1")
    assert count(page) == 5, "right, and the other reward says something"
    page.locator("#rollouts-reward-from").fill("")
    page.locator("#rollouts-length-to").fill("2")
    assert count(page) == 12
    page.locator("#rollouts-length-to").fill("")
    page.locator("#rollouts-cut").select_option("cut")
    assert count(page) == 5
    page.locator("#rollouts-cut").select_option("any")
    page.locator("#rollouts-order").select_option("highest")
    assert page.locator(".rollout b").first.inner_text() == "reward 1.25"
    assert page.locator(".rollout").count() == 10
    page.locator("#rollouts-more").click()
    assert page.locator(".rollout").count() == 20


def test_foreign_text_is_text(page: Page) -> None:
    page.locator("#rollouts-step").fill("0")
    page.locator("#rollouts-text").fill("owned")
    assert count(page) == 2_000, "every prompt"
    assert page.locator(".rollout pre.prompt").first.inner_text().startswith(FOREIGN.split(" &")[0])
    assert page.title() != "owned"
    assert page.locator("img, iframe").count() == 0
    assert page.locator("script").count() == 2
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    assert SAID == []
    blocked = "() => { const made = document.createElement('script'); made.textContent = 'window.ran = 1';"
    assert page.evaluate(blocked + " document.body.append(made); return window.ran }") is None, "our own script only"


def test_thousands_of_rows_filter_at_once(page: Page) -> None:
    started = time.monotonic()
    page.locator("#rollouts-text").fill("completion 4")
    assert count(page) == 40 * 9
    assert time.monotonic() - started < 2


def test_damaged_completions_are_left_out_by_name(page: Page) -> None:
    left_out = page.locator("section", has=page.get_by_role("heading", name="Left out"))
    assert "torn" in left_out.inner_text()
    assert "its rollouts are left out" in left_out.inner_text()


@pytest.mark.parametrize(("several", "letters"), [(100_000, 10), (300, 1_000_000)])
def test_many_rows_and_long_prompts_stay_a_small_page(tmp_path: Path, several: int, letters: int) -> None:
    run = make(tmp_path / "one")
    columns = {"prompt": ["x" * letters] * several, "completion": ["y" * 3_000] * several}
    parquet.write_table(pyarrow.table({"step": [1] * several, **columns}), run.completions)
    started = time.process_time()
    read, damaged = rollouts.read([{"run": str(run.folder)}], [tmp_path])
    assert read is not None
    assert damaged == []
    assert len(read.json()) < 6_000_000
    assert time.process_time() - started < 20
