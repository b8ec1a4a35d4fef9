from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from diffusion_lightning import MLP, DiffusersUNet, DoubleConvUNet, Points, ScoreNet, UNet
from diffusion_lightning.data.base import BatchDataModule
from diffusion_lightning.data.tensor_images import TensorImages
from diffusion_lightning.training.compatibility import check_batch, check_compatible, check_set


def unet(**kwargs: Any) -> UNet:
    return UNet(**{"channels": (4,), "num_res_blocks": 1, "embed_dim": 8, "middle_attention": False, **kwargs})


def diffusers(**kwargs: Any) -> DiffusersUNet:
    small = {
        "block_out_channels": [32, 32],
        "down_block_types": ["DownBlock2D"] * 2,
        "up_block_types": ["UpBlock2D"] * 2,
    }
    return DiffusersUNet(config={"layers_per_block": 1, "add_attention": False, **small, **kwargs})


class Data:
    def __init__(self, **attributes: Any) -> None:
        vars(self).update(attributes)


FITS = {
    "no attributes": (lambda: unet(num_classes=7), {}),
    "classes of none": (unet, {"shape": (1, 8, 8), "num_classes": 3}),
    "as many classes": (lambda: unet(num_classes=3), {"shape": (1, 8, 8), "num_classes": 3}),
    "one class for no classes": (lambda: unet(num_classes=1), {"shape": (1, 8, 8), "num_classes": 1}),
    "sides of any length": (unet, {"shape": [1, 7, 13]}),
    "patches": (lambda: unet(patch_size=4), {"shape": (1, 8, 12)}),
    "ScoreNet": (ScoreNet, {"shape": (1, 17, 17), "num_classes": 10}),
    "DoubleConvUNet": (DoubleConvUNet, {"shape": (3, 9, 8)}),
    "MLP": (MLP, {"shape": (2,), "num_classes": 2}),
    "DiffusersUNet": (lambda: diffusers(num_class_embeds=2), {"shape": (3, 6, 6), "num_classes": 2}),
}


@pytest.mark.parametrize("case", FITS)
def test_what_fits_passes(case):
    make, attributes = FITS[case]
    check_compatible(make(), Data(**attributes))


MISFITS: dict[str, tuple[Any, dict[str, Any], str]] = {
    "channels": (
        unet,
        {"shape": (3, 8, 8)},
        "model.network.in_channels=1: the examples of Data, (3, 8, 8), have 3 channels: give "
        "--model.network.in_channels 3",
    ),
    "patches": (
        lambda: unet(patch_size=4),
        {"shape": (1, 30, 28)},
        "model.network.patch_size=4: does not divide the sides of the examples of Data, (1, 30, 28), give "
        "--model.network.patch_size 2",
    ),
    "too few classes": (
        lambda: unet(num_classes=2),
        {"shape": (1, 8, 8), "num_classes": 3, "class_names": ["a", "b", "c"]},
        "model.network.num_classes=2: Data has 3 classes (a, b, c), and the network has not one for each: give "
        "--model.network.num_classes 3, or --model.network.num_classes null to train without",
    ),
    "too many classes": (
        lambda: unet(num_classes=10),
        {"shape": (1, 8, 8), "num_classes": 3},
        "model.network.num_classes=10: Data has 3 classes, and samples would be asked for of classes never seen: give "
        "--model.network.num_classes 3, or --model.network.num_classes null to train without",
    ),
    "classes of none": (
        lambda: unet(num_classes=10),
        {"num_classes": 1},
        "model.network.num_classes=10: Data has no classes, and samples would be asked for of classes never seen: give "
        "--model.network.num_classes null",
    ),
    "everything": (
        lambda: unet(patch_size=4, num_classes=2),
        {"shape": (3, 7, 7), "num_classes": 1},
        "model.network.in_channels=1: the examples of Data, (3, 7, 7), have 3 channels: give "
        "--model.network.in_channels 3; model.network.patch_size=4: does not divide the sides of the examples of Data, "
        "(3, 7, 7), give --model.network.patch_size 1; model.network.num_classes=2: Data has no classes, and samples "
        "would be asked for of classes never seen: give --model.network.num_classes null",
    ),
    "ScoreNet": (
        ScoreNet,
        {"shape": (1, 16, 16), "image_size": 16},
        "model.network=ScoreNet: does not take the examples of Data, (1, 16, 16), it says: x must be at least 17×17 "
        "for 4 stages, got (1, 1, 16, 16): give --data.image_size 17",
    ),
    "DoubleConvUNet": (
        DoubleConvUNet,
        {"shape": (3, 5, 5), "image_size": None},
        "levels, got (1, 3, 5, 5): give --data.image_size 8",
    ),
    "data of a fixed size": (ScoreNet, {"shape": (1, 9, 9)}, "give other arguments of it, or other data"),
    "DiffusersUNet": (diffusers, {"shape": (3, 7, 7), "image_size": 7}, "give --data.image_size 8"),
    "DiffusersUNet's options": (
        lambda: diffusers(num_class_embeds=4),
        {"shape": (1, 8, 8), "num_classes": 2},
        "give --model.network.config.in_channels 1 --model.network.config.out_channels 1; model.network.num_classes=4: "
        "Data has 2 classes, and samples would be asked for of classes never seen: give "
        "--model.network.config.num_class_embeds 2",
    ),
    "images for an MLP": (MLP, {"shape": (3, 8, 8)}, "such as --model.network UNet --model.network.in_channels 3"),
    "points of a space": (MLP, {"shape": (3,)}, "model.network.dim=2: the examples of Data, (3,), have 3 coordinates"),
    "points for a UNet": (unet, {"shape": (2,)}, "give --model.network diffusion_lightning.MLP --model.network.dim 2"),
}


@pytest.mark.parametrize("case", MISFITS)
def test_what_does_not_fit_is_told_with_what_to_type(case):
    make, attributes, message = MISFITS[case]
    with pytest.raises(ValueError) as error:  # noqa: PT011 — the whole message is compared
        check_compatible(make(), Data(**attributes))
    text = str(error.value)
    assert text == message if message.startswith("model.network") and case != "points of a space" else message in text
    assert "\n" not in text


class Mine(nn.Module):
    """A network that tells nothing of itself, looks at its values and draws, as one may."""

    def __init__(self, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 1, 3, stride, padding=1)
        self.norm = nn.BatchNorm2d(1)
        self.plain = torch.ones(1)

    def forward(self, x: torch.Tensor, t: torch.Tensor, labels: torch.Tensor | None = None) -> torch.Tensor:
        if float(x.sum()) > 1e9:
            return x
        return self.norm(self.conv(x)) + self.plain * torch.randn_like(x[:, :, :1, :1])


def test_a_network_of_ones_own_is_tried_and_left_as_it_is():
    network = Mine()
    network.norm.eval()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    drawn = torch.get_rng_state()
    check_compatible(network, Data(shape=(1, 8, 8)))
    with pytest.raises(ValueError, match=r"Mine: does not take .*expected input\[1, 3, 8, 8\] to have 1 channels"):
        check_compatible(network, Data(shape=(3, 8, 8)))
    assert torch.equal(torch.get_rng_state(), drawn)
    assert [network.training, network.conv.training, network.norm.training] == [True, True, False]
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())
    with pytest.raises(ValueError, match=r"it returns a tensor \(1, 1, 4, 4\), not a tensor of the shape of x"):
        check_compatible(Mine(stride=2), Data(shape=(1, 8, 8)))


def test_a_network_that_needs_another_device_is_left_to_its_first_batch(monkeypatch):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    check_compatible(Mine(), Data(shape=(3, 8, 8)))


def test_a_trained_network_of_more_classes_is_warned_of():
    data = Data(shape=(1, 8, 8), num_classes=3)
    with pytest.warns(UserWarning, match=r"num_classes=10: Data has 3 classes, .* it goes on"):
        check_compatible(unet(num_classes=10), data, is_new=False)
    with pytest.raises(ValueError, match="num_classes=2: Data has 3 classes"):
        check_compatible(unet(num_classes=2), data, is_new=False)


# --- batches --------------------------------------------------------------------------------------------------------

X = torch.zeros(4, 1, 8, 8)

BATCHES: dict[str, tuple[Any, str]] = {
    "x alone": (X, r"Data: a batch is a tensor \(4, 1, 8, 8\): must be \(x, labels\)"),
    "three": ([X, X, X], "Data: a batch is a list of 3: must be"),
    "another shape": (
        (X[..., 1:], torch.zeros(4).long()),
        r"has examples of shape \(1, 8, 7\), but its attribute shape",
    ),
    "no floats": ((X.byte(), torch.zeros(4).long()), "its x are uint8: must be floats, as ImageDataModule"),
    "a float for each": (
        (X, torch.zeros(4)),
        r"its labels are float32 \(4,\): UNet has num_classes=3 and takes the num",
    ),
    "a vector for each": ((X, torch.zeros(4, 3)), r"its labels are float32 \(4, 3\): UNet has num_classes=3"),
    "columns": (
        (X, torch.zeros(4, 1).long()),
        r"its labels are int64 \(4, 1\): .*int64 \(B,\): give such, or --model.net",
    ),
    "bytes": ((X, torch.zeros(4).byte()), r"its labels are uint8 \(4,\)"),
    "texts": ((X, ["a"] * 4), "its labels are a list of 4"),
    "a class too many": ((X, torch.tensor([0, 1, 2, 3])), "has labels from 0 to 3: the network's are 0 … 2"),
    "a class below": ((X, torch.tensor([0, 1, 2, -1])), "has labels from -1 to 2"),
}


@pytest.mark.parametrize("case", BATCHES)
def test_a_batch_that_cannot_be_trained_on(case):
    batch, message = BATCHES[case]
    with pytest.raises(ValueError, match=message):
        check_batch(unet(num_classes=3), batch, Data(shape=(1, 8, 8)))


def test_a_network_without_classes_takes_any_labels():
    for labels in (torch.zeros(4, 3), torch.full((4,), 99), ["a"] * 4):
        check_batch(unet(), (X, labels), None)
    check_batch(unet(num_classes=3), (X, torch.tensor([0, 1, 2, 2], dtype=torch.int32)), Data())


def test_labels_among_other_conditions_are_looked_at_too():
    vector = torch.zeros(4, 2)
    check_batch(unet(num_classes=3), (X, {"labels": torch.tensor([0, 1, 2, 2]), "vector": vector}), Data())
    with pytest.raises(ValueError, match="has labels from 0 to 3: the network's are 0 … 2"):
        check_batch(unet(num_classes=3), (X, {"labels": torch.tensor([0, 1, 2, 3]), "vector": vector}), Data())
    with pytest.raises(ValueError, match=r"a batch has no labels, which UNet is told \(num_classes=3\)"):
        check_batch(unet(num_classes=3), (X, {"vector": vector}), Data())


def test_all_labels_of_a_set_are_looked_at(make_data):
    images = torch.zeros(3, 1, 8, 8, dtype=torch.uint8)
    data = make_data()
    data.shape = (1, 8, 8)
    check_set(unet(num_classes=3), TensorImages(images, torch.tensor([0, 1, 2])), data)
    with pytest.raises(ValueError, match="EmbeddedMNIST: has labels from 0 to 3"):
        check_set(unet(num_classes=3), TensorImages(images, torch.tensor([0, 1, 3])), data)
    with pytest.raises(ValueError, match="EmbeddedMNIST: has labels from 0 to 3"):
        check_set(unet(num_classes=3), TensorDataset(images.float(), torch.tensor([0, 1, 3])), data)


# --- before a run begins --------------------------------------------------------------------------------------------


class Spectra(BatchDataModule):
    """Images of 12 channels with a vector for each."""

    num_classes = 3

    def __init__(self, channels: int = 12, labels: torch.Tensor | None = None, scale: float = 1.0) -> None:
        super().__init__(batch_size=4)
        self.shape = (channels, 8, 8)
        self.labels = torch.arange(16) % 3 if labels is None else labels
        self.scale = scale

    def sets(self) -> tuple[TensorDataset, TensorDataset]:
        x = self.scale * torch.linspace(-1, 1, 16).view(16, 1, 1, 1).expand(16, *self.shape)
        examples = TensorDataset(x, self.labels)
        return examples, examples


@pytest.fixture
def begun(make_trainer, monkeypatch):
    """A trainer, and the list of what has begun by the time something fails."""
    from lightning.pytorch.loggers import CSVLogger

    seen: list[str] = []
    monkeypatch.setattr(CSVLogger, "experiment", property(lambda self: seen.append("logger")))
    trainer = make_trainer(logger=CSVLogger("logs"))
    return SimpleNamespace(trainer=trainer, seen=seen)


def test_float_conditions_are_told_before_a_logger_begins(begun, make_module):
    module = make_module(network=unet(in_channels=12, num_classes=3))
    with pytest.raises(ValueError, match=r"Spectra: its labels are float32 \(1, 4\): UNet has num_classes=3"):
        begun.trainer.fit(module, datamodule=Spectra(labels=torch.zeros(16, 4)))
    assert begun.seen == []


@pytest.mark.parametrize("stage", ["fit", "validate", "test"])
def test_python_users_are_told_in_every_stage(make_trainer, make_module, stage):
    with pytest.raises(ValueError, match=r"model\.network\.num_classes=2: Spectra has 3 classes"):
        getattr(make_trainer(), stage)(make_module(network=unet(in_channels=12, num_classes=2)), datamodule=Spectra())


def test_data_without_a_module_are_told_by_the_first_batch(make_trainer, make_module):
    loader = torch.utils.data.DataLoader(Spectra(labels=torch.zeros(16, 4)).sets()[0], batch_size=4)
    with pytest.raises(ValueError, match=r"data: its labels are float32 \(4, 4\)"):
        make_trainer().fit(make_module(network=unet(in_channels=12, num_classes=3)), loader)


def test_points_of_two_classes_train_without(make_trainer, make_module):
    make_trainer(limit_train_batches=1, limit_val_batches=0).fit(
        make_module(network=MLP()), datamodule=Points(num_points=256)
    )


# --- conditions that are no classes ---------------------------------------------------------------------------------


class Told(nn.Module):
    """A network that is told what its arguments say, as the networks of the package are."""

    def __init__(self, **widths: int) -> None:
        super().__init__()
        names = {"num_classes": "labels", "condition_dim": "vector", "condition_channels": "picture"}
        names["context_dim"] = "tokens"
        self.conditions = tuple(names[width] for width in widths)
        for width in names:
            setattr(self, width, widths.get(width))

    def forward(self, x: torch.Tensor, t: torch.Tensor, **conditions: torch.Tensor) -> torch.Tensor:
        assert conditions.keys() == set(self.conditions)
        return x


SPECTRUM = {"shape": (1, 8, 8), "num_classes": 1, "condition_dim": 4, "condition_channels": None, "context_dim": None}

UNTOLD = {
    "no vector": (
        {"condition_dim": 2},
        {"condition_dim": None},
        "model.network.condition_dim=2: Data gives no vector: give --model.network.condition_dim null",
    ),
    "another vector": (
        {"condition_dim": 2},
        {},
        "model.network.condition_dim=2: Data gives a vector of 4 numbers: give --model.network.condition_dim 4, or "
        "--model.network.condition_dim null to train without",
    ),
    "nobody listens": (
        {},
        {"condition": "columns"},
        "data.condition: Data gives a vector of 4 numbers, which the network is not told: give "
        "--model.network.condition_dim 4, or leave data.condition out",
    ),
    "no picture": (
        {"condition_dim": 4, "condition_channels": 1},
        {},
        "model.network.condition_channels=1: Data gives no picture: give --model.network.condition_channels null",
    ),
    "other tokens": (
        {"context_dim": 3},
        {"condition_dim": None, "context_dim": 5},
        "model.network.context_dim=3: Data gives tokens of 5 numbers each: give --model.network.context_dim 5, or "
        "--model.network.context_dim null to train without",
    ),
}


@pytest.mark.parametrize("case", UNTOLD)
def test_what_a_network_is_to_be_told_and_what_data_tell_are_held_together(case):
    widths, attributes, message = UNTOLD[case]
    with pytest.raises(ValueError) as error:  # noqa: PT011 — the whole message is compared
        check_compatible(Told(**widths), Data(**{**SPECTRUM, **attributes}))
    assert str(error.value) == message
    check_compatible(Told(condition_dim=4), Data(**SPECTRUM))
    check_compatible(Told(), Data(**SPECTRUM))  # which nobody has asked the data for
    check_compatible(Told(condition_dim=4), Data(shape=(1, 8, 8)))  # of data that do not say it, the batch tells


TOLD: dict[str, tuple[dict[str, int], Any, str]] = {
    "a vector of another length": (
        {"condition_dim": 2},
        torch.zeros(4, 3),
        r"Data: its vector is float32 \(4, 3\): Told takes floats \(B, 2\) for condition_dim=2; give "
        "--model.network.condition_dim 3",
    ),
    "whole numbers": (
        {"condition_dim": 2},
        {"vector": torch.zeros(4, 2).long()},
        r"vector is int64 \(4, 2\): Told takes",
    ),
    "a number for each": ({"condition_dim": 1}, torch.zeros(4), r"a condition is float32 \(4,\): must be .*; Told is"),
    "another number of rows": ({"condition_dim": 2}, torch.zeros(3, 2), r"its vector is float32 \(3, 2\): Told takes"),
    "none of it": (
        {"condition_dim": 2},
        torch.zeros(4).long(),
        r"a batch has no vector, which Told is told \(condition_",
    ),
    "one of two": (
        {"num_classes": 3, "condition_dim": 2},
        {"labels": torch.zeros(4).long()},
        r"no vector, which Told is told \(condition_dim=2\): give such, or --model.network.condition_dim null",
    ),
    "a class too many": (
        {"num_classes": 3, "condition_dim": 2},
        {"labels": torch.full((4,), 3), "vector": torch.zeros(4, 2)},
        "labels from 3 to 3: the network's are 0 … 2",
    ),
    "a name of nothing": (
        {"condition_dim": 2},
        {"angle": torch.zeros(4, 2)},
        "the name 'angle': must be one of labels",
    ),
    "a picture of more channels": (
        {"condition_channels": 1},
        torch.zeros(4, 3, 8, 8),
        r"its picture is float32 \(4, 3, 8, 8\): Told takes floats \(B, 1, …\) for condition_channels=1; give",
    ),
    "tokens": (
        {"context_dim": 6},
        torch.zeros(4, 9, 5),
        r"its tokens are float32 \(4, 9, 5\): Told takes floats \(B, L, 6\) for context_dim=6; give",
    ),
    "texts": (
        {"context_dim": 6},
        ["a"] * 4,
        "Data: a condition is of type list: must be a tensor, or tensors by name; Told is told tokens",
    ),
}


@pytest.mark.parametrize("case", TOLD)
def test_a_condition_that_a_network_cannot_be_told(case):
    widths, condition, message = TOLD[case]
    with pytest.raises(ValueError, match=message):
        check_batch(Told(**widths), (X, condition), Data(shape=(1, 8, 8)))


def test_conditions_that_fit_pass():
    labels, vector = torch.zeros(4).long(), torch.full((4, 2), torch.nan)
    check_batch(Told(condition_dim=2), (X, vector), Data())
    check_batch(Told(condition_dim=2), (X, {"labels": labels, "vector": vector}), Data())
    check_batch(Told(num_classes=3, condition_dim=2), (X, {"labels": labels, "vector": vector}), Data())
    check_batch(Told(num_classes=3), (X, {"labels": labels, "vector": vector}), Data())
    check_batch(Told(condition_channels=1), (X, X[..., ::4, ::4]), Data())
    check_batch(Told(context_dim=6), (X, torch.zeros(4, 0, 6)), Data())
    # what is still to be added is asked of the batch
    check_batch(Told(condition_channels=1), (X, labels), Data(), is_raw=True)
