"use strict";
/* A picture whose patches have the colours of their experts. It fetches nothing.

A view is {image, alt, grid: [rows, columns], experts, gates, kept, changed}: `image` is a URL;
`experts`, `gates` and `kept` are lists of patches, in rows, of the K choices, best first; `gates`
and `kept` may be missing; `changed` lists patches that get a cross. */
class RoutingMap {
  constructor(root, colours, on = {}) {
    this.colours = colours;
    this.on = on;
    this.expert = null;
    this.marked = null;
    this.figure = add(root, "figure", {class: "map"});
    this.image = add(this.figure, "img", {});
    this.svg = add(this.figure, "svg", {preserveAspectRatio: "none", role: "group"});
    this.says = add(root, "p", {class: "map-says", "aria-live": "polite"});
    this.legend = add(root, "ul", {class: "experts", "aria-label": "Experts"});
  }

  show(view) {
    this.view = view;
    this.image.src = view.image;
    this.image.alt = view.alt;
    const [rows, columns] = view.grid;
    this.svg.setAttribute("viewBox", `0 0 ${columns} ${rows}`);
    this.svg.setAttribute("aria-label", `Patches of ${view.alt}`);
    this.svg.replaceChildren();
    this.rects = view.experts.map((experts, patch) => {
      const [x, y] = [patch % columns, Math.floor(patch / columns)];
      const rect = add(this.svg, "rect", {
        x, y, width: 1, height: 1, fill: this.colours[experts[0]], "data-patch": patch});
      if (view.kept && !view.kept[patch][0]) rect.classList.add("dropped");
      rect.addEventListener("pointerenter", () => this.say(patch));
      rect.addEventListener("pointerleave", () => this.say(this.marked));
      rect.addEventListener("click", () => this.choose(patch));
      return rect;
    });
    for (const patch of view.changed || []) {
      const [x, y] = [patch % columns + .5, Math.floor(patch / columns) + .5];
      const d = `M${x - .15} ${y - .15}l.3 .3m0 -.3l-.3 .3`;
      add(this.svg, "path", {d, class: "under"});
      add(this.svg, "path", {d});
    }
    this.drawLegend();
    this.mark(this.marked !== null && this.marked < this.rects.length ? this.marked : null);
  }

  drawLegend() {
    const counts = new Map();
    for (const [first] of this.view.experts) counts.set(first, (counts.get(first) || 0) + 1);
    this.legend.replaceChildren();
    this.colours.forEach((colour, expert) => {
      const share = Math.round(100 * (counts.get(expert) || 0) / this.view.experts.length);
      const button = add(add(this.legend, "li", {}), "button", {
        type: "button", "aria-pressed": expert === this.expert, "data-expert": expert,
        title: `Patches whose first expert is ${expert}`});
      add(button, "i", {}).style.background = colour;
      button.append(`${expert}: ${share}%`);
      button.addEventListener("click", () => {
        this.expert = this.expert === expert ? null : expert;
        this.drawLegend();
        this.dim();
        if (this.on.expert) this.on.expert(this.expert);
      });
    });
    this.dim();
  }

  dim() {
    this.rects.forEach((rect, patch) => rect.classList.toggle(
      "dim", this.expert !== null && this.view.experts[patch][0] !== this.expert));
  }

  choose(patch) {
    this.mark(this.marked === patch ? null : patch);
    if (this.on.patch) this.on.patch(this.marked);
  }

  /* Outlines a patch; null for none. */
  mark(patch) {
    this.marked = patch;
    this.rects.forEach((rect, other) => rect.classList.toggle("marked", other === patch));
    this.svg.querySelectorAll("polygon").forEach((outline) => outline.remove());
    if (patch !== null) {
      const columns = this.view.grid[1];
      const [x, y] = [patch % columns, Math.floor(patch / columns)];
      const points = `${x},${y} ${x + 1},${y} ${x + 1},${y + 1} ${x},${y + 1}`;
      add(this.svg, "polygon", {points, class: "under"});
      add(this.svg, "polygon", {points});
    }
    this.say(patch);
  }

  say(patch) {
    if (patch === null) {
      this.says.textContent = "Point at a patch for its experts.";
      return;
    }
    const {experts, gates, kept, grid} = this.view;
    const choices = experts[patch].map((expert, k) => {
      const gate = gates ? ` (gate ${gates[patch][k].toFixed(2)})` : "";
      return `expert ${expert}${gate}${kept && !kept[patch][k] ? ", not taken" : ""}`;
    });
    const [row, column] = [Math.floor(patch / grid[1]) + 1, patch % grid[1] + 1];
    this.says.textContent = `Row ${row}, column ${column}: ${choices.join("; ")}`;
  }
}

/* Appends a new element; attributes by name. */
function add(parent, name, attributes) {
  const svg = name === "svg" || parent.namespaceURI === "http://www.w3.org/2000/svg";
  const element = svg
    ? document.createElementNS("http://www.w3.org/2000/svg", name) : document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  parent.append(element);
  return element;
}
