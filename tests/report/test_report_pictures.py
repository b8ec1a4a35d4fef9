"""Which pictures the page holds, which of them each position of a slider shows, and that they are the files' bytes."""

import base64
import itertools

import pytest
import torch
from run_folders import animation

from diffusion_lightning.images import write_png
from diffusion_lightning.report.page import render
from diffusion_lightning.report.pictures import MOST_EPOCHS, embed, figures, spread
from diffusion_lightning.report.run import read_run


def test_few_are_all_kept():
    assert spread([]) == []
    assert spread(range(0, 2 * MOST_EPOCHS, 2)) == list(range(0, 2 * MOST_EPOCHS, 2))


@pytest.mark.parametrize("count", [MOST_EPOCHS + 1, 119, 200, 10_000])
def test_of_many_some_evenly_spread_with_the_first_and_the_last(count):
    kept = spread(range(count))
    assert len(kept) == MOST_EPOCHS
    assert (kept[0], kept[-1]) == (0, count - 1)
    gaps = {after - before for before, after in itertools.pairwise(kept)}
    assert max(gaps) - min(gaps) <= 1
    assert min(gaps) >= 1


def test_a_picture_is_the_files_own_bytes(make_run):
    path = make_run() / "samples" / "epoch=0001.png"
    picture = embed(path)
    kind, _, content = picture.uri.partition(",")
    assert kind == "data:image/png;base64"
    assert base64.b64decode(content) == path.read_bytes()
    assert (picture.width, picture.height) == (24, 16)


def test_a_picture_shows_what_its_file_says(make_run):
    run = make_run(pictures={"samples": [0, 1]})
    path = run / "samples" / "epoch=0001.png"
    write_png(torch.zeros(3, 4, 4, dtype=torch.uint8), path, caption="classes in turn: <cat> & dog")
    assert embed(path).caption == "classes in turn: <cat> & dog"
    ((pane,),) = [figure.panes for figure in figures([read_run(run)])]
    assert pane.caption == embed(path).caption
    assert '<p class="small">classes in turn: &lt;cat&gt; &amp; dog</p>' in render([read_run(run)])


def test_an_animation_likewise(tmp_path):
    path = tmp_path / "x" / "epoch=0001.gif"
    animation(path, [(0, 0, 0), (90, 90, 90), (255, 255, 255)])
    kind, _, content = embed(path).uri.partition(",")
    assert kind == "data:image/gif;base64"
    assert base64.b64decode(content) == path.read_bytes()


@pytest.mark.parametrize("name", ["epoch=0001.png", "epoch=0001.gif"])
def test_what_is_not_whole_is_not_shown(tmp_path, make_run, name):
    folder = make_run(pictures={"samples": [0, 1, 2]})
    animation(folder / "samples" / "epoch=0001.gif", [(9, 9, 9), (0, 0, 200)])
    path = folder / "samples" / name
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert embed(path) is None
    ((pane,),) = [figure.panes for figure in figures([read_run(folder)])]
    assert pane.flaw == f"Not whole, and left out: {name}."
    if path.suffix == ".png":
        assert list(pane.pictures) == [0, 2]
        assert pane.shown == [0, 0, 2]
    else:
        assert pane.animation is None
        assert pane.shown == [0, 1, 2]


def test_other_files_are_no_pictures(tmp_path):
    (tmp_path / "x.png").write_text("<svg onload='alert(1)'>")
    assert embed(tmp_path / "x.png") is None
    assert embed(tmp_path / "nothing.png") is None


def test_samples_come_first_and_animations_stand_beside_their_pictures(make_run):
    folder = make_run(pictures={"denoising": [2], "a": [0], "samples": [1]})
    for epoch in (1, 2):
        animation(folder / "denoising" / f"epoch={epoch:04d}.gif", [(epoch, 0, 0), (0, 0, 0)])
    animation(folder / "moving" / "epoch=0000.gif", [(7, 0, 0), (0, 0, 0)])
    found = {figure.name: figure for figure in figures([read_run(folder)])}
    assert list(found) == ["samples", "a", "denoising", "moving"]
    (pane,) = found["denoising"].panes
    assert list(pane.pictures) == [2]
    epoch, newest = pane.animation
    assert epoch == 2
    assert newest == embed(folder / "denoising" / "epoch=0002.gif")
    (alone,) = found["moving"].panes
    assert (alone.pictures, found["moving"].epochs, alone.animation[0]) == ({}, [], 0)


def test_a_run_shows_its_nearest_earlier_picture(make_run):
    first = read_run(make_run("x/version_0", pictures={"samples": [0, 2, 4]}))
    second = read_run(make_run("x/version_1", pictures={"samples": [1, 3]}, hue=200))
    third = read_run(make_run("x/version_2", pictures={"other": [0]}))
    samples, other = sorted(figures([first, second, third]), key=lambda figure: figure.name, reverse=True)
    assert samples.epochs == [0, 1, 2, 3, 4]
    assert [pane.run for pane in samples.panes] == [0, 1]
    assert samples.panes[0].shown == [0, 0, 2, 2, 4]
    assert samples.panes[1].shown == [None, 1, 1, 3, 3]
    assert [pane.run for pane in other.panes] == [2]


def test_a_long_run_has_sixty(make_run):
    ticks = []
    (figure,) = figures([read_run(make_run(pictures={"samples": range(150)}))], lambda: ticks.append(None))
    assert (len(figure.epochs), figure.found) == (60, 150)
    assert figure.epochs == spread(range(150))
    (pane,) = figure.panes
    assert list(pane.pictures) == pane.shown == figure.epochs
    assert len(ticks) == 60


def test_the_last_picture_of_a_shorter_run_is_among_them(make_run):
    long = read_run(make_run("x/version_0", pictures={"samples": range(0, 200)}))
    short = read_run(make_run("x/version_1", pictures={"samples": range(0, 98)}))
    (figure,) = figures([long, short])
    assert len(figure.epochs) == 60
    assert figure.panes[1].shown[-1] == 97
    assert max(figure.panes[1].pictures) == 97
