"""Bringing a Visdom server up to date with a board."""

import contextlib

from gan.viewers import RunInfo
from gan.viewers.visdom_http import Client
from gan.viewers.visdom_panes import Board, about_message, history_message, samples_message


def send_news(client: Client, run: RunInfo, env: str, board: Board) -> None:
    """Send what the server does not have yet, the newest samples first. Raises Unreachable half way."""
    if board.newest and not board.newest_sent:
        with contextlib.suppress(OSError):  # its picture is gone: the next one comes soon
            client.post(*samples_message(run, env, board.newest))
        board.newest_sent = True
    for pane in board.panes.values():
        if message := pane.message(env):
            client.post(*message)
            pane.was_sent()
    while board.history_sent < len(board.history):
        try:
            picture = history_message(
                run, env, board.history[board.history_sent], first=board.history_sent == 0
            )
        except OSError:  # its picture is gone: the slider has one moment less
            del board.history[board.history_sent]
            continue
        client.post(*picture)
        board.history_sent += 1


def send_all(client: Client, run: RunInfo, env: str, board: Board) -> None:
    """Send a finished run and have the server keep it. Raises Unreachable."""
    send_news(client, run, env, board)
    client.post(*about_message(run, env))
    client.post("save", {"data": [env]})
