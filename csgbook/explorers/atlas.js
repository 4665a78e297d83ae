// The filter atlas: the wall and the card of atlas.py, turned in a page without a kernel.
window.csgAtlas = function (root) {
  "use strict";
  if (!root || root.dataset.ready) return;
  root.dataset.ready = "1";
  const note = root.querySelector(".csg-note");
  const tell = (text) => { note.textContent = text; note.hidden = !text; };
  const canvas = document.createElement("canvas"), context = window.Uint8Array && window.atob && canvas.getContext && canvas.getContext("2d");
  if (!context) {
    tell("The cards need typed arrays and a canvas, which this browser lacks; all filters are here, and the card of the first.");
    return;
  }
  const spec = JSON.parse(root.querySelector("script[type='application/json']").textContent);
  const { classes, networks, shown } = spec, maps = spec.maps.map(unpack), histogram = spec.histogram.map(unpack);
  const keys = networks.map((network) => network.name.toLowerCase()), place = new Map(shown.map((image, j) => [image, j]));
  const sections = [...root.querySelectorAll("[data-network]")], radios = [...root.querySelectorAll("input[type=radio]")];
  const card = root.querySelector(".atlas-card"), status = root.querySelector(".csg-status"), find = (name) => card.querySelector(name);
  const style = root.style, across = Number(style.getPropertyValue("--across")), down = Number(style.getPropertyValue("--down"));
  let at = [0, 0]; // network, filter

  function unpack({ shape, base64 }) {
    const bytes = Uint8Array.from(atob(base64), (character) => character.charCodeAt(0)), size = shape.slice(1).reduce((a, b) => a * b, 1);
    return { shape, at: (k) => bytes.subarray(k * size, (k + 1) * size) };
  }

  function painted(values, columns, colour) { // the colour, opaque where a value is 255 and clear where it is 0
    canvas.width = columns; canvas.height = values.length / columns;
    const pixels = context.createImageData(canvas.width, canvas.height);
    values.forEach((v, i) => pixels.data.set([...colour, v], 4 * i));
    context.putImageData(pixels, 0, 0);
    return canvas.toDataURL();
  }
  const shade = (values) => values.map((v) => Math.round(0.75 * (255 - v))); // dark where the filter does not fire

  function flags(f) { // as atlas.py says it
    const told = [], foreign = f.shows.filter((name) => name !== f.of).length;
    if (f.of !== f.tells) told.push(`It belongs to ${f.of}, but its activation tells most about ${f.tells}.`);
    if (foreign) told.push(`Of its ${f.shows.length} most exciting images ${foreign} show another class.`);
    return told.join(" ");
  }

  function show(n, k) {
    const network = networks[n], f = network.filters[k], side = maps[n].shape[3], size = side * maps[n].shape[2];
    at = [n, k];
    find(".atlas-title b").textContent = `${network.name}, filter ${k}`;
    find(".atlas-title span").textContent = f.of;
    find(".atlas-flags").textContent = flags(f);
    card.querySelectorAll("figure").forEach((figure, t) => {
      const j = place.get(f.images[t]), picture = figure.querySelector(".atlas-image");
      picture.style.backgroundPosition = `${(100 * (j % across) / (across - 1)).toFixed(3)}% ${(100 * Math.floor(j / across) / Math.max(down - 1, 1)).toFixed(3)}%`;
      picture.setAttribute("aria-label", `test image ${f.images[t]} of class ${f.shows[t]}`);
      const sheet = painted(shade(maps[n].at(k).subarray(t * size, (t + 1) * size)), side, [0, 0, 0]);
      picture.firstElementChild.style.backgroundImage = `url(${sheet})`;
      figure.querySelector("figcaption").textContent = f.shows[t];
    });
    find(".csg-numbers dt").textContent = f.gate ? "Class of the gate" : "Class that excites it most";
    const values = [f.of, f.tells, Math.max(...f.information).toFixed(4)];
    card.querySelectorAll(".csg-numbers dd").forEach((cell, i) => { cell.textContent = values[i]; });
    find(".csg-matrix img").src = painted(histogram[n].at(k), histogram[n].shape[2], [0, 114, 178]);
    const columns = [[f.gate, 2], [f.information, 4], [f.activation, 3], [f.weight, 3]];
    card.querySelectorAll(".csg-table tbody tr").forEach((row, c) => [...row.querySelectorAll("td")].forEach((cell, i) => {
      const [numbers, digits] = columns[i];
      cell.textContent = numbers ? numbers[c].toFixed(digits) : "–";
      const share = numbers ? Math.max(numbers[c], 0) / Math.max(...numbers.map(Math.abs), 1e-12) : 0;
      cell.style.setProperty("--share", share.toFixed(3));
    }));
    const run = find(".atlas-run a");
    run.textContent = network.run; run.previousSibling.textContent = `Seed ${network.seed}, run `;
    run.setAttribute("href", run.getAttribute("href").replace(/#.*/, "#run-" + network.run));
    radios.forEach((radio, i) => { radio.checked = i === n; });
    sections.forEach((section, i) => {
      section.hidden = i !== n;
      section.querySelectorAll(".atlas-tile").forEach((tile) => {
        if (tile.hash === `#${keys[n]}/${k}`) tile.setAttribute("aria-current", "true"); else tile.removeAttribute("aria-current");
      });
    });
  }

  function go(n, k) { // by hand: the address follows
    tell("");
    show(n, k);
    try { history.replaceState(null, "", `#${keys[n]}/${k}`); } catch (error) { location.hash = `${keys[n]}/${k}`; }
    status.textContent = `${networks[n].name}, filter ${k}, ${networks[n].filters[k].of}. ${flags(networks[n].filters[k])}`;
  }

  function follow() { // the address, if it is one of a filter
    const [, key, number] = /^#([^=/]+)\/(.*)$/.exec(location.hash) || [];
    if (key === undefined) return;
    const n = keys.indexOf(key), count = n < 0 ? 0 : networks[n].filters.length;
    if (n < 0) tell(`There is no network ${key} here: they are ${keys.join(", ")}.`);
    else if (!/^\d+$/.test(number) || Number(number) >= count) tell(`${networks[n].name} has no filter ${number}: they are 0 to ${count - 1}.`);
    else {
      tell("");
      show(n, Number(number));
      root.scrollIntoView({ block: "start" });
      return;
    }
    show(Math.max(n, 0), 0);
    root.scrollIntoView({ block: "start" });
  }

  function download() {
    const file = { classes, networks }, link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([JSON.stringify(file)], { type: "application/json" }));
    link.download = "filter-atlas.json";
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  }

  try {
    show(0, 0);
    follow();
    sections.forEach((section, n) => section.addEventListener("click", (event) => {
      const tile = event.target.closest(".atlas-tile");
      if (!tile || event.ctrlKey || event.metaKey || event.shiftKey) return;
      event.preventDefault();
      go(n, Number(tile.hash.split("/")[1]));
    }));
    radios.forEach((radio, n) => radio.addEventListener("change", () => go(n, networks[n].filters[at[1]] ? at[1] : 0)));
    root.querySelectorAll("[data-step]").forEach((button) => button.addEventListener("click", () => { // in the order of the wall
      const tiles = [...sections[at[0]].querySelectorAll(".atlas-tile")].filter((tile) => tile.offsetParent !== null || tile.ariaCurrent);
      const here = tiles.findIndex((tile) => tile.hash === `#${keys[at[0]]}/${at[1]}`), count = tiles.length;
      go(at[0], Number(tiles[(here + Number(button.dataset.step) + count) % count].hash.split("/")[1]));
    }));
    root.querySelector(".atlas-odd").addEventListener("change", (event) => root.toggleAttribute("data-odd", event.target.checked));
    root.querySelector(".atlas-lit").addEventListener("change", (event) => root.toggleAttribute("data-plain", !event.target.checked));
    root.querySelector(".atlas-json").addEventListener("click", download);
    window.addEventListener("hashchange", follow);
    root.querySelector(".csg-controls").hidden = false;
    root.dataset.ready = "2";
  } catch (error) {
    tell(`The cards do not work in this browser (${error.message}); all filters are here, and the card of the first.`);
  }
};
