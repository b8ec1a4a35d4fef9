"""The table of restored digits: what it counts and compares with is what it says."""

from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

from diffusion_lightning import (
    MLP,
    DPMSolverPlusPlus,
    EmbeddedMNIST,
    Inpainting,
    KarrasPreconditioning,
    KarrasSDE,
    NetworkDenoiser,
    TwistedSMC,
    restore,
)
from diffusion_lightning.data.tensor_images import normalize

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture(scope="module")
def restoring() -> Iterator[ModuleType]:
    """The benchmark."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCHMARKS)
        import restoring

        yield restoring


def test_passes_and_products_are_counted_at_the_network(restoring) -> None:
    """As the sampler counts them, for each of the answers; of particles, which are many to an answer, all."""
    denoiser = NetworkDenoiser(MLP(dim=2), KarrasSDE(), KarrasPreconditioning())
    counter = restoring.Counter(denoiser.network)
    given = (torch.ones(1, 2), Inpainting(torch.tensor([True, False])))
    for method, each in (("PGDM", 2), ("MMPS", 3), ("Replacement", 1)):
        counter.evaluations, sampler = 0, DPMSolverPlusPlus(5)
        restore(denoiser, *given, method, 7, sampler, 0.1, batch_size=3)
        assert counter.evaluations == 7 * sampler.nfe
        assert sampler.nfe == 5 * each  # one measured number: conjugate gradients end after one product
    counter.evaluations = 0
    few = TwistedSMC(*given, 0.1, steps=4, particles=3)
    few(denoiser, (2, 2), generator=torch.Generator().manual_seed(0))
    assert counter.evaluations == 2 * 3 * 2 * 4  # samples × particles × (passes and products) × steps


def test_of_exact_draws_one_in_twenty_errs_by_more(restoring) -> None:
    """Of one answer to each of 400 pictures: the share of the lower ones is 1.96 standard errors off, 1.96/(2·20)."""
    assert restoring.error_of_exact(1, 400) == pytest.approx(0.049, abs=0.006)


def test_the_digit_that_was_there_is_right_and_another_is_not(restoring) -> None:
    held_out = EmbeddedMNIST().load_images()[1]
    chosen = torch.tensor([(held_out.labels == digit).nonzero()[0].item() for digit in range(10)])
    truth, labels = normalize(held_out.images[chosen]), held_out.labels[chosen]
    operator = Inpainting(torch.arange(28)[:, None] < 14)
    y = operator.measure(truth, restoring.NOISE, torch.Generator().manual_seed(0))
    answers = torch.stack([truth, truth.roll(1, 0)])
    found = restoring.scores(answers, y, truth, labels, operator)
    assert found["right digit"] == found["agree"] == 0.5
    assert sum(found["ranks"]) == 10 * restoring.STATISTICS
    # the noise alone is left of what was measured
    assert restoring.scores(truth[None], y, truth, labels, operator)["residual"] == pytest.approx(1, abs=0.1)
