// A network in the page: the controls and the view of network.py, computed in the reader's browser by resnet.js below.
window.csgNetwork = function (root) {
  "use strict";
  if (!root || root.dataset.ready) return;
  root.dataset.ready = "1";
  const note = root.querySelector(".net-note");
  const tell = (text) => { if (note.textContent !== text) note.textContent = text; note.hidden = !text; };
  const canvas = document.createElement("canvas");
  const context = window.Float32Array && window.atob && window.DataView && canvas.getContext && canvas.getContext("2d", { willReadFrequently: true });
  if (!context || !Object.fromEntries) {
    tell("The networks need typed arrays and a canvas, which this browser lacks; this is the first image, with all filters on.");
    return;
  }
  const spec = JSON.parse(root.querySelector("script[type='application/json']").textContent);
  const { classes, labels, across } = spec, SIDE = 32, MOST = 64e6;
  const networks = spec.networks.map((known) => ({
    ...known, key: known.name.toLowerCase(), off: new Set(), run: window.csgResnet(known), section: root.querySelector(`[data-network="${CSS.escape(known.name)}"]`) }));
  const radios = [...root.querySelectorAll("[data-image]")], boxes = [...root.querySelectorAll("[data-class]")];
  const file = root.querySelector("input[type=file]"), picture = root.querySelector(".net-image"), status = root.querySelector(".csg-status");
  let sample, image = 0, asked = 0; // image: its number, or "own"; asked: of several files the last one counts

  // Pixels

  function read(source, x, y, side, size) { // a square of a picture in another size, as bytes in rows of red, green, blue, alpha
    canvas.width = canvas.height = size;
    context.imageSmoothingQuality = "high";
    context.clearRect(0, 0, size, size);
    context.drawImage(source, x, y, side, side, 0, 0, size, size);
    return context.getImageData(0, 0, size, size).data;
  }
  const planes = (data) => Uint8Array.from({ length: 3 * SIDE * SIDE }, (_, n) => data[4 * (n % (SIDE * SIDE)) + Math.floor(n / (SIDE * SIDE))]);

  function prepare(source) { // as photograph.py does
    const { width: w, height: h } = source, side = Math.min(w, h), told = [];
    if (w !== h) told.push(`The image is ${w} x ${h} pixels: the square in its middle is taken.`);
    if (side < SIDE) told.push("It is smaller than 32 x 32 pixels, so it is enlarged.");
    const size = SIDE * Math.min(Math.max(Math.floor(side / SIDE), 1), 32), cell = size / SIDE;
    const data = read(source, Math.floor((w - side) / 2), Math.floor((h - side) / 2), side, size);
    const sums = new Float64Array(3 * SIDE * SIDE);
    let clear = false, grey = true;
    for (let n = 0; n < size * size; n++) {
      const alpha = data[4 * n + 3] / 255, place = Math.floor(n / size / cell) * SIDE + Math.floor((n % size) / cell), rgb = [];
      for (let c = 0; c < 3; c++) sums[c * SIDE * SIDE + place] += rgb[c] = data[4 * n + c] * alpha + 255 * (1 - alpha);
      clear ||= alpha < 1;
      grey &&= Math.max(...rgb) - Math.min(...rgb) < 1;
    }
    if (clear) told.push("Its transparent parts are shown on white.");
    if (grey) told.push("It is grey, and the networks have learned from colour photographs.");
    return [Uint8Array.from(sums, (v) => Math.floor(v / cell / cell + 0.5)), told.join(" ")];
  }

  async function open(chosen) { // a file of the reader's own
    const turn = ++asked, huge = "The image has more than 64 million pixels, too many: scale it down first.";
    try {
      const head = new DataView(await chosen.slice(0, 24).arrayBuffer()); // of a PNG the size is known before it is decoded
      if (head.byteLength === 24 && head.getUint32(0) === 0x89504e47 && head.getUint32(16) * head.getUint32(20) > MOST) {
        return tell(huge);
      }
      if (!window.createImageBitmap) return tell("This browser cannot read an image of your own: choose one of the test images.");
      const bitmap = await createImageBitmap(chosen);
      if (turn !== asked) return;
      if (bitmap.width * bitmap.height > MOST) return tell(huge);
      const [pixels, told] = prepare(bitmap);
      bitmap.close();
      image = "own";
      show(pixels);
      tell(told);
      write();
    } catch (error) {
      tell("This file is no image that can be read here: choose a JPEG, PNG or WebP file.");
    }
  }

  // What is shown

  const percent = (share) => (100 * share).toFixed(1) + " %";
  function softmax(logits) {
    const top = Math.max(...logits), e = Array.from(logits, (v) => Math.exp(v - top)), all = e.reduce((a, b) => a + b, 0);
    return e.map((v) => v / all);
  }

  function show(pixels) { // a new image: both networks run
    const told = image === "own" ? "Your own image" : `A test image of class ${classes[labels[image]]}`;
    canvas.width = canvas.height = SIDE;
    const data = context.createImageData(SIDE, SIDE), n = SIDE * SIDE;
    for (let j = 0; j < n; j++) data.data.set([pixels[j], pixels[n + j], pixels[2 * n + j], 255], 4 * j);
    context.putImageData(data, 0, 0);
    picture.style.backgroundImage = `url(${canvas.toDataURL()})`;
    picture.setAttribute("aria-label", told);
    picture.nextElementSibling.textContent = told;
    radios.forEach((radio, j) => { radio.setAttribute("aria-checked", String(j === image)); radio.tabIndex = j === (image === "own" ? 0 : image) ? 0 : -1; });
    const times = networks.map((network) => {
      const start = performance.now();
      network.out = network.run.forward(pixels);
      network.first = softmax(network.out.logits);
      const time = performance.now() - start;
      paint(network);
      return `${network.name} ${time.toFixed(0)} ms`;
    });
    root.querySelector(".net-time").textContent = `Computed in this browser: one forward pass took ${times.join(", ")}.`;
    update();
  }

  function paint({ out, scale, section }) { // all maps as one picture, blue where a filter fires and clear where it rests
    const T = out.side, K = scale.length;
    canvas.width = 8 * T; canvas.height = Math.ceil(K / 8) * T;
    const data = context.createImageData(canvas.width, canvas.height);
    for (let k = 0; k < K; k++) for (let n = 0; n < T * T; n++) {
      const x = (k % 8) * T + (n % T), y = Math.floor(k / 8) * T + Math.floor(n / T);
      const value = Math.sqrt(Math.min(out.maps[k * T * T + n] / Math.max(scale[k], 1e-12), 1));
      data.data.set([0, 114, 178, Math.round(255 * value)], 4 * (y * canvas.width + x));
    }
    context.putImageData(data, 0, 0);
    section.style.setProperty("--maps", `url(${canvas.toDataURL()})`);
  }

  const all = (network, c) => network.owner.map((o, k) => (o === c ? k : -1)).filter((k) => k >= 0);
  function update() { // other filters: the heads alone
    for (const network of networks) {
      const share = softmax(network.run.logits(network.out.features, network.off)), top = share.indexOf(Math.max(...share));
      network.section.querySelector(".net-name span").textContent = `${classes[top]}, ${percent(share[top])}`;
      network.section.querySelectorAll("tbody tr").forEach((row, c) => {
        row.toggleAttribute("data-top", c === top);
        row.toggleAttribute("data-moved", Math.abs(share[c] - network.first[c]) >= 0.005);
        row.toggleAttribute("data-true", image !== "own" && c === labels[image]);
        row.cells[1].style.setProperty("--share", share[c].toFixed(4));
        row.cells[1].style.setProperty("--first", network.first[c].toFixed(4));
        row.cells[2].textContent = percent(share[c]);
      });
      network.section.querySelectorAll(".net-tile").forEach((tile) => tile.setAttribute("aria-pressed", String(!network.off.has(Number(tile.dataset.filter)))));
      network.says = `${network.name}: ${classes[top]}, ${percent(share[top])}`;
    }
    boxes.forEach((box, c) => {
      const off = networks.flatMap((network) => all(network, c).map((k) => network.off.has(k)));
      box.checked = off.length > 0 && off.every(Boolean);
      box.indeterminate = !box.checked && off.some(Boolean);
    });
    status.textContent = networks.map((network) => network.says).join("; ");
  }

  // The address: #image=12&std=c5&csg=c5.27, where c5 is all filters of class 5 and 27 filter 27

  function write() {
    const parts = ["image=" + image];
    for (const network of networks) {
      const whole = classes.map((_, c) => c).filter((c) => all(network, c).length && all(network, c).every((k) => network.off.has(k)));
      const single = [...network.off].filter((k) => !whole.includes(network.owner[k])).sort((a, b) => a - b);
      if (network.off.size) parts.push(encodeURIComponent(network.key) + "=" + [...whole.map((c) => "c" + c), ...single].join("."));
    }
    try { history.replaceState(null, "", "#" + parts.join("&")); } catch (error) { location.hash = parts.join("&"); }
  }

  function follow() { // the address, as far as it says something; what does not exist is named
    const words = location.hash.slice(1).split("&"), wrong = [];
    if (!words[0].includes("=")) return false; // a place of the page
    const plain = (text) => { try { return decodeURIComponent(text || ""); } catch (error) { return text; } };
    let next = 0;
    networks.forEach((network) => network.off.clear());
    for (const word of words) {
      const [key, value] = word.split("=").map(plain), network = networks.find((known) => known.key === key);
      if (key === "image") {
        if (value === "own") wrong.push("the address speaks of somebody's own image, which it cannot carry");
        else if (/^\d+$/.test(value) && Number(value) < labels.length) next = Number(value);
        else wrong.push(`there is no image ${value}: they are 0 to ${labels.length - 1}`);
      } else if (!network) wrong.push(`there is no network ${key}: they are ${networks.map((known) => known.key).join(", ")}`);
      else for (const part of (value || "").split(".")) {
        const [, group, digits] = /^(c?)(\d+)$/.exec(part) || [], number = Number(digits);
        if (group && number < classes.length) all(network, number).forEach((k) => network.off.add(k));
        else if (group === "" && number < network.run.filters) network.off.add(number);
        else wrong.push(`${network.key} has no filter ${part}: they are 0 to ${network.run.filters - 1}, and c0 to c${classes.length - 1}`);
      }
    }
    choose(next);
    if (wrong.length) tell(`Of this address: ${wrong.join("; ")}.`);
    return true;
  }

  function choose(j) {
    asked++;
    tell(changed);
    image = j;
    show(planes(read(sample, SIDE * (j % across), SIDE * Math.floor(j / across), SIDE, SIDE)));
  }

  let changed = ""; // what is wrong with the pixels that this browser lets a page read
  function start() {
    let total = 0;
    labels.forEach((_, j) => { for (const v of planes(read(sample, SIDE * (j % across), SIDE * Math.floor(j / across), SIDE, SIDE))) total += v; });
    if (total !== spec.sum) changed = "This browser alters the pixels that a page reads, against fingerprinting, so the numbers differ a little from the networks' own.";
    follow() || choose(0);
    radios.forEach((radio, j) => {
      radio.addEventListener("click", () => { choose(j); write(); });
      radio.addEventListener("keydown", (event) => {
        const step = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: across, ArrowUp: -across }[event.key];
        const next = event.key === "Home" ? 0 : event.key === "End" ? radios.length - 1 : step && (j + step + radios.length) % radios.length;
        if (next === undefined) return;
        event.preventDefault();
        choose(next);
        radios[next].focus();
        write();
      });
    });
    const change = (work) => { work(); update(); write(); };
    boxes.forEach((box, c) => box.addEventListener("change", () => change(() => networks.forEach((network) =>
      all(network, c).forEach((k) => (box.checked ? network.off.add(k) : network.off.delete(k)))))));
    networks.forEach(({ section, off }) => section.querySelectorAll(".net-tile").forEach((tile) => {
      tile.disabled = false;
      const k = Number(tile.dataset.filter);
      tile.addEventListener("click", () => change(() => off.delete(k) || off.add(k)));
    }));
    root.querySelector(".net-reset").addEventListener("click", () => change(() => networks.forEach((network) => network.off.clear())));
    file.addEventListener("change", () => { if (file.files.length) open(file.files[0]); });
    for (const type of ["dragover", "drop", "dragleave"]) root.addEventListener(type, (event) => {
      event.preventDefault();
      root.toggleAttribute("data-drop", type === "dragover");
      if (type !== "drop") return;
      if (event.dataTransfer.files.length) open(event.dataTransfer.files[0]);
      else tell("That was no file: save the image first, then drop the file.");
    });
    window.addEventListener("hashchange", follow);
    root.querySelector(".csg-controls").hidden = false;
    root.dataset.ready = "2";
  }
  const failed = (error) => tell(`The networks do not work in this browser (${error.message}); this is the first image, with all filters on.`);
  const tries = (work) => { try { work(); } catch (error) { failed(error); } };
  sample = new Image();
  sample.onload = () => tries(start);
  sample.onerror = () => failed(new Error("it cannot read WebP"));
  sample.src = root.style.getPropertyValue("--sprite").trim().replace(/^url\(["']?|["']?\)$/g, "");
};
