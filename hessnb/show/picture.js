// A PNG in the page that hears clicks, drags and arrow keys; see nbs/show/04_picture.ipynb.
function render({ model, el }) {
  const img = document.createElement("img");
  let url = null;
  img.className = "hessnb-image";
  img.draggable = false;
  img.style.cssText = "display:block; max-width:100%; height:auto;";
  const draw = () => {
    const old = url;
    url = URL.createObjectURL(new Blob([model.get("value")], { type: "image/png" }));
    img.onload = () => { if (old) URL.revokeObjectURL(old); };
    img.src = url;
  };
  const size = () => { img.width = model.get("width"); img.height = model.get("height"); img.style.height = "auto"; };
  const describe = () => { img.alt = model.get("alt"); };
  const clip = (t) => Math.min(1, Math.max(0, t));
  const point = (x, y) => { model.set("pointer", [clip(x), clip(y)]); model.save_changes(); };
  const at = (e) => {  // a click where the pointer is already is one, too
    const r = img.getBoundingClientRect(), [a, b] = model.get("pointer");
    const x = (e.clientX - r.left) / r.width, y = (e.clientY - r.top) / r.height;
    point(e.type === "pointerdown" && x === a && y === b ? x - 1e-9 : x, y);
  };
  if (model.get("pointable")) {
    img.tabIndex = 0;
    img.style.cursor = "crosshair";
    img.style.touchAction = "none";
    img.addEventListener("pointerdown", (e) => { img.setPointerCapture(e.pointerId); img.focus(); at(e); });
    img.addEventListener("pointermove", (e) => { if (e.buttons & 1) at(e); });
    const steps = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
    img.addEventListener("keydown", (e) => {
      const by = steps[e.key];
      if (!by) return;
      e.preventDefault();
      e.stopPropagation();
      const [x, y] = model.get("pointer"), s = model.get("step");
      point(x + s * by[0], y + s * by[1]);
    });
  }
  model.on("change:value", draw);
  model.on("change:alt", describe);
  size(); describe(); draw();
  el.appendChild(img);
  return () => { model.off("change:value", draw); model.off("change:alt", describe); if (url) URL.revokeObjectURL(url); };
}
export default { render };
