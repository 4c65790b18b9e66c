/* Steps through the data of `report.explorer`; there may be several on a page. */
function explore(root, data) {
  const chosen = {image: 0, step: 0, block: data.models[0].blocks.length - 1};
  const controls = add(root, "div", {class: "controls"});
  const classes = [...new Set(data.images.map((image) => image.title))];
  const control = (label, name, attributes) => {
    const box = add(controls, "label", {});
    add(box, "span", {}).textContent = label;
    return add(box, name, attributes);
  };
  const option = (select, value, text) => {
    add(select, "option", {value}).textContent = text;
  };
  const filter = control("Class", "select", {});
  option(filter, "", "all");
  classes.forEach((title) => option(filter, title, title));
  const image = control("Image", "select", {});
  const step = control("Perturbation", "input",
    {type: "range", min: 0, max: data.steps.length - 1, step: 1, value: 0});
  const stepName = add(step.parentElement, "output", {});
  const block = control("Block", "select", {});
  const most = Math.max(...data.models.map((model) => model.blocks.length));
  for (let i = 0; i < most; i++) {
    const names = new Set(data.models.map((model) => model.blocks[Math.min(i, model.blocks.length - 1)]));
    option(block, i, [...names].map((name) => name.replace("encoderblock_", "")).join(", "));
  }
  block.value = chosen.block;

  const panels = add(root, "div", {class: "maps"});
  const maps = data.models.map((model, number) => {
    const article = add(panels, "article", {"data-model": number});
    add(article, "h3", {}).textContent = model.name;
    const map = new RoutingMap(article, model.colours, {
      patch: (patch) => maps.forEach((other, i) => {
        if (i !== number && String(data.models[i].grid) === String(model.grid)) other.mark(patch);
      }),
    });
    return map;
  });

  const listImages = () => {
    image.replaceChildren();
    data.images.forEach(({title}, number) => {
      if (!filter.value || filter.value === title) option(image, number, `${number + 1}: ${title}`);
    });
    chosen.image = Number(image.value);
  };
  const show = () => {
    const {title, pictures, choices} = data.images[chosen.image];
    stepName.textContent = data.steps[chosen.step];
    data.models.forEach((model, number) => {
      const name = model.blocks[Math.min(chosen.block, model.blocks.length - 1)];
      const [first, now] = [0, chosen.step].map((i) => choices[number][name][i]);
      const changed = now.experts.flatMap(
        (experts, patch) => experts[0] === first.experts[patch][0] ? [] : [patch]);
      maps[number].show({
        image: pictures[chosen.step], alt: `${title}, ${model.name}, ${data.steps[chosen.step]}`,
        grid: model.grid, ...now, changed});
    });
  };
  filter.addEventListener("change", () => { listImages(); show(); });
  image.addEventListener("change", () => { chosen.image = Number(image.value); show(); });
  step.addEventListener("input", () => { chosen.step = Number(step.value); show(); });
  block.addEventListener("change", () => { chosen.block = Number(block.value); show(); });
  listImages();
  show();
}

for (const root of document.querySelectorAll(".explorer")) {
  explore(root, JSON.parse(root.querySelector("script").textContent));
}
