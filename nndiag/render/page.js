"use strict";
// Everything here only adds to a page that can be read without it.

const short = (name, most) => (name.length > most ? "…" + name.slice(1 - most) : name);
const say = (value) => (value === null ? "not known" : String(Number(Number(value).toPrecision(3))));

const style = { fontSize: "11px", fontFamily: "inherit" };

function add(place, title, described, plot, level = "h3") {
  const figure = document.createElement("figure");
  const heading = document.createElement(level);
  heading.textContent = title;
  // The plot's own names of its marks become classes; a screen reader reads one label for the whole.
  for (const mark of plot.querySelectorAll("[aria-label]")) {
    mark.classList.add(...mark.getAttribute("aria-label").split(" "));
    mark.removeAttribute("aria-label");
  }
  plot.setAttribute("role", plot.querySelector("a") ? "group" : "img");
  plot.setAttribute("aria-label", `${title}: ${described}`);
  figure.append(heading, plot);
  place.append(figure);
}

// The network along its depth. A brief picture, one of two in a row, has names, activations and
// gradients only, and leaves empty the lines of layers that the other one has alone.
function draw(data, place) {
  const brief = data.brief === true;
  const layers = data.layers.map((layer, row) => ({ row, anchor: `L${row}`, ...layer }));
  const rows = data.rows || layers.length;
  const tall = rows <= 40 ? (brief ? 24 : 30) : rows <= 150 ? (brief ? 16 : 20) : 8;
  const height = Math.max(rows, 2) * tall + 60;
  const y = { domain: [-0.4, rows], range: [36, height - 24], axis: null };
  const base = { height, y, style, marginLeft: 12, marginRight: 12, marginTop: 36, marginBottom: 24 };

  const curve = (key, low, high) =>
    layers.flatMap((layer) =>
      (layer[key] || []).map((tallness, i, all) => ({
        x: low + ((i + 0.5) * (high - low)) / all.length,
        y1: layer.row + 0.92,
        y2: layer.row + 0.92 - (tallness / 99) * 1.05,
        row: layer.row,
      })),
    );
  const ridge = (points) =>
    Plot.areaY(points, {
      x: "x", y1: "y1", y2: "y2", z: "row",
      fill: "var(--line)", stroke: "var(--quiet)", strokeWidth: 0.7, fillOpacity: 0.75,
    });
  const tooltip = (layer) =>
    [
      `${layer.name} (${layer.op})`,
      `mean ${say(layer.mean)}, std ${say(layer.std)}`,
      layer.expected && `theory: mean ${say(layer.expected[0])}, std ${say(layer.expected[1])}`,
      layer.saturated !== null && `saturated: ${say(layer.saturated * 100)} %`,
      layer.dead !== null && `dead units: ${say(layer.dead * 100)} %`,
      layer.grad_rms !== null && `gradient, rms: ${say(layer.grad_rms)}`,
      layer.factor !== null && `gradient × ${say(layer.factor)}, theory ${say(layer.expected_factor)}`,
    ].filter(Boolean).join("\n");
  const tip = (x) =>
    Plot.tip(layers, Plot.pointerY({
      x: () => x, y: (layer) => layer.row + 0.6, title: tooltip, fill: "var(--paper)", stroke: "var(--quiet)",
      maxRadius: Infinity,
    }));
  const clip = (value, reach) => Math.max(-reach, Math.min(reach, value));
  const bar = (rows, x1, x2, options) =>
    Plot.link(rows, { x1, x2, y1: (l) => l.row + 0.92, y2: (l) => l.row + 0.92, ...options });

  const level = brief ? "h4" : "h3";
  const room = brief ? Math.max(300, place.parentElement.clientWidth - 45) : 0;
  const longest = data.longest || Math.max(...layers.map((l) => l.name.length + l.op.length + 1));
  const wide = Math.min(brief ? room * 0.28 : 185, 24 + 6.1 * longest);
  const most = Math.floor((wide - 18) / 6.1);
  const label = (l) => (!l.name.includes(l.op) && l.name.length + l.op.length < most ? `${l.name} ${l.op}` : short(l.name, most));
  const named = tall >= 20 ? layers : layers.filter((layer) => layer.row % Math.ceil(14 / tall) === 0);
  add(place, "Layer", "names, from the input down to the output", Plot.plot({
    ...base, width: wide, x: { axis: null, domain: [0, 1] },
    marks: [Plot.text(named, {
      x: () => 1, y: (l) => l.row + 0.72, text: label, textAnchor: "end",
      href: (l) => `#${l.anchor}`, fill: "var(--link)",
    })],
  }), level);

  const reach = data.reach;
  const hasGradients = layers.some((l) => l.grad);
  const known = layers.filter((l) => l.mean !== null && l.std !== null);
  const expected = layers.filter((l) => l.expected);
  add(place, "Activations", "distribution, mean and standard deviation of each layer's output, with theory's behind", Plot.plot({
    ...base, width: brief ? (room - wide) * (hasGradients ? 0.56 : 1) : 320, x: { domain: [-reach, reach], axis: "top", ticks: brief ? 3 : 5, label: null },
    marks: [
      Plot.ruleX([0], { stroke: "var(--line)" }),
      ridge(curve("output", -reach, reach)),
      bar(expected, (l) => clip(l.expected[0] - l.expected[1], reach), (l) => clip(l.expected[0] + l.expected[1], reach),
        { stroke: "var(--theory)", strokeWidth: tall >= 20 ? 7 : 4, strokeLinecap: "butt" }),
      bar(known, (l) => clip(l.mean - l.std, reach), (l) => clip(l.mean + l.std, reach),
        { stroke: "var(--measured)", strokeWidth: tall >= 20 ? 2.5 : 1.5 }),
      Plot.dot(known, { x: (l) => clip(l.mean, reach), y: (l) => l.row + 0.92, r: tall >= 20 ? 3 : 1.5, fill: "var(--measured)" }),
      tip(0),
    ],
  }), level);

  if (!brief && layers.some((l) => l.saturated !== null || l.dead !== null)) {
    const half = (key, from, color) =>
      Plot.rect(layers.filter((l) => l[key] !== null), {
        x1: 0, x2: (l) => l[key] * 100, y1: (l) => l.row + from, y2: (l) => l.row + from + 0.38, fill: color,
      });
    add(place, "Saturated, dead %", "share of saturated values (upper bars) and of dead units (lower bars)", Plot.plot({
      ...base, width: 160, x: { domain: [0, 100], axis: "top", ticks: 3, label: null },
      marks: [
        Plot.ruleX([0, 100], { stroke: "var(--line)" }),
        half("saturated", 0.12, "var(--saturated)"),
        half("dead", 0.54, "var(--dead)"),
        tip(50),
      ],
    }));
  }

  if (hasGradients) {
    const [low, high] = data.decades;
    const sized = layers.filter((l) => l.grad_rms > 0);
    const log = (l) => Math.max(low, Math.min(high, Math.log10(l.grad_rms)));
    add(place, brief ? "Gradients" : "Gradients, size", "distribution of the sizes of each output's gradient, and their root mean square", Plot.plot({
      ...base, width: brief ? (room - wide) * 0.44 : 240, x: {
        domain: [low, high], axis: "top", ticks: brief ? 3 : 4, label: null,
        tickFormat: (d) => (Number.isInteger(d) ? `1e${d}` : ""),
      },
      marks: [
        ridge(curve("grad", low, high)),
        Plot.dot(sized, { x: log, y: (l) => l.row + 0.92, r: tall >= 20 ? 3 : 1.5, fill: "var(--measured)" }),
        tip((low + high) / 2),
      ],
    }), level);
  }

  const factors = layers.filter((l) => l.factor > 0);
  if (!brief && factors.length) {
    const sizes = factors.flatMap((l) => [l.factor, l.expected_factor || 1]);
    const far = Math.max(2, ...sizes.map((v) => Math.max(v, 1 / v))) * 1.1;
    const step = far < 5 ? 2 : 10 ** Math.ceil(Math.log10(far) / 2);
    add(place, "Gradient, × a layer", "by how much the gradient grows or shrinks on its way through, with theory's behind", Plot.plot({
      ...base, width: 180, x: {
        type: "log", domain: [1 / far, far], axis: "top", ticks: [1 / step, 1, step], label: null, tickFormat: (d) => say(d),
      },
      marks: [
        Plot.ruleX([1], { stroke: "var(--quiet)", strokeDasharray: "3,3" }),
        Plot.link(factors.filter((l) => l.expected_factor > 0), {
          x1: "expected_factor", x2: "expected_factor", y1: (l) => l.row + 0.25, y2: (l) => l.row + 0.85,
          stroke: "var(--theory)", strokeWidth: 5,
        }),
        Plot.dot(factors, { x: "factor", y: (l) => l.row + 0.55, r: tall >= 20 ? 3.5 : 2, fill: "var(--measured)" }),
        tip(1),
      ],
    }));
  }
  place.hidden = false;
}

// The losses of a training trial: a thin line for each seed, a thick one for their mean.
function chart(data, place) {
  const color = { before: "var(--theory)", after: "var(--measured)" };
  const points = (values, z) => values.map((y, i) => ({ x: data.steps[i], y: y === null ? NaN : y, z }));
  // An area of no height is a line that ends where the values do.
  const line = (found, stroke, options) =>
    Plot.areaY(found, { x: "x", y1: "y", y2: "y", z: "z", fill: "none", stroke, ...options });
  const every = Math.ceil(data.steps.length / 12);
  const marks = ["before", "after"].flatMap((side) => {
    const { seeds, mean } = data.losses[side];
    const means = points(mean, 0);
    // Told apart without colour, too: the dots of before are hollow.
    const dots = means.filter((p, i) => i % every === 0 && !Number.isNaN(p.y));
    return [
      line(seeds.flatMap(points), color[side], { strokeWidth: 0.8, strokeOpacity: 0.6 }),
      line(means, color[side], { strokeWidth: 2.5 }),
      Plot.dot(dots, {
        x: "x", y: "y", r: 4, stroke: color[side], strokeWidth: 2,
        fill: side === "before" ? "var(--paper)" : color[side],
        title: (p) => `${side}, step ${Math.round(p.x)}: ${say(p.y)}`,
      }),
    ];
  });
  add(place, "Loss over the steps", "before and after, a thin line for each seed and a thick one for their mean", Plot.plot({
    width: Math.max(300, Math.min(760, place.parentElement.clientWidth - 40)), height: 300,
    style, marginLeft: 55,
    x: { label: "step" },
    y: { type: data.log ? "log" : "linear", label: "loss", grid: true, ...(data.log && { ticks: 4, tickFormat: say }) },
    marks,
  }));
  place.hidden = false;
}

function tables() {
  Tablesort.extend("float", (text) => /^-?[\d.,]+(e[-+]?\d+)?$|^-?inf$|^NaN$/i.test(text.trim()), (a, b) => {
    const value = (text) => (text === "" ? -Infinity : parseFloat(text.replace(/,/g, "").replace(/inf/i, "Infinity")));
    return value(b) - value(a);
  });
  for (const table of document.querySelectorAll("table[id]")) {
    new Tablesort(table);
    const input = document.querySelector(`input[data-filters="${table.id}"]`);
    const says = input.closest("p").querySelector("[role=status]");
    input.closest("p").hidden = false;
    const rows = [...table.tBodies[0].rows];
    const texts = rows.map((row) => row.textContent.toLowerCase());
    input.addEventListener("input", () => {
      const wanted = input.value.toLowerCase().split(/\s+/);
      const kept = rows.filter((row, i) => !(row.hidden = !wanted.every((word) => texts[i].includes(word))));
      says.textContent = input.value ? `${kept.length} of ${rows.length}` : "";
    });
  }
  // A link to a row that a filter hides must still lead there.
  addEventListener("hashchange", () => {
    const row = document.getElementById(location.hash.slice(1));
    if (row && row.hidden) row.hidden = false;
  });
}

tables();
for (const script of document.querySelectorAll("script[type='application/json']")) {
  const data = JSON.parse(script.textContent);
  (data.losses ? chart : draw)(data, script.parentElement.querySelector(".figure"));
}
addEventListener("beforeprint", () => document.querySelectorAll("details").forEach((d) => (d.open = true)));
