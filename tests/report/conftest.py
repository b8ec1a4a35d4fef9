"""The fixture that makes a run's folder."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from run_folders import CONFIG, course, picture, write_rows


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Path]:
    """Makes a run's folder below ``tmp_path``; each picture has a colour of its own, by its epoch."""

    def make(
        name: str = "quickstart/version_0",
        rows: Sequence[Mapping[str, float]] | None = None,
        config: Mapping[str, Any] | None = None,
        pictures: Mapping[str, Sequence[int]] | None = None,
        hue: int = 0,
    ) -> Path:
        folder = tmp_path / name
        folder.mkdir(parents=True)
        (folder / "config.yaml").write_text(
            "# lightning.pytorch==2.6.6\n" + yaml.safe_dump(config or CONFIG, sort_keys=False)
        )
        write_rows(folder / "metrics.csv", course() if rows is None else rows)
        for kind, epochs in ({"samples": [0, 1, 2]} if pictures is None else pictures).items():
            for epoch in epochs:
                picture(folder / kind / f"epoch={epoch:04d}.png", (hue, 40 + 3 * (epoch % 60), epoch // 60))
        (folder / "checkpoints").mkdir()
        (folder / "checkpoints" / "last.ckpt").write_bytes(b"no checkpoint, but of that name")
        return folder

    return make
