"""Normalisation: one form for what is the same text, and nothing lost that carries meaning.

In order: entities and HTML tags, line ends, invisible characters and emoji, width (NFKC on chosen ranges
only, see characters.FOLD_RANGES), NFC, traditional to simplified, blanks. Applying it twice changes
nothing. No character of the script Han is ever removed, whatever its plane; nothing is matched by
escape-like letters, so "uface" stays; what stands after a full-width colon stays. A step runs only where
the text holds something for it: a table look-up at about 4 ns a character decides.

Leaves out: judging (filters.py). Markdown stays as it is: `<name>` is removed only if HTML knows the name.
"""

from __future__ import annotations

import html
import html.entities
import re
import unicodedata

import numpy as np

from chuxin.corpus import characters as ch
from chuxin.corpus.config import NormalizeConfig

_BLOCKS = (
    "address article aside blockquote body br caption center dd details dialog div dl dt fieldset "
    "figcaption figure footer form h1 h2 h3 h4 h5 h6 head header hr html iframe legend li link main "
    "menu meta nav noscript object ol optgroup option p param picture pre section select source style "
    "script summary table tbody td textarea tfoot th thead title tr track ul video audio base canvas "
    "svg "
).split()
_INLINES = (
    "a abbr acronym area b basefont bdi bdo big button cite code col colgroup data datalist del dfn em "
    "embed font i img input ins kbd label map mark meter nobr output progress q rp rt ruby s samp small "
    "span strike strong sub sup time tt u var wbr o:p "
).split()
_NAMES = "|".join((*_BLOCKS, *_INLINES))
# Stops at the next angle bracket, so that it takes linear time and "a < b, c > d" stays.
_TAG = re.compile(rf"</?({_NAMES})(?=[\s/>])[^<>]*>", re.I)
_DECLARATION = re.compile(r"<(?:!doctype|\?xml)[^<>]*>", re.I)
_HIDDEN = re.compile(r"<!--|<(script|style)(?=[\s/>])", re.I)
_ENDS = {name: re.compile(end, re.I)
         for name, end in ((None, "-->"), ("script", r"</script\s*>"), ("style", r"</style\s*>"))}
_ENTITY = re.compile(r"&(?:#\d{1,7}|#[xX][0-9a-fA-F]{1,6}|[A-Za-z][A-Za-z0-9]{1,31});")
_ESCAPED_AMP = re.compile(r"&(?:amp;)+")
_MAX_NESTING = 8

_TERMINAL = re.compile("\x1b\\[[0-9;?]*[@-~]")  # colours and cursor moves; needs the escape character itself
_BREAKS = ch.pattern(ch.BREAK_RANGES)
_DROPPED = ch.pattern(ch.DROP_RANGES)
_EMOJI = ch.pattern(ch.EMOJI_RANGES)
_FOLDED = ch.pattern(ch.FOLD_RANGES)
_BLANKS = re.compile("[ " + ch.pattern(ch.SPACE_RANGES).pattern[1:])
_LINE_END = re.compile(" ?\n ?")
_EMPTY_LINES = re.compile("\n{3,}")


def normalize(text: str, config: NormalizeConfig) -> str:
    """Returns the text in its normal form; paragraphs are separated by one or two line ends."""
    # A decoded entity may be anything, another tag included; nesting beyond 8 is an attack and stays.
    for _ in range(_MAX_NESTING):
        text, before = _characters(text, config), text
        if not config.strip_html or not ("<" in text or "&" in text):
            break
        text, before = _strip_markup(text), text
        if text == before:
            break
    if config.simplify and _flags(text) & ch.TRADITIONAL:
        text = ch.simplify(text)
    return _blanks(text)


def normalize_line(text: str, config: NormalizeConfig) -> str:
    """Normalises a title or query: the same, on one line."""
    return " ".join(line for line in normalize(text, config).split("\n") if line)


def _flags(text: str) -> int:
    return int(np.bitwise_or.reduce(ch.table()[ch.code_points(text)], initial=0))


def _characters(text: str, config: NormalizeConfig) -> str:
    flags = _flags(text)
    if flags & ch.BREAK:
        text = _BREAKS.sub("\n", text.replace("\r\n", "\n"))
    if flags & ch.DROP:
        text = _DROPPED.sub("", _TERMINAL.sub("", text))
    if flags & ch.EMOJI and config.strip_emoji:
        text = _EMOJI.sub("", text)
    if flags & ch.FOLD:
        text = _FOLDED.sub(lambda run: unicodedata.normalize("NFKC", run.group()), text)
    return unicodedata.normalize("NFC", text)


def _strip_markup(text: str) -> str:
    if "&" in text:
        text = _ENTITY.sub(_decode, _ESCAPED_AMP.sub("&", text))
    if "<" in text:
        text = _DECLARATION.sub("\n", _cut_hidden(text))
        text = _TAG.sub(lambda tag: "\n" if tag.group(1).lower() in _BLOCKS else "", text)
    return text


def _decode(entity: re.Match[str]) -> str:
    name = entity.group()
    return html.unescape(name) if name[1] == "#" or name[1:] in html.entities.html5 else name


def _cut_hidden(text: str) -> str:
    """Removes comments, scripts and styles with what is inside; one without an end stays. Linear time."""
    kept, position, endless = [], 0, set[str | None]()
    for start in _HIDDEN.finditer(text):
        kind = start.group(1).lower() if start.group(1) else None
        if start.start() < position or kind in endless:
            continue
        end = _ENDS[kind].search(text, start.end())
        if end is None:
            endless.add(kind)
            continue
        kept += [text[position:start.start()], "\n"]
        position = end.end()
    return "".join([*kept, text[position:]])


def _blanks(text: str) -> str:
    if "  " in text or _flags(text) & ch.SPACE:
        text = _BLANKS.sub(" ", text)
    if " \n" in text or "\n " in text:
        text = _LINE_END.sub("\n", text)
    if "\n\n\n" in text:
        text = _EMPTY_LINES.sub("\n\n", text)
    return text.strip(" \n")
