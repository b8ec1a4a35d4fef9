"""What a chart shows: which metrics, at which places, in whose colours."""

import math
import re
import xml.etree.ElementTree as ElementTree
from dataclasses import replace

import pytest
from run_folders import course

from diffusion_lightning.report.curves import HEIGHT, KINDS, MOST_POINTS, WIDTH, Kind, Line, draw, groups, thin
from diffusion_lightning.report.run import Run

LINEAR = Kind("x")


def paths(svg: str, color: int) -> list[list[tuple[float, float]]]:
    """The corners of the lines of a colour in a chart, in the units of its SVG."""
    root = ElementTree.fromstring(svg.replace("xlink:href", "href"))
    drawn = [path for path in root.iter("path") if f"stroke: var(--line-{color})" in path.get("style", "")]
    lines = [re.findall(r"[ML] (\S+) (\S+)", path.get("d", "")) for path in drawn if path.get("clip-path")]
    return [[(float(x), float(y)) for x, y in line] for line in lines]


def test_few_values_stay_as_they_are():
    series = [(3 * i, float(i)) for i in range(MOST_POINTS)]
    assert thin(series) == series
    assert thin([]) == []


def test_of_many_values_the_means_of_neighbours_are_shown():
    count = 2 * MOST_POINTS + 2  # three each, for two would give one point too many; and one is left
    thinned = thin([(i, float(i * i)) for i in range(count)])
    assert len(thinned) == math.ceil(count / 3) <= MOST_POINTS
    assert thinned[0] == (1, pytest.approx((0 + 1 + 4) / 3))
    assert thinned[1] == (4, pytest.approx((9 + 16 + 25) / 3))
    last = range(3 * (count // 3), count)
    assert thinned[-1] == (round(sum(last) / len(last)), pytest.approx(sum(i * i for i in last) / len(last)))
    mean = sum(value * size for (_, value), size in zip(thinned, [3] * (count // 3) + [len(last)], strict=True)) / count
    assert mean == pytest.approx(sum(i * i for i in range(count)) / count)


@pytest.mark.parametrize("kind", [LINEAR, Kind("x", log_from=1.0), Kind("x", is_decay=True)])
def test_the_line_goes_through_the_points_that_one_can_point_at(kind):
    series = [(0, 0.91), (10, 0.99), (30, 0.995), (40, 0.95)]
    chart = draw("title", kind, [Line("a", 2, series)])
    (line,) = paths(chart.svg, 2)
    assert line == [pytest.approx(point[:2], abs=0.06) for point in chart.points[0]]
    assert [point[2:] for point in chart.points[0]] == [
        ("step 0", "0.91"),
        ("step 10", "0.99"),
        ("step 30", "0.995"),
        ("step 40", "0.95"),
    ]


def test_places_are_in_proportion():
    chart = draw("title", LINEAR, [Line("a", 0, [(0, 1.0), (10, 3.0), (40, 2.0)])])
    (x0, y0), (x1, y1), (x2, y2) = [point[:2] for point in chart.points[0]]
    assert (x1 - x0) / (x2 - x0) == pytest.approx(10 / 40, abs=1e-2)
    assert (y2 - y0) / (y1 - y0) == pytest.approx(1 / 2, abs=1e-2)
    assert 0 < x0 < x2 < WIDTH
    assert 0 < y1 < y0 < HEIGHT  # SVG counts from the top


def test_on_a_log_scale_ratios_are_in_proportion():
    chart = draw("title", LINEAR, [Line("a", 0, [(0, 100.0), (1, 10.0), (2, 0.1)])])
    y = [point[1] for point in chart.points[0]]
    assert chart.scale == "log scale"
    assert (y[1] - y[0]) / (y[2] - y[0]) == pytest.approx(1 / 3, abs=1e-2)


@pytest.mark.parametrize("values", [[1.0, 9.0], [0.0, 100.0], [-1.0, 100.0]])
def test_no_log_scale_without_need_or_with_what_is_not_positive(values):
    assert draw("title", LINEAR, [Line("a", 0, list(enumerate(values)))]).scale == ""


@pytest.mark.parametrize("value", [0.0, 0.9999, 1e-12, -5.0])
@pytest.mark.parametrize("kind", sorted({replace(kind, names="x", title="", unit="") for kind in KINDS}, key=str))
def test_one_value_alone_is_seen(kind, value):
    """Alone, and again the same."""
    for series in ([(9, value)], [(9, value), (19, value)]):
        chart = draw("title", kind, [Line("a", 0, series)])
        x, y, _, _ = chart.points[0][0]
        assert 0 < x < WIDTH
        assert 0 < y <= HEIGHT
        assert "<use" in chart.svg  # its dot


def test_what_is_not_finite_is_left_out_and_told():
    series = [(0, 1.0), (1, math.nan), (2, math.inf), (3, 2.0)]
    chart = draw("title", LINEAR, [Line("a", 0, series), Line("b", 1, [(i, 1.0) for i in range(MOST_POINTS + 1)])])
    assert [point[2] for point in chart.points[0]] == ["step 0", "step 3"]
    assert chart.note == "Each point is the mean of up to 2 values. 2 values that are not finite are left out."


def test_the_picture_takes_the_pages_colours_and_leaves_it_alone():
    svg = draw("title", LINEAR, [Line("a", 0, [(0, 1.0), (1, 2.0)]), Line("b", 9, [(0, 2.0)])], steps_of_epoch=1.0).svg
    assert set(re.findall(r"var\(--[\w-]+\)", svg)) == {"var(--line-0)", "var(--line-1)", "var(--soft)", "var(--rule)"}
    assert "#0a0b" not in svg
    assert "#0b0c" not in svg
    assert svg.startswith("<svg")
    assert "<style" not in svg
    assert "http" not in svg
    assert "<metadata" not in svg
    ids = re.findall(r' id="([^"]*)"', svg)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r"#(\w+)", svg)) <= set(ids)  # all that is referred to is there


def test_two_charts_have_no_id_in_common():
    first, second = (
        set(re.findall(r' id="([^"]*)"', draw(title, LINEAR, [Line("a", 0, [(0, 1.0), (1, 2.0)])]).svg))
        for title in ("first", "second")
    )
    assert first
    assert not first & second


# ---- what is shown together


def shown(*runs: Run) -> dict[str, list[str]]:
    return {
        title: [line.label for line in lines] for title, _, lines in groups(runs, ["one", "two", "three"][: len(runs)])
    }


def test_of_one_run_a_chart_for_each_kind():
    assert list(shown(Run(".", rows=course())).items()) == [
        ("Loss", ["train/loss_epoch", "train/loss_step", "val/loss"]),
        ("FID", ["fid/mnist@50"]),
        ("Norm of the gradient", ["train/gradient_norm"]),
        ("Learning rate", ["train/lr"]),
        ("Decay of the EMA weights", ["train/ema_decay"]),
        ("Throughput", ["perf/examples_per_s"]),
        ("Memory at its peak", ["perf/memory_gb"]),
    ]


def test_skipped_steps_and_the_share_of_one_process_are_shown_where_they_tell_something():
    rows = [{**row, "train/skipped_steps": 1.0, "perf/examples_per_s_rank": 99.0} for row in course()]
    found = shown(Run(".", rows=rows))
    assert found["Steps skipped so far"] == ["train/skipped_steps"]
    assert found["Throughput of the first process"] == ["perf/examples_per_s_rank"]


def test_other_metrics_by_their_family():
    rows = [{"step": 1, "sliced_wasserstein@10": 1.0, "fid/a@10": 2.0, "fid/b@10": 2.0, "lr-Adam": 0.1, "train/x": 3.0}]
    assert shown(Run(".", rows=rows)) == {
        "FID": ["fid/a@10", "fid/b@10"],
        "sliced wasserstein": ["sliced_wasserstein@10"],
        "Learning rate": ["lr-Adam"],
        "train": ["train/x"],
    }


def test_errors_of_others_have_no_chart_and_real_images_are_beside_samples():
    names = ("agreement/a@9", "agreement/a_real@20", "agreement_error/a@9", "mine_error/x")
    found = {"agreement": ["agreement/a@9", "agreement/a_real@20"], "mine error": ["mine_error/x"]}
    assert shown(Run(".", rows=[{"step": 1, **dict.fromkeys(names, 0.5)}])) == found


def test_of_several_runs_a_chart_for_each_metric_with_a_line_for_each_run_that_has_it():
    few = [{"step": 4, "val/loss": 1.0}, {"step": 9, "fid/mnist@50": math.nan}]
    found = shown(Run(".", rows=course()), Run(".", rows=few), Run("."))
    assert found["Loss: val/loss"] == ["one", "two"]
    assert found["Loss: train/loss_step"] == ["one"]
    assert found["FID"] == ["one"]
    colors = [line.color for title, _, lines in groups([Run("."), Run(".", rows=few)], ["a", "b"]) for line in lines]
    assert colors == [1]  # the second run's, whatever the first has


def test_nothing_logged_gives_no_chart():
    assert groups([Run(".")], ["one"]) == []
    assert groups([Run(".", rows=[{"step": 1, "val/loss": math.nan}])], ["one"]) == []
