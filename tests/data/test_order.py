import pytest
import torch
from numbered import order

from diffusion_lightning.data.order import BatchOrder
from diffusion_lightning.randomness import draw_some


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize(("size", "batch_size"), [(60, 10), (61, 10), (50, 7), (9, 4), (5, 128), (3, 1)])
def test_training_shares_are_disjoint_equal_and_nearly_all(world, size, batch_size):
    shares = [list(order(size, batch_size, world, rank)) for rank in range(world)]
    assert len({tuple(map(len, share)) for share in shares}) == 1, "ranks differ in their batches"
    assert all(len(order(size, batch_size, world, rank)) == len(shares[0]) for rank in range(world))
    seen = [index for share in shares for batch in share for index in batch]
    assert len(seen) == len(set(seen))
    assert set(seen) <= set(range(size))
    if size // world >= batch_size:
        assert all(len(batch) == batch_size for batch in shares[0])
        assert len(shares[0]) == size // world // batch_size
    else:
        assert [len(batch) for batch in shares[0]] == [size // world]


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize(("size", "batch_size"), [(60, 10), (61, 10), (10, 3), (2, 128)])
def test_without_shuffling_every_image_is_taken_exactly_once_in_order(world, size, batch_size):
    orders = [order(size, batch_size, world, rank, training=False) for rank in range(world)]
    assert all(len(list(each)) == len(each) for each in orders)
    assert sorted(index for each in orders for batch in each for index in batch) == list(range(size))
    assert all(batch == sorted(batch) for each in orders for batch in each)


@pytest.mark.parametrize("world", [1, 2, 3])
def test_an_order_drawn_once_is_the_same_in_every_epoch_and_over_all_ranks(world):
    def batches(rank, epoch, seed=5):
        each = BatchOrder(60, 12 // world, shuffle="once", drop_last=False, seed=seed, num_replicas=world, rank=rank)
        each.set_epoch(epoch)
        return list(each)

    shares = [batches(rank, epoch=0) for rank in range(world)]
    assert shares == [batches(rank, epoch=7) for rank in range(world)]
    assert shares != [batches(rank, epoch=0, seed=6) for rank in range(world)]
    # the batches of all ranks together are the order's next 12, whatever the number of ranks
    whole = draw_some(60, 60, seed=5).tolist()
    for index, parts in enumerate(zip(*shares, strict=True)):
        assert sorted(number for part in parts for number in part) == sorted(whole[12 * index : 12 * index + 12])


def test_the_order_is_a_function_of_seed_and_epoch_only():
    first = list(order(1000, 10, epoch=3, seed=5))
    torch.rand(7)
    again = order(1000, 10, epoch=0, seed=5)
    list(again)
    again.set_epoch(3)
    assert list(again) == list(again) == first
    assert list(order(1000, 10, epoch=4, seed=5)) != first
    assert list(order(1000, 10, epoch=3, seed=6)) != first


def test_the_order_is_shuffled():
    flat = torch.tensor([index for batch in order(10_000, 100) for index in batch], dtype=torch.float64)
    # The correlation of a random permutation with its position is about N^(-1/2).
    assert torch.corrcoef(torch.stack((flat, torch.arange(10_000))))[0, 1].abs() < 0.05


def test_ranks_together_take_the_batches_that_one_process_would():
    alone = list(order(64, 16))
    ranks = [list(order(64, 8, world=2, rank=rank)) for rank in range(2)]
    assert [sorted(a + b) for a, b in zip(*ranks, strict=True)] == [sorted(batch) for batch in alone]


def test_an_epoch_can_start_in_the_middle():
    whole = list(order(50, 8, epoch=2))
    resumed = order(50, 8, epoch=2)
    resumed.start_batch = 4
    resumed.set_epoch(2)
    assert list(resumed) == whole[4:]
    assert len(resumed) == len(whole)
    resumed.set_epoch(3)
    assert list(resumed) == list(order(50, 8, epoch=3))


def test_fewer_training_images_than_processes_is_an_error():
    with pytest.raises(ValueError, match="0 training images cannot feed 1 processes"):
        order(0, 4)
    with pytest.raises(ValueError, match="2 training images cannot feed 3 processes"):
        order(2, 4, world=3)
