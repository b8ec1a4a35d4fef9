"""The screenshots of docs/demo.md: a digit painted over and filled in, wide and light, and on a phone and dark.

``python benchmarks/demo_pictures.py RUN`` writes them to docs/images; it needs a Chromium.
"""

import os
import shutil
import sys
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import Page, sync_playwright

from diffusion_lightning.commands.demo import held_out_digits
from diffusion_lightning.commands.drawing import load_on_device
from diffusion_lightning.commands.run_folder import find_checkpoint
from diffusion_lightning.demo import page as demo_page
from diffusion_lightning.demo.tasks import Studio

IMAGES = Path(__file__).resolve().parent.parent / "docs" / "images"

SCREENS: dict[str, dict[str, Any]] = {
    "demo_wide": {"viewport": {"width": 1280, "height": 900}, "color_scheme": "light"},
    "demo_phone": {"viewport": {"width": 390, "height": 800}, "color_scheme": "dark"},
}

DIGIT = 18
"""Which of the held-out ones."""

COLOURS = 96
"""Of a picture, which makes it a quarter as large."""


def main(run: str) -> None:
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))))
    studio = Studio(load_on_device(find_checkpoint(run), "cpu"), held_out_digits())
    blocks = demo_page.build(studio, Path(run).name)
    address = demo_page.serve(blocks, "127.0.0.1", 0)
    with sync_playwright() as playwright:
        # as root, in a container, it has no sandbox
        browser = playwright.chromium.launch(executable_path=program, chromium_sandbox=os.geteuid() != 0)
        for name, screen in SCREENS.items():
            page = browser.new_page(**screen)
            page.goto(address)
            fill_in(page)
            path = IMAGES / f"{name}.png"
            page.screenshot(path=path, full_page=True)
            Image.open(path).convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE).save(path, optimize=True)
        browser.close()
    blocks.close()


def fill_in(page: Page) -> None:
    """Paint over the lower half of a held-out digit, and have it filled in."""
    page.get_by_role("tab", name="Fill in").click()
    page.get_by_label("Seed").locator("visible=true").fill(str(DIGIT))
    page.get_by_role("button", name="A held-out one").click()
    page.wait_for_timeout(3000)
    canvas = page.locator("#painted canvas").first.bounding_box()
    assert canvas is not None
    x, y, side = canvas["x"], canvas["y"], min(canvas["width"], canvas["height"])
    left, top = x + (canvas["width"] - side) / 2, y + (canvas["height"] - side) / 2
    page.mouse.move(left + 0.15 * side, top + 0.56 * side)
    page.mouse.down()
    for row in range(10):  # to and fro
        height = top + (0.56 + 0.04 * row) * side
        for across in (0.15, 0.85) if row % 2 == 0 else (0.85, 0.15):
            page.mouse.move(left + across * side, height, steps=8)
    page.mouse.up()
    page.wait_for_timeout(1000)
    page.get_by_role("button", name="Fill in", exact=True).locator("visible=true").click()
    page.wait_for_selector("#filled img", timeout=120_000)
    shown, before = page.locator("#filled img"), None
    while (now := shown.get_attribute("src")) != before:
        before = now
        page.wait_for_timeout(5000)
    page.mouse.move(0, 0)


if __name__ == "__main__":
    main(sys.argv[1])
