"""quantune-device: lets this machine run artifacts that another one compiles; needs no compiler and no torch."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from quantune.cli.arguments import OneLineParser, count, number, size
from quantune.cli.entry import interrupted, run
from quantune.device.address import DEFAULT_PORT, TOKEN

if TYPE_CHECKING:
    from quantune.cli.streams import Notes
    from quantune.device.server import Server

EPILOG = f"""\
the token   of 16 letters or more, the same on both sides: --token-file here, or in the variable {TOKEN}
            it is never sent; what is sent is not encrypted: use ssh -L where others can listen

exit codes  0 done   2 wrong request   4 the machine lacks something, or the device cannot be reached
            130 stopped (143 by SIGTERM)

example
  quantune-device serve --host 0.0.0.0 --token-file token             # on the board
  quantune-device info "tcp://board:{DEFAULT_PORT}?token-file=token"         # on the workstation
"""


def main(argv: list[str] | None = None) -> int:
    """Entry point of ``quantune-device``; returns the exit code."""
    return run("quantune-device", command, argv)


def command(argv: list[str] | None, notes: Notes) -> int:
    """What the command does; its errors are told by `quantune.cli.entry`."""
    arguments = parser().read(argv)
    if arguments.command == "info":
        return _info(arguments)
    notes.verbose()  # a server tells what happens
    return _serve(arguments)


def parser() -> OneLineParser:
    """The command line, for help and for its tests."""
    raw = argparse.RawDescriptionHelpFormatter
    top = OneLineParser(prog="quantune-device", description=__doc__, epilog=EPILOG, formatter_class=raw)
    commands = top.add_subparsers(dest="command", required=True, metavar="serve|info")
    serve = commands.add_parser("serve", help="run what clients send, one client at a time")
    serve.add_argument("--host", default="127.0.0.1", metavar="NAME", help="address to listen on (default 127.0.0.1)")
    serve.add_argument(
        "--port", type=count, default=DEFAULT_PORT, metavar="N", help=f"default {DEFAULT_PORT}; 0: a free one"
    )
    serve.add_argument("--token-file", type=Path, metavar="FILE", help=f"holds the token (default: ${TOKEN})")
    serve.add_argument("--max-size", type=size, default="256MB", metavar="SIZE", help="of one file (default 256MB)")
    serve.add_argument("--store-size", type=size, default="4GB", metavar="SIZE", help="of all files kept (default 4GB)")
    serve.add_argument("--store", type=Path, metavar="DIR", help="where they are kept (default: the user's cache)")
    serve.add_argument(
        "--timeout", type=number, default=600.0, metavar="SECONDS", help="for a job, and for a silent client (600)"
    )
    serve.add_argument(
        "--memory-limit", metavar="SIZE", help="of each child, such as 2GB, or none (default: by the machine)"
    )
    serve.add_argument("--device", metavar="URI", help="vulkan, cuda, … instead of the processor")
    info = commands.add_parser("info", help="say what a device is")
    info.add_argument("address", metavar="tcp://HOST:PORT")
    return top


def _serve(arguments: argparse.Namespace) -> int:
    from quantune.cache import default_root
    from quantune.device.address import read_token
    from quantune.device.jobs import LOCAL
    from quantune.device.server import Limits, Server

    server = Server(
        arguments.host,
        arguments.port,
        token=read_token(arguments.token_file),
        store=arguments.store or default_root() / "device",
        limits=Limits(arguments.max_size, arguments.store_size, arguments.timeout),
        device=arguments.device or LOCAL,
        memory_limit=arguments.memory_limit,
    )
    with contextlib.closing(server):
        try:
            _announce(server)
            server.serve()
        except KeyboardInterrupt:
            print("quantune-device: stopped", file=sys.stderr)
            return interrupted()
    return 0


def _announce(server: Server) -> None:
    host, port = server.address
    what = server.description
    print(f"quantune-device: listening on {host}:{port}")
    print(f"  processor    {what['name']}, {what['architecture']}, {what['processors']} processors")
    print(f"  features     {_listed(what['features'])}")
    print(f"  compile for  --target-cpu {what['cpu']}")
    print(f"  runs on      {what['device']}, IREE's runtime {what['iree']}, {what['system']}")
    if not server.has_token:
        print("  no token     everybody who can log in here can run programs as this user")
    sys.stdout.flush()


def _info(arguments: argparse.Namespace) -> int:
    from quantune.device.client import Device

    with contextlib.closing(Device(arguments.address)) as device:
        known = device.known
    print(f"processor    {known.name}, {known.architecture}, {known.processors} processors")
    print(f"features     {_listed(known.features)}")
    print(f"compile for  --target-cpu {known.cpu}")
    print(f"runs on      {known.device}, IREE's runtime {known.iree}")
    print(f"limits       {known.message_bytes / 1e6:g} MB a file, {known.timeout_s:g} s a job")
    return 0


def _listed(features: Mapping[str, bool]) -> str:
    return ", ".join(name for name, has in features.items() if has) or "unknown"


if __name__ == "__main__":
    sys.exit(main())
