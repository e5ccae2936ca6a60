"""Looks at pages in headless Chromium: .venv-browser/bin/python -m tests.ops.tools.browser PAGE … [--pictures DIR].

Prints, as JSON, what is to be seen of each page in each view: what a person could not see, reach, read or trust.
"""

import argparse
import json
import sys
from itertools import product
from pathlib import Path
from typing import Any

from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Dialog, Page, Request, sync_playwright

VIEWS = {"desktop": (1280, 900), "phone": (375, 740)}
SCHEMES = ("light", "dark")
# Each layout and each scheme once: enough to find what is wrong.
_LOOKS = [("desktop", "light"), ("phone", "dark")]

_FACTS = """() => ({
  title: document.title,
  overflow: document.documentElement.scrollWidth - document.documentElement.clientWidth,
  scripts: document.querySelectorAll("script, [onload], [onerror], [onclick], iframe, object, img, link").length,
  text: document.body.innerText,
  clipped: [...document.querySelectorAll("header *, section *")].filter((one) =>
    one.clientWidth > 1 && one.scrollWidth > one.clientWidth + 1).map((one) => one.outerHTML.slice(0, 80)),
  rows: document.querySelectorAll("tbody tr").length,
  rows_with_roles: document.querySelectorAll("table[role=table] tbody[role=rowgroup] tr[role=row]").length,
  tampered: Boolean(window.tampered),
})"""
_COLOURS = """() => {
  const style = getComputedStyle(document.body);
  return {ground: style.backgroundColor, text: style.color};
}"""
_FOCUSED = """() => {
  const one = document.activeElement, style = getComputedStyle(one), box = one.getBoundingClientRect();
  return {name: one.innerText.trim(), seen: style.outlineStyle !== "none" && box.right > 0 && box.width > 0};
}"""


def look(chromium: Browser, path: Path, view: str, scheme: str, pictures: Path | None) -> dict[str, Any]:
    """Open a page as a person would, and return what there is to know about it."""
    width, height = VIEWS[view]
    context = chromium.new_context(viewport={"width": width, "height": height}, color_scheme=scheme, offline=True)
    page = context.new_page()
    requests: list[Request] = []
    said: list[str] = []
    page.on("request", lambda request: requests.append(request))  # noqa: PLW0108 - it marks what it is given
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))

    def dismiss(dialog: Dialog) -> None:
        said.append(f"dialog: {dialog.message}")
        dialog.dismiss()

    page.on("dialog", dismiss)
    page.goto(path.resolve().as_uri())
    facts = {**page.evaluate(_FACTS), "colours": page.evaluate(_COLOURS), "said": said}
    # The page itself is the first; what its own policy forbids is never sent.
    facts["requests"] = [one.url for one in requests[1:] if one.failure != "csp"]
    if pictures is not None:
        page.screenshot(path=pictures / f"{path.stem}-{view}-{scheme}.png", full_page=True)
    facts["violations"] = [f"{one['id']}: {one['nodes'][0]['html']}" for one in Axe().run(page).response["violations"]]
    if view == "desktop" and scheme == "light":
        facts |= {"focus": _focus_order(page), "tree": page.locator("body").aria_snapshot()}
        page.emulate_media(media="print", color_scheme="dark")
        facts["printed"] = page.evaluate(_COLOURS)
        if pictures is not None:
            page.pdf(path=pictures / f"{path.stem}.pdf", format="A4")
    context.close()
    return facts


def _focus_order(page: Page) -> list[dict[str, Any]]:
    """Press Tab until the page is left, or once too often."""
    order = []
    for _ in range(40):
        page.keyboard.press("Tab")
        focused = page.evaluate(_FOCUSED)
        if page.evaluate("() => document.activeElement === document.body"):
            break
        order.append(focused)
    return order


def main() -> int:
    """Look at the pages that the command line names."""
    parser = argparse.ArgumentParser()
    parser.add_argument("pages", type=Path, nargs="+")
    parser.add_argument("--browser", default="/usr/bin/chromium")
    parser.add_argument(
        "--pictures", type=Path, help="a directory for a picture of each page in each view, and on paper"
    )
    options = parser.parse_args()
    looks = list(product(VIEWS, SCHEMES)) if options.pictures else _LOOKS
    with sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=options.browser)
        seen = {
            path.stem: {
                f"{view} {scheme}": look(chromium, path, view, scheme, options.pictures) for view, scheme in looks
            }
            for path in options.pages
        }
        chromium.close()
    print(json.dumps(seen))
    return 0


if __name__ == "__main__":
    sys.exit(main())
