import subprocess
import sys

import torch

from diffusion_lightning.data.tensor_images import normalize, random_flip


def test_normalize_is_exact():
    levels = torch.arange(256, dtype=torch.uint8)
    result = normalize(levels)
    assert result.dtype == torch.float32
    assert result[0] == -1.0
    assert result[255] == 1.0
    torch.testing.assert_close(result.double(), torch.arange(256).double() / 127.5 - 1, rtol=0, atol=1e-7)
    assert levels[1] == 1, "the input must stay as it was"


def test_random_flip_mirrors_half_of_the_images_left_to_right():
    images = torch.randint(0, 256, (4000, 1, 3, 5), dtype=torch.uint8)
    flipped = random_flip(images, seed=1)
    same = (flipped == images).flatten(1).all(1)
    mirrored = (flipped == images.flip(-1)).flatten(1).all(1)
    assert (same | mirrored).all()
    assert abs(mirrored.float().mean() - 0.5) < 0.04  # five standard deviations
    assert torch.equal(flipped, random_flip(images, seed=1))
    assert not torch.equal(flipped, random_flip(images, seed=2))


def test_random_flip_leaves_the_global_generator_alone():
    state = torch.get_rng_state()
    random_flip(torch.zeros(8, 1, 2, 2), seed=0)
    assert torch.equal(state, torch.get_rng_state())


def test_orders_and_images_in_memory_load_without_lightning():
    code = """
import sys
import diffusion_lightning.data.order, diffusion_lightning.data.loader, diffusion_lightning.data.pictures
from diffusion_lightning import TensorImages
sys.exit("Lightning is loaded as well" if "lightning" in sys.modules else 0)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
