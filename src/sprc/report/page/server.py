"""Serves the search page on this machine alone, until Ctrl-C."""

import getpass
import importlib.util
import logging
import os
import signal
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

from sprc.core.errors import InputError
from sprc.core.stop_signals import SIGNALS, Stopped, StopSignals
from sprc.report.page.desk import RegionsOf
from sprc.retrieval.retriever import Retriever
from sprc.retrieval.search_options import PORT

logger = logging.getLogger(__name__)

HOST = "127.0.0.1"
HOST_NAMES = [HOST, "localhost"]  # what a browser may call this server: another site's name is refused
MOST_UPLOADED = "64mb"
STATES = 200  # sessions that are kept in memory


def serve_page(retriever: Retriever, port: int = PORT, regions_of: RegionsOf | None = None) -> None:
    """Serve the page of a retriever whose index is open, at http://127.0.0.1:<port>, until Ctrl-C or SIGTERM.

    Args:
        port: 0 takes any that is free. The log says the address.
        regions_of: the boxes of a name; None, and the page has no switch for them.

    Raises InputError if gradio is not installed or the port is taken, and `Stopped` at the end.
    """
    if importlib.util.find_spec("gradio") is None:
        raise InputError('the page needs gradio: pip install "sprc-regions[page]", or pip install gradio')
    with StopSignals() as signals, listening(port) as listener, own_settings():
        server = _server(retriever, regions_of)
        leave_ignored(server)
        logger.info(_address(listener.getsockname()[1]))
        server.run(sockets=[listener])
        if signals.number is not None:
            raise Stopped(signals.number, "the page is closed")


@contextmanager
def listening(port: int) -> Iterator[socket.socket]:
    """A socket that listens at a port of this machine alone. Raises InputError if the port cannot be had."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((HOST, port))
            listener.listen()
        except (OSError, OverflowError) as error:
            reason = getattr(error, "strerror", None) or "ports end at 65535"
            raise InputError(f"`port` {port} cannot be used ({reason}): give another one") from error
        yield listener


@contextmanager
def own_settings() -> Iterator[None]:
    """Gradio without telemetry, and with a folder of its own for uploads and pictures, which is removed at the end.

    Settings of the environment, by which Gradio might show the page or its files to others, do not count.
    """
    before = dict(os.environ)
    with tempfile.TemporaryDirectory(prefix="sprc-page-") as folder:
        for name in [name for name in os.environ if name.startswith("GRADIO_")]:
            del os.environ[name]
        os.environ |= {"GRADIO_TEMP_DIR": folder, "GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_DISABLE_TELEMETRY": "1"}
        try:
            yield
        finally:
            os.environ.clear()
            os.environ.update(before)


def leave_ignored(server) -> None:
    """Have a server, which takes SIGINT and SIGTERM for itself, leave those alone that are ignored (`nohup`)."""
    ignored = {number for number in SIGNALS if signal.getsignal(number) is signal.SIG_IGN}
    end = server.handle_exit
    server.handle_exit = lambda number, frame: None if number in ignored else end(number, frame)


def _server(retriever: Retriever, regions_of: RegionsOf | None):
    """A server of the page, which has no other pages: no documents of an API, no history of runs."""
    import gradio as gr
    import uvicorn
    from fastapi import FastAPI
    from fastapi.middleware.trustedhost import TrustedHostMiddleware

    from sprc.report.page.layout import build_page
    from sprc.report.page.style import CSS, theme

    blocks = build_page(retriever, regions_of)
    blocks.state_session_capacity = STATES
    app = FastAPI(openapi_url=None)
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=HOST_NAMES)
    gr.mount_gradio_app(
        app, blocks, "/", HOST, footer_links=[], run_history=False, show_error=False, max_file_size=MOST_UPLOADED,
        ssr_mode=False, enable_monitoring=False, pwa=False, mcp_server=False, theme=theme(), css=CSS,
    )  # fmt: skip
    return uvicorn.Server(uvicorn.Config(app, log_level="critical", timeout_graceful_shutdown=1))


def _address(port: int) -> str:
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # no name for this user's number
        user = "USER"
    tunnel = f"ssh -L {port}:{HOST}:{port} {user}@{socket.gethostname()}"
    return f"http://{HOST}:{port} is the page; Ctrl-C ends it. From another machine: {tunnel}, then the same address"
