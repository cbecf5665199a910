"use strict";
// Texts of models reach the page through textContent alone. `page` is the JSON that credit_page.py writes.
(() => {
  const page = JSON.parse(document.getElementById("data").textContent);
  const TOKENS_AT_ONCE = 16000;
  const [P, ASSOCIATION, GAIN, STRENGTH, PRESENCE, FREQUENCY, VALUE] = [0, 1, 2, 3, 4, 5, 6];
  const MODES = { grpo: "GRPO", paper: "paper", reference: "reference", calibrated: "calibrated" };
  const at = (id) => document.getElementById(id);
  const state = { group: 0, mode: page.settings.variant, order: "sampled", sort: "size", down: true, part: 0, pinned: null };
  let spans = [], byRef = [], current = null;

  function element(tag, className, text) {
    const made = document.createElement(tag);
    if (className) made.className = className;
    if (text !== undefined) made.textContent = text;
    return made;
  }
  const signed = (x) => (x > 0 ? "+" : x < 0 ? "−" : "") + Math.abs(x).toFixed(3);
  const number = (x) => (x === 0 ? "0" : Math.abs(x) < 0.001 ? x.toExponential(1) : Math.abs(x) >= 1000 ? x.toPrecision(4) : x.toFixed(3)).replace("-", "−");

  // Characters that show nothing, or turn the line around, are named instead.
  const HIDDEN = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u00ad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ud800-\udfff]/u;
  function visible(text) {
    if (text === "") return "·";
    let shown = "";
    for (const character of text) {
      if (character === "\n") shown += "↵";
      else if (character === "\t") shown += "⇥";
      else if (HIDDEN.test(character)) shown += "‹" + character.codePointAt(0).toString(16).toUpperCase().padStart(4, "0") + "›";
      else shown += character;
    }
    return shown;
  }

  const group = () => page.groups[state.group];
  function valueOf(ref, rollout) {
    if (state.mode === "grpo") return rollout === undefined ? 0 : group().rollouts[rollout].advantage;
    const variant = group().variants[state.mode], measures = variant.measures[ref];
    if (!measures) return 0;
    const shift = variant.shifts && rollout !== undefined ? variant.shifts[rollout] : 0;
    return measures[VALUE] * variant.weight - shift;
  }
  function most() {
    if (state.mode !== "grpo") return page.settings.range[state.mode] || 1;
    return Math.max(1e-9, ...group().rollouts.map((one) => Math.abs(one.advantage)));
  }
  function paint(target, value, limit) {
    const size = Math.min(1, Math.abs(value) / limit);
    target.classList.toggle("plus", value > 0);
    target.classList.toggle("minus", value < 0);
    target.style.setProperty("--size", size.toFixed(3));
  }

  function rolloutOrder() {
    const order = group().rollouts.map((_, i) => i);
    if (state.order === "verdict") {
      const rank = { correct: 0, wrong: 1, unknown: 2 };
      order.sort((x, y) => rank[group().rollouts[x].verdict] - rank[group().rollouts[y].verdict] || x - y);
    } else if (state.order === "credit") {
      const size = (i) => {
        const refs = group().rollouts[i].refs;
        return refs.reduce((sum, ref) => sum + Math.abs(valueOf(ref, i)), 0) / Math.max(1, refs.length);
      };
      const sizes = order.map(size);
      order.sort((x, y) => sizes[y] - sizes[x] || x - y);
    }
    return order;
  }

  function parts(order) {
    const found = [[]];
    let used = 0;
    for (const i of order) {
      const length = group().rollouts[i].refs.length;
      if (used && used + length > TOKENS_AT_ONCE) { found.push([]); used = 0; }
      found[found.length - 1].push(i);
      used += length;
    }
    return found;
  }

  function drawRollouts() {
    const all = parts(rolloutOrder());
    state.part = Math.min(state.part, all.length - 1);
    spans = []; byRef = []; current = null; state.pinned = null;
    const box = document.createDocumentFragment(), limit = most();
    for (const i of all[state.part]) box.append(drawRollout(i, limit));
    at("rollouts").replaceChildren(box);
    if (spans.length) spans[0].tabIndex = 0;
    const pager = at("pager");
    pager.replaceChildren();
    if (all.length > 1) {
      for (const [text, step] of [["‹ fewer", -1], ["more ›", 1]]) {
        const button = element("button", "", text);
        button.disabled = !all[state.part + step];
        button.onclick = () => { state.part += step; drawRollouts(); at("rollouts").focus(); };
        pager.append(button, " ");
      }
      pager.append(`part ${state.part + 1} of ${all.length}`);
    }
  }

  function drawRollout(i, limit) {
    const rollout = group().rollouts[i], skipped = new Set(rollout.skipped);
    const card = element("article", "rollout " + rollout.verdict);
    const marks = { correct: "✓ correct", wrong: "✗ wrong", unknown: "? unknown" };
    const head = element("h3");
    head.append(element("span", "badge", marks[rollout.verdict]), element("span", "", `rollout ${i + 1} of ${group().rollouts.length}`),
      element("span", "", `advantage ${signed(rollout.advantage)}`), element("span", "", `${rollout.refs.length} tokens`));
    if (state.mode !== "grpo" && rollout.refs.length) {
      const mean = rollout.refs.reduce((sum, ref) => sum + valueOf(ref, i), 0) / rollout.refs.length;
      head.append(element("span", "", `mean K ${signed(mean)}`));
    }
    card.setAttribute("aria-label", `Rollout ${i + 1}, ${rollout.verdict}, advantage ${rollout.advantage}`);
    card.setAttribute("role", "group");
    const text = element("div", "text");
    rollout.refs.forEach((ref, position) => {
      const raw = rollout.texts[position] ?? group().texts[ref];
      const span = element("span", "t", raw.includes("\n") && !HIDDEN.test(raw) ? raw.replaceAll("\n", "↵\n") : visible(raw));
      if (raw === "" || HIDDEN.test(raw)) span.classList.add("odd");
      if (skipped.has(position)) span.classList.add("skipped");
      else paint(span, valueOf(ref, i), limit);
      span.tabIndex = -1;
      span.index = spans.length; span.ref = ref; span.rollout = i; span.position = position;
      spans.push(span);
      (byRef[ref] ??= []).push(span);
      text.append(span);
    });
    card.append(head, text);
    return card;
  }

  function show(ref, span) {
    if (current) for (const one of byRef[current.ref] ?? []) one.classList.remove("same", "now");
    current = { ref, span };
    for (const one of byRef[ref] ?? []) one.classList.add("same");
    if (span) span.classList.add("now");
    for (const row of at("tokens").querySelectorAll("tr.now")) row.classList.remove("now");
    at("tokens").querySelector(`tr[data-ref="${ref}"]`)?.classList.add("now");
    drawDetail(ref, span);
  }

  function drawDetail(ref, span) {
    const data = group(), counts = data.counts[ref], rollout = span?.rollout;
    const text = span ? data.rollouts[rollout].texts[span.position] ?? data.texts[ref] : data.texts[ref];
    const value = valueOf(ref, rollout), mode = state.mode;
    const head = element("div", "detail-head"), name = mode === "grpo" ? "A" : "K";
    head.append(element("code", "", visible(text)), element("span", "value", `${name} ${signed(value)}`));
    const box = document.createDocumentFragment();
    box.append(head, element("p", "hint", `id ${data.ids[ref]}, ${(byRef[ref] ?? []).length} occurrences marked here`));
    if (!counts) {
      box.append(element("p", "", "Only rollouts without a verdict have it: it takes no part in the tables."));
    } else {
      const [a, b, c, d, usesCorrect, usesWrong] = counts, [tokensCorrect, tokensWrong] = data.sides.tokens;
      const table = element("table", "two"), rows = [["rollouts", "correct", "wrong"], ["with it", a, b], ["without it", c, d]];
      rows.forEach((cells, r) => {
        const row = element("tr");
        cells.forEach((cell, k) => {
          const made = element(r && k ? "td" : "th", "", String(cell));
          if (!(r && k)) made.scope = r ? "row" : "col";
          row.append(made);
        });
        table.append(row);
      });
      box.append(table);
      const share = (uses, tokens) => `${uses} of ${tokens} (${tokens ? (100 * uses / tokens).toFixed(2) : "0"} %)`;
      const list = element("dl"), variant = data.variants[mode === "grpo" ? page.settings.variant : mode], m = variant.measures[ref];
      const rowsOf = [
        ["Fisher p", number(m[P])], ["association F", number(m[ASSOCIATION])], ["information gain IG", `${number(m[GAIN])} bit`],
        ["TF in correct", share(usesCorrect, tokensCorrect)], ["TF in wrong", share(usesWrong, tokensWrong)],
        ["strength", number(m[STRENGTH])], ["direction: presence", number(m[PRESENCE])], ["direction: frequency", number(m[FREQUENCY])],
      ];
      if (variant.weight !== 1) rowsOf.push(["weight", number(variant.weight)]);
      if (variant.shifts && rollout !== undefined) rowsOf.push(["minus the rollout's mean", signed(-variant.shifts[rollout])]);
      if (mode !== "grpo") rowsOf.push(["K", signed(value)]);
      if (rollout !== undefined) rowsOf.push(["rollout advantage A", signed(data.rollouts[rollout].advantage)]);
      if (rollout !== undefined && mode !== "grpo") rowsOf.push(["A + K", signed(data.rollouts[rollout].advantage + value)]);
      for (const [term, definition] of rowsOf) list.append(element("dt", "", term), element("dd", "", definition));
      box.append(list);
      at("spoken").textContent = `${visible(text)}, ${name} ${signed(value)}, in ${a} correct and ${b} wrong rollouts, p ${number(m[P])}`;
    }
    at("detail").replaceChildren(box);
  }

  function drawTokens() {
    const data = group(), limit = most(), variant = data.variants[state.mode === "grpo" ? page.settings.variant : state.mode];
    const columns = { size: "|K|", value: "K", p: "p", correct: "in ✓", wrong: "in ✗" };
    const rows = data.ids.map((_, ref) => ref).filter((ref) => data.counts[ref]).map((ref) => {
      const value = variant.measures[ref][VALUE] * variant.weight;
      return { ref, size: Math.abs(value), value, p: variant.measures[ref][P], correct: data.counts[ref][0], wrong: data.counts[ref][1] };
    });
    const sign = state.down ? -1 : 1;
    rows.sort((x, y) => sign * (x[state.sort] - y[state.sort]) || y.size - x.size || x.ref - y.ref);
    const table = at("tokens"), head = element("thead"), line = element("tr");
    line.append(element("th", "", "token"));
    for (const [key, title] of Object.entries(columns)) {
      const cell = element("th"), button = element("button", "", title + (key === state.sort ? (state.down ? " ↓" : " ↑") : ""));
      cell.scope = "col";
      if (key === state.sort) cell.setAttribute("aria-sort", state.down ? "descending" : "ascending");
      button.type = "button"; button.dataset.sort = key;
      button.onclick = () => {
        state.down = key === state.sort ? !state.down : key !== "p";
        state.sort = key; drawTokens();
        at("tokens").querySelector(`button[data-sort="${key}"]`).focus();
      };
      cell.append(button); line.append(cell);
    }
    head.append(line);
    const body = element("tbody");
    for (const row of rows.slice(0, 200)) {
      const made = element("tr"), first = element("td"), button = element("button", "", visible(data.texts[row.ref]));
      button.type = "button"; button.title = visible(data.texts[row.ref]);
      first.classList.add(row.value > 0 ? "plus" : row.value < 0 ? "minus" : "none");
      button.style.setProperty("--size", Math.min(1, row.size / (state.mode === "grpo" ? page.settings.range[page.settings.variant] || 1 : limit)).toFixed(3));
      made.dataset.ref = row.ref;
      first.append(button); made.append(first);
      for (const text of [row.size.toFixed(3), signed(row.value), number(row.p), row.correct, row.wrong]) made.append(element("td", "", String(text)));
      made.onclick = () => { state.pinned = row.ref; show(row.ref, null); byRef[row.ref]?.[0]?.scrollIntoView({ block: "center" }); };
      body.append(made);
    }
    table.replaceChildren(head, body);
    at("tokens-title").textContent = `Tokens of the group (${rows.length > 200 ? "200 of " : ""}${rows.length})`;
  }

  function drawTop() {
    const tops = page.tops[group().step]?.[state.mode === "grpo" ? page.settings.variant : state.mode];
    const box = element("div", "two-lists");
    for (const [side, title] of [["highest", "highest mean K"], ["lowest", "lowest mean K"]]) {
      const column = element("div"), list = element("ol");
      for (const one of tops?.[side] ?? []) {
        const item = element("li");
        item.append(element("code", "", visible(one.text)), element("span", "", `${signed(one.k)} × ${one.count}`));
        list.append(item);
      }
      column.append(element("h3", "", title), list);
      box.append(column);
    }
    at("top").replaceChildren(box);
    at("top-title").textContent = page.settings.stored ? "Top tokens of all problems" : `Top tokens of step ${group().step}`;
  }

  function drawLegend() {
    const bar = element("i");
    for (const value of [-1, -0.66, -0.33, 0, 0.33, 0.66, 1]) {
      const cell = element("b", "t");
      paint(cell, value, 1);
      bar.append(cell);
    }
    const limit = most(), what = state.mode === "grpo" ? "advantage of the rollout" : "K";
    at("legend").replaceChildren(element("span", "", "−" + number(limit)), bar, element("span", "", `+${number(limit)}  ${what}`));
    at("legend").setAttribute("aria-label", `Colours: orange and dotted below 0, blue above 0, up to ${number(limit)}; ${what}`);
  }

  function drawModes() {
    const box = at("modes");
    box.replaceChildren();
    for (const [mode, title] of Object.entries(MODES)) {
      const button = element("button", "", title);
      button.type = "button"; button.dataset.mode = mode;
      button.setAttribute("role", "radio");
      button.setAttribute("aria-checked", String(mode === state.mode));
      button.tabIndex = mode === state.mode ? 0 : -1;
      button.onclick = () => setMode(mode);
      box.append(button);
    }
  }
  function setMode(mode) {
    state.mode = mode;
    const kept = current && { ref: current.ref, index: current.span?.index };
    draw();
    if (kept) show(kept.ref, spans[kept.index] ?? null);
    at("modes").querySelector(`[data-mode="${mode}"]`).focus();
  }

  function drawNotice() {
    const box = at("notice"), data = group();
    const texts = [];
    if (!data.mixed) texts.push("All rollouts with a verdict have the same one: nothing tells right from wrong here, and every K is 0.");
    if (page.settings.shadow) texts.push("Shadow run: K was logged, and training used the advantages without it.");
    else if (!page.settings.enabled) texts.push("This run trained without K; it is computed here from its rollouts.");
    if (page.settings.shuffled) texts.push("Control run: its K came from labels shuffled within each group. K shown here comes from the true labels; training did not use it.");
    box.hidden = texts.length === 0;
    box.textContent = texts.join(" ");
  }

  function draw() {
    const data = group();
    at("problem").textContent = data.prompt.split("\n").map((line) => (line ? visible(line) : "")).join("\n");
    at("gold").replaceChildren("right answer ", element("b", "", visible(data.label)), ` · ${data.sides.rollouts[0]} correct, ${data.sides.rollouts[1]} wrong of ${data.rollouts.length}`);
    drawModes(); drawLegend(); drawNotice(); drawRollouts(); drawTokens(); drawTop();
    at("choose").value = String(state.group);
    at("previous").disabled = state.group === 0;
    at("next").disabled = state.group === page.groups.length - 1;
    document.body.dataset.ready = String(Math.round(performance.now()));
  }
  function setGroup(index) { state.group = index; state.part = 0; draw(); }

  function move(event) {
    const focused = document.activeElement;
    if (focused.parentElement === at("modes") && ["ArrowLeft", "ArrowRight"].includes(event.key)) {
      const names = Object.keys(MODES), step = event.key === "ArrowRight" ? 1 : -1;
      setMode(names[(names.indexOf(state.mode) + step + names.length) % names.length]);
      event.preventDefault();
    }
    if (event.key === "Escape") state.pinned = null;
    if (focused.ref === undefined) return;
    const jumps = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: 10, ArrowUp: -10 };
    let next = null;
    if (event.key in jumps) next = spans[Math.min(spans.length - 1, Math.max(0, focused.index + jumps[event.key]))];
    else if (event.key === "Home") next = spans.find((one) => one.rollout === focused.rollout);
    else if (event.key === "End") next = spans.findLast((one) => one.rollout === focused.rollout);
    else if (event.key === "n") { const same = byRef[focused.ref]; next = same[(same.indexOf(focused) + 1) % same.length]; }
    else if (event.key === "Enter") { state.pinned = focused.ref; event.preventDefault(); }
    if (next) { state.pinned = null; next.focus(); event.preventDefault(); }
  }

  at("rollouts").addEventListener("mouseover", (event) => {
    const span = event.target.closest(".t");
    if (span?.ref !== undefined && state.pinned === null) show(span.ref, span);
  });
  at("rollouts").addEventListener("click", (event) => {
    const span = event.target.closest(".t");
    if (span?.ref !== undefined) { show(span.ref, span); state.pinned = span.ref; }
  });
  at("rollouts").addEventListener("focusin", (event) => {
    if (event.target.ref === undefined) return;
    for (const one of spans) if (one.tabIndex === 0) one.tabIndex = -1;
    event.target.tabIndex = 0;
    show(event.target.ref, event.target);
  });
  document.addEventListener("keydown", move);
  at("previous").onclick = () => setGroup(state.group - 1);
  at("next").onclick = () => setGroup(state.group + 1);
  at("choose").onchange = (event) => setGroup(Number(event.target.value));
  at("order").onchange = (event) => { state.order = event.target.value; state.part = 0; drawRollouts(); };

  const dark = matchMedia("(prefers-color-scheme: dark)");
  const setTheme = (isDark) => { document.documentElement.dataset.theme = isDark ? "dark" : "light"; };
  setTheme(dark.matches);
  dark.addEventListener("change", (event) => setTheme(event.matches));
  at("theme").onclick = () => setTheme(document.documentElement.dataset.theme !== "dark");

  const options = Object.entries(page.settings.options).map(([name, value]) => `${name} ${value}`);
  at("about").textContent = [page.settings.model, page.settings.estimator && `base ${page.settings.estimator}`, `KTAE ${page.settings.variant}`, ...options].filter(Boolean).join(" · ");
  page.groups.forEach((one, i) => {
    const [correct, wrong] = one.sides.rollouts;
    const option = element("option", "", `${page.settings.stored ? "problem" : `step ${one.step}, group`} ${one.group + 1}: ${correct} ✓ ${wrong} ✗`);
    option.value = String(i);
    at("choose").append(option);
  });
  page.files.forEach((file, i) => {
    if (page.files.length < 2) return;
    const link = element(i === page.file ? "b" : "a", "", String(i + 1));
    if (i !== page.file) link.href = file;
    at("files").append(" ", link);
  });
  const first = page.groups.findIndex((one) => one.mixed);
  state.group = Math.max(0, first);
  draw();
})();
