"""A UNet2DModel as a network here: the same numbers as in diffusers, step for step, and nothing else needed later."""

import inspect
import json
import shutil
import sys

import pytest
import torch
from diffusers import DDIMPipeline, DDIMScheduler, DDPMPipeline, DDPMScheduler, UNet2DConditionModel, UNet2DModel

from diffusion_lightning import (
    DDIM,
    DDPM,
    DiscreteVPSDE,
    EmbeddedMNIST,
    Heun,
    NetworkDenoiser,
    NoisePrediction,
    ScoreModule,
    VelocityPrediction,
    cli,
)
from diffusion_lightning.networks import DiffusersUNet
from diffusion_lightning.training.checkpoint_file import load_checkpoint

TINY = {
    "in_channels": 1,
    "out_channels": 1,
    "block_out_channels": [8, 16],
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D"],
    "up_block_types": ["AttnUpBlock2D", "UpBlock2D"],
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "attention_head_dim": 4,
}
SCHEDULE = {"beta_start": 0.002, "beta_end": 0.1}
STEPS = 40


def library_model(**changes):
    torch.manual_seed(0)
    return UNet2DModel(**{**TINY, "sample_size": 8, **changes}).eval()


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "model"
    library_model().save_pretrained(path)
    return path


def test_the_times_of_the_grid_are_the_whole_steps():
    for n in (2, 10, 999, 1000, 4000):
        network = DiffusersUNet(config=TINY, num_train_timesteps=n)
        assert torch.equal(network.step_number(DiscreteVPSDE(n).times), torch.arange(n, dtype=torch.float32))


def test_times_in_between_are_steps_in_between():
    network = DiffusersUNet(config=TINY)
    t = torch.tensor([1e-5, 0.0015, 0.50025, 1.0])
    torch.testing.assert_close(network.step_number(t), torch.tensor([0, 0.5, 499.25, 999]))
    assert network.step_number(t.bfloat16()).dtype == torch.float32


def test_its_output_is_the_library_s_bit_for_bit(folder):
    network = DiffusersUNet(str(folder)).eval()
    model, x = library_model(), torch.randn(4, 1, 8, 8)
    steps = torch.tensor([0, 7, 500, 999])
    with torch.no_grad():
        assert torch.equal(network(x, (steps + 1) / 1000), model(x, steps).sample)


def states_of(pipeline, **call):
    """The states that a pipeline's network is shown, and the pictures, before it cuts them off at [-1, 1]."""
    states, steps = [], []
    pipeline.unet.register_forward_pre_hook(lambda module, args: states.append(args[0].clone()))
    step = pipeline.scheduler.step

    def spy(*args, **kwargs):
        result = step(*args, **kwargs)
        steps.append(result.prev_sample)
        return result

    pipeline.scheduler.step = spy
    pipeline.set_progress_bar_config(disable=True)
    pipeline(**call)
    return torch.stack([*states, steps[-1]])


@pytest.mark.parametrize(("prediction", "name"), [(NoisePrediction, "epsilon"), (VelocityPrediction, "v_prediction")])
@pytest.mark.parametrize("eta", [0.0, 0.7])
def test_ddim_is_diffusers_own_pipeline_step_for_step(folder, prediction, name, eta):
    scheduler = DDIMScheduler(num_train_timesteps=STEPS, **SCHEDULE, clip_sample=False, prediction_type=name)
    pipeline = DDIMPipeline(UNet2DModel.from_pretrained(folder), scheduler)
    draws = torch.Generator().manual_seed(3)
    theirs = states_of(pipeline, batch_size=2, eta=eta, num_inference_steps=STEPS, generator=draws)

    network = DiffusersUNet(str(folder), num_train_timesteps=STEPS).eval()
    denoiser = NetworkDenoiser(network, DiscreteVPSDE(STEPS, **SCHEDULE), prediction())
    draws = torch.Generator().manual_seed(3)
    x = torch.randn(2, 1, 8, 8, generator=draws)
    ours = DDIM(STEPS, eta)(denoiser, x.shape, x_T=x, generator=draws, trajectory=True)
    assert ours.std() > 0.1
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_ddpm_is_diffusers_own_pipeline_step_for_step(folder):
    scheduler = DDPMScheduler(num_train_timesteps=STEPS, **SCHEDULE, clip_sample=False)
    pipeline = DDPMPipeline(UNet2DModel.from_pretrained(folder), scheduler)
    draws = torch.Generator().manual_seed(3)
    theirs = states_of(pipeline, batch_size=2, num_inference_steps=STEPS, generator=draws)

    network = DiffusersUNet(str(folder), num_train_timesteps=STEPS).eval()
    denoiser = NetworkDenoiser(network, DiscreteVPSDE(STEPS, **SCHEDULE), NoisePrediction())
    draws = torch.Generator().manual_seed(3)
    x = torch.randn(2, 1, 8, 8, generator=draws)
    ours = DDPM(STEPS)(denoiser, x.shape, x_T=x, generator=draws, trajectory=True)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_a_sampler_between_the_steps_can_be_used(folder):
    denoiser = NetworkDenoiser(DiffusersUNet(str(folder)).eval(), DiscreteVPSDE(), NoisePrediction())
    assert Heun(5)(denoiser, (2, 1, 8, 8)).isfinite().all()


def test_the_unet_of_a_pipeline_s_folder_is_found(tmp_path):
    model = library_model()
    DDPMPipeline(model, DDPMScheduler()).save_pretrained(tmp_path / "pipeline")
    network = DiffusersUNet(str(tmp_path / "pipeline"))
    for name, weight in model.state_dict().items():
        assert torch.equal(network.unet.state_dict()[name], weight)


def test_arguments_given_beside_a_model_take_the_place_of_its_own(folder):
    network = DiffusersUNet(str(folder), config={"dropout": 0.5})
    x, t = torch.randn(2, 1, 8, 8), torch.full((2,), 0.5)
    assert network.config["dropout"] == 0.5
    assert not torch.equal(network(x, t), network(x, t))  # it is ready to be trained
    network.eval()
    plain = DiffusersUNet(str(folder)).eval()
    assert torch.equal(network(x, t), plain(x, t))


@pytest.mark.parametrize("changes", [{}, {"num_class_embeds": 3, "dropout": 0.25}])
def test_constructor_arguments_rebuild_the_network(tmp_path, changes):
    model = library_model(**changes)
    model.save_pretrained(tmp_path / "model")
    network = DiffusersUNet(str(tmp_path / "model"), num_train_timesteps=500)
    shutil.rmtree(tmp_path / "model")
    found = {name: getattr(network, name) for name in inspect.signature(DiffusersUNet).parameters}
    assert found["pretrained"] is None
    assert found["config"] == {**TINY, **changes, "sample_size": 8}  # and none that is a default
    again = DiffusersUNet(**json.loads(json.dumps(found)))
    again.load_state_dict(network.state_dict())
    own, original = ({k: v for k, v in unet.config.items() if k[0] != "_"} for unet in (again.unet, model))
    assert json.loads(json.dumps(own)) == json.loads(json.dumps(original))


def test_a_checkpoint_of_a_fine_tuning_needs_its_path_alone(tmp_path, folder, make_trainer, make_data):
    def module() -> ScoreModule:
        network = DiffusersUNet(str(folder))
        return ScoreModule(network, DiscreteVPSDE(), NoisePrediction(), sampler=DDIM(3), ema_decay=0.5)

    started, model = module(), library_model()
    for average, weight in zip(started.ema.shadow_params, model.parameters(), strict=True):
        assert torch.equal(average, weight)  # training starts with what was read
    trainer = make_trainer()
    trainer.fit(started, datamodule=make_data())
    trainer.save_checkpoint(tmp_path / "x.ckpt")
    shutil.rmtree(folder)
    loaded = ScoreModule.load_from_checkpoint(tmp_path / "x.ckpt")
    for (name, weight), own in zip(started.state_dict().items(), loaded.state_dict().values(), strict=True):
        assert torch.equal(weight, own), name
    assert not torch.equal(loaded.network.unet.conv_in.weight, model.conv_in.weight)
    samples = [m.sample(num=2, generator=torch.Generator().manual_seed(1)) for m in (started, loaded)]
    assert torch.equal(*samples)


def test_the_command_trains_on_goes_on_and_samples_without_the_folder(tmp_path, monkeypatch, folder, capsys):
    monkeypatch.chdir(tmp_path)
    recipe = [
        *("--model.network", "DiffusersUNet", "--model.network.pretrained", str(folder)),
        *("--model.sde", "DiscreteVPSDE", "--model.parameterization", "NoisePrediction", "--model.sampler", "DDIM"),
        *("--model.sampler.steps", "2", "--data", "EmbeddedMNIST", "--data.batch_size", "4"),
        *("--trainer.accelerator", "cpu", "--trainer.limit_val_batches", "0", "--trainer.enable_progress_bar", "false"),
    ]
    cli.main(["fit", *recipe, "--trainer.max_steps", "2"])
    cli.main(["fit", *recipe, "--trainer.max_steps", "4", "--ckpt_path", "last"])
    shutil.rmtree(folder)
    path = tmp_path / "runs" / "run" / "version_0" / "checkpoints" / "last.ckpt"
    checkpoint = load_checkpoint(path)
    assert checkpoint["global_step"] == 4
    assert checkpoint["hyper_parameters"]["network"]["init_args"]["pretrained"] is None
    cli.main(["sample", "--ckpt_path", str(path), "--num", "2", "--output", "s.png", "--quiet"])
    assert (tmp_path / "s.png").is_file()


def test_classes_reach_the_model():
    network = DiffusersUNet(config={**TINY, "num_class_embeds": 10}).eval()
    assert network.num_classes == 10
    x, t = torch.randn(2, 1, 8, 8), torch.full((2,), 0.3)
    labels = torch.tensor([3, 7])
    assert torch.equal(network(x, t, labels), network.unet(x, torch.tensor([299, 299]), labels).sample)
    assert not torch.equal(network(x, t, labels), network(x, t, labels.flip(0)))
    with pytest.raises(ValueError, match="labels must be given: this network has classes"):
        network(x, t)
    with pytest.raises(ValueError, match="labels must be None: this network has no classes"):
        DiffusersUNet(config=TINY)(x, t, labels)
    module = ScoreModule(network, DiscreteVPSDE(), NoisePrediction(), sampler=DDIM(2), shape=(1, 8, 8))
    assert module.sample(num=3).shape == (3, 1, 8, 8)
    assert EmbeddedMNIST().shape[0] == network.in_channels


def test_bad_inputs_are_named():
    network, x, t = DiffusersUNet(config=TINY), torch.randn(2, 1, 8, 8), torch.rand(2)
    with pytest.raises(ValueError, match=r"x must have shape \(batch, 1, height, width\)"):
        network(torch.randn(2, 3, 8, 8), t)
    with pytest.raises(ValueError, match=r"time_signal must have shape \(2,\)"):
        network(x, t[:1])
    with pytest.raises(ValueError, match="height and width must be multiples of 2"):
        network(torch.randn(2, 1, 8, 7), t)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "pretrained, config: give the model to read"),
        ({"config": {"chanels": 3}}, r"config must be arguments of diffusers' UNet2DModel \(.*\), got 'chanels'"),
        ({"config": {**TINY, "out_channels": 2}}, "config.out_channels must be 1, as in_channels"),
        ({"config": {**TINY, "time_embedding_type": "fourier"}}, "config.time_embedding_type must be 'positional'"),
        ({"config": {**TINY, "class_embed_type": "timestep"}}, "config.class_embed_type must be null"),
        ({"config": {**TINY, "up_block_types": ["UpBlock2D"]}}, "same number of `down_block_types`"),
        ({"config": {**TINY, "norm_num_groups": 5}}, "num_channels"),
        ({"config": {**TINY, "norm_num_groups": 0}}, "config: no UNet2DModel can be made of it"),
        ({"config": TINY, "num_train_timesteps": 0}, "num_train_timesteps must be at least 1, got 0"),
        ({"pretrained": "./nowhere"}, "pretrained='./nowhere': there is no such folder"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        DiffusersUNet(**arguments)


def test_a_folder_of_something_else_is_named(tmp_path, folder):
    with pytest.raises(ValueError, match=r"must be a folder with a UNet2DModel's config.json"):
        DiffusersUNet(str(tmp_path))
    other = tmp_path / "other"
    UNet2DConditionModel(
        block_out_channels=(8,),
        down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",),
        norm_num_groups=4,
        cross_attention_dim=4,
    ).save_config(other)
    with pytest.raises(ValueError, match="is a UNet2DConditionModel: must be a UNet2DModel"):
        DiffusersUNet(str(other))
    for change, problem in (
        ({"block_out_channels": [16, 16]}, "size mismatch"),
        ({"down_block_types": ["AttnDownBlock2D", "AttnDownBlock2D"]}, "missing keys"),
        ({"down_block_types": ["DownBlock2D", "DownBlock2D"]}, "unexpected keys"),
    ):
        with pytest.raises(ValueError, match=f"its weights are not of this architecture: {problem}"):
            DiffusersUNet(str(folder), config=change)
    (folder / "diffusion_pytorch_model.safetensors").write_bytes(b"x" * 100)
    with pytest.raises(ValueError, match=r"pretrained=.* cannot be read"):
        DiffusersUNet(str(folder))


def test_a_missing_package_is_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(ImportError, match=r"pip install 'diffusion-lightning\[diffusers\]'"):
        DiffusersUNet(config=TINY)
