"use strict";
(() => {
  const byId = (id) => document.getElementById(id);
  const data = JSON.parse(byId("data").textContent);
  const leaves = data.classes.length;
  const total = leaves + data.children.length;
  const stage = byId("stage"), canvas = byId("canvas"), tree = byId("tree"), links = byId("links"), panel = byId("panel");
  const pickClass = byId("class"), pickImage = byId("image"), find = byId("find");
  const pictures = Object.keys(data.thumbnails).length > 0;
  const ROW = 50, BOX = 42, PAD = 20; // pixels: from row to row, height of a node, around the tree
  const narrow = () => stage.clientWidth < 600;
  const boxWidth = () => (narrow() ? 156 : 204);
  const column = () => boxWidth() + (narrow() ? 30 : 44);

  // the tree: nothing recurses, so that a chain of thousands of nodes is no problem
  const parent = new Int32Array(total).fill(-1), depth = new Int32Array(total), size = new Int32Array(total);
  const childrenOf = (node) => (node < leaves ? [] : data.children[node - leaves]);
  data.children.forEach((children, i) => children.forEach((child) => { parent[child] = leaves + i; }));
  const preorder = [];
  for (const waiting = [data.root]; waiting.length;) {
    const node = waiting.pop();
    preorder.push(node);
    const children = childrenOf(node);
    for (let i = children.length - 1; i >= 0; i--) {
      depth[children[i]] = depth[node] + 1;
      waiting.push(children[i]);
    }
  }
  for (let i = preorder.length - 1; i >= 0; i--) {
    const node = preorder[i];
    if (node < leaves) size[node] = 1;
    if (parent[node] >= 0) size[parent[node]] += size[node];
  }
  const leavesOf = (node, most) => {
    const found = [];
    for (const waiting = [node]; waiting.length && found.length < most;) {
      const one = waiting.pop();
      if (one < leaves) found.push(one);
      else waiting.push(...childrenOf(one).slice().reverse());
    }
    return found;
  };
  const pathTo = (node) => {
    const path = [];
    for (let at = node; at >= 0; at = parent[at]) path.unshift(at);
    return path;
  };
  const named = (node) => (node < leaves ? data.classes[node] : data.names[node - leaves]);
  const label = (node) => {
    if (named(node) || node < leaves) return named(node);
    const first = leavesOf(node, 2).map((leaf) => data.classes[leaf]).join(", ");
    return size[node] > 2 ? `${first}, +${size[node] - 2}` : first;
  };
  const some = (node, most = 4) => {
    const first = leavesOf(node, most).map((leaf) => data.classes[leaf]).join(", ");
    return size[node] > most ? `${first} …` : first;
  };
  const percent = (share) => {
    if (share > 0.9995 && share < 1) return ">99.9 %";
    if (share > 0 && share < 0.0005) return "<0.1 %";
    return `${(100 * share).toFixed(share > 0.995 && share < 1 || share < 0.1 ? 1 : 0)} %`.replace("100.0", "100");
  };

  // state: which nodes are open, where one looks, which class or image is shown
  const open = new Uint8Array(total);
  let current = data.root, shown = null, mode = null, view = { x: 0, y: 0, k: 1 }, place = new Map(), extent = [1, 1];

  const element = (kind, name, content) => {
    const made = document.createElement(kind);
    if (name) made.className = name;
    if (content !== undefined) made.textContent = content;
    return made;
  };
  const picture = (address, name) => {
    const made = element("img", name);
    made.src = address;
    made.alt = "";
    made.draggable = false;
    return made;
  };

  const gallery = (leaf) => {
    const made = element("div", data.thumbnails[leaf].length > 1 ? "gallery several" : "gallery");
    made.append(...data.thumbnails[leaf].map((address) => picture(address, "large")));
    return made;
  };

  const visible = () => {
    const found = [];
    for (const waiting = [data.root]; waiting.length;) {
      const node = waiting.pop();
      found.push(node);
      if (open[node]) for (let i = childrenOf(node).length - 1; i >= 0; i--) waiting.push(childrenOf(node)[i]);
    }
    return found;
  };

  const lay = (nodes) => {
    place = new Map();
    let row = 0, deepest = 0;
    for (const node of nodes) {
      if (!open[node]) place.set(node, PAD + ROW * row++);
      deepest = Math.max(deepest, depth[node]);
    }
    for (let i = nodes.length - 1; i >= 0; i--) {
      const children = open[nodes[i]] ? childrenOf(nodes[i]) : [];
      if (children.length) place.set(nodes[i], (place.get(children[0]) + place.get(children[children.length - 1])) / 2);
    }
    extent = [2 * PAD + deepest * column() + boxWidth(), 2 * PAD + ROW * row];
  };
  const left = (node) => PAD + depth[node] * column();

  const spoken = (node) => {
    const words = [label(node)];
    if (node >= leaves) words.push(`${size[node]} classes${named(node) ? `: ${some(node)}` : ""}`);
    if (mode && mode.share.has(node) && node !== data.root) words.push(`${percent(mode.share.get(node))} ${mode.unit}`);
    if (mode && mode.truth && mode.truth.has(node)) words.push("way to the label");
    return words.join(", ");
  };

  const nodeBox = (node) => {
    const box = element("div", `node ${node < leaves ? "leaf" : "inner"}`);
    box.id = `node-${node}`;
    box.dataset.node = node;
    box.style.left = `${left(node)}px`;
    box.style.top = `${place.get(node)}px`;
    box.style.width = `${boxWidth()}px`;
    box.style.height = `${BOX}px`;
    box.title = node < leaves ? label(node) : `${label(node)}: ${some(node, 12)}`;
    box.setAttribute("role", "treeitem");
    box.setAttribute("aria-level", depth[node] + 1);
    const siblings = parent[node] < 0 ? [node] : childrenOf(parent[node]);
    box.setAttribute("aria-setsize", siblings.length);
    box.setAttribute("aria-posinset", siblings.indexOf(node) + 1);
    box.setAttribute("aria-selected", String(node === shown));
    box.setAttribute("aria-label", spoken(node));
    if (node >= leaves) box.setAttribute("aria-expanded", String(Boolean(open[node])));
    box.tabIndex = node === current ? 0 : -1;
    if (mode) box.classList.add(mode.share.has(node) ? (mode.main.has(node) ? "lit" : "aside") : "dim");
    if (mode && mode.truth && mode.truth.has(node) && !mode.share.has(node)) box.classList.replace("dim", "truth");
    if (pictures) {
      const bare = open[node] || (node >= leaves && narrow());
      const below = (bare ? [] : leavesOf(node, 60)).filter((leaf) => leaf in data.thumbnails);
      const two = below.length > 2 ? [below[0], below[below.length - 1]] : below;
      const stack = element("span", "stack");
      stack.append(...two.map((leaf) => picture(data.thumbnails[leaf][0], "thumb")));
      if (two.length) box.append(stack);
    }
    const words = element("span", "words");
    words.append(element("span", named(node) ? "name" : "name unnamed", label(node)));
    if (node >= leaves && named(node)) words.append(element("span", "some", some(node)));
    box.append(words);
    if (mode && mode.share.has(node) && node !== data.root) box.append(element("span", "share", percent(mode.share.get(node))));
    else if (node >= leaves) box.append(element("span", "count", String(size[node])));
    if (node >= leaves) box.append(element("span", "twist", open[node] ? "▾" : "▸"));
    return box;
  };

  const drawLinks = (nodes) => {
    const made = document.createDocumentFragment();
    const order = [[], [], [], []];
    for (const node of nodes) {
      if (node === data.root) continue;
      const lit = mode && mode.share.has(node), truth = mode && mode.truth && mode.truth.has(node) && !lit;
      const line = document.createElementNS("http://www.w3.org/2000/svg", "path");
      const x0 = left(parent[node]) + boxWidth(), x1 = left(node), half = (x1 - x0) / 2;
      const y0 = place.get(parent[node]) + BOX / 2, y1 = place.get(node) + BOX / 2;
      line.setAttribute("d", `M${x0} ${y0}C${x0 + half} ${y0} ${x1 - half} ${y1} ${x1} ${y1}`);
      line.setAttribute("class", lit ? (mode.main.has(node) ? "lit" : "aside") : truth ? "truth" : mode ? "dim" : "");
      if (lit) line.style.strokeWidth = `max(${Math.max(2, 8 * mode.share.get(node)).toFixed(1)}px, 2px / var(--scale))`;
      order[lit ? (mode.main.has(node) ? 3 : 2) : truth ? 1 : 0].push(line);
    }
    order.forEach((lines) => made.append(...lines));
    links.replaceChildren(made);
    links.setAttribute("width", extent[0]);
    links.setAttribute("height", extent[1]);
  };

  const draw = () => {
    const focused = tree.contains(document.activeElement);
    const nodes = visible();
    if (!nodes.includes(current)) {
      const kept = new Set(nodes);
      while (!kept.has(current)) current = parent[current];
    }
    lay(nodes);
    drawLinks(nodes);
    const boxes = document.createDocumentFragment();
    nodes.forEach((node) => boxes.append(nodeBox(node)));
    tree.replaceChildren(boxes);
    canvas.style.width = `${extent[0]}px`;
    canvas.style.height = `${extent[1]}px`;
    if (focused) byId(`node-${current}`).focus({ preventScroll: true });
  };

  // looking: position and scale of the canvas
  const look = () => {
    canvas.style.transform = `translate(${view.x}px,${view.y}px) scale(${view.k})`;
    canvas.style.setProperty("--scale", view.k); // lines get no thinner than a pixel or two on the screen
    stage.dataset.scale = view.k;
  };
  const keepSome = () => {
    view.x = Math.min(stage.clientWidth - 60, Math.max(60 - extent[0] * view.k, view.x));
    view.y = Math.min(stage.clientHeight - 60, Math.max(60 - extent[1] * view.k, view.y));
  };
  const move = (dx, dy) => {
    view.x += dx;
    view.y += dy;
    keepSome();
    look();
  };
  const zoom = (factor, x = stage.clientWidth / 2, y = stage.clientHeight / 2) => {
    const k = Math.min(2.5, Math.max(0.001, view.k * factor));
    view = { x: x - (x - view.x) * (k / view.k), y: y - (y - view.y) * (k / view.k), k };
    keepSome();
    look();
  };
  const fit = (least = 0.001) => {
    const k = Math.max(least, Math.min(1, stage.clientWidth / extent[0], stage.clientHeight / extent[1]));
    const room = [stage.clientWidth - extent[0] * k, stage.clientHeight - extent[1] * k];
    view = { x: Math.max(0, room[0] / 2), y: room[1] / 2, k };
    if (room[1] < -1) view.y = Math.min(0, stage.clientHeight / 2 - (place.get(data.root) + BOX / 2) * k);
    look();
  };
  const reveal = (node) => {
    const x0 = view.x + left(node) * view.k, x1 = x0 + boxWidth() * view.k;
    const y0 = view.y + place.get(node) * view.k, y1 = y0 + BOX * view.k, edge = 16;
    const wanted = (low, high, room) => (high > room - edge ? room - edge - high : 0) || (low < edge ? edge - low : 0);
    const dx = wanted(x0, x1, stage.clientWidth), dy = wanted(y0, y1, stage.clientHeight);
    if (dx || dy) move(dx, dy);
  };
  const revealAll = (nodes) => {
    const k = view.k;
    const x0 = Math.min(...nodes.map(left)), x1 = Math.max(...nodes.map(left)) + boxWidth();
    const rows = nodes.map((node) => place.get(node)), y0 = Math.min(...rows), y1 = Math.max(...rows) + BOX;
    const least = narrow() ? 0.7 : 0.8, edge = 20;
    const full = Math.min(1, (stage.clientWidth - 2 * edge) / (x1 - x0), (stage.clientHeight - 2 * edge) / (y1 - y0));
    view.k = full < 0.62 ? least : Math.min(full, Math.max(k, 0.9)); // all of it, or a part that is easy to read
    view.x = stage.clientWidth / 2 - ((x0 + x1) / 2) * view.k;
    view.y = stage.clientHeight / 2 - ((y0 + y1) / 2) * view.k;
    if ((x1 - x0) * view.k > stage.clientWidth - 2 * edge) view.x = stage.clientWidth - edge - x1 * view.k;
    if ((y1 - y0) * view.k > stage.clientHeight - 2 * edge) view.y = stage.clientHeight / 2 - rows[rows.length - 1] * view.k;
    const room = [stage.clientWidth - extent[0] * view.k, stage.clientHeight - extent[1] * view.k];
    if (room[0] >= 0) view.x = room[0] / 2; // all of the tree is seen at this scale
    if (room[1] >= 0) view.y = room[1] / 2;
    look();
  };

  // what is open at first: level by level, as long as it can be read on this screen
  const firstLevels = () => {
    open.fill(0);
    const most = Math.max(8, Math.floor(stage.clientHeight / (ROW * 0.75)));
    const widest = Math.max(2, Math.floor((stage.clientWidth / 0.68 - boxWidth()) / column()));
    let tips = 1;
    for (let level = [data.root]; level.length;) {
      const next = [];
      for (const node of level) {
        const children = childrenOf(node);
        if (!children.length || tips + children.length - 1 > Math.max(most, children.length) || depth[node] >= widest) continue;
        open[node] = 1;
        tips += children.length - 1;
        next.push(...children);
      }
      level = next;
    }
  };
  const closeOthers = () => { if (leaves > 40) open.fill(0); }; // so that a path in a large tree stands alone
  const openTo = (node) => pathTo(node).slice(0, -1).forEach((upper) => { open[upper] = 1; });
  const toggle = (node, to = !open[node]) => {
    if (node < leaves) return;
    const before = place.get(node);
    open[node] = to ? 1 : 0;
    draw();
    view.y += (before - place.get(node)) * view.k;
    keepSome();
    look();
  };
  const goTo = (node, focus = true) => {
    const old = byId(`node-${current}`);
    if (old) old.tabIndex = -1;
    current = node;
    const box = byId(`node-${node}`);
    box.tabIndex = 0;
    reveal(node);
    if (focus) box.focus({ preventScroll: true });
  };
  const select = (node) => {
    const old = shown === null ? null : byId(`node-${shown}`);
    if (old) old.setAttribute("aria-selected", "false");
    shown = node;
    const box = byId(`node-${node}`);
    if (box) box.setAttribute("aria-selected", "true");
    tell();
  };

  // the panel: the decisions of an image, where images of a class go, and what is below the selected node
  const bar = (share, kind) => {
    const made = element("span", `meter ${kind}`);
    const fill = element("span");
    fill.style.width = `${Math.max(0.5, 100 * share)}%`;
    made.append(fill);
    return made;
  };
  const link = (node) => {
    const made = element("button", "to", label(node));
    made.type = "button";
    made.addEventListener("click", () => {
      openTo(node);
      draw();
      goTo(node);
      select(node);
    });
    return made;
  };
  const tellImage = (image) => {
    const part = element("section");
    part.append(element("h2", "", image.title));
    if (image.picture) part.append(picture(image.picture, "large"));
    let product = 1;
    image.probabilities.forEach((one) => { product *= one; });
    const verdict = element("p");
    verdict.append("Predicted ", element("strong", "", data.classes[image.leaf]), ` with ${percent(product)}`);
    if (image.label !== null) {
      const right = image.label === image.leaf;
      const words = right ? "✓ as labelled" : `✗ labelled ${data.classes[image.label]}`;
      verdict.append(", ", element("span", right ? "right" : "wrong", words));
    }
    part.append(verdict);
    const steps = element("ol");
    image.probabilities.forEach((one, i) => {
      const step = element("li");
      const line = element("span", "step");
      line.append(link(image.path[i + 1]), element("span", "number", percent(one)));
      step.append(line, bar(one, "lit"));
      steps.append(step);
    });
    part.append(steps, element("p", "faint", `${image.probabilities.length} decisions; their product is ${percent(product)}.`));
    if (image.label !== null && image.label !== image.leaf) {
      const fork = image.path.filter((node) => pathTo(image.label).includes(node)).pop();
      part.append(element("p", "faint", `The way to the label, dashed, leaves at “${label(fork)}”.`));
    }
    return part;
  };
  const tellClass = (leaf) => {
    const part = element("section");
    const { images, shares } = data.frequencies[leaf];
    const ends = [];
    for (let i = 0; i < shares.length; i += 2) if (shares[i] < leaves) ends.push([shares[i], shares[i + 1]]);
    ends.sort((a, b) => b[1] - a[1] || a[0] - b[0]);
    const own = (ends.find(([node]) => node === leaf) || [leaf, 0])[1];
    part.append(element("h2", "", `Images of ${data.classes[leaf]}`));
    if (leaf in data.thumbnails) part.append(gallery(leaf));
    const words = element("p");
    words.append(`${images.toLocaleString("en")} images; `, element("strong", "", percent(own)), " end at their class.");
    part.append(words, element("h3", "", "Where they end"));
    const list = element("ol", "plain");
    ends.slice(0, 8).forEach(([node, share]) => {
      const item = element("li");
      const line = element("span", "step");
      line.append(link(node), element("span", "number", percent(share)));
      item.append(line, bar(share, node === leaf ? "lit" : "aside"));
      list.append(item);
    });
    part.append(list);
    if (ends.length > 8) part.append(element("p", "faint", `and ${ends.length - 8} more classes`));
    return part;
  };
  const tellNode = (node) => {
    const part = element("section");
    part.append(element("h2", "", label(node)));
    if (node !== data.root) {
      const path = element("p", "faint path");
      pathTo(node).slice(0, -1).forEach((upper) => path.append(link(upper), " › "));
      path.append(label(node));
      part.append(path);
    }
    if (node < leaves) {
      if (node in data.thumbnails) part.append(gallery(node));
      return part;
    }
    part.append(element("p", "", `${size[node]} classes below, a choice of ${childrenOf(node).length}`));
    const list = element("ul", "below");
    leavesOf(node, 30).forEach((leaf) => {
      const item = element("li");
      if (leaf in data.thumbnails) item.append(picture(data.thumbnails[leaf][0], "thumb"));
      item.append(data.classes[leaf]);
      list.append(item);
    });
    part.append(list);
    if (size[node] > 30) part.append(element("p", "faint", `and ${size[node] - 30} more`));
    return part;
  };
  const tell = () => {
    const parts = [];
    if (mode && mode.image) parts.push(tellImage(mode.image));
    if (mode && mode.leaf !== undefined) parts.push(tellClass(mode.leaf));
    if (shown !== null || !mode) parts.push(tellNode(shown === null ? data.root : shown));
    panel.replaceChildren(...parts);
  };
  const say = (words) => { byId("said").textContent = words; };

  const showImage = (image) => {
    if (pickClass) pickClass.value = "";
    const share = new Map([[data.root, 1]]);
    image.probabilities.forEach((one, i) => share.set(image.path[i + 1], one));
    const truth = image.label === null ? null : new Set(pathTo(image.label));
    mode = { image, share, main: new Set(image.path), truth, unit: "probability of this choice" };
    closeOthers();
    openTo(image.leaf);
    if (image.label !== null) openTo(image.label);
    current = image.leaf;
    shown = null;
    draw();
    revealAll(image.path);
    tell();
    const steps = image.path.slice(1).map((node, i) => `${label(node)} ${percent(image.probabilities[i])}`);
    say(`${image.title}: ${steps.join(", ")}`);
  };
  const showClass = (leaf) => {
    if (pickImage) pickImage.value = "";
    const share = new Map([[data.root, 1]]);
    const { shares } = data.frequencies[leaf];
    for (let i = 0; i < shares.length; i += 2) share.set(shares[i], shares[i + 1]);
    mode = { leaf, share, main: new Set(pathTo(leaf)), truth: null, unit: `of the images of ${data.classes[leaf]}` };
    closeOthers();
    openTo(leaf);
    share.forEach((one, node) => { if (one >= 0.05) openTo(node); });
    current = leaf;
    shown = null;
    draw();
    revealAll(pathTo(leaf));
    tell();
    say(`${percent(share.get(leaf) || 0)} of the images of ${data.classes[leaf]} end at ${data.classes[leaf]}`);
  };
  const showNothing = () => {
    mode = null;
    draw();
    tell();
  };
  const chosen = (list, show) => {
    if (list) list.addEventListener("change", () => (list.value ? show(Number(list.value)) : showNothing()));
  };
  chosen(pickClass, showClass);
  chosen(pickImage, (number) => showImage(data.images[number]));
  const search = () => {
    const wanted = find.value.trim().toLowerCase();
    if (!wanted) return;
    const all = preorder.filter((node) => label(node).toLowerCase().includes(wanted));
    const exact = all.find((node) => label(node).toLowerCase() === wanted);
    const node = exact ?? all.find((one) => one < leaves) ?? all[0];
    if (node === undefined) {
      say(`nothing is called ${find.value}`);
      return;
    }
    openTo(node);
    draw();
    view.k = Math.max(view.k, 0.7);
    look();
    goTo(node, false);
    select(node);
    say(`${label(node)}: level ${depth[node] + 1}`);
  };
  find.addEventListener("change", search);
  find.addEventListener("keydown", (event) => { if (event.key === "Enter") search(); });

  // mouse, fingers, wheel
  const fingers = new Map();
  let travelled = 0;
  stage.addEventListener("pointerdown", (event) => {
    if (event.button !== 0 || event.target.closest("button")) return;
    fingers.set(event.pointerId, [event.clientX, event.clientY]);
    if (fingers.size === 1) travelled = 0;
  });
  stage.addEventListener("pointermove", (event) => {
    const old = fingers.get(event.pointerId);
    if (!old) return;
    const now = [event.clientX, event.clientY];
    if (fingers.size === 2) {
      const other = [...fingers.entries()].find(([id]) => id !== event.pointerId)[1];
      const gap = (one) => Math.hypot(one[0] - other[0], one[1] - other[1]);
      const corner = stage.getBoundingClientRect();
      travelled = 99;
      zoom(gap(now) / Math.max(1, gap(old)), (now[0] + other[0]) / 2 - corner.left, (now[1] + other[1]) / 2 - corner.top);
      move((now[0] - old[0]) / 2, (now[1] - old[1]) / 2);
    } else {
      travelled += Math.hypot(now[0] - old[0], now[1] - old[1]);
      if (travelled > 5) {
        stage.setPointerCapture(event.pointerId);
        stage.classList.add("dragged");
        move(now[0] - old[0], now[1] - old[1]);
      }
    }
    fingers.set(event.pointerId, now);
  });
  const lift = (event) => {
    fingers.delete(event.pointerId);
    if (!fingers.size) stage.classList.remove("dragged");
  };
  stage.addEventListener("pointerup", lift);
  stage.addEventListener("pointercancel", lift);
  stage.addEventListener("lostpointercapture", lift);
  stage.addEventListener("wheel", (event) => {
    event.preventDefault();
    const corner = stage.getBoundingClientRect(), unit = event.deltaMode === 1 ? 16 : 1;
    if (event.ctrlKey || event.metaKey) {
      zoom(Math.exp(-event.deltaY * unit * 0.003), event.clientX - corner.left, event.clientY - corner.top);
    } else if (event.shiftKey) move(-event.deltaY * unit, 0);
    else move(-event.deltaX * unit, -event.deltaY * unit);
  }, { passive: false });
  tree.addEventListener("click", (event) => {
    const box = event.target.closest(".node");
    if (!box || travelled > 5) return;
    const node = Number(box.dataset.node);
    current = node;
    toggle(node);
    goTo(node);
    select(node);
  });
  stage.addEventListener("scroll", () => { // a browser scrolls what gets the focus into sight; the canvas moves instead
    stage.scrollLeft = 0;
    stage.scrollTop = 0;
  });

  // keys, as in the ARIA practices for trees
  let typed = "", typedAt = 0;
  const keys = {
    ArrowDown: (nodes, i) => nodes[i + 1],
    ArrowUp: (nodes, i) => nodes[i - 1],
    Home: (nodes) => nodes[0],
    End: (nodes) => nodes[nodes.length - 1],
    ArrowRight: (nodes, i) => {
      if (current < leaves) return undefined;
      if (open[current]) return nodes[i + 1];
      toggle(current, true);
      return current;
    },
    ArrowLeft: () => {
      if (!open[current]) return parent[current] < 0 ? undefined : parent[current];
      toggle(current, false);
      return current;
    },
    "*": () => {
      const siblings = parent[current] < 0 ? [current] : childrenOf(parent[current]);
      siblings.forEach((node) => { if (node >= leaves) open[node] = 1; });
      draw();
      return current;
    },
  };
  tree.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.altKey || event.metaKey) return;
    const nodes = visible(), i = nodes.indexOf(current);
    let handled = true;
    if (event.key.length > 1 || event.key in keys) typed = "";
    if (event.key in keys) {
      const to = keys[event.key](nodes, i);
      if (to !== undefined) {
        goTo(to);
        select(to);
      }
    } else if (event.key === "Enter" || event.key === " ") {
      toggle(current);
      goTo(current);
      select(current);
    } else if (event.key === "+") zoom(1.25);
    else if (event.key === "-") zoom(0.8);
    else if (event.key === "0") fit();
    else if (event.key.length === 1 && /\S/.test(event.key)) {
      typed = event.timeStamp - typedAt < 700 ? typed + event.key.toLowerCase() : event.key.toLowerCase();
      typedAt = event.timeStamp;
      const start = typed.length > 1 ? i : i + 1;
      const to = [...nodes.slice(start), ...nodes.slice(0, start)].find((node) => label(node).toLowerCase().startsWith(typed));
      if (to !== undefined) {
        goTo(to);
        select(to);
      }
    } else handled = false;
    if (handled) event.preventDefault();
  });

  const press = (id, action) => byId(id).addEventListener("click", action);
  press("fit", () => fit());
  press("nearer", () => zoom(1.25));
  press("farther", () => zoom(0.8));
  press("open", () => {
    open.fill(1, leaves);
    draw();
    fit(0.45);
  });
  press("close", () => {
    firstLevels();
    draw();
    fit(0.5);
  });

  firstLevels();
  draw();
  fit(0.5);
  tell();
  let wide = stage.clientWidth;
  window.addEventListener("resize", () => {
    if (stage.clientWidth === wide) return;
    wide = stage.clientWidth;
    draw();
    keepSome();
    look();
  });
  document.documentElement.dataset.ready = "yes";
})();
