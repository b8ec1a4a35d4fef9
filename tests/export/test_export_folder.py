import pytest

from diffusion_lightning.export.folder import check_output, whole_folder

RECORD = "diffusion_lightning: 0.2.0\n"


def contents(folder):
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


def test_what_was_written_is_there(tmp_path):
    with whole_folder(tmp_path / "a" / "b") as folder:
        assert not (tmp_path / "a" / "b").exists()
        (folder / "inner").mkdir()
        (folder / "inner" / "x").write_text("1")
    assert contents(tmp_path) == {"a/b/inner/x": "1"}
    assert (tmp_path / "a" / "b").stat().st_mode == (tmp_path / "a").stat().st_mode  # others may read it too


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_interrupted_one_leaves_nothing_and_loses_nothing(tmp_path, error):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "config.yaml").write_text(RECORD)

    def write() -> None:
        with whole_folder(tmp_path / "out") as folder:
            (folder / "x").write_text("1")
            raise error

    with pytest.raises(error):
        write()
    assert contents(tmp_path) == {"out/config.yaml": RECORD}
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_former_one_is_replaced_whole(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "config.yaml").write_text(RECORD)
    with whole_folder(tmp_path / "out") as folder:
        (folder / "x").write_text("1")
        assert contents(tmp_path / "out") == {"config.yaml": RECORD}
    assert contents(tmp_path) == {"out/x": "1"}


def test_an_empty_folder_and_none_may_be_written_to(tmp_path):
    check_output(tmp_path, overwrite=False)
    check_output(tmp_path / "new", overwrite=False)
    with whole_folder(tmp_path / "empty") as folder:
        pass
    assert not folder.exists()
    check_output(tmp_path / "empty", overwrite=True)


def test_a_folder_that_holds_files_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("…")
    with pytest.raises(ValueError, match="holds files: give another folder, or --overwrite to replace it"):
        check_output(tmp_path, overwrite=False)
    with pytest.raises(ValueError, match="was not written by an export, and is not replaced"):
        check_output(tmp_path, overwrite=True)
    (tmp_path / "config.yaml").write_text("model: {}")
    with pytest.raises(ValueError, match="was not written by an export, and is not replaced"):
        check_output(tmp_path, overwrite=True)
    with pytest.raises(ValueError, match="is a file: give a folder"):
        check_output(tmp_path / "thesis.tex", overwrite=True)
    (tmp_path / "config.yaml").write_text(RECORD)
    (tmp_path / "thesis.tex").unlink()
    check_output(tmp_path, overwrite=True)


def test_what_a_user_has_put_beside_an_export_is_not_lost(tmp_path):
    with whole_folder(tmp_path / "out") as folder:
        (folder / "config.yaml").write_text(RECORD)
        (folder / "denoiser.pt2").write_text("1")
    check_output(tmp_path / "out", overwrite=True)
    (tmp_path / "out" / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"holds notes\.txt, which no export wrote"):
        check_output(tmp_path / "out", overwrite=True)


def test_a_place_where_nothing_can_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(ValueError, match=r"output=.*: no folder can be made there \(File exists\)"),
        whole_folder(tmp_path / "file" / "out"),
    ):
        pass
