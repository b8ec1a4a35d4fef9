"""On a CUDA device that is not there: no tensor is left on the CPU, and nobody waits for a value of the device.

What :class:`fake_device.FakeDevice` cannot do, see there, ``tests/cuda`` does on a real one; backward passes are driven
on ``meta``. ``ProbabilityFlowODE`` is not here: an adaptive solver must read its error, so the host must wait.
"""

from collections.abc import Iterator
from inspect import isabstract

import pytest
import torch
from fake_device import FakeDevice, Waited, fakes_cuda
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensor

from diffusion_lightning import (
    DDIM,
    DDPM,
    MLP,
    SDE,
    VESDE,
    VPSDE,
    AncestralPredictor,
    AnnealedLangevin,
    AnnealedLangevinCorrector,
    CosineVPSDE,
    Denoiser,
    DenoisingScoreMatching,
    DiscreteVESDE,
    DiscreteVPSDE,
    DoubleConvUNet,
    DPMSolverPlusPlus,
    EulerMaruyama,
    EulerMaruyamaPredictor,
    Heun,
    ImportanceTimes,
    KarrasPreconditioning,
    KarrasSDE,
    LogNormalTimes,
    NetworkDenoiser,
    NoisePrediction,
    PowerVESDE,
    PredictorCorrector,
    RectifiedFlow,
    ScoreNet,
    ScorePrediction,
    SubVPSDE,
    UNet,
    UniformTimes,
    VelocityPrediction,
    samplers,
    sde,
)
from diffusion_lightning.data.augmentation import Transformations
from diffusion_lightning.data.tensor_images import TensorImages, normalize
from diffusion_lightning.images import image_grid, to_uint8, visible
from diffusion_lightning.likelihood import _divergence
from diffusion_lightning.metrics.features import DigitFeatures
from diffusion_lightning.philox import normal_rows
from diffusion_lightning.training.ema import EMA
from diffusion_lightning.training.epoch_loss import EpochLoss
from diffusion_lightning.training.skipped_steps import SkippedSteps

TORCH = tuple(int(number) for number in torch.__version__.split(".")[:2])
pytestmark = pytest.mark.skipif(
    TORCH < (2, 15) and not fakes_cuda(), reason="this torch asks a driver that is not here even for a fake tensor"
)

SDES = [
    PowerVESDE(), VESDE(), VPSDE(), SubVPSDE(), CosineVPSDE(), KarrasSDE(), RectifiedFlow(),
    DiscreteVPSDE(4), DiscreteVESDE(),
]  # fmt: skip

SAMPLERS = {
    "EulerMaruyama": lambda steps: EulerMaruyama(steps),
    "PredictorCorrector": lambda steps: PredictorCorrector(steps),
    "annealed": lambda steps: PredictorCorrector(steps, AncestralPredictor(), AnnealedLangevinCorrector()),
    "predictor": lambda steps: PredictorCorrector(steps, EulerMaruyamaPredictor(), None),
    "DDPM": lambda steps: DDPM(steps),
    "DDPM-beta": lambda steps: DDPM(steps, "beta"),
    "DDIM": lambda steps: DDIM(steps, eta=0.5),
    "Heun": lambda steps: Heun(steps, churn=1.0),
    "DPMSolverPlusPlus": lambda steps: DPMSolverPlusPlus(steps, order=3),
    "AnnealedLangevin": lambda steps: AnnealedLangevin(steps, 2e-8, scales=3),
}

NETWORKS = {
    "UNet": lambda: UNet(1, (4, 8), 1, attention_levels=(1,), num_heads=2, embed_dim=8, num_classes=3),
    "UNet-fourier": lambda: UNet(1, (4,), 1, embed_dim=8, middle_attention=False, time_embedding="fourier"),
    "DoubleConvUNet": lambda: DoubleConvUNet(1, (4, 8), 8, attention_levels=(1,), time_dim=8),
    "ScoreNet": lambda: ScoreNet((32, 32), embed_dim=8),
    "MLP": lambda: MLP(2, (8,)),
}


class Shrink(Denoiser):
    """The exact denoiser of Gaussian data, with nothing on any device."""

    device = torch.device("cuda")

    def denoise(self, x: Tensor, t: Tensor, **cond: object) -> Tensor:
        alpha, sigma = self.sde.alpha(t), self.sde.sigma(t)
        return (alpha / (alpha**2 + sigma**2)).reshape(-1, *[1] * (x.ndim - 1)) * x


def name(value: object) -> str:
    return type(value).__name__


@pytest.fixture
def cuda() -> Iterator[FakeDevice]:
    with FakeDevice() as mode:
        yield mode


def test_what_would_wait_or_is_left_on_the_cpu_raises(cuda):
    on_device, on_cpu = torch.ones(2, device="cuda"), torch.ones(2)
    assert on_cpu.sum().item() == 2
    for read in (lambda: on_device.sum().item(), lambda: bool(on_device[0] > 0), lambda: on_device.tolist()):
        with pytest.raises(DataDependentOutputException):
            read()
    for copy in (on_device.cpu, lambda: on_cpu.copy_(on_device)):
        with pytest.raises(Waited):
            copy()
    with pytest.raises(RuntimeError, match=r"cuda:0.*cpu"):
        on_device + on_cpu
    assert cuda.copies == 0
    assert isinstance(on_cpu.to("cuda"), FakeTensor)
    assert cuda.copies == 1


@pytest.mark.parametrize("sde", SDES, ids=name)
def test_processes(sde, cuda):
    t, x = torch.full((3,), 0.5, device="cuda"), torch.zeros(3, 2, device="cuda")
    sde.alpha(t)  # which may put a table there
    cuda.copies = 0
    made = [
        *(sde.alpha(t), sde.sigma(t), sde.diffusion(t), sde.drift(x, t), sde.noise_level(t), *sde.rates(t)),
        *(sde.time_at(sde.noise_level(t)), *sde.transition(t, t / 2), sde.perturb(x, t, x), sde.nearest_times(t)),
        *(sde.uniform_times(t), sde.prior((3, 2), device="cuda"), sde.prior_log_prob(x)),
    ]
    assert {value.device.type for value in made} == {"cuda"}
    assert cuda.copies == 0


def test_no_process_and_no_sampler_is_left_out():
    for base, tried in ((sde, map(type, SDES)), (samplers, (type(make(1)) for make in SAMPLERS.values()))):
        public = {name for name, kind in vars(base).items() if is_concrete(kind) and not name.startswith("_")}
        assert public == {kind.__name__ for kind in tried} | ({"ProbabilityFlowODE"} if base is samplers else set())


def is_concrete(kind: object) -> bool:
    return isinstance(kind, type) and issubclass(kind, (SDE, samplers.Sampler)) and not isabstract(kind)


@pytest.mark.parametrize("make", SAMPLERS.values(), ids=SAMPLERS)
def test_samplers(make, cuda):
    copies = []
    for steps in (2, 4):
        cuda.copies = 0
        sampler = make(steps)
        assert sampler(Shrink(VPSDE()), (2, 3)).device.type == "cuda"
        assert sampler.nfe >= steps
        copies.append(cuda.copies)
    assert copies[1] <= max(copies[0], 1), "a step waits until something is on the device"


@pytest.mark.parametrize(
    "parameterization",
    [ScorePrediction(), ScorePrediction("noise"), NoisePrediction(), VelocityPrediction(), KarrasPreconditioning()],
    ids=name,
)
@pytest.mark.parametrize("sde", [VPSDE(), DiscreteVESDE()], ids=name)
def test_parameterizations(parameterization, sde, cuda):
    t = torch.full((2,), 0.5, device="cuda")
    assert {c.device.type for c in parameterization.coefficients(sde, t)} == {"cuda"}
    assert cuda.copies == 0


@pytest.mark.parametrize("make", NETWORKS.values(), ids=NETWORKS)
def test_networks_forward_and_backward(make):
    for kind in ("cuda", "meta"):
        with FakeDevice(kind) as mode, torch.device(kind):
            network = make()
            x = torch.zeros((2, 2) if isinstance(network, MLP) else (2, 1, 16, 16))
            labels = {"labels": torch.tensor([0, 2])} if getattr(network, "num_classes", None) else {}
            denoiser, t = NetworkDenoiser(network, VPSDE(), NoisePrediction()), torch.full((2,), 0.5)
            mode.copies = 0
            if kind == "cuda":
                denoiser.score(x, t, **labels)
                network.eval()
                denoiser.probability_flow(x, t)
            else:
                drawn = t, torch.ones_like(x)
                DenoisingScoreMatching()(denoiser, x, drawn=drawn, **labels).mean().backward()
                assert all(p.grad is not None for p in network.parameters() if p.requires_grad)
            assert mode.copies == 0


@pytest.mark.parametrize(
    "objective",
    [
        DenoisingScoreMatching("simple", UniformTimes()),
        DenoisingScoreMatching("likelihood", ImportanceTimes()),
        DenoisingScoreMatching("karras", LogNormalTimes(), "mean"),
        DenoisingScoreMatching("min_snr"),
    ],
    ids=lambda objective: objective.weighting,
)
@pytest.mark.parametrize("sde", [VPSDE(), DiscreteVPSDE(4)], ids=name)
def test_the_objective(objective, sde, cuda):
    x = torch.zeros(4, 3, device="cuda")
    objective(Shrink(sde), x)  # the grid of a discrete process comes there once
    cuda.copies = 0
    losses = objective(Shrink(sde), x, drawn=objective.draw(sde, x.shape, device="cuda"))
    assert losses.shape == (4,)
    assert losses.device.type == "cuda"


def test_draws_of_own_rows(cuda):
    noise = normal_rows(7, torch.arange(3, device="cuda"), (3, 5))
    assert noise.shape == (3, 3, 5)
    assert cuda.copies == 0


def test_what_follows_a_backward_pass(cuda, make_trainer):
    with torch.device("cuda"):
        network = nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(network.parameters(), fused=True)
    optimizer._step_supports_amp_scaling = True
    ema, skipping, trainer = EMA(network.parameters(), 0.99), SkippedSteps(10), make_trainer()
    mean = EpochLoss()
    for step in range(3):
        mean.begin(torch.device("cuda"), anew=step == 0)
        mean.add(torch.zeros((), device="cuda"), 4)
        for parameter in network.parameters():
            parameter.grad = torch.ones_like(parameter)
        norm = nn.utils.get_total_norm([p.grad for p in network.parameters()])
        skipping.look(norm, optimizer, trainer, network, None)
        nn.utils.clip_grads_with_norm_(network.parameters(), 1.0, norm)
        optimizer.step()
        ema.update(kept=skipping.kept)
        if step == 0:
            cuda.copies = 0  # the counts come there once
    assert cuda.copies == 0
    assert {average.device.type for average in ema.shadow_params} == {"cuda"}
    for read in (lambda: skipping.total, lambda: ema.num_updates, lambda: skipping.read(trainer, network, None)):
        with pytest.raises(DataDependentOutputException):
            read()


def test_the_likelihoods_divergence():
    with FakeDevice("meta") as meta, torch.device("meta"):
        denoiser = NetworkDenoiser(MLP(2, (8,)), VPSDE(), NoisePrediction())
        t = torch.full((3,), 0.5)
        for probe in (torch.ones(3, 2), None):
            x = torch.zeros(3, 2, requires_grad=True)
            assert _divergence(denoiser.probability_flow(x, t), x, probe).shape == (3,)
        assert meta.copies == 0


def test_images(cuda):
    images = TensorImages(torch.zeros(9, 1, 8, 8, dtype=torch.uint8), torch.zeros(9, dtype=torch.int64))
    there = images.to(torch.device("cuda"))
    cuda.copies = 0
    batch, labels = there[[3, 1]]
    x = normalize(batch)
    assert x.device.type == labels.device.type == "cuda"
    one = torch.ones(2, device="cuda")
    moved = Transformations(one > 0, one > 0, one, one, one, one, torch.zeros(2, 2, device="cuda"))
    assert moved(x).device.type == moved.labels.device.type == "cuda"
    assert cuda.copies == 0
    assert {picture.device.type for picture in (to_uint8(x), image_grid(x), visible(x))} == {"cuda"}


@pytest.mark.parametrize("shape", [(2, 1, 28, 28), (2, 3, 32, 32)])
def test_features_of_digits(shape):
    with FakeDevice() as cuda:
        features = DigitFeatures().to("cuda")
        cuda.copies = 0
        assert features(torch.zeros(shape, dtype=torch.uint8, device="cuda")).shape == (2, 128)
