"""`playhead serve`: the appliance in the foreground."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import sys
from pathlib import Path
from typing import Any

import click

from playhead import log, systemd
from playhead._native import NativeError
from playhead.api import create_app
from playhead.api import server as api_server
from playhead.appliance import Appliance
from playhead.errors import PlayheadError
from playhead.node import Address, Settings, load, url_host
from playhead.problem import from_native


@click.command("serve")
@click.option(
    "--config",
    type=click.Path(path_type=Path),
    envvar="PLAYHEAD_CONFIG",
    help="Settings file (TOML). [default: /etc/playhead/playhead.toml]",
)
@click.option("--store", metavar="DIR", help="Where everything is kept. [default: /var/lib/playhead]")
@click.option(
    "--iscsi",
    metavar="ADDR:PORT",
    multiple=True,
    help="iSCSI portal, or 'off'; repeat it for several. Port 0 picks one. [default: 127.0.0.1:3260]",
)
@click.option("--nbd", metavar="ADDR:PORT", help="NBD server, or 'off'. [default: 127.0.0.1:10809]")
@click.option(
    "--api", metavar="ADDR:PORT", help="REST API; needs a token unless on loopback. [default: 127.0.0.1:7480]"
)
@click.option("--advertise", metavar="HOST", help="The host in URLs that clients are given.")
@click.option("--log-level", metavar="LEVEL", help="debug, info, warning or error. [default: info]")
@click.option("--log-format", metavar="FORMAT", help="human or json. [default: human]")
def command(config: Path | None, **flags: Any) -> None:
    """Run the appliance in the foreground until SIGTERM or SIGINT.

    When everything is served, one line of JSON on stdout says where:
    {"event": "ready", "api": "http://…", "iscsi": "host:port", "iscsi_portals": ["host:port"], "nbd": "host:port"}.
    The log goes to stderr.
    """
    settings = load(flags, config=config)
    log.start(settings.log_level, settings.log_format)
    try:
        asyncio.run(_serve(settings))
    except NativeError as error:
        raise from_native(error) from error


async def _serve(settings: Settings) -> None:
    logger = log.get("serve")
    loop = asyncio.get_running_loop()
    stopping = asyncio.Event()

    def stop(signal_name: str) -> None:
        logger.info("stopping", signal=signal_name)
        stopping.set()

    # From the first moment: a stop during a long start is a clean stop too.
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop, number.name)

    listener = api_server.listen(settings.api)
    try:
        appliance = Appliance(settings)
    except BaseException:
        listener.close()
        raise
    try:
        await asyncio.to_thread(appliance.start)
        await _serve_api(appliance, settings, listener, stopping)
    finally:
        systemd.notify("STOPPING=1")
        listener.close()
        await asyncio.to_thread(appliance.stop)


async def _serve_api(
    appliance: Appliance, settings: Settings, listener: socket.socket, stopping: asyncio.Event
) -> None:
    bound = Address(settings.api.host, int(listener.getsockname()[1]))
    appliance.api_address = bound.text
    token = None if bound.is_loopback else await asyncio.to_thread(appliance.store.token)
    names = {
        *settings.allowed_hosts,
        settings.api.host.lower(),
        settings.advertise.lower(),
        socket.gethostname().lower(),
        socket.getfqdn().lower(),
    }
    app = create_app(appliance, token, frozenset(names - {""}))
    server = api_server.server(app)
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    stopped = asyncio.create_task(stopping.wait())
    while not server.started and not serving.done() and not stopping.is_set():
        await asyncio.sleep(0.005)
    if server.started and not stopping.is_set():
        ready(appliance, settings, bound)
    await asyncio.wait({serving, stopped}, return_when=asyncio.FIRST_COMPLETED)
    stopped.cancel()
    server.should_exit = True
    await serving
    if not stopping.is_set():
        raise PlayheadError("internal", "the API server ended by itself", "look at the log")


def ready(appliance: Appliance, settings: Settings, api: Address) -> None:
    """Tells whoever started us that everything is served, and where."""
    portals, nbd = [portal.text for portal in appliance.exports.iscsi_portals], appliance.exports.nbd_address
    line = {
        "event": "ready",
        "api": f"http://{url_host(api, settings)}:{api.port}",
        "iscsi": portals[0] if portals else None,
        "iscsi_portals": portals,
        "nbd": nbd.text if nbd else None,
    }
    try:
        print(json.dumps(line), flush=True)
    except BrokenPipeError:
        # Nobody reads it; serve all the same, and do not stumble again when Python flushes at exit.
        sys.stdout = None
    systemd.notify("READY=1", f"STATUS=API on {api.text}")
