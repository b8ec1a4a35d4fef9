"""A model's guidance: how it is spelt, what becomes of it in a checkpoint, and what is refused."""

import re
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from diffusion_lightning import (
    MLP,
    VPSDE,
    AutoGuidance,
    ClassifierFreeGuidance,
    ClassifierGuidance,
    Heun,
    NoisePrediction,
    ScoreModule,
    UNet,
    log_likelihood,
)
from diffusion_lightning.training.guided import name_of, with_weight
from diffusion_lightning.training.trained import TrainedModel

TWICE = partial(ClassifierFreeGuidance, weight=2.0, interval=[0.05, 3.0])
OLD = sorted((Path(__file__).parents[1] / "data" / "checkpoints").glob("*.ckpt"))


def network(num_classes: int | None = 10, **kwargs: Any) -> UNet:
    torch.manual_seed(1)
    made = UNet(
        **{"channels": (4,), "num_res_blocks": 1, "embed_dim": 8, "middle_attention": False, "patch_size": 4, **kwargs},
        num_classes=num_classes,
    )
    for weight in made.parameters():
        nn.init.normal_(weight, std=0.3)
    return made


@pytest.fixture
def make(make_module):
    """Makes a conditional module, its last layers not zero, that knows the shape of an example."""

    def make(**kwargs: Any) -> ScoreModule:
        parts = {"network": network(), "shape": (1, 28, 28), "condition_dropout": 0.1, "sampler": Heun(steps=4)}
        return make_module(**{**parts, **kwargs})

    return make


@pytest.fixture
def saved(tmp_path, make_trainer, make_data):
    """Trains a module for a step and saves its checkpoint under a name."""

    def save(module: ScoreModule, name: str = "x") -> Path:
        trainer = make_trainer(limit_train_batches=1, limit_val_batches=0)
        trainer.fit(module, datamodule=make_data())
        trainer.save_checkpoint(tmp_path / f"{name}.ckpt")
        return tmp_path / f"{name}.ckpt"

    return save


def drawn(model: Any, **kwargs: Any) -> torch.Tensor:
    return model.sample(num=3, generator=torch.Generator().manual_seed(5), **kwargs)


def test_the_module_s_own_another_and_none(make):
    module = make(guidance=TWICE)
    steered, spent = drawn(module), module.sampler.nfe
    by_hand = module.sampler(
        ClassifierFreeGuidance(module.denoiser.eval(), 2.0, (0.05, 3.0)),
        (3, 1, 28, 28),
        generator=torch.Generator().manual_seed(5),
        labels=torch.arange(3),
    )
    assert torch.equal(steered, by_hand)
    bare = drawn(module, guidance=None)
    assert module.sampler.nfe == 7
    assert 7 < spent < 14  # twice in the interval, once outside
    assert not torch.equal(steered, bare)
    assert torch.equal(drawn(make()), bare)
    assert torch.equal(drawn(make(), guidance=TWICE), steered)
    assert torch.equal(drawn(module, guidance=partial(TWICE, weight=1.0)), bare)
    assert module.sampler.nfe == 7
    # whose samples those of no class are
    assert not torch.equal(drawn(module, guidance=partial(ClassifierFreeGuidance, weight=0.0)), bare)


@pytest.mark.parametrize(("interval", "is_told"), [([0.05, 3.0], False), ([1.0, 1.001], True), (None, False)])
def test_an_interval_between_two_steps_is_told_of_once(make, recwarn, interval, is_told):
    model = make()
    for _ in range(2):
        drawn(model, guidance=partial(ClassifierFreeGuidance, weight=2.0, interval=interval))
    told = [str(warning.message) for warning in recwarn if "no step" in str(warning.message)]
    line = "guidance.interval=[1, 1.001]: no step of Heun was at a noise level in it, and nothing was guided"
    assert [text.partition(": give")[0] for text in told] == [line] * is_told


def test_guidance_that_does_nothing_is_told_of_nothing(make, recwarn):
    drawn(make(), guidance=partial(ClassifierFreeGuidance, weight=1.0, interval=[1.0, 1.001]))
    assert not [warning for warning in recwarn if "no step" in str(warning.message)]


def test_predictions_follow_the_module_s_own(make):
    indices = torch.arange(3)
    steered, bare = (make(guidance=maker).predict_step(indices, 0) for maker in (TWICE, None))
    assert not torch.equal(steered, bare)


def test_a_checkpoint_carries_it(make, saved):
    path = saved(make(guidance=TWICE))
    for model in (ScoreModule.load_from_checkpoint(path), TrainedModel.load(path)):
        assert name_of(model.guidance) == "ClassifierFreeGuidance(weight=2, interval=[0.05, 3])"
        assert model.condition_dropout == 0.1
    first, second = ScoreModule.load_from_checkpoint(path), TrainedModel.load(path)
    assert torch.equal(drawn(first), drawn(second))
    assert not torch.equal(drawn(first), drawn(second, guidance=None))
    changed = ScoreModule.load_from_checkpoint(path, guidance=None)
    assert torch.equal(drawn(changed), drawn(second, guidance=None))
    # a density is that of the model itself
    assert log_likelihood(second.denoiser, torch.zeros(1, 1, 28, 28), rtol=0.1, atol=0.1)[0].isfinite()


@pytest.mark.parametrize("path", OLD, ids=lambda path: path.stem)
def test_a_checkpoint_of_before_has_none(path):
    model = TrainedModel.load(path)
    assert model.guidance is None
    assert model.guided() is model.denoiser
    generators = [torch.Generator().manual_seed(0) for _ in range(2)]
    by_hand = model.sampler(model.denoiser, (2, *model.shape), generator=generators[0], **default_condition(model))
    assert torch.equal(model.sample(num=2, generator=generators[1]), by_hand)


def default_condition(model: TrainedModel) -> dict[str, torch.Tensor]:
    labels = model.default_labels(torch.arange(2))
    return {} if labels is None else {"labels": labels}


# ---- a worse model


def test_a_worse_model_is_given_as_its_checkpoint(make, saved):
    worse = saved(make(network=network(channels=(8,))), "worse")
    module = make(guidance=partial(AutoGuidance, worse=str(worse), weight=2.0))
    by_hand = partial(AutoGuidance, worse=TrainedModel.load(worse).denoiser, weight=2.0)
    assert torch.equal(drawn(module), drawn(make(), guidance=by_hand))
    assert module.sampler.nfe == 14
    assert not torch.equal(drawn(module), drawn(module, guidance=None))
    own = saved(module)
    assert torch.equal(drawn(TrainedModel.load(own)), drawn(ScoreModule.load_from_checkpoint(own)))
    worse.unlink()
    model = TrainedModel.load(own)  # of which a likelihood can be had
    with pytest.raises(FileNotFoundError) as caught:
        drawn(model)
    said = str(caught.value)
    assert said.startswith(f"guidance.worse={str(worse)!r}: there is no such file")
    assert (
        "--guidance AutoGuidance --guidance.worse FILE --guidance.weight 2 names another, --guidance null none" in said
    )
    assert drawn(model, guidance=None).isfinite().all()


def test_a_worse_model_that_is_no_match(make, saved):
    other_process = saved(make(sde=VPSDE(), parameterization=NoisePrediction()), "process")
    untold = saved(make(network=network(None), condition_dropout=0.0), "untold")
    for path, shape, message in (
        (other_process, (1, 28, 28), "guidance.worse: its VPSDE is another process than the KarrasSDE of the denoiser"),
        (untold, (1, 28, 28), "is told of nothing: must be of 10 classes, as the model"),
        (untold, (1, 32, 32), r"is of examples of shape \(1, 28, 28\): must be \(1, 32, 32\), as the model"),
    ):
        with pytest.raises(ValueError, match=message):
            make(shape=shape).guided(partial(AutoGuidance, worse=str(path), weight=2.0))


def test_weights_are_no_part_of_a_recipe(make):
    worse = make().denoiser
    with pytest.raises(ValueError, match=r"guidance\.worse: is a NetworkDenoiser, whose weights .* give the path"):
        make(guidance=partial(AutoGuidance, worse=worse, weight=2.0))


# ---- what is refused, and what is warned of


@pytest.mark.parametrize(
    ("maker", "message"),
    [
        (partial(ClassifierFreeGuidance, weight=float("nan")), "guidance.weight=nan: must be a finite number"),
        (partial(ClassifierFreeGuidance, interval=[3, 0.2]), r"guidance.interval=\[3, 0.2\]: must be two noise levels"),
        (partial(ClassifierFreeGuidance, rescale=2.0), "guidance.rescale=2.0: must be in"),
        (partial(AutoGuidance, worse="x.ckpt", weight=float("inf")), "guidance.weight=inf: must be a finite number"),
        (lambda denoiser: denoiser.network, "guidance: makes a UNet: must make a Denoiser"),
    ],
)
def test_bad_arguments(make, tmp_path, maker, message):
    with pytest.raises(ValueError, match="is a function" if not isinstance(maker, partial) else message):
        make(guidance=maker)
    if not getattr(maker, "keywords", {}).get("worse"):
        with pytest.raises(ValueError, match=message):
            drawn(make(), guidance=maker)


def test_a_network_that_is_told_nothing_has_nothing_to_be_guided_by(make):
    message = "guidance=ClassifierFreeGuidance: UNet is told of no condition, and it would change nothing"
    with pytest.raises(ValueError, match=message):
        make(network=network(None), condition_dropout=0.0, guidance=TWICE)
    with pytest.raises(ValueError, match=message):
        drawn(make(network=network(None), condition_dropout=0.0), guidance=TWICE)


def test_a_null_class_that_was_never_trained_is_warned_of_once(make):
    module = make(condition_dropout=0.0)
    with pytest.warns(UserWarning, match="trained with condition_dropout=0 and has not learnt") as told:
        drawn(module, guidance=TWICE)
    assert len(told) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        drawn(module, guidance=TWICE)
        drawn(make(condition_dropout=0.0), guidance=partial(TWICE, weight=1.0))  # which asks no null class
        drawn(make(), guidance=TWICE)


# ---- names and weights


def test_what_it_is_called():
    assert name_of(None) is None
    assert name_of(ClassifierFreeGuidance) == "ClassifierFreeGuidance(weight=1)"
    assert name_of(partial(ClassifierFreeGuidance, weight=2.5, interval=(0.2, 3), rescale=0.0, threshold=None)) == (
        "ClassifierFreeGuidance(weight=2.5, interval=[0.2, 3])"
    )
    assert name_of(partial(AutoGuidance, worse="runs/x.ckpt", weight=2)) == "AutoGuidance(worse=runs/x.ckpt, weight=2)"
    worse = MLP()
    assert name_of(partial(AutoGuidance, worse=worse)) == "AutoGuidance(worse=MLP, weight=1)"
    assert name_of(partial(ClassifierGuidance, scale=3.0)) == "ClassifierGuidance(scale=3)"


def test_the_same_of_another_weight():
    assert name_of(with_weight(None, 4.0)) == "ClassifierFreeGuidance(weight=4)"
    assert name_of(with_weight(TWICE, 4.0)) == "ClassifierFreeGuidance(weight=4, interval=[0.05, 3])"
    with pytest.raises(ValueError, match=re.escape("guidance=ClassifierGuidance: has no weight")):
        with_weight(partial(ClassifierGuidance, scale=3.0), 2.0)
