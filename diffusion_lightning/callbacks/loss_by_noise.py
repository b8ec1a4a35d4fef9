"""The loss at each level of the noise: where on the way from noise to data a model still errs.

The mean loss of an epoch hides it: at some levels it is large and will not become smaller, at others it is small and
still far from its best.
"""

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import WandbLogger
from torch import Tensor

from diffusion_lightning.callbacks.pictures import (
    check_at_least_one,
    epoch_path,
    is_due,
    leave_picture,
    logged_step,
    run_folder,
    told_of,
)
from diffusion_lightning.disk import replace
from diffusion_lightning.images import figure_picture
from diffusion_lightning.loggers.guest import excused
from diffusion_lightning.sde import SDE
from diffusion_lightning.training.module import ScoreModule

COLUMNS = ("epoch", "stage", "noise_level", "low", "high", "loss", "examples")


class LossByNoise(Callback):
    """Leaves the loss against the noise level σ/α after an epoch, of training and of validation.

    The loss is the weighted one of the module's objective, as it is trained: the mean of λ(t)·c(t)·‖D(x_t, t) − x0‖²
    over those examples whose σ(t)/α(t) lies in a bin, with c the correction of importance sampling, which is 1 for
    other times. How often a noise level is drawn does not enter it, but is shown in grey behind the curves. Bins are
    equally wide in ln(σ/α), from t_min to T. With the ``karras`` weighting and σ_d the standard deviation of the data,
    a model that knows nothing more of it has a loss of 1 per dimension at every level: what lies below has been learnt.

    Training is that of the epoch, by the weights as they changed; validation that of the epoch's last one, by the EMA
    weights, at times and noise that are the same in every epoch. An example whose loss is not finite does not count.
    All processes are added up. No step waits for the device.

    Left are the picture ``<name>/epoch=….png``, also with the loggers, and ``<name>.csv`` in the run's folder: one row
    for each epoch, stage (``train``, ``val``) and bin, with the bin's limits ``low`` and ``high`` and their geometric
    mean ``noise_level``; ``loss`` is empty where there are no ``examples``. With W&B the rows of an epoch are also the
    table ``<name>_table``.

    A checkpoint in the middle of an epoch holds the sums of each process until then, so that after a resume the epoch's
    rows are of all of it, bit for bit. Resumed by another number of processes, the first goes on with all of them.

    Args:
        num_bins: between t_min and T.
        every_n_epochs: how often; the end of training always counts.
        name: of the folder, the table and the picture with the loggers; give one to each of several.

    Raises:
        ValueError: if a number is below 1.
    """

    def __init__(self, num_bins: int = 20, every_n_epochs: int = 1, name: str = "loss_by_noise") -> None:
        check_at_least_one(num_bins=num_bins, every_n_epochs=every_n_epochs)
        self.num_bins = num_bins
        self.every_n_epochs = every_n_epochs
        self.name = name
        # (2, num_bins): in each bin the sum of losses and the number of examples, of this process
        self._train: Tensor | None = None
        self._validation: Tensor | None = None
        self._resumed: list[list[list[float]]] | None = None  # of all processes
        self._time_limits: Tensor | None = None
        self._is_continuing = False  # the table on disk ends with the rows of this part of the run

    @property
    def state_key(self) -> str:
        return self._generate_state_key(name=self.name)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._train = self._validation = self._resumed = self._time_limits = None
        self._is_continuing = False

    # ---- the sums

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, ScoreModule)
        sde = pl_module.denoiser.sde
        # the noise level rises with t: bins of one are bins of the other
        times = sde.time_at(noise_levels(sde, self.num_bins)[1:-1])
        self._time_limits = times.to(pl_module.device, torch.float32)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, ScoreModule)
        self._train = pl_module.own_part(self._resumed) if self._resumed is not None else self._nothing(pl_module)
        self._resumed = self._validation = None  # the latter is of the sanity check

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if batch_idx == 0:
            self._train = self._nothing(pl_module)
        assert self._train is not None
        self._add(self._train, outputs)

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._validation = self._nothing(pl_module)

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if self._time_limits is not None:  # while training, and not by itself
            assert self._validation is not None
            self._add(self._validation, outputs)

    def _nothing(self, pl_module: LightningModule) -> Tensor:
        return torch.zeros(2, self.num_bins, device=pl_module.device)

    def _add(self, sums: Tensor, outputs: Mapping[str, Tensor]) -> None:
        assert self._time_limits is not None
        losses = outputs["losses"].float()
        finite = losses.isfinite()
        values = torch.stack((torch.where(finite, losses, 0.0), finite.float()))
        sums.index_add_(1, torch.bucketize(outputs["times"].float(), self._time_limits), values)

    # ---- checkpoints

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Add the sums of each process, as numbers."""
        sums = self._train if self._train is not None else self._nothing(pl_module)
        gathered = pl_module.all_gather(sums)
        assert isinstance(gathered, Tensor)
        checkpoint["callbacks"][self.state_key] = {"train": gathered.reshape(-1, *sums.shape).tolist()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take them back, unless they are of other bins: then the epoch's row is of its rest."""
        if len(state_dict["train"][0][0]) == self.num_bins:
            self._resumed = state_dict["train"]

    @staticmethod
    def _of_all(trainer: Trainer, sums: Tensor) -> Tensor:
        total = trainer.strategy.reduce(sums.clone(), reduce_op="sum")
        assert isinstance(total, Tensor)
        return total.cpu()

    # ---- the end of an epoch

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        parts = {"train": self._train, "val": self._validation}
        self._validation = None  # not every epoch has one
        if not is_due(trainer, self.every_n_epochs):
            return
        assert isinstance(pl_module, ScoreModule)
        sums = {stage: self._of_all(trainer, part) for stage, part in parts.items() if part is not None}
        path, folder = epoch_path(trainer, self.name), run_folder(trainer)
        if not trainer.is_global_zero or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        limits = noise_levels(pl_module.denoiser.sde, self.num_bins)
        rows = table_rows(trainer.current_epoch, limits, sums)
        self._leave_rows(folder / f"{self.name}.csv", rows, trainer.current_epoch)
        leave_picture(trainer, self.name, draw(trainer.current_epoch, limits, sums), path)
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                with excused(logger):
                    logger.log_table(f"{self.name}_table", list(COLUMNS), rows, step=logged_step(trainer))

    def _leave_rows(self, path: Path, rows: Sequence[Sequence[Any]], epoch: int) -> None:
        with told_of(str(path)):
            if self._is_continuing:
                self._is_continuing = False  # unless it is written to its end
                with open(path, "a", encoding="utf-8", newline="") as file:
                    file.write(_text(rows))
            else:
                path.parent.mkdir(parents=True, exist_ok=True)
                replace(path, _text([COLUMNS, *_former_rows(path, epoch), *rows]))
            self._is_continuing = True


def noise_levels(sde: SDE, num_bins: int) -> Tensor:
    """The ``num_bins + 1`` limits of bins of σ/α from t_min to T, of equal ratios; float64."""
    low, high = sde.noise_level(torch.tensor([sde.t_min, sde.T], dtype=torch.float64)).log().tolist()
    return torch.linspace(low, high, num_bins + 1, dtype=torch.float64).exp()


def table_rows(epoch: int, limits: Tensor, sums: Mapping[str, Tensor]) -> list[list[Any]]:
    """The rows of an epoch in the order of ``COLUMNS``.

    Args:
        epoch: counted from 0.
        limits: of the bins, ``(bins + 1,)``.
        sums: by stage, the sums of losses and the numbers of examples ``(2, bins)``.
    """
    rows: list[list[Any]] = []
    for stage, (totals, counts) in sums.items():
        for low, high, total, count in zip(limits[:-1], limits[1:], totals, counts, strict=True):
            ends = [_rounded((low * high).sqrt()), _rounded(low), _rounded(high)]
            rows.append([epoch, stage, *ends, _rounded(total / count) if count > 0 else None, int(count)])
    return rows


def draw(epoch: int, limits: Tensor, sums: Mapping[str, Tensor]) -> Tensor:
    """The mean losses over the noise level, and how the training examples are spread; uint8 ``(3, H, W)``.

    Args:
        epoch: counted from 0.
        limits: of the bins, ``(bins + 1,)``.
        sums: by stage, the sums of losses and the numbers of examples ``(2, bins)``.
    """
    # here, so that a run without this callback does not wait for it
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), dpi=100, layout="constrained")
    panel = figure.subplots()
    centres = (limits[:-1] * limits[1:]).sqrt().numpy()
    if "train" in sums:
        behind = panel.twinx()
        behind.stairs(sums["train"][1].numpy(), limits.numpy(), fill=True, color="0.9")
        behind.set_ylabel("training examples", color="0.6")
        behind.tick_params(colors="0.6")
        behind.set_zorder(-1)
        panel.patch.set_visible(False)
    colours = {"train": "tab:blue", "val": "tab:orange"}
    labels = {"train": "training", "val": "validation, EMA weights"}
    for stage, (totals, counts) in sums.items():
        # a bin without examples is left out: the line goes straight over it
        seen = (counts > 0).numpy()
        means = (totals / counts).numpy()
        panel.plot(centres[seen], means[seen], ".-", color=colours[stage], label=labels[stage])
    panel.set_xscale("log")
    panel.set_xlim(limits[0].item(), limits[-1].item())
    if all((totals[counts > 0] > 0).all() for totals, counts in sums.values()):
        panel.set_yscale("log")
    panel.set_xlabel("noise level σ/α")
    panel.set_ylabel("loss λ(t)·‖D − x₀‖², as trained")
    panel.set_title(f"loss by noise level, epoch {epoch}")
    panel.legend(frameon=False)
    return figure_picture(figure)


def _rounded(value: Tensor) -> float:
    return float(f"{value.item():.6g}")


def _former_rows(path: Path, epoch: int) -> list[list[str]]:
    """The whole rows of epochs before this one that an earlier part of the run has left."""
    if not path.is_file():
        return []
    text = path.read_text(encoding="utf-8", errors="replace")
    head, *rows = list(csv.reader(text[: text.rfind("\n") + 1].splitlines())) or [[]]
    if head != list(COLUMNS):
        return []
    return [row for row in rows if len(row) == len(COLUMNS) and row[0].isdecimal() and int(row[0]) < epoch]


def _text(rows: Sequence[Sequence[Any]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()
