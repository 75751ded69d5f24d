"use strict";
// Draws every chart into its place. Text and axes take the page's color, so that light and dark need no second drawing.
const specs = JSON.parse(document.getElementById("specs").textContent);
const faint = { domainColor: "currentColor", domainOpacity: 0.35, tickColor: "currentColor", tickOpacity: 0.35 };
const words = { labelColor: "currentColor", titleColor: "currentColor", labelFontSize: 12, titleFontSize: 12, titleFontWeight: 500 };
const config = {
  background: "transparent",
  font: "system-ui, -apple-system, 'Segoe UI', sans-serif",
  view: { stroke: null },
  axis: { ...faint, ...words, gridColor: "currentColor", gridOpacity: 0.1, tickCount: 6 },
  legend: { ...words, orient: "bottom", symbolType: "stroke", symbolSize: 220, columns: 4, labelLimit: 260 },
};

const SPACE = 1.6; // cells between rows of matrices, with the number of the site

// As many matrices in a row as there is room for; lines take the width of their place by themselves.
function fitted(spec, place) {
  const columns = Math.max(1, Math.floor(place.clientWidth / 190));
  if (!spec.usermeta) return { ...spec, config: { ...config, legend: { ...config.legend, columns } } };
  const { n, size, sites } = spec.usermeta;
  const most = Math.max(1, Math.floor(place.clientWidth / ((n + 1) * size)));
  const across = Math.min(most, sites);
  const cells = { x: across * (n + 1), y: Math.ceil(sites / across) * (n + SPACE) };
  const layer = spec.layer.map((each) => {
    const encoding = { ...each.encoding };
    for (const axis of ["x", "y"]) encoding[axis] = { ...encoding[axis], scale: { ...encoding[axis].scale, domain: [0, cells[axis]] } };
    return { ...each, encoding };
  });
  const params = spec.params.map((each) => (each.name === "columns" ? { ...each, value: across } : each));
  return { ...spec, layer, params, width: cells.x * size, height: cells.y * size, config };
}

// The slider counts looks; people count steps.
function tellSteps(place, view, steps) {
  const told = place.querySelector("input[type=range]")?.parentElement.querySelector("span:last-child");
  if (!told) return;
  const tell = () => { told.textContent = `step ${steps[view.signal("look")]}`; };
  view.addSignalListener("look", () => setTimeout(tell));
  tell();
}

async function draw() {
  for (const [name, spec] of Object.entries(specs)) {
    const place = document.getElementById(name);
    const options = { renderer: "svg", actions: false, tooltip: { theme: "custom" } };
    const { view } = await vegaEmbed(place, fitted(spec, place), options);
    if (spec.usermeta) tellSteps(place, view, spec.usermeta.steps);
  }
  document.body.dataset.drawn = "yes";
}

let asked;
let width = window.innerWidth;
window.addEventListener("resize", () => {
  if (window.innerWidth === width) return;
  width = window.innerWidth;
  clearTimeout(asked);
  asked = setTimeout(draw, 150);
});
draw().catch((error) => console.error(error));
