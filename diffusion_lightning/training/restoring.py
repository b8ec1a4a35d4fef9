"""A module and its checkpoints: what is added to one, what is checked when it is read, a module made of one alone."""

import os
from abc import abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from lightning.pytorch import LightningModule

from diffusion_lightning.data.clusters import Groups
from diffusion_lightning.training.checkpoint_file import KEY, load_checkpoint
from diffusion_lightning.training.data_check import DataCheck
from diffusion_lightning.training.ema import EMA
from diffusion_lightning.training.recipe import build, describe
from diffusion_lightning.training.resume import Change, check_network
from diffusion_lightning.training.resume import check as check_resume
from diffusion_lightning.training.resumption import Resumption, is_resuming, write_run
from diffusion_lightning.training.trained import groups_in

if TYPE_CHECKING:
    from typing_extensions import Self


class Restores(LightningModule):
    """Saves and takes back what its run needs to go on."""

    ema: EMA
    shape: tuple[int, ...] | None
    class_names: list[str] | None
    vector_names: list[str] | None
    class_counts: list[int] | None
    groups: Groups | None
    draws_own_rows: bool
    """Of the noise; a run of 0.2.0 or before goes on to draw that of all processes, which is another one."""
    _data: DataCheck
    _resumption: Resumption
    _is_loaded: bool

    @abstractmethod
    def changes(self, checkpoint: dict[str, Any]) -> list[Change]:
        """The options in which this module differs from a checkpoint's."""

    @abstractmethod
    def _set_shape(self, shape: Sequence[int]) -> None:
        """Take a shape for that of one example."""

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the EMA, the package's version, the loggers' run ids, and where the run stands."""
        write_run(self, checkpoint)  # type: ignore[arg-type]

    def check_network(self, checkpoint: dict[str, Any]) -> None:
        """Raise a ValueError that names the difference, if a checkpoint is of another network than this module's."""
        check_network(self.changes(checkpoint))

    def check_resume(self, checkpoint: dict[str, Any]) -> None:
        """Raise a ValueError that names the option, if training cannot go on from a checkpoint as is asked for now."""
        check_resume(self.changes(checkpoint), checkpoint["hyper_parameters"], self.hparams)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take the EMA back, after checking that the checkpoint is of this network; and what is known of its classes.

        Raises:
            ValueError: if the checkpoint's network is another one.
        """
        is_resumed = is_resuming(self)  # type: ignore[arg-type]
        (self.check_resume if is_resumed else self.check_network)(checkpoint)
        self._data.is_trained = True
        self.draws_own_rows = checkpoint[KEY].get("draws_own_rows", False)
        if self.shape is None and checkpoint["hyper_parameters"]["shape"] is not None:
            self._set_shape(checkpoint["hyper_parameters"]["shape"])
        self.ema.load_state_dict(checkpoint["ema"])
        self.ema.decay = self.hparams["ema_decay"]
        if self.class_names is None and self.class_counts is None:  # else the data have been asked already
            self.class_names = checkpoint[KEY].get("class_names")
            self.vector_names = checkpoint[KEY].get("vector_names")
            self.class_counts = checkpoint[KEY].get("class_counts")
        # what the network was taught its labels are, whatever data it is tried on now
        self.groups = groups_in(checkpoint[KEY]) or self.groups
        if is_resumed:
            self._resumption.read(self, checkpoint)  # type: ignore[arg-type]

    @classmethod
    def load_from_checkpoint(  # type: ignore[override]
        cls, checkpoint_path: str | os.PathLike[str], map_location: Any = "cpu", **kwargs: Any
    ) -> "Self":
        """Rebuild a module from its checkpoint alone, in evaluation mode; a fit puts it back into training mode.

        Its ``denoiser`` has the weights as they were trained; the averaged ones, which samples are drawn with, it has
        inside :meth:`ema_weights`, and the denoiser of :func:`diffusion_lightning.load_denoiser` always.

        Args:
            checkpoint_path: the ``.ckpt`` file.
            map_location: where its tensors go, as in ``torch.load``.
            kwargs: constructor arguments to change, as objects or recipes, such as ``compile=True``, which is off
                here whatever the checkpoint's run did.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: if it is damaged, holds code, or is not of a ScoreModule.
        """
        checkpoint = load_checkpoint(checkpoint_path, map_location)
        # compiling is worth it for training; whoever loads a checkpoint asks for it anew
        changed = {"compile": False} | {name: describe(value) for name, value in kwargs.items()}
        module = build(cls, {**checkpoint["hyper_parameters"], **changed})
        module.on_load_checkpoint(checkpoint)
        module.load_state_dict(checkpoint["state_dict"])
        module._is_loaded = True
        return module.eval()
