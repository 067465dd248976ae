"""Headless Chromium for tests that look at pages, where one is installed."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run "
    "--disable-background-networking "
    "--disable-component-update --disable-sync --force-prefers-reduced-motion "
    "--window-size=1280,900"
)


@contextmanager
def chromium(profile: Path) -> Iterator[Any]:
    """The browser; skips where it, its driver or selenium is not installed."""
    webdriver = pytest.importorskip(
        "selenium.webdriver", reason="selenium is not installed: make test installs it"
    )
    program, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not program or not driver:
        pytest.skip("chromium and chromedriver are not installed: .ci/run installs them as root")
    options = webdriver.ChromeOptions()
    options.binary_location = program
    for flag in (*FLAGS.split(), f"--user-data-dir={profile}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    # The path is given: without it selenium looks for a driver to download.
    chrome = webdriver.Chrome(
        options=options, service=webdriver.ChromeService(executable_path=driver)
    )
    try:
        chrome.get("about:blank")  # off the browser's own first page, which loads things of its own
        yield chrome
    finally:
        chrome.quit()


@contextmanager
def opened(browser: Any, url: str) -> Iterator[SimpleNamespace]:
    """The page in the browser, with ways to look at it; afterwards nothing was complained of.

    `urls()` are those that were asked for since.
    """
    for log in ("browser", "performance"):
        browser.get_log(log)
    browser.get(url)

    def urls() -> set[str]:
        entries = browser.get_log("performance")
        events = [json.loads(entry["message"])["message"] for entry in entries]
        sent = [
            event["params"]["request"]["url"]
            for event in events
            if event["method"] == "Network.requestWillBeSent"
        ]
        return {url for url in sent if not url.startswith("data:")}

    yield SimpleNamespace(
        driver=browser,
        all=lambda css: browser.find_elements("css selector", css),
        one=lambda css: browser.find_element("css selector", css),
        texts=lambda css: [element.text for element in browser.find_elements("css selector", css)],
        choose=lambda css, word: browser.find_element(
            "xpath", f"//select[@id='{css}']/option[.='{word}']"
        ).click(),
        urls=urls,
    )
    assert browser.get_log("browser") == []
