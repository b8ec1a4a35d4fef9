r"""The denoiser: what undoes an SDE, seen as one function, whether a network has learnt it or it is known exactly.

D(x, t) = E[x0 | x_t = x] determines everything else. With x_t = α x0 + σ z (Tweedie's formula; Efron 2011):

.. math:: \hat z = \frac{x - \alpha D}{\sigma}, \qquad \nabla \ln p_t(x) = -\frac{\hat z}{\sigma}, \qquad
          \frac{\mathrm{d}x}{\mathrm{d}t} = f x - \tfrac12 g^2\, \nabla \ln p_t(x) = \alpha' D + \sigma' \hat z .
"""

import inspect
import math
from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn

from diffusion_lightning.conditions import null_of
from diffusion_lightning.parameterization import Parameterization
from diffusion_lightning.sde import SDE, expand


def check_conditions(cond: dict[str, Any], batch: int) -> None:
    """Raise a ValueError naming a tensor among the conditions that has not one entry for each of ``batch`` examples."""
    for name, value in cond.items():
        if isinstance(value, Tensor) and value.ndim > 0 and len(value) != batch:
            raise ValueError(f"{name} has shape {tuple(value.shape)}: must have {batch} entries, one for each example")


class Denoiser(nn.Module, ABC):
    """What undoes an SDE.

    Subclasses give :meth:`denoise` alone (a network, an exact posterior mean, a guided model): the score, the noise and
    the probability flow derive from it, so such a subclass works with every sampler and likelihood.

    Args:
        sde: the forward process.
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        # some versions of Python, 3.11.2 for one, take an inherited __new__ for what a class is made by
        own = inspect.signature(cls.__init__)
        cls.__signature__ = own.replace(parameters=list(own.parameters.values())[1:])  # type: ignore[attr-defined]

    def __new__(cls, *args: Any, **kwargs: Any) -> "Denoiser":
        if cls is Denoiser:
            raise TypeError("Denoiser is abstract: a network's is NetworkDenoiser(network, sde, parameterization)")
        return super().__new__(cls)

    def __init__(self, sde: SDE) -> None:
        super().__init__()
        self.sde = sde

    @abstractmethod
    def denoise(self, x: Tensor, t: Tensor, **cond: Any) -> Tensor:
        """E[x0 | x_t = x] for times ``t`` of shape ``(B,)``; shape of ``x``.

        Args:
            x: noisy images or points, ``(B, …)``.
            t: their times, ``(B,)`` in [t_min, T].
            cond: what it is conditioned on, by the names of :mod:`diffusion_lightning.conditions`, such as ``labels``
                ``(B,)``.

        Raises:
            ValueError: if ``t`` has another shape or, on a CPU, is out of its range; for conditions that it has no use
                for.
        """

    def noise(self, x: Tensor, t: Tensor, **cond: Any) -> Tensor:
        """E[z | x_t = x] = (x − α·D)/σ; shape of ``x``."""
        mean, std = self.sde.marginal(self.denoise(x, t, **cond), t)
        return (x - mean) / std

    def score(self, x: Tensor, t: Tensor, **cond: Any) -> Tensor:
        """∇ ln p_t(x) = (α·D − x)/σ²; shape of ``x``."""
        mean, std = self.sde.marginal(self.denoise(x, t, **cond), t)
        return (mean - x) / std**2

    def probability_flow(self, x: Tensor, t: Tensor, **cond: Any) -> Tensor:
        """dx/dt of the probability-flow ODE, f·x − ½g²·score (Song et al. 2021, eq. 13); shape of ``x``."""
        denoised = self.denoise(x, t, **cond)
        mean, std = self.sde.marginal(denoised, t)
        # in this form no two terms are large where α is small
        alpha_rate, sigma_rate = self.sde.rates(t)
        return expand(alpha_rate, x) * denoised + expand(sigma_rate, x) * (x - mean) / std

    is_guided = False
    """Whether it is steered: no posterior mean of any data, so that its flow is not that of a density."""

    evaluations = 1
    """Of networks, or whatever is costly, that the last call of :meth:`denoise` took."""

    @property
    def num_classes(self) -> int | None:
        """How many classes it can be told of, as ``labels``; None without."""
        return None

    def null(self, **cond: Any) -> dict[str, Tensor] | None:
        """For each of the conditions the one that stands for none, in their shapes, so that both fit into one batch.

        None if it has no such conditions: without one it is asked by leaving it out.
        """
        return None

    @property
    def device(self) -> torch.device:
        """Where the weights are; the CPU if there are none."""
        tensor = next(self.parameters(), next(self.buffers(), None))
        return torch.device("cpu") if tensor is None else tensor.device


class NetworkDenoiser(Denoiser):
    """A network that has learnt to undo an SDE: D = c_skip·x + c_out·F(c_in·x, c_noise).

    Args:
        network: F, called ``network(x, time_signal, **conditions)``.
        sde: the forward process.
        parameterization: what the network's output means, which gives the coefficients c(t).
    """

    def __init__(self, network: nn.Module, sde: SDE, parameterization: Parameterization) -> None:
        super().__init__(sde)
        self.network = network
        self.parameterization = parameterization

    @property
    def num_classes(self) -> int | None:
        return getattr(self.network, "num_classes", None)

    def null(self, **cond: Any) -> dict[str, Tensor] | None:
        return null_of(self.network, {name: value for name, value in cond.items() if value is not None})

    def denoise(self, x: Tensor, t: Tensor, **cond: Any) -> Tensor:
        self.sde.check_times(t, x.shape[0])  # not len, which an exported program would take for a constant
        c = self.parameterization.coefficients(self.sde, t)
        raw = self.network(expand(c.input, x) * x, c.noise, **cond)
        return expand(c.skip, x) * x + expand(c.out, x) * raw


class GaussianMixtureDenoiser(Denoiser):
    r"""The exact denoiser when the data is a mixture of isotropic Gaussians, for tests and teaching.

    With data Σ_k w_k N(μ_k, s_k² I), the marginal is Σ_k w_k N(αμ_k, v_k I), v_k = α²s_k² + σ², and

    .. math:: D(x, t) = \sum_k r_k(x)\,\Big[\mu_k + \frac{\alpha s_k^2}{v_k}\,(x - \alpha\mu_k)\Big],
              \qquad r_k \propto w_k\,\mathcal{N}(x;\, \alpha\mu_k,\, v_k I).

    Args:
        means: μ, ``(K, …)``; the trailing axes are those of one example.
        stds: s, ``(K,)``, zero or above (zero: a point mass).
        weights: w, ``(K,)``, positive; normalized here.
        sde: the forward process.
    """

    means: Tensor
    stds: Tensor
    weights: Tensor

    def __init__(self, means: Tensor, stds: Tensor, weights: Tensor, sde: SDE) -> None:
        super().__init__(sde)
        if not (len(means) == len(stds) == len(weights)):
            raise ValueError(f"means, stds, weights: {len(means)}, {len(stds)} and {len(weights)} components given")
        self.register_buffer("means", means)
        self.register_buffer("stds", stds)
        self.register_buffer("weights", weights / weights.sum())

    def denoise(self, x: Tensor, t: Tensor, **cond: Any) -> Tensor:
        self.sde.check_times(t, len(x))
        centred, variance, log_joint = self._components(x, t)
        alpha = self.sde.alpha(t)[:, None]
        gain = alpha * self.stds**2 / variance
        posterior_means = self.means.flatten(1) + gain[..., None] * centred
        return (log_joint.softmax(1)[..., None] * posterior_means).sum(1).reshape(x.shape)

    def log_prob(self, x: Tensor, t: Tensor) -> Tensor:
        """ln p_t(x) in nats, ``(B,)``."""
        return self._components(x, t)[2].logsumexp(1)

    def sample_data(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """``n`` draws of the data itself, ``(n, …)``."""
        component = torch.multinomial(self.weights, n, replacement=True, generator=generator)
        noise = torch.randn(n, *self.means.shape[1:], generator=generator, dtype=self.means.dtype)
        return self.means[component] + expand(self.stds[component], noise) * noise

    def _components(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x − αμ_k ``(B, K, D)``, v_k ``(B, K)`` and ln w_k N(x; αμ_k, v_k I) ``(B, K)``."""
        alpha, sigma = self.sde.alpha(t)[:, None], self.sde.sigma(t)[:, None]
        variance = (alpha * self.stds) ** 2 + sigma**2
        centred = x.flatten(1)[:, None] - alpha[..., None] * self.means.flatten(1)
        dimension = centred.shape[-1]
        log_density = -0.5 * (centred**2).sum(-1) / variance - 0.5 * dimension * torch.log(2 * math.pi * variance)
        return centred, variance, self.weights.log() + log_density
