"""The pages in a real browser: rendering, pointer and keyboard; screenshots go to KTAE_SCREENSHOTS.

Needs Debian's `chromium` and `chromium-driver` and the package `selenium`; skipped if one is missing.
"""

from __future__ import annotations

import gzip
import json
import os
import shutil
import sys
from pathlib import Path
from random import Random

import pytest

selenium = pytest.importorskip("selenium", reason="the browser tests need selenium: pip install selenium")
CHROMIUM, DRIVER = (shutil.which(name) for name in ("chromium", "chromedriver"))
if not (CHROMIUM and DRIVER):
    pytest.skip("the browser tests need chromium: apt install chromium chromium-driver", allow_module_level=True)

from selenium import webdriver  # noqa: E402
from selenium.webdriver.common.action_chains import ActionChains  # noqa: E402
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402
from selenium.webdriver.support.ui import WebDriverWait  # noqa: E402

sys.path.insert(0, str(Path(__file__).parents[1] / "unit" / "report"))
from recorded_groups import group, hostile, large, plain  # noqa: E402

from openrlhf_ktae.cli import report  # noqa: E402
from openrlhf_ktae.record.metrics import RunRecord  # noqa: E402
from openrlhf_ktae.report.credit_data import MEASURES, configs_of, group_data  # noqa: E402
from openrlhf_ktae.report.credit_page import write_credit_pages  # noqa: E402
from openrlhf_ktae.report.rescoring import Arm, key_token_values, tensors  # noqa: E402

READY_WITHIN_MS = 2000
RECORDED = Path(__file__).parent / "data" / "quickstart-step-000010.parquet"  # of a run of the quickstart
CONTRAST = """
const [paper, token] = arguments, canvas = document.createElement("canvas");
canvas.width = canvas.height = 1;
const context = canvas.getContext("2d", { willReadFrequently: true });
const draw = (colour) => { context.fillStyle = colour; context.fillRect(0, 0, 1, 1); };
const read = () => [...context.getImageData(0, 0, 1, 1).data].slice(0, 3);
const linear = (v) => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4;
const bright = (rgb) => rgb.reduce((sum, v, i) => sum + linear(v / 255) * [.2126, .7152, .0722][i], 0);
draw(getComputedStyle(paper).backgroundColor); draw(getComputedStyle(token).backgroundColor);
const below = bright(read());
draw(getComputedStyle(token).color);
const ink = bright(read());
return (Math.max(below, ink) + .05) / (Math.min(below, ink) + .05);
"""


@pytest.fixture(scope="module")
def driver():
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for word in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(word)
    options.add_argument("--window-size=1500,1100")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield browser
    browser.quit()


@pytest.fixture
def screenshot(driver, request):
    folder = Path(os.environ.get("KTAE_SCREENSHOTS", "runs/screenshots"))
    folder.mkdir(parents=True, exist_ok=True)
    return lambda name: driver.save_screenshot(str(folder / f"{name}.png"))


@pytest.fixture
def opened(driver, tmp_path):
    """Write the pages of some groups and open the first; the console must be empty after the test."""

    def open_(*groups):
        path = write_credit_pages(groups, tmp_path, "test")[0]
        driver.get(path.as_uri())
        return int(driver.execute_script("return document.body.dataset.ready"))

    yield open_
    assert driver.get_log("browser") == []


def all_of(driver, selector):
    return driver.find_elements(By.CSS_SELECTOR, selector)


def one_of(driver, selector):
    return driver.find_element(By.CSS_SELECTOR, selector)


def tokens(driver, text):
    return [span for span in all_of(driver, "#rollouts .t") if span.get_property("textContent") == text]


def detail(driver):
    return one_of(driver, "#detail").text


def focused(driver):
    return driver.switch_to.active_element


def emulate(driver, **features):
    """Emulate media features (prefers_color_scheme, forced_colors); an empty value turns one off."""
    named = [{"name": name.replace("_", "-"), "value": value} for name, value in features.items()]
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": named})


@pytest.fixture
def system(driver):
    yield lambda **features: emulate(driver, **features)
    emulate(driver, prefers_color_scheme="", forced_colors="")


def style_of(driver, element, name):
    return driver.execute_script("return getComputedStyle(arguments[0]).getPropertyValue(arguments[1])", element, name)


def press(driver, key, *modifiers):
    """Press a key; return whether the page prevented the browser's default action."""
    held = ", ".join(["key: arguments[0], bubbles: true, cancelable: true", *(f"{one}: true" for one in modifiers)])
    script = f"return !document.activeElement.dispatchEvent(new KeyboardEvent('keydown', {{ {held} }}))"
    return driver.execute_script(script, key)


def test_pointing_at_a_token_shows_its_table_and_marks_its_occurrences(driver, opened, screenshot):
    opened(plain(), plain(number=1))
    maybe = tokens(driver, " maybe")
    assert len(maybe) == 4
    ActionChains(driver).move_to_element(maybe[1]).perform()
    shown = detail(driver)
    assert "K −0.500" in shown
    rows = [[cell.text for cell in row.find_elements(By.CSS_SELECTOR, "th, td")] for row in all_of(driver, ".two tr")]
    assert rows == [["rollouts", "correct", "wrong"], ["with it", "0", "4"], ["without it", "4", "0"]]
    for term in ("Fisher p", "information gain IG", "TF in correct", "direction: presence", "direction: frequency"):
        assert term in shown
    assert "4 of 24 tokens, 16.67 %" in shown
    assert [span.get_property("textContent") for span in all_of(driver, ".t.same")] == [" maybe"] * 4
    assert len(all_of(driver, ".t.now")) == 1
    assert "minus" in maybe[0].get_attribute("class")
    assert "plus" in tokens(driver, " gives")[0].get_attribute("class")
    screenshot("credit-light")


def test_everything_is_reachable_by_keyboard(driver, opened):
    opened(plain())
    first = one_of(driver, '#rollouts .t[tabindex="0"]')
    driver.execute_script("arguments[0].focus()", first)
    assert "K 0.000" in detail(driver)
    for _ in range(3):
        focused(driver).send_keys(Keys.ARROW_RIGHT)
    assert focused(driver).get_property("textContent") == " gives"
    assert "K +0.500" in detail(driver)
    assert "gives, K +0.500, in 4 correct and 0 wrong rollouts" in one_of(driver, "#spoken").get_property("textContent")
    before = focused(driver)
    before.send_keys("n")
    assert focused(driver) != before
    assert focused(driver).get_property("textContent") == " gives"
    focused(driver).send_keys(Keys.ENTER)
    ActionChains(driver).move_to_element(tokens(driver, " maybe")[0]).perform()
    assert "K +0.500" in detail(driver), "Enter keeps the token"
    focused(driver).send_keys(Keys.ESCAPE)
    ActionChains(driver).move_to_element(tokens(driver, " maybe")[1]).perform()
    assert "K −0.500" in detail(driver)
    assert len(all_of(driver, '#rollouts .t[tabindex="0"]')) == 1, "one tab stop in total, not one per token"


def test_switching_between_grpo_and_the_variants(driver, opened, screenshot):
    opened(plain())
    sizes = {}
    for mode in ("grpo", "paper", "reference", "calibrated"):
        one_of(driver, f'#modes [data-mode="{mode}"]').click()
        checked = [one.get_attribute("data-mode") for one in all_of(driver, '#modes [aria-checked="true"]')]
        assert checked == [mode]
        span = tokens(driver, " maybe")[0]
        sizes[mode] = driver.execute_script("return arguments[0].style.getPropertyValue('--size')", span)
        plus = tokens(driver, " +")[0].get_attribute("class")
        assert ("plus" in plus.split()) == (mode == "grpo"), "in every rollout, so only GRPO gives it credit"
    assert float(sizes["calibrated"]) < float(sizes["reference"]) <= 1
    focused(driver).send_keys(Keys.ARROW_LEFT)
    assert one_of(driver, '#modes [aria-checked="true"]').text == "reference"
    one_of(driver, '#modes [data-mode="grpo"]').click()
    screenshot("credit-grpo")


def test_a_run_with_another_estimator_shows_its_credit_first_and_switches_to_others(driver, opened):
    made = plain()
    for row in made.rows:
        row["k"] = [0.0, 0.0, 0.0, 0.25 * row["advantages_without_k"][0], *[0.0] * (len(row["k"]) - 4)]
    made.about.update({"ktae_enabled": False, "credit": {"name": "tempo", "weight": 0.25, "options": {}, "file": None}})
    opened(made)
    assert one_of(driver, '#modes [aria-checked="true"]').text == "tempo"
    assert "as recorded" in one_of(driver, "#notice").text
    ActionChains(driver).move_to_element(tokens(driver, " gives")[0]).perform()
    assert "credit +0.250" in detail(driver)
    assert "plus" in tokens(driver, " gives")[0].get_attribute("class").split()
    one_of(driver, '#modes [data-mode="lambda_grpo"]').click()
    ActionChains(driver).move_to_element(tokens(driver, " maybe")[0]).perform()
    assert "credit +0.750" in detail(driver), "shared by four rollouts: -1/4 instead of -1"
    one_of(driver, '#modes [data-mode="paper"]').click()
    assert "trained with tempo" in one_of(driver, "#notice").text


@pytest.mark.parametrize("shuffled", [False, True])
def test_credit_of_shuffled_labels_is_not_shown_as_trained_with(shuffled, driver, opened):
    rollouts = [(1, [" a", " b"]), (0, [" a", " c"])]
    opened(group(rollouts, about={"shuffled": shuffled}))
    notice = one_of(driver, "#notice")
    assert notice.is_displayed() is shuffled
    if shuffled:
        assert "labels shuffled within each group" in notice.text
        assert "training did not use it" in notice.text


def test_tokens_are_sorted_by_size_and_by_clicked_column(driver, opened):
    opened(plain())

    def column(number):
        return [row.find_elements(By.TAG_NAME, "td")[number].text for row in all_of(driver, "#tokens tbody tr")]

    assert column(1) == sorted(column(1), reverse=True)
    assert one_of(driver, "#tokens th[aria-sort]").text.startswith("|K|")
    one_of(driver, '#tokens button[data-sort="p"]').click()
    assert [float(p) for p in column(3)] == sorted(float(p) for p in column(3))
    one_of(driver, "#tokens tbody tr").click()
    assert all_of(driver, ".t.same")
    assert "Top tokens of step 3".upper() in one_of(driver, "#top-title").text.upper()
    assert "gives" in one_of(driver, "#top").text


def test_groups_and_the_order_of_rollouts(driver, opened):
    opened(group([(1, [" a"]), (1, [" b"])]), plain(number=1))
    assert one_of(driver, "#choose").get_property("value") == "1", "opens at the first group with both labels"
    assert one_of(driver, "#notice").is_displayed() is False
    one_of(driver, "#previous").click()
    assert "every K is 0" in one_of(driver, "#notice").text
    one_of(driver, "#next").click()
    one_of(driver, '#order option[value="credit"]').click()
    assert "rollout 5 of 8" in all_of(driver, ".rollout h3")[0].text, "half of its six tokens are key tokens"
    one_of(driver, '#order option[value="verdict"]').click()
    classes = [card.get_attribute("class").split()[1] for card in all_of(driver, ".rollout")]
    assert classes == ["correct"] * 4 + ["wrong"] * 4


def test_hostile_texts_are_shown_and_never_run(driver, opened, screenshot):
    opened(hostile())
    assert driver.execute_script("return window.pwned") is None
    assert all_of(driver, "img") == []
    shown = one_of(driver, "#rollouts").text
    assert "</script><script>window.pwned = 1</script>" in shown
    assert "‹202E›txet" in shown
    assert "‹0000›‹001B›[31m" in shown
    assert "‹D83D›" in shown
    for span in all_of(driver, "#rollouts .t")[:6]:
        ActionChains(driver).move_to_element(span).perform()
    one_of(driver, '#modes [data-mode="grpo"]').click()
    assert driver.execute_script("return window.pwned") is None
    screenshot("credit-hostile")


def test_a_group_of_16_by_800_is_ready_in_two_seconds(driver, opened, screenshot):
    assert opened(large()) < READY_WITHIN_MS
    assert len(all_of(driver, "#rollouts .t")) == 16 * 800
    started = driver.execute_script("return performance.now()")
    one_of(driver, '#modes [data-mode="reference"]').click()
    assert driver.execute_script("return performance.now()") - started < READY_WITHIN_MS
    screenshot("credit-large")


def ready_of_first(driver, folder):
    """Open the first page that the command wrote; return the milliseconds until it was ready."""
    driver.get((folder / "tokens.html").as_uri())
    ready = int(driver.execute_script("return document.body.dataset.ready"))
    assert driver.get_log("browser") == []
    return ready


def test_a_recorded_step_of_the_quickstart_is_ready_in_two_seconds(driver, tmp_path, screenshot):
    run = tmp_path / "run"
    (run / "rollouts").mkdir(parents=True)
    shutil.copy(RECORDED, run / "rollouts" / "step-000010.parquet")
    assert report.main([str(run)]) == 0
    assert ready_of_first(driver, run / "report") < READY_WITHIN_MS
    assert len(all_of(driver, ".rollout")) == 8
    assert len(all_of(driver, "#rollouts .t")) > 8 * 15
    screenshot("credit-quickstart")


def test_stored_responses_are_ready_in_two_seconds(driver, tmp_path, screenshot):
    rows = [
        {"benchmark": "sums", "id": problem, "problem": f"Sum {problem}", "gold": "7"}
        | {"response": f"{row['response']} \\boxed{{{7 + row['rollout'] % 2}}}"}
        for problem in range(50)
        for row in large(rollouts=4, tokens=250, seed=problem).rows
    ]
    path = tmp_path / "responses.jsonl.gz"
    path.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode()))
    assert report.main(["--responses", str(path), "--output", str(tmp_path), "--groups", "40"]) == 0
    assert ready_of_first(driver, tmp_path) < READY_WITHIN_MS
    assert len(all_of(driver, ".rollout")) == 4
    assert len(all_of(driver, "#rollouts .t")) > 4 * 200
    screenshot("credit-stored")


def test_long_rollouts_are_paged(driver, opened):
    opened(large(rollouts=24))
    assert "part 1 of 2" in one_of(driver, "#pager").text
    assert len(all_of(driver, ".rollout")) == 20
    all_of(driver, "#pager button")[1].click()
    assert len(all_of(driver, ".rollout")) == 4


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_text_can_be_read_on_the_strongest_colours(theme, driver, opened, screenshot):
    opened(plain())
    if driver.execute_script("return document.documentElement.dataset.theme") != theme:
        one_of(driver, "#theme").click()
    card = one_of(driver, ".rollout")
    for text in (" maybe", " gives"):
        assert driver.execute_script(CONTRAST, card, tokens(driver, text)[0]) >= 4.5
    screenshot(f"credit-{theme}-plain")


def test_every_control_has_a_name(driver, opened):
    opened(plain())
    for control in all_of(driver, "button, select"):
        assert control.accessible_name, control.get_attribute("outerHTML")


def test_a_narrow_window(driver, opened, screenshot):
    driver.set_window_size(420, 900)
    opened(plain())
    assert driver.execute_script("return document.documentElement.scrollWidth <= window.innerWidth")
    screenshot("credit-narrow")
    driver.set_window_size(1500, 1100)


def partly_known():
    """Two right rollouts, two wrong and one with an unknown verdict; the first contains a tool's token."""
    right, wrong = [" it", " gives", " tool", " 7"], [" it", " maybe", " 8"]
    made = group([(1, right), (1, right), (0, wrong), (0, wrong), (None, [*right, " lone"])])
    made.rows[0]["action"][1] = False
    return made


def test_colours_and_figures_show_the_k_of_training(driver, opened):
    one = partly_known()
    opened(one)
    arrays = tensors(one)
    for variant, config in configs_of(one.about).items():
        one_of(driver, f'#modes [data-mode="{variant}"]').click()
        k_GT = key_token_values(arrays, Arm(variant, config))
        limit = config.number("value_range")
        spans = driver.execute_script(
            "return [...document.querySelectorAll('#rollouts .t')].map((one) => [one.rollout, one.position,"
            " one.classList.contains('plus') - one.classList.contains('minus'), one.style.getPropertyValue('--size')])"
        )
        for rollout, position, sign, size in spans:
            assert sign * float(size or 0) * limit == pytest.approx(k_GT[rollout][position], abs=2e-3)
        heads = [card.find_element(By.TAG_NAME, "h3").text for card in all_of(driver, ".rollout")]
        for row, head in enumerate(heads):
            mean = k_GT[row][arrays.mask_GT[row]].mean()
            assert f"mean K {mean:+.3f}".replace("-", "−").replace("+0.000", "0.000") in head
    one_of(driver, '#order option[value="credit"]').click()
    assert "rollout 5 of 5" in all_of(driver, ".rollout h3")[-1].text, "no K at all"
    unknown = all_of(driver, ".rollout.unknown .t")
    ActionChains(driver).move_to_element(unknown[1]).perform()
    assert "K 0.000" in detail(driver)
    assert "A + K 0.000" in detail(driver).replace("\n", " ")
    assert "no verdict" in detail(driver)
    one_of(driver, '#modes [data-mode="grpo"]').click()
    skipped = one_of(driver, ".t.skipped")
    ActionChains(driver).move_to_element(skipped).perform()
    assert "A 0.000" in detail(driver)
    assert "did not write" in detail(driver)


def test_tf_is_shown_as_in_the_formula_and_as_a_share(driver, opened):
    one = plain()
    opened(one)
    data = group_data(one)
    place = data["texts"].index(" maybe")
    for variant in ("paper", "calibrated"):
        one_of(driver, f'#modes [data-mode="{variant}"]').click()
        ActionChains(driver).move_to_element(tokens(driver, " maybe")[0]).perform()
        tf = data["variants"][variant]["measures"][place][MEASURES.index("tf_wrong")]
        assert f"TF in wrong (BM25) {tf:.3f} 4 of 24 tokens, 16.67 %" in detail(driver).replace("\n", " ")
        assert f"variant {variant}" in detail(driver).replace("\n", " ")
    one_of(driver, '#modes [data-mode="grpo"]').click()
    assert "variant paper" in detail(driver).replace("\n", " "), "GRPO has no p, so the run's variant is shown"
    assert "K PAPER" in one_of(driver, "#tokens-title").text.upper()


def test_the_accessible_name_belongs_to_the_token(driver, opened):
    opened(partly_known())
    for text in (" maybe", " lone"):
        driver.execute_script("arguments[0].focus()", tokens(driver, text)[0])
        assert one_of(driver, "#spoken").get_property("textContent").startswith(text)
    assert "no rollout with a verdict" in one_of(driver, "#spoken").get_property("textContent")


def test_the_focused_token_stays_marked(driver, opened):
    opened(plain())
    first = tokens(driver, " gives")[0]
    driver.execute_script("arguments[0].focus()", first)
    ActionChains(driver).move_to_element(tokens(driver, " maybe")[0]).perform()
    assert style_of(driver, first, "outline-style") == "solid"
    assert float(style_of(driver, first, "outline-width").removesuffix("px")) >= 2


def test_browser_shortcuts_keep_working(driver, opened):
    opened(plain())
    driver.execute_script("arguments[0].focus()", tokens(driver, " gives")[0])
    for key, modifier in (("ArrowLeft", "altKey"), ("Home", "ctrlKey"), ("ArrowRight", "metaKey"), ("End", "shiftKey")):
        assert not press(driver, key, modifier)
        assert focused(driver).get_property("textContent") == " gives"
    assert press(driver, "ArrowLeft")
    assert focused(driver).get_property("textContent") == " 4"


def test_no_column_is_cut_off(driver, opened):
    rollouts = [(i < 8, [f" a_very_long_token_{k}" for k in range(9 if i < 8 else 14)] + [" b"] * i) for i in range(16)]
    opened(group(rollouts))
    for scroll in all_of(driver, "aside .scroll"):
        wide, seen = driver.execute_script("return [arguments[0].scrollWidth, arguments[0].clientWidth]", scroll)
        assert wide <= seen


def test_the_sign_of_k_does_not_depend_on_colour(driver, opened):
    opened(plain())
    assert style_of(driver, tokens(driver, " maybe")[0], "text-decoration-style") == "dotted"
    assert style_of(driver, tokens(driver, " maybe")[0], "text-decoration-line") == "underline"
    assert style_of(driver, tokens(driver, " gives")[0], "text-decoration-line") == "none"
    dotted = [style_of(driver, cell, "text-decoration-style") for cell in all_of(driver, "#legend .minus")]
    assert dotted == ["dotted"] * 3


def test_high_contrast_shows_sign_focus_occurrences_and_the_legend(driver, opened, system, screenshot):
    system(forced_colors="active")
    opened(plain())
    gives, maybe, nothing = (tokens(driver, text)[0] for text in (" gives", " maybe", " +"))
    for token, line in ((gives, "solid"), (maybe, "dotted")):
        assert style_of(driver, token, "text-decoration-line") == "underline"
        assert style_of(driver, token, "text-decoration-style") == line
    assert style_of(driver, nothing, "text-decoration-line") == "none"
    driver.execute_script("arguments[0].focus()", maybe)
    ActionChains(driver).move_to_element(gives).perform()
    seen = [style_of(driver, one, "outline-style") for one in (maybe, gives, tokens(driver, " gives")[1], nothing)]
    assert seen == ["double", "solid", "dashed", "none"]
    borders = [style_of(driver, cell, "border-bottom-style") for cell in all_of(driver, "#legend b")]
    assert borders == ["dotted"] * 3 + ["none"] + ["solid"] * 3
    checked = one_of(driver, '#modes [aria-checked="true"]')
    other = one_of(driver, '#modes [aria-checked="false"]')
    assert style_of(driver, checked, "background-color") != style_of(driver, other, "background-color")
    screenshot("credit-forced-colours")


def test_the_legend_has_the_range_of_k(driver, opened):
    options = {"variant": "paper", "value_range": 0.25, "weight": 3.0}
    opened(group([(1, [" a"]), (0, [" b"])], about={"ktae": options}))
    assert one_of(driver, "#legend").text.split() == ["−0.750", "+0.750", "K"]
    assert "up to 0.750" in one_of(driver, "#legend").get_attribute("aria-label")
    one_of(driver, '#modes [data-mode="calibrated"]').click()
    assert "+1.000 K" in one_of(driver, "#legend").text


def test_pages_follow_the_systems_dark_mode(driver, opened, system):
    theme = "return document.documentElement.dataset.theme"
    system(prefers_color_scheme="dark")
    opened(plain())
    assert driver.execute_script(theme) == "dark"
    system(prefers_color_scheme="light")
    WebDriverWait(driver, 5).until(lambda driver: driver.execute_script(theme) == "light")
    system(prefers_color_scheme="dark")
    WebDriverWait(driver, 5).until(lambda driver: driver.execute_script(theme) == "dark")


def test_a_rollout_of_many_tokens_is_paged(driver, opened):
    words = [f" w{i % 50}" for i in range(33_000)]
    assert opened(group([(1, words), (0, [" a"])])) < READY_WITHIN_MS
    assert len(all_of(driver, ".rollout")) == 1
    assert "tokens 1 to 16,000 of 33,000" in one_of(driver, ".rollout h3").text
    assert "part 1 of 3" in one_of(driver, "#pager").text


def test_missing_texts(driver, opened):
    one = group([(1, [" a", " b"]), (0, [" a", " c"])])
    one.rows[0]["label"] = None
    one.rows[0]["token_texts"][1] = None
    opened(one)
    assert len(all_of(driver, "#rollouts .t")) == 4


def test_the_page_says_who_judged(driver, opened):
    opened(plain())
    assert "judged by the score that training used" in one_of(driver, "#gold").text


def test_run_pages_draw_every_curve_in_both_themes(driver, tmp_path, screenshot):
    pytest.importorskip("plotly", reason="run pages need plotly: pip install '.[report]'")
    from openrlhf_ktae.cli.report import main

    paths = []
    for arm, gain in (("grpo", 0.02), ("ktae", 0.025)):
        for seed in range(3):
            path = tmp_path / arm / f"seed-{seed}"
            record = RunRecord(path)
            for step in range(1, 21):
                accuracy = 0.3 + gain * step + 0.01 * ((step * (seed + 3)) % 5)
                metrics = {"rollout/reward_mean": accuracy, "rollout/response_length_mean": 20 + step / 10 + seed}
                record.step(step, metrics | {"timing/generation": 0.3, "timing/ppo_train": 0.1}, {})
                if step % 5 == 0:
                    record.evaluation("during", step, {"eval_accuracy": accuracy})
            paths.append(str(path))
    assert main([*paths, "--output", str(tmp_path / "out")]) == 0
    driver.get((tmp_path / "out" / "runs.html").as_uri())
    figures = all_of(driver, ".figure")
    assert len(figures) == 5, "accuracy, score, length and two phases"
    assert all(figure.find_elements(By.CSS_SELECTOR, ".trace") for figure in figures)
    screenshot("runs-light")
    one_of(driver, "#theme").click()
    assert driver.execute_script("return document.documentElement.dataset.theme") == "dark"
    screenshot("runs-dark")
    assert driver.get_log("browser") == []


ARMS = ("grpo", "grpo_ktae_paper", "grpo_ktae_reference", "grpo_ktae_calibrated", "grpo_ktae_shuffled")
NINE = (*ARMS, "dapo", "dapo_ktae_paper", "dapo_ktae_calibrated", "dapo_ktae_a_name_that_is_rather_long")


def arms_of_runs(folder, arms, steps=40):
    """Invented runs: every arm with 3 seeds."""
    random = Random(3)
    for place, arm in enumerate(arms):
        for seed in (1, 2, 3):
            record = RunRecord(folder / arm / f"seed-{seed}")
            for step in range(steps + 1):
                accuracy = 0.35 + (0.4 + 0.02 * place) * (1 - 0.95**step) + random.gauss(0, 0.02)
                if step % 10 == 0:
                    record.evaluation("during", step, {"eval_accuracy": accuracy})
                metrics = {
                    "rollout/reward_mean": accuracy,
                    "rollout/response_length_mean": 20 + step / 10 + random.gauss(0, 0.4),
                    "ktae/mixed_group_share": 1 - 1e-16 * step,
                    "timing/generation": 0.3 + random.gauss(0, 0.01),
                    "timing/broadcast": 0.05,
                }
                if step:
                    record.step(step, metrics, {})
            yield str(folder / arm / f"seed-{seed}")


def test_nine_arms_are_distinguishable(driver, tmp_path, screenshot):
    pytest.importorskip("plotly", reason="run pages need plotly: pip install '.[report]'")
    assert report.main([*arms_of_runs(tmp_path, NINE), "--output", str(tmp_path / "out")]) == 0
    driver.get((tmp_path / "out" / "runs.html").as_uri())
    buttons = all_of(driver, ".legend button[data-arm]")
    assert sorted(button.text for button in buttons) == sorted(f"{arm} (3 seeds)" for arm in NINE)
    bottom = one_of(driver, ".legend").rect
    assert all(
        button.is_displayed() and button.rect["x"] + button.rect["width"] <= bottom["x"] + bottom["width"]
        for button in buttons
    )
    figure = one_of(driver, ".figure")
    assert figure.find_element(By.CSS_SELECTOR, ".nsewdrag").rect["height"] > 200
    assert len(figure.find_elements(By.CSS_SELECTOR, ".trace.scatter")) == 9, "nine intervals would overlap"
    screenshot("runs-nine-light")
    one_of(driver, "#intervals").click()
    assert len(figure.find_elements(By.CSS_SELECTOR, ".trace.scatter")) == 18
    buttons[0].click()
    assert buttons[0].get_attribute("aria-pressed") == "false"
    assert len(figure.find_elements(By.CSS_SELECTOR, ".trace.scatter")) == 16
    one_of(driver, "#all").click()
    assert len(figure.find_elements(By.CSS_SELECTOR, ".trace.scatter")) == 18
    assert "grpo (3 seeds) from" in figure.get_attribute("aria-label")
    one_of(driver, "details summary").click()
    assert len(all_of(driver, "details[open] tbody tr")) == 9
    one_of(driver, "#theme").click()
    screenshot("runs-nine-dark")
    assert driver.get_log("browser") == []
