// A network in the page: the CIFAR ResNets of nets.py in plain JavaScript, float32 as PyTorch has it.
// csgResnet(spec) gives forward(pixels): 3 x 32 x 32 bytes in, {maps: K x 8 x 8, features: K, logits: C} out.
window.csgResnet = function (spec) {
  "use strict";
  const bytes = Uint8Array.from(atob(spec.base64), (character) => character.charCodeAt(0));
  const words = new DataView(bytes.buffer);
  let at = 0; // the place of the next number
  const single = (count) => Float32Array.from({ length: count }, () => { at += 4; return words.getFloat32(at - 4, true); });
  const numbers = (count, halves) => (halves ? Float32Array.from({ length: count }, () => { at += 2; return half(words.getUint16(at - 2, true)); }) : single(count));

  function half(bits) { // IEEE 754: a sign, five bits of exponent, ten of fraction
    const exponent = (bits >> 10) & 31, fraction = bits & 1023, sign = bits & 32768 ? -1 : 1;
    return sign * (exponent ? 2 ** (exponent - 15) * (1 + fraction / 1024) : 2 ** -14 * (fraction / 1024));
  }

  // Of each convolution its kernels, and batch normalisation as a scale and a shift of each output channel
  const layers = spec.layers.map(({ inputs, outputs, stride, halves }) => ({
    inputs, outputs, stride, kernels: numbers(9 * inputs * outputs, halves), scale: single(outputs), shift: single(outputs) }));
  const K = layers[layers.length - 1].outputs, C = spec.classes;
  const weight = numbers(C * K, spec.headHalves), bias = single(C);

  // Maps lie one after the other, each of side S inside a border of zeros: (S + 2) x (S + 2)
  const blank = (channels, S) => ({ channels, S, values: new Float32Array(channels * (S + 2) * (S + 2)) });

  function convolve(x, layer, shortcut, out) { // relu(scale * conv(x) + shift + shortcut)
    const { inputs, outputs, stride, kernels } = layer, { S, values } = x, T = out.S, P = S + 2, Q = T + 2, sum = new Float32Array(T * T);
    for (let o = 0; o < outputs; o++) {
      sum.fill(0);
      for (let i = 0; i < inputs; i++) {
        const k = 9 * (o * inputs + i), first = i * P * P;
        const k0 = kernels[k], k1 = kernels[k + 1], k2 = kernels[k + 2], k3 = kernels[k + 3], k4 = kernels[k + 4];
        const k5 = kernels[k + 5], k6 = kernels[k + 6], k7 = kernels[k + 7], k8 = kernels[k + 8];
        for (let r = 0; r < T; r++) {
          const p = first + stride * r * P, q = p + P, s = q + P, n = r * T;
          if (stride === 1) { // a window of nine numbers slides along the row
            let a = values[p], b = values[p + 1], c = values[q], d = values[q + 1], e = values[s], f = values[s + 1];
            for (let j = 0; j < T; j++) {
              const g = values[p + j + 2], h = values[q + j + 2], l = values[s + j + 2];
              sum[n + j] += k0 * a + k1 * b + k2 * g + k3 * c + k4 * d + k5 * h + k6 * e + k7 * f + k8 * l;
              a = b; b = g; c = d; d = h; e = f; f = l;
            }
          } else for (let j = 0; j < T; j++) {
            const u = p + stride * j, v = q + stride * j, w = s + stride * j;
            sum[n + j] += k0 * values[u] + k1 * values[u + 1] + k2 * values[u + 2] + k3 * values[v] + k4 * values[v + 1]
              + k5 * values[v + 2] + k6 * values[w] + k7 * values[w + 1] + k8 * values[w + 2];
          }
        }
      }
      const scale = layer.scale[o], shift = layer.shift[o];
      for (let r = 0; r < T; r++) for (let j = 0; j < T; j++) {
        const value = scale * sum[r * T + j] + shift + (shortcut ? shortcut(o, r, j) : 0);
        out.values[(o * Q + r + 1) * Q + j + 1] = value > 0 ? value : 0;
      }
    }
    return out;
  }

  function around(x, planes, stride) { // option A: every stride-th pixel, the new channels zeros on both sides
    const before = (planes - x.channels) / 2, P = x.S + 2;
    return (o, r, j) => {
      const i = o - before;
      return i < 0 || i >= x.channels ? 0 : x.values[(i * P + stride * r + 1) * P + stride * j + 1];
    };
  }

  function forward(pixels) {
    const S = 32, image = blank(3, S);
    for (let c = 0; c < 3; c++) for (let r = 0; r < S; r++) for (let j = 0; j < S; j++) {
      image.values[(c * (S + 2) + r + 1) * (S + 2) + j + 1] = (pixels[(c * S + r) * S + j] / 255 - spec.mean[c]) / spec.std[c];
    }
    let x = convolve(image, layers[0], null, blank(layers[0].outputs, S));
    for (let n = 1; n < layers.length; n += 2) {
      const one = layers[n], T = x.S / one.stride;
      const inner = convolve(x, one, null, blank(one.outputs, T));
      x = convolve(inner, layers[n + 1], around(x, one.outputs, one.stride), blank(one.outputs, T));
    }
    const T = x.S, maps = new Float32Array(K * T * T), features = new Float32Array(K);
    for (let k = 0; k < K; k++) {
      let total = 0;
      for (let r = 0; r < T; r++) for (let j = 0; j < T; j++) {
        total += maps[(k * T + r) * T + j] = x.values[(k * (T + 2) + r + 1) * (T + 2) + j + 1];
      }
      features[k] = total / (T * T);
    }
    return { maps, features, side: T, logits: logits(features) };
  }

  function logits(features, off) { // the head; a filter that is off contributes nothing
    return Float32Array.from(bias, (b, c) => {
      let total = b;
      for (let k = 0; k < K; k++) if (!off || !off.has(k)) total += weight[c * K + k] * features[k];
      return total;
    });
  }
  return { forward, logits, filters: K };
};
