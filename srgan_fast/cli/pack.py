"""srgan-fast pack: a folder of training images -> one file that training maps into memory."""

from __future__ import annotations

import signal
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from srgan_fast.errors import InputError, Interrupted, UsageError
from srgan_fast.outputs import check_file

if TYPE_CHECKING:
    from srgan_fast.train.store import Folder, Pairs

_Picture = TypeVar("_Picture")
_SHOWN = 5


def pack(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="IMAGES", help="Folder of HR images or of pairs; with --verify a .pack.", readable=False
        ),
    ],
    target: Annotated[
        Path | None, typer.Argument(metavar="OUT", help="Pack to write, a .pack; none with --verify.", readable=False)
    ] = None,
    pairs: Annotated[
        bool, typer.Option("--pairs", help="Read pairs: IMAGES holds high/ and low/, or a train/ that does.")
    ] = False,
    scale: Annotated[int, typer.Option(help="HR pixels for each LR pixel, a side; of pairs.")] = 2,
    smallest: Annotated[int, typer.Option(help="Leave out images of fewer HR pixels a side.")] = 96,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace OUT if it exists.")] = False,
    verify: Annotated[bool, typer.Option("--verify", help="Read all of a pack and check it; write nothing.")] = False,
) -> None:
    """Decode images once, into one file for `srgan-fast train`; a pack need not fit in memory."""
    if verify:
        if target is not None:
            raise UsageError(f"expected one pack with --verify, got {target} besides; leave it out")
        _verify(source)
        return
    _check(source, target, scale, smallest, overwrite)
    assert target is not None
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from srgan_fast.train.store import write_pack

    images = _images(source, pairs, scale, smallest)
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    count = 0
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("packing", total=len(images))

        def counted(pictures: Iterable[_Picture]) -> Iterator[_Picture]:
            nonlocal count
            for picture in pictures:
                count += 1
                bar.update(task, completed=count + len(images.skipped))
                yield picture

        # A pack may be half of a disk: what asks us politely to end must not leave the half that was written.
        before = signal.signal(signal.SIGTERM, signal.default_int_handler)
        try:
            digest = write_pack(target, counted(images), images.scale)
        except KeyboardInterrupt:
            raise Interrupted(f"stopped after {count} of {len(images)} images; {target} is not written") from None
        finally:
            signal.signal(signal.SIGTERM, before)
    for skipped in images.skipped[:_SHOWN]:
        print(f"skipped {skipped.path.name}: {skipped.reason}")
    if len(images.skipped) > _SHOWN:
        print(f"skipped {len(images.skipped) - _SHOWN} more")
    said = (
        f"{count} pair{'s' * (count != 1)} of scale {scale}" if images.scale else f"{count} image{'s' * (count != 1)}"
    )
    print(f"{said}, {len(images.skipped)} skipped, {target.stat().st_size / 1e6:.1f} MB")
    print(f"-> {target} (digest {digest[:16]})")


def _verify(path: Path) -> None:
    from srgan_fast.train.store import verify_pack

    store = verify_pack(path)
    print(f"{path}: ok, {len(store)} {'images' if store.lows is None else 'pairs'} (digest {store.digest()[:16]})")


def _check(source: Path, target: Path | None, scale: int, smallest: int, overwrite: bool) -> None:
    """What would be found out only after minutes of work."""
    if target is None:
        raise UsageError("expected a .pack file to write after the folder, got none; name it, or give --verify")
    if target.suffix != ".pack":
        raise UsageError(f"expected an output called *.pack, got {target.name}; name it so")
    if min(scale, smallest) < 1:
        raise UsageError(f"expected --scale and --smallest of at least 1, got {min(scale, smallest)}")
    if source.is_file():
        raise InputError(f"expected a folder of images, got a file: {source}; to check a pack give --verify")
    check_file("OUT", target)
    if target.exists() and not overwrite:
        raise UsageError(f"{target} exists; name another, or add --overwrite")


def _images(source: Path, pairs: bool, scale: int, smallest: int) -> Folder | Pairs:
    from srgan_fast.train.store import Folder, Pairs, holds_pairs

    whole = holds_pairs(source)
    if not pairs and whole:
        print(f"pairs: {source} holds train/high and train/low")
    if not (pairs or whole):
        return Folder(source, smallest, "--smallest")
    if whole and (source / "val").is_dir():
        print(f"{source / 'val'} is not packed: give it to training as --validation, or pack it by itself")
    return Pairs(source / "train" if whole else source, scale, smallest, "--smallest")
