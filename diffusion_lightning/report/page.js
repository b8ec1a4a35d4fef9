"use strict";

// ---- pictures: a slider, a button that plays, and in each pane the picture of the slider's epoch

for (const figure of document.querySelectorAll("figure.pictures")) {
  const slider = figure.querySelector("input[type=range]");
  if (!slider) continue;
  const output = figure.querySelector("output");
  const button = figure.querySelector(".play");
  const epochs = JSON.parse(slider.dataset.epochs);
  const panes = [...figure.querySelectorAll(".pane[data-shown]")].map((pane) => ({
    shown: JSON.parse(pane.dataset.shown),
    label: pane.querySelector(".label"),
    images: [...pane.querySelectorAll("img")],
  }));

  const show = () => {
    const position = Number(slider.value);
    output.textContent = `epoch ${epochs[position]}`;
    slider.setAttribute("aria-valuetext", output.textContent);
    for (const { shown, label, images } of panes) {
      const epoch = shown[position];
      for (const image of images) image.hidden = Number(image.dataset.epoch) !== epoch;
      label.textContent = epoch === null ? "no picture yet" : `epoch ${epoch}`;
    }
  };
  const go = (position) => {
    slider.value = position; // the browser keeps it within its range
    show();
  };

  let timer = null;
  const stop = () => {
    clearInterval(timer);
    timer = null;
    button.textContent = "Play";
  };
  const play = () => {
    if (Number(slider.value) === epochs.length - 1) go(0);
    button.textContent = "Pause";
    // all of it in about ten seconds, at two to eight pictures a second
    const pause = Math.min(500, Math.max(125, 10000 / epochs.length));
    timer = setInterval(() => {
      go(Number(slider.value) + 1);
      if (Number(slider.value) === epochs.length - 1) stop();
    }, pause);
  };

  slider.addEventListener("input", () => {
    stop();
    show();
  });
  button.addEventListener("click", () => (timer === null ? play() : stop()));
  figure.addEventListener("click", (event) => {
    if (event.target.closest(".stage")) slider.focus({ preventScroll: true });
  });
  figure.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (step === undefined || event.target === slider) return; // the slider knows by itself
    event.preventDefault();
    stop();
    go(Number(slider.value) + step);
  });
  show(); // some browsers keep a slider where it was when the page is loaded again
}

// ---- curves: the values that are nearest to where one points

for (const chart of document.querySelectorAll("figure.chart")) {
  const svg = chart.querySelector("svg");
  const lines = JSON.parse(chart.dataset.points);
  const values = [...chart.querySelectorAll(".value")];
  const view = svg.viewBox.baseVal;
  const make = (name, attributes) => {
    const element = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
    element.setAttribute("visibility", "hidden");
    return svg.appendChild(element);
  };
  const rule = make("line", { class: "pointed", y1: 0, y2: view.height });
  const dots = lines.map(() => make("circle", { r: 3.5, style: "fill: var(--ink)" }));

  const clear = () => {
    for (const element of [rule, ...dots]) element.setAttribute("visibility", "hidden");
    for (const value of values) value.textContent = "";
  };
  svg.addEventListener("pointermove", (event) => {
    const box = svg.getBoundingClientRect();
    const x = ((event.clientX - box.left) / box.width) * view.width;
    const distance = (point) => Math.abs(point[0] - x);
    const nearest = lines.map((points) => points.reduce((a, b) => (distance(b) < distance(a) ? b : a)));
    const first = nearest.reduce((a, b) => (distance(b) < distance(a) ? b : a));
    rule.setAttribute("x1", first[0]);
    rule.setAttribute("x2", first[0]);
    rule.setAttribute("visibility", "visible");
    nearest.forEach(([px, py, step, value], index) => {
      dots[index].setAttribute("cx", px);
      dots[index].setAttribute("cy", py);
      dots[index].setAttribute("visibility", "visible");
      values[index].textContent = `${value}, ${step}`;
    });
  });
  svg.addEventListener("pointerleave", clear);
}

// ---- copying

const copyText = async (source) => {
  try {
    await navigator.clipboard.writeText(source.textContent);
  } catch {
    // where a page from a file may not: the old way, through a selection
    getSelection().selectAllChildren(source);
    document.execCommand("copy");
    getSelection().removeAllRanges();
  }
};
for (const button of document.querySelectorAll(".copy")) {
  button.addEventListener("click", async () => {
    await copyText(document.getElementById(button.dataset.copy));
    button.textContent = "Copied";
    setTimeout(() => (button.textContent = "Copy"), 1500);
  });
}
