import copy
from functools import partial
from operator import attrgetter
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, seed_everything
from lightning.pytorch.cli import ReduceLROnPlateau
from lightning.pytorch.plugins.precision import Precision
from torch import Tensor, nn
from torch.utils.data import DataLoader

from diffusion_lightning import (
    VESDE,
    VPSDE,
    AncestralPredictor,
    AnnealedLangevinCorrector,
    DenoisingScoreMatching,
    EulerMaruyama,
    EulerMaruyamaPredictor,
    GeometricAugmentation,
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
    UNet,
    UniformTimes,
    __version__,
)
from diffusion_lightning.data.tensor_images import TensorImages
from diffusion_lightning.training.checkpoint_file import KEY

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


class SteepObjective(DenoisingScoreMatching):
    """A thousand times the loss: every gradient is far above any limit in these tests."""

    def __init__(self) -> None:
        super().__init__()

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        return 1000 * super().__call__(*args, **kwargs)


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

    def run(module: ScoreModule, ckpt_path: Any = None, seed: int = 0, **kwargs: Any) -> Any:
        seed_everything(seed, verbose=False)
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
    batches = DataLoader([(images.float() / 127.5 - 1, labels)] * 3, batch_size=None)
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
        torch.manual_seed(0)
        module = make_module(
            network=UNet(**TINY, dropout=0.5),
            objective=RecordingObjective(),
            optimizer=partial(torch.optim.SGD, lr=0.1),
        )
        fit(module, seed=seed, max_epochs=2, limit_val_batches=0, callbacks=list(callbacks))
        return [loss.mean().item() for loss in module.objective.losses]

    quiet = losses(5)
    assert len(quiet) == 6
    assert losses(5, Draws()) == quiet
    assert losses(6) != quiet


def test_every_training_step_draws_anew(make_module, make_trainer, make_data):
    seed_everything(0, verbose=False)
    images, labels = make_data().held_out_images[list(range(4))]
    batches = DataLoader([(images.float() / 127.5 - 1, labels)] * 3, batch_size=None)
    module = make_module(objective=RecordingObjective(), optimizer=partial(torch.optim.SGD, lr=0.0))
    make_trainer(max_epochs=2, limit_val_batches=0).fit(module, train_dataloaders=batches)
    assert len({loss.mean().item() for loss in module.objective.losses}) == 6


# ---- clipping, optimizer, scheduler


@pytest.fixture
def norms(make_module, fit):
    """Trains with the given settings; returns the gradient norms that the optimizer saw."""

    def run(clip: dict[str, Any], **trainer_settings: Any) -> list[float]:
        RecordingSGD.norms = []
        module = make_module(objective=SteepObjective(), optimizer=partial(RecordingSGD, lr=0.0), **clip)
        fit(module, **trainer_settings)
        assert len(RecordingSGD.norms) == 3
        return RecordingSGD.norms

    return run


def test_gradient_clipping(norms):
    unlimited = norms({"clip_norm": None})
    assert min(unlimited) > 10
    assert norms({"clip_norm": 1e9}) == unlimited
    assert norms({}) == pytest.approx([1.0] * 3, rel=1e-4)
    assert norms({"clip_norm": 2.5}) == pytest.approx([2.5] * 3, rel=1e-4)
    assert norms({"clip_norm": 2.5}, gradient_clip_val=0.5) == pytest.approx([0.5] * 3, rel=1e-4)
    assert max(norms({}, gradient_clip_val=0.1, gradient_clip_algorithm="value")) > 0.1


def test_default_optimizer_is_adamw_without_scheduler(make_module, fit):
    trainer = fit(make_module())
    (optimizer,) = trainer.optimizers
    assert type(optimizer) is torch.optim.AdamW
    assert optimizer.param_groups[0]["lr"] == 2e-4
    assert trainer.lr_scheduler_configs == []


def test_only_trainable_parameters_are_optimized(make_module, fit):
    module = make_module(network=ScoreNet(channels=(32, 32), embed_dim=8))
    fixed = [p for p in module.network.parameters() if not p.requires_grad]
    assert fixed
    trainer = fit(module)
    optimized = [p for group in trainer.optimizers[0].param_groups for p in group["params"]]
    assert len(optimized) == len(list(module.network.parameters())) - len(fixed) == len(module.ema.shadow_params)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_scheduler_steps_with_the_optimizer(make_module, fit, accumulate):
    scheduler = partial(torch.optim.lr_scheduler.StepLR, step_size=1, gamma=0.5)
    module = make_module(optimizer=partial(torch.optim.Adam, lr=0.8), lr_scheduler=scheduler)
    trainer = fit(module, limit_train_batches=4, accumulate_grad_batches=accumulate)
    (config,) = trainer.lr_scheduler_configs
    steps = 4 // accumulate
    assert config.scheduler.last_epoch == steps
    assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.8 * 0.5**steps)


@pytest.mark.parametrize("monitor", ["val/loss", "train/loss_epoch"])
def test_plateau_steps_once_an_epoch(make_module, fit, monitor):
    # no loss counts as an improvement, so that every epoch after the first halves the rate
    scheduler = partial(ReduceLROnPlateau, monitor=monitor, factor=0.5, patience=0, threshold=0.999)
    module = make_module(optimizer=partial(torch.optim.Adam, lr=0.8), lr_scheduler=scheduler)
    trainer = fit(module, max_epochs=3)
    assert trainer.lr_scheduler_configs[0].scheduler.last_epoch == 3
    assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.2)


def test_what_is_logged(make_module, fit, make_trainer, make_data):
    module = make_module()
    metrics = {"train/loss_step", "train/skipped_steps", "train/loss_epoch", "val/loss"}
    assert set(fit(module).callback_metrics) == metrics
    (metrics,) = make_trainer(limit_test_batches=1).test(module, datamodule=make_data(), verbose=False)
    assert set(metrics) == {"test/loss"}


# ---- checkpoints

PARTS = {
    "score net, power VE, score, PC": (
        lambda: ScoreNet(channels=(32, 32), embed_dim=8),
        lambda: PowerVESDE(sigma=20.0),
        ScorePrediction,
        lambda: DenoisingScoreMatching("likelihood", UniformTimes(stratified=False), "mean"),
        lambda: PredictorCorrector(2, EulerMaruyamaPredictor(), LangevinCorrector(), snr=0.1, t_min=1e-3),
    ),
    "VE, noise, PC with annealed Langevin": (
        lambda: UNet(**TINY),
        lambda: VESDE(sigma_max=40.0),
        NoisePrediction,
        lambda: DenoisingScoreMatching("min_snr"),
        lambda: PredictorCorrector(2, ReverseDiffusionPredictor(), AnnealedLangevinCorrector(), corrector_steps=2),
    ),
    "classes, VP, noise, ancestral": (
        lambda: UNet(**TINY, num_classes=10, dropout=0.1, time_embedding="fourier", time_scale=2.0),
        lambda: VPSDE(beta_max=10.0),
        NoisePrediction,
        lambda: DenoisingScoreMatching(),
        lambda: PredictorCorrector(2, AncestralPredictor(), None),
    ),
    "sub-VP, EDM's wrapper, Euler": (
        lambda: UNet(**TINY),
        lambda: SubVPSDE(beta_min=0.2),
        lambda: KarrasPreconditioning(sigma_data=0.4),
        lambda: DenoisingScoreMatching("karras", LogNormalTimes(mean=-1.0), sigma_data=0.4),
        lambda: EulerMaruyama(3),
    ),
    "EDM, churn": (
        lambda: UNet(**TINY),
        lambda: KarrasSDE(sigma_max=60.0, rho=5.0),
        KarrasPreconditioning,
        lambda: DenoisingScoreMatching("karras", LogNormalTimes()),
        lambda: Heun(3, rho=5.0, churn=1.0, churn_noise=1.01),
    ),
    "EDM, ODE": (
        lambda: UNet(**TINY),
        KarrasSDE,
        KarrasPreconditioning,
        lambda: None,
        lambda: ProbabilityFlowODE("heun2", steps=2, denoise=False),
    ),
}


@pytest.mark.parametrize("name", PARTS)
def test_a_checkpoint_rebuilds_its_module_from_the_path_alone(make_module, fit, tmp_path, name):
    parts = ("network", "sde", "parameterization", "objective", "sampler")
    module = make_module(**{part: make() for part, make in zip(parts, PARTS[name], strict=True)}, ema_decay=0.5)
    fit(module, limit_train_batches=1, limit_val_batches=0).save_checkpoint(tmp_path / "a.ckpt")

    loaded = ScoreModule.load_from_checkpoint(tmp_path / "a.ckpt")
    saved, rebuilt = dict(module.hparams), dict(loaded.hparams)
    assert saved.pop("optimizer")["init_args"].items() <= rebuilt.pop("optimizer")["init_args"].items()
    assert rebuilt == saved
    for path in ("network", "denoiser.sde", "denoiser.parameterization", "objective.times", "objective", "sampler"):
        assert type(attrgetter(path)(loaded)) is type(attrgetter(path)(module))
    assert loaded.shape == (1, 28, 28)
    expected = samples(module)
    assert expected.isfinite().all()
    assert torch.equal(samples(loaded), expected)


def test_what_a_checkpoint_holds(make_module, fit, tmp_path):
    module = make_module(lr_scheduler=partial(torch.optim.lr_scheduler.StepLR, step_size=1))
    trainer = fit(module)
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    checkpoint = torch.load(tmp_path / "a.ckpt", weights_only=True)
    ours = checkpoint[KEY]
    assert (ours["version"], ours["run_ids"]) == (__version__, {})
    assert ours["skipped_steps"] == ours["skipped_in_a_row"] == 0
    assert ours["position"] == {"epoch": 1, "batch": 0, "batches": 3, "examples": 8, "world_size": 1}
    assert ours["metrics"] == {name: value.item() for name, value in trainer.callback_metrics.items()}
    assert ours["epoch_losses"][0][0] / ours["epoch_losses"][0][1] == pytest.approx(ours["metrics"]["train/loss_epoch"])
    assert checkpoint["ema"]["num_updates"] == 3
    assert equal(checkpoint["ema"]["shadow_params"], module.ema.shadow_params)
    assert set(checkpoint["state_dict"]) == {f"denoiser.network.{name}" for name in module.network.state_dict()}
    assert checkpoint["global_step"] == 3
    assert len(checkpoint["optimizer_states"]) == len(checkpoint["lr_schedulers"]) == 1
    assert checkpoint["hyper_parameters"]["shape"] == [1, 28, 28]
    assert checkpoint["hyper_parameters"]["network"]["class_path"].endswith("UNet")


def test_load_from_checkpoint_with_changes(make_module, fit, tmp_path):
    fit(make_module()).save_checkpoint(tmp_path / "a.ckpt")
    loaded = ScoreModule.load_from_checkpoint(tmp_path / "a.ckpt", sampler=EulerMaruyama(4), clip_norm=None)
    assert isinstance(loaded.sampler, EulerMaruyama)
    assert loaded.sampler.steps == 4
    assert loaded.clip_norm is None


def test_what_is_loaded_is_in_evaluation_mode_until_it_is_trained(make_module, make_trainer, make_data, fit, tmp_path):
    fit(make_module(network=UNet(**TINY, dropout=0.5))).save_checkpoint(tmp_path / "a.ckpt")
    loaded = ScoreModule.load_from_checkpoint(tmp_path / "a.ckpt")
    assert not any(part.training for part in loaded.modules())
    modes: list[bool] = []
    loaded.network.register_forward_hook(lambda network, *_: modes.append(network.training))
    make_trainer(limit_val_batches=0).fit(loaded, datamodule=make_data())
    assert modes[-3:] == [True] * 3  # behind the trial of whether it takes the data

    # whoever freezes a part of it has chosen its mode
    loaded = ScoreModule.load_from_checkpoint(tmp_path / "a.ckpt").train()
    loaded.network.conv_out.eval()
    make_trainer(limit_val_batches=0).fit(loaded, datamodule=make_data())
    assert loaded.network.training
    assert not loaded.network.conv_out.training


def test_optimizer_and_scheduler_come_back_from_recipes(make_module, fit, tmp_path):
    module = make_module(
        optimizer=partial(torch.optim.SGD, lr=0.25, momentum=0.5),
        lr_scheduler=partial(torch.optim.lr_scheduler.ExponentialLR, gamma=0.5),
    )
    fit(module).save_checkpoint(tmp_path / "a.ckpt")
    loaded = ScoreModule.load_from_checkpoint(tmp_path / "a.ckpt")
    made = loaded.configure_optimizers()
    assert type(made["optimizer"]) is torch.optim.SGD
    assert made["optimizer"].param_groups[0]["momentum"] == 0.5
    assert made["lr_scheduler"]["scheduler"].gamma == 0.5

    trainer = fit(loaded, tmp_path / "a.ckpt", max_epochs=2)
    assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.25 * 0.5**6)


def test_checkpointing_may_change_between_a_run_and_its_continuation(make_module, fit, tmp_path):
    """Also for a checkpoint of before there was the argument."""
    fit(make_module()).save_checkpoint(tmp_path / "a.ckpt")
    checkpoint = torch.load(tmp_path / "a.ckpt", weights_only=True)
    del checkpoint["hyper_parameters"]["network"]["init_args"]["checkpointing"]
    torch.save(checkpoint, tmp_path / "old.ckpt")
    results = []
    for name, checkpointing in (("a", False), ("a", True), ("old", False), ("old", True)):
        module = make_module(network=UNet(**TINY, checkpointing=checkpointing))
        fit(module, tmp_path / f"{name}.ckpt", max_epochs=2)
        results.append(weights(module))
    assert all(equal(result, results[0]) for result in results)
    assert ScoreModule.load_from_checkpoint(tmp_path / "old.ckpt").network.checkpointing is False


def test_a_checkpoint_of_another_network_is_refused_in_one_line(make_module, fit, tmp_path):
    fit(make_module()).save_checkpoint(tmp_path / "a.ckpt")
    other = make_module(network=UNet(**{**TINY, "embed_dim": 16}))
    before = weights(other)
    with pytest.raises(ValueError, match="another network") as caught:
        fit(other, tmp_path / "a.ckpt", max_epochs=2)
    assert str(caught.value) == "the checkpoint is of another network: embed_dim=8 there, 16 here"
    assert equal(weights(other), before)

    with pytest.raises(ValueError, match=r"UNet there, .*ScoreNet here"):
        fit(make_module(network=ScoreNet(channels=(32, 32), embed_dim=8)), tmp_path / "a.ckpt", max_epochs=2)


def test_a_network_that_forgets_its_arguments_is_told_so(make_module):
    with pytest.raises(ValueError, match=r"Forgetful does not keep its constructor argument 'width': add `self.width"):
        make_module(network=Forgetful(3))


def test_a_function_as_optimizer_is_told_so(make_module):
    with pytest.raises(ValueError, match=r"is a function, which checkpoints cannot hold: give functools.partial"):
        make_module(optimizer=lambda parameters: torch.optim.Adam(parameters))


# ---- classes, sampling, errors


class LabelledUNet(UNet):
    """Remembers the labels it was called with."""

    def __init__(self, num_classes: int | None = 10) -> None:
        super().__init__(**TINY, num_classes=num_classes)
        self.labels: list[Tensor | None] = []

    def forward(self, x: Tensor, time_signal: Tensor, labels: Tensor | None = None) -> Tensor:
        self.labels.append(labels)
        return super().forward(x, time_signal, labels)


def test_a_network_with_classes_gets_the_labels(make_module, make_trainer, make_data):
    images, labels = make_data().held_out_images[list(range(4))]
    batches = DataLoader([(images.float() / 127.5 - 1, labels)], batch_size=None)
    module = make_module(network=LabelledUNet())
    make_trainer().fit(module, train_dataloaders=batches, val_dataloaders=batches)
    assert len(module.network.labels) == 2
    assert all(torch.equal(given, labels) for given in module.network.labels)

    module = make_module(network=LabelledUNet(None))
    make_trainer().fit(module, train_dataloaders=batches, val_dataloaders=batches)
    assert module.network.labels == [None, None]


def test_samples_take_the_classes_in_turn_unless_told(make_module):
    module = make_module(network=LabelledUNet(), shape=(1, 28, 28), sampler=Heun(steps=1))
    module.sample(num=12)
    assert module.network.labels.pop().tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1]
    module.sample(num=3, labels=torch.tensor([7, 7, 1]), batch_size=2)
    assert [labels.tolist() for labels in module.network.labels] == [[7, 7], [1]]


def test_labels_may_be_a_list_or_one_number(make_module):
    module = make_module(network=LabelledUNet(), shape=(1, 28, 28), sampler=Heun(steps=1))
    for labels, num, expected in (
        ([3], None, [3]),
        ([7, 7, 1], None, [7, 7, 1]),
        ((7, 1), 2, [7, 1]),
        (torch.tensor([2, 9], dtype=torch.uint8), None, [2, 9]),
        (4, 3, [4, 4, 4]),
        (4, None, [4]),
    ):
        drawn = module.sample(num=num, labels=labels)
        assert len(drawn) == len(expected)
        assert module.network.labels.pop().tolist() == expected
    assert len(module.sample()) == 64


@pytest.mark.parametrize(
    ("labels", "num", "message"),
    [
        ([3], 2, r"labels: of shape \(1,\): must be 2, one for each sample, or one number for all"),
        ([3, 8, 1], 2, r"labels: of shape \(3,\): must be 2, one for each sample"),
        ([[3, 8]], None, r"labels: of shape \(1, 2\): must be one for each sample"),
        ([3, 10], 2, r"labels=\[3, 10\]: must be whole numbers from 0 to 9"),
        ([-1], None, r"labels=\[-1\]: must be whole numbers from 0 to 9"),
        ([0.5], None, r"labels=\[0.5\]: must be whole numbers from 0 to 9"),
        ([], None, "num=0: at least 1 sample must be asked for"),
    ],
)
def test_labels_that_are_no_classes_are_refused(make_module, labels, num, message):
    with pytest.raises(ValueError, match=message):
        make_module(network=LabelledUNet(), shape=(1, 28, 28)).sample(num=num, labels=labels)


def test_a_network_without_classes_takes_no_labels(make_module):
    with pytest.raises(ValueError, match="labels: UNet has no classes: leave them out"):
        make_module(shape=(1, 28, 28)).sample(labels=[3])


def test_sample_draws_in_batches(make_module):
    module = make_module(shape=(1, 28, 28))
    sizes: list[int] = []
    hook = module.network.register_forward_hook(lambda _, inputs, __: sizes.append(len(inputs[0])))
    drawn = module.sample(num=7, generator=generator(), batch_size=3)
    hook.remove()
    assert drawn.shape == (7, 1, 28, 28)
    assert drawn.dtype == torch.float32
    assert not drawn.requires_grad
    assert sizes == [3] * 3 + [3] * 3 + [1] * 3
    assert len({image.sum().item() for image in drawn}) == 7
    assert torch.equal(module.sample(num=7, generator=generator(), batch_size=3), drawn)
    assert not torch.equal(module.sample(num=7, generator=generator(1), batch_size=3), drawn)


def test_sample_with_another_sampler(make_module):
    module = make_module(shape=(1, 28, 28))
    sampler = EulerMaruyama(5)
    samples(module, sampler=sampler)
    assert sampler.nfe == 5
    assert module.sampler.nfe == 0
    samples(module)
    assert module.sampler.nfe == 3


def test_sampling_is_without_dropout_and_leaves_the_mode(make_module):
    module = make_module(network=UNet(**TINY, dropout=0.9), shape=(1, 28, 28))
    nn.init.normal_(module.network.conv_out.weight)
    module.ema.shadow_params = [p.detach().clone() for p in module.network.parameters()]
    for training in (True, False):
        module.train(training)
        assert torch.equal(samples(module), samples(module))
        assert module.training == module.network.training == training


def test_the_shape_is_learnt_from_the_data(make_module, make_trainer, make_data):
    module = make_module()
    with pytest.raises(ValueError, match="shape: not known before training"):
        module.sample(num=1)
    make_trainer().validate(module, datamodule=make_data(), verbose=False)
    assert module.sample(num=1).shape == (1, 1, 28, 28)

    module = make_module()  # without a data module, from the first batch
    batches = DataLoader([(torch.zeros(2, 1, 8, 8), torch.zeros(2))], batch_size=None)
    make_trainer().fit(module, train_dataloaders=batches)
    assert module.sample(num=1).shape == (1, 1, 8, 8)


def test_the_classes_are_learnt_from_the_data_and_kept(make_module, make_trainer, make_data, digits, tmp_path):
    data, trainer = make_data(), make_trainer()
    train, held_out = digits
    counts = [10, 20, 30, 40, 50, 60, 70, 80, 90, 100]
    kept = torch.cat([(train.labels == digit).nonzero()[:count, 0] for digit, count in enumerate(counts)])
    data._images = TensorImages(train.images[kept], train.labels[kept]), held_out
    labelled = make_module(network=LabelledUNet())
    assert labelled.class_names is labelled.class_counts is None
    trainer.fit(labelled, datamodule=data)
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    loaded = ScoreModule.load_from_checkpoint(tmp_path / "a.ckpt")
    for module in (labelled, loaded):
        assert module.class_counts == counts
        assert module.class_names == [str(digit) for digit in range(10)]

    # of other data they are those of the other data, whatever the checkpoint says
    make_trainer().validate(loaded, datamodule=make_data(), ckpt_path=tmp_path / "a.ckpt", verbose=False)
    assert loaded.class_counts == 10 * [900]

    unlabelled = make_module()
    make_trainer().validate(unlabelled, datamodule=make_data(), verbose=False)
    assert unlabelled.class_counts is None


def test_predict_draws_the_number_that_was_asked_for(make_module, make_trainer, make_data):
    module = make_module()
    predict = partial(make_trainer().predict, module)
    seed_everything(0, verbose=False)
    drawn = predict(datamodule=make_data(batch_size=4, num_predict=6))
    assert [len(batch) for batch in drawn] == [4, 2]
    again = predict(datamodule=make_data(batch_size=4, num_predict=6))
    assert equal(drawn, again)
    assert not torch.equal(drawn[0][:2], drawn[1])
    seed_everything(1, verbose=False)
    assert not torch.equal(predict(datamodule=make_data(batch_size=4, num_predict=6))[0], drawn[0])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"clip_norm": 0.0}, "clip_norm=0.0: must be positive"),
        ({"ema_decay": 1.5}, r"ema_decay=1.5: must be in \[0, 1\]"),
        ({"sampler": Heun(t_min=80.0)}, r"t_min=80.0: must be in \[0.002, 80\)"),
    ],
)
def test_wrong_arguments(make_module, arguments, message):
    with pytest.raises(ValueError, match=message):
        make_module(**arguments)


def test_wrong_requests(make_module):
    module = make_module(shape=(1, 28, 28))
    with pytest.raises(ValueError, match="num=0: at least 1 sample"):
        module.sample(num=0)
    with pytest.raises(ValueError, match=r"t_min=90.0: must be in"):
        module.sample(EulerMaruyama(2, t_min=90.0), num=1)


# ---- loss scaling


class Scaled(Precision):
    """As ``16-mixed``: gradients are computed of a loss scaled by 2¹⁶, which halves when they overflow."""

    def __init__(self) -> None:
        self.scaler = torch.amp.GradScaler("cpu")

    def pre_backward(self, tensor, module):
        return self.scaler.scale(tensor)

    def optimizer_step(self, optimizer, model, closure, **kwargs):
        closure()
        self.scaler.unscale_(optimizer)
        self._after_closure(model, optimizer)
        self.scaler.step(optimizer)
        self.scaler.update()


def test_the_search_for_the_scale_of_the_loss_does_not_end_a_training(make_module, make_trainer, make_data):
    class Overflow(Callback):
        def on_after_backward(self, trainer, pl_module):
            if trainer.precision_plugin.scaler.get_scale() > 2**3:
                next(p for p in pl_module.network.parameters()).grad.fill_(torch.inf)

    module = make_module(max_skipped_steps=3)
    trainer = make_trainer(limit_train_batches=16, plugins=[Scaled()], callbacks=[Overflow()])
    trainer.fit(module, datamodule=make_data())
    assert module.skipped_steps == 13
    assert module.ema.num_updates == 3


def test_a_fused_optimizer_is_refused_where_the_loss_is_scaled(make_module, make_trainer, make_data):
    module = make_module(optimizer=partial(torch.optim.AdamW, lr=1e-3, fused=True))
    with pytest.raises(ValueError, match="16-mixed' with a fused optimizer"):
        make_trainer(plugins=[Scaled()]).fit(module, datamodule=make_data())


# ---- augmentation


class WatchingUNet(UNet):
    """Remembers what it was told of the augmentation, in training and outside."""

    def __init__(self) -> None:
        super().__init__(**TINY, augment_dim=9)
        self.told: list[Tensor] = []
        self.told_in_evaluation: list[Tensor | None] = []

    def forward(self, *args: Any, augment_labels: Tensor | None = None, **kwargs: Any) -> Tensor:
        if self.training:
            assert augment_labels is not None
            self.told.append(augment_labels.clone())
        else:
            self.told_in_evaluation.append(augment_labels)
        return super().forward(*args, augment_labels=augment_labels, **kwargs)


class SeenObjective(DenoisingScoreMatching):
    """Remembers the images it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Tensor] = []

    def __call__(self, denoiser: Any, x0: Tensor, **kwargs: Any) -> Tensor:  # type: ignore[override]
        self.seen.append(x0.clone())
        return super().__call__(denoiser, x0, **kwargs)


def test_training_alone_is_augmented_and_the_network_told(make_module, fit):
    def train(**parts: Any) -> ScoreModule:
        network = WatchingUNet() if parts else UNet(**TINY)
        module = make_module(network=network, objective=SeenObjective(), **parts)
        fit(module)
        return module

    plain, module = train(), train(augment=GeometricAugmentation(0.5))
    originals, images = plain.objective.seen, module.objective.seen  # three batches of training, two of validation
    assert len(images) == len(originals) == 5
    assert len(module.network.told) == 3
    for image, original, labels in zip(images[:3], originals[:3], module.network.told, strict=True):
        same = (image == original).flatten(1).all(1)
        assert torch.equal(same, (labels == 0).all(1))
        assert not same.all()
    assert not torch.equal(module.network.told[0], module.network.told[1])
    assert equal(images[3:], originals[3:])
    module.sample(num=2)
    assert module.network.told_in_evaluation
    assert all(labels is None for labels in module.network.told_in_evaluation)


def test_an_augmented_run_that_stopped_and_went_on_is_the_run_that_did_not(make_module, fit, tmp_path):
    def make() -> ScoreModule:
        torch.manual_seed(0)
        return make_module(
            network=UNet(**TINY, augment_dim=9), augment=GeometricAugmentation(0.5), objective=SeenObjective()
        )

    whole, first, second = make(), make(), make()
    fit(whole, max_epochs=2)
    fit(first, max_steps=4, max_epochs=-1).save_checkpoint(tmp_path / "a.ckpt")
    fit(second, tmp_path / "a.ckpt", max_epochs=2)
    assert equal(weights(second), weights(whole))
    trained = whole.objective.seen[:3] + whole.objective.seen[5:8]
    assert torch.equal(second.objective.seen[0], trained[4])


def test_the_augmentation_differs_between_batches_and_epochs(make_module, fit):
    module = make_module(network=WatchingUNet(), augment=GeometricAugmentation(0.5))
    fit(module, max_epochs=2, limit_train_batches=2, limit_val_batches=0)
    told = module.network.told
    assert len(told) == 4
    assert not any(torch.equal(told[i], told[j]) for i in range(4) for j in range(i))


def test_the_augmentation_is_rebuilt_from_a_checkpoint(make_module, fit, tmp_path):
    module = make_module(network=UNet(**TINY, augment_dim=9), augment=GeometricAugmentation(0.25))
    fit(module).save_checkpoint(tmp_path / "a.ckpt")
    loaded = ScoreModule.load_from_checkpoint(tmp_path / "a.ckpt")
    assert loaded.augment.probability == 0.25
    assert loaded.network.augment_dim == 9
    assert torch.equal(samples(loaded), samples(module))
    assert ScoreModule.load_from_checkpoint(tmp_path / "a.ckpt", augment=None).augment is None


@pytest.mark.parametrize("network", [UNet(**TINY), UNet(**TINY, augment_dim=4), ScoreNet(channels=(32, 32))])
def test_a_network_that_cannot_be_told_is_an_error_of_one_line(make_module, network):
    with pytest.raises(
        ValueError, match=r"^augment: \w+ has augment_dim=(None|4) and cannot be told.*augment_dim=9.*$"
    ):
        make_module(network=network, augment=GeometricAugmentation())


def test_numbers_of_numpy_train_to_a_checkpoint_that_can_be_read(make_module, make_trainer, make_data, tmp_path):
    module = make_module(
        optimizer=partial(torch.optim.AdamW, lr=np.float64(1e-3), betas=(np.float32(0.5), np.float64(0.75))),
        lr_scheduler=partial(torch.optim.lr_scheduler.LinearLR, end_factor=np.float64(0.5), total_iters=np.int64(2)),
        ema_decay=np.float64(0.5),
        clip_norm=np.float32(2.0),
        max_skipped_steps=np.int64(4),
        shape=np.array([1, 28, 28]),
    )
    trainer = make_trainer()
    trainer.fit(module, datamodule=make_data())
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    again = type(module).load_from_checkpoint(tmp_path / "a.ckpt")
    for name in ("optimizer", "lr_scheduler"):  # built, they have their defaults too
        assert module.hparams[name]["init_args"].items() <= again.hparams[name]["init_args"].items()
    assert (again.ema.decay, again.clip_norm, again.max_skipped_steps, again.shape) == (0.5, 2.0, 4, (1, 28, 28))
    make_trainer(max_epochs=2).fit(module, datamodule=make_data(), ckpt_path=tmp_path / "a.ckpt")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"optimizer": partial(torch.optim.AdamW, betas=np.array([0.9, 0.99]))}, "^betas=.*: is of type ndarray"),
        ({"optimizer": partial(torch.optim.AdamW, lr=torch.ones(2))}, "^lr=.* is of type Tensor"),
        ({"lr_scheduler": partial(torch.optim.lr_scheduler.MultiStepLR, milestones={1, 2})}, "^milestones=.*type set"),
    ],
)
def test_what_no_checkpoint_can_hold_is_refused_before_training(make_module, wrong, message):
    with pytest.raises(ValueError, match=message):
        make_module(**wrong)


def test_conditions_are_dropped_in_training_alone(make_module, make_trainer, make_data, monkeypatch):
    network = UNet(channels=(4,), num_res_blocks=1, embed_dim=8, middle_attention=False, patch_size=4, num_classes=10)
    module = make_module(network=network, condition_dropout=0.4)
    trained, held_out, asked = [], [], []

    class See(Callback):
        def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
            trained.append(batch[1])

        def on_validation_batch_start(self, trainer: Any, pl_module: Any, batch: Any, *_: Any) -> None:
            held_out.append(batch[1])

    denoise = type(module.denoiser).denoise

    def watched(self: Any, x: Any, t: Any, **cond: Any) -> Any:
        asked.append(cond.get("labels"))
        return denoise(self, x, t, **cond)

    monkeypatch.setattr(type(module.denoiser), "denoise", watched)
    trainer = make_trainer(callbacks=[See()], limit_train_batches=10)
    trainer.fit(module, datamodule=make_data())
    in_training, in_validation = asked[:10], asked[10:]
    dropped = torch.cat(in_training) == 10
    assert 0 < dropped.sum() < len(dropped)
    assert len({tuple((labels == 10).tolist()) for labels in in_training}) > 5  # others in each batch
    assert torch.equal(torch.cat(in_training)[~dropped], torch.cat(trained)[~dropped])
    # with the condition and without
    assert all(torch.equal(given, labels) for given, labels in zip(in_validation[::2], held_out, strict=True))
    assert in_validation[1::2] == [None] * len(held_out)
    logged = trainer.callback_metrics
    assert logged["val/loss"] != logged["val/loss_unconditional"]
    assert module.hparams["condition_dropout"] == 0.4


@pytest.mark.parametrize("probability", [-0.1, 1.0, float("nan")])
def test_a_probability_out_of_range_is_named(make_module, probability):
    with pytest.raises(ValueError, match=r"^condition_dropout=.*must be in \[0, 1\)"):
        make_module(condition_dropout=probability)


def test_what_has_no_null_class_cannot_be_trained_to_do_without(make_module):
    with pytest.raises(
        ValueError, match=r"^condition_dropout=0.1: UNet has no condition to drop: give --model.condition_dropout 0, or"
    ):
        make_module(condition_dropout=0.1)
