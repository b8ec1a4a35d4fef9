"""What `lightning restore` tells of its answers: scores.csv, scores.json and, with the truth, calibration.png."""

import csv
import json
from pathlib import Path
from typing import Any

from torch import Tensor

from diffusion_lightning.images import to_uint8, write_picture
from diffusion_lightning.inverse import Operator
from diffusion_lightning.metrics.features import auto_feature, build_features, extract_features, reads_classes
from diffusion_lightning.metrics.restoration import (
    agreeing,
    calibration_error,
    calibration_picture,
    lpips,
    psnr,
    ranks,
    ssim,
)
from diffusion_lightning.training.trained import TrainedModel

BATCH = 500


def write_scores(
    names: list[str],
    answers: Tensor,
    y: Tensor,
    truth: Tensor | None,
    operator: Operator,
    noise_std: float,
    model: TrainedModel,
    output: Path,
) -> str:
    """Write the scores, of each picture and their means; returns what is told of them.

    Args:
        names: of the pictures.
        answers: ``(num, B, C, H, W)`` in [-1, 1].
        y: what was measured, ``(B, …)``.
        truth: ``(B, C, H, W)``, None if it is not known.
        operator: A.
        noise_std: σ_y.
        model: what drew the answers: whether there is a classifier of its classes.
        output: the folder.
    """
    num = len(answers)
    flat, of = answers.flatten(0, 1), y.repeat(num, *[1] * (y.ndim - 1))
    columns = {"agrees": agreeing(flat, of, operator, noise_std).unflatten(0, (num, -1)).double().mean(0)}
    summary: dict[str, Any] = {}
    told = ""
    if truth is not None:
        each = truth.repeat(num, 1, 1, 1)
        columns["psnr_of_mean"] = psnr(answers.mean(0), truth)
        for name, score in (("psnr", psnr), ("ssim", ssim), ("lpips", lpips)):
            if (values := score(flat, each)) is not None:
                columns[name] = values.unflatten(0, (num, -1)).mean(0)
        if (same := _of_the_same_class(answers, truth, model)) is not None:
            columns["same_class"] = same
        places = ranks(answers, truth)
        summary["calibration_error"] = calibration_error(places, num)
        write_picture(calibration_picture(places, num), output / "calibration.png")
        mean = {name: values.mean().item() for name, values in columns.items()}
        told_lpips = "" if "lpips" in columns else " (no LPIPS: torchvision's AlexNet is not at hand)"
        told = (
            f"\nPSNR {mean['psnr']:.2f} dB, of the mean {mean['psnr_of_mean']:.2f}, SSIM {mean['ssim']:.3f}{told_lpips}"
            f"; calibration error {summary['calibration_error']:.3f}"
        )
        if same is not None:
            told += f"\n{mean['same_class']:.1%} of the answers show what the truth does, as a classifier reads both"
    summary |= {name: values.mean().item() for name, values in columns.items()}
    (output / "scores.json").write_text(json.dumps(summary, indent=1))
    with (output / "scores.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["picture", *columns])
        table.writerows(
            [name, *(f"{values[i].item():.6g}" for values in columns.values())] for i, name in enumerate(names)
        )
    return f"{told}\n{summary['agrees']:.1%} of the answers agree with the measurement"


def _of_the_same_class(answers: Tensor, truth: Tensor, model: TrainedModel) -> Tensor | None:
    """The share of each picture's answers in which a classifier reads what it reads in the truth, ``(B,)``.

    None where none comes with the package for the classes that the model's data had.
    """
    feature = auto_feature(tuple(truth.shape[1:]))
    if not reads_classes(feature, model.class_names, model.num_classes):
        return None
    network: Any = build_features(feature)[1]
    shown = to_uint8(answers.flatten(0, 1)).split(BATCH), to_uint8(truth).split(BATCH)
    of_answers, of_truth = (network.logits(extract_features(network, pictures)).argmax(1) for pictures in shown)
    return (of_answers.unflatten(0, (len(answers), -1)) == of_truth).double().mean(0)
