"""`srgan-fast data`: the benchmark sets and VGG19's weights, which the package does not ship."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(help="List, fetch and verify benchmark sets and VGG19's weights.", no_args_is_help=True)

_Name = Annotated[str, typer.Argument(metavar="NAME", help="What is meant: set5, set14, bsd100 or vgg19.")]
_WORDS = {
    "ok": "ok",
    "missing": "missing",
    "differs": "differs from the expected sha256",
    "unknown": "not verified, no sha256 is known",
}


@app.command("list")
def list_() -> None:
    """List what there is: source, licence, digest, and where it is kept."""
    from srgan_fast.evaluate.sets import COLLECTIONS, default_folder, state

    for name, collection in COLLECTIONS.items():
        folder = default_folder(name)
        there = sum(state(item, folder) != "missing" for item in collection.items)
        first = collection.items[0].url
        print(f"{name}: {collection.title}")
        print(f"  source   {collection.source}")
        print(f"  licence  {collection.licence}")
        print(f"  address  {first}" + (f" and {len(collection.items) - 1} more" if len(collection.items) > 1 else ""))
        print(f"  digest   {collection.digests}")
        print(f"  here     {there} of {len(collection.items)} in {folder}")


@app.command()
def fetch(
    name: _Name,
    to: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Folder to write.", show_default="the user's cache", readable=False),
    ] = None,
) -> None:
    """Download a set or the weights; each file is checked before it is kept."""
    from srgan_fast.evaluate.sets import Item, State, collection, default_folder, digest
    from srgan_fast.evaluate.sets import fetch as run

    wanted = collection(name)
    folder = to or default_folder(wanted.name)

    def on_item(item: Item, state: State) -> None:
        print(f"{item.name}: {_WORDS[state]}" + (f"; got {digest(folder / item.name)}" if state == "unknown" else ""))

    run(wanted, folder, on_item)
    print(f"{len(wanted.items)} file{'s' * (len(wanted.items) != 1)} in {folder}")


@app.command()
def verify(
    name: _Name,
    folder: Annotated[
        Path | None,
        typer.Option("--in", metavar="FOLDER", help="Folder to read.", show_default="the user's cache", readable=False),
    ] = None,
) -> None:
    """Compare files with their digests; it succeeds only if every digest is known and agrees."""
    from srgan_fast.errors import InputError
    from srgan_fast.evaluate.sets import collection, default_folder, digest, state

    wanted = collection(name)
    place = folder or default_folder(wanted.name)
    counts = dict.fromkeys(_WORDS, 0)
    for item in wanted.items:
        found = state(item, place)
        counts[found] += 1
        print(f"{item.name}: {_WORDS[found]}" + (f"; got {digest(place / item.name)}" if found == "unknown" else ""))
    if counts["ok"] < len(wanted.items):
        rest = ", ".join(f"{count} {_WORDS[key]}" for key, count in counts.items() if count and key != "ok")
        cure = f"run `srgan-fast data fetch {wanted.name}`" if counts["missing"] or counts["differs"] else "see above"
        raise InputError(f"expected {len(wanted.items)} verified files in {place}, got {counts['ok']} ({rest}); {cure}")
