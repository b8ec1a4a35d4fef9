"""A measurement y = A(x0) + n, as every method holds it, be it a denoiser or a sampler."""

import math

from torch import Tensor

from diffusion_lightning.inverse.operators import Operator


class Measured:
    """Mixed into what knows a measurement: y, the operator A, and the standard deviation σ_y of the noise n."""

    y: Tensor
    operator: Operator
    noise_std: float

    needs_linear = False
    """Whether the method is one for linear operators alone."""

    def check_measurement(self) -> None:
        """Raise a ValueError for noise that cannot be, a measurement that is not finite, or an operator that is not
        linear where it must be."""
        if not (math.isfinite(self.noise_std) and self.noise_std >= 0):
            raise ValueError(f"noise_std={self.noise_std}: must be zero (no noise) or above")
        if not self.y.isfinite().all():
            raise ValueError("y: holds NaN or infinite values: all must be finite")
        if self.needs_linear and not self.operator.is_linear:
            raise ValueError(
                f"operator: {type(self.operator).__name__} is not linear, and {type(self).__name__} needs a linear "
                "one: take the method DPS or TwistedSMC"
            )

    def of_each(self) -> Tensor:
        """y of each example that the model is asked about, or one for all."""
        return self.y

    def residual(self, x: Tensor) -> Tensor:
        """y − A(x) of a batch of clean examples, or of what the model takes for them.

        Raises:
            ValueError: if there is neither one measurement nor one for each example, or what the operator makes of an
                example has another shape.
        """
        y = self.of_each()
        if len(y) not in (1, len(x)):
            raise ValueError(f"y: {len(y)} measurements: must be 1, or {len(x)}, one for each example")
        predicted = self.operator(x)
        if predicted.shape[1:] != y.shape[1:]:
            raise ValueError(
                f"y: has shape {tuple(y.shape[1:])}: must be {tuple(predicted.shape[1:])}, which is what "
                f"{type(self.operator).__name__} makes of an example of shape {tuple(x.shape[1:])}"
            )
        return self.operator.measured(y.to(x)) - predicted

    def consistent(self, x: Tensor) -> Tensor:
        """The nearest to x that agrees with a linear measurement without noise, as E[x0 | x_t, y] does."""
        if self.noise_std > 0 or not self.operator.is_linear:
            return x
        return x + self.operator.pseudo_inverse(self.residual(x))
