"""What the page can be asked for, as plain functions: from a model and numbers to pictures, a step at a time.

Each task yields (share of the work that is done, a picture), the picture uint8 ``(H, W, 3)``, enlarged. A step is one
of the sampler; between any two evaluations of the model a task can be stopped.
"""

import threading
from collections.abc import Iterator
from functools import partial
from typing import Any, TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from torch import Tensor

from diffusion_lightning.conditions import taken_by
from diffusion_lightning.denoiser import Denoiser
from diffusion_lightning.guidance import ClassifierFreeGuidance
from diffusion_lightning.images import image_grid, visible
from diffusion_lightning.inverse import METHODS, Inpainting, SDEdit
from diffusion_lightning.inverse.restore import is_sampler
from diffusion_lightning.inverse.strips import spread
from diffusion_lightning.latents import interpolate
from diffusion_lightning.samplers import DDIM, DPMSolverPlusPlus, Heun, Sampler
from diffusion_lightning.samplers.base import StepSampler
from diffusion_lightning.training.trained import TrainedModel

Shown: TypeAlias = Iterator[tuple[float, np.ndarray]]

SAMPLERS: dict[str, type[StepSampler]] = {"DPM-Solver++": DPMSolverPlusPlus, "Heun": Heun, "DDIM": DDIM}

SIDE = 480
"""Pixels that a picture is enlarged to at least, by whole numbers."""

ANSWERS = 8

STEPS = 20
"""Of DPM-Solver++, for pictures of the model's own."""

TOLERANCE = 1e-5
"""Of the flow between two pictures."""

MEGAPIXELS = 50
"""Of a picture that is read, at most: a camera's."""


class Stopped(Exception):
    """The one who asked has pressed stop."""


class Stoppable(Denoiser):
    """A denoiser that raises :class:`Stopped` instead of an answer once it is told to."""

    def __init__(self, denoiser: Denoiser, stop: threading.Event) -> None:
        super().__init__(denoiser.sde)
        self.denoiser, self.stop = denoiser, stop

    def denoise(self, x: Tensor, t: Tensor, **cond: Any) -> Tensor:
        if self.stop.is_set():
            raise Stopped
        return self.denoiser.denoise(x, t, **cond)


class Studio:
    """A model and the pictures beside it, which draws one thing at a time.

    Args:
        model: of pictures.
        pictures: to work on, such as held-out ones, ``(N, C, H, W)`` in [-1, 1]; none if left out.

    Raises:
        ValueError: if the model must be told what the page has no words for.
    """

    def __init__(self, model: TrainedModel, pictures: Tensor | None = None) -> None:
        assert model.shape is not None
        untold = [name for name in taken_by(model.network) if name != "labels"]
        if untold and not model.condition_dropout:
            raise ValueError(f"the model must be told {' and '.join(untold)}, which the page cannot")
        self.model, self.shape, self.pictures = model, model.shape, pictures
        # one for each task: what was stopped stays so, though the next has begun
        self._stopped = threading.Event()

        self.owner: Any = None
        """For whom it draws: nobody else may stop it."""

    def stop(self, owner: Any = None) -> None:
        """What is being drawn for this owner ends at its next evaluation."""
        if owner == self.owner:
            self._stopped.set()

    @property
    def samplers(self) -> list[str]:
        """The names of those that fit the model's process."""
        return [name for name, kind in SAMPLERS.items() if _fits(kind(2), self.model.denoiser)]

    @property
    def can_be_guided(self) -> bool:
        """Whether guidance has something to compare with."""
        return self.model.has_classes and self.model.condition_dropout > 0

    @property
    def needs_a_class(self) -> bool:
        """Whether the model has classes, and has never done without one."""
        return self.model.has_classes and not self.model.condition_dropout

    @property
    def classes(self) -> list[str]:
        """The names of the classes, or their numbers."""
        count = self.model.num_classes or 0
        names = self.model.class_names or []
        return [names[i] if i < len(names) else str(i) for i in range(count)]

    def draw(self, num: int, label: int | None, seed: int, weight: float, steps: int, sampler: str) -> Shown:
        """``num`` pictures of a class, or of all in turn, on their way out of the noise."""
        generator = self._generator(seed)
        classes = torch.arange(num) % (self.model.num_classes or 1) if label is None else torch.full((num,), label)
        cond = self._told(classes, generator)
        denoiser = self._guided(weight if cond else 1.0)
        yield from self._steps(SAMPLERS[sampler](steps), denoiser, num, generator, cond)

    def one(self, seed: int) -> Tensor:
        """A picture of the model's own, ``(C, H, W)``: the first of all seeds is of the first class, and so on."""
        generator = self._generator(seed)
        cond = self._told(torch.tensor([seed % (self.model.num_classes or 1)]), generator)
        *_, (_, states) = self._states(DPMSolverPlusPlus(STEPS), self._begun(), 1, generator, cond)
        return states[0]

    def fill_in(
        self, picture: Tensor, missing: Tensor, method: str, seed: int, steps: int, label: int | None = None
    ) -> Shown:
        """Eight ways in which the missing part of a picture might be, and then their mean and standard deviation.

        Args:
            picture: ``(C, H, W)``.
            missing: ``(H, W)`` bool.
            method: a name among those of ``restore``.
            seed: decides the answers.
            steps: of the sampler.
            label: the class that the model is told; none if left out.
        """
        operator = Inpainting(~missing).to(self.model.device)
        y = operator(picture[None].to(self.model.device))
        generator = self._generator(seed)
        cond = self._told(None if label is None else torch.full((ANSWERS,), label), generator)
        sampler: StepSampler = DPMSolverPlusPlus(steps)
        denoiser: Denoiser = self._begun()
        if is_sampler(method):
            sampler = METHODS[method](y=y, operator=operator, steps=steps)  # type: ignore[call-arg, assignment]
        else:
            denoiser = METHODS[method](denoiser, y, operator)  # type: ignore[assignment, arg-type, misc]
        across = ANSWERS // 2
        for share, states in self._states(sampler, denoiser, ANSWERS, generator, cond):
            yield share, enlarged(image_grid(visible(states) if share < 1 else states, across=across))
        known = torch.where(missing, torch.zeros(()), picture)
        rest = torch.stack([known, states.mean(0), spread(states), *[-torch.ones_like(known)] * (across - 3)])
        yield 1.0, enlarged(image_grid(torch.cat([states, rest]), across=across))

    def sketch(self, picture: Tensor, noise_level: float, seed: int, num: int, label: int | None = None) -> Shown:
        """``num`` clean pictures of a sketch."""
        generator = self._generator(seed)
        cond = self._told(None if label is None else torch.full((num,), label), generator)
        denoiser = self._guided(2.0 if cond else 1.0)
        yield from self._steps(SDEdit(picture[None], noise_level), denoiser, num, generator, cond)

    def noise_levels(self) -> tuple[float, float]:
        """The range in which a sketch may be noised: from where it stays as it is to where nothing is left of it."""
        highest, lowest = DPMSolverPlusPlus(2).limits(self.model.denoiser.sde)
        return max(0.05, 1.01 * lowest), min(10.0, highest)

    def between(
        self, first: Tensor, last: Tensor, frames: int, labels: tuple[int | None, int | None] = (None, None)
    ) -> list[np.ndarray]:
        """The frames from one picture to another, each by itself; told the classes of both, if both are given."""
        cond: dict[str, Any] = {}
        if self.model.has_classes and None not in labels:
            ends = [self._told(torch.tensor([label]), self._generator(0))["labels"] for label in labels]
            cond["labels"] = tuple(ends)
        way = interpolate(self._begun(), first[None], last[None], frames, rtol=TOLERANCE, atol=TOLERANCE, **cond)
        return [enlarged(image_grid(frame), SIDE // 2) for frame in way.cpu()]

    def _generator(self, seed: int) -> torch.Generator:
        return torch.Generator(self.model.device).manual_seed(seed)

    def _told(self, classes: Tensor | None, generator: torch.Generator) -> dict[str, Tensor]:
        classes = None if classes is None else classes.to(self.model.device)
        if self.model.groups is not None and classes is not None:
            return {"labels": self.model.groups.draw(classes, generator)}
        return {"labels": classes} if classes is not None and self.model.has_classes else {}

    def _guided(self, weight: float) -> Denoiser:
        denoiser = self._begun()
        if weight == 1 or not self.can_be_guided:
            return denoiser
        own = self.model.guidance
        interval = own.keywords.get("interval") if isinstance(own, partial) else None
        return ClassifierFreeGuidance(denoiser, weight, interval=interval)

    def _begun(self) -> Denoiser:
        """The model, for a task that begins."""
        self._stopped = threading.Event()
        return _StoppableNetwork(self.model.denoiser, self._stopped)

    def _steps(
        self, sampler: StepSampler, denoiser: Denoiser, num: int, generator: torch.Generator, cond: dict[str, Tensor]
    ) -> Shown:
        for share, states in self._states(sampler, denoiser, num, generator, cond):
            yield share, enlarged(image_grid(visible(states) if share < 1 else states))

    # torch holds whether gradients are wanted by the thread, and each step of a generator may be in another one
    @torch.no_grad()
    def _states(
        self, sampler: StepSampler, denoiser: Denoiser, num: int, generator: torch.Generator, cond: dict[str, Tensor]
    ) -> Iterator[tuple[float, Tensor]]:
        sde = denoiser.sde
        sampler.check(sde)
        x = sde.prior((num, *self.shape), device=self.model.device, generator=generator)
        total = sampler.num_steps(sde)
        yield 0.0, x.cpu()
        for step, state in enumerate(sampler.iterate(denoiser, x, generator, **cond), start=1):
            yield step / total, state.cpu()


class _StoppableNetwork(Stoppable):
    """One that can be asked without a class, as guidance does."""

    def null(self, **cond: Any) -> dict[str, Tensor] | None:
        return self.denoiser.null(**cond)

    @property
    def num_classes(self) -> int | None:
        return self.denoiser.num_classes


def enlarged(picture: Tensor, side: int = SIDE) -> np.ndarray:
    """uint8 ``(3, h, w)`` as ``(H, W, 3)``, each pixel a square, so that the longer side is at least ``side``."""
    scale = max(1, -(-side // max(picture.shape[1:])))
    return picture.repeat_interleave(scale, 1).repeat_interleave(scale, 2).permute(1, 2, 0).contiguous().numpy()


def read_picture(path: str, shape: tuple[int, ...]) -> Tensor:
    """A picture of any size as one of the model's, ``(C, H, W)`` in [-1, 1]: its middle, by area.

    It is turned upright if its camera recorded a rotation; what is transparent is white, as most programs show it; of
    an animation the first frame is taken.

    Raises:
        ValueError: if it is no picture, or larger than any camera's.
    """
    try:
        with Image.open(path) as image:
            if image.width * image.height <= MEGAPIXELS * 1e6:
                upright = _eight_bits(ImageOps.exif_transpose(image)).convert("RGBA")
                middle = ImageOps.fit(upright, (shape[2], shape[1]), Image.Resampling.BOX)
                opaque = Image.alpha_composite(Image.new("RGBA", middle.size, "white"), middle)
                return from_levels(np.array(opaque.convert("L" if shape[0] == 1 else "RGB")), shape)
    except Image.DecompressionBombError:
        pass
    except Exception as error:  # Pillow's decoders raise many kinds
        raise ValueError("This file is no picture that can be read: give a PNG, JPEG or WebP.") from error
    raise ValueError(f"This picture is too large: give one of at most {MEGAPIXELS} megapixels.")


def _eight_bits(image: Image.Image) -> Image.Image:
    """An image of 16-bit levels with 8-bit ones; any other as it is."""
    if not image.mode.startswith("I"):
        return image
    levels = np.array(image).clip(0, 2**16 - 1) >> 8
    return Image.fromarray(levels.astype(np.uint8))


def from_levels(levels: np.ndarray, shape: tuple[int, ...]) -> Tensor:
    """8-bit levels ``(H', W')`` or ``(H', W', 3)`` as a picture of the model's shape: the middle, by area."""
    given = torch.from_numpy(levels).float().reshape(*levels.shape[:2], -1).permute(2, 0, 1) / 127.5 - 1
    if given.shape[0] != shape[0]:
        given = given.mean(0, keepdim=True).expand(shape[0], -1, -1)
    height, width = given.shape[1:]
    rows = max(1, min(height, width * shape[1] // shape[2]))
    columns = max(1, min(width, height * shape[2] // shape[1]))
    top, left = (height - rows) // 2, (width - columns) // 2
    middle = given[None, :, top : top + rows, left : left + columns]
    return F.interpolate(middle, tuple(shape[1:]), mode="area")[0]


def painted(alpha: np.ndarray, shape: tuple[int, ...]) -> Tensor:
    """Which pixels of the model's a layer that was painted covers by a fifth or more, ``(H, W)`` bool.

    Args:
        alpha: the layer's opacity, uint8 ``(H', W')``.
        shape: the model's.
    """
    opacity = torch.from_numpy(np.array(alpha, dtype=np.float32))[None, None] / 255
    return F.interpolate(opacity, tuple(shape[1:]), mode="area")[0, 0] >= 0.2


def _fits(sampler: Sampler, denoiser: Denoiser) -> bool:
    try:
        sampler.check(denoiser.sde)
    except ValueError:
        return False
    return True
