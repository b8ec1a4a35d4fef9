"""`lightning demo`: a local page to play with a trained model."""

import socket
from pathlib import Path

import torch
from torch import Tensor

from diffusion_lightning.commands.drawing import load_on_device
from diffusion_lightning.commands.input_pictures import check_size, read_pictures
from diffusion_lightning.commands.parser import OneLineParser
from diffusion_lightning.commands.run_folder import CKPT_PATH, find_checkpoint
from diffusion_lightning.commands.usage import UsageError
from diffusion_lightning.images import is_picture
from diffusion_lightning.training.trained import TrainedModel


def demo_command(args: list[str]) -> None:
    """Parse the options, read the model, and serve its page until Ctrl-C.

    Args:
        args: the command line after ``lightning demo``.

    Raises:
        ImportError: if gradio is not installed.
        ValueError, OSError: for options or checkpoints that cannot be used, or a port that is taken.
    """
    options = demo_parser().parse_args(args)
    try:
        from diffusion_lightning.demo import page, tasks
    except ModuleNotFoundError as error:
        if error.name != "gradio":
            raise
        raise UsageError("the page needs gradio: pip install 'diffusion-lightning[demo]', or -e '.[demo]'") from error
    checkpoint = find_checkpoint(options.ckpt_path)
    model = load_on_device(checkpoint, "cpu" if options.device is None else options.device)
    if model.shape is None or not is_picture(model.shape):
        raise UsageError(f"ckpt_path: the model is of examples of shape {model.shape}: must be of pictures")
    _check_port(options.host, options.port)
    pictures = _pictures(options.pictures, model)
    try:
        studio = tasks.Studio(model, pictures)
    except ValueError as error:
        raise UsageError(f"ckpt_path: {error}") from error
    blocks = page.build(studio, _title(Path(checkpoint).resolve()))
    address = page.serve(blocks, options.host, options.port)
    print(f"the page: {address}   (Ctrl-C ends it)", flush=True)
    blocks.block_thread()


def demo_parser() -> OneLineParser:
    """The options of ``lightning demo``."""
    parser = OneLineParser(
        prog="lightning demo",
        usage="lightning demo --ckpt_path RUN_OR_FILE [--port N] [--option value …]",
        description="A local page: draw, fill in, sketch, and move between pictures. Nothing leaves this machine.",
    )
    parser.add_argument("--ckpt_path", type=str, required=True, help=CKPT_PATH)
    parser.add_argument("--host", type=str, default="127.0.0.1", help="Who can see it: this machine alone by default.")
    parser.add_argument("--port", type=int, default=7860, help="Of the page; 0: any that is free.")
    parser.add_argument(
        "--pictures",
        type=str | None,
        default=None,
        help="A folder of pictures to fill in; held-out digits by default where the model draws grey 28 × 28.",
    )
    parser.add_argument("--device", type=str | None, default=None, help="cpu by default.")
    parser.add_argument("--debug", action="store_true", help="Show the traceback of an error.")
    return parser


def _title(checkpoint: Path) -> str:
    """The run's name, as ``runs/<name>/<version>/checkpoints/…`` has it, else the file's."""
    folder = checkpoint.parent
    return folder.parent.parent.name if folder.name == "checkpoints" else checkpoint.stem


def _pictures(folder: str | None, model: TrainedModel) -> Tensor | None:
    """The pictures to work on."""
    assert model.shape is not None
    channels, height, width = model.shape
    if folder is not None:
        pictures = read_pictures(Path(folder), channels, "pictures")
        check_size(pictures, (height, width), "pictures", "as the model's")
        return torch.stack([*pictures.values()])
    if model.shape != (1, 28, 28):
        return None
    from diffusion_lightning.data.mnist import EmbeddedMNIST
    from diffusion_lightning.data.tensor_images import normalize

    held_out = EmbeddedMNIST().load_images()[1]
    return normalize(held_out[torch.arange(len(held_out))][0])  # type: ignore[arg-type]


def _check_port(host: str, port: int) -> None:
    if not 0 <= port < 2**16:
        raise UsageError(f"port={port}: must be from 0 to {2**16 - 1}")
    try:
        with socket.create_server((host, port)):
            pass
    except OSError as error:
        raise UsageError(f"host={host}, port={port}: cannot be used ({error.strerror}): give another --port") from error
