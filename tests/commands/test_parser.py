"""What the parsers of all commands refuse beside what jsonargparse does."""

import pytest
import yaml

from diffusion_lightning import EmbeddedMNIST, ImageFolder
from diffusion_lightning.commands import cli
from diffusion_lightning.commands.parser import never_none


def test_an_argument_may_be_null_if_its_own_type_says_so():
    assert {"batch_size", "num_workers"} <= never_none(EmbeddedMNIST)
    assert "batch_size" in never_none(ImageFolder)
    assert "num_workers" not in never_none(ImageFolder)


@pytest.mark.parametrize(("given", "kept"), [((), None), (("--data.num_workers", "2"), 2)])
def test_a_printed_config_with_a_null_can_be_given(tmp_path, capsys, given, kept):
    data = ["fit", "--config", "quickstart.yaml", "--data", "ImageFolder", "--data.root", "pictures"]
    for command in ([*data, *given], ["fit", "--config", str(tmp_path / "printed.yaml")]):
        with pytest.raises(SystemExit) as done:
            cli.main([*command, "--print_config"])
        printed = capsys.readouterr()
        assert done.value.code in (0, None), printed.err
        assert yaml.safe_load(printed.out)["data"]["init_args"]["num_workers"] == kept
        (tmp_path / "printed.yaml").write_text(printed.out)


def test_a_null_is_refused_where_it_means_nothing(capsys):
    with pytest.raises(SystemExit) as done:
        cli.main(["fit", "--config", "quickstart.yaml", "--data.num_workers", "null", "--print_config"])
    assert done.value.code == 1
    assert "data.num_workers" in capsys.readouterr().err
