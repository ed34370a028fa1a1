# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Pages in a real browser: nothing overflows, nothing is reported, everything can be read, on any screen and paper."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import pytest
from devtools import Page

# elements that reach beyond the window, unless they are in a box that scrolls, hidden, or within a picture
BEYOND = """(() => {
  const found = [];
  for (const element of document.querySelectorAll('body *')) {
    if (element.parentElement.closest('.scroll, svg, .strip') || element.matches('.sr, .defs')) continue;
    const box = element.getBoundingClientRect();
    if (box.width && (box.right > innerWidth + 0.5 || box.left < -0.5))
      found.push(`${element.tagName}.${element.className} ${box.left}-${box.right}`);
  }
  return {width: document.documentElement.scrollWidth, window: innerWidth, found};
})()"""
# text whose contrast with what is behind it is below WCAG 2.1 AA; words on images have a shadow and don't count
PALE = """(() => {
  const parse = text => (text.match(/[\\d.]+/g) || []).map(Number);
  const light = colour => {
    const [r, g, b] = colour.slice(0, 3).map(v => (v /= 255) <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = element => {
    for (let e = element; e; e = e.parentElement) {
      const colour = parse(getComputedStyle(e).backgroundColor);
      if (colour.length === 3 || colour[3] > 0.99) return colour;
    }
    return [255, 255, 255];
  };
  const found = [], walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let node; (node = walker.nextNode());) {
    const element = node.parentElement, style = getComputedStyle(element);
    if (!node.data.trim() || element.closest('.mark, .sr, .defs')) continue;
    const ink = element.closest('svg') ? style.fill : style.color;
    const [a, b] = [light(parse(ink)), light(behind(element))];
    const contrast = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    const size = parseFloat(style.fontSize), large = size >= 24 || (size >= 18.66 && style.fontWeight >= 700);
    if (contrast < (large ? 3 : 4.5)) found.push(`${contrast.toFixed(2)} ${element.className} ${node.data.trim()}`);
  }
  return found;
})()"""
SMALL = """[...document.querySelectorAll('body *')].filter(e => e.childNodes.length && [...e.childNodes].some(
  n => n.nodeType === 3 && n.data.trim()) && !e.closest('.sr, .defs')).map(e => {
  const scale = e.closest('svg') ? e.getCTM().a : 1;
  return [parseFloat(getComputedStyle(e).fontSize) * scale, e.textContent.trim()];
}).filter(([size]) => size < 9.5)"""
PICTURES = """Promise.all([...document.querySelectorAll('image')].map(async e => {
  const picture = new Image();
  picture.src = e.getAttribute('href');
  await picture.decode();
  return picture.naturalWidth * picture.naturalHeight;
}))"""
METHODS = ("joint_policy", "adversarial")


def opened(browser: Page, page: Path, **window: Any) -> None:
    browser.events.clear()
    browser.show(page, **window)


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [1280, 400])
@pytest.mark.parametrize("method", METHODS)
def test_nothing_overflows_and_nothing_is_reported(
    browser: Page, pages: dict[str, Path], tmp_path: Path, method: str, width: int, dark: bool
) -> None:
    opened(browser, pages[method], width=width, dark=dark)
    measured = browser.evaluate(BEYOND)
    assert measured["window"] == width
    assert measured["width"] <= width
    assert measured["found"] == []
    assert browser.evaluate(PALE) == []
    assert browser.evaluate(SMALL) == []
    assert browser.complaints() == []
    assert browser.requests() == [pages[method].resolve().as_uri()]
    paper = browser.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (paper == "rgb(255, 255, 255)") is not dark
    shot = browser.screenshot(tmp_path / f"{method}_{width}_{'dark' if dark else 'light'}.png").read_bytes()
    assert struct.unpack(">I", shot[16:20])[0] == width
    assert struct.unpack(">I", shot[20:24])[0] > 3000  # all of it, not only what the window shows
    assert len(shot) > 100_000


@pytest.mark.parametrize("method", METHODS)
def test_every_picture_can_be_decoded(browser: Page, pages: dict[str, Path], method: str) -> None:
    opened(browser, pages[method], width=1280)
    sizes = browser.evaluate(PICTURES)
    assert len(sizes) > 30
    assert min(sizes) > 1000


def test_what_is_repeated_is_drawn_again(browser: Page, pages: dict[str, Path]) -> None:
    """The patch before, of which the page holds one copy."""
    opened(browser, pages["adversarial"], width=1280)
    boxes = browser.evaluate("[...document.querySelectorAll('use')].map(e => e.getBoundingClientRect().width)")
    assert len(boxes) == 3
    assert min(boxes) > 200


@pytest.mark.parametrize("method", METHODS)
def test_on_paper_it_is_dark_on_white_and_whole(
    browser: Page, pages: dict[str, Path], tmp_path: Path, method: str
) -> None:
    opened(browser, pages[method], width=794, dark=True, media="print")  # A4
    assert browser.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert browser.evaluate(PALE) == []
    assert browser.evaluate(BEYOND)["found"] == []
    assert browser.evaluate("getComputedStyle(document.querySelector('nav')).display") == "none"
    assert browser.evaluate("getComputedStyle(document.querySelector('.strip')).printColorAdjust") == "exact"
    printed = browser.pdf(tmp_path / "page.pdf").read_bytes()
    assert printed.startswith(b"%PDF")
    assert printed.count(b"/Type /Page\n") + printed.count(b"/Type /Page/") + printed.count(b"/Type /Page ") > 2


def test_the_checks_themselves_see_a_fault(browser: Page, tmp_path: Path) -> None:
    page = tmp_path / "bad.html"
    page.write_text(
        "<!DOCTYPE html><body style='margin:0'><div style='width:900px'>wide</div>"
        "<p style='color:#999;background:#fff'>pale</p><p style='font-size:6px'>small</p>"
        "<script>console.error('loud'); throw new Error('broken')</script><img src='missing.png'>"
    )
    opened(browser, page, width=400)
    measured = browser.evaluate(BEYOND)
    assert measured["found"]
    assert measured["width"] > 400
    assert any("pale" in text for text in browser.evaluate(PALE))
    assert browser.evaluate(SMALL) == [[6, "small"]]
    told = " ".join(browser.complaints())
    assert "loud" in told
    assert "broken" in told
    assert len(browser.requests()) == 2
