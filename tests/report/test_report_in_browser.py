"""The page in a real browser, opened from the disk as by a double click."""

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from run_folders import animation, picture

from diffusion_lightning.disk import replace
from diffusion_lightning.report.page import render
from diffusion_lightning.report.pictures import embed
from diffusion_lightning.report.run import read_run

WIDE, NARROW = {"width": 1280, "height": 900}, {"width": 400, "height": 800}


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if program is None:
        pytest.skip("no chromium is installed (apt-get install chromium)")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        # as root, in a container, it has no sandbox
        browser = playwright.chromium.launch(executable_path=program, chromium_sandbox=os.geteuid() != 0)
        yield browser
        browser.close()


@pytest.fixture
def show(browser, tmp_path) -> Iterator[Any]:
    """Opens the page of runs' folders; at the end nothing must have gone wrong in it or been asked for elsewhere."""
    context = browser.new_context(viewport=WIDE)
    context.grant_permissions(["clipboard-read", "clipboard-write"])
    wrong: list[str] = []
    asked: list[str] = []

    def open_page(*folders: Path, script: str = "") -> Any:
        path = tmp_path / "pages" / "report.html"
        path.parent.mkdir(exist_ok=True)
        replace(path, render([read_run(folder) for folder in folders]))
        page = context.new_page()
        page.on("console", lambda message: wrong.append(message.text))
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        page.clock.install(time=0)
        if script:
            page.add_init_script(script)
        page.goto(path.as_uri())
        page.clock.pause_at(3_600_000)  # from here on a test tells how time passes
        return page

    yield open_page
    context.close()
    assert wrong == []
    uri = (tmp_path / "pages" / "report.html").as_uri()
    assert uri in asked
    assert [url for url in asked if url != uri and not url.startswith("data:")] == []


def visible(page: Any, name: str, pane: int = 0) -> list[str]:
    """The sources of the pictures that are seen in a pane of a figure."""
    images = page.locator(f"figure.pictures[data-name='{name}'] .pane").nth(pane).locator("img:visible")
    return images.evaluate_all("images => images.map(image => image.src)")


def color(page: Any, name: str) -> list[int]:
    """Red, green and blue in the midst of the picture that is seen, as the browser has decoded it."""
    return page.locator(f"figure.pictures[data-name='{name}'] .pane img:visible").first.evaluate(
        """async image => {
            await image.decode();
            const canvas = document.createElement("canvas");
            const context = canvas.getContext("2d");
            context.drawImage(image, 0, 0);
            return [...context.getImageData(5, 5, 1, 1).data].slice(0, 3);
        }"""
    )


def label(page: Any, name: str, pane: int = 0) -> str:
    return page.locator(f"figure.pictures[data-name='{name}'] .pane").nth(pane).locator(".label").inner_text()


def test_every_picture_is_loaded(show, make_run):
    folder = make_run(rows=[], pictures={"samples": range(70), "denoising": [0, 3]})
    animation(folder / "denoising" / "epoch=0003.gif", [(0, 0, 0), (255, 255, 255)])
    (folder / "evaluations" / "x").mkdir(parents=True)
    picture(folder / "evaluations" / "x" / "sweep.png", (1, 2, 3))
    page = show(folder)
    sizes = page.evaluate(
        "Promise.all([...document.images].map(async i => (await i.decode(), [i.complete, i.naturalWidth])))"
    )
    assert sizes == [[True, 24]] * (60 + 2 + 1 + 1)


def test_the_slider_by_keyboard(show, make_run):
    folder = make_run(rows=[], pictures={"samples": [0, 3, 12]})
    sources = [embed(folder / "samples" / f"epoch={epoch:04d}.png").uri for epoch in (0, 3, 12)]
    page = show(folder)
    slider, output = page.locator("input[type=range]"), page.locator("output")
    assert visible(page, "samples") == [sources[2]]
    assert color(page, "samples") == [0, 40 + 3 * 12, 0]
    slider.focus()
    for key, position, epoch in (
        ("ArrowLeft", 1, 3),
        ("ArrowLeft", 0, 0),
        ("ArrowLeft", 0, 0),
        ("ArrowRight", 1, 3),
        ("End", 2, 12),
        ("ArrowRight", 2, 12),
        ("Home", 0, 0),
    ):
        page.keyboard.press(key)
        assert visible(page, "samples") == [sources[position]]
        assert color(page, "samples") == [0, 40 + 3 * epoch, 0]
        assert output.inner_text() == label(page, "samples") == f"epoch {epoch}"
        assert slider.get_attribute("aria-valuetext") == f"epoch {epoch}"


def test_the_slider_by_setting_it_leaves_other_figures_alone(show, make_run):
    folder = make_run(rows=[], pictures={"samples": [0, 1, 2], "denoising": [0, 1, 2]})
    page = show(folder)
    page.get_by_label("Epoch of denoising").fill("1")
    assert visible(page, "denoising") == [embed(folder / "denoising" / "epoch=0001.png").uri]
    assert visible(page, "samples") == [embed(folder / "samples" / "epoch=0002.png").uri]


def test_arrow_keys_after_a_click_on_the_picture_or_on_play(show, make_run):
    page = show(make_run(rows=[], pictures={"samples": [0, 1, 2]}))
    page.locator(".stage img:visible").click()
    page.keyboard.press("ArrowLeft")
    assert label(page, "samples") == "epoch 1"
    page.get_by_role("button", name="Play samples").focus()
    page.keyboard.press("ArrowLeft")
    assert label(page, "samples") == "epoch 0"


def test_play_goes_through_all_and_stops_at_the_end(show, make_run):
    page = show(make_run(rows=[], pictures={"samples": [0, 3, 12]}))
    button = page.locator(".play")
    button.click()
    seen = [label(page, "samples")]
    assert button.inner_text() == "Pause"
    for _ in range(4):
        page.clock.run_for(500)
        seen.append(label(page, "samples"))
    assert seen == ["epoch 0", "epoch 3", "epoch 12", "epoch 12", "epoch 12"]
    assert button.inner_text() == "Play"

    button.click()
    page.clock.run_for(500)
    button.click()  # pause
    page.clock.run_for(5000)
    assert label(page, "samples") == "epoch 3"
    button.click()  # and on
    page.clock.run_for(500)
    assert label(page, "samples") == "epoch 12"


def test_moving_the_slider_ends_playing(show, make_run):
    page = show(make_run(rows=[], pictures={"samples": range(5)}))
    page.locator(".play").click()
    page.locator("input[type=range]").fill("2")
    page.clock.run_for(5000)
    assert label(page, "samples") == "epoch 2"
    assert page.locator(".play").inner_text() == "Play"


@pytest.mark.parametrize("is_refused", [False, True])
def test_copying_a_command(show, make_run, is_refused):
    refuse = "navigator.clipboard.writeText = () => Promise.reject(new Error('refused'));"
    folder = make_run("it's mine/version_0", rows=[])
    page = show(folder, script=refuse if is_refused else "")
    buttons = page.get_by_role("button", name="Copy the command")
    for index in range(buttons.count()):
        buttons.nth(index).click()
        page.wait_for_function(
            "index => document.querySelectorAll('.command .copy')[index].textContent === 'Copied'", arg=index
        )
        copied = page.evaluate("navigator.clipboard.readText()")
        assert copied == page.locator(".command pre").nth(index).text_content()
        assert copied.startswith("lightning ")
        page.clock.run_for(2000)
        assert buttons.nth(index).inner_text() == "Copy"


def test_copying_the_config(show, make_run):
    folder = make_run(rows=[])
    page = show(folder)
    page.get_by_text("config.yaml, every setting resolved").click()
    page.get_by_role("button", name="Copy the config").click()
    page.wait_for_function("document.querySelector('details .copy').textContent === 'Copied'")
    assert page.evaluate("navigator.clipboard.readText()") == (folder / "config.yaml").read_text()


def test_pointing_at_a_curve_tells_its_values(show, make_run):
    page = show(make_run())
    chart = page.locator("figure.chart", has_text="fid/mnist@50")
    svg = chart.locator("svg")
    svg.scroll_into_view_if_needed()
    box = svg.bounding_box()
    found = []
    for part in (0.02, 0.55, 0.99):
        page.mouse.move(box["x"] + part * box["width"], box["y"] + box["height"] / 2)
        found.append(chart.locator(".value").inner_text())
    assert found == ["9, step 9", "8, step 19", "7, step 29"]
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] - 40)
    assert chart.locator(".value").inner_text() == ""


def test_two_runs_under_one_slider(show, make_run):
    first = make_run("q/version_0", rows=[], pictures={"samples": [0, 2, 4]})
    second = make_run("q/version_1", rows=[], pictures={"samples": [1, 3]}, hue=200)
    page = show(first, second)
    slider = page.locator("input[type=range]")
    for position, epochs in enumerate([(0, None), (0, 1), (2, 1), (2, 3), (4, 3)]):
        slider.fill(str(position))
        assert page.locator("output").inner_text() == f"epoch {position}"
        for pane, (folder, epoch) in enumerate(zip((first, second), epochs, strict=True)):
            path = folder / "samples" / f"epoch={epoch or 0:04d}.png"
            assert visible(page, "samples", pane) == ([] if epoch is None else [embed(path).uri])
            assert label(page, "samples", pane) == ("no picture yet" if epoch is None else f"epoch {epoch}")
    boxes = [page.locator(".pane").nth(pane).bounding_box() for pane in (0, 1)]
    assert boxes[0]["y"] == boxes[1]["y"]
    assert boxes[0]["x"] + boxes[0]["width"] <= boxes[1]["x"]


def luminance(text: str) -> float:
    """Of a colour ``rgb(…)``: WCAG 2.2's relative luminance."""
    channels = [int(value) / 255 for value in re.findall(r"\d+", text)[:3]]
    linear = [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_and_lines_are_readable_in_light_and_dark(show, make_run, scheme):
    """WCAG 2.2: a contrast of 4.5 for text, of 3 for the lines of charts."""
    page = show(make_run())
    page.emulate_media(color_scheme=scheme)
    contrasts = page.evaluate(
        """() => {
            const probe = document.body.appendChild(document.createElement("i"));
            const color = (value) => { probe.style.color = value; return getComputedStyle(probe).color; };
            const names = ["ink", "soft", "accent", ...[0, 1, 2, 3, 4, 5, 6, 7].map((i) => `line-${i}`)];
            return names.flatMap((name) => ["paper", "card"].map((behind) =>
                [name, color(`var(--${name})`), color(`var(--${behind})`)]
            )).concat([["best-ink", color("var(--best-ink)"), color("var(--best)")],
                       ["warn-ink", color("var(--warn-ink)"), color("var(--warn)")]]);
        }"""
    )
    for name, front, behind in contrasts:
        brighter, darker = sorted([luminance(front), luminance(behind)], reverse=True)
        assert (brighter + 0.05) / (darker + 0.05) >= (3 if name.startswith("line-") else 4.5), (name, front, behind)
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (luminance(background) > 0.5) == (scheme == "light")
    tick = page.locator("figure.chart svg text").first.evaluate("text => getComputedStyle(text).fill")
    assert (luminance(tick) > 0.2) == (scheme == "dark")


@pytest.mark.parametrize("count", [1, 2])
def test_a_narrow_window_is_not_scrolled_sideways(show, make_run, count):
    names = [f"a_rather_long_name_of_a_run_{'x' * 40}/version_{number}" for number in range(count)]
    folders = [make_run(name, pictures={"samples": [0, 1], "denoising": [1]}) for name in names]
    picture(folders[0] / "denoising" / "epoch=0001.png", (1, 2, 3), size=(1500, 540))
    page = show(*folders)
    page.set_viewport_size(NARROW)
    assert page.evaluate("document.scrollingElement.scrollWidth") <= NARROW["width"]
    assert page.locator(".stage img:visible").first.bounding_box()["width"] >= 300


def test_on_paper_there_is_nothing_to_press(show, make_run):
    page = show(make_run())
    page.emulate_media(media="print")
    for control in ("nav", "button", "input"):
        assert page.locator(f"{control}:visible").count() == 0
    assert page.locator(".stage img:visible").count() == 1
    assert page.locator("figure.chart svg:visible").count() == 7


def test_without_scripts_the_newest_pictures_are_seen(browser, make_run, tmp_path):
    replace(tmp_path / "report.html", render([read_run(make_run())]))
    page = browser.new_context(java_script_enabled=False).new_page()
    page.goto((tmp_path / "report.html").as_uri())
    assert page.locator(".stage img:visible").count() == 1
    assert page.locator("button:visible").count() == 0
