// Moves what Python has drawn of a network along its eigenvectors; see nbs/show/18_moving.ipynb.
(() => {
  const start = (root) => {
    root.dataset.ready = "";
    const film = JSON.parse(root.querySelector("script").textContent), made = new Map();
    const inputs = [...root.querySelectorAll("input")], values = [...root.querySelectorAll("output")];
    const cells = [...root.querySelectorAll("td")], place = root.querySelector(".hessnb-frame").parentNode;
    const [play, reset] = root.querySelectorAll("button"), rest = film.rest;
    let own = 0, asked = 0, painted = 0, timer = null;
    const decoded = (i) => {  // a frame, decoded once
      if (!made.has(i)) {
        const img = new Image();
        Object.assign(img, { className: "hessnb-frame", alt: "", draggable: false,
          src: "data:image/png;base64," + film.pngs[i] });
        made.set(i, img.decode().then(() => img, () => img));
      }
      return made.get(i);
    };
    const show = async (which, at) => {  // slider `which` at frame `at`, the others at rest
      const mine = ++asked, slider = film.sliders[which];
      own = which;
      inputs.forEach((input, i) => {
        input.value = i === which ? at : rest;
        input.setAttribute("aria-valuetext", film.sliders[i].amounts[input.value]);
        values[i].textContent = film.sliders[i].amounts[input.value];
      });
      root.dataset.at = which + " " + at;
      const img = await decoded(slider.frames[at]);
      if (mine < painted) return;  // a later one was faster
      painted = mine;
      place.replaceChildren(img);
      slider.texts[at].forEach((text, i) => { cells[i].textContent = text; });
    };
    const pause = () => { clearInterval(timer); timer = null; play.textContent = "▶ Play"; };
    const path = [];  // from rest to both ends and back, one slider after the other
    film.sliders.forEach((slider, i) => {
      const last = slider.frames.length - 1;
      for (let at = rest; at < last; at++) path.push([i, at]);
      for (let at = last; at > 0; at--) path.push([i, at]);
      for (let at = 0; at < rest; at++) path.push([i, at]);
    });
    play.addEventListener("click", () => {
      if (timer !== null) return pause();
      play.textContent = "❚❚ Pause";
      let next = path.findIndex(([i, at]) => i === own && at === Number(inputs[own].value));
      timer = setInterval(() => {
        if (!root.isConnected) return pause();
        next = (next + 1) % path.length;
        show(...path[next]);
      }, 110);
    });
    reset.addEventListener("click", () => { pause(); show(own, rest); });
    inputs.forEach((input, i) => input.addEventListener("input", () => { pause(); show(i, Number(input.value)); }));
    root.querySelector(".hessnb-controls").hidden = false;
    show(0, rest);
  };
  document.querySelectorAll(".hessnb-moving:not([data-ready])").forEach(start);
})();
