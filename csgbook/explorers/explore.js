// The explorers of explore.py in a page without a kernel: the same views from the same data, and the same elements.
window.csgExplore = function (root) {
  "use strict";
  if (!root || root.dataset.ready) return;
  root.dataset.ready = "1";
  const note = root.querySelector(".csg-note");
  const tell = (text) => { note.textContent = text; note.hidden = false; };
  if (!window.Float32Array || !window.atob || !document.createElement("canvas").getContext || !Object.fromEntries) {
    tell("The sliders need typed arrays and a canvas, which this browser lacks; this is their first position.");
    return;
  }

  const spec = JSON.parse(root.querySelector("script[type='application/json']").textContent);
  const data = Object.fromEntries(Object.entries(spec.data).map(([name, value]) => [name, value && value.base64 ? unpack(value) : value]));
  const classes = data.classes;

  function unpack({ array, shape, base64 }) {
    const bytes = Uint8Array.from(atob(base64), (character) => character.charCodeAt(0));
    const values = new window[array](bytes.buffer);
    const size = shape.slice(1).reduce((a, b) => a * b, 1);
    return { shape, at: (i) => values.subarray(i * size, (i + 1) * size), values };
  }

  // What they compute, as explore.py does

  function classify(j, keep) {
    const [, N, K] = data.q.shape, C = classes.length;
    const q = data.q.at(j), head = data.head.at(j), bias = data.bias.at(j), guessed = new Uint8Array(N);
    const used = [];
    for (let c = 0; c < C; c++) {
      const ks = [], ws = [];
      for (let k = 0; k < K; k++) if (keep(c, k)) { ks.push(k); ws.push(head[c * K + k]); }
      used.push([Uint16Array.from(ks), Float64Array.from(ws)]);
    }
    for (let n = 0; n < N; n++) {
      let best = -Infinity;
      for (let c = 0; c < C; c++) {
        const [ks, ws] = used[c];
        let sum = 0;
        for (let u = 0; u < ks.length; u++) sum += ws[u] * q[n * K + ks[u]];
        if (sum + bias[c] > best) { best = sum + bias[c]; guessed[n] = c; }
      }
    }
    return guessed;
  }

  function right(guessed) {
    const y = data.labels.values, hits = classes.map(() => 0), sizes = classes.map(() => 0);
    for (let n = 0; n < y.length; n++) { sizes[y[n]]++; hits[y[n]] += guessed[n] === y[n]; }
    const all = hits.reduce((a, b) => a + b, 0) / y.length;
    return [all, hits.map((h, c) => (sizes[c] ? h / sizes[c] : 0))];
  }

  const mean = (values) => values.reduce((a, b) => a + b, 0) / values.length;
  const largest = (values) => values.reduce((best, v, i) => (v > values[best] ? i : best), 0);
  const column = (values, k, K) => classes.map((_, c) => values[c * K + k]);

  const views = {
    sparsity(state) {
      const i = state.gate, t = Math.fround(state.threshold / 50), K = data.q.shape[2];
      const j = data.run[i], G = data.gate.at(i), M = data.information.at(j), kept = (c, k) => G[c * K + k] >= t;
      const [overall, each] = right(classify(j, kept));
      let open = 0, information = 0, filters = 0;
      const counts = classes.map(() => 0), values = new Float64Array(G.length), place = new Uint16Array(K);
      data.order[i].forEach((k, at) => { place[k] = at; });
      for (let k = 0; k < K; k++) {
        let most = 0, any = 0;
        for (let c = 0; c < classes.length; c++) if (kept(c, k)) {
          open++; counts[c]++; any = 1; values[c * K + place[k]] = 0.2 + 0.8 * G[c * K + k];
          most = Math.max(most, M[c * K + k]);
        }
        information += most; filters += any;
      }
      return {
        numbers: [["Accuracy", overall.toFixed(4)], ["Density", (open / G.length).toFixed(4)],
          ["Information on the classes kept, nats", (information / K).toFixed(4)], ["Filters kept", String(filters)]],
        matrix: { values, columns: K },
        rows: classes.map((name, c) => [name, [each[c].toFixed(3), each[c]], [String(counts[c]), counts[c] / K]]),
      };
    },
    removal(state) {
      const i = state.gate, K = data.q.shape[2], G = data.gate.at(i), y = data.labels.values;
      const off = classes.map((_, c) => Boolean((state.removed >> c) & 1));
      const lost = Array.from({ length: K }, (_, k) => classes.some((_, c) => off[c] && G[c * K + k] > 0));
      const guessed = classify(data.run[i], (c, k) => !lost[k]), [overall, each] = right(guessed);
      const counts = classes.map(() => classes.map(() => 0)), sizes = classes.map(() => 0);
      for (let n = 0; n < y.length; n++) { counts[y[n]][guessed[n]]++; sizes[y[n]]++; }
      const side = (which) => { const v = each.filter((_, c) => off[c] === which); return v.length ? mean(v).toFixed(3) : "–"; };
      return {
        numbers: [["Accuracy", overall.toFixed(4)], ["On the classes switched off", side(true)], ["On the others", side(false)],
          ["Filters off", String(lost.filter(Boolean).length)]],
        rows: classes.map((name, c) => [name, ...counts[c].map((v) => { const s = v / Math.max(sizes[c], 1); return [(100 * s).toFixed(0), s]; })]),
      };
    },
    film(state) {
      const e = state.epoch, t = data.seen[e], [, C, K] = data.gates.shape;
      const values = t >= 0 ? Float64Array.from(data.gates.at(t), (v) => v / 255) : new Float64Array(C * K).fill(0.5);
      const density = t >= 0 ? (data.gates.at(t).reduce((a, b) => a + b, 0) / 255 / (C * K)).toFixed(3) : "not trained yet";
      return {
        numbers: [["Accuracy, standard path", data.accuracy[e].toFixed(4)], ["Accuracy, gated path", data.gated[e].toFixed(4)],
          ["Density of the gate", density]],
        matrix: { values, columns: K },
        lines: [data.accuracy.slice(0, e + 1), data.gated.slice(0, e + 1)],
        last: Math.max(data.accuracy.length - 1, 1),
      };
    },
    filter(state) {
      const k = state.filter, [, N, K] = data.q.shape, q = data.q.at(0), y = data.labels.values, bins = 24;
      const G = column(data.gate.at(0), k, K), M = column(data.information.at(0), k, K), a = column(data.means.values, k, K);
      const counts = classes.map(() => new Float64Array(bins)), sizes = classes.map(() => 0);
      let rest = 0;
      for (let n = 0; n < N; n++) {
        const v = q[n * K + k];
        counts[y[n]][Math.min((v * bins) >> 8, bins - 1)]++; sizes[y[n]]++; rest += v === 0;
      }
      const values = classes.flatMap((_, c) => Array.from(counts[c], (v) => Math.sqrt(v / Math.max(sizes[c], 1))));
      const share = (v, all) => v / Math.max(...all, 1e-12);
      const top = data.best.shape[1];
      return {
        numbers: [["Class by the gate", classes[largest(G)]], ["Most information on", classes[largest(M)]],
          ["That information, nats", Math.max(...M).toFixed(4)], ["Images at rest", (100 * rest / N).toFixed(1) + " %"]],
        matrix: { values, columns: bins },
        rows: classes.map((name, c) => [name, [G[c].toFixed(2), G[c]], [M[c].toFixed(4), share(M[c], M)], [a[c].toFixed(3), share(a[c], a)]]),
        images: Array.from(data.best.values.subarray(k * top, (k + 1) * top), (j) => [j, classes[data.of[j]]]),
      };
    },
  };

  // How they look: the elements of the first position are there, and their content is replaced

  function show(view) {
    const numbers = root.querySelectorAll(".csg-numbers dd");
    view.numbers.forEach(([, value], i) => { if (numbers[i].textContent !== value) numbers[i].textContent = value; });
    if (view.matrix) paint(view.matrix);
    if (view.lines) root.querySelectorAll("polyline").forEach((line, i) => line.setAttribute("points",
      view.lines[i].map((v, x) => (30 + 380 * x / view.last).toFixed(1) + "," + (150 - 140 * v).toFixed(1)).join(" ")));
    if (view.rows) root.querySelectorAll(".csg-table tbody tr").forEach((row, r) => row.querySelectorAll("td").forEach((cell, c) => {
      const [text, share] = view.rows[r][c + 1];
      cell.textContent = text;
      cell.style.setProperty("--share", share.toFixed(3));
    }));
    if (view.images) root.querySelectorAll(".csg-images figure").forEach((figure, i) => {
      const [j, name] = view.images[i], thumb = figure.querySelector(".csg-thumb");
      thumb.style.backgroundPosition = `-${64 * (j % data.across)}px -${64 * Math.floor(j / data.across)}px`;
      thumb.setAttribute("aria-label", "test image of class " + name);
      figure.querySelector("figcaption").textContent = name;
    });
  }

  function paint({ values, columns }) {
    let canvas = root.querySelector(".csg-matrix canvas");
    if (!canvas) {
      const image = root.querySelector(".csg-matrix img");
      canvas = document.createElement("canvas");
      canvas.width = columns; canvas.height = values.length / columns;
      canvas.setAttribute("role", "img");
      canvas.setAttribute("aria-label", image.alt);
      image.replaceWith(canvas);
    }
    const context = canvas.getContext("2d"), pixels = context.createImageData(canvas.width, canvas.height);
    values.forEach((v, i) => pixels.data.set([0, 114, 178, Math.round(255 * Math.min(Math.max(v, 0), 1))], 4 * i));
    context.putImageData(pixels, 0, 0);
  }

  const inputs = [...root.querySelectorAll("[data-control]")], status = root.querySelector(".csg-status");
  function state() {
    const places = {};
    for (const input of inputs) {
      const id = input.dataset.control;
      if (input.type === "checkbox") places[id] = (places[id] || 0) | (input.checked << Number(input.dataset.bit));
      else places[id] = Number(input.value);
    }
    return places;
  }
  let speaking;
  function update(event) {
    const view = views[spec.kind](state());
    show(view);
    for (const input of inputs) if (input.type === "range") {
      const level = JSON.parse(input.dataset.levels)[Number(input.value)];
      input.setAttribute("aria-valuetext", level);
      input.nextElementSibling.textContent = level;
    }
    if (!event) return;
    clearTimeout(speaking); // a screen reader hears the numbers once the slider rests
    speaking = setTimeout(() => { status.textContent = view.numbers.map(([label, value]) => `${label}: ${value}`).join(", "); }, 400);
  }
  try {
    update();
    inputs.forEach((input) => input.addEventListener("input", update));
    root.querySelector(".csg-controls").hidden = false;
  } catch (error) {
    tell(`The sliders do not work in this browser (${error.message}); this is their first position.`);
  }
};
