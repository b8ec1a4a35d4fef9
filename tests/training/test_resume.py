"""What is asked for on a resume happens, or is refused: every option of the optimizer, the scheduler and the module."""

import copy
from functools import partial
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.cli import ReduceLROnPlateau
from torch.optim import SGD, AdamW, RMSprop
from torch.optim.lr_scheduler import ExponentialLR, LinearLR, OneCycleLR, StepLR

from diffusion_lightning import DDIM, VPSDE, DenoisingScoreMatching, Heun, KarrasSDE, LinearDecay, NoisePrediction, UNet
from diffusion_lightning.training.resume import Change

HALVING = partial(ExponentialLR, gamma=0.5)
HALVED = [0.5**n for n in (3, 4, 5)]
PLATEAU = partial(ReduceLROnPlateau, monitor="train/loss_epoch")

STEPS = 3
"""Of an epoch; each run here stops after two and goes on."""


class Rates(Callback):
    """Keeps the learning rate of each step, by its number, and what else is asked for of the first group."""

    def __init__(self, *names: str) -> None:
        self.names = names
        self.lr: dict[int, float] = {}
        self.groups: dict[str, Any] = {}

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        (group,) = trainer.optimizers[0].param_groups
        self.lr[trainer.global_step] = group["lr"]
        self.groups = {name: group[name] for name in self.names}


@pytest.fixture
def fit(make_module, make_data, make_trainer, tmp_path, caplog):
    """Trains an epoch with some arguments, then a second one with others; gives the second's module, rates, lines."""

    def run(before: dict[str, Any], after: dict[str, Any], watch: tuple[str, ...] = (), epochs: int = 2, **more: Any):
        first = make_trainer(max_epochs=1, **more)
        first.fit(make_module(**before), datamodule=make_data())
        first.save_checkpoint(tmp_path / "a.ckpt")
        rates = Rates(*watch)
        second = make_trainer(max_epochs=epochs, callbacks=[rates], **more)
        module = make_module(**after)
        caplog.clear()
        with caplog.at_level("INFO"):
            second.fit(module, datamodule=make_data(), ckpt_path=tmp_path / "a.ckpt", weights_only=True)
        return module, rates, [r.getMessage() for r in caplog.records if r.getMessage().startswith("resumed: ")]

    return run


def adamw(**kwargs: Any) -> Any:
    return partial(AdamW, **{"lr": 1e-3, **kwargs})


def test_a_new_learning_rate_holds_from_the_first_step_on(fit):
    module, rates, lines = fit({"optimizer": adamw()}, {"optimizer": adamw(lr=1e-4)})
    assert rates.lr == dict.fromkeys((3, 4, 5), 1e-4)
    assert lines == [
        "resumed: model.optimizer.lr was 0.001, is 0.0001 from step 3 on",
        "resumed: the learning rate was 0.001, is 0.0001 from step 3 on",
    ]
    (state,) = {float(state["step"]) for state in module.trainer.optimizers[0].state.values()}
    assert state == 6  # its moments went on


def test_what_is_not_changed_is_bit_for_bit_the_same(fit, make_module, make_data, make_trainer):
    """The weights of a resume at another weight decay are those of a run in which nothing but it was set by hand."""
    scheduler = partial(LinearLR, start_factor=1.0, end_factor=0.1, total_iters=6)

    class ByHand(Callback):
        def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
            if trainer.global_step == STEPS:
                trainer.optimizers[0].param_groups[0]["weight_decay"] = 0.5

    straight = make_module(optimizer=adamw(), lr_scheduler=scheduler)
    make_trainer(max_epochs=2, callbacks=[ByHand()]).fit(straight, datamodule=make_data())
    changed, _, lines = fit(
        {"optimizer": adamw(), "lr_scheduler": scheduler},
        {"optimizer": adamw(weight_decay=0.5), "lr_scheduler": scheduler},
    )
    assert lines == ["resumed: model.optimizer.weight_decay was 0.01, is 0.5 from step 3 on"]
    assert all(torch.equal(a, b) for a, b in zip(changed.parameters(), straight.parameters(), strict=True))


def test_an_unchanged_resume_says_nothing(fit):
    same = {"optimizer": adamw(), "lr_scheduler": HALVING}
    assert fit(same, same)[2] == []
    # given or left to its default is the same
    assert fit({"optimizer": adamw()}, {"optimizer": adamw(betas=(0.9, 0.999), weight_decay=0.01)})[2] == []


@pytest.mark.parametrize(
    ("made", "options"),
    [
        (AdamW, {"betas": (0.5, 0.9)}),
        (AdamW, {"eps": 1e-3}),
        (AdamW, {"maximize": True}),
        (AdamW, {"foreach": True}),
        (SGD, {"momentum": 0.9}),
        (SGD, {"momentum": 0.9, "nesterov": True, "dampening": 0.0}),
        (RMSprop, {"alpha": 0.5}),
    ],
)
def test_each_option_of_an_optimizer(fit, made, options):
    before, after = partial(made, lr=1e-3), partial(made, lr=1e-3, **options)
    _, rates, lines = fit({"optimizer": before}, {"optimizer": after}, (*options,))
    assert rates.groups == options
    assert len(lines) == len([name for name in options if name != "dampening"])


def test_a_longer_schedule_is_the_one_that_was_asked_for(fit):
    def scheduler(steps: int) -> Any:
        return partial(LinearLR, start_factor=1.0, end_factor=0.1, total_iters=steps)

    _, rates, lines = fit(
        {"optimizer": adamw(), "lr_scheduler": scheduler(3)}, {"optimizer": adamw(), "lr_scheduler": scheduler(6)}
    )
    assert rates.lr == pytest.approx({n: 1e-3 * (1 - 0.9 * n / 6) for n in (3, 4, 5)})
    assert lines == [
        "resumed: model.lr_scheduler.total_iters was 3, is 6 from step 3 on",
        "resumed: the learning rate was 0.0001, is 0.00055 from step 3 on",
    ]


def test_another_rate_under_a_schedule_is_on_its_curve(fit):
    decay = HALVING
    _, rates, _ = fit(
        {"optimizer": adamw(), "lr_scheduler": decay}, {"optimizer": adamw(lr=1e-2), "lr_scheduler": decay}
    )
    assert rates.lr == pytest.approx({n: 1e-2 * 0.5**n for n in (3, 4, 5)})


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        (None, HALVING, HALVED),
        (HALVING, None, [1.0] * 3),
        (partial(StepLR, step_size=1), HALVING, HALVED),
        (PLATEAU, HALVING, HALVED),
        (HALVING, PLATEAU, [1.0] * 3),
        (partial(OneCycleLR, max_lr=1.0, total_steps=9), HALVING, HALVED),
    ],
    ids=["none to one", "one to none", "another", "from plateau", "to plateau", "from one cycle"],
)  # fmt: skip
def test_another_scheduler_goes_on_at_the_same_step(fit, before, after, expected):
    _, rates, lines = fit({"optimizer": adamw(), "lr_scheduler": before}, {"optimizer": adamw(), "lr_scheduler": after})
    assert list(rates.lr.values()) == pytest.approx([1e-3 * factor for factor in expected])
    assert lines[0].startswith("resumed: model.lr_scheduler was ")


def test_the_momentum_of_one_cycle_ends_with_it(fit):
    cycle = partial(OneCycleLR, max_lr=1.0, total_steps=9)
    _, rates, _ = fit({"optimizer": adamw(), "lr_scheduler": cycle}, {"optimizer": adamw()}, ("betas",))
    assert rates.groups["betas"] == (0.9, 0.999)


def test_options_of_a_plateau_replace_those_in_its_state(fit):
    def plateau(**kwargs: Any) -> Any:
        return partial(ReduceLROnPlateau, monitor="train/loss_epoch", **kwargs)

    module, _, _ = fit({"lr_scheduler": plateau()}, {"lr_scheduler": plateau(patience=77, factor=0.3, min_lr=1e-5)})
    (config,) = module.trainer.lr_scheduler_configs
    assert (config.scheduler.patience, config.scheduler.factor, config.scheduler.min_lrs) == (77, 0.3, [1e-5])
    assert config.scheduler.last_epoch == 2  # and what it has seen


def test_a_schedule_follows_the_run_that_has_become_longer(fit):
    follows = {"optimizer": adamw(), "lr_scheduler": partial(LinearDecay, end_factor=0.1)}
    _, rates, lines = fit(follows, follows, epochs=4)
    assert rates.lr == pytest.approx({n: 1e-3 * (1 - 0.9 * n / 12) for n in range(3, 12)})
    assert lines == [
        "resumed: model.lr_scheduler: LinearDecay was for 3 steps, is for 12 from step 3 on",
        "resumed: the learning rate was 0.0001, is 0.000775 from step 3 on",
    ]


def test_the_length_is_that_of_the_steps_made_and_those_to_come(make_module, make_data, make_trainer, tmp_path):
    """Four of six batches at 8 examples, then on at 16: one batch of the first epoch is left."""
    follows = {"optimizer": adamw(), "lr_scheduler": partial(LinearDecay, end_factor=0.1)}
    first = make_trainer(max_epochs=2, max_steps=4, limit_train_batches=6)
    first.fit(make_module(**follows), datamodule=make_data(8))
    first.save_checkpoint(tmp_path / "a.ckpt")
    rates = Rates()
    second = make_trainer(max_epochs=2, callbacks=[rates], limit_train_batches=3)
    second.fit(make_module(**follows), datamodule=make_data(16), ckpt_path=tmp_path / "a.ckpt", weights_only=True)
    assert rates.lr == pytest.approx({n: 1e-3 * (1 - 0.9 * n / 8) for n in (4, 5, 6, 7)})


def test_decay_clipping_objective_and_sampler(fit):
    changed = {
        "ema_decay": 0.5,
        "clip_norm": 0.25,
        "max_skipped_steps": 3,
        "objective": DenoisingScoreMatching(weighting="karras"),
        "sampler": DDIM(steps=3),
    }
    module, _, lines = fit({}, changed)
    assert (module.ema.decay, module.clip_norm, module.max_skipped_steps) == (0.5, 0.25, 3)
    assert (module.objective.weighting, type(module.sampler)) == ("karras", DDIM)
    assert lines == [
        "resumed: model.clip_norm was 1.0, is 0.25 from step 3 on",
        "resumed: model.ema_decay was 0.9999, is 0.5 from step 3 on",
        "resumed: model.max_skipped_steps was 10, is 3 from step 3 on",
        "resumed: model.objective.weighting was simple, is karras from step 3 on",
        "resumed: model.sampler was Heun, is DDIM from step 3 on",
    ]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"optimizer": partial(SGD, lr=0.1)}, "model.optimizer=SGD: the checkpoint has the state of AdamW, of which"),
        ({"optimizer": adamw(amsgrad=True)}, "model.optimizer.amsgrad=True: cannot be changed on a resume, for"),
        ({"sde": KarrasSDE(sigma_max=50.0)}, r"model.sde.sigma_max=50.0: the checkpoint was trained with 80.0, and"),
        ({"sde": VPSDE()}, "model.sde=VPSDE: the checkpoint was trained with KarrasSDE, and its weights mean noth"),
        ({"parameterization": NoisePrediction()}, "model.parameterization=NoisePrediction: the checkpoint was trained"),
        (
            {"network": UNet(channels=(8,), num_res_blocks=1, embed_dim=8, patch_size=4)},
            "of another network: channels=",
        ),
    ],
)
def test_what_cannot_be_applied_is_refused(fit, changed, message):
    with pytest.raises(ValueError, match=message):
        fit({"optimizer": adamw()}, {"optimizer": adamw(), **changed})


def test_a_rate_that_the_scheduler_sets_is_refused(fit):
    cycle = partial(OneCycleLR, max_lr=1e-3, total_steps=9)
    with pytest.raises(ValueError, match=r"model\.optimizer\.lr=0\.5: does nothing, for OneCycleLR sets it by its own"):
        fit({"optimizer": adamw(), "lr_scheduler": cycle}, {"optimizer": adamw(lr=0.5), "lr_scheduler": cycle})


def test_an_argument_newer_than_the_checkpoint_had_its_default(make_module):
    module = make_module()
    saved = copy.deepcopy(dict(module.hparams))
    del saved["network"]["init_args"]["num_heads"], saved["sampler"]["init_args"]["rho"], saved["max_skipped_steps"]
    assert module.changes({"hyper_parameters": saved}) == []
    other = make_module(sampler=Heun(steps=2, rho=3.0), max_skipped_steps=2)
    assert other.changes({"hyper_parameters": saved}) == [
        Change("max_skipped_steps", 10, 2),
        Change("sampler.rho", 7.0, 3.0),
    ]


def test_dropout_is_no_other_network(fit):
    def network(dropout: float) -> UNet:
        return UNet(channels=(4,), num_res_blocks=1, embed_dim=8, middle_attention=False, patch_size=4, dropout=dropout)

    _, _, lines = fit({"network": network(0.0)}, {"network": network(0.5)})
    assert lines == ["resumed: model.network.dropout was 0.0, is 0.5 from step 3 on"]
