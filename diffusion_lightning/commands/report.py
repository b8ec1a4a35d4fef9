"""`lightning report`: one HTML page of one or several runs, for which no account is needed."""

from pathlib import Path

from diffusion_lightning.commands.parser import OneLineParser
from diffusion_lightning.commands.run_folder import find_run
from diffusion_lightning.commands.usage import UsageError
from diffusion_lightning.disk import replace
from diffusion_lightning.report import read_run, render
from diffusion_lightning.report.units import size


def report_command(args: list[str]) -> None:
    """Parse the options, read the runs' folders, write the page, and print where it is.

    Args:
        args: the command line after ``lightning report``.

    Raises:
        UsageError: for folders that hold no run, and outputs that cannot be written.
    """
    options = report_parser().parse_args(args)
    folders = list({folder.resolve(): folder for folder in map(_folder, options.runs)}.values())
    output = Path(options.output) if options.output is not None else _default_output(folders)
    if output.suffix not in (".html", ".htm"):
        raise UsageError(f"output={str(output)!r}: must end in .html")
    _check_writable(output)

    page = render([read_run(folder) for folder in folders])
    try:
        replace(output, page)
    except OSError as error:
        raise UsageError(f"output={str(output)!r}: cannot be written ({error.strerror})") from error
    print(f"{', '.join(map(str, folders))}: {output} ({size(output.stat().st_size)}), for any browser")


def report_parser() -> OneLineParser:
    """The options of ``lightning report``."""
    parser = OneLineParser(
        prog="lightning report", description="Pictures, curves, results and settings of runs as one HTML page."
    )
    parser.add_argument(
        "runs", type=str, nargs="+", help="Folders of runs (runs/quickstart/version_0), or of named ones: their newest."
    )
    parser.add_argument(
        "--output",
        type=str | None,
        default=None,
        help="The page; by default report.html in the run's folder, or here for several runs. It is replaced.",
    )
    parser.add_argument("--debug", action="store_true", help="Show the traceback of an error.")
    return parser


def _folder(given: str) -> Path:
    try:
        return find_run(Path(given))
    except OSError as error:
        raise UsageError(f"run={given!r}: {error}") from error


def _default_output(folders: list[Path]) -> Path:
    return (folders[0] if len(folders) == 1 else Path()) / "report.html"


def _check_writable(output: Path) -> None:
    """Fail before the work, not after it."""
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"output={str(output)!r}: no folder can be made there ({error.strerror})") from error
    if output.is_dir():
        raise UsageError(f"output={str(output)!r}: is a folder: give a file")
