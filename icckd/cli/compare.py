"""The command `icckd compare`, and `icckd report` of a comparison."""

import re
from collections.abc import Iterator
from pathlib import Path

from jsonargparse import Namespace

from icckd.comparison import ComparisonFolder, Shard, compare, write_results
from icckd.errors import UserError
from icckd.settings import Comparison, read_comparison

_MOST_SEEDS = 10_000


def run_comparison(options: Namespace) -> int:
    """Train what is missing, print the table, then raise UserError or TrainingDiverged where a run failed."""
    if options.output is None:
        raise UserError("icckd compare needs --output DIR, a folder for its runs and results")
    folder = ComparisonFolder(Path(options.output))
    outcome = compare(
        _comparison(options, folder),
        folder.path,
        jobs=options.jobs,
        processes=options.processes,
        shard=Shard.parse(options.shard),
        resume=options.resume,
        overwrite=options.overwrite,
        debug=options.debug,
    )
    _print_pages(folder)
    outcome.check()
    return 0


def report_comparison(path: Path) -> int:
    """Write the pages of the comparison in the folder `path` again, and print the table."""
    folder = ComparisonFolder(path)
    write_results(folder, folder.read())
    _print_pages(folder)
    return 0


def _comparison(options: Namespace, folder: ComparisonFolder) -> Comparison:
    config = Path(options.config) if options.config else None
    if config is None:
        if not options.resume or not folder.definition.exists():
            raise UserError("icckd compare needs --config FILE; icckd compare --help shows one")
        config = folder.definition
    seeds = None if options.seeds is None else list(_seeds(options.seeds))
    return read_comparison(config, options.overrides, seeds)


def _seeds(words: list[str]) -> Iterator[int]:
    """The seeds that "3" or "0-9" stand for."""
    for word in words:
        match = re.fullmatch(r"(\d{1,18})(?:-(\d{1,18}))?", word, re.ASCII)
        if match is None:
            raise UserError(f"--seeds holds {word!r}; give numbers or ranges, as in --seeds 0 1 2 or --seeds 0-9")
        first, last = int(match[1]), int(match[2] or match[1])
        if not 0 <= last - first < _MOST_SEEDS:
            raise UserError(f"--seeds holds {word}; a range should have 1 to {_MOST_SEEDS} seeds")
        yield from range(first, last + 1)


def _print_pages(folder: ComparisonFolder) -> None:
    print((folder.path / "compare.md").read_text(encoding="utf-8"))
    print(f"page: {folder.path / 'compare.html'}")
