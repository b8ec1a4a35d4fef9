"""Whether network and data fit each other, asked as early as it can be known, and once."""

from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.trainer.states import TrainerFn
from torch import nn

from diffusion_lightning.data.base import BatchDataModule
from diffusion_lightning.training.compatibility import check_batch, check_compatible, check_set
from diffusion_lightning.training.condition_check import WIDTHS


class DataCheck:
    """Holds a network against data: by what they say of themselves, by the first example, by the first batch.

    Args:
        network: that is to be trained.

    Attributes:
        is_trained: whether its weights are of a training already, and it cannot be another any more.
    """

    def __init__(self, network: nn.Module) -> None:
        self._network = network
        self.is_trained = False
        self._fits: tuple[Any, ...] | None = None  # what the data say of themselves that it has been tried on
        self._has_seen_batch = False

    def attributes(self, data: Any, is_new: bool) -> None:
        """Raise a ValueError if the network cannot be trained on the data, as far as their attributes tell.

        Args:
            data: the data module.
            is_new: whether the network's training begins now, and it could still be another.
        """
        fits = tuple(getattr(data, name, None) for name in ("shape", "num_classes", *WIDTHS.values()))
        if fits != self._fits:
            check_compatible(self._network, data, is_new)
            self._fits = fits

    def begin(self, trainer: Trainer) -> None:
        """Look at the attributes of a trainer's data, before it does anything with them."""
        self._has_seen_batch = False
        data, stage = _data_of(trainer), trainer.state.fn
        if data is not None and stage != TrainerFn.PREDICTING:
            self.attributes(data, stage == TrainerFn.FITTING and not self.is_trained)

    def sets(self, trainer: Trainer) -> None:
        """Read the examples of a trainer's data, and look at the first of each set."""
        self.begin(trainer)
        data = _data_of(trainer)
        if isinstance(data, BatchDataModule) and trainer.state.fn != TrainerFn.PREDICTING:
            for examples in data.sets():
                check_set(self._network, examples, data)

    def batch(self, batch: Any, trainer: Trainer) -> None:
        """Look at the first batch, of whatever data."""
        if not self._has_seen_batch:
            check_batch(self._network, batch, _data_of(trainer))
            self._has_seen_batch = True


def _data_of(trainer: Trainer) -> Any:
    return getattr(trainer, "datamodule", None)
