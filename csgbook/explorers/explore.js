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

  const points = (x) => (x < 0 ? "−" : "+") + Math.abs(100 * x).toFixed(1);
  const mean = (values) => values.reduce((a, b) => a + b, 0) / values.length;
  const largest = (values) => values.reduce((best, v, i) => (v > values[best] ? i : best), 0);
  const column = (values, k, K) => classes.map((_, c) => values[c * K + k]);

  const views = {
    cut(state) {
      const level = state.share, [, C, K] = data.rank.shape, n = data.counts[level];
      const sides = [state.left, state.right].map((network) => network * data.ways + state.by);
      const called = [data.networks[state.left], data.networks[state.right] + (state.left === state.right ? ", right" : "")];
      const now = sides.map((i) => data.mean.at(i)[level]), whole = sides.map((i) => data.mean.at(i)[data.counts.length - 1]);
      const counts = sides.map(() => classes.map(() => 0));
      const matrices = sides.map((i, s) => {
        const rank = data.rank.at(i), value = data.value.at(i), values = new Float64Array(C * K), place = new Uint16Array(K);
        data.order.at(i).forEach((k, at) => { place[k] = at; });
        for (let c = 0; c < C; c++) for (let k = 0; k < K; k++) if (rank[c * K + k] < n) {
          counts[s][c]++;
          values[c * K + place[k]] = 0.2 + 0.8 * value[c * K + k] / 255;
        }
        return { title: `${called[s]}: the connections that are left`, values, columns: K };
      });
      const moved = called.map((name, s) => `${points(now[s] - whole[s])} points for ${name}`).join(" and ");
      const each = sides.map((i) => data.each.at(i).subarray(level * C, (level + 1) * C));
      return {
        numbers: [...called.map((name, s) => [`${name}, accuracy`, now[s].toFixed(4)]), ["Connections kept", `${n} of ${C * K}`],
          ["Per class, mean", `${(n / C).toFixed(1)} of ${K} filters`]],
        told: `Cutting the other ${C * K - n} connections changes accuracy by ${moved}.`,
        lines: { names: called, series: sides.map((i) => data.mean.at(i)), bands: sides.map((i) => [data.low.at(i), data.high.at(i)]),
          at: level, last: Math.max(data.axis.length - 1, 1) },
        matrices,
        head: ["Class", ...called.map((name) => `${name}, accuracy`), ...called.map((name) => `${name}, filters`)],
        rows: classes.map((name, c) => [name, ...each.map((v) => [v[c].toFixed(3), v[c]]), ...counts.map((v) => [String(v[c]), v[c] / K])]),
      };
    },
    removal(state) {
      const K = data.q.shape[2], y = data.labels.values;
      const off = classes.map((_, c) => data.boxes ? Boolean((state.removed >> c) & 1) : c === state.removed);
      const numbers = [], told = [], columns = [];
      data.networks.forEach((name, i) => {
        const G = data.gate.at(i), lost = Array.from({ length: K }, (_, k) => classes.some((_, c) => off[c] && G[c * K + k] > 0));
        const guessed = classify(data.run[i], (c, k) => !lost[k]), each = right(guessed)[1];
        const side = (which) => { const v = each.filter((_, c) => off[c] === which); return v.length ? mean(v).toFixed(3) : "–"; };
        numbers.push([`${name}: switched-off classes`, side(true)], [`${name}: the other classes`, side(false)]);
        told.push(`${name} ${lost.filter(Boolean).length}`);
        const wrong = classes.map(() => classes.map(() => 0));
        for (let n = 0; n < y.length; n++) if (guessed[n] !== y[n]) wrong[y[n]][guessed[n]]++;
        columns.push(wrong.map((row, c) => [[each[c].toFixed(3), each[c]], [row.some(Boolean) ? classes[largest(row)] : "–", 0]]));
      });
      return { numbers, told: `Filters switched off: ${told.join(", ")}.`,
        rows: classes.map((name, c) => [name, ...columns.flatMap((column) => column[c])]) };
    },
    film(state) {
      const e = state.epoch, t = data.seen[e], [, C, K] = data.gates.shape;
      const values = t >= 0 ? Float64Array.from(data.gates.at(t), (v) => v / 255) : new Float64Array(C * K).fill(0.5);
      const density = t >= 0 ? (data.gates.at(t).reduce((a, b) => a + b, 0) / 255 / (C * K)).toFixed(3) : "not trained yet";
      const path = data.paths[e], moved = path === "gated" || path === "joint";
      return {
        numbers: [["Accuracy, standard path", data.accuracy[e].toFixed(4)], ["Accuracy, gated path", data.gated[e].toFixed(4)],
          ["Density of the gate", density]],
        told: `This epoch trained the ${path} path: the gate ${moved ? "moved" : "was frozen"}.`,
        matrices: [{ values, columns: K }],
        lines: { series: [data.accuracy.slice(0, e + 1), data.gated.slice(0, e + 1)], last: Math.max(data.accuracy.length - 1, 1) },
      };
    },
    filter(state) {
      const k = data.order[0][state.filter], [, N, K] = data.q.shape, q = data.q.at(0), y = data.labels.values, bins = 24;
      const G = column(data.gate.at(0), k, K), M = column(data.information.at(0), k, K), a = column(data.means.values, k, K);
      const counts = classes.map(() => new Float64Array(bins)), sizes = classes.map(() => 0);
      let rest = 0;
      for (let n = 0; n < N; n++) {
        const v = q[n * K + k];
        counts[y[n]][Math.min((v * bins) >> 8, bins - 1)]++; sizes[y[n]]++; rest += v === 0;
      }
      const values = classes.flatMap((_, c) => Array.from(counts[c], (v) => Math.sqrt(v / Math.max(sizes[c], 1))));
      const share = (v, all) => v / Math.max(...all, 1e-12);
      const top = data.best.shape[1], own = classes[largest(G)], told = classes[largest(M)];
      return {
        numbers: [["Class of the gate", own], ["Largest mutual information", told],
          ["Mutual information, nats", Math.max(...M).toFixed(4)], ["Images with zero activation", (100 * rest / N).toFixed(1) + " %"]],
        told: own === told ? `Gate and information agree on ${own}.`
          : `The gate gives this filter to ${own}, and its activation tells most about ${told}.`,
        matrices: [{ values, columns: bins }],
        rows: classes.map((name, c) => [name, [G[c].toFixed(2), G[c]], [M[c].toFixed(4), share(M[c], M)], [a[c].toFixed(3), share(a[c], a)]]),
        images: Array.from(data.best.values.subarray(k * top, (k + 1) * top), (j) => [j, classes[data.of[j]]]),
      };
    },
  };

  // How they look: the elements of the first position are there, and their content is replaced

  const write = (element, text) => { if (element.textContent !== text) element.textContent = text; };
  const all = (selector) => root.querySelectorAll(selector);
  function show(view) {
    const names = all(".csg-numbers dt"), numbers = all(".csg-numbers dd");
    view.numbers.forEach(([name, value], i) => { write(names[i], name); write(numbers[i], value); });
    write(root.querySelector(".csg-told"), view.told);
    if (view.matrices) view.matrices.forEach(paint);
    if (view.lines) draw(view.lines);
    if (view.head) all(".csg-table thead th").forEach((cell, c) => write(cell, view.head[c]));
    if (view.rows) all(".csg-table tbody tr").forEach((row, r) => row.querySelectorAll("td").forEach((cell, c) => {
      const [text, share] = view.rows[r][c + 1];
      write(cell, text);
      cell.style.setProperty("--share", share.toFixed(3));
    }));
    if (view.images) all(".csg-images figure").forEach((figure, i) => {
      const [j, name] = view.images[i], thumb = figure.querySelector(".csg-thumb");
      thumb.style.backgroundPosition = `-${64 * (j % data.across)}px -${64 * Math.floor(j / data.across)}px`;
      thumb.setAttribute("aria-label", "test image of class " + name);
      figure.querySelector("figcaption").textContent = name;
    });
  }

  function draw({ series, bands, at, names, last }) {
    const along = (place) => (30 + 380 * place / last).toFixed(1);
    const line = (values) => Array.from(values, (v, place) => along(place) + "," + (150 - 140 * v).toFixed(1));
    all(".csg-chart polyline").forEach((element, i) => element.setAttribute("points", line(series[i]).join(" ")));
    if (bands) all(".csg-chart polygon").forEach((element, i) =>
      element.setAttribute("points", [...line(bands[i][0]), ...line(bands[i][1]).reverse()].join(" ")));
    if (names) all(".csg-chart .csg-name").forEach((element, i) => write(element, names[i]));
    const mark = root.querySelector(".csg-chart .csg-at");
    if (mark) for (const end of ["x1", "x2"]) mark.setAttribute(end, along(at));
  }

  function paint({ title, values, columns }, i) {
    const panel = all(".csg-panel")[i];
    let canvas = panel.querySelector("canvas");
    if (!canvas) {
      const image = panel.querySelector("img");
      canvas = document.createElement("canvas");
      canvas.width = columns; canvas.height = values.length / columns;
      canvas.setAttribute("role", "img");
      canvas.setAttribute("aria-label", image.alt);
      image.replaceWith(canvas);
    }
    if (title) {
      write(panel.querySelector(".csg-title"), title);
      canvas.setAttribute("aria-label", `${title}: ${canvas.height} rows, ${columns} columns`);
    }
    const context = canvas.getContext("2d"), pixels = context.createImageData(canvas.width, canvas.height);
    values.forEach((v, at) => pixels.data.set([0, 114, 178, Math.round(255 * Math.min(Math.max(v, 0), 1))], 4 * at));
    context.putImageData(pixels, 0, 0);
  }

  // A state's address: #explore=NAME&CONTROL=PLACE&...

  const inputs = [...all("[data-control]")], status = root.querySelector(".csg-status");
  const first = inputs.map((input) => (input.type === "checkbox" ? input.checked : input.value));
  function state() {
    const places = {};
    for (const input of inputs) {
      const id = input.dataset.control;
      if (input.type === "checkbox") places[id] = (places[id] || 0) | (input.checked << Number(input.dataset.bit));
      else places[id] = Number(input.value);
    }
    return places;
  }
  const address = () => `#explore=${root.dataset.name}` + Object.entries(state()).map(([id, place]) => `&${id}=${place}`).join("");

  function follow() {
    const [name, ...words] = location.hash.slice(1).split("&");
    if (name !== `explore=${root.dataset.name}`) return;
    const wanted = Object.fromEntries(words.map((word) => word.split("="))), known = state();
    const most = (id) => Math.max(...inputs.filter((i) => i.dataset.control === id).map((i) => {
      if (i.type === "checkbox") return 2 ** (Number(i.dataset.bit) + 1) - 1;
      return i.tagName === "SELECT" ? i.options.length - 1 : Number(i.max);
    }));
    const wrong = Object.entries(wanted).filter(([id, place]) => !(id in known) || !/^\d{1,10}$/.test(place) || Number(place) > most(id));
    if (wrong.length) tell(`The address asks for ${wrong.map((word) => word.join("=")).join(", ")}, which is not here: the rest is shown.`);
    else note.hidden = true;
    const missing = new Set(wrong.map(([id]) => id));
    for (const input of inputs) {
      const id = input.dataset.control;
      if (!(id in wanted) || missing.has(id)) continue;
      if (input.type === "checkbox") input.checked = Boolean((Number(wanted[id]) >> Number(input.dataset.bit)) & 1);
      else input.value = wanted[id];
    }
    update();
    root.scrollIntoView();
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
    const link = root.querySelector(".csg-address");
    link.setAttribute("href", address());
    if (!event) return;
    try { history.replaceState(null, "", address()); } catch (error) { /* a page read from disk keeps its address */ }
    clearTimeout(speaking); // a screen reader hears the numbers once the slider rests
    speaking = setTimeout(() => { status.textContent = view.numbers.map(([label, value]) => `${label}: ${value}`).join(", "); }, 400);
  }
  try {
    update();
    inputs.forEach((input) => input.addEventListener("input", update));
    root.querySelector(".csg-reset").addEventListener("click", (event) => {
      inputs.forEach((input, i) => { if (input.type === "checkbox") input.checked = first[i]; else input.value = first[i]; });
      note.hidden = true;
      update(event);
    });
    for (const selector of [".csg-controls", ".csg-links"]) root.querySelector(selector).hidden = false;
    follow();
    window.addEventListener("hashchange", follow);
  } catch (error) {
    tell(`The sliders do not work in this browser (${error.message}); this is their first position.`);
  }
};
