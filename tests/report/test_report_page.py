"""The report's page in a headless browser: what it shows is what the ensemble holds, by mouse and by keyboard."""

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from ensembles import ensemble_of

import potentia as pt
from potentia.io import Ensemble
from potentia.report import write_report

pytest.importorskip("playwright", reason="playwright is not installed, which drives the browser")

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

CHROMIUM = next((p for p in map(shutil.which, ("chromium", "chromium-browser", "google-chrome")) if p), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium on this machine")

HOSTILE = "</script><img src=x onerror=\"document.title='taken'\">"
SHAPE = (3, 12, 1, 20, 26)


@pytest.fixture(scope="module")
def browser() -> Iterator["Browser"]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as started:
        opened = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


def store(images: torch.Tensor, lp: bool = True, **more: Any) -> Ensemble:
    def stats(k: int) -> dict[str, float]:
        return {"acceptance_rate": 0.9, "n_grad": k} | ({"lp": -float(k % 5)} if lp else {})

    return ensemble_of(images, stats=stats, closing={"sampling_time": 1.5}, **more)


def draws(*shape: int, dtype: torch.dtype = torch.complex64) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(*shape, dtype=dtype, generator=generator) + 3 * torch.randn(*shape[2:], generator=generator)


class Opened:
    """A page, with whatever it complained of and asked for."""

    def __init__(self, browser: "Browser", path: Path, **context: Any) -> None:
        self.context = browser.new_context(**context)
        self.page: Page = self.context.new_page()
        self.complaints: list[str] = []
        self.requests: list[str] = []
        # Chromium advises whoever reads canvases back, which only these tests do.
        self.page.on("console", lambda m: "willReadFrequently" in m.text or self.complaints.append(m.text))
        self.page.on("pageerror", lambda e: self.complaints.append(str(e)))
        self.page.on("request", lambda r: self.requests.append(r.url))
        self.page.goto(path.as_uri())
        self.until("performance.getEntriesByName('complete').length > 0")

    def until(self, condition: str) -> None:
        """Wait until an expression is true; Playwright's own wait evaluates text, which the page does not allow."""
        for _ in range(400):
            if self.page.evaluate(condition):
                return
            self.page.wait_for_timeout(25)
        raise AssertionError(f"never true: {condition}")

    def table(self) -> dict[str, list[str]]:
        rows = self.page.locator("#pixel-table tbody tr").all()
        return {r.locator("th").inner_text(): r.locator("td").all_inner_texts() for r in rows}

    def numbers(self) -> dict[str, list[float]]:
        return {name: [number(cell) for cell in cells] for name, cells in self.table().items()}

    def click(self, y: int, x: int, shape: tuple[int, int], which: int = 0) -> None:
        box = self.page.locator("#panels canvas:not([aria-hidden])").nth(which).bounding_box()
        assert box is not None
        self.page.mouse.click(
            box["x"] + box["width"] * (x + 0.5) / shape[1], box["y"] + box["height"] * (y + 0.5) / shape[0]
        )

    def at(self) -> tuple[int, int]:
        return tuple(int(self.page.locator(f"#pixel-{d}").input_value()) for d in "yx")  # type: ignore[return-value]


def number(text: str) -> float:
    return float(text.replace("\N{MINUS SIGN}", "-").replace("\N{INFINITY}", "inf").replace("\N{EN DASH}", "nan"))


@pytest.fixture(scope="module")
def held() -> Ensemble:
    images = draws(*SHAPE)
    truth = images.mean(dim=(0, 1)) + 0.1
    ensemble = store(images, constant={"truth": truth}, attrs={"posterior": HOSTILE, "sampler": HOSTILE, "seed": 0})
    ensemble.set_summary("map", truth * 0.5)
    return ensemble


@pytest.fixture(scope="module")
def report(held: Ensemble, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(held, tmp_path_factory.mktemp("report") / "r.html")


@pytest.fixture
def opened(browser: "Browser", report: Path) -> Iterator[Opened]:
    shown = Opened(browser, report, viewport={"width": 1280, "height": 1000})
    yield shown
    assert shown.complaints == []
    assert [u for u in shown.requests if not u.startswith("data:")] == [report.as_uri()]
    assert shown.page.title() != "taken"
    shown.context.close()


def expected(ensemble: Ensemble, y: int, x: int) -> dict[str, list[float]]:
    """What the table says of a pixel: of the magnitude, of the real and of the imaginary part."""
    at = {"y": y, "x": x}
    pixels = pt.summary(ensemble).pixels.isel(at)
    truth = ensemble.tree["constant_data"]["truth"].values[:, 0, y, x]
    best = ensemble.tree["posterior_summary"]["map"].values[:, y, x]
    mean, std = ensemble.mean().isel(at).values, ensemble.std().isel(at).values
    size = np.linalg.norm
    return {
        "Mean": [size(mean), *mean],
        "Std": [size(std), *std],
        "MAP": [size(best), *best],
        "Truth": [size(truth), *truth],
        "Error": [size(mean) - size(truth), *(mean - truth)],
        "R-hat": [pixels["rhat"].values.max(), *pixels["rhat"].values],
        "Bulk ESS": [pixels["ess_bulk"].values.min(), *pixels["ess_bulk"].values],
    }


def agree(shown: dict[str, list[float]], want: dict[str, list[float]]) -> bool:
    return shown.keys() == want.keys() and all(np.allclose(shown[k], want[k], rtol=2e-3, atol=2e-3) for k in want)


def test_a_click_tells_what_the_ensemble_holds(opened: Opened, held: Ensemble) -> None:
    for which, (y, x) in enumerate([(0, 0), (7, 19), (19, 25), (13, 4)]):
        opened.click(y, x, SHAPE[-2:], which)
        assert opened.at() == (y, x)
        assert agree(opened.numbers(), expected(held, y, x))
        # the planted faults: a transposed and a flipped image
        assert y == x or not agree(opened.numbers(), expected(held, min(x, 19), y))
        assert not agree(opened.numbers(), expected(held, 19 - y, x))


def test_a_transposed_map_is_noticed(browser: "Browser", held: Ensemble, tmp_path: Path, monkeypatch: Any) -> None:
    """The planted fault in the page itself: maps whose rows and columns are exchanged."""
    from potentia.report import _collect

    honest = _collect._at
    monkeypatch.setattr(
        _collect, "_at", lambda v, r, c: honest(v, r, c).swapaxes(-1, -2).reshape(*v.shape[:-2], len(r), len(c))
    )
    shown = Opened(browser, write_report(held, tmp_path / "wrong.html"), viewport={"width": 1280, "height": 1000})
    shown.click(7, 19, SHAPE[-2:])
    assert not agree(shown.numbers(), expected(held, 7, 19))
    shown.context.close()


def drawn(opened: Opened, selector: str) -> np.ndarray[Any, Any]:
    """The pixels of a canvas, (y, x) of the red channel."""
    data_of = "c.getContext('2d').getImageData(0, 0, c.width, c.height).data"
    code = f"c => [c.height, c.width, ...{data_of}]"
    height, width, *data = opened.page.locator(selector).first.evaluate(code)
    return np.array(data).reshape(height, width, 4)[..., 0]


def test_the_picture_is_the_mean_and_not_its_transpose(opened: Opened, held: Ensemble) -> None:
    mean = np.hypot(*held.mean().values)
    shown = drawn(opened, "#panels canvas")
    assert shown.shape == mean.shape
    assert np.corrcoef(shown.ravel(), mean.ravel())[0, 1] > 0.99
    assert abs(np.corrcoef(shown[::-1].ravel(), mean.ravel())[0, 1]) < 0.5


def test_the_histogram_and_trace_are_of_the_draws(opened: Opened, held: Ensemble) -> None:
    opened.page.select_option("#view", label="real part")
    opened.click(7, 19, SHAPE[-2:])
    values = held.image.values[:, :, 0, 7, 19]
    words = opened.page.locator("#histogram-note").inner_text()
    told = [number(n) for n in re.findall(r"[\N{MINUS SIGN}]?\d+\.\d+", words)]
    interval = held.interval(0.9).values[:, 0, 7, 19]
    assert np.allclose(told[:4], [values.mean(), values.std(ddof=1), *interval], atol=3e-3)
    assert words.startswith("36 draws")
    assert opened.page.locator("#trace polyline").count() == 3
    heights = [
        [float(p.split(",")[1]) for p in (line.get_attribute("points") or "").split()]
        for line in opened.page.locator("#trace polyline").all()
    ]
    # SVG counts down the page
    assert np.corrcoef(-np.array(heights).ravel(), values.ravel())[0, 1] > 0.9999
    bars = [float(b.get_attribute("height") or 0) for b in opened.page.locator("#histogram rect").all()]
    counts = np.histogram(values, len(bars))[0]
    assert np.allclose(np.array(bars) / max(bars), counts / counts.max(), atol=0.03)


def test_every_view_has_its_numbers(opened: Opened, held: Ensemble) -> None:
    opened.click(7, 19, SHAPE[-2:])
    want = expected(held, 7, 19)
    mean = complex(want["Mean"][1], want["Mean"][2])
    for label, value in (("phase", np.angle(mean)), ("imaginary part", mean.imag), ("magnitude", abs(mean))):
        opened.page.select_option("#view", label=label)
        assert opened.numbers()["Mean"][0] == pytest.approx(value, abs=2e-3)


def test_the_keyboard_moves_the_cursor(opened: Opened) -> None:
    page = opened.page
    page.locator("#panels canvas").first.focus()
    y, x = opened.at()
    page.keyboard.press("ArrowUp")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    assert opened.at() == (y - 1, x + 2)
    page.keyboard.press("Shift+ArrowLeft")
    assert opened.at() == (y - 1, x - 8)
    for _ in range(5):
        page.keyboard.press("Shift+ArrowDown")
    assert opened.at() == (19, x - 8)
    opened.until(f"document.getElementById('said').textContent.startsWith('Pixel y 19, x {x - 8}: Mean')")
    page.locator("#pixel-x").fill("3")
    page.keyboard.press("Tab")
    assert opened.at() == (19, 3)
    page.locator("#pixel-x").fill("999")
    page.keyboard.press("Tab")
    assert opened.at() == (19, 25)


def test_sliders_show_the_samples_they_name(opened: Opened, held: Ensemble) -> None:
    page = opened.page
    images = np.hypot(*np.moveaxis(held.image.values, 2, 0))

    def seen(chain: int, draw: int) -> bool:
        assert page.locator("#viewer figcaption").inner_text().startswith(f"A: Sample, chain {chain}, draw {draw} ")
        return bool(np.corrcoef(drawn(opened, "#viewer canvas").ravel(), images[chain, draw].ravel())[0, 1] > 0.99)

    assert seen(0, 0)
    page.locator("#chain").focus()
    page.keyboard.press("ArrowRight")
    assert seen(1, 0)
    page.locator("#draw").focus()
    page.keyboard.press("End")
    assert seen(1, 11)
    # the planted fault: another sample does not pass
    assert np.corrcoef(drawn(opened, "#viewer canvas").ravel(), images[0, 3].ravel())[0, 1] < 0.97


def test_two_images_blink_and_the_button_stops_them(opened: Opened) -> None:
    page = opened.page
    caption = page.locator("#viewer figcaption")
    page.locator("#swap").click()
    assert caption.inner_text() == "B: Mean (magnitude)"
    page.select_option("#image-b", "truth")
    assert caption.inner_text() == "B: Truth (magnitude)"
    page.select_option("#rate", "500")
    page.locator("#blink").click()
    assert page.locator("#blink").get_attribute("aria-pressed") == "true"
    opened.until("document.querySelector('#viewer figcaption').textContent.startsWith('A:')")
    opened.until("document.querySelector('#viewer figcaption').textContent.startsWith('B:')")
    page.locator("#blink").click()
    assert page.locator("#blink").get_attribute("aria-pressed") == "false"
    before = caption.inner_text()
    page.wait_for_timeout(700)
    assert caption.inner_text() == before


def test_nothing_blinks_where_motion_is_to_be_reduced(browser: "Browser", report: Path) -> None:
    shown = Opened(browser, report, reduced_motion="reduce")
    page = shown.page
    assert page.locator("#blink").is_disabled()
    assert page.locator("#still").is_visible()
    page.locator("#swap").click()
    assert page.locator("#viewer figcaption").inner_text().startswith("B:")
    page.emulate_media(reduced_motion="no-preference")
    page.locator("#blink").click()
    assert page.locator("#blink").get_attribute("aria-pressed") == "true"
    page.emulate_media(reduced_motion="reduce")
    shown.until("document.getElementById('blink').getAttribute('aria-pressed') === 'false'")
    shown.context.close()


def test_the_worst_pixel_is_one_button_away(opened: Opened, held: Ensemble) -> None:
    _, y, x = pt.summary(held).where["rhat"]
    opened.page.locator("button[data-y]").first.click()
    assert opened.at() == (y, x)


UNNAMED = """() => [...document.querySelectorAll('a, button, select, input, [tabindex], svg[role=img]')]
  .filter((e) => !(e.getAttribute('aria-label') || e.labels?.[0]?.textContent.trim() || e.textContent.trim()
    || document.getElementById(e.getAttribute('aria-labelledby'))?.textContent.trim()))
  .map((e) => e.outerHTML)"""


def test_every_control_has_a_name_and_can_be_reached(opened: Opened) -> None:
    page = opened.page
    assert page.evaluate(UNNAMED) == []
    page.evaluate("document.body.append(document.createElement('button'))")
    assert page.evaluate(UNNAMED) == ["<button></button>"], "the planted fault: a button without a name"
    page.evaluate("document.body.lastChild.remove()")
    levels = [int(h[1]) for h in page.evaluate("[...document.querySelectorAll('h1, h2, h3')].map((h) => h.tagName)")]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert max(np.diff(levels)) <= 1
    assert [page.locator(tag).count() for tag in ("main", "header", "footer", "nav")] == [1, 1, 1, 1]
    assert page.locator("html").get_attribute("lang") == "en"
    found = []
    for _ in range(60):
        page.keyboard.press("Tab")
        what = page.evaluate("(document.activeElement.id || document.activeElement.tagName)")
        if what == "BODY":
            break
        ring = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
        assert ring != "none", f"{what} does not show that it has the focus"
        found.append(what)
    controls = ["view", "CANVAS", "pixel-y", "pixel-x", "chain", "draw", "image-a", "image-b", "swap", "blink", "rate"]
    assert [f for f in found if f in controls] == controls
    assert found[0] == "A"


@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_is_wider_than_the_screen_and_text_stands_out(
    browser: "Browser", report: Path, width: int, scheme: str
) -> None:
    shown = Opened(browser, report, viewport={"width": width, "height": 844}, color_scheme=scheme)
    assert shown.page.evaluate("document.documentElement.scrollWidth") <= width
    ground, ink, faint = (
        shown.page.locator(s).evaluate(f"e => getComputedStyle(e).{p}")
        for s, p in (("body", "backgroundColor"), ("h1", "color"), (".lead", "color"))
    )
    assert contrast(ink, ground) > 7
    assert contrast(faint, ground) > 4.5
    assert (luminance(ground) < 0.1) == (scheme == "dark")
    shown.context.close()


def luminance(colour: str) -> float:
    """Relative luminance of a CSS colour, as WCAG 2 has it."""
    parts = np.array([int(n) for n in re.findall(r"\d+", colour)[:3]]) / 255
    linear = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


def contrast(a: str, b: str) -> float:
    low, high = sorted((luminance(a), luminance(b)))
    return (high + 0.05) / (low + 0.05)


def with_nan() -> torch.Tensor:
    images = draws(2, 6, 1, 5, 4, dtype=torch.float32)
    images[0, 2, 0, 1, 1] = float("nan")
    return images


ODD = {
    "one pixel": lambda: store(draws(2, 8, 1, 1, 1, dtype=torch.float32)),
    "one chain": lambda: store(draws(1, 8, 1, 5, 4, dtype=torch.float32)),
    "one draw": lambda: store(draws(20, 1, 1, 5, 4)),
    "one of everything": lambda: store(draws(1, 1, 1, 1, 1, dtype=torch.float32)),
    "no values": lambda: store(draws(2, 8, 1, 5, 4), lp=False),
    "colours": lambda: store(draws(2, 8, 3, 5, 4, dtype=torch.float32)),
    "several complex channels": lambda: store(draws(2, 8, 2, 5, 4)),
    "many channels": lambda: store(draws(2, 5, 9, 5, 4, dtype=torch.float32)),
    "constant": lambda: store(torch.ones(2, 8, 1, 5, 4)),
    "NaN": lambda: store(with_nan()),
    "large numbers": lambda: store(1e30 * draws(2, 8, 1, 5, 4, dtype=torch.float32)),
    "a strip": lambda: store(draws(2, 8, 1, 2, 300, dtype=torch.float32)),
    "large": lambda: store(draws(2, 4, 1, 300, 200, dtype=torch.float32)),
}


@pytest.mark.parametrize("kind", ODD)
def test_odd_ensembles_have_a_page(browser: "Browser", tmp_path: Path, kind: str) -> None:
    ensemble = ODD[kind]()
    path = write_report(ensemble, tmp_path / "r.html", max_bytes=200_000)
    assert path.stat().st_size < 400_000
    shown = Opened(browser, path, viewport={"width": 390, "height": 844})
    numbers = shown.numbers()
    y, x = shown.at()
    mean = ensemble.mean().values[:, y, x]
    want = np.hypot(*mean[:2]) if ensemble.is_complex else mean.mean() if len(mean) == 3 else mean[0]
    assert numbers["Mean"][0] == pytest.approx(want, rel=2e-3, abs=2e-3)
    assert ("Std" in numbers) == (kind != "one of everything")
    assert (shown.page.locator("#lp").count() == 0) == (kind == "no values")
    for view in range(shown.page.locator("#view option").count()):
        if shown.page.locator("#view").is_visible():
            shown.page.select_option("#view", str(view))
    assert shown.page.evaluate("document.documentElement.scrollWidth") <= 390
    assert shown.complaints == []
    shown.context.close()


def test_pixels_between_those_with_draws_say_so(browser: "Browser", tmp_path: Path) -> None:
    ensemble = store(draws(2, 30, 1, 40, 40, dtype=torch.float32))
    shown = Opened(browser, write_report(ensemble, tmp_path / "r.html", max_bytes=100_000))
    words = set()
    for x in range(6):
        shown.page.locator("#pixel-x").fill(str(10 + x))
        shown.page.keyboard.press("Tab")
        words.add(shown.page.locator("#traced").inner_text())
    found = [re.match(r"Draws of the pixel y (\d+), x (\d+), value", w) for w in words]
    assert 1 < len(words) < 6 or any("nearest" in w for w in words)
    for place, text in zip(found, words, strict=True):
        assert place is not None
        assert ("nearest" in text) != text.endswith("value.")
    assert "of 40 rows" in shown.page.locator("#page").inner_text()
    assert shown.complaints == []
    shown.context.close()
