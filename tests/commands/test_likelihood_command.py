"""`lightning likelihood`: its figures are those of the functions it calls, and its mistakes are one line."""

import re

import pytest
import torch
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader, TensorDataset

from diffusion_lightning import (
    MLP,
    VPSDE,
    EmbeddedMNIST,
    NoisePrediction,
    Points,
    ScoreModule,
    UNet,
    bits_per_dim,
    cli,
    log_likelihood,
)
from diffusion_lightning.data.base import BatchDataModule
from diffusion_lightning.randomness import draw_some

LOOSE = ("--rtol", "1e-2", "--atol", "1e-2")
MISTAKES = {
    "no data": ((), "data: the data module is missing"),
    "data of an unknown kind": (("--data", "EmbeddedMNITS"), "did you mean EmbeddedMNIST?"),
    "data of another shape": (("--data", "Points"), "data=Points: has examples of shape (2,): must be (1, 28, 28)"),
    "no examples": (("--data", "EmbeddedMNIST", "--num", "0"), "num=0: must be at least 1"),
    "empty batches": (("--data", "EmbeddedMNIST", "--batch_size", "0"), "batch_size=0: must be at least 1"),
    "no tolerance": (("--data", "EmbeddedMNIST", "--rtol", "0"), "rtol=0.0: must be positive"),
    "a time outside": (("--data", "EmbeddedMNIST", "--t_min", "2"), "t_min=2.0: must be in [1e-05, 1)"),
    "another divergence": (("--data", "EmbeddedMNIST", "--divergence", "none"), "divergence"),
    "another device": (("--data", "EmbeddedMNIST", "--device", "abacus"), "device='abacus': cannot be used here"),
}


def sorted_points() -> TensorDataset:
    """Points from the middle outwards."""
    x = Points(num_held_out=300, seed=0).held_out
    return TensorDataset(x[x.norm(dim=1).argsort()], torch.zeros(300, dtype=torch.int64))


class SortedPoints(BatchDataModule):
    shape, num_classes = (2,), 1

    def sets(self):
        return sorted_points(), sorted_points()


class SortedLoader(LightningDataModule):
    """Knows nothing of sets, only how to read all."""

    def test_dataloader(self):
        return DataLoader(sorted_points(), batch_size=7)


def saved(path, make_trainer, module: ScoreModule, data) -> ScoreModule:
    """A checkpoint of some training steps at ``path``, and the module that it gives back."""
    trainer = make_trainer()
    trainer.fit(module, datamodule=data)
    trainer.save_checkpoint(path)
    return ScoreModule.load_from_checkpoint(path).eval()


@pytest.fixture
def digits_checkpoint(tmp_path, make_trainer, make_module, make_data):
    network = UNet(channels=(4,), num_res_blocks=1, embed_dim=8, middle_attention=False, patch_size=4, num_classes=10)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.3)  # what starts at zero would hide the labels
    module = make_module(network=network, sde=VPSDE(), parameterization=NoisePrediction(), ema_decay=0.5)
    return tmp_path / "x.ckpt", saved(tmp_path / "x.ckpt", make_trainer, module, make_data())


def printed(capsys, *options: str) -> tuple[float, float, str]:
    """Mean, standard error and the whole line that the command prints."""
    cli.main(["likelihood", *options])
    line = capsys.readouterr().out
    mean, error = re.match(r"(-?[\d.]+) ± ([\d.]+) ", line).groups()
    return float(mean), float(error), line


def test_it_prints_the_mean_and_its_standard_error(digits_checkpoint, capsys):
    path, module = digits_checkpoint
    images, labels = EmbeddedMNIST().held_out_images[draw_some(6, 1000, seed=3)]
    with module.ema_weights():
        expected = bits_per_dim(
            module.denoiser, images, rtol=1e-2, atol=1e-2, generator=torch.Generator().manual_seed(3), labels=labels
        )
    mean, error, line = printed(
        capsys, "--ckpt_path", str(path), "--data", "EmbeddedMNIST", "--num", "6", "--seed", "3", *LOOSE
    )
    assert mean == pytest.approx(expected.mean().item(), abs=1e-4)
    assert error == pytest.approx(expected.std().item() / 6**0.5, abs=1e-4)
    assert "of 6 of the 1,000 held-out examples (drawn by seed 3) of EmbeddedMNIST" in line


def test_the_examples_are_drawn_from_all_of_them(tmp_path, make_trainer, make_module, capsys):
    """Held-out points sorted by what the model thinks of them: the mean of the first is far from that of all."""
    module = make_module(network=MLP(), sde=VPSDE(), parameterization=NoisePrediction())
    saved(tmp_path / "p.ckpt", make_trainer, module, Points())
    options = ("--ckpt_path", str(tmp_path / "p.ckpt"), "--divergence", "exact")
    for name in ("SortedPoints", "SortedLoader"):
        kind = ("--data", f"{__name__}.{name}", "--num")
        mean, _, line = printed(capsys, *options, *kind, "300")
        assert "of all 300 held-out examples of" in line
        some, error, line = printed(capsys, *options, *kind, "60")
        assert "of 60 of the 300 held-out examples (drawn by seed 0) of" in line
        assert abs(some - mean) < 3 * error
        assert printed(capsys, *options, *kind, "60", "--seed", "1")[0] != some


def test_the_labels_matter_to_a_conditional_network(digits_checkpoint):
    """Without which the test above could not tell that they are passed on."""
    _, module = digits_checkpoint
    images, labels = EmbeddedMNIST().held_out_images[list(range(6))]
    settings = {"rtol": 1e-2, "atol": 1e-2}
    with module.ema_weights():
        right, wrong = (
            bits_per_dim(module.denoiser, images, generator=torch.Generator().manual_seed(3), labels=given, **settings)
            for given in (labels, (labels + 1) % 10)
        )
    assert (right - wrong).abs().min() > 1e-4


def test_points_give_nats(tmp_path, make_trainer, make_module, capsys):
    module = make_module(network=MLP(), sde=VPSDE(), parameterization=NoisePrediction())
    module = saved(tmp_path / "p.ckpt", make_trainer, module, Points())
    with module.ema_weights():
        points = Points().held_out[draw_some(40, 2000, seed=0)]
        expected, _ = log_likelihood(module.denoiser, points, divergence="exact")
    options = ("--data", "Points", "--num", "40", "--divergence", "exact")
    mean, error, line = printed(capsys, "--ckpt_path", str(tmp_path / "p.ckpt"), *options)
    assert mean == pytest.approx(expected.mean().item(), abs=1e-3)
    assert error == pytest.approx(expected.std().item() / 40**0.5, abs=1e-3)
    assert "nats" in line


def test_it_shows_its_progress_unless_told_not_to(digits_checkpoint, capsys):
    path, _ = digits_checkpoint
    command = ("likelihood", "--ckpt_path", str(path), "--data", "EmbeddedMNIST", "--num", "4", *LOOSE)
    cli.main([*command, "--batch_size", "2"])
    assert "likelihood" in capsys.readouterr().err
    cli.main([*command, "--quiet"])
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_clear_line(digits_checkpoint, capsys, mistake):
    options, message = MISTAKES[mistake]
    with pytest.raises(SystemExit) as done:
        cli.main(["likelihood", "--ckpt_path", str(digits_checkpoint[0]), *options])
    output = capsys.readouterr().err.strip()
    assert done.value.code == 1
    assert message in output
    assert output.splitlines()[-1].startswith("lightning: error: ")
    assert "Traceback" not in output
