"""Bringing a Visdom server up to date with a board."""

from gan.viewers import RunInfo
from gan.viewers.visdom_http import Client
from gan.viewers.visdom_panes import Board, about_message, samples_message


def send_news(client: Client, run: RunInfo, env: str, board: Board) -> None:
    """Send what the server does not have yet, pictures first. Raises Unreachable half way."""
    while board.moments_sent < len(board.moments):
        try:
            picture = samples_message(
                run, env, board.moments[board.moments_sent], board.moments_sent == 0, board.slider
            )
        except OSError:  # its picture is gone: the slider has one moment less
            del board.moments[board.moments_sent]
            continue
        client.post(*picture)
        board.moments_sent += 1
    while board.replaced:
        client.post("close", {"win": board.replaced[0], "eid": env})
        del board.replaced[0]
    for pane in board.panes.values():
        if message := pane.message(env):
            client.post(*message)
            pane.was_sent()


def send_all(client: Client, run: RunInfo, env: str, board: Board) -> None:
    """Send a finished run and have the server keep it. Raises Unreachable."""
    send_news(client, run, env, board)
    client.post(*about_message(run, env))
    client.post("save", {"data": [env]})
