// Plays what Python has drawn of training runs, without asking a kernel; see nbs/show/15_training_explorer.ipynb.
const STYLE = `
.hessnb-player { font: 14px/1.4 system-ui, sans-serif; padding: 2px 4px; box-sizing: border-box; max-width: 100%; }
.hessnb-player:focus-visible { outline: 2px solid #0072B2; }
.hessnb-bar { display: flex; flex-wrap: wrap; gap: 4px 10px; align-items: center; position: sticky; top: 0; z-index: 2;
  padding: 4px 0; background: var(--jp-layout-color0, #fff); max-width: 860px; }
.hessnb-bar button { min-width: 74px; padding: 5px 10px; font: inherit; cursor: pointer; }
.hessnb-bar input { flex: 1 1 160px; min-width: 0; height: 28px; margin: 0; }
.hessnb-bar output { min-width: 90px; font-variant-numeric: tabular-nums; }
.hessnb-runs { display: flex; flex-wrap: wrap; gap: 6px 16px; align-items: flex-start; }
.hessnb-run { min-width: 0; max-width: 100%; }
.hessnb-run.hessnb-alone { display: flex; flex-wrap: wrap; gap: 6px 16px; align-items: flex-start; }
.hessnb-box { position: relative; max-width: 100%; background: #fff; overflow: hidden; }
.hessnb-box img { display: block; width: 100%; height: auto; margin: 0; max-width: none; user-select: none; }
.hessnb-box .hessnb-frame { position: absolute; inset: 0; width: 100%; height: 100%; }
.hessnb-box .hessnb-over { position: relative; }
.hessnb-curves { cursor: ew-resize; touch-action: pan-y; }
.hessnb-cursor { position: absolute; width: 0; border-left: 1.5px solid #000; opacity: .55; pointer-events: none; }
.hessnb-dot { position: absolute; width: 9px; height: 9px; margin: -4.5px 0 0 -4.5px; border-radius: 50%;
  border: 1px solid #000; box-sizing: border-box; pointer-events: none; }
.hessnb-player table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
.hessnb-player th, .hessnb-player td { text-align: left; vertical-align: top; padding: 1px 12px 1px 0;
  font-size: 14px; }
.hessnb-player th { font-weight: normal; opacity: .7; }
.hessnb-player .hessnb-readout { flex: 1 1 320px; min-width: 0; max-width: 100%; overflow-x: auto; }
.hessnb-player p { margin: 6px 0; font-size: 13px; opacity: .8; }`;

function player(model, el) {
  const film = model.get("film"), last = film.steps.length - 1, made = new Map();
  const add = (parent, tag, name, text) => {
    const node = document.createElement(tag);
    if (name) node.className = name;
    if (text !== undefined) node.textContent = text;
    return parent.appendChild(node);
  };
  const address = (i) => {  // of a PNG: text in a page, bytes from a kernel
    const png = film.pngs[i];
    if (typeof png === "string") return "data:image/png;base64," + png;
    if (!made.has(i)) made.set(i, URL.createObjectURL(new Blob([png], { type: "image/png" })));
    return made.get(i);
  };
  const picture = (parent, name, i, alt) => {
    const img = add(parent, "img", name);
    Object.assign(img, { alt, draggable: false, src: address(i) });
    return img;
  };
  const place = (node, [left, top, width, height]) => {
    const share = (t) => 100 * t + "%";
    Object.assign(node.style, { left: share(left), top: share(top), width: share(width), height: share(height) });
  };

  const root = add(el, "div", "hessnb-player");
  root.tabIndex = 0;
  root.setAttribute("role", "group");
  root.setAttribute("aria-label", "training, step by step: arrow keys move, space plays");
  add(root, "style", "", STYLE);
  const bar = add(root, "div", "hessnb-bar"), button = add(bar, "button", "hessnb-play", "▶ Play");
  const slider = add(bar, "input"), step = add(bar, "output");
  button.type = "button";
  Object.assign(slider, { type: "range", min: 0, max: last, step: 1 });
  slider.setAttribute("aria-label", "step");
  const all = add(root, "div", "hessnb-runs");
  const runs = film.runs.map((run) => {
    const side = add(all, "div", "hessnb-run" + (film.runs.length === 1 ? " hessnb-alone" : "")), parts = { run };
    if (run.plane) {
      const box = add(side, "div", "hessnb-box hessnb-plane");
      box.style.width = run.plane.width + "px";
      parts.frames = add(box, "div", "hessnb-place");
      picture(box, "hessnb-over hessnb-image", run.plane.png, "predicted classes; " + run.name);
    }
    const box = parts.box = add(side, "div", "hessnb-box hessnb-curves");
    box.style.width = run.curves.width + "px";
    picture(box, "hessnb-image", run.curves.png, "eigenvalues, loss and accuracy over the steps; " + run.name);
    parts.cursor = add(box, "div", "hessnb-cursor");
    parts.cursor.style.top = 100 * run.curves.top + "%";
    parts.cursor.style.height = 100 * run.curves.height + "%";
    parts.dots = run.dots.map((line) => {
      const dot = add(box, "div", "hessnb-dot");
      dot.style.background = line.color;
      return dot;
    });
    return parts;
  });
  const table = add(add(all, "div", "hessnb-readout"), "table"), cells = [];
  for (const [i, head] of ["", ...film.heads].entries()) {
    if (i === 0 && film.runs.length === 1) continue;
    const row = add(table, "tr");
    add(row, "th", "", head);
    const tds = film.runs.map((run) => add(row, "td", "", i ? "" : run.name));
    if (i) cells.push(tds);
  }
  if (film.note) add(root, "p", "", film.note);

  let asked = 0, painted = 0, timer = null;
  const frameOf = ({ run, frames }, i) => {  // decoded; null where there is none
    const at = run.at[i], png = at < 0 || !frames ? -1 : run.frames[at];
    if (png < 0) return null;
    const img = new Image();
    Object.assign(img, { className: "hessnb-frame", alt: "", draggable: false, src: address(png) });
    place(img, run.plane.box);
    return img.decode().then(() => img, () => null);
  };
  const paint = (i, images) => {  // everything that belongs to one step at once
    runs.forEach(({ run, frames, cursor, dots }, r) => {
      const at = run.at[i];
      if (frames) frames.replaceChildren(...(images[r] ? [images[r]] : []));
      cursor.style.display = at < 0 ? "none" : "";
      if (at >= 0) cursor.style.left = 100 * run.x[at] + "%";
      dots.forEach((dot, j) => {
        const y = at < 0 ? null : run.dots[j].y[at];
        dot.style.display = y === null ? "none" : "";
        if (y !== null) Object.assign(dot.style, { left: 100 * run.x[at] + "%", top: 100 * y + "%" });
      });
      cells.forEach((tds, h) => { tds[r].textContent = at < 0 ? "not yet" : run.texts[at][h]; });
    });
    slider.value = i;
    step.textContent = "step " + film.steps[i].toLocaleString("en");
    root.dataset.index = i;
  };
  const show = async () => {
    const i = model.get("value"), mine = ++asked;
    const images = await Promise.all(runs.map((parts) => frameOf(parts, i)));
    if (mine < painted) return;  // a later one was faster
    painted = mine;
    paint(i, images);
  };
  const go = (i) => {
    const to = Math.min(last, Math.max(0, i));
    if (to === model.get("value")) return;
    model.set("value", to);  // heard by `show`
    model.save_changes();
  };
  const pause = () => { clearInterval(timer); timer = null; button.textContent = "▶ Play"; };
  const play = () => {
    if (timer !== null) return pause();
    if (model.get("value") === last) go(0);
    button.textContent = "❚❚ Pause";
    timer = setInterval(() => {
      if (model.get("value") === last || !root.isConnected) pause();
      else go(model.get("value") + 1);
    }, Math.min(600, Math.max(60, 15000 / (last + 1))));
  };
  const moves = { ArrowLeft: -1, ArrowDown: -1, ArrowRight: 1, ArrowUp: 1, PageDown: -10, PageUp: 10,
    Home: -1e9, End: 1e9 };
  const press = (e) => {
    if (e.ctrlKey || e.metaKey || e.altKey || e.defaultPrevented) return;
    if (e.key === " " && e.target !== button) play();
    else if (e.key in moves) { pause(); go(model.get("value") + moves[e.key]); }
    else return;
    e.preventDefault();
    e.stopPropagation();
  };
  const point = ({ run, box }, e) => {  // the step whose record lies nearest to the place
    const r = box.getBoundingClientRect(), x = (e.clientX - r.left) / r.width;
    const far = run.at.map((at) => (at < 0 ? 2 : Math.abs(run.x[at] - x)));
    pause();
    go(far.indexOf(Math.min(...far)));
  };
  runs.forEach((parts) => {
    parts.box.addEventListener("pointerdown", (e) => { parts.box.setPointerCapture(e.pointerId); point(parts, e); });
    parts.box.addEventListener("pointermove", (e) => { if (e.buttons & 1) point(parts, e); });
  });
  slider.addEventListener("input", () => { pause(); go(Number(slider.value)); });
  button.addEventListener("click", play);
  root.addEventListener("keydown", press);
  model.on("change:value", show);
  show();
  const stop = () => {
    pause();
    model.off("change:value", show);
    for (const url of made.values()) URL.revokeObjectURL(url);
  };
  return { press, stop };
}
export default { render: ({ model, el }) => player(model, el).stop };
