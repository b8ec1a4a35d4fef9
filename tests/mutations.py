"""Plants known mistakes in the mathematics and in the running of it, one at a time: the tests must notice each.

Run by hand: ``python tests/mutations.py [words of a name]``; all of it takes some minutes. The package, the tests,
the benchmarks and the configs are copied to a temporary folder, so that nothing here is touched. It ends with 1 if a
mistake survives, if the text it replaces no longer occurs exactly once, or if the tests fail without any mistake.

The list holds the mistakes of the founding documents, those that are easily made in this mathematics, what breaks a run
that stops and goes on, and every bug that was once found in it.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent


class Mutation(NamedTuple):
    """A mistake: in ``file``, seen from the package, ``old`` becomes ``new``; the ``tests`` must fail."""

    name: str
    file: str
    old: str
    new: str
    tests: str


GAUSSIAN, MIXTURE, CONTRACTS = (
    f"tests/samplers/test_sampler_{name}.py" for name in ("gaussian", "mixture", "contracts")
)
RESUME = "tests/training/test_resume.py"
AUGMENTATION = "tests/data/test_augmentation.py"
TABLE = "tests/samplers/test_sampler_table.py"
SDE, PARAMETERIZATION, DENOISER, OBJECTIVE = (
    f"tests/test_{name}.py" for name in ("sde", "parameterization", "denoiser", "objective")
)
EMA = "tests/training/test_ema.py"
DEMO, DEMO_IN_BROWSER = "tests/demo/test_tasks.py", "tests/demo/test_demo_in_browser.py"
OPERATORS, POSTERIORS, MIXTURES = (
    f"tests/inverse/test_{name}.py" for name in ("operators", "gaussian_posteriors", "mixture_posteriors")
)
LATENTS, RESTORATION = "tests/test_latents.py", "tests/metrics/test_restoration.py"
RESTORE_COMMAND = "tests/commands/test_restore_command.py"
NOTHING_TO_DO = "test_what_is_measured_has_nothing_to_do_with_the_starts_of_the_answers"
FOLDER = "tests/data/test_image_folder.py"
SHARED_FOLDER = (
    "tests/data/test_shared_folder.py::test_the_first_process_alone_searches_and_both_train_on_what_it_found"
)
CONDITION, METADATA = (f"tests/data/test_{name}.py" for name in ("condition", "metadata"))
CONDITION_GRID = "tests/callbacks/test_condition_grid.py"
EXTRAPOLATION, KERNEL = (f"tests/metrics/test_{name}.py" for name in ("extrapolation", "kernel_distance"))
AGREEMENT = "tests/metrics/test_agreement.py"
RACE = "tests/test_race.py"
CLUSTERS, GROUPS = "tests/data/test_clusters.py", "tests/training/test_groups.py"
SHARED, FLOATS = "tests/metrics/test_shared_reference.py", "tests/test_floats.py"
FAKE_CUDA = "tests/test_fake_cuda.py"
CONDITIONING = "tests/networks/test_conditioning.py"
LATENTS = "tests/test_latents.py"

RELIABILITY = "tests/reliability"
POSITION = "tests/training/test_position.py::test_a_run_that_crashed_is_the_run_that_did_not"
AT_THE_PICTURES = (
    "tests/training/test_position.py::test_what_ends_a_run_at_the_pictures_of_an_epoch_that_is_not_saved_loses_nothing"
)
CHECKPOINTS = "tests/callbacks/test_checkpoints.py"
NON_FINITE = f"{RELIABILITY}/test_non_finite.py::test_a_bad_step_changes_nothing"

MUTATIONS = [
    # ---- the mistakes of the founding documents
    Mutation(
        "f(x, t) left out of the reverse drift",
        "samplers/euler_maruyama.py",
        "mean = x - (sde.drift(x, t) - g**2 * denoiser.score(x, t, **cond)) * dt",
        "mean = x + g**2 * denoiser.score(x, t, **cond) * dt",
        f"{MIXTURE}::test_euler_maruyama",
    ),
    Mutation(
        "g where g² belongs in the reverse drift",
        "samplers/euler_maruyama.py",
        "g**2 * denoiser.score",
        "g * denoiser.score",
        f"{MIXTURE}::test_euler_maruyama",
    ),
    Mutation(
        "noise left in the last step of Euler–Maruyama",
        "samplers/euler_maruyama.py",
        "x = mean if last else mean + std",
        "x = mean + std",
        f"{GAUSSIAN}::test_euler_maruyama",
    ),
    Mutation(
        "noise left in the last step of predictor–corrector",
        "samplers/predictor_corrector.py",
        """                if not last:
                    x = mean + std * standard_normal(x.shape, device=x.device, generator=generator)
            yield mean if last else x""",
        """                x = mean + std * standard_normal(x.shape, device=x.device, generator=generator)
            yield x""",
        f"{GAUSSIAN}::test_predictor_corrector",
    ),
    Mutation(
        "noise left in the last step of a corrector alone",
        "samplers/predictor_corrector.py",
        "yield mean if last else x",
        "yield mean if last and self.predictor is not None else x",
        f"{CONTRACTS}",
    ),
    Mutation(
        "√β + noise instead of √β·noise",
        "samplers/predictor_corrector.py",
        "x = mean + std * standard_normal(",
        "x = mean + std + standard_normal(",
        f"{MIXTURE}::test_predictor_corrector",
    ),
    Mutation(
        "uniform noise instead of normal",
        "sde.py",
        "return torch.randn(*shape, device=drawn_on",
        "return torch.rand(*shape, device=drawn_on",
        f"{SDE}",
    ),
    Mutation(
        "uniform noise in the objective",
        "objective.py",
        "return t, standard_normal(shape, device=device, generator=generator)",
        "return t, torch.rand(shape, device=device, generator=generator)",
        f"{OBJECTIVE}",
    ),
    Mutation(
        "a second draw of noise as the target",
        "objective.py",
        "        error = (denoiser.denoise(sde.perturb(x0, t, noise), t, **cond) - x0) ** 2",
        """        x = sde.perturb(x0, t, noise)
        other = standard_normal(x0.shape, device=x0.device, generator=generator)
        x0 = (x - expand(sde.sigma(t), x) * other) / expand(sde.alpha(t), x)
        error = (denoiser.denoise(x, t, **cond) - x0) ** 2""",
        f"{OBJECTIVE}::test_training_finds_the_score",
    ),
    Mutation(
        "the score matched without the σ² weight",
        "objective.py",
        """            case "simple":
                return snr""",
        """            case "simple":
                return snr / sde.sigma(t) ** 2""",
        f"{OBJECTIVE}",
    ),
    Mutation(
        "Langevin's step measured with g instead of the norm of the noise",
        "samplers/predictor_corrector.py",
        "2 * (snr * math.sqrt(flat.shape[1]) / flat",
        "2 * (snr * sigma.mean() / flat",
        f"{GAUSSIAN}::test_predictor_corrector",
    ),
    # ---- the denoiser and the parameterization
    Mutation("the score's sign", "denoiser.py", "(mean - x) / std**2", "(x - mean) / std**2", f"{DENOISER}"),
    Mutation("σ for σ² in the score", "denoiser.py", "(mean - x) / std**2", "(mean - x) / std", f"{DENOISER}"),
    Mutation(
        "σ' doubled in the probability flow",
        "denoiser.py",
        "expand(sigma_rate, x) * (x - mean)",
        "2 * expand(sigma_rate, x) * (x - mean)",
        f"{DENOISER}",
    ),
    Mutation(
        "σ' doubled in the probability flow, seen by the samples",
        "denoiser.py",
        "expand(sigma_rate, x) * (x - mean)",
        "2 * expand(sigma_rate, x) * (x - mean)",
        f"{MIXTURE}::test_probability_flow",
    ),
    Mutation(
        "α' left out of the probability flow, seen by the samples",
        "denoiser.py",
        "return expand(alpha_rate, x) * denoised + expand",
        "return expand",
        f"{MIXTURE}::test_probability_flow",
    ),
    Mutation(
        "α left out of the exact denoiser's gain",
        "denoiser.py",
        "gain = alpha * self.stds**2 / variance",
        "gain = self.stds**2 / variance",
        f"{DENOISER}",
    ),
    Mutation(
        "the noise's sign in its prediction",
        "parameterization.py",
        "out=-sigma / alpha",
        "out=sigma / alpha",
        f"{PARAMETERIZATION}",
    ),
    Mutation(
        "the score not divided by σ",
        "parameterization.py",
        "out=sigma / alpha, input",
        "out=sigma**2 / alpha, input",
        f"{PARAMETERIZATION}",
    ),
    Mutation(
        "c_out without σ_d",
        "parameterization.py",
        "out=level * self.sigma_data * variance.rsqrt()",
        "out=level * variance.rsqrt()",
        f"{PARAMETERIZATION}",
    ),
    Mutation("c_noise without ¼", "parameterization.py", "level.log() / 4", "level.log()", f"{PARAMETERIZATION}"),
    # ---- the processes
    Mutation(
        "α left out of the marginal",
        "sde.py",
        "return expand(self.alpha(t), x0) * x0, expand(",
        "return x0, expand(",
        f"{SDE}",
    ),
    Mutation(
        "sub-VP's g with the exponent of its σ",
        "sde.py",
        "torch.expm1(-2 * self._beta_integral(t))",
        "torch.expm1(-self._beta_integral(t))",
        f"{SDE}",
    ),
    Mutation(
        "2 left out of VE's g",
        "sde.py",
        "math.sqrt(2 * self._log_ratio)",
        "math.sqrt(self._log_ratio)",
        f"{SDE}",
    ),
    Mutation(
        "½ left out of VP's drift",
        "sde.py",
        "return -0.5 * self.beta(t)",
        "return -self.beta(t)",
        f"{SDE}",
    ),
    Mutation(
        "the variance for the standard deviation of σᵗ",
        "sde.py",
        "return torch.sqrt(torch.expm1(2 * t * self._log) / (2 * self._log))",
        "return torch.expm1(2 * t * self._log) / (2 * self._log)",
        f"{SDE}",
    ),
    Mutation(
        "VP's inverse for sub-VP",
        "sde.py",
        "2 * torch.asinh(noise_level / 2)",
        "torch.log1p(noise_level**2)",
        f"{SDE}",
    ),
    Mutation(
        "a transition without the decay of what was there",
        "sde.py",
        "self.sigma(t) ** 2 - (ratio * self.sigma(s)) ** 2",
        "self.sigma(t) ** 2 - self.sigma(s) ** 2",
        f"{SDE}",
    ),
    Mutation(
        "a prior of unit variance", "sde.py", "generator=generator) * self._prior_std", "generator=generator)", SDE
    ),
    # ---- the objective
    Mutation(
        "g for g² in the likelihood weighting",
        "objective.py",
        "snr * (sde.diffusion(t) / sde.sigma(t)) ** 2",
        "snr * sde.diffusion(t) / sde.sigma(t) ** 2",
        f"{OBJECTIVE}",
    ),
    Mutation("min-SNR turned round", "objective.py", "snr.clamp(max=", "snr.clamp(min=", f"{OBJECTIVE}"),
    Mutation("mean instead of sum", "objective.py", 'if self.reduction == "sum"', "if False", f"{OBJECTIVE}"),
    Mutation(
        "the std of the log-normal ignored",
        "objective.py",
        "self.mean + self.std * normal",
        "self.mean + normal",
        f"{OBJECTIVE}",
    ),
    Mutation(
        "√2 left out of the normal's quantile",
        "objective.py",
        "normal = math.sqrt(2) * torch.erfinv",
        "normal = torch.erfinv",
        f"{OBJECTIVE}",
    ),
    Mutation(
        "strata without chance in them",
        "objective.py",
        "generator=generator).to(device) + u) / n",
        "generator=generator).to(device) + 0.5) / n",
        f"{OBJECTIVE}",
    ),
    Mutation(
        "strata in a fixed order",
        "objective.py",
        "torch.randperm(n, device=drawn_on, generator=generator)",
        "torch.arange(n, device=drawn_on)",
        f"{OBJECTIVE}",
    ),
    Mutation(
        "noise from the global generator",
        "objective.py",
        "return t, standard_normal(shape, device=device, generator=generator)",
        "return t, standard_normal(shape, device=device)",
        f"{OBJECTIVE}::test_a_generator_decides_alone",
    ),
    # ---- the samplers
    Mutation(
        "√2 left out of Langevin's noise",
        "samplers/predictor_corrector.py",
        "(2 * size).sqrt()",
        "size.sqrt()",
        f"{GAUSSIAN}::test_predictor_corrector",
    ),
    Mutation(
        "the corrector at the next time",
        "samplers/predictor_corrector.py",
        "self.corrector(denoiser, x, t, self.snr",
        "self.corrector(denoiser, x, s, self.snr",
        f"{GAUSSIAN}::test_predictor_corrector",
    ),
    Mutation(
        "the forward variance in ancestral steps",
        "samplers/ancestral.py",
        "expand(fresh.sqrt() * sde.sigma(s), x)",
        "expand(variance.sqrt(), x)",
        f"{GAUSSIAN}::test_ancestral_steps_are_exact_for_a_point",
    ),
    Mutation(
        "reverse diffusion that shrinks",
        "samplers/predictor_corrector.py",
        "(2 - ratio) * x + variance",
        "ratio * x + variance",
        f"{GAUSSIAN}::test_predictor_corrector",
    ),
    Mutation(
        "Heun without the correction",
        "samplers/heun.py",
        "(slope + next_slope) / 2",
        "slope",
        f"{GAUSSIAN}::test_heun_is_of_second_order",
    ),
    Mutation(
        "churn's noise of the difference of levels",
        "samplers/heun.py",
        "math.sqrt(raised**2 - level**2)",
        "(raised - level)",
        f"{GAUSSIAN}::test_heun",
    ),
    Mutation(
        "Heun's start not rescaled by α(T)",
        "samplers/noise_level.py",
        "start = x / time_and_scale(levels[0])[1]",
        "start = x",
        f"{MIXTURE}::test_heun",
    ),
    Mutation(
        "the flow's samples not denoised at the end",
        "samplers/ode.py",
        "        if self.denoise:\n",
        "        if False:\n",
        f"{GAUSSIAN}::test_probability_flow_point_by_point",
    ),
    Mutation(
        "conditions that never arrive",
        "samplers/euler_maruyama.py",
        "denoiser.score(x, t, **cond)) * dt",
        "denoiser.score(x, t)) * dt",
        f"{CONTRACTS}::test_conditions_reach_every_evaluation",
    ),
    Mutation(
        "evaluations not counted",
        "samplers/base.py",
        "self.evaluations += denoiser.evaluations",
        "self.evaluations = denoiser.evaluations",
        f"{CONTRACTS}::test_evaluations_are_counted",
    ),
    Mutation(
        "the last time rounded away (a former bug)",
        "samplers/base.py",
        """(times.double() - sde.T) * (sde.T - self.t_min) / (sde.T - sde.t_min)
            times[-1] = self.t_min""",
        "(times - sde.T) * (sde.T - self.t_min) / (sde.T - sde.t_min)",
        f"{CONTRACTS}::test_the_grid_is_the_processs_own_stretched_to_end_at_t_min",
    ),
    Mutation(
        "Adams–Bashforth of order 12, which diverges (a former bug)",
        "samplers/ode.py",
        'options["max_order"] = 4',
        "pass",
        f"{GAUSSIAN}::test_fixed_step_methods_follow_the_flow",
    ),
    # ---- discrete processes, ancestral sampling, DPM-Solver++, annealed Langevin
    Mutation(
        "β taken for ln(1 − β)",
        "sde.py",
        "rises = 0.5 * torch.log1p(-self._betas)",
        "rises = -0.5 * self._betas",
        "tests/test_discrete_sde.py",
    ),
    Mutation(
        "DDPM's first time left out of its grid (never trained, as in the DDPM notebook)",
        "sde.py",
        "clamp(max=self._size - 1) + 1) / self._size",
        "clamp(min=1, max=self._size - 1) + 1) / self._size",
        "tests/test_importance_times.py",
    ),
    Mutation(
        "the parts of x_t and x0 in the posterior with σ for σ²",
        "samplers/ancestral.py",
        "ratio * (sde.sigma(s) / sde.sigma(t)) ** 2",
        "ratio * (sde.sigma(s) / sde.sigma(t))",
        "tests/test_discrete_sde.py",
    ),
    Mutation(
        "DDIM's noise not made smaller by what η adds",
        "samplers/ancestral.py",
        "(sigma**2 - std**2).clamp(min=0).sqrt()",
        "sigma",
        "tests/test_discrete_sde.py",
    ),
    Mutation(
        "noise left in the last step of DDPM",
        "samplers/ancestral.py",
        "yield x0\n",
        "yield x0 + expand(sde.sigma(t), x0) * standard_normal(x0.shape, device=x.device, generator=generator)\n",
        f"{CONTRACTS}",
    ),
    Mutation(
        "DPM-Solver++ extrapolated to the step's end, not its middle",
        "samplers/dpm_solver.py",
        "weight * (d0 + h / 2 * (d0 - d1)",
        "weight * (d0 + h * (d0 - d1)",
        "tests/samplers/test_sampler_orders.py",
    ),
    Mutation(
        "the curvature of DPM-Solver++ counted half, as in the authors' code",
        "samplers/dpm_solver.py",
        "square * curvature",
        "square / 2 * curvature",
        "tests/samplers/test_sampler_orders.py",
    ),
    Mutation(
        "½ left out of annealed Langevin's drift",
        "samplers/langevin.py",
        "x + 0.5 * size * score",
        "x + size * score",
        TABLE,
    ),
    Mutation(
        "annealed Langevin's step not grown with σ²",
        "samplers/langevin.py",
        "(level / levels[-1]) ** 2",
        "(level / levels[-1])",
        TABLE,
    ),
    Mutation(
        "time not scaled before the sinusoidal embedding",
        "networks/embeddings.py",
        "phases = self.scale * t[:, None]",
        "phases = t[:, None]",
        "tests/networks/test_embeddings.py",
    ),
    # ---- velocity, importance, likelihood
    Mutation(
        "the velocity's sign",
        "parameterization.py",
        "out=-sigma, input",
        "out=sigma, input",
        "tests/test_conversions.py",
    ),
    Mutation(
        "importance times without their correction",
        "objective.py",
        "self.weight(sde, t) * self.times.correction(sde, t)",
        "self.weight(sde, t)",
        "tests/test_importance_times.py",
    ),
    Mutation(
        "the divergence's sign",
        "likelihood.py",
        "traces / dimension",
        "-traces / dimension",
        "tests/test_likelihood.py",
    ),
    Mutation(
        "an offset of 8 bits for images in [-1, 1]",
        "likelihood.py",
        "return math.log2(LEVELS / 2) - nats",
        "return math.log2(LEVELS) - nats",
        "tests/test_likelihood.py",
    ),
    Mutation(
        "no dequantization",
        "likelihood.py",
        "2 / LEVELS * (levels + u) - 1",
        "2 / LEVELS * levels - 1",
        "tests/test_likelihood.py",
    ),
    Mutation(
        "a straight line in the place of the great circle",
        "latents.py",
        "is_straight = angle.sin() < 1e-4",
        "is_straight = angle.sin() < 2",
        LATENTS,
    ),
    Mutation(
        "no line where there is no circle",
        "latents.py",
        "is_straight = angle.sin() < 1e-4",
        "is_straight = angle.sin() < -1",
        LATENTS,
    ),
    Mutation(
        "encoding from T down",
        "latents.py",
        'if name == "decode":',
        'if name == "encode":',
        LATENTS,
    ),
    Mutation(
        "latents in units of the prior's deviation",
        "latents.py",
        "bar=bar, **solver)[-1]",
        "bar=bar, **solver)[-1] / sde._prior_std",
        LATENTS,
    ),
    Mutation(
        "latents whose error is the mean of a batch's",
        "latents.py",
        "mean(1).sqrt().max()",
        "mean().sqrt()",
        f"{LATENTS}::test_each_example_meets_the_tolerances_in_whatever_company",
    ),
    Mutation(
        "a frame's conditions of another example",
        "latents.py",
        "_of_examples(of_end, rows % len(x0))",
        "_of_examples(of_end, rows // frames)",
        LATENTS,
    ),
    Mutation(
        "between two classes the other way round",
        "latents.py",
        "expand(self.weights, x) * (last - first)",
        "expand(1 - self.weights, x) * (last - first)",
        LATENTS,
    ),
    Mutation(
        "the first class at both ends",
        "latents.py",
        "v[end] if isinstance(v, tuple)",
        "v[0] if isinstance(v, tuple)",
        LATENTS,
    ),
    Mutation(
        "a picture given on its side",
        "commands/input_pictures.py",
        "ImageOps.exif_transpose(image)",
        "image",
        "tests/commands/test_input_pictures.py",
    ),
    Mutation(
        "the last picture's class is the first one's",
        "commands/interpolate.py",
        "{name: (value, told[1][name])",
        "{name: (value, value)",
        "tests/commands/test_interpolate_command.py::test_each_picture_may_have_a_class_of_its_own",
    ),
    Mutation(
        "an ODE solver that looks beyond the times of the process (a former bug)",
        "samplers/ode.py",
        "derivative(t.clamp(earliest, latest), state)",
        "derivative(t, state)",
        "tests/test_likelihood.py",
    ),
    # ---- the average
    Mutation(
        "decay and 1 − decay swapped",
        "training/ema.py",
        "torch._foreach_lerp_(averages, current, 1 - self.current_decay)",
        "torch._foreach_lerp_(averages, current, self.current_decay)",
        f"{EMA}",
    ),
    Mutation(
        "no warm-up of the decay",
        "training/ema.py",
        "min(self.decay, (1 + n) / (10 + n))",
        "self.decay",
        f"{EMA}",
    ),
    Mutation(
        "weights lost after an exception",
        "training/ema.py",
        "        try:\n            yield\n        finally:\n            with",
        "        yield\n        if True:\n            with",
        f"{EMA}",
    ),
    Mutation(
        "an average that fails when the weights change precision (a former bug)",
        "training/ema.py",
        "p.to(average.dtype) for p",
        "p for p",
        f"{EMA}",
    ),
    # ---- runs that go on
    Mutation(
        "an epoch that is continued begins its data anew",
        "training/position.py",
        "order.start_batch = batch",
        "order.start_batch = 0",
        f"{POSITION}[epochs]",
    ),
    Mutation(
        "the steps of a continued epoch are counted one too far",
        "training/position.py",
        "loop._batches_that_stepped -= not loop._should_accumulate()",
        "pass",
        f"{POSITION}[epochs]",
    ),
    Mutation(
        "the validation after an epoch's last step is left out",
        "training/position.py",
        "if loop._should_check_val_fx(fit._data_fetcher):",
        "if False:",
        f"{POSITION}[epochs]",
    ),
    Mutation(
        "the mean loss of a continued epoch forgets its first part",
        "training/resumption.py",
        'module.epoch_loss.go_on(read["epoch_losses"], module)',
        "pass",
        f"{POSITION}[epochs]",
    ),
    Mutation(
        "a checkpoint is saved while a gradient waits for the next batch",
        "callbacks/checkpoints.py",
        "if trainer.global_step == 0 or gradient_is_kept(trainer):",
        "if trainer.global_step == 0:",
        f"{POSITION}[accumulation]",
    ),
    Mutation(
        "dropout does not depend on the step alone",
        "training/module.py",
        "torch.manual_seed(derive_seed(",
        "(derive_seed(",
        f"{POSITION}[dropout]",
    ),
    Mutation(
        "the EMA takes a skipped step",
        "training/steps.py",
        "self.ema.update(kept=self.skipping.kept)",
        "self.ema.update()",
        NON_FINITE,
    ),
    Mutation(
        "the EMA takes a step that the device has left out",
        "training/ema.py",
        ".clamp(max=self.decay)) * kept",
        ".clamp(max=self.decay))",
        NON_FINITE,
    ),
    Mutation(
        "the device is not told of a bad step",
        "training/skipped_steps.py",
        "None, bad.float()",
        "None, torch.zeros(())",
        NON_FINITE,
    ),
    Mutation(
        "the device counts on through good steps",
        "training/skipped_steps.py",
        "in_a_row.add_(1).mul_(bad)",
        "in_a_row.add_(bad)",
        f"{RELIABILITY}/test_non_finite.py::test_good_steps_in_between_begin_the_count_anew",
    ),
    Mutation(
        "the loss is read for the bar after every batch",
        "training/module.py",
        'prog_bar=bar is not None and not getattr(bar, "reads_loss", False)',
        "prog_bar=True",
        f"{RELIABILITY}/test_host_waits.py",
    ),
    Mutation(
        "a skipped step still moves the optimizer",
        "training/skipped_steps.py",
        "optimizer.zero_grad(set_to_none=True)",
        "optimizer.zero_grad(set_to_none=False)",
        NON_FINITE,
    ),
    Mutation(
        "an infinite loss with a finite gradient passes",
        "training/module.py",
        "loss * torch.where(finite, 1.0, torch.nan)",
        "loss",
        f"{RELIABILITY}/test_non_finite.py::test_a_bad_loss_with_a_good_gradient_changes_nothing",
    ),
    Mutation(
        "each process draws noise of its own",
        "training/draws.py",
        "places = torch.arange(rank, len(x) * world_size, world_size, device=x.device)",
        "places = torch.arange(rank * len(x), (rank + 1) * len(x), device=x.device)",
        f"{RELIABILITY}/test_process_count.py::test_two_processes_are_one_with_twice_the_batch",
    ),
    Mutation(
        "every example of a batch has the same noise",
        "philox.py",
        "    counter[1] += places[:, None]\n",
        "",
        "tests/test_philox.py",
    ),
    Mutation(
        "a round of the counter-based generator is missing",
        "philox.py",
        "ROUNDS = 10",
        "ROUNDS = 9",
        "tests/test_philox.py",
    ),
    Mutation(
        "an old run goes on with other noise",
        "training/restoring.py",
        'checkpoint[KEY].get("draws_own_rows", False)',
        "True",
        "tests/training/test_draws.py",
    ),
    Mutation(
        "each process flips by itself",
        "data/tensor_images.py",
        "mirrored = drawn[rank::world_size] < 0.5",
        "mirrored = drawn[: len(images)] < 0.5",
        f"{RELIABILITY}/test_process_count.py::test_two_processes_are_one_with_twice_the_batch",
    ),
    Mutation(
        "each process augments by itself",
        "training/module.py",
        "x, derive_seed(*stand, Stream.AUGMENTATION), *place",
        "x, derive_seed(*stand, Stream.AUGMENTATION)",
        f"{RELIABILITY}/test_process_count.py::test_two_processes_are_one_with_twice_the_batch",
    ),
    Mutation(
        "the same augmentation in every epoch",
        "training/module.py",
        "derive_seed(*stand, Stream.AUGMENTATION)",
        "derive_seed(global_seed(), batch_idx, Stream.AUGMENTATION)",
        "tests/training/test_module.py::test_the_augmentation_differs_between_batches_and_epochs",
    ),
    Mutation(
        "images are turned the other way than the network is told",
        "data/augmentation.py",
        "rotation - direction)",
        "-rotation - direction)",
        AUGMENTATION,
    ),
    Mutation(
        "an augmentation that leaks: the network is told only half the time",
        "data/augmentation.py",
        "return own(images), own.labels",
        "return own(images), own.labels * (torch.arange(len(images))[:, None] % 2)",
        AUGMENTATION,
    ),
    Mutation(
        "images on the device are read in another order",
        "data/base.py",
        "return super()._loader(self._placed(dataset), shuffle, drop_last)",
        "return super()._loader(self._placed(dataset), shuffle and self.on_device is not True, drop_last)",
        "tests/data/test_data_base.py::test_images_on_the_device_give_the_same_batches_in_the_same_order",
    ),
    Mutation(
        "an older checkpoint is of another network, for it lacks a newer argument",
        "training/resume.py",
        'return {**usual, **recipe["init_args"]}',
        'return dict(recipe["init_args"])',
        RESUME,
    ),
    Mutation(
        "a checkpoint is written in place",
        "training/checkpoint.py",
        'part = path.with_name(path.name + ".part")',
        "part = path",
        f"{RELIABILITY}/test_checkpoints_on_disk.py",
    ),
    Mutation(
        "a save that failed counts as one",
        "training/checkpoint.py",
        "self.has_failed = True",
        "pass",
        f"{RELIABILITY}/test_checkpoints_on_disk.py",
    ),
    Mutation(
        "the check sums of a checkpoint are not looked at",
        "training/checkpoint_file.py",
        "            _check_sums(path)\n",
        "            pass\n",
        f"{RELIABILITY}/test_checkpoints_on_disk.py",
    ),
    Mutation(
        "a stop that does not save",
        "callbacks/graceful_stop.py",
        "if stop or requeue else False",
        "if requeue else False",
        f"{RELIABILITY}/test_signals.py::test_stopped_twice_and_resumed",
    ),
    Mutation(
        "a signal to one of two processes is not heard by the other",
        "training/agreement.py",
        "distributed.ReduceOp.MAX",
        "distributed.ReduceOp.MIN",
        "tests/training/test_agreement.py",
    ),
    Mutation(
        "weights that are just being exchanged are kept, and not those of training",
        "callbacks/checkpoints.py",
        'value.to("cpu", copy=True) if',
        "value if",
        AT_THE_PICTURES,
    ),
    Mutation(
        "a stop at the pictures of an epoch that is then saved says that it is not",
        "callbacks/graceful_stop.py",
        "exception.saved |= any(",
        "any(",
        AT_THE_PICTURES,
    ),
    Mutation(
        "a signal at the pictures of an epoch that is not saved waits for them",
        "callbacks/checkpoints.py",
        "return self._kept is not None or self.holds_all_training(trainer)",
        "return self.holds_all_training(trainer)",
        AT_THE_PICTURES,
    ),
    Mutation(
        "an error at the pictures of an epoch that is not saved loses it",
        "callbacks/checkpoints.py",
        "        _stop_listening(trainer)\n        self.save_kept(trainer)\n",
        "        _stop_listening(trainer)\n",
        AT_THE_PICTURES,
    ),
    Mutation(
        "the checkpoint after an epoch is saved again soon after the one before its pictures",
        "callbacks/checkpoints.py",
        "if after_epoch and (self.every_minutes == 0 or not self._is_on_disk):",
        "if after_epoch:",
        CHECKPOINTS,
    ),
    Mutation(
        "minutes are asked for between epochs where an interval of time is given",
        "callbacks/checkpoints.py",
        "interval.total_seconds() if interval is not None else 60 * self.every_minutes",
        "60 * self.every_minutes if after_epoch else interval.total_seconds()",
        CHECKPOINTS,
    ),
    Mutation(
        "an epoch that goes on before its pictures is twice in TensorBoard",
        "loggers/tensorboard_logger.py",
        "if logged is not None and isinstance(logger, TensorBoardLogger):",
        "if False:",
        "tests/loggers/test_loggers.py::test_tensorboard_goes_on_in_the_middle_of_a_step",
    ),
    Mutation(
        "what TensorBoard had of a step that goes on is void and not repeated",
        "loggers/tensorboard_logger.py",
        "experiment.add_scalar(name, value, step)",
        "pass",
        "tests/loggers/test_loggers.py::test_tensorboard_goes_on_in_the_middle_of_a_step",
    ),
    Mutation(
        "the checkpoint before an epoch's pictures does not say what its step has logged",
        "callbacks/checkpoints.py",
        "if self._has_more_to_log:",
        "if False:",
        CHECKPOINTS,
    ),
    Mutation(
        "the checkpoint before an epoch's pictures is made before its last loss is logged",
        "callbacks/checkpoints.py",
        "        self._pictures_follow = whole and",
        "        if whole:\n            self._save_before_pictures(trainer)\n        self._pictures_follow = whole and",
        AT_THE_PICTURES,
    ),
    Mutation(
        "a first checkpoint that failed is not tried again at the next epoch",
        "callbacks/checkpoints.py",
        "self._is_on_disk = not _has_failed(trainer)",
        "self._is_on_disk = True",
        CHECKPOINTS,
    ),
    Mutation(
        "each process asks its own clock whether to save",
        "callbacks/checkpoints.py",
        "return trainer.strategy.broadcast(is_time)",
        "return is_time",
        CHECKPOINTS,
    ),
    Mutation(
        "the summary's memory is the host's, where the module is by then",
        "callbacks/performance.py",
        "peak_memory_gb(trainer.strategy.root_device)",
        "peak_memory_gb(pl_module.device)",
        "tests/callbacks/test_performance.py::test_the_summarys_memory_is_that_of_the_training_device",
    ),
    Mutation(
        "a dry run times samples on the CPU",
        "commands/dry_run.py",
        "    module.to(device)  # from the CPU, where a fit leaves it\n",
        "    device = module.device\n",
        "tests/commands/test_dry_run.py::test_what_follows_the_fit_is_on_the_training_device",
    ),
    Mutation(
        "a dry run's clock does not wait for the GPU",
        "commands/dry_run.py",
        "        synchronize(x.device)\n        seconds =",
        "        seconds =",
        "tests/commands/test_dry_run.py::test_what_is_timed_is_finished",
    ),
    # ---- guidance
    Mutation(
        "each process drops conditions by itself",
        "training/module.py",
        "self.condition_dropout, seed, *place)",
        "self.condition_dropout, seed, 0, 1)",
        f"{RELIABILITY}/test_process_count.py::test_two_processes_are_one_with_twice_the_batch",
    ),
    Mutation(
        "the conditions that are dropped are the same in every batch",
        "training/module.py",
        "derive_seed(*stand, Stream.CONDITION)",
        "derive_seed(global_seed(), Stream.CONDITION)",
        "tests/training/test_module.py::test_conditions_are_dropped_in_training_alone",
    ),
    Mutation(
        "those that keep their condition lose it",
        "training/draws.py",
        "torch.where(expand(dropped, value), null[name], value)",
        "torch.where(expand(dropped, value), value, null[name])",
        "tests/training/test_draws.py",
    ),
    Mutation(
        "the weight is the paper's, less by one",
        "guidance/base.py",
        "other + self.weight * (own - other), own",
        "other + (self.weight - 1) * (own - other), own",
        "tests/guidance/test_guidance.py",
    ),
    Mutation(
        "the halves of the batch are swapped",
        "guidance/classifier_free.py",
        "return denoised[:batch], denoised[batch:]",
        "return denoised[batch:], denoised[:batch]",
        "tests/guidance/test_guidance.py",
    ),
    Mutation(
        "guided outside of the interval and not inside",
        "guidance/base.py",
        "torch.where(expand(inside, x), guided, own)",
        "torch.where(expand(inside, x), own, guided)",
        "tests/guidance/test_guidance.py",
    ),
    Mutation(
        "the interval is one of times",
        "guidance/base.py",
        "level = self.sde.noise_level(t)",
        "level = t",
        "tests/guidance/test_guidance.py",
    ),
    Mutation(
        "the null condition is a class",
        "conditions.py",
        'null_class if name == "labels" else torch.nan)',
        'null_class - 1 if name == "labels" else torch.nan)',
        "tests/guidance/test_guidance.py",
    ),
    Mutation(
        "the other half keeps the condition",
        "guidance/classifier_free.py",
        "return self.ask(self.denoiser, x, t, **rest)",
        "return self.ask(self.denoiser, x, t, **cond)",
        "tests/guidance/test_guidance.py",
    ),
    Mutation(
        "the worse model guides itself",
        "guidance/auto.py",
        "return self.ask(self.worse, x, t, **cond)",
        "return self.ask(self.denoiser, x, t, **cond)",
        "tests/guidance/test_guidance.py",
    ),
    Mutation(
        "the classifier's gradient without its noise level",
        "guidance/classifier.py",
        "self.sde.sigma(t) ** 2 / self.sde.alpha(t)",
        "self.sde.sigma(t) ** 2",
        "tests/guidance/test_guidance.py",
    ),
    Mutation(
        "one evaluation for both halves",
        "guidance/classifier_free.py",
        "        self.evaluations *= 2\n",
        "",
        "tests/guidance/test_guidance.py",
    ),
    Mutation(
        "the spread is brought back to the guided image's",
        "guidance/base.py",
        "own.flatten(1).std(1) / guided.flatten(1).std(1)",
        "guided.flatten(1).std(1) / own.flatten(1).std(1)",
        "tests/guidance/test_guidance.py",
    ),
    Mutation(
        "samples are drawn without the model's own guidance",
        "training/trained.py",
        "return self.guidance if isinstance(guidance, str) else guidance",
        "return None if isinstance(guidance, str) else guidance",
        "tests/training/test_guided.py::test_the_module_s_own_another_and_none",
    ),
    Mutation(
        "a checkpoint's model forgets its guidance",
        "training/trained.py",
        "            drawing.guidance,\n",
        "            None,\n",
        "tests/training/test_guided.py::test_a_checkpoint_carries_it",
    ),
    Mutation(
        "a worse model of another shape is taken",
        "training/guided.py",
        "its_shape != shape:",
        "False:",
        "tests/training/test_guided.py::test_a_worse_model_that_is_no_match",
    ),
    Mutation(
        "guidance by weights that no checkpoint holds",
        "training/guided.py",
        "        if isinstance(value, nn.Module):\n",
        "        if False:\n",
        "tests/training/test_guided.py::test_weights_are_no_part_of_a_recipe",
    ),
    Mutation(
        "a class that stands for none and was never trained is not warned of",
        "training/guided.py",
        "if condition_dropout == 0 and",
        "if condition_dropout == 1 and",
        "tests/training/test_guided.py::test_a_null_class_that_was_never_trained_is_warned_of_once",
    ),
    Mutation(
        "predict ignores its option for guidance",
        "commands/lightning_cli.py",
        'self.model.own_or(self._get(self.config_init, "guidance"))',
        "self.model.guidance",
        "tests/commands/test_guided_options.py::test_predict",
    ),
    Mutation(
        "a function in the place of guidance is called",
        "commands/guided_options.py",
        "        check_classes(guidance.as_dict())\n",
        "        pass\n",
        "tests/commands/test_guided_options.py::test_bad_guidance_is_one_line_and_leaves_nothing",
    ),
    Mutation(
        "a sweep draws every weight of guidance alike",
        "commands/subject.py",
        "                        guidance=way.guidance,\n",
        "                        guidance=None,\n",
        "tests/commands/test_guided_options.py::test_a_sweep_over_weights",
    ),
    Mutation(
        "the row of each weight has other noise",
        "callbacks/sample_grid.py",
        "generator=torch.Generator(pl_module.device).manual_seed(seed),",
        "generator=torch.Generator(pl_module.device).manual_seed(seed + len(rows)),",
        "tests/callbacks/test_guided_callbacks.py::test_a_row_for_each_weight_of_the_same_noise",
    ),
    Mutation(
        "FID is extrapolated over 1/k, not 1/n",
        "metrics/extrapolation.py",
        "        inverse.append(1 / size)",
        "        inverse.append(1 / count)",
        EXTRAPOLATION,
    ),
    Mutation(
        "the parts of an extrapolated FID are the samples in their order",
        "metrics/extrapolation.py",
        "    order = draw_some(total, total, seed).to(features.device)",
        "    order = torch.arange(total, device=features.device)",
        EXTRAPOLATION,
    ),
    Mutation(
        "the kernel distance counts each image's pair with itself",
        "metrics/kernel_distance.py",
        "    return (every - alike) / (len(x) * (len(x) - 1))",
        "    return every / len(x) ** 2",
        KERNEL,
    ),
    Mutation(
        "the kernel distance of several processes counts what fills up their shares",
        "callbacks/sampling.py",
        ".transpose(0, 1).flatten(0, 1)[:total]",
        ".transpose(0, 1).flatten(0, 1)",
        "tests/test_ddp.py::test_the_kernel_distance_is_of_the_samples_of_both",
    ),
    Mutation(
        "a run that was begun in other features goes on in the new ones",
        "callbacks/fid.py",
        "        if before in features and own not in features:",
        "        if before in features and own in features:",
        "tests/callbacks/test_callbacks.py::test_an_old_run_goes_on_in_the_features_that_it_was_begun_in",
    ),
    Mutation(
        "each of several seeds draws the first one's samples",
        "commands/subject.py",
        "            options.batch_size,\n            seed,",
        "            options.batch_size,\n            options.seed,",
        "tests/commands/test_evaluate_command.py::test_several_seeds_and_the_distance_of_infinitely_many_samples",
    ),
    Mutation(
        "guided and unguided FID have one name",
        "callbacks/fid.py",
        """label if guidance == own else f"{label},{guidance or 'unguided'}\"""",
        "label",
        "tests/callbacks/test_guided_callbacks.py::test_fid_has_guidance_that_is_not_the_models_in_its_name",
    ),
    Mutation(
        "an exported program is guided outside of its interval, too",
        "guidance/base.py",
        "return guided if inside is None else",
        "return guided if inside is None or torch.compiler.is_compiling() else",
        "tests/export/test_program.py::test_a_guided_denoiser",
    ),
    Mutation(
        "an export leaves its guidance out of the record",
        "export/record.py",
        "describe(guidance)",
        "None",
        "tests/commands/test_guided_options.py::test_export_and_the_way_back",
    ),
    # ---- how the network is computed
    Mutation(
        "an optimizer is fused that was not to be",
        "training/fused.py",
        "made[name] is not None for name",
        "False for name",
        "tests/training/test_fused.py",
    ),
    Mutation(
        "a network that is split is compiled as a whole",
        "training/module.py",
        "            self._compile_once(blocks(self.network))\n",
        "",
        f"{RELIABILITY}/test_fsdp.py::test_each_block_is_compiled_by_itself_and_none_is_given_up",
    ),
    Mutation(
        "compiled without a look at the compiler",
        "training/compilation.py",
        "reason = _why_not(device) if wanted else None",
        "reason = None",
        "tests/training/test_compilation.py::test_without_a_compiler_the_run_warns_once_and_ends",
    ),
    Mutation(
        "compiled by auto wherever it is",
        "training/compilation.py",
        'wanted = pays(device) if choice == "auto" else choice',
        "wanted = bool(choice)",
        "tests/training/test_compilation.py::test_the_choice_is_made_when_the_run_starts",
    ),
    Mutation(
        "compiled at each validation of a run again",
        "training/module.py",
        """        compile_in_place(self.network, self._compile, device, parts)
        self._compile = False""",
        "        compile_in_place(self.network, self._compile, device, parts)",
        "tests/training/test_compilation.py::test_the_choice_is_made_when_the_run_starts",
    ),
    Mutation(
        "a checkpointed block draws its dropout anew in the backward pass",
        "networks/unet.py",
        "checkpoint(block, *inputs, use_reentrant=False)",
        "checkpoint(block, *inputs, use_reentrant=False, preserve_rng_state=False)",
        "tests/networks/test_unet.py::test_checkpointing_gives_the_same_gradients_bit_for_bit",
    ),
    Mutation(
        "bf16 back inside the attention of a CPU",
        "networks/blocks.py",
        'with torch.autocast("cpu", enabled=False):',
        'with torch.autocast("cpu", dtype=torch.bfloat16):',
        "tests/networks/test_unet.py::test_attention_on_a_cpu_under_bf16_is_that_of_float32",
    ),
    # ---- conditions
    Mutation(
        "the null of a vector is not learnt",
        "networks/conditioning.py",
        "self.layers(standardized.to(x.dtype)), self.null)",
        "self.layers(standardized.to(x.dtype)), self.null.detach())",
        CONDITIONING,
    ),
    Mutation(
        "the null of a class is the first class",
        "networks/conditioning.py",
        "embedding.weight[-1]",
        "embedding.weight[0]",
        CONDITIONING,
    ),
    Mutation(
        "a vector is taken as it is, not standardized",
        "networks/conditioning.py",
        "(torch.where(given, vector, 0) - self.mean) / self.std",
        "torch.where(given, vector, 0)",
        CONDITIONING,
    ),
    Mutation(
        "networks learn vectors in units of their own",
        "networks/conditioning.py",
        "(torch.where(given, vector, 0) - self.mean) / self.std",
        "torch.where(given, vector, 0)",
        "tests/test_conditional_gaussians.py::test_the_answers_with_and_without_the_condition_are_the_exact_ones[vector]",
    ),
    Mutation(
        "a number that is the same everywhere is divided by 0",
        "networks/conditioning.py",
        "torch.where(std == 0, 1, std)",
        "std",
        CONDITIONING,
    ),
    Mutation(
        "the NaN of a vector comes into the gradient",
        "networks/conditioning.py",
        "(torch.where(given, vector, 0) - self.mean)",
        "(vector - self.mean)",
        f"{CONDITIONING}::test_gradients_are_finite_and_every_weight_has_one",
    ),
    Mutation(
        "a picture of which one pixel is not given counts as given",
        "networks/conditioning.py",
        "picture.flatten(1).isnan().any(1)",
        "picture.flatten(1).isnan().all(1)",
        CONDITIONING,
    ),
    Mutation(
        "a larger picture loses the pixels between",
        "networks/conditioning.py",
        "antialias=True",
        "antialias=False",
        CONDITIONING,
    ),
    Mutation(
        "a picture stands before x and not behind it",
        "networks/conditioning.py",
        "torch.cat([x, torch.where(given, picture.to(x.dtype), self.null.to(x.dtype))], dim=1)",
        "torch.cat([torch.where(given, picture.to(x.dtype), self.null.to(x.dtype)), x], dim=1)",
        CONDITIONING,
    ),
    Mutation(
        "padding is looked at and tokens are not",
        "networks/conditioning.py",
        "torch.cat([~given.any(1, keepdim=True), given], dim=1)",
        "torch.cat([given.any(1, keepdim=True), ~given], dim=1)",
        CONDITIONING,
    ),
    Mutation(
        "the token that stands for none is looked at beside others",
        "networks/conditioning.py",
        "torch.cat([~given.any(1, keepdim=True), given], dim=1)",
        "torch.cat([given.new_ones(x.shape[0], 1), given], dim=1)",
        CONDITIONING,
    ),
    Mutation(
        "in bf16 on a CPU padding is looked at",
        "networks/blocks.py",
        "v.float(), attn_mask=mask)",
        "v.float())",
        CONDITIONING,
    ),
    Mutation(
        "precision auto in place of the other plugins",
        "training/precision.py",
        "plugins.append(AutoPrecision())",
        "plugins = [AutoPrecision()]",
        "tests/training/test_precision.py::test_auto_is_the_plugin_beside_the_others",
    ),
    Mutation(
        "the losses by noise go on over an epoch's end",
        "callbacks/loss_by_noise.py",
        "if batch_idx == 0:",
        "if self._train is None:",
        "tests/callbacks/test_loss_by_noise.py::test_each_epochs_rows_are_of_its_own_steps",
    ),
    Mutation(
        "a continued epoch's losses by noise forget its first part",
        "callbacks/loss_by_noise.py",
        "pl_module.own_part(self._resumed) if self._resumed is not None else self._nothing(pl_module)",
        "self._nothing(pl_module)",
        "tests/callbacks/test_loss_by_noise.py::test_resumed_in_the_middle_of_an_epoch_it_is_the_row_of_the_whole",
    ),
    Mutation(
        "the validation of an earlier epoch is taken for this one's",
        "callbacks/loss_by_noise.py",
        "self._validation = None  # not every epoch has one",
        "pass",
        "tests/callbacks/test_loss_by_noise.py::test_each_epochs_rows_are_of_its_own_steps",
    ),
    Mutation(
        "the states of an animation are of other steps",
        "samplers/base.py",
        "place = {step: i for i, step in enumerate(kept)}",
        "place = {max(step - 1, 0): i for i, step in enumerate(kept)}",
        f"{CONTRACTS}::test_a_part_of_a_trajectory_is_of_the_same_states",
    ),
    Mutation(
        "a run of an agent takes an id of its own",
        "loggers/wandb_logger.py",
        'id=id or os.environ.get("WANDB_RUN_ID") or secrets.token_hex(4)',
        "id=id or secrets.token_hex(4)",
        "tests/loggers/test_loggers.py::test_an_agent_of_a_sweep_says_which_run_it_is",
    ),
    # ---- figures that are of something else than is said
    Mutation(
        "a likelihood of the first held-out examples",
        "commands/likelihood.py",
        "draw_some(num, len(held_out), seed).tolist()",
        "list(range(min(num, len(held_out))))",
        "tests/commands/test_likelihood_command.py::test_the_examples_are_drawn_from_all_of_them",
    ),
    Mutation(
        "validation reads a sorted set from the front",
        "data/base.py",
        'self._loader(self.sets()[1], shuffle="once")',
        "self._loader(self.sets()[1])",
        "tests/data/test_data_base.py::test_the_first_held_out_batches_are_a_random_sample",
    ),
    Mutation(
        "FID of classes in turn, whatever their shares",
        "training/requested.py",
        "model.labels_in_shares(total)",
        "model.default_labels(torch.arange(total))",
        "tests/callbacks/test_callbacks.py::test_fid_takes_the_classes_in_the_shares_of_the_data",
    ),
    Mutation(
        "a remainder's sample for the first classes instead of the largest remainders",
        "data/shares.py",
        "by_remainder[: total - sum(samples)]",
        "range(total - sum(samples))",
        "tests/data/test_shares.py::test_each_class_has_its_share_by_largest_remainder",
    ),
    Mutation(
        "every process draws the grid's first classes",
        "callbacks/sample_grid.py",
        "first = trainer.global_rank * count",
        "first = 0",
        "tests/callbacks/test_callbacks.py::test_the_processes_share_the_classes_of_a_grid",
    ),
    Mutation(
        "a sample that is not finite is a black picture",
        "images.py",
        "broken = ~x.isfinite()",
        "broken = x.isnan() & x.isfinite()",
        "tests/test_images.py::test_an_image_that_is_not_finite_is_a_tile_with_a_cross",
    ),
    Mutation(
        "a FID of samples that are not finite",
        "callbacks/fid.py",
        "value = math.nan",
        "pass",
        "tests/callbacks/test_callbacks.py::test_fid_of_a_sample_that_is_not_finite_is_nan",
    ),
    Mutation(
        "a best checkpoint of before a resume stays unnoticed where its epoch is not reached again",
        "callbacks/best_checkpoint.py",
        "        self._save_if_best(trainer)\n        self._tell_of_void(math.inf)\n",
        "        self._save_if_best(trainer)\n",
        "tests/callbacks/test_callbacks.py::test_a_best_checkpoint_of_an_epoch_that_is_trained_again",
    ),
    Mutation(
        "a best checkpoint is told to be of before a resume though it is the run's own again",
        "callbacks/best_checkpoint.py",
        "and path.name not in kept and",
        "and",
        "tests/callbacks/test_callbacks.py::test_a_best_checkpoint_of_an_epoch_that_is_trained_again",
    ),
    Mutation(
        "nan is the best until there is a number",
        "callbacks/best_checkpoint.py",
        "if math.isfinite(trainer.callback_metrics[self.monitor]):",
        "if True:",
        "tests/callbacks/test_callbacks.py::test_what_is_no_number_is_never_the_best",
    ),
    Mutation(
        "what is loaded is in training mode",
        "training/restoring.py",
        "return module.eval()",
        "return module",
        "tests/training/test_module.py::test_what_is_loaded_is_in_evaluation_mode_until_it_is_trained",
    ),
    # ---- what is asked for on a resume
    Mutation(
        "a changed option of the optimizer is not laid over its restored groups",
        "training/resume.py",
        "group[name] = asked[name]",
        "pass",
        RESUME,
    ),
    Mutation(
        "a changed schedule begins again at its first step",
        "training/resume.py",
        "own.lr_scheduler, run_steps, step, parameters)",
        "own.lr_scheduler, run_steps, 0, parameters)",
        RESUME,
    ),
    Mutation(
        "a longer run keeps the schedule of the shorter one",
        "training/resume.py",
        "and length != run_steps",
        "and length == -1",
        RESUME,
    ),
    Mutation(
        "a plateau forgets what it has seen",
        "training/resume.py",
        "if name not in was or was[name] != value})",
        "})",
        RESUME,
    ),
    Mutation(
        "the EMA's decay is the checkpoint's whatever is asked for",
        "training/restoring.py",
        'self.ema.decay = self.hparams["ema_decay"]',
        "pass",
        RESUME,
    ),
    Mutation(
        "an optimizer of another class takes the checkpoint's state",
        "training/resume.py",
        'if change.name == "optimizer":',
        'if change.name == "optimiser":',
        RESUME,
    ),
    Mutation(
        "the steps of an epoch that is begun are counted twice",
        "training/position.py",
        "* per_epoch - begun, 0)",
        "* per_epoch, 0)",
        RESUME,
    ),
    Mutation(
        "a schedule at its end is stepped on",
        "training/schedule.py",
        "scheduler.last_epoch + 1 >= scheduler.total_steps",
        "scheduler.last_epoch > scheduler.total_steps",
        "tests/training/test_schedule.py",
    ),
    Mutation(
        "what tells a loader's workers to end is collected before them",
        "data/loader.py",
        "zip(iterator._workers, iterator._index_queues, strict=True)",
        "zip(iterator._workers, iterator._workers, strict=True)",
        "tests/data/test_loader.py::test_workers_end_with_a_loader_that_is_garbage",
    ),
    # ---- folders of a million pictures
    Mutation(
        "every process searches the folder before they begin",
        "commands/lightning_cli.py",
        "        if is_first_process():  # from",
        "        if True:  # from",
        f"{SHARED_FOLDER}[1]",
    ),
    Mutation(
        "another machine's process searches the folder itself",
        "training/module.py",
        "        if self.trainer.is_global_zero:\n            self._data.sets(self.trainer)",
        "        self._data.sets(self.trainer)",
        f"{SHARED_FOLDER}[2]",
    ),
    Mutation(
        "what the first process found is not taken",
        "data/image_folder.py",
        "            self._folder = found\n",
        "",
        f"{SHARED_FOLDER}[2]",
    ),
    Mutation(
        "the last names are held out, not those of the smallest hashes",
        "data/picture_folder.py",
        "heapq.nsmallest(count, hashes)",
        "heapq.nlargest(count, hashes)",
        f"{FOLDER}::test_the_split_is_disjoint_whole_and_the_same_in_every_run",
    ),
    Mutation(
        "names that are no text become others",
        "data/names.py",
        'name.encode("utf-8", "surrogatepass")',
        'name.encode("utf-8", "replace")',
        "tests/data/test_names.py::test_what_goes_in_comes_out",
    ),
    Mutation(
        "pictures on disk are read by the training process alone",
        "data/image_folder.py",
        "return 0 if self._is_in_memory else useful_workers(self._processes)",
        "return 0",
        f"{FOLDER}::test_pictures_on_disk_are_read_by_as_many_workers_as_there_are_cpus",
    ),
    Mutation(
        "each process takes all CPUs for its workers",
        "data/loader.py",
        "usable if are_own else usable // processes",
        "usable",
        f"{FOLDER}::test_the_processes_of_a_machine_share_its_cpus",
    ),
    Mutation(
        "the workers of the FID's reference end with Ctrl-C",
        "data/loader.py",
        '**{"worker_init_fn": leave_signals, **kwargs}',
        "**kwargs",
        "tests/data/test_loader.py::test_workers_leave_signals_to_the_training_process",
    ),
    Mutation(
        "a parent's type says whether an argument may be null",
        "commands/parser.py",
        "if name in parameters.keys() - known",
        "if name in parameters",
        "tests/commands/test_parser.py",
    ),
    Mutation(
        "a process reads another's part of FID's reference",
        "metrics/fid.py",
        "if (number := first + rank) in some:",
        "if (number := first) in some:",
        f"{SHARED}::test_processes_share_the_parts_and_their_sum_is_that_of_one_to_the_last_digit",
    ),
    Mutation(
        "a part of FID's reference is not kept",
        "metrics/fid.py",
        "        store(path, dict(zip(SUMS, sums, strict=True)))\n        return sums",
        "        return sums",
        f"{SHARED}::test_what_a_killed_run_has_finished_is_not_computed_again",
    ),
    Mutation(
        "a part of other images is taken for one of FID's reference",
        "metrics/fid.py",
        "(sums[2] > 0 if count is None else sums[2] == count)",
        "sums[2] > 0",
        f"{SHARED}::test_a_part_that_is_damaged_or_foreign_is_computed_anew",
    ),
    Mutation(
        "the parts of FID's reference stay when it is whole",
        "metrics/fid.py",
        "forget_parts(path)  # each process",
        "pass  # each process",
        SHARED,
    ),
    Mutation(
        "a process that is not the first adds FID's reference once more",
        "metrics/fid.py",
        "        if rank == 0:\n            self._take(total)\n        if self._told",
        "        self._take(sums if rank else total)\n        if self._told",
        f"{SHARED}::test_processes_share_the_parts_and_their_sum_is_that_of_one_to_the_last_digit",
    ),
    Mutation(
        "features of FID that learn keep their graph",
        "metrics/fid.py",
        "    @torch.no_grad()\n",
        "",
        f"{SHARED}::test_features_that_learn_leave_no_graph",
    ),
    Mutation(
        "a part of other images is taken for one of evaluate's reference",
        "metrics/reference.py",
        'if found is not None and len(found["features"]) == len(part):',
        "if found is not None:",
        "tests/metrics/test_reference.py",
    ),
    Mutation(
        "a sample agrees if the class asked for is any of the two likeliest",
        "metrics/agreement.py",
        "(read == labels).sum()",
        "(logits.topk(2).indices == labels[:, None]).sum()",
        AGREEMENT,
    ),
    Mutation(
        "a sample is legible by its logit, not its probability",
        "metrics/agreement.py",
        "largest, read = logits.log_softmax(1).max(1)",
        "largest, read = logits.max(1)",
        AGREEMENT,
    ),
    Mutation(
        "the standard error without its root",
        "metrics/agreement.py",
        "math.sqrt(p * (1 - p) / self.num)",
        "p * (1 - p) / self.num",
        AGREEMENT,
    ),
    Mutation(
        "the surest samples are shown as the worst",
        "metrics/agreement.py",
        "sure.sort(stable=True)",
        "sure.sort(stable=True, descending=True)",
        AGREEMENT,
    ),
    Mutation(
        "every process reads all held-out images",
        "metrics/agreement.py",
        "[rank::world_size].tolist()",
        ".tolist()",
        AGREEMENT,
    ),
    Mutation(
        "what one process reads is taken for what all do",
        "callbacks/fid.py",
        'counts = trainer.strategy.reduce(counts, reduce_op="sum").cpu()',
        'counts = torch.cat((trainer.strategy.reduce(counts[:1], reduce_op="sum"), counts[1:])).cpu()',
        "tests/test_ddp.py::test_what_is_read_in_all_samples_is_added_up",
    ),
    Mutation(
        "samples are read as other classes than the model's",
        "metrics/features.py",
        "classes == tuple(class_names or ()) and ",
        "",
        "tests/metrics/test_features.py::test_which_features_are_of_a_classifier_of_the_datas_classes",
    ),
    Mutation(
        "the features called digits are those that do not mind broken ones",
        "metrics/features.py",
        "lambda weights: JudgedDigitFeatures(), 128",
        "lambda weights: DigitFeatures(), 128",
        "tests/test_yardstick.py",
    ),
    Mutation(
        "features of digits in units of their own",
        "metrics/digits.py",
        "self.standard(self.body(x))",
        "self.body(x)",
        "tests/metrics/test_digits.py",
    ),
    Mutation(
        "features of digits without a bound",
        "metrics/digits.py",
        "nn.Tanh()",
        "nn.Identity()",
        "tests/metrics/test_digits.py",
    ),
    Mutation(
        "samples that are not finite are read",
        "callbacks/fid.py",
        "value if is_known else math.nan",
        "value",
        "tests/callbacks/test_callbacks.py::test_nothing_is_read_in_samples_that_are_not_finite",
    ),
    Mutation(
        "each process downloads the Inception network",
        "metrics/features.py",
        "        lock.acquire()\n",
        "        pass\n",
        "tests/metrics/test_feature_download.py",
    ),
    Mutation(
        "Apple's device is taken to have float64",
        "floats.py",
        'return device.type != "mps"',
        "return True",
        "tests/test_without_float64.py",
    ),
    Mutation(
        "the likelihood and the ODE in TF32",
        "samplers/ode.py",
        "with torch.autocast(times.device.type, enabled=False), exact_float32():",
        "with torch.autocast(times.device.type, enabled=False):",
        f"{FLOATS}::test_the_ode_and_the_likelihood_are_exact",
    ),
    Mutation(
        "the last evaluation of the ODE in TF32",
        "samplers/ode.py",
        "            with exact_float32():\n",
        "            if True:\n",
        f"{FLOATS}::test_the_ode_and_the_likelihood_are_exact",
    ),
    Mutation(
        "TF32 stays off",
        "floats.py",
        "            put(before)\n        for get, put, before in single:",
        "            pass\n        for get, put, before in single:",
        f"{FLOATS}::test_all_is_exact_inside_and_as_it_was_outside",
    ),
    # ---- devices
    Mutation(
        "counters of the noise on the CPU",
        "philox.py",
        "counter[0] += torch.arange(blocks, device=places.device)",
        "counter[0] += torch.arange(blocks)",
        f"{FAKE_CUDA}::test_draws_of_own_rows",
    ),
    Mutation(
        "the prior's density looks at its values, and the host waits",
        "sde.py",
        "torch.distributions.Normal(0.0, self._prior_std, validate_args=False)",
        "torch.distributions.Normal(0.0, self._prior_std)",
        f"{FAKE_CUDA}::test_processes",
    ),
    Mutation(
        "a discrete process's rises left on the CPU",
        "sde.py",
        "table.to(like), rises.to(like), slopes.to(like)",
        "table.to(like), rises.to(like.dtype), slopes.to(like)",
        f"{FAKE_CUDA}::test_processes",
    ),
    Mutation(
        "the average asks whether the step was one",
        "training/ema.py",
        "if kept is False:",
        "if not kept:",
        f"{FAKE_CUDA}::test_what_follows_a_backward_pass",
    ),
    Mutation(
        "a fused optimizer is told of a bad step by a number of the host",
        "training/skipped_steps.py",
        "optimizer.grad_scale, optimizer.found_inf = None, bad.float()",
        "optimizer.grad_scale, optimizer.found_inf = None, torch.tensor(float(bad))",
        f"{FAKE_CUDA}::test_what_follows_a_backward_pass",
    ),
    Mutation(
        "the loss is logged for a bar that is not there, and read after every batch",
        "training/module.py",
        "prog_bar=bar is not None and not getattr",
        "prog_bar=not getattr",
        "tests/training/test_reads.py",
    ),
    Mutation(
        "each batch's loss is looked at before it is added",
        "training/epoch_loss.py",
        "finite = loss.isfinite()",
        "finite = torch.tensor(bool(loss.isfinite()))",
        "tests/training/test_reads.py",
    ),
    # ---- conditions from data
    Mutation(
        "the small picture is that of the image before it is mirrored",
        "data/base.py",
        "        return self._ready(images, condition)\n",
        "        return normalize(images), self._ready(batch[0], condition)[1]\n",
        f"{CONDITION}::test_the_small_picture_is_that_of_the_flipped_image",
    ),
    Mutation(
        "a small picture takes one pixel of each square",
        "data/condition.py",
        "F.avg_pool2d(x, factor)",
        "x[:, :, ::factor, ::factor]",
        f"{CONDITION}::test_a_small_picture_is_the_average_of_its_pixels",
    ),
    Mutation(
        "the held-out pictures have the vectors of the first ones",
        "data/image_folder.py",
        "vectors = whole.vectors[part] if",
        "vectors = whole.vectors[: len(whole.labels[part])] if",
        f"{METADATA}::test_each_picture_has_the_numbers_of_its_row_in_the_order_asked_for",
    ),
    Mutation(
        "rows are taken for those of the pictures in their order",
        "data/metadata.py",
        "i = place.get(picture)",
        "i = place.get(picture) and table.has_row.find(0)",
        f"{METADATA}::test_each_picture_has_the_numbers_of_its_row_in_the_order_asked_for",
    ),
    Mutation(
        "words are numbered as they come",
        "data/metadata.py",
        "class_names = sorted(found)",
        "class_names = list(found)",
        METADATA,
    ),
    Mutation(
        "the statistics of vectors are of the held-out examples",
        "data/examples.py",
        "examples = self.sets()[0]\n",
        "examples = self.sets()[1]\n",
        f"{METADATA}::test_the_statistics_are_of_the_training_pictures_in_float64",
    ),
    Mutation(
        "the statistics of vectors are summed up in float32",
        "data/examples.py",
        "vectors = vectors.double()\n",
        "vectors = vectors.float()\n",
        f"{METADATA}::test_the_statistics_are_of_the_training_pictures_in_float64",
    ),
    Mutation(
        "the moving normal is as wide in itself as with its number",
        "data/points.py",
        "return vector * vector.new_tensor(DIRECTION), root @ root.T",
        "return vector * vector.new_tensor(DIRECTION), root.T @ root",
        "tests/data/test_points.py::test_moving_normal_given_its_number_is_the_joint_normal_given_it",
    ),
    Mutation(
        "samples stand beside the conditions of other examples",
        "callbacks/condition_grid.py",
        "conditions[name][own // self.draws]",
        "conditions[name][own % len(x)]",
        f"{CONDITION_GRID}::test_a_row_is_the_condition_its_samples_and_the_truth",
    ),
    Mutation(
        "every process draws for the first examples",
        "callbacks/condition_grid.py",
        "torch.arange(trainer.global_rank * count, (trainer.global_rank + 1) * count)",
        "torch.arange(count)",
        f"{CONDITION_GRID}::test_two_processes_draw_a_part_each",
    ),
    Mutation(
        "asked for: a network learns no statistics of vectors",
        "training/module.py",
        "if stage == TrainerFn.FITTING and not self._data.is_trained:",
        "if stage == TrainerFn.FITTING and self._data.is_trained:",
        "tests/training/test_requested.py",
    ),
    Mutation(
        "asked for: the condition of the next example",
        "training/requested.py",
        "order[indices.cpu() % len(order)]",
        "order[(indices.cpu() + 1) % len(order)]",
        "tests/training/test_requested.py",
    ),
    Mutation(
        "asked for: held-out conditions are compared with training examples",
        "training/requested.py",
        "tolist(), held_out=False)",
        "tolist(), held_out=True)",
        "tests/training/test_requested.py",
    ),
    Mutation(
        "asked for: what was never left out is left out",
        "training/trained.py",
        "if left_out and not self.condition_dropout",
        "if left_out and self.condition_dropout",
        "tests/training/test_requested.py",
    ),
    Mutation(
        "asked for: each condition of an example is dropped or not by itself",
        "training/draws.py",
        "torch.where(expand(dropped, value), null[name], value)",
        "torch.where(expand(dropped.roll(len(name)), value), null[name], value)",
        "tests/training/test_draws.py",
    ),
    Mutation(
        "asked for: rows of a file in turn, not each by itself",
        "commands/asked.py",
        "value.repeat_interleave(each, 0)",
        "value.repeat(each, *[1] * (value.ndim - 1))",
        "tests/commands/test_asked.py",
    ),
    Mutation(
        "asked for: a number goes before a name",
        "commands/asked.py",
        "numbers.get(str(label), int(label) if str(label).isdecimal() else label)",
        "int(label) if str(label).isdecimal() else numbers.get(str(label), label)",
        "tests/commands/test_asked.py",
    ),
    Mutation(
        "asked for: columns in the order of the file",
        "commands/asked.py",
        "wanted = model.vector_names or columns",
        "wanted = columns",
        "tests/commands/test_asked.py",
    ),
    Mutation(
        "asked for: a vector of another length passes",
        "training/condition_check.py",
        "(width is None or value.shape[axis] == width)",
        "(width is None or value.shape[axis] >= width)",
        "tests/training/test_compatibility.py",
    ),
    # ---- groups in the place of classes
    Mutation(
        "a class's samples are of the first class's groups",
        "data/clusters.py",
        "return classes * shares.shape[1] + drawn",
        "return drawn",
        GROUPS,
    ),
    Mutation(
        "every group is drawn as often as any other",
        "data/clusters.py",
        "shares = torch.where(shares.sum(1, keepdim=True) > 0, shares, 1)",
        "shares = torch.ones_like(shares)",
        CLUSTERS,
    ),
    Mutation(
        "a group that has lost all its pictures becomes a black one",
        "data/clusters.py",
        "centres = torch.where(sizes[:, None] > 0, sums / sizes.clamp(min=1)[:, None], centres)",
        "centres = sums / sizes[:, None]",
        CLUSTERS,
    ),
    Mutation(
        "held-out pictures are divided by centres of their own",
        "data/base.py",
        "labels = [found.of(images.images, own) for images, own in zip((training, held_out), own, strict=True)]",
        "labels = [cluster(images.images, own, clusters, classes).of(images.images, own) for images, own in zip("
        "(training, held_out), own, strict=True)]",
        CLUSTERS,
    ),
    Mutation(
        "the network is told the class as if it were a group",
        "training/trained.py",
        'asked["labels"] = self.groups.draw(classes, generator)',
        'asked["labels"] = classes',
        GROUPS,
    ),
    Mutation(
        "groups of real pictures are read as classes",
        "metrics/agreement.py",
        "labels = labels if groups is None else groups.class_of(labels)",
        "labels = labels",
        GROUPS,
    ),
    # ---- the race of the benchmarks
    Mutation(
        "a system's speed is its median one, whatever ours was beside it",
        "../benchmarks/pace.py",
        'kept["ratios"][name] = [rate / of_ours for of_ours, rate in pairs]',
        'kept["ratios"][name] = [rate for _, rate in pairs]',
        f"{RACE}::test_a_system_is_timed_beside_ours",
    ),
    Mutation(
        "a turn counts the steps before it",
        "../benchmarks/pace.py",
        "self.pipe.send((steps - self.first) / (now - self.began))",
        "self.pipe.send(steps / (now - self.began))",
        f"{RACE}::test_a_turn_is_as_long_as_it_was_told_and_its_speed_that_of_its_steps",
    ),
    Mutation(
        "the best sampler may take any number of evaluations",
        "../benchmarks/judging.py",
        'for name, row in tried.items() if row["evaluations"] <= most_evaluations}',
        "for name, row in tried.items()}",
        f"{RACE}::test_best_sampler_is_that_of_the_lowest_fid_of_those_that_are_allowed",
    ),
    Mutation(
        "a part of the race starts from nothing where the one before was there already",
        "../benchmarks/race.py",
        "        start = path\n",
        "            start = path\n",
        f"{RACE}::test_a_race_goes_on_with_the_part_that_was_not_finished",
    ),
    Mutation(
        "a peer's next part has an optimizer that knows nothing of the part before",
        "../benchmarks/systems/peer.py",
        'if hasattr(part, "state_dict")}',
        'if hasattr(part, "state_dict") and name != "optimizer"}',
        f"{RACE}::test_a_training_in_parts_is_the_training_in_one",
    ),
    Mutation(
        "a scheduled system's longer training is the race's, cut off nowhere",
        "../benchmarks/until.py",
        "found[-1] * 2 if is_scheduled else found[-1] + minutes / 2",
        "found[-1] + minutes / 2",
        f"{RACE}::test_a_system_trains_until_it_is_as_good",
    ),
    Mutation(
        "the noise's standard deviation for its variance in MMPS",
        "inverse/mmps.py",
        "+ self.noise_std**2 * v",
        "+ self.noise_std * v",
        POSTERIORS,
    ),
    Mutation(
        "the covariance of MMPS without its scale",
        "inverse/mmps.py",
        "return gain * transposed(v)",
        "return transposed(v)",
        POSTERIORS,
    ),
    Mutation(
        "the gradient through a denoiser that is detached",
        "inverse/posterior.py",
        "denoised = self.denoiser.denoise(x, t, **cond)",
        "denoised = self.denoiser.denoise(x.detach(), t, **cond) + 0 * x",
        POSTERIORS,
    ),
    Mutation(
        "weights that take no gradients once an inverse problem was solved",
        "inverse/posterior.py",
        "            parameter.requires_grad_(True)",
        "            pass",
        POSTERIORS,
    ),
    Mutation(
        "RePaint goes back where the measurement is the noisier",
        "inverse/repaint.py",
        " if levels[at] >= self.noise_std]",
        "]",
        MIXTURES,
    ),
    Mutation(
        "the group of an answer is drawn by no seed",
        "commands/restore.py",
        "model.groups.draw(each, generator)",
        "model.groups.draw(each, None)",
        "tests/commands/test_restore_command.py",
    ),
    Mutation(
        "restorations of two processes with the same noise",
        "callbacks/restoration_grid.py",
        "derive_seed(global_seed(), 1 + trainer.global_rank, Stream.RESTORATION_GRID)",
        "derive_seed(global_seed(), 0, Stream.RESTORATION_GRID)",
        "tests/callbacks/test_condition_grid.py::test_two_processes_draw_a_part_each",
    ),
    Mutation(
        "the products of an inverse problem uncounted",
        "inverse/posterior.py",
        "self.evaluations += cost",
        "pass",
        POSTERIORS,
    ),
    Mutation(
        "the adjoint of a mean forgets its share",
        "inverse/operators/pixels.py",
        'mode="nearest") / self.factor**2',
        'mode="nearest")',
        OPERATORS,
    ),
    Mutation(
        "the adjoint of a blur is the blur",
        "inverse/operators/frequencies.py",
        "return self._multiply(y, self._transfer(y).conj())",
        "return self._multiply(y.roll(1, -1), self._transfer(y).conj())",
        OPERATORS,
    ),
    Mutation(
        "a mask the wrong way round",
        "inverse/operators/pixels.py",
        "return x * self.mask",
        "return x * ~self.mask",
        "tests/inverse/test_restore.py",
    ),
    Mutation(
        "noise where nothing is measured",
        "inverse/operators/base.py",
        "return self.measured(y + noise_std * z)",
        "return y + noise_std * z",
        OPERATORS,
    ),
    Mutation(
        "the variance of the data in PGDM without its limit",
        "inverse/pgdm.py",
        "level * self.data_std**2 / (level + self.data_std**2)",
        "level",
        POSTERIORS,
    ),
    Mutation(
        "DPS by the square of the norm",
        "inverse/dps.py",
        ".flatten(1).norm(dim=1)",
        ".flatten(1).square().sum(1)",
        POSTERIORS,
    ),
    Mutation(
        "particles that are drawn anew keep their weights",
        "inverse/twisted_smc.py",
        "log_weights = torch.where(self._is_degenerate(log_weights), 0.0, log_weights)",
        "pass",
        MIXTURES,
    ),
    Mutation(
        "particles that are never weighted",
        "inverse/twisted_smc.py",
        "(log_ratio + log_guess - before)",
        "0 * (log_ratio + log_guess - before)",
        MIXTURES,
    ),
    Mutation(
        "weights without the proposal's own density",
        "inverse/twisted_smc.py",
        "(log_ratio + log_guess - before)",
        "(log_guess - before)",
        MIXTURES,
    ),
    Mutation(
        "the way back without noise in RePaint",
        "inverse/repaint.py",
        "x = x + math.sqrt(levels[i] ** 2 - levels[before] ** 2) * normal_like(x, generator)",
        "pass",
        MIXTURES,
    ),
    Mutation(
        "a sketch that is not noised",
        "inverse/sdedit.py",
        "noised = self.picture.to(x) + self.noise_level * z",
        "noised = self.picture.to(x)",
        MIXTURES,
    ),
    Mutation(
        "answers in the order of others",
        "inverse/restore.py",
        "(torch.arange(total) % len(measured))",
        "(torch.arange(total) // num)",
        "tests/inverse/test_restore.py",
    ),
    Mutation(
        "the rank of the truth without a lot for ties",
        "metrics/restoration.py",
        "torch.where(is_tie, lots, drawn < own)",
        "(drawn < own)",
        RESTORATION,
    ),
    Mutation(
        "agreement by the noise's standard deviation, unsquared",
        "metrics/restoration.py",
        "residual.square().sum(1) / noise_std**2",
        "residual.square().sum(1) / noise_std",
        RESTORATION,
    ),
    Mutation(
        "black in a mask's picture is what is missing",
        "commands/restoration_tasks.py",
        "missing = next(iter(picture.values()))[0] > 0",
        "missing = next(iter(picture.values()))[0] <= 0",
        "tests/commands/test_restore_command.py",
    ),
    Mutation(
        "the measurement's noise is that of the first answers' starts",
        "commands/restore.py",
        "derive_seed(options.seed, 1, Stream.MEASUREMENT)",
        "options.seed",
        f"{RESTORE_COMMAND}::{NOTHING_TO_DO}",
    ),
    Mutation(
        "the random mask is drawn as the first answers' starts are",
        "commands/restore.py",
        "derive_seed(options.seed, 0, Stream.MEASUREMENT)",
        "options.seed",
        f"{RESTORE_COMMAND}::{NOTHING_TO_DO}",
    ),
    Mutation(
        "answers' classes are compared with another picture's",
        "commands/restoration_scores.py",
        "(len(answers), -1)) == of_truth)",
        "(len(answers), -1)) == of_truth.roll(-1))",
        "tests/commands/test_restoration_scores.py",
    ),
    Mutation(
        "one answer passes for the mean of all",
        "commands/restoration_scores.py",
        "psnr(answers.mean(0), truth)",
        "psnr(answers[0], truth)",
        "tests/commands/test_restoration_scores.py",
    ),
    Mutation(
        "doubt between black and white is shown in grey",
        "inverse/strips.py",
        "2 * answers.std(0, correction=0) - 1",
        "answers.std(0, correction=0) - 1",
        "tests/inverse/test_strips.py",
    ),
    Mutation(
        "stop is not heard",
        "demo/tasks.py",
        "if self.stop.is_set():",
        "if False:",
        "tests/demo/test_tasks.py",
    ),
    Mutation(
        "the page hides what is known",
        "demo/tasks.py",
        "operator = Inpainting(~missing)",
        "operator = Inpainting(missing)",
        "tests/demo/test_tasks.py",
    ),
    Mutation(
        "the demo's page asks another machine for its fonts",
        "demo/page.py",
        "gr.themes.Default(font=fonts, font_mono=mono)",
        'gr.themes.Default(font=[gr.themes.GoogleFont("Inter")], font_mono=mono)',
        f"{DEMO_IN_BROWSER}::test_it_draws",
    ),
    Mutation(
        "the demo tells gradio's makers that it is used",
        "demo/page.py",
        "analytics_enabled=False",
        "analytics_enabled=True",
        f"{DEMO_IN_BROWSER}::test_it_draws",
    ),
    Mutation(
        "stop in one reader's page of the demo ends another's drawing",
        "demo/tasks.py",
        "if owner == self.owner:",
        "if True:",
        f"{DEMO}::test_nobody_stops_what_is_another_ones",
    ),
    Mutation(
        "the next drawing of the demo sets one going again that was stopped",
        "demo/tasks.py",
        "        self._stopped = threading.Event()\n        return",
        "        self._stopped.clear()\n        return",
        f"{DEMO}::test_what_is_stopped_stays_so_though_the_next_has_begun",
    ),
    Mutation(
        "what the demo is given transparent is black",
        "demo/tasks.py",
        'middle.size, "white"), middle)',
        'middle.size, "black"), middle)',
        f"{DEMO}::test_odd_pictures_are_pictures",
    ),
]


def run_tests(folder: Path, selections: list[str]) -> tuple[int, str]:
    """Pytest's exit code, and the first test that failed or the last line of the output."""
    environment = os.environ | {
        "PYTHONPATH": str(folder),
        "PYTHONDONTWRITEBYTECODE": "1",  # a stale cache of the text before would hide the mistake
        "OMP_NUM_THREADS": "1",
    }
    # in one process: with several, stopping at the first failure has an exit code of its own
    command = [sys.executable, "-m", "pytest", "-n0", "-x", "-q", "--tb=no", "-p", "no:cacheprovider", *selections]
    result = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    lines = result.stdout.strip().splitlines() or [result.stderr.strip()]
    failed = [line.partition(" ")[2].partition(" - ")[0] for line in lines if line.startswith(("FAILED ", "ERROR "))]
    return result.returncode, failed[0] if failed else lines[-1]


def check_copy(folder: Path) -> None:
    """The tests must import the copy, not an installed package."""
    environment = os.environ | {"PYTHONPATH": str(folder)}
    code = "import diffusion_lightning; print(diffusion_lightning.__file__)"
    result = subprocess.run([sys.executable, "-c", code], cwd=folder, env=environment, capture_output=True, text=True)
    if not result.stdout.startswith(str(folder)):
        sys.exit(f"the tests would import {result.stdout or result.stderr}, not the copy in {folder}")


def main(words: list[str]) -> int:
    chosen = [m for m in MUTATIONS if all(word.lower() in m.name.lower() for word in words)]
    if not chosen:
        sys.exit(f"no mistake is called {' '.join(words)!r}")
    bad = 0
    width = max(len(m.name) for m in chosen)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary).resolve()
        ignored = shutil.ignore_patterns("__pycache__")
        for part in ("diffusion_lightning", "tests", "configs", "benchmarks"):
            shutil.copytree(ROOT / part, folder / part, ignore=ignored)
        shutil.copy(ROOT / "pyproject.toml", folder)
        check_copy(folder)

        code, outcome = run_tests(folder, sorted({m.tests for m in chosen}))
        print(f"{'(no mistake)':{width}}  {outcome}", flush=True)
        if code != 0:
            return 1
        for mutation in chosen:
            start = time.perf_counter()
            path = folder / "diffusion_lightning" / mutation.file
            text = path.read_text(encoding="utf-8")
            occurrences = text.count(mutation.old)
            if occurrences != 1:
                verdict = f"OUT OF DATE: the text occurs {occurrences} times in {mutation.file}"
                bad += 1
            else:
                path.write_text(text.replace(mutation.old, mutation.new), encoding="utf-8")
                code, outcome = run_tests(folder, [mutation.tests])
                path.write_text(text, encoding="utf-8")
                bad += code != 1  # 1: tests were run and failed; others: none were, or nothing failed
                verdict = {0: "SURVIVED", 1: f"caught by {outcome}"}.get(code, f"NOT TESTED: {outcome}")
            print(f"{mutation.name:{width}}  {verdict}  ({time.perf_counter() - start:.1f} s)", flush=True)
    print(f"{len(chosen) - bad} of {len(chosen)} mistakes caught")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
