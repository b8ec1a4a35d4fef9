"""Labels in the data's class proportions, for samples that are to be compared with data."""

from collections.abc import Sequence

import torch
from torch import Tensor


def in_shares(counts: Sequence[int], total: int) -> Tensor:
    """The labels of ``total`` samples, in which each class has its share of the data, by largest remainder.

    Class c of n_c among N examples gets ⌊total·n_c/N⌋ samples, and the largest remainders get one more (Hamilton's
    method); of equal remainders the lower class. The classes are spread evenly over the samples: in turn if they are
    equally frequent.

    Args:
        counts: examples of each class, n_c ≥ 0.
        total: how many labels.

    Returns:
        int64 (total,), a function of the arguments alone: sample i of a measurement has label i, whatever process
        draws it.

    Raises:
        ValueError: if there is no example at all.
    """
    examples = sum(counts)
    if examples < 1:
        raise ValueError(f"counts={list(counts)}: must have an example of some class")
    samples = [total * count // examples for count in counts]
    by_remainder = sorted(range(len(counts)), key=lambda label: -(total * counts[label] % examples))
    for label in by_remainder[: total - sum(samples)]:
        samples[label] += 1
    # the j-th of a class stands where the class has had j + ½ examples of the data
    places = [((j + 0.5) / counts[label], label) for label, wanted in enumerate(samples) for j in range(wanted)]
    return torch.tensor([label for _, label in sorted(places)], dtype=torch.int64)
