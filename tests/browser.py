"""Headless Chromium: Debian's, or the one that Playwright has installed; tests skip loudly where there is none."""

import os
import shutil
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome")
AXE = (Path(__file__).parent / "serving" / "axe" / "axe.min.js").read_text()


@contextmanager
def chromium():
    """Yield a browser."""
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        _skip("playwright is not installed")
    with sync_playwright() as playwright:
        browser = launched(playwright.chromium)
        yield browser
        browser.close()


def launched(kind, *arguments):
    """Start a browser of a kind (`browser.browser_type`) with arguments of the command line."""
    found = next((path for name in NAMES if (path := shutil.which(name))), kind.executable_path)
    if not Path(found).exists():
        _skip("there is no browser (apt-get install chromium, or playwright install chromium)")
    sandbox = ["--no-sandbox"] if os.getuid() == 0 else []
    return kind.launch(executable_path=found, args=[*sandbox, "--disable-dev-shm-usage", *arguments])


def _skip(why):
    sys.__stderr__.write(f"\nthe pages are NOT tested: {why}\n")
    pytest.skip(why)


def violations(page):
    """The rules of accessibility that a page breaks as it stands, each with the elements that break it."""
    page.evaluate(AXE)
    found = page.evaluate("axe.run().then(r => r.violations)")
    return [(rule["id"], [node["html"] for node in rule["nodes"]]) for rule in found]


class Watched:
    """A page, and everything that went wrong on it: errors of the console, exceptions, violations of the policy."""

    def __init__(self, context):
        self.page = context.new_page()
        self.problems = []
        self.page.on("console", lambda said: self.problems.append(said.text) if said.type == "error" else None)
        self.page.on("pageerror", lambda error: self.problems.append(str(error)))
        self.page.on("dialog", lambda dialog: self.problems.append("a dialog") or dialog.dismiss())
