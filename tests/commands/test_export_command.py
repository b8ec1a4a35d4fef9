"""`lightning export`: whole folders with the EMA weights, and mistakes in one line."""

import sys
from functools import partial

import onnxruntime
import pytest
import torch
import yaml
from diffusers import DDIMPipeline

import diffusion_lightning
from diffusion_lightning import MLP, ScoreModule, UNet, cli, export_command, load_denoiser, load_sampler
from diffusion_lightning.training.recipe import describe

FORMATS = ("safetensors", "torch_export", "onnx", "diffusers")


@pytest.fixture
def checkpoint(tmp_path, make_trainer, make_module, make_data):
    """Its path, and its module in evaluation with the EMA weights, which are far from the last ones."""
    network = UNet(channels=(4,), num_res_blocks=1, embed_dim=8, middle_attention=False, patch_size=4, num_classes=10)
    for weight in network.parameters():
        torch.nn.init.normal_(weight, std=0.3)
    module = make_module(network=network, ema_decay=0.9, optimizer=partial(torch.optim.SGD, lr=0.1))
    trainer = make_trainer()
    trainer.fit(module, datamodule=make_data())
    trainer.save_checkpoint(tmp_path / "x.ckpt")
    module = ScoreModule.load_from_checkpoint(tmp_path / "x.ckpt")
    x, t = torch.randn(5, 1, 28, 28), torch.full((5,), 0.7)
    labels = torch.arange(5)
    with torch.no_grad():
        last = module.denoiser.denoise(x, t, labels=labels)
        with module.ema_weights():
            expected = module.denoiser.denoise(x, t, labels=labels)
    assert (last - expected).abs().max() > 1e-3
    return tmp_path / "x.ckpt", module, (x, t, labels), expected


def test_a_checkpoint_s_own_path_gives_the_same_denoiser(checkpoint):
    path, _, (x, t, labels), expected = checkpoint
    for given in (path, str(path)):
        denoiser = load_denoiser(given)
        assert not any(part.training for part in denoiser.modules())
        with torch.no_grad():
            assert torch.equal(denoiser.denoise(x, t, labels=labels), expected)
    with pytest.raises(FileNotFoundError, match=r"ckpt_path='nowhere\.ckpt': there is no such file"):
        load_denoiser("nowhere.ckpt")


def run(capsys, *options):
    cli.main(["export", *map(str, options)])
    return capsys.readouterr().out


def error(capsys, *options):
    with pytest.raises(SystemExit) as done:
        cli.main(["export", *map(str, options)])
    output = capsys.readouterr().err.strip()
    assert done.value.code == 1
    assert "Traceback" not in output
    return output.splitlines()[-1]


@pytest.mark.parametrize("format", FORMATS)
def test_every_format_is_the_checkpoint_s_denoiser_with_its_ema_weights(checkpoint, tmp_path, capsys, format):
    path, module, (x, t, labels), expected = checkpoint
    output = tmp_path / "out"
    told = run(capsys, "--ckpt_path", path, "--format", format, "--output", output)
    assert "EMA weights" in told
    assert str(output) in told
    record = yaml.safe_load((output / "config.yaml").read_text())
    assert (record["format"], record["shape"], record["num_classes"]) == (format, [1, 28, 28], 10)
    with torch.no_grad():
        match format:
            case "safetensors":
                assert torch.equal(load_denoiser(output).denoise(x, t, labels=labels), expected)
                assert describe(load_sampler(output)) == describe(module.sampler)
                return
            case "torch_export":
                result = torch.export.load(output / "denoiser.pt2").module()(x, t, labels)
            case "onnx":
                session = onnxruntime.InferenceSession(str(output / "denoiser.onnx"))
                given = {"x": x.numpy(), "t": t.numpy(), "labels": labels.numpy()}
                result = torch.from_numpy(session.run(None, given)[0])
            case "diffusers":
                model = DDIMPipeline.from_pretrained(output).unet
                result = model.model.denoise(x, t, labels=labels)
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-4 if format == "onnx" else 1e-5)


def test_the_line_that_is_told_works(checkpoint, tmp_path, capsys):
    path, _, (x, t, labels), _ = checkpoint
    named = {"torch": torch, "onnxruntime": onnxruntime, "diffusion_lightning": diffusion_lightning}
    for format in ("safetensors", "torch_export", "onnx", "diffusers"):
        told = run(capsys, "--ckpt_path", path, "--format", format, "--output", tmp_path / format)
        line = told.splitlines()[1].strip()
        if format == "diffusers":
            line = line.removesuffix("()")  # 50 steps: not here
        exec(line.split(": x (")[0], {**named, "x": x, "t": t, "labels": labels})
        assert (": x (B, 1, 28, 28), t (B,) in [0.002, 80], labels (B,)" in line) == (format in FORMATS[1:3])


@pytest.mark.parametrize(("format", "name"), [("onnx", "digits.onnx"), ("torch_export", "my digits.PT2")])
def test_a_file_where_a_file_is_named(checkpoint, tmp_path, capsys, format, name):
    """With the record inside; a former file is replaced only if told to."""
    path, _, (x, t, labels), expected = checkpoint
    options = ("--ckpt_path", path, "--format", format, "--output", tmp_path / "out" / name)
    lines = run(capsys, *options).splitlines()
    output = tmp_path / "out" / name
    assert list(output.parent.iterdir()) == [output]
    assert lines[0].startswith("1 file, ")
    assert lines[0].endswith(f"EMA weights: {output}")
    assert repr(str(output)) in lines[1]
    if format == "onnx":
        session = onnxruntime.InferenceSession(str(output))
        given = {"x": x.numpy(), "t": t.numpy(), "labels": labels.numpy()}
        result = torch.from_numpy(session.run(["denoised"], given)[0])
        record = session.get_modelmeta().custom_metadata_map["config.yaml"]
    else:
        inside = {"config.yaml": ""}
        result = torch.export.load(output, extra_files=inside).module()(x, t, labels)
        record = inside["config.yaml"]
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-4)
    assert (yaml.safe_load(record)["num_classes"], yaml.safe_load(record)["times"]) == (10, [0.002, 80])

    output.write_text("mine")
    assert f"output={str(output)!r}: is there already: give another name, or --overwrite" in error(capsys, *options)
    assert output.read_text() == "mine"
    run(capsys, *options, "--overwrite")
    assert output.stat().st_size > 1000
    assert list(output.parent.iterdir()) == [output]


def test_what_comes_out_is_said_and_the_label_for_none(checkpoint, tmp_path, capsys):
    path, module, (x, t, _), _ = checkpoint
    for format in FORMATS[:2]:
        told = run(capsys, "--ckpt_path", path, "--format", format, "--output", tmp_path / format).splitlines()[2]
        assert told == (
            "  gives E[x0 | x_t = x] (B, 1, 28, 28), about [-1, 1], of x = α(t)·x0 + σ(t)·noise in float32; "
            "labels: int64, 0 to 9, and 10 for none"
        )
    with torch.no_grad(), module.ema_weights():
        none = module.denoiser.denoise(x, t)
    program = torch.export.load(tmp_path / "torch_export" / "denoiser.pt2").module()
    torch.testing.assert_close(program(x, t, torch.full((5,), 10)), none, rtol=0, atol=1e-5)


def test_weights_that_need_a_file_beside_the_model(checkpoint, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("diffusion_lightning.export.onnx_model.LARGEST_FILE", 0)
    options = ("--ckpt_path", checkpoint[0], "--format", "onnx", "--output")
    line = error(capsys, *options, tmp_path / "x.onnx")
    assert "x.onnx': is too large for one file, denoiser.onnx.data lies beside it: give a folder" in line
    assert {path.name for path in tmp_path.iterdir()} == {"x.ckpt"}
    run(capsys, *options, tmp_path / "x")
    assert (tmp_path / "x" / "denoiser.onnx.data").is_file()


def test_points_and_modules_without_a_shape(tmp_path, make_trainer, make_module, capsys):
    module = make_module(network=MLP(), shape=None)
    trainer = module.trainer = make_trainer()
    trainer.strategy.connect(module)
    trainer.save_checkpoint(tmp_path / "p.ckpt")
    options = ("--ckpt_path", tmp_path / "p.ckpt", "--output", tmp_path / "out", "--format")
    line = error(capsys, *options, "torch_export")
    assert "was saved before its examples' shape was known" in line
    run(capsys, *options, "safetensors")
    assert load_denoiser(tmp_path / "out").network.dim == 2


@pytest.mark.parametrize("format", FORMATS[1:])
def test_a_model_told_more_than_classes_is_exported_as_weights_alone(
    tmp_path, make_trainer, make_module, capsys, format
):
    module = make_module(network=MLP(condition_dim=1), shape=(2,))
    trainer = module.trainer = make_trainer()
    trainer.strategy.connect(module)
    trainer.save_checkpoint(tmp_path / "v.ckpt")
    options = ("--ckpt_path", tmp_path / "v.ckpt", "--output", tmp_path / "out", "--format")
    line = error(capsys, *options, format)
    assert f"format={format}: the model is told vector, which what this format writes would not be: give" in line
    assert {path.name for path in tmp_path.iterdir()} == {"v.ckpt"}
    run(capsys, *options, "safetensors")
    assert load_denoiser(tmp_path / "out").network.condition_dim == 1


def test_diffusers_draws_images_only(tmp_path, make_trainer, make_module, capsys):
    module = make_module(network=MLP(), shape=(2,))
    trainer = module.trainer = make_trainer()
    trainer.strategy.connect(module)
    trainer.save_checkpoint(tmp_path / "p.ckpt")
    options = ("--ckpt_path", tmp_path / "p.ckpt", "--output", tmp_path / "out", "--format", "diffusers")
    assert "diffusers' pipelines draw images, and these are points" in error(capsys, *options)
    assert {path.name for path in tmp_path.iterdir()} == {"p.ckpt"}


def test_nothing_is_overwritten_unless_told_to(checkpoint, tmp_path, capsys):
    options = ("--ckpt_path", checkpoint[0], "--format", "safetensors", "--output", tmp_path / "out")
    run(capsys, *options)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    assert "holds files: give another folder, or --overwrite to replace it" in error(capsys, *options)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()} == before
    run(capsys, *options[:3], "torch_export", *options[4:], "--overwrite")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"denoiser.pt2", "config.yaml"}


def test_a_failure_leaves_nothing(checkpoint, tmp_path, capsys, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(export_command, "save_denoiser", full)
    before = set(tmp_path.iterdir())
    options = ("--ckpt_path", checkpoint[0], "--format", "safetensors", "--output", tmp_path / "out")
    assert "No space left on device" in error(capsys, *options)
    assert set(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--format", "onnxx", "--output", "out"), "onnxx"),
        (("--format", "onnx"), "output"),
        (("--output", "out"), "format"),
        (("--format", "onnx", "--ouput", "out"), "did you mean --output?"),
        (("--format", "onnx", "--output", "file.txt"), "output='file.txt': is a file: give a folder"),
        (
            ("--format", "onnx", "--output", "out.pt2"),
            "output='out.pt2': --format onnx is a file with the suffix .onnx or a folder, such as --output out",
        ),
        (
            ("--format", "safetensors", "--output", "my out.safetensors"),
            "--format safetensors is a folder, such as --output 'my out'",
        ),
        (("--format", "onnx", "--output", "folder.onnx"), "output='folder.onnx': is a folder: give another name"),
        (
            ("--format", "onnx", "--output", "out", "--ckpt_path", "no.ckpt"),
            "ckpt_path='no.ckpt': there is no such file",
        ),
    ],
)
def test_a_mistake_is_one_clear_line(checkpoint, tmp_path, monkeypatch, capsys, options, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file.txt").write_text("")
    (tmp_path / "folder.onnx").mkdir()
    line = error(capsys, "--ckpt_path", checkpoint[0], *options)
    assert line.startswith("lightning: error: ")
    assert message in line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("format", "package", "extra"), [("onnx", "onnxruntime", "export"), ("diffusers", "diffusers", "diffusers")]
)
def test_a_missing_package_is_one_line(tmp_path, monkeypatch, capsys, format, package, extra):
    for name in [name for name in sys.modules if name.startswith("diffusion_lightning.export.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    line = error(capsys, "--ckpt_path", "x.ckpt", "--format", format, "--output", tmp_path / "out")
    assert f"pip install 'diffusion-lightning[{extra}]'" in line
    assert not (tmp_path / "out").exists()
