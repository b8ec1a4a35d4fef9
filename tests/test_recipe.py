from functools import partial
from typing import Any

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
from diffusion_lightning.recipe import build, describe


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
    for name in ("Sampler", "SDE", "Parameterization"):
        base = getattr(diffusion_lightning, name)
        for cls in (getattr(diffusion_lightning, name) for name in diffusion_lightning.__all__):
            if isinstance(cls, type) and issubclass(cls, base) and cls is not base:
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
