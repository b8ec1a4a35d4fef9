"""The page: four tabs around a :class:`~diffusion_lightning.demo.tasks.Studio`, by gradio.

gradio is what people know such pages from; it has the queue, the painting and the phone's width, and is kept well. All
that it would ask of other machines is shut off: usage statistics, fonts, links that share.
"""

import os
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffusion_lightning.demo.tasks import SIDE, Shown, Stopped, Studio, enlarged, from_levels, painted, read_picture
from diffusion_lightning.images import image_grid
from diffusion_lightning.inverse import METHODS
from diffusion_lightning.inverse.masks import missing_pixels

# both are read when gradio is imported
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"

import gradio as gr

PAINTED = "what I paint"
PARTS = {
    PAINTED: "",
    "left half": "left",
    "right half": "right",
    "upper half": "top",
    "lower half": "bottom",
    "middle": "center",
}
ANY, IN_TURN = "any", "all in turn"

CSS = """
.gradio-container {max-width: min(1100px, 100vw) !important; margin: auto; overflow-x: clip}
.gradio-container .main {max-width: 100%; padding-inline: 12px !important}
.pixels img {image-rendering: pixelated; object-fit: contain}
"""

LARGEST_SEED = 2**32 - 1

UPLOAD = "100mb"
"""The largest file that is taken."""

KEPT = 3600
"""Seconds for which what was drawn stays on the disk."""

_ONE_AT_A_TIME: dict[str, Any] = {"concurrency_limit": 1, "concurrency_id": "drawing"}


def build(studio: Studio, title: str) -> gr.Blocks:
    """The page of a model, not yet served."""
    with gr.Blocks(title=title, analytics_enabled=False, delete_cache=(KEPT // 6, KEPT)) as page:
        gr.Markdown(f"# {title}")
        with gr.Tab("Draw"):
            _draw_tab(studio)
        with gr.Tab("Fill in"):
            _fill_in_tab(studio)
        with gr.Tab("Sketch"):
            _sketch_tab(studio)
        with gr.Tab("Between two"):
            _between_tab(studio)
    return page


def serve(page: gr.Blocks, host: str, port: int) -> str:
    """Serve a page by a thread of its own, and return its address.

    Raises:
        OSError: if the port is taken.
    """
    # names of fonts that the reader's machine has: gradio's own themes ask others for them
    fonts, mono = ["system-ui", "sans-serif"], ["ui-monospace", "monospace"]
    # gradio looks whether its own page is there, and would ask a proxy for it
    beyond = os.environ.get("no_proxy") or os.environ.get("NO_PROXY")
    os.environ["no_proxy"] = ",".join(filter(None, [beyond, "127.0.0.1", "localhost", host]))
    page.queue(default_concurrency_limit=1)
    _, address, _ = page.launch(
        server_name=host,
        server_port=port or None,
        share=False,
        quiet=True,
        footer_links=[],
        ssr_mode=False,
        enable_monitoring=False,
        max_file_size=UPLOAD,
        prevent_thread_lock=True,
        css=CSS,
        theme=gr.themes.Default(font=fonts, font_mono=mono),
    )
    return address


def _draw_tab(studio: Studio) -> None:
    with gr.Row():
        with gr.Column():
            label = _class_choice(studio, IN_TURN)
            num = gr.Slider(1, 64, 16, step=1, label="Pictures")
            seed = _seed()
            weight = gr.Slider(
                0, 5, 1.5, step=0.1, label="Guidance weight (1: none)", visible=studio.can_be_guided, interactive=True
            )
            steps = gr.Slider(2, 100, 14, step=1, label="Steps")
            sampler = gr.Dropdown(studio.samplers, value=studio.samplers[0], label="Sampler")
            go, stop = _buttons("Draw")
        with gr.Column():
            shown = _picture("Drawn", "drawn")

    def draw(label: str, num: int, seed: int | None, weight: float, steps: int, sampler: str) -> Shown:
        return studio.draw(int(num), _number(studio, label), _whole(seed), weight, int(steps), sampler)

    _run(studio, go, stop, draw, [label, num, seed, weight, steps, sampler], shown)


def _fill_in_tab(studio: Studio) -> None:
    current = gr.State(None)
    with gr.Row():
        with gr.Column():
            editor = gr.ImageEditor(
                label="Paint over what is to be filled in",
                elem_id="painted",
                type="numpy",
                image_mode="RGBA",
                sources=(),
                layers=False,
                transforms=(),
                brush=gr.Brush(default_size=40, colors=["#e11d48"], color_mode="fixed"),
                canvas_size=(SIDE, SIDE),
            )
            with gr.Row():
                own = gr.Button("One of its own", size="sm")
                held_out = gr.Button("A held-out one", size="sm", visible=studio.pictures is not None)
                upload = gr.UploadButton("Upload one", size="sm", type="filepath")
            part = gr.Radio([*PARTS], value=PAINTED, label="Missing")
            method = gr.Dropdown([*METHODS], value="MMPS", label="Method")
            label = _class_choice(studio)
            with gr.Row():
                seed = _seed()
                steps = gr.Slider(2, 50, 20, step=1, label="Steps")
            go, stop = _buttons("Fill in")
        with gr.Column():
            shown = _picture("Eight ways, then: what is known, their mean, their standard deviation", "filled")

    def show(picture: Tensor) -> tuple[Tensor, np.ndarray]:
        return picture, enlarged(image_grid(picture[None]))

    def from_model(seed: int | None) -> tuple[Tensor, np.ndarray]:
        studio.owner = None
        return show(studio.one(_whole(seed)))

    def from_held_out(seed: int | None) -> tuple[Tensor, np.ndarray]:
        assert studio.pictures is not None
        return show(studio.pictures[_whole(seed) % len(studio.pictures)])

    def from_upload(path: str) -> tuple[Tensor, np.ndarray]:
        return show(_read(path, studio))

    own.click(from_model, seed, [current, editor], **_ONE_AT_A_TIME)
    held_out.click(from_held_out, seed, [current, editor], **_ONE_AT_A_TIME)
    upload.upload(from_upload, upload, [current, editor], **_ONE_AT_A_TIME)

    def fill_in(picture, canvas, part, method, label, seed, steps) -> Shown:
        if picture is None:
            raise _told("Choose a picture first: one of its own, a held-out one or an uploaded one.")
        missing = _missing(canvas, part, studio)
        if not missing.any() or missing.all():
            raise _told("Paint over a part of the picture, or choose a half of it below.")
        return studio.fill_in(picture, missing, method, _whole(seed), int(steps), _number(studio, label))

    _run(studio, go, stop, fill_in, [current, editor, part, method, label, seed, steps], shown)


def _sketch_tab(studio: Studio) -> None:
    low, high = studio.noise_levels()
    with gr.Row():
        with gr.Column():
            editor = gr.ImageEditor(
                value=np.zeros((SIDE, SIDE, 3), dtype=np.uint8),
                label="Sketch",
                elem_id="sketched",
                type="numpy",
                image_mode="RGB",
                sources=(),
                layers=False,
                transforms=(),
                brush=gr.Brush(default_size=36, colors=["#ffffff"] if studio.shape[0] == 1 else None),
                canvas_size=(SIDE, SIDE),
            )
            upload = gr.UploadButton("Upload one", size="sm", type="filepath")
            level = gr.Slider(low, high, min(1.5, high), label="Noise (more: less of the sketch, more of the model)")
            label = _class_choice(studio)
            with gr.Row():
                num = gr.Slider(1, 16, 4, step=1, label="Pictures")
                seed = _seed()
            go, stop = _buttons("Make it clean")
        with gr.Column():
            shown = _picture("Clean", "clean")

    def from_upload(path: str) -> np.ndarray:
        return enlarged(image_grid(_read(path, studio)[None]))

    upload.upload(from_upload, upload, editor, **_ONE_AT_A_TIME)

    def clean(canvas, level, label, num, seed) -> Shown:
        if canvas is None or canvas["composite"] is None:
            raise _told("Sketch something first, or upload a picture.")
        picture = from_levels(canvas["composite"][..., :3], studio.shape)
        return studio.sketch(picture, level, _whole(seed), int(num), _number(studio, label))

    _run(studio, go, stop, clean, [editor, level, label, num, seed], shown)


def _between_tab(studio: Studio) -> None:
    with gr.Row():
        with gr.Column():
            with gr.Row():
                seeds = [_seed(value, f"Seed of the {which} picture") for value, which in enumerate(("first", "last"))]
            with gr.Row():
                uploads = [gr.UploadButton(f"or upload the {which}", size="sm") for which in ("first", "last")]
            with gr.Row():
                labels = [_class_choice(studio, label=f"Class of the {which}") for which in ("first", "last")]
            frames = gr.Slider(2, 16, 8, step=1, label="Frames")
            go, stop = _buttons("Go")
        with gr.Column():
            shown = gr.Gallery(label="From one to the other", columns=4, elem_id="between", object_fit="contain")

    def between(
        first_seed, last_seed, first_path, last_path, first_class, last_class, frames
    ) -> Iterator[tuple[float, Any]]:
        yield 0.0, gr.skip()
        ends = [
            _read(path, studio) if path else studio.one(_whole(seed))
            for seed, path in ((first_seed, first_path), (last_seed, last_path))
        ]
        classes = _number(studio, first_class), _number(studio, last_class)
        yield 1.0, studio.between(ends[0], ends[1], int(frames), classes)

    _run(studio, go, stop, between, [*seeds, *uploads, *labels, frames], shown)


def _run(
    studio: Studio,
    go: gr.Button,
    stop: gr.Button,
    task: Callable[..., Iterator[tuple[float, Any]]],
    inputs: list[Any],
    shown: Any,
) -> None:
    """A press of ``go`` runs the task, one at a time for all who look at the page; ``stop`` ends one's own."""

    def run(request: gr.Request, progress: gr.Progress = gr.Progress(), *given: Any) -> Iterator[Any]:  # noqa: B008
        studio.owner = go, request.session_hash
        try:
            for share, picture in task(*given):
                progress(share)
                yield picture
        except Stopped:
            return
        except (ValueError, FloatingPointError) as error:
            raise _told(str(error)) from error
        except (MemoryError, torch.OutOfMemoryError) as error:
            raise _told("Out of memory: ask for fewer pictures.") from error

    def end(request: gr.Request) -> None:
        studio.stop((go, request.session_hash))

    running = go.click(run, inputs, shown, **_ONE_AT_A_TIME)
    # one stops the work itself, the cancelling what waits for it, or is still queued
    stop.click(end, None, None, cancels=[running], queue=False)


def _told(message: str) -> gr.Error:
    """What the reader is told, and the terminal is not."""
    return gr.Error(message, print_exception=False)


def _seed(value: int = 0, label: str = "Seed") -> gr.Number:
    return gr.Number(value, precision=0, label=label)  # gradio's own check of a range ends in a traceback


def _whole(seed: int | None) -> int:
    if seed is None or not 0 <= seed <= LARGEST_SEED:
        raise _told(f"Seed: give a whole number from 0 to {LARGEST_SEED}.")
    return seed


def _buttons(name: str) -> tuple[gr.Button, gr.Button]:
    with gr.Row():
        return gr.Button(name, variant="primary"), gr.Button("Stop", variant="stop")


def _picture(label: str, name: str) -> gr.Image:
    gr.Markdown(label)  # gradio's own label would lie over the picture
    return gr.Image(
        label=label,
        show_label=False,
        alt_text=label,
        elem_id=name,
        elem_classes="pixels",
        interactive=False,
        format="png",
        buttons=["download"],
    )


def _class_choice(studio: Studio, none: str = ANY, label: str = "Class") -> gr.Dropdown:
    names = studio.classes if none == ANY and studio.needs_a_class else [none, *studio.classes]
    return gr.Dropdown(names, value=names[0], label=label, visible=bool(studio.classes))


def _number(studio: Studio, label: str) -> int | None:
    return None if label in (ANY, IN_TURN, None) else studio.classes.index(label)


def _missing(canvas: dict[str, Any] | None, part: str, studio: Studio) -> Tensor:
    if part != PAINTED:
        return missing_pixels(PARTS[part], (studio.shape[1], studio.shape[2]))
    layers = (canvas or {}).get("layers") or []
    masks = [painted(layer[..., 3], studio.shape) for layer in layers if layer is not None]
    return torch.stack(masks).any(0) if masks else torch.zeros(studio.shape[1:], dtype=torch.bool)


def _read(path: str, studio: Studio) -> Tensor:
    try:
        return read_picture(path, studio.shape)
    except ValueError as error:
        raise _told(str(error)) from error
