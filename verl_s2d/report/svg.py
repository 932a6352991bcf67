"""A plot's SVG file, made part of the page: in the page's colours and font, and without style of its own, so that the
page's content security policy can refuse styles that are not its one stylesheet."""

from __future__ import annotations

import re
from xml.etree import ElementTree

from verl_s2d.report.plot_style import PAPER, VARIABLES

_SVG, _LINK = "http://www.w3.org/2000/svg", "{http://www.w3.org/1999/xlink}href"
_NUMBER = re.compile(r"-?\d+\.\d+")
_NO_TURN = re.compile(r"rotate\(-?0 ")


def inline(svg: str, *, name: str, label: str) -> str:
    """The file's content as an element of an HTML page.

    Args:
        svg: as matplotlib writes it.
        name: put before its ids, which have to be unique on a page.
        label: for those who do not see it.
    """
    root = ElementTree.fromstring(svg)
    for parent in list(root.iter()):
        for child in list(parent):
            background = child.tag == f"{{{_SVG}}}path" and child.get("style") == f"fill: {PAPER}"
            if background or child.tag in (f"{{{_SVG}}}metadata", f"{{{_SVG}}}style"):
                parent.remove(child)
    for element in root.iter():
        _restyle(element, name)
    for size in ("width", "height", "version"):
        root.attrib.pop(size, None)
    root.attrib |= {"role": "img", "aria-label": label, "stroke-linejoin": "round"}
    ElementTree.register_namespace("", _SVG)
    text = ElementTree.tostring(root, encoding="unicode")
    return re.sub(r">\s+<", "><", text)


def _restyle(element: ElementTree.Element, name: str) -> None:
    for declaration in element.attrib.pop("style", "").split(";"):
        key, _, value = (part.strip() for part in declaration.partition(":"))
        if key and key != "font-family":
            element.set(key, VARIABLES.get(value, value.removesuffix("px")))
    if _LINK in element.attrib:
        element.set("href", f"#{name}-{element.attrib.pop(_LINK)[1:]}")
    if "clip-path" in element.attrib:
        element.set("clip-path", element.attrib["clip-path"].replace("url(#", f"url(#{name}-"))
    if "id" in element.attrib:
        element.set("id", f"{name}-{element.attrib['id']}")
    if _NO_TURN.match(element.get("transform", "")):
        del element.attrib["transform"]
    for key in ("d", "x", "y", "width", "height", "transform", "viewBox", "points"):
        if key in element.attrib:
            text = _NUMBER.sub(lambda found: f"{float(found[0]):.2f}".rstrip("0").rstrip("."), element.attrib[key])
            element.set(key, " ".join(text.split()))
