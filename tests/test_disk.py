from pathlib import Path

import pytest

from diffusion_lightning.disk import free_space, replace, replace_keeping


def contents(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir()}


def test_former_texts_are_kept_in_their_order(tmp_path):
    folder = tmp_path / "new" / "run"
    for text in ("a", "a", "b", "c"):
        replace_keeping(folder / "config.yaml", text)
    replace_keeping(folder / "other.yaml", "x")
    assert contents(folder) == {
        "config.before_resume_0.yaml": "a",
        "config.before_resume_1.yaml": "b",
        "config.yaml": "c",
        "other.yaml": "x",
    }


def test_a_text_that_cannot_be_written_leaves_the_old_one(tmp_path, monkeypatch):
    replace(tmp_path / "a.yaml", "old")

    def torn(path: Path, text: str, encoding: str) -> None:
        with open(path, "w") as file:
            file.write(text[:1])
        raise OSError("no space")

    monkeypatch.setattr(Path, "write_text", torn)
    with pytest.raises(OSError, match="no space"):
        replace(tmp_path / "a.yaml", "new")
    assert contents(tmp_path) == {"a.yaml": "old"}


def test_a_text_is_in_utf_8_wherever_it_is_written(tmp_path):
    replace(tmp_path / "a.yaml", "σ")
    assert (tmp_path / "a.yaml").read_bytes() == "σ".encode()
    with pytest.raises(UnicodeEncodeError):
        replace(tmp_path / "a.yaml", "torn" + "\ud800")
    assert [path.read_bytes() for path in tmp_path.iterdir()] == ["σ".encode()]


def test_free_space(tmp_path):
    assert free_space(tmp_path).endswith(" GiB free")
    assert free_space(tmp_path / "gone") == "free space unknown"
