/* The page of `vmoe_prc.serve`. One request is under way at a time; the newest wish follows it. */
const by = (id) => document.getElementById(id);
const state = {models: [], image: null, picture: null, original: null, busy: false, again: false};

async function ask(path, options) {
  let answer;
  try {
    const response = await fetch(path, options);
    answer = await response.json();
  } catch {
    throw new Error("The server does not answer: has it ended?");
  }
  if (answer.error) throw new Error(answer.error);
  return answer;
}

const post = (path, body) => ask(path, {method: "POST", body});
const shortened = (name) => name.length > 40 ? `${name.slice(0, 24)}…${name.slice(-15)}` : name;
const say = (text) => { by("message").textContent = text; };

/* ---- Models ---- */

function addModel(description, number) {
  const section = add(by("models"), "article", {"data-model": number});
  add(section, "h2", {}).textContent = description.name;
  const model = {description, number, section};
  model.classes = add(section, "ol", {class: "classes", "aria-label": "Classes"});
  const map = add(section, "div", {});
  model.pair = add(section, "p", {class: "map-says soft"});
  model.title = add(section, "h3", {});
  model.patches = add(section, "div", {class: "patches"});
  if (description.blocks.length) {
    model.map = new RoutingMap(map, description.colours, {
      patch: (patch) => choosePatch(model, patch),
      expert: (expert) => showPatches(model, expert),
    });
  } else {
    model.picture = add(map, "img", {alt: "The picture", width: 320});
  }
  section.hidden = true;
  return model;
}

function addBlocks() {
  const blocks = [...new Set(state.models.flatMap((m) => m.description.blocks))];
  for (const block of blocks) {
    add(by("block"), "option", {value: block}).textContent = block.replace("encoderblock_", "");
  }
  by("block").value = blocks[blocks.length - 1] || "";
}

/* ---- Pictures ---- */

async function addFiles(files) {
  say("");
  const refused = [];
  for (const file of files) {
    try {
      const {image} = await post("api/images", file);
      const name = file.name || "picture";
      const button = add(by("pictures"), "button", {type: "button", title: name});
      add(button, "img", {src: URL.createObjectURL(file), alt: name});
      button.addEventListener("click", () => choosePicture(image, name, button));
      await choosePicture(image, name, button);
    } catch (error) {
      refused.push(`${shortened(file.name)}: ${error.message}`);
    }
  }
  by("file").value = "";
  if (refused.length) say(refused.join("\n"));
}

async function choosePicture(image, name, button) {
  say("");
  for (const other of by("pictures").children) other.setAttribute("aria-pressed", other === button);
  state.image = image;
  state.picture = by("name").textContent = by("name").title = name;
  for (const model of state.models) if (model.map) model.map.marked = null;
  by("changes").hidden = false;
  await look();
}

/* ---- Looking ---- */

function changes() {
  const found = {};
  for (const input of by("changes").querySelectorAll("input")) {
    found[input.name] = Number(input.value);
    const unit = {rotation: "°"}[input.name];
    input.previousElementSibling.textContent =
      unit ? `${input.value}${unit}` : `${Math.round(100 * input.value)}%`;
  }
  return found;
}

async function look() {
  if (state.busy) { state.again = true; return; }
  state.busy = true;
  try {
    do {
      state.again = false;
      const body = JSON.stringify({image: state.image, changes: changes()});
      const answers = await post("api/look", body);
      if (!state.again) show(answers);
    } while (state.again);
  } catch (error) {
    say(error.message);
  } finally {
    state.busy = false;
  }
}

function show(answers) {
  state.answers = answers;
  state.models.forEach((model, number) => {
    const answer = answers[number];
    model.section.hidden = false;
    model.classes.replaceChildren();
    for (const [name, probability] of answer.classes) {
      const item = add(model.classes, "li", {});
      const share = `${(100 * probability).toFixed(1)}%`;
      item.style.background = `linear-gradient(90deg, var(--bar) ${share}, transparent ${share})`;
      add(item, "span", {}).textContent = name;
      add(item, "span", {}).textContent = share;
    }
    if (!model.map) { model.picture.src = answer.picture; return; }
    const block = blockOf(model);
    model.map.show({
      image: answer.picture, alt: `${state.picture} as ${model.description.name} sees it`,
      grid: model.description.grid, ...answer.blocks[block]});
    sayPair(model, model.map.marked);
  });
}

function blockOf(model) {
  const {blocks} = model.description;
  return blocks.includes(by("block").value) ? by("block").value : blocks[blocks.length - 1];
}

/* ---- Patches ---- */

/* Marks the same place in the other model, where the grids are the same. */
function choosePatch(model, patch) {
  for (const other of state.models) {
    if (!other.map) continue;
    if (String(other.description.grid) !== String(model.description.grid)) continue;
    if (other !== model) other.map.mark(patch);
    sayPair(other, patch);
  }
}

function sayPair(model, patch) {
  if (patch === null) { model.pair.textContent = ""; return; }
  const answer = state.answers[model.number];
  const found = answer.matches.flatMap((match, original) => match === patch ? [original] : []);
  const columns = model.description.grid[1];
  const place = (p) => `row ${Math.floor(p / columns) + 1}, column ${p % columns + 1}`;
  const same = !answer.blocks[blockOf(model)].changed.includes(patch);
  model.pair.textContent = found.length
    ? `In the picture without changes: ${found.map(place).join("; ")}, ` +
      (same ? "the same first expert." : "another first expert.")
    : "No patch of the picture without changes has its centre here.";
}

async function showPatches(model, expert) {
  model.patches.replaceChildren();
  model.title.textContent = "";
  if (expert === null) return;
  try {
    const query = new URLSearchParams({model: model.number, block: blockOf(model), expert});
    const found = await ask(`api/patches?${query}`);
    model.title.textContent =
      found.length ? `Patches that expert ${expert} takes with the largest gates` :
        `Expert ${expert} takes no patch of these pictures`;
    for (const patch of found) {
      const figure = add(model.patches, "figure", {});
      add(figure, "img", {src: patch.picture, alt: `Patch ${patch.patch}`});
      add(figure, "figcaption", {}).textContent = patch.gate.toFixed(2);
    }
  } catch (error) {
    say(error.message);
  }
}

/* ---- Start ---- */

by("file").addEventListener("change", () => addFiles([...by("file").files]));
for (const type of ["dragover", "dragleave", "drop"]) {
  document.addEventListener(type, (event) => {
    event.preventDefault();
    by("drop").classList.toggle("over", type === "dragover");
    if (type === "drop") addFiles([...event.dataTransfer.files]);
  });
}
by("changes").addEventListener("input", (event) => {
  if (event.target.id === "block") { show(state.answers); refreshPatches(); } else look();
});
by("changes").addEventListener("reset", () => setTimeout(() => { addBlocksValue(); look(); }));
by("changes").addEventListener("submit", (event) => event.preventDefault());

let chosenBlock = "";
function addBlocksValue() { by("block").value = chosenBlock; }
function refreshPatches() {
  chosenBlock = by("block").value;
  for (const model of state.models) if (model.map) showPatches(model, model.map.expert);
}

ask("api/models").then((descriptions) => {
  state.models = descriptions.map(addModel);
  addBlocks();
  chosenBlock = by("block").value;
  changes();
}).catch((error) => say(error.message));
