"""What float32 is inside ``exact_float32``, and that nothing is left of it outside."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter

from diffusion_lightning.denoiser import NetworkDenoiser
from diffusion_lightning.floats import exact_float32, has_float64
from diffusion_lightning.likelihood import log_likelihood
from diffusion_lightning.metrics.features import DigitFeatures
from diffusion_lightning.networks import MLP
from diffusion_lightning.parameterization import NoisePrediction
from diffusion_lightning.samplers import Heun, ProbabilityFlowODE
from diffusion_lightning.sde import VPSDE

BACKENDS = torch.backends
HAS_NEWER = hasattr(BACKENDS.cudnn, "conv")
NEWER = [
    ("cuda.matmul", BACKENDS.cuda.matmul),
    *((f"cudnn.{name}", getattr(BACKENDS.cudnn, name, None)) for name in ("conv", "rnn")),
    *((f"mkldnn.{name}", getattr(BACKENDS.mkldnn, name, None)) for name in ("matmul", "conv", "rnn")),
]

OLDER = {
    "nothing": lambda: None,
    "high": lambda: torch.set_float32_matmul_precision("high"),
    "medium": lambda: torch.set_float32_matmul_precision("medium"),
    "matrix products": lambda: setattr(BACKENDS.cuda.matmul, "allow_tf32", True),
    "no convolutions": lambda: setattr(BACKENDS.cudnn, "allow_tf32", False),
}
SINGLE = {
    "all": lambda: setattr(BACKENDS, "fp32_precision", "tf32"),
    "single products": lambda: setattr(BACKENDS.cuda.matmul, "fp32_precision", "tf32"),
    "no single convolutions": lambda: setattr(BACKENDS.cudnn.conv, "fp32_precision", "ieee"),
    "bfloat16 of the CPU": lambda: setattr(BACKENDS.mkldnn.matmul, "fp32_precision", "bf16"),
    "both kinds": lambda: (
        torch.set_float32_matmul_precision("high"),
        setattr(BACKENDS.mkldnn.matmul, "fp32_precision", "bf16"),
    ),
}
WISHES = OLDER | (SINGLE if HAS_NEWER else {})


def settings() -> dict[str, Any]:
    """All that there are; the error where PyTorch has none for a mixture."""
    found: dict[str, Any] = {}
    for name, get in (
        ("precision", torch.get_float32_matmul_precision),
        ("products", lambda: BACKENDS.cuda.matmul.allow_tf32),
        ("convolutions", lambda: BACKENDS.cudnn.allow_tf32),
    ):
        try:
            found[name] = get()
        except RuntimeError:
            found[name] = "a mixture"
    if HAS_NEWER:
        found |= {name: place.fp32_precision for name, place in NEWER}
    return found


def is_exact() -> bool:
    if not HAS_NEWER:
        return not (BACKENDS.cuda.matmul.allow_tf32 or BACKENDS.cudnn.allow_tf32)
    return all(place.fp32_precision in ("ieee", "none") for _, place in NEWER)


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    yield
    if HAS_NEWER:
        BACKENDS.fp32_precision = "none"
        for _, place in NEWER:
            place.fp32_precision = "none"
    torch.set_float32_matmul_precision("highest")
    BACKENDS.cudnn.allow_tf32 = True


@pytest.mark.parametrize("wish", list(WISHES))
def test_all_is_exact_inside_and_as_it_was_outside(wish: str) -> None:
    WISHES[wish]()
    before = settings()
    with exact_float32():
        assert is_exact()
        assert settings()["products"] is False  # a compiler asks for it, and must get an answer
        with exact_float32():
            assert is_exact()
        assert is_exact()
    assert settings() == before

    @exact_float32()
    def fail() -> None:
        assert is_exact()
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert settings() == before


@pytest.mark.skipif(not HAS_NEWER, reason="PyTorch before 2.9 has no setting for all")
def test_what_follows_the_setting_for_all_goes_on_following_it() -> None:
    BACKENDS.fp32_precision = "tf32"
    with exact_float32():
        assert is_exact()
    BACKENDS.fp32_precision = "ieee"
    assert BACKENDS.cuda.matmul.fp32_precision == BACKENDS.mkldnn.conv.fp32_precision == "ieee"


class Spy(nn.Module):
    """A network that looks at the settings, forward and backward."""

    def __init__(self) -> None:
        super().__init__()
        self.network = MLP(2, (8,))
        self.seen: list[bool] = []

    def forward(self, x: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
        self.seen.append(is_exact())
        if x.requires_grad:
            x.register_hook(lambda _: self.seen.append(is_exact()))
        return self.network(x, t)


@pytest.mark.parametrize(
    "draw",
    [
        lambda denoiser: ProbabilityFlowODE()(denoiser, (2, 2)),
        lambda denoiser: ProbabilityFlowODE("rk4", steps=2)(denoiser, (2, 2)),
        lambda denoiser: log_likelihood(denoiser, torch.ones(2, 2)),
    ],
    ids=["adaptive", "fixed steps", "likelihood"],
)
def test_the_ode_and_the_likelihood_are_exact(draw: Callable[[Any], Any]) -> None:
    torch.set_float32_matmul_precision("high")
    before, spy = settings(), Spy()
    draw(NetworkDenoiser(spy, VPSDE(), NoisePrediction()))
    assert spy.seen
    assert all(spy.seen)
    assert settings() == before


def test_other_samplers_are_as_fast_as_is_allowed() -> None:
    spy = Spy()
    Heun(2)(NetworkDenoiser(spy, VPSDE(), NoisePrediction()), (2, 2))
    assert not any(spy.seen)


def test_features_are_exact() -> None:
    features, seen = DigitFeatures(), []
    for module in (features.classifier.body[0], features.classifier.head):
        module.register_forward_hook(lambda *_: seen.append(is_exact()))
    features.logits(features(torch.zeros(1, 1, 28, 28, dtype=torch.uint8)))
    assert seen == [True, True]
    assert not is_exact()


def test_a_compiled_network_is_compiled_again_where_products_were_not_exact() -> None:
    torch._dynamo.reset()
    counter, network = CompileCounter(), MLP(2, (8,))
    network.compile(backend=counter)
    denoiser, ode = NetworkDenoiser(network, VPSDE(), NoisePrediction()), ProbabilityFlowODE("euler", steps=3)
    x = torch.ones(2, 2)
    for wish, most in (("highest", 2), ("high", 3)):
        torch.set_float32_matmul_precision(wish)
        Heun(3)(denoiser, (2, 2), x_T=x)
        compiled = ode(denoiser, (2, 2), x_T=x)
        assert counter.frame_count <= most
    with torch.compiler.set_stance("force_eager"):
        torch.testing.assert_close(compiled, ode(denoiser, (2, 2), x_T=x))
    torch._dynamo.reset()


def test_apples_device_alone_has_no_float64() -> None:
    assert has_float64(torch.device("cpu"))
    assert has_float64(torch.device("cuda", 1))
    assert not has_float64(torch.device("mps"))
