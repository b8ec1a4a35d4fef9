"""FSDP2: a network of which each process holds a part, whole only where it runs.

A sharded parameter is a ``DTensor``: the values of all processes together, of which this one has its own rows. The
optimizer and the EMA work on the rows alone.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor


def shard(network: nn.Module, mesh: DeviceMesh) -> None:
    """Split a network's parameters over a mesh of two dimensions: copies along the first, parts along the second.

    The items of its ``nn.ModuleList`` s, which are the blocks of our networks, are made whole one at a time when they
    run; what is outside of them while the network runs. The parameters become other objects.
    """
    # a block within a block must come before it, and the network last
    for module in (*reversed(blocks(network)), network):
        fully_shard(module, mesh=mesh, reshard_after_forward=True)


def blocks(network: nn.Module) -> list[nn.Module]:
    """The items of a network's ``nn.ModuleList`` s, each before those inside of it."""
    lists = [module for module in network.modules() if isinstance(module, nn.ModuleList)]
    return [item for parent in lists for item in parent if not isinstance(item, nn.ModuleList)]


def warn_of_split_matrices(optimizer: torch.optim.Optimizer) -> None:
    """Warn of an optimizer that works on whole matrices, of which each process has only rows: Muon."""
    name = type(optimizer).__name__
    if "Muon" in name:
        rank_zero_warn(
            f"{name} under FSDP: each matrix is put together many times a step, and the run is not the one that DDP "
            "makes: use --model.optimizer torch.optim.AdamW, or configs/overlays/ddp.yaml"
        )


def is_sharded(network: nn.Module) -> bool:
    """Whether this process holds only a part of the parameters at the moment."""
    return any(isinstance(parameter, DTensor) for parameter in network.parameters())


@contextmanager
def gathered(network: nn.Module) -> Iterator[None]:
    """Inside, the network is whole in every process, which runs it without the others. Nothing if it is so already.

    Every process must enter it, and none may change the weights inside.
    """
    parts = [module for module in network.modules() if isinstance(module, FSDPModule)] if is_sharded(network) else []
    for part in parts:
        part.set_reshard_after_forward(False, recurse=False)
        part.unshard()
    try:
        yield
    finally:
        for part in parts:
            part.set_reshard_after_forward(True, recurse=False)
            part.reshard()


def part_of(whole: Tensor, parameter: Tensor) -> Tensor:
    """A tensor that every process has, split as the parameter is; itself if that is not sharded."""
    if not isinstance(parameter, DTensor):
        return whole
    return distribute_tensor(
        whole.to(parameter.device), parameter.device_mesh, parameter.placements, src_data_rank=None
    )


def own_rows(tensors: Iterable[Tensor]) -> list[Tensor]:
    """What this process holds of each tensor, sharing its memory and outside of any graph."""
    plain = (tensor.data for tensor in tensors)
    return [tensor.to_local() if isinstance(tensor, DTensor) else tensor for tensor in plain]


def of_all(number: Tensor) -> Tensor:
    """A number that each process has a part of, such as the norm of a sharded tensor, added up on their devices."""
    return number.full_tensor() if isinstance(number, DTensor) else number


def whole_of(part: Tensor) -> Tensor:
    """A sharded tensor put together, on the CPU, which every process must ask for; any other as it is."""
    return part.full_tensor().cpu() if isinstance(part, DTensor) else part


def number_as_in(module: nn.Module, optimizer_state: dict[str, Any]) -> None:
    """Number the trainable parameters in an optimizer's state by their places among all of the module's, in place.

    So FSDP numbers them; without it, fixed parameters are passed over, which only matters to whoever reads the numbers.
    """
    places = [place for place, parameter in enumerate(module.parameters()) if parameter.requires_grad]
    optimizer_state["state"] = {places[number]: state for number, state in optimizer_state["state"].items()}
    for group in optimizer_state["param_groups"]:
        group["params"] = [places[number] for number in group["params"]]
