"""A model that is told groups found in its data: what is asked of it are classes, or nothing, and groups are drawn."""

from typing import Any

import pytest
import torch

from diffusion_lightning import (
    ClassifierFreeGuidance,
    ConditionSource,
    EmbeddedMNIST,
    FIDCallback,
    Heun,
    SampleGrid,
    ScoreModule,
    UNet,
)
from diffusion_lightning.data.clusters import Groups
from diffusion_lightning.training.compatibility import check_compatible
from diffusion_lightning.training.requested import to_compare, to_look_at
from diffusion_lightning.training.trained import TrainedModel


def digits(**source: Any) -> EmbeddedMNIST:
    return EmbeddedMNIST(batch_size=16, condition=ConditionSource(clusters=3, **source))


def data_labels(indices: list[int]) -> list[int]:
    """The digits that these held-out examples are."""
    return EmbeddedMNIST().examples(indices)[1]["labels"].tolist()


@pytest.fixture
def fitted(make_module, make_trainer):
    """Trains a module on such data for a step; with the checkpoint."""

    def fit(data: EmbeddedMNIST, path: Any, **kwargs: Any) -> ScoreModule:
        torch.manual_seed(0)
        network = UNet(
            channels=(4,),
            num_res_blocks=1,
            embed_dim=8,
            middle_attention=False,
            patch_size=4,
            num_classes=data.num_classes,
        )
        module = make_module(network=network, sampler=Heun(steps=2), condition_dropout=0.1)
        trainer = make_trainer(limit_train_batches=1, limit_val_batches=1, **kwargs)
        trainer.fit(module, datamodule=data)
        trainer.save_checkpoint(path)
        return module

    return fit


@pytest.fixture
def told(monkeypatch):
    """The labels that networks are told."""
    seen: list[torch.Tensor] = []
    forward = UNet.forward

    def watched(network: UNet, x: Any, t: Any, labels: Any = None, **kwargs: Any) -> Any:
        seen.append(labels)
        return forward(network, x, t, labels, **kwargs)

    monkeypatch.setattr(UNet, "forward", watched)
    return seen


def test_samples_of_a_class_are_of_its_groups(fitted, told, tmp_path):
    data = digits(within_classes=True)
    module = fitted(data, tmp_path / "a.ckpt")
    assert (data.num_classes, module.num_classes) == (30, 10)
    assert module.class_counts == [900] * 10
    model = TrainedModel.load(tmp_path / "a.ckpt")
    again = ScoreModule.load_from_checkpoint(tmp_path / "a.ckpt")
    assert module.groups == model.groups == again.groups == Groups(data.groups.counts, 10)
    told.clear()
    labels = [3] * 20 + [7] * 20
    drawn = model.sample(labels=labels, generator=torch.Generator().manual_seed(1))
    assert all(torch.equal(each // 3, torch.tensor(labels)) for each in told)
    assert all(torch.equal(each, told[0]) for each in told)  # one group to a sample, at every step
    assert set(told[0].tolist()) == {9, 10, 11, 21, 22, 23}
    same = module.sample(labels=labels, generator=torch.Generator().manual_seed(1))
    assert torch.equal(drawn, same)
    assert to_look_at(model, torch.arange(12), data)["labels"].tolist() == [*range(10), 0, 1]
    assert to_compare(model, 20, data, seed=0)(torch.arange(20))["labels"].bincount().tolist() == [2] * 10
    asked = model.asked_like(data.examples([0, 500, 999])[1])
    assert {name: value.tolist() for name, value in asked.items()} == {"labels": data_labels([0, 500, 999])}
    with pytest.raises(ValueError, match=r"labels=\[12\]: must be whole numbers from 0 to 9"):
        model.sample(labels=[12])


def test_without_classes_groups_are_drawn_in_their_shares(fitted, told, tmp_path):
    data = digits()
    module = fitted(data, tmp_path / "a.ckpt")
    assert (data.num_classes, module.num_classes, module.has_classes) == (3, None, False)
    assert module.labels_in_shares(5) is None
    assert (to_look_at(module, torch.arange(4), data), to_compare(module, 4, data, seed=0)(torch.arange(4))) == ({}, {})
    told.clear()
    model = TrainedModel.load(tmp_path / "a.ckpt")
    assert model.asked_like(data.examples([0, 500])[1]) == {}
    model.sample(num=3000, batch_size=3000, generator=torch.Generator().manual_seed(1))
    shares = told[0].bincount(minlength=3) / 3000
    # five standard errors
    torch.testing.assert_close(shares, torch.tensor(data.groups.counts) / 9000, atol=0.045, rtol=0)
    with pytest.raises(ValueError, match="labels: UNet has no classes: leave them out"):
        model.sample(labels=[0])


def test_guidance_compares_a_group_with_none(fitted, told, tmp_path):
    fitted(digits(), tmp_path / "a.ckpt")
    told.clear()
    model = TrainedModel.load(tmp_path / "a.ckpt")
    model.sample(num=4, guidance=lambda denoiser: ClassifierFreeGuidance(denoiser, 2.0))
    groups = [labels.view(2, 4) for labels in told]  # without a group and with it, in one batch
    assert all((each[0] == 3).all() and (each[1] < 3).all() for each in groups)


def test_a_network_of_another_number_is_told_the_number_of_groups():
    network = UNet(channels=(4,), num_res_blocks=1, embed_dim=8, middle_attention=False, num_classes=10)
    with pytest.raises(ValueError, match=r"EmbeddedMNIST has 30 groups, and .* give --model.network.num_classes 30"):
        check_compatible(network, digits(within_classes=True))


@pytest.mark.parametrize("within_classes", [False, True])
def test_pictures_and_figures_of_such_a_model(fitted, tmp_path, within_classes):
    """Its classes can be read by a classifier of digits; whether they are those asked for, only if any were."""
    callbacks = [SampleGrid(num_samples=4), FIDCallback(num_samples=12, feature="mnist")]
    module = fitted(digits(within_classes=within_classes), tmp_path / "a.ckpt", callbacks=callbacks)
    names = {name.partition("/")[0] for name in module.trainer.callback_metrics}
    assert {"fid", "legible"} <= names
    assert ("agreement" in names) == within_classes
    if within_classes:  # of the real ones the groups are no classes either
        assert module.trainer.callback_metrics["agreement/mnist_real@1000"] > 0.98
