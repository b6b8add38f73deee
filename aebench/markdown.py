"""Markdown to HTML, the part of it that notes use: headings, paragraphs, lists, tables, code, emphasis.

Every character of the text is escaped first, so notes cannot bring tags of their own; links stay text.
"""

import re
from collections.abc import Iterator
from itertools import groupby

from markupsafe import Markup, escape

_HEADING = re.compile(r"(#{1,6})\s+(.*)")
_ITEM = re.compile(r"\s*(?:[-*+]|(\d+)[.)])\s+(.*)")
_RULE = re.compile(r"\|?\s*:?-{2,}:?\s*(\|\s*:?-{2,}:?\s*)*\|?\s*")
_FENCE = re.compile(r"^```[^\n]*\n(.*?)^```\s*$", re.MULTILINE | re.DOTALL)
_CODE = re.compile(r"`([^`]+)`")
_STRONG = re.compile(r"\*\*(.+?)\*\*")
_EMPHASIS = re.compile(r"(?<![\w*])\*([^*\s](?:[^*]*[^*\s])?)\*(?![\w*])")


def to_html(text: str) -> Markup:
    """The notes as HTML."""
    html = []
    for index, part in enumerate(_FENCE.split(text)):
        if index % 2:
            html.append(f"<pre><code>{escape(part)}</code></pre>")
        else:
            html += [_block(lines) for lines in _blocks(part)]
    return Markup("\n".join(html))


def _blocks(text: str) -> Iterator[list[str]]:
    """Runs of lines without a blank one between them; a heading, and where a list begins, start a new one."""
    for filled, run in groupby(text.splitlines(), key=lambda line: bool(line.strip())):
        block: list[str] = []
        for line in run if filled else ():
            heads = _HEADING.match(line) or (_ITEM.match(line) and block and not _ITEM.match(block[0]))
            if block and (heads or _HEADING.match(block[0])):
                yield block
                block = []
            block.append(line)
        if block:
            yield block


def _block(lines: list[str]) -> str:
    if heading := _HEADING.match(lines[0]):
        level = min(len(heading[1]) + 2, 6)  # the page's own headings are 1 to 3
        return f"<h{level}>{_inline(heading[2])}</h{level}>"
    if _ITEM.match(lines[0]):
        return _list(lines)
    if len(lines) > 1 and "|" in lines[0] and _RULE.fullmatch(lines[1]):
        return _table(lines)
    return f"<p>{_inline(' '.join(line.strip() for line in lines))}</p>"


def _list(lines: list[str]) -> str:
    first = _ITEM.match(lines[0])
    tag = "ol" if first and first[1] else "ul"
    items: list[str] = []
    for line in lines:
        if item := _ITEM.match(line):
            items.append(item[2])
        else:
            items[-1] += f" {line.strip()}"
    return f"<{tag}>{''.join(f'<li>{_inline(item)}</li>' for item in items)}</{tag}>"


def _table(lines: list[str]) -> str:
    head, *body = [
        [_inline(cell.strip()) for cell in line.strip().strip("|").split("|")] for line in (lines[0], *lines[2:])
    ]
    header = "".join(f"<th>{cell}</th>" for cell in head)
    rows = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in body)
    return f"<table><thead><tr>{header}</tr></thead><tbody>{rows}</tbody></table>"


def _inline(text: str) -> str:
    """Escaped text with code, strong and emphasis; nothing is marked up inside code."""
    parts = _CODE.split(str(escape(text)))
    return "".join(f"<code>{part}</code>" if index % 2 else _styled(part) for index, part in enumerate(parts))


def _styled(text: str) -> str:
    return _EMPHASIS.sub(r"<em>\1</em>", _STRONG.sub(r"<strong>\1</strong>", text))
