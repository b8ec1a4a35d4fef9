"""What samples are asked for: classes by name or number, conditions from a file."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from diffusion_lightning import VPSDE, Heun, NetworkDenoiser, NoisePrediction
from diffusion_lightning.commands.asked import asked_for, class_numbers
from diffusion_lightning.commands.usage import UsageError
from diffusion_lightning.training.trained import TrainedModel

ANIMALS = ["bird", "cat", "dog"]


class Told(nn.Module):
    """What it is told, and the widths of it."""

    def __init__(self, *conditions: str, num_classes: int | None = None, condition_dim: int | None = None) -> None:
        super().__init__()
        self.conditions = conditions
        self.num_classes = num_classes
        self.condition_dim = condition_dim

    def forward(self, x: Tensor, time_signal: Tensor, **conditions: Tensor) -> Tensor:
        return torch.zeros_like(x)


def model(*conditions: str, dropout: float = 0.1, columns: list[str] | None = None) -> TrainedModel:
    network = Told(*conditions, num_classes=3 if "labels" in conditions else None, condition_dim=2)
    denoiser = NetworkDenoiser(network, VPSDE(), NoisePrediction())
    names = ANIMALS if "labels" in conditions else None
    return TrainedModel(denoiser, Heun(steps=2), (1, 4, 4), names, condition_dropout=dropout, vector_names=columns)


@pytest.mark.parametrize(("given", "numbers"), [(["cat", "dog"], [1, 2]), ([0, "dog", 0], [0, 2, 0]), (["bird"], [0])])
def test_classes_are_named_or_numbered(given, numbers):
    assert class_numbers(given, model("labels")) == numbers


def test_a_name_that_is_a_number_is_a_name():
    named = model("labels")
    named.class_names = ["2", "1", "0"]
    assert class_numbers([0, "2"], named) == [2, 0]


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (["cta"], "labels=['cta']: cta is no class of the checkpoint: did you mean cat?"),
        ([3], "labels=[3]: 3 is no class of the checkpoint: must be classes from 0 to 2, or bird, cat, dog"),
        ([-1], "labels=[-1]: -1 is no class"),
        ([], "labels=[]: must be classes from 0 to 2, or bird, cat, dog"),
    ],
)
def test_what_is_no_class_is_told_with_the_nearest(given, told):
    with pytest.raises(UsageError) as error:
        class_numbers(given, model("labels"))
    assert str(error.value).startswith(told)


def test_labels_come_in_turn():
    num, asked = asked_for(["cat", 0], None, 5, model("labels"))
    assert num == 5
    assert asked["labels"].tolist() == [1, 0, 1, 0, 1]
    assert asked_for(None, None, None, model("labels")) == (64, {})
    assert asked_for(None, None, None, model("vector")) == (64, {})  # none is given


@pytest.fixture
def write(tmp_path):
    def write(text: str) -> str:
        (tmp_path / "c.csv").write_text(text)
        return str(tmp_path / "c.csv")

    return write


def test_a_table_gives_the_columns_of_the_training_data(write):
    told = model("vector", columns=["temperature", "angle"])
    file = write("angle,note,temperature\n30,a,0.5\n-60,b,1e3\n")
    num, asked = asked_for(None, file, None, told)
    assert num == 2
    assert asked.keys() == {"vector"}
    assert asked["vector"].tolist() == [[0.5, 30], [1000, -60]]
    num, asked = asked_for(None, file, 3, told)  # of each row
    assert num == 6
    assert asked["vector"][:, 1].tolist() == [30, 30, 30, -60, -60, -60]
    assert asked_for(None, write("a,b\n1,2\n"), None, model("vector"))[1]["vector"].tolist() == [[1, 2]]


def test_a_table_may_name_classes(write):
    told = model("labels", "vector", columns=["a", "b"])
    asked = asked_for(None, write("a,b,label\n1,2,dog\n3,4,0\n"), 2, told)[1]
    assert asked["labels"].tolist() == [2, 2, 0, 0]
    asked = asked_for(["cat"], write("a,b\n1,2\n3,4\n"), None, told)[1]
    assert asked["labels"].tolist() == [1, 1]


def test_arrays_are_named_as_conditions(tmp_path):
    levels = np.array([[[[0], [255]]]], dtype=np.uint8)
    np.savez(tmp_path / "c.npz", picture=levels, tokens=np.ones((1, 3, 2)), labels=np.array([1]))
    asked = asked_for(None, str(tmp_path / "c.npz"), 2, model("labels", "picture", "tokens"))[1]
    assert asked["picture"].tolist() == [[[[-1, 1]]]] * 2
    assert asked["tokens"].shape == (2, 3, 2)
    assert asked["tokens"].dtype == torch.float32
    assert asked["labels"].tolist() == [1, 1]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("a,b\n1,\n", r"'' in row 2 of column 'b' is no number"),
        ("a,b\n1,x\n", r"'x' in row 2 of column 'b' is no number"),
        ("a,b\n1,2\n3,nan\n", r"'nan' in row 3 of column 'b'"),
        ("a,c\n1,2\n", r"has no column 'b': its first row must name a, b"),
        ("a,b\n", r"has no column 'a'"),
        ("a,b\n1\n", r"'' in row 2 of column 'b'"),
        ("a,b,label\n1,2,cow\n", r"labels=\['cow'\]: cow is no class"),
    ],
)
def test_a_table_that_is_none_is_told(write, text, told):
    with pytest.raises(UsageError, match=told):
        asked_for(None, write(text), None, model("labels", "vector", columns=["a", "b"]))


@pytest.mark.parametrize(
    ("arrays", "told"),
    [
        ({"vector": np.ones((2, 3))}, "a vector has 3 numbers: must be 2"),
        ({"vector": np.ones((2, 2)), "tokens": np.ones((3, 1, 1))}, "rows of vector 2, tokens 3: must be equally many"),
        ({"vector": np.ones((0, 2))}, "rows of vector 0"),
        ({}, "rows of nothing"),
        ({"angle": np.ones(2)}, "has an array 'angle': must be named vector, tokens"),
        ({"picture": np.ones((2, 1, 4, 4))}, "has picture, which the model is not told: it is told vector, tokens"),
        ({"vector": np.array(["a", "b"])}, "vector is <U1"),
        ({"vector": np.array(1.0)}, r"vector is float64 \(\): must be rows of numbers"),
    ],
)
def test_arrays_that_are_no_conditions_are_told(tmp_path, arrays, told):
    np.savez(tmp_path / "c.npz", **arrays)
    with pytest.raises(UsageError, match=told):
        asked_for(None, str(tmp_path / "c.npz"), None, model("vector", "tokens"))


def test_a_file_that_is_none_is_told(tmp_path):
    (tmp_path / "c.npz").write_text("no archive")
    (tmp_path / "c.csv").write_bytes(b"\xff\xfe\x00")
    for name, told in (("c.npz", "is no .npz"), ("c.csv", "is no CSV"), ("c.txt", "must be an .npz or .csv file")):
        with pytest.raises(UsageError, match=told):
            asked_for(None, str(tmp_path / name), None, model("vector"))
    with pytest.raises(FileNotFoundError, match="there is no such file"):
        asked_for(None, str(tmp_path / "d.csv"), None, model("vector"))


def test_a_model_that_never_did_without_is_asked_for_something():
    with pytest.raises(UsageError, match=r"told vector, and was never without: give --condition file.npz, or .csv"):
        asked_for(None, None, None, model("vector", dropout=0))
    assert asked_for(None, None, 3, model("labels", dropout=0)) == (3, {})
