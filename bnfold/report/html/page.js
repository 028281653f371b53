"use strict";

// Draws each graph of the page in layers, with blocks that open and close. Text from the model is
// only ever set as text.

const SVG = "http://www.w3.org/2000/svg";
const [WIDTH, HEIGHT, GAP_X, GAP_Y, BEND] = [172, 40, 22, 34, 18];
const FEW = 90;      // items that are shown at first
const MOST = 700;    // items that are drawn at once
const FOUND = 40;    // results of a search that are listed
const RANK = { "": 0, took: 1, folded: 2, merged: 3, kept: 4 };
const SAID = {
  folded: "folded", merged: "merged into another node", kept: "kept",
  took: "took affines into its weights", "": "unchanged",
};

function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  fill(element, attributes, children);
  return element;
}

function draw(tag, attributes = {}, ...children) {
  const element = document.createElementNS(SVG, tag);
  fill(element, attributes, children);
  return element;
}

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value);
  }
  element.append(...children);
}

function short(text, most) {
  return text.length <= most ? text : "…" + text.slice(1 - most);
}

class GraphView {
  constructor(root) {
    this.canvas = root.querySelector(".canvas");
    this.details = root.querySelector(".details");
    this.data = JSON.parse(root.querySelector("script[type='application/json']").textContent);
    this.scale = 1;
    this.root = root;
    for (const side of root.querySelectorAll("[data-side]"))
      side.addEventListener("click", () => this.show(side.dataset.side));
    const on = (name, act) => root.querySelector(`[data-do=${name}]`).addEventListener("click", act);
    on("smaller", () => this.zoom(this.scale / 1.25));
    on("larger", () => this.zoom(this.scale * 1.25));
    on("fit", () => this.fit());
    on("open", () => this.openAll());
    on("close", () => { this.open.clear(); this.chosen = null; this.render(); });
    root.querySelector("input[type=search]").addEventListener("input", (e) => this.search(e.target.value));
    this.canvas.addEventListener("keydown", (event) => this.key(event));
    this.show("before");
  }

  show(side) {
    for (const button of this.root.querySelectorAll("[data-side]"))
      button.setAttribute("aria-pressed", button.dataset.side === side);
    this.graph = this.data[side];
    this.blocks = [];
    this.parent = new Map();
    this.index(this.graph.tree, null);
    this.open = new Set();
    this.openFew();
    this.chosen = null;
    this.render();
    this.zoom(Math.max(0.85, Math.min(1, (this.canvas.clientWidth - 4) / this.size.width)));
    this.canvas.scrollTo(this.boxes[0].x * this.scale - this.canvas.clientWidth / 2, 0);
    this.overview();
  }

  // Numbers every block, and remembers in which one each node and block lies.
  index(tree, inside) {
    for (const entry of tree) {
      if (typeof entry === "number") { this.parent.set(entry, inside); continue; }
      entry.id = this.blocks.length;
      entry.above = inside;
      this.blocks.push(entry);
      this.index(entry.inside, entry);
      entry.nodes = entry.inside.flatMap((each) => (typeof each === "number" ? [each] : each.nodes));
      const states = entry.nodes.map((n) => this.graph.nodes[n].state);
      entry.state = states.reduce((a, b) => (RANK[b] > RANK[a] ? b : a), "");
      entry.kinds = states.reduce((all, s) => ({ ...all, [s]: (all[s] || 0) + 1 }), {});
    }
  }

  items(tree = this.graph.tree) {
    return tree.flatMap((entry) =>
      typeof entry === "object" && this.open.has(entry.id) ? this.items(entry.inside) : [entry]);
  }

  // Opens one level after the other, while not too much is seen; of the level that is too much,
  // the blocks in which something was kept.
  openFew() {
    let seen = this.graph.tree.length;
    let level = this.graph.tree;
    for (;;) {
      const blocks = level.filter((entry) => typeof entry === "object");
      const all = blocks.reduce((sum, block) => sum + block.inside.length - 1, seen) <= FEW;
      for (const block of blocks) {
        const more = block.inside.length - 1;
        if (seen + more > FEW || !(all || block.state === "kept")) continue;
        this.open.add(block.id);
        seen += more;
      }
      if (!all || !blocks.length) return;
      level = blocks.flatMap((block) => block.inside);
    }
  }

  openAll() {
    if (this.graph.nodes.length > MOST) {
      this.tell(make("p", {}, `${this.graph.nodes.length} nodes are too many to be drawn at once: `
        + "open single blocks, or search for a node."));
      return;
    }
    this.blocks.forEach((block) => this.open.add(block.id));
    this.render();
  }

  render() {
    const shown = this.items();
    const owner = new Map();
    const boxes = [];
    this.graph.inputs.forEach((text, i) => { owner.set(-1 - i, boxes.length); boxes.push({ text, port: true }); });
    for (const entry of shown) {
      const nodes = typeof entry === "number" ? [entry] : entry.nodes;
      nodes.forEach((n) => owner.set(n, boxes.length));
      boxes.push({ entry });
    }
    const edges = new Map();
    const join = (a, b) => { if (a !== b) edges.set(`${a} ${b}`, [a, b]); };
    for (const [a, b] of this.graph.edges) join(owner.get(a), owner.get(b));
    this.graph.outputs.forEach(([from, text]) => { join(owner.get(from), boxes.length); boxes.push({ text, port: true }); });
    this.boxes = boxes;
    this.links = [...edges.values()];
    const size = layout(boxes, this.links);
    this.size = size;
    this.svg = draw("svg", { role: "group", "aria-label": "the graph of the model" });
    this.svg.setAttribute("viewBox", `0 0 ${size.width} ${size.height}`);
    this.lines = this.links.map((link) => draw("path", { class: "edge", d: link.path }));
    boxes.forEach((box, i) => { box.drawn = this.box(box, i); });
    this.svg.append(...this.lines, ...boxes.map((box) => box.drawn));
    this.canvas.replaceChildren(this.svg);
    this.zoom(this.scale);
    this.mark();
  }

  box(box, i) {
    const at = `translate(${box.x - WIDTH / 2} ${box.y})`;
    const [title, below, kind] = this.words(box);
    const group = draw("g", { class: `item ${kind}`, transform: at, tabindex: i ? "-1" : "0", role: "button",
      "aria-label": `${title}, ${below}`, onclick: () => this.choose(i) });
    group.append(draw("title", {}, title));
    if (kind.includes("block")) group.append(draw("rect", { x: 4, y: 4, width: WIDTH, height: HEIGHT, rx: 7 }));
    group.append(draw("rect", { width: WIDTH, height: HEIGHT, rx: 7 }),
      draw("text", { x: WIDTH / 2, y: 17 }, short(title, 23)),
      draw("text", { x: WIDTH / 2, y: 31 }, short(below, 28)));
    return group;
  }

  // What a box says: its first line, its second, its classes.
  words(box) {
    if (box.port) return [box.text.split(" ")[0], box.text.split(" ").slice(1).join(" "), "port"];
    if (typeof box.entry === "number") {
      const node = this.graph.nodes[box.entry];
      return [node.name, `${node.op} ${node.shape}`, node.state];
    }
    const { nodes, kinds } = box.entry;
    const parts = Object.entries(kinds).filter(([state]) => state && state !== "took")
      .map(([state, count]) => `${count} ${state}`);
    return [this.name(box.entry), [`${nodes.length} nodes`, ...parts].join(", "), `block ${box.entry.state}`];
  }

  // A block without a name goes by its first and its last part.
  name(entry) {
    if (typeof entry === "number") return this.graph.nodes[entry].name;
    const ends = (at) => (each) => (typeof each === "number" || each.name ? this.name(each) : ends(at)(each.inside.at(at)));
    return entry.name || `${ends(0)(entry.inside[0])} to ${ends(-1)(entry.inside.at(-1))}`;
  }

  choose(i) {
    const box = this.boxes[i];
    if (box.port) { this.chosen = null; this.mark(i); this.tell(make("h3", {}, box.text)); return; }
    if (typeof box.entry === "object") {
      this.open.add(box.entry.id);
      this.render();
      this.reveal(box.entry.nodes[0]);
      this.blockTold(box.entry);
      return;
    }
    this.chosen = box.entry;
    this.mark();
    this.nodeTold(box.entry);
  }

  // Marks the chosen node and the edges at it; it becomes the one that the tab key reaches.
  mark(position) {
    const at = position ?? this.boxes.findIndex((box) => box.entry === this.chosen && this.chosen !== null);
    this.boxes.forEach((box, i) => {
      box.drawn.classList.toggle("chosen", i === at);
      box.drawn.setAttribute("tabindex", i === Math.max(at, 0) ? "0" : "-1");
    });
    this.lines.forEach((line, i) => line.classList.toggle("near", this.links[i].slice(0, 2).includes(at)));
  }

  reveal(node) {
    for (let block = this.parent.get(node); block; block = block.above) this.open.add(block.id);
    this.render();
    const box = this.boxes.find((each) => each.entry === node);
    this.canvas.scrollTo(box.x * this.scale - this.canvas.clientWidth / 2,
      box.y * this.scale - this.canvas.clientHeight / 3);
    return box;
  }

  pick(node) {
    this.chosen = node;
    this.reveal(node);
    this.nodeTold(node);
  }

  key(event) {
    const at = this.boxes.findIndex((box) => box.drawn === document.activeElement);
    if (at < 0) return;
    if (event.key === "Enter" || event.key === " ") { event.preventDefault(); this.choose(at); this.focus(); return; }
    const here = this.boxes[at];
    const side = this.boxes.filter((box) => box.rank === here.rank).sort((a, b) => a.x - b.x);
    const next = {
      ArrowDown: this.boxes[(this.links.find(([a]) => a === at) || [])[1]],
      ArrowUp: this.boxes[(this.links.find(([, b]) => b === at) || [])[0]],
      ArrowRight: side[side.indexOf(here) + 1],
      ArrowLeft: side[side.indexOf(here) - 1],
    }[event.key];
    if (!next) return;
    event.preventDefault();
    next.drawn.focus();
  }

  focus() {
    const box = this.boxes.find((each) => each.entry === this.chosen && this.chosen !== null);
    (box || this.boxes[0]).drawn.focus({ preventScroll: !box });
  }

  zoom(scale) {
    this.scale = Math.min(2.5, Math.max(0.08, scale));
    this.svg.setAttribute("width", this.size.width * this.scale);
    this.svg.setAttribute("height", this.size.height * this.scale);
  }

  fit() {
    this.zoom(Math.min(1.2, (this.canvas.clientWidth - 4) / this.size.width,
      (this.canvas.clientHeight - 4) / this.size.height));
  }

  tell(...parts) { this.details.replaceChildren(...parts); }

  overview() {
    const few = this.graph.nodes.filter((node) => ["kept", "folded", "merged"].includes(node.state)).length;
    this.tell(make("p", { class: "soft" }, `${this.graph.nodes.length} nodes, ${few} of them affines or merged. `
      + "Choose a node to read about it, a block to open it."));
  }

  blockTold(block) {
    const close = make("button", { onclick: () => { this.open.delete(block.id); this.render(); this.overview(); } }, "close the block");
    this.tell(make("h3", {}, this.name(block)), make("p", {}, this.words({ entry: block })[1]), close);
  }

  nodeTold(number) {
    const node = this.graph.nodes[number];
    const site = Object.hasOwn(this.data.sites, node.name) ? this.data.sites[node.name] : null;
    const list = make("dl");
    const say = (term, ...texts) => {
      const said = texts.filter(Boolean);
      if (said.length) list.append(make("dt", {}, term), ...said.map((text) => make("dd", {}, text)));
    };
    say("op", node.kind === node.op ? node.kind : `${node.kind} (${node.op})`);
    say("outcome", site ? site.outcome : SAID[node.state]);
    if (site) {
      say("into", site.into);
      say("largest scale that went into a weight", site.amplification);
      say(`why (${site.reason})`, ...site.why);
      say("to fold it", site.remedy);
    }
    say("shape", node.shape);
    say("parameters", ...node.params);
    const parts = [make("h3", {}, node.name), list];
    const block = this.parent.get(number);
    if (block) {
      const close = () => { this.open.delete(block.id); this.chosen = null; this.render(); this.blockTold(block); };
      parts.push(make("p", {}, make("button", { onclick: close }, `close ${short(this.name(block), 30)}`)));
    }
    this.tell(...parts);
  }

  search(text) {
    const wanted = text.trim().toLowerCase();
    if (!wanted) { this.overview(); return; }
    const found = this.graph.nodes.map((node, i) => [node, i])
      .filter(([node]) => `${node.name} ${node.kind} ${node.op} ${node.state}`.toLowerCase().includes(wanted));
    const list = make("ul", {}, ...found.slice(0, FOUND).map(([node, i]) =>
      make("li", {}, make("button", { class: "link", onclick: () => this.pick(i) }, node.name), ` ${node.op}`)));
    const rest = found.length > FOUND ? `, the first ${FOUND}:` : "";
    this.tell(make("p", { class: "soft" }, `${found.length} found${rest}`), list);
  }

  pickByName(name) {
    if (this.graph !== this.data.before) this.show("before");
    const number = this.graph.nodes.findIndex((node) => node.name === name);
    if (number < 0) return;
    this.root.scrollIntoView({ block: "nearest" });
    this.pick(number);
  }
}

// Gives every box a place: rank by the longest way from the inputs, order by the mean of the
// neighbours, then places as near to them as order and gaps allow. An edge that skips ranks bends
// around what lies between: it has a point in each.
function layout(boxes, links) {
  const count = boxes.length;
  const [into, out] = [boxes.map(() => []), boxes.map(() => [])];
  for (const [a, b] of links) { out[a].push(b); into[b].push(a); }
  const rank = boxes.map(() => 0);
  const order = boxes.map((_, i) => i);
  for (const i of order) for (const a of into[i]) rank[i] = Math.max(rank[i], rank[a] + 1);
  for (const i of order)
    if (!into[i].length && out[i].length) rank[i] = Math.max(0, Math.min(...out[i].map((b) => rank[b])) - 1);
  const points = boxes.map((_, i) => ({ rank: rank[i], wide: WIDTH, near: [[], []] }));
  const ways = links.map(([a, b]) => {
    const way = [a];
    for (let r = rank[a] + 1; r < rank[b]; r++) { way.push(points.length); points.push({ rank: r, wide: BEND, near: [[], []] }); }
    way.push(b);
    for (let i = 1; i < way.length; i++) { points[way[i]].near[0].push(way[i - 1]); points[way[i - 1]].near[1].push(way[i]); }
    return way;
  });
  const ranks = [];
  points.forEach((point, i) => (ranks[point.rank] ||= []).push(i));
  const mean = (list, of) => list.reduce((sum, i) => sum + of(i), 0) / list.length;
  const place = new Map();
  const number = (row) => row.forEach((i, at) => place.set(i, at - row.length / 2));
  ranks.forEach(number);
  for (let sweep = 0; sweep < 6; sweep++) {
    const up = sweep % 2;
    for (const row of up ? [...ranks].reverse() : ranks) {
      const aim = new Map(row.map((i) => {
        const near = points[i].near[up];
        return [i, near.length ? mean(near, (j) => place.get(j)) : place.get(i)];
      }));
      row.sort((a, b) => aim.get(a) - aim.get(b));
      number(row);
    }
  }
  const gap = (a, b) => (points[a].wide + points[b].wide) / 2 + GAP_X;
  for (const row of ranks) row.forEach((i, at) => { points[i].x = at ? points[row[at - 1]].x + gap(row[at - 1], i) : 0; });
  const real = (list) => list.filter((i) => points[i].wide === WIDTH);
  const middle = (near) => mean(real(near).length ? real(near) : near, (j) => points[j].x);
  const aims = (row, up) => row.reduce((found, i, at) => {
    const { near, x } = points[i];
    const alone = at && !near[0].length && !near[1].length;
    found.push(near[up].length ? middle(near[up]) : alone ? found[at - 1] + gap(row[at - 1], i) : x);
    return found;
  }, []);
  for (const up of [0, 1, 0, 1, 0, 1, 0, 0])
    for (const row of up ? [...ranks].reverse() : ranks)
      settle(row, points, gap, aims(row, up));
  const left = Math.min(...points.map((p) => p.x - p.wide / 2)) - 16;
  const right = Math.max(...points.map((p) => p.x + p.wide / 2)) + 16;
  const top = (p) => 14 + p.rank * (HEIGHT + GAP_Y);
  boxes.forEach((box, i) => { box.x = points[i].x - left; box.y = top(points[i]); box.rank = points[i].rank; });
  ways.forEach((way, i) => { links[i].path = bent(way.map((j) => [points[j].x - left, top(points[j])])); });
  return { width: right - left, height: 28 + ranks.length * (HEIGHT + GAP_Y) - GAP_Y, count };
}

// Moves the points of a rank as near to their aims as their order and gaps allow: the least squares,
// found by pooling neighbours that would overlap.
function settle(row, points, gap, aims) {
  let offset = 0;
  const pools = [];
  row.forEach((i, at) => {
    offset += at ? gap(row[at - 1], i) : 0;
    const weight = points[i].wide === WIDTH ? 100 : 1;
    let pool = { sum: (aims[at] - offset) * weight, weight, members: [[i, offset]] };
    while (pools.length && pools.at(-1).sum / pools.at(-1).weight > pool.sum / pool.weight) {
      const last = pools.pop();
      pool = { sum: last.sum + pool.sum, weight: last.weight + pool.weight, members: [...last.members, ...pool.members] };
    }
    pools.push(pool);
  });
  for (const pool of pools)
    for (const [i, shift] of pool.members) points[i].x = pool.sum / pool.weight + shift;
}

function bent(stops) {
  const [x, y] = stops[0];
  let path = `M${x} ${y + HEIGHT}`;
  for (let i = 1; i < stops.length; i++) {
    const [from, to] = [stops[i - 1], stops[i]];
    const start = from[1] + HEIGHT;
    const middle = (start + to[1]) / 2;
    if (i > 1) path += `V${start}`;
    path += `C${from[0]} ${middle} ${to[0]} ${middle} ${to[0]} ${to[1]}`;
  }
  return path;
}

function filtered(field) {
  const rows = document.getElementById(field.dataset.filters).tBodies[0].rows;
  field.addEventListener("input", () => {
    const wanted = field.value.trim().toLowerCase();
    for (const row of rows) row.hidden = !row.textContent.toLowerCase().includes(wanted);
  });
}

const views = new Map();
for (const root of document.querySelectorAll("[data-graph]")) views.set(root.dataset.graph, new GraphView(root));
for (const button of document.querySelectorAll("[data-shows]"))
  button.addEventListener("click", () => views.get(button.dataset.shows).pickByName(button.textContent));
document.querySelectorAll("[data-filters]").forEach(filtered);
