"""Guidance whose exact answer is known: of Gaussians of equal variance, of mixtures, and flows of three affine maps."""

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from diffusion_lightning import (
    DDIM,
    DDPM,
    SDE,
    VPSDE,
    AutoGuidance,
    ClassifierFreeGuidance,
    ClassifierGuidance,
    Denoiser,
    DPMSolverPlusPlus,
    EulerMaruyama,
    GaussianMixtureDenoiser,
    Heun,
    KarrasSDE,
    NetworkDenoiser,
    NoisePrediction,
    PredictorCorrector,
    ProbabilityFlowODE,
    RectifiedFlow,
    UNet,
    log_likelihood,
)

MEANS = torch.tensor([[1.0, -0.5], [-1.0, 0.25], [0.2, 0.1]])
"""Of two classes, and of the data without a class."""
STD = 0.3


class Classes(Denoiser):
    """Exact for N(μ_c, s²) with a class and N(μ_u, s²) without; counts how often it is asked."""

    def __init__(self, sde: SDE, has_null: bool = False) -> None:
        super().__init__(sde)
        self.has_null, self.calls = has_null, 0

    @property
    def num_classes(self) -> int:
        return 2

    def null(self, **cond: Any) -> dict[str, Tensor] | None:
        return {"labels": torch.full_like(cond["labels"], 2)} if self.has_null else None

    def denoise(self, x: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
        self.calls += 1
        means = MEANS[2].expand_as(x) if labels is None else MEANS[labels]
        alpha, sigma = self.sde.alpha(t)[:, None], self.sde.sigma(t)[:, None]
        return means + alpha * STD**2 / (alpha**2 * STD**2 + sigma**2) * (x - alpha * means)


def gaussian(sde: SDE, mean: Tensor) -> GaussianMixtureDenoiser:
    return GaussianMixtureDenoiser(mean[None], torch.tensor([STD]), torch.ones(1), sde)


def guided_mean(label: int, weight: float) -> Tensor:
    return MEANS[2] + weight * (MEANS[label] - MEANS[2])


SAMPLERS = [
    EulerMaruyama(steps=8),
    PredictorCorrector(steps=4),
    DDPM(steps=8),
    DDIM(steps=6),
    DDIM(steps=6, eta=1.0),
    Heun(steps=5),
    Heun(steps=5, churn=5.0),
    DPMSolverPlusPlus(steps=5),
    ProbabilityFlowODE(method="rk4", steps=5),
    ProbabilityFlowODE(rtol=1e-6, atol=1e-6),
]


@pytest.mark.parametrize("has_null", [False, True])
@pytest.mark.parametrize("sampler", SAMPLERS, ids=lambda sampler: type(sampler).__name__)
def test_every_sampler_draws_from_the_gaussian_beyond_the_class(sampler, has_null):
    sde = VPSDE()
    for label, weight in ((0, 2.5), (1, -0.5)):
        inside = Classes(sde, has_null)
        guided, beyond = ClassifierFreeGuidance(inside, weight), gaussian(sde, guided_mean(label, weight))
        labels, seed = torch.full((6,), label), torch.Generator()
        found = sampler(guided, (6, 2), generator=seed.manual_seed(1), labels=labels)
        assert sampler.nfe == inside.calls * (2 if has_null else 1)
        evaluations = sampler.nfe
        expected = sampler(beyond, (6, 2), generator=seed.manual_seed(1))
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)
        if not (isinstance(sampler, ProbabilityFlowODE) and sampler.method == "dopri5"):  # whose steps follow the error
            assert evaluations == 2 * sampler.nfe


@pytest.mark.parametrize("has_null", [False, True])
@pytest.mark.parametrize("sde", [VPSDE(), KarrasSDE(), RectifiedFlow()], ids=lambda sde: type(sde).__name__)
def test_each_example_has_its_own_condition(sde, has_null):
    labels, t = torch.tensor([0, 1, 1]), torch.tensor([0.3, 0.7, 0.9])
    x = torch.randn(3, 2, generator=torch.Generator().manual_seed(0))
    found = ClassifierFreeGuidance(Classes(sde, has_null), 3.0).denoise(x, t, labels=labels)
    for i, label in enumerate(labels):
        exact = gaussian(sde, guided_mean(int(label), 3.0)).denoise(x[i : i + 1], t[i : i + 1])
        torch.testing.assert_close(found[i : i + 1], exact, rtol=1e-4, atol=1e-5)


def network() -> NetworkDenoiser:
    torch.manual_seed(0)
    unet = UNet(1, channels=(8,), num_res_blocks=1, embed_dim=8, num_classes=3, middle_attention=False)
    for parameter in unet.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return NetworkDenoiser(unet, VPSDE(), NoisePrediction()).eval()


def test_weight_one_is_the_denoiser_and_zero_the_unconditional_one_bit_for_bit():
    denoiser, x, t = network(), torch.randn(4, 1, 8, 8), torch.rand(4) * 0.9 + 0.05
    labels = torch.tensor([0, 1, 2, 0])
    with torch.no_grad():
        for weight, expected in ((1.0, denoiser.denoise(x, t, labels=labels)), (0.0, denoiser.denoise(x, t))):
            guided = ClassifierFreeGuidance(denoiser, weight)
            assert torch.equal(guided.denoise(x, t, labels=labels), expected)
            assert guided.evaluations == 1
        assert torch.equal(ClassifierFreeGuidance(denoiser, 4.0).denoise(x, t), denoiser.denoise(x, t))


def test_both_halves_of_a_network_are_one_call():
    denoiser, x, t = network(), torch.randn(4, 1, 8, 8), torch.rand(4) * 0.9 + 0.05
    labels, sizes = torch.tensor([0, 1, 2, 0]), []
    denoiser.network.register_forward_hook(lambda module, inputs, output: sizes.append(len(output)))
    with torch.no_grad():
        guided = ClassifierFreeGuidance(denoiser, 2.0)
        found = guided.denoise(x, t, labels=labels)
        assert (sizes, guided.evaluations) == ([8], 2)
        null, own = denoiser.denoise(x, t), denoiser.denoise(x, t, labels=labels)
    torch.testing.assert_close(found, null + 2 * (own - null), rtol=1e-4, atol=1e-5)
    assert guided.num_classes == 3


@pytest.mark.parametrize("sde", [VPSDE(), KarrasSDE()], ids=lambda sde: type(sde).__name__)
def test_outside_of_the_interval_it_is_the_denoiser_at_its_cost(sde):
    inside = Classes(sde)
    guided = ClassifierFreeGuidance(inside, 2.0, interval=(0.5, 2.0))
    labels, x = torch.zeros(3, dtype=torch.long), torch.randn(3, 2)
    for level, evaluations in ((0.4, 1), (0.51, 2), (1.0, 2), (1.99, 2), (2.1, 1)):
        t = sde.time_at(torch.full((3,), level))
        found = guided.denoise(x, t, labels=labels)
        assert guided.evaluations == evaluations
        mean = guided_mean(0, 2.0 if evaluations == 2 else 1.0)
        torch.testing.assert_close(found, gaussian(sde, mean).denoise(x, t))
    # at once, each by its own time
    t = sde.time_at(torch.tensor([0.4, 1.0, 2.1]))
    found = guided.denoise(x, t, labels=labels)
    assert torch.equal(found[::2], inside.denoise(x, t, labels=labels)[::2])
    torch.testing.assert_close(found[1:2], gaussian(sde, guided_mean(0, 2.0)).denoise(x[1:2], t[1:2]))


def test_with_an_interval_the_flow_is_three_affine_maps():
    """Each from its first noise level to its last: x ↦ μ + √((s² + σ₁²)/(s² + σ₀²))·(x − μ), with its own mean μ."""
    sde = KarrasSDE()
    low, high = sde.timesteps(40)[[28, 16]].tolist()  # of every grid here
    x_T = sde.prior((5, 2), generator=torch.Generator().manual_seed(0))
    expected = x_T.double()
    for start, end, weight in ((sde.T, high, 1.0), (high, low, 2.5), (low, 0.0, 1.0)):
        mean = guided_mean(0, weight).double()
        expected = mean + math.sqrt((STD**2 + end**2) / (STD**2 + start**2)) * (expected - mean)
    guided = ClassifierFreeGuidance(Classes(sde), 2.5, interval=(low, high))
    labels = torch.zeros(5, dtype=torch.long)
    errors = []
    for steps in (40, 80, 160, 320, 640):
        drawn = Heun(steps=steps)(guided, (5, 2), x_T=x_T, labels=labels)
        errors.append((drawn - expected).abs().max().item())
    # the flow's direction jumps at both ends: a step that begins or ends there is of first order, whatever the solver
    assert errors[-1] < 0.01
    assert all(1.7 < first / second < 2.4 for first, second in itertools.pairwise(errors))
    unguided = Heun(steps=640)(Classes(sde), (5, 2), x_T=x_T, labels=labels)
    assert (unguided - expected).abs().max() > 0.2


MODES = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0]])


def mixture(sde: SDE, std: float) -> GaussianMixtureDenoiser:
    """Three modes on a line and beside it; a larger std is what a worse model makes of them."""
    return GaussianMixtureDenoiser(MODES, torch.full((3,), std), torch.tensor([0.4, 0.4, 0.2]), sde)


def test_autoguidance_pulls_to_the_modes_as_its_flow_says():
    sde = KarrasSDE()
    better, worse = mixture(sde, 0.15), mixture(sde, 0.4)
    x_T = sde.prior((400, 2), generator=torch.Generator().manual_seed(0))
    drawn = {}
    for weight in (1.0, 2.0):
        guided = AutoGuidance(better, worse, weight)
        drawn[weight] = Heun(steps=100)(guided, (400, 2), x_T=x_T)

        # solved once more, from the scores alone: dx/dσ = −σ·(∇ln p₀ + w·(∇ln p₁ − ∇ln p₀)), by the classical method
        def slope(x: Tensor, level: float, w: float = weight) -> Tensor:
            t = torch.full((len(x),), level)
            first, second = worse.score(x, t), better.score(x, t)
            return -level * (first + w * (second - first))

        x = x_T
        for a, b in itertools.pairwise(sde.timesteps(400).tolist()):
            h, m = b - a, (a + b) / 2
            k1 = slope(x, a)
            k2 = slope(x + h / 2 * k1, m)
            k3 = slope(x + h / 2 * k2, m)
            x = x + h / 6 * (k1 + 2 * k2 + 2 * k3 + slope(x + h * k3, b))
        far = (drawn[weight] - x).norm(dim=1)
        assert far.median() < 0.01
        assert far.mean() < 0.03
    assert guided.evaluations == 2

    def distance(x: Tensor) -> Tensor:
        return torch.cdist(x, MODES).min(1).values

    near, plain = distance(drawn[2.0]), distance(drawn[1.0])
    assert near.mean() < 0.7 * plain.mean()
    assert (near > 0.35).sum() < 0.3 * (plain > 0.35).sum()


def test_a_classifier_that_knows_gives_the_exact_condition():
    sde = VPSDE()
    whole = GaussianMixtureDenoiser(MODES, torch.full((3,), 0.3), torch.tensor([0.4, 0.4, 0.2]), sde)
    first = GaussianMixtureDenoiser(MODES[:1], torch.full((1,), 0.3), torch.ones(1), sde)

    def log_prob(x: Tensor, t: Tensor) -> Tensor:
        assert x.requires_grad
        return first.log_prob(x, t) + math.log(0.4) - whole.log_prob(x, t)

    x, t = torch.randn(64, 2, generator=torch.Generator().manual_seed(0)), torch.linspace(0.05, 1, 64)
    with torch.no_grad():
        found = ClassifierGuidance(whole, log_prob).denoise(x, t)
        torch.testing.assert_close(found, first.denoise(x, t), rtol=1e-3, atol=1e-4)
        assert torch.equal(ClassifierGuidance(whole, log_prob, 0.0).denoise(x, t), whole.denoise(x, t))
    drawn = Heun(steps=20)(ClassifierGuidance(whole, log_prob), (300, 2), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(drawn.mean(0), MODES[0], rtol=0, atol=5 * 0.3 / math.sqrt(300))
    assert not drawn.requires_grad


def test_rescaling_keeps_the_spread_of_the_unguided_image():
    denoiser, labels = network(), torch.tensor([0, 1])
    x, t = torch.randn(2, 1, 8, 8), torch.full((2,), 0.5)
    with torch.no_grad():
        own = denoiser.denoise(x, t, labels=labels).flatten(1).std(1)
        plain = ClassifierFreeGuidance(denoiser, 6.0).denoise(x, t, labels=labels).flatten(1).std(1)
        spreads = {
            phi: ClassifierFreeGuidance(denoiser, 6.0, rescale=phi).denoise(x, t, labels=labels).flatten(1).std(1)
            for phi in (0.0, 0.7, 1.0)
        }
    torch.testing.assert_close(spreads[0.0], plain)
    torch.testing.assert_close(spreads[1.0], own, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(spreads[0.7], 0.7 * own + 0.3 * plain, rtol=1e-4, atol=1e-5)


def test_thresholding_brings_what_is_beyond_into_the_range():
    denoiser, labels = network(), torch.tensor([0, 1])
    x, t = torch.randn(2, 1, 8, 8) * 3, torch.full((2,), 0.5)
    with torch.no_grad():
        plain = ClassifierFreeGuidance(denoiser, 6.0).denoise(x, t, labels=labels)
        found = ClassifierFreeGuidance(denoiser, 6.0, threshold=0.9).denoise(x, t, labels=labels)
    assert plain.abs().max() > 1
    for image, guided in zip(found, plain, strict=True):
        limit = max(1.0, torch.quantile(guided.abs(), 0.9).item())
        torch.testing.assert_close(image, guided.clamp(-limit, limit) / limit)


def test_a_guided_denoiser_has_no_likelihood():
    guided = ClassifierFreeGuidance(Classes(VPSDE()), 2.0)
    with pytest.raises(ValueError, match="ClassifierFreeGuidance: has no likelihood"):
        log_likelihood(guided, torch.zeros(1, 2), labels=torch.zeros(1, dtype=torch.long))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"weight": math.nan}, "weight=nan: must be a finite number"),
        ({"interval": (3.0, 0.2)}, r"interval=\[3.0, 0.2\]: must be two noise levels"),
        ({"interval": (0.2,)}, r"interval=\[0.2\]: must be two noise levels"),
        ({"rescale": 1.5}, "rescale=1.5: must be in"),
        ({"threshold": 0.0}, "threshold=0.0: must be in"),
    ],
)
def test_what_is_out_of_range_is_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        ClassifierFreeGuidance(Classes(VPSDE()), **{"weight": 2.0, **arguments})


def test_models_of_other_processes_do_not_guide_each_other():
    with pytest.raises(ValueError, match="worse: its KarrasSDE is another process than the VPSDE"):
        AutoGuidance(mixture(VPSDE(), 0.1), mixture(KarrasSDE(), 0.2), 2.0)
    with pytest.raises(ValueError, match="worse: its VPSDE is another process than the VPSDE"):
        AutoGuidance(mixture(VPSDE(), 0.1), mixture(VPSDE(beta_max=19.0), 0.2), 2.0)
    with pytest.raises(ValueError, match=r"scale=inf"):
        ClassifierGuidance(mixture(VPSDE(), 0.1), lambda x, t: x.sum(1), math.inf)
