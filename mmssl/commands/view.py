"""`mmssl data view`."""

import argparse
from typing import Any

from mmssl import commands


def add(members: Any) -> None:
    """Adds the command."""
    parser = commands.command(
        members,
        "view",
        run,
        summary="look at a dataset: one HTML page",
        about="Writes a page that opens offline: what the dataset holds, what the "
        "build left out and why, and some clips with their frames, sound, spectrogram, "
        "timed text, tokens, labels and faults, playable. With --config also the "
        "window, the crop and the tokens that training draws of them. Its time and "
        "size depend on --samples, not on the dataset.",
        example="""
            mmssl data view data/mine --out mine.html
            mmssl data view data/mine --out mine.html --config configs/demo.py
        """,
    )
    parser.add_argument("dir", metavar="DIR", help="written by `mmssl data build`")
    parser.add_argument(
        "--out", metavar="PAGE.html", required=True, help="replaced if it is there"
    )
    parser.add_argument(
        "--split", metavar="S", help="a split, or a part: 'test[:10%%]' (default: all)"
    )
    parser.add_argument(
        "--samples",
        type=commands.positive,
        metavar="N",
        default=24,
        help="clips to show: evenly spaced, some with faults first; the page takes at "
        "most 0.8 MiB for each (default: %(default)s)",
    )
    parser.add_argument(
        "--config",
        metavar="PATH[:ARG]",
        help="a training config; --config.a.b=value overrides a key",
    )
    parser.add_argument(
        "--seed",
        type=int,
        metavar="N",
        default=0,
        help="of the training view's draws and the choice of clips "
        "(default: %(default)s)",
    )
    parser.set_defaults(overrides=[])


def run(arguments: argparse.Namespace) -> None:
    from mmssl import config as config_lib
    from mmssl import viewer
    from mmssl.errors import UserError

    config = None
    if arguments.config is not None:
        config = config_lib.load(arguments.config, arguments.overrides)
    elif arguments.overrides:
        raise UserError(f"{arguments.overrides[0]}: name a config with --config, too")
    path = viewer.view_dataset(
        arguments.dir,
        arguments.out,
        split=arguments.split,
        samples=arguments.samples,
        config=config,
        seed=arguments.seed,
        progress=commands.counter("clips"),
    )
    print(f"{path}: {path.stat().st_size / 2**20:.1f} MiB, opens in any browser")
