"""`srgan-fast mos`: mean opinion scores, from the pictures to the statistics."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from srgan_fast.cli.options import METHOD, METHODS, HRFolder, LRFolder, Scale

if TYPE_CHECKING:
    from collections.abc import Mapping

    from srgan_fast.evaluate.mos.store import Store

app = typer.Typer(help="Collect and analyse mean opinion scores, blind and as in the paper.", no_args_is_help=True)

_Folder = Annotated[Path, typer.Argument(metavar="STUDY", help="Folder of the study.", readable=False)]


@app.command()
def prepare(
    hr_folder: HRFolder,
    study: Annotated[Path, typer.Argument(metavar="STUDY", help="Folder of the study, new or empty.", readable=False)],
    method: Annotated[
        list[str] | None, typer.Option(metavar=METHOD, help=METHODS, show_default="none: at least one is needed")
    ] = None,
    calibration: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Folder of other originals: nearest of them are examples of 1, they themselves of 5.",
            show_default="no examples",
            readable=False,
        ),
    ] = None,
    lr: LRFolder = None,
    scale: Scale = None,
    size: Annotated[
        str | None,
        typer.Option(
            metavar="WxH",
            help="Cut every picture to its middle, of so many pixels, so that it fits the raters' screens.",
            show_default="not cut",
        ),
    ] = None,
    repeats: Annotated[
        int | None,
        typer.Option(help="Pictures shown twice, for test-retest.", show_default="5, or a fourth of few pictures"),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of the lots that are drawn.", show_default="random")] = None,
) -> None:
    """Make the pictures of a study: every method's version of every image, and the originals hidden among them."""
    from rich.console import Console
    from rich.text import Text

    from srgan_fast.cli.sizes import parse_size
    from srgan_fast.errors import Interrupted
    from srgan_fast.evaluate.mos.prepare import prepare as run

    cut = None if size is None else parse_size("--size", size)
    try:
        with Console(stderr=True).status("preparing") as status:
            made, remarks = run(
                hr_folder,
                study,
                method or [],
                calibration=calibration,
                lr_folder=lr,
                scale=scale,
                size=cut,
                repeats=repeats,
                seed=seed,
                on_image=lambda name: status.update(Text(f"preparing: {name} done")),
            )
    except KeyboardInterrupt:
        raise Interrupted("stopped; nothing was written") from None
    for remark in remarks:
        print(remark)
    if calibration is None:
        print("no calibration: --calibration takes a folder of other originals as examples of 1 and 5")
    largest = max(made.stimuli, key=lambda stimulus: stimulus.width * stimulus.height)
    examples = f" after {len(made.calibration)} examples" if made.calibration else ""
    print(
        f"{len(made.images)} images, {len(made.methods)} versions of each: {made.ratings_a_rater} ratings a rater"
        f"{examples}; the largest picture has {largest.width}x{largest.height} pixels -> {study}"
    )


@app.command()
def serve(
    study: _Folder,
    host: Annotated[
        str,
        typer.Option(metavar="HOST", help="Address to listen on; on all but loopback raters need an access token."),
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0 takes a free one.")] = 8000,
    name: Annotated[
        list[str] | None,
        typer.Option(
            metavar="HOST", help="Name that a proxy in front has; raters need an access token then; may be repeated."
        ),
    ] = None,
) -> None:
    """Show the page on which people rate, until Ctrl-C; ratings are kept in the study's folder."""
    from socket import gethostname

    from srgan_fast.errors import Interrupted
    from srgan_fast.evaluate.mos import needs

    needs("starlette", "uvicorn")

    from srgan_fast.evaluate.mos.server import access_token, application, is_loopback, listen
    from srgan_fast.evaluate.mos.server import serve as run
    from srgan_fast.evaluate.mos.store import Store
    from srgan_fast.evaluate.mos.study import load
    from srgan_fast.stop import stop_requests

    with stop_requests() as stopped:
        loaded = load(study)
        loaded.verify()
        alone = is_loopback(host)
        access = None if alone and not name else access_token(loaded)
        with Store(loaded.ratings_file, loaded) as store, listen(host, port) as listener:
            shown = gethostname() if host in ("0.0.0.0", "::") else f"[{host}]" if ":" in host else host
            address = f"http://{shown}:{listener.getsockname()[1]}/"
            print(f"{len(loaded.images)} images, {loaded.ratings_a_rater} ratings a rater; so far {_so_far(store)}")
            print(f"rate at {address}" + ("" if access is None else f"?access={access}"), flush=True)
            if access is not None:
                print(
                    "whoever has this address can rate; without TLS in front, so can who sees the traffic", flush=True
                )
            names = [host.lower(), "localhost", "127.0.0.1", "::1", *(one.lower() for one in name or [])]
            run(application(loaded, store, access=access, names=names if alone else []), listener, stopped)
            raise Interrupted(f"stopped; {_so_far(store)} in {loaded.ratings_file}")


def _so_far(store: Store) -> str:
    raters, ratings = store.count()
    return f"{ratings} rating{'s' * (ratings != 1)} by {raters} rater{'s' * (raters != 1)}"


@app.command()
def analyse(
    study: _Folder,
    zero_method: Annotated[
        str, typer.Option(metavar="NAME", help="What Wilcoxon's test does with equal scores: pratt or wilcox.")
    ] = "pratt",
    screened: Annotated[
        bool, typer.Option("--screened", help="Leave out raters whom BT.500's screening rejects.")
    ] = False,
    partial: Annotated[bool, typer.Option("--partial", help="Take in raters who did not finish.")] = False,
    simulation: Annotated[
        bool, typer.Option("--simulation", help="Analyse simulated raters, whose scores are no opinions.")
    ] = False,
    json_file: Annotated[
        Path | None,
        typer.Option("--json", metavar="FILE|-", help="Write everything as JSON; - prints only that.", readable=False),
    ] = None,
    csv_file: Annotated[
        Path | None, typer.Option("--csv", metavar="FILE", help="Write scores by method and picture.", readable=False)
    ] = None,
    ratings_file: Annotated[
        Path | None, typer.Option("--ratings", metavar="FILE", help="Write every rating as CSV.", readable=False)
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Draw scores and histograms: a .png, .svg or .pdf.", readable=False),
    ] = None,
) -> None:
    """Compute mean opinion scores, their intervals, differences and significance, from the ratings of humans."""
    import json

    from srgan_fast.evaluate.mos import needs

    needs("scipy", *(["matplotlib"] if plot is not None else []))

    from srgan_fast.evaluate.mos import results as shown
    from srgan_fast.evaluate.mos.analysis import analyse as run
    from srgan_fast.evaluate.mos.store import Store
    from srgan_fast.evaluate.mos.study import load
    from srgan_fast.outputs import check_file, write

    only_json = json_file is not None and str(json_file) == "-"
    asked = {"--json": None if only_json else json_file, "--csv": csv_file, "--ratings": ratings_file, "--plot": plot}
    targets = {option: target for option, target in asked.items() if target is not None}
    for option, target in targets.items():
        check_file(option, target)
    if plot is not None:
        shown.check_plot(plot)
    loaded = load(study)
    with Store(loaded.ratings_file, loaded, create=False) as store:
        ratings = store.ratings()
    found = run(loaded, ratings, simulation=simulation, partial=partial, screened=screened, zero_method=zero_method)
    text = json.dumps({**found, "remarks": shown.remarks(found)}, indent=2, allow_nan=False) + "\n"
    if json_file is not None and not only_json:
        write(json_file, text)
    if csv_file is not None:
        write(csv_file, shown.stimuli_csv(found))
    if ratings_file is not None:
        write(ratings_file, shown.ratings_csv(loaded, ratings))
    if plot is not None:
        shown.plot(plot, found)
    if only_json:
        print(text, end="")
        return
    _print(found, shown.who(found), shown.remarks(found))
    for target in targets.values():
        print(f"wrote {target}")


def _print(found: Mapping[str, Any], who: str, remarks: list[str]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    simulated = found["kind"] == "simulation"
    if simulated:
        print(remarks.pop(0))  # before any figure
    kind = "simulated scores, no opinions" if simulated else "mean opinion scores"
    table = Table(title=f"{kind}, x{found['scale']}: {who}", title_justify="left")
    table.add_column("method", overflow="fold")
    for head in ("ratings", "simulated" if simulated else "MOS", "SD", "95%", "95%\nby image", "DMOS", "rank"):
        table.add_column(head, justify="right")
    for row in sorted(found["methods"], key=lambda row: row["mos"] or 0.0):
        halves = [_half(row[key]) for key in ("ci95", "ci95_by_image")]
        numbers = [_number(row[key]) for key in ("mos", "sd", "dmos", "rank")]
        table.add_row(Text(row["name"]), str(row["ratings"]), *numbers[:2], *halves, *numbers[2:])
    console.print(table)

    tests = found["tests"]
    table = Table(
        title=f"{tests['test']}; zeros: {tests['zero_method']}; p after {tests['correction']}'s correction for "
        f"{tests['comparisons']}",
        title_justify="left",
    )
    table.add_column("difference", overflow="fold")
    for head in ("mean", "pairs", "p", "images", "p\nby image"):
        table.add_column(head, justify="right")
    for rating, image in zip(tests["by_rating"], tests["by_image"], strict=True):
        names = Text(f"{rating['a']} - {rating['b']}")
        mean = "" if rating["mean_difference"] is None else f"{rating['mean_difference']:+.2f}"
        table.add_row(names, mean, str(rating["n"]), _p(rating["p_holm"]), str(image["n"]), _p(image["p_holm"]))
    console.print(table)
    for remark in remarks:
        print(remark)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _half(interval: list[float] | None) -> str:
    return "" if interval is None else f"±{(interval[1] - interval[0]) / 2:.2f}"


def _p(value: float) -> str:
    return "<0.0001" if value < 0.0001 else f"{value:.4f}"
