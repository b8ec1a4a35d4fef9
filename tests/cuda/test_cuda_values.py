"""What a CUDA device computes is what the CPU does from the same weights and draws, within the rounding of float32."""

import pytest
import torch
from torch import nn

from diffusion_lightning import (
    DDIM,
    DDPM,
    VPSDE,
    AncestralPredictor,
    AnnealedLangevin,
    AnnealedLangevinCorrector,
    DenoisingScoreMatching,
    DiscreteVPSDE,
    DPMSolverPlusPlus,
    EulerMaruyama,
    EulerMaruyamaPredictor,
    GaussianMixtureDenoiser,
    Heun,
    KarrasPreconditioning,
    KarrasSDE,
    NetworkDenoiser,
    PredictorCorrector,
    ProbabilityFlowODE,
    UNet,
    log_likelihood,
)
from diffusion_lightning.metrics.features import DigitFeatures
from diffusion_lightning.metrics.fid import ReferenceFID
from diffusion_lightning.philox import normal_rows, philox
from diffusion_lightning.training.ema import EMA

pytestmark = pytest.mark.cuda

SAMPLERS = {
    "EulerMaruyama": EulerMaruyama(8),
    "PredictorCorrector": PredictorCorrector(8),
    "annealed": PredictorCorrector(8, AncestralPredictor(), AnnealedLangevinCorrector()),
    "predictor": PredictorCorrector(8, EulerMaruyamaPredictor(), None),
    "DDPM": DDPM(8),
    "DDIM": DDIM(8),
    "DDIM-eta": DDIM(8, eta=1.0),
    "Heun": Heun(8),
    "Heun-churn": Heun(8, churn=2.0),
    "DPMSolverPlusPlus": DPMSolverPlusPlus(8, order=3),
    "AnnealedLangevin": AnnealedLangevin(4, 2e-7, scales=4),
    "dopri5": ProbabilityFlowODE(),
    "rk4": ProbabilityFlowODE("rk4", steps=8),
}


def unet() -> UNet:
    """Of a convolution, attention and classes; no weight is zero, as some are at the start."""
    torch.manual_seed(0)
    network = UNet(1, (16, 32), 1, attention_levels=(1,), num_heads=2, embed_dim=16, num_classes=3)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.1)
    return network


def normal(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def mixture(sde: object) -> GaussianMixtureDenoiser:
    means = torch.tensor([[0.5, -0.5, 0.2], [-0.4, 0.3, 0.1]])
    return GaussianMixtureDenoiser(means, torch.tensor([0.4, 0.6]), torch.tensor([1.0, 2.0]), sde)


def test_draws_by_counters(device, close):
    words = [philox([torch.full((5,), n, device=at) for n in (1, 2, 3, 4)], 2**40 + 7) for at in (device, "cpu")]
    assert all(torch.equal(one.cpu(), other) for one, other in zip(*words, strict=True))
    on_device, on_cpu = (normal_rows(7, torch.arange(64, device=at), (3, 32, 32)) for at in (device, "cpu"))
    close(on_device, on_cpu, within=1e-5)


def test_training_steps(device, close):
    objective = DenoisingScoreMatching("karras", reduction="mean")
    x, labels = normal(8, 1, 16, 16), torch.arange(8) % 3
    seen = []
    for at in (torch.device("cpu"), device):
        network = unet().to(at)
        denoiser = NetworkDenoiser(network, KarrasSDE(), KarrasPreconditioning())
        optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9)
        ema, made = EMA(network.parameters(), 0.99), []
        for step in range(3):
            times = 0.01 + 10 * torch.rand(8, generator=torch.Generator().manual_seed(step)) ** 3
            drawn = times.to(at), normal_rows(step, torch.arange(8, device=at), x.shape[1:])
            losses = objective(denoiser, x.to(at), drawn=drawn, labels=labels.to(at))
            optimizer.zero_grad()
            losses.mean().backward()
            made += [losses, *(p.grad.clone() for p in network.parameters())]
            nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
            ema.update(kept=losses.isfinite().all())
        seen.append([*made, *network.parameters(), *ema.shadow_params])
    close(seen[1], seen[0], within=2e-4)


@pytest.mark.parametrize("sde", [VPSDE(), DiscreteVPSDE(100)], ids=lambda sde: type(sde).__name__)
@pytest.mark.parametrize("name", SAMPLERS)
def test_samplers(name, sde, device, close):
    x_T = normal(64, 3)
    expected, found = (
        SAMPLERS[name](mixture(sde).to(at), x_T.shape, x_T=x_T.to(at), generator=torch.Generator().manual_seed(0))
        for at in ("cpu", device)
    )
    close(found, expected, within=1e-3 if name == "dopri5" else 2e-4)


def test_samples_of_a_network(device, close):
    denoiser = NetworkDenoiser(unet(), KarrasSDE(), KarrasPreconditioning()).eval()
    x_T, labels = 80 * normal(4, 1, 16, 16), torch.tensor([0, 1, 2, 0])
    expected = Heun(4)(denoiser, x_T.shape, x_T=x_T, labels=labels)
    found = Heun(4)(denoiser.to(device), x_T.shape, x_T=x_T.to(device), labels=labels.to(device))
    close(found, expected, within=1e-3)


@pytest.mark.parametrize("divergence", ["hutchinson", "exact"])
def test_likelihoods(divergence, device, close):
    x = mixture(VPSDE()).sample_data(32, torch.Generator().manual_seed(0))
    settings = {"divergence": divergence, "rtol": 1e-5, "atol": 1e-5}
    expected = log_likelihood(mixture(VPSDE()), x, generator=torch.Generator().manual_seed(1), **settings)
    found = log_likelihood(mixture(VPSDE()).to(device), x, generator=torch.Generator().manual_seed(1), **settings)
    close(found, expected, within=2e-3)


def test_features_and_fid_of_digits(digits, device, close, tmp_path):
    real, drawn = digits[0].images[:600], digits[1].images[:600]
    close(DigitFeatures().to(device)(drawn.to(device)), DigitFeatures()(drawn), within=1e-4)
    distances = []
    for number, at in enumerate(("cpu", device)):
        fid = ReferenceFID(DigitFeatures(), cache=tmp_path / str(number))  # each its own statistics
        fid.metric.to(at)
        fid.set_reference([real], "digits")
        fid.update(drawn)
        distances.append(torch.tensor(fid.compute(), device=at))
    assert distances[0] > 0.1
    close(distances[1], distances[0], within=1e-4)
