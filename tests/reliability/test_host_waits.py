"""An ordinary step of a fused optimizer waits for no device, and the processes add up their gradients, no more."""

import json

import pytest

from diffusion_lightning.training.agreement import Agreement

CALLBACKS = [
    {"class_path": "misfortunes.HostWaits"},
    {"class_path": "diffusion_lightning.LossByNoise"},
    {"class_path": "diffusion_lightning.LastCheckpoint"},
    {"class_path": "diffusion_lightning.TrainingProgressBar"},
]
OPTIONS = (
    f"--trainer.callbacks={json.dumps(CALLBACKS)}",
    "--trainer.max_epochs=1",
    "--trainer.limit_train_batches=15",
    "--trainer.log_every_n_steps=50",
    "--trainer.enable_progress_bar=true",
    "--model.optimizer=torch.optim.AdamW",
    "--model.optimizer.fused=true",
    "--model.max_skipped_steps=20",
)


@pytest.mark.parametrize("processes", [1, 2])
def test_steps_between_those_that_are_written_down(make_command, processes: int):
    command = make_command(*OPTIONS, processes=processes)
    command()
    # the gradients, in one bucket; and whether it is time to stop, from host to host
    names = ["lightning.pytorch.core.module", Agreement.__module__] if processes > 1 else []
    for rank in range(processes):
        found = json.loads((command.folder / f"waits.rank{rank}.json").read_text())
        assert found == {f"c10d.allreduce_ in {name}": 10 for name in names}
