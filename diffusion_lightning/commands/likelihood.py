"""`lightning likelihood`: bits per dimension of held-out images under a checkpoint's model."""

import math
import time
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

import diffusion_lightning.data  # noqa: F401 — so that its classes are known by their short names
from diffusion_lightning.commands.drawing import load_on_device
from diffusion_lightning.commands.parser import OneLineParser
from diffusion_lightning.commands.run_folder import CKPT_PATH, find_checkpoint
from diffusion_lightning.commands.usage import UsageError, check_seed
from diffusion_lightning.conditions import Condition
from diffusion_lightning.likelihood import Divergence, Probe, bits_per_dim, log_likelihood
from diffusion_lightning.randomness import draw_some

if TYPE_CHECKING:
    from lightning.pytorch import LightningDataModule


def likelihood_command(args: list[str]) -> None:
    """Parse the options, solve the ODE for each held-out example, and print the mean and its standard error.

    Images give bits/dim with uniform dequantization, points nats; both by the EMA weights, and for a class-conditional
    network given the label.

    Args:
        args: the command line after ``lightning likelihood``.

    Raises:
        ValueError, OSError: for options, checkpoints or data that cannot be used.
    """
    options = likelihood_parser().parse_args(args)
    for name in ("num", "batch_size"):
        if options[name] < 1:
            raise UsageError(f"{name}={options[name]}: must be at least 1")
    check_seed(seed=options.seed)
    if options.data is None:
        raise UsageError("data: the data module is missing; give for instance --data EmbeddedMNIST")
    data = likelihood_parser().instantiate(options).data
    model = load_on_device(find_checkpoint(options.ckpt_path), options.device)
    x, conditions, available = _held_out(data, options.num, options.seed)
    if model.shape is not None and x.shape[1:] != model.shape:
        raise UsageError(
            f"data={type(data).__name__}: has examples of shape {tuple(x.shape[1:])}: must be {model.shape}, as those "
            "that the checkpoint was trained on"
        )

    evaluate = bits_per_dim if x.ndim == 4 else _nats
    start = time.perf_counter()
    values = evaluate(
        model.denoiser,
        x.to(model.device),
        divergence=options.divergence,
        noise=options.noise,
        rtol=options.rtol,
        atol=options.atol,
        t_min=options.t_min,
        generator=torch.Generator(model.device).manual_seed(options.seed),
        batch_size=options.batch_size,
        progress=not options.quiet,
        **model.condition(conditions),
    ).to("cpu", torch.float64)
    seconds = time.perf_counter() - start

    error = f"{values.std().item() / math.sqrt(len(values)):.4f}" if len(values) > 1 else "unknown"
    unit = "bits/dim" if x.ndim == 4 else "nats, ln p(x)"
    print(
        f"{values.mean().item():.4f} ± {error} {unit}: mean and standard error of "
        f"{drawn_of(len(values), available, options.seed)} of {type(data).__name__}, {seconds:.1f} s, EMA weights"
    )


def likelihood_parser() -> OneLineParser:
    """The options of ``lightning likelihood``; of them ``--data`` loads Lightning."""
    from lightning.pytorch import LightningDataModule

    parser = OneLineParser(
        prog="lightning likelihood",
        usage="lightning likelihood --ckpt_path RUN_OR_FILE --data CLASS [--num N] [--option value …]",
        description="Bits per dimension of held-out images, by the probability-flow ODE.",
    )
    parser.add_argument("--ckpt_path", type=str, required=True, help=CKPT_PATH)
    parser.add_argument(
        "--data", type=LightningDataModule | None, default=None, help="EmbeddedMNIST, MNIST --data.root folder, …"
    )
    parser.add_argument("--num", type=int, default=1000, help="How many held-out examples at most, drawn by the seed.")
    parser.add_argument("--divergence", type=Divergence, default="hutchinson", help="Estimated, or exact and slow.")
    parser.add_argument("--noise", type=Probe, default="rademacher", help="Of the estimate's probes.")
    parser.add_argument("--rtol", type=float, default=1e-5, help="Relative tolerance of the solver.")
    parser.add_argument("--atol", type=float, default=1e-5, help="Absolute tolerance of the solver.")
    parser.add_argument("--t_min", type=float | None, default=None, help="Where the ODE starts; the SDE's by default.")
    parser.add_argument("--seed", type=int, default=0, help="Decides which examples, dequantization and probes.")
    parser.add_argument("--batch_size", type=int, default=250, help="How many are solved at once.")
    parser.add_argument("--device", type=str | None, default=None, help="cpu, cuda, cuda:1, …; the first GPU if any.")
    parser.add_argument("--quiet", action="store_true", help="No progress bar.")
    parser.add_argument("--debug", action="store_true", help="Show the traceback of an error.")
    return parser


def _nats(*args: object, **settings: object) -> Tensor:
    return log_likelihood(*args, **settings)[0]  # type: ignore[arg-type]


def drawn_of(count: int, available: int, seed: int) -> str:
    """Which held-out examples a figure is of, in words."""
    if count == available:
        return f"all {count:,} held-out examples"
    return f"{count:,} of the {available:,} held-out examples (drawn by seed {seed})"


def _held_out(data: "LightningDataModule", num: int, seed: int) -> tuple[Tensor, Condition, int]:
    """Some of the examples that the data module tests on, as it stores them, their conditions, and of how many."""
    from diffusion_lightning.data.base import BatchDataModule

    data.prepare_data()
    data.setup("test")
    if isinstance(data, BatchDataModule):
        held_out: Any = data.sets()[1]
        chosen = draw_some(num, len(held_out), seed).tolist()
        return held_out[chosen][0], data.examples(chosen)[1], len(held_out)
    # where they cannot be asked for one by one, all are read
    xs, conditions = zip(*data.test_dataloader(), strict=True)
    x, first = torch.cat(xs), conditions[0]
    kept = draw_some(num, len(x), seed)
    if isinstance(first, Tensor):
        return x[kept], torch.cat(conditions)[kept], len(x)
    return x[kept], {name: torch.cat([each[name] for each in conditions])[kept] for name in first}, len(x)
