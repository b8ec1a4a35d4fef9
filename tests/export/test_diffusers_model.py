"""Our denoisers in diffusers' pipelines: exact ones draw as ours do, step for step; networks come back."""

import json
import math
import subprocess
import sys

import pytest
import torch
from diffusers import (
    DDIMPipeline,
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    UNet2DModel,
)

from diffusion_lightning import (
    DDIM,
    DDPM,
    VESDE,
    VPSDE,
    CosineVPSDE,
    DiffusersUNet,
    DiscreteVESDE,
    DiscreteVPSDE,
    GaussianMixtureDenoiser,
    KarrasPreconditioning,
    KarrasSDE,
    NetworkDenoiser,
    NoisePrediction,
    PowerVESDE,
    ProbabilityFlowODE,
    RectifiedFlow,
    ScorePrediction,
    SubVPSDE,
    UNet,
    VelocityPrediction,
)
from diffusion_lightning.export.diffusers_model import DiffusersDenoiser, make_pipeline, save_pipeline

SHAPE = (1, 2, 3)
STEPS = 50
SCHEDULE = {"beta_start": 0.002, "beta_end": 0.3}
"""Noise levels from 0.045 to 60 in 50 steps."""

PROCESSES = {
    "power": PowerVESDE(1000.0),
    "ve": VESDE(0.01, 90.0),
    "vp": VPSDE(),
    "sub-vp": SubVPSDE(),
    "cosine": CosineVPSDE(),
    "karras": KarrasSDE(),
    "flow": RectifiedFlow(),
    "ddpm": DiscreteVPSDE(),
    "ncsn": DiscreteVESDE(50, 0.01, 90.0),
}


def mixture(sde, stds=(0.02, 0.1, 0.05)):
    """Three separated components, in double."""
    draws = torch.Generator().manual_seed(5)
    means = torch.rand(3, *SHAPE, generator=draws, dtype=torch.float64) - 0.5
    return GaussianMixtureDenoiser(means, torch.tensor(stds).double(), torch.tensor([5.0, 3, 2]), sde)


def pipeline_of(denoiser, kind=DDIMPipeline, scheduler=DDIMScheduler, n=STEPS, **schedule):
    schedule = schedule or SCHEDULE
    unet = DiffusersDenoiser(denoiser, SHAPE[0], SHAPE[1:], n, **schedule)
    spacing = {} if n == STEPS else {"timestep_spacing": "trailing"}
    settings = {} if scheduler is DPMSolverMultistepScheduler else {"clip_sample": False}
    pipeline = kind(unet, scheduler(num_train_timesteps=n, **schedule, **settings, **spacing))
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def states_of(pipeline, **call):
    """The states that the model is shown, then what the last step makes of the last: pictures not yet cut off."""
    states, last = [], []
    pipeline.unet.register_forward_pre_hook(lambda module, args: states.append(args[0].clone()))
    step = pipeline.scheduler.step

    def spy(*args, **kwargs):
        result = step(*args, **kwargs)
        last[:] = [result.prev_sample]
        return result

    pipeline.scheduler.step = spy
    pipeline(**call)
    return torch.stack([*states, *last])


def test_the_processes_cover_the_schedule():
    levels = DiscreteVPSDE(STEPS, **SCHEDULE).noise_level(torch.tensor([1 / STEPS, 1.0]))
    for sde in PROCESSES.values():
        assert sde.noise_level(torch.tensor(sde.t_min)) < levels[0]
        assert sde.noise_level(torch.tensor(sde.T)) > levels[1]


@pytest.mark.parametrize("name", PROCESSES)
def test_ddim_pipeline_is_our_ddim_step_for_step_whatever_the_process(name):
    theirs = states_of(
        pipeline_of(mixture(PROCESSES[name])),
        batch_size=16,
        num_inference_steps=STEPS,
        generator=torch.Generator().manual_seed(1),
    )
    ours = DDIM(STEPS)(mixture(DiscreteVPSDE(STEPS, **SCHEDULE)), theirs[0].shape, x_T=theirs[0], trajectory=True)
    assert len(theirs) == STEPS + 1
    torch.testing.assert_close(theirs, ours, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["karras", "flow", "vp"])
def test_ddpm_pipeline_is_our_ddpm_step_for_step(name):
    """In float32, in which both sides draw their noise."""
    draws = torch.Generator().manual_seed(1)
    pipeline = pipeline_of(mixture(PROCESSES[name]).float(), DDPMPipeline, DDPMScheduler)
    theirs = states_of(pipeline, batch_size=16, num_inference_steps=STEPS, generator=draws)
    draws = torch.Generator().manual_seed(1)
    x = torch.randn(theirs[0].shape, generator=draws)
    denoiser = mixture(DiscreteVPSDE(STEPS, **SCHEDULE)).float()
    ours = DDPM(STEPS)(denoiser, x.shape, x_T=x, generator=draws, trajectory=True)
    torch.testing.assert_close(theirs, ours, rtol=1e-3, atol=1e-3)


def narrowed(kind, std, lowest):
    """Standard deviation of what DDIM or DDPM make of one Gaussian component, by the algorithm's own recursion.

    With D = μ + k(x − μ), k = s²/(s² + level²), a step to the next level, whose variance is r times the level's, is
    linear: x' = D + √r(x − D) for DDIM, and x' = D + r(x − D) + √(r(1 − r))·level·z for DDPM.
    """
    levels = DiscreteVPSDE().noise_level(torch.linspace(1.0, 1e-3, 1000, dtype=torch.float64)).tolist()
    variance = std**2 + levels[0] ** 2
    for level, following in zip(levels, [*levels[1:], 0.0], strict=True):
        k, r = std**2 / (std**2 + max(level, lowest) ** 2), (following / level) ** 2
        if kind == "ddim":
            variance = (k + math.sqrt(r) * (1 - k)) ** 2 * variance
        else:
            variance = (k + r * (1 - k)) ** 2 * variance + r * (1 - r) * level**2
    return math.sqrt(variance)


@pytest.mark.parametrize("kind", ["ddim", "ddpm"])
def test_a_pipeline_draws_the_mixture(kind):
    """DDPM's own betas, which go beyond the ends of this process, so that the first and last steps are met at those."""
    exact = mixture(KarrasSDE(0.015, 80.0), stds=(0.06, 0.1, 0.08))
    make, scheduler = (DDIMPipeline, DDIMScheduler) if kind == "ddim" else (DDPMPipeline, DDPMScheduler)
    pipeline = pipeline_of(exact, make, scheduler, 1000, beta_start=1e-4, beta_end=0.02)
    num = 3000
    images = pipeline(
        batch_size=num, num_inference_steps=1000, generator=torch.Generator().manual_seed(2), output_type="pt"
    ).images
    x = 2 * images - 1
    distance = (x[:, None] - exact.means).flatten(2).norm(dim=2)
    nearest = (distance / exact.stds).argmin(1)
    for k in range(3):
        mine = x[nearest == k]
        share, expected = len(mine) / num, exact.weights[k].item()
        assert abs(share - expected) < 4 * math.sqrt(expected * (1 - expected) / num) + 0.01
        torch.testing.assert_close(mine.mean(0), exact.means[k], atol=0.015, rtol=0)
        std = narrowed(kind, exact.stds[k].item(), 0.015)
        chance = 1 / math.sqrt(2 * mine.numel())
        assert (mine - exact.means[k]).std().item() == pytest.approx(std, rel=4 * chance)


def test_dpm_solver_comes_near_the_exact_solution_of_the_ode():
    sde = DiscreteVPSDE()
    pipeline = pipeline_of(
        mixture(KarrasSDE(0.002, 200.0)),
        DDPMPipeline,
        DPMSolverMultistepScheduler,
        1000,
        beta_start=1e-4,
        beta_end=0.02,
    )
    states = states_of(pipeline, batch_size=32, num_inference_steps=50, generator=torch.Generator().manual_seed(2))
    exact = ProbabilityFlowODE()(mixture(sde), states[0].shape, x_T=states[0])
    assert (states[-1] - exact).abs().median() < 0.01
    assert ((states[-1] - exact).flatten(1).norm(dim=1) < 0.1).float().mean() > 0.9


def test_between_whole_timesteps_the_noise_level_is_geometric():
    sde, vp = KarrasSDE(), DiscreteVPSDE(STEPS, **SCHEDULE)
    model = DiffusersDenoiser(mixture(sde), SHAPE[0], SHAPE[1:], STEPS, **SCHEDULE)
    y = torch.randn(4, *SHAPE, dtype=torch.float64)
    low, high = vp.noise_level(torch.tensor([11 / STEPS, 12 / STEPS], dtype=torch.float64))
    level = torch.sqrt(low * high).expand(4)
    exact = mixture(sde).noise(y * torch.sqrt(1 + level[0] ** 2), level)
    torch.testing.assert_close(model(y, 10.5).sample, exact, rtol=1e-5, atol=1e-6)
    one = model(y, torch.tensor([3, 10, 20, 49])).sample
    for i, step in enumerate((3, 10, 20, 49)):
        torch.testing.assert_close(one[i : i + 1], model(y[i : i + 1], step, return_dict=False)[0])


def test_noise_levels_outside_of_the_process_are_met_at_its_ends():
    """Above, with the noise scaled to that of T; below, as the state is."""
    sde = VESDE(0.5, 5.0)
    exact, vp = mixture(sde), DiscreteVPSDE(STEPS, **SCHEDULE)
    model = DiffusersDenoiser(exact, SHAPE[0], SHAPE[1:], STEPS, **SCHEDULE)
    y = torch.randn(4, *SHAPE, dtype=torch.float64)
    for step, t in ((STEPS - 1, sde.T), (0, sde.t_min)):
        time = torch.tensor((step + 1) / STEPS, dtype=torch.float64)
        alpha, sigma = vp.alpha(time), vp.sigma(time)
        x = y / alpha * min(1, 5 * alpha / sigma)
        denoised = exact.denoise(x, torch.full((4,), t, dtype=torch.float64))
        expected = (y - alpha * denoised) / sigma
        torch.testing.assert_close(model(y, step).sample, expected, rtol=1e-5, atol=1e-5)
    ends = torch.tensor([1 / STEPS, 1.0])
    assert vp.noise_level(ends)[0] < sde.noise_level(torch.tensor(sde.t_min)) < 5.0 < vp.noise_level(ends)[1]


def network_denoiser(classes=None, sde=None, parameterization=None):
    torch.manual_seed(0)
    network = UNet(
        channels=(4, 8), num_res_blocks=1, embed_dim=8, num_heads=2, num_classes=classes, time_embedding="fourier"
    )
    for weight in network.parameters():
        torch.nn.init.normal_(weight, std=0.3)
    return NetworkDenoiser(network, sde or KarrasSDE(), parameterization or KarrasPreconditioning()).eval()


def test_a_network_comes_back_from_its_folder(tmp_path):
    denoiser = network_denoiser(classes=3)
    model = DiffusersDenoiser(denoiser, 1, 8)
    model.save_pretrained(tmp_path)
    again = DiffusersDenoiser.from_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["denoiser"]["sde"]["init_args"]["sigma_max"] == 80
    y = torch.randn(5, 1, 8, 8)
    for step in (0, 500, 999):
        with torch.no_grad():
            assert torch.equal(model(y, step).sample, again(y, step).sample)


def test_a_saved_pipeline_draws_the_same_pictures_in_another_process(tmp_path):
    denoiser = network_denoiser(sde=RectifiedFlow(), parameterization=VelocityPrediction())
    save_pipeline(denoiser, tmp_path / "p", shape=(1, 8, 8))
    code = f"""
import torch, diffusers
import diffusion_lightning.export.diffusers_model
pipeline = diffusers.DDIMPipeline.from_pretrained({str(tmp_path / "p")!r})
pipeline.set_progress_bar_config(disable=True)
images = pipeline(2, torch.Generator().manual_seed(0), num_inference_steps=5, output_type="pt").images
torch.save(images, {str(tmp_path / "images.pt")!r})
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=300)
    pipeline = make_pipeline(denoiser, (1, 8, 8))
    pipeline.set_progress_bar_config(disable=True)
    expected = pipeline(2, torch.Generator().manual_seed(0), num_inference_steps=5, output_type="pt").images
    assert torch.equal(torch.load(tmp_path / "images.pt"), expected)
    assert expected.std() > 0.05


@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 4, 8)])
def test_a_pipeline_has_the_shape_of_the_images(shape):
    pipeline = make_pipeline(network_denoiser(), shape)
    pipeline.set_progress_bar_config(disable=True)
    assert pipeline(3, num_inference_steps=2, output_type="pt").images.shape == (3, *shape)


def test_classes_are_given_or_in_turn():
    denoiser = network_denoiser(classes=3)
    model = DiffusersDenoiser(denoiser, 1, 8)
    y = torch.randn(1, 1, 8, 8).expand(5, 1, 8, 8)
    with torch.no_grad():
        in_turn = model(y, 500).sample
        assert torch.equal(in_turn, model(y, 500, class_labels=torch.tensor([0, 1, 2, 0, 1])).sample)
    torch.testing.assert_close(in_turn[0], in_turn[3])
    assert not torch.equal(in_turn[0], in_turn[1])


def test_a_discrete_process_gives_the_scheduler_its_own_betas():
    sde = DiscreteVPSDE(40, 0.002, 0.1)
    denoiser = network_denoiser(sde=sde, parameterization=NoisePrediction())
    pipeline = make_pipeline(denoiser, (1, 8, 8))
    pipeline.set_progress_bar_config(disable=True)
    theirs = states_of(pipeline, batch_size=2, num_inference_steps=40, generator=torch.Generator().manual_seed(1))
    ours = DDIM(40)(denoiser, theirs[0].shape, x_T=theirs[0], trajectory=True)
    torch.testing.assert_close(theirs, ours, rtol=1e-3, atol=1e-3)
    cosine = make_pipeline(network_denoiser(sde=DiscreteVPSDE(30, schedule="cosine")), (1, 8, 8)).scheduler.config
    assert (cosine.num_train_timesteps, cosine.beta_schedule) == (30, "squaredcos_cap_v2")


TINY = {
    "in_channels": 1,
    "out_channels": 1,
    "block_out_channels": [8, 16],
    "down_block_types": ["DownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "UpBlock2D"],
    "layers_per_block": 1,
    "norm_num_groups": 4,
}


@pytest.mark.parametrize(("prediction", "name"), [(NoisePrediction, "epsilon"), (VelocityPrediction, "v_prediction")])
def test_a_diffusers_unet_is_written_as_the_model_that_it_is(tmp_path, prediction, name):
    torch.manual_seed(0)
    network = DiffusersUNet(config=TINY, num_train_timesteps=40)
    denoiser = NetworkDenoiser(network, DiscreteVPSDE(40, 0.002, 0.1), prediction()).eval()
    save_pipeline(denoiser, tmp_path, shape=(1, 8, 8))
    pipeline = DDIMPipeline.from_pretrained(tmp_path)
    pipeline.set_progress_bar_config(disable=True)
    assert type(pipeline.unet) is UNet2DModel
    assert pipeline.scheduler.config.prediction_type == name
    theirs = states_of(pipeline, batch_size=2, num_inference_steps=40, generator=torch.Generator().manual_seed(1))
    ours = DDIM(40)(denoiser, theirs[0].shape, x_T=theirs[0], trajectory=True)
    torch.testing.assert_close(theirs, ours, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("sde", [DiscreteVPSDE(30), VPSDE()], ids=["another number of steps", "continuous"])
def test_a_diffusers_unet_of_another_process_is_wrapped(sde):
    denoiser = NetworkDenoiser(DiffusersUNet(config=TINY, num_train_timesteps=40), sde, NoisePrediction())
    assert isinstance(make_pipeline(denoiser, (1, 8, 8)).unet, DiffusersDenoiser)
    denoiser = NetworkDenoiser(DiffusersUNet(config=TINY), DiscreteVPSDE(), ScorePrediction())
    assert isinstance(make_pipeline(denoiser, (1, 8, 8)).unet, DiffusersDenoiser)


def test_what_cannot_be_written_is_refused(tmp_path):
    with pytest.raises(ValueError, match="a GaussianMixtureDenoiser cannot be saved"):
        DiffusersDenoiser(mixture(KarrasSDE()), 1, (2, 3)).save_pretrained(tmp_path / "x")
    assert not (tmp_path / "x").exists()
    with pytest.raises(ValueError, match="draw images, and these are points"):
        make_pipeline(network_denoiser(), (2,))


def test_a_missing_package_is_one_line():
    code = (
        "import sys; sys.modules['diffusers'] = None\n"
        "try:\n    import diffusion_lightning.export.diffusers_model\n"
        "except ImportError as error:\n    print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=True)
    assert "pip install 'diffusion-lightning[diffusers]'" in done.stdout
