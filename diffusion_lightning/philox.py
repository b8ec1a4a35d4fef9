r"""Counter-based random numbers: each is a function of a key and its own number, and needs none of those before it.

Philox-4×32-10 (Salmon, Moraes, Dror & Shaw 2011, "Parallel random numbers: as easy as 1, 2, 3") turns a counter of four
32-bit words and a key of two into four random words, by ten rounds of

.. math:: (c_0, c_1, c_2, c_3) \leftarrow \big(\mathrm{hi}(M_1 c_2) \oplus c_1 \oplus k_0,\ \mathrm{lo}(M_1 c_2),\
          \mathrm{hi}(M_0 c_0) \oplus c_3 \oplus k_1,\ \mathrm{lo}(M_0 c_0)\big),

after each of which the key's words grow by constants. So a process draws what belongs to its own examples alone, and
the draws are the same on every device, but for the rounding of a logarithm and a sine.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

ROUNDS = 10
_MULTIPLIERS = 0xD2511F53, 0xCD9E8D57
_WEYL = 0x9E3779B9, 0xBB67AE85
_WORD = 2**32 - 1


def philox(counter: Sequence[Tensor], key: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Four random words for each counter, whose tensors are used up.

    Args:
        counter: four int64 tensors of one shape, in [0, 2³²).
        key: in [0, 2⁶⁴), its lower word first.

    Returns:
        Four int64 tensors of that shape, in [0, 2³²).
    """
    a, b, c, d = counter
    first, second = key & _WORD, key >> 32
    for _ in range(ROUNDS):
        # int64 wraps, and keeps the product's bits; what is above a word is cut off before it is multiplied
        low_a, low_c = a.mul_(_MULTIPLIERS[0]), c.mul_(_MULTIPLIERS[1])
        a = b.bitwise_xor_(low_c >> 32).bitwise_xor_(first).bitwise_and_(_WORD)
        c = d.bitwise_xor_(low_a >> 32).bitwise_xor_(second).bitwise_and_(_WORD)
        b, d = low_c, low_a
        first, second = (first + _WEYL[0]) & _WORD, (second + _WEYL[1]) & _WORD
    return a, b.bitwise_and_(_WORD), c, d.bitwise_and_(_WORD)


def normal_rows(key: int, places: Tensor, shape: Sequence[int]) -> Tensor:
    r"""Standard normal draws, row by row: each row is a function of the key and its own place.

    Two words make two draws, :math:`\sqrt{-2\ln u_1}\,(\cos 2\pi u_2,\ \sin 2\pi u_2)` (Box & Muller 1958).

    Args:
        key: in [0, 2⁶³), see :func:`~diffusion_lightning.randomness.derive_seed`.
        places: of the rows, int64 ``(B,)`` in [0, 2³²), on the device that draws.
        shape: of one row.

    Returns:
        ``(B, *shape)`` in the default floating-point type.
    """
    size = math.prod(shape)
    blocks = math.ceil(size / 4)
    words = _words(key, places, blocks)
    drawn = torch.empty(len(places), blocks, 4, device=places.device, dtype=torch.float32)
    for pair in (0, 2):
        radius = (words[pair].float() + 1).mul_(2.0**-32).log_().mul_(-2).sqrt_()
        angle = words[pair + 1].float().mul_(2 * math.pi * 2.0**-32)
        torch.mul(radius, angle.cos(), out=drawn[..., pair])
        torch.mul(radius, angle.sin_(), out=drawn[..., pair + 1])
    return drawn.flatten(1)[:, :size].reshape(len(places), *shape).to(torch.get_default_dtype())


def uniform_rows(key: int, places: Tensor) -> Tensor:
    """One draw of U[0, 1) for each row, a function of the key and the row's place: float32 ``(B,)``, multiples of 2⁻²⁴.

    Args:
        key: in [0, 2⁶³); another one than that of other draws.
        places: of the rows, as in :func:`normal_rows`.
    """
    return (_words(key, places, 1)[0][:, 0] >> 8).float() * 2.0**-24


def _words(key: int, places: Tensor, blocks: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Four words for each place and block, each ``(B, blocks)``."""
    counter = [torch.zeros(len(places), blocks, dtype=torch.int64, device=places.device) for _ in range(4)]
    counter[0] += torch.arange(blocks, device=places.device)
    counter[1] += places[:, None]
    return philox(counter, key)
