"""Whether data and network fit each other, found out before a run begins: shapes, classes, conditions.

What a network takes, its ``forward`` alone knows. So it is tried, on tensors without content: that costs no time,
draws nothing and leaves the network as it is. Its attributes then serve to say which option would be right.
"""

from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.data import TensorDataset

from diffusion_lightning.data.base import ImageDataModule
from diffusion_lightning.networks import MLP

FARTHEST = 64
"""Pixels: how much larger or smaller images are tried, to propose a size that fits."""

NAMED = 10
"""Of many classes, how many are told by name."""


def check_compatible(network: nn.Module, data: Any, is_new: bool = True) -> None:
    """Raise a ValueError that names the option and what to type if a network cannot be trained on these data.

    What is not known is passed over: a network without ``num_classes`` takes examples of any class, and of data that
    have no ``shape`` or no ``num_classes`` the first batch tells; see :func:`check_batch`.

    Args:
        network: called ``network(x, time_signal, labels)``.
        data: with the attributes ``shape``, of one example, and ``num_classes``.
        is_new: whether its training begins now. If not, a network of more classes than the data's is warned of only,
            for it cannot be changed any more.

    Raises:
        ValueError: if it does not take examples of this shape, or has not as many classes as they.
    """
    shape, classes = getattr(data, "shape", None), getattr(data, "num_classes", None)
    problems, own = [], getattr(network, "num_classes", None)
    if shape is not None and (reason := _refusal(network, shape := tuple(shape))) is not None:
        problems = _about_shape(network, shape, data, reason)
    if own and classes is not None and own != classes:
        message = _about_classes(network, own, data, classes)
        if own < classes or is_new:
            problems.append(message)
        else:
            rank_zero_warn(f"{message}; it goes on, since the network of a checkpoint cannot be changed")
    if problems:
        raise ValueError("; ".join(problems))


def check_batch(network: nn.Module, batch: Any, data: Any, is_raw: bool = False) -> None:
    """Raise a ValueError if a network cannot be trained on a batch such as this one.

    Args:
        network: as above.
        batch: what the training step would get.
        data: where it comes from.
        is_raw: whether the batch is one of images that will yet become floats.

    Raises:
        ValueError: if it is not ``(x (B, …), labels)``, x are no floats or of another shape than the data say, or the
            network has classes and the labels are no numbers of its classes, ``(B,)``.
    """
    name, shape = type(data).__name__ if data is not None else "data", getattr(data, "shape", None)
    if not (isinstance(batch, tuple | list) and len(batch) == 2 and isinstance(batch[0], Tensor)):
        raise ValueError(f"{name}: a batch is {_kind(batch)}: must be (x, labels), tensors of (B, …) and (B,)")
    x, condition = batch
    labels = condition.get("labels") if isinstance(condition, Mapping) else condition
    if shape is not None and x.shape[1:] != tuple(shape):
        raise ValueError(f"{name}: has examples of shape {tuple(x.shape[1:])}, but its attribute shape is {shape}")
    if not (x.is_floating_point() or (is_raw and x.dtype == torch.uint8)):
        raise ValueError(f"{name}: its x are {_dtype(x)}: must be floats, as ImageDataModule makes of uint8")
    classes = getattr(network, "num_classes", None)
    if not classes:
        return
    needed = f"{type(network).__name__} has num_classes={classes} and takes the numbers of classes, int64 (B,)"
    way_out = f"give such, or {_option(network, 'num_classes', None)} for a network that is told nothing"
    if not isinstance(labels, Tensor):
        raise ValueError(f"{name}: its labels are {_kind(labels)}: {needed}: {way_out}")
    if labels.dtype not in (torch.int64, torch.int32) or labels.shape != x.shape[:1]:
        raise ValueError(f"{name}: its labels are {_dtype(labels)} {_dims(labels)}: {needed}: {way_out}")
    _check_range(labels, classes, name)


def check_set(network: nn.Module, examples: Any, data: Any) -> None:
    """As :func:`check_batch`, of the first example of a set, and of all its labels where the set has them at hand.

    Args:
        network: as above.
        examples: a sized map-style dataset, ``examples[indices]`` → ``(x, labels)``; x may be images, uint8.
        data: where they come from.

    Raises:
        ValueError: as `check_batch` does.
    """
    if not len(examples):
        return
    check_batch(network, examples[[0]], data, is_raw=isinstance(data, ImageDataModule))
    held = examples.tensors[1] if isinstance(examples, TensorDataset) else None
    labels, classes = getattr(examples, "labels", held), getattr(network, "num_classes", None)
    if classes and isinstance(labels, Tensor):
        _check_range(labels, classes, type(data).__name__)


def _check_range(labels: Tensor, classes: int, name: str) -> None:
    low, high = (int(end) for end in labels.aminmax()) if len(labels) else (0, 0)
    if low < 0 or high >= classes:
        raise ValueError(f"{name}: has labels from {low} to {high}: the network's are 0 … {classes - 1}")


# ---- shapes


def _refusal(network: nn.Module, shape: tuple[int, ...]) -> str | None:
    """Why a network cannot be called on an example of this shape; None if it can, or that is not known here."""
    try:
        return _try(network, shape, torch.device("meta"))
    except ValueError as error:
        return _line(error)
    except Exception:  # of what only has no meaning without content, too
        pass
    try:
        with torch.random.fork_rng(devices=[]):
            return _try(network, shape, next(network.parameters(), torch.empty(0)).device)
    except Exception as error:
        # some networks are made for a device on which they are not yet
        return None if torch.accelerator.is_available() and not isinstance(error, ValueError) else _line(error)


@torch.no_grad()
def _try(network: nn.Module, shape: tuple[int, ...], device: torch.device) -> str | None:
    """Call a network on one example of zeros; what is wrong with its result."""
    tensors = {name: tensor.to(device) for name, tensor in (*network.named_parameters(), *network.named_buffers())}
    floats = [tensor.dtype for tensor in tensors.values() if tensor.is_floating_point()]
    x = torch.zeros(1, *shape, dtype=floats[0] if floats else None, device=device)
    labels = torch.zeros(1, dtype=torch.int64, device=device)
    condition = {"labels": labels} if getattr(network, "num_classes", None) else {}
    modes = [(module, module.training) for module in network.modules()]
    try:
        network.eval()
        out = functional_call(network, tensors, (x, x.new_zeros(1)), condition)
    finally:
        for module, mode in modes:
            module.training = mode
    if not isinstance(out, Tensor) or out.shape != x.shape:
        return f"it returns {_kind(out)}, not a tensor of the shape of x"
    return None


def _about_shape(network: nn.Module, shape: tuple[int, ...], data: Any, reason: str) -> list[str]:
    """The messages for examples of a shape that a network does not take, with what it would take."""
    name, examples = type(network).__name__, f"the examples of {type(data).__name__}, {shape},"
    if isinstance(network, MLP):
        if len(shape) == 1:
            dim = shape[0]
            return [
                f"model.network.dim={network.dim}: {examples} have {dim} coordinates: give --model.network.dim {dim}"
            ]
        way_out = f"give a network for images, such as --model.network UNet --model.network.in_channels {shape[0]}"
        return [f"model.network={name}: is for points, {examples} are none: {way_out}"]
    if len(shape) == 1:
        way_out = f"give --model.network diffusion_lightning.MLP --model.network.dim {shape[0]}"
        return [f"model.network={name}: does not take {examples} which are points ({reason}): {way_out}"]
    problems = []
    channels, patch = getattr(network, "in_channels", None), getattr(network, "patch_size", None)
    if isinstance(channels, int) and channels != shape[0]:
        way_out = _option(network, "in_channels", shape[0])
        problems.append(f"model.network.in_channels={channels}: {examples} have {shape[0]} channels: give {way_out}")
    if isinstance(patch, int) and any(side % patch for side in shape[1:]):
        fitting = max(size for size in range(1, patch) if not any(side % size for side in shape[1:]))
        way_out = _option(network, "patch_size", fitting)
        problems.append(f"model.network.patch_size={patch}: does not divide the sides of {examples} give {way_out}")
    if not problems:
        way_out = _size(network, shape, data) or "other arguments of it, or other data"
        problems.append(f"model.network={name}: does not take {examples} it says: {reason}: give {way_out}")
    return problems


def _size(network: nn.Module, shape: tuple[int, ...], data: Any) -> str | None:
    """The option for the nearest size of images that a network takes, if the data can be resized to it."""
    if not hasattr(data, "image_size") or len(shape) != 3 or shape[1] != shape[2]:
        return None
    for distance in range(1, FARTHEST + 1):
        for side in (shape[1] + distance, shape[1] - distance):
            if side > 0 and _refusal(network, (shape[0], side, side)) is None:
                return f"--data.image_size {side}"
    return None


# ---- classes


def _about_classes(network: nn.Module, own: int, data: Any, classes: int) -> str:
    """The message for data of another number of classes than the network's own."""
    names = getattr(data, "class_names", None) or []
    listed = f" ({', '.join(names[:NAMED])}{', …' if len(names) > NAMED else ''})" if names else ""
    have = f"has {classes} classes{listed}" if classes > 1 else "has no classes"
    wrong = "samples would be asked for of classes never seen" if own > classes else "the network has not one for each"
    nothing = _option(network, "num_classes", None)
    right = f"{_option(network, 'num_classes', classes)}, or {nothing} to train without" if classes > 1 else nothing
    return f"model.network.num_classes={own}: {type(data).__name__} {have}, and {wrong}: give {right}"


# ---- words


def _option(network: nn.Module, argument: str, value: int | None) -> str:
    """What to type to give a network's argument a value; a network of another library has its own names for them."""
    names = getattr(network, "argument_names", {}).get(argument, (argument,))
    return " ".join(f"--model.network.{name} {'null' if value is None else value}" for name in names)


def _kind(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a tensor {_dims(value)}"
    if isinstance(value, tuple | list):
        return f"a {type(value).__name__} of {len(value)}"
    return f"of type {type(value).__name__}"


def _dtype(value: Tensor) -> str:
    return str(value.dtype).removeprefix("torch.")


def _dims(value: Tensor) -> str:
    return f"({', '.join(map(str, value.shape))}{',' if value.ndim == 1 else ''})"


def _line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
