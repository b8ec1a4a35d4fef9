"""The page in a real browser: it paints, presses, waits, and looks at what came."""

import io
import os
import shutil
import sys
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from diffusion_lightning import DPMSolverPlusPlus, KarrasPreconditioning, KarrasSDE, NetworkDenoiser, UNet
from diffusion_lightning.demo import page as demo_page
from diffusion_lightning.demo.tasks import Studio
from diffusion_lightning.training.trained import TrainedModel

WIDE, NARROW = {"width": 1280, "height": 900}, {"width": 390, "height": 800}
WAIT = 60_000
"""Milliseconds, far more than anything takes."""


class Gate:
    """Before each evaluation of a network: counts it, and holds it back while it is shut."""

    def __init__(self, network: nn.Module) -> None:
        self.count, self.open = 0, threading.Event()
        self.open.set()
        self.handle = network.register_forward_pre_hook(self._pass)

    def shut(self) -> None:
        """Hold back the next one, and count from there on."""
        self.count = 0
        self.open.clear()

    def _pass(self, *_: Any) -> None:
        self.count += 1
        assert self.open.wait(WAIT / 1000)

    def wait_for(self, page: Any, count: int) -> None:
        for _ in range(600):
            if self.count >= count:
                return
            page.wait_for_timeout(100)
        raise AssertionError(f"{self.count} evaluations: {count} were to come")


@pytest.fixture(scope="module")
def studio() -> Studio:
    torch.manual_seed(0)
    network = UNet(1, channels=[8], num_res_blocks=1, middle_attention=False, embed_dim=8, num_classes=10)
    denoiser = NetworkDenoiser(network, KarrasSDE(), KarrasPreconditioning())
    model = TrainedModel(denoiser.eval(), DPMSolverPlusPlus(4), (1, 28, 28), condition_dropout=0.1)
    pictures = torch.zeros(1, 1, 28, 28)
    pictures[..., :14, :] = 0.5
    return Studio(model, pictures)


@pytest.fixture
def gate(studio) -> Iterator[Gate]:
    gate = Gate(studio.model.network)
    yield gate
    gate.open.set()
    gate.handle.remove()


@pytest.fixture(scope="module")
def shown(studio) -> Iterator[tuple[Any, list[str], list[str]]]:
    """The page, what it asked for, and what went wrong in it."""
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if program is None:
        pytest.skip("no chromium is installed (apt-get install chromium)")
    from playwright.sync_api import sync_playwright

    looked_up: list[str] = []
    sys.addaudithook(lambda event, given: looked_up.append(given[0]) if event == "socket.getaddrinfo" else None)
    blocks = demo_page.build(studio, "tiny")
    address = demo_page.serve(blocks, "127.0.0.1", 0)
    with sync_playwright() as playwright:
        # as root, in a container, it has no sandbox
        browser = playwright.chromium.launch(executable_path=program, chromium_sandbox=os.geteuid() != 0)
        page = browser.new_page(viewport=WIDE)
        page.set_default_timeout(WAIT)
        asked: list[str] = []
        wrong: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.goto(address)
        yield page, asked, wrong
        browser.close()
    blocks.close()
    hosts = {url.split("/")[2] for url in asked if url.startswith(("http", "ws"))}
    assert hosts == {address.split("/")[2]}
    assert wrong == []
    assert set(looked_up) <= {"127.0.0.1", "localhost", None}


def tab(page: Any, name: str) -> None:
    page.get_by_role("tab", name=name).click()


def press(page: Any, name: str) -> None:
    page.get_by_role("button", name=name, exact=True).locator("visible=true").click()


def picture(page: Any, name: str, tries: int = 100) -> np.ndarray:
    """What an image shows, once it does not change any more; uint8 ``(H, W, 3)``."""
    page.wait_for_selector(f"#{name} img")
    before = b""
    for _ in range(tries):
        page.wait_for_timeout(400)
        source = page.locator(f"#{name} img").get_attribute("src")
        now = page.request.get(source).body()
        if now == before:
            break
        before = now
    return np.array(Image.open(io.BytesIO(before)).convert("RGB"))


def test_no_proxy_is_asked_for_the_page(studio, monkeypatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")  # where nobody listens
    monkeypatch.setenv("no_proxy", "elsewhere")
    blocks = demo_page.build(studio, "tiny")
    assert demo_page.serve(blocks, "127.0.0.1", 0).startswith("http://127.0.0.1:")
    blocks.close()


def test_it_draws(shown) -> None:
    page, *_ = shown
    page.get_by_label("number input for Steps").first.fill("4")
    press(page, "Draw")
    drawn = picture(page, "drawn")
    assert min(drawn.shape[:2]) >= 122  # four pictures of 28 pixels and what is between, at least
    assert drawn.std() > 5


def test_stop_stops(shown, gate) -> None:
    page, *_ = shown
    tab(page, "Draw")
    gate.shut()
    page.get_by_label("number input for Steps").first.fill("60")
    press(page, "Draw")
    gate.wait_for(page, 1)
    with page.expect_response("**/cancel"):
        press(page, "Stop")
        page.wait_for_timeout(300)
        gate.open.set()
    assert gate.count == 1
    page.get_by_label("number input for Steps").first.fill("4")
    press(page, "Draw")  # and it can be asked again
    gate.wait_for(page, 1 + 4)
    page.wait_for_timeout(300)
    assert gate.count == 1 + 4


def test_stop_of_one_who_waits_leaves_the_others_drawing(shown, gate) -> None:
    page, *_ = shown
    tab(page, "Draw")
    page.get_by_label("number input for Steps").first.fill("5")
    gate.shut()
    press(page, "Draw")
    gate.wait_for(page, 1)
    other = page.context.browser.new_page()
    other.goto(page.url)
    press(other, "Draw")
    other.wait_for_timeout(500)
    with other.expect_request("**/cancel"):
        press(other, "Stop")
    other.wait_for_timeout(300)
    gate.open.set()
    gate.wait_for(page, 5)
    other.wait_for_timeout(500)
    other.close()
    assert gate.count == 5


@pytest.mark.parametrize("seed", ["", "-1", "99999999999"])
def test_a_seed_that_is_none_is_a_message(shown, seed, capfd) -> None:
    page, *_ = shown
    tab(page, "Draw")
    page.get_by_label("Seed").locator("visible=true").fill(seed)
    press(page, "Draw")
    page.get_by_text("Seed: give a whole number from 0 to 4294967295").wait_for()
    page.locator(".toast-close").click()
    page.get_by_label("Seed").locator("visible=true").fill("0")
    assert "Traceback" not in capfd.readouterr().err


def test_what_is_painted_is_filled_in_and_the_rest_stays(shown) -> None:
    page, *_ = shown
    tab(page, "Fill in")
    press(page, "Fill in")
    page.get_by_text("Choose a picture first").wait_for()
    press(page, "A held-out one")
    page.wait_for_timeout(1500)
    press(page, "Fill in")
    page.get_by_text("Paint over a part of the picture").wait_for()
    box = page.locator("#painted canvas").first.bounding_box()
    # across the middle of the picture, which stands in the middle of the canvas
    left, top = box["x"] + 0.3 * box["width"], box["y"] + 0.5 * box["height"]
    page.mouse.move(left, top)
    page.mouse.down()
    page.mouse.move(left + 0.3 * box["width"], top, steps=5)
    page.mouse.up()
    page.wait_for_timeout(500)
    press(page, "Fill in")
    filled = picture(page, "filled")
    scale = filled.shape[1] // (4 * 30 + 2)
    tiles = filled[::scale, ::scale, 0]
    first, known = tiles[2:30, 2:30], tiles[62:90, 2:30]
    missing = known == 128
    # a part of the middle; the grey lower half has the same level as what is missing, so the upper one is looked at
    upper = missing[:14]
    assert 5 < upper.sum() < 200
    assert (first[:14][~upper] == 191).all()
    assert (first[:14][upper] != 191).any()


def test_a_half_is_chosen_by_the_keyboard(shown) -> None:
    page, *_ = shown
    tab(page, "Fill in")
    page.get_by_role("radio", name="what I paint").focus()
    page.keyboard.press("Tab")
    page.keyboard.press("Space")
    page.wait_for_timeout(300)
    assert page.get_by_role("radio", name="left half").is_checked()


def test_a_bad_upload_is_a_message(shown, tmp_path) -> None:
    page, *_ = shown
    tab(page, "Fill in")
    (tmp_path / "bad.png").write_bytes(b"no picture")
    with page.expect_file_chooser() as chooser:
        press(page, "Upload one")
    chooser.value.set_files(str(tmp_path / "bad.png"))
    page.get_by_text("This file is no picture that can be read").wait_for()


@pytest.mark.parametrize(("size", "scheme"), [(WIDE, "light"), (NARROW, "dark")], ids=["wide", "narrow and dark"])
def test_nothing_reaches_over_the_side(shown, size, scheme) -> None:
    page, *_ = shown
    page.set_viewport_size(size)
    page.emulate_media(color_scheme=scheme)
    for name in ("Draw", "Fill in", "Sketch", "Between two"):
        tab(page, name)
        assert page.evaluate("document.documentElement.scrollWidth") <= size["width"]
    page.emulate_media(color_scheme="light")
    page.set_viewport_size(WIDE)
