"""`lightning export`: a checkpoint's denoiser for other programs."""

from collections.abc import Callable
from pathlib import Path
from typing import Literal

from diffusion_lightning.export.folder import check_output, whole_folder
from diffusion_lightning.export.record import write_record
from diffusion_lightning.export.weights import save_denoiser
from diffusion_lightning.module import ScoreModule
from diffusion_lightning.run_folder import find_checkpoint
from diffusion_lightning.usage import CKPT_PATH, OneLineParser, UsageError, load_on_device

Format = Literal["safetensors", "torch_export", "onnx", "diffusers"]


def export_command(args: list[str]) -> None:
    """Parse the options, write the folder, and print what it holds and how it is used.

    Args:
        args: the command line after ``lightning export``.

    Raises:
        ValueError, OSError: for options, checkpoints or outputs that cannot be used.
        ImportError: for a format whose packages are not installed.
    """
    options = export_parser().parse_args(args)
    output = Path(options.output)
    check_output(output, options.overwrite)
    write = _writer(options.format)
    module = load_on_device(find_checkpoint(options.ckpt_path), "cpu").eval()
    if module.shape is None and options.format != "safetensors":
        raise UsageError(
            f"ckpt_path={options.ckpt_path!r}: was saved before its examples' shape was known: "
            "give one of a training, or --format safetensors"
        )
    with module.ema_weights(), whole_folder(output) as folder:
        write(module, folder)
        files = [path for path in folder.rglob("*") if path.is_file()]
        size = sum(path.stat().st_size for path in files)
    print(
        f"{len(files)} files, {size / 2**20:.1f} MiB, EMA weights: {output}\n  {_use(options.format, output, module)}"
    )


def export_parser() -> OneLineParser:
    """The options of ``lightning export``."""
    parser = OneLineParser(
        prog="lightning export", description="Write a checkpoint's denoiser, with its EMA weights, for other programs."
    )
    parser.add_argument("--ckpt_path", type=str, required=True, help=CKPT_PATH)
    parser.add_argument(
        "--format",
        type=Format,
        required=True,
        help="safetensors: weights and config, read back by load_denoiser; torch_export: a .pt2 program that needs "
        "torch alone; onnx; diffusers: a folder for DDIMPipeline.from_pretrained.",
    )
    parser.add_argument("--output", type=str, required=True, help="A new or empty folder.")
    parser.add_argument("--overwrite", action="store_true", help="Replace the folder of an earlier export.")
    parser.add_argument("--debug", action="store_true", help="Show the traceback of an error.")
    return parser


def _writer(format: Format) -> Callable[[ScoreModule, Path], None]:
    """What writes a format; its packages are imported now, before the work."""
    match format:
        case "safetensors":
            return lambda module, folder: save_denoiser(
                module.denoiser, folder, sampler=module.sampler, shape=module.shape
            )
        case "torch_export":
            from diffusion_lightning.export.program import save_program as save
        case "onnx":
            from diffusion_lightning.export.onnx_model import save_onnx as save
        case "diffusers":
            from diffusion_lightning.export.diffusers_model import save_pipeline as save

    def write(module: ScoreModule, folder: Path) -> None:
        assert module.shape is not None
        save(module.denoiser, folder, shape=module.shape)
        write_record(folder, format, module.denoiser, module.sampler, module.shape)

    return write


def _use(format: Format, output: Path, module: ScoreModule) -> str:
    """How to use what was written: a line of Python."""
    sde = module.denoiser.sde
    labelled = bool(getattr(module.network, "num_classes", None))
    arguments = f"x (B, {', '.join(map(str, module.shape or ()))}), t (B,) in [{sde.t_min:g}, {sde.T:g}]"
    arguments += ", labels (B,)" * labelled
    call = "(x, t, labels)" if labelled else "(x, t)"
    match format:
        case "safetensors":
            return f"denoiser = diffusion_lightning.load_denoiser({str(output)!r})"
        case "torch_export":
            return f"torch.export.load({str(output / 'denoiser.pt2')!r}).module(){call}: {arguments}"
        case "onnx":
            return f"onnxruntime.InferenceSession({str(output / 'denoiser.onnx')!r}): {arguments}"
        case "diffusers":
            from diffusion_lightning.export.diffusers_model import is_library_model

            needed = "" if is_library_model(module.denoiser) else "import diffusion_lightning.export.diffusers_model; "
            return f"{needed}import diffusers; diffusers.DDIMPipeline.from_pretrained({str(output)!r})()"
