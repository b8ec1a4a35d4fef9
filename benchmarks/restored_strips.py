"""Makes docs/images/restored.png: strips of ``lightning restore``, by a model of configs/mnist.yaml.

python benchmarks/restored_strips.py runs/mnist folder-of-digits
"""

import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

TASKS = (["--task", "inpaint", "--mask", "bottom"], ["--task", "upscale", "--factor", "4", "--noise", "0.05"])
SHOWN = 3
"""Strips of each task."""


def main(checkpoint: str, digits: str) -> None:
    strips = []
    with tempfile.TemporaryDirectory() as folder:
        for number, task in enumerate(TASKS):
            output = Path(folder, str(number))
            given = ["--ckpt_path", checkpoint, "--input", digits, "--simulate", "true", "--output", str(output)]
            subprocess.run(["lightning", "restore", *given, *task, "--scale", "2", "--quiet"], check=True)
            for path in sorted(output.glob("*.png"))[:SHOWN]:
                strips.append(np.array(Image.open(path)))
    picture = Image.fromarray(np.concatenate(strips)[..., 0])
    picture.save(Path(__file__).parents[1] / "docs" / "images" / "restored.png", optimize=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
