"""The report as a reader uses it, in headless Chromium; skipped where it is not installed.

On Debian: `apt-get install chromium chromium-driver`.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.prediction.report_cases import put_case, put_measures, rows_of
from utils.files import sha256_of
from utils.prediction import report
from utils.prediction.corrections import Correction, read_corrections
from utils.prediction.derivatives import MASK_SUFFIX, case_path
from utils.prediction.quality import Remark
from utils.prediction.report import write_scan_report
from utils.verse.labels import LEVEL_NAMES

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
    put_measures(output, "sub-2", [{"name": "T1", "core_hu": 150}], {"cobb_deg": 12.5})
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
    # The others keep it from asking hosts of its own, whose answers it would wait for.
    quiet = ("disable-background-networking", "disable-component-update", "disable-sync", "no-first-run")
    places = ("no-sandbox", "disable-dev-shm-usage", f"user-data-dir={profile}")
    for argument in ("headless=new", "disable-gpu", *places, *quiet):
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
    return [row.get_attribute("data-key") for row in rows if row.is_displayed()]


def press(browser, *keys: str) -> None:
    from selenium.webdriver.common.action_chains import ActionChains

    ActionChains(browser).send_keys(*keys).perform()


def focused_row(browser) -> str | None:
    """Key of the row that the focus is in."""
    script = "return document.activeElement.closest('tr')?.dataset.key"
    return browser.execute_script(script)


def sort(browser, heading: str) -> list[str]:
    element(browser, f"#scans thead th.{heading} button").click()
    return shown(browser)


ALL = ["sub-1", "sub-2", "sub-10", HOSTILE]
#: Doubt of 6 (unreadable, nothing found), 2 (gap, odd volume), 1 (gap) and .1 (labels).
BY_DOUBT = ["sub-1", "sub-10", HOSTILE, "sub-2"]


def test_columns_are_sorted_as_text_or_numbers_and_unknown_values_stay_last(browser):
    assert shown(browser) == BY_DOUBT
    assert element(browser, "th.doubt").get_attribute("aria-sort") == "descending"
    assert sort(browser, "doubt") == BY_DOUBT[::-1]
    assert sort(browser, "scan") == ALL
    assert sort(browser, "scan") == ALL[::-1]
    # A column of doubt begins with the largest, whatever was sorted before.
    assert sort(browser, "doubt") == BY_DOUBT
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
    assert shown(browser) == ALL


def test_a_click_enlarges_the_picture_and_escape_closes_it(browser):
    from selenium.webdriver.common.keys import Keys

    thumbnail, picture = element(browser, "a.thumbnail img"), element(browser, "#viewer-image")
    before = browser.current_url
    assert not picture.is_displayed()
    loaded = "return arguments[0].decode().then(() => arguments[0].naturalWidth)"
    assert browser.execute_script(loaded, thumbnail) == 149  # 400 x 600 in a box of 320 x 224
    thumbnail.click()
    wait_for(browser, picture.is_displayed)  # before it is loaded it takes no room
    assert element(browser, "#viewer-key").text == "sub-10"
    assert browser.execute_script(loaded, picture) == 400
    assert picture.size["width"] > 2 * thumbnail.size["width"]
    assert element(browser, "#full").get_attribute("href") == picture.get_attribute("src")
    assert picture.get_attribute("src").endswith("derivatives/sub-10/sub-10_seg-vert_snp.png")
    press(browser, Keys.ARROW_RIGHT)
    assert element(browser, "#viewer-key").text == HOSTILE
    press(browser, Keys.ESCAPE)
    assert not picture.is_displayed() and browser.current_url == before
    # The focus is at the scan that was looked at last, so the keyboard goes on from there.
    # The browser tells of the end of a dialog a moment after it.
    wait_for(browser, lambda: focused_row(browser) == HOSTILE)
    press(browser, Keys.ENTER)
    wait_for(browser, picture.is_displayed)
    element(browser, "#close").click()
    assert not picture.is_displayed()


def test_all_can_be_reached_by_the_keyboard(browser):
    from selenium.webdriver.common.keys import Keys

    reached = []
    for _ in range(26):
        press(browser, Keys.TAB)
        focus = browser.switch_to.active_element
        reached.append(focus.get_attribute("id") or focus.text or focused_row(browser))
    columns = (
        "Scan",
        "Doubt",
        "Count",
        "Labels",
        "Sequence",
        "Warnings",
        "Volume, cm³",
        "Mean HU",
        "Core HU",
    )
    assert [name for name in reached if name][:22] == [
        *("text", "kind", "warned", "order", "direction", *columns),
        *("Lowest ratio", "Cobb, °", "Kyphosis, °", "Lordosis, °"),
        *("sub-10", "Correct the levels", "Each vertebra", HOSTILE),
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
    for selector in (
        *("body", ".warnings strong", ".sequence .odd", ".warnings .unreadable strong", "button.correct"),
        *("#corrections", "#save"),
    ):
        text, ground = (luminance(colour) for colour in browser.execute_script(style, selector))
        assert (text < ground) == (scheme == "light")
        # Web content accessibility guidelines 2.2, level AA: 4.5 to 1.
        assert (max(text, ground) + 0.05) / (min(text, ground) + 0.05) >= 4.5, selector


def wait_for(browser, happened) -> None:
    from selenium.webdriver.support.wait import WebDriverWait

    WebDriverWait(browser, timeout=10, poll_frequency=0.05).until(lambda _: happened())


def press_on(browser, selector: str, key: str) -> None:
    from selenium.webdriver.common.keys import Keys

    element(browser, selector).send_keys(getattr(Keys, key))


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


# Levels that are corrected


@pytest.fixture
def levels(chromium):
    """Call a function of the page's core, which knows no document; a set of levels is a list of pairs."""
    core = Path(report.__file__).with_name("report_levels.js").read_text(encoding="utf-8")
    script = f"""{core}
        const [name, values] = arguments;
        const given = values.map((value) => (value && value.set ? new Map(value.set) : value));
        const found = Levels[name](...given);
        return found instanceof Map ? [...found] : found;
    """
    chromium.get("about:blank")
    return lambda name, *values: chromium.execute_script(script, name, values)


ORDER = list(LEVEL_NAMES)


@pytest.mark.parametrize(
    ("names", "fixed", "expected"),
    [
        ("T11 T12 L1", {}, "T11 T12 L1"),
        ("T11 T12 L1", {1: "L1"}, "T12 L1 L2"),
        ("T10 T12 L1", {0: "T11"}, "T11 L1 L2"),  # what was left out stays left out
        ("T12 T13 L1 L2", {0: "T11"}, "T11 T12 L1 L2"),
        ("T11 T12 L1", {1: "T13"}, "T12 T13 L1"),
        ("T11 T12 L1 L2", {1: "L1", 3: "L4"}, "T12 L1 L2 L4"),  # below one that is set, that one counts
        ("1 2 3", {1: "T12"}, "T11 T12 L1"),
        ("L5 L6", {0: "L6"}, "L6 ?"),
        ("C1 C2", {1: "C1"}, "? C1"),
    ],
)
def test_levels_that_are_not_set_follow_by_counting(levels, names, fixed, expected):
    found = levels("corrected", ORDER, names.split(), {"set": list(fixed.items())})
    assert [name or "?" for name in found] == expected.split()


@pytest.mark.parametrize(
    ("names", "fixed", "by", "expected"),
    [
        ("T11 T12 L1", {}, 1, "T12 L1 L2"),
        ("T11 T12 L1", {}, -1, "T10 T11 T12"),
        ("T11 T12 L1", {2: "L2"}, 0, "T12 L1 L2"),
        ("T11 T12 T13 L1", {}, 1, "T12 L1 L2 L3"),
        ("T10 T12 L1", {}, 1, "T11 L1 L2"),
        ("T11 T12 L1", {0: "T12"}, 1, "L1 L2 L3"),
        ("1 2 3", {0: "T12"}, -1, "T11 T12 L1"),
        ("1 2 3", {}, 1, None),
        ("L5 L6", {}, 1, None),
        ("C1 C2", {}, -1, None),
    ],
)
def test_a_shift_sets_every_level(levels, names, fixed, by, expected):
    found = levels("shifted", ORDER, names.split(), {"set": list(fixed.items())}, by)
    assert found == (None if expected is None else [[n, name] for n, name in enumerate(expected.split())])


@pytest.mark.parametrize(
    ("count", "fixed", "expected"),
    [
        (3, {}, ""),
        (3, {0: "C1", 2: "C3"}, ""),
        (3, {0: "T12", 2: "L1"}, ""),  # a T13 between
        (3, {2: "C2"}, "Vertebra 3 cannot be C2: too few levels lie above it."),
        (
            2,
            {0: "L1", 1: "T12"},
            "Vertebra 2 cannot be T12 below L1 of vertebra 1: too few levels lie above it.",
        ),
        (
            3,
            {0: "T1", 2: "T2"},
            "Vertebra 3 cannot be T2 below T1 of vertebra 1: too few levels lie above it.",
        ),
        (3, {1: "L6"}, "Vertebra 2 cannot be L6: too few levels lie below it."),
    ],
)
def test_levels_that_no_scan_can_have_are_named(levels, count, fixed, expected):
    assert levels("fault", ORDER, count, {"set": list(fixed.items())}) == expected


def test_options_and_words_are_those_of_the_command_line(levels):
    assert levels("options", {"set": [[0, "T9"]]}) == "--first-label T9"
    assert levels("options", {"set": [[10, "L1"], [2, "T5"]]}) == "--fix 3=T5 11=L1"
    assert levels("word", "/data/out-1") == "/data/out-1"
    assert levels("word", "/my data/it's") == "'/my data/it'\\''s'"


def choose(browser, place: int, level: str) -> None:
    from selenium.webdriver.support.ui import Select

    Select(browser.find_elements("css selector", "#levels select")[place]).select_by_visible_text(level)


def open_editor(browser, key: str) -> None:
    row = next(
        r for r in browser.find_elements("css selector", "tr[data-key]") if r.get_attribute("data-key") == key
    )
    row.find_element("css selector", "button.correct").click()


def test_corrections_are_shown_as_a_line_and_saved_as_a_file(browser, page, tmp_path):
    place = {"behavior": "allow", "downloadPath": str(tmp_path)}
    browser.execute_cdp_cmd("Browser.setDownloadBehavior", place)
    start = f"python infer.py SCAN --output {page.parent} --relabel --report"
    assert not element(browser, "#corrections").is_displayed()
    open_editor(browser, "sub-2")
    assert (
        not element(browser, "#result").is_displayed() and not element(browser, "#level-reset").is_enabled()
    )
    choose(browser, 0, "T2")
    assert element(browser, "#line").text == f"{start} --first-label T2"
    assert element(browser, "#anew").is_displayed()
    element(browser, "#hold").click()
    held = " ".join(f"{number}=T{number + 1}" for number in range(1, 12))
    assert element(browser, "#line").text == f"{start} --fix {held} 12=L1"
    element(browser, "#level-down").click()
    shifted = [*(f"T{number}" for number in range(3, 13)), "L1", "L2"]
    fixes = [f"{number}={name}" for number, name in enumerate(shifted, 1)]
    assert element(browser, "#line").text == f"{start} --fix {' '.join(fixes)}"
    assert not element(browser, "#anew").is_displayed()
    element(browser, "#close").click()
    assert element(browser, "tr[data-key='sub-2'] .corrected").text == f"Corrected: {' '.join(shifted)}"
    # A counted scan gets levels, too; a case without vertebrae has no button.
    open_editor(browser, "sub-10")
    assert not element(browser, "#level-up").is_enabled()
    choose(browser, 2, "T12")
    element(browser, "#close").click()
    assert element(browser, "tr[data-key='sub-10'] .corrected").text == "Corrected: (T10) (T11) T12 (L1) (L2)"
    assert browser.find_elements("css selector", "tr[data-key='sub-1'] button.correct") == []
    assert element(browser, "#corrected-count").text == "2 scans corrected"
    assert element(browser, "#apply").text == f"{start.replace('SCAN', 'SCANS')} --from corrections.json"
    element(browser, "#save").click()
    file = tmp_path / "corrections.json"
    wait_for(browser, file.is_file)
    masks = {key: sha256_of(case_path(page.parent, key, MASK_SUFFIX)) for key in ("sub-2", "sub-10")}
    assert read_corrections(file) == {
        "sub-2": Correction("sub-2", masks["sub-2"], tuple(fixes)),
        "sub-10": Correction("sub-10", masks["sub-10"], ("3=T12",)),
    }


def test_levels_that_cannot_be_are_named_and_not_saved(browser):
    open_editor(browser, "sub-2")
    choose(browser, 5, "C3")
    assert element(browser, "#fault").text == "Vertebra 6 cannot be C3: too few levels lie above it."
    assert not element(browser, "#result").is_displayed() and not element(browser, "#level-up").is_enabled()
    count = browser.execute_script("return document.getElementById('corrected-count').textContent")
    assert count == "0 scans corrected, 1 with levels that cannot be"
    assert not element(browser, "#save").is_enabled()
    press_on(browser, "#levels li:nth-child(6) select", "ARROW_LEFT")  # chooses, and turns no page
    assert element(browser, "#viewer-key").text == "sub-2"
    element(browser, "#level-reset").click()
    assert element(browser, "#fault").text == "" and not element(browser, "#level-reset").is_enabled()
    element(browser, "#close").click()
    assert not element(browser, "#corrections").is_displayed()
    assert not element(browser, "tr[data-key='sub-2'] .corrected").is_displayed()


def test_a_line_is_copied(browser, page):
    permission = {"permission": {"name": "clipboard-write"}, "setting": "granted"}
    browser.execute_cdp_cmd("Browser.setPermission", permission)
    open_editor(browser, "sub-10")
    choose(browser, 0, "T9")
    element(browser, "#copy-line").click()
    wait_for(browser, lambda: element(browser, "#copy-line").text == "Copied")
    assert browser.execute_script("return getSelection().toString()") == element(browser, "#line").text


def test_a_page_with_corrections_that_are_not_saved_asks_before_it_goes(browser, page):
    asks = "const event = new Event('beforeunload', {cancelable: true}); return !dispatchEvent(event)"
    assert not browser.execute_script(asks)
    open_editor(browser, "sub-10")
    choose(browser, 0, "T9")
    assert browser.execute_script(asks)
    element(browser, "#level-reset").click()
    assert not browser.execute_script(asks)
