"Times that the browser itself measures."
import json
import time

import numpy as np

RESULTS = {}


def record(name, times):
    median, p95 = np.percentile(times, [50, 95])
    RESULTS[name] = {"median_ms": round(float(median), 1), "p95_ms": round(float(p95), 1), "n": len(times)}
    print(name, RESULTS[name])
    return RESULTS[name]


def timings(lab, name, press, n, settle=.15):
    "Milliseconds from each of `n` key presses to the painted picture."
    lab.page.evaluate("""(selector) => {
        const img = document.querySelector(selector);
        window.hessnbTimes = [];
        window.hessnbStart = null;
        document.addEventListener("keydown", () => { window.hessnbStart = performance.now(); }, true);
        img.addEventListener("load", () => requestAnimationFrame(() => setTimeout(() => {
            if (window.hessnbStart !== null) window.hessnbTimes.push(performance.now() - window.hessnbStart);
            window.hessnbStart = null;
        })));
    }""", f".hessnb-{name} img.hessnb-image")
    for i in range(n):
        press()
        lab.until(lambda: lab.page.evaluate("window.hessnbTimes.length") == i + 1, what=f"picture {i + 1}")
        time.sleep(settle)
    return np.array(json.loads(lab.page.evaluate("JSON.stringify(window.hessnbTimes)")))
