"""All that a run and a command compute on a device that has no float64, such as Apple's; see ``without_float64``."""

from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any, get_args

import pytest
import torch
from torch import Tensor, nn
from without_float64 import DEVICE, OnDevice, device_without_float64

from diffusion_lightning import FIDCallback, Heun
from diffusion_lightning.denoiser import NetworkDenoiser
from diffusion_lightning.likelihood import log_likelihood
from diffusion_lightning.metrics.sliced_wasserstein import sliced_wasserstein
from diffusion_lightning.networks import MLP
from diffusion_lightning.objective import DenoisingScoreMatching, ImportanceTimes, LogNormalTimes, UniformTimes
from diffusion_lightning.parameterization import KarrasPreconditioning, NoisePrediction
from diffusion_lightning.samplers import (
    DDIM,
    DDPM,
    AnnealedLangevin,
    DPMSolverPlusPlus,
    EulerMaruyama,
    PredictorCorrector,
    ProbabilityFlowODE,
)
from diffusion_lightning.samplers.ode import AdaptiveMethod, FixedMethod
from diffusion_lightning.sde import SDE, VESDE, VPSDE, DiscreteVESDE, DiscreteVPSDE, KarrasSDE, SubVPSDE

PROCESSES = [VESDE(), VPSDE(), SubVPSDE(), KarrasSDE(), DiscreteVPSDE(20), DiscreteVESDE()]


def denoiser(sde: SDE) -> NetworkDenoiser:
    torch.manual_seed(0)
    parameterization = KarrasPreconditioning() if isinstance(sde, KarrasSDE) else NoisePrediction()
    return NetworkDenoiser(MLP(2, (8,)), sde, parameterization)


def start(denoiser: NetworkDenoiser) -> Tensor:
    return denoiser.sde.prior((3, 2), generator=torch.Generator().manual_seed(0))


def test_the_device_is_as_apples() -> None:
    with device_without_float64() as device:
        x = torch.ones(2, 3).to(device)
        assert x.device == torch.zeros(2, device=device).device == DEVICE
        assert (2 * x + torch.tensor(1.0, device=device)).sum().item() == 18
        for make in (
            x.double,
            lambda: torch.ones(2, dtype=torch.float64).to(device),
            lambda: torch.ones(2, dtype=torch.float64, device=device),
            lambda: torch.tensor(1.0, dtype=torch.float64, device=device),
            lambda: torch.randn(2, dtype=torch.float64, device=device, generator=torch.Generator(device)),
        ):
            with pytest.raises(TypeError, match="float64"):
                make()
        assert torch.ones(2, dtype=torch.float64).to(device, torch.float32).dtype == torch.float32
        with pytest.raises(RuntimeError, match="on the same device"):
            x + torch.ones(3)


@pytest.mark.parametrize("sde", PROCESSES, ids=lambda sde: type(sde).__name__)
def test_samplers_draw_as_on_the_cpu(sde: SDE) -> None:
    model = denoiser(sde)
    samplers: list[Any] = [Heun(3), DDIM(3), DPMSolverPlusPlus(3), ProbabilityFlowODE("bosh3", rtol=1e-2, atol=1e-2)]
    expected = [sampler(model, (3, 2), x_T=start(model)) for sampler in samplers]
    with device_without_float64() as device:
        model.to(device)
        for sampler, wanted in zip(samplers, expected, strict=True):
            found = sampler(model, (3, 2), x_T=start(model).to(device))
            assert isinstance(found, OnDevice)
            # a clock in float32 chooses steps that differ in their last digits
            torch.testing.assert_close(found.values, wanted, rtol=1e-3, atol=1e-3)
        random = [EulerMaruyama(3), DDPM(3), PredictorCorrector(3)]
        random += [AnnealedLangevin(2, 1e-6)] if sde.variance_exploding else []
        for sampler in random:
            sampler(model, (3, 2), generator=torch.Generator(device))


@pytest.mark.parametrize("method", [*get_args(AdaptiveMethod), *get_args(FixedMethod)])
def test_each_method_of_the_ode_works_or_says_that_it_cannot(method: Any) -> None:
    model, ode = denoiser(VPSDE()), ProbabilityFlowODE(method, rtol=0.1, atol=0.1, steps=4)
    expected = ode(model, (3, 2), x_T=start(model))
    with device_without_float64() as device:
        model.to(device)
        if "adams" in method:
            with pytest.raises(ValueError, match=f"method='{method}': needs float64, which mps has not: take rk4"):
                ode(model, (3, 2), x_T=start(model).to(device))
        else:
            found = ode(model, (3, 2), x_T=start(model).to(device))
            torch.testing.assert_close(found.cpu(), expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("divergence", ["hutchinson", "exact"])
def test_the_likelihood_is_that_of_the_cpu(divergence: Any) -> None:
    model, x = denoiser(VPSDE()), torch.ones(2, 2)

    def nats() -> Tensor:
        generator = torch.Generator().manual_seed(0)
        settings: dict[str, Any] = {"divergence": divergence, "rtol": 1e-2, "atol": 1e-2, "method": "bosh3"}
        return log_likelihood(model, x.to(model.device), generator=generator, **settings)[0]

    expected = nats()
    with device_without_float64() as device:
        model.to(device)
        torch.testing.assert_close(nats().cpu(), expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("sde", PROCESSES, ids=lambda sde: type(sde).__name__)
@pytest.mark.parametrize("times", [UniformTimes(), LogNormalTimes(), ImportanceTimes()], ids=lambda x: type(x).__name__)
def test_the_loss_and_its_gradient(sde: SDE, times: Any) -> None:
    with device_without_float64() as device:
        model = denoiser(sde).to(device)
        for weighting in ("simple", "likelihood", "karras", "min_snr"):
            objective = DenoisingScoreMatching(weighting, times)  # type: ignore[arg-type]
            losses = objective(model, torch.ones(3, 2).to(device), generator=torch.Generator(device))
            assert isinstance(losses, OnDevice)
            gradients = torch.autograd.grad(losses.mean(), list(model.network.parameters()))
            assert all(gradient.device == device for gradient in gradients)


class Patches(nn.Module):
    """Sixteen means over patches, times one weight."""

    num_features = 16

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(1 / 255))

    def forward(self, images: Tensor) -> Tensor:
        assert images.device == self.weight.device
        return nn.functional.avg_pool2d(self.weight * images.float(), 7).flatten(1)


def evaluated(callback: Any, module: Any, data: Any) -> dict[str, float]:
    """What the callback logs."""
    found: dict[str, Any] = {}
    module.log = lambda name, value, **_: found.update({name: value})
    strategy = SimpleNamespace(broadcast=lambda x: x, reduce=lambda x, **_: x)
    trainer = SimpleNamespace(
        **{"datamodule": data, "world_size": 1, "global_rank": 0, "is_global_zero": True, "strategy": strategy},
        precision_plugin=SimpleNamespace(forward_context=nullcontext),
    )
    module.log_dict = lambda values, **_: found.update(values)
    module.all_gather, module._trainer = (lambda rows: rows), trainer
    callback.setup(trainer, module, "fit")
    callback.evaluate(trainer, module)
    return found


def test_fid_is_that_of_the_cpu(make_module: Any, make_data: Any, tmp_path: Any) -> None:
    module, data = make_module(shape=(1, 28, 28)), make_data()
    draw = module.sample
    # the device's generator draws other noise, as the real one's does
    module.sample = lambda *args, **kwargs: draw(*args, **{**kwargs, "generator": torch.Generator().manual_seed(0)})
    callbacks = [
        FIDCallback(num_samples=20, batch_size=8, feature=Patches(), cache=str(tmp_path / name)) for name in "ab"
    ]
    expected = evaluated(callbacks[0], module, data)
    with device_without_float64() as device:
        module.to(device)
        module.ema_weights = nullcontext  # which knows the weights only that have been replaced
        found = evaluated(callbacks[1], module, data)
        assert isinstance(callbacks[1]._fid.features.weight, OnDevice)
        assert callbacks[1]._fid.metric.device == torch.device("cpu")
    assert found == pytest.approx(expected, rel=1e-4)


def test_the_sliced_wasserstein_distance() -> None:
    x, y = torch.randn(2, 50, 2, generator=torch.Generator().manual_seed(0)).unbind()
    expected = sliced_wasserstein(x, y, 4000, torch.Generator().manual_seed(1))
    with device_without_float64() as device:
        found = sliced_wasserstein(x.to(device), y, 4000, torch.Generator(device).manual_seed(1))
    assert found == pytest.approx(expected, rel=0.05)
