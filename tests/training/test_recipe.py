import io
from decimal import Decimal
from enum import Enum, IntEnum
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import diffusion_lightning
from diffusion_lightning import (
    VPSDE,
    DenoisingScoreMatching,
    Heun,
    LogNormalTimes,
    NoisePrediction,
    PowerVESDE,
    PredictorCorrector,
    ProbabilityFlowODE,
    Sampler,
    ScoreModule,
    ScoreNet,
    UNet,
)
from diffusion_lightning.training.recipe import build, describe, plain


class Base:
    def __init__(self, size: int, names: tuple[str, ...] = ("a",)) -> None:
        self.size, self.names = size, names


class Child(Base):
    """Passes on what it does not name."""

    def __init__(self, colour: str | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.colour = colour


class Shelf:
    def __init__(self, item: Base, others: list[Base] | None = None) -> None:
        self.item, self.others = item, others


class Secretive:
    def __init__(self, key: int) -> None:
        self.code = key


class Trap(nn.Module):
    """Tells when it is made."""

    made = 0

    def __init__(self) -> None:
        super().__init__()
        Trap.made += 1


@pytest.mark.parametrize("value", [None, True, 3, 0.25, "text", [1, [2.0, None]], {"a": [1], "b": {"c": "d"}}])
def test_plain_values_are_their_own_recipe(value):
    assert describe(value) == value


def test_a_tuple_becomes_a_list():
    assert describe((1, (2, 3))) == [1, [2, 3]]


def test_objects_nest():
    shelf = describe(Shelf(Base(1, ("x", "y")), [Child("red", size=2)]))
    assert shelf == {
        "class_path": f"{__name__}.Shelf",
        "init_args": {
            "item": {"class_path": f"{__name__}.Base", "init_args": {"size": 1, "names": ["x", "y"]}},
            "others": [{"class_path": f"{__name__}.Child", "init_args": {"colour": "red", "size": 2, "names": ["a"]}}],
        },
    }
    made = build(Shelf, shelf["init_args"])
    assert describe(made) == shelf
    assert type(made.others[0]) is Child


def test_an_argument_that_a_method_hides_is_read_with_an_underscore():
    assert describe(PowerVESDE(sigma=7.0))["init_args"] == {"sigma": 7.0}
    assert build(PowerVESDE, {"sigma": 7.0})._sigma == 7.0


class Colour(Enum):
    RED = "red"


class Level(IntEnum):
    HIGH = 3


class Word(str, Enum):
    COSINE = "cos"


OF_LIBRARIES = [
    (np.float64(1e-3), 1e-3),
    (np.float32(0.5), 0.5),
    (np.int64(3), 3),
    (np.bool_(True), True),
    (np.str_("cos"), "cos"),
    (np.array(0.25), 0.25),
    (torch.tensor(0.25, requires_grad=True), 0.25),
    (torch.tensor(7), 7),
    (Decimal("0.5"), 0.5),
    (Fraction(1, 4), 0.25),
    (Colour.RED, "red"),
    (Level.HIGH, 3),
    (Word.COSINE, "cos"),
    (Path("a/b"), "a/b"),
    ((np.float64(0.9), Level.HIGH), [0.9, 3]),
    ({np.int64(1): {"a": [np.float32(0.5)]}}, {1: {"a": [0.5]}}),
]


@pytest.mark.parametrize(("value", "expected"), OF_LIBRARIES, ids=lambda value: type(value).__name__)
def test_numbers_of_other_libraries_become_numbers_and_enums_their_values(value, expected):
    """Exactly these types: a checkpoint with any other is refused when it is read."""
    recipe = describe(value)
    assert recipe == expected
    file = io.BytesIO()
    torch.save({"recipe": recipe, "plain": plain(value)}, file)
    file.seek(0)
    assert torch.load(file, weights_only=True)["recipe"] == expected


def test_what_an_optimizer_is_given_is_plain_before_it_gets_it():
    made = plain(partial(torch.optim.AdamW, lr=np.float64(1e-3), betas=(np.float32(0.5), Fraction(3, 4))))
    assert made.func is torch.optim.AdamW
    assert made.keywords == {"lr": 1e-3, "betas": (0.5, 0.75)}
    assert [type(value) for value in (made.keywords["lr"], *made.keywords["betas"])] == [float] * 3
    assert plain(torch.optim.AdamW) is torch.optim.AdamW


class Painted:
    def __init__(self, colour: Colour, others: list[Colour] | None = None, name: str = "", path: Path = Path()) -> None:
        self.colour, self.others, self.name, self.path = colour, others, name, path


def test_an_argument_whose_type_is_an_enum_gets_its_member_back():
    painted = Painted(Colour.RED, [Colour.RED], Word.COSINE, Path("a"))
    recipe = describe(painted)["init_args"]
    assert recipe == {"colour": "RED", "others": ["RED"], "name": "cos", "path": "a"}
    again = build(Painted, recipe)
    assert (again.colour, again.others, again.name, again.path) == (Colour.RED, [Colour.RED], "cos", Path("a"))


UNWRITABLE = {
    "array": (np.ones(2), r"array\(\[1., 1.\]\): is of type ndarray, which checkpoints cannot hold: give a list"),
    "tensor": (torch.ones(2), r"tensor\(\[1., 1.\]\): is of type Tensor, which checkpoints cannot hold: give a list"),
    "set": ({1}, r"\{1\}: is of type set, which checkpoints cannot hold: give a list"),
    "range": (range(3), r"range\(0, 3\): is of type range, which checkpoints cannot hold: give a list"),
    "complex": (1j, r"1j: is of type complex, which checkpoints cannot hold: give a number or a text"),
    "dtype": (
        torch.float32,
        r"torch.float32: is of type dtype, which checkpoints cannot hold: give a number",
    ),
    "date": (np.datetime64("2020-01-01"), r"is of type date, which checkpoints cannot hold"),
    "object": (object(), r"is of type object, which checkpoints cannot hold"),
    "argument": (partial(torch.optim.AdamW, betas=np.ones(2)), r"^betas=.*: is of type ndarray"),
    "by position": (partial(torch.optim.AdamW, 0.1), r"partial\(AdamW, …\): give its arguments by name"),
}


@pytest.mark.parametrize("what", UNWRITABLE)
def test_what_no_recipe_can_hold_is_refused_with_what_would_be_right(what):
    value, message = UNWRITABLE[what]
    with pytest.raises(ValueError, match=message):
        describe(value)


OBJECTS = [
    VPSDE(0.2, 12.0),
    NoisePrediction(),
    DenoisingScoreMatching("karras", LogNormalTimes(-1.0, 1.3), "mean", sigma_data=0.6),
    Heun(7, rho=6.0, churn=2.0),  # its infinite limit must survive too
    PredictorCorrector(5, corrector=None, t_min=0.01),
    ProbabilityFlowODE("rk4", steps=3),
    UNet(channels=(4, 8), attention_levels=(1,), num_heads=2, embed_dim=8, num_classes=3),
    ScoreNet(channels=(32, 64), embed_dim=8),
]


@pytest.mark.parametrize("value", OBJECTS, ids=lambda value: type(value).__name__)
def test_round_trip(value):
    recipe = describe(value)
    again = build(type(value), recipe["init_args"])
    assert type(again) is type(value)
    assert describe(again) == recipe
    if isinstance(value, nn.Module):
        again.load_state_dict(value.state_dict())


def test_every_class_that_can_be_configured_keeps_its_arguments():
    described = 0
    of_a_measurement = (diffusion_lightning.PosteriorSampler, diffusion_lightning.SDEdit)  # which is no setting
    for name in ("Sampler", "SDE", "Parameterization"):
        base = getattr(diffusion_lightning, name)
        for cls in (getattr(diffusion_lightning, name) for name in diffusion_lightning.__all__):
            if (
                isinstance(cls, type)
                and issubclass(cls, base)
                and cls is not base
                and not issubclass(cls, of_a_measurement)
            ):
                recipe = describe(cls())
                assert describe(build(cls, recipe["init_args"])) == recipe
                described += 1
    assert described >= 11


def test_classes_and_partials_of_them():
    adam = "torch.optim.adam.Adam"
    assert describe(torch.optim.Adam) == {"class_path": adam, "init_args": {}}
    assert describe(partial(torch.optim.Adam, lr=0.5)) == {"class_path": adam, "init_args": {"lr": 0.5}}
    # what the parser makes of a recipe is itself a partial, of a helper function
    module = build(
        ScoreModule,
        {
            "network": describe(UNet(channels=(4,), embed_dim=8, middle_attention=False)),
            "sde": describe(VPSDE()),
            "parameterization": describe(NoisePrediction()),
            "optimizer": {"class_path": "torch.optim.Adam", "init_args": {"lr": 0.5}},
        },
    )
    recipe = describe(module.optimizer)
    assert recipe["class_path"] == adam
    assert recipe["init_args"]["lr"] == 0.5


@pytest.mark.parametrize("function", [lambda p: p, partial(lambda p: p, 1), len], ids=["lambda", "partial", "built-in"])
def test_functions_cannot_be_described(function):
    with pytest.raises(ValueError, match=r"is a function, which checkpoints cannot hold: give functools\.partial"):
        describe(function)


def test_an_argument_that_is_not_kept_is_named():
    with pytest.raises(
        ValueError, match=r"Secretive does not keep its constructor argument 'key': add `self\.key = key`"
    ):
        describe(Secretive(3))
    with pytest.raises(ValueError, match="Secretive does not keep"):
        describe([{"deep": Secretive(3)}])


class NeedsSampler:
    def __init__(self, sampler: Sampler, network: nn.Module | None = None) -> None:
        self.sampler, self.network = sampler, network


@pytest.mark.parametrize(
    "recipe",
    [
        {"class_path": f"{__name__}.Trap", "init_args": {}},
        f"{__name__}.Trap",
        {"class_path": "subprocess.Popen", "init_args": {"args": ["true"]}},
        {"class_path": "os.system", "init_args": {"command": "true"}},
        {"class_path": "no.such.module", "init_args": {}},
        {"class_path": "diffusion_lightning.Heun", "init_args": {"stepz": 3}},
        {"class_path": "diffusion_lightning.Heun", "init_args": {"steps": "many"}},
        {"class_path": "diffusion_lightning.Heun", "init_args": {"steps": 0}},
        3,
    ],
)
def test_what_does_not_fit_is_refused_in_one_line_and_not_made(recipe, monkeypatch):
    monkeypatch.setattr("subprocess.Popen.__init__", lambda *_, **__: pytest.fail("it was run"))
    before = Trap.made
    with pytest.raises(ValueError, match="cannot build NeedsSampler from its recipe") as caught:
        build(NeedsSampler, {"sampler": recipe})
    assert "\n" not in str(caught.value)
    assert Trap.made == before


def test_nothing_is_made_before_all_of_it_fits():
    before = Trap.made
    trap = {"class_path": f"{__name__}.Trap", "init_args": {}}
    with pytest.raises(ValueError, match="cannot build"):
        build(NeedsSampler, {"network": trap, "sampler": {"class_path": "torch.nn.Linear", "init_args": {}}})
    assert Trap.made == before


def test_missing_and_unknown_arguments():
    with pytest.raises(ValueError, match="cannot build Base"):
        build(Base, {})
    with pytest.raises(ValueError, match="cannot build Base"):
        build(Base, {"size": 1, "sise": 2})
