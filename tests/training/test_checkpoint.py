import pickle
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from diffusion_lightning import ScoreModule
from diffusion_lightning.training.checkpoint_file import KEY, load_checkpoint


class Runs:
    """Pickled, it is a call: it makes a file when it is loaded carelessly."""

    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self) -> Any:
        return Path.touch, (self.witness,)


class NotASampler(nn.Module):
    made = 0

    def __init__(self) -> None:
        super().__init__()
        NotASampler.made += 1


@pytest.fixture
def good(make_module, make_trainer, make_data, tmp_path) -> Path:
    """A checkpoint of a trained module."""
    trainer = make_trainer(limit_train_batches=1, limit_val_batches=0)
    trainer.fit(make_module(), datamodule=make_data())
    trainer.save_checkpoint(tmp_path / "good.ckpt")
    return tmp_path / "good.ckpt"


def refused(path: Path, message: str) -> None:
    """Both ways to read a checkpoint raise a ValueError of one line that names the file."""
    for read in (load_checkpoint, ScoreModule.load_from_checkpoint):
        with pytest.raises(ValueError, match=message) as caught:
            read(path)
        assert "\n" not in str(caught.value)
        assert f"ckpt_path={str(path)!r}" in str(caught.value)


def test_a_good_one_is_read(good):
    checkpoint = load_checkpoint(good)
    assert checkpoint[KEY]["version"]
    assert ScoreModule.load_from_checkpoint(good).ema.num_updates == 1
    assert load_checkpoint(str(good), map_location="meta")["ema"]["shadow_params"][0].is_meta


def test_missing(tmp_path, good):
    for read in (load_checkpoint, ScoreModule.load_from_checkpoint):
        with pytest.raises(FileNotFoundError, match=r"there is no such file; its folder holds good\.ckpt"):
            read(tmp_path / "goood.ckpt")
        with pytest.raises(FileNotFoundError, match=r"there is no such file$"):
            read(tmp_path / "nowhere" / "good.ckpt")
        with pytest.raises(FileNotFoundError, match="there is no such file"):
            read(tmp_path)


@pytest.mark.parametrize("part", [0.0, 0.1, 0.5, 0.99])
def test_truncated(good, part):
    content = good.read_bytes()
    good.write_bytes(content[: int(part * len(content))])
    refused(good, "is damaged, or not a checkpoint at all")


def test_a_flipped_bit_in_the_weights(good):
    content = bytearray(good.read_bytes())
    checkpoint = torch.load(good, weights_only=True)
    weights = max((t for t in checkpoint["state_dict"].values()), key=torch.numel).numpy().tobytes()
    content[content.index(weights) + len(weights) // 2] ^= 0x40
    good.write_bytes(content)
    refused(good, "is damaged")


@pytest.mark.parametrize(
    "content",
    [
        random.Random(0).randbytes(5000),
        b"A diary.\n" * 100,
        b"seed_everything: 0\ntrainer: {}\n",
        b"\x89PNG\r\n\x1a\n" + bytes(200),
        pickle.dumps({"state_dict": {}}),
    ],
    ids=["random bytes", "text", "YAML", "picture", "pickle"],
)
def test_files_of_other_kinds(tmp_path, content):
    (tmp_path / "a.ckpt").write_bytes(content)
    refused(tmp_path / "a.ckpt", "is damaged, or not a checkpoint at all")


@pytest.mark.parametrize(
    "content",
    [
        {"state_dict": {"weight": torch.zeros(2)}},
        {"state_dict": {}, "hyper_parameters": {"width": 3}, "pytorch-lightning_version": "2.6.0"},
        [torch.zeros(2)],
        torch.zeros(2),
    ],
    ids=["weights", "another LightningModule", "list", "tensor"],
)
def test_torch_files_of_something_else(tmp_path, content):
    torch.save(content, tmp_path / "a.ckpt")
    refused(tmp_path / "a.ckpt", "is a file of something else")


@pytest.mark.parametrize("where", ["alone", "hidden in a good one"])
def test_code_is_not_run(good, tmp_path, where):
    witness = tmp_path / "witness"
    torch.save(Runs(witness) if where == "alone" else {**load_checkpoint(good), "extra": Runs(witness)}, good)
    refused(good, "could run code")
    assert not witness.exists()
    torch.load(good, weights_only=False)
    assert witness.exists()  # the trap works


def test_a_plain_pickle_that_runs_code_is_not_run(tmp_path):
    witness = tmp_path / "witness"
    (tmp_path / "a.ckpt").write_bytes(pickle.dumps(Runs(witness)))
    refused(tmp_path / "a.ckpt", "is damaged|could run code")
    assert not witness.exists()


def test_a_pickled_module_is_refused(tmp_path):
    torch.save(nn.Linear(2, 2), tmp_path / "a.ckpt")
    refused(tmp_path / "a.ckpt", "could run code")


@pytest.mark.parametrize("argument", ["sampler", "sde", "parameterization", "objective"])
def test_hyperparameters_that_name_a_class_of_another_kind(good, argument):
    checkpoint = load_checkpoint(good)
    checkpoint["hyper_parameters"][argument] = {"class_path": f"{__name__}.NotASampler", "init_args": {}}
    torch.save(checkpoint, good)
    before = NotASampler.made
    with pytest.raises(ValueError, match="cannot build ScoreModule from its recipe") as caught:
        ScoreModule.load_from_checkpoint(good)
    assert "\n" not in str(caught.value)
    assert NotASampler.made == before


def test_hyperparameters_that_would_run_a_program(good, tmp_path):
    checkpoint = load_checkpoint(good)
    recipe = {"class_path": "subprocess.Popen", "init_args": {"args": ["touch", str(tmp_path / "witness")]}}
    for argument in ("network", "optimizer", "sampler"):
        checkpoint["hyper_parameters"][argument] = recipe
        torch.save(checkpoint, good)
        with pytest.raises(ValueError, match="cannot build ScoreModule"):
            ScoreModule.load_from_checkpoint(good)
    assert not (tmp_path / "witness").exists()


# ---- of versions of this package

VERSIONS = Path(__file__).parents[1] / "data" / "checkpoints"


@pytest.mark.parametrize("version", ["0.1.0", "0.2.0_release", "0.2.0"])
def test_a_version_is_still_read(version):
    module = ScoreModule.load_from_checkpoint(VERSIONS / f"version_{version}.ckpt")
    assert module.ema.num_updates == 6
    assert module.class_names is module.class_counts is None  # which these versions did not write down
    assert module.sample(num=2).shape == (2, 1, 28, 28)


@pytest.mark.parametrize("version", ["0.2.0_release", "0.2.0"])
def test_the_present_version_goes_on_without_a_word(make_module, make_trainer, make_data, recwarn, version):
    trainer = make_trainer(max_epochs=3, limit_val_batches=1)
    trainer.fit(make_module(), datamodule=make_data(), ckpt_path=VERSIONS / f"version_{version}.ckpt")
    assert (trainer.global_step, trainer.current_epoch) == (9, 3)
    told = [text for w in recwarn if "version" in (text := str(w.message)) or "resum" in text]
    # these were written under Lightning 2.6.6, which an older one says itself
    assert [text for text in told if "produced with Lightning v2.6.6" not in text] == []


def test_the_first_version_goes_on_and_says_what_it_lacks(make_module, make_trainer, make_data):
    trainer = make_trainer(max_epochs=3, limit_val_batches=1)
    with pytest.warns(UserWarning, match=r"of version 0\.1\.0, which did not write down where in an epoch it stood"):
        trainer.fit(make_module(), datamodule=make_data(), ckpt_path=VERSIONS / "version_0.1.0.ckpt")
    assert (trainer.global_step, trainer.current_epoch) == (9, 3)
