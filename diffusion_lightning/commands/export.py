"""`lightning export`: a checkpoint's denoiser for other programs."""

from collections.abc import Callable
from pathlib import Path
from typing import Literal

from diffusion_lightning.commands.drawing import load_on_device
from diffusion_lightning.commands.guided_options import add_guidance_option, settle_guidance
from diffusion_lightning.commands.parser import OneLineParser
from diffusion_lightning.commands.run_folder import CKPT_PATH, find_checkpoint
from diffusion_lightning.commands.usage import UsageError
from diffusion_lightning.conditions import taken_by
from diffusion_lightning.export.folder import FILES, check_output, wanted_file, whole_folder
from diffusion_lightning.export.record import NAME, record_text
from diffusion_lightning.export.weights import save_denoiser
from diffusion_lightning.guidance import GuidanceCallable
from diffusion_lightning.messages import inform
from diffusion_lightning.networks import UNet
from diffusion_lightning.training.guided import GuidanceChoice, holds_values_alone, name_of
from diffusion_lightning.training.trained import TrainedModel

Format = Literal["safetensors", "torch_export", "onnx", "diffusers"]


def export_command(args: list[str]) -> None:
    """Parse the options, write the folder or file, and print what it holds, how it is used, and what comes out.

    Args:
        args: the command line after ``lightning export``.

    Raises:
        ValueError, OSError: for options, checkpoints or outputs that cannot be used.
        ImportError: for a format whose packages are not installed.
    """
    options = export_parser().parse_args(args)
    settle_guidance(options)
    output = Path(options.output)
    file = wanted_file(output, options.format, options.overwrite)
    if file is None:
        check_output(output, options.overwrite)
    write = _writer(options.format)
    model = load_on_device(find_checkpoint(options.ckpt_path), "cpu")
    if model.shape is None and options.format != "safetensors":
        raise UsageError(
            f"ckpt_path={options.ckpt_path!r}: was saved before its examples' shape was known: "
            "give one of a training, or --format safetensors"
        )
    if (more := set(taken_by(model.network)) - {"labels"}) and options.format != "safetensors":
        raise UsageError(
            f"format={options.format}: the model is told {' and '.join(sorted(more))}, which what this format writes "
            "would not be: give --format safetensors"
        )
    # from here on the model's own is what is exported
    model.guidance = _held(export_parser().instantiate(options).guidance, options.format, model)
    model.guided()  # what is wrong with it is told before the work
    with whole_folder(output, file) as folder:
        write(model, folder, file is None)
        files = [path for path in folder.rglob("*") if path.is_file()]
        size = sum(path.stat().st_size for path in files)
    count = "1 file" if file is not None else f"{len(files)} files"
    print(f"{count}, {size / 2**20:.1f} MiB, EMA weights: {output}")
    path = output if file is not None else output / FILES.get(options.format, "")
    print(f"  {_use(options.format, path, model)}")
    if options.format != "diffusers":
        print(f"  gives {_result(model)}")


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
    parser.add_argument(
        "--output", type=str, required=True, help="A new or empty folder; or a file, x.onnx or x.pt2, of these formats."
    )
    add_guidance_option(parser)
    parser.add_argument("--overwrite", action="store_true", help="Replace the folder or file of an earlier export.")
    parser.add_argument("--debug", action="store_true", help="Show the traceback of an error.")
    return parser


def _writer(format: Format) -> Callable[[TrainedModel, Path, bool], None]:
    """What writes a format; its packages are imported now, before the work."""
    save: Callable[..., None]
    match format:
        case "safetensors":
            return lambda model, folder, _: save_denoiser(
                model.denoiser, folder, sampler=model.sampler, shape=model.shape, guidance=model.guidance
            )
        case "torch_export":
            from diffusion_lightning.export.program import save_program

            save = save_program
        case "onnx":
            from diffusion_lightning.export.onnx_model import save_onnx

            save = save_onnx
        case "diffusers":
            from diffusion_lightning.export.diffusers_model import save_pipeline

            save = save_pipeline

    def write(model: TrainedModel, folder: Path, with_record: bool) -> None:
        assert model.shape is not None
        record = record_text(format, model.denoiser, model.sampler, model.shape, model.guidance)
        inside = {} if format == "diffusers" else {"record": record}
        save(model.guided(), folder, shape=model.shape, **inside)
        if with_record:
            (folder / NAME).write_text(record, encoding="utf-8")

    return write


def _held(guidance: GuidanceChoice, format: Format, model: TrainedModel) -> GuidanceCallable | None:
    """What steers the denoiser as it is exported: what is asked for; of the model's own what the format can hold.

    Raises:
        UsageError: if the format cannot hold what is asked for.
    """
    maker = model.own_or(guidance)
    if maker is None:
        return None
    holds = {"safetensors": holds_values_alone(maker), "diffusers": False}.get(format, True)
    if holds:
        return maker
    reason = "a folder of diffusers holds no guidance" if format == "diffusers" else "it holds one network"
    if guidance != "own":
        way_out = "--format torch_export or onnx holds it" if format == "diffusers" else "--format torch_export does"
        raise UsageError(f"guidance={name_of(maker)}: --format {format} cannot hold it, for {reason}: {way_out}")
    inform(f"guidance: {name_of(maker)}, the checkpoint's own, is left out, for {reason}")
    return None


def _result(model: TrainedModel) -> str:
    """What a denoiser's call gives, of what, and which label means none."""
    shape = ", ".join(map(str, model.shape or ("…",)))
    images = ", about [-1, 1]" if model.shape is not None and len(model.shape) == 3 else ""
    told = f"E[x0 | x_t = x] (B, {shape}){images}, of x = α(t)·x0 + σ(t)·noise in float32"
    guidance = name_of(model.guidance)
    told = f"{told}, guided by {guidance}" if guidance is not None else told
    classes = getattr(model.network, "num_classes", None)
    if classes:
        told += f"; labels: int64, 0 to {classes - 1}"
        told += f", and {classes} for none" if isinstance(model.network, UNet) else ""
    return told


def _use(format: Format, output: Path, model: TrainedModel) -> str:
    """How to use what was written, the file or the folder: a line of Python."""
    sde = model.denoiser.sde
    labelled = bool(getattr(model.network, "num_classes", None))
    arguments = f"x (B, {', '.join(map(str, model.shape or ()))}), t (B,) in [{sde.t_min:g}, {sde.T:g}]"
    arguments += ", labels (B,)" * labelled
    call = "(x, t, labels)" if labelled else "(x, t)"
    match format:
        case "safetensors":
            return f"denoiser = diffusion_lightning.load_denoiser({str(output)!r})"
        case "torch_export":
            return f"torch.export.load({str(output)!r}).module(){call}: {arguments}"
        case "onnx":
            return f"onnxruntime.InferenceSession({str(output)!r}): {arguments}"
        case "diffusers":
            from diffusion_lightning.export.diffusers_model import is_library_model

            needed = "" if is_library_model(model.denoiser) else "import diffusion_lightning.export.diffusers_model; "
            return f"{needed}import diffusers; diffusers.DDIMPipeline.from_pretrained({str(output)!r})()"
