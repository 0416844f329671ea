"""Run in the guest: imports Playhead once, which takes an emulated processor half a minute, and forks for every service that is started.

Each line of its standard input is the arguments of a `playhead` to start; the number of the process goes to /run/playhead.pid.
"""

import gc
import os
import shlex
import signal
import sys
from pathlib import Path

gc.disable()
import uvicorn.lifespan.on  # noqa: E402
import uvicorn.loops.asyncio  # noqa: E402
import uvicorn.protocols.http.h11_impl  # noqa: E402, F401

import playhead.api.app  # noqa: E402
import playhead.api.server  # noqa: E402
import playhead.cli.serve  # noqa: E402, F401
from playhead.cli import main  # noqa: E402

# Nobody waits for those that end.
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
for line in sys.stdin:
    if pid := os.fork():
        Path("/run/playhead.pid").write_text(str(pid))
        continue
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    gc.enable()
    sys.argv = ["playhead", *shlex.split(line)]
    main()
    break
