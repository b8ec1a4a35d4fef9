import copy
from functools import partial
from importlib.metadata import version
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, seed_everything
from lightning.pytorch.cli import ReduceLROnPlateau
from torch import Tensor, nn

from diffusion_lightning import (
    VESDE,
    VPSDE,
    AncestralPredictor,
    AnnealedLangevinCorrector,
    DenoisingScoreMatching,
    EulerMaruyama,
    EulerMaruyamaPredictor,
    Heun,
    KarrasPreconditioning,
    KarrasSDE,
    LangevinCorrector,
    LogNormalTimes,
    NoisePrediction,
    PowerVESDE,
    PredictorCorrector,
    ProbabilityFlowODE,
    ReverseDiffusionPredictor,
    ScoreModule,
    ScoreNet,
    ScorePrediction,
    SubVPSDE,
    UniformTimes,
    UNet,
)
from diffusion_lightning.checkpoint import KEY

TINY: dict[str, Any] = {
    "channels": (4,),
    "num_res_blocks": 1,
    "embed_dim": 8,
    "middle_attention": False,
    "patch_size": 4,
}


class RecordingObjective(DenoisingScoreMatching):
    """Remembers the losses it returned and the labels it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.losses: list[Tensor] = []
        self.labels: list[Tensor | None] = []

    def __call__(self, denoiser: Any, x0: Tensor, **kwargs: Any) -> Tensor:  # type: ignore[override]
        loss = super().__call__(denoiser, x0, **kwargs)
        self.losses.append(loss.detach().clone())
        self.labels.append(kwargs.get("labels"))
        return loss


class RecordingSGD(torch.optim.SGD):
    """Remembers the norm of the gradient that each of its steps saw."""

    norms: list[float]

    def step(self, closure: Any = None) -> Any:
        loss = closure()
        gradients = [p.grad.flatten() for group in self.param_groups for p in group["params"] if p.grad is not None]
        RecordingSGD.norms.append(torch.cat(gradients).norm().item())
        super().step()
        return loss


class FailingUNet(UNet):
    """Raises in its second evaluation outside training."""

    def __init__(self) -> None:
        super().__init__(**TINY)
        self.calls = 0

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        self.calls += not self.training
        if self.calls == 2:
            raise RuntimeError("out of luck")
        return super().forward(*args, **kwargs)


class Forgetful(nn.Module):
    """Does not keep its argument."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layer = nn.Conv2d(1, 1, width)


def weights(module: ScoreModule) -> list[Tensor]:
    return [p.detach().clone() for p in module.network.parameters()]


def equal(a: list[Tensor], b: list[Tensor]) -> bool:
    return len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def shift(module: ScoreModule, by: float) -> None:
    """Move the weights, not the EMA."""
    with torch.no_grad():
        for p in module.network.parameters():
            p.add_(by)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def samples(module: ScoreModule, **kwargs: Any) -> Tensor:
    return module.sample(num=2, generator=generator(), **kwargs)


@pytest.fixture
def fit(make_trainer, make_data):
    """Trains a module on real digits; returns the trainer."""

    def run(module: ScoreModule, ckpt_path: Any = None, **kwargs: Any) -> Any:
        seed_everything(0, verbose=False)
        trainer = make_trainer(**kwargs)
        trainer.fit(module, datamodule=make_data(), ckpt_path=ckpt_path)
        return trainer

    return run


# ---- the averaged weights


@pytest.mark.parametrize("accumulate", [1, 2])
def test_ema_follows_every_optimizer_step_once(make_module, fit, accumulate):
    module = make_module(ema_decay=0.6, optimizer=partial(torch.optim.SGD, lr=0.1))
    history = [(weights(module), [s.clone() for s in module.ema.shadow_params])]

    class Watch(Callback):
        def on_train_batch_end(self, trainer, pl_module, *_):
            if (trainer.fit_loop.batch_idx + 1) % accumulate == 0:
                history.append((weights(module), [s.clone() for s in module.ema.shadow_params]))

    trainer = fit(module, limit_train_batches=4, accumulate_grad_batches=accumulate, callbacks=[Watch()])
    assert module.ema.num_updates == trainer.global_step == 4 // accumulate == len(history) - 1
    trainable = [p.requires_grad for p in module.network.parameters()]
    for n in range(1, len(history)):
        decay = min(0.6, (1 + n) / (10 + n))
        live = [w for w, yes in zip(history[n][0], trainable, strict=True) if yes]
        assert not equal(history[n][0], history[n - 1][0])
        for average, before, now in zip(history[n][1], history[n - 1][1], live, strict=True):
            torch.testing.assert_close(average, decay * before + (1 - decay) * now)


def test_ema_is_in_the_checkpoint_and_comes_back(make_module, fit, tmp_path):
    module = make_module(ema_decay=0.5)
    fit(module).save_checkpoint(tmp_path / "a.ckpt")
    assert not equal(module.ema.shadow_params, [p for p in module.network.parameters() if p.requires_grad])

    loaded = ScoreModule.load_from_checkpoint(tmp_path / "a.ckpt")
    assert equal(loaded.ema.shadow_params, module.ema.shadow_params)
    assert equal(weights(loaded), weights(module))
    assert loaded.ema.num_updates == 3

    resumed, seen = make_module(ema_decay=0.5), []

    class Watch(Callback):
        def on_train_start(self, trainer, pl_module):
            seen.append(copy.deepcopy((resumed.ema.shadow_params, resumed.ema.num_updates, trainer.global_step)))

    trainer = fit(resumed, tmp_path / "a.ckpt", max_epochs=2, callbacks=[Watch()])
    ((shadow, updates, step),) = seen
    assert equal(shadow, module.ema.shadow_params)
    assert updates == step == 3
    assert resumed.ema.num_updates == trainer.global_step == 6


def test_weights_are_back_after_validation(make_module, make_trainer, make_data):
    module = make_module()
    shift(module, 0.1)
    before = weights(module)
    make_trainer().validate(module, datamodule=make_data(), verbose=False)
    assert equal(weights(module), before)


def test_weights_are_back_when_validation_raises(make_module, make_trainer, make_data):
    module = make_module(network=FailingUNet())
    shift(module, 0.1)
    before = weights(module)
    with pytest.raises(RuntimeError, match="out of luck"):
        make_trainer().validate(module, datamodule=make_data(), verbose=False)
    assert module.network.calls == 2
    assert equal(weights(module), before)


def test_weights_are_back_when_sampling_raises(make_module):
    module = make_module(network=FailingUNet(), shape=(1, 28, 28))
    shift(module, 0.1)
    before = weights(module)
    module.train()
    with pytest.raises(RuntimeError, match="out of luck"):
        module.sample(num=1)
    assert equal(weights(module), before)
    assert module.training
    assert module.network.training


def test_ema_weights_nest(make_module):
    module = make_module()
    average = weights(module)
    shift(module, 0.1)
    own = weights(module)
    with module.ema_weights():
        with module.ema_weights():
            assert equal(weights(module), average)
        assert equal(weights(module), average)
    assert equal(weights(module), own)


def test_validation_and_sampling_see_the_ema_only(make_module, make_trainer, make_data):
    def results(module: ScoreModule) -> tuple[float, Tensor, Tensor]:
        seed_everything(0, verbose=False)
        (metrics,) = make_trainer().validate(module, datamodule=make_data(), verbose=False)
        (predicted,) = make_trainer().predict(module, datamodule=make_data(num_predict=2))
        return metrics["val/loss"], samples(module), predicted

    reference = make_module()
    shift(reference, 0.1)
    reference.ema.shadow_params = [p.detach().clone() for p in reference.network.parameters() if p.requires_grad]
    expected = results(reference)

    moved = copy.deepcopy(reference.state_dict())
    module = make_module()
    module.load_state_dict(moved)
    other = results(module)  # its weights are the reference's, its EMA is not
    assert other[0] != expected[0]
    assert not torch.allclose(other[1], expected[1], atol=1e-3)
    assert not torch.allclose(other[2], expected[2], atol=1e-3)

    module = make_module()
    module.ema.shadow_params = [s.clone() for s in reference.ema.shadow_params]
    same = results(module)  # its EMA is the reference's, its weights are not
    assert same[0] == expected[0]
    assert torch.equal(same[1], expected[1])
    assert torch.equal(same[2], expected[2])


# ---- randomness


def test_validation_noise_is_the_same_each_time_and_differs_between_batches(make_module, make_trainer, make_data):
    module = make_module(objective=RecordingObjective())
    seed_everything(3, verbose=False)
    images, labels = make_data().held_out_images[list(range(4))]
    batches = [(images.float() / 127.5 - 1, labels)] * 3
    trainer = make_trainer(limit_val_batches=3)
    for _ in range(2):
        trainer.validate(module, dataloaders=batches, verbose=False)
        torch.rand(1)  # not the global generator's noise
    first, second = module.objective.losses[:3], module.objective.losses[3:]
    assert equal(first, second)
    assert len({loss.mean().item() for loss in first}) == 3

    seed_everything(4, verbose=False)
    trainer.validate(module, dataloaders=batches, verbose=False)
    assert not torch.equal(module.objective.losses[6], first[0])


def test_a_training_step_draws_by_its_place_alone(make_module, fit):
    class Draws(Callback):
        """What a callback that samples would do to the global state."""

        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            torch.rand(7)

        def on_train_batch_end(self, *_):
            torch.manual_seed(1)

    def losses(seed: int, *callbacks: Callback) -> list[float]:
        module = make_module(
            network=UNet(**TINY, dropout=0.5), objective=RecordingObjective(), optimizer=partial(torch.optim.SGD, lr=0.1)
        )
        seed_everything(seed, verbose=False)
        fit_seeded(module, callbacks)
        return [loss.mean().item() for loss in module.objective.losses]

    def fit_seeded(module: ScoreModule, callbacks: Any) -> None:
        trainer = make_trainer_(max_epochs=2, limit_val_batches=0, callbacks=list(callbacks))
        trainer.fit(module, datamodule=make_data_())

    make_trainer_, make_data_ = fit.parts
    quiet = losses(5)
    assert len(quiet) == 6
    assert losses(5, Draws()) == quiet
    assert losses(6) != quiet


def test_every_training_step_draws_anew(make_module, make_trainer, make_data):
    seed_everything(0, verbose=False)
    images, labels = make_data().held_out_images[list(range(4))]
    batches = [(images.float() / 127.5 - 1, labels)] * 3
    module = make_module(objective=RecordingObjective(), optimizer=partial(torch.optim.SGD, lr=0.0))
    make_trainer(max_epochs=2, limit_val_batches=0).fit(module, train_dataloaders=batches)
    assert len({loss.mean().item() for loss in module.objective.losses}) == 6
