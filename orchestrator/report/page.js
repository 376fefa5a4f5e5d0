"use strict";
// Decides as the cascade does: a row leaves a stage when its float32 score is at least the float32 threshold.
(() => {
  const data = JSON.parse(document.getElementById("live-data").textContent);
  const bytes = (text) => Uint8Array.from(atob(text), (one) => one.charCodeAt(0));
  const floats = (text) => new Float32Array(bytes(text).buffer);
  const last = data.stages.length - 1;
  const stages = data.stages.map((stage) => ({
    ...stage,
    good: bytes(stage.good),
    score: stage.score === undefined ? null : floats(stage.score),
    grid: stage.grid === undefined ? null : floats(stage.grid),
  }));
  const at = (id) => document.getElementById(id);

  function outcome(thresholds) {
    const stops = new Array(last + 1).fill(0);
    let good = 0;
    for (let row = 0; row < data.rows; row += 1) {
      let stage = 0;
      while (stage < last) {
        const score = stages[stage].score[row];
        const low = stages[stage].low;
        if (score >= thresholds[stage] || (low !== null && score <= low)) break;
        stage += 1;
      }
      stops[stage] += 1;
      good += (stages[stage].good[row >> 3] >> (row & 7)) & 1;
    }
    const cost = stops.reduce((sum, count, stage) => sum + count * stages[stage].cost, 0) / data.rows;
    return { stops, good, cost };
  }

  // Exact binomial interval (Clopper-Pearson): the ends are quantiles of beta distributions, found by halving.
  function logGamma(x) {
    if (x < 8) return logGamma(x + 1) - Math.log(x);
    const y = 1 / (x * x);
    const series = 1 / 12 - y * (1 / 360 - y * (1 / 1260 - y / 1680));
    return (x - 0.5) * Math.log(x) - x + 0.5 * Math.log(2 * Math.PI) + series / x;
  }
  function betaShare(x, a, b) {
    if (x <= 0) return 0;
    if (x >= 1) return 1;
    if (x > (a + 1) / (a + b + 2)) return 1 - betaShare(1 - x, b, a);
    const front = Math.exp(
      logGamma(a + b) - logGamma(a) - logGamma(b) + a * Math.log(x) + b * Math.log1p(-x)) / a;
    // The continued fraction of the incomplete beta function, by Lentz's method.
    const tiny = 1e-300;
    let c = 1;
    let d = 1 / Math.max(Math.abs(1 - ((a + b) * x) / (a + 1)), tiny);
    let value = d;
    for (let m = 1; m < 2000; m += 1) {
      for (const step of [
        (m * (b - m) * x) / ((a + 2 * m - 1) * (a + 2 * m)),
        (-(a + m) * (a + b + m) * x) / ((a + 2 * m) * (a + 2 * m + 1)),
      ]) {
        d = 1 / (1 + step * d || tiny);
        c = 1 + step / c || tiny;
        value *= c * d;
      }
      if (Math.abs(c * d - 1) < 1e-12) break;
    }
    return front * value;
  }
  function quantile(share, a, b) {
    let low = 0;
    let high = 1;
    for (let step = 0; step < 60; step += 1) {
      const middle = (low + high) / 2;
      if (betaShare(middle, a, b) < share) low = middle;
      else high = middle;
    }
    return (low + high) / 2;
  }
  function interval(hits, rows) {
    return [
      hits === 0 ? 0 : quantile(0.025, hits, rows - hits + 1),
      hits === rows ? 1 : quantile(0.975, hits + 1, rows - hits),
    ];
  }

  const percent = (value, digits = 2) => `${(100 * value).toFixed(digits)} %`;
  const between = ([low, high]) => `95 % interval ${(100 * low).toFixed(2)} to ${percent(high)}`;
  function costWords(cost) {
    for (const [size, prefix] of [[1e15, "P"], [1e12, "T"], [1e9, "G"], [1e6, "M"], [1e3, "k"]]) {
      if (Math.abs(cost) >= size * 0.9995) return `${Number((cost / size).toPrecision(4))} ${prefix} ${data.unit}`;
    }
    return `${Number(cost.toPrecision(4))} ${data.unit}`;
  }
  function say(id, text, value) {
    at(id).textContent = text;
    if (value !== undefined) at(id).dataset.value = String(value);
  }

  const thresholds = stages.slice(0, last).map((stage) => stage.grid[stage.own]);
  const planned = outcome(thresholds);

  function show() {
    const now = outcome(thresholds);
    const quality = now.good / data.rows;
    say("live-quality", percent(quality), quality);
    const ends = interval(now.good, data.rows);
    say("live-quality-ci", between(ends), ends.join(" "));
    const moved = (100 * (now.good - planned.good)) / data.rows;
    say("live-quality-change", `${moved >= 0 ? "+" : ""}${moved.toFixed(2)} points against the plan`);
    say("live-cost", costWords(now.cost), now.cost);
    const factor = planned.cost > 0 ? now.cost / planned.cost : 1;
    say("live-cost-change", `${factor.toFixed(3)} of the plan's`);
    now.stops.forEach((count, stage) => {
      const share = count / data.rows;
      say(`live-exit-${stage}`, percent(share), share);
      at(`live-bar-${stage}`).style.width = `${100 * share}%`;
    });
    const plot = at("live-plot");
    if (plot !== null) {
      const { left, right, top, bottom, low, high, from, to } = plot.dataset;
      const across = (Math.log(now.cost) - Number(from)) / (Number(to) - Number(from));
      const up = (quality - Number(low)) / (Number(high) - Number(low));
      const held = (value) => Math.min(1, Math.max(0, value));
      at("live-dot").setAttribute("cx", Number(left) + held(across) * (Number(right) - Number(left)));
      at("live-dot").setAttribute("cy", Number(bottom) - held(up) * (Number(bottom) - Number(top)));
    }
  }

  // The fewest digits that give the same float32 again.
  function words(threshold) {
    if (!Number.isFinite(threshold)) return "never";
    let digits = 1;
    while (digits < 9 && Math.fround(Number(threshold.toPrecision(digits))) !== threshold) digits += 1;
    return String(Number(threshold.toPrecision(digits)));
  }
  function put(stage, threshold) {
    thresholds[stage] = threshold;
    const slider = at(`slider-${stage}`);
    slider.setAttribute("aria-valuetext", words(threshold));
    at(`number-${stage}`).value = Number.isFinite(threshold) ? words(threshold) : "";
  }
  function nearest(grid, threshold) {
    let found = 0;
    while (found < grid.length - 1 && grid[found] < threshold) found += 1;
    return found;
  }

  stages.slice(0, last).forEach((stage, number) => {
    const slider = at(`slider-${number}`);
    slider.max = String(stage.grid.length - 1);
    slider.value = String(stage.own);
    put(number, stage.grid[stage.own]);
    slider.addEventListener("input", () => {
      put(number, stage.grid[Number(slider.value)]);
      show();
    });
    at(`number-${number}`).addEventListener("change", (event) => {
      const text = event.target.value.trim();
      // An empty field is "never"; anything else is compared as the cascade would, in float32.
      const threshold = text === "" ? Infinity : Math.fround(Number(text));
      slider.value = String(nearest(stage.grid, threshold));
      put(number, threshold);
      event.target.value = text;
      show();
    });
  });
  at("live-reset").addEventListener("click", () => {
    stages.slice(0, last).forEach((stage, number) => {
      at(`slider-${number}`).value = String(stage.own);
      put(number, stage.grid[stage.own]);
    });
    show();
  });
  show();
})();
