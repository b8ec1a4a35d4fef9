"""The code of the founding document 5 as it is written: ScoreNet, σ = 25, batches of 32, Adam at 1e-4, no EMA."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from scipy.integrate import solve_ivp
from torch import Tensor, nn

from systems.peer import Peer

SIGMA, EPS = 25.0, 1e-3
"""The process's σ, and the time at which its samplers stop."""


class Projection(nn.Module):
    """Gaussian random features of the time."""

    def __init__(self, embed_dim: int, scale: float = 30.0) -> None:
        super().__init__()
        self.W = nn.Parameter(torch.randn(embed_dim // 2) * scale, requires_grad=False)

    def forward(self, t: Tensor) -> Tensor:
        phases = t[:, None] * self.W[None, :] * 2 * math.pi
        return torch.cat([phases.sin(), phases.cos()], dim=-1)


class ScoreNet(nn.Module):
    """The document's network."""

    def __init__(self, channels: tuple[int, ...] = (32, 64, 128, 256), embed_dim: int = 256) -> None:
        super().__init__()
        c1, c2, c3, c4 = channels
        self.embed = nn.Sequential(Projection(embed_dim), nn.Linear(embed_dim, embed_dim))
        self.conv1 = nn.Conv2d(1, c1, 3, stride=1, bias=False)
        self.dense1, self.gnorm1 = nn.Linear(embed_dim, c1), nn.GroupNorm(4, c1)
        self.conv2 = nn.Conv2d(c1, c2, 3, stride=2, bias=False)
        self.dense2, self.gnorm2 = nn.Linear(embed_dim, c2), nn.GroupNorm(32, c2)
        self.conv3 = nn.Conv2d(c2, c3, 3, stride=2, bias=False)
        self.dense3, self.gnorm3 = nn.Linear(embed_dim, c3), nn.GroupNorm(32, c3)
        self.conv4 = nn.Conv2d(c3, c4, 3, stride=2, bias=False)
        self.dense4, self.gnorm4 = nn.Linear(embed_dim, c4), nn.GroupNorm(32, c4)
        self.tconv4 = nn.ConvTranspose2d(c4, c3, 3, stride=2, bias=False)
        self.dense5, self.tgnorm4 = nn.Linear(embed_dim, c3), nn.GroupNorm(32, c3)
        self.tconv3 = nn.ConvTranspose2d(c3 + c3, c2, 3, stride=2, bias=False, output_padding=1)
        self.dense6, self.tgnorm3 = nn.Linear(embed_dim, c2), nn.GroupNorm(32, c2)
        self.tconv2 = nn.ConvTranspose2d(c2 + c2, c1, 3, stride=2, bias=False, output_padding=1)
        self.dense7, self.tgnorm2 = nn.Linear(embed_dim, c1), nn.GroupNorm(32, c1)
        self.tconv1 = nn.ConvTranspose2d(c1 + c1, 1, 3, stride=1)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        def act(h: Tensor) -> Tensor:
            return h * torch.sigmoid(h)

        e = act(self.embed(t))
        h1 = act(self.gnorm1(self.conv1(x) + self.dense1(e)[..., None, None]))
        h2 = act(self.gnorm2(self.conv2(h1) + self.dense2(e)[..., None, None]))
        h3 = act(self.gnorm3(self.conv3(h2) + self.dense3(e)[..., None, None]))
        h4 = act(self.gnorm4(self.conv4(h3) + self.dense4(e)[..., None, None]))
        h = act(self.tgnorm4(self.tconv4(h4) + self.dense5(e)[..., None, None]))
        h = act(self.tgnorm3(self.tconv3(torch.cat([h, h3], 1)) + self.dense6(e)[..., None, None]))
        h = act(self.tgnorm2(self.tconv2(torch.cat([h, h2], 1)) + self.dense7(e)[..., None, None]))
        return self.tconv1(torch.cat([h, h1], 1)) / marginal_std(t)[:, None, None, None]


def marginal_std(t: Tensor) -> Tensor:
    return torch.sqrt((SIGMA ** (2 * t) - 1.0) / 2.0 / math.log(SIGMA))


class Document5(Peer):
    """The training is no library's: by our recipe it were no longer the document's, so there is no such row."""

    name = "document5"
    settings = (
        "ScoreNet, σ = 25, images in [0, 1], batch 32, Adam 1e-4, no EMA; its samplers are made for hundreds of "
        "evaluations, and are allowed them"
    )
    batch_size = 32
    is_scheduled = False
    bf16 = False
    most_evaluations = 1000

    def set_up(self) -> None:
        self.optimizer = torch.optim.Adam(self.network.parameters(), lr=1e-4)

    def loss(self, images: Tensor, labels: Tensor) -> Tensor:
        x = images / 255
        t = torch.rand(len(x)) * (1.0 - 1e-5) + 1e-5
        z = torch.randn_like(x)
        std = marginal_std(t)[:, None, None, None]
        score = self.network(x + z * std, t)
        return torch.mean(torch.sum((score * std + z) ** 2, dim=(1, 2, 3)))

    def step(self) -> None:
        chosen = torch.randint(len(self.images), (self.batch_size,))
        loss = self.loss(self.images[chosen], self.labels[chosen])
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        loss.item()

    def update_average(self) -> None:
        """It has none."""

    def averaged(self) -> nn.Module:
        return self.network

    @classmethod
    def model(cls) -> nn.Module:
        return ScoreNet()

    @classmethod
    def samplers(cls) -> Mapping[str, Any]:
        """Its three, by the document's settings and by as many evaluations as the others have."""
        return {
            "ode_sampler, tolerance 1e-5": (ode_sampler, 1e-5),
            "ode_sampler, tolerance 1e-2": (ode_sampler, 1e-2),
            "Euler_Maruyama_sampler, 500 steps": (euler_maruyama_sampler, 500),
            "Euler_Maruyama_sampler, 50 steps": (euler_maruyama_sampler, 50),
            "pc_sampler, 500 steps": (pc_sampler, 500),
            "pc_sampler, 25 steps": (pc_sampler, 25),
        }

    @classmethod
    def draw(cls, model: nn.Module, num: int, how: Any, labels: Tensor | None) -> Tensor:
        sampler, setting = how
        return sampler(model, num, setting) * 2 - 1


def _start(num: int) -> Tensor:
    return torch.randn(num, 1, 28, 28) * marginal_std(torch.ones(1))


def ode_sampler(model: nn.Module, num: int, tolerance: float) -> Tensor:
    start = _start(num)

    def velocity(t: float, x: np.ndarray) -> np.ndarray:
        score = model(torch.from_numpy(x).float().reshape(start.shape), torch.full((num,), t))
        return -0.5 * SIGMA ** (2 * t) * score.flatten().double().numpy()

    solved = solve_ivp(velocity, (1.0, EPS), start.flatten().numpy(), rtol=tolerance, atol=tolerance, method="RK45")
    return torch.from_numpy(solved.y[:, -1]).float().reshape(start.shape)


def euler_maruyama_sampler(model: nn.Module, num: int, steps: int) -> Tensor:
    x = _start(num)
    times = torch.linspace(1.0, EPS, steps)
    size = times[0] - times[1]
    for t in times:
        g = SIGMA**t
        mean = x + g**2 * model(x, t.expand(num)) * size
        x = mean + size.sqrt() * g * torch.randn_like(x)
    return mean


def pc_sampler(model: nn.Module, num: int, steps: int, snr: float = 0.16) -> Tensor:
    x = _start(num)
    times = torch.linspace(1.0, EPS, steps)
    size = times[0] - times[1]
    for t in times:
        score = model(x, t.expand(num))
        langevin = 2 * (snr * math.sqrt(28 * 28) / score.flatten(1).norm(dim=-1).mean()) ** 2
        x = x + langevin * score + (2 * langevin).sqrt() * torch.randn_like(x)
        g = SIGMA**t
        mean = x + g**2 * model(x, t.expand(num)) * size
        x = mean + (g**2 * size).sqrt() * torch.randn_like(x)
    return mean
