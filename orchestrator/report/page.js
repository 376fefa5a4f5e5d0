"use strict";
const data = JSON.parse(document.getElementById("slider-data").textContent);

// The exit rule of orchestrator/decision for one row at a stage that is not the last. Scores and thresholds are
// float32 numbers there and here, "never" is Infinity, and `low` is null where the stage has no abstain window.
// A property test holds this function to that rule.
function leaves(score, threshold, low) {
  return score >= threshold || (low !== null && score <= low);
}

const bytes = (text) => Uint8Array.from(atob(text), (one) => one.charCodeAt(0));
const stages = data.stages.map((stage) => ({
  ...stage,
  correct: bytes(stage.correct),
  score: stage.score && new Float32Array(bytes(stage.score).buffer),
  grid: stage.grid && new Float32Array(bytes(stage.grid).buffer),
}));
const last = stages.length - 1;
const intervals = {
  low: new Float64Array(bytes(data.intervals.low).buffer),
  high: new Float64Array(bytes(data.intervals.high).buffer),
};

// Rows that stop at each stage, rows answered correctly, and the mean cost per row.
function outcome(thresholds) {
  const stops = new Array(last + 1).fill(0);
  let correct = 0;
  for (let row = 0; row < data.rows; row += 1) {
    let stage = 0;
    while (stage < last && !leaves(stages[stage].score[row], thresholds[stage], stages[stage].low)) stage += 1;
    stops[stage] += 1;
    correct += (stages[stage].correct[row >> 3] >> (row & 7)) & 1;
  }
  const cost = stops.reduce((sum, count, stage) => sum + count * stages[stage].cost, 0) / data.rows;
  return { stops, correct, cost };
}

const at = (id) => document.getElementById(id);
const percent = (value) => `${(100 * value).toFixed(2)} %`;
function costWords(cost) {
  for (const [size, prefix] of data.prefixes) {
    if (Math.abs(cost) >= size * 0.9995) return `${Number((cost / size).toPrecision(4))} ${prefix} ${data.unit}`;
  }
  return `${Number(cost.toPrecision(4))} ${data.unit}`;
}
// The fewest digits that give the same float32 again.
function thresholdWords(threshold) {
  if (!Number.isFinite(threshold)) return "never";
  let digits = 1;
  while (digits < 9 && Math.fround(Number(threshold.toPrecision(digits))) !== threshold) digits += 1;
  return String(Number(threshold.toPrecision(digits)));
}
// Shows a text, and keeps the exact value beside it.
function say(id, text, value) {
  at(id).textContent = text;
  if (value !== undefined) at(id).dataset.value = String(value);
}

const thresholds = stages.slice(0, last).map((stage) => stage.grid[stage.planned]);
const planned = outcome(thresholds);

function show() {
  const now = outcome(thresholds);
  const quality = now.correct / data.rows;
  const place = now.correct - data.intervals.fewest;
  const [low, high] = [intervals.low[place], intervals.high[place]];
  const moved = (100 * (now.correct - planned.correct)) / data.rows;
  const factor = planned.cost > 0 ? now.cost / planned.cost : 1;
  say("live-quality", percent(quality), quality);
  say("live-quality-ci", `95 % interval ${(100 * low).toFixed(2)} to ${percent(high)}`, `${low} ${high}`);
  say("live-quality-change", `${moved >= 0 ? "+" : ""}${moved.toFixed(2)} points against the plan`);
  say("live-cost", costWords(now.cost), now.cost);
  say("live-cost-change", `${factor.toFixed(3)} of the plan's`);
  now.stops.forEach((count, stage) => {
    const share = count / data.rows;
    say(`live-exit-${stage}`, percent(share), share);
    at(`live-bar-${stage}`).style.width = `${100 * share}%`;
  });
  if (data.chart !== null) {
    const put = (name, value, [from, to], [start, end]) => {
      const share = Math.min(1, Math.max(0, (value - from) / (to - from)));
      at("slider-dot").querySelector("use").setAttribute(name, start + share * (end - start));
    };
    put("x", Math.log(now.cost), data.chart.log_cost, data.chart.x);
    put("y", quality, data.chart.quality, data.chart.y);
  }
}

function put(stage, threshold) {
  thresholds[stage] = threshold;
  at(`slider-${stage}`).setAttribute("aria-valuetext", thresholdWords(threshold));
  at(`number-${stage}`).value = Number.isFinite(threshold) ? thresholdWords(threshold) : "";
}
function putPlanned() {
  stages.slice(0, last).forEach((stage, number) => {
    at(`slider-${number}`).value = String(stage.planned);
    put(number, stage.grid[stage.planned]);
  });
  show();
}

stages.slice(0, last).forEach((stage, number) => {
  const slider = at(`slider-${number}`);
  slider.max = String(stage.grid.length - 1);
  slider.addEventListener("input", () => {
    put(number, stage.grid[Number(slider.value)]);
    show();
  });
  at(`number-${number}`).addEventListener("change", (event) => {
    const text = event.target.value.trim();
    // An empty field is "never"; anything else is compared as the cascade would, in float32.
    const threshold = text === "" ? Infinity : Math.fround(Number(text));
    slider.value = String(stage.grid.findIndex((one) => one >= threshold));
    put(number, threshold);
    event.target.value = text;
    show();
  });
});
at("live-reset").addEventListener("click", putPlanned);
putPlanned();
