"""Settings by path, and exactly those in which configs differ."""

import copy

from run_folders import CONFIG

from diffusion_lightning.report.settings import differing, flatten, of_note


def test_every_setting_has_a_path():
    assert flatten(CONFIG) == {
        "seed_everything": "0",
        "trainer.max_epochs": "3",
        "trainer.precision": "auto",
        "trainer.callbacks.SampleGrid": "SampleGrid",
        "trainer.callbacks.SampleGrid.num_samples": "64",
        "trainer.callbacks.SampleGrid.name": "samples",
        "trainer.callbacks.SampleGrid.2": "SampleGrid",
        "trainer.callbacks.SampleGrid.2.num_samples": "16",
        "trainer.callbacks.SampleGrid.2.name": "few",
        "model.network": "UNet",
        "model.network.channels": "[32, 64]",
        "model.network.dropout": "0.0",
        "model.sde": "KarrasSDE",
        "model.sde.rho": "7.0",
        "model.optimizer": "Muon",
        "model.optimizer.lr": "0.01",
        "model.lr_scheduler": "null",
        "data": "EmbeddedMNIST",
        "data.batch_size": "64",
        "run_name": "quickstart",
        "ckpt_path": "null",
    }


def test_equal_configs_differ_in_nothing():
    assert differing([CONFIG, copy.deepcopy(CONFIG)]) == {}


def test_the_settings_that_differ_and_no_other():
    other = copy.deepcopy(CONFIG)
    other["model"]["sde"] = {"class_path": "diffusion_lightning.VPSDE", "init_args": {"beta_max": 20.0}}
    other["model"]["network"]["init_args"]["channels"] = [32, 65]
    other["trainer"]["callbacks"].pop()
    other["ckpt_path"] = "last"  # how a part was started
    third = copy.deepcopy(other)
    third["trainer"]["max_epochs"] = 5
    assert differing([CONFIG, other, third]) == {
        "trainer.max_epochs": ["3", "3", "5"],
        "trainer.callbacks.SampleGrid.2": ["SampleGrid", None, None],
        "trainer.callbacks.SampleGrid.2.num_samples": ["16", None, None],
        "trainer.callbacks.SampleGrid.2.name": ["few", None, None],
        "model.network.channels": ["[32, 64]", "[32, 65]", "[32, 65]"],
        "model.sde": ["KarrasSDE", "VPSDE", "VPSDE"],
        "model.sde.rho": ["7.0", None, None],
        "model.sde.beta_max": [None, "20.0", "20.0"],
    }


def test_what_kind_of_run_it_is():
    assert of_note(CONFIG) == {
        "network": "UNet",
        "process": "KarrasSDE",
        "optimizer": "Muon",
        "learning rate": "0.01",
        "data": "EmbeddedMNIST",
        "batch size": "64",
        "precision": "auto",
    }
    assert of_note({}) == {}
