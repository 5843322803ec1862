"""Lets pages of the site name files of the repository: a link out of `docs` becomes the file's path.

The pages are read in the repository too, where such links work; the site does not hold those files.
"""

import re
from typing import Any


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Returns the text of a page with each link to a file beside `docs` as the path of that file."""
    return re.sub(r"\[([^\]]+)\]\(\.\./([^)#\s]+)[^)]*\)", r"\1 (`\2`)", markdown)
