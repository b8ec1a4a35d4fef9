"""What of Lightning's cannot do its work on a ScoreModule, each with what does."""

from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import (
    BackboneFinetuning,
    LearningRateFinder,
    ModelPruning,
    StochasticWeightAveraging,
    WeightAveraging,
)
from lightning.pytorch.plugins.precision import BitsandbytesPrecision, TransformerEnginePrecision

HALF = ("bf16-true", "16-true")
"""Precisions of the weights themselves."""

AVERAGING = "averages weights that nothing is sampled from: leave it out, and give model.ema_decay"

WITHOUT_EFFECT: dict[type[Callback], str] = {
    LearningRateFinder: (
        "finds no rate to set, which is the optimizer's here: leave it out, and try rates with model.optimizer.lr"
    ),
    StochasticWeightAveraging: AVERAGING,
    WeightAveraging: AVERAGING,
    ModelPruning: "does not prune the averaged weights, which samples are drawn from: leave it out",
    BackboneFinetuning: "finds no backbone: leave it out",
}
"""Callbacks, and why each of them does nothing here."""


def check_trainer(trainer: Trainer) -> None:
    """Look whether all that a trainer is set to can be done with a ScoreModule.

    Raises:
        ValueError: naming the first option that cannot, and what to give instead.
    """
    plugin = trainer.precision_plugin
    if plugin.precision in HALF:
        mixed = str(plugin.precision).replace("true", "mixed")
        raise ValueError(
            f"trainer.precision={str(plugin.precision)!r}: weights of 16 bits have too few digits to be trained and "
            f"averaged: give {mixed!r}, which computes in 16 bits and keeps the weights"
        )
    if isinstance(plugin, BitsandbytesPrecision | TransformerEnginePrecision):
        raise ValueError(
            f"trainer.precision: {type(plugin).__name__} puts other layers into the network, whose weights are not "
            "averaged: give 'bf16-mixed' or '16-mixed'"
        )
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        for cls, reason in WITHOUT_EFFECT.items():
            if isinstance(callback, cls):
                raise ValueError(f"trainer.callbacks: {type(callback).__name__} {reason}")
