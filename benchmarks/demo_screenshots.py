"""Makes docs/images/demo.png and demo_narrow.png: the page of ``lightning demo`` with a digit filled in.

python benchmarks/demo_screenshots.py runs/mnist        # needs chromium, and pip install playwright
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from PIL import Image

IMAGES = Path(__file__).parents[1] / "docs" / "images"

SIZES = {
    "demo": ({"width": 1000, "height": 860}, "light"),
    "demo_narrow": ({"width": 390, "height": 844}, "dark"),
}

SEED = "107"
"""Of the held-out digit."""

PORT = 7899


def main(checkpoint: str) -> None:
    from playwright.sync_api import sync_playwright

    command = ["lightning", "demo", "--ckpt_path", checkpoint, "--port", str(PORT)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as served, sync_playwright() as playwright:
        assert served.stdout is not None
        while "http" not in served.stdout.readline():
            pass
        program = shutil.which("chromium")
        browser = playwright.chromium.launch(executable_path=program, chromium_sandbox=os.geteuid() != 0)
        for name, (size, scheme) in SIZES.items():
            page = browser.new_page(viewport=size, color_scheme=scheme)  # type: ignore[arg-type]
            page.goto(f"http://127.0.0.1:{PORT}")
            fill_in(page)
            page.evaluate("scrollTo(0, 0)")
            page.screenshot(path=IMAGES / f"{name}.png", full_page=size["width"] < 500)
            # a page has few colours
            Image.open(IMAGES / f"{name}.png").quantize(64).save(IMAGES / f"{name}.png", optimize=True)
        browser.close()
        served.terminate()


def fill_in(page: Any) -> None:
    """Choose a held-out digit, paint over its lower part, and wait for eight ways to fill it in."""
    page.get_by_role("tab", name="Fill in").click()
    page.get_by_label("Seed").locator("visible=true").fill(SEED)
    page.get_by_role("button", name="A held-out one").click()
    page.wait_for_timeout(3000)
    box = page.locator("#painted canvas").first.bounding_box()
    left, top = box["x"] + 0.25 * box["width"], box["y"] + 0.52 * box["height"]
    page.mouse.move(left, top)
    page.mouse.down()
    for row in range(3):
        y = top + row * 0.09 * box["height"]
        page.mouse.move(left + (0.45 * box["width"] if row % 2 == 0 else 0), y, steps=4)
        page.mouse.move(left + (0.45 * box["width"] if row % 2 == 0 else 0), y + 0.09 * box["height"], steps=4)
    page.mouse.up()
    page.get_by_role("button", name="Fill in", exact=True).click()
    page.wait_for_selector("#filled img")
    page.wait_for_timeout(15_000)


if __name__ == "__main__":
    main(*sys.argv[1:])
