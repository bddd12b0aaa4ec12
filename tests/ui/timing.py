"Times that the browser itself measures."
import json
import time

import numpy as np

RESULTS = {}


def until(condition, seconds=30, what="condition"):
    "Wait until `condition()` is true, and return what it gave; for what must come, however busy the machine is."
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        found = condition()
        if found: return found
        time.sleep(.03)
    raise AssertionError(f"{what} not met within {seconds} s")


def record(name, times):
    median, p95 = np.percentile(times, [50, 95])
    RESULTS[name] = {"median_ms": round(float(median), 1), "p95_ms": round(float(p95), 1), "n": len(times)}
    print(name, RESULTS[name])
    return RESULTS[name]


def timings(page, selector, press, n, attribute=None, settle=.15):
    """Milliseconds from each of `n` key presses to the painted picture, once the page is at rest.

    The element that `selector` names tells when its picture is new: an image by its `load`, anything else by
    `attribute`, which is set then. What no key press began is not counted."""
    page.evaluate("""([selector, attribute]) => {
        const element = document.querySelector(selector);
        const painted = () => requestAnimationFrame(() => setTimeout(() => {
            if (window.hessnbStart !== null) window.hessnbTimes.push(performance.now() - window.hessnbStart);
            window.hessnbStart = null;
        }));
        window.hessnbTimes = [];
        window.hessnbStart = null;
        document.addEventListener("keydown", () => { window.hessnbStart = performance.now(); }, true);
        if (attribute === null) element.addEventListener("load", painted);
        else new MutationObserver(painted).observe(element, { attributes: true, attributeFilter: [attribute] });
    }""", [selector, attribute])
    for i in range(n):
        press(i)
        until(lambda i=i: page.evaluate("window.hessnbTimes.length") > i, what=f"picture {i + 1}")
        time.sleep(settle)
    return np.array(json.loads(page.evaluate("JSON.stringify(window.hessnbTimes)")))
