"""The report as a reader uses it, in headless Chromium; skipped where it is not installed.

On Debian: `apt-get install chromium chromium-driver`.
"""

from __future__ import annotations

import json
import shutil
from urllib.parse import urlsplit

import pytest

from tests.prediction.report_cases import put_case, rows_of
from utils.prediction.quality import Remark
from utils.prediction.report import write_scan_report

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(
    CHROMIUM is None or DRIVER is None, reason="Chromium or its driver is not installed"
)
HOSTILE = "sub-c_desc-<img src=x onerror='document.title=1'>"
PHONE, DESK = (390, 844), (1400, 900)


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """Four cases: sub-2 (healthy), sub-10 (two warnings), sub-c (a hostile name), sub-1 (unfinished)."""
    output = tmp_path_factory.mktemp("predictions")
    levels = [f"T{number}" for number in range(1, 13)]
    put_case(output, "sub-2", rows_of(levels, "anatomical", mean_hu=(-120,) * 12), sequence_probability=0.9)
    gap = Remark("gap", "3", "1.2 cm³ removed")
    odd = rows_of("12345", volume_mm3=(9e3, 9e3, 9e3, 9e3, 2e4), mean_hu=(-50,) * 5)
    put_case(output, "sub-10", odd, extra=(gap,))
    put_case(output, HOSTILE, rows_of("123", volume_mm3=(1e5, 1e5, 1e5)), extra=(gap,))
    folder = put_case(output, "sub-1", [], picture=False)
    next(folder.glob("*_msk.nii.gz")).unlink()
    return write_scan_report(output)


@pytest.fixture(scope="module")
def chromium(tmp_path_factory):
    selenium = pytest.importorskip("selenium.webdriver")
    options = selenium.ChromeOptions()
    options.binary_location = CHROMIUM
    profile = tmp_path_factory.mktemp("profile")
    # As root, as in a container, Chromium has no sandbox; small shared memory is common there too.
    for argument in ("headless=new", "no-sandbox", "disable-dev-shm-usage", f"user-data-dir={profile}"):
        options.add_argument(f"--{argument}")
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    browser = selenium.Chrome(options=options, service=selenium.ChromeService(DRIVER))
    yield browser
    browser.quit()


@pytest.fixture
def browser(chromium, page):
    """The page, just opened on a desk."""
    for log in ("performance", "browser"):
        chromium.get_log(log)
    show(chromium, DESK)
    chromium.get(page.as_uri())
    yield chromium
    assert [entry for entry in chromium.get_log("browser") if entry["level"] == "SEVERE"] == []


def show(browser, size) -> None:
    width, height = size
    metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)


def element(browser, selector):
    return browser.find_element("css selector", selector)


def shown(browser) -> list[str]:
    """Keys of the rows that are seen, from the top down."""
    rows = browser.find_elements("css selector", "#scans > tbody > tr")
    return [row.find_element("css selector", ".key").text for row in rows if row.is_displayed()]


def press(browser, *keys: str) -> None:
    from selenium.webdriver.common.action_chains import ActionChains

    ActionChains(browser).send_keys(*keys).perform()


def sort(browser, heading: str) -> list[str]:
    element(browser, f"#scans thead th.{heading} button").click()
    return shown(browser)


ALL = ["sub-1", "sub-2", "sub-10", HOSTILE]


def test_columns_are_sorted_as_text_or_numbers_and_unknown_values_stay_last(browser):
    assert shown(browser) == ALL
    assert sort(browser, "scan") == [HOSTILE, "sub-10", "sub-2", "sub-1"]
    assert sort(browser, "scan") == ALL
    # 12, 5 and 3 vertebrae, of sub-1 it is not known; as text "12" would stand before "3".
    assert sort(browser, "count") == [HOSTILE, "sub-10", "sub-2", "sub-1"]
    assert element(browser, "th.count").get_attribute("aria-sort") == "ascending"
    assert element(browser, "th.scan").get_attribute("aria-sort") == "none"
    assert sort(browser, "count") == ["sub-2", "sub-10", HOSTILE, "sub-1"]
    assert element(browser, "th.count").get_attribute("aria-sort") == "descending"
    # Medians 10, 9 and 100 cm³; sub-1 has none.
    assert sort(browser, "volume") == ["sub-10", "sub-2", HOSTILE, "sub-1"]
    assert sort(browser, "volume") == [HOSTILE, "sub-2", "sub-10", "sub-1"]
    # Means of -120, -50 and 200 HU: as text -50 would stand before -120.
    assert sort(browser, "hu") == ["sub-2", "sub-10", HOSTILE, "sub-1"]
    assert sort(browser, "warnings")[0] == "sub-2"


def test_filters_by_text_and_by_warning(browser):
    from selenium.webdriver.support.ui import Select

    search, kind = element(browser, "#text"), Select(element(browser, "#kind"))
    assert element(browser, "#shown").text == "4 of 4 shown"
    search.send_keys("T12")
    assert shown(browser) == ["sub-2"] and element(browser, "#shown").text == "1 of 4 shown"
    search.clear()
    search.send_keys("CM³ sub-10")  # every word, in any case
    assert shown(browser) == ["sub-10"]
    search.clear()
    search.send_keys("nowhere")
    assert shown(browser) == [] and element(browser, "#nothing").is_displayed()
    search.clear()
    element(browser, "#warned").click()
    assert shown(browser) == ["sub-1", "sub-10", HOSTILE]
    kind.select_by_visible_text("gap")
    assert shown(browser) == ["sub-10", HOSTILE]
    kind.select_by_visible_text("odd volume")
    assert shown(browser) == ["sub-10"]
    assert sort(browser, "scan") == ["sub-10"]  # sorting brings no hidden row back
    kind.select_by_index(0)
    element(browser, "#warned").click()
    assert shown(browser) == [HOSTILE, "sub-10", "sub-2", "sub-1"]


def test_a_click_enlarges_the_picture_and_escape_closes_it(browser):
    from selenium.webdriver.common.keys import Keys
    from selenium.webdriver.support.wait import WebDriverWait

    thumbnail, picture = element(browser, "a.thumbnail img"), element(browser, "#viewer-image")
    before = browser.current_url
    assert not picture.is_displayed()
    thumbnail.click()
    assert picture.is_displayed() and element(browser, "#viewer-key").text == "sub-2"
    loaded = "return arguments[0].decode().then(() => arguments[0].naturalWidth)"
    assert browser.execute_script(loaded, picture) == 400
    assert picture.size["width"] > 3 * thumbnail.size["width"]
    press(browser, Keys.ARROW_RIGHT)
    assert element(browser, "#viewer-key").text == "sub-10"
    press(browser, Keys.ESCAPE)
    assert not picture.is_displayed() and browser.current_url == before
    # The focus is at the scan that was looked at last, so the keyboard goes on from there.
    # The browser tells of the end of a dialog a moment after it.
    wait = WebDriverWait(browser, timeout=10, poll_frequency=0.05)
    wait.until(lambda _: browser.switch_to.active_element.get_attribute("data-key") == "sub-10")
    press(browser, Keys.ENTER)
    assert picture.is_displayed()
    element(browser, "#close").click()
    assert not picture.is_displayed()


def test_all_can_be_reached_by_the_keyboard(browser):
    from selenium.webdriver.common.keys import Keys

    reached = []
    for _ in range(20):
        press(browser, Keys.TAB)
        focus = browser.switch_to.active_element
        reached.append(focus.get_attribute("id") or focus.get_attribute("data-key") or focus.text)
    assert [name for name in reached if name][:13] == [
        *("text", "kind", "warned"),
        *("Scan", "Count", "Labels", "Sequence", "Volume, cm³", "Mean HU", "Warnings"),
        *("sub-2", "Each vertebra", "sub-10"),
    ]


def test_a_phone_sorts_too_and_nothing_is_wider_than_it(browser, page):
    from selenium.webdriver.support.ui import Select

    show(browser, PHONE)
    browser.get(page.as_uri())
    element(browser, "summary").click()
    assert browser.execute_script("return document.documentElement.scrollWidth") == PHONE[0]
    assert not element(browser, "#scans thead").is_displayed()
    Select(element(browser, "#order")).select_by_visible_text("Volume, cm³")
    assert shown(browser) == ["sub-10", "sub-2", HOSTILE, "sub-1"]
    element(browser, "#direction").click()
    assert shown(browser) == [HOSTILE, "sub-2", "sub-10", "sub-1"]
    element(browser, "a.thumbnail").click()
    right = browser.execute_script(
        "return arguments[0].getBoundingClientRect().right", element(browser, "#viewer")
    )
    assert right <= PHONE[0]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read_in_light_and_dark(browser, scheme):
    feature = {"name": "prefers-color-scheme", "value": scheme}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
    style = """
        const style = getComputedStyle(document.querySelector(arguments[0]));
        return [style.color, style.backgroundColor];
    """
    for selector in ("body", ".warnings strong", ".sequence .odd", ".warnings .unreadable strong"):
        text, ground = (luminance(colour) for colour in browser.execute_script(style, selector))
        assert (text < ground) == (scheme == "light")
        # Web content accessibility guidelines 2.2, level AA: 4.5 to 1.
        assert (max(text, ground) + 0.05) / (min(text, ground) + 0.05) >= 4.5, selector


def luminance(colour: str) -> float:
    """Relative luminance of "rgb(r, g, b)", as the guidelines define it."""
    parts = [int(part) / 255 for part in colour.removeprefix("rgb(").removesuffix(")").split(",")]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear))


def test_no_request_leaves_the_folder(browser, page):
    element(browser, "a.thumbnail").click()
    browser.execute_script("return document.getElementById('viewer-image').decode()")
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = [
        message["params"]["request"]["url"]
        for message in messages
        if message["method"] == "Network.requestWillBeSent"
    ]
    assert page.as_uri() in asked and any(url.endswith("_seg-vert_snp.png") for url in asked)
    assert {urlsplit(url).scheme for url in asked} <= {"file", "data"}
    folder = page.parent.as_uri() + "/"
    assert all(url.startswith((folder, "data:")) for url in asked)
    assert not any(message["method"].startswith("Network.webSocket") for message in messages)


def test_the_policy_stops_what_a_hostile_name_might_try(browser):
    assert browser.title == "Vertebra segmentation: report"
    assert browser.find_elements("css selector", "img[src='x']") == []
    blocked = """
        const done = arguments[0];
        document.addEventListener("securitypolicyviolation", (event) => done(event.effectiveDirective));
        const image = new Image();
        image.src = "http://127.0.0.1:9/x.png";
        document.body.append(image);
    """
    assert browser.execute_async_script(blocked) == "img-src"
    refused = [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]
    assert len(refused) == 1 and "Content Security Policy" in refused[0]["message"]
