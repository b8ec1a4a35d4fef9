"""What a batch is noised by: one stream, of which each process draws its own rows."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from torch import Tensor

from diffusion_lightning import VPSDE, DenoisingScoreMatching, KarrasSDE, LogNormalTimes
from diffusion_lightning.philox import normal_rows
from diffusion_lightning.training import draws
from diffusion_lightning.training.checkpoint_file import KEY
from diffusion_lightning.training.draws import draw_all, draw_rows, drop_conditions

CASES = [(DenoisingScoreMatching(), VPSDE()), (DenoisingScoreMatching("karras", LogNormalTimes()), KarrasSDE())]


@pytest.mark.parametrize("draw", [draw_rows, draw_all])
@pytest.mark.parametrize(("objective", "sde"), CASES)
@pytest.mark.parametrize("processes", [2, 4, 64])
def test_processes_draw_disjoint_rows_of_one_stream(draw, objective, sde, processes):
    whole = torch.zeros(128, 1, 4, 4)
    times, noise = draw(objective, sde, whole, 128, 5, 0, 1)
    size = 128 // processes
    for rank in range(processes):
        own_times, own_noise = draw(objective, sde, whole[:size], size, 5, rank, processes)
        assert torch.equal(own_times, times[rank::processes])
        assert torch.equal(own_noise, noise[rank::processes])
    assert len(noise.flatten().unique()) == noise.numel()


def test_the_last_batch_of_a_set_draws_the_beginning_of_a_whole_one():
    objective, sde = CASES[0]
    times, noise = draw_rows(objective, sde, torch.zeros(8, 3), 8, 5, 1, 2)
    fewer = draw_rows(objective, sde, torch.zeros(3, 3), 8, 5, 1, 2)
    assert torch.equal(fewer[0], times[:3])
    assert torch.equal(fewer[1], noise[:3])


@pytest.mark.parametrize("processes", [1, 8, 64])
def test_the_noise_of_other_processes_is_not_drawn(processes, monkeypatch):
    asked = []

    def counted(key, places, shape):
        asked.append(len(places))
        return normal_rows(key, places, shape)

    monkeypatch.setattr(draws, "normal_rows", counted)
    draw_rows(*CASES[0], torch.zeros(16, 2), 16, 5, processes - 1, processes)
    assert asked == [16]


def test_an_objective_that_draws_by_itself_is_asked():
    class Offset(DenoisingScoreMatching):
        def draw(self, sde, shape, *, device=None, generator=None):
            t, noise = super().draw(sde, shape, device=device, generator=generator)
            return t, noise + 100

    t, noise = draw_rows(Offset(), VPSDE(), torch.zeros(4, 3), 4, 5, 1, 2)
    assert (noise > 50).all()
    assert torch.equal(t, draw_rows(*CASES[0], torch.zeros(4, 3), 4, 5, 1, 2)[0])


def dropped_of(labels: Tensor, seed: int, rank: int = 0, processes: int = 1) -> Tensor:
    null = {"labels": torch.full_like(labels, 10)}
    return drop_conditions({"labels": labels}, null, 0.1, seed, rank, processes)["labels"]


def test_conditions_are_dropped_at_their_rate_whatever_the_number_of_processes():
    labels = torch.arange(20_000) % 10
    dropped = dropped_of(labels, 5)
    rate = (dropped == 10).float().mean().item()
    assert abs(rate - 0.1) < 5 * (0.1 * 0.9 / 20_000) ** 0.5
    assert torch.equal(dropped[dropped != 10], labels[dropped != 10])
    # each class as often, and others in the next batch
    for label in range(10):
        assert abs((dropped[labels == label] == 10).float().mean() - 0.1) < 5 * (0.1 * 0.9 / 2000) ** 0.5
    other = dropped_of(labels, 6)
    assert abs(((other == 10) & (dropped == 10)).float().mean() - 0.01) < 5 * (0.01 / 20_000) ** 0.5
    for processes in (2, 4, 64):
        size = len(labels) // processes
        for rank in (0, processes - 1):
            own = dropped_of(labels[rank::processes][:size], 5, rank, processes)
            assert torch.equal(own, dropped[rank::processes][:size])


def test_an_example_loses_all_its_conditions_or_none():
    given = {"labels": torch.arange(200) % 10, "vector": torch.ones(200, 3), "picture": torch.ones(200, 1, 4, 4)}
    null = {"labels": torch.full((200,), 10), **{name: given[name] * torch.nan for name in ("vector", "picture")}}
    dropped = drop_conditions(given, null, 0.3, 5, 0, 1)
    gone = dropped["labels"] == 10
    assert 30 < gone.sum() < 90
    for name in ("vector", "picture"):
        assert torch.equal(dropped[name].flatten(1).isnan().all(1), gone)
        assert torch.equal(dropped[name][~gone], given[name][~gone])
    assert torch.equal(gone, drop_conditions({"vector": given["vector"]}, null, 0.3, 5, 0, 1)["vector"][:, 0].isnan())


class AsBefore(Callback):
    """Draws as the release of 0.2.0."""

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        pl_module.draws_own_rows = False


def test_a_run_of_an_old_release_goes_on_with_its_own_draws(make_module, make_trainer, make_data, tmp_path):
    def trained(steps: int, *callbacks: Callback, start: Path | None = None) -> tuple[Any, Any]:
        module = make_module()
        trainer = make_trainer(max_epochs=-1, max_steps=steps, callbacks=list(callbacks))
        trainer.fit(module, datamodule=make_data(), ckpt_path=start)
        return trainer, torch.cat([p.detach().flatten() for p in module.network.parameters()])

    whole, new = trained(6, AsBefore())[1], trained(6)[1]
    assert not torch.equal(whole, new)

    trained(4, AsBefore())[0].save_checkpoint(tmp_path / "old.ckpt")
    checkpoint = torch.load(tmp_path / "old.ckpt", weights_only=True)
    assert checkpoint[KEY].pop("draws_own_rows") is False  # which the old release did not write down
    torch.save(checkpoint, tmp_path / "old.ckpt")
    trainer, resumed = trained(6, start=tmp_path / "old.ckpt")
    assert torch.equal(resumed, whole)

    trainer.save_checkpoint(tmp_path / "newer.ckpt")
    assert torch.load(tmp_path / "newer.ckpt", weights_only=True)[KEY]["draws_own_rows"] is False
    # a new training from those weights is a new one
    module = type(make_module()).load_from_checkpoint(tmp_path / "newer.ckpt")
    make_trainer(limit_train_batches=1).fit(module, datamodule=make_data())
    assert module.draws_own_rows
