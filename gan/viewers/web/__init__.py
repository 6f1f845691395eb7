"""The parts of the web pages (HTML, CSS, JavaScript), and how they become one file.

Nothing is loaded from anywhere: style and scripts are written into the page.
"""

import html
import json
import re
from pathlib import Path
from typing import Any

_FOLDER = Path(__file__).parent
_SHARED_SCRIPTS = ("run.js", "curves.js", "samples.js")


def fill(template: str, script: str, **texts: str) -> str:
    """The template with style, shared scripts and `script` in it; `texts` replace `{{name}}` as they are.

    Whoever passes a text has escaped it: `escape` for words, `embed` for data.
    """
    page = part(template)
    scripts = "\n".join(part(name) for name in (*_SHARED_SCRIPTS, script))
    parts = {**texts, "style": part("page.css"), "script": scripts}
    names = "|".join(map(re.escape, parts))
    # all at once: a text that looks like a placeholder stays a text
    return re.sub(r"\{\{(" + names + r")\}\}", lambda match: parts[match[1]], page)


def part(name: str) -> str:
    """One file of this folder as text."""
    return (_FOLDER / name).read_text(encoding="utf-8")


def escape(text: str) -> str:
    """Text as HTML, in a tag or in a quoted attribute."""
    return html.escape(text, quote=True)


def embed(data: Any) -> str:
    """JSON that cannot end the script element it stands in. Values JSON does not know become text."""
    return json.dumps(data, default=str).replace("<", "\\u003c")
