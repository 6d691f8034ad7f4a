"""The HTTP server: `python serve.py --host 127.0.0.1 --port 8000`. What has no flag is set by the variables of .env.example.

It answers at once, and writes text as soon as the model is loaded. SIGTERM lets running requests finish, SIGHUP loads the
checkpoint again. Exit codes: 0 when it was stopped, 2 for a mistake in the settings.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import signal
import sys
import threading
from argparse import SUPPRESS
from typing import TYPE_CHECKING, Any

from config import ROOT, Parser, ServeConfig, UserError
from server.listening import bind

if TYPE_CHECKING:
    import socket

    from fastapi import FastAPI

    from inference.host import Host

FLUSH = 5  # seconds after the last token in which answers still go out
DEV = {"docs": True, "metrics_port": 0, "random_key": False}  # what differs for developers
KEEP_ALIVE = 75  # seconds: longer than a proxy keeps its connections, which would else meet a closed one

log = logging.getLogger("server")


def create_app(config: ServeConfig, host: Host | None = None) -> FastAPI:
    """The application, as `server/app.py` puts it together."""
    import multimodal.fusion  # noqa: F401  the checkpoint may be of a model that sees and hears
    from server import app

    return app.create(config, host)


def main(argv: list[str] | None = None) -> None:
    """The command."""
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")  # the model's idle threads soon let HTTP have the core
    try:
        config, dev = settings(argv)
        develop(config) if dev else serve(config)
    except UserError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:  # before the server could handle it
        sys.exit(130)


def settings(argv: list[str] | None) -> tuple[ServeConfig, bool]:
    """The configuration from flags and environment, and whether to reload code as it changes."""
    parser = Parser(prog="serve.py", description=__doc__.partition("\n")[0].partition(":")[0] + ".")
    fields = {item.name: item for item in dataclasses.fields(ServeConfig)}
    for name, kind in (("host", str), ("port", int), ("checkpoint", str)):
        text = f"{fields[name].metadata['help']} [{fields[name].default}]"
        parser.add_argument(f"--{name}", type=kind, default=SUPPRESS, help=text)
    parser.add_argument("--dev", action="store_true", help="for developers: reload code, /docs, readable logs")
    given = vars(parser.parse_args(argv))
    dev = given.pop("dev")
    return ServeConfig.from_env(os.environ, **given, **(DEV if dev else {})), dev


def serve(config: ServeConfig) -> None:
    """Serves until a signal ends it."""
    # Until uvicorn runs, which has handlers of its own. An exception could rise in the middle of its event loop's making.
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    with contextlib.ExitStack() as stack:
        listening = stack.enter_context(bind(config.host, config.port))  # before all that takes its time to load
        from server import greeting, logs, metrics_routes

        logs.configure(config.log_level, readable=False)
        app = create_app(config)
        if config.metrics_port:
            figures = (app.state.metrics.registry, config.host, config.metrics_port, config.metrics_token)
            stack.enter_context(metrics_routes.own_port(*figures))
        print(greeting.first_lines(config, app.state.gate, listening.getsockname()[1]), flush=True)
        make_server(app, config).run(sockets=[listening])
    leave()


def leave() -> None:
    """Ends the process at once where the interpreter's usual end would crash a thread in the middle of loading a model."""
    if "loader" in {thread.name for thread in threading.enumerate()}:
        os._exit(0)


def make_server(app: FastAPI, config: ServeConfig) -> Any:
    """uvicorn, which on SIGTERM first lets the engine finish, and answers all the while: /readyz says 503 then."""
    import uvicorn

    from server.app import load

    host = app.state.host

    class Server(uvicorn.Server):
        draining = False

        def handle_exit(self, sig: int, frame: Any) -> None:
            again = self.draining and sig == signal.SIGINT  # who presses Ctrl-C twice does not want to wait
            if again or not self.draining:
                self.draining = True
                seconds = 0.0 if again else config.drain_seconds
                threading.Thread(target=self.drain, args=[seconds], name="drain", daemon=True).start()

        def drain(self, seconds: float) -> None:
            log.info("stopping: what runs may finish for %g seconds", seconds)
            try:
                host.drain(seconds)
            finally:
                self.should_exit = True

    if hasattr(signal, "SIGHUP"):
        again = {"target": load, "args": [host], "name": "loader", "daemon": True}
        signal.signal(signal.SIGHUP, lambda *_: threading.Thread(**again).start())
    return Server(uvicorn.Config(app, **uvicorn_options(config), timeout_graceful_shutdown=FLUSH))


def uvicorn_options(config: ServeConfig) -> dict[str, Any]:
    """What uvicorn is told."""
    from server.addresses import with_mapped
    from server.listening import UVICORN

    return {
        **UVICORN,
        "lifespan": "on",
        "timeout_keep_alive": KEEP_ALIVE,
        "proxy_headers": bool(config.trusted_proxies),
        "forwarded_allow_ips": [name for proxy in config.trusted_proxies for name in with_mapped(proxy)],
    }


def develop(config: ServeConfig) -> None:
    """Serves in a child process, which is started anew when a file of the server or the engine changes."""
    import uvicorn
    from uvicorn.supervisors import ChangeReload

    from server import greeting
    from server.auth import Gate

    with bind(config.host, config.port) as listening:  # who calls between two processes waits in line
        gate, port = Gate(config), listening.getsockname()[1]
        os.environ["LLM_JWT_SECRET"] = gate.secret  # one for all the processes: tokens outlive a change of the code
        print(greeting.first_lines(config, gate, port))
        print(f"Watching server/ and inference/. {greeting.address(config, port)}/docs", flush=True)
        watched = [str(ROOT / name) for name in ("server", "inference")]
        how_to_watch = uvicorn.Config("serve:reloaded", reload=True, reload_dirs=watched, **uvicorn_options(config))
        ChangeReload(how_to_watch, reloaded, [listening]).run()


def reloaded(sockets: list[socket.socket]) -> None:
    """What each of these processes does: serves until it is told to stop, with the flags of the first one."""
    from server import logs

    config, _ = settings(sys.argv[1:])
    logs.configure(config.log_level, readable=True)
    try:
        make_server(create_app(config), config).run(sockets=sockets)
    except UserError as error:
        sys.exit(str(error))
    leave()


if __name__ == "__main__":
    main()
