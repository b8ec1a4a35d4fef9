"""The files of scores of answers whose scores are known."""

import csv
import json
from pathlib import Path

import pytest
import torch

from diffusion_lightning import EmbeddedMNIST, Inpainting, KarrasPreconditioning, KarrasSDE, NetworkDenoiser, ScoreNet
from diffusion_lightning.commands.restoration_scores import write_scores
from diffusion_lightning.data.tensor_images import normalize
from diffusion_lightning.inverse.masks import missing_pixels
from diffusion_lightning.samplers import Heun
from diffusion_lightning.training.trained import TrainedModel

DIGITS = list("0123456789")


@pytest.fixture(scope="module")
def truth() -> torch.Tensor:
    """A digit of each class, in [-1, 1]."""
    held_out = EmbeddedMNIST().load_images()[1]
    first = [(held_out.labels == digit).nonzero()[0].item() for digit in range(10)]
    return normalize(held_out.images[torch.tensor(first)])


def model_of(class_names: list[str]) -> TrainedModel:
    """What it draws is no matter here."""
    denoiser = NetworkDenoiser(ScoreNet(channels=(32, 32), embed_dim=32), KarrasSDE(), KarrasPreconditioning())
    return TrainedModel(denoiser, Heun(2), (1, 28, 28), class_names=class_names)


def scored(answers, truth, model, folder: Path) -> tuple[str, dict[str, float], list[dict[str, str]]]:
    operator = Inpainting(~missing_pixels("bottom", (28, 28)))
    told = write_scores(DIGITS, answers, operator(truth), truth, operator, 0.0, model, folder)
    with (folder / "scores.csv").open() as file:
        return told, json.loads((folder / "scores.json").read_text()), [*csv.DictReader(file)]


def test_each_picture_is_scored_against_its_own_truth(truth, tmp_path) -> None:
    """One answer is nearly the truth, the other the next digit, with another upper half and of another class."""
    answers = torch.stack([truth * 0.999, truth.roll(1, 0)])
    told, summary, rows = scored(answers, truth, model_of(DIGITS), tmp_path)
    assert summary["agrees"] == summary["same_class"] == 0.5
    assert [row["picture"] for row in rows] == DIGITS
    assert {row["agrees"] for row in rows} == {row["same_class"] for row in rows} == {"0.5"}
    expected = [10 * torch.log10(4 / (answers.mean(0) - truth)[i].square().mean()).item() for i in range(10)]
    assert [float(row["psnr_of_mean"]) for row in rows] == pytest.approx(expected, rel=1e-4)
    assert "50.0% of the answers show what the truth does, as a classifier reads both" in told
    assert told.endswith("50.0% of the answers agree with the measurement")


def test_without_digits_no_class_is_read(truth, tmp_path) -> None:
    _, summary, _ = scored(truth[None] * 0.999, truth, model_of(["cat"] * 10), tmp_path)
    assert "same_class" not in summary
    assert summary["agrees"] == 1
