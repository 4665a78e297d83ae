// The worked example of worked.py in a page without a kernel: the same numbers, computed again
(function (root) {
  "use strict";
  if (!root || root.dataset.ready) return;
  root.dataset.ready = "1";
  const known = JSON.parse(root.querySelector("script[type='application/json']").textContent);
  const a = known.activations;
  const inputs = [...root.querySelectorAll("[data-control]")], places = [...root.querySelectorAll("[data-out]")];
  const first = inputs.map((input) => input.value), status = root.querySelector(".worked-status");

  const head = (w) => [[1, w, -1], [-1, -w, 1]];
  function softmax(x, W) {
    const z = W.map((row) => row.reduce((sum, v, k) => sum + v * x[k], 0)), top = Math.max(...z);
    const e = z.map((v) => Math.exp(v - top)), all = e[0] + e[1];
    return e.map((v) => v / all);
  }
  const behind = (G, c) => a[c].map((v, k) => v * G[c][k]);
  const total = (G) => G.flat().reduce((sum, v) => sum + v, 0);
  const loss = (rows, W) => -rows.reduce((sum, x, c) => sum + Math.log(softmax(x, W)[c]), 0) / 2;

  function project(G) { // of two rows, as gate.py does
    return G.map((row, c) => row.map((v, k) => {
      const top = Math.max(G[0][k], G[1][k]);
      if (top <= 0) return G[0][k] >= G[1][k] ? 1 - c : c; // one-hot at the largest, the first of equals
      return Math.min(Math.max(v / top, 0), 1);
    }));
  }

  function trained(W, pressure, steps) {
    let G = [[1, 1, 1], [1, 1, 1]];
    for (let t = 0; t < steps; t++) {
      const push = total(G) > known.bound ? pressure : 0;
      G = project(G.map((row, c) => {
        const p = softmax(behind(G, c), W);
        return row.map((v, k) => v - known.rate * (a[c][k] * p.reduce((s, q, j) => s + (q - (j === c)) * W[j][k], 0) / 2 + push));
      }));
    }
    return G;
  }

  function view(state) {
    const W = head(known.speaks[state.speaks]), y = state.image;
    const G = trained(W, known.pressures[state.pressure], state.steps), gated = [behind(G, 0), behind(G, 1)];
    const share = total(G) / 6, losses = [loss(a, W), loss(gated, W)], out = {
      density: [share.toFixed(3), share], sum: [total(G).toFixed(2), share],
      "loss-standard": [losses[0].toFixed(3), losses[0]], "loss-gated": [losses[1].toFixed(3), losses[1]],
    };
    for (let k = 0; k < 3; k++) {
      for (let c = 0; c < 2; c++) out[`gate-${c}-${k}`] = [G[c][k].toFixed(2), G[c][k]];
      out["fires-" + k] = [a[y][k].toFixed(2), a[y][k]];
      out["passes-" + k] = [gated[y][k].toFixed(2), gated[y][k]];
    }
    for (const [path, x] of [["standard", a[y]], ["gated", gated[y]]])
      softmax(x, W).forEach((p, c) => { out[`${path}-${c}`] = [(100 * p).toFixed(1) + " %", p]; });
    return out;
  }

  let speaking;
  function update(event) {
    const shown = view(Object.fromEntries(inputs.map((input) => [input.dataset.control, Number(input.value)])));
    for (const place of places) {
      const [text, length] = shown[place.dataset.out];
      if (place.textContent !== text) place.textContent = text;
      place.style.setProperty("--share", length.toFixed(4));
    }
    for (const input of inputs) if (input.type === "range") {
      const level = JSON.parse(input.dataset.levels)[Number(input.value)];
      input.setAttribute("aria-valuetext", level);
      input.nextElementSibling.textContent = level;
    }
    if (!event) return;
    clearTimeout(speaking); // a screen reader hears the numbers once the slider rests
    speaking = setTimeout(() => {
      status.textContent = `Density ${shown.density[0]}, gate of filter 2: cat ${shown["gate-0-1"][0]}, dog ${shown["gate-1-1"][0]}; ` +
        `cross entropy of the gated path ${shown["loss-gated"][0]}`;
    }, 400);
  }
  try {
    update();
    inputs.forEach((input) => input.addEventListener("input", update));
    root.querySelector(".worked-reset").addEventListener("click", (event) => {
      inputs.forEach((input, i) => { input.value = first[i]; });
      update(event);
    });
    root.querySelector(".worked-controls").hidden = false;
  } catch (error) {
    const note = root.querySelector(".worked-note");
    note.textContent = `The sliders do not work in this browser (${error.message}); this is their first position.`;
    note.hidden = false;
  }
})(document.getElementById("worked"));
