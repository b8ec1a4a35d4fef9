r"""Denoisers of p(x0 | y): what a trained model says of a picture of which something was measured.

A method is a denoiser around a denoiser. What they share is here: the measurement, and the model's own derivative. By
Bayes' rule the score of what is wanted is

.. math:: \nabla \ln p_t(x \mid y) = \nabla \ln p_t(x) + \nabla \ln p(y \mid x_t = x),

and by Tweedie's formula, with x_t = α x0 + σ z,

.. math:: \mathrm{E}[x_0 \mid x_t, y] = D(x, t) + \frac{\sigma^2}{\alpha}\, \nabla \ln p(y \mid x_t = x).

The methods differ in how they guess p(y | x_t), which needs to know how far x0 may be from D (Daras et al. 2024, "A
survey on diffusion models for inverse problems", arXiv:2410.00083).
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from diffusion_lightning.denoiser import Denoiser
from diffusion_lightning.inverse.measured import Measured
from diffusion_lightning.inverse.operators import Operator


class Posterior(Measured, Denoiser):
    """A denoiser that knows a measurement y = A(x0) + n: :meth:`denoise` is about E[x0 | x_t = x, y].

    Args:
        denoiser: the model, trained without any thought of the measurement; a guided one, too.
        y: what was measured, ``(B, …)``, one for each example of a batch, or ``(1, …)``, the same for all.
        operator: A.
        noise_std: σ_y, the standard deviation of n, in the units of ``y``.

    Attributes:
        evaluations: of the last call: forward passes of the denoiser and vector–Jacobian products with it, each of
            which costs about as much.

    Raises:
        ValueError: if ``noise_std`` is negative or not finite, ``y`` is not finite, or the method and the operator do
            not fit.
    """

    is_guided = True

    def __init__(self, denoiser: Denoiser, y: Tensor, operator: Operator, noise_std: float = 0.0) -> None:
        super().__init__(denoiser.sde)
        self.denoiser = denoiser
        self.operator = operator
        self.noise_std = noise_std
        self.register_buffer("y", y)
        self.check_measurement()

    @property
    def num_classes(self) -> int | None:
        return self.denoiser.num_classes

    def null(self, **cond: Any) -> dict[str, Tensor] | None:
        return self.denoiser.null(**cond)

    def linearized(self, x: Tensor, t: Tensor, **cond: Any) -> tuple[Tensor, Callable[..., Tensor]]:
        r"""D(x, t), and the function :math:`v \mapsto J^\top v` with :math:`J = \partial D / \partial x`.

        J = α/σ² · Cov[x0 | x_t = x], so it is symmetric where D is exact. Each call counts as an evaluation; after one
        that says it is the ``last`` there can be no other, and what it needs is given back as it goes.
        """
        # samplers draw without gradients
        with torch.enable_grad(), _constant(self.denoiser):
            x = x.detach().requires_grad_()
            denoised = self.denoiser.denoise(x, t, **cond)
        cost = self.evaluations = self.denoiser.evaluations

        def transposed(v: Tensor, last: bool = False) -> Tensor:
            self.evaluations += cost
            (product,) = torch.autograd.grad(denoised, x, v.to(denoised), retain_graph=not last)
            return product

        return denoised.detach(), transposed


@contextmanager
def _constant(module: nn.Module) -> Iterator[None]:
    """Inside, nothing is kept for the gradients of weights, which nobody asks for: a tenth of the time."""
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)
