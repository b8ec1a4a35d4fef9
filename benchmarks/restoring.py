"""Held-out digits whose lower half is filled in by every method: is it the right digit, and is the doubt the right one?

    python benchmarks/restoring.py runs/mnist --root data

The model is a trained one of ``configs/mnist.yaml``, which is not told the class; the digits are drawn at random from
each class of MNIST's test set. The upper half is measured with noise. A classifier reads the answers' digits, and the
truth is ranked among the answers along random directions: as often at each place, if they are draws of the posterior.
Beside the methods stand pictures that the model draws without looking, whose digits are right by chance, and what exact
draws would come to.
"""

import argparse
from pathlib import Path
from typing import Any

import torch
from results import RESULTS, machine, read, table, write
from torch import Tensor, nn

from diffusion_lightning import MNIST, Inpainting, restore
from diffusion_lightning.commands.run_folder import find_checkpoint
from diffusion_lightning.data.tensor_images import normalize
from diffusion_lightning.images import to_uint8
from diffusion_lightning.inverse import METHODS
from diffusion_lightning.inverse.masks import missing_pixels
from diffusion_lightning.inverse.restore import STEPS
from diffusion_lightning.metrics.features import build_features
from diffusion_lightning.metrics.restoration import CONFIDENCE, STATISTICS, agreeing, calibration_error, psnr, ranks
from diffusion_lightning.randomness import draw_some
from diffusion_lightning.samplers import DPMSolverPlusPlus
from diffusion_lightning.training.trained import TrainedModel

NAME, NOISE, UNSEEN = "restoring", 0.05, "none: drawn without looking"

TITLES = (
    "method",
    "right digit",
    "PSNR, dB",
    "of the mean",
    "residual",
    "agree",
    "calibration error",
    "evaluations",
)


class Counter:
    """Counts what a network is asked: examples forward, and those that gradients are taken back through."""

    def __init__(self, network: nn.Module) -> None:
        self.evaluations = 0
        network.register_forward_hook(lambda _, given, made: self.count(made))

    def count(self, made: Tensor) -> None:
        self.evaluations += len(made)
        if made.requires_grad:
            made.register_hook(self.count_back)

    def count_back(self, gradient: Tensor) -> None:
        self.evaluations += len(gradient)


def digits(root: str, of_each: int) -> tuple[Tensor, Tensor]:
    """Some of each class that training has not seen, drawn at random, in [-1, 1], and their classes."""
    images = MNIST(root).load_images()[1]
    of_classes = ((images.labels == digit).nonzero()[:, 0] for digit in range(10))
    chosen = torch.cat([places[draw_some(of_each, len(places), seed=0)] for places in of_classes])
    return normalize(images.images[chosen]), images.labels[chosen]


def scores(answers: Tensor, y: Tensor, truth: Tensor, labels: Tensor, operator: Inpainting) -> dict[str, Any]:
    """What the answers, ``(num, B, …)``, are worth."""
    num, flat = len(answers), answers.flatten(0, 1)
    judge = build_features("digits")[1]
    distance = operator.measured(y - answers).square().flatten(2).sum(2) / NOISE**2
    shown = judge.logits(judge(to_uint8(flat))).argmax(1).unflatten(0, (num, -1))
    places = ranks(answers, truth)
    return {
        "right digit": (shown == labels).double().mean().item(),
        "its error": (shown == labels).double().mean(0).std().item() / len(truth) ** 0.5,
        "psnr": psnr(flat, truth.repeat(num, 1, 1, 1)).mean().item(),
        "psnr_of_mean": psnr(answers.mean(0), truth).mean().item(),
        "residual": distance.mean().item() / operator.measured(torch.ones_like(truth[:1])).sum().item(),
        "agree": agreeing(flat, y.repeat(num, 1, 1, 1), operator, NOISE).double().mean().item(),
        "calibration_error": calibration_error(places, num),
        "ranks": torch.bincount(places.flatten(), minlength=num + 1).tolist(),
    }


def error_of_exact(num: int, pictures: int) -> float:
    """The calibration error that one in twenty sets of exact draws would exceed, were each picture ranked but once."""
    places = torch.randint(num + 1, (2000, pictures), generator=torch.Generator().manual_seed(0))
    return torch.tensor([calibration_error(each, num) for each in places]).quantile(0.95).item()


def page(results: dict[str, Any]) -> str:
    """The results as Markdown."""
    exact, shares = results["exact"], results["methods"]
    rows: list[list[str]] = [
        [
            name,
            f"{found['right digit']:.0%} ± {found['its error']:.0%}",
            f"{found['psnr']:.1f}",
            f"{found['psnr_of_mean']:.1f}",
            f"{found['residual']:.2f}",
            f"{found['agree']:.0%}",
            f"{found['calibration_error']:.3f}",
            f"{found['evaluations']:.0f}",
        ]
        for name, found in shares.items()
    ]
    rows.append(["exact draws", "", "", "", "1.00", f"{CONFIDENCE:.0%}", f"below {exact:.3f}", ""])
    return "\n".join(
        [
            "# Restoring: held-out digits whose lower half is filled in",
            "",
            f"{results['pictures']} held-out digits of which the upper half is known, with noise of σ_y = {NOISE}; "
            f"{results['num']} answers to each by a model of ten minutes' training that is not told the class; {STEPS} "
            "steps. Any one guess is right for one digit in ten. The PSNR of the best guess without a measurement, the "
            f"mean of what the model draws, is {shares[UNSEEN]['psnr_of_mean']:.1f} dB.",
            "",
            table(TITLES, rows),
            "",
            "*Right digit*: the classifier reads the truth's class in the answer, ± the standard error over digits. "
            "*Residual*: the mean of "
            "‖y − A(x)‖²/σ_y² over the number of known pixels. *Agree*: the share of answers of which it lies in the "
            "middle 99 % of what the noise alone would make. *Calibration error*: the largest distance of the ranks' "
            "distribution from a uniform one. *Evaluations*: forward passes and vector–Jacobian products for an "
            "answer, counted at the network.",
            "",
            "![How often the truth has each rank among the answers](restoring.png)",
            "",
            f"The rank of the truth among {results['num']} answers along {STATISTICS} random directions of each "
            "picture. Answers too alike put it at the ends, answers too unlike in the middle, and answers that are "
            "drawn from the posterior anywhere. The band is where 95 % of each bar of exact draws would be. Uniform "
            "ranks alone say little: pictures drawn without looking have them, too.",
            "",
            f"`python benchmarks/restoring.py`. {results['machine']}.",
        ]
    )


def histograms(results: dict[str, Any], path: Path) -> None:
    """The ranks of each method beside each other."""
    from matplotlib.figure import Figure
    from scipy.stats import binom

    num, pictures = results["num"], results["pictures"]
    low, high = (bound / pictures for bound in binom.interval(0.95, pictures, 1 / (num + 1)))
    figure = Figure(figsize=(9, 4), layout="constrained")
    panels = figure.subplots(2, 4, sharex=True, sharey=True).flatten()
    for panel in panels[len(results["methods"]) :]:
        panel.set_axis_off()
    for panel, (name, found) in zip(panels, results["methods"].items(), strict=False):
        counts = torch.tensor(found["ranks"]).double()
        panel.bar(range(num + 1), (counts / counts.sum()).tolist(), color="tab:blue")
        panel.axhspan(low, high, color="tab:gray", alpha=0.3)
        panel.axhline(1 / (num + 1), color="black", linewidth=0.8)
        panel.set_title(name, fontsize=9)
        panel.set_xticks(range(num + 1))
    figure.supxlabel(f"rank of the truth among {num} answers", fontsize=9)
    figure.savefig(path, dpi=100)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model", help="of configs/mnist.yaml: a run's folder or a checkpoint")
    parser.add_argument("--root", default="data", help="where MNIST lies")
    parser.add_argument("--of_each", type=int, default=10, help="digits of each class")
    parser.add_argument("--num", type=int, default=8, help="answers to each")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=[*METHODS], help="those measured anew")
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()

    denoiser = TrainedModel.load(find_checkpoint(options.model)).denoiser
    truth, labels = digits(options.root, options.of_each)
    operator = Inpainting(~missing_pixels("bottom", (28, 28)))
    y = operator.measure(truth, NOISE, torch.Generator().manual_seed(0))
    results: dict[str, Any] = {
        "pictures": len(truth),
        "num": options.num,
        "exact": error_of_exact(options.num, len(truth)),
        "machine": machine(),
    }
    before = read(NAME, options.results)
    is_same = all(before.get(key) == results[key] for key in ("pictures", "num"))
    found: dict[str, Any] = dict(before["methods"]) if is_same else {}
    counter = Counter(denoiser.network)
    if UNSEEN not in found:
        shape = (options.num * len(truth), *truth.shape[1:])
        drawn = DPMSolverPlusPlus(STEPS)(denoiser, shape, generator=torch.Generator().manual_seed(1), progress=True)
        found[UNSEEN] = scores(drawn.unflatten(0, (options.num, -1)), y, truth, labels, operator)
        # of all that was drawn, and not of eight at a time
        found[UNSEEN]["psnr_of_mean"] = psnr(drawn.mean(0).expand_as(truth), truth).mean().item()
        found[UNSEEN]["evaluations"] = counter.evaluations / len(drawn)
    for method in options.methods:
        counter.evaluations = 0
        generator = torch.Generator().manual_seed(1)
        answers = restore(
            denoiser, y, operator, method, options.num, noise_std=NOISE, generator=generator, progress=True
        )
        found[method] = scores(answers, y, truth, labels, operator)
        found[method]["evaluations"] = counter.evaluations / (options.num * len(truth))
        results["methods"] = {name: found[name] for name in (UNSEEN, *METHODS) if name in found}
        write(NAME, results, page(results), options.results)
    histograms(results, options.results / f"{NAME}.png")


if __name__ == "__main__":
    main()
