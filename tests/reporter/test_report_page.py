"""The report's page in a real browser: headless Chromium, narrow and wide, light and dark."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from grpo_lab.report import write
from tests.results import make, timing

CHROMIUM = os.environ.get("CHROMIUM") or next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)
FOREIGN = (
    "<script>document.title='owned'</script><img src=http://127.0.0.1:9/x onerror=\"document.title='owned'\"> & $x^$"
)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium (Debian: apt-get install chromium)")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as driver:
        # Chromium's own sandbox does not start for root, as CI is; the page is our own.
        chromium = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a sweep with everything in it: layouts, seeds, failures, foreign text, published numbers."""
    top = tmp_path_factory.mktemp("report")
    folder = top / "runs"
    for tp, dp in ((1, 1), (1, 2), (2, 1)):
        for seed in (0, 1):
            phases = {phase: timing(0.2 * tp) for phase in ("generate", "sync", "reward", "logprobs", "train", "other")}
            right = {"value": 0.5 + seed / 10, "ci95": [0.4, 0.7], "n": 50}
            metrics = {
                **{"step_time_s": timing(1.2 * tp), "time_s": phases, "tokens_per_s_per_gpu": timing(9000 / tp, 30)},
                **{"generated_tokens_per_s": timing(20000 / dp, 30), "accuracy_before": right, "accuracy_after": right},
            }
            rewards = [seed + step / 20 for step in range(20)]
            make(folder / f"{tp},{dp},{seed}", model=FOREIGN, tp=tp, dp=dp, seed=seed, metrics=metrics, rewards=rewards)
    make(folder / "failed", model=FOREIGN, tp=2, dp=2, failure={"class": "error", "message": FOREIGN * 5})
    make(folder / "stray", env={"gpus": [FOREIGN]}, metrics={"step_time_s": timing(1.0)})
    (top / "published.csv").write_text(f"tp,metric,value,unit,source\n1,step_time_s,1,s,{FOREIGN}\n")
    write([folder], folder, published=top / "published.csv")
    return folder / "report.html"


@pytest.mark.parametrize("width", [390, 1280])
def test_the_page_in_a_browser(width: int, report: Path, browser: Browser) -> None:
    page = browser.new_page(viewport={"width": width, "height": 900})
    said: list[str] = []
    asked: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(report.as_uri(), wait_until="networkidle")
    assert said == []
    assert [url for url in asked if not url.startswith("data:")] == [report.as_uri()]
    assert page.evaluate("document.documentElement.scrollWidth") == width, "no sideways scrolling of the page"
    titles = [
        "At a glance",
        "All configurations",
        "Published beside measured",
        "Did not finish",
        "Left out",
        "How and where",
    ]
    assert page.locator("section h2").all_inner_texts() == titles
    assert page.locator("figure svg").count() == 6, "layouts, pass@1, reward, accuracy, times, throughput"
    assert all(one.bounding_box()["height"] > 80 for one in page.locator("figure svg").all())  # type: ignore[index]
    assert_foreign_text_is_text(page)
    page.close()


def assert_foreign_text_is_text(page: Page) -> None:
    assert page.title() == "runs"
    assert page.locator("script, img, iframe").count() == 0
    for title in ("All configurations", "Published beside measured", "Did not finish", "Left out"):
        section = page.locator("section", has=page.get_by_role("heading", name=title))
        assert FOREIGN.split(" &")[0] in section.inner_text(), title


def test_colours_follow_the_reader(report: Path, browser: Browser) -> None:
    grounds, inks = set(), set()
    for scheme in ("light", "dark"):
        page = browser.new_page(color_scheme=scheme)  # type: ignore[arg-type]
        page.goto(report.as_uri())
        grounds.add(page.evaluate("getComputedStyle(document.body).backgroundColor"))
        inks.add(page.evaluate("getComputedStyle(document.querySelector('figure svg text')).fill"))
        page.close()
    assert len(grounds) == len(inks) == 2
    assert not grounds & inks


def test_the_first_column_stays_while_a_table_scrolls(report: Path, browser: Browser) -> None:
    page = browser.new_page(viewport={"width": 390, "height": 900})
    page.goto(report.as_uri())
    box = page.locator(".scroll", has=page.locator("td.number")).last
    first = box.locator("tbody td").first
    before = first.bounding_box()
    box.evaluate("box => { box.scrollLeft = 300 }")
    assert first.bounding_box() == before
    assert "local" in box.evaluate("box => getComputedStyle(box).backgroundAttachment"), "a shade where there is more"
    page.close()


def test_a_wide_table_scrolls_in_its_own_box(report: Path, browser: Browser) -> None:
    page = browser.new_page(viewport={"width": 390, "height": 900})
    page.goto(report.as_uri())
    boxes = page.locator(".scroll").evaluate_all("all => all.map(box => [box.scrollWidth, box.clientWidth])")
    assert any(inner > outer for inner, outer in boxes)
    page.close()
