"""Every operator: its adjoint, its pseudo-inverse, what it solves, and what it says of shapes that do not fit."""

import pytest
import torch
from torch import Tensor

from diffusion_lightning import (
    Clip,
    Crop,
    Downsample,
    Fourier,
    Function,
    GaussianBlur,
    Grayscale,
    Inpainting,
    Linear,
    MotionBlur,
    Operator,
    Quantize,
)

SHAPE = (2, 3, 12, 9)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def transposed(x: Tensor) -> Tensor:
    return 2 * x.transpose(-1, -2)[..., :4]


LINEAR: dict[str, Operator] = {
    "inpainting": Inpainting(random(12, 9) > 0),
    "inpainting of channels": Inpainting(random(3, 12, 9) > 0),
    "crop": Crop((5, 4), (12, 9), offset=(3, 5)),
    "grayscale": Grayscale(),
    "downsample": Downsample(3),
    "gaussian blur": GaussianBlur(0.8),
    "motion blur": MotionBlur(4.0, angle=30.0),
    "fourier": Fourier(random(12, 9, seed=1) > 0),
    "function": Function(transposed, is_linear=True, shape=(3, 12, 9)),
}


@pytest.mark.parametrize("name", LINEAR)
def test_the_adjoint_is_one(name: str) -> None:
    operator = LINEAR[name]
    x = random(*SHAPE)
    y = random(*operator(x).shape, seed=2)
    there, back = (operator(x) * y).flatten(1).sum(1), (x * operator.adjoint(y)).flatten(1).sum(1)
    torch.testing.assert_close(there, back, rtol=1e-10, atol=1e-10)
    assert operator.shape_of(y) == SHAPE[1:]


@pytest.mark.parametrize("name", LINEAR)
def test_the_pseudo_inverse_is_one(name: str) -> None:
    """A A⁺ A = A, and A⁺A is a projection that is its own adjoint: two of Penrose's four say which inverse it is."""
    operator = LINEAR[name]
    x, other = random(*SHAPE), random(*SHAPE, seed=4)
    back = operator.pseudo_inverse(operator(x))
    torch.testing.assert_close(operator(back), operator(x), rtol=1e-5, atol=1e-5)
    projected = operator.pseudo_inverse(operator(other))
    torch.testing.assert_close(
        (back * other).flatten(1).sum(1), (x * projected).flatten(1).sum(1), rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("name", LINEAR)
def test_the_system_is_solved(name: str) -> None:
    operator = LINEAR[name]
    b = operator(random(*SHAPE, seed=5)) + random(*operator(random(*SHAPE)).shape, seed=6)
    scale = torch.tensor([0.3, 2.0], dtype=torch.float64)[:, None, None, None]
    v = operator.solve(b, scale, 0.04)
    torch.testing.assert_close(scale * operator(operator.adjoint(v)) + 0.04 * v, b, rtol=1e-4, atol=1e-4)


def test_a_matrix_is_an_operator_on_points() -> None:
    matrix = random(2, 5)
    operator = Linear(matrix)
    x = random(4, 5, seed=1)
    torch.testing.assert_close(operator(x), x @ matrix.T)
    torch.testing.assert_close(operator.pseudo_inverse(operator(x)), x @ (torch.linalg.pinv(matrix) @ matrix).T)


def test_what_each_one_does() -> None:
    x = random(1, 3, 4, 4)
    assert torch.equal(Downsample(2)(x)[0, 0, 0, 0], x[0, 0, :2, :2].mean())
    assert torch.equal(Crop((2, 2), (4, 4))(x), x[..., 1:3, 1:3])
    torch.testing.assert_close(Grayscale()(torch.ones(1, 3, 2, 2)), torch.ones(1, 1, 2, 2))
    ramp = torch.linspace(-1.5, 1.5, 7)
    assert Quantize(3)(ramp).unique().tolist() == [-1, 0, 1]
    assert Clip(-0.5, 0.5)(ramp).abs().max() == 0.5
    every = Fourier(torch.ones(4, 4))
    assert torch.allclose(every(x).square().sum(), x.square().sum())


def test_blurs_have_their_kernels_moments() -> None:
    """A blurred point: of sum 1, centred, of the variance that was asked for along each axis."""
    point = torch.zeros(1, 1, 31, 31, dtype=torch.float64)
    point[..., 15, 15] = 1
    places = torch.arange(31, dtype=torch.float64) - 15
    for operator, rows, columns in (
        (GaussianBlur(2.0), 4.0, 4.0),
        (MotionBlur(9.0, angle=0.0), 0.0, (9**2 - 1) / 12),
        (MotionBlur(9.0, angle=90.0), (9**2 - 1) / 12, 0.0),
    ):
        spread = operator(point)[0, 0]
        assert spread.sum().item() == pytest.approx(1)
        for axis, variance in ((1, rows), (0, columns)):
            mass = spread.sum(axis)
            assert (mass * places).sum().item() == pytest.approx(0, abs=1e-9)
            assert (mass * places**2).sum().item() == pytest.approx(variance, rel=0.06, abs=1e-9)


def test_motion_goes_counter_clockwise() -> None:
    point = torch.zeros(1, 1, 9, 9)
    point[..., 4, 4] = 1
    spread = MotionBlur(5.0, angle=45.0)(point)[0, 0]
    assert spread[3, 5] > 0.1 > spread[5, 5].abs()  # up and to the right


def test_a_function_by_its_path() -> None:
    assert torch.equal(Function("torch.abs")(torch.tensor([-1.0])), torch.ones(1))
    with pytest.raises(ValueError, match=r"function='torch.nothing': cannot be imported"):
        Function("torch.nothing")
    with pytest.raises(ValueError, match=r"function='torch.pi': is float, no function"):
        Function("torch.pi")
    with pytest.raises(ValueError, match="shape: must be given for a linear function"):
        Function(torch.abs, is_linear=True)


def test_measurements_have_their_noise() -> None:
    y = Inpainting(torch.ones(100, 100)).measure(torch.zeros(1, 1, 100, 100), 0.3, torch.Generator().manual_seed(0))
    assert y.std().item() == pytest.approx(0.3, rel=0.02)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Inpainting(torch.tensor([0.5, 1.0])), "mask: must be true"),
        (
            lambda: Inpainting(torch.ones(5, 5))(torch.zeros(1, 1, 4, 4)),
            r"mask: has shape \(5, 5\), examples \(1, 4, 4\)",
        ),
        (lambda: Crop((5, 5), (4, 4)), "the window must lie in the picture"),
        (lambda: Crop((2, 2), (4, 4))(torch.zeros(1, 1, 5, 4)), "must be of 4 × 4 pixels"),
        (lambda: Grayscale()(torch.zeros(1, 1, 4, 4)), "Grayscale is of pictures of 3 channels"),
        (lambda: Grayscale().adjoint(torch.zeros(1, 3, 4, 4)), "Grayscale makes pictures of 1 channel"),
        (lambda: Downsample(3)(torch.zeros(1, 1, 4, 4)), "factor=3: must divide the height and the width"),
        (lambda: Downsample(0), "factor=0: must be a whole number"),
        (lambda: GaussianBlur(0.0), "sigma=0.0: must be above zero"),
        (lambda: GaussianBlur(9.0)(torch.zeros(1, 1, 8, 8)), "larger than pictures of 8 × 8: blur less"),
        (lambda: MotionBlur(0.5), "length=0.5"),
        (lambda: Fourier(torch.ones(4)), r"mask: must be \(H, W\)"),
        (lambda: Fourier(torch.ones(4, 4))(torch.zeros(1, 1, 5, 4)), "must be of the pictures' height"),
        (lambda: Fourier(torch.ones(4, 4)).adjoint(torch.zeros(1, 1, 4, 4)), "has 1 channels"),
        (lambda: Quantize(1), "levels=1: must be"),
        (lambda: Clip(1.0, 0.0), "the first must be below the second"),
        (lambda: Clip().adjoint(torch.zeros(1, 1, 4, 4)), "Clip: is not linear, and has no adjoint"),
        (lambda: Linear(torch.zeros(3)), "matrix: has shape"),
        (lambda: Linear(torch.zeros(2, 3))(torch.zeros(1, 2)), r"x: has shape \(1, 2\): must be \(B, 3\)"),
    ],
)
def test_what_does_not_fit_is_told(make, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        make()


def test_noise_is_where_something_is_measured() -> None:
    half = Inpainting(torch.arange(4) < 2)
    y = half.measure(torch.zeros(3, 4), 1.0, torch.Generator().manual_seed(0))
    assert (y[:, :2] != 0).all()
    assert (y[:, 2:] == 0).all()
