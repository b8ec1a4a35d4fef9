"""Denoisers around a denoiser that steer what it draws; every sampler takes them.

Two denoisers D₀ and D₁ of one process, the better one last, are combined to

    D_w = D₀ + w·(D₁ − D₀),

so that w = 1 is D₁ itself, and larger weights go on in the direction in which it differs. Where the scores are exact,
∇ln p_w = ∇ln p₀ + w·∇ln(p₁/p₀): the samples are drawn where p₁ is larger than p₀, more than once over.
"""

from diffusion_lightning.guidance.auto import AutoGuidance
from diffusion_lightning.guidance.base import Guidance, GuidanceCallable
from diffusion_lightning.guidance.classifier import ClassifierGuidance
from diffusion_lightning.guidance.classifier_free import ClassifierFreeGuidance

__all__ = ["AutoGuidance", "ClassifierFreeGuidance", "ClassifierGuidance", "Guidance", "GuidanceCallable"]
