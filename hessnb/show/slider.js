// A slider that shows the number that code has set, and changes it only when a user acts; see nbs/show/05_slider.ipynb.
function render({ model, el }) {
  const add = (parent, tag, name) => {
    const node = document.createElement(tag);
    node.className = name;
    return parent.appendChild(node);
  };
  const root = add(el, "div", "hessnb-slider"), line = add(root, "div", "hessnb-line");
  const name = add(line, "span", "hessnb-name"), track = add(line, "div", "hessnb-track");
  const number = add(line, "input", "hessnb-number"), told = add(root, "div", "hessnb-told");
  const word = add(root, "div", "hessnb-word");
  add(track, "div", "hessnb-rail");
  const zero = add(track, "div", "hessnb-zero"), band = add(track, "div", "hessnb-band");
  const marks = add(track, "div", "hessnb-marks"), handle = add(track, "div", "hessnb-handle");
  root.setAttribute("data-lm-suppress-shortcuts", "true");  // the keys are the slider's, not the notebook's
  Object.assign(number, { type: "text", inputMode: "text", autocomplete: "off", spellcheck: false });
  handle.tabIndex = 0;
  handle.setAttribute("role", "slider");
  number.setAttribute("role", "spinbutton");
  word.setAttribute("role", "alert");
  told.id = "hessnb-told-" + Math.random().toString(36).slice(2);
  told.hidden = true;

  const ends = () => [model.get("min"), model.get("max")];
  const share = (v) => { const [a, b] = ends(); return Math.min(1, Math.max(0, (v - a) / (b - a))); };
  const origin = () => { const [a, b] = ends(); return a <= 0 && b >= 0 ? 0 : a; };
  const clip = (v) => { const [a, b] = ends(); return Math.min(b, Math.max(a, v)); };
  const onGrid = (i) => clip(Number((origin() + i * model.get("step")).toPrecision(12)));
  const snap = (v) => onGrid(Math.round((v - origin()) / model.get("step")));
  const next = (v, n) => {  // `n` steps on, from a number off the grid to the next one on it
    const i = (v - origin()) / model.get("step"), near = Math.round(i), off = Math.abs(i - near) > 1e-6;
    return onGrid((off ? (n > 0 ? Math.floor(i) : Math.ceil(i)) : near) + n);
  };
  const text = (v) => {
    const [, plus, digits, kind] = /^(\+?)(?:\.(\d+))?([fegd%]?)$/.exec(model.get("readout_format")) || [];
    const n = digits === undefined ? 6 : Number(digits), sign = plus && !(v < 0) ? "+" : "";
    if (kind === "d") return sign + Math.round(v);
    if (kind === "e") return sign + v.toExponential(n);
    if (kind === "%") return sign + (100 * v).toFixed(n) + "%";
    if (kind === "f") return sign + v.toFixed(n);
    return sign + Number(v.toPrecision(Math.max(1, n)));
  };
  const say = (what) => { word.textContent = what; };
  let shown = model.get("value"), grabbed = null;

  const move = (v) => {  // what is drawn; the model is not touched
    shown = v;
    handle.style.left = 100 * share(v) + "%";
    for (const node of [handle, number]) {
      node.setAttribute("aria-valuenow", v);
      node.setAttribute("aria-valuetext", text(v));
    }
    if (document.activeElement !== number && el.getRootNode().activeElement !== number) number.value = text(v);
    number.title = String(v);
  };
  const take = (v) => {  // the user's number
    say("");
    move(v);
    if (v === model.get("value")) return;
    model.set("value", v);
    model.save_changes();
  };
  const label = () => {  // of marks, from the last; one that would lie on another is left out
    const placed = [];
    for (const mark of [...marks.children].reverse()) {
      const tag = mark.firstChild;
      tag.style.visibility = "";
      const box = tag.getBoundingClientRect();
      const free = placed.every((other) => box.right + 2 < other.left || box.left > other.right + 2);
      if (free) placed.push(box);
      else tag.style.visibility = "hidden";
    }
  };
  const draw = () => {
    const [a, b] = ends(), between = model.get("band"), integer = model.get("integer");
    name.textContent = model.get("description");
    name.hidden = !model.get("description");
    name.title = handle.title = told.textContent = model.get("tooltip");
    if (!model.get("tooltip")) told.hidden = true;
    root.classList.toggle("hessnb-marked", model.get("marks").some(([, said]) => said));
    root.classList.toggle("hessnb-off", model.get("disabled"));
    root.classList.toggle("hessnb-bare", !model.get("track"));
    track.hidden = !model.get("track");
    number.hidden = !model.get("readout");
    handle.tabIndex = model.get("disabled") ? -1 : 0;
    number.disabled = model.get("disabled");
    for (const node of [handle, number]) {
      node.setAttribute("aria-label", model.get("description") || "value");
      node.setAttribute("aria-describedby", told.id);
      node.setAttribute("aria-disabled", model.get("disabled"));
      node.setAttribute("aria-valuemin", a);
      node.setAttribute("aria-valuemax", b);
    }
    band.hidden = between === null;
    if (between !== null) {
      band.style.left = 100 * share(between[0]) + "%";
      band.style.width = 100 * (share(between[1]) - share(between[0])) + "%";
    }
    zero.hidden = !(a < 0 && b > 0);
    zero.style.left = 100 * share(0) + "%";
    marks.replaceChildren();
    for (const [v, said] of model.get("marks")) {
      const mark = add(marks, "div", "hessnb-mark");
      mark.style.left = 100 * share(v) + "%";
      mark.title = said ? said + " at " + text(v) : text(v);
      add(mark, "span", "").textContent = said;
    }
    number.inputMode = integer && a >= 0 ? "numeric" : "text";
    label();
    move(model.get("value"));
  };

  const at = (e) => {  // the number under the pointer
    const box = track.getBoundingClientRect(), [a, b] = ends();
    return a + (b - a) * (e.clientX - box.left - grabbed.offset) / box.width;
  };
  track.addEventListener("pointerdown", (e) => {
    if (e.button || model.get("disabled")) return;
    const box = handle.getBoundingClientRect(), middle = box.left + box.width / 2;
    grabbed = { offset: e.target === handle ? e.clientX - middle : 0, from: e.clientX, moved: e.target !== handle };
    track.setPointerCapture(e.pointerId);
    handle.focus({ preventScroll: true });
    e.preventDefault();
    if (grabbed.moved) drag(e);
  });
  const drag = (e) => {
    const v = snap(at(e));
    if (model.get("continuous_update")) take(v);
    else { say(""); move(v); }
  };
  track.addEventListener("pointermove", (e) => {
    if (!grabbed) return;
    if (e.clientX !== grabbed.from) grabbed.moved = true;  // a handle that is only touched keeps its number
    if (grabbed.moved) drag(e);
  });
  const release = (keep) => {
    if (!grabbed) return;
    grabbed = null;
    if (keep) take(shown);
    else move(model.get("value"));
  };
  track.addEventListener("pointerup", () => release(true));
  track.addEventListener("pointercancel", () => release(model.get("continuous_update")));

  const keys = { ArrowLeft: -1, ArrowDown: -1, ArrowRight: 1, ArrowUp: 1, PageDown: -10, PageUp: 10 };
  const press = (e, allowed) => {
    if (e.ctrlKey || e.metaKey || e.altKey || model.get("disabled") || !allowed(e.key)) return false;
    if (e.key in keys) take(next(model.get("value"), keys[e.key]));
    else if (e.key === "Home" || e.key === "End") take(ends()[e.key === "Home" ? 0 : 1]);
    else return false;
    e.preventDefault();
    return true;
  };
  handle.addEventListener("keydown", (e) => { if (press(e, () => true)) e.stopPropagation(); });
  const typed = () => {  // take what stands in the box, or say why not
    const said = number.value.trim().replace("−", "-"), [a, b] = ends();
    if (said === String(model.get("value")) || said === text(model.get("value"))) return say("");
    const percent = said.endsWith("%"), v = said === "" ? NaN : Number(percent ? said.slice(0, -1) : said);
    const found = percent ? v / 100 : v;
    if (!Number.isFinite(found)) say(`“${said}” is not a number; ${text(model.get("value"))} is kept.`);
    else if (model.get("integer") && !Number.isInteger(found)) say(`${said} is not a whole number.`);
    else if (found < a || found > b) say(`${said} is outside of ${+a.toPrecision(4)} to ${+b.toPrecision(4)}; ` +
      `${text(model.get("value"))} is kept.`);
    else take(found);
  };
  number.addEventListener("focus", () => { number.value = String(model.get("value")); number.select(); });
  number.addEventListener("blur", () => { typed(); number.value = text(model.get("value")); });
  number.addEventListener("keydown", (e) => {
    e.stopPropagation();
    if (e.key === "Enter") { typed(); number.value = String(model.get("value")); number.select(); }
    else if (e.key === "Escape") { number.value = String(model.get("value")); say(""); number.select(); }
    else if (press(e, (key) => key.startsWith("Page") || key === "ArrowUp" || key === "ArrowDown")) {
      number.value = String(model.get("value"));
    }
  });
  name.addEventListener("click", () => { told.hidden = !told.hidden || !model.get("tooltip"); });

  const heard = ["min", "max", "step", "marks", "band", "description", "tooltip", "readout", "readout_format",
    "disabled", "track", "integer"].map((trait) => "change:" + trait).join(" ");
  const follow = () => { say(""); if (!grabbed || model.get("continuous_update")) move(model.get("value")); };
  model.on("change:value", follow);
  for (const trait of heard.split(" ")) model.on(trait, draw);
  const watch = new ResizeObserver(label);
  watch.observe(track);
  draw();
  return () => {
    watch.disconnect();
    model.off("change:value", follow);
    for (const trait of heard.split(" ")) model.off(trait, draw);
  };
}
export default { render };
