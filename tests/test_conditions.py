"""Conditions by their names, and what stands for none."""

import pytest
import torch
from torch import nn

from diffusion_lightning import VPSDE, DiffusersUNet, NetworkDenoiser, NoisePrediction, UNet
from diffusion_lightning.conditions import by_name, null_of, taken_by


@pytest.mark.parametrize(
    ("tensor", "name"),
    [
        (torch.zeros(3, dtype=torch.int64), "labels"),
        (torch.zeros(3, dtype=torch.int32), "labels"),
        (torch.zeros(3, 2), "vector"),
        (torch.zeros(3, 5, 2), "tokens"),
        (torch.zeros(3, 1, 8, 8), "picture"),
        (torch.zeros(3, 1, 8, 8, 8), "picture"),
    ],
)
def test_a_tensor_is_named_by_its_type_and_axes(tensor, name):
    assert by_name(tensor).keys() == {name}
    assert by_name(tensor)[name] is tensor
    assert by_name({name: tensor}) == {name: tensor}


@pytest.mark.parametrize(
    "tensor", [torch.zeros(3), torch.zeros(3, 2, dtype=torch.int64), torch.zeros(3, dtype=torch.bool), torch.zeros(())]
)
def test_a_tensor_that_is_no_condition_is_told_of(tensor):
    with pytest.raises(ValueError, match=r"a condition is \w+ \(.*\): must be labels, int64 \(B,\), or"):
        by_name(tensor)


def test_a_name_that_is_none_is_told_of():
    with pytest.raises(ValueError, match="the name 'angle': must be one of labels, vector, picture, tokens"):
        by_name({"angle": torch.zeros(3, 1)})


class Told(nn.Module):
    conditions = ("vector", "labels")
    null_class = 4


def test_the_null_is_the_null_class_and_nan():
    null = null_of(Told(), {"labels": torch.arange(3), "vector": torch.zeros(3, 2)})
    assert null is not None
    assert null["labels"].tolist() == [4, 4, 4]
    assert null["labels"].dtype == torch.int64
    assert null["vector"].isnan().all()
    assert null["vector"].shape == (3, 2)


def test_what_a_network_is_not_told_has_no_null():
    assert null_of(Told(), {"picture": torch.zeros(3, 1, 8, 8)}) is None
    assert null_of(Told(), {}) is None
    no_null_class = DiffusersUNet(config={"in_channels": 1, "out_channels": 1, "num_class_embeds": 3})
    assert taken_by(no_null_class) == ("labels",)
    assert null_of(no_null_class, {"labels": torch.arange(3)}) is None


def test_a_denoiser_asks_its_network():
    denoiser = NetworkDenoiser(UNet(channels=(8,), num_classes=3), VPSDE(), NoisePrediction())
    null = denoiser.null(labels=torch.arange(2))
    assert null is not None
    assert null["labels"].tolist() == [3, 3]
    assert denoiser.null(labels=None) is None
    assert taken_by(UNet(channels=(8,))) == ()
