"""What pyproject.toml cannot say: ``configs/``, at the top of the repository, goes into the package that is built."""

from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

CONFIGS = Path("configs")
TARGET = Path("diffusion_lightning", "configs")


class BuildWithConfigs(build_py):
    """An editable install is not given them: it finds them where they are."""

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            for source, target in self._configs():
                self.mkpath(str(target.parent))
                self.copy_file(str(source), str(target))

    def get_outputs(self, include_bytecode: bool = True) -> list[str]:
        configs = [] if self.editable_mode else [str(target) for _, target in self._configs()]
        return [*super().get_outputs(include_bytecode), *configs]

    def _configs(self) -> list[tuple[Path, Path]]:
        found = sorted(CONFIGS.rglob("*.yaml"))
        return [(source, Path(self.build_lib, TARGET, source.relative_to(CONFIGS))) for source in found]


setup(cmdclass={"build_py": BuildWithConfigs})
