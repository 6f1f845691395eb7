"""A real Chromium for the tests that look at pages, and the folder their screenshots are kept in."""

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
ARTEFACTS = ROOT / "artefacts" / "browser"
PATIENCE = 300_000  # ms a page may take: only what never comes takes so long, however busy the machine is
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip


def browser_program() -> str | None:
    """The Chromium that is installed; None lets playwright use its own."""
    return os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")


@contextlib.contextmanager
def chromium() -> Iterator[Any]:
    """A headless browser; skips with the reason where it cannot be had."""
    try:
        from playwright.sync_api import Error, sync_playwright
    except ImportError:
        pytest.skip("no browser test: the playwright package is not installed (requirements-dev.txt)")
    with sync_playwright() as playwright:
        try:
            browser = playwright.chromium.launch(executable_path=browser_program(), args=FLAGS)
        except Error as error:
            pytest.skip(
                f"no browser test: Chromium does not start ({str(error).splitlines()[0]}); apt install chromium"
            )
        try:
            yield browser
        finally:
            browser.close()


def screenshot(page: Any, name: str, **options: Any) -> Path:
    ARTEFACTS.mkdir(parents=True, exist_ok=True)
    path = ARTEFACTS / f"{name}.png"
    page.screenshot(path=path, **options)
    return path
