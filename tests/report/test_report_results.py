"""Best and last values, which run is the best, and the seconds of each part, against hand-made rows."""

import math

import pytest
from run_folders import course

from diffusion_lightning.report.results import better, results, seconds_of_parts, winners
from diffusion_lightning.report.run import Run


def run_of(name: str, *values: float) -> Run:
    return Run(".", rows=[{"step": 10 * i, "epoch": i, name: value} for i, value in enumerate(values)])


def test_best_last_and_their_epochs():
    (result,) = results(run_of("fid/mnist@50", 9.0, 3.0, 3.0, 5.0)).values()
    assert (result.best, result.best_epoch, result.last, result.last_epoch) == (3.0, 1, 5.0, 3)
    assert (result.lowest, result.highest) == (3.0, 9.0)


def test_some_metrics_are_better_the_larger_they_are():
    (result,) = results(run_of("precision@50", 0.5, 0.9, 0.7)).values()
    assert (result.best, result.best_epoch) == (0.9, 1)


def test_of_others_nothing_is_called_best():
    (result,) = results(run_of("my/number", 0.5, 0.9, 0.7)).values()
    assert (result.best, result.best_epoch) == (None, None)
    assert (result.last, result.lowest, result.highest) == (0.7, 0.5, 0.9)


def test_what_is_not_finite_is_neither_best_nor_last():
    (result,) = results(run_of("val/loss", math.nan, 4.0, -math.inf, 5.0, math.nan)).values()
    assert (result.best, result.best_epoch, result.last, result.last_epoch) == (4.0, 1, 5.0, 3)
    assert results(run_of("val/loss", math.nan, math.inf)) == {}


def test_without_epochs_there_is_none():
    (result,) = results(Run(".", rows=[{"step": 3, "val/loss": 1.0}])).values()
    assert (result.best, result.best_epoch, result.last_epoch) == (1.0, None, None)


def test_the_course_of_training_is_no_result():
    assert list(results(Run(".", rows=course()))) == ["fid/mnist@50", "train/loss_epoch", "val/loss"]


def test_the_error_of_another_is_no_result():
    rows = [{"step": 1, "agreement/a@9": 0.5, "agreement_error/a@9": 0.1, "own_error/x": 1.0}]
    assert list(results(Run(".", rows=rows))) == ["agreement/a@9", "own_error/x"]


@pytest.mark.parametrize(
    ("metric", "sign"),
    [
        *(("val/loss", -1), ("fid/mnist@1000", -1), ("sliced_wasserstein@1000", -1)),
        *(("recall", 1), ("agreement/mnist@1000", 1), ("legible/mnist@1000", 1), ("glossy", 0), ("x", 0)),
    ],
)
def test_which_way_is_better(metric, sign):
    assert better(metric) == sign


def test_the_best_of_several_runs():
    assert winners("val/loss", [3.0, None, 2.0, 2.0]) == [False, False, True, True]
    assert winners("fid/mnist@9", [math.nan, 3.0, 2.0]) == [False, False, True]
    assert winners("fid/mnist@9", [math.nan, 2.0]) == [False, False]
    assert winners("precision", [0.3, 0.2]) == [True, False]
    assert winners("val/loss", [3.0, None]) == [False, False]
    assert winners("val/loss", [3.0, 3.0]) == [False, False]
    assert winners("x", [3.0, 2.0]) == [False, False]


def test_the_seconds_are_those_of_all_epochs():
    assert seconds_of_parts(Run(".", rows=course(epochs=4))) == {
        "data": 2.0,
        "step": 24.0,
        "sampling": 4.0,
        "evaluation": 8.0,
        "checkpoint": 1.0,
        "other": 1.0,
    }
    assert seconds_of_parts(Run(".")) == {}
