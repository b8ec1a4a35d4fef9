import itertools

import pytest
import torch

from diffusion_lightning.randomness import Stream, derive_seed, draw_some


def test_the_values_never_change():
    # The first output of splitmix64 seeded with 0, as published; one part 1 of number 1 is that very state.
    assert derive_seed(1) == 0xE220A8397B1DCDAF >> 1
    # An interrupted run that is resumed with another version must draw the same noise.
    assert derive_seed(1, 2, 3) == 37039206658386963
    assert derive_seed(-1, 2**63) == 8420395257624768635


def test_every_part_its_place_and_their_number_count():
    parts = [p for n in range(5) for p in itertools.product((0, 1, 2, 3, -1), repeat=n)]
    assert len({derive_seed(*p) for p in parts}) == len(parts)


def test_seeds_are_valid_for_generators_and_look_random():
    seeds = [derive_seed(s, e, Stream.FLIP) for s in range(64) for e in range(64)]
    assert all(0 <= seed < 2**63 for seed in seeds)
    torch.Generator().manual_seed(max(seeds))
    bits = torch.tensor([[seed >> bit & 1 for bit in range(63)] for seed in seeds], dtype=torch.float64).mean(0)
    # Each bit is set in half of 4096 seeds, up to five standard deviations.
    assert (bits - 0.5).abs().max() < 5 * 0.5 / 4096**0.5


def test_streams_are_distinct():
    assert len({derive_seed(0, 0, stream) for stream in Stream}) == len(Stream) == len(list(Stream.__members__))


def test_only_integers():
    with pytest.raises((TypeError, ValueError)):
        derive_seed("epoch")  # type: ignore[arg-type]


def test_some_of_many_are_drawn_without_replacement():
    drawn = draw_some(1000, 10_000, seed=0)
    assert drawn.dtype == torch.int64
    assert len(drawn) == len(drawn.unique()) == 1000
    assert 0 <= drawn.min() <= drawn.max() < 10_000
    # evenly from everything: the mean of a draw, within five of its standard deviations
    deviation = (10_000**2 / 12 / 1000 * (1 - 1000 / 10_000)) ** 0.5
    assert abs(drawn.double().mean() - 4999.5) < 5 * deviation

    assert torch.equal(draw_some(1000, 10_000, seed=0), drawn)
    assert torch.equal(draw_some(10, 10_000, seed=0), drawn[:10])
    assert not torch.equal(draw_some(1000, 10_000, seed=1), drawn)
    assert draw_some(7, 5, seed=0).sort().values.tolist() == [0, 1, 2, 3, 4]
