"""A model that is told a vector, from data to samples: standardized, dropped, resumed, and asked where nobody asks."""

from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from torch.utils.data import DataLoader, TensorDataset

from diffusion_lightning import MLP, Points, ScoreModule, SlicedWasserstein, VectorField
from diffusion_lightning.randomness import draw_some
from diffusion_lightning.training.requested import to_compare, to_look_at
from diffusion_lightning.training.trained import TrainedModel


def points() -> Points:
    return Points("moving_normal", num_points=64, num_held_out=12, batch_size=8, seed=3)


@pytest.fixture
def told(make_module):
    """Makes modules of points that are told the number which moves them."""

    def make(**kwargs: Any) -> ScoreModule:
        torch.manual_seed(0)
        return make_module(network=MLP(hidden=(8,), condition_dim=1), **kwargs)

    return make


class Asked(Callback):
    """Keeps what samples were asked for."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.seen: list[torch.Tensor | None] = []
        sample = ScoreModule.sample

        def watched(module: Any, *args: Any, **kwargs: Any) -> Any:
            self.seen.append((kwargs.get("condition") or {}).get("vector"))
            return sample(module, *args, **kwargs)

        monkeypatch.setattr(ScoreModule, "sample", watched)


def test_a_network_is_told_the_vectors_statistics_and_checkpoints_hold_them(told, make_trainer, tmp_path):
    data, module = points(), told(condition_dropout=0.1)
    trainer = make_trainer(limit_train_batches=1, limit_val_batches=1)
    trainer.fit(module, datamodule=data)
    mean, std = data.vector_statistics()
    assert torch.equal(module.network.vector_embedding.mean, mean)
    assert torch.equal(module.network.vector_embedding.std, std)
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    model = TrainedModel.load(tmp_path / "a.ckpt")
    assert torch.equal(model.network.vector_embedding.mean, mean)
    vector = torch.tensor([[2.0], [-1.0], [torch.nan]])
    drawn = model.sample(condition=vector, generator=torch.Generator().manual_seed(1))
    assert drawn.shape == (3, 2)
    same = module.sample(condition={"vector": vector}, generator=torch.Generator().manual_seed(1))
    assert torch.equal(drawn, same)
    # the last of them was not given any, which is what it is to leave the condition out
    without = model.sample(num=3, generator=torch.Generator().manual_seed(1))
    assert torch.equal(drawn[2], without[2])
    assert not torch.equal(drawn[:2], without[:2])


def test_a_trained_network_keeps_its_statistics(told, make_trainer, tmp_path):
    trainer = make_trainer(limit_train_batches=1, limit_val_batches=0)
    trainer.fit(told(), datamodule=points())
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    module = ScoreModule.load_from_checkpoint(tmp_path / "a.ckpt")
    before = module.network.vector_embedding.mean.clone()
    other = Points("moving_normal", num_points=64, num_held_out=12, batch_size=8, seed=4)
    make_trainer(limit_train_batches=1, limit_val_batches=0).fit(module, datamodule=other)
    assert torch.equal(module.network.vector_embedding.mean, before)
    assert not torch.equal(before, other.vector_statistics()[0])


def test_a_run_resumed_in_the_middle_of_an_epoch_drops_the_same_vectors(told, make_trainer, tmp_path):
    def trained(steps: int, start: Any = None) -> tuple[Any, torch.Tensor]:
        module, trainer = told(condition_dropout=0.5), make_trainer(max_epochs=-1, max_steps=steps)
        trainer.fit(module, datamodule=points(), ckpt_path=start)
        return trainer, torch.cat([p.detach().flatten() for p in module.network.parameters()])

    _, whole = trained(11)
    trained(5)[0].save_checkpoint(tmp_path / "five.ckpt")
    assert torch.equal(trained(11, tmp_path / "five.ckpt")[1], whole)


def test_samples_to_look_at_have_the_conditions_of_held_out_examples(told, make_trainer, monkeypatch):
    data, asked = points(), Asked(monkeypatch)
    order = data.first_held_out(12)
    vectors = data.examples(order)[1]["vector"]
    module = told()
    trainer = make_trainer(limit_train_batches=1, callbacks=[VectorField(num_samples=5)])
    trainer.fit(module, datamodule=data)
    assert torch.equal(asked.seen[-1], vectors[:5])
    # over again after the last
    assert torch.equal(to_look_at(module, torch.arange(14), data)["vector"], torch.cat([vectors, vectors[:2]]))
    data.num_predict = 6
    trainer.predict(module, datamodule=data)
    assert torch.equal(asked.seen[-1], vectors[:6])


def test_samples_to_compare_have_the_conditions_of_training_examples(told, make_trainer, monkeypatch):
    data, asked = points(), Asked(monkeypatch)
    module = told()
    make_trainer(limit_train_batches=1, callbacks=[SlicedWasserstein(num_samples=9)]).fit(module, datamodule=data)
    chosen = draw_some(9, 64, 0)
    assert torch.equal(asked.seen[-1], data.examples(chosen, held_out=False)[1]["vector"])
    conditions = to_compare(module, 70, data, seed=2)
    assert sorted(conditions(torch.arange(64))["vector"].flatten().tolist()) == sorted(
        data.examples(range(64), held_out=False)[1]["vector"].flatten().tolist()
    )
    assert torch.equal(conditions(torch.arange(64, 70))["vector"], conditions(torch.arange(6))["vector"])


def test_without_data_that_have_examples_a_model_draws_without_conditions_if_it_can(told, make_trainer):
    x, vector = torch.randn(16, 2), torch.randn(16, 1)
    loader = DataLoader(TensorDataset(x, vector), batch_size=8)
    module = told(condition_dropout=0.2, shape=(2,))
    make_trainer(limit_val_batches=0).fit(module, loader)
    assert to_look_at(module, torch.arange(3), None) == {}
    assert to_compare(module, 3, None, 0)(torch.arange(3)) == {}
    assert module.sample(num=3).shape == (3, 2)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"num": 3}, "condition: vector must be given: the model was trained with condition_dropout=0"),
        ({"num": 3, "condition": torch.zeros(2, 1)}, "condition: vector has 2 rows: must be 3, one for each sample"),
        ({"condition": {"picture": torch.zeros(2, 1, 4, 4)}}, "condition: MLP is told no picture: it takes vector"),
        ({"condition": {"angle": torch.zeros(2, 1)}}, "a condition has the name 'angle'"),
        ({"condition": torch.zeros(2, 3)}, r"vector must be floats \(2, 1\), one for each example"),
        ({"labels": [0, 1], "condition": torch.zeros(2, 1)}, "labels: MLP has no classes"),
    ],
)
def test_a_condition_that_cannot_be_asked_for_is_told(told, given, message):
    with pytest.raises(ValueError, match=message):
        told(shape=(2,)).sample(**given)


@pytest.mark.parametrize("labels", [torch.tensor([0, 3]), torch.tensor([-1, 0])])
def test_labels_among_the_conditions_are_classes(make_module, labels):
    module = make_module(network=MLP(hidden=(8,), num_classes=3), shape=(2,))
    with pytest.raises(ValueError, match=r"labels=\[.*\]: must be whole numbers from 0 to 2"):
        module.sample(condition=labels)
    drawn = module.sample(condition=torch.tensor([2, 0]), generator=torch.Generator().manual_seed(0))
    assert torch.equal(drawn, module.sample(labels=[2, 0], generator=torch.Generator().manual_seed(0)))
